"""Saved tables that somebody changed: they are refused, or all that shows them works."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import personainfer as pi
from personainfer import Persona, PersonaRow, PersonaTable, Preference
from personainfer.data import table_reader
from personainfer.evaluation.summary import summarise
from personainfer.exceptions import DataError, PersonaInferError
from personainfer.local import parquet
from personainfer.records import Message

PERSONA = Persona(trait="t", preference="prefers x", evidence="e")
KEY = b"personainfer"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """A saved table of two rows, as Arrow has it, with what its metadata says."""
    frame = pd.DataFrame(
        {"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"]}, index=[5, 6]
    )
    pair = Preference(prompt="p", chosen="a", rejected="b")
    rows = [PersonaRow(place, pair, chosen=PERSONA, rejected=PERSONA) for place in range(2)]
    path = tmp_path_factory.mktemp("good") / "table.parquet"
    PersonaTable(rows, original=frame).save(path)
    about = pq.ParquetFile(path).metadata.metadata
    return pq.read_table(path).replace_schema_metadata(about)


def changed(
    good: pa.Table, path: Path, metadata: dict[str, bytes] | None = None, about: Change = str
) -> Path:
    """The table with other metadata, in a file."""
    kept = dict(good.schema.metadata)
    said = json.loads(kept[KEY])
    about(said)
    kept |= {KEY: json.dumps(said).encode()} | {k.encode(): v for k, v in (metadata or {}).items()}
    pq.write_table(good.replace_schema_metadata(kept), path)
    return path


def show(table: PersonaTable, folder: Path) -> None:
    """Everything that shows or converts a table."""
    for made in (
        str,
        PersonaTable._repr_html_,
        list,
        PersonaTable.to_pandas,
        PersonaTable.to_polars,
    ):
        made(table)
    table.to_hf()
    str(table.head(1))
    table[1:].to_pandas()
    table.filter(pd.Series([True, False], index=[5, 6]))
    table[1:].save(folder / "part.parquet")
    pi.write_report(table, folder / "report.html", overwrite=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"read": [1]},
        {"read": {"columns": ["x"]}},
        {"read": {"not_in_prompt": 5}},
        {"personas_from": 5},
        {"verified_neither": "x"},
        {"selected_by": {"model": ["x"]}},
        {"candidates": "3"},
        {"retries": 5},
        {"sides": "chosen"},
        {"prompt_version": 5},
    ],
    ids=str,
)
def test_settings_of_another_form_are_refused(
    good: pa.Table, tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = changed(
        good, tmp_path / "t.parquet", about=lambda said: said["settings"].update(settings)
    )
    with pytest.raises(DataError, match="not a table of personas that this version knows"):
        PersonaTable.load(path)


def test_settings_of_very_many_wrong_values_do_not_fill_the_memory(
    good: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 14 MB took 3 GB."""
    monkeypatch.setattr(table_reader, "_MOST_VALUES", 1_000)
    path = changed(
        good,
        tmp_path / "t.parquet",
        about=lambda said: said["settings"].update(retries=[0] * 10_000),
    )
    tracemalloc.start()
    with pytest.raises(DataError, match="not a table of personas"):
        PersonaTable.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_settings_of_very_many_values_of_the_users_own_are_kept(
    good: pa.Table, tmp_path: Path
) -> None:
    own = list(range(200_000))  # more than known settings may have
    path = changed(
        good, tmp_path / "t.parquet", about=lambda said: said["settings"].update(ids=own)
    )
    assert PersonaTable.load(path).settings["ids"] == own


def _pandas(index: object, **more: object) -> bytes:
    return json.dumps(
        {"columns": [], "column_indexes": [], **more, "index_columns": index}
    ).encode()


