"""One event loop in a background thread, so that synchronous calls work anywhere, Jupyter included.

It starts at the first use. Each process has one, so a forked child starts its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_current: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None


def the_loop() -> asyncio.AbstractEventLoop:
    """This process's background loop, started if need be."""
    global _current
    with _lock:
        if _current is None or _current[0] != os.getpid():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="personainfer", daemon=True)
            thread.start()
            _current = (os.getpid(), loop, thread)
        return _current[1]


def thread() -> threading.Thread | None:
    """The thread of the background loop, if it runs."""
    return _current[2] if _current and _current[0] == os.getpid() else None


def spawn(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the background loop."""
    return asyncio.run_coroutine_threadsafe(coroutine, the_loop())


def call(function: Callable[..., object], *arguments: object) -> None:
    """Call a plain function on the loop's thread, without waiting for it."""
    the_loop().call_soon_threadsafe(function, *arguments)


def _forget_lock() -> None:
    """A fork may have happened while another thread held the lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
