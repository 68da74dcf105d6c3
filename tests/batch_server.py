"""A loopback provider with a batch API: /v1/files and /v1/batches, in front of a `FakeLLM`.

Each line of a batch is sent to the FakeLLM as a request of its own when the batch ends, so that what
was uploaded is what a model answers; single calls pass through. What comes of a batch is scripted.
`calls` holds every request to the provider as "METHOD /path", ids left out.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from personainfer.testing import FakeLLM

Lines = list[bytes]
Json = dict[str, Any]

UPLOAD, CREATE = "POST /v1/files", "POST /v1/batches"
LOOK, LIST = "GET /v1/batches/*", "GET /v1/batches"
FETCH = "GET /v1/files/*/content"
ASK = "POST /v1/chat/completions"

_ID = re.compile(r"(file|batch)-\d+")


@dataclass
class Batch:
    """One batch, and the statuses that looks at it will see; the last one stays."""

    id: str
    file_id: str
    statuses: list[str]
    output: Lines = field(default_factory=list)
    errors: Lines = field(default_factory=list)
    ran: bool = False
    created: int | None = 1


@dataclass(eq=False)
class BatchServer:
    """A context manager. `faults` are met in order: ("POST /v1/batches", 500) fails the next such
    request with that status; the status 0 does what was asked for and loses the answer, 1 loses the
    second half of it, and bytes are answered instead."""

    llm: FakeLLM
    _: KW_ONLY
    statuses: list[str] = field(default_factory=lambda: ["validating", "in_progress", "completed"])
    answered: int | None = None  # how many requests of a batch, when it does not end by itself
    edit: Callable[[Lines], Lines] = list  # what becomes of the lines of an output file
    refuse: Callable[[Json], bool] = lambda body: False  # which requests fail, by their body
    problem: str = ""  # why a batch is refused as a whole
    faults: list[tuple[str, int | bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of a fault
    file_statuses: list[str] = field(
        default_factory=list
    )  # of an uploaded file, before "processed"
    late: int = 0  # looks at a completed batch before its files have names
    created: int | None = 1  # when files are uploaded
    spare: bool = False  # answers hold no more than an id and a status
    api_key: str | None = None
    calls: list[str] = field(default_factory=list, init=False)
    tokens: set[str] = field(default_factory=set, init=False)  # what clients sent as their key
    headers_of: list[tuple[str, Message]] = field(default_factory=list, init=False)  # of calls
    files: dict[str, bytes] = field(default_factory=dict, init=False)
    batches: dict[str, Batch] = field(default_factory=dict, init=False)

    @property
    def api_base(self) -> str:
        """What a client takes as its base URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def lines(self) -> list[Json]:
        """The requests of all batches, in order."""
        return [
            json.loads(line)
            for batch in self.batches.values()
            for line in self.files[batch.file_id].splitlines()
        ]

    def count(self, call: str) -> int:
        """How often this was requested."""
        return self.calls.count(call)

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.handle(self)

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_: object) -> None: ...

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0].replace("/openai/", "/v1/")  # Azure's
        key = request.headers.get("Authorization") or request.headers.get("api-key") or ""
        call = f"{request.command} {_ID.sub('*', path)}"
        with self._lock:
            self.calls.append(call)
            self.tokens.add(key.removeprefix("Bearer "))
            self.headers_of.append((call, request.headers))
            fault = self.faults.pop(0)[1] if self.faults and self.faults[0][0] == call else None
            if isinstance(fault, int) and fault > 1:
                status, said = fault, _dumps({"error": {"message": f"scripted {fault}"}})
            elif self.api_key and not key.endswith(self.api_key):
                status, said = 401, _dumps({"error": {"message": f"Incorrect API key: {key}"}})
            else:
                status, said = self._answer(call, path, body, request.headers.get_content_type())
        if isinstance(fault, bytes):
            said = fault
        if fault in (0, 1):
            request.close_connection = True
        if fault == 0:
            return
        request.send_response(status)
        for name, value in self.headers.items() if fault else ():
            request.send_header(name, value)
        kind = "application/octet-stream" if call.endswith("/content") else "application/json"
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(said)))
        request.end_headers()
        request.wfile.write(said[: len(said) // 2] if fault == 1 else said)

    def _answer(self, call: str, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        name = path.split("/")[3] if path.count("/") > 2 else ""
        if call == "POST /v1/chat/completions":
            return self._ask(body)
        if call == "GET /v1/models":
            names = self.llm.known_models or [self.llm.model]
            return 200, _dumps({"object": "list", "data": [{"id": name} for name in names]})
        if call == "POST /v1/files":
            assert kind == "multipart/form-data"
            name = f"file-{len(self.files)}"
            self.files[name] = _uploaded(body)
            return 200, _dumps(self._file(name))
        if call == "POST /v1/batches":
            return self._create(json.loads(body))
        if call == "GET /v1/batches":
            newest = [self._shown(batch) for batch in reversed(self.batches.values())]
            return 200, _dumps({"object": "list", "data": newest, "has_more": False})
        if call == "GET /v1/batches/*" and name in self.batches:
            return 200, _dumps(self._look(self.batches[name]))
        if call == "GET /v1/files/*" and name in self.files:
            return 200, _dumps(self._file(name))
        if call == "GET /v1/files/*/content" and name in self.files:
            return 200, self.files[name]
        return 404, _dumps({"error": {"message": f"no {path} here"}})

    def _file(self, name: str) -> Json:
        status = self.file_statuses.pop(0) if self.file_statuses else "processed"
        size = len(self.files[name])
        shown = {"id": name, "object": "file", "bytes": size, "status": status}
        shown |= {"created_at": self.created}
        return shown | {"filename": f"{name}.jsonl", "purpose": "batch"}

    def _create(self, asked: Json) -> tuple[int, bytes]:
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        names = {line["custom_id"] for line in lines}
        fits = all(line["url"] == asked["endpoint"] and line["method"] == "POST" for line in lines)
        if not lines or len(names) < len(lines) or not fits or asked["completion_window"] != "24h":
            return 400, _dumps({"error": {"message": "this file is not a batch"}})
        batch = Batch(f"batch-{len(self.batches)}", asked["input_file_id"], list(self.statuses))
        self.batches[batch.id] = batch
        return 200, _dumps(self._shown(batch))

    def _look(self, batch: Batch) -> Json:
        if len(batch.statuses) > 1:
            batch.statuses.pop(0)
        ends = ["completed", "expired", "cancelled"] + ["failed"] * (self.answered is not None)
        if batch.statuses[0] in ends and not batch.ran:
            self._run(batch)
        shown = self._shown(batch)
        self.late -= batch.ran
        return shown

    def _run(self, batch: Batch) -> None:
        batch.ran = True
        lines = self.files[batch.file_id].splitlines()
        last = len(lines) if self.answered is None else self.answered
        for number, line in enumerate(map(json.loads, lines)):
            answer: Json = {"id": f"line-{number}", "custom_id": line["custom_id"], "error": None}
            if number >= last:
                error = {"code": "batch_expired", "message": "This request could not be executed."}
                batch.errors.append(_dumps(answer | {"response": None, "error": error}))
            elif self.refuse(line["body"]):
                reply = {"error": {"message": "scripted refusal", "code": "bad_request"}}
                batch.errors.append(_dumps(answer | {"response": _response(400, reply)}))
            else:
                status, said = self._ask(_dumps(line["body"]))
                reply = json.loads(said)
                batch.output.append(_dumps(answer | {"response": _response(status, reply)}))
        batch.output = self.edit(batch.output)

    def _shown(self, batch: Batch) -> Json:
        shown: Json = {"id": batch.id, "status": batch.statuses[0]}
        for kind, lines in (("output", batch.output), ("error", batch.errors)):
            if lines and self.late <= 0:
                shown[f"{kind}_file_id"] = self._kept(batch, kind, lines)
        if self.spare:
            return shown
        total = len(self.files[batch.file_id].splitlines())
        counts = {"total": total, "completed": len(batch.output), "failed": len(batch.errors)}
        shown |= {"object": "batch", "endpoint": "/v1/chat/completions"}
        shown |= {"input_file_id": batch.file_id, "completion_window": "24h"}
        shown |= {"request_counts": counts, "created_at": batch.created}
        if batch.statuses[0] == "failed":
            problem = {"code": "refused", "message": self.problem, "line": None, "param": None}
            shown["errors"] = {"object": "list", "data": [problem]}
        return shown

    def _kept(self, batch: Batch, kind: str, lines: Lines) -> str:
        number = int(batch.id.removeprefix("batch-"))
        name = f"file-{9000 + 2 * number + (kind == 'error')}"
        self.files[name] = b"\n".join(lines) + b"\n"
        return name

    def _ask(self, body: bytes) -> tuple[int, bytes]:
        request = urllib.request.Request(f"{self.llm.api_base}/chat/completions", body)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def _response(status: int, body: Json) -> Json:
    return {"status_code": status, "request_id": "req-1", "body": body}


def _uploaded(body: bytes) -> bytes:
    """The file in a multipart body."""
    boundary = body.split(b"\r\n", 1)[0]
    parts = [part for part in body.split(boundary) if b'name="file"' in part]
    return parts[0].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")


def _dumps(value: Json) -> bytes:
    return json.dumps(value).encode()
