"""Benchmarks of personas run in pieces: a stopped run goes on where it was, and nothing is asked twice."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.testing import FakeLLM

from .builders import pairs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("persona_runs")


class Lengths:
    """A scorer that prefers short personas, and counts what it scored."""

    scored = 0

    def explains(self, preferences: Any, personas: Any) -> list[float]:
        self.scored += len(preferences)
        return [1.0 - len(str(who)) / 1000 for who in personas]


def test_a_run_goes_on_where_it_was_stopped(runs: Any, tmp_path: Path) -> None:
    given = [pi.Preference(**pair) for pair in pairs(runs.PIECE + 2)]
    scorer = Lengths()
    with FakeLLM() as llm:

        def run() -> Any:
            write = runs.inferring("fake", 1, "none", api_base=llm.api_base)
            return runs.Run("fake", "some", given, tmp_path, write=write)

        first = run()
        assert first.infer_next()
        assert first.score_next("lengths", {"lengths": scorer})
        assert (len(first.personas), scorer.scored) == (runs.PIECE, 2 * runs.PIECE)
        again = run()
        assert again.infer_next()
        assert not again.infer_next()
        assert again.score_next("lengths", {"lengths": scorer})
        assert not again.score_next("lengths", {"lengths": scorer})
        assert (
            llm.calls == len(given) + 2
        )  # one that starts a server, before the first piece of each
    assert len(again.personas) == len(given)
    assert again.scores("lengths").shape == (len(given), 2)
    assert scorer.scored == 2 * len(given)
    assert again.total("seconds") > 0
    assert {name: values.shape for name, values in again.faults().items()} == {
        name: (len(given), 2) for name in again.faults()
    }


def test_given_personas_are_measured_alike(runs: Any, tmp_path: Path) -> None:
    given = [pi.Preference(**pair) for pair in pairs(2)]
    personas = [(pi.Persona(trait="calm", preference="tea"), None)] * 2
    run = runs.Run("by hand", "some", given, tmp_path, given=personas)
    assert not run.infer_next()
    assert run.score_next("lengths", {"lengths": Lengths()})
    assert (run.scores("lengths") > 0).tolist() == [[True, False]] * 2
    assert run.faults()["without a persona"].mean() == 0.5
