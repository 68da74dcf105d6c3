"""Ask a judge whether personas explain the choices, which of two is better, and how good they are.

The questions are those of "Whose Boat Does it Float?" (arXiv 2501.11549): accuracy and persona preference,
each in both orders, and four ratings. The two orders are one observation; intervals resample rows.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator

from ..api_keys import hides_secrets
from ..arguments import check_text, takes_options
from ..data.table import PersonaTable
from ..exceptions import (
    DataError,
    InvalidArgumentError,
    UnknownOptionError,
    joined,
    shown_when_made,
)
from ..llm.client import LLM, OPTIONS, LLMOptions
from ..llm.rate_limits import Bounds
from ..llm.requests import Request
from ..personas.prompts import choice_messages, instructions, persona_messages, rating_message
from ..preferences.conversations import encoding_problem
from ..records import Persona, Preference, Side, Usage
from .grouped import win_rate
from .judge import VERDICT_COLUMNS, Judge, Verdict, most_common, verdict_columns
from .results import (
    UNPARSABLE,
    PersonaComparison,
    PersonaRatings,
    SideVerification,
    Verification,
    numbers_of,
    outcomes,
    partiality,
)
from .statistics import (
    CONFIDENCE,
    Estimate,
    bootstrap_mean,
    bootstrap_rate,
    check_confidence,
    paired_difference,
)

T = TypeVar("T")

Sides = Literal["both", "chosen", "rejected"]

Scale = Annotated[
    Literal[1, 2, 3, 4, 5],
    BeforeValidator(lambda given: int(given) if str(given).strip() in {*"12345"} else given),  # "4"
]

_SIDES: tuple[Side, ...] = ("chosen", "rejected")


class Case(NamedTuple):
    """A persona to judge.

    Attributes:
        row: the place of its row in the table.
        side: the persona's side.
        preference: the pair in which the response of this side is the chosen one.
        persona: the persona.
    """

    row: int
    side: Side
    preference: Preference
    persona: Persona


class Rating(BaseModel):
    """The schema of a judge's answers to the four questions."""

    plausible: Scale
    applicable: Scale
    harmful: Scale
    overfit: Scale


_QUESTIONS = tuple(Rating.model_fields)
_ERRORS_OF_SIDES = re.compile("; (?=(?:chosen|rejected): )")  # between those that `_errors` joins


@takes_options(LLMOptions)
def verify_personas(
    table: PersonaTable,
    judge: str | LLM,
    *,
    sides: Sides = "both",
    soft: bool = True,
    confidence: float = CONFIDENCE,
    progress: bool | None = None,
    **options: Unpack[LLMOptions],
) -> Verification:
    """Ask a judge which response a person with this persona prefers, and count the right answers.

    The judge sees persona, prompt and both responses, in both orders. An order counts 1 if the judge picks
    the response of the persona's side. It counts 0 if the judge picks the other response, answers "neither",
    or gives a reply that cannot be read (arXiv 2501.11549: ambiguous answers are wrong). A persona is left
    out, and counted in `failed`, if the judge does not reply in one of the orders, because the server is
    away, a budget is used up or the request is refused. A judge that always answers "1" has an accuracy of
    0.5.

    Args:
        table: personas of one side or both. Missing personas are left out, and counted in `skipped`.
        judge: a model, as for `infer_personas`, or an LLM. A model should not judge its own personas.
        sides: the sides whose personas are verified.
        soft: whether to ask for log-probabilities, too; an endpoint that refuses them is asked without.
        confidence: how often the intervals should cover the truth, between 0 and 1. They resample rows.
        progress: whether to show a bar on standard error; None: in a terminal or a notebook.
        options: configure the LLM that a model string makes: see `LLM`.

    Returns:
        Accuracies with intervals, counts, and a copy of the table with a column for each verdict.

    Raises:
        DataError: no persona of these sides, before any call is made.
        InvalidArgumentError, UnknownOptionError: a bad argument, or the data has a column with the name of a
            new one, before any call is made.
        MissingExtraError: the judge needs a package that is not installed.
        ModelError: the judge gave no usable reply to any question; or every question would fail in the same
            way (key, model).
        CacheError: the cache of replies cannot be used.
    """
    confidence = _check(verify_personas, table, options, confidence)
    asked = _sides(sides)
    names = [f"{side}_{name}" for side in asked for name in VERDICT_COLUMNS]
    table.check_free([*names, "verification_error"])
    cases = _cases(table, asked)
    asker = Judge(judge, options, soft=soft)
    prefix = instructions("judge_choice.txt")
    questions = (choice_messages(case.persona, case.preference) for case in cases)
    verdicts = asker.verdicts(prefix, questions, len(cases), progress=progress)
    asker.require_a_reply([order.problem for verdict in verdicts for order in verdict.orders])
    placed: dict[Side, list[Verdict | None]] = {side: [None] * len(table) for side in asked}
    for case, verdict in zip(cases, verdicts, strict=True):
        placed[case.side][case.row] = verdict
    return _verification(table, asker, placed, confidence)


