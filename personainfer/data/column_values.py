"""Values of the user's own columns: how deep and how large they are, what Arrow keeps of them; JSON text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from itertools import chain, compress, islice
from typing import TYPE_CHECKING, Any, cast

from ..preferences.cells import is_null

if TYPE_CHECKING:
    import pyarrow

_VALUE_BYTES = 64  # about what Python takes for a value, besides the letters of a text
_LISTED_BYTES = 32  # what Python takes for a number in a list …
STORED_BYTES = 8  # … and what a column takes for it
_NUMBERS = {int, float, bool, type(None)}
_FLAT = {*_NUMBERS, str}
_PLAIN_IN_NUMPY = ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "str_")


def size_of(row: object, most: int = 2**26, *, number: int = _LISTED_BYTES) -> int:
    """About how many bytes a row takes. Counting ends at `most`.

    A list or a dict that comes again counts once: a row may hold itself. `number`: bytes of a number in a
    list. Lists of numbers, such as embeddings, are counted as a whole.
    """
    size, inner, seen = 0, [row], set[int]()
    while inner and size < most:
        value = inner.pop()
        size += _VALUE_BYTES
        if type(value) in _NUMBERS:  # first, since isinstance(…, Mapping) is slow
            continue
        if isinstance(value, str | bytes):
            size += len(value)
        elif id(value) in seen:
            continue
        elif isinstance(value, list | tuple):
            seen.add(id(value))
            kinds = set(map(type, value))
            if kinds <= _NUMBERS:
                size += number * len(value)
                if int in kinds:  # of any length
                    size += sum(each.bit_length() for each in value if type(each) is int) // 8
            else:
                inner.extend(value)
        elif isinstance(value, Mapping):
            seen.add(id(value))
            inner.extend(value.values())
    return size


# What is within values

DEEPEST = 50  # levels of a column's value: Arrow and JSON end the process or the run at some more
_CONTAINERS: tuple[type, ...] = (dict, list, tuple, set, frozenset, type({}.values()))


def holds_too_deep(values: Sequence[object]) -> bool:
    """Whether a value of a column is nested deeper than can be stored, or without end."""
    return not set(map(type, values)) <= _FLAT and _within(values) is None


def _within(values: Sequence[object]) -> tuple[set[type], int] | None:
    """The classes of the values of a column, also in containers, and how many fields dicts have at most.

    None: they are nested too deep. `dict` is one of the classes where a dict has a key that is no text; of
    an array, NumPy's class of numbers is. No recursion, and at each level every container is seen once.
    """
    kinds, fields, types = set[type](), 1, _container_types()
    level: list[Any] = [values]
    for _ in range(DEEPEST + 1):
        is_listed = set(map(type, level)) <= {list, tuple}
        # Of a level as a whole: a loop over the values takes four times as long.
        found = set(map(type, chain.from_iterable(level if is_listed else map(_items, level))))
        inside = {kind for kind in found if issubclass(kind, types)}
        kinds |= found - inside
        others = [] if is_listed else level
        for array in (one for one in others if not isinstance(one, _CONTAINERS)):
            if array.dtype != object:
                of_numpy = type(array).__module__ == "numpy"
                # The type of NumPy's values, also of masked ones.
                kinds.add(array.dtype.type if of_numpy else type(array))
        keys = set(chain.from_iterable(one for one in others if isinstance(one, dict)))
        fields *= max(len(keys), 1)
        if not set(map(type, keys)) <= {str}:
            kinds.add(dict)
        if not inside:
            return kinds, fields
        items = chain.from_iterable(map(_items, level))
        level = list({id(each): each for each in items if type(each) in inside}.values())
    return None


def _container_types() -> tuple[type, ...]:
    # There are no arrays and series where the library was not imported.
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    # Another thread may import one just now: then it has no such name yet.
    found = getattr(numpy, "ndarray", None), getattr(pandas, "Series", None)
    return (*_CONTAINERS, *(kind for kind in found if kind is not None))


def _items(one: Any) -> Iterable[Any]:
    """What a container holds; of an array of numbers nothing that could be one."""
    items: Iterable[Any] = one
    if isinstance(one, dict):
        items = one.values()
    elif not isinstance(one, _CONTAINERS):
        array = one if hasattr(one, "flat") else one.to_numpy() if one.dtype == object else None
        items = () if array is None or not array.dtype.hasobject else array.ravel()
    return items


# What Arrow keeps

MOST_FIELDS = 1000  # that the dicts of a column have in Arrow, with those within them


def kept_in_arrow(values: Sequence[Any], *, nan_is_null: bool = False) -> pyarrow.Array[Any] | None:
    """The values as an Arrow array, if what it gives back is what went in; else None.

    Arrow takes the type of the first values for all: of others it cuts times of day, zones, nanoseconds and
    keys. Tuples, sets and arrays may come back as lists, a key that others have as None, and whole numbers
    as fractions that equal them. Each row has room for the keys of all: of very many, Arrow's type is not it.
    """
    import pyarrow

    found = _within(values)
    if found is None or _crash_arrow(found[0]):
        return None
    kinds, fields = found
    with suppress(Exception):  # whatever the user's objects raise: their rows are paid for
        if fields > MOST_FIELDS:
            infer: Any = pyarrow.infer_type
            if fields_of(infer(values, from_pandas=nan_is_null)) > MOST_FIELDS:
                return None
        array: Any = pyarrow.array(values, from_pandas=nan_is_null)
        if _are_plain(kinds - {type(None)}) or is_kept(values, array):
            return cast("pyarrow.Array[Any]", array)
    return None


def fields_of(kind: pyarrow.DataType) -> int:
    """How many fields without others in them a type has: of dicts one for each key, at all levels."""
    parts = (kind.field(place).type for place in range(kind.num_fields))
    return sum(map(fields_of, parts)) if kind.num_fields else 1


def is_kept(values: Iterable[Any], column: Any) -> bool:
    """Whether an Arrow column gives back these values."""
    rest = iter(values)
    try:
        return all(
            _are_same(list(islice(rest, len(chunk))), chunk)
            for chunk in getattr(column, "chunks", [column])
        )
    except Exception:  # a year that Python lacks, or a comparison of the user's own class
        return False


def _crash_arrow(kinds: set[type]) -> bool:
    """Whether Arrow may end the process: it does where NumPy's times stand among other values."""
    times = {kind for kind in kinds if kind.__name__ in ("datetime64", "timedelta64")}
    return bool(times) and len(kinds - {type(None)}) > 1


