"""Read single cells of a row: nulls, ids, JSON text, and text that cannot be encoded as UTF-8.

`read_json` and `bounded_json` guard the JSON of data files, stored tables, batches and endpoints. A JSON text
of 60 MB can hold 20 million empty lists, which take gigabytes of memory. So the values of a long text are
counted before it is parsed.
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

from ..exceptions import DataError, NoPreferenceError


class _Absent:
    """The type of `ABSENT`, which stands for a key that a row does not have; None stands for a null."""


ABSENT: Final = _Absent()
LEAVE_OUT: Final = "Correct the row or leave it out."
# The most values of a list that Python printed: `ast` takes ten times the memory of `json`.
_MOST_PRINTED = 200_000

_NO_IDS = (list, tuple, Mapping, set, frozenset, bytes, bytearray)
_IN_JSON = re.compile(r"""\s*(?:\[\s*)?\{.*?["'](?:role|from|content|value)["']\s*:""", re.DOTALL)


def plain(value: object) -> object:
    """Convert a value of NumPy, of a subclass of str, or of Decimal to a plain Python one.

    A NumPy array becomes a list, a NumPy scalar a Python scalar, and a Decimal an int if it is whole, else a
    float. Any other value is returned unchanged.
    """
    if type(value) is str:
        return value
    if type(value).__module__ == "numpy":
        return value.tolist()  # type: ignore[attr-defined]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Decimal):
        is_whole = value.is_finite() and value == value.to_integral_value()
        if is_whole:
            return int(value)
        return math.nan if value.is_nan() else float(value)  # a NaN that signals is no float
    return value


def without_na(values: list[Any]) -> list[Any]:
    """Return the values with None in place of pandas' NA; without any NA, return the list itself.

    NA cannot be used in a condition, and is not equal to itself.
    """
    # Another thread may import pandas just now: then it has no such name yet, and nobody has the value.
    na = getattr(sys.modules.get("pandas"), "NA", None)
    if na is None or type(na) not in map(type, values):
        return values
    return [None if value is na else value for value in values]


def is_null(value: object) -> bool:
    """Whether a value is None, `ABSENT`, a NaN of Python, NumPy or Decimal, or a null of pandas or NumPy."""
    kind = type(value)
    if kind is str or kind is int:
        return False
    if isinstance(value, float):
        return math.isnan(value)
    if is_plain_null(value):
        return True
    if isinstance(value, Decimal):
        return value.is_qnan()  # one that signals is an error wherever it is compared
    is_scalar = kind.__module__ == "numpy" and getattr(value, "shape", None) == ()
    return is_scalar and value.dtype.kind in "fcmM" and bool(value != value)  # type: ignore[attr-defined]


def is_plain_null(value: object) -> bool:
    """Whether a value is None, `ABSENT`, a float NaN, or a null of pandas (NA, NaT): no NaN of a `Decimal`.

    The user's own columns keep other values as they are.
    """
    absent = value is None or value is ABSENT or type(value).__name__ in ("NAType", "NaTType")
    return absent or (isinstance(value, float) and math.isnan(value))


def wrong_type(name: str, value: object, wanted: str) -> DataError:
    """Make the error for a value that is absent, null, or of a wrong type. The caller raises it.

    Args:
        name: the column of the value.
        value: the value; `ABSENT` if the row does not have the column.
        wanted: the type that is needed, in words, such as "a number".

    Returns:
        A `NoPreferenceError` if the value is null. A plain `DataError` if the value is absent or of a wrong
        type.
    """
    if value is ABSENT:
        return DataError(f"the row has no {name!r}.", hint=LEAVE_OUT)
    if is_null(value):
        return NoPreferenceError(f"{name!r} is missing (null).", hint=LEAVE_OUT)
    return DataError(f"{name!r} is of type {type(value).__name__}, not {wanted}.", hint=LEAVE_OUT)


def identifier(value: object, name: str) -> str | None:
    """Read an id as text without white space around it. A float such as 7.0 becomes "7".

    Args:
        value: the cell.
        name: its column, for errors.

    Returns:
        The id; None for a null, `ABSENT` or a blank text.

    Raises:
        DataError: the value is a list, a tuple, a set, a dict or bytes; or a float of 2**53 or more, or a
            text such as "1.23457E+17", which may have lost its last digits.
    """
    if value is None or value is ABSENT:
        return None
    if type(value) is str:
        if "+" in value and _ROUNDED.fullmatch(value.strip()):
            raise _lost_digits(name, value.strip())
        return value.strip() or None
    value = plain(value)
    if is_null(value):
        return None
    if isinstance(value, _NO_IDS):
        raise DataError(
            f"{name!r} is of type {type(value).__name__}, which is no id.",
            hint="Write each id as text or a number, or rename the column if it holds no ids.",
        )
    if isinstance(value, float) and value.is_integer():  # integers of a column with nulls
        if abs(value) >= 2**53:
            raise _lost_digits(name, f"{value:.0f}")
        value = int(value)
    return str(value).strip() or None


# As spreadsheets and, from 15 digits on, pandas and R write large numbers to a file of text: with few digits,
# two ids are the same. R's 1e+05 is exact.
_ROUNDED = re.compile(r"\d(?:[.,]\d+)?(?:E\+\d+|e\+(?:1[5-9]|[2-9]\d|\d{3,}))")


def _lost_digits(name: str, said: str) -> DataError:
    return DataError(
        f"{name!r} is {said}, a number that has lost its last digits.",
        hint=f"Write and read the column as text: pandas.read_csv(path, dtype={{{name!r}: str}}), for one.",
    )


def surrogate_problem(name: str) -> str:
    """Return the message of an error: the text called `name` cannot be encoded as UTF-8."""
    return (
        f"{name} holds bytes that are not UTF-8, or half of a surrogate pair. If it is of a file, save that"
        " as UTF-8, or read it with its own encoding and pass the frame: pandas.read_csv(path,"
        " encoding='latin-1'), for one."
    )


def listed_dicts(value: object, keys: Iterable[str]) -> object:
    """Return a dict of lists as the list of dicts that it was: `datasets` writes a Sequence of dicts so.

    Args:
        value: the cell.
        keys: one of them must be in the dict. Its list and all others must be of one length.

    Returns:
        The list; any other value unchanged.
    """
    if not isinstance(value, Mapping) or value.keys().isdisjoint(keys):
        return value
    lists = [plain(each) for each in value.values()]
    if not all(isinstance(each, list | tuple) for each in lists):
        return value
    columns: list[Any] = lists
    is_one_length = len({len(each) for each in columns}) == 1
    return (
        [dict(zip(value, each, strict=True)) for each in zip(*columns, strict=True)]
        if is_one_length
        else value
    )


def of_pairs(value: object, keys: Iterable[str]) -> object:
    """Return the dict that a list of (key, value) tuples was: Arrow gives a value of its type map so.

    Args:
        value: the cell.
        keys: one of them must be a key.

    Returns:
        The dict; any other value unchanged.
    """
    if not isinstance(value, list) or not value:
        return value
    if not all(isinstance(each, tuple) and len(each) == 2 for each in value):
        return value
    found = {key: each for key, each in value if isinstance(key, str)}
    return found if len(found) == len(value) and not found.keys().isdisjoint(keys) else value


def looks_like_turns(value: object) -> bool:
    """Whether a value is text that begins like one or several messages, in JSON or as Python prints them.

    A message is a dict with one of the keys role, from, content and value. The text is not parsed.
    """
    return isinstance(value, str) and value.lstrip()[:1] in "[{" and bool(_IN_JSON.match(value))


def parse_cell(name: str, value: object) -> object:
    """Parse a cell of JSON text, or of a value as Python prints it, such as a list or a dict.

    Args:
        name: the column of the cell, for errors.
        value: the cell.

    Returns:
        The parsed value. A blank text, and a value that is not text, is returned unchanged. Turns that were
        written as JSON twice are parsed twice.

    Raises:
        DataError: the text is in neither notation, is nested too deep, or holds more than `MOST_VALUES`
            values (as Python prints them, 200,000); or a JSON object has a key twice.
    """
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        found = read_json(value, is_data=True)
    except (TooManyValuesError, TwinKeysError) as error:
        raise DataError(f"{name!r}: {error}", hint=LEAVE_OUT) from None
    except ValueError:
        pass
    else:
        return parse_cell(name, found) if looks_like_turns(found) else found
    try:
        return _of_python(bounded_json(with_commas(value), _MOST_PRINTED).strip())
    except TooManyValuesError as error:
        raise DataError(f"{name!r} is not JSON, and {error}", hint=LEAVE_OUT) from None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError(
            f"{name!r} is not JSON, as the column has in other rows: {value!r:.60}.",
            hint="Write it with json.dumps.",
        ) from None


class _Printed(ast.NodeTransformer):
    """Replaces what `literal_eval` refuses: the names nan and inf, and NumPy's arrays and scalars."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ("nan", "inf") else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        is_numpy = ast.unparse(node.func).startswith(("array", "np.")) and node.args
        return self.visit(node.args[0]) if is_numpy else node


# White space between two values, where NumPy prints no comma: ['a' 'b'].
_NUMPY_GAP = re.compile(
    r"""('(?:[^'\\]|\\.)*+'?|"(?:[^"\\]|\\.)*+"?)|(?<=[\])}'"\w.])\s+(?=[\[{'"\w.-])""", re.DOTALL
)


def with_commas(printed: str) -> str:
    """Return a list as NumPy prints it, and so pandas writes it to a CSV file, with Python's commas."""
    return _NUMPY_GAP.sub(lambda found: found[1] or ", ", printed)


