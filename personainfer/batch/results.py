"""Read the results of a batch: write good replies to the cache, keep the errors of others, count tokens."""

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
from ..llm.requests import Form, Job, Reply, Request, Run, stored_texts, text_to_cache
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
    """Write the good replies of a batch to the cache of its LLM, and count all answers.

    Replies that were cached when the batch was submitted are in its folder. They are written to the cache
    again, because the cache may have lost them.

    Args:
        batch: a batch whose answers were downloaded.
        llm: the LLM of the batch. Its `cache` gets the replies.
        keys: the key of each request -> the most tokens that its prompt can have. If an answer does not say
            how many tokens it took, this number is counted for its prompt, and the most that a reply may have
            for its reply. Answers with other keys are ignored.
        downloaded: the files of answers whose replies are also written to `own_cache`.
        own_cache: the user's cache, if `llm.cache` is the one in the folder; None: write to `llm.cache` only.

    Returns:
        The calls and tokens of all answers in `tally`, and in `failed` the error of each request that has
        answers but no good reply. A request without any answer is not in `failed`.

    Raises:
        CacheError: a cache cannot be written.
        OSError: a file of answers cannot be read.
    """
    tally = Tally(llm.batch_price, cached=batch.cached)
    most = llm.most_tokens()
    schema = batch.plan().prompt.schema
    outcome = BatchOutcome(schema, llm.transport, tally, keys, most)
    form = Form(llm.transport, Request([], schema), {})
    before = (known for known in batch.cached_replies() if known[0] in keys)
    _write(before, form, llm.model, llm.cache)
    replied = 0
    for path in batch.answer_files():
        with path.open("rb") as file:
            replies = (
                (answer.key, text_to_cache(reply))
                for answer in read_answers(file, llm.transport.secrets)
                if answer.key in keys and (reply := outcome.take(answer)) is not None
            )
            _write(replies, form, llm.model, llm.cache, own_cache if path in downloaded else None)
        if path.name.startswith("output"):  # these come first
            replied = outcome.seen
    told = sum(part.completed or 0 for part in batch.parts)
    outcome.count_lost(told - replied, {key for key, _ in batch.cached_replies()})
    return outcome


def _write(
    replies: Iterator[tuple[bytes, str]], form: Form, model: str, *caches: ReplyCache | None
) -> None:
    """Write replies, as (key, text), to each cache that is not None, in transactions of `_GROUP` replies.

    A reply to the same bytes that another form reads, and `form` does not, stays where it is.
    """
    while group := list(islice(replies, _GROUP)):
        for cache in caches:
            if cache is not None:
                jobs = [Job(key, form, b"") for key, _ in group]
                stored_texts(jobs, cache)  # finds the place of each
                texts = [text for _, text in group]
                placed = zip((job.cache_key for job in jobs), texts, strict=True)
                cache.set_many(list(placed), model=model)


def run_without_calls(batch: PersonaBatch, llm: LLM, outcome: BatchOutcome) -> Run[SourceRow]:
    """Return a run over the rows of a batch that calls no model.

    A request whose reply is not in the LLM's cache gets the error in `outcome.failed`, or, if there is none,
    the error that the batch brought no reply. When the run ends, its usage is added to the LLM's.
    """
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
    """Stands in for workers, and sends nothing: every job that is not in the cache gets an error at once.

    Args:
        failed: key of a request -> its error.
        missing: the error of a request that is not in `failed`.
    """

    def __init__(self, failed: dict[bytes, ModelError], missing: ModelError) -> None:
        self.done: SimpleQueue[None] = SimpleQueue()
        self.fatal: BaseException | None = None
        self.cancelled = False
        self._failed = failed
        self._missing = missing

    @property
    def waiting(self) -> int:
        """How many jobs wait to be sent: none."""
        return 0

    def submit(self, jobs: Sequence[Job]) -> None:
        """Give each job its error as the reply, at once."""
        for job in jobs:
            job.reply = Reply(error=self._failed.get(job.key, self._missing))

    def close(self) -> None:
        """Do nothing: no call is in flight."""


def _no_reply(batch: PersonaBatch) -> ReplyError:
    """Return the error for requests that have no line in the provider's files."""
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
    """Counts the answers of a batch: why requests have no usable reply, and how many tokens were used.

    Attributes:
        schema: the form that a reply must have; None: any text will do.
        sender: the transport, whose secrets no error quotes.
        tally: calls, tokens and cost so far.
        most_prompt_tokens: key of a request -> the most tokens that its prompt can have.
        max_tokens: the most tokens that a reply can have.
        failed: key of a request -> the last error of a request that has no good reply.
    """

    schema: type[BaseModel] | None
    sender: Transport
    tally: Tally
    most_prompt_tokens: Mapping[bytes, int]  # by the key of a request
    max_tokens: int
    failed: dict[bytes, ModelError] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)

    def take(self, answer: Answer) -> Completion | None:
        """Count one answer, whose key must be in `most_prompt_tokens`.

        Only the first answer to a request counts as a call, and in tokens and cost. A good reply removes an
        error of an earlier answer from `failed`.

        Returns:
            The reply, if it is the first good one to its request; else None.
        """
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

    @property
    def seen(self) -> int:
        """How many requests have an answer so far."""
        return len(self._seen)

    def count_lost(self, lost: int, cached: Collection[bytes]) -> None:
        """Count replies that the provider told of, and that are in no file, at the most that they can cost.

        Args:
            lost: how many there are; 0 or less: none.
            cached: the keys of requests that were in no part of the batch.
        """
        unseen = self.most_prompt_tokens.keys() - self._seen - set(cached)
        most = sorted((self.most_prompt_tokens[key] for key in unseen), reverse=True)
        for prompt_tokens in most[: max(0, lost)]:
            self.tally.calls += 1
            self.tally.assume(prompt_tokens, self.max_tokens, 0.0)

    def _unreadable(self, reply: Completion | None) -> ReplyError | None:
        """Return the error that a reply is not in the form of `schema`; None if it is. None counts as ""."""
        try:
            read_reply(reply.text if reply else "", self.schema, self.sender)
        except ReplyError as error:
            return error
        return None
