"""Does a persona know its user? Real people's choices: opinions, texts of writers, arguments.

    make bench-users DATA=../shared/data             # all that needs no language model: minutes
    python benchmarks/people_study.py DATA --half test

The three files are described in docs/studies.md. Three tenths of each user's choices are held out: polis at
random, lamp by item, ukp by topic. Half of the users, by a checksum of their names, are for development
(`--half dev`, the default); the other half is reported once (`--half test`). All users' other choices are
history for the models, of either half.

First comes the power calculation: how small a difference each set can show. Then the models that read no
persona. Personas are audited by people_personas.py. Tables are printed as Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import personainfer as pi
from personainfer.evaluation.grouped import mean_by_group, rate_by_group
from personainfer.evaluation.statistics import Estimate
from personainfer.records import FloatArray
from personainfer.scoring import LatentUsers, SimilarUsersVote, word_features
from personainfer.scoring.choice_models import ChoiceModel, LongerWins, MajorityVote
from personainfer.tailoring import BradleyTerry, LowRankRewards
from personainfer.users.similar_users import find_questions

Row = dict[str, Any]

# What a user's choices are split by: each of these is held out or not as a whole.
SETS: dict[str, tuple[str, Callable[[int, Row], object]]] = {
    "polis": ("polis_opinions.jsonl", lambda number, row: number),
    "lamp": ("lamp_writing.jsonl", lambda number, row: row["item"]),
    "ukp": ("ukp_arguments.jsonl", lambda number, row: row["topic"]),
}
MODELS: dict[str, Callable[[], ChoiceModel]] = {
    "longer": LongerWins,
    "majority": MajorityVote,
    "similar users": SimilarUsersVote,
    "Bradley-Terry": BradleyTerry,
    "pooled": lambda: BradleyTerry(word_features),
    "low-rank, 5": LowRankRewards,
    "low-rank, 10": lambda: LowRankRewards(10),
    "latent": LatentUsers,  # needs torch
}
HELD_OUT = 0.3
REACH = 2.8  # the normal quantiles of 0.975 and 0.8 together: found in 8 of 10 studies


@dataclass(frozen=True)
class Choices:
    """The choices of one data set: of all users to learn from, and held out of one half of the users."""

    history: list[pi.Preference]
    held_out: list[pi.Preference]

    @property
    def users(self) -> list[str]:
        return list(dict.fromkeys(choice.user or "" for choice in self.held_out))


def is_test(user: str) -> bool:
    """Whether the user belongs to the half that is reported once."""
    return zlib.crc32(user.encode()) % 2 == 1


def read_rows(folder: Path, name: str) -> list[tuple[Row, object]]:
    """The rows of a data set, each with what it is split by."""
    file, unit_of = SETS[name]
    rows = [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
    return [(row, unit_of(number, row)) for number, row in enumerate(rows)]


def read(folder: Path, name: str, half: str, seed: int) -> Choices:
    """Split the choices of a data set. The id of a choice is the number of its row."""
    rows = read_rows(folder, name)
    units: dict[str, list[object]] = {}
    for row, unit in rows:
        units.setdefault(row["user"], []).append(unit)
    random = np.random.default_rng(seed)
    left_out: set[tuple[str, object]] = set()
    for user, mine in units.items():
        distinct = list(dict.fromkeys(mine))
        drawn = random.permutation(len(distinct))[: round(HELD_OUT * len(distinct))]
        left_out |= {(user, distinct[place]) for place in drawn}
    history, held_out = [], []
    for number, (row, unit) in enumerate(rows):
        fields = {field: row[field] for field in ("prompt", "chosen", "rejected", "user")}
        choice = pi.Preference(**fields, id=str(number))
        if (row["user"], unit) not in left_out:
            history.append(choice)
        elif is_test(row["user"]) == (half == "test"):
            held_out.append(choice)
    return Choices(history, held_out)


# The power calculation


def power(name: str, choices: Choices) -> str:
    """How small a difference the held-out choices show, with a spread between users as of the majority's."""
    users = np.array([choice.user for choice in choices.held_out])
    n, people = len(users), len(set(users.tolist()))
    # Two ways that agree on half of the choices differ with a variance of 0.5 a choice; users spread by
    # 0.1 around the mean difference.
    sizes = np.unique(users, return_counts=True)[1]
    error = math.sqrt(0.5 / n + 0.1**2 * float((sizes**2).sum()) / n**2)
    return f"| {name} | {people} | {n:,} | {REACH * error:.3f} |"


# Models that read no persona


def right(model: ChoiceModel, choices: Choices) -> FloatArray:
    """1 where a held-out choice is predicted, 0.5 for a tie."""
    seen = choices.history
    if isinstance(model, MajorityVote):  # which leaves out the votes of the user who is asked
        seen = [*seen, *choices.held_out]
    found: FloatArray = (np.sign(model.fit(seen).predict(choices.held_out)) + 1) / 2
    return found


def table(folder: Path, names: Sequence[str], half: str, seeds: int) -> Iterator[str]:
    """The lines of the table: each model on each set, over splits, with intervals by user."""
    yield f"| {half} half | " + " | ".join(names) + " |"
    yield "| --- |" + " --- |" * len(names)
    differences = [(one, "similar users") for one in ("low-rank, 5", "latent") if one in MODELS]
    cells: dict[str, list[str]] = {name: [] for name in MODELS}
    for name in names:
        scores: dict[str, list[FloatArray]] = {model: [] for model in MODELS}
        users: list[np.ndarray[Any, Any]] = []
        clashing = []
        for seed in range(seeds):
            choices = read(folder, name, half, seed)
            users.append(np.array([choice.user for choice in choices.held_out]))
            clashing += find_questions(choices.held_out)
            for model, make in MODELS.items():
                scores[model].append(right(make(), choices))
        who = np.concatenate(users)
        together = {model: np.concatenate(found) for model, found in scores.items()}
        for model, found in together.items():
            cells[model].append(cell(rate_by_group(found, who)))
        for one, other in differences:
            said = cell(mean_by_group(together[one] - together[other], who))
            cells.setdefault(f"{one} - {other}", []).append(said)
        share = np.mean([kind == "clashing" for kind in clashing])
        print(f"{name}: {share:.0%} of the held-out choices are on clashing questions", flush=True)
    for model, found in cells.items():
        yield f"| {model} | " + " | ".join(found) + " |"


def cell(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=SETS, help="one data set")
    parser.add_argument("--half", choices=["dev", "test"], default="dev")
    parser.add_argument(
        "--seeds", type=int, default=3, help="splits of the models without personas"
    )
    options = parser.parse_args()
    names = [options.only] if options.only else list(SETS)
    print("| set | users | held-out choices | smallest difference found in 8 of 10 |")
    print("| --- | --- | --- | --- |")
    for name in names:
        print(power(name, read(options.data, name, options.half, 0)))
    print(flush=True)
    print("\n".join(table(options.data, names, options.half, options.seeds)))


if __name__ == "__main__":
    main()
