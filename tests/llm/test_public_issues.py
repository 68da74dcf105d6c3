"""Replies and refusals that people reported in public, each with what should come of it.

The docstring of a test names the thread; the inputs are our own.
"""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest
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
from personainfer.llm.openai_protocol import read_completion
from personainfer.llm.refusals import error_text, retry_after, status_error
from personainfer.llm.replies import decode, read_reply
from personainfer.testing import FakeLLM, Fault

from ..builders import each_way, pairs


class City(BaseModel):
    name: str
    river: str


FIELDS = {"name": "Oslo", "river": "Akerselva"}
OSLO = City(**FIELDS)
GOOD = json.dumps(FIELDS)
MESSAGES = [
    pi.Message(role="system", content="Be brief."),
    pi.Message(role="user", content="Name a city."),
]


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": fields, "finish_reason": "stop"}]}


def read(reply: dict[str, Any] | bytes) -> Any:
    """The record in the body of a reply."""
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return read_reply(read_completion(decode(body), Secrets()).text, City)


def refusal(status: int, body: Any) -> ModelError:
    content = body if isinstance(body, str) else json.dumps(body)
    return status_error(status, {}, error_text(content.encode()), Secrets())


def model(server: FakeLLM, **options: Any) -> pi.LLM:
    return pi.LLM("fake", api_base=server.api_base, cache=False, **options)


# What models say


def test_brackets_after_the_object() -> None:
    """langgenius/dify#42452: a citation or a link behind the object became its end."""
    for after in ("\nSee [docs] for more.", " [1]", "\n```\n{not json}", " }"):
        assert read_reply(f"```json\n{GOOD}\n```{after}", City) == OSLO


def test_white_space_without_end() -> None:
    """vllm-project/vllm#4093: a model that is held to JSON writes line breaks until it is cut off."""
    cut = {
        "choices": [
            {"message": {"content": '{\n "name":' + "\n " * 500}, "finish_reason": "length"}
        ]
    }
    with pytest.raises(ReplyError, match="cut off") as caught:
        read_completion(cut, Secrets())
    assert caught.value.cut_off


def test_a_string_that_is_never_closed() -> None:
    """vllm-project/vllm#6905: the last value lacks its quote; what is inside it cannot be known."""
    with pytest.raises(ReplyError):
        read_reply('{"name": "Oslo", "river": "Akerselva}', City)


def test_keys_with_white_space_inside() -> None:
    """vllm-project/vllm#15577: "br o" for "brand" is another key."""
    with pytest.raises(ReplyError):
        read_reply('{\n "na me"         :       "Oslo", "river": "Akerselva"}', City)


def test_quotes_that_do_not_match() -> None:
    """guidance-ai/llguidance#266: a key that begins with a double quote and ends with a single one."""
    with pytest.raises(ReplyError):
        read_reply("""{"name': "Oslo", "river': "Akerselva"}""", City)


def test_a_dict_as_python_prints_it() -> None:
    """NousResearch/Hermes-Function-Calling#3: single quotes, in the answer or around a tool call."""
    assert read_reply(str(FIELDS), City) == OSLO
    assert read_reply(f"So: {FIELDS}.", City) == OSLO
    call = {"arguments": FIELDS, "name": "City"}
    assert read_reply(f"<tool_call>\n{call}\n</tool_call>", City) == OSLO
    odd = {"name": "L'Aquila", "river": 'the "Aterno"'}
    assert read_reply(str(odd), City) == City(**odd)
    with pytest.raises(ReplyError):
        read_reply("{'name': 'L'Aquila', 'river': 'Aterno'}", City)


def test_json_that_is_split_between_reasoning_and_content() -> None:
    """ollama/ollama#17987: the object begins in the reasoning; halves are not put together."""
    with pytest.raises(ReplyError):
        read(message(reasoning='A city. {"name": "Oslo",', content=' "river": "Akerselva"}'))
    assert read(message(reasoning="A city.", content=GOOD)) == OSLO


