"""Everything that can go wrong, as one tree.

PersonaInferError
├── InvalidArgumentError (ValueError)    an argument is wrong: raised before any call is made
│   └── MissingFileError                 there is no such file
├── UnknownOptionError (TypeError)       an option that does not exist, with the nearest that does
├── DataError (ValueError)               the data, or one row of it, cannot be used
│   ├── NoPreferenceError                a readable row that states no preference: a tie, a null
│   └── ContradictionError               a label shows that earlier ones may have been misread: ends the run
├── MissingExtraError (ImportError)      an optional package is not installed
├── RowsFailedError                      raised on request for rows that failed: table.raise_for_errors()
├── CacheError                           the cache on disk cannot be used
├── BatchPendingError                    a provider's batch is not done yet
└── ModelError                           a model gave no usable reply
    ├── AuthenticationError              no key, a refused key, no credit: ends the run
    ├── ModelNotFoundError               no such model or endpoint: ends the run
    ├── RequestRejectedError             the endpoint refuses this one request
    ├── RateLimitError                   the endpoint asks for fewer requests, for too long
    ├── TransportError                   connection, time-out, 5xx
    ├── ReplyError                       a reply that is empty, truncated, refused or not in the asked form
    └── BudgetExceededError              the next call would pass `budget`

`retryable` says whether the same call may succeed later; `hint` says what to do. `llm` translates the errors
of providers and of HTTP libraries into these. An error of another class is a bug.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack

P = ParamSpec("P")
T = TypeVar("T")

# Controls but tab and line feed, marks of direction, invisible characters, halves of surrogate pairs.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Return the text with control characters as escapes, such as "\x1b": none acts on a terminal or a page.

    Invisible characters and marks of direction are escaped, too; tabs and line feeds stay. Errors, the
    command line, notebooks and pages pass each text of an endpoint or of the data through it.
    """
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def visible_in_json(text: str) -> str:
    """Return a JSON text with control characters as JSON's own escapes.

    The text means the same. Line feeds stay.
    """
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], text)


# Characters of an error, 20,000 together: a name of a column may have megabytes.
_LONGEST_MESSAGE, _LONGEST_HINT = 12_000, 7_999


def _shown(text: str, most: int) -> str:
    """Return at most `most` characters of a text, as `visible` shows them."""
    text = visible(text[: most + 1])  # its escapes are longer than what they show
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quoted(value: object, most: int = 200) -> str:
    """Return what `repr` writes of a value, at most `most` characters of it.

    If `repr` fails, return the name of the value's class in angle brackets. It fails for integers of more
    than 4,300 digits, and may for an object of a class of the user's.
    """
    try:
        return repr(value)[:most]
    except Exception:
        return f"<{type(value).__name__}>"


def shown_when_made(show: Callable[[Any], str]) -> Callable[[Any], str]:
    """Decorate a `__repr__`, so that it can be called while the object has no fields yet.

    Programs that report errors show the variables of each call, with `self` of a constructor that failed. The
    text then names the class, and says that the object is not made.
    """

    @wraps(show)
    def shown(self: Any) -> str:
        try:
            return show(self)
        except AttributeError:
            return f"<{type(self).__name__}, not made>"

    return shown


class PersonaInferError(Exception):
    """Base of every error of this library: what failed, and what to do about it.

    `str()` of an error is `message` and `hint`, with at most 20,000 characters. Control characters in both
    are escaped, and each is cut where it is too long. Errors can be pickled.

    Args:
        message: what failed.
        hint: what to do about it; "": nothing is known. With an example, it is the text before the example.
        argument: the argument that is wrong, or that would help; None: there is none.
        example: a value to give for `argument`, which is a mapping; None: there is no example.

    Attributes:
        message: what failed, escaped and cut.
        argument, example: as they were given.
        advice: what to do, without the example. The command line writes the example after it as options.
        hint: `advice`, and the example as Python code, such as `columns={'prompt': 'question'}`.
        retryable: whether the same call may succeed later.
    """

    retryable = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        argument: str | None = None,
        example: Mapping[Any, str] | None = None,
    ) -> None:
        message, advice = _shown(message, _LONGEST_MESSAGE), _shown(hint, _LONGEST_HINT)
        if example is not None:
            hint = f"{hint} {argument}={dict(example)!r}."
        hint = _shown(hint, _LONGEST_HINT)
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint
        self.advice = advice
        self.argument = argument or self._argument_in(message)
        self.example = example

    @staticmethod
    def _argument_in(message: str) -> str | None:
        """Return the argument that a message names, where a kind of error begins with it."""
        return None

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.__dict__))


def _rebuild(
    kind: type[PersonaInferError], message: str, hint: str, state: dict[str, object]
) -> PersonaInferError:
    error = kind(message, hint=hint)
    error.__dict__.update(state)
    return error


