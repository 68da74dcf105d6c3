"""Waiting for the loop, and the deadlines of its tasks."""

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import personainfer as pi
from personainfer import event_loop
from personainfer.event_loop import Deadlines
from personainfer.exceptions import ModelError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def limited(deadlines: Deadlines, seconds: float, work: float) -> str:
    """Sleep for `work` seconds under a limit; says how it ended."""
    task = deadlines.start(seconds)
    try:
        await asyncio.sleep(work)
    except asyncio.CancelledError:
        if not deadlines.has_passed(task):
            raise
        return "late"
    finally:
        deadlines.stop(task)
    return "done"


async def judge(*_: Any) -> int:
    return 1


NOWHERE: Any = {"api_base": "http://127.0.0.1:9/v1"}
WAITING: dict[str, Callable[[], object]] = {
    "llm": lambda: pi.LLM("m", **NOWHERE).ask([{"role": "user", "content": "Hello"}]),
    "retriever": lambda: pi.PersonaRetriever(["p"], ["x"], model="m", **NOWHERE),
    "scorer": lambda: pi.Likelihood("m", **NOWHERE).log_likelihood(["p"], ["x"], ["r"]),
    "judge": lambda: pi.compare_responses(["p"], ["a"], ["b"], judge),
}


@pytest.mark.filterwarnings("ignore:coroutine 'judge' was never awaited")
@pytest.mark.parametrize("call", WAITING.values(), ids=WAITING)
def test_a_call_within_a_call_is_an_error_and_waits_for_nothing(
    call: Callable[[], object],
) -> None:
    """As of a validator of a schema, or of a provider that somebody wrote for litellm, with this library."""

    async def within() -> None:
        call()

    running = asyncio.run_coroutine_threadsafe(within(), event_loop.the_loop())
    with pytest.raises(ModelError, match="wait for itself"):
        running.result(timeout=10)
    del running
    gc.collect()  # the judge, which nobody awaits, while its warning is ignored


async def test_a_task_that_takes_too_long_is_cancelled_and_others_are_not() -> None:
    deadlines = Deadlines()
    limits = [(60.0, 0.0), (0.05, 60.0), (60.0, 0.2), (0.01, 60.0)]  # a shorter limit comes last
    ended = await asyncio.gather(*(limited(deadlines, *each) for each in limits))
    assert ended == ["done", "late", "done", "late"]


async def test_a_task_that_was_late_can_go_on_and_have_another_limit() -> None:
    deadlines = Deadlines()
    assert [await limited(deadlines, 0.01, 60.0) for _ in range(2)] == ["late", "late"]
    assert await limited(deadlines, 60.0, 0.0) == "done"


async def test_a_cancelled_task_is_not_taken_for_a_late_one() -> None:
    deadlines = Deadlines()
    task = asyncio.create_task(limited(deadlines, 60.0, 60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_time_limit_that_another_error_answers_cuts_nothing_short_later() -> None:
    """A provider of the user's may turn its cancellation into an error of its own."""
    deadlines = Deadlines()

    async def refuse() -> None:
        task = deadlines.start(0.01)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60.0)
        finally:
            deadlines.stop(task)

    await refuse()
    assert await limited(deadlines, 0.01, 60.0) == "late"


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt()], ids=lambda one: str(type(one))
)
def test_a_judge_that_ends_the_program_is_heard_by_the_caller_alone(error: BaseException) -> None:
    async def ends(*_: Any) -> int:
        raise error

    async def ends_later() -> None:
        raise error

    with pytest.raises(type(error)):
        pi.compare_responses(["p"], ["a"], ["b"], ends)
    event_loop.start(ends_later())  # as a task of a library, for which nobody waits
    answered = asyncio.run_coroutine_threadsafe(judge(), event_loop.the_loop())
    assert answered.result(timeout=10) == 1


def test_a_loop_that_is_stopped_goes_on() -> None:
    async def later() -> int:
        await asyncio.sleep(0.05)
        return 1

    loop = event_loop.the_loop()
    begun = asyncio.run_coroutine_threadsafe(later(), loop)
    loop.call_soon_threadsafe(loop.stop)
    assert begun.result(timeout=10) == event_loop.run(judge()) == 1


AFTER_ALL_FILES_WERE_CLOSED = """
import asyncio, gc, os
from personainfer import event_loop

event_loop.call(os.closerange, 3, 1000)
event_loop.thread().join(10)
for _ in range(2):
    event_loop.run(asyncio.sleep(0))
    gc.collect()
print("answered")
"""


@pytest.mark.heavy
@pytest.mark.skipif(os.name == "nt", reason="closes files of the process")
def test_a_loop_that_is_replaced_closes_no_files_of_its_successor() -> None:
    """It would, as garbage: they have its numbers. Its thread ends where a program closes all files."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_ALL_FILES_WERE_CLOSED],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr


@pytest.mark.heavy
async def test_what_came_while_the_process_was_stopped_is_read() -> None:
    """Ctrl-Z, or a scheduler that suspends: the replies were paid, and lie in the sockets."""
    deadlines = Deadlines()
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)

    async def answered() -> bytes:
        task = deadlines.start(0.5)
        try:
            return await reader.readline()
        finally:
            deadlines.stop(task)

    waiting = asyncio.create_task(answered())
    await asyncio.sleep(0)
    there.send(b"reply\n")
    time.sleep(1.7)  # noqa: ASYNC251
    assert await waiting == b"reply\n"
    writer.close()
    there.close()
