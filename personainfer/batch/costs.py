"""What a batch and its single calls may cost, and what they took: counted in budgets, noted in the folder.

A budget counts each part that is submitted as an order, with the most that it can cost. When the batch is
collected, what it took takes the place of these orders. Another process has only the folder: the handle notes
what single calls took, and what those that run may take.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..exceptions import BatchPendingError
from ..llm.client import LLM
from ..llm.pricing import Budget, Price, most_tokens
from ..llm.rate_limits import Account
from ..personas.infer import PersonaStream
from ..preferences.cells import read_json
from .job_folder import PersonaBatch

# By `PersonaBatch.identity`: account and prices of the LLM that submitted the batch in this process.
_submitters: WeakValueDictionary[str, Account] = WeakValueDictionary()
_prices: dict[str, Price | None] = {}
# By a budget and the identity of a batch: USD that single calls of this process may yet take of the budget.
_asking: WeakKeyDictionary[Budget, Counter[str]] = WeakKeyDictionary()


def remember_submitter(batch: PersonaBatch, llm: LLM) -> None:
    """Remember account and prices of the LLM that submitted a batch.

    As long as something uses that account, a later `collect_batch` in this process counts what the batch cost
    in the same budget.
    """
    _submitters[batch.identity] = llm.account
    _prices[batch.identity] = llm.batch_price


def submitter(batch: PersonaBatch) -> Account | None:
    """Return the account of the LLM that submitted a batch: what it spent, and its budget.

    None if another process submitted the batch, or if nothing in this process uses that account any more,
    such as its LLM.
    """
    return _submitters.get(batch.identity)


def order(batch: PersonaBatch, number: int) -> str:
    """Return the name that a part has in the budget that pays for it; `number` counts from 0.

    The name stays the same when the part is submitted again.
    """
    return f"{batch.path.resolve()} {number} {batch.parts[number].order}"


def most_costs(batch: PersonaBatch, llm: LLM) -> dict[int, float]:
    """Return the number of each part to be submitted -> the most USD that it can cost.

    It reads the files of requests. It is empty if there is no budget, or no known price.

    Raises:
        DataError: a file cannot be read.
    """
    price = llm.batch_price
    if llm.account.bounds.budget is None or price is None:
        return {}
    most = llm.most_tokens(), llm.account.added
    return {number: most_cost(batch, number, price, *most) for number in batch.unsubmitted}


def most_cost(batch: PersonaBatch, number: int, price: Price, max_tokens: int, added: int) -> float:
    """Return the most USD that the requests of a part can cost, read from its file of requests.

    Args:
        batch: the batch.
        number: the place of the part in `batch.parts`, from 0.
        price: the price of tokens in a batch.
        max_tokens: the most tokens of each reply, if that is more than when the file was written.
        added: the most tokens that the endpoint adds to each prompt, if that is more than then.

    Raises:
        DataError: the file cannot be read.
    """
    part = batch.parts[number]
    max_tokens, added = max(max_tokens, part.most_tokens), max(added, part.most_added)
    with batch.opened_requests(number) as lines:
        return sum(price.most(_prompt_tokens(line) + added, max_tokens) for line in lines)


def _prompt_tokens(line: bytes) -> int:
    """Return the most tokens that the prompt of a request can have: one for each byte of its body.

    If the line is not as it was written, all of its bytes count.
    """
    try:
        body = read_json(line)["body"]
    except (ValueError, KeyError, TypeError):  # not as it was written
        return most_tokens(line)
    return most_tokens(json.dumps(body, ensure_ascii=False).encode())


@contextmanager
def charged(batch: PersonaBatch, llm: LLM, costs: Mapping[int, float]) -> Iterator[set[str]]:
    """Count in the budget the most that the parts to be submitted can cost. A part counts only once.

    Args:
        batch: the batch.
        llm: the LLM that submits it.
        costs: what `most_costs` returned.

    Yields:
        The orders of the parts of which no batch can exist yet; none without a budget. The block removes
        those that it may have submitted: at its end, the others count no more.

    Raises:
        BudgetExceededError: it is more than what is left. Nothing is counted then.
    """
    budget, numbers = llm.account.bounds.budget, batch.unsubmitted
    if budget is None or llm.batch_price is None:
        yield set()
        return
    count = sum(batch.parts[number].requests for number in numbers)
    budget.charge(f"{count} requests", {order(batch, n): costs[n] for n in numbers})
    parts = ((n, batch.parts[n]) for n in numbers)
    unsent = {order(batch, n) for n, part in parts if part.refused or part.file_id is None}
    try:
        yield unsent
    finally:
        budget.give_back(unsent)


def count_batch(batch: PersonaBatch, llm: LLM, cost: float) -> None:
    """Count what a batch took in the budget that reserved the most for it, see `_payer`; `cost` is in USD."""
    budget = _payer(batch, llm)
    if budget is not None:
        _count_in(batch, budget, cost)


@contextmanager
def single_calls(batch: PersonaBatch, llm: LLM, cost: float) -> Iterator[list[PersonaStream]]:
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
    budget, payer, account = llm.account.bounds.budget, _payer(batch, llm), submitter(batch)
    is_submitters = account is not None and budget is account.bounds.budget
    # By other prices, the submitter's budget keeps the most that the batch can cost.
    counted, left = None if is_submitters and payer is None else cost, 0.0
    if budget is not None:  # else a folder that cannot be written is none of its business
        with batch.alone() as now:
            _count_in(now, budget, counted)
            left = max(0.0, budget.usd - budget.taken)
            if now.being_asked:  # before the note: a warning may be an error
                # Below the caller: collect_batch in its decorator, and this block in two calls of contextlib.
                warnings.warn(_CUT_OFF.format(batch.path, now.being_asked), stacklevel=6)
            _note(now, budget, singly=0.0, being_asked=left)
    runs: list[PersonaStream] = []
    try:
        yield runs
    finally:
        took = sum(one.cost or 0.0 for run in runs for one in (run.usage, run.judged))
        if took or left:
            with suppress(BatchPendingError), batch.alone() as now:
                noted = _note(now, budget, singly=took, being_asked=-left)
                if budget is not None:
                    _count_in(noted, budget, counted, took)
                if payer is not None and payer is not budget:
                    _count_in(noted, payer, cost)


_CUT_OFF = (
    "another collect of {} has not ended, or was killed: the ${:.6g} that its single calls may take are"
    " counted in the budget. A larger budget= allows more."
)


def _payer(batch: PersonaBatch, llm: LLM) -> Budget | None:
    """Return the budget of the LLM that submitted a batch, if the prices of `llm` are the same.

    By other prices, or without any, what the batch cost is not known: the most that it can cost stays
    counted there.
    """
    account = submitter(batch)
    if account is None or _prices.get(batch.identity) != llm.batch_price:
        return None
    return account.bounds.budget


def _count_in(batch: PersonaBatch, budget: Budget, cost: float | None, spent: float = 0.0) -> None:
    """Replace what a budget reserved for a batch by what the batch and its single calls took.

    When a part was submitted, the budget counted the most that the part could cost. For all submitted parts,
    that amount is taken out. A second call replaces the numbers of the first one.

    Args:
        batch: the batch.
        budget: the budget, which is changed in place.
        cost: USD that the batch took; None: by the prices of this budget it is not known, so what was
            reserved stays.
        spent: USD of the single calls that the budget already counts as spent. They are part of
            `asked_singly`, and would otherwise count twice.
    """
    # What calls of this budget itself may take, it counts as they run.
    own = _asking.get(budget, Counter[str]())[batch.identity]
    singly = batch.asked_singly + max(0.0, batch.being_asked - own)
    took, orders = {f"{batch.identity}: single calls": singly}, list[str]()
    if cost is not None:
        took[f"{batch.identity}: batch"] = cost
        submitted = {*range(len(batch.parts))}.difference(batch.unsubmitted)
        orders = [order(batch, number) for number in submitted]
    budget.replace(orders, took, spent=spent)


def _note(
    batch: PersonaBatch, budget: Budget | None, *, singly: float, being_asked: float
) -> PersonaBatch:
    """Add USD to `asked_singly` and `being_asked` of a batch, save the handle, and return the new batch.

    Args:
        batch: the batch, whose folder is locked.
        budget: the budget of the single calls; None: there is none.
        singly: what single calls took.
        being_asked: what single calls may take that have begun; less than 0 when they end.

    Raises:
        OSError: the handle cannot be written.
    """
    sums = {
        "asked_singly": batch.asked_singly + singly,
        # Rounded, so that nothing stays of what is added and taken away to warn of.
        "being_asked": max(0.0, round(batch.being_asked + being_asked, 12)),
    }
    noted = batch.model_copy(update=sums)
    noted.save()
    if budget is not None:
        _asking.setdefault(budget, Counter())[batch.identity] += being_asked  # type: ignore[assignment]
    return noted
