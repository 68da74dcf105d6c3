"""How a provider's files and batches are reached: what a line may hold, keys, and the way by litellm."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import personainfer as pi
from personainfer import http_guard
from personainfer.api_keys import Secrets
from personainfer.batch import lines as batch_lines
from personainfer.batch import provider as batch_api
from personainfer.batch import states
from personainfer.exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    ModelError,
    ReplyError,
    TransportError,
)
from personainfer.testing import FakeLLM

from ..batch_server import CREATE, FETCH, LIST, LOOK, UPLOAD, BatchServer
from ..builders import AnyServer, collect, everything, pairs, submit

pytestmark = pytest.mark.heavy  # many processes, servers or waits

Patch = pytest.MonkeyPatch


@pytest.mark.heavy
def test_a_spare_answer_of_a_compatible_server_will_do(provider: BatchServer, place: Path) -> None:
    provider.spare = True
    collect(submit(provider, pairs(2), place / "b")).raise_for_errors()


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def about(**fields: Any) -> Any:
    """Something with these fields, some of them missing; or anything else."""
    return junk | st.fixed_dictionaries({}, optional=fields)


message = about(content=junk, refusal=junk, tool_calls=junk)
choices = st.lists(about(message=message, finish_reason=junk), max_size=2)
body = about(choices=junk | choices, usage=about(prompt_tokens=junk), error=about(message=junk))
statuses = st.sampled_from([200, 200, 400, 429, 500]) | junk
answers = about(
    response=about(status_code=statuses, body=body), error=about(code=junk, message=junk)
)


@settings(max_examples=200)
@given(st.binary(max_size=40), answers)
def test_no_line_raises(raw: bytes, said: Any) -> None:
    batch_lines.read_line(raw, Secrets())
    batch_lines.read_line(json.dumps(said).encode(), Secrets())
    named = {"custom_id": "ab", **(said if isinstance(said, dict) else {})}
    answer = batch_lines.read_line(json.dumps(named).encode(), Secrets())
    assert answer is None or answer.error is not None or answer.completion is not None


def test_no_key_is_written_logged_or_sent_elsewhere(
    provider: BatchServer, place: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-alone")
    provider.api_key = key = "sk-of-this-endpoint"
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(AuthenticationError) as refused:
            submit(provider, pairs(2), place / "none")
        with pytest.raises(AuthenticationError) as wrong:
            submit(provider, pairs(2), place / "wrong", api_key="sk-a-wrong-one")
        batch = submit(provider, pairs(2), place / "b", api_key=key)
        table = collect(batch, api_key=key)
    assert "sk-for-openai-alone" not in provider.tokens
    said = [str(refused.value), str(wrong.value), repr(batch), str(batch), repr(table), caplog.text]
    for secret in (key, "sk-a-wrong-one", "sk-for-openai-alone"):
        assert secret.encode() not in everything(place.parent)
        assert all(secret not in text for text in said)


# litellm, which takes seconds to import


def _asked(body: dict[str, Any]) -> dict[str, Any]:
    """A request without what instructor, which makes single calls, writes otherwise: a title, no `strict`."""
    form = body["response_format"]["json_schema"]
    schema = {name: value for name, value in form["schema"].items() if name != "title"}
    return {**body, "response_format": schema}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("gpt-4o-mini", None),
        ("o3-mini", None),
        ("gpt-5-mini", None),
        ("gpt-4o-mini", {"top_k": 5, "reasoning": {"effort": "low"}}),  # unknown to litellm
        ("gpt-4o-mini", {"extra_body": {"top_k": 5}, "user": "one"}),
    ],
)
def test_through_litellm_a_batch_is_what_its_single_calls_are(
    provider: BatchServer,
    place: Path,
    monkeypatch: Patch,
    model: str,
    fields: dict[str, Any] | None,
) -> None:
    options: dict[str, Any] = {"seed": 3, "extra_body": fields}
    monkeypatch.setenv("OPENAI_BASE_URL", provider.api_base)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    provider.faults = [(UPLOAD, 500), (CREATE, 0), (LOOK, 503), (FETCH, 500)]
    batch = pi.submit_batch(pairs(3), f"openai/{model}", place / "b", **options)
    assert [len(provider.files), len(provider.batches)] == [1, 1]
    assert all(line["body"]["model"] == model for line in provider.lines)
    single = pi.infer_personas(pairs(3), f"openai/{model}", cache=False, **options)
    sent = sorted(json.dumps(_asked(body), sort_keys=True) for body in provider.llm.requests)
    lines = [json.dumps(_asked(line["body"]), sort_keys=True) for line in provider.lines]
    assert sorted(lines) == sent
    table = collect(batch)
    table.raise_for_errors()
    assert provider.faults == []
    assert single.usage.cost
    assert table.usage.cost == pytest.approx(single.usage.cost / 2)


def test_a_file_that_is_not_read_yet_is_waited_for(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(states, "_FILE_POLL_SECONDS", 0.0)
    provider.file_statuses = ["pending", "pending"]
    submit(provider, pairs(2), place / "b")
    assert provider.calls == [UPLOAD, "GET /v1/files/*", "GET /v1/files/*", CREATE]


def test_a_file_that_is_never_read_is_given_up(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(states, "_FILE_POLL_SECONDS", 0.0)
    monkeypatch.setattr(states, "_FILE_PATIENCE", 0.02)
    provider.file_statuses = ["pending"] * 100_000
    with pytest.raises(ReplyError, match="has not read the file"):
        submit(provider, pairs(2), place / "b")
    assert provider.count(UPLOAD) == 1


@pytest.mark.heavy
def test_azure_is_waited_for_and_addressed_in_its_own_way(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(states, "_FILE_POLL_SECONDS", 0.01)
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
    provider.file_statuses = ["pending", "pending"]
    provider.faults = [(CREATE, 0)]
    base = provider.api_base.removesuffix("/v1")
    batch = pi.submit_batch(
        pairs(2), "litellm/azure/deployed", place / "b", api_base=base, api_key="az"
    )
    assert provider.calls == [UPLOAD, "GET /v1/files/*", "GET /v1/files/*", CREATE, LIST]
    assert {line["url"] for line in provider.lines} == {"/chat/completions"}
    assert {line["body"]["model"] for line in provider.lines} == {"deployed"}
    collect(batch, api_key="az").raise_for_errors()


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["openai/fake", "azure/deployed"])
def test_through_litellm_each_request_has_the_added_headers(
    provider: BatchServer, place: Path, monkeypatch: Patch, name: str
) -> None:
    """A gateway may choose the account by one: a list of another's batches would have one paid twice."""
    monkeypatch.setattr(states, "_FILE_POLL_SECONDS", 0.01)
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
    provider.file_statuses = ["pending"]
    provider.faults = [(CREATE, 0)]
    base = provider.api_base if "openai" in name else provider.api_base.removesuffix("/v1")
    options: dict[str, Any] = {"api_base": base, "api_key": "k", "extra_headers": {"X-Team": "a"}}
    collect(
        pi.submit_batch(pairs(2), f"litellm/{name}", place / "b", **options), **options
    ).raise_for_errors()
    assert LIST in provider.calls
    assert [call for call, headers in provider.headers_of if headers.get("X-Team") != "a"] == []


