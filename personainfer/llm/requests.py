"""Requests and replies as records: a request's bytes, its key in the cache, and how its reply is read."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from ..exceptions import ModelError, ReplyError
from ..records import Completion, Logprobs, Message
from .replies import read_reply
from .transports import Transport

_KEY_VERSION = b"personainfer-1\n"  # change it when the same bytes no longer mean the same request


@dataclass(frozen=True, slots=True)
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
    """

    messages: Sequence[Message]
    schema: type[BaseModel] | None = None
    prefix: tuple[Message, ...] = ()
    sample: int = 0
    logprobs: int = 0


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
        self.prefix = request.prefix
        self._schema = request.schema
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
        named = f"{transport.endpoint}\n{request.sample}\n".encode()
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
        return read_reply(text, self._schema)


@dataclass(slots=True)
class Job:
    """One request in a run: the key of its reply in the cache, what makes its bytes, and its reply."""

    key: bytes
    form: Form
    tail: bytes  # the request's own messages, encoded
    reply: Reply | None = None
    stored: str | None = None  # the cached reply as text, until it is read
    turns: Sequence[tuple[str, str]] = ()  # (role, content) to append: the last reply and its fault
    room: int = 1  # times max_tokens: more after a reply that was cut off

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

    def open(self, run: SharingRun) -> None:
        """Register a run before it reads the cache; tell all open runs if there are several."""
        with self._lock:
            self._runs.add(run)
            runs = list(self._runs)
        if len(runs) > 1:
            for one in runs:
                one.met_another = True

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
                return replace(reply, cached=True)
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


def cached_reply(job: Job, stored: str | None) -> Reply | None:
    """The reply that the cache has for this job; None if there is none that can be read today."""
    if stored is None:
        return None
    try:
        fields = from_json(stored)
        text, logprobs = fields["text"], None
        if "logprobs" in fields:
            logprobs = [(token, near) for token, near in fields["logprobs"]]
        if not isinstance(text, str):
            return None
        return Reply(job.form.read(text), text, cached=True, logprobs=logprobs)
    except (ReplyError, ValueError, KeyError, TypeError):  # another reader, or another writer
        return None


def encoded(messages: Sequence[Message]) -> bytes:
    """Messages as they stand in a request, one or several."""
    return b",".join([_encode(message.role, message.content) for message in messages])


def _encode(role: str, content: str) -> bytes:
    return b'{"role": %b, "content": %b}' % (_role(role), to_json(content))


@cache
def _role(name: str) -> bytes:
    return to_json(name)
