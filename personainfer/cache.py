"""Replies on disk: the hash of a request -> the reply, as JSON text.

Writes go through diskcache (SQLite in write-ahead mode, safe for several processes at once), a group
of replies in one transaction. Reads look up many keys in one query. Only text is ever stored or read:
diskcache would unpickle a row whose `mode` was tampered with (CVE-2025-69872), and a cache directory
may be shared. This module does not know what a reply means.

No connection may be open when a process forks: the child would take its parent's locks for its own, and
wait for ever, or write into a journal that the parent deletes. So a fork waits until no thread is in a
query, and closes what is open.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache
import platformdirs

from .exceptions import CacheError

__all__ = ["CacheInfo", "ReplyCache", "cache_info", "clear_cache", "default_cache_dir"]

_RAW_MODE = 1  # diskcache's mode of a value stored as it is; other modes hold files or pickles
_LOOKUP_SIZE = 500  # SQLite allowed 999 parameters a statement before 3.32
_MARK = 0x50494E46  # SQLite's application_id: a database without it is not ours to write
_BUSY_TIMEOUT = 60.0  # seconds to wait for another process's transaction

_FORK_PATIENCE = (
    10.0  # seconds for the queries of other threads to end; a fork then goes on without
)


class _ForkGate:
    """Queries pass, several at a time, but not while the process forks."""

    def __init__(self) -> None:
        self._entry = threading.Lock()
        self._counting = threading.Lock()
        self._inside = 0
        self.caches: weakref.WeakSet[ReplyCache] = weakref.WeakSet()

    @contextmanager
    def passed(self) -> Iterator[None]:
        with self._entry, self._counting:
            self._inside += 1
        try:
            yield
        finally:
            with self._counting:
                self._inside -= 1

    def shut(self) -> None:
        """Before a fork."""
        self._entry.acquire()
        ends = time.monotonic() + _FORK_PATIENCE
        while self._inside and time.monotonic() < ends:
            time.sleep(0.0005)
        if not self._inside:
            for cache in self.caches:
                cache._disconnect()

    def open(self) -> None:
        """After it, in the parent."""
        self._entry.release()

    def renew(self) -> None:
        """After it, in the child, where no other thread is left to give a lock back."""
        self._entry, self._counting, self._inside = threading.Lock(), threading.Lock(), 0


_gate = _ForkGate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_gate.shut, after_in_parent=_gate.open, after_in_child=_gate.renew)


def default_cache_dir() -> Path:
    """$PERSONAINFER_CACHE_DIR, or the user's cache directory of this system."""
    named = os.environ.get("PERSONAINFER_CACHE_DIR")
    return Path(named) if named else platformdirs.user_cache_path("personainfer")


@dataclass(frozen=True)
class CacheInfo:
    """What a cache directory holds: `replies` by model, and their `bytes` on disk."""

    directory: Path
    replies: int
    bytes: int
    models: Mapping[str, int]


