"""The command `personainfer`: each command parses, calls one public function, and prints.

A command imports what it needs when it runs, so that `--help` is fast.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import personainfer as pi

from .audit import audit
from .benchmark import benchmark
from .errors import CommandGroup
from .models import models_app
from .options import (
    AnyTable,
    AsJson,
    Data,
    Limit,
    Model,
    Progress,
    TableColumns,
    given,
    pairs,
    persona_options,
    with_llm_options,
    with_persona_options,
)
from .reproduce import reproduce
from .run_summary import FAILED, Done, finish
from .show import formats, in_a_terminal, opened_table, printed_rows, report, show
from .streams import (
    bar_beside_lines,
    check_details,
    counted,
    data_out,
    note,
    opened_lines,
    print_json,
    print_request,
    rows_of,
    say,
    suggest,
    table_commands,
    usd,
    written_rows,
)

_EPILOG = """
Exit codes:
0    done
1    a fault of personainfer itself, with a traceback
2    bad arguments or data: nothing was sent
3    done, but some rows failed, or verdicts; they are in the output with the reason
4    the model, the cache or the disk ended it; what was paid for is kept
130  interrupted (Ctrl-C); the same command goes on from there
141  the reader of a pipe went away, as with any other command"""


app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
app.add_typer(models_app, name="models")


def main() -> None:
    """Run the command line with the arguments of this process, and end the process with an exit code."""
    # If it is closed, messages are dropped, and the data is printed all the same.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # the encoding of a file on Windows lacks 报 and …
        sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="personainfer")


def _version(asked: bool) -> None:
    """Print the version and end, if it was asked for."""
    if asked:
        say(f"personainfer {pi.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Infer who would prefer each response, and why, from preference data."""


