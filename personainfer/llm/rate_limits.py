"""How much may be sent, and when: concurrency, requests and tokens a minute, refusals, money.

Everything here runs on one event loop. It knows nothing of HTTP: `transports` says when an endpoint
refused a request and for how long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from ..exceptions import BudgetExceededError, RateLimitError

__all__ = ["Budget", "Gate", "Limits", "Price", "Window", "most_tokens"]

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]

_SLOWER = 0.7  # concurrency after a refusal; each accepted request gives one back
_FIRST_PAUSE = 0.5  # seconds, doubled at each refusal in a row, when the endpoint names no time
_LONGEST_PAUSE = 60.0
_ASCII = bytes(range(128))


class Price(NamedTuple):
    """USD a token, of the prompt and of the completion."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD for these tokens."""
        return self.prompt * prompt_tokens + self.completion * completion_tokens


class Window:
    """At most `limit` units in any `seconds`: exact, where a bucket lets through twice as much."""

    def __init__(
        self,
        limit: float,
        *,
        seconds: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.limit = limit
        self._seconds = seconds
        self._clock = clock
        self._entries: deque[list[float]] = deque()  # [time, units], oldest first
        self._total = 0.0
        self._turn = asyncio.Lock()  # first come, first served
        self._corrected = asyncio.Event()

    async def take(self, units: float) -> list[float]:
        """Wait until `units` fit; returns the entry, for `correct`. More than the limit waits alone."""
        async with self._turn:
            self._forget()
            while self._entries and self._total + units > self.limit:
                self._corrected.clear()
                pause = self._entries[0][0] + self._seconds - self._clock()
                with suppress(TimeoutError):  # there may be room before the oldest entry leaves
                    await asyncio.wait_for(self._corrected.wait(), pause)
                self._forget()
            entry = [self._clock(), units]
            self._entries.append(entry)
            self._total += units
            return entry

    def correct(self, entry: list[float], units: float) -> None:
        """Replace the units that were estimated by those that were used."""
        if self._entries and entry[0] >= self._entries[0][0]:
            self._total += units - entry[1]
            self._corrected.set()
        entry[1] = units

    def _forget(self) -> None:
        """Drop what is older than the window."""
        horizon = self._clock() - self._seconds
        while self._entries and self._entries[0][0] <= horizon:
            self._total -= self._entries.popleft()[1]


class Gate:
    """Lets through `width` requests at a time, fewer after a refusal, none while one is waited out.

    A refusal (429, 503) slows everybody down, not the one request: whoever asked first, the endpoint
    means all. Pauses are at least as long as it asks, and double with each refusal in a row: many name
    a moment, or none, for as long as they are full. After more than `rounds` refusals with no request
    accepted in between, or when told to wait for longer than `patience` seconds, it gives up for good.
    """

    def __init__(
        self,
        width: int,
        *,
        rounds: int,
        patience: float,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._width = width
        self._allowed = float(width)
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._rounds = rounds
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._refusals = 0
        self._opens_at = 0.0
        self._counted_at = 0.0
        self._given_up: RateLimitError | None = None

    async def enter(self) -> float:
        """Wait for a place; returns the time of entry, to be handed to `refused`.

        Raises:
            RateLimitError: the gate has given up on this endpoint.
        """
        while True:
            if self._given_up is not None:
                raise self._given_up
            pause = self._opens_at - self._clock()
            if pause <= 0 and self._active < max(1, int(self._allowed)):
                self._active += 1
                return self._clock()
            try:
                await (self._sleep(pause) if pause > 0 else self._place())
            except asyncio.CancelledError:
                self._wake_one()  # a place may have been offered to the one who leaves
                raise

    async def _place(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def leave(self) -> None:
        """Give the place back."""
        self._active -= 1
        self._wake_one()

    def reset(self) -> None:
        """Try again an endpoint that was given up: a new run may find it recovered."""
        self._given_up = None
        self._refusals = 0

    def accepted(self) -> None:
        """The endpoint took a request: go a little faster again."""
        self._refusals = 0
        if self._allowed < self._width:
            self._allowed = min(self._width, self._allowed + 1)
            self._wake_all()

    def refused(self, entered: float, error: RateLimitError) -> None:
        """The endpoint refused a request that had entered at this time: everybody waits.

        Refusals of requests sent before the last one that counted tell nothing new.

        Raises:
            RateLimitError: it has refused for too long.
        """
        now = self._clock()
        pause = error.retry_after
        if pause is not None and pause > self._patience:
            self._give_up(f"it asks to wait {pause:.0f} s, longer than patience={self._patience:g}")
        if entered >= self._counted_at:
            self._counted_at = now
            self._refusals += 1
            self._allowed = max(1.0, self._allowed * _SLOWER)
            if self._refusals > self._rounds:
                self._give_up(f"it refused {self._refusals} times in a row")
            # One that refuses again after the time that it named is believed no longer.
            doublings = self._refusals - (1 if pause is None else 2)
            if doublings >= 0:
                pause = max(pause or 0.0, min(_FIRST_PAUSE * 2**doublings, _LONGEST_PAUSE))
        self._opens_at = max(self._opens_at, now + (pause or 0.0))

    def _give_up(self, reason: str) -> None:
        self._given_up = RateLimitError(
            f"the endpoint keeps asking for fewer requests: {reason}.",
            hint="Lower max_concurrency, rpm or tpm, or try later: replies so far are cached.",
        )
        self._given_up.given_up = True
        self._wake_all()
        raise self._given_up

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    def _wake_all(self) -> None:
        while self._waiting:
            self._wake_one()


class Budget:
    """Stops before the call that would pass `usd`; what is in flight counts at its most expensive."""

    def __init__(self, usd: float, price: Price) -> None:
        self.usd = usd
        self.price = price
        self.spent = 0.0
        self._reserved = 0.0
        self._settled = asyncio.Event()

    async def reserve(self, prompt_tokens: int, max_tokens: int) -> float:
        """Set the most that a call can cost aside, waiting for calls in flight to settle.

        Raises:
            BudgetExceededError: the call could pass the budget even when all others are settled.
        """
        cost = self.price.cost(prompt_tokens, max_tokens)
        while self.spent + self._reserved + cost > self.usd:
            if not self._reserved:
                raise BudgetExceededError(
                    f"not sent: ${self.spent:.6f} of the budget of ${self.usd:g} is spent and this"
                    f" call may cost ${cost:.6f}.",
                    hint="Call again with a larger budget=; what is paid for comes from the cache.",
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += cost
        return cost

    def settle(self, reserved: float, spent: float) -> None:
        """Replace what was set aside by what the call did cost."""
        self._reserved = max(0.0, self._reserved - reserved)
        if self._reserved < 1e-12:
            self._reserved = 0.0
        self.spent += spent
        self._settled.set()


def most_tokens(body: bytes) -> int:
    """How many tokens a prompt can be: one for two bytes of ASCII, one a byte in other scripts."""
    other = 0 if body.isascii() else len(body.translate(None, _ASCII))
    return (len(body) + other) // 2


class Limits:
    """All limits of one endpoint; `None` means unlimited."""

    def __init__(
        self,
        *,
        max_concurrency: int,
        rpm: float | None = None,
        tpm: float | None = None,
        rounds: int = 10,
        patience: float = 300.0,
        budget: Budget | None = None,
    ) -> None:
        self.gate = Gate(max_concurrency, rounds=rounds, patience=patience)
        self.requests = Window(rpm) if rpm else None
        self.tokens = Window(tpm) if tpm else None
        self.budget = budget
