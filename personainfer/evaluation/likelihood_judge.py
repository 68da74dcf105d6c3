"""A judge of responses that asks nobody: it compares their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ..progress import progress_bar
from ..records import FloatArray, Persona, Prompt
from ..scoring.likelihood import Likelihood

T = TypeVar("T")
_Text = tuple[Prompt, str | None, str]  # a prompt, for whom, and a response

_PART = 32  # texts that are scored before the bar moves


class LikelihoodJudge:
    """Prefers the response with the higher log p a token; with a persona, the one that it lifts more.

    `read` scores all texts beforehand, each once: a judge is asked about the same ones several times.
    Responses that are too long for the model have no score, and so no verdict (None).
    """

    __name__ = "likelihood"

    def __init__(self, scorer: Likelihood, progress: bool | None) -> None:
        self._scorer, self._progress = scorer, progress
        self._scores: dict[_Text, float] = {}

    def read(
        self,
        prompts: Iterable[Prompt],
        personas: Iterable[Persona | str | None],
        *responses: Iterable[str | None],
    ) -> None:
        """Score the responses to each prompt, with its persona and without."""
        rows = zip(prompts, personas, *responses, strict=True)
        texts: dict[_Text, None] = {
            (prompt, who, said): None
            for prompt, persona, *both in rows
            for who in (None, None if persona is None else str(persona))
            for said in both
            if said is not None
        }
        new = [text for text in texts if text not in self._scores]
        scores = in_parts(new, self._progress, "text", self._log_likelihood)
        self._scores.update(zip(new, scores, strict=True))

    def _log_likelihood(self, texts: Sequence[_Text]) -> FloatArray:
        prompts, personas, responses = zip(*texts, strict=True)
        return self._scorer.log_likelihood(prompts, personas, responses, per_token=True)

    def __call__(
        self, prompt: Prompt, first: str, second: str, persona: Persona | str | None
    ) -> int | str | None:
        self.read([prompt], [persona], [first], [second])
        one, two = (self._worth(prompt, said, persona) for said in (first, second))
        if math.isnan(one - two):
            return None
        return "neither" if one == two else 1 if one > two else 2

    def _worth(self, prompt: Prompt, said: str, persona: Persona | str | None) -> float:
        alone = self._scores[prompt, None, said]
        return alone if persona is None else self._scores[prompt, str(persona), said] - alone


def in_parts(
    items: Sequence[T], progress: bool | None, unit: str, score: Callable[[Sequence[T]], FloatArray]
) -> list[float]:
    """The scores of all items, a few at a time under a bar."""
    scores: list[float] = []
    with progress_bar(progress, total=len(items), unit=unit) as bar:
        for start in range(0, len(items), _PART):
            part = items[start : start + _PART]
            scores.extend(score(part))
            bar.update(len(part))
    return scores
