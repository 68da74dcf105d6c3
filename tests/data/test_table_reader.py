"""Tables in files: rows are read when they are looked at, and the file is read as it was."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import personainfer as pi
from personainfer.data import table_reader as reading
from personainfer.data import table_writer as writing
from personainfer.data.column_values import RECORD
from personainfer.data.table_reader import StoredTable
from personainfer.exceptions import DataError
from personainfer.records import Candidate, Persona, PersonaRow, Preference, Usage


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 4)


def rows(count: int = 10) -> list[PersonaRow]:
    """Every third has an error, every other a flag."""
    made = []
    for n in range(count):
        pair = Preference(prompt=f"q{n}", chosen="a", rejected="b")
        flags = ("refusal",) if n % 2 else ()
        persona = Persona(trait="busy", preference=f"answers {n}", flags=flags)
        failed = n % 3 == 0
        error = f"no reply {n}" if failed else None
        made.append(PersonaRow(n, pair, chosen=None if failed else persona, error=error))
    return made


def saved(folder: Path, count: int = 10) -> tuple[pi.PersonaTable, Path]:
    """A table in memory, and its file."""
    table = pi.PersonaTable(
        rows(count),
        original=pd.DataFrame({"x": range(count), "y": [f"t{n}" for n in range(count)]}),
        usage=Usage(calls=count),
        settings={"model": "fake"},
    )
    return table, table.save(folder / "t.parquet")


def test_rows_of_a_file_are_those_that_were_saved_in_any_order(tmp_path: Path) -> None:
    kept, path = saved(tmp_path)
    table = pi.PersonaTable.load(path)
    assert pq.ParquetFile(path).num_row_groups == 3
    assert list(table) == list(kept)
    for place in (9, 0, -1, 5, -10, 4):
        assert table[place] == kept[place]
    for part in (slice(3, 9), slice(None, None, -3), slice(8, 99), slice(5, 5)):
        assert list(table[part]) == list(kept[part])
    for place in (10, -11):
        with pytest.raises(IndexError):
            table[place]
    assert table.errors == kept.errors
    assert table.failed_places() == [0, 3, 6, 9]
    assert kept[4] in table
    assert table.index(kept[7]) == 7


def test_what_a_file_says_of_itself_is_what_the_table_said(tmp_path: Path) -> None:
    kept, path = saved(tmp_path)
    table = pi.PersonaTable.load(path)
    assert repr(table) == repr(kept)
    assert str(table) == str(kept)
    assert table._repr_html_() == kept._repr_html_()
    assert "10 rows, 4 with an error, 3 flagged; 10 calls" in repr(table)


def test_a_file_written_before_flags_were_counted_is_read(tmp_path: Path) -> None:
    kept, path = saved(tmp_path)
    whole = pq.read_table(path)
    about = json.loads((pq.ParquetFile(path).metadata.metadata or {})[RECORD.encode()])
    del about["flagged"]
    metadata = {**(whole.schema.metadata or {}), RECORD.encode(): json.dumps(about).encode()}
    pq.write_table(whole.replace_schema_metadata(metadata), path)  # and in one row group
    table = pi.PersonaTable.load(path)
    assert repr(table) == repr(kept)
    assert list(table) == list(kept)
    assert table.to_arrow().equals(kept.to_arrow())


def test_only_the_rows_that_are_looked_at_are_read(tmp_path: Path) -> None:
    """Shown by a file of which the second group is damaged."""
    kept, path = saved(tmp_path)
    column = pq.ParquetFile(path).metadata.row_group(1).column(5)
    assert column.path_in_schema == RECORD
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    table = pi.PersonaTable.load(path)
    assert [table[place] for place in (0, 3, 8, 9)] == [kept[place] for place in (0, 3, 8, 9)]
    with pytest.raises(DataError, match=r"t\.parquet cannot be read"):
        table[4]
    assert table.to_arrow()["x"].to_pylist() == list(range(10))  # which needs no records


def test_a_table_can_be_saved_over_its_own_file(tmp_path: Path) -> None:
    kept, path = saved(tmp_path)
    table = pi.PersonaTable.load(path)
    assert table.save(path) == path
    pi.PersonaTable(rows(1)).save(path)  # another table takes its place
    assert list(table) == list(kept)  # and this one is what it was
    assert table.to_arrow().equals(kept.to_arrow())
    assert len(pi.PersonaTable.load(path)) == 1


def test_frames_of_a_file_have_its_columns(tmp_path: Path) -> None:
    kept, path = saved(tmp_path)
    table = pi.PersonaTable.load(path)
    assert table.to_arrow().equals(kept.to_arrow())
    pd.testing.assert_frame_equal(table.to_pandas(), kept.to_pandas())
    assert table.to_polars().equals(pl.DataFrame(kept.to_arrow()))
    assert table.to_hf()["y"][:] == [f"t{n}" for n in range(10)]
    assert not any(RECORD.encode() in (t.schema.metadata or {}) for t in (table.to_arrow(),))


@pytest.mark.parametrize("copied", [lambda t: pickle.loads(pickle.dumps(t)), deepcopy])
def test_a_copy_does_not_need_the_file(copied: Any, tmp_path: Path) -> None:
    kept, path = saved(tmp_path)
    copy = copied(pi.PersonaTable.load(path))
    path.unlink()
    assert list(copy) == list(kept)
    assert copy.to_arrow().equals(kept.to_arrow())
    assert (copy.usage, copy.settings) == (kept.usage, kept.settings)
    assert list(pi.PersonaTable.load(copy.save(tmp_path / "again.parquet"))) == list(kept)


def test_other_rows_can_take_the_place_of_some(tmp_path: Path) -> None:
    kept, path = saved(tmp_path)
    persona = Persona(trait="new", preference="news", flags=("refusal",))
    changed = {
        3: PersonaRow(3, kept[3].preference, chosen=persona),
        5: PersonaRow(5, kept[5].preference, error="worse now"),  # it had a flag
    }
    stored = pi.PersonaTable.load(path)
    results: list[pi.PersonaTable] = []
    for table in (kept, stored):
        new = table.with_rows(changed, usage=Usage(calls=12), settings={"model": "other"})
        assert [row == old for row, old in zip(new, kept, strict=True)] == [
            place not in changed for place in range(10)
        ]
        assert new.failed_places() == [0, 5, 6, 9]
        assert "4 with an error, 3 flagged; 12 calls" in repr(new)
        assert new.to_arrow()["persona_error"].to_pylist()[3:6] == [None, None, "worse now"]
        assert list(table) == list(kept)  # which is as it was
        results.append(pi.PersonaTable.load(new.save(tmp_path / f"{len(results)}.parquet")))
    assert list(results[0]) == list(results[1])
    assert results[0].to_arrow().equals(results[1].to_arrow())


def test_names_with_dots_are_names(tmp_path: Path) -> None:
    """Parquet writes the parts of a nested column with dots between them."""
    frame = pa.table({"a": [{"b": 1}], "a.b": [2], "personainfer.x": ["mine"]})
    path = pi.PersonaTable(rows(1), original=frame).save(tmp_path / "t.parquet")
    assert (
        pi.PersonaTable.load(path)
        .to_arrow()
        .drop_columns(["chosen_persona", "rejected_persona", "persona_error"])
        .equals(frame)
    )
    assert list(pi.PersonaTable.load(path)) == rows(1)


@pytest.mark.heavy
def test_several_threads_can_read_a_table(tmp_path: Path) -> None:
    """Arrow's reader alone crashes the process, or never returns."""
    made = rows(200)
    table = pi.PersonaTable.load(pi.PersonaTable(made).save(tmp_path / "t.parquet"))

    def read(start: int) -> bool:
        right = all(table[n] == made[n] for n in range(start, 200, 8))
        return right and table.to_arrow().num_rows == 200

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(8)))


