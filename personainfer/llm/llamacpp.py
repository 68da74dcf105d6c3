"""Local models: llama.cpp inside this process, as an OpenAI-compatible server on loopback.

There is one server for each file of weights, started at the first request. It batches continuously, and
computes a start that several prompts share only once.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import secrets
import shutil
import tempfile
import threading
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..api_keys import Address, SecretText
from ..exceptions import ModelNotFoundError, ReplyError, TransportError
from ..records import Completion
from .openai_protocol import Json, response_format
from .transports import EndpointTransport
from .weights import Weights, has_chat_template

SLOTS = 8  # requests decoded together: more than the cores of a laptop gain from
_CONTEXT = 4096  # tokens a slot
_SPIN_SETTING = (
    "GOMP_SPINCOUNT"  # how often a thread looks whether its wait is over before it sleeps
)
_SLOT_ACTION_TIMEOUT = 60.0  # seconds


class EmbeddedTransport(EndpointTransport):
    """Sends requests to a `.gguf` file that is served in this process.

    The first request fetches the weights and starts the server. Every model with a chat template is treated
    in the same way: the form of a reply is a JSON schema, which the server turns into a grammar.
    """

    enforces_forms = True  # by a grammar

    def __init__(self, weights: Weights) -> None:
        super().__init__(model=Path(weights.file).stem, api_base="", api_key="none")
        self._weights = weights
        # A reply depends on the weights, and not on the port, which differs each time.
        self.endpoint = f"llama.cpp:{weights.sha256}"

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """The JSON schema of the reply, with its bounds on lengths."""
        return {} if schema is None else response_format(schema, strict=False)

    async def complete(self, body: bytes, timeout: float) -> Completion:
        """Start the server if necessary, and send the request to the slot that has read most of it.

        Raises:
            ModelNotFoundError: the weights cannot be fetched or loaded, or have no chat template.
        """
        server = await asyncio.to_thread(self._chat_server)
        self._base, self.key = Address(server.api_base), server.api_key
        _, _, text = body.partition(b'"messages": [')
        start, _, _ = text.rpartition(b'{"role": "user"')
        slots = server.slots
        async with slots.lent(start, text) as slot:
            name, held = slots.copy_of(text)
            if slot.known < held:
                await self._act_on_slot(slot.number, "restore", name)
            answer: Completion | ReplyError
            try:
                answer = await self._complete_in(slot.number, body, timeout)
            except ReplyError as error:  # the prompt is read all the same
                answer = error
            if slots.is_awaited(start):
                name = slots.next_copy()
                made = await self._act_on_slot(slot.number, "save", name)
                slots.keep_copy(start, name if made else None)
        if isinstance(answer, ReplyError):
            raise answer
        return answer

    def _chat_server(self) -> _Server:
        server = running_server(self._weights)
        check_chat_template(server)
        return server

    async def _complete_in(self, slot: int, body: bytes, timeout: float) -> Completion:
        fields = json.loads(body) | {"id_slot": slot}
        return await super().complete(json.dumps(fields).encode(), timeout)

    async def _act_on_slot(self, slot: int, action: str, name: str) -> bool:
        """Save or restore a slot's KV cache. Returns whether it worked: else the prompt is read again."""
        path, body = f"/../slots/{slot}?action={action}", json.dumps({"filename": name}).encode()
        with suppress(TransportError):
            status, _, _ = await self._post(path, body, _SLOT_ACTION_TIMEOUT)
            return status == 200
        return False


def _cores() -> int:
    """How many cores this process may use. More threads would wait for each other."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _engine() -> Any:
    """Import llama.cpp with threads that sleep soon while they wait.

    Its threads are OpenMP's, which spin while they wait. If another process uses the same cores, they spin
    while the thread that they wait for has no core: decoding then runs at less than half its speed. The
    setting is read once, when the library is loaded. The environment is put back, and a user's own setting
    stands.
    """
    unset = _SPIN_SETTING not in os.environ and "OMP_WAIT_POLICY" not in os.environ
    if unset:
        os.environ[_SPIN_SETTING] = "1000"
    try:
        import xllamacpp
    finally:
        if unset:
            os.environ.pop(_SPIN_SETTING, None)
    return xllamacpp


_FOLDERS = "personainfer-slots-"


class SlotCopies:
    """The folder of slots' saved KV caches. They hold people's texts, so none may stay after a kill.

    On Linux they are unnamed files in memory, which vanish with the process. On other systems they are in
    a private folder, which is deleted at the end of the process or, after a kill, at the next start.
    """

    def __init__(self, count: int) -> None:
        if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
            self._files = [os.fdopen(os.memfd_create("slot"), "rb") for _ in range(count)]
            self.folder = "/proc/self/fd/"
            self.names = [str(file.fileno()) for file in self._files]
        else:
            _remove_left_folders()
            self._temporary = tempfile.TemporaryDirectory(prefix=_FOLDERS)
            self._lock = _folder_lock(self._temporary.name)
            self._lock.acquire()
            self.folder = f"{self._temporary.name}/"
            self.names = [f"start-{number}" for number in range(count)]


def _folder_lock(folder: str | Path) -> Any:
    """The lock that a process holds while it uses a folder; the system frees it after a kill."""
    from filelock import FileLock

    return FileLock(Path(folder) / "lock")


def _remove_left_folders() -> None:
    """Remove the folders of this user's processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with suppress(OSError):  # of another user, or in use
            with _folder_lock(folder).acquire(timeout=0):
                pass
            shutil.rmtree(folder, ignore_errors=True)


