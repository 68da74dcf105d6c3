"""A line of a batch's files: a request on its way up, or what came of it on its way down.

Lines are matched by the key of their request, whatever their order. How files are sent is not known here.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ..exceptions import ModelError, ReplyError, RequestRejectedError
from ..llm.openai_protocol import error_text, redact, status_error
from ..llm.replies import read_completion
from ..records import Completion

__all__ = ["Answer", "provider_words", "read_line", "request_line"]


class Answer(NamedTuple):
    """What came of one request: a reply, paid for even where it has an error too, or only an error."""

    key: bytes
    completion: Completion | None = None
    error: ModelError | None = None
    called: bool = True  # whether the model was asked at all


def request_line(name: str, url: str, body: bytes) -> bytes:
    """The line of a request that is sent to `url` under a name of its own."""
    head = json.dumps({"custom_id": name, "method": "POST", "url": url})[:-1]
    return head.encode() + b', "body": ' + body + b"}\n"


def read_line(line: bytes) -> Answer | None:
    """A line of a file of replies; None if it cannot be assigned to any request."""
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
    """The provider's words, as a table and a handle can keep them."""
    return redact(str(words).encode(errors="replace").decode(), "")[:300]
