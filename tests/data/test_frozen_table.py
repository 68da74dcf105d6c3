"""A table in a file that version 0.1.0 wrote is a table still, with all that it held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import personainfer as pi

FROZEN = Path(__file__).with_name("table_0_1_0.parquet")


@pytest.fixture
def table() -> pi.PersonaTable:
    return pi.PersonaTable.load(FROZEN)


def test_rows_and_pairs(table: pi.PersonaTable) -> None:
    assert [row.index for row in table] == [0, 1, 2]
    first, second, third = (row.preference for row in table)
    assert first == pi.Preference(
        prompt="Tea or coffee?",
        chosen="Tea, for calm.",
        rejected="Coffee, for speed.",
        id="a",
        user="u1",
    )
    assert second is not None
    assert second.prompt == (
        pi.Message(role="system", content="Be kind."),
        pi.Message(role="user", content="Sea or hills?"),
    )
    assert third is None
    assert [row.index for row in table.errors] == [2]
    assert "same text" in str(table[2].error)


def test_personas_flags_and_candidates(table: pi.PersonaTable) -> None:
    chosen, rejected = table[0].chosen, table[1].rejected
    assert chosen is not None
    assert rejected is not None
    assert chosen.trait == "logical friendly calm broad gentle"
    assert str(chosen) == (
        "The user is logical friendly calm broad gentle "
        "and prefers exact direct patient precise sincere."
    )
    assert chosen.evidence == "quiet friendly detailed reflective brief"
    assert rejected.flags == ("copied", "protected_attribute")
    assert [candidate.score for candidate in table[0].chosen_candidates] == [96.0, 96.0]
    assert table[0].chosen_candidates[0].persona == chosen


def test_settings_usage_and_columns(table: pi.PersonaTable) -> None:
    kept: dict[str, Any] = {"model": "fake", "temperature": 0.7, "seed": 1, "candidates": 2}
    kept |= {"protocol": "joint", "sides": ["chosen", "rejected"], "judge": "nobody"}
    kept |= {"selected_by": {"kind": "Sel", "model": "longest"}}
    assert {name: table.settings[name] for name in kept} == kept
    assert (table.usage.calls, table.usage.prompt_tokens, table.usage.cost) == (4, 3508, None)
    assert table.added == {
        "chosen_verified": [True, False, None],
        "score": [0.5, 0.25, None],
        "note": ["é", "x", None],
        "n": [1, 2, 3],
    }
    frame = table.to_arrow().to_pydict()
    assert frame["stars"] == [5, None, 1]
    assert frame["tags"] == [["hot", "calm"], [], ["x"]]
    assert frame["chosen_persona"][2] is None
    assert frame["n"] == [1, 2, 3]


def test_it_can_be_saved_again(table: pi.PersonaTable, tmp_path: Path) -> None:
    again = pi.PersonaTable.load(table.save(tmp_path / "again.parquet"))
    assert list(again) == list(table)
    assert again.settings == table.settings
    assert again.added == table.added
