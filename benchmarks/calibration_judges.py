"""Parts of `calibration.py`: personas and responses judged from end to end, by a model and by people.

The model is a server on this machine whose answers are drawn: a row is easy or hard, the judge leans to what
it reads first, answers "neither" at times, and sends replies that cannot be used. The truth is what the same
draw gives on very many rows.
"""

from __future__ import annotations

import csv
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calibration_evaluation import Finding, covers

import personainfer as pi
from personainfer.evaluation import (
    bootstrap_rate,
    cohen_kappa,
    krippendorff_alpha,
    read_rating_sheet,
    write_rating_sheet,
)
from personainfer.evaluation.grouped import length_controlled_rate
from personainfer.records import FloatArray, Persona
from personainfer.testing import FakeLLM, Reply

ROWS = 40
MANY = 200_000  # rows from which the truth comes
QUESTIONS = ("plausible", "applicable", "harmful", "overfit")
_ITEM = re.compile(r"(chosen|rejected) item (\d+)")


# A judge whose answers are drawn


def drawn_leanings(random: np.random.Generator, rows: int) -> FloatArray:
    """How far the judge leans to the side's own text, shape (rows, sides, orders)."""
    row = random.normal(size=(rows, 1, 1))
    side = 0.5 * random.normal(size=(rows, 2, 1)) + np.array([0.9, 0.5])[:, None]
    position = np.array([0.3, -0.3])
    leaning: FloatArray = row + side + position + 0.8 * random.normal(size=(rows, 2, 2))
    return leaning


def picks_of(random: np.random.Generator, leanings: FloatArray) -> FloatArray:
    """1 for the own text, -1 for the other, 0 for neither, NaN for a reply that cannot be used."""
    picks = np.where(np.abs(leanings) < 0.15, 0.0, np.sign(leanings))
    return np.where(random.random(leanings.shape) < 0.03, np.nan, picks)


def said_probability(leanings: FloatArray) -> FloatArray:
    """The judge's probability of the own text, by its log-probabilities."""
    return 1 / (1 + np.exp(-1.5 * leanings))


def table_of(rows: int) -> pi.PersonaTable:
    """Rows whose texts say which item they are."""
    people = {
        side: [Persona(trait=f"{side} item {n}", preference="answers") for n in range(rows)]
        for side in ("chosen", "rejected")
    }
    return pi.PersonaTable(
        [
            pi.PersonaRow(
                n,
                pi.Preference(
                    prompt=f"Question {n}?",
                    chosen=f"The chosen item {n}.",
                    rejected=f"The rejected item {n}.",
                ),
                people["chosen"][n],
                people["rejected"][n],
            )
            for n in range(rows)
        ]
    )


def answer(pick: float, own_first: bool, probability: float | None = None) -> Any:
    """The reply that picks the own text (1), the other (-1), neither (0), or cannot be used (NaN)."""
    if math.isnan(pick):
        return {"answer": "perhaps"}
    said = "neither" if pick == 0 else "1" if (pick > 0) == own_first else "2"
    if probability is None:
        return {"answer": said}
    first = probability if own_first else 1 - probability
    near = [{"token": t, "logprob": math.log(p)} for t, p in (("1", first), ("2", 1 - first))]
    tokens = ['{"', "answer", '":', ' "', said, '"}']
    logprobs = [
        {"token": t, "logprob": -0.1, "top_logprobs": near if t == said else []} for t in tokens
    ]
    return Reply({"answer": said}, logprobs={"content": logprobs})


def between(body: Mapping[str, Any], tag: str) -> tuple[str, int]:
    """Side and number of the item that stands in a tag of the last message."""
    text = body["messages"][-1]["content"].split(f"<{tag}>")[1].split(f"</{tag}>")[0]
    found = _ITEM.search(text)
    assert found is not None
    return found[1], int(found[2])


def judging(reply: Callable[[Mapping[str, Any]], Any]) -> FakeLLM:
    return FakeLLM(reply, keep=0)


OPTIONS: dict[str, Any] = {"cache": False, "max_attempts": 1, "max_concurrency": 8}
SIDES = ("chosen", "rejected")


# verify_personas


def own_share(picks: FloatArray) -> FloatArray:
    """The share of both orders that pick the own text, shape (rows, sides)."""
    return np.asarray((picks == 1).mean(axis=2), dtype=np.float64)


