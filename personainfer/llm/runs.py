"""A run: many requests in, their replies out, in order and in bounded memory.

It works in the caller's thread: it looks requests up in the cache, hands the others to `Workers`, and
yields replies.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from ..observability import RunWatch
from ..records import Usage
from .cache import ReplyCache
from .requests import Job, Reply, cached_reply
from .workers import Tally

T = TypeVar("T")

_GATHERING = 0.05  # seconds that a slow source may hold back the rows that it gave already
_WINDOW = 16  # rows ahead of the oldest one unanswered, at most, as a multiple of the concurrency


class Answering(Protocol):
    """Who answers the jobs of a run: `Workers`, which call a model, or replies from elsewhere."""

    done: SimpleQueue[None]  # a token whenever replies have come
    fatal: BaseException | None
    cancelled: bool

    @property
    def waiting(self) -> int:
        """How many jobs nobody has begun to answer."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Set the reply of each job, now or later."""

    def close(self) -> None:
        """Stop, and wait until nothing runs."""


class Run(Generic[T]):
    """Iterates over (item, replies) in the order of the items; closing it leaves nothing running.

    Args:
        items: (item, the jobs whose replies it needs), read a window ahead of what is yielded.
        workers: who answers the jobs that are not in the cache.
        cache: where replies are looked up first; None: nowhere.
        tally: counts that grow with the run.
        model: the name of the model, for logs and traces.
        width: how many jobs may be in flight.
        ended: called once, with the usage, when the run is over.
    """

    def __init__(
        self,
        items: Iterable[tuple[T, list[Job]]],
        workers: Answering,
        *,
        cache: ReplyCache | None,
        tally: Tally,
        model: str,
        width: int,
        ended: Callable[[Usage], object],
    ) -> None:
        self.tally = tally
        self._ended = ended
        self._items = iter(items)
        self._cache = cache
        self._width = width
        self._workers = workers
        self._shared: dict[bytes, Job] = {}
        self._unread = 0  # jobs in the window whose cached reply is not read yet
        self._window: deque[tuple[T, list[Job]]] = deque()
        self._broken: Exception | None = None
        self._watch = RunWatch(model, self.tally)
        self._replies = self._run()

    def __iter__(self) -> Iterator[tuple[T, list[Reply]]]:
        return self

    def __next__(self) -> tuple[T, list[Reply]]:
        return next(self._replies)

    def close(self) -> None:
        """Cancel what is in flight and wait until it has stopped."""
        self._replies.close()
        self._close_cache()

    def cancel(self) -> None:
        """From any thread: make the iteration stop with an error at its next step."""
        self._workers.cancelled = True
        self._workers.done.put(None)

    def _run(self) -> Generator[tuple[T, list[Reply]], None, None]:
        with self._watch:
            try:
                more = True
                while more or self._window:
                    if more and self._has_room():
                        more = self._prepare(self._gather())
                        self._watch.tell()
                    else:
                        self._await(self._window[0][1], until_room=more)
                    yield from self._finished()
                self._close_cache()
                if self._broken is not None:  # the source failed: first what it gave before
                    raise self._broken
            finally:
                self._workers.close()
                self._ended(self.tally.usage)

    def _close_cache(self) -> None:
        """Close this thread's connection to the cache.

        Not in the generator's `finally`: the garbage collector may run that in the middle of a query.
        """
        if self._cache is not None:
            self._cache.close()

    def _has_room(self) -> bool:
        """Whether the workers soon need more jobs, and not too many rows wait for the oldest one.

        Jobs are not made long before they are sent: what is alive costs the garbage collector time.
        """
        return self._workers.waiting <= self._width and len(self._window) <= _WINDOW * self._width

    def _gather(self) -> list[tuple[T, list[Job]]]:
        """The next items, as many as may be in flight; fewer of a slow source; none at its end."""
        items: list[tuple[T, list[Job]]] = []
        ends = time.monotonic() + _GATHERING
        try:
            for item in islice(self._items, self._width):
                items.append(item)
                if time.monotonic() > ends:
                    break
        except Exception as error:
            self._broken = error
        return items

    def _prepare(self, items: list[tuple[T, list[Job]]]) -> bool:
        """Look a group of items up in the cache, and send what is not there. False at the end."""
        fresh: dict[bytes, Job] = {}
        for item, jobs in items:
            for place, job in enumerate(jobs):
                shared = self._shared.setdefault(job.key, job)
                if shared is job:
                    fresh[job.key] = job
                else:
                    jobs[place] = shared
            self._window.append((item, jobs))
        known = self._cache.get_many(list(fresh)) if self._cache and fresh else {}
        for key, text in known.items():
            fresh.pop(key).stored = text
        self._unread += len(known)
        self._workers.submit(list(fresh.values()))
        return bool(items) and self._broken is None

    def _reply(self, job: Job) -> Reply | None:
        """The reply of a job; None if the model has yet to answer.

        A cached reply is parsed only when its row is handed out, since whatever waits in the window costs
        the garbage collector time. One that cannot be read is asked for again.
        """
        if job.stored is not None:
            job.reply = cached_reply(job, job.stored)
            job.stored = None
            self._unread -= 1
            if job.reply is None:
                self._workers.submit([job])
            else:
                self.tally.cached += 1
        return job.reply

    def _finished(self) -> Iterator[tuple[T, list[Reply]]]:
        """Hand out what is answered at the head of the window."""
        while self._window:
            item, jobs = self._window[0]
            replies = [reply for job in jobs if (reply := self._reply(job)) is not None]
            if len(replies) < len(jobs):
                self._read_ahead()
                break
            self._window.popleft()
            for job in jobs:
                self._shared.pop(job.key, None)
            self._watch.rows += 1
            yield item, replies
        self._check()

    def _read_ahead(self) -> None:
        """Parse all cached replies in the window, so that those that cannot be read are sent now."""
        if self._unread:
            for _, jobs in self._window:
                for job in jobs:
                    self._reply(job)

    def _await(self, jobs: Sequence[Job], *, until_room: bool) -> None:
        """Wait until these jobs are answered or, if asked to, until there is room for more."""
        while any(job.reply is None for job in jobs) and not (until_room and self._has_room()):
            self._check()
            self._workers.done.get()

    def _check(self) -> None:
        if self._workers.fatal is not None:
            raise self._workers.fatal
        if self._workers.cancelled:
            raise asyncio.CancelledError
