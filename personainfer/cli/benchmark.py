"""The command `personainfer benchmark`: how good the personas are that a model infers, with time and cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, Progress, given, with_llm_options
from .run_summary import FAILED
from .streams import print_json, say


@with_llm_options
def benchmark(
    model: Annotated[
        str | None,
        typer.Argument(
            help="As --model of infer. Default: $PERSONAINFER_MODEL, else local.",
            show_default=False,
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Says by log-probabilities what a persona explains: local:smollm2, local:/path/model.gguf,"
            " or a model of Hugging Face by transformers. Repeatable. Default: local:smollm2, unless that"
            " is MODEL.",
            show_default=False,
        ),
    ] = None,
    scorer_api_base: Annotated[
        str | None,
        typer.Option(help="The scorers are served there, by vLLM or a llama.cpp server."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Save the personas as a table (.parquet)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only N pairs, half of each kind.")
    ] = None,
    progress: Progress = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Infer personas for 60 pairs that come with the package, and measure how good they are.

    Another model, the scorer, measures them. If you pay for the calls of a model, you pay for these.
    """
    from ..data.table_writer import check_output
    from ..evaluation.benchmark import benchmark_model, benchmark_pairs
    from ..scoring.likelihood import Likelihood

    target = None if output is None else check_output(output, None)
    scorers: Any = scorer or None
    if scorer_api_base is not None:
        if not scorer:
            raise typer.BadParameter(
                "name what it serves: --scorer.", param_hint="--scorer-api-base"
            )
        scorers = {name: Likelihood(name, api_base=scorer_api_base) for name in scorer}
    pairs = sorted(benchmark_pairs(), key=lambda pair: str(pair.id).rpartition("-")[2])[:limit]
    found = benchmark_model(model, scorers=scorers, data=pairs, progress=progress, **given(options))
    if target is not None:
        found.table.save(target)
    print_json(found.to_dict()) if as_json else say(str(found))
    if found.failed:
        raise typer.Exit(FAILED)