def agreeing(picks: FloatArray) -> float:
    """The share of questions whose orders pick the same text, of those whose orders both pick one."""
    both = (np.abs(picks) == 1).all(axis=-1)
    return float((picks[..., 0] == picks[..., 1])[both].mean())


def verification() -> Callable[[int], Iterator[Finding]]:
    random = np.random.default_rng(20)
    leanings = drawn_leanings(random, MANY)
    many = picks_of(random, leanings)
    shares = own_share(many).mean(axis=0)
    soft = np.where(np.abs(many) == 1, said_probability(leanings), 0.0).mean()
    table = table_of(ROWS)

    def part(seed: int) -> Iterator[Finding]:
        random = np.random.default_rng([21, seed])
        leanings = drawn_leanings(random, ROWS)
        picks = picks_of(random, leanings)
        says = said_probability(leanings)

        def reply(body: Mapping[str, Any]) -> Any:
            side, row = between(body, "persona")
            own_first = between(body, "response_1")[0] == side
            place = row, SIDES.index(side), 0 if own_first else 1
            return answer(picks[place], own_first, says[place])

        with judging(reply) as server:
            found = pi.verify_personas(table, "judge", api_base=server.api_base, **OPTIONS)
        name = "verify_personas"
        yield covers(f"{name}: accuracy", found.overall.accuracy, shares.mean())
        yield covers(f"{name}: accuracy of a side", found.sides["chosen"].accuracy, shares[0])
        yield covers(f"{name}: probability", found.overall.probability, soft)
        yield covers(f"{name}: consistency", found.overall.consistency, agreeing(many))
        yield covers(f"{name}: difference", found.difference, shares[0] - shares[1])

    return part


def judged_picks() -> Callable[[int], Iterator[Finding]]:
    """The accuracy of a side as in `verification`, without the server: for many more seeds."""
    random = np.random.default_rng(20)
    share = float(own_share(picks_of(random, drawn_leanings(random, MANY))).mean(axis=0)[0])

    def part(seed: int) -> Iterator[Finding]:
        random = np.random.default_rng([21, seed])
        picks = picks_of(random, drawn_leanings(random, ROWS))
        found = bootstrap_rate(own_share(picks)[:, 0])
        yield covers("bootstrap_rate of the picks on a side", found, share)

    return part


# compare_personas


def outcomes_of(picks: FloatArray) -> FloatArray:
    """1, 0 or -1 a row by both orders, NaN where a reply cannot be used; picks of shape (rows, orders)."""
    one, other = picks[:, 0], picks[:, 1]
    known = np.where(one == other, one, 0.0)
    return np.where(np.isnan(one) | np.isnan(other), np.nan, known)


def rates_of(outcomes: FloatArray) -> tuple[float, float]:
    """The win rate without ties, and with ties as half."""
    wins, losses, ties = (np.count_nonzero(outcomes == sign) for sign in (1, -1, 0))
    return wins / (wins + losses), (wins + ties / 2) / (wins + ties + losses)


def comparison_of_personas() -> Callable[[int], Iterator[Finding]]:
    random = np.random.default_rng(22)
    many = picks_of(random, drawn_leanings(random, MANY))[:, 0]
    rate, with_ties = rates_of(outcomes_of(many))
    table = table_of(ROWS)

    def part(seed: int) -> Iterator[Finding]:
        random = np.random.default_rng([23, seed])
        picks = picks_of(random, drawn_leanings(random, ROWS))[:, 0]

        def reply(body: Mapping[str, Any]) -> Any:
            side, row = between(body, "persona_1")
            own_first = side == "chosen"
            return answer(picks[row, 0 if own_first else 1], own_first)

        with judging(reply) as server:
            found = pi.compare_personas(table, "judge", api_base=server.api_base, **OPTIONS)
        name = "compare_personas"
        yield covers(f"{name}: rate", found.win_rate.rate, rate)
        yield covers(f"{name}: rate_with_ties", found.win_rate.rate_with_ties, with_ties)
        yield covers(f"{name}: consistency", found.consistency, agreeing(many))

    return part


# rate_personas


