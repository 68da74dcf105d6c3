"""Check arguments: options that are declared once, and arrays of numbers, labels, counts and seeds.

Each option is declared once, in a TypedDict, and read by type checkers, Python, and the command line.

    class LLMOptions(TypedDict, total=False):
        max_tokens: Annotated[Count, Field(default=500, description="The most tokens of a reply.")]

`Options(LLMOptions)` makes a pydantic model of it that checks values, with errors in our own words.
`takes_options` gives a function with `**options: Unpack[LLMOptions]` a signature that shows each option, and
passes keys to it as texts that no traceback shows.

Every function that computes a number reads its arrays by `read_numbers` and `read_labels`, so that a text, an
infinite value or a missing group is refused in the same words everywhere, and never becomes another number.
"""

from __future__ import annotations

import inspect
import operator
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from decimal import Decimal
from functools import cache
from numbers import Real
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    create_model,
)

from .api_keys import address_problem, can_be_sent, hides_secrets
from .exceptions import InvalidArgumentError, UnknownOptionError, quoted

if TYPE_CHECKING:
    import numpy
    from numpy.typing import ArrayLike, NDArray

    from .records import FloatArray

T = TypeVar("T")
Documented = TypeVar("Documented", bound=Callable[..., Any])


class Wanted(NamedTuple):
    """The words for an error about a value of the annotated type.

    Attributes:
        text: what the value must be, as a sentence without a subject: "must be a positive number."
        hint: what to do about it; "": nothing is known.
        secret: whether the error must not show the value.
    """

    text: str
    hint: str = ""
    secret: bool = False


def in_python(value: Any) -> Any:
    """Return a scalar of NumPy as Python's own; all else, arrays too, unchanged.

    JSON, torch and `random` do not take NumPy's. Only Python's have marks such as `Stored`.
    """
    scalar: Any = getattr(sys.modules.get("numpy"), "generic", ())
    if not isinstance(value, scalar) or value.dtype.kind in "mM":  # a time would become a number
        return value
    return float(value) if value.dtype.kind == "f" else value.item()  # item() keeps a longdouble


def is_place(value: object) -> bool:
    """Whether a value can be the place of an item: a whole number, NumPy's too, and no bool."""
    if isinstance(in_python(value), bool):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _real(value: Any) -> Any:
    """Return a number as Python's own, and None for what is none: pydantic takes arrays of one item, too."""
    value = in_python(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


MOST = 2**31 - 1  # of what is counted, such as the items of an array
Count = Annotated[
    int,
    Strict(),
    Field(ge=1, le=MOST),
    Wanted("must be a whole number from 1 up.", hint=f"The most is {MOST:,}."),
]
_MOST_SEED = 2**128  # of a seed: no JSON and no text holds any number of digits
WholeNumber = Annotated[
    int,
    Strict(),
    Field(gt=-_MOST_SEED, lt=_MOST_SEED),
    Wanted("must be a whole number of at most 128 bits."),
]
CountFromZero = Annotated[
    int, Strict(), Field(ge=0, lt=_MOST_SEED), Wanted("must be a whole number from 0 up.")
]
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False), BeforeValidator(_real)]
Number = Annotated[Finite, Wanted("must be a number.")]
NumberFromZero = Annotated[Finite, Field(ge=0), Wanted("must be a number from 0 up.")]
PositiveNumber = Annotated[Finite, Field(gt=0), Wanted("must be a positive number.")]
Seconds = Annotated[  # the clocks and sockets of the system know no time beyond some hundred years
    Finite, Field(gt=0, le=1e9), Wanted("must be a positive number of seconds, at most 1e9.")
]
Flag = Annotated[bool, Strict(), Wanted("must be True or False.")]


Text = Annotated[str, Strict()]  # bytes would pass without it


# How an endpoint is reached. No error shows what is given here.

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_THE_CONNECTION = ("content-length", "transfer-encoding")  # headers that the HTTP client writes


def _check_address(address: str) -> str:
    if problem := address_problem(address):
        raise InvalidArgumentError("api_base= is not an address.", hint=problem)
    return address


def _check_key(key: str) -> str:
    if not can_be_sent(key):
        raise ValueError
    return key


