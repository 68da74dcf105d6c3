"""What other libraries send over HTTP follows no redirect, and what they receive has a bounded size."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import sys
import types
import zlib
from collections.abc import Callable
from typing import Any, cast

import pytest

from personainfer import http_guard
from personainfer.exceptions import ModelError, ModelNotFoundError, ReplyError
from personainfer.http_guard import Exchange, guarded_http

from .builders import AnyServer

REDIRECTS = [300, 301, 302, 303, 307, 308]
SECRET = {"x-api-key": "secret-key-1"}


def _sync(library: Any, url: str) -> Any:
    with library.Client(follow_redirects=True) as client:
        return client.post(url, json={"text": "mine"}, headers=SECRET)


def _async(library: Any, url: str) -> Any:
    async def post() -> Any:
        async with library.AsyncClient(follow_redirects=True) as client:
            return await client.post(url, json={"text": "mine"}, headers=SECRET)

    return asyncio.run(post())


def _in_a_thread_of_a_task(library: Any, url: str) -> Any:
    async def post() -> Any:
        return await asyncio.create_task(asyncio.to_thread(_sync, library, url))

    return asyncio.run(post())


def _streamed(library: Any, url: str) -> Any:
    async def post() -> Any:
        async with (
            library.AsyncClient(follow_redirects=True) as client,
            client.stream("POST", url, json={"text": "mine"}) as response,
        ):
            return b"".join([part async for part in response.aiter_bytes()])

    return asyncio.run(post())


def _streamed_sync(library: Any, url: str) -> Any:
    with (
        library.Client(follow_redirects=True) as client,
        client.stream("POST", url, json={"text": "mine"}) as response,
    ):
        return b"".join(response.iter_bytes())


each_way = pytest.mark.parametrize(
    "post", [_sync, _async, _in_a_thread_of_a_task, _streamed, _streamed_sync]
)
Post = Callable[[Any, str], Any]


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    if request.param == "httpx2":
        pytest.importorskip("httpx2", reason="the openai SDK uses it from version 3 on")
    return importlib.import_module(request.param)


@each_way
@pytest.mark.parametrize("status", REDIRECTS)
def test_no_redirect_is_followed(library: Any, post: Post, status: int) -> None:
    with AnyServer() as other, AnyServer(status, {"Location": f"{other.address}/x?t=1"}) as first:
        with guarded_http() as exchange, pytest.raises(ModelNotFoundError) as caught:
            post(library, f"{first.address}/v1")
        assert (len(first.asked), other.asked) == (1, [])
    assert exchange.error is caught.value
    assert caught.value.fatal
    assert f"redirects to {other.address}/x?t=… ({status})" in str(caught.value)
    assert "api_base=" in str(caught.value)


@each_way
def test_what_is_no_redirect_passes_as_it_is(library: Any, post: Post) -> None:
    with AnyServer(200, {"Content-Encoding": "gzip"}, gzip.compress(b'{"a": 1}')) as server:
        with guarded_http(1000) as exchange:
            found = post(library, server.address)
        assert getattr(found, "content", found) == b'{"a": 1}'
        assert (exchange.answers, exchange.error) == (1, None)


@each_way
def test_elsewhere_redirects_are_followed_as_before(library: Any, post: Post) -> None:
    """A program may use litellm or httpx beside us."""
    with AnyServer() as other, AnyServer(307, {"Location": other.address}) as first:
        with guarded_http(10), pytest.raises(ModelError):
            post(library, first.address)
        assert other.asked == []
        post(library, first.address)
        assert len(other.asked) == 1


def test_at_the_same_time_other_tasks_follow_them(library: Any) -> None:
    async def guarded(url: str) -> None:
        with guarded_http(), pytest.raises(ModelError):
            async with library.AsyncClient(follow_redirects=True) as client:
                await client.get(url)

    async def free(url: str) -> None:
        async with library.AsyncClient(follow_redirects=True) as client:
            assert (await client.get(url)).status_code == 200

    async def both(url: str) -> None:
        await asyncio.gather(*(one(url) for _ in range(5) for one in (guarded, free)))

    with AnyServer() as other, AnyServer(302, {"Location": other.address}) as first:
        asyncio.run(both(first.address))
        assert len(other.asked) == 5


@each_way
@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_is_bounded_after_it_is_unpacked(library: Any, post: Post, packed: bool) -> None:
    body = b" " * 3_000_000
    headers = {"Content-Encoding": "deflate"} if packed else {}
    with (
        AnyServer(200, headers, zlib.compress(body) if packed else body) as server,
        guarded_http(2**20) as exchange,
        pytest.raises(ReplyError, match="larger than 1 MB") as caught,
    ):
        post(library, server.address)
    assert exchange.error is caught.value


@pytest.mark.parametrize("packing", ["br", "zstd", "gzip, gzip", "x"])
def test_a_reply_that_is_packed_without_a_bound_is_refused(library: Any, packing: str) -> None:
    with (
        AnyServer(200, {"Content-Encoding": packing}, b"x") as server,
        guarded_http(2**20),
        pytest.raises(ReplyError, match=packing),
    ):
        _async(library, server.address)
    assert server.asked[0].headers["accept-encoding"] == "gzip, deflate"


def test_a_library_that_cannot_be_held_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def send(self, request: object, *, stream: bool = False) -> None:
            raise AssertionError("nothing may be sent")

    library = types.SimpleNamespace(Client=Client, AsyncClient=Client, __name__="httpx3")
    monkeypatch.setitem(sys.modules, "httpx3", cast(Any, library))
    monkeypatch.setattr(http_guard, "_LIBRARIES", ("httpx3",))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"httpx3\.Client .* redirects"), guarded_http():
            pass


def test_the_secrets_of_a_request_are_known_for_what_is_said_about_it(library: Any) -> None:
    with AnyServer() as server, guarded_http() as exchange:
        headers = {"Authorization": "Bearer abcd1234", "api-key": "efgh5678", "x-team": "ours"}
        with library.Client() as client:
            client.get(f"{server.address}?key=ijkl9012&alt=json", headers=headers)
    assert exchange.secrets == {"abcd1234", "efgh5678", "ijkl9012"}
    assert Exchange(None).secrets == set()
