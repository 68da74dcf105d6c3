"""distilabel: one text-generation step over the OpenAI SDK; its replies are plain text."""

import logging

from contest import Rows, Task, compete, is_filled, user_message
from distilabel.models.llms import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

logging.disable(logging.INFO)


def run(task: Task, rows: Rows, cache_dir: str) -> int:
    """One pipeline; each of its steps is a process, and starting them is part of the run."""
    shared = "\n\n".join(message["content"] for message in task["prefix"])
    data = [{"instruction": user_message(task, row)} for row in rows]
    with Pipeline(name="personas", cache_dir=cache_dir) as pipeline:
        load = LoadDataFromDicts(data=data, batch_size=task["concurrency"])
        llm = OpenAILLM(
            model="fake",
            base_url=task["api_base"],
            api_key="none",
            generation_kwargs={"temperature": 0.0, "max_new_tokens": 500},
        )
        ask = TextGeneration(llm=llm, system_prompt=shared, input_batch_size=task["concurrency"])
        load >> ask
    made = pipeline.run(use_cache=True)["default"]["train"]
    return sum(is_filled(text) for text in made["generation"])


# Its steps are started by multiprocessing: a child must not run the contest again.
if __name__ == "__main__":
    compete(run)
