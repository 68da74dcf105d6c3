"""What the package imports, and what it declares."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import personainfer as pi

from .attack import attack, broken_if


@attack(
    27,
    "Every package that is imported is declared.",
    "tests/test_architecture.py::test_every_package_that_is_imported_is_declared",
)
def import_without_declaring(folder: Path) -> str:
    package = Path(pi.__file__).parent
    with (package.parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"].values()
    lines = chain(project["dependencies"], *extras)
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}
    owners = packages_distributions()
    missing = set()
    for path in package.rglob("*.py"):
        for name in _imported(path):
            names = {owner.lower().replace("_", "-") for owner in owners.get(name, ())}
            if names and not names & (declared | {"personainfer"}):
                missing.add(name)
    broken_if(missing, f"not declared: {', '.join(sorted(missing))}")
    return f"{len(declared)} are declared, none is missing"


def _imported(path: Path) -> set[str]:
    """The top-level names that a module imports, without the standard library."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)
