"""The lines of a batch's files: a request that is sent, or the answer that comes back.

Providers answer in any order, so each line carries the key of its request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..exceptions import ModelError, ReplyError, RequestRejectedError
from ..llm.client import LLM
from ..llm.endpoint_faults import error_text, redact, status_error
from ..llm.openai_protocol import read_completion
from ..llm.requests import Request, cached_reply
from ..records import Completion


class WireRequest(NamedTuple):
    """A request as it is sent: the key of its reply, its bytes, and its reply if it is in the cache."""

    key: bytes
    body: bytes
    cached: str | None


class Answer(NamedTuple):
    """The answer to one request: a reply or an error. A bad reply has both, since it is paid for too."""

    key: bytes
    completion: Completion | None = None
    error: ModelError | None = None
    called: bool = True  # whether the provider called the model


def wire_requests(llm: LLM, requests: Sequence[Request]) -> list[WireRequest]:
    """The requests as `llm.run` would send them, with the replies that are in the cache."""
    jobs = [llm.job(request) for request in requests]
    stored = llm.cache.get_many([job.key for job in jobs]) if llm.cache else {}
    usable = {job.key: text for job in jobs if cached_reply(job, text := stored.get(job.key))}
    return [WireRequest(job.key, job.body, usable.get(job.key)) for job in jobs]


def request_line(name: str, url: str, body: bytes) -> bytes:
    """The line that asks the provider to send `body` to `url`; `name` comes back with the answer."""
    head = json.dumps({"custom_id": name, "method": "POST", "url": url})[:-1]
    return head.encode() + b', "body": ' + body + b"}\n"


def read_line(line: bytes) -> Answer | None:
    """The answer in a line of a file of replies; None if it names no request."""
    try:
        said = json.loads(line)
        key = bytes.fromhex(said["custom_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    reply = said.get("response")
    if not isinstance(reply, dict) or not isinstance(reply.get("status_code"), int):
        return Answer(key, error=_line_error(said.get("error")), called=False)
    status, body = reply["status_code"], reply.get("body")
    if status != 200:
        return Answer(
            key, error=status_error(status, {}, error_text(json.dumps(body).encode()), "")
        )
    try:
        return Answer(key, read_completion(body if isinstance(body, dict) else {}))
    except ReplyError as error:
        return Answer(key, error.completion, error)


def _line_error(error: Any) -> ModelError:
    fields = error if isinstance(error, dict) else {"message": error}
    code, words = fields.get("code") or "no code", fields.get("message") or "no reason given"
    return RequestRejectedError(
        f"the batch did not answer it ({provider_words(code)}): {provider_words(words)}"
    )


def provider_words(words: object) -> str:
    """The provider's words without keys, and no longer than an error should be."""
    return redact(str(words).encode(errors="replace").decode(), "")[:300]
