"""ondine: instructor over litellm, one call a row, with its disk cache."""

import pandas as pd
from contest import Rows, Task, compete, user_message
from ondine import PipelineBuilder
from pydantic import BaseModel


class OnePersona(BaseModel):
    evidence: str
    trait: str
    preference: str


class BothPersonas(BaseModel):
    person_1: OnePersona
    person_2: OnePersona


def run(task: Task, rows: Rows, cache_dir: str) -> int:
    """One pipeline over a frame of finished messages."""
    shared = "\n\n".join(message["content"] for message in task["prefix"])
    data = pd.DataFrame({"message": [user_message(task, row) for row in rows]})
    columns = ["person_1", "person_2"]
    pipeline = (
        PipelineBuilder.create()
        .from_dataframe(data, input_columns=["message"], output_columns=columns)
        .with_prompt("{message}")
        .with_jinja2(False)
        .with_system_prompt(shared)
        .with_llm(
            provider="openai_compatible",
            model="fake",
            base_url=task["api_base"],
            api_key="none",
            max_tokens=500,
        )
        .with_structured_output(BothPersonas, mode="json_schema")
        .with_concurrency(task["concurrency"])
        .with_disk_cache(cache_dir)
        .with_checkpoint_dir(cache_dir + "-checkpoints")
        .build()
    )
    table = pipeline.execute().data
    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame(list(table))
    return int((frame[columns].notna() & (frame[columns].astype(str) != "")).all(axis=1).sum())


compete(run)
