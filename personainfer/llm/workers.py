"""Workers on the background loop: they send requests, retry, re-ask, and write replies to the cache.

A worker takes its next request only when its last reply is on disk, so a kill loses at most
`max_concurrency` calls. Replies that arrive together are written in one transaction.

`Workers` answer the requests of a run. A `_Sender` sends each of them within the limits, an `_Endpoint` tells
whether a fault is that of one request, and a `_Writer` writes to the cache.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, cast

import tenacity

from .. import event_loop as loop
from ..connections import attempts
from ..exceptions import (
    ModelError,
    RateLimitError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from ..local.cache import ReplyCache
from ..observability import log
from ..records import Completion, Message
from .openai_protocol import CUT_OFF, cut_off
from .pricing import ReplySize, Tally, cost_is_unknown
from .rate_limits import Account, Bounds, Place, RefusalWatch, Window
from .replies import reask
from .requests import (
    Form,
    Job,
    Reply,
    encoded,
    looked_up,
    read_anew,
    text_to_cache,
    with_advice,
)
from .transports import Transport

_LOCKED_PATIENCE = 60.0  # seconds: a cache that another program locks for longer ends the run
_LOCKED_PAUSE = 0.2  # seconds between two attempts to write to it
_GONE_AFTER = 20  # requests that must fail in a row before an endpoint counts as gone …
_FEW = 3  # … or so many, if that takes longer than a user waits for an endpoint
_HOPELESS_AFTER = 300  # replies in a row that cannot be used: shorter stretches of data may be so
_PROBED = 4  # one in so many of them has further attempts
_MORE_ROOM = 2  # times max_tokens for a reply that was cut off
_WORKER_STAGGER_S = 0.0008  # between the first requests of two workers
_REFUSALS = 3  # for going too fast, in a row, after which a request waits until others are sent
_WINDOW = 60.0  # seconds without an answered row after which nothing of a limit a minute is used up
_MOST_BEYOND = 2**17  # tokens beyond what was expected: larger counts are not believed
_SHORT = encoded([Message(role="user", content="?")])  # neither too long nor offensive


class _LaterError(Exception):
    """A request is to be sent after the others that wait."""


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How the requests of a run are sent.

    Attributes:
        timeout: seconds to wait for a reply.
        max_attempts: the most calls for one request; those refused for going too fast do not count.
        max_tokens: the most tokens of a reply, as the user asked.
        size: what the user's own fields of requests say of the size of replies.
        max_concurrency: the most calls in flight.
        model: the name as the user gave it: the cache stores it with each reply.
    """

    timeout: float
    max_attempts: int
    max_tokens: int
    size: ReplySize
    max_concurrency: int
    model: str


