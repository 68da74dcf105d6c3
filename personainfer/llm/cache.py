"""The cache of replies on disk: the hash of a request -> the reply, as JSON text.

The database is diskcache's (SQLite in write-ahead mode, safe for several processes at once). Many replies are
written in one transaction, and many keys are looked up in one query. Only text is stored and read: diskcache
itself would unpickle a row whose `mode` was tampered with (CVE-2025-69872), and a cache directory may be
shared. Files and folders that are made here are open to their owner only, since replies hold people's texts.

A forked child opens its own connections. SQLite does not support a fork while another thread is in a
query: fork before a run or after it, or start processes with spawn or forkserver.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import diskcache
import platformdirs
import tenacity

from ..data.atomic_files import private_folder
from ..exceptions import CacheError, InvalidArgumentError

_RAW_MODE = 1  # diskcache's mode of a value stored as it is; other modes hold files or pickles
_LOOKUP_SIZE = 500  # SQLite allowed 999 parameters a statement before 3.32
# What diskcache's `set` does, for many rows at once and in half the time; its triggers keep the counts.
_WRITE = (
    "INSERT INTO Cache (key, raw, store_time, access_time, tag, mode, value)"
    f" VALUES (?, 1, ?, ?, ?, {_RAW_MODE}, ?) ON CONFLICT (key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, access_time = excluded.access_time, tag = excluded.tag,"
    " mode = excluded.mode, filename = NULL, value = excluded.value"
)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SET_ASIDE = "cache.db.broken-"  # and a number: what a damaged database is renamed to
_MARK = 0x50494E46  # SQLite's application_id: a database without it is not ours to write
_BUSY_TIMEOUT = 60.0  # seconds to wait for another process's transaction …
_BUSY_STEP = 0.5  # … in steps: an event loop waits for one of them, and lets others run between


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


class _Disk(diskcache.Disk):  # type: ignore[misc]
    """Deletes no file: replies have none of their own, and a tampered row could name any file."""

    def remove(self, file_path: str) -> None:
        """Do nothing."""


class _Store(diskcache.Cache):  # type: ignore[misc]
    """diskcache's Cache, but for how long it waits at opening while another program locks the database.

    Its `get`, `set` and `iter` are not used: they may pickle or unpickle.
    """

    @property
    def _sql_retry(self) -> Callable[..., Any]:
        return partial(_patiently, self._sql)


def _patiently(execute: Callable[..., Any], statement: str, *parameters: Any) -> Any:
    """Run a statement, again and again for `_BUSY_TIMEOUT` seconds while another program has the lock."""
    try:
        return execute(statement, *parameters)
    except sqlite3.Error as error:
        if not _is_locked(error):
            raise
    trying = tenacity.Retrying(
        stop=tenacity.stop_after_delay(_BUSY_TIMEOUT),
        wait=tenacity.wait_fixed(0.01),
        retry=tenacity.retry_if_exception(_is_locked),
        reraise=True,
    )
    return trying(execute, statement, *parameters)


def _is_locked(error: BaseException) -> bool:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class ReplyCache:
    """A directory of replies, keyed by the digest of their request.

    Several threads and processes may use one directory, each with a ReplyCache of its own.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.expanduser().resolve()
        self._path = self.directory / "cache.db"
        self._here = threading.local()  # this thread's connection for reading, and its uses now
        self._pid = os.getpid()
        try:
            private_folder(self.directory)
            # Made before SQLite would, which would let everybody read it; journals get its permissions.
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            if not stat.S_ISREG(self._path.lstat().st_mode):  # SQLite would follow or wait
                raise OSError("its cache.db is a link, a pipe or a folder")
            self._read_only = self._others_may_write()
            self._inode = self._path.stat().st_ino
            with self._database_errors():
                self._mark_or_refuse()
                self._store: Any = None if self._read_only else self._open_store()
        except OSError as error:
            raise CacheError(
                f"the cache directory {self.directory} cannot be used: {error}.",
                hint="Name another one with cache_dir=, or turn the cache off with cache=False.",
            ) from error

    def _open_store(self) -> Any:
        """The database, for writing."""
        store = _Store(
            str(self.directory),
            timeout=_BUSY_STEP,
            disk=_Disk,
            eviction_policy="none",  # the default evicts silently at 1 GiB
            cull_limit=0,
            sqlite_mmap_size=0,
        )
        store.close()  # it opens again at the first write, in the thread that writes
        return store

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The cached replies, by key; keys without a reply, or with one that is not text, are left out."""
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

    def set_many(
        self,
        replies: Iterable[tuple[bytes, str]],
        *,
        model: str,
        patience: float = _BUSY_TIMEOUT,
    ) -> None:
        """Write a group of replies in one transaction: on return they survive the process.

        Args:
            replies: keys and texts.
            model: the name of the model that replied.
            patience: seconds to wait while another process writes, rounded up to half a second.

        Raises:
            CacheError: nothing was written. It is `retryable` if another process still writes.
        """
        if self._read_only:
            return
        now, ends = time.time(), time.monotonic() + patience
        rows = [(key, now, now, model, text) for key, text in replies]
        while True:
            try:
                with self._database_errors(), self._store.transact():
                    self._store._con.executemany(_WRITE, rows)
                break
            except CacheError as error:
                if not error.retryable or time.monotonic() >= ends:
                    raise
        self._check_still_there()

    def info(self) -> CacheInfo:
        """Counts by model, and the size of the database with its journal."""
        rows = self._select("SELECT tag, COUNT(*) FROM Cache GROUP BY tag ORDER BY tag", ())
        models = {str(tag): int(count) for tag, count in rows}
        files = [self._path.with_name(self._path.name + end) for end in ("", "-wal", "-shm")]
        size = sum(path.stat().st_size for path in files if path.is_file())
        return CacheInfo(self.directory, sum(models.values()), size, models)

    def clear(self, model: str | None = None) -> int:
        """Delete all replies, or those of one model; returns how many.

        All includes what was set aside of a damaged cache.

        Raises:
            CacheError: others may write to the cache, or another program keeps it locked.
        """
        self._check_writable()
        with self._database_errors():
            deleted = self._store.clear() if model is None else self._store.evict(model)
            self._free()
        if model is None:
            self._delete_set_aside(time.time())
        return int(deleted)

    def _delete_set_aside(self, before: float) -> None:
        """Delete the files of damaged caches that were last written before this time."""
        for path in self.directory.glob(f"{_SET_ASIDE}*"):
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime < before:
                    path.unlink()

    def prune(self, *, older_than: float | None = None, max_size: int | None = None) -> int:
        """Delete the oldest replies; returns how many.

        Args:
            older_than: seconds: replies that were written longer ago go.
            max_size: bytes: the oldest replies go until the texts of the others fit.
        """
        self._check_writable()
        before = self.info().replies
        with self._database_errors(), self._store.transact():
            if older_than is not None:
                self._delete("store_time < ?", time.time() - older_than)
                self._delete_set_aside(time.time() - older_than)
            if max_size is not None:
                # The newest replies whose texts, added up, are within the bound, are kept.
                newest = (
                    "SELECT rowid AS place, SUM(LENGTH(CAST(value AS BLOB)) + LENGTH(key))"
                    " OVER (ORDER BY store_time DESC, rowid DESC) AS total FROM Cache"
                )
                self._delete(f"rowid IN (SELECT place FROM ({newest}) WHERE total > ?)", max_size)
        with self._database_errors():
            self._free()
        return before - self.info().replies

    def close(self) -> None:
        """Close this thread's connections. A forked child leaves those of its parent alone.

        Nothing is closed while this thread is in a query: the garbage collector may end an abandoned run,
        which closes its cache, at any allocation.
        """
        if self._pid != os.getpid() or getattr(self._here, "uses", 0) > 0:
            return
        with self._database_errors():
            if self._store is not None:
                self._store.close()
            if getattr(self._here, "connection", None) is not None:
                self._here.connection.close()
                self._here.connection = None

    def _select(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, Any]]:
        with self._database_errors():
            return self._reader().execute(query, parameters).fetchall()

    def _locked(self) -> CacheError:
        error = CacheError(
            f"the cache {self._path} is locked by another program.",
            hint="Call again later, end that program, or name another directory with cache_dir=.",
        )
        error.retryable = True
        return error

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        """Raise an error of the database as a CacheError. Inside, the connections stay open."""
        self._here.uses = getattr(self._here, "uses", 0) + 1
        try:
            yield
        except diskcache.Timeout:
            raise self._locked() from None
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error
        except UnicodeDecodeError as error:  # SQLite's message quotes the damaged schema
            raise self._set_aside("its schema is damaged") from error
        finally:
            self._here.uses -= 1

    def _reader(self) -> sqlite3.Connection:
        """One connection a thread, and never one that was opened before a fork."""
        if getattr(self._here, "pid", None) != os.getpid():
            self._here.pid = self._pid = os.getpid()
            self._here.connection = None
        if self._here.connection is None:
            self._here.connection = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT, isolation_level=None
            )
        connection: sqlite3.Connection = self._here.connection
        return connection

    def _mark_or_refuse(self) -> None:
        """Mark a new database as ours; raise CacheError, and touch nothing, if it is another program's."""
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            # Check in this order: another process that starts now marks the database, then makes its tables.
            run = partial(_patiently, connection.execute)
            ((tables,),) = run("SELECT COUNT(*) FROM sqlite_master").fetchall()
            ((mark,),) = run("PRAGMA application_id").fetchall()
            if not tables and not self._read_only:
                # Before any table is made, so that no other process sees one unmarked.
                run(f"PRAGMA application_id = {_MARK}")
        finally:
            connection.close()
        if self._read_only and not tables:
            raise CacheError(
                f"others may write to {self._path}, and it is empty.",
                hint="Name another directory with cache_dir=.",
            )
        if tables and mark != _MARK:
            raise CacheError(
                f"{self._path} is the database of another program. It was left as it is.",
                hint="Name another directory with cache_dir=.",
            )

    def _others_may_write(self) -> bool:
        """Whether other users may write there. Then nothing is cached, after a warning.

        The system's administrator may write everywhere, and works in folders of others (in a container).
        """
        folder, file = self.directory.stat(), self._path.stat()
        open_to_others = file.st_mode & _OTHERS_WRITE or (
            folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX
        )
        if hasattr(os, "getuid") and (user := os.getuid()):
            open_to_others |= not {folder.st_uid, file.st_uid} <= {user, 0}
        if open_to_others:
            warnings.warn(
                f"others may write to the cache {self._path}, so replies are read from it, and none is"
                " kept. Make it yours alone: chmod -R go-w, or name another directory with cache_dir=.",
                stacklevel=4,
            )
        return bool(open_to_others)

    def _check_writable(self) -> None:
        if self._read_only:
            raise CacheError(
                f"others may write to the cache {self._path}, so nothing in it is changed.",
                hint="Make it yours alone: chmod -R go-w.",
            )

    def _check_still_there(self) -> None:
        """Raise CacheError if the database was deleted or replaced: what is written would be lost."""
        try:
            there = self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            there = False
        if not there:
            raise CacheError(
                f"the cache {self._path} was deleted or replaced during the run; replies are lost.",
                hint="Run the call again, and do not touch the cache while it runs.",
            )

    def _delete(self, condition: str, *values: float) -> None:
        # By its own connection, within its transaction, where its triggers keep the counts.
        self._store._sql(f"DELETE FROM Cache WHERE {condition}", values)

    def _free(self) -> None:
        """Give the space of deleted rows back to the disk, unless another process is at work."""
        with suppress(sqlite3.OperationalError):
            self._reader().execute("VACUUM")
            self._reader().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _set_aside(self, reason: str) -> CacheError:
        """Move a database that cannot be used out of the way; nothing is deleted."""
        number = 1
        while (aside := self.directory / f"{_SET_ASIDE}{number}").exists():
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
        saved = self._salvage(aside)
        return CacheError(
            f"the cache {self._path} cannot be read: {reason}. It was moved to {aside.name}, and"
            f" {saved:,} replies of it are in a new cache.",
            hint="Run the same call again: only the lost replies are asked for.",
        )

    def _salvage(self, aside: Path) -> int:
        """Write what can be read of a damaged database to a new one; returns how many replies."""
        new, saved = ReplyCache(self.directory), 0
        for model, replies in groupby(_readable_rows(aside), key=lambda row: row[0]):
            while group := [(key, text) for _, key, text in islice(replies, _LOOKUP_SIZE)]:
                new.set_many(group, model=model)
                saved += len(group)
        new.close()
        return saved

    def _failure(self, error: sqlite3.DatabaseError) -> CacheError:
        if _is_locked(error):
            return self._locked()
        # Disk full, read-only; or a wrong call, which says nothing about the file.
        if isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError)):
            return CacheError(
                f"the cache {self._path} failed: {error}.",
                hint="Free the disk or name another directory with cache_dir=.",
            )
        return self._set_aside(str(error))


