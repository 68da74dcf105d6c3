"""Requests and their replies: a request's bytes, its key in the cache, how its reply is read, and runs.

A run takes many requests and yields their replies, in order and in bounded memory. It works in the caller's
thread: it looks requests up in the cache and hands the others to whoever answers them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from ..exceptions import InvalidArgumentError, ModelError, ReplyError
from ..local.cache import ReplyCache
from ..observability import RunWatch
from ..preferences.cells import bounded_json
from ..records import Completion, Logprobs, Message, Usage
from .dialect import Dialect
from .openai_protocol import are_logprobs
from .pricing import Tally
from .replies import read_reply
from .transports import Transport

T = TypeVar("T")

_MOST_PLACES = 8  # of replies to the same bytes, in as many schemas
_KEY_VERSION = b"personainfer-1\n"  # change it when the same bytes no longer mean the same request


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Request:
    """What is asked: messages, and the form of the reply (None: plain text).

    Args:
        messages: the turns of this request alone.
        schema: a pydantic model that the reply must fit.
        prefix: the turns that all requests of a run share. They are sent first, so that prompt caches
            hit, and are encoded and hashed once.
        sample: a number that tells repeated draws of one request apart.
        logprobs: how many alternatives to return with the log-probability of each token of the reply.
            An endpoint without log-probabilities refuses the request or ignores this.
        doubt: says of a reply in the asked form what the model should heed, or None. It is then asked
            once more, with that after the last message, unless attempts were already needed. The first
            reply stands if the second is no better. Replies from the cache and of batches are taken as
            they are.
    """

    messages: Sequence[Message]
    schema: type[BaseModel] | None = None
    prefix: tuple[Message, ...] = ()
    sample: int = 0
    logprobs: int = 0
    doubt: Callable[[Any], str | None] | None = None


@dataclass(slots=True)
class Reply:
    """The outcome of one request: `value` in the asked form, or `error`. `text` is the model's own."""

    value: Any = None
    text: str = ""
    error: ModelError | None = None
    cached: bool = False
    logprobs: Logprobs | None = None


class Form:
    """What all requests with one schema and prefix share: the start of the body, and its hash."""

    def __init__(self, transport: Transport, request: Request, sampling: Mapping[str, Any]) -> None:
        self._transport = transport
        self.prefix = request.prefix
        self.doubt = request.doubt
        self.schema = request.schema
        self.has_schema = request.schema is not None
        fields = {"model": transport.model, **sampling, **transport.settings(request.schema)}
        if request.sample and fields.get("seed") is not None:
            fields["seed"] += request.sample
        if request.logprobs:
            fields |= {"logprobs": True, "top_logprobs": request.logprobs}
        fields = {key: value for key, value in sorted(fields.items()) if value is not None}
        head = json.dumps(fields, ensure_ascii=False)[:-1] + ', "messages": ['
        shared = [_encode(message.role, message.content) + b"," for message in request.prefix]
        self._head = head.encode() + b"".join(shared)
        named = f"{transport.endpoint}{transport.route}\n{request.sample}\n".encode()
        self._digest = hashlib.sha256(_KEY_VERSION + named + self._head)

    def job(self, messages: Sequence[Message]) -> Job:
        """The job that asks with these messages."""
        tail = encoded(messages)
        digest = self._digest.copy()
        digest.update(tail)
        return Job(digest.digest(), self, tail)

    def body(self, tail: bytes, turns: Sequence[tuple[str, str]] = ()) -> bytes:
        """The whole request as JSON; `turns` are appended when it is sent again."""
        added = [b"," + _encode(role, content) for role, content in turns]
        return b"".join([self._head, tail, *added, b"]}"])

    def read(self, text: str) -> Any:
        """The reply in the asked form."""
        return read_reply(text, self.schema, self._transport)


