"""The SQLite database of a cache: what it may hold, how it is opened, and what a damaged one still gives.

A cache directory may be shared, copied from somebody or damaged. So neither the database nor the files
beside it are trusted: see `check_files`. A database is used only if its schema is the one that diskcache
makes: a view, a trigger or a computed column of a stranger would run with the user's queries. Texts are read
as bytes, so a text that is not UTF-8 costs its own row only.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import diskcache
import tenacity

from ..exceptions import CacheError
from .paths import opened_file, others_may_write

LONGEST_REPLY = 2**24  # bytes: four times the largest answer of an endpoint that is read
BUSY_TIMEOUT = 60.0  # seconds to wait for another process's transaction …
BUSY_STEP = 0.5  # … in steps: an event loop waits for one of them, and lets others run between

_MARK = 0x50494E46  # SQLite's application_id: a database without it is not ours to write
_TRIGGER = (
    "CREATE TRIGGER Settings_{} AFTER {} ON Cache FOR EACH ROW BEGIN"
    " UPDATE Settings SET value = value {}; END"
)
# The schema that diskcache makes, in its order: type, name and SQL.
_SCHEMA = (
    ("table", "Settings", "CREATE TABLE Settings ( key TEXT NOT NULL UNIQUE, value)"),
    (
        "table",
        "Cache",
        "CREATE TABLE Cache ( rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL,"
        " expire_time REAL, access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB,"
        " size INTEGER DEFAULT 0, mode INTEGER DEFAULT 0, filename TEXT, value BLOB)",
    ),
    ("index", "Cache_key_raw", "CREATE UNIQUE INDEX Cache_key_raw ON Cache(key, raw)"),
    ("index", "Cache_expire_time", "CREATE INDEX Cache_expire_time ON Cache (expire_time)"),
    *(
        ("trigger", f"Settings_{name}", _TRIGGER.format(name, event, change))
        for name, event, change in (
            ("count_insert", "INSERT", '+ 1 WHERE key = "count"'),
            ("count_delete", "DELETE", '- 1 WHERE key = "count"'),
            ("size_insert", "INSERT", '+ NEW.size WHERE key = "size"'),
            ("size_update", "UPDATE", '+ NEW.size - OLD.size WHERE key = "size"'),
            ("size_delete", "DELETE", '- OLD.size WHERE key = "size"'),
        )
    ),
)
# What SQLite adds to a schema itself, where somebody optimized the database: its statistics.
_STATISTICS = (
    ("table", "sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"),
    ("table", "sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"),
)
# All of diskcache's settings, so that it takes none from the file.
_SETTINGS: dict[str, Any] = {
    **diskcache.DEFAULT_SETTINGS,
    "eviction_policy": "none",  # the default evicts silently at 1 GiB
    "cull_limit": 0,
    "sqlite_mmap_size": 0,
}
_COUNTS = ("count", "size", "hits", "misses")  # kept by triggers beside the settings, from 0

# Python cannot decode a message of SQLite that quotes damaged text.
DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)


class Store(diskcache.Cache):  # type: ignore[misc]
    """A `Cache` of diskcache, opened for writing only.

    `__init__` does not call that of diskcache, which writes each setting in two transactions, even if the
    database has the settings. It makes what the database lacks of its schema and settings in one
    transaction. While another program locks the database, it waits for up to `BUSY_TIMEOUT` seconds.

    Do not call `get`, `set` or `iter`: they may pickle or unpickle. Do not call `clear` or `evict`: they
    delete the files that rows name.

    Args:
        path: the database file, which diskcache calls `cache.db`. It is made if it is missing; its folder
            must exist.

    Raises:
        CacheError: `check_files` refuses the file, or one beside it.
        sqlite3.DatabaseError: the database is damaged, or stays locked.
    """

    def __init__(self, path: Path) -> None:
        self._check_files = partial(check_files, path, read_only=False)
        self._directory, self._timeout, self._txn_id = str(path.parent), BUSY_STEP, None
        self._local = threading.local()
        self._disk = diskcache.Disk(self._directory)
        self.__dict__ |= _SETTINGS
        try:
            self._complete()
        finally:
            self.close()  # it opens again at the first write, in the thread that writes

    def _complete(self) -> None:
        """Make the tables, indexes, triggers and settings that the database lacks, in one transaction."""
        run = self._sql_retry
        if not self._objects():
            for name, value in _SETTINGS.items():
                if name.startswith("sqlite_"):  # to be set before any table is made
                    self.reset(name, value, update=False)
        run("BEGIN IMMEDIATE")  # fails before a run makes calls, if another program has the lock
        try:
            there = self._objects()
            for _, name, statement in _SCHEMA:
                if name not in there:
                    run(statement)
            found = dict(run("SELECT key, value FROM Settings").fetchall())
            if not (found.keys() >= {*_COUNTS} and found.items() >= _SETTINGS.items()):
                insert = "INSERT OR {} INTO Settings VALUES (?, ?)"
                self._con.executemany(insert.format("REPLACE"), _SETTINGS.items())
                self._con.executemany(insert.format("IGNORE"), [(name, 0) for name in _COUNTS])
        except BaseException:
            run("ROLLBACK")
            raise
        run("COMMIT")

    def _objects(self) -> set[str]:
        """Return the names of the tables, indexes and triggers in the database."""
        return {name for (name,) in self._sql_retry("SELECT name FROM sqlite_master").fetchall()}

    @property
    def _con(self) -> sqlite3.Connection:
        """This thread's connection. If this process has none in this thread, check the files and open one."""
        own = getattr(self._local, "pid", None) == os.getpid()
        is_open = own and getattr(self._local, "con", None) is not None
        if not is_open:
            self._check_files()
        connection: sqlite3.Connection = super()._con
        if not is_open:
            try:
                connection.execute("PRAGMA trusted_schema = OFF")
                _write_ahead(connection.execute)  # diskcache does not look at the answer
                self._check_files()  # the journal that it has opened
            except BaseException:
                self.close()
                raise
        return connection

    @property
    def _sql_retry(self) -> Callable[..., Any]:
        return partial(_patiently, self._sql)


