"""Select, for each side, the candidate that best explains the choice, or none if no candidate explains it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from inspect import getattr_static, isfunction
from itertools import islice
from math import inf, isnan
from typing import Any, TypeVar

from ..arguments import read_numbers
from ..exceptions import (
    BudgetExceededError,
    InvalidArgumentError,
    ModelError,
    RequestRejectedError,
    joined,
)
from ..records import Candidate, FloatArray, Persona, PersonaRow, Preference, Selector

S = TypeVar("S")

# The candidates of so many rows are scored together: scoring is faster in batches, and replies for the next
# rows arrive meanwhile.
_ROWS_A_CHOICE = 16

NOT_SCORED = "none of {count} personas could be scored."
_REFUSED = "its personas could not be scored"
_OF_ONE_ROW = (InvalidArgumentError, RequestRejectedError)  # errors that the next row may not have
_AWAY = 3  # if so many rows in succession fail for another reason, the scorer is down


def selector_settings(selector: Selector | None) -> dict[str, dict[str, str | None]]:
    """Return what a table's settings keep of the selector: {"selected_by": {"kind": its type, "model": …}}.

    The model is None if the selector has none. Without a selector, the result is {}.
    """
    if selector is None:
        return {}
    model = getattr(selector, "model", None)
    named = None if model is None else str(model)
    return {"selected_by": {"kind": type(selector).__name__, "model": named}}


def of_one_run(selector: S, llm: object) -> S:
    """Return the selector to use in one run, in which the calls of a judge count in the run's budget.

    Args:
        selector: the selector that the caller gave, or None. One without the method `share_budget` is
            returned itself.
        llm: the model of the run, whose budget holds.

    Raises:
        InvalidArgumentError: there is a budget, and the price of the judge is not known.
        AuthenticationError: the judge's key is missing.
    """
    share: Callable[[object], S] | None = getattr(selector, "share_budget", None)
    return selector if share is None else share(llm)


def can_explain(selector: object) -> bool:
    """Whether an object has the method `explains`; `Likelihood` itself has it for its instances alone."""
    is_of_instances = isinstance(selector, type) and isfunction(
        getattr_static(selector, "explains", None)
    )
    return callable(getattr(selector, "explains", None)) and not is_of_instances


def check_candidates(candidates: int, select: Any, *, later: bool = False) -> None:
    """Raise InvalidArgumentError unless `candidates` and `select` fit together.

    Args:
        candidates: how many personas are sampled for each side.
        select: the selector, or None.
        later: whether `select` may be missing although there are several candidates: a batch gets it when it
            is collected.
    """
    if select is not None and not can_explain(select):
        raise InvalidArgumentError(
            f"select={select!r:.80} has no method explains(preferences, personas).",
            hint="It scores how well each persona explains its preference.",
            argument="select",
        )
    if candidates > 1 and select is None and not later:
        raise InvalidArgumentError(
            f"candidates={candidates} needs select= to choose among them.",
            hint="Give an object with explains(preferences, personas), or leave candidates at 1.",
            argument="candidates",
        )


def choose(
    rows: Iterable[PersonaRow], selector: Selector, *, floor: float = 0.0
) -> Iterator[PersonaRow]:
    """Choose the persona of each side: the candidate that best explains the choice.

    Args:
        rows: rows with candidates. A persona without candidates becomes its side's only candidate.
        selector: scores the candidates.
        floor: the score, in the selector's unit, that a side's best candidate must exceed. Otherwise the side
            gets no persona, and `row.unexplained` names the side.

    Yields:
        Each row, in the same order, with the persona that was chosen for each side. All candidates have their
        scores, and are sorted from the best to the worst; a score of NaN becomes None, and comes last. A row
        gets an error if no candidate of a side has a score, or if the selector refuses the row (its prompt
        may be too long).

    Raises:
        InvalidArgumentError, ModelError: the selector failed for all of the first rows, or for three rows in
            succession for a reason other than their content; or the budget is spent.
    """
    rows, worked = map(_with_candidates, rows), False
    while group := list(islice(rows, _ROWS_A_CHOICE)):
        try:
            chosen = list(_choose_group(group, selector, floor))
        except (InvalidArgumentError, ModelError) as error:
            chosen = _one_by_one(group, selector, floor)
            refused = [_REFUSED in (row.error or "") for row in chosen if _has_candidates(row)]
            if not worked and all(refused):
                raise error
        worked = worked or any(map(_has_candidates, chosen))
        yield from chosen


def _with_candidates(row: PersonaRow) -> PersonaRow:
    """Turn each persona of a row into its side's only candidate, if no candidates were sampled."""
    sides: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        persona = getattr(row, side)
        if persona is not None:
            sides |= {side: None, f"{side}_candidates": (Candidate(persona),)}
    return replace(row, **sides) if sides else row


def _has_candidates(row: PersonaRow) -> bool:
    return bool(row.chosen_candidates or row.rejected_candidates)


def _one_by_one(rows: Sequence[PersonaRow], selector: Selector, floor: float) -> list[PersonaRow]:
    """Choose for each row separately, after a group failed. A row that fails again gets an error.

    Raises:
        ModelError: the budget is spent, or three rows in succession failed for a reason other than their
            content.
    """
    chosen: list[PersonaRow] = []
    away = 0
    for row in rows:
        try:
            chosen += _choose_group([row], selector, floor)
            away = 0 if _has_candidates(row) else away
        except (InvalidArgumentError, ModelError) as error:
            away = 0 if isinstance(error, _OF_ONE_ROW) else away + 1
            if away == _AWAY or isinstance(error, BudgetExceededError):
                raise
            chosen.append(replace(row, error=joined([row.error, f"{_REFUSED}: {error}"])))
    return chosen


