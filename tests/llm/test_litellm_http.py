"""What litellm sends over HTTP, and what it reads: by the rules of this library, whatever the provider.

litellm uses clients of its own, those of the openai SDK, and some that it made for one provider. There are
providers of each kind here, and the largest ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import personainfer as pi
from personainfer import http_guard
from personainfer.batch.provider import batch_api
from personainfer.exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    ModelError,
    ModelNotFoundError,
    ReplyError,
    TransportError,
)
from personainfer.llm.instructor_client import InstructorClient
from personainfer.llm.litellm_transport import LiteLLMTransport
from personainfer.llm.requests import Request
from personainfer.testing import FakeLLM, Fault

from ..builders import AnyServer, pairs

pytestmark = pytest.mark.heavy  # litellm takes seconds to import

PROVIDERS = {
    "the openai SDK": "openai/x",
    "the openai SDK, for Azure": "azure/x",
    "the openai SDK, for completions": "text-completion-openai/x",
    "the openai SDK, with fields of its own": "custom_openai/x",
    "litellm's client, in OpenAI's form": "openrouter/x",
    "one more in OpenAI's form": "groq/x",
    "DeepSeek": "deepseek/x",
    "Mistral": "mistral/x",
    "Together": "together_ai/x",
    "Fireworks": "fireworks_ai/x",
    "Hugging Face": "huggingface/x",
    "vLLM": "hosted_vllm/x",
    "Anthropic": "anthropic/claude-3-5-haiku-20241022",
    "Gemini": "gemini/gemini-2.0-flash",
    "Cohere": "cohere_chat/command-r",
    "Ollama, chat": "ollama_chat/x",
    "Ollama": "ollama/x",
    "Bedrock, converse": "bedrock/converse/x",
    "Bedrock, invoke": "bedrock/invoke/anthropic.claude-3-haiku-20240307-v1:0",
    "Watsonx": "watsonx/x",
    "Databricks": "databricks/x",
}
each_provider = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=PROVIDERS)
MESSAGES = [{"role": "user", "content": "the text of a user"}]


@pytest.fixture(autouse=True)
def settings_of_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What some providers want to know before they send anything."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION_NAME": "us-east-1",
        "AZURE_API_VERSION": "2024-10-21",
        "WATSONX_TOKEN": "token",
        "WATSONX_PROJECT_ID": "project",
    }.items():
        monkeypatch.setenv(name, value)


def llm_of(provider: str, server: AnyServer, **options: Any) -> pi.LLM:
    given: dict[str, Any] = {
        "api_base": server.address,
        "api_key": "secret-key-1",
        "extra_headers": {"X-Mine": "secret-header-1"},
        "max_attempts": 1,
        "cache": False,
        "timeout": 20,
    }
    return pi.LLM(f"litellm/{provider}", **{**given, **options})


@each_provider
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_with_any_provider(provider: str, status: int) -> None:
    with AnyServer() as other, AnyServer(status, {"Location": f"{other.address}/v1"}) as first:
        with pytest.raises(ModelNotFoundError) as caught:
            llm_of(provider, first).ask(MESSAGES)
        # The second one is short: it tells whether the row alone is redirected.
        assert (len(first.asked), other.asked) == (2, [])
    assert f"redirects to {other.address}/v1 ({status})" in str(caught.value)
    assert "api_base=" in str(caught.value)
    assert "the text of a user" in first.asked[0].body.decode()  # it was a call that could leak


@each_provider
def test_a_reply_is_bounded_with_any_provider(provider: str) -> None:
    body = zlib.compress(b'{"choices": "' + b" " * 5_000_000, wbits=31)
    with AnyServer(200, {"Content-Encoding": "gzip"}, body) as server:
        with pytest.raises(ReplyError, match="larger than 4 MB"):
            llm_of(provider, server).ask(MESSAGES)
        assert len(server.asked) == 1


def test_a_reply_that_the_provider_gave_up_is_no_whole_one() -> None:
    said = {"role": "assistant", "content": [{"type": "text", "text": "Once upon"}]}
    counts = {"tokens": {"input_tokens": 7, "output_tokens": 5}}
    told = {"id": "x", "message": said, "finish_reason": "TIMEOUT", "usage": counts}
    broken_off = pytest.raises(TransportError, match="broke its reply off")
    with AnyServer(200, body=json.dumps(told).encode()) as server, broken_off:
        llm_of("cohere_chat/command-r", server).ask(MESSAGES)


@pytest.mark.parametrize(
    "provider", ["ollama/x", "ollama_chat/x", "bedrock/invoke/amazon.titan-text-express-v1"]
)
def test_a_reply_that_was_cut_off_is_no_whole_one(provider: str) -> None:
    said = {"response": "Once upon", "message": {"role": "assistant", "content": "Once upon"}}
    told = {"model": "x", "done": True, "prompt_eval_count": 7, "eval_count": 5, **said}
    for reason in ("length", "stop"):
        of_titan = {"outputText": "Once upon", "completionReason": reason.upper()}
        body = json.dumps({**told, "done_reason": reason}).encode()
        if "titan" in provider:
            body = json.dumps({"results": [of_titan]}).encode()
        with AnyServer(200, body=body) as server:
            llm = llm_of(provider, server)
            if reason == "stop":
                assert llm.ask(MESSAGES).text == "Once upon"
            else:
                with pytest.raises(ReplyError, match="cut off"):
                    llm.ask(MESSAGES)


@each_provider
@pytest.mark.parametrize("status", [400, 500])
def test_an_error_that_tells_what_it_took_is_charged_with_any_provider(
    provider: str, status: int
) -> None:
    told = {"error": {"message": "no"}, "usage": {"prompt_tokens": 30, "completion_tokens": 10}}
    with AnyServer(status, body=json.dumps(told).encode()) as server:
        llm = llm_of(provider, server, prices=(10_000.0, 10_000.0))
        with pytest.raises(ModelError):
            llm.ask(MESSAGES)
        assert len(server.asked) == 1
    assert llm.usage.cost == pytest.approx(0.4)


SAID = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
CONTENT = {"parts": [{"text": "yes"}], "role": "model"}
OLLAMA = {"model": "x", "message": {"role": "assistant", "content": "yes"}, "done": True}
TITAN = {"results": [{"outputText": "yes", "completionReason": "FINISH"}]}
# Answers in which 30 tokens of a prompt and 10 of a reply are told, some of them in parts.
TOLD: dict[str, dict[str, Any]] = {
    "ollama_chat/x": {**OLLAMA, "prompt_eval_count": 30, "eval_count": 10},
    "ollama/x": {"model": "x", "response": "yes", "prompt_eval_count": 30, "eval_count": 10},
    "anthropic/claude-3-5-haiku-20241022": {
        **SAID,
        "id": "1",
        "model": "x",
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 20,
            "cache_creation_input_tokens": 7,
            "cache_read_input_tokens": 3,
            "output_tokens": 10,
        },
    },
    "gemini/gemini-2.5-flash": {
        "candidates": [{"content": CONTENT, "finishReason": "STOP"}],
        "usageMetadata": {
            "promptTokenCount": 30,
            "candidatesTokenCount": 4,
            "thoughtsTokenCount": 6,
            "totalTokenCount": 40,
        },
    },
    "bedrock/converse/x": {
        "output": {"message": {"role": "assistant", "content": [{"text": "yes"}]}},
        "stopReason": "end_turn",
        "usage": {
            "inputTokens": 20,
            "cacheReadInputTokens": 3,
            "cacheWriteInputTokens": 7,
            "outputTokens": 10,
            "totalTokens": 40,
        },
        "metrics": {"latencyMs": 5},
    },
    "bedrock/invoke/amazon.titan-text-express-v1": TITAN,
    "cohere_chat/command-r": {
        "message": SAID,
        "finish_reason": "COMPLETE",
        "usage": {"tokens": {"input_tokens": 30.0, "output_tokens": 10.0}},
    },
    "watsonx/x": {
        "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40},
    },
    "text-completion-openai/x": {
        "choices": [{"index": 0, "text": "yes", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40},
    },
}


@pytest.mark.parametrize(("provider", "answer"), TOLD.items(), ids=TOLD)
def test_what_an_answer_tells_in_a_protocol_of_its_own_is_charged(
    provider: str, answer: dict[str, Any]
) -> None:
    counts = {"input": "30", "output": "10"} if answer is TITAN else {}
    headers = {f"X-Amzn-Bedrock-{name}-Token-Count": text for name, text in counts.items()}
    with AnyServer(200, headers, json.dumps(answer).encode()) as server:
        llm = llm_of(provider, server, prices=(10_000.0, 10_000.0))
        assert llm.ask(MESSAGES).text == "yes"
    assert llm.usage.cost == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("provider", "answer"),
    [
        ("ollama_chat/x", OLLAMA),
        ("ollama_chat/x", {**OLLAMA, "prompt_eval_count": 30}),
        ("bedrock/invoke/amazon.titan-text-express-v1", TITAN),
    ],
)
def test_counts_that_litellm_makes_up_are_not_told(provider: str, answer: dict[str, Any]) -> None:
    with AnyServer(200, body=json.dumps(answer).encode()) as server:
        llm = llm_of(provider, server, prices=(0.0, 10_000.0), max_tokens=500)
        assert llm.ask(MESSAGES).text == "yes"
    assert llm.usage.cost == pytest.approx(5)


@pytest.mark.parametrize(
    "provider", ["openai/x", "openrouter/x", "anthropic/claude-3-5-haiku-20241022"]
)
@pytest.mark.parametrize(
    "answer",
    [
        b'{"code": 200, "data": {"text": "yes"}}',
        b'{"output": [{"type": "message", "content": "yes"}], "usage": {"input_tokens": 5}}',
        b'{"choices": {"0": {"message": {"content": "yes"}}}}',
        b"yes",
    ],
)
def test_what_litellm_cannot_read_counts_as_what_was_reserved(provider: str, answer: bytes) -> None:
    with AnyServer(body=answer) as server:
        llm = llm_of(provider, server, prices=(10_000.0, 10_000.0), budget=20.0)
        for reply in llm.ask_many([(MESSAGES,)] * 9):
            assert reply.error is not None
        assert 1 <= len(server.asked) <= 4


@pytest.mark.parametrize("fault", [Fault("reset"), Fault("reset_mid_body"), Fault.empty()])
def test_so_does_a_call_that_broke_off(fault: Fault) -> None:
    with FakeLLM(faults=[fault] * 20) as server:
        options: dict[str, Any] = {"api_base": server.api_base, "prices": (10_000.0, 10_000.0)}
        options |= {"budget": 20.0, "api_key": "k", "max_attempts": 1, "cache": False}
        llm = pi.LLM("litellm/openai/x", **options)
        llm.ask_many([(MESSAGES,)] * 9)
        assert 1 <= server.calls <= 4
    spent = llm.usage.cost
    assert llm.ask_many([(MESSAGES,)])[0].error is not None  # nobody listens there now
    assert llm.usage.cost == spent


@pytest.mark.parametrize("own", [False, True])
def test_answers_to_calls_of_litellm_come_by_our_own_connections(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where the user gave litellm a client: that may sign requests, or go by another way."""
    import httpx
    import litellm

    sent = []

    class Client(httpx.AsyncClient):
        async def send(self, request: Any, **options: Any) -> Any:
            sent.append(request)
            return await super().send(request, **options)

    if own:
        monkeypatch.setattr(litellm, "aclient_session", Client())
    stream = b'data: {"choices": [{"delta": {"content": "yes"}}]}\n\ndata: [DONE]\n\n'
    with AnyServer(body=stream) as server:
        llm = llm_of("openai/own-client" if own else "openai/x", server)
        assert llm.ask(MESSAGES).text == "yes"  # litellm cannot read it
        server.answer = (200, {"X-Rules": "r" * 60_000}, stream)
        if not own:
            assert llm.ask(MESSAGES).text == "yes"  # nor its clients this header
    assert bool(sent) is own


