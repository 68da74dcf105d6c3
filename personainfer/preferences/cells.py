"""Read single cells of a row: nulls, ids, JSON text, and text that cannot be written as UTF-8.

All JSON that comes from outside is read here: data files, stored tables and replies, batches. A text of 60 MB
can hold 20 million empty lists, which take gigabytes of memory, so its values are counted before.
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, TypeVar

from ..exceptions import DataError, NoPreferenceError


class _Absent:
    """Marks a key that a row does not have, as opposed to a null."""


ABSENT: Final = _Absent()
LEAVE_OUT: Final = "Correct the row or leave it out."
_MOST_PRINTED = (
    200_000  # values of a list as Python prints it: reading it takes ten times the memory
)

_NO_IDS = (list, tuple, Mapping, set, frozenset, bytes, bytearray)
_IN_JSON = re.compile(r"""\s*(?:\[\s*)?\{.*?["'](?:role|from|content|value)["']\s*:""", re.DOTALL)


def plain(value: object) -> object:
    """NumPy's arrays and scalars, texts of any class and decimals as Python's lists, texts and numbers.

    Other values stay as they are.
    """
    if type(value) is str:
        return value
    if type(value).__module__ == "numpy":
        return value.tolist()  # type: ignore[attr-defined]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Decimal):
        is_whole = value.is_finite() and value == value.to_integral_value()
        return int(value) if is_whole else float(value)
    return value


def without_na(values: list[Any]) -> list[Any]:
    """The values with None for pandas' NA, which is neither true nor false, and equals nothing."""
    pandas: Any = sys.modules.get("pandas")
    if pandas is None or pandas.NA.__class__ not in map(type, values):
        return values
    return [None if value is pandas.NA else value for value in values]


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
            raise DataError(
                f"{name!r} is {value:.0f}, a number that has lost its last digits.",
                hint=f"Read the column as text: pandas.read_csv(path, dtype={{{name!r}: str}}), for one.",
            )
        value = int(value)
    return str(value).strip() or None


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
    """A cell of a column that holds JSON text, parsed; also what Python prints of lists. "" stays as it is.

    Raises:
        DataError: the text is neither, or holds too many values.
    """
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return read_json(value, is_data=True)
    except (TooManyValuesError, TwinKeysError) as error:
        raise DataError(f"{name!r}: {error}", hint=LEAVE_OUT) from None
    except ValueError:
        pass
    try:
        return _of_python(bounded_json(value, _MOST_PRINTED).strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError(
            f"{name!r} is not JSON, as the column has in other rows: {value!r:.60}.",
            hint="Write it with json.dumps.",
        ) from None


class _WithNan(ast.NodeTransformer):
    """Python prints nan and inf, and `literal_eval` does not know them."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(float(node.id)) if node.id in ("nan", "inf") else node


def _of_python(printed: str) -> object:
    try:
        return ast.literal_eval(printed)
    except ValueError:
        return ast.literal_eval(_WithNan().visit(ast.parse(printed, mode="eval")))


# JSON

MOST_VALUES: Final = 5_000_000  # of one row or line; an image of a million pixels has 4 million

# As how many values a dict and a list count: they take 200 and 70 bytes, another value 30 to 60.
_COUNTS: Final = {"{": 4, "[": 2, ",": 1}
_TEXT_OR_BEGIN = re.compile(r'"[^"]*"?|([{\[,])')

Text = TypeVar("Text", str, bytes)


class TooManyValuesError(DataError):
    """A JSON text has more values than are read at once."""


def bounded_json(text: Text, most: int | None = None) -> Text:
    """The JSON text as it is, if it has no more than so many values (None: `MOST_VALUES`).

    Raises:
        TooManyValuesError: it has more.
    """
    most = MOST_VALUES if most is None else most
    if len(text) > most and _has_more_values(text, most):
        raise TooManyValuesError(
            f"it has more than {most:,} values.", hint="Remove those that no reader needs."
        )
    return text


class TwinKeysError(DataError):
    """An object in a JSON text has two values of one name: Python would take the last one."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise TwinKeysError(f"{name!r:.80} is there twice.", hint="Rename or remove one of them.")
    return found


_JSON_OF_DATA = json.JSONDecoder(object_pairs_hook=_unique)


def read_json(text: str | bytes, most: int | None = None, *, is_data: bool = False) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Args:
        text: the JSON.
        most: how many values it may have; None: `MOST_VALUES`.
        is_data: of two values with one name, refuse both (`TwinKeysError`), as two columns of one name are.

    Raises:
        ValueError: it is not JSON, is nested too deep, or has more values (`TooManyValuesError`).
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
    """Whether more values than these begin in the text. Signs within the texts of the JSON do not count."""
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
