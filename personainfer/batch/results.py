"""Read the results of a batch: put good replies into the cache, turn the others into errors, count tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

from pydantic import BaseModel

from ..data.source_rows import SourceRow
from ..exceptions import ModelError, ReplyError
from ..llm.client import LLM
from ..llm.pricing import Tally, cost_is_unknown
from ..llm.replies import read_reply
from ..llm.requests import Job, Reply, Run, text_to_cache
from ..llm.transports import Transport
from ..local.cache import ReplyCache
from ..personas.infer import checked
from ..records import Completion
from .job_folder import PersonaBatch, read_answers
from .lines import Answer

_GROUP = 500  # replies that are written to the cache in one transaction


def bring_in(
    batch: PersonaBatch,
    llm: LLM,
    keys: Mapping[bytes, int],
    downloaded: Collection[Path] = (),
    own_cache: ReplyCache | None = None,
) -> BatchOutcome:
    """Put the replies of a batch into the cache of its model.

    Replies that were in the cache when the batch was submitted were copied to its folder. They are written
    back: the cache may have lost them since.

    Args:
        batch: whose answers are downloaded.
        llm: its model, with the cache.
        keys: the keys of all requests, each with the most tokens that its prompt can have: an answer that
            does not tell what it took is charged for so many. Answers with other keys are ignored.
        downloaded: the files whose replies are written to `own_cache`, too.
        own_cache: the cache in the folder of the batch, for who collects it again.

    Returns:
        The counts, and the requests that have no reply.
    """
    tally = Tally(llm.batch_price, cached=batch.cached)
    most = llm.most_tokens()
    outcome = BatchOutcome(batch.plan().prompt.schema, llm.transport, tally, keys, most)
    before = (known for known in batch.cached_replies() if known[0] in keys)
    _write(before, llm.model, llm.cache)
    for path in batch.answer_files():
        with path.open("rb") as file:
            replies = (
                (answer.key, text_to_cache(reply))
                for answer in read_answers(file, llm.transport.secrets)
                if answer.key in keys and (reply := outcome.take(answer)) is not None
            )
            _write(replies, llm.model, llm.cache, own_cache if path in downloaded else None)
    return outcome


def _write(replies: Iterator[tuple[bytes, str]], model: str, *caches: ReplyCache | None) -> None:
    while group := list(islice(replies, _GROUP)):
        for cache in caches:
            if cache is not None:
                cache.set_many(group, model=model)


def run_without_calls(batch: PersonaBatch, llm: LLM, outcome: BatchOutcome) -> Run[SourceRow]:
    """A run over the rows of a batch whose replies are in the cache, or have an error."""
    return Run(
        llm.jobs(batch.plan().asked(checked(batch.source()))),
        _NotAnswered(outcome.failed, _no_reply(batch)),
        cache=llm.cache,
        tally=Tally(llm.price),
        model=llm.model,
        width=llm.max_concurrency,
        ended=llm.add_usage,
    )


class _NotAnswered:
    """Stands in for workers: every job that is not in the cache gets the batch's error."""

    def __init__(self, failed: dict[bytes, ModelError], missing: ModelError) -> None:
        self.done: SimpleQueue[None] = SimpleQueue()
        self.fatal: BaseException | None = None
        self.cancelled = False
        self._failed = failed
        self._missing = missing

    @property
    def waiting(self) -> int:
        return 0

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.reply = Reply(error=self._failed.get(job.key, self._missing))

    def close(self) -> None:
        """Nothing runs."""


def _no_reply(batch: PersonaBatch) -> ReplyError:
    """The error of a request that is missing in the provider's files."""
    refused = [part.problem for part in batch.parts if part.refused]
    if refused:
        return ReplyError(
            f"the batch brought no reply; the provider refused a part of it: {refused[0]}",
            hint="Call submit_batch again with the same arguments: it submits that part once more.",
        )
    return ReplyError(
        "the batch brought no reply.",
        hint="Collect with ask_missing=True, or submit the same data to another folder: what was"
        " answered is in the cache.",
    )


@dataclass
class BatchOutcome:
    """Counts the answers of a batch: why requests have no usable reply, and how many tokens were used."""

    schema: type[BaseModel] | None
    sender: Transport
    tally: Tally
    most_prompt_tokens: Mapping[bytes, int]  # by the key of a request
    max_tokens: int
    failed: dict[bytes, ModelError] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)

    def take(self, answer: Answer) -> Completion | None:
        """Count one answer. Returns its reply if it is the first good reply to its request."""
        key, reply = answer.key, answer.completion
        if key in self._seen and key not in self.failed:
            return None
        if key not in self._seen:
            self._seen.add(key)
            self.tally.calls += answer.called
            spent = self.tally.add(reply) if reply else 0.0
            if answer.called and cost_is_unknown(reply, answer.error):
                self.tally.assume(self.most_prompt_tokens[key], self.max_tokens, spent)
        error = answer.error or self._unreadable(reply)
        if error is not None:
            self.failed[key] = error
            return None
        self.failed.pop(key, None)
        return reply

    def _unreadable(self, reply: Completion | None) -> ReplyError | None:
        try:
            read_reply(reply.text if reply else "", self.schema, self.sender)
        except ReplyError as error:
            return error
        return None
