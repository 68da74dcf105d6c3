"""Rules for the HTTP requests that other libraries send for us: no redirects, no endless replies, no repeats.

litellm and the openai SDK make HTTP clients of their own, for each provider in another way. These follow
redirects: an endpoint could send the user's texts and keys on to any host. Some send a failed request again,
whatever they are told. All are clients of httpx, or of its successor httpx2, and each request passes their
method `send`. This module wraps `send`. Within `guarded_http`, and in the tasks and threads that start there,
the wrapper keeps the rules below. Elsewhere it only calls the old `send`: other uses of these libraries in
the same process do not change. Each `guarded_http` looks whether the wrapper is still there, since other code
may wrap `send`, too, and take its wrapper off again together with ours.
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

_Place = tuple[str, int | None]  # a host and a port; None: the scheme has none of its own
_PORTS = {"http": 80, "https": 443}
_HERE = "localhost"  # each name of this machine

_lock = Lock()

# Sends a request of httpx, and gives the status, the headers and the unpacked body of the answer.
Deliver = Callable[[Any], Awaitable[tuple[int, Mapping[str, str], bytes]]]
# Changes a request of httpx in place; also gets its client, and whether the request may be the call itself.
# Returns whether it is the call for sure: a callback may send the same texts to a server of its own before.
Prepare = Callable[[Any, Any, bool], bool]


class Rules(TypedDict, total=False):
    """What holds within a `guarded_http`, besides that no redirect is followed. Each rule may be left out.

    Attributes:
        largest: the most bytes of a reply, after decompression.
        seconds: the most time from a reply's headers to its last byte; in a synchronous client, also the most
            time in which the headers come, and without any byte.
        texts: what the call carries. By these texts the call is told from other requests within the block:
            only responses to the call count as `answers`. Without texts, each request is the call.
        hidden: what no error may quote.
        base: the address that the user gave: until the call is answered, no request with these texts goes to
            another host, but for this machine. None: they may go to any host.
        prepare: changes the call, and each other request to `base`, before it is sent, whoever sends it, and
            returns whether the request is the call for sure. Until one is, each other request that may be
            the call counts as it. What it raises is raised, and nothing is sent.
        deliver: sends the call in place of the library's client, which then only writes the request and reads
            the answer. None: the client sends it.
    """

    largest: int
    seconds: float
    texts: Iterable[str]
    hidden: Secrets
    base: str | None
    prepare: Prepare
    deliver: Deliver | None


class Exchange:
    """What came back over HTTP within one `guarded_http`.

    Attributes:
        largest, seconds, deliver: as the rules; None: there is no such rule.
        answers: how many responses to the call came, whatever their status, and to what might have been it.
        answer: the last of them; None: none came, or it did not come whole.
        error: why the last response was refused; None: it was not.
        closed: whether the block was left. What a task sends later is not of the call.
        failed: the last request that failed, if its errors are the call's, and what it raised; None: none.
        by_client: whether a library's own client sent a request.
    """

    def __init__(self, **rules: Unpack[Rules]) -> None:
        self.largest = rules.get("largest")
        self.seconds = rules.get("seconds")
        self.answers = 0
        self.answer: Any = None
        self.error: ModelError | None = None
        self.closed = False
        self.failed: tuple[Any, Exception] | None = None
        self.deliver = rules.get("deliver")
        self.by_client = False
        self._piece = _piece(rules.get("texts", ()))
        base = rules.get("base")
        self._base = _place(base) if base else None
        self._prepare = rules.get("prepare")
        self._hidden = rules.get("hidden") or Secrets()
        self._called: str | None = None  # the host to which the call goes
        self._placed: _Place | None = None  # where the call was sent
        self._success: Any = None  # the last of the answers with a status of success
        self._sent: list[tuple[Any, Any]] = []  # headers and addresses

    @property
    def content(self) -> bytes:
        """The body of `answer`; b"" if there is none, or it was not read to its end."""
        with suppress(RuntimeError):  # it was not
            return b"" if self.answer is None else self.answer.content
        return b""

    @property
    def is_sure(self) -> bool:
        """Whether a request was the call for sure."""
        return self._placed is not None

    def end_well(self) -> None:
        """Note that the call succeeded: an answer that refuses, and came later, was one to a callback."""
        if self._success is not None and self.answer is not self._success:
            self.answer, self.error = self._success, None

    @property
    def secrets(self) -> set[str]:
        """The values that requests carried in headers and fields of queries with names like a secret's."""
        fields = [
            field
            for headers, url in self._sent
            for field in (*headers.items(), *url.params.items())
        ]
        found = (value.split()[-1:] for name, value in fields if SECRET_NAME.search(name))
        return {word for words in found for word in words}

    def masked(self, text: str) -> str:
        """Return a text that an endpoint sent, without the secrets of the call and of its requests."""
        return self._hidden.with_texts(self.secrets).mask(text)

    def expect(self, request: Any, client: Any) -> _Sending:
        """Prepare a request that is about to be sent: its headers change in place.

        A request that failed is not sent again, but its error is raised: our own policy decides what is sent
        again. It counts what was paid for, and honours Retry-After.

        Args:
            request: the library's request.
            client: the library's client, which was asked to send it.

        Raises:
            ModelError: the text would go to another host than `base`. It is fatal, and nothing is sent.
            Exception: what an equal request raised before, or what `prepare` raises.
        """
        host, place = request.url.host, _place(str(request.url))
        has_text = self._carries(request)
        is_call = has_text and self._is_call(place)
        sending = _Sending(self, request, is_call, is_call or self._called in (None, host))
        if self.failed is not None and _is_same(request, self.failed[0]):
            raise self.failed[1]
        if sending.counts:
            self.error = None
        if is_call:
            self._called = host
        if has_text and self._keeps_texts_from(place):
            sending.refuse(_elsewhere(host))
        is_sure = True
        if self._prepare is not None and (is_call or place == self._base):
            try:
                is_sure = self._prepare(request, client, is_call)
            except ModelError as error:
                sending.refuse(error)
        if is_call and is_sure:
            self._placed = place
        self._sent.append((request.headers, request.url))
        request.headers["accept-encoding"] = _PACKING
        return sending

    def take_answer(self, response: Any) -> None:
        """Count a response to the call, or to what may be the call."""
        self.answers += 1
        self.answer = response
        if response.is_success:
            self._success = response

    def drop_answer(self, response: Any) -> None:
        """Forget a response that did not come whole. None: there was none."""
        self.answer = None
        if self._success is response:
            self._success = None

    def _is_call(self, place: _Place) -> bool:
        """Whether a request that carries the texts of the call is the call, by where it goes.

        A callback may send them to a server of its own at any time, such as one on this machine.
        """
        if self._placed is not None and self._piece:
            return place == self._placed
        if self._base is None or place == self._base:
            return True
        return place[0] != _HERE  # on this machine each port is another server

    def _keeps_texts_from(self, place: _Place) -> bool:
        """Whether texts may not go somewhere, or not yet: the call has not ended."""
        if self._base is None or place[0] in (self._base[0], _HERE):
            return False
        return self._placed is None or not (self.answers or self.failed)

    def _carries(self, request: Any) -> bool:
        """Whether a request carries the texts of the call.

        Others ask for a tokenizer, sign in, or come from a callback that sends no texts.
        """
        if not self._piece:
            return True
        try:
            body = request.content
        except RuntimeError:  # streamed
            return False
        forms = (self._piece.encode(), json.dumps(self._piece)[1:-1].encode())
        return body[:1] in (b"{", b"[") and any(form in body for form in forms)


