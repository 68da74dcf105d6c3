"""Several pairs in one request: what all pairs share is then paid for once a group, not once a row.

A packed request is a saving and never the last word. What its reply leaves open (an id that is missing
or came twice, an item that is not in the asked form, a call that failed) is asked again pair by pair.
How pairs and ids are shown is known by `prompts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..data.readers import SourceRow
from ..exceptions import ModelError
from ..llm.client import LLM, Request
from ..llm.runs import Run
from ..llm.workers import Reply
from .plan import Plan
from .prompts import PackedPrompt, pair_ids

__all__ = ["Group", "PackedRun", "asked", "groups", "start"]

# The most bytes that the pairs of a packed request may have: about 3,000 tokens. With the instructions,
# and 500 tokens a row for the reply, 8 rows then fit where a model takes 8,192 tokens.
GROUP_BYTES = 12_000


class Asked(NamedTuple):
    """A row, and the requests that would ask about it alone: one a sample, none for a bad row."""

    row: SourceRow
    requests: Sequence[Request]

    @property
    def text(self) -> str:
        """The pair as the model is shown it."""
        return self.requests[0].messages[0].content if self.requests else ""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that follow each other, and what asks about those that have a pair."""

    members: Sequence[Asked]

    def requests(self, packed: PackedPrompt | None, llm: LLM) -> list[Request]:
        """The packed requests of the group, one a sample; none where its rows are asked one by one.

        That is so for a single pair, and where every row has been answered alone before: by an
        earlier run that did not pack, or since the packed call failed.
        """
        ids = self.ids() if packed is not None and len(self.members) > 1 else {}
        if packed is None or len(ids) < 2 or not llm.missing(self.alone):
            return []
        turn = (packed.message(ids),)
        return [
            Request(turn, packed.schema, packed.prefix, sample, parts=len(ids))
            for sample in sorted({request.sample for request in self.alone})
        ]

    @property
    def alone(self) -> list[Request]:
        """What would ask about its rows one by one."""
        return [request for member in self.members for request in member.requests]

    def ids(self) -> dict[str, str]:
        """The id of each distinct pair in this group, by its text."""
        return pair_ids(member.text for member in self.members if member.requests)

    def answers(self, replies: Sequence[Reply]) -> Iterator[tuple[Asked, list[Reply | None]]]:
        """For each row the part of each reply that is about it; None where that is to be asked again."""
        ids = self.ids() if replies else {}
        parts = [_parts(reply, ids) for reply in replies]
        for member in self.members:
            name = ids.get(member.text, "")
            found = [part.get(name) for part in parts] or [None] * len(member.requests)
            yield member, found if member.requests else []


def _parts(reply: Reply, ids: Mapping[str, str]) -> dict[str, Reply]:
    """A reply taken apart by the ids in it. An error that others would meet too is that of each row."""
    if reply.error is None:
        return {pair.id: Reply(pair, cached=reply.cached) for pair in reply.value.pairs}
    return dict.fromkeys(ids.values(), reply) if reply.error.given_up else {}


def groups(rows: Iterable[SourceRow], plan: Plan) -> Iterator[Group]:
    """The rows, so many together as a request may ask about, or fewer where their pairs are long.

    This depends on nothing but the rows and their order, so that the same call packs them alike and
    finds its replies in the cache.
    """
    most = plan.packed.rows if plan.packed else 1
    members: list[Asked] = []
    size = 0
    try:
        for member in asked(rows, plan):
            more = len(member.text.encode())
            if members and size + more > GROUP_BYTES:
                yield Group(members)
                members, size = [], 0
            members.append(member)
            size += more
            if len(members) == most:
                yield Group(members)
                members, size = [], 0
    except Exception:  # the source failed: first what it gave before
        if members:
            yield Group(members)
        raise
    if members:
        yield Group(members)


class PackedRun(Iterator[tuple[SourceRow, list[Reply]]]):
    """Like a `Run` over the rows: in order, in bounded memory, and closing it leaves nothing running.

    It is two of them: one over groups with their packed requests, and after it one over the rows, with
    single requests for what the first left open.
    """

    def __init__(self, llm: LLM, rows: Iterable[SourceRow], plan: Plan) -> None:
        found = groups(rows, plan)
        packed = llm.run((group, group.requests(plan.packed, llm)) for group in found)
        self._run = llm.run(_left_open(packed), after=packed)
        self.tally = self._run.tally

    def __next__(self) -> tuple[SourceRow, list[Reply]]:
        (row, answers), replies = next(self._run)
        alone = iter(replies)
        return row, [next(alone) if answer is None else answer for answer in answers]

    def close(self) -> None:
        """Cancel what is in flight and wait until it has stopped."""
        self._run.close()

    def cancel(self) -> None:
        """From any thread: make the iteration stop with an error at its next step."""
        self._run.cancel()


Answered = tuple[SourceRow, list[Reply | None]]


def _left_open(packed: Run[Group]) -> Iterator[tuple[Answered, list[Request]]]:
    """Each row with its answers, and the requests for those that it lacks."""
    for group, replies in packed:
        for (row, requests), answers in group.answers(replies):
            alone = [r for r, answer in zip(requests, answers, strict=True) if answer is None]
            yield (row, answers), alone


def start(
    llm: LLM,
    rows: Iterable[SourceRow],
    plan: Plan,
    absent: Callable[[bytes], ModelError] | None = None,
) -> Run[SourceRow] | PackedRun:
    """Begin to ask about the rows, packed or not, as the plan says; for `absent` see `LLM.run`."""
    if plan.packed is not None:
        return PackedRun(llm, rows, plan)
    return llm.run(asked(rows, plan), absent=absent)


def asked(rows: Iterable[SourceRow], plan: Plan) -> Iterator[Asked]:
    """Each row with its requests: what a run takes."""
    return (Asked(row, plan.requests(row.preference) if row.preference else []) for row in rows)
