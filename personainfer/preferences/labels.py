"""Read which of two responses a label prefers.

Labels are coded in many ways: 1/2, 0/1, "A"/"B", "model_a", signed strengths. A single row does not show
whether 1 means the first or the second response, so the labels of the first rows are examined together. An
ambiguous coding is refused, and the error shows the `labels=` to pass.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..exceptions import ContradictionError, DataError, InvalidArgumentError, NoPreferenceError
from .cells import LEAVE_OUT, is_null, listed_dicts, of_pairs, parse_cell, plain, wrong_type
from .pairing import as_score

Verdict = Literal["first", "second", "tie"]
_VERDICTS: Final[tuple[Verdict, ...]] = ("first", "second", "tie")
# Columns that may hold a signed strength: negative if the first response is better, positive if the second
# is. Without a negative number, it may also be a scale from 1 to 7, or the strength of a choice that another
# column tells.
_SIGNED: Final = ("preference_strength", "overall_preference")
_HELPSTEER3: Final = ("overall_preference", "response1", "response2")  # from -3 to 3
_A_IS_ONE: Final = ("human_ref_A", "human_ref_B")  # SHP: 1 means the first, A
_SOME = 5  # so many labels are not all the same by chance
_MOST_KINDS = 10  # a column of labels has at most so many different words
_SHOWN = 8  # an error lists so many values
_WHAT_LABELS_MEAN = "Only you know what they mean. Say it of each, with first, second or tie:"
_PLACEHOLDER = "…"  # in a line to copy: what the caller has to fill in
_ID_LABELS: Final = ("better_response_id", "safer_response_id")  # PKU-SafeRLHF; False is 0, True 1
ENOUGH: Final = 50  # after so many labels, a new number is an error in its row, not another coding
_MOST_STRAYS = 0.02  # a coding may leave this share of the labels unexplained

_TIE_WORDS = frozenset(
    "both|both bad|bothbad|both good|neither|equal|equally good|equally bad|equals|draw|same|"
    "no preference|none|about equal|about the same|similar|even|both equal|both are equal|"
    "they are about the same|a=b|b=a|not sure|unsure".split("|")
)
_THING = (
    r"(?:model|response|assistant|answer|completion|conversation|output|option|candidate|system"
    r"|summary|chatbot|text|reply)"
)
_SIDE = re.compile(
    rf"{_THING}? ?(a|b|first|second|left|right|\d) ?{_THING}?"
    r"(?: ?(?:is )?(?:(?:slightly|clearly|much|significantly|strongly|somewhat|far|a bit|a lot) )?"
    r"(?:better|preferred|wins?|winner))?"
)
_ORDER = re.compile(r"([ab]) ?([<>])+ ?([ab])")
_SIDES: Mapping[str, Verdict] = {
    "a": "first", "first": "first", "left": "first", "b": "second", "second": "second",
    "right": "second",
}  # fmt: skip
_PLACES: Mapping[str, Verdict] = {"0": "first", "1": "second"}
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_WHOLE = re.compile(r"([+-]?)(\d+)(?:\.0*)?")


def check_labels(labels: Mapping[Any, str] | None) -> dict[str, Verdict]:
    """Check the argument `labels=`.

    Args:
        labels: label -> "first", "second" or "tie"; None: no labels.

    Returns:
        `label_key` of each label -> its verdict.

    Raises:
        InvalidArgumentError: `labels` is no mapping; a verdict is none of "first", "second", "tie"; a label
            is there twice, such as 1 and "1"; or two or more labels mean one response and none means the
            other.
    """
    if not isinstance(labels, Mapping | None):
        raise InvalidArgumentError(
            f"labels={labels!r:.60} is not a mapping.",
            hint='Give a dict, such as {0: "first", 1: "second", 2: "tie"}.',
            argument="labels",
        )
    checked: dict[str, Verdict] = {}
    for label, verdict in (labels or {}).items():
        if label_key(label) in checked:
            raise InvalidArgumentError(
                f"labels= gives {label_key(label)!r} twice.",
                hint="A label means one thing, however it is spelled.",
                argument="labels",
            )
        known = next((each for each in _VERDICTS if each == verdict), None)
        if known is None:
            raise InvalidArgumentError(
                f"labels[{label!r}] is {verdict!r}.",
                hint='It is one of "first", "second", "tie".',
                argument="labels",
            )
        checked[label_key(label)] = known
    sides = [verdict for verdict in checked.values() if verdict != "tie"]
    if len(sides) > 1 and len(set(sides)) == 1:
        raise InvalidArgumentError(
            f'labels= says of {len(sides)} labels that they mean "{sides[0]}", and of none that it means'
            f' "{"second" if sides[0] == "first" else "first"}".',
            hint="Correct it. If the data has one label for one side, give that one alone.",
            argument="labels",
        )
    return checked


def label_key(value: object) -> str:
    """Convert a label to text that is the same for equal labels: 1, 1.0, "+1" and " 1.0" become "1".

    Words become lower case, without white space around them.
    """
    value = plain(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    text = str(value).strip().lower()
    if text.isdigit() or not (whole := _WHOLE.fullmatch(text)):
        return text
    sign, digits = whole.groups()
    return f"-{digits}" if sign == "-" and digits.strip("0") else digits


def _words(key: str) -> str:
    """Return a label with single spaces in place of brackets, underscores, dashes and other punctuation."""
    return " ".join(re.sub(r"[\[\](){}_\-.,!]+", " ", key).split())


def word_verdict(key: str, names: tuple[str, str]) -> Verdict | None:
    """Return the verdict of a label in words; None for a number, unknown words or an empty label.

    Args:
        key: the label, by `label_key`.
        names: the columns of the two responses, which a label may name; "": a response has no column.
    """
    for verdict, name in zip(_VERDICTS, names, strict=False):
        if name and key == name.lower() and not name.isdigit():
            return verdict
    if key == "[[c]]":  # how judges of MT-bench say it
        return "tie"
    words = _words(key)
    if words in _TIE_WORDS or words.startswith("tie"):
        return "tie"
    if ordered := _ORDER.fullmatch(words):
        better = ordered[1] if ordered[2] == ">" else ordered[3]
        return _SIDES[better] if ordered[1] != ordered[3] else None
    side = _SIDE.fullmatch(words)
    return _SIDES.get(side[1]) if side else None


def label_number(key: str) -> str | None:
    """Return the number in a label as text: "1" for "1" and "response_1"; None if the label has no number.

    The labels "true" and "false" are returned as they are: their coding is as uncertain as that of numbers.

    Args:
        key: the label, by `label_key`.
    """
    if _NUMBER.fullmatch(key):
        return key
    if key in ("true", "false"):
        return key
    side = _SIDE.fullmatch(_words(key))
    return side[1] if side and side[1].isdigit() else None


@dataclass(frozen=True)
class LabelCoding:
    """What the labels of a column mean.

    Attributes:
        column: the column of the labels.
        names: the columns of the two responses, which a label may name; "": a response has no column.
        numbers: number, as text by `label_number` -> verdict. If the caller gave `labels=`, `label_key` of
            any label -> verdict.
        signed: whether the sign of a number is the verdict: negative means the first response, 0 a tie,
            positive the second response.
        is_given: whether the caller gave `labels=`. Then any other label is an error.
        is_tentative: whether so few labels were seen that a later number may contradict the coding.
        is_sure: whether further labels cannot change the coding.
    """

    column: str
    names: tuple[str, str]
    numbers: Mapping[str, Verdict] = field(default_factory=dict)
    signed: bool = False
    is_given: bool = False
    is_tentative: bool = False
    is_sure: bool = False

    def verdict(self, value: object) -> Verdict:
        """Return which response a label prefers ("first" or "second"), or "tie".

        Raises:
            NoPreferenceError: the label is null.
            ContradictionError: the coding is tentative, and the label is a number that it does not have. So
                earlier labels may have been misread.
            DataError: the coding does not explain the label, or the label is absent, or no text or number.
        """
        value = plain(value)
        if is_null(value) or not isinstance(value, str | int | float):
            raise wrong_type(self.column, value, "a label")
        key = label_key(value)
        if self.is_given:
            found = self.numbers.get(key) or self._of_twin(key)
        elif (found := word_verdict(key, self.names)) is None:
            found = self._of_number(label_number(key), value)
        if found is None:
            known = ", ".join(map(repr, self.numbers)) or "'a', 'b', 'tie'"
            raise DataError(
                f"{self.column!r} is {value!r:.60}, which is none of {known}.",
                hint="Correct the row. If it is a label of your own, labels= can say what each one means.",
            )
        return found

    def knows(self, values: Iterable[object]) -> bool:
        """Whether the coding explains all of these labels. What is null, or no text or number, is ignored."""
        try:
            for value in filter(_is_label, map(plain, values)):
                self.verdict(value)
        except DataError:
            return False
        return True

    def _of_twin(self, key: str) -> Verdict | None:
        """Read a boolean by labels= of 0 and 1, or 0 and 1 by those of booleans: they are equal."""
        twins = ("0", "1") if key in ("false", "true") else ("false", "true")
        twin = {"false": "0", "true": "1", "0": "false", "1": "true"}.get(key, "")
        return self.numbers.get(twin) if self.numbers.keys() >= {*twins} else None

    def _of_number(self, number: str | None, value: object) -> Verdict | None:
        if number is None:
            return None
        if self.signed and number not in ("true", "false"):
            amount = float(number)
            return "tie" if amount == 0 else "first" if amount < 0 else "second"
        found = self.numbers.get(number)
        if found is None and self.is_tentative:
            raise ContradictionError(
                f"{self.column!r} is {value!r:.60} here, and was {_listed(self.numbers)} "
                "in the rows before: they may have been read the wrong way round.",
                hint=_WHAT_LABELS_MEAN,
                argument="labels",
                example=_labels_example([number, *self.numbers]),
            )
        return found

    def describe(self) -> dict[str, str] | str:
        """Return the coding for a table's settings.

        Returns:
            Label -> verdict ("first", "second" or "tie"); or, for signed strengths and for labels in words, a
            phrase that says how they are read.
        """
        if self.signed:
            return "negative: first, 0: tie, positive: second"
        return dict(self.numbers) or "by name"


def _listed(keys: Iterable[str]) -> str:
    return " or ".join(list(keys)[:_SHOWN])


def _labels_example(keys: Iterable[str]) -> dict[int | float | str, str]:
    """Make an example of `labels=`. Its verdicts are placeholders, so that nobody runs a guess."""
    numbers = sorted({float(key) for key in keys if _NUMBER.fullmatch(key)})
    others = sorted({key for key in keys if not _NUMBER.fullmatch(key)})
    labels = [*(int(n) if n.is_integer() else n for n in numbers), *others]
    return dict.fromkeys(labels[:_SHOWN], _PLACEHOLDER)


def _plain_name(column: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\s_-]+", "_", column.strip()).lower()


def is_strength(column: str) -> bool:
    """Whether a column's name says that its cells tell how strong a preference is, with or without a sign."""
    name = _plain_name(column)
    return name in _SIGNED or "strength" in name.split("_")


