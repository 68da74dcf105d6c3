"""Proxies of the environment: which addresses they are for, and what they are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import personainfer as pi
from personainfer.batch.provider import batch_api
from personainfer.exceptions import PersonaInferError, TransportError
from personainfer.testing import FakeLLM

from ..builders import AnyServer, each_way

MESSAGES = [{"role": "user", "content": "Say hello."}]
ANSWER = json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnyServer]:
    """The proxy of the environment. It answers every request itself."""
    with AnyServer(body=ANSWER) as server:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, server.address)
            monkeypatch.setenv(name.upper(), server.address)
        for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield server


def ask(base: str, model: str = "m", **options: Any) -> pi.LLM:
    """A model that was asked once; whether it answered does not matter."""
    settings: dict[str, Any] = {"cache": False, "max_attempts": 1, "timeout": 10, **options}
    llm = pi.LLM(model, api_base=base, **settings)
    with suppress(PersonaInferError):
        llm.ask(MESSAGES)
    return llm


@each_way
def test_the_proxy_of_the_environment_is_used_but_not_for_a_loopback(
    llm: FakeLLM, proxy: AnyServer
) -> None:
    base = "http://model.invalid/v1"
    assert pi.LLM("fake", api_base=base, cache=False).ask(MESSAGES).text == "hello"
    assert [one.path for one in proxy.asked] == [f"{base}/chat/completions"]
    pi.LLM("fake", api_base=llm.api_base, cache=False).ask(MESSAGES)
    assert (llm.calls, len(proxy.asked)) == (1, 1)


@each_way
def test_all_proxy_is_used_where_no_other_variable_names_a_proxy(
    proxy: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("ALL_PROXY", proxy.address)
    base = "http://model.invalid/v1"
    assert pi.LLM("fake", api_base=base, cache=False).ask(MESSAGES).text == "hello"
    assert [one.path for one in proxy.asked] == [f"{base}/chat/completions"]


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize(
    ("exempt", "base"),
    [
        ("model.invalid", "http://model.invalid/v1"),
        ("other, .invalid", "http://model.invalid/v1"),
        ("model.invalid:8443", "https://me:pass@model.invalid:8443/v1"),
        ("model.invalid:443", "https://model.invalid/v1"),
        ("[100::2]", "http://[100::2]:9/v1"),
        ("100::2", "http://[100::2]:9/v1"),
        ("other 192.0.0.0/8", "http://192.0.2.3:9/v1"),
        ("192.0.2.9/24", "http://[::ffff:192.0.2.3]:9/v1"),
        ("100::/64", "http://[100::2]:9/v1"),
        ("192.0.*", "http://192.0.2.3:9/v1"),
        ("*.Invalid", "http://MODEL.invalid/v1"),
        (".invalid", "http://model.invalid./v1"),
        ("*", "http://model.invalid/v1"),
        ("", "https://localhost.:9/v1"),
        ("", "http://[::ffff:127.0.0.1]:9/v1"),
    ],
)
def test_an_address_that_no_proxy_names_is_asked_without_a_proxy(
    exempt: str, base: str, proxy: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", exempt)
    monkeypatch.setenv("NO_PROXY", exempt)
    ask(base, timeout=0.5)
    assert not proxy.asked


# Not by litellm, which sends batches by its own HTTP.
def test_a_batch_takes_the_proxy_of_single_calls(proxy: AnyServer) -> None:
    with suppress(PersonaInferError):
        batch_api(ask("http://127.0.0.1:9/v1").transport).look("batch_1")
    assert not proxy.asked
    with suppress(PersonaInferError):
        batch_api(ask("http://model.invalid/v1").transport).look("batch_1")
    assert proxy.asked[-1].path == "http://model.invalid/v1/batches/batch_1"


TOLD = {"host", "user-agent", "accept", "accept-encoding", "connection"}
SECRET: dict[str, Any] = {"api_key": "secret-key"}
HEADERS: dict[str, Any] = {"extra_headers": {"X-Tenant": "secret-header"}}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "call",
    [
        lambda base: ask(base, **SECRET, **HEADERS),
        lambda base: ask(f"{base}/openai/deployments/d?api-version=1", **SECRET),
        lambda base: ask(base.replace("model.", "me:secret-password@model.")),
        lambda base: pi.PersonaRetriever(
            ["a"], ["b"], model="m", api_base=base, max_attempts=1, **SECRET
        ),
        lambda base: pi.Likelihood("m", api_base=base, **SECRET).score(["a"], [None], ["b"]),
        lambda base: batch_api(ask(base, **SECRET, **HEADERS).transport).look("batch_1"),
        pytest.param(
            lambda base: ask(base, "litellm/openai/m", **SECRET, **HEADERS),
        ),
    ],
    ids=["chat", "azure", "password", "embeddings", "scoring", "batches", "litellm"],
)
def test_a_proxy_is_told_no_key_and_no_header_of_an_https_address(
    call: Callable[[str], object], proxy: AnyServer
) -> None:
    """It reads what asks for the tunnel in clear text; what goes through the tunnel it cannot read."""
    proxy.answer = (502, {}, b"")
    with suppress(PersonaInferError):
        call("https://model.invalid/v1")
    assert {one.method for one in proxy.asked} == {"CONNECT"}
    for one in proxy.asked:
        assert one.headers.keys() <= TOLD
        assert "secret" not in str(one.headers)


@pytest.mark.parametrize("model", ["m", pytest.param("litellm/openai/m", marks=pytest.mark.heavy)])
def test_a_header_host_that_a_proxy_would_read_is_not_sent(model: str, proxy: AnyServer) -> None:
    with pytest.raises(TransportError, match="Host would be told to the proxy"):
        pi.LLM(
            model,
            api_base="https://model.invalid/v1",
            extra_headers={"Host": "tenant.internal"},
            cache=False,
            **SECRET,
        ).ask(MESSAGES)
    assert not proxy.asked


@pytest.mark.heavy
def test_the_host_of_the_address_itself_may_be_added(proxy: AnyServer) -> None:
    headers = {"Host": "Model.invalid:443"}
    llm = pi.LLM("m", api_base="https://model.invalid/v1", extra_headers=headers, cache=False)
    assert llm.ask_many([(MESSAGES,)])[0].error is not None  # it makes no tunnel
    assert proxy.asked


@each_way
@pytest.mark.parametrize(
    "form", ["HTTP://{}", " http://{} ", "{}", "http://me:a b@{}", "http://{}/a@b"]
)
def test_a_proxy_is_named_in_any_form(
    form: str, proxy: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", form.format(proxy.address.removeprefix("http://")))
    assert (
        pi.LLM("m", api_base="http://model.invalid/v1", cache=False).ask(MESSAGES).text == "hello"
    )


@each_way
def test_a_proxy_gets_the_password_of_its_own_address(
    proxy: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.answer = (407, {}, b"")
    monkeypatch.setenv("https_proxy", proxy.address.replace("//", "//me:own-password@"))
    ask("https://model.invalid/v1", **SECRET)
    assert proxy.asked[0].headers["proxy-authorization"].startswith("Basic ")


@each_way
@pytest.mark.parametrize(
    "address",
    [
        "socks5://me:secret@h:1080",
        "http://me:secret@[h:1",
        "h:port",
        "http://A\\me:secret@h",
        "http://me:secret\n@h:1",
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_error_that_says_so(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", address)
    monkeypatch.delenv("no_proxy", raising=False)
    llm = pi.LLM("m", api_base="https://model.invalid/v1", cache=False)
    with pytest.raises(TransportError, match="https_proxy is no proxy") as caught:
        llm.ask_many([(MESSAGES,)] * 3)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("variable", ["all_proxy", "https_proxy"])
def test_a_proxy_of_socks_is_refused_by_its_name(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "socks5://127.0.0.1:1080")
    llm = pi.LLM("m", api_base="https://model.invalid/v1", cache=False)
    with pytest.raises(TransportError, match=rf"{variable} is no proxy .*SOCKS is not supported"):
        llm.ask(MESSAGES)


@each_way
@pytest.mark.parametrize("status", [407, 503])
def test_a_proxy_that_refuses_costs_nothing_and_is_named(status: int, proxy: AnyServer) -> None:
    proxy.answer = (status, {}, b"")
    options: dict[str, Any] = {"prices": (1.0, 1.0), "cache": False, "max_attempts": 2}
    llm = pi.LLM("m", api_base="https://model.invalid/v1", **options)
    with pytest.raises(
        TransportError, match=rf"the proxy {proxy.address} does not .* \({status}\)"
    ):
        llm.ask(MESSAGES)
    assert llm.usage.cost == 0
    assert len(proxy.asked) == (1 if status == 407 else 2)  # a wrong password stays wrong


@each_way
def test_a_header_of_the_user_takes_the_place_of_the_one_of_the_key(llm: FakeLLM) -> None:
    ask(llm.api_base, **SECRET, extra_headers={"authorization": "Token mine"})
    assert llm.headers[0].getall("Authorization") == ["Token mine"]  # type: ignore[attr-defined]


def test_a_password_of_an_address_is_not_among_what_is_kept_of_proxies() -> None:
    model = ask("http://me:secret-password@127.0.0.1:9/v1")
    assert "secret" not in repr(vars(model.transport._connections))
