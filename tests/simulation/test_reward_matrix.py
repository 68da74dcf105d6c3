"""Rewards with names: where they come from, their one scale, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.records import Message, Persona
from personainfer.simulation.reward_matrix import RewardMatrix

REWARDS = np.random.default_rng(0).normal(size=(5, 3, 2))
PROMPTS = [f"Question {n}?" for n in range(5)]
RESPONSES = [[f"Answer {n}.{r}" for r in range(3)] for n in range(5)]


def full(**options: Any) -> RewardMatrix:
    given: dict[str, Any] = {"models": ["a", "b"], "prompts": PROMPTS, "responses": RESPONSES}
    return RewardMatrix(**{"rewards": REWARDS, **given, **options})


def length(prompts: Sequence[object], responses: Sequence[str]) -> list[int]:
    return [len(text) for text in responses]


# The scale


def test_each_model_is_z_scored_over_all_responses() -> None:
    scores = full().zscores
    assert_allclose(scores.mean(axis=(0, 1)), 0, atol=1e-12)
    assert_allclose(scores.std(axis=(0, 1)), 1)


@pytest.mark.parametrize(
    "name", ["beaver_7b", "my_cost", "PKU-Alignment/beaver-7b-v1.0-cost", "Cost"]
)
def test_a_cost_is_negated_by_its_name(name: str) -> None:
    plain, cost = full(), full(models=["a", name])
    assert cost.costs == {name}
    assert_allclose(cost.zscores[..., 1], -plain.zscores[..., 1])
    assert_allclose(cost.zscores[..., 0], plain.zscores[..., 0])


def test_what_is_a_cost_can_be_said() -> None:
    assert_allclose(full(costs=["b"]).zscores[..., 1], -full().zscores[..., 1])
    assert full(models=["a", "costly"]).costs == set()
    assert full(models=["a", "my_cost"], costs=()).costs == set()
    with pytest.raises(InvalidArgumentError, match="costs= names c"):
        full(costs=["c"])


def test_a_part_stays_on_the_scale_of_the_whole() -> None:
    whole = full(costs=["b"])
    part = whole.take([3, 1])
    assert part.prompts == (PROMPTS[3], PROMPTS[1])
    assert part.responses == (tuple(RESPONSES[3]), tuple(RESPONSES[1]))
    assert_array_equal(part.zscores, whole.zscores[[3, 1]])
    assert len(whole.take(slice(2))) == 2
    for wrong in ([99], ["a"], [0.5]):
        with pytest.raises(InvalidArgumentError, match="prompts="):
            whole.take(wrong)  # type: ignore[arg-type]


def test_responses_that_come_later_are_scored_on_the_same_scale() -> None:
    whole = full()
    later = whole.like(
        REWARDS[:, :1], prompts=PROMPTS, responses=[texts[:1] for texts in RESPONSES]
    )
    assert_array_equal(later.zscores, whole.zscores[:, :1])


def test_what_is_given_is_not_changed_and_cannot_be() -> None:
    given = REWARDS.copy()
    found = full(rewards=given)
    given[:] = 0
    assert_array_equal(found.rewards, REWARDS)
    with pytest.raises(ValueError, match="read-only"):
        found.zscores[0] = 1


# Where rewards come from


def published(n: int, **changes: Any) -> dict[str, Any]:
    """A row in the columns of namkoong-lab/PersonalLLM, with two responses and models."""
    row: dict[str, Any] = {"prompt": PROMPTS[n], "subset": "made up", "prompt_id": n}
    for r in (1, 2):
        row |= {f"response_{r}": f"Answer {n}.{r}", f"response_{r}_model": "some/model"}
        row |= {f"response_{r}_gemma_2b": n + 2.0 * r, f"response_{r}_beaver_7b": n * r}
    return {**row, **changes}


def test_columns_become_rewards_by_name() -> None:
    found = RewardMatrix.from_columns(published(n) for n in range(3))
    assert found.models == ("beaver_7b", "gemma_2b")
    assert found.costs == {"beaver_7b"}
    assert_array_equal(found.rewards[2], [[2, 4], [4, 6]])
    assert found.texts[1][2] == ("Answer 2.1", "Answer 2.2")
    assert found.dropped == {}


def test_rows_that_cannot_be_used_are_counted() -> None:
    rows = [
        published(0),
        published(1),
        published(0, prompt_id=9),
        published(2, response_2=None),
        published(3, response_1_gemma_2b=float("nan")),
        published(4, response_2_beaver_7b=None),
    ]
    found = RewardMatrix.from_columns(rows)
    assert found.prompts == tuple(PROMPTS[:2])
    assert found.dropped == {"prompt occurs twice": 1, "text missing": 1, "reward missing": 2}
    with pytest.raises(DataError, match=r"no row can be used: text missing \(1\)"):
        RewardMatrix.from_columns([published(2, response_2=" ")])


def test_a_model_whose_first_reward_is_missing_is_a_model() -> None:
    rows = [published(0, response_1_gemma_2b=None), published(1), published(2)]
    found = RewardMatrix.from_columns(rows)
    assert found.models == ("beaver_7b", "gemma_2b")
    assert found.dropped == {"reward missing": 1}


@pytest.mark.parametrize("part", ["response_2", "gemma_2b", "prompt"])
def test_rows_that_leave_out_a_field_are_read_like_those_that_have_it_empty(part: str) -> None:
    rows = [published(n) for n in range(3)]
    bare = [{name: v for name, v in rows[0].items() if part not in name}, *rows[1:]]
    nulls = [dict.fromkeys(rows[0]) | row for row in bare]  # as a data frame has them
    one, other = map(RewardMatrix.from_columns, (bare, nulls))
    assert one.models == other.models == ("beaver_7b", "gemma_2b")
    assert_array_equal(one.rewards, other.rewards)
    assert (one.texts, one.dropped) == (other.texts, other.dropped)
    assert len(one) == 2


def test_a_frame_is_no_list_of_rows() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'prompt', which is not a dict.*to_dict"):
        RewardMatrix.from_columns(["prompt", "response_1"])  # type: ignore[list-item]


def test_columns_that_are_not_there() -> None:
    with pytest.raises(DataError, match="'question'"):
        RewardMatrix.from_columns([published(0)], prompt="question")
    with pytest.raises(DataError, match="no column 'response_1_gemma_7b'"):
        RewardMatrix.from_columns([published(0)], models=["gemma_7b"])
    with pytest.raises(DataError, match="no rows"):
        RewardMatrix.from_columns([])
    short = published(0)
    del short["response_2_gemma_2b"]
    with pytest.raises(DataError, match="no column 'response_2_gemma_2b'"):
        RewardMatrix.from_columns([short])


def test_callables_score_every_response_once() -> None:
    calls = []

    def asked(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        calls.append(list(zip(prompts, responses, strict=True)))
        return [hash_of(prompt) + len(text) for prompt, text in calls[-1]]

    def hash_of(prompt: Any) -> float:
        return float(PROMPTS.index(prompt))

    responses = [["Yes.", "No, never."], ["Perhaps.", "It depends."]]
    found = RewardMatrix.from_scorers({"asked": asked, "length": length}, PROMPTS[:2], responses)
    assert calls == [[(PROMPTS[n], text) for n in (0, 1) for text in responses[n]]]
    assert_array_equal(found.rewards[..., 0], [[4, 10], [9, 12]])
    assert_array_equal(found.rewards[..., 1], [[4, 10], [8, 11]])
    assert found.models == ("asked", "length")


def test_a_scorer_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'short' gives numbers of shape \(1,\) for 2"):
        RewardMatrix.from_scorers({"short": lambda p, r: [1.0]}, ["One?"], [["A", "B"]])
    with pytest.raises(InvalidArgumentError, match="no model"):
        RewardMatrix.from_scorers({}, ["One?"], [["A", "B"]])


def test_lifts_of_personas_are_rewards() -> None:
    class Lift:
        """As `Likelihood`: a number for each prompt, persona and response."""

        def lift(
            self, prompts: Sequence[Any], personas: Sequence[Any], responses: Sequence[str]
        ) -> Any:
            assert len(prompts) == len(personas) == len(responses)
            return [len(str(p)) - len(r) for p, r in zip(personas, responses, strict=True)]

    personas: dict[str, Persona | str] = {
        "terse": Persona(trait="terse", preference="little"),
        "free": "Someone.",
    }
    found = RewardMatrix.from_lifts(Lift(), personas, ["One?"], [["A.", "Longer."]])
    sentence = len("The user is terse and prefers little.")
    assert_array_equal(found.rewards, [[[sentence - 2, 8 - 2], [sentence - 7, 8 - 7]]])
    assert found.models == ("terse", "free")


def test_prompts_may_be_conversations() -> None:
    asked = (Message(role="system", content="Be kind."), Message(role="user", content="Why?"))
    found = RewardMatrix.from_scorers({"length": length}, [asked], [["A.", "Longer."]])
    assert found.prompts == (asked,)


# What is wrong with them


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"rewards": REWARDS[..., 0]}, InvalidArgumentError, r"shape \(5, 3\)"),
        ({"rewards": [[["x"]]]}, InvalidArgumentError, "not an array of numbers"),
        ({"models": ["a"]}, InvalidArgumentError, "1 models"),
        ({"models": ["a", "a"]}, InvalidArgumentError, "'a' twice"),
        ({"models": ["a", ""]}, InvalidArgumentError, "models="),
        ({"models": None}, InvalidArgumentError, "models=None"),
        ({"prompts": PROMPTS[:4]}, InvalidArgumentError, "4 prompts= for rewards of 5"),
        ({"prompts": [*PROMPTS[:4], PROMPTS[1]]}, DataError, "prompt 4 is the same as prompt 1"),
        ({"responses": RESPONSES[:4]}, InvalidArgumentError, "4 rows of responses="),
        ({"responses": [*RESPONSES[:4], ["A"]]}, InvalidArgumentError, r"responses\[4\]"),
        ({"responses": ["Yes"] * 5}, InvalidArgumentError, r"responses\[0\]"),
        ({"responses": [None] * 5}, InvalidArgumentError, r"responses\[0\]"),
        ({"prompts": [*PROMPTS[:4], 5]}, InvalidArgumentError, r"prompts\[4\]"),
    ],
    ids=[
        "dimensions", "text", "models", "twice", "empty", "no-models", "prompts", "duplicate",
        "responses", "ragged", "one-text", "no-texts", "number",
    ],
)  # fmt: skip
def test_shapes_and_names_that_do_not_fit(changes: Any, error: Any, what: str) -> None:
    with pytest.raises(error, match=what):
        full(**changes)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reward_that_is_missing_is_named(value: float) -> None:
    broken = REWARDS.copy()
    broken[3, 1, 1] = value
    with pytest.raises(DataError, match=r"1 rewards .* prompt 3, response 1, model 'b'"):
        full(rewards=broken)


def test_a_model_without_an_opinion_has_no_z_scores() -> None:
    constant = REWARDS.copy()
    constant[..., 0] = 0.1
    with pytest.raises(DataError, match=r"'a' gives every response the reward 0.1"):
        full(rewards=constant)