def _check_headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and can_be_sent(value)):
            raise ValueError
        if name.lower() in _OF_THE_CONNECTION:
            raise ValueError
    return headers


ApiBase = Annotated[
    Text,
    AfterValidator(_check_address),
    Wanted("must be the address of an endpoint, as text.", secret=True),
]
ApiKey = Annotated[
    Text,
    AfterValidator(_check_key),
    Wanted("must be ASCII text without white space around it.", secret=True),
]
Headers = Annotated[
    dict[Text, Text],
    AfterValidator(_check_headers),
    Wanted(
        "must be a dict of header names and texts, as HTTP can send them: in ASCII, and none of"
        " Content-Length and Transfer-Encoding.",
        secret=True,
    ),
]


def own_copy(value: Any) -> Any:
    """Return a copy of a dict or a list, with those within it; other values as they are.

    Nothing changes it later: one dict of the caller's may be for several models, or be filled further.
    """
    if isinstance(value, Mapping):
        own = copy(value) if isinstance(value, dict) else dict(value)
        own.update({name: own_copy(one) for name, one in value.items()})
        return own
    return [own_copy(one) for one in value] if isinstance(value, list) else value


class Option(NamedTuple):
    """One option of a function.

    Attributes:
        name: the option's name.
        kind: its type, without the checks.
        default: its default.
        help: one line of help; "": there is none.
    """

    name: str
    kind: Any
    default: Any
    help: str


class Options:
    """The options of a TypedDict, with their defaults and checks.

    Args:
        declared: a TypedDict whose fields are annotated with checks, a default and a description.

    Attributes:
        each: name -> the option.
        defaults: name -> the default.
        parameters: the options as keyword-only parameters of a signature.
    """

    def __init__(self, declared: type) -> None:
        checked, plain = get_type_hints(declared, include_extras=True), get_type_hints(declared)
        config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
        self._model: type[BaseModel] = create_model(declared.__name__, __config__=config, **checked)
        self.each = {
            name: Option(name, plain[name], field.default, field.description or "")
            for name, field in self._model.model_fields.items()
        }
        self.defaults = {name: option.default for name, option in self.each.items()}
        self.parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
            for name, kind, default, _ in self.each.values()
        ]

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check options, and return all: those that were given, and the others' defaults.

        A scalar of NumPy becomes Python's. Dicts and lists are copied, so that what is checked is what is
        used. All else stays unchanged.

        Raises:
            UnknownOptionError: a name is not an option. The error names the most similar one.
            InvalidArgumentError: a value cannot work.
        """
        UnknownOptionError.check(given, self.each)
        values = {name: in_python(value) for name, value in given.items()}
        if (problem := self._problem(values)) is not None:
            raise problem  # here, so that pydantic's error, which quotes the value, is not its context
        return {**self.defaults, **{name: own_copy(value) for name, value in values.items()}}

    def _problem(self, given: Mapping[str, Any]) -> InvalidArgumentError | None:
        try:
            self._model.model_validate(dict(given))
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            field = self._model.model_fields[name]
            return _translated(error, name, given[name], field.annotation, field.metadata)
        return None


def check_argument(name: str, value: T, kind: Any) -> T:
    """Check the value of an argument, and return it.

    Args:
        name: the argument, for the error.
        value: the value.
        kind: the type that it must have: one of this module, such as `Count`, or a Literal.

    Returns:
        The value; a scalar of NumPy as Python's own, and a number of more than 64 bits as a float: arrays
        have a whole number of that size as an object, with which nothing is computed.

    Raises:
        InvalidArgumentError: the value is not of this type.
    """
    value = in_python(value)
    try:
        checked: T = _adapter(kind).validate_python(value)
    except ValidationError as error:
        problem = _translated(error, name, value, kind, ())
    else:
        return checked if isinstance(checked, float) and abs(checked) >= 2**63 else value
    raise problem  # here, so that pydantic's error, which quotes the value, is not its context


def check_text(named: str, text: str, argument: str) -> None:
    """Raise InvalidArgumentError if a text holds half of a surrogate pair: no request can hold it.

    Args:
        named: what the text is, for the error, such as "personas['u0']".
        text: the text.
        argument: the argument that it is a part of.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{named} holds half of a surrogate pair: {text!r:.80}.",
            hint="Remove that character.",
            argument=argument,
        ) from None


