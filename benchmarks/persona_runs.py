"""Personas and their scores in pieces that are kept on disk, so that a stopped run goes on where it was.

A run is a writer of personas on a set of pairs. `models.py` and `best_of_n.py` measure runs.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from pydantic import BaseModel

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.evaluation import benchmark_pairs
from personainfer.evaluation.benchmark import persona_faults, sides_explained
from personainfer.local.weights import find_weights, has_chat_template

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples/data/preferences.jsonl"
PIECE = 5  # pairs between two writes
LONGEST = 80  # words of a prompt or response of the real pairs: longer ones take minutes each
SIDES = ("chosen", "rejected")

Sided = tuple[pi.Persona | None, pi.Persona | None]
Scores = np.ndarray  # shape (pairs, 2)


class Yes(BaseModel):
    """The shortest reply there is: it starts a server."""

    answer: Literal["yes"]


class Deadline:
    """When to stop: after the piece in which the time is up."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        if self._end is not None and time.monotonic() > self._end:
            sys.exit("The time is up. The same command goes on from here.")


def pair_set(name: str, real: Path | None) -> list[pi.Preference]:
    """The pairs of a set: "examples" (30), "ours" (60 that ship), "real" (30 of LLMBar and 30 of HH), "all".

    "all" is the examples and the real pairs, two real ones for each example.
    """
    if name == "all":
        examples, others = pair_set("examples", None), pair_set("real", real)
        twos = zip(examples, others[::2], others[1::2], strict=True)
        return [pair for three in twos for pair in three]
    if name == "examples":
        return _usable(EXAMPLES)
    if name == "ours":
        return list(benchmark_pairs())
    if real is None:
        sys.exit(
            "The set real needs --real: the folder with llmbar_natural.json and hh_rlhf_….jsonl."
        )
    files = ("llmbar_natural.json", "hh_rlhf_harmless_base_test.jsonl")
    drawn = [random.Random(0).sample(_short(_usable(real / file)), 30) for file in files]
    return [
        pair for both in zip(*drawn, strict=True) for pair in both
    ]  # of both kinds in each piece


def single_questions(path: Path, count: int) -> list[pi.Preference]:
    """Pairs of a file whose prompt is one question, drawn with a fixed seed."""
    single = [pair for pair in _usable(path) if isinstance(pair.prompt, str)]
    return random.Random(0).sample(single, min(count, len(single)))


def _usable(path: Path) -> list[pi.Preference]:
    return [row.preference for row in read_preferences(path) if row.preference is not None]


def _short(pairs: Sequence[pi.Preference]) -> list[pi.Preference]:
    """Pairs of one question, with no text over LONGEST words and no response under five."""
    counts = [
        [len(str(text).split()) for text in (pair.prompt, pair.chosen, pair.rejected)]
        for pair in pairs
    ]
    return [
        pair
        for pair, words in zip(pairs, counts, strict=True)
        if isinstance(pair.prompt, str) and max(words) <= LONGEST and min(words[1:]) >= 5
    ]


