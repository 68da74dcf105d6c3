"""`AddPersonas`: batches of every type come back as the same, whoever hands them out.

The tests with real loaders in other processes are in test_loaders_in_processes.py and test_ray.py.
"""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import personainfer as pi
from personainfer import AddPersonas
from personainfer.exceptions import (
    AuthenticationError,
    DataError,
    InvalidArgumentError,
    ModelError,
    RowsFailedError,
    UnknownOptionError,
)
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import pairs

NEW = ["chosen_persona", "rejected_persona", "persona_error"]
COUNT = 60


def rows_with_numbers(count: int) -> list[dict[str, Any]]:
    return [{"n": n, **pair} for n, pair in enumerate(pairs(count))]


def columns_of(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def arrays_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: pd.Series(v).to_numpy() for name, v in columns_of(rows).items()}


MAKERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "dict": columns_of,
    "arrays": arrays_of,
    "user dict": lambda rows: UserDict(columns_of(rows)),
    "frozen dict": lambda rows: MappingProxyType(columns_of(rows)),
    "rows": list,
    "pandas": pd.DataFrame,
    "polars": pl.DataFrame,
    "arrow": pa.Table.from_pylist,
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """Any batch as rows, with None for what is missing."""
    if isinstance(batch, list):
        return batch
    if isinstance(batch, pa.Table):
        return batch.to_pylist()
    if isinstance(batch, pl.DataFrame):
        return batch.to_dicts()
    if isinstance(batch, pd.DataFrame):
        batch = {name: batch[name].astype(object) for name in batch}
    names = list(batch)
    return [
        {k: None if pd.isna(v) else v for k, v in zip(names, values, strict=True)}
        for values in zip(*(batch[name] for name in names), strict=True)
    ]


@pytest.mark.heavy
@makers
def test_a_batch_comes_back_in_its_type_with_three_columns(
    make: Callable[[Any], Any], llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    rows = rows_with_numbers(COUNT)
    rows[7]["rejected"] = ""
    add = AddPersonas(**endpoint)
    batch = make(rows)
    kinds = {type(batch), dict} if isinstance(batch, MappingProxyType) else {type(batch)}
    made = add(batch)
    assert type(made) in kinds
    found = rows_of(made)
    expected = pi.infer_personas(rows, **endpoint).to_arrow().to_pylist()
    assert found == expected
    assert "rejected is empty" in found[7]["persona_error"]
    assert (llm.calls, llm.repeats) == (COUNT - 1, 0)
    assert rows_of(batch) == rows  # what was handed over is as it was


@makers
def test_a_batch_without_a_bad_row_or_without_rows(
    make: Callable[[Any], Any], endpoint: dict[str, Any]
) -> None:
    add = AddPersonas(**endpoint)
    made = rows_of(add(make(rows_with_numbers(3))))
    assert [row["persona_error"] for row in made] == [None] * 3
    nothing = make(rows_with_numbers(1))
    nothing = (
        {name: values[:0] for name, values in nothing.items()}
        if hasattr(nothing, "items") and not isinstance(nothing, pd.DataFrame)
        else nothing[:0]
    )
    empty = add(nothing)
    assert len(rows_of(empty)) == 0


@pytest.mark.parametrize("name", ["pandas", "polars", "arrow"])
def test_an_empty_frame_has_the_columns(name: str, llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    frame = MAKERS[name](rows_with_numbers(1))[:0]
    made = AddPersonas(**endpoint)(frame)
    names = made.column_names if name == "arrow" else list(made.columns)
    assert names == ["n", "prompt", "chosen", "rejected", *NEW]
    assert llm.calls == 0


def test_the_columns_hold_text_even_where_all_is_well(endpoint: dict[str, Any]) -> None:
    add = AddPersonas(**endpoint)
    rows = rows_with_numbers(2)
    assert add(pa.Table.from_pylist(rows)).schema.field("persona_error").type == pa.string()
    assert add(pl.DataFrame(rows)).schema["persona_error"] == pl.String
    frame = add(pd.DataFrame(rows).astype({"prompt": "string"}))
    assert frame["persona_error"].dtype == pd.StringDtype()
    assert add(pd.DataFrame(rows, dtype=object))["persona_error"].tolist() == [None, None]
    numpy = add(arrays_of(rows))
    assert {type(numpy[name]) for name in NEW} == {np.ndarray}
    assert numpy["n"] is not None
    assert numpy["n"].dtype == np.int64


CONVERSATION: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f"Question {n}?"}],
        "chosen": [{"role": "assistant", "content": f"Short answer {n}."}],
        "rejected": [{"role": "assistant", "content": f"Long answer {n}…"}],
        "tags": ["a"] * n,
    }
    for n in range(4)
]
SHAPED = {name: MAKERS[name] for name in ("dict", "rows", "pandas", "polars", "arrow")}


