"""Limit what is sent, and when: concurrency, requests and tokens a minute, pauses after refusals.

All classes are used on one event loop. `Account` has what the runs, copies and forks of an LLM share.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from ..event_loop import renew_in_forks
from ..exceptions import ModelError, RateLimitError, RequestRejectedError
from .pricing import Budget
from .requests import InFlight

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[object]]
_SLOWER = 0.7  # concurrency after a refusal; each accepted request gives one back
_FIRST_PAUSE = 0.5  # seconds, doubled at each refusal in a row, when the endpoint names no time
_LONGEST_PAUSE = 60.0
_LOOK = 1.0  # seconds after which a request that waits looks again
_LOADING_PAUSE = 5.0  # seconds between two looks at an endpoint that loads its model
_MOST_REASONS = 1000  # for refusals that are told apart
_TOO_FAST = "the endpoint keeps asking for fewer requests"


@dataclass(slots=True, eq=False)
class Place:
    """Units of a request in a window, and when it was sent; None: it was not yet."""

    units: float
    sent: float | None = None
    held: bool = True  # whether the units count


class Window:
    """At most `limit` units in any `seconds`. This is exact; a token bucket can let through twice as much.

    Units count from `take` on, and so many seconds longer than the request is sent: it may wait in between.
    """

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
        self._sent: deque[Place] = deque()  # oldest first
        self._held = 0  # places, of requests that are not sent too
        self._total = 0.0  # their units
        self._turn = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()

    async def take(self, units: float) -> Place:
        """Wait until `units` fit; returns the place, to be marked as `sent` or given back by `leave`.

        More units than the limit go alone, and take as many windows as they would fill.
        """
        async with self._turn:
            self._forget()
            while self._held and self._total + units > self.limit:
                self._changed.clear()
                pause = self._leaves(self._sent[0]) - self._clock() if self._sent else None
                with suppress(TimeoutError):  # there may be room before the oldest one leaves
                    await asyncio.wait_for(self._changed.wait(), pause)
                self._forget()
            self._held += 1
            self._total += units
            return Place(units)

    def sent(self, place: Place) -> None:
        """The request is sent now."""
        if place.sent is None:
            place.sent = self._clock()
            self._sent.append(place)
            self._changed.set()

    def leave(self, place: Place) -> None:
        """Give the place back if the request was not sent."""
        if place.sent is None and place.held:
            self._drop(place)
            self._changed.set()

    def correct(self, place: Place, units: float) -> None:
        """Replace the estimated units by those that were used."""
        if place.held:
            self._total += units - place.units
            self._changed.set()
        place.units = units

    def renew_in_fork(self) -> None:
        """Go on in a fork with what was sent before it. What waits to be sent there is the parent's."""
        self._held, self._total = len(self._sent), sum(place.units for place in self._sent)
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()

    def _forget(self) -> None:
        """Drop what has left the window."""
        while self._sent and self._leaves(self._sent[0]) <= self._clock():
            self._drop(self._sent.popleft())

    def _drop(self, place: Place) -> None:
        place.held = False
        self._held -= 1
        self._total -= place.units
        if not self._held:
            self._total = 0.0  # of many additions, a rest may be left

    def _leaves(self, place: Place) -> float:
        """When a place leaves the window. A limit may be below 1: a worker's share of a few requests."""
        assert place.sent is not None
        return place.sent + self._seconds * max(1.0, place.units / self.limit)