@dataclass(frozen=True)
class Run:
    """Who writes the personas of which pairs, and where they are kept.

    `write` infers the personas of some pairs; None: they are `given`, one entry a pair.
    """

    label: str
    set: str
    pairs: Sequence[pi.Preference]
    folder: Path
    write: Callable[[Sequence[pi.Preference]], pi.PersonaTable] | None = None
    given: Sequence[Sided] = ()

    def _lines(self, what: str) -> Path:
        name = re.sub(r"[^\w.-]+", "_", f"{self.label}-{self.set}-{what}")
        return self.folder / f"{name}.jsonl"

    @property
    def pieces(self) -> list[dict[str, Any]]:
        """What was inferred so far, a piece an entry."""
        return _read(self._lines("personas"))

    def infer_next(self) -> bool:
        """Infer one more piece; False if all are there."""
        start = sum(len(piece["rows"]) for piece in self.pieces)
        some = self.pairs[start : start + PIECE]
        if not some or self.write is None:
            return False
        began, cpu = time.perf_counter(), _processor_seconds()
        table = self.write(some)
        piece = {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": _processor_seconds() - cpu,
            "usage": table.usage.model_dump(),
            "rows": [_row(row) for row in table],
        }
        _append(self._lines("personas"), piece)
        self._say(f"personas {start + len(some)} of {len(self.pairs)}, {piece['seconds']:.0f} s")
        return True

    @property
    def personas(self) -> list[Sided]:
        """Both personas of each pair, as far as they are there."""
        if self.write is None:
            return list(self.given)
        rows = [row for piece in self.pieces for row in piece["rows"]]
        return [(_persona(row["chosen"]), _persona(row["rejected"])) for row in rows]

    def score_next(self, scorer: str, scorers: dict[str, pi.Likelihood]) -> bool:
        """Score one more piece of what is inferred; False if all are scored."""
        done = len(self.scores(scorer))
        some = self.personas[done : done + PIECE]
        if not some:
            return False
        if scorer not in scorers:
            scorers[scorer] = batched_scorer(scorer)
        pairs = self.pairs[done : done + len(some)]
        for both in sides_explained(scorers[scorer], pairs, some).tolist():
            _append(self._lines(f"by-{Path(scorer).stem}"), both)
        self._say(f"scored {done + len(some)} by {scorer}")
        return True

    def scores(self, scorer: str) -> Scores:
        """What `sides_explained` says of each pair that is scored."""
        return np.array(_read(self._lines(f"by-{Path(scorer).stem}")), dtype=float).reshape(-1, 2)

    def faults(self) -> dict[str, Scores]:
        """What `persona_faults` says of each pair that is inferred."""
        personas = self.personas
        return persona_faults(self.pairs[: len(personas)], personas)

    def unexplained(self) -> int:
        """Sides of which the run says that no candidate explains them."""
        rows = [row for piece in self.pieces for row in piece["rows"]]
        return sum(len(row["unexplained"]) for row in rows)

    def total(self, name: str) -> float:
        """The sum of "seconds" or "cpu_seconds" over the pieces."""
        return sum(piece[name] for piece in self.pieces)

    def _say(self, text: str) -> None:
        print(f"{self.label}, {self.set}: {text}", file=sys.stderr, flush=True)


def batched_scorer(name: str) -> pi.Likelihood:
    """A local model as a scorer, by transformers: several times as fast as llama.cpp, from the same file.

    The two agree within rounding (tests/scoring/test_likelihood.py). Weights without a chat template score
    plain text.
    """
    template = has_chat_template(find_weights(name).path())
    return pi.Likelihood(name, device="cpu", persona_in="user" if template else "plain")


def inferring(
    model: str, candidates: int, chooser: str, **options: Any
) -> Callable[[Sequence[pi.Preference]], pi.PersonaTable]:
    """A writer: one greedy persona a side, or the best of several by the chooser's log-probabilities."""
    more: dict[str, Any] = {"cache": False, "progress": False, **options}
    if candidates > 1:
        more |= {"candidates": candidates, "seed": 0, "select": pi.Likelihood(chooser)}
    started = False

    def write(pairs: Sequence[pi.Preference]) -> pi.PersonaTable:
        nonlocal started
        if not started:  # what loads the weights is no part of the time
            pi.LLM(model, cache=False, **options).ask(
                [{"role": "user", "content": "Say yes."}], Yes
            )
            if candidates > 1:
                more["select"].log_likelihood(["a"], [None], ["b"])
            started = True
        return pi.infer_personas(list(pairs), model, **more)

    return write


def _processor_seconds() -> float:
    """Seconds of the processor that this process took, and those that it started: llama.cpp runs in one."""
    own = psutil.Process()
    times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
    return sum(float(one.user + one.system) for one in times)


def _row(row: pi.PersonaRow) -> dict[str, Any]:
    both = {side: getattr(row, side) for side in SIDES}
    said = {side: None if one is None else one.model_dump() for side, one in both.items()}
    return {**said, "error": row.error, "unexplained": list(row.unexplained)}


def _persona(fields: dict[str, Any] | None) -> pi.Persona | None:
    return None if fields is None else pi.Persona(**fields)


def _read(file: Path) -> list[Any]:
    return list(_json_lines(file)) if file.exists() else []


def _json_lines(file: Path) -> Iterator[Any]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _append(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(value) + "\n")
