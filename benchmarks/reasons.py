"""Does abduction find the reasons that people give? Inferred personas against what people wrote themselves.

    python benchmarks/reasons.py DATA --power                # how many choices are needed; no personas yet
    python benchmarks/reasons.py DATA --write --minutes 9    # infer the personas; goes on where it stopped
    python benchmarks/reasons.py DATA --sheet                # a sheet to read, blind
    python benchmarks/reasons.py DATA --judge local:smollm2  # the table

DATA holds ukp_arguments.jsonl (docs/studies.md): which of two arguments a person found more convincing, and
why, in the person's own words. For one choice of each person a model infers who would choose so, from the
two arguments alone. The evidence and the persona that it names are compared with

- the reason that the person gave;
- the reason of another person on the same two arguments (one who chose the same, where there is one);
- the reason of the same person on two other arguments.

How near they are is

- the cosine of embeddings;
- the share of the reason's words that the persona uses;
- with `--judge`, by how much the persona raises a model's mean log-probability of the reason's tokens, where
  it is asked why the argument is convincing;
- the verdicts of a reader in reasons_read.json. The reader sees the evidence, the persona and the reasons in
  an order that hides which is which, and notes those that the evidence or persona names: the same quality
  (detail, logic, tone, …) or the same point of the argument, and not only the same judgement.

Intervals resample people.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from people_personas import embedder
from people_study import REACH, cell
from stored_scores import Scores

import personainfer as pi
from personainfer.evaluation.grouped import mean_by_group, rate_by_group
from personainfer.records import FloatArray
from personainfer.tailoring.embeddings import embed

KINDS = ("own reason", "another person, same pair", "same person, another pair")
READ = Path(__file__).with_name("reasons_read.json")
PIECE = 4  # pairs between two writes
WHY = """{prompt}

"{chosen}"

Why is this argument more convincing than another one?"""
_COMMON = frozenset(
    "a an and are argument as at be because but by for from has have in is it its more not of on or other"
    " person second first side than that the their there they this to was which while with user".split()
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One choice, and the three reasons that a persona is compared with."""

    id: str
    user: str
    pair: pi.Preference
    reasons: tuple[str, str, str]

    @property
    def order(self) -> list[int]:
        """The order in which a reader sees the reasons."""
        return sorted(range(3), key=lambda kind: crc32(f"{self.id} {kind}".encode()))


