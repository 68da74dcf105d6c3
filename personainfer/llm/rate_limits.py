"""Limit what is sent, and when: concurrency, requests and tokens a minute, pauses after refusals.

Windows and gates let requests wait on the background loop. `Account` has what the runs, copies and forks of
an LLM share.
"""

from __future__ import annotations

import asyncio
import math
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
_FEWEST_LATER = 20  # refusals in a row that may concern all, where others were accepted before
_MOST_REASONS = 1000  # of refusals that are counted apart
_TOO_FAST = "the endpoint keeps asking for fewer requests"


@dataclass(slots=True, eq=False)
class Place:
    """Units of a request in a window.

    Attributes:
        units: how many requests or tokens it counts for.
        sent: when it was sent, by the clock of the window; None: it was not yet.
        held: whether the units count now.
    """

    units: float
    sent: float | None = None
    held: bool = True


class Window:
    """At most `limit` units in any `seconds`. This is exact; a token bucket can let through twice as much.

    Units count from `take` until `seconds` after the request is sent: it may wait in between.

    Args:
        limit: the most units, such as requests or tokens. It may be below 1: a worker's share of a few
            requests.
        seconds: the length of the window.
        clock: tells the seconds.
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
        self._held = 0  # how many places count, with those of requests that are not sent yet
        self._total = 0.0  # the units of these places
        self._turn = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()

    async def take(self, units: float | Callable[[], float]) -> Place:
        """Wait until units fit into the window, in the order of the calls, and return their place.

        Units that a function tells are asked for at each look: what is learned while a request waits counts.

        Call `sent` with the place when the request is sent, and `leave` if it never is. If a request has more
        units than the limit, it goes alone, and holds the window as much longer.
        """
        tell = units if callable(units) else lambda: units
        async with self._turn:
            self._forget()
            while self._held and self._total + tell() > self.limit:
                self._changed.clear()
                pause = self._leaves(self._sent[0]) - self._clock() if self._sent else None
                with suppress(TimeoutError):  # there may be room before the oldest one leaves
                    await asyncio.wait_for(self._changed.wait(), pause)
                self._forget()
            place = Place(tell())
            self._held += 1
            self._total += place.units
            return place

    def sent(self, place: Place) -> None:
        """Note that the request is sent now. A second call does nothing."""
        if place.sent is None:
            place.sent = self._clock()
            self._sent.append(place)
            self._changed.set()

    def leave(self, place: Place) -> None:
        """Give the place back, if the request was not sent."""
        if place.sent is None and place.held:
            self._drop(place)
            self._changed.set()

    def correct(self, place: Place, units: float) -> None:
        """Replace the estimated units of a request by those that were used."""
        if place.held:
            self._total += units - place.units
            self._changed.set()
        place.units = units

    def renew_in_fork(self) -> None:
        """Go on in a fork with what was sent before the fork. What waits to be sent is the parent's."""
        self._held, self._total = len(self._sent), sum(place.units for place in self._sent)
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()

    def _forget(self) -> None:
        """Drop the requests that have left the window."""
        while self._sent and self._leaves(self._sent[0]) <= self._clock():
            self._drop(self._sent.popleft())

    def _drop(self, place: Place) -> None:
        place.held = False
        self._held -= 1
        self._total -= place.units
        if not self._held:
            self._total = 0.0  # rounding of many additions may have left a rest

    def _leaves(self, place: Place) -> float:
        """Return when a request that was sent leaves the window, by its clock.

        One with more units than the limit stays as many times longer.
        """
        assert place.sent is not None
        return place.sent + self._seconds * max(1.0, place.units / self.limit)


