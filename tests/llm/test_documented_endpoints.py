"""Each endpoint in the documentation's table works as the table says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import personainfer as pi
from personainfer.testing import FakeLLM, Fault

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
MESSAGES = [
    pi.Message(role="system", content="Be brief."),
    pi.Message(role="user", content="Name a city."),
]


class City(BaseModel):
    name: str


OSLO = '{"name": "Oslo"}'
Script = Callable[[dict[str, Any]], Any]


def refuses(field: str, words: str) -> Script:
    """An endpoint that refuses requests with this field, or with this in the field."""

    def reply(body: dict[str, Any]) -> Any:
        return Fault.response({"error": words}, 400) if field in json.dumps(body) else OSLO

    return reply


def thought(body: dict[str, Any]) -> Any:
    """vLLM and SGLang: the answer in the reasoning, and no system role."""
    if body["messages"][0]["role"] == "system":
        return Fault.response({"message": "System role not supported"}, 400)
    message = {"content": None, "reasoning_content": OSLO}
    return Fault.response({"choices": [{"message": message, "finish_reason": "stop"}]})


# line of the table -> model, the end of the address, what the endpoint does, its first faults, calls
SCENARIOS: dict[str, tuple[str, str, Script, list[Fault], int]] = {
    "OpenAI, o-series and gpt-5": (
        "gpt-5-mini",
        "/v1",
        refuses('"temperature"', "Unsupported value: 'temperature' does not support 0.0"),
        [],
        1,
    ),
    "Azure": ("gpt", "/openai/deployments/gpt?api-version=2024-10-21", lambda _: OSLO, [], 1),
    "vLLM, SGLang": ("fake", "/v1", thought, [], 2),
    "llama.cpp, Ollama, LM Studio": (
        "fake",
        "/v1",
        lambda _: OSLO,
        [Fault.response({"error": {"message": "Loading model"}}, 503)],
        2,
    ),
    "DeepSeek, Groq, Mistral and others without JSON schema": (
        "fake",
        "/v1",
        refuses("json_schema", "This response_format type is unavailable now"),
        [],
        2,
    ),
    "OpenRouter, LiteLLM's proxy, other gateways": (
        "team-fast",
        "/v1",
        lambda _: OSLO,
        [
            Fault.response({"error": {"code": 502, "message": "Upstream died"}}),
            Fault("edit", edit={"model": "llama-3.1-8b-instant"}),
        ],
        2,
    ),
    "any other provider of litellm": ("litellm/openai/fake", "/v1", lambda _: OSLO, [], 1),
}


def test_the_table_has_these_lines() -> None:
    _, table = DOCS.read_text("utf-8").split("| endpoint | how it is called |\n| --- | --- |\n")
    table, _, _ = table.partition("\n\n")
    assert re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) == list(SCENARIOS)


@pytest.mark.parametrize(
    "name",
    [  # litellm takes seconds to import
        pytest.param(name, marks=[pytest.mark.heavy] * model.startswith("litellm/"))
        for name, (model, *_) in SCENARIOS.items()
    ],
)
def test_an_endpoint_works_as_documented(name: str) -> None:
    model, end, script, faults, calls = SCENARIOS[name]
    with FakeLLM(script, faults=faults) as server:
        base = server.api_base.replace("/v1", end)
        llm = pi.LLM(model, api_base=base, api_key="key-0123456789", cache=False)
        assert llm.ask(MESSAGES, City).value == City(name="Oslo")
        assert server.calls == calls
