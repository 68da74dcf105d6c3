"""What every contender is given and gives back; standard library only, it runs in every environment.

A contender is a script that is called with the path of a task and prints one line of JSON. It defines
`run(task, rows, cache_dir) -> number of rows that got both personas`, and is called once untimed with
a few rows, so that imports and first connections are not measured.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# No contender may reach anything outside this machine: no telemetry, no price lists, no hub.
os.environ |= {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "none",
    "HF_HUB_OFFLINE": "1",
    "TELEMETRY_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "127.0.0.1",
}
WARM_UP = 64


class LocalSocket(socket.socket):
    """A socket that connects to loopback only, in this process and in those it forks."""

    def connect(self, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise ConnectionRefusedError(f"a benchmark connects to loopback only, not {address}")
        super().connect(address)


LOOPBACK = ("127.0.0.1", "::1", "localhost")
socket.socket = LocalSocket  # type: ignore[misc]

Task = dict[str, Any]
Rows = list[dict[str, str]]


def pairs(count: int, first: int = 0) -> Rows:
    """Synthetic preference pairs, all different, of about the length of real ones."""
    return [pair(number) for number in range(first, first + count)]


def pair(number: int) -> dict[str, str]:
    """One of them."""
    return {
        "prompt": f"Question {number}: how should I plan the next {number % 28 + 2} days of training,"
        " when work leaves me about an hour each evening?",
        "chosen": f"Plan {number}: run on Monday, Wednesday and Saturday, rest on the other days, and"
        " write down one number each evening. That is all you need for the first weeks; the rest can"
        " wait until the habit holds without effort.",
        "rejected": f"It depends on what limits you (case {number}). Aerobic capacity grows with easy"
        " volume, tolerance with load that rises slowly, and motivation with variety. Think about"
        " which of the three is your bottleneck, test it for a week, and then adjust the plan.",
    }


def compete(run: Callable[[Task, Rows, str], int]) -> None:
    """Read the task, warm up, time one run, print what came of it."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows = pairs(task["rows"])
    run(task, pairs(WARM_UP, first=10**7), task["cache_dir"] + "-warm-up")
    before = _most_memory()
    start, cpu = time.perf_counter(), time.process_time()
    filled = run(task, rows, task["cache_dir"])
    found = {
        "rows": len(rows),
        "filled": filled,
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "memory": _most_memory() - before,
    }
    print(json.dumps(found))


def _most_memory() -> int:
    """The most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def user_message(task: Task, row: dict[str, str]) -> str:
    """The turn that shows one pair."""
    message: str = task["pair"]
    for name in ("prompt", "chosen", "rejected"):
        message = message.replace(f"[{name}]", row[name])
    return message


def is_filled(text: str | None) -> bool:
    """Whether a reply holds both personas."""
    reply = json.loads(text or "{}")
    return all(reply[person]["trait"] for person in ("person_1", "person_2"))
