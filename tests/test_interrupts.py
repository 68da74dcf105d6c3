"""Ctrl-C: in a script, beside a thread, in a notebook, twice. Nothing runs on, nothing paid for is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

import personainfer as pi
from personainfer.testing import FakeLLM

from .builders import pairs, until

pytestmark = pytest.mark.heavy  # many processes, servers or waits

WIDTH = 8
ROWS = 400
STATES = [pytest.param(0.02, id="busy"), pytest.param(300, id="waiting", marks=pytest.mark.heavy)]

START = """
import sys, threading, personainfer as pi
from personainfer import event_loop as loop
import asyncio
base, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = {"api_base": base, "cache_dir": folder, "max_concurrency": 8}

def pairs(count):  # those of conftest, whose import would take longer than the run
    return [
        {"prompt": f"Question {n}?", "chosen": f"Short answer {n}.", "rejected": f"Long answer {n}…"}
        for n in range(count)
    ]

def running():
    return len(asyncio.all_tasks(loop.the_loop()))
"""

PLAIN = START + 'pi.infer_personas(pairs(count), "fake", **options)'

IN_A_COROUTINE = (
    START
    + """
async def main():
    pi.infer_personas(pairs(count), "fake", **options)

asyncio.run(main())
"""
)

GOES_ON = (
    START
    + """
try:
    pi.infer_personas(pairs(count), "fake", **options)
except KeyboardInterrupt:
    print("interrupted", running(), flush=True)
sys.stdin.readline()
rows = [{**pair, "prompt": "Another " + pair["prompt"]} for pair in pairs(50)]
table = pi.infer_personas(rows, "fake", **options)
table.raise_for_errors()
print("done", running(), flush=True)
"""
)

THREAD = (
    START
    + """
stream = pi.iter_personas(pairs(count), "fake", **options)
ended = []

def work():
    try:
        for row in stream:
            pass
    except BaseException as error:
        ended.append(type(error).__name__)
    finally:
        over.set()

over = threading.Event()  # Python 3.11 takes a thread for ended after an interrupted join
threading.Thread(target=work).start()
try:
    over.wait()
except KeyboardInterrupt:
    stream.cancel()
    over.wait(30)
