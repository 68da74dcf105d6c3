"""`Schema`: the columns of data, the role of each, and what the first rows tell about their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from ..exceptions import DataError
from .cells import is_null, looks_like_turns, plain
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
from .turns import may_be_turns, printed


class Mapped(NamedTuple):
    """The caller's options about the data: see the arguments of `read_preferences`."""

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
    """The columns of data and their roles.

    Attributes:
        name: the name of the schema, or of a known data set.
        columns: role -> column.
        kind: how the preferred response is found: "pair", "conversations", "label", "one-hot",
            "scores", "votes", "list" or "group".
        coding: the coding of the labels; None before the first rows were seen, or without labels.
        json_roles: the roles whose columns hold JSON text.
        is_rounds: prompt and responses are lists with one text for each round.
        has_transcripts: some prompts are transcripts, "\\n\\nHuman: … \\n\\nAssistant:".
        has_exchanges: chosen and rejected are transcripts that hold the prompt, which has a column, too.
        repeats_prompt: nearly all responses begin with the prompt; None: this is not certain.
        told: the caller's options.
        present: the columns that the data has so far. Other columns of `columns` may come in later rows.
        compared: the coding of a second label, which is compared with the choice; None: there is none.
        labels_are_texts: a label is the text of the preferred response.
        beside: role -> column of further responses and models, which chosen and rejected may only name.
        others: role -> further columns, which are read in rows where the role's own column is empty.
        is_csv: the rows come from a CSV file, so that every cell is text.
        not_in_prompt: columns that were not read, but may be a part of the prompt.
        counts: name -> how often something was done to a row. It grows as rows are read.
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
        """Whether a row makes at most one preference."""
        return self.kind != "group" and (self.told.pairs in (None, "best-worst"))

    def has_lists(self, rows: Sequence[Sequence[object]]) -> bool:
        """Whether, in one of the rows, chosen and rejected are lists of responses."""
        places = [n for n, role in enumerate(self.columns) if role in ("chosen", "rejected")]
        both = ([row[n] for n in places] for row in rows)
        return self.kind == "pair" and any(
            are_lists(*values) or (self.is_csv and all(printed(str(v)) is list for v in values))
            for values in both
        )

    @cached_property
    def is_plain(self) -> bool:
        """Whether the fast path of `rows.read_one` applies: plain texts, and no option that needs more."""
        is_asked_more = self.told.min_votes is not None or self.told.safe_rejected
        is_pair = self.kind == "pair" and tuple(self.columns)[: len(_PLAIN)] == _PLAIN
        return is_pair and not self.depends_on_values and not is_asked_more

    @cached_property
    def place_of_user(self) -> int | None:
        """The place of the user among a row's values; None if the data has no users."""
        roles = list(self.columns)
        return roles.index("user") if self.columns.get("user") in self.present else None

    @property
    def depends_on_values(self) -> bool:
        """Whether the values of the first rows, not only the columns' names, decided how cells are read."""
        is_text = not (self.is_rounds or self.has_transcripts or self.has_exchanges)
        return bool(self.json_roles) or not is_text or self.repeats_prompt is not False

    def settled(self, rows: Sequence[Sequence[object]], *, is_batch: bool = False) -> Schema:
        """Complete the schema from the values of rows: codings, JSON text, transcripts.

        Args:
            rows: the first rows, as values in the order of `columns`.
            is_batch: other rows may have been read before these.

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
        return replace(
            found,
            coding=found._find_coding(rows, is_batch=is_open),
            compared=found.compared_coding(rows),
            json_roles=self._find_json(texts),
            is_rounds=self.kind == "one-hot"
            and _share(_is_json_list, chain.from_iterable(texts.values())) > 1 / 2,
            has_transcripts=_share(is_transcript, texts.get("prompt", ())) > _FEW,
            has_exchanges=self.kind == "pair"
            and min(_share(is_exchange, texts[role]) for role in ("chosen", "rejected")) > 1 / 2
            if texts
            else False,
            repeats_prompt=_repeat_prompt(cells),
        )

    def _find_json(self, texts: Mapping[str, Sequence[str]]) -> frozenset[str]:
        """Find the roles whose texts are mostly turns as JSON or, in CSV files, printed by Python."""
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
            DataError: such texts also name sides, and often the other one: for the responses "b" and "a",
                the label "a" is the text of the second response, but may name the first.
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
        """Find the coding of the second label; None if there is none, or its coding is not certain."""
        name = self.columns.get("compared_label")
        if name is None:
            return None
        roles = [f"{'response' if self.kind == 'label' else 'compared'}_{n}" for n in (1, 2)]
        cells = [self.row(row) for row in rows]
        try:
            return find_coding(
                name,
                [self.label(row, "compared_label") for row in cells],
                (self.columns[roles[0]], self.columns[roles[1]]),
            )
        except DataError:
            return None

    def filled(self, values: Sequence[object], cell: Callable[[str], object]) -> Sequence[object]:
        """Fill empty values of a row from the further columns in `others`.

        Args:
            values: the row's values, in the order of `columns`.
            cell: a function from a column's name to the row's value.
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
        """Map roles to a row's values, which are in the order of `columns`."""
        return dict(zip(self.columns, values, strict=True))

    def rater_key(self, values: Sequence[object]) -> tuple[object, object]:
        """Return a key (prompt, user): equal for rows in which the same user rated the same prompt."""
        row = self.row(values)
        return tuple(_key(row.get(role)) for role in _ASKED), _key(row.get("user"))

    def label(self, row: Mapping[str, Any], role: str) -> object:
        """Return a row's label.

        A label that is the text of a response, or the name of its model, becomes "first" or "second".
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
        """Describe for a table's settings how rows were read: columns, labels, options and counts."""
        found = {role: name for role, name in self.columns.items() if name in self.present}
        if self.has_exchanges:
            found.pop("prompt", None)  # it is in the responses
        said: dict[str, Any] = {"schema": self.name, "columns": found}
        if self.coding is not None:
            said["labels"] = self.coding.describe()
        for name in ("pairs", "min_gap", "min_votes", "safe_rejected"):
            if value := getattr(self.told, name):
                said[name] = value
        if self.not_in_prompt:
            said["not_in_prompt"] = list(self.not_in_prompt)
        return said | self.counts


