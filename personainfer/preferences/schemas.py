"""`Schema`: the columns of data, the role of each, and what the first rows say about their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from ..exceptions import DataError
from .cells import is_null, looks_like_turns, parse_cell, plain
from .conversations import is_exchange, is_transcript
from .labels import (
    LabelCoding,
    Verdict,
    find_coding,
    label_key,
    label_number,
    uncertain,
    word_verdict,
)
from .turns import may_be_turns, printed, texts_of


class Mapped(NamedTuple):
    """The caller's options about the data, once they are checked.

    Attributes:
        columns: role -> column; {} if the columns have the usual names.
        labels: `label_key` of each label -> verdict; {} if the caller gave no labels.
        pairs, min_gap, min_votes, safe_rejected: as for `data.read_preferences`.
    """

    columns: Mapping[str, str] = {}
    labels: Mapping[str, Verdict] = {}
    pairs: str | None = None
    min_gap: float | None = None
    min_votes: int | None = None
    safe_rejected: bool = False


_TEXT_ROLES = frozenset("prompt chosen rejected response_1 response_2".split())
_BOTH = ({"chosen", "rejected"}, {"response_1", "response_2"})
_FEW = 0.05  # up to this share, cells may look like something else by chance
_ENOUGH = 5  # what so many rows have in common is no chance

# Data sets whose cards explain their numbers, and whose columns no other data has.
_KNOWN_CODINGS = frozenset(("SHP", "PKU-SafeRLHF", "AlpacaFarm", "TL;DR comparisons"))

_PLACES = frozenset(("choice", "best", "chosen"))  # columns that hold a place in a list

# Rows rate the same prompt if all of these roles are equal.
_ASKED = ("prompt", "input", "history", "system", "tools", "group")
# The first roles of a plain schema; the roles after them are mostly absent.
_PLAIN = ("prompt", "chosen", "rejected", "id", "user", "system", "tools")


@dataclass(frozen=True)
class Schema:
    """The columns of data, the role of each, and how their cells are read.

    Attributes:
        name: the name of the schema, or of a known data set.
        columns: role -> column. A role is what a column holds: "prompt", "chosen", "label", "user" …
        kind: how the preferred response is found. "pair": columns for the chosen and the rejected response;
            "conversations": both are whole conversations, which begin with the same prompt; "label": a label
            names the response; "one-hot": a column with 1 or 0 for each verdict; "scores": a score for each
            response; "votes": the labels of several people; "list": a row has a list of responses with
            scores; "group": a row has one response with its score, and rows of one prompt are compared.
        coding: the coding of the labels; None before the first rows were seen, or without labels.
        json_roles: the roles whose columns hold JSON text.
        is_rounds: whether prompt and responses are lists with one text for each round.
        has_transcripts: whether some prompts are transcripts, "\\n\\nHuman: … \\n\\nAssistant:".
        has_exchanges: whether chosen and rejected are transcripts that hold the prompt, although the prompt
            has a column, too.
        repeats_prompt: whether nearly all responses begin with the prompt; None: this is not certain.
        holds_prompt: whether most responses hold the prompt, but not as `repeats_prompt` says.
        told: what the caller said about the data: columns, labels, pairs …
        present: the columns that the data has so far. Other columns of `columns` may come in later rows.
        compared: the coding of a second label, which is compared with the choice; None: there is none.
        labels_are_texts: whether a label is the text of the preferred response.
        beside: role -> column, for responses and models in further columns. They tell whether the columns
            chosen and rejected hold texts, or only names of responses or models.
        others: role -> further columns, which are read in rows where the role's own column is empty.
        is_csv: whether the rows come from a CSV file, so that every cell is text.
        not_in_prompt: columns that are not read, but may hold a part of the prompt.
        counts: name -> how often it occurred, such as "pairs_scored" and "prompt_repeated". The counts grow
            as rows are read, and start again when the data is read again.
    """

    name: str
    columns: Mapping[str, str]
    kind: str
    coding: LabelCoding | None = None
    json_roles: frozenset[str] = frozenset()
    is_rounds: bool = False
    has_transcripts: bool = False
    has_exchanges: bool = False
    repeats_prompt: bool | None = False
    holds_prompt: bool = False
    told: Mapped = field(default_factory=Mapped)
    beside: Mapping[str, str] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    compared: LabelCoding | None = None
    labels_are_texts: bool = False
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)
    is_csv: bool = False
    not_in_prompt: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def is_single(self) -> bool:
        """Whether each row by itself makes at most one preference."""
        return self.kind != "group" and (self.told.pairs in (None, "best-worst"))

    def has_lists(self, rows: Sequence[Sequence[object]]) -> bool:
        """Whether, in at least one of the rows, chosen and rejected are lists of responses.

        Args:
            rows: the values of each row, in the order of `columns`.
        """
        places = [n for n, role in enumerate(self.columns) if role in ("chosen", "rejected")]
        both = ([row[n] for n in places] for row in rows)
        return self.kind == "pair" and any(
            are_lists(*values) or (self.is_csv and all(printed(str(v)) is list for v in values))
            for values in both
        )

    @cached_property
    def is_plain(self) -> bool:
        """Whether the fast path of `rows.read_one` may apply.

        It may if chosen and rejected have columns of plain texts, and no option of the caller needs others.
        """
        is_asked_more = self.told.min_votes is not None or self.told.safe_rejected
        is_pair = self.kind == "pair" and tuple(self.columns)[: len(_PLAIN)] == _PLAIN
        return is_pair and not self.depends_on_values and not is_asked_more

    @cached_property
    def places_of_ids(self) -> list[int]:
        """The indices of the id and the user among a row's values; [] if no column so far holds them."""
        return [
            place
            for place, (role, name) in enumerate(self.columns.items())
            if role in ("id", "user") and name in self.present
        ]

    @property
    def depends_on_values(self) -> bool:
        """Whether values of the first rows, not only names of columns, decided how texts are read.

        They show that texts are JSON, rounds or transcripts, or that responses repeat their prompts.
        """
        is_text = not (self.is_rounds or self.has_transcripts or self.has_exchanges)
        return bool(self.json_roles) or not is_text or self.repeats_prompt is not False

    def settled(self, rows: Sequence[Sequence[object]], *, is_batch: bool = False) -> Schema:
        """Return a copy that is completed from the values of rows: codings of labels, JSON text, transcripts.

        Args:
            rows: the first rows, as values in the order of `columns`.
            is_batch: whether other rows may have been read before these. Then a coding of numbers that later
                rows may contradict is refused, unless a known data set explains its numbers.

        Raises:
            DataError: the coding of the labels is not certain.
        """
        cells = dict(zip(self.columns, zip(*rows, strict=True), strict=True)) if rows else {}
        texts = {
            role: [v for v in values if isinstance(v, str) and v.strip()]
            for role, values in cells.items()
            if role in _TEXT_ROLES
        }
        found = replace(self, labels_are_texts=self._find_texts(rows))
        is_open = is_batch and self.name not in _KNOWN_CODINGS
        found = replace(
            found,
            coding=found._find_coding(rows, is_batch=is_open),
            compared=found.compared_coding(rows),
            json_roles=self._find_json(texts),
            is_rounds=_are_rounds(cells, is_usual=self.kind == "one-hot"),
            has_transcripts=_share(is_transcript, texts.get("prompt", ())) > _FEW,
            has_exchanges=self.kind == "pair"
            and all(_are_exchanges(cells.get(role, ())) for role in ("chosen", "rejected")),
            repeats_prompt=_repeat_prompt(cells),
        )
        is_plain = not (found.json_roles or found.is_rounds or found.has_exchanges)
        return replace(found, holds_prompt=is_plain and not is_batch and _hold_prompt(cells))

    def _find_json(self, texts: Mapping[str, Sequence[str]]) -> frozenset[str]:
        """Return the roles whose texts are mostly turns as JSON.

        In CSV files, these are also the roles whose texts are nearly all lists or dicts as Python prints
        them.
        """
        found = {role for role, each in texts.items() if _share(may_be_turns, each) > 1 / 2}
        if self.is_csv:  # in other formats such a text is meant as it is: it may be code
            those = {role for role, each in texts.items() if _are_printed(each)}
            alone = [both for both in _BOTH if not both <= those]
            found |= those.difference(*alone)
        return frozenset(found)

    def _find_coding(
        self, rows: Sequence[Sequence[object]], *, is_batch: bool
    ) -> LabelCoding | None:
        if self.kind != "label":
            return None
        named = (self.columns.get("response_1", ""), self.columns.get("response_2", ""))
        is_place = "responses" in self.columns and (
            self.columns["label"] in _PLACES or "other_label" in self.columns
        )
        if is_place and self.name in _KNOWN_CODINGS:
            named, is_place = ("response_0", "response_1"), False
        cells = [self.row(row) for row in rows]
        roles = [role for role in ("label", "other_label") if role in self.columns]
        return find_coding(
            self.columns["label"],
            [self.label(row, role) for row in cells for role in roles],
            named,
            self.told.labels,
            is_batch=is_batch,
            is_place=is_place,
        )

    def _find_texts(self, rows: Sequence[Sequence[object]]) -> bool:
        """Whether most labels, besides ties, are the text of one of the row's two responses.

        Raises:
            DataError: in more than 5 % of the rows, the label may also be a name of the other response: for
                the responses "b" and "a", the label "a" is the text of the second one, but may name the
                first.
        """
        if self.kind != "label" or self.told.labels:
            return False
        seen: Counter[str] = Counter()
        is_text: list[bool] = []
        is_other: list[bool] = []
        for row in map(self.row, rows):
            label, texts = plain(row["label"]), self._texts(row)
            if not isinstance(label, str):
                is_text.append(False)
            elif (said := word_verdict(key := label_key(label), ("", ""))) != "tie":
                seen[key] += 1
                is_text.append(label in texts and texts[0] != texts[1])
                side = "first" if label == texts[0] else "second"
                is_other.append(is_text[-1] and bool(label_number(key) or said not in (None, side)))
        if sum(is_text) <= len(is_text) / 2:
            return False
        if sum(is_other) > _FEW * len(is_text):
            raise uncertain(self.columns["label"], seen)
        return True

    def _texts(self, row: Mapping[str, Any]) -> tuple[object, object]:
        one, two = (row.get(f"response_{n}", row.get(f"compared_{n}")) for n in (1, 2))
        return plain(one), plain(two)

    def compared_coding(self, rows: Sequence[Sequence[object]]) -> LabelCoding | None:
        """Find the coding of a second label, which is compared with the choice.

        Args:
            rows: the first rows, as values in the order of `columns`.

        Returns:
            The coding; None if there is no second label, or its coding is not certain.
        """
        name = self.columns.get("compared_label")
        if name is None:
            return None
        roles = [f"{'response' if self.kind == 'label' else 'compared'}_{n}" for n in (1, 2)]
        cells = [self.row(row) for row in rows]
        try:
            return find_coding(
                name,
                [self.label(row, "compared_label") for row in cells],
                (self.columns.get(roles[0], ""), self.columns.get(roles[1], "")),
            )
        except DataError:
            return None

    def filled(self, values: Sequence[object], cell: Callable[[str], object]) -> Sequence[object]:
        """Fill empty values of a row from the further columns in `others`.

        A role for which the caller named a column is not filled.

        Args:
            values: the row's values, in the order of `columns`.
            cell: a function from a column's name to the row's value.

        Returns:
            A new list of the values; `values` itself if `others` is empty.
        """
        if not self.others:
            return values
        found = list(values)
        for place, role in enumerate(self.columns):
            for name in () if role in self.told.columns else self.others.get(role, ()):
                if is_null(found[place]) or found[place] == "":
                    found[place] = cell(name)
        return found

    def row(self, values: Sequence[object]) -> dict[str, Any]:
        """Return role -> value for a row's values, which are in the order of `columns`."""
        return dict(zip(self.columns, values, strict=True))

    def rater_key(self, values: Sequence[object]) -> tuple[object, object]:
        """Return a key (prompt, user), which is equal for rows in which the same user rated the same prompt.

        Both parts are hashable. The user is None if the row has none.

        Args:
            values: the row's values, in the order of `columns`.
        """
        row = self.row(values)
        return tuple(_key(row.get(role)) for role in _ASKED), _key(row.get("user"))

    def label(self, row: Mapping[str, Any], role: str) -> object:
        """Return a row's label, as `LabelCoding` reads it.

        A label that is the text of a response, or the name of its model, becomes "first" or "second".

        Args:
            row: role -> value.
            role: the role of the label, such as "label" or "compared_label".
        """
        label = plain(row[role])
        if not isinstance(label, str):
            return label
        texts = self._texts(row) if self.labels_are_texts else (None, None)
        models = (row["model_1"], row["model_2"]) if "model_1" in row else (None, None)
        for one, other in (texts, models):
            if one != other and label in (one, other):
                return "first" if label == one else "second"
        return label

    def describe(self) -> dict[str, Any]:
        """Describe for a table's settings how rows were read.

        Returns:
            "schema" (its name), "columns" (role -> column, of those present), "labels" (their coding, if
            any), the caller's options if given, "not_in_prompt" if there are such columns, and each of
            `counts` by its name.
        """
        found = {role: name for role, name in self.columns.items() if name in self.present}
        if self.has_exchanges:
            found.pop("prompt", None)  # it is in the responses
        said: dict[str, Any] = {"schema": self.name, "columns": found}
        if self.coding is not None:
            said["labels"] = self.coding.describe()
        for name in ("pairs", "min_gap", "min_votes", "safe_rejected"):
            if value := getattr(self.told, name):
                said[name] = value
        if self.holds_prompt:
            said["prompt_within_responses"] = True
        if self.not_in_prompt:
            said["not_in_prompt"] = list(self.not_in_prompt)
        return said | self.counts


