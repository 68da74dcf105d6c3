"""Which request goes to which slot of llama.cpp's server, so that what prompts share is computed once."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_WORTH_A_COPY = 1000  # bytes that many requests begin with: below, reading them again is as fast


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
