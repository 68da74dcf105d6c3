"""Rows to a file as they come: infer_personas(output=…), and columns whose types change on the way."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as dt_time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.data import table_writer as writing
from personainfer.data.arrow_columns import is_json
from personainfer.data.own_columns import own_columns
from personainfer.data.table_writer import write_table
from personainfer.exceptions import InvalidArgumentError
from personainfer.records import PersonaRow, Preference, Usage
from personainfer.testing import FakeLLM, Fault

from ..builders import examples, pairs

OURS = ["chosen_persona", "rejected_persona", "persona_error", "personainfer"]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few rows make several row groups."""
    monkeypatch.setattr(writing, "GROUP_ROWS", 4)


def rows(columns: list[dict[str, Any]]) -> list[PersonaRow]:
    pair = Preference(prompt="q", chosen="a", rejected="b")
    return [PersonaRow(i, pair, error="none yet", columns=own) for i, own in enumerate(columns)]


def written(columns: list[dict[str, Any]], path: Path) -> pa.Table:
    """The user's columns as they come back from a file."""
    write_table(path, enumerate(rows(columns)), own_columns(None), lambda: (Usage(), {}))
    assert [row.index for row in pi.PersonaTable.load(path)] == list(range(len(columns)))
    table = pq.read_table(path)
    assert table.column_names[-4:] == OURS
    return table.drop_columns(OURS)


def values(table: pa.Table, name: str) -> list[Any]:
    found = table.column(name).to_pylist()
    return [json.loads(str(text)) for text in found] if is_json(table.schema.field(name)) else found


# Columns whose type changes from one row group to another

MANY = [None] * 4
DRIFTS: dict[str, tuple[list[Any], pa.DataType | str]] = {
    "whole numbers, then fractions": ([1] * 4 + [2.5], pa.float64()),
    "fractions, then whole numbers": ([2.5] * 4 + [1], pa.float64()),
    "a whole number that no float holds": ([2**53 + 1] * 4 + [0.5], "json"),
    "numbers, then text": ([1, 2, 3, 4, "five"], "json"),
    "text, then numbers": ([*"abcd", 5], "json"),
    "text, then numbers, then text": ([*"abcd", 5, 6, 7, 8, "nine"], "json"),
    "nothing, then text": ([*MANY, "late"], pa.string()),
    "text, then nothing": ([*"abcd", *MANY], pa.string()),
    "nothing at all": (MANY * 2, pa.null()),
    "yes or no, then numbers": ([True] * 4 + [1], "json"),
    "a number beyond 64 bits": ([1] * 4 + [2**70], "json"),
    "empty lists, then lists of numbers": ([[]] * 4 + [[1, 2]], pa.list_(pa.int64())),
    "lists of numbers, then of text": ([[1]] * 4 + [["x"]], "json"),
    "dicts whose keys differ": (
        [{"a": 1}] * 4 + [{"b": "x"}],
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
    ),
    "dicts whose values differ": ([{"a": 1, "c": None}] * 4 + [{"a": "x"}], "json"),
    "empty dicts": ([{}] * 8, "json"),
    "empty dicts, then full ones": ([{}] * 4 + [{"a": 1}], "json"),
    "half of a surrogate pair": ([*"abcd", "\ud83d"], pa.string()),
    "mixed from the start": ([1, "two", 3, 4, 5], "json"),
}


@pytest.mark.heavy
@pytest.mark.parametrize(("given", "kind"), DRIFTS.values(), ids=DRIFTS)
def test_a_column_whose_type_changes_is_written_all_the_same(
    given: list[Any], kind: pa.DataType | str, tmp_path: Path
) -> None:
    table = written(
        [{"fixed": n, "x": value} for n, value in enumerate(given)], tmp_path / "t.parquet"
    )
    field = table.schema.field("x")
    assert "json" if is_json(field) else field.type == kind
    assert is_json(field) == (kind == "json")
    assert [plain(value) for value in values(table, "x")] == [plain(value) for value in given]
    assert table["fixed"].to_pylist() == list(range(len(given)))
    assert table.schema.field("fixed").type == pa.int64()
    assert os.listdir(tmp_path) == ["t.parquet"]


