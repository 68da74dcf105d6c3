"""The study of users with a hidden persona, from end to end on small models that are no language models."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.evaluation.statistics import Estimate
from personainfer.testing import FakeLLM

from .scoring_server import ScoringServer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("users_study")


def data(file: Path) -> Path:
    rows = [
        {
            "prompt": f"What of number {n}?",
            "response_for_chosen_persona": f"Short answer {n} to the point.",
            "response_for_rejected_persona": f"Every detail of {n} is covered at great length here.",
            "complete": True,
        }
        for n in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.heavy
def test_the_study_runs_and_goes_on_where_it_was_stopped(
    study: Any,
    llm: FakeLLM,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--personas", "2", "--users-per-persona", "2", "--pairs", "8", "--held-out", "3"]
    options += ["--observed", "1", "2", "4", "--folder", str(place), "--temperature", "0"]
    options += ["--crowd", "5"]
    options += ["--model", "fake", "--api-base", llm.api_base]
    monkeypatch.setattr("sys.argv", ["users_study.py", str(data(place / "data.jsonl")), *options])
    asked = study.arguments()
    with ScoringServer("llama.cpp") as server:

        def scores(name: str, **changes: Any) -> Any:
            model = pi.Likelihood("tiny", api_base=server.api_base, **changes)
            return study.Scores(place / f"{name}.jsonl", model)

        chooser, evaluator = scores("chooser", persona_in="plain", baseline=()), scores("evaluator")
        found = study.study(asked, chooser, evaluator)
        assert chooser.scored == 2 * 8 * 2
        again = scores("chooser", persona_in="plain", baseline=()), scores("evaluator")
        assert study.study(asked, *again)["accuracy"] == found["accuracy"]
        assert (again[0].scored, again[1].scored) == (0, 0)  # all of it was on disk
    accuracy = found["accuracy"]["general"]
    assert {way for way, _ in accuracy} >= {
        "no prefix", "shuffled persona", "true persona", "few-shot", "summary", "verified", "posterior",
        "posterior over the known personas",
    }  # fmt: skip
    assert {count for way, count in accuracy if way == "summary"} == {1, 2, 4}
    assert {count for way, count in accuracy if way == "verified"} == {2, 4}
    assert all(estimate.n == 4 for estimate in accuracy.values())
    crowd = found["crowd"]
    assert crowd["accuracy"]["true persona", 0].n == 2 * 5
    assert crowd["accuracy"]["posterior over the known personas", 4].n == 2 * 5
    assert {*crowd["names the hidden persona"]} == {1, 2, 4}
    told = found["chooser"]["choices that the chooser tells without the noise"]
    assert told.value == 1.0  # at temperature 0 there is none


def test_hidden_personas_are_twelve_and_different(study: Any) -> None:
    personas = study.PERSONAS
    assert len(personas) >= 12
    assert len(set(personas.values())) == len(personas)
    assert all(said.startswith("The user is ") for said in personas.values())


def test_a_page_has_every_way_and_every_number(study: Any, place: Path) -> None:
    page = importlib.import_module("users_study_page")
    one = Estimate(0.5, 0.25, float("nan"), 4)
    found = {
        "options": {"observed": "[1, 2]", "model": "fake", "personas": "2", "held_out": "3",
                    "users_per_persona": "2", "pairs": "8", "crowd": "5"},
        "chooser": {"agreement": one},
        "accuracy": {
            "general": {("none", 0): one},
            "lift": {("none", 0): one, ("verified", 2): one},
            "plain": {("none", 0): one},
        },
        "gain over the control": {
            "general": {"verified, 2 observed": one},
            "lift": {"verified, 2 observed": one},
        },
        "crowd": {"accuracy": {("none", 0): one}, "true - shuffled": one,
                  "names the hidden persona": {1: (one, one)}},
        "a guess names it": 0.5,
        "users without a persona": {"verified, 2": 1, "summary, 1": 0},
        "this run": {"seconds": 1.0, "cores": 1, "texts scored by the chooser": 2,
                     "seconds of the chooser": 1.0, "texts scored by the evaluator": 3,
                     "seconds of the evaluator": 1.0},
    }  # fmt: skip
    page.write(place, found)
    text = (place / "users_study.md").read_text(encoding="utf-8")
    assert "| verified |  | 0.500 [0.250, nan] |" in text
    assert "verified, 2 choices: 1" in text
    kept = json.loads((place / "users_study.json").read_text(encoding="utf-8"))
    assert kept["accuracy"]["lift"]["verified, 2 observed"]["value"] == 0.5
    assert kept["chooser"]["agreement"]["high"] is None
