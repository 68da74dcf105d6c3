"""The servers of a file of weights on this machine: who sends to them, and what to do when one ends.

A server is a process of its own, started at the first request. It decodes several requests at once, and
computes a start that several prompts share only once. When it ends, another one is started, and the requests
that may have ended it are sent again one by one.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..api_keys import SecretText
from ..event_loop import thread_errors
from ..exceptions import ModelNotFoundError, TransportError
from ..observability import log
from .llamacpp_program import ServerSettings
from .llamacpp_server import PrivateSocket, ServerProcess, start_server
from .slots import Slots
from .weights import Weights, has_chat_template

T = TypeVar("T")

SLOTS = 8  # requests decoded together: more than the cores of a laptop gain from
_CONTEXT = 4096  # tokens a slot
_COPIES = 2  # saved KV caches of starts: each is as large as that of a slot
_LOAD_TIMEOUT = 60.0  # seconds for a server to start, and one more for each of these many bytes:
_LOADED_A_SECOND = 10_000_000  # a network disk is slow
_MOST_ENDS = 5  # servers of one file that may end in a run, and one more for this many replies:
_REPLIES_AN_END = 20


class _NotSentError(Exception):
    """The server had ended before the request was sent to it."""


class Server:
    """A running server and its slots.

    Args:
        process: the server's process, which has loaded the file.
        weights: the file that it serves.
        key: what its requests carry.

    Attributes:
        process: as given.
        weights: as given.
        has_chat_template: whether the file says how a chat is written.
        api_base: its address, ending in /v1.
        api_key: `key`.
        slots: lends the slots to requests.
    """

    def __init__(self, process: ServerProcess, weights: Path, key: SecretText) -> None:
        self.process = process
        self.weights = weights
        self.has_chat_template = has_chat_template(weights)
        self.api_base = f"{process.address}/v1"
        self.api_key = key
        self.slots = Slots(SLOTS, _cores(), process.copies)
        self._inside = 0  # requests that are sent and not answered
        self._has_failed = False  # whether a request has failed since one was last sent alone
        self._door = asyncio.Lock()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Hold a place at the server in this block. Requests go in side by side, or alone.

        Args:
            alone: wait until no other request is at the server, and keep others out: it may end the server.

        Raises:
            _NotSentError: the server has ended.
        """
        async with self._door:
            while alone and self._inside:
                self._left.clear()
                await self._left.wait()
            if alone and self._has_failed:
                # The request that ends a server fails a moment before the server's process has ended.
                await _in_thread(self.process.ends_now)
                self._has_failed = False
            if self.process.has_ended():
                raise _NotSentError
            if alone:
                with self._failure_noted():
                    yield
                return
            self._inside += 1
        try:
            with self._failure_noted():
                yield
        finally:
            self._inside -= 1
            self._left.set()

    @contextmanager
    def _failure_noted(self) -> Iterator[None]:
        try:
            yield
        except TransportError:
            self._has_failed = True
            raise


def check_chat_template(server: Server) -> None:
    """Raise if the weights of a server do not say how a chat is written.

    Raises:
        ModelNotFoundError: llama.cpp would make up a template that the model was not trained with.
    """
    if not server.has_chat_template:
        raise ModelNotFoundError(
            f"{server.weights} has no chat template, so it cannot be asked for personas.",
            hint='Take an instruction-tuned model. Likelihood(…, persona_in="plain") can score with it.',
        )


