"""Send one request and return its reply, directly to an OpenAI-compatible endpoint or through litellm.

Every transport takes the same bytes: an OpenAI chat completion request. `endpoint_faults` turns refusals into
errors, and a `Dialect` rewrites requests for endpoints that need another form.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import BaseModel, ConfigDict

from ..api_keys import (
    Address,
    Secrets,
    SecretText,
    environment_key,
    key_headers,
    mask_secrets,
    shown_address,
)
from ..event_loop import Deadlines
from ..exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    ModelError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from ..http_guard import guarded_http, too_large
from ..records import Completion
from .endpoint_faults import (
    embedded_status,
    error_text,
    no_answer,
    provider_errors,
    status_error,
)
from .openai_protocol import (
    FORMS,
    Dialect,
    Json,
    read_completion,
    response_format,
    tool_call,
    wire_schema,
)
from .replies import decode, last_bad_reply

if TYPE_CHECKING:
    import aiohttp

_LARGEST_REPLY = 4 * 2**20  # bytes; a persona takes one thousandth of it
_NAMES_NOTED = 8
_IN_PROCESS = {"petals", "vllm"}  # litellm's providers that may send nothing over HTTP
_FOLLOWING = {"aiohttp_openai"}  # those whose client `guarded_http` does not reach
_DIRECTLY = 'Give the address of an OpenAI-compatible endpoint as api_base=, without "litellm/".'


class Transport(Protocol):
    """What `llm` needs of a way to reach a model."""

    model: str  # the name that the request carries
    endpoint: (
        str  # where it goes, as part of the cache's key: never a key, and no port that changes
    )

    @property
    def secrets(self) -> Secrets:
        """What no quotation of the endpoint's words may show."""

    @property
    def notes(self) -> Json:
        """What was found out about the endpoint, for the settings of a table."""

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """The fields of the request that ask for a reply of this form."""

    def most_tokens(self, asked: int) -> int:
        """The most tokens that a reply may take where `asked` are wanted for the answer."""

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """Send one request and wait for its reply, or raise a ModelError.

        An error with `rewritten` says that the same body would now be sent in another form.
        """

    def was_read(self, completion: Completion, *, fits: bool) -> None:
        """Learn whether a reply was in the form that was asked for."""

    def open(self) -> None:
        """A run begins to use it."""

    async def close(self) -> None:
        """A run is done with it; the last one closes the connections."""


class _Speaker:
    """The base of both transports: it learns the dialect of the endpoint, one request at a time."""

    enforces_forms = (
        False  # whether no reply can be in another form than the one that was asked for
    )

    def __init__(self, model: str) -> None:
        self.model = model
        self.dialect = Dialect(model)
        self._answered_as: dict[str, None] = {}

    @property
    def secrets(self) -> Secrets:
        """What no quotation of the endpoint's words may show."""
        raise NotImplementedError

    @property
    def notes(self) -> Json:
        """The form that the endpoint takes, what is left out, and what it calls the model."""
        names = {"answered_as": sorted(self._answered_as)} if self._answered_as else {}
        return {**self.dialect.notes, **names}

    def most_tokens(self, asked: int) -> int:
        """`asked`, or more for a model that reasons first: its reasoning counts as output."""
        return self.dialect.most_tokens(asked)

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """Send the request once, in the dialect of the endpoint, which is learned from its refusals."""
        dialect = self.dialect
        is_first = not dialect.proven and await dialect.wait_for_turn()
        version = dialect.version
        try:
            completion = await self._send(body, timeout)
        except RequestRejectedError as error:
            dialect.refused(version, error, body)
            raise
        except ReplyError as error:
            if error.completion is not None:
                dialect.accepted()
            if error.cut_off and error.reasoned:
                error.rewritten = dialect.thinks(version)
            raise
        finally:
            if is_first:
                dialect.end_turn()
        dialect.accepted()
        return completion if dialect.fits else replace(completion, dialect=version)

    def was_read(self, completion: Completion, *, fits: bool) -> None:
        """An endpoint whose replies are all in another form is asked in another way."""
        if not (self.dialect.fits or self.enforces_forms):
            self.dialect.was_read(completion.dialect, fits=fits)

    async def _send(self, body: bytes, timeout: float) -> Completion:
        raise NotImplementedError

    def _note_name(self, name: object) -> None:
        """Remember the model's name in a reply: a gateway may name the model behind it."""
        if name and name != self.model and len(self._answered_as) < _NAMES_NOTED:
            self._answered_as[self.secrets.mask(str(name))[:80]] = None


