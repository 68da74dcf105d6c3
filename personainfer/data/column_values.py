"""Examine values of the user's own columns, and write them as JSON text.

How large and how deep are they, and does Arrow give them back unchanged?
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from itertools import chain, compress, count, islice
from typing import TYPE_CHECKING, Any, cast

from ..preferences.cells import is_plain_null

if TYPE_CHECKING:
    import pyarrow

_VALUE_BYTES = 64  # about what Python takes for a value, besides the letters of a text
_LISTED_BYTES = 32  # what Python takes for a number in a list …
STORED_BYTES = 8  # … and what a column takes for it
_NUMBERS = {int, float, bool, type(None)}
_FLAT = {*_NUMBERS, str}
_PLAIN_IN_NUMPY = ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "str_")


def size_of(row: object, most: int = 2**26, *, number: int = _LISTED_BYTES) -> int:
    """Estimate how many bytes a value, such as the dict of a row, takes in memory.

    A list or a dict that comes again counts once, since a row may hold itself.

    Args:
        row: the value.
        most: bytes: counting ends when the sum reaches this, so the value may take more than is returned.
        number: the bytes of each number in a list of nothing but numbers, such as an embedding.
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
    """Whether one of the values is nested deeper than `DEEPEST` levels, or holds itself."""
    return not are_flat(values) and _within(values) is None


def are_flat(values: Iterable[object]) -> bool:
    """Whether all values are Python's numbers, texts or None, which hold no other values."""
    return _FLAT.issuperset(map(type, values))


def has_other_keys(values: Sequence[object]) -> bool | None:
    """Whether a dict within the values has a key that is not text; None: they are nested too deep to tell."""
    if are_flat(values):
        return False
    found = _within(values)
    return None if found is None else dict in found[0]


def _within(values: Sequence[object]) -> tuple[set[type], int] | None:
    """Find the classes of the values of a column, also of those within containers.

    No recursion: at each level of nesting, every container is looked at once.

    Returns:
        The classes, and a bound for the number of fields that an Arrow type of the column's dicts has (1: no
        dicts). `dict` is among the classes if a dict has a key that is not text. For an array of numbers, the
        class is NumPy's class of these numbers. None: values are nested deeper than `DEEPEST` levels.
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
        if not set(map(type, keys)) <= {str} and not all(map(_is_text, keys)):
            kinds.add(dict)
        if not inside:
            return kinds, fields
        items = chain.from_iterable(map(_items, level))
        level = list({id(each): each for each in items if type(each) in inside}.values())
    return None


def _is_text(key: object) -> bool:
    """Whether a key is a text, of any class, that a dict finds by its letters, as Arrow does."""
    return isinstance(key, str) and str.__str__(key) in {key}


def _container_types() -> tuple[type, ...]:
    # There are no arrays and series where the library was not imported.
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    # Another thread may import one just now: then it has no such name yet.
    found = getattr(numpy, "ndarray", None), getattr(pandas, "Series", None)
    return (*_CONTAINERS, *(kind for kind in found if kind is not None))


def _items(one: Any) -> Iterable[Any]:
    """Return the values of a container; none for an array of numbers, which holds no containers."""
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
    """Convert values to an Arrow array, if the array gives the same values back.

    Arrow takes the type of the first values for all. From other values it may cut times of day, time zones,
    nanoseconds and keys of dicts. These differences are allowed: a tuple, a set or an array comes back as a
    list; a key that only other dicts have comes back as None; a whole number comes back as a float that
    equals it.

    Args:
        values: the values of a column; None is null.
        nan_is_null: whether NaN becomes null, as in pandas.

    Returns:
        The array. None: Arrow refuses the values or would change them, or they are nested deeper than
        `DEEPEST` levels, or are dicts with more than `MOST_FIELDS` different keys (Arrow's type has one field
        for each key of any dict).
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
    """Count the fields of an Arrow type that hold no further fields; 1 for a type without fields.

    In the type of a column of dicts, each key whose value is no dict is such a field.
    """
    parts = (kind.field(place).type for place in range(kind.num_fields))
    return sum(map(fields_of, parts)) if kind.num_fields else 1