def connected(path: Path, *, read_only: bool = False, frozen: bool = False) -> sqlite3.Connection:
    """Connect to a database that exists. Texts come as bytes, and no value is longer than `LONGEST_REPLY`.

    Args:
        path: the database.
        read_only: True: the database is opened for reading only.
        frozen: True: also make no files beside it, which SQLite otherwise does to read. SQLite then takes the
            file for one that nobody changes.

    Raises:
        CacheError: `check_files` refuses the file, or one beside it.
        sqlite3.OperationalError: the file is missing, or cannot be opened.
    """
    check_files(path, read_only=read_only or frozen)
    mode = "ro&immutable=1" if frozen else "ro" if read_only else "rw"
    address = f"{uri_of(path.absolute())}?mode={mode}"
    connection = sqlite3.connect(address, timeout=BUSY_TIMEOUT, isolation_level=None, uri=True)
    connection.text_factory = bytes
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_REPLY)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def uri_of(path: PurePath) -> str:
    """Return the URI of an absolute path as SQLite takes it: the server of a Windows share is in its path."""
    address = path.as_uri()
    return address if address.startswith("file:///") else address.replace("file://", "file:////", 1)


# What may lie beside a database

JOURNALS = ("-wal", "-shm", "-journal")  # the endings of SQLite's own files
LOCK = ".lock"  # the ending of the lock that is held while a damaged database is replaced


def check_files(path: Path, *, read_only: bool) -> None:
    """Raise CacheError if a cache's database, or a file beside it, could make SQLite harm other files.

    SQLite follows links and waits for pipes. A rollback journal can name any file, which SQLite then deletes,
    and hold any pages, which SQLite then writes. A cache is in write-ahead mode from the start, and needs no
    rollback journal: one may be left of an older version that ended while it made the cache. A rollback
    journal on which SQLite does not act is let pass: an empty one, one whose first byte is zero, or one of an
    empty database.

    Args:
        path: the database; it may be missing.
        read_only: whether others may write to the database. Its journals may then be theirs, too; otherwise a
            journal that others may write to is refused.
    """
    for ending in ("", *JOURNALS, LOCK):
        beside = path.with_name(path.name + ending)
        try:
            found = beside.lstat()
        except FileNotFoundError:
            continue
        problem = ""
        if not stat.S_ISREG(found.st_mode):
            problem = "is a link, a pipe or a folder"
        elif ending and found.st_nlink > 1:
            problem = "is a second name of another file"
        elif ending == "-journal" and not _is_idle(path, beside):
            problem = (
                "may be a stranger's, and is not read: if no other program uses the cache, delete it. Only"
                " what was not finished is lost"
            )
        if problem:
            raise unusable(path.parent, f"its {beside.name} {problem}")
        if ending in JOURNALS and not read_only and not _is_mine_alone(beside, found, path):
            raise unusable(path.parent, f"others may write to its {beside.name}: delete it")