def plain(value: Any) -> Any:
    """What a value and its way through Arrow have in common: a field that is not there is null."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
names = st.sampled_from(["a", "b", "a.b", "", "\ud800", "c d"])


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(names, json_values, max_size=4), max_size=20))
@example([{}, {}, {}, {"b": {"0": None}}, {"a": None, "b": {"": [None, None]}}])
def test_no_columns_of_json_values_fail_a_run_or_lose_a_value(
    tmp_path: Path, columns: list[dict[str, Any]]
) -> None:
    table = written(columns, tmp_path / "t.parquet")
    assert table.num_rows == len(columns) or not table.num_columns
    for name in dict.fromkeys(name for own in columns for name in own):
        found = values(table, plain(name))
        assert [plain(value) for value in found] == [plain(own.get(name)) for own in columns]


class Odd:
    """An object that no format knows, and that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("not printable")


def test_objects_that_no_format_knows_cost_no_row(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    odd: list[Any] = [Odd(), circle, {(1, 2): 3}, 10**5000, object, 1 + 2j, b"\xff", {1: 2}]
    table = written([{"x": value, "n": n} for n, value in enumerate(odd)], tmp_path / "t.parquet")
    assert table["n"].to_pylist() == list(range(len(odd)))
    texts = values(table, "x")
    assert texts[0] == "<Odd>"
    assert texts[2] == {"(1, 2)": 3}
    assert texts[5] == "(1+2j)"


def test_columns_come_in_the_order_in_which_they_first_came(tmp_path: Path) -> None:
    late = [{"b": 1}] * 4 + [{"a": 2, "b": 1}] * 4 + [{"c": "x"}]
    table = written(late, tmp_path / "t.parquet")
    assert table.column_names == ["b", "a", "c"]
    assert table["a"].to_pylist() == [*MANY, 2, 2, 2, 2, None]


def test_a_group_is_written_when_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 1000)
    monkeypatch.setattr(writing, "GROUP_BYTES", 10_000)
    written([{"x": "y" * 4_000}] * 9, tmp_path / "t.parquet")
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3


# infer_personas(output=…)