def read(folder: Path) -> list[Case]:
    """One case for each person, drawn by a checksum."""
    lines = (folder / "ukp_arguments.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{**json.loads(line), "id": str(n)} for n, line in enumerate(lines)]
    rows.sort(key=lambda row: crc32(f"reason {row['id']}".encode()))
    cases: dict[str, Case] = {}
    for row in rows:
        others = [one for one in rows if one["item"] == row["item"] and one["user"] != row["user"]]
        if row["user"] in cases or not others:
            continue
        others.sort(key=lambda one: one["chosen"] != row["chosen"])  # the same choice first
        mine = next(
            one for one in rows if one["user"] == row["user"] and one["topic"] != row["topic"]
        )
        pair = pi.Preference(
            prompt=row["prompt"], chosen=row["chosen"], rejected=row["rejected"], id=row["id"]
        )
        said = (plain(row), plain(others[0]), plain(mine))
        cases[row["user"]] = Case(row["id"], row["user"], pair, said)
    return sorted(cases.values(), key=lambda case: case.user)


def plain(row: Row) -> str:
    """The reason, with the chosen argument and the other one in place of A1 and A2."""
    first = "this argument" if row["a1_is"] == "chosen" else "the other argument"
    second = "the other argument" if row["a1_is"] == "chosen" else "this argument"
    said = re.sub(r"\b(a|argument|speaker)\s?(1|one)\b", first, row["reason"], flags=re.I)
    return re.sub(r"\b(a|argument|speaker)\s?(2|two)\b", second, said, flags=re.I)


def file_of(options: argparse.Namespace) -> Path:
    folder: Path = options.folder
    return folder / f"reasons-{options.persona_model.replace('/', '-').replace(':', '-')}.jsonl"


def written(options: argparse.Namespace) -> dict[str, str]:
    """What was inferred so far, by the id of the case: evidence and persona."""
    file = file_of(options)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return dict(map(json.loads, lines))


def write(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Infer the next personas, until the time is up."""
    end = time.monotonic() + 60 * options.minutes
    left = [case for case in cases if case.id not in written(options)]
    model = pi.LLM(options.persona_model, max_concurrency=1)
    file_of(options).parent.mkdir(parents=True, exist_ok=True)
    while left and time.monotonic() < end:
        some, left = left[:PIECE], left[PIECE:]
        table = pi.infer_personas([case.pair for case in some], model, progress=False)
        with file_of(options).open("a", encoding="utf-8") as lines:
            for case, row in zip(some, table, strict=True):
                said = "" if row.chosen is None else f"{row.chosen.evidence} {row.chosen}"
                lines.write(json.dumps([case.id, said]) + "\n")
        print(f"{len(cases) - len(left)} of {len(cases)}", flush=True)


def words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z']+", text.casefold()) if word not in _COMMON}


def overlap(persona: str, reason: str) -> float:
    """The share of the reason's words that the persona uses; 0.5 of no words, which say nothing."""
    wanted = words(reason)
    return len(wanted & words(persona)) / len(wanted) if wanted else 0.5


def power(cases: Sequence[Case]) -> list[str]:
    """How many choices are needed, with the chosen argument in place of the persona, still unknown."""
    texts = [text for case in cases for text in (case.pair.chosen, *case.reasons)]
    near = nearness(texts, len(cases))
    lines = [
        "| own reason less | mean | standard deviation | choices needed | shown by these choices |",
        "| --- |" + " --- |" * 4,
    ]
    for kind in (1, 2):
        gain = near[:, 0] - near[:, kind]
        least = REACH * gain.std() / math.sqrt(len(cases))
        lines.append(
            f"| {KINDS[kind]} | {gain.mean():.3f} | {gain.std():.3f} | {needed(gain):,.0f} | {least:.3f} |"
        )
    return [*lines, f"A share of 0.5 is told from {0.5 + REACH * 0.5 / math.sqrt(len(cases)):.2f}."]


def needed(gain: FloatArray) -> float:
    """How many choices find a mean gain of this size in 8 of 10 studies."""
    return float((REACH * gain.std() / gain.mean()) ** 2)


def nearness(texts: Sequence[str], cases: int) -> FloatArray:
    """The cosine of the first text of each case to the three others, shape (cases, 3)."""
    vectors = embed(embedder(), texts).reshape(cases, 4, -1)
    return np.einsum("nd,nkd->nk", vectors[:, 0], vectors[:, 1:]).astype(np.float64)


def judged(options: argparse.Namespace, cases: Sequence[Case], said: Sequence[str]) -> FloatArray:
    """By how much each persona raises the log-probability a token of each reason, shape (cases, 3)."""
    name = Path(options.judge).name.replace(":", "-")
    scores = Scores(
        options.folder / f"reason-scores-{name}.jsonl", pi.Likelihood(options.judge, device="cpu")
    )
    prompts = [WHY.format(prompt=case.pair.prompt, chosen=case.pair.chosen) for case in cases]
    rows = [
        (prompt, persona, reason)
        for prompt, case, one in zip(prompts, cases, said, strict=True)
        for reason in case.reasons
        for persona in (one, None)
    ]
    found: FloatArray = scores.of(rows).reshape(len(cases), 3, 2) @ (1.0, -1.0)
    return found


def table(measures: dict[str, FloatArray], users: Sequence[str]) -> list[str]:
    """Lines of a Markdown table. A measure has the shape (cases, 3): how near each reason is."""
    who = np.array(users)
    lines = []
    for name, near in measures.items():
        means = [cell(mean_by_group(near[:, kind], who)) for kind in range(3)]
        gains = [cell(mean_by_group(near[:, 0] - near[:, kind], who)) for kind in (1, 2)]
        wins = [
            cell(rate_by_group((np.sign(near[:, 0] - near[:, kind]) + 1) / 2, who))
            for kind in (1, 2)
        ]
        lines.append(f"| {name} | {len(near)} | " + " | ".join([*means, *gains, *wins]) + " |")
    return lines


def read_blind(cases: Sequence[Case]) -> tuple[FloatArray, list[str]]:
    """1 for each reason that the reader found named, shape (read cases, 3); and the users."""
    named = json.loads(READ.read_text(encoding="utf-8"))
    read_cases = [case for case in cases if case.id in named]
    found = [
        [float("abc"[case.order.index(kind)] in named[case.id]) for kind in range(3)]
        for case in read_cases
    ]
    return np.array(found), [case.user for case in read_cases]


def report(options: argparse.Namespace, cases: Sequence[Case], personas: dict[str, str]) -> None:
    """Print the table."""
    said, users = [personas[case.id] for case in cases], [case.user for case in cases]
    texts = [text for one, case in zip(said, cases, strict=True) for text in (one, *case.reasons)]
    measures = {"embedding": nearness(texts, len(cases))}
    measures["words"] = np.array(
        [
            [overlap(one, reason) for reason in case.reasons]
            for one, case in zip(said, cases, strict=True)
        ]
    )
    if options.judge:
        measures[f"{options.judge}, lift"] = judged(options, cases, said)
    print(
        "| measure | choices | "
        + " | ".join(KINDS)
        + " | own - another person's | own - another pair's"
        " | own above another person's | own above another pair's |"
    )
    print("| --- |" + " --- |" * 8)
    print("\n".join(table(measures, users)))
    if READ.exists():
        measures["reader"], readers_users = read_blind(cases)
        print("\n".join(table({"reader": measures["reader"]}, readers_users)))
    print("\nChoices needed to find differences of these sizes:")
    for name, near in measures.items():
        counts = [f"{needed(near[:, 0] - near[:, kind]):,.0f} ({KINDS[kind]})" for kind in (1, 2)]
        print(f"{name}: {', '.join(counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--power", action="store_true", help="how many choices are needed")
    parser.add_argument("--write", action="store_true", help="infer the personas")
    parser.add_argument("--minutes", type=float, default=9.0, help="with --write: when to stop")
    parser.add_argument("--sheet", action="store_true", help="print what a reader reads")
    parser.add_argument("--persona-model", default="local")
    parser.add_argument("--judge", help="the model of a Likelihood")
    parser.add_argument("--folder", type=Path, default=Path("people_study"))
    options = parser.parse_args()
    cases = read(options.data)
    if options.power:
        print("\n".join(power(cases)))
        return
    if options.write:
        write(options, cases)
        return
    personas = written(options)
    cases = [case for case in cases if personas.get(case.id)]
    if options.sheet:
        for case in cases:
            shown = " / ".join(
                f"{letter}: {case.reasons[kind]}"
                for letter, kind in zip("abc", case.order, strict=True)
            )
            print(f"{case.id} | {personas[case.id]} | {shown}")
        return
    report(options, cases, personas)


if __name__ == "__main__":
    main()