class Workers:
    """The part of a run on the background loop: as many workers as calls may be in flight.

    Making one registers the run with `account`, see `InFlight.open`. `submit` and `close` are for the
    caller's thread.

    Args:
        transport: sends the requests.
        account: what the runs of the LLM share.
        bounds: the budget and the limits a minute.
        cache: where replies are kept; None: nowhere.
        settings: how requests are sent.
        tally: counts that grow with the run.
    """

    def __init__(
        self,
        transport: Transport,
        account: Account,
        bounds: Bounds,
        cache: ReplyCache | None,
        settings: CallSettings,
        tally: Tally,
    ) -> None:
        self.done: SimpleQueue[None] = SimpleQueue()  # a token whenever replies have come
        self.fatal: BaseException | None = None
        self.cancelled = False
        self.met_another = False  # whether another run of this LLM was open at the same time
        self._transport = transport
        self._cache = cache
        self._writer = None if cache is None else _Writer(cache, settings.model, self._cannot_write)
        self._settings = settings
        self._tally = tally
        refusals = RefusalWatch(settings.max_concurrency)
        self._sender = _Sender(transport, account, bounds, settings, tally, refusals)
        self._endpoint = _Endpoint(self._sender)
        self._in_flight = account.in_flight
        self._jobs: deque[Job] = deque()
        self._later: deque[Job] = deque()  # those that were refused often for going too fast
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = False
        self._open = False
        self._retrying = attempts(settings.max_attempts, before_retry=self._count)
        self._in_flight.open(self)

    @property
    def waiting(self) -> int:
        """How many jobs no worker has taken."""
        return len(self._jobs)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, and start workers for them. Do not wait for replies: each job's `reply` is set later.

        Raises:
            ModelError: the caller is on the loop that would answer the jobs, or the transport has no usable
                key.
            PersonaInferError: the system starts no more threads.
        """
        if jobs:
            loop.check_may_wait()
            if not self._open:
                self._transport.open()
                self._open, self._pid = True, os.getpid()
                _running.add(self)
            self._jobs.extend(jobs)  # a deque may grow here while the workers take from it
            loop.call(self._start_workers, len(jobs))

    def close(self) -> None:
        """Stop every worker, and wait until it has stopped. Jobs without a reply stay without one."""
        self._in_flight.close(self)
        if not self._open:
            return
        self._open = False
        _running.discard(self)
        # Nothing runs that could be stopped: the loop's thread is frozen, or was left behind by a fork.
        if sys.is_finalizing() or self._pid != os.getpid():
            return
        if threading.current_thread() is loop.thread():  # the garbage collector runs there
            loop.start(self._stop())
        else:
            loop.run(self._stop(), may_be_cut_short=False)

    def _start_workers(self, jobs: int) -> None:
        for place in range(min(jobs, self._settings.max_concurrency - len(self._tasks))):
            task = asyncio.get_running_loop().create_task(self._work(place * _WORKER_STAGGER_S))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        self._jobs.clear()
        self._later.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._cache is not None:
            self._cache.close()  # of this thread, the one that writes
        await self._transport.close()

    async def _work(self, delay: float) -> None:
        """Take jobs and answer them until none is left. Begin after `delay` seconds.

        Workers begin one after the other, since replies that come together wait for each other here.
        """
        try:
            if delay:
                await asyncio.sleep(delay)
            while (self._jobs or self._later) and not (self.fatal or self.cancelled):
                await self._serve((self._jobs or self._later).popleft())
        finally:
            # Now, not in a callback of the task: requests that come in between would find every
            # place taken by a worker that has ended, and nobody would send them.
            self._tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _serve(self, job: Job) -> None:
        """Have a job answered. An error of the cache, or a bug, is set as `fatal`, and ends the run.

        Only `_stop` cancels a worker. A validator of the user's may raise CancelledError at other times: then
        the job has an error, since the caller waits for a reply.
        """
        try:
            await self._reply_to(job)
        except _LaterError:
            self._later.append(job)
        except asyncio.CancelledError:
            if not self._open:
                raise
            task = cast("asyncio.Task[None]", asyncio.current_task())
            while task.uncancel():  # or a later time-out would be taken for another cancellation
                pass
            self._tally.errors += 1
            job.reply = Reply(error=ModelError("the call was cancelled from within."))
        except BaseException as error:  # the cache failed, or a bug: the caller must not wait
            self._end(error)
        self._tell()

    def _end(self, error: BaseException) -> None:
        """End the run with this error."""
        self.fatal = error
        self._endpoint.is_left = True
        self._sender.ran_nothing = getattr(error, "ran_nothing", False)

    async def _reply_to(self, job: Job) -> None:
        """Set the job's reply, which may be an error. If every request would meet it, set `fatal`, too."""
        try:
            if self.met_another or job.key in self._in_flight.asked:
                job.reply = await self._known(job)
            if job.reply is None:
                job.reply = await self._answer(job)
                self._endpoint.answered()
        except ModelError as found:
            error = found
            if error.__suppress_context__:  # what a provider or its client raised may hold the key
                error.__context__ = None
            self._tally.errors += 1
            log.debug("no reply: %s", type(error).__name__)
            if error.fatal:
                self._end(error)
            if isinstance(error, TransportError):
                await self._endpoint.count_failure(job, error)
            elif isinstance(error, ReplyError):
                await self._endpoint.count_unread(job, error)
            job.reply = Reply(error=error)

    async def _known(self, job: Job) -> Reply | None:
        """Return another run's reply to the same request; None: there is none.

        If another run has the request in flight, wait for its reply. It may also have cached one since this
        run read the cache.
        """
        reply = None
        # Of several that wait for a reply and cannot read it, the first to go on sends its request.
        while reply is None and (asked := await self._in_flight.other_reply(job.key)) is not None:
            reply = read_anew(job, asked)
        if reply is None:
            reply = looked_up(job, self._cache)
        self._tally.cached += reply is not None
        return reply

    async def _answer(self, job: Job) -> Reply:
        """Send the request, retry it, and cache the reply. Other runs with the same request wait for it.

        Raises:
            ModelError: there is no usable reply after all attempts.
        """
        dead = self._endpoint.dead
        if dead is not None:
            raise dead.with_traceback(None)  # the traceback grows, and holds requests
        reply = None
        self._in_flight.begin(job.key)
        try:
            try:  # most requests need no retry, so tenacity's set-up (0.1 ms) waits for a failure
                answer: tuple[Completion, Any] = await self._attempt(job)
            except ModelError as error:
                if isinstance(error, ReplyError) and self._endpoint.is_useless_again(error):
                    raise
                answer = await self._retrying(self._attempt, job, iter([error]))
            else:
                doubt = job.form.doubt
                if doubt is not None and (advice := doubt(answer[1])) is not None:
                    answer = await self._better(job, answer, advice, doubt)
            completion, value = answer
            if self._writer is not None:
                await self._writer.keep(job.cache_key, completion)
            reply = Reply(value, completion.text, logprobs=completion.logprobs)
            return reply
        finally:
            self._in_flight.end(job.key, reply)

    async def _better(
        self,
        job: Job,
        first: tuple[Completion, Any],
        advice: str,
        doubt: Callable[[Any], str | None],
    ) -> tuple[Completion, Any]:
        """Ask once more after a doubtful reply. Return the first one if the second fails, or is doubtful too.

        Args:
            job: the request.
            first: the doubtful reply, and its value.
            advice: what the model should heed.
            doubt: see `Request`.
        """
        if self._settings.max_attempts == 1:
            return first
        if self._writer is not None:  # the first reply is paid for, and the run may end meanwhile
            await self._writer.keep(job.cache_key, first[0])
        self._tally.reasks += 1
        try:
            # Small models repeat a reply that they are shown.
            second = await self._attempt(replace(job, tail=with_advice(job.tail, advice)))
        except (ModelError, _LaterError) as error:
            log.debug("a doubtful reply stands: %s", type(error).__name__)
            return first
        return first if doubt(second[1]) else second

    async def _attempt(self, job: Job, failed: Iterable[ModelError] = ()) -> tuple[Completion, Any]:
        """Make one attempt: send a job, and read its reply. Return both.

        It is sent again within the attempt after a refusal for going too fast, or in a wrong form.

        Args:
            job: the request.
            failed: the error of the attempt before the retries, which is raised at once. tenacity counts it
                so.

        Raises:
            ModelError: the attempt failed.
        """
        for failure in failed:
            raise failure
        endpoint = self._endpoint
        completion: Completion | None = None
        while completion is None:  # a refusal for going too fast, or for its form, is no attempt
            before = job.refusals
            try:
                completion = await self._sender.send(job)
                endpoint.took(job)
            except ModelError as error:
                if error.completion is not None:
                    endpoint.refused_rows = 0
                if isinstance(error, ReplyError) and error.is_whole and job.form.schema is not None:
                    completion = error.completion  # cut off behind the answer
                    continue
                if not (self._is_sent_again(error) or await endpoint.is_full(job, error, before)):
                    await endpoint.check_whose(job, error)
                    await endpoint.check_hopeless(job, error)
                    raise
                if self._jobs and job.refusals >= _REFUSALS and not failed:
                    raise _LaterError from None
                if not self._jobs:
                    await endpoint.check_size(job, error)
        try:
            value = job.form.read(completion.text)
        except ReplyError as unread:
            problem = unread
            problem.completion = completion
            # Behind an object that is not the answer.
            was_cut = completion.finish_reason.lower() in CUT_OFF
            if was_cut or completion.completion_tokens == self._sender.asked_tokens(job):
                problem = cut_off(completion, retryable=job.room == 1)  # whatever its reason says
            if job.form.schema is not None and not was_cut:
                self._transport.was_read(completion, fits=False)
            raise problem from None
        if job.form.schema is not None:
            self._transport.was_read(completion, fits=True)
        return completion, value

    def _is_sent_again(self, error: ModelError) -> bool:
        """Return whether the request is sent again without counting as a further attempt."""
        waits = isinstance(error, RateLimitError) and not error.given_up
        if waits or error.rewritten:
            self._tally.retries += 1
            log.debug("refused, and sent again: %s", type(error).__name__)
            return True
        return False

    def _count(self, state: tenacity.RetryCallState) -> None:
        """Count a further attempt, and tell the model what was wrong with its reply. tenacity calls this.

        After a reply that was cut off, ask for a longer one instead.
        """
        error = state.outcome.exception() if state.outcome else None
        job: Job = state.args[0]
        log.debug("attempt %d failed: %s", state.attempt_number, type(error).__name__)
        if isinstance(error, ReplyError):
            self._tally.reasks += 1
            if error.cut_off:
                job.room, job.turns = _MORE_ROOM, ()
                return
            text = error.completion.text if error.completion else ""
            job.turns = [("assistant", text), ("user", reask(error))] if text.strip() else []
        else:
            self._tally.retries += 1

    def _cannot_write(self, error: BaseException) -> None:
        self._end(error)
        self._tell()

    def _tell(self) -> None:
        """Wake the caller once for all replies of this turn of the loop.

        The caller wakes in a later turn, not by call_soon: a caller who wakes takes the interpreter from this
        thread, so first comes whatever has arrived meanwhile.
        """
        if not self._told:
            self._told = True
            asyncio.get_running_loop().call_later(0, self._wake)

    def _wake(self) -> None:
        self._told = False
        self.done.put(None)


