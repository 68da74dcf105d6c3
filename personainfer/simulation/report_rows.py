"""Make the rows of a report from each kind of result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any, TypedDict

from ..data.table import PersonaTable
from ..data.table_display import short_prompt, unexplained_texts
from ..evaluation.results import ResponseComparison
from ..evaluation.summary import SIDES, best_score, verified, verified_score
from ..records import FloatArray, Persona, PersonaRow, Preference, Side
from ..users.audit_verdict import PersonaAudit
from ..users.records import UserPersonas, UserRow
from ..users.results import PrefixEvaluation
from .plots import SIDE_LABELS


class PageSide(TypedDict, total=False):
    """One persona of a row, as the page's script reads it.

    Attributes:
        text: the persona's sentence.
        evidence: what supports the persona; "": nothing is known.
        flags: doubts about the persona.
        verdicts: [kind, text] of each verdict; the kind, such as "right" or "score", sets the colour.
    """

    text: str
    evidence: str
    flags: list[str]
    verdicts: list[list[str]]


class PageRow(TypedDict, total=False):
    """A row as the page's script reads it. The script shows all values as text.

    Fields that a kind of result does not have are left out, such as `chosen` for a user.

    Attributes:
        index: the place of the row, by which the page links to it.
        name: the id of the row.
        title: the first line of the row, if it is not the prompt.
        prompt, chosen, rejected: the texts of the pair; "" if there is no pair.
        cp, rp: the personas of the chosen and the rejected side; `cp` is also the persona of a user. None:
            there is no persona.
        error: why the row has no result; None: the row has one.
        score: a number to sort by: how well the personas explain the choice, for a pair that of the side that
            is explained worse. None: there is no score.
        judged: a number to sort by: the share of orders in which the judge was right, from 0 to 1. None: not
            judged.
        kinds: the filters that the row matches.
        chips: [kind, text] of each verdict on the whole row.
        others: [title, lines] of further texts.
    """

    index: int
    name: str
    title: str
    prompt: str
    chosen: str
    rejected: str
    cp: PageSide | None
    rp: PageSide | None
    error: str | None
    score: float | None
    judged: float | None
    kinds: list[str]
    chips: list[list[str]]
    others: list[list[Any]]


# filter -> its label
FLAG = "flag:"  # before the name of a flag that is a kind
KINDS = {
    "error": "with an error",
    "flagged": "with a flag",
    "unexplained": "with a side that nothing explains",
    "wrong": "judged wrong",
    "split": "judged right in one order",
    "right": "judged right",
}


@singledispatch
def page_rows(result: object) -> list[PageRow]:
    """Return the rows of a result; an empty list for a kind of result without rows.

    Each kind with rows has a function with the decorator `@page_rows.register`.
    """
    return []


@page_rows.register
def _of_a_table(table: PersonaTable) -> list[PageRow]:
    return [_table_row(table, place, row) for place, row in enumerate(table)]


@page_rows.register
def _of_users(found: UserPersonas) -> list[PageRow]:
    return [_user_row(place, row) for place, row in enumerate(found)]


@page_rows.register
def _of_prefixes(found: PrefixEvaluation) -> list[PageRow]:
    margins = found.margins
    return [_choice_row(place, choice, margins) for place, choice in enumerate(found.choices)]


@page_rows.register
def _of_an_audit(found: PersonaAudit) -> list[PageRow]:
    read = found.margins
    most = max(read.own)  # the personas that were made from the most choices
    margins = {"own": read.own[most], "another user's": read.shuffled[most], "none": read.none}
    return [_choice_row(place, choice, margins) for place, choice in enumerate(found.choices)]


@page_rows.register
def _of_responses(found: ResponseComparison) -> list[PageRow]:
    columns = found.columns
    return [
        _comparison_row(place, {name: values[place] for name, values in columns.items()})
        for place in range(len(columns["prompt"]))
    ]


# A table


def _table_row(table: PersonaTable, place: int, row: PersonaRow) -> PageRow:
    pair = row.preference
    scores = [score for side in SIDES if (score := best_score(row, side)) is not None]
    judged = [score for side in SIDES if (score := verified_score(table, place, side)) is not None]
    return {
        "index": place,
        "name": pair.id if pair and pair.id else str(row.index),
        **_title(pair),
        "prompt": _prompt(pair),
        "chosen": pair.chosen if pair else "",
        "rejected": pair.rejected if pair else "",
        "cp": _persona(table, place, row, "chosen"),
        "rp": _persona(table, place, row, "rejected"),
        "error": row.error,
        "score": min(scores) if scores else None,
        "judged": sum(judged) / len(judged) if judged else None,
        "kinds": _row_kinds(table, place, row),
        "others": [
            [title, lines]
            for title, lines in (
                ("Without a persona", unexplained_texts(row)),
                ("Verdicts and other columns", _added(table, place)),
                *((f"Candidates of who {SIDE_LABELS[s]}", _candidates(row, s)) for s in SIDES),
            )
            if lines
        ],
    }


def _row_kinds(table: PersonaTable, place: int, row: PersonaRow) -> list[str]:
    kinds = ["error"] if row.error is not None else []
    kinds += ["unexplained"] if row.unexplained else []
    kinds += _flag_kinds(row.flags)
    verdicts = {_verdict(table, place, side) for side in SIDES} - {None}
    worst = next((kind for kind in ("wrong", "split", "right") if kind in verdicts), None)
    return [*kinds, worst] if worst else kinds


def _flag_kinds(flags: Iterable[str]) -> list[str]:
    """Return the kinds of a row with these flags. A flag of the data may be called as another kind is."""
    named = [f"{FLAG}{flag}" for flag in flags]
    return ["flagged", *named] if named else []


def _verdict(table: PersonaTable, place: int, side: Side) -> str | None:
    """Return the verdict on a persona; None: not judged.

    "right": in both orders; "split": in one of two orders; "wrong": otherwise.
    """
    is_right, score = verified(table, place, side), verified_score(table, place, side)
    if is_right is None:
        return None
    return "right" if is_right else "split" if score == 0.5 else "wrong"


def _title(pair: Preference | None) -> PageRow:
    """Return a title for a conversation: its last turn. A prompt that is a text needs no title: {}."""
    if pair is None or isinstance(pair.prompt, str):
        return {}
    return {"title": short_prompt(pair)}


def _prompt(pair: Preference | None) -> str:
    if pair is None:
        return ""
    if isinstance(pair.prompt, str):
        return pair.prompt
    return "\n\n".join(f"{turn.role}: {turn.text}" for turn in pair.prompt)


def _persona(table: PersonaTable, place: int, row: PersonaRow, side: Side) -> PageSide | None:
    persona: Persona | None = getattr(row, side)
    if persona is None:
        return None
    verdicts: list[list[str]] = []
    judged, score = verified_score(table, place, side), best_score(row, side)
    if judged is not None:
        verdicts.append([str(_verdict(table, place, side)), f"judge: {judged:.2f}"])
    if score is not None:
        verdicts.append(["score", f"score {score:+.3f}"])
    return {
        "text": str(persona),
        "evidence": persona.evidence,
        "flags": list(persona.flags),
        "verdicts": verdicts,
    }


def _added(table: PersonaTable, place: int) -> list[str]:
    """Return lines with other results of a row, such as why the judge gave no usable reply."""
    shown = {f"{side}_{name}" for side in SIDES for name in ("verified", "verified_score")}
    values = ((name, column[place]) for name, column in table.added.items() if name not in shown)
    return [
        f"{name.replace('_', ' ')}: {f'{value:.3f}' if isinstance(value, float) else value}"
        for name, value in values
        if value is not None
    ]


def _candidates(row: PersonaRow, side: Side) -> list[str]:
    candidates = row.chosen_candidates if side == "chosen" else row.rejected_candidates
    scores = ("" if one.score is None else f"{one.score:+.3f}  " for one in candidates)
    return [f"{score}{one.persona}" for score, one in zip(scores, candidates, strict=True)]


# Other results


def _user_row(place: int, row: UserRow) -> PageRow:
    found = row.persona
    choices = [f"{one.id}: {_prompt(one)}" for one in row.choices]
    persona: PageSide | None = None
    chips: list[list[str]] = []
    if found is not None:
        persona = {"text": str(found), "evidence": "", "flags": list(found.flags), "verdicts": []}
        chips.append(["score", f"{found.pairs:,} choices"])
        if found.score is not None:
            chips.append(["score", f"score {found.score:+.3f}"])
    shows = [f"{one.pair}: {one.shows}" for one in found.evidence] if found else []
    return {
        "index": place,
        "name": row.user,
        "prompt": "",
        "cp": persona,
        "error": row.error,
        "score": found.score if found else None,
        "kinds": [
            *(["error"] if row.error is not None else []),
            *(_flag_kinds(found.flags) if found else []),
        ],
        "chips": chips,
        "others": [
            [title, lines]
            for title, lines in (("What the choices show", shows), ("Choices", choices))
            if lines
        ],
    }


def _choice_row(place: int, choice: Preference, margins: Mapping[str, FloatArray]) -> PageRow:
    """Make the row of a user's choice, with the margin of each prefix."""
    chips, kinds = [["score", f"user {choice.user}"]] if choice.user else [], []
    for name, values in margins.items():
        margin = float(values[place])
        if margin == margin:  # not NaN: there is a margin
            verdict = "right" if margin > 0 else "wrong" if margin < 0 else "split"
            chips.append([verdict, f"{name} {margin:+.3f}"])
            kinds.append(f"{verdict} with {name}")
    return {
        "index": place,
        "name": choice.id or str(place),
        **_title(choice),
        "prompt": _prompt(choice),
        "chosen": choice.chosen,
        "rejected": choice.rejected,
        "error": None,
        "kinds": kinds,
        "chips": chips,
        "others": [],
    }


def _comparison_row(place: int, row: Mapping[str, Any]) -> PageRow:
    """Make the row of a prompt, with the winner by each rubric. `row` has the columns of a comparison."""
    chips, kinds = [], []
    for question in ("quality", "personalization"):
        winner = row.get(question)
        if winner is not None:
            kind = {"test": "right", "base": "wrong"}.get(winner, "split")
            chips.append([kind, f"{question}: {winner}"])
            kinds.append(f"{question}: {winner}")
    persona = row.get("persona")
    return {
        "index": place,
        "name": str(row.get("id") or place),
        "prompt": str(row["prompt"]),
        "chosen": row["test_response"] or "",
        "rejected": row["base_response"] or "",
        "cp": {"text": str(persona), "evidence": "", "flags": [], "verdicts": []}
        if persona
        else None,
        "error": row.get("error"),
        "kinds": [*(["error"] if row.get("error") else []), *kinds],
        "chips": chips,
        "others": [
            ["Lengths", [f"base {row['base_length']:,}, test {row['test_length']:,} characters"]]
        ],
    }
