"""Windows, the gate and the budget, on an event loop whose time passes only when all are waiting."""

from __future__ import annotations

import asyncio
import selectors
from contextlib import nullcontext
from functools import partial
from itertools import pairwise, product
from math import isclose
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personainfer.exceptions import BudgetExceededError, RateLimitError, RequestRejectedError
from personainfer.llm import rate_limits
from personainfer.llm.pricing import Budget, Price
from personainfer.llm.rate_limits import Account, Gate, Place, RefusalWatch, TokenGuess, Window

pytestmark = pytest.mark.anyio


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting for a timer, makes it later."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("deadlock: everybody waits, and nobody for the clock")
        self.now += timeout
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


@pytest.fixture(autouse=True)
def pauses_as_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they take no time."""
    monkeypatch.setattr(rate_limits, "_FIRST_PAUSE", 0.5)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": _VirtualLoop}


def now() -> float:
    return asyncio.get_running_loop().time()


async def at(time: float) -> None:
    await asyncio.sleep(time - now())


def window(limit: float) -> Window:
    return Window(limit, clock=now)


async def send(shared: Window, units: float) -> Place:
    """Wait until so many units fit, and send them at once."""
    place = await shared.take(units)
    shared.sent(place)
    return place


def gate(width: int, rounds: int = 10, patience: float = 300.0) -> Gate:
    return Gate(width, rounds=rounds, patience=patience, clock=now, sleep=asyncio.sleep)


async def entries_at(asked: Gate, count: int, until: float) -> list[float]:
    """When `count` requests that never leave got through the gate, up to a time."""
    tasks = [asyncio.create_task(asked.enter()) for _ in range(count)]
    await at(until)
    entered = [task.result() for task in tasks if task.done() and not task.exception()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in entered:
        asked.leave()
    return entered


# Times are eighths of a second, so that sums of them are exact.
gaps = st.lists(st.tuples(st.integers(0, 240), st.integers(1, 15)), max_size=25)


@pytest.mark.heavy
@settings(max_examples=60)
@given(arrivals=gaps, limit=st.integers(1, 10))
async def test_no_minute_holds_more_than_the_limit(
    arrivals: list[tuple[int, int]], limit: int
) -> None:
    arrived: list[tuple[float, int]] = []
    granted: list[tuple[float, float, int]] = []

    async def ask(shared: Window, time: float, units: int) -> None:
        await at(time)
        arrived.append((time, units))
        await send(shared, units)
        granted.append((time, now(), units))

    shared, time = window(limit), 0.0
    asking = []
    for gap, units in arrivals:
        time += gap / 8
        asking.append(ask(shared, time, units))
    await asyncio.gather(*asking)
    assert [(came, units) for came, _, units in granted] == arrived  # first come, first served
    for place, (came, start, units) in enumerate(granted):
        minute = [u for _, time, u in granted[place:] if time < start + 60]
        assert sum(minute) <= limit or minute == [units]  # more than the limit passes, alone
        # Nobody waits for anything but their turn or for room.
        turn = granted[place - 1][1] if place else 0.0
        room = [time + 60 * max(1.0, u / limit) for _, time, u in granted[:place]]
        assert any(isclose(start, time) for time in (came, turn, *room))


async def test_tokens_that_were_not_used_make_room_at_once() -> None:
    """An estimate is corrected by the reply: nobody waits a minute for what it was too high by."""

    tokens = window(100)
    entry = await send(tokens, 90)
    waiting = asyncio.create_task(send(tokens, 50))
    await at(1)
    tokens.correct(entry, 60)
    await at(2)
    assert not waiting.done()
    tokens.correct(entry, 50)
    await waiting
    assert now() == 2


async def test_a_full_window_opens_as_its_oldest_entries_leave() -> None:
    shared = window(3)
    times = []
    for second in (0, 10, 20, 20, 20, 20):
        if second > now():
            await at(second)
        await send(shared, 1)
        times.append(now())
    assert times == [0, 10, 20, 60, 70, 80]


async def test_more_than_the_limit_waits_until_it_is_alone() -> None:
    shared = window(10)
    await send(shared, 1)
    await send(shared, 50)
    assert now() == 60
    await send(shared, 1)
    assert now() == 60 + 5 * 60  # they have filled five windows


async def test_limits_below_one_request_hold() -> None:
    """A worker's share of rpm= may be less than one request a minute."""
    shared = window(0.25)
    for _ in range(3):
        await send(shared, 1)
    assert now() == 2 * 240