def find_coding(
    column: str,
    values: Iterable[object],
    names: tuple[str, str],
    given: Mapping[str, Verdict] | None = None,
    *,
    is_batch: bool = False,
    is_place: bool = False,
) -> LabelCoding:
    """Find the coding of a column from the labels of its first rows.

    Args:
        column: the name of the column.
        values: its labels in the first rows. Nulls, and what is no text or number, are ignored.
        names: the columns of the two responses; "": a response has no column.
        given: `label_key` of each label -> verdict, from `labels=`; it is used without further checks. None
            or empty: the caller gave no labels.
        is_batch: whether other rows may have been read before these. Then a coding of numbers that later rows
            may contradict is refused.
        is_place: whether the column holds places in a list. Only a 0 shows that places count from 0: without
            one, a 1 may be the first response or the second, so numbers are refused.

    Raises:
        DataError: the coding is not certain. The error shows the `labels=` to pass.
    """
    if given:
        return LabelCoding(column, names, given, is_given=True, is_sure=True)
    seen = Counter(label_key(v) for v in map(plain, values) if _is_label(v))
    words = {key for key in seen if word_verdict(key, names) is not None}
    numbers = {n for key in seen if key not in words and (n := label_number(key)) is not None}
    if not numbers:
        if seen and not words:
            raise uncertain(column, seen)
        # A number may come later. If words were seen, they stay right, and the number is an error of its row.
        later = {} if is_place else _expected(column, names, set())
        is_tentative = bool(later) or not words
        return LabelCoding(column, names, later, is_tentative=is_tentative, is_sure=bool(words))
    if is_strength(column):
        amounts = [float(number) for number in numbers - {"true", "false"}]
        low, high = min(amounts, default=0.0), max(amounts, default=0.0)
        is_balanced = low < 0 and low <= -high / 2  # a lone -1 may mean "no answer"
        has_sign = is_balanced and _plain_name(column) in _SIGNED
        is_known = (column, *names) == _HELPSTEER3 and high <= 3
        if not (has_sign or is_known) or numbers & {"true", "false"}:
            raise uncertain(column, seen)
        return LabelCoding(column, names, signed=True, is_sure=has_sign and high > 0)
    by_number = sum(seen[key] for key in seen if key not in words and label_number(key))
    if words and by_number <= _MOST_STRAYS * seen.total():  # each number is an error of its row
        return LabelCoding(column, names, is_sure=True)
    coding = _PLACES if is_place else _expected(column, names, numbers)
    if is_place and "0" not in numbers:
        raise uncertain(column, seen)
    inside = numbers & coding.keys()
    sides = {coding[key] for key in inside}
    outside = numbers - coding.keys()
    # A few strays are errors of their rows; more of them show another scale, such as 1 to 5.
    strays = sum(count for key, count in seen.items() if label_number(key) in outside)
    other_coding = any(n in ("0", "1", "2", "true", "false") or n.startswith("-") for n in outside)
    other_coding = other_coding or strays > _MOST_STRAYS * sum(seen.values())
    if not coding or other_coding or (outside and len(sides) < 2):
        raise uncertain(column, seen)
    is_tentative = len(sides) < 2 or seen.total() < ENOUGH
    if is_batch and is_tentative:
        raise uncertain(column, seen)
    return LabelCoding(column, names, coding, is_tentative=is_tentative)