class InvalidArgumentError(PersonaInferError, ValueError):
    """An argument has a value that cannot work.

    If no `argument` is given, it is the one that the message begins with, as in "folds=1 is too few."
    """

    @staticmethod
    def _argument_in(message: str) -> str | None:
        named = re.match("([a-z_]+)=", message)
        return named[1] if named else None

    @classmethod
    def check(cls, name: str, value: object, known: Collection[str]) -> None:
        """Raise this error unless a value is one of the known texts.

        Args:
            name: the argument that has the value.
            value: the value, of any type.
            known: the texts that are allowed; the hint lists them.
        """
        if not isinstance(value, str) or value not in known:
            wanted = ", ".join(f'"{choice}"' for choice in known)
            raise cls(
                f"{name}={quoted(value)} is not known.",
                hint=f"It is one of {wanted}.",
                argument=name,
            )


class MissingFileError(InvalidArgumentError, FileNotFoundError):
    """There is no file of this name. It is a `FileNotFoundError`, too."""


class UnknownOptionError(PersonaInferError, TypeError):
    """A function was given an option that it does not have. `argument` is the option's name."""

    @classmethod
    def check(cls, options: Iterable[str], known: Collection[str]) -> None:
        """Raise this error for the first option that is not known.

        Args:
            options: the names of the options that were given.
            known: the names of the function's options. The hint has the most similar one, or else all of
                them.
        """
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"Did you mean {near[0]}=?" if near else f"Known: {', '.join(sorted(known))}."
                )
                raise cls(f"there is no option {name}=.", hint=hint, argument=name)


class DataError(PersonaInferError, ValueError):
    """The input, or one of its rows, cannot be used as preference data; or a file of data is damaged."""


class NoPreferenceError(DataError):
    """The row can be read, but states no preference: a value is null or empty, or there is a tie."""


class ContradictionError(DataError):
    """A label shows that earlier labels may have been misread. It ends the run."""


# Where a package is not installed under the name that it is imported by.
_DISTRIBUTIONS = {
    "huggingface_hub": "huggingface-hub",
    "sentence_transformers": "sentence-transformers",
    "sklearn": "scikit-learn",
}


class MissingExtraError(PersonaInferError, ImportError):
    """A feature needs a package that is not installed."""

    @classmethod
    def require(cls, module: str) -> Any:
        """Import a module, and return it.

        Raises:
            MissingExtraError: it cannot be imported. The hint is the command that installs its package.
        """
        try:
            return import_module(module)
        except ImportError:
            package = module.partition(".")[0]
            raise cls.of([package], f"this needs {package}, which is not installed.") from None

    @classmethod
    def of(cls, packages: Iterable[str], message: str, otherwise: str = "") -> MissingExtraError:
        """Make the error for packages that are not installed. It is returned, not raised.

        Args:
            packages: the names by which they are imported; the hint names their distributions
                ("scikit-learn").
            message: what needs them.
            otherwise: what else the user can do, written after the command that installs them; "": nothing.
        """
        names = " ".join(_DISTRIBUTIONS.get(name, name) for name in packages)
        return cls(message, hint=f"Run: pip install {names}{otherwise}")


class RowsFailedError(PersonaInferError):
    """Rows of a table have no persona, or no verdict. It is raised on request: `raise_for_errors`."""


class CacheError(PersonaInferError):
    """The cache directory cannot be read or written."""


class BatchPendingError(PersonaInferError):
    """A batch is not done: the provider is still working on it, or not all of it was submitted."""

    retryable = True


class Facts(TypedDict, total=False):
    """What is known of a call that failed, as keyword arguments of its error: see the attributes there."""

    retryable: bool
    fatal: bool
    is_refusal: bool
    is_doubtful: bool
    ran_nothing: bool
    given_up: bool
    rewritten: bool
    unsent: bool
    took: Any
    unsupported: str
    retry_after: float | None
    loading: bool
    unanswered: bool
    overloaded: bool
    completion: Any
    cut_off: bool
    is_whole: bool
    reasoned: bool


class ModelError(PersonaInferError):
    """A model gave no usable reply.

    Args:
        message, hint: see `PersonaInferError`.
        facts: attributes of this error that differ from those of its class. Some are learned later, and set
            where they are: `rewritten` by the transport, `completion` and `took` by who read the answer.

    Attributes:
        fatal: every other call would fail in the same way, so the run ends.
        is_refusal: an endpoint's answer to one request says that it would refuse every request.
        is_doubtful: with `is_refusal`: the endpoint may have meant this one request alone.
        ran_nothing: the endpoint lets this caller use no model, so the calls in flight have cost nothing.
        given_up: the run has stopped sending, so no retry in this run can help.
        rewritten: the request is to be sent again, and will be written in another form.
        unsent: the request was never sent, since UTF-8 cannot hold one of its texts.
        completion: the reply, a `Completion`, of a `ReplyError`; None: nothing of it could be read.
        took: a `Completion` with the tokens that the call took although it failed; None: none are known.
    """

    fatal = False
    is_refusal = False
    is_doubtful = False
    ran_nothing = False
    given_up = False
    rewritten = False
    unsent = False
    completion: Any = None  # no type: records import this module
    took: Any = None

    def __init__(self, message: str, *, hint: str = "", **facts: Unpack[Facts]) -> None:
        super().__init__(message, hint=hint)
        vars(self).update(facts)


