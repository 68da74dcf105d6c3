"""HTTP requests to endpoints: how they are sent, and which errors are retried, after how long.

No redirect is followed, and no answer is endless.

Proxies and certificates are those of the environment: HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE (or
REQUESTS_CA_BUNDLE), and SSL_CERTIFICATE for a certificate of the client.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from fnmatch import fnmatchcase
from functools import cache
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass
from weakref import WeakSet

import tenacity

from .api_keys import Address, shown_address
from .event_loop import renew_in_forks
from .exceptions import ModelError, RateLimitError, ReplyError, TransportError
from .http_guard import ip_number, is_loopback, too_large

if TYPE_CHECKING:
    import aiohttp
    import yarl

LARGEST_REPLY = 4 * 2**20  # bytes; a persona takes one thousandth of it
_LONGEST_HEADER = 2**16  # bytes; gateways report their rules in some
_LONGEST_PAUSE = 60.0  # seconds; an endpoint that asks for more is tried again after this
_MOST_LOST = 2  # connections that broke, after which no more are kept, and one more …
_ANSWERS_A_LOSS = 20  # … for this many answers
_FEWEST_CONNECTIONS = 8
_FILES_LEFT = 64  # for the cache, outputs, and what else the process opens


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=30.0)
# Half a minute before the fifth call: a server has too much to do for longer than a connection fails.
_until_less_is_to_do = tenacity.wait_exponential(multiplier=0.2, exp_base=5, max=60.0)


class Answer(NamedTuple):
    """What an endpoint answered to a request.

    Attributes:
        status: the HTTP status.
        headers: the headers, whose names are found in any case.
        content: the body, unpacked.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes  # unpacked


_of_parents: list[object] = []  # the sessions of processes of which this one is a fork


