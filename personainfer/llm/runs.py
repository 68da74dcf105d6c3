"""Many requests -> their replies, in the order of what they were made for, in bounded memory.

This is the half of a run that lives in the caller's thread: it prepares requests, looks them up in the
cache, and hands replies out; `workers` sends what is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from pydantic_core import from_json

from ..exceptions import ModelError, ReplyError
from ..observability import RunWatch
from ..records import Usage
from .cache import ReplyCache
from .rate_limits import Limits
from .transports import Transport
from .workers import Job, Policy, Reply, Tally, Workers

__all__ = ["Run", "recall"]

T = TypeVar("T")

_GATHERING = 0.05  # seconds that a slow source may hold back the rows that it gave already
_WINDOW = 16  # rows ahead of the oldest one unanswered, as a multiple of the concurrency


class Run(Generic[T]):
    """Iterates over (item, replies) in the order of the items; closing it leaves nothing running.

    A run `after` another one takes its items from what that one gives. Both have the same workers, to
    whom its own requests come first, and they end together. With `absent` nothing is sent: it says why
    there is no reply, by the key of the request.
    """

    def __init__(
        self,
        items: Iterable[tuple[T, Sequence[Job]]],
        *,
        transport: Transport,
        limits: Limits,
        cache: ReplyCache | None,
        policy: Policy,
        tally: Tally,
        ended: Callable[[Usage], object],
        after: Run[Any] | None = None,
        absent: Callable[[bytes], ModelError] | None = None,
    ) -> None:
        self.tally: Tally = after.tally if after else tally
        self._ended = ended
        self._absent = absent
        self._items = iter(items)
        self._cache = cache
        self._width = policy.max_concurrency
        self._workers: Workers = (
            after._workers if after else Workers(transport, limits, cache, policy, tally)
        )
        self._first = after is not None
        self._last = True
        if after is not None:
            after._last = False
        self._shared: dict[bytes, Job] = {}
        self._window: deque[tuple[T, Sequence[Job]]] = deque()
        self._broken: Exception | None = None
        self._watch = RunWatch(policy.model, self.tally)
        self._replies = self._run()

    def __iter__(self) -> Iterator[tuple[T, list[Reply]]]:
        return self

    def __next__(self) -> tuple[T, list[Reply]]:
        return next(self._replies)

    def close(self) -> None:
        """Cancel what is in flight and wait until it has stopped."""
        self._replies.close()
        self._let_go()

    def cancel(self) -> None:
        """From any thread: make the iteration stop with an error at its next step."""
        self._workers.cancelled = True
        self._workers.done.put(None)

    def _run(self) -> Generator[tuple[T, list[Reply]], None, None]:
        if self._last:
            with self._watch:
                yield from self._answers()
        else:
            yield from self._answers()

    def _answers(self) -> Generator[tuple[T, list[Reply]], None, None]:
        try:
            more = True
            while more or self._window:
                if more and len(self._window) <= _WINDOW * self._width:
                    more = self._prepare(self._gather())
                    if self._last:
                        self._watch.tell()
                    yield from self._finished()
                else:
                    self._await(self._window[0][1])
                    yield from self._finished()
            self._let_go()
            if self._broken is not None:  # the source failed: first what it gave before
                raise self._broken
        finally:
            if self._last:
                self._workers.close()
                self._ended(self.tally.usage)

    def _let_go(self) -> None:
        """Close this thread's connection to the cache: SQLite's do not survive a fork.

        Never on behalf of the garbage collector, which may come in the middle of a query.
        """
        if self._cache is not None:
            self._cache.close()

    def _gather(self) -> list[tuple[T, Sequence[Job]]]:
        """The next items, as many as may be in flight; fewer of a slow source; none at its end."""
        items: list[tuple[T, Sequence[Job]]] = []
        ends = time.monotonic() + _GATHERING
        try:
            for item in islice(self._items, self._width):
                items.append(item)
                if time.monotonic() > ends:
                    break
        except Exception as error:
            self._broken = error
        return items

    def _prepare(self, items: list[tuple[T, Sequence[Job]]]) -> bool:
        """Look a group of items up in the cache, and send what is not there. False at the end."""
        fresh: list[Job] = []
        for item, jobs in items:
            distinct = [self._shared.setdefault(job.key, job) for job in jobs]
            fresh += [job for job, own in zip(jobs, distinct, strict=True) if job is own]
            self._window.append((item, distinct))
        known = self._cache.get_many([job.key for job in fresh]) if self._cache and fresh else {}
        missing = [job for job in fresh if not recall(job, known.get(job.key))]
        self.tally.cached += len(fresh) - len(missing)
        if self._absent is None:
            self._workers.submit(missing, first=self._first)
        else:
            for job in missing:
                job.reply = Reply(error=self._absent(job.key))
        return bool(items) and self._broken is None

    def _finished(self) -> Iterator[tuple[T, list[Reply]]]:
        """Hand out what is answered at the head of the window."""
        while self._window:
            item, jobs = self._window[0]
            replies = [job.reply for job in jobs if job.reply is not None]
            if len(replies) < len(jobs):
                break
            self._window.popleft()
            for job in jobs:
                self._shared.pop(job.key, None)
            self._watch.rows += 1
            yield item, replies
        self._check()

    def _await(self, jobs: Sequence[Job]) -> None:
        while any(job.reply is None for job in jobs):
            self._check()
            self._workers.done.get()

    def _check(self) -> None:
        if self._workers.fatal is not None:
            raise self._workers.fatal
        if self._workers.cancelled:
            raise asyncio.CancelledError


def recall(job: Job, stored: str | None) -> bool:
    """Answer a job from the cache. A reply that today's reader refuses is asked again."""
    if stored is None:
        return False
    try:
        kept = from_json(stored)
        text, logprobs = kept["text"], None
        if "logprobs" in kept:
            logprobs = [(token, near) for token, near in kept["logprobs"]]
        if not isinstance(text, str):
            return False
        job.reply = Reply(job.read(text), text, cached=True, logprobs=logprobs)
    except (ReplyError, ValueError, KeyError, TypeError):  # or not what was written here
        return False
    return True