# Python cannot decode a message of SQLite that quotes damaged text.
_DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)


def _readable_rows(path: Path) -> Iterator[tuple[str, bytes, str]]:
    """The (model, key, text) of each reply that can still be read from a damaged database."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    try:
        spans = [(1, _last_row(connection, path))]
        while spans:
            first, last = spans.pop()
            try:
                rows = connection.execute(
                    "SELECT tag, key, value FROM Cache NOT INDEXED WHERE rowid BETWEEN ? AND ?"
                    " AND raw = 1 AND mode = 1 AND typeof(value) = 'text'",
                    (first, last),
                ).fetchall()
            except _DAMAGED as error:
                if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                    return
                if first < last:  # the damage is in one half or in both
                    middle = (first + last) // 2
                    spans += [(middle + 1, last), (first, middle)]
                continue
            yield from ((str(tag), bytes(key), text) for tag, key, text in rows)
    finally:
        connection.close()


def _last_row(connection: sqlite3.Connection, path: Path) -> int:
    """The highest row number; if it cannot be read, an upper bound by the size of the file."""
    with suppress(*_DAMAGED):
        return int(connection.execute("SELECT MAX(rowid) FROM Cache").fetchone()[0] or 0)
    return path.stat().st_size // 64  # a row with its key of 32 bytes takes more than 64


def cache_info(cache_dir: str | Path | None = None) -> CacheInfo:
    """What the cache directory holds, by model."""
    return ReplyCache(Path(cache_dir) if cache_dir else default_cache_dir()).info()


def clear_cache(*, model: str | None = None, cache_dir: str | Path | None = None) -> int:
    """Delete the cached replies of one model, or all of them; returns how many were deleted."""
    return ReplyCache(Path(cache_dir) if cache_dir else default_cache_dir()).clear(model)


def prune_cache(
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    cache_dir: str | Path | None = None,
) -> int:
    """Delete the oldest cached replies; returns how many were deleted.

    Args:
        older_than: days: replies that were written longer ago go.
        max_size: bytes: the oldest go until the texts of the others fit.
        cache_dir: None: the default one.

    Raises:
        InvalidArgumentError: neither is given, or one is negative.
    """
    given = {"older_than": older_than, "max_size": max_size}
    if all(value is None for value in given.values()):
        raise InvalidArgumentError(
            "nothing says what to delete.", hint="Give older_than= or max_size=."
        )
    for name, value in given.items():
        if value is not None and not value >= 0:
            raise InvalidArgumentError(f"{name}={value!r} must be at least 0.", argument=name)
    cache = ReplyCache(Path(cache_dir) if cache_dir else default_cache_dir())
    seconds = None if older_than is None else older_than * 86_400
    return cache.prune(older_than=seconds, max_size=max_size)
