"""Results of a judge: numbers with intervals, counts, and tables with a column for each verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

from ..data.table import PersonaTable
from ..data.table_display import escaped, result_text, without_formulas
from ..records import FloatArray, Record, Side, Usage
from .grouped import WinRate
from .judge import Verdict
from .statistics import Estimate

_SHOWN = 3  # problems that a view names; `problems` has them all

# The outcome of a row whose reply cannot be used, by the argument `unparsable`; and how a remark says it.
UNPARSABLE = {"drop": np.nan, "tie": 0.0, "loss": -1.0}
_COUNTED = {"drop": "left out", "tie": "counted as ties", "loss": "counted as losses"}


def outcomes(verdicts: Sequence[Verdict | None], unparsable: str) -> FloatArray:
    """Turn verdicts into outcomes: 1 if the first text wins, 0 for a tie, -1 if it loses.

    Args:
        verdicts: n verdicts; None: nothing was judged.
        unparsable: what a verdict counts as if a reply cannot be used: "drop" (NaN), "tie" or "loss".

    Returns:
        Shape (n,). NaN: there is no verdict, or the judge did not reply in one of the orders.
    """
    worth = {"first": 1.0, "tie": 0.0, "second": -1.0, None: UNPARSABLE[unparsable]}
    return np.array([worth[v.winner] if v is not None and v.answered else np.nan for v in verdicts])


def numbers_of(verdicts: Sequence[Verdict | None], name: str) -> FloatArray:
    """Read a property of each verdict as a number, shape (n,); NaN without a verdict or a value."""
    values = [None if verdict is None else getattr(verdict, name) for verdict in verdicts]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def partiality(judge: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return notes if the judge also wrote or selected the table's personas; empty if it did neither."""
    notes = []
    if judge == settings.get("model"):
        notes.append(
            "The judge wrote these personas itself: models tend to favour their own words."
        )
    if judge == (settings.get("selected_by") or {}).get("model"):
        notes.append(
            "The same model chose them among the candidates: they are those that it did best with."
        )
    return tuple(notes)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The base of all results of a judge.

    Attributes:
        judge: the name of the model, or the function, that judged.
        skipped: how many personas are missing, and were not judged. In `PersonaComparison` and
            `ResponseComparison`: how many rows were not judged.
        failed: how many verdicts have a reply that could not be used, or lack one. `verify_personas` and
            `rate_personas` have a verdict for each persona, `compare_personas` for each row,
            `compare_responses` for each row and rubric.
        problems: reason -> how many of these verdicts have it, the most frequent first.
        notes: sentences about what limits the numbers.
        usage: the calls, tokens and cost in USD of the judge.
    """

    judge: str
    skipped: int
    failed: int
    problems: Mapping[str, int]
    notes: tuple[str, ...]
    usage: Usage

    def grid(self) -> list[tuple[str, ...]]:
        """Return the numbers as a grid of text; the first line is its head."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """Return sentences about what was left out and why, and `notes`.

        What did not occur is not mentioned.
        """
        said = [f"{self.skipped:,} not judged, for lack of a persona."] if self.skipped else []
        return [*said, *self.problem_remarks(), *self.notes]

    def problem_remarks(self) -> list[str]:
        """Return a list of one sentence: how many verdicts lack a usable reply, and why; empty if none do."""
        if not self.failed:
            return []
        reasons = [f"{why} ({count:,})" for why, count in self.problems.items()][:_SHOWN]
        return [f"{self.failed:,} without a usable reply: {'; '.join(reasons)}"]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers and counts as dicts and lists, by the names of the attributes.

        `table`, `columns` and `verdicts` are left out. A number that cannot be estimated is NaN.
        """
        left_out = ("table", "columns", "verdicts")
        return {
            f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out
        }

    def __str__(self) -> str:
        title = f"{type(self).__name__} by {self.judge}"
        return result_text([title], self.grid(), self.remarks())

    def _repr_html_(self) -> str:
        head, *body = self.grid()
        cells = [
            "".join(f"<td style='text-align:left'>{escaped(cell)}</td>" for cell in line)
            for line in body
        ]
        names = "".join(f"<th style='text-align:left'>{escaped(name)}</th>" for name in head)
        said = "".join(f"<p>{escaped(remark)}</p>" for remark in self.remarks())
        return without_formulas(
            f"<table><caption>{type(self).__name__} by {escaped(self.judge)}</caption>"
            f"<thead><tr>{names}</tr></thead>"
            f"<tbody>{''.join(f'<tr>{line}</tr>' for line in cells)}</tbody></table>{said}"
        )


@dataclass(frozen=True, kw_only=True)
class TableFindings(Findings):
    """The base of results of judging a table of personas.

    Attributes:
        table: the table that was judged, with a column for each verdict.
    """

    table: PersonaTable = field(repr=False)


