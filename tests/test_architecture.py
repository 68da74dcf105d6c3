"""The shape of the package: which room knows which, what is public, what an import costs."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.costs import CostEstimate
from personainfer.exceptions import UnknownOptionError

PACKAGE = Path(pi.__file__).parent

# Each room imports only from rooms above it. A new module takes its place here.
ROOMS = [
    "records",
    "exceptions",
    "telemetry",
    "loop",
    "collector",
    "formats",
    "shapes",
    "readers",
    "flags",
    "prompts",
    "cache",
    "limits",
    "credentials",
    "prices",
    "wire",
    "batch_lines",
    "batch_api",
    "transports",
    "slots",
    "weights",
    "embedded",
    "request",
    "workers",
    "dispatch",
    "llm",
    "columns",
    "stored",
    "writing",
    "added",
    "views",
    "table",
    "plan",
    "packing",
    "costs",
    "options",
    "inference",
    "persona_chat",
    "scoring",
    "forced_decoding",
    "prompt_logprobs",
    "onednn",
    "torch_models",
    "batching",
    "torch_scoring",
    "likelihood",
    "posterior",
    "batch_folder",
    "batch_outcome",
    "batches",
    "retry",
    "tailoring",
    "column_batches",
    "loaders",
    "metrics",
    "grouped",
    "implicit_reward",
    "length_control",
    "bm25",
    "embeddings",
    "retrieval",
    "salience",
    "judging",
    "findings",
    "verification",
    "rewards",
    "reward_models",
    "simulation",
    "heterogeneity",
    "published",
    "user_personas",
    "hypotheses",
    "user_prompts",
    "users",
    "neighbours",
    "prefixes",
    "folds",
    "clashes",
    "predictors",
    "equity",
    "attribution",
    "prefix_findings",
    "prefix_evaluation",
    "user_responses",
    "responses",
    "comparison",
    "summary",
    "plots",
    "report",
    "dataset_card",
    "export",
    "cli_options",
    "cli_streams",
    "cli",
    "faults",
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
    "rate_personas",
    "retry_errors",
    "salient_words",
    "submit_batch",
    "tailoring_rows",
    "verify_personas",
    "write_report",
]

# What callers of `infer_personas` may rely on, with values that are not the defaults.
OPTIONS: dict[str, Any] = {
    "sides": "chosen",
    "protocol": "separate",
    "exemplars": "none",
    "rows_per_call": 1,  # the default: more of them needs both sides
    "columns": {"prompt": "question"},
    "on_error": "drop",
    "progress": False,
    "api_base": "http://127.0.0.1:9/v1",
    "api_key": "key",
    "temperature": 0.5,
    "max_tokens": 100,
    "seed": 3,
    "max_concurrency": 4,
    "rpm": 60,
    "tpm": 10_000,
    "timeout": 5.0,
    "max_attempts": 2,
    "budget": 1.0,
    "cache": True,
}
MODEL = "openai/gpt-4o-mini"


async def _ainfer(*arguments: Any, **options: Any) -> pi.PersonaTable:
    return await pi.ainfer_personas(*arguments, **options)


ENTRANCES: dict[str, Callable[..., Any]] = {
    "infer_personas": pi.infer_personas,
    "ainfer_personas": lambda *a, **o: asyncio.run(_ainfer(*a, **o)),
    "iter_personas": lambda *a, **o: list(pi.iter_personas(*a, **o)),
    "estimate_cost": pi.estimate_cost,
}
entrances = pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES)


def modules() -> list[str]:
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    return sorted(".".join(path.parts) for path in paths if path.name != "__init__")


def imported_rooms(module: str) -> Iterator[str]:
    """Every room that a module names in an import, at its top, in a function or for typing only."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            source = source.replace(".", "personainfer.", 1) if node.level else source
            names = [source.rstrip(".")]
            if names == ["personainfer"]:  # from . import loop
                names = [f"personainfer.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("personainfer."))


def test_every_module_has_a_place_in_the_order() -> None:
    assert sorted(ROOMS) == modules()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_the_rooms_above_it(room: str) -> None:
    above = ROOMS[: ROOMS.index(room)]
    assert not set(imported_rooms(room)) - set(above)


def test_the_order_is_read_from_real_imports() -> None:
    """Guards the two tests above: an import in any form is seen."""
    assert {"readers", "llm", "table"} <= set(imported_rooms("inference"))
    assert "loop" in set(imported_rooms("workers"))


def test_no_room_is_named_after_nothing() -> None:
    nameless = {"utils", "util", "helpers", "common", "base", "manager", "misc"}
    folders = {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not nameless & ({part for name in modules() for part in name.split(".")} | folders)


def test_public_names_are_frozen() -> None:
    assert sorted(pi.__all__) == PUBLIC
    # One function or class a task, and the records that travel. Think before you add another.
    assert len(PUBLIC) <= 37
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
    with pytest.raises(AttributeError, match="infer_persona'"):
        pi.infer_persona  # noqa: B018


def test_importing_opens_no_socket_and_loads_nothing_heavy() -> None:
    script = """
        import sys

        def watch(event, arguments):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
                raise RuntimeError(f"{event} {arguments}")

        sys.addaudithook(watch)
        import personainfer
        heavy = {"litellm", "instructor", "pandas", "polars", "pyarrow", "datasets", "torch"}
        heavy |= {"aiohttp", "pydantic", "numpy", "diskcache"}
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
