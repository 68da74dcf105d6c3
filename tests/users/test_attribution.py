"""Sentences that are left out: where they are, and how right and wrong answers are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import personainfer as pi
from personainfer.exceptions import DataError
from personainfer.users.attribution import attribute_prefix, sentences
from personainfer.users.predictors import Case

USERS = [f"u{n}" for n in range(10)]
CHOICES = [
    pi.Preference(prompt=f"Q{n}?", chosen="a", rejected="b", user=user, id=f"{user}-{n}")
    for user in USERS
    for n in range(4)
]


def test_a_sentence_ends_with_its_mark_or_its_line() -> None:
    text = "Do this.\n<persona>\nThe user is 3.5 m tall. Is that so?\n\nNo\n</persona>"
    assert [text[a:b] for a, b in sentences(text)] == [
        "Do this.",
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


def predict(cases: Sequence[Case]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """GOOD adds 2 to every margin, BAD takes 3 from that of odd prompts."""
    margins = []
    for case in cases:
        odd = str(case.choice.prompt) in ("Q1?", "Q3?")
        margins.append(2.0 * ("GOOD" in case.prefix) - 3.0 * ("BAD" in case.prefix and odd))
    return np.array(margins)


PREFIX = pi.persona_prefix("persona", personas=dict.fromkeys(USERS, "GOOD one. BAD one."))


def test_effects_are_margins_with_less_without() -> None:
    found = attribute_prefix("p", PREFIX, CHOICES, predict, limit=None)
    by_place = {
        place: {one.effect for one in found.effects if one.place == place} for place in (1, 2, 3)
    }
    assert by_place == {1: {0.0}, 2: {2.0}, 3: {0.0, -3.0}}
    instruction, good, bad = found.places
    assert good.difference.value == 0.0
    assert good.p == 1.0
    assert (bad.right.value, bad.wrong.value, bad.difference.value) == (0.0, -3.0, 3.0)
    assert bad.p < 0.001
    assert bad.adjusted_p == pytest.approx(3 * bad.p)
    assert instruction.adjusted_p == 1.0


def test_as_many_choices_as_asked_for_are_tried() -> None:
    found = attribute_prefix("p", PREFIX, CHOICES, predict, limit=7)
    assert len({one.choice for one in found.effects}) == 7
    again = attribute_prefix("p", PREFIX, CHOICES, predict, limit=7)
    assert again.effects == found.effects


def test_right_answers_alone_leave_nothing_to_compare() -> None:
    found = attribute_prefix("p", PREFIX, CHOICES[::2], predict)
    assert all(np.isnan(place.p) and np.isnan(place.adjusted_p) for place in found.places)


def test_a_prefix_without_words_has_no_sentences() -> None:
    with pytest.raises(DataError, match="no sentence"):
        attribute_prefix("none", pi.persona_prefix("none"), CHOICES, predict)


@pytest.mark.parametrize("better", ["a", "b"])
@pytest.mark.parametrize("seed", range(3))
def test_a_difference_that_every_dealing_has_is_no_finding(better: str, seed: int) -> None:
    """One right and one wrong choice a user: dealt anew, the difference is as large either way."""

    def predict(cases: Sequence[Case]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        base = {"a": 1.0, "b": -1.0}  # prompt a is predicted, prompt b is not
        moved = {"a": 0.25, "b": 0.125} if better == "a" else {"a": 0.125, "b": 0.25}
        said = [(str(case.choice.prompt), "GOOD" in case.prefix) for case in cases]
        return np.array([base[prompt] + moved[prompt] * good for prompt, good in said])

    choices = [
        pi.Preference(prompt=prompt, chosen="c", rejected="r", user="ann", id=prompt)
        for prompt in ("a", "b")
    ]
    prefix = pi.persona_prefix("persona", personas={"ann": "GOOD."})
    found = attribute_prefix("persona", prefix, choices, predict, seed=seed)
    assert [place.p for place in found.places] == [1.0] * len(found.places)
