"""Sentences that are left out: where they are, and how right and wrong answers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import personainfer as pi
from personainfer.exceptions import DataError
from personainfer.users.attribution import attribute_prefix, sentences
from personainfer.users.predictors import Case, Predictions

USERS = [f"u{n}" for n in range(10)]
CHOICES = [
    pi.Preference(prompt=f"Q{n}?", chosen="a", rejected="b", user=user, id=f"{user}-{n}")
    for user in USERS
    for n in range(4)
]


def test_a_sentence_ends_with_its_mark_or_its_line_and_the_instruction_is_none() -> None:
    text = "Do this.\n<persona>\nThe user is 3.5 m tall. Is that so?\n\nNo\n</persona>"
    assert [text[a:b] for a, b in sentences(text)] == [
        "The user is 3.5 m tall.",
        "Is that so?",
        "No",
    ]


def test_a_full_width_mark_needs_no_space_after_it() -> None:
    text = "\u4f60\u597d\u3002\u6211\u559c\u6b22\u8336\uff01 No.\u5bf9"
    assert [text[a:b] for a, b in sentences(text)] == [
        "\u4f60\u597d\u3002",
        "\u6211\u559c\u6b22\u8336\uff01",
        "No.\u5bf9",
    ]


def predict(cases: Sequence[Case]) -> Predictions:
    """GOOD adds 2 to every margin, BAD takes 3 from those of odd users."""
    margins = []
    for case in cases:
        odd = int(str(case.choice.user)[1:]) % 2
        margins.append(2.0 * ("GOOD" in case.prefix) - 3.0 * ("BAD" in case.prefix and odd))
    return Predictions.of(np.array(margins))


PREFIX = pi.persona_prefix("persona", personas=dict.fromkeys(USERS, "GOOD one. BAD one. Idle one."))


def test_effects_are_found_among_all_subsets_of_the_sentences() -> None:
    found = attribute_prefix("p", PREFIX, CHOICES, predict, limit=None)
    by_place = {
        place: {round(one.effect, 9) for one in found.effects if one.place == place}
        for place in (1, 2, 3)
    }
    assert by_place == {1: {2.0}, 2: {0.0, -3.0}, 3: {0.0}}
    assert "<persona>" not in {one.sentence for one in found.effects}
    good, bad, idle = found.places
    assert good.difference.value == pytest.approx(0.0, abs=1e-9)
    assert bad.right.value == 0.0
    assert bad.wrong.value == pytest.approx(-3.0)
    assert bad.difference.value == pytest.approx(3.0)
    assert bad.p < 0.02  # 5 of 10 users: of 252 dealings, 2 are as far out
    assert bad.adjusted_p == pytest.approx(3 * bad.p)
    assert idle.p == 1.0
    assert {(one.user, one.right) for one in found.effects} == {
        (user, int(user[1:]) % 2 == 0) for user in USERS
    }


def test_many_sentences_are_left_out_at_random_and_their_effects_fitted() -> None:
    said = " ".join(f"Idle {n}." for n in range(8)) + " GOOD one."
    prefix = pi.persona_prefix("persona", personas=dict.fromkeys(USERS, said))
    asked: list[str] = []

    def counted(cases: Sequence[Case]) -> Predictions:
        asked.extend(case.prefix for case in cases)
        return predict(cases)

    found = attribute_prefix("p", prefix, CHOICES[:4], counted, limit=1)
    assert len(asked) == 2 + 64  # two choices decide what is right, one is measured
    assert [round(one.effect, 9) for one in found.effects] == [0.0] * 8 + [2.0]


def test_the_choices_that_say_what_is_right_are_not_those_that_are_measured() -> None:
    judged: set[str] = set()

    def counted(cases: Sequence[Case]) -> Predictions:
        for case in cases:
            same = [one for one in cases if one.choice.id == case.choice.id]
            if len(same) == 1:
                judged.add(str(case.choice.id))
        return predict(cases)

    found = attribute_prefix("p", PREFIX, CHOICES, counted, limit=None)
    measured = {one.choice for one in found.effects}
    assert len(judged) == len(measured) == 20
    assert not judged & measured


@pytest.mark.heavy
def test_sentences_that_do_nothing_are_no_finding() -> None:
    """The margin is the noise of its sentences: each adds a number drawn anew for each choice."""

    @cache
    def drawn(choice: str | None, sentence: int, seed: int) -> float:
        return float(np.random.default_rng([*f"{choice}{sentence}".encode(), seed]).normal())

    def noise(cases: Sequence[Case]) -> Predictions:
        return Predictions.of(
            np.array(
                [
                    sum(
                        drawn(case.choice.id, n, seed)
                        for n in range(3)
                        if f"Idle {n}." in case.prefix
                    )
                    for case in cases
                ]
            )
        )

    users = [f"u{n}" for n in range(30)]
    choices = [
        pi.Preference(prompt=f"Q{n}?", chosen="a", rejected="b", user=user, id=f"{user}-{n}")
        for user in users
        for n in range(2)
    ]
    said = dict.fromkeys(users, "Idle 0. Idle 1. Idle 2.")
    prefix = pi.persona_prefix("persona", personas=said)
    found = []
    for seed in range(10):
        places = attribute_prefix("p", prefix, choices, noise, limit=None, seed=seed).places
        found += [place.adjusted_p < 0.05 for place in places]
    assert sum(found) <= 3  # of 30


def test_as_many_choices_as_asked_for_are_measured() -> None:
    found = attribute_prefix("p", PREFIX, CHOICES, predict, limit=7)
    assert len({one.choice for one in found.effects}) == 7
    again = attribute_prefix("p", PREFIX, CHOICES, predict, limit=7)
    assert again.effects == found.effects


def test_right_users_alone_leave_nothing_to_compare() -> None:
    even = [choice for choice in CHOICES if int(str(choice.user)[1:]) % 2 == 0]
    found = attribute_prefix("p", PREFIX, even, predict)
    assert all(np.isnan(place.p) and np.isnan(place.adjusted_p) for place in found.places)


@pytest.mark.parametrize("margin", [np.nan, np.inf])
def test_choices_that_cannot_be_compared_are_counted(margin: float) -> None:
    """A sentence whose margin is infinite decides the choice: its effect is not 0."""

    def some(cases: Sequence[Case]) -> Predictions:
        margins = predict(cases).margins
        broken = np.array([case.choice.user == "u1" for case in cases])
        return Predictions.of(np.where(broken, margin, margins))

    found = attribute_prefix("p", PREFIX, CHOICES[:9], some, limit=None)
    assert (found.left_out, found.failed) == (1, 2)
    with pytest.raises(DataError, match="no user has two choices"):
        attribute_prefix("p", PREFIX, CHOICES[::4], predict)


@pytest.mark.parametrize("kind", ["none", "tag", "name"])
def test_words_of_the_library_are_no_sentences(kind: Any) -> None:
    with pytest.raises(DataError, match="no sentence"):
        attribute_prefix(kind, pi.persona_prefix(kind), CHOICES, predict)
