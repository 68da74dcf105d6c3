"""The options that several commands share. `LLMOptions` and `RunOptions` declare those of models and runs."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from ..api_keys import hides_secrets
from ..arguments import MOST, Option, Options, options_of
from ..llm.client import LLMOptions, named_model
from ..llm.pricing import listed_provider
from ..personas.options import RUN_OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Preference data: .jsonl, .json, .csv (also with .gz), .parquet, hf:owner/name:split; - for"
        " JSONL on standard input.",
    ),
]
AnyTable = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        exists=True,
        dir_okay=False,
        help="A table that infer or verify wrote (.parquet); or a .jsonl, .json or .csv file of pairs with"
        " the columns chosen_persona and rejected_persona, whoever wrote them.",
    ),
]
TableColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="OURS=YOURS",
        help="Where the names of a file of pairs differ: chosen_persona=who. Repeatable. Ours are"
        " chosen_persona, rejected_persona, and those of infer: prompt, chosen, rejected, …",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A litellm model, a name that --api-base knows, local, or local:/path/model.gguf."
        " Default: $PERSONAINFER_MODEL, else local.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, max=MOST, help="Only the first N rows.")]


Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="A bar on standard error. Default: in a terminal.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of text.")]

# Options whose form in a shell differs from that in Python: name -> (type, arguments of typer.Option).
_IN_A_SHELL: dict[str, tuple[Any, dict[str, Any]]] = {
    "columns": (
        list[str],
        {
            "metavar": "OURS=YOURS",
            "help": "Where names differ: prompt=question. Repeatable. Ours are prompt, chosen, rejected;"
            " or prompt, response_1, response_2, label; or prompt, responses, scores; or prompt, response,"
            " score, group; and id, user, system, tools.",
        },
    ),
    "labels": (
        list[str],
        {
            "metavar": "YOURS=OURS",
            "help": "What a label means: 0=first. Repeatable. Ours are first, second, tie.",
        },
    ),
    "select": (
        str,
        {
            "metavar": "MODEL|none",
            "help": "The model that chooses among candidates, reached like --model.",
        },
    ),
    "exemplars": (Literal["default", "none"], {}),
    "temperature": (str, {"metavar": "NUMBER|none"}),
    "extra_headers": (list[str], {"metavar": "NAME=VALUE"}),
    "extra_body": (str, {"metavar": "JSON"}),
    "api_key": (str, {"envvar": "PERSONAINFER_API_KEY", "show_envvar": True}),
    "prices": (tuple[float, float], {"metavar": "IN OUT"}),
    "cache_dir": (Path, {}),
}
# Argument -> name of the option, where it is not the argument's name with dashes.
SHELL_NAMES = {
    "columns": "column",
    "labels": "label",
    "select": "judge",
    "extra_headers": "extra_header",
}
# Heading in the help -> the options below it.
PANELS = {
    "The data": ("columns", "labels", "pairs", "min_gap", "min_votes", "safe_rejected"),
    "The personas": tuple(
        "sides protocol candidates select exemplars rows_per_call on_error".split()
    ),
    "The model": tuple(
        "api_base api_key temperature max_tokens seed reasoning_effort extra_headers extra_body".split()
    ),
    "Limits, cost and cache": tuple(
        "max_concurrency rpm tpm timeout max_attempts patience budget prices cache cache_dir".split()
    ),
}
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
# The options of the model that also hold for a judge: how the endpoint is reached, its limits, the cache.
_ENDPOINT = frozenset(
    "api_base api_key extra_headers max_concurrency rpm tpm timeout max_attempts patience cache"
    " cache_dir".split()
)


def _declared(option: Option) -> Any:
    """Declare an option to typer. Its default is None, which means not given: Python's default applies."""
    kind, more = _IN_A_SHELL.get(option.name, (option.kind, {}))
    dashed = SHELL_NAMES.get(option.name, option.name).replace("_", "-")
    name = f"--{dashed}/--no-{dashed}" if kind is bool else f"--{dashed}"
    help = option.help
    if option.default is not None and not isinstance(option.default, bool):
        help += f" Default: {option.default}."
    panel = _PANEL_OF.get(option.name)
    declared = {"help": help, "show_default": False, "rich_help_panel": panel, **more}
    return Annotated[kind | None, typer.Option(name, **declared)]


