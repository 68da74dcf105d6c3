"""The best of several candidates by few scored tokens: how many tokens, and whether it is the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personainfer.records import FloatArray
from personainfer.scoring.halving import BothTexts, gaps_by_halving
from personainfer.scoring.interfaces import TokenText

CHOSEN, REJECTED = 1, 2  # the tokens of the two responses


class Counting:
    """Scores every token of the chosen response after persona k by `gaps[k]`, every other token by 0.

    `noise` is added to the tokens by their place, so that the first tokens mislead a little.
    """

    def __init__(self, gaps: Sequence[float], noise: Sequence[float] = (0.0,)) -> None:
        self.gaps, self.noise = gaps, noise
        self.tokens = self.calls = 0

    def __call__(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        self.calls += 1
        self.tokens += sum(len(text.response) for text in texts)
        return [self._score(text) for text in texts]

    def _score(self, text: TokenText) -> FloatArray:
        persona, start = text.prefix[0], len(text.prefix) - 1
        level = self.gaps[persona] if text.response[0] == CHOSEN else 0.0
        places = [(start + n + 3 * persona) % len(self.noise) for n in range(len(text.response))]
        return np.array([level + self.noise[place] for place in places])


def texts(personas: int, chosen: int, rejected: int) -> list[BothTexts | None]:
    """The prefix of each persona is its number; responses have so many tokens."""
    return [
        (TokenText((k,), (CHOSEN,) * chosen), TokenText((k,), (REJECTED,) * rejected))
        for k in range(personas)
    ]


@pytest.mark.parametrize(
    ("personas", "length", "share"), [(4, 200, 0.34), (4, 50, 0.50), (8, 200, 0.27), (2, 200, 0.53)]
)
def test_so_many_fewer_tokens_are_scored(personas: int, length: int, share: float) -> None:
    score = Counting([0.1 * k for k in range(personas)])
    [gaps] = gaps_by_halving(score, [texts(personas, length, length)])
    assert int(gaps.argmax()) == personas - 1
    assert score.tokens <= share * personas * 2 * length


@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=9, unique=True),
    st.lists(st.floats(-0.24, 0.24), min_size=1, max_size=7),
    st.integers(1, 90),
    st.integers(1, 90),
)
def test_the_best_is_that_of_full_scoring_where_the_margin_is_clear(
    gaps: list[int], noise: list[float], chosen: int, rejected: int
) -> None:
    score = Counting(
        gaps, noise
    )  # margins of 1 or more, and means that are wrong by less than 0.48
    [found] = gaps_by_halving(score, [texts(len(gaps), chosen, rejected)])
    whole = [
        score([one])[0].mean() - score([other])[0].mean()
        for one, other in _all(found, chosen, rejected)
    ]
    best = int(np.argmax(gaps))
    assert int(found.argmax()) == best
    assert found[best] == pytest.approx(whole[best])
    assert (found <= found[best]).all()


def _all(found: FloatArray, chosen: int, rejected: int) -> list[BothTexts]:
    return [both for both in texts(len(found), chosen, rejected) if both is not None]


def test_a_dropped_candidate_is_as_far_behind_as_it_was_when_it_was_dropped() -> None:
    [found] = gaps_by_halving(Counting([3.0, 1.0, 0.0, 2.0]), [texts(4, 60, 60)])
    assert found == pytest.approx([3.0, 1.0, 0.0, 2.0])


def test_where_it_is_close_more_tokens_decide() -> None:
    level = (0.02, 0.01, 0.0, -0.01)

    def token(persona: int, place: int) -> float:
        """Persona 3 is the last after 8 tokens, by less than its tokens vary, and the best in the end."""
        swing = 0.3 if (place + persona) % 2 else -0.3
        return level[persona] + swing + (0.5 if persona == 3 and place >= 8 else 0.0)

    def score(parts: Sequence[TokenText]) -> list[FloatArray]:
        asked.extend(text.prefix[0] for text in parts if len(text.prefix) > 8)
        return [
            np.array(
                [
                    token(text.prefix[0], place) if text.response[0] == CHOSEN else 0.0
                    for place in range(
                        len(text.prefix) - 1, len(text.prefix) - 1 + len(text.response)
                    )
                ]
            )
            for text in parts
        ]

    asked: list[int] = []
    [found] = gaps_by_halving(score, [texts(4, 48, 48)])
    assert int(found.argmax()) == 3
    assert set(asked) == {0, 1, 3}  # persona 2 varies as the leading one does: it is clearly behind
    assert (np.delete(found, 3) < found[3]).all()


def test_pairs_are_scored_together_and_each_has_a_best_of_its_own() -> None:
    score = Counting([2.0, 1.0, 0.0, -1.0])
    found = gaps_by_halving(score, [texts(4, 40, 30), texts(2, 5, 5), [], texts(3, 40, 40)[1:]])
    assert [int(one.argmax()) for one in found if len(one)] == [0, 0, 0]
    assert score.calls == 3


def test_one_candidate_is_scored_whole_at_once() -> None:
    score = Counting([1.0])
    [found] = gaps_by_halving(score, [texts(1, 100, 100)])
    assert (score.calls, score.tokens, found[0]) == (1, 200, 1.0)


def test_what_does_not_fit_has_no_score_and_costs_no_other() -> None:
    candidates = texts(3, 10, 10)
    candidates[0] = None
    [found, none] = gaps_by_halving(Counting([5.0, 1.0, 2.0]), [candidates, [None, None]])
    assert np.isnan(found[0])
    assert int(np.nanargmax(found)) == 2
    assert np.isnan(none).all()


def test_empty_responses_differ_in_nothing() -> None:
    [found] = gaps_by_halving(Counting([1.0, 2.0]), [texts(2, 0, 0)])
    assert found == pytest.approx([0.0, 0.0])
