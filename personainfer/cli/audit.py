"""The command `personainfer audit`: test whether personas know their users."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..arguments import id_text
from ..exceptions import DataError
from ..preferences.cells import read_json
from .options import AsJson, given, pairs, with_llm_options
from .run_summary import FAILED
from .streams import print_json, say

if TYPE_CHECKING:
    from ..users.records import UserPersonas


@with_llm_options
def audit(
    personas: Annotated[
        Path,
        typer.Argument(
            metavar="PERSONAS",
            exists=True,
            dir_okay=False,
            help="What UserPersonas.save wrote, or JSON lines with user (or user_id) and persona (text).",
        ),
    ],
    choices: Annotated[
        str,
        typer.Argument(
            metavar="CHOICES", help="Held-out choices: preference data with a user a row."
        ),
    ],
    judge: Annotated[
        str,
        typer.Option(
            help="Who predicts: a model that judges, or likelihood, likelihood:MODEL: log-probabilities."
        ),
    ] = "likelihood",
    history: Annotated[
        str | None,
        typer.Option(help="The choices that the personas were made from; baselines need them."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="To compare with: longer, majority, similar users, … Repeatable. Default: all but latent.",
        ),
    ] = None,
    smallest_effect: Annotated[
        float, typer.Option(help="The smallest difference in accuracy that matters.")
    ] = 0.05,
    persona_in: Annotated[
        Literal["system", "user"], typer.Option(help="Where the persona stands.")
    ] = "system",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=YOURS", help="Where names differ: user=annotator. Repeatable."),
    ] = None,
    draw_seed: Annotated[
        int, typer.Option(help="Seeds the draws of other users' personas, examples, permutations.")
    ] = 0,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Test whether a user's persona predicts that user's choices better than another user's persona does."""
    import personainfer as pi

    asked = given(options)
    scorer: Any = judge
    if judge == "likelihood" or judge.startswith("likelihood:"):
        of_it = ("api_base", "api_key", "timeout")
        place: dict[str, Any] = {name: asked[name] for name in of_it if name in asked}
        asked = {name: value for name, value in asked.items() if name not in place}
        if named := judge.partition(":")[2]:
            place["model"] = named
        scorer = pi.Likelihood(**place)
    found = pi.audit_personas(
        read_personas(personas),
        choices,
        scorer,
        history=history,
        baselines=baseline or None,
        smallest_effect=smallest_effect,
        role=persona_in,
        columns=pairs("--column", column or []) or None,
        draw_seed=draw_seed,
        **asked,
    )
    print_json(found.to_dict()) if as_json else say(str(found))
    if found.failed or found.margins.unusable:
        raise typer.Exit(FAILED)


def read_personas(path: Path) -> UserPersonas | dict[str, str]:
    """Read a file of personas.

    Returns:
        What `UserPersonas.load` reads; or, if each line has a text as the persona, user -> text.

    Raises:
        DataError: the file is not JSON lines, holds neither of these, or gives a user two personas.
    """
    from ..data.file_formats import bounded_lines
    from ..local.paths import opened_file
    from ..users.records import UserPersonas

    try:
        with opened_file(path) as file:
            lines = (line or b"" for line in bounded_lines(file) if line is None or line.strip())
            rows = [read_json(line.removeprefix(BOM_UTF8), is_data=True) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not JSON lines: {str(error).rstrip('.')}.", argument="personas"
        ) from None
    if not rows or not all(isinstance(row, dict) and _is_text(row) for row in rows):
        return UserPersonas.load(path)
    texts: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        user = id_text(row["user"])
        if user in texts:
            raise DataError(
                f"{path}: the user {user!r} has two personas, the second in row {number}.",
                hint="Remove one of them: a user has one persona.",
                argument="personas",
            )
        texts[user] = row["persona"]
    return texts


def _is_text(row: dict[str, Any]) -> bool:
    """Whether a row has a persona as text, and a user as text or a number.

    A row without a field "user" is changed: it gets a "user" that is a copy of its "user_id".
    """
    if "user" not in row and "user_id" in row:
        row["user"] = row["user_id"]
    return isinstance(row.get("persona"), str) and isinstance(row.get("user"), str | int | float)