def _are_plain(kinds: set[type]) -> bool:
    """Whether these are texts and numbers, or one kind of NumPy's numbers. Arrow keeps or refuses them.

    One kind it changes: yes and no among fractions.
    """
    if kinds <= _FLAT:
        return not kinds >= {bool, float}
    return len(kinds) == 1 and all(kind.__name__ in _PLAIN_IN_NUMPY for kind in kinds)


# The classes of values that come back from columns of a type; of NumPy's, the class of its name.
_KEPT: dict[str, set[type]] = {
    "null": set(),
    "bool": {bool},
    "int64": {int},
    "double": {int, float},  # a whole number that would become another one is refused
    "string": {str},
    "date32[day]": {date},
}
_NUMPY_NAMES = {"float": "float32", "double": "float64", "string": "str_"}


def _are_same(values: list[Any], array: Any) -> bool:
    """Whether these values came back, field by field of dicts and of lists as a whole.

    Those of a class in `_KEPT` are not compared one by one: embeddings have millions of numbers.
    """
    import pyarrow

    if isinstance(array, pyarrow.StructArray):
        there = array.is_valid().to_pylist()
        gone = (value for value, is_there in zip(values, there, strict=True) if not is_there)
        dicts = [value if is_there else {} for value, is_there in zip(values, there, strict=True)]
        names = [field.name for field in array.type]
        own = set(chain.from_iterable(dicts))
        if not all(map(is_null, gone)) or not all(isinstance(name, str) for name in own - {*names}):
            return False
        parts = zip(names, array.flatten(), strict=True)
        return own <= {*names} and all(
            _are_same([one.get(name) for one in dicts], part) for name, part in parts
        )
    if hasattr(array, "flatten") and not isinstance(array, pyarrow.MapArray):
        return _are_same_lists(values, array)
    if _are_kept(set(map(type, values)) - {type(None)}, array.type):
        return True
    return all(map(_is_same, values, array.to_pylist()))