class LocalModel:
    """The servers of one file of weights, one after the other. Used on the background loop."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._key = SecretText(secrets.token_hex(32))
        self._socket: PrivateSocket | None = None  # of the last server
        self._server: Server | None = None
        self._starting: asyncio.Future[Server] | None = None
        self._given_up: ModelNotFoundError | None = None
        self._asking_why = asyncio.Lock()
        self._ends = 0
        self._replies = 0

    def reset(self) -> None:
        """Forget how many servers have ended, so that new ones may be started."""
        self._ends = self._replies = 0
        self._given_up = None

    async def server(self) -> Server:
        """Return the running server. Start one if none runs, or if the last one has ended.

        Callers that come while a server starts wait for that one.

        Raises:
            ModelNotFoundError: the weights cannot be fetched or loaded, or too many servers have ended.
            MissingExtraError: xllamacpp cannot be imported.
        """
        if self._server is not None and self._server.process.has_ended():
            ended, self._server = self._server, None
            self._count_end(ended)
        if self._given_up is not None:
            raise self._given_up.with_traceback(None)
        if self._server is not None:
            return self._server
        if self._starting is None:
            self._starting = _in_thread(self._start)
            self._starting.add_done_callback(self._has_started)
        return await asyncio.shield(self._starting)

    async def ask(self, send: Callable[[Server, bool], Awaitable[T]], chat: bytes | None) -> T:
        """Send a request to the running server, and again to a new one if the server has ended meanwhile.

        Any request that was in flight may have ended the server. So each of them is sent again alone. The one
        that ends a server alone has an error, and the others have their replies.

        Args:
            send: sends the request to a server. Its second argument, whether it is sent alone, is for
                `Server.entered`.
            chat: the body of the request, if the chat template is rendered for it; None: it is not.

        Returns:
            What `send` returns.

        Raises:
            TransportError: the request ends servers or keeps them busy for ever, or a server that still
                answers others was slow with it, or refused it.
            ModelNotFoundError, MissingExtraError: see `server`.
            ModelError: what else `send` raises.
        """
        alone = False
        while True:
            server = await self.server()
            try:
                reply = await send(server, alone)
            except _NotSentError:
                continue
            except TransportError:
                process = server.process
                lost = process.has_ended()  # the connection broke, as the server has ended
                if not lost and await _in_thread(partial(_answers, server, chat)):
                    raise  # the server was slow with this request, or refused it
                if await _in_thread(process.ends_now) and not process.was_killed:
                    if alone:
                        raise _at_fault(server, f"crashes llama.cpp ({process.ended_by})") from None
                    alone = True
                elif not lost and await self._stops(server, chat):
                    raise _at_fault(server, "keeps llama.cpp busy without end") from None
            else:
                self._replies += 1
                return reply

    async def _stops(self, server: Server, chat: bytes | None) -> bool:
        """Return whether a request that stopped this server stops a new one, too. Kill each that stopped.

        Each request without end takes one of a server's threads. Other requests may have taken them all: then
        this one is sent again.
        """
        async with self._asking_why:
            await _in_thread(server.process.kill)
            server = await self.server()
            stops = not await _in_thread(partial(_answers, server, chat))
            if stops:
                await _in_thread(server.process.kill)
            return stops

    def _start(self) -> Server:
        path = self._weights.path()
        self._socket = PrivateSocket()  # a new one: the folder of the last may have been removed
        settings = ServerSettings(
            path=str(path),
            key=self._key,
            slots=SLOTS,
            context=_CONTEXT,
            threads=_cores(),
            copies=_COPIES,
            load_timeout=_LOAD_TIMEOUT + self._weights.size / _LOADED_A_SECOND,
            socket=self._socket.path,
        )
        return Server(start_server(settings), path, self._key)

    def _has_started(self, starting: asyncio.Future[Server]) -> None:
        self._starting = None
        if starting.exception() is None:
            self._server = starting.result()

    def _count_end(self, server: Server) -> None:
        """Count a server that has ended. If too many have, start no more for this file."""
        self._ends += 1
        log.info("llama.cpp's server of %s has ended", server.weights)
        if self._ends > _MOST_ENDS + self._replies // _REPLIES_AN_END:
            self._given_up = ModelNotFoundError(
                f"llama.cpp has ended {self._ends} times with {server.weights}, the last time by"
                f" {server.process.ended_by}, so it is not started again.",
                hint="The file may be damaged or made to do this: take the model from its publisher, or"
                " another one. Or there is too little memory.",
            )


def _answers(server: Server, chat: bytes | None) -> bool:
    """Return whether the server still decodes and, if there is a chat, renders it."""
    process = server.process
    return process.answers("/slots") and (chat is None or process.answers("/apply-template", chat))


def _at_fault(server: Server, does: str) -> TransportError:
    """Make the error of a request that ends or stops llama.cpp: it is not sent again."""
    return TransportError(
        f"this request {does}, also when it is sent alone to a new server.",
        hint=f"The chat template of {server.weights} may be made to do this at some texts, or the file is"
        " damaged: take the model from its publisher, or another one.",
        retryable=False,
    )


_lock = threading.Lock()
_models: dict[tuple[int, Weights], LocalModel] = {}


def local_model(weights: Weights) -> LocalModel:
    """Return the servers of these weights in this process. A fork starts its own."""
    key = (os.getpid(), weights)
    with _lock:
        if key not in _models:
            _models[key] = LocalModel(weights)
        return _models[key]


def _forget_models() -> None:
    """Forget the servers of the parent process, in a fork. Another thread of it may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _models.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_models)


def _cores() -> int:
    """Return how many cores this process may use. More threads would wait for each other."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Call a function that blocks in a thread of its own, and return its outcome as a future of this loop.

    Unlike asyncio's own threads, this one holds up no exit of Python.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()  # whoever waits may leave, and the function goes on

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    with thread_errors():
        threading.Thread(target=work, daemon=True).start()
    return asyncio.wrap_future(outcome)
