"""Bayes over candidate personas: what it must satisfy, and that it finds who made simulated choices."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError

Rows = list[list[float]]

scores = st.floats(-1e6, 1e6)


@st.composite
def choices(draw: st.DrawFn) -> Rows:
    """How well each of K candidates explains each of N choices."""
    candidates = draw(st.integers(1, 5))
    row = st.lists(scores, min_size=candidates, max_size=candidates)
    return draw(st.lists(row, min_size=1, max_size=8))


def names(count: int) -> list[str]:
    return [f"The user is number {n} and prefers {n}." for n in range(count)]


def posterior(rows: Rows, temperature: float = 1.0) -> pi.PersonaPosterior:
    return pi.PersonaPosterior(names(len(rows[0])), temperature=temperature).update(rows)


def simulated(
    pairs: int, *, truth: int, candidates: int, temperature: float, seed: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Choices of a user who has one of the candidates: `explains` is signed by what was chosen."""
    draw = np.random.default_rng(seed)
    first_over_second = draw.normal(size=(pairs, candidates))
    takes_first = draw.random(pairs) < 1 / (1 + np.exp(-first_over_second[:, truth] / temperature))
    return np.where(takes_first[:, None], first_over_second, -first_over_second)


def test_it_is_the_formula() -> None:
    found = pi.PersonaPosterior(names(2), prior=[3, 1], temperature=0.5).update([[0.2, -0.1]])
    first = 0.75 / (1 + math.exp(-0.2 / 0.5))
    second = 0.25 / (1 + math.exp(0.1 / 0.5))
    expected = [first / (first + second), second / (first + second)]
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-12)
    np.testing.assert_allclose(found.log_probabilities, np.log(expected), rtol=1e-12)
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in expected))
    assert found.top == names(2)[0]
    assert repr(found) == f"PersonaPosterior(2 personas, 1 pairs, entropy {found.entropy:.3f})"