@app.command()
@with_persona_options
def infer(
    data: Data,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A .parquet file, which the other commands read, or .jsonl; - for JSONL on standard output."
            " Default: rows to read in a terminal, else -.",
        ),
    ] = None,
    model: Model = None,
    limit: Limit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the first request; send nothing.")
    ] = False,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="DATA is a table: ask again for its failed rows, in place or to --output.",
        ),
    ] = False,
    details: Annotated[
        bool,
        typer.Option(
            "--details",
            help="In JSONL: also the trait, preference, evidence and flags of each persona.",
        ),
    ] = False,
    progress: Progress = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Infer the personas of every pair. Running the same command again never pays twice."""
    asked = persona_options(options, model)
    end = partial(finish, judge=asked.get("select"))
    for_people = output is None and in_a_terminal() and not (details or as_json)
    output = output or "-"
    if details and (dry_run or retry or output.endswith(".parquet")):
        raise typer.BadParameter(
            "it is for JSONL: a table holds them, see PersonaTable.to_pandas(details=True).",
            param_hint="--details",
        )
    if dry_run:
        _refuse_beside("--dry-run", {"--retry": retry or None})
        from ..personas.infer import first_request

        print_request(first_request(rows_of(data, limit), model, **asked), as_json)
    elif retry:
        _refuse_beside("--retry", {"--limit": limit, "--column": options["column"] or None})
        target = Path(data if output == "-" else output)
        if output != "-" or (target.is_file() and target.suffix == ".parquet"):
            target = _table_path(str(target))
        table = pi.retry_errors(data, model, progress=progress, **asked)
        end(Done.of(table), table.save(target), as_json, table_commands(target))
    elif output.endswith(".parquet"):
        rows = rows_of(data, limit)
        table = pi.infer_personas(rows, model, output=output, progress=progress, **asked)
        end(Done.of(table), Path(output), as_json, table_commands(output))
    elif for_people:
        stream = pi.iter_personas(rows_of(data, limit), model, **asked)
        done = Done.counted(printed_rows(stream), stream)
        end(done, None, as_json, (f"infer {shlex.quote(data)} -o personas.parquet …",))
    else:
        if details:
            check_details(data)
        with opened_lines(output, data) as out:
            stream = pi.iter_personas(rows_of(data, limit), model, **asked)
            bar = bar_beside_lines(progress) if output == "-" else progress
            told: dict[str, Any] = {n: asked[n] for n in ("columns", "labels") if n in asked}
            done = Done.counted(written_rows(stream, out, bar, details, told), stream)
        end(done, None if output == "-" else Path(output), as_json)


@app.command()
@with_persona_options
def estimate(
    data: Data, model: Model = None, limit: Limit = None, as_json: AsJson = False, **options: Any
) -> None:
    """Estimate the calls, tokens and cost of infer. Nothing is sent."""
    asked = persona_options(options, model)
    found = pi.estimate_cost(rows_of(data, limit), model, **asked)
    sides = 2 if asked.get("sides", "both") == "both" else 1
    judged = 2 * sides * asked.get("candidates", 1) if asked.get("select") else 0  # in both orders
    most = judged * (found.rows - found.unusable_rows)
    if as_json:
        return print_json(found.model_dump() | ({"judge_calls": most} if judged else {}))
    say(f"{counted(found.rows, 'row')}, {found.unusable_rows:,} of which cannot be used")
    say(f"{counted(found.calls, 'call')} to make, {found.cached:,} replies in the cache")
    say(f"about {found.prompt_tokens:,} prompt and {found.completion_tokens:,} completion tokens")
    told = "" if found.cost is not None else ": --prices says what a million tokens cost"
    say(f"cost {usd(found.cost)}{told}")
    if judged:
        say(f"and up to {counted(most, 'call')} of the judge, which are in none of these numbers")
    if found.rows:
        suggest(f"infer {shlex.quote(data)} -o personas.parquet …")
    return None


@app.command()
@with_llm_options
def verify(
    table: AnyTable,
    judge: Annotated[str, typer.Option(help="The model that judges, as --model of infer.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Write the table with the verdicts (.parquet)."),
    ] = None,
    column: TableColumns = None,
    sides: Annotated[
        Literal["both", "chosen", "rejected"], typer.Option(help="Whose personas.")
    ] = "both",
    soft: Annotated[
        bool, typer.Option("--soft/--no-soft", help="Ask for log-probabilities too.")
    ] = True,
    progress: Progress = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Ask a judge, with the responses in both orders, whether the personas explain the choices."""
    target = None if output is None else _table_path(output)
    found = pi.verify_personas(
        opened_table(table, column),
        judge,
        sides=sides,
        soft=soft,
        progress=progress,
        **given(options),
    )
    if target is not None:
        found.table.save(target)
    if as_json:
        print_json(found.to_dict())
    else:
        say(str(found))
        if target is not None:
            suggest(*table_commands(target)[1:])
    if found.failed:
        raise typer.Exit(FAILED)


def _format_names(incomplete: str) -> list[str]:
    """Return the formats of export that begin with what was typed, for the completion of the shell."""
    from ..tailoring.export import EXPORT_FORMATS

    return [name for name in EXPORT_FORMATS if name.startswith(incomplete)]


