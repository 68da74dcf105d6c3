"""The loop that most people write: instructor over litellm, 64 workers, nothing kept on disk."""

import asyncio
from typing import Any

from contest import Rows, Task, compete, user_message

import instructor  # isort: skip  (after `contest`, which keeps litellm from fetching its prices)
import litellm
from pydantic import BaseModel

litellm.suppress_debug_info = True


class OnePersona(BaseModel):
    evidence: str
    trait: str
    preference: str


class BothPersonas(BaseModel):
    person_1: OnePersona
    person_2: OnePersona


# The default mode, TOOLS, needs a package that a plain install of litellm lacks.
CLIENT = instructor.from_litellm(litellm.acompletion, mode=instructor.Mode.JSON_SCHEMA)


def run(task: Task, rows: Rows, cache_dir: str) -> int:
    """Ask for every row."""
    return asyncio.run(_ask_all(task, rows))


async def _ask_all(task: Task, rows: Rows) -> int:
    replies: list[Any] = [None] * len(rows)
    numbered = iter(enumerate(rows))

    async def work() -> None:
        for index, row in numbered:
            turn = {"role": "user", "content": user_message(task, row)}
            replies[index] = await CLIENT.chat.completions.create(
                model="openai/fake",
                messages=[*task["prefix"], turn],
                response_model=BothPersonas,
                api_base=task["api_base"],
                api_key="none",
                temperature=0.0,
                max_tokens=500,
            )

    await asyncio.gather(*(work() for _ in range(task["concurrency"])))
    return sum(isinstance(reply, BothPersonas) for reply in replies)


compete(run)
