"""Read JSON that comes from outside: data files, stored tables and replies, batches.

A text of 60 MB can hold 20 million empty lists, which take gigabytes of memory. So the values of a text are
counted before it is parsed. Every module that reads JSON which this process did not write calls this one.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any, Final, TypeVar

from .exceptions import DataError

MOST_VALUES: Final = 4_000_000  # of one row or line; an image of a million pixels has 3 million

_BEGINS_A_VALUE = "{[,"  # Python takes 30 to 150 bytes for a value
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


def read_json(text: str | bytes, most: int | None = None) -> Any:
    """The value of a JSON text; bytes are UTF-8.

    Raises:
        ValueError: it is not JSON, is nested too deep, or has more than so many values
            (`TooManyValuesError`; None: `MOST_VALUES`).
    """
    try:
        return json.loads(bounded_json(text if isinstance(text, str) else text.decode(), most))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _has_more_values(text: str | bytes, most: int) -> bool:
    """Whether more values than these begin in the text. Signs within the texts of the JSON do not count."""
    text = text if isinstance(text, str) else text.decode(errors="replace")
    if sum(map(text.count, _BEGINS_A_VALUE)) <= most:
        return False
    unescaped = text.replace("\\\\", "").replace('\\"', "")
    begins = (True for found in _TEXT_OR_BEGIN.finditer(unescaped) if found[1])
    return next(islice(begins, most, None), False)
