"""Write a file or a folder whole or not at all.

The content is written under a hidden, random name in the same folder, open to its owner only, flushed to
the disk, and then renamed over the old file. After a full disk, a kill or a power cut, the folder holds the
old file or the new one, never a part.

A process locks the file or folder that it has not finished. What a killed process left is not locked, and
the next write of the same file removes it. (Windows has no such locks; there it stays.)
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from ..exceptions import InvalidArgumentError
from .paths import ACCESS_LIST, OTHERS, check_file, followed, is_mine, private_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".unfinished"
_OUR_FOLDER = 0o700 | stat.S_ISVTX  # permissions that hardly any folder has but an unfinished one


@contextmanager
def atomic_writer(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    The file can also be read in the block: what was written can be read back.

    Args:
        path: the file to write; its folder must exist. If it is a link of the user's own, the file to which
            it leads is replaced, see `followed`.
        private: only the owner may read the file. Otherwise it has the permissions of the user's file that
            it replaces, or those of a new file.

    Raises:
        InvalidArgumentError: the path leads to something that is not a file: a folder, a pipe, a device.
        OSError: the folder is missing or not the user's to write, or the disk is full.
    """
    check_file(path)
    if not private:
        path = followed(path)
    remove_abandoned(path)
    number, unfinished = _new_file(path)
    try:
        with os.fdopen(number, "w+b") as file:
            yield file
            file.flush()
            put_in_place(unfinished, path, private=private)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_text_writer(path: Path) -> Iterator[IO[str]]:
    """Open a text file that replaces `path` when the block ends without an error; see `atomic_writer`.

    It is written as UTF-8, with "\\n" at the end of lines. Errors are those of `atomic_writer`, and
    UnicodeEncodeError for half of a surrogate pair.
    """
    with atomic_writer(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="\n", write_through=True)
        yield text
        text.flush()
        text.detach()


