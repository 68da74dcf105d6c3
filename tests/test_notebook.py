"""Inside a real Jupyter kernel, whose event loop runs already."""

from __future__ import annotations

import json
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from personainfer.testing import FakeLLM

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"

client = pytest.importorskip("jupyter_client", reason="jupyter-client is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")


@pytest.mark.heavy
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


@pytest.mark.heavy  # the embedded model takes its time
def test_the_quickstart_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads(QUICKSTART.read_text(encoding="utf-8"))["cells"]
    manager, kernel = client.manager.start_new_kernel(cwd=str(tmp_path))
    try:
        shown = [run(kernel, "".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
    assert shown[1]["text/plain"].startswith("CostEstimate(")
    assert "How do I get better at chess?" in shown[2]["text/html"]
    assert "vaccine" in shown[4]["text/html"]
    assert shown[5]["text/plain"] == "(0, 3)"
    assert "image/png" in shown[6]
    assert "quickstart.html" in shown[7]["text/html"]
    assert [one["stderr"] for one in shown if "IProgress" in one.get("stderr", "")] == []


def test_the_quickstart_is_kept_with_its_outputs() -> None:
    """Those who read it on the web see personas, both responses, a plot, and no warning."""
    cells = json.loads(QUICKSTART.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    text = json.dumps(code[2]["outputs"])
    assert "The user is" in text
    assert "Solve ten puzzles a day" in text
    assert "Study classic games" in text
    assert "image/png" in json.dumps(code[6]["outputs"])
    assert "stderr" not in json.dumps([cell["outputs"] for cell in code])


@pytest.mark.heavy
def test_no_warning_where_a_notebook_has_no_widgets() -> None:
    from personainfer.observability import _bar_class

    manager, kernel = client.manager.start_new_kernel()
    try:
        hidden = "import sys; sys.modules['ipywidgets'] = None\n"
        told = run(
            kernel, hidden + "import personainfer.observability as p; p._bar_class().__module__"
        )
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
    assert told["text/plain"] == "'tqdm.std'"
    assert "stderr" not in told
    assert _bar_class().__module__ == "tqdm.std"


def run(kernel: Any, code: str) -> dict[str, str]:
    """What one cell displays, and its "stderr"; an exception in it fails the test."""
    identity = kernel.execute(code)
    shown: dict[str, str] = {}
    while True:
        try:
            message = kernel.get_iopub_msg(timeout=800)
        except Empty:
            pytest.fail(f"no answer to {code!r}")
        if message["parent_header"].get("msg_id") != identity:
            continue
        content = message["content"]
        if message["msg_type"] == "error":
            pytest.fail("\n".join(content["traceback"]))
        if message["msg_type"] in ("execute_result", "display_data"):
            shown |= content["data"]
        if message["msg_type"] == "stream" and content["name"] == "stderr":
            shown["stderr"] = shown.get("stderr", "") + content["text"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return shown
