"""Rules for the HTTP requests that other libraries send for us: no redirects, no endless replies, no repeats.

litellm and the openai SDK make HTTP clients of their own, for each provider in another way. These follow
redirects: an endpoint could send the user's texts and keys on to any host. Some send a failed request again,
whatever they are told. All are clients of httpx, or of its successor httpx2, and each request passes their
method `send`. Within `guarded_http`, and in the tasks and threads that start there, `send` keeps the rules
below. Elsewhere it does what it did before: other uses of these libraries in the same process do not change.
Each call looks first whether `send` still keeps them: other code may wrap it, and take that off again.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Lock
from time import monotonic
from typing import Any, NoReturn, TypedDict, Unpack
from urllib.parse import urlsplit

from .api_keys import SECRET_NAME, Secrets, shown_address
from .exceptions import ModelError, ModelNotFoundError, ReplyError, TransportError

_LIBRARIES = ("httpx", "httpx2")
_PACKING = "gzip, deflate"  # at most 1,032 times smaller than what comes out; br and zstd have no such bound
_UNPACKED = {"", "identity", "gzip", "deflate"}
_LONGEST_ADDRESS = 200  # characters of it in an error
_LONGEST_ERROR = 20_000  # bytes of one that a library reads
_LONGEST_PIECE = 60  # characters of a text by which a request is known
_PIECES = (
    re.compile("[A-Za-z0-9 ]{8,}"),
    re.compile(r"[\w ]+"),
    re.compile(r"[^\s\"\\]+"),
)  # the same in any JSON, if it can be

_lock = Lock()

# Sends a request of httpx, and gives the status, the headers and the unpacked body of the answer.
Deliver = Callable[[Any], Awaitable[tuple[int, Mapping[str, str], bytes]]]


class Rules(TypedDict, total=False):
    """What holds within a `guarded_http`, besides that no redirect is followed."""

    largest: int  # bytes of a reply after decompression
    seconds: float  # from a reply's headers to its last byte
    texts: Iterable[str]
    """What the call carries. By it the call is told from other requests within the block: only responses to
    it count as `answers`. If there is none, each request is the call."""
    hidden: Secrets  # what no error may quote
    base: str | None  # the address that the user gave: the call is sent to no other host
    deliver: Deliver | None
    """Sends the call in place of the library's client, which only writes the request and reads the answer."""


class Exchange:
    """What came back over HTTP within one `guarded_http`."""

    def __init__(self, **rules: Unpack[Rules]) -> None:
        self.largest = rules.get("largest")
        self.seconds = rules.get("seconds")
        self.answers = 0  # responses to the call, whatever their status
        self.answer: Any = None  # the last of them, if it came whole
        self.error: ModelError | None = None  # why the last response was refused
        self.closed = False  # the block was left: what a task goes on to send is not of the call
        self.failed: tuple[Any, Exception] | None = None  # a request, and what became of it
        self.deliver = rules.get("deliver")
        self.by_client = False  # whether a library's own client sent anything
        self._piece = _piece(rules.get("texts", ()))
        self._base = _host(rules.get("base"))
        self._hidden = rules.get("hidden") or Secrets()
        self._called: str | None = None  # the host to which the call goes
        self._placed = False  # it was sent
        self._sent: list[tuple[Any, Any]] = []  # headers and addresses

    @property
    def content(self) -> bytes:
        """The body of the answer, if it was read to its end."""
        with suppress(RuntimeError):  # it was not
            return b"" if self.answer is None else self.answer.content
        return b""

    @property
    def secrets(self) -> set[str]:
        """What the requests carried in headers and query fields that are named like secrets."""
        fields = [
            field
            for headers, url in self._sent
            for field in (*headers.items(), *url.params.items())
        ]
        found = (value.split()[-1:] for name, value in fields if SECRET_NAME.search(name))
        return {word for words in found for word in words}

    def masked(self, text: str) -> str:
        """What an endpoint sent, without the secrets of the call and of its requests."""
        return self._hidden.with_texts(self.secrets).mask(text)

    def expect(self, request: Any) -> _Sending:
        """Prepare a request that is about to be sent. One that failed is not sent again: its error is raised.

        Our own policy decides what is sent again; it counts what was paid for, and honours Retry-After.
        A call that would go elsewhere than where the user wants it is not sent.
        """
        host = request.url.host
        carries = self._carries(request)
        sending = _Sending(self, request, carries, carries or self._called in (None, host))
        if self.failed is not None and _is_same(request, self.failed[0]):
            raise self.failed[1]
        if sending.counts:
            self.error = None
        if carries and not self._placed:
            self._called = host
            if self._base not in (None, host) and not is_loopback(host):
                sending.refuse(_elsewhere(host))
            self._placed = True
        self._sent.append((request.headers, request.url))
        request.headers["accept-encoding"] = _PACKING
        return sending

    def _carries(self, request: Any) -> bool:
        """Whether a request is the call itself. Others ask for a tokenizer, sign in, or are a callback's."""
        if not self._piece:
            return True
        try:
            body = request.content
        except RuntimeError:  # streamed
            return False
        forms = (self._piece.encode(), json.dumps(self._piece)[1:-1].encode())
        return body[:1] in (b"{", b"[") and any(form in body for form in forms)


