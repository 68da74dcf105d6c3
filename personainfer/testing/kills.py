"""Kill a process just before its k-th write, to test what is left of its files. Linux only.

    for at in itertools.count(1):
        run = killed_at_write(lambda: table.save(path), folder, at)
        ...  # is the old file or the new one whole, and does the next call go on?
        if not run.killed:
            break

The process is a fork, watched by ptrace. A write is any system call that changes a file or a folder, from
Python, Arrow or SQLite alike: write, rename, unlink, mkdir, truncate, chmod, and an open that may create.
A kill just before each of them leaves every state that a `kill -9` can leave.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KilledRun:
    """What a watched process did.

    Attributes:
        writes: its writes in order, such as "rename table.parquet". If `killed`, the last one was prevented.
        killed: whether the process was killed. If not, it ended by itself.
        value: what the operation returned; None if the process was killed or the operation failed.
        error: the traceback of the operation's exception; "" if there was none.
    """

    writes: tuple[str, ...]
    killed: bool
    value: Any = None
    error: str = ""


def killed_at_write(
    operation: Callable[[], object], folder: str | Path, at: int | None = None
) -> KilledRun:
    """Run an operation in a forked process, and kill the process just before one of its writes in a folder.

    The call blocks until the process has ended. Processes that the operation starts are watched, too, and
    killed with it.

    Args:
        operation: the function to call. Its result must be picklable. Threads of this process do not exist in
            the fork.
        folder: only writes in this folder and its subfolders count.
        at: the number of the write to kill at, from 1; None: the process is not killed.

    Returns:
        What the process did. It is not killed if it writes fewer than `at` times. An exception of the
        operation is not raised here, but is in `error`.

    Raises:
        NotImplementedError: the system is not Linux on x86-64 or 64-bit ARM.
        OSError: ptrace is not allowed, as in some containers.
    """
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        raise NotImplementedError("only Linux on x86-64 and 64-bit ARM tells what a process writes")
    place = str(Path(folder).resolve())
    answers, ours = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    watcher = os.fork()
    if watcher == 0:  # pragma: no cover
        os.close(answers)
        try:
            found: object = _watched(operation, place, at)
        except BaseException as error:
            found = error
        with os.fdopen(ours, "wb") as out:
            pickle.dump(found, out)
        os._exit(0)
    os.close(ours)
    with os.fdopen(answers, "rb") as told:
        content = told.read()
    os.waitpid(watcher, 0)
    run = pickle.loads(content)  # made above, by a fork of this process
    if isinstance(run, BaseException):
        raise run
    assert isinstance(run, KilledRun)
    return run


# The watched process

_PTRACE_TRACEME, _PTRACE_CONT, _PTRACE_SETOPTIONS = 0, 7, 0x4200
_PTRACE_GETEVENTMSG, _PTRACE_GET_SYSCALL_INFO = 0x4201, 0x420E
_EVENT_SECCOMP = 7
# Follow forks, vforks and threads; stop at seccomp's events; end with the watcher.
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100000
_WALL = 0x40000000  # waitpid: threads too
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # instructions of a filter
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000

# The system calls that change files, by machine: name -> number.
_X86 = {
    **{"write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "pwritev2": 328, "sendfile": 40},
    **{"copy_file_range": 326, "ftruncate": 77, "fallocate": 285, "fchmod": 91},
    **{"open": 2, "openat": 257, "creat": 85, "truncate": 76, "chmod": 90, "fchmodat": 268},
    **{"rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87, "unlinkat": 263},
    **{"mkdir": 83, "mkdirat": 258, "rmdir": 84, "link": 86, "linkat": 265},
    **{"symlink": 88, "symlinkat": 266},
}
_ARM = {
    **{"write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "pwritev2": 287, "sendfile": 71},
    **{"copy_file_range": 285, "ftruncate": 46, "fallocate": 47, "fchmod": 52},
    **{"openat": 56, "truncate": 45, "fchmodat": 53, "renameat": 38, "renameat2": 276},
    **{"unlinkat": 35, "mkdirat": 34, "linkat": 37, "symlinkat": 36},
}
_NUMBERS = {"x86_64": _X86, "aarch64": _ARM}

# System call -> places of the arguments that tell which file is changed: (descriptor, path).
_CHANGED: dict[str, tuple[int | None, int | None]] = {
    **dict.fromkeys("write pwrite64 writev pwritev pwritev2 sendfile".split(), (0, None)),
    **dict.fromkeys("ftruncate fallocate fchmod".split(), (0, None)),
    "copy_file_range": (2, None),
    **dict.fromkeys("open creat truncate chmod unlink mkdir rmdir".split(), (None, 0)),
    **dict.fromkeys("openat fchmodat unlinkat mkdirat".split(), (0, 1)),
    **dict.fromkeys("rename link symlink".split(), (None, 1)),
    **dict.fromkeys("renameat renameat2 linkat".split(), (2, 3)),
    "symlinkat": (1, 2),
}
_MAY_CREATE = os.O_CREAT | os.O_TRUNC


def _watched(operation: Callable[[], object], folder: str, at: int | None) -> KilledRun:
    """Run the operation in a fork, and watch this process and those that it starts until they end.

    Args:
        operation, at: as for `killed_at_write`.
        folder: the absolute path of the folder.
    """
    # No pipe, which could fill up: it is read after the child's end.
    answer = os.memfd_create("answer")
    child = os.fork()
    if child == 0:
        os.setsid()  # so that Ctrl-C ends the watcher alone
        _submit_to_ptrace()
        _run(operation, answer)
    writes: list[str] = []
    killed = _follow(child, folder, at, writes)
    os.lseek(answer, 0, os.SEEK_SET)
    with os.fdopen(answer, "rb") as file:
        content = file.read()
    if killed:
        return KilledRun(tuple(writes), True)
    value, error = pickle.loads(content) if content else (None, "the process ended without a word")
    return KilledRun(tuple(writes), False, value, error)


def _run(operation: Callable[[], object], answer: int) -> None:
    """Call the operation, write a pickle of (result, traceback or "") to `answer`, and end the process."""
    value, error = None, ""
    try:
        value = operation()
    except BaseException:
        error = traceback.format_exc()
    with os.fdopen(answer, "wb") as out:
        out.write(pickle.dumps((value, error)))
    sys.stderr.flush()
    os._exit(0)


def _submit_to_ptrace() -> None:
    """Stop until the watcher is ready, then install a filter that stops at each call that may write."""
    _ptrace(_PTRACE_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    numbers = sorted(_NUMBERS[platform.machine()].values())
    filters = [_instruction(_LOAD, 0, 0, 0)]  # the number of the call
    filters += [_instruction(_IF_EQUAL, len(numbers) - n, 0, k) for n, k in enumerate(numbers)]
    filters += [_instruction(_RETURN, 0, 0, _ALLOW), _instruction(_RETURN, 0, 0, _TRACE)]
    code = ctypes.create_string_buffer(b"".join(filters))
    program = _Program(len(filters), ctypes.addressof(code))
    for arguments in (
        (_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
        (_SET_SECCOMP, _FILTER_MODE, ctypes.addressof(program), 0, 0),
    ):
        if _libc.prctl(*map(ctypes.c_ulong, arguments)):
            raise OSError(ctypes.get_errno(), "prctl")


def _instruction(code: int, if_true: int, if_false: int, k: int) -> bytes:
    """Return the bytes of one instruction of a seccomp filter (struct sock_filter)."""
    return (
        code.to_bytes(2, sys.byteorder) + bytes([if_true, if_false]) + k.to_bytes(4, sys.byteorder)
    )


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("filters", ctypes.c_void_p))


class _SyscallInfo(ctypes.Structure):
    """The answer of PTRACE_GET_SYSCALL_INFO at a stop by seccomp (struct ptrace_syscall_info)."""

    _fields_ = (
        ("kind", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("machine", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
        ("data", ctypes.c_uint32),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """Call ptrace, and return its result. Raises OSError if it fails."""
    found = int(_libc.ptrace(request, pid, address, data))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace: {os.strerror(code)}")
    return found


# The watcher


def _follow(child: int, folder: str, at: int | None, writes: list[str]) -> bool:
    """Watch the child and its processes until they end, and kill them just before write number `at`.

    Args:
        child: the process, which waits in `_submit_to_ptrace`.
        folder, at: as for `_watched`.
        writes: gets the description of each write, in order.

    Returns:
        Whether the processes were killed.
    """
    os.waitpid(child, _WALL)  # for the stop in `_submit_to_ptrace`
    _ptrace(_PTRACE_SETOPTIONS, child, 0, _OPTIONS)
    _ptrace(_PTRACE_CONT, child)
    names = {number: name for name, number in _NUMBERS[platform.machine()].items()}
    alive, killed = {child}, False
    while alive:
        try:
            pid, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            break
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            alive.discard(pid)
            continue
        alive.add(pid)
        stopped_by, event = os.WSTOPSIG(status), status >> 16
        deliver = 0
        if event == _EVENT_SECCOMP:
            written = _write(pid, folder, names)
            if written and not killed:
                writes.append(written)
                killed = at is not None and len(writes) == at
        elif not event and stopped_by not in (signal.SIGSTOP, signal.SIGTRAP):
            deliver = stopped_by
        if killed:
            for process in alive:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            continue
        with suppress(ProcessLookupError):
            _ptrace(_PTRACE_CONT, pid, 0, deliver)
    return killed


def _write(pid: int, folder: str, names: dict[int, str]) -> str:
    """Describe the write at which a process has stopped, such as "rename table.parquet".

    Returns:
        The name of the call, and the path in the folder; "" if the call changes nothing in the folder.
    """
    info = _SyscallInfo()
    _ptrace(_PTRACE_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
    name, arguments = names[info.number], info.arguments
    if name in ("open", "openat") and not arguments[1 + (name == "openat")] & _MAY_CREATE:
        return ""
    descriptor, path = _CHANGED[name]
    try:
        changed = _path(pid, arguments, descriptor, path)
    except OSError:
        return ""
    if changed != folder and not changed.startswith(folder + os.sep):
        return ""
    return f"{name} {changed[len(folder) + 1 :]}"


def _path(pid: int, arguments: Any, descriptor: int | None, path: int | None) -> str:
    """Return the path of the file that a call changes.

    Args:
        pid: the process.
        arguments: the arguments of the call.
        descriptor: which argument is the descriptor of the file, or of the folder of `path`; None: none is.
        path: which argument is the path; None: none is.

    Raises:
        OSError: the process has no such descriptor, or its memory cannot be read.
    """
    start = f"/proc/{pid}/cwd"
    if descriptor is not None:
        number = ctypes.c_int(arguments[descriptor] & 0xFFFFFFFF).value
        start = start if number < 0 else f"/proc/{pid}/fd/{number}"
    base = os.readlink(start)
    if path is None:
        return base
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text and len(text) < os.pathconf("/", "PC_PATH_MAX"):
            memory.seek(arguments[path] + len(text))
            text += memory.read(256)  # fewer bytes at the end of a mapping
    whole = os.path.join(base, os.fsdecode(text.split(b"\0")[0])).rstrip(os.sep) or os.sep
    folder, name = os.path.split(whole)
    # The folder's links are followed, as the system does; the last name may be that of a link itself.
    return os.path.join(os.path.realpath(folder), name)
