"""Whether a fault belongs to the row, the run or the moment; and that nothing is spent on the hopeless."""

from __future__ import annotations

import html
import json
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

import personainfer as pi
from personainfer.api_keys import Secrets
from personainfer.exceptions import (
    AuthenticationError,
    ModelError,
    ModelNotFoundError,
    RateLimitError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from personainfer.llm import workers
from personainfer.llm.refusals import RULES, error_text, status_error
from personainfer.llm.transports import EmbeddedTransport
from personainfer.local.weights import find_weights
from personainfer.personas.prompts import PersonaPrompt
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import each_way, pairs

PERSON = {"evidence": "steps", "trait": "a cook in a hurry", "preference": "numbered steps"}
GOOD = json.dumps({"person_1": PERSON, "person_2": PERSON})
ROWS = 100
WIDTH = 8


def openai_error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def infer(server: FakeLLM, rows: int = 1, **options: Any) -> pi.PersonaTable:
    options = {"max_concurrency": WIDTH, "cache": False, **options}
    return pi.infer_personas(pairs(rows), "fake", api_base=server.api_base, **options)


# --- the table: (status, body, headers) -> the error, and whether it ends the run -----------------

CASES: dict[str, tuple[int, Any, type[ModelError], str]] = {
    # Groq, when one request alone is larger than the tokens a minute
    "request larger than the tokens a minute": (
        413,
        openai_error("Request too large for model `x` on tokens per minute (TPM): Limit 6000"),
        RequestRejectedError,
        "row",
    ),
    "OpenAI: the same with 429": (
        429,
        openai_error("Request too large for gpt-4o on tokens per min (TPM): Limit 30000"),
        RequestRejectedError,
        "row",
    ),
    "OpenAI: context": (
        400,
        openai_error(
            "This model's maximum context length is 8192 tokens.", code="context_length_exceeded"
        ),
        RequestRejectedError,
        "row",
    ),
    "llama.cpp: context": (
        400,
        openai_error(
            "the request exceeds the available context size", type="exceed_context_size_error"
        ),
        RequestRejectedError,
        "row",
    ),
    "vLLM: context, in terms of max_tokens": (
        400,
        {
            "object": "error",
            "message": "'max_tokens' is too large: 500. This model's maximum context"
            " length is 512 tokens and your request has 400 input tokens",
        },
        RequestRejectedError,
        "row",
    ),
    "Anthropic: prompt is too long": (
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "prompt is too long"},
        },
        RequestRejectedError,
        "row",
    ),
    "OpenRouter: moderation": (
        403,
        openai_error(
            'x requires moderation. Your input was flagged for "violence".',
            code=403,
            metadata={"reasons": ["violence"], "flagged_input": "…"},
        ),
        RequestRejectedError,
        "row",
    ),
    "OpenRouter: moderation that was free": (
        403,
        openai_error("Your input was flagged. No credits were charged.", code=403),
        RequestRejectedError,
        "row",
    ),
    "Azure: content filter": (
        400,
        openai_error(
            "The response was filtered",
            code="content_filter",
            innererror={"code": "ResponsibleAIPolicyViolation"},
        ),
        RequestRejectedError,
        "row",
    ),
    "OpenAI: usage policy": (
        400,
        openai_error("Invalid prompt: your prompt was flagged as violating our usage policy."),
        RequestRejectedError,
        "row",
    ),
    "DashScope: data inspection": (
        400,
        openai_error(
            "Input data may contain inappropriate content.", code="data_inspection_failed"
        ),
        RequestRejectedError,
        "row",
    ),
    "OpenAI: no quota": (
        429,
        openai_error(
            "You exceeded your current quota, please check your plan and billing details.",
            type="insufficient_quota",
            code="insufficient_quota",
        ),
        AuthenticationError,
        "run",
    ),
    "the same without its code": (
        429,
        openai_error(
            "You exceeded your current quota, please check your plan and billing details."
        ),
        AuthenticationError,
        "run",
    ),
    "Gemini: quota a minute, in the words of no quota": (
        429,
        [
            {
                "error": {
                    "code": 429,
                    "status": "RESOURCE_EXHAUSTED",
                    "message": "You exceeded your current quota, please check your plan and billing details.",
                    "details": [{"@type": "…RetryInfo", "retryDelay": "34s"}],
                }
            }
        ],
        RateLimitError,
        "moment",
    ),
    "OpenRouter: no credits": (
        402,
        openai_error("This request requires more credits, or fewer max_tokens.", code=402),
        AuthenticationError,
        "run",
    ),
    "DeepSeek: no balance": (402, openai_error("Insufficient Balance"), AuthenticationError, "run"),
    "Anthropic: no credit, as a bad request": (
        400,
        openai_error("Your credit balance is too low to access the Anthropic API."),
        AuthenticationError,
        "run",
    ),
    "OpenAI: hard limit": (
        400,
        openai_error("Billing hard limit has been reached", code="billing_hard_limit_reached"),
        AuthenticationError,
        "run",
    ),
    "Groq: rate, with the wait in words": (
        429,
        openai_error("Rate limit reached for model. Please try again in 7.66s.", type="tokens"),
        RateLimitError,
        "moment",
    ),
    "a proxy that says the rate limit with a 500 (litellm#4259)": (
        500,
        openai_error("litellm.RateLimitError: too many requests"),
        RateLimitError,
        "moment",
    ),
    "Bedrock: throttling": (400, {"message": "ThrottlingException"}, RateLimitError, "moment"),
    "llama.cpp: loading": (
        503,
        openai_error("Loading model", code=503, type="unavailable_error"),
        RateLimitError,
        "moment",
    ),
    "Hugging Face: loading (transformers#32665)": (
        503,
        {"error": "Model x is currently loading", "estimated_time": 20.0},
        RateLimitError,
        "moment",
    ),
    "LM Studio, Ollama: a model that cannot be loaded": (
        500,
        openai_error("error loading model: unable to allocate CUDA buffer"),
        TransportError,
        "moment",
    ),
    "Groq: json_validate_failed (groq-ruby#12)": (
        400,
        openai_error(
            "Failed to generate JSON.", code="json_validate_failed", failed_generation="{"
        ),
        ReplyError,
        "moment",
    ),
    "Groq: tool_use_failed": (
        400,
        openai_error("Failed to call a function.", code="tool_use_failed"),
        ReplyError,
        "moment",
    ),
    "Gemini: a bad key is a bad request": (
        400,
        [
            openai_error(
                "API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT"
            )
        ],
        AuthenticationError,
        "run",
    ),
    "a bad key": (
        401,
        openai_error("Incorrect API key provided: sk-abc…"),
        AuthenticationError,
        "run",
    ),
    "a key without rights": (
        403,
        openai_error("You do not have access."),
        AuthenticationError,
        "run",
    ),
    "OpenAI: no access to the model": (
        403,
        openai_error("Project does not have access to model `x`", code="model_not_found"),
        ModelNotFoundError,
        "run",
    ),
    "DeepSeek: no such model, as a bad request": (
        400,
        openai_error("Model Not Exist"),
        ModelNotFoundError,
        "run",
    ),
    "OpenRouter: no such model": (
        400,
        openai_error("fake is not a valid model ID", code=400),
        ModelNotFoundError,
        "run",
    ),
    "Ollama: not pulled": (
        404,
        openai_error('model "x" not found, try pulling it first'),
        ModelNotFoundError,
        "run",
    ),
    "Groq: decommissioned": (
        400,
        openai_error("The model `x` has been decommissioned", code="model_decommissioned"),
        ModelNotFoundError,
        "run",
    ),
    "FastAPI: a wrong path": (404, {"detail": "Not Found"}, ModelNotFoundError, "run"),
    "nginx: a wrong path": (405, "<html>405 Not Allowed</html>", ModelNotFoundError, "run"),
    "a redirect": (307, "", ModelNotFoundError, "run"),
    "Cloudflare": (524, "<html>A timeout occurred</html>", TransportError, "moment"),
    "overloaded": (529, openai_error("Overloaded"), TransportError, "moment"),
    "LiteLLM's proxy: the budget of a key": (
        400,
        openai_error("Budget has been exceeded! Current cost: 0.0021", type="budget_exceeded"),
        AuthenticationError,
        "run",
    ),
    "Anthropic: the limit that an account has set itself": (
        400,
        openai_error("You have reached your specified API usage limits."),
        AuthenticationError,
        "run",
    ),
    "a limit of API usage that passes": (
        429,
        openai_error("You exceeded the API usage limits: 60 requests. Try again in 3s"),
        RateLimitError,
        "moment",
    ),
    "a budget of tokens that passes": (
        429,
        openai_error("Your token budget has been exceeded: too many requests"),
        RateLimitError,
        "moment",
    ),
    "Zhipu: no balance, with the status of a rate": (
        429,
        openai_error("余额不足或无可用资源包,请充值。", code="1113"),
        AuthenticationError,
        "run",
    ),
    "Azure API Management: calls of a period": (
        403,
        {"message": "Out of call volume quota. Quota will be replenished in 00:12:13."},
        RateLimitError,
        "moment",
    ),
    "Groq: no capacity, with a status of its own": (
        498,
        openai_error("Flex tier capacity exceeded", type="capacity_exceeded"),
        TransportError,
        "moment",
    ),
    "LM Studio: a crash is a bad request": (
        400,
        {"error": "The model has crashed without additional information. (Exit code: 6)"},
        TransportError,
        "moment",
    ),
    "LiteLLM's proxy: all deployments rest": (
        400,
        openai_error("There are no healthy deployments for this model."),
        TransportError,
        "moment",
    ),
    "Cohere: a reply that it could not make": (
        422,
        {"message": "no valid response generated"},
        TransportError,
        "moment",
    ),
    "Cloudflare: the guardrails of its gateway": (
        424,
        {"error": [{"code": 2016, "message": "Prompt blocked due to security configurations"}]},
        RequestRejectedError,
        "row",
    ),
    "DeepSeek: moderation": (
        400,
        openai_error("Content Exists Risk"),
        RequestRejectedError,
        "row",
    ),
    "OpenAI: no log-probabilities of models that reason": (
        403,
        openai_error("You are not allowed to request logprobs from this model"),
        RequestRejectedError,
        "row",
    ),
    "Fireworks: a deployment that starts": (
        503,
        openai_error("Deployment is currently scaled to zero and is scaling up.", code="X"),
        RateLimitError,
        "moment",
    ),
    "a server that starts": (
        503,
        openai_error("The server is still starting"),
        RateLimitError,
        "moment",
    ),
    "Anthropic: input tokens a minute": (
        429,
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": "This request would exceed the rate limit for your organization (1-2) of 50,000"
                " input tokens per minute. Please reduce the prompt length or the maximum tokens requested,"
                " or try again later.",
            },
        },
        RateLimitError,
        "moment",
    ),
    "the same, by litellm's proxy": (
        429,
        openai_error(
            "litellm.RateLimitError: AnthropicException - This request would exceed your organization's"
            " rate limit of 8,000 output tokens per minute. Reduce the prompt length."
        ),
        RateLimitError,
        "moment",
    ),
    "Databricks: input tokens a minute": (
        429,
        {
            "error_code": "REQUEST_LIMIT_EXCEEDED",
            "message": "REQUEST_LIMIT_EXCEEDED: Exceeded workspace input tokens per minute rate limit for x.",
        },
        RateLimitError,
        "moment",
    ),
    "Gemini: the free tier has nothing of this model": (
        429,
        {
            "error": {
                "message": "You exceeded your current quota. * Quota exceeded for metric: x/free_tier,"
                " limit: 0, model: gemini-2.5-pro. Please retry in 36s.",
                "status": "RESOURCE_EXHAUSTED",
            }
        },
        AuthenticationError,
        "run",
    ),
    "Gemini: prepaid": (
        429,
        openai_error("Your prepayment credits are depleted.", status="RESOURCE_EXHAUSTED"),
        AuthenticationError,
        "run",
    ),
    "Envoy, behind OpenRouter": (
        400,
        openai_error(
            "Provider returned error", code=400, metadata={"raw": "upstream connect error or reset"}
        ),
        TransportError,
        "moment",
    ),
    "unknown words": (400, openai_error("computer says no"), RequestRejectedError, "row"),
}


