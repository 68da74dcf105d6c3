"""Run every benchmark and write RESULTS.md beside this file: `python benchmarks/report.py`.

What a part found is kept in .venvs/bench, so that `--only memory embedded` runs some of them again, or goes
on after a stop: the page holds what each part found last, and when. `--rounds`, `--scale` and `--rows` make
it shorter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = HERE.parent / ".venvs" / "bench"
sys.path.insert(0, str(HERE))

import embedded  # noqa: E402
import memory  # noqa: E402
import simulation  # noqa: E402
import stages  # noqa: E402
import throughput  # noqa: E402
import tokens  # noqa: E402

PACKAGES = ("personainfer", "aiohttp", "instructor", "litellm", "openai", "pydantic", "xllamacpp")
PEER_PACKAGES = {"curator": "bespokelabs-curator"}
Row = tuple[str, str, str, str]  # what, bar, measured, verdict


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows of each contender")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the memory benchmark")
    parts = ("throughput", "stages", "memory", "tokens", "embedded", "simulation")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    names = list(throughput.CONTENDERS)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput.measure(options.rounds, names, options.scale),
        "stages": stages.measure,
        "memory": lambda: memory.measure(options.rows, warm=True),
        "tokens": tokens.measure,
        "embedded": lambda: embedded.measure(options.rounds, max(8, round(30 * options.scale))),
        "simulation": lambda: simulation.measure(options.rounds),
    }
    for part in options.only:
        keep(part, work[part](), options)
    kept = {part: json.loads(file.read_text()) for part in parts if (file := _file(part)).exists()}
    text = render(kept)
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
    print(text)


def keep(part: str, found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write down what a part found, when, and how much of it was run."""
    how = {"rounds": options.rounds, "scale": options.scale, "rows": options.rows}
    KEPT.mkdir(parents=True, exist_ok=True)
    _file(part).write_text(json.dumps({"found": found, "on": str(date.today()), "how": how}))


def _file(part: str) -> Path:
    return KEPT / f"{part}.json"