class _Endpoint:
    """What a run has learned of its endpoint: whether a fault is that of one request, or concerns all.

    Short requests, which are neither too long nor offensive, tell.

    Args:
        sender: sends the requests, short ones among them.

    Attributes:
        dead: why no more is sent; None: more is.
        is_left: whether the run ends, so that nobody needs to know more.
        refused_rows: requests in a row that were refused although a short one was taken.
    """

    def __init__(self, sender: _Sender) -> None:
        self.dead: ModelError | None = None
        self.is_left = False
        self.refused_rows = 0
        self._sender = sender
        self._refusals = sender.refusals
        self._gate = sender.account.gate
        # Failures in a row after which an endpoint, or a model, is asked less.
        self._many = max(_GONE_AFTER, sender.settings.max_concurrency)
        self._failures = 0  # requests in a row whose connection or endpoint failed …
        self._failing_since = 0.0  # … and when the first of them had failed
        # Requests in a row without a reply that can be used, in the form (of the dialect) that is asked for.
        self._unread = 0
        self._unread_form = 0
        self._spared = 0  # of these, how many seemed to need no further attempt
        self._was_read = False  # whether any reply of this run could be used
        self._taken_at = -math.inf  # when the endpoint last took a row …
        self._taken_form: Form | None = None  # … and in what form
        # Bytes of the shortest request that is larger than a limit a minute.
        self._too_long = math.inf
        self._one_asks = asyncio.Lock()  # one at a time sends a short request
        self._asked_at = -math.inf  # when a short request was last answered …
        self._found: ModelError | None = None  # … and its error

    def is_useless_again(self, error: ReplyError) -> bool:
        """Return whether further attempts after this error would help no more than those of rows before.

        That is so if there were many, and none of the run had a reply that can be used. Each fourth row has
        its further attempts all the same, and so has a reply that was cut off: they may be what others need.
        """
        may_be_hopeless = error.completion is None or not self._any_was_read
        if error.cut_off or self._unread < self._many or not may_be_hopeless:
            return False
        self._spared += 1
        return self._spared % _PROBED > 0

    def took(self, job: Job) -> None:
        """Note that the endpoint took a request, and gave a reply."""
        self._taken_at, self._taken_form, self.refused_rows = time.monotonic(), job.form, 0

    def answered(self) -> None:
        """Note that a reply could be used."""
        self._failures = self._unread = 0
        self._was_read = True

    async def count_failure(self, job: Job, error: TransportError) -> None:
        """Send no more requests after as many failures in a row as calls may be in flight, but at least 20.

        A few are enough if they go on for as long as `patience`. The texts of these requests may be the
        reason, so a short request has to fail, too.
        """
        now = time.monotonic()
        self._failing_since = self._failing_since if self._failures else now
        self._failures += 1
        has_lasted = now - self._failing_since > self._gate.patience
        if self._failures < (_FEW if has_lasted else self._many) or self.dead:
            return
        if not isinstance(await self._short_error(job), TransportError):
            self._failures = 0
        elif self.dead is None:
            self.dead = TransportError(
                f"not sent, since {self._failures} requests in a row failed: {error.message}",
                hint=error.hint or "Is the server up? Call again when it is.",
            )
            log.warning("%d requests in a row failed: no more are sent", self._failures)

    async def count_unread(self, job: Job, error: ReplyError) -> None:
        """Send no more requests if the model has not given one reply that can be used, to many requests.

        These are more than those after which each has a single call. Their texts may be the reason, so the
        reply to a short request has to be useless, too. Replies that a filter stopped tell of their rows
        alone, and do not count.
        """
        self._failures = 0  # the reply is useless, but the endpoint answers
        if not (error.retryable or error.cut_off):
            return
        form = self._sender.transport.dialect.version
        self._unread = self._unread + 1 if form == self._unread_form else 1
        self._unread_form = form
        if not self._may_be_hopeless(error):
            return
        async with self._one_asks:
            if not self._may_be_hopeless(error):
                return  # found out meanwhile
            if await self._is_short_reply_useless(job):
                hint = "Name a model that follows instructions and writes JSON."
                if error.completion is None:
                    hint = "See what the endpoint answers, and call again."
                self.dead = ReplyError(
                    f"not sent, since {self._unread} requests in a row had no reply that can be used:"
                    f" {error.message}",
                    hint=error.hint or hint,
                )
                log.warning("%d replies in a row were useless: no more are sent", self._unread)
            else:
                self._unread = self._many

    @property
    def _any_was_read(self) -> bool:
        """Whether any reply could be used, of this run or of one whose replies are in the cache."""
        return self._was_read or self._sender.tally.cached > 0

    def _may_be_hopeless(self, error: ReplyError) -> bool:
        """Return whether a short request should tell if any reply can be used. A login page is no reply."""
        most: float = 2 * self._many
        if error.completion is not None:
            most = math.inf if self._any_was_read else max(most, _HOPELESS_AFTER)
        return self.dead is None and self._unread >= most

    async def _is_short_reply_useless(self, job: Job) -> bool:
        """Return whether a short request in the form of this one has a reply, and a useless one.

        Where others could be used, only what is no reply of a model counts as useless.
        """
        answer = await self._short_answer(job)
        if self._any_was_read:
            return isinstance(answer, ReplyError) and answer.completion is None
        try:
            if isinstance(answer, Completion):
                job.form.read(answer.text)
                return False
        except ReplyError:
            return True
        return isinstance(answer, ReplyError)

    async def is_full(self, job: Job, error: ModelError, before: int) -> bool:
        """Return whether to send a request again after the endpoint seemed to refuse all, for going too fast.

        If the endpoint refuses a short request as well, or as many rows in a row as calls may be in flight,
        but at least 20, no more requests are sent, and this returns False. It may be one row that is told to
        wait for hours: it is larger than what is left of a limit a day.

        Args:
            job: the request.
            error: its refusal.
            before: how many times it was refused before.

        Raises:
            RequestRejectedError: only this request is refused. It may be larger than the limit of a minute.
        """
        if not (isinstance(error, RateLimitError) and error.given_up):
            return False
        if self.dead is None and not _is_answer(await self._short_error(job, reopen=True)):
            self.dead = error
            self._gate.give_up(error)
        if self.dead is not None:
            return False
        told_to_wait = job.refusals > before and error.retry_after is not None
        if not told_to_wait and job.refusals < _REFUSALS:
            return True
        self.refused_rows += 1
        if self.refused_rows >= self._many:
            self.dead = error
            self._gate.give_up(error)
            return False
        raise self._refused_alone(error) from None

    @staticmethod
    def _refused_alone(error: ModelError) -> RequestRejectedError:
        return RequestRejectedError(
            f"refused, although the endpoint takes other requests: {error.message}",
            hint="It may be larger than what the endpoint takes in a minute, or go to another model there.",
        )

    async def check_size(self, job: Job, error: ModelError) -> None:
        """Raise an error of this request alone, the last one, if it is refused for going too fast.

        Such a request would hold up all others until the gate gives up, which takes minutes. It has an error
        when the endpoint has taken nothing for a minute. If one has failed so, those that are as long or
        longer do not wait for the minute.

        Raises:
            RequestRejectedError: the endpoint takes a short request.
        """
        is_too_fast = isinstance(error, RateLimitError) and not error.loading
        if not is_too_fast or job.refusals <= _REFUSALS:
            return
        length = len(job.body)
        if length < self._too_long and time.monotonic() - self._taken_at < _WINDOW:
            return
        if _is_answer(await self._short_error(job, reopen=True)):
            self._too_long = min(length, self._too_long)
            raise self._refused_alone(error) from None

    async def check_whose(self, job: Job, error: ModelError) -> None:
        """Raise an error of this request alone if its refusal would end the run, but others are taken.

        A firewall refuses the words of one row with the status of a wrong key (403) or address (404).

        Raises:
            RequestRejectedError: a short request is not refused in such a way.
        """
        is_doubtful = error.is_doubtful or self._refusals.is_over
        if not (error.fatal and error.is_refusal and is_doubtful):
            return
        found = await self._short_error(job)
        if self.is_left or (found is not None and found.fatal):
            return
        taken = "although the endpoint takes other requests"
        unknown = "and the endpoint did not answer whether it takes others"
        raise RequestRejectedError(
            f"refused, {taken if _is_answer(found) else unknown}: {error.message}",
            hint="The endpoint, or a firewall before it, refuses the words of this row.",
        ) from None

    async def _short_error(self, job: Job, *, reopen: bool = False) -> ModelError | None:
        """Send a short request in the form of this one, and return its error; None: it was taken.

        It tells whether a fault concerns all requests or this one. Calls that wait while another one sends a
        short request return the outcome of that one.

        Args:
            job: the request at fault.
            reopen: whether the short request goes through the gate at once.
        """
        since = time.monotonic()
        async with self._one_asks:
            if self._asked_at < since and not self.is_left:
                if reopen:
                    self._gate.reset(at_once=True)
                answer = await self._short_answer(job)
                self._found = answer if isinstance(answer, ModelError) else None
                self._asked_at = time.monotonic()
            return self._found

    async def _short_answer(self, job: Job) -> Completion | ModelError:
        """Send a short request, in a form that the endpoint has not refused. Return its reply or error."""
        short = Job(b"", job.form, _SHORT)  # one, since it learns what its request takes
        while True:
            try:
                return await self._sender.send(short, is_watched=False)
            except ModelError as found:
                if not found.rewritten:  # a rewritten one may not even have been sent
                    return found

    async def check_hopeless(self, job: Job, error: ModelError) -> None:
        """Raise an error, and send no more, if every request would be refused as this one was.

        A short request is sent to find out, if many in a row, or the first ones, were refused for one reason.
        It has a form that the endpoint took before, if there is one.
        """
        refused = isinstance(error, RequestRejectedError | ReplyError) and not error.fatal
        if not refused or error.completion or not self._refusals.refused(error):
            return
        try:
            form = self._taken_form or job.form
            await self._sender.send(Job(b"", form, _SHORT), is_watched=False)
        except (RequestRejectedError, ReplyError) as found:
            if found.rewritten:
                self._refusals.start_again(error)
            elif found.completion is None and (stop := self._refusals.stopped(error, found)):
                self.dead = stop
                raise stop from None
        except ModelError:
            self._refusals.start_again(error)


