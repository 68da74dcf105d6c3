"""`AddPersonas` under real loaders, some of them in processes of their own: 1,000 rows each.

All rows come back in order, each pair is called once, and the model is opened once a process.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer import AddPersonas
from personainfer.personas import loaders
from personainfer.testing import FakeLLM

from ..builders import pairs

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
ROWS = 1_000


models_before: set[int] = set()  # ids of those that other libraries keep since tests before


def living_models() -> list[pi.LLM]:
    return [o for o in gc.get_objects() if type(o) is pi.LLM]


class Watched:
    """Adds the process, and how many models and event loops it has, to what `AddPersonas` adds.

    It asks the garbage collector, which knows of models that nobody shares.
    """

    def __init__(self, add: AddPersonas) -> None:
        self.add = add

    def __call__(self, batch: Any) -> Any:
        made = self.add(batch)
        loops = [thread for thread in threading.enumerate() if thread.name == "personainfer"]
        models = [one for one in living_models() if id(one) not in models_before]
        about = {"pid": os.getpid(), "models": len(models), "loops": len(loops)}
        if isinstance(made, list):
            return [{**row, **about} for row in made]
        for name, value in about.items():
            made[name] = [value] * len(made["prompt"])
        return made


def data() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"n": n, **pair} for n, pair in enumerate(pairs(ROWS))]
    rows[700]["rejected"] = ""  # an error that comes late, where none came before
    return rows


def check(rows: list[dict[str, Any]], llm: FakeLLM, processes: int) -> None:
    assert [row["n"] for row in rows] == list(range(ROWS))
    assert [row["prompt"] for row in rows] == [f"Question {n}?" for n in range(ROWS)]
    assert [n for n in range(ROWS) if rows[n]["persona_error"] is not None] == [700]
    assert (llm.calls, llm.repeats) == (ROWS - 1, 0)
    here = pi.infer_personas(data(), "fake", api_base=llm.api_base)
    assert [row["chosen_persona"] for row in rows] == [
        row.chosen and str(row.chosen) for row in here
    ]
    assert len({row["pid"] for row in rows}) == processes
    assert {(row["models"], row["loops"]) for row in rows} == {(1, 1)}


@pytest.fixture(autouse=True)
def no_other_models() -> None:
    """Those of tests before must not be counted."""
    loaders._llms.clear()
    gc.collect()
    models_before.clear()
    models_before.update(map(id, living_models()))


@pytest.fixture
def hf() -> Any:
    """Hugging Face datasets, quiet."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("form", [None, "numpy", "pandas", "polars", "arrow"])
