"""Tests of own columns whose values no file, library or process can hold: no paid row is lost with them."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.data import table_writer as writing
from personainfer.data.arrow_columns import cells_of, in_narwhals
from personainfer.exceptions import DataError
from personainfer.testing import FakeLLM

PAIRS: dict[str, list[Any]] = {"prompt": ["p", "q"], "chosen": ["a", "c"], "rejected": ["b", "d"]}
FAR = 2**62  # seconds from 1970


@pytest.fixture
def asked(llm: FakeLLM) -> dict[str, Any]:
    return {"model": "fake", "api_base": llm.api_base, "cache": False}


def column(path: Path, name: str = "z") -> list[Any]:
    loaded = pi.PersonaTable.load(path)
    assert not loaded.errors
    assert len(loaded) == len(loaded.to_pandas()) == 2
    assert str(loaded)
    return loaded.to_arrow().column(name).to_pylist()


@pytest.mark.parametrize(
    "times",
    [
        pa.array([FAR, 1], pa.timestamp("s", "UTC")),
        pa.array([[1], [FAR]], pa.list_(pa.timestamp("s"))),
        pa.array([{"t": 1}, {"t": FAR}], pa.struct([("t", pa.timestamp("s"))])),
    ],
    ids=["times", "listed", "in objects"],
)
def test_values_that_parquet_lacks_cost_their_column_its_type(
    times: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    data = pa.table({**PAIRS, "z": times})
    made = pi.infer_personas(data, **asked, output=tmp_path / "a.parquet")
    pi.infer_personas(data, **asked).save(tmp_path / "b.parquet")
    made[::-1].save(tmp_path / "c.parquet")
    kept = column(tmp_path / "a.parquet")
    assert kept == column(tmp_path / "b.parquet") == column(tmp_path / "c.parquet")[::-1]
    assert sum("1970-01-01 00:00:01" in text for text in kept) == 1
    assert "null" not in kept


def test_rows_before_such_a_value_keep_theirs(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 1)
    data = pa.table({**PAIRS, "z": pa.array([1, FAR], pa.timestamp("s"))})
    pi.infer_personas(data, **asked, output=tmp_path / "t.parquet")
    first, second = column(tmp_path / "t.parquet")
    assert "1970-01-01" in first
    assert str(FAR) in second


def test_a_column_that_cannot_be_read_at_all_is_left_out_with_a_warning(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(column: Any) -> list[Any]:
        raise RuntimeError("a value of the column")

    monkeypatch.setattr(writing, "arrow_cells", fails)
    name = "z\x1b"
    data = pa.table({**PAIRS, name: pa.array([1, FAR], pa.timestamp("s"))})
    with pytest.warns(UserWarning, match=r"column z\\x1b .*: RuntimeError while"):
        pi.infer_personas(data, **asked, output=tmp_path / "t.parquet")
    assert column(tmp_path / "t.parquet", name) == ["null", "null"]
    with warnings.catch_warnings(), suppress(UserWarning):  # where warnings are errors
        warnings.simplefilter("error", UserWarning)
        pi.infer_personas(data, **asked, output=tmp_path / "strict.parquet")
    assert column(tmp_path / "strict.parquet", name) == ["null", "null"]


@pytest.mark.parametrize(
    "values",
    [
        pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]),
        pa.array([1, 2], pa.time64("ns")),
        pa.array([2**60] * 2, pa.date64()),
    ],
    ids=["unions", "nanoseconds of a day", "far days"],
)
def test_columns_that_pandas_lacks_are_an_error_of_this_library(values: Any) -> None:
    table = pi.PersonaTable.from_data(
        pa.table({**PAIRS, "z": values, "chosen_persona": ["x", "y"]}), rejected_persona=None
    )
    with pytest.raises(DataError, match=r"pandas cannot hold .*to_arrow\(\)"):
        table.to_pandas()


@pytest.mark.parametrize("method", ["to_pandas", "to_polars", "to_hf"])
@pytest.mark.parametrize("error", [MemoryError, ImportError])
def test_no_memory_and_no_package_are_not_errors_of_columns(
    method: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error("of the process")

    data = pa.table({**PAIRS, "chosen_persona": ["x", "y"]})
    table = pi.PersonaTable.from_data(data, rejected_persona=None)
    for place in ("personainfer.data.table.pandas_frame", "polars.from_arrow", "datasets.Dataset"):
        monkeypatch.setattr(place, fails)
    with pytest.raises(error, match="of the process"):
        getattr(table, method)()


VIEWS = {
    "texts": pa.array(["x", "y", None], pa.string_view()),
    "bytes": pa.array([b"x", b"\xff", None], pa.binary_view()),
    "listed": pa.array([["x"], ["y", None], None], pa.list_(pa.string_view())),
    "lists": pa.array([[1], [2], None], pa.list_view(pa.int8())),
}


@pytest.mark.heavy
@pytest.mark.parametrize("values", VIEWS.values(), ids=VIEWS)
def test_rows_of_views_are_picked_from_a_file(values: Any, tmp_path: Path) -> None:
    texts = {name: [*each, "x"] for name, each in PAIRS.items()}
    data = pa.table({**texts, "chosen_persona": ["A", "B", "C"], "z": values, "n": [1, 2, 3]})
    table = pi.PersonaTable.from_data(data, rejected_persona=None)
    stored = pi.PersonaTable.load(table.save(tmp_path / "t.parquet"))
    kept = stored.to_arrow().column("z").to_pylist()
    for part, places in (
        (stored[::2], [0, 2]),
        (stored[::-1], [2, 1, 0]),
        (stored.filter([False, True, True]), [1, 2]),
        (stored.sort("n", reverse=True), [2, 1, 0]),
    ):
        for each in (part, pi.PersonaTable.load(part.save(tmp_path / "part.parquet"))):
            assert each.to_arrow().column("z").to_pylist() == [kept[place] for place in places]
            assert each.to_arrow().column("n").to_pylist() == [place + 1 for place in places]


def test_numbers_of_a_negative_scale_cost_their_column_its_type(tmp_path: Path) -> None:
    numbers = pa.array([Decimal("1500"), None], pa.decimal128(5, -2))
    data = pa.table({**PAIRS, "chosen_persona": ["A", "B"], "z": numbers})
    table = pi.PersonaTable.from_data(data, rejected_persona=None)
    assert table.to_arrow().column("z").equals(pa.chunked_array([numbers]))
    assert table[::-1].to_arrow().column("z").to_pylist() == [None, Decimal("1500")]
    assert column(table.save(tmp_path / "t.parquet")) == ['"1.5E+3"', "null"]


@pytest.mark.parametrize("kind", [pl.Datetime("us"), pl.Datetime("ms"), pl.List(pl.Datetime("us"))])
def test_a_time_at_which_polars_itself_ends_costs_no_row(kind: Any) -> None:
    far = pl.Series([2**63 - 1 if "us" in str(kind) else 9 * 10**15, 0])
    times = far.reshape((2, 1)).cast(kind) if "List" in str(kind) else far.cast(kind)
    data = pl.DataFrame({**PAIRS, "chosen_persona": ["A", "B"], "z": times})
    assert not any(row.error for row in read_preferences(data))
    table = pi.PersonaTable.from_data(data, chosen_persona="z", rejected_persona="chosen_persona")
    assert [row.rejected is None for row in table] == [False, False]


def test_a_column_without_a_name_costs_nothing(tmp_path: Path) -> None:
    names = pd.Index([*PAIRS, "chosen_persona", None], dtype="string")
    frame = pd.DataFrame([*zip(*PAIRS.values(), "AB", [1, 2], strict=True)]).set_axis(names, axis=1)
    table = pi.PersonaTable.from_data(frame, rejected_persona=None)
    assert column(table.save(tmp_path / "t.parquet"), "<NA>") == [1, 2]


class Frame(pd.DataFrame):
    """A frame of another library, such as geopandas."""

    @property
    def _constructor(self) -> Any:
        return Frame


def test_a_class_of_pandas_frames_is_a_pandas_frame(tmp_path: Path) -> None:
    frame = Frame({**PAIRS, "chosen_persona": ["A", "B"]}, index=["x", "y"])
    table = pi.PersonaTable.from_data(frame, rejected_persona=None)
    for each in (table, pi.PersonaTable.load(table.save(tmp_path / "t.parquet"))):
        assert [*each[::-1].to_pandas().index] == ["y", "x"]
        assert each.to_arrow().column("chosen").to_pylist() == PAIRS["chosen"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "values",
    [
        pa.array(["x", "y"], pa.string_view()),
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["x", "y"])),
        pa.array([[1], [2]], pa.list_view(pa.int8())),
    ],
    ids=["views", "runs", "views of lists"],
)
def test_rows_are_picked_from_columns_of_any_type(
    values: Any, llm: FakeLLM, asked: dict[str, Any], tmp_path: Path
) -> None:
    table = pi.infer_personas(pa.table({**PAIRS, "z": values}), **asked)
    kept = values.to_pylist()
    table[::-1].save(tmp_path / "t.parquet")
    found = column(tmp_path / "t.parquet")
    assert found in (kept[::-1], list(map(json.dumps, kept[::-1])))  # no file has runs
    more = pa.concat_tables([pa.table({**PAIRS, "z": values})] * 2)
    more = more.set_column(0, "prompt", [["p", "", "", "q"]])
    for output in (None, tmp_path / "u.parquet"):
        left = pi.infer_personas(more, **asked, on_error="drop", output=output)
        found = left.to_arrow().column("z").to_pylist()
        assert found in (kept, list(map(json.dumps, kept)))


def endless(kind: str) -> Any:
    held: Any
    if kind == "dict":
        held = OrderedDict()
        held["x"] = held
    elif kind == "array":
        held = np.empty(1, object)
        held[0] = held
    elif kind == "series":
        held = pd.Series([None, 1], dtype=object)
        held[0] = held
    elif kind == "view":
        around: dict[str, Any] = {}
        held = around.values()
        around["x"] = held
    elif kind == "set":

        class Hashed(list[Any]):
            __hash__ = object.__hash__  # type: ignore[assignment]

        held = {inner := Hashed()}
        inner.append(held)
    else:
        held = []
        held.append((held,))
    return held


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["list", "dict", "array", "series", "view", "set"])
@pytest.mark.parametrize(
    "frame",
    [
        lambda held: pd.DataFrame({**PAIRS, "z": pd.Series([held, None], dtype=object)}),
        lambda held: pd.DataFrame(
            {**PAIRS, "z": ["x", "y"]}, index=pd.Index([held, "a"], dtype=object)
        ),
        lambda held: pl.DataFrame({**PAIRS, "z": pl.Series([held, None], dtype=pl.Object)}),
    ],
    ids=["pandas", "an index", "polars"],
)
def test_a_value_that_is_nested_without_end_ends_no_process(
    frame: Callable[[Any], Any], kind: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    data = frame(endless(kind))
    made = pi.infer_personas(data, **asked, output=tmp_path / "t.parquet")
    assert column(tmp_path / "t.parquet")
    assert not made.errors
    table = pi.infer_personas(data, **asked)
    assert len(table.to_arrow()) == len(table[::-1].to_polars()) == 2


@pytest.mark.parametrize("kind", ["list", "dict", "array", "series", "view"])
def test_in_rows_it_costs_its_row(kind: str, asked: dict[str, Any], tmp_path: Path) -> None:
    rows = [{name: of[n] for name, of in PAIRS.items()} for n in range(2)]
    rows[0]["z"] = endless(kind)
    made = pi.infer_personas(rows, **asked, output=tmp_path / "t.parquet")
    assert [row.index for row in made.errors] == [0]
    hand_made = pi.PersonaTable([pi.PersonaRow(0, None, columns={"z": endless(kind)})])
    assert len(hand_made.to_arrow()) == 1


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view()], ids=str)
def test_no_row_may_be_left_of_a_table_of_arrow(
    kind: pa.DataType, asked: dict[str, Any], tmp_path: Path
) -> None:
    data = pa.table({**PAIRS, "z": pa.array(["x", "y"], kind)})
    table = pi.infer_personas(data, **asked).filter(lambda row: row.index > 5)
    assert (len(table), table.to_arrow().num_rows) == (0, 0)
    assert len(pi.PersonaTable.load(table.save(tmp_path / "none.parquet"))) == 0
    bad = {**asked, "model": "fake", "max_attempts": 1, "on_error": "drop"}
    with FakeLLM("no persona") as server:
        dropped = pi.infer_personas(data, **bad | {"api_base": server.api_base})
    assert dropped.to_arrow().num_rows == 0


@pytest.mark.parametrize(
    "values",
    [
        pa.array([[], []], pa.list_(pa.int32(), 0)),
        pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array([["a"]])),
        pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array([None])),
    ],
    ids=lambda values: str(values.type),
)
def test_types_that_parquet_lacks_are_text(
    values: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    data = pa.table({**PAIRS, "z": values})
    pi.infer_personas(data, **asked, output=tmp_path / "a.parquet")
    assert len(column(tmp_path / "a.parquet")) == 2


NULL_WORD = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None]))


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (NULL_WORD, ["a", None]),
        (pa.ListArray.from_arrays([0, 1, 2], NULL_WORD), [["a"], [None]]),
        (pa.StructArray.from_arrays([NULL_WORD], ["k"]), [{"k": "a"}, {"k": None}]),
    ],
    ids=lambda values: str(getattr(values, "type", "")),
)
def test_a_dictionary_with_a_null_among_its_values_is_text(
    values: Any, kept: list[Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    data = pa.table({**PAIRS, "z": values})
    pi.infer_personas(data, **asked, output=tmp_path / "a.parquet")
    assert [json.loads(text) for text in column(tmp_path / "a.parquet")] == kept


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"\x00", b"\x01"]),
        pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        pa.array([["a"], ["b"]], pa.large_list(pa.string())),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([2**62, 1], pa.timestamp("ms")),
        pa.array([2**30, 1], pa.date32()),
    ],
    ids=lambda values: str(values.type),
)
def test_usual_types_are_written_once(
    values: Any, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are first written to memory, since Parquet may lack some of their values."""
    monkeypatch.setattr("pyarrow.parquet.write_table", None)
    data = pa.table({**PAIRS, "z": values})
    pi.infer_personas(data, **asked, output=tmp_path / "a.parquet")
    assert pi.PersonaTable.load(tmp_path / "a.parquet").to_arrow()["z"].type == values.type


