"""Write a file or a folder whole or not at all.

The content is written under a hidden, random name in the same folder, open to its owner only, flushed to
the disk, and then renamed over the old file. After a full disk, a kill or a power cut, the folder holds the
old file or the new one, never a part.

A process locks what it has not finished. What a killed process left is not locked, and the next write of the
same file removes it. (Windows has no such locks; there it stays.)

`opened_file` and `read_small_file` read a file, and no pipe or device, which would wait or have no end.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from ..exceptions import InvalidArgumentError, quoted

try:
    import fcntl
    import grp
    import pwd
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors that no other path avoids
_OTHERS = 0o077  # the permissions of everybody but the owner
_UNFINISHED = ".unfinished"
_OUR_FOLDER = (
    0o700 | stat.S_ISVTX
)  # permissions of an unfinished folder; hardly another one has them


@contextmanager
def atomic_writer(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends without an error.

    What was written can be read back before.

    Args:
        path: the file to write; its folder must exist. A link of the user's own stays, see `followed`.
        private: only the owner may read it. Otherwise it has the permissions of the user's file that it
            replaces, or those of a new file.

    Raises:
        InvalidArgumentError: the path leads to something that is not a file: a folder, a pipe, a device.
        OSError: the disk is full, or the user may not write to the folder.
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


def followed(path: Path) -> Path:
    """The file to which a link leads, if both are this user's and nobody else can have put the link there.

    Other paths stay as they are: a link that somebody planted is replaced.
    """
    if not path.is_symlink() or not path.is_file():
        return path
    target = path.resolve()
    if fcntl is not None:
        folder = path.absolute().parent.stat()
        is_open = others_may_write(folder) and not folder.st_mode & stat.S_ISVTX
        if is_open or {path.lstat().st_uid, target.stat().st_uid} != {os.getuid()}:
            return path
    return target


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


@contextmanager
def atomic_folder(folder: Path, *, private: bool = False) -> Iterator[Path]:
    """Make a folder whose files are written in the block, and that has its name when the block ends.

    Args:
        folder: one that does not exist, or is empty; if it is this user's, its permissions are kept then.
            Its parents are made.
        private: only the owner may enter it, and the parents that are made, and read its files.

    Raises:
        InvalidArgumentError: it is the folder that the process is in.
        OSError: there is a folder with files, the disk is full, or the place is not the user's.
    """
    if private and folder.is_symlink() and not _is_mine(folder.lstat()):
        raise OSError(f"{folder} is a link of somebody else")
    folder = folder.resolve()  # a link stays one
    if folder == Path.cwd():
        raise InvalidArgumentError(
            f"{folder} is the folder that you are in.", hint="Name a new folder in it."
        )
    if private:
        private_folder(folder.parent)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(folder) as place:
        made = place / folder.name
        made.mkdir(mode=0o777 & ~_OTHERS if private else 0o777)
        yield made
        for path in made.rglob("*"):
            if path.is_file():
                _flush(path)
            if private:
                os.chmod(path, path.stat().st_mode & ~_OTHERS)
        if folder.exists():
            before = folder.stat()
            if _is_mine(before):
                kept = 0o777 if _has_group(made, before.st_gid) else 0o707
                os.chmod(made, before.st_mode & kept)
            folder.rmdir()
        made.rename(folder)
        _flush_folder(folder.parent)


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, for the owner only, that is removed when the block ends."""
    remove_abandoned(path)
    number, folder = _new_folder(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if number is not None:
            os.close(number)


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of unfinished writes of `path`."""
    start = _start_of_name(path)
    with suppress(OSError), os.scandir(path.parent) as entries:
        left = [one for one in entries if one.name.startswith(start)]
        for entry in left:
            if entry.name.endswith(_UNFINISHED):
                _remove_if_abandoned(Path(entry.path))


def put_in_place(unfinished: Path, path: Path, *, private: bool = False) -> None:
    """Flush a finished file to the disk, then rename it, replacing a file of that name.

    Arguments and permissions are those of `atomic_writer`, but a link is replaced.

    Raises:
        InvalidArgumentError: the path is a pipe or a device, which would be lost.
        OSError: it is a folder, or the disk refuses.
    """
    if not path.is_dir():
        check_file(path)
    _flush(unfinished)  # before its permissions, which may let nobody write
    os.chmod(unfinished, 0o666 & ~_OTHERS if private else _permissions(path, unfinished))
    os.replace(unfinished, path)
    _flush_folder(path.parent)


def as_path(value: object, argument: str = "path") -> Path:
    """The path that an argument names.

    Raises:
        InvalidArgumentError: it is something else, or no file can have that name: it is too long, holds a
            null, leads in a circle of links, or is not UTF-8, which Arrow needs.
    """
    is_path = isinstance(value, str | os.PathLike)
    name = os.fspath(value) if is_path else None  # type: ignore[call-overload]
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(
            f"{argument}={quoted(value, 80)} is not a path.",
            hint="Give the name of a file, as text or a Path.",
            argument=argument,
        )
    path = Path(name)
    try:
        name.encode()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whoever reads or writes it says so in its own words
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"{argument}={name!r:.200} is no name of a file: {_why_no_name(error)}.",
            hint="Name another file.",
            argument=argument,
        ) from None
    return path


def _why_no_name(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "it holds bytes that are not UTF-8"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def check_file(path: Path) -> None:
    """Raise InvalidArgumentError if the path leads to something that is not a regular file."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise InvalidArgumentError(f"{path} is {kind}, not a file.", hint="Name another file.")


@contextmanager
def place_errors(path: Path, argument: str = "path") -> Iterator[None]:
    """Write in this block what the user named.

    Args:
        path: the file or folder that is written.
        argument: the argument that named it.

    Raises:
        InvalidArgumentError: the place cannot be written to: it is below a file, or not the user's.
        OSError: the disk is full or broken, and no other name avoids that.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in DISK_FULL:
            raise
        raise InvalidArgumentError(
            f"{argument}={str(path)!r:.200} cannot be written: {error.strerror}.",
            hint="Name a place that is yours.",
            argument=argument,
        ) from error


@contextmanager
def opened_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading, or a link to one.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device.
    """
    # Without O_NONBLOCK, to open a pipe waits for somebody who writes to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is a pipe or a device, not a file")
        yield file


def read_small_file(path: Path, most: int = 2**26) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
        OSError: as `opened_file`, or the file is larger.
    """
    with opened_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path} has more than {most:,} bytes")
    return content


@contextmanager
def own_file(path: Path, *, append: bool = False) -> Iterator[IO[bytes]]:
    """Open a file with a name that others can foresee, in a folder that others may write to.

    Args:
        path: the file.
        append: to read it and write to its end; it is made if there is none. Otherwise it is only read.

    Raises:
        OSError: it cannot be opened, or is a link, a pipe, a file with a second name, or somebody else's.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT if append else os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # not every system has each
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags, 0o666), "a+b" if append else "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or not _is_mine(found):
            raise OSError(f"{path} is a link, a pipe, or a file of somebody else: delete it")
        yield file