async def test_a_correction_frees_or_takes_room() -> None:
    shared = window(10)
    first = await send(shared, 8)
    shared.correct(first, 3)
    second = await send(shared, 7)
    assert now() == 0
    await at(30)
    shared.correct(second, 2)
    await send(shared, 4)
    shared.correct(first, 4)  # the endpoint counted more after all: now it is full
    await send(shared, 1)
    assert now() == 60


async def test_what_is_learned_while_a_request_waits_counts_for_it() -> None:
    """Else each request that waits for the first reply would count as the most, and go alone."""
    shared, guess = window(100), TokenGuess()
    first = await send(shared, guess.of(400, 100))
    waiting = [asyncio.create_task(shared.take(partial(guess.of, 400, 100))) for _ in range(3)]
    await at(5)
    assert not any(task.done() for task in waiting)
    guess.learn(400, 20, 5, asked=100)
    shared.correct(first, 25)
    await asyncio.gather(*waiting)
    assert now() == 5


def test_tokens_are_guessed_by_those_of_calls_of_about_the_same_size() -> None:
    guess = TokenGuess()
    assert guess.of(1000, 200) == 1200  # the most that is possible
    guess.learn(40, 1540, 5, asked=200)  # a server that adds 1,500 tokens of its own
    assert guess.of(6000, 200) == 6000 + 200  # as long a request was never answered
    guess.learn(6000, 3000, 50, asked=200)
    assert guess.of(6200, 200) == 3100 + 50
    assert guess.of(6200, 20) == 3100 + 20
    guess.learn(6200, 1000, 10, asked=200)
    assert guess.of(6000, 200) == 3000 + 50  # the largest so far


async def test_a_request_counts_when_it_is_sent_however_long_it_waited() -> None:
    """For the gate, in a pause: else twice as many would be sent in the minute after it."""
    shared = window(2)
    waiting = [await shared.take(1) for _ in range(2)]
    later = asyncio.create_task(shared.take(1))
    await at(90)
    assert not later.done()
    shared.sent(waiting[0])
    await at(100)
    shared.leave(waiting[1])  # it was given up before it was sent
    await later
    assert now() == 100
    await shared.take(1)
    assert now() == 90 + 60


async def test_correcting_what_has_left_the_window_changes_nothing() -> None:
    shared = window(10)
    old = await send(shared, 10)
    await at(61)
    await send(shared, 5)
    shared.correct(old, 1000)
    await send(shared, 5)
    assert now() == 61
    shared.correct(old, 0)
    await send(shared, 1)
    assert now() == 121


async def test_runs_that_begin_beside_others_do_not_keep_the_gate_from_giving_up() -> None:
    asked = gate(1, rounds=2)
    for number in range(3):
        entered = await asked.enter()
        asked.leave()
        asked.reset(beside_others=True)
        with pytest.raises(RateLimitError) if number == 2 else nullcontext():
            asked.refused(entered, RateLimitError("slower"))
    asked.reset(beside_others=True)  # given up: a new run tries it again
    await asked.enter()


async def test_somebody_who_stops_waiting_for_the_window_lets_the_next_one_go_on() -> None:
    shared = window(1)
    await send(shared, 1)
    impatient = asyncio.create_task(send(shared, 1))
    patient = asyncio.create_task(send(shared, 1))
    await at(30)
    impatient.cancel()
    await patient
    assert now() == 60


async def test_the_gate_lets_its_width_through_at_a_time() -> None:
    shared, inside, peak = gate(4), 0, 0

    async def work() -> None:
        nonlocal inside, peak
        await shared.enter()
        inside += 1
        peak = max(peak, inside)
        await asyncio.sleep(1)
        inside -= 1
        shared.leave()

    await asyncio.gather(*(work() for _ in range(20)))
    assert (peak, now()) == (4, 5)