@takes_options(LLMOptions)
def compare_personas(
    table: PersonaTable,
    judge: str | LLM,
    *,
    unparsable: Literal["drop", "tie", "loss"] = "drop",
    confidence: float = CONFIDENCE,
    progress: bool | None = None,
    **options: Unpack[LLMOptions],
) -> PersonaComparison:
    """Ask a judge, who sees only the two personas of a row, which one is better.

    The judge sees both orders. A row is won only if both orders agree, else it is tied (arXiv 2501.11549,
    persona preference).

    Args:
        table: a table with personas of both sides. Rows without both are left out, and counted in `skipped`.
        judge: as for `verify_personas`.
        unparsable: what a row counts as if the judge replied in both orders, and one of the replies cannot be
            used: "drop": it is left out, as in the paper; "tie"; or "loss" of the chosen side's persona. Such
            rows are counted in `failed`. A row is always left out if the judge did not reply in one of the
            orders.
        confidence: how often the intervals should cover the truth, between 0 and 1. The win rate without ties
            has Wilson's interval; the others resample rows.
        progress, options: as for `verify_personas`.

    Returns:
        Win rates with intervals, counts, and a copy of the table with a column for the verdicts.

    Raises:
        DataError: no row with both personas, before any call is made.
        InvalidArgumentError, UnknownOptionError, MissingExtraError, ModelError, CacheError: as
            `verify_personas`.
    """
    confidence = _check(compare_personas, table, options, confidence)
    InvalidArgumentError.check("unparsable", unparsable, UNPARSABLE)
    table.check_free(["better_persona"])
    pairs = _pairs(table)
    asker = Judge(judge, options)
    prefix = instructions("judge_personas.txt")
    questions = (persona_messages(one, other) for _, one, other in pairs)
    verdicts = asker.verdicts(prefix, questions, len(pairs), progress=progress)
    asker.require_a_reply([order.problem for verdict in verdicts for order in verdict.orders])
    names = {"first": "chosen", "tie": "tie", "second": "rejected", None: None}
    better: list[str | None] = [None] * len(table)
    for (row, *_), verdict in zip(pairs, verdicts, strict=True):
        better[row] = names[verdict.winner]
    return PersonaComparison(
        win_rate=win_rate(outcomes(verdicts, unparsable), confidence=confidence),
        consistency=bootstrap_rate(numbers_of(verdicts, "consistent"), confidence=confidence),
        policy=unparsable,
        skipped=len(table) - len(pairs),
        table=table.with_columns({"better_persona": better}),
        **_common(table, asker, [verdict.problem for verdict in verdicts]),
    )


