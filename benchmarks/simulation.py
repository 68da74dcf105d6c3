"""Simulated users against a plain loop: `python benchmarks/simulation.py [--users 10000] [--prompts 1000]`

Users x prompts x 8 responses x 10 models. The loop is measured on a few users and scaled; its choices
must be those of the library. Then the 20 nearest of as many users by vectors of 384 numbers, against a
loop over pairs of users that is measured on a few of them and scaled. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from personainfer.simulation import RewardMatrix, SimulatedUsers
from personainfer.users import nearest_users

RESPONSES, MODELS, DIMENSIONS, LOOP_USERS = 8, 10, 384, 20


def loop(weights: list[list[float]], zscores: list[list[list[float]]]) -> list[list[int]]:
    """One user, prompt, response and model at a time."""
    chosen = []
    for user in weights:
        mine = []
        for prompt in zscores:
            best, best_worth = 0, -float("inf")
            for response, scores in enumerate(prompt):
                worth = 0.0
                for weight, score in zip(user, scores, strict=True):
                    worth += weight * score
                if worth > best_worth:
                    best, best_worth = response, worth
            mine.append(best)
        chosen.append(mine)
    return chosen


def nearest_by_loop(vectors: list[list[float]], user: int, k: int = 20) -> list[int]:
    """One pair of users at a time."""
    one = vectors[user]
    length = math.sqrt(sum(x * x for x in one))
    similar = []
    for place, other in enumerate(vectors):
        dot = sum(x * y for x, y in zip(one, other, strict=True))
        similar.append((dot / length / math.sqrt(sum(y * y for y in other)), place))
    return [place for _, place in sorted(similar, reverse=True) if place != user][:k]


def seconds(start: float) -> float:
    return time.perf_counter() - start


def choices(users: int, prompts: int) -> dict[str, Any]:
    """Seconds for users, z-scores and all choices, and how many times as long a loop chooses."""
    rewards = np.random.default_rng(0).normal(size=(prompts, RESPONSES, MODELS))
    names = [f"model_{n}" for n in range(MODELS)]
    start = time.perf_counter()
    matrix = RewardMatrix(rewards, models=names)
    population = SimulatedUsers.sample(users, models=names)
    ready = seconds(start)
    chosen = population.choose(matrix)
    whole = seconds(start)
    start = time.perf_counter()
    population.choose(matrix, temperature=1.0)
    noisy = seconds(start)
    start = time.perf_counter()
    by_loop = loop(population.weights[:LOOP_USERS].tolist(), matrix.zscores.tolist())
    times = seconds(start) * users / LOOP_USERS / (whole - ready)
    if not np.array_equal(by_loop, chosen[:LOOP_USERS]):
        raise RuntimeError("the loop's choices are not those of the library")
    return {"choices": whole, "choices by Bradley-Terry": noisy, "choices, times": times}


def neighbours(users: int) -> dict[str, Any]:
    """The same for the nearest users."""
    vectors = np.random.default_rng(1).normal(size=(users, DIMENSIONS))
    named = {str(n): vector for n, vector in enumerate(vectors)}
    start = time.perf_counter()
    found = nearest_users(named)
    whole = seconds(start)
    listed = vectors.tolist()
    start = time.perf_counter()
    by_loop = [nearest_by_loop(listed, user) for user in range(LOOP_USERS)]
    times = seconds(start) * users / LOOP_USERS / whole
    if [list(map(int, found[str(user)])) for user in range(LOOP_USERS)] != by_loop:
        raise RuntimeError("the loop's neighbours are not those of the library")
    return {"nearest users": whole, "nearest users, times": times}


def measure(rounds: int) -> dict[str, float]:
    """Medians over fresh processes: seconds, times as long as the loop, and GiB at most."""
    command = [sys.executable, __file__]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    ]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=1_000)
    options = parser.parse_args()
    found = choices(options.users, options.prompts) | neighbours(options.users)
    found["GiB at most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


if __name__ == "__main__":
    main()