@pytest.mark.parametrize("times", ["date", "datetime"])
def test_a_date_of_polars_that_python_lacks_costs_no_row(
    times: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    kind: Any = pl.Date if times == "date" else pl.Datetime("ms")
    far = pl.Series([10**7 if times == "date" else 253402300800000, 0]).cast(kind)
    data = pl.DataFrame({**PAIRS, "z": far})
    table = pi.infer_personas(data, **asked, output=tmp_path / "a.parquet")
    assert (len(table), table.errors) == (2, [])
    came = pi.PersonaTable.load(tmp_path / "a.parquet").to_arrow().column("z")
    assert came.cast(pa.int64() if times == "datetime" else pa.int32()).to_pylist()[1] == 0


UNLIKE: list[tuple[Any, Any]] = [
    (np.eye(2000)[500], np.eye(2000)[700]),
    ([np.eye(2000)[500]], [np.eye(2000)[700]]),
    (pd.Series(range(99)), pd.Series([*range(98), 0])),
    (pl.Series([1, 2]), pl.Series([1, 2, 3])),
    ({"a": 1}, {"a": True}),
    (1, True),
]


@pytest.mark.parametrize(("one", "other"), UNLIKE)
def test_of_the_rows_of_a_prompt_only_what_is_the_same_is_shared(one: Any, other: Any) -> None:
    def columns(second: Any) -> dict[str, Any]:
        rows = [
            {"prompt": "p", "response": "yes", "score": 2, "z": one},
            {"prompt": "p", "response": "no", "score": 1, "z": second},
        ]
        (row,) = read_preferences(rows, pairs="best-worst")
        assert row.error is None
        return dict(row.columns)

    assert "z" not in columns(other)
    assert columns(one)["z"] is one


def test_values_that_cannot_be_compared_end_no_read() -> None:
    class Strange:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("the boolean value of a tensor of several values is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    rows = [
        {"prompt": "p", "response": text, "score": score, "z": value}
        for value in (Strange(), Decimal("sNaN"))
        for text, score in [("yes", 2), ("no", 1)]
    ]
    assert [row.error for row in read_preferences(rows, pairs="best-worst")] == [None]


def test_a_whole_number_stays_one_beside_decimals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 1)
    pair = pi.Preference(prompt="p", chosen="a", rejected="b")
    rows = [pi.PersonaRow(n, pair, columns={"z": z}) for n, z in enumerate([Decimal("1.5"), 1])]
    loaded = pi.PersonaTable.load(pi.PersonaTable(rows).save(tmp_path / "t.parquet"))
    assert loaded.to_arrow().column("z").to_pylist() == ['"1.5"', "1"]