def may_be_labels(values: Iterable[object]) -> bool:
    """Whether the cells of a column may say which response is better, in known or unknown words.

    They cannot be labels if all are empty or lists of words (tags), if they have more than ten different
    unknown words, or if five or more rows all have one and the same unknown word (a source).
    """
    cells = [cell for cell in map(plain, values) if not (is_null(cell) or cell == "")]
    listed = [each for cell in cells if isinstance(cell, list | tuple) for each in cell]
    kinds = {label_key(cell) for cell in cells if _is_label(cell)}
    words = {kind for kind in kinds if label_number(kind) is None}
    others = {word for word in words if word_verdict(word, ("", "")) is None}
    if not kinds:
        return any(isinstance(each, Mapping) for each in (*cells, *listed))
    is_source = len(kinds) == 1 and bool(others) and len(cells) >= _SOME
    return len(others) <= _MOST_KINDS and not is_source


def name_both_sides(labels: Sequence[object]) -> bool:
    """Return whether labels in words, such as "A" or "tie", name both responses as the better one.

    Of fewer than five labels, it is enough that they name one response. Numbers, ties, unknown words and
    empty cells name none.

    Args:
        labels: the label of each row; equal ones count each time.
    """
    said = {word_verdict(label_key(label), ("", "")) for label in labels if _is_label(label)}
    said -= {None, "tie"}
    return len(said) == 2 or (len(said) == 1 and len(labels) < _SOME)


