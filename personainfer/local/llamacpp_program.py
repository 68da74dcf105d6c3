"""The program of llama.cpp's server: it loads a file of weights, and serves it until stdin ends.

The process that starts it sends a line of JSON with the settings on stdin. The program answers with a line on
stdout. It imports neither pydantic nor the rest of this library, so it starts in the time that llama.cpp
takes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

ANSWER = b"personainfer: "  # begins the answer: a sitecustomize.py may print lines of its own
CANNOT_LOAD = "cannot load"  # the problem of a file, in an answer
_MEMORY_FOR_REQUESTS = 2**31  # bytes beside those that loading took: requests take a few MB each
_FOLDERS = "personainfer-slots-"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the server's process is told.

    Attributes:
        path: the file of weights.
        key: the API key that each request has to carry.
        slots: how many requests are decoded together.
        context: the tokens of a prompt and its reply that fit into one slot.
        threads: how many threads compute.
        copies: how many files there are for saved KV caches.
        load_timeout: seconds for the process to start and load the file. It ends itself after twice as long.
        chat_template: a template in place of the one in the file; None: that of the file.
        socket: the path of the Unix socket where the server listens; None: it listens on a port of loopback.
    """

    path: str
    key: str = field(repr=False)
    slots: int
    context: int
    threads: int
    copies: int
    load_timeout: float
    chat_template: str | None = None
    socket: str | None = None


def serve(told: dict[str, Any]) -> NoReturn:
    """Load the weights, print where they are served, and serve them until stdin or the parent process ends.

    Then end the process: this never returns. If the weights cannot be loaded, print the problem in place of
    the address, and end the process.

    Args:
        told: the fields of `ServerSettings`, by name.
    """
    try:
        _server = _serve(ServerSettings(**told), os.getppid())
    except BaseException:
        os._exit(1)
    # At once, and with the server still there: its destructor would wait for its threads to answer all
    # requests that are in progress.
    os._exit(0)


def _serve(settings: ServerSettings, parent: int) -> object:
    """Serve until the parent ends. Return the server, which still runs; None: it was not started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what llama.cpp prints is no answer
        _end_with_stdin(True)
        # A second watch that needs no Python, for systems where the line above does nothing.
        faulthandler.dump_traceback_later(2 * settings.load_timeout, exit=True)
        _leave_no_core()
        _be_killed_first()
        try:
            import xllamacpp

            copies = SlotCopies(settings.copies)
            server = xllamacpp.Server(_parameters(xllamacpp, settings, copies))
        except ImportError as error:
            _say(answer, problem=str(error) or "ImportError")
            return None
        except Exception:  # xllamacpp's error says no more than that
            _say(answer, problem=CANNOT_LOAD)
            return None
        if _computes_on_cpus(xllamacpp):
            _limit_memory()
        faulthandler.cancel_dump_traceback_later()
        _end_with_stdin(False)
        _say(answer, address=server.listening_address, copies=copies.names)
    _wait_for_end_of(parent)
    copies.remove()
    if settings.socket is not None:  # the process that made its folder may have been killed
        with suppress(OSError):
            os.unlink(settings.socket)
            os.rmdir(os.path.dirname(settings.socket))
    return server


def _say(answer: BinaryIO, **found: Any) -> None:
    """Write to stdout the line that the user's process waits for."""
    answer.write(ANSWER + json.dumps(found).encode() + b"\n")
    answer.flush()


