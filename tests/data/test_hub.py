"""Data sets by their name on the hub, tried on folders, which `load_dataset` reads alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.exceptions import DataError, InvalidArgumentError, MissingExtraError
from personainfer.records import Preference
from personainfer.testing import FakeLLM

from ..builders import pairs

PAIR = Preference(prompt="q", chosen="a", rejected="b")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of two splits with HelpSteer3's columns."""
    row = {"context": [{"role": "user", "content": "q"}], "response1": "b", "response2": "a"}
    for split, strengths in {"train": (1, 2, -1), "validation": (3,)}.items():
        lines = [json.dumps({**row, "overall_preference": n}) for n in strengths]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.mark.heavy
def test_a_split_is_streamed(folder: Path) -> None:
    for name, count in ((f"hf:{folder}:validation", 1), (f"hf:{folder}", 3)):
        source = read_preferences(name)
        assert source.shape == "HelpSteer3"
        assert [row.preference for row in source] == [PAIR, PAIR, PAIR.swapped][:count]


@pytest.mark.heavy
def test_a_split_that_there_is_not(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no split 'test': 'train', 'validation'"):
        read_preferences(f"hf:{folder}:test")
    (folder / "train.jsonl").rename(folder / "test.jsonl")
    with pytest.raises(InvalidArgumentError, match="several splits"):
        read_preferences(f"hf:{folder}")


@pytest.mark.heavy
def test_a_data_set_with_a_damaged_file_says_after_which_row(folder: Path) -> None:
    (folder / "train.jsonl").rename(folder / "train-0.jsonl")
    (folder / "train-1.jsonl").write_text("no JSON", encoding="utf-8")
    problem = f"'hf:{folder}:train' breaks off after 3 rows: .+ try again"
    with pytest.raises(DataError, match=problem):
        read_preferences(f"hf:{folder}:train")


def breaking_off(problem: Exception) -> Any:
    """A stream of 300 rows, then this error."""
    datasets = pytest.importorskip("datasets")

    def rows() -> Iterator[dict[str, str]]:
        yield from pairs(300)
        raise problem

    return datasets.IterableDataset.from_generator(rows)


@pytest.mark.parametrize(
    "problem", [ConnectionError("the hub went away"), TimeoutError()], ids=repr
)
def test_a_stream_that_breaks_off_says_after_which_row(problem: Exception) -> None:
    source = read_preferences(breaking_off(problem))
    said = f"breaks off after 300 rows: {str(problem) or 'TimeoutError'}. Check the connection"
    for _ in range(2):
        with pytest.raises(DataError, match=said) as found:
            list(source)
        assert found.value.__cause__ is problem


@pytest.mark.heavy
def test_a_stream_that_breaks_off_loses_no_reply(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="breaks off after 300 rows"):
        pi.infer_personas(breaking_off(ConnectionError()), **endpoint)
    calls = len(llm.requests)
    assert calls
    again = pi.infer_personas(pairs(300), **endpoint)
    assert again.usage.cached == calls
    assert len(llm.requests) == 300


@pytest.mark.parametrize("name", ["hf:", "hf:a/b:", "hf:a/b:c:d:e", "hf::train"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="hf:owner/name:split"):
        read_preferences(name)


def test_a_folder_takes_the_place_of_no_data_set_of_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load_dataset` would read the folder: whoever made it would decide what is read as owner/name."""
    (tmp_path / "here" / "owner").mkdir(parents=True)
    (tmp_path / "here" / "owner" / "name").symlink_to(folder)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("hf:owner/name", "hf:owner/name:train"):
        with pytest.raises(
            InvalidArgumentError, match=r"would be read .* write \"hf:\./owner/name\""
        ):
            read_preferences(name)


def test_a_data_set_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        read_preferences(f"hf:{tmp_path / 'nothing'}")


def test_without_datasets_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="datasets"):
        read_preferences("hf:owner/name")
