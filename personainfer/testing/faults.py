"""The replies of a fake model, and the faults that a call can have.

A `Reply` makes an HTTP body. A `Fault` changes the reply, replaces the body, or breaks the connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

NO_HEADERS: Mapping[str, str] = {}
_BAD_BYTE = "\udcff"  # encoded as the byte 0xFF, which is never UTF-8


@dataclass(frozen=True)
class Reply:
    """One completion of the fake model.

    If the request has a tool, content that looks like JSON becomes the arguments of a call of this tool.

    Attributes:
        content: the text of the reply; None: null. Anything else is sent as JSON text.
        finish_reason: why the model stopped; "stop" becomes "tool_calls" if a tool is called.
        refusal: the text of `message.refusal`; None: null.
        model: the model that the reply names; None: that of the request.
        prompt_tokens, completion_tokens: what `usage` says; None: an estimate, a quarter of the characters.
        logprobs: is sent as it is, in the form of OpenAI's API.
        headers: HTTP headers that are sent as well.
        reasoning_tokens: how many of the completion tokens are reasoning; None: `usage` does not say it.
    """

    content: Any = None
    finish_reason: str = "stop"
    refusal: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reasoning_tokens: int | None = None

    @property
    def text(self) -> str:
        """The content as text: a string as it is, anything else as JSON, None as "null"."""
        return self.content if isinstance(self.content, str) else compact_json(self.content)

    def render(self, body: Mapping[str, Any]) -> bytes:
        """Make the HTTP body that answers the request `body`.

        A `FakeLLM` sends such bytes, given as its `reply`, for every request.
        """
        text = None if self.content is None else self.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": self.refusal}
        finish, tool = self.finish_reason, function_to_call(body)
        if tool and text and text.startswith(("{", "[")):
            call = {"name": tool["name"], "arguments": text}
            calls = [{"id": "call_fake", "type": "function", "function": call}]
            message |= {"content": None, "tool_calls": calls}
            finish = "tool_calls" if finish == "stop" else finish
        asked, said = self.prompt_tokens, self.completion_tokens
        asked = sum(map(len, texts_of(body))) // 4 if asked is None else asked
        said = len(text or "") // 4 + 1 if said is None else said
        usage: dict[str, Any] = {
            "prompt_tokens": asked,
            "completion_tokens": said,
            "total_tokens": asked + said,
        }
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        completion = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1_700_000_000}
        completion |= {"model": self.model or body.get("model"), "usage": usage}
        completion |= {"choices": [choice | {"logprobs": self.logprobs}]}
        return compact_json(completion).encode(errors="surrogateescape")


FaultKind = Literal[
    "status", "body", "edit", "content", "bad_schema", "truncated", "filtered", "not_utf8",
    "hang", "slow_body", "reset", "reset_mid_body",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A way in which a call fails. The methods below make faults.

    Attributes:
        kind: what happens: "status" or "body" (another body is sent), "edit", "content", "bad_schema",
            "truncated", "filtered" or "not_utf8" (the reply changes), "hang", "slow_body", "reset" or
            "reset_mid_body" (of the connection).
        code: the HTTP status.
        headers: HTTP headers that are sent as well.
        seconds: how long "hang" and "slow_body" take.
        body: is sent in place of the reply; None: the reply is sent.
        edit: field of the reply -> its other value.

    Raises:
        ValueError: there is no such kind: the call would not fail, and a test of it prove nothing.
    """

    kind: FaultKind
    code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    body: bytes | None = None
    edit: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            kinds = ", ".join(get_args(FaultKind))
            raise ValueError(f"kind={self.kind!r:.40} is no fault: name one of {kinds}.")

    reset = staticmethod(lambda: Fault("reset"))  #: the connection ends before the reply
    reset_mid_body = staticmethod(lambda: Fault("reset_mid_body"))  #: … or within its body
    bad_schema = staticmethod(lambda: Fault("bad_schema"))  #: JSON that does not fit the schema
    truncated = staticmethod(lambda: Fault("truncated"))  #: half a text, finish_reason "length"
    filtered = staticmethod(lambda: Fault("filtered"))  #: no text, finish_reason "content_filter"
    not_utf8 = staticmethod(lambda: Fault("not_utf8"))  #: one byte of the content is not UTF-8

    @classmethod
    def status(cls, code: int, headers: Mapping[str, str] = NO_HEADERS, message: str = "") -> Self:
        """Answer with an HTTP error that has a body like OpenAI's.

        Args:
            code: the HTTP status.
            headers: HTTP headers that are sent as well.
            message: the text of the error; "": "scripted" and the status.
        """
        return cls("status", code, headers, body=error_body(code, message or f"scripted {code}"))

    @classmethod
    def response(
        cls, payload: Any, code: int = 200, headers: Mapping[str, str] = NO_HEADERS
    ) -> Self:
        """Answer with `payload` as JSON in place of the completion."""
        return cls("status", code, headers, body=compact_json(payload).encode())

    @classmethod
    def rate_limit(
        cls, retry_after: float | str | None = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> Self:
        """Answer with a 429.

        Args:
            retry_after: the Retry-After header: seconds or an HTTP date; None: there is no such header.
            headers: other headers.
        """
        wait = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return cls.status(429, {**wait, **headers}, "Rate limit reached for requests")

    @classmethod
    def hang(cls, seconds: float = 3600) -> Self:
        """Send nothing for this many seconds, then the normal reply."""
        return cls("hang", seconds=seconds)

    @classmethod
    def slow_body(cls, seconds: float = 1.0) -> Self:
        """Send the headers at once, then the body in ten pieces over this many seconds."""
        return cls("slow_body", seconds=seconds)

    @classmethod
    def empty(cls, of: Literal["body", "content"] = "body") -> Self:
        """Answer with a 200 without a body, or with a completion whose content is ""."""
        return cls("body", body=b"") if of == "body" else cls("edit", edit={"content": ""})

    @classmethod
    def invalid_json(cls, of: Literal["content", "body"] = "content") -> Self:
        """Answer with content that is almost JSON, or with an HTML page in place of the whole body."""
        return cls("content") if of == "content" else cls("body", body=b"<html>It works!</html>")

    @classmethod
    def refusal(cls, text: str = "I can't help with that.") -> Self:
        """Answer with a refusal in `message.refusal`, and null as the content."""
        return cls("edit", edit={"content": None, "refusal": text})

    @classmethod
    def other_model(cls, name: str = "another-model") -> Self:
        """Answer with the normal reply, under the name of another model."""
        return cls("edit", edit={"model": name})

    @classmethod
    def huge(cls, bytes: int = 10_000_000) -> Self:
        """Answer with a completion whose content is this many bytes of words, not JSON."""
        return cls("edit", edit={"content": ("plain words " * (bytes // 12 + 1))[:bytes]})

    @classmethod
    def table(cls) -> dict[str, Self]:
        """Return name -> an example of each way in which an endpoint fails, to test code with all of them.

        "hang" sends nothing for an hour.
        """
        return {
            "429-retry-after": cls.rate_limit(0),
            "429": cls.rate_limit(),
            "500": cls.status(500),
            "503": cls.status(503),
            "reset": cls("reset"),
            "reset-in-body": cls("reset_mid_body"),
            "hang": cls.hang(),
            "empty-body": cls.empty(),
            "empty-content": cls.empty("content"),
            "invalid-json": cls.invalid_json(),
            "not-json": cls.invalid_json("body"),
            "schema": cls("bad_schema"),
            "refusal": cls.refusal(),
            "length": cls("truncated"),
            "filter": cls("filtered"),
            "not-utf8": cls("not_utf8"),
            "10-MB": cls.huge(),
        }

    def spoil(self, reply: Reply, schema: Any) -> Reply:
        """Return a reply as this fault changes it: its content, its finish reason, or fields in `edit`.

        Other faults, such as those of the connection, return the reply unchanged.

        Args:
            reply: the reply.
            schema: the JSON schema that the content should fit; None: there is none.
        """
        text, edit = reply.text, dict(self.edit)
        if self.kind == "truncated":
            edit = {"content": text[: len(text) // 2], "finish_reason": "length"}
        elif self.kind == "filtered":
            edit = {"content": "", "finish_reason": "content_filter"}
        elif self.kind == "content":
            edit = {"content": f"{text[:-1]}:"}
        elif self.kind == "bad_schema":  # a schema that requires nothing accepts any object
            strict = isinstance(schema, dict) and schema.get("required")
            edit = {"content": {"unexpected": "field"} if strict else [None]}
        elif self.kind == "not_utf8":  # inside a string: a lenient decoder gets JSON with mojibake
            head, _, tail = text.rpartition(" ")
            edit = {"content": f"{head}{_BAD_BYTE}{tail}"}
        return replace(reply, **edit)


def function_to_call(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the function that the reply should call: the one that `tool_choice` names, else the first.

    None: the request has no functions, or forbids calls.
    """
    choice = body.get("tool_choice")
    asked = choice["function"]["name"] if isinstance(choice, dict) else None
    functions = [tool["function"] for tool in body.get("tools") or () if choice != "none"]
    return next((f for f in functions if asked in (None, f["name"])), None)


def texts_of(body: Mapping[str, Any], role: str = "") -> list[str]:
    """Return the text of each message with this role, or ("") of every message, in order.

    The parts of a message are joined by spaces. A message without text gives "".
    """
    said = [m.get("content") or "" for m in body.get("messages", ()) if role in ("", m["role"])]
    return [t if isinstance(t, str) else " ".join(p.get("text", "") for p in t) for t in said]


def compact_json(value: Any) -> str:
    """Return a value as JSON without white space around its parts. Other letters than ASCII stay."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def error_body(status: int, message: str) -> bytes:
    """Make the body of an HTTP error in OpenAI's form."""
    codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = "requests" if status == 429 else kind
    error = {"message": message, "type": kind, "param": None, "code": codes.get(status)}
    return compact_json({"error": error}).encode()
