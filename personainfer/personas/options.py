"""What a call of `infer_personas` may be given: the names, their types, and what of it cannot work.

Every argument is checked here, cheapest first, before any data is read or a call is made. What is done
with it is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from ..exceptions import InvalidArgumentError, UnknownOptionError
from ..llm.client import LLM, OPTIONS, make_llm
from ..records import Exemplar, Selector, Side
from .prompts import PersonaPrompt, Protocol
from .requests import Plan
from .selection import check_candidates

__all__ = ["LLMOptions", "OnError", "PersonaOptions", "planned"]

Exemplars = Literal["default", "none"] | Sequence[Exemplar]
OnError = Literal["keep", "raise", "drop"]

_SAMPLING_TEMPERATURE = 0.8  # where several candidates are drawn and the user names no temperature


class LLMOptions(TypedDict, total=False):
    """What configures the LLM that a model string makes: see `LLM`."""

    api_base: str | None
    api_key: str | None
    temperature: float | None
    max_tokens: int
    seed: int | None
    max_concurrency: int | None
    rpm: float | None
    tpm: float | None
    timeout: float | None
    max_attempts: int
    patience: float
    budget: float | None
    prices: tuple[float, float] | None
    cache: bool
    cache_dir: str | Path | None


class PersonaOptions(LLMOptions, total=False):
    """The keyword arguments of `infer_personas`, shared by its twins."""

    sides: Literal["both", "chosen", "rejected"]
    protocol: Protocol
    candidates: int
    select: Selector | None
    exemplars: Exemplars
    rows_per_call: int
    columns: Mapping[str, str] | None
    on_error: OnError


def planned(
    model: str | LLM | None,
    options: Mapping[str, Any],
    make: Callable[[str | LLM | None, Mapping[str, Any]], LLM] = make_llm,
    *,
    select_later: bool = False,
) -> tuple[Plan, LLM]:
    """How personas are to be made, and the model, which `make` gives; all that needs no data.

    Raises:
        InvalidArgumentError, UnknownOptionError: an argument that cannot work.
    """
    UnknownOptionError.check(options, {*PersonaOptions.__annotations__, *OPTIONS, "progress"})
    sides = _one_of("sides", options.get("sides", "both"), ("both", "chosen", "rejected"))
    protocol = _one_of("protocol", options.get("protocol", "joint"), ("joint", "separate"))
    _one_of("on_error", options.get("on_error", "keep"), ("keep", "raise", "drop"))
    candidates = options.get("candidates", 1)
    check_candidates(candidates, options.get("select"), later=select_later)
    prompt = PersonaPrompt(
        protocol if sides == "both" else "separate", options.get("exemplars", "default")
    )
    _check_rows_per_call(options.get("rows_per_call", 1))
    llm = make(model, _llm_options(model, options, candidates))
    if candidates > 1 and not llm.samples:
        raise InvalidArgumentError(
            f"candidates={candidates} at temperature 0 would all be the same.",
            hint=f"Give a temperature, such as {_SAMPLING_TEMPERATURE}.",
        )
    sided: tuple[Side, ...] = ("chosen", "rejected") if sides == "both" else (sides,)
    return Plan(prompt, sided, candidates), llm


def _check_rows_per_call(rows: Any) -> None:
    if rows != 1 or isinstance(rows, bool):
        raise InvalidArgumentError(
            f"rows_per_call={rows!r}: each pair has a request of its own.",
            hint="Asking about several pairs in one request was taken out: it could not be shown that"
            " personas stay as good. Leave rows_per_call at 1.",
        )


def _llm_options(
    model: str | LLM | None, options: Mapping[str, Any], candidates: int
) -> dict[str, Any]:
    """The options that configure the LLM; several candidates are drawn at a temperature."""
    given = {name: value for name, value in options.items() if name in OPTIONS}
    if candidates > 1 and not isinstance(model, LLM):
        given.setdefault("temperature", _SAMPLING_TEMPERATURE)
    return given


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> Any:
    InvalidArgumentError.check(name, value, known)
    return value