def refusal_of(status: int, body: Any, key: str = "") -> ModelError:
    content = body if isinstance(body, str) else json.dumps(body)
    return status_error(status, {}, error_text(content.encode()), Secrets([key]))


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_is_judged_by_status_and_words(name: str) -> None:
    status, body, kind, scope = CASES[name]
    error = refusal_of(status, body)
    assert type(error) is kind
    assert error.fatal == (scope == "run")
    assert error.retryable == (scope == "moment")


@pytest.mark.parametrize("name", CASES)
def test_the_providers_words_are_in_the_error(name: str) -> None:
    status, body, _, _ = CASES[name]
    error = str(refusal_of(status, body))
    while isinstance(body, list):
        [body] = body
    said = body if isinstance(body, str) else body.get("error", body)
    said = said[0] if isinstance(said, list) else said
    words = said if isinstance(said, str) else said.get("message") or said.get("detail")
    assert str(words)[:40].replace("sk-abc…", "") in error.replace("[key]", "")


def test_the_words_of_the_provider_behind_a_gateway_are_there_without_keys() -> None:
    """OpenRouter says "Provider returned error", and the words in `metadata.raw`."""
    body = openai_error(
        "Provider returned error",
        code=400,
        metadata={"raw": '{"message": "no such thing, sk-live-0123456789"}', "provider_name": "P"},
    )
    error = str(refusal_of(400, body, key="my-own-key"))
    assert "no such thing" in error
    assert "0123456789" not in error


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("Please try again in 7.66s.", 7.66),
        ("Please retry in 34.07s.", 34.07),
        ("Please try again in 1m2s", 62.0),
        ("Please try again in 120ms.", 0.12),
        ("retry after 20 seconds", 20.0),
        ("Please retry after 2 minutes.", 120.0),
        ("Try again in about 1 hour and 30 min", 5400.0),
        ("try again in 250 milliseconds", 0.25),
        ("Please wait 40 seconds before retrying.", 40.0),
        ("Limit resets in 40s", 40.0),
        ("retry after 30 messages", None),
        ("try again soon", None),
    ],
)
def test_a_wait_that_only_the_words_say_is_kept(words: str, seconds: float | None) -> None:
    error = status_error(429, {}, f"Rate limit reached. {words}", Secrets())
    assert isinstance(error, RateLimitError)
    assert error.retry_after == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "fields",
    [
        {"retry_after": 20},
        {"retryAfter": "20s"},
        {"metadata": {"retry_after_seconds": 20.0}},
        {"metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "20"}}},
    ],
)
def test_a_wait_that_a_field_of_the_error_tells_is_kept(fields: dict[str, Any]) -> None:
    text = error_text(json.dumps(openai_error("Rate limit reached", **fields)).encode())
    error = status_error(429, {}, text, Secrets())
    assert isinstance(error, RateLimitError)
    assert error.retry_after == 20


@given(st.integers(200, 599), st.text(), st.text())
def test_every_refusal_has_one_error(status: int, words: str, key: str) -> None:
    assert isinstance(status_error(status, {}, words, Secrets([key])), ModelError)


@given(st.binary())
def test_no_body_breaks_the_reader_of_errors(body: bytes) -> None:
    assert isinstance(error_text(body), str)


def test_the_table_can_be_read() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.scope for rule in RULES} == {"row", "run", "moment", "form", "unclear"}


