"""Control characters in what an endpoint or the data says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import personainfer as pi
from personainfer.cli.commands import app
from personainfer.data.containers import read_preferences
from personainfer.evaluation.human import write_rating_sheet
from personainfer.exceptions import InvalidArgumentError
from personainfer.local.cache import ReplyCache
from personainfer.testing import FakeLLM, Fault

BAD = ["\x1b[2J", "\x1b]0;title\x07", "\u202e", "\u2066", "\x9b", "\x08", "\u200b"]


@pytest.mark.parametrize("bad", BAD)
def test_control_characters_are_escaped_where_rows_are_shown(bad: str) -> None:
    rows = [{"prompt": f"a{bad}b", "chosen": "c", "rejected": "d", "id": f"x{bad}"}]
    with FakeLLM(faults=[Fault.status(400, message=f"no{bad}no")]) as server:
        table = pi.infer_personas(rows, "fake", api_base=server.api_base, max_attempts=1)
    persona = pi.Persona(trait=f"t{bad}t", preference=f"p{bad}p")
    given = pi.PersonaTable.from_data(
        [{**rows[0], "chosen_persona": str(persona), "rejected_persona": f"r{bad}r"}]
    )
    assert bad not in str(table[0].error)
    assert "no" in str(table[0].error)
    for shown in (table, given):
        for text in (str(shown), repr(shown), shown._repr_html_()):
            assert bad[0] not in text


def test_text_of_any_script_is_shown_as_it_is(llm: FakeLLM) -> None:
    prompt = "naïve 你好 مرحبا \U0001f469\u200d\U0001f4bb"
    table = pi.infer_personas(
        [{"prompt": prompt, "chosen": "c", "rejected": "d"}], "fake", api_base=llm.api_base
    )
    assert prompt in str(table)
    assert prompt in table._repr_html_()


@pytest.mark.parametrize("bad", BAD)
def test_control_characters_are_escaped_on_pages_and_in_hints(bad: str, tmp_path: Path) -> None:
    row = {"prompt": f"a{bad}b", "chosen": f"c{bad}", "rejected": "d", "id": f"x{bad}"}
    people = {
        "chosen_persona": f"The user is t{bad}t and prefers p.",
        "rejected_persona": f"r{bad}",
    }
    table = pi.PersonaTable.from_data([{**row, **people}])
    page = pi.write_report(table, tmp_path / "page.html", title=f"title{bad}").read_text()
    sheet = write_rating_sheet(table, tmp_path / "sheet")
    for text in (page, sheet.html.read_text(), sheet.csv.read_text(encoding="utf-8-sig")):
        assert bad not in text
        shown = ascii(bad)[1:-1]
        forms = (shown, shown.replace("\\", "\\\\"), f"\\u{ord(bad[0]):04x}")
        assert any(form in text for form in forms)
    error = InvalidArgumentError("m", hint=f"h{bad}")
    assert bad not in str(error)
    assert bad not in error.hint


def test_control_characters_are_escaped_by_the_command(llm: FakeLLM, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    row = {"prompt": f"a{''.join(BAD)}b", "chosen": "c", "rejected": "d"}
    data.write_text(json.dumps(row | {f"own{bad}": f"v{bad}" for bad in BAD}))
    command = ["infer", str(data), "--model", "fake", "--api-base", llm.api_base]
    for more in ([], ["--dry-run"]):
        shown = CliRunner().invoke(app, [*command, *more])
        assert shown.exit_code == 0, shown.output
        assert not [bad for bad in BAD if bad in shown.output]
        if not more:
            found = json.loads(shown.stdout)
            assert [found[f"own{bad}"] for bad in BAD] == [f"v{bad}" for bad in BAD]


@pytest.mark.parametrize("bad", ["\x1b[2J", "\u202e"])
def test_control_characters_of_a_path_are_escaped_in_warnings(bad: str, tmp_path: Path) -> None:
    empty = tmp_path / f"a{bad}b.jsonl"
    empty.touch()
    with pytest.warns(UserWarning, match="no row came") as told:
        read_preferences(empty)
    folder = tmp_path / f"c{bad}d"
    ReplyCache(folder)
    (folder / "cache.db").chmod(0o666)
    with pytest.warns(UserWarning, match="others may write") as more:
        pi.cache_info(folder)
    assert not [one for one in (*told, *more) if bad in str(one.message)]


@pytest.mark.parametrize("mark", ["\u0301", "\u200d", "\U000e0101"])
def test_a_text_of_marks_without_width_is_cut(mark: str) -> None:
    table = pi.PersonaTable.from_data(
        [
            {
                "chosen": "c",
                "rejected": "d",
                "prompt": "How?" + mark * 10_000,
                "chosen_persona": "The user is calm.",
            }
        ],
        rejected_persona=None,
    )
    assert len(str(table)) < 3_000


def test_a_notebook_typesets_no_dollars() -> None:
    table = pi.PersonaTable.from_data(
        [{"chosen": "c", "rejected": "d", "prompt": "$5 or $10?", "chosen_persona": "x"}],
        rejected_persona=None,
    )
    assert table._repr_html_().startswith("<div class='tex2jax_ignore mathjax_ignore'>")
