"""accrue: one structured call a row over the OpenAI SDK, with its input-hash cache."""

from accrue import EnrichmentConfig, LLMStep, Pipeline
from contest import Rows, Task, compete, user_message
from pydantic import BaseModel


class OnePersona(BaseModel):
    evidence: str
    trait: str
    preference: str


class BothPersonas(BaseModel):
    person_1: OnePersona
    person_2: OnePersona


def run(task: Task, rows: Rows, cache_dir: str) -> int:
    """One step with two fields; its system prompt is the text that all contenders share."""
    shared = "\n\n".join(message["content"] for message in task["prefix"])
    fields = {"person_1": "who would prefer Response 1", "person_2": "who would prefer Response 2"}
    step = LLMStep(
        "personas",
        fields=fields,
        model="fake",
        base_url=task["api_base"],
        api_key="none",
        temperature=0.0,
        max_tokens=500,
        system_prompt=shared,
        schema=BothPersonas,
        structured_outputs=True,
    )
    config = EnrichmentConfig(
        max_workers=task["concurrency"], cache_dir=cache_dir, enable_progress_bar=False
    )
    data = [{"message": user_message(task, row)} for row in rows]
    result = Pipeline([step]).run(data, config)
    return sum(bool(row["person_1"]["trait"] and row["person_2"]["trait"]) for row in result.data)


compete(run)
