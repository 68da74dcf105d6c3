"""What other libraries send over HTTP follows no redirect, and what they receive has a bounded size."""

from __future__ import annotations

import asyncio
import functools
import gzip
import importlib
import inspect
import json
import socket
import ssl
import sys
import time
import types
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, cast
from unittest import mock

import pytest

from personainfer import http_guard
from personainfer.exceptions import ModelError, ModelNotFoundError, ReplyError, TransportError
from personainfer.http_guard import Exchange, guarded_http

from .builders import AnyServer

REDIRECTS = [
    307,
    *(pytest.param(one, marks=pytest.mark.heavy) for one in (300, 301, 302, 303, 308)),
]
SECRET = {"x-api-key": "secret-key-1"}
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reading the trusted certificates takes 30 ms


def _sync(library: Any, url: str) -> Any:
    with library.Client(follow_redirects=True, verify=PLAIN) as client:
        return client.post(url, json={"text": "mine"}, headers=SECRET)


def _async(library: Any, url: str) -> Any:
    async def post() -> Any:
        async with library.AsyncClient(follow_redirects=True, verify=PLAIN) as client:
            return await client.post(url, json={"text": "mine"}, headers=SECRET)

    return asyncio.run(post())


def _in_a_thread_of_a_task(library: Any, url: str) -> Any:
    async def post() -> Any:
        return await asyncio.create_task(asyncio.to_thread(_sync, library, url))

    return asyncio.run(post())


def _streamed(library: Any, url: str) -> Any:
    async def post() -> Any:
        async with (
            library.AsyncClient(follow_redirects=True, verify=PLAIN) as client,
            client.stream("POST", url, json={"text": "mine"}) as response,
        ):
            return b"".join([part async for part in response.aiter_bytes()])

    return asyncio.run(post())


def _streamed_sync(library: Any, url: str) -> Any:
    with (
        library.Client(follow_redirects=True, verify=PLAIN) as client,
        client.stream("POST", url, json={"text": "mine"}) as response,
    ):
        return b"".join(response.iter_bytes())


each_way = pytest.mark.parametrize(
    "post", [_sync, _async, _in_a_thread_of_a_task, _streamed, _streamed_sync]
)
Post = Callable[[Any, str], Any]


@pytest.fixture(params=["httpx", pytest.param("httpx2", marks=pytest.mark.heavy)])
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
        with guarded_http(largest=1000) as exchange:
            found = post(library, server.address)
        assert getattr(found, "content", found) == b'{"a": 1}'
        assert (exchange.answers, exchange.error) == (1, None)


@each_way
def test_elsewhere_redirects_are_followed_as_before(library: Any, post: Post) -> None:
    """A program may use litellm or httpx beside us."""
    with AnyServer() as other, AnyServer(307, {"Location": other.address}) as first:
        with guarded_http(largest=10), pytest.raises(ModelError):
            post(library, first.address)
        assert other.asked == []
        post(library, first.address)
        assert len(other.asked) == 1


@pytest.mark.heavy
def test_at_the_same_time_other_tasks_follow_them(library: Any) -> None:
    async def guarded(url: str) -> None:
        with guarded_http(), pytest.raises(ModelError):
            async with library.AsyncClient(follow_redirects=True, verify=PLAIN) as client:
                await client.get(url)

    async def free(url: str) -> None:
        async with library.AsyncClient(follow_redirects=True, verify=PLAIN) as client:
            assert (await client.get(url)).status_code == 200

    async def both(url: str) -> None:
        await asyncio.gather(*(one(url) for _ in range(5) for one in (guarded, free)))

    with AnyServer() as other, AnyServer(302, {"Location": other.address}) as first:
        asyncio.run(both(first.address))
        assert len(other.asked) == 5


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_is_bounded_after_it_is_unpacked(library: Any, post: Post, packed: bool) -> None:
    body = b" " * 3_000_000
    headers = {"Content-Encoding": "deflate"} if packed else {}
    with (
        AnyServer(200, headers, zlib.compress(body) if packed else body) as server,
        guarded_http(largest=2**20) as exchange,
        pytest.raises(ReplyError, match="larger than 1 MB") as caught,
    ):
        post(library, server.address)
    assert exchange.error is caught.value