class _Sending:
    """One request on its way. Errors of those that do not `count` are not those of the call."""

    def __init__(self, exchange: Exchange, request: Any, carries: bool, counts: bool) -> None:
        self.counts = counts
        self._exchange = exchange
        self._request = request
        self.carries = carries
        self._end: float | None = None
        self._bound: Any = None  # the response to it, once its body is bounded

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Have the headers come in time: by this extension, httpcore tells how far a request is.

        A server may send any number of `103 Early Hints` before them.
        """
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            _watch_reads(info["return_value"])
        elif name.endswith("receive_response_headers.started"):
            self._end = monotonic() + (self._exchange.seconds or 0.0)

    def bound(self, response: Any, *, is_last: bool) -> bool:
        """Check a response to the request. Whether its body is to be bounded now: once.

        The last one is what is returned, whatever its request: other code may wrap `send`, and copy it.
        """
        if response is self._bound or not (is_last or response.request is self._request):
            return False
        self._bound = response
        self.check(response)
        return True

    def failed(self, error: BaseException) -> None:
        """Remember that no usable response came."""
        if self.carries:
            self._exchange.answer = None
        if self.counts and isinstance(error, Exception):
            self._exchange.failed = (self._request, error)
            if isinstance(error, ModelError):
                self._exchange.error = error

    def check(self, response: Any) -> None:
        """Refuse redirects, and packed bodies whose size has no bound, before the body is read."""
        exchange = self._exchange
        exchange.answers += self.carries
        if exchange.seconds is not None:
            self._end = monotonic() + exchange.seconds
        if self.carries:
            exchange.answer = response
        if self.counts:
            response.headers["x-should-retry"] = "false"  # the openai SDK asks for it
        # Whatever codec the headers name: some take a time that grows with the square of the length.
        response.encoding = "utf-8"
        if 300 <= response.status_code < 400:
            place = exchange.masked(response.headers.get("location", ""))
            self.refuse(redirect_error(response.status_code, {"location": place}))
        packing = response.headers.get("content-encoding", "")
        if exchange.largest is not None and packing.lower() not in _UNPACKED:
            packing = exchange.masked(packing)[:40]
            self.refuse(ReplyError(f"the reply is packed as {packing!r}, which was not asked for."))

    def check_size(self, size: int) -> None:
        """Refuse a body of which so many bytes have come, or that takes too long."""
        exchange = self._exchange
        if exchange.largest is not None and size > exchange.largest:
            self.refuse(too_large(exchange.largest))
        self.check_time()

    def check_time(self) -> None:
        """Refuse a response whose headers or body take too long."""
        if self._end is not None and monotonic() > self._end:
            late = TransportError(f"the reply was not whole within {self._exchange.seconds:g} s.")
            late.unanswered = True
            self.refuse(late)

    def refuse(self, error: ModelError) -> NoReturn:
        """Raise the error, and keep it: libraries wrap what is raised in errors of their own."""
        if self.counts:
            self._exchange.error = error
        raise error


def _piece(texts: Iterable[str]) -> str:
    """The longest stretch of words in the texts, by which a request that carries them is known."""
    for pattern in _PIECES:
        found = [piece for text in texts for piece in pattern.findall(text) if piece.strip()]
        if found:
            return str(max(found, key=len)).strip()[:_LONGEST_PIECE].strip()
    return ""


def _host(address: str | None) -> str | None:
    if not address:
        return None
    return urlsplit(address if "//" in address else f"//{address}").hostname


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as far as its name alone tells."""
    host = host.removesuffix(".")
    number = ip_number(host)
    if number is None:
        return host == "localhost" or host.endswith(".localhost")
    return number.is_loopback


