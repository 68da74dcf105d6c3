"""`collect_batch`: wait for a batch, fetch its answers, and make the table.

The replies are written to the cache; the table is then made as `infer_personas` makes it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from ..api_keys import hides_secrets
from ..arguments import Seconds, check_argument
from ..data.table import PersonaTable
from ..exceptions import BatchPendingError, DataError
from ..llm.client import LLM
from ..llm.pricing import most_tokens
from ..observability import progress_bar
from ..personas.infer import PersonaStream
from ..personas.selection import check_candidates
from ..records import Selector
from .costs import count_batch, single_calls
from .downloads import looked, looked_again
from .job_folder import PersonaBatch
from .lines import wired_rows
from .provider import batch_api
from .request_files import add_to_digest
from .results import TwoCaches, bring_in, keep_replies, run_without_calls, writable_cache
from .trust import llm_of, own_cache


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
    # Another call may have changed the folder since.
    batch = batch.reread() if isinstance(batch, PersonaBatch) else PersonaBatch.load(batch)
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
    llm = llm_of(batch, given, calls=ask_missing, pays=pays)
    keys, own = _keys(batch, llm), own_cache(batch, cache_dir)
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
            runs = stack.enter_context(single_calls(batch, llm, usage.cost or 0.0))
        else:
            count_batch(batch, llm, usage.cost or 0.0)  # no longer the most that it could cost
        run = None if ask_missing else run_without_calls(batch, llm, outcome)
        rows = PersonaStream(
            batch.source(), llm, batch.plan(), on_error=batch.on_error, select=select, run=run
        )
        runs.append(rows)
        table = rows.table(progress)
    table.usage = usage + table.usage.model_copy(update={"cached": 0})
    return table


def _keys(batch: PersonaBatch, llm: LLM) -> dict[bytes, int]:
    """Return the key of each request -> the most tokens that the request's prompt can have.

    Raises:
        DataError: the requests are not those that were submitted.
    """
    digest, keys = hashlib.sha256(), dict[bytes, int]()
    for _, wired in wired_rows(batch.source(), batch.plan(), llm):
        add_to_digest(digest, wired)
        keys.update((wire.key, most_tokens(wire.body)) for wire in wired)
    if digest.hexdigest() != batch.digest:
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
            with batch.alone(within=left) as batch:
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