class Connections:
    """The HTTP connections of one transport. They open with the first request, and again after `close`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._earlier: aiohttp.ClientSession | None = None  # some requests may still use it
        self._socket: str | None = None
        self._lost = self._answers = 0  # connections that broke, and answers
        self._trusted: ssl.SSLContext | None = None
        self._proxies: dict[str, str | None] = {}  # by address
        renew_in_forks(self)

    def renew_in_fork(self) -> None:
        """Leave the connections to the parent process, which goes on using them.

        They are kept in memory: aiohttp would close those that are collected as garbage. The parent's loop,
        whose selector both processes share, would then no longer hear of them.
        """
        _of_parents.append((self._session, self._earlier))
        self._session = self._earlier = None

    @property
    def proxies(self) -> tuple[str, ...]:
        """The addresses of the proxies that were used; they may hold passwords."""
        return tuple(filter(None, self._proxies.values()))

    async def close(self) -> None:
        """Close the connections, and forget which proxies and certificates the environment names."""
        sessions = self._session, self._earlier
        self._session = self._earlier = self._trusted = None
        self._lost = self._answers = 0
        for session in filter(None, sessions):
            await session.close()

    async def send(
        self,
        method: str,
        address: str | yarl.URL,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        name: str,
        socket: str | None = None,
        is_sent: Callable[[], object] = object,
    ) -> Answer:
        """Send a request, and read the whole answer, whatever its status. There is no limit of time.

        Args:
            method: the HTTP method.
            address: where to; a text is encoded first, a URL of yarl is sent as it is.
            headers: the headers, with any key.
            body: the body; None: there is none.
            name: what errors call the endpoint.
            socket: a Unix socket through which the endpoint is reached; None: over TCP.
            is_sent: called when there is a connection, before anything of the request is sent. If it raises,
                nothing is sent, and its error is raised.

        Raises:
            TransportError: no connection, or one that broke (`unanswered` tells these apart); or the proxy or
                the certificates of the environment cannot be used.
            ReplyError: the answer is larger than `LARGEST_REPLY`.
        """
        import aiohttp

        if self._socket != socket:
            await self.close()
        session, proxy = self._open(socket), self._proxy(str(address))
        if proxy is not None:
            _check_host(str(address), headers, proxy)
        sending = _Sending(is_sent)
        _sending.set(sending)
        try:
            async with session.request(
                method,
                address,
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=proxy,
                ssl=self._certificates(str(address)),
            ) as response:
                content = await _read_bounded(response)
                self._answers += 1
                return Answer(response.status, response.headers, content)
        # `from None`: aiohttp's errors can hold the request's headers, and with them the key.
        except aiohttp.ClientHttpProxyError as error:
            raise _refused_by_proxy(proxy or "", name, error.status) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            is_lost = not isinstance(error, aiohttp.ClientConnectorError | ValueError)
            self._lost += is_lost
            raise TransportError(
                f"the connection to {name} failed ({type(error).__name__}).",
                hint="Is the server running, and is this its address (often ending in /v1)?",
                unanswered=is_lost,
            ) from None
        finally:
            sending.is_sent = object

    def _open(self, socket: str | None) -> aiohttp.ClientSession:
        if self._session is None:
            self._proxies.clear()
            self._session, self._socket = _session(socket), socket
        if self._lost > _MOST_LOST + self._answers // _ANSWERS_A_LOSS and self._earlier is None:
            # The server closes connections that it seems to keep.
            self._earlier, self._session = self._session, _session(socket, keeps=False)
        return self._session

    def proxy(self, address: str) -> str | None:
        """Return what `environment_proxy` says now of an address. It is one of `proxies` from then on."""
        found = self._proxies[Address(address)] = environment_proxy(address)
        return found

    def _proxy(self, address: str) -> str | None:
        return self._proxies[address] if address in self._proxies else self.proxy(address)

    def _certificates(self, address: str) -> ssl.SSLContext | bool:
        """Return the environment's certificates for an https:// address, True for others.

        They are read once, which takes 30 ms.
        """
        if not address.startswith("https://"):
            return True
        if self._trusted is None:
            self._trusted = certificates()
        return self._trusted


def _session(socket: str | None, *, keeps: bool = True) -> aiohttp.ClientSession:
    """Make a session without headers of its own, since aiohttp would send these to the proxy, too.

    A proxy reads them in clear text before the tunnel to an https:// address begins.

    Args:
        socket: a Unix socket to connect to; None: TCP.
        keeps: whether connections are kept for further requests.
    """
    import aiohttp

    connector: aiohttp.BaseConnector
    over_tcp, over_unix = _connectors()
    if socket is not None:
        connector = over_unix(socket, limit=0, force_close=not keeps)
    else:
        connector = over_tcp(limit=most_connections(), force_close=not keeps)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),  # `Deadlines` limits the time of a request
        max_line_size=_LONGEST_HEADER,
        max_field_size=_LONGEST_HEADER,
    )


class _Sending:
    """A request on its way to a connection. At its end, `is_sent` is replaced.

    Timers and connections of aiohttp keep the context in which they were made, and so this object, for up to
    15 s after they were closed. What `is_sent` refers to, such as a row and its replies, is then free.
    """

    __slots__ = ("is_sent",)

    def __init__(self, is_sent: Callable[[], object]) -> None:
        self.is_sent = is_sent


_sending: ContextVar[_Sending] = ContextVar("personainfer.connections.sending")


@cache
def _connectors() -> tuple[type[aiohttp.TCPConnector], type[aiohttp.UnixConnector]]:
    """Make classes of connectors that call `is_sent` when a request has a connection.

    They use no kept connection on which something came unasked: aiohttp would take it for the answer to the
    next request.
    """
    import aiohttp

    class Telling(aiohttp.BaseConnector):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._used: WeakSet[Any] = WeakSet()

        async def connect(
            self, req: aiohttp.ClientRequest, traces: Any, timeout: aiohttp.ClientTimeout
        ) -> Any:
            connection: Any = await super().connect(req, traces, timeout)
            while connection.protocol.should_close and connection.protocol in self._used:
                connection.close()
                connection = await super().connect(req, traces, timeout)
            self._used.add(connection.protocol)
            try:
                _sending.get().is_sent()
            except BaseException:
                connection.release()
                raise
            return connection

    class OverTCP(Telling, aiohttp.TCPConnector):
        pass

    class OverUnix(Telling, aiohttp.UnixConnector):
        pass

    return OverTCP, OverUnix


def _check_host(address: str, headers: Mapping[str, str], proxy: str) -> None:
    """Raise TransportError if a header `Host` differs from the address's host: a proxy would read it.

    The proxy is asked for the tunnel to an https:// address by that header.
    """
    parts = urlsplit(address)
    named = next((text for name, text in headers.items() if name.lower() == "host"), None)
    own = {parts.netloc.rpartition("@")[2].lower().removesuffix(":443"), parts.hostname}
    if parts.scheme != "https" or named is None or named.lower().removesuffix(":443") in own:
        return
    raise TransportError(
        f"the added header Host would be told to the proxy {shown_address(proxy)}: nothing was sent.",
        hint="Leave it out, or name the host of api_base= in NO_PROXY.",
        fatal=True,
        given_up=True,
        ran_nothing=True,
    )


def _refused_by_proxy(proxy: str, name: str, status: int) -> TransportError:
    """Make the error for a proxy that makes no tunnel to the endpoint. Nothing was sent there."""
    is_of_all = status in (403, 407)
    return TransportError(
        f"the proxy {shown_address(proxy)} does not connect to {name} ({status}).",
        hint="Check https_proxy, with its user and password, or name the host in NO_PROXY.",
        fatal=is_of_all,
        given_up=is_of_all,
        ran_nothing=is_of_all,
    )


def most_connections() -> int:
    """Return how many connections the process may still open; 0: any number.

    The process may open as many files, without 64 that its other parts need; the least number is 8.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 0
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return 0
    return max(_FEWEST_CONNECTIONS, most - len(os.listdir("/dev/fd")) - _FILES_LEFT)


