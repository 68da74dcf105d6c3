"""Choose the slot of llama.cpp's server for each request, so that what prompts share is computed once.

A slot decodes one request at a time, and keeps the KV cache of the last text that it read.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_WORTH_A_COPY = 1000  # bytes of a start: a shorter one is read again as fast as it is loaded


@dataclass(eq=False, slots=True)
class Slot:
    """A slot of the server.

    Attributes:
        number: the slot's number at the server, from 0.
        text: the text that the slot reads, or read last. b"": nothing is known of its KV cache.
        known: how many bytes of `text`, from its start, were in the slot's KV cache before this request.
        busy: whether a request has the slot.
    """

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
    """Lends the slots of one server to requests.

    Requests with the same text (samples of one prompt) get the same slot one after the other, before earlier
    requests with other texts. Of several requests with the same start, one computes the start and the others
    wait. `copy_of` then names the saved KV cache that they load. All methods are called on one event loop.

    Args:
        count: how many slots the server has.
        cores: how many requests at once keep the machine busy.
        names: the names of the files for saved KV caches.
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
        """Wait for a slot, and lend it for the block to a text that begins with `start`."""
        slot = await self._granted(_Waiter(start, text))
        try:
            yield slot
        except BaseException:
            slot.text = b""  # it is not known how much was read
            raise
        finally:
            self._give_back(slot)

    def copy_of(self, text: bytes) -> tuple[str, int]:
        """Return the name of the saved KV cache that has most of a text's start, and how many bytes of it.

        Without such a cache, return ("", 0).
        """
        copies = [(name, len(s)) for s, name in self._copies.items() if name and text.startswith(s)]
        return max(copies, key=lambda copy: copy[1], default=("", 0))

    def is_awaited(self, start: bytes) -> bool:
        """Return whether to save a KV cache of this start: none is saved, and other requests with it wait.

        A start of fewer than 1,000 bytes is never saved. If saving failed before, it is not tried again.
        """
        return (
            len(start) >= _WORTH_A_COPY
            and start not in self._copies
            and any(waiter.start == start for waiter in self._waiting)
        )

    def next_copy(self) -> str:
        """Return the name for the next saved KV cache. Names are used in turn: the oldest is overwritten."""
        self._copied += 1
        return self._names[self._copied % len(self._names)]

    def keep_copy(self, start: bytes, name: str | None) -> None:
        """Note that the KV cache of a start was saved under this name.

        Args:
            start: the bytes that were read.
            name: the cache that had this name before is forgotten. None: it could not be saved, so each slot
                computes the start.
        """
        self._copies = {s: other for s, other in self._copies.items() if other != name or not name}
        self._copies[start] = name

    async def _granted(self, waiter: _Waiter) -> Slot:
        self._waiting.append(waiter)
        # Later, when all requests that come together are here.
        asyncio.get_running_loop().call_soon(self._lend)
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
        """Return whether a request may begin because no busy slot computes what the request could load."""
        texts = [slot.text for slot in self._slots if slot.busy]
        if len(waiter.start) < _WORTH_A_COPY or waiter.start in self._copies:
            return waiter.text not in texts
        return not any(text.startswith(waiter.start) for text in texts)

    def _keeps_busy(self, waiter: _Waiter) -> bool:
        """Return whether a request may begin because a core would be idle if the request waited."""
        copied = len(waiter.start) < _WORTH_A_COPY or waiter.start in self._copies
        return copied and sum(slot.busy for slot in self._slots) < self._cores

    def _grant(self, slot: Slot, waiter: _Waiter) -> None:
        self._waiting.remove(waiter)
        slot.known = _common(slot.text, waiter.text)
        slot.text = waiter.text
        slot.busy = True
        waiter.granted.set_result(slot)


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes at the start of both texts are equal."""
    shorter = range(1, min(len(one), len(other)) + 1)
    return bisect_left(shorter, True, key=lambda n: one[:n] != other[:n])