async def test_the_gate_lets_those_in_first_who_came_first() -> None:
    """Half of those who waited went to the end of the line at each entry, and rows came late."""
    shared, order = gate(2), list[int]()

    async def work(number: int) -> None:
        await shared.enter()
        order.append(number)
        await asyncio.sleep(2 + number % 2)
        shared.leave()

    await asyncio.gather(*(work(number) for number in range(20)))
    assert order == sorted(order)


async def test_a_refusal_stops_everybody_for_as_long_as_the_endpoint_says() -> None:
    shared = gate(10)
    entered = await shared.enter()
    shared.refused(entered, RateLimitError("slow down", retry_after=30))
    shared.leave()
    assert await entries_at(shared, 5, until=100) == [30] * 5


async def test_a_longer_pause_is_not_cut_short_by_a_later_refusal() -> None:
    shared = gate(10)
    entered = [await shared.enter(), await shared.enter()]
    shared.refused(entered[0], RateLimitError("slow down", retry_after=30))
    await at(1)
    shared.refused(entered[1], RateLimitError("slow down", retry_after=2))
    assert await shared.enter() == 30


async def test_an_endpoint_that_refuses_even_what_is_asked_at_once_is_given_up() -> None:
    """A request that asks whether others are taken opens the gate; that must not begin the count anew."""
    shared = gate(1, rounds=3)

    async def asked_at_once() -> None:
        shared.reset(at_once=True)
        entered = await shared.enter()
        try:
            shared.refused(entered, RateLimitError("", retry_after=0))
        finally:
            shared.leave()

    for _ in range(3):
        await asked_at_once()
    with pytest.raises(RateLimitError, match="refused 4 times in a row"):
        await asked_at_once()


async def test_pauses_double_where_the_endpoint_names_no_time() -> None:
    shared, times = gate(1, rounds=20), []
    for _ in range(10):
        times.append(await shared.enter())
        shared.refused(times[-1], RateLimitError("slow down"))
        shared.leave()
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("named", "paused"),
    [(0.0, [0, 0.5, 1, 2, 4, 8]), (0.008, [0.008, 0.5, 1, 2, 4, 8]), (3.0, [3, 3, 3, 3, 4, 8])],
)
async def test_an_endpoint_that_names_too_short_a_time_is_not_given_up_within_moments(
    named: float, paused: list[float]
) -> None:
    """A proxy says "Retry-After: 0" for as long as it is full: its rounds would pass in no time."""

    shared, times = gate(1), []
    for _ in range(7):
        times.append(await shared.enter())
        shared.refused(times[-1], RateLimitError("slow down", retry_after=named))
        shared.leave()
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx(paused)


async def test_the_gate_narrows_after_a_refusal_and_widens_with_each_acceptance() -> None:
    shared = gate(10)
    shared.refused(await shared.enter(), RateLimitError("slow down", retry_after=1))
    shared.leave()
    assert len(await entries_at(shared, 20, until=2)) == 7
    shared.accepted()
    assert len(await entries_at(shared, 20, until=3)) == 8
    for _ in range(5):
        shared.accepted()
    assert len(await entries_at(shared, 20, until=4)) == 10


async def test_a_place_that_acceptance_makes_is_given_to_who_waits() -> None:
    shared = gate(2)
    shared.refused(await shared.enter(), RateLimitError("slow down", retry_after=0))
    waiting = asyncio.create_task(shared.enter())
    await at(1)
    assert not waiting.done()
    shared.accepted()
    assert await waiting == 1


async def test_at_least_one_request_goes_through_however_often_it_was_refused() -> None:
    shared = gate(3, rounds=50)
    for _ in range(20):
        shared.refused(await shared.enter(), RateLimitError("slow down", retry_after=1))
        shared.leave()
    assert len(await entries_at(shared, 5, until=1000)) == 1


async def test_refusals_of_what_was_sent_before_the_pause_count_once() -> None:
    shared = gate(10, rounds=1)
    entered = [await shared.enter() for _ in range(10)]
    await at(1)
    for time in entered:
        shared.refused(time, RateLimitError("slow down"))
        shared.leave()
    assert await entries_at(shared, 10, until=10) == [1.5] * 7


