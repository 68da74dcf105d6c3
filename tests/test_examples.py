"""The examples run from start to end, each in a process of its own, on the small files beside them.

The notebook's is a kernel, in test_notebook.py; that over a Ray cluster is in personas/test_ray_cluster.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from personainfer.testing import FakeLLM

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# The example as it is, but for the model that it asks.
_ON_LOOPBACK = """
import runpy, sys
runpy.run_path(sys.argv[1])["main"](model="fake", api_base=sys.argv[2])
"""


def printed(*command: str | Path, cwd: Path) -> str:
    """What Python prints; `datasets` writes what it loads nowhere but in this folder."""
    home = {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **home},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


@pytest.mark.heavy
def test_the_demo_asks_once_and_then_reads_its_cache(tmp_path: Path) -> None:
    """With its first pair only. It writes beside its folder, so a copy of it runs."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    data = tmp_path / "examples" / "data" / "preferences.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(lines[:1]), encoding="utf-8")
    first, again = (printed("examples/demo.py", cwd=tmp_path) for _ in range(2))
    for said in (first, again):
        sentences = re.findall(r"The user is", said)
        assert len(sentences) == 2  # both personas, and no error
        assert re.search(r"\d+% of the pairs .* \d+% of the personas", said)
        assert max(map(len, said.split("By SmolLM2")[0].splitlines())) <= 100
    assert "1 calls, 0 replies from the cache." in first
    assert "0 calls, 1 replies from the cache." in again
    for file in ("personas.parquet", "report.html"):
        assert (tmp_path / "demo" / file).is_file()


@pytest.mark.heavy
def test_similar_users_help_in_personalllm(tmp_path: Path) -> None:
    said = printed(EXAMPLES / "personalllm.py", cwd=tmp_path)
    assert "10 prompts x 8 responses x 10 models" in said
    assert "Votes of 1,000 users on " in said
    found = re.search(r"difference, paired by user: \S+ \[(\S+), \S+\] \(n = 200\)", said)
    assert found is not None
    assert float(found[1]) > 0


@pytest.mark.heavy
def test_famous_persona_shows_every_prefix(llm: FakeLLM, tmp_path: Path) -> None:
    example = EXAMPLES / "famous_persona.py"
    said = printed("-c", _ON_LOOPBACK, example, llm.api_base, cwd=tmp_path)
    assert "3 people, 15 choices for training, 15 for testing" in said
    assert "UserPersonas(3 personas of 3 users;" in said  # and how many choices were not needed
    assert "PrefixEvaluation: 15 choices of 3 users" in said
    for kind in ("none", "tag", "name", "few-shot", "persona"):
        assert f"\n[{kind}]\n" in said
