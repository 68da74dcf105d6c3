"""Rules for the HTTP requests that other libraries send for us: no redirects, no endless replies, no repeats.

litellm and the openai SDK make HTTP clients of their own, for each provider in another way. These follow
redirects: an endpoint could send the user's texts and keys on to any host. Some send a failed request again,
whatever they are told. All are clients of httpx, or of its successor httpx2, and each request passes their
method `send`. Within `guarded_http`, and in the tasks and threads that start there, `send` keeps the rules
below. Elsewhere it does what it did before: other uses of these libraries in the same process do not change.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from threading import Lock
from typing import Any, NoReturn

from .api_keys import shown_address
from .exceptions import ModelError, ModelNotFoundError, ReplyError

_LIBRARIES = ("httpx", "httpx2")
_PACKING = "gzip, deflate"  # at most 1,032 times smaller than what comes out; br and zstd have no such bound
_UNPACKED = {"", "identity", "gzip", "deflate"}
_LONGEST_ADDRESS = 200  # characters of it in an error
_SECRET_NAME = re.compile("auth|key|token|secret|cookie|signature", re.IGNORECASE)

_lock = Lock()
_guarded: set[str] = set()


class Exchange:
    """What came back over HTTP within one `guarded_http`.

    Args:
        largest: bytes of a reply after decompression; None: any number.
    """

    def __init__(self, largest: int | None) -> None:
        self.largest = largest
        self.answers = 0  # responses, whatever their status
        self.headers: Mapping[str, str] = {}  # of the last response
        self.error: ModelError | None = None  # why the last response was refused
        self._request: Any = None
        self._failed: tuple[Any, Exception] | None = None  # a request, and what became of it

    @property
    def secrets(self) -> set[str]:
        """What the last request carried in headers and query fields that are named like secrets."""
        if self._request is None:
            return set()
        fields = [*self._request.headers.items(), *self._request.url.params.items()]
        return {value.split()[-1] for name, value in fields if value and _SECRET_NAME.search(name)}

    def expect(self, request: Any) -> None:
        """Prepare a request that is about to be sent. One that failed is not sent again: its error is raised.

        Our own policy decides what is sent again; it counts what was paid for, and honours Retry-After.
        """
        if self._failed is not None and _is_same(request, self._failed[0]):
            raise self._failed[1]
        self._request, self.error = request, None
        if self.largest is not None and "accept-encoding" in request.headers:
            request.headers["accept-encoding"] = _PACKING

    def failed(self, error: BaseException) -> None:
        """Remember that no usable response came to the last request."""
        if isinstance(error, Exception):
            self._failed = (self._request, error)

    def check(self, response: Any) -> None:
        """Refuse redirects, and packed bodies whose size has no bound, before the body is read."""
        self.answers += 1
        self.headers = response.headers
        response.headers["x-should-retry"] = "false"  # the openai SDK asks for it
        if 300 <= response.status_code < 400:
            self.refuse(redirect_error(response.status_code, response.headers))
        packing = response.headers.get("content-encoding", "").lower()
        if self.largest is not None and packing not in _UNPACKED:
            self.refuse(
                ReplyError(f"the reply is packed as {packing[:40]!r}, which was not asked for.")
            )

    def check_size(self, size: int) -> None:
        """Refuse a body of which so many bytes have come."""
        if self.largest is not None and size > self.largest:
            self.refuse(too_large(self.largest))

    def refuse(self, error: ModelError) -> NoReturn:
        """Raise the error, and keep it: libraries wrap what is raised in errors of their own."""
        self.error = error
        raise error


def _is_same(request: Any, earlier: Any) -> bool:
    if (request.method, request.url) != (earlier.method, earlier.url):
        return False
    try:
        return bool(request.content == earlier.content)
    except RuntimeError:  # a body that is streamed, such as a file
        return False


_exchange: ContextVar[Exchange | None] = ContextVar("personainfer.http_guard", default=None)


@contextmanager
def guarded_http(largest: int | None = None) -> Iterator[Exchange]:
    """Follow no redirect within the block, and read no reply of more than `largest` bytes.

    What breaks a rule is raised where the request is sent, and stays in the `error` of what is yielded.
    """
    _guard_libraries()
    exchange = Exchange(largest)
    token = _exchange.set(exchange)
    try:
        yield exchange
    finally:
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
        if name in sys.modules and name not in _guarded:
            with _lock:
                if name not in _guarded:
                    for client in (sys.modules[name].Client, sys.modules[name].AsyncClient):
                        _guard(client, f"{name}.{client.__name__}")
                    _guarded.add(name)


def _guard(client: Any, name: str) -> None:
    send = client.send
    if not {"stream", "follow_redirects"} <= inspect.signature(send).parameters.keys():
        raise ModelError(
            f"{name} of this version cannot be kept from following redirects, so nothing is sent.",
            hint='Try another version of it, or give the address as api_base= without "litellm/".',
        )
    client.send = _async_send(send) if inspect.iscoroutinefunction(send) else _sync_send(send)


def _async_send(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    async def guarded(self: Any, request: Any, *, stream: bool = False, **options: Any) -> Any:
        exchange = _exchange.get()
        if exchange is None:
            return await send(self, request, stream=stream, **options)
        exchange.expect(request)
        options |= {"stream": True, "follow_redirects": False}
        response = None
        try:
            response = await send(self, request, **options)
            exchange.check(response)
            read = response.aiter_bytes
            response.aiter_bytes = lambda *size: _bounded(read(*size), exchange)
            if not stream:
                await response.aread()
                del response.aiter_bytes
        except BaseException as error:
            exchange.failed(error)
            if response is not None:
                await response.aclose()
            raise
        return response

    return guarded


def _sync_send(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def guarded(self: Any, request: Any, *, stream: bool = False, **options: Any) -> Any:
        exchange = _exchange.get()
        if exchange is None:
            return send(self, request, stream=stream, **options)
        exchange.expect(request)
        options |= {"stream": True, "follow_redirects": False}
        response = None
        try:
            response = send(self, request, **options)
            exchange.check(response)
            read = response.iter_bytes
            response.iter_bytes = lambda *size: _bounded_sync(read(*size), exchange)
            if not stream:
                response.read()
                del response.iter_bytes
        except BaseException as error:
            exchange.failed(error)
            if response is not None:
                response.close()
            raise
        return response

    return guarded


async def _bounded(parts: AsyncIterator[bytes], exchange: Exchange) -> AsyncGenerator[bytes]:
    size = 0
    async for part in parts:
        size += len(part)
        exchange.check_size(size)
        yield part


def _bounded_sync(parts: Iterator[bytes], exchange: Exchange) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        exchange.check_size(size)
        yield part