@pytest.mark.heavy
def test_through_litellm_errors_are_ours_and_keys_are_nobodys(
    provider: BatchServer, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AuthenticationError, match="OPENAI_API_KEY is not set"):
        pi.submit_batch(pairs(1), "gpt-4o-mini", place / "b")
    with pytest.raises(InvalidArgumentError, match="batches of anthropic are not supported"):
        pi.submit_batch(pairs(1), "anthropic/claude-haiku-4-5", place / "b", api_key="k")
    assert list(place.iterdir()) == []
    provider.api_key = key = "sk-of-this-endpoint"
    options: dict[str, Any] = {"model": "litellm/openai/fake", "api_base": provider.api_base}
    with caplog.at_level(logging.DEBUG):
        with pytest.raises(AuthenticationError) as wrong:
            pi.submit_batch(pairs(1), path=place / "no", api_key="sk-a-wrong-one", **options)
        pi.submit_batch(pairs(1), path=place / "b", api_key=key, **options)
        provider.spare = True  # litellm insists on every field of OpenAI's
        with pytest.raises(ModelError, match="litellm cannot read what openai answered"):
            collect(place / "b", api_key=key, wait=False)
        provider.spare = False
        collect(place / "b", api_key=key).raise_for_errors()
    for secret in ("sk-a-wrong-one", key):
        assert secret.encode() not in everything(place.parent)
        assert secret not in str(wrong.value)
        assert secret not in caplog.text


