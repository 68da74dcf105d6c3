"""`make demo` from an empty cache: its seconds, beside how fast the engine decodes on this machine.

`python benchmarks/demo.py` runs examples/demo.py in a process of its own. Before and after it, the bare
engine decodes 128 tokens after a prompt that it knows, one request at a time: a lone timing says nothing of
the machine. The demo also reads prompts and decodes after long ones, which another machine may be faster or
slower at by another factor: only a run there says how long it takes there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama

DEMO = Path(__file__).parent.parent / "examples/demo.py"
PLAIN = {"prompt": "Once upon a time", "n_predict": 128, "ignore_eos": True, "temperature": 0}


def decoding_speed(times: int = 3) -> float:
    """Tokens a second of the bare engine, one request at a time; the median."""
    with llama.running() as address:
        llama.post(address, "/completion", PLAIN)
        replies = [llama.post(address, "/completion", PLAIN) for _ in range(times)]
    return statistics.median(reply["timings"]["predicted_per_second"] for reply in replies)


def measure() -> dict[str, Any]:
    """Seconds of the demo, what it said last, and the engine's speed before and after."""
    before = decoding_speed()
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, DEMO],
            env={**os.environ, "PERSONAINFER_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
    after = decoding_speed()
    said = [
        line
        for line in done.stdout.splitlines()
        if line.startswith("By SmolLM2") or "cache." in line
    ]
    return {
        "seconds": seconds,
        "tokens_per_second": (before, after),
        "said": said,
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
