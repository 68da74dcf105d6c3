"""Measure how good a model's personas are: how well they explain choices, their faults, their cost.

A scorer says how well each persona explains that its response was preferred, such as `Likelihood.explains`,
which uses log-probabilities. It should be another model than the one that wrote the personas. Faults are
counted from the flags of the personas.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ..arguments import takes_options
from ..data.table import PersonaTable
from ..data.table_display import result_text
from ..exceptions import InvalidArgumentError, quoted
from ..llm.client import LLM
from ..local.weights import find_weights, has_chat_template
from ..personas.flags import flags_in_text, pair_text, want_the_same
from ..personas.infer import infer_personas
from ..personas.options import PersonaOptions, planned
from ..personas.prompts import PersonaPrompt
from ..personas.selection import can_explain, explains_each
from ..records import FloatArray, Persona, PersonaRow, Preference, Selector, Usage
from ..scoring.likelihood import Likelihood
from .statistics import Estimate, bootstrap_rate

_SCORER = "local:smollm2"
_OTHER_SCORER = "local:qwen2.5-coder-0.5b"  # if the measured model is `_SCORER`

# Name of a fault -> the flags that show it; None: any flag.
FAULTS: dict[str, frozenset[str] | None] = {
    "flagged": None,
    "copied from the pair": frozenset({"copies_text"}),
    "exemplars repeated": frozenset({"copies_exemplar"}),
    "both sides equal": frozenset({"same_as_other_side"}),
    "not a sentence": frozenset({"ungrammatical", "refusal"}),
}
_MISSING = "without a persona"


@cache
def benchmark_pairs() -> tuple[Preference, ...]:
    """Return the 60 pairs that come with the library: 30 contrast in manner, 30 in content.

    None of them is an example pair or an exemplar of the prompt. An id names the kind: "manner-01",
    "content-01".
    """
    file = resources.files(__package__).joinpath("texts", "benchmark_pairs.jsonl")
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    names = ("id", "prompt", "chosen", "rejected")
    return tuple(Preference(**{name: row[name] for name in names}) for row in rows)


@dataclass(frozen=True, kw_only=True)
class ModelBenchmark:
    """The result of `benchmark_model`.

    Attributes:
        model: the name of the model that wrote the personas.
        shares: name -> share with its 95 % interval over pairs: see `persona_shares`.
        seconds: how long the inference took, with the start of a local model and without the download of its
            weights; None if any reply came from the cache.
        failed: how many pairs have an error.
        usage: the calls, tokens and cost in USD of this model, without those of the scorers.
        notes: sentences about what limits the numbers.
        table: the pairs with their personas.
    """

    model: str
    shares: Mapping[str, Estimate]
    seconds: float | None
    failed: int
    usage: Usage
    notes: tuple[str, ...]
    table: PersonaTable = field(repr=False)

    @property
    def rows_a_minute(self) -> float | None:
        """Pairs per minute; None if any reply came from the cache."""
        return None if not self.seconds else 60 * len(self.table) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers and counts as plain values, by the names of the attributes.

        "pairs" and "rows_a_minute" are added, `table` is left out. A share that cannot be estimated is NaN.
        """
        return {
            "model": self.model,
            "pairs": len(self.table),
            "shares": {name: found.to_dict() for name, found in self.shares.items()},
            "seconds": self.seconds,
            "rows_a_minute": self.rows_a_minute,
            "failed": self.failed,
            "usage": self.usage.model_dump(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        grid = [("", "share", "95 % interval")]
        for name, found in self.shares.items():
            grid.append((name, f"{found.value:.2f}", f"{found.low:.2f} to {found.high:.2f}"))
        rate, used = self.rows_a_minute, self.usage
        cost = "unknown" if used.cost is None else f"${used.cost:,.4f}"
        return result_text(
            [f"{self.model}: {len(self.table)} pairs, {self.failed} failed"],
            grid,
            [
                "rows a minute: " + ("not measured" if rate is None else f"{rate:,.1f}"),
                f"cost: {cost}, {used.prompt_tokens:,} prompt tokens,"
                f" {used.completion_tokens:,} completion tokens, {used.calls:,} calls",
                *self.notes,
            ],
        )


@takes_options(PersonaOptions)
def benchmark_model(
    model: str | LLM | None = None,
    *,
    scorers: Mapping[str, Selector] | Sequence[str] | None = None,
    data: object = None,
    progress: bool | None = None,
    **options: Unpack[PersonaOptions],
) -> ModelBenchmark:
    """Let a model infer personas, and measure their quality, the time and the cost.

    Args:
        model: the model to measure, as for `infer_personas`.
        scorers: what scores how well personas explain choices: names of models for `likelihood_scorer`, or
            name -> an object with `explains(preferences, personas)`. None: "local:smollm2", or
            "local:qwen2.5-coder-0.5b" if the former is the measured model. `notes` says if a model scores its
            own personas.
        data: pairs to measure on, as for `infer_personas`; None: `benchmark_pairs()`.
        progress, options: as for `infer_personas`.

    Returns:
        The shares, the time and the cost, and the table of personas.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, before any call is made. Or a scorer refused
            the pairs, after the personas were inferred.
        DataError: no row of `data` can be read, before any call is made.
        MissingExtraError: the model or a scorer needs a package that is not installed, before any call is
            made.
        ModelNotFoundError: the weights of the model or a scorer cannot be fetched, before any call is made.
        ModelError: the model would fail on every pair (key, model), or a scorer failed.
        CacheError: the cache of replies cannot be used.
        RowsFailedError: a pair failed, and `on_error` is "raise".
    """
    asked = benchmark_pairs() if data is None else data
    _, llm = planned(model, options)  # bad options fail before any weights are fetched
    by = _scorers(scorers, llm.model)
    notes = _partiality(by, llm.model, options.get("select"))
    if _is_local(llm.model):
        find_weights(llm.model).path()  # a download is not part of the time
    start = time.perf_counter()
    table = infer_personas(asked, model, progress=progress, **options)
    seconds = time.perf_counter() - start
    if table.usage.cached:
        notes.append("Replies came from the cache: time, tokens and cost are not those of a run.")
    return ModelBenchmark(
        model=llm.model,
        shares=persona_shares(table, by),
        seconds=None if table.usage.cached else seconds,
        failed=len(table.failed_places()),
        usage=table.usage,
        notes=tuple(notes),
        table=table,
    )


def persona_shares(
    rows: Iterable[PersonaRow], scorers: Mapping[str, Selector]
) -> dict[str, Estimate]:
    """Measure the quality of personas as shares, each with a 95 % interval over pairs.

    Args:
        rows: a table, or rows, with personas of both sides. Rows without a pair are left out.
        scorers: name -> an object with `explains(preferences, personas)`.

    Returns:
        Name -> share. For each scorer: "pairing, by NAME", the share of pairs whose two personas together fit
        their own responses better than each other's; and "sides explained, by NAME", the share of sides whose
        persona has a score above 0. Then "without a persona", and each of `FAULTS`: shares of sides. A pair
        with a missing persona counts as not paired, and this side as not explained. If the scorer gives a
        persona no score (NaN), the pair is left out of "pairing", and the persona out of "sides explained".

    Raises:
        InvalidArgumentError, ModelError: a scorer failed for all pairs, or three times in succession.
    """
    kept = [row for row in rows if row.preference is not None]
    pairs = [row.preference for row in kept if row.preference is not None]
    sides = [(row.chosen, row.rejected) for row in kept]
    missing = np.array([[one is None for one in both] for both in sides], dtype=bool).reshape(-1, 2)
    shares: dict[str, Estimate] = {}
    for name, scorer in scorers.items():
        found = sides_explained(scorer, pairs, sides)
        explained = explained_shares(found, missing)
        shares |= {f"{what}, by {name}": share for what, share in explained.items()}
    counted = persona_faults(pairs, sides)
    return shares | {name: bootstrap_rate(values) for name, values in counted.items()}


def explained_shares(scores: FloatArray, missing: NDArray[np.bool_]) -> dict[str, Estimate]:
    """Compute the shares "pairing" and "sides explained", which `persona_shares` describes.

    Args:
        scores: shape (pairs, 2), from `sides_explained`.
        missing: shape (pairs, 2): whether the side has no persona.
    """
    unknown = np.isnan(scores)
    paired = np.where(unknown.any(axis=1), np.nan, scores.sum(axis=1) > 0)
    paired[missing.any(axis=1)] = 0.0  # a side without a persona pairs with nothing
    return {
        "pairing": bootstrap_rate(paired),
        "sides explained": bootstrap_rate(np.where(unknown, np.nan, scores > 0)),
    }


def sides_explained(
    scorer: Selector,
    pairs: Sequence[Preference],
    personas: Sequence[tuple[Persona | str | None, Persona | str | None]],
) -> FloatArray:
    """Score how well the persona of each side explains that its response is preferred.

    Args:
        scorer: an object with `explains(preferences, personas)`.
        pairs: n pairs.
        personas: the personas of each pair (chosen side, rejected side); None: the side has none.

    Returns:
        Shape (n, 2), in the unit of the scorer; above 0 the persona explains the preference. NaN: the scorer
        gives no score. A side without a persona has 0.

    Raises:
        InvalidArgumentError, ModelError: the scorer failed for all pairs, or three times in succession.
    """
    found = np.zeros((len(pairs), 2))
    asked = [
        (row, side, pairs[row] if side == 0 else pairs[row].swapped, persona)
        for row, both in enumerate(personas)
        for side, persona in enumerate(both)
        if persona is not None
    ]
    if asked:
        rows, columns, sided, said = zip(*asked, strict=True)
        found[list(rows), list(columns)] = explains_each(scorer, sided, said, "scorer")
    return found


def persona_faults(
    pairs: Sequence[Preference], personas: Sequence[tuple[Persona | None, Persona | None]]
) -> dict[str, FloatArray]:
    """Find what is missing or wrong with the personas of each side: name -> 0 or 1, shape (n, 2).

    The names are "without a persona" and those of `FAULTS`, which are 0 for a side without a persona. The
    flags are computed again, so that personas from any source count in the same way. The exemplars are those
    of the default prompt.

    Args:
        pairs: n pairs.
        personas: the personas of each pair (chosen side, rejected side); None: the side has none.
    """
    phrases = PersonaPrompt().phrases
    counted = {name: np.zeros((len(pairs), 2)) for name in (_MISSING, *FAULTS)}
    for row, (pair, both) in enumerate(zip(pairs, personas, strict=True)):
        there = [persona for persona in both if persona is not None]
        flags = iter(flags_in_text(there, pair_text(pair), phrases))
        equal = want_the_same(there)
        for side, persona in enumerate(both):
            counted[_MISSING][row, side] = persona is None
            if persona is None:
                continue
            own = {*next(flags), *(["same_as_other_side"] if equal else [])}
            for name, flagged in FAULTS.items():
                counted[name][row, side] = bool(own if flagged is None else own & flagged)
    return counted


def likelihood_scorer(name: str) -> Likelihood:
    """Make a `Likelihood`. If local weights have no chat template, it scores plain text.

    Args:
        name: the name of a model, as for `Likelihood`. The weights of a local model are fetched here.

    Raises:
        InvalidArgumentError: there is no such model.
        MissingExtraError: a package that the model needs is not installed.
        ModelNotFoundError: the weights cannot be fetched.
    """
    if _is_local(name) and not has_chat_template(find_weights(name).path()):
        return Likelihood(name, persona_in="plain")
    return Likelihood(name)


def _scorers(
    given: Mapping[str, Selector] | Sequence[str] | None, model: str
) -> Mapping[str, Selector]:
    if given is None:
        given = [_OTHER_SCORER if _is_same_model(_SCORER, model) else _SCORER]
    names = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidArgumentError(
            f"scorers={quoted(given)} is not a list of scorers.",
            hint='Give names of models, such as ["local:smollm2"].',
            argument="scorers",
        )
    if isinstance(given, Mapping):
        for name, scorer in given.items():
            if not can_explain(scorer):
                raise InvalidArgumentError(
                    f"scorers[{name!r}]={scorer!r:.80} has no method explains(preferences, personas).",
                    argument="scorers",
                )
        return given
    return {name: likelihood_scorer(name) for name in names}


def _partiality(scorers: Mapping[str, Selector], model: str, chooser: object) -> list[str]:
    """Return a note for each scorer that is the model which wrote or chose the personas."""
    chose = getattr(chooser, "model", None)
    notes = []
    for name in scorers:
        if _is_same_model(name, model):
            notes.append(f"{name} scored its own personas: a model favours its own words.")
        elif isinstance(chose, str) and _is_same_model(name, chose):
            notes.append(
                f"{name} chose these personas, and scored them: it found what it looked for."
            )
    return notes


def _is_local(model: str) -> bool:
    return model == "local" or model.startswith("local:")


def _is_same_model(name: str, other: str) -> bool:
    """Whether two names mean the same model. Names of local models do if the weights are the same."""
    if name == other:
        return True
    if not (_is_local(name) and _is_local(other)):
        return False
    return find_weights(name).sha256 == find_weights(other).sha256
