"""xllamacpp's server with the embedded model, as its own documentation would have one start it.

`python benchmarks/llama.py [MODEL]` prints its address and serves until stdin closes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SLOTS = 8
CONTEXT = 4096  # tokens a slot


def serve(model: str = "local") -> None:
    """Serve until stdin closes."""
    import xllamacpp

    from personainfer.local.weights import find_weights

    params = xllamacpp.CommonParams()
    params.model.path = str(find_weights(model).path())
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@contextmanager
def running(model: str = "local") -> Iterator[str]:
    """The server in a process of its own; yields its address."""
    with subprocess.Popen(
        [sys.executable, __file__, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("http"):
                    break
            yield line.strip()
        finally:
            process.stdin.close()


def post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request to it."""
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        reply: dict[str, Any] = json.load(response)
        return reply


if __name__ == "__main__":
    serve(*sys.argv[1:])