_FAR = {"kind": "range", "start": 0, "step": 10**19, "stop": 2, "name": None}
STRANGE = {
    "no mapping": {"pandas": b"[]"},
    "no JSON": {"pandas": b"{"},
    "no text": {"pandas": b"\xff"},
    "nested": {"pandas": b"[" * 100_000},
    "a number": {"pandas": _pandas([5])},
    "no column": {"pandas": _pandas(["nope"])},
    "a range of text": {"pandas": _pandas([{**_FAR, "start": "a"}])},
    "a range too far": {"pandas": _pandas([_FAR])},
    "a name of a list": {"pandas": _pandas([{**_FAR, "step": 1, "name": ["x"]}])},
    "columns of a mapping": {"pandas": _pandas([{**_FAR, "step": 1}], columns={})},
    "columns of text": {"pandas": _pandas([], columns=["x"])},
    "categorical": {
        "pandas": _pandas([], column_indexes=[{"pandas_type": "categorical", "numpy_type": "x"}])
    },
    "no features": {"huggingface": b"[]"},
    "features of a number": {"huggingface": b'{"info": {"features": 5}}'},
    "an unknown type": {
        "huggingface": b'{"info": {"features": {"prompt": {"_type": "Value", "dtype": "os.x"}}}}'
    },
}


@pytest.mark.heavy
@pytest.mark.parametrize("metadata", STRANGE.values(), ids=STRANGE)
def test_what_other_libraries_are_told_of_the_columns_is_left_out_where_it_is_strange(
    good: pa.Table, tmp_path: Path, metadata: dict[str, bytes]
) -> None:
    table = PersonaTable.load(changed(good, tmp_path / "t.parquet", metadata))
    for shown in (str, PersonaTable._repr_html_, PersonaTable.to_pandas, PersonaTable.to_polars):
        shown(table)
    table.to_hf()
    str(table.head(1))
    table[1:].save(tmp_path / "part.parquet")
    assert [row.chosen for row in table] == [PERSONA] * 2


@pytest.mark.parametrize("told", [{"metadata": "x"}, {"metadata": {"timezone": 5}}], ids=str)
def test_what_pandas_cannot_make_of_the_index_is_an_error_of_the_library(
    tmp_path: Path, told: dict[str, Any]
) -> None:
    """Wherever pandas reads what the file says of it."""
    times = pd.date_range("2020", periods=2, tz="Europe/Berlin", name="when")
    pairs = {"prompt": ["p"] * 2, "chosen": ["a"] * 2, "rejected": ["b"] * 2}
    people = {"chosen_persona": ["The user is calm."] * 2, "rejected_persona": [None] * 2}
    path = tmp_path / "t.parquet"
    PersonaTable.from_data(pd.DataFrame(pairs | people, index=times)).save(path)
    kept = pq.ParquetFile(path).metadata.metadata or {}
    about = json.loads(pq.read_schema(path).metadata[b"pandas"])
    about["columns"][-1] |= told
    kept = {KEY: kept[KEY], b"pandas": json.dumps(about).encode()}
    pq.write_table(pq.read_table(path).replace_schema_metadata(kept), path)
    table = PersonaTable.load(path)
    flags = pd.Series([True, False], index=times)
    for use in (
        table.to_pandas,
        lambda: table.filter(flags),
        lambda: table.with_columns({"n": flags}),
    ):
        with pytest.raises(DataError, match="pandas cannot hold the data's own columns"):
            use()
    for shown in (str, PersonaTable._repr_html_):
        shown(table)


@pytest.mark.parametrize(
    "fault",
    [
        {"error": ["x"]},
        {"error": {}},
        {"preference": 0},
        {"preference": ""},
        {"preference": {}},
        {"preference": {"prompt": [], "chosen": "a", "rejected": "b"}},
        {"chosen": {"trait": ["\ud83d"], "preference": "x"}},
        {"chosen": {"trait": "t", "preference": "p", "flags": "abc"}},
        {"chosen": {"trait": "t", "preference": "p", "flags": {"a": 1}}},
        {"candidates": {"chosen": [[{"trait": "t", "preference": "p"}, "x"]], "rejected": []}},
        {"candidates": {"chosen": [[{"trait": "t", "preference": "p"}, [1]]], "rejected": []}},
        {"candidates": {"chosen": [[{"trait": "t", "preference": "p"}, True]], "rejected": []}},
    ],
    ids=str,
)  # fmt: skip
def test_records_of_another_form_cost_an_error_of_the_library(
    good: pa.Table, tmp_path: Path, fault: dict[str, Any]
) -> None:
    records = [json.loads(str(text)) | fault for text in good.column("personainfer").to_pylist()]
    place = good.column_names.index("personainfer")
    texts = pa.array([json.dumps(record) for record in records])
    path = tmp_path / "t.parquet"
    pq.write_table(good.set_column(place, "personainfer", texts), path)
    table = PersonaTable.load(path)
    for shown in (PersonaTable.format, PersonaTable._repr_html_, list):
        with pytest.raises(DataError, match="record in the table cannot be read"):
            shown(table)


