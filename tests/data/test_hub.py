"""Data sets by their name on the hub, tried on folders, which `load_dataset` reads alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from personainfer.data import read_preferences
from personainfer.exceptions import DataError, InvalidArgumentError, MissingExtraError
from personainfer.records import Preference

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


@pytest.mark.parametrize("name", ["hf:", "hf:a/b:", "hf:a/b:c:d:e", "hf::train"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="hf:owner/name:split"):
        read_preferences(name)


def test_a_data_set_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        read_preferences(f"hf:{tmp_path / 'nothing'}")


def test_without_datasets_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="datasets"):
        read_preferences("hf:owner/name")
