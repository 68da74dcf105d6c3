"""The studies of inferred personas, on small invented files."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personainfer.testing import FakeLLM
from personainfer.users import UserPersonas

pytest.importorskip("scipy")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("people_personas", "people_study", "stored_scores", "reasons", "audit_calls")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def embed(texts: list[str]) -> Any:
    """One dimension a camp, and one that all texts share."""
    return np.array([[1.0, "camp 0" in text, "camp 1" in text] for text in texts], dtype=float)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two camps, each of which says yes to its own statements."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(24):
        camp = user % 2
        for pair in random.permutation(144)[:14].tolist():
            one, other = divmod(pair, 12)
            rows.append(
                {
                    "user": f"u{user}",
                    "prompt": "What should change?",
                    "chosen": f"{one} of camp {camp}.",
                    "rejected": f"{other} of camp {1 - camp}.",
                    "topic": "town",
                    "opinion_cluster": str(camp),
                }
            )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "polis_opinions.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def run(study: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["people_personas.py", *arguments])
    study.main()


@pytest.mark.heavy
def test_personas_are_written_in_pieces_and_audited(
    benchmarks: Any,
    data: Path,
    tmp_path: Path,
    llm: FakeLLM,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = benchmarks("people_personas")
    monkeypatch.setattr(study, "embedder", lambda: embed)
    llm.reply = {"likes": ["things of camp 0"], "dislikes": ["things of camp 1"]}
    common: tuple[str, ...] = (
        str(data),
        "--set",
        "polis",
        "--folder",
        str(tmp_path / "out"),
        "--k",
        "2",
        "4",
    )
    common = (*common, "--persona-model", "fake", "--api-base", llm.api_base)
    run(study, monkeypatch, *common, "--write", "--minutes", "0")
    assert not llm.requests  # the time was up
    run(study, monkeypatch, *common, "--write", "--users", "5")
    asked = len(llm.requests)
    run(study, monkeypatch, *common, "--write", "--users", "8")
    assert len(llm.requests) - asked == 2 * 3  # three users more, for each k
    [file] = (tmp_path / "out").glob("personas-*-4-*.jsonl")
    sides = {str(row.persona).split(".")[0] for row in UserPersonas.load(file)}
    # The model says the same of everybody; the choices say on which side it is.
    assert sides == {"The user likes: things of camp 0", "The user likes: things of camp 1"}

    capsys.readouterr()
    run(study, monkeypatch, *common)
    lines = capsys.readouterr().out.splitlines()
    cells = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if "|" in line
    }
    assert cells["own persona, k = 4"][0].startswith("1.000")
    assert cells["no persona"][0].startswith("0.500")
    assert cells["majority of the own cluster"][0].startswith("1.000")


def test_nothing_that_a_persona_was_made_from_is_held_out(benchmarks: Any, data: Path) -> None:
    study, people = benchmarks("people_personas"), benchmarks("people_study")
    choices = people.read(data, "polis", "dev", 0)
    user = choices.users[0]
    mine = [choice for choice in choices.history if choice.user == user]
    made = UserPersonas((row_of(user, mine[:4]),))
    found = study.split(argparse.Namespace(data=data), "polis", choices, made)
    assert [choice.id for choice in found.history if choice.user == user] == [
        choice.id for choice in mine[:4]
    ]
    assert {choice.user for choice in found.held_out} == {user}
    assert len(found.held_out) == 14 - 4
    others = [choice for choice in choices.history if choice.user != user]
    assert [choice for choice in found.history if choice.user != user] == others


def row_of(user: str, choices: list[Any]) -> Any:
    from personainfer.users.records import UserPersona, UserRow

    persona = UserPersona(user=user, background="The user is here.", preferences="", pairs=4)
    return UserRow(user=user, persona=persona, choices=tuple(choices))


def test_reasons_say_which_argument_they_mean(benchmarks: Any) -> None:
    reasons = benchmarks("reasons")
    row = {"reason": "A1 is vague, and argument two gives numbers.", "a1_is": "rejected"}
    assert reasons.plain(row) == "the other argument is vague, and this argument gives numbers."
    assert reasons.overlap("The user prefers numbers.", "it gives numbers") == 0.5
    assert reasons.overlap("", "it was the argument") == 0.5  # no words that say anything


def test_what_an_audit_asks_is_counted(
    benchmarks: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, people = benchmarks("audit_calls"), benchmarks("people_study")
    choices = people.read(data, "polis", "test", 0)
    conditions = calls.Conditions.of(choices, (2, 4))
    alone = conditions.by_themselves(ks=2, lift=False)
    assert len(alone) == 8  # own, another user's, none and few-shot, for each k
    assert {len(rows) for rows in alone} == {2 * len(choices.held_out)}
    none = conditions.none
    once = calls.tokens(none, once=True)
    assert once < calls.tokens(none)