class Gate:
    """Lets through `width` requests at a time, fewer after a refusal, and none during a pause.

    A refusal (429, 503) pauses all requests, not only the refused one, since it concerns the endpoint.
    A pause is at least as long as the endpoint asks, and doubles with each refusal in a row, because many
    endpoints name a short time, or none, as long as they are full. The gate gives up after more than
    `rounds` refusals without an accepted request, or if it is told to wait more than `patience` seconds.
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
        self._loading_since: float | None = None
        self._given_up: RateLimitError | None = None

    async def enter(self) -> float:
        """Wait for a place; returns the time of entry, to be handed to `refused`.

        Raises:
            RateLimitError: the gate has given up on this endpoint.
        """
        while True:
            if self._given_up is not None:
                raise self._given_up.with_traceback(None)  # it grows with each raise
            pause = self._opens_at - self._clock()
            if pause <= 0 and self._active < max(1, int(self._allowed)):
                self._active += 1
                return self._clock()
            try:
                # In pieces: `reset` may end the pause.
                await (self._sleep(min(pause, _LOOK)) if pause > 0 else self._place())
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

    def reset(self, *, at_once: bool = False, beside_others: bool = False) -> None:
        """Try again an endpoint that was given up: a new run may find it recovered.

        `at_once` ends the pause of one that was not. Its refusals count on: else requests that ask whether it
        takes others would keep it from ever being given up. So would runs that begin `beside_others`.
        """
        begins_anew = not (at_once or (beside_others and self._given_up is None))
        if at_once or self._given_up is not None:
            self._opens_at = 0.0
        self._given_up = None
        if at_once or begins_anew:
            self._loading_since = None
        if begins_anew:
            self._refusals = 0

    def accepted(self) -> None:
        """The endpoint accepted a request: allow one more at a time."""
        self._refusals = 0
        self._loading_since = None
        if self._allowed < self._width:
            self._allowed = min(self._width, self._allowed + 1)
            self._wake_all()

    def refused(self, entered: float, error: RateLimitError) -> None:
        """The endpoint refused a request that entered at this time: pause all requests.

        Refusals of requests that were sent before the last pause began are not counted again.

        Raises:
            RateLimitError: it has refused for too long.
        """
        now = self._clock()
        if error.loading:
            self._wait_for_model(now, error)
            return
        pause = error.retry_after
        if pause is not None and pause > self._patience:
            self._give_up(
                f"{_TOO_FAST}: it asks to wait {pause:.0f} s, longer than patience={self._patience:g}",
                retry_after=pause,
            )
        if entered >= self._counted_at:
            self._counted_at = now
            self._refusals += 1
            self._allowed = max(1.0, self._allowed * _SLOWER)
            if self._refusals > self._rounds:
                self._give_up(f"{_TOO_FAST}: it refused {self._refusals} times in a row")
            # An endpoint that refuses again after the time it named may be naming too short a time.
            doublings = self._refusals - (1 if pause is None else 2)
            if doublings >= 0:
                pause = max(pause or 0.0, min(_FIRST_PAUSE * 2**doublings, _LONGEST_PAUSE))
        self._opens_at = max(self._opens_at, now + (pause or 0.0))

    def _wait_for_model(self, now: float, error: RateLimitError) -> None:
        """The endpoint is loading its model: try one request from time to time, for `patience` seconds."""
        self._allowed = 1.0  # one request is enough to look
        since = self._loading_since = now if self._loading_since is None else self._loading_since
        if now - since > self._patience:
            self._give_up(
                f"the endpoint has not loaded its model after {now - since:.0f} s",
                "Raise patience=, or call again when the model is loaded.",
            )
        pause = min(max(_FIRST_PAUSE, (now - since) / 4), _LOADING_PAUSE)
        self._opens_at = max(self._opens_at, now + min(error.retry_after or pause, _LOADING_PAUSE))

    def _give_up(
        self,
        reason: str,
        hint: str = "Lower max_concurrency, rpm or tpm, or try later: replies so far are cached.",
        retry_after: float | None = None,
    ) -> None:
        error = RateLimitError(f"{reason}.", hint=hint, retry_after=retry_after)
        error.given_up = True
        self.give_up(error)
        raise error

    def give_up(self, error: RateLimitError) -> None:
        """Let no more requests through: whoever waits, or comes, has this error."""
        self._given_up = error
        self._wake_all()

    def renew_in_fork(self) -> None:
        """Go on in a fork, in which nothing is in flight. What the endpoint asked for holds there, too."""
        self._active = 0
        self._waiting.clear()

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    def _wake_all(self) -> None:
        while self._waiting:
            self._wake_one()


class RefusalWatch:
    """Ends a run whose first requests are all refused for the same reason.

    Until the endpoint accepts a request, at most 2 requests more than may be in flight are sent. If all
    of them are refused for one reason, one short request follows. If the endpoint refuses that too, the
    run ends; else the refusals concern their rows alone. The first accepted request ends the watch.
    """

    def __init__(self, width: int) -> None:
        self._most = width + 2
        self._accepted = False
        self._in_flight = 0
        self._refusals: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the endpoint has taken a request, so that no request need wait for others."""
        return self._accepted

    async def enter(self) -> None:
        """Wait as long as the requests in flight may show that this one would be refused too."""
        while (
            not self._accepted
            and self._refusals
            and self._in_flight + max(self._refusals.values()) >= self._most
        ):
            self._changed.clear()
            await self._changed.wait()
        self._in_flight += 1

    def leave(self) -> None:
        """A request is done."""
        self._in_flight -= 1
        self._changed.set()

    def accepted(self) -> None:
        """The endpoint accepted a request: from now on a refusal concerns its row alone."""
        if not self._accepted:
            self._accepted = True
            self._changed.set()

    def refused(self, error: ModelError) -> bool:
        """Count a refusal, or a body that is not a reply of a model.

        Returns:
            Whether the short request has to be sent now.
        """
        if self._accepted:  # each may have a reason of its own, such as the number of the request
            return False
        reason = _reason(error)
        self._refusals[reason] += 1
        if len(self._refusals) > _MOST_REASONS:
            del self._refusals[next(iter(self._refusals))]
        return self._refusals[reason] == self._most

    def start_again(self, error: ModelError) -> None:
        """Forget the refusals for this reason, since the short request got no answer."""
        del self._refusals[_reason(error)]
        self._changed.set()

    def stopped(self, error: ModelError) -> RequestRejectedError:
        """The error that ends the run after the short request was refused too."""
        count = self._refusals[_reason(error)] + 1
        stop = RequestRejectedError(
            f"the first {count} requests were all refused for the same reason, so no more are sent:"
            f" {error.message}",
            hint=error.hint or "Change what the endpoint names, and call again.",
        )
        stop.fatal = True
        return stop


