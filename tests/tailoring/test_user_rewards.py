"""Models of choices that read no persona, against planted truths and plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

import personainfer as pi
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.records import FloatArray, Prompt
from personainfer.scoring.choice_models import (
    ChoiceModel,
    Features,
    LongerWins,
    MajorityVote,
    SimilarUsersVote,
    word_features,
)
from personainfer.tailoring import BradleyTerry, LowRankRewards, fit_user_weights

pytest.importorskip("scipy")


def choice(chosen: str, rejected: str, user: str, prompt: str = "p") -> pi.Preference:
    return pi.Preference(prompt=prompt, chosen=chosen, rejected=rejected, user=user)


class Planted:
    """Users whose rewards are weights on a basis, linear in features of responses."""

    def __init__(self, users: int = 60, each: int = 60, rank: int = 3, width: int = 8) -> None:
        self.random = np.random.default_rng(0)
        self.features = self.random.normal(size=(200, width))
        self.basis = 2.0 * self.random.normal(size=(width, rank))
        self.weights = self.random.dirichlet([0.4] * rank, size=users)
        self.rewards = self.features @ self.basis @ self.weights.T  # (responses, users)
        self.train = [self.choice(user) for user in range(users) for _ in range(each)]
        self.test = [self.choice(user) for user in range(users) for _ in range(20)]

    def choice(self, user: int) -> pi.Preference:
        one, other = self.random.choice(len(self.features), size=2, replace=False)
        margin = self.rewards[one, user] - self.rewards[other, user]
        if self.random.random() > 1 / (1 + np.exp(-margin)):
            one, other = other, one
        return choice(str(one), str(other), f"u{user}")

    def read(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        found: FloatArray = self.features[[int(text) for text in responses]]
        return found

    def basis_rewards(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        found: FloatArray = self.read(prompts, responses) @ self.basis
        return found

    def truth(self, choices: Sequence[pi.Preference]) -> FloatArray:
        return np.array(
            [
                self.rewards[int(c.chosen), int((c.user or "")[1:])]
                - self.rewards[int(c.rejected), int((c.user or "")[1:])]
                for c in choices
            ]
        )


def correlation(one: FloatArray, other: FloatArray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.heavy
def test_planted_low_rank_rewards_are_recovered() -> None:
    planted = Planted()
    model = LowRankRewards(3, features=planted.read, ridge=0.1).fit(planted.train)
    assert correlation(model.predict(planted.test), planted.truth(planted.test)) >= 0.95
    assert all(np.isclose(weights.sum(), 1.0) for weights in model.weights.values())
    assert model.rewards(["p"], ["7"]).shape == (1, 3)


@pytest.mark.heavy
def test_a_known_basis_gives_the_planted_weights() -> None:
    planted = Planted(each=300)
    model = LowRankRewards(features=planted.basis_rewards, fixed_basis=True).fit(planted.train)
    found = np.array([model.weights[f"u{n}"] for n in range(60)])
    assert correlation(found.ravel(), planted.weights.ravel()) >= 0.95


@pytest.mark.heavy
def test_new_users_take_a_few_choices() -> None:
    planted = Planted(each=80)
    old = [c for c in planted.train if int((c.user or "")[1:]) < 50]
    new = [c for c in planted.train if int((c.user or "")[1:]) >= 50]
    few = [c for n, c in enumerate(new) if n % 80 < 15]
    model = LowRankRewards(3, features=planted.read, ridge=0.1).fit(old)
    before = model.weights["u3"].copy()
    asked = [c for c in planted.test if int((c.user or "")[1:]) >= 50]
    stranger = correlation(model.predict(asked), planted.truth(asked))
    known = correlation(model.fit_users(few).predict(asked), planted.truth(asked))
    assert known > stranger
    assert known > 0.9
    assert np.array_equal(model.weights["u3"], before)


@pytest.mark.heavy
def test_the_fit_is_where_the_gradient_vanishes() -> None:
    """Against differences of the penalised likelihood, computed choice by choice."""
    random = np.random.default_rng(1)
    margins, users = random.normal(size=(30, 3)), np.repeat(np.arange(3), 10)

    def loss(logits: FloatArray) -> float:
        total = 0.5 * 0.1 * float((logits**2).sum())
        for row, user in zip(margins, users, strict=True):
            weights = np.exp(logits[user]) / np.exp(logits[user]).sum()
            total += math.log1p(math.exp(-float(row @ weights)))
        return total

    found = fit_user_weights(margins, users, shrink=0.1)
    logits = np.log(found)
    logits -= logits.mean(axis=1, keepdims=True)  # of equal weights the smallest logits
    for place in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-4
        assert abs(loss(logits + step) - loss(logits - step)) / 2e-4 < 1e-3


@pytest.mark.heavy
def test_responses_that_were_not_fitted_are_a_tie() -> None:
    data = [choice("a", "b", "ann"), choice("b", "a", "bob")] * 5
    model = LowRankRewards(2, ridge=0.1).fit(data)
    assert model.predict([choice("x", "y", "ann")]).tolist() == [0.0]
    assert model.predict([choice("a", "b", "ann")])[0] > 0
    assert model.predict([choice("a", "b", "bob")])[0] < 0
    assert BradleyTerry().fit([choice("a", "b", "ann")]).predict([choice("x", "y", "ann")]) == [0.0]


@pytest.mark.heavy
def test_strengths_are_those_of_bradley_and_terry() -> None:
    """With one free strength, 3 wins of 4 are log odds of log 3."""
    data = [choice("a", "b", f"u{n}") for n in range(3)] + [choice("b", "a", "u4")]
    model = BradleyTerry(ridge=1e-9).fit(data)
    assert model.predict([choice("a", "b", "new")])[0] == pytest.approx(math.log(3), abs=1e-3)


@pytest.mark.heavy
def test_user_effects_are_recovered() -> None:
    random = np.random.default_rng(0)
    shared, own = random.normal(size=4), 1.5 * random.normal(size=(40, 4))
    texts = random.normal(size=(300, 4))

    def read(prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        found: FloatArray = texts[[int(text) for text in responses]]
        return found

    def choose(user: int) -> pi.Preference:
        one, other = random.choice(300, size=2, replace=False)
        margin = (texts[one] - texts[other]) @ (shared + own[user])
        first = random.random() < 1 / (1 + np.exp(-margin))
        return choice(str(one if first else other), str(other if first else one), f"u{user}")

    train = [choose(user) for user in range(40) for _ in range(150)]
    test = [choose(user) for user in range(40) for _ in range(30)]
    with_users = BradleyTerry(read, read, ridge=0.1, user_ridge=0.4).fit(train).predict(test)
    without = BradleyTerry(read, ridge=0.1).fit(train).predict(test)
    truth = np.array(
        [
            (texts[int(c.chosen)] - texts[int(c.rejected)])
            @ (shared + own[int((c.user or "u0")[1:])])
            for c in test
        ]
    )
    assert correlation(with_users, truth) >= 0.95 > correlation(without, truth)


def test_the_majority_leaves_out_the_user_who_is_asked() -> None:
    data = [choice("a", "b", "ann"), choice("b", "a", "bob"), choice("b", "a", "cy")]
    model = MajorityVote().fit(data)
    assert model.predict([choice("a", "b", "ann"), choice("b", "a", "bob")]).tolist() == [-1.0, 0.0]
    assert MajorityVote().fit(data[:1]).predict(data[:1]).tolist() == [0.0]


def test_the_majority_of_responses_stands_in_for_that_of_a_pair() -> None:
    data = [choice("a", "b", "ann"), choice("a", "c", "bob"), choice("d", "c", "cy")]
    assert (
        MajorityVote().fit(data).predict([choice("a", "d", "new"), choice("d", "b", "new")])[1] > 0
    )


def test_similar_users_decide() -> None:
    data = [
        *(choice(f"{n} short", f"{n} long", user) for n in range(6) for user in ("ann", "bob")),
        *(choice(f"{n} long", f"{n} short", "cy") for n in range(6)),
        choice("new short", "new long", "bob"),
        choice("new long", "new short", "cy"),
    ]
    model = SimilarUsersVote().fit(data)
    assert model.predict([choice("new short", "new long", "ann")])[0] > 0
    assert model.predict([choice("new short", "new long", "stranger")]).tolist() == [0.0]


def test_longer() -> None:
    assert LongerWins().fit([]).predict([choice("abc", " a  ", "ann")]).tolist() == [2.0]


def test_a_penalty_may_be_a_number_of_numpy() -> None:
    LowRankRewards(ridge=np.float32(0.5))  # type: ignore[arg-type]
    BradleyTerry(ridge=np.float32(0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model", [LowRankRewards(), BradleyTerry(), MajorityVote(), SimilarUsersVote()]
)
def test_a_model_that_is_not_fitted_says_so(model: ChoiceModel) -> None:
    choices = [choice("a", "b", "u")]
    with pytest.raises(InvalidArgumentError, match="Call fit"):
        model.predict(choices)
    if isinstance(model, LowRankRewards | BradleyTerry):
        with pytest.raises(InvalidArgumentError, match="Call fit"):
            model.rewards(["p"], ["a"])
    if isinstance(model, LowRankRewards):
        with pytest.raises(InvalidArgumentError, match="Call fit"):
            model.fit_users(choices)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "features", [None, lambda prompts, texts: [[float(len(t))] for t in texts]]
)
def test_rewards_of_no_responses_are_none(features: Features | None) -> None:
    data = [choice("a", "bb", "ann")]
    assert LowRankRewards(2, features=features).fit(data).rewards([], []).shape == (0, 2)
    assert BradleyTerry(features).fit(data).rewards([], []).shape == (0,)
    with pytest.raises(InvalidArgumentError, match="2 prompts, 1 responses"):
        BradleyTerry(features).fit(data).rewards(["p", "q"], ["a"])
    with pytest.raises(InvalidArgumentError, match="2 prompts, 1 responses"):
        LowRankRewards(features=features).fit(data).rewards(["p", "q"], ["a"])


def test_features_have_the_width_of_the_fit() -> None:
    wide = 3

    def read(prompts: Sequence[Prompt], texts: Sequence[str]) -> FloatArray:
        return np.ones((len(texts), wide))

    data = [choice("a", "b", "ann")]
    models: list[ChoiceModel] = [
        LowRankRewards(2, features=read),
        LowRankRewards(features=read, fixed_basis=True),
    ]
    models += [BradleyTerry(read), BradleyTerry(None, read)]
    fits = [model.fit(data) for model in models]
    wide = 2
    for model in fits:
        with pytest.raises(InvalidArgumentError, match="2 numbers a response, and gave 3"):
            model.predict(data)


@pytest.mark.parametrize("given", [None, [["x"], ["y"]], [[1.0], [1.0, 2.0]]], ids=str)
def test_features_that_are_no_numbers_are_named(given: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"features"):
        BradleyTerry(lambda prompts, texts: given).fit([choice("a", "b", "ann")])


def test_sparse_features_are_no_fixed_basis() -> None:
    with pytest.raises(InvalidArgumentError, match="sparse"):
        LowRankRewards(features=word_features, fixed_basis=True).fit([choice("a", "b", "ann")])


def test_a_large_fixed_basis_takes_no_square_of_memory() -> None:
    def read(prompts: Sequence[Prompt], texts: Sequence[str]) -> FloatArray:
        return np.eye(len(texts), 200_000)

    model = LowRankRewards(features=read, fixed_basis=True, steps=1)
    assert model.fit([choice("a", "b", "ann")]).rewards(["p"], ["a"]).shape == (1, 200_000)


@pytest.mark.parametrize(
    "model", [LongerWins(), MajorityVote(), SimilarUsersVote(), LowRankRewards(), BradleyTerry()]
)
@pytest.mark.parametrize("choices", [None, "ab", [("p", "a", "b")]], ids=str)
def test_choices_are_records(model: Any, choices: Any) -> None:
    for call in (model.predict, *([] if isinstance(model, LongerWins) else [model.fit])):
        with pytest.raises(InvalidArgumentError, match=r"choices(=|\[0\])"):
            call(choices)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (BradleyTerry, {"steps": 0}),
        (BradleyTerry, {"features": "word"}),
        (BradleyTerry, {"user_features": 3}),
        (LowRankRewards, {"seed": -1}),
        (LowRankRewards, {"features": "word"}),
        (LowRankRewards, {"fixed_basis": "no"}),
        (partial(fit_user_weights, np.zeros((3, 2)), np.zeros(3, dtype=int)), {"shrink": "x"}),
        (partial(fit_user_weights, np.zeros((3, 2)), np.zeros(3, dtype=int)), {"steps": 1.5}),
    ],
)
def test_a_bad_option_of_a_model_is_named(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(wrong))}="):
        make(**wrong)


def test_bad_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match="doubt=-1"):
        SimilarUsersVote(doubt=-1)
    with pytest.raises(InvalidArgumentError, match="rank=0"):
        LowRankRewards(0)
    with pytest.raises(InvalidArgumentError, match="ridge=-1"):
        LowRankRewards(ridge=-1)
    with pytest.raises(InvalidArgumentError, match="user_ridge=True"):
        BradleyTerry(user_ridge=True)
    with pytest.raises(InvalidArgumentError, match="fixed_basis=True needs features="):
        LowRankRewards(fixed_basis=True)
    with pytest.raises(InvalidArgumentError, match=r"features= gives the shape \(3,\)"):
        LowRankRewards(features=lambda prompts, texts: [1, 2, 3]).fit([choice("a", "b", "ann")])
    with pytest.raises(DataError, match="choice 0 has no user"):
        BradleyTerry().fit([pi.Preference(prompt="p", chosen="a", rejected="b")])
    with pytest.raises(InvalidArgumentError, match="users of the shape"):
        fit_user_weights(np.zeros((3, 2)), np.zeros(2, dtype=int))


def test_weights_can_be_fitted_without_a_penalty() -> None:
    margins = np.array([[1.0, 0.0], [1.0, 0.0]])
    [(first, second)] = fit_user_weights(margins, [0, 0], shrink=0)
    assert first > 0.99
    assert first + second == pytest.approx(1)
    assert fit_user_weights(margins, [0, 0], shrink=1.0)[0, 0] < 0.9


def test_rewards_are_computed_of_what_a_generator_yields() -> None:
    model = BradleyTerry().fit([choice("a", "b", "u")])
    found = model.rewards((p for p in ["?", "?"]), (r for r in ["a", "b"]))
    assert found.tolist() == model.rewards(["?", "?"], ["a", "b"]).tolist()