@pytest.mark.parametrize(
    "kind",
    [pa.int32(), pa.float32(), pa.uint64(), pa.date32(), pa.binary(), pa.list_(pa.int64())],
    ids=str,
)
def test_an_added_column_of_a_type_that_none_has_is_refused(
    good: pa.Table, tmp_path: Path, kind: Any
) -> None:
    table = good.append_column("z", pa.nulls(2, kind))
    path = changed(table, tmp_path / "t.parquet", about=lambda said: said.update(added=["z"]))
    with pytest.raises(DataError, match="not a table of personas that this version knows"):
        PersonaTable.load(path)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.null()],
    ids=str,
)
def test_an_added_column_of_texts_may_be_written_in_other_ways(
    good: pa.Table, tmp_path: Path, kind: Any
) -> None:
    texts = [None, None] if kind == pa.null() else ["a", None]
    column: Any = pa.nulls(2) if kind == pa.null() else pa.array(texts, pa.string()).cast(kind)
    table = good.append_column("z", column)
    path = changed(table, tmp_path / "t.parquet", about=lambda said: said.update(added=["z"]))
    assert PersonaTable.load(path).added == {"z": texts}
    show(PersonaTable.load(path), tmp_path)


@pytest.mark.parametrize(
    ("twin", "added"),
    [
        ("chosen", []),
        ("z", ["z"]),
        ("y", ["z", "z"]),
        ("y", ["chosen_persona"]),
        ("y", "yz"),
        ("y", [5]),
        ("y", None),
    ],
)
def test_a_column_that_is_there_twice_or_is_none_of_a_table_is_refused(
    good: pa.Table, tmp_path: Path, twin: str, added: object
) -> None:
    table = good.append_column("z", pa.array(["a", "b"])).append_column(twin, pa.array(["a", "b"]))
    path = changed(table, tmp_path / "t.parquet", about=lambda said: said.update(added=added))
    with pytest.raises(DataError, match="not a table of personas that this version knows"):
        PersonaTable.load(path)


def test_a_group_of_very_many_rows_without_records_is_refused(
    good: pa.Table, tmp_path: Path
) -> None:
    """Nulls take no room in the file."""
    nulls = pa.table(
        [pa.nulls(20_000, field.type) for field in good.schema], schema=good.schema
    )  # fmt: skip
    pq.write_table(nulls, tmp_path / "t.parquet", row_group_size=20_000)
    with pytest.raises(DataError, match="not a table of personas that this version knows"):
        PersonaTable.load(tmp_path / "t.parquet")