def _parameters(xllamacpp: Any, settings: ServerSettings, copies: SlotCopies) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = settings.path
    params.hostnames = [settings.socket or "127.0.0.1"]
    if settings.socket is not None:
        with suppress(FileNotFoundError):  # that of a server that has ended
            os.unlink(settings.socket)
    params.port = 0
    params.n_parallel = settings.slots
    params.n_ctx = settings.context * settings.slots
    params.n_threads_http = settings.slots + 2
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = settings.threads
        cpu.poll = 0  # waiting threads sleep: spinning ones starve whatever else runs
    if _computes_on_cpus(xllamacpp):
        # On CPUs, flash attention takes one query after the other.
        off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.flash_attn_type = off
    if settings.chat_template is not None:
        params.chat_template = settings.chat_template
    params.prefill_assistant = (
        False  # a last turn of the assistant is whole: the reply is a new one
    )
    params.kv_unified = False  # a third faster here than one store for all slots
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.slot_save_path = copies.folder
    params.api_keys = [settings.key]  # other users of this machine reach a port, too
    params.cors_origins, params.cors_credentials = "", False  # and so do web pages
    params.warmup = False
    params.ui = False
    params.verbosity = -1
    return params


def _computes_on_cpus(xllamacpp: Any) -> bool:
    devices = {device["type"] for device in xllamacpp.get_device_info()}
    return devices == {xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU}


def _end_with_stdin(by_signal: bool) -> None:
    """Have the system end this process when stdin ends: while llama.cpp loads, no Python runs here.

    Args:
        by_signal: True: input on stdin, or its end, sends a signal that ends the process; False: no longer.
    """
    with suppress(ImportError, AttributeError, OSError):  # Windows, and systems without it
        import fcntl

        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(0, fcntl.F_GETFL) & ~os.O_ASYNC
        fcntl.fcntl(0, fcntl.F_SETFL, flags | (os.O_ASYNC if by_signal else 0))


def _leave_no_core() -> None:
    """Have a crash write no memory to disk: it holds people's texts."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        # 1, not 0: a program that the system gives cores to would still be given one.
        resource.setrlimit(resource.RLIMIT_CORE, (1, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _be_killed_first() -> None:
    """If memory runs out, let Linux end this process rather than the user's."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit_memory() -> None:
    """Bound the memory that requests take: a chat template can write gigabytes. On Linux only."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = int(status.partition("VmData:")[2].split()[0]) * 1024
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used + _MEMORY_FOR_REQUESTS, most))


def _wait_for_end_of(parent: int) -> None:
    """Wait until stdin ends, or the parent has ended: a fork of the parent may hold stdin open."""
    if sys.platform == "win32":
        sys.stdin.read()
        return
    import select

    while os.getppid() == parent and not select.select([0], [], [], 1.0)[0]:
        pass


class SlotCopies:
    """The files in which the server saves the KV caches of slots. They hold people's texts, so none may stay.

    On Linux they are unnamed files in memory, which vanish with the process. On other systems they are in
    a private folder, which is deleted at the end of the process or, after a kill, at the next start.

    Args:
        count: how many files.

    Attributes:
        folder: the path of their folder, with a slash at its end.
        names: the name of each file in it.
    """

    def __init__(self, count: int) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
            self._files = [os.fdopen(os.memfd_create("slot"), "rb") for _ in range(count)]
            self.folder = "/proc/self/fd/"
            self.names = [str(file.fileno()) for file in self._files]
        else:
            _remove_left_folders()
            self._temporary = tempfile.TemporaryDirectory(prefix=_FOLDERS)
            self._lock = _folder_lock(self._temporary.name)
            self._lock.acquire()
            self.folder = f"{self._temporary.name}/"
            self.names = [f"start-{number}" for number in range(count)]

    def remove(self) -> None:
        """Delete the folder with the copies. On Linux do nothing: the copies vanish with the process."""
        if self._temporary is not None:
            self._lock.release()
            self._temporary.cleanup()


def _folder_lock(folder: str | Path) -> Any:
    """Return a lock for a folder. The process that holds it uses the folder; a kill frees the lock."""
    from filelock import FileLock

    return FileLock(Path(folder) / "lock")


def _remove_left_folders() -> None:
    """Remove the folders of saved KV caches that this user's killed processes left."""
    import shutil

    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with suppress(OSError):  # it is another user's, or in use
            with _folder_lock(folder).acquire(timeout=0):
                pass
            shutil.rmtree(folder, ignore_errors=True)
