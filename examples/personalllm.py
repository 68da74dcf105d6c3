"""Simulated users on PersonalLLM: does it help to know what similar users chose?

    python examples/personalllm.py                            # a few invented prompts, beside this file
    python examples/personalllm.py namkoong-lab/PersonalLLM   # the published data, from the hub

Each new user has made a few choices. For the prompts of the test split one response is recommended to
each: the favourite of all known users, or that of the 20 known users whose choices are most similar
(arXiv 2409.20296, section 4.2; users are vectors of what they chose minus what they did not). Reported are
the mean reward by the user's own weights, and how often it beats the favourite of all, with intervals by
user. The text vectors are counts of hashed words, so that nothing is downloaded: name a better embedding
in `embed` for results to rely on.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

import personainfer as pi
from personainfer.evaluation import bootstrap_mean, paired_difference
from personainfer.simulation import feature_regression, read_personal_llm, votes
from personainfer.users import nearest_users, user_vectors

SMALL = Path(__file__).parent / "data" / "personalllm"
KNOWN, NEW, PAIRS, NEIGHBOURS, DIMENSIONS = 800, 200, 8, 20, 256


def embed(texts: list[str]) -> npt.NDArray[np.float64]:
    """Counts of words, hashed into a fixed number of places."""
    vectors = np.zeros((len(texts), DIMENSIONS))
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, zlib.crc32(word.encode()) % DIMENSIONS] += 1
    return vectors


def favourites(choices: npt.NDArray[np.int64], responses: int) -> npt.NDArray[np.intp]:
    """For each prompt the response that most of these users chose: (users, prompts) -> (prompts,)."""
    return votes(choices, responses).shares.argmax(axis=1)


def main(source: str | Path = SMALL) -> None:
    train = read_personal_llm(source, split="train")
    test_split = read_personal_llm(source, split="test", models=train.models)
    test = train.like(
        test_split.rewards, prompts=test_split.prompts, responses=test_split.responses
    )
    print(f"{train}\nleft out: {dict(train.dropped) or 'nothing'}")

    users = pi.SimulatedUsers.sample(KNOWN + NEW, models=train.models, alpha=0.05)
    chosen = users.choose(test)
    count = test.rewards.shape[1]
    print(votes(chosen, count))
    print(feature_regression(users, test))

    history = users.histories(train, pairs_per_user=PAIRS)
    new = users.names[KNOWN:]
    everybody = user_vectors(history, embed)
    nearest = nearest_users(everybody, NEIGHBOURS, of=new, among=users.names[:KNOWN])
    popular = favourites(chosen[:KNOWN], count)
    utilities = users.utilities(test)[KNOWN:]
    prompts = np.arange(len(test))
    rewards: dict[str, list[float]] = {"favourite of all": [], "of similar users": []}
    wins = []
    for mine, name in zip(utilities, new, strict=True):
        similar = favourites(chosen[[int(user) for user in nearest[name]]], count)
        rewards["favourite of all"].append(mine[prompts, popular].mean())
        rewards["of similar users"].append(mine[prompts, similar].mean())
        margin = mine[prompts, similar] - mine[prompts, popular]
        wins.append(float(np.mean((np.sign(margin) + 1) / 2)))
    best = bootstrap_mean(utilities.max(axis=2).mean(axis=1))
    for name, values in rewards.items():
        print(f"reward, {name}: {bootstrap_mean(values)}")
    print(f"reward, best for each user: {best}")
    print(f"difference, paired by user: {paired_difference(*list(rewards.values())[::-1])}")
    print(f"win rate against the favourite of all, a tie counts half: {bootstrap_mean(wins)}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