@pytest.mark.parametrize("make", SHAPED.values(), ids=SHAPED)
def test_conversations_and_columns_of_lists_survive(
    make: Callable[[Any], Any], endpoint: dict[str, Any]
) -> None:
    made = AddPersonas(**endpoint)(make(CONVERSATION))
    found: Any
    if isinstance(made, pd.DataFrame):
        found = made.to_dict("records")
    else:
        found = rows_of(made) if not isinstance(made, dict) else pa.table(made).to_pylist()
    assert [{k: row[k] for k in CONVERSATION[0]} for row in found] == CONVERSATION
    plain = pi.infer_personas(pairs(4), **endpoint)
    assert [row["chosen_persona"] for row in found] == [str(row.chosen) for row in plain]


def test_a_pandas_index_survives(endpoint: dict[str, Any]) -> None:
    frame = pd.DataFrame(pairs(6), index=list("fedcba"))
    chunks = [AddPersonas(**endpoint)(frame[start : start + 4]) for start in (0, 4)]
    made = pd.concat(chunks)
    assert list(made.index) == list("fedcba")
    assert list(made.columns) == ["prompt", "chosen", "rejected", *NEW]
    assert "chosen_persona" not in frame


def test_polars_lazy_frames_know_the_columns_before_any_call(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    lazy = pl.DataFrame(rows_with_numbers(COUNT)).lazy()
    schema: Any = {**lazy.collect_schema(), **dict.fromkeys(AddPersonas.columns, pl.String)}
    plan = lazy.map_batches(AddPersonas(**endpoint), schema=schema).filter(pl.col("n") >= 50)
    assert plan.collect_schema().names() == ["n", "prompt", "chosen", "rejected", *NEW]
    assert llm.calls == 0
    made = plan.select("n", "chosen_persona").collect()
    assert made["n"].to_list() == list(range(50, COUNT))
    assert made["chosen_persona"].null_count() == 0
    assert (llm.calls, llm.repeats) == (COUNT, 0)


def test_other_names_of_columns(endpoint: dict[str, Any]) -> None:
    add = AddPersonas(**endpoint, columns={"prompt": "question"})
    frame = pd.DataFrame(pairs(2)).rename(columns={"prompt": "question"})
    assert list(add(frame)["persona_error"].isna()) == [True, True]
    for batch in (pd.DataFrame(pairs(2)), columns_of(rows_with_numbers(2))):
        with pytest.raises(InvalidArgumentError, match="not a column of the data"):
            add(batch)


# What goes wrong


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"side": "both"}, UnknownOptionError, "sides="),
        ({"output": "x.parquet"}, UnknownOptionError, "output="),
        ({"progress": True}, UnknownOptionError, "progress="),
        ({"sides": "left"}, InvalidArgumentError, "sides='left'"),
        ({"columns": {"question": "q"}}, InvalidArgumentError, "question"),
        ({"max_tokens": 0}, InvalidArgumentError, "max_tokens=0"),
        ({"candidates": 2}, InvalidArgumentError, "select="),
        ({"workers": 0}, InvalidArgumentError, "workers=0"),
        ({"workers": True}, InvalidArgumentError, "workers=True"),
        ({"workers": 9, "max_concurrency": 8}, InvalidArgumentError, "workers=9"),
        ({"api_base": "ftp://x"}, InvalidArgumentError, "api_base"),
    ],
)
def test_a_bad_option_fails_when_it_is_made(
    options: dict[str, Any], error: type[Exception], words: str, llm: FakeLLM
) -> None:
    with pytest.raises(error, match=words):
        AddPersonas(**{"model": "fake", "api_base": llm.api_base, **options})
    assert llm.calls == 0