def test_values_that_python_lacks_cost_no_other_row(tmp_path: Path) -> None:
    """Years after 9999, for one, which are often a mark for "never"."""
    pair = {"prompt": ["p"] * 2, "chosen": ["a"] * 2, "rejected": ["b"] * 2}
    far = 2**62
    columns: dict[str, Any] = {
        "when": pa.array([far // 2**10, 1], pa.timestamp("us")),
        "day": pa.array([2**31 - 1, 1], pa.int32()).cast(pa.date32()),
        "time": pa.array([far, 1]).cast(pa.duration("s")),
        "zone": pa.array([1, 2], pa.timestamp("us", tz="No/Where")),
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({**pair, **columns}), path)
    rows = pi.data.read_preferences(path)
    assert [row.error for row in rows] == [None, None]


@pytest.mark.parametrize("depth", [49, 60])
def test_a_table_whose_columns_are_nested_deep_can_be_read(tmp_path: Path, depth: int) -> None:
    """Arrow writes them, and reads no more than a hundred levels of its own."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    pair = {"prompt": ["p"], "chosen": ["a"], "rejected": ["b"]}
    frame = pa.table({**pair, "deep": [value]})
    row = PersonaRow(0, Preference(prompt="p", chosen="a", rejected="b"), chosen=PERSONA)
    path = PersonaTable([row], original=frame).save(tmp_path / "t.parquet")
    kept = PersonaTable.load(path).to_arrow().column("deep").to_pylist()[0]
    assert (json.loads(kept) if isinstance(kept, str) else kept) == value


def test_an_own_column_with_the_name_of_a_verdict_may_hold_texts(
    good: pa.Table, tmp_path: Path
) -> None:
    table = PersonaTable.load(changed(good, tmp_path / "t.parquet"))
    show(table.with_columns({"chosen_verified_score": ["x", None]}), tmp_path)


def test_a_number_that_json_lacks_is_none_on_a_page(good: pa.Table, tmp_path: Path) -> None:
    table = PersonaTable.load(changed(good, tmp_path / "t.parquet"))
    table = table.with_columns({"chosen_verified_score": [float("nan"), 1.0]})
    pi.write_report(table, tmp_path / "report.html")
    assert "NaN" not in (tmp_path / "report.html").read_text("utf-8").split("<script")[1]


@pytest.mark.parametrize("other", [float("inf"), float("-inf"), 1e308, 7.0, -0.5], ids=str)
def test_a_number_that_is_no_share_is_no_verdict(
    good: pa.Table, tmp_path: Path, other: float
) -> None:
    table = PersonaTable.load(changed(good, tmp_path / "t.parquet"))
    table = table.with_columns({"chosen_verified_score": [other, 1.0]})
    assert summarise(table).accuracy["chosen"].n == 1
    pi.write_report(table, tmp_path / "report.html")
    pi.export_personas(table, tmp_path / "out")


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "half \ud800", "bytes \udcff"], ids=ascii)
def test_names_that_no_file_can_have_are_errors_of_the_library(
    good: pa.Table, tmp_path: Path, name: str
) -> None:
    table = PersonaTable.load(changed(good, tmp_path / "t.parquet"))
    path = f"{tmp_path}/{name}"
    for use in (
        lambda: PersonaTable.load(f"{path}.parquet"),
        lambda: table.save(f"{path}.parquet"),
        lambda: pi.write_report(table, f"{path}.html"),
        lambda: pi.export_personas(table, path),
        lambda: pi.retry_errors(f"{path}.parquet"),
        lambda: pi.infer_personas(
            [], "m", api_base="http://127.0.0.1:9/v1", output=f"{path}.parquet"
        ),
        lambda: pi.submit_batch([("p", "a", "b")], "m", path, api_base="http://127.0.0.1:9/v1"),
        lambda: pi.users.UserPersonas.load(path),  # type: ignore[attr-defined]
    ):
        with pytest.raises(PersonaInferError):
            use()


def shared(text: str, rows: int) -> pa.Array[Any]:
    """A column in which all rows have this text, and which holds it once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))


def packed(good: pa.Table, table: pa.Table, path: Path, group: int | None = None) -> Path:
    """A table in a file that holds its texts as they are, but for Arrow's types of them."""
    with pq.ParquetWriter(path, table.schema, store_schema=False) as file:
        file.write_table(table, row_group_size=group)
        file.add_key_value_metadata({KEY.decode(): good.schema.metadata[KEY].decode()})
    return path


