"""Each data set and format in the documentation's table is read as the table says.

The columns are those of the data sets' own cards; the example rows are our own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from personainfer.data import read_preferences
from personainfer.exceptions import DataError
from personainfer.preferences import example_rows
from personainfer.records import Preference

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"
_SCORED_LISTS = (
    "UltraFeedback",
    "Nectar",
    "Stack Exchange preferences",
    "Gemini preference file",
    "NeMo RL",
    "list of responses",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "RM-Bench": {"pairs": "adjacent"},
    **{name: {"pairs": "all"} for name in _SCORED_LISTS},
    **{name: {"pairs": "best-worst"} for name in ("HelpSteer2", "PRISM")},
    "SHP": {"min_votes": 10},
    "PKU-SafeRLHF": {"safe_rejected": True},
}
WORSE: dict[str, dict[str, Any]] = {  # the second row of data with one response a row
    "HelpSteer2": {"response": "Coffee, for speed.", "helpfulness": 1},
    "PRISM": {"model_response": "Coffee, for speed.", "score": 3},
}


def documented() -> dict[str, str]:
    """Each line of the table: name -> what is asked of the user."""
    lines = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", DOCS.read_text("utf-8"), re.M)
    return {name: asked for name, asked in lines if name not in ("data set or format", "---")}


def test_the_table_and_the_example_rows_are_of_the_same_kinds() -> None:
    assert list(documented()) == list(example_rows())


@pytest.mark.parametrize("name", example_rows())
def test_a_row_is_read(name: str) -> None:
    row = example_rows()[name]
    rows = [row, {**row, **WORSE[name]}] if name in WORSE else [row]
    asks_for_pairs = "pairs=" in documented()[name]
    if asks_for_pairs:
        with pytest.raises(DataError, match="pairs="):
            read_preferences(rows)
    found = [each.preference for each in read_preferences(rows, **OPTIONS.get(name, {}))]
    wanted = [p for p in found if p is not None and p.chosen == "Tea, for calm."]
    assert wanted, found
    assert all(p.chosen.startswith("Tea") or p.rejected.startswith("Coffee") for p in found if p)
    assert any(p.rejected == "Coffee, for speed." for p in wanted)
    prompt = wanted[0].prompt
    asked = prompt if isinstance(prompt, str) else prompt[-1].content
    assert asked.endswith("Tea or coffee?")
    assert "pairs" not in OPTIONS.get(name, {}) or asks_for_pairs


def test_the_system_message_and_the_user_come_along() -> None:
    (orca,) = read_preferences([example_rows()["orca_dpo_pairs"]])
    assert orca.preference is not None
    assert isinstance(orca.preference.prompt, tuple)
    assert [turn.role for turn in orca.preference.prompt] == ["system", "user"]
    prism = example_rows()["PRISM"]
    (pair,) = read_preferences([prism, {**prism, **WORSE["PRISM"]}], pairs="best-worst")
    assert isinstance(pair.preference, Preference)
    assert pair.preference.user == "user1"