def _of_python(printed: str) -> object:
    try:
        return ast.literal_eval(printed)
    except ValueError:
        return ast.literal_eval(_Printed().visit(ast.parse(printed, mode="eval")))


# JSON

MOST_VALUES: Final = 5_000_000  # in one row or line; an image of a million pixels has 4 million

# Weights of what begins a value: a dict takes 200 bytes, a list 70, another value 30 to 60.
_COUNTS: Final = {"{": 4, "[": 2, ",": 1}
_TEXT_OR_BEGIN = re.compile(r'"[^"]*"?|([{\[,])')

Text = TypeVar("Text", str, bytes)


class TooManyValuesError(DataError):
    """A JSON text holds more values than its reader accepts."""


def bounded_json(text: Text, most: int | None = None) -> Text:
    """Return a JSON text unchanged, unless it holds too many values. The text is not parsed.

    Args:
        text: the JSON, as text or as bytes in UTF-8.
        most: the most values, of which a dict counts as 4 and a list as 2; None: `MOST_VALUES`.

    Raises:
        TooManyValuesError: the text holds more than `most` values.
    """
    most = MOST_VALUES if most is None else most
    if len(text) > most and _has_more_values(text, most):
        raise TooManyValuesError(
            f"it has more than {most:,} values.", hint="Remove those that no reader needs."
        )
    return text


