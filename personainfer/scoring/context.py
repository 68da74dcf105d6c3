"""Shorten conversations to fit a model's context.

The oldest messages are left out first, each user message with its answer. The response, the persona, system
messages, and all messages from the last user message on are kept. A row that is still too long gets no score.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..exceptions import InvalidArgumentError, ModelError
from ..personas.placement import PersonaPlace, place_persona, prompt_messages
from ..records import FloatArray, Message, Prompt
from .interfaces import Scorer, Tokens, TokenText

Chat = tuple[Message, ...]

_TURN_MARKS = 32  # tokens: more than any chat template puts around a turn


@dataclass(frozen=True, slots=True)
class Cuts:
    """Counts of texts that were cut, or not scored, in all calls so far. A call counts equal texts once.

    Attributes:
        prompts: conversations whose oldest messages were left out.
        responses: responses of which only the first `max_response_tokens` were scored.
        too_long: rows that are too long even without the oldest messages. They have no score (NaN).
        failed: texts at which the scorer failed. Their rows have no score (NaN).
    """

    prompts: int = 0
    responses: int = 0
    too_long: int = 0
    failed: int = 0

    def since(self, earlier: Cuts) -> dict[str, int]:
        """Subtract earlier counts from these. Returns attribute -> difference."""
        return {
            name: count - getattr(earlier, name) for name, count in dataclasses.asdict(self).items()
        }


class ScoredText(NamedTuple):
    """The score of a row, and how much of the row was cut.

    Attributes:
        log_probabilities: log p of each token of the response that was scored, in nats, shape (tokens,).
            None: the row is too long for the model's context or for `max_prompt_tokens`, or the scorer failed
            at it.
        turns_left_out: how many of the conversation's oldest messages were not shown to the model.
        tokens_left_out: how many tokens at the end of the response were not scored.
    """

    log_probabilities: FloatArray | None
    turns_left_out: int = 0
    tokens_left_out: int = 0

    @property
    def sum(self) -> float:
        """The sum of `log_probabilities`, in nats; 0 for an empty response, NaN if they are None."""
        return np.nan if self.log_probabilities is None else float(self.log_probabilities.sum())

    @property
    def mean(self) -> float:
        """The mean of `log_probabilities`, in nats a token; 0 for an empty response, NaN if they are None."""
        found = self.log_probabilities
        return self.sum if found is None or not len(found) else float(found.mean())


class TextToFit(NamedTuple):
    """A row before its prefix is tokenized.

    Attributes:
        prompt: the prompt.
        persona: the persona; None: the prompt alone.
        response_tokens: how many tokens the response has.
        group: rows with the same group and prompt lose the same messages, so that their scores can be
            compared.
    """

    prompt: Prompt
    persona: str | None
    response_tokens: int
    group: Hashable


class FittedText(NamedTuple):
    """The tokens of a row to score, and how much of the row was left out.

    Attributes:
        text: the tokens; None: the row gets no score, as it is too long, or the scorer failed at it.
        turns_left_out: how many of the conversation's oldest messages were left out.
        tokens_left_out: how many tokens at the end of the response were left out.
        is_too_long: whether the row does not fit even without its oldest messages.
    """

    text: TokenText | None
    turns_left_out: int
    tokens_left_out: int
    is_too_long: bool


class FittedPrefix(NamedTuple):
    """The tokens before a response, and how many messages were left out.

    Attributes:
        tokens: the tokens; None: the prefix is too long, or the scorer refused it.
        turns_left_out: how many of the conversation's oldest messages were left out.
        is_too_long: whether the prefix does not fit even without its oldest messages.
    """

    tokens: Tokens | None
    turns_left_out: int
    is_too_long: bool = False


def fit_prefixes(
    scorer: Scorer, texts: Sequence[TextToFit], place: PersonaPlace, max_prompt_tokens: int | None
) -> list[FittedPrefix]:
    """Build the prefix of each row. The oldest messages are left out until it fits.

    Args:
        scorer: tokenizes the prefixes, and knows the model's context.
        texts: the rows.
        place: where the persona stands in the prompt.
        max_prompt_tokens: the most tokens of a prefix; None: what the context leaves after the response.

    Returns:
        A prefix for each row, in their order. Its `tokens` are None if the row does not fit, or the scorer
        refused it.

    Raises:
        ModelError, InvalidArgumentError: the scorer refused all prefixes before any was shortened.
    """
    context = scorer.context() or math.inf
    limits = [context - text.response_tokens for text in texts]
    if max_prompt_tokens is not None:
        limits = [min(limit, max_prompt_tokens) for limit in limits]
    groups: dict[tuple[Hashable, Prompt], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[text.group, text.prompt].append(row)
    whole = {key: prompt_messages(key[1]) for key in groups}
    found: dict[int, FittedPrefix] = {}
    waiting = whole
    while waiting:
        placed = {
            row: place_persona(chat, texts[row].persona, place)
            for key, chat in waiting.items()
            for row in groups[key]
        }
        distinct = list(dict.fromkeys(placed.values()))
        try:
            encoded = scorer.encode_prefixes(distinct)
        except (ModelError, InvalidArgumentError):
            if waiting is whole:
                raise
            encoded = [None] * len(distinct)  # the template refuses chats without their first turns
        tokens = dict(zip(distinct, encoded, strict=True))
        shorter: dict[tuple[Hashable, Prompt], Chat] = {}
        for key, chat in waiting.items():
            lengths = {row: len(tokens[placed[row]] or ()) for row in groups[key]}
            excess = max(length - limits[row] for row, length in lengths.items())
            rest = _without_oldest(scorer, chat, excess) if excess > 0 else None
            if rest is not None:
                shorter[key] = rest
                continue
            left_out = len(whole[key]) - len(chat)
            for row in groups[key]:
                fitted = tokens[placed[row]] if excess <= 0 else None
                found[row] = FittedPrefix(fitted, left_out, excess > 0)
        waiting = shorter
    return [found[row] for row in range(len(texts))]


def _without_oldest(scorer: Scorer, chat: Chat, excess: float) -> Chat | None:
    """Remove as few of the oldest messages as save about `excess` tokens, each user message with its answer.

    Messages from the last user message on stay, and so do system messages.

    Returns:
        The other messages; None: there is none to remove.
    """
    last = max((n for n, turn in enumerate(chat) if turn.role == "user"), default=len(chat) - 1)
    old = [n for n in range(last) if chat[n].role != "system"]
    if not old:
        return None
    sizes = scorer.encode([chat[n].content for n in old])
    gone = 0
    while gone < len(old) and (excess > 0 or chat[old[gone]].role != "user"):
        excess -= len(sizes[gone] or ()) + _TURN_MARKS
        gone += 1
    left_out = set(old[:gone])
    return tuple(turn for n, turn in enumerate(chat) if n not in left_out)
