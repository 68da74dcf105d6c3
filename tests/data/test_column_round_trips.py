"""What was in a column of the user's own comes back from a saved table, or is JSON that says the same."""

from __future__ import annotations

import enum
import json
import math
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.data import column_values
from personainfer.data import table_writer as writing
from personainfer.data.arrow_columns import arrow_cells, is_json
from personainfer.data.column_values import kept_in_arrow
from personainfer.exceptions import DataError

from ..builders import PAIR, examples

NOON = datetime(2020, 1, 1, 12, 30)
BERLIN = ZoneInfo("Europe/Berlin")
AUTUMN = datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN)  # an hour that comes twice


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 2


# Values by kind. Those of one kind, or of a few, make a column.
KINDS: list[list[Any]] = [
    [None],
    ["a", "", "\0", "é", "null", "1"],
    ["half of a pair: \ud83d"],
    [1, 0, -1, 2**53 + 1],
    [2**63, 2**70, -(2**64)],
    [0.5, -0.0, 1.0, 1e300, math.inf],
    [math.nan],
    [True, False],
    [b"a", b"\xff", b""],
    [bytearray(b"a"), memoryview(b"b")],
    [date(2020, 1, 1), date(1, 1, 1), date(9999, 12, 31)],
    [NOON, datetime(1, 1, 1), datetime(2020, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999)],
    [NOON.replace(tzinfo=UTC), NOON.replace(tzinfo=ZoneInfo("UTC"))],
    [NOON.replace(tzinfo=timezone(timedelta(hours=5))), AUTUMN, AUTUMN.replace(fold=1)],
    [NOON.replace(tzinfo=timezone(timedelta(seconds=7)))],
    [time(1), time(23, 59, 59, 999_999)],
    [time(1, tzinfo=UTC)],
    [timedelta(1), timedelta(microseconds=-1), timedelta.max],
    [Decimal("1.5"), Decimal("1e20"), Decimal("-0.000001")],
    [Decimal("NaN"), Decimal("1e90")],
    [pd.Timestamp(5), pd.Timestamp("2020-01-01")],
    [pd.Timestamp("2020-01-01", tz="Europe/Berlin")],
    [pd.Timedelta(5, "ns"), pd.Timedelta(1, "D")],
    [pd.NaT, pd.NA],
    [np.int8(1), np.uint64(2**63), np.float32(0.1), np.float16(0.1)],
    [np.bool_(True)],
    [np.str_("a"), np.bytes_(b"a")],
    [np.datetime64("2020-01-01"), np.datetime64("2020-01-01T12:30:00.000000001")],
    [np.timedelta64(1, "s"), np.timedelta64(1500, "ms"), np.timedelta64(1, "ns")],
    [np.array([1, 2]), np.array([0.5, 2**53]), np.arange(2000)],
    [np.ma.masked_array([1, 2], [False, True])],
    [np.array([[1, 2], [3, 4]]), np.array(["2020-01-01T00:00:00.000000001"], "M8[ns]")],
    [pl.Series([*range(50)]), pd.Series([*range(100)]), pa.array([1, 2])],
    [{1, 2}, frozenset(["a"])],
    [(1, "a"), (1, 2), ()],
    [[1, "a"], [1, 2], [], [None]],
    [{"a": 1}, {"b": "x"}, {}, {"a": None}],
    [{1: 2}, {b"a": 1}, {"a": 2}, {(1, 2): "t"}],
    [uuid.UUID(int=1), Color.RED, Level.HIGH, Fraction(1, 3), 1 + 2j],
    [pd.Period("2020-01"), pd.Interval(0, 1), pd.DateOffset(months=1)],
]
WRAPS: list[Callable[[Any], Any]] = [
    lambda value: value,
    lambda value: value,
    lambda value: [value],
    lambda value: [value, None],
    lambda value: (value,),
    lambda value: {"k": value},
    lambda value: {"k": [{"deep": value}]},
    lambda value: {"k": 1, "v": {"w": value}},
]