def _is_label(value: object) -> bool:
    if isinstance(value, int) and value.bit_length() > 64:  # too long to be printed, for one
        return False
    return not is_null(value) and isinstance(value, str | int | float)


def _expected(column: str, names: tuple[str, str], numbers: set[str]) -> Mapping[str, Verdict]:
    """Return the coding that the columns of the responses suggest, number -> verdict; {} if there is none.

    Args:
        column: the column of the labels.
        names: the columns of the two responses.
        numbers: the numbers among the labels seen, by `label_number`.
    """
    if names == _A_IS_ONE:
        return {"1": "first", "0": "second", "true": "first", "false": "second"}
    ends = names[0][-1:], names[1][-1:]
    if ends == ("0", "1"):
        coding: dict[str, Verdict] = {"0": "first", "1": "second"}
        # Elsewhere True may just as well mean that the first is the better one.
        return coding | ({"false": "first", "true": "second"} if column in _ID_LABELS else {})
    if ends == ("1", "2") or {"1", "2"} <= numbers:
        return {"1": "first", "2": "second"}
    return {}


def uncertain(column: str, seen: Counter[str]) -> DataError:
    """Make the error for a column of labels whose coding is not certain. The caller raises it.

    Args:
        column: the name of the column.
        seen: label, by `label_key` -> how many of the first rows have it.
    """
    shown = ", ".join(f"{key!r} ({count:,})" for key, count in seen.most_common(_SHOWN))
    return DataError(
        f"the labels in {column!r} do not say for certain which response is better. "
        f"Its first {sum(seen.values()):,} values: {shown}.",
        hint=_WHAT_LABELS_MEAN,
        argument="labels",
        example=_labels_example(seen),
    )


