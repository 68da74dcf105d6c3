"""`personainfer audit`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from typer.testing import CliRunner, Result

from personainfer.cli.audit import read_personas
from personainfer.cli.commands import app
from personainfer.exceptions import DataError
from personainfer.testing import FakeLLM, Fault
from personainfer.users import UserPersona, UserPersonas
from personainfer.users.records import UserRow

from ..audit_world import World


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments], prog_name="personainfer")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Held-out choices in choices.jsonl, and personas as texts in personas.jsonl."""
    monkeypatch.chdir(tmp_path)
    made = World(0, users=6, choices=6)
    write("choices.jsonl", [choice.model_dump() for choice in made.choices])
    said = made.personas("knows")
    write("personas.jsonl", [{"user": user, "persona": text} for user, text in said.items()])
    return made


def write(name: str, rows: Sequence[object]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_it_prints_the_verdict_and_the_numbers(world: World, llm: FakeLLM) -> None:
    asked = ("personas.jsonl", "choices.jsonl", "--judge", "fake", "--api-base", llm.api_base)
    told = run(*asked, "--baseline", "longer")
    assert told.exit_code == 0, told.output
    assert "PersonaAudit: 36 choices of 6 users:" in told.stdout
    assert "another user's" in told.stdout
    found = json.loads(run(*asked, "--baseline", "longer", "--json").stdout)
    assert found["verdict"] in told.stdout
    assert set(found["baselines"]) == {"longer"}


def test_personas_of_the_held_out_choices_are_refused(world: World, llm: FakeLLM) -> None:
    rows = [
        UserRow(
            user=user,
            persona=UserPersona(user=user, background=text, preferences=text, pairs=1),
            choices=tuple(c for c in world.choices if c.user == user),
        )
        for user, text in world.personas("knows").items()
    ]
    UserPersonas(tuple(rows)).save("users.jsonl")
    told = run("users.jsonl", "choices.jsonl", "--judge", "fake", "--api-base", llm.api_base)
    assert told.exit_code == 2
    assert "36 of 36 held-out choices" in told.stderr
    assert not llm.requests


def test_a_file_that_holds_no_personas(world: World) -> None:
    Path("broken.jsonl").write_text("{", encoding="utf-8")
    told = run("broken.jsonl", "choices.jsonl", "--judge", "fake")
    assert told.exit_code == 2
    assert "broken.jsonl is not JSON lines" in told.stderr


@pytest.mark.heavy
def test_a_user_with_two_personas_is_named(world: World, llm: FakeLLM) -> None:
    texts = world.personas("knows")
    rows = [{"user_id": user, "persona": text} for user, text in texts.items()]
    write("texts.jsonl", rows)
    asked = ("choices.jsonl", "--judge", "fake", "--api-base", llm.api_base)
    assert run("texts.jsonl", *asked).exit_code == 0
    sent = len(llm.requests)
    write("texts.jsonl", [*rows, {**rows[1], "persona": "x"}])
    told = run("texts.jsonl", *asked)
    assert told.exit_code == 2
    assert f"the user {rows[1]['user_id']!r} has two personas, the second in row 7" in told.stderr
    assert len(llm.requests) == sent


def test_a_line_with_two_personas_is_none_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('\ufeff{"user": "u", "persona": "calm"}\n', encoding="utf-8")
    assert read_personas(path) == {"u": "calm"}
    path.write_text('{"user": 7.0, "persona": "calm"}')  # as pandas writes a column with a gap
    assert read_personas(path) == {"7": "calm"}
    path.write_text('{"user": "u", "persona": "calm", "persona": "loud"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="'persona' is there twice"):
        read_personas(path)


@pytest.mark.parametrize("broken", [Fault.status(400), "no answer"])
def test_choices_that_failed_are_exit_code_3(world: World, broken: Fault | str) -> None:
    write("choices.jsonl", [choice.model_dump() for choice in world.choices[:9]])

    def sometimes(body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        return {"answer": "1"} if crc32(text.encode()) % 4 else broken

    asked = ("personas.jsonl", "choices.jsonl", "--judge", "fake", "--baseline", "longer")
    with FakeLLM(sometimes) as server:
        told = run(*asked, "--api-base", server.api_base, "--max-attempts", "1")
    assert told.exit_code == 3, told.output
    assert "PersonaAudit: 9 choices" in told.stdout


def test_a_served_likelihood_takes_a_timeout(world: World) -> None:
    asked = ("personas.jsonl", "choices.jsonl", "--judge", "likelihood:m", "--baseline", "longer")
    told = run(*asked, "--api-base", "http://127.0.0.1:9/v1", "--timeout", "5")
    assert (told.exit_code, "127.0.0.1:9" in told.stderr) == (4, True), told.output
