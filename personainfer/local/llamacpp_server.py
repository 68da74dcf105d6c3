"""llama.cpp's server in a process of its own: how it is started and watched.

A file of weights can crash llama.cpp, or keep it busy for ever: by a chat template that calls itself, by a
damaged tensor, by being cut off while it is mapped. That costs the server's process, and not the user's.

The process ends when its stdin does, so it does not outlive the process that started it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import weakref
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..event_loop import thread_errors
from ..exceptions import MissingExtraError, ModelNotFoundError
from .llamacpp_program import ANSWER, CANNOT_LOAD, ServerSettings
from .paths import others_may_replace_in

RENDER_TIMEOUT = 60.0  # seconds for a chat template, which takes milliseconds on an idle machine
_LONGEST_SOCKET = 100  # bytes of the path of a Unix socket: systems take 104 or 108
_ENDING = 5.0  # seconds, at most, between the end of a process' connections and its own end
_LONGEST_ANSWER = 2**16  # bytes
_SPIN_SETTING = "GOMP_SPINCOUNT"  # how often a waiting thread looks before it sleeps
_OTHER_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"

# Chats as this library asks them. A template may be made to stop at any other text, too.
_TURNS = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hello."), ("user", "Why?")]
_CHATS = [
    json.dumps({"messages": [{"role": role, "content": text} for role, text in _TURNS[:count]]})
    for count in (2, 4)
]

# `-I` keeps the folder that the user is in, and those that the environment names, off the path: modules are
# imported from where the user's process imports them.
_PROGRAM = (
    "import json, sys; settings = json.loads(sys.stdin.readline());"
    " sys.path[:] = settings.pop('sys_path');"
    " from personainfer.local.llamacpp_program import serve; serve(settings)"
)


def start_server(settings: ServerSettings) -> ServerProcess:
    """Start a server, and check that it loads its file and renders a chat. This blocks until it does.

    If this raises, no process is left.

    Raises:
        ModelNotFoundError: no process can be started; llama.cpp cannot load the file, or has not in
            `settings.load_timeout` seconds; or the file's chat template crashes llama.cpp or has no end.
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


class PrivateSocket:
    """A path for a Unix socket in a new folder that nobody else may enter: no other user reaches its server.

    The folder is deleted when this object is collected as garbage, at the latest when this process ends.

    Attributes:
        path: where the server is to make its socket; None if there can be none, as on Windows, or if others
            may replace what is in the folder of temporary files: the server then listens on a port.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        if sys.platform == "win32" or not hasattr(socket, "AF_UNIX"):
            return
        # No folder can be made, or no socket in it: some file systems know none.
        with suppress(OSError, ValueError):
            if others_may_replace_in(Path(tempfile.gettempdir())):
                return
            folder = tempfile.mkdtemp(prefix="personainfer-")
            path = os.path.join(folder, "server.sock")  # the end tells llama.cpp what it is
            try:
                if len(path.encode()) <= _LONGEST_SOCKET:
                    with closing(socket.socket(socket.AF_UNIX)) as tried:
                        tried.bind(path)
                    os.unlink(path)
                    self.path = path
                    weakref.finalize(self, _remove_folder, folder, os.getpid())
            finally:
                if self.path is None:  # no finalizer removes the folder
                    _remove_folder(folder, os.getpid())


def _remove_folder(folder: str, pid: int) -> None:
    """Remove a folder, if this process made it; a fork leaves the folder to its parent."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


