"""`AddPersonas`: a callable that adds personas to the batches of any data loader.

Pass it to `Dataset.map`, to a DataLoader as `collate_fn`, and to `map_batches` of Ray Data and polars, or
call it with chunks of pandas. Each batch is returned in its own type.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Unpack
from weakref import WeakValueDictionary

from ..api_keys import hide_key, show_key
from ..arguments import Count, check_argument, own_copy, takes_options
from ..data.column_values import COLUMNS
from ..data.containers import KnownSchemas
from ..data.source_rows import PreferenceSource
from ..data.table_writer import check_free_names
from ..exceptions import InvalidArgumentError, shown_when_made
from ..llm.client import LLM, OPTIONS, make_llm
from ..preferences.column_names import check_roles
from ..preferences.labels import check_labels
from ..preferences.schemas import Mapped
from .infer import PersonaStream
from .loader_batches import batch_kind
from .options import PersonaOptions, planned

_DIVIDED = ("rpm", "tpm", "budget")  # limits that hold for all workers together


@takes_options(PersonaOptions)
class AddPersonas:
    """Add `chosen_persona`, `rejected_persona` and `persona_error` to each batch that it is called with.

        Dataset.map(AddPersonas("openai/gpt-4o-mini"), batched=True)
        DataLoader(dataset, batch_size=64, collate_fn=AddPersonas("openai/gpt-4o-mini"))
        ray_dataset.map_batches(AddPersonas, fn_constructor_kwargs={"model": …}, batch_format="pyarrow")

    A batch is a mapping of columns (lists, arrays, tensors), a pandas or polars frame, an Arrow table, or a
    list with a dict for each row. A call sends the requests of the batch, waits for them, and returns a new
    batch of the same type. Rows that `on_error="drop"` leaves out are not in it.

    An `AddPersonas` can be pickled. A process that gets a copy makes its own model at its first batch; in a
    process, all objects with the same options share the model. Hugging Face's fingerprint depends on the
    options, on the weights or address that the model's name stands for, and on the version of the prompts,
    but not on the key.

    Args:
        model: as for `infer_personas`. Each process makes its own model from the same string, or from the
            options of the `LLM`.
        workers: how many processes work at once, each with a copy of this object. `rpm`, `tpm`, `budget` and
            `max_concurrency` are divided among them, so that they hold for all workers together.
        options: those of `infer_personas`, except `output`, `progress`, `pairs` and `min_gap`.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, when the object is made; or, in a call, a
            batch of another type, or with a column that has the name of an added one.
        DataError: in a call, the columns of the batch are no preference data. For a list of dicts, each row
            gets this error instead. A bad row gets an error, which affects no other row.
        MissingExtraError: the model needs a package that is not installed.
        ModelError: in a call, a failure that would affect every row (a wrong key or model). Replies that were
            paid for are cached.
        RowsFailedError, ModelError, DataError: in a call, a row failed, with `on_error="raise"`.
    """

    columns = COLUMNS  #: the names of the added columns; each cell holds text or nothing

    def __init__(
        self, model: str | LLM | None = None, *, workers: int = 1, **options: Unpack[PersonaOptions]
    ) -> None:
        workers = check_argument("workers", workers, Count)
        columns = options.get("columns")
        check_roles({} if columns is None else columns)
        _told(options)
        _refuse_pairs(options)
        self._plan, self._llm = planned(model, options, _shared if workers == 1 else make_llm)
        self._is_ready = workers == 1
        self._known: KnownSchemas = {}
        self._prompt_version = self._plan.settings["prompt_version"]
        self._model, self._reached = self._llm.options["model"], self._llm.reached
        own: dict[str, Any] = {name: own_copy(value) for name, value in options.items()}
        self._options = {name: value for name, value in own.items() if name not in OPTIONS}
        self._llm_options = own_copy(_llm_options(model, options))
        if "cache_dir" in self._llm_options:  # a worker may be in another folder
            self._llm_options["cache_dir"] = self._llm.options["cache_dir"]
        if workers > 1:
            self._llm_options |= _divided(self._llm_options, self._llm.max_concurrency, workers)
            # This model has the limits of all workers: each makes one with its own share.

    @property
    def llm(self) -> LLM:
        """The model of this process, which is made or found at the first use.

        Its `usage` counts all batches of this process; in a fork, also those of the parent before the fork.
        """
        self._make_ready()
        return self._llm

    def __call__(self, batch: Any) -> Any:
        self._make_ready()
        kind = batch_kind(batch)
        check_free_names(kind.names(batch))
        rows = kind.rows(batch, _told(self._options), self._known)
        if self._options.get("on_error") == "drop":
            kind.check_drop(batch)
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
            # For fingerprints; the second also for the next process:
            "prompt_version": self._prompt_version,
            "reached": self._reached,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._model, self._options = state["model"], state["options"]
        self._llm_options = show_key(state["llm_options"])
        self._prompt_version, self._reached = state["prompt_version"], state["reached"]
        self._is_ready = False
        self._known = {}

    @shown_when_made
    def __repr__(self) -> str:
        return f"AddPersonas({self._model!r})"

    def _make_ready(self) -> None:
        """Make or find the model at the first batch of a worker, or after unpickling."""
        if not self._is_ready:
            given = {**self._options, **self._llm_options}
            self._plan, self._llm = planned(self._model, given, _shared)
            self._llm.check_is_at(self._reached)
            self._is_ready = True


# The models of a process. A fork goes on with those of its parent, and with what is left of their budgets.

_llms: dict[str, LLM] = {}  # made here, for good
_given: WeakValueDictionary[str, LLM] = WeakValueDictionary()  # made by the user


def _shared(model: str | LLM | None, options: Mapping[str, Any]) -> LLM:
    """Return this process's only model with these options, so that its users share limits and connections.

    If `model` is an `LLM`, it is returned itself.
    """
    llm = make_llm(model, options)  # anew: a path may lead to another file than before
    told = sorted(_llm_options(llm, {}).items())
    key = _digest([llm.options["model"], llm.reached, str(llm.transport.key), told])
    if isinstance(model, LLM):
        _given.setdefault(key, llm)  # for copies of this object
        return llm
    # Without a lock, which a fork could leave locked.
    return _given.get(key) or _llms.setdefault(key, llm)


def _digest(options: list[object]) -> str:
    """Return a hash of the options, with keys. `repr` would hide the keys, and all of them look the same."""
    return hashlib.sha256(json.dumps(options, default=repr).encode()).hexdigest()


def _llm_options(model: str | LLM | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make the same model in another process."""
    if isinstance(model, LLM):
        return {k: v for k, v in show_key(model.__getstate__()).items() if k in OPTIONS}
    return {name: value for name, value in options.items() if name in OPTIONS}


def _divided(options: Mapping[str, Any], most: int, workers: int) -> dict[str, Any]:
    """Return one worker's share of the limits; `most` is the `max_concurrency` of all workers together.

    Raises:
        InvalidArgumentError: `most` is less than `workers`.
    """
    if most < workers:
        raise InvalidArgumentError(
            f"max_concurrency={most} is less than workers={workers}.",
            hint="Each worker makes at least one call at a time.",
            argument="workers",
        )
    part = {name: options[name] / workers for name in _DIVIDED if options.get(name) is not None}
    return {**part, "max_concurrency": most // workers}


def _told(options: Mapping[str, Any]) -> Mapped:
    """Return the options that say how data is read, with `labels` checked."""
    return Mapped(
        options.get("columns") or {},
        check_labels(options.get("labels")),
        min_votes=options.get("min_votes"),
        safe_rejected=options.get("safe_rejected", False),
    )


def _refuse_pairs(options: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for options that would change the number of rows of a batch."""
    for name in ("pairs", "min_gap"):
        if options.get(name) is not None:
            raise InvalidArgumentError(
                f"{name}= cannot be used for batches, which keep their rows.",
                hint="Make the pairs first: read_preferences(data, pairs=…).",
                argument=name,
            )
