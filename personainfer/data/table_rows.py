"""Hold the rows of a table in memory, and find which of them a filter, a sort or a sample selects.

The same rows of the user's own frame are taken with them. Positions count from 0.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..arguments import WholeNumber, check_argument, is_place
from ..exceptions import InvalidArgumentError
from ..preferences.cells import is_null
from ..records import (
    Candidate,
    Persona,
    PersonaRow,
    Preference,
    unchecked,
    unchecked_row,
)
from .arrow_columns import (
    NOT_OF_VALUES,
    conversion_errors,
    in_narwhals,
    package_of,
    plain_values,
)
from .own_columns import OwnColumns, index_columns, level_columns, pandas_of, picked_rows
from .table_display import persona_columns
from .table_reader import StoredColumns


class MemoryRows(Sequence[PersonaRow]):
    """Rows in memory, with the methods of `StoredRows`.

    Of each record only the dict of its values is kept, and the record is built when it is used: the garbage
    collector visits every record that is alive again and again, but no dict of texts.
    """

    def __init__(self, rows: Iterable[PersonaRow] = ()) -> None:
        self._indexes: list[int] = []
        self._preferences: list[Any] = []
        self._chosen: list[Any] = []
        self._rejected: list[Any] = []
        self._errors: list[str | None] = []
        self._columns: list[Mapping[str, Any]] = []
        self._candidates: dict[int, tuple[tuple[Candidate, ...], tuple[Candidate, ...]]] = {}
        if not isinstance(rows, Iterable):
            raise InvalidArgumentError(f"rows={rows!r:.60} is not a list of rows.", argument="rows")
        for row in rows:
            if not isinstance(row, PersonaRow):
                raise InvalidArgumentError(
                    f"rows[{len(self)}]={row!r:.60} is no PersonaRow.",
                    hint="PersonaTable.from_data makes a table of data with personas.",
                    argument="rows",
                )
            if row.chosen_candidates or row.rejected_candidates:
                candidates = (row.chosen_candidates, row.rejected_candidates)
                self._candidates[len(self)] = candidates
            pair, one, other = row.preference, row.chosen, row.rejected
            self._indexes.append(row.index)
            # A record of a subclass is kept as it is.
            self._preferences.append(pair.__dict__ if type(pair) is Preference else pair)
            self._chosen.append(one.__dict__ if type(one) is Persona else one)
            self._rejected.append(other.__dict__ if type(other) is Persona else other)
            self._errors.append(row.error)
            self._columns.append(row.columns)

    def __len__(self) -> int:
        return len(self._indexes)

    def __getitem__(self, index: Any) -> Any:
        places = range(len(self))[index]
        return list(map(self._row, places)) if isinstance(places, range) else self._row(places)

    def __iter__(self) -> Iterator[PersonaRow]:
        return map(self._row, range(len(self)))

    def _row(self, place: int) -> PersonaRow:
        pair, one, other = self._preferences[place], self._chosen[place], self._rejected[place]
        candidates, other_candidates = self._candidates.get(place, _NO_CANDIDATES)
        return unchecked_row(  # all of it was in a row before
            self._indexes[place],
            unchecked(Preference, pair) if type(pair) is dict else pair,
            unchecked(Persona, one) if type(one) is dict else one,
            unchecked(Persona, other) if type(other) is dict else other,
            self._errors[place],
            candidates,
            other_candidates,
            self._columns[place],
        )

    def own_columns(self) -> Sequence[Mapping[str, Any]]:
        """Return the user's own columns of each row, as the rows carry them."""
        return self._columns

    def at(self, positions: Sequence[int]) -> MemoryRows:
        """Return the rows at some positions, in the order of the positions."""
        return MemoryRows(map(self._row, positions))

    def with_rows(self, changed: Mapping[int, PersonaRow]) -> MemoryRows:
        """Return a copy of the rows, in which `changed` (position -> row) replaces some."""
        return MemoryRows(changed.get(place, row) for place, row in enumerate(self))

    def failed(self) -> list[int]:
        """Return the positions of the rows that have an error."""
        return [place for place, error in enumerate(self._errors) if error is not None]

    def flagged(self) -> int:
        """Count the rows of which a persona has a flag."""
        return sum(bool(row.flags) for row in self)

    def unexplained(self) -> int:
        """Count the rows that have a side whose choice no candidate explains."""
        return sum(bool(self._row(place).unexplained) for place in self._candidates)

    def texts(self) -> dict[str, list[str | None]]:
        """Return the columns of text for people: both personas and the error, see `persona_columns`."""
        return persona_columns(self)


_NO_CANDIDATES: tuple[tuple[()], tuple[()]] = ((), ())