class ServerProcess:
    """A server in its process. Making one starts the process, and blocks until it has loaded its file.

    Args:
        settings: what the process is told.

    Attributes:
        address: "http://localhost" if it listens on `socket`, else "http://127.0.0.1:PORT"; None: it has not
            loaded its file in `settings.load_timeout` seconds, or cannot. It may still run: call `kill`.
        socket: the path of the Unix socket where it listens; None: it listens on the port of its address.
        copies: the names of its files for saved KV caches.
        pid: the number of the process.
        problem: why it has not loaded the file; None: it has, or could not say.
        was_killed: whether `kill` ended it.

    Raises:
        ModelNotFoundError: the process cannot be started.
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
        self.socket: str | None = None
        if self.address is not None and self.address.startswith("unix:"):
            self.address, self.socket = "http://localhost", settings.socket
        self.copies: list[str] = answer.get("copies", [])
        self.problem: str | None = answer.get("problem")

    @property
    def ended_by(self) -> str:
        """The name of the signal that ended the process ("SIGSEGV"), or "exit status N".

        N is None as long as the process runs.
        """
        status = self._process.returncode
        if status is not None and status < 0:
            with suppress(ValueError):
                return signal.Signals(-status).name
        return f"exit status {status}"

    def has_ended(self) -> bool:
        """Return whether the process has ended. It does not wait."""
        return self._process.poll() is not None

    def ends_now(self) -> bool:
        """Return whether the process has ended, or ends within 5 seconds, for which this waits.

        The connections of a process that crashes break a moment before the process ends.
        """
        ends = time.monotonic() + _ENDING
        while not self.has_ended() and time.monotonic() < ends:
            time.sleep(0.02)
        return self.has_ended()

    def kill(self) -> None:
        """End the process, if it runs, and close its pipes. Wait up to 5 seconds for its end."""
        self.was_killed = self.was_killed or not self.has_ended()
        self._process.kill()
        self.ends_now()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this process' ends of the pipes to the server, which ends when its stdin does."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def answers(self, path: str, body: bytes | None = None) -> bool:
        """Return whether the server answers a request in `RENDER_TIMEOUT` seconds, with whatever status.

        Args:
            path: the path below the server's address.
            body: the JSON to POST; None: send a GET.
        """
        from http.client import HTTPConnection, HTTPException

        assert self.address is not None
        host = self.address.removeprefix("http://")
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection = HTTPConnection(host, timeout=RENDER_TIMEOUT)
        try:
            if self.socket is not None:
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(RENDER_TIMEOUT)
                connection.sock.connect(self.socket)
            connection.request("GET" if body is None else "POST", path, body, headers)
            connection.getresponse()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Return the object that the process writes once its file is loaded; {} if it ends or the time is up.

        A thread reads the pipe. The pipe's end might never come: a process that was forked at the wrong
        moment may hold it open.
        """
        assert self._process.stdout is not None
        read, lines = self._process.stdout.readline, SimpleQueue[bytes]()

        def read_lines() -> None:
            line = b"first"
            while line and ANSWER not in line:
                lines.put(line := read(_LONGEST_ANSWER))

        with thread_errors():
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
            _, is_answer, found = line.partition(ANSWER)
            if is_answer:
                answer: dict[str, Any] = json.loads(found)
                return answer


def _told(settings: ServerSettings) -> bytes:
    """Return the line with the settings for the process. It has the key, so no variable holds it."""
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
    """Return this process' environment for the server, with OpenMP's threads set to sleep while they wait.

    A setting of the user's own stands. Threads that wait would spin: if another process uses the same cores,
    they spin while the thread that they wait for has no core, and decoding runs at less than half its speed.
    """
    ours = {"GGML_NO_BACKTRACE": "1"}  # a crash starts no debugger
    if "OMP_WAIT_POLICY" not in os.environ:
        ours[_SPIN_SETTING] = "1000"
    return {**ours, **os.environ}


def _not_loaded(
    settings: ServerSettings, server: ServerProcess
) -> ModelNotFoundError | MissingExtraError:
    """Make the error for a file that was not loaded. If its process gave no reason, try another template."""
    path = settings.path
    if server.problem == CANNOT_LOAD:
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
    """Make the error for a chat template that crashes llama.cpp, or, if `ended_by` is None, has no end."""
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
    """Close the pipes of the servers in a fork: they are its parent's, and have to see the parent's end."""
    for server in list(_processes):
        server.close_pipes()
    _processes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
