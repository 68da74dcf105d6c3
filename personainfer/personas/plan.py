"""Which requests a pair needs, and how their replies become a row of the table.

With several candidates a side, `select` scores them and the best is kept. How a score comes about, and
how requests are sent, is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, isnan
from typing import Any, Protocol

from ..data.readers import SourceRow
from ..data.table import PersonaRow
from ..exceptions import InvalidArgumentError, RequestRejectedError
from ..llm.client import Request
from ..llm.workers import Reply
from ..records import Candidate, Persona, Preference, Side
from .flags import flags_in_text, pair_text
from .prompts import PackedPrompt, PersonaPrompt, pair_message

__all__ = ["Plan", "Selector", "check_candidates", "choose"]

_SIDES: tuple[Side, ...] = ("chosen", "rejected")
_ROWS_A_CHOICE = 64  # rows whose candidates are scored together: scoring is faster in batches

NOT_EXPLAINED = "no persona explains this choice: the best of {count} scores {score:.3f}."
NOT_SCORED = "none of {count} personas could be scored."
_REFUSED = "its personas could not be scored"
_OF_ONE_ROW = (InvalidArgumentError, RequestRejectedError)  # the next one may pass


class Selector(Protocol):
    """What can choose among hypotheses: `Likelihood`, `Verifier`, or an object of your own."""

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[Persona]
    ) -> Iterable[float]:
        """How well each persona explains that `chosen` was preferred; above 0: better than nobody."""


@dataclass(frozen=True)
class Plan:
    """The requests of each pair: one a call and sample, and the way back from the replies.

    `packed` is how several pairs are asked about at once (see `packing`); None: each by itself.
    """

    prompt: PersonaPrompt
    sides: tuple[Side, ...]
    candidates: int = 1
    packed: PackedPrompt | None = None

    @property
    def personas_a_call(self) -> int:
        """How many personas a reply holds."""
        return 2 if self.prompt.protocol == "joint" else 1

    @property
    def settings(self) -> dict[str, Any]:
        """What a table should remember of how it was made."""
        return {
            "protocol": self.prompt.protocol,
            "sides": list(self.sides),
            "candidates": self.candidates,
            "exemplars": len(self.prompt.exemplars),
            "rows_per_call": self.packed.rows if self.packed else 1,
            "prompt_version": "+".join(p.version for p in (self.prompt, self.packed) if p),
        }

    def requests(self, preference: Preference) -> list[Request]:
        """The requests of one pair, sample by sample."""
        if self.prompt.protocol == "joint":
            pairs = [preference]
        else:
            pairs = [preference if s == "chosen" else preference.swapped for s in self.sides]
        turns = [(pair_message(pair),) for pair in pairs]
        prompt = self.prompt
        return [
            Request(turn, prompt.schema, prompt.prefix, sample)
            for sample in range(self.candidates)
            for turn in turns
        ]

    def result(self, index: int, row: SourceRow, replies: Sequence[Reply]) -> PersonaRow:
        """The row that these replies make; of several samples each is kept as a candidate."""
        preference = row.preference
        if preference is None:
            return PersonaRow(index, None, error=row.error, columns=row.columns)
        failed = [reply.error for reply in replies if reply.error is not None]
        error = "; ".join(dict.fromkeys(map(str, failed))) if failed else None
        if self.candidates == 1:
            found = self._personas(preference, replies)
            one, other = found.get("chosen"), found.get("rejected")
            return PersonaRow(index, preference, one, other, error, columns=row.columns)
        step = len(replies) // self.candidates
        samples = [
            self._personas(preference, replies[start : start + step])
            for start in range(0, len(replies), step)
        ]
        # A sample that failed costs a candidate; the row fails when a side has none left.
        sides = {side: tuple(Candidate(p[side]) for p in samples if side in p) for side in _SIDES}
        return PersonaRow(
            index,
            preference,
            chosen_candidates=sides["chosen"],
            rejected_candidates=sides["rejected"],
            error=None if all(sides[side] for side in self.sides) else error or "",
            columns=row.columns,
        )

    def _personas(self, preference: Preference, replies: Sequence[Reply]) -> dict[Side, Persona]:
        personas: dict[Side, Persona] = {}
        if self.prompt.protocol == "joint":
            both = replies[0].value
            if both is not None:
                personas = {"chosen": both.person_1.persona(), "rejected": both.person_2.persona()}
        else:
            for side, reply in zip(self.sides, replies, strict=True):
                if reply.value is not None:
                    personas[side] = reply.value.persona()
        return self._flagged(preference, personas)

    def _flagged(
        self, preference: Preference, personas: Mapping[Side, Persona]
    ) -> dict[Side, Persona]:
        if not personas:
            return {}
        said = list(personas.values())
        flags = flags_in_text(said, pair_text(preference), self.prompt.phrases)
        if len({(one.trait, one.preference) for one in said}) < len(said):
            flags = [(*found, "same_as_other_side") for found in flags]
        return {
            side: one.model_copy(update={"flags": found}) if found else one
            for (side, one), found in zip(personas.items(), flags, strict=True)
        }


def check_candidates(candidates: Any, select: Any, *, later: bool = False) -> None:
    """Raise InvalidArgumentError unless there is something to choose from, and who chooses (`later`)."""
    if not isinstance(candidates, int) or isinstance(candidates, bool) or candidates < 1:
        raise InvalidArgumentError(f"candidates={candidates!r} must be a whole number from 1 up.")
    if select is not None and not callable(getattr(select, "explains", None)):
        raise InvalidArgumentError(
            f"select={select!r:.80} has no method explains(preferences, personas).",
            hint="It scores how well each persona explains its preference.",
        )
    if candidates > 1 and select is None and not later:
        raise InvalidArgumentError(
            f"candidates={candidates} needs select= to choose among them.",
            hint="Give an object with explains(preferences, personas), or leave candidates at 1.",
        )
    if candidates == 1 and select is not None:
        raise InvalidArgumentError(
            "select= has nothing to choose from with candidates=1.", hint="Try candidates=8."
        )


def choose(
    rows: Iterable[PersonaRow], selector: Selector, *, floor: float = 0.0
) -> Iterator[PersonaRow]:
    """Keep of each side the candidate that explains its choice best; the others keep their scores.

    A side whose best score is not above `floor` gets no persona, and the row says so. So does a row that
    the selector or its server refuses, such as for a prompt that the model cannot take; if it refuses the
    first rows, all of them, that is raised.
    """
    rows, worked = iter(rows), False
    while group := list(islice(rows, _ROWS_A_CHOICE)):
        try:
            chosen = list(_choose_group(group, selector, floor))
        except _OF_ONE_ROW as error:
            chosen = [one for row in group for one in _choose_alone(row, selector, floor)]
            refused = [_REFUSED in (row.error or "") for row in chosen if _has_candidates(row)]
            if not worked and all(refused):
                raise error
        worked = worked or any(map(_has_candidates, chosen))
        yield from chosen


def _has_candidates(row: PersonaRow) -> bool:
    return bool(row.chosen_candidates or row.rejected_candidates)


def _choose_alone(row: PersonaRow, selector: Selector, floor: float) -> list[PersonaRow]:
    try:
        return list(_choose_group([row], selector, floor))
    except _OF_ONE_ROW as error:
        said = f"{_REFUSED}: {error}"
        return [replace(row, error=f"{row.error}; {said}" if row.error else said)]


def _choose_group(
    rows: Sequence[PersonaRow], selector: Selector, floor: float
) -> Iterator[PersonaRow]:
    asked: list[tuple[Preference, Persona]] = []
    for row in rows:
        if row.preference is not None:
            asked += [(row.preference, c.persona) for c in row.chosen_candidates]
            asked += [(row.preference.swapped, c.persona) for c in row.rejected_candidates]
    scores = iter(_scores(selector, asked))
    for row in rows:
        chosen = _ranked(row.chosen_candidates, scores)
        rejected = _ranked(row.rejected_candidates, scores)
        errors = [row.error] if row.error else []
        result: dict[str, Any] = {"chosen_candidates": chosen, "rejected_candidates": rejected}
        for side, ranked in (("chosen", chosen), ("rejected", rejected)):
            if ranked and _worth(ranked[0]) > floor:
                result[side] = ranked[0].persona
            elif ranked:
                text = NOT_SCORED if ranked[0].score is None else NOT_EXPLAINED
                text = text.format(count=len(ranked), score=_worth(ranked[0]))
                errors.append(f"{side}: {text}")
        yield replace(row, **result, error="; ".join(errors) or None)


def _scores(selector: Selector, asked: Sequence[tuple[Preference, Persona]]) -> list[float | None]:
    """Distinct candidates are scored once: at low temperature many samples are the same."""
    distinct = {(pair, str(persona)): persona for pair, persona in asked}
    if not distinct:
        return []
    found = selector.explains([pair for pair, _ in distinct], list(distinct.values()))
    try:
        score_of = dict(zip(distinct, map(_number, found), strict=True))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"select={selector!r:.80} gave no list of {len(distinct)} numbers: {error}.",
            hint="explains(preferences, personas) returns one score for each persona.",
        ) from error
    return [score_of[pair, str(persona)] for pair, persona in asked]


def _number(score: Any) -> float | None:
    """None for NaN, which says nothing and could not be compared."""
    number = float(score)
    return None if isnan(number) else number


def _ranked(
    candidates: Sequence[Candidate], scores: Iterator[float | None]
) -> tuple[Candidate, ...]:
    scored = [replace(candidate, score=next(scores)) for candidate in candidates]
    return tuple(sorted(scored, key=lambda candidate: -_worth(candidate)))


def _worth(candidate: Candidate) -> float:
    return -inf if candidate.score is None else candidate.score
