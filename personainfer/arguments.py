"""Options: each is declared once, in a TypedDict, and read by type checkers, Python, and the command line.

    class LLMOptions(TypedDict, total=False):
        max_tokens: Annotated[Count, Field(default=500, description="The most tokens of a reply.")]

`Options(LLMOptions)` makes a pydantic model of it that checks values, with errors in our own words.
`takes_options` gives a function with `**options: Unpack[LLMOptions]` a signature that shows each option.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import (
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
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    create_model,
)

from .exceptions import InvalidArgumentError, UnknownOptionError

Documented = TypeVar("Documented", bound=Callable[..., Any])


class Wanted(NamedTuple):
    """What a value must be, in the words of an error, and whether the error may show the value."""

    text: str
    hint: str = ""
    secret: bool = False


Count = Annotated[
    int, Strict(), Field(ge=1, le=sys.maxsize), Wanted("must be a whole number from 1 up.")
]
WholeNumber = Annotated[int, Strict(), Wanted("must be a whole number.")]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False), Wanted("must be a number.")]
PositiveNumber = Annotated[
    float, Strict(), Field(gt=0, le=sys.float_info.max), Wanted("must be a positive number.")
]
Flag = Annotated[bool, Strict(), Wanted("must be True or False.")]


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

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those that were given, as they were given, and the defaults of the others.

        Raises:
            UnknownOptionError: a name that is no option, with the nearest that is.
            InvalidArgumentError: a value that cannot work.
        """
        UnknownOptionError.check(given, self.each)
        try:
            self._model.model_validate(dict(given))
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            field = self._model.model_fields[name]
            raise _translated(error, name, given[name], field.annotation, field.metadata) from None
        return {**self.defaults, **given}


def check_argument(name: str, value: object, kind: Any) -> None:
    """Raise InvalidArgumentError unless the value is of this kind, such as `Count` or a Literal."""
    try:
        _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise _translated(error, name, value, kind, ()) from None


def takes_options(declared: type) -> Callable[[Documented], Documented]:
    """Show the options that `**options: Unpack[declared]` takes in the signature and the docstring."""

    def documented(function: Documented) -> Documented:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        options = Options(declared).each.values()
        more = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.kind
            )
            for one in options
        ]
        shown: Any = function
        shown.__signature__ = signature.replace(parameters=[*own, *more])
        lines = "\n".join(f"    {one.name}: {one.help}" for one in options)
        shown.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{lines}\n"
        return function

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
        return cause
    wanted = next((one for one in (*metadata, *_within(kind)) if isinstance(one, Wanted)), None)
    if wanted is not None:
        said = f"{name}=" if wanted.secret else f"{name}={value!r:.200}"
        return InvalidArgumentError(f"{said} {wanted.text}", hint=wanted.hint, argument=name)
    choices = [one for one in _within(kind) if isinstance(one, str)]
    listed = ", ".join(f'"{choice}"' for choice in choices)
    return InvalidArgumentError(
        f"{name}={value!r:.200} is not known.", hint=f"It is one of {listed}.", argument=name
    )


def _within(kind: Any) -> Iterator[Any]:
    """The metadata and the choices in a type, wherever in it they are."""
    yield from getattr(kind, "__metadata__", ())
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for part in get_args(kind):
            yield from _within(part)
