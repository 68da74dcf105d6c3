"""Requests and their replies: a request's bytes, its key in the cache, how its reply is read, and runs.

A run takes many requests and yields their replies, in order and in bounded memory. It works in the caller's
thread: it looks requests up in the cache, and has workers answer those that are not there.
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
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakSet, ref

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from ..exceptions import InvalidArgumentError, ModelError, ReplyError
from ..local.cache import ReplyCache
from ..observability import RunWatch
from ..preferences.cells import bounded_json, surrogate_problem
from ..records import Completion, Logprobs, Message, Usage
from .dialect import Dialect
from .openai_protocol import are_logprobs
from .pricing import Tally
from .replies import read_reply
from .transports import Transport

T = TypeVar("T")
R = TypeVar("R")

_MOST_PLACES = 8  # replies that are kept for the same bytes, of as many schemas
_KEY_VERSION = b"personainfer-1\n"  # change it when the same bytes no longer mean the same request


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Request:
    """One request to a model: messages, and the form that the reply must have.

    Args:
        messages: the turns of this request alone.
        schema: a pydantic model that the reply must fit; None: plain text.
        prefix: the turns that all requests of a run share. They are sent before `messages`, so that prompt
            caches hit, and are encoded and hashed once.
        sample: a number that tells repeated draws of one request apart. It is added to the `seed` of the LLM,
            and each draw has a place of its own in the cache.
        logprobs: how many alternatives to return with the log-probability of each token of the reply; 0: no
            log-probabilities. An endpoint without them refuses the request or ignores this.
        doubt: a function of the value of a reply that returns what the model should heed, or None. If it
            returns a text, the request is sent once more, with the text after the last message. The first
            reply stands if the second is no better. It is not asked about a reply that needed several
            attempts, or comes from the cache or a batch, and does nothing with `max_attempts=1`.
    """

    messages: Sequence[Message]
    schema: type[BaseModel] | None = None
    prefix: tuple[Message, ...] = ()
    sample: int = 0
    logprobs: int = 0
    doubt: Callable[[Any], str | None] | None = None


@dataclass(slots=True)
class Reply:
    """The outcome of one request.

    Attributes:
        value: an instance of the schema, or the text if there is none; None if there is an error.
        text: what the model wrote; "" if there is an error.
        error: why there is no usable reply; None: there is one.
        cached: whether this run made no call for the reply: it was in the cache, or is that of another run,
            or of a request in the same bytes with another schema.
        logprobs: the tokens of the reply with their log-probabilities, in nats; None: they were not asked
            for, or the endpoint gave none.
    """

    value: Any = None
    text: str = ""
    error: ModelError | None = None
    cached: bool = False
    logprobs: Logprobs | None = None


class Form:
    """What requests share that differ in their messages alone: the start of the body, and its hash.

    Args:
        transport: how the model is called.
        request: one of the requests.
        sampling: name -> value of the fields of the body that the options of the LLM set. A field whose value
            is None is left out.

    Raises:
        InvalidArgumentError: the prefix or the schema of the request holds half of a surrogate pair.
    """

    def __init__(self, transport: Transport, request: Request, sampling: Mapping[str, Any]) -> None:
        self._transport = transport
        self.prefix = request.prefix
        self.doubt = request.doubt
        self.schema = request.schema
        fields = {"model": transport.model, **sampling, **transport.settings(request.schema)}
        if request.sample and fields.get("seed") is not None:
            fields["seed"] += request.sample
        if request.logprobs:
            fields |= {"logprobs": True, "top_logprobs": request.logprobs}
        fields = {key: value for key, value in sorted(fields.items()) if value is not None}
        head = json.dumps(fields, ensure_ascii=False)[:-1] + ', "messages": ['
        try:
            shared = [_encode(message.role, message.content) + b"," for message in request.prefix]
            self._head = head.encode() + b"".join(shared)
        except ValueError:  # UnicodeEncodeError, or pydantic's own
            raise InvalidArgumentError(
                "the prefix or the schema of a request holds half of a surrogate pair.",
                hint="Remove that character.",
            ) from None
        named = f"{transport.endpoint}{transport.route}\n{request.sample}\n".encode()
        self._digest = hashlib.sha256(_KEY_VERSION + named + self._head)

    def job(self, messages: Sequence[Message]) -> Job:
        """Return the job that asks with these messages, after those of the prefix.

        Raises:
            ModelError: see `encoded`.
        """
        tail = encoded(messages)
        digest = self._digest.copy()
        digest.update(tail)
        return Job(digest.digest(), self, tail)

    def body(self, tail: bytes, turns: Sequence[tuple[str, str]] = ()) -> bytes:
        """Return the whole request as JSON.

        Args:
            tail: the request's own messages, encoded.
            turns: (role, content) of messages that are added at the end when it is sent again.
        """
        added = [b"," + _encode(role, content) for role, content in turns]
        return b"".join([self._head, tail, *added, b"]}"])

    def read(self, text: str) -> Any:
        """Return a reply in the form that is asked for: an instance of the schema, or the text without one.

        Raises:
            ReplyError: the reply is not in this form.
        """
        return read_reply(text, self.schema, self._transport)


@dataclass(slots=True)
class Job:
    """One request in a run: the key of its reply in the cache, what makes its bytes, and its reply.

    Attributes:
        key: the digest of the request.
        form: what the request shares with others.
        tail: the request's own messages, encoded.
        reply: the reply; None until it has come. That of a request that cannot be encoded is an error from
            the start.
        stored: the cached reply as text, until it is read; None: there is none.
        place: its place among the replies under its key. Those before are replies to other schemas.
        same: another job of the run with the same bytes and another schema, whose reply is tried first; or
            None.
        turns: (role, content) to append when it is sent again: the last reply, and what is wrong with it.
        refusals: how often it was refused for going too fast.
        room: by how much `max_tokens` is multiplied: more after a reply that was cut off.
        trial: how it is written since it was refused; None: as all are.
        written: bytes of the request as a library wrote it, if the budget did not allow as many.
    """

    key: bytes
    form: Form
    tail: bytes
    reply: Reply | None = None
    stored: str | None = None
    place: int = 0
    same: Job | None = None
    turns: Sequence[tuple[str, str]] = ()
    refusals: int = 0
    room: int = 1
    trial: Dialect | None = None
    written: int = 0

    @property
    def cache_key(self) -> bytes:
        """The key in the cache of the reply to this job. It depends on `place`."""
        return hashlib.sha256(self.key + b"%d" % self.place).digest() if self.place else self.key

    @property
    def body(self) -> bytes:
        """The bytes to send, as JSON."""
        body = self.form.body(self.tail, self.turns)
        if self.room > 1:
            fields = json.loads(body)
            fields["max_tokens"] *= self.room
            body = json.dumps(fields, ensure_ascii=False).encode()
        return body


class SharingRun(Protocol):
    """A run that may be open beside others of its LLM. `met_another` is set to True when it is."""

    met_another: bool


class InFlight:
    """The requests in flight of an LLM. If several runs make the same one, one sends it and the others wait.

    `open`, `close` and `has_runs` may be used from any thread, all else on the background loop.

    Attributes:
        asked: the key of each request in flight -> what the runs that wait for its reply wait for; None: no
            other run does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: WeakSet[SharingRun] = WeakSet()
        self.asked: dict[bytes, asyncio.Future[Reply | None] | None] = {}

    def renew_in_fork(self) -> None:
        """Forget the runs and requests of the parent process, to which no reply comes here."""
        self._lock = threading.Lock()
        self._runs.clear()
        self.asked.clear()

    def open(self, run: SharingRun) -> None:
        """Register a run before it reads the cache. If others are open, set `met_another` of all of them."""
        with self._lock:
            self._runs.add(run)
            runs = list(self._runs)
        if len(runs) > 1:
            for one in runs:
                one.met_another = True

    @property
    def has_runs(self) -> bool:
        """Whether any run is open."""
        return bool(self._runs)

    def close(self, run: SharingRun) -> None:
        """Remove a run. One that is not registered is ignored."""
        with self._lock:
            self._runs.discard(run)

    async def other_reply(self, key: bytes) -> Reply | None:
        """Wait for another run's reply to the request with this key.

        Returns:
            The reply; None: no run has the request in flight, or it has failed.
        """
        while key in self.asked:
            asked = self.asked[key]
            if asked is None:
                asked = self.asked[key] = asyncio.get_running_loop().create_future()
            reply = await asyncio.shield(asked)
            if reply is not None:
                return reply
        return None

    def begin(self, key: bytes) -> None:
        """Note that a run sends the request with this key."""
        self.asked[key] = None

    def end(self, key: bytes, reply: Reply | None) -> None:
        """Note that a request is done, and give its reply to the runs that wait for it; None: it failed."""
        asked = self.asked.pop(key)
        if asked is not None and not asked.done():
            asked.set_result(reply)