print(over.is_set(), ended, running(), flush=True)
"""
)


class Script:
    """A Python process under test, with a deadline for everything that is asked of it."""

    def __init__(self, source: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )

    def interrupt(self) -> None:
        """What a terminal sends for Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, said: str | None = None) -> tuple[str, str]:
        """Wait until it has ended; returns what it printed on both streams."""
        try:
            return self.process.communicate(said, timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the process hangs after Ctrl-C:\n{out}\n{err}")


@pytest.fixture
def start() -> Iterator[Callable[..., Script]]:
    """Starts scripts, and leaves none behind."""
    scripts: list[Script] = []

    def started(*arguments: Any) -> Script:
        scripts.append(Script(*arguments))
        return scripts[-1]

    yield started
    for script in scripts:
        script.process.kill()
        script.process.wait(30)


def assert_goes_on(server: FakeLLM, folder: Path, *, interrupts: int = 1) -> None:
    """What was answered is in the cache, and the same call completes it."""
    before = server.calls
    kept = pi.cache_info(folder).replies
    assert kept >= before - WIDTH * interrupts
    server.latency = 0.0
    table = pi.infer_personas(
        pairs(ROWS), "fake", api_base=server.api_base, cache_dir=folder, max_concurrency=WIDTH
    )
    table.raise_for_errors()
    assert len(table) == ROWS
    assert table.usage.cached == kept
    assert table.usage.calls == server.calls - before == ROWS - kept
    assert server.repeats <= WIDTH * interrupts


@pytest.mark.parametrize("source", [PLAIN, IN_A_COROUTINE], ids=["plain", "in a coroutine"])
def test_ctrl_c_ends_a_script_and_the_same_call_goes_on(
    start: Callable[..., Script], tmp_path: Path, source: str
) -> None:
    with FakeLLM(latency=0.02) as server:
        script = start(source, server.api_base, tmp_path / "c", ROWS)
        until(lambda: server.calls > 60)
        script.interrupt()
        _, error = script.end()
        assert script.process.returncode == -signal.SIGINT
        assert error.rstrip().endswith("KeyboardInterrupt")
        assert "never retrieved" not in error
        assert "Unclosed" not in error
        assert server.calls < ROWS, "it ended before it was interrupted"
        until(lambda: server.in_flight == 0)
        assert_goes_on(server, tmp_path / "c")


def test_ctrl_c_does_not_wait_for_replies(start: Callable[..., Script], tmp_path: Path) -> None:
    with FakeLLM(latency=300) as server:
        script = start(PLAIN, server.api_base, tmp_path / "c", ROWS)
        until(lambda: server.in_flight == WIDTH)
        script.interrupt()
        script.end()
        assert script.process.returncode == -signal.SIGINT
        assert server.calls == WIDTH
        assert_goes_on(server, tmp_path / "c")


def test_no_task_is_left_where_the_process_lives_on(
    start: Callable[..., Script], tmp_path: Path
) -> None:
    with FakeLLM(latency=0.02) as server:
        script = start(GOES_ON, server.api_base, tmp_path / "c", ROWS)
        until(lambda: server.calls > 60)
        script.interrupt()
        assert script.line() == "interrupted 0"
        until(lambda: server.in_flight == 0)
        before = server.calls
        assert before < ROWS, "it ended before it was interrupted"
        out, error = script.end("\n")  # it makes fifty other calls, and no more than these
        assert out.strip() == "done 0", error
        assert server.calls == before + 50
        assert pi.cache_info(tmp_path / "c").replies >= before - WIDTH + 50


@pytest.mark.parametrize("latency", STATES)
def test_two_ctrl_c_in_a_row_end_it_too(
    start: Callable[..., Script], tmp_path: Path, latency: float
) -> None:
    with FakeLLM(latency=latency) as server:
        script = start(PLAIN, server.api_base, tmp_path / "c", ROWS)
        until(lambda: server.calls >= WIDTH)
        script.interrupt()
        script.interrupt()
        script.end()
        assert script.process.returncode != 0
        until(lambda: server.in_flight == 0)
        assert server.calls < ROWS
        assert_goes_on(server, tmp_path / "c")


@pytest.mark.parametrize("latency", STATES)
def test_a_run_in_another_thread_is_cancelled_from_the_main_one(
    start: Callable[..., Script], tmp_path: Path, latency: float
) -> None:
    with FakeLLM(latency=latency) as server:
        script = start(THREAD, server.api_base, tmp_path / "c", ROWS)
        until(lambda: server.calls >= WIDTH)
        script.interrupt()
        out, error = script.end()
        assert out.strip() == "True ['CancelledError'] 0", error
        assert script.process.returncode == 0
        until(lambda: server.in_flight == 0)
        assert_goes_on(server, tmp_path / "c")


# A notebook


def outcome_of(kernel: Any, identity: str) -> tuple[str, str]:
    """The value or the name of the error of a cell, and all it wrote on its streams."""
    value, written = "", ""
    while True:
        try:
            message = kernel.get_iopub_msg(timeout=60)
        except Empty:
            pytest.fail(f"the kernel does not answer; so far: {value!r} {written!r}")
        if message["parent_header"].get("msg_id") != identity:
            continue
        content = message["content"]
        if message["msg_type"] == "error":
            value = content["ename"]
        elif message["msg_type"] == "execute_result":
            value = content["data"]["text/plain"]
        elif message["msg_type"] == "stream":
            written += content["text"]
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            return value, written


@pytest.mark.heavy
def test_an_interrupted_cell_can_be_run_again(tmp_path: Path) -> None:
    client = pytest.importorskip("jupyter_client", reason="jupyter-client is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    manager, kernel = client.manager.start_new_kernel()
    try:
        with FakeLLM(latency=0.02) as server:
            options = {"api_base": server.api_base, "max_concurrency": WIDTH, "progress": False}
            options["cache_dir"] = str(tmp_path / "c")
            cell = "len(pi.infer_personas(rows, 'fake', **options))"
            setting = f"import personainfer as pi; rows = {pairs(ROWS)!r}; options = {options!r}"
            assert outcome_of(kernel, kernel.execute(setting)) == ("", "")
            for interrupts in (1, 2):
                before = server.calls
                again = kernel.execute(cell)
                until(lambda before=before: server.calls > before + 50)  # type: ignore[misc]
                manager.interrupt_kernel()
                value, written = outcome_of(kernel, again)
                assert value == "KeyboardInterrupt"
                assert "loop" not in written
                until(lambda: server.in_flight == 0)
                assert server.repeats <= WIDTH * interrupts
            server.latency = 0.0
            assert outcome_of(kernel, kernel.execute(cell)) == (str(ROWS), "")
            assert server.calls <= ROWS + 2 * WIDTH
            assert pi.cache_info(tmp_path / "c").replies == ROWS
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
