"""The cache of replies: who may read it, what becomes of it, and what waits for it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import warnings
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import diskcache

import personainfer as pi
from personainfer.testing import FakeLLM

from .attack import PAIRS, attack, broken_if, error_of, internal, is_ours, named

CACHE = ("local.cache", "llm.cache", "cache")  # where the module is, and where it was
DATABASE = ("local.database_checks", *CACHE)
_PAGE = 4096  # bytes of a page of SQLite's, whose first one says what it holds
_LEAF_OF_A_TABLE = 0x0D


def _fill(folder: Path, llm: FakeLLM, pairs: list[dict[str, str]] | None = None) -> pi.PersonaTable:
    pairs = PAIRS[:3] if pairs is None else pairs
    return pi.infer_personas(pairs, "fake", api_base=llm.api_base, cache_dir=folder)


def _wait_briefly() -> None:
    """Make all trees wait half a second for a locked database, not a minute."""
    for module in (internal(DATABASE), internal(CACHE)):
        for name, seconds in {"BUSY_STEP": 0.1, "BUSY_TIMEOUT": 0.5}.items():
            for known in {name, f"_{name}"} & set(vars(module)):
                setattr(module, known, seconds)
    with suppress(ModuleNotFoundError):
        internal(["llm.workers"])._LOCKED_PATIENCE = 0.5


@attack(
    7,
    "A run on a cache that is locked ends with an error, and other runs go on.",
    "tests/local/test_cache.py::test_a_run_on_a_locked_cache_ends_with_an_error_and_others_go_on",
)
def lock_the_cache(folder: Path) -> str:
    _wait_briefly()
    with FakeLLM() as llm:
        model = pi.LLM("fake", api_base=llm.api_base, cache_dir=folder)
        with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ended: list[Exception | None] = []
            run = threading.Thread(
                target=lambda: ended.append(error_of(lambda: pi.infer_personas(PAIRS[:3], model))),
                daemon=True,
            )
            run.start()
            run.join(5)
            beside = threading.Thread(target=lambda: _fill(folder / "other", llm), daemon=True)
            beside.start()
            beside.join(5)
            hung = "; another run hangs too" if beside.is_alive() else ""
            broken_if(run.is_alive(), f"it waits for ever: 10 s after a deadline of 0.5 s{hung}")
            broken_if(hung, hung)
    broken_if(not is_ours(ended[0]), named(ended[0]))
    return named(ended[0])


@attack(
    12,
    "The cache is open to its owner only.",
    "tests/local/test_cache.py::test_only_the_owner_can_read_the_replies",
)
def read_the_replies_of_another_user(folder: Path) -> str:
    os.umask(0o022)
    with FakeLLM() as llm:
        _fill(folder / "cache", llm)
    modes = [path.stat().st_mode & 0o777 for path in (folder / "cache", folder / "cache/cache.db")]
    seen = ", ".join(f"{mode:04o}" for mode in modes)
    broken_if(any(mode & 0o077 for mode in modes), seen)
    return seen


@attack(
    13,
    "The database of another program is refused, and left as it is.",
    "tests/local/test_cache.py::test_the_cache_of_another_program_is_left_as_it_is",
)
def name_the_database_of_another_program(folder: Path) -> str:
    with diskcache.Cache(str(folder)) as theirs:
        theirs["key"] = "value"
    with FakeLLM() as llm:
        error = error_of(lambda: _fill(folder, llm))
    moved = [path.name for path in folder.glob("*broken*")]
    broken_if(moved, f"it was renamed to {', '.join(moved)}")
    with diskcache.Cache(str(folder)) as theirs:
        broken_if(theirs["key"] != "value", "it was changed")
    broken_if(not is_ours(error), named(error))
    return "refused"


@attack(
    14,
    "Clearing gives the disk its space back; pruning deletes the oldest.",
    "tests/local/test_cache.py::test_clearing_gives_the_disk_its_space_back",
)
def clear_the_cache(folder: Path) -> str:
    cache = internal(CACHE)
    own = cache.ReplyCache(folder)
    own.set_many([(b"%d" % n, "x" * 10_000) for n in range(200)], model="m")
    own.close()
    before = pi.cache_info(folder).bytes
    pi.clear_cache(cache_dir=folder)
    after = pi.cache_info(folder).bytes
    seen = f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
    broken_if(after > before / 2, seen)
    broken_if(not hasattr(own, "prune"), f"{seen}; nothing prunes")
    return seen


@attack(
    15,
    "Clearing a cache that is locked is an error of this library.",
    "tests/local/test_cache.py::test_a_cache_that_stays_locked_is_an_error",
)
def clear_a_locked_cache(folder: Path) -> str:
    _wait_briefly()
    cache = internal(CACHE)
    own = cache.ReplyCache(folder)
    own.set_many([(b"1", "x")], model="m")
    with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        error = error_of(own.clear)
    broken_if(not is_ours(error), f"raw {named(error)}")
    return named(error)


@attack(
    22,
    "A damaged cache loses the replies on the bad pages alone.",
    "tests/local/test_cache.py::test_of_a_cache_with_a_bad_page_the_other_replies_are_kept",
)
def spoil_a_page_of_the_cache(folder: Path) -> str:
    with FakeLLM() as llm:
        _fill(folder, llm, PAIRS)
        path = folder / "cache.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        whole = bytearray(path.read_bytes())
        leaves = [n for n in range(0, len(whole), _PAGE) if whole[n] == _LEAF_OF_A_TABLE]
        middle = leaves[len(leaves) // 2]
        whole[middle : middle + _PAGE] = b"\xff" * _PAGE
        path.write_bytes(whole)
        paid = llm.calls
        for _ in range(3):
            if error_of(lambda: _fill(folder, llm, PAIRS)) is None:
                break
        again = llm.calls - paid
    seen = f"{again} of {len(PAIRS)} replies were paid again"
    broken_if(again > len(PAIRS) / 4, seen)
    return seen


@attack(
    23,
    "A cache that is deleted during a run is an error.",
    "tests/local/test_cache.py::test_a_cache_that_is_deleted_during_a_run_is_an_error",
)
def delete_the_cache_during_a_run(folder: Path) -> str:
    cache = folder / "cache"
    replies = count()

    def reply(body: dict[str, Any]) -> None:
        if next(replies) == 100:
            shutil.rmtree(cache, ignore_errors=True)

    with FakeLLM(reply=reply, latency=0.01) as llm:
        error = error_of(lambda: _fill(cache, llm, PAIRS))
        broken_if(error is None, "no error: the rows are there, their replies are lost")
    broken_if(not is_ours(error), named(error))
    return named(error)


@attack(
    24,
    "A cache that others may write to is read, with a warning, and never written.",
    "tests/local/test_cache.py::test_a_cache_that_others_may_write_to_is_read_and_never_written",
)
def use_a_cache_that_others_may_write_to(folder: Path) -> str:
    with FakeLLM() as llm:
        _fill(folder, llm)
        (folder / "cache.db").chmod(0o666)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _fill(folder, llm, PAIRS[10:13])
            kept = pi.cache_info(folder).replies
    warned = any("others may write" in str(one.message) for one in said)
    broken_if(not warned or kept > 3, f"{kept - 3} replies were added, warned: {warned}")
    return "a warning, nothing written"