def text_to_cache(completion: Completion) -> str:
    """Return a reply as the cache stores it: JSON text."""
    stored: dict[str, Any] = {
        "text": completion.text,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }
    if completion.logprobs is not None:
        stored["logprobs"] = completion.logprobs
    return to_json(stored).decode()


def cached_reply(job: Job, stored: str | None, cache: ReplyCache | None = None) -> Reply | None:
    """Return the reply in the cached text `stored`, read in the form of the job.

    If the text does not fit the job's schema, it was the reply to another schema that asks in the same bytes.
    It stays where it is, and the next place under the job's key is looked up. `job.place` is changed to that
    place.

    Args:
        job: whose reply it is.
        stored: the text at the job's place in the cache; None: there is none.
        cache: where the next places are looked up; None: nowhere.

    Returns:
        The reply, with `cached` set; None: there is none, or none that can be read.

    Raises:
        CacheError: the cache fails.
    """
    try:
        while stored is not None:
            reply = _stored_reply(job, stored)
            if reply is not None or cache is None or job.place == _MOST_PLACES:
                return reply
            job.place += 1
            stored = cache.get_many([job.cache_key]).get(job.cache_key)
    except (ValueError, KeyError, TypeError):  # the text was written by another program
        pass
    return None


def looked_up(job: Job, cache: ReplyCache | None) -> Reply | None:
    """Return the reply that the cache has for this job now, or None; `cache` is None if there is no cache.

    `job.place` is changed to where the reply is, or is to be stored.

    Raises:
        CacheError: the cache fails.
    """
    if cache is None:
        return None
    return cached_reply(job, cache.get_many([job.cache_key]).get(job.cache_key), cache)