def _is_idle(path: Path, journal: Path) -> bool:
    """Return whether SQLite would ignore the rollback journal of a database, or there is none."""
    try:
        with opened_file(journal) as file:
            begin = file.read(1)
        return begin in (b"", b"\0") or path.stat().st_size == 0
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _is_mine_alone(journal: Path, found: os.stat_result, path: Path) -> bool:
    """Return whether a journal is this user's or the administrator's, and no one else may write to it.

    SQLite gives a journal that the administrator makes to the owner of the database `path`.
    """
    if not hasattr(os, "getuid"):
        return True
    user = os.getuid()
    known = {user, 0}
    if not user:
        with suppress(FileNotFoundError):
            known.add(path.stat().st_uid)
    return found.st_uid in known and not others_may_write(journal, found)


def unusable(directory: Path, problem: object) -> CacheError:
    """Make the error of a cache directory that cannot be used at all. It is returned, not raised."""
    return CacheError(
        f"the cache directory {directory} cannot be used: {str(problem).rstrip('.')}.",
        hint="Name another one with cache_dir=, or turn the cache off with cache=False.",
    )


def is_locked(error: BaseException) -> bool:
    """Return whether an error of SQLite says that somebody else keeps the database locked."""
    return _code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_too_long(error: BaseException) -> bool:
    """Return whether an error of SQLite says that a value is longer than `LONGEST_REPLY`."""
    return _code(error) & 0xFF == sqlite3.SQLITE_TOOBIG


def _code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK))


def _patiently(execute: Callable[..., Any], statement: str, *parameters: Any) -> Any:
    """Run a statement. While another program has the lock, try again for up to `BUSY_TIMEOUT` seconds."""
    try:
        return execute(statement, *parameters)
    except sqlite3.Error as error:
        if not is_locked(error):
            raise
    trying = tenacity.Retrying(
        stop=tenacity.stop_after_delay(BUSY_TIMEOUT),
        wait=tenacity.wait_fixed(0.01),
        retry=tenacity.retry_if_exception(is_locked),
        reraise=True,
    )
    return trying(execute, statement, *parameters)


def check_database(path: Path, *, read_only: bool, frozen: bool = False) -> str:
    """Check a database before it is used, and mark a new one as this library's, unless it is only read.

    Settings in the database that are not diskcache's, or have other values, are deleted, unless it is only
    read.

    Args:
        path: the database; an empty file is a new one.
        read_only: whether nothing in it may be changed.
        frozen: as for `connected`.

    Returns:
        "ours", "new", or "another program's".

    Raises:
        CacheError: `check_files` refuses the file, or one beside it.
        sqlite3.DatabaseError: it is damaged, its schema is not that of a cache, or it stays locked.
    """
    with closing(connected(path, read_only=read_only, frozen=frozen)) as connection:
        connection.execute("PRAGMA busy_timeout = 0")  # `_patiently` waits
        run = partial(_patiently, connection.execute)
        # Check in this order: another process that starts now marks the database, then makes its tables.
        objects = run("SELECT type, name, sql FROM sqlite_master").fetchall()
        ((mark,),) = run("PRAGMA application_id").fetchall()
        if not objects:
            if not read_only:
                _write_ahead(run, path)
                # Before any table is made, so that no other process sees one unmarked.
                run(f"PRAGMA application_id = {_MARK}")
            return "new"
        if mark != _MARK:
            return "another program's"
        known = {tuple(map(_decoded, one)) for one in objects}
        if not all(map(_is_known, known)):
            raise sqlite3.DatabaseError("its schema is not that of a cache of replies")
        if not read_only:
            _write_ahead(run, path)
            if ("table", "Settings") in {one[:2] for one in known}:
                _remove_wrong_settings(run)
    return "ours"


def _is_known(one: tuple[str, str, str | None]) -> bool:
    """Return whether an object of a schema is diskcache's or SQLite's own, by its name and its SQL."""
    kind, name, statement = one
    if statement is None:  # an index that a constraint makes
        return kind == "index" and name.startswith("sqlite_autoindex_")
    return one in _SCHEMA or one in _STATISTICS


