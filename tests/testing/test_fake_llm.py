"""The fake server: what it answers, how it fails on the wire, and what it counts."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel, Field

from personainfer.testing import FakeLLM, Fault, Reply
from personainfer.testing.fake_llm import main as serve

Answer = tuple[int, dict[str, str], bytes]


def request(
    llm: FakeLLM, text: str = "hi", *, key: str = "", timeout: float = 5, **body: Any
) -> Answer:
    """One call over a connection of its own: status, headers, body."""
    message = {"role": "user", "content": text}
    sent = json.dumps({"model": "fake", "messages": [message], **body})
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return fetch(llm, "POST", "/v1/chat/completions", sent, headers, timeout)


def fetch(
    llm: FakeLLM,
    method: str,
    path: str,
    body: str | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 5,
) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(llm.api_base).netloc, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def choice(answer: Answer) -> Any:
    assert answer[0] == 200, answer
    return json.loads(answer[2])["choices"][0]


def content(answer: Answer) -> Any:
    return choice(answer)["message"]["content"]


def asks_for(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"name": "x", "strict": True, "schema": model.model_json_schema()}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


class Tone(Enum):
    DRY = "dry"
    WARM = "warm"


class Person(BaseModel):
    trait: str = Field(max_length=20)
    tone: Tone


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(gt=0, le=9)


class Node(BaseModel):
    name: str
    children: list[Node]
    parent: Node | None


class Everything(BaseModel):
    below: int = Field(lt=-5)
    cold: float = Field(le=-5)
    small: float = Field(gt=0, lt=0.001)
    chosen: Person
    rejected: Person | None
    score: float = Field(ge=0, lt=1)
    count: Annotated[int, Field(ge=3, le=3)]
    sure: bool
    tags: list[Annotated[str, Field(min_length=40, max_length=50)]] = Field(
        min_length=2, max_length=2
    )
    pet: Cat | Person
    pair: tuple[int, str]
    tree: Node
    extra: dict[str, int]
    nothing: None
    tiny: str = Field(max_length=1)


# --- default replies --------------------------------------------------------------------------


def test_default_reply_fits_every_kind_of_schema() -> None:
    with FakeLLM() as llm:
        for row in range(20):
            Everything.model_validate_json(content(request(llm, str(row), **asks_for(Everything))))


@pytest.mark.heavy
def test_default_reply_depends_on_the_last_user_message_only() -> None:
    with FakeLLM() as one, FakeLLM(seed=7) as two:
        first = request(one, "row 1", **asks_for(Person))
        assert request(one, "row 1", **asks_for(Person))[2] == first[2]
        assert request(two, "row 1", **asks_for(Person))[2] == first[2]
        texts = {content(request(one, f"row {n}", **asks_for(Everything))) for n in range(40)}
        assert len(texts) == 40


def test_schema_in_llama_cpp_form() -> None:
    schema = Person.model_json_schema()
    with FakeLLM() as llm:
        form = {"type": "json_object", "schema": schema}
        Person.model_validate_json(content(request(llm, response_format=form)))
        Person.model_validate_json(content(request(llm, json_schema=schema)))


def test_json_object_and_plain_text() -> None:
    with FakeLLM() as llm:
        form = {"type": "json_object"}
        assert isinstance(json.loads(content(request(llm, response_format=form))), dict)
        assert content(request(llm)).isalpha()
        assert content(request(llm, tools=None)) == content(request(llm))


def test_tools_are_called() -> None:
    tools = [
        {"type": "function", "function": {"name": "other", "parameters": {}}},
        {"type": "function", "function": {"name": "P", "parameters": Person.model_json_schema()}},
    ]
    asked = {"type": "function", "function": {"name": "P"}}
    with FakeLLM() as llm:
        got = choice(request(llm, tools=tools, tool_choice=asked))
        call = got["message"]["tool_calls"][0]["function"]
        assert got["finish_reason"] == "tool_calls"
        assert got["message"]["content"] is None
        assert call["name"] == "P"
        Person.model_validate_json(call["arguments"])


def test_pattern_is_an_error_that_says_what_to_do() -> None:
    class Coded(BaseModel):
        code: str = Field(pattern="^[A-Z]{3}$")

    with FakeLLM() as llm:
        status, _, body = request(llm, **asks_for(Coded))
    assert status == 500
    assert b"pass a reply" in body


@pytest.mark.heavy
def test_openai_client_understands_it() -> None:
    openai = pytest.importorskip("openai")
    with FakeLLM() as llm, openai.OpenAI(base_url=llm.api_base, api_key="x") as client:
        messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
        parsed = client.chat.completions.parse(
            model="fake", messages=messages, response_format=Person
        )
        assert isinstance(parsed.choices[0].message.parsed, Person)
        assert [model.id for model in client.models.list()] == ["fake"]


# --- scripted replies -------------------------------------------------------------------------


def test_constant_replies() -> None:
    whole = Reply("so").render({"model": "m"})
    replies: list[tuple[str | bytes | dict[str, Any], str]] = [
        ("text", "text"),
        ({"a": "b c"}, '{"a":"b c"}'),
        (whole, "so"),
    ]
    for reply, expected in replies:
        with FakeLLM(reply) as llm:
            assert content(request(llm)) == expected


def test_reply_function_sees_the_body_and_may_fail() -> None:
    def reply(body: dict[str, Any]) -> str | Fault | None:
        text = body["messages"][-1]["content"]
        if text == "fault":
            return Fault.status(503)
        return None if text == "own" else f"re: {text}"

    with FakeLLM(reply) as llm:
        assert content(request(llm, "a")) == "re: a"
        assert request(llm, "fault")[0] == 503
        assert content(request(llm, "own")).isalpha()
        assert llm.faulted == 1


def test_reply_function_that_raises_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with FakeLLM(lambda body: body["nope"]) as llm:
        status, _, body = request(llm)
    assert (status, b"KeyError" in body) == (500, True)
    assert "could not make a reply" in caplog.text


def test_every_field_of_a_reply_is_sent() -> None:
    reply = Reply("x", "length", None, "m2", 11, 22, {"content": []}, {"X-Request-Id": "7"})
    with FakeLLM(reply) as llm:
        _, headers, raw = request(llm)
    body = json.loads(raw)
    assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
    assert (body["model"], headers["X-Request-Id"]) == ("m2", "7")
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["logprobs"] == {"content": []}


def test_usage_is_about_a_token_for_four_characters() -> None:
    with FakeLLM("y" * 400) as llm:
        usage = json.loads(request(llm, "x" * 4000)[2])["usage"]
    assert usage["prompt_tokens"] == 1000
    assert usage["completion_tokens"] == pytest.approx(100, abs=2)


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 404, 429, 500, 503])
def test_status(code: int) -> None:
    with FakeLLM(faults=[Fault.status(code, {"X-A": "b"}, "why")]) as llm:
        status, headers, body = request(llm)
        assert (status, headers["X-A"]) == (code, "b")
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert json.loads(body)["error"]["message"] == "why"
        assert request(llm)[0] == 200


@pytest.mark.parametrize("wait", [None, 2, 0.5, "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_rate_limit(wait: float | str | None) -> None:
    with FakeLLM(faults=[Fault.rate_limit(wait, {"x-ratelimit-remaining-requests": "0"})]) as llm:
        status, headers, body = request(llm)
    assert status == 429
    assert headers.get("Retry-After") == (None if wait is None else str(wait))
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"


def test_a_kind_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'hangs' is no fault: name one of status, .* hang"):
        Fault("hangs")  # type: ignore[arg-type]


def test_reset_before_any_byte() -> None:
    with FakeLLM(faults=[Fault.reset()]) as llm, pytest.raises(ConnectionResetError) as caught:
        request(llm)
    assert not isinstance(caught.value, http.client.RemoteDisconnected)  # a real RST, not an end


def test_reset_mid_body() -> None:
    with FakeLLM("word " * 1000, faults=[Fault.reset_mid_body()]) as llm:
        connection = http.client.HTTPConnection(urlsplit(llm.api_base).netloc, timeout=5)
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
        connection.request("POST", "/v1/chat/completions", body)
        response = connection.getresponse()
        assert response.status == 200
        assert response.read(1000).startswith(b"{")
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            response.read()
        connection.close()


@pytest.mark.heavy
def test_hang_ends_with_the_client_or_with_the_seconds() -> None:
    with FakeLLM(faults=[Fault.hang(), Fault.hang(0.05)]) as llm:
        with pytest.raises(TimeoutError):
            request(llm, timeout=0.3)
        started = time.monotonic()
        assert request(llm)[0] == 200
        assert time.monotonic() - started >= 0.05
        assert llm.in_flight_peak <= 2


def test_slow_body() -> None:
    with FakeLLM("text", faults=[Fault.slow_body(0.2)]) as llm:
        started = time.monotonic()
        assert content(request(llm)) == "text"
        assert time.monotonic() - started >= 0.2


def test_empty() -> None:
    with FakeLLM(faults=[Fault.empty(), Fault.empty(of="content")]) as llm:
        assert request(llm)[::2] == (200, b"")
        assert content(request(llm)) == ""


def test_invalid_json() -> None:
    with FakeLLM(faults=[Fault.invalid_json(), Fault.invalid_json(of="body")]) as llm:
        with pytest.raises(json.JSONDecodeError):
            json.loads(content(request(llm, **asks_for(Person))))
        status, _, body = request(llm)
        assert (status, body[:6]) == (200, b"<html>")


def test_bad_schema() -> None:
    with FakeLLM(faults=[Fault.bad_schema()]) as llm:
        text = content(request(llm, **asks_for(Person)))
    json.loads(text)
    with pytest.raises(ValueError, match="Person"):
        Person.model_validate_json(text)


def test_refusal_truncated_filtered() -> None:
    faults = [Fault.refusal("no"), Fault.truncated(), Fault.filtered()]
    with FakeLLM(faults=faults) as llm:
        refused, cut, filtered, whole = (choice(request(llm, **asks_for(Person))) for _ in range(4))
    assert (refused["message"]["content"], refused["message"]["refusal"]) == (None, "no")
    assert cut["finish_reason"] == "length"
    assert whole["message"]["content"].startswith(cut["message"]["content"])
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut["message"]["content"])
    assert (filtered["finish_reason"], filtered["message"]["content"]) == ("content_filter", "")


def test_faults_spoil_tool_arguments_too() -> None:
    tool = {"type": "function", "function": {"name": "P", "parameters": Person.model_json_schema()}}
    with FakeLLM(faults=[Fault.truncated(), Fault.bad_schema()]) as llm:
        cut, bad = (choice(request(llm, tools=[tool])) for _ in range(2))
    assert cut["finish_reason"] == "length"
    for spoilt in (cut, bad):
        with pytest.raises(ValueError, match="Person"):
            Person.model_validate_json(spoilt["message"]["tool_calls"][0]["function"]["arguments"])


def test_other_model() -> None:
    with FakeLLM(faults=[Fault.other_model("gpt-0")]) as llm:
        assert [json.loads(request(llm)[2])["model"] for _ in range(2)] == ["gpt-0", "fake"]


def test_not_utf8_in_otherwise_good_json() -> None:
    with FakeLLM(faults=[Fault.not_utf8()]) as llm:
        raw = request(llm, **asks_for(Node))[2]
    with pytest.raises(UnicodeDecodeError):
        raw.decode()
    lenient = json.loads(raw.decode(errors="replace"))["choices"][0]["message"]["content"]
    assert "\ufffd" in Node.model_validate_json(lenient).model_dump_json()


def test_huge() -> None:
    with FakeLLM(faults=[Fault.huge()]) as llm:
        assert len(request(llm)[2]) > 10_000_000


@pytest.mark.heavy
def test_fault_rate_is_seeded_and_about_right() -> None:
    def outcomes(seed: int) -> list[int]:
        faults = [Fault.status(500), Fault.rate_limit()]
        with FakeLLM("x", faults=faults, fault_rate=0.5, seed=seed) as llm:
            codes = [request(llm)[0] for _ in range(100)]
            assert llm.faulted == sum(code != 200 for code in codes)
            return codes

    assert outcomes(1) == outcomes(1) != outcomes(2)
    assert set(outcomes(1)) == {200, 429, 500}
    assert 30 < outcomes(1).count(200) < 70


# --- the service ------------------------------------------------------------------------------


def test_api_key_known_models_and_requests_that_are_none() -> None:
    with FakeLLM(api_key="k", known_models=["fake"], faults=[Fault.status(503)]) as llm:
        refused = [
            request(llm),
            request(llm, key="k", model="m"),
            request(llm, key="k", stream=True),
        ]
        codes = [json.loads(body)["error"]["code"] for _, _, body in refused]
        assert [status for status, *_ in refused] == [401, 404, 400]
        assert codes[:2] == ["invalid_api_key", "model_not_found"]
        headers = {"Authorization": "Bearer k"}
        for body in ("", "no", "[]", "{}", '{"messages": 1}', '{"messages": [{}]}'):
            assert fetch(llm, "POST", "/v1/chat/completions", body, headers)[0] == 400
        assert request(llm, key="k")[0] == 503  # the script is for requests that would be served
        assert request(llm, key="k")[0] == 200


def test_models_health_stats_and_unknown_paths() -> None:
    with FakeLLM(model="m") as llm:
        assert json.loads(fetch(llm, "GET", "/v1/models")[2])["data"][0]["id"] == "m"
        assert fetch(llm, "GET", "/health")[0] == 200
        assert fetch(llm, "GET", "/v1/nothing")[0] == 404
        assert json.loads(fetch(llm, "GET", "/stats")[2]) == llm.stats
        assert llm.calls == 0


def test_counts() -> None:
    with FakeLLM(keep=3) as llm:
        for text in ("a", "b", "a", "c", "a"):
            request(llm, text, temperature=len(text))
    assert (llm.calls, llm.repeats, llm.stats["distinct"]) == (5, 2, 3)
    assert [body["messages"][0]["content"] for body in llm.requests] == ["a", "b", "a"]


@pytest.mark.heavy
def test_in_flight_peak() -> None:
    with FakeLLM("x", latency=0.3) as llm, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: request(llm, str(n)), range(12)))
    assert llm.in_flight_peak == 6
    assert llm.in_flight == 0


def test_requests_of_many_megabytes_are_read() -> None:
    with FakeLLM() as llm:
        assert request(llm, "x" * 3_000_000)[0] == 200


# --- start and stop ---------------------------------------------------------------------------


def test_stop_is_quick_and_leaves_nothing() -> None:
    threads = set(threading.enumerate())
    llm = FakeLLM(Fault.hang())
    with llm:
        address = urlsplit(llm.api_base)
        body = b'{"messages": [{"role": "user", "content": "x"}]}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        clients = [
            socket.create_connection((address.hostname or "", address.port or 0)) for _ in range(50)
        ]
        for client in clients:
            client.sendall(head % len(body) + body)
        deadline = time.monotonic() + 30
        while llm.in_flight < 50 and time.monotonic() < deadline:
            fetch(llm, "GET", "/health")
        started = time.monotonic()
    assert time.monotonic() - started < 10  # a hang is an hour
    assert llm.in_flight_peak == 50
    assert threads.issuperset(threading.enumerate())
    for client in clients:
        client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname or "", address.port or 0))
    with pytest.raises(RuntimeError, match="start"):
        _ = llm.api_base


def test_a_port_that_is_taken_is_an_error_in_the_caller() -> None:
    with FakeLLM() as llm, pytest.raises(OSError, match="address"):
        FakeLLM(port=urlsplit(llm.api_base).port or 0).start()


def test_a_port_that_there_is_not_is_an_error_in_the_caller() -> None:
    with pytest.raises(OverflowError, match="0-65535"):
        FakeLLM(port=65_536).start()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "ending",
    [
        "stdin",
        *(
            pytest.param(one, marks=pytest.mark.heavy)
            for one in ("sigterm", "ctrl-c in the background")
        ),
    ],
)
def test_process_of_its_own(ending: str) -> None:
    """Without a pipe, as after `&` in a script, it serves until a signal."""
    command = [sys.executable, "-m", "personainfer.testing", "--reply", "yes", "--fault", "reset"]
    command += ["--fault", "status:503", "--latency", "0.01"]
    pipe = subprocess.PIPE
    given = subprocess.DEVNULL if "background" in ending else pipe
    with subprocess.Popen(command, stdin=given, stdout=pipe, text=True, env=os.environ) as process:
        assert process.stdout is not None
        api_base = process.stdout.readline().strip()
        client = http.client.HTTPConnection(urlsplit(api_base).netloc, timeout=5)
        client.request("GET", "/stats")
        assert json.loads(client.getresponse().read())["calls"] == 0
        client.close()
        if ending == "stdin":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM if ending == "sigterm" else signal.SIGINT)
        assert process.wait(5) == 0


@pytest.mark.parametrize("fault", ["nothing", "hang:soon", "reset:1"])
def test_a_fault_that_there_is_not_is_a_usage_error(
    fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        serve(["--fault", fault])
    assert "error: --fault: " in capsys.readouterr().err
