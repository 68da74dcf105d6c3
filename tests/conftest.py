"""What the tests share: a loopback model, and a cache directory of their own."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tenacity
import typer.testing
from hypothesis import settings

from personainfer import connections
from personainfer.llm import litellm_transport, rate_limits
from personainfer.testing import FakeLLM

from .batch_server import BatchServer
from .builders import WAYS, reached

# A machine that is busy for a moment is no failure of what is tested. The light suite draws an eighth
# of the examples that the whole suite draws.
settings.register_profile("whole", deadline=None)
settings.register_profile("light", deadline=None, max_examples=12)

_number = count()


def pytest_configure(config: pytest.Config) -> None:
    is_light = config.option.markexpr == "not heavy"
    settings.load_profile("light" if is_light else "whole")
    if is_light:
        # Both take seconds to import. Where torch is installed, datasets would load it with a stream.
        os.environ.setdefault("USE_TORCH", "0")
        litellm_transport._import_litellm = _refuse_litellm
        if "TMPDIR" not in os.environ:
            _keep_files_in_memory()
    # Its runner would build the whole command anew for each call, which takes longer than most commands do.
    runner = vars(typer.testing)
    if "_get_command" in runner:
        runner["_get_command"] = cache(runner["_get_command"])


def _refuse_litellm() -> None:
    raise RuntimeError("the light suite does not wait for litellm: mark this test as heavy")


def _keep_files_in_memory() -> None:
    """Make temporary files in memory, where there is room: a thousand caches wait for no disk."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**31:
        os.environ["TMPDIR"] = str(memory)  # for the processes that tests start, too
        tempfile.tempdir = None


def _import_from_the_end(config: pytest.Config) -> None:
    """Import the modules of tests, the last one first, where another process begins with the first one.

    In a new clone pytest rewrites the asserts of each module, which takes longer than to import it: so each
    of two processes does half of them, and reads what the other one has written.
    """
    root = config.rootpath
    for path in sorted((root / "tests").rglob("test_*.py"), reverse=True):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        with suppress(Exception, pytest.skip.Exception):  # pytest imports it again, and reports it
            importlib.import_module(name)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """The tests themselves are kept for good: the garbage collector need not look through them."""
    gc.disable()
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" and session.config.args == ["tests"]:
        _import_from_the_end(session.config)
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000)  # tests make little garbage that is in cycles
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """What is left is for good, too: pytest would look through it five times, and Python at its end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_environment(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """No test reads the user's cache, keys, model or terminal, or what another one wanted logged.

    None leaves a second event loop to the tests after it: a process has one. The mapping `os.environ` stays
    the same one: `Dataset.map` with processes puts a copy in its place, which what was imported before does
    not read.
    """
    environ = os.environ
    if "tmp_path" in request.fixturenames:
        cache = request.getfixturevalue("tmp_path") / "cache"
    else:  # most tests write no file: what writes to the cache makes its folder
        cache = tmp_path_factory.getbasetemp() / f"cache{next(_number)}"
    monkeypatch.setenv("PERSONAINFER_CACHE_DIR", str(cache))
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name in ("PERSONAINFER_MODEL", "COLUMNS"):
            monkeypatch.delenv(name)
    yield
    os.environ = environ  # noqa: B003
    logging.getLogger("personainfer").setLevel(logging.NOTSET)
    assert [thread.name for thread in threading.enumerate()].count("personainfer") <= 1


@pytest.fixture(autouse=True, scope="session")
def short_pauses() -> Iterator[None]:
    """Pauses before another attempt are a tenth as long, unless an endpoint asks for more."""
    with pytest.MonkeyPatch.context() as patch:
        backoff = tenacity.wait_random_exponential(multiplier=0.05, max=3.0)
        patch.setattr(connections, "_backoff", backoff)
        patch.setattr(rate_limits, "_FIRST_PAUSE", 0.05)
        yield


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """How the endpoints of a test are reached: see `each_way`."""
    with reached(request.param):
        yield request.param


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
    monkeypatch.setattr(connections, "_backoff", tenacity.wait_none())
    with BatchServer(llm) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder, beside the cache."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder
