"""Simulated users: known answers, a plain loop to compare with, and what must hold for any weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import personainfer as pi
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.simulation import RewardMatrix, SimulatedUsers

MODELS = ("brevity", "warmth", "rigour")
brief = settings(max_examples=40)


def matrix(prompts: int = 12, responses: int = 4, models: tuple[str, ...] = MODELS) -> RewardMatrix:
    random = np.random.default_rng(prompts)
    return RewardMatrix(
        random.normal(2.0, 5.0, size=(prompts, responses, len(models))),
        models=models,
        prompts=[f"Question {n}?" for n in range(prompts)],
        responses=[[f"Answer {n}.{r}" for r in range(responses)] for n in range(prompts)],
    )


def loop_choices(users: SimulatedUsers, data: RewardMatrix) -> list[list[int]]:
    """The same choices, one user, prompt, response and model at a time."""
    chosen = []
    for weights in users.weights:
        mine = []
        for prompt in range(len(data)):
            worth = []
            for response in range(data.rewards.shape[1]):
                total = 0.0
                for column, name in enumerate(data.models):
                    z = (data.rewards[prompt, response, column] - data.mean[column]) / (
                        data.deviation[column]
                    )
                    total += weights[users.models.index(name)] * (-z if name in data.costs else z)
                worth.append(total)
            mine.append(worth.index(max(worth)))
        chosen.append(mine)
    return chosen


# Users


def test_weights_are_a_row_for_each_user_that_adds_up_to_one() -> None:
    users = SimulatedUsers.sample(50, models=MODELS)
    assert users.weights.shape == (50, 3)
    assert users.models == MODELS
    assert_allclose(users.weights.sum(axis=1), 1.0)
    assert len(users) == 50


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, pa.table])
def test_weights_in_a_frame_are_read_by_the_names_of_the_models(frame: Any) -> None:
    weights = frame({"b": [1.0, 0.25], "a": [0.0, 0.75]})
    assert SimulatedUsers(weights, models=["a", "b"]).weights.tolist() == [[0, 1], [0.75, 0.25]]
    others = frame({"one": [1.0, 0.25], "two": [0.0, 0.75]})
    assert SimulatedUsers(others, models=["a", "b"]).weights.tolist() == [[1, 0], [0.25, 0.75]]


def test_equal_seeds_give_equal_users_and_others_do_not() -> None:
    one, same, other = (SimulatedUsers.sample(20, models=MODELS, seed=s) for s in (1, 1, 2))
    assert_array_equal(one.weights, same.weights)
    assert not np.allclose(one.weights, other.weights)


def test_the_order_of_the_models_changes_no_user() -> None:
    there = SimulatedUsers.sample(20, models=MODELS, seed=3)
    back = SimulatedUsers.sample(20, models=MODELS[::-1], seed=3)
    assert_array_equal(there.weights, back.weights[:, ::-1])


def test_with_a_tiny_alpha_each_user_follows_one_model() -> None:
    data = matrix()
    users = SimulatedUsers.sample(60, models=MODELS, alpha=1e-4)
    favourite = users.weights.argmax(axis=1)
    assert (users.weights.max(axis=1) > 0.99).all()
    assert set(favourite) == {0, 1, 2}
    best_of_model = data.rewards.argmax(axis=1)  # (prompts, models)
    assert_array_equal(users.choose(data), best_of_model.T[favourite])


def test_with_a_large_alpha_all_users_agree() -> None:
    data = matrix()
    users = SimulatedUsers.sample(60, models=MODELS, alpha=1e8)
    votes = users.choose(data)
    assert (votes == data.zscores.sum(axis=2).argmax(axis=1)).all()


def test_the_draw_is_the_published_one_unless_near_duplicates_are_to_be_left_out() -> None:
    """PersonalLLM's sampler keeps near duplicates: users who follow one model are alike."""
    models = [f"m{n}" for n in range(10)]
    plain = SimulatedUsers.sample(5000, models=models, alpha=0.02, seed=1)
    assert_allclose(
        plain.weights[:, np.argsort(models)],
        np.random.default_rng(1).dirichlet([0.02] * 10, size=5000),
        atol=1e-12,
    )
    corners = (plain.weights.max(axis=1) > 1 - 1e-5).mean()
    assert plain.redrawn == 0
    assert corners == pytest.approx(0.133, abs=0.02)
    filtered = SimulatedUsers.sample(5000, models=models, alpha=0.02, min_distance=1e-5, seed=1)
    assert filtered.redrawn > 500
    assert (filtered.weights.max(axis=1) > 1 - 1e-5).mean() < 0.03