class Gate:
    """Lets through `width` requests at a time, fewer after a refusal, and none during a pause.

    A refusal (429, 503) pauses all requests, not only the refused one, since it concerns the endpoint.
    A pause is at least as long as the endpoint asks, and doubles with each refusal in a row, because many
    endpoints name a short time, or none, as long as they are full. The gate gives up after more than
    `rounds` refusals without an accepted request, or if it is told to wait more than `patience` seconds.

    Args:
        width: the most requests at a time.
        rounds: the most refusals in a row.
        patience: the longest time to wait, in seconds; also an attribute.
        connections: how many connections the requests may take beside those that other gates of this process
            hold now; 0: any number. A gate always has one.
        clock: tells the seconds.
        sleep: waits for so many seconds.
    """

    _all_held = 0  # connections of all gates

    def __init__(
        self,
        width: int,
        *,
        rounds: int,
        patience: float,
        connections: int = 0,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._width = width
        self._allowed = float(width)
        self._active = 0
        self._held = 0  # connections: an open one serves the next request
        self._most_held = connections and connections + Gate._all_held
        self._is_short = False  # whether a request had to wait for a connection alone
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._rounds = rounds
        self.patience = patience
        self._clock = clock
        self._sleep = sleep
        self._refusals = 0
        self._opens_at = 0.0
        self._counted_at = 0.0
        self._loading_since: float | None = None
        self._given_up: RateLimitError | None = None

    async def enter(self) -> float:
        """Wait until a request may be sent. `leave` has to be called when it is done.

        Returns:
            The time of entry, by the clock of the gate, to be handed to `refused`.

        Raises:
            RateLimitError: the gate has given up on this endpoint.
        """
        while True:
            if self._given_up is not None:
                raise self._given_up.with_traceback(None)  # the traceback grows with each raise
            pause = self._opens_at - self._clock()
            if pause <= 0 and self._has_room():
                self._active += 1
                self._hold(max(self._held, self._active))
                if self._is_short:  # the end of another run may have left room for more than one
                    self._wake_one()
                return self._clock()
            try:
                # In pieces: `reset` may end the pause.
                await (self._sleep(min(pause, _LOOK)) if pause > 0 else self._place())
            except asyncio.CancelledError:
                self._wake_one()  # a place may have been offered to the one who leaves
                raise

    async def _place(self) -> None:
        self._is_short = self._active < int(self._allowed)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def leave(self) -> None:
        """Note that a request is done, and let the next one enter."""
        self._active -= 1
        if not self._active:
            self._hold(0)
        self._wake_one()

    def _has_room(self) -> bool:
        is_open = self._active < self._held or Gate._all_held < (self._most_held or math.inf)
        return not self._active or (self._active < int(self._allowed) and is_open)

    def _hold(self, connections: int) -> None:
        Gate._all_held += connections - self._held
        self._held = connections

    def reset(self, *, at_once: bool = False, beside_others: bool = False) -> None:
        """Try again an endpoint that was given up: a new run may find it recovered.

        Args:
            at_once: end a pause, too. The refusals are not forgotten: otherwise the short requests that test
                the endpoint would keep it from ever being given up.
            beside_others: other runs are open. If the endpoint is not given up, its refusals are not
                forgotten.
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
        """Note that the endpoint accepted a request: forget its refusals, and allow one more at a time."""
        self._refusals = 0
        self._loading_since = None
        if self._allowed < self._width:
            self._allowed = min(self._width, self._allowed + 1)
            self._wake_all()

    def refused(self, entered: float, error: RateLimitError) -> None:
        """Note that the endpoint refused a request: pause all requests, and allow fewer at a time.

        Args:
            entered: what `enter` returned for the request. If it was before the last refusal that counted,
                this one does not count: both were in flight at once.
            error: the refusal, with the seconds that the endpoint asks to wait, or None for no time.

        Raises:
            RateLimitError: the endpoint has refused for too long, or asks to wait too long. Its `given_up` is
                True.
        """
        now = self._clock()
        if error.loading:
            self._wait_for_model(now, error)
            return
        pause = error.retry_after
        if pause is not None and pause > self.patience:
            self._give_up(
                f"{_TOO_FAST}: it asks to wait {pause:.0f} s, longer than patience={self.patience:g}",
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
        """Let one request try from time to time while the endpoint loads its model, for `patience` seconds.

        Raises:
            RateLimitError: the model is not loaded after that time.
        """
        self._allowed = 1.0  # one request is enough to look
        since = self._loading_since = now if self._loading_since is None else self._loading_since
        if now - since > self.patience:
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
        error = RateLimitError(f"{reason}.", hint=hint, retry_after=retry_after, given_up=True)
        self.give_up(error)
        raise error

    def give_up(self, error: RateLimitError) -> None:
        """Let no more requests through: those that wait, or come later, get this error."""
        self._given_up = error
        self._wake_all()

    def renew_in_fork(self) -> None:
        """Go on in a fork, in which nothing is in flight. What the endpoint asked for holds there, too."""
        self._active = 0
        self._hold(0)
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
    """Notices that all requests are refused for the same reason.

    Until the endpoint accepts a request, at most `width` + 2 are sent. If all of them are refused for one
    reason, one short request follows. If the endpoint refuses that too, the run ends; otherwise the refusals
    concern their rows alone. Later, a short request follows as many refusals for one reason in a row, but at
    least 20.

    Args:
        width: how many requests may be in flight.

    Attributes:
        is_over: whether the endpoint has accepted a request, so that no request need wait for others.
    """

    def __init__(self, width: int) -> None:
        self.is_over = False
        self._most = width + 2
        self._in_flight = 0
        self._refusals: Counter[str] = Counter()
        self._changed = asyncio.Event()

    async def enter(self) -> None:
        """Wait as long as requests in flight may show that this one would be refused. Then count it."""
        while (
            not self.is_over
            and self._refusals
            and self._in_flight + max(self._refusals.values()) >= self._most
        ):
            self._changed.clear()
            await self._changed.wait()
        self._in_flight += 1

    def leave(self) -> None:
        """Note that a request that entered is done."""
        self._in_flight -= 1
        self._changed.set()

    def accepted(self) -> None:
        """Note that the endpoint accepted a request: the refusals before it concern their rows alone."""
        if not self.is_over:
            self.is_over, self._most = True, max(self._most, _FEWEST_LATER)
            self._changed.set()
        if self._refusals:
            self._refusals.clear()

    def refused(self, error: ModelError) -> bool:
        """Count a refusal, or, before any request was accepted, a body that is not a reply of a model.

        Returns:
            Whether the short request has to be sent now.
        """
        if self.is_over and not isinstance(error, RequestRejectedError):
            return False
        reason = _reason(error)
        self._refusals[reason] += 1
        if len(self._refusals) > _MOST_REASONS:
            del self._refusals[next(iter(self._refusals))]
        return self._refusals[reason] == self._most

    def start_again(self, error: ModelError) -> None:
        """Forget the refusals that were counted for one reason. Counting for this reason begins again.

        It is for when the short request was neither accepted nor refused, and so tells nothing.

        Args:
            error: the last of these refusals, not the error of the short request.
        """
        del self._refusals[_reason(error)]
        self._changed.set()

    def stopped(self, error: ModelError, of_short: ModelError) -> RequestRejectedError | None:
        """Make, and do not raise, the error after the short request was refused too: no more are to be sent.

        It ends the run if no request was ever accepted.

        Args:
            error: the last of the refusals that were counted.
            of_short: that of the short request.

        Returns:
            The error; None: a request was accepted since, or, where others were accepted before, the short
            one was refused for a reason of its own. Then counting for this reason begins again.
        """
        count = self._refusals[_reason(error)]
        if count < self._most or (self.is_over and _reason(of_short) != _reason(error)):
            self.start_again(error)
            return None
        which = f"{count} requests in a row" if self.is_over else f"the first {count + 1} requests"
        return RequestRejectedError(
            f"{which} were all refused for the same reason, so no more are sent: {error.message}",
            hint=error.hint or "Change what the endpoint names, and call again.",
            fatal=not self.is_over,
        )


def _reason(error: ModelError) -> str:
    """Return the message of an error without the words that differ between refusals for one reason."""
    return _EXAMPLES.sub("#", error.message)[:120]


_EXAMPLES = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d+")  # what differs in refusals of one kind


class Bounds(NamedTuple):
    """What calls may take. Several models may share a budget, or the limits a minute.

    Attributes:
        budget: in USD; None: any amount.
        requests: the requests in a minute; None: any number.
        tokens: the tokens in a minute; None: any number.
    """

    budget: Budget | None = None
    requests: Window | None = None
    tokens: Window | None = None

    def with_minute_of(self, other: Bounds) -> Bounds:
        """Return these bounds with the limits a minute of `other`, so that the calls of both count together.

        A limit of these bounds stays if that of `other` is missing or differs.
        """
        pairs = ((self.requests, other.requests), (self.tokens, other.tokens))
        requests, tokens = (
            theirs if own is None or (theirs and own.limit == theirs.limit) else own
            for own, theirs in pairs
        )
        return Bounds(self.budget, requests, tokens)


class TokenGuess:
    """Guesses how many tokens a call will take, so that a limit a minute holds before replies tell.

    Until a reply has told, the guess is the most that is possible: a token for each byte of the request, and
    all tokens that the reply is allowed. Later it is as many as the largest call so far took, by its size.
    Calls are compared with those of about their size: a short one takes more for each byte, since a server
    adds words of its own, and may have a shorter reply. If none of about the size is known, the guess is as
    many tokens a byte as any call took, but one at most, and all tokens that the reply is allowed. Where two
    replies were longer than they were allowed, others may be longer by as much; a single one may be odd.
    """

    def __init__(self) -> None:
        # The most tokens by which replies were longer than allowed: the two largest numbers.
        self._beyond = [0, 0]
        # log2 of the size -> (the most tokens that a byte took, the most tokens of a reply)
        self._taken: dict[int, tuple[float, int]] = {}

    def of(self, size: int, asked: int) -> int:
        """Return the guess for a request of `size` bytes, whose reply may have `asked` tokens."""
        asked += min(self._beyond)
        known = self._taken.get(size.bit_length())
        if known is None:
            a_byte = min(1.0, max((a_byte for a_byte, _ in self._taken.values()), default=1.0))
            return math.ceil(size * a_byte) + asked
        a_byte, reply = known
        return math.ceil(size * a_byte) + min(asked, reply)

    def learn(self, size: int, prompt_tokens: int, completion_tokens: int, *, asked: int) -> None:
        """Learn what a call took: its request had `size` bytes, its reply might have `asked` tokens."""
        self._beyond = sorted((*self._beyond, completion_tokens - asked))[1:]
        about = size.bit_length()
        a_byte, reply = self._taken.get(about, (0.0, 0))
        self._taken[about] = max(a_byte, prompt_tokens / size), max(reply, completion_tokens)


class Account:
    """What all runs, copies and forks of an LLM share: what the next call has to know of those before it.

    A fork goes on with what was counted before it. What the parent's calls in flight may cost counts there as
    spent.

    Args:
        max_concurrency: the most requests in flight.
        rpm: the most requests a minute; None: any number.
        tpm: the most tokens a minute; None: any number.
        rounds: see `Gate`.
        patience: seconds, see `Gate`.
        budget: what calls may cost; None: any amount.
        keeps_beyond: whether `beyond` and `added` outlive the runs in which they were found out.
        connections: see `Gate`.

    Attributes:
        gate: how many requests are let through, and the pauses that the endpoint asks for.
        bounds: the budget, and the limits a minute.
        in_flight: the requests that are sent, and the open runs.
        tokens: guesses what the next call takes of the tokens a minute.
        has_run: whether a model has answered a call of this caller's.
        beyond: the most tokens by which a reply was longer than it was asked to be. The budget reserves as
            many for those that follow.
        added: the most tokens by which a prompt was longer than its bytes: the endpoint adds to prompts. The
            budget reserves as many for those that follow.
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
        connections: int = 0,
    ) -> None:
        self.gate = Gate(max_concurrency, rounds=rounds, patience=patience, connections=connections)
        self.bounds = Bounds(budget, Window(rpm) if rpm else None, Window(tpm) if tpm else None)
        self.in_flight = InFlight()
        self.tokens = TokenGuess()
        self.has_run = False
        self.beyond = 0
        self.added = 0
        self._keeps_beyond = keeps_beyond
        renew_in_forks(self)

    def begin(self) -> bool:
        """Begin a run. If no other run is open, forget the endpoint's refusals, `beyond` and `added`.

        An endpoint that was given up is tried again in any case. Both are kept with `keeps_beyond`, that is
        if the fields of requests do not tell how long replies may be: only replies tell it.

        Returns:
            Whether one was forgotten, and the next reply should tell it before others are asked for.
        """
        beside_others = self.in_flight.has_runs
        self.gate.reset(beside_others=beside_others)
        if beside_others or self._keeps_beyond:
            return False
        forgotten = self.beyond + self.added
        self.beyond = self.added = 0
        return forgotten > 0

    def renew_in_fork(self) -> None:
        """Free what the parent's threads held. The objects stay the same for those that refer to them."""
        for part in (self.gate, self.in_flight, *self.bounds):
            if part is not None:
                part.renew_in_fork()