@app.command()
def export(
    table: AnyTable,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A folder, which gets a data set card, or a .jsonl or .parquet file; - for standard output.",
        ),
    ] = "-",
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            autocompletion=_format_names,
            help="trl-dpo, trl-sft, …: see the command formats.",
        ),
    ] = "trl-dpo",
    column: TableColumns = None,
    persona: Annotated[
        Literal["chosen", "rejected", "both", "none"],
        typer.Option(help="Whose personas; for those of rejected, the labels are swapped."),
    ] = "chosen",
    persona_in: Annotated[
        Literal["system", "user", "plain"], typer.Option(help="Where the persona stands.")
    ] = "system",
    template: Annotated[
        str | None,
        typer.Option(
            help="Your own wording for the persona, with the fields of ours: {persona}, {prompt}."
        ),
    ] = None,
    drop_flagged: Annotated[
        bool, typer.Option("--drop-flagged", help="Leave out personas with any flag.")
    ] = False,
    drop_flag: Annotated[
        list[str] | None,
        typer.Option(metavar="FLAG", help="Leave out personas with this flag. Repeatable."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE",
            help="The share of the prompts in each: --split train=0.8 --split test=0.2.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the splits.")] = 0,
    title: Annotated[
        str, typer.Option(help="The title of the card.")
    ] = "Preferences with personas",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is not an export, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write rows to train on, as TRL reads them. A folder also gets a data set card."""
    made = pi.export_personas(
        opened_table(table, column),
        data_out() if output == "-" else output,
        format=format,
        persona=persona,
        persona_in=persona_in,
        template=template,
        drop_flagged=drop_flagged or drop_flag or False,
        splits=_shares(split) if split else None,
        seed=seed,
        title=title,
        overwrite=overwrite,
    )
    if as_json:
        return print_json(made.to_dict(), err=output == "-")
    rows = ", ".join(f"{name} {count:,}" for name, count in made.rows.items())
    note(f"{format}: {rows} rows" + ("" if output == "-" else f" in {output}"))
    for reason, count in made.left_out.items():
        note(f"left out: {count:,} ({reason.replace('_', ' ')})")
    if made.long_prompts:
        note(f"{made.long_prompts:,} prompts of 1,024 tokens or more: raise TRL's max_length")
    if made.card is not None:
        in_shell = shlex.quote(str(output))
        note(f"Next: datasets.load_dataset({str(output)!r}), or trl … --dataset_name {in_shell}")
    return None


app.command()(report)
app.command()(show)


@app.command()
def cache(
    action: Annotated[
        Literal["show", "prune"], typer.Argument(help="show what is there, or prune: see below.")
    ] = "show",
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete all replies, or those of --model.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="With --clear: only this model's.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, help="With prune: delete replies older than N days."),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            min=0, help="With prune: delete the oldest ones, until at most N bytes are left."
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the cache. Default: $PERSONAINFER_CACHE_DIR, else your own."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how many replies are cached on disk, or delete some of them."""
    if action == "prune":
        _refuse_beside("prune", {"--clear": clear or None, "--model": model})
        from ..local.cache import prune_cache

        deleted = prune_cache(older_than=older_than, max_size=max_size, cache_dir=cache_dir)
        return print_json({"deleted": deleted}) if as_json else note(f"{deleted:,} deleted")
    if older_than is not None or max_size is not None:
        raise typer.BadParameter("it is for: cache prune.", param_hint="--older-than, --max-size")
    if clear:
        deleted = pi.clear_cache(model=model, cache_dir=cache_dir)
        return print_json({"deleted": deleted}) if as_json else note(f"{deleted:,} deleted")
    if model is not None:
        raise typer.BadParameter("it is for --clear.", param_hint="--model")
    info = pi.cache_info(cache_dir)
    if as_json:
        return print_json({**vars(info), "directory": str(info.directory)})
    say(f"{info.directory}: {info.replies:,} replies, {info.bytes:,} bytes")
    for name, count in info.models.items():
        say(f"  {name}: {count:,}")
    return None


app.command()(formats)
app.command()(reproduce)
app.command()(audit)
app.command()(benchmark)


# Arguments


def _shares(split: list[str]) -> dict[str, float]:
    """Read texts NAME=SHARE as name -> share. Raises typer.BadParameter if a share is no number."""
    try:
        return {name: float(share) for name, share in pairs("--split", split).items()}
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--split") from None


def _refuse_beside(option: str, others: Mapping[str, object]) -> None:
    """Raise typer.BadParameter if one of the other options, as name -> value, is given (is not None)."""
    for name, value in others.items():
        if value is not None:
            raise typer.BadParameter(f"it has no use with {option}.", param_hint=name)


def _table_path(output: str) -> Path:
    """Return the path of a .parquet file to write. Raises InvalidArgumentError as `check_output`."""
    from ..data.table_writer import check_output

    return check_output(output, None)
