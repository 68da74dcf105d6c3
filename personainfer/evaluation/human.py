"""Let people judge personas: write a blinded sheet, read their ratings, measure agreement.

The questions are those of "Whose Boat Does it Float?" (arXiv 2501.11549): which response the persona
prefers, and four ratings from 1 to 5.
"""

from __future__ import annotations

import csv
import json
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import ArrayLike, NDArray

from ..arguments import read_numbers
from ..data.atomic_files import atomic_folder, remove_abandoned, write_file
from ..data.files import open_rows
from ..data.table import PersonaTable
from ..data.table_display import embedded_json
from ..exceptions import DataError, InvalidArgumentError
from ..personas.prompts import prompt_text
from ..records import FloatArray, Side
from .statistics import (
    CONFIDENCE,
    Estimate,
    bootstrap,
    bootstrap_mean,
    bootstrap_rate,
    check_confidence,
    wilson,
)

Question = Literal["choice", "rating"]
Level = Literal["nominal", "ordinal", "interval"]

RATINGS = ("plausible", "applicable", "harmful", "overfit")
_FIELDS: dict[str, tuple[str, ...]] = {"choice": ("choice",), "rating": RATINGS}
_CHOICES = {"1": "1", "2": "2", "neither": "neither"}
_SHOWN = ("item", "persona", "prompt", "response_1", "response_2")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs cells that begin so


class RatingSheet(NamedTuple):
    """The files of a sheet: `csv` and `html` for the raters; `key`, with the answers, is not for them."""

    csv: Path
    html: Path
    key: Path