def check_plain(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError unless `Cache` is a table without computed columns."""
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE name = 'Cache' AND type = 'table' AND sql LIKE 'CREATE TABLE %'"
        " AND NOT EXISTS (SELECT 1 FROM pragma_table_xinfo('Cache') WHERE hidden <> 0)"
    )
    if found.fetchone() is None:
        raise sqlite3.DatabaseError("it has no table of replies")


def _write_ahead(run: Callable[..., sqlite3.Cursor], path: Path | None = None) -> None:
    """Set write-ahead mode. The rollback journal that SQLite needs to do so is in memory, not in a file.

    If the mode is set, a rollback journal of the database `path` on which SQLite would not act is deleted.
    """
    ((mode,),) = run("PRAGMA journal_mode").fetchall()
    if _decoded(mode) != "wal":
        run("PRAGMA journal_mode = MEMORY").fetchall()
        # If the file system has no such mode (folders of a network), the journal stays in memory.
        ((mode,),) = run("PRAGMA journal_mode = WAL").fetchall()
    if path is not None and _decoded(mode) == "wal":
        journal = path.with_name(path.name + "-journal")
        if _is_idle(path, journal):
            journal.unlink(missing_ok=True)


def _remove_wrong_settings(run: Callable[..., sqlite3.Cursor]) -> None:
    """Delete settings that diskcache does not have, or of other values: it would run them as pragmas."""
    for row, key, value in run("SELECT rowid, key, value FROM Settings").fetchall():
        name = _decoded(key)
        is_count = name in _COUNTS and isinstance(value, int)
        if not is_count and (name not in _SETTINGS or _decoded(value) != _SETTINGS[name]):
            run("DELETE FROM Settings WHERE rowid = ?", (row,))


def _decoded(value: object) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def decoded(value: object) -> str:
    """Return a value that should be a text as `str`. Bytes that are not UTF-8 are replaced."""
    return str(_decoded(value))


# What a damaged database still gives


def empty_journal(path: Path) -> None:
    """Write what the journal holds to the database, as far as it can be read. Ignore SQLite's errors."""
    with suppress(*DAMAGED), closing(connected(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


_SMALLEST_ROW = 64  # bytes: its key alone has 32
_MOST_SPANS = 100_000  # each takes some 20 µs
_MOST_MISSES = 12  # times that a span in which nothing is found is halved


StoredReply = tuple[str, float, bytes, str]  # model, when it was stored (Unix seconds), key, text


def readable_rows(path: Path) -> Iterator[StoredReply]:
    """Yield each reply that can still be read from a damaged database.

    A span of rows is read from its start, and from its end back. What is left between them is split into
    halves: it is damaged, or a damaged row number looks like the end of the span.

    Raises:
        CacheError: `check_files` refuses the file, or one beside it.
    """
    with closing(connected(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")  # so that a file that was cut off is read
        try:
            check_plain(connection)
        except DAMAGED:
            return
        most = path.stat().st_size // _SMALLEST_ROW
        spans = [(1, _last_row(connection, most), 0)]
        for _ in range(_MOST_SPANS):
            if not spans:
                return
            first, last, misses = spans.pop()
            misses += 1
            for order in ("ASC", "DESC"):
                try:
                    for row, *reply in connection.execute(_REPLIES.format(order), (first, last)):
                        misses = 0
                        if order == "ASC":
                            first = max(first, row + 1)
                        else:
                            last = min(last, row - 1)
                        yield from _as_text(*reply)
                except DAMAGED:
                    misses = 0 if order == "ASC" else misses  # back from a hole leads to any damage
            is_hole = misses > 0 and last - first > most
            if first < last and misses < _MOST_MISSES and not is_hole:
                middle = (first + last) // 2
                spans += [(middle + 1, last, misses), (first, middle, misses)]


_REPLIES = (
    "SELECT rowid, tag, store_time, key, value FROM Cache NOT INDEXED WHERE rowid BETWEEN ? AND ?"
    " AND raw = 1 AND mode = 1 AND typeof(key) = 'blob' AND typeof(value) = 'text'"
    " ORDER BY rowid {}"
)


def _as_text(tag: object, stored: object, key: bytes, text: bytes) -> Iterator[StoredReply]:
    with suppress(UnicodeDecodeError):
        when = stored if isinstance(stored, float) else 0.0  # of an unknown age: as the oldest
        yield decoded(tag), when, key, text.decode()


def _last_row(connection: sqlite3.Connection, most: int) -> int:
    """Return the highest row number; if it cannot be read, `most`, the most rows that the file can hold."""
    with suppress(*DAMAGED):
        return int(connection.execute("SELECT MAX(rowid) FROM Cache").fetchone()[0] or 0)
    return most