# --- errors inside a reply that came with 200 -----------------------------------------------------

INSIDE: dict[str, Any] = {
    "OpenRouter: an error with a code": {"error": {"code": 429, "message": "Rate limit exceeded"}},
    "OpenRouter: an error in the choice (aider#3550)": {
        "choices": [
            {"error": {"code": 502, "message": "Upstream died"}, "message": {"content": ""}}
        ]
    },
    "choices is null": {"choices": None, "message": "Upstream died"},
    "a code as text": {"error": {"code": "503", "message": "Upstream died"}},
    "an error without a code": {"error": {"message": "Upstream died"}},
    "an error as text": {"error": "Upstream died"},
}


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("name", INSIDE)
def test_an_error_inside_a_reply_belongs_to_the_moment(name: str) -> None:
    with FakeLLM(faults=[Fault.response(INSIDE[name])]) as server:
        table = infer(server)
        assert server.calls == 2
    assert not table.errors


@each_way
@pytest.mark.parametrize("name", INSIDE)
def test_an_error_inside_a_reply_that_stays_says_why(name: str) -> None:
    with FakeLLM(Fault.response(INSIDE[name])) as server:
        table = infer(server, max_attempts=1, patience=1)
    words = "Upstream died" if "Rate" not in str(INSIDE[name]) else "fewer requests"
    assert words in str(table[0].error)


@each_way
def test_no_credit_inside_a_reply_ends_the_run() -> None:
    body = {"error": {"code": 402, "message": "Insufficient credits"}}
    with FakeLLM(Fault.response(body)) as server:
        with pytest.raises(AuthenticationError, match="Insufficient credits"):
            infer(server, ROWS)
        assert server.calls <= WIDTH


# --- the row's fault costs the row alone ----------------------------------------------------------


@each_way
@pytest.mark.parametrize(
    "fault",
    [
        Fault.response(
            openai_error("Your input was flagged", code=403, metadata={"reasons": ["violence"]}),
            403,
        ),
        Fault.response(openai_error("prompt is too long: 9000 tokens > 8000 maximum"), 400),
        Fault.filtered(),
        Fault("edit", edit={"content": None, "finish_reason": "SAFETY"}),
        Fault("edit", edit={"content": None, "finish_reason": "PROHIBITED_CONTENT"}),
    ],
)
def test_one_toxic_or_long_row_costs_one_call_and_no_other_row(fault: Fault) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return fault if "Question 3?" in body["messages"][-1]["content"] else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 20)
        assert server.calls == 20
    assert [row.index for row in table.errors] == [3]


@each_way
def test_json_that_the_provider_could_not_read_is_asked_for_again() -> None:
    fault = Fault.response(
        openai_error("Failed to generate JSON", code="json_validate_failed"), 400
    )
    with FakeLLM(faults=[fault]) as server:
        assert not infer(server).errors
        assert server.calls == 2


@pytest.mark.heavy
@each_way
def test_a_loading_model_is_waited_for_as_long_as_patience_says() -> None:
    started = time.monotonic()

    def reply(body: dict[str, Any]) -> Any:
        if time.monotonic() - started < 0.3:  # longer than three refusals take
            return Fault.response(openai_error("Loading model"), 503)
        return GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 60, max_attempts=1, max_concurrency=60)
        assert server.calls < 200
    assert not table.errors


@pytest.mark.heavy
@each_way
def test_a_model_that_never_loads_is_given_up() -> None:
    with FakeLLM(Fault.response(openai_error("Loading model"), 503)) as server:
        table = infer(server, 60, patience=0.3)
        assert server.calls < 60
    assert "not loaded its model" in str(table[59].error)


# --- nothing is spent on the hopeless -------------------------------------------------------------

HOPELESS: dict[str, Fault] = {
    "no credit": Fault.response(openai_error("Insufficient Balance"), 402),
    "quota": Fault.response(openai_error("no quota", code="insufficient_quota"), 429),
    "key": Fault.status(401),
    "forbidden": Fault.status(403),
    "no such model": Fault.status(404),
    "wrong path": Fault.response({"detail": "Method Not Allowed"}, 405),
    "a redirect": Fault.response({}, 307, {"Location": "http://127.0.0.1:9/elsewhere"}),
    "LM Studio: a wrong path with 200": Fault.response(
        {"error": "Unexpected endpoint or method. (POST /chat/completions)"}
    ),
    "response_format": Fault.response(
        openai_error("This response_format type is unavailable now"), 400
    ),
    "max_tokens": Fault.response(
        openai_error(
            "Unsupported parameter: 'max_tokens' is not supported with this model.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        400,
    ),
    "temperature": Fault.response(
        openai_error(
            "Unsupported value: 'temperature' does not support 0.0", code="unsupported_value"
        ),
        400,
    ),
    "system role": Fault.response(openai_error("System role not supported"), 400),
    "too long": Fault.response(openai_error("maximum context length is 512 tokens"), 400),
    "moderation": Fault.response(openai_error("Your input was flagged"), 403),
    "a web page": Fault("status", body=b"<!DOCTYPE html><html>Sign in</html>"),
    "no JSON": Fault.invalid_json(of="body"),
    "no chat completion": Fault.response({"hello": "world", "choices": 5}),
    "JSON that the provider noticed": Fault.response(
        openai_error("Failed to generate JSON", code="json_validate_failed"), 400
    ),
    "unknown words": Fault.response(openai_error("computer says no to row 17"), 400),
    "unprocessable": Fault.response({"detail": [{"msg": "field required", "loc": ["body"]}]}, 422),
}


heavy_width = [pytest.param(width, marks=pytest.mark.heavy) for width in (1, 32)]


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("width", [8, *heavy_width])
@pytest.mark.parametrize("name", HOPELESS)
def test_an_endpoint_that_refuses_all_is_asked_few_times(name: str, width: int) -> None:
    with FakeLLM(HOPELESS[name]) as server:
        with pytest.raises(ModelError) as caught:
            infer(server, ROWS, max_concurrency=width)
        # Four forms of the first row; then another row is asked, since the words of one may be at fault.
        assert server.calls <= width + 3 + (name == "response_format")
    assert len(str(caught.value)) > 40


@each_way
def test_a_web_page_for_every_request_says_what_to_check() -> None:
    with (
        FakeLLM(HOPELESS["a web page"]) as server,
        pytest.raises(ModelError, match="Check the address"),
    ):
        infer(server, ROWS)


@each_way
@pytest.mark.parametrize(
    "body",
    [
        {"type": "message", "content": [{"type": "text", "text": GOOD}], "stop_reason": "end_turn"},
        {"candidates": [{"content": {"parts": [{"text": GOOD}]}, "finishReason": "STOP"}]},
        {"object": "response", "error": None, "output": [{"type": "message", "content": []}]},
    ],
)
def test_an_endpoint_of_another_protocol_is_asked_few_times(body: dict[str, Any]) -> None:
    with (
        FakeLLM(Fault.response(body)) as server,
        pytest.raises(ModelError, match=r"not a chat completion.*Check the address"),
    ):
        infer(server, ROWS)
    assert server.calls <= WIDTH + 3


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("name", ["too long", "moderation", "unknown words", "unprocessable"])
@pytest.mark.parametrize("width", [1, 8])
def test_a_run_goes_on_if_only_its_first_rows_are_refused(name: str, width: int) -> None:
    """One short request tells whether the rows or all requests are refused."""

    def reply(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        number = int(said.split("Question ")[1].split("?")[0]) if "Question " in said else 99
        return HOPELESS[name] if number < 20 else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 30, max_concurrency=width)
        assert server.calls == 31
    assert len(table.errors) == 20


@each_way
def test_a_web_page_now_and_then_is_asked_again() -> None:
    with FakeLLM(faults=[HOPELESS["a web page"]] * 6) as server:
        assert not infer(server, 12).errors
        assert server.calls <= 12 + 6 + 1


@pytest.mark.heavy
@each_way
def test_refusals_of_some_rows_do_not_end_a_run() -> None:
    """The refusals come at once, the replies later."""

    def reply(body: dict[str, Any]) -> Any:
        number = int(body["messages"][-1]["content"].split("Question ")[1].split("?")[0])
        if number % 3 == 0:
            return Fault.response(openai_error(f"computer says no to {number}"), 400)
        time.sleep(0.001)
        return GOOD

    with FakeLLM(reply, latency=0.05) as server:
        table = infer(server, 90, max_concurrency=16)
    assert len(table.errors) == 30


@each_way
def test_what_refuses_all_later_in_a_run_is_asked_few_times_and_costs_no_row_before() -> None:
    rows = iter(range(200))

    def reply(body: dict[str, Any]) -> Any:
        number = next(rows)
        return GOOD if number < 30 else Fault.response(openai_error(f"closed, no {number}"), 400)

    with FakeLLM(reply) as server:
        table = infer(server, 200)
        assert server.calls < 100  # some are sent beside the short request
    assert len(table.errors) == 170
    assert "no more are sent" in str(table[199].error)


@each_way
def test_many_rows_in_a_row_may_be_refused_and_others_taken() -> None:
    """The data may be sorted."""

    def reply(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        number = int(said.partition("Question ")[2].partition("?")[0] or 0)
        return Fault.response(openai_error("not this"), 400) if 10 <= number < 90 else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 100)
        assert server.calls < 100 + 80 // 20 + 1
    assert table.failed_places() == list(range(10, 90))


@pytest.mark.parametrize(
    "words", [{"message": "Prompt is too short"}, {"code": "json_validate_failed"}]
)
def test_a_short_request_with_a_fault_of_its_own_says_nothing_of_many_rows(
    words: dict[str, str],
) -> None:
    """Groq checks forms, and a question mark has no answer in a form."""

    def reply(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        if said == "?":
            return Fault.response({"error": {"message": "", **words}}, 400)
        number = int(said.partition("Question ")[2].partition("?")[0] or 0)
        return Fault.response(openai_error("not this"), 400) if 10 <= number < 90 else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 100)
    assert table.failed_places() == list(range(10, 90))


class Plain(BaseModel):
    text: str


class Refused(BaseModel):
    deep: str


def test_a_form_that_is_always_refused_says_nothing_of_others() -> None:
    def reply(body: dict[str, Any]) -> Any:
        is_refused = "deep" in json.dumps(body)
        return Fault.response(openai_error("not this"), 400) if is_refused else '{"text": "a"}'

    with FakeLLM(reply) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False, max_concurrency=4)
        forms = [Plain] * 10 + [Refused] * 40 + [Plain] * 10
        asked = [[{"role": "user", "content": f"{n}?"}] for n in range(60)]
        replies = llm.ask_many(zip(asked, forms, strict=True))
    assert [one.error is None for one in replies] == [form is Plain for form in forms]


