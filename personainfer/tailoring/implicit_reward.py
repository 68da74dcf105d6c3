"""Compute the implicit reward of a tuned model: which responses it learned to prefer, without a judge.

DPO trains a policy pi, starting at a reference model pi_ref. The policy is then itself a reward model: the
reward of a response is beta * (log pi - log pi_ref), plus a term that depends on the prompt alone (Rafailov
et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..arguments import PositiveNumber, check_argument, read_items, read_numbers
from ..evaluation.grouped import rate_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, check_confidence
from ..exceptions import InvalidArgumentError
from ..personas.prompts import prompt_numbers
from ..preferences.conversations import read_prompt
from ..records import FloatArray, Message, Persona
from ..scoring.interfaces import check_rows

PromptLike = str | Sequence[Message]


class Policy(Protocol):
    """A model that computes log-likelihoods of responses, such as a `Likelihood`."""

    def log_likelihood(
        self,
        prompts: Sequence[PromptLike],
        personas: Sequence[Persona | str | None],
        responses: Sequence[str],
    ) -> FloatArray:
        """Return log p(response | prompt, persona) of each of n rows, in nats, shape (n,); NaN: no score."""


def implicit_rewards(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[PromptLike],
    personas: Sequence[Persona | str | None],
    responses: Sequence[str],
    *,
    beta: float = 0.1,
) -> FloatArray:
    """Compute beta * (log pi(y | x, persona) - log pi_ref(y | x, persona)) for each row.

    The formula is that of Rafailov et al. (arXiv 2305.18290, section 4): x is the prompt, y the response.

    Args:
        policy: the tuned model pi, such as `Likelihood("folder/of/an/adapter")`.
        reference: the model pi_ref from which the tuning started, such as `Likelihood("transformers:local")`.
            Give both models the same options: `dtype`, `persona_in`, and the limits on tokens.
        prompts: n texts, or conversations as sequences of `Message`.
        personas: n personas, as records or text. A persona that is None: the prompt alone.
        responses: n texts.
        beta: the beta of the DPO training, above 0. It scales all rewards, and does not change their order.

    Returns:
        Shape (n,): the rewards, in nats times beta. Infinite for a response that has probability 0 under one
        model; NaN for one that has probability 0 under both, or that one model cannot score.

    Raises:
        InvalidArgumentError: a bad argument, such as one object as both models, before anything is scored; or
            a model did not return n numbers.
        ModelError: a model cannot be loaded or reached, as its `log_likelihood` says.
    """
    for name, model in (("policy", policy), ("reference", reference)):
        if not callable(getattr(model, "log_likelihood", None)):
            raise InvalidArgumentError(
                f"{name}={model!r:.80} has no method log_likelihood.", hint="Pass a Likelihood."
            )
    if policy is reference:
        raise InvalidArgumentError(
            "policy and reference are the same object: every reward would be 0.",
            hint="Pass the model that the policy was tuned from as reference=.",
        )
    beta = check_argument("beta", beta, PositiveNumber)
    rows = check_rows(prompts, personas, responses)
    tuned, before = (
        read_numbers(
            f"the result of {name}.log_likelihood",
            model.log_likelihood(prompts, personas, responses),
            length=len(rows),
            infinite=True,
        )
        for name, model in (("policy", policy), ("reference", reference))
    )
    with np.errstate(invalid="ignore"):  # probability 0 under both models: inf - inf
        rewards: FloatArray = beta * (tuned - before)
    return rewards


def reward_accuracy(
    preferred: ArrayLike,
    other: ArrayLike,
    prompts: Sequence[PromptLike],
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Estimate how often the response that suits the persona has the higher reward.

    Args:
        preferred: shape (n,): the reward of the response that suits the persona, for each pair.
        other: shape (n,): the reward of the pair's other response.
        prompts: n texts or conversations. The bootstrap resamples pairs with the same prompt together.
        confidence: the level of the bootstrap interval, such as 0.95.

    Returns:
        The rate, from 0 to 1, with its interval; `n` counts different prompts. A pair with equal rewards
        counts as a half. A pair with NaN is left out; infinite rewards are compared like others. If no pair
        is left, all is NaN.

    Raises:
        InvalidArgumentError: the arguments differ in length, rewards are not numbers, or `confidence` is not
            between 0 and 1.
        DataError: a prompt is neither text nor a conversation.
    """
    confidence = check_confidence(confidence)
    first = read_numbers("preferred", preferred, infinite=True)
    second = read_numbers("other", other, infinite=True)
    prompts = read_items("prompts", prompts)
    if not first.shape == second.shape == (len(prompts),):
        raise InvalidArgumentError(
            f"rewards of shape {first.shape} and {second.shape}, {len(prompts)} prompts: one of each a"
            " pair is needed."
        )
    known = ~np.isnan(first) & ~np.isnan(second)
    outcomes = np.where(known, np.where(first == second, 0.5, first > second), np.nan)
    numbers = prompt_numbers([read_prompt(prompt) for prompt in prompts])
    return rate_by_group(outcomes, numbers, confidence=confidence)
