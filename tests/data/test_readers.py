"""Every container gives the same preferences, one result a row, in order."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, time
from itertools import islice
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personainfer.data import file_formats
from personainfer.data.arrow_columns import arrow_cells
from personainfer.data.containers import read_preferences
from personainfer.data.file_formats import CSV_NULLS, open_rows
from personainfer.data.source_rows import PreferenceSource
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.preferences import example_rows
from personainfer.preferences.conversations import pair_problem
from personainfer.records import Message, Preference

from ..builders import SHARED
from ..builders import table as persona_table

Rows = list[dict[str, Any]]
ROW = {"prompt": "q", "chosen": "yes", "rejected": "no"}
PAIR = Preference(**ROW)


def preferences(source: Iterable[Any]) -> list[Preference | None]:
    return [row.preference for row in source]


def errors(data: object) -> list[str | None]:
    return [row.error for row in read_preferences(data)]


def numbered(count: int) -> Rows:
    return [
        {"id": str(i), "prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(count)
    ]


def write_csv(rows: Rows, folder: Path, name: str = "data.csv") -> Path:
    pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"]).to_csv(folder / name, index=False)
    return folder / name


def write_parquet(rows: Rows, folder: Path) -> Path:
    pl.DataFrame(rows).write_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def write_jsonl(rows: Rows, folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json_gz(rows: Rows, folder: Path) -> Path:
    path = folder / "data.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"data": rows}).encode(), mtime=0))
    return path


CONTAINERS: dict[str, Callable[[Rows, Path], Any]] = {
    "pandas": lambda rows, _: pd.DataFrame(rows),
    "polars": lambda rows, _: pl.DataFrame(rows),
    "lazy": lambda rows, _: pl.LazyFrame(rows),
    "arrow": lambda rows, _: pa.Table.from_pylist(rows),
    "dataset": lambda rows, _: datasets.Dataset.from_list(rows),
    "iterable dataset": lambda rows, _: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "list": lambda rows, _: rows,
    "generator": lambda rows, _: iter(rows),
    "tuples": lambda rows, _: [(r["prompt"], r["chosen"], r["rejected"]) for r in rows],
    "records": lambda rows, _: [Preference(**row) for row in rows],
    "csv": write_csv,
    "csv.gz": lambda rows, folder: write_csv(rows, folder, "data.csv.gz"),
    "parquet": write_parquet,
    "jsonl": write_jsonl,
    "json.gz": write_json_gz,
}

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
PAIRS = st.builds(lambda p, c, r: {"prompt": p, "chosen": c, "rejected": r}, WORDS, WORDS, WORDS)


@pytest.mark.heavy
@pytest.mark.parametrize("container", CONTAINERS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(PAIRS, min_size=1, max_size=5))
def test_round_trip_through_every_container(container: str, rows: Rows, tmp_path: Path) -> None:
    if container.startswith("csv"):  # pandas does not quote a lone carriage return
        rows = [{k: v.replace("\r", "\n").strip() for k, v in row.items()} for row in rows]
    want: list[Preference | None] = []
    for row in rows:
        pair = Preference(**row)
        is_null = container.startswith("csv") and CSV_NULLS & set(row.values())
        want.append(None if is_null or pair_problem(pair) else pair)
    assert preferences(read_preferences(CONTAINERS[container](rows, tmp_path))) == want


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.heavy
def test_many_rows_in_order_and_again(container: str, tmp_path: Path) -> None:
    source = read_preferences(CONTAINERS[container](numbered(2500), tmp_path))
    assert [p.prompt for p in preferences(source) if p] == [f"q{i}" for i in range(2500)]
    if container == "generator":
        with pytest.raises(InvalidArgumentError, match="read already"):
            iter(source).__next__()
    else:
        assert sum(1 for _ in source) == 2500


MESSAGES = {
    "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}],
}


FLAT = {"tuples", "records", "csv", "csv.gz"}  # what holds no lists


@pytest.mark.parametrize("container", [c for c in CONTAINERS if c not in FLAT])
def test_message_lists_through_every_container(container: str, tmp_path: Path) -> None:
    for row in (MESSAGES, {"prompt": "q", **MESSAGES}):
        assert preferences(read_preferences(CONTAINERS[container]([row], tmp_path))) == [PAIR]


# What the source says of itself


@pytest.mark.parametrize("container", ["pandas", "polars", "arrow", "dataset"])
def test_a_frame_is_kept_untouched(container: str, tmp_path: Path) -> None:
    data = CONTAINERS[container](numbered(3), tmp_path)
    source = read_preferences(data)
    if container in ("arrow", "dataset"):
        assert source.original is data
    else:  # these can be changed in place, which a table of their personas must not see
        assert type(source.original) is type(data)
        assert source.original.equals(data)
    assert (source.total, source.shape) == (3, "explicit")
    assert all(row.columns == {} for row in source)


def test_a_lazy_frame_is_collected() -> None:
    source = read_preferences(pl.LazyFrame(numbered(3)))
    assert isinstance(source.original, pl.DataFrame)


def test_streams_keep_the_columns_of_each_row(tmp_path: Path) -> None:
    rows = [{**ROW, "extra": 1}]
    for container in ("list", "generator", "jsonl", "parquet", "json.gz", "iterable dataset"):
        source = read_preferences(CONTAINERS[container](rows, tmp_path))
        assert source.original is None
        assert [row.columns for row in source] == rows


def test_totals(tmp_path: Path) -> None:
    known = {
        c: read_preferences(make(numbered(4), tmp_path)).total for c, make in CONTAINERS.items()
    }
    unknown = {"generator", "iterable dataset", "csv", "csv.gz", "jsonl"}
    assert known == {c: None if c in unknown else 4 for c in CONTAINERS}


def test_pandas_nulls_index_and_integer_ids() -> None:
    frame = pd.DataFrame({**{k: [v, v, None] for k, v in ROW.items()}, "id": [1, None, 3]})
    rows = list(read_preferences(frame.set_index(pd.Index([9, 7, 7]))))
    assert [row.preference and row.preference.id for row in rows] == ["1", None, None]
    assert rows[2].error
    assert "missing" in rows[2].error


@pytest.mark.parametrize(
    "empty",
    [[], iter([]), pd.DataFrame(), pl.DataFrame(), pa.table({}), datasets.Dataset.from_list([])],
)
def test_no_rows_need_no_shape_and_are_told(empty: object) -> None:
    with pytest.warns(UserWarning, match="no row came") as told:
        source = read_preferences(empty)
    assert len(told) == 1
    assert ("was read before" in str(told[0].message)) is isinstance(empty, Iterator)
    assert (list(source), source.is_empty) == ([], True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("e.jsonl", ""), ("e.json", ""), ("e.csv", ""), ("h.csv", "prompt,chosen,rejected\n")],
)
def test_empty_files(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.warns(UserWarning, match=rf"no row came: .*{name} holds none"):
        assert list(read_preferences(tmp_path / name)) == []


# Streams


def test_a_stream_is_read_lazily() -> None:
    taken = 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield ROW

    source = read_preferences(endless())
    assert taken == 1
    assert preferences(islice(source, 5)) == [PAIR] * 5
    assert taken == 5


LATER: dict[str, Any] = {
    "instruction": "q",
    "input": "text",
    "history": [["x", "y"]],
    "system_prompt": "Be kind.",
    "annotator_id": "ann",
    "tools": [{"name": "clock"}],
    "chosen": "yes",
    "rejected": "no",
}
FIRST: dict[str, Any] = {"instruction": "q", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize("before", [1, 300])
@pytest.mark.parametrize("container", ["list", "generator", "jsonl"])
def test_a_column_that_the_first_rows_lack_is_read(
    container: str, before: int, tmp_path: Path
) -> None:
    """Writers of JSON lines leave out what is empty."""
    (whole,) = preferences(read_preferences([LATER]))
    assert whole
    assert ([turn.role for turn in whole.prompt if isinstance(turn, Message)], whole.user) == (
        ["system", "user", "assistant", "user"],
        "ann",
    )
    rows = [FIRST] * before + [LATER, FIRST]
    source = read_preferences(CONTAINERS[container](rows, tmp_path))
    assert preferences(source) == [PAIR] * before + [whole, PAIR]
    found = source.summary["columns"]
    assert (found["user"], found["system"]) == ("annotator_id", "system_prompt")
    assert {"input", "history", "tools"} <= found.keys()


@pytest.mark.parametrize("container", ["list", "jsonl", "pandas", "generator"])
def test_a_first_row_without_its_prompt_does_not_make_another_column_the_prompt(
    container: str, tmp_path: Path
) -> None:
    rows = [{**ROW, "text": "other"} for _ in range(30)]
    del rows[0]["prompt"]
    found = list(read_preferences(CONTAINERS[container](rows, tmp_path)))
    if container == "generator":  # nothing else was known when the first row came
        assert all("a column 'prompt'" in str(row.error) for row in found[1:])
    else:
        assert preferences(found) == [None] + [PAIR] * 29


@pytest.mark.parametrize("name", ["chosen", "response_1", "winner", "model_a", "user", "system"])
def test_a_missing_value_of_pandas_costs_its_row_at_most(name: str) -> None:
    pair = {"prompt": "q", "response_1": "yes", "response_2": "no", "winner": "a", "user": "ann"}
    pair |= {"model_a": "m", "model_b": "n", "system": "s"}
    if name == "chosen":
        pair = ROW
    frame = pd.DataFrame([pair] * 3, dtype=object)
    frame.loc[1, name] = pd.NA
    for data in (frame, frame.astype("string"), frame.to_dict("records")):
        first, odd, last = read_preferences(data)
        assert first.preference == last.preference
        assert first.preference
        assert "missing" in str(odd.error) or odd.preference


def test_ratings_with_a_missing_value_of_pandas_cost_no_other() -> None:
    rows: Rows = [{"prompt": "q", "response": "yes", "score": 2, "x": pd.NA}]
    rows += [{"prompt": "q", "response": "no", "score": 1, "x": 3}]
    rows += [{"prompt": "r", "response": text, "score": pd.NA, "x": 3} for text in "ab"]
    good, bad = read_preferences(pd.DataFrame(rows, dtype=object), pairs="all")
    assert good.preference == PAIR
    assert "no two differ" in str(bad.error)


def test_an_id_that_lost_its_digits_is_no_user() -> None:
    """Whole numbers of 17 digits in a column with a gap: two people would be one."""
    frame = pd.DataFrame([{**ROW, "user_id": n} for n in (76561198000000001, 7, None)])
    lost, good, none = read_preferences(frame)
    assert "lost its last digits" in str(lost.error)
    assert [row.preference and row.preference.user for row in (good, none)] == ["7", None]


def test_a_likelier_name_in_a_later_row_takes_no_role_away() -> None:
    rows = [{**ROW, "annotator": "ann"}] * 2 + [{**ROW, "annotator": "ann", "user_id": "bob"}]
    rows = [
        {"question" if key == "prompt" else key: value for key, value in row.items()}
        for row in rows
    ]
    source = read_preferences([*rows, {**rows[0], "prompt": "other", "messages": []}])
    assert [p and (p.prompt, p.user) for p in preferences(source)] == [("q", "ann")] * 4


def test_a_malformed_start_does_not_decide_the_shape() -> None:
    start: list[object] = [None, {"chosen": "x", "rejected": "y"}, {}, "text", {1: 2}]
    source = read_preferences(iter([*start, *[ROW] * 40]))
    assert source.shape == "explicit"
    assert preferences(source) == [None] * 5 + [PAIR] * 40


def test_kinds_of_rows_may_be_mixed() -> None:
    other = {"prompt": "q", "response_0": "no", "response_1": "yes", "better_response_id": 1}
    data = [PAIR, ("q", "yes", "no"), {"foo": 1}, ["q", "yes", "no"], other, ("q",), PAIR]
    assert preferences(read_preferences(iter(data))) == [PAIR, PAIR, None, PAIR, PAIR, None, PAIR]
    unknown = read_preferences([PAIR, {"foo": 1}, PAIR])
    assert [row.error is None for row in unknown] == [True, False, True]


def test_the_fields_of_named_tuples_are_read_by_their_names() -> None:
    """Their order says nothing: chosen and rejected were swapped."""
    frame = pd.DataFrame([{"prompt": "q", "rejected": "no", "chosen": "yes", "user": "ann"}])
    for index in (True, False):
        (row,) = read_preferences(frame.itertuples(index=index))
        assert row.preference == PAIR.model_copy(update={"user": "ann"})

    class Fields(tuple[str, ...]):  # as Spark's rows are
        __fields__ = ("prompt", "rejected", "chosen")

    _, other = read_preferences([PAIR, Fields(("q", "no", "yes"))])
    assert "of type Fields" in str(other.error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["a", "b"], "of type str"),
        (np.array([["q", "yes", "no"]]), "of type ndarray"),
        ([("q", "yes")], "2 fields"),
        (iter([("q", "yes", "no", "x")] * 300), "200 rows.*4 fields"),
        ([("q", "yes", "yes")] * 30, "same text"),
        ([{**ROW, "rejected": "yes"}] * 300, "200 rows.*same text"),
        ([{**ROW, "prompt": " "}] * 30, "prompt is empty"),
        (pd.DataFrame([{**ROW, "prompt": ""}] * 30), "prompt is empty"),
        ([None, 3], "of type NoneType"),
    ],
)
def test_data_of_which_no_row_can_be_read_is_refused(data: object, words: str) -> None:
    with pytest.raises(DataError, match=f"none of the first.*{words}"):
        read_preferences(data)


def test_a_few_rows_without_a_preference_are_kept() -> None:
    """They may be so by chance; the table then says of each why."""
    for data in (
        [("q", "yes", "yes")],
        [{**ROW, "rejected": "yes"}],
        [PAIR.model_copy(update=_SAME)],
    ):
        assert "same text" in str(errors(data)[0])


_SAME = {"rejected": "yes"}


def test_a_late_row_that_can_be_read_is_enough() -> None:
    bad: list[object] = [("q",)] * 150
    assert preferences(read_preferences(iter([*bad, ("q", "yes", "no")]))) == [None] * 150 + [PAIR]
    assert preferences(read_preferences(iter([*bad, ROW]))) == [None] * 150 + [PAIR]


@pytest.mark.parametrize(
    "options",
    [
        {"columns": {"chosen": "rejected", "rejected": "chosen"}},
        {"labels": {1: "second"}},
        {"pairs": "all"},
        {"min_gap": 1},
        {"min_votes": 2},
        {"safe_rejected": True},
    ],
)
def test_options_about_columns_are_refused_where_there_are_none(options: dict[str, Any]) -> None:
    tuples: list[object] = [("q", "yes", "no")]
    for rows in (tuples, [list(ROW.values())], [PAIR], [None, PAIR]):
        with pytest.raises(
            InvalidArgumentError, match=f"{next(iter(options))}= needs rows with named"
        ):
            read_preferences(rows, **options)


@pytest.mark.parametrize(
    "options", [{"min_votes": "10"}, {"min_votes": 0}, {"safe_rejected": "no"}]
)
def test_options_of_a_wrong_kind_are_refused(options: dict[str, Any]) -> None:
    votes = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(options))}=.* must be"):
        read_preferences([{**votes, "score_A": 10, "score_B": 3}], **options)


@pytest.mark.parametrize("role", ["prompt", "user", "id", "system", "chosen"])
@pytest.mark.parametrize("form", [list, iter, pd.DataFrame])
def test_a_column_that_is_named_has_to_be_there(role: str, form: Callable[[Any], Any]) -> None:
    rows = [{**ROW, "user_id": "ann"}] * 3
    with pytest.raises(InvalidArgumentError, match=r"'nowhere', which is not a column of the data"):
        read_preferences(form(rows), columns={role: "nowhere"})


def test_a_dataset_with_a_transform_is_not_read_around_it() -> None:
    """It may hide what is stored."""
    hidden = datasets.Dataset.from_list([ROW]).with_transform(
        lambda batch: {**batch, "prompt": ["[redacted]"] * len(batch["prompt"])}
    )
    with pytest.raises(InvalidArgumentError, match=r"has a transform.*list\(data\)"):
        read_preferences(hidden)
    [row] = preferences(read_preferences(list(hidden)))
    assert row is not None
    assert row.prompt == "[redacted]"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.text(st.characters(categories=["Cs", "Cc", "Ll"]), max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner, inner)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = ["prompt", "chosen", "rejected", "id", "user", "label", "response_1", "response_2"]
JUNK_ROWS = st.dictionaries(st.sampled_from(FIELDS) | st.integers(), JUNK, max_size=6)


@pytest.mark.heavy
@given(st.lists(JUNK | JUNK_ROWS, max_size=8))
def test_junk_costs_only_its_own_row(junk: list[object]) -> None:
    data = [item for bad in [*junk, None] for item in (ROW, bad)]
    rows = list(read_preferences(iter(data)))
    assert len(rows) == len(data)
    assert preferences(rows[::2]) == [PAIR] * len(rows[::2])
    for row in rows:
        assert (row.preference is None) != (row.error is None)
        (row.error or "").encode()


@pytest.mark.heavy
@given(st.lists(st.tuples(JUNK, JUNK, JUNK), min_size=1, max_size=5), st.booleans())
def test_junk_in_a_frame(junk: list[tuple[object, ...]], implicit: bool) -> None:
    rows = [tuple(ROW.values()), *junk]
    columns = zip(ROW, zip(*rows, strict=True), strict=True)
    frame = pd.DataFrame({name: pd.Series(list(cells), dtype=object) for name, cells in columns})
    if implicit:
        frame = frame[["chosen", "rejected"]]
    try:
        source = read_preferences(frame)
    except DataError:
        assert implicit  # no prompt anywhere
        return
    assert len(list(source)) == len(rows)


# Files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=6))
def test_junk_lines_cost_only_themselves(tmp_path: Path, junk: list[bytes]) -> None:
    good = json.dumps(ROW).encode()
    lines = [line for bad in junk for line in (good, bad.replace(b"\0", b"\1"))] + [good]
    (tmp_path / "j.jsonl").write_bytes(b"\n".join(lines))
    rows = list(read_preferences(tmp_path / "j.jsonl"))
    assert len(rows) == sum(bool(line.strip()) for line in lines)
    assert sum(row.preference == PAIR for row in rows) >= len(junk) + 1


def test_bad_jsonl_lines_name_their_number(tmp_path: Path) -> None:
    good = json.dumps(ROW).encode()
    bad = [b"{oops", b"[1]", b'{"prompt": "\xff"}', b"[" * 100_000, b"1" * 5000, b"null"]
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, b"", *bad, good]))
    found = errors(tmp_path / "b.jsonl")
    assert found[0] is None
    assert found[-1] is None
    assert [f"line {n}" in (error or "") for n, error in enumerate(found[1:-1], 3)] == [True] * 6


def test_words_for_a_missing_value_are_no_texts_in_csv(tmp_path: Path) -> None:
    """Programs write a null as NULL, NaN or N/A, and pandas reads these as one.

    A spreadsheet writes #NAME? in the place of "- Sleep more.".
    """
    words = ["nan", "NaN", "NULL", "null", "N/A", "n/a", "NA", "None", "<NA>", "#N/A"]
    words += ["#NAME?", "#VALUE!", "#ERROR!"]
    cells = [(word, "no", "ann") for word in words] + [("yes", word, "ann") for word in words]
    lines = [
        "prompt,chosen,rejected,user",
        *(f"q,{','.join(row)}" for row in cells),
        "q,yes,no,nan",
    ]
    path = tmp_path / "n.csv"
    path.write_text("\n".join(lines))
    rows = list(read_preferences(path))
    assert preferences(rows) == [None] * len(cells) + [PAIR]
    assert all("is missing (null)" in str(row.error) for row in rows[:-1])
    assert rows[0].columns["chosen"] == "nan"  # the user's own cells stay as they are
    assert preferences(read_preferences(list(open_rows(path)[0]))) == preferences(rows)
    asked = [{**ROW, "chosen": "None"}, ROW]  # of dicts, where a null can be told from a text
    assert preferences(read_preferences(asked))[0] == PAIR.model_copy(update={"chosen": "None"})


@pytest.mark.parametrize(
    "user", ["1.2345678901234568e+17", "1.23457E+11", "1,23457E+17", "9007199254740992.0"]
)
def test_a_user_whose_digits_a_csv_file_has_lost_is_nobody(user: str, tmp_path: Path) -> None:
    """Two people with nearly the same number were one."""
    path = tmp_path / "rows.csv"
    path.write_text(f'prompt,chosen,rejected,user_id\nq,yes,no,"{user}"\nq,yes,no,7.0\n')
    lost, kept = read_preferences(path)
    assert "has lost its last digits" in str(lost.error)
    assert kept.preference == PAIR.model_copy(update={"user": "7"})


def test_ids_are_the_same_in_a_frame_and_in_the_csv_file_that_pandas_writes_of_it(
    tmp_path: Path,
) -> None:
    """Beside a null, pandas writes 7 as "7.0"; a float of 2**53 or more has lost digits."""
    frame = pd.DataFrame([{**ROW, "id": id} for id in (7, None, 0, 2**60)])
    frame.to_csv(path := tmp_path / "rows.csv", index=False)
    found = preferences(read_preferences(path))
    assert found == preferences(read_preferences(frame))
    assert [pair and pair.id for pair in found] == ["7", None, "0", None]


def test_lists_in_lists_are_the_same_in_a_frame_and_in_the_csv_file_that_pandas_writes_of_it(
    tmp_path: Path,
) -> None:
    """Of a frame that Arrow made they are arrays: a history was left out, calls of tools were errors."""
    call = {"function": {"name": "f", "arguments": "{}"}, "type": "function"}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "user", "content": "q"},
    ]
    for row in (
        {"history": [["hello", "it's"], ["so", "a\nb"]], "instruction": "q"},
        {"prompt": turns},
    ):
        rows = [{**row, "chosen": "yes", "rejected": "no"}] * 6
        frame = pa.Table.from_pylist(rows).to_pandas()
        frame.to_csv(path := tmp_path / "rows.csv", index=False)
        found = preferences(read_preferences(path))
        assert found == preferences(read_preferences(frame))
        assert [pair and len(pair.prompt) > 1 for pair in found] == [True] * 6


def test_numbers_of_numpy_in_lists_are_read_from_the_csv_file_that_pandas_writes(
    tmp_path: Path,
) -> None:
    """It writes np.float64(0.5), as Python prints it: such rows were errors."""
    scores = list(np.array([0.5, np.nan, -1e-9]))
    frame = pd.DataFrame([{"prompt": "q", "responses": ["yes", "eh", "no"], "scores": scores}] * 2)
    frame.to_csv(path := tmp_path / "rows.csv", index=False)
    found = preferences(read_preferences(path, pairs="all"))
    assert found == preferences(read_preferences(frame, pairs="all"))
    assert [pair and (pair.chosen, pair.rejected) for pair in found] == [("yes", "no")] * 2


@pytest.mark.parametrize(
    "container",
    ["pandas", "polars", "arrow", "generator", "parquet", "jsonl", "json.gz", "csv of pandas"],
)
def test_each_kind_of_data_is_read_alike_from_any_container(container: str, tmp_path: Path) -> None:
    """Ids and users are numbers, some of which are missing."""
    for name, row in example_rows().items():
        rows = [{**row, "id": n or None, "worker_id": None if n == 1 else n} for n in range(5)]
        options: dict[str, Any] = {}
        try:
            read_preferences(rows)
        except DataError:
            options = {"pairs": "all"}
        want = preferences(read_preferences(rows, **options))
        if container == "csv of pandas":
            pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
            data: object = tmp_path / "rows.csv"
        else:
            data = CONTAINERS[container](rows, tmp_path)
        assert preferences(read_preferences(data, **options)) == want, name


def test_users_in_different_columns_of_a_csv_file_are_read_though_pandas_made_floats_of_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected,annotator,user\nq,yes,no,,5.0\nq,yes,no,3.0,\n")
    found = preferences(read_preferences(path))
    assert [pair and pair.user for pair in found] == ["5", "3"]


TURNED = {"columns": {"chosen": "b", "rejected": "a"}}  # what a line of infer tells


@pytest.mark.parametrize("container", [list, iter, pd.DataFrame, pa.Table.from_pylist])
@pytest.mark.parametrize(
    ("row", "options"),
    [
        # Columns were renamed after infer.
        ({"chosen": "x", "rejected": "y", "personainfer": TURNED}, {}),
        # The caller names the sides in another way, or one of them.
        (
            {"a": "x", "b": "y", "winner": "a", "personainfer": TURNED},
            {
                "columns": {"response_1": "a", "response_2": "b", "label": "winner"},
                "labels": {"a": "first"},
            },
        ),
        (
            {"a": "x", "rejected": "y", "b": "z", "personainfer": TURNED},
            {"columns": {"chosen": "a"}},
        ),
        # A column of the data's own.
        ({"chosen": "x", "rejected": "y", "personainfer": {"columns": {"q": 3}}}, {}),
        ({"chosen": "x", "rejected": "y", "personainfer": {"labels": {"z": 1}}}, {}),
    ],
)
def test_what_lines_of_infer_tell_holds_for_the_columns_that_they_have(
    container: Callable[[list[Any]], Any], row: dict[str, Any], options: dict[str, Any]
) -> None:
    told = json.dumps(row["personainfer"])
    rows = [{"prompt": "p", **row, "personainfer": told}]
    (found,) = read_preferences(container(rows), **options)
    assert found.preference == Preference(prompt="p", chosen="x", rejected="y")


@pytest.mark.parametrize(
    ("row", "gone"),
    [
        ({"chosen": "x", "rejected": "y", "b": "z", "personainfer": TURNED}, "a"),
        (
            {
                "response_1": "x",
                "response_2": "y",
                "safer": 1,
                "personainfer": {"columns": {"label": "winner"}},
            },
            "winner",
        ),
    ],
)
def test_a_column_of_a_side_that_lines_of_infer_lack_is_an_error(
    row: dict[str, Any], gone: str
) -> None:
    """What other columns tell may be the other way round."""
    with pytest.raises(InvalidArgumentError, match=f"'{gone}', which is not a column"):
        list(read_preferences([{"prompt": "p", **row}]))


@pytest.mark.parametrize("container", ["list", "generator", "polars", "arrow", "jsonl"])
def test_each_row_has_its_own_column_of_users_in_data_that_was_concatenated(
    container: str, tmp_path: Path
) -> None:
    """Where all rows that were looked at were of one source, the users of the other column were nobody."""
    for gap, count in ((None, 1), ("", 200)):
        one, other = {**ROW, "annotator": "a", "user": gap}, {**ROW, "annotator": gap, "user": "b"}
        rows = [one] * count + [other]
        found = preferences(read_preferences(CONTAINERS[container](rows, tmp_path)))
        assert [pair and pair.user for pair in found] == [row["annotator"] or "b" for row in rows]


def test_a_user_is_one_whether_pandas_made_a_float_of_the_id_or_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user,prompt,response,score\n7.0,q,yes,2\n7,q,no,1\n")
    found = preferences(read_preferences(path, pairs="best-worst"))
    assert found == [PAIR.model_copy(update={"user": "7"})]


def test_a_round_user_of_r_has_lost_no_digits(tmp_path: Path) -> None:
    """R writes 100000 so, between 99999 and 100001."""
    path = tmp_path / "rows.csv"
    path.write_text("prompt,chosen,rejected,user_id\nq,yes,no,1e+05\nq,yes,no,99999\n")
    found = preferences(read_preferences(path))
    assert [pair and pair.user for pair in found] == ["1e+05", "99999"]


def test_labels_that_are_such_words_keep_their_meaning(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("prompt,response_a,response_b,winner\nq,yes,no,a\nq,yes,no,None\n")
    assert "is a tie" in str(errors(path)[1])


def test_a_csv_file_in_another_encoding_says_how_to_read_it(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes("prompt,chosen,rejected\nThé?,a,b\nCafé?,a,b\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8.*pandas\.read_csv\(path, encoding="):
        read_preferences(path)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_two_columns_of_one_name_are_refused(ending: str, tmp_path: Path) -> None:
    """Which of them holds the response? The last one was taken in silence."""
    path = tmp_path / f"rows{ending}"
    names = [*ROW, "chosen"]
    if ending == ".csv":
        path.write_text(",".join(names) + "\nq,yes,no,maybe\n")
    else:
        columns = [pa.array([text]) for text in (*ROW.values(), "maybe")]
        pq.write_table(pa.Table.from_arrays(columns, names=names), path)
    with pytest.raises(DataError, match=r"rows.* has the column 'chosen' twice"):
        read_preferences(path)


def test_a_key_that_comes_twice_costs_its_json_line(tmp_path: Path) -> None:
    twice = json.dumps(ROW)[:-1] + ', "chosen": "maybe"}'
    turns = '[{"role": "assistant", "content": "yes", "content": "maybe"}]'
    nested = json.dumps({**ROW, "chosen": 0}).replace("0", turns)
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(ROW), twice, nested]))
    found = [str(row.error) for row in read_preferences(tmp_path / "rows.jsonl")]
    assert found == [
        "None",
        "line 2 cannot be read: 'chosen' is there twice. Rename or remove one of them.",
        "line 3 cannot be read: 'content' is there twice. Rename or remove one of them.",
    ]
    cell = {**ROW, "chosen": turns, "rejected": turns.replace(', "content": "maybe"', "")}
    good = {**cell, "chosen": cell["rejected"], "rejected": cell["rejected"].replace("yes", "no")}
    assert "'chosen': 'content' is there twice" in str([*read_preferences([good, cell])][1].error)
    (tmp_path / "rows.json").write_text(f"[{twice}]")
    with pytest.raises(DataError, match="in one of its objects 'chosen' is there twice"):
        read_preferences(tmp_path / "rows.json")


def test_bad_csv_rows_cost_only_themselves(tmp_path: Path) -> None:
    long = "x" * 200_000
    text = "\ufeffprompt,chosen,rejected,id\nq,yes,no,007\n\nq,yes\n"
    text += f'q,"y"es,no,2\n"q\n2",{long},no,3\n'
    (tmp_path / "b.csv").write_bytes(
        text.encode() + b"q,\xff,no,4\nq,yes,no,\n" + b'q,"open,no,5\n'
    )
    rows = list(read_preferences(str(tmp_path / "b.csv")))
    assert [p and p.id for p in preferences(rows)] == ["007", None, None, "3", None, None, None]
    assert rows[5].preference == PAIR
    told = [row.error or "" for row in rows]
    assert "2 fields where the header has 4" in told[1]
    assert "line 5 is not CSV" in told[2]
    assert "not UTF-8" in told[4]
    assert "unexpected end" in told[6]


@pytest.mark.parametrize("last", [None, 5])
def test_a_stray_quote_in_a_csv_file_costs_its_row_alone(last: int | None, tmp_path: Path) -> None:
    """It opened a cell that ended at the next quote, or never, and the rows in between were gone."""
    lines = [f"q{n},yes {n},no" for n in range(50)]
    lines[2] = f'"{lines[2]}'
    if last:
        lines[last] = f'{lines[last]}"'
    path = tmp_path / "q.csv"
    path.write_text("\n".join(["prompt,chosen,rejected", *lines, 'q50,"yes, 50","no\n"\n']))
    rows = list(read_preferences(path))
    assert len(rows) == 51
    assert "line 4 is not CSV" in str(rows[2].error)
    assert [place for place, row in enumerate(rows) if row.error] == [2]
    assert rows[50].preference == Preference(prompt="q50", chosen="yes, 50", rejected="no\n")


def test_quotes_that_stay_open_are_read_again_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "_MOST_READ_AGAIN", 10_000)
    path = tmp_path / "q.csv"
    path.write_text("prompt,chosen,rejected\nq,yes,no\n" + 'q,"yes,no\n' * 3000)
    with pytest.raises(DataError, match="too many quotes that stay open, the last one in line"):
        list(read_preferences(path))


@pytest.mark.parametrize(
    "text",
    [
        '"prompt", "chosen", "rejected"\n"q, 1", "Tea, or ""tea""", "Coffee"\n',
        'prompt, chosen, rejected\n"q, 1", "Tea, or ""tea""", Coffee\n',
        'prompt,chosen,rejected\n"q, 1",  "Tea, or ""tea""",  "Coffee"\n',
    ],
)
def test_blanks_after_the_commas_of_a_csv_file_belong_to_no_cell(text: str, tmp_path: Path) -> None:
    """With them, quotes were a part of the response, and a comma in quotes broke the row."""
    (tmp_path / "rows.csv").write_text(text)
    (row,) = read_preferences(tmp_path / "rows.csv")
    assert row.preference == Preference(
        prompt="q, 1", chosen='Tea, or "tea"', rejected="Coffee", id=None, user=None
    )


