"""Files are written whole or not at all, for their owner alone where they hold people's texts."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import personainfer as pi
from personainfer.batch.job_folder import new_folder
from personainfer.evaluation.human import write_rating_sheet
from personainfer.exceptions import InvalidArgumentError
from personainfer.local import atomic_files
from personainfer.local.atomic_files import (
    atomic_folder,
    atomic_writer,
    unfinished_folder,
    write_file,
)
from personainfer.local.paths import ACCESS_LIST, private_folder
from personainfer.tailoring.dataset_card import MARK
from personainfer.users.records import UserPersonas, UserRow

ROWS = [{"prompt": "p", "chosen": "c", "rejected": "r"}]
TABLE = pi.PersonaTable.from_data(
    [{**ROWS[0], "chosen_persona": "The user is calm and prefers order.", "rejected_persona": None}]
)


def save(path: Path) -> None:
    TABLE.save(path)


def report(path: Path) -> None:
    pi.write_report(TABLE, path)


def export(path: Path) -> None:
    pi.export_personas(TABLE, path, format="trl-sft")


def users(path: Path) -> None:
    UserPersonas((UserRow(user="u", persona=None),)).save(path)


WRITERS = {"table.parquet": save, "page.html": report, "rows.jsonl": export, "users.jsonl": users}
writers = pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """The permissions that most systems give to new files."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_writer(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_full_disk_costs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fill() -> None:
        with atomic_writer(path) as file, open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), file.fileno())
            file.write(b"new")

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@writers
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_left_alone(
    tmp_path: Path, name: str, write: Callable[[Path], None], make: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    make(path)
    kind = stat.S_IFMT(path.lstat().st_mode)
    with pytest.raises(InvalidArgumentError):
        write(path)
    assert stat.S_IFMT(path.lstat().st_mode) == kind
    assert os.listdir(tmp_path) == [name]


@writers
def test_a_link_planted_under_a_name_that_can_be_foreseen_is_not_followed(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    for planted in (f".{name}.{os.getpid()}.unfinished", f"{name}.tmp", f".{name}.unfinished"):
        (folder / planted).symlink_to(victim)
    write(folder / name)
    assert victim.read_text() == "precious"


@writers
def test_many_threads_may_write_one_file_at_once(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    failed: list[Exception] = []

    def attempt() -> None:
        try:
            write(tmp_path / name)
        except Exception as error:
            failed.append(error)

    threads = [Thread(target=attempt) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert os.listdir(tmp_path) == [name]


def test_what_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, removers = tempfile.mkdtemp, list[Thread]()

    def taken_at_once(*arguments: Any) -> str:
        name: str = make(*arguments)
        if not removers:  # the first: another writer opens and locks it, and then removes it
            number = os.open(name, os.O_RDONLY)
            fcntl.flock(number, fcntl.LOCK_EX)

            def remove() -> None:
                time.sleep(0.05)
                os.rmdir(name)
                os.close(number)

            removers.append(Thread(target=remove))
            removers[0].start()
        return name

    monkeypatch.setattr(tempfile, "mkdtemp", taken_at_once)
    with unfinished_folder(tmp_path / "table") as folder:
        removers[0].join()
        (folder / "part").write_text("whole")


@pytest.mark.usefixtures("usual_umask")
def test_a_file_is_private_or_has_the_permissions_of_the_one_that_it_replaces(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    write_file(path, "x", private=True)
    assert mode(path) == 0o600
    path.chmod(0o640)
    write_file(path, "y")
    assert mode(path) == 0o640
    write_file(tmp_path / "new", "z")
    assert mode(tmp_path / "new") == 0o644


@writers
@pytest.mark.usefixtures("usual_umask")
def test_a_file_that_its_owner_closed_to_others_stays_closed(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    write(path)
    assert mode(path) == 0o644
    path.chmod(0o600)
    write(path)
    assert mode(path) == 0o600


def write_sheet(path: Path) -> None:
    write_rating_sheet(TABLE, path)


def write_export(path: Path) -> None:
    pi.export_personas(TABLE, path)


AT_HOME = {**WRITERS, "sheet": write_sheet, "export": write_export}


@pytest.mark.parametrize(("name", "write"), AT_HOME.items(), ids=AT_HOME)
def test_a_file_at_home_is_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None]
) -> None:
    """And not in a folder "~" where you are, of which "rm -r ~" would not be the end."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    write(Path("~", name))
    assert (home / name).exists()
    assert not list(here.iterdir())


def test_a_file_at_home_is_read_and_is_not_replaced_by_what_is_read_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "table.parquet")
    assert len(pi.PersonaTable.load("~/table.parquet")) == 1
    assert len(pi.PersonaTable.from_data("~/table.parquet")) == 1
    with pytest.raises(InvalidArgumentError, match="is the input"):
        pi.infer_personas(
            "~/table.parquet",
            "m",
            api_base="http://127.0.0.1:9/v1",
            output=tmp_path / "table.parquet",
        )


def with_access_list(path: Path) -> bytes:
    """Let one user read a path that is closed to its group and to others, as setfacl -m u:12345:rx does."""
    entries = ((1, 7, 2**32 - 1), (2, 5, 12345), (4, 0, 2**32 - 1), (16, 5, 2**32 - 1))
    packed = [struct.pack("<HHI", *entry) for entry in (*entries, (32, 0, 2**32 - 1))]
    listed = struct.pack("<I", 2) + b"".join(packed)
    try:
        os.setxattr(path, ACCESS_LIST, listed)
    except (OSError, AttributeError):
        pytest.skip("this system, or this disk, has no access lists")
    return listed


@writers
def test_a_file_that_one_user_may_read_is_opened_to_no_group(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    write(path)
    listed = with_access_list(
        path
    )  # its mode is now 0o750, and its group may do nothing all the same
    write(path)
    assert os.getxattr(path, ACCESS_LIST) == listed


def test_an_empty_folder_that_one_user_may_enter_is_opened_to_no_group(tmp_path: Path) -> None:
    folder = tmp_path / "sheet"
    folder.mkdir()
    listed = with_access_list(folder)
    write_rating_sheet(TABLE, folder)
    assert os.getxattr(folder, ACCESS_LIST) == listed


def test_a_file_gets_no_reader_of_its_folder_whom_its_owner_took_away(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    save(path)
    listed = with_access_list(tmp_path)
    os.setxattr(tmp_path, "system.posix_acl_default", listed)  # new files let that user read
    path.chmod(0o640)
    save(path)
    assert ACCESS_LIST not in os.listxattr(path)
    assert mode(path) == 0o640


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file.txt"
    left = tmp_path / ".file.txt.abc.unfinished"
    left.write_text("half")
    folder = tmp_path / ".file.txt.def.unfinished"
    with unfinished_folder(path) as marked:
        (marked / "part").mkdir()
        folder.mkdir()
        folder.chmod(marked.stat().st_mode)
    (folder / "part").mkdir()
    (tmp_path / ".file.txt.ghi.unfinished").mkdir(0o700)  # of a process that was killed at once
    other = tmp_path / ".file.txt.kept"
    other.write_text("not ours")
    with atomic_writer(path) as mine:
        mine.write(b"mine")
        write_file(path, "theirs")
        assert len(list(tmp_path.glob(".file.txt.*.unfinished"))) == 1
    assert path.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [".file.txt.kept", "file.txt"]


@pytest.mark.parametrize("permissions", [0o755, 0o700, 0o2775])
def test_a_folder_that_somebody_gave_the_name_of_an_unfinished_one_is_kept(
    permissions: int, tmp_path: Path
) -> None:
    """A colleague who may write to the parent may rename it, but not delete what it holds."""
    folder = tmp_path / ".file.txt.abc.unfinished"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    folder.chmod(permissions)
    write_file(tmp_path / "file.txt", "x")
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_folder_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a" / "b", private=True) as unfinished:
        (unfinished / "one").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert mode(tmp_path / "a" / "b") == 0o700
    assert os.listdir(tmp_path / "a") == ["b"]
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "a" / "b") as again:
        (again / "one").write_text("2")
    assert (tmp_path / "a" / "b" / "one").read_text() == "1"
    assert os.listdir(tmp_path / "a") == ["b"]


@pytest.mark.usefixtures("usual_umask")
def test_a_private_folder_and_the_parents_that_it_makes_are_its_owners(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    private_folder(tmp_path / "mine" / "a" / "one")
    with atomic_folder(tmp_path / "mine" / "b" / "two", private=True):
        pass
    assert {mode(path) for path in (tmp_path / "mine").rglob("*")} == {0o700}
    assert mode(private_folder(tmp_path / "mine")) == 0o755


@pytest.mark.parametrize("planted", ["link", "link to nothing", "somebody's"])
def test_what_is_in_the_place_of_a_folder_that_others_can_foresee_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    folder, mine = tmp_path / "hashes", tmp_path / "mine"
    private_folder(mine, foreseen=True)
    if planted == "somebody's":
        folder.mkdir()
        user = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: user + 1)
    else:
        folder.symlink_to(mine if planted == "link" else tmp_path / "nothing")
    with pytest.raises(OSError, match="a link, or a folder of somebody else"):
        private_folder(folder, foreseen=True)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.usefixtures("usual_umask")
def test_in_a_folder_that_was_there_private_files_are_their_owners(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with atomic_folder(tmp_path / "mine", private=True) as unfinished:
        (unfinished / "below").mkdir()
        (unfinished / "below" / "text").touch()
    assert mode(tmp_path / "mine") == 0o755
    assert mode(tmp_path / "mine" / "below") == 0o700
    assert mode(tmp_path / "mine" / "below" / "text") == 0o600


@pytest.mark.parametrize("planted", ["folder", "link"])
def test_a_folder_of_somebody_else_does_not_open_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    folder, wide = tmp_path / "b", tmp_path / "wide"
    for made in (folder, wide):
        made.mkdir()
        made.chmod(0o777)
    if planted == "link":
        folder.rmdir()
        folder.symlink_to(wide)
    user = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: user + 1)
    is_link = planted == "link"
    refused = pytest.raises(OSError, match="a link of somebody") if is_link else nullcontext()
    with refused, atomic_folder(folder, private=True) as unfinished:
        (unfinished / "text").touch()
    assert is_link or mode(folder) == 0o700
    assert os.listdir(wide) == []


def test_a_report_replaces_a_report_and_nothing_else_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<p>My thesis</p>")
    with pytest.raises(InvalidArgumentError, match="overwrite=True"):
        pi.write_report(TABLE, path)
    assert path.read_text() == "<p>My thesis</p>"
    pi.write_report(TABLE, path, overwrite=True)
    pi.write_report(TABLE, path, title="Again")
    assert "Again" in path.read_text()


@pytest.mark.parametrize("planted", ["link", "file"])
def test_what_somebody_else_put_there_does_not_open_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """Whoever may write to the folder could else choose who reads what is written there."""
    path, wide = tmp_path / "file.txt", tmp_path / "wide"
    for made in (path, wide):
        made.write_text("theirs")
        made.chmod(0o666)
    if planted == "link":
        path.unlink()
        path.symlink_to(wide)
    owner = path.lstat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    before = os.umask(0o077)
    try:
        write_file(path, "mine")
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert wide.read_text() == "theirs"


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="it takes the administrator"
)
def test_a_link_of_somebody_else_to_an_open_file_of_mine_does_not_open_the_new_file(
    tmp_path: Path,
) -> None:
    path, wide = tmp_path / "file.txt", tmp_path / "wide"
    wide.write_text("for all")
    wide.chmod(0o666)
    path.symlink_to(wide)
    os.lchown(path, 12345, -1)
    before = os.umask(0o077)
    try:
        write_file(path, "mine")
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert wide.read_text() == "for all"


@writers
def test_a_link_of_ones_own_stays_and_its_file_stays_closed(
    tmp_path: Path, usual_umask: None, name: str, write: Callable[[Path], None]
) -> None:
    (tmp_path / "large disk").mkdir()
    real, link = tmp_path / "large disk" / name, tmp_path / name
    write(real)
    real.chmod(0o600)
    before = real.stat().st_ino
    link.symlink_to(real)
    write(link)
    assert link.is_symlink()
    assert real.stat().st_ino != before
    assert mode(real) == 0o600


def test_a_link_in_a_folder_that_others_may_write_to_is_replaced(tmp_path: Path) -> None:
    """They could have moved one of the user's own there."""
    tmp_path.chmod(0o777)
    (tmp_path / "real.txt").write_text("mine")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_file(tmp_path / "link.txt", "new")
    assert (tmp_path / "real.txt").read_text() == "mine"
    assert not (tmp_path / "link.txt").is_symlink()


def test_an_empty_folder_that_its_owner_closed_stays_closed(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "closed")
    write_rating_sheet(TABLE, tmp_path / "link")
    assert mode(tmp_path / "closed") == 0o700
    assert (tmp_path / "closed" / "key.json").exists()


def test_the_folder_that_the_process_is_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match="the folder that you are in"):
        write_rating_sheet(TABLE, ".")


def test_a_folder_of_the_process_that_is_gone_hinders_no_write_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    write_rating_sheet(TABLE, tmp_path / "sheet")
    assert (tmp_path / "sheet" / "key.json").exists()


def test_a_file_of_a_group_that_cannot_be_kept_is_not_opened_to_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    os.chmod(path, 0o640)
    monkeypatch.setattr(atomic_files, "_has_group", lambda *_: False)
    write_file(path, "new")
    assert mode(path) == 0o600


def test_a_file_that_nobody_may_write_to_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    os.chmod(path, 0o400)
    flushed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic_files, "_flush", lambda place: flushed.append(mode(place)))
        write_file(path, "new")
    assert flushed == [0o600]  # it could not be opened to be flushed with the old permissions
    assert (path.read_text(), mode(path)) == ("new", 0o400)


def test_a_page_that_quotes_a_report_is_not_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>Made by personainfer, said the page.</p>")
    with pytest.raises(InvalidArgumentError, match="overwrite=True"):
        pi.write_report(TABLE, page)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text(f"An export has the line `{MARK}`.")
    with pytest.raises(InvalidArgumentError, match="not an export's"):
        pi.export_personas(TABLE, tmp_path / "folder")


def sheet(path: Path) -> None:
    write_rating_sheet(TABLE, path)


def batch(path: Path) -> None:
    with new_folder(path):
        pass


def submit(path: Path) -> None:
    pi.submit_batch([("Why?", "So.", "No.")], "fake", path, api_base="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("name", "write"),
    [*WRITERS.items(), ("export", export), ("sheet", sheet), ("batch", batch)],
)
def test_a_place_that_cannot_be_written_to_is_an_error_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None]
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").touch()
    (tmp_path / "folder" / name).mkdir(parents=True)
    (tmp_path / "folder" / name / "notes").touch()
    for place in (tmp_path / "file", tmp_path / "folder"):
        if "." in name or place.name == "file":
            with pytest.raises(InvalidArgumentError):
                write(place / name)
    for make in ("mkstemp", "mkdtemp"):  # as in a folder of somebody else
        monkeypatch.setattr(tempfile, make, refused)
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        write(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "write"),
    [*WRITERS.items(), ("export", export), ("sheet", sheet), ("batch", submit)],
)
def test_a_place_below_a_folder_that_one_may_not_enter_is_an_error_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path], None]
) -> None:
    look = Path.stat

    def refused(path: Path, **options: Any) -> os.stat_result:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return look(path, **options)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "stat", refused)  # the administrator may enter all
    with pytest.raises(InvalidArgumentError, match="Permission denied"):
        write(tmp_path / "closed" / name)