def drawn_ratings(random: np.random.Generator, rows: int) -> FloatArray:
    """Ratings from 1 to 5 of both sides of a row, (rows, sides)."""
    latent = random.normal(size=(rows, 1)) + np.array([0.4, 0.0]) + random.normal(size=(rows, 2))
    return np.digitize(latent, [-2.0, -1.0, 0.3, 1.4]).astype(np.float64) + 1


def ratings() -> Callable[[int], Iterator[Finding]]:
    means = drawn_ratings(np.random.default_rng(24), MANY).mean(axis=0)
    table = table_of(ROWS)

    def part(seed: int) -> Iterator[Finding]:
        drawn = drawn_ratings(np.random.default_rng([25, seed]), ROWS).astype(int)

        def reply(body: Mapping[str, Any]) -> Any:
            side, row = between(body, "persona")
            return dict.fromkeys(QUESTIONS, int(drawn[row, SIDES.index(side)]))

        with judging(reply) as server:
            found = pi.rate_personas(table, "judge", api_base=server.api_base, **OPTIONS)
        chosen = found.means["chosen"]["plausible"]
        yield covers("rate_personas: mean", chosen, means[0])
        difference = found.difference["plausible"]
        yield covers("rate_personas: difference", difference, means[0] - means[1])

    return part


# compare_responses