BUDGET: dict[str, Any] = {"budget": 20.0, "prices": (1.0, 1.0), "max_tokens": 77}


@each_provider
def test_a_budget_knows_the_limit_that_is_sent_to_any_provider(provider: str) -> None:
    with AnyServer() as server:
        with pytest.raises(ModelError):  # the answer says nothing
            llm_of(provider, server, **BUDGET).ask(MESSAGES)
        assert ":77" in server.asked[0].body.decode().replace(" ", "")


@pytest.mark.parametrize("provider", ["v0/v0-1.5-lg", "morph/morph-v3-fast"])
def test_litellm_drops_no_limit_of_a_provider_that_it_thinks_takes_none(provider: str) -> None:
    with AnyServer() as server:
        with pytest.raises(ModelError):
            llm_of(provider, server).ask(MESSAGES)
        assert "max_tokens" in json.loads(server.asked[0].body)


@pytest.mark.parametrize("way", ["ours", "litellm's"])
def test_nothing_is_sent_without_a_limit_where_a_budget_holds(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    async def without_limit(**fields: Any) -> Any:
        fields.pop("max_tokens")
        return await complete(**fields)

    complete = litellm.acompletion
    monkeypatch.setattr(litellm, "acompletion", without_limit)
    if way == "litellm's":
        monkeypatch.setenv("SSL_VERIFY", "true")
    with AnyServer() as server:
        llm = llm_of("openai/x", server, **BUDGET, extra_body={"max_items": 9})
        with pytest.raises(ModelError, match=r"leaves out max_tokens.*nothing was sent") as caught:
            llm.ask(MESSAGES)
        assert (caught.value.fatal, server.asked) == (True, [])
        with pytest.raises(ModelError, match="failed"):  # without a budget it is sent
            llm_of("openai/x", server).ask(MESSAGES)
        assert len(server.asked) == 1


ECHO = b'{"error": {"message": "no: secret-key-1 secret-header-1"}}'


@each_provider
def test_what_an_error_quotes_holds_no_secret_and_no_traceback(provider: str) -> None:
    """Endpoints repeat what they were sent."""
    with AnyServer(422, body=ECHO) as server, pytest.raises(ModelError) as caught:
        llm_of(provider, server).ask(MESSAGES)
    assert "secret-" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "provider", ["openai", "azure", "openrouter", "groq", "anthropic", "gemini"]
)
def test_nor_does_it_hold_a_key_that_litellm_found_in_the_environment(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{provider.upper()}_API_KEY", "secret-key-1")
    with AnyServer(422, body=ECHO) as server, pytest.raises(ModelError) as caught:
        llm_of(f"{provider}/x", server, api_key=None).ask(MESSAGES)
    assert "secret-key-1" in str(server.asked[0].headers)
    assert "secret-" not in str(caught.value)


@pytest.mark.parametrize("name", ["SSL_VERIFY", ""])
def test_a_proxy_that_repeats_its_password_shows_it_in_no_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name:  # litellm's own HTTP sends the call
        monkeypatch.setenv(name, "true")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with AnyServer(422, body=b'{"error": {"message": "no: me:secret-proxy-1"}}') as proxy:
        monkeypatch.setenv("http_proxy", proxy.address.replace("//", "//me:secret-proxy-1@"))
        with pytest.raises(ModelError, match="no: ") as caught:
            llm_of("openai/x", proxy, api_base="http://model.invalid/v1").ask(MESSAGES)
    assert len(proxy.asked) == 1
    assert "secret-" not in str(caught.value)


@pytest.mark.parametrize(
    "provider", ["openai/x", "sambanova/x", "anthropic/claude-3-haiku-20240307"]
)
@pytest.mark.parametrize("fault", [Fault.status(500), Fault.reset()], ids=["500", "reset"])
def test_a_failed_request_is_sent_again_by_us_alone(provider: str, fault: Fault) -> None:
    """For some providers litellm does not pass `max_retries` on: the openai SDK then sends it three times."""
    with FakeLLM(reply=fault) as fake, AnyServer(500) as server:
        address = server.address if provider.startswith("anthropic") else fake.api_base
        with pytest.raises(TransportError):
            llm_of(provider, server, api_base=address).ask(MESSAGES)
        assert fake.calls + len(server.asked) == 1


@pytest.mark.parametrize("provider", ["openai/x", "openrouter/x"])
def test_the_whole_reply_has_to_come_in_time(provider: str) -> None:
    """httpx limits the time between two bytes alone."""
    with FakeLLM(Fault.slow_body(3)) as server, pytest.raises(TransportError, match="within 1 s"):
        pi.LLM(
            f"litellm/{provider}",
            api_base=server.api_base,
            api_key="k",
            timeout=1,
            max_attempts=1,
        ).ask(MESSAGES)


def test_calls_by_a_client_that_blocks_a_thread_do_not_wait_for_each_other() -> None:
    """A server that never ends its replies holds up no other call, and not the end of the process."""
    with AnyServer(body=b" " * 400, seconds=0.05) as server:
        llm = llm_of("nlp_cloud/dolphin", server, api_base=f"{server.address}/gpu/", timeout=2)
        users = [[{"role": "user", "content": f"the text of user {user}"}] for user in range(40)]
        for reply in llm.ask_many([(messages,) for messages in users]):
            assert "within 2 s" in str(reply.error)
        assert len(server.asked) == 40
        end = time.monotonic() + 8
        while threads_that_send():
            assert time.monotonic() < end
            time.sleep(0.05)


def threads_that_send() -> int:
    stacks = map(traceback.walk_stack, sys._current_frames().values())
    return sum(
        any(frame.f_code.co_filename == http_guard.__file__ for frame, _ in stack)
        for stack in stacks
    )


def test_a_provider_whose_client_cannot_be_held_is_refused() -> None:
    with AnyServer() as server, pytest.raises(InvalidArgumentError, match="redirects"):
        llm_of("aiohttp_openai/x", server)


def test_a_reply_that_came_by_an_unknown_client_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later litellm may use another client: nothing is sent by it for a second time."""
    import litellm

    calls = []

    async def acompletion(**fields: Any) -> Any:
        calls.append(fields)
        message = {"role": "assistant", "content": "hello"}
        return litellm.ModelResponse(choices=[{"message": message, "finish_reason": "stop"}])

    monkeypatch.setattr(litellm, "acompletion", acompletion)
    with AnyServer() as server, pytest.raises(ModelError, match="may follow redirects") as caught:
        llm_of("openai/x", server).ask(MESSAGES)
    assert caught.value.fatal
    assert len(calls) == 1


def test_nor_does_another_request_in_its_place_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of a callback, or for a token."""
    import httpx
    import litellm

    with AnyServer() as server:

        async def acompletion(**_: Any) -> Any:
            async with httpx.AsyncClient() as client:
                await client.get(server.address)
            message = {"role": "assistant", "content": "hello"}
            return litellm.ModelResponse(choices=[{"message": message, "finish_reason": "stop"}])

        monkeypatch.setattr(litellm, "acompletion", acompletion)
        with pytest.raises(ModelError, match="may follow redirects"):
            llm_of("openai/x", server).ask(MESSAGES)


def test_what_a_callback_sends_is_no_part_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log server may redirect: the error is still what the endpoint said."""
    import httpx
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    logged = []

    class Log(CustomLogger):  # type: ignore[misc]
        async def async_log_failure_event(self, *_: Any, **__: Any) -> None:
            logged.append(1)
            async with httpx.AsyncClient(follow_redirects=True) as client:
                await client.get(log.address.replace("127.0.0.1", "localhost"))

    for moment in (
        "input",
        "success",
        "failure",
        "_async_input",
        "_async_success",
        "_async_failure",
    ):
        monkeypatch.setattr(litellm, f"{moment}_callback", [])  # litellm adds it to each of them
    monkeypatch.setattr(litellm, "callbacks", [Log()])
    with (
        AnyServer(302, {"Location": "http://log.invalid"}) as log,
        AnyServer(422) as server,
        pytest.raises(ModelError, match="422"),
    ):
        llm_of("openrouter/x", server).ask(MESSAGES)
    assert logged


@pytest.mark.parametrize("provider", ["replicate/a/b", "bytez/a/b", "sagemaker_chat/x"])
def test_a_provider_that_does_not_use_the_address_is_not_called(provider: str) -> None:
    with AnyServer() as server:
        with pytest.raises(ModelError, match=r"does not use api_base=.*nothing was sent") as caught:
            llm_of(provider, server).ask(MESSAGES)
        assert (caught.value.fatal, server.asked) == (True, [])


@pytest.mark.parametrize("text", ["🙂🙂 — !", " \n"])
def test_nor_is_it_where_the_text_has_no_words(text: str) -> None:
    with AnyServer() as server:
        with pytest.raises(ModelError, match=r"does not use api_base=.*nothing was sent"):
            llm_of("replicate/a/b", server).ask([pi.Message(role="user", content=text)])
        assert server.asked == []


def test_a_model_of_the_users_own_needs_no_http(monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    class Own(litellm.CustomLLM):  # type: ignore[misc]
        async def acompletion(self, *_: Any, **__: Any) -> Any:
            message = {"role": "assistant", "content": "hello"}
            return litellm.ModelResponse(choices=[{"message": message, "finish_reason": "stop"}])

    monkeypatch.setattr(litellm, "provider_list", [*litellm.provider_list])
    monkeypatch.setattr(litellm, "_custom_providers", [*litellm._custom_providers])
    handlers = [{"provider": "own", "custom_handler": Own()}]
    monkeypatch.setattr(litellm, "custom_provider_map", handlers)
    litellm.utils.custom_llm_setup()
    assert pi.LLM("litellm/own/x", cache=False).ask(MESSAGES).text == "hello"


@pytest.mark.parametrize("key", ["sk-abcdefgh\n", "sk-ábcdefgh"])
def test_a_key_of_the_environment_that_cannot_be_sent_is_refused_before_any_call(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker's secrets have a line break at their end."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with FakeLLM() as server, pytest.raises(AuthenticationError, match="cannot be sent") as caught:
        pi.LLM("litellm/openai/x", api_base=server.api_base).ask(MESSAGES)
    assert server.calls == 0
    assert key.strip() not in str(caught.value)


def test_the_cache_of_litellm_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key knows neither `api_base` nor the schema."""
    import litellm

    monkeypatch.setattr(litellm, "cache", litellm.Cache())
    for text in ("one", "two"):
        with FakeLLM(text) as server:
            model = pi.LLM("litellm/openai/x", api_base=server.api_base, api_key="k", cache=False)
            assert model.ask(MESSAGES).text == text


def test_an_address_of_the_environment_is_part_of_what_a_reply_is_stored_under(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two models behind two addresses must not share replies."""
    for text in ("one", "two"):
        with FakeLLM(text) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
            assert pi.LLM("litellm/openai/x", api_key="k").ask(MESSAGES).text == text


def test_an_alias_of_litellm_chooses_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    with FakeLLM() as server:
        model = pi.LLM("litellm/openai/x", api_base=server.api_base, api_key="k")
        monkeypatch.setattr(litellm, "model_alias_map", {"openai/x": "openai/other"})
        with pytest.raises(ModelError, match="model_alias_map has another model"):
            model.ask(MESSAGES)
    assert server.calls == 0


@pytest.mark.parametrize("variable", ["OPENAI_ORG_ID", "OPENAI_ORGANIZATION"])
def test_the_headers_that_the_environment_has_for_openai_go_to_no_other_address(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    custom = "Authorization: Bearer q7-of-openai\nX-Gateway: q7-header\nContent-Type: q7-type"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", custom)
    monkeypatch.setenv(variable, "q7-organization")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "q7-project")
    said = b'{"error": {"message": "odd: q7-header, q7-organization"}}'
    with AnyServer(422, body=said) as server:
        options: dict[str, Any] = {"api_key": "k-of-this", "extra_headers": {"X-Own": "mine"}}
        model = pi.LLM("litellm/openai/x", api_base=server.address, cache=False, **options)
        with pytest.raises(ModelError, match="odd") as caught:
            model.ask(MESSAGES)
    headers = server.asked[0].headers
    assert (headers["authorization"], headers["x-own"]) == ("Bearer k-of-this", "mine")
    assert headers["content-type"] == "application/json"
    assert "q7-" not in f"{headers}{caught.value}"


@pytest.mark.parametrize("name", ["ALL_PROXY", "SSL_VERIFY", ""])
@pytest.mark.parametrize("provider", ["openai/x", "custom_openai/x", "azure/x"])
def test_whoever_sends_the_call_and_however_long_ago_its_client_was_made(
    provider: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """litellm keeps the clients of the openai SDK, which look at the environment when they are made."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    custom = "q7-one: q7-1\nAuthorization: Bearer q7-2\napi-key: q7-3\nUser-Agent: q7-4\nHost: q7-5"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"{custom}\nAccept: q7-6\nX-Stainless-OS: q7-7")
    if name:
        monkeypatch.setenv(name, {"ALL_PROXY": "http://127.0.0.1:9"}.get(name, "true"))
    with AnyServer() as server:
        for setting in ("made", "changed", "unset"):
            if setting == "changed":
                monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "q7-two: q7-8")
            if setting == "unset":
                monkeypatch.delenv("OPENAI_CUSTOM_HEADERS")
            with pytest.raises(ModelError):  # the answer says nothing
                llm_of(provider, server).ask(MESSAGES)
        assert len(server.asked) == 3
    for asked in server.asked:
        assert "q7-" not in str(asked.headers)
        header = "api-key" if provider == "azure/x" else "authorization"
        assert asked.headers[header].endswith("secret-key-1")
        assert asked.headers["x-mine"] == "secret-header-1"


def test_a_key_of_the_environment_and_headers_of_the_program_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import litellm

    monkeypatch.setattr(litellm, "headers", {"X-Program": "its own"})
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "q7-one: q7-1")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-environment")
    with AnyServer() as server, pytest.raises(ModelError):
        llm_of("openai/x", server, api_key=None, extra_headers=None).ask(MESSAGES)
    headers = server.asked[0].headers
    assert headers["authorization"] == "Bearer key-of-the-environment"
    assert headers["x-program"] == "its own"
    assert "q7-" not in str(headers)