@cache
def options_of(declared: type) -> Options:
    """Return the `Options` of a TypedDict. They are made once, and shared by the functions that have them."""
    return Options(declared)


def takes_options(declared: type) -> Callable[[Documented], Documented]:
    """Decorate a function, so that its signature and docstring show what `**options: Unpack[declared]` takes.

    Its address, key and headers are hidden from tracebacks, see `hides_secrets`. The options are not checked.
    """

    def documented(function: Documented) -> Documented:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        options = options_of(declared)
        shown: Any = hides_secrets(function)
        shown.__signature__ = signature.replace(parameters=[*own, *options.parameters])
        lines = "\n".join(f"    {one.name}: {one.help}" for one in options.each.values())
        shown.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{lines}\n"
        return shown  # type: ignore[no-any-return]

    return documented


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _translated(
    error: ValidationError, name: str, value: object, kind: Any, metadata: Any
) -> InvalidArgumentError:
    """Make the error for what pydantic found, in the words of the type's `Wanted`, else by its choices.

    Args:
        error: what pydantic raised.
        name: the argument or option.
        value: its value.
        kind: its type.
        metadata: further annotations of the type.
    """
    cause = error.errors()[0].get("ctx", {}).get("error")
    if isinstance(cause, InvalidArgumentError):  # of a validator of ours
        cause.argument = name
        return cause.with_traceback(None)  # whose frames have the value as pydantic passes it on
    wanted = next((one for one in (*metadata, *_within(kind)) if isinstance(one, Wanted)), None)
    if wanted is not None:
        said = f"{name}=" if wanted.secret else f"{name}={quoted(value)}"
        hint = "Pass its .item()." if hasattr(value, "item") else wanted.hint  # an array, a tensor
        return InvalidArgumentError(f"{said} {wanted.text}", hint=hint, argument=name)
    choices = [one for one in _within(kind) if isinstance(one, str)]
    if not choices:
        problem = error.errors()[0]["msg"].removeprefix("Input ")
        return InvalidArgumentError(f"{name}={quoted(value)} {problem}.", argument=name)
    listed = ", ".join(f'"{choice}"' for choice in choices)
    return InvalidArgumentError(
        f"{name}={quoted(value)} is not known.", hint=f"It is one of {listed}.", argument=name
    )


def _within(kind: Any) -> Iterator[Any]:
    """Yield the annotations of a type and the choices of a Literal, wherever in the type they are."""
    yield from getattr(kind, "__metadata__", ())
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for part in get_args(kind):
            yield from _within(part)


# Numbers

LARGEST = 1e100  # beyond it a square, or the sum of many, is too large for a float
_MISSING = ("NAType", "NaTType")  # of pandas


def read_numbers(
    name: str,
    given: ArrayLike | Iterable[float],
    *,
    dimensions: tuple[int, ...] = (1,),
    infinite: bool = False,
    length: int | None = None,
) -> FloatArray:
    """Read an argument as an array of floats; NaN for what is missing (None, NaN, masked, a null of pandas).

    Args:
        name: the argument, or words for where the numbers come from.
        given: numbers or booleans: a sequence, an array, a column of a frame, an iterator.
        dimensions: how many dimensions the array may have; each number in it is allowed.
        infinite: whether it may hold numbers beyond 1e100 and infinite ones, such as log-probabilities that
            are only compared.
        length: how many items the first dimension must have; None: any number.

    Returns:
        An array of the same shape.

    Raises:
        InvalidArgumentError: a text, a date or another thing that is not a number; an infinite number, or one
            beyond 1e100, unless `infinite`; an array of other dimensions, or of another length.
    """
    import numpy as np  # loading it takes longer than the rest of the package

    said = f"{name}=" if name.isidentifier() else name

    def error(what: str, hint: str = "") -> InvalidArgumentError:
        return InvalidArgumentError(f"{said} {what}", hint=hint, argument=name)

    found = _array(name, given, dimensions)
    if length is not None and len(found) != length:
        raise error(f"holds {len(found)} numbers where {length} are needed.")
    if found.dtype.kind == "O":
        numbers = [_number(one) for one in found.ravel().tolist()]
        if None in numbers:
            first = found.ravel()[numbers.index(None)]
            raise error(f"is not an array of numbers: it holds {quoted(first, 40)}.")
        found = np.array(numbers, dtype=np.float64).reshape(found.shape)
    if found.dtype.kind not in "biuf":
        raise error(
            f"is not an array of numbers: it holds {quoted(found.ravel()[:1].tolist(), 40)}."
        )
    array: FloatArray = found.astype(np.float64)
    beyond = array[np.abs(array) > LARGEST]
    if len(beyond) and not infinite:
        hint = "Give NaN for a value that is missing."
        raise error(f"holds {beyond[0]:g}: only finite numbers up to {LARGEST:g} can be.", hint)
    return array