def test_blanks_at_the_start_of_csv_cells_are_kept(tmp_path: Path) -> None:
    texts = [' "Tea", she said', ", ", ' no, "']
    frame = pd.DataFrame([{**ROW, "chosen": text} for text in texts])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    found = [row.preference for row in read_preferences(tmp_path / "rows.csv")]
    assert [pair and pair.chosen for pair in found] == texts


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_carriage_return_without_quotes_begins_no_csv_row(end: str, tmp_path: Path) -> None:
    """pandas writes such cells. "Step 1" alone is not what the response says, nor is a line of it a row."""
    path = tmp_path / "rows.csv"
    text = f"Well:{end}now\rnow{end}I like tea, coffee, and milk{end}."
    rows = [("q", "a", "Step 1\rStep 2"), ("p\rp", "a", "b"), ("q\rp", f'"{text}"', "b\rc")]
    lines = ["prompt,chosen,rejected", *map(",".join, rows), '"p\rp",a,b', f'q,"{text}",b,c']
    path.write_bytes("".join(line + end for line in lines).encode())
    *found, broken = [row.preference for row in read_preferences(path)]
    cells = [tuple(cell.strip('"') for cell in row) for row in [*rows, rows[1]]]
    assert [(one.prompt, one.chosen, one.rejected) for one in found if one] == cells
    assert broken is None


