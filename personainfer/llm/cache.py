"""The cache of replies on disk: the hash of a request -> the reply, as JSON text.

Writes go through diskcache (SQLite in write-ahead mode, safe for several processes at once), many
replies in one transaction. Reads look up many keys in one query. Only text is stored and read: diskcache
would unpickle a row whose `mode` was tampered with (CVE-2025-69872), and a cache directory may be shared.

A forked child opens its own connections. SQLite does not support a fork while another thread is in a
query: fork before a run or after it, or start processes with spawn or forkserver.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache
import platformdirs

from ..exceptions import CacheError

__all__ = ["CacheInfo", "ReplyCache", "cache_info", "clear_cache", "default_cache_dir"]

_RAW_MODE = 1  # diskcache's mode of a value stored as it is; other modes hold files or pickles
_LOOKUP_SIZE = 500  # SQLite allowed 999 parameters a statement before 3.32
_MARK = 0x50494E46  # SQLite's application_id: a database without it is not ours to write
_BUSY_TIMEOUT = 60.0  # seconds to wait for another process's transaction


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
        self._readers = threading.local()
        self._pid = os.getpid()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._database_errors():
                self._mark_or_set_aside()
                self._store = diskcache.Cache(
                    str(self.directory),
                    timeout=_BUSY_TIMEOUT,
                    disk=_TextDisk,
                    eviction_policy="none",  # the default evicts silently at 1 GiB
                    cull_limit=0,
                    sqlite_mmap_size=0,
                )
                self._store.close()  # it opens again at the first write, in the thread that writes
        except OSError as error:
            raise CacheError(
                f"the cache directory {self.directory} cannot be used: {error}.",
                hint="Name another one with cache_dir=, or turn the cache off with cache=False.",
            ) from error

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
        with self._database_errors(), self._store.transact(retry=True):
            for key, text in replies:
                self._store.set(key, text, tag=model)

    def info(self) -> CacheInfo:
        """Counts by model, and the size of the database with its journal."""
        rows = self._select("SELECT tag, COUNT(*) FROM Cache GROUP BY tag ORDER BY tag", ())
        models = {str(tag): int(count) for tag, count in rows}
        files = [self._path.with_name(self._path.name + end) for end in ("", "-wal", "-shm")]
        size = sum(path.stat().st_size for path in files if path.is_file())
        return CacheInfo(self.directory, sum(models.values()), size, models)

    def clear(self, model: str | None = None) -> int:
        """Delete all replies, or those of one model; returns how many."""
        with self._database_errors():
            return int(self._store.clear() if model is None else self._store.evict(model))

    def close(self) -> None:
        """Close this thread's connections. A forked child leaves those of its parent alone."""
        if self._pid != os.getpid():
            return
        with self._database_errors():
            self._store.close()
            if getattr(self._readers, "connection", None) is not None:
                self._readers.connection.close()
                self._readers.connection = None

    def _select(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, Any]]:
        with self._database_errors():
            return self._reader().execute(query, parameters).fetchall()

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        """Raise an error of the database as a CacheError."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def _reader(self) -> sqlite3.Connection:
        """One connection a thread, and never one that was opened before a fork."""
        if getattr(self._readers, "pid", None) != os.getpid():
            self._readers.pid = self._pid = os.getpid()
            self._readers.connection = None
        if self._readers.connection is None:
            self._readers.connection = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT, isolation_level=None
            )
        connection: sqlite3.Connection = self._readers.connection
        return connection

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
