"""What a transport is, and the one to OpenAI-compatible endpoints: send one request, return its reply.

Every transport takes the same bytes: an OpenAI chat completion request. `endpoint_faults` turns refusals into
errors, and a `Dialect` rewrites requests for endpoints that need another form.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from ipaddress import ip_network
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

from pydantic import BaseModel

from ..api_keys import (
    Address,
    Secrets,
    SecretText,
    environment_key,
    key_headers,
    route_of,
    shown_address,
)
from ..event_loop import Deadlines
from ..exceptions import (
    InvalidArgumentError,
    ModelError,
    ModelNotFoundError,
    ReplyError,
    RequestRejectedError,
    TransportError,
    keeps_no_cause,
    reads,
    visible,
)
from ..http_guard import ip_number, is_loopback, too_large
from ..records import Completion
from .dialect import Dialect
from .endpoint_faults import error_text, no_answer, status_error
from .openai_protocol import Json, check_was_read, message_texts, read_answer, response_format
from .replies import decode, taken_by

if TYPE_CHECKING:
    import aiohttp

LARGEST_REPLY = 4 * 2**20  # bytes; a persona takes one thousandth of it
_NAMES_NOTED = 8
_LONGEST_HEADER = 2**16  # bytes; gateways report their rules in some
_FEWEST_CONNECTIONS = 8
_FILES_LEFT = 64  # for the cache, outputs, and what else the process opens


class Transport(Protocol):
    """What `llm` needs of a way to reach a model."""

    model: str  # the name that the request carries
    endpoint: str  # where it goes, in the cache's key: holds no API key, and no port that changes
    route: str  # what else chooses the model, as `route_of` tells; also in the cache's key

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

    def check_key(self) -> None:
        """Raise AuthenticationError if it is known before the first call that a key is missing."""

    def open(self) -> None:
        """A run begins to use it."""

    async def close(self) -> None:
        """A run is done with it; the last one closes the connections."""


class DialectTransport:
    """What transports over HTTP share: it learns the dialect of the endpoint, one request at a time."""

    enforces_forms = False  # whether every reply is in the form that was asked for

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

    def check_key(self) -> None:
        """Raise AuthenticationError if it is known before the first call that a key is missing."""

    def open(self) -> None:
        """A run begins to use it."""
        self.dialect = self.dialect.for_a_new_run()

    def most_tokens(self, asked: int) -> int:
        """`asked`, or more for a model that reasons first: its reasoning counts as output."""
        return self.dialect.most_tokens(asked)

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """Send the request once, in the dialect of the endpoint, which is learned from its refusals."""
        dialect = self.dialect
        is_first = not dialect.proven and await dialect.wait_for_turn()
        own = dialect.of(body)
        version = own.version
        try:
            completion = await self._send(body, timeout, own)
        except RequestRejectedError as error:
            dialect.refused(version, error, body)
            raise
        except ReplyError as error:
            if error.completion is not None:
                dialect.accepted(version, body)
            if error.cut_off and error.reasoned:
                error.rewritten = dialect.thinks(version)
            raise
        finally:
            if is_first:
                dialect.end_turn()
        dialect.accepted(version, body)
        return completion if dialect.fits else replace(completion, dialect=version)

    def was_read(self, completion: Completion, *, fits: bool) -> None:
        """An endpoint whose replies are all in another form is asked in another way."""
        if not (self.dialect.fits or self.enforces_forms):
            self.dialect.was_read(completion.dialect, fits=fits)

    async def _send(self, body: bytes, timeout: float, dialect: Dialect) -> Completion:
        """Send a request, written in this dialect."""
        raise NotImplementedError

    def _note_name(self, name: object) -> None:
        """Remember the model's name in a reply: a gateway may name the model behind it."""
        if isinstance(name, str) and name and len(self._answered_as) < _NAMES_NOTED:
            self._answered_as[self.secrets.mask(visible(name))[:80]] = None


