"""personainfer by its public API, both personas of each row, every reply on disk before it counts."""

from contest import Rows, Task, compete

import personainfer as pi


def run(task: Task, rows: Rows, cache_dir: str) -> int:
    """Infer a table; the second run of one cache directory reads every row from disk."""
    table = pi.infer_personas(
        rows,
        task["model"],
        api_base=task["api_base"],
        api_key="none",
        max_concurrency=task["concurrency"],
        cache_dir=cache_dir,
        exemplars=task["exemplars"],
        progress=False,
    )
    if task["warm"] and table.usage.calls and len(rows) == task["rows"]:
        raise RuntimeError(f"{table.usage.calls} calls in a run that should have made none")
    return sum(row.chosen is not None and row.rejected is not None for row in table)


compete(run)
