"""Replies on disk: nothing lost, nothing unpickled, several processes, files that are broken."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import pickle
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import diskcache
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.exceptions import CacheError, InvalidArgumentError
from personainfer.local import database_checks
from personainfer.local.cache import (
    ReplyCache,
    cache_info,
    clear_cache,
    default_cache_dir,
    prune_cache,
)
from personainfer.local.database_checks import readable_rows
from personainfer.local.weight_downloads import content_hash
from personainfer.testing import FakeLLM, clock_jump

from ..builders import examples

PICKLE_MODE = 4  # diskcache's


def numbered(count: int, start: int = 0) -> dict[bytes, str]:
    return {f"key-{i}".encode(): f"reply {i}" for i in range(start, start + count)}


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own, started but not waited for."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def plant(folder: Path, **row: object) -> None:
    """Write a row past diskcache, as somebody could who may write to a shared directory."""
    with sqlite3.connect(folder / "cache.db") as connection:
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO Cache ({names}) VALUES ({marks})", tuple(row.values()))
    connection.close()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReplyCache]:
    opened = ReplyCache(tmp_path / "replies")
    yield opened
    opened.close()


@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replies=st.dictionaries(st.binary(), st.text(), max_size=20), absent=st.binary())
def test_what_is_written_is_read(
    cache: ReplyCache, replies: dict[bytes, str], absent: bytes
) -> None:
    cache.clear()
    cache.set_many(replies.items(), model="m")
    expected = {key: text for key, text in replies.items() if key != absent}
    assert cache.get_many(list(expected)) == expected
    if absent not in replies:
        assert cache.get_many([absent, *replies]) == replies


def test_many_keys_are_looked_up_at_once(cache: ReplyCache) -> None:
    replies = numbered(1201)
    cache.set_many(replies.items(), model="m")
    wanted = [*replies, *numbered(700, start=5000)]
    assert cache.get_many(wanted) == replies
    assert cache.get_many([]) == {}


def test_a_key_asked_for_twice_is_found_once(cache: ReplyCache) -> None:
    cache.set_many([(b"a", "1")], model="m")
    assert cache.get_many([b"a", b"a"]) == {b"a": "1"}


def test_the_last_reply_of_a_key_counts(cache: ReplyCache) -> None:
    cache.set_many([(b"a", "old"), (b"a", "new")], model="m")
    cache.set_many([(b"a", "newest")], model="m")
    assert cache.get_many([b"a"]) == {b"a": "newest"}
    assert cache.info().replies == 1


def test_a_long_reply_is_kept_whole(cache: ReplyCache) -> None:
    text = "long ✓ " * 300_000
    cache.set_many([(b"a", text)], model="m")
    assert cache.get_many([b"a"]) == {b"a": text}
    assert cache.info().bytes > len(text)


def test_a_group_is_written_whole_or_not_at_all(cache: ReplyCache) -> None:
    def group() -> Iterator[tuple[bytes, str]]:
        yield from numbered(3).items()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.set_many(group(), model="m")
    assert cache.get_many(list(numbered(3))) == {}
    cache.set_many(numbered(3).items(), model="m")
    assert cache.get_many(list(numbered(3))) == numbered(3)


def test_info_counts_by_model_and_clear_takes_one(cache: ReplyCache) -> None:
    cache.set_many(numbered(3).items(), model="small")
    cache.set_many(numbered(2, start=3).items(), model="große/model")
    assert cache.info().models == {"große/model": 2, "small": 3}
    assert (cache.info().replies, cache.info().directory) == (5, cache.directory)
    assert cache.clear("unknown") == 0
    assert cache.clear("small") == 3
    assert cache.get_many(list(numbered(5))) == numbered(2, start=3)
    assert cache.clear() == 2
    assert (cache.info().replies, cache.info().models) == (0, {})


def test_the_directory_is_named_by_argument_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAINFER_CACHE_DIR", str(tmp_path / "named"))
    assert default_cache_dir() == tmp_path / "named"
    ReplyCache(default_cache_dir()).set_many(numbered(2).items(), model="m")
    assert cache_info().models == {"m": 2}
    assert cache_info(tmp_path / "other").replies == 0
    assert clear_cache(model="n") == 0
    assert clear_cache(cache_dir=tmp_path / "other") == 0
    assert clear_cache() == 2
    assert cache_info(str(tmp_path / "named")).replies == 0


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="homes are told otherwise")
def test_a_user_without_a_home_names_a_cache_or_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that names a number of a user, and no HOME."""
    for name in ("HOME", "XDG_CACHE_HOME", "PERSONAINFER_CACHE_DIR", "PERSONAINFER_WEIGHTS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CacheError, match=r"no home.*cannot be used.*cache_dir="):
        pi.LLM("m", api_base="http://127.0.0.1:9/v1")
    with pytest.raises(CacheError, match=r"no home.*cannot be used"):
        cache_info()
    weights = tmp_path / "own.gguf"
    weights.write_bytes(b"GGUF")
    assert content_hash(weights) == hashlib.sha256(b"GGUF").hexdigest()
    assert os.listdir() == ["own.gguf"]
    model = pi.LLM("m", api_base="http://127.0.0.1:9/v1", cache_dir=tmp_path / "cache")
    assert model.cache is not None


def test_who_asks_or_deletes_makes_no_cache(tmp_path: Path) -> None:
    for folder in (tmp_path / "mistyped", tmp_path):
        info = cache_info(folder)
        assert (info.directory, info.replies, info.bytes, info.models) == (folder, 0, 0, {})
        assert clear_cache(cache_dir=folder) == prune_cache(max_size=0, cache_dir=folder) == 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="file"):
        cache_info(tmp_path / "file")


def test_a_new_database_is_the_one_that_diskcache_makes(tmp_path: Path) -> None:
    def found(folder: Path) -> list[object]:
        with closing(sqlite3.connect(folder / "cache.db")) as connection:
            questions = (
                "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name",
                "SELECT key, value FROM Settings ORDER BY key",
                "PRAGMA journal_mode",
            )
            return [connection.execute(question).fetchall() for question in questions]

    ReplyCache(tmp_path / "ours").close()
    (tmp_path / "theirs").mkdir()
    diskcache.Cache(str(tmp_path / "theirs"), **database_checks._SETTINGS).close()
    assert found(tmp_path / "ours") == found(tmp_path / "theirs")