@dataclass(slots=True)
class _Sender:
    """Sends single requests within every limit, and counts what they take.

    Attributes:
        transport, account, bounds, settings, tally: see `Workers`.
        refusals: lets requests wait for the outcome of others, if all may be refused for one reason.
        ran_nothing: whether the run ends since the endpoint lets this caller use no model. Then it has
            charged nothing for the calls in flight.
    """

    transport: Transport
    account: Account
    bounds: Bounds
    settings: CallSettings
    tally: Tally
    refusals: RefusalWatch
    ran_nothing: bool = False

    async def send(self, job: Job, *, is_watched: bool = True) -> Completion:
        """Send a job once, and count what it took, also if it fails.

        Args:
            job: the request.
            is_watched: whether it may have to wait for the outcome of others, see `RefusalWatch`.

        Raises:
            ModelError: no reply came, or none that can be used.
        """
        body, account = job.body, self.account
        budget, requests, tokens = self.bounds
        asked = self.asked_tokens(job)
        prompt = max(len(body), job.written)  # a token a byte, see `most_tokens`
        sending = _Sending(self, job, body, prompt, account.added, asked, asked + account.beyond)
        used: Completion | None = None
        failure: BaseException | None = None
        is_watched = is_watched and not self.refusals.is_over
        if is_watched:
            await self.refusals.enter()
        try:
            if budget is not None:
                most = self.tally.most(prompt + sending.added, sending.most)
                sending.reserved = await budget.reserve(most)
            guess = partial(account.tokens.of, len(body), asked)
            for window in (requests, tokens):
                if window is not None:
                    units = 1 if window is requests else guess
                    sending.places.append((window, await window.take(units)))
            entered = await account.gate.enter()
            try:
                used = await self.transport.complete(body, self.settings.timeout, job, sending)
                account.gate.accepted()
                self.refusals.accepted()
                return used
            except (RateLimitError, ReplyError) as error:
                self._heed(job, entered, error)
                raise
            finally:
                account.gate.leave()
        except BaseException as error:
            failure = error
            if isinstance(error, ModelError):
                used = error.completion or error.took
            raise
        finally:
            if is_watched:
                self.refusals.leave()
            self._settle(sending, used, failure)

    def _heed(self, job: Job, entered: float, error: RateLimitError | ReplyError) -> None:
        """Slow down if the endpoint asks for that. A reply, however bad, shows that it takes requests.

        Args:
            job: the request.
            entered: what the gate returned for it.
            error: why there is no completion. If another attempt cannot help, it is no longer `retryable`.

        Raises:
            RateLimitError: the endpoint has asked for too long.
        """
        gate = self.account.gate
        if isinstance(error, RateLimitError):
            job.refusals += not error.loading
            try:
                gate.refused(entered, error)
            except RateLimitError:  # it was this request that used up the patience
                job.refusals = max(job.refusals, _REFUSALS * error.loading)
                raise
            return
        gate.accepted()
        if error.cut_off and (error.reasoned or job.room > 1):  # it had more room already
            error.retryable = False
        if error.completion is not None:
            self.refusals.accepted()

    def asked_tokens(self, job: Job) -> int:
        """Return the most tokens that the reply to a job may take, by what the request asks for."""
        asked = self.transport.dialect.most_tokens(self.settings.max_tokens * job.room)
        return self.settings.size.most(asked)

    def _settle(
        self, sending: _Sending, used: Completion | None, failure: BaseException | None
    ) -> None:
        """Count what a request took, and give back what was held for it beyond that.

        A request that was sent, and may have cost something unknown, is counted with the most that it can
        cost.
        """
        account, (budget, _, tokens), spent = self.account, self.bounds, 0.0
        if used is not None:
            spent, account.has_run = self.tally.add(used), True
            beyond = min(used.completion_tokens - sending.asked, _MOST_BEYOND)
            account.beyond = max(account.beyond, beyond)
            added = min(used.prompt_tokens - sending.prompt, _MOST_BEYOND)
            account.added = max(account.added, added)
        is_unknown = cost_is_unknown(used, failure)
        may_cost = account.has_run or not self.ran_nothing
        if sending.is_counted and is_unknown and may_cost:
            spent = self.tally.assume(sending.prompt + sending.added, sending.most, spent)
        if budget is not None and sending.reserved is not None:
            budget.settle(sending.reserved, spent)
        for window, place in sending.places:
            window.leave(place)
            if window is tokens and used is not None and not is_unknown:
                taken = used.prompt_tokens + used.completion_tokens
                most = sending.prompt + sending.asked + _MOST_BEYOND
                if taken <= most:  # a wrong count would close the window for hours
                    window.correct(place, taken)
                    account.tokens.learn(
                        len(sending.body),
                        used.prompt_tokens,
                        used.completion_tokens,
                        asked=sending.asked,
                    )