@takes_options(LLMOptions)
def rate_personas(
    table: PersonaTable,
    judge: str | LLM,
    *,
    sides: Sides = "both",
    confidence: float = CONFIDENCE,
    progress: bool | None = None,
    **options: Unpack[LLMOptions],
) -> PersonaRatings:
    """Ask a judge to rate personas from 1 to 5 by the four questions that arXiv 2501.11549 asks people.

    Is the persona plausible, applicable (to how many people), harmful, overfit to this one pair? The judge
    sees the persona, the prompt, and which response the persona should prefer, but not which response was
    chosen.

    Args:
        table: personas of one side or both. Missing personas are left out, and counted in `skipped`.
        judge, sides, progress, options: as for `verify_personas`.
        confidence: how often the intervals should cover the truth, between 0 and 1. They resample rows.

    Returns:
        Mean answers with intervals, counts, and a copy of the table with a column for each side and question.

    Raises:
        DataError, InvalidArgumentError, UnknownOptionError, MissingExtraError, ModelError, CacheError: as
            `verify_personas`.
    """
    confidence = _check(rate_personas, table, options, confidence)
    asked = _sides(sides)
    names = [f"{side}_{question}" for side in asked for question in _QUESTIONS]
    table.check_free([*names, "rating_error"])
    cases = _cases(table, asked)
    asker = Judge(judge, options)
    prefix = instructions("judge_rating.txt")
    turns = (rating_message(case.persona, case.preference) for case in cases)
    requests = ([Request((turn,), Rating, prefix)] for turn in turns)
    replies = [reply for (reply,) in asker.replies(requests, len(cases), progress=progress)]
    problems = [None if reply.error is None else str(reply.error) for reply in replies]
    asker.require_a_reply(problems)
    columns: dict[str, list[Any]] = {name: [None] * len(table) for name in names}
    for case, reply in zip(cases, replies, strict=True):
        for question in _QUESTIONS if reply.error is None else ():
            columns[f"{case.side}_{question}"][case.row] = getattr(reply.value, question)
    means, difference = _ratings(columns, asked, confidence)
    columns["rating_error"] = _errors(table, "rating_error", asked, cases, problems)
    return PersonaRatings(
        means=means,
        difference=difference,
        skipped=len(table) * len(asked) - len(cases),
        table=table.with_columns(columns),
        **_common(table, asker, problems),
    )