@st.composite
def columns(draw: st.DrawFn) -> list[Any]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    value = st.sampled_from([value for kind in kinds for value in kind])
    wraps = draw(st.lists(st.sampled_from(WRAPS), min_size=1, max_size=2))
    return [
        draw(st.sampled_from(wraps))(each) for each in draw(st.lists(value, min_size=1, max_size=9))
    ]


def of_polars(values: list[Any], kind: Any = None) -> Any:
    try:
        return pl.DataFrame({"x": pl.Series(values, dtype=kind)})
    except BaseException as error:  # polars' panics are no exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        return None


def of_arrow(values: list[Any]) -> Any:
    kept = kept_in_arrow(values)  # pyarrow.array may end the process
    return None if kept is None else pa.table({"x": kept})


def of_datasets(values: list[Any]) -> Any:
    try:
        return datasets.Dataset(of_arrow(values))
    except Exception:
        return None


def objects(values: Sequence[Any]) -> Any:
    """An array of objects, whatever they are: NumPy would look into them."""
    array = np.empty(len(values), object)
    for place, value in enumerate(values):
        array[place] = value
    return array


SOURCES: dict[str, Callable[[list[Any]], Any]] = {
    "rows": lambda values: None,
    "objects of pandas": lambda values: pd.DataFrame(
        {"x": pd.Series(objects(values), dtype=object)}
    ),
    "categories": lambda values: _categories(values),
    "an index": lambda values: pd.DataFrame(
        {"n": range(len(values))},
        index=_index(objects(values), dtype=object, name="x", tupleize_cols=False),
    ),
    "a level": lambda values: _level(values),
    "objects of polars": lambda values: of_polars(values, pl.Object),
    "polars": of_polars,
    "arrow": of_arrow,
    "datasets": of_datasets,
}


_index: Any = pd.Index  # which is typed to take few types by their classes


def _categories(values: list[Any]) -> Any:
    try:
        return pd.DataFrame({"x": pd.Categorical(objects(values))})
    except (TypeError, ValueError, NotImplementedError):  # values without a hash, or halves
        return None


def _level(values: list[Any]) -> Any:
    try:
        labels = _index(objects(values), dtype=object, tupleize_cols=False)
        levels = pd.MultiIndex.from_arrays([range(len(values)), labels], names=["n", "x"])
    except (TypeError, ValueError, NotImplementedError):
        return None
    return pd.DataFrame({"y": range(len(values))}, index=levels)


def given_values(source: str, frame: Any, values: list[Any]) -> list[Any]:
    """What the frame holds: some have changed the values before the library sees them."""
    if source == "rows":
        return values
    if source in ("an index", "a level"):
        return list(frame.index.get_level_values("x"))
    if source in ("arrow", "datasets"):
        return arrow_cells((frame if source == "arrow" else frame.data).column("x"))
    if source == "polars" and not re.search("Object|Int128", str(frame.dtypes)):
        return arrow_cells(frame.to_arrow()["x"])  # its own lists have no nanoseconds
    return list(frame["x"].to_list())


def listed(value: Any) -> Any:
    """The values of an array or a series."""
    if isinstance(value, pa.Array):
        return value.to_pylist()
    if isinstance(value, np.ma.MaskedArray):
        return value.tolist()
    return list(value) if isinstance(value, np.ndarray | pl.Series | pd.Series) else value


def in_utf_8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def is_missing(value: Any) -> bool:
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float) and math.isnan(value))
    )


