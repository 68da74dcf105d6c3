"""The examples about users run on the small files beside them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes what it loads nowhere but here."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.heavy
def test_similar_users_help_in_personalllm(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "personalllm.py"))["main"]()
    printed = capsys.readouterr().out
    assert "10 prompts x 8 responses x 10 models" in printed
    assert "Votes of 1,000 users on " in printed
    found = re.search(r"difference, paired by user: \S+ \[(\S+), \S+\] \(n = 200\)", printed)
    assert found is not None
    assert float(found[1]) > 0


def test_famous_persona_shows_every_prefix(
    endpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLES / "famous_persona.py"))["main"](**endpoint)
    printed = capsys.readouterr().out
    assert "3 people, 15 choices for training, 15 for testing" in printed
    assert "UserPersonas(3 personas of 3 users)" in printed
    assert "PrefixEvaluation: 15 choices of 3 users" in printed
    for kind in ("none", "tag", "name", "few-shot", "persona"):
        assert f"\n[{kind}]\n" in printed
