"""The embedded model: llama.cpp in this process, as an OpenAI-compatible server on loopback.

One server for each file of weights, started at the first request, once a process; it batches
continuously, and reads once what prompts have in common. It knows nothing of personas.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import re
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .batch_api import BatchAPI
from .exceptions import InvalidArgumentError, ReplyError, TransportError
from .records import Completion
from .slots import Slots
from .transports import EndpointTransport
from .weights import fast_form, is_bundled
from .wire import Json, response_format

__all__ = ["SLOTS", "EmbeddedTransport", "running_server"]

SLOTS = 8  # requests decoded together: more than the cores of a laptop gain from
_CONTEXT = 4096  # tokens a slot
# A small model answers with the exemplars' own words, and gives both sides the same: the DRY sampler
# makes a word less likely the longer the run is that it would repeat from anywhere in the prompt.
# Strong, from runs of one on: at 1.0 from two on, a fifth of the example pairs got one persona twice.
_UNREPEATING = {"dry_multiplier": 3.0, "dry_allowed_length": 1, "dry_penalty_last_n": _CONTEXT}
_KNOWN = frozenset(
    "$defs $ref additionalProperties anyOf const default description enum items maxItems maximum"
    " minItems minLength minimum pattern properties required title type".split()
)
_MOST = {"minimum": 10**6, "maximum": 10**6, "minItems": 100, "maxItems": 100, "minLength": 1}
_PLAIN_PATTERN = re.compile(r"\^((?!\(\?|\d{3})[^\\^$])*\$")
_SPINS = "GOMP_SPINCOUNT"  # how often a thread looks whether its wait is over before it sleeps
_COPY_TIMEOUT = 60.0  # seconds


class EmbeddedTransport(EndpointTransport):
    """A `.gguf` file, served in this process; nothing is started before the first request."""

    def __init__(self, weights: Path) -> None:
        super().__init__(model=weights.stem, api_base="", api_key="none")
        self._weights = weights
        # The port is another one each time; the weights are what a reply depends on.
        self.endpoint = f"llama.cpp:{weights.name}:{weights.stat().st_size}"

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """The schema with its patterns, as a grammar: a small model fills JSON with white space."""
        return response_format(schema, strict=False) | _UNREPEATING if schema else {}

    def batches(self) -> BatchAPI:
        """There is none to have."""
        raise InvalidArgumentError(
            "the embedded model has no batch API.", hint="Call infer_personas: it costs nothing."
        )

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """As of any endpoint, after the server is up, in the slot that has read most of the prompt."""
        server = await asyncio.to_thread(running_server, self._weights)
        self._base = server.api_base
        _, _, text = body.partition(b'"messages": [')
        start, _, _ = text.rpartition(b'{"role": "user"')
        slots = server.slots
        async with slots.lent(start, text) as slot:
            name, held = slots.copy_of(text)
            if slot.known < held:
                await self._copy(slot.number, "restore", name)
            answer: Completion | ReplyError
            try:
                answer = await self._complete_in(slot.number, body, timeout)
            except ReplyError as error:  # the prompt is read all the same
                answer = error
            if slots.is_awaited(start):
                name = slots.next_copy()
                made = await self._copy(slot.number, "save", name)
                slots.keep_copy(start, name if made else None)
        if isinstance(answer, ReplyError):
            raise answer
        return answer

    async def _complete_in(self, slot: int, body: bytes, timeout: float) -> Completion:
        fields = json.loads(body) | {"id_slot": slot}
        # Other models may have a template that lets them think first, which llama.cpp sees to by itself.
        if "response_format" in fields and is_bundled(self._weights):
            schema = fields["response_format"]["json_schema"]["schema"]
            if _is_known(schema):
                del fields["response_format"]
                fields["grammar"] = _grammar(schema)
        return await super().complete(json.dumps(fields).encode(), timeout)

    async def _copy(self, slot: int, action: str, name: str) -> bool:
        """Save what a slot has read, or let it have what another one read; costs time where it fails."""
        path, body = f"/../slots/{slot}?action={action}", json.dumps({"filename": name}).encode()
        with suppress(TransportError):
            status, _, _ = await self._post(path, body, _COPY_TIMEOUT)
            return status == 200
        return False


def _grammar(schema: Json) -> str:
    """A schema for llguidance: llama.cpp's own grammars look at every token of the vocabulary wherever
    the likeliest one does not fit, one slot after the other, while the other cores wait."""
    spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%llguidance {{}}\nstart: %json {json.dumps(schema | {'x-guidance': spaces})}"


def _is_known(schema: object, *, names: bool = False) -> bool:
    """Whether llguidance knows all of a schema: one that it does not know would hold nobody to it.

    With `names` the keys of this level are those of properties or definitions.
    """
    if isinstance(schema, list):
        return all(map(_is_known, schema))
    if not isinstance(schema, dict):
        return True
    return (names or (_KNOWN.issuperset(schema) and _is_plain(schema))) and all(
        _is_known(part, names=not names and key in ("properties", "$defs"))
        for key, part in schema.items()
        if names or key not in ("enum", "const", "default", "required")
    )


def _is_plain(schema: Json) -> bool:
    """Whether it asks for nothing that llguidance gives up on: large numbers, contradictions, and in
    patterns what looks around."""
    return (
        all(abs(schema.get(keyword, 0)) <= most for keyword, most in _MOST.items())
        and schema.get("minimum", 0) <= schema.get("maximum", _MOST["maximum"])
        and schema.get("minItems", 0) <= schema.get("maxItems", _MOST["maxItems"])
        and not {"const", "enum"}.issubset(schema)
        and bool(_PLAIN_PATTERN.fullmatch(schema.get("pattern", "^$")))
    )


def _cores() -> int:
    """Those that this process may run on: threads that share a core wait for each other."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _engine() -> Any:
    """llama.cpp, loaded so that its threads sleep soon where they wait for each other.

    They are OpenMP's, which spin by default. Beside other work on the same cores, say another process's
    inference, each spins while the one that it waits for has no core: decoding ran at under half its speed.
    The setting is read once, when the library is loaded, and is meant for no other; a user's own stands.
    """
    ours = _SPINS not in os.environ and "OMP_WAIT_POLICY" not in os.environ
    if ours:
        os.environ[_SPINS] = "1000"
    try:
        import xllamacpp
    finally:
        if ours:
            os.environ.pop(_SPINS, None)
    return xllamacpp


