"""Files and rows that would fill the memory or the stack."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import personainfer as pi
from personainfer.cli.audit import read_personas
from personainfer.data import file_formats, read_preferences, source_rows
from personainfer.evaluation.human import read_rating_sheet
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.local import parquet
from personainfer.local.paths import read_small_file
from personainfer.preferences import cells, pairing
from personainfer.testing import FakeLLM

from ..builders import read, table

LIMIT = 2**18
GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else [value]
    return value


@pytest.mark.heavy
def test_a_line_of_a_packed_file_that_is_too_long_is_an_error(
    llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "LONGEST_LINE", LIMIT)
    monkeypatch.setattr(file_formats, "_MOST_PACKED", 2000)
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
    monkeypatch.setattr(file_formats, "LONGEST_LINE", LIMIT)
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
    for path in (tmp_path / "rows.jsonl", "/dev/null"):
        with pytest.raises(InvalidArgumentError, match="is a pipe or a device"):
            pi.infer_personas(path, "fake", api_base="http://127.0.0.1:9/v1")


@pytest.mark.parametrize("name", ["bomb.csv.gz", "bomb.json.gz"])
def test_other_packed_files_are_bounded_too(
    llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(file_formats, "LONGEST_LINE", LIMIT)
    monkeypatch.setattr(file_formats, "_LARGEST_JSON", LIMIT)
    with gzip.open(tmp_path / name, "wb") as file:
        file.write(b"prompt,chosen,rejected\n" if "csv" in name else b"[")
        for _ in range(20):
            file.write(b" " * LIMIT)
    with pytest.raises(DataError, match=r"longer than|more than"):
        pi.infer_personas(tmp_path / name, "fake", api_base=llm.api_base)
    assert llm.calls == 0


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz"])
@pytest.mark.parametrize("filling", ["\n", "a"])
def test_a_small_file_that_unpacks_to_hundreds_of_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, filling: str
) -> None:
    """Of empty lines alone, 300 MB cost minutes."""
    monkeypatch.setattr(file_formats, "_MOST_UNPACKED", 2**18)
    start = "prompt,chosen,rejected\np,a,b\n" if "csv" in name else json.dumps(GOOD) + "\n"
    for count in (2**17, 2**19):
        (tmp_path / name).write_bytes(gzip.compress((start + filling * count).encode()))
        problem = ""
        try:
            list(read_preferences(tmp_path / name))
        except DataError as error:  # rows of one letter are none
            problem = str(error)
        assert ("unpacks to more" in problem) == (count > 2**18)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_very_many_empty_lines_are_an_error_unless_there_are_as_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(file_formats, "_MOST_EMPTY", 1000)
    start = "prompt,chosen,rejected\n" if "csv" in name else ""
    row = "p,a,b\n" if "csv" in name else json.dumps(GOOD) + "\n"
    path = tmp_path / name
    for fine in (row + "\n" * 1000, (row + "\n" * 9) * 300):
        path.write_text(start + fine)
        assert set(errors(path)) == {None}
    path.write_text(start + row + "\n" * 1001)
    with pytest.raises(DataError, match=r"1,00\d lines .* 1,001 are empty"):
        errors(path)


@pytest.mark.parametrize("first", ["rejected", '"reject\ned"'])
def test_a_csv_header_of_very_many_columns_is_an_error(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "_MOST_COLUMNS", 1000)
    (tmp_path / "rows.csv").write_text(f"prompt,chosen,{first}{',' * 1000}\np,a,b\n")
    with pytest.raises(DataError, match=r"has 1,002 commas"):
        list(read_preferences(tmp_path / "rows.csv"))


@pytest.mark.heavy
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


MANY = 1000


@pytest.fixture
def few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row may have `MANY` values, and no more."""
    monkeypatch.setattr(cells, "MOST_VALUES", MANY)


def errors(path: Path, **options: Any) -> list[str | None]:
    """What is wrong with each row of a file."""
    return [row.error for row in read_preferences(path, **options)]


