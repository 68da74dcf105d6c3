"""`collect_batch`: wait for a batch, fetch its answers, and make the table.

The replies are written to the cache; the table is then made as `infer_personas` makes it.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from ..api_keys import hides_secrets
from ..arguments import Seconds, check_argument
from ..data.source_rows import PreferenceSource
from ..data.table import PersonaTable
from ..exceptions import (
    BatchPendingError,
    DataError,
)
from ..llm.client import LLM
from ..llm.pricing import most_tokens
from ..observability import progress_bar
from ..personas.infer import PersonaStream
from ..personas.requests import Plan
from ..personas.selection import check_candidates
from ..records import Selector
from .downloads import looked, looked_again
from .job_folder import PersonaBatch
from .lines import wired_rows
from .provider import batch_api
from .request_files import add_to_digest
from .results import (
    TwoCaches,
    bring_in,
    keep_replies,
    run_without_calls,
    writable_cache,
)


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
    the form that was asked for. Ctrl-C loses nothing, and collecting again costs nothing. If a batch that is
    done lacks a file or a line, each call asks once for more; it is no error if there is no answer.

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
            By others than those of `submit_batch`, an `LLM` that submitted the batch keeps the most that it
            can cost as spent.
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
    poll = check_argument("poll", poll, Seconds)
    timeout = check_argument("timeout", timeout, Seconds | None)
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
    pays = hasattr(select, "share_budget")  # for a judge
    llm = batch.llm(given, submitted_here=here, calls=ask_missing, pays=pays)
    keys = _keys(batch, llm)
    place = cache_dir or (batch.llm_options.get("cache_dir") if here else None)
    own = None if batch.made_here else batch.own_cache(place)
    keep = partial(keep_replies, batch, llm, keys, own) if own is not None else None
    batch = _awaited(batch, llm, wait, poll, timeout, progress, keep, pays=ask_missing)
    with ExitStack() as stack:
        if llm.cache is not None and llm.cache.is_only_read:  # it would keep no reply of the batch
            place = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
            llm.cache = writable_cache(batch, llm, keys, llm.cache, Path(place))
        outcome = bring_in(batch, llm, keys)
        if own is not None and llm.cache is not None:
            llm.cache.close()
            llm.cache = TwoCaches(llm.cache.directory, own)
        usage = outcome.tally.usage
        runs: list[PersonaStream] = []
        if ask_missing or pays:
            runs = stack.enter_context(_counted(batch, llm, usage.cost or 0.0))
        elif (paid := batch.payer(llm)) is not None:
            batch.count_in(paid, usage.cost or 0.0)  # no longer the most that it could cost
        run = None if ask_missing else run_without_calls(batch, llm, outcome)
        plan, on_error = batch.plan(submitted_here=here), batch.on_error
        rows = PersonaStream(batch.source(), llm, plan, on_error=on_error, select=select, run=run)
        runs.append(rows)
        table = rows.table(progress)
    table.usage = usage + table.usage.model_copy(update={"cached": 0})
    return table


def _fingerprint(source: PreferenceSource, plan: Plan, llm: LLM) -> tuple[str, dict[bytes, int]]:
    """Return the digest of the rows and their requests, and the keys of the requests.

    The digest equals that of a submitted batch if the requests are the same. Each key comes with the most
    tokens that the prompt of its request can have.
    """
    digest = hashlib.sha256()
    keys: dict[bytes, int] = {}
    for _, wired in wired_rows(source, plan, llm):
        add_to_digest(digest, wired)
        keys.update((wire.key, most_tokens(wire.body)) for wire in wired)
    return digest.hexdigest(), keys


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
    keep: Callable[[IO[bytes]], None] | None,
    *,
    pays: bool,
) -> PersonaBatch:
    """Check the batch until every part is done and its files are downloaded.

    `keep` is called with each file of answers before it gets its place in the folder; None: nothing is. With
    `pays`, what the batch lacks will be paid for again.

    Returns:
        The batch with the last states of its parts.

    Raises:
        BatchPendingError: the batch is not done, and `wait` is False or `timeout` seconds have passed.
    """
    left = float("inf") if timeout is None else timeout
    ends, patience = time.monotonic() + left, llm.options["patience"]
    if batch.is_fetched:
        batch = looked_again(batch, llm, ends, keep, pays=pays)
        if batch.is_fetched:
            return batch
    had_ended = any(part.done for part in batch.parts)
    bar = progress_bar(progress, total=batch.sent, unit="request")
    with bar, closing(batch_api(llm.transport)) as api:
        while True:
            with batch.alone() as batch:
                batch = looked(batch, api, min(patience, left), llm.transport.secrets, keep)
            bar.update(batch.answered - bar.n)
            if batch.done and had_ended:  # a part that ended before may have more by now
                batch = looked_again(batch, llm, ends, keep, pays=pays)
            if batch.is_fetched:
                return batch
            left = ends - time.monotonic()
            if not wait or left <= 0:
                raise BatchPendingError(f"{batch}.", hint="Call collect_batch again later.")
            had_ended = any(part.done for part in batch.parts)
            time.sleep(min(poll, left))


@contextmanager
def _counted(batch: PersonaBatch, llm: LLM, cost: float) -> Iterator[list[PersonaStream]]:
    """Note in the batch's folder, and count in budgets, what the single calls in the block take.

    If `llm` has a budget, the budget first gets what the batch and earlier single calls took. The folder then
    notes that the calls of the block may take all that is left: if the process is killed, all of it counts as
    taken. A warning tells of such a note by another `collect_batch`, which still runs or was killed.

    After the block, also if it raises, what the calls took replaces the note. It counts in the budgets of
    `llm` and of the LLM that submitted the batch. If another process keeps the folder locked, the note stays.

    Args:
        batch: the batch.
        llm: the LLM of the single calls.
        cost: USD that the batch took.

    Yields:
        An empty list. The block adds the run of its rows, whose `usage` and `judged` are what they took. (The
        budget alone would not tell, because other runs and batches may share it.)

    Raises:
        BatchPendingError, InvalidArgumentError, DataError: as `PersonaBatch.alone`, before the block.
        OSError: the note cannot be written.
    """
    budget, payer, left = llm.account.bounds.budget, batch.payer(llm), 0.0
    own = batch.submitter.bounds.budget if batch.submitter is not None else None
    # By other prices, the submitter's budget keeps the most that the batch can cost.
    told = cost if budget is payer or budget is not own else None
    if budget is not None:  # else a folder that cannot be written is none of its business
        with batch.alone() as now:
            now.count_in(budget, told)
            left = max(0.0, budget.usd - budget.taken)
            now.note(budget, singly=0.0, being_asked=left)
            if now.being_asked:
                warnings.warn(_CUT_OFF.format(batch.path, now.being_asked), stacklevel=3)
    runs: list[PersonaStream] = []
    try:
        yield runs
    finally:
        took = sum(one.cost or 0.0 for run in runs for one in (run.usage, run.judged))
        if took or left:
            with suppress(BatchPendingError), batch.alone() as now:
                noted = now.note(budget, singly=took, being_asked=-left)
                if budget is not None:
                    noted.count_in(budget, told, took)
                if payer is not None and payer is not budget:
                    noted.count_in(payer, cost)


_CUT_OFF = (
    "another collect of {} has not ended, or was killed: the ${:.6g} that its single calls may take are"
    " counted in the budget. A larger budget= allows more."
)
