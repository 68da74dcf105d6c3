"""`submit_batch`: send the requests for personas through a provider's batch API, at half the price.

A folder is written before anything is sent, and the handle in it (`batch.json`) is saved after every step
that may cost money. After a crash, the same call continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, Unpack

from ..api_keys import holds_secret
from ..arguments import takes_options
from ..connections import until_deadline
from ..data.source_rows import PreferenceSource
from ..data.table import PersonaTable
from ..exceptions import (
    DataError,
    InvalidArgumentError,
    ModelError,
    ModelNotFoundError,
    ReplyError,
    RequestRejectedError,
)
from ..llm.client import LLM
from ..local.atomic_files import atomic_writer, remove_abandoned
from ..local.paths import as_path
from ..personas.infer import prepare
from ..personas.options import PersonaOptions
from ..personas.requests import Plan
from ..records import PersonaRow
from .costs import charged, most_costs, order, remember_submitter
from .job_folder import MOST_SAMPLES, PersonaBatch, new_folder
from .lines import wired_rows
from .part import MOST_TOKENS, BatchPart
from .provider import BatchAPI, batch_api
from .request_files import RequestFiles, add_to_digest
from .states import BatchState


@takes_options(PersonaOptions)
def submit_batch(
    data: object, model: str | LLM | None, path: str | Path, **options: Unpack[PersonaOptions]
) -> PersonaBatch:
    """Send the requests of `infer_personas` through the provider's batch API, and return without waiting.

    Equal requests are sent once. Requests whose reply is in the cache are not sent. If the call fails, repeat
    it with the same arguments: it continues where it stopped, submits nothing twice, and submits again each
    part that the provider refused as a whole (because its queue was full, for example).

    Args:
        data: as for `infer_personas`.
        model: a model of OpenAI or Azure; with `api_base`, of any server that has /files and /batches; or an
            `LLM` of such a model.
        path: a folder that does not exist or is empty; or, to continue, the folder of an earlier call. It
            will hold everything that `collect_batch` needs, in any process: your data, but no key.
        options: as for `infer_personas`, but `select` is given to `collect_batch` instead, and there are at
            most 1,000 `candidates`. `prices` are those of single calls; a batch costs half. If the most that
            this call may cost is more than `budget`, nothing is sent. An LLM counts this most as spent, until
            `collect_batch` replaces it by the cost, at the same prices.

    Returns:
        The batch as it is stored in the folder.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, a model without batches, or a folder with
            other data or options. This call submitted nothing.
        DataError: no row can be read; with `on_error="raise"`, a row cannot be read; or the folder is
            damaged. This call submitted nothing.
        BudgetExceededError: the requests could cost more than what is left of `budget`. This call submitted
            nothing.
        BatchPendingError: another process works on the folder.
        CacheError: the cache of replies cannot be used.
        ModelError: no key, no connection, or the provider refused a step. Repeat the call to continue from
            there.
        OSError: the disk is full.
    """
    folder = as_path(path, "folder")
    remove_abandoned(folder)
    plan, source, llm = prepare(data, model, options, select_later=True)
    _check(plan, llm, options)
    with closing(batch_api(llm.transport)) as api:
        is_new = not PersonaBatch.handle(folder).exists()
        if is_new:
            with new_folder(folder) as unfinished:
                filled = _fill(unfinished, source, plan, llm, api, options)
                costs = most_costs(filled, llm)
                with charged(filled, llm, costs):
                    pass  # of what costs too much, nothing is written
        with PersonaBatch.load(folder).alone() as batch:
            if not is_new:
                parts = _written_anew(batch, source, plan, llm, api)
                told = batch.model_copy(update={**_told(plan, llm, options), "parts": parts})
                if told.model_dump() != batch.model_dump():
                    told.save()
                batch, costs = told, most_costs(told, llm)
            batch = _submitted(batch, api, llm, costs)
            remember_submitter(batch, llm)
            return batch.as_submitted_here(made_here=is_new)


def _check(plan: Plan, llm: LLM, options: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for `select`, an `api_base` with a secret, and what has no bound."""
    if options.get("select") is not None:
        raise InvalidArgumentError(
            "select= chooses among replies, and there are none yet.",
            hint="Give it to collect_batch.",
            argument="select",
        )
    if plan.candidates > MOST_SAMPLES:
        raise InvalidArgumentError(
            f"candidates={plan.candidates}: a batch has at most {MOST_SAMPLES:,}.",
            argument="candidates",
        )
    if holds_secret(llm.options["api_base"] or ""):
        raise InvalidArgumentError(
            "api_base= may hold a password or a token, which would be written to the folder.",
            hint="Give an address without @ and ?, and the key as api_key=.",
            argument="api_base",
        )
    if llm.account.bounds.budget is not None and not llm.most_is_known:
        raise InvalidArgumentError(
            "the requests ask the model to think, or have a field that may ask for longer replies: the most"
            " that the batch may cost is not known.",
            hint="Leave budget= out, or make a call with an LLM and submit the batch with the same LLM: it"
            " then counts as many tokens as that reply took.",
            argument="budget",
        )


