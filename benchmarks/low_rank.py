"""Low-rank rewards of many users: how long a fit takes, and how much faster it is than a plain loop.

    python benchmarks/low_rank.py [--users 10000] [--each 50] [--width 384] [--rank 5]

Users have planted weights on planted rewards of embeddings, and choose between responses of which there are
ten times as many as users. The loop computes the same loss and gradient, choice by choice, in plain Python,
on `--loop` choices; both are timed for one evaluation, in seconds of the processor, so that other work on
the machine matters less. Says the correlation of the fitted with the planted margins, too.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np

import personainfer as pi
from personainfer.records import FloatArray, Prompt
from personainfer.tailoring import LowRankRewards


def plain_loop(
    differences: list[list[float]],
    users: list[int],
    basis: list[list[float]],
    weights: list[list[float]],
) -> float:
    """The loss; the gradients in the basis and in the weights are added up on the way."""
    rank, width, total = len(basis), len(differences[0]), 0.0
    to_basis = [[0.0] * width for _ in range(rank)]
    to_weights = [[0.0] * rank for _ in weights]
    for x, user in zip(differences, users, strict=True):
        rewards = [sum(a * b for a, b in zip(x, row, strict=True)) for row in basis]
        margin = sum(w * r for w, r in zip(weights[user], rewards, strict=True))
        total += math.log1p(math.exp(-margin))
        slope = -1.0 / (1.0 + math.exp(margin))
        for b in range(rank):
            to_weights[user][b] += slope * rewards[b]
            scaled = slope * weights[user][b]
            row = to_basis[b]
            for d in range(width):
                row[d] += scaled * x[d]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {
        "users": 10_000,
        "each": 50,
        "width": 384,
        "rank": 5,
        "loop": 500,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=30, help="iterations of the fit")
    o = parser.parse_args()
    random = np.random.default_rng(0)
    responses = 10 * o.users
    features = random.normal(size=(responses, o.width)).astype(np.float32) / math.sqrt(o.width)
    basis = 6.0 * random.normal(size=(o.width, o.rank)).astype(np.float32)
    weights = random.dirichlet([0.3] * o.rank, size=o.users)
    rewards = (features @ basis).astype(np.float64)
    user = np.repeat(np.arange(o.users), o.each)
    one, other = random.integers(responses, size=(2, len(user)))
    margins = np.einsum("nb,nb->n", rewards[one] - rewards[other], weights[user])
    first = random.random(len(user)) < 1 / (1 + np.exp(-margins))
    chosen, rejected = np.where(first, one, other), np.where(first, other, one)
    choices = [
        pi.Preference(prompt="p", chosen=str(c), rejected=str(r), user=str(u))
        for c, r, u in zip(chosen, rejected, user, strict=True)
    ]

    def read(prompts: Sequence[Prompt], texts: Sequence[str]) -> np.ndarray:
        return features[[int(text) for text in texts]]

    began = time.process_time()
    wall = time.perf_counter()
    model = LowRankRewards(o.rank, features=read, ridge=0.1, steps=o.steps).fit(choices)
    seconds = time.process_time() - began
    wall = time.perf_counter() - wall
    predicted: FloatArray = model.predict(choices[:20_000])
    truth = np.abs(margins[:20_000]) * np.where(first, 1, -1)[:20_000] * np.sign(margins[:20_000])
    print(f"{len(choices):,} choices of {o.users:,} users, {o.width} features, rank {o.rank}:")
    print(f"fitted in {seconds:.1f} s of the processor, {wall:.1f} s on the clock,")
    print(f"{model.evaluations} evaluations of the loss")
    print(f"correlation with the planted margins: {np.corrcoef(predicted, truth)[0, 1]:.3f}")
    some = slice(o.loop)
    rows = (features[chosen[some]] - features[rejected[some]]).astype(float).tolist()
    began = time.process_time()
    plain_loop(rows, user[some].tolist(), basis.T.astype(float).tolist(), weights.tolist())
    loop = (time.process_time() - began) / o.loop * len(choices)
    print(f"one evaluation: {seconds / model.evaluations:.2f} s; in a plain loop {loop:,.0f} s,")
    print(f"{loop / (seconds / model.evaluations):,.0f} x")


if __name__ == "__main__":
    main()
