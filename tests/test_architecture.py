"""The shape of the package: which room knows which, what is public, what an import costs."""

from __future__ import annotations

import ast
import asyncio
import importlib
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer import event_loop
from personainfer.exceptions import UnknownOptionError
from personainfer.personas.costs import CostEstimate

from .builders import MODEL, OPTIONS

PACKAGE = Path(pi.__file__).parent

# The packages, each of which imports only from those above it; "" is the modules at top level.
ORDER = [
    "",
    "preferences",
    "local",
    "data",
    "llm",
    "personas",
    "batch",
    "scoring",
    "evaluation",
    "tailoring",
    "users",
    "simulation",
    "cli",
    "testing",
]

PUBLIC = [
    "AddPersonas",
    "Exemplar",
    "LLM",
    "Likelihood",
    "Message",
    "Persona",
    "PersonaInferError",
    "PersonaPosterior",
    "PersonaRetriever",
    "PersonaRow",
    "PersonaTable",
    "Preference",
    "Request",
    "RewardMatrix",
    "SimulatedUsers",
    "Usage",
    "Verifier",
    "ainfer_personas",
    "audit_personas",
    "cache_info",
    "clear_cache",
    "collect_batch",
    "compare_personas",
    "compare_responses",
    "estimate_cost",
    "evaluate_prefixes",
    "export_personas",
    "infer_personas",
    "infer_user_personas",
    "iter_personas",
    "persona_prefix",
    "persona_reward",
    "rate_personas",
    "retry_errors",
    "salient_words",
    "submit_batch",
    "tailor_responses",
    "tailoring_rows",
    "verify_personas",
    "write_report",
]

# What callers of `infer_personas` may rely on, with values that are not the defaults.


async def _ainfer(*arguments: Any, **options: Any) -> pi.PersonaTable:
    return await pi.ainfer_personas(*arguments, **options)


ENTRANCES: dict[str, Callable[..., Any]] = {
    "infer_personas": pi.infer_personas,
    "ainfer_personas": lambda *a, **o: asyncio.run(_ainfer(*a, **o)),
    "iter_personas": lambda *a, **o: list(pi.iter_personas(*a, **o)),
    "estimate_cost": pi.estimate_cost,
}
entrances = pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES)


def dotted(path: Path) -> str:
    return ".".join(["personainfer", *path.relative_to(PACKAGE).with_suffix("").parts])


MODULES = {dotted(p): p for p in sorted(PACKAGE.rglob("*.py")) if not p.name.startswith("__")}


def package_of(name: str) -> str:
    """Of personainfer.local.cache and of personainfer.llm: llm."""
    parts = name.split(".")
    return "" if name in MODULES and len(parts) == 2 else parts[1]


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements in a node, at any depth; expressions, which hold none, are not searched."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, name, ())
        for statement in inner if isinstance(inner, list) else ():
            yield statement
            yield from statements(statement)


