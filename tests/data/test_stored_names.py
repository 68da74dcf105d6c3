"""Names of own columns and of a pandas index in Arrow and in files: none is there twice, none is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import personainfer as pi
from personainfer import PersonaRow, PersonaTable, Preference
from personainfer.data import column_values
from personainfer.data import table_writer as writing
from personainfer.data.column_values import json_text, json_texts, kept_in_arrow
from personainfer.data.own_columns import _RowColumns, own_columns, pandas_of
from personainfer.data.table_writer import write_table
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.records import Usage
from personainfer.testing import FakeLLM

PAIRS: dict[str, list[Any]] = {
    "prompt": ["p", "q", "r"],
    "chosen": ["a", "c", "e"],
    "rejected": ["b", "d", "f"],
}
ROWS = [dict(zip(PAIRS, values, strict=True)) for values in zip(*PAIRS.values(), strict=True)]


def table_of(data: Any) -> PersonaTable:
    original = data if isinstance(data, pd.DataFrame) else None
    rows = data if original is None else [{}] * len(data)
    pair = Preference(prompt="p", chosen="a", rejected="b")
    made = [PersonaRow(place, pair, error="none", columns=row) for place, row in enumerate(rows)]
    return PersonaTable(made, original=original)


def indexed(index: Any, more: dict[Any, Any] | None = None) -> pd.DataFrame:
    columns = {**PAIRS, **(more or {})}
    names = pd.Index([*columns], dtype=object)  # as text they could hold no surrogate
    return pd.DataFrame(dict(enumerate(columns.values())), index).set_axis(names, axis=1)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (indexed(pd.Index(["x", "y", "z"], name="user_id")), "user_id"),
        (indexed(pd.RangeIndex(3, name="user_id")), "user_id"),
        (indexed(pd.MultiIndex.from_product([["x"], [1, 2, 3]], names=["a", "b"])), "b"),
        (indexed(pd.Index(["x", "y", "z"])), "__index_level_0__"),
        (indexed(pd.RangeIndex(3), {1: [1, 2, 3]}), "1"),
        (indexed(pd.RangeIndex(3), {"a\ud800": [1, 2, 3]}), "a\\ud800"),
        ([{**row, 1: 5} for row in ROWS], "1"),
        ([{**row, 1: 5, "1": 6} for row in ROWS], "1 (int)"),
    ],
    ids=["index", "counting index", "level", "unnamed", "number", "escaped", "key", "both keys"],
)
def test_no_added_column_has_the_name_that_own_data_has_in_a_file(
    data: Any, name: str, tmp_path: Path
) -> None:
    table = table_of(data)
    table.save(tmp_path / "t.parquet")
    for each in (table, PersonaTable.load(tmp_path / "t.parquet")):
        with pytest.raises(InvalidArgumentError, match="already"):
            each.with_columns({name: ["u", "v", "w"]})


@pytest.mark.heavy
@pytest.mark.parametrize(
    "labels",
    [
        pd.Index([7, 5, 9], name="chosen_persona"),
        pd.Index([7, 5, 9], name="personainfer"),
        pd.RangeIndex(5, 8, name="persona_error"),
    ],
    ids=["persona", "record", "counting"],
)
def test_an_index_with_the_name_of_a_column_of_ours_comes_back(
    labels: pd.Index[Any], llm: FakeLLM, tmp_path: Path
) -> None:
    frame = indexed(labels)
    path = tmp_path / "t.parquet"
    made = pi.infer_personas(frame, "m", api_base=llm.api_base, cache=False, output=path)
    made.save(tmp_path / "again.parquet")
    for table in (made, PersonaTable.load(path), PersonaTable.load(tmp_path / "again.parquet")):
        assert [*table.to_pandas().index] == [*labels]
        assert table.to_pandas().index.name == labels.name
        part = table[::2]
        part.save(tmp_path / "part.parquet")
        for each in (part, PersonaTable.load(tmp_path / "part.parquet")):
            assert [*each.to_pandas().index] == [*labels[::2]]
            assert each.to_pandas().index.name == labels.name
            assert each.to_arrow().column("chosen_persona").null_count == 0


@pytest.mark.parametrize(
    "frame",
    [
        indexed(pd.MultiIndex.from_arrays([[1, 1, 2], [3, 4, 3]], names=["a", "a"])),
        indexed(pd.Index(["x", "y", "z"]), {"__index_level_0__": [1, 2, 3]}),
        indexed(pd.RangeIndex(3), {"__index_level_0__": [1, 2, 3]}),
        indexed(pd.Index(["x", "y", "z"], name="prompt")),
        indexed(pd.Index(["x", "y", "z"], name=("a", 1))),
        indexed(pd.Index(["x", "y", "z"], name="a\ud800")),
    ],
    ids=["levels", "generated name", "counting", "of a column", "tuple", "surrogate"],
)
def test_no_two_columns_of_a_file_have_one_name(frame: pd.DataFrame, tmp_path: Path) -> None:
    table = table_of(frame)
    table.save(tmp_path / "t.parquet")
    loaded = PersonaTable.load(tmp_path / "t.parquet")
    for part in (loaded, loaded[::2]):
        found = part.to_pandas()
        labels = frame.index if part is loaded else frame.index[::2]
        assert [*found.index] == [*labels]
        assert [*found.columns[:-3]] == [*frame.columns]
        assert [*map(str, found.index.names)] == [
            str(name).encode("utf-8", "backslashreplace").decode() for name in frame.index.names
        ]
        names = part.to_arrow().column_names
        assert len({*names}) == len(names)


def test_keys_of_one_text_are_columns_of_their_own_in_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 2)
    table = table_of([{1: "of 1"}] * 3 + [{1: "of 1", "1": "of text"}])
    path = table.save(tmp_path / "t.parquet")
    for each in (table, PersonaTable.load(path)):
        own = each.to_arrow().select(["1 (int)", "1"]).to_pydict()
        assert own == {"1 (int)": ["of 1"] * 4, "1": [None] * 3 + ["of text"]}
    # Of rows that come one by one, the key that came first has the text.
    write_table(path, enumerate(table), own_columns(None), lambda: (Usage(), {}))
    own = PersonaTable.load(path).to_arrow().select(["1", "1 (str)"]).to_pydict()
    assert own == {"1": ["of 1"] * 4, "1 (str)": [None] * 3 + ["of text"]}


@pytest.mark.parametrize("deep", [{1: "a", "1": "b"}, {True: 1, "true": 2}, {None: 1, "null": 2}])
def test_keys_of_one_text_within_a_value_are_both_in_its_json_text(deep: dict[Any, Any]) -> None:
    assert len(json.loads(json_text(deep))) == 2
    assert len(json.loads(json_text([{"x": deep}]))[0]["x"]) == 2


def test_a_key_for_which_json_has_a_text_keeps_it() -> None:
    assert json_text({True: 1, False: 2, None: 3}) == '{"true": 1, "false": 2, "null": 3}'
    assert json_text([{True: 1, (1, 2): {None: 3}}]) == '[{"true": 1, "(1, 2)": {"null": 3}}]'
    assert json.loads(json_text({True: 1, "true": 2})) == {"True": 1, "true": 2}
    assert json_text({1: "a", 0: "b"}) == '{"1": "a", "0": "b"}'  # although 1 == True


def test_keys_are_looked_for_once_in_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    within = column_values._within

    def watched(values: Sequence[object]) -> Any:
        looked.append(len(values))
        return within(values)

    monkeypatch.setattr(column_values, "_within", watched)
    column = [{"x": [1, {"y": "a"}]}, ["a"], None] * 10
    assert json_texts(column) == list(map(json.dumps, column))
    assert looked == [30]


@pytest.mark.parametrize("odd", [{1: "a", "1": "b"}, [[]]])
def test_a_column_is_written_as_each_of_its_values_is(odd: Any) -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    column = [{"x": 1}, odd, {"y": {"\ud83d": 2}}, "a", None, deep]
    assert json_texts(column) == list(map(json_text, column))


def test_twins_are_refused_before_a_file_is_replaced(tmp_path: Path) -> None:
    class Twins(_RowColumns):
        def piece(self, places: Any, rows: Any) -> pa.Table:
            return pa.Table.from_arrays([pa.array([1])] * 2, ["x", "x"])

    path = table_of(ROWS).save(tmp_path / "t.parquet")
    before = path.read_bytes()
    rows = [(0, PersonaRow(0, None, error="none"))]
    with pytest.raises(DataError, match="'x' twice"):
        write_table(path, rows, Twins(), lambda: (Usage(), {}))
    assert path.read_bytes() == before


def test_an_unnamed_level_beside_a_named_one_comes_back_without_a_name(tmp_path: Path) -> None:
    levels = pd.MultiIndex.from_product([["x"], [1, 2, 3]], names=["a", None])
    table_of(indexed(levels)).save(tmp_path / "t.parquet")
    assert list(PersonaTable.load(tmp_path / "t.parquet").to_pandas().index.names) == ["a", None]


@pytest.mark.parametrize("name", ["user_id", None])
def test_columns_of_which_old_metadata_tell_one_name_are_read(
    name: str | None, tmp_path: Path
) -> None:
    frame = indexed(pd.Index(["x", "y", "z"], name=name))
    table = pa.Table.from_pandas(frame)
    described = json.loads((table.schema.metadata or {})[b"pandas"])
    for column in described["columns"]:
        column["name"] = column.pop("field_name")
    table = table.replace_schema_metadata({b"pandas": json.dumps(described).encode()})
    pd.testing.assert_frame_equal(pandas_of(table), frame, check_column_type=False)
    made = PersonaTable(list(table_of(frame)), original=table)
    for each in (made, PersonaTable.load(made.save(tmp_path / "t.parquet"))):
        own = each.to_pandas()[[*PAIRS]]
        pd.testing.assert_frame_equal(own, frame, check_column_type=False)


class _Mode(str, Enum):  # noqa: UP042  (`str` of it is another text)
    FAST = "fast"


class _Text(str): ...


class _Folded(str):
    """A dict does not find it by its letters, and neither does Arrow."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("key", [_Mode.FAST, _Text("fast"), np.str_("fast")], ids=repr)
def test_a_key_of_a_class_of_texts_is_a_text(key: str, tmp_path: Path) -> None:
    assert json_text([{"x": {key: 1}}]) == '[{"x": {"fast": 1}}]'
    settings = {"extra_body": {key: 1, "options": [{key: 2}]}}
    path = (
        table_of([{"a": {key: 1}}] * 3)
        .with_columns({}, settings=settings)
        .save(tmp_path / "t.parquet")
    )
    table = PersonaTable.load(path)
    assert table.settings["extra_body"] == {"fast": 1, "options": [{"fast": 2}]}
    assert table.to_arrow()["a"].to_pylist() == [{"fast": 1}] * 3


def test_a_text_that_no_dict_finds_keeps_its_value() -> None:
    assert kept_in_arrow([{_Folded("a"): 1}]) is None