def test_the_object_is_held_in_the_reasoning() -> None:
    """lmstudio-ai/lmstudio-bug-tracker#1773 and #1698, ddalcu/mlx-serve#331, vllm#48863."""
    assert read(message(content="", reasoning_content=GOOD)) == OSLO
    assert read(message(content=None, reasoning=GOOD)) == OSLO
    assert read(message(content=None, reasoning_content=f"<think>{GOOD}")) == OSLO


def test_the_thinking_field_of_ollama() -> None:
    """zammad/zammad#5984, lfnovo/esperanto#112: the answer in content or, alone, in thinking."""
    assert (
        read(message(content=GOOD, thinking='Perhaps {"name": "Rome", "river": "Tiber"}')) == OSLO
    )
    assert read(message(content="", thinking=GOOD)) == OSLO


@each_way
def test_thinking_that_ends_without_an_answer_gets_more_room() -> None:
    """nikmcfly/MiroFish-Offline#26, ollama/ollama#16184: max_tokens goes into thoughts."""

    def reply(body: dict[str, Any]) -> Any:
        if body["max_tokens"] < 2000:
            said = {"content": "", "reasoning": "The user asks"}
            return Fault.response({"choices": [{"message": said, "finish_reason": "length"}]})
        return GOOD

    with FakeLLM(reply) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
        assert [body["max_tokens"] for body in server.requests] == [500, 4000]


@each_way
def test_an_empty_reply_is_asked_for_again() -> None:
    """ollama/ollama#13371: content null, all counts 0, finish_reason stop, now and then."""
    empty = {**message(content=None, refusal=None), "usage": {"prompt_tokens": 0}, "error": None}
    with FakeLLM(lambda _: GOOD, faults=[Fault.response(empty)]) as server:
        llm = model(server, prices=(1.0, 1.0))
        assert llm.ask(MESSAGES, City).value == OSLO
        assert server.calls == 2
    assert llm.usage.cost  # a reply without counts is not taken to be free


def test_a_fence_around_the_object_of_a_structured_reply() -> None:
    """lmstudio-ai/lmstudio-bug-tracker#2403: markdown in spite of json_schema."""
    assert read(message(content=f"```json {GOOD}```")) == OSLO


def test_several_tool_calls() -> None:
    """567-labs/instructor#840 and #1805: models that call the function twice; the first that fits counts."""
    call = {"id": "1", "type": "function", "function": {"name": "City", "arguments": GOOD}}
    other = {
        "id": "2",
        "type": "function",
        "function": {"name": "City", "arguments": '{"name": 1}'},
    }
    assert read(message(content=None, tool_calls=[call, call])) == OSLO
    assert read(message(content=None, tool_calls=[call, other])) == OSLO
    assert read(message(content=None, tool_calls=[other, call])) == OSLO


def test_no_tool_call_where_one_was_asked_for() -> None:
    """567-labs/instructor#954: SGLang answers with text, and tool_calls is null or empty."""
    assert read(message(content=GOOD, tool_calls=None)) == OSLO
    assert read(message(content=GOOD, tool_calls=[])) == OSLO


def test_an_object_in_place_of_text() -> None:
    """cloudflare/workers-sdk#12398: JSON mode gives the object itself, not its text."""
    assert read(message(content=FIELDS)) == OSLO


def test_a_refusal_field() -> None:
    """OpenRouterTeam/openrouter-examples#14: refusal may be absent, null or a text."""
    assert read(message(content=GOOD)) == OSLO
    assert read(message(content=GOOD, refusal=None)) == OSLO
    with pytest.raises(ReplyError, match=r"refused.*cannot help"):
        read(message(content=None, refusal="I cannot help with that."))


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"prompt_tokens": 9, "completion_tokens": None, "total_tokens": None},
        {"prompt_tokens": None, "completion_tokens": 3},
        {"prompt_tokens": 9, "completion_tokens": 3, "completion_tokens_details": None},
    ],
)
def test_counts_that_are_null(usage: Any) -> None:
    """567-labs/instructor#358, mozilla-ai/any-llm#824, microsoft/autogen#6352, jieshi10/gensql#2."""
    completion = read_completion({**message(content=GOOD), "usage": usage}, Secrets())
    assert completion.prompt_tokens in (0, 9)
    assert completion.completion_tokens in (0, 3)