def jsonl(data: list[dict[str, str]], folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return path


def parquet(data: list[dict[str, str]], folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(data), folder / "data.parquet")
    return folder / "data.parquet"


Maker = Callable[[list[dict[str, str]], Path], Any]
KINDS: dict[str, Maker] = {
    "dicts": lambda data, folder: data,
    "generator": lambda data, folder: (row for row in data),
    "tuples": lambda data, folder: [
        (row["prompt"], row["chosen"], row["rejected"]) for row in data
    ],
    "jsonl": jsonl,
    "parquet": parquet,
    "pandas": lambda data, folder: pd.DataFrame(data, index=[f"i{n}" for n in range(len(data))]),
    "polars": lambda data, folder: pl.DataFrame(data),
    "arrow": lambda data, folder: pa.Table.from_pylist(data),
    "hf": lambda data, folder: datasets.Dataset.from_list(data),
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.mark.heavy
@kinds
def test_the_file_is_what_save_would_have_written(
    make: Maker, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    data = pairs(11)
    data[5]["rejected"] = ""
    kept = pi.infer_personas(make(data, tmp_path), **endpoint)
    saved = pq.read_table(kept.save(tmp_path / "saved.parquet"))
    output = tmp_path / "output.parquet"
    table = pi.infer_personas(make(data, tmp_path), output=output, **endpoint)
    found = pq.read_table(output)
    assert found.equals(saved)
    assert found.column_names[-4:] == OURS
    assert pq.ParquetFile(output).num_row_groups == 3
    loaded = pi.PersonaTable.load(output)
    for other in (table, loaded):
        assert [row.error for row in other] == [row.error for row in kept]
        assert [(r.preference, r.chosen, r.rejected) for r in other] == [
            (r.preference, r.chosen, r.rejected) for r in kept
        ]
        assert other.to_arrow().to_pylist() == kept.to_arrow().to_pylist()
        assert other.usage == table.usage
        assert other.settings == kept.settings
    pd.testing.assert_frame_equal(table.to_pandas(), kept.to_pandas(), check_dtype=False)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.heavy
@kinds
def test_rows_that_are_dropped_are_not_in_the_file(
    make: Maker, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    data = pairs(11)
    for place in (0, 5, 6, 10):
        data[place]["rejected"] = ""
    output = tmp_path / "output.parquet"
    table = pi.infer_personas(make(data, tmp_path), output=output, on_error="drop", **endpoint)
    left = [1, 2, 3, 4, 7, 8, 9]
    for other in (table, pi.PersonaTable.load(output)):
        assert [row.index for row in other] == left
        assert other.to_polars()["prompt"].to_list() == [f"Question {n}?" for n in left]
        assert other.settings["dropped"] == 4
    if isinstance(data := make(pairs(11), tmp_path), pd.DataFrame):
        assert list(table.to_pandas().index) == [data.index[n] for n in left]
        assert list(pd.read_parquet(output).index) == [data.index[n] for n in left]


def test_a_counting_index_keeps_its_gaps(endpoint: dict[str, Any], tmp_path: Path) -> None:
    frame = pd.DataFrame(pairs(6))
    frame.loc[2, "chosen"] = ""
    output = tmp_path / "output.parquet"
    pi.infer_personas(frame, output=output, on_error="drop", **endpoint)
    assert list(pd.read_parquet(output).index) == [0, 1, 3, 4, 5]


def test_a_frame_keeps_its_types_in_the_file(endpoint: dict[str, Any], tmp_path: Path) -> None:
    odd: Any = [1, "two", None] * 3
    frame = pd.DataFrame(pairs(9)).assign(
        kind=pd.Categorical(["a", "b", "c"] * 3),
        when=pd.date_range("2026-01-01", periods=9, tz="Europe/Berlin"),
        small=pd.Series([1, 2, 3] * 3, dtype="Int8").where(lambda x: x != 2),
        odd=odd,
    )
    pi.infer_personas(frame, output=tmp_path / "t.parquet", **endpoint)
    back = pd.read_parquet(tmp_path / "t.parquet")
    same = ["prompt", "kind", "when", "small"]
    pd.testing.assert_frame_equal(back[same], frame[same])
    assert [json.loads(text) for text in back["odd"]] == frame["odd"].tolist()


def test_a_column_of_a_file_may_change_its_type(
    llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    data: list[dict[str, Any]] = [
        {**pair, "score": n, "note": None} for n, pair in enumerate(pairs(9))
    ]
    data[8] |= {"score": "high", "note": "late", "new": [1]}
    path = jsonl(data, tmp_path)
    table = pi.infer_personas(path, output=tmp_path / "t.parquet", **endpoint)
    frame = table.to_polars()
    assert [json.loads(text) for text in frame["score"]] == [*range(8), "high"]
    assert frame["note"].to_list() == [None] * 8 + ["late"]
    assert frame["new"].to_list() == [None] * 8 + [[1]]
    assert llm.calls == 9
    assert sorted(os.listdir(tmp_path)) == ["cache", "data.jsonl", "t.parquet"]


def test_no_rows_make_a_file_without_rows(endpoint: dict[str, Any], tmp_path: Path) -> None:
    inputs: list[Any] = [[], pd.DataFrame({"prompt": [], "chosen": [], "rejected": []})]
    for data in inputs:
        table = pi.infer_personas(data, output=tmp_path / "t.parquet", **endpoint)
        assert len(table) == len(pi.PersonaTable.load(tmp_path / "t.parquet")) == 0
        assert table.to_arrow().num_rows == table.to_pandas().shape[0] == 0
        assert str(table).startswith("PersonaTable(0 rows")


def test_rows_of_which_none_can_be_used_are_counted(
    endpoint: dict[str, Any], tmp_path: Path
) -> None:
    bad = [("", "a", "b")] * 9
    table = pi.infer_personas(bad, output=tmp_path / "t.parquet", **endpoint)
    assert len(table) == len(table.to_pandas()) == table.to_arrow().num_rows == 9
    assert len(table.errors) == 9


def test_a_file_of_the_users_own_is_not_replaced(tmp_path: Path) -> None:
    path, table = other_table(tmp_path), pi.PersonaTable([])
    before = path.read_bytes()
    for other in (path, tmp_path / "text.parquet"):
        other.write_bytes(before if other == path else b"notes")
        with pytest.raises(InvalidArgumentError, match=r"not a table of personas.*overwrite=True"):
            table.save(other)
    assert path.read_bytes() == before
    assert len(pi.PersonaTable.load(table.save(path, overwrite=True))) == 0
    table.save(path)  # a table takes the place of a table,
    (tmp_path / "new.parquet").touch()
    table.save(tmp_path / "new.parquet")  # and of an empty file


def other_table(folder: Path) -> Path:
    pq.write_table(pa.table({"x": [1]}), folder / "mine.parquet")
    return folder / "mine.parquet"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("t.csv", r"is not a path that ends in \.parquet"),
        ("t", r"is not a path that ends in \.parquet"),
        ("missing/t.parquet", "there is no folder"),
        ("file/t.parquet", "there is no folder"),
        ("folder.parquet", "exists and is not a table of personas"),
        ("mine.parquet", "exists and is not a table of personas"),
        ("data.parquet", "is the input"),
        ("link.parquet", "is the input"),
        ("x" * 300 + ".parquet", "cannot be used: File name too long"),
        ("nul\0.parquet", "cannot be used: embedded null"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_output_that_cannot_be_is_refused_before_any_call(
    output: str, words: str, llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.parquet").mkdir()
    other_table(tmp_path)
    data = parquet(pairs(3), tmp_path)
    (tmp_path / "link.parquet").symlink_to(data)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    path = tmp_path / output

    async def waited() -> None:
        await pi.ainfer_personas(data, output=path, **endpoint)

    with pytest.raises(InvalidArgumentError, match=words):
        pi.infer_personas(data, output=path, **endpoint)
    with pytest.raises(InvalidArgumentError, match=words):
        asyncio.run(waited())
    with pytest.raises(InvalidArgumentError, match="is not a path"):
        pi.infer_personas(data, output=7, **endpoint)  # type: ignore[arg-type]
    assert llm.calls == 0
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_refused(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        pi.infer_personas(pairs(3), output="/proc/t.parquet", **endpoint)
    assert llm.calls == 0


def test_a_stream_and_an_estimate_take_no_output(endpoint: dict[str, Any]) -> None:
    calls: list[Callable[..., object]] = [pi.iter_personas, pi.estimate_cost]
    for call in calls:
        with pytest.raises(TypeError, match=r"no option output=\. Known"):
            call(pairs(1), output="t.parquet", **endpoint)


def test_a_column_that_the_file_needs_is_refused_before_any_call(
    llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    data = [{**pair, "personainfer": 1} for pair in pairs(3)]
    for each in (data, pd.DataFrame(data)):
        with pytest.raises(InvalidArgumentError, match="column personainfer"):
            pi.infer_personas(each, output=tmp_path / "t.parquet", **endpoint)
    assert llm.calls == 0
    assert os.listdir(tmp_path) in ([], ["cache"])


def failing() -> Iterator[dict[str, str]]:
    yield from pairs(90)
    raise OSError("the disk is gone")


def interrupted() -> Iterator[dict[str, str]]:
    yield from pairs(90)
    raise KeyboardInterrupt


@pytest.mark.heavy
@pytest.mark.parametrize("source", [failing, interrupted])
def test_a_run_that_stops_leaves_the_old_file_and_nothing_else(
    source: Callable[[], Iterator[dict[str, str]]],
    llm: FakeLLM,
    endpoint: dict[str, Any],
    tmp_path: Path,
) -> None:
    output = tmp_path / "t.parquet"
    pi.infer_personas(pairs(3), output=output, **endpoint)
    before = output.read_bytes()
    with pytest.raises((OSError, KeyboardInterrupt)):
        pi.infer_personas(source(), output=output, **endpoint)
    assert output.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["cache", "t.parquet"]
    table = pi.infer_personas(pairs(90), output=output, **endpoint)
    assert len(table) == 90
    assert llm.repeats <= 64  # those that were in flight when Ctrl-C came


def test_on_error_raise_writes_nothing(tmp_path: Path) -> None:
    with (
        FakeLLM(faults=[Fault.invalid_json()]) as llm,
        pytest.raises(pi.PersonaInferError, match="row 0"),
    ):
        pi.infer_personas(
            pairs(9),
            "fake",
            api_base=llm.api_base,
            output=tmp_path / "t.parquet",
            on_error="raise",
            max_attempts=1,
            max_concurrency=1,
        )
    assert os.listdir(tmp_path) == ["cache"]


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    async def cancelled(api_base: str) -> None:
        task = asyncio.create_task(
            pi.ainfer_personas(
                pairs(500),
                "fake",
                api_base=api_base,
                max_concurrency=2,
                output=tmp_path / "t.parquet",
            )
        )
        while llm.calls < 10:  # noqa: ASYNC110 - the server counts in another thread
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while [name for name in os.listdir(tmp_path) if name != "cache"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the thread that wrote is about to notice

    with FakeLLM(latency=0.01) as llm:
        asyncio.run(asyncio.wait_for(cancelled(llm.api_base), 20))


KILLED = """
import sys, personainfer as pi
from personainfer.data import table_writer as writing
writing.GROUP_ROWS = 8
data = [("Why?", f"short {n}", f"long {n}") for n in range(int(sys.argv[3]))]
pi.infer_personas(data, "fake", api_base=sys.argv[1], output=sys.argv[2], max_concurrency=4)
"""


@pytest.mark.heavy
def test_a_run_that_is_killed_leaves_no_file_of_that_name_and_costs_nothing_again(
    tmp_path: Path,
) -> None:
    output = tmp_path / "t.parquet"
    with FakeLLM(latency=0.02) as llm:
        command = [sys.executable, "-c", KILLED, llm.api_base, str(output), "200"]
        with subprocess.Popen(command) as process:
            while llm.calls < 60:
                assert process.poll() is None
                time.sleep(0.001)
            process.kill()
        left = [name for name in os.listdir(tmp_path) if name != "cache"]
        assert len(left) == 1
        assert left[0].startswith(".t.")
        subprocess.run(command, check=True, timeout=60)
        assert llm.repeats <= 4
        assert llm.calls <= 204
    table = pi.PersonaTable.load(output)
    assert [row.preference.chosen for row in table if row.preference] == [
        f"short {n}" for n in range(200)
    ]
    assert not table.errors


def test_candidates_are_in_the_file_too(endpoint: dict[str, Any], tmp_path: Path) -> None:
    class Longest:
        def explains(self, preferences: Any, personas: Any) -> list[float]:
            return [float(len(str(persona))) for persona in personas]

    options: dict[str, Any] = {"candidates": 3, "select": Longest(), "seed": 1, **endpoint}
    kept = pi.infer_personas(pairs(9), **options)
    table = pi.infer_personas(pairs(9), output=tmp_path / "t.parquet", **options)
    assert [row.chosen_candidates for row in table] == [row.chosen_candidates for row in kept]
    assert table.settings["candidates"] == 3


MEASURED = """
import json, os, sys, personainfer as pi
from pathlib import Path
from personainfer.data import table_writer as writing
writing.GROUP_ROWS = 128  # a group that is turned into JSON takes several times its size
api_base, folder, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

marks = {}

def source():
    for n in range(rows):
        if n * 4 % rows == 0:
            marks[n * 4 // rows] = resident()
        note = f"{n} " * 1000 if n * 2 < rows else [n] * 500  # and a type that changes half-way
        yield {"prompt": f"Why {n}?", "chosen": f"a{n}", "rejected": f"b{n}", "note": note}

table = pi.infer_personas(source(), "fake", api_base=api_base, output=folder / "t.parquet", cache=False)
marks["written"] = resident()
assert sum(row.chosen is not None for row in pi.PersonaTable.load(folder / "t.parquet")) == rows
marks["read"] = resident()
pi.PersonaTable.load(folder / "t.parquet").save(folder / "again.parquet")
marks["saved"] = resident()
print(json.dumps(marks))
"""


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own counts")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Nor does what it takes to widen a column, to read the file, and to save it again: it is the same
    for 8,000 rows and for 24,000, whose columns take 90 MB more."""
    with FakeLLM(keep=0) as llm:
        few, many = (measured(llm, tmp_path, count) for count in (8_000, 24_000))
    assert many["2"] - many["1"] < 30, many
    assert many["3"] - many["1"] < 30, many
    for mark in ("written", "read", "saved"):
        assert many[mark] - few[mark] < 45, (mark, few, many)


def measured(llm: FakeLLM, folder: Path, count: int) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURED, llm.api_base, str(folder), str(count)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    print(run.stdout)
    marks: dict[str, float] = json.loads(run.stdout)
    return marks


DAY, NOON = date(2020, 1, 1), datetime(2020, 1, 1, 12, 30)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(2, id="one group"),
        pytest.param(3 * writing.GROUP_ROWS // 2, id="two groups", marks=pytest.mark.heavy),
    ],
)
@pytest.mark.parametrize(
    ("first", "last"),
    [(DAY, NOON), (NOON, NOON.replace(tzinfo=UTC)), (b"\xff", "a")],
    ids=["day and time", "zone and none", "bytes and text"],
)
def test_values_that_a_common_type_would_cut_are_kept(
    tmp_path: Path, rows: int, first: object, last: object
) -> None:
    pair = pi.Preference(prompt="p", chosen="a", rejected="b")
    values = [first] * (rows - 1) + [last]
    made = [pi.PersonaRow(n, pair, columns={"z": value}) for n, value in enumerate(values)]
    path = pi.PersonaTable(made).save(tmp_path / "t.parquet")
    kept = pi.PersonaTable.load(path).to_arrow().column("z").to_pylist()
    assert len(set(map(str, kept))) == 2
    assert str(last).split()[-1].removesuffix("+00:00") in str(kept[-1]).replace("T", " ")


@pytest.mark.parametrize(
    "given",
    [
        [{"t": DAY}, {"t": NOON}],
        [[DAY, NOON], None],
        [{b"a": 1}, {"a": 2}],
        [{"t": "a"}, {"t": b"\xff"}],
        [["a"], [b"\xff"]],
        [[{"t": NOON}], [{"t": NOON.replace(tzinfo=UTC)}]],
        [pd.Timedelta(1, "ns"), pd.Timedelta(5, "ns")],
        [dt_time(1, tzinfo=UTC), dt_time(2)],
    ],
    ids=str,
)
def test_values_within_others_and_of_small_times_are_not_cut(
    tmp_path: Path, given: list[Any]
) -> None:
    kept = written([{"x": value} for value in given], tmp_path / "t.parquet")
    assert is_json(kept.schema.field("x"))
    assert len(set(map(str, kept["x"].to_pylist()))) == 2


@pytest.mark.parametrize(
    "given",
    [
        [{"t": DAY}, {"t": None}],
        [[NOON, None], [NOON], []],
        [[1, 2.5], [3]],
        [timedelta(1), pd.Timedelta(5, "us")],
        [dt_time(1), dt_time(2)],
    ],
    ids=str,
)
def test_values_of_one_kind_keep_their_type(tmp_path: Path, given: list[Any]) -> None:
    kept = written([{"x": value} for value in given], tmp_path / "t.parquet")
    assert not is_json(kept.schema.field("x"))
    assert kept["x"].to_pylist() == given


STAMP = pd.Timestamp("2020-01-02 12:00")


@pytest.mark.parametrize(
    "times",
    [[NOON, STAMP], [NOON.replace(tzinfo=UTC), STAMP.tz_localize(ZoneInfo("UTC"))]],
    ids=["no zone", "UTC"],
)
def test_times_of_several_classes_stay_times(tmp_path: Path, times: list[datetime]) -> None:
    kept = written([{"x": time} for time in times], tmp_path / "t.parquet")
    assert kept["x"].to_pylist() == times


def test_nanoseconds_are_not_cut(tmp_path: Path) -> None:
    kept = written([{"x": STAMP}, {"x": pd.Timestamp(5)}], tmp_path / "t.parquet")
    assert values(kept, "x") == [str(STAMP), str(pd.Timestamp(5))]


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_times_in_several_units_stay_times(zone: str | None) -> None:
    fine, coarse = (pa.schema([("x", pa.timestamp(unit, zone))]) for unit in ("ns", "us"))
    for one, other in ((fine, coarse), (coarse, fine)):
        assert writing._common(one.field("x"), other.field("x")).type == fine.field("x").type


def test_names_that_are_the_same_as_text_keep_their_columns(tmp_path: Path) -> None:
    pair = pi.Preference(prompt="p", chosen="a", rejected="b")
    row = pi.PersonaRow(0, pair, columns={1: "number", "1": "text"})  # type: ignore[dict-item]
    path = pi.PersonaTable([row]).save(tmp_path / "t.parquet")
    kept = pi.PersonaTable.load(path).to_arrow()
    assert kept.column("1").to_pylist() == ["text"]
    assert kept.column("1 (int)").to_pylist() == ["number"]


def test_groups_are_bounded_by_all_that_their_rows_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts in lists were not counted."""
    monkeypatch.setattr(writing, "GROUP_BYTES", 10_000)
    pair = pi.Preference(prompt="p", chosen="a", rejected="b")
    rows = [pi.PersonaRow(n, pair, columns={"z": [{"a": "x" * 3_000}]}) for n in range(8)]
    path = pi.PersonaTable(rows).save(tmp_path / "t.parquet")
    assert pq.ParquetFile(path).num_row_groups >= 2


def test_rows_of_numbers_are_counted_by_what_a_column_takes_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 1_000)
    monkeypatch.setattr(writing, "GROUP_BYTES", 200_000)
    numbers = [0, None, *(n / 8 for n in range(998))]
    written([{"x": numbers}] * 40, tmp_path / "t.parquet")
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 2


PAIRS: dict[str, list[Any]] = {"prompt": ["q1", "q2"], "chosen": ["a", "c"], "rejected": ["b", "d"]}
GRID = np.arange(2000).reshape(40, 50)  # NumPy would print it with "..."
MIXED_NAMES: dict[Any, Any] = {**PAIRS} | {0: [1, 2], "0": [3, 4]}
ROWS_WITH_GRIDS = [{name: of[n] for name, of in PAIRS.items()} | {"x": GRID} for n in range(2)]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("frame", "kept"),
    [
        (
            lambda: pl.DataFrame({**PAIRS, "x": pl.Series([{1}, None], dtype=pl.Object)}),
            {"x": [[1], None]},
        ),
        (
            lambda: pl.DataFrame({**PAIRS, "x": pl.Series([1, 2**100], dtype=pl.Int128)}),
            {"x": [1, 2**100]},
        ),
        (
            lambda: pd.DataFrame(MIXED_NAMES),
            {"0 (int)": [1, 2], "0": [3, 4]},
        ),
        (
            lambda: pd.DataFrame({**PAIRS, "x": [GRID, GRID + 1]}),
            {"x": [GRID.tolist(), (GRID + 1).tolist()]},
        ),
        (
            lambda: ROWS_WITH_GRIDS,
            {"x": [GRID.tolist()] * 2},
        ),
    ],
    ids=["polars' objects", "128 bits", "0 and '0'", "arrays in a frame", "arrays in rows"],
)
def test_own_columns_that_no_file_has_a_type_for_keep_their_values(
    endpoint: dict[str, Any],
    tmp_path: Path,
    frame: Callable[[], Any],
    kept: dict[str, list[Any]],
) -> None:
    paid = pi.infer_personas(frame(), **endpoint, output=tmp_path / "t.parquet")
    paid.save(tmp_path / "saved.parquet")
    for path in (tmp_path / "t.parquet", tmp_path / "saved.parquet"):
        found = pi.PersonaTable.load(path)
        assert str(found)
        assert {name: found.to_pandas()[name].tolist() for name in kept}.keys() == kept.keys()
        assert {name: values(found.to_arrow(), name) for name in kept} == kept
