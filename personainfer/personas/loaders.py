"""`AddPersonas`: a callable that adds personas to the batches of any data loader.

It works with `Dataset.map`, as a DataLoader's `collate_fn`, with Ray Data's and polars' `map_batches`, and on
chunks of pandas. A batch comes back in its own type.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Unpack

from ..api_keys import hide_key, show_key
from ..arguments import Count, check_argument, takes_options
from ..data.readers import KnownSchemas
from ..data.source_rows import PreferenceSource
from ..data.table_reader import COLUMNS
from ..data.table_writer import check_free_names
from ..exceptions import InvalidArgumentError, shown_when_made
from ..llm.client import LLM, OPTIONS, make_llm
from ..preferences.column_names import check_roles
from ..preferences.labels import check_labels
from ..preferences.schemas import Mapped
from .infer import PersonaStream
from .loader_batches import batch_kind
from .options import PersonaOptions, planned

_DIVIDED = ("rpm", "tpm", "budget")  # limits that several workers have together


@takes_options(PersonaOptions)
class AddPersonas:
    """Add `chosen_persona`, `rejected_persona` and `persona_error` to each batch that it is called with.

        Dataset.map(AddPersonas("openai/gpt-4o-mini"), batched=True)
        DataLoader(dataset, batch_size=64, collate_fn=AddPersonas("openai/gpt-4o-mini"))
        ray_dataset.map_batches(AddPersonas, fn_constructor_kwargs={"model": …}, batch_format="pyarrow")

    A batch is a mapping of columns (lists, arrays, tensors), a pandas or polars frame, an Arrow table,
    or a list of dicts, one for each row, and comes back in the same type. An `AddPersonas` can be pickled.
    Each process opens the model at its first batch; all objects with the same options share it there.
    Hugging Face's fingerprint of it depends on the options, on what the model's name leads to (weights, an
    address of the environment) and on the version of the prompts, not on the key.

    Args:
        model: see `LLM`. Each process makes a model from the same model string, or from the options of
            the `LLM`.
        workers: how many processes work at once, each with a copy. `rpm`, `tpm`, `budget` and
            `max_concurrency` are divided among them, so that they hold for all workers together.
        options: those of `infer_personas`, except `output` and `progress`.

    Raises:
        ValueError, TypeError: a bad argument, when it is made; columns that are not preference data, at
            the first batch. A bad row has an error and affects no other row.
        ModelError: only for what would fail every row (key, model); what was paid for is cached.
    """

    columns = COLUMNS  #: the names of the columns that are added; each holds text or nothing

    def __init__(
        self, model: str | LLM | None = None, *, workers: int = 1, **options: Unpack[PersonaOptions]
    ) -> None:
        check_argument("workers", workers, Count)
        columns = options.get("columns")
        check_roles({} if columns is None else columns)
        _told(options)
        _refuse_pairs(options)
        self._plan, self._llm = planned(model, options, _shared if workers == 1 else make_llm)
        self._pid = os.getpid()
        self._known: KnownSchemas = {}
        self._prompt_version = self._plan.settings["prompt_version"]
        self._model, self._reached = self._llm.options["model"], self._llm.reached
        self._options: dict[str, Any] = {k: v for k, v in options.items() if k not in OPTIONS}
        self._llm_options = _llm_options(model, options)
        if "cache_dir" in self._llm_options:  # a worker may be in another folder
            self._llm_options["cache_dir"] = self._llm.options["cache_dir"]
        if workers > 1:
            self._llm_options |= _divided(self._llm_options, self._llm.max_concurrency, workers)
            self._pid = 0  # the model of all the workers together is that of none

    @property
    def llm(self) -> LLM:
        """This process's model; its `usage` counts all batches of this process."""
        self._make_ready()
        return self._llm

    def __call__(self, batch: Any) -> Any:
        self._make_ready()
        kind = batch_kind(batch)
        check_free_names(kind.names(batch))
        rows = kind.rows(batch, _told(self._options), self._known)
        source = PreferenceSource(
            lambda: iter(rows),
            shape="batch",
            total=len(rows),
            original=batch if kind.is_frame else None,
        )
        stream = PersonaStream(
            source,
            self._llm,
            self._plan,
            on_error=self._options.get("on_error", "keep"),
            select=self._options.get("select"),
        )
        return kind.result(batch, stream.table())

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self._model,
            "llm_options": hide_key(self._llm_options),
            "options": self._options,
            # For fingerprints:
            "prompt_version": self._prompt_version,
            "reached": self._reached,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._model, self._options = state["model"], state["options"]
        self._llm_options = show_key(state["llm_options"])
        self._prompt_version, self._reached = state["prompt_version"], state["reached"]
        self._pid = 0  # of no process: made ready by the first batch
        self._known = {}

    @shown_when_made
    def __repr__(self) -> str:
        return f"AddPersonas({self._model!r})"

    def _make_ready(self) -> None:
        """Get the model of this process, at the first batch after an unpickling or a fork."""
        if self._pid != os.getpid():
            given = {**self._options, **self._llm_options}
            self._plan, self._llm = planned(self._model, given, _shared)
            self._pid = os.getpid()


# The model of a process

_llms: dict[tuple[int, str], LLM] = {}


def _shared(model: str | LLM | None, options: Mapping[str, Any]) -> LLM:
    """This process's one model for these options, so that limits and connections are shared.

    An `LLM` that was given is used as it is.
    """
    if isinstance(model, LLM):
        return make_llm(model, options)
    llm = make_llm(model, options)  # a path may lead to another file than before
    told = {name: value for name, value in options.items() if name != "cache_dir"}
    place = llm.options["model"], llm.options["cache_dir"]
    key = (os.getpid(), _digest([place, llm.reached, sorted(told.items())]))
    # Without a lock, which a fork could leave locked.
    return _llms.setdefault(key, llm)


def _digest(options: list[object]) -> str:
    """A digest of the values themselves: the repr of all keys is the same."""
    return hashlib.sha256(json.dumps(options, default=repr).encode()).hexdigest()


def _llm_options(model: str | LLM | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make the same model in another process."""
    if isinstance(model, LLM):
        return {k: v for k, v in show_key(model.__getstate__()).items() if k in OPTIONS}
    return {name: value for name, value in options.items() if name in OPTIONS}


def _divided(options: Mapping[str, Any], most: int, workers: int) -> dict[str, Any]:
    """One worker's share of the limits; all workers together have at most `most` calls in flight."""
    if most < workers:
        raise InvalidArgumentError(
            f"max_concurrency={most} is less than workers={workers}.",
            hint="Each worker makes at least one call at a time.",
            argument="workers",
        )
    part = {name: options[name] / workers for name in _DIVIDED if options.get(name) is not None}
    return {**part, "max_concurrency": most // workers}


def _told(options: Mapping[str, Any]) -> Mapped:
    """What the options say of the data."""
    return Mapped(
        options.get("columns") or {},
        check_labels(options.get("labels")),
        min_votes=options.get("min_votes"),
        safe_rejected=options.get("safe_rejected", False),
    )


def _refuse_pairs(options: Mapping[str, Any]) -> None:
    """Raise for options that would change the number of rows: a batch keeps its rows."""
    for name in ("pairs", "min_gap"):
        if options.get(name) is not None:
            raise InvalidArgumentError(
                f"{name}= cannot be used for batches, which keep their rows.",
                hint="Make the pairs first: read_preferences(data, pairs=…).",
                argument=name,
            )
