"""A fake language model behind a real HTTP server, to test code that calls one.

    with FakeLLM(faults=[Fault.rate_limit(1), Fault.reset()]) as llm:
        table = infer_personas(df, model="fake", api_base=llm.api_base)
        assert llm.calls == len(df) + 2

It serves OpenAI's chat completions on loopback. A request with a JSON schema gets deterministic words that
fit the schema; requests fail as scripted. It does not stream. `python -m personainfer.testing` serves it from
a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import random
import re
import signal
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from .faults import NO_HEADERS, Fault, Reply, compact_json, function_to_call, texts_of

if TYPE_CHECKING:
    from aiohttp import web

_VOCABULARY = """active brief broad calm candid careful clear concise concrete critical direct
curious detailed exact factual fair firm focused formal frank friendly gentle keen lively logical
neat patient plain practical precise quick quiet relaxed reflective sincere steady terse thorough"""
_WORDS = _VOCABULARY.split()
_COMPLETIONS = re.compile(r"(/v1|/openai/deployments/[^/]+)/chat/completions")  # OpenAI's, Azure's

_Answer = str | bytes | dict[str, Any] | Reply | Fault | None


@dataclass(eq=False)
class FakeLLM:
    """An OpenAI-compatible server on 127.0.0.1, in a thread of its own; a context manager.

    Args:
        reply: text, a dict (sent as JSON), a `Reply`, a `Fault`, the bytes of a whole HTTP body (the
            fastest), or a function of the request's body that returns one of these. None: words that fit the
            request's JSON schema, and depend only on the last user message. If no reply can be made (the
            function raises, or the schema asks for a pattern), the request gets a 500, and the reason is
            logged.
        latency: seconds before each reply.
        faults: with `fault_rate` 0, the first requests get one each, in order. Requests that are refused with
            a 400, 401 or 404 get none.
        fault_rate: above 0, each request gets one of `faults` at random, with this probability.
        seed: seeds these random faults.
        model: the model that `/v1/models` lists.
        keep: how many of the first requests `requests`, `paths` and `headers` keep.
        api_key: a request without this key gets a 401; None: no key is needed.
        known_models: a request for another model gets a 404; None: every model is known.
        port: the port; 0: the system chooses one.

    Attributes:
        calls: how many completion requests came.
        faulted: how many of them got a fault, or a 500 because no reply could be made.
        repeats: how many of them had the same messages as an earlier one.
        in_flight: how many completion requests have no whole reply yet.
        in_flight_peak: the most of these at the same time.
        requests: the bodies of the first completion requests, as parsed JSON.
        paths: the paths of the first completion requests, with their queries.
        headers: the headers of the first completion requests.

    Raises:
        ValueError: `fault_rate` is above 0, and `faults` is empty.
    """

    reply: _Answer | Callable[[dict[str, Any]], _Answer] = None
    _: KW_ONLY
    latency: float = 0.0
    faults: Sequence[Fault] = ()
    fault_rate: float = 0.0
    seed: int = 0
    model: str = "fake"
    keep: int = 10_000
    api_key: str | None = None
    known_models: Sequence[str] | None = None
    port: int = 0
    calls: int = field(default=0, init=False)
    faulted: int = field(default=0, init=False)
    repeats: int = field(default=0, init=False)
    in_flight: int = field(default=0, init=False)
    in_flight_peak: int = field(default=0, init=False)
    requests: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)
    paths: list[str] = field(default_factory=list, init=False, repr=False)
    headers: list[Mapping[str, str]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.fault_rate and not self.faults:
            raise ValueError("fault_rate needs faults to draw from")
        self._script, self._random = list(self.faults), random.Random(self.seed)
        self._seen: set[int] = set()
        self._thread: threading.Thread | None = None

    @property
    def api_base(self) -> str:
        """The base URL for a client, such as http://127.0.0.1:5000/v1.

        Raises:
            RuntimeError: the server does not run.
        """
        if self._thread is None:
            raise RuntimeError("FakeLLM does not run: use it in a with statement, or call start().")
        return f"http://127.0.0.1:{self._bound}/v1"

    @property
    def stats(self) -> dict[str, int]:
        """Counts of the completion requests so far, as `GET /stats` sends them.

        "calls", "faulted", "repeats" and "in_flight_peak" are the fields of these names. "distinct" is the
        number of different conversations.
        """
        names = ("calls", "faulted", "repeats", "in_flight_peak")
        return {name: getattr(self, name) for name in names} | {"distinct": len(self._seen)}

    def start(self) -> Self:
        """Serve from a background thread, and return this server once the socket listens.

        Nothing changes if it runs already.

        Raises:
            OSError: the port is taken.
            OverflowError: no port has this number.
        """
        if self._thread is None:
            bound: Future[int] = Future()
            thread = threading.Thread(target=lambda: asyncio.run(self._serve(bound)), daemon=True)
            thread.start()
            self._bound, self._thread = bound.result(), thread
        return self

    def stop(self, *_: object) -> None:
        """Drop the requests in progress, close every socket and end the thread. `start` may follow."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._thread = None

    __enter__, __exit__ = start, stop

    async def _serve(self, bound: Future[int]) -> None:
        from aiohttp import web

        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        # If a client goes away, its handler is cancelled, so that `in_flight` stays right.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.05)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self.port, backlog=4096).start()
            bound.set_result(runner.addresses[0][1])
            await self._stopping.wait()
        except (OSError, OverflowError) as error:
            bound.set_exception(error)
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST" or not _COMPLETIONS.fullmatch(request.path):
            models = [{"id": name, "object": "model"} for name in self.known_models or [self.model]]
            pages: dict[str, Any] = {"/v1/models": {"object": "list", "data": models}}
            pages |= {"/health": {"status": "ok"}, "/stats": self.stats}
            page = pages.get(request.path)
            return _send(compact_json(page).encode()) if page else _send(b"", status=404)
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight, self.in_flight_peak)
        try:
            return await self._complete(request)
        finally:
            self.in_flight -= 1

    async def _complete(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.content.read()
        if len(self.paths) < self.keep:
            self.paths.append(request.path_qs)
            self.headers.append(request.headers)
        body, headers, payload = self._record(raw), NO_HEADERS, b""
        key = request.headers.get("api-key") or request.headers.get("Authorization")
        fault = self._refuse(body, key)
        if body is not None and fault is None:
            fault = self._next_fault()
            if self.latency:
                await asyncio.sleep(self.latency)
            try:
                payload, headers, fault = self._answer(body, fault)
            # A fault of the reply function or the schema, not the client's.
            except Exception as error:
                logging.getLogger(__name__).exception("FakeLLM could not make a reply")
                fault = Fault.status(500, message=f"FakeLLM could not make a reply: {error!r}")
            self.faulted += fault is not None
        return await _fail(request, fault, payload, headers) if fault else _send(payload, headers)

    def _record(self, raw: bytes) -> dict[str, Any] | None:
        """Count a request, and return its body; None if it is no chat completion request."""
        self.calls += 1
        try:
            body: dict[str, Any] = json.loads(raw)
            key = hash((*(message["role"] for message in body["messages"]), *texts_of(body)))
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        self.repeats += key in self._seen
        self._seen.add(key)
        if len(self.requests) < self.keep:
            self.requests.append(body)
        return body

    def _refuse(self, body: dict[str, Any] | None, key: str | None) -> Fault | None:
        """Return the fault for a wrong key, an unknown model or a bad request; None if there is none."""
        if self.api_key and key not in (self.api_key, f"Bearer {self.api_key}"):
            return Fault.status(401, message="Incorrect API key provided.")
        if body is None or body.get("stream"):
            return Fault.status(400, message="Not a chat completion request, or one for a stream.")
        if self.known_models is not None and (name := body.get("model")) not in self.known_models:
            return Fault.status(404, message=f"The model `{name}` does not exist.")
        return None

    def _next_fault(self) -> Fault | None:
        """Return the fault for the next request; None: it gets none."""
        if not self.fault_rate:
            return self._script.pop(0) if self._script else None
        is_drawn = self._random.random() < self.fault_rate
        return self._random.choice(self._script) if is_drawn else None

    def _answer(
        self, body: dict[str, Any], fault: Fault | None
    ) -> tuple[bytes, Mapping[str, str], Fault | None]:
        """Return the HTTP body and the headers of a reply, and the fault that is left for `_fail`, if any."""
        answer = self.reply(body) if callable(self.reply) else self.reply
        if isinstance(answer, bytes) and fault is None:
            return answer, {}, None
        if isinstance(answer, Fault):
            fault = fault or answer
        schema = _schema(body)
        if answer is None or isinstance(answer, Fault | bytes):  # a fault cannot spoil bytes
            answer = _value(schema, "".join(texts_of(body, "user")[-1:]), schema)
        reply = answer if isinstance(answer, Reply) else Reply(answer)
        if fault is not None:
            reply = fault.spoil(reply, schema)
        return reply.render(body), reply.headers, fault


def _value(schema: Any, path: str, root: Any) -> Any:
    """Make a value that fits a JSON schema.

    Args:
        schema: the schema of a field; None: any word fits.
        path: seeds the choice: the user's message and the names of fields down to this one, joined by NUL.
        root: the schema of the whole reply, in which references are looked up.

    Raises:
        ValueError: a string has a pattern or a format.
    """
    draw = random.Random(path)  # a string gives the same seed in every process
    if schema is None:
        return draw.choice(_WORDS)
    # From here on, optional parts are left out: recursive types have to end.
    deep = path.count("\0") > 5
    schema = _resolve({} if schema is True else schema, root)
    if "const" in schema or "enum" in schema:
        return draw.choice(schema.get("enum") or [schema["const"]])
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return _value(min(options, key=lambda o: (o.get("type") == "null") != deep), path, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if kind == "object":
        fields = schema.get("properties", {})
        names = schema.get("required", ()) if deep else fields
        return {name: _value(fields.get(name, {}), f"{path}\0{name}", root) for name in names}
    if kind == "array":
        low, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        size = low if deep else max(low, min(schema.get("maxItems", low + 3), draw.randint(1, 3)))
        parts = first[:size] + [schema.get("items", {})] * (size - len(first))
        return [_value(part, f"{path}\0{index}", root) for index, part in enumerate(parts)]
    if kind == "integer":
        low = math.ceil(schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1))
        high = math.floor(schema.get("maximum", schema.get("exclusiveMaximum", low + 10) - 1))
        return draw.randint(min(low, high), high)
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10))
        low = low if low <= high else high - 10  # only the upper bound is given
        return float(low + (high - low) * draw.randint(1, 7) / 8)  # never on an excluded bound
    return _phrase(schema, draw) if kind == "string" else {"boolean": draw.random() < 0.5}.get(kind)