@hides_secrets
class Verifier:
    """Scores candidate personas by a judge: `infer_personas(…, select=Verifier(judge=…))`.

    The judge is asked which response a person with the persona prefers, as in `verify_personas`. These calls
    count in the budget of the run that uses the scores, if `judge` is a name and `options` have no `budget`.
    They also count in the run's `rpm` and `tpm`, if the judge is called at the same address with the same
    key, and has no other limits.

    Args:
        judge: a model or an LLM, as for `verify_personas`.
        soft: whether to score by the log-probabilities of the judge's answer, where the endpoint gives them.
        options: configure the LLM that a model string makes: see `LLM`.

    Attributes:
        model: the name of the judge.
        paid: what the judge took of the budget that `share_budget` gave it; nothing if it has its own.

    Raises:
        InvalidArgumentError, UnknownOptionError: options that cannot work, or options beside an LLM.
        MissingExtraError: the judge needs a package that is not installed.
        AuthenticationError: the provider's key is not set.
    """

    def __init__(
        self, judge: str | LLM, *, soft: bool = True, **options: Unpack[LLMOptions]
    ) -> None:
        _check_options(Verifier, options)
        self._judge = Judge(judge, options, soft=soft)
        self.model = self._judge.llm.model
        self._is_made_here = not isinstance(judge, LLM)
        self._shares_budgets = self._is_made_here and options.get("budget") is None
        self._of: LLM | None = None  # the model for which it chooses
        self.paid = Usage()

    @shown_when_made
    def __repr__(self) -> str:
        return f"Verifier({self._judge.llm!r})"

    @property
    def usage(self) -> Usage:
        """The calls, tokens and cost of the judge so far, in all runs."""
        return self._judge.usage

    @property
    def is_spent(self) -> bool:
        """Whether a question of the judge's last call was not sent, since the budget is spent."""
        return self._judge.is_spent

    def _count_paid(self, usage: Usage) -> None:
        self.paid += usage

    def share_budget(self, llm: LLM) -> Verifier:
        """Return a verifier for one run: its judge's calls count in the budget and limits of the run's model.

        Several runs at the same time use one each. All of them ask the same judge, and share `usage`; each
        has its own `paid`.

        Args:
            llm: the model of the run, whose personas are scored.

        Returns:
            A copy, or this verifier itself if its judge was given as an `LLM`, which keeps its own budget.

        Raises:
            InvalidArgumentError: there is a budget, and the price of the judge is not known.
            AuthenticationError: the judge's key is missing. This check saves the cost of the model's calls.
        """
        judge = self._judge.llm
        judge.transport.check_key()
        if not self._is_made_here:
            return self
        budget = llm.account.bounds.budget
        if self._shares_budgets and budget is not None and not judge.is_priced:
            raise InvalidArgumentError(
                f"budget={budget.usd:g}, but the price of the judge {self.model!r} is not known.",
                hint="Give its price: select=Verifier(…, prices=(prompt, completion)).",
                argument="budget",
            )
        of_the_run = copy(self)
        of_the_run._of, of_the_run.paid = llm, Usage()
        return of_the_run

    @property
    def _within(self) -> Bounds:
        """The budget and the limits a minute of the judge's calls: its own, or those of the run's model."""
        judge = self._judge.llm
        bounds = judge.account.bounds
        if self._of is None:
            return bounds
        shared = self._of.account.bounds
        if judge.is_called_as(self._of):
            bounds = bounds.with_minute_of(shared)
        return bounds._replace(budget=shared.budget) if self._shares_budgets else bounds

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[Persona | str]
    ) -> NDArray[np.float64]:
        """Score how well each persona explains the preference at the same place, shape (n,).

        The score is the mean probability, over both orders, that a judge who sees the persona picks the
        preferred response, minus 0.5: from -0.5 to 0.5, above 0 if the persona explains the preference.
        Without log-probabilities, the probability of an order is 1 if the judge picks the preferred response,
        else 0. An answer "neither" has the probability 0. NaN if a reply cannot be used; a warning counts
        these.

        Raises:
            InvalidArgumentError: the arguments differ in length, or hold something else.
            ModelError: the judge never gave a usable reply, in this call or before it; or every question
                would fail in the same way (key, model).
            CacheError: the cache of replies cannot be used.
        """
        verdicts = self.verdicts(preferences, personas)
        scores = [np.nan if v.problem is not None else v.soft_score - 0.5 for v in verdicts]
        return np.array(scores, dtype=np.float64)

    def verdicts(
        self, preferences: Sequence[Preference], personas: Sequence[Persona | str]
    ) -> list[Verdict]:
        """Ask the judge about each pair in both orders; return one verdict for each pair, in order.

        "first" is the preferred response. Arguments, warnings and errors are those of `explains`.
        """
        preferences = _listed("preferences", preferences, Preference)
        personas = _listed("personas", personas, Persona | str)
        if len(preferences) != len(personas):
            raise InvalidArgumentError(
                f"{len(preferences)} preferences, {len(personas)} personas: one of each is needed."
            )
        pairs = zip(personas, preferences, strict=True)
        questions = (choice_messages(persona, preference) for persona, preference in pairs)
        prefix = instructions("judge_choice.txt")
        shares = self._of is not None and self._shares_budgets
        verdicts = self._judge.verdicts(
            prefix,
            questions,
            len(personas),
            within=self._within,
            count=self._count_paid if shares else None,
        )
        if not self._judge.answered:
            self._judge.require_a_reply([o.problem for verdict in verdicts for o in verdict.orders])
        failed = [verdict.problem for verdict in verdicts if verdict.problem is not None]
        if failed:
            warnings.warn(
                f"the judge gave no usable reply for {len(failed)} of {len(verdicts)} candidates, which"
                f" have no score; the first: {failed[0]}",
                stacklevel=3,
            )
        return verdicts