def render(kept: dict[str, dict[str, Any]]) -> str:
    """The page."""
    found = {part: one["found"] for part, one in kept.items()}
    rows: list[Row] = []
    if "throughput" in found:
        rows += _throughput_bars(found["throughput"])
    if "memory" in found:
        rows += _memory_bars(found["memory"])
    if "tokens" in found:
        rows += _token_bars(found["tokens"])
    if "embedded" in found:
        rows += _embedded_bar(found["embedded"])
    if "simulation" in found:
        rows += _simulation_bars(found["simulation"])
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`, or part by part by `python benchmarks/report.py --only …`; what each one"
        " does is in the scripts' docstrings.",
        "",
        f"{_machine()}. {_versions()}",
        "",
        *(f"- {part}: {one['on']}, {_how(part, one['how'])}" for part, one in kept.items()),
        "",
    ]
    lines += ["| what | asked | measured | |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    if "throughput" in found:
        lines += ["", *_contenders(found["throughput"], kept["throughput"]["how"]["rounds"])]
    if "stages" in found:
        lines += ["", *_stages(found["stages"])]
    return "\n".join(lines) + "\n"


def _how(part: str, how: dict[str, Any]) -> str:
    """How much of a part was run."""
    rounds = f"median of {how['rounds']} runs"
    return {
        "throughput": f"{rounds}, rows x {how['scale']:g}",
        "embedded": f"{rounds}, rows x {how['scale']:g}",
        "stages": "least of 5",
        "memory": f"{how['rows']:,} rows",
        "tokens": "counted",
    }.get(part, rounds)


def _throughput_bars(found: dict[str, Any]) -> list[Row]:
    ours, warm, late = (found[name] for name in ("ours", "ours, warm", "ours, 50 ms"))
    peers = {name: found[name] for name in throughput.PEERS if found[name]["rates"]}
    rows = [_ratio("cold, endpoint, against bare aiohttp", ours, found["aiohttp"], 0.5)]
    if peers:
        best = max(peers, key=lambda name: peers[name]["median"])
        rows.append(_ratio(f"cold, against the fastest peer ({best})", ours, peers[best], 5.0))
    what = "litellm path, against bare instructor over litellm"
    rows.append(_ratio(what, found["ours, litellm"], found["instructor"], 1.2))
    rows.append(_least("warm, every row from disk, rows/s", warm, 30_000))
    ideal = throughput.CONCURRENCY / throughput.LATENCY
    rows.append(_least(f"50 ms latency, of the ideal {ideal:,.0f} rows/s", late, 0.95 * ideal))
    return rows


def _ratio(what: str, one: dict[str, Any], other: dict[str, Any], bar: float) -> Row:
    """The median over the rounds of the ratio within a round."""
    asked = f"≥ {bar:g} x"
    if not (one["rates"] and other["rates"]):
        problem = one.get("problem") or other.get("problem") or "not run"
        return what, asked, problem, "✗"
    ratios = [a / b for a, b in zip(one["rates"], other["rates"], strict=False)]
    middle = statistics.median(ratios)
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return what, asked, f"{middle:.2f} x ({spread})", "✓" if middle >= bar else "✗"


def _least(what: str, one: dict[str, Any], bar: float) -> Row:
    if not one["rates"]:
        return what, f"≥ {bar:,.0f}", one.get("problem", "not run"), "✗"
    return what, f"≥ {bar:,.0f}", _spread(one["rates"]), "✓" if one["median"] >= bar else "✗"


def _memory_bars(found: dict[str, Any]) -> list[Row]:
    rows = []
    for way in ("cold", "warm"):
        one = found[way]
        what = f"memory, streaming {one['rows']:,} rows, {way}"
        at = ", ".join(f"{mb:.0f} at {part}" for part, mb in one["mb"].items())
        flat = one["mb"]["100%"] <= 1.1 * one["mb"]["50%"]
        verdict = "✓" if one["most_mb"] < 400 and flat else "✗"
        rows.append((what, "< 400 MB, flat", f"{at}; most {one['most_mb']:.0f} MB", verdict))
    return rows


def _token_bars(found: dict[str, Any]) -> list[Row]:
    rows = []
    for name, one in found.items():
        what = f"prompt tokens a row, of the papers' protocol, {name}"
        if "problem" in one:
            rows.append((what, "≤ 45 %", one["problem"], "-"))
            continue
        said = f"{one['ratio']:.1%} ({one['ours']:,.0f} of {one['papers']:,.0f})"
        rows.append((what, "≤ 45 %", said, "✓" if one["ratio"] <= 0.45 else "✗"))
    return rows


def _embedded_bar(found: dict[str, Any]) -> list[Row]:
    ours, theirs = found["library"], found["direct"]
    ratios = [a / b for a, b in zip(ours["rates"], theirs["rates"], strict=True)]
    middle = statistics.median(ratios)
    said = f"{middle:.2f} x ({ours['median']:.1f} against {theirs['median']:.1f} rows a minute)"
    what = "embedded model, against posting the same bodies to xllamacpp"
    return [(what, "≥ 0.9 x", said, "✓" if middle >= 0.9 else "✗")]


def _simulation_bars(found: dict[str, float]) -> list[Row]:
    took, memory_used = found["choices"], found["GiB at most"]
    bars = [
        ("choices of 10,000 simulated users", "< 10 s", f"{took:.2f} s", took < 10),
        (
            "… in a plain loop",
            "≥ 300 x",
            f"{found['choices, times']:,.0f} x",
            found["choices, times"] >= 300,
        ),
        ("… and their neighbours, memory", "< 2 GiB", f"{memory_used:.2f} GiB", memory_used < 2),
        (
            "nearest of 10,000 users, in a plain loop",
            "≥ 50 x",
            f"{found['nearest users, times']:,.0f} x",
            found["nearest users, times"] >= 50,
        ),
    ]
    return [(what, asked, said, "✓" if met else "✗") for what, asked, said, met in bars]


def _contenders(found: dict[str, Any], rounds: int) -> list[str]:
    lines = [f"Rows a second, median of {rounds} interleaved rounds, each a fresh process:", ""]
    lines += [
        "| contender | rows | rows/s (least-most) | CPU ms a row |",
        "| --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        if "problem" in one:
            lines.append(f"| {name} | | {one['problem']} | |")
        elif one["rates"]:
            cpu = 1000 * statistics.median(one["cpu"])
            lines.append(f"| {name} | {one['rows']:,} | {_spread(one['rates'])} | {cpu:.2f} |")
    return lines


def _stages(found: dict[str, float]) -> list[str]:
    """Where the time of a warm row goes."""
    lines = ["CPU microseconds of a warm row, by stage (`python benchmarks/stages.py`):", ""]
    lines += ["| stage | µs |", "| --- | --- |"]
    lines += [f"| {stage} | {microseconds:.1f} |" for stage, microseconds in found.items()]
    rest = found["all, in a run"] - sum(list(found.values())[:-1])
    return [*lines, f"| handing on | {rest:.1f} |"]


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})"


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{platform.system()}, {cores} cores, {platform.machine()}, Python {platform.python_version()}"


def _versions() -> str:
    said = [f"{name} {version(name)}" for name in PACKAGES]
    for name in throughput.PEERS:
        python = throughput.ENVIRONMENTS / name / "bin" / "python"
        package = PEER_PACKAGES.get(name, name)
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        done = (
            subprocess.run([python, "-c", code], capture_output=True, text=True)
            if python.exists()
            else None
        )
        said.append(
            f"{package} {done.stdout.strip() if done and not done.returncode else '(not installed)'}"
        )
    return ", ".join(said) + "."


if __name__ == "__main__":
    main()