@pytest.mark.usefixtures("few_values")
def test_a_line_of_very_many_values_costs_its_row(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "about": [[]] * MANY}, {**GOOD, "prompt": "a, [b], {c}" * MANY}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = errors(path)
    assert found[0] is found[2] is None
    assert "line 2 cannot be read: it has more than 1,000 values" in str(found[1])


def test_a_json_file_of_very_many_values_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "_MOST_JSON_VALUES", MANY)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD] * 100))
    assert errors(path) == [None] * 100
    path.write_text(json.dumps([{}] * MANY))
    with pytest.raises(DataError, match=r"more than 1,000 values.* to a .jsonl file"):
        errors(path)


@pytest.mark.usefixtures("few_values")
def test_a_cell_of_json_with_very_many_values_costs_its_row(tmp_path: Path) -> None:
    cells = [json.dumps(["a", "b"]), json.dumps(["a"] * 2 * MANY), str([["a"]] * 2 * MANY)]
    rows = [{"prompt": "p", "responses": cell, "scores": "[1, 2]"} for cell in cells]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    found = errors(tmp_path / "rows.csv", pairs="all")
    assert found[0] is None
    assert all("more than" in str(error) or "not JSON" in str(error) for error in found[1:])


@pytest.mark.usefixtures("few_values")
def test_values_of_a_parquet_file_that_are_very_many_cost_their_row(tmp_path: Path) -> None:
    lists: list[list[Any]] = [[1], [None] * MANY, []]
    rows: list[dict[str, Any]] = [{**GOOD, "about": about} for about in lists]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, many, last = errors(path)
    assert first is last is None
    assert "row 2 has more than 1,000 values" in str(many)


@pytest.mark.heavy
@pytest.mark.parametrize("store_schema", [True, False])
def test_a_text_that_all_rows_of_a_parquet_file_share_is_in_memory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_schema: bool
) -> None:
    """A file of a few KB holds it once; Arrow makes one text for each row."""
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**24)
    monkeypatch.setattr(file_formats, "LONGEST_LINE", 2**24)
    shared = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1024, pa.int32()), pa.array(["a" * 2**19])
    )
    path = tmp_path / "rows.parquet"
    others = {"chosen": ["a"] * 1024, "rejected": ["b"] * 1024}
    pq.write_table(pa.table({"prompt": shared, **others}), path, store_schema=store_schema)
    before = pa.total_allocated_bytes()
    largest = 0
    for row in islice(read_preferences(path), 100):
        largest = max(largest, pa.total_allocated_bytes() - before)
        assert row.error is None
    assert largest < 2**26  # and not 2**29


@pytest.mark.heavy
def test_a_large_group_of_different_texts_is_never_in_memory_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's dictionary of the texts grew until the group ended, and took its time for each batch."""
    monkeypatch.setattr(parquet, "_USUAL_BYTES", 2**20)
    path = tmp_path / "rows.parquet"
    texts = [f"{number} " + "word " * 400 for number in range(16_000)]
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    shared = ["a rule that comes with each question " * 400] * len(texts)
    columns: dict[str, list[Any]] = {
        "prompt": texts,
        "chosen": turns,
        "rejected": ["b"] * len(texts),
        "system": shared,
    }
    pq.write_table(pa.table(columns), path)
    before, largest = pa.total_allocated_bytes(), 0
    answers, kinds = list[Any](), set[str]()
    for batch in parquet.parquet_batches(path):
        largest = max(largest, pa.total_allocated_bytes() - before)
        answers += batch["prompt"].to_pylist()
        kinds = {name for name in columns if pa.types.is_dictionary(batch[name].type)}
    assert answers == texts
    assert kinds == {"rejected", "system"}  # in the last batch
    assert largest < 2**25  # of 2**26 that the file holds