def test_a_finish_reason_of_null() -> None:
    """openai/openai-openapi#20: null counts as a reply that ended by itself."""
    reply = {"choices": [{"message": {"content": GOOD}, "finish_reason": None}]}
    assert read(reply) == OSLO


# Bodies


def test_comments_and_empty_lines_before_the_body() -> None:
    """tmc/langchaingo#1171: DeepSeek keeps a connection alive with empty lines, or with comments."""
    body = json.dumps(message(content=GOOD)).encode()
    assert read(b"\n\n\n" + body) == OSLO
    assert read(b": keep-alive\n\n: keep-alive\n\n" + body) == OSLO


def test_comments_inside_an_event_stream() -> None:
    """mnfst/llm-gateway#2053, anomalyco/opencode#50871: comments that a gateway writes as data."""
    chunks = [{"choices": [{"delta": {"content": part}}]} for part in (GOOD[:9], GOOD[9:])]
    lines = [f"data: {json.dumps(chunk)}" for chunk in chunks]
    stream = [
        ": OPENROUTER PROCESSING",
        "data: : OPENROUTER PROCESSING",
        lines[0],
        "data: : keepalive",
    ]
    stream += [lines[1], ": x-cost=0.1", "data: [DONE]", ": x-model=m"]
    assert read("\n\n".join(stream).encode()) == OSLO


def test_a_last_chunk_that_holds_text() -> None:
    """end-4/dots-hyprland#1329: the chunk with the finish_reason may hold the end of the answer."""
    first = {"choices": [{"delta": {"content": GOOD[:9]}}]}
    last = {"choices": [{"delta": {"content": GOOD[9:]}, "finish_reason": "stop"}], "usage": None}
    assert read(f"data: {json.dumps(first)}\n\ndata: {json.dumps(last)}\n\n".encode()) == OSLO


def test_a_stream_of_reasoning() -> None:
    """anomalyco/opencode#46061: Ollama streams thoughts as `reasoning`, with empty content."""
    deltas = [{"content": "", "reasoning": "Hm."}, {"content": GOOD}]
    lines = [f"data: {json.dumps({'choices': [{'delta': d}]})}\n\n" for d in deltas]
    assert read("".join([*lines, "data: [DONE]\n\n"]).encode()) == OSLO


def test_the_native_reply_of_ollama() -> None:
    """ollama/ollama#15288: people fall back to /api/chat, whose reply has message and done_reason."""
    reply = {"model": "m", "message": {"role": "assistant", "content": GOOD}, "done": True}
    assert read({**reply, "done_reason": "stop", "eval_count": 5}) == OSLO
    with pytest.raises(ReplyError, match="cut off"):
        read({**reply, "done_reason": "length"})
    with pytest.raises(ReplyError, match="empty"):
        read({**reply, "message": {"content": ""}, "done_reason": "load"})


# Finish reasons


@each_way
@pytest.mark.parametrize(
    "reason",
    [
        "RECITATION",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "content_filter: PROHIBITED_CONTENT",
        "refusal",
        "OTHER_SAFETY",
    ],
)
def test_reasons_of_filters(reason: str) -> None:
    """bespokelabsai/curator#261, HKUDS/Vibe-Trading#308, BerriAI/litellm#40864: Gemini's own words."""
    with FakeLLM(Fault("edit", edit={"content": None, "finish_reason": reason})) as server:
        with pytest.raises(ReplyError, match="filter"):
            model(server).ask(MESSAGES, City)
        assert server.calls == 1


@each_way
def test_a_function_call_that_the_provider_could_not_read() -> None:
    """BerriAI/litellm#40864 and its like: MALFORMED_FUNCTION_CALL comes with no content, and may pass."""
    fault = Fault("edit", edit={"content": None, "finish_reason": "MALFORMED_FUNCTION_CALL"})
    with FakeLLM(lambda _: GOOD, faults=[fault]) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
        assert server.calls == 2


