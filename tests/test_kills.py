"""Operations that write are killed at every write: what is left is whole, and the next call goes on."""

from __future__ import annotations

import multiprocessing
import platform
import sys
from pathlib import Path

import pytest

from personainfer.testing import FakeLLM

from .batch_server import BatchServer
from .kill_operations import OPERATIONS, Report, try_every_point

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="only Linux tells what a process writes",
)


def killed(name: str, place: Path) -> Report:
    """The report on an operation, from a process that has no threads."""
    with FakeLLM() as llm, BatchServer(llm) as provider:
        base = provider.api_base if name in ("submit", "collect") else llm.api_base
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(try_every_point, (name, base, str(place)))


@pytest.mark.heavy
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_write_leaves_what_is_whole_and_the_next_call_goes_on(
    name: str, place: Path
) -> None:
    report = killed(name, place)
    print(f"{name}: {report.points} points tried, {len(report.violations)} violations")
    assert report.violations == []
    assert report.points >= 5
