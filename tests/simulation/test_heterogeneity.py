"""How much users differ: by hand, by known answers, and drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.simulation.heterogeneity import (
    FeatureRegression,
    entropy_by_word,
    feature_regression,
    votes,
)
from personainfer.simulation.plots import (
    plot_entropy_by_word,
    plot_feature_regression,
    plot_top_share,
    plot_vote_entropy,
    plot_winners,
)
from personainfer.simulation.reward_matrix import RewardMatrix
from personainfer.simulation.simulated_users import SimulatedUsers

CHOICES = np.array([[0, 1, 2], [0, 1, 0], [0, 2, 1], [0, 2, 2]])  # four users, three prompts


def test_votes_by_hand() -> None:
    found = votes(CHOICES, 3)
    assert_allclose(found.shares, [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.25, 0.25, 0.5]])
    assert_allclose(found.top_share, [1.0, 0.5, 0.5])
    assert_array_equal(found.winners, [1, 2, 3])
    assert_allclose(found.entropy, [0.0, math.log(2), 1.5 * math.log(2)])
    summary = found.summary()
    assert summary["prompts where it has a majority"].value == pytest.approx(1 / 3)
    assert summary["distinct winners a prompt"].value == 2.0
    assert "Votes of 4 users on 3 prompts" in str(found)


@pytest.mark.parametrize("winners", [2, 5, 12])
def test_rounding_puts_no_vote_beyond_the_highest_entropy(winners: int) -> None:
    """`plot_vote_entropy` ends there: it left out the prompts on which users agree least."""
    one_each = np.arange(winners)[:, None]
    assert votes(one_each, winners).entropy.max() <= math.log(winners)
    assert votes(one_each, 20).summary()["entropy of the vote, nats"].value <= math.log(winners)


def test_one_mind_and_many() -> None:
    """With a large alpha all users agree; with a tiny one each follows one of the models."""
    random = np.random.default_rng(0)
    names = [f"model {n}" for n in range(5)]
    rewards = RewardMatrix(random.normal(size=(50, 6, 5)), models=names)
    agreeing = SimulatedUsers.sample(40, models=names, alpha=1e7, seed=1).choose(rewards)
    assert votes(agreeing, 6).entropy.max() < 0.5
    assert votes(agreeing, 6).top_share.mean() > 0.99
    divided = SimulatedUsers.sample(400, models=names, alpha=0.05, seed=1).choose(rewards)
    assert votes(divided, 6).winners.mean() > 2.5
    assert votes(divided, 6).top_share.mean() < 0.7


@pytest.mark.parametrize("choices", [[0, 1], [[0.0, 1.0]], [[0, 3]], [[-1, 0]], [[]]], ids=str)
def test_what_is_no_vote(choices: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="choices"):
        votes(choices, 3)


def test_words_on_which_users_differ_come_first() -> None:
    found = votes(np.array([[0, 0, 0, 0], [0, 0, 1, 1]]), 2)
    prompts = ["What is tea?", "What is milk?", "What is love?", "Whom to love?"]
    by_word = entropy_by_word(found, prompts, floor=2)
    assert [(one.word, one.prompts) for one in by_word] == [("love", 2), ("is", 3), ("what", 3)]
    assert by_word[0].entropy.value == pytest.approx(math.log(2))
    with pytest.raises(InvalidArgumentError, match="1 prompts="):
        entropy_by_word(found, prompts[:1])


def long_and_short(prompts: int = 40) -> RewardMatrix:
    """Two models: one rewards length, the other the opposite; responses differ in length alone."""
    random = np.random.default_rng(3)
    lengths = random.integers(1, 30, size=(prompts, 4))
    lengths[:, 1] += 30
    texts = [[" ".join(["word"] * n) for n in row] for row in lengths]
    rewards = np.stack([lengths, -lengths], axis=-1).astype(float)
    asked = [f"Question {n}?" for n in range(prompts)]
    return RewardMatrix(rewards, models=["long", "short"], prompts=asked, responses=texts)


def test_the_regression_finds_what_moves_each_user() -> None:
    users = SimulatedUsers([[1.0, 0.0], [0.0, 1.0]], models=["long", "short"])
    found = feature_regression(users, long_and_short())
    assert found.features == ("words", "words a sentence")
    assert {"question marks", "digits"} <= set(found.constant)
    assert found.coefficients[0].sum() > 0.2
    assert_allclose(found.coefficients[1], -found.coefficients[0])
    assert (found.r_squared > 0.5).all()
    assert "FeatureRegression of 2 users" in str(found)


def test_features_are_named_by_the_user() -> None:
    users = SimulatedUsers([[1.0, 0.0]], models=["long", "short"])
    found = feature_regression(users, long_and_short(), {"letters": len})
    assert found.features == ("letters",)
    matrix = long_and_short()
    assert matrix.responses is not None
    utilities = users.utilities(matrix)[0]
    prompts = range(len(matrix))
    letters = [len(matrix.responses[p][utilities[p].argmax()]) for p in prompts]
    letters += [len(matrix.responses[p][utilities[p].argmin()]) for p in prompts]
    slope = np.polyfit(letters, [1.0] * len(matrix) + [0.0] * len(matrix), 1)[0]
    spread = np.std([len(text) for row in matrix.responses for text in row])
    assert found.coefficients[0, 0] == pytest.approx(slope * spread)
    with pytest.raises(DataError, match="no feature varies"):
        feature_regression(users, matrix, {"one": lambda text: 1.0})


def test_a_feature_varies_or_not_whatever_its_unit() -> None:
    users = SimulatedUsers([[1.0, 0.0]], models=["long", "short"])
    units = {
        "third": lambda text: 1e6 / 3,  # whose mean over the responses is rounded
        "letters": lambda text: 1e-14 * len(text),
    }
    found = feature_regression(users, long_and_short(), units)
    assert (found.features, found.constant) == (("letters",), ("third",))
    same = feature_regression(users, long_and_short(), {"letters": len})
    assert_allclose(found.coefficients, same.coefficients)


def heights(axes: Any) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


@pytest.mark.heavy
def test_each_measure_has_its_plot() -> None:
    found = votes(CHOICES, 3)
    assert sum(heights(plot_top_share(found))) == 3
    assert heights(plot_winners(found)) == [1, 1, 1]
    assert sum(heights(plot_vote_entropy(found))) == 3
    words = entropy_by_word(found, ["tea now", "tea then", "tea or so"], floor=1)
    shown = [label.get_text() for label in plot_entropy_by_word(words).get_yticklabels()]
    assert shown == [one.word for one in words]
    users = SimulatedUsers.sample(5, models=["long", "short"], alpha=1.0)
    axes = plot_feature_regression(feature_regression(users, long_and_short()))
    assert {label.get_text() for label in axes.get_yticklabels()} == {"words", "words a sentence"}
    with pytest.raises(DataError, match="floor="):
        plot_entropy_by_word([])


@pytest.mark.heavy  # matplotlib
def test_a_name_with_dollars_is_no_formula() -> None:
    name = "cost $\\frac{$"
    axes = plot_feature_regression(FeatureRegression((name,), np.ones((3, 1)), np.ones(3)))
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert [label.get_text() for label in axes.get_yticklabels()] == [name]


def test_a_feature_that_is_no_number_is_named() -> None:
    data = RewardMatrix(
        np.random.default_rng(0).normal(size=(3, 2, 2)),
        models=["a", "b"],
        prompts=["p", "q", "r"],
        responses=[["x", "yy"]] * 3,
    )
    users = SimulatedUsers([[1.0, 0.0]], models=["a", "b"])
    features: dict[str, Any] = {"length": len, "odd": lambda t: math.nan if t == "yy" else 1.0}
    with pytest.raises(DataError, match="'odd' of response 1 to prompt 0"):
        feature_regression(users, data, features)
    with pytest.raises(InvalidArgumentError, match=r"it holds .'x'"):
        feature_regression(users, data, {"itself": lambda t: t})  # type: ignore[dict-item, return-value]