KEYS = {
    "SCW_SECRET_KEY": "scaleway/x",
    "NANOGPT_API_KEY": "nano-gpt/x",
    "STIMA_API_KEY": "apertis/x",
    "FRIENDLI_TOKEN": "friendliai/x",
    "LLAMA_API_KEY": "meta_llama/x",
    "azure_key": "azure/x",
    "openai_key": "openai/x",
    "api_key": "openai/x",
}


@pytest.mark.parametrize("name", KEYS)
def test_so_does_whatever_litellm_takes_for_the_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    if name.islower():
        monkeypatch.setattr(litellm, name, "key-of-the-provider")
    else:
        monkeypatch.setenv(name, "key-of-the-provider")
    with AnyServer() as server, pytest.raises(ModelError) as caught:
        llm_of(KEYS[name], server, api_key=None, extra_headers=None).ask(MESSAGES)
    assert server.asked, caught.value
    header = "api-key" if name == "azure_key" else "authorization"
    assert server.asked[0].headers[header].endswith("key-of-the-provider")


def test_so_does_a_key_that_litellm_has_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"token": "key-of-the-file", "expires_at": time.time() + 1000}
    (tmp_path / "api-key.json").write_text(json.dumps(known))
    (tmp_path / "access-token").write_text("key-of-the-file")
    monkeypatch.setenv("GITHUB_COPILOT_TOKEN_DIR", str(tmp_path))
    with AnyServer() as server, pytest.raises(ModelError):
        llm_of("github_copilot/x", server, api_key=None).ask(MESSAGES)
    assert server.asked[0].headers["authorization"] == "Bearer key-of-the-file"


