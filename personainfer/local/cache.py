"""The cache of replies on disk: the hash of a request -> the reply, as JSON text.

The database is diskcache's (SQLite in write-ahead mode, safe for several processes at once). Many replies are
written in one transaction, and many keys are looked up in one query. Only text is stored and read: diskcache
itself would unpickle a row whose `mode` was tampered with (CVE-2025-69872), and a cache directory may be
shared. `local.database_checks` checks the file. The files and folders that this module makes are open to
their owner only, since replies hold people's texts.

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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import diskcache
from pydantic import AfterValidator

from ..arguments import NumberFromZero, Text, Wanted, check_argument
from ..exceptions import CacheError, InvalidArgumentError, visible
from .atomic_files import put_in_place, remove_abandoned, unfinished_folder
from .database_checks import (
    BUSY_TIMEOUT,
    JOURNALS,
    LOCK,
    LONGEST_REPLY,
    Store,
    StoredReply,
    check_database,
    check_files,
    check_plain,
    connected,
    decoded,
    empty_journal,
    is_locked,
    is_too_long,
    readable_rows,
    unusable,
)
from .paths import close_to_others, others_may_write, private_folder, user_cache_folder

T = TypeVar("T")

_READS = 5  # attempts to read a frozen database whose owner writes meanwhile
_RAW_MODE = 1  # diskcache's mode of a value stored as it is; other modes hold files or pickles
_LOOKUP_SIZE = 500  # SQLite allowed 999 parameters a statement before 3.32
# What diskcache's `set` does, for many rows at once and in half the time; its triggers keep the counts.
_WRITE = (
    "INSERT INTO Cache (key, raw, store_time, access_time, tag, mode, value)"
    f" VALUES (?, 1, ?, ?, ?, {_RAW_MODE}, ?) ON CONFLICT (key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, access_time = excluded.access_time, tag = excluded.tag,"
    " mode = excluded.mode, filename = NULL, value = excluded.value"
)
_EMPTY_JOURNAL = "PRAGMA wal_checkpoint(TRUNCATE)"
_LARGEST_SIZE = 2**62  # bytes: SQLite's integers end at 2**63
_DATABASE = "cache.db"
_SET_ASIDE = f"{_DATABASE}.broken-"  # and a number: what a damaged database is renamed to


def default_cache_dir() -> Path:
    """Return the folder $PERSONAINFER_CACHE_DIR, or, if that is empty or not set, the system's cache folder.

    The system's is one of this library in the user's cache folder. Nothing is made or checked here.
    """
    named = os.environ.get("PERSONAINFER_CACHE_DIR")
    return Path(named) if named else user_cache_folder()


@dataclass(frozen=True)
class CacheInfo:
    """What a cache directory holds.

    Attributes:
        directory: the directory, as an absolute path.
        replies: how many replies there are.
        bytes: the size of the database and its journals, in bytes.
        models: the name of each model, as the user wrote it -> how many replies of it there are.
    """

    directory: Path
    replies: int
    bytes: int
    models: Mapping[str, int]


class _UnreadableReplyError(CacheError):
    """A reply in the database is too long, or is not UTF-8. The other replies can be read one by one."""


class ReplyCache:
    """A directory of replies on disk. The key of a reply is the digest of its request.

    Several threads and processes may use one directory, and threads may share one ReplyCache. Each thread
    gets its own connection.

    If others may write to the directory, or this user may not, the cache is only read: the constructor warns,
    `set_many` does nothing, and `clear` and `prune` raise CacheError.

    Args:
        directory: where the replies are. It is made if it is missing, with an empty database.

    Raises:
        CacheError: the directory cannot be made or used, or its database is damaged, belongs to another
            program, or stays locked.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = _resolved(directory)
        self._path = self.directory / _DATABASE
        self._here = threading.local()  # this thread's connection for reading, and its uses now
        self._read_only = True  # until it is known that nobody else may write
        self._is_given_up = False  # whether a database that is only read has failed
        self._pid = os.getpid()
        try:
            private_folder(self.directory)
            if self.directory == user_cache_folder().resolve():
                close_to_others(self.directory, f"{_DATABASE}*")
            # Made before SQLite makes it, which would let everybody read it; journals get its permissions.
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._check_files()
            why = self._why_read_only()
            self._read_only = bool(why)
            if why:
                place = visible(str(self._path))
                warnings.warn(
                    f"{why} the cache {place}, so replies are read from it, and none is kept. Make it yours"
                    " alone: chmod -R go-w, or name another directory with cache_dir=.",
                    stacklevel=2,
                )
            self._check_files()  # once more, now that it is known whose the files must be
            self._inode = self._path.stat().st_ino
            if not self._read_only:
                remove_abandoned(self._path)
            self._check_database()
            self._store: Any = None
            if not self._read_only:
                with self._database_errors():
                    self._store = Store(self._path)
        except (OSError, ValueError) as error:
            raise unusable(self.directory, error) from error

    @property
    def is_only_read(self) -> bool:
        """Whether others may write to the directory, or this user may not, so that no reply is kept."""
        return self._read_only

    def _check_files(self) -> None:
        check_files(self._path, read_only=self._read_only)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """Return the cached replies: key -> text. Keys without a reply that can be read as text are left out.

        Raises:
            CacheError: the database fails. A cache that is only read warns instead, returns what it has
                found, and finds nothing from then on.
        """
        found: dict[bytes, str] = {}
        if self._is_given_up:
            return found
        for start in range(0, len(keys), _LOOKUP_SIZE):
            part = keys[start : start + _LOOKUP_SIZE]
            try:
                found |= self._look_up(part)
            except _UnreadableReplyError:
                for key in part:
                    with suppress(_UnreadableReplyError):
                        found |= self._look_up([key])
            except CacheError as error:
                if not self._read_only:
                    raise
                self._give_up(error)
                break
        return found

    def _give_up(self, error: CacheError) -> None:
        """Read no more replies from a database that may not be written, and warn why."""
        self._is_given_up = True
        warnings.warn(f"{error} No more replies are read from it.", stacklevel=3)

    def _look_up(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        rows = self._select(
            "SELECT key, value FROM Cache WHERE raw = 1 AND mode = 1 AND typeof(value) = 'text'"
            f" AND key IN ({','.join('?' * len(keys))})",
            keys,
        )
        try:
            return {key: text.decode() for key, text in rows}
        except UnicodeDecodeError:
            raise _UnreadableReplyError(f"a reply in {self._path} is no UTF-8.") from None

    def set_many(
        self,
        replies: Iterable[tuple[bytes, str]],
        *,
        model: str,
        patience: float = BUSY_TIMEOUT,
    ) -> None:
        """Write replies in one transaction; on return they are on disk. A cache that is only read keeps none.

        Args:
            replies: keys and texts. A text replaces the one that its key has.
            model: the name of the model that replied, by which `info` counts and `clear` deletes.
            patience: seconds to wait while another process writes, rounded up to a multiple of half a second.

        Raises:
            CacheError: nothing was kept. Its `retryable` is True if another process still writes.
        """
        if not self._read_only:
            now = time.time()
            self._write([(model, now, key, text) for key, text in replies], patience)

    def _write(self, replies: Iterable[StoredReply], patience: float = BUSY_TIMEOUT) -> None:
        """Write replies that may have been stored before, as `set_many` does."""
        ends = time.monotonic() + patience
        rows = [(key, stored, stored, model, text) for model, stored, key, text in replies]
        while True:
            try:
                with self._database_errors(), self._store.transact():
                    self._check_still_there()
                    self._store._con.executemany(_WRITE, rows)
                break
            except CacheError as error:
                if not error.retryable or time.monotonic() >= ends:
                    raise
        self._check_still_there()

    def info(self) -> CacheInfo:
        """Return the counts of replies by model, and the size of the database with its journals.

        Raises:
            CacheError: the database fails.
        """
        rows = self._select("SELECT tag, COUNT(*) FROM Cache GROUP BY tag ORDER BY tag", ())
        models: Counter[str] = Counter()
        for tag, count in rows:
            models[decoded(tag)] += count
        files = [self._path.with_name(self._path.name + end) for end in ("", *JOURNALS)]
        size = sum(path.stat().st_size for path in files if path.is_file())
        return CacheInfo(self.directory, models.total(), size, dict(models))

    def clear(self, model: str | None = None) -> int:
        """Delete all replies, or those of one model.

        Args:
            model: whose replies are deleted. None: all are, with the damaged databases that were set aside.

        Returns:
            How many replies were deleted.

        Raises:
            CacheError: the cache is only read, its database fails, or another program keeps it locked.
        """
        self._check_writable()
        with self._database_errors():
            deleted = self._delete("1") if model is None else self._delete("tag = ?", model)
            self._free()
        if model is None:
            self._delete_set_aside(float("inf"))
        return deleted

    def _delete_set_aside(self, before: float) -> None:
        """Delete damaged databases that were set aside and last written before this time (Unix seconds)."""
        for path in self.directory.glob(f"{_SET_ASIDE}*"):
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime < before:
                    path.unlink()

    def prune(self, *, older_than: float | None = None, max_size: int | None = None) -> int:
        """Delete the oldest replies. With neither argument, delete none.

        Args:
            older_than: seconds: delete replies, and damaged databases that were set aside, if they were last
                written longer ago.
            max_size: bytes: delete the oldest replies until the keys and texts of the others fit.

        Returns:
            How many replies were deleted.

        Raises:
            CacheError: the cache is only read, its database fails, or another program keeps it locked.
        """
        self._check_writable()
        deleted = 0
        with self._database_errors(), self._store.transact():
            if older_than is not None:
                deleted += self._delete("store_time < ?", time.time() - older_than)
                self._delete_set_aside(time.time() - older_than)
            if max_size is not None:
                # The newest replies whose texts, added up, are within the bound, are kept.
                newest = (
                    "SELECT rowid AS place, SUM(LENGTH(CAST(value AS BLOB)) + LENGTH(key))"
                    " OVER (ORDER BY store_time DESC, rowid DESC) AS total FROM Cache"
                )
                deleted += self._delete(
                    f"rowid IN (SELECT place FROM ({newest}) WHERE total > ?)", max_size
                )
        with self._database_errors():
            self._free()
        return deleted

    def close(self) -> None:
        """Close this thread's connections. Its next query opens new ones. Other threads keep their own.

        A forked child leaves the connections of its parent alone. Nothing is closed while this thread is in
        a query: the garbage collector may end an abandoned run, which closes its cache, at any allocation.

        Raises:
            CacheError: the database fails.
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
        def found(is_frozen: bool) -> list[tuple[Any, Any]]:
            if not is_frozen:
                return self._reader().execute(query, parameters).fetchall()
            with closing(self._connection(frozen=True)) as connection:
                return connection.execute(query, parameters).fetchall()

        return self._settled(found)

    def _settled(self, read: Callable[[bool], T]) -> T:
        """Return what `read` returns. If somebody wrote to a frozen database meanwhile, read again.

        Args:
            read: reads the database. Its argument says whether the database is frozen, see `_frozen_state`.

        Raises:
            CacheError: the database fails, or was written during each of `_READS` attempts.
        """
        for _ in range(_READS):
            before = self._frozen_state()
            try:
                with self._database_errors():
                    found = read(before is not None)
            except CacheError:
                if before == self._frozen_state():
                    raise
            else:
                if before == self._frozen_state():
                    return found
        raise self._locked()

    def _locked(self) -> CacheError:
        error = CacheError(
            f"the cache {self._path} is locked by another program.",
            hint="Call again later, end that program, or name another directory with cache_dir=.",
        )
        error.retryable = True
        return error

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        """Raise an error of the database in this block as a CacheError. Meanwhile `close` does nothing."""
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
        """Return this thread's connection for reading, and never one that was opened before a fork."""
        if getattr(self._here, "pid", None) != os.getpid():
            self._here.pid = self._pid = os.getpid()
            self._here.connection = None
        if self._here.connection is None:
            self._here.connection = self._connection(frozen=False)
        own: sqlite3.Connection = self._here.connection
        return own

    def _connection(self, *, frozen: bool) -> sqlite3.Connection:
        self._check_still_there()  # else SQLite would make a new one
        connection = connected(self._path, read_only=self._read_only, frozen=frozen)
        check_plain(connection)
        self._check_files()  # the journal that it has opened
        return connection

    def _check_database(self) -> None:
        """Check that the database is this library's and not damaged. Mark a new one as this library's.

        Raises:
            CacheError: the database is another program's, which is left as it is; or damaged, or locked; or
                it is new, and may only be read. If one that may only be read fails or is locked, this warns
                instead.
        """
        check = partial(check_database, self._path, read_only=self._read_only)
        try:
            kind = self._settled(lambda is_frozen: check(frozen=is_frozen))
        except CacheError as error:
            failed = error.retryable or isinstance(error.__cause__, sqlite3.OperationalError)
            if not (self._read_only and failed):  # what is damaged or a stranger's is refused
                raise
            self._give_up(error)
            return
        if self._read_only and kind == "new":
            raise CacheError(
                f"{self._path} is empty, and is only read, since others may write to it or you may not.",
                hint="Name another directory with cache_dir=.",
            )
        if kind == "another program's":
            raise CacheError(
                f"{self._path} is the database of another program. It was left as it is.",
                hint="Name another directory with cache_dir=.",
            )

    def _why_read_only(self) -> str:
        """Return why no replies may be written there, as the start of a sentence; "" if they may be.

        The system's administrator may write everywhere, and works in folders of others (in a container).
        """
        folder, file = self.directory.stat(), self._path.stat()
        if hasattr(os, "getuid"):
            user = os.getuid()
            open_to_others = others_may_write(self._path, file) or (
                # Whoever may write to the folder may replace the file, unless it is sticky.
                (
                    others_may_write(self.directory, folder)
                    if user
                    else bool(folder.st_mode & stat.S_IWOTH)
                )
                and not folder.st_mode & stat.S_ISVTX
            )
            if open_to_others or (user and not {folder.st_uid, file.st_uid} <= {user, 0}):
                return "others may write to"
        may_write = all(os.access(path, os.W_OK) for path in (self.directory, self._path))
        return "" if may_write else "you may not write to"

    def _frozen_state(self) -> tuple[int, ...] | None:
        """Return the number, size and time of change of a frozen database; None for other databases.

        A database is frozen if its journal is empty and this user can make no files beside it, which SQLite
        otherwise does to read. It is read as a file that does not change. If its owner writes to it all the
        same, its state differs. The state is () if the file is missing.
        """
        if not self._read_only or os.access(self.directory, os.W_OK):
            return None
        journal = self._path.with_name(self._path.name + "-wal")
        try:
            if journal.exists() and journal.stat().st_size:
                return None
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _check_writable(self) -> None:
        if self._read_only:
            raise CacheError(
                f"others may write to the cache {self._path}, or you may not: nothing in it is changed.",
                hint="Make it yours alone: chmod -R go-w.",
            )

    def _is_still_there(self) -> bool:
        """Return whether the file is the one that was opened first."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _check_still_there(self) -> None:
        """Raise CacheError if the database was deleted or replaced: what is written would be lost."""
        if not self._is_still_there():
            raise self._replaced()

    def _replaced(self) -> CacheError:
        return CacheError(
            f"the cache {self._path} was deleted or replaced during the run; replies are lost.",
            hint="Run the call again, and do not touch the cache while it runs.",
        )

    def _delete(self, condition: str, *values: float | str) -> int:
        """Delete the replies of which an SQL condition is true, in one transaction. Return how many."""
        # By diskcache's own connection, where its triggers keep the counts.
        self._store._sql("PRAGMA secure_delete = ON")  # the texts are overwritten
        with self._store.transact():
            return int(self._store._sql(f"DELETE FROM Cache WHERE {condition}", values).rowcount)

    def _free(self) -> None:
        """Give the space of deleted rows back to the disk, and empty the journal, which has their texts.

        Wait up to `BUSY_TIMEOUT` seconds for other programs that read. If they go on, or the disk is full,
        warn that the file still holds what was deleted.
        """
        ends, statement = time.monotonic() + BUSY_TIMEOUT, "VACUUM"
        with suppress(sqlite3.OperationalError):  # the disk is full
            while time.monotonic() < ends:
                try:
                    answer = self._store._sql(statement).fetchall()
                except sqlite3.OperationalError as error:
                    if not is_locked(error):
                        raise
                    continue
                if statement == _EMPTY_JOURNAL and not answer[0][0]:  # nobody was in the way
                    return
                statement = _EMPTY_JOURNAL
        warnings.warn(
            f"another program reads the cache {visible(str(self._path))}, or the disk is full: the file still"
            " holds what was deleted. Delete again when no program uses it.",
            stacklevel=4,
        )

    def _set_aside(self, reason: str) -> CacheError:
        """Replace a damaged database by one with the replies that can be read. Return the error to raise.

        The damaged file is kept beside the new one, under another name. It stays in its place until the new
        one is complete: after a kill, the next call begins again. Nothing is replaced if the cache is only
        read, if the database was deleted or replaced meanwhile, if another process holds the lock, or if the
        disk is full. The error says what happened.

        Args:
            reason: what is wrong with the database, for the error.
        """
        if self._read_only:
            return CacheError(
                f"the cache {self._path} cannot be read: {reason}. It is not yours alone, so it was left as"
                " it is.",
                hint="Name another directory with cache_dir=.",
            )
        from filelock import FileLock, Timeout  # slow to load, and seldom needed

        try:
            with FileLock(f"{self._path}{LOCK}", timeout=BUSY_TIMEOUT):
                if not self._is_still_there():
                    return self._replaced()
                aside, saved = self._rebuild()
        except Timeout:
            return self._locked()
        except OSError as error:
            return CacheError(
                f"the cache {self._path} cannot be read: {reason}; nor can a new one be made: {error}.",
                hint="Free the disk or name another directory with cache_dir=.",
            )
        return CacheError(
            f"the cache {self._path} cannot be read: {reason}. It was moved to {aside.name}, and"
            f" {saved:,} replies of it are in a new cache.",
            hint="Run the same call again: only the lost replies are asked for.",
        )

    def _rebuild(self) -> tuple[Path, int]:
        """Replace the damaged database. Return where it is now, and how many replies the new one has."""
        number, saved = 1, 0
        while (aside := self.directory / f"{_SET_ASIDE}{number}").exists():
            if aside.samefile(self._path):  # of a call that was killed
                break
            number += 1
        empty_journal(self._path)
        with unfinished_folder(self._path) as place:
            new = ReplyCache(place)
            replies = readable_rows(self._path)
            while group := list(islice(replies, _LOOKUP_SIZE)):
                new._write(group)
                saved += len(group)
            new.close()
            with suppress(FileExistsError):
                os.link(self._path, aside)
            for ending in JOURNALS:  # a new database must not meet the journal of another one
                with suppress(FileNotFoundError):
                    os.rename(f"{self._path}{ending}", f"{aside}{ending}")
            put_in_place(new._path, self._path, private=True)
        return aside, saved

    def _failure(self, error: sqlite3.DatabaseError) -> CacheError:
        if is_locked(error):
            return self._locked()
        if not self._is_still_there():
            return self._replaced()
        if is_too_long(error):
            return _UnreadableReplyError(
                f"the cache {self._path} holds a text of more than {LONGEST_REPLY:,} bytes.",
                hint="It was not written by this library: name another directory with cache_dir=.",
            )
        # Disk full, read-only; or a wrong call, which says nothing about the file.
        if isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError)):
            is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            return CacheError(
                f"the cache {self._path} failed: {error}.",
                hint="Free the disk or name another directory with cache_dir=."
                + is_full
                * " If no run uses this one, its files may be deleted by hand, with all replies.",
            )
        return self._set_aside(str(error))


def _encodable(name: str) -> str:
    name.encode()
    return name


_ModelName = Annotated[Text, AfterValidator(_encodable), Wanted("is not the name of a model.")]


_Folder = Annotated[Text | Path | None, Wanted("is not the path of a folder.")]


def _resolved(directory: Path) -> Path:
    try:
        return directory.expanduser().resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null in it, or no such user
        raise unusable(directory, error) from error


def _named(cache_dir: str | Path | None) -> Path:
    check_argument("cache_dir", cache_dir, _Folder)
    return _resolved(Path(cache_dir) if cache_dir else default_cache_dir())


def _opened(directory: Path) -> ReplyCache | None:
    """Open the cache in a folder; None if there is none: who only reads or deletes makes nothing."""
    try:
        there = any(name.startswith(_DATABASE) for name in os.listdir(directory))
    except FileNotFoundError:
        there = False
    except OSError as error:
        raise unusable(directory, error) from error
    return ReplyCache(directory) if there else None


def cache_info(cache_dir: str | Path | None = None) -> CacheInfo:
    """Return what a cache directory holds. Where there is no cache, nothing is made.

    Args:
        cache_dir: None: $PERSONAINFER_CACHE_DIR, or the user's cache.

    Returns:
        The counts, all 0 if there is no cache.

    Raises:
        InvalidArgumentError: `cache_dir` is not a path.
        CacheError: the directory cannot be used as a cache.
    """
    directory = _named(cache_dir)
    cache = _opened(directory)
    return CacheInfo(directory, 0, 0, {}) if cache is None else cache.info()


def clear_cache(*, model: str | None = None, cache_dir: str | Path | None = None) -> int:
    """Delete the cached replies of one model, or all of them.

    Args:
        model: the name with which the replies were made; None: all models.
        cache_dir: None: $PERSONAINFER_CACHE_DIR, or the user's cache.

    Returns:
        How many replies were deleted. A model without replies, and a directory without a cache, give 0.

    Raises:
        InvalidArgumentError: `model` is not a name, or `cache_dir` is not a path.
        CacheError: the directory cannot be used as a cache, others may write to it or you may not, or another
            program keeps it locked.
    """
    check_argument("model", model, _ModelName | None)
    cache = _opened(_named(cache_dir))
    return 0 if cache is None else cache.clear(model)


def prune_cache(
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    cache_dir: str | Path | None = None,
) -> int:
    """Delete the oldest cached replies.

    Args:
        older_than: days: delete replies, and damaged databases that were set aside, if they were last written
            longer ago.
        max_size: bytes: delete the oldest replies until the keys and texts of the others fit.
        cache_dir: None: $PERSONAINFER_CACHE_DIR, or the user's cache.

    Returns:
        How many replies were deleted; 0 if there is no cache.

    Raises:
        InvalidArgumentError: both `older_than` and `max_size` are None; or one is negative, NaN or no number;
            or `cache_dir` is not a path.
        CacheError: the directory cannot be used as a cache, others may write to it or you may not, or another
            program keeps it locked.
    """
    if older_than is None and max_size is None:
        raise InvalidArgumentError(
            "nothing says what to delete.", hint="Give older_than= or max_size=."
        )
    older_than = check_argument("older_than", older_than, NumberFromZero | None)
    max_size = check_argument("max_size", max_size, NumberFromZero | None)
    cache = _opened(_named(cache_dir))
    if cache is None:
        return 0
    return cache.prune(
        older_than=None if older_than is None else float(older_than) * 86_400,
        max_size=None if max_size is None else int(min(max_size, _LARGEST_SIZE)),
    )