def test_near_duplicates_are_drawn_again_where_that_is_asked_for() -> None:
    users = SimulatedUsers.sample(400, models=MODELS, alpha=0.05, min_distance=1e-5)
    drawn = np.random.default_rng(0).dirichlet([0.05] * 3, size=400)

    def nearest(weights: Any) -> Any:
        apart = np.linalg.norm(weights[:, None] - weights[None], axis=2)
        return apart[np.triu_indices(len(weights), 1)].min()

    assert nearest(drawn) < 1e-5  # there was something to do
    assert nearest(users.weights) >= 1e-5


def test_an_alpha_that_makes_too_few_users_says_so() -> None:
    with pytest.warns(UserWarning, match="too few different ones"):
        users = SimulatedUsers.sample(30, models=MODELS, alpha=1e-6, min_distance=1e-5)
    assert len(users) == 30
    with pytest.raises(InvalidArgumentError, match="min_distance=-1"):
        SimulatedUsers.sample(3, models=MODELS, min_distance=-1)


@pytest.mark.parametrize("temperature", [1e-310, 1e-12, 1e300])
def test_an_extreme_temperature_overflows_nothing(temperature: float) -> None:
    data = matrix(200)
    users = SimulatedUsers.sample(20, models=MODELS, alpha=0.5)
    with np.errstate(all="raise", under="ignore"):
        chosen = users.choose(data, temperature=temperature)
    if temperature < 1:
        assert_array_equal(chosen, users.choose(data))
    else:
        assert set(np.unique(chosen)) == set(range(data.rewards.shape[1]))


def test_ties_do_not_go_to_the_first_response() -> None:
    """Two responses with the same rewards: no user prefers either, and the seed decides."""
    rewards = np.random.default_rng(0).normal(size=(200, 3, 3))
    rewards[:, 1] = rewards[:, 0]
    rewards[:, 2] -= 9.0
    texts = [[f"{n} a", f"{n} b", f"{n} c"] for n in range(200)]
    data = RewardMatrix(
        rewards, models=MODELS, prompts=[f"p{n}" for n in range(200)], responses=texts
    )
    users = SimulatedUsers.sample(20, models=MODELS, alpha=0.5)
    chosen = users.choose(data)
    assert set(np.unique(chosen)) == {0, 1}
    assert 0.45 < chosen.mean() < 0.55
    assert_array_equal(users.choose(data), chosen)
    assert not np.array_equal(users.choose(data, seed=1), chosen)
    some = SimulatedUsers(users.weights[:3], models=MODELS)
    assert_array_equal(some.choose(data), chosen[:3])  # other users change nothing
    offered = users.choose(data, pairs=np.tile([1, 0], (200, 1)))
    assert 0.45 < offered.mean() < 0.55
    best = [
        pair.chosen[-1]
        for pair in users.histories(data, pairs_per_user=100)
        if {pair.chosen[-1], pair.rejected[-1]} == {"a", "b"}
    ]
    assert 0.4 < best.count("a") / len(best) < 0.6


# Utilities and choices


def test_utilities_by_hand() -> None:
    data = RewardMatrix([[[1.0, 10.0], [3.0, 30.0]], [[5.0, 10.0], [3.0, 30.0]]], models=["a", "b"])
    # a: 1, 3, 5, 3: mean 3, deviation sqrt(2); b: 10, 30, 10, 30: mean 20, deviation 10.
    assert_allclose(data.zscores[..., 0] * np.sqrt(2), [[-2, 0], [2, 0]])
    assert_allclose(data.zscores[..., 1], [[-1, 1], [-1, 1]])
    users = SimulatedUsers([[1.0, 0.0], [0.25, 0.75]], models=["a", "b"])
    root = np.sqrt(2)
    wanted = [[[-root, 0], [root, 0]], [[-root / 4 - 0.75, 0.75], [root / 4 - 0.75, 0.75]]]
    assert_allclose(users.utilities(data), wanted)
    assert_array_equal(users.choose(data), [[1, 0], [1, 1]])


def test_choices_are_those_of_a_plain_loop() -> None:
    models = ("a", "b_cost", "c", "d")
    data = matrix(30, 6, models)
    users = SimulatedUsers.sample(40, models=("d", "c", "b_cost", "a"), alpha=0.5, seed=5)
    assert_array_equal(users.choose(data), loop_choices(users, data))


@pytest.mark.heavy
@brief
@given(st.integers(0, 10_000), st.permutations(range(3)))
def test_permuting_the_models_of_the_rewards_changes_nothing(seed: int, order: list[int]) -> None:
    data = matrix()
    shuffled = RewardMatrix(
        data.rewards[..., order],
        models=[MODELS[n] for n in order],
        prompts=data.prompts,
        responses=data.responses,
    )
    users = SimulatedUsers.sample(5, models=MODELS, seed=seed)
    assert_allclose(users.utilities(shuffled), users.utilities(data), atol=1e-12)
    assert_array_equal(
        users.choose(shuffled, temperature=0.7, seed=seed),
        users.choose(data, temperature=0.7, seed=seed),
    )
    assert users.histories(shuffled) == users.histories(data)