@each_way
def test_the_first_rows_may_be_bad_rows() -> None:
    def reply(body: dict[str, Any]) -> Any:
        number = int(body["messages"][-1]["content"].split("Question ")[1].split("?")[0])
        return Fault.response(openai_error("was flagged"), 403) if number < 10 else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 30, max_concurrency=4)
    assert len(table.errors) == 10


# --- the form by provider -------------------------------------------------------------------------


def refuses(*what: str | bool) -> Callable[[dict[str, Any]], Any]:
    """An endpoint that takes none of these forms."""

    def reply(body: dict[str, Any]) -> Any:
        form = (body.get("response_format") or {}).get("type") or ("tools" in body and "tools")
        if form in what:
            return Fault.response(
                openai_error(f"{form} in response_format or tools: not here"), 400
            )
        if form == "json_object" and "json" not in str(body["messages"]).lower():
            return Fault.response(openai_error("Prompt must contain the word 'json'"), 400)
        return GOOD

    return reply


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize(
    ("refused", "form"),
    [
        ((), "json_schema"),
        (("json_schema",), "json_object"),
        (("json_schema", "json_object"), "tools"),
        (("json_schema", "json_object", "tools"), "text"),
    ],
)
def test_the_form_that_an_endpoint_takes_is_found_once(refused: tuple[str, ...], form: str) -> None:
    with FakeLLM(refuses(*refused)) as server:
        model = pi.LLM("fake", api_base=server.api_base, max_concurrency=WIDTH)
        table = pi.infer_personas(pairs(30), model)
        assert not table.errors
        assert server.calls <= 30 + WIDTH + len(refused)
        assert table.usage.calls == server.calls
        before = server.calls
        pi.infer_personas(pairs(40)[30:], model)
        assert server.calls == before + 10
        last = server.requests[-1]
    assert table.settings["reply_form"] == form
    assert table.settings["reply_form"] == model.settings["reply_form"]
    if form in ("json_object", "text"):
        assert '"person_1"' in last["messages"][0]["content"]


@pytest.mark.parametrize(
    "name", ["fake", pytest.param("litellm/openai/fake", marks=pytest.mark.heavy)]
)
def test_an_endpoint_that_refused_every_form_is_asked_again_by_the_next_run(name: str) -> None:
    answers = [refuses("json_schema", "json_object", "tools", False)]
    with FakeLLM(lambda body: answers[-1](body)) as server:
        model = pi.LLM(name, api_base=server.api_base, api_key="k", cache=False)
        with pytest.raises(RequestRejectedError):
            pi.infer_personas(pairs(3), model)
        answers.append(refuses())
        assert not pi.infer_personas(pairs(3), model).errors
    assert model.settings["reply_form"] == "json_schema"


def test_that_run_begins_with_one_call_where_nothing_tells_how_long_replies_are() -> None:
    thought = Reply(GOOD, prompt_tokens=5, completion_tokens=4000)
    answers = [refuses("json_schema", "json_object", "tools", False)]
    with FakeLLM(lambda body: answers[-1](body) or thought, latency=0.02) as server:
        model = pi.LLM(
            "fake",
            api_base=server.api_base,
            cache=False,
            budget=20.0,
            prices=(0.0, 1000.0),
            max_concurrency=8,
            extra_body={"enable_thinking": True},
        )
        with pytest.raises(RequestRejectedError):
            pi.infer_personas(pairs(3), model)
        answers.append(lambda _: None)
        pi.infer_personas(pairs(12), model)
    assert model.account.bounds.budget is not None
    assert 4 <= model.account.bounds.budget.spent <= 20


@each_way
def test_a_form_that_an_endpoint_ignores_is_asked_for_in_another_way() -> None:
    """It takes a schema without a word, and answers in prose; the schema in the prompt helps."""

    def reply(body: dict[str, Any]) -> Any:
        return GOOD if "schema" in str(body["messages"]) else "A cook, I think."

    with FakeLLM(reply) as server:
        model = pi.LLM("fake", api_base=server.api_base, max_concurrency=4)
        table = pi.infer_personas(pairs(12), model)
        assert server.calls <= 12 + 3 + 4
    assert not table.errors
    assert table.settings["reply_form"] == "json_object"


@each_way
def test_a_form_that_fits_once_is_kept() -> None:
    """A model that sometimes answers in prose is no endpoint that ignores the form."""
    said = iter(["A cook."] * 2 + [GOOD] + ["A cook."] * 4)
    with FakeLLM(lambda _: next(said, GOOD)) as server:
        model = pi.LLM("fake", api_base=server.api_base, max_concurrency=1)
        assert not pi.infer_personas(pairs(4), model).errors
        assert server.calls == 4 + 6
    assert model.settings["reply_form"] == "json_schema"


