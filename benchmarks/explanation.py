"""Whether a persona explains the response that was written for it, on rows whose answer is known.

    python benchmarks/explanation.py tailored.jsonl                # the held-out half, as it ships
    python benchmarks/explanation.py tailored.jsonl --choices all  # the other half, every choice

A row has a prompt, `chosen_persona`, `rejected_persona`, `response_for_chosen_persona` and
`response_for_rejected_persona`; one whose `complete` is false is left out. *Pairing* is the share of rows
whose personas fit their own responses better than crossed: lift(Pc, Rc) + lift(Pr, Rr) > lift(Pc, Rr) +
lift(Pr, Rc). *Within* is the share of personas that lift their own response more than the other one.
Even rows served to make the choices below; odd rows are for reporting. A guess has 0.5 of both.

Held out, run once after the choices were made: pairing 0.887 [0.847, 0.923], within 0.730 [0.694, 0.764]
(248 rows, the embedded weights by transformers in bfloat16, as were all figures below; against people in
general, which were the default then: "within" against the prompt alone, the default now, is the first line
that this prints).

What was tried on the 248 even rows with SmolLM2-135M-Instruct (pairing / within; the standard error of
both is about 0.02; the first 128 tokens of a response, mean a token, unless said otherwise):

    where the persona stands, against the prompt alone
      system message                                      0.835 / 0.649
      the same, with "Write the response that this user would prefer."   0.851 / 0.657
      before the prompt, in the user's message            0.879 / 0.671
      after it                                            0.907 / 0.671
      after it, in the first person                       0.907 / 0.692
      after it, "Answer for this user: …"                 0.911 / 0.700
      after it, "Write the response that this user would prefer. …"      0.903 / 0.700
      after it, "Write the response that I would prefer. I am …"         0.931 / 0.710  <- kept
      no chat template: Prompt, Persona, Response         0.863 / 0.639
      no chat template: the persona first, unlabelled     0.766 / 0.617
    what of the kept wording is compared with (pairing does not depend on it)
      "The user is a person and prefers a good response." 0.931 / 0.724
      six other sentences about nobody in particular, each alone        0.722 to 0.740
      two opposites, a short and a detailed response      0.931 / 0.740  <- kept
      the mean of all seven                               0.931 / 0.738
    how tokens are put together, for the kept wording, against the first of these sentences
      sum 0.919 / 0.714, mean 0.931 / 0.724, sum by the root of the length 0.923 / 0.732,
      mean of at most +-3 nats a token 0.935 / 0.726, without the first token 0.919 / 0.724;
      for other wordings tanh loses 0.01, and the median 0.1 and more
    how many tokens, the same
      16: 0.714 / 0.567, 32: 0.859 / 0.673, 64: 0.915 / 0.732, 100: 0.927 / 0.734, 200: 0.927 / 0.726
    several wordings averaged: two or three of the above 0.915 to 0.935 / 0.704 to 0.734: not worth
      their time
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import personainfer as pi
from personainfer.evaluation import bootstrap_rate
from personainfer.scoring import PEOPLE_IN_GENERAL

STEP = 31  # rows scored between two signs of life
BARS = {"pairing": 0.85, "within": 0.70}
CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "against people in general": {"baseline": PEOPLE_IN_GENERAL},
    "against one neutral persona": {
        "baseline": ("The user is a person and prefers a good response.",)
    },
    "system message": {"persona_in": "system"},
    "plain text": {"persona_in": "plain"},
    "64 tokens": {"max_response_tokens": 64},
    "200 tokens": {"max_response_tokens": 200},
}

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows that have all that is needed."""
    with path.open(encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if row["complete"]]


def outcomes(rows: Sequence[Row], likelihood: pi.Likelihood) -> dict[str, np.ndarray]:
    """Of each row, whether its pairing is right, and the share of its personas that are."""
    pairs, personas = [], []
    for row in rows:
        pair = pi.Preference(
            prompt=(pi.Message(role="user", content=row["prompt"]),),
            chosen=row["response_for_chosen_persona"],
            rejected=row["response_for_rejected_persona"],
        )
        pairs += [pair, pair]
        personas += [row["chosen_persona"], row["rejected_persona"]]
    chosen, rejected = likelihood.explains(pairs, personas).reshape(-1, 2).T
    return {
        "pairing": np.asarray(chosen > rejected, dtype=float),
        "within": np.mean([chosen > 0, rejected < 0], axis=0),
    }


def measure(rows: Sequence[Row], choice: str, **options: Any) -> dict[str, Any]:
    """Both accuracies with their 95 % intervals, rows resampled."""
    began = time.perf_counter()
    likelihood = pi.Likelihood(**options, **CHOICES[choice])
    parts = []
    for start in range(0, len(rows), STEP):
        parts.append(outcomes(rows[start : start + STEP], likelihood))
        so_far = {name: np.concatenate([part[name] for part in parts]) for name in BARS}
        said = ", ".join(f"{name} {values.mean():.3f}" for name, values in so_far.items())
        print(f"{len(so_far['within'])} rows: {said}", file=sys.stderr, flush=True)
    return {
        "rows": len(rows),
        "seconds": time.perf_counter() - began,
        **{name: bootstrap_rate(values) for name, values in so_far.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", default="local:smollm2")
    parser.add_argument("--device", help='"cpu" or "cuda": transformers; without, the engine')
    parser.add_argument("--dtype", help='of transformers, such as "bfloat16"')
    parser.add_argument("--rows", type=int, help="the first so many of the half")
    parser.add_argument("--choices", nargs="+", choices=["all", *CHOICES], metavar="NAME")
    options = parser.parse_args()
    half = 1 if options.choices is None else 0
    rows = read(options.path)[half::2][: options.rows]
    wanted = options.choices or ["default", "against people in general"]
    for choice in CHOICES if "all" in wanted else wanted:
        found = measure(
            rows, choice, model=options.model, device=options.device, dtype=options.dtype
        )
        print(f"{choice}: {found['rows']} rows, {found['seconds']:.0f} s", flush=True)
        for name, bar in BARS.items():
            one = found[name]
            verdict = "met" if one.value >= bar else "missed"
            print(
                f"  {name:8} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]  bar {bar}: {verdict}"
            )


if __name__ == "__main__":
    main()
