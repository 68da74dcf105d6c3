"""The implicit reward of a tuned model: which responses it learned to prefer, without a judge.

A policy trained on preferences from a reference (DPO) is, up to a term that depends only on the prompt, the
reward model beta * (log pi - log pi_ref) (Rafailov et al. 2023, "Direct Preference Optimization",
arXiv 2305.18290, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..arguments import PositiveNumber, check_argument, read_numbers
from ..evaluation.grouped import rate_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, check_confidence
from ..exceptions import InvalidArgumentError
from ..personas.prompts import prompt_numbers
from ..preferences.conversations import read_prompt
from ..records import FloatArray, Message, Persona
from ..scoring.interfaces import check_rows

PromptLike = str | Sequence[Message]


class Policy(Protocol):
    """A model with log-likelihoods, such as a `Likelihood`."""

    def log_likelihood(
        self,
        prompts: Sequence[PromptLike],
        personas: Sequence[Persona | str | None],
        responses: Sequence[str],
    ) -> FloatArray:
        """log p(response | prompt, persona) of each row, in nats."""


def implicit_rewards(
    policy: Policy,
    reference: Policy,
    prompts: Sequence[PromptLike],
    personas: Sequence[Persona | str | None],
    responses: Sequence[str],
    *,
    beta: float = 0.1,
) -> FloatArray:
    """beta * (log pi(y | x, persona) - log pi_ref(y | x, persona)) of each row (Rafailov et al., section 4).

    Args:
        policy: the tuned model, such as `Likelihood("folder/of/an/adapter")`.
        reference: the model that it was tuned from, such as `Likelihood("transformers:local")`. Both
            should be read in the same way: the same type, placement of the persona and limits.
        prompts: n texts, or conversations.
        personas: n personas, as records or text; None: the prompt alone.
        responses: n texts.
        beta: the value that the policy was trained with. It scales the rewards and changes no order.

    Returns:
        n rewards, in nats times beta; NaN for a row that a model cannot score, or that both find impossible.

    Raises:
        InvalidArgumentError: a bad argument, before anything is scored.
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
    check_argument("beta", beta, PositiveNumber)
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
    with np.errstate(invalid="ignore"):  # impossible by both: inf - inf
        rewards: FloatArray = beta * (tuned - before)
    return rewards


def reward_accuracy(
    preferred: ArrayLike,
    other: ArrayLike,
    prompts: Sequence[PromptLike],
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """How often the response that suits the persona has the higher reward; equal ones count a half.

    Args:
        preferred, other: shape (n,): rewards of the two responses of a pair; NaN leaves it out, infinite
            ones are compared.
        prompts: n: pairs with the same prompt are resampled together.
        confidence: of the bootstrap interval.

    Raises:
        InvalidArgumentError: the arguments differ in length.
        DataError: a prompt is neither text nor a conversation.
    """
    check_confidence(confidence)
    first = read_numbers("preferred", preferred, infinite=True)
    second = read_numbers("other", other, infinite=True)
    if isinstance(prompts, str):
        raise InvalidArgumentError("prompts= is a single str.", hint="Pass a list: [it].")
    if not first.shape == second.shape == (len(prompts),):
        raise InvalidArgumentError(
            f"rewards of shape {first.shape} and {second.shape}, {len(prompts)} prompts: one of each a"
            " pair is needed."
        )
    known = ~np.isnan(first) & ~np.isnan(second)
    outcomes = np.where(known, np.where(first == second, 0.5, first > second), np.nan)
    numbers = prompt_numbers([read_prompt(prompt) for prompt in prompts])
    return rate_by_group(outcomes, numbers, confidence=confidence)
