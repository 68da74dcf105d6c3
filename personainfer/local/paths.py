"""Paths: whether one can be a file's, what it leads to, and who else may write there.

`opened_file` and `read_small_file` read a regular file, and refuse a pipe or a device, which would wait or
have no end.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..exceptions import InvalidArgumentError, quoted

try:
    import grp
    import pwd
except ImportError:  # Windows
    pass

# Errors that another path would not avoid.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
OTHERS = 0o077  # the permissions of everybody but the owner


def as_path(value: object, argument: str = "path") -> Path:
    """Return the path that an argument names, see `at_home`. It need not exist.

    Args:
        value: what the user gave: a text, or an object such as a Path.
        argument: the name of the argument, for the error.

    Raises:
        InvalidArgumentError: it is something else, empty, below a folder that this user may not enter, or no
            file can have that name: it is too long, holds a null, leads in a circle of links, or is not
            UTF-8, which Arrow needs.
    """
    is_path = isinstance(value, str | os.PathLike)
    name = os.fspath(value) if is_path else None  # type: ignore[call-overload]
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(
            f"{argument}={quoted(value, 80)} is not a path.",
            hint="Give the name of a file, as text or a Path.",
            argument=argument,
        )
    path = at_home(name)
    try:
        name.encode()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # whoever reads or writes it says so in its own words
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"{argument}={name!r:.200} cannot be used: {_why_no_name(error)}.",
            hint="Name another file.",
            argument=argument,
        ) from None
    return path


def at_home(name: str | Path) -> Path:
    """Return a path with a home in the place of "~" at its start, as shells, pandas and Arrow read it."""
    if os.name == "nt" and str(name)[1:2] not in ("", "/", "\\"):
        return Path(name)  # any "~x" is a home to Python there, and many files are named so
    with suppress(ValueError):  # a null, which no file can have in its name
        name = os.path.expanduser(name)
    return Path(name)


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


# What is read


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
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or not is_mine(found):
            raise OSError(f"{path} is a link, a pipe, or a file of somebody else: delete it")
        yield file


# Whose it is, and who else may write there


def followed(path: Path) -> Path:
    """Return the file to which a link leads, if the link and the file are this user's.

    A path that is no link, or a link to nothing, is returned as it is. So is a link in a folder in which
    others may replace files: somebody else may have put it there.
    """
    if not path.is_symlink() or not path.is_file():
        return path
    target = path.resolve()
    if hasattr(os, "getuid"):
        is_open = others_may_replace_in(path.absolute().parent)
        if is_open or {path.lstat().st_uid, target.stat().st_uid} != {os.getuid()}:
            return path
    return target


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
                one.mkdir(mode=0o777 & ~OTHERS)
    if foreseen:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or not is_mine(found):
            raise OSError(f"{folder} is a link, or a folder of somebody else: delete it")
    return folder


def user_cache_folder() -> Path:
    """Return this library's folder in the user's cache folder. Nothing is made or checked here.

    A user without a home, as in a container that only names a number, gets a path that nobody can make.
    """
    import platformdirs

    try:
        return platformdirs.user_cache_path("personainfer").expanduser()
    except RuntimeError:
        return Path(os.devnull, "no home", "personainfer")


def close_to_others(folder: Path, names: str) -> None:
    """Take away others' permissions on a folder of this user's, and on its files with such names.

    If others may write to the folder, nothing changes; if to a file, that file stays as it is: it may hold
    something of theirs. So does a file whose permissions cannot be changed, as on a disk that is only read.

    Args:
        folder: must exist.
        names: a pattern of names, such as "cache.db*".
    """
    if others_may_write(folder, folder.stat()):
        return
    for path in (folder, *folder.glob(names)):
        with suppress(OSError):  # also: another process has closed its database
            found = path.lstat()
            is_own = is_mine(found) and not stat.S_ISLNK(found.st_mode)
            if is_own and found.st_mode & OTHERS and not others_may_write(path, found):
                path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)


def others_may_write(path: Path, found: os.stat_result) -> bool:
    """Return whether the permissions of a file or a folder let others write. (Those of Windows say nothing.)

    The group of the file counts as others, unless it is this user's private one. With an access list
    (`setfacl`), what the group may do is what anybody in the list may do at most.

    Args:
        path: the file or folder.
        found: its state.
    """
    group_may = bool(found.st_mode & stat.S_IWGRP)
    to_others = group_may and (not _is_own_group(found) or _list_lets_write(path))
    return to_others or bool(found.st_mode & stat.S_IWOTH)


def others_may_replace_in(folder: Path) -> bool:
    """Return whether others may rename what is in a folder, and put something else in its place.

    Raises:
        OSError: the folder is missing.
    """
    found = folder.stat()
    return others_may_write(folder, found) and not found.st_mode & stat.S_ISVTX


ACCESS_LIST = "system.posix_acl_access"  # the attribute of a file in which Linux keeps it
_NAMED = (2, 8)  # entries of an access list that name a user, or a group


def _list_lets_write(path: Path) -> bool:
    """Return whether an access list names a user or a group who may write."""
    with suppress(OSError, AttributeError):  # there is none, or none on this system
        stored = os.getxattr(path, ACCESS_LIST, follow_symlinks=False)
        entries = struct.iter_unpack("<HHI", stored[4:])  # behind the version
        return any(tag in _NAMED and may & 2 for tag, may, _ in entries)
    return False


def _is_own_group(found: os.stat_result) -> bool:
    """Return whether the group of a file or a folder is this user's private one, as many systems make."""
    with suppress(KeyError):
        group, name = grp.getgrgid(found.st_gid), pwd.getpwuid(os.getuid()).pw_name
        return group.gr_name == name and set(group.gr_mem) <= {name}
    return False


def is_mine(found: os.stat_result) -> bool:
    """Return whether a file, a link or a folder is this user's. (Windows does not say: True.)"""
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()
