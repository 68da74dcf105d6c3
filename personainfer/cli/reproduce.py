"""The command `personainfer reproduce`: measure a paper's main figures again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from .options import AsJson, Limit, Progress, given, with_llm_options
from .run_summary import FAILED
from .streams import print_json, say


@with_llm_options
def reproduce(
    paper: Annotated[
        Literal["pi", "pt", "wikipersonas", "personalllm"],
        typer.Argument(
            help="pi, pt: persona inference and tailoring (arXiv 2501.11549); wikipersonas: arXiv"
            " 2505.13257; personalllm: arXiv 2409.20296."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="pi, pt: a file with the authors' columns; else the published data set's name or folder."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Writes personas or responses that the data lacks."),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            help="A model that judges, or likelihood, likelihood:MODEL: log-probabilities."
        ),
    ] = "likelihood",
    limit: Limit = None,
    progress: Progress = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Measure a paper's main figures on your data, and print them beside the published numbers.

    Each measured number has its 95 % interval. Sentences say how the measurement differs from the paper's.
    """
    from ..simulation.published_figures import reproduce as measured

    found = measured(
        paper, data, model=model, judge=judge, limit=limit, progress=progress, **given(options)
    )
    print_json(found.to_dict()) if as_json else say(str(found))
    if found.failed:
        raise typer.Exit(FAILED)
