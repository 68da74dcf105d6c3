"""What the tests share: a loopback model, and a cache directory of their own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tenacity
from hypothesis import settings

from personainfer import retrying
from personainfer.testing import FakeLLM

from .batch_server import BatchServer

# A machine that is busy for a moment is no failure of what is tested. The light suite draws a quarter of
# the examples that the whole suite draws.
settings.register_profile("whole", deadline=None)
settings.register_profile("light", deadline=None, max_examples=25)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("light" if config.option.markexpr == "not heavy" else "whole")


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads the user's cache, keys or model, or what another one wanted logged."""
    monkeypatch.setenv("PERSONAINFER_CACHE_DIR", str(tmp_path / "cache"))
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name == "PERSONAINFER_MODEL":
            monkeypatch.delenv(name)
    yield
    logging.getLogger("personainfer").setLevel(logging.NOTSET)


@pytest.fixture
def llm() -> Iterator[FakeLLM]:
    """A model on loopback that answers at once."""
    with FakeLLM() as server:
        yield server


@pytest.fixture
def endpoint(llm: FakeLLM) -> dict[str, Any]:
    """The arguments that send a call to `llm`."""
    return {"model": "fake", "api_base": llm.api_base}


@pytest.fixture
def provider(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[BatchServer]:
    """A provider with a batch API in front of `llm`; steps that fail are repeated without a wait."""
    monkeypatch.setattr(retrying, "_backoff", tenacity.wait_none())
    with BatchServer(llm) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder, beside the cache."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder
