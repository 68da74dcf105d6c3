"""Connections that are kept for further requests."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

import personainfer as pi


def answer(text: str) -> bytes:
    reply = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    body = json.dumps(reply).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def read_question(lines: Any) -> str | None:
    """Return the text of the next request on a connection; None: there is none."""
    size = 0
    while line := lines.readline().strip():
        if line.lower().startswith(b"content-length"):
            size = int(line.split(b":")[1])
    return str(json.loads(lines.read(size))["messages"][-1]["content"]) if size else None


@pytest.mark.parametrize(
    "late",
    [answer("stale"), b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n"],
    ids=["a second answer", "a time-out"],
)
def test_what_comes_unasked_on_a_kept_connection_is_no_reply_to_the_next_request(
    late: bytes,
) -> None:
    """A gateway may answer twice; a balancer answers an idle connection with 408."""
    came = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while (question := read_question(lines)) is not None:
                connection.sendall(answer(question))
                time.sleep(0.03)  # or it would come together with the answer
                connection.sendall(late)
                came.set()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    def questions() -> Iterator[tuple[int, list[pi.Request]]]:
        for number in range(2):
            yield number, [pi.Request([pi.Message(role="user", content=f"row {number}")])]
            came.wait(10)
            time.sleep(0.03)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        base = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        llm = pi.LLM("m", api_base=base, cache=False, max_concurrency=1, max_attempts=1)
        replies = [one.text for _, [one] in llm.run(questions())]
    assert replies == ["row 0", "row 1"]
