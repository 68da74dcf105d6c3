"""Parts of `calibration.py`: rates, means, agreement, salient words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import personainfer as pi
from personainfer.evaluation import cohen_kappa, krippendorff_alpha
from personainfer.evaluation.grouped import (
    delta_pq,
    length_controlled_rate,
    mean_by_group,
    rate_by_group,
    win_rate,
    win_rate_by_group,
)
from personainfer.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_rate,
    paired_difference,
    wilson,
)
from personainfer.records import FloatArray, Persona

RESAMPLES = 2000
MANY = 400_000  # items from which a truth is computed that has no formula


class Finding(NamedTuple):
    """One thing noted in one run: what, and whether it happened."""

    name: str
    kind: str  # "coverage", "rejection under the null", or what else is counted
    happened: bool


def covers(name: str, found: Estimate | None, truth: float) -> Finding:
    """Whether the interval holds the truth."""
    assert found is not None
    return Finding(name, "coverage", bool(found.low <= truth <= found.high))


def independent(seed: int) -> Iterator[Finding]:
    """Items that are drawn one by one."""
    random = np.random.default_rng([11, seed])
    for n in (8, 14, 40, 200):
        ratings = random.choice([3.0, 4.0, 5.0], p=[0.2, 0.5, 0.3], size=n)
        found = bootstrap_mean(ratings, bounds=(1.0, 5.0), resamples=RESAMPLES)
        yield covers(f"bootstrap_mean of ratings, n = {n}", found, 4.1)
        skewed = bootstrap_mean(random.exponential(size=n), resamples=RESAMPLES)
        yield covers(f"bootstrap_mean of an exponential, n = {n}", skewed, 1.0)
        orders = random.binomial(2, 0.7, size=n) / 2  # two orders of one judgement
        yield covers(
            f"bootstrap_rate of two orders, n = {n}",
            bootstrap_rate(orders, resamples=RESAMPLES),
            0.7,
        )
        one = random.normal(size=n)
        other = 0.5 * one + random.normal(size=n) - 0.3
        found = paired_difference(one, other, resamples=RESAMPLES)
        yield covers(f"paired_difference, n = {n}", found, 0.3)
        yield covers(f"wilson, n = {n}", wilson(int(random.binomial(n, 0.7)), n), 0.7)
        outcomes = random.choice([-1, 0, 1], p=[0.3, 0.2, 0.5], size=n)
        won = win_rate(outcomes, resamples=RESAMPLES)
        yield covers(f"win_rate: rate, n = {n}", won.rate, 0.5 / 0.8)
        yield covers(f"win_rate: rate_with_ties, n = {n}", won.rate_with_ties, 0.6)


def drawn_outcomes(random: np.random.Generator, groups: int) -> tuple[FloatArray, FloatArray]:
    """Two outcomes an item, (2, n), and the items' groups: those of one prompt are alike."""
    place = np.repeat(np.arange(groups), random.integers(1, 6, size=groups))
    shared = random.normal(size=(2, groups))[:, place]
    latent = 0.7 * shared + 0.7 * random.normal(size=(2, len(place))) + np.array([[0.5], [0.2]])
    return np.where(np.abs(latent) < 0.15, 0.0, np.sign(latent)), place.astype(np.float64)