def _fill(
    folder: Path,
    source: PreferenceSource,
    plan: Plan,
    llm: LLM,
    api: BatchAPI,
    options: Mapping[str, Any],
) -> PersonaBatch:
    """Write the rows, the requests and the handle of a new batch to a folder. Return the batch.

    Raises:
        DataError: a row cannot be used, and `on_error` is "raise".
    """
    told, rows = _told(plan, llm, options), list[PersonaRow]()
    with closing(RequestFiles(folder, api)) as files:
        for number, (row, wired) in enumerate(wired_rows(source, plan, llm)):
            if row.error is not None and told["on_error"] == "raise":
                raise DataError(f"row {number}: {row.error}")
            rows.append(PersonaRow(number, row.preference, error=row.error, columns=row.columns))
            files.add(wired)
    written, known = sum(files.counts), _learned(llm)
    batch = PersonaBatch(
        path=folder,
        name=token_hex(8),
        made_by=f"personainfer {version('personainfer')} with litellm {version('litellm')}",
        **told,
        rows=len(rows),
        requests=len(files.keys),
        cached=len(files.keys) - written,
        digest=files.digest,
        parts=tuple(
            BatchPart(requests=count, order=token_hex(8), **known) for count in files.counts
        ),
    )
    read = {"read": source.summary} if source.summary else {}
    PersonaTable(rows, original=source.original, settings=read).save(batch.rows_file)
    batch.save()
    return batch


def _written_anew(
    batch: PersonaBatch, source: PreferenceSource, plan: Plan, llm: LLM, api: BatchAPI
) -> tuple[BatchPart, ...]:
    """Replace the files of requests that are yet to be uploaded by the requests of the caller's data.

    Otherwise whoever wrote the folder would decide what the caller pays for.

    Returns:
        All parts, those of these files with what a reply to their requests may take now.

    Raises:
        InvalidArgumentError: the batch is of other data or options. The files stay as they were.
    """
    digest, places = hashlib.sha256(), dict[bytes, IO[bytes]]()
    parts, told = list(batch.parts), _learned(llm)
    with ExitStack() as stack:
        for number in batch.unsubmitted:
            if batch.parts[number].file_id is None or batch.parts[number].refused:
                parts[number] = parts[number].model_copy(update=told)
                file = atomic_writer(batch.requests_file(number), private=True)
                keys = batch.keys_of(number)
                places |= dict.fromkeys(keys, stack.enter_context(file))
        for _, wired in wired_rows(source, plan, llm):
            add_to_digest(digest, wired)
            for wire in wired:
                if (place := places.pop(wire.key, None)) is not None:
                    place.write(api.line(wire.key.hex(), wire.body))
        if places or digest.hexdigest() != batch.digest:
            raise InvalidArgumentError(
                f"{batch.path} holds a batch of other data or options.",
                hint="Give the same to go on with it, or name another folder.",
            )
    return tuple(parts)