def _verification(
    table: PersonaTable,
    asker: Judge,
    placed: Mapping[Side, Sequence[Verdict | None]],
    confidence: float,
) -> Verification:
    """Compute all numbers and columns from the verdicts.

    Args:
        table: the table that was judged.
        asker: the judge.
        placed: side -> one verdict for each row; None: there is no persona.
        confidence: of the intervals.
    """
    score, soft, consistent = (
        {side: numbers_of(verdicts, name) for side, verdicts in placed.items()}
        for name in ("score", "soft_score", "consistent")
    )
    given = [(row, side, v) for side in placed for row, v in enumerate(placed[side]) if v]
    known = any(verdict.has_probabilities for *_, verdict in given)
    # Replies that cannot be used count, too: a judge that guesses is not right there.
    orders = [opinion for *_, verdict in given if verdict.answered for opinion in verdict.orders]
    neither = sum(opinion.pick is None for opinion in orders) / max(len(orders), 1)

    def rate(values: Mapping[Side, NDArray[np.float64]], names: Collection[Side]) -> Estimate:
        rows = np.stack([values[name] for name in names], axis=1)
        return bootstrap_rate(rows, confidence=confidence)

    def summary(names: Collection[Side]) -> SideVerification:
        probability = rate(soft, names) if known else None
        return SideVerification(rate(score, names), probability, rate(consistent, names))

    problems = [verdict.problem for *_, verdict in given]
    columns = verdict_columns(placed, table.added)
    columns["verification_error"] = _errors(table, "verification_error", placed, given, problems)
    # Verdicts of an earlier call on the side that was not judged now stay in the table.
    kept = [f"{side}_verified" for side in _SIDES if side not in placed]
    earlier = sum(one is not None for name in kept for one in table.added.get(name, ()))
    of_all = earlier * table.settings.get("verified_neither", 0.0) + len(orders) / 2 * neither
    return Verification(
        overall=summary(placed.keys()),
        sides={side: summary([side]) for side in placed},
        difference=None
        if len(placed) == 1
        else paired_difference(
            score["chosen"], score["rejected"], bounds=(-1.0, 1.0), confidence=confidence
        ),
        verdicts={side: tuple(verdicts) for side, verdicts in placed.items()},
        skipped=len(table) * len(placed) - len(given),
        neither=neither,
        table=table.with_columns(
            columns,
            settings={
                "verified_by": asker.llm.model,
                "verified_neither": of_all / max(earlier + len(orders) / 2, 1),
                "verified_rows": len(table),
            },
        ),
        **_common(table, asker, problems),
    )


def _common(table: PersonaTable, asker: Judge, problems: Sequence[str | None]) -> dict[str, Any]:
    """Return the fields that all results of a judge share."""
    return {
        "judge": asker.llm.model,
        "failed": sum(problem is not None for problem in problems),
        "problems": most_common(problems),
        "notes": partiality(asker.llm.model, table.settings),
        "usage": asker.usage,
    }


def _ratings(
    columns: Mapping[str, Sequence[int | None]], sides: Sequence[Side], confidence: float
) -> tuple[dict[Side, dict[str, Estimate]], dict[str, Estimate]]:
    """Return the means and the differences of `PersonaRatings`.

    Args:
        columns: such as "chosen_plausible" -> one answer for each row; None: there is none.
        sides: the sides that were rated.
        confidence: of the intervals.
    """
    given = {name: np.array(values, dtype=np.float64) for name, values in columns.items()}

    def mean(name: str) -> Estimate:
        return bootstrap_mean(given[name], bounds=(1.0, 5.0), confidence=confidence)

    means = {side: {q: mean(f"{side}_{q}") for q in _QUESTIONS} for side in sides}
    if len(sides) == 1:
        return means, {}
    return means, {
        q: paired_difference(
            given[f"chosen_{q}"], given[f"rejected_{q}"], bounds=(-4.0, 4.0), confidence=confidence
        )
        for q in _QUESTIONS
    }