def drawn_responses(
    random: np.random.Generator, prompts: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The prompt of each row, lengths (rows, 2) of base and test, and picks (rows, rubrics, orders)."""
    place = np.repeat(np.arange(prompts), random.integers(1, 4, size=prompts))
    rows = len(place)
    lengths = np.rint(np.exp(random.normal(5.0, 0.4, size=(rows, 2))) + np.array([20, 35]))
    longer = np.tanh((lengths[:, 1] - lengths[:, 0]) / 80)
    shared = 0.6 * random.normal(size=(prompts, 2))[place]
    own = shared + 0.5 * longer[:, None] + 0.4 * random.normal(size=(rows, 2))
    position = np.array([0.3, -0.3])
    leaning = own[:, :, None] + np.array([0.1, 0.3])[:, None] + position
    leaning = leaning + 0.5 * random.normal(size=(rows, 2, 2))
    return place.astype(np.float64), lengths, picks_of(random, leaning)


def comparison_of_responses() -> Callable[[int], Iterator[Finding]]:
    place, lengths, many = drawn_responses(np.random.default_rng(26), MANY // 8)
    outcomes = [outcomes_of(many[:, rubric]) for rubric in range(2)]
    rates = [rates_of(one) for one in outcomes]
    differences = lengths[:, 1] - lengths[:, 0]
    fair = length_controlled_rate(outcomes[0], differences, place, resamples=1).value

    def part(seed: int) -> Iterator[Finding]:
        place, lengths, picks = drawn_responses(np.random.default_rng([27, seed]), ROWS)
        texts = [
            [f"{side} item {n} ".ljust(int(length), "x") for n, length in enumerate(column)]
            for side, column in zip(SIDES, lengths.T, strict=True)
        ]

        def judge(prompt: Any, first: str, second: str, persona: Any) -> Any:
            found = _ITEM.search(first)
            assert found is not None
            own_first = found[1] == "rejected"  # the test model's response
            pick = picks[int(found[2]), 0 if persona is None else 1, 0 if own_first else 1]
            return None if math.isnan(pick) else answer(pick, own_first)["answer"]

        prompts = [f"Question {int(n)}?" for n in place]
        found = pi.compare_responses(prompts, *texts, judge, personas="A person.")
        name = "compare_responses"
        won, consistent = found.quality.win_rate, found.quality.consistency
        yield covers(f"{name}: rate", won.rate, rates[0][0])
        yield covers(f"{name}: rate_with_ties", won.rate_with_ties, rates[0][1])
        yield covers(f"{name}: at equal length", found.quality.length_controlled, fair)
        yield covers(f"{name}: consistency", consistent, agreeing(many[:, 0]))
        yield covers(f"{name}: delta_pq", found.delta_pq, rates[0][0] + rates[1][0] - 1)
        yield covers(f"{name}: length, difference", found.length.difference, differences.mean())

    return part


# People


def drawn_choices(random: np.random.Generator, items: int) -> tuple[FloatArray, FloatArray]:
    """What three raters pick, (3, items): 1 the own response, 2 the other, 0 neither; and verdicts."""
    item = random.normal(size=items) + 0.7
    latent = item + 0.8 * random.normal(size=(4, items))
    chosen = np.where(np.abs(latent) < 0.2, 0.0, np.where(latent > 0, 1.0, 2.0))
    return chosen[:3], (latent[3] > 0).astype(np.float64)


def majority(chosen: FloatArray) -> FloatArray:
    """Whether most of three raters pick the own response."""
    return np.asarray((chosen == 1).mean(axis=0) > 0.5, dtype=np.float64)


def people() -> Callable[[int], Iterator[Finding]]:
    many, verdicts = drawn_choices(np.random.default_rng(28), MANY // 4)
    rated = np.stack([drawn_ratings(np.random.default_rng(29), MANY // 4)[:, 0]] * 2)
    said = majority(many)
    truth = {
        "accuracy": (many == 1).mean(),
        "alpha": krippendorff_alpha(many[:, :20_000]).value,
        "kappa": cohen_kappa(many[0], many[1]).value,
        "judge": (said == verdicts).mean(),
        "judge_kappa": cohen_kappa(said, verdicts).value,
        "mean": rated[0].mean(),
    }
    table = table_of(ROWS)

    def part(seed: int) -> Iterator[Finding]:
        random = np.random.default_rng([30, seed])
        chosen, verdicts = drawn_choices(random, ROWS)
        verified = [bool(one) for one in verdicts]
        judged = table.with_columns({"chosen_verified": verified})
        with tempfile.TemporaryDirectory() as folder:
            sheet = write_rating_sheet(judged, Path(folder, "sheet"), sides="chosen", seed=seed)
            files = [
                filled(sheet.csv, Path(folder, f"{rater}.csv"), chosen[rater]) for rater in range(3)
            ]
            found = read_rating_sheet(sheet.key, files, table=judged)
            rates = write_rating_sheet(
                table, Path(folder, "rates"), sides="chosen", question="rating", seed=seed
            )
            numbers = drawn_ratings(random, ROWS)[:, 0]
            marks = [rated_file(rates.csv, Path(folder, "marks.csv"), numbers)]
            means = read_rating_sheet(rates.key, marks).means["plausible"]["both"]
        name = "read_rating_sheet"
        yield covers(f"{name}: accuracy", found.means["accuracy"]["both"], truth["accuracy"])
        yield covers(f"{name}: alpha", found.agreement["choice"], truth["alpha"])
        yield covers(f"{name}: kappa", found.kappas["0", "1"], truth["kappa"])
        yield covers(f"{name}: agrees with the judge", found.judge, truth["judge"])
        yield covers(f"{name}: kappa with the judge", found.judge_kappa, truth["judge_kappa"])
        yield covers(f"{name}: mean of ratings", means, truth["mean"])

    return part


def filled(sheet: Path, path: Path, chosen: Sequence[float]) -> Path:
    """A rater's file: which response each row's persona would pick, by the row's number in the text."""
    with sheet.open(encoding="utf-8-sig", newline="") as file, path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["item", "choice"])
        for row in csv.DictReader(file):
            number = _ITEM.search(row["persona"])
            assert number is not None
            own = "1" if "chosen" in row["response_1"] else "2"
            pick = chosen[int(number[2])]
            said = "neither" if pick == 0 else own if pick == 1 else "12".replace(own, "")
            writer.writerow([row["item"], said])
    return path


def rated_file(sheet: Path, path: Path, numbers: Sequence[float]) -> Path:
    """A rater's file of ratings, the same for each question."""
    with sheet.open(encoding="utf-8-sig", newline="") as file, path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["item", *QUESTIONS])
        for row in csv.DictReader(file):
            number = _ITEM.search(row["persona"])
            assert number is not None
            writer.writerow([row["item"], *[int(numbers[int(number[2])])] * len(QUESTIONS)])
    return path


# What is simulated, by name: -> (seed -> findings).
PARTS: dict[str, Callable[[], Callable[[int], Iterator[Finding]]]] = {
    "verify_personas": verification,
    "judged picks": judged_picks,
    "compare_personas": comparison_of_personas,
    "rate_personas": ratings,
    "compare_responses": comparison_of_responses,
    "people": people,
}
