"""What a long run meets: kills, a failing endpoint, forks, a second process on the same cache.

Counts of requests are the server's own. A row is right when its personas are those of a run without
faults, and here they depend on nothing but the row.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from pydantic import BaseModel, field_validator

import personainfer as pi
from personainfer import event_loop as loop
from personainfer.exceptions import RequestRejectedError
from personainfer.personas.prompts import chosen_is_first
from personainfer.testing import FakeLLM, Fault

from .builders import each_way, pairs, until

WIDTH = 8  # max_concurrency of the runs that are killed
_QUESTION = re.compile(r"Question (\d+)\?")

# Child processes


@contextmanager
def server_process(*arguments: str) -> Iterator[str]:
    """The address of a fake model in a process of its own."""
    command = [sys.executable, "-m", "personainfer.testing", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            yield _opened(server.stdout).readline().strip()
        finally:
            server.kill()


def stats(api_base: str) -> dict[str, int]:
    """The server's own counters."""
    with urllib.request.urlopen(api_base.replace("/v1", "/stats"), timeout=30) as response:
        counts: dict[str, int] = json.load(response)
    return counts


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process, started but not waited for."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        start_new_session=True,  # so that `kill` reaches its forks
    )


def kill(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End a process and its forks; returns what was printed."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=30)


def _opened(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def finished(process: subprocess.Popen[str], timeout: float = 60.0) -> str:
    """What a process printed; it must end well and in time."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = kill(process)
        pytest.fail(f"the process hangs:\n{out}\n{err}")
    assert process.returncode == 0, err
    return out


INFER = """
import json, sys, personainfer as pi
base, folder, rows, width = sys.argv[1:]
table = pi.infer_personas(
    rows, "fake", api_base=base, cache_dir=folder, max_concurrency=int(width)
)
table.raise_for_errors()
personas = [(str(row.chosen), str(row.rejected)) for row in table]
print(json.dumps({"calls": table.usage.calls, "personas": personas}))
"""


def infer(base: str, folder: Path, rows: Path) -> subprocess.Popen[str]:
    """A process that infers the personas of a file."""
    return python(INFER, base, folder, rows, WIDTH)


def outcome(process: subprocess.Popen[str]) -> tuple[int, list[tuple[str, str]]]:
    """The calls that it made, and its personas."""
    printed = json.loads(finished(process))
    return printed["calls"], [(chosen, rejected) for chosen, rejected in printed["personas"]]


def written(folder: Path, count: int) -> Path:
    """A file of pairs."""
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs(count))))
    return path


def personas(table: pi.PersonaTable) -> list[tuple[str, str]]:
    """Both sentences of each row, in order."""
    return [(str(row.chosen), str(row.rejected)) for row in table]


def undisturbed(count: int) -> list[tuple[str, str]]:
    """The personas of a run in which nothing goes wrong."""
    with FakeLLM() as server:
        table = pi.infer_personas(pairs(count), "fake", api_base=server.api_base, cache=False)
    table.raise_for_errors()
    return personas(table)


# Kill -9


def kill_and_resume(folder: Path, kills: int, rows: int) -> None:
    expected = undisturbed(rows)
    data, cache = written(folder, rows), folder / "cache"
    draw = random.Random(kills)
    moments = sorted(draw.choices(range(rows - 8 * WIDTH), k=kills))
    with server_process("--latency", "0.01") as base:
        repeats = 0
        for moment in moments:
            client = infer(base, cache, data)
            until(lambda at=moment, client=client: begun(base, at) or client.poll() is not None)  # type: ignore[misc]
            kill(client)
            assert client.returncode == -signal.SIGKILL, "it ended before it was killed"
            now = stats(base)
            assert now["repeats"] - repeats <= WIDTH
            repeats = now["repeats"]
            assert pi.cache_info(cache).replies >= now["distinct"] - WIDTH
            assert is_sound(cache)
        _, found = outcome(infer(base, cache, data))
        total = stats(base)
    assert found == expected
    assert total["distinct"] == rows
    assert total["repeats"] <= kills * WIDTH
    assert total["calls"] == rows + total["repeats"]


def begun(base: str, rows: int) -> bool:
    """Whether the server has met more rows than these."""
    return stats(base)["distinct"] > rows


def is_sound(cache: Path) -> bool:
    """Whether SQLite finds nothing wrong with the database of a cache."""
    with closing(sqlite3.connect(cache / "cache.db")) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.heavy
def test_three_kills_lose_no_more_than_what_was_in_flight(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=3, rows=120)


@pytest.mark.heavy
def test_twenty_kills_lose_no_more_than_what_was_in_flight(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=20, rows=500)


# Two processes, one cache


@pytest.mark.heavy
def test_two_processes_on_one_cache_are_both_right(tmp_path: Path) -> None:
    data, cache, rows = written(tmp_path, 200), tmp_path / "cache", 200
    with server_process("--latency", "0.005") as base:
        outcomes = [outcome(process) for process in [infer(base, cache, data) for _ in range(2)]]
        assert stats(base)["calls"] == sum(calls for calls, _ in outcomes)
        assert stats(base)["distinct"] == rows
    expected = undisturbed(rows)
    assert [found for _, found in outcomes] == [expected, expected]
    assert pi.cache_info(cache).replies == rows
    assert is_sound(cache)


# Every fault of an endpoint: name -> (a word of the error, whether it costs waits)

FAULTS: dict[str, tuple[str, bool]] = {
    "429-retry-after": ("fewer requests", True),
    "429": ("fewer requests", True),
    "500": ("500", True),
    "503": ("503", True),
    "reset": ("connection", True),
    "reset-in-body": ("connection", True),
    "hang": ("did not answer within", True),
    "empty-body": ("empty body", False),
    "empty-content": ("empty", False),
    "invalid-json": ("not in the asked form", False),
    "not-json": ("not JSON", False),
    "schema": ("not in the asked form", False),
    "refusal": ("refused", False),
    "length": ("cut off", False),
    "filter": ("content filter", False),
    "not-utf8": ("not UTF-8", False),
    "10-MB": ("larger than", True),
}
WAITS = {name for name, (_, waits) in FAULTS.items() if waits}
# What the same request meets again: it is sent with a larger limit once, or not at all.
STAYS = {"length", "filter"}
ENDS = {
    "empty-body",
    "not-json",
    "not-utf8",
    "10-MB",
}  # no answer to any request: the endpoint is none
ALIKE = {"empty-content", "not-json", "refusal", "filter", "invalid-json"}  # to the one who retries


def kinds(heavy: set[str], without: frozenset[str] | set[str] = frozenset()) -> list[Any]:
    """The names of the faults, some of them for the heavy suite."""
    return [
        pytest.param(name, marks=pytest.mark.heavy if name in heavy else (), id=name)
        for name in FAULTS
        if name not in without
    ]


def row_of(body: dict[str, Any]) -> int:
    """The row that a request is about, re-asks included."""
    said = "\n".join(turn["content"] for turn in body["messages"] if turn["role"] == "user")
    numbers = _QUESTION.findall(said)
    return int(numbers[-1]) if numbers else -1  # none in what asks whether the endpoint works


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """Words that name the row, whatever was said since it was first asked."""
    number = row_of(body)

    def person(side: str) -> dict[str, str]:
        return {"evidence": "e", "trait": f"{side} of {number}", "preference": f"answers {number}"}

    return {"person_1": person("first"), "person_2": person("second")}


def assert_right(table: pi.PersonaTable, rows: int) -> None:
    assert len(table) == rows
    for number, row in enumerate(table):
        assert row.error is None
        assert row.index == number
        assert row.preference is not None
        assert row.preference.prompt == f"Question {number}?"
        assert row.chosen is not None
        assert row.rejected is not None
        traits = [f"first of {number}", f"second of {number}"]
        if not chosen_is_first(row.preference):
            traits.reverse()
        assert [row.chosen.trait, row.rejected.trait] == traits


def test_every_fault_of_an_endpoint_is_tried() -> None:
    assert Fault.table().keys() == FAULTS.keys()


@each_way
@pytest.mark.parametrize("name", kinds(heavy=WAITS, without=FAULTS.keys() - ENDS))
def test_an_endpoint_without_answers_ends_the_run(name: str) -> None:
    words, _ = FAULTS[name]
    with FakeLLM(reply=answer, faults=[Fault.table()[name]], fault_rate=1.0) as server:
        with pytest.raises(RequestRejectedError, match=re.escape(words)):
            pi.infer_personas(
                pairs(40), "fake", api_base=server.api_base, max_attempts=2, max_concurrency=8
            )
        assert server.calls <= 8 + 3
    assert pi.cache_info().replies == 0


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("name", kinds(heavy=WAITS, without=ENDS))
def test_a_fault_at_every_call_is_an_error_on_every_row(name: str) -> None:
    words, _ = FAULTS[name]
    rows = 40
    with FakeLLM(reply=answer, faults=[Fault.table()[name]], fault_rate=1.0) as server:
        table = pi.infer_personas(
            pairs(rows), "fake", api_base=server.api_base, max_attempts=2, timeout=timeout_of(name)
        )
        assert table.usage.calls == server.calls == server.faulted
        # A 429 is everybody's: the run is over after 2 x max_attempts rounds of refusals.
        most = 2 * rows if not name.startswith("429") else 6 * rows
        assert server.calls <= most
        assert server.calls >= rows
    assert [row.index for row in table] == list(range(rows))
    for row in table:
        assert row.chosen is None
        assert row.rejected is None
        assert words in str(row.error)
    assert pi.cache_info().replies == 0


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("name", kinds(heavy=(WAITS | ALIKE) - {"429-retry-after"}, without=STAYS))
def test_a_fault_at_a_third_of_the_calls_costs_no_row(name: str) -> None:
    run_through([Fault.table()[name]], rows=120, timeout=timeout_of(name))


@each_way
@pytest.mark.heavy
def test_all_faults_mixed_cost_no_row() -> None:
    passing = [fault for name, fault in Fault.table().items() if name not in STAYS]
    run_through(passing, rows=120, timeout=5.0)


def timeout_of(name: str) -> float:
    """Short where the fault is a hang; elsewhere long enough for a busy machine."""
    return 2.0 if name == "hang" else 20.0


def run_through(faults: list[Fault], rows: int, timeout: float) -> None:
    with FakeLLM(reply=answer, faults=faults, fault_rate=0.3) as server:
        table = pi.infer_personas(
            pairs(rows), "fake", api_base=server.api_base, max_attempts=12, timeout=timeout
        )
        assert_right(table, rows)
        assert server.faulted > 0
        assert table.usage.calls == server.calls >= rows + server.faulted
        assert table.usage.retries + table.usage.reasks == server.calls - rows
        again = pi.infer_personas(pairs(rows), "fake", api_base=server.api_base)
        assert again.usage.calls == 0
    assert_right(again, rows)


# Workers


@each_way
def test_a_request_that_comes_while_the_last_worker_ends_is_answered() -> None:
    """A slow source hands over a request at the very moment when all workers have run dry."""
    answered, handed_over = threading.Event(), threading.Event()

    class Held(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def wait(cls, value: int) -> int:  # on the loop, in the last step of the worker
            answered.set()
            assert handed_over.wait(30)
            return value

    def requests() -> Iterator[Any]:
        yield None, [pi.Request((pi.Message(role="user", content="First"),), Held)]
        assert answered.wait(30)
        yield None, [pi.Request((pi.Message(role="user", content="Second"),), Held)]
        handed_over.set()

    with FakeLLM(reply={"number": 1}) as server:
        model = pi.LLM("fake", api_base=server.api_base, cache=False, max_concurrency=1)
        replies: list[Any] = []
        thread = threading.Thread(
            target=lambda: replies.extend(one for _, [one] in model.run(requests())), daemon=True
        )
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "a request was left without a worker"
    assert [reply.value.number for reply in replies] == [1, 1]


@each_way
def test_nobody_waits_for_workers_that_have_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start one after the other: a run that is over, or is left, does not see the last ones."""
    monkeypatch.setattr("personainfer.llm.workers._WORKER_STAGGER_S", 3600.0)
    with FakeLLM(reply=answer) as server:
        options: dict[str, Any] = {"api_base": server.api_base, "max_concurrency": 20}
        assert_right(pi.infer_personas(pairs(30), "fake", **options), 30)
        assert not workers()
        with pi.iter_personas(pairs(200)[100:], "fake", **options) as stream:
            next(stream)
            assert workers()
        assert not workers()
        assert server.in_flight_peak == 1


def workers() -> list[Any]:
    """The tasks that serve requests, of any run."""

    async def found() -> list[Any]:
        return [task for task in asyncio.all_tasks() if "Workers._work" in repr(task.get_coro())]

    return loop.run(found())


# Forks and spawns

PAIRS = """
def pairs(count):  # those of conftest, whose import would take longer than the run
    return [
        {"prompt": f"Question {n}?", "chosen": f"Short answer {n}.", "rejected": f"Long answer {n}…"}
        for n in range(count)
    ]
"""

FORK = (
    PAIRS
    + """
import multiprocessing, os, sys, personainfer as pi
model = pi.LLM("fake", api_base=sys.argv[1], max_concurrency=4)
options = {"api_base": sys.argv[1], "max_concurrency": 4}

def work(start, shared):
    rows = pairs(start + 10)
    table = pi.infer_personas(rows, model) if shared else pi.infer_personas(rows, "fake", **options)
    table.raise_for_errors()
    return [str(row.chosen) for row in table]

first = work(0, True)
pid = os.fork()
if pid == 0:
    good = work(10, True)[:10] == first and work(20, False)[:10] == first
    os._exit(0 if good else 1)
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.starmap(work, [(30, True), (40, False)])
assert all(personas[:10] == first for personas in found)
assert work(50, True)[:10] == work(50, False)[:10] == first
print(pi.cache_info().replies)
"""
)

FORK_CLOSES = (
    PAIRS
    + """
import os, signal, sys, time, personainfer as pi
stream = pi.iter_personas(pairs(100), "fake", api_base=sys.argv[1], max_concurrency=4)
rows = [next(stream)]
began = time.monotonic()
pid = os.fork()
took = time.monotonic() - began
if pid == 0:
    signal.alarm(20)
    stream.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0, "the child waits for a loop that it does not have"
rows += stream
assert len(rows) == 100 and not [row for row in rows if row.error], "the parent's run was disturbed"
assert took < 5, f"the fork waited {took:.1f} s"
"""
)

COLLECTED = """
import faulthandler, gc, os, sys, personainfer as pi
from personainfer.local.cache import ReplyCache
faulthandler.dump_traceback_later(30, exit=True)
base, folder, what = sys.argv[1:]
model = pi.LLM("fake", api_base=base, cache_dir=folder)
cache = ReplyCache(model.cache.directory)
for later in range(12):
    run = iter(pi.iter_personas([("Why?", f"{later} {n}", "b") for n in range(9)], model))
    next(run)
    gc.collect()
    gc.disable()
    circle = [run]
    circle.append(circle)
    del run, circle
    gc.set_threshold(gc.get_count()[0] + later, 1000, 1000)  # so many objects from here it is collected
    gc.enable()
    if what == "read":
        cache.get_many([b"key"])
    elif (pid := os.fork()) == 0:
        os._exit(0)
    else:
        os.waitpid(pid, 0)
"""

FORK_LIMITED = (
    PAIRS
    + """
import os, sys, personainfer as pi
options = {"api_base": sys.argv[1], "prices": (1.0, 1.0), "max_concurrency": 16}
cost = pi.infer_personas(pairs(1), "fake", cache=False, **options).usage.cost
model = pi.LLM("fake", budget=30 * cost, **options)  # some of 16 calls wait for others to settle
assert not pi.infer_personas(pairs(16), model).errors
pid = os.fork()
if pid == 0:
    rows = [{**pair, "prompt": "Child " + pair["prompt"]} for pair in pairs(8)]
    table = pi.infer_personas(rows, model)
    print([row.error for row in table.errors], flush=True)
    os._exit(1 if table.errors else 0)
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
"""
)

FORK_CACHE = (
    PAIRS
    + """
import gc, os, sys, personainfer as pi
base, folder = sys.argv[1:]
model = pi.LLM("fake", api_base=base, cache_dir=folder)
pi.infer_personas(pairs(5), model)
to_child, go = os.pipe()
ready, from_child = os.pipe()
pid = os.fork()
if pid == 0:
    pi.infer_personas(pairs(10), model)
    os.write(from_child, b"1")
    os.read(to_child, 1)
    table = pi.infer_personas(pairs(40), model)
    os._exit(1 if table.errors else 0)
os.read(ready, 1)
del model
gc.collect()
os.write(go, b"1")
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
"""
)


@pytest.mark.heavy
def test_a_forked_child_infers_as_its_parent_does() -> None:
    with FakeLLM() as server:
        out = finished(python(FORK, server.api_base))
    assert out.split() == ["60"]


@pytest.mark.heavy
def test_a_child_can_close_its_parents_run() -> None:
    with FakeLLM(latency=0.02) as server:
        finished(python(FORK_CLOSES, server.api_base))


@pytest.mark.heavy
@pytest.mark.parametrize("what", ["read", "fork"])
def test_an_abandoned_run_may_be_collected_anywhere(what: str, tmp_path: Path) -> None:
    """Its end waits for the loop, which must not wait for what the collector interrupts."""
    with FakeLLM(latency=0.01) as server:
        finished(python(COLLECTED, server.api_base, tmp_path, what))
    assert not list(tmp_path.rglob("*broken*"))


@pytest.mark.heavy
def test_a_child_forked_after_waiting_for_a_limit_can_use_the_same_llm() -> None:
    with FakeLLM(latency=0.01) as server:
        finished(python(FORK_LIMITED, server.api_base))


@pytest.mark.heavy
def test_what_a_forked_child_pays_for_outlives_its_parents_cache(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with FakeLLM() as server:
        finished(python(FORK_CACHE, server.api_base, folder))
        assert server.calls == 40
    assert pi.cache_info(folder).replies == 40


def infer_there(model: pi.LLM, rows: int) -> list[tuple[str, str]]:
    """What a spawned process does."""
    table = pi.infer_personas(pairs(rows), model)
    table.raise_for_errors()
    return personas(table)


@pytest.mark.heavy
def test_an_llm_goes_to_a_spawned_process(llm: FakeLLM) -> None:
    model = pi.LLM("fake", api_base=llm.api_base)
    mine = infer_there(model, 20)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply_async(infer_there, (model, 30)).get(timeout=60)
    assert theirs[:20] == mine
    assert llm.calls == 30  # the twenty came from the cache


@pytest.mark.heavy
def test_nothing_stays_open_after_many_runs(llm: FakeLLM) -> None:
    """Descriptors and threads do not grow with the number of calls."""

    def held() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc/self/fd to count descriptors in")
    pi.infer_personas(pairs(5), "fake", api_base=llm.api_base)
    until(lambda: llm.in_flight == 0)
    files, threads = held()
    for count in range(12):
        pi.infer_personas(pairs(6 + count), "fake", api_base=llm.api_base)
    assert held()[1] <= threads
    until(lambda: held()[0] <= files + 3)
