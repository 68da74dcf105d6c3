"""Inside a real Jupyter kernel, whose event loop runs already."""

from __future__ import annotations

from queue import Empty
from typing import Any

import pytest

from personainfer.testing import FakeLLM

client = pytest.importorskip("jupyter_client", reason="jupyter-client is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")


def test_calls_work_in_a_cell_and_are_awaited_at_top_level() -> None:
    cells = [
        "import personainfer as pi; rows = [('Why?', f'short {n}', f'long {n}') for n in range(9)]",
        "table = pi.infer_personas(rows, 'fake', api_base=BASE); len(table)",
        "again = await pi.ainfer_personas(rows, 'fake', api_base=BASE); again.usage.cached",
        "table",
    ]
    manager, kernel = client.manager.start_new_kernel()
    try:
        with FakeLLM() as server:
            results = [run(kernel, f"BASE = {server.api_base!r}")]
            results += [run(kernel, cell) for cell in cells]
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
    assert results[2]["text/plain"] == "9"
    assert results[3]["text/plain"] == "9"
    assert "<table>" in results[4]["text/html"]


def run(kernel: Any, code: str) -> dict[str, str]:
    """The display data of one cell; an exception in it fails the test."""
    identity = kernel.execute(code)
    shown: dict[str, str] = {}
    while True:
        try:
            message = kernel.get_iopub_msg(timeout=60)
        except Empty:
            pytest.fail(f"no answer to {code!r}")
        if message["parent_header"].get("msg_id") != identity:
            continue
        content = message["content"]
        if message["msg_type"] == "error":
            pytest.fail("\n".join(content["traceback"]))
        if message["msg_type"] == "execute_result":
            shown = content["data"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return shown
