"""llama.cpp's server in a process of its own: how it is started and watched, and the program that it runs.

A file of weights can crash llama.cpp, or keep it busy for ever: by a chat template that calls itself, by a
damaged tensor, by being cut off while it is mapped. That costs the server's process, and not the user's.

The process is told its settings by a line of JSON on stdin, and answers with one on stdout. It ends when
stdin does, so it does not outlive the process that started it. It imports neither pydantic nor the rest of
this library, so it starts in the time that llama.cpp takes.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, NoReturn

from ..exceptions import MissingExtraError, ModelNotFoundError

RENDER_TIMEOUT = 60.0  # seconds for a chat template, which takes milliseconds on an idle machine
_ENDING = 5.0  # seconds between the end of a process' connections and its own
_LONGEST_ANSWER = 2**16  # bytes
_ANSWER = b"personainfer: "  # begins it: a sitecustomize.py may print lines of its own
_MEMORY_FOR_REQUESTS = 2**31  # bytes beside those that loading took: requests take a few MB each
_SPIN_SETTING = (
    "GOMP_SPINCOUNT"  # how often a thread looks whether its wait is over before it sleeps
)
_FOLDERS = "personainfer-slots-"
_OTHER_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"

# Chats as this library asks them. A template may be made to stop at any other text, too.
_TURNS = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hello."), ("user", "Why?")]
_CHATS = [
    json.dumps({"messages": [{"role": role, "content": text} for role, text in _TURNS[:count]]})
    for count in (2, 4)
]

# `-I` keeps the folder that the user is in, and those that the environment names, off the path: what is
# imported from is what the user's process tells.
_PROGRAM = (
    "import json, sys; settings = json.loads(sys.stdin.readline());"
    " sys.path[:] = settings.pop('sys_path');"
    " from personainfer.llm.llamacpp_server import serve; serve(settings)"
)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the server's process is told.

    Attributes:
        path: of the weights.
        key: that each request has to carry.
        slots: how many requests are decoded together.
        context: tokens a slot.
        threads: for computing.
        copies: how many files there are for saved KV caches.
        load_timeout: seconds.
        chat_template: instead of the one in the file; None: that one.
    """

    path: str
    key: str = field(repr=False)
    slots: int
    context: int
    threads: int
    copies: int
    load_timeout: float
    chat_template: str | None = None


# In the user's process


def start_server(settings: ServerSettings) -> ServerProcess:
    """Start a server, and see that it loads its file and renders a chat.

    Raises:
        ModelNotFoundError: llama.cpp cannot load the file, or its chat template crashes it or has no end.
        MissingExtraError: xllamacpp cannot be imported.
    """
    server = ServerProcess(settings)
    try:
        if server.address is None:
            server.kill()
            raise _not_loaded(settings, server)
        for chat in _CHATS:
            if not server.answers("/apply-template", chat.encode()):
                ended = server.ends_now()
                raise _bad_template(settings.path, server.ended_by if ended else None)
    except BaseException:
        server.kill()
        raise
    return server


class ServerProcess:
    """A server in its process.

    Attributes:
        address: where it listens, "http://127.0.0.1:PORT"; None: it has not loaded its file.
        copies: the names of its files for saved KV caches.
        pid: of the process.
        problem: why it has not loaded the file, where it could say so.
        was_killed: whether `kill` ended it.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.was_killed = False
        self._key = settings.key
        self._process = _start_process()
        self.pid: int = self._process.pid
        _processes.add(self)
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended already
            self._process.stdin.write(_told(settings))
        answer = self._answer(settings.load_timeout)
        self.address: str | None = answer.get("address")
        self.copies: list[str] = answer.get("copies", [])
        self.problem: str | None = answer.get("problem")

    @property
    def ended_by(self) -> str:
        """The signal or the status with which the process has ended."""
        status = self._process.returncode
        if status is not None and status < 0:
            with suppress(ValueError):
                return signal.Signals(-status).name
        return f"exit status {status}"

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def ends_now(self) -> bool:
        """Whether the process ends now: its connections break a moment before it does."""
        ends = time.monotonic() + _ENDING
        while not self.has_ended() and time.monotonic() < ends:
            time.sleep(0.02)
        return self.has_ended()

    def kill(self) -> None:
        """End the process."""
        self.was_killed = self.was_killed or not self.has_ended()
        self._process.kill()
        self.ends_now()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this process' ends of the pipes."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def answers(self, path: str, body: bytes | None = None) -> bool:
        """Whether the server answers a request in time, with whatever status: POST, or GET without a body."""
        from http.client import HTTPConnection, HTTPException

        assert self.address is not None
        host = self.address.removeprefix("http://")
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection = HTTPConnection(host, timeout=RENDER_TIMEOUT)
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            connection.getresponse()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The line that the process writes once its file is loaded; {} if it ends or the time is up.

        A thread reads it. Its end might never come: a process that was forked at the wrong moment may hold
        the pipe open.
        """
        assert self._process.stdout is not None
        read, lines = self._process.stdout.readline, SimpleQueue[bytes]()

        def read_lines() -> None:
            line = b"first"
            while line and _ANSWER not in line:
                lines.put(line := read(_LONGEST_ANSWER))

        threading.Thread(target=read_lines, daemon=True).start()
        ends = time.monotonic() + seconds
        while True:
            had_ended = self.has_ended()
            try:
                line = lines.get(timeout=max(0.0, min(1.0, ends - time.monotonic())))
            except Empty:
                if had_ended or time.monotonic() >= ends:
                    return {}
                continue
            if not line:
                self.ends_now()
                return {}
            _, is_answer, found = line.partition(_ANSWER)
            if is_answer:
                answer: dict[str, Any] = json.loads(found)
                return answer