def _choose_group(
    rows: Sequence[PersonaRow], selector: Selector, floor: float
) -> Iterator[PersonaRow]:
    asked: list[tuple[Preference, Persona]] = []
    for row in rows:
        if row.preference is not None:
            asked += [(row.preference, c.persona) for c in row.chosen_candidates]
            asked += [(row.preference.swapped, c.persona) for c in row.rejected_candidates]
    scores = iter(_scores(selector, asked))
    for row in rows:
        chosen = _ranked(row.chosen_candidates, scores)
        rejected = _ranked(row.rejected_candidates, scores)
        errors = [row.error] if row.error else []
        result: dict[str, Any] = {"chosen_candidates": chosen, "rejected_candidates": rejected}
        for side, ranked in (("chosen", chosen), ("rejected", rejected)):
            if ranked and _worth(ranked[0]) > floor:
                result[side] = ranked[0].persona
            elif ranked and ranked[0].score is None:
                errors.append(f"{side}: {NOT_SCORED.format(count=len(ranked))}")
        yield replace(row, **result, error=joined(errors))


def _scores(selector: Selector, asked: Sequence[tuple[Preference, Persona]]) -> list[float | None]:
    """Score each pair with its persona. Equal candidates of a pair, which are frequent, are scored once.

    Returns:
        The score of each; None for NaN.

    Raises:
        InvalidArgumentError: the selector did not return one number for each persona.
    """
    distinct = {(pair, str(persona)): persona for pair, persona in asked}
    if not distinct:
        return []
    found = _found(selector, [(pair, persona) for (pair, _), persona in distinct.items()])
    try:
        score_of = dict(zip(distinct, map(_number, found), strict=True))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"select={selector!r:.80} gave no list of {len(distinct)} numbers: {error}.",
            hint="explains(preferences, personas) returns one score for each persona.",
        ) from error
    return [score_of[pair, str(persona)] for pair, persona in asked]


def _found(selector: Selector, asked: Sequence[tuple[Preference, Persona]]) -> Iterable[Any]:
    """Call the selector, and return its score for each pair and persona, in this order.

    A selector with the method `explains_candidates` gets all personas of a pair together.
    """
    compare = getattr(selector, "explains_candidates", None)
    if compare is None:
        return selector.explains([pair for pair, _ in asked], [persona for _, persona in asked])
    candidates: dict[Preference, list[Persona]] = {}
    for pair, persona in asked:
        candidates.setdefault(pair, []).append(persona)
    scores = compare(list(candidates), list(candidates.values()))
    of_pair = {pair: iter(found) for pair, found in zip(candidates, scores, strict=True)}
    return [next(of_pair[pair]) for pair, _ in asked]


def _number(score: Any) -> float | None:
    """Convert a score to a float; None for NaN, which cannot be compared."""
    number = float(score)
    return None if isnan(number) else number


def _ranked(
    candidates: Sequence[Candidate], scores: Iterator[float | None]
) -> tuple[Candidate, ...]:
    scored = [replace(candidate, score=next(scores)) for candidate in candidates]
    return tuple(sorted(scored, key=lambda candidate: -_worth(candidate)))


def _worth(candidate: Candidate) -> float:
    return -inf if candidate.score is None else candidate.score


# Scores of many pairs, of which one may fail


def check_budget(selector: Any) -> None:
    """Raise BudgetExceededError if the selector is a judge whose budget did not pay for all it asked last."""
    if getattr(selector, "is_spent", False):
        raise BudgetExceededError(
            "scores are missing: the budget of the judge is spent.",
            hint="Call again with a larger budget=; what is paid for comes from the cache.",
        )


def explains_each(
    selector: Any, pairs: Sequence[Preference], personas: Sequence[Any], name: str = "select"
) -> FloatArray:
    """Compute how well each persona explains its pair. One `UserWarning` counts the pairs that failed.

    If a call fails, each half of its pairs is tried, and so on. So one bad pair costs about as much again as
    all pairs.

    Args:
        selector: an object with `explains(preferences, personas)`.
        pairs, personas: n each.
        name: the name of the argument that gave the selector, for errors.

    Returns:
        Shape (n,), the scores in the unit of the selector. NaN: the pair failed, or its score is NaN.

    Raises:
        InvalidArgumentError, ModelError: the first failure, if the first 16 pairs (or all, if there are
            fewer) fail, or three in succession fail for a reason other than their content. Or the result of a
            call is no list of one number for each pair.
        BudgetExceededError: the budget is spent.
    """
    import numpy as np

    count = len(pairs)
    found = np.full(count, np.nan)
    first: InvalidArgumentError | ModelError | None = None
    worked, failed, away = False, 0, 0
    parts = [range(count)] if count else []
    while parts:
        part = parts.pop()
        try:
            scores = selector.explains([pairs[p] for p in part], [personas[p] for p in part])
        except BudgetExceededError:
            raise
        except (InvalidArgumentError, ModelError) as error:
            first = first or error
            if len(part) > 1:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
                continue
            failed += 1
            away = 0 if isinstance(error, _OF_ONE_ROW) else away + 1
            if away == _AWAY or (not worked and failed == min(count, _ROWS_A_CHOICE)):
                raise first from None
        else:
            worked, away = True, 0
            said = f"the result of {name}.explains"
            found[part] = read_numbers(said, scores, length=len(part), infinite=True)
    if failed:
        warnings.warn(
            f"{failed:,} of {count:,} could not be scored, and are left out: {first}", stacklevel=2
        )
    return found