@pytest.mark.parametrize("name", ["personainfer", "chosen_persona", "notes", "turns"])
def test_a_text_that_all_rows_of_a_table_share_does_not_fill_the_memory(
    good: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert parquet._WRITTEN_BYTES == 256 * 2**20  # as is promised
    monkeypatch.setattr("personainfer.local.parquet._WRITTEN_BYTES", 2**20)
    rows, long = 128, "a" * 2**17
    table = pa.concat_tables([good] * (rows // 2))
    if name == "personainfer":
        record = json.loads(good.column(name)[0].as_py())
        record["preference"]["prompt"] = long
        column: pa.Array[Any] = shared(json.dumps(record), rows)
    else:
        column = shared(long, rows)
    if name == "turns":
        column = pa.StructArray.from_arrays([column], ["content"])
    if name in table.column_names:
        table = table.drop_columns([name])
    path = packed(good, table.append_column(name, column), tmp_path / "t.parquet")
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"a group of rows unpacks to 16,[\d,]+ bytes\. "):
        list(PersonaTable.load(path)) if name == "personainfer" else PersonaTable.load(
            path
        ).to_pandas()
    assert pa.total_allocated_bytes() - before < 2**20


def test_a_table_that_is_saved_again_has_groups_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file does not tell how long its texts are that come again."""
    monkeypatch.setattr("personainfer.data.table_writer.GROUP_BYTES", 2**16)
    pair = Preference(prompt="p", chosen="a", rejected="b")
    frame = pd.DataFrame({"notes": ["n" * 2**12] * 200})
    rows = [PersonaRow(place, pair, chosen=PERSONA, rejected=PERSONA) for place in range(200)]
    PersonaTable(rows, original=frame).save(tmp_path / "first.parquet")
    PersonaTable.load(tmp_path / "first.parquet")[:].save(tmp_path / "again.parquet")
    with pq.ParquetFile(tmp_path / "again.parquet") as file:
        sizes = [file.read_row_group(n).nbytes for n in range(file.num_row_groups)]
    assert max(sizes) < 3 * 2**16
    assert PersonaTable.load(tmp_path / "again.parquet").to_pandas()["notes"].eq("n" * 2**12).all()


def test_categories_of_long_texts_are_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows share a text, in memory as in the file."""
    monkeypatch.setattr("personainfer.local.parquet._WRITTEN_BYTES", 2**18)
    monkeypatch.setattr("personainfer.data.table_writer.GROUP_BYTES", 2**18)
    pair = Preference(prompt="p", chosen="a", rejected="b")
    long = "n" * 2**12
    notes = pd.Categorical([long] * 199 + ["short"])
    rows = [PersonaRow(place, pair, chosen=PERSONA, rejected=PERSONA) for place in range(200)]
    table = PersonaTable(rows, original=pd.DataFrame({"notes": notes}))
    path = table.save(tmp_path / "t.parquet")
    loaded = PersonaTable.load(path).to_pandas()["notes"]
    assert loaded.tolist() == notes.tolist()
    assert loaded.dtype == "category"
    with pq.ParquetFile(path) as file:  # other readers write the texts out
        rows_at_once = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert max(rows_at_once) * len(long) < 3 * 2**18


def test_a_table_whose_groups_unpack_to_much_more_than_the_file_is_refused(
    good: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personainfer.local.parquet._LARGE_GROUP", 2**20)
    monkeypatch.setattr("personainfer.local.parquet._MOST_PACKED", 2)
    table = pa.concat_tables([good] * 64).append_column("notes", shared("a" * 2**14, 128))
    path = packed(good, table, tmp_path / "t.parquet", 16)
    PersonaTable.load(path).head(8).to_pandas()
    with pytest.raises(DataError, match="unpacks to more than 1,048,576 bytes"):
        PersonaTable.load(path).to_pandas()


@pytest.mark.parametrize("nested", [False, True])
def test_numbers_that_all_rows_of_a_table_share_are_refused_before_they_are_read(
    good: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.setattr("personainfer.local.parquet._LARGE_GROUP", 2**20)
    monkeypatch.setattr("personainfer.local.parquet._MOST_PACKED", 2)
    table, columns = pa.concat_tables([good] * 2_000), 40
    zeros: pa.Array[Any] = pa.array([0] * len(table), pa.int64())
    if nested:
        zeros, columns = pa.StructArray.from_arrays([zeros] * columns, list(map(str, range(40)))), 1
    for number in range(columns):
        table = table.append_column(f"n{number}", zeros)
    path = packed(good, table, tmp_path / "t.parquet")
    assert path.stat().st_size < 2**18
    loaded = PersonaTable.load(path)
    monkeypatch.setattr("personainfer.data.table_reader.whole_group", None)
    with pytest.raises(DataError, match="unpacks to more than 1,048,576 bytes"):
        loaded.to_arrow()


@pytest.mark.parametrize("nested", [False, True])
def test_values_in_lists_of_a_table_are_counted_before_they_are_read(
    good: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.setattr("personainfer.local.parquet._LARGE_GROUP", 2**20)
    monkeypatch.setattr("personainfer.local.parquet._MOST_PACKED", 2)
    ends: Any = pa.array([0, *[100_000] * len(good)], pa.int32())
    lists: pa.Array[Any] = pa.ListArray.from_arrays(ends, pa.nulls(100_000, pa.int64()))
    if nested:
        lists = pa.StructArray.from_arrays([lists], ["within"])
    path = packed(good, good.append_column("n", lists), tmp_path / "t.parquet")
    assert path.stat().st_size < 2**18
    loaded = PersonaTable.load(path)
    assert loaded[0].error is None
    monkeypatch.setattr("personainfer.data.table_reader.whole_group", None)
    with pytest.raises(DataError, match="unpacks to more than 1,048,576 bytes"):
        loaded.to_arrow()


def test_half_of_a_surrogate_pair_that_an_older_version_wrote_is_read_as_an_escape(
    good: pa.Table, tmp_path: Path
) -> None:
    told = {
        "trait": "a\ud83d",
        "preference": "b\ud83d",
        "evidence": "c\ud83d",
        "flags": ["d\ud83d"],
    }
    turn = {"role": "user", "content": "e\ud83d", "extra": {"tool_calls": [{"f\ud83d": "g\ud83d"}]}}
    pair = {"prompt": [turn], "chosen": "h\ud83d", "rejected": "i", "id": "j\ud83d"}
    fault = {
        "error": "k\ud83d",
        "preference": pair,
        "chosen": told,
        "candidates": {"chosen": [[told, 0.5]], "rejected": []},
    }
    records = [json.loads(str(text)) | fault for text in good.column("personainfer").to_pylist()]
    place = good.column_names.index("personainfer")
    texts = pa.array([json.dumps(record) for record in records])
    pq.write_table(good.set_column(place, "personainfer", texts), tmp_path / "t.parquet")
    table = PersonaTable.load(tmp_path / "t.parquet")
    show(table, tmp_path)
    escaped = Persona(
        trait="a\\ud83d", preference="b\\ud83d", evidence="c\\ud83d", flags=("d\\ud83d",)
    )
    assert [row.chosen for row in table] == [escaped, escaped]
    assert table[0].chosen_candidates[0].persona == escaped
    read = table[0].preference
    assert read is not None
    assert table[0].error == "k\\ud83d"
    assert (read.chosen, read.id) == ("h\\ud83d", "j\\ud83d")
    assert read.prompt[0] == Message(
        role="user", content="e\\ud83d", extra={"tool_calls": [{"f\\ud83d": "g\\ud83d"}]}
    )


def test_half_of_a_surrogate_pair_in_a_row_is_written_as_an_escape(tmp_path: Path) -> None:
    persona = Persona.of_phrases("c\ud83d", "a\ud83d", "b\ud83d")
    row = PersonaRow(0, Preference(prompt="p\ud83d", chosen="a", rejected="b"), chosen=persona)
    path = PersonaTable([row]).save(tmp_path / "t.parquet")
    (text,) = pq.read_table(path).column("personainfer").to_pylist()
    assert json.loads(str(text))["preference"]["prompt"] == "p\\ud83d"
    written = json.loads(str(text))["chosen"]
    assert (written["trait"], written["evidence"]) == ("a\\ud83d", "c\\ud83d")


def test_a_row_with_an_error_may_have_a_conversation_without_a_turn(tmp_path: Path) -> None:
    row = PersonaRow(0, Preference(prompt=(), chosen="a", rejected="b"), error="no turn")
    table = PersonaTable.load(PersonaTable([row]).save(tmp_path / "t.parquet"))
    assert list(table) == [row]
    assert str(table).startswith("0\n  ! no turn")
    assert "turn]" not in table._repr_html_()
    assert table.to_pandas()["persona_error"].tolist() == ["no turn"]