def at_places(original: Any, places: Sequence[int]) -> Any:
    """Return the user's frame or dataset with the rows at some positions, in their order, and with its index.

    None is returned as it is, and the columns of a saved table become a view that reads nothing.
    """
    if original is None or isinstance(original, OwnColumns):
        return original.at(places) if isinstance(original, StoredColumns) else original
    if package_of(original) == "datasets":
        return original.select(places)
    if package_of(original) == "pyarrow":
        return picked_rows(original, places)
    if package_of(original) == "pandas" and isinstance(places, range):
        # A slice keeps an index that only counts as it is.
        stop = places.stop if places.stop >= 0 else None
        return original.iloc[slice(places.start, stop, places.step) if places else slice(0, 0)]
    import numpy as np

    return in_narwhals(original)[np.asarray(places, dtype=np.int64), :].to_native()


def in_row_order(name: str, values: Any, original: Any, count: int) -> Any:
    """Put the values of a pandas series in the order of the rows, by its index.

    Other values stay as they are.

    Args:
        name: what the values are for, in an error.
        values: one value a row: a list, an array, a series. With a wrong number of values, a series stays as
            it is, too.
        original: the user's frame or Arrow table, or the columns of a saved table, whose pandas index is that
            of the rows. Without such an index, the rows have the labels 0, 1, ….
        count: how many rows there are.

    Raises:
        InvalidArgumentError: the labels of the series are not those of the rows, or some repeat and the
            series is in another order.
        DataError: the index of a saved table, or of an Arrow table, is damaged.
    """
    if package_of(values) != "pandas" or not hasattr(values, "index") or len(values) != count:
        return values  # a wrong length has an error of its own
    import pandas as pd

    index = original.index if package_of(original) == "pandas" else None
    if isinstance(original, StoredColumns):
        index = original.index()
    elif package_of(original) == "pyarrow":
        with conversion_errors("pandas"):
            names = index_columns(original)
            index = pandas_of(original.select(names)).index if names else None
    index = pd.RangeIndex(count) if index is None else index
    if values.index.equals(index):
        return values
    is_alike = values.index.nlevels == index.nlevels
    if is_alike and values.index.is_unique and index.is_unique and values.index.isin(index).all():
        return values.reindex(index)
    raise InvalidArgumentError(
        f"{name}: the series has another index than the table, so its values cannot be matched to rows.",
        hint="If they are in the order of the rows, give series.to_numpy().",
    )


def filtered(rows: Sequence[PersonaRow], keep: Any) -> list[int]:
    """Return the positions of the rows to keep.

    Args:
        rows: the rows.
        keep: a function of a row, of which any true result counts; or one True, False or None (False) a row.

    Raises:
        InvalidArgumentError: `keep` is something else, has values that are not booleans, or too few or many.
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
    """Draw n of `count` positions at random without replacement; the result is in rising order.

    Raises:
        InvalidArgumentError: n or seed is not a whole number, n is negative, or n is more than `count`.
    """
    seed = check_argument("seed", seed, WholeNumber)
    if check_count("sample", n) > count:
        raise InvalidArgumentError(
            f"sample({n}): the table has {count} rows.", hint="Rows are drawn at most once."
        )
    return sorted(random.Random(seed).sample(range(count), n))


def check_count(function: str, n: int) -> int:
    """Return a number of rows as an int.

    Args:
        function: the method that got the number, for the error.
        n: a whole number, NumPy's too.

    Raises:
        InvalidArgumentError: n is not a whole number from 0 up.
    """
    if not is_place(n) or n < 0:
        raise InvalidArgumentError(f"{function}({n!r}): give a number of rows, from 0 up.")
    return operator.index(n)


def ordered(values: Sequence[Any], reverse: bool) -> list[int]:
    """Return the positions of the values in rising order.

    Equal values keep their order; None and NaN come last, also if `reverse`.

    Args:
        values: the values.
        reverse: falling order in place of rising.

    Raises:
        InvalidArgumentError: the values cannot be compared.
    """
    try:  # NaN is not itself
        known = [n for n, v in enumerate(values) if not is_null(v) and bool(v == v)]
        missing = sorted(set(range(len(values))).difference(known))
        return sorted(known, key=lambda place: values[place], reverse=reverse) + missing
    except NOT_OF_VALUES:
        raise
    except Exception as error:  # of whatever class the values are
        raise InvalidArgumentError(
            f"sort(): the values cannot be compared: {error}.", hint="Give a key of one type."
        ) from None


def index_labels(original: Any, rows: Sequence[PersonaRow]) -> list[str] | None:
    """Return the labels of the first rows of a table in the user's pandas index, as texts.

    Args:
        original: the user's frame or Arrow table, or the columns of a saved table.
        rows: the first rows of the table.

    Returns:
        A label for each row; None: there is no pandas index, nothing tells the labels of these rows, or they
        are the rows' positions in the input.
    """
    if package_of(original) == "pandas":
        index = original.index[: len(rows)]
    elif isinstance(original, StoredColumns) or package_of(original) == "pyarrow":
        if isinstance(original, StoredColumns):
            first = original.first(len(rows))
        else:
            first = picked_rows(original, range(len(rows)))
        try:
            if not level_columns(first):
                return None
            index = pandas_of(first).index
        except Exception:  # there is no pandas, or it cannot hold what the file has
            return None
    else:
        return None
    labels = [", ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in index]
    return None if labels == [str(row.index) for row in rows] else labels