def _errors(
    table: PersonaTable,
    name: str,
    sides: Collection[Side],
    asked: Sequence[tuple[Any, ...]],
    problems: Sequence[str | None],
) -> list[str | None]:
    """Return for each row why its personas have no usable reply; None: nothing of the row has a problem.

    Args:
        table: the table, whose errors of an earlier call on another side stay.
        name: the column of the errors.
        sides: the sides that were judged now.
        asked: a tuple (row, side, …) for each persona that was judged.
        problems: the problem of each of these; None: it has none.
    """
    said: list[list[str]] = []
    for earlier in table.added.get(name, [None] * len(table)):
        parts = _ERRORS_OF_SIDES.split(str(earlier or ""))
        said.append([one for one in parts if one.partition(":")[0] in {*_SIDES} - {*sides}])
    for (row, side, *_), problem in zip(asked, problems, strict=True):
        if problem is not None:
            said[row].append(f"{side}: {problem}")
    return [joined(sorted(reasons)) for reasons in said]


def _cases(table: PersonaTable, sides: Sequence[Side]) -> list[Case]:
    """Return the personas of these sides as cases, row by row. Raise DataError if there are none."""
    cases: list[Case] = []
    for place, row in enumerate(table):
        for side in sides:
            persona = row.chosen if side == "chosen" else row.rejected
            if persona is not None and row.preference is not None:
                pair = row.preference if side == "chosen" else row.preference.swapped
                cases.append(Case(place, side, pair, persona))
    if not cases:
        raise DataError(
            f"the table has no {' and no '.join(sides)} persona to judge.",
            hint="See table.errors for why.",
        )
    return cases


def _pairs(table: PersonaTable) -> list[tuple[int, Persona, Persona]]:
    """Return the place and both personas of each row with both. Raise DataError if there is no such row."""
    pairs = [
        (place, row.chosen, row.rejected)
        for place, row in enumerate(table)
        if row.chosen is not None and row.rejected is not None
    ]
    if not pairs:
        raise DataError(
            "no row of the table has personas of both sides.",
            hint='Infer with sides="both", and see table.errors.',
        )
    return pairs


def _sides(sides: Sides) -> tuple[Side, ...]:
    InvalidArgumentError.check("sides", sides, ("both", *_SIDES))
    return _SIDES if sides == "both" else (sides,)


def _check(
    function: Callable[..., Any], table: object, options: Mapping[str, Any], confidence: float
) -> float:
    """Return `confidence`. Raise InvalidArgumentError for a bad argument, before any work is done."""
    if not isinstance(table, PersonaTable):
        raise InvalidArgumentError(
            f"{function.__name__} takes a PersonaTable, not {type(table).__name__}.",
            hint="infer_personas returns one, and PersonaTable.load reads one.",
        )
    _check_options(function, options)
    return check_confidence(confidence)


def _check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    UnknownOptionError.check(options, OPTIONS.union(inspect.signature(function).parameters))


def _listed(name: str, given: Iterable[T], kind: Any) -> list[T]:
    """Return an argument as a list. Raise InvalidArgumentError if it holds something else than the kind."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidArgumentError(f"{name}={given!r:.60} is not a list.", argument=name)
    found = list(given)
    for place, one in enumerate(found):
        if not isinstance(one, kind):
            raise InvalidArgumentError(
                f"{name}[{place}]={one!r:.60} is no {'Preference' if kind is Preference else 'persona'}.",
                argument=name,
            )
        if isinstance(one, str):
            check_text(f"{name}[{place}]", one, name)
        if isinstance(one, Preference) and (problem := encoding_problem(one)):
            raise InvalidArgumentError(f"{name}[{place}]: {problem}", argument=name)
    return found