def test_a_cache_that_is_opened_again_is_not_written_to(cache: ReplyCache) -> None:
    with closing(sqlite3.connect(cache.directory / "cache.db")) as other:
        before = other.execute("PRAGMA data_version").fetchall()
        ReplyCache(cache.directory).close()
        assert other.execute("PRAGMA data_version").fetchall() == before
        cache.set_many([(b"key", "reply")], model="m")
        assert other.execute("PRAGMA data_version").fetchall() != before


def test_a_closed_cache_opens_again_at_its_next_use(cache: ReplyCache) -> None:
    cache.set_many(numbered(1).items(), model="m")
    cache.close()
    assert cache.get_many(list(numbered(1))) == numbered(1)


WRITER = """
    import sys
    from pathlib import Path
    from personainfer.local.cache import ReplyCache

    cache, start = ReplyCache(Path(sys.argv[1])), int(sys.argv[2])
    for i in range(start, start + 500):
        cache.set_many([(f"key-{i}".encode(), f"reply {i}")], model="m")
    assert len(cache.get_many([f"key-{i}".encode() for i in range(start, start + 500)])) == 500
"""


@pytest.mark.heavy
def test_two_processes_write_at_once(tmp_path: Path) -> None:
    # Neither directory nor database is there yet: making them is part of the race.
    writers = [run(WRITER, tmp_path / "new", start) for start in (0, 500)]
    said = [writer.communicate() for writer in writers]
    assert ([writer.returncode for writer in writers], said) == ([0, 0], [("", "")] * 2)
    replies = numbered(1000)
    assert ReplyCache(tmp_path / "new").get_many(list(replies)) == replies


def test_a_process_that_starts_in_between_is_not_taken_for_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(sqlite3.Connection):
        """Between its first two looks at the new database another process makes the tables."""

        looks = 0

        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            Interrupted.looks += 1
            if Interrupted.looks == 2:
                ReplyCache(tmp_path).set_many(numbered(3).items(), model="m")
            return super().execute(*arguments)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Interrupted))
    assert ReplyCache(tmp_path).get_many(list(numbered(3))) == numbered(3)
    assert Interrupted.looks > 2


@pytest.mark.heavy
def test_replies_survive_a_process_that_dies_at_once(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from personainfer.local.cache import ReplyCache

        replies = {f"key-{i}".encode(): f"reply {i}" for i in range(100)}
        ReplyCache(Path(sys.argv[1])).set_many(replies.items(), model="m")
        os._exit(9)
    """
    process = run(script, tmp_path)
    assert (process.communicate(), process.returncode) == (("", ""), 9)
    assert ReplyCache(tmp_path).get_many(list(numbered(100))) == numbered(100)


def test_threads_share_a_cache(cache: ReplyCache) -> None:
    def write_and_read(start: int) -> dict[bytes, str]:
        part = numbered(50, start)
        for key, text in part.items():
            cache.set_many([(key, text)], model="m")
        found = cache.get_many(list(part))
        cache.close()
        return found

    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(write_and_read, range(0, 400, 50)))
    assert parts == [numbered(50, start) for start in range(0, 400, 50)]
    assert cache.get_many(list(numbered(400))) == numbered(400)


@pytest.mark.heavy
def test_a_cache_that_the_garbage_collector_closes_in_a_transaction_stays_open(
    tmp_path: Path,
) -> None:
    """The collector ends an abandoned run, which closes its cache, in whatever thread it comes to run."""
    cache = ReplyCache(tmp_path)
    before, closes = gc.get_threshold(), 0

    def close(phase: str, info: dict[str, int]) -> None:
        nonlocal closes
        closes += 1
        cache.close()

    gc.callbacks.append(close)
    gc.set_threshold(1, 1, 1)
    try:
        cache.set_many([(bytes([n]), f"reply {n}") for n in range(50)], model="m")
    finally:
        gc.callbacks.remove(close)
        gc.set_threshold(*before)
    assert closes > 5
    assert cache.info().replies == 50
    assert not list(tmp_path.glob("*broken*"))


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_uses_the_cache_of_its_parent(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from personainfer.local.cache import ReplyCache

        cache = ReplyCache(Path(sys.argv[1]))
        cache.set_many([(b"parent", "1")], model="m")
        assert cache.get_many([b"parent"])
        if (child := os.fork()) == 0:
            cache.set_many([(b"child", "2")], model="m")
            found = cache.get_many([b"parent", b"child"])
            os._exit(0 if found == {b"parent": "1", b"child": "2"} else 1)
        for i in range(100):
            cache.set_many([(b"%d" % i, "3")], model="m")
        assert os.waitpid(child, 0)[1] == 0
        assert cache.get_many([b"child"]) == {b"child": "2"}
    """
    process = run(script, tmp_path)
    assert (process.communicate(), process.returncode) == (("", ""), 0)
    assert cache_info(tmp_path).replies == 102


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("raw", [1, 0])
def test_a_planted_pickle_is_a_miss_and_never_runs(
    cache: ReplyCache, tmp_path: Path, raw: int
) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for key in (b"planted", bomb):
        plant(cache.directory, key=key, raw=raw, mode=PICKLE_MODE, value=bomb, tag="m")
    as_text = pickle.dumps(Bomb(tmp_path / "exploded"), protocol=0).decode()
    plant(cache.directory, key=b"as text", raw=raw, mode=PICKLE_MODE, value=as_text, tag="m")
    assert cache.get_many([b"planted", b"as text", bomb]) == {}
    assert cache.info().models == {"m": 3}
    cache.set_many([(b"planted", "a reply")], model="m")
    assert cache.get_many([b"planted"]) == {b"planted": "a reply"}
    cache.clear()
    assert cache.info().replies == 0
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(FileNotFoundError):  # the bomb was a real one
        pickle.loads(pickle.dumps(Bomb(tmp_path / "no" / "folder")))


def test_text_that_is_planted_as_bytes_is_a_miss(cache: ReplyCache) -> None:
    plant(cache.directory, key=b"planted", raw=1, mode=1, value=b"not text")
    assert cache.get_many([b"planted"]) == {}


@pytest.mark.parametrize("action", ["clear", "overwrite"])
def test_a_planted_row_does_not_delete_files(
    cache: ReplyCache, tmp_path: Path, action: str
) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("mine")
    plant(cache.directory, key=b"planted", raw=1, mode=1, value="x", filename="../letter.txt")
    if action == "clear":
        cache.clear()
    else:
        cache.set_many([(b"planted", "a reply")], model="m")
    assert letter.read_text() == "mine"


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    broken = tmp_path / "cache.db"
    for number in (1, 2):
        broken.write_bytes(b"not a database\n" * 1000)
        with pytest.raises(
            CacheError, match=r"cannot be read.*broken-\d.*same call again"
        ) as caught:
            ReplyCache(tmp_path)
        assert str(broken) in str(caught.value)
        assert (tmp_path / f"cache.db.broken-{number}").read_bytes().startswith(b"not a database")
        cache = ReplyCache(tmp_path)
        cache.set_many(numbered(5).items(), model="m")
        assert cache.get_many(list(numbered(5))) == numbered(5)
        cache.close()


def test_what_was_set_aside_does_not_count_as_replies(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"not a database\n" * 100_000)
    with pytest.raises(CacheError):
        ReplyCache(tmp_path)
    assert cache_info(tmp_path).bytes < 1_000_000


def test_the_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "cache.db") as connection:
        connection.execute("CREATE TABLE notes (text)")
        connection.execute("INSERT INTO notes VALUES ('remember')")
    connection.close()
    with pytest.raises(CacheError, match=r"another program.*left as it is"):
        ReplyCache(tmp_path)
    with sqlite3.connect(tmp_path / "cache.db") as connection:
        assert connection.execute("SELECT text FROM notes").fetchall() == [("remember",)]
    connection.close()
    assert os.listdir(tmp_path) == ["cache.db"]


