"""Check arguments: options that are declared once, and arrays of numbers, labels, counts and seeds.

Each option is declared once, in a TypedDict, and read by type checkers, Python, and the command line.

    class LLMOptions(TypedDict, total=False):
        max_tokens: Annotated[Count, Field(default=500, description="The most tokens of a reply.")]

`Options(LLMOptions)` makes a pydantic model of it that checks values, with errors in our own words.
`takes_options` gives a function with `**options: Unpack[LLMOptions]` a signature that shows each option.
What it decorates is never given a key that a traceback would show.

Every function that computes a number reads its arrays by `read_numbers` and `read_labels`, so that a text, an
infinite value or a missing group is refused in the same words everywhere, and never becomes another number.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cache
from numbers import Integral, Real
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

Documented = TypeVar("Documented", bound=Callable[..., Any])


class Wanted(NamedTuple):
    """What a value must be, in the words of an error, and whether the error may show the value."""

    text: str
    hint: str = ""
    secret: bool = False


Count = Annotated[
    int, Strict(), Field(ge=1, le=sys.maxsize), Wanted("must be a whole number from 1 up.")
]
_MOST = 2**128  # of a seed: no JSON and no text holds any number of digits
WholeNumber = Annotated[
    int, Strict(), Field(gt=-_MOST, lt=_MOST), Wanted("must be a whole number of at most 128 bits.")
]
CountFromZero = Annotated[
    int,
    Strict(),
    Field(ge=0, lt=_MOST),
    BeforeValidator(lambda seed: int(seed) if _is_whole(seed) else seed),  # NumPy's, too
    Wanted("must be a whole number from 0 up."),
]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False), Wanted("must be a number.")]
PositiveNumber = Annotated[
    float, Strict(), Field(gt=0, le=sys.float_info.max), Wanted("must be a positive number.")
]
Flag = Annotated[bool, Strict(), Wanted("must be True or False.")]


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


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
    str,
    AfterValidator(_check_address),
    Wanted("must be the address of an endpoint, as text.", secret=True),
]
ApiKey = Annotated[
    str,
    AfterValidator(_check_key),
    Wanted("must be ASCII text without white space around it.", secret=True),
]
Headers = Annotated[
    dict[str, str],
    AfterValidator(_check_headers),
    Wanted(
        "must be a dict of header names and texts, as HTTP can send them: in ASCII, and none of"
        " Content-Length and Transfer-Encoding.",
        secret=True,
    ),
]


class Option(NamedTuple):
    """One option: its name, its type without the checks, its default, and one line of help."""

    name: str
    kind: Any
    default: Any
    help: str


class Options:
    """The options of a TypedDict, with their defaults and checks."""

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
        """All options: those that were given, as they were given, and the defaults of the others.

        Raises:
            UnknownOptionError: a name that is not an option, with the nearest that is.
            InvalidArgumentError: a value that cannot work.
        """
        UnknownOptionError.check(given, self.each)
        if (problem := self._problem(given)) is not None:
            raise problem  # here, so that pydantic's error, which quotes the value, is not its context
        return {**self.defaults, **given}

    def _problem(self, given: Mapping[str, Any]) -> InvalidArgumentError | None:
        try:
            self._model.model_validate(dict(given))
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            field = self._model.model_fields[name]
            return _translated(error, name, given[name], field.annotation, field.metadata)
        return None


def check_argument(name: str, value: object, kind: Any) -> None:
    """Raise InvalidArgumentError unless the value is of this kind, such as `Count` or a Literal."""
    if (problem := _argument_problem(name, value, kind)) is not None:
        raise problem


def _argument_problem(name: str, value: object, kind: Any) -> InvalidArgumentError | None:
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        return _translated(error, name, value, kind, ())
    return None


@cache
def options_of(declared: type) -> Options:
    """The options of a TypedDict that several functions share, made once."""
    return Options(declared)


def takes_options(declared: type) -> Callable[[Documented], Documented]:
    """Show the options that `**options: Unpack[declared]` takes in the signature and the docstring.

    Those that are secret are hidden, see `hides_secrets`.
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
    """What pydantic found, in the words of the option's declaration."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    if isinstance(cause, InvalidArgumentError):  # of a validator of ours
        cause.argument = name
        return cause.with_traceback(None)  # whose frames have the value as pydantic passes it on
    wanted = next((one for one in (*metadata, *_within(kind)) if isinstance(one, Wanted)), None)
    if wanted is not None:
        said = f"{name}=" if wanted.secret else f"{name}={quoted(value)}"
        return InvalidArgumentError(f"{said} {wanted.text}", hint=wanted.hint, argument=name)
    choices = [one for one in _within(kind) if isinstance(one, str)]
    if not choices:
        problem = error.errors()[0]["msg"].removeprefix("Input ")
        return InvalidArgumentError(f"{name}={quoted(value)} {problem}.", argument=name)
    listed = ", ".join(f'"{choice}"' for choice in choices)
    return InvalidArgumentError(
        f"{name}={quoted(value)} is not known.", hint=f"It is one of {listed}.", argument=name
    )


def _within(kind: Any) -> Iterator[Any]:
    """The metadata and the choices in a type, wherever in it they are."""
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
    """An argument as an array of floats; NaN for what is missing (None, NaN, masked, a null of pandas).

    Args:
        name: of the argument, or words for where the numbers come from.
        given: numbers or booleans: a sequence, an array, a column of a frame, an iterator.
        dimensions: how many dimensions it may have.
        infinite: whether it may hold infinite numbers, such as log-probabilities that are only compared.
        length: how many it must hold; None: any number.

    Raises:
        InvalidArgumentError: a text, a date or another thing that is not a number; an infinite number, or one
            beyond 1e100; an array of other dimensions.
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
    """An argument as an array of places: whole numbers from 0.

    Args:
        name: of the argument.
        given: the numbers.
        dimensions: how many dimensions it may have.
        below: each is smaller than this; None: than how many they are.

    Raises:
        InvalidArgumentError: no whole numbers, one that is missing or out of bounds, other dimensions.
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
    """What is given as an array of these dimensions."""
    import numpy as np

    said = f"{name}=" if name.isidentifier() else name
    try:
        found = np.asarray(_without_masks(list(given) if isinstance(given, Iterator) else given))
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
    """NaN for what is masked: `np.asarray` would give the number below the mask."""
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
    """The value as a float; NaN for a missing one, None for what is not a number."""
    if value is None or type(value).__name__ in _MISSING:
        return float("nan")
    try:
        real = isinstance(value, Real | Decimal) or type(value).__name__ == "bool"  # NumPy's, too
        return float(value) if real else None  # type: ignore[arg-type]
    except OverflowError:
        return float("inf")


def read_labels(name: str, given: Iterable[Hashable]) -> tuple[list[Any], NDArray[numpy.intp]]:
    """The distinct labels of an argument, sorted, and the place of each item's label among them.

    Labels of different types stay apart: 1 and "1" are two groups.

    Raises:
        InvalidArgumentError: a label is missing (None, NaN) or cannot be one, such as a list.
    """
    import numpy as np

    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidArgumentError(
            f"{name}= is a single {type(given).__name__}: a label for each item is needed.",
            argument=name,
        )
    labels = given.tolist() if isinstance(given, np.ndarray) else list(given)
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
    nan = isinstance(label, float) and label != label
    return label is None or nan or type(label).__name__ in _MISSING
