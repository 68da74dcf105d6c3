"""Files that are read and written."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import personainfer as pi
from personainfer.testing import FakeLLM

from .attack import PAIRS, attack, broken_if, error_of, is_ours, named, peak_memory


def _table() -> pi.PersonaTable:
    with FakeLLM() as llm:
        return pi.infer_personas(PAIRS[:3], "fake", api_base=llm.api_base)


@attack(
    9,
    "A file that is written is the old one or the new one; a report replaces a report alone.",
    "tests/local/test_atomic_files.py::test_a_full_disk_costs_no_file",
)
def write_a_report_onto_a_full_disk(folder: Path) -> str:
    table, page = _table(), folder / "page.html"
    pi.write_report(table, page)
    old = page.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # no file may be longer
    try:
        error = error_of(lambda: pi.write_report(table, page))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    now = page.read_bytes()
    broken_if(now != old, f"the old report is cut off: {len(old):,} bytes, then {len(now):,}")
    own = folder / "own.html"
    own.write_text("<p>Not a report</p>", encoding="utf-8")
    error_of(lambda: pi.write_report(table, own))
    broken_if("Not a report" not in own.read_text(encoding="utf-8"), "another page was replaced")
    return f"the old one is whole ({named(error)})"


@attack(
    16,
    "No temporary file has a name that can be foreseen.",
    "tests/local/test_atomic_files.py::test_a_link_planted_under_a_name_that_can_be_foreseen_is_not_followed",
)
def plant_a_link_under_a_temporary_name(folder: Path) -> str:
    table, victim, out = _table(), folder / "victim", folder / "out"
    out.mkdir()
    victim.write_text("precious", encoding="utf-8")
    for name in (f".rows.jsonl.{os.getpid()}.unfinished", "rows.jsonl.tmp"):
        (out / name).symlink_to(victim)
    pi.export_personas(table, out / "rows.jsonl", format="trl-dpo")
    broken_if(victim.read_text("utf-8") != "precious", "the file behind the link was overwritten")
    return "not followed"


@attack(
    17,
    "A line of gigabytes in a packed file is an error, in bounded memory.",
    "tests/data/test_hostile_files.py::test_a_line_of_a_packed_file_that_is_too_long_is_an_error",
)
def unpack_a_line_without_end(folder: Path) -> str:
    path = folder / "bomb.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(json.dumps(PAIRS[0]).encode() + b'\n{"prompt": "')
        for _ in range(300):
            file.write(b"a" * 10**6)
        file.write(b'"}\n')
    with FakeLLM() as llm:
        error = error_of(lambda: pi.infer_personas(path, "fake", api_base=llm.api_base))
    size = path.stat().st_size / 1e6
    seen = f"{size:.0f} MB that unpack to 300 MB: {peak_memory():.0f} MB in memory"
    broken_if(peak_memory() > 400, seen)
    broken_if(error is not None and not is_ours(error), named(error))
    return seen


@attack(
    18,
    "A pipe as output is an error.",
    "tests/local/test_atomic_files.py::test_what_is_no_file_is_refused_and_left_alone",
)
def write_to_a_pipe(folder: Path) -> str:
    table = _table()
    writes: dict[str, Callable[[Path], Any]] = {
        "page.html": lambda path: pi.write_report(table, path),
        "rows.jsonl": lambda path: pi.export_personas(table, path, format="trl-dpo"),
        "table.parquet": table.save,
    }
    for name in writes:
        path = folder / name
        os.mkfifo(path)
        ended: list[Exception | None] = []

        def attempt(path: Path = path, ended: list[Exception | None] = ended) -> None:
            ended.append(error_of(lambda: writes[path.name](path)))

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(10)
        broken_if(thread.is_alive(), f"{name}: it waits for a reader, for ever")
        broken_if(not path.is_fifo(), f"{name}: the pipe was replaced")
        broken_if(not is_ours(ended[0]), f"{name}: raw {named(ended[0])}")
    return "refused"


@attack(
    20,
    "A value that is nested without end costs its row.",
    "tests/data/test_hostile_files.py::test_what_is_nested_too_deep_costs_its_row",
)
def nest_a_value_deeply(folder: Path) -> str:
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    rows = [{**PAIRS[0], "about": deep}, PAIRS[1]]
    path = folder / "table.parquet"
    with FakeLLM() as llm:
        table = pi.infer_personas(rows, "fake", api_base=llm.api_base)
    error = error_of(lambda: (table.save(path), pi.PersonaTable.load(path)))
    broken_if(error is not None, f"saved, and cannot be read: raw {named(error)}")
    errors = [row.error is not None for row in pi.PersonaTable.load(path)]
    broken_if(errors != [True, False], f"rows with errors: {errors}")
    return "one row's error"
