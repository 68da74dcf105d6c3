"""collect_batch where a batch is done, and the provider has more of it, less, or nothing that fits."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.batch import request_files
from personainfer.batch.job_folder import PersonaBatch
from personainfer.exceptions import BatchPendingError, DataError, InvalidArgumentError
from personainfer.testing import FakeLLM, clock_jump

from ..batch_server import ASK, FETCH, LOOK, Batch, BatchServer
from ..builders import collect, pairs, submit

pytestmark = pytest.mark.heavy  # several servers

Patch = pytest.MonkeyPatch


def tell(provider: BatchServer, monkeypatch: Patch, change: Callable[[Any], Any]) -> None:
    """Have a provider tell other things of batches that have ended, of which it tells a dict."""
    shown = provider._shown

    def told(batch: Batch) -> Any:
        return change(shown(batch)) if batch.ran else shown(batch)

    monkeypatch.setattr(provider, "_shown", told)


def are_good(table: pi.PersonaTable) -> list[bool]:
    return [row.error is None for row in table]


@pytest.fixture
def short(provider: BatchServer, place: Path, monkeypatch: Patch) -> pi.PersonaTable:
    """The table of a batch in `place / "b"` whose file of replies lacked the last one of three."""
    counts = {"request_counts": {"total": 3, "completed": 3, "failed": 0}}
    tell(provider, monkeypatch, lambda said: said | counts)
    provider.edit = lambda lines: lines[:2]
    return collect(submit(provider, pairs(3), place / "b", cache=False))


def without_a_name(said: Any) -> Any:
    """An answer of a provider that names no file of errors."""
    return {name: value for name, value in said.items() if name != "error_file_id"}


@pytest.fixture
def unnamed(provider: BatchServer, place: Path, monkeypatch: Patch) -> pi.PersonaTable:
    """The table of a batch in `place / "b"` whose file of errors was not named; one of three failed."""
    provider.refuse = lambda body: "Question 1?" in json.dumps(body)
    with monkeypatch.context() as patched:
        tell(provider, patched, without_a_name)
        return collect(submit(provider, pairs(3), place / "b", patience=0.01))


@pytest.mark.parametrize("lines", [[], [0], [1, 1], [1, 2, 2]], ids=str)
def test_a_file_that_comes_shorter_replaces_no_replies(
    lines: list[int], short: pi.PersonaTable, provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    replies = place / "b" / "output-0000.jsonl"
    had = replies.read_bytes()
    served = [*had.splitlines(), b'{"custom_id": "ab", "response": {"status_code": 200}}']
    body = b"".join(served[number] + b"\n" for number in lines)
    for name in [name for name in provider.files if name.startswith("file-9")]:
        provider.files[name] = body
    monkeypatch.setattr(provider, "_kept", lambda *_: "file-9000")
    again = collect(place / "b")
    assert are_good(short) == are_good(again) == [True, True, False]
    assert (again.usage, replies.read_bytes()) == (short.usage, had)
    shutil.copytree(place / "b", place / "copy", ignore=shutil.ignore_patterns("replies"))
    assert are_good(collect(place / "copy")) == [True, True, False]


def test_a_clock_that_is_set_back_keeps_no_batch_waiting(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """The provider names no file of replies, and the clock was years ahead when it ended."""
    counts = {"request_counts": {"total": 3, "completed": 3, "failed": 0}, "output_file_id": None}
    tell(provider, monkeypatch, lambda said: said | counts)
    provider.statuses = ["in_progress", "completed"]
    batch = submit(provider, pairs(3), place / "b")
    for seconds in (1e8, 0):
        with clock_jump(seconds), pytest.raises(BatchPendingError):
            collect(batch, wait=False)
    with clock_jump(601):
        assert are_good(collect(batch, wait=False)) == [False] * 3


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_part_that_ended_early_is_looked_at_again_when_the_last_one_ends(
    asked_before: bool, provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 2)
    counts = {"request_counts": {"total": 2, "completed": 2, "failed": 0}}
    tell(provider, monkeypatch, lambda said: said | counts)
    batch = submit(provider, pairs(4), place / "b", cache=False)
    first, last = (provider.batches[str(part.batch_id)] for part in batch.parts)
    first.statuses, last.statuses = ["completed"], ["in_progress"] * 9 + ["completed"]
    whole: list[bytes] = []

    def cut(lines: list[bytes]) -> list[bytes]:
        whole.extend(lines)
        return lines if last.ran else lines[:1]

    def looked(one: Batch, look: Callable[[Batch], Any] = provider._look) -> Any:
        if one is last and len(one.statuses) < 5:  # by now the first part's file is whole
            first.output = whole[:2]
            provider._kept(first, "output", first.output)
        return look(one)

    provider.edit = cut
    monkeypatch.setattr(provider, "_look", looked)
    if asked_before:
        with pytest.raises(BatchPendingError):
            collect(batch, wait=False)
        last.statuses = ["completed"]
    assert are_good(collect(batch, ask_missing=True)) == [True] * 4
    assert provider.count(ASK) == 0


def test_what_is_paid_again_waits_for_who_holds_the_folder(
    short: pi.PersonaTable, provider: BatchServer, place: Path
) -> None:
    from filelock import FileLock

    with FileLock(place / "b" / "lock"):
        assert are_good(collect(place / "b")) == [True, True, False]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("personainfer.batch.job_folder._LOCK_PATIENCE", 0.1)
            with pytest.raises(BatchPendingError):
                collect(place / "b", model="fake", ask_missing=True)
        with pytest.raises(BatchPendingError):
            collect(place / "b", model="fake", ask_missing=True, timeout=0.1)
    assert provider.count(ASK) == 0
    assert are_good(short) == [True, True, False]


def test_a_time_limit_holds_for_the_folder_of_a_batch_that_is_not_done(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    from filelock import FileLock

    provider.statuses = ["in_progress"]
    batch = submit(provider, pairs(1), place / "b")
    monkeypatch.setattr("personainfer.batch.job_folder._LOCK_PATIENCE", 20.0)
    since = time.monotonic()
    with FileLock(place / "b" / "lock"), pytest.raises(BatchPendingError):
        collect(batch, timeout=0.1)
    assert time.monotonic() - since < 10


@pytest.mark.parametrize("lines", [0, 1])
def test_a_bad_answer_long_after_the_end_is_not_the_last_word_on_a_short_file(
    lines: int, provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """A web page of a gateway, or a file that has lost a line."""
    counts = {"request_counts": {"total": 3, "completed": 3, "failed": 0}}
    tell(provider, monkeypatch, lambda said: said | counts)
    whole: list[bytes] = []

    def cut(all_lines: list[bytes]) -> list[bytes]:
        whole.extend(all_lines)
        return all_lines[:2]

    provider.edit = cut
    batch = submit(provider, pairs(3), place / "b", cache=False)
    assert are_good(collect(batch)) == [True, True, False]
    [sent] = provider.batches.values()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    provider.faults = [(FETCH, b"".join(whole[:lines]) or b"<html>back soon</html>")]
    assert are_good(collect(batch)) == [True, True, False]
    sent.output = whole
    assert are_good(collect(batch, ask_missing=True)) == [True] * 3
    assert provider.count(ASK) == 0


def test_a_short_file_is_fetched_again_once_a_collect_and_no_more_at_the_end(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 2)
    counts = {"request_counts": {"total": 2, "completed": 2, "failed": 0}}
    tell(provider, monkeypatch, lambda said: said | counts)
    provider.edit = lambda lines: lines[:1]
    batch = submit(provider, pairs(4), place / "b")
    slow = provider.batches[str(batch.parts[1].batch_id)]
    slow.statuses = ["in_progress"] * 9 + ["completed"]
    collect(batch)  # each file once, and again when the last part has ended
    assert provider.count(FETCH) == 4
    collect(batch)
    assert provider.count(FETCH) == 6
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    collect(batch)
    assert provider.count(FETCH) == 8
    calls = list(provider.calls)
    collect(batch)
    assert provider.calls == calls


@pytest.mark.parametrize(
    "said",
    [
        *({"status": status} for status in ("archived", "deleted", "in_progress", None)),
        {"request_counts": {"total": 3, "completed": 0, "failed": 0}},
        {"status": "failed", "request_counts": None},
    ],
    ids=str,
)
def test_a_batch_that_has_ended_does_not_begin_anew(
    said: Any,
    unnamed: pi.PersonaTable,
    provider: BatchServer,
    place: Path,
    monkeypatch: Patch,
) -> None:
    """Whatever the provider says of it later: the replies are in the folder."""
    handle = (place / "b" / "batch.json").read_bytes()
    tell(provider, monkeypatch, lambda shown: without_a_name(shown) | said)
    for options in ({"wait": False}, {"timeout": 2.0}):
        assert list(collect(place / "b", **options)) == list(unnamed)
    assert provider.count(LOOK) > 2
    assert (place / "b" / "batch.json").read_bytes() == handle


def test_a_file_of_errors_that_is_named_later_and_is_gone_costs_nothing(
    unnamed: pi.PersonaTable, provider: BatchServer, place: Path
) -> None:
    provider.faults = [(FETCH, 404), (FETCH, 400), (FETCH, b"<html>sorry</html>"), (FETCH, 500)]
    for _ in range(4):
        assert list(collect(place / "b")) == list(unnamed)
    assert not provider.faults
    assert "scripted refusal" in str(collect(place / "b")[1].error)


def test_a_batch_that_is_done_is_collected_where_its_folder_cannot_be_written(
    unnamed: pi.PersonaTable, provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr("fcntl.flock", refused)
        assert list(collect(place / "b")) == list(unnamed)
    with monkeypatch.context() as patched:
        patched.setattr("personainfer.batch.job_folder.write_file", refused)
        assert [row.chosen for row in collect(place / "b")] == [row.chosen for row in unnamed]


def test_no_more_parts_are_asked_about_when_the_time_is_over(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 1)
    provider.spare = True
    tell(provider, monkeypatch, lambda said: said)
    batch = submit(provider, pairs(3), place / "b")
    collect(batch)
    looks, answered = provider.count(LOOK), provider._answer

    def slowly(call: str, *rest: Any) -> tuple[int, bytes]:
        time.sleep(0.3 * (call == LOOK))
        return answered(call, *rest)

    monkeypatch.setattr(provider, "_answer", slowly)
    collect(batch, timeout=0.2).raise_for_errors()
    assert provider.count(LOOK) == looks + 1


def test_errors_in_the_file_of_replies_hide_no_lost_reply(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    provider.refuse = lambda body: "Question 1?" in json.dumps(body)
    ran, whole = provider._run, list[bytes]()

    def joined(batch: Batch) -> None:
        ran(batch)
        whole.extend(batch.output + batch.errors)
        batch.output, batch.errors = whole[1:], []

    monkeypatch.setattr(provider, "_run", joined)
    counts = {"request_counts": {"total": 4, "completed": 3, "failed": 1}}
    tell(provider, monkeypatch, lambda said: said | counts)
    batch = submit(provider, pairs(4), place / "b", prices=(1.0, 1000.0))
    early = collect(batch)
    assert are_good(early) == [False, False, True, True]
    next(iter(provider.batches.values())).output = whole
    late = collect(batch)
    assert are_good(late) == [True, False, True, True]
    assert early.usage.calls == late.usage.calls == 4
    assert (early.usage.cost or 0) > (late.usage.cost or 9)


def test_by_other_prices_single_calls_leave_what_the_submitter_reserved(
    provider: BatchServer, place: Path
) -> None:
    prices: dict[str, Any] = {"prices": (100.0, 1000.0)}
    llm = pi.LLM("fake", api_base=provider.api_base, budget=100.0, **prices)
    provider.edit = lambda lines: lines[:4]
    batch = pi.submit_batch(pairs(5), llm, place / "b")
    budget = llm.account.bounds.budget
    assert budget is not None
    reserved = budget.spent
    table = collect(batch, ask_missing=True, prices=(0.0, 0.001))
    table.raise_for_errors()
    assert provider.count(ASK) == 1
    assert reserved > 1
    assert 0 < budget.spent - reserved < 1e-5
    singly = PersonaBatch.load(place / "b").asked_singly
    assert budget.spent - reserved == pytest.approx(singly, rel=1e-3)  # once
    told = collect(batch, **prices).usage.cost or 0
    assert budget.spent == pytest.approx(told, abs=1e-5)
    assert told < reserved


# Caches that keep nothing


@pytest.mark.filterwarnings("ignore:others may write")
@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("ask", [False, True])
def test_a_cache_that_is_only_read_loses_no_reply_of_a_batch(
    when: str, ask: bool, provider: BatchServer, place: Path
) -> None:
    """What it has is still read."""
    mine: dict[str, Any] = {"api_base": provider.api_base, "cache_dir": place / "cache"}
    pi.infer_personas([pairs(6)[5]], "fake", **mine)
    database = place / "cache" / "cache.db"
    database.chmod(0o666 if when == "before" else 0o600)
    batch = submit(provider, pairs(6), place / "b", cache_dir=place / "cache")
    database.chmod(0o666)
    asked = provider.count(ASK)
    for _ in range(2):
        table = collect(batch, ask_missing=ask)
        table.raise_for_errors()
        assert table.usage.calls == 5
    assert provider.count(ASK) == asked
    assert pi.cache_info(place / "cache").replies == 1


@pytest.mark.filterwarnings("ignore:others may write")
def test_nor_does_a_folder_that_was_opened_to_others(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 2)
    provider.edit = lambda lines: lines[:1]
    batch = submit(provider, pairs(4), place / "b")
    second = provider.batches[str(batch.parts[1].batch_id)]
    second.statuses = ["in_progress", "in_progress", "completed"]
    with pytest.raises(BatchPendingError):
        collect(place / "b", wait=False, cache_dir=place / "mine")
    mine: dict[str, Any] = {"ask_missing": True, "model": "fake", "cache_dir": place / "mine"}
    for folder, _, names in os.walk(place / "b"):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            os.chmod(path, 0o777)
    collect(place / "b", **mine).raise_for_errors()
    assert provider.count(ASK) == 2


# Folders of strangers


class _Chooser:
    def explains(self, _: object, personas: Sequence[object]) -> list[float]:
        return [1.0] * len(personas)


@pytest.mark.parametrize(
    ("name", "value"),
    [("candidates", 10**9), ("candidates", -3), ("sides", ["chosen"] * 3), ("sides", [])],
)
def test_a_folder_asks_for_no_more_than_an_option_could(
    name: str, value: Any, provider: BatchServer, place: Path
) -> None:
    submit(provider, pairs(2), place / "b")
    handle = place / "b" / "batch.json"
    handle.write_text(json.dumps(json.loads(handle.read_text()) | {name: value}))
    with pytest.raises(DataError, match="is not the handle of a batch"):
        collect(place / "b", select=_Chooser(), api_base=provider.api_base)


def test_a_batch_has_at_most_a_thousand_candidates(llm: FakeLLM, place: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="at most 1,000") as caught:
        pi.submit_batch(pairs(1), "m", place / "b", api_base=llm.api_base, candidates=1001)
    assert caught.value.argument == "candidates"
    assert not (place / "b").exists()
