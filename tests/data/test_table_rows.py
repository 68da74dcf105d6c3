"""Cuts of a table: slices, head, sample, filter and sort keep all that the table has beside its rows."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.data import own_columns
from personainfer.data import table_writer as writing
from personainfer.data.table_display import result_text
from personainfer.data.table_reader import StoredTable
from personainfer.data.table_rows import at_places
from personainfer.exceptions import InvalidArgumentError
from personainfer.records import Persona, PersonaRow, Preference, Usage

COUNT = 11


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 4)


def made_rows(count: int = COUNT, *, columns: bool = False) -> list[PersonaRow]:
    """Every third has an error, every other a flag."""
    made = []
    for n in range(count):
        persona = Persona(
            evidence=f"because {n}",
            trait="busy",
            preference=f"answers {n}",
            flags=("refusal",) if n % 2 else (),
        )
        failed = n % 3 == 0
        made.append(
            PersonaRow(
                n,
                Preference(prompt=f"q{n}", chosen="a", rejected="b"),
                chosen=None if failed else persona,
                error=f"no reply {n}" if failed else None,
                columns={"x": n, "name": f"n{n}"} if columns else {},
            )
        )
    return made


def frame() -> pd.DataFrame:
    return pd.DataFrame({"x": range(COUNT), "name": [f"n{n}" for n in range(COUNT)]})


ORIGINALS: dict[str, Callable[[], Any]] = {
    "pandas": frame,
    "pandas, stepped index": lambda: frame().set_index(pd.RangeIndex(10, 10 + 5 * COUNT, 5)),
    "pandas, named index": lambda: frame().set_index(
        pd.Index([f"row {n}" for n in range(COUNT)], name="key")
    ),
    "pandas, multi": lambda: frame().set_index(
        pd.MultiIndex.from_tuples([(n % 2, n) for n in range(COUNT)], names=["user", "turn"])
    ),
    "polars": lambda: pl.from_pandas(frame()),
    "arrow": lambda: pa.Table.from_pandas(frame(), preserve_index=False),
    "arrow, pandas index": lambda: pa.Table.from_pandas(
        frame().set_index(pd.RangeIndex(10, 10 + 5 * COUNT, 5))
    ),
    "hf": lambda: datasets.Dataset.from_pandas(frame(), preserve_index=False),
    "dicts": lambda: None,
}
kinds = pytest.mark.parametrize("kind", ORIGINALS)
stored = pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored"])


def table_of(kind: str, folder: Path, stored: bool) -> pi.PersonaTable:
    original = ORIGINALS[kind]()
    table = pi.PersonaTable(
        made_rows(columns=original is None),
        original=original,
        usage=Usage(calls=7),
        settings={"model": "fake"},
    ).with_columns({"score": [None if n == 4 else n % 5 for n in range(COUNT)]})
    return pi.PersonaTable.load(table.save(folder / "table.parquet")) if stored else table


CUTS: dict[str, tuple[Callable[[pi.PersonaTable], pi.PersonaTable], list[int]]] = {
    "slice": (lambda t: t[2:7], [2, 3, 4, 5, 6]),
    "stepped": (lambda t: t[1::4], [1, 5, 9]),
    "negative": (lambda t: t[-3:], [8, 9, 10]),
    "backwards": (lambda t: t[8:1:-3], [8, 5, 2]),
    "all backwards": (lambda t: t[::-1], list(range(COUNT))[::-1]),
    "empty": (lambda t: t[5:5], []),
    "head": (lambda t: t.head(3), [0, 1, 2]),
    "of a cut": (lambda t: t[1:9][::2][1:], [3, 5, 7]),
    "filter": (lambda t: t.filter(lambda row: row.flags), [1, 5, 7]),
    "filter by values": (lambda t: t.filter([n in (2, 9) for n in range(COUNT)]), [2, 9]),
    "sort": (
        lambda t: t.sort(lambda row: -row.index if row.index < 3 else 0),
        [2, 1, 0, *range(3, COUNT)],
    ),
    "sort by what was added": (
        lambda t: t.sort("score", reverse=True),
        [9, 3, 8, 2, 7, 1, 6, 0, 5, 10, 4],
    ),
    "sort by an own column": (lambda t: t.sort("x", reverse=True), list(range(COUNT))[::-1]),
}
# Some cuts of a table with a pandas index, one of every other kind; all of them with every kind are heavy.
SOME = ("slice", "backwards", "empty", "filter", "sort by what was added")
CASES = [
    pytest.param(
        kind,
        cut,
        id=f"{kind}-{cut}",
        marks=[pytest.mark.heavy]
        * (cut not in SOME or (kind != "pandas, multi" and cut != "backwards")),
    )
    for kind in ORIGINALS
    for cut in CUTS
    if kind in ("pandas, multi", "dicts") or cut in ("slice", "backwards", "empty", "filter")
]
cases = pytest.mark.parametrize(("kind", "cut"), CASES)


@pytest.mark.heavy
@stored
@cases
def test_a_cut_has_all_that_the_table_has(
    kind: str, cut: str, stored: bool, tmp_path: Path
) -> None:
    whole = table_of(kind, tmp_path, stored)
    function, places = CUTS[cut]
    cut_table = function(whole)
    assert isinstance(cut_table, pi.PersonaTable)
    assert [row.index for row in cut_table] == places
    assert list(cut_table) == [whole[place] for place in places]
    assert [cut_table[n].index for n in range(len(places))] == places
    assert (cut_table.usage, cut_table.settings) == (whole.usage, whole.settings)
    assert [row.index for row in cut_table.errors] == [p for p in places if p % 3 == 0]
    if kind == "dicts" and not places:  # the rows brought the columns, and there are none
        return
    expected = whole.to_pandas().iloc[places]
    if "pandas" not in kind:  # there is no index of the user's
        expected = expected.reset_index(drop=True)
    pd.testing.assert_frame_equal(cut_table.to_pandas(), expected, check_index_type=False)
    assert cut_table.to_polars()["x"].to_list() == places
    assert (
        cut_table.to_arrow().column("score").to_pylist()
        == expected["score"].replace({pd.NA: None}).tolist()
    )
    assert cut_table.to_hf()["name"][:] == [f"n{place}" for place in places]


@pytest.fixture(params=["Arrow table", "unpickled table"])
def of_arrow(request: pytest.FixtureRequest, tmp_path: Path) -> pi.PersonaTable:
    """A table with the labels 10, 15, … of a pandas index, of which the metadata of Arrow tell."""
    if request.param == "Arrow table":
        return table_of("arrow, pandas index", tmp_path, stored=False)
    table = table_of("pandas, stepped index", tmp_path, stored=True)
    return pickle.loads(pickle.dumps(table))  # type: ignore[no-any-return]


@pytest.mark.parametrize("cut", ["slice", "all backwards", "empty", "of a cut", "filter", "sort"])
def test_rows_of_an_arrow_table_keep_the_labels_of_its_pandas_index(
    of_arrow: pi.PersonaTable, cut: str, tmp_path: Path
) -> None:
    function, places = CUTS[cut]
    part = function(of_arrow)
    again = pi.PersonaTable.load(part.save(tmp_path / "cut.parquet"))
    for table in (part, again):
        assert table.to_pandas().index.tolist() == [10 + 5 * place for place in places]
        assert table.to_pandas()["x"].tolist() == places


def test_a_pickle_of_found_rows_has_no_other_rows_of_an_arrow_table() -> None:
    own = pa.table({"name": [f"name {n}" for n in range(COUNT)]})
    table = pi.PersonaTable(made_rows(), original=own)
    for places in ([5], [5, 6]):
        part = table.filter([n in places for n in range(COUNT)])
        assert part.to_arrow()["name"].to_pylist() == [f"name {n}" for n in places]
        assert b"name 7" not in pickle.dumps(part)


def test_a_series_is_matched_by_the_pandas_index_of_an_arrow_table(
    of_arrow: pi.PersonaTable,
) -> None:
    x = of_arrow.to_pandas()["x"]
    assert [row.index for row in of_arrow.filter(x[::-1] < 2)] == [0, 1]
    assert of_arrow.with_columns({"y": x[::-1]}).added["y"] == list(range(COUNT))
    assert of_arrow[3:].format(limit=1).startswith("25  q3\n")


def test_rows_that_are_left_out_of_an_arrow_table_take_their_labels_with_them(
    tmp_path: Path,
) -> None:
    kept = [row for row in made_rows() if row.error is None]
    dropped = {n for n in range(COUNT) if n % 3 == 0}
    original = ORIGINALS["arrow, pandas index"]()
    for output in (None, tmp_path / "t.parquet"):
        table = pi.PersonaTable.collect(
            kept, original=original, about=lambda: (Usage(), {}), dropped=dropped, output=output
        )
        read = table if output is None else pi.PersonaTable.load(output)
        for each in (table, read):
            assert each.to_pandas().index.tolist() == [10 + 5 * row.index for row in kept]


@pytest.mark.parametrize(
    "told",
    [{"stop": 99}, {"step": 0}, {"start": "a"}, {"start": 2**70, "stop": 2**70 + COUNT}, {"name": []}],
    ids=str,
)  # fmt: skip
def test_labels_that_are_not_those_of_an_arrow_table_are_left_out(
    told: dict[str, Any], tmp_path: Path
) -> None:
    """Such as those of a table that was sliced: pyarrow leaves them out, too."""
    table = ORIGINALS["arrow, pandas index"]()
    about = json.loads(table.schema.metadata[b"pandas"])
    about["index_columns"][0] |= {"step": 1, **told}
    table = table.replace_schema_metadata({b"pandas": json.dumps(about).encode()})
    whole = pi.PersonaTable(made_rows(), original=table)
    for each in (whole, pi.PersonaTable.load(whole.save(tmp_path / "t.parquet"))):
        assert "__index_level_0__" not in each[2:].to_arrow().column_names
        str(each[2:])


@pytest.mark.parametrize("cut", ["slice", "all backwards", "empty", "of a cut", "filter", "sort"])
def test_labels_that_every_frame_has_are_no_column_of_a_part_of_an_arrow_table(cut: str) -> None:
    whole = pi.PersonaTable(made_rows(), original=pa.Table.from_pandas(frame()))
    function, places = CUTS[cut]
    part = function(whole)
    names = whole.to_arrow().column_names
    assert part.to_arrow().column_names == names
    assert part.to_polars().columns == part.to_hf().column_names == names
    assert part.to_pandas().index.tolist() == list(range(len(places)))
    assert part.to_pandas()["x"].tolist() == places
    # No label is shown beside the position in the input.
    for place in places[:1]:
        assert part.format(limit=1).startswith(f"{place}  q{place}\n")


def test_a_slice_of_an_arrow_table_with_such_labels_looks_at_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_columns, "with_index_column", None)
    table = pa.Table.from_pandas(frame())
    assert at_places(table, range(2, 5)).equals(table.slice(2, 3))


@pytest.mark.heavy
@stored
@cases
def test_a_cut_is_saved_and_loaded(kind: str, cut: str, stored: bool, tmp_path: Path) -> None:
    cut_table = CUTS[cut][0](table_of(kind, tmp_path, stored))
    again = pi.PersonaTable.load(cut_table.save(tmp_path / "cut.parquet"))
    assert [(row.index, row.chosen, row.error) for row in again] == [
        (row.index, row.chosen, row.error) for row in cut_table
    ]
    assert again.added == cut_table.added
    assert repr(again) == repr(cut_table)
    pd.testing.assert_frame_equal(
        again.to_pandas(), cut_table.to_pandas(), check_index_type=False, check_dtype=False
    )


@pytest.mark.heavy
@given(
    start=st.none() | st.integers(-15, 15),
    stop=st.none() | st.integers(-15, 15),
    step=st.none() | st.integers(-4, 4).filter(bool),
    again=st.slices(6),
)
def test_slices_are_those_of_a_list(
    start: int | None, stop: int | None, step: int | None, again: slice
) -> None:
    part = slice(start, stop, step)
    listed = made_rows()
    table = pi.PersonaTable(listed, original=frame())
    with tempfile.TemporaryDirectory() as folder:
        loaded = pi.PersonaTable.load(table.save(Path(folder) / "t.parquet"))
        for each in (table, loaded):
            assert list(each[part]) == listed[part]
            assert list(each[part][again]) == listed[part][again]
            numbers = each[part][again].to_pandas()["x"].tolist()
            assert numbers == [row.index for row in listed[part][again]]


@pytest.mark.heavy
@given(order=st.permutations(range(COUNT)), kept=st.lists(st.booleans(), min_size=11, max_size=11))
def test_any_order_and_choice_of_rows_is_that_of_a_list(order: list[int], kept: list[bool]) -> None:
    rank = {place: n for n, place in enumerate(order)}
    table = pi.PersonaTable(made_rows(), original=frame())
    with tempfile.TemporaryDirectory() as folder:
        loaded = pi.PersonaTable.load(table.save(Path(folder) / "t.parquet"))
        for each in (table, loaded):
            cut = each.sort(lambda row: rank[row.index]).filter(kept)
            expected = [place for place, keep in zip(order, kept, strict=True) if keep]
            assert [row.index for row in cut] == expected
            assert cut.to_arrow()["x"].to_pylist() == expected
            saved = pi.PersonaTable.load(cut.save(Path(folder) / "cut.parquet"))
            assert saved.to_arrow()["x"].to_pylist() == expected


def test_a_sample_is_drawn_once_and_again_the_same() -> None:
    table = pi.PersonaTable(made_rows())
    places = [row.index for row in table.sample(5)]
    assert places == sorted(set(places))
    assert [row.index for row in table.sample(5)] == places
    assert any([row.index for row in table.sample(5, seed=s)] != places for s in range(1, 4))
    assert [row.index for row in table.sample(COUNT)] == list(range(COUNT))


def test_a_key_that_pandas_lacks_comes_last(tmp_path: Path) -> None:
    table = table_of("dicts", tmp_path, stored=False)
    found = table.sort(lambda row: -row.index if row.index else pd.NA)
    assert [row.index for row in found] == [*range(COUNT - 1, -1, -1)]


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda t: t.sample(12), "sample.12.: the table has 11 rows"),
        (lambda t: t.sample(-1), "from 0 up"),
        (lambda t: t.sample(2, seed="a"), "seed='a'"),
        (lambda t: t.head(-1), "from 0 up"),
        (lambda t: t.head(True), "from 0 up"),
        (lambda t: t.filter([True]), "1 values, and the table has 11 rows"),
        (lambda t: t.filter([0, 1] + [1] * 9), "value 0 is 0, not True"),
        (lambda t: t.filter(5), "neither a function of a row nor one boolean"),
        (lambda t: t.sort("z"), "no column 'z'.*'x'"),
        (lambda t: t.sort(lambda row: "a" if row.index else 1), "cannot be compared"),
        (lambda t: t.sort(lambda row: Decimal("sNaN")), "cannot be compared"),
        (lambda t: t.sort(lambda row: np.zeros(2)), "cannot be compared"),
    ],
)
def test_what_cannot_be_cut_is_refused(cut: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        cut(pi.PersonaTable(made_rows(), original=frame()))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(COUNT) < 2,
        pd.Series(np.arange(COUNT) < 2),
        pd.Series(np.arange(COUNT) < 2)[::-1],  # matched by its index
        pd.array([True, True, None] + [False] * 8, dtype="boolean"),
        pl.Series([True, True, None] + [False] * 8),
        pa.chunked_array([[True, True, None], [False] * 8]),
        (n < 2 for n in range(COUNT)),
    ],
    ids=["numpy", "pandas", "pandas, in another order", "nullable", "polars", "arrow", "generator"],
)
def test_booleans_of_any_container_filter(values: Any) -> None:
    table = pi.PersonaTable(made_rows(), original=frame())
    assert [row.index for row in table.filter(values)] == [0, 1]


@stored
@pytest.mark.parametrize("kind", [name for name in ORIGINALS if name.startswith("pandas")])
def test_a_series_is_matched_to_the_rows_by_its_index(
    kind: str, stored: bool, tmp_path: Path
) -> None:
    table = table_of(kind, tmp_path, stored)[1:]
    own = ORIGINALS[kind]()[1:].sort_values("x", ascending=False)
    assert [row.index for row in table.filter(own["x"] == 3)] == [3]
    added = table.with_columns({"twice": own["x"] * 2})
    assert added.added["twice"] == [2 * n for n in range(1, COUNT)]


@pytest.mark.parametrize("kind", ["pandas, named index", "polars", "dicts"])
def test_a_series_of_another_index_is_refused(kind: str, tmp_path: Path) -> None:
    table = table_of(kind, tmp_path, stored=False)
    levels = pd.MultiIndex.from_product([["a"], range(COUNT)])
    for index in (range(100, 100 + COUNT), [0] * COUNT, levels):
        series = pd.Series([True] * COUNT, index=index)
        with pytest.raises(InvalidArgumentError, match=r"another index.*to_numpy"):
            table.filter(series)
        with pytest.raises(InvalidArgumentError, match="column y: the series has another index"):
            table.with_columns({"y": series})
        assert len(table.filter(series.to_numpy())) == COUNT


def test_a_cut_of_a_file_reads_the_groups_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = table_of("pandas", tmp_path, stored=False).save(tmp_path / "t.parquet")
    table = pi.PersonaTable.load(path)
    read: list[int] = []
    group = StoredTable.group

    def watched(file: StoredTable, number: int, names: Any) -> Any:
        read.append(number)
        return group(file, number, names)

    monkeypatch.setattr(StoredTable, "group", watched)
    cut = table[4:8]
    assert read == []  # nothing of it was looked at
    assert [row.index for row in cut] == [4, 5, 6, 7]
    assert cut.to_pandas()["x"].tolist() == [4, 5, 6, 7]
    assert set(read) == {1}


@stored
@pytest.mark.parametrize(
    ("kind", "label"),
    [("pandas, named index", "row 5"), ("pandas, multi", "1, 5"), ("pandas, stepped index", "35")],
)
def test_the_users_index_is_shown(kind: str, label: str, stored: bool, tmp_path: Path) -> None:
    cut = table_of(kind, tmp_path, stored)[5:6]
    assert str(cut).startswith(f"{label}  q5\n")
    assert f">{label}</td>" in cut._repr_html_()


@stored
def test_an_index_that_only_counts_is_not_shown_beside_an_id(stored: bool, tmp_path: Path) -> None:
    cut = table_of("pandas", tmp_path, stored)[5:6]
    assert str(cut).startswith("5  q5\n")


@pytest.mark.heavy
@stored
@kinds
def test_details_are_in_every_frame(kind: str, stored: bool, tmp_path: Path) -> None:
    table = table_of(kind, tmp_path, stored)[:3]
    frames = {
        "pandas": table.to_pandas(details=True).to_dict("list"),
        "polars": table.to_polars(details=True).to_dict(as_series=False),
        "arrow": table.to_arrow(details=True).to_pydict(),
        "hf": table.to_hf(details=True).to_dict(),
    }
    for name, columns in frames.items():
        assert columns["chosen_trait"] == [None, "busy", "busy"], name
        assert columns["chosen_preference"] == [None, "answers 1", "answers 2"], name
        assert columns["chosen_evidence"] == [None, "because 1", "because 2"], name
        assert columns["chosen_flags"] == [None, ["refusal"], []], name
        assert columns["rejected_flags"] == [None] * 3, name
        assert columns["chosen_persona"][1] == "The user is busy and prefers answers 1.", name
    assert table.to_polars(details=True).schema["rejected_flags"] == pl.List(pl.String)
    assert "chosen_trait" not in table.to_pandas()


def test_details_do_not_replace_a_column_of_the_data() -> None:
    table = pi.PersonaTable(made_rows(), original=frame().assign(chosen_flags=1))
    with pytest.raises(InvalidArgumentError, match="a column chosen_flags already"):
        table.to_pandas(details=True)


@stored
def test_a_column_keeps_its_type_where_a_cut_leaves_nothing_of_it(
    stored: bool, tmp_path: Path
) -> None:
    cut = table_of("polars", tmp_path, stored)[4:5]
    assert cut.added == {"score": [None]}
    again = pi.PersonaTable.load(cut.save(tmp_path / "cut.parquet"))
    for table in (cut, again, again[:0]):
        assert table.to_polars().schema["score"] == pl.Int64
        assert str(table.to_pandas()["score"].dtype) == "Int64"


def test_a_part_of_a_table_says_that_its_usage_is_of_the_whole(tmp_path: Path) -> None:
    table = table_of("dicts", tmp_path, stored=False)
    assert repr(table).endswith("; 7 calls, 0 from the cache)")
    assert repr(table[:2][:1]).endswith("; of a run with 7 calls, 0 from the cache)")
    assert repr(table[:]) == repr(table)


@pytest.mark.parametrize(("columns", "width"), [(40, 40), (132, 132), (400, 160)])
def test_print_is_as_wide_as_the_terminal(
    columns: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = Preference(prompt="why " * 90, chosen="a " * 90, rejected="b " * 90)
    lines = str(pi.PersonaTable([PersonaRow(0, long, error="no " * 90)])).splitlines()
    assert width - 4 < max(map(len, lines)) <= width


def test_a_result_is_fitted_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = [
        ["", "first one", "the second"],
        ["name", "0.1 [0.0, 0.2]", "0.3"],
        ["all", "0.2", ""],
    ]
    said = ["A sentence of more than twenty-four columns."]
    monkeypatch.setenv("COLUMNS", "24")
    assert result_text(["head"], grid, said).splitlines() == [
        "head",
        "      first one",
        "name  0.1 [0.0, 0.2]",
        "all   0.2",
        "      the second",
        "name  0.3",
        "A sentence of more than",
        "twenty-four columns.",
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert len(result_text(["head"], grid, said).splitlines()) == 5


def test_a_result_that_is_written_to_a_file_keeps_its_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())  # no terminal
    said = "word " * 100 + "end."
    assert result_text(["head"], [["a", "b " * 200 + "c"]], [said]).count("\n") == 2


def test_a_place_that_is_none_is_refused() -> None:
    table: Any = pi.PersonaTable(made_rows(), original=frame())
    for place in ("x", 1.5, None):
        with pytest.raises(InvalidArgumentError, match=r"table\[.*place of a row, or a slice"):
            table[place]
    assert table[np.int64(3)].index == 3
