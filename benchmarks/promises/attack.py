"""What an attack is: a function that tries to break one promise, and says what it saw."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

PAIRS = [
    {"prompt": f"Question {n}?", "chosen": f"Short {n}.", "rejected": f"A longer answer to {n}."}
    for n in range(300)
]

Function = Callable[[Path], str]


class BrokenPromiseError(Exception):
    """The attack succeeded; the message says in a few words what was seen."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    `run` gets an empty folder, and returns a few words about what was seen where the promise holds. Otherwise
    it raises BrokenPromiseError. `seconds` is how long it may take: one that does not end has succeeded.
    `test` is the test that keeps the promise.
    """

    number: int
    promise: str
    test: str
    run: Function
    seconds: float


ATTACKS: dict[int, Attack] = {}


def attack(
    number: int, promise: str, test: str, *, seconds: float = 120.0
) -> Callable[[Function], Function]:
    """Register an attack; arguments are the fields of `Attack`."""

    def register(run: Function) -> Function:
        ATTACKS[number] = Attack(number, promise, test, run, seconds)
        return run

    return register


def broken_if(found: object, words: str) -> None:
    """Raise BrokenPromiseError with these words if `found` is true."""
    if found:
        raise BrokenPromiseError(words)


def error_of(action: Callable[[], object]) -> Exception | None:
    """The error that an action raises."""
    try:
        action()
    except Exception as error:
        return error
    return None


def is_ours(error: Exception | None) -> bool:
    """Whether an error belongs to the library's own tree."""
    import personainfer as pi

    return isinstance(error, pi.PersonaInferError)


def named(error: Exception | None) -> str:
    """An error's type and the start of its message, on one line."""
    words = " ".join(str(error).split()).replace(str(Path.cwd()), "…")
    return f"{type(error).__name__}: {words[:90]}"


def internal(modules: Sequence[str]) -> Any:
    """The first of these modules of the package that exists: their names have changed."""
    for name in modules:
        with suppress(ModuleNotFoundError):
            return import_module(f"personainfer.{name}")
    raise ModuleNotFoundError(f"none of {modules}")


def peak_memory() -> float:
    """The most memory that this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
