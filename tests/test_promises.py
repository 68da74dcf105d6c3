"""Each promise of the page, and each attack of the benchmarks, names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)

ATTACKS = "".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "benchmarks/promises").glob("*.py"))
)
ATTACKED = re.findall(r'"(tests/[\w/]+\.py)::(\w+)"', ATTACKS)


def test_every_row_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    promises = [line for line in rows if not re.match(r"\| (promise|---)", line)]
    assert len(promises) == len(NAMED) > 0


def test_every_attack_names_a_test() -> None:
    assert len(ATTACKED) == ATTACKS.count("\n@attack(") > 20


@pytest.mark.parametrize(("path", "name"), [*NAMED, *ATTACKED])
def test_the_test_exists(path: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
