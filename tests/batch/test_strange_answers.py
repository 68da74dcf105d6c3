"""Odd lines and answers of a provider: a line costs its row alone, an answer is an error of this library."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.batch import provider as provider_module
from personainfer.batch.provider import EndpointBatches
from personainfer.exceptions import ModelError, PersonaInferError, TransportError
from personainfer.llm.transports import EndpointTransport
from personainfer.testing import FakeLLM

from ..batch_server import LOOK, BatchServer, Lines
from ..builders import AnyServer, collect, examples, pairs, submit
from ..fuzz_values import generated, json_values, odd_in

BATCH = {
    "id": "batch-1",
    "object": "batch",
    "status": "completed",
    "input_file_id": "file-1",
    "output_file_id": "file-2",
    "request_counts": {"total": 1, "completed": 1, "failed": 0},
    "errors": {"data": [{"message": "no"}]},
}
LIST = {"object": "list", "data": [BATCH], "has_more": False}
FILE = {"id": "file-1", "object": "file", "status": "processed"}


def collected(folder: Path, edit: Any, rows: int) -> pi.PersonaTable:
    """The table of a batch whose replies were edited."""
    with FakeLLM() as llm, BatchServer(llm, edit=edit, statuses=["completed"]) as provider:
        batch = submit(provider, pairs(rows), folder, patience=0.001)
        table = collect(batch, cache_dir=folder.parent / "cache")
    table.save(folder.parent / "table.parquet")
    return table


def spoilt(line: bytes, number: int) -> bytes:
    """The line with an odd value in it, and the name of its request in most cases."""
    made = json.loads(line)
    body = made["response"]["body"]
    body["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}]}
    made["error"] = {"code": "x", "message": "y"} if number % 3 == 0 else None
    odd = generated(odd_in(made["response"]) | json_values, number + 1)[number]
    return json.dumps(made | {"response": odd}).encode()


@pytest.mark.heavy
def test_odd_lines_cost_their_rows_alone(tmp_path: Path) -> None:
    def edit(lines: Lines) -> Lines:
        return [spoilt(line, number) for number, line in enumerate(lines[:-1])] + lines[-1:]

    rows = examples(60).max_examples
    table = collected(tmp_path / "batch", edit, rows)
    assert len(table) == rows
    assert sum(row.error is None for row in table) >= 1


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("finish_reason", "error", "broke its reply off"),
        ("finish_reason", "timeout", "broke its reply off"),
        ("error", {"message": "flagged mid-stream"}, "flagged mid-stream"),
        ("logprobs", {"content": [{"token": "\ud83d", "logprob": -1}]}, None),
        ("finish_reason", "length", None),  # behind the whole object
    ],
)
def test_what_once_made_a_batch_uncollectable_costs_its_row(
    tmp_path: Path, field: str, value: Any, words: str | None
) -> None:
    def edit(lines: Lines) -> Lines:
        first = json.loads(lines[0])
        first["response"]["body"]["choices"][0][field] = value
        return [json.dumps(first).encode(), *lines[1:]]

    table = collected(tmp_path / "batch", edit, 2)
    errors = [str(row.error) for row in table if row.error]
    assert len(errors) == (words is not None)
    assert words is None or words in errors[0]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "edit",
    [
        *(
            lambda said, status=status: said | {"status_code": status}
            for status in (201, "200", 200.0)
        ),
        lambda said: said | {"body": json.dumps(said["body"])},
        lambda said: said["body"],
    ],
)
def test_a_line_that_is_written_a_little_otherwise_is_read(tmp_path: Path, edit: Any) -> None:
    def edited(lines: Lines) -> Lines:
        made = [json.loads(line) for line in lines]
        made = [one | {"response": edit(one["response"])} for one in made]
        first, *others = [json.dumps(one).encode() for one in made]
        return [b"\xef\xbb\xbf" + first, *others]

    table = collected(tmp_path / "batch", edited, 2)
    assert (len(table.errors), table.usage.calls) == (0, 2)


@pytest.mark.heavy
def test_a_line_with_an_error_is_charged_what_it_tells(tmp_path: Path) -> None:
    def edit(lines: Lines) -> Lines:
        body = {"error": {"message": "flagged"}, "usage": {"prompt_tokens": 70_000_000}}
        failed = json.loads(lines[0]) | {"response": {"status_code": 400, "body": body}}
        return [json.dumps(failed).encode(), *lines[1:]]

    table = collected(tmp_path / "batch", edit, 2)
    assert (len(table.errors), table.usage.calls) == (1, 2)
    assert table.usage.prompt_tokens > 70_000_000


@pytest.mark.heavy
def test_so_is_one_whose_reply_broke_off(tmp_path: Path) -> None:
    def edit(lines: Lines) -> Lines:
        first = json.loads(lines[0])
        body = first["response"]["body"]
        body["choices"][0]["finish_reason"] = "error"
        body["usage"]["prompt_tokens"] = 70_000_000
        return [json.dumps(first).encode(), *lines[1:]]

    table = collected(tmp_path / "batch", edit, 2)
    assert (len(table.errors), table.usage.calls) == (1, 2)
    assert table.usage.prompt_tokens > 70_000_000


@pytest.mark.heavy
def test_whatever_the_reader_of_a_line_raises_costs_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("whatever")

    monkeypatch.setattr("personainfer.batch.lines.status_error", fail)

    def edit(lines: Lines) -> Lines:
        first = json.loads(lines[0])
        first["response"]["status_code"] = 400
        return [json.dumps(first).encode(), *lines[1:]]

    table = collected(tmp_path / "batch", edit, 2)
    [error] = [str(row.error) for row in table if row.error]
    assert "the line of the batch cannot be read (ZeroDivisionError)" in error


answers = st.one_of(
    *(odd_in(one).map(json.dumps) for one in (BATCH, LIST, FILE))
) | st.sampled_from(
    ["[" * 100_000, '{"id": "b", "x": ' + "1" * 5_000 + "}", '"x"', "null", "[1]", ""]
)


@examples(30, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=answers, call=st.sampled_from(["look", "find", "create"]))
def test_an_odd_answer_of_a_provider_is_an_error_of_this_library(body: str, call: str) -> None:
    with AnyServer(body=body.encode()) as server:
        api = EndpointBatches(EndpointTransport("m", server.address + "/v1", "a-key"))
        try:
            state = getattr(api, call)("file-1")
        except ModelError:
            return
        finally:
            api.close()
    if state is not None:
        json.dumps(state.batch_id + state.status + state.problem, ensure_ascii=False).encode()
        assert 0 <= state.answered < 2**40


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("fields", "words"), [({}, "done"), ({"output_file_id": "\ud83d"}, "no id of a file")]
)
def test_an_odd_state_leaves_a_batch_that_can_be_collected(
    tmp_path: Path, fields: dict[str, str], words: str
) -> None:
    odd = json.dumps({"id": "batch-1", "status": "\ud83d", **fields}).encode()
    with FakeLLM() as llm, BatchServer(llm, statuses=["completed"]) as provider:
        batch = submit(provider, pairs(2), tmp_path / "batch", patience=0.001)
        provider.faults.append((LOOK, odd))
        with pytest.raises(PersonaInferError, match=words):
            collect(batch, wait=False)
        assert len(collect(batch)) == 2


@pytest.mark.parametrize("name", ["gs%3A%2F%2Fbucket%2Ffile", "file/part", "x" * 1500])
def test_the_id_of_a_file_may_be_a_quoted_address(name: str) -> None:
    body = json.dumps({**BATCH, "output_file_id": name}).encode()
    with AnyServer(body=body) as server:
        api = EndpointBatches(EndpointTransport("m", f"{server.address}/v1", "a-key"))
        assert api.look("b1").output_file_id == name


@pytest.mark.heavy
@pytest.mark.parametrize("charset", ["punycode", "bz2", "undefined", "hex", "idna", "nonsense"])
def test_no_codec_that_a_header_names_reads_an_answer(charset: str) -> None:
    """Punycode takes a time that grows with the square of the length: 12 s for these bytes."""
    headers = {"Content-Type": f"text/plain; charset={charset}"}
    body = b"a" * 200_000 + b"-" + b"b" * 200_000
    with AnyServer(400, headers, body) as server:
        api = EndpointBatches(EndpointTransport("m", f"{server.address}/v1", "a-key"))
        with pytest.raises(ModelError, match="aaaa"):
            api.look("b1")


@pytest.mark.parametrize("name", ["\ud800", "x" * 3000, "..", "a/../b", "b1?x", "b\n1", "\0"])
def test_an_id_that_fits_into_no_file_and_no_address_is_an_error(name: str) -> None:
    body = json.dumps({"id": name, "status": "completed"}).encode()
    with AnyServer(body=body) as server:
        api = EndpointBatches(EndpointTransport("m", f"{server.address}/v1", "a-key"))
        with pytest.raises(ModelError, match="not a batch"):
            api.look("b1")


def test_a_list_of_batches_that_goes_round_in_a_circle_ends() -> None:
    body = json.dumps({**LIST, "has_more": True}).encode()
    with AnyServer(body=body) as server:
        api = EndpointBatches(EndpointTransport("m", f"{server.address}/v1", "a-key"))
        assert api.find("another") is None
    assert len(server.asked) == 2


@pytest.mark.heavy
def test_headers_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """`103 Early Hints` may come any number of times before the headers of an answer."""
    monkeypatch.setattr(provider_module, "_TIMEOUT", 0.3)

    def flood(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            while True:
                connection.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 10)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=flood, args=(server,), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        api = EndpointBatches(EndpointTransport("m", address, "a-key"))
        with pytest.raises(TransportError, match=r"not whole within 0\.3 s"):
            api.look("b1")
        api.close()