def are_reversed(one: str, other: str) -> bool:
    """Whether the names of two columns say that the first is the second response, as "b" and "a" do."""
    keys = label_key(one), label_key(other)
    sides = tuple(word_verdict(key, ("", "")) or label_number(key) for key in keys)
    return sides in (("second", "first"), ("2", "1"), ("1", "0"))


def tie_error(column: str) -> NoPreferenceError:
    """Make the error for a row whose label, in `column`, is a tie. The caller raises it."""
    return NoPreferenceError(f"{column!r} is a tie, so neither response is preferred.")


def one_hot_verdict(columns: Mapping[str, str], row: Mapping[str, Any]) -> Verdict:
    """Read the verdict of a row that has one column for each outcome: first, second, tie.

    Args:
        columns: role -> column, with the roles label_1 (the first response is better), label_2 (the second)
            and label_3 (a tie).
        row: role -> value, by `read_flag` true or false. A role may be missing.

    Raises:
        DataError: not exactly one of the columns is true, or a value is no flag.
    """
    verdicts: tuple[Verdict, ...] = ("first", "second", "tie")
    roles = [f"label_{n}" for n in (1, 2, 3) if f"label_{n}" in row]
    marks = [read_flag(columns[role], row[role]) for role in roles]
    found = [verdict for verdict, mark in zip(verdicts, marks, strict=False) if mark]
    if len(found) != 1:
        named = ", ".join(repr(columns[role]) for role in roles)
        raise DataError(f"of {named} {len(found)} are set, where one should be.", hint=LEAVE_OUT)
    return found[0]


def read_flag(name: str, value: object) -> bool | None:
    """Read a flag: true, false, yes, no, 1 or 0, also as text.

    Args:
        name: the column, for errors.
        value: the cell.

    Returns:
        The flag; None for a null, `ABSENT` and the texts "", "n/a" and "none".

    Raises:
        DataError: the value is something else.
    """
    value = plain(value)
    if isinstance(value, str) and (word := value.strip().lower()) in _FLAGS:
        return _FLAGS[word]
    if isinstance(value, bool) or (score := as_score(name, value)) is None:
        return bool(value) if isinstance(value, bool) else None
    if score not in (0, 1):
        raise DataError(f"{name!r} is {value!r:.40}, neither true nor false.", hint=LEAVE_OUT)
    return bool(score)


_FLAGS = {"true": True, "yes": True, "false": False, "no": False}


def majority_verdict(*annotations: object) -> Verdict:
    """Return the response that more annotators prefer; "tie" if the two responses have equally many votes.

    Ties, nulls and unknown words are no votes for a response.

    Args:
        annotations: cells, each a list of labels in words, or of dicts with such a label in "overall_pref";
            or JSON of one. Any other cell is ignored.

    Raises:
        NoPreferenceError: there are no annotations.
    """
    votes: Counter[Verdict | None] = Counter()
    for cell in map(plain, annotations):
        with suppress(DataError):  # a CSV file has lists as text
            cell = parse_cell("", cell)
        cell = listed_dicts(cell, ("overall_pref",))
        for each in cell if isinstance(cell, list | tuple) else ():
            vote = of_pairs(plain(each), ("overall_pref",))
            said = vote.get("overall_pref") if isinstance(vote, Mapping) else vote
            votes[word_verdict(str(said).strip().lower(), ("", ""))] += 1
    if not votes:
        raise NoPreferenceError("the row has no annotations.", hint=LEAVE_OUT)
    if votes["first"] == votes["second"]:
        return "tie"
    return "first" if votes["first"] > votes["second"] else "second"