@pytest.mark.parametrize("of_this", [False, True])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_missing_key_is_known_whatever_keys_the_program_gave_litellm_for_others(
    of_this: bool, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    def look_up(*_: Any) -> Any:
        raise litellm.BadRequestError("no such model", "x", "anthropic")

    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr(litellm, "anthropic_key" if of_this else "openai_key", "a-key")
    transport = LiteLLMTransport("anthropic/claude-3-haiku-20240307")
    if not is_known:
        monkeypatch.setattr(litellm, "get_llm_provider", look_up)
    if of_this:
        transport.check_key()
    else:
        with pytest.raises(AuthenticationError, match="ANTHROPIC_API_KEY is not set"):
            transport.check_key()


def test_a_header_that_is_not_there_holds_no_key() -> None:
    transport = LiteLLMTransport("openai/x", "http://127.0.0.1:9/v1")
    headers = {"authorization": "Bearer ", "x": "secret"}
    assert not any(transport._is_key_in(headers, name) for name in ("authorization", "api-key"))


def test_litellm_raises_nothing_for_a_call_that_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import litellm

    async def acompletion(**fields: Any) -> Any:
        replies.append(await complete(**fields))
        return replies[-1]

    complete, replies = litellm.acompletion, list[Any]()
    monkeypatch.setattr(litellm, "acompletion", acompletion)
    with FakeLLM("one") as server:
        model = pi.LLM("litellm/openai/x", api_base=server.api_base, api_key="k", cache=False)
        assert model.ask(MESSAGES).text == "one"
    assert [reply.choices[0].message.content for reply in replies] == ["one"]


@pytest.mark.parametrize("provider", ["text-completion-openai", "azure_text"])
def test_a_model_that_completes_texts_replies(provider: str) -> None:
    reply = {
        "object": "text_completion",
        "choices": [{"index": 0, "text": "one", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    with AnyServer(200, body=json.dumps(reply).encode()) as server:
        assert llm_of(f"{provider}/x", server).ask(MESSAGES).text == "one"


def test_added_headers_go_to_no_server_of_a_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    async def acompletion(**fields: Any) -> Any:  # as a callback does before a call
        async with httpx.AsyncClient() as client:
            await client.post(logger.address, json={"logged": MESSAGES})
        return await complete(**fields)

    complete = litellm.acompletion
    monkeypatch.setattr(litellm, "acompletion", acompletion)
    with AnyServer() as logger, AnyServer() as server, pytest.raises(ModelError):
        llm_of("openai/x", server).ask(MESSAGES)
    assert "secret" not in str(logger.asked[0].headers)
    assert server.asked[0].headers["x-mine"] == "secret-header-1"


@pytest.mark.parametrize("budget", [None, 1.0])
def test_a_callback_that_sends_the_texts_before_the_call_is_not_taken_for_it(
    budget: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    def log() -> None:
        with suppress(ModelError):
            httpx.post(logger.address, json={"logged": MESSAGES})

    async def acompletion(**fields: Any) -> Any:
        log()
        return await complete(**fields)

    complete = litellm.acompletion
    monkeypatch.setattr(litellm, "acompletion", acompletion)
    with AnyServer(500) as logger, FakeLLM("one") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        options: dict[str, Any] = {"budget": budget, "prices": (1, 1), "max_attempts": 1}
        headers = {"X-Mine": "secret-header-1"}
        model = pi.LLM(
            "litellm/openai/x", api_key="k", cache=False, extra_headers=headers, **options
        )
        for calls in (1, 2):
            assert model.ask(MESSAGES).text == "one"
            assert (server.calls, model.usage.calls) == (calls, calls)
        assert "secret" not in str([one.headers for one in logger.asked])
        assert server.headers[0]["x-mine"] == "secret-header-1"


def test_a_callback_may_send_lines_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    import litellm

    async def acompletion(**fields: Any) -> Any:
        lines = b"\n".join([json.dumps({"logged": MESSAGES}).encode()] * 2)
        async with httpx.AsyncClient() as client:
            await client.post(logger.address, content=lines)
        return await complete(**fields)

    complete = litellm.acompletion
    monkeypatch.setattr(litellm, "acompletion", acompletion)
    with AnyServer() as logger, FakeLLM("one") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        assert pi.LLM("litellm/openai/x", api_key="k", cache=False).ask(MESSAGES).text == "one"
        assert len(logger.asked) == 1


def without_limits(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, after: Callable[[], object]
) -> None:
    """Have litellm send another limit of a reply, or none, and a callback run after each answer."""
    import litellm

    async def acompletion(**fields: Any) -> Any:
        del fields["max_tokens"]
        reply = await complete(**fields, **({} if limit is None else {"max_tokens": limit}))
        after()
        return reply

    complete = litellm.acompletion
    monkeypatch.setattr(litellm, "acompletion", acompletion)


@pytest.mark.parametrize("limit", [None, 9000])
def test_a_callback_that_sends_the_texts_after_the_answer_takes_no_place_of_it(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the request for it names no limit of its reply, or a larger one than was asked for."""
    with AnyServer(401) as logger, FakeLLM("one") as server:
        without_limits(
            monkeypatch, limit, lambda: httpx.post(logger.address, json={"logged": MESSAGES})
        )
        monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        model = pi.LLM("litellm/openai/x", api_key="k", cache=False, max_attempts=1)
        for _ in range(2):
            assert model.ask(MESSAGES).text == "one"
        assert len(logger.asked) == 2


@pytest.mark.parametrize("limit", [None, 9000])
def test_a_call_without_a_limit_goes_to_the_same_place_too(
    limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_limits(monkeypatch, limit, object)
    with FakeLLM("one") as one, FakeLLM("two") as two:
        monkeypatch.setenv("OPENAI_BASE_URL", one.api_base)
        model = pi.LLM("litellm/openai/x", api_key="k", cache=False, max_attempts=1)
        for _ in range(2):
            assert model.ask(MESSAGES).text == "one"
        monkeypatch.setattr(LiteLLMTransport, "check_address", object)
        monkeypatch.setenv("OPENAI_BASE_URL", two.api_base)
        with pytest.raises(ModelError, match=r"and not http.* as before") as caught:
            model.ask(MESSAGES)
        assert caught.value.fatal
        assert two.calls == (1 if limit is None else 0)  # that it is the call is known afterwards
    assert model.usage.completion_tokens > 0


def test_calls_without_a_limit_that_are_sent_at_once_go_to_one_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None of them is known for the call when it is sent."""
    without_limits(monkeypatch, None, object)
    with FakeLLM("one", latency=0.2) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        model = pi.LLM("litellm/openai/x", api_key="k", cache=False, max_attempts=1)
        asked = [([{"role": "user", "content": str(n)}],) for n in range(8)]
        assert [reply.text for reply in model.ask_many(asked)] == ["one"] * 8


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "AZURE_API_BASE"])
def test_an_address_of_the_environment_that_is_none_ends_a_call_alone(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://[x")
    provider = variable.partition("_")[0].lower()
    model = pi.LLM(f"{provider}/x", api_key="k", cache=False, max_attempts=1)
    with pytest.raises(ModelError):
        model.ask(MESSAGES)


@pytest.mark.parametrize("provider", ["ollama/x", "ollama_chat/x"])
def test_an_address_for_all_providers_does_not_take_the_place_of_the_one_that_was_given(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some providers, litellm calls the one of the program first."""
    import litellm

    with AnyServer() as server, AnyServer() as other:
        model = llm_of(provider, server)
        monkeypatch.setattr(litellm, "api_base", other.address)
        with pytest.raises(
            ModelError, match=r"litellm\.api_base takes the place of api_base="
        ) as caught:
            model.ask(MESSAGES)
        assert (caught.value.fatal, server.asked, other.asked) == (True, [], [])
        monkeypatch.setattr(litellm, "api_base", server.address)
        with pytest.raises(ModelError):  # the answer says nothing
            model.ask(MESSAGES)
        assert server.asked


@pytest.mark.parametrize("told_by", ["environment", "litellm"])
def test_a_reply_is_stored_under_the_address_that_is_called(
    told_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook may name another one after a model was made."""
    import litellm

    def tell(server: FakeLLM) -> None:
        if told_by == "environment":
            monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        else:
            monkeypatch.setattr(litellm, "api_base", server.api_base)

    with FakeLLM("one") as one, FakeLLM("two") as two:
        tell(one)
        model = pi.LLM("litellm/openai/x", api_key="k")
        tell(two)
        with pytest.raises(ModelError, match=r"another address of openai.*nothing was sent"):
            model.ask(MESSAGES)
        with pytest.raises(ModelError, match="another address of openai"):
            batch_api(model.transport).look("batch_1")
        assert (one.calls, two.calls) == (0, 0)
        tell(one)
        assert model.ask(MESSAGES).text == "one"


PLACES = {
    "AWS_REGION_NAME": "bedrock/x",
    "AWS_REGION": "bedrock/converse/x",
    "AWS_DEFAULT_REGION": "bedrock/x",
    "AWS_PROFILE": "sagemaker_chat/x",
    "VERTEXAI_LOCATION": "vertex_ai/gemini-2.0-flash",
    "VERTEX_PROJECT": "vertex_ai/gemini-2.0-flash",
    "WATSONX_REGION": "watsonx/x",
    "SNOWFLAKE_ACCOUNT_ID": "snowflake/x",
    "CLOUDFLARE_ACCOUNT_ID": "cloudflare/x",
    "vertex_location": "vertex_ai/gemini-2.0-flash",
}


@pytest.mark.parametrize("variable", PLACES)
def test_so_it_is_with_the_region_or_account_that_decides_the_address(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    def tell(place: str) -> None:
        if variable.islower():
            monkeypatch.setattr(litellm, variable, place)
        else:
            monkeypatch.setenv(variable, place)

    reached = set()
    for place in ("eu-west-1", "us-east-1"):
        tell(place)
        model = pi.LLM(f"litellm/{PLACES[variable]}", api_key="k", cache=False)
        assert place not in str(model.reached)
        reached.add(model.reached)
    assert len(reached) == 2
    tell("eu-west-1")
    with pytest.raises(ModelError, match=r"names another address.*region.*nothing was sent"):
        model.ask(MESSAGES)
    with AnyServer() as server:
        told = llm_of(PLACES[variable], server).reached
        tell("us-east-1")
        assert llm_of(PLACES[variable], server).reached == told  # api_base= says it


@pytest.mark.parametrize(
    ("provider", "variable"),
    [
        ("github/x", "GITHUB_WORKSPACE"),
        ("wandb/x", "WANDB_PROJECT"),
        ("scaleway/x", "SCW_API_URL"),  # of a program of Scaleway's own, as the next
        ("scaleway/x", "SCW_DEFAULT_REGION"),
        ("meta_llama/x", "LLAMA_BASE_URL"),
        ("friendliai/x", "FRIENDLI_URL"),
        ("huggingface/x/y", "HF_ENDPOINT"),
        ("volcengine/x", "ARK_BASE_URL"),
    ],
)
def test_a_variable_that_decides_no_address_changes_nothing(
    provider: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = set()
    for place in ("one", "two"):
        monkeypatch.setenv(variable, place)
        reached.add(pi.LLM(f"litellm/{provider}", api_key="k", cache=False).reached)
    assert len(reached) == 1


def test_what_litellm_raises_about_the_fields_of_a_model_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import litellm

    def fields(*_: Any, **__: Any) -> Any:
        raise litellm.BadRequestError("no list", "x", "scaledown")

    monkeypatch.setattr(litellm, "get_supported_openai_params", fields)
    with FakeLLM("one") as server:
        model = pi.LLM("litellm/openai/x", api_base=server.api_base, api_key="k", cache=False)
        assert model.ask(MESSAGES).text == "one"


def test_what_is_for_another_provider_does_not_go_to_openai() -> None:
    """litellm calls OpenAI's address where it has none."""
    with pytest.raises(ModelError, match=r"no address of ai21, .* OpenAI's: nothing was sent"):
        pi.LLM("litellm/ai21/x", api_key="k", cache=False, max_attempts=1).ask(MESSAGES)


@pytest.mark.parametrize("name", ["mistral-large-latest", "command-r-08-2024"])
def test_nor_does_a_model_of_azure_that_litellm_takes_for_one_of_openai(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_API_BASE", "https://x.openai.azure.com")
    with FakeLLM("one") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        with pytest.raises(InvalidArgumentError, match="at OpenAI where no address is given"):
            pi.LLM(f"azure/{name}", api_key="of-azure", cache=False).ask(MESSAGES)
        there: dict[str, Any] = {"api_base": server.api_base, "api_key": "k", "cache": False}
        assert pi.LLM(f"litellm/azure/{name}", **there).ask(MESSAGES).text == "one"
    assert server.calls == 1


def test_a_call_that_would_go_elsewhere_than_the_first_one_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever told litellm so: this library does not know all of its settings."""
    import litellm

    async def acompletion(**fields: Any) -> Any:
        return await complete(**{**fields, "api_base": places.pop().address})

    with AnyServer(500) as first, AnyServer(500) as other:
        places = [other, first, first]
        model = pi.LLM("litellm/openai/x", api_key="k", cache=False, max_attempts=1)
        complete = litellm.acompletion
        monkeypatch.setattr(litellm, "acompletion", acompletion)
        for _ in range(3):
            with pytest.raises(ModelError) as caught:
                model.ask(MESSAGES)
        assert (len(first.asked), other.asked) == (2, [])
    assert f"litellm calls {other.address}" in str(caught.value)
    assert f"not {first.address} as before: nothing was sent" in str(caught.value)


def test_litellm_looks_an_address_up_again_only_where_something_may_tell_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up = Counter[str]()

    def counted(model: str) -> Any:
        looked_up[model] += 1
        return look_up(model)

    with FakeLLM("one") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        transport = pi.LLM("litellm/openai/x", api_key="k").transport
        assert isinstance(transport, LiteLLMTransport)
        import litellm

        look_up = litellm.get_llm_provider
        monkeypatch.setattr(litellm, "get_llm_provider", counted)
        for _ in range(9):
            transport.check_address()
        assert not looked_up
        monkeypatch.setenv("OF_ANYTHING", "else")
        for _ in range(9):
            transport.check_address()
        assert looked_up == {"openai/x": 1}


@pytest.mark.parametrize("made", [False, True])
def test_what_litellm_raises_when_it_looks_an_address_up_is_an_error_of_ours(
    made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some providers it signs in to, to find their address."""
    model = pi.LLM("litellm/openai/x", api_key="k-of-this")
    import litellm

    def fails(*_: Any, **__: Any) -> Any:
        raise litellm.AuthenticationError("k-of-this is wrong", "openai", "x")

    monkeypatch.setattr(litellm, "get_llm_provider", fails)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match="could not find out where openai/x is") as caught:
        model.ask(MESSAGES) if made else pi.LLM("litellm/openai/x", api_key="k-of-this")
    assert "k-of-this" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("ollama_chat/llama3", "OLLAMA_API_BASE"),
        ("fireworks_ai/x", "FIREWORKS_API_BASE"),
        ("friendliai/x", "FRIENDLI_API_BASE"),
        ("meta_llama/x", "LLAMA_API_BASE"),
        ("huggingface/x/y", "HF_API_BASE"),
        ("watsonx/x", "WX_URL"),
        ("watsonx_text/x", "WATSONX_URL"),
        ("vertex_ai/gemini-pro", "VERTEX_API_BASE"),
        ("custom_openai/x", "OPENAI_BASE_URL"),
        ("openai/x", ""),
    ],
)
def test_so_it_is_whatever_litellm_calls_its_variable(
    model: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    endpoints = set()
    for address in ("http://a.example/v1", "http://b.example/v1"):
        if variable:
            monkeypatch.setenv(variable, address)
        else:  # set for all providers
            monkeypatch.setattr(litellm, "api_base", address)
        transport = pi.LLM(model, api_key="k", cache=False).transport
        endpoints.add((transport.endpoint, transport.route))
    assert len(endpoints) == 2


def test_the_env_file_of_a_folder_decides_nothing(tmp_path: Path) -> None:
    """litellm reads it from a folder that one is in or that is above: a stranger's, it may be."""
    (tmp_path / ".env").write_text("OPENAI_BASE_URL=http://stranger/v1\nLITELLM_MODE=DEV\n")
    (tmp_path / "below").mkdir()
    script = (
        "import os, personainfer as pi; pi.LLM('openai/x', api_key='k');"
        " assert 'LITELLM_MODE' not in os.environ; print(os.environ.get('OPENAI_BASE_URL'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "below",
        env={**os.environ, "PYTHONPATH": str(Path(pi.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("None\n", "")


@pytest.mark.parametrize("provider", ["openai/x", "anthropic/claude-3-haiku-20240307"])
def test_the_passwords_of_netrc_are_sent_to_no_provider(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    with AnyServer(500) as server:
        with pytest.raises(ModelError):
            llm_of(provider, server).ask(MESSAGES)
        sent = server.asked[0].headers
    assert sent.get("authorization") in (None, "Bearer secret-key-1")


def test_other_uses_of_litellm_in_the_process_do_not_change() -> None:
    import litellm

    reply = {"choices": [{"message": {"role": "assistant", "content": "there"}}], "model": "x"}
    with (
        AnyServer(body=json.dumps(reply).encode()) as other,
        AnyServer(307, {"Location": f"{other.address}/v1"}) as first,
    ):
        with pytest.raises(ModelError):
            llm_of("openai/x", first).ask(MESSAGES)
        found = litellm.completion(
            "openai/x", messages=MESSAGES, api_base=first.address, api_key="k"
        )
    assert found.choices[0].message.content == "there"


def test_a_redirect_is_not_followed_for_a_batch_of_litellm(tmp_path: Path) -> None:
    with AnyServer() as other, AnyServer(307, {"Location": other.address}) as first:
        with pytest.raises(ModelError, match="redirects"):
            pi.submit_batch(
                pairs(1),
                "litellm/openai/gpt-4o-mini",
                tmp_path / "batch",
                api_base=first.address,
                api_key="secret-key-1",
            )
        assert other.asked == []
        assert first.asked


def test_a_call_of_a_client_of_its_own_that_is_cancelled_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some providers send by a client that only the guard of HTTP sees."""

    async def by_own_client(_: InstructorClient, fields: dict[str, Any], *__: Any) -> None:
        async with httpx.AsyncClient() as client:
            await client.post(f"{fields['api_base']}/chat/completions", json=PACKED)

    monkeypatch.setattr(InstructorClient, "ask", by_own_client)
    with FakeLLM(latency=3.0) as server:
        options: dict[str, Any] = {"budget": 1.0, "prices": (1000.0, 1000.0), "max_tokens": 50}
        model = pi.LLM("litellm/openai/fake", api_base=server.api_base, api_key="k", **options)
        run = model.run([(0, [Request([pi.Message(role="user", content="x" * 500)])])])
        threading.Timer(1.0, run.cancel).start()
        with pytest.raises(asyncio.CancelledError):
            next(run)
        run.close()
        budget = model.account.bounds.budget
        assert budget is not None
        assert (server.calls, model.usage.calls) == (1, 1)
        assert budget.spent > 0.5


PACKED = {"model": "fake", "messages": [{"role": "user", "content": "packed otherwise"}]}


def test_options_that_litellm_drops_are_told() -> None:
    """Anthropic takes no seed, and this model does not reason."""
    options: Any = {"seed": 3, "temperature": 0.7, "reasoning_effort": "low"}
    llm = pi.LLM("anthropic/claude-3-5-haiku-20241022", api_key="x", cache=False, **options)
    assert llm.settings["left_out"] == ["reasoning_effort", "seed"]
    with pytest.warns(UserWarning, match="does not take reasoning_effort= and seed=: they were"):
        llm.add_usage(pi.Usage(calls=1))
    assert "left_out" not in pi.LLM("openai/gpt-4o-mini", api_key="x", cache=False, seed=3).settings