@each_way
def test_a_reply_is_cached_under_the_same_key_in_every_form() -> None:
    with FakeLLM(refuses("json_schema")) as server:
        pi.infer_personas(pairs(5), "fake", api_base=server.api_base)
        before = server.calls
        again = pi.infer_personas(pairs(5), "fake", api_base=server.api_base)
        assert (server.calls, again.usage.cached) == (before, 5)


class City(BaseModel):
    name: str


MESSAGES = [
    pi.Message(role="system", content="Be brief."),
    pi.Message(role="user", content="Name a city."),
]


def ask(server: FakeLLM, model: str = "fake", **options: Any) -> pi.LLM:
    llm = pi.LLM(model, api_base=server.api_base, cache=False, **options)
    assert llm.ask(MESSAGES, City).value == City(name="Oslo")
    return llm


PICKY: dict[str, tuple[Callable[[dict[str, Any]], str], Callable[[dict[str, Any]], bool]]] = {
    "o-series, gpt-5: max_completion_tokens": (
        lambda body: (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
            " 'max_completion_tokens' instead."
            if "max_tokens" in body
            else ""
        ),
        lambda body: body["max_completion_tokens"] == 500,
    ),
    "gpt-5: temperature": (
        lambda body: (
            "Unsupported value: 'temperature' does not support 0.0 with this model. Only the"
            " default (1) value is supported."
            if "temperature" in body
            else ""
        ),
        lambda body: "temperature" not in body,
    ),
    "Mistral: seed (langchain-azure#82)": (
        lambda body: "seed: Extra inputs are not permitted" if "seed" in body else "",
        lambda body: "seed" not in body,
    ),
    "Gemma on vLLM: system (vllm#2964)": (
        lambda body: "System role not supported" if body["messages"][0]["role"] == "system" else "",
        lambda body: body["messages"][0]["content"].startswith("Be brief."),
    ),
    "Gemma at Google: system": (
        lambda body: (
            "Developer instruction is not enabled for models/gemma-3-27b-it"
            if body["messages"][0]["role"] == "system"
            else ""
        ),
        lambda body: body["messages"][0]["content"].startswith("Be brief."),
    ),
    "Gemini: a schema with many states": (
        lambda body: (
            "The specified schema produces a constraint that has too many states for serving."
            if "json_schema" in body.get("response_format", {})
            else ""
        ),
        lambda body: body["response_format"] == {"type": "json_object"},
    ),
    "o1-mini: system": (
        lambda body: (
            "Unsupported value: 'messages[0].role' does not support 'system' with this model."
            if body["messages"][0]["role"] == "system"
            else ""
        ),
        lambda body: body["messages"][0]["role"] == "user",
    ),
    "a smaller limit (gpt-4: 16384)": (
        lambda body: (
            "max_tokens is too large: 500. This model supports at most 300 completion tokens"
            if body["max_tokens"] > 300
            else ""
        ),
        lambda body: body["max_tokens"] == 300,
    ),
    "OpenRouter: no endpoint takes the form": (
        lambda body: (
            "No endpoints found that can handle the requested parameters."
            if "json_schema" in body.get("response_format", {})
            else ""
        ),
        lambda body: body["response_format"] == {"type": "json_object"},
    ),
    "Gemini: additionalProperties (litellm#14330)": (
        lambda body: (
            "Unknown name \"additionalProperties\" at 'response_schema'"
            if "json_schema" in body.get("response_format", {})
            else ""
        ),
        lambda body: body["response_format"] == {"type": "json_object"},
    ),
}


@each_way
@pytest.mark.parametrize("name", PICKY)
def test_what_an_endpoint_does_not_take_is_left_out_from_then_on(name: str) -> None:
    complaint, done = PICKY[name]

    def reply(body: dict[str, Any]) -> Any:
        words = complaint(body)
        return Fault.response(openai_error(words), 400) if words else '{"name": "Oslo"}'

    with FakeLLM(reply) as server:
        llm = ask(server, seed=3)
        assert server.calls == 2
        llm.ask([pi.Message(role="system", content="Be brief."), MESSAGES[1]], City)
        calls = (
            4 if "limit" in name else 3
        )  # a limit may be that of one row until another is told it
        assert server.calls == calls
        assert done(server.requests[-1])
        assert llm.usage.calls == calls


@pytest.mark.parametrize(
    ("options", "refused", "lost"),
    [
        ({"seed": 3}, "seed", ["seed"]),
        ({"temperature": 0.7, "seed": 3}, "temperature", ["temperature"]),
        ({}, "temperature", []),  # 0 is the default
    ],
)
def test_a_warning_names_options_that_are_left_out(
    options: dict[str, Any], refused: str, lost: list[str]
) -> None:
    def reply(body: dict[str, Any]) -> Any:
        words = openai_error(f"{refused} is not supported")
        return Fault.response(words, 400) if refused in body else '{"name": "Oslo"}'

    with FakeLLM(reply) as server, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llm = ask(server, **options)
    assert [str(one.message) for one in caught] == [
        f"fake does not take {name}=: it was left out." for name in lost
    ]
    assert llm.settings["left_out"] == [refused]


def test_where_warnings_are_errors_the_replies_of_a_run_are_kept() -> None:
    def reply(body: dict[str, Any]) -> Any:
        words = openai_error("seed is not supported")
        return Fault.response(words, 400) if "seed" in body else GOOD

    with FakeLLM(reply) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        table = infer(server, 3, seed=3)
    assert not table.errors
    assert table.settings["left_out"] == ["seed"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_limit_a_day_that_has_something_left_makes_no_row_wait_for_hours(status: int) -> None:
    """Gateways name it with every answer, also with that of a server that fails for a moment."""
    left = {"RateLimit-Remaining": "99999", "RateLimit-Reset": "40000"}
    busy = Fault.response(openai_error("upstream failed"), status, headers=left)
    with FakeLLM(GOOD, faults=[busy, busy]) as server:
        assert not infer(server, 3, max_concurrency=1).errors


@each_way
@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("gpt-5-mini", {"max_completion_tokens": 4000}),
        ("openai/o3", {"max_completion_tokens": 4000}),
        ("gpt-5-chat-latest", {"max_completion_tokens": 500, "temperature": 0.0}),
        ("gpt-4o", {"max_tokens": 500, "temperature": 0.0}),
        ("deepseek-reasoner", {"max_tokens": 4000, "temperature": 0.0}),
        ("qwen3-30b-thinking", {"max_tokens": 4000, "temperature": 0.0}),
        ("llama-3.1-8b", {"max_tokens": 500, "temperature": 0.0}),
    ],
)
def test_models_that_are_known_to_reason_get_what_they_need_at_once(
    model: str, sent: dict[str, Any]
) -> None:
    with FakeLLM('{"name": "Oslo"}') as server:
        ask(server, model)
        assert server.calls == 1
        names = ("max_tokens", "max_completion_tokens", "temperature")
        assert {
            name: server.requests[0][name] for name in names if name in server.requests[0]
        } == sent


# --- cut off, filtered ----------------------------------------------------------------------------


def thinker(needs: int) -> Callable[[dict[str, Any]], Any]:
    """A model whose reasoning takes so many tokens."""

    def reply(body: dict[str, Any]) -> Any:
        if body["max_tokens"] < needs:
            return Reply("", finish_reason="length", completion_tokens=body["max_tokens"])
        return Reply('{"name": "Oslo"}', completion_tokens=needs)

    return reply


@each_way
def test_a_model_that_reasons_gets_more_tokens_after_the_first_reply() -> None:
    with FakeLLM(thinker(2000)) as server:
        llm = ask(server, prices=(1.0, 1.0))
        assert server.calls == 2
        llm.ask(MESSAGES, City)
        assert server.calls == 3
    assert llm.settings["reasons"]
    assert llm.usage.completion_tokens == 500 + 2000 + 2000


