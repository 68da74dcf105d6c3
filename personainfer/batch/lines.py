"""The lines of a batch's files: a request that is sent, or the answer that comes back.

Providers answer in any order, so each line has the key of its request, in hexadecimal, as `custom_id`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, NamedTuple

from ..api_keys import Secrets
from ..data.file_formats import LONGEST_LINE, bounded_lines
from ..data.source_rows import PreferenceSource, SourceRow
from ..exceptions import ModelError, RequestRejectedError, reads
from ..llm.client import LLM
from ..llm.openai_protocol import read_answer
from ..llm.refusals import error_text, redact, status_error
from ..llm.replies import taken_by
from ..llm.requests import stored_texts
from ..personas.infer import checked
from ..personas.requests import Plan
from ..preferences.cells import read_json
from ..records import Completion


class WireRequest(NamedTuple):
    """A request as it is sent.

    Attributes:
        key: the key of its reply in the cache.
        body: the request as JSON.
        cached: its reply as the cache stores it; None: the cache has none that can be used.
    """

    key: bytes
    body: bytes
    cached: str | None


class Answer(NamedTuple):
    """The provider's answer to one request of a batch.

    Attributes:
        key: the key of the request.
        completion: the reply of the model; None: there is none. Next to an error, it has the tokens that the
            failed call took.
        error: why there is no usable reply; None: there is no error.
        called: whether the provider called the model. It did not if a line has an error and no response.
    """

    key: bytes
    completion: Completion | None = None
    error: ModelError | None = None
    called: bool = True


def wired_rows(
    source: PreferenceSource, plan: Plan, llm: LLM
) -> Iterator[tuple[SourceRow, list[WireRequest]]]:
    """Yield each row with its requests as `llm.run` would send them, each with its cached reply."""
    for (row, _), requests in plan.asked(checked(source)):
        jobs = [llm.job(request) for request in requests]
        stored = stored_texts(jobs, llm.cache)
        yield row, [WireRequest(job.key, job.body, stored.get(job.key)) for job in jobs]


def request_line(name: str, url: str, body: bytes) -> bytes:
    """Return the line of a file that asks the provider to send `body` to `url`.

    Args:
        name: the `custom_id`, which comes back with the answer.
        url: the path, such as "/v1/chat/completions".
        body: the request as JSON, in one line.
    """
    head = json.dumps({"custom_id": name, "method": "POST", "url": url})[:-1]
    return head.encode() + b', "body": ' + body + b"}\n"


def read_line(line: bytes, secrets: Secrets) -> Answer | None:
    """Read a line of a file of replies or errors.

    Args:
        line: the line, with or without its line end.
        secrets: texts that are replaced by "[key]" in what an error quotes.

    Returns:
        The answer, with an error if the line has no usable reply. None if the line does not name a request.
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


def read_answers(file: IO[bytes], secrets: Secrets) -> Iterator[Answer]:
    """Yield the answers in a file of replies or errors. Lines that name no request are left out.

    Args:
        file: the file.
        secrets: as for `read_line`.
    """
    for line in bounded_lines(file):
        if line is not None and (answer := read_line(line, secrets)):
            yield answer


def _response(said: Mapping[str, Any]) -> tuple[int | None, Any]:
    """Return the HTTP status and the body of the reply in a line; None for a status that the line lacks."""
    reply = said.get("response")
    reply = reply if isinstance(reply, dict) else {}
    status, body = reply.get("status_code"), reply.get("body", reply)
    if isinstance(body, str):
        with suppress(ValueError):
            body = read_json(body)
    return None if status is None else int(float(status)), body  # some write "200" or 200.0


def _took(key: bytes, said: Mapping[str, Any], secrets: Secrets) -> Completion | None:
    """Return the tokens that a call took, of whose line no reply could be read; None: nothing is known."""
    status, body = _response(said)
    return taken_by(json.dumps(body).encode(), 200 if status is None else status)


@reads("the line of the batch", took=_took)
def _read_answer(key: bytes, said: Mapping[str, Any], secrets: Secrets) -> Answer:
    """Return the answer that a line holds. It has an error if the provider did not call the model.

    Raises:
        ModelError: the model was called, and its reply is a refusal or cannot be read.
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
    """Return the error of a line without a response: the provider did not call the model for this request."""
    fields = error if isinstance(error, dict) else {"message": error}
    code, words = fields.get("code") or "no code", fields.get("message") or "no reason given"
    return RequestRejectedError(
        f"the batch did not answer it ({provider_words(code, secrets)}): {provider_words(words, secrets)}"
    )


def provider_words(words: object, secrets: Secrets) -> str:
    """Return the provider's words, without secrets and with at most 300 characters, for an error."""
    return redact(str(words).encode(errors="replace").decode(), secrets)[:300]


class MaskedLines:
    """Writes a provider's file of replies without the secrets that the provider repeats in it.

    "[key]" takes the place of each secret. The names of JSON fields that are read, and each `custom_id`, stay
    as they are. In texts that the model wrote, a secret is replaced only if no text holds it by chance
    (`Secrets.mask_reply`).

    Use it as a context manager: a last line without a line end is written when the block ends without an
    error.

    Args:
        file: where the lines are written.
        secrets: what is replaced.
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
        """Write the lines that end in this piece, keep the rest for the next piece, and return its length."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._add(part)
            self._end_line()
            self._file.write(b"\n")
        self._add(rest)
        return len(piece)

    def _add(self, part: bytes) -> None:
        """Add a part to the line that has begun. A line longer than `LONGEST_LINE` becomes an empty line."""
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
    """Return a line with "[key]" in the place of each secret. JSON without a secret keeps its bytes."""
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
    """Return a value of JSON with "[key]" for each secret in its texts and names, except in `custom_id`.

    Args:
        value: the value.
        mask: replaces secrets in a text.
        secrets: what is replaced in fields that the model wrote.
        chosen: whether the value is within the choices of a completion. There, the model wrote the fields in
            `_WRITTEN_BY_THE_MODEL`.
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
    "content text tool_calls function_call logprobs"
    " reasoning reasoning_content reasoning_text reasoning_details thinking".split()
)
# Names of fields, which are no secrets whatever a header says.
_NAMES_READ = _WRITTEN_BY_THE_MODEL | frozenset(
    "custom_id response status_code body error message code choices refusal finish_reason"
    " usage prompt_tokens completion_tokens total_tokens".split()
)
