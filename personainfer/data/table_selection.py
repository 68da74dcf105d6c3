"""Select rows of a table: filter, sort, sample, and take the same rows of the user's own frame."""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from typing import Any

from ..arguments import WholeNumber, check_argument
from ..exceptions import InvalidArgumentError
from ..records import PersonaRow
from .arrow_columns import OwnColumns, in_narwhals, package_of, plain_values
from .table_reader import StoredColumns


def at_places(original: Any, places: Sequence[int]) -> Any:
    """The user's frame or dataset with the rows at these places, in this order, and with its index."""
    if original is None or isinstance(original, OwnColumns):
        return original.at(places) if isinstance(original, StoredColumns) else original
    if package_of(original) == "datasets":
        return original.select(places)
    if isinstance(places, range):  # keeps a pandas index that only counts as it is
        stop = places.stop if places.stop >= 0 else None
        cut = slice(places.start, stop, places.step) if places else slice(0, 0)
        if package_of(original) == "pandas":
            return original.iloc[cut]
        if package_of(original) == "pyarrow" and places.step == 1:
            return original.slice(places.start, len(places))
    import numpy as np

    return in_narwhals(original)[np.asarray(places, dtype=np.int64), :].to_native()


def filtered(rows: Sequence[PersonaRow], keep: Any) -> list[int]:
    """The places of the rows for which the function, or the value, is true.

    Raises:
        InvalidArgumentError: something else, values that are no booleans, or too few or many of them.
    """
    if callable(keep):
        return [place for place, row in enumerate(rows) if keep(row)]
    try:
        values = plain_values(keep)
    except TypeError:
        raise InvalidArgumentError(
            f"filter({keep!r:.60}) is neither a function of a row nor one boolean a row.",
            hint="Such as table.filter(lambda row: not row.flags).",
        ) from None
    if len(values) != len(rows):
        raise InvalidArgumentError(
            f"filter() got {len(values)} values, and the table has {len(rows)} rows.",
            hint="Give one boolean a row.",
        )
    for place, value in enumerate(values):
        if value is not None and not isinstance(value, bool):
            raise InvalidArgumentError(
                f"filter(): value {place} is {value!r:.60}, not True, False or None.",
                hint="To pick rows by their places, use a slice, or a list of booleans.",
            )
    return [place for place, value in enumerate(values) if value]


def sampled(count: int, n: int, seed: int) -> list[int]:
    """n places drawn at random without replacement, in rising order.

    Raises:
        InvalidArgumentError: n or seed is no whole number, or there are fewer places than n.
    """
    check_argument("seed", seed, WholeNumber)
    if check_count("sample", n) > count:
        raise InvalidArgumentError(
            f"sample({n}): the table has {count} rows.", hint="Rows are drawn at most once."
        )
    return sorted(random.Random(seed).sample(range(count), n))


def check_count(function: str, n: int) -> int:
    """The number of rows, or InvalidArgumentError if it is none."""
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 0:
        raise InvalidArgumentError(f"{function}({n!r}): give a number of rows, from 0 up.")
    return operator.index(n)


def ordered(values: Sequence[Any], reverse: bool) -> list[int]:
    """The places of the values in rising (or falling) order; equal ones as they were, None and NaN last.

    Raises:
        InvalidArgumentError: values that cannot be compared.
    """
    known = [n for n, v in enumerate(values) if v is not None and v == v]  # NaN is not itself
    missing = sorted(set(range(len(values))).difference(known))
    try:
        return sorted(known, key=lambda place: values[place], reverse=reverse) + missing
    except TypeError as error:
        raise InvalidArgumentError(
            f"sort(): the values cannot be compared: {error}.", hint="Give a key of one type."
        ) from None


def index_labels(original: Any, rows: Sequence[PersonaRow]) -> list[str] | None:
    """The labels of the first rows in the user's pandas index; None where it only counts the rows."""
    if package_of(original) == "pandas":
        index = original.index[: len(rows)]
    elif isinstance(original, StoredColumns):
        first = original.first(len(rows))
        if b"pandas" not in (first.schema.metadata or {}):
            return None
        try:
            index = first.to_pandas().index
        except ImportError:  # the file is read where there is no pandas
            return None
    else:
        return None
    labels = [", ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in index]
    return None if labels == [str(row.index) for row in rows] else labels