def _resolve(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    """Merge the schema with what its `$ref` and its `allOf` name."""
    own = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
    target = root
    for name in schema.get("$ref", "").split("/")[1:]:
        target = target[name]
    for part in [*schema.get("allOf", ()), *([target] if "$ref" in schema else ())]:
        own = _resolve(part, root) | own
    return own


def _phrase(schema: dict[str, Any], draw: random.Random) -> str:
    """Make words that fit the lengths of a schema. Raises ValueError if it has a pattern or a format."""
    if form := schema.get("pattern") or schema.get("format"):
        raise ValueError(f"no words are made for the pattern or format {form!r}: pass a reply")
    least, most = schema.get("minLength", 0), schema.get("maxLength", sys.maxsize)
    text = " ".join(draw.sample(_WORDS, 5) + draw.choices(_WORDS, k=least // 4))
    whole = text if len(text) <= most else text[: most + 1].rpartition(" ")[0]
    return whole if len(whole) >= max(least, 1) else text[:most].replace(" ", "-")


def _schema(body: Mapping[str, Any]) -> Any:
    """Find the JSON schema for the reply in a request, in the form of any provider; None if there is none."""
    form = body.get("response_format") or {}
    return (
        (form.get("json_schema") or {}).get("schema")  # OpenAI
        or form.get("schema")  # llama.cpp, as is the next
        or body.get("json_schema")
        or (function_to_call(body) or {}).get("parameters")
        or ({"properties": {"answer": {}}} if form.get("type") == "json_object" else None)
    )


def _send(body: bytes, headers: Mapping[str, str] = NO_HEADERS, status: int = 200) -> web.Response:
    """Make a response with a body of JSON."""
    from aiohttp import web

    # The type is a header, since aiohttp's `content_type` argument makes replies a tenth slower.
    headers = {"Content-Type": "application/json", **headers}
    return web.Response(body=body, status=status, headers=headers)


async def _fail(
    request: web.BaseRequest, fault: Fault, payload: bytes, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Send `payload` late, in part, or replaced by the fault's own body, as the fault says."""
    from aiohttp import web

    if fault.kind == "hang":
        await asyncio.sleep(fault.seconds)
    if fault.kind not in ("reset", "reset_mid_body", "slow_body"):
        body = payload if fault.body is None else fault.body
        return _send(body, {**headers, **fault.headers}, fault.code)
    response = web.StreamResponse(headers={**headers, "Content-Type": "application/json"})
    response.content_length, size = len(payload), -(-len(payload) // 10)
    if fault.kind != "reset":
        await response.prepare(request)
        for start in range(0, len(payload), size)[: 5 if fault.kind == "reset_mid_body" else 10]:
            await asyncio.sleep(fault.seconds / 10)
            await response.write(payload[start : start + size])
    if fault.kind != "slow_body" and request.transport is not None:
        # Closing without lingering sends a reset; an abort alone may end the stream in good order.
        sock, linger = request.transport.get_extra_info("socket"), struct.pack("ii", 1, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        request.transport.abort()
    return response


_FAULTS = (
    "the fault of one call, a method of Fault: reset, hang:5, status:503, rate_limit:1; repeatable"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the api_base, and serve until SIGTERM, Ctrl-C or the end of a pipe on standard input."""
    parser = argparse.ArgumentParser("python -m personainfer.testing", description=main.__doc__)
    parser.add_argument("--fault", dest="faults", action="append", default=[], help=_FAULTS)
    options = {"reply": str, "latency": float, "fault-rate": float, "seed": int, "port": int}
    for name, kind in (options | {"model": str, "api-key": str}).items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    named = [text.partition(":") for text in given.pop("faults")]
    try:
        faults = [
            getattr(Fault, name)(*([json.loads(arg)] if arg else [])) for name, _, arg in named
        ]
    except (AttributeError, TypeError, ValueError) as error:
        parser.error(f"--fault: {error}")
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(0))
    with FakeLLM(faults=faults, **given) as llm:
        print(llm.api_base, flush=True)
        if sys.stdin is not None and stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
            sys.stdin.read()  # until the process that started this one is gone
        else:  # a terminal would stop a background process that reads; an empty stdin ends at once
            threading.Event().wait()
