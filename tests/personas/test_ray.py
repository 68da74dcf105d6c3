"""Ray Data on this machine: models sent to workers that share one cache directory."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import personainfer as pi
from personainfer.exceptions import AuthenticationError
from personainfer.testing import FakeLLM

from ..builders import pairs

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
ROWS = 400


@pytest.fixture(scope="module")
def ray_data() -> Iterator[Any]:
    """Ray Data on a cluster of this machine alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import ray.data

    # More logical CPUs than there are: actors that held them all would starve the tasks that read.
    ray.init(
        address="local",
        num_cpus=4,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


class Asks:
    """What a worker does: it gets a model once, and batch after batch of rows.

    It waits for the other one, or that might find nothing left to do.
    """

    def __init__(self, model: pi.LLM, meeting: Path) -> None:
        self.model, self.meeting = model, meeting
        self.batches = 0
        (meeting / str(os.getpid())).touch()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        while len(list(self.meeting.iterdir())) < 2:
            time.sleep(0.01)
        rows = [
            {name: str(batch[name][place]) for name in ("prompt", "chosen", "rejected")}
            for place in range(len(batch["n"]))
        ]
        table = pi.infer_personas(rows, self.model, progress=False)
        self.batches += 1
        loops = [thread for thread in threading.enumerate() if thread.name == "personainfer"]
        count = len(rows)
        return {
            **batch,
            "chosen_persona": [str(row.chosen) for row in table],
            "rejected_persona": [str(row.rejected) for row in table],
            "error": [row.error or "" for row in table],
            "worker": [os.getpid()] * count,
            "loops": [len(loops)] * count,
            "loop": [loops[0].ident if loops else 0] * count,
            "batches": [self.batches] * count,
        }


def asked(ray_data: Any, model: pi.LLM, count: int) -> list[dict[str, Any]]:
    """The rows as two workers return them, in the order of the input."""
    data = ray_data.from_items([{**pair, "n": n} for n, pair in enumerate(pairs(count))])
    with tempfile.TemporaryDirectory() as meeting:
        made = data.repartition(count // 20).map_batches(
            Asks,
            fn_constructor_args=(model, Path(meeting)),
            batch_size=20,
            compute=ray_data.ActorPoolStrategy(size=2),
        )
        return sorted(made.take_all(), key=lambda row: int(row["n"]))


def test_two_workers_share_the_work_and_one_cache(ray_data: Any, tmp_path: Path) -> None:
    with FakeLLM(latency=0.01) as llm:
        model = pi.LLM("fake", api_base=llm.api_base, cache_dir=tmp_path, max_concurrency=8)
        rows = asked(ray_data, model, ROWS)
        assert (llm.calls, llm.repeats) == (ROWS, 0)
        again = asked(ray_data, model, ROWS)
        assert llm.calls == ROWS  # whichever worker asked first
        here = pi.infer_personas(pairs(ROWS), model)
        assert llm.calls == ROWS
    for found in (rows, again):
        assert [row["n"] for row in found] == list(range(ROWS))
        assert [row["prompt"] for row in found] == [f"Question {n}?" for n in range(ROWS)]
        assert [row["error"] for row in found] == [""] * ROWS
        assert [row["chosen_persona"] for row in found] == [str(row.chosen) for row in here]
        assert [row["rejected_persona"] for row in found] == [str(row.rejected) for row in here]
        workers = {row["worker"] for row in found}
        assert len(workers) == 2
        assert os.getpid() not in workers
    for worker in {row["worker"] for row in rows}:
        own = [row for row in rows if row["worker"] == worker]
        assert max(row["batches"] for row in own) > 1
        assert {row["loops"] for row in own} == {1}
        assert len({row["loop"] for row in own}) == 1  # started by the first batch, and kept
    assert {row["loops"] for row in again} == {0}  # with nothing to send there is none


def test_two_workers_do_not_corrupt_the_cache_they_share(ray_data: Any, tmp_path: Path) -> None:
    """Both write as fast as they can into a directory that neither of them finds made."""
    with FakeLLM() as llm:
        model = pi.LLM("fake", api_base=llm.api_base, cache_dir=tmp_path / "new")
        shutil.rmtree(tmp_path / "new")
        rows = asked(ray_data, model, 2_000)
        assert (llm.calls, llm.repeats) == (2_000, 0)
    assert [row["error"] for row in rows] == [""] * 2_000
    assert len({row["worker"] for row in rows}) == 2
    assert pi.cache_info(tmp_path / "new").replies == 2_000
    with closing(sqlite3.connect(tmp_path / "new" / "cache.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT COUNT(DISTINCT key) FROM Cache").fetchone() == (2_000,)
    assert not list((tmp_path / "new").glob("*broken*"))


class Watched(pi.AddPersonas):
    """It adds the process, and how many models the garbage collector finds in it.

    It waits for the other one, or that might find nothing left to do.
    """

    def __init__(self, *args: Any, meeting: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.meeting = Path(meeting)
        (self.meeting / str(os.getpid())).touch()

    def __call__(self, batch: Any) -> Any:
        while len(list(self.meeting.iterdir())) < 2:
            time.sleep(0.01)
        made = super().__call__(batch)
        models = [o for o in gc.get_objects() if type(o) is pi.LLM]
        for name, value in {"pid": os.getpid(), "models": len(models)}.items():
            if isinstance(made, pa.Table):
                made = made.append_column(name, pa.array([value] * len(made)))
            else:
                made[name] = np.array([value] * len(made["prompt"]))
        return made


@pytest.mark.parametrize("form", ["pyarrow", "pandas", "numpy"])
def test_add_personas_in_each_format(ray_data: Any, form: str, tmp_path: Path) -> None:
    """1,000 rows, written: the error lies in one of several blocks, and files have one schema."""
    data: list[dict[str, Any]] = [{"n": n, **pair} for n, pair in enumerate(pairs(1_000))]
    data[700]["rejected"] = ""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    with FakeLLM(latency=0.001) as llm:
        options: dict[str, Any] = {"model": "fake", "api_base": llm.api_base}
        options["cache_dir"] = str(tmp_path / "cache")
        made = ray_data.from_items(data, override_num_blocks=10).map_batches(
            Watched,
            fn_constructor_kwargs={**options, "workers": 2, "meeting": str(meeting)},
            batch_format=form,
            batch_size=50,
            compute=ray_data.ActorPoolStrategy(size=2),
        )
        made.write_parquet(tmp_path / "out", min_rows_per_file=100)
        assert (llm.calls, llm.repeats) == (999, 0)
        here = pi.infer_personas(data, **options).to_arrow()
    files = [pq.read_table(path) for path in (tmp_path / "out").glob("*.parquet")]
    assert len(files) > 1
    if form == "pyarrow":  # of a pandas or numpy batch Ray takes a column without any text as nulls
        assert all(file.schema.field("persona_error").type == pa.string() for file in files)
    rows = pa.concat_tables(files, promote_options="default").sort_by("n")
    assert rows.select(here.column_names).to_pylist() == here.to_pylist()
    assert len(set(rows["pid"].to_pylist())) == 2
    assert set(rows["models"].to_pylist()) == {1}


def test_an_instance_is_a_function_for_ray(ray_data: Any, llm: FakeLLM, tmp_path: Path) -> None:
    add = pi.AddPersonas("fake", api_base=llm.api_base, cache_dir=str(tmp_path))
    made = ray_data.from_items(pairs(60)).map_batches(add, batch_format="pyarrow", batch_size=20)
    assert all(row["chosen_persona"] for row in made.take_all())
    assert (llm.calls, llm.repeats) == (60, 0)


def test_an_error_of_a_worker_says_here_what_it_said_there(ray_data: Any, tmp_path: Path) -> None:
    context = ray_data.DataContext.get_current()
    context.raise_original_map_exception = True
    with FakeLLM(api_key="right") as llm:
        model = pi.LLM("fake", api_base=llm.api_base, api_key="wrong-key", cache_dir=tmp_path)
        with pytest.raises(AuthenticationError, match="401") as caught:
            asked(ray_data, model, 40)
    assert "wrong-key" not in str(caught.value)
