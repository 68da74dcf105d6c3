"""What a run would take, and what it would send first, before a single call is made.

It asks the same rooms that would make the calls; it does not know what a token costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..data.readers import SourceRow
from ..exceptions import DataError
from ..llm.client import LLM, Request
from ..records import Record
from .multi_pair import groups
from .plan import Plan

__all__ = ["CostEstimate", "estimate", "first_body"]

_BYTES_A_TOKEN = 4  # of a prompt
_TOKENS_A_PERSONA = 60


class CostEstimate(Record):
    """What a run would take. `calls` excludes what is cached; `cost` is USD, None if unknown.

    Tokens are estimated: four bytes a token of the prompt, sixty tokens a persona. Calls that repeat
    another (retries, re-asks, rows that a packed reply leaves open) are not foreseen.
    """

    rows: int
    unusable_rows: int
    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


def estimate(llm: LLM, rows: Iterable[SourceRow], plan: Plan) -> CostEstimate:
    """What asking about these rows would take; reads all of them."""
    count = unusable = calls = cached = prompt_bytes = answers = 0
    for group in groups(rows, plan):
        count += len(group.members)
        unusable += sum(not member.requests for member in group.members)
        asked = group.requests(plan.packed, llm) or group.alone
        missing = llm.missing(asked)
        calls += len(missing)
        cached += len(asked) - len(missing)
        prompt_bytes += sum(map(_size, missing))
        answers += sum(request.parts for request in missing)
    prompt_tokens = prompt_bytes // _BYTES_A_TOKEN
    completion_tokens = answers * plan.personas_a_call * _TOKENS_A_PERSONA
    cost = llm.price.cost(prompt_tokens, completion_tokens) if llm.price else None
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
    """The body of the first request of a run, as it would be sent.

    Raises:
        DataError: there is no row to ask about.
    """
    problem = "there are no rows."
    for group in groups(rows, plan):
        if asked := group.requests(plan.packed, llm) or group.alone:
            return llm.first_request(asked[0])
        problem = f"no row can be asked about; {group.members[0].row.error}"
    raise DataError(problem)


def _size(request: Request) -> int:
    return sum(len(m.content.encode()) for m in (*request.prefix, *request.messages))