@pytest.mark.parametrize("packing", ["br", "zstd", "gzip, gzip", "x"])
def test_a_reply_that_is_packed_without_a_bound_is_refused(library: Any, packing: str) -> None:
    with (
        AnyServer(200, {"Content-Encoding": packing}, b"x") as server,
        guarded_http(largest=2**20),
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
        with library.Client(verify=PLAIN) as client:
            client.get(f"{server.address}?key=ijkl9012&alt=json", headers=headers)
    assert exchange.secrets == {"abcd1234", "efgh5678", "ijkl9012"}
    assert Exchange().secrets == set()


@pytest.mark.heavy
@each_way
def test_the_guard_comes_back_after_somebody_wrapped_send_for_a_while(
    library: Any, post: Post
) -> None:
    """As a mock or an instrumentation does that is taken off again: even before our first call."""
    with AnyServer() as other, AnyServer(307, {"Location": other.address}) as first:
        for client in (library.Client, library.AsyncClient):
            for send in (client.send, inspect.unwrap(client.send)):
                with mock.patch.object(client, "send", _wrapped(send)):
                    refused(lambda: post(library, first.address))
        refused(lambda: post(library, first.address))
        assert other.asked == []


def refused(post: Callable[[], object]) -> None:
    with guarded_http(), pytest.raises(ModelNotFoundError, match="redirects"):
        post()


def _wrapped(send: Any) -> Any:
    @functools.wraps(send)
    def seen(self: Any, *args: Any, **options: Any) -> Any:
        return send(self, *args, **options)

    return seen


@pytest.mark.heavy
@pytest.mark.parametrize("post", [_sync, _async, _streamed, _streamed_sync])
def test_a_reply_has_to_be_whole_in_time(library: Any, post: Post) -> None:
    with AnyServer(body=b" " * 20, seconds=0.05) as server, guarded_http(seconds=0.2) as exchange:
        with pytest.raises(TransportError, match=r"not whole within 0\.2 s") as caught:
            post(library, server.address)
        assert exchange.error is caught.value
        assert caught.value.unanswered


@pytest.mark.parametrize("timeout", [None, 3600.0, 0.01])
def test_a_thread_waits_no_longer_for_a_server_that_sends_nothing(
    library: Any, timeout: float | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, guarded_http(seconds=0.05):
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with library.Client(timeout=timeout, verify=PLAIN) as client:
            started = time.monotonic()
            with pytest.raises(library.ReadTimeout):
                client.get(address)
    assert time.monotonic() - started < 5


def test_only_packings_that_can_be_bounded_are_asked_for(library: Any) -> None:
    with AnyServer() as server, library.Client(verify=PLAIN) as client, guarded_http():
        request = client.build_request("GET", server.address)
        del request.headers["accept-encoding"]
        client.send(request)
    assert server.asked[0].headers["accept-encoding"] == "gzip, deflate"


def test_a_task_that_goes_on_after_the_call_is_free(library: Any) -> None:
    """Such as one that sends logs, made once in a callback."""

    async def log(url: str, ready: asyncio.Event) -> int:
        await ready.wait()
        async with library.AsyncClient(follow_redirects=True, verify=PLAIN) as client:
            return int((await client.get(url)).status_code)

    async def call(url: str) -> int:
        ready = asyncio.Event()
        with guarded_http():
            task = asyncio.create_task(log(url, ready))
            await asyncio.sleep(0)
        ready.set()
        return await task

    with AnyServer() as other, AnyServer(302, {"Location": other.address}) as first:
        assert asyncio.run(call(first.address)) == 200


TEXTS = ["Hello?", 'Which one of "these" would they like?\nThe first.']


@pytest.mark.heavy
@pytest.mark.parametrize("texts", [TEXTS, ["你好世界"], ["hi"], ["…?!"], ['«"»'], [" \n"]])
def test_the_call_is_told_from_other_requests_by_what_it_carries(
    library: Any, texts: list[str]
) -> None:
    with (
        AnyServer(302, {"Location": "http://log"}) as log,
        AnyServer() as server,
        guarded_http(texts=texts) as exchange,
        library.Client(verify=PLAIN) as client,
    ):
        known = texts != [" \n"]  # without a sign all requests are the call
        client.get(server.address)
        assert exchange.answers == (0 if known else 1)
        exchange.answers = 0
        client.post(server.address, json={"messages": [{"content": text} for text in texts]})
        assert exchange.answers == 1
        for text in (json.dumps(texts), json.dumps(texts, ensure_ascii=False)):
            client.post(server.address, content=text.encode())
        assert exchange.answers == 3
        with pytest.raises(ModelNotFoundError):  # of a callback
            client.get(log.address.replace("127.0.0.1", "localhost"))
        assert (exchange.error is None) is known


@pytest.mark.parametrize("base", ["https://here.invalid/v1", "here.invalid:8000"])
def test_a_call_goes_to_no_other_host_than_the_one_that_was_given(library: Any, base: str) -> None:
    with guarded_http(texts=TEXTS, base=base) as exchange, library.Client(verify=PLAIN) as client:
        with pytest.raises(library.ConnectError):  # this one may sign in elsewhere
            client.post("https://elsewhere.invalid/token", json={"key": "k"})
        with pytest.raises(
            ModelError, match=r"calls elsewhere\.invalid: nothing was sent"
        ) as caught:
            client.post("https://elsewhere.invalid", json={"prompt": " ".join(TEXTS)})
        with pytest.raises(library.ConnectError):  # a callback tells of the failure
            client.get("https://log.invalid")
        assert (caught.value.fatal, exchange.error) == (True, caught.value)
        with pytest.raises(library.ConnectError):
            client.post("https://here.invalid", json={"prompt": " ".join(TEXTS)})


def test_texts_that_another_place_gets_beside_the_call_are_no_call(library: Any) -> None:
    """Each port of this machine is another server: a callback may send the texts to one at any time."""
    body = {"prompt": " ".join(TEXTS)}
    prepared: list[tuple[str, bool, bool]] = []

    def prepare(request: Any, client: Any, is_call: bool) -> bool:
        prepared.append((str(request.url), client is sender, is_call))
        request.headers["x-mine"] = "secret"
        return is_call

    with AnyServer() as log, AnyServer() as server, library.Client(verify=PLAIN) as sender:
        rules: Any = {"texts": TEXTS, "prepare": prepare}
        for base in (f"{server.address}/v1", None):
            with guarded_http(**rules, base=base) as exchange:
                if base:
                    sender.post(log.address, json=body)
                    assert exchange.answers == 0
                sender.post(server.address, json=body)
                sender.post(log.address, json=body)
                assert (exchange.answers, exchange.error) == (1, None)
                assert str(exchange.answer.request.url) == server.address
                sender.get(server.address)
        assert all("x-mine" not in one.headers for one in log.asked)
    asked = (server.address, True, True)
    assert prepared == [asked, (server.address, True, False), asked]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_request_that_is_not_surely_the_call_hides_no_other(library: Any, refuses: bool) -> None:
    """A callback sends the texts to a server of its own before the call."""

    def prepare(request: Any, *_: Any) -> bool:
        is_sure = b"limit" in request.content
        if refuses and not is_sure:
            raise ModelError("no limit")
        return is_sure

    body = {"prompt": " ".join(TEXTS)}
    with AnyServer(500) as log, AnyServer() as server, library.Client(verify=PLAIN) as sender:
        with guarded_http(texts=TEXTS, prepare=prepare) as exchange:
            with suppress(ModelError):
                sender.post(log.address, json=body)
            sender.post(server.address, json={**body, "limit": 7})
            sender.post(log.address, json=body)
        assert len(log.asked) == (1 if refuses else 2)
    assert (exchange.answer.status_code, exchange.error) == (200, None)


@pytest.mark.parametrize("status", [200, 401])
def test_a_refusal_after_a_call_that_succeeded_is_a_callbacks(library: Any, status: int) -> None:
    body = {"prompt": " ".join(TEXTS)}
    with AnyServer(status) as first, AnyServer(500) as log, library.Client(verify=PLAIN) as sender:
        rules: Any = {"texts": TEXTS, "prepare": lambda *_: False}
        with guarded_http(**rules) as exchange:
            sender.post(first.address, json=body)
            sender.post(log.address, json=body)
            assert (exchange.answer.status_code, exchange.is_sure) == (500, False)
            exchange.end_well()
    assert exchange.answer.status_code == (200 if status == 200 else 500)


def test_texts_go_to_no_other_host_before_the_call_is_answered(library: Any) -> None:
    body = {"prompt": " ".join(TEXTS)}
    found: list[str] = []

    def handle(request: Any) -> Any:
        if request.url.host == "here.invalid":  # while the call is on its way
            with pytest.raises(ModelError, match=r"calls log\.invalid: nothing was sent"):
                sender.post("https://log.invalid", json=body)
        found.append(request.url.host)
        return library.Response(200)

    with (
        library.Client(transport=library.MockTransport(handle)) as sender,
        guarded_http(texts=TEXTS, base="https://here.invalid/v1") as exchange,
    ):
        sender.post("https://here.invalid/v1", json=body)
        sender.post("https://log.invalid", json=body)
    assert found == ["here.invalid", "log.invalid"]
    assert (exchange.answers, exchange.error) == (1, None)


def test_what_prepares_a_request_may_refuse_it(library: Any) -> None:
    def prepare(*_: Any) -> NoReturn:
        raise ModelError("not this one")

    with AnyServer() as server, library.Client(verify=PLAIN) as sender:
        with guarded_http(prepare=prepare) as exchange, pytest.raises(ModelError) as caught:
            sender.post(server.address)
        assert exchange.error is caught.value
    assert server.asked == []


def test_hooks_of_a_client_read_no_more_than_we_do(library: types.ModuleType) -> None:
    """A hook runs before the client returns the response; elsewhere it reads what it likes."""
    found: list[int] = []

    def hook(response: Any) -> None:
        found.append(len(response.read()))

    with (
        AnyServer(body=b" " * 3_000_000) as server,
        library.Client(verify=PLAIN, event_hooks={"response": [hook]}) as client,
    ):
        with guarded_http(largest=1_000_000), pytest.raises(ReplyError, match="larger"):
            client.get(server.address)
        assert found == []
        with guarded_http(largest=4_000_000):
            assert len(client.get(server.address).content) == 3_000_000
        client.get(server.address)
    assert found == [3_000_000] * 2

    async def later(response: Any) -> None:
        found.append(len(await response.aread()))

    async def by_an_asynchronous_client(address: str) -> None:  # as most of litellm's are
        async with library.AsyncClient(verify=PLAIN, event_hooks={"response": [later]}) as client:
            with guarded_http(largest=1_000_000), pytest.raises(ReplyError, match="larger"):
                await client.get(address)
            assert len(found) == 2
            await client.get(address)

    with AnyServer(body=b" " * 3_000_000) as server:
        asyncio.run(by_an_asynchronous_client(server.address))
    assert found == [3_000_000] * 3


@pytest.mark.parametrize("post", [_sync, _async])
def test_code_that_copies_a_request_loses_no_answer_and_no_bound(
    library: types.ModuleType, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that signs or traces requests wraps `send`, and passes on one of its own."""
    kind = library.Client if post is _sync else library.AsyncClient
    send = inspect.unwrap(kind.send)

    def copied(self: Any, request: Any, **options: Any) -> Any:
        own = library.Request(
            request.method, request.url, headers=request.headers, content=request.content
        )
        return send(self, own, **options)

    monkeypatch.setattr(kind, "send", copied)
    with AnyServer(body=b" " * 3_000) as server:
        with guarded_http(largest=4_000) as exchange:
            assert post(library, server.address).content == b" " * 3_000
        assert exchange.answers
        with guarded_http(largest=1_000), pytest.raises(ReplyError, match="larger"):
            post(library, server.address)