class _Server:
    """A running llama.cpp server and its slots.

    Raises:
        ModelNotFoundError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path) -> None:
        xllamacpp = _engine()
        self.weights = path
        self.api_key = SecretText(secrets.token_hex(32))
        copies = SlotCopies(_COPIES)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
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
            # On CPUs, flash attention takes one query after the other.
            off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.flash_attn_type = off
        params.kv_unified = False  # a third faster here than one store for all slots
        params.cache_ram_mib = 0
        params.cache_idle_slots = False
        params.n_ctx_checkpoints = 0
        params.slot_save_path = copies.folder
        params.api_keys = [str(self.api_key)]  # other users of this machine reach the port, too
        params.cors_origins, params.cors_credentials = "", False  # and so do web pages
        params.warmup = False
        params.ui = False
        params.verbosity = -1
        try:
            self.server = xllamacpp.Server(params)
        except RuntimeError:  # it says no more than that
            raise ModelNotFoundError(
                f"llama.cpp cannot load {path}.",
                hint="The file may be cut off or damaged, hold no language model, or one that this release"
                " of xllamacpp does not know; or there is too little memory.",
            ) from None
        self.api_base = f"{self.server.listening_address}/v1"
        self.slots = Slots(SLOTS, _cores(), copies.names)
        self._copies = copies
        self.has_chat_template = has_chat_template(path)


_lock = threading.Lock()
_servers: dict[tuple[int, Weights], _Server] = {}


def running_server(weights: Weights) -> _Server:
    """This process's server for these weights; fetches them and starts it if necessary.

    Raises:
        ModelNotFoundError: the weights cannot be fetched or loaded.
    """
    with _lock:
        key = (os.getpid(), weights)
        if key not in _servers:
            _servers[key] = _Server(weights.path())
        return _servers[key]


def check_chat_template(server: _Server) -> None:
    """Raise if the weights do not say how a chat is written.

    Raises:
        ModelNotFoundError: llama.cpp would make up a template that the model was not trained with.
    """
    if not server.has_chat_template:
        raise ModelNotFoundError(
            f"{server.weights} has no chat template, so it cannot be asked for personas.",
            hint='Take an instruction-tuned model. Likelihood(…, persona_in="plain") can score with it.',
        )


@atexit.register
def _stop() -> None:
    """Stop the servers while their threads still can; a forked child does not own them."""
    for key in list(_servers):
        if key[0] == os.getpid():
            del _servers[key]


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
    """Lends the slots of the server. `cores` is how many requests at once keep the machine busy.

    Requests with the same text (samples of one prompt) get the same slot one after the other, before
    earlier requests with other texts. Of several requests with the same `start`, one computes it and the
    others wait; `copy_of` then names the saved KV cache that they load. `names` are the names for copies.
    """

    def __init__(
        self, count: int, cores: int, names: Sequence[str] = ("start-0", "start-1")
    ) -> None:
        self._slots = [Slot(number) for number in range(count)]  # the one used last comes last
        self._cores = cores
        self._names = names
        self._waiting: list[_Waiter] = []
        self._copies: dict[bytes, str | None] = {}
        self._copied = 0

    @asynccontextmanager
    async def lent(self, start: bytes, text: bytes) -> AsyncIterator[Slot]:
        """Lend a slot to a text that begins with `start`, as soon as one is free for it."""
        slot = await self._granted(_Waiter(start, text))
        try:
            yield slot
        except BaseException:
            slot.text = b""  # nobody knows how much of it was read
            raise
        finally:
            self._give_back(slot)

    def copy_of(self, text: bytes) -> tuple[str, int]:
        """The saved copy that has most of a text's start, and how many bytes of it; or "", 0."""
        copies = [(name, len(s)) for s, name in self._copies.items() if name and text.startswith(s)]
        return max(copies, key=lambda copy: copy[1], default=("", 0))

    def is_awaited(self, start: bytes) -> bool:
        """Whether to save a copy of this start: there is none, and other requests wait for it."""
        return (
            len(start) >= _WORTH_A_COPY
            and start not in self._copies
            and any(waiter.start == start for waiter in self._waiting)
        )

    def next_copy(self) -> str:
        """The name for a new copy: that of the oldest copy."""
        self._copied += 1
        return self._names[self._copied % len(self._names)]

    def keep_copy(self, start: bytes, name: str | None) -> None:
        """Note that a copy was saved under this name; None: it failed, so each slot computes the start."""
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
        """Whether no slot is computing a start that this request could load."""
        texts = [slot.text for slot in self._slots if slot.busy]
        if len(waiter.start) < _WORTH_A_COPY or waiter.start in self._copies:
            return waiter.text not in texts
        return not any(text.startswith(waiter.start) for text in texts)

    def _keeps_busy(self, waiter: _Waiter) -> bool:
        """Whether a core would be idle if this request waited for its start."""
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