@given(choices(), st.floats(1e-3, 1e3))
def test_probabilities_sum_to_one_at_every_step(rows: Rows, temperature: float) -> None:
    found = posterior(rows, temperature)
    assert found.trajectory.shape == (len(rows) + 1, len(rows[0]))
    np.testing.assert_allclose(found.trajectory.sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(found.trajectory[-1], found.probabilities)
    assert (found.entropy_trajectory >= 0).all()
    assert (found.entropy_trajectory <= math.log(len(rows[0])) + 1e-9).all()


@pytest.mark.heavy
@given(choices(), st.randoms())
def test_the_order_of_the_choices_does_not_matter(rows: Rows, random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    one, other = posterior(rows), posterior(shuffled)
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-6, atol=1e-9)


@given(choices(), st.integers(0, 8))
def test_choices_may_come_in_parts(rows: Rows, cut: int) -> None:
    parts = pi.PersonaPosterior(names(len(rows[0]))).update(rows[:cut]).update(rows[cut:])
    np.testing.assert_array_equal(parts.probabilities, posterior(rows).probabilities)
    np.testing.assert_array_equal(parts.explains, np.array(rows))


@given(choices(), st.lists(st.floats(0.01, 10), min_size=5, max_size=5))
def test_an_infinite_temperature_leaves_the_prior(rows: Rows, weights: list[float]) -> None:
    prior = np.array(weights[: len(rows[0])])
    found = pi.PersonaPosterior(names(len(prior)), prior, temperature=1e15).update(rows)
    np.testing.assert_allclose(found.probabilities, prior / prior.sum(), rtol=1e-6)


@given(st.lists(st.floats(-1.7e308, 1.7e308), min_size=3, max_size=3))
def test_nothing_overflows(row: list[float]) -> None:
    found = pi.PersonaPosterior(names(3), temperature=1e-300).update([row] * 3)
    assert np.isfinite(found.probabilities).all()
    assert found.probabilities.sum() == pytest.approx(1)
    assert np.isfinite(found.predict(row)).all()


def test_the_true_persona_is_found_and_the_posterior_sharpens() -> None:
    rows = simulated(200, truth=2, candidates=5, temperature=0.5, seed=1)
    found = pi.PersonaPosterior(names(5), temperature=0.5).update(rows)
    assert found.top == names(5)[2]
    assert found.probabilities[2] > 0.99
    entropies = found.entropy_trajectory
    assert entropies[0] == pytest.approx(math.log(5))
    assert entropies[10] < entropies[0]
    assert entropies[200] < 0.05


def test_probabilities_are_calibrated_over_users() -> None:
    """Of candidates that get p, the share p is the true one: what a posterior means."""
    mass, hits = [], []
    draw = np.random.default_rng(0)
    for user in range(400):
        truth = int(draw.integers(4))
        rows = simulated(5, truth=truth, candidates=4, temperature=1.0, seed=user)
        p = pi.PersonaPosterior(names(4)).update(rows).probabilities
        mass.append(p.max())
        hits.append(p.argmax() == truth)
    assert np.mean(mass) == pytest.approx(np.mean(hits), abs=0.06)


@pytest.mark.heavy
@pytest.mark.parametrize("truth", [0.2, 1.0, 3.0])
def test_the_temperature_is_found_on_held_out_choices(truth: float) -> None:
    posteriors, held_out = [], []
    for user in range(60):
        rows = simulated(60, truth=user % 4, candidates=4, temperature=truth, seed=user)
        posteriors.append(pi.PersonaPosterior(names(4)).update(rows[:30]))
        held_out.append(rows[30:])
    found = pi.PersonaPosterior.fit_common_temperature(posteriors, held_out)
    assert found == pytest.approx(truth, rel=0.25)
    assert {one.temperature for one in posteriors} == {found}


def test_one_users_temperature_makes_held_out_choices_likelier() -> None:
    rows = simulated(400, truth=0, candidates=3, temperature=0.3, seed=5)
    found = pi.PersonaPosterior(names(3), temperature=5.0).update(rows[:200])
    before = np.log(found.predict(rows[200:])).sum()
    assert found.fit_temperature(rows[200:]) == found.temperature == pytest.approx(0.3, rel=0.4)
    assert np.log(found.predict(rows[200:])).sum() > before


def test_choices_that_say_nothing_get_the_highest_temperature() -> None:
    found = pi.PersonaPosterior(names(2)).update([[1.0, -1.0], [-1.0, 1.0]])
    opposed = [[1.0, 1.0], [-1.0, -1.0]]
    assert found.fit_temperature(opposed, bounds=(0.01, 50.0)) == pytest.approx(50.0)


def test_of_temperatures_that_predict_alike_it_is_the_highest() -> None:
    """Held-out choices on which no candidate says anything were once taken for certainty."""
    found = pi.PersonaPosterior(names(2)).update([[0.0, 0.0]])
    assert found.fit_temperature([[0.0, 0.0]]) == pytest.approx(1e3)
    sure = pi.PersonaPosterior(names(1)).update([[5.0]])
    assert sure.fit_temperature([[5.0]]) > 5e-3  # below it log p is 0 too, in floats
    assert sure.predict([[5.0]]) == pytest.approx(1.0)


def test_bounds_are_in_order() -> None:
    with pytest.raises(InvalidArgumentError, match="bounds="):
        pi.PersonaPosterior(names(2)).fit_temperature([[1.0, 0.0]], bounds=(2.0, 1.0))


def test_a_candidate_of_prior_zero_stays_out() -> None:
    found = pi.PersonaPosterior(names(2), prior=[0, 1]).update([[50.0, -50.0]])
    assert found.probabilities.tolist() == [0.0, 1.0]
    assert found.entropy == 0.0


@pytest.mark.parametrize("tau", [2, np.float32(2.0), np.int64(2)])
def test_numbers_of_numpy_are_numbers(tau: Any) -> None:
    assert pi.PersonaPosterior(["a"], temperature=tau).temperature == 2.0


def test_weights_of_any_size_are_a_prior() -> None:
    assert pi.PersonaPosterior(["a", "b"], [1e308, 1e308]).probabilities.tolist() == [0.5, 0.5]


def test_before_any_choice_it_is_the_prior() -> None:
    found = pi.PersonaPosterior(names(4))
    np.testing.assert_allclose(found.probabilities, 0.25)
    assert found.update([]).trajectory.shape == (1, 4)


class Words:
    """Explains a choice by the words that persona and response share."""

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> list[float]:
        return [
            float(sum(word in pair.chosen for word in persona.preference.split()))
            for pair, persona in zip(preferences, personas, strict=True)
        ]


def test_from_one_users_preferences() -> None:
    personas = [
        pi.Persona(evidence="", trait="busy", preference="short words"),
        pi.Persona(evidence="", trait="keen", preference="long tales"),
    ]
    asked = (pi.Message(role="user", content="?"),)
    pairs = [
        pi.Preference(prompt=asked, chosen=text, rejected="no") for text in ("tales", "long tales")
    ]
    found = pi.PersonaPosterior.from_preferences(personas, pairs, Words(), temperature=0.5)
    assert found.explains.tolist() == [[0.0, 1.0], [0.0, 2.0]]
    assert found.top is personas[1]
    none_yet = pi.PersonaPosterior.from_preferences(personas, [], Words())
    assert none_yet.probabilities.tolist() == [0.5, 0.5]


class Deaf(Words):
    """Gives too few scores."""

    def explains(self, preferences: object, personas: object) -> list[float]:
        return [1.0]


def test_a_selector_that_gives_too_few_scores_is_named() -> None:
    personas = [pi.Persona(evidence="", trait=t, preference="x") for t in "ab"]
    pair = pi.Preference(prompt=(pi.Message(role="user", content="?"),), chosen="a", rejected="b")
    with pytest.raises(InvalidArgumentError, match="1 numbers where 2"):
        pi.PersonaPosterior.from_preferences(personas, [pair], Deaf())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"personas": []}, "at least one"),
        ({"personas": "The user"}, "personas= is a single str"),
        ({"prior": [1.0]}, "2 weights"),
        ({"prior": [0.0, 0.0]}, "not all 0"),
        ({"prior": [1.0, -1.0]}, "not negative"),
        ({"prior": [1.0, math.nan]}, "weights"),
        ({"temperature": 0.0}, "positive"),
        ({"temperature": math.inf}, "positive"),
        ({"temperature": "warm"}, "positive"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        pi.PersonaPosterior(**({"personas": names(2)} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [[[1.0, 2.0, 3.0]], [1.0], [[math.nan, 0.0]], [[math.inf, 0.0]]])
def test_scores_of_another_shape_or_not_finite_are_refused(rows: object) -> None:
    found = pi.PersonaPosterior(names(2))
    with pytest.raises(InvalidArgumentError, match="explains="):
        found.update(rows)  # type: ignore[arg-type]
    assert found.explains.shape == (0, 2)


def test_a_temperature_needs_choices_to_be_fitted_on() -> None:
    found = pi.PersonaPosterior(names(2))
    with pytest.raises(InvalidArgumentError, match="no choice"):
        found.fit_temperature([])
    with pytest.raises(InvalidArgumentError, match="one each"):
        pi.PersonaPosterior.fit_common_temperature([found], [])


def test_it_arrives_in_another_process_as_it_was() -> None:
    found = posterior([[0.5, -0.5]], 0.7)
    arrived = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(arrived.trajectory, found.trajectory)
    assert (arrived.temperature, arrived.personas) == (0.7, found.personas)


def test_personas_and_choices_may_come_from_generators() -> None:
    pairs = [pi.Preference(prompt="q", chosen=text, rejected="b") for text in ("a", "aa")]
    people = [pi.Persona.parse(name) for name in names(3)]
    scorer: Any = _Lengths()
    expected = pi.PersonaPosterior.from_preferences(people, pairs, scorer)
    found = pi.PersonaPosterior.from_preferences(iter(people), iter(pairs), scorer)  # type: ignore[arg-type]
    assert found.explains.tolist() == expected.explains.tolist()
    assert len(found.explains) == 2


class _Lengths:
    def explains(self, preferences: Any, personas: Any) -> list[float]:
        pairs = zip(preferences, personas, strict=True)
        return [float(len(pair.chosen) + len(str(one))) for pair, one in pairs]