class EndpointTransport(DialectTransport):
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
        full_name: str = "",
    ) -> None:
        super().__init__(model)
        # With "openai/" before it: for litellm that is the protocol, for OpenRouter part of the name.
        self._full_name = full_name
        self._wants_full_name = False
        self._base: str = Address(api_base.rstrip("/"))
        self.endpoint = shown_address(self._base)
        self.headers = {name: SecretText(text) for name, text in (headers or {}).items()}
        self.route = route_of([self._base], self.headers)
        self.key = SecretText(api_key or "")
        if "@" in urlsplit(self._base).netloc:
            _check_credentials(self.endpoint, self.key, self.headers)
        else:
            self.key = SecretText(api_key or environment_key(self._base))
        self._session: aiohttp.ClientSession | None = None
        self._sent_headers: Mapping[str, str] = {}
        self._proxy: str | None = None
        self._socket: str | None = None  # a Unix socket through which the address is reached
        self._connected_by: str | None = None  # that of the session
        self._deadlines = Deadlines()
        self._runs = 0

    @property
    def secrets(self) -> Secrets:
        """The key, the added headers, and what the addresses of the endpoint and of the proxy hide."""
        addresses = (self._base, self._proxy or "")
        return Secrets((self.key,), headers=self.headers, addresses=addresses)

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """A JSON schema in the strict form that OpenAI documents."""
        return response_format(schema, strict=True) if schema else {}

    @property
    def has_two_names(self) -> bool:
        """Whether the endpoint may know the model by its full name: no call with the other one was taken."""
        return self._full_name not in ("", self.model) and not self.dialect.answered

    def learn_name(self, listed: Collection[str]) -> None:
        """Learn which of its two names the model has, from those of the models that the endpoint lists."""
        self._wants_full_name |= self._full_name in listed and self.model not in listed

    def written(self, body: bytes, dialect: Dialect | None = None) -> bytes:
        """A request as the endpoint takes it."""
        written = (dialect or self.dialect).written(body)
        if self._wants_full_name:
            written = json.dumps({**json.loads(written), "model": self._full_name}).encode()
        return written

    async def _send(self, body: bytes, timeout: float, dialect: Dialect) -> Completion:
        written, in_full = self.written(body, dialect), self._wants_full_name
        try:  # in one expression: a variable of a traceback would show what the answer repeats
            return self._read_completion(
                body, *await self._post("/chat/completions", written, timeout)
            )
        except ModelNotFoundError as error:
            if not in_full and (self._wants_full_name or self.has_two_names):
                self._wants_full_name = error.rewritten = True
            raise

    @reads("the reply")
    def _read_completion(
        self, body: bytes, status: int, headers: Mapping[str, str], content: bytes
    ) -> Completion:
        """The completion in the endpoint's answer to a request."""
        if status // 100 != 2:  # some gateways answer a POST with 201
            error = self._refusal(body, status, headers, error_text(content))
            error.took = taken_by(content, status)
            raise error
        if content[:50].lstrip().startswith(b"<"):
            raise ReplyError(
                "the reply is not JSON, but a web page.",
                hint="Check api_base= (often ending in /v1).",
            )
        reply = decode(content)
        if reply.get("model") != self.model:
            self._note_name(reply.get("model"))
        completion = read_answer(
            reply,
            self.secrets,
            lambda status, words: self._refusal(body, status, headers, words),
        )
        check_was_read(completion, body)
        return completion

    def _refusal(
        self, body: bytes, status: int, headers: Mapping[str, str], words: str
    ) -> ModelError:
        """The error for a refusal of a request."""
        asked = message_texts(json.loads(body)["messages"])
        return status_error(status, headers, words, self.secrets, asked)

    @reads("the reply")
    def _read_json(self, status: int, headers: Mapping[str, str], content: bytes) -> Json:
        """The JSON object in an answer of the endpoint; the error for a refusal."""
        if status // 100 != 2:
            raise status_error(status, headers, error_text(content), self.secrets)
        return decode(content)

    def open(self) -> None:
        """Count one more run that uses the connections."""
        super().open()
        self._runs += 1

    async def close(self) -> None:
        """Close the connections after the last run; the next one opens new ones."""
        self._runs -= 1
        if not self._runs and self._session is not None:
            session, self._session = self._session, None
            await session.close()

    @keeps_no_cause
    async def _post(
        self, path: str, body: bytes | None, timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """POST the body, or GET where there is none."""
        import aiohttp

        if self._session is not None and self._connected_by != self._socket:
            session, self._session = self._session, None
            await session.close()
        if self._session is None:
            self._connected_by = self._socket
            self._proxy = environment_proxy(self._base)
            self._sent_headers = _request_headers(key_headers(self._base, self.key), self.headers)
            self._session = _session(self._base, self._socket)
        method = "GET" if body is None else "POST"
        task = self._deadlines.start(timeout)
        try:
            async with self._session.request(
                method,
                _address(self._base, path),
                data=body,
                headers=self._sent_headers,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                return response.status, response.headers, await _read_bounded(response)
        except asyncio.CancelledError:
            if not self._deadlines.has_passed(task):
                raise
            raise no_answer(self.endpoint, timeout) from None
        # `from None`: aiohttp's errors can hold the request's headers, and with them the key.
        except aiohttp.ClientHttpProxyError as error:
            raise self._refused_by_proxy(error.status) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            failed = TransportError(
                f"the connection to {self.endpoint} failed ({type(error).__name__}).",
                hint="Is the server running, and is api_base= its address (often ending in /v1)?",
            )
            failed.unanswered = not isinstance(error, aiohttp.ClientConnectorError | ValueError)
            raise failed from None
        finally:
            self._deadlines.stop(task)

    def _refused_by_proxy(self, status: int) -> TransportError:
        """The error for a proxy that makes no tunnel to the endpoint: nothing was sent there."""
        refused = TransportError(
            f"the proxy {shown_address(self._proxy or '')} does not connect to {self.endpoint} ({status}).",
            hint="Check https_proxy, with its user and password, or name the host in NO_PROXY.",
        )
        refused.fatal = refused.given_up = refused.ran_nothing = status in (403, 407)
        return refused


def _check_credentials(endpoint: str, key: str, headers: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError if an endpoint whose address has a password is told another one, too."""
    named = {name.lower() for name in headers}
    given = "api_key" if key else "extra_headers" if "authorization" in named else ""
    if given:
        raise InvalidArgumentError(
            f"api_base={endpoint!r} has a password, and {given}= is given too.",
            hint="An endpoint is told one of them: leave the other out.",
            argument=given,
        )


def _session(base: str, socket: str | None) -> aiohttp.ClientSession:
    """Connections of one run.

    It has no headers of its own: aiohttp would send them to the proxy, too, which reads them in clear text
    before the tunnel to an https:// address begins.
    """
    import aiohttp

    connector: aiohttp.BaseConnector
    if socket is not None:
        connector = aiohttp.UnixConnector(socket, limit=0)
    else:
        trusted = certificates() if base.startswith("https://") else True
        connector = aiohttp.TCPConnector(limit=most_connections(), ssl=trusted)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),  # `Deadlines` limits the time of a request
        max_line_size=_LONGEST_HEADER,
        max_field_size=_LONGEST_HEADER,
    )


def most_connections() -> int:
    """How many files the process may still open, but for some that the rest of it needs; 0: any number."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 0
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return 0
    return max(_FEWEST_CONNECTIONS, most - len(os.listdir("/dev/fd")) - _FILES_LEFT)


def _request_headers(key: Mapping[str, str], added: Mapping[str, str]) -> Mapping[str, str]:
    """The headers of each request. One that the user adds takes the place of ours, in whatever case."""
    named = {name.lower() for name in added}
    ours = {"Content-Type": "application/json", **key}
    return {**{name: text for name, text in ours.items() if name.lower() not in named}, **added}


def environment_proxy(base: str) -> str | None:
    """The proxy that the environment names for an address; a loopback needs none.

    aiohttp would look it up itself with `trust_env=True`, but would then send the passwords in ~/.netrc too.
    """
    parts = urlsplit(base)
    proxy, host = getproxies().get(parts.scheme), parts.hostname or "localhost"
    if not proxy or is_loopback(host):
        return None
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    if _is_exempt(host.removesuffix("."), port) or proxy_bypass(host):
        return None
    scheme, _, place = proxy.strip().rpartition("://")
    proxy = f"{scheme.lower() or 'http'}://{place}"
    try:
        known = scheme.lower() in ("", "http", "https") and "\\" not in place
        is_usable = known and urlsplit(proxy).port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        error = TransportError(
            f"the environment's {parts.scheme}_proxy is no proxy that can be used.",
            hint=f"It is http://HOST:PORT. Or name {host} in NO_PROXY.",
        )
        error.fatal = error.given_up = True
        raise error
    return Address(proxy)


def _is_exempt(host: str, port: int) -> bool:
    """Whether NO_PROXY names a host: as itself, or a domain or network that it is in, also with the port.

    urllib compares names alone. curl, Go and Kubernetes also take networks ("10.0.0.0/8"), and patterns
    ("*.cluster.local") are common.
    """
    number = ip_number(host)
    for entry in re.split(r"[\s,]+", getproxies_environment().get("no", "").lower()):
        for part in (entry, entry.removesuffix(f":{port}")):
            name = re.sub(r"[][]", "", part).removesuffix(".")
            with suppress(ValueError):  # it is no network
                if number is not None and number in ip_network(name, strict=False):
                    return True
            if fnmatchcase(host, name) or f".{host}".endswith("." + name.lstrip(".")):
                return True
    return False


def certificates() -> ssl.SSLContext:
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


@cache
def _address(base: str, path: str) -> str:
    """The address of a path below the base; a query (Azure's api-version) stays at the end."""
    parts = urlsplit(base)
    return Address(urlunsplit(parts._replace(path=parts.path.rstrip("/") + path)))


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body, up to a bound far above any real reply; compressed bodies count decompressed."""
    is_plain = "Content-Encoding" not in response.headers  # it may come twice, and empty at first
    length = response.content_length
    if length is not None and length <= LARGEST_REPLY and is_plain:
        return await response.read()
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(2**16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_REPLY:
            response.close()
            raise too_large(LARGEST_REPLY)
    return b"".join(parts)