@dataclass(slots=True)
class Job:
    """One request in a run: the key of its reply in the cache, what makes its bytes, and its reply."""

    key: bytes
    form: Form
    tail: bytes  # the request's own messages, encoded
    reply: Reply | None = None
    stored: str | None = None  # the cached reply as text, until it is read
    place: int = 0  # among the replies under its key: those before are of schemas that take others
    same: Job | None = (
        None  # with the same bytes, but a schema of its own, by which its reply was read
    )
    turns: Sequence[tuple[str, str]] = ()  # (role, content) to append: the last reply and its fault
    refusals: int = 0  # for going too fast
    room: int = 1  # times max_tokens: more after a reply that was cut off
    trial: Dialect | None = None  # how it is written since it was refused; None: as all are

    @property
    def cache_key(self) -> bytes:
        """Where its reply is stored."""
        return hashlib.sha256(self.key + b"%d" % self.place).digest() if self.place else self.key

    @property
    def body(self) -> bytes:
        """The bytes to send."""
        body = self.form.body(self.tail, self.turns)
        return body if self.room == 1 else _with_room(body, self.room)


class SharingRun(Protocol):
    """A run that may meet others of its LLM; `met_another` is set when it does."""

    met_another: bool


class InFlight:
    """The requests in flight of an LLM. If several runs make the same one, one sends it and the others wait.

    `open` and `close` may be called from any thread, the other methods on the background loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: WeakSet[SharingRun] = WeakSet()
        self._asked: dict[bytes, asyncio.Future[Reply | None] | None] = {}  # None: nobody waits

    def renew_in_fork(self) -> None:
        """Forget the parent's requests: nobody answers them here."""
        self._lock = threading.Lock()
        self._runs.clear()
        self._asked.clear()

    def open(self, run: SharingRun) -> None:
        """Register a run before it reads the cache; tell all open runs if there are several."""
        with self._lock:
            self._runs.add(run)
            runs = list(self._runs)
        if len(runs) > 1:
            for one in runs:
                one.met_another = True

    @property
    def has_runs(self) -> bool:
        """Whether a run is open."""
        return bool(self._runs)

    def close(self, run: SharingRun) -> None:
        """Remove a run."""
        with self._lock:
            self._runs.discard(run)

    def is_asked(self, key: bytes) -> bool:
        """Whether a run has this request in flight."""
        return key in self._asked

    async def other_reply(self, key: bytes) -> Reply | None:
        """Wait for another run's reply to the same request; None if no run has it in flight, or it fails."""
        while key in self._asked:
            asked = self._asked[key]
            if asked is None:
                asked = self._asked[key] = asyncio.get_running_loop().create_future()
            reply = await asyncio.shield(asked)
            if reply is not None:
                return reply
        return None

    def begin(self, key: bytes) -> None:
        """Note that a run sends this request."""
        self._asked[key] = None

    def end(self, key: bytes, reply: Reply | None) -> None:
        """Give the reply to the runs that wait for it; None: there is none."""
        asked = self._asked.pop(key)
        if asked is not None and not asked.done():
            asked.set_result(reply)


def _with_room(body: bytes, times: int) -> bytes:
    """The request with a larger limit for the reply."""
    fields = json.loads(body)
    fields["max_tokens"] *= times
    return json.dumps(fields, ensure_ascii=False).encode()


def text_to_cache(completion: Completion) -> str:
    """A reply as the cache stores it: JSON text."""
    stored: dict[str, Any] = {
        "text": completion.text,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }
    if completion.logprobs is not None:
        stored["logprobs"] = completion.logprobs
    return to_json(stored).decode()


def cached_reply(job: Job, stored: str | None, cache: ReplyCache | None = None) -> Reply | None:
    """The reply that the cache has for this job; None if there is none that can be read today.

    One that is refused by this schema, and not by another that asks in the same bytes, stays where it is.
    """
    try:
        while stored is not None:
            reply = _stored_reply(job, stored)
            if reply is not None or cache is None or job.place == _MOST_PLACES:
                return reply
            job.place += 1
            stored = cache.get_many([job.cache_key]).get(job.cache_key)
    except (ValueError, KeyError, TypeError):  # another writer
        pass
    return None