class _Sending:
    """One request on its way.

    Args:
        exchange: the block within which it is sent.
        request: the library's request.
        carries: whether it is the call itself.
        counts: whether its errors are those of the call: it is the call, comes before it, or goes to its
            host.
    """

    def __init__(self, exchange: Exchange, request: Any, carries: bool, counts: bool) -> None:
        self.counts = counts
        self._exchange = exchange
        self._request = request
        self.carries = carries
        self._end: float | None = None
        self._bound: Any = None  # the response to it, once its body is bounded

    def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Limit the time in which the headers of the response come.

        httpcore calls this at each step of the request. A server may send any number of `103 Early Hints`
        before the headers.

        Args:
            name: the step of httpcore.
            info: what httpcore tells of the step.
        """
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            _watch_reads(info["return_value"])
        elif name.endswith("receive_response_headers.started"):
            self._end = monotonic() + (self._exchange.seconds or 0.0)

    def bound(self, response: Any, *, is_last: bool) -> bool:
        """Check a response to the request, and say whether its body is to be bounded now.

        That is so once for each response.

        Args:
            response: a response that a hook sees, or that `send` returned.
            is_last: whether `send` returned it. Then it is checked whatever its request is: other code may
                wrap `send`, and copy the request.
        """
        if response is self._bound or not (is_last or response.request is self._request):
            return False
        self._bound = response
        self.check(response)
        return True

    def failed(self, error: BaseException) -> None:
        """Remember that no usable response came, and why."""
        if self.carries:
            self._exchange.drop_answer(self._bound)
        if self.counts and isinstance(error, Exception):
            self._exchange.failed = (self._request, error)
            if isinstance(error, ModelError):
                self._exchange.error = error

    def check(self, response: Any) -> None:
        """Check a response before its body is read, and set its encoding.

        Raises:
            ModelNotFoundError: it is a redirect.
            ReplyError: its body is packed in a way that has no bound for the unpacked size.
        """
        exchange = self._exchange
        if exchange.seconds is not None:
            self._end = monotonic() + exchange.seconds
        if self.carries:
            exchange.take_answer(response)
        if self.counts:
            response.headers["x-should-retry"] = "false"  # the openai SDK asks for it
        # Whatever codec the headers name: some take a time that grows with the square of the length.
        response.encoding = "utf-8"
        if 300 <= response.status_code < 400:
            place = exchange.masked(response.headers.get("location", ""))
            self.refuse(redirect_error(response.status_code, place))
        packing = response.headers.get("content-encoding", "")
        if exchange.largest is not None and packing.lower() not in _UNPACKED:
            packing = exchange.masked(packing)[:40]
            self.refuse(ReplyError(f"the reply is packed as {packing!r}, which was not asked for."))

    def check_size(self, size: int) -> None:
        """Check how many bytes of a body have come so far.

        Raises:
            ReplyError: these are too many.
            TransportError: the body takes too long.
        """
        exchange = self._exchange
        if exchange.largest is not None and size > exchange.largest:
            self.refuse(too_large(exchange.largest))
        self.check_time()

    def check_time(self) -> None:
        """Raise TransportError if the headers or the body of the response take too long."""
        if self._end is not None and monotonic() > self._end:
            late = f"the reply was not whole within {self._exchange.seconds:g} s."
            self.refuse(TransportError(late, unanswered=True))

    def refuse(self, error: ModelError) -> NoReturn:
        """Raise the error. If errors of this request are those of the call, keep it as `Exchange.error`, too.

        It is kept because libraries wrap what is raised in errors of their own.
        """
        if self.counts:
            self._exchange.error = error
        raise error


def _piece(texts: Iterable[str]) -> str:
    """Return the longest stretch of words in the texts; "" if there is none.

    By it, a request that carries the texts is known.
    """
    for pattern in _PIECES:
        found = [piece for text in texts for piece in pattern.findall(text) if piece.strip()]
        if found:
            return str(max(found, key=len)).strip()[:_LONGEST_PIECE].strip()
    return ""


def _place(address: str) -> _Place:
    """Return the host and the port of an address. All names of this machine are one host."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    host = parts.hostname or ""
    return _HERE if is_loopback(host) else host, parts.port or _PORTS.get(parts.scheme)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone: "localhost", a name in it, or a loopback number."""
    host = host.removesuffix(".")
    number = ip_number(host)
    if number is None:
        return host == "localhost" or host.endswith(".localhost")
    return number.is_loopback


def ip_number(host: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that a host is named by; None: it is named by words."""
    try:
        number = ip_address(host)
    except ValueError:
        return None
    return getattr(number, "ipv4_mapped", None) or number