class _TextDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores text as it is and refuses everything else, so that nothing is ever unpickled."""

    def store(self, value: object, read: bool, key: object = None) -> tuple[int, int, None, str]:
        if not isinstance(value, str):
            raise TypeError("only text is cached")
        return 0, _RAW_MODE, None, value

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> str:
        if mode != _RAW_MODE or not isinstance(value, str):
            raise CacheError("a row of the cache does not hold text.", hint="Clear the cache.")
        return value

    def get(self, key: object, raw: bool) -> object:
        if not raw:
            raise CacheError("a row of the cache has a pickled key.", hint="Clear the cache.")
        return super().get(key, raw)

    def remove(self, file_path: str) -> None:
        """No reply lies in a file of its own; a tampered row may name any file there is."""


class ReplyCache:
    """A directory of replies, keyed by the digest of their request.

    Several threads and processes may use one directory, each with a ReplyCache of its own.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.expanduser().resolve()
        self._path = self.directory / "cache.db"
        self._local = threading.local()  # a connection a thread
        self._open: set[sqlite3.Connection] = set()  # of all threads
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._used():
                self._mark_or_set_aside()
                self._store = diskcache.Cache(
                    str(self.directory),
                    timeout=_BUSY_TIMEOUT,
                    disk=_TextDisk,
                    eviction_policy="none",  # the default evicts silently at 1 GiB
                    cull_limit=0,
                    sqlite_mmap_size=0,
                )
                self._store.close()
        except OSError as error:
            raise CacheError(
                f"the cache directory {self.directory} cannot be used: {error}.",
                hint="Name another one with cache_dir=, or turn the cache off with cache=False.",
            ) from error
        _gate.caches.add(self)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The replies that are here, by key; what is not here, or is not text, is left out."""
        found: dict[bytes, str] = {}
        for start in range(0, len(keys), _LOOKUP_SIZE):
            part = keys[start : start + _LOOKUP_SIZE]
            rows = self._select(
                "SELECT key, value FROM Cache WHERE raw = 1 AND mode = 1 AND typeof(value) = 'text'"
                f" AND key IN ({','.join('?' * len(part))})",
                part,
            )
            found.update(rows)
        return found

    def set_many(self, replies: Iterable[tuple[bytes, str]], *, model: str) -> None:
        """Write a group of replies in one transaction: on return they survive the process."""
        with self._writer() as store, store.transact(retry=True):
            for key, text in replies:
                store.set(key, text, tag=model)

    def info(self) -> CacheInfo:
        """Counts by model, and the size of the database with its journal."""
        rows = self._select("SELECT tag, COUNT(*) FROM Cache GROUP BY tag ORDER BY tag", ())
        models = {str(tag): int(count) for tag, count in rows}
        files = [self._path.with_name(self._path.name + end) for end in ("", "-wal", "-shm")]
        size = sum(path.stat().st_size for path in files if path.is_file())
        return CacheInfo(self.directory, sum(models.values()), size, models)

    def clear(self, model: str | None = None) -> int:
        """Delete all replies, or those of one model; returns how many."""
        with self._writer() as store:
            return int(store.clear() if model is None else store.evict(model))

    def close(self) -> None:
        """Close this thread's connection; the last to close takes the journal into the database."""
        with self._used():
            connection = getattr(self._local, "connection", None)
            if connection in self._open:
                self._open.discard(connection)
                connection.close()

    def _select(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, Any]]:
        with self._used():
            return self._connected().execute(query, parameters).fetchall()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """No fork comes between; an error of the database is told as ours."""
        try:
            with _gate.passed():
                yield
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    @contextmanager
    def _writer(self) -> Iterator[diskcache.Cache]:
        """The store, whose connection no other thread may close: so none of its is left open."""
        with self._used():
            self._connected()  # while this one is open, closing the other has no journal to take in
            try:
                yield self._store
            finally:
                self._store.close()

    def _connected(self) -> sqlite3.Connection:
        """This thread's connection, opened again after a fork."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None or connection not in self._open:
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            self._local.connection = connection
            self._open.add(connection)
        return connection

    def _disconnect(self) -> None:
        """Close the connections of all threads, none of which is in a query."""
        while self._open:
            self._open.pop().close()

    def _mark_or_set_aside(self) -> None:
        connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, isolation_level=None)
        try:
            # In this order: another process that starts now marks first, and then makes its tables.
            ((tables,),) = connection.execute("SELECT COUNT(*) FROM sqlite_master")
            ((mark,),) = connection.execute("PRAGMA application_id")
            if not tables:  # before any table is made, so that no other process sees one unmarked
                connection.execute(f"PRAGMA application_id = {_MARK}")
        finally:
            connection.close()
        if tables and mark != _MARK:
            raise self._set_aside("it is the database of another program")

    def _set_aside(self, reason: str) -> CacheError:
        """Move a database that cannot be used out of the way; nothing is deleted."""
        number = 1
        while (aside := self.directory / f"cache.db.broken-{number}").exists():
            number += 1
        try:
            self._path.rename(aside)
        except FileNotFoundError:  # another process was first
            return CacheError(
                f"the cache {self._path} could not be read: {reason}.", hint="Run the call again."
            )
        for suffix in ("-wal", "-shm"):
            journal = self._path.with_name(self._path.name + suffix)
            if journal.exists():
                journal.rename(aside.with_name(aside.name + suffix))
        return CacheError(
            f"the cache {self._path} cannot be read: {reason}. It was moved to {aside.name}.",
            hint="Run the same call again: it starts a new cache.",
        )

    def _failure(self, error: sqlite3.DatabaseError) -> CacheError:
        if isinstance(error, sqlite3.OperationalError):  # disk full, locked, read-only
            return CacheError(
                f"the cache {self._path} failed: {error}.",
                hint="Free the disk or name another directory with cache_dir=.",
            )
        return self._set_aside(str(error))


def cache_info(cache_dir: str | Path | None = None) -> CacheInfo:
    """What the cache directory holds, by model."""
    return ReplyCache(Path(cache_dir) if cache_dir else default_cache_dir()).info()


def clear_cache(*, model: str | None = None, cache_dir: str | Path | None = None) -> int:
    """Delete the cached replies of one model, or all of them; returns how many were deleted."""
    return ReplyCache(Path(cache_dir) if cache_dir else default_cache_dir()).clear(model)