def test_a_line_of_a_csv_file_ends_where_two_carriage_returns_or_the_file_end(
    tmp_path: Path,
) -> None:
    """Programs on Windows add rows so below a header: the last cell got a carriage return."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,chosen,rejected\r\nq,yes,no\r\r\nq,yes,"no"\r\r\nq,yes,n\ro')
    last = PAIR.model_copy(update={"rejected": "n\ro"})
    assert preferences(read_preferences(path)) == [PAIR, PAIR, last]


def test_a_csv_file_whose_lines_all_end_with_carriage_returns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,chosen,rejected\rq,a,"b\nc"\rp,a,b\r')
    assert [row["rejected"] for row in cast("Iterable[Any]", open_rows(path)[0])] == ["b\nc", "b"]


def test_the_header_of_a_csv_file_that_was_joined_to_another_is_no_pair(tmp_path: Path) -> None:
    """Personas were inferred from the words "prompt", "chosen" and "rejected"."""
    path = tmp_path / "rows.csv"
    one = "\ufeffprompt,chosen,rejected\nq,yes,no\n"
    path.write_text(one + one, encoding="utf-8")
    rows = list(read_preferences(path))
    assert [row.preference for row in rows] == [PAIR, None, PAIR]
    assert "line 3 is the header again" in str(rows[1].error)
    path.write_text(one + "prompt,rejected,chosen\nq,no,yes\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 3 of .* in another order"):
        list(read_preferences(path))


@pytest.mark.parametrize("header", ['"prompt","chosen","rejected"', "prompt,chosen,rejected,,"])
def test_a_header_that_comes_again_may_have_quotes_or_cells_without_a_name(
    header: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    row = "q,yes,no" + ",," * header.endswith(",")
    path.write_text(f"\ufeff{header}\n{row}\n" * 2, encoding="utf-8")
    assert preferences(read_preferences(path)) == [PAIR, None, PAIR]


def test_json_lines_that_were_joined_have_several_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\ufeff{json.dumps(ROW)}\n" * 2, encoding="utf-8")
    assert preferences(read_preferences(path)) == [PAIR, PAIR]


def test_lines_of_a_text_in_a_csv_cell_are_no_rows(tmp_path: Path) -> None:
    text = "name,age,city\n" + "Bob,3,Rome\n" * 20
    path = write_csv([{**ROW, "chosen": text}, ROW], tmp_path)
    assert preferences(read_preferences(path)) == [PAIR.model_copy(update={"chosen": text}), PAIR]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"text, not parquet", "holds text"),
        ("a.parquet", b"", "should be Parquet"),
        ("a.parquet", b"PAR1 and then nothing PAR1", "damaged"),
        ("a.jsonl.gz", b'{"prompt": 1}', "should be gzip"),
        ("a.jsonl.gz", gzip.compress(json.dumps(ROW).encode() * 99, mtime=0)[:-20], "to its end"),
        ("a.csv", b"PAR1\0\0", "holds Parquet"),
        ("a.csv", b"a,b\0", "binary"),
        ("a.csv", b"\x89PNG\r\n\0\xff", "binary"),
        ("a.csv", b"a,a\n1,2", "twice"),
        ("a.csv", b"prompt;chosen;rejected\nq;a;b\n", r"separated by ';'.*sep=';'"),
        ("a.csv", b"prompt\tchosen\trejected\nq\ta\tb\n", r"separated by '\\t'.*pandas"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip-compressed"),
        ("a.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("a.jsonl", b"[\n{}\n]", r"Rename it to \.json"),
        ("a.jsonl", b"plain text\nand more", "none of its first 2 rows"),
        ("a.json", b'{"prompt": "q"}\n{"prompt": "q"}', "jsonl"),
        ("a.json", b"\xff", "UTF-8"),
        ("a.json", b"3", "single int"),
        ("a.json", b'{"prompt": [], "chosen": []}', "single dict"),
    ],
)
def test_files_that_are_not_what_they_say(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        list(read_preferences(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.skipif(not hasattr(pa, "json_"), reason="an Arrow without the type arrow.json")
def test_columns_of_the_type_json_are_read_as_their_values() -> None:
    """`datasets` has a feature Json, which it also chooses for calls of tools with different arguments."""

    def column(values: list[Any]) -> Any:
        texts = pa.array(["not JSON" if each is None else json.dumps(each) for each in values])
        return pa.ExtensionArray.from_storage(pa.json_(pa.string()), texts)

    call = {"name": "clock", "arguments": {"x": 1}}
    turn = {"role": "assistant", "content": "hm", "tool_calls": [call]}
    asked = [{"role": "user", "content": "q"}, turn, {"role": "tool", "content": "12"}]
    calls = pa.ListArray.from_arrays([0, 1], column([call]))
    turns = pa.StructArray.from_arrays(
        [pa.array(["assistant"]), pa.array(["hm"]), calls], ["role", "content", "tool_calls"]
    )
    table = pa.table(
        {
            "prompt": column([{"text": "q"}, asked, None]),
            "chosen": column([{"text": "yes"}] * 3),
            "rejected": column([{"text": "no"}] * 3),
        }
    )
    one, two, odd = preferences(read_preferences(table))
    assert one == PAIR
    assert two is not None
    assert isinstance(two.prompt[1], Message)
    assert two.prompt[1].extra == {"tool_calls": [call]}
    assert odd is not None
    assert odd.prompt == "not JSON"
    nested = pa.table(
        {
            "prompt": pa.ListArray.from_arrays([0, 1], turns),
            "chosen": pa.array(["yes"]),
            "rejected": pa.array(["no"]),
        }
    )
    (found,) = preferences(read_preferences(nested, columns={"prompt": "prompt"}))
    assert found is not None
    assert isinstance(found.prompt[0], Message)
    assert found.prompt[0].extra == {"tool_calls": [call]}
    lists = {"prompt": pa.array(["q"]), "chosen": column([["a", "c"]]), "rejected": column([["b"]])}
    with pytest.raises(DataError, match="pairs="):
        read_preferences(pa.table(lists))
    assert len(list(read_preferences(pa.table(lists), pairs="all"))) == 2


def test_a_page_of_the_hubs_viewer_is_read(tmp_path: Path) -> None:
    """https://datasets-server.huggingface.co/rows gives such an object."""
    rows = [{"row_idx": n, "row": ROW, "truncated_cells": ["chosen"] * n} for n in range(2)]
    page = {"features": [{"feature_idx": 0, "name": "prompt"}], "rows": rows, "partial": False}
    for name, value in (("page.json", page), ("alone.json", {"rows": rows}), ("list.json", rows)):
        (tmp_path / name).write_text(json.dumps(value))
        read = list(read_preferences(tmp_path / name))
        assert read[0].preference == PAIR
        assert "has cut 'chosen'" in (read[1].error or "")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_quoted_names_with_another_separator_than_commas_are_told(
    separator: str, tmp_path: Path
) -> None:
    rows = [["prompt", "chosen", "rejected"], ["q, so?", "yes", "no"]]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(rows)
    with pytest.raises(DataError, match="is separated by"):
        read_preferences(tmp_path / "rows.csv")