def test_of_a_cache_with_a_bad_page_the_other_replies_are_kept(tmp_path: Path) -> None:
    replies = {key: text * 50 for key, text in numbered(500).items()}
    cache = ReplyCache(tmp_path)
    cache.set_many(list(replies.items())[:250], model="one")
    cache.set_many(list(replies.items())[250:], model="two")
    cache.close()
    spoil_page(tmp_path, b"reply 250reply 250")
    with pytest.raises(CacheError, match=r"malformed.*broken-1.* replies of it are in a new cache"):
        ReplyCache(tmp_path).get_many(list(replies))
    again = ReplyCache(tmp_path)
    found = again.get_many(list(replies))
    assert len(found) > 480
    assert found.items() <= replies.items()
    models = again.info().models
    assert set(models) == {"one", "two"}
    assert sum(models.values()) == len(found)
    again.close()


def test_a_damaged_cache_makes_no_reply_younger(tmp_path: Path) -> None:
    replies = {key: text * 50 for key, text in numbered(200).items()}
    cache = ReplyCache(tmp_path)
    with clock_jump(-400 * 86_400):
        cache.set_many(list(replies.items())[:150], model="m")
    cache.set_many(list(replies.items())[150:], model="m")
    cache.close()
    spoil_page(tmp_path, b"reply 50reply 50")
    with pytest.raises(CacheError, match="replies of it are in a new cache"):
        ReplyCache(tmp_path).get_many(list(replies))
    prune_cache(older_than=365, cache_dir=tmp_path)
    kept = ReplyCache(tmp_path).get_many(list(replies))
    assert list(kept.items()) == list(replies.items())[150:]


@pytest.mark.parametrize("number", [b"\xff\x7f", b"\x80\x01"])
def test_a_spoilt_number_of_a_row_hides_no_other_reply(number: bytes, tmp_path: Path) -> None:
    """SQLite takes it for the end of what is looked for."""
    replies = filled(tmp_path, 400)
    path = tmp_path / "cache.db"
    whole = bytearray(path.read_bytes())
    for row in (200, 250, 350):
        page = whole.index(b"reply %d" % row * 2) // 4096 * 4096
        # The number of the row, in SQLite's form, and the size of the header behind it.
        cell = bytes([0x80 | (row + 1) >> 7, (row + 1) & 0x7F]) + b"[\x0c-\x10]"
        [found] = re.finditer(cell, whole[page : page + 4096])
        whole[page + found.start() : page + found.start() + 2] = number
    path.write_bytes(whole)
    readable = {key: text for *_, key, text in readable_rows(path)}
    assert readable.items() <= replies.items()
    assert len(readable) > 390


@pytest.mark.heavy
@pytest.mark.parametrize("share", [0.99, 0.9, 0.5])
def test_of_a_cache_that_was_cut_off_the_replies_are_kept(share: float, tmp_path: Path) -> None:
    replies = filled(tmp_path, 400)
    path = tmp_path / "cache.db"
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(CacheError, match="in a new cache"):
        ReplyCache(tmp_path).get_many(list(replies))
    assert len(ReplyCache(tmp_path).get_many(list(replies))) > (share - 0.1) * 400


