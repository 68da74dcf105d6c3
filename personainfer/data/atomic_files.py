"""Write a file whole or not at all.

The content is written to a temporary file in the same folder (`mkstemp`: a random name, readable by its owner
only), flushed to the disk, and then renamed over the old file. After a full disk, a kill or a power cut, the
folder holds the old file or the new one, never a part.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from ..exceptions import InvalidArgumentError

_OTHERS = 0o077  # the permissions of everybody but the owner


@contextmanager
def atomic_writer(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    Args:
        path: the file to write; its folder must exist.
        private: only the owner may read it. Otherwise it has the permissions of the file that it
            replaces, or those of a new file.

    Raises:
        InvalidArgumentError: the path leads to something that is not a file: a folder, a pipe, a device.
        OSError: the disk is full, or the user may not write to the folder.
    """
    check_file(path)
    number, name = tempfile.mkstemp(
        prefix=f".{path.name[:50]}.", suffix=".unfinished", dir=path.parent
    )
    unfinished = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            if not private:
                os.chmod(unfinished, _permissions(path))
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_text_writer(path: Path) -> Iterator[IO[str]]:
    """`atomic_writer` for text, as UTF-8 with "\\n" at the end of lines."""
    with atomic_writer(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="\n", write_through=True)
        yield text
        text.flush()
        text.detach()


def write_file(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Replace a file by this content; text as UTF-8. Arguments and errors are those of `atomic_writer`."""
    with atomic_writer(path, private=private) as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="replace"))


def put_in_place(unfinished: Path, path: Path) -> None:
    """Flush a finished file to the disk, then rename it, replacing a file of that name.

    Raises:
        InvalidArgumentError: the path is a pipe or a device, which would be lost.
        OSError: it is a folder, or the disk refuses.
    """
    if not path.is_dir():
        check_file(path)
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    with suppress(OSError):  # not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_file(path: Path) -> None:
    """Raise InvalidArgumentError if the path leads to something that is not a regular file."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise InvalidArgumentError(f"{path} is {kind}, not a file.", hint="Name another file.")


def private_folder(folder: Path) -> Path:
    """Make a folder that only its owner may enter, and its parents; an existing folder is unchanged."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o777 & ~_OTHERS)
    return folder


def _permissions(path: Path) -> int:
    """The permissions of the file, or of a new file."""
    with suppress(FileNotFoundError):
        return path.stat().st_mode & 0o777
    return 0o666 & ~_umask()


def _umask() -> int:
    with suppress(OSError, ValueError, IndexError):
        # Read from /proc: os.umask would change the mask of other threads for a moment.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("Umask:")[1].split()[0], 8)
    mask = os.umask(_OTHERS)
    os.umask(mask)
    return mask
