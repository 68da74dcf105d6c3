"""How good the personas of a model are, by how well they explain the choices.

    python benchmarks/models.py local                        # the example pairs
    python benchmarks/models.py local --pairs hh.jsonl --limit 30
    python benchmarks/models.py openai/gpt-4o-mini --scorer local:smollm2 --scorer local
    python benchmarks/models.py --personas tests/personas/handwritten_personas.jsonl

*Pairing* is the share of pairs whose two personas fit their own responses better than crossed. *Sides* is
the share of personas that make their own response likelier than the other one. Both are by the lift a token
under each scorer, which should not be the model itself; a side without a persona explains nothing.
Intervals: 95 %, pairs resampled. `--personas` scores sentences from a file, one line a pair with `chosen`
and `rejected`, instead of asking a model.

Personas written by hand for the 30 example pairs, by SmolLM2-135M: pairing 0.90 [0.77, 1.00], sides 0.78
[0.70, 0.87].
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.evaluation import bootstrap_mean

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples/data/preferences.jsonl"
Sentences = list[str | None]


def measure(
    scorer: pi.Likelihood, pairs: list[pi.Preference], chosen: Sentences, rejected: Sentences
) -> dict[str, np.ndarray]:
    """Pairing and sides of each pair: 0 or 1, and 0, 0.5 or 1."""
    own = scorer.explains(pairs, chosen)
    other = scorer.explains([pair.swapped for pair in pairs], rejected)
    sides = np.mean([own > 0, other > 0], axis=0)
    return {"pairing": (own + other > 0).astype(float), "sides": sides}


def inferred(model: str, pairs: list[pi.Preference], options: dict[str, object]) -> pi.PersonaTable:
    """The personas of a model, and on standard output what its replies were like."""
    start = time.perf_counter()
    table = pi.infer_personas(pairs, model, **options)  # type: ignore[arg-type]
    minutes = (time.perf_counter() - start) / 60
    found = [persona for row in table for persona in (row.chosen, row.rejected)]
    flags = [flag for persona in found if persona for flag in persona.flags]
    print(f"{len(pairs) / minutes:.1f} rows a minute, {table.usage}")
    print(f"sides without a persona: {found.count(None)} of {len(found)}")
    print(f"flagged: {sum(bool(one and one.flags) for one in found)} of {len(found)}")
    for flag in sorted(set(flags)):
        print(f"  {flag}: {flags.count(flag)}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--personas", type=Path)
    parser.add_argument("--pairs", type=Path, default=EXAMPLES)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--api-base")
    parser.add_argument("--scorer", action="append", help="repeatable; default: local:smollm2")
    options = parser.parse_args()
    read = [row.preference for row in read_preferences(options.pairs)]
    pairs = [pair for pair in read if pair is not None][: options.limit]
    if options.personas is not None:
        lines = options.personas.read_text(encoding="utf-8").splitlines()[: options.limit]
        rows = [json.loads(line) for line in lines]
        sides = [[row[side] for row in rows] for side in ("chosen", "rejected")]
    else:
        given: dict[str, object] = {"api_base": options.api_base, "cache": False}
        if options.candidates > 1:
            chooser = pi.Likelihood("local:smollm2")
            given |= {"candidates": options.candidates, "select": chooser, "temperature": 1.0}
        table = inferred(options.model or "local", pairs, given)
        sides = [
            [str(one) if (one := getattr(row, side)) else None for row in table]
            for side in ("chosen", "rejected")
        ]
    for name in options.scorer or ["local:smollm2"]:
        for what, values in measure(pi.Likelihood(name), pairs, *sides).items():
            found = bootstrap_mean(values)
            print(f"{what} by {name}: {found.value:.2f} [{found.low:.2f}, {found.high:.2f}]")


if __name__ == "__main__":
    main()