@pytest.mark.parametrize("said", [{"message": None}, {"message": {}}, {}])
def test_a_filtered_choice_without_a_message(said: dict[str, Any]) -> None:
    """BerriAI/litellm#40864: a candidate with a finish reason and no content."""
    with pytest.raises(ReplyError, match="filter") as caught:
        read({"choices": [{**said, "finish_reason": "content_filter"}]})
    assert not caught.value.retryable


@each_way
@pytest.mark.parametrize("reason", ["insufficient_system_resource", "error", "abort"])
def test_a_reply_that_the_server_broke_off(reason: str) -> None:
    """DeepSeek's, OpenRouter's and SGLang's reasons: the same request is sent again, not argued with."""
    fault = Fault("edit", edit={"content": GOOD[:9], "finish_reason": reason})
    with FakeLLM(lambda _: GOOD, faults=[fault]) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
        assert [len(body["messages"]) for body in server.requests] == [2, 2]


@each_way
def test_no_candidate_at_all() -> None:
    """bespokelabsai/curator#621, machinewrapped/llm-subtrans#292: a blocked prompt has no candidate."""
    reply = {"choices": [], "prompt_feedback": {"block_reason": "PROHIBITED_CONTENT"}}
    with FakeLLM(Fault.response(reply)) as server:
        with pytest.raises(ModelError, match="PROHIBITED_CONTENT"):
            model(server).ask(MESSAGES, City)
        assert server.calls == 1


# Refusals: (status, body) -> the error, and to whom the fault belongs

TOO_LONG = [
    # BerriAI/litellm#10793
    (400, "The input (9000 tokens) is longer than the model's context length (8192 tokens)."),
    # BerriAI/litellm#21558: Mistral, Perplexity, Replicate, Bedrock
    (400, "Prompt contains 65673 tokens, too large for model with 32768 maximum context length"),
    (400, "The total length of all messages is too long."),
    (400, "ValidationException: Input is too long for requested model."),
    # BerriAI/litellm#15968
    (
        400,
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 509178.",
    ),
    # anomalyco/opencode#44889
    (400, "Context Window exceeded for given call. No models have context window large enough."),
    # huggingface/huggingface_hub#2514, text-generation-inference#2749
    (
        422,
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 10 and 4091",
    ),
    (413, "Payload Too Large"),
    # elizaOS/eliza#4040
    (429, "Request too large for model on tokens per minute (TPM): Limit 6000, Requested 6294"),
    # OpenHands/OpenHands#5350
    (
        400,
        'AnthropicError - {"error":{"message":"prompt is too long: 209303 tokens > 200000 maximum"}}',
    ),
]


@pytest.mark.parametrize(("status", "words"), TOO_LONG)
def test_a_text_that_is_too_long_is_the_rows_own_fault(status: int, words: str) -> None:
    """litellm#10793, #15968, #21558, opencode#44889, huggingface_hub#2514, eliza#4040, OpenHands#5350."""
    error = refusal(status, {"error": {"message": words}})
    assert type(error) is RequestRejectedError
    assert "too long" in str(error)
    assert not error.fatal
    assert not error.retryable


RATE = [
    # anomalyco/opencode#7463, continuedev/continue#9800: Cerebras
    "Tokens per minute limit exceeded - too many tokens processed.",
    # cline/cline#4826: xAI
    "Too many tokens for team e9fe and model grok-4. Your team's rate limit is — Tokens per Minute"
    " (actual/limit): 65605/16000.",
    # continuedev/continue#10920: Groq, a day's limit
    "Rate limit reached for model `x` on tokens per day (TPD): Limit 100000, Used 97050, Requested 3619."
    " Please try again in 9m38.016s. Need more tokens? Upgrade today",
    "We're experiencing high traffic right now! Please try again soon. queue_exceeded",
]


@pytest.mark.parametrize("words", RATE)
def test_too_many_tokens_in_a_minute_is_no_fault_of_the_row(words: str) -> None:
    """opencode#7463, continue#9800 and #10920, cline#4826: the same request may pass later."""
    error = refusal(429, {"error": {"message": words}})
    assert type(error) is RateLimitError
    assert error.retry_after == (pytest.approx(578.016) if "9m38" in words else None)