def _all_declared(options: Options) -> dict[str, Any]:
    """Declare options to typer. Returns the name of the parameter -> its type, with typer's declaration."""
    return {SHELL_NAMES.get(name, name): _declared(option) for name, option in options.each.items()}


def with_llm_options(command: Command) -> Command:
    """Decorate a command with `**options`: it gets the options that configure a model, as parameters."""
    return _with(command, _all_declared(options_of(LLMOptions)))


def with_persona_options(command: Command) -> Command:
    """Decorate a command with `**options`: it gets the options of `infer_personas`, as parameters."""
    return _with(command, _all_declared(RUN_OPTIONS))


def _with(command: Command, options: dict[str, Any]) -> Command:
    """Replace the `**options` of a command's signature by these parameters: name -> annotation."""
    signature = inspect.signature(command, eval_str=True)
    command = hides_secrets(command)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in [*own, *more]}
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Convert options of a shell to keyword arguments of `LLM`.

    Args:
        options: name of the parameter -> value; None: the option was not given, and is left out.

    Raises:
        typer.BadParameter: a value (such as JSON, or a header) that cannot be read.
    """
    found = {name: value for name, value in options.items() if value is not None}
    if body := found.get("extra_body"):
        try:
            found["extra_body"] = json.loads(body)
        except ValueError:
            raise typer.BadParameter(f"{body!r} is not JSON.", param_hint="--extra-body") from None
    if headers := found.pop("extra_header", None):
        found["extra_headers"] = pairs("--extra-header", headers)
    if (said := found.get("temperature")) is not None:
        found["temperature"] = _temperature(said)
    return found


def _temperature(said: str) -> float | None:
    """Read a number, or "none", which gives None: the endpoint's default."""
    if said.lower() == "none":
        return None
    try:
        return float(said)
    except ValueError:
        raise typer.BadParameter(
            f"{said!r} is neither a number nor none.", param_hint="--temperature"
        ) from None


def persona_options(options: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Convert options of a shell to keyword arguments of `infer_personas`.

    `--judge` becomes a `Verifier`, as `select`, and "none" becomes None. The judge gets the key and
    the headers of `model` only if it has the same provider or address, and the prices only if it is the same
    model.

    Args:
        options: name of the parameter -> value; None: the option was not given, and is left out.
        model: the model of `--model`; None: the default one.

    Raises:
        typer.BadParameter: a value that cannot be read, or several candidates without a judge.
    """
    found = given(options)
    for ours, shell in (("columns", "column"), ("labels", "label")):
        if texts := found.pop(shell, None):
            found[ours] = pairs(f"--{shell}", texts)
    judge = found.pop("judge", None)
    if found.get("candidates", 1) > 1 and judge in (None, "none"):
        raise typer.BadParameter("more than one needs --judge.", param_hint="--candidates")
    if judge == "none":
        found["select"] = None
    elif judge is not None:
        from ..evaluation.verification import Verifier

        names = _ENDPOINT | {"prices"} if judge == model else _ENDPOINT
        if "api_base" not in found and _provider(judge) != _provider(named_model(model)):
            names -= {"api_key", "extra_headers"}  # they are secrets of another company
        found["select"] = Verifier(judge, **{n: v for n, v in found.items() if n in names})
    return found


def _provider(model: str) -> str:
    """Return the provider of a model, by its name or litellm's list; else the start of its name ("gpt")."""
    name = model.removeprefix("litellm/")
    provider, has_provider, _ = name.partition("/")
    return provider if has_provider else listed_provider(name) or name.partition("-")[0]


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Split texts of the form NAME=VALUE at the first "=", those of --label at the last one.

    Args:
        option: the option that the texts come from, such as "--column".
        texts: the texts.

    Returns:
        Name -> value.

    Raises:
        typer.BadParameter: a text has another form, or a name is given twice. The message does not show a
        header, which may be secret.
    """
    cut = str.rpartition if option == "--label" else str.partition  # a label may be ">="
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = map(type(text), cut(text, "="))  # so that the parts of a secret are secret
        shown = "a header" if option == "--extra-header" else repr(text)
        if not (name and value):
            raise typer.BadParameter(f"{shown} is not NAME=VALUE.", param_hint=option)
        if name in found:
            raise typer.BadParameter(
                f"{shown} gives a value to a name a second time.", param_hint=option
            )
        found[str(name)] = value
    return found