def check_replaced(
    path: Path,
    is_ours: Callable[[Path], bool],
    kind: str,
    *,
    named: str = "",
    argument: str = "path",
    otherwise: str = "or pass overwrite=True",
) -> None:
    """Raise InvalidArgumentError if a file of another kind is at the path, and would be lost.

    Args:
        path: what is to be written. Nothing and an empty file can be replaced.
        is_ours: whether the file that is there is of the kind that is to be written.
        kind: what is to be written, as "a table of personas".
        named: how the error names the path; "": as an argument.
        argument: the argument that has the path.
        otherwise: what the user can do but to name another file.
    """
    if path.exists() and (path.is_dir() or path.stat().st_size) and not is_ours(path):
        raise InvalidArgumentError(
            f"{named or f'{argument}={str(path)!r}'} exists and is not {kind}.",
            hint=f"It would be replaced: name another file, {otherwise}.",
            argument=argument,
        )


def private_folder(folder: Path, *, foreseen: bool = False) -> Path:
    """Make a folder and its missing parents, which only their owner may enter; what exists is unchanged.

    Args:
        folder: the folder.
        foreseen: others may write to its parent, and can foresee its name: what they put there is refused.

    Raises:
        OSError: it cannot be made; or it is foreseen, and is a link or somebody else's.
    """
    for one in (*reversed(folder.parents), folder):
        if not one.exists():
            with suppress(FileExistsError):
                one.mkdir(mode=0o777 & ~_OTHERS)
    if foreseen:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or not _is_mine(found):
            raise OSError(f"{folder} is a link, or a folder of somebody else: delete it")
    return folder


