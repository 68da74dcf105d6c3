"""Who predicts a choice, given what stands before the prompt: a language model, a judge, or a callable.

All say it as a margin for each choice: above 0 it is predicted, below 0 the other response is, 0 is a
tie. Where the prefix comes from, and what margins are good for, is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..evaluation.verification import Verifier
from ..exceptions import InvalidArgumentError
from ..llm.client import LLM, LLMOptions
from ..records import Message, Preference
from ..scoring.likelihood import Likelihood

__all__ = ["Case", "ChoiceScorer", "Explaining", "Predictor", "predictor_of"]

Floats = npt.NDArray[np.float64]
Chat = tuple[Message, ...]
NOBODY = "Nothing is known about this person."  # what a judge is shown where there is no prefix


class Case(NamedTuple):
    """A choice to predict: the prefix as text ("" for none), and the conversation that begins with it."""

    choice: Preference
    prefix: str
    messages: Chat


@runtime_checkable
class Explaining(Protocol):
    """What can say how well a text about a user explains a choice: `Verifier`, or your own."""

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[str]
    ) -> Iterable[float]:
        """One number a choice: above 0 it is explained."""


Predictor = Callable[[Sequence[Case]], Floats]
Scoring = Callable[[Sequence[Chat], Sequence[str]], npt.ArrayLike]  # conversations, responses -> n
ChoiceScorer = Likelihood | Explaining | LLM | str | Scoring


def predictor_of(scorer: ChoiceScorer, options: LLMOptions | None = None) -> Predictor:
    """The margins by which a scorer predicts choices.

    Args:
        scorer: a `Likelihood`: the mean log-probability a token of the chosen response less that of the
            other one (the metric of FamousPersona, arXiv 2505.13257). A model's name or an `LLM`: a
            judge, who is shown the prefix and both responses in both orders; an object with
            `explains(preferences, texts)`, such as a `Verifier`, is asked the same way. Any callable
            (conversations, responses) -> numbers: its score of the chosen response less that of the
            other one.
        options: of the LLM that a model's name makes.

    Raises:
        InvalidArgumentError: it is none of these, or options are given for what is no model's name.
    """
    if options and not isinstance(scorer, str):
        raise InvalidArgumentError(
            f"{', '.join(f'{name}=' for name in options)} configures a model that is given by name."
        )
    if isinstance(scorer, Likelihood):
        return lambda cases: _score_margins(_mean_log_likelihood(scorer), cases)
    if isinstance(scorer, str | LLM):
        judge = Verifier(scorer, **(options or {}))
        return lambda cases: _explained(judge, cases)
    if isinstance(scorer, Explaining):
        return lambda cases: _explained(scorer, cases)
    if callable(scorer):
        return lambda cases: _score_margins(scorer, cases)
    raise InvalidArgumentError(
        f"scorer={scorer!r:.80} cannot score.",
        hint="Give a Likelihood, a judge, or a callable (conversations, responses) -> numbers.",
    )


def _mean_log_likelihood(model: Likelihood) -> Scoring:
    def scoring(conversations: Sequence[Chat], responses: Sequence[str]) -> Floats:
        nobody = [None] * len(responses)  # the prefix is part of the conversation
        return model.log_likelihood(conversations, nobody, responses, per_token=True)

    return scoring


def _score_margins(scoring: Scoring, cases: Sequence[Case]) -> Floats:
    if not cases:
        return np.zeros(0)
    conversations = [case.messages for case in cases for _ in range(2)]
    responses = [text for case in cases for text in (case.choice.chosen, case.choice.rejected)]
    scores = _numbers(scoring(conversations, responses), len(responses))
    with np.errstate(invalid="ignore"):
        margins: Floats = scores[::2] - scores[1::2]
    if undecided := int(np.isnan(margins).sum()):
        raise InvalidArgumentError(
            f"scorer= gives both responses of {undecided:,} choices the same infinite number."
        )
    return margins


def _explained(judge: Explaining | Verifier, cases: Sequence[Case]) -> Floats:
    if not cases:
        return np.zeros(0)
    shown = [case.prefix or NOBODY for case in cases]
    found = list(judge.explains([case.choice for case in cases], shown))
    if isinstance(judge, Verifier):  # a reply that cannot be used predicts wrongly
        found = [-0.5 if np.isnan(score) else score for score in found]
    return _numbers(found, len(cases))


def _numbers(given: Any, count: int) -> Floats:
    numbers = np.asarray(given, dtype=np.float64)
    if numbers.shape != (count,) or np.isnan(numbers).any():
        raise InvalidArgumentError(
            f"scorer= gives numbers of shape {numbers.shape}, {int(np.isnan(numbers).sum())} of them NaN,"
            f" where {count} are needed."
        )
    return numbers