def is_same(was: Any, now: Any) -> bool:
    """Whether a value came back in a column that is no JSON text."""
    was = listed(was)
    if isinstance(was, list | tuple | set | frozenset):
        return isinstance(now, list) and len(was) == len(now) and all(map(is_same, was, now))
    if isinstance(was, dict):
        if not isinstance(now, dict) or any(not isinstance(key, str) for key in was):
            return False
        rest = [value for key, value in now.items() if key not in was]
        return rest == [None] * len(rest) and all(is_same(v, now[key]) for key, v in was.items())
    if is_missing(was):
        return now is None or (isinstance(now, float) and math.isnan(now))
    if isinstance(was, np.generic) and was.dtype.kind not in "mM":
        was = was.item()
    if isinstance(was, memoryview):
        was = bytes(was)
    if isinstance(was, bool) or isinstance(now, bool):
        return was is now
    if isinstance(was, str):
        return isinstance(now, str) and in_utf_8(was) == now
    if isinstance(was, datetime | time) and (was.tzinfo is None) != (now.tzinfo is None):
        return False
    if isinstance(was, datetime) and was.tzinfo is not None:
        names = {
            str(was.tzinfo).replace("Etc/UTC", "UTC"),
            str(now.tzinfo).replace("Etc/UTC", "UTC"),
        }
        return was.isoformat() == now.isoformat() and len(names) == 1
    if isinstance(was, date) and not isinstance(was, datetime):
        return type(now) is date and was == now
    return bool(was == now)


def says(was: Any, now: Any) -> bool:
    """Whether what JSON text holds tells the value."""
    if isinstance(was, memoryview | bytearray):
        return now in (str(was), list(was), str(bytes(was)))
    was = listed(was)
    if isinstance(was, list | tuple | set | frozenset):
        return isinstance(now, list) and len(was) == len(now) and all(map(says, was, now))
    if isinstance(was, dict):
        if not isinstance(now, dict):
            return False
        # It was in a type with more keys before the column became text.
        now = {key: value for key, value in now.items() if value is not None or key in was}
        if len(was) != len(now):
            return False
        if all(isinstance(key, str) for key in was):
            return all(says(value, now[key]) for key, value in was.items())
        return all(map(says, was.values(), now.values()))
    if is_missing(was):
        return now is None or (isinstance(now, float) and math.isnan(now))
    if isinstance(was, np.generic) and was.dtype.kind not in "mM":
        was = was.item()
    if isinstance(was, str):
        return isinstance(now, str) and in_utf_8(was) == in_utf_8(now)
    if isinstance(was, bool) or isinstance(now, bool):
        return was is now
    if isinstance(was, int | float):  # whole numbers may have been in a column of fractions before
        return isinstance(now, int | float) and was == now
    if isinstance(was, Decimal) and was.is_finite():
        return was == Decimal(now)
    if isinstance(was, timedelta | np.timedelta64):
        return str(now) == str(was) or pd.Timedelta(now) == was
    if isinstance(was, np.datetime64):
        return bool(pd.Timestamp(now) == was)
    return now in (str(was), was)


def check(values: list[Any], source: str, folder: Path) -> None:
    frame = SOURCES[source](values)
    if frame is None and source != "rows":
        return
    went_in = given_values(source, frame, values)
    own = [{"x": value} if source == "rows" else {} for value in values]
    rows = [pi.PersonaRow(n, PAIR, columns=each) for n, each in enumerate(own)]
    path = pi.PersonaTable(rows, original=frame).save(folder / "t.parquet")
    loaded = pi.PersonaTable.load(path)
    table = loaded.to_arrow()
    column = table.column("x")
    came = arrow_cells(column)
    if is_json(table.schema.field("x")):
        for was, now in zip(went_in, came, strict=True):
            assert says(was, json.loads(str(now))), (was, now)
    else:
        for was, now in zip(went_in, came, strict=True):
            is_lost = "that Python lacks" in str(was)  # polars has read another time
            assert is_lost or is_same(was, now), (was, now, column.type)
    for convert in (loaded.to_pandas, loaded.to_polars, loaded.to_hf):
        with suppress(DataError):  # what a library cannot hold, if it was no frame of its own
            assert len(convert()) == len(values)


