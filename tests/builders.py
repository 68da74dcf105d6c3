"""Rows, tables and calls that several tests build alike."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
from hypothesis import settings

import personainfer as pi
from personainfer.batch.job_folder import PersonaBatch
from personainfer.data import read_preferences
from personainfer.exceptions import PersonaInferError
from personainfer.llm import client, litellm_transport
from personainfer.llm.litellm_transport import LiteLLMTransport
from personainfer.local.weights import find_weights
from personainfer.records import Message, Preference

from .batch_server import BatchServer

# A test with it reaches its endpoint directly, and in a second run by litellm: the promises are the same.
each_way = pytest.mark.usefixtures("way")
WAYS = ("directly", pytest.param("by litellm", marks=pytest.mark.heavy))

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pairs(count: int) -> list[dict[str, str]]:
    """Distinct preference pairs."""
    return [
        {
            "prompt": f"Question {n}?",
            "chosen": f"Short answer {n}.",
            "rejected": f"Long answer {n}…",
        }
        for n in range(count)
    ]


@contextmanager
def reached(way: str) -> Iterator[None]:
    """Have each `LLM` with an `api_base` reach it in this way, one of `WAYS`."""

    def by_litellm(
        model: str, api_base: str, api_key: str | None = None, *, headers: Any = None, **_: Any
    ) -> LiteLLMTransport:
        key = api_key or "none-is-needed"
        return LiteLLMTransport(f"openai/{model}", api_base, key, headers=headers)

    with pytest.MonkeyPatch.context() as patch:
        if way == "by litellm":
            litellm_transport._import_litellm()  # it takes seconds
            patch.setattr(client, "EndpointTransport", by_litellm)
        yield


def examples(count: int, **options: Any) -> settings:
    """Draw so many examples in the whole suite, and as much fewer in the light one as other tests do."""
    drawn = settings.get_profile("whole").max_examples
    share = settings().max_examples / drawn
    return settings(max_examples=math.ceil(count * share), **options)


# A preference, and spellings of it in data.
PAIR = Preference(prompt="q", chosen="a", rejected="b")
EXPLICIT = {"prompt": "q", "chosen": "a", "rejected": "b"}
USER = {"role": "user", "content": "q"}


def say(content: object, role: str = "assistant", **more: object) -> dict[str, object]:
    """A turn of a conversation."""
    return {"role": role, "content": content, **more}


def read(*rows: dict[str, Any], **options: Any) -> list[Preference | str]:
    """The preferences that rows are read as; of a row that is refused, the reason."""
    found = read_preferences(list(rows), **options)
    return [row.preference or str(row.error) for row in found]


def small_model(target: Path, chat_template: str | None) -> Path:
    """SmolLM2-135M with another chat template of at most 368 bytes, or with none.

    A comment fills the template up, so that nothing else in the file moves.
    """
    data = find_weights("local:smollm2").path().read_bytes()
    key = b"tokenizer.chat_template"
    start = data.index(key) + len(key) + 4  # the kind of its value
    length = int.from_bytes(data[start : start + 8], "little")
    if chat_template is None:
        target.write_bytes(data.replace(key, key.upper(), 1))
        return target
    text = chat_template.encode()
    text += b"{#" + b"x" * (length - len(text) - 4) + b"#}"
    assert len(text) == length
    target.write_bytes(data[: start + 8] + text + data[start + 8 + length :])
    return target


def shared(name: str) -> Path:
    """A file of real data beside the project, or a skip that says so."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"no real data here: {name} is not beside the project")
    return path


BRIEF = pi.Persona(trait="pressed for time", preference="short answers")


CURIOUS = pi.Persona(trait="curious", preference="long answers", flags=("ungrammatical",))


CHAT = (
    Message(role="system", content="Be kind."),
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hi."),
    Message(role="user", content="How are you?"),
)


def row(n: int, **fields: Any) -> pi.PersonaRow:
    pair = {"prompt": f"Question {n}?", "chosen": "Short.", "rejected": "Long.", "id": f"r{n}"}
    values = {"chosen": BRIEF, "rejected": CURIOUS, "preference": pi.Preference(**pair), **fields}
    return pi.PersonaRow(n, **values)


def table(rows: int = 3) -> pi.PersonaTable:
    return pi.PersonaTable([row(n) for n in range(rows)])


def repeated(rows: int = 400) -> pi.PersonaTable:
    """Each prompt four times, in other white space and case."""
    spelt = ("Question {}?", " Question  {}? ", "question {}?", "QUESTION {}?")
    made = [
        row(
            n,
            preference=pi.Preference(
                prompt=spelt[n % 4].format(n // 4), chosen=f"A {n}", rejected="B", id=f"r{n}"
            ),
        )
        for n in range(rows)
    ]
    return pi.PersonaTable(made)


def until(happened: Callable[[], bool], seconds: float = 90.0) -> None:
    """Poll; fail at the deadline."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:g} s")
        time.sleep(0.001)


def submit(provider: BatchServer, data: object, path: Path, **options: Any) -> PersonaBatch:
    return pi.submit_batch(data, "fake", path, api_base=provider.api_base, **options)


def collect(batch: PersonaBatch | Path | str, **options: Any) -> pi.PersonaTable:
    """As a user who gives the address of a folder's batch again."""
    folder = batch.path if isinstance(batch, PersonaBatch) else batch
    with suppress(PersonaInferError):  # collect_batch tells what is wrong with the folder
        options.setdefault("api_base", PersonaBatch.load(folder).llm_options["api_base"])
    return pi.collect_batch(batch, poll=0.001, **options)


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


OPTIONS: dict[str, Any] = {
    "sides": "chosen",
    "protocol": "separate",
    "exemplars": "none",
    "rows_per_call": 1,  # the only value
    "columns": {"prompt": "question"},
    "on_error": "drop",
    "progress": False,
    "api_base": "http://127.0.0.1:9/v1",
    "api_key": "key",
    "temperature": 0.5,
    "max_tokens": 100,
    "seed": 3,
    "max_concurrency": 4,
    "rpm": 60,
    "tpm": 10_000,
    "timeout": 5.0,
    "max_attempts": 2,
    "budget": 1.0,
    "cache": True,
}


MODEL = "openai/gpt-4o-mini"


class Asked(NamedTuple):
    """A request that came to a server, whatever it was."""

    method: str
    path: str
    headers: Mapping[str, str]  # their names in lower case
    body: bytes


class _ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 128


class AnyServer:
    """A server on loopback that answers every request alike, and keeps what was asked."""

    def __init__(
        self,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"{}",
        *,
        seconds: float = 0.0,  # between two bytes of the body
        hangs_up: bool = False,  # after each answer, without a header that says so
    ) -> None:
        self.asked: list[Asked] = []
        self.seconds = seconds
        self.hangs_up = hangs_up
        self.answer = (status, {"Content-Type": "application/json", **(headers or {})}, body)
        self._server = _ManyAtOnce(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        kept = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                kept.asked.append(Asked(self.command, self.path, headers, body))
                status, sent, content = kept.answer
                self.send_response(status)
                for name, value in {**sent, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                step = 1 if kept.seconds else max(len(content), 1)
                with suppress(ConnectionError):  # of a client that reads no further
                    for start in range(0, len(content), step):
                        self.wfile.write(content[start : start + step])
                        time.sleep(kept.seconds)
                self.close_connection |= kept.hangs_up

            def do_GET(self) -> None:
                self.do_POST()

            def do_CONNECT(self) -> None:  # of a client that takes it for a proxy
                self.do_POST()

            def handle(self) -> None:
                with suppress(ConnectionError):
                    super().handle()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