@dataclass(slots=True)
class _Sending:
    """A request that is being sent, and what is held for it: see `transports.Sending`.

    Attributes:
        sender: what sends it.
        job: the request.
        body: the bytes.
        prompt: the most tokens of its prompt, by its bytes.
        added: tokens beyond these, which endpoints add: as many as to an earlier prompt.
        asked: the most tokens of its reply, by what it asks for.
        most: the most tokens of its reply, with those by which earlier replies went beyond what was asked
            for.
        reserved: USD of the budget; None: there is no budget.
        places: its places in the limits a minute.
        is_counted: whether it was counted as a call, since it had a connection.
    """

    sender: _Sender
    job: Job
    body: bytes
    prompt: int
    added: int
    asked: int
    most: int
    reserved: float | None = None
    places: list[tuple[Window, Place]] = field(default_factory=list)
    is_counted: bool = False

    def is_written(self, size: int, *, has_limit: bool) -> None:
        """Reserve as many tokens for the prompt as the request has bytes. Nothing is done without a budget.

        Raises:
            ModelError: it has no limit, so the reply could cost any amount.
            RequestRejectedError: the budget has too little left beside other calls. The request is sent again
                with a new reservation.
        """
        budget = self.sender.bounds.budget
        if budget is None or self.reserved is None:
            return
        if not has_limit:
            raise _without_limit()
        if size <= self.prompt:
            return
        more = self.sender.tally.most(size + self.added, self.most) - self.reserved
        if not budget.reserve_more(more):
            self.job.written = size
            raise RequestRejectedError(
                "the prompt may take more tokens than were reserved.", rewritten=True
            )
        self.prompt, self.reserved = size, self.reserved + more

    def is_sent(self) -> None:
        """Note that the request has a connection, and is sent next.

        Raises:
            RequestRejectedError: prompt or reply may take more tokens than were reserved: while the request
                waited, another one showed that the model reasons, or keeps no limit, or that the endpoint
                adds to prompts. The request is sent again with a new reservation.
        """
        if self.reserved is not None:
            account = self.sender.account
            most = self.sender.asked_tokens(self.job) + account.beyond
            if most > self.most or account.added > self.added:
                raise RequestRejectedError(
                    "the call may take more tokens than were reserved.", rewritten=True
                )
        self.was_sent()

    def was_sent(self) -> None:
        """Note that the request was sent: it counts as a call."""
        self.sender.tally.calls += not self.is_counted
        self.is_counted = True
        for window, place in self.places:
            window.sent(place)