@pytest.mark.parametrize("rest", [[0.5], [0.5, None]])
def test_large_whole_numbers_beside_fractions_stay_what_they_are(rest: list[Any]) -> None:
    pair = pi.Preference(prompt="p", chosen="a", rejected="b")
    values = [2**60 + 1, *rest]
    rows = [pi.PersonaRow(n, pair, columns={"z": z}) for n, z in enumerate(values)]
    assert list(pi.PersonaTable(rows).to_pandas()["z"]) == values
    small = [pi.PersonaRow(n, pair, columns={"z": z}) for n, z in enumerate([1, 0.5])]
    assert pi.PersonaTable(small).to_pandas()["z"].dtype == float


def test_half_of_a_character_is_written_out_in_pandas_too(tmp_path: Path) -> None:
    pair = pi.Preference(prompt="p", chosen="a", rejected="b")
    own = {"z": "caf\udce9", "n\ud83d": 1}
    table = pi.PersonaTable([pi.PersonaRow(0, pair, columns=own)])
    loaded = pi.PersonaTable.load(table.save(tmp_path / "t.parquet"))
    for frame in (table.to_pandas(), loaded.to_pandas()):
        assert frame[["z", "n\\ud83d"]].values.tolist() == [["caf\\udce9", 1]]


NAT, DAY = np.datetime64("NaT"), np.datetime64("2020-01-01")


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([NAT.astype("M8[ns]"), DAY.astype("M8[ns]")], [None, pd.Timestamp("2020-01-01")]),
        ([NAT, 1], ["null", "1"]),
        ([[NAT, DAY], {"t": NAT}], ['[null, "2020-01-01"]', '{"t": null}']),
        ([np.array([NAT, DAY]), 1], ['[null, "2020-01-01"]', "1"]),
    ],
    ids=["times", "a scalar", "within others", "an array"],
)
def test_a_time_of_numpy_that_is_missing_is_null(
    values: list[Any], kept: list[Any], tmp_path: Path
) -> None:
    pair = pi.Preference(prompt="p", chosen="a", rejected="b")
    rows = [pi.PersonaRow(n, pair, columns={"z": z}) for n, z in enumerate(values)]
    path = pi.PersonaTable(rows).save(tmp_path / "t.parquet")
    assert pi.PersonaTable.load(path).to_arrow().column("z").to_pylist() == kept


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"d": date(2020, 1, 1), "n": 2**70}, pl.Struct({"d": pl.Date, "n": pl.Int128})),
        ({"Date": 2**70}, pl.Struct({"Date": pl.Int128})),
    ],
    ids=["a time", "a name of a time"],
)
def test_numbers_of_128_bits_beside_a_time_are_read(values: dict[str, Any], kind: Any) -> None:
    data = pl.DataFrame({**PAIRS, "z": pl.Series([values] * 2, dtype=kind)})
    assert cells_of(in_narwhals(data), "z") == [values] * 2


def test_numbers_of_128_bits_beside_a_year_that_python_lacks_are_read() -> None:
    days = pl.Series([10_000_000, None], dtype=pl.Int32).cast(pl.Date)
    both = pl.DataFrame({"d": days, "n": pl.Series([2**70, 1], dtype=pl.Int128)}).to_struct("z")
    cells = [{"d": "+29349-01-26", "n": 2**70}, {"d": None, "n": 1}]
    assert cells_of(in_narwhals(pl.DataFrame({"z": both})), "z") == cells