@cache
def read(path: Path) -> tuple[list[ast.Import | ast.ImportFrom], set[str]]:
    """The imports of a module, at any depth, and the names that it defines."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    every = list(statements(module))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    assigned = [
        t for s in every for t in (getattr(s, "targets", None) or [getattr(s, "target", s)])
    ]
    defined = {
        one.id
        for target in assigned
        if isinstance(target, ast.expr)
        for one in ast.walk(target)
        if isinstance(one, ast.Name)
    }
    defined |= {statement.name for statement in module.body if isinstance(statement, kinds)}
    return [s for s in every if isinstance(s, ast.Import | ast.ImportFrom)], defined


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return read(path)[0]


@cache
def imported(module: str) -> set[str]:
    """What a module imports of the package, modules and packages: at its top, in functions, for types."""
    found: set[str] = set()
    for node in imports(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            start = module.rsplit(".", node.level)[0] if node.level else ""
            source = ".".join(filter(None, [start, node.module]))
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    packages = {f"personainfer.{name}" for name in ORDER}
    return found & (MODULES.keys() | packages) - {"personainfer."}


def test_every_package_has_a_place_in_the_order() -> None:
    assert {package_of(module) for module in MODULES} == set(ORDER)


def test_a_module_imports_only_from_packages_above_its_own() -> None:
    place = {package: number for number, package in enumerate(ORDER)}
    for module in MODULES:
        below = {n for n in imported(module) if place[package_of(n)] > place[package_of(module)]}
        assert not below, module


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter({module: imported(module) for module in MODULES}).prepare()


def test_imports_of_every_form_are_seen() -> None:
    """Guards the tests above."""
    used = {"personainfer.data.table", "personainfer.llm.client"}
    assert used <= imported("personainfer.personas.infer")
    assert "personainfer.event_loop" in imported("personainfer.llm.workers")


def test_packages_are_of_a_size_that_a_reader_can_hold() -> None:
    sizes = Counter(map(package_of, MODULES))
    assert sizes.pop("") <= 8
    assert len(sizes) <= 13
    assert max(sizes.values()) <= 12
    assert not any("/" in name for name in sizes)  # one level deep


def test_contributors_are_told_where_every_module_is() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = re.split(r"^- (?:`(\w+)/`|top level): ", text, flags=re.MULTILINE)[1:]
    assert [name or "" for name in told[::2]] == ORDER
    for package, words in zip(ORDER, told[1::2], strict=True):
        modules = {name.split(".")[-1] for name in MODULES if package_of(name) == package}
        assert modules <= set(re.findall(r"`(\w+)`", words)), package


def test_names_say_what_is_inside() -> None:
    nameless = {"utils", "util", "helpers", "common", "base", "manager", "misc"}
    assert not nameless & {part for module in MODULES for part in module.split(".")}


def test_public_names_are_frozen() -> None:
    assert sorted(pi.__all__) == PUBLIC
    # One function or class a task, and the records that travel. Think before you add another.
    assert len(PUBLIC) <= 40
    assert set(PUBLIC) <= set(dir(pi))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(pi, name)
    assert value.__name__ == name
    generated = f"{name}("  # what dataclasses and records get for want of a docstring
    assert value.__doc__ is not None
    assert value.__doc__.strip()
    assert not value.__doc__.startswith(generated)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="infer_persona"):
        _ = pi.infer_persona  # type: ignore[attr-defined]


def test_importing_opens_no_socket_and_loads_nothing_heavy() -> None:
    script = """
        import sys

        def watch(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
                raise RuntimeError(f"{event} {arguments}")

        sys.addaudithook(watch)
        import personainfer
        heavy = {"litellm", "instructor", "pandas", "polars", "pyarrow", "datasets", "torch"}
        heavy |= {"aiohttp", "pydantic", "numpy", "diskcache", "narwhals"}
        print(sorted(heavy & set(sys.modules)))
        dir(personainfer)
        personainfer.infer_personas, personainfer.LLM, personainfer.PersonaTable
        heavy -= {"pydantic", "diskcache"}
        print(sorted(heavy & set(sys.modules)))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert (run.stdout.split("\n"), run.stderr) == (["[]", "[]", ""], "")


def test_importing_the_subpackages_loads_nothing_heavy() -> None:
    packages = [f"personainfer.{name}" for name in ORDER if name]
    script = f"""
        import sys, {", ".join(packages)}
        for name in {packages}:
            assert dir(sys.modules[name]), name
        heavy = {{"litellm", "instructor", "pandas", "polars", "pyarrow", "datasets", "torch"}}
        heavy |= {{"aiohttp", "pydantic", "numpy", "diskcache", "tqdm", "typer", "tenacity"}}
        print(sorted(heavy & set(sys.modules)))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")


# Names of subpackages that documents use: each is exported where its package says so.
EXPORTED = {
    "personainfer.llm": {"LLM", "Request"},
    "personainfer.local": {"cache_info", "clear_cache"},
    "personainfer.personas": {"infer_personas", "find_flags", "place_persona", "retry_errors"},
    "personainfer.batch": {"submit_batch", "collect_batch"},
    "personainfer.data": {"PersonaTable", "read_preferences"},
    "personainfer.testing": {"FakeLLM", "Fault", "Reply"},
}


@pytest.mark.parametrize("package", EXPORTED)
def test_subpackages_export_what_documents_use(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) >= EXPORTED[package]
    for name in EXPORTED[package]:
        assert getattr(module, name).__name__ == name


def test_every_name_is_imported_from_the_module_that_defines_it() -> None:
    """No module passes on what another one defines, or lists its names beside the underscores of others."""
    defined = {name: read(path)[1] for name, path in MODULES.items()}
    assert not [name for name, names in defined.items() if "__all__" in names]
    for name, path in MODULES.items():
        for node in imports(path):
            if isinstance(node, ast.ImportFrom) and node.level:
                source = ".".join([*name.split(".")[: -node.level], *filter(None, [node.module])])
                if source in defined:
                    taken = {alias.name for alias in node.names}
                    assert taken <= defined[source], (name, source, taken - defined[source])


@pytest.mark.parametrize("module", MODULES)
def test_an_object_that_could_not_be_made_can_be_shown(module: str) -> None:
    """As `self` of a constructor that raised, by what shows the variables of a traceback."""
    unmade = list[object]()
    for one in vars(importlib.import_module(module)).values():
        shows = getattr(one, "__repr__", None)
        is_own = getattr(shows, "__module__", None) == getattr(one, "__module__", None) == module
        if isinstance(one, type) and is_own and not is_dataclass(one):
            make: Any = one.__new__
            with suppress(TypeError):  # it is made by its parts alone, as a NamedTuple is
                unmade.append(make(one))
    assert all(map(repr, unmade))


def test_one_function_waits_for_what_the_loop_does() -> None:
    """It refuses to wait on the loop's own thread, where another one would hang for ever."""
    for module, path in MODULES.items():
        starts = "run_coroutine_threadsafe" in path.read_text(encoding="utf-8")
        assert starts == (module == "personainfer.event_loop"), module
    for name, function in vars(event_loop).items():
        if getattr(function, "__module__", "") == event_loop.__name__ and name[0] != "_":
            assert "Future" not in str(getattr(function, "__annotations__", {}).get("return")), name


@entrances
def test_every_option_of_the_contract_is_taken(
    entrance: Callable[..., Any], tmp_path: Path
) -> None:
    options = {**OPTIONS, "cache_dir": tmp_path}
    if entrance in (ENTRANCES["iter_personas"], ENTRANCES["estimate_cost"]):
        del options["progress"]
    result = entrance(data=[], model=MODEL, **options)
    assert (result.rows if isinstance(result, CostEstimate) else len(result)) == 0


@entrances
def test_options_are_keywords_only(entrance: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="positional"):
        entrance([], MODEL, "both")


@entrances
@pytest.mark.parametrize(
    ("wrong", "right"),
    [("side", "sides"), ("max_token", "max_tokens"), ("cachedir", "cache_dir")],
)
def test_an_unknown_option_names_the_nearest(
    entrance: Callable[..., Any], wrong: str, right: str
) -> None:
    with pytest.raises(UnknownOptionError, match=f"{wrong}=.*{right}="):
        entrance([], MODEL, **{wrong: None})


@pytest.mark.heavy
def test_every_package_that_is_imported_is_declared() -> None:
    """A package that only comes with another one may be gone with that one's next version."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    lines = [
        project["name"],
        *project["dependencies"],
        *chain(*project["optional-dependencies"].values()),
    ]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in lines}
    owners = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for node in imports(path):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for module in modules:
                found = {
                    name.lower().replace("_", "-")
                    for name in owners.get(module.partition(".")[0], ())
                }
                assert not found or found & declared, f"{path.name} imports {module}"


@pytest.mark.heavy
def test_tests_have_the_same_names_in_every_process(tmp_path: Path) -> None:
    # Two processes share the tests by name, and refuse to begin where one has other names. A set, say, is
    # written in another order by another hash seed, or by a process that reads the other's bytecode.
    def names(seed: str) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-p",
            "no:cacheprovider",
            "tests",
        ]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPYCACHEPREFIX": str(tmp_path)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            command, cwd=PACKAGE.parent, env=environment, capture_output=True, text=True, check=True
        )
        return [line for line in done.stdout.splitlines() if "::" in line]

    first, second = names("1"), names("2")
    assert len(first) > 1_000
    assert first == second