def stored_texts(jobs: Sequence[Job], cache: ReplyCache | None) -> dict[bytes, str]:
    """Return the replies of these jobs in the cache that they can read: key -> text as it is stored.

    `place` of each job is changed to where its reply is, or is to be stored.

    Raises:
        CacheError: the cache fails.
    """
    if cache is None or not jobs:
        return {}
    found = cache.get_many([job.key for job in jobs])
    for job in jobs:
        if cached_reply(job, found.get(job.key), cache) is None:
            found.pop(job.key, None)
        elif job.place:
            found[job.key] = cache.get_many([job.cache_key])[job.cache_key]
    return found


def _stored_reply(job: Job, stored: str) -> Reply | None:
    """Return the reply in a text of the cache; None if it does not fit the schema of this job.

    Raises:
        ValueError, KeyError, TypeError: the text was not written by this library.
    """
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
    """Read a reply to the same bytes in the form of this job; None: it does not fit. `cached` is set.

    Two schemas may ask in the same bytes: their validators, for one, are told to no endpoint.
    """
    try:
        value = job.form.read(reply.text)
    except ReplyError:
        return None
    return Reply(value, reply.text, cached=True, logprobs=reply.logprobs)


def with_advice(tail: bytes, advice: str) -> bytes:
    """Return encoded messages with advice after the text of the last one, on a line of its own.

    Raises:
        ModelError: see `encoded`.
    """
    messages = [Message(**fields) for fields in json.loads(b"[%b]" % tail)]
    last = messages.pop()
    content = f"{last.content}\n{advice}"
    return encoded([*messages, Message(role=last.role, content=content)])


def encoded(messages: Sequence[Message]) -> bytes:
    """Return messages, one or several, as JSON objects with commas between them.

    Raises:
        ModelError: a message holds half of a surrogate pair, so it cannot be sent. `unsent` is set.
    """
    try:
        return b",".join([_encode(message.role, message.content) for message in messages])
    except ValueError:  # of pydantic
        raise ModelError(f"not sent: {surrogate_problem('the request')}", unsent=True) from None


def _encode(role: str, content: str) -> bytes:
    return b'{"role": %b, "content": %b}' % (_role(role), to_json(content))


@cache
def _role(name: str) -> bytes:
    return to_json(name)


# Runs

_GATHERING = 0.05  # seconds that a slow source may hold back the rows that it gave already
_WINDOW = 16  # rows ahead of the oldest one unanswered, at most, as a multiple of the concurrency


class Answering(Protocol):
    """What answers the jobs of a run: `Workers`, which call a model, or replies from elsewhere.

    Attributes:
        done: a queue. None is put into it whenever replies have come.
        fatal: an error that ends the run; None: there is none.
        cancelled: whether the run shall stop.
    """

    done: SimpleQueue[None]
    fatal: BaseException | None
    cancelled: bool

    @property
    def waiting(self) -> int:
        """How many jobs nobody has begun to answer."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take these jobs, and set the `reply` of each, now or later. Do not wait."""

    def close(self) -> None:
        """Stop answering, and wait until nothing runs."""