class AuthenticationError(ModelError):
    """The endpoint needs a key and got none, or refused the key; or the account has no credit."""

    fatal = True


class ModelNotFoundError(ModelError):
    """The endpoint or provider does not know the model, or there is no such endpoint.

    For a local model: its weights cannot be fetched or loaded, or its server ended too often.
    """

    fatal = True


class RequestRejectedError(ModelError):
    """The endpoint refuses this request (too long, filtered, malformed); the next one may pass.

    Attributes:
        unsupported: a field of the request that the endpoint does not accept; "": none is known.
    """

    unsupported = ""


class RateLimitError(ModelError):
    """The endpoint asks for fewer requests, or cannot take one now.

    Attributes:
        retry_after: for how many seconds the endpoint asks to wait; None: it named no time.
        loading: the endpoint is still loading its model.
        given_up: the endpoint kept asking for too long, so the run has stopped sending.
    """

    retryable = True
    retry_after: float | None = None
    loading = False


class TransportError(ModelError):
    """The connection failed, the reply did not come in time, or the server broke.

    Attributes:
        unanswered: the request may have arrived but got no answer, so it may have been charged.
        retry_after: after how many seconds the endpoint wants the request again; None: it named no time.
        overloaded: the server says that it has too much to do.
    """

    retryable = True
    unanswered = False
    overloaded = False
    retry_after: float | None = None


class ReplyError(ModelError):
    """The model replied, but not with what was asked for.

    Attributes:
        cut_off: the reply ends at `max_tokens`.
        is_whole: with `cut_off`: the reply begins with a complete JSON object.
        reasoned: the model wrote reasoning, with or without an answer after it.
    """

    retryable = True
    cut_off = False
    is_whole = False
    reasoned = False


def keeps_no_cause(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function, or a coroutine function, so that its errors show nothing secret.

    It is for those that handle what is sent to an endpoint and what comes back.

    Errors of this library leave the function without the traceback up to there, whose variables may hold a
    key or a token, and without the error from which they came, which may quote what the endpoint repeated.
    Other errors pass.
    """

    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def called_later(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except PersonaInferError as error:
                problem = _bare(error)
            del args, kwargs
            raise problem  # here, where no other error is being handled, so that none is its context

        return called_later  # type: ignore[return-value]

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except PersonaInferError as error:
            problem = _bare(error)
        del args, kwargs
        raise problem

    return called


def _bare(error: PersonaInferError) -> PersonaInferError:
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


def reads(
    what: str, took: Callable[..., Any] | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a reader of what an endpoint sent, so that it raises errors of this library alone.

    An endpoint may send anything, and a reader cannot foresee all of it. An error of another kind would look
    like a bug, and end the run. Here it becomes a `ReplyError`, which costs one row: "the reply cannot be
    read (KeyError)". Errors keep no cause and no traceback, see `keeps_no_cause`.

    Args:
        what: what is read, for the message: "the reply".
        took: a function that finds, from the arguments of the reader, the `Completion` for `ModelError.took`.
            It is called if an error has none; its own errors are ignored. None: nothing is looked for.
    """

    def decorated(reader: Callable[P, T]) -> Callable[P, T]:
        @wraps(reader)
        def read(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return reader(*args, **kwargs)
            except PersonaInferError as error:
                problem = _bare(error)
            except Exception as error:
                problem = unreadable(what, error)
            if took is not None and isinstance(problem, ModelError) and problem.took is None:
                with suppress(Exception):  # then nothing is known
                    problem.took = problem.completion or took(*args, **kwargs)
            del args, kwargs
            raise problem

        return read

    return decorated


def unreadable(what: str, error: Exception) -> ReplyError:
    """Make the error for something sent that no reader could read. It is returned, not raised.

    Args:
        what: what was read, such as "the reply".
        error: what the reader raised. The message names its class, and a note the place in the code.
    """
    failed = ReplyError(f"{what} cannot be read ({type(error).__name__}).")
    if places := traceback.extract_tb(error.__traceback__):
        failed.add_note(f"{places[-1].filename}, line {places[-1].lineno}")
    return failed


class BudgetExceededError(ModelError):
    """The call was not made, because its cost might have passed the budget."""

    given_up = True


def joined(problems: Iterable[str | None]) -> str | None:
    """Join problems into one text, each once, with "; " between them; None if there is none."""
    distinct = list(dict.fromkeys(filter(None, problems)))
    return "; ".join([*(text.rstrip(". ") for text in distinct[:-1]), *distinct[-1:]]) or None
