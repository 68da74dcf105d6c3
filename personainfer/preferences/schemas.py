"""`Schema`: the columns of data, the role that each plays, and what the first rows say of their values."""

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
    """What the caller says about the data; see the arguments of `read_preferences`."""

    columns: Mapping[str, str] = {}
    labels: Mapping[str, Verdict] = {}
    pairs: str | None = None
    min_gap: float | None = None
    min_votes: int | None = None
    safe_rejected: bool = False


_TEXT_ROLES = frozenset("prompt chosen rejected response_1 response_2".split())
_BOTH = ({"chosen", "rejected"}, {"response_1", "response_2"})
_FEW = 0.05  # the share of cells up to which they may look like something else by chance
_ENOUGH = 5  # rows that tell what is no chance

# Data sets whose numbers are explained by their cards, and whose columns no other data has.
_KNOWN_CODINGS = frozenset(("SHP", "PKU-SafeRLHF", "AlpacaFarm", "TL;DR comparisons"))

_PLACES = frozenset(("choice", "best", "chosen"))  # columns that hold a place in a list

# What makes a prompt: ratings of one prompt are alike in all of it.
_ASKED = ("prompt", "input", "history", "system", "tools", "group")
_PLAIN = (
    "prompt",
    "chosen",
    "rejected",
    "id",
    "user",
    "system",
    "tools",
)  # then what is mostly absent


@dataclass(frozen=True)
class Schema:
    """Columns and the roles they play.

    Attributes:
        name: of the schema.
        columns: role -> column.
        kind: how the preferred response is found: "pair", "conversations", "label", "one-hot",
            "scores", "votes", "list" or "group".
        coding: of the labels, once the first rows were seen.
        json_roles: roles whose column holds JSON text.
        is_rounds: whether prompt and responses are lists of texts, one for each round.
        has_transcripts: whether there are prompts that are "\\n\\nHuman: … \\n\\nAssistant:" texts.
        has_exchanges: whether chosen and rejected are such texts, with the prompt, beside a prompt's column.
        repeats_prompt: whether nearly all responses begin with the prompt; None: this is not certain.
        told: what the caller says of the data.
        present: the columns that the data has; others of `columns` may come in later rows.
        compared: the coding of a second label, which is compared with the choice that was read.
        labels_are_texts: whether labels are the texts of the preferred responses.
        beside: role -> column of other responses and models in the data, which the pair's columns may name.
        others: role -> further columns of it, for rows in which its own one is empty.
        is_csv: whether the rows are of a CSV file, whose cells are texts whatever they were.
        not_in_prompt: columns that may be a part of what was asked, and were not read.
        counts: what was done to rows, by name; it grows as rows are read.
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
        """Whether each row is one preference at most."""
        return self.kind != "group" and (self.told.pairs in (None, "best-worst"))

    def has_lists(self, rows: Sequence[Sequence[object]]) -> bool:
        """Whether chosen and rejected are lists of responses in one of the rows."""
        places = [n for n, role in enumerate(self.columns) if role in ("chosen", "rejected")]
        both = ([row[n] for n in places] for row in rows)
        return self.kind == "pair" and any(
            are_lists(*values) or (self.is_csv and all(printed(str(v)) is list for v in values))
            for values in both
        )

    @cached_property
    def is_plain(self) -> bool:
        """Whether most rows are only a prompt and two responses, with no option that needs more."""
        is_asked_more = self.told.min_votes is not None or self.told.safe_rejected
        is_pair = self.kind == "pair" and tuple(self.columns)[: len(_PLAIN)] == _PLAIN
        return is_pair and not self.depends_on_values and not is_asked_more

    @cached_property
    def place_of_user(self) -> int | None:
        """The place of the user among the values of a row, if the data has one."""
        roles = list(self.columns)
        return roles.index("user") if self.columns.get("user") in self.present else None

    @property
    def depends_on_values(self) -> bool:
        """Whether the values of cells, not only the columns' names, decided how they are read."""
        is_text = not (self.is_rounds or self.has_transcripts or self.has_exchanges)
        return bool(self.json_roles) or not is_text or self.repeats_prompt is not False

    def settled(self, rows: Sequence[Sequence[object]], *, is_batch: bool = False) -> Schema:
        """The schema completed from values: the coding of labels, and which cells hold JSON text.

        `is_batch`: these rows are not the first of all, so that others may have come before them.

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
        """The roles of which most texts are turns written as text, or nearly all what Python printed."""
        found = {role for role, each in texts.items() if _share(may_be_turns, each) > 1 / 2}
        if self.is_csv:  # elsewhere such a text is meant: code, for one
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
        """Whether most labels that are no ties are one of their row's two responses.

        Raises:
            DataError: they are, and name sides, too, and another one: of the responses "b" and "a", "a".
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
        """The coding of a second label. One that is not certain is compared with nothing."""
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
        """The values of a row, with those of `others` in place of empty ones; `cell` gives them by name."""
        if not self.others:
            return values
        found = list(values)
        for place, role in enumerate(self.columns):
            for name in () if role in self.told.columns else self.others.get(role, ()):
                if is_null(found[place]) or found[place] == "":
                    found[place] = cell(name)
        return found

    def row(self, values: Sequence[object]) -> dict[str, Any]:
        """The values by role."""
        return dict(zip(self.columns, values, strict=True))

    def rater_key(self, values: Sequence[object]) -> tuple[object, object]:
        """What rows have in common that one person rated for one prompt: (prompt and group, user)."""
        row = self.row(values)
        return tuple(_key(row.get(role)) for role in _ASKED), _key(row.get("user"))

    def label(self, row: Mapping[str, Any], role: str) -> object:
        """A row's label; where it is one of the responses or the name of its model, "first" or "second"."""
        label = plain(row[role])
        texts = self._texts(row)
        if (
            self.labels_are_texts
            and isinstance(label, str)
            and label in texts
            and texts[0] != texts[1]
        ):
            return "first" if label == texts[0] else "second"
        if "model_1" in row and isinstance(label, str):
            models = [row["model_1"], row["model_2"]]
            if models[0] != models[1] and label in models:
                return "first" if label == models[0] else "second"
        return label

    def describe(self) -> dict[str, Any]:
        """How the rows were read, for a table's settings: the columns by role, and what was counted."""
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
    """A value that is equal for equal cells, and can be looked up."""
    value = plain(value)
    if is_null(value) or value == "":
        return None
    return value if isinstance(value, str | int | float) else repr(value)


def _share(is_so: Callable[[str], bool], texts: Iterable[str]) -> float:
    """The share of the texts of which something is so; 0 if there are none."""
    found = [is_so(text) for text in texts]
    return sum(found) / len(found) if found else 0.0


def _are_printed(texts: Sequence[str]) -> bool:
    """Whether nearly all texts, and not only a few, are what Python prints of a record or of a list."""
    return (
        len(texts) >= _ENOUGH and _share(lambda text: printed(text) is not None, texts) > 1 - _FEW
    )


def _repeat_prompt(cells: Mapping[str, Sequence[object]]) -> bool | None:
    """Whether both responses begin with the prompt in nearly all rows of texts; None: this is not certain."""
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
    """Whether both are lists of texts: several responses, not the turns of one."""
    lists = [plain(value) for value in values]
    return all(
        isinstance(v, list | tuple) and v and isinstance(v[0], str) and not looks_like_turns(v[0])
        for v in lists
    )