def _key(value: object) -> object:
    """Convert a cell to a hashable value that is equal for equal cells; None for a null or ""."""
    value = plain(value)
    if is_null(value) or value == "":
        return None
    return value if isinstance(value, str | int | float) else repr(value)


def _share(is_so: Callable[[str], bool], texts: Iterable[str]) -> float:
    """Return the share of texts for which `is_so` is true; 0 without texts."""
    found = [is_so(text) for text in texts]
    return sum(found) / len(found) if found else 0.0


def _are_printed(texts: Sequence[str]) -> bool:
    """Whether there are enough texts, and nearly all are dicts or lists as Python prints them."""
    is_printed = [printed(text) is not None for text in texts]
    return len(texts) >= _ENOUGH and sum(is_printed) / len(texts) > 1 - _FEW


def _repeat_prompt(cells: Mapping[str, Sequence[object]]) -> bool | None:
    """Whether both responses begin with the prompt in nearly all rows of texts; None: not certain."""
    roles = ("chosen", "rejected") if "chosen" in cells else ("response_1", "response_2")
    rows = zip(*(cells.get(role, ()) for role in ("prompt", *roles)), strict=False)
    texts = [[v.strip() for v in row if isinstance(v, str) and v.strip()] for row in rows]
    told = [row for row in texts if len(row) == 3]
    repeated = sum(one.startswith(asked) and other.startswith(asked) for asked, one, other in told)
    if repeated <= len(told) / 2:
        return False
    return True if len(told) >= _ENOUGH and repeated >= 0.9 * len(told) else None


def _is_json_list(text: str) -> bool:
    return text.lstrip().startswith("[")


def are_lists(*values: object) -> bool:
    """Whether all values are non-empty lists of texts, that is of several responses, not of turns."""
    lists = [plain(value) for value in values]
    return all(
        isinstance(v, list | tuple) and v and isinstance(v[0], str) and not looks_like_turns(v[0])
        for v in lists
    )