@dataclass(frozen=True, slots=True)
class SideVerification:
    """How often a judge picked the response of the persona's side. Intervals resample rows.

    Attributes:
        accuracy: the share of orders in which the judge picked this response.
        probability: the mean probability that the judge gave to this response; None if the endpoint gives no
            log-probabilities.
        consistency: the share of personas for which both orders picked the same response, among those for
            which both orders picked one.
    """

    accuracy: Estimate
    probability: Estimate | None
    consistency: Estimate


@dataclass(frozen=True, kw_only=True)
class Verification(TableFindings):
    """The result of `verify_personas`.

    Attributes:
        overall: both sides together.
        sides: each side.
        difference: accuracy of the chosen side minus that of the rejected side, over rows with both; None if
            one side was judged.
        neither: the share of orders in which the judge picked neither response: it answered “neither”, or its
            reply cannot be used. They count as wrong, so a judge that guesses has an accuracy of
            (1 - neither) / 2.
        verdicts: side -> one verdict for each row, None without a persona.

    The table has the columns `chosen_verified` (whether both orders are right), `chosen_verified_score` (the
    share of right orders: 0, 0.5 or 1), `chosen_verified_probability` (the mean probability of the right
    response, if the endpoint gives it), the same for the rejected side, and `verification_error`. Values are
    null without a persona, or if the judge did not reply in one of the orders.
    """

    overall: SideVerification
    sides: Mapping[Side, SideVerification]
    difference: Estimate | None
    neither: float
    verdicts: Mapping[Side, tuple[Verdict | None, ...]] = field(repr=False)

    def remarks(self) -> list[str]:
        """Return the sentences of `Findings`, after one on how often a judge that guesses is right."""
        guess = f"A judge that guesses is right in {(1 - self.neither) / 2:.0%} of the orders"
        if self.neither:
            guess += f": it picked neither response in {self.neither:.0%}, which counts as wrong"
        return [f"{guess}.", *super().remarks()]

    def grid(self) -> list[tuple[str, ...]]:
        """Return a grid of text: a head, and one line for both sides, each side, and their difference."""
        soft = self.overall.probability is not None
        lines = [("", "accuracy", *(["probability"] if soft else []), "consistency")]
        for name, found in [("overall", self.overall), *self.sides.items()]:
            probability = [str(found.probability)] if soft else []
            lines.append((name, str(found.accuracy), *probability, str(found.consistency)))
        if self.difference is not None:
            lines.append(("difference", str(self.difference), *[""] * (len(lines[0]) - 2)))
        return lines


@dataclass(frozen=True, kw_only=True)
class PersonaComparison(TableFindings):
    """The result of `compare_personas`. `win_rate.rate` has Wilson's interval; the others resample rows.

    Attributes:
        win_rate: wins of the chosen side's personas against those of the rejected side.
        consistency: the share of rows for which both orders picked the same persona, among those for which
            both orders picked one; NaN if there is no such row.
        policy: the argument `unparsable`, which says how `win_rate` counts a row with an unusable reply:
            "drop" (it is left out), "tie", or "loss" (of the chosen side's persona).

    The table has the column `better_persona`: "chosen" or "rejected", the side that both orders picked;
    "tie", if they did not pick the same side; or null, if a persona is missing, or one of the two replies is
    unusable or missing (whatever the policy).
    """

    win_rate: WinRate
    consistency: Estimate
    policy: str

    def grid(self) -> list[tuple[str, ...]]:
        """Return a grid of text: a head, and one line of counts and rates."""
        found = self.win_rate
        return [
            ("chosen wins", "ties", "loses", "win rate", "ties as half", "consistency"),
            (
                *(f"{count:,}" for count in (found.wins, found.ties, found.losses)),
                *(str(rate) for rate in (found.rate, found.rate_with_ties, self.consistency)),
            ),
        ]

    def remarks(self) -> list[str]:
        """Return the sentences of `Findings`, and one about what rows without a usable reply count as."""
        if not self.failed:
            return super().remarks()
        unusable = f"Rows whose reply could not be used are {_COUNTED[self.policy]}"
        return [*super().remarks(), f"{unusable}; those that lack a reply are left out."]


