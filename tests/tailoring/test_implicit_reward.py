"""The implicit reward against values by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError
from personainfer.tailoring.implicit_reward import implicit_rewards, reward_accuracy


class Logs:
    """A policy that finds a response as likely as a table says."""

    def __init__(self, **logs: float) -> None:
        self.logs = logs
        self.calls = 0

    def log_likelihood(
        self, prompts: Sequence[Any], personas: Sequence[Any], responses: Sequence[str]
    ) -> np.ndarray:
        self.calls += 1
        return np.array([self.logs[response] for response in responses])


def test_the_reward_is_beta_times_the_log_ratio() -> None:
    policy, reference = Logs(short=-2.0, long=-10.0), Logs(short=-3.0, long=-8.0)
    rows = (["Tea?"] * 2, ["The user is brisk."] * 2, ["short", "long"])
    np.testing.assert_allclose(implicit_rewards(policy, reference, *rows, beta=0.5), [0.5, -1.0])
    np.testing.assert_allclose(implicit_rewards(policy, reference, *rows), [0.1, -0.2])


@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan, True, "0.1"])
def test_a_bad_beta_is_refused_before_anything_is_scored(beta: Any) -> None:
    policy = Logs(a=0.0)
    with pytest.raises(InvalidArgumentError, match="beta"):
        implicit_rewards(policy, Logs(a=0.0), ["p"], [None], ["a"], beta=beta)
    assert policy.calls == 0


def test_what_cannot_be_a_policy_or_its_reference_is_named() -> None:
    policy: Any = Logs(a=0.0)
    with pytest.raises(InvalidArgumentError, match="same object"):
        implicit_rewards(policy, policy, ["p"], [None], ["a"])
    model: Any = "local"
    with pytest.raises(InvalidArgumentError, match="reference='local'"):
        implicit_rewards(policy, model, ["p"], [None], ["a"])


def test_accuracy_counts_ties_as_half_and_leaves_missing_rewards_out() -> None:
    found = reward_accuracy(
        [1.0, 0.0, 0.5, math.nan, 2.0], [0.0, 1.0, 0.5, 0.0, 1.0], ["a", "b", "c", "d", "e"]
    )
    assert found.value == pytest.approx(2.5 / 4)
    assert found.n == 4
    assert 0 <= found.low < found.value < found.high <= 1


def test_pairs_of_one_prompt_are_one_observation() -> None:
    random = np.random.default_rng(0)
    gaps, prompts = random.normal(size=40), [f"p{n}" for n in range(40)]
    once = reward_accuracy(gaps, np.zeros(40), prompts)
    twice = reward_accuracy(np.repeat(gaps, 2), np.zeros(80), np.repeat(prompts, 2).tolist())
    shuffled = random.permutation(40)
    moved = reward_accuracy(gaps[shuffled], np.zeros(40), [prompts[n] for n in shuffled])
    assert (once.value, once.low, once.high) == (twice.value, twice.low, twice.high)
    assert (once.value, once.low, once.high) == (moved.value, moved.low, moved.high)


def test_an_infinite_reward_is_above_all_others_and_equal_to_itself() -> None:
    low = [-math.inf, -math.inf]
    assert reward_accuracy([0.0, -math.inf], low, ["a", "b"]).value == 0.75


def test_prompts_are_what_rewards_are_asked_for() -> None:
    """Texts, or conversations in either form: the same one is one observation."""
    asked = [
        [pi.Message(role="user", content="Tea?")],
        [{"role": "user", "content": "Tea?"}],
        "Tea?",
    ]
    assert reward_accuracy([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], asked).n == 1  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="single str"):
        reward_accuracy([1.0, 2.0], [0.0, 0.0], "ab")


def test_lengths_that_differ_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match="one of each a pair"):
        reward_accuracy([1.0, 2.0], [0.0, 0.0], ["p"])