@brief
@given(
    st.lists(st.floats(0.01, 100), min_size=3, max_size=3),
    st.lists(st.floats(-100, 100), min_size=3, max_size=3),
)
def test_the_scale_of_a_reward_model_changes_nothing(
    scale: list[float], shift: list[float]
) -> None:
    data = matrix()
    moved = RewardMatrix(data.rewards * scale + shift, models=MODELS)
    users = SimulatedUsers.sample(5, models=MODELS)
    assert_allclose(users.utilities(moved), users.utilities(data), atol=1e-7)


def test_choices_do_not_depend_on_how_many_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = matrix()
    users = SimulatedUsers.sample(30, models=MODELS)
    pairs = np.random.default_rng(0).permuted(np.tile(np.arange(4), (30, 12, 1)), axis=2)[..., :2]
    whole = users.choose(data, pairs=pairs, temperature=0.5)
    monkeypatch.setattr("personainfer.simulation.simulated_users._CELLS", 100)
    assert_array_equal(users.choose(data, pairs=pairs, temperature=0.5), whole)


def test_an_offered_pair_is_chosen_from_by_place() -> None:
    data = RewardMatrix([[[1.0], [3.0], [2.0]], [[9.0], [7.0], [8.0]]], models=["a"])
    users = SimulatedUsers([[1.0], [1.0]], models=["a"])
    assert_array_equal(users.choose(data, pairs=[[0, 2], [2, 1]]), [[2, 2], [2, 2]])
    own = [[[0, 1], [0, 1]], [[2, 0], [1, 2]]]
    assert_array_equal(users.choose(data, pairs=own), [[1, 0], [2, 2]])


@pytest.mark.heavy
def test_noisy_choices_follow_bradley_terry() -> None:
    n = 20_000
    data = RewardMatrix([[[0.0], [2.0]]], models=["a"])  # z-scores -1 and 1
    users = SimulatedUsers(np.ones((n, 1)), models=["a"])
    share = users.choose(data, temperature=2.0, seed=1).mean()
    wanted = 1 / (1 + np.exp(-1))  # sigma((1 - -1) / 2)
    assert abs(share - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / n)


def test_the_noise_of_a_user_does_not_depend_on_other_users() -> None:
    data = matrix()
    many = SimulatedUsers.sample(9, models=MODELS)
    few = SimulatedUsers(many.weights[:4], models=MODELS)
    options: dict[str, Any] = {"temperature": 3.0, "seed": 4}
    assert_array_equal(many.choose(data, **options)[:4], few.choose(data, **options))
    assert many.histories(data, **options)[: 4 * 5] == few.histories(data, **options)


# Histories


def test_a_history_is_the_user_s_own() -> None:
    """Each label follows from the weights of the user whose record it is, not from user 0's."""
    data = matrix(40)
    users = SimulatedUsers.sample(12, models=MODELS, seed=2)
    values = users.utilities(data)
    history = users.histories(data, pairs_per_user=20)
    assert Counter(choice.user for choice in history) == dict.fromkeys(users.names, 20)
    against_user_0 = 0
    for choice in history:
        user = int(choice.user or "")
        assert data.prompts is not None
        assert data.responses is not None
        prompt = data.prompts.index(choice.prompt)
        assert choice.id == f"{user}:{prompt}"
        best = data.responses[prompt].index(choice.chosen)
        worst = data.responses[prompt].index(choice.rejected)
        assert values[user, prompt, best] >= values[user, prompt, worst]
        against_user_0 += values[0, prompt, best] < values[0, prompt, worst]
    assert against_user_0 > 0
    by_user_7 = [choice for choice in history if choice.user == "7"]
    assert len({choice.prompt for choice in by_user_7}) == 20


def test_every_response_is_offered() -> None:
    """The published code never drew the last one."""
    history = SimulatedUsers.sample(100, models=MODELS).histories(matrix())
    shown = {text[-1] for choice in history for text in (choice.chosen, choice.rejected)}
    assert shown == set("0123")


def test_extremes_are_the_best_and_the_worst() -> None:
    data = matrix()
    users = SimulatedUsers.sample(3, models=MODELS)
    values = users.utilities(data)
    for choice in users.histories(data, pairs_per_user=12, offered="extremes"):
        user, prompt = map(int, (choice.id or "").split(":"))
        assert choice.chosen == f"Answer {prompt}.{values[user, prompt].argmax()}"
        assert choice.rejected == f"Answer {prompt}.{values[user, prompt].argmin()}"


