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
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..exceptions import ReplyError, TransportError
from ..records import Completion
from .openai_protocol import Json, response_format
from .transports import EndpointTransport
from .weights import fast_form, is_bundled

__all__ = [
    "SLOTS",
    "EmbeddedTransport",
    "Slot",
    "Slots",
    "running_server",
]

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


# Which request goes to which slot of the server


_WORTH_A_COPY = 1000  # bytes that many requests begin with: below, reading them again is as fast
_COPIES = 2  # starts that are kept: as large as what the slot holds


@dataclass(eq=False, slots=True)
class Slot:
    """A place of the server. Of `text`, which it is reading, it held `known` bytes before."""

    number: int
    text: bytes = b""
    known: int = 0
    busy: bool = False


@dataclass(eq=False, slots=True)
class _Waiter:
    start: bytes
    text: bytes
    granted: asyncio.Future[Slot] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Slots:
    """Lends the slots. `cores` is how many requests at once keep the machine busy.

    Requests with the same text, samples of one prompt, follow each other to the same slot, before
    others that asked earlier. Requests that have their `start` in common wait until one of them has read
    it, and `copy_of` names the copy that the others take into their slots.
    """

    def __init__(self, count: int, cores: int) -> None:
        self._slots = [Slot(number) for number in range(count)]  # the one used last comes last
        self._cores = cores
        self._waiting: list[_Waiter] = []
        self._copies: dict[bytes, str | None] = {}
        self._copied = 0

    @asynccontextmanager
    async def lent(self, start: bytes, text: bytes) -> AsyncIterator[Slot]:
        """The slot for a text that begins with `start`, as soon as it may have one."""
        slot = await self._granted(_Waiter(start, text))
        try:
            yield slot
        except BaseException:
            slot.text = b""  # nobody knows how much of it was read
            raise
        finally:
            self._give_back(slot)

    def copy_of(self, text: bytes) -> tuple[str, int]:
        """The name of the copy that holds most of a text's start, and how many bytes it holds; or "", 0."""
        copies = [(name, len(s)) for s, name in self._copies.items() if name and text.startswith(s)]
        return max(copies, key=lambda copy: copy[1], default=("", 0))

    def is_awaited(self, start: bytes) -> bool:
        """Whether a copy is worth making: there is none, and others begin alike."""
        return (
            len(start) >= _WORTH_A_COPY
            and start not in self._copies
            and any(waiter.start == start for waiter in self._waiting)
        )

    def next_copy(self) -> str:
        """The name for another copy; the oldest one's is used again."""
        self._copied += 1
        return f"start-{self._copied % _COPIES}"

    def keep_copy(self, start: bytes, name: str | None) -> None:
        """A copy was made under this name; None: it could not be made, and each slot reads for itself."""
        self._copies = {s: other for s, other in self._copies.items() if other != name or not name}
        self._copies[start] = name

    async def _granted(self, waiter: _Waiter) -> Slot:
        self._waiting.append(waiter)
        asyncio.get_running_loop().call_soon(self._lend)  # once those are here that come together
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.granted.cancelled():  # a slot came at the same moment, and read nothing
                slot = waiter.granted.result()
                slot.text = b""
                self._give_back(slot)
            raise

    def _give_back(self, slot: Slot) -> None:
        slot.busy = False
        self._slots.remove(slot)
        self._slots.append(slot)
        self._lend()

    def _lend(self) -> None:
        self._waiting = [waiter for waiter in self._waiting if not waiter.granted.done()]  # left
        for slot in self._free():
            again = [waiter for waiter in self._waiting if waiter.text == slot.text]
            if again:
                self._grant(slot, again[0])
        for may_begin in (self._is_new, self._keeps_busy):
            for waiter in list(self._waiting):
                free = self._free()
                if free and may_begin(waiter):
                    self._grant(max(free, key=lambda slot: _common(slot.text, waiter.text)), waiter)

    def _free(self) -> list[Slot]:
        return [slot for slot in self._slots if not slot.busy]

    def _is_new(self, waiter: _Waiter) -> bool:
        """Whether nobody is reading what this one could take over."""
        texts = [slot.text for slot in self._slots if slot.busy]
        if len(waiter.start) < _WORTH_A_COPY or waiter.start in self._copies:
            return waiter.text not in texts
        return not any(text.startswith(waiter.start) for text in texts)

    def _keeps_busy(self, waiter: _Waiter) -> bool:
        """Whether the machine would idle while this one waits; its start is worth the wait."""
        copied = len(waiter.start) < _WORTH_A_COPY or waiter.start in self._copies
        return copied and sum(slot.busy for slot in self._slots) < self._cores

    def _grant(self, slot: Slot, waiter: _Waiter) -> None:
        self._waiting.remove(waiter)
        slot.known = _common(slot.text, waiter.text)
        slot.text = waiter.text
        slot.busy = True
        waiter.granted.set_result(slot)


def _common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    shorter = range(1, min(len(one), len(other)) + 1)
    return bisect_left(shorter, True, key=lambda n: one[:n] != other[:n])
