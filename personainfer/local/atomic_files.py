"""Write a file or a folder whole or not at all.

The content is written under a hidden, random name in the same folder, open to its owner only, flushed to
the disk, and then renamed over the old file. After a full disk, a kill or a power cut, the folder holds the
old file or the new one, never a part.

A process locks the file or folder that it has not finished. What a killed process left is not locked, and
the next write of the same file removes it. (Windows has no such locks; there it stays.)

`opened_file` and `read_small_file` read a regular file, and refuse a pipe or a device, which would wait or
have no end.
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

# Errors that another path would not avoid.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_OTHERS = 0o077  # the permissions of everybody but the owner
_UNFINISHED = ".unfinished"
_OUR_FOLDER = (
    0o700 | stat.S_ISVTX
)  # permissions of an unfinished folder, which hardly another folder has


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


def followed(path: Path) -> Path:
    """Return the file to which a link leads, if the link and the file are this user's.

    A path that is no link, or a link to nothing, is returned as it is. So is a link in a folder in which
    others may replace files: somebody else may have put it there.
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
    os.chmod(unfinished, 0o666 & ~_OTHERS if private else _permissions(path, unfinished))
    os.replace(unfinished, path)
    _flush_folder(path.parent)


def as_path(value: object, argument: str = "path") -> Path:
    """Return the path that an argument names. It need not exist.

    Args:
        value: what the user gave: a text, or an object such as a Path.
        argument: the name of the argument, for the error.

    Raises:
        InvalidArgumentError: it is something else, empty, or no file can have that name: it is too long,
            holds a null, leads in a circle of links, or is not UTF-8, which Arrow needs.
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
    """Raise InvalidArgumentError if the path leads to something that is not a regular file.

    A path to nothing passes.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise InvalidArgumentError(f"{path} is {kind}, not a file.", hint="Name another file.")


@contextmanager
def place_errors(path: Path, argument: str = "path") -> Iterator[None]:
    """Raise an error about the argument if what the user named cannot be written in this block.

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
    """Open a regular file, or a link to one, for reading bytes.

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
    """Return the content of a file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is a folder, a pipe or a device, or is larger.
    """
    with opened_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path} has more than {most:,} bytes")
    return content


@contextmanager
def own_file(path: Path, *, append: bool = False) -> Iterator[IO[bytes]]:
    """Open a file whose name others can foresee, in a folder that others may write to.

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
    """Raise InvalidArgumentError if something of another kind is at the path, and would be lost.

    Args:
        path: what is to be written. A path at which there is nothing, or an empty file, passes.
        is_ours: returns whether the file or folder that is there is of the kind that is to be written.
        kind: what is to be written, as "a table of personas".
        named: how the error names the path; "": by the argument.
        argument: the argument that has the path.
        otherwise: what else the user can do than to name another file.
    """
    if path.exists() and (path.is_dir() or path.stat().st_size) and not is_ours(path):
        raise InvalidArgumentError(
            f"{named or f'{argument}={str(path)!r}'} exists and is not {kind}.",
            hint=f"It would be replaced: name another file, {otherwise}.",
            argument=argument,
        )


def private_folder(folder: Path, *, foreseen: bool = False) -> Path:
    """Make a folder, and its missing parents, that only the owner may enter. What exists stays unchanged.

    Args:
        folder: the folder.
        foreseen: others may write to its parent, and can foresee its name: a link, or a folder that somebody
            else made, is refused.

    Returns:
        The folder.

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
    """Take away others' permissions on a folder of this user's, and on its files with such names.

    If others may write to the folder, nothing changes; if to a file, that file stays as it is: it may hold
    something of theirs. So does a file whose permissions cannot be changed, as on a disk that is only read.

    Args:
        folder: must exist.
        names: a pattern of names, such as "cache.db*".
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


def _permissions(path: Path, unfinished: Path) -> int:
    """Return the permissions for a finished file: those of the user's file that it replaces, or of a new one.

    The unfinished file gets the group of the file that it replaces. If the user cannot give it that group,
    the group gets no permissions. A link, or a file that somebody else has put there, does not count.
    """
    with suppress(FileNotFoundError):
        found = followed(path).lstat()
        if stat.S_ISREG(found.st_mode) and _is_mine(found):
            return found.st_mode & (0o777 if _has_group(unfinished, found.st_gid) else 0o707)
    return 0o666 & ~_umask()


def _is_mine(found: os.stat_result) -> bool:
    """Return whether a file, a link or a folder is this user's. (Windows does not say: True.)"""
    return fcntl is None or found.st_uid == os.getuid()


def others_may_write(found: os.stat_result) -> bool:
    """Return whether the permissions of a file or a folder let others write. (Those of Windows say nothing.)

    The group of the file counts as others, unless it is this user's private one.
    """
    to_a_group = bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found)
    return to_a_group or bool(found.st_mode & stat.S_IWOTH)


def _is_own_group(found: os.stat_result) -> bool:
    """Return whether the group of a file or a folder is this user's private one, as many systems make."""
    with suppress(KeyError):
        group, name = grp.getgrgid(found.st_gid), pwd.getpwuid(os.getuid()).pw_name
        return group.gr_name == name and set(group.gr_mem) <= {name}
    return False


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
    mask = os.umask(_OTHERS)
    os.umask(mask)
    return mask
