"""A model that answers at once: OpenAI's chat completions on loopback, always the same two personas.

It is lean, so that what is measured is its client: about 10,000 replies a second on one core.
`python benchmarks/server.py [--latency 0.05]` prints its api_base and serves until stdin closes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PERSONAS = {
    "person_1": {
        "evidence": "three days and one number, nothing to weigh up",
        "trait": "short of time and easily put off by long plans",
        "preference": "a fixed routine that works from the first evening",
    },
    "person_2": {
        "evidence": "reasons and background, several ways to go on",
        "trait": "inquisitive and used to thinking for oneself",
        "preference": "causes and background that make a decision possible",
    },
}
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def _http(message: dict[str, object], finish: str) -> bytes:
    """A whole HTTP response that holds one completion."""
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    reply = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1_700_000_000}
    reply |= {"model": "fake", "choices": [choice], "usage": usage}
    return _ok(json.dumps(reply).encode())


def _ok(body: bytes) -> bytes:
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


_TEXT = json.dumps(PERSONAS)
_COMPLETION = _http({"role": "assistant", "content": _TEXT, "refusal": None}, "stop")
_MODELS = _ok(b'{"object": "list", "data": [{"id": "fake", "object": "model"}]}')


def _tool_call(body: bytes) -> bytes:
    """The same reply as the arguments of the function that the request brings."""
    name = json.loads(body)["tools"][0]["function"]["name"]
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": _TEXT},
    }
    return _http({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")


class Chat(asyncio.Protocol):
    """One connection; a client sends its next request after the reply."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.loop = asyncio.get_running_loop()
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.buffer, 0, end)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < stop:
                return
            body, get = self.buffer[end + 4 : stop], self.buffer.startswith(b"GET")
            self.buffer = self.buffer[stop:]
            if get:
                self.transport.write(_MODELS)
                continue
            reply = _tool_call(body) if b'"tools"' in body else _COMPLETION
            if self.latency:
                self.loop.call_later(self.latency, self.transport.write, reply)
            else:
                self.transport.write(reply)


async def serve(latency: float) -> None:
    """Serve until stdin closes."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Chat(latency), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def running(latency: float = 0.0) -> Iterator[str]:
    """The server in a process of its own; yields its api_base."""
    command = [sys.executable, __file__, "--latency", str(latency)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    # epoll waits whole milliseconds; select does not, and a latency of 50 ms should be one of 50 ms.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(serve(parser.parse_args().latency))