@pytest.mark.parametrize("orient", ["columns", "index", "split"])
def test_a_json_file_of_pandas_says_how_it_is_passed(orient: Any, tmp_path: Path) -> None:
    pd.DataFrame([ROW] * 3).to_json(tmp_path / "rows.json", orient=orient)
    with pytest.raises(DataError, match=r"pandas\.read_json"):
        read_preferences(tmp_path / "rows.json")
    assert (
        preferences(read_preferences(pd.read_json(tmp_path / "rows.json", orient=orient)))
        == [PAIR] * 3
    )


def test_missing_files_and_other_strings(tmp_path: Path) -> None:
    write_jsonl([ROW], tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"not found.*'data\.jsonl'"):
        read_preferences(tmp_path / "dta.jsonl")
    with pytest.raises(InvalidArgumentError, match="folder"):
        read_preferences(tmp_path)
    for text in ("What is this?", "x" * 5000, "nul\0.txt", "s3://bucket/x.parquet", ""):
        with pytest.raises(InvalidArgumentError):
            read_preferences(text)
    for name in ("data.xlsx", "data.parquet.gz"):
        (tmp_path / name).touch()
        with pytest.raises(InvalidArgumentError, match=r"supported.*\.parquet"):
            read_preferences(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])}), "Pick one"),
        (3, "Supported are"),
        (None, "Supported are"),
        (b"bytes", "Supported are"),
        (pd.Series(["q"]), "Supported are"),
        (pd.Series([{**ROW, "x": True}, {**ROW, "x": 1.5}]), "Supported are"),
        (ROW, "list of rows"),
        (PAIR, "list of rows"),
        (
            {"prompt": ["q", "r"], "chosen": ["a", "b"], "rejected": ["c", "d"]},
            r"pandas\.DataFrame",
        ),
        (persona_table(), "retry_errors"),
        (("q", "yes", "no"), "list of rows"),
    ],
)
def test_what_is_no_data(data: object, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        read_preferences(data)


@pytest.mark.parametrize("names", ["prompt,rejected,chosen", "Question,Best Answer,Worst Answer"])
def test_the_header_that_csv_reader_gives_is_no_row(names: str) -> None:
    """By place, the columns of the first would be the wrong way round."""
    rows = csv.reader([names, "q,no,yes"])
    with pytest.raises(InvalidArgumentError, match=r"names of columns: .*csv\.DictReader"):
        read_preferences(rows)
    like_names = ("Which word?", "chosen", "rejected")
    assert [row.error for row in read_preferences([like_names])] == [None]


def test_two_columns_of_one_name() -> None:
    frame = pd.DataFrame(
        [["q", "yes", "no", "x"]], columns=["prompt", "chosen", "rejected", "prompt"]
    )
    with pytest.raises(DataError, match="twice"):
        read_preferences(frame)


class Relation:
    """What a relation of DuckDB is for us: an object that gives one Arrow stream."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return cast("Any", self.table).__arrow_c_stream__(requested_schema)


def test_an_object_that_gives_an_arrow_stream_is_read_as_a_table() -> None:
    table = pa.table({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]})
    wanted = [
        Preference(prompt="a", chosen="c", rejected="e"),
        Preference(prompt="b", chosen="d", rejected="f"),
    ]
    for data in (Relation(table), pa.RecordBatchReader.from_stream(table)):
        assert [row.preference for row in read_preferences(data)] == wanted


def test_arrow_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    prompts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"q"]).buffers())
    table = pa.table({"prompt": prompts, "chosen": ["yes"] * 2, "rejected": ["no"] * 2})
    pq.write_table(table, tmp_path / "bad.parquet")
    for data in (table, tmp_path / "bad.parquet"):
        bad, good = read_preferences(data)
        assert "not UTF-8" in (bad.error or "")
        assert good.preference == PAIR


def test_names_that_are_no_text_are_listed() -> None:
    with pytest.raises(DataError, match="7"):
        read_preferences(pd.DataFrame({7: ["q"]}))
    frame = pd.DataFrame([ROW])
    frame[7] = 1
    assert preferences(read_preferences(frame)) == [PAIR]


def test_only_the_columns_needed_are_read() -> None:
    table = pa.table({**{k: [v] for k, v in ROW.items()}, "image": [b"x"]})
    data = datasets.Dataset(table).cast_column("image", datasets.Image())
    assert preferences(read_preferences(data.with_format("numpy"))) == [PAIR]


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW] * 5000), tmp_path / "big.parquet")
    source = read_preferences(tmp_path / "big.parquet")
    assert source.total == 5000
    assert sum(p == PAIR for p in preferences(source)) == 5000


def test_pair_problem_of_records_made_elsewhere() -> None:
    assert pair_problem(PAIR) is None
    assert "prompt is empty" in (pair_problem(PAIR.model_copy(update={"prompt": ()})) or "")
    for field in ("prompt", "chosen", "rejected"):
        broken = PAIR.model_copy(update={field: "\udc80"})
        assert (pair_problem(broken) or "").startswith(f"{field} holds")
    turn = Message.model_construct(role="user", content="\udc80")
    assert errors([PAIR.model_copy(update={"prompt": (turn,)})])[0]


@pytest.mark.heavy  # test_architecture.py says it of all that `infer_personas` imports
def test_importing_is_cheap() -> None:
    heavy = {"pandas", "polars", "pyarrow", "datasets", "narwhals"}
    code = (
        "import sys, personainfer.data.containers; print(*{m.split('.')[0] for m in sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(out.stdout.split())


# Real data


def shared(name: str) -> PreferenceSource:
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there")
    return read_preferences(SHARED / name)


@pytest.mark.heavy
def test_hh_rlhf() -> None:
    source = shared("hh_rlhf_harmless_base_test.jsonl")
    rows = list(source)
    assert (source.shape, len(rows)) == ("implicit", 2312)
    failed = {i: row.error for i, row in enumerate(rows) if row.error}
    # In four the chosen assistant said nothing; in five a transcript has a turn more than the other.
    empty = [i for i, error in failed.items() if "chosen is empty" in error]
    parted = [i for i, error in failed.items() if "do not share a prompt" in error]
    assert empty == [86, 516, 925, 1103]
    assert parted == [1254, 1688, 1950, 1952, 2036]
    assert len(failed) == 9
    assert sum(isinstance(p.prompt, str) for p in preferences(rows) if p) == 658


def test_llmbar() -> None:
    source = shared("llmbar_natural.json")
    raw = json.loads((SHARED / "llmbar_natural.json").read_text(encoding="utf-8"))
    pairs = preferences(source)
    assert source.shape == "LLMBar"
    assert [p and p.chosen for p in pairs] == [row[f"output_{row['label']}"] for row in raw]
    assert [p and p.rejected for p in pairs] == [row[f"output_{3 - row['label']}"] for row in raw]


def test_roles_of_a_record_have_the_names_that_models_know() -> None:
    def record(*roles: str) -> Preference:
        turns = tuple(Message(role=role, content=f"turn {n}") for n, role in enumerate(roles))
        return Preference(prompt=turns, chosen="a", rejected="b")

    first, second, unknown = read_preferences(
        [record("System", "human", "gpt", "Human"), record("user"), record("user", "alien", "user")]
    )
    assert first.preference == record("system", "user", "assistant", "user")
    assert second.preference == record("user")
    assert unknown.error is not None
    assert "'alien', which is not known" in unknown.error


@pytest.mark.parametrize(
    "value",
    [datetime(2020, 1, 1), b"x", np.int64(5), {(1, 2): 3}, 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_a_turn_with_a_field_that_json_lacks_costs_its_row(value: Any) -> None:
    turn = Message(role="user", content="q", extra={"x": value})
    odd = Preference(prompt=(turn,), chosen="yes", rejected="no")
    rows = list(read_preferences([PAIR, odd]))
    assert [row.preference for row in rows] == [PAIR, None]
    assert "a field that JSON cannot hold" in str(rows[1].error)


class Failing:
    """A relation whose query fails."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        raise RuntimeError(self.said)

    def __init__(self, said: str) -> None:
        self.said = said


@pytest.mark.parametrize("said", ["no such table\nLINE 1", ""])
def test_a_stream_that_fails_is_no_table(said: str) -> None:
    words = said.partition("\n")[0] or "RuntimeError"
    with pytest.raises(InvalidArgumentError, match=f"the Failing is no Arrow table: {words}"):
        read_preferences(Failing(said))


def test_times_of_day_with_nanoseconds_are_texts(tmp_path: Path) -> None:
    times: pa.Array[Any] = pa.array([1_000, None, 1_001], pa.time64("ns"))
    rows = {name: [value] * 3 for name, value in ROW.items()}
    pq.write_table(pa.table({**rows, "t": times, "u": times.fill_null(0)}), tmp_path / "t.parquet")
    found = [row.columns["t"] for row in read_preferences(tmp_path / "t.parquet")]
    assert found == ["00:00:00.000001000", None, "00:00:00.000001001"]
    assert arrow_cells(times[:2]) == [time(0, 0, 0, 1), None]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda of: pa.struct([("a", of)])])
def test_times_of_day_with_nanoseconds_within_others_are_texts(kind: Callable[..., Any]) -> None:
    deep = kind(kind(pa.time64("ns")))

    def cells(nanoseconds: int) -> Any:
        given: Any = {"a": {"a": nanoseconds}} if pa.types.is_struct(deep) else [[nanoseconds]]
        found: Any = arrow_cells(pa.array([given], deep))[0]
        return found["a"]["a"] if isinstance(found, dict) else found[0][0]

    assert cells(1_001) == "00:00:00.000001001"
    assert cells(1_000) == time(0, 0, 0, 1)
