"""PersonaTable: the user's own data back, with three columns more; files; views."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personainfer.data import arrow_columns as added
from personainfer.data import table_writer as writing
from personainfer.data.own_columns import own_columns
from personainfer.data.table import PersonaTable
from personainfer.data.table_writer import write_table
from personainfer.exceptions import DataError, InvalidArgumentError, RowsFailedError
from personainfer.records import (
    Candidate,
    Message,
    Persona,
    PersonaRow,
    Preference,
    Usage,
    unchecked,
)

NEW = ["chosen_persona", "rejected_persona", "persona_error"]
CHOSEN = "The user is busy and prefers short answers 0."
REJECTED = "The user is curious and prefers reasons."


def rows(count: int = 3, *, failed: tuple[int, ...] = (), **more: Any) -> list[PersonaRow]:
    """Rows as they come from inference; those that failed have an error and no persona."""
    made = []
    for i in range(count):
        pair = Preference(prompt=f"q{i}", chosen="yes", rejected="no", id=f"id-{i}")
        columns = {name: values[i] for name, values in more.items()}
        if i in failed:
            made.append(PersonaRow(i, pair, error=f"no reply {i}", columns=columns))
            continue
        chosen = Persona(
            evidence="few words", trait="busy", preference=f"short answers {i}", flags=("refusal",)
        )
        rejected = Persona(trait="curious", preference="reasons")
        made.append(PersonaRow(i, pair, chosen=chosen, rejected=rejected, columns=columns))
    return made


def pandas_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": ["q0", "q1", "q2"],
            "score": pd.array([1, None, 3], dtype="Int64"),
            "kind": pd.Categorical(["a", "b", "a"]),
            "when": pd.date_range("2026-01-01", periods=3, tz="Europe/Berlin"),
            "small": np.array([1, 2, 3], dtype="int8"),
            "share": [0.5, np.nan, 1.5],
        }
    )


INDEXES: dict[str, Any] = {
    "range": pd.RangeIndex(3),
    "stepped": pd.RangeIndex(10, 40, 10),
    "named": pd.Index(["x", "y", "z"], name="row"),
    "duplicates": pd.Index([7, 7, 1]),
    "dates": pd.date_range("2026-01-01", periods=3),
    "multi": pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["user", "turn"]),
    "unnamed multi": pd.MultiIndex.from_tuples([(1, 1), (1, 1), (2, 1)]),
}
indexes = pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)


def polars_frame() -> pl.DataFrame:
    return pl.DataFrame(
        {"prompt": ["q0", "q1", "q2"], "score": [1, None, 3], "tags": [["a"], [], None]},
        schema_overrides={"score": pl.Int16},
    )


def arrow_table() -> pa.Table:
    kind = pa.array(["a", "b", "a"]).dictionary_encode()
    table = pa.table({"prompt": ["q0", "q1", "q2"], "kind": kind})
    return table.replace_schema_metadata({"source": "mine"})


def hf_dataset() -> datasets.Dataset:
    features = datasets.Features(
        prompt=datasets.Value("large_string"), label=datasets.ClassLabel(names=["bad", "good"])
    )
    return datasets.Dataset.from_dict(
        {"prompt": ["q0", "q1", "q2"], "label": [0, 1, 1]}, features=features
    )


ORIGINALS: dict[str, Any] = {
    "pandas": pandas_frame(),
    "polars": polars_frame(),
    "arrow": arrow_table(),
    "hf": hf_dataset(),
    "dicts or tuples": None,
}
originals = pytest.mark.parametrize("original", ORIGINALS.values(), ids=ORIGINALS)


@indexes
def test_pandas_comes_back_with_its_index_and_dtypes(index: pd.Index[Any]) -> None:
    frame = pandas_frame().set_index(index)
    before = frame.copy(deep=True)
    result = PersonaTable(rows(failed=(1,)), original=frame).to_pandas()
    assert list(result.columns) == [*before.columns, *NEW]
    pd.testing.assert_frame_equal(result[list(before.columns)], before)
    assert [name for name in NEW if result[name].dtype != object] == []
    assert result["persona_error"].tolist() == [None, "no reply 1", None]
    assert result["chosen_persona"].tolist()[:2] == [CHOSEN, None]
    pd.testing.assert_frame_equal(frame, before)  # the user's own frame has no new columns


def test_polars_comes_back_as_it_was() -> None:
    frame = polars_frame()
    result = PersonaTable(rows(failed=(1,)), original=frame).to_polars()
    polars.testing.assert_frame_equal(result.select(frame.columns), polars_frame())
    assert result.columns == [*frame.columns, *NEW]
    assert result["rejected_persona"].to_list() == [REJECTED, None, REJECTED]
    polars.testing.assert_frame_equal(frame, polars_frame())


def test_arrow_comes_back_as_it_was() -> None:
    result = PersonaTable(rows(failed=(1,)), original=arrow_table()).to_arrow()
    assert result.column_names == ["prompt", "kind", *NEW]
    assert result.select(["prompt", "kind"]).equals(arrow_table(), check_metadata=True)


@pytest.mark.parametrize("view", ["plain", "selected", "numpy format"])
def test_a_hugging_face_dataset_keeps_its_features(view: str) -> None:
    original = hf_dataset()
    if view == "selected":
        original = datasets.concatenate_datasets([original, original]).select([2, 4, 0])
    elif view == "numpy format":
        original = original.with_format("numpy")
    result = PersonaTable(rows(failed=(1,)), original=original).to_hf()
    assert result.column_names == ["prompt", "label", *NEW]
    assert {name: result.features[name] for name in original.features} == original.features
    plain = result.with_format(None)
    assert plain["prompt"][:] == original.with_format(None)["prompt"][:]
    assert plain["persona_error"][:] == [None, "no reply 1", None]
    assert original.column_names == ["prompt", "label"]


@originals
def test_every_original_becomes_every_kind_of_frame(original: Any) -> None:
    table = PersonaTable(rows(failed=(1,), prompt=["q0", "q1", "q2"]), original=original)
    results = {
        "pandas": table.to_pandas().to_dict("list"),
        "polars": table.to_polars().to_dict(as_series=False),
        "arrow": table.to_arrow().to_pydict(),
        "hf": table.to_hf().to_dict(),
    }
    for kind, columns in results.items():
        assert list(columns)[-3:] == NEW, kind
        assert columns["prompt"] == ["q0", "q1", "q2"], kind
        assert columns["rejected_persona"] == [REJECTED, None, REJECTED], kind
        assert columns["persona_error"] == [None, "no reply 1", None], kind


@originals
@pytest.mark.parametrize("failed", [(), (0, 1, 2)])
def test_persona_columns_are_strings_even_where_all_are_null(
    original: Any, failed: tuple[int, ...]
) -> None:
    table = PersonaTable(rows(failed=failed), original=original)
    arrow, frame, hf = table.to_arrow(), table.to_polars(), table.to_hf()
    for name in NEW:
        assert arrow.schema.field(name).type == pa.string()
        assert frame.schema[name] == pl.String
        assert hf.features[name] == datasets.Value("string")


def test_dict_rows_keep_their_own_columns() -> None:
    table = PersonaTable(rows(question=["a", "b", "c"], score=[1, 2, None], tags=[[1], [], [2, 3]]))
    arrow = table.to_arrow()
    assert arrow.column_names == ["question", "score", "tags", *NEW]
    assert arrow.select(["question", "score", "tags"]).to_pydict() == {
        "question": ["a", "b", "c"],
        "score": [1, 2, None],
        "tags": [[1], [], [2, 3]],
    }
    assert list(table.to_pandas().columns) == ["question", "score", "tags", *NEW]


LONG_IDS = [2**60 + 1, None, 2**60 + 3]  # floats have no such numbers


@pytest.mark.parametrize(
    "original",
    [
        None,
        pl.DataFrame({"tweet": LONG_IDS, "users": [LONG_IDS, [], None]}),
        pa.table({"tweet": LONG_IDS, "users": [LONG_IDS, [], None]}),
        datasets.Dataset.from_dict({"tweet": LONG_IDS, "users": [LONG_IDS, [], None]}),
    ],
    ids=["dicts", "polars", "arrow", "hf"],
)
def test_long_whole_numbers_keep_their_digits_in_pandas(original: Any, tmp_path: Path) -> None:
    own: dict[str, Any] = {"tweet": LONG_IDS, "users": [LONG_IDS, [], None]}
    table = PersonaTable(rows(**own) if original is None else rows(), original=original)
    for found in (table, PersonaTable.load(table.save(tmp_path / "t.parquet"))):
        frame = found.to_pandas()
        assert str(frame["tweet"].dtype) == "Int64"
        assert frame["tweet"].dropna().tolist() == [2**60 + 1, 2**60 + 3]
        assert list(frame["users"][0]) == LONG_IDS


def test_other_numbers_of_rows_stay_as_pandas_has_them() -> None:
    table = PersonaTable(
        rows(whole=[1, 2, 3], share=[0.5, None, 1], seen=[True, None, False], huge=[2**64, None, 1])
    )
    kinds = table.to_pandas().dtypes.astype(str).to_dict()
    assert {name: kinds[name] for name in ("whole", "share", "seen", "huge")} == {
        "whole": "int64",
        "share": "float64",
        "seen": "object",
        "huge": "object",
    }


def test_dict_rows_with_different_columns_or_types_are_all_kept() -> None:
    mixed: list[dict[str, Any]] = [{"a": 1}, {"b": "x"}, {"a": "two", "b": None}]
    made = [
        PersonaRow(row.index, row.preference, columns=columns)
        for row, columns in zip(rows(), mixed, strict=True)
    ]
    table = PersonaTable(made)
    assert table.to_pandas()["a"].tolist()[::2] == [1, "two"]
    arrow = table.to_arrow()
    assert [json.loads(str(text)) for text in arrow["a"].to_pylist()] == [1, None, "two"]
    assert arrow["b"].to_pylist() == [None, "x", None]


def test_tuples_come_back_as_the_pairs_that_were_read() -> None:
    frame = PersonaTable(rows()).to_polars()
    assert frame.columns == ["prompt", "chosen", "rejected", "id", *NEW]
    assert frame["prompt"].to_list() == ["q0", "q1", "q2"]


@pytest.mark.parametrize("count", [0, 2])
def test_rows_without_any_column_are_still_counted(count: int) -> None:
    table = PersonaTable([PersonaRow(i, None, error=f"row {i} is empty") for i in range(count)])
    lengths = [len(table.to_pandas()), len(table.to_polars()), len(table.to_hf())]
    assert [*lengths, table.to_arrow().num_rows] == [count] * 4
    assert table.to_arrow()["persona_error"].to_pylist() == [
        f"row {i} is empty" for i in range(count)
    ]


def test_a_table_is_a_sequence_in_input_order() -> None:
    made = rows(failed=(1,))
    table = PersonaTable(made)
    assert (len(table), list(table), table[0], table[-1]) == (3, made, made[0], made[2])
    assert list(table[1:]) == made[1:]
    assert table.errors == [made[1]]
    with pytest.raises(IndexError):
        table[3]


def test_raise_for_errors_says_how_many_and_which_came_first() -> None:
    PersonaTable(rows()).raise_for_errors()
    with pytest.raises(RowsFailedError, match=r"2 of 4 rows.*row 1: no reply 1.*table\.errors"):
        PersonaTable(rows(4, failed=(1, 3))).raise_for_errors()


def test_flags_of_a_row_are_those_of_both_sides_once() -> None:
    one = Persona(trait="a", preference="b", flags=("refusal", "copies_text"))
    other = Persona(trait="a", preference="b", flags=("copies_text", "named_person"))
    row = PersonaRow(0, None, chosen=one, rejected=other)
    assert row.flags == ("refusal", "copies_text", "named_person")
    assert PersonaRow(0, None, error="x").flags == ()


def full_table(original: Any = None) -> PersonaTable:
    """Everything that a saved file should bring back."""
    made = rows(failed=(1,))
    turns = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    made[2] = PersonaRow(
        2,
        Preference(prompt=turns, chosen="✓ \0", rejected="no", user="u"),
        chosen=made[2].chosen,
        chosen_candidates=(
            Candidate(Persona(trait="a", preference="b"), 0.25),
            Candidate(Persona(trait="c", preference="d")),
        ),
    )
    return PersonaTable(
        made,
        original=original,
        usage=Usage(calls=4, cached=1, retries=2, prompt_tokens=100, cost=None),
        settings={"model": "fake", "sides": ["chosen"], "protocol": "joint"},
    )


@originals
def test_what_is_saved_is_loaded(original: Any, tmp_path: Path) -> None:
    table = full_table(original)
    path = table.save(tmp_path / "new folder" / "personas.parquet")
    loaded = PersonaTable.load(str(path))
    assert list(loaded) == list(table)
    assert (loaded.usage, loaded.settings) == (table.usage, table.settings)
    assert loaded.to_arrow().to_pylist() == table.to_arrow().to_pylist()
    assert loaded.to_arrow().column_names == table.to_arrow().column_names
    again = PersonaTable.load(loaded.save(tmp_path / "again.parquet"))
    assert list(again) == list(table)
    assert again.to_arrow().equals(loaded.to_arrow())
    assert sorted(os.listdir(tmp_path)) == ["again.parquet", "new folder"]


@pytest.mark.heavy
@indexes
def test_a_saved_pandas_frame_comes_back_with_its_index(
    index: pd.Index[Any], tmp_path: Path
) -> None:
    table = full_table(pandas_frame().set_index(index))
    loaded = PersonaTable.load(table.save(tmp_path / "personas.parquet"))
    pd.testing.assert_frame_equal(
        loaded.to_pandas()[["prompt", "score", "kind", "when", "small", "share"]],
        table.to_pandas()[["prompt", "score", "kind", "when", "small", "share"]],
        check_index_type="equiv",
        check_freq=False,
    )
    assert loaded.to_pandas()[NEW].to_dict("list") == table.to_pandas()[NEW].to_dict("list")


def test_rows_keep_their_place_in_the_input_through_a_file(tmp_path: Path) -> None:
    """With on_error="drop" places have gaps."""
    kept = rows(5)[::2]
    loaded = PersonaTable.load(PersonaTable(kept).save(tmp_path / "kept.parquet"))
    assert [row.index for row in loaded] == [0, 2, 4]


def test_a_phrase_is_not_shortened_again_by_loading(tmp_path: Path) -> None:
    persona = Persona(trait="The user is someone who is patient", preference="Is it is what it is")
    table = PersonaTable([PersonaRow(0, None, chosen=persona)])
    assert PersonaTable.load(table.save(tmp_path / "t.parquet"))[0].chosen == persona


@pytest.mark.parametrize("count", [0, 2])
def test_a_table_without_columns_is_saved_too(count: int, tmp_path: Path) -> None:
    table = PersonaTable([PersonaRow(i, None, error="empty") for i in range(count)])
    assert list(PersonaTable.load(table.save(tmp_path / "t.parquet"))) == list(table)


def test_a_saved_file_can_be_read_by_anybody(tmp_path: Path) -> None:
    path = PersonaTable(rows(), original=pandas_frame()).save(tmp_path / "t.parquet")
    frame = pd.read_parquet(path)
    assert frame["chosen_persona"][0] == CHOSEN
    assert frame["score"].tolist() == pandas_frame()["score"].tolist()
    reference = tmp_path / "as usual"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode  # and not only by its owner


@pytest.mark.parametrize("name", ["personas.csv", "personas", "personas.parquet.gz"])
def test_saving_under_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"\.parquet.*to_pandas"):
        PersonaTable(rows()).save(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken.parquet").mkdir()  # a file cannot replace a folder
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"taken\.parquet is a folder"):
        PersonaTable(rows()).save(tmp_path / "taken.parquet")
    with pytest.raises(InvalidArgumentError, match=r"file.* cannot be written"):
        PersonaTable(rows()).save(tmp_path / "file" / "personas.parquet")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken.parquet"]
    assert os.listdir(tmp_path / "taken.parquet") == []
    assert (tmp_path / "file").read_text() == "mine"


def test_a_table_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = PersonaTable(rows()).save(tmp_path / "t.parquet")
    before = path.read_bytes()
    strange = unchecked(Persona, {**Persona(trait="a", preference="b").__dict__, "trait": object()})
    unwritable = PersonaRow(0, None, chosen_candidates=(Candidate(strange),))
    with pytest.raises(TypeError):
        PersonaTable([*rows(), unwritable]).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize(
    "settings",
    [
        {"candidates": np.int64(3)},
        {"x": object()},
        {"x": 10**5000},
        {(1, 2): 3},
        {1: 2},
        {"x": [{True: 3}]},
        {"model": 5},
        {"verified_neither": float("nan"), "verified_by": None},
        {"sides": ["x"]},
        {"retries": [1]},
        {"read": {"columns": {"1": 2}}},
        {"personas_from": {"chosen": 1}},
    ],
    ids=lambda settings: str(*list(settings)[:1]),
)
def test_settings_that_no_table_gives_back_are_refused(settings: Any, tmp_path: Path) -> None:
    table = PersonaTable(rows())
    path = table.save(tmp_path / "t.parquet")
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError) as caught:
        PersonaTable(rows(), settings=settings)
    assert caught.value.argument == "settings"
    with pytest.raises(InvalidArgumentError, match="settings"):
        table.with_columns({"x": [1, 2, 3]}, settings=settings)
    table.settings.update(settings)
    with pytest.raises(InvalidArgumentError, match="settings"):
        table.save(path)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_read_again_replaces_no_table(tmp_path: Path) -> None:
    path = PersonaTable(rows()).save(tmp_path / "t.parquet")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"t\.parquet is not written"):
        write_table(
            path, enumerate(rows()), own_columns(None), lambda: (Usage(), {}), added=["nope"]
        )
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_a_column_that_the_file_needs_for_itself_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"personainfer": [1, 2, 3]})
    with pytest.raises(InvalidArgumentError, match="column personainfer"):
        PersonaTable(rows(), original=frame).save(tmp_path / "t.parquet")
    assert os.listdir(tmp_path) == []


def test_a_file_of_another_kind_is_not_loaded(tmp_path: Path) -> None:
    text, other = tmp_path / "text.parquet", tmp_path / "other.parquet"
    text.write_text("not a parquet file")
    pq.write_table(pa.table({"prompt": ["q"], "chosen_persona": ["p"]}), other)
    cut = PersonaTable(rows()).save(tmp_path / "cut.parquet")
    cut.write_bytes(cut.read_bytes()[:-20])
    for path in (text, other, cut):
        with pytest.raises(DataError, match=f"{path.name} is not a table of personas"):
            PersonaTable.load(path)
    with pytest.raises(FileNotFoundError):
        PersonaTable.load(tmp_path / "missing.parquet")


def test_the_notebook_view_shows_text_as_text() -> None:
    evil = "<script>alert('x')</script> & <b>"
    row = PersonaRow(
        0,
        Preference(prompt=evil, chosen="c", rejected="r"),
        chosen=Persona(trait=evil, preference=evil),
        error=evil,
    )
    view = PersonaTable([row])._repr_html_()
    assert "<script" not in view
    assert "<b>" not in view
    assert view.count("&lt;script&gt;alert(&#x27;x&#x27;)") == 4  # prompt, phrases, error


def test_the_notebook_view_is_short_for_a_long_table() -> None:
    view = PersonaTable(rows(1000))._repr_html_()
    assert view.count("<tr>") < 50
    assert "1000 rows" in view


def test_the_notebook_view_shows_flags_errors_evidence_and_verdicts() -> None:
    table = PersonaTable(rows(12, failed=(1,))).with_columns(
        {
            "chosen_verified_score": [1.0, None, *[0.5] * 10],
            "rejected_verified_score": [None] * 12,
        }
    )
    view = table._repr_html_()
    assert "score of the chosen personas: 0.55, 11 judged" in view
    assert "score of the rejected personas" not in view
    assert "no reply 1" in view
    assert ">refusal</span>" in view
    assert "and 2 rows more" in view


def test_a_table_reads_as_text() -> None:
    table = PersonaTable(rows(15, failed=(1,)), usage=Usage(calls=14, cached=1))
    text = str(table)
    first = " ".join(text.split()).partition(" id-1 ")[0]
    assert first == f"id-0 q0 chosen yes {CHOSEN} [refusal] rejected no {REJECTED}"
    assert "id-1  q1\n  ! no reply 1\n" in text
    assert "id-10" not in text
    assert text.endswith(
        "… and 5 rows more\n"
        "PersonaTable(15 rows, 1 with an error, 14 flagged; 14 calls, 1 from the cache)"
    )
    assert "id-14" in table.format()
    assert text.splitlines()[-1] == repr(table)


@pytest.mark.parametrize("width", [-1, 0, 5])
def test_a_table_is_as_wide_as_can_be_read(width: int) -> None:
    lines = PersonaTable(rows()).format(width=width).splitlines()
    assert 20 < max(map(len, lines)) <= 24


def test_a_table_is_no_wider_than_a_screen_can_be() -> None:
    table = PersonaTable(rows())
    assert table.format(width=2**62) == table.format(width=10_000)
    for wrong in (float("inf"), "80", None):
        with pytest.raises(InvalidArgumentError, match=r"width=.* must be a whole number"):
            table.format(width=wrong)  # type: ignore[arg-type]


def test_a_number_of_rows_below_zero_is_refused() -> None:
    table = PersonaTable(rows())
    assert table.format(limit=0).startswith("… and 3 rows more\n")
    with pytest.raises(InvalidArgumentError, match=r"format\(-1\): give a number of rows"):
        table.format(limit=-1)


def test_a_long_prompt_is_shown_in_one_short_line() -> None:
    pair = Preference(prompt="long\nprompt " * 100, chosen="c", rejected="r")
    lines = str(PersonaTable([PersonaRow(7, pair, error="e")])).splitlines()
    assert lines[0].startswith("7  long prompt long")
    assert lines[0].endswith("…")
    assert len(lines[0]) <= 100
    assert lines[1:3] == ["  ! e", ""]


ADDED: dict[str, list[Any]] = {
    "verified": [True, None, False],
    "score": [1, None, 0.5],
    "rating": [4, None, 2],
    "why": ["a", None, "b"],
    "nothing": [None] * 3,
}


@pytest.mark.heavy
@originals
def test_added_columns_are_in_every_frame_and_in_the_file(original: Any, tmp_path: Path) -> None:
    added = {f"judge_{name}": values for name, values in ADDED.items()}
    table = full_table(original)
    more = table.with_columns(added)
    loaded = PersonaTable.load(more.save(tmp_path / "more.parquet"))
    for one in (more, loaded):
        frames = one.to_arrow(), one.to_polars().to_arrow(), one.to_hf().with_format("arrow")[:]
        for frame in frames:
            assert frame.column_names[-5:] == list(added)
            assert {name: frame.column(name).to_pylist() for name in added} == added
        pandas = one.to_pandas()[list(added)]
        assert pandas.astype(object).where(pandas.notna(), None).to_dict("list") == added
        assert list(one) == list(table)
    assert pandas["judge_verified"].sum() == 1  # usable as a mask and in sums
    assert loaded.added == more.added
    assert table.added == {}
    assert not set(added) & set(table.to_arrow().column_names)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (np.array([0.5, 1.0, 2.0]), [0.5, 1.0, 2.0]),
        ([np.float32(0.5), None, np.int64(2)], [0.5, None, 2.0]),
        (pd.Series([1, None, 3], dtype="Int64"), [1, None, 3]),
        (pl.Series([True, None, False]), [True, None, False]),
        (pa.chunked_array([["a"], [None, "b"]]), ["a", None, "b"]),
        ((n for n in range(3)), [0, 1, 2]),
    ],
    ids=["numpy", "numpy scalars", "pandas", "polars", "arrow", "generator"],
)
def test_values_of_any_kind_of_column_can_be_added(values: Any, kept: list[Any]) -> None:
    table = PersonaTable(rows()).with_columns({"x": values})
    assert table.to_arrow()["x"].to_pylist() == kept


def test_arrays_as_values_of_one_column_are_refused_as_arguments() -> None:
    table = PersonaTable(rows())
    with pytest.raises(InvalidArgumentError, match="holds values of the type list"):
        table.with_columns({"x": [np.array([1, 2])] * 3})
    with pytest.raises(InvalidArgumentError, match=r"value 0 is \[1, 2\], not True"):
        table.filter([np.array([1, 2])] * 3)  # type: ignore[list-item]


def test_an_added_column_needs_a_name_that_is_text() -> None:
    with pytest.raises(InvalidArgumentError, match="columns= names a column 3, which is not text"):
        PersonaTable(rows()).with_columns({3: [1, 2, 3]})  # type: ignore[dict-item]


def test_an_added_column_does_not_stand_in_for_a_part_of_the_personas() -> None:
    table = PersonaTable(rows()).with_columns({"chosen_trait": [1, 2, 3]})
    assert table.to_arrow()["chosen_trait"].to_pylist() == [1, 2, 3]
    for convert in (table.to_arrow, table.to_pandas):
        with pytest.raises(InvalidArgumentError, match="has an added column chosen_trait"):
            convert(details=True)


def test_an_added_column_is_a_copy() -> None:
    values = [1, 2, 3]
    table = PersonaTable(rows()).with_columns({"x": values})
    values[0] = 9
    assert table.added == {"x": [1, 2, 3]}


@pytest.mark.parametrize("settings", [[1], "ab", 3])
def test_settings_that_are_no_mapping_are_refused(settings: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a mapping") as caught:
        PersonaTable(rows(), settings=settings)
    assert caught.value.argument == "settings"
    with pytest.raises(InvalidArgumentError, match="is not a mapping"):
        PersonaTable(rows()).with_columns({"x": [1, 2, 3]}, settings=settings)


def test_a_half_of_a_surrogate_pair_makes_no_list_of_a_tuple_in_pandas() -> None:
    class Point(NamedTuple):
        x: int
        y: str

    pair = Preference(prompt="q", chosen="a", rejected="b")
    cells: list[Any] = ["\udcff", (1, 2), Point(1, "a"), [1, (2,)], {"x": (3,)}]
    made = [PersonaRow(0, pair, error="e", columns=dict(zip("abcde", cells, strict=True)))]
    found = PersonaTable(made).to_pandas()[[*"abcde"]].to_numpy().tolist()[0]
    assert found == ["\\udcff", *cells[1:]]
    assert type(found[2]) is Point


def test_half_of_a_surrogate_pair_in_an_added_column_is_written(tmp_path: Path) -> None:
    table = PersonaTable(rows()).with_columns({"x": ["\ud800", None, "é"]})
    loaded = PersonaTable.load(table.save(tmp_path / "t.parquet"))
    assert loaded.added["x"] == ["\\ud800", None, "é"]


def test_the_type_of_an_added_column_is_not_looked_up_by_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each part of the file it took minutes for a million rows."""
    monkeypatch.setattr(writing, "GROUP_ROWS", 1)
    table = PersonaTable(rows()).with_columns({"x": [None, None, 0.5]})
    looked: list[str] = []
    look = added.type_of

    def noted(name: str, values: Any) -> Any:
        looked.append(name)
        return look(name, values)

    monkeypatch.setattr(added, "type_of", noted)
    table.save(tmp_path / "t.parquet")
    assert looked == []