def test_datasets_map_in_each_format(
    hf: Any, form: str | None, llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    """The error comes after the first 200 rows: its column must not have become one of nulls."""
    dataset = hf.Dataset.from_list(data()).with_format(form)
    made = dataset.map(AddPersonas(**endpoint), batched=True, batch_size=200, writer_batch_size=200)
    rows = made.with_format(None).to_list()
    assert [row["n"] for row in rows] == list(range(ROWS))
    assert [n for n in range(ROWS) if rows[n]["persona_error"] is not None] == [700]
    assert (llm.calls, llm.repeats) == (ROWS - 1, 0)


@pytest.mark.parametrize("processes", [1, 2])
def test_datasets_map(hf: Any, processes: int) -> None:
    """With a key, which is in what other processes are sent, but not in the fingerprint."""
    dataset = hf.Dataset.from_list(data())
    with FakeLLM(api_key="a-key") as llm:
        made = dataset.map(
            Watched(AddPersonas("fake", api_base=llm.api_base, api_key="a-key")),
            batched=True,
            batch_size=100,
            num_proc=None if processes == 1 else processes,
        )
        assert made.features["persona_error"].dtype == "string"
        check(made.to_list(), llm, processes)


def test_datasets_stream(hf: Any, llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    stream = hf.Dataset.from_list(data()).to_iterable_dataset(num_shards=4)
    made = stream.map(Watched(AddPersonas(**endpoint)), batched=True, batch_size=100)
    first = next(iter(made))
    assert first["n"] == 0
    assert llm.calls == 100  # no more than what was looked at
    check(list(made), llm, 1)


def test_a_stream_of_arrow_can_be_written(
    hf: Any,
    llm: FakeLLM,
    endpoint: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the guide says: of Python values datasets takes a column without any error for one of nulls."""
    monkeypatch.setattr(hf.config, "DEFAULT_MAX_BATCH_SIZE", 200)  # rows that it looks at together
    stream = hf.Dataset.from_list(data()).to_iterable_dataset().with_format("arrow")
    made = stream.map(AddPersonas(**endpoint), batched=True, batch_size=100)
    made.to_parquet(tmp_path / "personas.parquet")
    rows = hf.Dataset.from_parquet(
        str(tmp_path / "personas.parquet"), cache_dir=str(tmp_path / "hf")
    ).to_list()
    assert [row["n"] for row in rows] == list(range(ROWS))
    assert [n for n in range(ROWS) if rows[n]["persona_error"] is not None] == [700]
    assert (llm.calls, llm.repeats) == (ROWS - 1, 0)


def test_columns_that_are_not_needed_are_not_decoded(
    hf: Any, llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    rows = {name: [row[name] for row in pairs(20)] for name in pairs(1)[0]}
    broken = [{"bytes": b"no image", "path": None}] * 20
    features = hf.Features({name: hf.Value("string") for name in rows} | {"image": hf.Image()})
    dataset = hf.Dataset.from_dict({**rows, "image": broken}, features=features)
    made = dataset.map(AddPersonas(**endpoint), batched=True)
    assert made.remove_columns("image")[19]["chosen_persona"].startswith("The user is")
    assert made.features["image"] == hf.Image()
    assert llm.calls == 20


_MAP = """
import json, sys
if sys.argv[3] == "datasets first":
    import datasets
from personainfer import AddPersonas
from personainfer.personas import loaders
if sys.argv[3] == "as a model":
    import personainfer
    model = personainfer.LLM("fake", api_base=sys.argv[1], api_key=sys.argv[4])
    add = AddPersonas(model, **json.loads(sys.argv[5]))
else:
    add = AddPersonas("fake", api_base=sys.argv[1], api_key=sys.argv[4], **json.loads(sys.argv[5]))
import datasets
datasets.disable_progress_bars()
data = datasets.load_dataset("parquet", data_files=sys.argv[2], split="train")
made = data.map(add, batched=True)
streamed = data.to_iterable_dataset().map(add, batched=True)
print(json.dumps([made._fingerprint, len(made), add.llm.usage.calls + add.llm.usage.cached]))
"""


def test_the_cache_of_datasets_is_hit_by_other_processes(
    llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(pairs(30)), tmp_path / "pairs.parquet")

    def run(order: str, key: str, options: dict[str, Any]) -> tuple[str, int]:
        """The fingerprint, and how many rows were asked about, or looked up in our own cache."""
        run = subprocess.run(
            [
                *(sys.executable, "-c", textwrap.dedent(_MAP), llm.api_base),
                *(tmp_path / "pairs.parquet", order, key, json.dumps(options)),
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_OFFLINE": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        fingerprint, count, asked = json.loads(run.stdout.splitlines()[-1])
        assert count == 30
        return fingerprint, asked

    first, asked = run("datasets first", "a key", {})
    assert (asked, llm.calls) == (30, 30)
    assert run("datasets first", "a key", {}) == (first, 0)
    assert run("datasets last", "another key", {}) == (first, 0)
    other, asked = run("datasets last", "a key", {"protocol": "separate"})
    assert (other != first, asked) == (True, 60)
    model, asked = run("as a model", "a key", {})
    assert asked == 30  # as other options, but found in our own cache
    assert run("as a model", "another key", {}) == (model, 0)
    assert llm.calls == 90


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_data_loader(start: str | None, llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    from torch.utils.data import DataLoader

    add = AddPersonas(**endpoint)
    assert len(add(pairs(1))) == 1  # with connections and a thread before any fork
    loader: Any = DataLoader(
        data(),
        batch_size=50,
        collate_fn=Watched(add),
        num_workers=0 if start is None else 2,
        multiprocessing_context=multiprocessing.get_context(start) if start else None,
    )
    rows = [row for batch in loader for row in batch]
    check(rows, llm, 1 if start is None else 2)


def test_pandas_chunks(llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame(data()).to_csv(tmp_path / "pairs.csv", index=False)
    add = Watched(AddPersonas(**endpoint))
    with pd.read_csv(tmp_path / "pairs.csv", chunksize=100) as chunks:
        made = pd.concat([add(chunk) for chunk in chunks])
    assert list(made.index) == list(range(ROWS))
    rows = made.astype(object).where(made.notna(), None).to_dict("records")
    check(rows, llm, 1)


def test_polars_lazy_frames(llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path) -> None:
    """Streamed: polars calls it with one morsel after another, from threads of its own."""
    import polars as pl

    pl.DataFrame(data()).write_parquet(tmp_path / "pairs.parquet", row_group_size=100)
    add = AddPersonas(**endpoint)
    lazy = pl.scan_parquet(tmp_path / "pairs.parquet")
    schema: Any = {**lazy.collect_schema(), **dict.fromkeys(AddPersonas.columns, pl.String)}
    plan = lazy.map_batches(add, schema=schema, streamable=True)
    plan.sink_parquet(tmp_path / "personas.parquet")
    watched = Watched(lambda batch: batch)({"prompt": [""]})  # type: ignore[arg-type]
    about = {name: values[0] for name, values in watched.items() if name != "prompt"}
    made = pl.read_parquet(tmp_path / "personas.parquet")
    check([{**row, **about} for row in made.to_dicts()], llm, 1)