def test_a_model_has_its_own_options(llm: FakeLLM) -> None:
    model = pi.LLM("fake", api_base=llm.api_base)
    with pytest.raises(InvalidArgumentError, match="rpm"):
        AddPersonas(model, rpm=60)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"prompt": "Why?", "chosen": "Yes.", "rejected": "No."}, "batched=True"),
        (dict.fromkeys(("prompt", "chosen", "rejected"), np.array("Why?")), "batched=True"),
        ({"prompt": ["Why?"], "chosen": ["Yes.", "No."], "rejected": ["No."]}, "lengths"),
        ([("Why?", "Yes.", "No.")], "row 0 of a batch is of type tuple"),
        ("Why?", "type str"),
        (pl.LazyFrame(pairs(1)), "type LazyFrame"),
        ({**columns_of(rows_with_numbers(1)), "persona_error": [""]}, "persona_error already"),
        ([{**pairs(1)[0], "chosen_persona": "me"}], "chosen_persona already"),
    ],
    ids=[
        "one row",
        "one row of arrays",
        "ragged",
        "tuples",
        "text",
        "lazy",
        "taken",
        "taken in a row",
    ],
)
def test_what_is_no_batch_is_refused_before_any_call(
    batch: Any, words: str, llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        AddPersonas(**endpoint)(batch)
    assert llm.calls == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1], "lengths"),
        (iter([1, 2]), "'n' of a batch is one list_iterator"),
        ({"a": 1, "b": 2}, "'n' of a batch is one dict"),
        ({1, 2}, "'n' of a batch is one set"),
        ("ab", "'n' of a batch is one str"),
        (3, "'n' of a batch is one int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_read_may_be_no_column_unless_rows_may_be_dropped(
    values: Any, words: str, llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    batch = {**columns_of(pairs(2)), "n": values}
    with pytest.raises(InvalidArgumentError, match=words):
        AddPersonas(**endpoint, on_error="drop")(batch)
    assert llm.calls == 0
    assert AddPersonas(**endpoint)(batch)["n"] is values


@pytest.mark.parametrize("make", [columns_of, pd.DataFrame, pl.DataFrame, pa.Table.from_pylist])
def test_columns_that_are_no_preference_data(
    make: Callable[[Any], Any], endpoint: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="'question', 'answer'"):
        AddPersonas(**endpoint)(make([{"question": "Why?", "answer": "So."}]))


def test_a_batch_of_bad_rows_alone_costs_only_them(endpoint: dict[str, Any]) -> None:
    """Whole data sets without a prompt are refused; a batch may be the one bad corner of one."""
    add = AddPersonas(**endpoint)
    spoilt = [{"chosen": "Yes.", "rejected": "No."}] * 40
    good = {
        "chosen": "\n\nHuman: Why?\n\nAssistant: So.",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
    }
    for make in (columns_of, pd.DataFrame, list):
        made = rows_of(add(make([*spoilt, good])))
        assert [row["persona_error"] is None for row in made] == [False] * 40 + [True]
    (lone,) = add([{"prompt": "Why?"}])
    assert "no preference data recognised" in lone["persona_error"]
    mixed = add([{"prompt": "Why?"}, pairs(1)[0]])
    assert "'chosen'" in mixed[0]["persona_error"]
    assert mixed[1]["persona_error"] is None


@pytest.mark.parametrize("make", [MAKERS[name] for name in ("dict", "arrays", "rows", "pandas")])
def test_rows_can_be_dropped_or_end_the_run(
    make: Callable[[Any], Any], endpoint: dict[str, Any]
) -> None:
    rows = rows_with_numbers(5)
    rows[1]["chosen"] = rows[3]["chosen"] = ""
    made = rows_of(AddPersonas(**endpoint, on_error="drop")(make(rows)))
    assert [row["n"] for row in made] == [0, 2, 4]
    assert [row["persona_error"] for row in made] == [None] * 3
    with pytest.raises((DataError, RowsFailedError), match="row 1: chosen is empty"):
        AddPersonas(**endpoint, on_error="raise")(make(rows))


@pytest.mark.parametrize("bad", [[1, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize(
    "make",
    [
        lambda values: pd.Series(values, index=[4, 3, 2, 1, 0]),
        lambda values: pd.Series(values, index=list("abcde")),
        lambda values: pd.Series(values, index=[7] * 5),
        lambda values: pd.Index(values),
        lambda values: pd.Categorical(values),
        lambda values: pa.array(values),
        lambda values: pa.chunked_array([values]),
        lambda values: pl.Series(values),
        lambda values: np.array(values),
        lambda values: np.ma.array(values),
        tuple,
    ],
)
def test_rows_are_dropped_by_their_place_whatever_the_columns_are(
    make: Callable[[list[Any]], Any], bad: list[int], endpoint: dict[str, Any]
) -> None:
    rows = rows_with_numbers(5)
    for place in bad:
        rows[place]["chosen"] = ""
    batch = {name: make(values) for name, values in columns_of(rows).items()}
    kept = AddPersonas(**endpoint)(batch)
    dropped = AddPersonas(**endpoint, on_error="drop")(batch)
    left = [place for place in range(5) if place not in bad]
    assert {k: [str(v) for v in values] for k, values in dropped.items()} == {
        k: [str(list(values)[place]) for place in left] for k, values in kept.items()
    }
    assert "None" not in map(str, dropped["chosen_persona"])


def test_a_failed_call_costs_its_row_and_a_refused_key_the_run() -> None:
    with FakeLLM(faults=[Fault.status(400)], api_key="right") as llm:
        options: dict[str, Any] = {"model": "fake", "api_base": llm.api_base, "max_concurrency": 1}
        made = AddPersonas(**options, api_key="right")(columns_of(rows_with_numbers(3)))
        assert [error is None for error in made["persona_error"]] == [False, True, True]
        with pytest.raises(AuthenticationError):
            AddPersonas(**options, api_key="wrong", cache=False)(columns_of(rows_with_numbers(3)))


# One model a process


def test_what_becomes_of_a_dict_later_changes_no_option(endpoint: dict[str, Any]) -> None:
    """Else a worker, which unpickles it, would send other fields than this process."""
    body: dict[str, Any] = {"top_k": 1}
    columns = {"prompt": "question"}
    add = AddPersonas(**endpoint, extra_body=body, columns=columns)
    body["top_k"], columns["prompt"] = 9, "another"
    sent = pickle.loads(pickle.dumps(add))
    for one in (add, sent):
        assert one.llm.options["extra_body"] == {"top_k": 1}
        assert one._options["columns"] == {"prompt": "question"}


def test_equal_options_share_one_model(endpoint: dict[str, Any]) -> None:
    add, other = AddPersonas(**endpoint), AddPersonas(**endpoint, sides="chosen")
    assert add.llm is other.llm  # what is asked may differ; limits and connections do not
    assert add.llm is not AddPersonas(**endpoint, rpm=600).llm
    back = pickle.loads(pickle.dumps(add))
    assert back.llm is add.llm
    made = back(columns_of(rows_with_numbers(4)))
    assert made["persona_error"] == [None] * 4
    assert add.llm.usage.calls == 4


def test_other_keys_headers_and_addresses_are_other_models(llm: FakeLLM) -> None:
    """Their reprs are the same: they show no secret."""
    for name in ("a", "b"):
        add = AddPersonas(
            "fake",
            api_base=f"{llm.api_base}?tenant={name}",
            api_key=f"key-of-{name}",
            extra_headers={"X-Project": f"project-{name}"},
            cache=False,
        )
        add({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]})
    told = [(one["Authorization"], one["X-Project"]) for one in llm.headers]
    assert dict.fromkeys(told) == dict.fromkeys(
        (f"Bearer key-of-{name}", f"project-{name}") for name in "ab"
    )
    assert {path.partition("tenant=")[2] for path in llm.paths} == {"a", "b"}


def test_a_key_that_the_environment_has_now_is_another_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in ("sk-one", "sk-other"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        assert AddPersonas("m", api_base="https://api.openai.com/v1").llm.transport.key == key


def test_a_model_that_is_given_is_used(endpoint: dict[str, Any]) -> None:
    model = pi.LLM(**endpoint, temperature=0.5)
    add = AddPersonas(model)
    assert add.llm is model
    back = pickle.loads(pickle.dumps(add))
    assert back.llm.settings == model.settings
    assert pickle.loads(pickle.dumps(back)).llm is back.llm  # sent on before it was used


@pytest.mark.heavy
def test_threads_share_it(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    add = AddPersonas(**endpoint, max_concurrency=4)
    rows = rows_with_numbers(120)
    made: dict[int, Any] = {}

    def run(start: int) -> None:
        made[start] = add(rows[start : start + 20])

    threads = [threading.Thread(target=run, args=(start,)) for start in range(0, 120, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [row for start in sorted(made) for row in made[start]]
    assert [row["n"] for row in found] == list(range(120))
    assert [row["persona_error"] for row in found] == [None] * 120
    assert (llm.calls, llm.repeats) == (120, 0)
    assert llm.in_flight_peak <= 4


def test_workers_divide_the_limits(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"rpm": 600, "tpm": 90_000, "budget": 3.0, "max_concurrency": 10}
    whole["prices"] = (1.0, 1.0)
    part = AddPersonas(**endpoint, **whole, workers=3).llm
    each = {**whole, "rpm": 200, "tpm": 30_000, "budget": 1.0, "max_concurrency": 3}
    alone = pi.LLM(**endpoint, **each)
    assert part.__getstate__() == alone.__getstate__()
    assert AddPersonas(pi.LLM(**endpoint), workers=4).llm.max_concurrency == 16
    assert pickle.loads(pickle.dumps(AddPersonas(**endpoint, workers=4))).llm.max_concurrency == 16


def test_the_environment_names_the_model_where_it_is_made(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAINFER_MODEL", "fake")
    sent = pickle.dumps(AddPersonas(api_base=llm.api_base))
    monkeypatch.delenv("PERSONAINFER_MODEL")
    assert pickle.loads(sent).llm.model == "fake"


def test_the_key_is_sent_and_not_shown(llm: FakeLLM) -> None:
    add = AddPersonas("fake", api_base=llm.api_base, api_key="my-key")
    assert "my-key" not in repr(add) + repr(add.__getstate__())
    back = pickle.loads(pickle.dumps(add))
    assert back.llm is add.llm


@pytest.mark.parametrize("select", ["Verifier", "Likelihood"])
def test_a_fingerprint_knows_neither_the_key_of_what_selects_nor_that_it_was_used(
    select: str,
) -> None:
    """Or the second map of the same data would not find the first one in Hugging Face's cache."""
    from datasets.fingerprint import Hasher

    def reply(request: Any) -> Reply | None:
        return Reply({"answer": "1"}) if request.get("model") == "critic" else None

    with FakeLLM(reply=reply) as server:

        def made(key: str) -> AddPersonas:
            chooser = getattr(pi, select)("critic", api_base=server.api_base, api_key=key)
            return AddPersonas("fake", api_base=server.api_base, candidates=2, select=chooser)

        add = made("a-key")
        before = Hasher.hash(add)
        assert Hasher.hash(made("another")) == before
        assert "a-key" not in repr(add.__getstate__()["options"]["select"].__getstate__())
        if select == "Verifier":
            back = pickle.loads(pickle.dumps(add))
            for each in (add, back):  # a judge that always says 1 explains nothing
                found = each(rows_with_numbers(2))
                assert all(row["chosen_persona"] is row["persona_error"] is None for row in found)
            assert Hasher.hash(add) == Hasher.hash(back) == before


@pytest.mark.parametrize("select", [None, "Verifier", "Likelihood"])
def test_a_file_that_is_replaced_is_another_model(select: str | None, tmp_path: Path) -> None:
    """A fine-tune may be exported to the same path again."""
    pytest.importorskip("xllamacpp", reason="find_weights needs the engine")
    from datasets.fingerprint import Hasher

    weights = tmp_path / "own.gguf"
    hashes, models = set(), set()
    for content in (b"GGUF one", b"GGUF another"):
        weights.write_bytes(content)
        name = f"local:{weights}"
        if select:
            add = AddPersonas(
                "fake", api_base="http://127.0.0.1:9/v1", select=getattr(pi, select)(name)
            )
        else:
            add = AddPersonas(name)
            assert add.llm is AddPersonas(name).llm
            models.add(add.llm.reached)
        hashes |= {Hasher.hash(add), Hasher.hash(pickle.loads(pickle.dumps(add)))}
    assert len(hashes) == 2
    assert len(models) == (0 if select else 2)


@pytest.mark.heavy
def test_another_address_of_the_environment_is_another_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    made = []
    for port in (1, 2):
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        made.append(AddPersonas("openai/gpt-4o-mini"))
    assert made[0].llm is not made[1].llm
    assert made[0].__getstate__() != made[1].__getstate__()


@pytest.mark.heavy
@pytest.mark.parametrize("carried", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_what_is_copied_or_unpickled_goes_to_no_other_address_of_the_environment(
    carried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with FakeLLM() as here, FakeLLM() as elsewhere:
        monkeypatch.setenv("OPENAI_BASE_URL", here.api_base)
        llm, add = pi.LLM("openai/gpt-4o", cache=False), AddPersonas("openai/gpt-4o", cache=False)
        assert carried(llm).ask([{"role": "user", "content": "hi"}]).text
        assert carried(add).llm.reached == llm.reached
        monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.api_base)
        later = carried(llm)
        assert later.reached == carried(later).reached == llm.reached
        for one in (later, carried(later)):
            with pytest.raises(ModelError, match="names another address"):
                one.ask([{"role": "user", "content": "hello"}])
        with pytest.raises(ModelError, match="names another address"):
            carried(add)({"prompt": ["?"], "chosen": ["a"], "rejected": ["b"]})
        assert elsewhere.calls == 0
        monkeypatch.setenv("OPENAI_BASE_URL", here.api_base)
        assert carried(later).ask([{"role": "user", "content": "hello"}]).text


def judged(*labels: object, names: tuple[str, str] = ("response_1", "response_2")) -> Any:
    first, second = names
    return {
        "prompt": [f"Question {n}?" for n in range(len(labels))],
        first: ["a"] * len(labels),
        second: ["b"] * len(labels),
        "label": list(labels),
    }


@pytest.mark.parametrize("labels", [(1,), (1, 1), (1, 2), (2, 1, 1), (0, 1), (1, 2, 0)])
def test_a_batch_whose_labels_another_batch_could_explain_otherwise_is_refused(
    llm: FakeLLM, labels: tuple[int, ...]
) -> None:
    """Of 0, 1 and 2 a small batch may show 1 and 2 alone, and would be read the wrong way round."""
    with pytest.raises(DataError, match=r"for certain.*labels="):
        AddPersonas("fake", api_base=llm.api_base)(judged(*labels))
    assert llm.calls == 0
    meaning: Any = {0: "first", 1: "second", 2: "tie"}
    add = AddPersonas("fake", api_base=llm.api_base, labels=meaning, cache=False)
    assert len(add(judged(*labels))["chosen_persona"]) == len(labels)


def test_labels_that_explain_themselves_are_read_in_any_batch(llm: FakeLLM) -> None:
    add = AddPersonas("fake", api_base=llm.api_base, cache=False)
    assert add(judged("a", "b"))["persona_error"] == [None, None]
    assert add(judged("response_2"))["persona_error"] == [None]
    many = add(judged(*[1, 2] * 30))
    assert many["persona_error"] == [None] * 60
    card = {"prompt": ["q"], "response_0": ["a"], "response_1": ["b"], "better_response_id": [1]}
    assert add(card)["persona_error"] == [None]


def test_a_small_last_batch_is_read_as_the_first_one_was(llm: FakeLLM) -> None:
    add = AddPersonas("fake", api_base=llm.api_base, cache=False)
    add(judged(*[1, 2] * 30))
    assert add(judged(2, 1))["persona_error"] == [None] * 2
    assert add(judged(2))["persona_error"] == [None]
    for other in (judged(*[0, 1] * 30), judged(0, 1)):  # of another data set
        with pytest.raises(DataError, match="for certain"):
            add(other)
    with pytest.raises(
        DataError, match="for certain"
    ):  # in another process, which has seen nothing
        pickle.loads(pickle.dumps(add))(judged(2, 1))
    choices = {"prompt": ["Which?"], "chosen": ["Option A"], "rejected": ["Option C"]}
    plain = {name: [f"The {name} text"] for name in choices}
    for first in (plain, choices):
        assert add(first)["persona_error"] == [None]


def test_a_last_batch_of_bad_rows_costs_these_alone(llm: FakeLLM) -> None:
    """Names of models are no certain labels where a row lacks a name; no reading gives it a preference."""
    arena = {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "m1"}
    good = pd.DataFrame([{**arena, "model_a": "m1", "model_b": "m2"}] * 9)
    bad = pd.DataFrame([{**arena, "model_a": None, "model_b": "m2"}])
    with pytest.raises(DataError, match="for certain"):
        AddPersonas("fake", api_base=llm.api_base, cache=False)(bad)
    add = AddPersonas("fake", api_base=llm.api_base, cache=False)
    assert add(good)["persona_error"].isna().all()
    assert "'winner'" in add(bad)["persona_error"][0]


def test_a_batch_is_filtered_as_the_whole_would_be(llm: FakeLLM) -> None:
    shp = {"history": ["q"], "human_ref_A": ["a"], "human_ref_B": ["b"], "labels": [1]}
    add = AddPersonas("fake", api_base=llm.api_base, min_votes=10, cache=False)
    assert "min_votes=10" in add({**shp, "score_A": [30], "score_B": [9]})["persona_error"][0]
    assert add({**shp, "score_A": [30], "score_B": [10]})["persona_error"] == [None]
    with pytest.raises(InvalidArgumentError, match="min_votes="):
        add(shp)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_given", [False, True], ids=["of a name", "of an LLM"])
def test_a_fork_and_a_copy_have_what_is_left_of_the_budget(llm: FakeLLM, is_given: bool) -> None:
    options: dict[str, Any] = {"budget": 50.0, "prices": (10_000.0, 10_000.0), "cache": False}
    model = pi.LLM("fake", api_base=llm.api_base, **options)
    add = AddPersonas(model) if is_given else AddPersonas("fake", api_base=llm.api_base, **options)
    assert copy.copy(add).llm.account is add.llm.account
    budget = add.llm.account.bounds.budget
    assert budget is not None
    budget.replace((), {"what the parent spent": 49.0})
    if (child := os.fork()) == 0:
        others = add.llm.account.bounds.budget
        os._exit(0 if others is not None and others.spent == 49 and not add.llm.usage.calls else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
