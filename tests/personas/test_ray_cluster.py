"""examples/ray_infer.py on a Ray cluster of two nodes: workers and drivers die in the middle."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import personainfer as pi
from personainfer.testing import FakeLLM

from ..builders import pairs

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
ROWS = 1_000
IN_FLIGHT = 8  # calls, of both workers together
WAIT = 300  # seconds at most, for what takes ten or thirty

_WAIT_FOR_NODES = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.1)
"""


def environment() -> dict[str, str]:
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return {**os.environ, **settings, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a node that was started here; it ends what it started."""
    import psutil

    parts = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(WAIT)
    except subprocess.TimeoutExpired:
        process.kill()
    for part in parts:
        if part.is_running():
            part.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of two nodes, and their processes; each has a loopback address of its own."""
    address = f"127.0.0.1:{free_port()}"
    node: list[str | Path] = [
        RAY,
        "start",
        "--block",
        "--num-cpus=4",
        "--object-store-memory=100000000",
    ]
    with ExitStack() as stack:
        # Sockets lie there, whose paths may not be long.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
        head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"]
        head += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
        nodes = []
        for options in (head, [f"--address={address}", "--node-ip-address=127.0.0.2"]):
            process = subprocess.Popen(
                [*node, *options],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(stop, process)
            nodes.append(process)
        subprocess.run(
            [sys.executable, "-c", _WAIT_FOR_NODES, address],
            env=environment(),
            check=True,
            capture_output=True,
            timeout=WAIT,
        )
        yield address, nodes


def workers_of(node: subprocess.Popen[bytes]) -> list[Any]:
    """The processes of a node that infer."""
    import psutil

    found = []
    for process in psutil.Process(node.pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended by now
            if "AddPersonas" in "".join(process.cmdline()):
                found.append(process)
    return found


def input_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"id": n, **pair} for n, pair in enumerate(pairs(ROWS))]
    rows[7]["rejected"] = ""
    return rows


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four Parquet files."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = input_rows()
    for start in range(0, ROWS, 250):
        table = pa.Table.from_pylist(rows[start : start + 250])
        pq.write_table(table, folder / f"{start}.parquet")
    return folder


class Job:
    """The example as a process."""

    def __init__(self, address: str, source: Path, output: Path, llm: FakeLLM, cache: Path) -> None:
        options: dict[str, Any] = {
            "model": "fake",
            "api-base": llm.api_base,
            "address": address,
            "workers": 2,
            "max-concurrency": IN_FLIGHT,
            "rpm": 1e6,
            "batch-size": 100,
            "cache-dir": cache,
        }
        self.process = subprocess.Popen(
            [
                *(sys.executable, ROOT / "examples" / "ray_infer.py", source, output),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self) -> None:
        printed, _ = self.process.communicate(timeout=WAIT)
        assert self.process.returncode == 0, printed[-4_000:]


class Middle:
    """Replies as always, and at call number `at` lets somebody do something first."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, body: dict[str, Any]) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.reached.set()
            self.go.wait(WAIT)

    def meanwhile(self, action: Callable[[], object]) -> None:
        assert self.reached.wait(WAIT)
        try:
            action()
        finally:
            self.go.set()


def check_rows(output: Path) -> None:
    """Every row is there once, with the persona that it gets without Ray."""
    found = pq.read_table(output).sort_by("id").to_pylist()
    rows = input_rows()
    with FakeLLM() as llm:
        table = pi.infer_personas(rows, "fake", api_base=llm.api_base, cache=False)
    assert found == table.to_arrow().to_pylist()
    assert sum(row["persona_error"] is not None for row in found) == 1


def test_a_worker_that_dies_costs_its_calls_in_flight(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], source: Path, tmp_path: Path
) -> None:
    address, nodes = cluster
    middle = Middle(at=300)

    def kill_one() -> None:
        deadline = time.monotonic() + WAIT
        while any(len(workers_of(node)) != 1 for node in nodes):  # one on each node
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers_of(nodes[1])[0].kill()

    with FakeLLM(middle, latency=0.005) as llm:
        with Job(address, source, tmp_path / "out", llm, tmp_path / "cache") as job:
            middle.meanwhile(kill_one)
            job.finish()
        assert llm.repeats <= IN_FLIGHT // 2
        assert llm.calls == ROWS - 1 + llm.repeats
        assert llm.in_flight_peak <= IN_FLIGHT
    check_rows(tmp_path / "out")


def test_a_job_that_was_killed_goes_on(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], source: Path, tmp_path: Path
) -> None:
    address, nodes = cluster
    output, middle = tmp_path / "out", Middle(at=600)

    def kill() -> None:
        job.process.kill()
        while any(workers_of(node) for node in nodes):  # Ray ends them
            time.sleep(0.1)

    with FakeLLM(middle, latency=0.005) as llm:
        with Job(address, source, output, llm, tmp_path / "cache") as job:
            middle.meanwhile(kill)
        assert llm.calls < ROWS - 1
        with Job(address, source, output, llm, tmp_path / "cache") as again:
            again.finish()
        assert llm.repeats <= IN_FLIGHT
        assert llm.calls == ROWS - 1 + llm.repeats
        calls = llm.calls
        check_rows(output)
        # It is the ids of what was written that count: here no cache could help.
        with Job(address, source, output, llm, tmp_path / "another cache") as third:
            third.finish()
        assert llm.calls == calls
    check_rows(output)
