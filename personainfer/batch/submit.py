"""`submit_batch` and `collect_batch`: personas through a provider's batch API, at half the price.

Submitting writes a folder before it sends anything, and saves the handle (`batch.json`) after every step that
may cost money. After a crash, the same call continues. Collecting writes the replies to the cache; the table
is then made as `infer_personas` makes it.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import IO, Any, Unpack

from ..api_keys import Secrets, hides_secrets, holds_secret
from ..arguments import PositiveNumber, check_argument, takes_options
from ..connections import until_deadline
from ..data.source_rows import PreferenceSource, SourceRow
from ..data.table import PersonaTable
from ..exceptions import (
    BatchPendingError,
    DataError,
    InvalidArgumentError,
    ModelError,
    ModelNotFoundError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from ..llm.client import LLM
from ..llm.pricing import most_tokens
from ..local.atomic_files import atomic_writer, remove_abandoned
from ..observability import progress_bar
from ..personas.infer import PersonaStream, checked, prepare
from ..personas.options import PersonaOptions
from ..personas.requests import Plan
from ..personas.selection import check_candidates
from ..records import PersonaRow, Selector
from .job_folder import (
    BatchPart,
    PersonaBatch,
    RequestFiles,
    add_to_digest,
    as_folder,
    new_folder,
    read_answers,
)
from .lines import MaskedLines, WireRequest, provider_words, wire_requests
from .provider import BatchAPI, BatchState, batch_api
from .results import bring_in, run_without_calls

_LONGEST_LINE = 2**24  # bytes of a file's last line that are looked at


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
        options: as for `infer_personas`, but `select` is given to `collect_batch` instead. `prices` are those
            of single calls; a batch costs half. If the most that this call may cost is more than `budget`,
            nothing is sent. An LLM counts this most as spent, until `collect_batch` replaces it by the cost.

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
    folder = as_folder(path)
    remove_abandoned(folder)
    plan, source, llm = prepare(data, model, options, select_later=True)
    _check(llm, options)
    costs: dict[int, float] | None = None
    with closing(batch_api(llm.transport)) as api:
        is_new = not PersonaBatch.handle(folder).exists()
        if is_new:
            with new_folder(folder) as unfinished:
                filled = _fill(unfinished, source, plan, llm, api, options)
                costs = _most_costs(filled, llm)
                # Of what costs too much, nothing is written.
                _give_back(_charge(filled, llm, costs), llm)
        with PersonaBatch.load(folder).alone() as batch:
            if not is_new:
                _write_requests_anew(batch, source, plan, llm, api)
                batch = batch.model_copy(update=_told(plan, llm, options))
                batch.save()
            costs = _most_costs(batch, llm) if costs is None else costs
            batch = _submitted(batch, api, llm, costs)
            return batch.submitted_by(llm, made_here=is_new)


@hides_secrets
def collect_batch(
    batch: PersonaBatch | str | Path,
    *,
    select: Selector | None = None,
    ask_missing: bool = False,
    model: str | None = None,
    wait: bool = True,
    poll: float = 30.0,
    timeout: float | None = None,
    api_key: str | None = None,
    api_base: str | None = None,
    extra_headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    reasoning_effort: str | None = None,
    budget: float | None = None,
    prices: tuple[float, float] | None = None,
    cache_dir: str | Path | None = None,
    progress: bool | None = None,
) -> PersonaTable:
    """Wait for a batch, and make the table that `infer_personas` would have made.

    Every reply is written to the cache first. A row has an error if its reply is missing, failed, or not in
    the form that was asked for. Ctrl-C loses nothing, and collecting again costs nothing.

    Args:
        batch: what `submit_batch` returned, or the path of its folder. From a path, the model, the requests
            and the budget are taken, but no limits, prices or numbers of attempts.
        select: as for `infer_personas`; needed if several candidates were asked for.
        ask_missing: call the model, at the full price, for requests that the batch did not answer.
        model: that of `submit_batch`; None: the model of the batch. It has to be given again if `batch` is a
            path and `ask_missing` is set; otherwise whoever made the folder would choose which model you pay
            for.
        wait: True: wait until the batch is done. False: ask the provider once.
        poll: seconds between two checks.
        timeout: seconds to wait at most; None: no limit.
        api_key: the key; None: the provider's environment variable.
        api_base: the endpoint that the batch was submitted to. It has to be given again if `batch` is a path;
            otherwise whoever made the folder would choose where your key goes.
        extra_headers: those of `submit_batch`, which the folder does not keep.
        extra_body, max_tokens, reasoning_effort: those of `submit_batch`; None: as in the batch. They have to
            be given again if `batch` is a path, `ask_missing` is set and they make calls cost more than
            usual.
        budget: USD that may be spent on all of these together: the batch, the calls of `ask_missing`, and
            those of a judge in `select`, in this call and in earlier ones. None: that of `submit_batch`.
        prices: USD for a million tokens of prompts and of replies in single calls, as for `infer_personas`.
        cache_dir: the folder of the cache of replies; None: that of `submit_batch`, or, if `batch` is a path,
            the default one.
        progress: whether to show bars on standard error; None: in a terminal or a notebook.

    Returns:
        The table. Its `usage` counts the whole batch at the price of batches, every time it is collected, and
        the calls of `ask_missing`.

    Raises:
        BatchPendingError: the batch is not done (with `wait=False`, or after `timeout`), parts of it were not
            submitted, or another process works on the folder.
        InvalidArgumentError: a bad argument, or one that has to be given again.
        DataError: this installation makes other requests than those that were submitted, or the folder is
            damaged. With `on_error="raise"` in `submit_batch`: the first row with an error cannot be used.
        CacheError: the cache of replies cannot be used.
        ModelError: the provider failed (repeat the call to continue); or, with `on_error="raise"`, the first
            row with an error has no usable reply.
        OSError: the disk is full.
    """
    check_argument("poll", poll, PositiveNumber)
    check_argument("timeout", timeout, PositiveNumber | None)
    handle = batch if isinstance(batch, PersonaBatch) else None
    here = handle is not None and handle.submitted_here
    # Read the folder again: another call may have changed it since.
    batch = PersonaBatch.load(batch.path if isinstance(batch, PersonaBatch) else batch)
    if handle is not None and here:
        batch = batch.as_submitted(handle)
    check_candidates(batch.candidates, select)
    given = {
        "model": model,
        "api_key": api_key,
        "api_base": api_base,
        "extra_headers": extra_headers,
        "extra_body": extra_body,
        "max_tokens": max_tokens,
        "reasoning_effort": reasoning_effort,
        "budget": budget,
        "prices": prices,
        "cache_dir": cache_dir,
    }
    given = {name: value for name, value in given.items() if value is not None}
    judge = select if hasattr(select, "share_budget") else None
    pays = judge is not None
    llm = batch.llm(given, submitted_here=here, calls=ask_missing, pays=pays)
    keys = _keys(batch, llm)
    before = batch.answer_files()
    batch = _awaited(batch, llm, wait, poll, timeout, progress)
    downloaded = set(batch.answer_files()).difference(before)
    place = cache_dir or (batch.llm_options.get("cache_dir") if here else None)
    outcome = bring_in(
        batch, llm, keys, downloaded, None if batch.made_here else batch.own_cache(place)
    )
    usage = outcome.tally.usage
    with ExitStack() as stack:
        runs: list[Any] = []
        if ask_missing or pays:
            runs = stack.enter_context(_counted(batch, llm, usage.cost or 0.0, judge))
        elif batch.submitter is not None and (paid := batch.submitter.bounds.budget) is not None:
            batch.count_in(paid, usage.cost or 0.0)  # no longer the most that it could cost
        run = None if ask_missing else run_without_calls(batch, llm, outcome)
        plan, on_error = batch.plan(submitted_here=here), batch.on_error
        rows = PersonaStream(batch.source(), llm, plan, on_error=on_error, select=select, run=run)
        runs += [rows] if ask_missing else []
        table = rows.table(progress)
    table.usage = usage + table.usage.model_copy(update={"cached": 0})
    return table


# Submitting


def _check(llm: LLM, options: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for `select`, an `api_base` with a secret, and costs without a bound."""
    if options.get("select") is not None:
        raise InvalidArgumentError(
            "select= chooses among replies, and there are none yet.",
            hint="Give it to collect_batch.",
            argument="select",
        )
    if holds_secret(llm.options["api_base"] or ""):
        raise InvalidArgumentError(
            "api_base= may hold a password or a token, which would be written to the folder.",
            hint="Give an address without @ and ?, and the key as api_key=.",
            argument="api_base",
        )
    if llm.account.bounds.budget is not None and not llm.most_is_known:
        raise InvalidArgumentError(
            "the requests ask the model to think, and name no number of tokens: the most that the batch may"
            " cost is not known.",
            hint="Name the tokens of thinking in extra_body=, leave budget= out, or make a call with an LLM"
            " and submit the batch with the same LLM: it then counts as many as that reply took.",
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
        for number, (row, wired) in enumerate(_wired(source, plan, llm)):
            if row.error is not None and told["on_error"] == "raise":
                raise DataError(f"row {number}: {row.error}")
            rows.append(PersonaRow(number, row.preference, error=row.error, columns=row.columns))
            files.add(wired)
    written = sum(files.counts)
    batch = PersonaBatch(
        path=folder,
        made_by=f"personainfer {version('personainfer')} with litellm {version('litellm')}",
        **told,
        rows=len(rows),
        requests=len(files.keys),
        cached=len(files.keys) - written,
        digest=files.digest,
        parts=tuple(BatchPart(requests=count, order=token_hex(8)) for count in files.counts),
    )
    read = {"read": source.summary} if source.summary else {}
    PersonaTable(rows, original=source.original, settings=read).save(batch.rows_file)
    batch.save()
    return batch


def _write_requests_anew(
    batch: PersonaBatch, source: PreferenceSource, plan: Plan, llm: LLM, api: BatchAPI
) -> None:
    """Replace the files of requests that are yet to be uploaded by the requests of the caller's data.

    Otherwise whoever wrote the folder would decide what the caller pays for.

    Raises:
        InvalidArgumentError: the batch is of other data or options. The files stay as they were.
    """
    digest, places = hashlib.sha256(), dict[bytes, IO[bytes]]()
    with ExitStack() as stack:
        for number in batch.unsubmitted:
            if batch.parts[number].file_id is None or batch.parts[number].refused:
                file = atomic_writer(batch.requests_file(number), private=True)
                keys = batch.keys_of(number)
                places |= dict.fromkeys(keys, stack.enter_context(file))
        for _, wired in _wired(source, plan, llm):
            add_to_digest(digest, wired)
            for wire in wired:
                if (place := places.pop(wire.key, None)) is not None:
                    place.write(api.line(wire.key.hex(), wire.body))
        if places or digest.hexdigest() != batch.digest:
            raise InvalidArgumentError(
                f"{batch.path} holds a batch of other data or options.",
                hint="Give the same to go on with it, or name another folder.",
            )


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


def _most_costs(batch: PersonaBatch, llm: LLM) -> dict[int, float]:
    """Return the number of each part to be submitted -> the most USD that it can cost.

    It reads the files of requests. It is empty if there is no budget, or no known price.
    """
    price = llm.batch_price
    if llm.account.bounds.budget is None or price is None:
        return {}
    max_tokens = llm.most_tokens()
    return {number: batch.most_cost(number, price, max_tokens) for number in batch.unsubmitted}


def _charge(batch: PersonaBatch, llm: LLM, costs: Mapping[int, float]) -> set[str]:
    """Count in the budget the most that the parts to be submitted can cost. A part counts only once.

    Returns:
        The names of the parts to be submitted (`PersonaBatch.order`) of which no batch can exist yet: if they
        are not submitted, `_give_back` takes them. Empty without a budget.

    Raises:
        BudgetExceededError: it is more than what is left. Nothing is counted then.
    """
    if llm.account.bounds.budget is None or llm.batch_price is None:
        return set()
    numbers = batch.unsubmitted
    count = sum(batch.parts[number].requests for number in numbers)
    llm.account.bounds.budget.charge(
        f"{count} requests", {batch.order(n): costs[n] for n in numbers}
    )
    parts = ((n, batch.parts[n]) for n in numbers)
    return {batch.order(n) for n, part in parts if part.refused or part.file_id is None}


def _give_back(orders: set[str], llm: LLM) -> None:
    """Count parts no more in the budget, because they were not submitted."""
    if llm.account.bounds.budget is not None:
        llm.account.bounds.budget.give_back(orders)


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
    patience, unsent = llm.options["patience"], _charge(batch, llm, costs)
    try:
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
                unsent.discard(batch.order(number))  # the answer may be lost, but not the order
                state = _created(api, str(part.file_id), patience, resumed)
            except ModelError as error:
                raise type(error)(
                    f"part {number + 1} of {len(batch.parts)} was not submitted: {error.message}",
                    hint=f"{error.hint} Repeat the call to continue with {batch.path}.".strip(),
                ) from None
            batch = batch.updated(number, part.at(state))
    finally:
        _give_back(unsent, llm)
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


# Collecting


def _keys(batch: PersonaBatch, llm: LLM) -> dict[bytes, int]:
    """Return the key of each request -> the most tokens that the request's prompt can have.

    Raises:
        DataError: the requests are not those that were submitted.
    """
    digest, keys = _fingerprint(batch.source(), batch.plan(), llm)
    if digest != batch.digest:
        raise DataError(
            f"{batch.path} was made by {batch.made_by}, or with other options: the requests differ.",
            hint="Collect it with the versions of personainfer and litellm that submitted it, and give"
            " extra_headers= that choose a model, and other options, as submit_batch got them.",
        )
    return keys


def _awaited(
    batch: PersonaBatch,
    llm: LLM,
    wait: bool,
    poll: float,
    timeout: float | None,
    progress: bool | None,
) -> PersonaBatch:
    """Check the batch until every part is done and its files are downloaded.

    Returns:
        The batch with the last states of its parts.

    Raises:
        BatchPendingError: the batch is not done, and `wait` is False or `timeout` seconds have passed.
    """
    if batch.done and not any(batch.unfetched(n) for n in range(len(batch.parts))):
        return batch
    left = float("inf") if timeout is None else timeout
    ends, patience = time.monotonic() + left, llm.options["patience"]
    bar = progress_bar(progress, total=batch.sent, unit="request")
    with bar, closing(batch_api(llm.transport)) as api:
        while True:
            with batch.alone() as batch:
                batch = _looked(batch, api, min(patience, left), llm.transport.secrets)
            bar.update(batch.answered - bar.n)
            if batch.done:
                return batch
            left = ends - time.monotonic()
            if not wait or left <= 0:
                raise BatchPendingError(f"{batch}.", hint="Call collect_batch again later.")
            time.sleep(min(poll, left))


def _looked(batch: PersonaBatch, api: BatchAPI, patience: float, secrets: Secrets) -> PersonaBatch:
    """Ask for the state of each part that is not done, once, and download the files of those that are done.

    Raises:
        BatchPendingError: a part was not submitted.
    """
    if any(part.batch_id is None for part in batch.parts):
        raise BatchPendingError(
            f"not all of it was submitted: {batch}.",
            hint="Call submit_batch again, with the same arguments and folder.",
        )
    for number, part in enumerate(batch.parts):
        if not part.done:
            state = until_deadline(patience)(api.look, str(part.batch_id))
            batch = batch.updated(number, part.at(state))
        if batch.parts[number].done:
            for file_id, place in batch.unfetched(number):
                until_deadline(patience)(_fetch, api, file_id, place, secrets, part.requests)
    return batch


def _fetch(api: BatchAPI, file_id: str, place: Path, secrets: Secrets, requests: int) -> None:
    """Download one of the provider's files to `place`, with secrets masked, whole or not at all.

    Raises:
        ReplyError: the file has no line of a batch.
        TransportError: the file breaks off within a line.
    """
    with atomic_writer(place, private=True) as file:
        with MaskedLines(file, secrets) as lines:
            api.download(file_id, lines, requests)
        size = file.tell()
        file.seek(0)
        if size and next(read_answers(file, secrets), None) is None:
            file.seek(0)
            begins = provider_words(file.read(200), secrets)
            raise ReplyError(
                f"what the provider sent as {file_id} holds no line of a batch: {begins}.",
                hint="Repeat the call to download it again.",
            )
        if _is_cut(file, size):
            raise TransportError(f"what the provider sent as {file_id} breaks off.")


def _is_cut(file: IO[bytes], size: int) -> bool:
    """Whether a file ends within a JSON object, as where a connection broke off without a word."""
    file.seek(max(0, size - _LONGEST_LINE))
    last = file.read().rpartition(b"\n")[2].strip()
    return last.startswith(b"{") and not last.endswith(b"}")


@contextmanager
def _counted(batch: PersonaBatch, llm: LLM, cost: float, judge: Any) -> Iterator[list[Any]]:
    """Count in the budget what single calls in the block take, and note in the folder what they took.

    Before the block, the budget gets what the batch and earlier single calls took; and the folder notes that
    these calls may take all that is left. So if the process is killed, all of it counts as taken. It warns if
    another `collect_batch` noted this and has not ended.

    Args:
        batch: the batch.
        llm: the LLM of the single calls.
        cost: USD that the batch took.
        judge: a selector whose `usage` has its calls; None: there is none.

    Yields:
        An empty list. The block adds the runs that make single calls; their `usage` is what they took. (The
        budget alone would not tell, because other runs and batches may share it.)
    """
    budget, submitter = llm.account.bounds.budget, batch.submitter
    left = 0.0
    if budget is not None:  # else a folder that cannot be written is none of its business
        with batch.alone() as now:
            now.count_in(budget, cost)
            left = max(0.0, budget.usd - budget.taken)
            _note(now, singly=0.0, being_asked=left)
            if now.being_asked:
                warnings.warn(_CUT_OFF.format(batch.path, now.being_asked), stacklevel=3)
    runs: list[Any] = []
    judged = _cost(judge)
    try:
        yield runs
    finally:
        took = sum(map(_cost, runs)) + _cost(judge) - judged
        if took or left:
            with suppress(BatchPendingError), batch.alone() as now:
                noted = _note(now, singly=took, being_asked=-left)
                for one in {budget, submitter.bounds.budget if submitter else None}:
                    if one is not None:
                        noted.count_in(one, cost, took if one is budget else 0.0)


_CUT_OFF = (
    "another collect of {} has not ended, or was killed: the ${:.6g} that its single calls may take are"
    " counted in the budget. A larger budget= allows more."
)


def _note(batch: PersonaBatch, *, singly: float, being_asked: float) -> PersonaBatch:
    """Add USD to `asked_singly` and `being_asked` in the handle, save it, and return the new batch."""
    sums = {
        "asked_singly": batch.asked_singly + singly,
        "being_asked": max(0.0, batch.being_asked + being_asked),
    }
    noted = batch.model_copy(update=sums)
    noted.save()
    return noted


def _cost(caller: Any) -> float:
    """Return the USD that a run or a judge took so far; 0 for None, and if the price is unknown."""
    return (caller.usage.cost or 0.0) if caller is not None else 0.0


# Both


def _wired(
    source: PreferenceSource, plan: Plan, llm: LLM
) -> Iterator[tuple[SourceRow, list[WireRequest]]]:
    """Yield each row with its requests as they are sent."""
    return ((row, wire_requests(llm, found)) for row, found in plan.asked(checked(source)))


def _fingerprint(source: PreferenceSource, plan: Plan, llm: LLM) -> tuple[str, dict[bytes, int]]:
    """Return the digest of the rows and their requests, and the keys of the requests.

    The digest equals that of a submitted batch if the requests are the same. Each key comes with the most
    tokens that the prompt of its request can have.
    """
    digest = hashlib.sha256()
    keys: dict[bytes, int] = {}
    for _, wired in _wired(source, plan, llm):
        add_to_digest(digest, wired)
        keys.update((wire.key, most_tokens(wire.body)) for wire in wired)
    return digest.hexdigest(), keys