def _told(settings: ServerSettings) -> bytes:
    """The line for the process; no variable holds it, since it has the key."""
    # A relative entry, as "" in a notebook, would name the folder that the user is in now: it may be a
    # stranger's, with a json.py that this process has never seen.
    absolute = (entry for entry in sys.path if isinstance(entry, str) and os.path.isabs(entry))
    path = [*absolute, str(Path(__file__).parents[2])]
    return json.dumps({**asdict(settings), "sys_path": path}).encode() + b"\n"


def _start_process() -> Any:
    import subprocess
    from multiprocessing.spawn import get_executable

    executable = os.fsdecode(get_executable() or "")
    if not executable or getattr(sys, "frozen", False):
        raise ModelNotFoundError(
            "a local model runs in a process of its own, and there is no Python to start it with.",
            hint="Name a Python that has xllamacpp by multiprocessing.set_executable(…), or serve"
            " the model and give its address in api_base=.",
        )
    try:
        return subprocess.Popen(
            [executable, "-I", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # no buffer, and so no lock that a fork could find taken
            stderr=subprocess.DEVNULL,  # llama.cpp's own words, which nobody asked for
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the user's process
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0)
            | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    except OSError as error:
        raise ModelNotFoundError(
            f"the process of a local model cannot be started: {executable}: {error.strerror or error}.",
            hint="Is there enough memory, and may this user start more processes?",
        ) from None


def _environment() -> dict[str, str]:
    """This process' environment, with OpenMP's threads asleep while they wait; a user's own setting stands.

    They would spin. If another process uses the same cores, they spin while the thread that they wait for
    has no core: decoding then runs at less than half its speed.
    """
    ours = {"GGML_NO_BACKTRACE": "1"}  # a crash starts no debugger
    if "OMP_WAIT_POLICY" not in os.environ:
        ours[_SPIN_SETTING] = "1000"
    return {**ours, **os.environ}


def _not_loaded(
    settings: ServerSettings, server: ServerProcess
) -> ModelNotFoundError | MissingExtraError:
    """The error for a file that was not loaded. If the reason is not known, another template is tried."""
    path = settings.path
    if server.problem == _CANNOT_LOAD:
        return ModelNotFoundError(
            f"llama.cpp cannot load {path}.",
            hint="The file may be cut off or damaged, hold no language model, or one that this release"
            " of xllamacpp does not know; or there is too little memory.",
        )
    if server.problem:
        return MissingExtraError(
            f"xllamacpp cannot be imported: {server.problem}.",
            hint="Run: pip install --force-reinstall xllamacpp",
        )
    ended_by = None if server.was_killed else server.ended_by
    other = ServerProcess(replace(settings, chat_template=_OTHER_TEMPLATE))
    other.kill()
    if other.address is not None:
        return _bad_template(path, ended_by)
    if ended_by is None:
        return ModelNotFoundError(
            f"llama.cpp has not loaded {path} within {settings.load_timeout:.0f} s.",
            hint="Is its disk slow? Copy the file to one that is not. Else it may be damaged.",
        )
    return ModelNotFoundError(
        f"llama.cpp crashed ({ended_by}) when it loaded {path}.",
        hint="The file may be damaged, or there is too little memory.",
    )


def _bad_template(path: str, ended_by: str | None) -> ModelNotFoundError:
    """The error for a chat template that crashes llama.cpp, or (`ended_by` is None) has no end."""
    what = f"crashes llama.cpp ({ended_by})" if ended_by else "does not come to an end"
    return ModelNotFoundError(
        f"the chat template of {path} {what}.",
        hint="The file is damaged or was made to do this. Take the model from its publisher, or another"
        " one.",
    )


_processes: weakref.WeakSet[ServerProcess] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    for server in list(_processes):
        server.kill()


def _leave_to_parent() -> None:
    """In a fork: the servers are its parent's, whose end they have to see."""
    for server in list(_processes):
        server.close_pipes()
    _processes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


# In the server's process

_CANNOT_LOAD = "cannot load"


def serve(told: dict[str, Any]) -> NoReturn:
    """The program of the process: load the weights, say where they are served, and stay until stdin ends."""
    try:
        _serve(ServerSettings(**told), os.getppid())
    except BaseException:
        os._exit(1)
    os._exit(0)  # at once: llama.cpp would first wait for its threads, which may never end


def _serve(settings: ServerSettings, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what llama.cpp prints is no answer
        _end_with_stdin(True)
        # A watch that needs no Python either, for systems where the line above does nothing.
        faulthandler.dump_traceback_later(2 * settings.load_timeout, exit=True)
        _leave_no_core()
        _be_killed_first()
        try:
            import xllamacpp

            copies = SlotCopies(settings.copies)
            server = xllamacpp.Server(_parameters(xllamacpp, settings, copies))
        except ImportError as error:
            _say(answer, problem=str(error) or "ImportError")
            return
        except Exception:  # it says no more than that
            _say(answer, problem=_CANNOT_LOAD)
            return
        if _computes_on_cpus(xllamacpp):
            _limit_memory()
        faulthandler.cancel_dump_traceback_later()
        _end_with_stdin(False)
        _say(answer, address=server.listening_address, copies=copies.names)
    _wait_for_end_of(parent)
    copies.remove()


def _say(answer: BinaryIO, **found: Any) -> None:
    """Write the line that the user's process waits for."""
    answer.write(_ANSWER + json.dumps(found).encode() + b"\n")
    answer.flush()


def _parameters(xllamacpp: Any, settings: ServerSettings, copies: SlotCopies) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = settings.path
    params.hostnames = ["127.0.0.1"]
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
    params.kv_unified = False  # a third faster here than one store for all slots
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.slot_save_path = copies.folder
    params.api_keys = [settings.key]  # other users of this machine reach the port, too
    params.cors_origins, params.cors_credentials = "", False  # and so do web pages
    params.warmup = False
    params.ui = False
    params.verbosity = -1
    return params


def _computes_on_cpus(xllamacpp: Any) -> bool:
    devices = {device["type"] for device in xllamacpp.get_device_info()}
    return devices == {xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU}


def _end_with_stdin(by_signal: bool) -> None:
    """Have the system end this process when stdin ends: while llama.cpp loads, no Python runs here."""
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
    """Where memory runs out, let Linux end this process rather than the user's."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit_memory() -> None:
    """Bound what requests take: a chat template can write gigabytes. On Linux only."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = int(status.partition("VmData:")[2].split()[0]) * 1024
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used + _MEMORY_FOR_REQUESTS, most))


def _wait_for_end_of(parent: int) -> None:
    """Wait until stdin ends, or until the parent has ended: a fork of it may hold stdin open."""
    if sys.platform == "win32":
        sys.stdin.read()
        return
    import select

    while os.getppid() == parent and not select.select([0], [], [], 1.0)[0]:
        pass


class SlotCopies:
    """The folder of slots' saved KV caches. They hold people's texts, so none may stay after a kill.

    On Linux they are unnamed files in memory, which vanish with the process. On other systems they are in
    a private folder, which is deleted at the end of the process or, after a kill, at the next start.
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
        """Delete them."""
        if self._temporary is not None:
            self._lock.release()
            self._temporary.cleanup()


def _folder_lock(folder: str | Path) -> Any:
    """The lock that a process holds while it uses a folder; the system frees it after a kill."""
    from filelock import FileLock

    return FileLock(Path(folder) / "lock")


def _remove_left_folders() -> None:
    """Remove the folders of this user's processes that were killed."""
    import shutil

    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with suppress(OSError):  # of another user, or in use
            with _folder_lock(folder).acquire(timeout=0):
                pass
            shutil.rmtree(folder, ignore_errors=True)