def close_to_others(folder: Path, names: str) -> None:
    """Take from others what they may read of one's own folder, and of its files of such names.

    If others may write to one of them, it is left as it is: it may hold something of theirs. So is what
    cannot be closed, such as files of a disk that is only read.
    """
    if others_may_write(folder.stat()):
        return
    for path in (folder, *folder.glob(names)):
        with suppress(OSError):  # also: another process has closed its database
            found = path.lstat()
            is_mine = _is_mine(found) and not stat.S_ISLNK(found.st_mode)
            if is_mine and found.st_mode & _OTHERS and not others_may_write(found):
                path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


# Names that nobody can foresee, and locks on them


def _start_of_name(path: Path) -> str:
    return f".{path.name[:50]}."


def _new_file(path: Path) -> tuple[int, Path]:
    """A new, locked file beside `path`: its descriptor and its name."""
    while True:
        number, name = tempfile.mkstemp(_UNFINISHED, _start_of_name(path), path.parent)
        if _locked(number, name):
            return number, Path(name)
        os.close(number)  # another one took it for abandoned


def _new_folder(path: Path) -> tuple[int | None, Path]:
    """A new, locked folder beside `path`: the descriptor that holds the lock, and its name."""
    while True:
        name = tempfile.mkdtemp(_UNFINISHED, _start_of_name(path), path.parent)
        if fcntl is None:
            return None, Path(name)
        with suppress(OSError):  # not every file system keeps it; what a kill leaves stays there
            os.chmod(name, os.stat(name).st_mode | stat.S_ISVTX)
        with suppress(FileNotFoundError):
            number = os.open(name, os.O_RDONLY)
            if _locked(number, name):
                return number, Path(name)
            os.close(number)


def _locked(number: int, name: str) -> bool:
    """Lock an open file or folder; False if another process or thread has removed it meanwhile.

    One that took it for abandoned, before it was locked here, holds the lock until it has removed it.
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

    Whoever may write to the parent may give any folder such a name: only one that is marked goes with what it
    holds. One that was not marked yet is empty.
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


def _permissions(path: Path, unfinished: Path) -> int:
    """The permissions of this user's file, or of a new file. The unfinished file gets its group.

    A link or file that somebody else has put there does not open the new file to others. Nor does a file
    of a group that the user cannot give it to open it to another one.
    """
    with suppress(FileNotFoundError):
        found = followed(path).lstat()
        if stat.S_ISREG(found.st_mode) and _is_mine(found):
            return found.st_mode & (0o777 if _has_group(unfinished, found.st_gid) else 0o707)
    return 0o666 & ~_umask()


def _is_mine(found: os.stat_result) -> bool:
    """Whether a file, a link or a folder is this user's. (Windows does not say.)"""
    return fcntl is None or found.st_uid == os.getuid()


def others_may_write(found: os.stat_result) -> bool:
    """Whether the permissions of a file or a folder let others write. (Those of Windows say nothing.)"""
    to_a_group = bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found)
    return to_a_group or bool(found.st_mode & stat.S_IWOTH)


def _is_own_group(found: os.stat_result) -> bool:
    """Whether the group of a file or a folder is this user's private one, as many systems make for each."""
    with suppress(KeyError):
        group, name = grp.getgrgid(found.st_gid), pwd.getpwuid(os.getuid()).pw_name
        return group.gr_name == name and set(group.gr_mem) <= {name}
    return False


def _has_group(path: Path, group: int) -> bool:
    """Whether a file has this group, now."""
    if path.stat().st_gid != group and hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(path, -1, group)
    return path.stat().st_gid == group


def _umask() -> int:
    with suppress(OSError, ValueError, IndexError):
        # Read from /proc: os.umask would change the mask of other threads for a moment.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("Umask:")[1].split()[0], 8)
    mask = os.umask(_OTHERS)
    os.umask(mask)
    return mask
