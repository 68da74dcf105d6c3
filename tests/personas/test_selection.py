"""Scores of many pairs, of which some fail by themselves, or the scorer is away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.exceptions import (
    BudgetExceededError,
    InvalidArgumentError,
    RequestRejectedError,
    TransportError,
)
from personainfer.personas.selection import explains_each
from personainfer.testing import FakeLLM

NOT_SCORED = "ignore:.*could not be scored:UserWarning"


class Scorer:
    """Fails where a response says POISON."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.rows = 0

    def explains(self, preferences: Sequence[pi.Preference], personas: Sequence[Any]) -> Any:
        self.rows += len(preferences)
        if any("POISON" in pair.chosen for pair in preferences):
            raise self.error
        return [0.5] * len(preferences)


def choices(count: int, poison: Sequence[int]) -> list[pi.Preference]:
    return [
        pi.Preference(
            id=f"c{n}",
            user=f"u{n // 4}",
            prompt=f"Question {n}?",
            chosen=f"Short {n}.{' POISON' * (n in poison)}",
            rejected="Long, and longer.",
        )
        for n in range(count)
    ]


@pytest.mark.filterwarnings(NOT_SCORED)
@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=2))
def test_what_fails_has_no_score_and_all_else_has_one(count: int, poison: set[int]) -> None:
    poison = {place for place in poison if place < count}
    if len(poison) == count:
        return
    scorer = Scorer(TransportError("500 for one text"))
    found = explains_each(scorer, choices(count, sorted(poison)), ["x"] * count)
    assert [place for place, score in enumerate(found) if math.isnan(score)] == sorted(poison)
    assert scorer.rows <= count * (1 + 2 * len(poison)) + 2 * count


def test_it_is_said_what_was_left_out_and_why() -> None:
    with pytest.warns(UserWarning, match=r"1 of 8 could not be scored.*500 for one text"):
        explains_each(Scorer(TransportError("500 for one text")), choices(8, [3]), ["x"] * 8)


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (TransportError("no connection"), 20),  # away: three in a row are enough
        (RequestRejectedError("400"), 80),  # each may be at fault
        (InvalidArgumentError("no model"), 80),
        (BudgetExceededError("no money is left"), 1),
    ],
)
def test_a_scorer_that_scores_nothing_ends_the_run(error: Exception, most: int) -> None:
    class Failing:
        calls = 0

        def explains(self, preferences: Any, personas: Any) -> Any:
            Failing.calls += 1
            raise error

    with pytest.raises(type(error), match=str(error)):
        explains_each(Failing(), choices(1, []) * 1000, ["x"] * 1000)
    assert Failing.calls <= most


@pytest.mark.parametrize("found", [None, [0.5], ["a", "b", "c", "d"], "abcd"])
def test_what_is_no_list_of_numbers_is_asked_for_once(found: Any) -> None:
    class Odd:
        calls = 0

        def explains(self, preferences: Any, personas: Any) -> Any:
            Odd.calls += 1
            return found

    with pytest.raises(InvalidArgumentError, match=r"scorer\.explains"):
        explains_each(Odd(), choices(4, []), ["x"] * 4, "scorer")
    assert Odd.calls == 1


@pytest.mark.filterwarnings(NOT_SCORED, "ignore:.*left out:UserWarning")
@pytest.mark.parametrize("method", ["verified", "posterior", "tastes"])
def test_one_text_at_which_the_scorer_fails_costs_no_user(
    llm: FakeLLM, endpoint: dict[str, Any], method: Any
) -> None:
    scorer = Scorer(TransportError("500 for one text"))
    found = pi.infer_user_personas(
        choices(24, [9]), method=method, select=scorer, pairs_per_user=4, **endpoint
    )
    assert [row.user for row in found if row.persona is not None] == [f"u{n}" for n in range(6)]


@pytest.mark.filterwarnings(NOT_SCORED, "ignore:.*left out:UserWarning")
def test_one_text_at_which_the_scorer_fails_costs_no_audit() -> None:
    scorer = Scorer(TransportError("500 for one text"))
    said = {f"u{n}": "The user is calm." for n in range(6)}
    assert "u" in str(pi.audit_personas(said, choices(24, [9]), scorer))
    prefix = pi.persona_prefix("persona", personas=said)
    pi.evaluate_prefixes({"persona": prefix}, choices(24, [9]), scorer)
    posterior = pi.PersonaPosterior.from_preferences(
        [pi.Persona.parse("The user is calm."), pi.Persona.parse("The user is bold.")],
        choices(8, [3]),
        scorer,
    )
    assert len(posterior.entropy_trajectory) == 8