def _key(value: object) -> object:
    """Convert a cell to a hashable value that is equal for equal cells; None for a null or an empty text."""
    value = plain(value)
    if is_null(value) or value == "":
        return None
    return value if isinstance(value, str | int | float) else repr(value)


def _share(is_so: Callable[[str], bool], texts: Iterable[str]) -> float:
    """Return the share of texts for which `is_so` is true; 0 without texts."""
    found = [is_so(text) for text in texts]
    return sum(found) / len(found) if found else 0.0


def _are_exchanges(values: Sequence[object]) -> bool:
    """Whether most values, besides nulls and empty texts, are transcripts with a turn before the response."""
    there = [v for v in values if (v.strip() if isinstance(v, str) else not is_null(v))]
    return sum(isinstance(v, str) and is_exchange(v) for v in there) > len(there) / 2


def _are_printed(texts: Sequence[str]) -> bool:
    """Whether there are five texts or more, nearly all (95 %) of them dicts or lists that Python printed."""
    is_printed = [printed(text) is not None for text in texts]
    return len(texts) >= _ENOUGH and sum(is_printed) / len(texts) > 1 - _FEW


def _repeat_prompt(cells: Mapping[str, Sequence[object]]) -> bool | None:
    """Whether both responses begin with the prompt in nearly all rows of texts; None if this is not certain.

    At least 90 % of five rows or more are needed for True, and half or fewer of any rows give False.

    Args:
        cells: role -> the values of all rows.
    """
    roles = ("chosen", "rejected") if "chosen" in cells else ("response_1", "response_2")
    rows = zip(*(cells.get(role, ()) for role in ("prompt", *roles)), strict=False)
    texts = [[v.strip() for v in row if isinstance(v, str) and v.strip()] for row in rows]
    told = [row for row in texts if len(row) == 3]
    repeated = sum(one.startswith(asked) and other.startswith(asked) for asked, one, other in told)
    if repeated <= len(told) / 2:
        return False
    return True if len(told) >= _ENOUGH and repeated >= 0.9 * len(told) else None


