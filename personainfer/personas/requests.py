"""Make the requests about a pair, and the row of their replies.

The joint protocol asks for both personas in one request; the pair's texts decide which response is shown
first. The separate protocol asks for each side in a request of its own, with that side's response first. With
several candidates, each request is sent several times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.source_rows import SourceRow
from ..exceptions import joined
from ..llm.requests import Reply, Request
from ..records import Candidate, Persona, PersonaRow, Preference, Side, unchecked_row
from .flags import flags_in_text, pair_text, want_the_same
from .prompts import PersonaPrompt, chosen_is_first, pair_message

# A row of the input, and whether its chosen response is the first of a joint request.
AskedRow = tuple[SourceRow, bool]

_SIDES: tuple[Side, ...] = ("chosen", "rejected")


@dataclass(frozen=True)
class Plan:
    """How personas are asked for.

    Attributes:
        prompt: the messages that all pairs share, and the protocol. "joint" needs both sides.
        sides: whose personas are inferred: ("chosen", "rejected"), or one of them.
        candidates: how many personas are sampled for each side.
    """

    prompt: PersonaPrompt
    sides: tuple[Side, ...]
    candidates: int = 1

    @property
    def personas_a_call(self) -> int:
        """How many personas each reply holds: 2 in the joint protocol, else 1."""
        return 2 if self.prompt.protocol == "joint" else 1

    @property
    def settings(self) -> dict[str, Any]:
        """What a table keeps of how its personas were asked for, as values of JSON."""
        return {
            "protocol": self.prompt.protocol,
            "sides": list(self.sides),
            "candidates": self.candidates,
            "exemplars": len(self.prompt.exemplars),
            "rows_per_call": 1,
            "prompt_version": self.prompt.version,
        }

    def asked(self, rows: Iterable[SourceRow]) -> Iterator[tuple[AskedRow, list[Request]]]:
        """Yield each row with its requests, of which a row without a pair has none."""
        is_joint = self.prompt.protocol == "joint"
        for row in rows:
            if row.preference is None:
                yield (row, False), []
            else:
                first = is_joint and chosen_is_first(row.preference)
                yield (row, first), self.requests(row.preference, first)

    def requests(self, preference: Preference, chosen_first: bool) -> list[Request]:
        """Return the requests about one pair: all of the first sample, then all of the second, and so on.

        A sample is one request in the joint protocol, and one for each of `sides`, in their order, in the
        separate protocol.

        Args:
            preference: the pair.
            chosen_first: the result of `chosen_is_first` for it, which counts in the joint protocol.
        """
        prompt = self.prompt
        is_joint = prompt.protocol == "joint"
        orders = [chosen_first] if is_joint else [side == "chosen" for side in self.sides]
        requests = [
            Request(
                (pair_message(preference, chosen_first=order),),
                prompt.schema,
                prompt.prefix,
                doubt=prompt.doubt,
            )
            for order in orders
        ]
        if self.candidates == 1:
            return requests
        samples = range(self.candidates)
        return [replace(request, sample=sample) for sample in samples for request in requests]

    def result(self, index: int, asked: AskedRow, replies: Sequence[Reply]) -> PersonaRow:
        """Return the row that replies give, with flags for doubtful personas.

        Args:
            index: the place of the row in the input.
            asked: the input row, as it was asked about.
            replies: the replies to `requests`, in that order; none if the row has no pair.

        Returns:
            If one candidate a side was asked for, the row has the personas, and the errors of replies that
            failed. If several were, the row has the candidates of each side, of which none is selected yet.
            Then a failed reply is one candidate less, and the row has an error only if a side has no
            candidate.
        """
        row, first = asked
        preference = row.preference
        if preference is None:
            return PersonaRow(index, None, error=row.error, columns=row.columns)
        failed = [reply.error for reply in replies if reply.error is not None]
        error = joined(map(str, failed)) if failed else None
        if self.candidates == 1:
            found = self._personas(preference, replies, first)
            one, other = found.get("chosen"), found.get("rejected")
            # The constructor refuses a conversation without a turn, which only spoilt files have.
            made = unchecked_row if preference.prompt else PersonaRow
            return made(index, preference, one, other, error, (), (), row.columns)
        step = len(replies) // self.candidates
        samples = [
            self._personas(preference, replies[start : start + step], first)
            for start in range(0, len(replies), step)
        ]
        # A failed sample is one candidate less; the row fails if a side has no candidate.
        sides = {side: tuple(Candidate(p[side]) for p in samples if side in p) for side in _SIDES}
        return PersonaRow(
            index,
            preference,
            chosen_candidates=sides["chosen"],
            rejected_candidates=sides["rejected"],
            error=None if all(sides[side] for side in self.sides) else error or "",
            columns=row.columns,
        )

    def _personas(
        self, preference: Preference, replies: Sequence[Reply], chosen_first: bool
    ) -> dict[Side, Persona]:
        personas: dict[Side, Persona] = {}
        if self.prompt.protocol == "joint":
            both = replies[0].value
            if both is not None:
                one, other = both.person_1.persona(), both.person_2.persona()
                if not chosen_first:
                    one, other = other, one
                personas = {"chosen": one, "rejected": other}
        else:
            for side, reply in zip(self.sides, replies, strict=True):
                if reply.value is not None:
                    personas[side] = reply.value.persona()
        return self._flagged(preference, personas)

    def _flagged(
        self, preference: Preference, personas: dict[Side, Persona]
    ) -> dict[Side, Persona]:
        if not personas:
            return personas
        said = list(personas.values())
        flags = flags_in_text(said, pair_text(preference), self.prompt.phrases)
        if want_the_same(said):
            flags = [(*found, "same_as_other_side") for found in flags]
        if not any(flags):
            return personas
        return {
            side: one.model_copy(update={"flags": found}) if found else one
            for (side, one), found in zip(personas.items(), flags, strict=True)
        }