class _Writer:
    """Writes replies to the cache: all that come in the same turn of the loop in one transaction.

    Args:
        cache: where they are kept.
        model: its name, which the cache stores with each reply.
        failed: called with the error of a cache that cannot be written.
    """

    def __init__(
        self, cache: ReplyCache, model: str, failed: Callable[[BaseException], object]
    ) -> None:
        self._cache = cache
        self._model = model
        self._failed = failed
        self._replies: list[tuple[bytes, str]] = []
        self._written: asyncio.Event | None = None  # None: no reply waits

    async def keep(self, key: bytes, completion: Completion) -> None:
        """Write a reply, and wait until it is on disk, or cannot be written."""
        self._replies.append((key, text_to_cache(completion)))
        if self._written is None:
            self._written = asyncio.Event()
            asyncio.get_running_loop().call_soon(self._write)
        await self._written.wait()

    def _write(self) -> None:
        assert self._written is not None
        replies, self._replies = self._replies, []
        written, self._written = self._written, None
        self._write_until(replies, written, time.monotonic() + _LOCKED_PATIENCE)

    def _write_until(
        self, replies: list[tuple[bytes, str]], written: asyncio.Event, ends: float
    ) -> None:
        """Write the replies, then set `written`. While another program locks the cache, retry until `ends`.

        The loop is not held up meanwhile.
        """
        try:
            self._cache.set_many(replies, model=self._model, patience=0)
        except BaseException as error:  # whatever it is: workers must not wait for ever
            if getattr(error, "retryable", False) and time.monotonic() < ends:
                here = asyncio.get_running_loop()
                here.call_later(_LOCKED_PAUSE, self._write_until, replies, written, ends)
                return
            self._failed(error)
        written.set()


def _is_answer(error: ModelError | None) -> bool:
    """Return whether the endpoint takes requests, by the error of a short one (None: it was taken)."""
    return error is None or isinstance(error, ReplyError | RequestRejectedError)


def _without_limit() -> ModelError:
    """Make the error for a request without a limit of its reply, of which a budget knows no most cost."""
    return ModelError(
        "litellm leaves out max_tokens= for this provider, or raises it, so no budget could hold: nothing was"
        " sent.",
        hint="Leave budget= out, or give the address of an OpenAI-compatible endpoint as api_base=, without"
        ' "litellm/" in the name.',
        fatal=True,
    )


# Runs that are open: at the exit of Python they must end while the loop's thread still runs.
_running: weakref.WeakSet[Workers] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for workers in list(_running):
        workers.close()