USES: dict[str, Callable[[ReplyCache], object]] = {
    "get_many": lambda cache: cache.get_many(list(numbered(500))),
    "set_many": lambda cache: cache.set_many(numbered(500).items(), model="m"),
    "info": lambda cache: cache.info(),
    "clear": lambda cache: cache.clear(),
    "clear model": lambda cache: cache.clear("m"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_damaged_database_is_set_aside(
    tmp_path: Path, use: Callable[[ReplyCache], object]
) -> None:
    cache = ReplyCache(tmp_path)
    replies = {key: text * 100 for key, text in numbered(200).items()}
    cache.set_many(replies.items(), model="m")
    cache.close()
    path = tmp_path / "cache.db"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 10] + b"\xff" * (len(whole) * 9 // 10))
    damaged = path.read_bytes()
    with pytest.raises(CacheError, match=r"malformed.*broken-1"):
        use(ReplyCache(tmp_path))
    # SQLite may have rewritten a page on opening; the damage, at least, is all there.
    assert damaged[-9000:-5000] in (tmp_path / "cache.db.broken-1").read_bytes()
    fresh = ReplyCache(tmp_path)
    found = fresh.get_many(list(replies))
    assert found.items() <= replies.items()
    assert len(found) < 40
    fresh.set_many(replies.items(), model="m")
    assert fresh.get_many(list(replies)) == replies


def test_a_database_that_cannot_be_opened_is_left_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "cache.db").mkdir()
    (tmp_path / "cache.db" / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"is a link, a pipe or a folder.*cache_dir="):
        ReplyCache(tmp_path)
    assert (tmp_path / "cache.db" / "file").read_text() == "mine"


def test_a_directory_that_cannot_be_made_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be used.*cache=False"):
        ReplyCache(tmp_path / "file" / "replies")


def test_the_cache_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    with diskcache.Cache(str(tmp_path)) as theirs:
        theirs["key"] = "value"
    with pytest.raises(CacheError, match="another program"):
        ReplyCache(tmp_path)
    with diskcache.Cache(str(tmp_path)) as theirs:
        assert theirs["key"] == "value"
        assert theirs.eviction_policy == "least-recently-stored"


# Who may read it, what is freed, and what a fault leaves


def test_only_the_owner_can_read_the_replies(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        cache = ReplyCache(tmp_path / "new")
        cache.set_many(numbered(3).items(), model="m")
        files = {path.name: path.stat().st_mode & 0o777 for path in cache.directory.iterdir()}
    finally:
        os.umask(before)
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    assert "cache.db" in files
    assert set(files.values()) == {0o600}


def test_a_cache_of_an_older_version_is_closed_where_no_user_chose_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions made it with the modes of any file. A place that you name may be open on purpose."""
    usual, named, open_to_all = (tmp_path / name for name in ("usual", "named", "open to all"))
    for folder in (usual, named, open_to_all):
        ReplyCache(folder).set_many(numbered(3).items(), model="m")
        folder.chmod(0o755)
        (folder / "cache.db").chmod(0o644)
    open_to_all.chmod(0o777)

    def modes(folder: Path) -> list[int]:
        return [path.stat().st_mode & 0o777 for path in (folder, folder / "cache.db")]

    for place, expected in ((usual, [0o700, 0o600]), (open_to_all, [0o777, 0o644])):
        monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, place=place: place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(ReplyCache(place).get_many(list(numbered(3)))) == 3
        assert modes(place) == expected
    ReplyCache(named)
    assert modes(named) == [0o755, 0o644]


def test_a_cache_of_an_older_version_is_used_where_it_cannot_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is only read, or one without modes."""
    ReplyCache(tmp_path).set_many(numbered(3).items(), model="m")
    tmp_path.chmod(0o755)
    (tmp_path / "cache.db").chmod(0o644)

    def refuse(path: Path, mode: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_: tmp_path)
    assert len(ReplyCache(tmp_path).get_many(list(numbered(3)))) == 3


@pytest.mark.heavy
@pytest.mark.parametrize(
    "act",
    [
        lambda cache: cache.set_many(numbered(2).items(), model="m", patience=0.1),
        lambda cache: cache.clear(),
        lambda cache: cache.prune(older_than=0),
    ],
    ids=["set_many", "clear", "prune"],
)
def test_a_cache_that_stays_locked_is_an_error(
    act: Callable[[ReplyCache], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personainfer.local.database_checks.BUSY_STEP", 0.05)
    cache = ReplyCache(tmp_path)
    cache.set_many(numbered(1).items(), model="m")
    with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheError, match="locked by another program") as told:
            act(cache)
    assert told.value.retryable
    cache.set_many(numbered(2).items(), model="m")
    assert cache.info().replies == 2


@pytest.mark.heavy
@pytest.mark.parametrize(
    "lock",
    ["BEGIN IMMEDIATE", "PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE"],
    ids=["against writers", "against all"],
)
def test_a_cache_that_is_locked_when_it_is_opened_is_an_error(
    lock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personainfer.local.database_checks.BUSY_TIMEOUT", 0.1)
    with closing(ReplyCache(tmp_path)) as cache:
        cache.set_many(numbered(1).items(), model="m")
    with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as other:
        other.executescript(lock)
        with pytest.raises(CacheError, match="locked by another program") as told:
            ReplyCache(tmp_path)
    assert told.value.retryable
    assert ReplyCache(tmp_path).info().replies == 1


@pytest.mark.heavy
def test_a_run_on_a_locked_cache_ends_with_an_error_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personainfer.local.database_checks.BUSY_STEP", 0.05)
    monkeypatch.setattr("personainfer.llm.workers._LOCKED_PATIENCE", 0.5)
    with FakeLLM() as llm:
        model = pi.LLM("fake", api_base=llm.api_base, cache_dir=tmp_path)
        with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CacheError, match="locked"):
                pi.infer_personas([("Why?", "a", "b")], model)
            free = pi.infer_personas([("Why?", "a", "b")], "fake", api_base=llm.api_base)
            assert not free.errors
        assert not pi.infer_personas([("Why?", "a", "b")], model).errors


def test_clearing_gives_the_disk_its_space_back(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.set_many([(b"%d" % n, "x" * 10_000) for n in range(200)], model="m")
    assert cache.info().bytes > 2_000_000
    assert cache.clear() == 200
    assert cache.info().bytes < 300_000


def test_pruning_deletes_the_oldest(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    for n in range(4):
        cache.set_many([(b"%d" % n, "x" * 1_000)], model="m")
    with closing(sqlite3.connect(tmp_path / "cache.db")) as connection, connection:
        connection.execute(
            "UPDATE Cache SET store_time = store_time - 864000 WHERE key = ?", (b"2",)
        )
    assert prune_cache(older_than=5, cache_dir=tmp_path) == 1
    assert set(cache.get_many([b"0", b"1", b"2", b"3"])) == {b"0", b"1", b"3"}
    assert prune_cache(max_size=2_100, cache_dir=tmp_path) == 1
    assert set(cache.get_many([b"0", b"1", b"3"])) == {b"1", b"3"}
    assert cache.info().models == {"m": 2}
    for bad in ({}, {"older_than": -1}, {"max_size": float("nan")}):
        with pytest.raises(InvalidArgumentError):
            prune_cache(cache_dir=tmp_path, **bad)


def test_a_cache_that_is_deleted_during_a_run_is_an_error(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "cache")
    cache.set_many(numbered(1).items(), model="m")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CacheError):
        cache.set_many(numbered(2).items(), model="m")


def test_a_cache_that_others_may_write_to_is_read_and_never_written(tmp_path: Path) -> None:
    own = ReplyCache(tmp_path)
    own.set_many(numbered(1).items(), model="m")
    (tmp_path / "cache.db").chmod(0o666)
    with pytest.warns(UserWarning, match="others may write"):
        cache = ReplyCache(tmp_path)
    cache.set_many([(b"new", "reply")], model="m")
    assert cache.info().replies == 1


@pytest.mark.parametrize("may", [6, 4])
def test_so_is_one_that_an_access_list_lets_others_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may: int
) -> None:
    """The group is this user's private one, and another user may read and write, or read only."""
    monkeypatch.setattr("personainfer.local.paths._is_own_group", lambda found: True)
    ReplyCache(tmp_path).set_many(numbered(1).items(), model="m")
    nobody = 2**32 - 1
    # As setfacl -m u:12345:rw does: the owner, a user, the group, the most that both may do, others.
    entries = [(1, 6, nobody), (2, may, 12345), (4, 6, nobody), (16, 6, nobody), (32, 0, nobody)]
    listed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(tmp_path / "cache.db", "system.posix_acl_access", struct.pack("<I", 2) + listed)
    except (OSError, AttributeError):
        pytest.skip("no access lists here")
    with pytest.warns(UserWarning, match="others may write") if may & 2 else nullcontext():
        assert ReplyCache(tmp_path).is_only_read == bool(may & 2)


def test_replies_that_cannot_be_read_are_asked_for_again(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    with FakeLLM() as server:

        def infer() -> pi.PersonaTable:
            return pi.infer_personas(
                rows, "fake", api_base=server.api_base, max_concurrency=4, cache_dir=tmp_path
            )

        first = infer()
        with closing(sqlite3.connect(tmp_path / "cache.db")) as connection, connection:
            connection.execute("UPDATE Cache SET value = '{}' WHERE rowid % 3 = 0")
        again = infer()
    assert list(again) == list(first)
    assert (again.usage.cached, again.usage.calls) == (27, 13)


@pytest.mark.parametrize("planted", ["link to nothing", "link to a file", "pipe"])
def test_a_planted_cache_is_not_followed(planted: str, tmp_path: Path) -> None:
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    cache.mkdir()
    if planted == "pipe":
        os.mkfifo(cache / "cache.db")
    else:
        (cache / "cache.db").symlink_to(victim)
    if planted == "link to a file":
        victim.write_bytes(b"")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CacheError, match="a link, a pipe or a folder"):
        ReplyCache(cache)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not victim.exists() or victim.read_bytes() == b""


def test_a_cache_of_somebody_else_is_read_and_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ReplyCache(tmp_path)
    own.set_many(numbered(2).items(), model="m")
    own.close()
    if os.getuid() == 0:
        os.chown(tmp_path / "cache.db", 12345, -1)
    monkeypatch.setattr("os.getuid", lambda: 23456)
    with pytest.warns(UserWarning, match="others may write"):
        theirs = ReplyCache(tmp_path)
    theirs.set_many([(b"new", "reply")], model="m")
    assert theirs.get_many([*numbered(2), b"new"]) == numbered(2)
    for change in (theirs.clear, partial(theirs.prune, older_than=0)):
        with pytest.raises(CacheError, match="nothing in it is changed"):
            change()
    assert theirs.info().replies == 2


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="it takes the administrator"
)
def test_the_administrator_uses_the_cache_of_somebody_else(tmp_path: Path) -> None:
    """SQLite gives the journals that it makes to the owner of the database."""
    with closing(ReplyCache(tmp_path)) as own:
        own.set_many(numbered(2).items(), model="m")
    for path in (tmp_path, *tmp_path.iterdir()):
        os.chown(path, 12345, -1)
    with closing(ReplyCache(tmp_path)) as cache:
        cache.set_many([(b"new", "reply")], model="m")
        assert (tmp_path / "cache.db-wal").stat().st_uid == 12345
        assert cache.get_many([*numbered(2), b"new"]) == numbered(2) | {b"new": "reply"}
        os.chown(tmp_path / "cache.db-wal", 23456, -1)
        with pytest.raises(CacheError, match="others may write to its cache"):
            ReplyCache(tmp_path)


def test_a_cache_in_a_folder_that_one_may_not_write_to_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague's, or one on a disk that is only read: SQLite can make no files beside it."""
    folder = tmp_path / "a 100% ?# folder"
    replies = filled(folder)
    for path in (folder / "cache.db", folder):
        path.chmod(0o500)
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # also for root
    with pytest.warns(UserWarning, match="you may not write to the cache"):
        cache = ReplyCache(folder)
    assert cache.get_many([*replies, b"new"]) == replies
    cache.set_many([(b"new", "reply")], model="m")
    assert cache.info().models == {"m": len(replies)}
    with pytest.raises(CacheError, match="nothing in it is changed"):
        cache.clear()
    assert os.listdir(folder) == ["cache.db"]
    folder.chmod(0o700)


def test_a_cache_that_is_only_read_ends_no_run_whatever_its_owner_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, later = numbered(2000), {b"%d" % n: "x" * 4000 for n in range(5000, 6000)}
    owner = ReplyCache(tmp_path)
    owner.set_many(before.items(), model="m")
    owner.close()
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # also for root
    with pytest.warns(UserWarning, match="you may not write to the cache"):
        reader = ReplyCache(tmp_path)
    assert reader.get_many(list(before)) == before
    owner.clear()
    owner.set_many(later.items(), model="m")
    owner.close()
    assert reader.get_many([*before, *later]) == later
    path = tmp_path / "cache.db"
    path.write_bytes(path.read_bytes()[:8192] + b"spoilt" * 10_000)
    with pytest.warns(UserWarning, match="No more replies are read from it"):
        assert reader.get_many(list(later)) == {}
    assert reader.get_many(list(later)) == {}  # without another warning


def test_a_cache_that_is_only_read_and_cannot_be_opened_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was copied with its journal: SQLite makes a file beside it, and may not."""
    replies = filled(tmp_path)
    (tmp_path / "cache.db-wal").write_bytes(b"a journal")
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # also for root

    def refuse(*arguments: object, **options: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr("personainfer.local.cache.check_database", refuse)
    with (
        pytest.warns(UserWarning, match="you may not write to the cache"),
        pytest.warns(UserWarning, match="unable to open .* No more replies are read from it"),
    ):
        cache = ReplyCache(tmp_path)
    assert cache.get_many(list(replies)) == {}
    cache.set_many([(b"new", "reply")], model="m")


def test_an_empty_file_that_others_may_write_to_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    path.touch()
    path.chmod(0o666)
    with pytest.raises(CacheError, match="is empty"), pytest.warns(UserWarning, match="others"):
        ReplyCache(tmp_path)
    assert path.read_bytes() == b""


def test_what_was_set_aside_goes_when_all_is_cleared_or_when_it_is_old(tmp_path: Path) -> None:
    """A damaged cache holds people's texts, too."""
    cache = ReplyCache(tmp_path)
    cache.set_many(numbered(2).items(), model="m")
    aside = [tmp_path / f"cache.db.broken-{n}" for n in (1, 2)]
    for path in aside:
        path.write_bytes(b"what people wrote")
        os.utime(path, (1e9, 1e9))
    os.utime(aside[1])
    cache.prune(older_than=3600)
    assert [path.exists() for path in aside] == [False, True]
    cache.clear("m")
    assert aside[1].exists()
    os.utime(aside[1], (1e9, 1e9))
    cache.clear()
    assert not aside[1].exists()


# A file that is spoilt in places, or that a stranger made


def changed(folder: Path, *statements: str) -> None:
    """Change the database past the library, as a stranger or a bad disk could."""
    with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def filled(folder: Path, count: int = 40) -> dict[bytes, str]:
    replies = {key: text * 20 for key, text in numbered(count).items()}
    with closing(ReplyCache(folder)) as cache:
        cache.set_many(replies.items(), model="m")
    return replies


SPOILT = {
    "text": "value = CAST(x'7bff7d' AS TEXT)",
    "text and model": "value = CAST(x'ff' AS TEXT), tag = CAST(x'ff41' AS TEXT)",
    "too long": "value = CAST(zeroblob(2000) AS TEXT)",
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_reply_costs_itself_alone(
    spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = numbered(40)
    with closing(ReplyCache(tmp_path)) as cache:
        cache.set_many(replies.items(), model="m")
    changed(tmp_path, f"UPDATE Cache SET {spoilt}, filename = CAST(x'ff' AS TEXT) WHERE rowid = 7")
    monkeypatch.setattr("personainfer.local.database_checks.LONGEST_REPLY", 1999)
    cache = ReplyCache(tmp_path)
    assert cache.get_many(list(replies)) == {
        key: text for key, text in replies.items() if key != b"key-6"
    }
    assert cache.info().replies == 40
    assert cache.clear() == 40
    assert os.listdir(tmp_path) == ["cache.db"] or not list(tmp_path.glob("*broken*"))


def spoil_page(folder: Path, words: bytes) -> None:
    """Overwrite the page of the cache where these words are."""
    path = folder / "cache.db"
    whole = bytearray(path.read_bytes())
    place = whole.index(words) // 4096 * 4096
    whole[place : place + 4096] = b"\xff" * 4096
    path.write_bytes(whole)


@pytest.mark.parametrize("key", ["'abc'", "5", "NULL", "100000000000000", "1.5"])
def test_a_spoilt_key_costs_a_damaged_cache_no_other_reply(key: str, tmp_path: Path) -> None:
    replies = filled(tmp_path, 400)
    changed(tmp_path, f"UPDATE Cache SET key = {key} WHERE rowid = 3")
    spoil_page(tmp_path, b"reply 250reply 250")
    with pytest.raises(CacheError, match="new cache"):
        ReplyCache(tmp_path).get_many(list(replies))
    found = ReplyCache(tmp_path).get_many(list(replies))
    assert len(found) > 370
    assert found.items() <= replies.items()


@pytest.mark.heavy
def test_damage_among_numbers_that_are_far_apart_is_passed_over(tmp_path: Path) -> None:
    """Else each of 2**60 numbers would be tried."""
    replies = filled(tmp_path, 400)
    changed(tmp_path, "UPDATE Cache SET rowid = rowid + (1 << 60) WHERE rowid > 260")
    spoil_page(tmp_path, b"reply 255reply 255")
    with pytest.raises(CacheError, match="new cache"):
        ReplyCache(tmp_path).get_many(list(replies))
    assert len(ReplyCache(tmp_path).get_many(list(replies))) > 340


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
SCHEMAS = {
    "view": (
        "DROP TABLE Cache",
        f"CREATE VIEW Cache AS {ENDLESS} SELECT x AS rowid, randomblob(9) AS key, 1 AS raw, 1 AS mode,"
        " 'm' AS tag, 't' AS value, 0 AS store_time FROM c",
    ),
    "computed column": (
        "DROP TABLE Cache",
        "CREATE TABLE Cache (rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, mode INTEGER, tag,"
        " store_time, value TEXT AS (hex(zeroblob(4000))))",
        "INSERT INTO Cache (key, raw, mode) VALUES (CAST('key-1' AS BLOB), 1, 1)",
    ),
    "trigger": (
        f"CREATE TRIGGER more AFTER INSERT ON Cache BEGIN DELETE FROM Settings WHERE key IN ({ENDLESS}"
        " SELECT x FROM c); END",
    ),
    "trigger with a name of SQLite's": (
        "CREATE TRIGGER more AFTER INSERT ON Cache BEGIN UPDATE Cache SET value = 'theirs'; END",
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET name = 'sqlite_more', sql = replace(sql, 'more', 'sqlite_more')"
        " WHERE name = 'more'",
    ),
}


@pytest.mark.parametrize("open_to_others", [True, False])
@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_what_a_stranger_added_to_a_cache_does_not_run(
    statements: Sequence[str], open_to_others: bool, tmp_path: Path
) -> None:
    replies = filled(tmp_path)
    changed(tmp_path, *statements)
    if open_to_others:
        (tmp_path / "cache.db").chmod(0o666)
        before = (tmp_path / "cache.db").read_bytes()
        with pytest.raises(CacheError, match="left as"), pytest.warns(UserWarning, match="others"):
            ReplyCache(tmp_path)
        assert (tmp_path / "cache.db").read_bytes() == before
        return
    with pytest.raises(CacheError, match=r"its schema is not that of a cache.*broken-1"):
        ReplyCache(tmp_path)
    again = ReplyCache(tmp_path)
    assert again.get_many(list(replies)) == ({} if statements[0].startswith("DROP") else replies)
    again.set_many([(b"new", "reply")], model="m")
    again.close()


def test_a_cache_of_which_sqlite_keeps_statistics_is_used(tmp_path: Path) -> None:
    replies = filled(tmp_path)
    changed(tmp_path, "ANALYZE")
    assert ReplyCache(tmp_path).get_many(list(replies)) == replies
    assert not list(tmp_path.glob("*broken*"))


@pytest.mark.parametrize(
    "settings",
    [
        "INSERT INTO Settings VALUES ('close', 5), ('disk_more', 1), ('sqlite_cache_size', ')')"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        "UPDATE Settings SET key = CAST(x'ff' AS TEXT) WHERE key = 'size_limit'",
        "UPDATE Settings SET value = CAST(x'ff' AS TEXT)",
        "DELETE FROM Settings",
    ],
)
def test_spoilt_settings_of_the_database_are_not_believed(settings: str, tmp_path: Path) -> None:
    replies = filled(tmp_path)
    changed(tmp_path, settings)
    cache = ReplyCache(tmp_path)
    cache.set_many([(b"new", "reply")], model="m")
    assert cache.get_many(list(replies)) == replies
    cache.close()


def test_a_planted_journal_is_not_followed(tmp_path: Path) -> None:
    replies = filled(tmp_path / "cache")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "cache" / "cache.db-wal").symlink_to(tmp_path / "victim")
    with pytest.raises(CacheError, match=r"cache\.db-wal is a link"):
        ReplyCache(tmp_path / "cache").get_many(list(replies))
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(
    ("call", "error"),
    [  # of the wrong types on purpose
        (partial(prune_cache, older_than=10**400), InvalidArgumentError),
        (
            partial(prune_cache, max_size=10**5000),
            InvalidArgumentError,
        ),  # which Python cannot write
        (partial(prune_cache, older_than="3"), InvalidArgumentError),  # type: ignore[arg-type]
        (partial(prune_cache, max_size=float("inf")), InvalidArgumentError),  # type: ignore[arg-type]
        (partial(clear_cache, model="\ud800"), InvalidArgumentError),
        (partial(clear_cache, model=5), InvalidArgumentError),  # type: ignore[arg-type]
        (partial(cache_info, 5), InvalidArgumentError),  # type: ignore[arg-type]
        (partial(cache_info, "a\0b"), CacheError),
        (partial(cache_info, "~no-such-user/x"), CacheError),
        (partial(cache_info, "x" * 300), CacheError),
    ],
)
def test_arguments_that_cannot_be_are_errors_of_ours(
    call: Callable[[], object],
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PERSONAINFER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        call()


def test_a_bound_that_no_cache_reaches_deletes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    assert prune_cache(max_size=10**30, older_than=10**90, cache_dir=tmp_path) == 0


# Damage and deletion while others use the cache


def damaged(folder: Path) -> dict[bytes, str]:
    """A cache of 600 replies, one of whose pages is spoilt."""
    replies = filled(folder, 600)
    path = folder / "cache.db"
    whole = bytearray(path.read_bytes())
    place = whole.index(b"reply 250reply 250") // 4096 * 4096
    whole[place : place + 4096] = b"\xff" * 4096
    path.write_bytes(whole)
    return replies


def test_an_interrupted_salvage_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = damaged(tmp_path)

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("personainfer.local.cache.put_in_place", killed)
        with pytest.raises(Killed):
            ReplyCache(tmp_path).get_many(list(replies))
    with pytest.raises(CacheError, match="in a new cache"):
        ReplyCache(tmp_path).get_many(list(replies))
    assert len(ReplyCache(tmp_path).get_many(list(replies))) > 570


def test_of_two_who_meet_the_damage_one_makes_the_new_cache(tmp_path: Path) -> None:
    replies = damaged(tmp_path)
    first, second = ReplyCache(tmp_path), ReplyCache(tmp_path)
    for one in (first, second):
        assert one.get_many([b"no such key"]) == {}
    with pytest.raises(CacheError, match="in a new cache"):
        first.get_many(list(replies))
    third = ReplyCache(tmp_path)
    third.set_many([(b"paid", "reply")], model="m")
    with pytest.raises(CacheError, match="Run the call again"):
        second.get_many(list(replies))
    third.set_many([(b"paid too", "reply")], model="m")
    assert len(ReplyCache(tmp_path).get_many([*replies, b"paid", b"paid too"])) > 572
    assert len(list(tmp_path.glob("cache.db.broken-?"))) == 1


def test_a_journal_that_others_may_write_to_is_not_read(tmp_path: Path) -> None:
    """Else its pages would be taken for those of the database."""
    replies = filled(tmp_path)
    cache = ReplyCache(tmp_path)
    for ending in ("-wal", "-shm"):
        journal = tmp_path / f"cache.db{ending}"
        journal.touch()
        journal.chmod(0o666)
        with pytest.raises(CacheError, match="others may write to its cache"):
            cache.get_many(list(replies))
        with pytest.raises(CacheError, match="others may write to its cache"):
            cache.set_many([(b"new", "reply")], model="m")
        with pytest.raises(CacheError, match="others may write to its cache"):
            ReplyCache(tmp_path)
        journal.unlink()
    assert cache.get_many(list(replies)) == replies


@pytest.mark.parametrize("left", [b"", bytes(512)], ids=["empty", "zeros"])
def test_a_journal_on_which_sqlite_does_not_act_is_deleted(left: bytes, tmp_path: Path) -> None:
    """SQLite leaves such ones in its modes TRUNCATE and PERSIST."""
    replies = filled(tmp_path)
    journal = tmp_path / "cache.db-journal"
    journal.write_bytes(left)
    assert ReplyCache(tmp_path).get_many(list(replies)) == replies
    assert not journal.exists()


def test_a_journal_beside_an_empty_database_stands_in_no_way(tmp_path: Path) -> None:
    """An older version left one where it ended while it made the cache."""
    victim = tmp_path / "thesis.txt"
    victim.write_text("the only copy")
    (tmp_path / "cache").mkdir(mode=0o700)
    for name, content in (("cache.db", b""), ("cache.db-journal", rollback_journal(victim))):
        (tmp_path / "cache" / name).write_bytes(content)
        (tmp_path / "cache" / name).chmod(0o600)
    cache = ReplyCache(tmp_path / "cache")
    cache.set_many([(b"a", "reply")], model="m")
    assert cache.get_many([b"a"]) == {b"a": "reply"}
    assert victim.read_text() == "the only copy"
    assert not (tmp_path / "cache" / "cache.db-journal").exists()


def test_where_no_file_can_be_shared_in_memory_a_cache_leaves_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of folders of a network, for one, SQLite says that they take no write-ahead mode."""
    connect = sqlite3.connect

    def connected(address: str, **options: Any) -> sqlite3.Connection:
        if not options.pop("uri", False):
            address = f"{Path(address).as_uri()}?"
        made: sqlite3.Connection = connect(f"{address}&vfs=unix-none", uri=True, **options)
        return made

    monkeypatch.setattr(sqlite3, "connect", connected)
    cache = ReplyCache(tmp_path)
    with cache._store.transact():
        cache.set_many([(b"a", "reply")], model="m")
        assert [path.name for path in tmp_path.iterdir()] == ["cache.db"]
    assert cache.get_many([b"a"]) == {b"a": "reply"}
    cache.close()


def test_a_cache_on_a_windows_share_is_opened_by_an_address_without_a_host() -> None:
    share = PureWindowsPath(r"\\server\share\a b\cache.db")
    assert database_checks.uri_of(share) == "file:////server/share/a%20b/cache.db"
    assert database_checks.uri_of(PureWindowsPath(r"C:\cache.db")) == "file:///C:/cache.db"


def rollback_journal(victim: Path) -> bytes:
    """A journal that names another file, in the form in which SQLite takes it for its own and deletes it."""
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(victim).encode()
    head = (magic + struct.pack(">5I", 0, 0, 1, 512, 4096)).ljust(512, b"\0")
    named = struct.pack(">I", 2**30 // 4096 + 1) + name
    return head + named + struct.pack(">II", len(name), sum(name)) + magic


@pytest.mark.filterwarnings("ignore:.*the cache")
@pytest.mark.parametrize("folder_mode", [0o700, 0o777])
def test_a_journal_that_a_stranger_left_deletes_no_file(tmp_path: Path, folder_mode: int) -> None:
    folder, victim = tmp_path / "cache", tmp_path / "thesis.txt"
    replies = filled(folder)
    with closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    folder.chmod(folder_mode)
    victim.write_text("the only copy")
    journal = folder / "cache.db-journal"
    journal.write_bytes(rollback_journal(victim))
    with pytest.raises(CacheError, match=r"cache\.db-journal may be a stranger's.* delete it"):
        cache_info(folder)
    assert victim.exists()
    journal.unlink()
    cache = ReplyCache(folder)
    assert cache.get_many(list(replies)) == replies
    journal.write_bytes(rollback_journal(victim))  # after it was looked for
    with suppress(CacheError):
        cache.get_many(list(replies))
    assert victim.exists()


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal", ".lock"])
def test_a_second_name_of_another_file_is_no_journal(tmp_path: Path, ending: str) -> None:
    filled(tmp_path / "cache")
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "cache" / f"cache.db{ending}").hardlink_to(mine)
    with pytest.raises(CacheError, match=rf"cache\.db{ending} is a second name of another file"):
        ReplyCache(tmp_path / "cache")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("is_own_group", [True, False])
@pytest.mark.parametrize("place", ["", "cache.db"])
def test_what_a_group_may_write_to_is_open_to_others(
    place: str, is_own_group: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = filled(tmp_path)
    (tmp_path / place).chmod(0o775)
    if os.getuid() == 0:  # who may write everywhere anyway
        for path in (tmp_path, *tmp_path.iterdir()):
            os.chown(path, 23456, -1)
        monkeypatch.setattr("os.getuid", lambda: 23456)
    monkeypatch.setattr("personainfer.local.paths._is_own_group", lambda found: is_own_group)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cache = ReplyCache(tmp_path)
    assert cache.get_many(list(replies)) == replies
    assert ["others may write" in str(one.message) for one in told] == [True] * (not is_own_group)


@pytest.mark.parametrize("delete", [clear_cache, partial(clear_cache, model="m")])
def test_deleted_texts_leave_the_file_or_a_warning_says_that_they_stay(
    delete: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    monkeypatch.setattr("personainfer.local.cache.BUSY_TIMEOUT", 0.02)
    monkeypatch.setattr("personainfer.local.database_checks.BUSY_STEP", 0.01)
    with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM Cache").fetchall()
        with pytest.warns(UserWarning, match="still holds what was deleted"):
            assert delete(cache_dir=tmp_path) == 40
    assert delete(cache_dir=tmp_path) == 0
    assert not [path.name for path in tmp_path.iterdir() if b"reply 7" in path.read_bytes()]


def test_clearing_deletes_what_was_set_aside_though_the_clock_was_set_back(tmp_path: Path) -> None:
    filled(tmp_path)
    aside = tmp_path / "cache.db.broken-1"
    aside.write_bytes(b"what people wrote")
    os.utime(aside, (4e9, 4e9))
    clear_cache(cache_dir=tmp_path)
    assert not aside.exists()
