"""One request -> one reply of one model, over litellm or straight to an OpenAI-compatible endpoint.

A request is the bytes of an OpenAI chat completion request; every transport takes the same. Errors of
providers and of HTTP are translated here and nowhere else. Transports know nothing of caches or
retries; `embedded` holds the third one, the model that runs in this process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel

from ..exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    ReplyError,
    TransportError,
)
from ..records import Completion
from .openai_protocol import (
    Json,
    error_text,
    provider_errors,
    response_format,
    status_error,
    wire_schema,
)
from .replies import decode, read_completion

if TYPE_CHECKING:
    import aiohttp

__all__ = ["EndpointTransport", "LiteLLMTransport", "Transport"]

_LIST_TIMEOUT = 10.0  # seconds for the list of models
_LARGEST_REPLY = 4 * 2**20  # bytes; a persona takes one thousandth of it


class Transport(Protocol):
    """What `llm` needs of a way to reach a model."""

    model: str  # the name that the request carries
    endpoint: (
        str  # where it goes, as part of the cache's key: never a key, never a port chosen anew
    )

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """The fields of the request that ask for a reply of this form."""

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """Send one request and wait for its reply, or raise a ModelError."""

    def open(self) -> None:
        """A run begins to use it."""

    async def close(self) -> None:
        """A run is done with it; the last one lets go of the connections."""


class EndpointTransport:
    """Any server that speaks the OpenAI protocol: vLLM, llama.cpp, SGLang, a gateway, OpenAI."""

    def __init__(self, model: str, api_base: str, api_key: str | None = None) -> None:
        self.model = model
        self.endpoint = api_base.rstrip("/")
        self._base = self.endpoint
        self.key = api_key or _environment_key(self.endpoint)
        self._session: aiohttp.ClientSession | None = None
        self._runs = 0
        self._names = {model, ""}  # what a reply may call the model

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """A JSON schema in the strict form that OpenAI documents."""
        return response_format(schema, strict=True) if schema else {}

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """POST the request to /chat/completions."""
        status, headers, content = await self._post("/chat/completions", body, timeout)
        if status != 200:
            raise status_error(status, headers, error_text(content), self.key)
        reply = decode(content)
        completion = read_completion(reply)
        name = str(reply.get("model") or "")
        if name not in self._names:
            await self._check_name(name)
        return completion

    def open(self) -> None:
        """Count the runs that share the connections."""
        self._runs += 1

    async def close(self) -> None:
        """Close the connections after the last run; the next one opens new ones."""
        self._runs -= 1
        if not self._runs and self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _post(
        self, path: str, body: bytes | None, timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """POST the body, or GET where there is none."""
        import aiohttp

        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self.key:
                headers["Authorization"] = f"Bearer {self.key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), headers=headers
            )
        limit = _within(timeout)
        try:
            method = "GET" if body is None else "POST"
            url = self._base + path
            async with self._session.request(method, url, data=body, timeout=limit) as response:
                return response.status, response.headers, await _read_bounded(response)
        except TimeoutError:
            raise TransportError(
                f"{self.endpoint} did not answer within {timeout:g} s.", hint="Raise timeout=."
            ) from None
        # `from None`: aiohttp's errors can hold the request's headers, and with them the key.
        except (aiohttp.ClientError, OSError) as error:
            raise TransportError(
                f"the connection to {self.endpoint} failed ({type(error).__name__}).",
                hint="Is the server running, and is api_base= its address (often ending in /v1)?",
            ) from None

    async def _check_name(self, name: str) -> None:
        """A reply that calls the model otherwise is an alias, unless the endpoint serves both names.

        Gateways and deployments answer under the name of what is behind them. But where the endpoint
        lists the model that was asked for, a reply in another's name comes from another model.
        """
        asked = self.model.rsplit("/", 1)[-1].lower()
        if asked not in name.lower() and self.model in await self._served():
            raise ReplyError(
                f"the reply comes from the model {name[:80]!r}, not from {self.model!r}.",
                hint="The endpoint routes to another model: name that one, or mend its routing.",
            )
        self._names.add(name)

    async def _served(self) -> set[str]:
        assert self._session is not None
        import aiohttp

        try:
            limit = _within(_LIST_TIMEOUT)
            async with self._session.get(self._base + "/models", timeout=limit) as response:
                listed = (await response.json())["data"]
                return {str(model["id"]) for model in listed}
        except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError, RecursionError):
            return set()  # no list: nothing to compare with


@cache
def _within(seconds: float) -> aiohttp.ClientTimeout:
    import aiohttp

    return aiohttp.ClientTimeout(total=seconds)


def _environment_key(endpoint: str) -> str:
    """OPENAI_API_KEY for OpenAI itself; another endpoint is not told it."""
    is_openai = urlsplit(endpoint).hostname == "api.openai.com"
    return os.environ.get("OPENAI_API_KEY", "") if is_openai else ""


class LiteLLMTransport:
    """Any provider that litellm knows; the form of the reply is asked for as instructor does it."""

    def __init__(self, model: str, api_base: str | None = None, api_key: str | None = None) -> None:
        self._litellm = _import_litellm()
        self.model = model
        self.options = {"api_base": api_base, "api_key": api_key}
        self.key = api_key or ""
        try:
            self.name, self.provider, *_ = self._litellm.get_llm_provider(model)
        except self._litellm.BadRequestError:
            raise InvalidArgumentError(
                f"model={model!r} names no provider that litellm knows.",
                hint='Write "provider/model" (https://docs.litellm.ai/docs/providers), give api_base='
                ' for an OpenAI-compatible endpoint, or use "local".',
            ) from None
        self.endpoint = f"litellm:{self.provider}:{(api_base or '').rstrip('/')}"

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """A JSON schema where litellm knows the model to take one, else a tool call."""
        if schema is None:
            return {}
        from instructor import Mode
        from instructor.processing.response import handle_response_model

        # instructor's default, TOOLS, makes litellm import a package that a plain install lacks.
        native = self._litellm.supports_response_schema(self.model) or not (
            self._litellm.supports_function_calling(self.model)
        )
        mode = Mode.JSON_SCHEMA if native else Mode.TOOLS
        fields: Json = handle_response_model(schema, mode, messages=[])[1]
        fields.pop("messages", None)
        form = wire_schema(schema, tight=False)  # instructor's keeps what strict providers refuse
        if mode is Mode.JSON_SCHEMA:
            fields["response_format"]["json_schema"]["schema"] = form
        else:
            fields["tools"][0]["function"]["parameters"] = form
        return fields

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """Call litellm once: its own retries are off, since they ignore Retry-After."""
        with provider_errors(self.model, timeout, self.key):
            reply = await self._litellm.acompletion(
                **json.loads(body),
                **self.options,
                timeout=timeout,
                num_retries=0,
                max_retries=0,
                drop_params=True,  # e.g. `seed`, or `temperature` of reasoning models
            )
        return read_completion(reply.model_dump())

    def open(self) -> None:
        """Fail before the first call where one environment variable is all that is missing."""
        if self.key:
            return
        missing = self._litellm.validate_environment(self.model)["missing_keys"]
        if len(missing) == 1 and missing[0].endswith("_API_KEY"):
            raise AuthenticationError(
                f"no key for {self.model}: {missing[0]} is not set.",
                hint=f'Set {missing[0]}, pass api_key=, or try model="local", which needs none.',
            )

    async def close(self) -> None:
        """litellm keeps its own clients."""


def _import_litellm() -> Any:
    """litellm takes seconds to import and would fetch its price map from the network."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.suppress_debug_info = True
    return litellm


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body, up to a bound that no honest reply reaches."""
    if response.content_length is not None and response.content_length <= _LARGEST_REPLY:
        return await response.read()
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(2**16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_REPLY:
            response.close()
            raise ReplyError(f"the reply is larger than {_LARGEST_REPLY // 2**20} MB.")
    return b"".join(parts)