class Run(Generic[T]):
    """Iterates over (item, replies) in the order of the items. Close it if you do not iterate to its end.

    A request that fails has a reply with `error`. Iteration raises what ends the run:

    - ModelError: every request would fail (the key, the model, the endpoint).
    - CacheError: the cache fails.
    - InvalidArgumentError: this process is a fork of the one that began to iterate.
    - asyncio.CancelledError: `cancel` was called; or the task that made the run, and holds up its event loop
      by waiting here, was cancelled, which is what the first Ctrl-C does in `asyncio.run`.
    - what the source of the items raises, after the replies to the items before.

    Args:
        items: (item, the jobs whose replies it needs), read some way ahead of what is yielded.
        workers: what answers the jobs that are not in the cache.
        cache: where replies are looked up first; None: nowhere.
        tally: counts that grow with the run.
        model: the name of the model, for logs and traces.
        width: how many jobs may be in flight.
        ended: called once, with the usage, when a run that was begun is over.
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
        self._pid: int | None = None  # of the process that began to iterate
        self._watch = RunWatch(model, self.tally)
        self._replies = self._run()
        caller = _running_task()
        self._caller = ref(caller) if caller else lambda: None
        self._cancellations = caller.cancelling() if caller else 0
        self._inner: Callable[[], Run[Any] | None] = lambda: None
        if (outer := _outer.get()()) is not None:
            outer._inner = ref(self)  # before the look at `cancelled`, which another thread may set
            if outer._workers.cancelled:
                self.cancel()

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
        """Cancel what is in flight, wait until it has stopped, and close this thread's cache connection."""
        self._replies.close()
        self._workers.close()  # a generator that never began has not done so
        self._close_cache()

    def cancel(self) -> None:
        """Make the iteration raise asyncio.CancelledError at its next step. Any thread may call this.

        So does the iteration of a run that began within this one, see `around`.
        """
        self._workers.cancelled = True
        self._workers.done.put(None)
        if (inner := self._inner()) is not None:
            inner.cancel()

    def around(self, rows: Iterator[R]) -> Generator[R, None, None]:
        """Yield rows that are made of this run. Runs that begin meanwhile, as a judge's, are within it."""
        ended = object()
        while True:
            token = _outer.set(ref(self))  # connections that are made meanwhile keep what is set
            try:
                row = next(rows, ended)
            finally:
                _outer.reset(token)
            if row is ended:
                return
            yield cast("R", row)

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
                if self._broken is not None:  # the source failed, after what it gave before
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
        """Return whether the workers soon need more jobs, and not too many items wait for the oldest one.

        Jobs are not made long before they are sent: what is alive costs the garbage collector time.
        """
        return self._workers.waiting <= self._width and len(self._window) <= _WINDOW * self._width

    def _gather(self) -> list[tuple[T, list[Job]]]:
        """Return the next items: `width` of them, fewer if the source is slow, and none at its end.

        An error of the source is kept in `_broken`.
        """
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
        """Look a group of items up in the cache, and submit the jobs that are not there.

        Returns:
            Whether there may be more items.
        """
        fresh: dict[bytes, Job] = {}
        for item, jobs in items:
            for place, job in enumerate(jobs):
                if job.reply is not None:
                    self.tally.errors += 1
                    continue
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
        """Return the reply of a job; None if the model has yet to answer.

        A cached reply is parsed only when its item is yielded, since whatever waits in the window costs the
        garbage collector time. A cached reply that cannot be read is asked for again.
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
            if found.error is None:
                job.reply = read_anew(job, found)
            elif not isinstance(found.error, ReplyError):  # which may fit this schema
                job.reply = found
            if job.reply is None:
                job.reply = looked_up(job, self._cache)
                self.tally.cached += job.reply is not None
            if job.reply is None:
                self._workers.submit([job])
        return job.reply

    def _finished(self) -> Iterator[tuple[T, list[Reply]]]:
        """Yield the items at the head of the window whose replies have all come."""
        while self._window:
            item, jobs = self._window[0]
            replies = list(filter(None, map(self._reply, jobs)))
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
        """Parse all cached replies in the window, and submit the jobs of those that cannot be read."""
        if self._unread:
            for _, jobs in self._window:
                for job in jobs:
                    self._reply(job)

    def _await(self, jobs: Sequence[Job], *, until_room: bool) -> None:
        """Wait until these jobs are answered or, with `until_room`, until there is room for more."""
        while any(_is_open(job) for job in jobs) and not (until_room and self._has_room()):
            self._check()
            self._workers.done.get()

    def _check(self) -> None:
        if self._workers.fatal is not None:
            raise self._workers.fatal
        caller = _running_task()
        is_cancelled = caller and caller.cancelling() > self._cancellations
        if self._workers.cancelled or (is_cancelled and caller is self._caller()):
            raise asyncio.CancelledError


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


# The run of which this thread makes rows, see `Run.around`.
_outer: ContextVar[Callable[[], Run[Any] | None]] = ContextVar("outer_run", default=lambda: None)


def _is_open(job: Job) -> bool:
    """Return whether a job waits for its reply, or for that of another job with the same bytes."""
    return job.reply is None and (job.same is None or job.same.reply is None)