class TwinKeysError(DataError):
    """An object in a JSON text has the same key twice. `json.loads` would silently keep the last value."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise TwinKeysError(f"{name!r:.80} is there twice.", hint="Rename or remove one of them.")
    return found


_JSON_OF_DATA = json.JSONDecoder(object_pairs_hook=_unique)


def read_json(text: str | bytes, most: int | None = None, *, is_data: bool = False) -> Any:
    """Parse a JSON text.

    Args:
        text: the JSON; bytes are decoded as UTF-8.
        most: the most values that it may hold, of which a dict counts as 4 and a list as 2; None:
            `MOST_VALUES`.
        is_data: whether an object that has a key twice is refused, as it would be if two columns of a table
            had the same name. Otherwise the last value of the key counts.

    Returns:
        The parsed value. NaN and Infinity are accepted.

    Raises:
        TooManyValuesError: the text holds more than `most` values.
        TwinKeysError: an object has a key twice (only with `is_data`).
        ValueError: the bytes are not UTF-8, the text is not JSON, or it is nested too deep.
    """
    if not isinstance(text, str):
        text = text.decode()
    if len(text) > (MOST_VALUES if most is None else most):  # few lines are so long
        text = bounded_json(text, most)
    try:
        return _JSON_OF_DATA.decode(text) if is_data else json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _has_more_values(text: str | bytes, most: int) -> bool:
    """Whether a JSON text holds more than `most` values, of which a dict counts as 4 and a list as 2.

    Only the signs that begin values are counted (`{`, `[` and commas), without those within strings.
    """
    text = text if isinstance(text, str) else text.decode(errors="replace")
    if sum(text.count(sign) * values for sign, values in _COUNTS.items()) <= most:
        return False
    unescaped = text.replace("\\\\", "").replace('\\"', "")
    count = 0
    for found in _TEXT_OR_BEGIN.finditer(unescaped):
        if found[1]:
            count += _COUNTS[found[1]]
            if count > most:
                return True
    return False
