"""One event loop in a background thread, so that synchronous calls work anywhere, Jupyter included.

The loop starts at its first use. Each process has one, so a forked child starts its own; objects that hold
locks, tasks or connections register with `renew_in_forks`. `Deadlines` limits the time of the loop's tasks.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from .exceptions import ModelError, PersonaInferError

T = TypeVar("T")

_BLOCKING = 64  # threads, each of which starts when it is needed
_lock = threading.Lock()
_current: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None


def the_loop() -> asyncio.AbstractEventLoop:
    """Return this process's background loop; start it if it does not run.

    Raises:
        PersonaInferError: the system starts no more threads.
    """
    global _current
    with _lock:
        # Its thread has ended if the system failed, as where a program closes all files.
        if _current is None or _current[0] != os.getpid() or not _current[2].is_alive():
            loop = asyncio.new_event_loop()
            # Some libraries block a thread for each call; names of hosts are looked up there, too.
            loop.set_default_executor(ThreadPoolExecutor(_BLOCKING, "personainfer-blocking"))
            thread = threading.Thread(target=_run, args=(loop,), name="personainfer", daemon=True)
            try:
                with thread_errors():
                    thread.start()
            except PersonaInferError:
                loop.close()
                raise
            _left_behind.append(_current)
            _current = (os.getpid(), loop, thread)
        return _current[1]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop for as long as the process lives.

    A task that raises SystemExit or KeyboardInterrupt keeps it as its error, so whoever waits for the task
    gets it; asyncio raises it here as well, which would end the loop for all other tasks. So would a task
    that stops the loop, such as a provider of the user's.
    """
    while not loop.is_closed():
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


@contextmanager
def thread_errors() -> Iterator[None]:
    """Start a thread in this block.

    Raises:
        PersonaInferError: the system starts no more threads, in place of Python's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise PersonaInferError(
            "the system starts no more threads.",
            hint="End other programs, or raise the limit of processes (ulimit -u, or the container's).",
        ) from None


def thread() -> threading.Thread | None:
    """Return the thread of the background loop; None if the loop does not run in this process."""
    return _current[2] if _current and _current[0] == os.getpid() else None


def check_may_wait() -> None:
    """Raise ModelError on the thread of the background loop: to wait for the loop there would never end.

    A validator of a user's schema runs on that thread, and a user's provider of litellm's; both may call this
    library.
    """
    if threading.current_thread() is thread():
        raise ModelError(
            "this call would wait for itself: it is made within another one.",
            hint="Make it in a thread: await asyncio.to_thread(…).",
        )


def run(coroutine: Coroutine[Any, Any, T], *, may_be_cut_short: bool = True) -> T:
    """Run a coroutine on the background loop, and block until it is done.

    No other function blocks a thread for the loop.

    Args:
        coroutine: what to run.
        may_be_cut_short: whether the coroutine is cancelled if the waiting caller is interrupted (Ctrl-C).

    Returns:
        What the coroutine returns.

    Raises:
        ModelError: the caller is on the loop's own thread.
        PersonaInferError: the system starts no more threads.
        Exception: what the coroutine raises.
    """
    try:
        check_may_wait()
    except ModelError:
        coroutine.close()  # or Python warns that nobody awaited it
        raise
    running = _started(coroutine)
    try:
        return running.result()
    finally:
        if may_be_cut_short:
            running.cancel()


def start(coroutine: Coroutine[Any, Any, object]) -> None:
    """Start a coroutine on the background loop, and return at once. What it raises is lost.

    Raises:
        PersonaInferError: the system starts no more threads.
    """
    _started(coroutine)


def _started(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, the_loop())
    except PersonaInferError:
        coroutine.close()
        raise


def call(function: Callable[..., object], *arguments: object) -> None:
    """Call a plain function on the thread of the background loop, and return before it is called."""
    the_loop().call_soon_threadsafe(function, *arguments)


_STOPPED = 1.0  # seconds by which a timer is late if the process was stopped
_CATCH_UP = 0.5  # seconds, then, to read what has come


class Deadlines:
    """Cancels tasks that take too long, with one timer for all of them.

    `asyncio.timeout` makes a timer, a handle and a context for each of thousands of tasks a second.

    If the process was stopped for a while (Ctrl-Z, a scheduler), tasks that are late get half a second more,
    to read what has come.
    """

    def __init__(self) -> None:
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._catches_up = False
        renew_in_forks(self)

    def renew_in_fork(self) -> None:
        """Forget the tasks of the parent process."""
        self._ends.clear()
        self._late.clear()
        self._timer = None

    def start(self, seconds: float) -> asyncio.Task[Any]:
        """Set a deadline for the running task, so many seconds from now: then the task is cancelled.

        Returns:
            The task. Pass it to `stop` in any case: nothing else ends the deadline.
        """
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        ends = self._ends[task] = loop.time() + seconds
        if self._timer is None or ends < self._timer.when():
            self._set_timer(loop, ends)
        return task

    def stop(self, task: asyncio.Task[Any]) -> None:
        """End the deadline of a task that `start` returned."""
        del self._ends[task]
        if task in self._late:
            self._late.remove(task)
            task.uncancel()  # also if another error took the place of the cancellation
        if not self._ends and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def has_passed(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task was cancelled for its deadline alone. `stop` undoes the cancellation."""
        return task in self._late and task.cancelling() == 1

    def _set_timer(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._cancel_late, loop, when)

    def _cancel_late(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        self._timer = None
        now = loop.time()
        self._catches_up = now - when > _STOPPED and not self._catches_up
        if self._catches_up:
            self._set_timer(loop, now + _CATCH_UP)
            return
        in_time = []
        for task, ends in self._ends.items():
            if ends > now:
                in_time.append(ends)
            elif task not in self._late:
                self._late.add(task)
                task.cancel()
        if in_time:
            self._set_timer(loop, min(in_time))


class Renewed(Protocol):
    """An object with locks, tasks or connections that belong to one process."""

    def renew_in_fork(self) -> None:
        """Replace what belongs to the parent process. No other thread of the fork runs meanwhile."""


_renewed: WeakSet[Renewed] = WeakSet()
# As garbage, a loop would close files that have its numbers now; tasks of a parent would settle what the fork
# has now.
_left_behind: list[object] = []


def renew_in_forks(one: Renewed) -> None:
    """Have `one.renew_in_fork()` called in each fork of this process, as long as the object exists.

    Only a weak reference is kept. Systems without forks call nothing.
    """
    _renewed.add(one)


def _renew_all() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    if _current is not None:
        _left_behind.append(asyncio.all_tasks(_current[1]))
    for one in list(_renewed):
        one.renew_in_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