@each_way
def test_the_budget_holds_while_a_model_reasons() -> None:
    with FakeLLM(thinker(2000)) as server:
        llm = pi.LLM(
            "fake",
            api_base=server.api_base,
            cache=False,
            prices=(0.0, 1.0),
            budget=0.01,
            max_concurrency=4,
        )
        requests = [([*MESSAGES, pi.Message(role="user", content=str(n))], City) for n in range(20)]
        replies = llm.ask_many(requests)
    assert (llm.usage.cost or 0) <= 0.01
    assert "budget" in str(replies[-1].error)


def ended(more: dict[str, Any]) -> dict[str, Any]:
    """A reply without a text, which a filter stopped, although it says "stop"."""
    choice = {"message": {"content": ""}, "finish_reason": "stop", **more}
    return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}


@each_way
@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        (Fault("edit", edit={"content": "", "finish_reason": "length"}), 2),
        (Fault.truncated(), 2),
        (Fault("edit", edit={"content": '{"na', "finish_reason": "MAX_TOKENS"}), 2),
        (Fault.filtered(), 1),
        (Fault("edit", edit={"content": None, "finish_reason": "SAFETY"}), 1),
        (Fault.response(ended({"native_finish_reason": "SAFETY"})), 1),
        (Fault.response(ended({"content_filter_results": {"hate": {"filtered": True}}})), 1),
        (Fault("edit", edit={"content": '{"na', "finish_reason": "token_limit"}), 2),
    ],
)
def test_a_reply_that_was_ended_is_not_asked_for_again_unchanged(fault: Fault, calls: int) -> None:
    with FakeLLM(fault) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False)
        with pytest.raises(ReplyError, match=r"max_tokens|filter"):
            llm.ask(MESSAGES, City)
        assert server.calls == calls
        sent = Counter(json.dumps(body) for body in server.requests)
    assert max(sent.values()) == 1


@each_way
@pytest.mark.parametrize("after", [" " * 40, "\n\nNote: Oslo is", '\n{"name": "Ber'])
@pytest.mark.parametrize("fence", ["", "```json\n"])
def test_a_reply_that_was_cut_off_behind_its_answer_is_used(fence: str, after: str) -> None:
    said = Reply(f'{fence}{{"name": "Oslo"}}{after}', finish_reason="length")
    with FakeLLM(said) as server:
        llm = ask(server)
        assert server.calls == 1
    assert "reasons" not in llm.settings


@each_way
@pytest.mark.parametrize(
    "said",
    [
        '{"name": "Bergen"}\n\nWait, that was a mistake. The corrected answer:\n{"name": "O',
        '{"name": "Bergen"}\n\nSorry, I mixed up',
        '{"plan": "the capital"}\n{"name": "O',
    ],
)
@pytest.mark.parametrize("counts", [{"prompt_tokens": 9, "completion_tokens": 450}, None])
def test_a_reply_that_was_cut_off_before_its_last_word_gets_more_room(
    said: str, counts: dict[str, int] | None
) -> None:
    def reply(body: dict[str, Any]) -> Any:
        if body["max_tokens"] > 600:
            return '{"name": "Oslo"}'
        choice = {"message": {"content": said}, "finish_reason": "length"}
        return Fault.response({"choices": [choice], "usage": counts})

    with FakeLLM(reply) as server:
        ask(server)
        assert [body["max_tokens"] for body in server.requests] == [500, 1000]


@each_way
@pytest.mark.parametrize(
    "said",
    ['{"name": "Os', '<think>Maybe {"name": "Oslo"} or', 'Is it {"name": "Oslo"}? No, it is'],
)
def test_a_draft_in_a_reply_that_was_cut_off_is_no_answer(said: str) -> None:
    with FakeLLM(Reply(said, finish_reason="length")) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False)
        with pytest.raises(ReplyError, match="cut off"):
            llm.ask(MESSAGES, City)


@each_way
def test_a_text_that_was_cut_off_is_no_answer_though_it_begins_with_an_object() -> None:
    with FakeLLM(Reply('{"a": 1} is an', finish_reason="length")) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False)
        with pytest.raises(ReplyError, match="cut off"):
            llm.ask(MESSAGES)


@each_way
def test_an_object_that_ends_with_the_last_token_was_cut_off_whatever_its_reason_says() -> None:
    def reply(body: dict[str, Any]) -> Any:
        allowed = body["max_tokens"]
        counts = {"prompt_tokens": 9, "completion_tokens": allowed}
        text = '{"na' if allowed < 600 else '{"name": "Oslo"}'
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return Fault.response({"choices": [choice], "usage": counts})

    with FakeLLM(reply) as server:
        ask(server)
        assert [body["max_tokens"] for body in server.requests] == [500, 1000]


@each_way
def test_a_reply_that_needs_a_little_more_gets_it() -> None:
    def reply(body: dict[str, Any]) -> Any:
        whole = '{"name": "Oslo"}'
        return Reply(whole[:9], finish_reason="length") if body["max_tokens"] < 600 else whole

    with FakeLLM(reply) as server:
        llm = ask(server)
        assert [body["max_tokens"] for body in server.requests] == [500, 1000]
    assert "reasons" not in llm.settings


QUOTED = [
    "rate_limit_error",
    "insufficient_quota",
    'what does "invalid api key" mean?',
    "the model does not exist",
    "we sell out: rate limit exceeded, too many requests\nper minute",
    "unknown url",
    "he is unauthorized",
    "please reduce the temperature, the seed and the json schema",
    "café: the account has no more credits",
]


def fastapi(text: str) -> Any:
    return {"detail": [{"type": "value_error", "loc": ["body"], "msg": "no", "input": text}]}


def as_words(text: str) -> Any:
    return openai_error(f"1 validation error: {{'input': {text!r}}}")


def cut(text: str) -> Any:
    return openai_error(json.dumps({"input": text})[:200])


def word_alone(text: str) -> Any:
    """Of the text, the one or two words that are not allowed."""
    told = re.search(r"insufficient_quota|api key|rate limit|unknown url|unauthorized", text)
    return openai_error(f'the words "{told[0] if told else text}" are not allowed here')


def as_html(text: str) -> Any:
    return openai_error(f"<p>{html.escape(text).replace(' ', '&nbsp;')}</p>")


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("form", [fastapi, as_words, cut, word_alone, as_html])
@pytest.mark.parametrize("text", QUOTED)
def test_words_of_a_row_that_a_refusal_repeats_end_no_run(
    text: str, form: Callable[[str], Any]
) -> None:
    """Servers that check requests with FastAPI repeat them: vLLM, TGI, gateways."""

    def reply(body: dict[str, Any]) -> Fault | str:
        said = body["messages"][-1]["content"]
        return Fault.response(form(said), 422) if text in said else "fine"

    with FakeLLM(reply) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, max_attempts=1, max_concurrency=1)
        texts = ["row 1", f"row 2: {text}", "row 3"]
        replies = llm.ask_many([([{"role": "user", "content": one}],) for one in texts])
        assert [one.text for one in replies] == ["fine", "", "fine"]
        assert isinstance(replies[1].error, RequestRejectedError)
        assert server.calls == 3
        assert server.requests[-1].get("seed") == server.requests[0].get("seed")
        assert "temperature" in server.requests[-1]


@each_way
@pytest.mark.parametrize("status", [401, 403, 404, 405])
@pytest.mark.parametrize("ends", [False, True], ids=["one row", "every row"])
def test_a_firewall_that_refuses_the_words_of_one_row_ends_no_run(status: int, ends: bool) -> None:
    """After a reply, a short request tells whether the endpoint refuses all rows: a key may have ended."""
    words = "' OR 1=1 --"
    seen: list[str] = []

    def reply(body: dict[str, Any]) -> Fault | str:
        seen.append(str(body["messages"]))
        refuses_all = ends and any(words in one for one in seen)
        refused = refuses_all or words in seen[-1]
        return Fault.response("Request blocked by rule 942100", status) if refused else "fine"

    with FakeLLM(reply) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, max_attempts=1, max_concurrency=1)
        texts = [([{"role": "user", "content": one}],) for one in ("row 1", words, "row 3")]
        if ends:
            with pytest.raises(ModelError, match="942100") as caught:
                llm.ask_many(texts)
            assert caught.value.fatal
        else:
            replies = llm.ask_many(texts)
            assert [one.text for one in replies] == ["fine", "", "fine"]
            assert "although the endpoint takes other requests" in str(replies[1].error)
        assert server.calls == (3 if ends else 4)