def test_a_redirect_of_a_batch_is_not_followed(provider: BatchServer, place: Path) -> None:
    """Neither the pairs nor the key go where the user did not send them."""
    with FakeLLM() as other:
        provider.headers = {"Location": f"{other.api_base}/chat/completions"}
        provider.faults = [(UPLOAD, 307)] * 20
        with pytest.raises(ModelError, match="307"):
            submit(provider, pairs(2), place / "b", max_attempts=1)
        assert other.calls == 0


@pytest.mark.parametrize("prefix", ["", "litellm/openai/"])
def test_answers_of_batches_are_bounded(prefix: str, monkeypatch: Patch) -> None:
    with AnyServer(body=b" " * 20_000_000) as server:
        api = api_of(prefix, server.address)
        with pytest.raises(ReplyError, match="larger than 16 MB"):
            api.look("b1")
        with tempfile.TemporaryFile() as file, pytest.raises(ReplyError, match="larger than 18 MB"):
            api.download("f1", file, 2)
        with tempfile.TemporaryFile() as file:
            api.download("f1", file, 4)
            assert file.tell() == 20_000_000
    monkeypatch.setattr(batch_api, "_TIMEOUT", 0.3)
    with (
        AnyServer(body=b" " * 20, seconds=0.1) as slow,
        pytest.raises(TransportError, match=r"not whole within 0\.3 s"),
    ):
        api_of(prefix, slow.address).look("b1")


def api_of(prefix: str, address: str) -> Any:
    return batch_api.batch_api(pi.LLM(f"{prefix}m", api_base=address, api_key="k").transport)


def test_a_wrapper_of_httpx_that_is_taken_off_leaves_batches_guarded(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    client = client_of_the_sdk()
    real = inspect.unwrap(client.send)

    @functools.wraps(real)
    def seen(self: Any, *args: Any, **options: Any) -> Any:
        return real(self, *args, **options)

    with AnyServer() as other:
        provider.headers = {"Location": other.address}
        provider.faults = [(UPLOAD, 307)] * 20
        for send in (seen, real):
            monkeypatch.setattr(client, "send", send)
            with pytest.raises(ModelError, match="307"):
                submit(provider, pairs(2), place / send.__qualname__, max_attempts=1)
        assert other.asked == []


def test_an_answer_that_came_past_the_guard_is_an_error(monkeypatch: Patch) -> None:
    monkeypatch.setattr(http_guard, "_guard_libraries", lambda: None)
    client = client_of_the_sdk()
    monkeypatch.setattr(client, "send", inspect.unwrap(client.send))
    with (
        AnyServer(body=b'{"id": "b1", "status": "completed"}') as server,
        pytest.raises(ModelError, match="may follow redirects") as caught,
    ):
        api_of("", server.address).look("b1")
    assert caught.value.fatal


def client_of_the_sdk() -> Any:
    import openai

    return next(one for one in openai.DefaultHttpxClient.__mro__ if one.__name__ == "Client")


@pytest.mark.parametrize("path", ["/openai/deployments/gpt", "/v1?api-version=2024-10-21"])
def test_the_address_of_a_deployment_has_no_batches(path: str, place: Path) -> None:
    """Azure's: the SDK would append the path to the query, and send the key in another header."""
    with AnyServer() as server:
        address = server.address + path
        with pytest.raises(InvalidArgumentError, match="azure/NAME") as caught:
            pi.submit_batch(pairs(1), "gpt-4o", place / "b", api_base=address, api_key="k")
    assert caught.value.argument == "api_base"
    assert not server.asked
    assert not (place / "b").exists()