def environment_proxy(base: str) -> str | None:
    """Return the proxy that the environment names for an address, or for all addresses (ALL_PROXY).

    None: there is none, NO_PROXY exempts the host, or the host is this machine. aiohttp would look the proxy
    up itself with `trust_env=True`, but would then send the passwords in ~/.netrc, too.

    Raises:
        TransportError: what the environment names cannot be used as a proxy; the error is fatal.
    """
    parts = urlsplit(base)
    named, host = getproxies(), parts.hostname or "localhost"
    variable = parts.scheme if named.get(parts.scheme) else "all"
    proxy = named.get(variable)
    if not proxy or is_loopback(host):
        return None
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    if _is_exempt(host.removesuffix("."), port) or proxy_bypass(host):
        return None
    scheme, _, place = proxy.strip().rpartition("://")
    proxy = f"{scheme.lower() or 'http'}://{place}"
    try:
        known = scheme.lower() in ("", "http", "https") and "\\" not in place
        is_usable = known and place.isprintable() and urlsplit(proxy).port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise TransportError(
            f"the environment's {variable}_proxy is no proxy that can be used.",
            hint=f"It is http://HOST:PORT (SOCKS is not supported). Or name {host} in NO_PROXY.",
            fatal=True,
            given_up=True,
        )
    return Address(proxy)


def _is_exempt(host: str, port: int) -> bool:
    """Whether NO_PROXY names a host: itself, or a domain, pattern or network that it is in.

    An entry with a port counts for that port alone. urllib compares names alone. curl, Go and Kubernetes also
    take networks ("10.0.0.0/8"), and patterns ("*.cluster.local") are common.
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
    """Load the certificates of the environment: those to trust, and the client's own, if it has one.

    Those to trust are in SSL_CERT_FILE or REQUESTS_CA_BUNDLE, or else the system's. SSL_CERTIFICATE is
    litellm's name for the client's: a PEM file with the certificate and its key.

    Raises:
        TransportError: a file cannot be read, or holds no certificates.
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


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """Read the body of an answer.

    Raises:
        ReplyError: it has more than `LARGEST_REPLY` bytes after decompression, far more than any real reply.
    """
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


def attempts(
    most: int, *, before_retry: Callable[[tenacity.RetryCallState], None] | None = None
) -> tenacity.AsyncRetrying:
    """Make a retrier for a coroutine: up to `most` calls, as long as its error is a retryable `ModelError`.

    The last error is raised as it is.

    Args:
        most: the most calls, the first included.
        before_retry: called before each wait for a further call, with the state of the retrier; None:
            nothing.
    """
    return tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(most),
        wait=_pause,
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=before_retry,
        reraise=True,
    )


def until_deadline(seconds: float) -> tenacity.Retrying:
    """Make a retrier for a function, as long as connections break or the provider is busy.

    After `seconds`, no further call is made. A reply that cannot be read is not retried: the provider may
    have done the step and charged for it. The last error is raised as it is. The retrier blocks while it
    waits.
    """
    return tenacity.Retrying(
        stop=tenacity.stop_before_delay(seconds),
        wait=_pause,
        retry=tenacity.retry_if_exception_type((TransportError, RateLimitError)),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, ModelError) and error.retryable and not error.given_up


def _pause(state: tenacity.RetryCallState) -> float:
    """Return the seconds to wait before a further call.

    0 after a bad reply; else a random time below 0.5, 1, 2, … 30, but at least what the endpoint asks for (of
    which 60 seconds at most). If the server is overloaded, 0.2, 1, 5, 25, … 60 seconds are added.
    """
    error: Any = state.outcome.exception() if state.outcome else None
    if isinstance(error, ReplyError):
        return 0.0
    asked = min(getattr(error, "retry_after", None) or 0.0, _LONGEST_PAUSE)
    if getattr(error, "overloaded", False):
        return max(asked, _until_less_is_to_do(state) + _backoff(state))
    return max(asked, _backoff(state))
