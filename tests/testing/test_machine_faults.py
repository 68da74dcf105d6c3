"""The faults of machines that tests can have: they are what they say, and personainfer bears them."""

from __future__ import annotations

import importlib
import platform
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.evaluation.human import write_rating_sheet
from personainfer.exceptions import CacheError
from personainfer.local.cache import ReplyCache, default_cache_dir
from personainfer.testing import (
    FakeLLM,
    Fault,
    clock_jump,
    full_disk,
    killed_at_write,
    locked_database,
)

from ..builders import pairs, table

watched = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="only Linux tells what a process writes",
)


def write_two_files(folder: Path) -> str:
    (folder / "a").write_text("one")
    (folder / "b").write_text("two")
    (folder / "b").rename(folder / "c")
    return "done"


@pytest.mark.heavy
@watched
def test_a_process_is_killed_just_before_its_kth_write(place: Path) -> None:
    whole = killed_at_write(lambda: write_two_files(place), place)
    assert (whole.killed, whole.value, whole.error) == (False, "done", "")
    assert whole.writes == ("openat a", "write a", "openat b", "write b", "rename c")
    for at in count(1):
        for path in place.iterdir():
            path.unlink()
        run = killed_at_write(lambda: write_two_files(place), place, at)
        if not run.killed:
            break
        assert run.writes == whole.writes[:at]
        found = {path.name: path.read_text() for path in place.iterdir()}
        assert (
            found
            == [
                {},
                {"a": ""},
                {"a": "one"},
                {"a": "one", "b": ""},
                {"a": "one", "b": "two"},
            ][at - 1]
        )
    assert at == 6


@pytest.mark.heavy
@watched
def test_writes_by_a_link_are_those_of_the_folder_that_it_leads_to(place: Path) -> None:
    inside, link = place / "inside", place / "link"
    inside.mkdir()
    link.symlink_to(inside)
    for folder in (inside, link):
        run = killed_at_write(lambda: write_two_files(link), folder)
        assert run.writes == ("openat a", "write a", "openat b", "write b", "rename c")
    (inside / "out").symlink_to(place)
    assert killed_at_write(lambda: write_two_files(inside / "out"), inside).writes == ()


@pytest.mark.heavy
@watched
def test_what_a_watched_process_raises_is_told(place: Path) -> None:
    run = killed_at_write(lambda: 1 / 0, place)
    assert "ZeroDivisionError" in run.error
    large = killed_at_write(lambda: "x" * 10_000_000, place)
    assert len(large.value) == 10_000_000


def test_a_full_disk_leaves_the_old_file_of_every_kind(place: Path) -> None:
    path = place / "t.parquet"
    table(2).save(path)
    old = path.read_bytes()
    with full_disk(500), pytest.raises(OSError, match="too large"):
        table(50).save(path)
    with full_disk(500), pytest.raises(OSError, match="too large"):
        pi.write_report(table(3), place / "page.html")
    with full_disk(500), pytest.raises(OSError, match="too large"):
        write_rating_sheet(table(3), place / "sheets")
    with full_disk(500), pytest.raises(OSError, match="too large"):
        pi.export_personas(table(30), place / "out", format="trl-sft")
    ReplyCache(default_cache_dir())  # SQLite's own files are larger than 500 bytes
    with full_disk(150_000), pytest.raises(OSError, match="too large"):
        pi.submit_batch(pairs(1000), "fake", place / "batch", api_base="http://127.0.0.1:9/v1")
    assert path.read_bytes() == old
    assert not [file for file in place.rglob("*") if file.is_file() and file != path]
    assert len(pi.PersonaTable.load(path)) == 2


def test_a_module_imported_on_a_full_disk_can_be_imported_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "long_module.py").write_text("words = " + repr([f"word {n}" for n in range(1000)]))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for _ in range(2):
        with full_disk(500):
            assert len(importlib.import_module("long_module").words) == 1000
        del sys.modules["long_module"]


def test_replies_that_a_full_disk_does_not_take_are_an_error_and_the_next_run_goes_on(
    llm: FakeLLM, place: Path
) -> None:
    options: dict[str, Any] = {"api_base": llm.api_base, "cache_dir": place}
    pi.infer_personas(pairs(2), "fake", **options)
    with full_disk(20_000), pytest.raises(CacheError, match="failed"):
        pi.infer_personas(pairs(60), "fake", **options)
    found = pi.infer_personas(pairs(60), "fake", **options)
    assert not found.errors


@pytest.mark.heavy
def test_a_lock_that_ends_in_time_is_waited_for(llm: FakeLLM, place: Path) -> None:
    pi.infer_personas(pairs(1), "fake", api_base=llm.api_base, cache_dir=place)
    cache = ReplyCache(place)
    with locked_database(place / "cache.db"), pytest.raises(CacheError, match="locked"):
        cache.set_many([(b"k" * 32, "{}")], model="m", patience=0.1)
    assert not pi.infer_personas(pairs(3), "fake", api_base=llm.api_base, cache_dir=place).errors


@pytest.mark.heavy
@pytest.mark.parametrize("seconds", [-10 * 365 * 86_400.0, -3600.0, 3600.0, 10 * 365 * 86_400.0])
def test_a_clock_that_jumps_costs_nothing(seconds: float) -> None:
    before = time.time()
    waits = [Fault.rate_limit("Wed, 21 Oct 2015 07:28:00 GMT"), Fault.rate_limit(0.01)]
    with FakeLLM(faults=waits) as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "rpm": 6000, "tpm": 10_000_000}
        assert not pi.infer_personas(pairs(3), "fake", **options).errors
        with clock_jump(seconds):
            assert abs(time.time() - before - seconds) < 600
            assert not pi.infer_personas(pairs(6), "fake", **options).errors
        assert not pi.infer_personas(pairs(9), "fake", **options).errors
        assert llm.calls == 9 + len(waits)
    assert abs(time.time() - before) < 600


@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted(Fault.table().keys() - {"hang"}))
def test_one_fault_of_an_endpoint_is_waited_out_or_told(name: str) -> None:
    with FakeLLM(faults=[Fault.table()[name]]) as llm:
        found = pi.infer_personas(pairs(2), "fake", api_base=llm.api_base, max_attempts=3)
    assert len(found) == 2
    assert len(found.errors) <= 1