@dataclass(frozen=True, kw_only=True)
class PersonaRatings(TableFindings):
    """The result of `rate_personas`. Intervals resample rows.

    Attributes:
        means: side -> question ("plausible", "applicable", "harmful", "overfit") -> mean answer, from 1 to 5.
        difference: question -> mean of the chosen side's answer minus the rejected side's, over rows with
            both; empty if one side was rated. The intervals are not corrected for four questions.

    The table has a column for each side and question, `chosen_plausible` …, and `rating_error`. An answer is
    null without a persona or a usable reply.
    """

    means: Mapping[Side, Mapping[str, Estimate]]
    difference: Mapping[str, Estimate]

    def grid(self) -> list[tuple[str, ...]]:
        """Return a grid of text: a head, and one line for each question."""
        columns = [*self.means.values(), *([self.difference] if self.difference else [])]
        names = [*self.means, *(["difference"] if self.difference else [])]
        lines = [
            (question, *(str(found[question]) for found in columns)) for question in columns[0]
        ]
        return [("1 to 5", *names), *lines]


@dataclass(frozen=True, slots=True)
class RubricFindings:
    """The verdicts of a judge by one rubric, quality or personalization.

    Attributes:
        win_rate: wins of the test model.
        length_controlled: an estimate of `win_rate.rate` if both responses were equally long (arXiv
            2404.04475).
        consistency: the share of rows for which both orders picked the same response, among those for which
            both orders picked one.
    """

    win_rate: WinRate
    length_controlled: Estimate
    consistency: Estimate


@dataclass(frozen=True, slots=True)
class ResponseLengths:
    """Mean lengths of the judged responses in characters.

    Attributes:
        base, test: the mean of the base model's responses, and of the test model's.
        difference: the mean of test minus base.
    """

    base: Estimate
    test: Estimate
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class ResponseComparison(Findings):
    """The result of `compare_responses`. Intervals resample prompts, and `n` counts prompts.

    Attributes:
        quality: verdicts of a judge that does not see the personas.
        personalization: verdicts of a judge that sees the personas; None without personas.
        delta_pq: W_P + W_Q - 1, where W_P and W_Q are the test model's win rates without ties in
            personalization and in quality (arXiv 2501.11549); None without personas.
        length: lengths of the responses of both models.
        columns: name -> one value for each row, in the order of the prompts: id, prompt, persona,
            base_response, test_response, base_length, test_length, quality and personalization ("test",
            "base", "tie", or None without a usable verdict), quality_score and personalization_score (the
            share of orders that the test model won; None without a usable verdict, or if the responses are
            equal), and error.
        verdicts: rubric -> one verdict for each row, None if the row was not judged.
        policy: the argument `unparsable`, which says how the rates count a row with an unusable reply:
            "drop" (it is left out), "tie", or "loss" (of the test model).
        same: how many rows have equal responses. They are ties, and the judge was not asked.
        left_out: reason -> how many rows were not judged.
    """

    quality: RubricFindings
    personalization: RubricFindings | None
    delta_pq: Estimate | None
    length: ResponseLengths
    policy: str
    same: int
    left_out: Mapping[str, int]
    columns: Mapping[str, Sequence[Any]] = field(repr=False)
    verdicts: Mapping[str, tuple[Verdict | None, ...]] = field(repr=False)

    def grid(self) -> list[tuple[str, ...]]:
        """Return a grid of text: a head, one line for each rubric, and one for ΔPQ."""
        lines: list[tuple[str, ...]] = [
            ("", "test wins", "ties", "base wins", "win rate", "at equal length", "consistency")
        ]
        for name, found in (("quality", self.quality), ("personalization", self.personalization)):
            if found is not None:
                won = found.win_rate
                counts = (f"{count:,}" for count in (won.wins, won.ties, won.losses))
                rates = (str(r) for r in (won.rate, found.length_controlled, found.consistency))
                lines.append((name, *counts, *rates))
        if self.delta_pq is not None:
            lines.append(("ΔPQ", "", "", "", str(self.delta_pq), "", ""))
        return lines

    def remarks(self) -> list[str]:
        """Return sentences about the lengths of the responses, what limits the numbers, and `notes`.

        They count the rows that were not judged, the rows whose two responses are equal, and the verdicts
        without a usable reply. What did not occur is not mentioned.
        """
        length = self.length
        said = [
            f"Characters a response: base {length.base.value:.0f}, test {length.test.value:.0f},"
            f" difference {length.difference.value:.0f}"
            f" [{length.difference.low:.0f}, {length.difference.high:.0f}]."
        ]
        said += [f"{n:,} not judged: {why.rstrip('.')}." for why, n in self.left_out.items()]
        said += [f"{self.same:,} with equal responses are ties."] if self.same else []
        said += self.problem_remarks()
        if self.failed:
            said.append(
                f"Verdicts whose reply could not be used are {_COUNTED[self.policy]}; those that lack a"
                " reply are left out."
            )
        return [*said, *self.notes]


def plain(value: Any) -> Any:
    """Turn records, dataclasses, mappings and tuples, also within each other, into dicts and lists.

    Other values stay as they are, so JSON can hold the result if it can hold them.
    """
    if isinstance(value, Record):
        return value.model_dump()
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, tuple) else value