def looked_up(job: Job, cache: ReplyCache | None) -> Reply | None:
    """The reply that the cache has for this job now. It also finds the place of the one that is to come."""
    if cache is None:
        return None
    return cached_reply(job, cache.get_many([job.cache_key]).get(job.cache_key), cache)


def _stored_reply(job: Job, stored: str) -> Reply | None:
    """The reply in a text of the cache; None if it is not in the form of this job."""
    try:
        fields = from_json(bounded_json(stored))
        text, logprobs = fields["text"], None
        if "logprobs" in fields:
            logprobs = [(token, near) for token, near in fields["logprobs"]]
            if not all(isinstance(one, str) and isinstance(near, dict) for one, near in logprobs):
                raise ValueError
            logprobs = logprobs if are_logprobs(logprobs) else None
        if not isinstance(text, str):
            raise ValueError
        return Reply(job.form.read(text), text, cached=True, logprobs=logprobs)
    except ReplyError:
        return None


def read_anew(job: Job, reply: Reply) -> Reply | None:
    """The same reply in the form of this job, marked as `cached`; None if it cannot be read so.

    Two schemas may ask in the same bytes: their validators, for one, are told to no endpoint.
    """
    try:
        value = job.form.read(reply.text)
    except ReplyError:
        return None
    return Reply(value, reply.text, cached=True, logprobs=reply.logprobs)


def with_advice(tail: bytes, advice: str) -> bytes:
    """Encoded messages with advice after the last one."""
    messages = [Message(**fields) for fields in json.loads(b"[%b]" % tail)]
    last = messages.pop()
    content = f"{last.content}\n{advice}"
    return encoded([*messages, Message(role=last.role, content=content)])


def encoded(messages: Sequence[Message]) -> bytes:
    """Messages as they stand in a request, one or several."""
    return b",".join([_encode(message.role, message.content) for message in messages])


def _encode(role: str, content: str) -> bytes:
    return b'{"role": %b, "content": %b}' % (_role(role), to_json(content))


@cache
def _role(name: str) -> bytes:
    return to_json(name)


# Runs

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
        self._pid: int | None = None  # of the process that began it
        self._watch = RunWatch(model, self.tally)
        self._replies = self._run()

    def __iter__(self) -> Iterator[tuple[T, list[Reply]]]:
        return self

    def __next__(self) -> tuple[T, list[Reply]]:
        self._pid = self._pid or os.getpid()
        if self._pid != os.getpid():
            raise InvalidArgumentError(
                "this run was begun by the process of which this one is a fork: nobody would answer it here.",
                hint="Begin a run in each process.",
            )
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
                elif shared.form.schema is job.form.schema:
                    jobs[place] = shared
                else:
                    job.same = shared
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
            job.reply = cached_reply(job, job.stored, self._cache)
            job.stored = None
            self._unread -= 1
            if job.reply is None:
                self._workers.submit([job])
            else:
                self.tally.cached += 1
        elif job.same is not None and (found := job.same.reply) is not None:
            job.same = None
            if isinstance(found.error, ReplyError):  # what does not fit one schema may fit another
                job.reply = None
            else:
                job.reply = read_anew(job, found) if found.error is None else found
            if job.reply is None and (reply := looked_up(job, self._cache)) is not None:
                job.reply = reply
                self.tally.cached += 1
            if job.reply is None:
                self._workers.submit([job])
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
        while any(_is_open(job) for job in jobs) and not (until_room and self._has_room()):
            self._check()
            self._workers.done.get()

    def _check(self) -> None:
        if self._workers.fatal is not None:
            raise self._workers.fatal
        if self._workers.cancelled:
            raise asyncio.CancelledError


def _is_open(job: Job) -> bool:
    """Whether a job waits for its reply, or for that of another job with the same bytes."""
    return job.reply is None and (job.same is None or job.same.reply is None)
