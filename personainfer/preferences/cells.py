"""Read single cells of a row: nulls, ids, JSON text, and text that cannot be written as UTF-8."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from typing import Final

from ..exceptions import DataError, NoPreferenceError
from ..json_text import TooManyValuesError, bounded_json, read_json


class _Absent:
    """Marks a key that a row does not have, as opposed to a null."""


ABSENT: Final = _Absent()
LEAVE_OUT: Final = "Correct the row or leave it out."
_MOST_PRINTED = (
    200_000  # values of a list that Python printed: it takes ten times as much to read it
)

_NO_IDS = (list, tuple, Mapping, set, frozenset, bytes, bytearray)
_IN_JSON = re.compile(r"""\s*(?:\[\s*)?\{.*?["'](?:role|from|content|value)["']\s*:""", re.DOTALL)


def plain(value: object) -> object:
    """Numpy's arrays and scalars as Python's lists and numbers; other values as they are."""
    if type(value).__module__ == "numpy":
        return value.tolist()  # type: ignore[attr-defined]
    return value


def is_null(value: object) -> bool:
    """Whether a value is None, absent, NaN, or a null of pandas."""
    absent = value is None or value is ABSENT or type(value).__name__ in ("NAType", "NaTType")
    return absent or (isinstance(value, float) and math.isnan(value))


def wrong_type(name: str, value: object, wanted: str) -> DataError:
    """The error for a value that is absent, null, or of a wrong type."""
    if value is ABSENT:
        return DataError(f"the row has no {name!r}.", hint=LEAVE_OUT)
    if is_null(value):
        return NoPreferenceError(f"{name!r} is missing (null).", hint=LEAVE_OUT)
    return DataError(f"{name!r} is of type {type(value).__name__}, not {wanted}.", hint=LEAVE_OUT)


def identifier(value: object, name: str) -> str | None:
    """An id of the column `name`, as text; None for a null and an empty text.

    Raises:
        DataError: a list, a dict or bytes, which are no id.
    """
    if value is None or value is ABSENT:
        return None
    if type(value) is str:
        return value or None
    value = plain(value)
    if is_null(value):
        return None
    if isinstance(value, _NO_IDS):
        raise DataError(
            f"{name!r} is of type {type(value).__name__}, which is no id.",
            hint="Write each id as text or a number, or rename the column if it holds no ids.",
        )
    if isinstance(value, float) and value.is_integer():  # integers of a column with nulls
        value = int(value)
    return str(value) or None


def surrogate_problem(name: str) -> str:
    """The error of a text that cannot be written as UTF-8."""
    return (
        f"{name} holds bytes that are not UTF-8, or half of a surrogate pair. Save the file as UTF-8, or read"
        " it with its own encoding and pass the frame: pandas.read_csv(path, encoding='latin-1'), for one."
    )


def looks_like_turns(value: object) -> bool:
    """Whether a text seems to be a list of messages that was written as JSON or by Python."""
    return isinstance(value, str) and value.lstrip()[:1] in "[{" and bool(_IN_JSON.match(value))


def parse_cell(name: str, value: object) -> object:
    """A cell of a column that holds JSON text, parsed; also what Python prints of lists.

    Raises:
        DataError: the text is neither, or holds too many values.
    """
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except TooManyValuesError as error:
        raise DataError(f"{name!r}: {error}", hint=LEAVE_OUT) from None
    except ValueError:
        pass
    try:
        return ast.literal_eval(bounded_json(value, _MOST_PRINTED).strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError(
            f"{name!r} is not JSON, as the column has in other rows: {value!r:.60}.",
            hint="Write it with json.dumps.",
        ) from None