def write_file(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Replace a file by this content.

    Arguments and errors are those of `atomic_writer`. A text is written as UTF-8, and half of a surrogate
    pair in it as "?".
    """
    with atomic_writer(path, private=private) as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="replace"))


@contextmanager
def atomic_folder(folder: Path, *, private: bool = False) -> Iterator[Path]:
    """Make a folder whose files are written in the block. Yield where to write them.

    They are written under another name. The folder has its own name when the block ends without an error.

    Args:
        folder: a folder that does not exist, or is empty. The permissions of an empty one of this user's are
            kept. Missing parents are made.
        private: nobody but the owner may enter the folder and the parents that are made, or read its files.

    Raises:
        InvalidArgumentError: it is the folder that the process is in.
        OSError: there is a folder with files, the disk is full, or the place is not the user's.
    """
    if private and folder.is_symlink() and not is_mine(folder.lstat()):
        raise OSError(f"{folder} is a link of somebody else")
    folder = folder.resolve()  # a link stays one
    if folder.exists() and folder.samefile("."):  # a folder of the process that is gone has no name
        raise InvalidArgumentError(
            f"{folder} is the folder that you are in.", hint="Name a new folder in it."
        )
    if private:
        private_folder(folder.parent)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(folder) as place:
        made = place / folder.name
        made.mkdir(mode=0o777 & ~OTHERS if private else 0o777)
        yield made
        for path in made.rglob("*"):
            if path.is_file():
                _flush(path)
            if private:
                os.chmod(path, path.stat().st_mode & ~OTHERS)
        if folder.exists():
            before = folder.stat()
            if is_mine(before):
                _keep_permissions(made, folder, before)
            folder.rmdir()
        made.rename(folder)
        _flush_folder(folder.parent)


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """Make a hidden folder beside `path`, for the owner only, and remove it when the block ends. Yield it.

    Raises:
        OSError: it cannot be made.
    """
    remove_abandoned(path)
    number, folder = _new_folder(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if number is not None:
            os.close(number)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes of this user left of unfinished writes of `path`. Errors are ignored."""
    start = _start_of_name(path)
    with suppress(OSError), os.scandir(path.parent) as entries:
        left = [one for one in entries if one.name.startswith(start)]
        for entry in left:
            if entry.name.endswith(_UNFINISHED):
                _remove_if_abandoned(Path(entry.path))


def put_in_place(unfinished: Path, path: Path, *, private: bool = False) -> None:
    """Flush a finished file to the disk, then rename it, replacing a file of that name.

    Args:
        unfinished: the file, on the same disk as `path`.
        path: its new name. A link is replaced, not followed.
        private: as for `atomic_writer`, which also tells the permissions.

    Raises:
        InvalidArgumentError: the path is a pipe or a device, which would be lost.
        OSError: the path is a folder, or the disk refuses.
    """
    if not path.is_dir():
        check_file(path)
    _flush(unfinished)  # before its permissions, which may let nobody write
    if private:
        os.chmod(unfinished, 0o666 & ~OTHERS)
    else:
        _set_permissions(unfinished, path)
    os.replace(unfinished, path)
    _flush_folder(path.parent)


# Names that nobody can foresee, and locks on them


def _start_of_name(path: Path) -> str:
    return f".{path.name[:50]}."


def _new_file(path: Path) -> tuple[int, Path]:
    """Make a new, locked file beside `path`. Return its descriptor and its name."""
    while True:
        number, name = tempfile.mkstemp(_UNFINISHED, _start_of_name(path), path.parent)
        if _locked(number, name):
            return number, Path(name)
        os.close(number)  # another process took it for abandoned, and removed it


def _new_folder(path: Path) -> tuple[int | None, Path]:
    """Make a new, locked folder beside `path`. Return the descriptor that holds the lock, and its name.

    The descriptor is None where there are no locks, as on Windows.
    """
    while True:
        name = tempfile.mkdtemp(_UNFINISHED, _start_of_name(path), path.parent)
        if fcntl is None:
            return None, Path(name)
        with suppress(OSError):  # a file system without this bit: folders stay there after a kill
            os.chmod(name, os.stat(name).st_mode | stat.S_ISVTX)
        with suppress(FileNotFoundError):
            number = os.open(name, os.O_RDONLY)
            if _locked(number, name):
                return number, Path(name)
            os.close(number)


def _locked(number: int, name: str) -> bool:
    """Lock an open file or folder. Return False if another process or thread has removed it meanwhile.

    A process that took it for abandoned, before it was locked here, holds the lock until it has removed it.
    """
    if fcntl is None:
        return True
    with suppress(OSError):  # not every file system has locks
        fcntl.flock(number, fcntl.LOCK_EX)
    try:
        return os.stat(name).st_ino == os.fstat(number).st_ino
    except FileNotFoundError:
        return False


def _remove_if_abandoned(left: Path) -> None:
    """Remove an unfinished file or folder of this user's, unless a living process has locked it.

    Whoever may write to the parent may give any folder such a name. So a folder is removed with its content
    only if it has the permissions with which this module marks its folders. A folder without them is removed
    if it is empty.
    """
    found = left.lstat()
    is_folder = stat.S_ISDIR(found.st_mode)
    if fcntl is None or found.st_uid != os.getuid() or not (is_folder or left.is_file()):
        return
    with suppress(OSError):
        number = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_folder and os.fstat(number).st_mode & (0o777 | stat.S_ISVTX) == _OUR_FOLDER:
                shutil.rmtree(left, ignore_errors=True)
            elif is_folder:
                left.rmdir()
            else:
                left.unlink()
        finally:
            fcntl.flock(number, fcntl.LOCK_UN)  # at once, even if a fork has the descriptor too
            os.close(number)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system can flush a folder
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _set_permissions(unfinished: Path, path: Path) -> None:
    """Give a finished file the permissions of the user's file that it replaces, or those of a new one.

    A link, or a file that somebody else has put there, does not count.
    """
    with suppress(FileNotFoundError):
        replaced = followed(path)
        found = replaced.lstat()
        if stat.S_ISREG(found.st_mode) and is_mine(found):
            _keep_permissions(unfinished, replaced, found)
            return
    os.chmod(unfinished, 0o666 & ~_umask())


def _keep_permissions(made: Path, replaced: Path, found: os.stat_result) -> None:
    """Give a file or a folder the group, permissions and access list of the one that it replaces.

    If the user cannot give it that group, the group gets no permissions. With an access list, those in the
    mode are the most that anybody in the list has, and not the group's: the list alone tells these.
    """
    listed, has_group = b"", _has_group(made, found.st_gid)
    with suppress(OSError, AttributeError):  # no list, or none on this system
        listed = os.getxattr(replaced, ACCESS_LIST)
    with suppress(OSError, AttributeError):  # one that the folder gives its new files
        os.removexattr(made, ACCESS_LIST)
    os.chmod(made, found.st_mode & (0o777 if has_group and not listed else 0o707))
    if listed and has_group:
        with suppress(OSError):
            os.setxattr(made, ACCESS_LIST, listed)


def _has_group(path: Path, group: int) -> bool:
    """Give a file this group, if it has another one. Return whether the file has the group now."""
    if path.stat().st_gid != group and hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(path, -1, group)
    return path.stat().st_gid == group


def _umask() -> int:
    with suppress(OSError, ValueError, IndexError):
        # Read from /proc: os.umask would change the mask of other threads for a moment.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("Umask:")[1].split()[0], 8)
    mask = os.umask(OTHERS)
    os.umask(mask)
    return mask