def _are_same_lists(values: list[Any], array: Any) -> bool:
    """Whether these lists and arrays, some of which may be null, came back."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(array).to_pylist()
    there = [length is not None for length in lengths]
    if not all(
        is_null(value) for value, is_there in zip(values, there, strict=True) if not is_there
    ):
        return False
    lists = list(compress(values, there))
    if list(map(len, lists)) != list(compress(lengths, there)):
        return False
    is_numpy = {kind.__name__ for kind in set(map(type, lists))} == {"ndarray"}
    if is_numpy and _are_kept({each.dtype.type for each in lists}, array.type.value_type):
        return True
    return _are_same(list(chain.from_iterable(map(_unpacked, lists))), array.flatten())


def _are_kept(kinds: set[type], kind: pyarrow.DataType) -> bool:
    """Whether values of all these classes come back from a column of this type."""
    of_numpy = "numpy", _NUMPY_NAMES.get(str(kind), str(kind))
    others = {each for each in kinds if (each.__module__, each.__name__) != of_numpy}
    return others <= _KEPT.get(str(kind), set())


def _unpacked(values: Any) -> Any:
    """What a list holds; of an array of numbers those of Python."""
    is_numbers = type(values).__name__ == "ndarray" and values.dtype.kind in "biuf"
    return values.tolist() if is_numbers else values


def _is_same(was: Any, now: Any) -> bool:
    """Whether a value came back: see `kept_in_arrow`."""
    if now is None:
        return is_null(was) or (type(was).__module__ == "numpy" and was != was)  # NaT
    if type(was).__module__ == "numpy" and was.dtype.kind not in "mM":
        was = was.item()
    if isinstance(now, bool) or isinstance(was, bool):
        return was is now
    if isinstance(now, Decimal) and not isinstance(was, Decimal):
        return False  # a whole number as a decimal one is another text
    if isinstance(now, datetime) and isinstance(was, datetime) and _zone_of(was) != _zone_of(now):
        return False  # two times of one instant are equal for Python
    return bool(was == now) or (is_null(was) and is_null(now))


def _zone_of(time: datetime) -> tuple[object, ...]:
    return time.utcoffset(), _zone_name(time.tzinfo)


@lru_cache(maxsize=256)
def _zone_name(zone: tzinfo | None) -> object:
    """The zone as Arrow names it: UTC has a class in each library."""
    import pyarrow

    return None if zone is None else pyarrow.lib.tzinfo_to_string(zone)


# JSON text


def json_text(value: object) -> str:
    """Any value as JSON text; None is "null"."""
    # A value may be a circle, have keys that are not text, or be a number too long to print.
    with suppress(Exception):
        return json.dumps(value, default=_listed)
    if not holds_too_deep([value]):
        with suppress(Exception):
            return json.dumps(_with_names(value), default=_listed)
    with suppress(Exception):
        return json.dumps(str(value))
    return json.dumps(f"<{type(value).__name__}>")


def _listed(value: Any) -> Any:
    """What holds values as lists of them, which its text would cut with "…"; of all else the text."""
    if is_null(value):
        return None
    if isinstance(value, set | frozenset):
        return list(value)
    if getattr(getattr(value, "dtype", None), "kind", "") in tuple("mM"):
        if getattr(value, "ndim", 0):
            return list(value)
        return str(value) if value == value else None  # as a number it would lack a unit
    for convert in ("tolist", "to_list"):  # NumPy, pandas, Arrow and torch; polars
        if callable(getattr(value, convert, None)):
            return getattr(value, convert)()
    return str(value)


def _with_names(value: Any) -> Any:
    """The value, whose dicts have texts as keys."""
    if isinstance(value, Mapping):
        return {text: _with_names(value[name]) for text, name in names_of([value]).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return list(map(_with_names, value))
    return value


def names_of(rows: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
    """The names of the columns as texts, each with the rows' own: 1 and "1" become two columns."""
    own = dict.fromkeys(name for row in rows for name in row)
    texts = {name: name_as_text(name) for name in own}
    if len(set(texts.values())) < len(own):
        taken = {name for name in own if isinstance(name, str) and texts[name] == name}
        for name in own:
            while name not in taken and texts[name] in taken:
                texts[name] += f" ({type(name).__name__})"
            taken.add(texts[name])
    return {text: name for name, text in texts.items()}


def name_as_text(name: object) -> str:
    """The name of a column as a text that UTF-8 can hold."""
    return str(name).encode("utf-8", "backslashreplace").decode()