def _learned(llm: LLM) -> dict[str, Any]:
    """Return the fields of a part that say what its calls may take, as far as the LLM knows now."""
    return {"most_tokens": min(llm.most_tokens(), MOST_TOKENS), "most_added": llm.account.added}


def _told(plan: Plan, llm: LLM, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the handle that the caller tells, also if the folder was there already.

    A folder from a stranger would otherwise decide budget, prices and cache directory.
    """
    exemplars = options.get("exemplars", "default")
    return {
        "model": llm.model,
        "llm_options": _kept_options(llm),
        "sides": plan.sides,
        "protocol": plan.prompt.protocol,
        "exemplars": exemplars if exemplars in ("default", "none") else tuple(exemplars),
        "candidates": plan.candidates,
        "on_error": options.get("on_error", "keep"),
    }


def _kept_options(llm: LLM) -> dict[str, Any]:
    """Return the options that the folder stores: all but the model; the cache directory is made absolute."""
    options = llm.options
    del options["model"]
    place = options["cache_dir"]
    return options | {"cache_dir": str(Path(place).expanduser().resolve()) if place else None}


def _submitted(
    batch: PersonaBatch, api: BatchAPI, llm: LLM, costs: Mapping[int, float]
) -> PersonaBatch:
    """Upload and create the parts that are not submitted yet, and save the handle after each step.

    Returns:
        The batch with the new states of its parts.

    Raises:
        BudgetExceededError: the parts could cost more than what is left.
        ModelError: a step failed. The parts before are submitted.
    """
    patience = llm.options["patience"]
    with charged(batch, llm, costs) as unsent:
        for number in batch.unsubmitted:
            part = batch.parts[number]
            if part.refused:
                part = batch.afresh(number)
            resumed = part.file_id is not None
            try:
                if not resumed:
                    file_id = until_deadline(patience)(api.upload, batch.requests_file(number))
                    part = part.model_copy(update={"file_id": file_id, "status": "uploaded"})
                    batch = batch.updated(number, part)
                unsent.discard(order(batch, number))  # the answer may be lost, but not the order
                state = _created(api, str(part.file_id), patience, resumed)
            except ModelError as error:
                raise type(error)(
                    f"part {number + 1} of {len(batch.parts)} was not submitted: {error.message}",
                    hint=f"{error.hint} Repeat the call to continue with {batch.path}.".strip(),
                ) from None
            batch = batch.updated(number, part.at(state))
    return batch


def _created(api: BatchAPI, file_id: str, patience: float, resumed: bool) -> BatchState:
    """Make the batch of an uploaded file, or find it if an earlier attempt may have made it.

    Args:
        api: the provider's batch API.
        file_id: the id of the file.
        patience: seconds for which failed connections are tried again.
        resumed: whether an earlier call uploaded the file, so that its attempt may have made the batch.
    """
    tried = resumed

    def find_or_create() -> BatchState:
        nonlocal tried
        found = _found(api, file_id) if tried else None
        tried = True
        return found or api.create(file_id)

    return until_deadline(patience)(find_or_create)


def _found(api: BatchAPI, file_id: str) -> BatchState | None:
    """Return the state of the batch of a file, or None if there is none.

    Raises:
        ModelError: as `BatchAPI.find`. If the provider's answer does not tell whether there is a batch, the
            error says what the user can do.
    """
    try:
        return api.find(file_id)
    except (ModelNotFoundError, RequestRejectedError, ReplyError) as error:
        raise type(error)(
            f"an earlier attempt may have made a batch of {file_id}, but the provider does not list"
            f" its batches: {error.message}",
            hint="Check on the provider's site. If there is no such batch, submit to another folder.",
        ) from None
