"""The OpenAI protocol as bytes and fields: the form asked for, what a reply holds, what a status means.

Every error of an endpoint is translated here, once, and no key passes through. It sends nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from pydantic import BaseModel

from ..exceptions import (
    AuthenticationError,
    ModelError,
    ModelNotFoundError,
    RateLimitError,
    RequestRejectedError,
    TransportError,
)

__all__ = [
    "Json",
    "error_text",
    "provider_errors",
    "redact",
    "response_format",
    "retry_after",
    "status_error",
    "wire_schema",
]

Json = dict[str, Any]


def response_format(schema: type[BaseModel], *, strict: bool) -> Json:
    """The `response_format` of OpenAI's protocol for a pydantic model."""
    form = {
        "name": schema.__name__,
        "schema": wire_schema(schema, tight=not strict),
        "strict": strict,
    }
    return {"response_format": {"type": "json_schema", "json_schema": form}}


_LOOSE = {"title", "description", "default"}
# Strict mode refuses some of them at some providers.
_TIGHT = {"pattern", "minLength", "maxLength", "minItems", "maxItems"}


def wire_schema(schema: type[BaseModel], *, tight: bool) -> Json:
    """The JSON schema of a model: references resolved, every field required, nothing else allowed.

    `tight` keeps bounds on strings and lists, from which llama.cpp makes a grammar.
    """
    document = schema.model_json_schema()
    definitions = document.pop("$defs", {})
    dropped = _LOOSE if tight else _LOOSE | _TIGHT

    def resolve(node: Any, *, named: bool = False) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
        # A property may be called "title": only keywords are dropped, never the names of fields.
        kept = {
            key: resolve(value, named=key == "properties")
            for key, value in node.items()
            if named or key not in dropped
        }
        if kept.get("type") == "object" and not named:
            kept["additionalProperties"] = False
            kept["required"] = list(kept.get("properties", {}))
        return kept

    resolved: Json = resolve(document)
    return resolved


def status_error(status: int, headers: Mapping[str, str], text: str, key: str) -> ModelError:
    """The error of this library for an HTTP status, with the endpoint's words and without the key."""
    text = text.encode(errors="replace").decode()
    said = redact(" ".join(text.split()), key)[:300]
    lowered = said.lower()
    wait = retry_after(headers)
    if status == 429 and "insufficient_quota" in lowered:
        return AuthenticationError(f"the account has no quota left: {said}.", hint="Top it up.")
    if status == 429 or (status == 503 and wait is not None):
        return RateLimitError(f"the endpoint refused ({status}): {said}.", retry_after=wait)
    if status in (401, 403):
        return AuthenticationError(
            f"the endpoint refuses the key ({status}): {said}.", hint="Check api_key=."
        )
    if status == 404:
        return ModelNotFoundError(
            f"not found (404): {said}.", hint="Check model= and api_base= (often ending in /v1)."
        )
    if status == 408 or status >= 500:
        return TransportError(f"the endpoint failed ({status}): {said}.")
    return RequestRejectedError(f"the endpoint rejects this request ({status}): {said}.")


@contextmanager
def provider_errors(name: str, timeout: float, key: str) -> Iterator[None]:
    """Translate what the openai SDK, and litellm after it, raise while `name` is called.

    `timeout` is in seconds, for the message; `key` is taken out of what the provider says.
    """
    import openai

    try:
        yield
    except openai.APITimeoutError:
        message = f"{name} did not answer within {timeout:g} s."
        raise TransportError(message, hint="Raise timeout=.") from None
    except openai.APIConnectionError as error:
        raise TransportError(redact(f"the connection to {name} failed: {error}", key)) from None
    except openai.APIError as error:
        response = getattr(error, "response", None)
        headers = getattr(error, "litellm_response_headers", None) or getattr(
            response, "headers", {}
        )
        status = getattr(error, "status_code", None) or 500
        raise status_error(int(status), headers, str(error), key) from None


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by Retry-After (seconds or a date), retry-after-ms or x-ratelimit-reset-*."""
    lower = {key.lower(): str(value).strip() for key, value in headers.items()}
    if "retry-after-ms" in lower:
        return _number(lower["retry-after-ms"], scale=0.001)
    if "retry-after" in lower:
        return _wait(lower["retry-after"])
    resets = {
        key.removeprefix("x-ratelimit-reset").strip("-"): _wait(value)
        for key, value in lower.items()
        if key.startswith("x-ratelimit-reset")
    }
    exhausted = [
        wait
        for what, wait in resets.items()
        if wait is not None and lower.get(f"x-ratelimit-remaining-{what}".strip("-")) == "0"
    ]
    return max(exhausted or [wait for wait in resets.values() if wait is not None], default=None)


def _wait(value: str) -> float | None:
    seconds = _number(value)
    if seconds is not None:
        if seconds > 1e11:  # some send the epoch in milliseconds, such as OpenRouter
            seconds /= 1000
        return max(0.0, seconds - time()) if seconds > 1e8 else seconds  # and some in seconds
    parts = _DURATION.findall(value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def _number(value: str, scale: float = 1.0) -> float | None:
    return float(value) * scale if re.fullmatch(r"\d+(\.\d+)?", value) else None


def error_text(content: bytes) -> str:
    """What an OpenAI-style error body says, or its beginning."""
    text = content[:2000].decode("utf-8", "replace")
    try:
        error = json.loads(content)["error"]
        return f"{error['message']} {error.get('code') or ''}" if isinstance(error, dict) else text
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


_KEY = re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|AIza)[-_][\w*.-]{6,}|(?<=Bearer )\S+")


def redact(text: str, key: str) -> str:
    """Endpoints echo keys in their errors; neither ours nor one that looks like a key passes on."""
    return _KEY.sub("[key]", text.replace(key, "[key]") if len(key) > 3 else text)
