"""Choose one persona for all prompts: the one that best explains the choices of a development split.

"Whose Boat Does it Float?" (arXiv 2501.11549) calls it the system persona.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import read_items
from ..evaluation.grouped import mean_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, check_confidence
from ..exceptions import DataError, InvalidArgumentError
from ..personas.prompts import prompt_numbers
from ..personas.selection import can_explain, check_budget, explains_each
from ..records import Candidate, Persona, Preference, Selector


@dataclass(frozen=True)
class SystemPersona:
    """The result of `choose_system_persona`.

    Attributes:
        persona: the candidate with the highest mean score.
        score: the mean score of this persona over the preferences that have a score for every candidate, in
            the unit of the scorer, with an interval from resampling prompts; `n` counts different prompts.
            The score is optimistic: the same data chose the persona.
        candidates: all candidates with their mean scores over the same preferences, the best first.
    """

    persona: Persona
    score: Estimate
    candidates: tuple[Candidate, ...]


def choose_system_persona(
    personas: Iterable[Persona],
    preferences: Iterable[Preference],
    scorer: Selector,
    *,
    confidence: float = CONFIDENCE,
) -> SystemPersona:
    """Choose the persona that best explains the choices of a development split.

    Args:
        personas: the candidates, such as the personas of some training rows; those with equal sentences count
            once. Each is scored on each preference, in calls that block.
        preferences: a development split: data for neither training nor testing.
        scorer: any object whose `.explains(preferences, personas)` returns how well each persona explains
            that `chosen` was preferred, such as a `Verifier`. If it cannot score a preference (NaN, or an
            infinite score) for one persona, that preference is left out for all.
        confidence: the level of the score's interval, such as 0.95.

    Returns:
        The persona, its score, and all candidates with their scores.

    Raises:
        InvalidArgumentError: `personas` or `preferences` is empty or holds something else, `scorer` has no
            method `explains`, or `confidence` is not between 0 and 1.
        DataError: no preference was scored for every candidate.
        InvalidArgumentError, ModelError: for one candidate the scorer failed for all preferences, or for
            three in succession for a reason other than their content; or the budget is spent.
    """
    confidence = check_confidence(confidence)
    if not can_explain(scorer):
        raise InvalidArgumentError(f"scorer={scorer!r:.80} has no method explains.")
    candidates = list({str(one): one for one in _all_of("personas", personas, Persona)}.values())
    pairs = _all_of("preferences", preferences, Preference)
    scores = np.stack(
        [explains_each(scorer, pairs, [one] * len(pairs), "scorer") for one in candidates]
    )
    if np.isnan(scores).any():
        check_budget(scorer)
    known = np.isfinite(scores).all(axis=0)
    if not known.any():
        raise DataError("no preference has a score for every candidate.")
    means = scores[:, known].mean(axis=1)
    order = np.argsort(-means, kind="stable")
    groups = np.array(prompt_numbers([pair.prompt for pair in pairs]))
    best = order[0]
    return SystemPersona(
        persona=candidates[best],
        score=mean_by_group(scores[best, known], groups[known], confidence=confidence),
        candidates=tuple(Candidate(candidates[n], float(means[n])) for n in order),
    )


def _all_of(name: str, given: Iterable[Any], kind: type) -> list[Any]:
    values = read_items(name, given)
    if not values:
        raise InvalidArgumentError(f"{name}= is empty.")
    for place, value in enumerate(values):
        if not isinstance(value, kind):
            raise InvalidArgumentError(f"{name}[{place}]={value!r:.80} is not a {kind.__name__}.")
    return values