def test_an_added_column_is_replaced_by_one_of_the_same_name(tmp_path: Path) -> None:
    first = PersonaTable(rows()).with_columns({"x": [1, 2, 3], "y": ["a", "b", "c"]})
    loaded = PersonaTable.load(first.save(tmp_path / "t.parquet"))
    for table in (first, loaded):
        assert table.with_columns({"x": [True, False, None]}).to_arrow()["x"].to_pylist() == [
            True,
            False,
            None,
        ]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"x": [1, 2]}, "2 values, and the table 3 rows"),
        ({"x": [1, "a", None]}, "int, str"),
        ({"x": [1, 2**70, None]}, "64 bits"),
        ({"x": [{}, None, None]}, "dict"),
        ({"x": {"a": 0.1, "b": 0.2, "c": 0.3}}, "not one value a row"),
        ({"x": {0.1}}, "not one value a row"),
        ({"x": b"abc"}, "not one value a row"),
        ({"prompt": [1, 2, 3]}, "column prompt already"),
        ({"chosen_persona": ["a", "b", "c"]}, "column chosen_persona already"),
        ({"personainfer": ["a", "b", "c"]}, "column personainfer already"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("original", [None, pandas_frame()], ids=["rows", "frame"])
def test_a_column_that_cannot_be_added_is_refused(
    original: Any, columns: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        PersonaTable(rows(), original=original).with_columns(columns)


def test_the_notebook_view_says_how_often_a_guess_is_right() -> None:
    added = {"chosen_verified_score": [1.0, 0.0]}
    view = PersonaTable(rows(2)).with_columns(added)._repr_html_()
    assert "2 judged (a guess: 0.50)" in view
    settings = {"verified_neither": 0.4}
    view = PersonaTable(rows(2)).with_columns(added, settings=settings)._repr_html_()
    assert "2 judged (a guess: 0.30)" in view


SOURCES: dict[str, Any] = {
    "pandas": pd.DataFrame({"prompt": ["q"] * 3}),
    "polars": pl.DataFrame({"prompt": ["q"] * 3}),
    "arrow": pa.table({"prompt": ["q"] * 3}),
    "dataset": datasets.Dataset.from_dict({"prompt": ["q"] * 3}),
    "dicts": None,
}


@pytest.mark.parametrize("original", SOURCES.values(), ids=SOURCES)
def test_half_of_a_surrogate_pair_in_an_added_column_is_escaped_everywhere(
    original: Any, tmp_path: Path
) -> None:
    table = PersonaTable(rows(3), original=original).with_columns({"z": ["a\ud83d", None, "b"]})
    wanted = ["a\\ud83d", None, "b"]
    loaded = PersonaTable.load(table.save(tmp_path / "t.parquet"))
    for each in (table, loaded):
        assert each.to_arrow().column("z").to_pylist() == wanted
        assert each.to_pandas()["z"].tolist() == wanted
        assert each.to_polars()["z"].to_list() == wanted
        assert list(each.to_hf()["z"]) == wanted
    with pytest.raises(InvalidArgumentError, match="half of a surrogate pair"):
        table.with_columns({"z\ud83d": [1, 2, 3]})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2**53 + 1, 0.5, None], "become another one"),
        ([2**70 + 1, 0.5, None], "become another one"),
        ([10**400, 0.5, None], "become another one"),
        (np.array(5), "cannot be read"),
        (pl.Series([2**63 - 1, 0, 0]).cast(pl.Datetime("us")), "cannot be read"),
        (pl.Series([2**62, 0, 0]).cast(pl.Datetime("us")), "cannot be read"),
    ],
    ids=["rounded", "long", "very long", "no dimension", "far", "less far"],
)
def test_values_that_no_added_column_can_hold_are_refused(values: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        PersonaTable(rows(3)).with_columns({"z": values})


def test_whole_numbers_beside_fractions_are_added_as_these() -> None:
    table = PersonaTable(rows(3)).with_columns({"z": [2**53, 0.5, 2**80]})
    assert table.to_arrow().column("z").to_pylist() == [2.0**53, 0.5, 2.0**80]
