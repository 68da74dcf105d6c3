"""Rows a second: this library, bare loops and its peers, side by side against one loopback server.

Each contender runs as a fresh process, and the rounds are interleaved, so that drift of the machine
hits all alike. `python benchmarks/throughput.py [--rounds 5] [--only NAME …] [--scale 1.0]`

Both checkouts ask with their own exemplars. `--exemplars none` leaves them out, which compares the work of
the library alone where one checkout has longer ones.

`--beside FOLDER` also runs the code of another checkout and prints a table on standard error: what this one
takes of the time and of the memory of that one, for each contender of this library.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import server

import personainfer as pi
from personainfer.personas.prompts import PersonaPrompt, pair_message

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".venvs"
CONCURRENCY = 64
LATENCY = 0.05  # seconds, where there is one
TIMEOUT = 600.0  # seconds for one run of one contender


@dataclass(frozen=True)
class Contender:
    """A script of `contenders`, how many rows it gets, and what sets it apart."""

    script: str
    rows: int
    model: str = "fake"
    environment: str = ""  # a folder of .venvs; empty: this one
    latency: float = 0.0
    warm: bool = False  # on the cache that the contender named "ours" has just filled
    checkout: Path = HERE.parent  # whose code of this library is imported


# Slow contenders get fewer rows; all get enough that a run takes seconds.
CONTENDERS = {
    "aiohttp": Contender("bare_aiohttp", 20_000),
    "ours": Contender("this_library", 20_000),
    "ours, warm": Contender("this_library", 20_000, warm=True),
    "instructor": Contender("bare_instructor", 1_500),
    "ours, litellm": Contender("this_library", 1_500, model="litellm/openai/fake"),
    "curator": Contender("curator_llm", 2_000, environment="curator"),
    "accrue": Contender("accrue_pipeline", 2_000, environment="accrue"),
    "ondine": Contender("ondine_pipeline", 2_000, environment="ondine"),
    "distilabel": Contender("distilabel_pipeline", 3_000, environment="distilabel"),
    "sockets, 50 ms": Contender("bare_sockets", 12_800, latency=LATENCY),
    "aiohttp, 50 ms": Contender("bare_aiohttp", 12_800, latency=LATENCY),
    "ours, 50 ms": Contender("this_library", 12_800, latency=LATENCY),
}
BESIDE = ", beside"  # ends the name of a contender from the other checkout
PEERS = ("curator", "accrue", "ondine", "distilabel")


def main() -> None:
    """Run the rounds and print what came of them as one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument(
        "--exemplars", choices=["default", "none"], default="default", help="none: short requests"
    )
    parser.add_argument("--beside", type=Path, help="another checkout, measured side by side")
    options = parser.parse_args()
    results = measure(
        options.rounds, options.only, options.scale, options.beside, options.exemplars
    )
    json.dump(results, sys.stdout, indent=1)
    print()
    if options.beside:
        print(_ratios(results), file=sys.stderr)


def measure(
    rounds: int,
    names: list[str],
    scale: float = 1.0,
    beside: Path | None = None,
    exemplars: Literal["default", "none"] = "default",
) -> dict[str, Any]:
    """By contender, rows a second of each round, or why there are none."""
    asked = _request(exemplars)
    contenders = {}
    for name in names:
        contenders[name] = CONTENDERS[name]
        if beside and CONTENDERS[name].script == "this_library":
            contenders[name + BESIDE] = replace(CONTENDERS[name], checkout=beside.absolute())
    results: dict[str, Any] = {name: {"rates": [], "cpu": [], "memory": []} for name in contenders}
    with server.running() as at_once, server.running(LATENCY) as late:
        for number in range(rounds):
            with tempfile.TemporaryDirectory(prefix="personainfer-bench-") as folder:
                for name in _order(contenders, number):
                    contender, result = contenders[name], results[name]
                    if "problem" in result:
                        continue
                    api_base = late if contender.latency else at_once
                    found = _run(contender, api_base, Path(folder), scale, asked)
                    _note(result, found)
                    said = result.get("problem") or f"{result['rates'][-1]:,.0f} rows/s"
                    print(f"round {number + 1}: {name}: {said}", file=sys.stderr, flush=True)
    return results


