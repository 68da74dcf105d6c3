"""Files and rows that would fill the memory or the stack."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import personainfer as pi
from personainfer.data import files
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.testing import FakeLLM

LIMIT = 2**18
GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else [value]
    return value


def test_a_line_of_a_packed_file_that_is_too_long_is_an_error(
    llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", LIMIT)
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(json.dumps(GOOD).encode() + b'\n{"prompt": "')
        for _ in range(200):
            file.write(b"a" * LIMIT)
        file.write(b'"}\n' + json.dumps({**GOOD, "prompt": "q"}).encode() + b"\n")
    tracemalloc.start()
    try:
        table = pi.infer_personas(path, "fake", api_base=llm.api_base)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [row.error is None for row in table] == [True, False, True]
    assert "line 2 is longer" in str(table[1].error)
    assert peak < 100 * LIMIT


def test_a_cell_of_a_parquet_file_that_is_too_long_costs_its_row(
    llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", LIMIT)
    path = tmp_path / "bomb.parquet"
    rows = [GOOD, {**GOOD, "prompt": "a" * (LIMIT + 1)}, {**GOOD, "prompt": "q"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, long, last = pi.infer_personas(path, "fake", api_base=llm.api_base)
    assert first.error is None
    assert last.error is None
    assert "row 2 is longer than" in str(long.error)


def test_a_pipe_as_input_is_an_error_that_says_so(tmp_path: Path) -> None:
    """It could be read only once, and waits for whoever writes to it."""
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(InvalidArgumentError, match="is a pipe or a device"):
        pi.infer_personas(tmp_path / "rows.jsonl", "fake", api_base="http://127.0.0.1:9/v1")


@pytest.mark.parametrize("name", ["bomb.csv.gz", "bomb.json.gz"])
def test_other_packed_files_are_bounded_too(
    llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", LIMIT)
    monkeypatch.setattr(files, "_LARGEST_JSON", LIMIT)
    with gzip.open(tmp_path / name, "wb") as file:
        file.write(b"prompt,chosen,rejected\n" if "csv" in name else b"[")
        for _ in range(20):
            file.write(b" " * LIMIT)
    with pytest.raises(DataError, match=r"longer than|more than"):
        pi.infer_personas(tmp_path / name, "fake", api_base=llm.api_base)
    assert llm.calls == 0


@pytest.mark.parametrize("kind", [dict, list])
@pytest.mark.parametrize("depth", [51, 500, 100_000])
def test_what_is_nested_too_deep_costs_its_row(
    llm: FakeLLM, tmp_path: Path, kind: type, depth: int
) -> None:
    rows = [{**GOOD, "about": nested(depth, kind)}, {**GOOD, "prompt": "q"}]
    path = tmp_path / "out.parquet"
    table = pi.infer_personas(rows, "fake", api_base=llm.api_base)
    assert "nested deeper" in str(table[0].error)
    assert table[1].error is None
    table.save(path)
    assert len(pi.PersonaTable.load(path).to_pandas()) == 2


def test_what_is_nested_less_deep_is_kept(llm: FakeLLM, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    rows = [{**GOOD, "about": nested(20, list)}, {**GOOD, "prompt": "q"}]
    table = pi.infer_personas(rows, "fake", api_base=llm.api_base)
    table.save(path)
    assert not pi.PersonaTable.load(path).errors