def test_retry_after_as_a_date() -> None:
    """RFC 9110, section 10.2.3, as gateways send it: a date in place of seconds."""
    wait = retry_after({"Retry-After": formatdate(time.time() + 30, usegmt=True)})
    assert wait is not None
    assert 25 < wait <= 30


@each_way
@pytest.mark.parametrize("status", [200, 500, 529])
def test_overloaded_by_its_words(status: int) -> None:
    """SWE-agent/mini-swe-agent#184, UKGovernmentBEIS/inspect_ai#1885: overloaded_error without a 529."""
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    error = refusal(status, body)
    assert error.retryable
    assert not error.fatal
    assert "Overloaded" in str(error)
    with FakeLLM(lambda _: GOOD, faults=[Fault.response(body, status)]) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO


FILTERS = [
    # tatsu-lab/alpaca_eval#227, compl-ai/compl-ai#20, microsoft/TinyTroupe#85, stanford-crfm/helm#3327
    {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content"
        " management policy. Please modify your prompt and retry.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
    },
    # browser-use/browser-use#262
    {"inner_error": {"code": "ResponsibleAIPolicyViolation"}, "code": "content_filter"},
    # BerriAI/litellm#16231
    {
        "message": "litellm.BadRequestError: litellm.ContentPolicyViolationError: AzureException",
        "code": "400",
        "provider_specific_fields": {"innererror": {"code": "ResponsibleAIPolicyViolation"}},
    },
    # BerriAI/litellm#5360
    {"message": "Violated guardrail policy: GUARDRAIL_INTERVENED", "code": "400"},
]


@each_way
@pytest.mark.parametrize("error", FILTERS)
def test_a_filter_costs_one_call_and_one_row(error: dict[str, Any]) -> None:
    """alpaca_eval#227 took it for a rate limit; compl-ai#20, TinyTroupe#85, browser-use#262, litellm#5360."""

    def reply(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        return Fault.response({"error": error}, 400) if "Question 2?" in said else None

    with FakeLLM(reply) as server:
        options: dict[str, Any] = {"api_base": server.api_base, "cache": False}
        table = pi.infer_personas(pairs(5), "fake", **options)
        assert server.calls == 5
    assert [row.index for row in table.errors] == [2]
    assert "moderation" in str(table[2].error)


@each_way
def test_lm_studio_takes_no_json_object() -> None:
    """lmstudio-ai/lmstudio-bug-tracker#189 and #307: json_schema is taken at once; nothing else is tried."""
    words = "'response_format.type' must be 'json_schema' or 'text'"

    def reply(body: dict[str, Any]) -> Any:
        asked = body.get("response_format", {}).get("type", "text")
        return GOOD if asked in ("json_schema", "text") else Fault.response({"error": words}, 400)

    with FakeLLM(reply) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
        assert server.calls == 1


@each_way
def test_an_older_lm_studio_that_knows_no_schema_of_this_kind() -> None:
    """lmstudio-ai/lmstudio-bug-tracker#189: of two forms in turn that are refused, the third is found."""

    def reply(body: dict[str, Any]) -> Any:
        form = body.get("response_format", {}).get("type")
        return Fault.response({"error": f"'response_format.type' {form}"}, 400) if form else GOOD

    with FakeLLM(reply) as server:
        llm = model(server)
        assert llm.ask(MESSAGES, City).value == OSLO
        assert llm.settings["reply_form"] == "tools"
        assert server.calls == 3


@each_way
def test_a_form_that_the_provider_behind_a_gateway_refuses() -> None:
    """OpenRouterTeam/openrouter-examples#14: a 400 inside a 200, the reason in metadata.raw."""
    raw = json.dumps(
        {
            "error": {
                "code": 400,
                "message": "Unknown name \"additionalProperties\" at 'response_schema'",
            }
        }
    )
    error = {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}

    def reply(body: dict[str, Any]) -> Any:
        strict = body.get("response_format", {}).get("type") == "json_schema"
        return Fault.response({"error": error}) if strict else GOOD

    with FakeLLM(reply) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
        assert server.calls == 2


@each_way
def test_no_endpoint_supports_tools() -> None:
    """dnakov/anon-kode#2, evalstate/fast-agent#122, Kilo-Org/kilocode#9006: a 404 that names the form."""
    words = (
        "No endpoints found that support tool use. To learn more about provider routing, visit: …"
    )

    def reply(body: dict[str, Any]) -> Any:
        if "response_format" in body or "tools" in body:
            return Fault.response({"error": {"message": words, "code": 404}}, 404)
        return GOOD

    with FakeLLM(reply) as server:
        llm = model(server)
        assert llm.ask(MESSAGES, City).value == OSLO
        assert llm.settings["reply_form"] == "text"


def test_no_endpoint_for_the_users_own_rules() -> None:
    """truefoundry/models#826: no provider fits the account's data policy; no other row would fare better."""
    words = (
        "No endpoints available matching your guardrail restrictions and data policy. Configure: …"
    )
    error = refusal(404, {"status": "failure", "message": words})
    assert type(error) is ModelNotFoundError
    assert error.fatal
    assert "data policy" in str(error)


def test_words_of_the_provider_behind_a_gateway() -> None:
    """farion1231/cc-switch#464: "Provider returned error" alone helps nobody."""
    raw = '{"error":{"code":"400","message":"Param Incorrect","param":"messages[2] must not be empty"}}'
    error = refusal(
        400,
        {"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": raw}}},
    )
    assert "Param Incorrect" in str(error)
    assert not error.fatal