def _hold_prompt(cells: Mapping[str, Sequence[object]]) -> bool:
    """Whether both responses hold the prompt in most rows, but not at their start, of five rows or more.

    Such responses are whole conversations as text: "User: …", or with the marks of a chat template, so the
    same stands before the prompt in both. Else an answer quotes it; behind a code fence, it completes it. A
    prompt of fewer than three words may stand in an answer by chance. If the prompt is messages, it is not
    taken off the start of a text, which counts, too.

    Args:
        cells: role -> the values of all rows.
    """
    roles = ("chosen", "rejected") if "chosen" in cells else ("response_1", "response_2")
    held = told = 0
    for asked, one, other in zip(
        *(cells.get(role, ()) for role in ("prompt", *roles)), strict=False
    ):
        if not (isinstance(one, str) and isinstance(other, str)):
            continue
        told += 1
        last = texts_of(asked)[-1:]
        if last and len(last[0].split()) > 2:
            fronts = [text.lstrip().partition(last[0])[:2] for text in (one, other)]
            front, is_there = fronts[0]
            is_template = bool(front or not isinstance(asked, str)) and not front.startswith("```")
            held += fronts[0] == fronts[1] and bool(is_there) and is_template
    return held >= _ENOUGH and held > told / 2


def _are_rounds(cells: Mapping[str, Sequence[object]], *, is_usual: bool) -> bool:
    """Whether prompts and both responses are lists of texts, or JSON of some, one text a round.

    Args:
        cells: role -> the values of all rows.
        is_usual: whether the data is as Arena's. Then half of the values of each role need to be lists. Else
            nearly all must be, and one row or more has responses that differ in their last texts alone: lists
            of other sizes are answers, such as items that were sorted. Nulls do not count.
    """
    roles = sorted(_TEXT_ROLES & cells.keys(), key=lambda role: role != "prompt")
    found: list[list[Sequence[object]]] = []
    for role in roles:  # the prompt first: it is seldom a list, and then no response is parsed
        found.append([_texts_in(value) for value in cells[role]])
        count = sum(not is_null(value) for value in cells[role])
        if sum(map(bool, found[-1])) <= (1 / 2 if is_usual else 1 - _FEW) * count:
            return False
    return len(roles) == 3 and (
        is_usual
        or any(
            asked and len(asked) == len(one) == len(other) and one[:-1] == other[:-1]
            for asked, one, other in zip(*found, strict=True)
        )
    )


def _texts_in(value: object) -> Sequence[object]:
    """Return the texts (and nulls) of a list or of JSON of one; () for any other value."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return ()
        try:
            value = parse_cell("", value)
        except DataError:
            return ()
    value = plain(value)
    if not isinstance(value, list | tuple) or not value or looks_like_turns(value[0]):
        return ()
    return value if all(isinstance(text, str | None) for text in value) else ()


def are_lists(*values: object) -> bool:
    """Whether one value or more is a list of responses, and each other one is a text.

    A list of responses begins with a text which is no turn.
    """
    cells = [plain(value) for value in values]
    lists = [cell for cell in cells if isinstance(cell, list | tuple)]
    are_texts = all(v and isinstance(v[0], str) and not looks_like_turns(v[0]) for v in lists)
    return bool(lists) and are_texts and all(isinstance(v, str | list | tuple) for v in cells)
