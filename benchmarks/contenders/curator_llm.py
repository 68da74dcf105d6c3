"""bespokelabs-curator: its litellm backend, one call a row, replies in its working directory."""

import os
from pathlib import Path
from typing import Any

from contest import Rows, Task, compete, user_message

os.environ["CURATOR_VIEWER"] = "0"
from bespokelabs import curator
from pydantic import BaseModel


class OnePersona(BaseModel):
    evidence: str
    trait: str
    preference: str


class BothPersonas(BaseModel):
    person_1: OnePersona
    person_2: OnePersona


class Personas(curator.LLM):
    """One row in, one row out."""

    prefix: list[dict[str, str]]

    def prompt(self, row: dict[str, Any]) -> list[dict[str, str]]:
        return [*self.prefix, {"role": "user", "content": row["message"]}]

    def parse(self, row: dict[str, Any], response: BothPersonas) -> dict[str, str]:
        return {"chosen": response.person_1.trait, "rejected": response.person_2.trait}


def run(task: Task, rows: Rows, cache_dir: str) -> int:
    """Generate a data set."""
    llm = Personas(
        model_name="openai/gpt-4o-mini",  # a name that litellm knows to take a schema
        response_format=BothPersonas,
        backend="litellm",
        generation_params={"temperature": 0.0, "max_tokens": 500},
        backend_params={
            "base_url": task["api_base"],
            "api_key": "none",
            "max_concurrent_requests": task["concurrency"],
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 10_000_000_000,
        },
    )
    llm.prefix = task["prefix"]
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    data = [{"message": user_message(task, row)} for row in rows]
    made = llm(data, working_dir=cache_dir)
    made = getattr(made, "dataset", made)
    return sum(bool(row["chosen"] and row["rejected"]) for row in made)


compete(run)