def write_rating_sheet(
    table: PersonaTable,
    folder: str | Path,
    *,
    question: Question = "choice",
    sides: Literal["both", "chosen", "rejected"] = "both",
    items: int | None = None,
    seed: int = 0,
) -> RatingSheet:
    """Write what people are to rate, as a CSV file and as one HTML page that needs no network.

    The items are shuffled and numbered, and which response comes first is random, so a rater cannot tell the
    chosen from the rejected side.

    Args:
        table: personas of one side or both.
        folder: an empty or new folder.
        question: "choice": which of the two responses does this person prefer (1, 2, neither)?
            "rating": the preferred response is marked; is the persona plausible, applicable, harmful,
            overfit (1 to 5 each)?
        sides: whose personas.
        items: how many of them, drawn at random; None: all.
        seed: of the random choices.

    Raises:
        InvalidArgumentError: a bad argument, or a folder that holds files.
        DataError: the table has fewer personas than `items`.
    """
    InvalidArgumentError.check("question", question, _FIELDS)
    InvalidArgumentError.check("sides", sides, ("both", "chosen", "rejected"))
    if not isinstance(table, PersonaTable):
        raise InvalidArgumentError(
            f"a sheet is made of a PersonaTable, not {type(table).__name__}."
        )
    folder = Path(folder)
    remove_abandoned(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidArgumentError(
            f"folder={str(folder)!r} is not empty.",
            hint="Name a new folder: a key is not replaced.",
        )
    found = _items(table, ("chosen", "rejected") if sides == "both" else (sides,))
    count = len(found) if items is None else items
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(found):
        raise DataError(f"items={items!r}: the table has {len(found)} personas of these sides.")
    shown, key = _blinded(table, found, count, question, random.Random(seed))
    about = {"question": question, "rows": len(table), "items": key}
    with atomic_folder(folder) as unfinished:
        sheet = _files(unfinished)
        _write_csv(sheet.csv, shown, _FIELDS[question])
        write_file(sheet.html, _page(shown, question))
        write_file(sheet.key, json.dumps(about))
    return _files(folder)


def _files(folder: Path) -> RatingSheet:
    return RatingSheet(folder / "sheet.csv", folder / "sheet.html", folder / "key.json")


def _blinded(
    table: PersonaTable,
    found: Sequence[tuple[int, Side]],
    count: int,
    question: Question,
    drawn: random.Random,
) -> tuple[list[dict[str, str]], dict[str, dict[str, Any]]]:
    """Random items as the raters see them, and the key: what each item is, by its number."""
    shown: list[dict[str, str]] = []
    key: dict[str, dict[str, Any]] = {}
    for number, (place, side) in enumerate(drawn.sample(found, count), 1):
        row = table[place]
        pair = row.preference
        assert pair is not None  # left out otherwise
        persona = row.chosen if side == "chosen" else row.rejected
        own, other = (pair.chosen, pair.rejected)[:: 1 if side == "chosen" else -1]
        own_first = question == "rating" or drawn.random() < 0.5
        responses = (own, other) if own_first else (other, own)
        texts = (str(number), str(persona), prompt_text(pair.prompt), *responses)
        shown.append(dict(zip(_SHOWN, texts, strict=True)))
        key[str(number)] = {"place": place, "side": side, "own": 1 if own_first else 2}
    return shown, key


def _items(table: PersonaTable, sides: Sequence[Side]) -> list[tuple[int, Side]]:
    return [
        (place, side)
        for place, row in enumerate(table)
        for side in sides
        if row.preference is not None and (row.chosen if side == "chosen" else row.rejected)
    ]


def _write_csv(path: Path, shown: Sequence[Mapping[str, str]], fields: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8-sig", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_SHOWN, *fields])
        for row in shown:
            texts = [f"'{text}" if text.startswith(_FORMULA) else text for text in row.values()]
            writer.writerow([*texts, *("" for _ in fields)])


def _page(shown: Sequence[Mapping[str, str]], question: str) -> str:
    data = embedded_json([{"question": question, "items": list(shown)}])
    source = files(__package__).joinpath("templates").joinpath("sheet.html")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(source.read_text(encoding="utf-8"))
    return str(page.render(nonce=secrets.token_urlsafe(16), data=data))


# Ratings in


@dataclass(frozen=True)
class HumanRatings:
    """What people said of a sheet's items.

    Attributes:
        question: what they were asked.
        raters: their names.
        means: for a choice how often the persona's own response was picked ("neither" is wrong), each
            side by itself and "both"; for ratings the mean of each question, by side.
        agreement: Krippendorff's alpha among the raters, of each question: nominal for a choice, ordinal
            for ratings. NaN with one rater.
        kappas: Cohen's kappa of each two raters, of a choice.
        judge: the share of items on which most raters and the judge agree that the persona explains the
            choice; `judge_kappa` is Cohen's kappa of the two. None where the table has no verdicts.
        problems: cells that could not be read, and were left out.
    """

    question: Question
    raters: tuple[str, ...]
    means: Mapping[str, Mapping[str, Estimate]]
    agreement: Mapping[str, Estimate]
    kappas: Mapping[tuple[str, str], Estimate]
    judge: Estimate | None
    judge_kappa: Estimate | None
    problems: tuple[str, ...]
    values: Mapping[str, FloatArray] = field(repr=False)

    def __str__(self) -> str:
        lines = [f"{len(self.raters)} raters: {', '.join(self.raters)}"]
        for name, sides in self.means.items():
            lines += [f"{name}, {side}: {estimate}" for side, estimate in sides.items()]
        lines += [f"Krippendorff's alpha, {name}: {a}" for name, a in self.agreement.items()]
        lines += [f"Cohen's kappa, {' and '.join(two)}: {k}" for two, k in self.kappas.items()]
        if self.judge is not None:
            lines += [f"agree with the judge: {self.judge}", f"  Cohen's kappa: {self.judge_kappa}"]
        lines += [f"left out: {problem}" for problem in self.problems[:5]]
        return "\n".join(lines)


def read_rating_sheet(
    key: str | Path,
    ratings: Sequence[str | Path],
    *,
    table: PersonaTable | None = None,
    confidence: float = CONFIDENCE,
) -> HumanRatings:
    """The ratings, and how far the raters agree.

    Args:
        key: the `key.json` of the sheet.
        ratings: one file for each rater: the filled-in CSV, or what the page saved. Cells may be empty.
        table: the table that the sheet was made of, with the verdicts of `verify_personas`, to compare the
            judge with people.
        confidence: of the intervals (bootstrap over items).

    Raises:
        InvalidArgumentError: no ratings, two files of one name, or a table of another length.
        DataError: a file is not the key or ratings of this sheet.
    """
    check_confidence(confidence)
    about = _read_key(key)
    question: Question = about["question"]
    names = [Path(path).stem for path in ratings]
    if isinstance(ratings, str | Path) or not names or len(set(names)) < len(names):
        raise InvalidArgumentError(
            "ratings= is a list of files of different names, one a rater.",
            hint="Rename one of them.",
        )
    keys = about["items"]
    problems: list[str] = []
    read = [_read_file(path, keys, question, problems) for path in ratings]
    values = {
        name: np.array([[one[item].get(name, np.nan) for item in keys] for one in read])
        for name in _FIELDS[question]
    }
    sides = np.array([keys[item]["side"] for item in keys])
    level: Level = "nominal" if question == "choice" else "ordinal"
    picked = _picks_own(values["choice"]) if question == "choice" else None
    judged = None if picked is None else _judged(picked, keys, table, about["rows"], confidence)
    return HumanRatings(
        question=question,
        raters=tuple(names),
        means=_means(values, picked, sides, confidence),
        agreement={
            name: krippendorff_alpha(given, level=level, confidence=confidence)
            for name, given in values.items()
        },
        kappas={
            (names[a], names[b]): cohen_kappa(values["choice"][a], values["choice"][b])
            for a, b in combinations(range(len(names)), 2)
            if question == "choice"
        },
        judge=judged and judged[0],
        judge_kappa=judged and judged[1],
        problems=tuple(problems),
        values=values,
    )


def _read_key(path: str | Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        items, rows = about["items"], about["rows"]
        if (
            about["question"] in _FIELDS
            and items
            and all(_is_item(one, rows) for one in items.values())
        ):
            return about
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f"{path} is not the key.json of a sheet.", hint="write_rating_sheet wrote it.")


def _is_item(item: Mapping[str, Any], rows: int) -> bool:
    """Whether this is what a key says of an item: the row, the side, and the place of its own response."""
    known = item["side"] in ("chosen", "rejected") and item["own"] in (1, 2)
    return known and isinstance(item["place"], int) and 0 <= item["place"] < rows


def _read_file(
    path: str | Path, keys: Mapping[str, Any], question: str, problems: list[str]
) -> dict[str, dict[str, float]]:
    """item -> field -> a number: 1 to 5; of a choice 1 for the persona's own response, 2, or 0."""
    found: dict[str, dict[str, float]] = {item: {} for item in keys}
    seen: set[str] = set()
    for row in open_rows(path)[0]:
        item = str(row.get("item", "")).strip() if isinstance(row, dict) else ""
        if item not in found or not isinstance(row, dict):
            raise DataError(f"{path} has a row that is not an item of this sheet: {row!r:.60}.")
        if item in seen:
            raise DataError(f"{path} has the item {item} twice.")
        seen.add(item)
        for name in _FIELDS[question]:
            said = str(row.get(name) or "").strip().lower().removesuffix(".0")
            value = _choice(said, keys[item]["own"]) if question == "choice" else _rating(said)
            if value is not None:
                found[item][name] = value
            elif said:
                problems.append(f"{Path(path).name}, item {item}: {name} is {said!r:.20}.")
    return found


def _choice(said: str, own: int) -> float | None:
    if said not in _CHOICES:
        return None
    return 0.0 if said == "neither" else 1.0 if said == str(own) else 2.0


def _rating(said: str) -> float | None:
    return float(said) if said in {*"12345"} else None


def _picks_own(values: FloatArray) -> FloatArray:
    """1 where a rater picked the persona's own response, else 0; NaN where there is no answer."""
    return np.where(np.isnan(values), np.nan, values == 1.0)


def _means(
    values: Mapping[str, FloatArray],
    picked: FloatArray | None,
    sides: NDArray[Any],
    confidence: float,
) -> dict[str, dict[str, Estimate]]:
    groups = {side: sides == side for side in ("chosen", "rejected") if (sides == side).any()}
    groups["both"] = np.ones(len(sides), dtype=bool)
    if picked is not None:
        rates = {
            s: bootstrap_rate(picked[:, kept].T, confidence=confidence)
            for s, kept in groups.items()
        }
        return {"accuracy": rates}
    return {
        name: {
            s: bootstrap_mean(v[:, kept].T, bounds=(1.0, 5.0), confidence=confidence)
            for s, kept in groups.items()
        }
        for name, v in values.items()
    }


def _judged(
    picked: FloatArray,
    keys: Mapping[str, Any],
    table: PersonaTable | None,
    rows: int,
    confidence: float,
) -> tuple[Estimate, Estimate] | None:
    """How far the judge's verdicts agree with what most raters say."""
    if table is None:
        return None
    if len(table) != rows:
        raise InvalidArgumentError(
            f"table= has {len(table)} rows, and the sheet was made of one with {rows}.",
            hint="Pass the .table of what verify_personas found, neither cut nor sorted.",
        )
    verdicts = [
        (table.added.get(f"{one['side']}_verified") or [None] * rows)[one["place"]]
        for one in keys.values()
    ]
    judge = np.array([np.nan if v is None else float(v) for v in verdicts])
    with np.errstate(invalid="ignore"):
        share = np.nansum(picked, axis=0) / (~np.isnan(picked)).sum(axis=0)
    people = np.where(np.isnan(share) | (share == 0.5), np.nan, share > 0.5)  # no majority, no view
    known = ~np.isnan(judge) & ~np.isnan(people)
    if not known.any():
        return None
    same = bootstrap_rate((judge == people)[known].astype(float), confidence=confidence)
    return same, cohen_kappa(judge, people, confidence=confidence)


# Agreement


def cohen_kappa(one: ArrayLike, other: ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate:
    """Cohen's kappa: (p_o - p_e) / (1 - p_e) of two raters (Cohen 1960).

    Args:
        one, other: shape (n,): the category that each rater gave to each item, as numbers; NaN: none, and
            the item is left out.
        confidence: of the bootstrap interval over items.

    Returns:
        1 where they always agree, 0 where they agree as often as by chance. NaN where both always give
        one and the same category: chance would agree as well. Where they always agree, resampling cannot
        vary: the interval then ends at the kappa of as many disagreements as Wilson's upper limit for
        none of n allows. Its interval is NaN where one rater gives every item the same category, since
        kappa is 0 then whatever the other one says.
    """
    first, second = read_numbers("one", one), read_numbers("other", other)
    if first.shape != second.shape:
        raise InvalidArgumentError(f"two raters of shapes {first.shape} and {second.shape}.")
    known = ~np.isnan(first) & ~np.isnan(second)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    categories, numbers = np.unique(
        np.concatenate([first[known], second[known]]), return_inverse=True
    )
    rows, columns = np.split(numbers, 2)
    k = len(categories)
    items = np.zeros((len(rows), k, k))
    items[np.arange(len(rows)), rows, columns] = 1.0

    def kappa(sums: FloatArray) -> FloatArray:
        shares = sums.reshape(-1, k, k) / sums.sum(axis=1)[:, None, None]
        observed = shares.trace(axis1=1, axis2=2)
        expected = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
        return np.where(expected < 1.0, (observed - expected) / (1.0 - expected), np.nan)

    found = bootstrap(items.reshape(len(rows), -1), kappa, confidence=confidence)
    if min(len(np.unique(rows)), len(np.unique(columns))) < 2:
        return replace(found, low=float("nan"), high=float("nan"))
    shares = items.mean(axis=0)
    return _agreeing(
        found, 1.0 / (1.0 - float(shares.sum(axis=0) @ shares.sum(axis=1))), confidence
    )


def krippendorff_alpha(
    ratings: ArrayLike, *, level: Level = "nominal", confidence: float = CONFIDENCE
) -> Estimate:
    """Krippendorff's alpha: 1 - D_o / D_e, for any number of raters and missing ratings.

    By the coincidences of values within an item (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability").

    Args:
        ratings: shape (raters, items), numbers; NaN: no rating. An item with one rating says nothing.
        level: how far two values are apart: "nominal": they differ; "ordinal": by the ratings between
            them; "interval": by the square of their difference.
        confidence: of the bootstrap interval over items.

    Returns:
        1 where all agree, 0 where they agree as often as by chance; NaN where no item has two ratings or
        all ratings are the same. Where all agree, the interval is as that of `cohen_kappa`, as if those
        who disagree were as far apart as they can be.
    """
    InvalidArgumentError.check("level", level, ("nominal", "ordinal", "interval"))
    given = read_numbers("ratings", ratings, dimensions=(2,))
    paired = given[:, (~np.isnan(given)).sum(axis=0) >= 2]
    if not paired.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    categories = np.unique(paired[~np.isnan(paired)])
    counts = (paired[:, :, None] == categories).sum(axis=0).astype(np.float64)  # items, categories
    pairs = counts[:, :, None] * counts[:, None, :]
    pairs -= counts[:, :, None] * np.eye(len(categories))  # no rating is paired with itself
    coincidences = pairs / (counts.sum(axis=1) - 1.0)[:, None, None]

    def alpha(sums: FloatArray) -> FloatArray:
        table = sums.reshape(-1, len(categories), len(categories))
        totals = table.sum(axis=2)
        n = totals.sum(axis=1)
        apart = _distances(categories, totals, level)
        observed = (table * apart).sum(axis=(1, 2)) / n
        expected = (totals[:, :, None] * totals[:, None, :] * apart).sum(axis=(1, 2)) / (
            n * (n - 1.0)
        )
        return np.where(expected > 0.0, 1.0 - observed / expected, np.nan)

    found = bootstrap(coincidences.reshape(len(counts), -1), alpha, confidence=confidence)
    totals = counts.sum(axis=0, keepdims=True)
    apart = _distances(categories, totals, level)[0]
    expected = float((totals.T * totals * apart).sum() / (totals.sum() * (totals.sum() - 1.0)))
    return _agreeing(found, float(apart.max()) / expected if expected else 0.0, confidence)


def _agreeing(found: Estimate, cost: float, confidence: float) -> Estimate:
    """The estimate, with an interval of some width where all raters agree on all items.

    Of n items all agree on, the share of disagreement in general is at most Wilson's upper limit for 0 of
    n. `cost` is what a share of 1 takes off.
    """
    if not found.value == found.low == 1.0:
        return found
    low = 1.0 - wilson(0, found.n, confidence=confidence).high * cost
    return replace(found, low=max(low, -1.0))


def _distances(categories: FloatArray, totals: FloatArray, level: Level) -> FloatArray:
    """How far each two values are apart, squared, shape (k or 1, values, values)."""
    if level == "nominal":
        return (1.0 - np.eye(len(categories)))[None]
    if level == "interval":
        return ((categories[:, None] - categories) ** 2)[None]
    ranks = np.cumsum(totals, axis=1) - totals / 2.0  # the middle of each value's ratings
    return np.asarray((ranks[:, :, None] - ranks[:, None, :]) ** 2)