@each_way
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    "fault",
    [
        Fault.response("", 302, {"Location": "https://firewall.example/blocked"}),
        Fault.response("", 304),
        Fault.rate_limit(retry_after=3600),
        Fault.response("", 500, {"Retry-After": "3600"}),
    ],
    ids=["a page of a firewall", "not modified", "for an hour", "fails for an hour"],
)
def test_a_row_that_is_redirected_or_told_to_wait_for_hours_costs_itself(
    fault: Fault, place: int
) -> None:
    """Also if it is the first one: a short request tells whether the endpoint takes others."""

    def reply(body: dict[str, Any]) -> Any:
        return fault if "odd" in body["messages"][-1]["content"] else "fine"

    texts = ["row 1", "row 2", "row 3"]
    texts.insert(place, "odd")
    with FakeLLM(reply) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, max_attempts=1, max_concurrency=1)
        replies = llm.ask_many([([{"role": "user", "content": one}],) for one in texts])
        assert server.calls == 5
    assert [one.text for one in replies] == ["" if one == "odd" else "fine" for one in texts]
    assert "although the endpoint takes other requests" in str(replies[place].error)


@each_way
def test_not_all_rows_are_sent_if_each_is_told_to_wait_for_hours() -> None:
    """Where a limit a day is used up, the short request may still fit into what is left."""

    def reply(body: dict[str, Any]) -> Any:
        is_row = "Question" in body["messages"][-1]["content"]
        return Fault.rate_limit(retry_after=7200) if is_row else "fine"

    with FakeLLM(reply) as server:
        table = infer(server, 80, max_concurrency=4)
        assert server.calls < 60
    assert all("7200 s" in str(row.error) for row in table)


@each_way
def test_rows_that_wait_for_hours_between_others_end_no_run() -> None:
    """Also if the others are cut off: the endpoint has taken them."""

    def reply(body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        if "long" in text:
            return Fault.rate_limit(retry_after=7200)
        return Reply("cut", finish_reason="length") if "cut" in text else "fine"

    texts = ["long", "cut"] * 25 + ["good"] * 3
    with FakeLLM(reply) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, max_attempts=1, max_concurrency=1)
        rows = ([{"role": "user", "content": f"{one} {n}"}] for n, one in enumerate(texts))
        replies = llm.ask_many((row,) for row in rows)
    assert [one.text for one in replies[-3:]] == ["fine"] * 3


@pytest.mark.heavy
@each_way
def test_a_row_whose_model_never_loads_costs_itself() -> None:
    """A gateway may send a row to a model of its own."""
    refused = 0

    def reply(body: dict[str, Any]) -> Any:
        nonlocal refused
        if "Question 1?" not in body["messages"][-1]["content"]:
            return GOOD
        refused += 1
        return Fault.response(openai_error("Loading model"), 503)

    with FakeLLM(reply) as server:
        table = infer(server, 4, max_concurrency=1, patience=0.6)
    assert table.failed_places() == [1]
    assert "not loaded its model" in str(table[1].error)
    assert refused < 20


APART = {
    'prompt rejected, blocked words: "api key", "invalid"': (
        400,
        "is my api key stored? is it invalid",
    ),
    'Invalid words: "api key"': (400, "is my api key safe"),
    'insufficient: "fund" is a blocked word': (422, "how large is my fund"),
    "Request blocked by rule 942100": (403, "' OR 1=1 --"),
}


@each_way
@pytest.mark.parametrize("words", APART)
def test_the_first_refusal_of_a_run_may_be_its_rows_alone(words: str) -> None:
    status, text = APART[words]

    def reply(body: dict[str, Any]) -> Any:
        refused = text in body["messages"][-1]["content"]
        return Fault.response(openai_error(words), status) if refused else "fine"

    with FakeLLM(reply) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, max_attempts=1, max_concurrency=1)
        replies = llm.ask_many([([{"role": "user", "content": one}],) for one in (text, "row 2")])
    assert [one.text for one in replies] == ["", "fine"]