async def test_the_gate_gives_up_after_rounds_of_refusals_and_tells_everybody() -> None:
    shared = gate(1, rounds=3)
    for _ in range(3):
        shared.refused(await shared.enter(), RateLimitError("slow down", retry_after=1))
        shared.leave()
    last = await shared.enter()
    waiting = asyncio.create_task(shared.enter())
    await asyncio.sleep(1)
    with pytest.raises(RateLimitError, match=r"refused 4 times in a row.*max_concurrency") as e:
        shared.refused(last, RateLimitError("slow down", retry_after=1))
    assert e.value.given_up
    for asked in (waiting, shared.enter()):
        with pytest.raises(RateLimitError, match="refused 4 times"):
            await asked


async def test_an_acceptance_starts_the_count_of_refusals_again() -> None:
    shared = gate(1, rounds=3)
    for number in range(12):
        entered = await shared.enter()
        if number % 3 == 2:
            shared.accepted()
        else:
            shared.refused(entered, RateLimitError("slow down"))
        shared.leave()
    assert now() == 4 * (0.5 + 1)


async def test_the_gate_gives_up_when_told_to_wait_beyond_its_patience() -> None:
    shared = gate(1, patience=20)
    shared.refused(await shared.enter(), RateLimitError("slow down", retry_after=20))
    shared.leave()
    entered = await shared.enter()
    assert entered == 20
    with pytest.raises(RateLimitError, match="wait 21 s, longer than patience=20"):
        shared.refused(entered, RateLimitError("slow down", retry_after=21))
    shared.leave()
    with pytest.raises(RateLimitError, match="patience=20"):
        await shared.enter()
    assert now() == 20


async def test_reset_tries_an_endpoint_again_that_was_given_up() -> None:
    shared = gate(1, rounds=1)
    for _ in range(2):
        entered = await shared.enter()
        try:
            shared.refused(entered, RateLimitError("slow down"))
        except RateLimitError:
            shared.reset()
        shared.leave()
    entered = await shared.enter()
    shared.refused(entered, RateLimitError("slow down"))  # one round again before it gives up
    shared.leave()
    assert await shared.enter() == entered + 0.5


async def test_a_place_offered_to_somebody_who_left_goes_to_the_next() -> None:
    shared = gate(1)
    await shared.enter()
    impatient = asyncio.create_task(shared.enter())
    patient = asyncio.create_task(shared.enter())
    await at(1)
    shared.leave()
    impatient.cancel()  # after the place was offered, before it could be taken
    assert await patient == 1


async def test_a_place_offered_to_somebody_who_leaves_during_a_pause_goes_to_the_next() -> None:
    shared = gate(1)
    entered = await shared.enter()
    impatient = asyncio.create_task(shared.enter())
    patient = asyncio.create_task(shared.enter())
    await at(1)
    shared.refused(entered, RateLimitError("slow down", retry_after=30))
    shared.leave()
    await at(10)
    impatient.cancel()
    assert await patient == 31


async def test_somebody_who_stops_waiting_for_the_gate_takes_no_place() -> None:
    shared = gate(1)
    await shared.enter()
    impatient = asyncio.create_task(shared.enter())
    patient = asyncio.create_task(shared.enter())
    await at(1)
    impatient.cancel()
    await at(2)
    shared.leave()
    assert await patient == 2


PRICE = Price(0.25, 0.5)  # quarters, so that sums are exact
calls = st.lists(
    st.tuples(
        st.integers(0, 20),  # prompt tokens
        st.integers(1, 20),  # the most completion tokens
        st.floats(0, 1),  # the part of them that is used
        st.integers(0, 40),  # starts after so many eighths of a second
        st.integers(1, 40),  # and takes so many
    ),
    max_size=12,
)


@pytest.mark.heavy
@settings(max_examples=60)
@given(calls=calls, usd=st.integers(0, 40))
async def test_the_budget_is_never_passed(
    calls: list[tuple[int, int, float, int, int]], usd: int
) -> None:
    budget = Budget(usd)
    refused = []

    async def call(prompt: int, most: int, used: float, start: int, takes: int) -> None:
        await at(start / 8)
        try:
            reserved = await budget.reserve(PRICE.most(prompt, most))
        except BudgetExceededError:
            refused.append(PRICE.cost(prompt, most))
            # Refused only when even with nothing in flight it could have passed the budget.
            assert budget.spent + refused[-1] > usd
            return
        await asyncio.sleep(takes / 8)
        budget.settle(reserved, PRICE.cost(prompt, int(most * used)))
        assert budget.spent <= usd

    await asyncio.gather(*(call(*one) for one in calls))
    assert budget.spent <= usd
    assert all(budget.spent + cost > usd for cost in refused)