def test_equal_responses_are_never_offered_against_each_other() -> None:
    random = np.random.default_rng(0)
    data = RewardMatrix(
        random.normal(size=(3, 3, 1)),
        models=["a"],
        prompts=["One?", "Two?", "Three?"],
        responses=[["Yes.", "Yes. ", "No."], ["Yes.", "Yes.", "Yes."], ["A.", "", "C."]],
    )
    users = SimulatedUsers(np.ones((50, 1)), models=["a"])
    history = users.histories(data, pairs_per_user=2)
    pairs = {frozenset([c.chosen.strip(), c.rejected.strip()]) for c in history}
    assert pairs == {frozenset(["Yes.", "No."]), frozenset(["A.", "C."])}
    with pytest.raises(DataError, match="only 2 prompts"):
        users.histories(data, pairs_per_user=3)


def test_histories_are_preference_data(endpoint: dict[str, Any]) -> None:
    history = SimulatedUsers.sample(2, models=MODELS).histories(matrix(), pairs_per_user=3)
    table = pi.infer_personas(history, **endpoint)
    assert [row.preference for row in table] == history


# Arguments


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ([[0.5, 0.4]], "user 0 add up to 0.9"),
        ([[0.5, 0.5], [1.5, -0.5]], "user 1"),
        ([[np.nan, 1.0]], "user 0"),
        ([[0.2, 0.3, 0.5]], "shape"),
        ([0.5, 0.5], "shape"),
        ([["x", "y"]], "not an array of numbers"),
        ([[1.0], [0.5, 0.5]], "not an array of numbers"),
        (pd.DataFrame({"c": [0.3], "a": [0.7]}), "the columns c, a, and the models are a, b"),
        (pd.DataFrame([[0.3, 0.7]], columns=["a", "a"]), "the columns a, a"),
        (pd.DataFrame({"a": [1.0], "b": [0.0], "age": [3]}), "the columns a, b, age"),
    ],
    ids=[
        *("sum", "negative", "nan", "models", "one-dimensional", "text", "ragged"),
        *("another column", "a column twice", "one column more"),
    ],
)
def test_weights_that_cannot_be(weights: Any, what: str) -> None:
    with pytest.raises(InvalidArgumentError, match=what):
        SimulatedUsers(weights, models=["a", "b"])


def test_models_in_a_set_have_no_order() -> None:
    with pytest.raises(InvalidArgumentError, match="names of the models, in order"):
        SimulatedUsers([[1.0, 0.0]], models={"a", "b"})  # type: ignore[arg-type]


@pytest.mark.parametrize("names", ["xy", 3, ["x", "x"], ["x"], [1, 2]])
def test_users_have_names_of_their_own(names: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"2 different texts|names= is a single"):
        SimulatedUsers([[1.0], [1.0]], models=["a"], names=names)


def test_users_and_rewards_of_other_models_do_not_meet() -> None:
    users = SimulatedUsers.sample(3, models=("brevity", "warmth", "wit"))
    for call in (users.utilities, users.choose, users.histories):
        with pytest.raises(InvalidArgumentError, match=r"no weight for rigour; no rewards of wit"):
            call(matrix())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"pairs": [[0, 1]]}, "shape"),
        ({"pairs": [[0, 0]] * 12}, "two different"),
        ({"pairs": [[0, 4]] * 12}, "from 0 to 3"),
        ({"pairs": [[0.0, 1.0]] * 12}, "whole numbers"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": np.nan}, "temperature"),
    ],
    ids=["shape", "same", "beyond", "floats", "negative", "nan"],
)
def test_choices_that_cannot_be_made(options: Any, what: str) -> None:
    with pytest.raises(InvalidArgumentError, match=what):
        SimulatedUsers.sample(2, models=MODELS).choose(matrix(), **options)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"n": 0, "models": MODELS}, "n=0"),
        ({"n": 3, "models": MODELS, "alpha": 0.0}, "alpha"),
        ({"n": 3, "models": ["a", "a"]}, "'a' twice"),
        ({"n": 3, "models": "abc"}, "models="),
    ],
    ids=["n", "alpha", "twice", "text"],
)
def test_samples_that_cannot_be_drawn(options: Any, what: str) -> None:
    with pytest.raises(InvalidArgumentError, match=what):
        SimulatedUsers.sample(**options)


def test_histories_need_texts_and_prompts_enough() -> None:
    users = SimulatedUsers.sample(2, models=MODELS)
    with pytest.raises(InvalidArgumentError, match="no texts"):
        users.histories(RewardMatrix(matrix().rewards, models=MODELS))
    with pytest.raises(DataError, match="only 12 prompts"):
        users.histories(matrix(), pairs_per_user=13)
    with pytest.raises(InvalidArgumentError, match="offered"):
        users.histories(matrix(), offered="best")  # type: ignore[arg-type]