def _reason(error: ModelError) -> str:
    """The message of an error without the words that differ between refusals for one reason."""
    return _EXAMPLES.sub("#", error.message)[:120]


_EXAMPLES = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d+")  # what differs in refusals of one kind


class Bounds(NamedTuple):
    """What calls may take, of a budget and in a minute; None: any amount. Several models may share it."""

    budget: Budget | None = None
    requests: Window | None = None
    tokens: Window | None = None

    def with_minute_of(self, other: Bounds) -> Bounds:
        """The limits a minute are those of another model, but for those that differ."""
        pairs = ((self.requests, other.requests), (self.tokens, other.tokens))
        requests, tokens = (
            theirs if own is None or (theirs and own.limit == theirs.limit) else own
            for own, theirs in pairs
        )
        return Bounds(self.budget, requests, tokens)


class Account:
    """What all runs, copies and forks of an LLM share: all that the next call has to know of those before it.

    A fork goes on with what was counted before it: what the parent's calls in flight may cost is spent there.

    Attributes:
        gate: how many requests are let through, and the pauses that the endpoint asks for.
        bounds: the budget, and the limits a minute.
        in_flight: the requests that are sent, and the open runs.
        has_run: whether a model has run for this caller: something was told, or said.
        beyond: tokens that a reply took beyond the most that it might take.
    """

    def __init__(
        self,
        *,
        max_concurrency: int,
        rpm: float | None = None,
        tpm: float | None = None,
        rounds: int = 10,
        patience: float = 300.0,
        budget: Budget | None = None,
        keeps_beyond: bool = False,
    ) -> None:
        self.gate = Gate(max_concurrency, rounds=rounds, patience=patience)
        self.bounds = Bounds(budget, Window(rpm) if rpm else None, Window(tpm) if tpm else None)
        self.in_flight = InFlight()
        self.has_run = False
        self.beyond = 0
        self._keeps_beyond = keeps_beyond
        renew_in_forks(self)

    def begin(self) -> None:
        """A run begins. One beside no others forgets what was found out about the endpoint.

        It does not forget `beyond` where requests ask to think without a number, which is found out alone.
        """
        beside_others = self.in_flight.has_runs
        self.gate.reset(beside_others=beside_others)
        if not (beside_others or self._keeps_beyond):
            self.beyond = 0

    def renew_in_fork(self) -> None:
        """Free what the parent's threads held. The objects stay the same for whoever has them."""
        for part in (self.gate, self.in_flight, *self.bounds):
            if part is not None:
                part.renew_in_fork()
