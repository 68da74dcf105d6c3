"""A batch keeps what a provider says: no file of its folder, and no table, may hold a secret in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.api_keys import Secrets
from personainfer.batch.lines import MaskedLines
from personainfer.batch.provider import EndpointBatches
from personainfer.exceptions import ModelError
from personainfer.llm.transports import EndpointTransport
from personainfer.testing import FakeLLM

from ..batch_server import BatchServer, Lines
from ..builders import AnyServer, everything, pairs

KEY = "a1b2c3d4e5f60718293a4b5c6d7e8f90"  # nothing in its form says that it is a key
HEADER = "q7-value-of-a-header"
SAID = f"refused: Bearer {KEY}, {HEADER}"

# The light suite does not wait for litellm, which takes seconds to import.
by_litellm = pytest.param("litellm/openai/gpt-4o-mini", marks=pytest.mark.heavy)
each_way = pytest.mark.parametrize("model", ["gpt-4o-mini", by_litellm])


def refused(lines: Lines) -> Lines:
    """Lines of replies, as of a provider that repeats what it was sent, in each place for words."""
    body: dict[str, Any] = {"error": {"message": SAID, KEY: HEADER}}
    choice = {"finish_reason": "stop", "message": {"content": None, "refusal": SAID}}
    answers: list[dict[str, Any]] = [
        {"response": {"status_code": 401, "body": body}},
        {"response": {"status_code": 200, "body": {"model": KEY, "choices": [choice]}}},
        {"response": None, "error": {"code": KEY, "message": SAID}},
    ]
    names = [json.loads(line)["custom_id"] for line in lines]
    return [
        json.dumps({"custom_id": name, **answers[n % 3]}).encode().replace(b"a1b2", b"\\u00611b2")
        for n, name in enumerate(names)
    ]


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("problem", ["", SAID], ids=["lines", "failed"])
def test_no_file_or_table_of_a_batch_holds_what_the_provider_repeats(
    model: str, problem: str, tmp_path: Path
) -> None:
    statuses = ["failed"] if problem else ["completed"]
    with (
        FakeLLM() as llm,
        BatchServer(llm, edit=refused, problem=problem, statuses=statuses) as server,
    ):
        options: dict[str, Any] = {"api_base": server.api_base, "api_key": KEY}
        pi.submit_batch(pairs(4), model, tmp_path / "b", cache=False, **options)
        table = pi.collect_batch(tmp_path / "b", poll=0.01, **options)
    told = " ".join(str(row.error) for row in table)
    assert told.count("[key]") >= 4
    assert KEY.encode() not in everything(tmp_path / "b") + told.encode()


@pytest.mark.heavy
def test_nor_a_key_that_litellm_found_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeLLM() as llm, BatchServer(llm, edit=refused, statuses=["completed"]) as server:
        options: dict[str, Any] = {"api_base": server.api_base}
        pi.submit_batch(pairs(4), "litellm/openai/gpt-4o-mini", tmp_path / "b", **options)
        table = pi.collect_batch(tmp_path / "b", poll=0.01, **options)
    assert KEY in server.tokens
    told = " ".join(str(row.error) for row in table)
    assert KEY.encode() not in everything(tmp_path / "b") + told.encode()


@pytest.mark.heavy
@each_way
def test_added_headers_are_sent_with_a_batch_and_are_in_no_error(
    model: str, tmp_path: Path
) -> None:
    body = json.dumps({"error": {"message": SAID}}).encode()
    with AnyServer(422, body=body) as server, pytest.raises(ModelError, match="refused") as caught:
        pi.submit_batch(
            pairs(1),
            model,
            tmp_path / "b",
            api_base=server.address,
            api_key=KEY,
            extra_headers={"X-Mine": HEADER},
        )
    assert server.asked[0].headers["x-mine"] == HEADER
    assert KEY not in str(caught.value)
    assert HEADER not in str(caught.value)


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize("field", ["id", "output_file_id", "error_file_id"])
def test_an_id_that_repeats_a_key_is_none(model: str, field: str, tmp_path: Path) -> None:
    body: dict[str, Any] = {"id": "one", "object": "batch", "created_at": 1, "bytes": 1}
    body |= {"filename": "f", "purpose": "batch", "input_file_id": "one", "status": "completed"}
    body |= {"endpoint": "/v1/chat/completions", "completion_window": "24h", field: f"its-{KEY}"}
    options: dict[str, Any] = {"api_key": KEY, "cache": False}

    def submitted_and_collected() -> None:
        pi.submit_batch(pairs(1), model, tmp_path / "b", api_base=server.address, **options)
        pi.collect_batch(tmp_path / "b", api_base=server.address, api_key=KEY, poll=0.01)

    with AnyServer(body=json.dumps(body).encode()) as server, pytest.raises(ModelError) as caught:
        submitted_and_collected()
    assert KEY not in str(caught.value)
    assert KEY.encode() not in everything(tmp_path / "b")


@given(st.integers(1, 40))
def test_a_secret_is_masked_that_comes_in_two_pieces(size: int) -> None:
    """In the text of a reply, what may be a word of it stays."""
    wrote = [f"the model wrote {said} q7-short" for said in (HEADER, "[key]")]
    given, good = (
        json.dumps({"custom_id": HEADER, "response": {"body": {"choices": [{"text": text}]}}})
        for text in wrote
    )
    said = f'{{"custom_id": "ab", "error": "{HEADER}"}}\n{given}\nno JSON {HEADER}'.encode()
    file = io.BytesIO()
    with MaskedLines(file, Secrets([HEADER, "q7-short"])) as lines:
        for start in range(0, len(said), size):
            lines.write(said[start : start + size])
    bad = '{"custom_id": "ab", "error": "[key]"}'
    assert file.getvalue().decode().split("\n") == [bad, good, "no JSON [key]"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (302, {"Location": f"http://elsewhere.invalid/{KEY}"}),
        (200, {"Content-Encoding": KEY}),
    ],
)
def test_no_error_holds_a_key_that_headers_repeat(status: int, headers: dict[str, str]) -> None:
    with AnyServer(status, headers) as server:
        api = EndpointBatches(EndpointTransport("m", f"{server.address}/v1", KEY))
        with pytest.raises(ModelError, match="key") as caught:
            api.look("b1")
    assert KEY.lower() not in str(caught.value).lower()


@pytest.mark.heavy
def test_a_batch_sends_none_of_the_headers_that_the_environment_has_for_openai(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    custom = "Authorization: Bearer q7-of-openai\nX-Gateway: q7-header"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", custom)
    monkeypatch.setenv("OPENAI_ORG_ID", "q7-organization")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "q7-project")
    with AnyServer(body=b'{"id": "b1", "status": "in_progress"}') as server:
        transport = EndpointTransport("m", f"{server.address}/v1", KEY, headers={"X-Own": "mine"})
        EndpointBatches(transport).look("b1")
    headers = server.asked[0].headers
    assert (headers["authorization"], headers["x-own"]) == (f"Bearer {KEY}", "mine")
    assert "q7-" not in str(headers)


def test_a_proxy_that_repeats_its_password_shows_it_in_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    api = EndpointBatches(EndpointTransport("m", "http://model.invalid/v1"))
    with AnyServer(407, body=f"denied {KEY}".encode()) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.address.replace("//", f"//me:{KEY}@"))
        with pytest.raises(ModelError, match=r"denied \[key\]"):
            api.look("batch_1")
