"""The embedded model: llama.cpp in this process, as an OpenAI-compatible server on loopback.

One server for each file of weights, started at the first request, once a process; it batches
continuously and keeps the common start of the prompts. It knows nothing of personas.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .batch_api import BatchAPI
from .exceptions import InvalidArgumentError
from .records import Completion
from .transports import EndpointTransport
from .weights import fast_form, fast_form_path
from .wire import Json, response_format

__all__ = ["SLOTS", "EmbeddedTransport", "running_server"]

SLOTS = 8  # requests decoded together: more than the cores of a laptop gain from
_CONTEXT = 4096  # tokens a slot
# A small model answers with the exemplars' own words, and gives both sides the same: the DRY sampler
# makes a word less likely the longer the run is that it would repeat from anywhere in the prompt.
# Strong, from runs of one on: at 1.0 from two on, a fifth of the example pairs got one persona twice.
_UNREPEATING = {"dry_multiplier": 3.0, "dry_allowed_length": 1, "dry_penalty_last_n": _CONTEXT}
_SPINS = "GOMP_SPINCOUNT"  # how often a thread looks whether its wait is over before it sleeps
_COPY_TIMEOUT = 60.0  # seconds


class EmbeddedTransport(EndpointTransport):
    """A `.gguf` file, served in this process; nothing is started before the first request."""

    def __init__(self, weights: Path) -> None:
        super().__init__(model=weights.stem, api_base="", api_key="none")
        self._weights = weights
        # The port is another one each time; the weights are what a reply depends on.
        served = fast_form_path(weights) or weights
        self.endpoint = f"llama.cpp:{served.name}:{weights.stat().st_size}"

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """The schema with its patterns, as a grammar: a small model fills JSON with white space."""
        return response_format(schema, strict=False) | _UNREPEATING if schema else {}

    def batches(self) -> BatchAPI:
        """There is none to have."""
        raise InvalidArgumentError(
            "the embedded model has no batch API.", hint="Call infer_personas: it costs nothing."
        )

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """As of any endpoint, after the server is up and its slots hold the start of the prompt."""
        server = await asyncio.to_thread(running_server, self._weights)
        self._base = server.api_base
        start, _, _ = body.rpartition(b'{"role": "user"')
        async with server.turn:
            if server.start != start:
                completion = await super().complete(_in_slot(body, 0), timeout)
                await self._share_first_slot()
                server.start = start
                return completion
        return await super().complete(body, timeout)

    async def _share_first_slot(self) -> None:
        """Copy what slot 0 has read into the others: each would read the same prompt again."""
        saved = b'{"filename": "start"}'
        await self._post("/../slots/0?action=save", saved, _COPY_TIMEOUT)
        for slot in range(1, SLOTS):
            await self._post(f"/../slots/{slot}?action=restore", saved, _COPY_TIMEOUT)


def _in_slot(body: bytes, slot: int) -> bytes:
    return body[:-1] + f', "id_slot": {slot}}}'.encode()


def _cores() -> int:
    """Those that this process may run on: threads that share a core wait for each other."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _engine() -> Any:
    """llama.cpp, loaded so that its threads sleep soon where they wait for each other.

    They are OpenMP's, which spin by default. Beside other work on the same cores, say another process's
    inference, each spins while the one that it waits for has no core: decoding ran at under half its speed.
    The setting is read once, when the library is loaded, and is meant for no other.
    """
    before = os.environ.get(_SPINS)
    os.environ.setdefault(_SPINS, "1000")
    try:
        import xllamacpp
    finally:
        if before is None:
            del os.environ[_SPINS]
    return xllamacpp


class _Server:
    """A running llama.cpp server. `start` is the start of the prompt that its slots hold."""

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
        # Its kernel for CPUs takes one query after the other.
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
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
        self.turn = asyncio.Lock()
        self.start = b""


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
