"""Estimate the calls, tokens and cost of a run, and show its first request, before any call is made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

from ..data.source_rows import SourceRow
from ..exceptions import DataError
from ..llm.client import LLM
from ..llm.requests import Request, stored_texts
from ..records import Record
from .requests import Plan

BYTES_A_TOKEN = 4  # an estimate, for prompts
_TOKENS_A_PERSONA = 60  # an estimate
_ROWS_A_LOOKUP = 64  # the requests of so many rows are looked up in the cache at once


class CostEstimate(Record):
    """The estimated calls, tokens and cost of a run, without retries, re-asks and the calls of a judge.

    Attributes:
        rows: rows that the run's table would have, before any is dropped.
        unusable_rows: those of these rows that have no pair, for which nothing is sent.
        calls: calls to make. A reply in the cache needs none. Equal requests need one, which brings the reply
            into the cache; with `cache=False` each is counted.
        cached: requests whose replies are in the cache.
        prompt_tokens: tokens of the prompts to send, at four bytes a token.
        completion_tokens: tokens of the replies to these calls, at sixty tokens a persona.
        cost: in USD; 0 if there is no call to make, None if the price of the model is not known.
    """

    rows: int
    unusable_rows: int
    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def estimate(llm: LLM, rows: Iterable[SourceRow], plan: Plan) -> CostEstimate:
    """Estimate the calls, tokens and cost of a run over these rows. All rows are read, and no call is made.

    Args:
        llm: the model of the run.
        rows: the rows of the run.
        plan: how personas are asked for.

    Raises:
        CacheError: the cache of replies fails.
    """
    count = unusable = cached = calls = prompt_bytes = 0
    asked, counted = plan.asked(rows), set[bytes]()
    while group := list(islice(asked, _ROWS_A_LOOKUP)):
        count += len(group)
        unusable += sum(not found for _, found in group)
        every = [request for _, found in group for request in found]
        jobs = [llm.job(request) for request in every]
        known = stored_texts(jobs, llm.cache)
        cached += sum(job.key in known for job in jobs)
        missing = list[Request]()
        for request, job in zip(every, jobs, strict=True):
            if job.key not in known and job.key not in counted:
                missing.append(request)
                if llm.cache is not None:
                    counted.add(job.key)
        calls += len(missing)
        prompt_bytes += sum(map(_size, missing))
    prompt_tokens = prompt_bytes // BYTES_A_TOKEN
    completion_tokens = calls * plan.personas_a_call * _TOKENS_A_PERSONA
    cost = None
    if llm.price is not None and calls:
        cost = calls * llm.price.cost(prompt_tokens / calls, completion_tokens / calls)
    return CostEstimate(
        rows=count,
        unusable_rows=unusable,
        calls=calls,
        cached=cached,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=cost if calls else 0.0,
    )


def first_body(llm: LLM, rows: Iterable[SourceRow], plan: Plan) -> dict[str, Any]:
    """Return the JSON body of a run's first request, as it would be sent. Nothing is sent.

    Rows are read up to the first one that has a pair.

    Raises:
        DataError: no row has a pair, or there are no rows.
    """
    problem = "there are no rows."
    for (row, _), requests in plan.asked(rows):
        if requests:
            body = llm.transport.dialect.written(llm.job(requests[0]).body)
            found: dict[str, Any] = json.loads(body)
            return found
        problem = f"no row can be asked about; {row.error}"
    raise DataError(problem)


def _size(request: Request) -> int:
    return sum(len(m.content.encode()) for m in (*request.prefix, *request.messages))
