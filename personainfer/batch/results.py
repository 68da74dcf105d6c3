"""What came back of a batch: good replies for the cache, errors for the rest, and what all took.

It reads what lies in the folder; how that came there, and what a table is made of, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, islice

from pydantic import BaseModel

from ..exceptions import ModelError, ReplyError
from ..llm.client import LLM
from ..llm.rate_limits import Price
from ..llm.replies import read_reply
from ..llm.workers import kept_text
from ..records import Completion, Usage
from .job_folder import PersonaBatch
from .lines import Answer

__all__ = ["BatchOutcome", "brought_in", "no_reply"]

_GROUP = 500  # replies that are written to the cache in one transaction


def brought_in(batch: PersonaBatch, llm: LLM, keys: set[bytes]) -> BatchOutcome:
    """Put the good replies into the cache, a group at a time, and those that were there before."""
    outcome = BatchOutcome(batch.plan().prompt.schema)
    brought = (
        (answer.key, kept_text(reply))
        for answer in batch.answers()
        if answer.key in keys and (reply := outcome.take(answer)) is not None
    )
    before = (known for known in batch.cached_replies() if known[0] in keys)
    good = chain(before, brought)
    while group := list(islice(good, _GROUP)):
        llm.keep(group)
    return outcome


def no_reply(batch: PersonaBatch) -> ReplyError:
    """The error of a row of which the provider's files say nothing."""
    refused = [part.problem for part in batch.parts if part.refused]
    if refused:
        return ReplyError(
            f"the batch brought no reply; the provider refused a part of it: {refused[0]}",
            hint="Call submit_batch again, as before: it submits that part once more.",
        )
    return ReplyError(
        "the batch brought no reply.",
        hint="Collect with ask_missing=True, or submit the same data to another folder: what was"
        " answered is in the cache.",
    )


@dataclass
class BatchOutcome:
    """What the answers of a batch come to: why a request has no usable reply, and what all took."""

    schema: type[BaseModel] | None
    failed: dict[bytes, ModelError] = field(default_factory=dict)
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def take(self, answer: Answer) -> Completion | None:
        """Count one line; returns its reply if that is good, and the first for its request."""
        key, reply = answer.key, answer.completion
        if key in self._seen and key not in self.failed:
            return None
        if key not in self._seen:
            self._seen.add(key)
            self.calls += answer.called
            self.prompt_tokens += reply.prompt_tokens if reply else 0
            self.completion_tokens += reply.completion_tokens if reply else 0
        error = answer.error or self._unreadable(reply)
        if error is not None:
            self.failed[key] = error
            return None
        self.failed.pop(key, None)
        return reply

    def usage(self, price: Price | None, cached: int) -> Usage:
        """What the whole batch took; `cached` replies it did not need to bring."""
        cost = price.cost(self.prompt_tokens, self.completion_tokens) if price else None
        return Usage(
            calls=self.calls,
            cached=cached,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost=cost if self.calls else 0.0,
        )

    def _unreadable(self, reply: Completion | None) -> ReplyError | None:
        try:
            read_reply(reply.text if reply else "", self.schema)
        except ReplyError as error:
            return error
        return None
