"""Faults of the machine: a disk that is full, a database that another program holds, a clock that jumps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

from ..local.database_checks import connected


@contextmanager
def full_disk(bytes: int) -> Iterator[None]:
    """Within the block, no file of this process can grow beyond this many bytes, as on a full disk.

    Further writes fail: in Python and Arrow with an OSError (EFBIG), in SQLite with a
    sqlite3.OperationalError. The old limit returns when the block ends. Modules that are imported in the
    block write no bytecode, since Python would keep files that were cut off.

    Raises:
        ImportError: the system is Windows.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, before[1]))
    try:
        with mock.patch("sys.dont_write_bytecode", True):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def locked_database(path: str | Path) -> Iterator[None]:
    """Within the block, another connection holds the write lock of an SQLite database, such as the cache.

    Others can read the database, and wait, or fail, if they write.

    Raises:
        CacheError: the file is a link, or something else that no cache has.
        sqlite3.OperationalError: the file is missing, or another connection holds the lock.
    """
    with closing(connected(Path(path))) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def clock_jump(seconds: float) -> Iterator[None]:
    """Within the block, `time.time` is this many seconds ahead; behind, if the number is negative.

    `time.monotonic` does not change.
    """
    now, now_ns = time.time, time.time_ns
    with (
        mock.patch("time.time", side_effect=lambda: now() + seconds),
        mock.patch("time.time_ns", side_effect=lambda: now_ns() + int(seconds * 1e9)),
    ):
        yield
