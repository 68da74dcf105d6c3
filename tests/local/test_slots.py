"""Who gets which slot: what requests share is read once, nobody waits for ever, nothing is lent twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personainfer.local.slots import Slot, Slots

LONG = b"x" * 2000  # a start that is worth a copy


class Server:
    """Requests that take a turn of the loop or two; who was where is written down."""

    def __init__(self, count: int, cores: int) -> None:
        self.slots = Slots(count, cores)
        self.served: list[tuple[bytes, int, int]] = []  # text, slot, how many bytes it knew
        self.together: list[list[bytes]] = []  # the texts that were read at once, at each begin
        self._now: dict[int, bytes] = {}

    async def ask(self, text: bytes, *, start: bytes = b"", copies: bool = True) -> Slot:
        async with self.slots.lent(start, text) as slot:
            assert slot.number not in self._now
            self._now[slot.number] = text
            self.served.append((text, slot.number, slot.known))
            self.together.append(sorted(self._now.values()))
            for _ in range(3):
                await asyncio.sleep(0)
            if self.slots.is_awaited(start):
                self.slots.keep_copy(start, self.slots.next_copy() if copies else None)
            del self._now[slot.number]
        return slot

    def run(self, *asked: Coroutine[Any, Any, object]) -> None:
        async def all_of_them() -> None:
            await asyncio.wait_for(asyncio.gather(*asked), 10)

        asyncio.run(all_of_them())


def test_samples_of_one_prompt_follow_each_other_in_its_slot() -> None:
    server = Server(4, cores=2)
    server.run(*(server.ask(text) for text in (b"a1", b"a1", b"a1", b"b2", b"b2", b"c3")))
    for text in (b"a1", b"b2"):
        places = [(slot, known) for one, slot, known in server.served if one == text]
        assert len({slot for slot, _ in places}) == 1
        assert [known for _, known in places] == [0] + [2] * (len(places) - 1)
    assert server.together[2] == [b"a1", b"b2", b"c3"]  # meanwhile the other slots have work


def test_where_cores_would_idle_samples_of_one_prompt_run_at_once() -> None:
    server = Server(4, cores=3)
    server.run(*(server.ask(b"a") for _ in range(6)))
    assert max(map(len, server.together)) == 3


def test_a_common_start_is_read_by_one_and_copied_by_the_others() -> None:
    server = Server(4, cores=4)
    texts = [LONG + bytes([65 + n]) for n in range(4)]
    server.run(*(server.ask(text, start=LONG) for text in texts))
    assert [len(texts) for texts in server.together] == [1, 1, 2, 3]
    assert server.slots.copy_of(LONG + b"?") == ("start-1", len(LONG))


def test_where_it_cannot_be_copied_each_slot_reads_for_itself() -> None:
    server = Server(4, cores=4)
    texts = [LONG + bytes([65 + n]) for n in range(4)]
    server.run(*(server.ask(text, start=LONG, copies=False) for text in texts))
    assert server.slots.copy_of(LONG) == ("", 0)
    assert len(server.served) == 4
    assert max(map(len, server.together)) == 3


def test_nobody_waits_for_a_short_start() -> None:
    server = Server(4, cores=4)
    server.run(*(server.ask(b"hello" + bytes([65 + n]), start=b"hello") for n in range(4)))
    assert max(map(len, server.together)) == 4
    assert server.slots.copy_of(b"hello") == ("", 0)


def test_a_conversation_goes_on_in_its_slot() -> None:
    server = Server(3, cores=2)

    async def talk() -> None:
        first = await server.ask(b"you are kind. hello")
        await server.ask(b"something else")
        again = await server.ask(b"you are kind. hello! how are you?")
        assert again is first

    server.run(talk())
    assert server.served[-1][2] == len(b"you are kind. hello")


def test_the_oldest_copy_is_forgotten_under_its_name() -> None:
    slots = Slots(2, 1)
    starts = [LONG + bytes([65 + n]) for n in range(3)]
    for start in starts:
        slots.keep_copy(start, slots.next_copy())
    (first, held), *others = (slots.copy_of(start) for start in starts)
    assert (first, held) == ("", 0)
    assert len(set(others)) == 2


def test_a_longer_conversation_takes_the_copy_that_holds_most_of_it() -> None:
    slots = Slots(2, 1)
    slots.keep_copy(LONG, "instructions")
    slots.keep_copy(LONG + b"pair", "with a pair")
    assert slots.copy_of(LONG + b"another") == ("instructions", len(LONG))
    assert slots.copy_of(LONG + b"pair and its reply") == ("with a pair", len(LONG) + 4)


def test_after_a_failure_a_slot_is_taken_to_know_nothing() -> None:
    async def fail(slots: Slots) -> None:
        with pytest.raises(OSError, match="gone"):
            async with slots.lent(b"", b"a text"):
                raise OSError("gone")
        async with slots.lent(b"", b"a text") as slot:
            assert slot.known == 0
        async with slots.lent(b"", b"a text") as slot:
            assert slot.known == 6

    asyncio.run(fail(Slots(1, 1)))


@pytest.mark.parametrize("turns", range(4))
def test_who_is_cancelled_while_waiting_takes_no_slot_along(turns: int) -> None:
    async def cancel() -> None:
        slots = Slots(1, 1)

        async def ask(text: bytes) -> None:
            async with slots.lent(b"", text):
                await asyncio.sleep(0)

        holder, waiter = asyncio.ensure_future(ask(b"a")), asyncio.ensure_future(ask(b"b"))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(holder, waiter, return_exceptions=True)
        await asyncio.wait_for(ask(b"c"), 5)

    asyncio.run(cancel())


def test_who_is_cancelled_as_a_slot_comes_gives_it_back_unread() -> None:
    async def cancel() -> None:
        slots = Slots(1, 1)

        async def ask() -> None:
            async with slots.lent(b"", b"never read"):
                pass

        async with slots.lent(b"", b"first"):
            waiter = asyncio.ensure_future(ask())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        waiter.cancel()  # it has the slot, and has not run since
        await asyncio.gather(waiter, return_exceptions=True)
        async with asyncio.timeout(5), slots.lent(b"", b"never read") as slot:
            assert slot.known == 0

    asyncio.run(cancel())


@given(
    asked=st.lists(
        st.tuples(st.sampled_from([b"", b"short", LONG, LONG + b"more"]), st.sampled_from(b"abcd")),
        max_size=30,
    ),
    count=st.integers(1, 8),
    cores=st.integers(1, 8),
    copies=st.booleans(),
)
def test_everybody_is_served_and_no_slot_twice_at_once(
    asked: list[tuple[bytes, int]], count: int, cores: int, copies: bool
) -> None:
    server = Server(count, cores)
    texts = [(start, start + bytes([letter])) for start, letter in asked]
    server.run(*(server.ask(text, start=start, copies=copies) for start, text in texts))
    assert Counter(text for text, _, _ in server.served) == Counter(text for _, text in texts)
    assert max(map(len, server.together), default=0) <= count
