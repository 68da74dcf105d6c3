"""The study of real people's choices, on a small invented file."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("people_study")
    for name in ("people_study", "stored_scores"):
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two camps, each of which agrees with its own statements."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(40):
        camp = user % 2
        for one, other in random.integers(30, size=(10, 2)):
            sides = (f"Statement {one} of camp {camp}.", f"Statement {other} of camp {1 - camp}.")
            rows.append(
                {"user": f"u{user}", "prompt": "?", "chosen": sides[0], "rejected": sides[1]}
            )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "polis_opinions.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_users_are_split_in_halves_and_choices_in_history_and_held_out(
    study: Any, data: Path
) -> None:
    dev, test = (study.read(data, "polis", half, 0) for half in ("dev", "test"))
    assert not set(dev.users) & set(test.users)
    assert len(dev.users) + len(test.users) == 40
    assert len(dev.held_out) + len(test.held_out) == 0.3 * 400
    assert dev.history == test.history
    assert len(dev.history) == 0.7 * 400
    held_out = {choice.id for choice in (*dev.held_out, *test.held_out)}
    assert not held_out & {choice.id for choice in dev.history}


@pytest.mark.heavy
def test_it_prints_the_power_and_a_line_for_each_model(
    study: Any, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(study.MODELS, "latent")  # which needs torch
    arguments = [str(data), "--only", "polis", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", ["people_study.py", *arguments])
    study.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| polis | ")
    accuracy = {
        name.strip(): float(cells.split()[0])
        for name, cells in (line.strip("| ").split(" | ")[:2] for line in lines if "[" in line)
    }
    assert accuracy["similar users"] > 0.9 > accuracy["majority"]
    assert accuracy["low-rank, 5"] > 0.9