def ip_number(host: str) -> IPv4Address | IPv6Address | None:
    """The number that a host is named by; None: it is named by words."""
    try:
        number = ip_address(host)
    except ValueError:
        return None
    return getattr(number, "ipv4_mapped", None) or number


def _elsewhere(host: str) -> ModelError:
    error = ModelError(
        f"litellm does not use api_base= for this provider, but calls {host}: nothing was sent.",
        hint=f"Leave api_base= out if {host} may have your texts.",
    )
    error.fatal = True
    return error


def _is_same(request: Any, earlier: Any) -> bool:
    if (request.method, request.url) != (earlier.method, earlier.url):
        return False
    try:
        return bool(request.content == earlier.content)
    except RuntimeError:  # a body that is streamed, such as a file
        return False


_exchange: ContextVar[Exchange | None] = ContextVar("personainfer.http_guard", default=None)
_sending: ContextVar[_Sending | None] = ContextVar("personainfer.http_guard.sending", default=None)


@contextmanager
def guarded_http(**rules: Unpack[Rules]) -> Iterator[Exchange]:
    """Follow no redirect within the block, and keep the other rules that are given.

    What breaks a rule is raised where the request is sent, and stays in the `error` of what is yielded.
    """
    _guard_libraries()
    exchange = Exchange(**rules)
    token = _exchange.set(exchange)
    try:
        yield exchange
    finally:
        exchange.closed = True
        _exchange.reset(token)


def redirect_error(status: int, headers: Mapping[str, str]) -> ModelNotFoundError:
    """The error for a redirect: it names the other address, to which nothing was sent."""
    place = headers.get("Location") or headers.get("location") or ""
    to = f" to {shown_address(place)[:_LONGEST_ADDRESS]}" if place else ""
    error = ModelNotFoundError(
        f"the endpoint redirects{to} ({status}), and redirects are not followed.",
        hint="Check api_base=. If you trust the other address, give that one.",
    )
    error.fatal = True
    return error


def too_large(largest: int) -> ReplyError:
    """The error for a reply of more bytes than a reply may have."""
    return ReplyError(f"the reply is larger than {largest // 2**20} MB.")


def _guard_libraries() -> None:
    for name in _LIBRARIES:
        if library := sys.modules.get(name):
            for client in (library.Client, library.AsyncClient):
                if not _is_guarded(client.send):
                    with _lock:
                        if not _is_guarded(client.send):
                            _guard(client, f"{name}.{client.__name__}")


def _is_guarded(send: Any) -> bool:
    return getattr(send, "guard", None) is send  # a wrapper of it may have a copy of the mark


def _guard(client: Any, name: str) -> None:
    send = client.send
    taken = inspect.signature(send).parameters
    if not {"stream", "follow_redirects"} <= taken.keys() and not any(
        one.kind is one.VAR_KEYWORD for one in taken.values()
    ):
        raise ModelError(
            f"{name} of this version cannot be kept from following redirects, so nothing is sent.",
            hint='Try another version of it, or give the address as api_base= without "litellm/".',
        )
    guarded: Any = (_async_send if client.__name__ == "AsyncClient" else _sync_send)(send)
    guarded.guard = guarded
    client.send = guarded


