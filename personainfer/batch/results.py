"""Read the results of a batch: write good replies to the cache, keep the errors of others, count tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from pydantic import BaseModel

from ..exceptions import ModelError, ReplyError
from ..llm.client import LLM
from ..llm.pricing import Tally, cost_is_unknown
from ..llm.replies import read_reply
from ..llm.requests import Form, Job, Reply, Request, Run, stored_texts, text_to_cache
from ..llm.transports import Transport
from ..local.cache import ReplyCache
from ..local.database_checks import BUSY_TIMEOUT
from ..personas.infer import checked
from ..personas.requests import AskedRow
from ..records import Completion
from .job_folder import PersonaBatch
from .lines import Answer, read_answers

_GROUP = 500  # replies that are written to the cache in one transaction


def bring_in(batch: PersonaBatch, llm: LLM, keys: Mapping[bytes, int]) -> BatchOutcome:
    """Write the good replies of a batch to the cache of its LLM, and count all answers.

    Replies that were cached when the batch was submitted are in its folder. Those that the cache has lost are
    written again.

    Args:
        batch: a batch whose answers were downloaded.
        llm: the LLM of the batch. Its `cache` gets the replies.
        keys: the key of each request -> the most tokens that its prompt can have. If an answer does not say
            how many tokens it took, this number is counted for its prompt, and the most that a reply may have
            for its reply. Answers with other keys are ignored.

    Returns:
        The calls and tokens of all answers in `tally`, and in `failed` the error of each request that has
        answers but no good reply. A request without any answer is not in `failed`.

    Raises:
        CacheError: a cache cannot be written.
        OSError: a file of answers cannot be read.
    """
    # An LLM that has not asked yet does not know what calls take; the one that submitted did.
    most = max([llm.most_tokens(), *(part.most_tokens for part in batch.parts)])
    added = max([llm.account.added, *(part.most_added for part in batch.parts)])
    tally = Tally(llm.batch_price, cached=batch.cached)
    outcome = BatchOutcome(batch.plan().prompt.schema, llm.transport, tally, keys, most, added)
    assert llm.cache is not None  # see `llm_of`
    form = _form(batch, llm)
    before = (known for known in batch.cached_replies() if known[0] in keys)
    _write(before, form, llm.model, llm.cache, replace=False)
    replied = 0
    for path in batch.answer_files():
        with path.open("rb") as file:
            _write(_good_replies(file, outcome), form, llm.model, llm.cache)
        if path.name.startswith("output"):  # before the errors, which may have cost, too
            replied = outcome.charged
    told = sum(part.completed or 0 for part in batch.parts)
    outcome.count_lost(told - replied, {key for key, _ in batch.cached_replies()})
    return outcome


def keep_replies(
    batch: PersonaBatch,
    llm: LLM,
    keys: Collection[bytes],
    cache: ReplyCache,
    file: IO[bytes],
) -> None:
    """Write the good replies of a file that was just downloaded to the user's cache.

    Raises:
        CacheError: the cache cannot be written.
    """
    most = dict.fromkeys(keys, 0)
    outcome = BatchOutcome(batch.plan().prompt.schema, llm.transport, Tally(None), most, 0)
    _write(_good_replies(file, outcome), _form(batch, llm), llm.model, cache)


class TwoCaches(ReplyCache):
    """The cache in the folder of a batch; what is written from now on goes to the user's cache, too.

    Args:
        directory: the folder of the first one.
        own: the user's cache.
    """

    def __init__(self, directory: Path, own: ReplyCache) -> None:
        super().__init__(directory)
        self._own = own

    def set_many(
        self, replies: Iterable[tuple[bytes, str]], *, model: str, patience: float = BUSY_TIMEOUT
    ) -> None:
        """Write replies to both. Arguments and errors: see `ReplyCache.set_many`."""
        kept = list(replies)
        super().set_many(kept, model=model, patience=patience)
        self._own.set_many(kept, model=model, patience=patience)

    def close(self) -> None:
        """Close both, as `ReplyCache.close` does."""
        super().close()
        self._own.close()


def _good_replies(file: IO[bytes], outcome: BatchOutcome) -> Iterator[tuple[bytes, str]]:
    """Count the answers in a file, and yield the good replies: (key of the request, text for the cache)."""
    for answer in read_answers(file, outcome.sender.secrets):
        if answer.key in outcome.most_prompt_tokens:
            reply = outcome.take(answer)
            if reply is not None:
                yield answer.key, text_to_cache(reply)


def _write(
    replies: Iterator[tuple[bytes, str]],
    form: Form,
    model: str,
    cache: ReplyCache,
    *,
    replace: bool = True,
) -> None:
    """Write replies, as (key, text), to a cache, in transactions of `_GROUP` replies.

    `form` is that of the requests. A reply to the same bytes in another schema stays where it is. With
    `replace=False` so does any other that the cache has.
    """
    while group := list(islice(replies, _GROUP)):
        jobs = [Job(key, form, b"") for key, _ in group]
        there = stored_texts(jobs, cache)  # it finds the place of each
        placed = zip(jobs, group, strict=True)
        cache.set_many(
            [(job.cache_key, text) for job, (key, text) in placed if replace or key not in there],
            model=model,
        )


def writable_cache(
    batch: PersonaBatch, llm: LLM, keys: Collection[bytes], cache: ReplyCache, place: Path
) -> ReplyCache:
    """Make a cache in the folder `place` with the replies to `keys` that a cache has which is only read.

    Raises:
        CacheError: a cache fails.
    """
    made, form, rest = ReplyCache(place), _form(batch, llm), iter(keys)
    while group := list(islice(rest, _GROUP)):
        there = stored_texts([Job(key, form, b"") for key in group], cache)
        _write(iter(there.items()), form, llm.model, made)
    return made


def _form(batch: PersonaBatch, llm: LLM) -> Form:
    """Return the form of the requests of a batch, by which a cache knows the schema of their replies."""
    return Form(llm.transport, Request([], batch.plan().prompt.schema), {})


def run_without_calls(batch: PersonaBatch, llm: LLM, outcome: BatchOutcome) -> Run[AskedRow]:
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
        added: the most tokens that the endpoint adds to a prompt.
        failed: key of a request -> the last error of a request that has no good reply.
    """

    schema: type[BaseModel] | None
    sender: Transport
    tally: Tally
    most_prompt_tokens: Mapping[bytes, int]
    max_tokens: int
    added: int = 0
    failed: dict[bytes, ModelError] = field(default_factory=dict)
    _seen: set[bytes] = field(default_factory=set)
    _called: set[bytes] = field(default_factory=set)
    _charged: set[bytes] = field(default_factory=set)

    def take(self, answer: Answer) -> Completion | None:
        """Count one answer, whose key must be in `most_prompt_tokens`.

        A request counts as one call, and in tokens and cost by the first answer that tells them. A good reply
        removes an error of an earlier answer from `failed`.

        Returns:
            The reply, if it is the first good one to its request; else None.
        """
        key, reply = answer.key, answer.completion
        if key in self._seen and key not in self.failed:
            return None
        self._seen.add(key)
        if answer.called and key not in self._called:
            self._called.add(key)
            self.tally.calls += 1
        if key not in self._charged:
            spent = self.tally.add(reply) if reply else 0.0
            is_unknown = answer.called and cost_is_unknown(reply, answer.error)
            if is_unknown:
                most = self.most_prompt_tokens[key] + self.added
                self.tally.assume(most, self.max_tokens, spent)
            if is_unknown or (reply is not None and reply.prompt_tokens + reply.completion_tokens):
                self._charged.add(key)
        error = answer.error
        # What was cut off behind a whole object may be the answer all the same.
        is_whole = isinstance(error, ReplyError) and error.is_whole
        if error is None or (is_whole and self.schema is not None):
            error = self._unreadable(reply)
        if error is not None:
            self.failed[key] = error
            return None
        self.failed.pop(key, None)
        return reply

    @property
    def charged(self) -> int:
        """How many requests have an answer so far for which a model ran: a refusal is none."""
        return len(self._charged)

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
            self.tally.assume(prompt_tokens + self.added, self.max_tokens, 0.0)

    def _unreadable(self, reply: Completion | None) -> ReplyError | None:
        """Return the error that a reply is not in the form of `schema`; None if it is. None counts as ""."""
        try:
            read_reply(reply.text if reply else "", self.schema, self.sender)
        except ReplyError as error:
            return error
        return None