@pytest.mark.heavy
@pytest.mark.parametrize("source", SOURCES)
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=columns(), rows=st.sampled_from([1, 3, 100]))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_column_comes_back_or_is_json_text_that_says_the_same(
    source: str, values: list[Any], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GROUP_ROWS", rows)
        check(values, source, tmp_path_factory.mktemp("t"))


TIMES = np.array(["2020-01-01T00:00:00.000000001"], "M8[ns]")


def test_times_of_numpy_among_other_arrays_end_no_process(tmp_path: Path) -> None:
    """They end the process in pyarrow.array."""
    rows = [pi.PersonaRow(n, PAIR, columns={"x": x}) for n, x in enumerate([TIMES, np.arange(3)])]
    loaded = pi.PersonaTable.load(pi.PersonaTable(rows).save(tmp_path / "t.parquet"))
    came = [json.loads(str(text)) for text in loaded.to_arrow()["x"].to_pylist()]
    assert came == [[str(TIMES[0])], [0, 1, 2]]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        ([0, "total"], [0, "total"]),
        ([2**70, 1], [2**70, 1]),
        ([date(2020, 1, 1), NOON], ["2020-01-01", str(NOON)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("levels", [1, 2])
def test_an_index_of_several_kinds_is_json_text(
    labels: list[Any], kept: list[Any], levels: int, tmp_path: Path
) -> None:
    index: Any = pd.Index(labels, dtype=object)
    if levels == 2:
        index = pd.MultiIndex.from_arrays([["a", "b"], index])
    frame = pd.DataFrame({"y": [1, 2]}, index=index)
    rows = [pi.PersonaRow(n, PAIR) for n in range(2)]
    path = pi.PersonaTable(rows, original=frame).save(tmp_path / "t.parquet")
    loaded = pi.PersonaTable.load(path)
    table = loaded.to_arrow()
    field = table.schema.field(f"__index_level_{levels - 1}__")
    assert is_json(field)
    assert [json.loads(str(text)) for text in table[field.name].to_pylist()] == kept
    found = loaded[::-1].to_pandas().index.get_level_values(levels - 1)
    assert list(map(json.loads, found)) == kept[::-1]


@pytest.mark.parametrize("kind", ["timedelta64[ns]", "datetime64[ns, Europe/Berlin]"])
def test_categories_of_times_stay_times_or_are_text(kind: str, tmp_path: Path) -> None:
    times: Any = pd.Series([1, 2], dtype="int64")
    frame = pd.DataFrame({"x": times.astype(kind).astype("category")})
    rows = [pi.PersonaRow(n, PAIR) for n in range(2)]
    path = pi.PersonaTable(rows, original=frame).save(tmp_path / "t.parquet")
    came = pi.PersonaTable.load(path).to_arrow()["x"].to_pylist()
    assert came in (frame["x"].tolist(), [json.dumps(str(value)) for value in frame["x"]])


def test_a_level_that_counts_is_right_where_rows_are_picked(tmp_path: Path) -> None:
    index = pd.MultiIndex.from_arrays([range(3), ["a", "b", "c"]], names=["n", "s"])
    frame = pd.DataFrame({"y": [1, 2, 3]}, index=index)
    rows = [pi.PersonaRow(n, PAIR) for n in range(3)]
    path = pi.PersonaTable(rows, original=frame).save(tmp_path / "t.parquet")
    picked = pi.PersonaTable.load(path)[1:].save(tmp_path / "u.parquet")
    found = pi.PersonaTable.load(picked).to_pandas().index
    assert found.tolist() == [(1, "b"), (2, "c")]


NUMBERS = [0.5] * 100


@pytest.mark.parametrize(
    "values",
    [
        [None, np.full(100, 0.5, "float32")],
        [{"is_long": True, "vector": NUMBERS}, {"is_long": None, "vector": None}],
        [{"is_long": False, "vector": np.full(100, 0.5, "float32")}],
        [{"when": date(2020, 1, 1), "vectors": [NUMBERS, [], None]}],
        [np.array(NUMBERS), NUMBERS],
        [np.str_("a"), "b", None],
        [[{"is_good": True, "score": 1.5}], []],
    ],
)
def test_numbers_and_texts_are_not_compared_one_by_one(
    values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings have millions of them."""
    monkeypatch.setattr(column_values, "_is_same", None)
    assert kept_in_arrow(values) is not None


@pytest.mark.parametrize(
    "values",
    [
        [{"a": 1, "b": 0.5}, {"a": True, "b": 0.5}],
        [{"a": [0.5, True]}],
        [[NOON], [NOON.replace(tzinfo=UTC)]],
        [{"a": {1: 2}}],
        [np.array([2**53 + 1]), np.array([0.5])],
        [[pd.Timestamp(5)], None],
    ],
)
def test_what_arrow_would_change_within_others_is_found(values: list[Any]) -> None:
    assert kept_in_arrow(values) is None


def keys(start: int, count: int) -> dict[str, int]:
    return {f"k{number}": number for number in range(start, start + count)}


@pytest.mark.heavy
@pytest.mark.parametrize("rows", [1, 100], ids=["group by group", "at once"])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"deep": [value]}])
def test_dicts_of_very_many_keys_are_json_text(
    rows: int, wrap: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a type of Arrow's, each row takes the place of the keys of all."""
    monkeypatch.setattr(writing, "GROUP_ROWS", rows)
    monkeypatch.setattr(writing, "MOST_FIELDS", 50)
    monkeypatch.setattr(column_values, "MOST_FIELDS", 50)
    for step, is_text in [(0, False), (20, True)]:
        values = [wrap(keys(step * number, 20)) for number in range(4)]
        own = [pi.PersonaRow(n, PAIR, columns={"x": x}) for n, x in enumerate(values)]
        table = pi.PersonaTable.load(pi.PersonaTable(own).save(tmp_path / "t.parquet")).to_arrow()
        came = table["x"].to_pylist()
        assert is_json(table.schema.field("x")) == is_text
        came = [json.loads(str(text)) if is_text else text for text in came]
        assert all(map(says, values, came))


@pytest.mark.heavy
@pytest.mark.parametrize("depth", [1, 3])
def test_a_dict_that_has_a_key_for_each_row_takes_no_more_memory_than_they(depth: int) -> None:
    values: list[Any] = [keys(10 * number, 10) for number in range(200)]
    for _ in range(depth - 1):
        values = [{f"{name}{n}": value for n in range(2)} for value in values for name in "ab"]
    assert kept_in_arrow(values) is None
    assert kept_in_arrow([keys(0, 900)] * 3) is not None


@pytest.mark.parametrize("places", [slice(None), slice(None, None, -2)], ids=["all", "some"])
def test_columns_of_lists_and_structs_of_arrow_keep_their_type(
    places: slice, tmp_path: Path
) -> None:
    source = pa.table({"tags": [["a"], ["b", "c"], None], "one": [{"x": 1}, None, {"x": 2}]})
    frame = source.to_pandas(types_mapper=pd.ArrowDtype).set_axis(["x", "y", "z"])
    rows = [pi.PersonaRow(n, PAIR, error="none") for n in range(3)]
    table = pi.PersonaTable(rows, original=frame)
    loaded = pi.PersonaTable.load(table.save(tmp_path / "t.parquet"))[places]
    pd.testing.assert_frame_equal(loaded.to_pandas().iloc[:, :-3], frame[places])


@pytest.mark.parametrize("levels", [1, 2])
def test_whole_numbers_beside_nulls_in_an_index_keep_their_digits(
    levels: int, tmp_path: Path
) -> None:
    numbers = pd.array([2**60 + 1, None, 2**60 + 3], dtype="Int64")
    names = pd.MultiIndex.from_arrays([numbers, ["x", "y", "z"]], names=["id", "k"])
    index = pd.Index(numbers, name="id") if levels == 1 else names
    frame = pd.DataFrame({"prompt": ["p"] * 3}, index)
    rows = [pi.PersonaRow(n, PAIR, error="none") for n in range(3)]
    table = pi.PersonaTable(rows, original=frame)
    loaded = pi.PersonaTable.load(table.save(tmp_path / "t.parquet"))
    found = loaded.to_pandas().index
    assert [*found.get_level_values(0)] == [*numbers]
    assert found.names == index.names
    assert str(2**60 + 1) in str(loaded)
    assert len(loaded.filter(pd.Series([True, False, True], index))) == 2
