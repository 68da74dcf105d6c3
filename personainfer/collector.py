"""Fewer garbage collections while records are made by the hundred thousand.

Python's collector walks young objects after every 700 that were made, and old ones again and again as
they grow in number. Records hold no cycles, so that all of it is in vain: it took more time than making
them. Reference counts free what is dropped, as always; only cycles wait a little longer.

Records that will be kept need not be walked at all: `keep` puts them among the old objects as they are.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep", "rarely_collecting"]

_YOUNG = 50_000  # objects made between two walks, while a run goes on
_KEEPS_A_WALK = 64  # a quarter of a million rows

_lock = threading.Lock()
_runs = 0
_before: tuple[int, int, int] | None = None
_keeps = 0


@contextmanager
def rarely_collecting() -> Iterator[None]:
    """Raise the collector's first threshold, and put it back when the last of several runs ends.

    A collector that the user has turned off, or set to walk less often, is left as it is.
    """
    global _runs, _before
    with _lock:
        _runs += 1
        now = gc.get_threshold()
        if _runs == 1 and 0 < now[0] < _YOUNG:
            _before = now
            gc.set_threshold(_YOUNG, *now[1:])
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if not _runs and _before is not None:
                # Unless somebody else has set it in the meantime.
                if gc.get_threshold() == (_YOUNG, *_before[1:]):
                    gc.set_threshold(*_before)
                _before = None


def keep() -> None:
    """Count all objects that there are as old: only a full collection walks them.

    For the time after many records were made, and little else: cycles among the objects wait for a full
    collection as well. Python counts anew towards that each time, so every so often it is made here.
    Where somebody else has frozen objects, nothing is done, since theirs would thaw.
    """
    global _keeps
    if gc.isenabled() and not gc.get_freeze_count():
        _keeps += 1
        if _keeps % _KEEPS_A_WALK:
            gc.freeze()
            gc.unfreeze()
        else:
            gc.collect()