def is_kept(values: Iterable[Any], column: Any) -> bool:
    """Whether an Arrow array, or chunked array, gives these values back.

    The differences that `kept_in_arrow` allows do not count. False also if the values cannot be compared.
    """
    rest = iter(values)
    try:
        return all(
            _are_same(list(islice(rest, len(chunk))), chunk)
            for chunk in getattr(column, "chunks", [column])
        )
    except Exception:  # a year that Python lacks, or a comparison of the user's own class
        return False


def _crash_arrow(kinds: set[type]) -> bool:
    """Whether Arrow may crash the process on values of these classes.

    It does on NumPy's times among values of other classes.
    """
    times = {kind for kind in kinds if kind.__name__ in ("datetime64", "timedelta64")}
    return bool(times) and len(kinds - {type(None)}) > 1


def _are_plain(kinds: set[type]) -> bool:
    """Whether Arrow either keeps or refuses values of these classes, so that none has to be compared.

    These are Python's texts and numbers, or texts and numbers of one class of NumPy's. True and False among
    floats are an exception: Arrow changes these.
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
    """Whether an Arrow array gives these values back: dicts are compared field by field, lists as a whole.

    Values of a class in `_KEPT` are not compared one by one: embeddings have millions of numbers.
    """
    import pyarrow

    if isinstance(array, pyarrow.StructArray):
        there = array.is_valid().to_pylist()
        gone = (value for value, is_there in zip(values, there, strict=True) if not is_there)
        dicts = [value if is_there else {} for value, is_there in zip(values, there, strict=True)]
        names = [field.name for field in array.type]
        own = set(chain.from_iterable(dicts))
        if not own <= {*names} or not all(map(is_plain_null, gone)):
            return False
        parts = zip(names, array.flatten(), strict=True)
        return all(_are_same([one.get(name) for one in dicts], part) for name, part in parts)
    if hasattr(array, "flatten") and not isinstance(array, pyarrow.MapArray):
        return _are_same_lists(values, array)
    if _are_kept(set(map(type, values)) - {type(None)}, array.type):
        return True
    return all(map(_is_same, values, array.to_pylist()))


def _are_same_lists(values: list[Any], array: Any) -> bool:
    """Whether an Arrow array of lists gives back these lists and arrays, some of which may be null."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(array).to_pylist()
    there = [length is not None for length in lengths]
    if not all(
        is_plain_null(value) for value, is_there in zip(values, there, strict=True) if not is_there
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
    """Whether values of all these classes come back unchanged from a column of this type."""
    of_numpy = "numpy", _NUMPY_NAMES.get(str(kind), str(kind))
    others = {each for each in kinds if (each.__module__, each.__name__) != of_numpy}
    return others <= _KEPT.get(str(kind), set())


def _unpacked(values: Any) -> Any:
    """Return the values of a list; those of a NumPy array of numbers as Python's."""
    is_numbers = type(values).__name__ == "ndarray" and values.dtype.kind in "biuf"
    return values.tolist() if is_numbers else values


def _is_same(was: Any, now: Any) -> bool:
    """Whether `now`, which Arrow gave back, is the same as `was`, apart from what `kept_in_arrow` allows."""
    if now is None:
        return is_plain_null(was) or (type(was).__module__ == "numpy" and was != was)  # NaT
    if type(was).__module__ == "numpy" and was.dtype.kind not in "mM":
        was = was.item()
    if isinstance(now, bool) or isinstance(was, bool):
        return was is now
    if isinstance(now, Decimal) and not isinstance(was, Decimal):
        return False  # a whole number as a decimal one is another text
    if isinstance(now, datetime) and isinstance(was, datetime) and _zone_of(was) != _zone_of(now):
        return False  # two times of one instant are equal for Python
    return bool(was == now) or (is_plain_null(was) and is_plain_null(now))


def _zone_of(time: datetime) -> tuple[object, ...]:
    return time.utcoffset(), _zone_name(time.tzinfo)


@lru_cache(maxsize=256)
def _zone_name(zone: tzinfo | None) -> object:
    """Return Arrow's name of a time zone; None: no zone. UTC has a class in each library, but one name."""
    import pyarrow

    return None if zone is None else pyarrow.lib.tzinfo_to_string(zone)


# JSON text


def json_text(value: object) -> str:
    """Write any value as JSON text; None is "null".

    Sets, arrays and series become lists; keys that are not text become texts; any other value that JSON lacks
    becomes the text that `str` makes of it. pandas' NA and NaT become null; a float NaN is written as NaN. If
    nothing else works, the text is the name of the value's class.
    """
    return _dumped(value, has_other_keys=has_other_keys([value]) or False)


def json_texts(values: Sequence[object]) -> list[str]:
    """Write each value of a column as `json_text`: keys that are not text are looked for once for all."""
    return list(map(_dumped if has_other_keys(values) is False else json_text, values))


def _dumped(value: object, *, has_other_keys: bool = False) -> str:
    # A value may be a circle, or a number too long to print.
    with suppress(Exception):  # `json` would write 1 and "1" as one key
        return json.dumps(_with_names(value) if has_other_keys else value, default=_listed)
    with suppress(Exception):
        return json.dumps(str(value))
    return json.dumps(f"<{type(value).__name__}>")


def _listed(value: Any) -> Any:
    """Convert a value that `json` cannot write: nulls to None, arrays and sets to lists, others to text.

    `str` of an array would cut its values with "…".
    """
    if is_plain_null(value):
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
    """Return the value with texts as the keys of its dicts. Sets and tuples become lists."""
    if isinstance(value, Mapping):
        # As `json` writes them, unless there is a text of this name.
        own = {name: json.dumps(name) for name in value if name is None or isinstance(name, bool)}
        known = {name: text for name, text in own.items() if text not in value}
        return {text: _with_names(value[name]) for text, name in names_of([value], known).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return list(map(_with_names, value))
    return value


# Names of columns

COLUMNS = ("chosen_persona", "rejected_persona", "persona_error")
RECORD = "personainfer"  # the column with the records, and the key of the metadata
TAKEN_NAMES = frozenset((*COLUMNS, RECORD))  # of the columns that each table has itself


def level_names(levels: Iterable[object], columns: Collection[str]) -> list[str]:
    """Choose the names that the levels of a pandas index have as columns.

    A level keeps its name if it has one that is free. Otherwise it is called `__index_level_0__`, with its
    own number or the next one that is free.

    Args:
        levels: the names of the levels.
        columns: the names of the user's own columns.
    """
    found: list[str] = []
    for number, name in enumerate(levels):
        own = () if name is None else (name_as_text(name),)
        numbered = (f"__index_level_{n}__" for n in count(number))
        taken = {*columns, *TAKEN_NAMES, *found}
        found.append(next(text for text in chain(own, numbered) if text not in taken))
    return found


def names_of(
    rows: Iterable[Mapping[Any, Any]], known: dict[Any, str] | None = None
) -> dict[str, Any]:
    """Find the names of the columns of rows, as texts.

    Args:
        rows: the rows.
        known: the keys of rows that came before -> their texts, which they keep. Those of these rows are
            added. None: no rows came before.

    Returns:
        Text -> the key in the rows, in the order in which the rows have the keys. The keys 1 and "1" stay two
        columns: one is then called "1 (int)", or "1 (str)" if it came later.
    """
    own = dict.fromkeys(name for row in rows for name in row)
    known = {} if known is None else known
    texts = {name: name_as_text(name) for name in own if name not in known}
    taken = set(known.values())
    if len(taken.union(texts.values())) < len(taken) + len(texts):
        kept = {name for name, text in texts.items() if name == text and text not in taken}
        taken |= kept
        for name in texts:
            while name not in kept and texts[name] in taken:
                texts[name] += f" ({type(name).__name__})"
            taken.add(texts[name])
    known |= texts
    return {known[name]: name for name in own}


def name_as_text(name: object) -> str:
    r"""Return the name of a column as text that UTF-8 can hold.

    A lone surrogate, which UTF-8 cannot hold, becomes an escape, such as \udcff.
    """
    return str(name).encode("utf-8", "backslashreplace").decode()


def fits_utf_8(value: Any) -> bool:
    """Whether UTF-8 can hold all texts and names within a value, which JSON can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def in_utf_8(value: Any) -> Any:
    """Return a value whose texts, and names, have been made by `name_as_text`."""
    if isinstance(value, Mapping):
        return {
            n if not isinstance(n, str) else name_as_text(n): in_utf_8(v) for n, v in value.items()
        }
    if isinstance(value, tuple):
        made: Callable[[Iterable[Any]], Any] = getattr(value, "_make", tuple)  # of a named one
        return made(map(in_utf_8, value))
    if isinstance(value, list):
        return list(map(in_utf_8, value))
    return name_as_text(value) if isinstance(value, str) else value
