"""Choose one persona for all prompts: the one that explains the choices of a development split best.

The "system" persona of "Whose Boat Does it Float?" (arXiv 2501.11549).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.grouped import mean_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, check_confidence
from ..exceptions import DataError, InvalidArgumentError
from ..personas.prompts import prompt_numbers
from ..personas.selection import explains_each
from ..records import Candidate, Persona, Preference, Selector


@dataclass(frozen=True)
class SystemPersona:
    """One persona for all, and how well it explains the choices it was chosen by.

    `score` is its mean over the preferences, with an interval from resampling prompts. It is optimistic,
    since it is the best of several on the same data. `candidates` are all of them, the best first.
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
    """Choose the persona that explains the choices of a development split best.

    Args:
        personas: candidates, such as those of some training rows; equal ones count once. Each is
            scored on each preference.
        preferences: a development split: neither what was trained on nor what is tested on.
        scorer: any object whose `.explains(preferences, personas)` says how well each persona explains
            that `chosen` was preferred, such as a `Verifier`. A preference that it cannot score (NaN) for
            one persona is left out for all.
        confidence: of the score's interval.

    Raises:
        InvalidArgumentError: no candidates or preferences, or something else in their place.
        DataError: no preference was scored for every candidate.
    """
    check_confidence(confidence)
    if not callable(getattr(scorer, "explains", None)):
        raise InvalidArgumentError(f"scorer={scorer!r:.80} has no method explains.")
    candidates = list({str(one): one for one in _all_of("personas", personas, Persona)}.values())
    pairs = _all_of("preferences", preferences, Preference)
    scores = np.stack(
        [explains_each(scorer, pairs, [one] * len(pairs), "scorer") for one in candidates]
    )
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
    values = list(given)
    if not values:
        raise InvalidArgumentError(f"{name}= is empty.")
    for place, value in enumerate(values):
        if not isinstance(value, kind):
            raise InvalidArgumentError(f"{name}[{place}]={value!r:.80} is not a {kind.__name__}.")
    return values