@pytest.mark.heavy
def test_few_rows_of_large_groups_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that are no dictionary can be packed as well, and may all be in one batch."""
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**22)
    path = tmp_path / "rows.parquet"
    rows = [{**GOOD, "prompt": f"{number}" + "a" * 2**16} for number in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=False, compression="zstd")
    batches = [len(batch) for batch in parquet.parquet_batches(path)]
    assert sum(batches) == 200
    assert max(batches) <= 64
    assert errors(path) == [None] * 200


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    """Rows of two files would be mixed, or the new one be called damaged."""
    path, other = tmp_path / "rows.parquet", tmp_path / "other.parquet"
    for file, prompt in ((path, "mine"), (other, "else")):
        rows = [{**GOOD, "prompt": f"{prompt} {n}"} for n in range(6)]
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    came = parquet.parquet_batches(path)
    found = next(came)["prompt"].to_pylist()
    other.replace(path)
    found += [text for batch in came for text in batch["prompt"].to_pylist()]
    assert found == [f"mine {n}" for n in range(6)]


def test_a_batch_does_not_add_up_the_largest_of_many_groups(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pq.ParquetWriter(path, pa.Table.from_pylist([GOOD]).schema) as writer:
        for _ in range(5):
            writer.write_table(pa.Table.from_pylist([GOOD] * 3))
    assert [len(batch) for batch in parquet.parquet_batches(path)] == [3] * 5
    assert errors(path) == [None] * 15


@pytest.mark.heavy
def test_a_file_that_unpacks_to_thousands_of_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 2**20)
    path = tmp_path / "rows.parquet"
    rows = [{**GOOD, "x": "a" * 2**20}] * 16
    pq.write_table(pa.Table.from_pylist(rows), path, use_dictionary=False, compression="zstd")
    with pytest.raises(DataError, match="bytes are packed into a file of"):
        errors(path)


def test_values_of_a_fixed_length_are_read_as_many_at_once_as_the_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stores one of them, and how often it comes again: Arrow writes out each."""
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**22)
    path = tmp_path / "rows.parquet"
    same = pa.array([b"a" * 2**16] * 200, pa.binary(2**16))
    others = {name: [text] * 200 for name, text in GOOD.items()}
    pq.write_table(pa.table({**others, "about": same}), path)
    batches = [len(batch) for batch in parquet.parquet_batches(path)]
    assert (sum(batches), max(batches)) == (200, 2**22 * 64 // (200 * 2**16))
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 2**20)
    with pytest.raises(DataError, match="bytes are packed into a file of"):
        errors(path)