def read_places(
    name: str, given: ArrayLike, *, dimensions: tuple[int, ...] = (1,), below: int | None = None
) -> NDArray[numpy.int64]:
    """Read an argument as an array of positions: whole numbers from 0.

    Args:
        name: the argument.
        given: the numbers, of an integer type; at least one.
        dimensions: how many dimensions the array may have; each number in it is allowed.
        below: each position is smaller than this; None: smaller than the number of positions.

    Returns:
        An array of the same shape.

    Raises:
        InvalidArgumentError: there are no numbers, they are not of an integer type, or one is out of bounds;
            or the array has other dimensions.
    """
    import numpy as np

    found = _array(name, given, dimensions)
    if not found.size or found.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"{name}= holds {quoted(found.ravel()[:1].tolist(), 40)}: whole numbers are needed.",
            hint="Numbers that are missing cannot be left out here.",
            argument=name,
        )
    end = found.size if below is None else below
    if found.min() < 0 or found.max() >= end:
        raise InvalidArgumentError(f"{name}= must be places from 0 to {end - 1}.", argument=name)
    return found.astype(np.int64)


def _array(name: str, given: Any, dimensions: tuple[int, ...]) -> NDArray[Any]:
    """Make an array of what is given; an iterator is read to its end, and masked values become NaN.

    Raises:
        InvalidArgumentError: it cannot be an array, or has another number of dimensions than those allowed.
    """
    import numpy as np

    said = f"{name}=" if name.isidentifier() else name
    try:
        given = _without_masks(list(given) if isinstance(given, Iterator) else given)
        try:
            found = np.asarray(given)
        except (TypeError, RuntimeError):  # a tensor of bfloat16, on a GPU, or with a gradient
            if not callable(read := getattr(given, "tolist", None)):
                raise
            found = np.asarray(read())
    except (ValueError, TypeError, RuntimeError) as problem:
        raise InvalidArgumentError(
            f"{said} is not an array of numbers: {problem}", argument=name
        ) from None
    if found.ndim not in dimensions:
        wanted = " or ".join(("()", "(n,)", "(n, k)", "(n, k, m)")[d] for d in dimensions)
        raise InvalidArgumentError(
            f"{said} has the shape {found.shape}: {wanted} is needed.", argument=name
        )
    return found


def _without_masks(given: Any) -> Any:
    """Replace what is masked by NaN: `np.asarray` would give the number below the mask."""
    import numpy as np

    if isinstance(given, np.ma.MaskedArray):
        hides = bool(np.ma.is_masked(given))
        return np.ma.filled(given.astype(np.float64), np.nan) if hides else given.data
    if isinstance(given, list | tuple) and any(
        isinstance(one, np.ma.MaskedArray | list | tuple) for one in given
    ):
        return [_without_masks(one) for one in given]
    return given


def _number(value: object) -> float | None:
    """Return the value as a float; NaN for a missing one, None for what is not a number."""
    if value is None or type(value).__name__ in _MISSING:
        return float("nan")
    try:
        value = in_python(value)
        return float(value) if isinstance(value, Real | Decimal) else None
    except OverflowError:
        return float("inf")