def _elsewhere(host: str) -> ModelError:
    return ModelError(
        f"litellm does not use api_base= for this provider, but calls {host}: nothing was sent.",
        hint=f"Leave api_base= out if {host} may have your texts.",
        fatal=True,
    )


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

    What breaks a rule is raised where the request is sent, and is then the `error` of the exchange.

    Args:
        rules: see `Rules`.

    Yields:
        The exchange, which is filled as responses come.

    Raises:
        ModelError: the installed version of a library cannot be kept from following redirects.
    """
    _guard_libraries()
    exchange = Exchange(**rules)
    token = _exchange.set(exchange)
    try:
        yield exchange
    finally:
        exchange.closed = True
        _exchange.reset(token)


def redirect_error(status: int, place: str) -> ModelNotFoundError:
    """Make the error for a redirect, which names the other address. It is returned, not raised.

    Args:
        status: the HTTP status.
        place: the other address; "": the endpoint names none.
    """
    to = f" to {shown_address(place)[:_LONGEST_ADDRESS]}" if place else ""
    return ModelNotFoundError(
        f"the endpoint redirects{to} ({status}), and redirects are not followed.",
        hint="Check api_base=. If you trust the other address, give that one.",
        is_refusal=True,
        is_doubtful=True,  # a firewall redirects a row whose words it refuses to a page of its own
    )


def too_large(largest: int) -> ReplyError:
    """Make the error for a reply of more than `largest` bytes. It is returned, not raised."""
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
        sending = exchange.expect(request, self)
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
    """Make the response that httpx would have made of an answer to its request."""
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
        sending = exchange.expect(request, self)
        options |= {"stream": True, "follow_redirects": False}
        response, token = None, _sending.set(sending)
        try:
            _come_first(self.event_hooks["response"], _bound_now)
            exchange.by_client = True
            if exchange.seconds is not None:
                request.extensions = {
                    **request.extensions,
                    "trace": sending.trace,
                    "timeout": _shortened(request.extensions.get("timeout"), exchange.seconds),
                }
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


def _shortened(limits: Mapping[str, float | None] | None, seconds: float) -> dict[str, float]:
    """Return the limits of a request, none longer than `seconds`: a server may send nothing at all."""
    given = limits or {}
    names = ("connect", "read", "write", "pool")
    return {name: min(seconds, given.get(name) or seconds) for name in names}


def _come_first(hooks: list[Any], bound: Callable[[Any], object]) -> None:
    """Make `bound` the first of a client's hooks, in place.

    It then bounds a response before another hook may read its body.
    """
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
    """Have each read of a connection check the time that the request of the moment has left."""
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