class EndpointTransport(_Speaker):
    """Any server that speaks the OpenAI protocol: vLLM, llama.cpp, SGLang, a gateway, OpenAI, Azure.

    Proxies and certificates are those of the environment: HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE (or
    REQUESTS_CA_BUNDLE), and SSL_CERTIFICATE for a certificate of the client.
    """

    def __init__(
        self,
        model: str,
        api_base: str,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(model)
        self._base: str = Address(api_base.rstrip("/"))
        self.endpoint = shown_address(self._base)
        self.key = SecretText(api_key or environment_key(self._base))
        self.headers = {name: SecretText(text) for name, text in (headers or {}).items()}
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None
        self._deadlines = Deadlines()
        self._runs = 0

    @property
    def secrets(self) -> Secrets:
        """The key, the added headers, and what the addresses of the endpoint and of the proxy hide."""
        return Secrets(
            (self.key, *self.headers.values()), addresses=(self._base, self._proxy or "")
        )

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """A JSON schema in the strict form that OpenAI documents."""
        return response_format(schema, strict=True) if schema else {}

    async def _send(self, body: bytes, timeout: float) -> Completion:
        written = self.dialect.written(body)
        status, headers, content = await self._post("/chat/completions", written, timeout)
        if status != 200:
            raise status_error(status, headers, error_text(content), self.secrets)
        if content[:50].lstrip().startswith(b"<"):
            raise ReplyError(
                "the reply is not JSON, but a web page.",
                hint="Check api_base= (often ending in /v1).",
            )
        reply = decode(content)
        if (found := embedded_status(reply)) is not None:
            raise status_error(found[0], headers, found[1], self.secrets)
        if reply.get("model") != self.model:
            self._note_name(reply.get("model"))
        return read_completion(reply, self.secrets)

    def open(self) -> None:
        """Count one more run that uses the connections."""
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
            self._proxy = _environment_proxy(self._base)
            self._session = _session(
                self._base, {**key_headers(self._base, self.key), **self.headers}
            )
        method = "GET" if body is None else "POST"
        task = self._deadlines.start(timeout)
        try:
            async with self._session.request(
                method,
                _address(self._base, path),
                data=body,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                return response.status, response.headers, await _read_bounded(response)
        except asyncio.CancelledError:
            if not self._deadlines.has_passed(task):
                raise
            raise no_answer(self.endpoint, timeout) from None
        # `from None`: aiohttp's errors can hold the request's headers, and with them the key.
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failed = TransportError(
                f"the connection to {self.endpoint} failed ({type(error).__name__}).",
                hint="Is the server running, and is api_base= its address (often ending in /v1)?",
            )
            failed.unanswered = not isinstance(error, aiohttp.ClientConnectorError | ValueError)
            raise failed from None
        finally:
            self._deadlines.stop(task)


def _session(base: str, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """Connections of one run."""
    import aiohttp

    certificates = _certificates() if base.startswith("https://") else True
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=certificates),
        headers={"Content-Type": "application/json", **headers},
        timeout=aiohttp.ClientTimeout(total=None),  # `Deadlines` limits the time of a request
    )


def _environment_proxy(base: str) -> str | None:
    """The proxy that the environment names for an address; a loopback needs none.

    aiohttp would look it up itself with `trust_env=True`, but would then send the passwords in ~/.netrc too.
    """
    parts = urlsplit(base)
    proxy = getproxies().get(parts.scheme)
    if not proxy or _is_loopback(base) or proxy_bypass(parts.hostname or ""):
        return None
    return Address(proxy if "://" in proxy else f"http://{proxy}")


def _certificates() -> ssl.SSLContext:
    """The certificates of the environment: those to trust, and the client's own, if it has one.

    SSL_CERTIFICATE is litellm's name for the client's: a PEM file with the certificate and its key.
    """
    trusted = next((v for v in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(v)), "")
    variable = trusted
    try:
        context = ssl.create_default_context(cafile=os.environ.get(trusted))
        if own := os.environ.get("SSL_CERTIFICATE"):
            variable = "SSL_CERTIFICATE"
            context.load_cert_chain(own)
    except OSError as error:
        raise TransportError(
            f"{variable}={os.environ.get(variable)!r} cannot be read ({error}).",
            hint="Name a file of certificates in PEM form, or unset the variable.",
        ) from None
    return context


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or "localhost"
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def _address(base: str, path: str) -> str:
    """The address of a path below the base; a query (Azure's api-version) stays at the end."""
    parts = urlsplit(base)
    return Address(urlunsplit(parts._replace(path=parts.path.rstrip("/") + path)))


class LiteLLMTransport(_Speaker):
    """Any provider that litellm knows. instructor asks for the form, and for a better reply."""

    def __init__(
        self,
        model: str,
        api_base: str | None = None,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(model)
        self._litellm = _import_litellm()
        self.options: Json = mask_secrets({"api_base": api_base, "api_key": api_key})
        if headers:
            self.options |= mask_secrets({"extra_headers": headers})
        self.key = SecretText(api_key or "")
        self._carried: tuple[
            str, ...
        ] = ()  # secrets of the last request, some found by litellm itself
        try:
            self.name, self.provider, *_ = self._litellm.get_llm_provider(model)
        except self._litellm.BadRequestError:
            raise InvalidArgumentError(
                f"model={model!r} names no provider that litellm knows.",
                hint='Write "provider/model" (https://docs.litellm.ai/docs/providers), give the address of'
                ' an OpenAI-compatible endpoint (api_base), or use "local".',
                argument="model",
            ) from None
        address = api_base or _environment_address(self.provider)
        self._addresses = tuple(map(Address, address.split()))
        self.endpoint = f"litellm:{self.provider}:{shown_address(address.rstrip('/'))}"
        if self.provider in _FOLLOWING:
            raise InvalidArgumentError(
                f"model={model!r}: litellm calls {self.provider} by a client that follows redirects.",
                hint=_DIRECTLY,
                argument="model",
            )
        self._models: dict[str, _InstructorModels] = {}
        self._clients: dict[str, Any] = {}
        self._deadlines = Deadlines()
        with guarded_http(largest=_LARGEST_REPLY):  # litellm may ask a server what its model can do
            if not self._litellm.supports_response_schema(model) and (
                self._litellm.supports_function_calling(model)
            ):
                self.dialect.form = FORMS.index("tools")

    @property
    def secrets(self) -> Secrets:
        """The keys, the added headers, what the address hides, and what the last request carried."""
        headers = self.options.get("extra_headers", {}).values()
        keys = (self.key, *_environment_texts(self.provider, "KEY|TOKEN|SECRET|PASSWORD"))
        return Secrets((*keys, *headers, *self._carried), addresses=self._addresses)

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """A JSON schema, or a tool call where litellm knows the model to take that alone."""
        if schema is None:
            return {}
        fields = response_format(schema, strict=True)
        asked = fields["response_format"]["json_schema"]
        self._models[asked["name"]] = _InstructorModels(schema)
        return tool_call(asked) if FORMS[self.dialect.form] == "tools" else fields

    async def _send(self, body: bytes, timeout: float) -> Completion:
        """Call litellm once: its own retries are off, since they ignore Retry-After."""
        fields: Json = {**json.loads(body), **self.options, "timeout": timeout}
        self.dialect.write_limits(fields)
        fields["drop_params"] = True  # such as `seed`, or `temperature` of models that reason
        models = self._asked_models(fields)
        if models is None:
            reply = await self._call(**fields)
        else:
            reply = await self._structured(models, fields)
        found = reply.model_dump()
        if (problem := embedded_status(found)) is not None:
            raise status_error(problem[0], {}, problem[1], self.secrets)
        return read_completion(found, self.secrets)

    def _asked_models(self, fields: Json) -> _InstructorModels | None:
        """The schema that a request asks for, taken out of it: instructor puts it in again."""
        asked = fields.pop("response_format", None)
        tools = fields.pop("tools", None)
        fields.pop("tool_choice", None)
        name = asked["json_schema"]["name"] if asked else tools and tools[0]["function"]["name"]
        return self._models[name] if name else None

    async def _structured(self, models: _InstructorModels, fields: Json) -> Any:
        """One call through instructor: the first of a request, or one more with what was wrong.

        Each further call of the retry policy comes here with the bad reply as the last turn. instructor
        is given that reply as its first attempt, refuses it, and asks again in its own words.
        """
        from instructor.core.exceptions import (
            IncompleteOutputException,
            InstructorRetryException,
        )

        bad = last_bad_reply(fields["messages"])
        try:
            if bad is None:
                schema, client, attempts = models.first, self._client(self._call), 0
            else:
                del fields["messages"][-2:]
                schema, client, attempts = models.again, self._client(self._after(bad)), 1
            _, reply = await client.create_with_completion(
                response_model=schema, max_retries=attempts, **fields
            )
        except IncompleteOutputException as error:
            return error.last_completion
        except InstructorRetryException as error:
            if isinstance(error.__cause__, ModelError):
                raise error.__cause__ from None
            if error.last_completion is None:
                raise
            return error.last_completion  # read again by our own reader, which takes more
        return reply

    def _after(self, bad: str) -> Callable[..., Awaitable[Any]]:
        """A completion function whose first reply is the bad one that the model gave before."""
        earlier = [self._reply_of(bad)]

        async def call(**fields: Any) -> Any:
            return earlier.pop() if earlier else await self._call(**fields)

        return call

    def _reply_of(self, text: str) -> Any:
        message: Json = {"role": "assistant", "content": text}
        if FORMS[self.dialect.form] == "tools":
            function = {"name": "reply", "arguments": text}
            message = {"role": "assistant", "content": None}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        return self._litellm.ModelResponse(choices=[{"message": message, "finish_reason": "stop"}])

    def _client(self, call: Callable[..., Awaitable[Any]]) -> Any:
        """instructor's client around litellm, in the mode that the provider takes."""
        import instructor

        form = FORMS[self.dialect.form]
        if call == self._call and form in self._clients:
            return self._clients[form]
        mode = {
            "json_schema": instructor.Mode.JSON_SCHEMA,
            "json_object": instructor.Mode.JSON,
            "tools": instructor.Mode.TOOLS,
            "text": instructor.Mode.MD_JSON,
        }[form]
        client = instructor.from_litellm(call, mode=mode, async_client=True)
        if call == self._call:
            # It logs every reply that it asks about again as an error; our own log has them.
            logging.getLogger("instructor").addHandler(logging.NullHandler())
            self._clients[form] = client
        return client

    async def _call(self, **fields: Any) -> Any:
        task = self._deadlines.start(timeout := fields["timeout"])
        try:
            with provider_errors(
                self.model,
                timeout,
                self.secrets,
                largest=_LARGEST_REPLY,
                texts=_texts(fields["messages"]),
                base=None if self.provider in self._own() else self.options.get("api_base"),
            ) as exchange:
                reply = await self._litellm.acompletion(
                    **fields, num_retries=0, max_retries=0, caching=False
                )
        except asyncio.CancelledError:
            if not self._deadlines.has_passed(task):
                raise
            raise no_answer(self.model, timeout) from None
        finally:
            self._deadlines.stop(task)
        self._carried = tuple(map(SecretText, exchange.secrets))
        if not exchange.answers:
            self._check_is_in_this_process()
        return reply

    def _check_is_in_this_process(self) -> None:
        """Raise, since a reply came without guarded HTTP, unless the model is here or the user's own."""
        if self.provider not in _IN_PROCESS | self._own():
            error = ModelError(
                f"litellm calls {self.provider} by a client that may follow redirects.",
                hint=_DIRECTLY,
            )
            error.fatal = True
            raise error

    def _own(self) -> set[str]:
        return {handler["provider"] for handler in self._litellm.custom_provider_map}

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


def _texts(messages: Iterable[Json]) -> list[str]:
    """The words of messages, those in a list of parts, too."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    found = [*contents, *(part.get("text") for part in parts if isinstance(part, dict))]
    return [text for text in found if isinstance(text, str)]


def _environment_address(provider: str) -> str:
    """Where the environment says that a provider is: OPENAI_BASE_URL, AZURE_API_BASE, OLLAMA_API_BASE, …"""
    return " ".join(sorted(_environment_texts(provider, "BASE|URL|ENDPOINT")))


def _environment_texts(provider: str, kinds: str) -> set[str]:
    """The values of a provider's environment variables whose names end in one of `kinds` ("KEY|TOKEN")."""
    name = re.escape(provider.rpartition("-")[2].replace("_", ""))
    named = re.compile(f"(AWS)?{name}.*({kinds})", re.IGNORECASE)
    return {
        text for key, text in os.environ.items() if text and named.fullmatch(key.replace("_", ""))
    }


class _InstructorModels:
    """A model as instructor gets it, with the JSON schema that strict providers take.

    Both are made once, of instructor's own class: of any other, instructor would make one for each call.
    """

    def __init__(self, schema: type[BaseModel]) -> None:
        self._schema = schema
        form = {"title": schema.__name__, **wire_schema(schema, tight=False)}
        self._form = json.dumps(form)

    @cached_property
    def first(self) -> type[BaseModel]:
        """For the first call. It takes any object: our own reader reads the reply, and takes more."""
        return self._made_of(_AnyObject)

    @cached_property
    def again(self) -> type[BaseModel]:
        """For another call: it finds what is wrong with the reply before."""
        return self._made_of(self._schema)

    def _made_of(self, base: type[BaseModel]) -> type[BaseModel]:
        import instructor

        def model_json_schema(*_: Any, **__: Any) -> Json:
            return json.loads(self._form)  # type: ignore[no-any-return]

        schema = self._schema
        fields: Json = {"__module__": schema.__module__, "__doc__": schema.__doc__}
        fields["model_json_schema"] = staticmethod(model_json_schema)
        return instructor.openai_schema(type(schema.__name__, (base,), fields))  # type: ignore[no-any-return]


class _AnyObject(BaseModel):
    model_config = ConfigDict(extra="allow")


def _import_litellm() -> Any:
    """litellm takes seconds to import and would fetch its price map from the network."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.suppress_debug_info = True
    return litellm


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body, up to a bound far above any real reply; compressed bodies count decompressed."""
    packed = response.headers.get("Content-Encoding")
    length = response.content_length
    if length is not None and length <= _LARGEST_REPLY and not packed:
        return await response.read()
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(2**16):
        parts.append(part)
        size += len(part)
        if size > _LARGEST_REPLY:
            response.close()
            raise too_large(_LARGEST_REPLY)
    return b"".join(parts)