@pytest.mark.heavy
def test_texts_stored_as_what_differs_from_the_one_before_are_read_few_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow cannot read them as dictionaries, and so refused the file."""
    monkeypatch.setattr(parquet, "_USUAL_BYTES", 2**21)
    path = tmp_path / "rows.parquet"
    texts = ["a" * 2**16 + str(number) for number in range(200)]
    rows = pa.table({**{name: [text] * 200 for name, text in GOOD.items()}, "prompt": texts})
    stored: Any = {"use_dictionary": ["chosen"], "column_encoding": {"prompt": "DELTA_BYTE_ARRAY"}}
    pq.write_table(rows, path, **stored)
    batches = list(parquet.parquet_batches(path))
    assert [text for batch in batches for text in batch["prompt"].to_pylist()] == texts
    assert max(map(len, batches)) < 32
    assert errors(path) == [None] * 200


@pytest.mark.heavy
def test_a_csv_row_whose_quotes_stay_open_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "LONGEST_LINE", LIMIT)
    path = tmp_path / "rows.csv"
    good = 'p,a,"b\nc"\n' * (LIMIT // 9)  # more than the bound of a row, all together
    long = '"a' + ('","' + "x" * 1000 + "\n") * 300
    path.write_text("prompt,chosen,rejected\n" + good + long)
    with pytest.raises(DataError, match=r"begins at line 58256 is longer than 262,144 characters"):
        errors(path)


@pytest.mark.usefixtures("few_values")
def test_a_csv_row_of_very_many_fields_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected\np,a,b\n" + "," * 5 * MANY)
    with pytest.raises(DataError, match="line 3 is of more than 4,000 fields"):
        errors(path)


@pytest.mark.heavy
def test_many_names_of_columns_are_read_at_once(tmp_path: Path) -> None:
    """Each was compared with all others: 60,000 took a minute."""
    names = [*GOOD, *(f"column {number}" for number in range(20_000))]
    (tmp_path / "rows.csv").write_text(",".join(names) + "\n" + ",".join(names).upper())
    started = time.process_time()
    assert errors(tmp_path / "rows.csv") == [None]
    assert time.process_time() - started < 3


def test_a_long_name_of_a_column_is_read_in_memory_that_grows_with_its_length() -> None:
    """All starts and ends of the name at its underscores took 200 MB; of 160 KB, 13 GB."""
    rows = [{**GOOD, "a_" * 10_000: 1}, *[GOOD] * 5]
    tracemalloc.start()
    try:
        assert [row.error for row in read_preferences(rows)] == [None] * 6
        largest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest < 2**22


def test_the_first_rows_are_held_together_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of 0 and 1 are looked for in 200 rows; each may have 64 MB."""
    monkeypatch.setattr(source_rows, "_LOOK_AHEAD_BYTES", 10 * LIMIT)
    held: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(100):
            held.append(number)
            long = {"about": ["x" * LIMIT]}
            yield {"prompt": "p", "response_1": "a", "response_2": "b", "label": number % 2} | long

    with suppress(DataError):
        read_preferences(rows())
    assert len(held) <= 11


@pytest.mark.heavy
def test_a_row_of_very_many_pairs_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(count: int) -> dict[str, Any]:
        return {
            "prompt": f"p{count}",
            "responses": [f"r{number}" for number in range(count)],
            "scores": [*range(count)],
        }

    assert len(read(scored(100), pairs="all")) == 100 * 99 // 2
    monkeypatch.setattr(pairing, "MOST_PAIRS", 50)
    found = read(scored(10), scored(20_000), pairs="all")
    assert len(found) == 46
    assert "20000 responses to one prompt make more than 50 pairs" in str(found[-1])
    assert len(read(scored(20_000), pairs="all", min_gap=19_991)) == 45


@pytest.mark.heavy
def test_errors_are_of_bounded_length(tmp_path: Path) -> None:
    name = "x" * 2**20
    with pytest.raises(DataError) as found:
        read_preferences([{name: "a"}])
    assert len(str(found.value)) < 2_000
    (row,) = read_preferences([{**GOOD, name: nested(60, list)}])
    assert len(str(row.error)) < 2_000
    for text in ("x" * 2**20, "\x1b" * 2**20):
        for error in (DataError(text), DataError(text, hint=text), DataError("x", hint=text)):
            assert len(str(error)) <= 20_000
    coded = DataError(text, hint="Give", argument="labels", example={text: text})
    assert len(str(coded)) <= 20_000


@pytest.mark.parametrize("name", ["key.json", "README.md"])
def test_a_pipe_in_the_place_of_a_small_file_does_not_wait(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match="is a pipe or a device"):
        read_small_file(tmp_path / name)
    (tmp_path / "large").write_bytes(b"abc")
    with pytest.raises(OSError, match="more than 2 bytes"):
        read_small_file(tmp_path / "large", 2)
    if name == "key.json":
        with pytest.raises(DataError, match=r"is not the key\.json"):
            read_rating_sheet(tmp_path / name, [tmp_path / "ratings.csv"])
    else:
        with pytest.raises(InvalidArgumentError, match="not an export's"):
            pi.export_personas(table(), tmp_path)


def test_personas_in_a_pipe_or_of_no_text_are_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b'{"user": "a", "persona": "\xff"}')
    (tmp_path / "deep").write_bytes(b"[" * 100_000)
    for name in ("pipe", "bytes", "deep"):
        with pytest.raises(DataError, match="is not JSON lines"):
            read_personas(tmp_path / name)


