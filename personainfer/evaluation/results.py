"""The results of judging: numbers with intervals, counts, and the table with a column for each verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ..data.table import PersonaTable
from ..data.table_display import escaped, without_formulas
from ..exceptions import visible
from ..records import Record, Side, Usage
from .grouped import WinRate
from .judge import Verdict
from .statistics import Estimate

_SHOWN = 3  # problems that a view names; `problems` has them all


def partiality(judge: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on a judge that wrote or selected the table's personas itself; empty if it did neither."""
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


def text_table(grid: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a grid of cells, with its columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    ]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What all results of a judge have.

    Attributes:
        judge: the model that judged.
        skipped: how many personas (or rows, where two things are compared) are missing.
        failed: how many got no usable reply from the judge.
        problems: the reasons, and how often each occurred.
        notes: what a reader of the numbers should know.
        usage: the calls, tokens and cost of the judge.
    """

    judge: str
    skipped: int
    failed: int
    problems: Mapping[str, int]
    notes: tuple[str, ...]
    usage: Usage

    def grid(self) -> list[tuple[str, ...]]:
        """The numbers as a grid of text; the first line is its head."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """What was left out, and why: one sentence each."""
        said = [f"{self.skipped:,} not judged, for lack of a persona."] if self.skipped else []
        return [*said, *self.problem_remarks(), *self.notes]

    def problem_remarks(self) -> list[str]:
        """How many replies could not be used, and why."""
        if not self.failed:
            return []
        reasons = [f"{why} ({count:,})" for why, count in self.problems.items()][:_SHOWN]
        return [f"{self.failed:,} without a usable reply: {'; '.join(reasons)}"]

    def to_dict(self) -> dict[str, Any]:
        """All numbers and counts as plain values; not the rows, nor the single verdicts."""
        left_out = ("table", "columns", "verdicts")
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {name: _plain(value) for name, value in named.items()}

    def __str__(self) -> str:
        title = f"{type(self).__name__} by {self.judge}"
        return visible("\n".join([title, *text_table(self.grid()), *self.remarks()]))

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
    """The results of judging a table of personas.

    Attributes:
        table: the table that was judged, with a column for each verdict.
    """

    table: PersonaTable = field(repr=False)


@dataclass(frozen=True, slots=True)
class SideVerification:
    """The accuracy of personas of one side or both.

    `accuracy` is the share of orders in which the judge picked the persona's response; `probability`
    the same with the judge's probabilities in place of its picks, where the endpoint gives them;
    `consistency` the share of questions for which both orders picked the same response, of those for
    which both picked one.
    """

    accuracy: Estimate
    probability: Estimate | None
    consistency: Estimate


@dataclass(frozen=True, kw_only=True)
class Verification(TableFindings):
    """What `verify_personas` found.

    Attributes:
        overall: both sides together; `sides`: each of them.
        difference: accuracy of the chosen side minus that of the rejected one, over rows with both.
        neither: the share of usable answers that picked neither response. They count as wrong, so a judge
            that guesses has an accuracy of (1 - neither) / 2.
        verdicts: for each side one verdict a row, None where there is no persona.

    The table has `chosen_verified` (both orders right), `chosen_verified_score` (the share of orders that
    were), `chosen_verified_probability` (that of the right answers, where the endpoint gives it), the same
    for the rejected side, and `verification_error`.
    """

    overall: SideVerification
    sides: Mapping[Side, SideVerification]
    difference: Estimate | None
    neither: float
    verdicts: Mapping[Side, tuple[Verdict | None, ...]] = field(repr=False)

    def remarks(self) -> list[str]:
        """The remarks of all results, and how often a guess would be right."""
        guess = f"A judge that guesses is right in {(1 - self.neither) / 2:.0%} of the orders"
        if self.neither:
            guess += f": it answered “neither” in {self.neither:.0%}, which counts as wrong"
        return [f"{guess}.", *super().remarks()]

    def grid(self) -> list[tuple[str, ...]]:
        """A line for both sides, each side, and their difference."""
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
    """What `compare_personas` found.

    Attributes:
        win_rate: of the chosen side's persona against the rejected side's.
        consistency: as in `SideVerification`.
        policy: what an unparsable row counts as in `win_rate`.

    The table has `better_persona`: "chosen", "rejected", "tie", or null where a reply was unusable.
    """

    win_rate: WinRate
    consistency: Estimate
    policy: str

    def grid(self) -> list[tuple[str, ...]]:
        """A line of counts and rates."""
        found = self.win_rate
        return [
            ("chosen wins", "ties", "loses", "win rate", "ties as half", "consistency"),
            (
                *(f"{count:,}" for count in (found.wins, found.ties, found.losses)),
                *(str(rate) for rate in (found.rate, found.rate_with_ties, self.consistency)),
            ),
        ]

    def remarks(self) -> list[str]:
        """Also what became of rows without a usable reply."""
        became = {"drop": "left out", "tie": "counted as ties", "loss": "counted as losses"}
        if not self.failed:
            return super().remarks()
        unusable = f"Rows whose reply could not be used are {became[self.policy]}"
        return [*super().remarks(), f"{unusable}; those without any are left out."]


@dataclass(frozen=True, kw_only=True)
class PersonaRatings(TableFindings):
    """What `rate_personas` found.

    Attributes:
        means: side -> question -> the mean of its answers, 1 to 5.
        difference: question -> the chosen side's answer minus the rejected side's, over rows with both;
            empty where one side was asked. Intervals are each question's own, not corrected for four.

    The table has an answer for each side and question, `chosen_plausible` …, and `rating_error`.
    """

    means: Mapping[Side, Mapping[str, Estimate]]
    difference: Mapping[str, Estimate]

    def grid(self) -> list[tuple[str, ...]]:
        """A line a question."""
        columns = [*self.means.values(), *([self.difference] if self.difference else [])]
        names = [*self.means, *(["difference"] if self.difference else [])]
        lines = [
            (question, *(str(found[question]) for found in columns)) for question in columns[0]
        ]
        return [("1 to 5", *names), *lines]


@dataclass(frozen=True, slots=True)
class RubricFindings:
    """What a judge found by one question, quality or personalization.

    `win_rate` is that of the test model; `length_controlled` what its `rate` would be if both responses
    were equally long (arXiv 2404.04475); `consistency` as in `SideVerification`.
    """

    win_rate: WinRate
    length_controlled: Estimate
    consistency: Estimate


@dataclass(frozen=True, slots=True)
class ResponseLengths:
    """The mean length of the responses that were judged, and of test minus base, in characters."""

    base: Estimate
    test: Estimate
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class ResponseComparison(Findings):
    """What `compare_responses` found. Intervals come from resampling prompts; `n` counts prompts.

    Attributes:
        quality: with the persona hidden; `personalization`: with it shown, None where there was none.
        delta_pq: W_P + W_Q - 1, where W is a win rate without ties (arXiv 2501.11549); None as above.
        length: of both sides.
        columns: a value a row, in the order of the prompts: id, prompt, persona, base_response,
            test_response, base_length,
            test_length, quality and personalization ("test", "base" or "tie", or None where there is no
            usable verdict), their scores (the share of orders that the test model won), and error.
        verdicts: rubric -> one verdict a row, None where it was not judged.
        policy: what an unparsable row counts as.
        same: rows whose responses are equal, which are ties that nobody was asked about.
        left_out: why rows were not judged, and how many.
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
        """A line for each rubric, and one for both."""
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
        """Lengths, and what became of rows that are neither a win nor a loss."""
        length = self.length
        became = {"drop": "left out", "tie": "counted as ties", "loss": "counted as losses"}
        said = [
            f"Characters a response: base {length.base.value:.0f}, test {length.test.value:.0f},"
            f" difference {length.difference.value:.0f}"
            f" [{length.difference.low:.0f}, {length.difference.high:.0f}]."
        ]
        said += [f"{count:,} not judged: {why}." for why, count in self.left_out.items()]
        said += [f"{self.same:,} with equal responses are ties."] if self.same else []
        said += [*self.problem_remarks()]
        if self.failed:
            said.append(
                f"Verdicts whose reply could not be used are {became[self.policy]}; without any, left out."
            )
        return [*said, *self.notes]


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.model_dump()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value
