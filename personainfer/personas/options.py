"""The options of `infer_personas` and its variants; make the plan and the model that they describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field, SkipValidation

from ..arguments import Count, Flag, NumberFromZero, options_of
from ..exceptions import InvalidArgumentError
from ..llm.client import LLM, OPTIONS, LLMOptions, make_llm
from ..records import Exemplar, Selector, Side
from .prompts import PersonaPrompt, Protocol
from .requests import Plan
from .selection import check_candidates

Exemplars = Literal["default", "none"] | Sequence[Exemplar]
OnError = Literal["keep", "raise", "drop"]

_SAMPLING_TEMPERATURE = 0.8  # where several candidates are drawn and the user names no temperature


class RunOptions(TypedDict, total=False):
    """The options of a run, without those of its model."""

    sides: Annotated[
        Literal["both", "chosen", "rejected"],
        Field(default="both", description="Whose personas are inferred."),
    ]
    protocol: Annotated[
        Protocol,
        Field(default="joint", description="One call for both personas, or one call a side."),
    ]
    candidates: Annotated[
        Count,
        Field(default=1, description="Hypotheses a side; more than one needs something to select."),
    ]
    select: Annotated[
        SkipValidation[Selector | None],
        Field(
            default=None,
            description="What keeps the best candidate, or none: it has explains(preferences, personas).",
        ),
    ]
    exemplars: Annotated[
        SkipValidation[Exemplars],
        Field(default="default", description="Worked examples in the prompt."),
    ]
    rows_per_call: Annotated[
        SkipValidation[int],
        Field(default=1, description="1, the only value: a request for each pair."),
    ]
    columns: Annotated[
        SkipValidation[Mapping[str, str] | None],
        Field(
            default=None,
            description='Our names to yours where they differ: {"prompt": "question"}.',
        ),
    ]
    labels: Annotated[
        SkipValidation[Mapping[Any, str] | None],
        Field(default=None, description='Your labels: each is "first", "second" or "tie".'),
    ]
    pairs: Annotated[
        Literal["best-worst", "all", "adjacent"] | None,
        Field(default=None, description="Which of several responses to a prompt make a pair."),
    ]
    min_gap: Annotated[
        NumberFromZero | None,
        Field(default=None, description="The least difference between the scores of a pair."),
    ]
    min_votes: Annotated[
        Count | None,
        Field(default=None, description="The least votes that both responses must have (SHP)."),
    ]
    safe_rejected: Annotated[
        Flag,
        Field(
            default=False,
            description="Only pairs whose rejected response is marked as safe (PKU-SafeRLHF).",
        ),
    ]
    on_error: Annotated[
        OnError,
        Field(
            default="keep",
            description="A row that fails is kept with its error, raises, or is dropped.",
        ),
    ]


class PersonaOptions(RunOptions, LLMOptions, total=False):
    """The keyword arguments of `infer_personas` and its variants."""


RUN_OPTIONS = options_of(PersonaOptions)
# The options that say how data is read. `read_preferences` has them, too.
READING = ("columns", "labels", "pairs", "min_gap", "min_votes", "safe_rejected")


def planned(
    model: str | LLM | None,
    options: Mapping[str, Any],
    make: Callable[[str | LLM | None, Mapping[str, Any]], LLM] = make_llm,
    *,
    select_later: bool = False,
) -> tuple[Plan, LLM]:
    """Check the options of `infer_personas`, and make the plan and the model that they describe.

    Args:
        model: as for `infer_personas`.
        options: the keyword arguments of `infer_personas` that the caller gave.
        make: a function (model, options of the LLM) -> LLM.
        select_later: whether `select` may still be missing if there are several candidates.

    Returns:
        How personas are asked for, and the model.

    Raises:
        InvalidArgumentError, UnknownOptionError: an argument that cannot work.
        MissingExtraError: the model needs a package that is not installed.
    """
    chosen = RUN_OPTIONS.check(options)
    sides, candidates = chosen["sides"], chosen["candidates"]
    _check_rows_per_call(chosen["rows_per_call"])
    check_candidates(candidates, chosen["select"], later=select_later)
    protocol: Protocol = chosen["protocol"] if sides == "both" else "separate"
    prompt = PersonaPrompt(protocol, chosen["exemplars"])
    llm = make(model, _llm_options(model, options, candidates))
    if candidates > 1 and not llm.samples:
        raise InvalidArgumentError(
            f"candidates={candidates} at temperature 0 would all be the same.",
            hint=f"Give a temperature, such as {_SAMPLING_TEMPERATURE}.",
            argument="candidates",
        )
    sided: tuple[Side, ...] = ("chosen", "rejected") if sides == "both" else (sides,)
    return Plan(prompt, sided, candidates), llm


def _check_rows_per_call(rows: Any) -> None:
    if not isinstance(rows, int) or isinstance(rows, bool) or rows != 1:
        raise InvalidArgumentError(
            f"rows_per_call={rows!r}: each pair has a request of its own.",
            hint="Several pairs in one request are no longer supported: nothing showed that personas stay as"
            " good. Leave rows_per_call at 1.",
            argument="rows_per_call",
        )


def _llm_options(
    model: str | LLM | None, options: Mapping[str, Any], candidates: int
) -> dict[str, Any]:
    """Return the options that configure the LLM.

    For several candidates, whose samples must differ, the default temperature is 0.8, unless `model` is an
    `LLM`.
    """
    given = {name: value for name, value in options.items() if name in OPTIONS}
    if candidates > 1 and not isinstance(model, LLM):
        given.setdefault("temperature", _SAMPLING_TEMPERATURE)
    return given