class _Server:
    """A running llama.cpp server, and who may use which of its slots."""

    def __init__(self, weights: Path) -> None:
        xllamacpp = _engine()
        self._folder = tempfile.TemporaryDirectory(prefix="personainfer-slots-")
        params = xllamacpp.CommonParams()
        params.model.path = str(fast_form(weights))
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_parallel = SLOTS
        params.n_ctx = _CONTEXT * SLOTS
        params.n_threads_http = SLOTS + 2
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = _cores()
            cpu.poll = 0  # waiting threads sleep: spinning ones starve whatever else runs
        devices = {device["type"] for device in xllamacpp.get_device_info()}
        if devices == {xllamacpp.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU}:
            # There flash attention takes one query after the other.
            off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.flash_attn_type = off
        params.kv_unified = False  # a third faster here than one store for all slots
        params.cache_ram_mib = 0
        params.cache_idle_slots = False
        params.n_ctx_checkpoints = 0
        params.slot_save_path = self._folder.name + "/"
        params.warmup = False
        params.ui = False
        params.verbosity = -1
        self.server = xllamacpp.Server(params)
        self.api_base = f"{self.server.listening_address}/v1"
        self.slots = Slots(SLOTS, _cores())


_lock = threading.Lock()
_servers: dict[tuple[int, Path], _Server] = {}


def running_server(weights: Path) -> _Server:
    """This process's server for these weights, started if need be."""
    with _lock:
        key = (os.getpid(), weights)
        if key not in _servers:
            _servers[key] = _Server(weights)
        return _servers[key]


@atexit.register
def _stop() -> None:
    """Stop the servers while their threads still can; a forked child does not own them."""
    for pid, weights in list(_servers):
        if pid == os.getpid():
            del _servers[pid, weights]