@each_way
def test_the_name_of_the_limit() -> None:
    """actions/ai-inference#116: openai/gpt-5-nano wants max_completion_tokens, and gets it at once."""

    def reply(body: dict[str, Any]) -> Any:
        words = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'."
        return Fault.response({"error": {"message": words}}, 400) if "max_tokens" in body else GOOD

    with FakeLLM(reply) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
        assert server.calls == 2
        llm = pi.LLM("openai/gpt-5-nano", api_base=server.api_base, cache=False)
        assert llm.ask(MESSAGES, City).value == OSLO
        assert server.calls == 3


@each_way
@pytest.mark.parametrize(
    ("words", "most"),
    [
        (
            "`max_tokens` must be less than or equal to `300`, the maximum value for `max_tokens` is less"
            " than the `context_window` for this model",
            300,
        ),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 300]", 300),
        ("max_tokens: 500 > 300, which is the maximum allowed number of output tokens", 300),
        ("max_tokens is too large: 500. This model supports at most 300 completion tokens", 300),
    ],
)
def test_a_smaller_limit_is_kept_to(words: str, most: int) -> None:
    """maplibre/maplibre-agent-skills#63 (Groq) and others: the limit of a reply, not the row, is refused."""

    def reply(body: dict[str, Any]) -> Any:
        too_large = body["max_tokens"] > most
        return Fault.response({"error": {"message": words}}, 400) if too_large else GOOD

    with FakeLLM(reply) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
        assert [body["max_tokens"] for body in server.requests] == [500, most]


def test_credits_for_a_shorter_reply_alone() -> None:
    """can1357/oh-my-pi#9569: 402, requires more credits or fewer max_tokens; every row would be refused."""
    words = (
        "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens"
    )
    error = refusal(402, {"error": {"message": words, "code": 402}})
    assert type(error) is AuthenticationError
    assert error.fatal


@each_way
def test_validation_errors_that_come_as_a_stream_with_200() -> None:
    """huggingface/text-generation-inference#2749: a 200 whose only event is an error."""
    words = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."
    event = json.dumps({"error": words, "error_type": "validation"})
    with FakeLLM(Fault("status", body=f"data: {event}\n\n".encode())) as server:
        with pytest.raises(RequestRejectedError, match="too long"):
            model(server).ask(MESSAGES, City)
        assert server.calls == 1


@each_way
def test_a_connection_that_breaks_now_and_then() -> None:
    """anthropics/claude-code#82500: kept-alive connections that break right after they are used."""
    with FakeLLM(lambda _: GOOD, faults=[Fault.reset(), Fault.reset()]) as server:
        assert model(server).ask(MESSAGES, City).value == OSLO
    with FakeLLM(Fault.reset()) as server, pytest.raises(TransportError):
        model(server, max_attempts=1).ask(MESSAGES, City)
