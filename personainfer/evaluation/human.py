"""Let people judge personas: write a blinded sheet, and read their ratings.

The questions are those of "Whose Boat Does it Float?" (arXiv 2501.11549): which response the persona
prefers, and four ratings from 1 to 5.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from ..arguments import Count, CountFromZero, check_argument
from ..data.file_formats import missing_file, open_rows
from ..data.table import PersonaTable
from ..data.table_display import csv_cell, embedded_json, result_text
from ..exceptions import DataError, InvalidArgumentError
from ..local.atomic_files import atomic_folder, remove_abandoned, write_file
from ..local.paths import as_path, place_errors, read_small_file
from ..personas.prompts import prompt_text
from ..preferences.cells import is_null, read_json
from ..records import FloatArray, PersonaRow, Side
from .agreement import Level, cohen_kappa, krippendorff_alpha
from .statistics import CONFIDENCE, Estimate, bootstrap_mean, bootstrap_rate, check_confidence

Question = Literal["choice", "rating"]

RATINGS = ("plausible", "applicable", "harmful", "overfit")
_FIELDS: dict[str, tuple[str, ...]] = {"choice": ("choice",), "rating": RATINGS}
_CHOICES = ("1", "2", "neither")
_SHOWN = ("item", "persona", "prompt", "response_1", "response_2")

# What a spreadsheet shows as a date or another number: "3/4" as March 4, "0.50" as 0.5, "(5)" as -5.
_MONTH = "(?:jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])[a-zé]{0,6}"
_CONVERTED = re.compile(
    r"(?!(?:0|[1-9]\d{0,14})\Z)[(]?\d[\d\s.,:/%()-]{0,60}(?:e[+-]?\d{1,3}|[ap]m)?"
    rf"|(?:\d{{1,4}}[\s./-]{{0,3}})?{_MONTH}(?:[\s.,/-]{{0,3}}\d{{1,4}}){{0,2}}(?<=\d)"
    rf"|\d{{1,4}}[\s./-]{{0,3}}{_MONTH}",
    re.IGNORECASE,
)


class RatingSheet(NamedTuple):
    """The paths of a sheet's files.

    Attributes:
        csv, html: the items, for the raters: as a table, and as a page to fill in.
        key: the answers, which the raters must not see.
    """

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
    """Write personas for people to rate, as a CSV file and as one HTML page that needs no network.

    The items are shuffled and numbered, so that a rater cannot tell the chosen from the rejected side.

    Args:
        table: personas of one side or both.
        folder: an empty or new folder.
        question: "choice": which of the two responses does this person prefer (1, 2, neither)? The order of
            the responses is random. "rating": is the persona plausible, applicable, harmful, overfit (1 to 5
            each)? The first response is the one that the persona should prefer; the page says so, and in the
            CSV file it is `response_1`.
        sides: the sides whose personas are rated.
        items: how many personas, drawn at random; None: all.
        seed: of the draw and the orders.

    Returns:
        The paths of the files.

    Raises:
        InvalidArgumentError: a bad argument, such as more `items` than the table has personas of these sides;
            or a folder that holds files or cannot be made.
        DataError: the table has no persona of these sides.
        OSError: the disk is full.
    """
    InvalidArgumentError.check("question", question, _FIELDS)
    InvalidArgumentError.check("sides", sides, ("both", "chosen", "rejected"))
    if not isinstance(table, PersonaTable):
        raise InvalidArgumentError(
            f"a sheet is made of a PersonaTable, not {type(table).__name__}.", argument="table"
        )
    if items is not None:
        items = check_argument("items", items, Count)
    seed = check_argument("seed", seed, CountFromZero)
    folder = as_path(folder, "folder")
    remove_abandoned(folder)
    with place_errors(folder, "folder"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidArgumentError(
                f"folder={str(folder)!r} is not empty.",
                hint="Name a new folder: a key is not replaced.",
                argument="folder",
            )
    found = _items(table, ("chosen", "rejected") if sides == "both" else (sides,))
    if not found:
        raise DataError("the table has no persona of these sides.")
    count = len(found) if items is None else items
    if count > len(found):
        raise InvalidArgumentError(
            f"items={items}: the table has {len(found)} personas of these sides.", argument="items"
        )
    shown, key = _blinded(table, found, count, question, random.Random(seed))
    about = {"question": question, "rows": len(table), "items": key}
    with place_errors(folder, "folder"), atomic_folder(folder) as unfinished:
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
    """Draw items, and hide which side and which response they are of.

    Names start with letters that differ between sheets, so that a sheet is not read with another's key.

    Args:
        table: the table.
        found: the place of the row and the side of each persona that may be drawn.
        count: how many to draw.
        question: "choice": the order of the two responses is drawn, too.
        drawn: draws them.

    Returns:
        The items as the raters see them, by the names in `_SHOWN`; and the key: name of an item -> its row,
        its side, and the number of the persona's own response (1 or 2).
    """
    texts_of: list[tuple[str, ...]] = []
    answers: list[dict[str, Any]] = []
    for place, side in drawn.sample(found, count):
        row = table[place]
        pair = row.preference
        assert pair is not None  # by `_items`
        persona = row.chosen if side == "chosen" else row.rejected
        own, other = (pair.chosen, pair.rejected)[:: 1 if side == "chosen" else -1]
        own_first = question == "rating" or drawn.random() < 0.5
        responses = (own, other) if own_first else (other, own)
        texts_of.append((str(persona), prompt_text(pair.prompt), *responses))
        own_place = 1 if own_first else 2
        answers.append({"place": place, "side": side, "own": own_place, "row": _digest(row, side)})
    sheet = _letters(repr(texts_of))
    names = [f"{sheet}-{number:0{len(str(count))}}" for number in range(1, count + 1)]
    shown = [
        dict(zip(_SHOWN, (name, *texts), strict=True))
        for name, texts in zip(names, texts_of, strict=True)
    ]
    return shown, dict(zip(names, answers, strict=True))


def _digest(row: PersonaRow, side: Side) -> str:
    """Return six letters that identify the texts of a row and the persona of a side."""
    pair = row.preference
    texts = () if pair is None else (prompt_text(pair.prompt), pair.chosen, pair.rejected)
    return _letters(repr((*texts, str(row.chosen if side == "chosen" else row.rejected))))


def _letters(text: str) -> str:
    """Hash a text to six letters, which no spreadsheet takes for a number or a date."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
    return "".join(ascii_lowercase[number // 26**place % 26] for place in range(6))


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
            item, *texts = row.values()  # the item is read back
            writer.writerow([item, *map(_cell, texts), *("" for _ in fields)])


def _cell(text: str) -> str:
    """Return `csv_cell` of a text, also with an apostrophe where a spreadsheet would show something else."""
    return "'" * bool(_CONVERTED.fullmatch(text.strip())) + csv_cell(text)


def _page(shown: Sequence[Mapping[str, str]], question: str) -> str:
    data = embedded_json([{"question": question, "items": list(shown)}])
    source = files(__package__).joinpath("templates").joinpath("sheet.html")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(source.read_text(encoding="utf-8"))
    return str(page.render(nonce=secrets.token_urlsafe(16), data=data))


# Reading ratings


@dataclass(frozen=True)
class HumanRatings:
    """The ratings of a sheet by people. Intervals resample items.

    Attributes:
        question: the question of the sheet.
        raters: the names of the files of ratings, without their endings.
        means: name -> side ("chosen", "rejected", "both") -> mean. For a choice the name is "accuracy", and
            the mean is the share of answers that picked the persona's own response ("neither" is wrong); for
            ratings the names are the four questions, and the mean is from 1 to 5. A side without items is
            left out.
        agreement: field of the sheet -> Krippendorff's alpha among the raters, nominal for a choice and
            ordinal for ratings. NaN with one rater.
        kappas: two raters -> Cohen's kappa of their choices; empty for ratings.
        judge: the share of items for which the judge and the majority of the raters say the same about
            whether the persona explains the choice. Only items with a verdict and a majority count. None
            without such items, without a table, or for ratings.
        judge_kappa: Cohen's kappa of the judge and the majority; None where `judge` is.
        problems: sentences about cells that could not be read, which are left out, and about files without
            any rating.
        values: field of the sheet -> answers, shape (raters, items); NaN: none. A choice is 1 for the
            persona's own response, 2 for the other one, 0 for neither.
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
        return result_text(lines)


def read_rating_sheet(
    key: str | Path,
    ratings: Sequence[str | Path],
    *,
    table: PersonaTable | None = None,
    confidence: float = CONFIDENCE,
) -> HumanRatings:
    """Read the ratings of a sheet, and measure how far the raters agree.

    Args:
        key: the path of the sheet's `key.json`.
        ratings: the paths of one file for each rater: the filled-in CSV, or the file that the page saved.
            Cells may be empty.
        table: the table that the sheet was made from, with the verdicts of `verify_personas`, to compare the
            judge with people; None: do not compare.
        confidence: how often the intervals should cover the truth, between 0 and 1. They resample items.

    Returns:
        The means, the agreement of the raters and the judge, and what could not be read.

    Raises:
        InvalidArgumentError: no ratings, two files of one name, a file that does not exist, a table of other
            rows, or another bad argument.
        DataError: a file is not the key or ratings of this sheet, or there is no rating in any of them.
    """
    confidence = check_confidence(confidence)
    if table is not None and not isinstance(table, PersonaTable):
        raise InvalidArgumentError(f"table={table!r:.60} is no PersonaTable.", argument="table")
    are_files = isinstance(ratings, Iterable) and not isinstance(ratings, str | Path)
    paths = [as_path(path, "ratings") for path in ratings] if are_files else []
    names = [path.stem for path in paths]
    if not names or len(set(names)) < len(names):
        raise InvalidArgumentError(
            "ratings= is a list of files of different names, one a rater.",
            hint="Rename one of them.",
            argument="ratings",
        )
    about = _read_key(as_path(key, "key"))
    question: Question = about["question"]
    keys = about["items"]
    problems: list[str] = []
    read = [_read_file(path, keys, question, problems) for path in paths]
    empty = [path.name for path, one in zip(paths, read, strict=True) if not any(one.values())]
    problems += [f"{name}: it holds no rating." for name in empty]
    if len(empty) == len(read):
        raise DataError(
            f"no rating can be read: {problems[0]}",
            hint=f"A cell holds {' or '.join(_CHOICES) if question == 'choice' else 'a number from 1 to 5'}.",
        )
    values = {
        name: np.array([[one[item].get(name, np.nan) for item in keys] for one in read])
        for name in _FIELDS[question]
    }
    sides = np.array([keys[item]["side"] for item in keys])
    level: Level = "nominal" if question == "choice" else "ordinal"
    picked = None
    choices: dict[str, FloatArray] = {}
    if question == "choice":
        choices = dict(zip(names, values["choice"], strict=True))
        picked = np.where(np.isnan(values["choice"]), np.nan, values["choice"] == 1.0)
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
            (one, other): cohen_kappa(choices[one], choices[other], confidence=confidence)
            for one, other in combinations(choices, 2)
        },
        judge=judged and judged[0],
        judge_kappa=judged and judged[1],
        problems=tuple(problems),
        values=values,
    )


def _read_key(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = read_json(read_small_file(path))
        items, rows = about["items"], about["rows"]
        if (
            about["question"] in _FIELDS
            and items
            and all(_is_item(one, rows) for one in items.values())
        ):
            return about
    except FileNotFoundError:
        raise missing_file(path, (".json",)) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    raise DataError(f"{path} is not the key.json of a sheet.", hint="write_rating_sheet wrote it.")


def _is_item(item: Mapping[str, Any], rows: int) -> bool:
    """Whether an item of a key has a side, the number of its own response, and a row below `rows`."""
    known = item["side"] in ("chosen", "rejected") and item["own"] in (1, 2)
    return known and isinstance(item["place"], int) and 0 <= item["place"] < rows


def _read_file(
    path: Path, keys: Mapping[str, Any], question: str, problems: list[str]
) -> dict[str, dict[str, float]]:
    """Read a file of ratings: item -> field -> a number as in `HumanRatings.values`.

    Args:
        path: the file.
        keys: the items of the key, by name.
        question: the question of the sheet.
        problems: gets a sentence for each cell that cannot be read; the cell is left out.

    Raises:
        DataError: the file has a row that is not an item, or an item twice.
    """
    found: dict[str, dict[str, float]] = {item: {} for item in keys}
    seen: set[str] = set()
    for row in open_rows(path)[0]:
        # An empty cell of a frame is a null, or NaN among numbers.
        cells = {
            name: "" if is_null(cell) else str(cell).strip()
            for name, cell in (row.items() if isinstance(row, dict) else ())
        }
        if isinstance(row, dict) and not any(cells.values()):
            continue  # spreadsheets add such rows
        item = cells.get("item", "")
        if item not in found:
            raise DataError(f"{path} has a row that is not an item of this sheet: {row!r:.60}.")
        if item in seen:
            raise DataError(f"{path} has the item {item} twice.")
        seen.add(item)
        for name in _FIELDS[question]:
            said = cells.get(name, "").lower().removesuffix(".0")
            value = _choice(said, keys[item]["own"]) if question == "choice" else _rating(said)
            if value is not None:
                found[item][name] = value
            elif said:
                problems.append(f"{path.name}, item {item}: {name} is {said!r:.20}.")
    return found


def _choice(said: str, own: int) -> float | None:
    if said not in _CHOICES:
        return None
    return 0.0 if said == "neither" else 1.0 if said == str(own) else 2.0


def _rating(said: str) -> float | None:
    return float(said) if said in {*"12345"} else None


def _means(
    values: Mapping[str, FloatArray],
    picked: FloatArray | None,
    sides: NDArray[Any],
    confidence: float,
) -> dict[str, dict[str, Estimate]]:
    """Compute `HumanRatings.means`.

    Args:
        values: as `HumanRatings.values`.
        picked: shape (raters, items): 1 if the rater picked the persona's own response, else 0; NaN: no
            answer. None: the question is "rating".
        sides: the side of each item.
        confidence: of the intervals.
    """
    groups = {side: sides == side for side in ("chosen", "rejected") if (sides == side).any()}
    groups["both"] = np.ones(len(sides), dtype=bool)
    named = values if picked is None else {"accuracy": picked}
    bounds = (1.0, 5.0) if picked is None else (0.0, 1.0)
    return {
        name: {
            side: bootstrap_mean(given[:, kept].T, bounds=bounds, confidence=confidence)
            for side, kept in groups.items()
        }
        for name, given in named.items()
    }


def _judged(
    picked: FloatArray,
    keys: Mapping[str, Any],
    table: PersonaTable | None,
    rows: int,
    confidence: float,
) -> tuple[Estimate, Estimate] | None:
    """Compare the judge's verdicts with the majority of the raters.

    Args:
        picked: as for `_means`.
        keys: name -> what the key says of the item, in the order of the items in `picked`.
        table: the table with verdicts; None: do not compare.
        rows: how many rows the sheet's table had.
        confidence: of the intervals.

    Returns:
        `HumanRatings.judge` and `judge_kappa`. None: there is no table, or no item with a verdict and a
        majority.

    Raises:
        InvalidArgumentError: the table has other rows than the sheet's.
    """
    if table is None:
        return None
    if len(table) != rows:
        raise InvalidArgumentError(
            f"table= has {len(table)} rows, and the sheet was made of one with {rows}.",
            hint="Pass the .table of what verify_personas found, neither cut nor sorted.",
            argument="table",
        )
    for name, one in keys.items():
        if one.get("row") not in (None, _digest(table[one["place"]], one["side"])):
            raise InvalidArgumentError(
                f"row {one['place']} of table= is not that of the sheet's item {name}.",
                hint="Pass the .table of what verify_personas found, neither cut nor sorted.",
                argument="table",
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
