"""The command line: files and pipes, exit codes, errors without a traceback, nothing loaded for help."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

import personainfer as pi
from personainfer.cli.commands import app, main
from personainfer.cli.options import PANELS, persona_options
from personainfer.cli.streams import _line, bar_beside_lines
from personainfer.personas.options import RUN_OPTIONS
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import pairs, table, until

ROOT = Path(__file__).parents[2]
# What pip writes as the script, with the entry point of the project.
SCRIPT = (
    "import sys; sys.argv[0] = 'personainfer'; from personainfer.cli.commands import main; main()"
)
COMMANDS = (
    "infer",
    "estimate",
    "verify",
    "export",
    "report",
    "show",
    "cache",
    "formats",
    "reproduce",
    "models",
    "benchmark",
    "audit",
)

Run = Callable[..., Result]
Script = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoked(*arguments: str, given: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=given, prog_name="personainfer")

    return invoked


@pytest.fixture
def reach(llm: FakeLLM) -> list[str]:
    """The options that send a command to the model on loopback."""
    return ["--model", "fake", "--api-base", llm.api_base]


def written(rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def made_table(reach: list[str], run: Run, rows: int = 4) -> str:
    assert run("infer", written(pairs(rows)), "-o", "table.parquet", *reach).exit_code == 0
    return "table.parquet"


@pytest.fixture
def script() -> Iterator[Script]:
    """Starts the console script in a process of its own; none lives longer than a minute."""
    with ExitStack() as stack:

        def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                **options,
            )
            stack.enter_context(process)
            deadline = threading.Timer(60, process.kill)
            deadline.start()
            stack.callback(deadline.cancel)
            stack.callback(process.kill)
            return process

        yield started


def test_every_line_is_json_for_strict_readers(run: Run, reach: list[str]) -> None:
    """Half of a surrogate pair in a row changes nothing else in its line."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "x": float("nan"), "y": [-float("inf")]}
    name = written([{**row, "t": text} for text in ("ok", "\ud83d", {"\ud83d": "\x1b"})])

    def no_constant(text: str) -> None:
        raise AssertionError(text)

    assert run("infer", name, "-o", "out.jsonl", *reach).exit_code == 0
    texts = Path("out.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(text, parse_constant=no_constant) for text in texts]
    assert [(each["x"], each["y"]) for each in found] == [(None, [None])] * 3
    assert [each["t"] for each in found] == ["ok", "\\ud83d", {"\\ud83d": "\x1b"}]


# The script itself


def test_the_project_installs_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["personainfer"].partition(":")
    assert getattr(import_module(module), name) is main


@pytest.mark.heavy
def test_help_loads_nothing_heavy() -> None:
    source = f"""
import sys
for arguments in ("--help", "--version", "infer --help", "export --help"):
    sys.argv[1:] = arguments.split()
    try:
        {SCRIPT}
    except SystemExit:
        pass
    heavy = {{"litellm", "instructor", "pyarrow", "numpy", "aiohttp"}}
    print(arguments, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stderr == "--help []\n--version []\ninfer --help []\nexport --help []\n"
    for said in ("Usage: personainfer", "personainfer 0.", "infer", "export"):
        assert said in done.stdout


@pytest.mark.heavy
def test_help_stands_in_panels_by_subject(run: Run) -> None:
    said = run("infer", "--help").stdout
    panels = [
        "Arguments",
        "Options",
        "The personas",
        "The data",
        "The model",
        "Limits, cost and cache",
    ]
    assert [name for name in panels if f"─ {name} ─" not in said] == []
    assert said.index("─ The model") < said.index("--api-base   ") < said.index("─ Limits")


def test_every_option_of_a_run_has_a_panel() -> None:
    named = [name for names in PANELS.values() for name in names]
    assert sorted(named) == sorted(RUN_OPTIONS.each)


def test_the_version(run: Run) -> None:
    result = run("--version")
    assert (result.stdout, result.exit_code) == (f"personainfer {pi.__version__}\n", 0)


@pytest.mark.heavy
def test_help_names_every_command_and_exit_code(run: Run) -> None:
    said = run("--help").stdout
    for word in (*COMMANDS, "0    done", "3    done, but some rows failed", "130", "141"):
        assert word in said
    for command in COMMANDS:
        assert run(command, "-h").exit_code == 0


def test_it_completes_commands_options_and_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    def completed(line: str) -> str:
        shell = {"_PERSONAINFER_COMPLETE": "complete_bash", "COMP_WORDS": line}
        shell["COMP_CWORD"] = str(len(line.split(" ")) - 1)
        for name, value in shell.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(app, prog_name="personainfer").stdout

    assert set(completed("personainfer e").split()) == {"estimate", "export"}
    assert "--rows-per-call" in completed("personainfer infer --rows")
    assert set(completed("personainfer export t --format trl-d").split()) == {"trl-dpo"}


# infer


def test_lines_in_lines_out(run: Run, reach: list[str]) -> None:
    data = [{**pair, "n": n, "note": "é"} for n, pair in enumerate(pairs(3))]
    result = run("infer", written(data), *reach)
    assert result.exit_code == 0
    found = lines(result.stdout)
    assert [{name: row[name] for name in data[0]} for row in found] == data
    expected = pi.infer_personas(data, "fake", api_base=reach[-1])
    assert [row["chosen_persona"] for row in found] == [str(row.chosen) for row in expected]
    assert {row["persona_error"] for row in found} == {None}
    assert "3 rows, 0 failed" in result.stderr
    assert "é" in result.stdout


def test_a_pipe_in(run: Run, reach: list[str], llm: FakeLLM) -> None:
    text = "".join(json.dumps(pair) + "\n" for pair in pairs(5))
    result = run("infer", "-", *reach, "--limit", "2", given=text)
    assert [row["prompt"] for row in lines(result.stdout)] == ["Question 0?", "Question 1?"]
    assert llm.calls == 2


@pytest.mark.parametrize("source", ["pairs.jsonl", "-"])
def test_the_first_rows_are_read_as_they_are_among_all(
    source: str, run: Run, reach: list[str], llm: FakeLLM
) -> None:
    """A first row with the label 1 was read alone, as if the first response were the chosen one."""
    rows = [
        {"prompt": f"p{n}", "response_1": f"a{n}", "response_2": f"b{n}", "label": label}
        for n, label in enumerate([1, 0, 1])
    ]
    text = Path(written(rows)).read_text(encoding="utf-8")
    asked = ("infer", source, "--limit", "1", *reach)
    refused = run(*asked, given=text)
    assert (refused.exit_code, llm.calls) == (2, 0)
    assert "--label '0=…' --label '1=…'" in refused.stderr
    done = run(*asked, "--label", "0=first", "--label", "1=second", given=text)
    assert [row["prompt"] for row in lines(done.stdout)] == ["p0"]
    assert llm.calls == 1


def test_a_table_out_is_one_that_loads(run: Run, reach: list[str]) -> None:
    table = pi.PersonaTable.load(made_table(reach, run))
    assert len(table) == 4
    assert table.errors == []
    assert table.settings["model"] == "fake"


def test_lines_in_a_file_that_is_whole_or_not_there(run: Run, reach: list[str]) -> None:
    assert run("infer", written(pairs(2)), "-o", "out.jsonl", *reach).exit_code == 0
    assert len(lines(Path("out.jsonl").read_text(encoding="utf-8"))) == 2
    assert sorted(os.listdir()) == ["cache", "out.jsonl", "pairs.jsonl"]
    with FakeLLM(faults=[Fault.status(401)]) as refusing:
        ended = run(
            "infer", "pairs.jsonl", "-o", "b.jsonl", "-m", "x", "--api-base", refusing.api_base
        )
    assert ended.exit_code == 4
    assert "Error: " in ended.stderr
    assert sorted(os.listdir()) == ["cache", "out.jsonl", "pairs.jsonl"]


@pytest.mark.parametrize(
    "told",
    [
        ("--label", "a=second", "--label", "b=first"),
        ("--label", "0=second", "--label", "1=first", "--column", "label=safer"),
        ("--column", "chosen=response_2", "--column", "rejected=response_1"),
    ],
)
def test_lines_tell_how_their_sides_were_read(
    told: tuple[str, ...], run: Run, reach: list[str]
) -> None:
    """Other commands would give each persona to the other response."""
    rows = [
        {"prompt": f"p{n}", "response_1": f"a{n}", "response_2": f"b{n}", "winner": "a", "safer": 1}
        for n in range(2)
    ]
    for output in ("out.jsonl", "table.parquet"):
        assert run("infer", written(rows), "-o", output, *told, *reach).exit_code == 0
    table = pi.PersonaTable.load("table.parquet")
    frame = pd.read_json("out.jsonl", lines=True)
    frame.to_csv("out.csv", index=False)
    frame.to_parquet("out.parquet")
    out = Path("out.jsonl")
    for it in (
        out,
        Path("out.csv"),
        "out.parquet",
        map(json.loads, out.read_text(encoding="utf-8").splitlines()),
        frame,
        pl.read_ndjson(out),
        pl.scan_ndjson(out),
        pa.Table.from_pandas(frame),
    ):
        again = pi.PersonaTable.from_data(it, columns={"prompt": "prompt"})
        assert [(row.preference, str(row.chosen), str(row.rejected)) for row in again] == [
            (row.preference, str(row.chosen), str(row.rejected)) for row in table
        ]
        assert again.to_pandas().columns.tolist() == table.to_pandas().columns.tolist()
    saved = again.save("again.parquet")
    assert pi.PersonaTable.load(saved)[0].preference == table[0].preference
    exported = [run("export", name).stdout for name in ("out.jsonl", "table.parquet")]
    assert exported[0] == exported[1] != ""


@pytest.mark.parametrize("output", ["-", "out.jsonl", "out.parquet"])
def test_rows_that_fail_have_an_exit_code_of_their_own(
    output: str, run: Run, reach: list[str]
) -> None:
    data = written([*pairs(2), {"prompt": "Q?", "chosen": "A", "rejected": "A"}])
    result = run("infer", data, "-o", output, *reach)
    assert result.exit_code == 3
    assert "3 rows" in result.stderr
    assert "1 failed" in result.stderr
    assert "row 2: chosen and rejected are the same text" in result.stderr
    assert run("infer", data, "-o", output, "--on-error", "drop", *reach).exit_code == 0
    assert run("infer", data, "-o", output, "--on-error", "raise", *reach).exit_code == 2


def test_a_summary_for_machines(run: Run, reach: list[str]) -> None:
    data = written([*pairs(2), {"prompt": "Q?", "chosen": "A", "rejected": "A"}])
    result = run("infer", data, "-o", "out.parquet", "--json", *reach)
    told = json.loads(result.stdout)
    assert (told["rows"], told["failed"], told["output"]) == (3, 1, "out.parquet")
    assert told["usage"]["calls"] == 2
    again = run("infer", data, "--json", *reach)  # data on standard output, so it goes beside
    assert json.loads(again.stderr)["usage"]["cached"] == 2
    assert len(lines(again.stdout)) == 3


def test_a_bar_where_it_is_asked_for(
    run: Run, reach: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(pairs(2))
    assert "row/s" in run("infer", data, "--progress", *reach).stderr
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # imported, but this is no notebook
    for quiet in ([], ["--no-progress"]):
        assert "row/s" not in run("infer", data, *quiet, *reach).stderr


def test_failed_rows_are_asked_again_by_the_same_call_or_by_retry(run: Run) -> None:
    data = written(pairs(3))
    with FakeLLM(faults=[Fault.status(400)]) as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base, "--max-concurrency", "1"]
        assert run("infer", data, "-o", "table.parquet", *reach).exit_code == 3
        assert llm.calls == 3
        mended = run("infer", "--retry", "table.parquet", "-o", "mended.parquet", *reach)
        assert (mended.exit_code, llm.calls) == (0, 4)
        assert run("infer", data, "-o", "again.parquet", *reach).exit_code == 0
        assert llm.calls == 4
        assert len(pi.PersonaTable.load("table.parquet").errors) == 1
        alone = run("infer", "--retry", "table.parquet")  # a file never says where a key goes
        assert alone.exit_code == 2
        assert "--api-base" in alone.stderr
        assert run("infer", "--retry", "table.parquet", *reach[2:4]).exit_code == 0
    for name in ("table", "mended", "again"):
        assert pi.PersonaTable.load(f"{name}.parquet").errors == []


def test_a_table_whose_personas_were_selected_can_be_retried_without_a_judge(run: Run) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return {"answer": "1"} if body["model"] == "critic" else None

    with FakeLLM(reply, faults=[Fault.status(400)]) as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base, "--max-concurrency", "1"]
        run("infer", written(pairs(2)), "-o", "t.parquet", *reach, "--judge", "critic")
        asked_for = run("infer", "--retry", "t.parquet", *reach)
        assert asked_for.exit_code == 2
        assert "--judge none keeps what the model writes now" in asked_for.stderr
        mended = run("infer", "--retry", "t.parquet", *reach, "--judge", "none")
    assert mended.exit_code == 0, mended.stderr
    assert (len(llm.requests), llm.requests[-1]["model"]) == (llm.calls, "fake")


def test_a_table_that_cannot_be_replaced_is_no_table_to_retry(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeLLM(faults=[Fault.status(400)]) as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base]
        assert run("infer", written(pairs(1)), "-o", "table.parquet", *reach).exit_code == 3

        def closed(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("personainfer.data.table_writer.unfinished_folder", closed)
        result = run("infer", "--retry", "table.parquet", *reach)
        assert (result.exit_code, llm.calls) == (2, 1)
    assert "cannot be written" in result.stderr


def test_a_look_at_the_first_request_sends_nothing(
    run: Run, reach: list[str], llm: FakeLLM
) -> None:
    bad = {"prompt": "", "chosen": "A", "rejected": "B"}
    data = written([bad, *pairs(2)])
    body = json.loads(run("infer", data, "--dry-run", "--json", "--seed", "7", *reach).stdout)
    assert (body["model"], body["seed"]) == ("fake", 7)
    assert "Question 0?" in body["messages"][-1]["content"]
    text = run("infer", data, "--dry-run", *reach).stdout
    assert "--- system\n" in text
    assert body["messages"][-1]["content"] in text
    assert llm.calls == 0
    unusable = run("infer", written([bad]), "--dry-run", *reach)
    assert unusable.exit_code == 2
    assert "prompt is empty" in unusable.stderr


def test_candidates_are_chosen_by_a_judge(run: Run) -> None:
    def reply(request: Any) -> Reply | None:
        return Reply({"answer": "1"}) if request["model"] == "critic" else None

    with FakeLLM(reply=reply) as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base, "--judge", "critic"]
        result = run("infer", written(pairs(1)), "--candidates", "2", "-o", "t.parquet", *reach)
    assert result.exit_code == 0  # a judge that always says 1 explains nothing: no failure
    assert "1 row with a choice that no candidate explains" in result.stderr
    assert len(pi.PersonaTable.load("t.parquet")[0].chosen_candidates) == 2


@pytest.mark.parametrize(
    ("model", "judge", "more", "is_told"),
    [
        ("openai/a", "openai/b", {}, True),
        ("gpt-4o", "gpt-4o-mini", {}, True),
        ("openai/a", "anthropic/b", {}, False),
        ("gpt-4o", "o3-mini", {}, True),
        ("openai/gpt-4o", "gpt-4o-mini", {}, True),
        ("gpt-4o", "claude-sonnet-4-5", {}, False),
        ("openai/a", "litellm/anthropic/b", {}, False),
        ("gpt-4o", "claude-x", {}, False),
        ("openai/a", "anthropic/b", {"api_base": "http://127.0.0.1:9/v1"}, True),
    ],
)
def test_a_key_is_told_to_no_judge_of_another_company(
    model: str, judge: str, more: dict[str, str], is_told: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr("personainfer.evaluation.verification.Verifier", lambda _, **told: told)
    said = {"judge": judge, "api_key": "a key", "extra_header": ["X-Gateway=a secret"], **more}
    told = persona_options(said, model)["select"]
    assert ("api_key" in told, "extra_headers" in told) == (is_told, is_told)


@pytest.mark.parametrize("judge", ["fake", "critic"])
def test_the_budget_holds_for_the_judge_too(run: Run, judge: str) -> None:
    with FakeLLM() as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base, "--judge", judge, "--no-cache"]
        priced = [*reach, "--prices", "1000", "1000", "--candidates", "2"]
        result = run("infer", written(pairs(8)), "-o", "t.parquet", *priced, "--budget", "9")
        assert len(llm.paths) == llm.calls
    if judge == "critic":  # whose price nobody tells
        assert result.exit_code == 2
        assert "the price of the judge 'critic' is not known" in result.stderr
        assert llm.calls == 0
        return
    told = re.findall(r"(\d+) calls?, 0 from the cache, cost \$([\d.]+)", result.stderr)
    assert sum(int(calls) for calls, _ in told) == llm.calls
    assert len(told) == 2
    assert sum(float(cost) for _, cost in told) <= 9


def test_columns_of_other_names(run: Run, reach: list[str]) -> None:
    data = written([{"q": "Q?", "this": "A", "that": "B"}])
    named = ["--column", "prompt=q", "--column", "chosen=this", "--column", "rejected=that"]
    assert run("infer", data, *named, *reach).exit_code == 0
    unknown = run("infer", data, *reach)
    assert unknown.exit_code == 2
    assert "'q'" in unknown.stderr
    assert "Error: no preference data recognised" in unknown.stderr
    assert "--column 'prompt=…' --column 'chosen=…'" in unknown.stderr  # a shell's own words
    assert "columns={" not in unknown.stderr
    assert run("infer", data, "--column", "promt=q", *reach).exit_code == 2


@pytest.mark.parametrize(
    ("name", "content"), [("pairs.csv", "prompt,chosen,rejected\n"), ("pairs.jsonl", "")]
)
@pytest.mark.parametrize("output", [[], ["-o", "made.parquet"], ["-o", "made.jsonl"]])
def test_data_without_rows_says_so_and_suggests_nothing(
    name: str, content: str, output: list[str], run: Run, reach: list[str]
) -> None:
    Path(name).write_text(content)
    told = run("infer", name, *output, *reach)
    assert told.exit_code == 0
    estimated = run("estimate", name, *reach)
    for done in (told, estimated):
        assert f"Warning: no row came: {name} holds none." in done.stderr
        assert "Next:" not in done.stderr


def test_text_that_is_no_utf8_costs_its_row(run: Run, reach: list[str]) -> None:
    Path("pairs.csv").write_bytes(b"prompt,chosen,rejected\nQ?,A\xff,B\nR?,A,B\n")
    result = run("infer", "pairs.csv", *reach)
    assert result.exit_code == 3
    assert [bool(row["persona_error"]) for row in lines(result.stdout)] == [True, False]


def test_rows_that_failed_are_named_up_to_three_and_then_counted(run: Run) -> None:
    reach = ["--model", "fake", "--api-base", "http://127.0.0.1:1/v1", "--max-attempts", "1"]
    one = run("infer", written(pairs(1)), "-o", "out.parquet", *reach)
    assert one.stderr.startswith("1 row in out.parquet, 1 failed\n0 calls, 0 from the cache")
    assert "  row 0: the connection to" in one.stderr
    assert "is this its address" in one.stderr
    assert "more" not in one.stderr
    five = run("infer", written(pairs(5)), *reach)
    assert five.exit_code == 3
    assert five.stderr.endswith("\n  … and 2 more; persona_error says why\n")
    assert five.stderr.count("  rows 0, 1, 2: the connection to") == 1
    assert "is this its address" in lines(five.stdout)[0]["persona_error"]


def test_what_cannot_help_is_not_suggested_next(run: Run, reach: list[str]) -> None:
    same = {"prompt": "Q?", "chosen": "A", "rejected": "A"}
    bad = run("infer", written([*pairs(1), same]), "-o", "out.parquet", *reach)
    assert "--retry" not in bad.stderr
    assert "Next: personainfer show out.parquet" in bad.stderr
    reach = ["--model", "fake", "--api-base", "http://127.0.0.1:1/v1", "--max-attempts", "1"]
    unreached = run("infer", written(pairs(1)), "-o", "out.parquet", *reach)
    assert "Next: personainfer infer --retry out.parquet" in unreached.stderr
    assert "personainfer show" not in unreached.stderr


# Mistakes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("infer", "Missing argument 'DATA'"),
        ("infer nowhere.jsonl", "file not found"),
        ("infer pears.jsonl", "file not found: 'pears.jsonl'. Nearest in '.' is 'pairs.jsonl'."),
        (
            "infer pairs.jsnol",
            "Supported are .jsonl, .json, .csv (also with .gz), .parquet, hf:own",
        ),
        ("estimate pairs.jsonl --model local:none", "--model 'local:none'"),
        ("infer nowhere.jsonl --model nonsense", "file not found"),
        ("infer pairs.jsonl -o out.csv", "'out.csv' is neither"),
        ("infer pairs.jsonl -o no/out.jsonl", "in a folder that exists"),
        ("infer pairs.jsonl -o ./pairs.jsonl", "is the input"),
        ("infer pairs.jsonl -o mine.jsonl", "exists and is not a file of lines that infer wrote"),
        ("infer pairs.jsonl -o no/out.parquet", "there is no folder"),
        ("infer pairs.jsonl --modle fake", "No such option: --modle"),
        ("infer pairs.jsonl --sides left", "'left' is not one of"),
        ("infer pairs.jsonl --limit 0", "Invalid value for '--limit'"),
        ("infer pairs.jsonl --column question", "'question' is not NAME=VALUE"),
        (
            "infer pairs.jsonl --label 1=first --label 1=tie",
            "'1=tie' gives a value to a name a sec",
        ),
        ("infer pairs.jsonl --extra-header a=b=c --extra-header a=d", "a header gives a value"),
        ("infer pairs.jsonl --column question=prompt", "--column has no 'question': ours"),
        (
            "infer pairs.jsonl --column prompt=question",
            "--column: columns['prompt'] is 'question', which is",
        ),
        ("infer pairs.jsonl --temperature 9", "--temperature 9.0 must be between"),
        ("infer pairs.jsonl --candidates 2", "more than one needs --judge"),
        ("infer pairs.jsonl -o taken.jsonl", "'taken.jsonl' is neither"),
        ("infer pairs.jsonl --dry-run --retry", "it has no use with --dry-run"),
        ("infer pairs.jsonl --budget 1", "price of 'fake' is not known"),
        ("infer --retry pairs.jsonl", "is not a table of personas"),
        ("infer --retry nowhere.parquet", "file not found: 'nowhere.parquet'"),
        ("infer --retry table.parquet --limit 2", "it has no use with --retry"),
        ("infer --retry table.parquet -o out.jsonl", "not a path that ends in .parquet"),
        ("infre pairs.jsonl", "Did you mean 'infer'?"),
        ("export nowhere.parquet", "does not exist"),
        ("export pairs.jsonl", "is not a table of personas"),
        ("export table.parquet --format trl-dop", "Did you mean 'trl-dpo'?"),
        ("export table.parquet -o rows.csv", "--output 'rows.csv' is neither a folder nor"),
        ("export table.parquet --format dpo", "--format 'dpo' is not known"),
        ("export table.parquet -o table.parquet", "is a table of personas"),
        ("export table.parquet -o set --split train", "'train' is not NAME=VALUE"),
        ("export table.parquet -o set --split train=most", "could not convert"),
        ("export table.parquet -o set --split train=0.5", "add up to 0.5"),
        ("export table.parquet --drop-flag refused", "--drop-flag 'refused'"),
        ("export table.parquet --template nothing", "--template 'nothing'"),
        ("report table.parquet -o page.pdf", "--output 'page.pdf': a report is an .html file"),
        ("verify table.parquet", "Missing option '--judge'"),
        ("verify table.parquet --judge fake -o out.csv", "not a path that ends in .parquet"),
        ("cache --model fake", "it is for --clear"),
        ("cache prune --older-than 1 --model fake", "it has no use with prune"),
        ("cache prune --older-than 1 --clear", "it has no use with prune"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_sent(
    line: str, said: str, run: Run, reach: list[str], llm: FakeLLM
) -> None:
    table().save("table.parquet")
    written(pairs(1))
    Path("taken.jsonl").mkdir()
    Path("mine.jsonl").write_text("notes")
    before = sorted(os.listdir())
    where = reach if line.startswith("infer pairs.jsonl") else []
    result = run(*shlex.split(line), *where)
    assert result.exit_code == 2
    assert " ".join(result.stderr.split()).replace("' '", "''").count(said) == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted({*os.listdir()} - {"cache"}) == before
    assert llm.calls == 0


def test_a_bug_is_not_taken_for_a_mistake(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pi, "cache_info", broken)
    result = run("cache")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


# The other commands


def test_estimate(run: Run, reach: list[str], llm: FakeLLM) -> None:
    data = written([*pairs(3), {"prompt": "", "chosen": "A", "rejected": "B"}])
    priced = [*reach, "--prices", "1", "2"]
    found = json.loads(run("estimate", data, "--json", *priced).stdout)
    direct = pi.estimate_cost(data, "fake", api_base=llm.api_base, prices=(1.0, 2.0))
    assert found == direct.model_dump()
    text = run("estimate", data, *reach).stdout
    assert "4 rows, 1 of which cannot be used" in text
    assert "cost unknown: --prices says" in text
    assert json.loads(run("estimate", data, "--limit", "1", "--json", *reach).stdout)["rows"] == 1
    assert llm.calls == 0


def test_an_estimate_says_what_a_judge_takes_besides(
    run: Run, reach: list[str], llm: FakeLLM
) -> None:
    data, asked = written(pairs(3)), [*reach, "--judge", "j"]
    found = json.loads(run("estimate", data, "--json", *asked).stdout)
    told = run("estimate", data, *asked).stdout
    assert f"up to {found['judge_calls']} calls of the judge" in told
    llm.reply = lambda body: {"answer": "1"} if body["model"] == "j" else None
    run("infer", data, "-o", "t.parquet", *asked)
    judged = sum(body["model"] == "j" for body in llm.requests)
    assert found["judge_calls"] == judged == llm.calls - found["calls"] == 12


def test_verify(run: Run, reach: list[str]) -> None:
    made = made_table(reach, run)
    with FakeLLM(reply=lambda request: Reply({"answer": "1"})) as judge:
        asked = ["--judge", "critic", "--api-base", judge.api_base]
        result = run("verify", made, "-o", "judged.parquet", *asked)
        told = json.loads(run("verify", made, "--json", *asked).stdout)
    assert result.exit_code == 0
    assert "Verification by critic" in result.stdout
    assert told["overall"]["accuracy"]["value"] == 0.5
    judged = pi.PersonaTable.load("judged.parquet")
    assert judged.added["chosen_verified_score"] == [0.5] * 4
    assert judged.settings["verified_by"] == "critic"


def test_columns_of_a_table_need_no_names(llm: FakeLLM, run: Run) -> None:
    """The judge was paid, and then its verdicts could not be saved."""
    table().save("t.parquet")
    judge = ["--judge", "j", "--api-base", llm.api_base]
    wrong = run("verify", "t.parquet", *judge, "--column", "prompt=prompt")
    assert wrong.exit_code == 2
    assert "--column" in wrong.stderr
    assert "leave this out" in wrong.stderr
    assert llm.calls == 0


def test_verify_says_where_the_judge_failed(run: Run, reach: list[str]) -> None:
    made = made_table(reach, run)

    def reply(request: Any) -> Reply:
        text = json.dumps(request["messages"])
        return Reply({"answer": "1"} if "Question 0" in text else "neither of them")

    with FakeLLM(reply=reply) as judge:
        result = run("verify", made, "--judge", "critic", "--api-base", judge.api_base)
        dead = run("verify", made, "--judge", "critic", "--api-base", "http://127.0.0.1:9/v1",
                   "--max-attempts", "1")  # fmt: skip
    assert result.exit_code == 3
    assert dead.exit_code == 4
    assert "Traceback" not in dead.stderr


def test_export(run: Run, reach: list[str]) -> None:
    made = made_table(reach, run, rows=40)
    splits = ["--split", "train=0.5", "--split", "test=0.5"]
    result = run("export", made, "-o", "set", "-f", "trl-kto", "--persona", "both", *splits)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "trl-kto: train " in result.stderr
    names = sorted(str(p.relative_to("set")) for p in Path("set").rglob("*") if p.is_file())
    assert names == ["README.md", "data/test.parquet", "data/train.parquet"]
    told = json.loads(run("export", made, "-o", "set", "--json", *splits).stdout)
    assert sum(told["rows"].values()) == 40
    assert told["card"] == "set/README.md"
    named = run("export", made, "-o", "a set; rm x", "-f", "trl-kto")
    assert "--dataset_name 'a set; rm x'" in named.stderr


def test_export_to_a_pipe(run: Run, reach: list[str]) -> None:
    made = made_table(reach, run)
    plain = ["--persona-in", "plain", "--persona", "rejected", "--drop-flag", "refusal"]
    result = run("export", made, *plain, "--title", "unused")
    expected = pi.tailoring_rows(pi.PersonaTable.load(made), persona="rejected", persona_in="plain")
    assert lines(result.stdout) == list(expected)
    beside = run("export", made, *plain, "--json")
    assert json.loads(beside.stderr)["rows"] == {"train": 4}


def test_report(run: Run, reach: list[str]) -> None:
    made = made_table(reach, run)
    result = run("report", made, "-o", "page.html", "--title", "Tea drinkers")
    assert result.stdout == "page.html\n"
    assert "Tea drinkers" in Path("page.html").read_text(encoding="utf-8")
    again = run("report", made, "-o", "page.html", "--json")
    assert json.loads(again.stdout) == {"report": "page.html"}


def test_cache(run: Run, reach: list[str]) -> None:
    made_table(reach, run)
    told = json.loads(run("cache", "--json").stdout)
    assert (told["replies"], told["models"]) == (4, {"fake": 4})
    assert "4 replies" in run("cache").stdout
    assert "fake: 4" in run("cache").stdout
    assert "0 deleted" in run("cache", "--clear", "-m", "other").stderr
    assert json.loads(run("cache", "--clear", "--json").stdout) == {"deleted": 4}
    assert json.loads(run("cache", "--json").stdout)["replies"] == 0


def test_formats(run: Run) -> None:
    text = run("formats").stdout
    for said in (".jsonl", "PKU-SafeRLHF", "trl-dpo: prompt, chosen, rejected (DPOTrainer)"):
        assert said in text
    told = json.loads(run("formats", "--json").stdout)
    assert told["exports"]["trl-kto"]["columns"] == "prompt, completion, label"


# Processes: pipes and signals


@pytest.mark.heavy
def test_rows_come_through_a_pipe_before_it_ends(script: Script) -> None:
    with FakeLLM() as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base, "--max-concurrency", "1"]
        process = script("infer", "-", *reach)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.writelines(json.dumps(pair) + "\n" for pair in pairs(60))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["prompt"] == "Question 0?"
        process.stdin.close()
        assert len(process.stdout.readlines()) == 59
        assert process.wait() == 0


@pytest.mark.heavy
def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path: Path, script: Script) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs(2000)))
    with FakeLLM(latency=0.01) as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base, "--max-concurrency", "4"]
        process = script("infer", "pairs.jsonl", *reach, cwd=tmp_path)
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["prompt"] == "Question 0?"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
        assert llm.calls < 2000


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send there")
@pytest.mark.heavy
@pytest.mark.parametrize("output", ["-", "out.parquet"])
def test_an_interrupted_run_goes_on_from_the_cache(
    output: str, tmp_path: Path, script: Script
) -> None:
    rows = 400
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs(rows)))
    with FakeLLM(latency=0.01) as llm:
        reach = ["--model", "fake", "--api-base", llm.api_base, "--max-concurrency", "4"]
        line = ["infer", "pairs.jsonl", "-o", output, *reach]
        process = script(*line, cwd=tmp_path)
        until(lambda: llm.calls > 40 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
        assert process.returncode == 130
        assert error.startswith("Error: interrupted")
        assert error.count("\n") == 1
        assert llm.calls < rows
        assert not list(tmp_path.glob("*.parquet"))
        llm.latency = 0.0
        again = script(*line, cwd=tmp_path)
        _, error = again.communicate()
        assert again.returncode == 0, error
        assert llm.calls <= rows + 4  # what was in flight is asked again, nothing else


@pytest.mark.heavy
def test_the_lines_of_the_guide_run(tmp_path: Path) -> None:
    """Every shell block of docs/cli.md that asks the guide's endpoint, in one shell, as a reader would."""
    guide = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    blocks = [one for one in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) if "$AT" in one]
    assert len(blocks) == 3
    written(pairs(8), str(tmp_path / "pairs.jsonl"))
    shell = f'set -e\npersonainfer() {{ {shlex.quote(sys.executable)} -c {shlex.quote(SCRIPT)} "$@"; }}\n'
    with FakeLLM(reply=_judged) as llm:
        lines_of = shell + "\n".join(blocks).replace("http://localhost:8000/v1", llm.api_base)
        done = subprocess.run(
            ["bash", "-c", lines_of],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "three.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    card = (tmp_path / "tailored" / "README.md").read_text(encoding="utf-8")
    assert "`judge-model` saw a persona" in card
    assert (tmp_path / "personas.html").exists()


def _judged(request: Any) -> Reply | None:
    return Reply({"answer": "1"}) if request["model"] == "judge-model" else None


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform == "win32", reason="a shell there cannot close a stream")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("infer - {reach} <&-", 2, "standard input is closed"),
        ("infer pairs.jsonl {reach} >&-", 2, "standard output is closed"),
        ("estimate pairs.jsonl {reach} >&-", 0, ""),
        ("infer pairs.jsonl -o rows.jsonl {reach} 2>&-", 0, ""),
    ],
)
def test_a_closed_stream_is_no_bug(
    line: str, code: int, said: str, reach: list[str], tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs(2)))
    done = subprocess.run(
        [
            *("sh", "-c", f'exec "$0" -c "$1" {line.format(reach=shlex.join(reach))}'),
            *(sys.executable, SCRIPT),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "rows.jsonl").exists() is ("rows.jsonl" in line)


@pytest.mark.heavy
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.ESTALE, None])
@pytest.mark.parametrize("output", ["rows.jsonl", "table.parquet"])
def test_an_output_that_fails_after_the_calls_is_no_wrong_argument(
    run: Run, reach: list[str], llm: FakeLLM, output: str, number: int | None, monkeypatch: Any
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("gone") if number is None else OSError(number, os.strerror(number))

    for module in ("local.atomic_files", "data.table_writer"):
        monkeypatch.setattr(f"personainfer.{module}.put_in_place", fails)
    result = run("infer", written(pairs(2)), "-o", output, *reach)
    assert (result.exit_code, llm.calls) == (4, 2)
    assert (os.strerror(number) if number else "gone") in result.stderr
    assert not list(Path().glob(f"*{output}*"))


def test_a_full_disk_is_no_wrong_argument_of_an_export(run: Run, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    table = pi.PersonaTable.from_data(
        [{**pairs(1)[0], "chosen_persona": "A.", "rejected_persona": "B."}]
    )
    table.save("table.parquet")
    monkeypatch.setattr("personainfer.local.atomic_files.put_in_place", full)
    assert run("export", "table.parquet", "-o", "rows.jsonl").exit_code == 4


def test_an_output_that_cannot_be_begun_is_a_wrong_argument(
    run: Run, reach: list[str], llm: FakeLLM, monkeypatch: Any
) -> None:
    def closed(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("personainfer.local.atomic_files._new_file", closed)
    result = run("infer", written(pairs(1)), "-o", "rows.jsonl", *reach)
    assert (result.exit_code, llm.calls) == (2, 0)
    assert "cannot be written: Permission denied" in result.stderr


def test_a_pipe_that_holds_something_else_is_refused(
    run: Run, reach: list[str], llm: FakeLLM
) -> None:
    result = run("infer", "-", *reach, given="prompt,chosen,rejected\nWhy?,Yes.,No.\n")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "none of its first 2 rows can be read" in result.stderr
    assert "line 1 is not JSON: Expecting value. Correct" in result.stderr
    mixed = run("infer", "-", *reach, given='nothing\n{"prompt":"Q","chosen":"A","rejected":"B"}\n')
    assert mixed.exit_code == 3
    assert llm.calls == 1


# Details


def test_details_are_written_beside_the_personas(run: Run, reach: list[str]) -> None:
    name = written(pairs(2))
    plain = lines(run("infer", name, *reach).stdout)
    detailed = lines(run("infer", name, "--details", *reach).stdout)
    assert [{**row, **more} for row, more in zip(plain, detailed, strict=True)] == detailed
    for row in detailed:
        sentence = f"The user is {row['chosen_trait']} and prefers {row['chosen_preference']}."
        assert row["chosen_persona"] == sentence
        assert row["chosen_evidence"]
        assert isinstance(row["rejected_flags"], list)


@pytest.mark.parametrize("arguments", [("--dry-run",), ("-o", "table.parquet"), ("--retry",)])
def test_details_are_refused_where_they_have_no_place(
    arguments: tuple[str, ...], run: Run, reach: list[str], llm: FakeLLM
) -> None:
    result = run("infer", written(pairs(1)), "--details", *arguments, *reach)
    assert (result.exit_code, llm.requests) == (2, [])
    assert "--details" in result.stderr


def test_details_do_not_replace_a_column_of_the_data(
    run: Run, reach: list[str], llm: FakeLLM
) -> None:
    result = run("infer", written([{**pairs(1)[0], "chosen_trait": "x"}]), "--details", *reach)
    assert (result.exit_code, llm.calls) == (2, 0)
    assert "a column chosen_trait already" in result.stderr


# For people


def told_in_a_terminal(arguments: list[str], folder: Path, columns: int = 72) -> tuple[str, str]:
    """What the script prints, out and err, where standard output is a terminal that wide."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=theirs,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT)},
    ) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            told += part
        assert process.stderr is not None
        beside = process.stderr.read().decode()
    os.close(ours)
    return told.decode().replace("\r\n", "\n"), beside


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_in_a_terminal_rows_are_printed_to_read(tmp_path: Path, reach: list[str]) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(2)), encoding="utf-8")
    told, beside = told_in_a_terminal(["infer", str(data), *reach], tmp_path)
    assert told.startswith("0  Question 0?\n  chosen ")
    assert "The user is" in told
    assert "{" not in told
    assert max(map(len, told.splitlines())) <= 72
    assert "2 rows, 0 failed" in beside
    assert f"Next: personainfer infer {data} -o personas.parquet" in beside


@pytest.mark.heavy
def test_in_a_terminal_lines_are_printed_where_they_are_asked_for(
    tmp_path: Path, reach: list[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs(2)), encoding="utf-8")
    lines_of, _ = told_in_a_terminal(["infer", str(data), "-o", "-", *reach], tmp_path)
    assert [row["prompt"] for row in lines(lines_of)] == ["Question 0?", "Question 1?"]
    detailed, _ = told_in_a_terminal(["infer", str(data), "--details", *reach], tmp_path)
    assert "chosen_trait" in lines(detailed)[0]


def test_show_fits_the_width_and_says_what_is_next(run: Run, reach: list[str]) -> None:
    from rich.cells import cell_len

    texts = ["tea \x1b[2J\x07 and \u202e" + "long words " * 90, "你好世界" * 90, "x" * 500]
    data = [{"prompt": text, "chosen": text, "rejected": "No."} for text in texts]
    assert run("infer", written(data), "-o", "my table.parquet", *reach).exit_code == 0
    for width in (24, 59, 60, 100):
        told = run("show", "my table.parquet", "--width", str(width))
        assert told.exit_code == 0
        assert max(map(cell_len, told.stdout.splitlines())) <= width
        assert not set("\x1b\x07\u202e") & set(told.stdout)
    assert "Next: personainfer report 'my table.parquet' -o 'my table.html'" in told.stderr
    one = run("show", "my table.parquet", "-n", "1")
    assert "… and 2 rows more" in one.stdout
    assert "personainfer show 'my table.parquet' -n 3" in one.stderr


def test_show_prints_what_each_response_says_and_who_prefers_it(run: Run) -> None:
    persona = {"chosen_persona": "Someone in a hurry.", "rejected_persona": "Someone with time."}
    name = written([{"prompt": "Tea?", "chosen": "Yes.", "rejected": "It depends.", **persona}])
    told = run("show", name, "--width", "80").stdout
    first, chosen, rejected = told.splitlines()[:3]
    assert first == "0  Tea?"
    assert chosen.split("  ")[1:2] == ["chosen"]
    assert 0 < chosen.index("Yes.") < chosen.index("Someone in a hurry.")
    assert "It depends." in rejected
    assert "Someone with time." in rejected


def test_the_next_command_names_the_columns_again(run: Run) -> None:
    rows = [
        {
            "q": f"Tea {n}?",
            "this": "Yes.",
            "that": "No.",
            "chosen_persona": "Someone.",
            "rejected_persona": "Another.",
        }
        for n in range(2)
    ]
    named = ["--column", "prompt=q", "--column", "chosen=this", "--column", "rejected=that"]
    told = run("show", written(rows), *named, "-n", "1")
    following = re.findall(r"personainfer (.+)", told.stderr)
    assert [command.split()[0] for command in following] == ["show", "report"]
    for command in following:
        assert run(*shlex.split(command)).exit_code == 0


def test_the_next_command_is_one_that_works(run: Run, reach: list[str]) -> None:
    made = run("infer", written(pairs(1)), "-o", "table.parquet", *reach)
    following = re.findall(r"personainfer (.+)", made.stderr)
    assert following == ["show table.parquet", "report table.parquet -o table.html"]
    for command in following:
        assert run(*shlex.split(command)).exit_code == 0
    assert Path("table.html").is_file()


def test_no_bar_is_mixed_into_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pipe's reader may print to the terminal where the bar would be; a file does not."""
    assert bar_beside_lines(True) is True
    with open(tmp_path / "rows.jsonl", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert bar_beside_lines(None) is None
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe, os.fdopen(read):
        monkeypatch.setattr(sys, "stdout", pipe)
        assert bar_beside_lines(None) is False


def test_personas_of_others_are_verified_from_a_file(run: Run) -> None:
    persona = {"chosen_persona": "Someone in a hurry.", "rejected_persona": "Someone with time."}
    name = written([{**pair, **persona} for pair in pairs(2)])
    with FakeLLM(reply=_judged) as llm:
        told = run("verify", name, "--judge", "judge-model", "--api-base", llm.api_base)
    assert told.exit_code == 0
    assert "accuracy" in told.stdout


def test_labels_of_a_coding_of_ones_own_are_told(reach: list[str], run: Run) -> None:
    responses = {"response_1": "one", "response_2": "other"}
    data = written([{"prompt": f"Q{n}?", **responses, "label": n} for n in range(3)])
    refused = run("infer", data, "-o", "table.parquet", *reach)
    assert refused.exit_code == 2
    assert "--label" in refused.output
    told = [part for label in ("0=first", "1=second", "2=tie") for part in ("--label", label)]
    assert run("infer", data, "-o", "table.parquet", *told, *reach).exit_code == 3  # one is a tie
    first, second, tie = pi.PersonaTable.load("table.parquet")
    assert first.preference is not None
    assert second.preference is not None
    assert (first.preference.chosen, second.preference.chosen) == ("one", "other")
    assert "tie" in str(tie.error)


def test_filters_of_data_are_options(run: Run, reach: list[str], llm: FakeLLM) -> None:
    shp = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 30}
    votes = written([{**shp, "score_B": 10}, {**shp, "history": "r", "score_B": 9}])
    result = run("infer", votes, "-o", "votes.parquet", "--min-votes", "10", *reach)
    assert llm.calls == 1, result.output
    assert [row.error is None for row in pi.PersonaTable.load("votes.parquet")] == [True, False]
    pku = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}
    marks = {"is_response_0_safe": False, "is_response_1_safe": False}
    safe = written([{**pku, **marks}, {**pku, **marks, "is_response_1_safe": True, "prompt": "r"}])
    result = run("infer", safe, "-o", "safe.parquet", "--safe-rejected", *reach)
    assert llm.calls == 2, result.output
    assert [row.error is None for row in pi.PersonaTable.load("safe.parquet")] == [False, True]


def test_columns_of_other_names_hold_personas_too(run: Run) -> None:
    row = {
        "q": "Tea?",
        "a": "Yes.",
        "b": "It depends.",
        "who": "Someone in a hurry.",
        "other": "Else.",
    }
    name = written([row] * 3)
    named = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_persona": "who"}
    line = [f"--column={ours}={yours}" for ours, yours in named.items()]
    told = run("show", name, *line, "--column", "rejected_persona=other")
    assert told.exit_code == 0, told.stderr
    assert "Someone in a hurry." in told.stdout
    for command in (["report", name, "-o", "page.html"], ["export", name, "-o", "rows.jsonl"]):
        assert run(*command, *line, "--column", "rejected_persona=other").exit_code == 0
    missing = run("show", name, *line, "--column", "rejected_persona=nobody")
    assert missing.exit_code == 2
    assert "nobody" in missing.stderr
    plain = run("show", written(pairs(1)))
    assert "--column chosen_persona=…" in plain.stderr


def test_a_label_may_hold_an_equals_sign() -> None:
    options = {"label": ["A>=B=first", "A<B=second"], "column": ["label=a=b"]}
    found = persona_options(options, None)
    assert found == {
        "labels": {"A>=B": "first", "A<B": "second"},
        "columns": {"label": "a=b"},
    }


def test_a_stream_without_the_letter_shows_its_escape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows gives a file or a pipe its own code page."""
    monkeypatch.chdir(tmp_path)
    table(2).save("\u62a5.parquet")
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(
        sys, "argv", ["personainfer", "report", "\u62a5.parquet", "-o", "\u544a.html"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out.seek(0)
    assert "\\u544a.html" in out.read()


def test_lines_hold_nanoseconds() -> None:
    moment, span = pd.Timestamp(1), pd.Timedelta(2)
    own = {"a": moment, "b": [moment, {"c": span}], "d": [1.5], "e": pd.Timestamp(1_000)}
    line = json.loads(_line(pi.PersonaRow(0, None, error="none", columns=own), False))
    assert line["a"] == "1970-01-01 00:00:00.000000001"
    assert line["b"] == [line["a"], {"c": "0 days 00:00:00.000000002"}]
    assert (line["d"], line["e"]) == ([1.5], "1970-01-01T00:00:00.000001")