def _async_send(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    async def guarded(self: Any, request: Any, *, stream: bool = False, **options: Any) -> Any:
        exchange = _exchange.get()
        if exchange is None or exchange.closed:
            return await send(self, request, stream=stream, **options)
        sending = exchange.expect(request)
        options |= {"stream": True, "follow_redirects": False}
        response, token = None, _sending.set(sending)
        try:
            if exchange.deliver is not None and sending.carries:
                response = _response(request, *await exchange.deliver(request))
                sending.check(response)
                if response.is_success:
                    return response
                # litellm takes seconds to read megabytes of an error.
                error = response.content[:_LONGEST_ERROR]
                return _response(request, response.status_code, response.headers, error)
            _come_first(self.event_hooks["response"], _bound_async)
            exchange.by_client = True
            response = await send(self, request, **options)
            await _bound_async(response, is_last=True)
            if not stream:
                await response.aread()
                vars(response).pop("aiter_bytes", None)
        except BaseException as error:
            sending.failed(error)
            if response is not None:
                await response.aclose()
            raise
        finally:
            _sending.reset(token)
        return response

    return guarded


def _response(request: Any, status: int, headers: Mapping[str, str], content: bytes) -> Any:
    """What httpx would have made of an answer to its request."""
    library = sys.modules[type(request).__module__.partition(".")[0]]
    kept = [
        (name.encode(errors="surrogateescape"), value.encode(errors="surrogateescape"))
        for name, value in headers.items()
        if name.lower() != "content-encoding"  # the content is unpacked
    ]
    return library.Response(status, headers=kept, content=content, request=request)


def _sync_send(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def guarded(self: Any, request: Any, *, stream: bool = False, **options: Any) -> Any:
        exchange = _exchange.get()
        if exchange is None or exchange.closed:
            return send(self, request, stream=stream, **options)
        sending = exchange.expect(request)
        options |= {"stream": True, "follow_redirects": False}
        response, token = None, _sending.set(sending)
        try:
            _come_first(self.event_hooks["response"], _bound_now)
            exchange.by_client = True
            if exchange.seconds is not None:
                request.extensions = {**request.extensions, "trace": sending.trace}
            response = send(self, request, **options)
            _bound_now(response, is_last=True)
            if not stream:
                response.read()
                vars(response).pop("iter_bytes", None)
        except BaseException as error:
            sending.failed(error)
            if response is not None:
                response.close()
            raise
        finally:
            _sending.reset(token)
        return response

    return guarded


def _come_first(hooks: list[Any], bound: Callable[[Any], object]) -> None:
    """Have a response bounded before the client's own hooks see it: they may read its body."""
    if hooks and hooks[0] is not bound:
        hooks.insert(0, bound)


async def _bound_async(response: Any, *, is_last: bool = False) -> None:
    sending = _sending.get()
    if sending is not None and sending.bound(response, is_last=is_last):
        read = response.aiter_bytes
        response.aiter_bytes = lambda *size: _bounded(read(*size), sending)


def _bound_now(response: Any, *, is_last: bool = False) -> None:
    sending = _sending.get()
    if sending is not None and sending.bound(response, is_last=is_last):
        read = response.iter_bytes
        response.iter_bytes = lambda *size: _bounded_sync(read(*size), sending)


def _watch_reads(stream: Any) -> None:
    """Have each read of a connection look at the time that the request of the moment has left."""
    read = stream.read

    def watched(*size: Any, **options: Any) -> Any:
        if (sending := _sending.get()) is not None:
            sending.check_time()
        return read(*size, **options)

    stream.read = watched


async def _bounded(parts: AsyncIterator[bytes], sending: _Sending) -> AsyncGenerator[bytes]:
    size = 0
    async for part in parts:
        size += len(part)
        sending.check_size(size)
        yield part


def _bounded_sync(parts: Iterator[bytes], sending: _Sending) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        sending.check_size(size)
        yield part