def read_items(name: str, given: Iterable[T]) -> list[T]:
    """Read an argument that holds several things, such as texts, as a list.

    Args:
        name: the argument.
        given: a list, an array, a column, an iterator. The items are not checked.

    Raises:
        InvalidArgumentError: `given` is a single text, a mapping or a frame, or nothing that has items.
    """
    items = None
    if not isinstance(given, str | bytes | Mapping) and not hasattr(given, "columns"):
        with suppress(TypeError):  # also of an array without dimensions
            items = iter(given)
    if given is None:
        raise InvalidArgumentError(f"{name}= is None.", hint="Pass a list.", argument=name)
    if items is None:
        raise InvalidArgumentError(
            f"{name}= is a single {type(given).__name__}.",
            hint="Pass list(it)." if isinstance(given, Mapping) else "Pass a list: [it].",
            argument=name,
        )
    return list(items)


def id_text(given: object) -> str:
    """Return an id as text, as ids are read from data: 7 and 7.0 are "7"."""
    value = in_python(unboxed(given))
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def unboxed(value: Any) -> Any:
    """Return the value of a tensor or of an Arrow scalar: no two tensors are equal as keys of a dict."""
    if callable(read := getattr(value, "as_py", None)):
        return read()
    if getattr(value, "shape", None) != () or type(value).__module__.startswith("numpy"):
        return value  # one of NumPy, `masked`, too, whose item() is 0
    return value.item()


def by_text(name: str, given: Mapping[Any, T]) -> dict[str, T]:
    """Read an argument that maps users or ids, whose names in the data are texts: 7 and 7.0 mean "7".

    Args:
        name: the argument.
        given: the mapping. Its values are not checked.

    Raises:
        InvalidArgumentError: `given` is not a mapping, or two keys are one text, such as 7 and "7".
    """
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(f"{name}={quoted(given)} is not a mapping.", argument=name)
    found: dict[str, T] = {}
    for key, value in given.items():
        if (text := id_text(key)) in found:
            raise InvalidArgumentError(
                f"{name}= has {text!r} twice, as a number and as text.",
                hint="Remove one of them.",
                argument=name,
            )
        found[text] = value
    return found


def read_labels(name: str, given: Iterable[Hashable]) -> tuple[list[Any], NDArray[numpy.intp]]:
    """Read an argument as labels, such as the user or the group of each item.

    Labels are equal as keys of a dict are: 1 and 1.0 are one label, 1 and "1" are two.

    Args:
        name: the argument.
        given: a label for each item: a list, an array, a column, an iterator.

    Returns:
        The distinct labels, in rising order (those of several types by the name of their type); and an array,
        shape (items,), with the position of each item's label among them.

    Raises:
        InvalidArgumentError: a label is missing (None, NaN, or a tuple that holds one) or cannot be one, such
            as a list; or `given` is a single text, a mapping, or nothing that has items.
    """
    import numpy as np

    labels: Any = None
    if callable(read := getattr(given, "tolist", None)):  # of NumPy, pandas, torch, Arrow
        labels = read()
    elif isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | set):
        labels = list(given)
    if not isinstance(labels, list) or hasattr(given, "columns"):
        raise InvalidArgumentError(
            f"{name}= is a single {type(given).__name__}: a label for each item is needed.",
            argument=name,
        )
    labels = labels if isinstance(given, np.ndarray) else list(map(unboxed, labels))
    for place, label in enumerate(labels):
        if _is_missing(label):
            raise InvalidArgumentError(
                f"{name}[{place}] is missing.", hint="Leave the item out.", argument=name
            )
    try:
        distinct: list[Any] = list(dict.fromkeys(labels))
    except TypeError:
        raise InvalidArgumentError(
            f"{name}= holds something that is not a label, such as a list.", argument=name
        ) from None
    try:
        distinct.sort()
    except TypeError:  # of several types
        distinct.sort(key=lambda label: (type(label).__name__, repr(label)))
    place_of = {label: place for place, label in enumerate(distinct)}
    return distinct, np.array([place_of[label] for label in labels], dtype=np.intp)


def _is_missing(label: object) -> bool:
    if isinstance(label, tuple):
        return any(map(_is_missing, label))
    if label is None or type(label).__name__ in _MISSING:
        return True
    return isinstance(label, Hashable) and bool(label != label)  # NaN and NaT, of any class
