"""The lines of a batch's files: a request that is sent, or the answer that comes back.

Providers answer in any order, so each line carries the key of its request.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple

from ..api_keys import Secrets
from ..data.file_formats import LONGEST_LINE
from ..exceptions import ModelError, RequestRejectedError, reads
from ..llm.client import LLM
from ..llm.openai_protocol import read_answer
from ..llm.refusals import error_text, redact, status_error
from ..llm.replies import taken_by
from ..llm.requests import Request, cached_reply
from ..preferences.cells import read_json
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


def read_line(line: bytes, secrets: Secrets) -> Answer | None:
    """The answer in a line of a file of replies; None if it names no request.

    `secrets` are masked in what an error quotes.
    """
    try:
        said = read_json(line.removeprefix(codecs.BOM_UTF8))
        key = bytes.fromhex(said["custom_id"])
    except (ValueError, KeyError, TypeError):
        return None
    try:
        return _read_answer(key, said, secrets)
    except ModelError as error:
        return Answer(key, error.took, error)


def _response(said: Mapping[str, Any]) -> tuple[int | None, Any]:
    """The status and the body in a line; None where it tells no status."""
    reply = said.get("response")
    reply = reply if isinstance(reply, dict) else {}
    status, body = reply.get("status_code"), reply.get("body", reply)
    if isinstance(body, str):
        with suppress(ValueError):
            body = read_json(body)
    return None if status is None else int(float(status)), body  # some write "200" or 200.0


def _took(key: bytes, said: Mapping[str, Any], secrets: Secrets) -> Completion | None:
    status, body = _response(said)
    return taken_by(json.dumps(body).encode(), 200 if status is None else status)


@reads("the line of the batch", took=_took)
def _read_answer(key: bytes, said: Mapping[str, Any], secrets: Secrets) -> Answer:
    """The answer that a line holds.

    Raises:
        ModelError: it is no usable reply.
    """
    status, body = _response(said)
    if status is None and not (isinstance(body, dict) and "choices" in body):
        return Answer(key, error=_line_error(said.get("error"), secrets), called=False)
    if status is not None and status // 100 != 2:
        raise status_error(status, {}, error_text(json.dumps(body).encode()), secrets)
    return Answer(
        key,
        read_answer(
            body if isinstance(body, dict) else {},
            secrets,
            lambda status, words: status_error(status, {}, words, secrets),
        ),
    )


def _line_error(error: Any, secrets: Secrets) -> ModelError:
    fields = error if isinstance(error, dict) else {"message": error}
    code, words = fields.get("code") or "no code", fields.get("message") or "no reason given"
    return RequestRejectedError(
        f"the batch did not answer it ({provider_words(code, secrets)}): {provider_words(words, secrets)}"
    )


def provider_words(words: object, secrets: Secrets) -> str:
    """The provider's words without secrets, and no longer than an error should be."""
    return redact(str(words).encode(errors="replace").decode(), secrets)[:300]


class MaskedLines:
    """Writes a provider's file of replies without the secrets that the provider repeats in it.

    In the texts of replies those are masked that are in the replies of single calls. Use it as a context
    manager: the last line is written at the end.
    """

    def __init__(self, file: IO[bytes], secrets: Secrets) -> None:
        self._file = file
        self._secrets = secrets
        self._line = bytearray()  # that has begun, and whose end has not come
        self._too_long = False

    def __enter__(self) -> MaskedLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._end_line()

    def write(self, piece: bytes, /) -> int:
        """Write the lines that end in this piece, and keep the rest for the next one."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._add(part)
            self._end_line()
            self._file.write(b"\n")
        self._add(rest)
        return len(piece)

    def _add(self, part: bytes) -> None:
        """Go on with a line. One that is too long to be read is left out."""
        self._too_long |= len(self._line) + len(part) > LONGEST_LINE
        if self._too_long:
            self._line.clear()
        else:
            self._line += part

    def _end_line(self) -> None:
        self._file.write(_masked_line(bytes(self._line), self._secrets))
        self._line.clear()
        self._too_long = False


def _masked_line(line: bytes, secrets: Secrets) -> bytes:
    try:
        said = read_json(line)
        masked = _masked(said, secrets.mask, secrets)
        return line if masked == said else json.dumps(masked, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # no line of a batch: an error may quote its beginning
        text = line.decode(errors="surrogateescape")
        return secrets.mask(text).encode(errors="surrogateescape")


def _masked(
    value: Any, mask: Callable[[str], str], secrets: Secrets, *, chosen: bool = False
) -> Any:
    """A value of JSON in which no text shows a secret, but for the key of a request.

    Args:
        value: the value.
        mask: how its texts are masked.
        secrets: those of the provider.
        chosen: whether it is in the choices of a completion, some of whose fields the model wrote.
    """
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [_masked(one, mask, secrets, chosen=chosen) for one in value]
    if not isinstance(value, dict):
        return value
    masked = {}
    for name, one in value.items():
        of_the_model = chosen and name in _WRITTEN_BY_THE_MODEL
        inner = secrets.mask_reply if of_the_model else mask
        masked[name if name in _NAMES_READ else mask(name)] = (
            one
            if name == "custom_id"
            else _masked(one, inner, secrets, chosen=chosen or name == "choices")
        )
    return masked


_WRITTEN_BY_THE_MODEL = frozenset(
    (
        *("content", "text", "tool_calls", "function_call", "logprobs"),
        *("reasoning", "reasoning_content", "reasoning_text", "reasoning_details", "thinking"),
    )
)
_NAMES_READ = (
    _WRITTEN_BY_THE_MODEL
    | {  # names of fields, which are no secrets whatever a header says
        *("custom_id", "response", "status_code", "body", "error", "message", "code", "choices"),
        *(
            "refusal",
            "finish_reason",
            "usage",
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
        ),
    }
)
