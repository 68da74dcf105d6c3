"""Resident memory while a million synthetic rows stream through `iter_personas`, cache on.

`python benchmarks/memory.py [--rows 1000000] [--warm]`. Reads /proc, so it needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "contenders"))

import server  # noqa: E402
from contest import pair  # noqa: E402

import personainfer as pi  # noqa: E402

MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)  # parts of the stream at which memory is noted
EVERY = 1_000  # rows between two looks


def resident() -> float:
    """Megabytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(rows: int = 1_000_000, warm: bool = False) -> dict[str, Any]:
    """Megabytes at the marks and at most, and rows a second; `warm` streams a second time."""
    # One server for both: its address is part of what a reply is kept under.
    with (
        tempfile.TemporaryDirectory(prefix="personainfer-bench-") as folder,
        server.running() as api_base,
    ):
        found = _stream(rows, folder, api_base)
        again = _stream(rows, folder, api_base) if warm else None
        if again and again["calls"]:
            raise RuntimeError(f"{again['calls']} calls where every row should come from disk")
        return {"cold": found, "warm": again}


def _stream(rows: int, cache_dir: str, api_base: str) -> dict[str, Any]:
    marks = {int(rows * part): f"{part:.0%}" for part in MARKS}
    at: dict[str, float] = {}
    most, filled, start = 0.0, 0, time.perf_counter()
    stream = pi.iter_personas(
        map(pair, range(rows)),
        "fake",
        api_base=api_base,
        api_key="none",
        max_concurrency=64,
        cache_dir=cache_dir,
    )
    with stream:
        for number, row in enumerate(stream, 1):
            filled += row.chosen is not None and row.rejected is not None
            if number % EVERY == 0 or number in marks:
                now = resident()
                most = max(most, now)
                if number in marks:
                    at[marks[number]] = round(now, 1)
                    print(f"{number:,} rows: {now:.0f} MB", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - start
    if filled != rows:
        raise RuntimeError(f"only {filled} of {rows} rows got both personas")
    calls = stream.usage.calls
    return {
        "rows": rows,
        "calls": calls,
        "mb": at,
        "most_mb": round(most, 1),
        "rate": rows / seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--warm", action="store_true", help="stream again, from the cache")
    options = parser.parse_args()
    print(json.dumps(measure(options.rows, options.warm), indent=1))