async def test_the_budget_waits_for_calls_in_flight_to_settle() -> None:
    budget = Budget(10)
    first = await budget.reserve(PRICE.most(0, 16))
    waiting = asyncio.create_task(budget.reserve(PRICE.most(0, 16)))
    await at(5)
    assert not waiting.done()
    budget.settle(first, 1.0)
    assert await waiting == 8
    assert now() == 5
    assert budget.spent == 1


async def test_a_call_that_failed_gives_all_of_its_reservation_back() -> None:
    budget = Budget(8)
    for _ in range(5):
        budget.settle(await budget.reserve(PRICE.most(0, 16)), 0.0)
    assert budget.spent == 0


async def test_millions_of_dear_calls_leave_no_rest_of_a_reservation() -> None:
    """Else a call that does not fit would wait for ever."""
    budget = Budget(1e9)
    held: list[float] = []
    for count in range(3000):
        held.append(await budget.reserve(8 + count / 7))
        if len(held) == 64:
            budget.settle(held.pop(count % 64), 0.1)
    while held:
        budget.settle(held.pop(), 0.1)
    assert budget.taken == budget.spent
    with pytest.raises(BudgetExceededError):
        await budget.reserve(1e9)


async def test_an_order_is_charged_once_beside_what_is_in_flight() -> None:
    budget = Budget(10)
    held = await budget.reserve(4)
    with pytest.raises(BudgetExceededError, match=r"two parts may cost \$7\.0.* \$6 .*in flight"):
        budget.charge("two parts", {"a": 5, "b": 2})
    assert budget.taken == 4  # none of them
    for _ in range(2):
        budget.charge("two parts", {"a": 5, "b": 1})
    assert (budget.taken, budget.spent) == (10, 6)
    budget.give_back(["a", "never charged"])
    budget.settle(held, 4)
    assert budget.spent == 5
    budget.settle(await budget.reserve(1), 9)  # a reply took more than was reserved
    budget.charge("nothing new", {"b": 1})


async def test_the_error_says_what_is_spent_and_what_the_budget_is() -> None:
    budget = Budget(2.5)
    budget.settle(await budget.reserve(PRICE.most(4, 2)), 1.75)
    with pytest.raises(
        BudgetExceededError, match=r"\$1\.750000 of the budget of \$2\.5 .* cost \$1\.5.*larger"
    ) as caught:
        await budget.reserve(PRICE.most(4, 1))
    assert not caught.value.retryable


async def test_a_budget_that_is_met_exactly_is_not_passed() -> None:
    budget = Budget(3)
    budget.settle(await budget.reserve(PRICE.most(4, 4)), 3.0)
    assert budget.spent == 3
    with pytest.raises(BudgetExceededError):
        await budget.reserve(PRICE.most(0, 1))
    assert await budget.reserve(PRICE.most(0, 0)) == 0  # what costs nothing always passes


def test_limits_that_are_not_given_are_not_there() -> None:
    limits = Account(max_concurrency=3).bounds
    assert limits == (None, None, None)
    limits = Account(max_concurrency=3, rpm=60, tpm=1000).bounds
    assert limits.requests is not None
    assert limits.tokens is not None
    assert (limits.requests.limit, limits.tokens.limit) == (60, 1000)


@pytest.mark.parametrize("is_over", [False, True])
def test_refusals_that_all_differ_take_no_more_and_more_memory(is_over: bool) -> None:
    watch = RefusalWatch(8)
    if is_over:
        watch.accepted()
    words = ("".join(letters) for letters in product("abcdefgh", repeat=4))
    assert not any(watch.refused(RequestRejectedError(f"no {word}")) for word in words)
    assert len(watch._refusals) <= 1000
