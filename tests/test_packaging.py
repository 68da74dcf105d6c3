"""What `pip install .` puts into an empty environment: the package whole, nothing else, and it works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]
WAIT = 600  # seconds at most: packages may have to be fetched
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = sorted(PROJECT["optional-dependencies"])
# Of the extras that are small, what each of them is for.
SMALL = {
    "hf": "import datasets",
    "local": "import xllamacpp, personainfer.local.local_models",
    "otel": "import opentelemetry.trace, opentelemetry.metrics",
    "report": "import personainfer.simulation.plots, matplotlib",
}


def pip(*arguments: str | Path, python: str | Path = sys.executable) -> None:
    """pip of this environment, for any; the packages come from where it is configured to look."""
    command = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(  # on a path of ours pip would take the package for installed
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=WAIT, env=bare
    )
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without what an earlier build may have left in the folder."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(
        ROOT / "personainfer", source / "personainfer", ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in ("tests", "examples", "benchmarks"):  # which must not get in
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", source / "dist", source)
    (made,) = (source / "dist").glob("*.whl")
    return made


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (ROOT / "personainfer").rglob("*") if path.is_file())
    ours = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert names == ours
    for name in (
        "py.typed",
        "personas/texts/joint.txt",
        "evaluation/texts/benchmark_pairs.jsonl",
        "tailoring/templates/dataset_card.md",
    ):
        assert f"personainfer/{name}" in names


def empty_environment(folder: Path) -> Path:
    """The python of an environment that holds nothing, not even pip."""
    venv.create(folder, with_pip=False)
    return python_of(folder)


def python_of(environment: Path) -> Path:
    return environment / ("Scripts" if os.name == "nt" else "bin") / "python"


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the package and no extra."""
    folder = tmp_path_factory.mktemp("base") / "environment"
    pip("install", "--quiet", "--no-compile", wheel, python=empty_environment(folder))
    return folder


@pytest.mark.parametrize("extra", sorted(SMALL))
def test_a_small_extra_works_alone(extra: str, wheel: Path, base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "environment", symlinks=True)
    python = python_of(folder)
    pip("install", "--quiet", "--no-compile", f"{wheel}[{extra}]", python=python)
    command = [str(python), "-I", "-c", f"import personainfer\n{SMALL[extra]}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2_000:]


def test_versions_are_found_for_all_extras_together(wheel: Path, tmp_path: Path) -> None:
    """Those would do for each of them alone, too."""
    python = empty_environment(tmp_path / "empty")
    pip("install", "--quiet", "--dry-run", f"{wheel}[{','.join(EXTRAS)}]", python=python)


def test_the_lines_of_the_readme_work_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """What it says to install, and the example after that, with nothing else."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Use it")[2]
    install = re.findall(r"^pip install ([^#\n]+)", readme, re.MULTILINE)
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert install
    assert example is not None
    python = empty_environment(tmp_path / "empty")
    for line in install:
        words = [word.strip('"') for word in line.split()]
        pip(
            "install",
            "--quiet",
            *(f"{wheel}{word[1:]}" if word.startswith(".") else word for word in words),
            python=python,
        )
    done = subprocess.run(
        [python, "-I", "-c", example[1]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PERSONAINFER_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert len(re.findall(r"^The user is .+ and prefers .+\.$", done.stdout, re.MULTILINE)) == 2
