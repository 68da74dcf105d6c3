"""What users_study found: estimates, a page of Markdown, and JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from personainfer.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_rate,
    paired_difference,
)

Floats = npt.NDArray[np.float64]
Ways = dict[tuple[str, int], Floats]  # (way, choices observed; 0: any) -> (users, held-out choices)
Found = dict[str, Any]

INFERRED = ("summary", "verified", "posterior")
KNOWN = "posterior over the known personas"


def right(margins: Floats) -> Floats:
    """1 where the choice is predicted, 0.5 for a tie."""
    found: Floats = (np.sign(margins) + 1) / 2
    return found


def _predicted(ways: Ways, posterior: dict[int, Any], against: str) -> Ways:
    """Whether each choice is predicted by what a way adds to other margins; without a prefix, by its own.

    A user without a persona has the bare margins: nothing is added, a tie.
    """
    bare, other = ways["no prefix", 0], ways[against, 0]
    found = {
        way: right(np.where(margins == bare, 0.0, margins - other))
        for way, margins in ways.items()
        if way[0] != "people in general"
    }
    found["no prefix", 0] = right(bare)
    return found | {(KNOWN, count): right(sure - 0.5) for count, (sure, *_) in posterior.items()}


def results(ways: Ways, posterior: dict[int, Any]) -> Found:
    """Accuracies, and what a way gains over the same of another user."""
    scores = {
        "general": _predicted(ways, posterior, "people in general"),
        "lift": _predicted(ways, posterior, "no prefix"),
        "plain": {way: right(margins) for way, margins in ways.items()},
    }
    gains = {kind: _gains(scores[kind], max(posterior)) for kind in ("general", "lift")}
    accuracy = {kind: _rates(tables) for kind, tables in scores.items()}
    return {"accuracy": accuracy, "gain over the control": gains}


def _gains(scores: Ways, most: int) -> dict[str, Estimate]:
    gains = {}
    for way, count in scores:
        if count in (0, most) and way not in ("no prefix", "shuffled persona") and "'" not in way:
            control = (
                (f"{way}, another user's", most) if way in INFERRED else ("shuffled persona", 0)
            )
            one, other = (scores[key].mean(axis=1) for key in ((way, count), control))
            gains[f"{way}, {count or 'any'} observed"] = paired_difference(one, other)
    return gains


def crowd_results(ways: Ways, posterior: dict[int, Any]) -> Found:
    """The same of many users for whom nothing is inferred, and how often their persona is named."""
    scores = _predicted(ways, posterior, "people in general")
    own, other = (scores[way, 0].mean(axis=1) for way in ("true persona", "shuffled persona"))
    return {
        "accuracy": _rates(scores),
        "true - shuffled": paired_difference(own, other),
        "names the hidden persona": {
            count: (bootstrap_rate(named), bootstrap_mean(p))
            for count, (_, named, p) in posterior.items()
        },
    }


def _rates(tables: Ways) -> dict[tuple[str, int], Estimate]:
    return {way: bootstrap_rate(table) for way, table in tables.items()}


def page(found: Found) -> str:
    """Markdown: the chooser, accuracy by lift and by plain likelihood, gains, the posterior."""
    options = found["options"]
    counts = [int(text) for text in options["observed"].strip("[]").split(",")]
    lines = [
        "# Predicting a user's other choices",
        "",
        "Made by `benchmarks/users_study.py`, whose docstring says who chooses, who evaluates and who"
        " infers, and where that is circular. Intervals: 95 %, users resampled, for these pairs.",
        "",
        f"Inferrer: {options['model']}. {options['personas']} personas,"
        f" {options['users_per_persona']} users each, {options['held_out']} held-out choices a user,"
        f" {options['pairs']} pairs of responses in all.",
        "",
        "## The users",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {what} | {_said(value)} |" for what, value in found["chooser"].items()),
        "",
    ]
    titles = {
        "general": "Accuracy against people in general, by choices observed",
        "lift": "Accuracy by lift",
        "plain": "Accuracy by plain likelihood",
    }
    for kind, title in titles.items():
        lines += [f"## {title}", "", *_table(found["accuracy"][kind], counts), ""]
    gains = found["gain over the control"]
    lines += ["## Gain over the same of another user", ""]
    lines += ["| | against people in general | by lift |", "| --- | --- | --- |"]
    for way in gains["general"]:
        lines.append(f"| {way} | {_said(gains['general'][way])} | {_said(gains['lift'][way])} |")
    crowd = found["crowd"]
    lines += [
        "",
        f"## {options['crowd']} users each, for whom nothing is inferred: accuracy against people in general",
        "",
        *_table(crowd["accuracy"], counts),
        "",
        f"True less shuffled persona: {_said(crowd['true - shuffled'])}.",
    ]
    return "\n".join([*lines, "", *_posterior(found), "", *_missing(found), ""])


def _table(accuracy: dict[tuple[str, int], Estimate], counts: list[int]) -> list[str]:
    lines = [f"| | {' | '.join(map(str, counts))} |", "| --- |" + " --- |" * len(counts)]
    for way in dict.fromkeys(way for way, _ in accuracy):
        always = accuracy.get((way, 0))
        cells = [accuracy.get((way, count), always) for count in counts]
        lines.append(f"| {way} | {' | '.join('' if c is None else _said(c) for c in cells)} |")
    return lines


def _posterior(found: Found) -> list[str]:
    lines = [
        "## How often the posterior names the hidden persona",
        "",
        f"Of these many users; a guess: {found['a guess names it']:.3f}.",
        "",
        "| choices observed | named | probability of it |",
        "| --- | --- | --- |",
    ]
    for count, (named, p) in found["crowd"]["names the hidden persona"].items():
        lines.append(f"| {count} | {_said(named)} | {_said(p)} |")
    return lines


def _missing(found: Found) -> list[str]:
    failed = {what: users for what, users in found["users without a persona"].items() if users}
    said = ", ".join(f"{what} choices: {users}" for what, users in failed.items()) or "none"
    run = found["this run"]
    return [
        f"Users without a persona (a tie for each of their choices, which counts half): {said}.",
        "",
        f"This run: {run['seconds']:,.0f} s on {run['cores']} cores; it scored"
        f" {run['texts scored by the chooser']:,} texts by the chooser"
        f" ({run['seconds of the chooser']:,.0f} s) and {run['texts scored by the evaluator']:,} by the"
        f" evaluator ({run['seconds of the evaluator']:,.0f} s); what was there before was not scored"
        " again.",
    ]


def _said(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def write(folder: Path, found: Found) -> None:
    """Both files."""
    (folder / "users_study.md").write_text(page(found), encoding="utf-8")
    text = json.dumps(_plain(found), indent=1, ensure_ascii=False)
    (folder / "users_study.json").write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """What JSON can hold: (way, choices observed) as text, NaN as null."""
    if isinstance(value, Estimate):
        return {name: _plain(number) for name, number in value.to_dict().items()}
    if isinstance(value, dict):
        return {_name(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _name(key: Any) -> str:
    return f"{key[0]}, {key[1] or 'any'} observed" if isinstance(key, tuple) else str(key)