@pytest.mark.parametrize("about", ["{", "[]", "{}", '{"usage": {"x": 1}, "settings": {}}'])
def test_a_file_of_another_version_is_named(about: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({RECORD: about}), path)
    with pytest.raises(DataError, match=r"t\.parquet is not a table of personas"):
        pi.PersonaTable.load(path)


def test_the_file_is_named_where_it_is_of_another_kind(tmp_path: Path) -> None:
    pq.write_table(pa.table({RECORD: ["{}"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet is not a table of personas"):
        StoredTable(tmp_path / "t.parquet")


def test_what_an_older_file_calls_an_error_is_a_finding_where_no_candidate_explains(
    tmp_path: Path,
) -> None:
    pair = Preference(prompt="q", chosen="a", rejected="b")
    persona = Persona(trait="busy", preference="answers")
    tried = (Candidate(persona, -0.25),)
    finding = "no persona explains this choice: the best of 1 scores -0.250."
    told = [
        f"chosen: {finding}",
        f"chosen: {finding}; rejected: {finding}",
        f"no reply; chosen: {finding}",
        f"chosen: {finding}; rejected: none of 2 personas could be scored.",
        None,
    ]
    old = [PersonaRow(n, pair, error=text, chosen_candidates=tried) for n, text in enumerate(told)]
    path = pi.PersonaTable(old).save(tmp_path / "t.parquet")
    table = pi.PersonaTable.load(path)
    left = [None, None, "no reply", "rejected: none of 2 personas could be scored.", None]
    assert [row.error for row in table] == left
    assert table.to_arrow()["persona_error"].to_pylist() == left
    assert table.failed_places() == [2, 3]
    assert all(row.unexplained == ("chosen",) for row in table)
    assert "5 unexplained" in repr(table)
    assert "2 unexplained" in repr(table[:2])


def test_details_say_which_choice_no_persona_explains(tmp_path: Path) -> None:
    pair = Preference(prompt="q", chosen="a", rejected="b")
    persona = Persona(trait="busy", preference="answers")
    tried = (Candidate(persona, -0.25),)
    rows = [
        PersonaRow(0, pair, rejected=persona, chosen_candidates=tried, rejected_candidates=tried),
        PersonaRow(1, pair, persona, persona),
        PersonaRow(2, pair, error="no reply"),
    ]
    made = pi.PersonaTable(rows)
    for table in (made, pi.PersonaTable.load(made.save(tmp_path / "t.parquet"))):
        told = table.to_pandas(details=True)["persona_unexplained"].tolist()
        assert told[0].startswith("no persona explains why somebody would prefer the chosen")
        assert told[1:] == [None, None]
        assert table.to_pandas()["persona_error"].tolist() == [None, None, "no reply"]


def test_slices_of_a_file_share_the_names_of_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    loaded = pi.PersonaTable.load(tmp_path / "t.parquet")
    asked = []

    def with_index(table: Any, places: Any, count: Any) -> Any:
        asked.append(places)
        return table

    monkeypatch.setattr(reading, "with_index_column", with_index)
    assert [len(loaded[start:]) for start in range(5)] == [10, 9, 8, 7, 6]
    assert not asked