def _order(names: Iterable[str], number: int) -> list[str]:
    """The names in the order of a round: of two checkouts each goes first in every other round."""
    pairs = groupby(names, key=lambda name: name.removesuffix(BESIDE))
    return [name for _, pair in pairs for name in list(pair)[:: -1 if number % 2 else 1]]


def _ratios(results: dict[str, Any]) -> str:
    """A table: what this checkout takes for a row, and its ratio to the other one, median of the rounds."""
    lines = [f"{'':16}{'CPU us':>8}{'ratio':>7}{'rows/s':>9}{'ratio':>7}{'bytes':>8}{'ratio':>7}"]
    for name, ours in results.items():
        other = results.get(name + BESIDE)
        if other is None or "problem" in ours or "problem" in other:
            continue
        line = f"{name:16}"
        for key, unit, width in (("cpu", 1e6, 8), ("rates", 1, 9), ("memory", 1, 8)):
            ratios = [one / (two or 1) for one, two in zip(ours[key], other[key], strict=True)]
            line += (
                f"{statistics.median(ours[key]) * unit:{width},.0f}{statistics.median(ratios):7.3f}"
            )
        lines.append(line)
    return "\n".join(lines)


def _note(result: dict[str, Any], found: dict[str, Any]) -> None:
    if "problem" in found:
        result["problem"] = found["problem"]
        return
    result["rates"].append(found["rows"] / found["seconds"])
    result["cpu"].append(found["cpu"] / found["rows"])
    result["memory"].append(found["memory"] / found["rows"])
    result["rows"] = found["rows"]
    result["median"] = statistics.median(result["rates"])


def _run(
    contender: Contender, api_base: str, folder: Path, scale: float, asked: dict[str, Any]
) -> dict[str, Any]:
    """One run in a process of its own: its JSON line, or what went wrong."""
    python = sys.executable
    if contender.environment:
        python = str(ENVIRONMENTS / contender.environment / "bin" / "python")
        if not Path(python).exists():
            return {"problem": f"not installed: no {python}; see `make bench-peers`"}
    named = f"{contender.checkout.name}-{contender.script}{contender.model}{contender.latency}"
    cache = folder / named.replace("/", "-")
    task = {
        "api_base": api_base,
        "rows": int(contender.rows * scale),
        "model": contender.model,
        "concurrency": CONCURRENCY,
        "cache_dir": str(cache),
        "warm": contender.warm,
        **asked,
    }
    path = folder / "task.json"
    path.write_text(json.dumps(task), encoding="utf-8")
    command = [python, str(HERE / "contenders" / f"{contender.script}.py"), str(path)]
    environment = {**os.environ, "HOME": str(folder)}  # some peers write into the home directory
    environment["PYTHONPATH"] = str(contender.checkout)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, cwd=folder
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"not done in {TIMEOUT:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"rows"')]
    if done.returncode or not lines:
        last = (done.stderr.strip() or "it printed nothing").splitlines()[-1]
        return {"problem": f"exit {done.returncode}: {last[:200]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    if found["filled"] != found["rows"]:
        return {"problem": f"only {found['filled']} of {found['rows']} rows got both personas"}
    return found


def _request(exemplars: Literal["default", "none"]) -> dict[str, Any]:
    """What this library sends, for the bare loops to send the same."""
    prompt = PersonaPrompt(exemplars=exemplars)
    holes = pi.Preference(prompt="[prompt]", chosen="[chosen]", rejected="[rejected]")
    llm = pi.LLM("fake", api_base="http://127.0.0.1/v1", cache=False)
    request = pi.Request((pair_message(holes),), prompt.schema, prompt.prefix)
    body: dict[str, Any] = json.loads(llm.job(request).body)
    messages = body.pop("messages")
    shared, pair = messages[:-1], messages[-1]["content"]
    return {"exemplars": exemplars, "request": body, "prefix": shared, "pair": pair}


if __name__ == "__main__":
    main()
