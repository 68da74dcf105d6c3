"""Tests of the mark in JSON lines that this library wrote."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow.json
import pytest
from typer.testing import CliRunner

import personainfer as pi
from personainfer.cli.commands import app
from personainfer.exceptions import InvalidArgumentError
from personainfer.local.line_marks import marked_lines
from personainfer.testing import FakeLLM
from personainfer.users.records import UserPersonas, UserRow

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
PERSONA = pi.Persona(trait="is busy", preference="short answers")


def table() -> pi.PersonaTable:
    return pi.PersonaTable([pi.PersonaRow(0, pi.Preference(**PAIR), chosen=PERSONA)] * 2)


def export(path: Path, **options: Any) -> None:
    pi.export_personas(table(), path, **options)


def export_messages(path: Path, **options: Any) -> None:
    pi.export_personas(table(), path, format="few-shot", **options)


def save_users(path: Path, **options: Any) -> None:
    UserPersonas((UserRow(user="u", error="none"),), settings={}).save(path, **options)


WRITERS = pytest.mark.parametrize("write", [export, export_messages, save_users])


@WRITERS
def test_a_file_of_ones_own_in_the_same_form_is_not_replaced(
    write: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    write(path)
    write(path)  # what it wrote, it replaces
    mine = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in mine))
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match="overwrite=True"):
        write(path)
    assert path.read_bytes() == before
    write(path, overwrite=True)
    write(path)


def test_the_mark_tells_how_a_file_began_and_not_that_no_rows_were_added(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    export(path)
    written = path.read_text()
    path.write_text(written + json.dumps({"mine": 1}) + "\n")
    export(path)
    assert path.read_text() == written


def test_nor_are_lines_in_the_form_of_infer(tmp_path: Path, llm: FakeLLM) -> None:
    data, path = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text(json.dumps(PAIR) + "\n")

    def infer() -> int:
        asked = ["infer", str(data), "-o", str(path), "--model", "fake", "--api-base", llm.api_base]
        return CliRunner().invoke(app, asked).exit_code

    assert (infer(), infer()) == (0, 0)
    path.write_text(json.dumps(json.loads(path.read_text())) + "\n")
    before = path.read_bytes()
    assert infer() == 2
    assert path.read_bytes() == before


def test_no_kind_is_taken_for_another(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    save_users(path)
    with pytest.raises(InvalidArgumentError, match="is not an export"):
        export(path)


def test_no_reader_sees_the_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    export(path)
    rows = pi.tailoring_rows(table())
    assert [json.loads(line) for line in path.read_text().splitlines()] == list(rows)
    assert pyarrow.json.read_json(path).to_pylist() == list(rows)
    assert pl.read_ndjson(path).to_dicts() == list(rows)
    assert pd.read_json(path, lines=True).to_dict("records") == list(rows)


def test_a_mark_does_not_copy_a_file_once_more() -> None:
    lines = ['{"a": "' + "b" * 1_000 + '"}\n'] * 10_000
    tracemalloc.start()
    try:
        text = marked_lines(lines, "export")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert json.loads(text.splitlines()[0]) == json.loads(lines[0])
    assert most < 1.5 * len(text)
    assert marked_lines([], "export") == ""