@each_way
@pytest.mark.parametrize("fault", [Fault.status(500), Fault.reset(), Fault.status(429)])
def test_an_error_says_no_more_than_the_short_request_found_out(fault: Fault) -> None:
    def reply(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        return fault if said == "?" else Fault.status(403) if "row 2" in said else "fine"

    with FakeLLM(reply) as server:
        llm = pi.LLM("m", api_base=server.api_base, cache=False, max_attempts=1, max_concurrency=1)
        texts = [([{"role": "user", "content": f"row {n}"}],) for n in range(1, 4)]
        replies = llm.ask_many(texts)
    assert [one.text for one in replies] == ["fine", "", "fine"]
    assert "did not answer whether it takes others" in str(replies[1].error)


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize(
    "fault", [Fault.rate_limit(), Fault.rate_limit(retry_after=3600)], ids=["full", "for an hour"]
)
def test_a_row_that_is_always_refused_for_going_too_fast_costs_itself(fault: Fault) -> None:
    """Azure says so of a request that is larger than the tokens of a minute."""
    refused = []

    def reply(body: dict[str, Any]) -> Any:
        if "Question 3?" not in body["messages"][-1]["content"]:
            return GOOD
        refused.append(1)
        return fault

    with FakeLLM(reply) as server:
        table = infer(server, 200, max_concurrency=2, max_attempts=1)  # more than are read ahead
    assert table.failed_places() == [3]
    assert "although the endpoint takes other requests" in str(table[3].error)
    assert len(refused) < 10


@pytest.mark.heavy
@each_way
def test_many_rows_that_are_always_refused_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would else wait until the gate gives up: minutes a row."""
    monkeypatch.setattr(workers, "_WINDOW", 0.2)
    too_large = {3, 7, 11, 12, 30}
    refused = 0

    def reply(body: dict[str, Any]) -> Any:
        nonlocal refused
        said = body["messages"][-1]["content"]
        if not any(f"Question {number}?" in said for number in too_large):
            return GOOD
        refused += 1
        return Fault.rate_limit()

    with FakeLLM(reply) as server:
        table = infer(server, 40, max_concurrency=4, max_attempts=5)
    assert table.failed_places() == sorted(too_large)
    assert "although the endpoint takes other requests" in str(table[3].error)
    assert refused < 8 * len(too_large)


@each_way
def test_rows_at_which_the_server_fails_end_no_run_however_many_there_are() -> None:
    """The data may be sorted by length."""

    def reply(body: dict[str, Any]) -> Any:
        number = int(
            body["messages"][-1]["content"].partition("Question ")[2].partition("?")[0] or 0
        )
        return Fault.status(500) if 10 <= number < 60 else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 100, max_concurrency=4, max_attempts=1)
    assert table.failed_places() == list(range(10, 60))


def number_of(body: dict[str, Any]) -> int | None:
    """The number of the row that a request is about; None: it is a short request."""
    said = next(
        (m["content"] for m in reversed(body["messages"]) if "Question " in m["content"]), ""
    )
    number = said.rpartition("Question ")[2].partition("?")[0]
    return int(number) if number.isdecimal() and body["messages"][-1]["content"] != "?" else None


@each_way
@pytest.mark.parametrize("width", [8, pytest.param(45, marks=pytest.mark.heavy)])
def test_a_model_that_never_gives_what_is_asked_for_is_asked_few_times(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workers._HOPELESS_AFTER == 300  # as is promised
    monkeypatch.setattr(workers, "_HOPELESS_AFTER", 40)
    asked: Counter[int | None] = Counter()

    def reply(body: dict[str, Any]) -> str:
        asked[number_of(body)] += 1
        return "safe"

    many = max(20, width)
    with FakeLLM(reply) as server:
        table = infer(server, 170, max_concurrency=width)
        assert server.calls < many * 5 + many * 2 + width * 5
    assert len(table.errors) == 170
    del asked[None]  # the short request
    assert 2 * many <= len(asked) <= 2 * many + width
    calls = [asked[number] for number in range(len(asked))]
    assert {*calls[: many - width]} <= {5}
    later = calls[many + width :]
    assert {*later} == {1, 5}
    assert later.count(5) == pytest.approx(len(later) / 4, abs=2)
    assert "requests in a row had no reply that can be used" in str(table[169].error)


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("is_short_read", [True, False])
def test_rows_to_which_no_reply_is_useful_cost_no_other_row(is_short_read: bool) -> None:
    """The data may be sorted. The model reads nothing else, or nothing of the first rows."""

    def reply(body: dict[str, Any]) -> Any:
        number = number_of(body)
        if number is None:
            return GOOD if is_short_read else "What do you mean?"
        return "No." if 10 * (not is_short_read) <= number < 90 else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 120)
        assert server.calls < (120 + 28 * 4 + 62 + 10 if is_short_read else 40 + 80 * 5 + 1)
    assert table.failed_places() == list(range(10 * (not is_short_read), 90))


@pytest.mark.heavy
@pytest.mark.parametrize("width", [1, 64])
def test_a_long_stretch_at_the_start_to_which_no_reply_is_useful_costs_no_other_row(
    width: int,
) -> None:
    """Nor does it if the model says nothing useful to a short request, whose words are none of a row."""

    def reply(body: dict[str, Any]) -> Any:
        number = number_of(body)
        return "I cannot help with that." if number is None or number < 200 else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 260, max_concurrency=width)
    assert table.failed_places() == list(range(200))


@pytest.mark.parametrize("width", [1, 8])
@pytest.mark.parametrize("first", ["Hello", Reply('{"person_1": {"evi', finish_reason="length")])
def test_a_stretch_without_a_useful_reply_takes_no_attempt_from_rows_behind_it(
    width: int, first: str | Reply
) -> None:
    """The model needs a second attempt for each row: to see what is wrong with the first, or more room."""
    seen: set[int | None] = set()

    def reply(body: dict[str, Any]) -> Any:
        number = number_of(body)
        if number in seen:
            return GOOD
        if number is not None and not 2 <= number < 26:
            seen.add(number)
            return first
        return "No."

    with FakeLLM(reply) as server:
        table = infer(server, 40, max_concurrency=width, max_attempts=2)
    assert table.failed_places() == list(range(2, 26))


def test_rows_that_a_filter_stops_cost_no_other_row() -> None:
    """They neither end the run nor take a further attempt from a row behind them."""
    seen: set[int] = set()

    def reply(body: dict[str, Any]) -> Any:
        number = number_of(body)
        if number is not None and number < 50:
            return Reply("", finish_reason="content_filter")
        is_new = number is None or number not in seen
        seen.add(number or 0)
        return "What do you mean?" if is_new else GOOD

    with FakeLLM(reply) as server:
        table = infer(server, 60, max_concurrency=4)
        assert server.calls == 50 + 10 * 2
    assert table.failed_places() == list(range(50))


@pytest.mark.heavy
@each_way
def test_a_cached_reply_shows_that_the_model_gives_what_is_asked_for(tmp_path: Path) -> None:
    """A run that is repeated asks again those rows that had no useful reply."""

    def reply(body: dict[str, Any]) -> Any:
        number = number_of(body)
        return "No." if number is None or 10 <= number < 90 else GOOD

    with FakeLLM(reply) as server:
        infer(server, 10, cache=True, cache_dir=tmp_path)
        table = infer(server, 120, cache=True, cache_dir=tmp_path)
    assert table.failed_places() == list(range(10, 90))


@pytest.mark.heavy
@each_way
def test_what_answers_with_a_web_page_from_some_row_on_is_asked_few_times() -> None:
    rows, page = iter(range(500)), Fault("status", 200, body=b"<html>Please log in</html>")

    def reply(body: dict[str, Any]) -> Any:
        return GOOD if next(rows) < 30 else page

    with FakeLLM(reply) as server:
        table = infer(server, 300)
        assert server.calls < 30 + 28 * 5 + 20 * 2 + 10
    assert len(table.errors) == 270  # the requests of rows that are sent at once come in any order
    assert "web page" in str(table[299].error)


@pytest.mark.heavy
@each_way
def test_every_form_is_tried_before_a_model_is_asked_no_more() -> None:
    def reply(body: dict[str, Any]) -> Any:
        is_asked_in_words = "response_format" not in body and "tools" not in body
        return GOOD if is_asked_in_words else "Hello!"

    with FakeLLM(reply) as server:
        table = infer(server, 300, max_attempts=1, max_concurrency=64)
    assert len(table.errors) < 250
    assert table[299].error is None


@pytest.mark.heavy
def test_an_endpoint_that_fails_for_longer_than_patience_is_given_up() -> None:
    with FakeLLM(Fault.response(openai_error("Overloaded"), 529)) as server:
        table = infer(server, 20, max_concurrency=1, max_attempts=2, patience=1)
        assert server.calls < 15
    assert len(table.errors) == 20
    assert "in a row failed" in str(table[19].error)


def test_rows_that_are_not_sent_hold_no_memory() -> None:
    """Each would add its request to the traceback of the one error that all of them have."""
    llm = pi.LLM("m", api_base="http://127.0.0.1:9/v1", cache=False, max_attempts=1)
    replies = llm.ask_many([([{"role": "user", "content": f"row {n}"}],) for n in range(400)])
    error = replies[-1].error
    assert error is not None
    assert "not sent" in str(error)
    frames = traceback.walk_tb(error.__traceback__)
    assert len(list(frames)) < 50


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_means_the_same_beside_a_prompt(name: str) -> None:
    """What is taken for a quotation is not what endpoints say by themselves."""
    status, content, _, _ = CASES[name]
    said = json.dumps(content) if not isinstance(content, str) else content
    words = error_text(said.encode())
    prompt = PersonaPrompt("joint", "default")
    asked = [message.content for message in prompt.prefix]
    plain, beside = (status_error(status, {}, words, Secrets(), one) for one in ([], asked))
    assert (type(plain), plain.fatal) == (type(beside), beside.fatal)
    assert getattr(plain, "unsupported", "") == getattr(beside, "unsupported", "")


@pytest.mark.parametrize(
    "words", ["rate limit, too many requests", "insufficient_quota", "unauthorized"]
)
def test_a_template_of_a_local_model_refuses_a_row_in_whatever_words(words: str) -> None:
    transport = EmbeddedTransport(find_weights("local"))
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    error = transport._refusal(body, 500, {}, words)
    assert isinstance(error, RequestRejectedError)
    assert not error.fatal
    assert words in str(error)


@pytest.mark.parametrize("secret", ["Reward model", "model", "Studies of context", "rate"])
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (503, "Loading model"),
        (400, "The model `m` does not exist."),
        (400, "This model's maximum context length is 4096 tokens."),
        (400, "rate limit reached"),
    ],
)
def test_what_is_masked_does_not_decide_what_a_refusal_means(
    secret: str, status: int, text: str
) -> None:
    plain = status_error(status, {}, text, Secrets())
    masked = status_error(status, {}, text, Secrets([secret]))
    assert (type(masked), masked.fatal) == (type(plain), plain.fatal)
