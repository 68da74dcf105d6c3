"""A request: what is asked, the bytes that ask it, the key of its reply, and how that is read.

How it is sent, and what comes of a reply that cannot be read, is not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from ..records import Message
from .replies import read_reply
from .transports import Transport

__all__ = ["Form", "Request", "encoded"]

_KEY_VERSION = b"personainfer-1\n"  # change it when the same bytes no longer mean the same request


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: messages, and the form of the reply (None: plain text).

    `prefix` holds the messages that all requests of a run share: they come first, so that prompt
    caches hit, and are encoded and hashed once. `sample` tells repeated draws of one request apart.
    `logprobs` asks for the log-probabilities of the reply's tokens, each with so many others: endpoints
    that do not know them refuse the request or leave them out.
    `parts` is how many answers the reply holds: it may take the model's `max_tokens` for each of them,
    and is not asked for again when it cannot be read.
    """

    messages: Sequence[Message]
    schema: type[BaseModel] | None = None
    prefix: tuple[Message, ...] = ()
    sample: int = 0
    logprobs: int = 0
    parts: int = 1


class Form:
    """What requests of one schema and prefix have in common: the start of the body, and its hash."""

    def __init__(self, transport: Transport, request: Request, sampling: Mapping[str, Any]) -> None:
        self.prefix = request.prefix
        self._schema = request.schema
        fields = {"model": transport.model, **sampling, **transport.settings(request.schema)}
        fields["max_tokens"] *= request.parts
        if request.sample and fields["seed"] is not None:
            fields["seed"] += request.sample
        if request.logprobs:
            fields |= {"logprobs": True, "top_logprobs": request.logprobs}
        fields = {key: value for key, value in sorted(fields.items()) if value is not None}
        head = json.dumps(fields, ensure_ascii=False)[:-1] + ', "messages": ['
        shared = [_encode(message.role, message.content) + b"," for message in request.prefix]
        self._head = head.encode() + b"".join(shared)
        named = f"{transport.endpoint}\n{request.sample}\n".encode()
        self.digest = hashlib.sha256(_KEY_VERSION + named + self._head)

    def body(self, tail: bytes, turns: Sequence[tuple[str, str]]) -> bytes:
        """The whole request; `turns` are appended when it is asked again."""
        added = b"".join(b"," + _encode(role, content) for role, content in turns)
        return self._head + tail + added + b"]}"

    def read(self, text: str) -> Any:
        """The reply in the asked form."""
        return read_reply(text, self._schema)


def encoded(messages: Sequence[Message]) -> bytes:
    """Messages as they stand in a request, one or several."""
    return b",".join([_encode(message.role, message.content) for message in messages])


def _encode(role: str, content: str) -> bytes:
    return b'{"role": %b, "content": %b}' % (_role(role), to_json(content))


@cache
def _role(name: str) -> bytes:
    return to_json(name)
