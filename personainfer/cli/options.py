"""The options that several commands share: how a model is reached, how personas are asked for.

An option that is not given is not passed on, so that defaults are told in one place: `LLM` and
`infer_personas`. What a command does with them is not known here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

__all__ = [
    "AsJson",
    "Data",
    "Limit",
    "Model",
    "Progress",
    "SavedTable",
    "given",
    "pairs",
    "persona_options",
    "with_llm_options",
    "with_persona_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Preference data: .jsonl, .json, .csv (also with .gz), .parquet; - for JSONL on standard"
        " input.",
    ),
]
SavedTable = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE",
        exists=True,
        dir_okay=False,
        help="A table that infer or verify wrote (.parquet).",
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
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")]


Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="A bar on standard error. Default: in a terminal.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Say it as one JSON object.")]

_LLM = "The model"
_LLM_OPTIONS: dict[str, Any] = {
    "api_base": Annotated[
        str | None,
        typer.Option(help="The address of an OpenAI-compatible endpoint.", rich_help_panel=_LLM),
    ],
    "api_key": Annotated[
        str | None,
        typer.Option(
            envvar="PERSONAINFER_API_KEY",
            show_envvar=True,
            help="The key; better in the environment, where other users cannot read it.",
        ),
    ],
    "temperature": Annotated[float | None, typer.Option(help="0 for the likeliest reply.")],
    "max_tokens": Annotated[int | None, typer.Option(help="The most a reply may take.")],
    "seed": Annotated[int | None, typer.Option(help="Sent to endpoints that take one.")],
    "max_concurrency": Annotated[int | None, typer.Option(help="The most calls in flight.")],
    "rpm": Annotated[float | None, typer.Option(help="Requests in any minute.")],
    "tpm": Annotated[float | None, typer.Option(help="Tokens in any minute.")],
    "timeout": Annotated[float | None, typer.Option(help="Seconds for one call.")],
    "max_attempts": Annotated[int | None, typer.Option(help="The most calls for one request.")],
    "patience": Annotated[
        float | None,
        typer.Option(help="Seconds: an endpoint that asks to wait longer is given up."),
    ],
    "budget": Annotated[
        float | None, typer.Option(help="USD: a call that could pass it is not made.")
    ],
    "prices": Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="IN OUT", help="USD a million prompt and completion tokens."),
    ],
    "cache": Annotated[
        bool | None,
        typer.Option("--cache/--no-cache", help="Replies on disk.", show_default=False),
    ],
    "cache_dir": Annotated[
        Path | None, typer.Option(help="Where. Default: $PERSONAINFER_CACHE_DIR.")
    ],
}
_PERSONA_OPTIONS: dict[str, Any] = {
    "column": Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=YOURS",
            help="Where names differ: prompt=question. Repeatable. Ours are prompt, chosen, rejected, id,"
            " user; or prompt, response_1, response_2, label.",
        ),
    ],
    "sides": Annotated[
        Literal["both", "chosen", "rejected"] | None, typer.Option(help="Whose personas.")
    ],
    "protocol": Annotated[
        Literal["joint", "separate"] | None,
        typer.Option(help="One call for both personas, or one a side."),
    ],
    "candidates": Annotated[
        int | None, typer.Option(help="Hypotheses a side; more than one needs --judge.")
    ],
    "judge": Annotated[
        str | None,
        typer.Option(help="The model that chooses among candidates, reached like --model."),
    ],
    "exemplars": Annotated[
        Literal["default", "none"] | None, typer.Option(help="Worked examples in the prompt.")
    ],
    "rows_per_call": Annotated[int | None, typer.Option(help="Pairs asked about in one call.")],
}
_REACHED = ("api_base", "api_key", "max_concurrency", "rpm", "tpm", "timeout", "cache", "cache_dir")


def with_llm_options(command: Command) -> Command:
    """The command, whose `**options` are those that configure a model."""
    return _with(command, _LLM_OPTIONS)


def with_persona_options(command: Command) -> Command:
    """The command, whose `**options` are those of `infer_personas` that a shell can say."""
    return _with(command, {**_PERSONA_OPTIONS, **_LLM_OPTIONS})


def _with(command: Command, options: dict[str, Any]) -> Command:
    signature = inspect.signature(command, eval_str=True)
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
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def persona_options(options: dict[str, Any]) -> dict[str, Any]:
    """What was given, as keyword arguments of `infer_personas`."""
    found = given(options)
    if column := found.pop("column", None):
        found["columns"] = pairs("--column", column)
    if found.get("candidates", 1) > 1 and "judge" not in found:
        raise typer.BadParameter("more than one needs --judge.", param_hint="--candidates")
    if judge := found.pop("judge", None):
        from ..evaluation.verification import Verifier

        found["select"] = Verifier(judge, **{n: v for n, v in found.items() if n in _REACHED})
    return found


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, each of them."""
    found = dict(text.partition("=")[::2] for text in texts)
    if wrong := [text for text in texts if not all(text.partition("="))]:
        raise typer.BadParameter(f"{wrong[0]!r} is not NAME=VALUE.", param_hint=option)
    return found