def grouped() -> Callable[[int], Iterator[Finding]]:
    """Items in groups, which are resampled whole."""
    outcomes, _ = drawn_outcomes(np.random.default_rng(12), MANY // 3)
    rates = [(o > 0).sum() / (o != 0).sum() for o in outcomes]
    with_ties = float((outcomes[0].mean() + 1) / 2)

    def part(seed: int) -> Iterator[Finding]:
        random = np.random.default_rng([13, seed])
        for groups in (15, 60):
            drawn, place = drawn_outcomes(random, groups)
            scores = (drawn[0] + 1) / 2
            name = f"groups = {groups}"
            yield covers(
                f"mean_by_group, {name}", mean_by_group(drawn[0], place), 2 * with_ties - 1
            )
            yield covers(f"rate_by_group, {name}", rate_by_group(scores, place), with_ties)
            won = win_rate_by_group(drawn[0], place)
            yield covers(f"win_rate_by_group: rate, {name}", won.rate, rates[0])
            yield covers(f"delta_pq, {name}", delta_pq(*drawn, place), sum(rates) - 1)

    return part


def equal_length(seed: int) -> Iterator[Finding]:
    """The longer side wins more often; at equal length the rate is 0.6."""
    random = np.random.default_rng([14, seed])
    for groups in (40, 150):
        place = np.repeat(np.arange(groups), 2)
        lengths = random.normal(20, 60, size=2 * groups)
        odds = np.log(0.6 / 0.4) + 0.8 * np.tanh(lengths / 60)
        won = np.where(random.random(2 * groups) < 1 / (1 + np.exp(-odds)), 1, -1)
        found = length_controlled_rate(won, lengths, place, resamples=1000)
        yield covers(f"length_controlled_rate, groups = {groups}", found, 0.6)


def drawn_ratings(random: np.random.Generator, items: int) -> FloatArray:
    """Ratings from 0 to 4 of three raters, (3, items)."""
    quality = random.normal(size=items)
    rated = quality + 0.8 * random.normal(size=(3, items))
    found: FloatArray = np.digitize(rated, [-1.2, -0.4, 0.4, 1.2]).astype(np.float64)
    return found


def agreement() -> Callable[[int], Iterator[Finding]]:
    """How far raters agree."""
    many = drawn_ratings(np.random.default_rng(15), 100_000)
    alphas = {level: krippendorff_alpha(many[:, :20_000], level=level).value for level in LEVELS}
    kappa = cohen_kappa(many[0][:50_000], many[1][:50_000]).value

    def part(seed: int) -> Iterator[Finding]:
        random = np.random.default_rng([16, seed])
        for items in (20, 80):
            ratings = drawn_ratings(random, items)
            for level in LEVELS:
                found = krippendorff_alpha(ratings, level=level)
                yield covers(f"krippendorff_alpha, {level}, n = {items}", found, alphas[level])
            yield covers(f"cohen_kappa, n = {items}", cohen_kappa(ratings[0], ratings[1]), kappa)

    return part


LEVELS = ("nominal", "ordinal")


def salience(seed: int) -> Iterator[Finding]:
    """Words that both sides say equally often, and one side's words that are wholly absent."""
    random = np.random.default_rng([17, seed])
    words = ["".join(chr(97 + int(c)) for c in f"{n:03d}") + "word" for n in range(40)]
    share = random.uniform(0.05, 0.6, size=len(words))
    people = [
        Persona(
            trait="x",
            preference=" ".join(np.array(words)[random.random(len(words)) < share]) or "x",
        )
        for _ in range(400)
    ]
    pair = pi.Preference(prompt="p", chosen="c", rejected="r")
    rows = [pi.PersonaRow(n, pair, people[2 * n], people[2 * n + 1]) for n in range(200)]
    null = "rejection under the null"
    for correction in ("benjamini-hochberg", "holm"):
        found = pi.salient_words(pi.PersonaTable(rows), correction=correction)
        any_word = any(word.p_adjusted < 0.05 for word in found)
        yield Finding(f"salient_words: any p_adjusted, {correction}", null, any_word)
    words_found = {word.word: word for word in found}
    for first in (words_found[word] for word in words[:3] if word in words_found):
        yield Finding("salient_words: p_value of one word", null, first.p_value < 0.05)
        yield covers("salient_words: log_odds", first.log_odds, 0.0)
        yield covers("salient_words: probability", first.probability, 0.5)


# What is simulated, by name: -> (seed -> findings).
PARTS: dict[str, Callable[[], Callable[[int], Iterator[Finding]]]] = {
    "independent": lambda: independent,
    "grouped": grouped,
    "equal length": lambda: equal_length,
    "agreement": agreement,
    "salience": lambda: salience,
}