def in_lists(rows: int, each: int, value: int | None) -> pa.Array[Any]:
    """So many lists of one value, which take some bytes of a file however long they are."""
    inner: Any = pa.nulls(rows * each, pa.int64())
    if value is not None:
        inner = pa.array(np.full(rows * each, value))
    lists: Any = pa.ListArray
    return lists.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * each), inner)  # type: ignore[no-any-return]


@pytest.mark.heavy
@pytest.mark.parametrize("value", [None, 7])
@pytest.mark.parametrize("fixed", [False, True])
def test_values_in_lists_are_counted_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: int | None, fixed: bool
) -> None:
    path = tmp_path / "rows.parquet"
    about: Any = in_lists(200, 500, value)
    if fixed:
        about = pa.FixedSizeListArray.from_arrays(about.values, 500)
    others = {name: [text] * 200 for name, text in GOOD.items()}
    pq.write_table(pa.table({**others, "about": about}), path)
    assert path.stat().st_size < 2**13
    with pa.OSFile(str(path), "rb") as opened:
        opened.seek(5)
        counts = parquet._counts_of_values(opened)
        assert opened.tell() == 5  # forks share the position: they read at the same time
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
    assert counts == [[group.column(place).num_values for place in range(group.num_columns)]]
    assert errors(path) == [None] * 200
    monkeypatch.setattr(parquet, "_USUAL_BYTES", 2**17)
    batches = [len(batch) for batch in parquet.parquet_batches(path)]
    assert (sum(batches), max(batches) < 30) == (200, True)
    monkeypatch.setattr(parquet, "_LARGE_GROUP", 2**17)
    monkeypatch.setattr(parquet, "_MOST_PACKED", 2)
    with pytest.raises(DataError, match="bytes are packed into a file of"):
        errors(path)


def test_of_very_many_columns_few_rows_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    zeros: Any = pa.array([0] * 2_000)
    others = {name: [text] * 2_000 for name, text in GOOD.items()}
    pq.write_table(pa.table({**others, **{f"n{n}": zeros for n in range(64)}}), path)
    monkeypatch.setattr(parquet, "_USUAL_BYTES", 2**16)
    batches = [len(batch) for batch in parquet.parquet_batches(path)]
    assert (sum(batches), max(batches) <= 2**16 // (64 * 8)) == (2_000, True)


@pytest.mark.heavy
def test_what_a_file_tells_of_its_lists_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    others = {name: [text] * 2 for name, text in GOOD.items()}
    pq.write_table(pa.table({**others, "about": [[1, 2], []]}), path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    spoilt = tmp_path / "spoilt.parquet"
    for place in range(len(whole) - 8 - length, len(whole) - 8, 3):
        spoilt.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with suppress(OSError):
            parquet._counts_of_values(pa.BufferReader(spoilt.read_bytes()))


READ = """
import sys
from personainfer.data import read_preferences
from personainfer.exceptions import DataError

try:
    print(sum(row.error is None for row in read_preferences(sys.argv[1])))
except DataError as error:
    print("refused" if "are packed into" in str(error) else error)
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own counts")
@pytest.mark.parametrize(
    ("rows", "each", "value", "said"),
    [
        (2_000, 30_000, None, "refused"),
        (2_000, 20_000, None, "2000"),
        (1_000, 20_000, 7, "1000"),
    ],
)
def test_lists_of_one_value_do_not_fill_the_memory(
    tmp_path: Path, rows: int, each: int, value: int | None, said: str
) -> None:
    path = tmp_path / "rows.parquet"
    others = {name: [text] * rows for name, text in GOOD.items()}
    table = pa.table({**others, "about": in_lists(rows, each, value)})
    pq.write_table(table, path, row_group_size=rows, compression="zstd")
    command = [sys.executable, "-c", READ, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found, peak = run.stdout.split()
    assert (found, int(peak) < 400_000) == (said, True), run.stdout
