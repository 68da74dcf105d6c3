"""submit_batch and collect_batch, against a loopback provider that counts what it is asked."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import model_validator

import personainfer as pi
from personainfer.batch import costs, request_files
from personainfer.batch import job_folder as batch_folder
from personainfer.batch.job_folder import PersonaBatch
from personainfer.batch.trust import llm_of
from personainfer.exceptions import (
    AuthenticationError,
    BatchPendingError,
    BudgetExceededError,
    DataError,
    InvalidArgumentError,
    ModelError,
    ModelNotFoundError,
    ReplyError,
    RequestRejectedError,
    TransportError,
    UnknownOptionError,
)
from personainfer.llm.litellm_transport import LiteLLMTransport
from personainfer.llm.pricing import Price, find_batch_price, find_price
from personainfer.personas import prompts
from personainfer.testing import FakeLLM, Fault, Reply

from ..batch_server import ASK, CREATE, FETCH, LIST, LOOK, UPLOAD, Batch, BatchServer, Lines
from ..builders import MODEL, OPTIONS, collect, everything, pairs, submit

pytestmark = pytest.mark.heavy  # many processes, servers or waits

Patch = pytest.MonkeyPatch


def infer(provider: BatchServer, data: object, **options: Any) -> pi.PersonaTable:
    return pi.infer_personas(data, "fake", api_base=provider.api_base, **options)


# The table


@pytest.mark.parametrize("protocol", ["joint", "separate"])
@pytest.mark.heavy
def test_the_table_is_that_of_infer_personas(
    provider: BatchServer, place: Path, protocol: Any
) -> None:
    """Whatever the order in which the provider answers."""
    provider.edit = lambda lines: random.Random(0).sample(lines, len(lines))
    table = collect(submit(provider, pairs(30), place / "b", protocol=protocol))
    assert provider.count(ASK) == 0
    single = infer(provider, pairs(30), protocol=protocol, cache=False)
    single.raise_for_errors()
    assert table.settings == single.settings
    assert table.usage == single.usage
    for row, other in zip(table, single, strict=True):
        assert (row.index, row.preference, row.chosen, row.rejected, row.error) == (
            *(other.index, other.preference, other.chosen, other.rejected),
            None,
        )


def test_each_line_is_the_request_of_a_single_call(provider: BatchServer, place: Path) -> None:
    asked: dict[str, Any] = {"temperature": 0.3, "seed": 5, "max_tokens": 77}
    submit(provider, pairs(3), place / "b", **asked)
    infer(provider, pairs(3), **asked)
    sent = sorted(json.dumps(body) for body in provider.llm.requests)
    assert sorted(json.dumps(line["body"]) for line in provider.lines) == sent
    assert {len(line["custom_id"]) for line in provider.lines} == {64}


def test_a_frame_comes_back_with_its_index_and_columns(provider: BatchServer, place: Path) -> None:
    frame = pd.DataFrame(pairs(4), index=pd.Index([9, 3, 5, 1], name="id"))
    frame["score"] = [0.5, 0.25, 1.0, 2.0]
    back = collect(submit(provider, frame, place / "b")).to_pandas()
    pd.testing.assert_frame_equal(back[list(frame.columns)], frame)
    assert back["chosen_persona"].notna().all()


def test_columns_of_dicts_under_other_names_come_back(provider: BatchServer, place: Path) -> None:
    data = [
        {"question": p["prompt"], "chosen": p["chosen"], "rejected": p["rejected"], "extra": [n]}
        for n, p in enumerate(pairs(3))
    ]
    batch = submit(provider, data, place / "b", columns={"prompt": "question"})
    own = collect(batch).to_arrow().select(["question", "chosen", "rejected", "extra"])
    assert own.to_pylist() == data


def test_bad_rows_keep_their_place_and_their_error(provider: BatchServer, place: Path) -> None:
    data: list[Any] = pairs(5)
    data[1] = {**data[1], "rejected": data[1]["chosen"]}
    data[3] = {"prompt": "Only this"}
    table = collect(submit(provider, data, place / "b"))
    assert [row.error is None for row in table] == [True, False, True, False, True]
    assert [row.error for row in table] == [row.error for row in infer(provider, data)]
    assert len(provider.lines) == 3


def test_on_error_is_kept_until_the_rows_are_there(provider: BatchServer, place: Path) -> None:
    data = [*pairs(3), {"prompt": " ", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match="row 3: prompt is empty"):
        submit(provider, data, place / "never", on_error="raise")
    assert (provider.calls, list(place.iterdir())) == ([], [])
    table = collect(submit(provider, data, place / "drop", on_error="drop"))
    assert (len(table), table.settings["dropped"]) == (3, 1)
    assert table.to_arrow().num_rows == 3
    provider.refuse = lambda body: "Question 9?" in json.dumps(body)
    batch = submit(provider, pairs(10), place / "raise", on_error="raise")
    with pytest.raises(RequestRejectedError, match=r"row 9: .*scripted refusal"):
        collect(batch)


class Longest:
    def explains(self, preferences: Any, personas: Any) -> list[float]:
        return [float(len(str(persona))) for persona in personas]


def test_candidates_are_chosen_among_when_they_are_there(
    provider: BatchServer, place: Path
) -> None:
    replies = iter(range(1000))

    def reply(body: dict[str, Any]) -> Reply:
        persona = {"evidence": "e", "trait": f"t{'x' * next(replies)}", "preference": "p"}
        return Reply({"person_1": persona, "person_2": persona})

    provider.llm.reply = reply
    with pytest.raises(InvalidArgumentError, match="collect_batch"):
        submit(provider, pairs(2), place / "never", candidates=3, select=Longest())
    batch = submit(provider, pairs(2), place / "b", candidates=3)
    assert len(provider.lines) == 6
    calls = list(provider.calls)
    with pytest.raises(InvalidArgumentError, match="needs select="):
        collect(batch)
    with pytest.raises(InvalidArgumentError, match="has no method explains"):
        collect(batch, select="the best")
    assert provider.calls == calls
    for row in collect(batch, select=Longest()):
        personas = [candidate.persona for candidate in row.chosen_candidates]
        assert len(personas) == 3
        assert row.chosen == max(personas, key=lambda persona: len(str(persona)))


def test_every_option_outlives_the_process(provider: BatchServer, place: Path) -> None:
    """With exemplars and conversations of one's own; `collect_batch` would notice other requests."""
    turns = (pi.Message(role="user", content="Hi"), pi.Message(role="user", content="Tea?"))
    persona = pi.Persona(trait="calm", preference="tea")
    shown = pi.Preference(prompt=turns, chosen="Yes.", rejected="No.")
    exemplar = pi.Exemplar(preference=shown, chosen=persona, rejected=persona)
    given: dict[str, Any] = {**OPTIONS, "exemplars": [exemplar], "cache_dir": place / "cache"}
    given["api_base"] = provider.api_base
    del given["columns"], given["progress"]
    data = [pi.Preference(prompt=turns, chosen=f"Tea {n}.", rejected="Coffee.") for n in range(3)]
    table = collect(pi.submit_batch(data, MODEL, place / "b", **given), api_key="key")
    single = pi.infer_personas(data, MODEL, **given)
    assert single.usage.cached == 3
    assert list(table) == list(single)
    assert table.settings == single.settings


def test_an_llm_is_taken_with_its_own_options(provider: BatchServer, place: Path) -> None:
    provider.api_key = "sk-of-this-endpoint"
    model = pi.LLM("fake", api_base=provider.api_base, seed=8, api_key=provider.api_key)
    batch = pi.submit_batch(pairs(2), model, place / "b")
    assert {line["body"]["seed"] for line in provider.lines} == {8}
    collect(batch, api_key=provider.api_key).raise_for_errors()
    assert pi.infer_personas(pairs(2), model).usage.cached == 2


# What is sent, and what is not


def test_equal_pairs_are_submitted_once(provider: BatchServer, place: Path) -> None:
    batch = submit(provider, pairs(2) * 20, place / "b")
    assert (batch.rows, batch.requests, batch.sent, len(provider.lines)) == (40, 2, 2, 2)
    table = collect(batch)
    table.raise_for_errors()
    assert (len(table), table.usage.calls) == (40, 2)


def test_what_is_in_the_cache_is_not_submitted(provider: BatchServer, place: Path) -> None:
    infer(provider, pairs(4))
    batch = submit(provider, pairs(6), place / "b")
    assert (batch.requests, batch.cached, batch.sent, len(provider.lines)) == (6, 4, 2, 2)
    table = collect(batch)
    table.raise_for_errors()
    assert (table.usage.calls, table.usage.cached) == (2, 4)
    assert infer(provider, pairs(6)).usage.cached == 6  # and what it brought is there afterwards
    calls = list(provider.calls)
    table = collect(submit(provider, pairs(6), place / "nothing is left"))
    table.raise_for_errors()
    assert (table.usage.calls, table.usage.cached, table.usage.cost) == (0, 6, 0.0)
    assert provider.calls == calls


def test_what_was_in_the_cache_is_in_the_folder_too(provider: BatchServer, place: Path) -> None:
    """Between submitting and collecting lies a day, and perhaps another machine."""
    infer(provider, pairs(4))
    calls = list(provider.calls)
    submit(provider, pairs(4), place / "all")
    submit(provider, pairs(6), place / "some")
    pi.clear_cache()
    for name in ("all", "some"):
        table = collect(place / name)
        table.raise_for_errors()
        assert table.usage.cached == 4
    assert provider.count(ASK) == calls.count(ASK)


def test_replies_in_another_schema_to_the_same_bytes_stay_in_the_cache(
    provider: BatchServer, place: Path
) -> None:
    """A batch neither takes them for its own nor writes over them, and finds its own beside them."""

    class OnePersona(prompts.OnePersona):
        __doc__ = prompts.OnePersona.__doc__

        @model_validator(mode="before")  # it is told to no endpoint
        @classmethod
        def of_words(cls, value: Any) -> Any:
            plain = {"evidence": "It says so.", "trait": "busy", "preference": "short answers"}
            return value if "evidence" in value else plain

    options: dict[str, Any] = {"sides": "chosen", "protocol": "separate"}
    infer(provider, pairs(1), cache=False, **options)
    asked = [pi.Message(**message) for message in provider.llm.requests[-1]["messages"]]
    llm = pi.LLM("fake", api_base=provider.api_base)
    provider.llm.reply = '{"words": 3}'
    words = llm.ask(asked, OnePersona)
    assert words.error is None
    provider.llm.reply = None
    collect(submit(provider, pairs(1), place / "b", **options)).raise_for_errors()
    assert llm.ask(asked, OnePersona).text == words.text
    again = submit(provider, pairs(1), place / "again", **options)
    assert (again.cached, again.sent) == (1, 0)
    assert pi.estimate_cost(pairs(1), llm, **options).calls == 0


def test_no_rows_are_no_batch(provider: BatchServer, place: Path) -> None:
    with pytest.warns(UserWarning, match="no row came"):
        assert len(collect(submit(provider, [], place / "none"))) == 0
    with pytest.raises(DataError, match="none of the first 2 rows"):
        submit(provider, [7, "x"], place / "bad")
    assert not (place / "bad").exists()
    assert provider.calls == []


def test_a_cache_that_is_off_stays_empty(provider: BatchServer, place: Path) -> None:
    infer(provider, pairs(3))
    batch = submit(provider, pairs(5), place / "b", cache=False)
    assert len(provider.lines) == 5
    collect(batch).raise_for_errors()
    assert pi.cache_info().replies == 3


@pytest.mark.heavy
def test_large_batches_are_split(provider: BatchServer, place: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 4)
    batch = submit(provider, pairs(10), place / "count")
    assert [part.requests for part in batch.parts] == [4, 4, 2]
    assert (provider.count(UPLOAD), provider.count(CREATE)) == (3, 3)
    collect(batch).raise_for_errors()
    size = len((place / "count" / "requests-0000.jsonl").read_bytes()) // 4
    monkeypatch.setattr(request_files, "MAX_BYTES", int(2.5 * size))
    batch = submit(provider, pairs(5), place / "bytes", cache=False)
    assert [part.requests for part in batch.parts] == [2, 2, 1]
    monkeypatch.setattr(request_files, "MAX_BYTES", 10)  # what fits in no file goes alone
    batch = submit(provider, pairs(2), place / "huge", cache=False)
    assert [part.requests for part in batch.parts] == [1, 1]


# Going on where it stopped


def test_the_same_call_again_uploads_nothing(provider: BatchServer, place: Path) -> None:
    first = submit(provider, pairs(3), place / "b")
    assert submit(provider, pairs(3), place / "b") == first
    collect(first)
    submit(provider, pairs(3), place / "b")  # now that all is in the cache
    assert (provider.count(UPLOAD), provider.count(CREATE)) == (1, 1)


@pytest.mark.parametrize(("count", "seed"), [(4, None), (3, 1)], ids=["data", "options"])
def test_other_data_or_options_need_another_folder(
    provider: BatchServer, place: Path, count: int, seed: int | None
) -> None:
    submit(provider, pairs(3), place / "b")
    with pytest.raises(InvalidArgumentError, match="other data or options"):
        submit(provider, pairs(count), place / "b", seed=seed)
    assert provider.calls == [UPLOAD, CREATE]


def test_a_batch_is_collected_whatever_folder_the_program_went_to(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """As %cd in a notebook."""
    (place / "elsewhere").mkdir(parents=True)
    monkeypatch.chdir(place)
    batch = submit(provider, pairs(2), Path("b"))
    monkeypatch.chdir("elsewhere")
    assert collect(batch).usage.calls == 2


def test_a_folder_of_something_else_is_left_alone(provider: BatchServer, place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("all of it")
    (place / "file").touch()
    for name, words in (
        ("mine", "no batch"),
        ("file", "no batch"),
        ("file/below", "cannot be written"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            submit(provider, pairs(3), place / name)
    assert everything(place) == b"all of it"
    assert provider.calls == []
    (place / "empty").mkdir()
    assert submit(provider, pairs(1), place / "empty").sent == 1


def test_a_source_that_breaks_leaves_no_folder(provider: BatchServer, place: Path) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield from pairs(3)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        submit(provider, broken(), place / "b")
    assert (provider.calls, list(place.iterdir())) == ([], [])


def test_what_was_uploaded_is_not_uploaded_again(provider: BatchServer, place: Path) -> None:
    provider.faults = [(CREATE, 400)]
    with pytest.raises(RequestRejectedError, match="Repeat the call to continue with") as caught:
        submit(provider, pairs(3), place / "b")
    assert str(place / "b") in str(caught.value)
    with pytest.raises(BatchPendingError, match="not all of it was submitted"):
        collect(place / "b")
    batch = submit(provider, pairs(3), place / "b")
    assert (provider.count(UPLOAD), provider.count(CREATE), len(provider.batches)) == (1, 2, 1)
    collect(batch).raise_for_errors()


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
@pytest.mark.heavy
def test_however_often_it_dies_nothing_is_paid_for_twice(
    provider: BatchServer, place: Path, monkeypatch: Patch, written: bool
) -> None:
    """At every save of the handle in turn, before it is written or after."""
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 2)
    save, saves, lives = PersonaBatch.save, 0, 0

    def dies(batch: PersonaBatch) -> None:
        nonlocal saves
        saves += batch.path == place / "b"  # the folder is made under another name
        if saves > lives:
            if written:
                save(batch)
            raise SystemExit
        save(batch)

    monkeypatch.setattr(PersonaBatch, "save", dies)
    for _ in range(30):
        saves = 0
        try:
            batch = submit(provider, pairs(5), place / "b")
        except SystemExit:
            lives += not written  # a save that was made is not made again
        else:
            break
    else:
        pytest.fail("each call saves what an earlier one has saved")
    monkeypatch.setattr(PersonaBatch, "save", save)
    assert [part.requests for part in batch.parts] == [2, 2, 1]
    assert len(provider.batches) == provider.count(CREATE) == 3
    collect(batch).raise_for_errors()
    assert provider.llm.calls == 5


def test_a_batch_whose_creation_was_not_answered_is_found(
    provider: BatchServer, place: Path
) -> None:
    provider.faults = [(CREATE, 0)]
    batch = submit(provider, pairs(3), place / "b")
    assert provider.calls == [UPLOAD, CREATE, LIST]
    collect(batch).raise_for_errors()


@pytest.mark.parametrize(
    "listed", [b"{}", b"[]", b'{"data": [{"id": "batch-0"}], "has_more": false}']
)
def test_a_list_that_says_nothing_is_no_leave_to_pay_twice(
    provider: BatchServer, place: Path, listed: bytes
) -> None:
    provider.faults = [(CREATE, 0), (LIST, listed)]
    with pytest.raises(ReplyError, match="does not list its batches"):
        submit(provider, pairs(3), place / "b")
    submit(provider, pairs(3), place / "b")
    assert provider.count(CREATE) == 1


def test_where_it_cannot_be_found_no_second_one_is_made(provider: BatchServer, place: Path) -> None:
    provider.faults = [(CREATE, 0), (LIST, 404), (LIST, 404)]
    for _ in range(2):
        with pytest.raises(ModelNotFoundError, match="may have made a batch of file-0"):
            submit(provider, pairs(3), place / "b")
    assert provider.count(CREATE) == 1


@pytest.mark.heavy
def test_two_processes_do_not_work_on_it_at_once(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    batch = submit(provider, pairs(2), place / "b")
    monkeypatch.setattr(batch_folder, "_LOCK_PATIENCE", 0.05)
    with batch.alone():
        with pytest.raises(BatchPendingError, match="held by another process"):
            submit(provider, pairs(2), place / "b")
        with pytest.raises(BatchPendingError, match="held by another process"):
            collect(batch)
    collect(batch).raise_for_errors()


def test_a_lock_that_cannot_be_taken_at_all_is_not_waited_for(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    submit(provider, pairs(2), place / "b")
    monkeypatch.setattr(batch_folder, "_LOCK_PATIENCE", 0.05)
    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(BatchPendingError, match=r"cannot be written: .*No locks available"):
        collect(place / "b")


def test_a_waiting_collector_keeps_what_a_submitter_has_done(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 1)
    provider.statuses = ["in_progress", "in_progress", "completed"]
    batch = submit(provider, pairs(2), place / "b")
    provider.batches["batch-1"].statuses = ["failed"]

    def submit_again(seconds: float) -> None:
        patched.undo()
        submit(provider, pairs(2), place / "b")

    with monkeypatch.context() as patched:
        patched.setattr("personainfer.batch.collect.time.sleep", submit_again)
        table = collect(batch)
    table.raise_for_errors()
    assert len(provider.batches) == 3


def test_a_waiting_collector_notices_that_a_submitter_died(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 1)
    provider.statuses = ["in_progress"]
    batch = submit(provider, pairs(2), place / "b")
    provider.batches["batch-1"].statuses = ["failed"]
    provider.faults = [(CREATE, 400)]

    def submit_again(seconds: float) -> None:
        with pytest.raises(RequestRejectedError):
            submit(provider, pairs(2), place / "b")

    monkeypatch.setattr("personainfer.batch.collect.time.sleep", submit_again)
    with pytest.raises(BatchPendingError, match="not all of it was submitted"):
        collect(batch)


def test_a_part_that_was_refused_as_a_whole_is_submitted_again(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 2)
    batch = submit(provider, pairs(4), place / "b")
    provider.batches["batch-1"].statuses = ["failed"]
    provider.problem = "Enqueued token limit reached."
    table = collect(batch)
    assert [row.error is None for row in table] == [True, True, False, False]
    assert "Enqueued token limit reached." in str(table[3].error)
    batch = submit(provider, pairs(4), place / "b")
    assert (provider.count(UPLOAD), provider.count(CREATE)) == (3, 3)
    table = collect(batch)
    table.raise_for_errors()
    assert table.usage.calls == provider.llm.calls == 4


def test_what_a_failed_batch_answered_is_not_paid_for_again(
    provider: BatchServer, place: Path
) -> None:
    provider.statuses, provider.answered = ["in_progress", "failed"], 3
    table = collect(submit(provider, pairs(5), place / "b"))
    assert [row.error is None for row in table] == [True, True, True, False, False]
    submit(provider, pairs(5), place / "b")
    assert provider.count(UPLOAD) == 1
    provider.answered = None
    assert submit(provider, pairs(5), place / "rest").sent == 2


def test_collecting_again_costs_nothing(provider: BatchServer, place: Path) -> None:
    """From the folder alone, wherever it was moved, and even when the cache was cleared."""
    submit(provider, pairs(5), place / "b", seed=4)
    table = collect((place / "b").rename(place / "moved"))
    calls = list(provider.calls)
    pi.clear_cache()
    again = collect(str(place / "moved"))
    assert list(again) == list(table)
    assert again.usage == table.usage
    assert provider.calls == calls


def test_a_folder_never_decides_where_the_key_and_the_replies_go(
    provider: BatchServer, place: Path
) -> None:
    """Whoever made the folder would else be sent the key."""
    elsewhere = place / "theirs"
    submit(provider, pairs(3), place / "b", cache_dir=elsewhere)
    calls = list(provider.calls)
    for folder in (place / "b", PersonaBatch.load(place / "b")):
        with pytest.raises(InvalidArgumentError, match=re.escape(provider.api_base)):
            pi.collect_batch(folder)
    assert provider.calls == calls
    shutil.rmtree(elsewhere)
    mine = place / "mine"
    table = pi.collect_batch(place / "b", poll=0.001, api_base=provider.api_base, cache_dir=mine)
    assert not table.errors
    assert pi.cache_info(mine).replies
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    "model",
    [
        "local:owner/repository/theirs.gguf",
        "local:theirs.gguf",
        "oobabooga/http://127.0.0.1:9",
    ],
)
def test_a_folder_never_decides_what_is_loaded(
    model: str, provider: BatchServer, place: Path
) -> None:
    submit(provider, pairs(3), place / "b")
    handle = place / "b" / "batch.json"
    stored = json.loads(handle.read_text())
    handle.write_text(json.dumps({**stored, "model": model}))
    with pytest.raises(InvalidArgumentError, match="name the model yourself"):
        pi.collect_batch(place / "b", api_base=provider.api_base)


@pytest.mark.parametrize("start", ["", "litellm/", " litellm/"])
def test_a_folder_never_decides_to_which_provider_litellm_signs_in(
    start: str, provider: BatchServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so when it looks a model up, such as one of GitHub Copilot."""
    submit(provider, pairs(3), place / "b")
    handle = place / "b" / "batch.json"
    stored = json.loads(handle.read_text())
    stored["model"] = f"{start}github_copilot/gpt-4o"
    stored["llm_options"]["api_base"] = None
    handle.write_text(json.dumps(stored))
    monkeypatch.setattr(LiteLLMTransport, "__init__", None)  # nothing is looked up
    address: dict[str, Any] = {"api_base": provider.api_base} if start else {}
    with pytest.raises(InvalidArgumentError, match="name the model yourself") as caught:
        pi.collect_batch(place / "b", **address)
    assert caught.value.argument == "model"


@pytest.mark.parametrize("name", ["requests-0000.jsonl", "batch.json", "lock", "replies"])
def test_a_batch_has_no_links(provider: BatchServer, place: Path, name: str) -> None:
    """A link of a stranger's folder would upload another file of the user's to the provider."""
    submit(provider, pairs(3), place / "b")
    secret = place / "secret.txt"
    secret.write_text("mine alone")
    (place / "b" / name).unlink(missing_ok=True)
    (place / "b" / name).symlink_to(secret)
    calls = list(provider.calls)
    with pytest.raises(DataError, match=f"{name} is a link, a pipe, a folder or a device"):
        pi.collect_batch(place / "b", poll=0.001, api_base=provider.api_base)
    assert provider.calls == calls
    assert secret.read_text() == "mine alone"


def test_only_the_owner_can_read_a_batch_in_a_folder_that_was_there(
    provider: BatchServer, place: Path
) -> None:
    before = os.umask(0o022)
    try:
        (place / "b").mkdir()
        submit(provider, pairs(3), place / "b")
        collect(place / "b")
    finally:
        os.umask(before)
    assert (place / "b").stat().st_mode & 0o777 == 0o755
    found = {path.name: path.stat().st_mode & 0o077 for path in (place / "b").iterdir()}
    assert {"rows.parquet", "requests-0000.jsonl", "cached.jsonl", "lock"} <= found.keys()
    assert set(found.values()) == {0}


def test_other_files_in_the_folder_of_a_batch_are_passed_over(
    provider: BatchServer, place: Path
) -> None:
    """A table that was saved there, what systems leave, and what SQLite would act on."""
    submit(provider, pairs(3), place / "b")
    names = (".DS_Store", "lock-journal", "personas.parquet")
    for name in names:
        (place / "b" / name).write_bytes(b"mine")
    (place / "b" / "lock").write_bytes(b"of another version")
    collect(place / "b").raise_for_errors()
    assert {(place / "b" / name).read_bytes() for name in names} == {b"mine"}


@pytest.mark.parametrize("name", ["requests-0000.jsonl", "lock", "replies/cache.db-wal"])
def test_no_file_of_a_batch_is_a_second_name_of_another_file(
    provider: BatchServer, place: Path, name: str
) -> None:
    """A link that tar unpacked would upload or overwrite another file of the user's."""
    submit(provider, pairs(3), place / "b")
    (place / "b" / "replies").mkdir()
    secret = place / "secret.txt"
    secret.write_text("mine alone")
    (place / "b" / name).unlink(missing_ok=True)
    (place / "b" / name).hardlink_to(secret)
    calls = list(provider.calls)
    with pytest.raises(DataError, match=f"{name} is a second name of another file"):
        collect(place / "b")
    assert provider.calls == calls
    assert secret.read_text() == "mine alone"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("name", ["output-0000.jsonl", "batch.json"])
def test_a_batch_does_not_wait_for_a_pipe(provider: BatchServer, place: Path, name: str) -> None:
    submit(provider, pairs(3), place / "b")
    (place / "b" / name).unlink(missing_ok=True)
    os.mkfifo(place / "b" / name)
    with pytest.raises(DataError, match=f"{name} is a link, a pipe, a folder or a device"):
        pi.collect_batch(place / "b", poll=0.001, api_base=provider.api_base)


COLLECT = """
import sys, personainfer as pi
pi.collect_batch(sys.argv[1], poll=0.01, api_base=sys.argv[3]).save(sys.argv[2])
"""


@pytest.mark.heavy
def test_another_process_collects_from_the_folder(provider: BatchServer, place: Path) -> None:
    batch = submit(provider, pairs(5), place / "b")
    target = place / "personas.parquet"
    subprocess.run(
        [sys.executable, "-c", COLLECT, str(place / "b"), str(target), provider.api_base],
        check=True,
    )
    table = pi.PersonaTable.load(target)
    table.raise_for_errors()
    calls = list(provider.calls)
    again = collect(batch)
    assert (list(again), again.usage) == (list(table), table.usage)
    assert provider.calls == calls


# Waiting


def test_a_batch_that_is_not_done_says_how_far_it_is(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 2)
    batch = submit(provider, pairs(4), place / "b")
    provider.batches["batch-1"].statuses = ["in_progress"]
    with pytest.raises(BatchPendingError, match="0 of 2 parts are done, 0 of 4 requests"):
        collect(batch, wait=False)
    with pytest.raises(BatchPendingError, match="1 of 2 parts are done, 2 of 4 requests") as caught:
        collect(batch, timeout=0.1)
    assert caught.value.retryable
    assert provider.count(FETCH) == 1  # what is done is brought home at once
    provider.batches["batch-1"].statuses = ["completed"]
    collect(batch, wait=False).raise_for_errors()
    assert provider.count(FETCH) == 2


def test_waiting_survives_what_passes(provider: BatchServer, place: Path) -> None:
    batch = submit(provider, pairs(2), place / "b")
    provider.faults = [(LOOK, 500), (LOOK, 503), (LOOK, 429), (LOOK, 0), (FETCH, 500), (FETCH, 0)]
    collect(batch).raise_for_errors()
    assert provider.faults == []


@pytest.mark.parametrize("said", [b"", b"{", b"\xff"], ids=["nothing", "half", "bytes"])
def test_an_answer_that_is_not_json_is_asked_for_again(
    provider: BatchServer, place: Path, said: bytes
) -> None:
    provider.faults = [(UPLOAD, said), (CREATE, said), (LOOK, said)]
    batch = submit(provider, pairs(2), place / "b")
    assert len(provider.batches) == 1
    collect(batch).raise_for_errors()
    assert provider.faults == []


def test_a_file_that_breaks_off_is_fetched_again(provider: BatchServer, place: Path) -> None:
    batch = submit(provider, pairs(2), place / "b")
    provider.faults = [(FETCH, 1)]
    collect(batch).raise_for_errors()
    assert provider.count(FETCH) == 2


def test_a_file_whose_last_line_is_cut_is_fetched_again(provider: BatchServer, place: Path) -> None:
    """As of a proxy that ends the connection, where no length was told."""
    batch = submit(provider, pairs(2), place / "b")
    whole = {"custom_id": "ab" * 32, "response": {"status_code": 200, "body": {}}}
    provider.faults = [(FETCH, json.dumps(whole).encode() + b'\n{"custom_id": "1", "resp')]
    collect(batch).raise_for_errors()
    assert provider.count(FETCH) == 2


def test_what_is_no_file_of_replies_is_not_kept(provider: BatchServer, place: Path) -> None:
    """Else a gateway's page of regret, sent as 200, would cost every row its reply."""
    batch = submit(provider, pairs(2), place / "b")
    provider.faults = [(FETCH, b"<html>\nsorry\n</html>")]
    with pytest.raises(ReplyError, match="holds no line of a batch"):
        collect(batch, ask_missing=True)
    collect(batch, ask_missing=True).raise_for_errors()
    assert provider.count(ASK) == 0


def test_a_state_of_odd_types_is_looked_at_again(provider: BatchServer, place: Path) -> None:
    odd = {"id": "batch-0", "status": "in_progress", "output_file_id": 7, "errors": {"data": 7}}
    batch = submit(provider, pairs(2), place / "b")
    counts = {"request_counts": {"completed": "2", "failed": None}}
    provider.faults = [(LOOK, json.dumps(odd | counts).encode())]
    collect(batch).raise_for_errors()


@pytest.mark.parametrize("last", ["cancelled", "expired"])
def test_so_are_those_of_a_batch_that_ended_early(
    last: str, provider: BatchServer, place: Path
) -> None:
    provider.late, provider.answered, provider.statuses = 2, 3, ["in_progress", last]
    table = collect(submit(provider, pairs(5), place / "b"))
    assert [row.error is None for row in table] == [True] * 3 + [False] * 2


def test_files_that_are_never_named_are_not_waited_for_without_end(
    provider: BatchServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some providers keep none of a batch that was cancelled."""
    provider.late, provider.answered, provider.statuses = 10**9, 2, ["in_progress", "cancelled"]
    batch = submit(provider, pairs(2), place / "b")
    with pytest.raises(BatchPendingError):
        collect(batch, timeout=0.2)
    monkeypatch.setattr("personainfer.batch.part._NAMED_WITHIN", 0.1)
    assert len(collect(batch).errors) == 2
    collect(batch, ask_missing=True).raise_for_errors()


def test_files_that_have_no_names_yet_are_waited_for(provider: BatchServer, place: Path) -> None:
    provider.late = 2
    batch = submit(provider, pairs(2), place / "b")
    collect(batch, ask_missing=True).raise_for_errors()
    assert provider.count(ASK) == 0


def test_a_timeout_holds_while_the_provider_fails(provider: BatchServer, place: Path) -> None:
    batch = submit(provider, pairs(2), place / "b", patience=1e9)
    provider.faults = [(LOOK, 500)] * 100_000
    with pytest.raises(TransportError, match="scripted 500"):
        collect(batch, timeout=0.05)


def test_waiting_ends_with_what_does_not_pass(provider: BatchServer, place: Path) -> None:
    provider.api_key = "sk-right"
    batch = submit(provider, pairs(2), place / "b", patience=0.2, api_key="sk-right")
    with pytest.raises(AuthenticationError):
        collect(batch, api_key="sk-wrong")
    assert provider.count(LOOK) == 1
    provider.faults = [(LOOK, 500)] * 10_000
    with pytest.raises(TransportError, match="scripted 500"):
        collect(batch, api_key="sk-right")
    provider.faults, provider.headers = [(LOOK, 429)], {"Retry-After": "3600"}
    with pytest.raises(ModelError, match="refused"):
        collect(batch, api_key="sk-right")
    collect(batch, api_key="sk-right").raise_for_errors()


def test_ctrl_c_while_waiting_loses_nothing(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    batch = submit(provider, pairs(2), place / "b")
    with monkeypatch.context() as patched:
        patched.setattr("personainfer.batch.collect.time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect(batch)
    collect(batch).raise_for_errors()


# What comes back


def test_lines_that_are_missing_broken_foreign_or_doubled_cost_a_row_each_at_most(
    provider: BatchServer, place: Path
) -> None:
    foreign = b'{"custom_id": "%s", "response": {"status_code": 200, "body": {}}}' % (b"ab" * 32)
    odd = [b"[]", b"7", b'{"custom_id": 3}', b'{"custom_id": "no hex"}', b"", b"\xff\xfe", foreign]

    def edit(lines: Lines) -> Lines:
        broken = lines[1][:-20]
        mojibake = lines[2].replace(b"custom_id", b"custom\xff_id")
        return [*odd, lines[3], broken, lines[3], mojibake, lines[0], lines[5]]  # 4 is missing

    provider.edit = edit
    table = collect(submit(provider, pairs(6), place / "b"))
    assert [row.error is None for row in table] == [True, False, False, True, False, True]
    assert all("the batch brought no reply" in str(table[n].error) for n in (1, 2, 4))
    assert table.usage.calls == 6  # the provider told that all had replies
    assert pi.cache_info().replies == 3


def test_requests_that_fail_say_why(provider: BatchServer, place: Path) -> None:
    faults = dict(enumerate((Fault.truncated(), Fault.refusal(), Fault.bad_schema())))

    def number(body: dict[str, Any]) -> int:
        turn = body["messages"][-1]["content"]
        return next(n for n in range(5) if f"Question {n}?" in turn)

    provider.llm.reply = lambda body: faults.get(number(body))
    provider.refuse = lambda body: number(body) == 3
    table = collect(submit(provider, pairs(5), place / "b"))
    words = ["cut off at max_tokens", "refused", "not in the asked form", "scripted refusal"]
    for row, word in zip(table, words, strict=False):
        assert word in str(row.error)
        assert row.chosen is None
    assert table[4].chosen is not None
    assert pi.cache_info().replies == 1
    # An unusable reply is paid for; a request that was refused has no tokens.
    assert table.usage.calls == 5
    whole = infer(provider, pairs(5)[4:], cache=False)
    assert table.usage.prompt_tokens == 4 * whole.usage.prompt_tokens


@pytest.mark.parametrize(
    ("listed", "sent"), [(["openai/x", "y"], "openai/x"), (["x", "openai/x"], "x"), (["x"], "x")]
)
def test_the_name_that_the_endpoint_lists_is_the_one_that_is_sent(
    listed: list[str], sent: str, place: Path
) -> None:
    """Single calls find out by a refusal; in a batch each row would be refused."""
    with (
        FakeLLM(known_models=listed, model="x") as llm,
        BatchServer(llm, statuses=["completed"]) as provider,
    ):
        batch = pi.submit_batch(pairs(3), "openai/x", place / "b", api_base=provider.api_base)
        assert not collect(batch).errors
        assert provider.count("GET /v1/models") == 1
    assert {line["body"]["model"] for line in provider.lines} == {sent}


@pytest.mark.parametrize("answer", [404, b"[]", b"{}", b'{"data": [3]}', b"no", 0])
def test_an_endpoint_that_lists_no_models_is_sent_the_short_name(
    provider: BatchServer, place: Path, answer: Any
) -> None:
    provider.faults = [("GET /v1/models", answer)]
    batch = pi.submit_batch(pairs(1), "openai/fake", place / "b", api_base=provider.api_base)
    assert not collect(batch).errors
    assert provider.lines[0]["body"]["model"] == "fake"


def test_no_words_of_a_provider_break_the_table(provider: BatchServer, place: Path) -> None:
    """JSON may spell half of a surrogate pair, which no file may hold; and say it at length."""
    error = {"code": "c" * 10**6, "message": "\ud800"}

    def edit(lines: Lines) -> Lines:
        named = {"custom_id": json.loads(lines[0])["custom_id"], "response": None}
        return [json.dumps({**named, "error": error}).encode(), *lines[1:]]

    provider.edit = edit
    table = collect(submit(provider, pairs(2), place / "b"))
    table.save(place / "line.parquet")
    assert len(str(table[0].error)) < 1000
    provider.statuses, provider.problem = ["failed"], "\ud800"
    collect(submit(provider, pairs(2), place / "whole", cache=False)).save(place / "b.parquet")


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_a_batch_that_ends_early_keeps_what_it_answered(
    provider: BatchServer, place: Path, status: str
) -> None:
    provider.statuses, provider.answered = ["in_progress", status], 3
    table = collect(submit(provider, pairs(5), place / "b"))
    assert [row.error is None for row in table] == [True, True, True, False, False]
    assert "batch_expired" in str(table[4].error)
    assert table.usage.calls == 3
    provider.statuses, provider.answered = ["completed"], None
    batch = submit(provider, pairs(5), place / "rest")
    assert (batch.sent, batch.cached) == (2, 3)
    collect(batch).raise_for_errors()
    assert provider.llm.calls == 5


def test_nothing_is_asked_singly_unless_it_is_wanted(provider: BatchServer, place: Path) -> None:
    provider.edit = lambda lines: lines[:2]
    batch = submit(provider, pairs(4), place / "b", prices=(10.0, 100.0))
    assert len(collect(batch).errors) == 2
    assert provider.count(ASK) == 0
    table = collect(batch, ask_missing=True)
    table.raise_for_errors()
    assert provider.count(ASK) == 2
    whole = infer(provider, pairs(4), cache=False, prices=(10.0, 100.0)).usage
    assert (table.usage.calls, table.usage.prompt_tokens) == (4, whole.prompt_tokens)
    assert whole.cost is not None
    assert table.usage.cost == pytest.approx(whole.cost * 0.75, rel=0.05)


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"seeds": 3}, "seed=", id="unknown"),
        pytest.param({"candidates": 2, "temperature": 0}, "temperature", id="candidates"),
        pytest.param({"rows_per_call": 4}, "rows_per_call=4: each pair", id="several pairs"),
        pytest.param({"api_base": "http://me:pw@127.0.0.1:9/v1"}, "password", id="password"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    place: Path, options: dict[str, Any], words: str
) -> None:
    base: dict[str, Any] = {"api_base": "http://127.0.0.1:9/v1"}
    with pytest.raises((InvalidArgumentError, UnknownOptionError), match=words):
        pi.submit_batch(pairs(1), "fake", place / "b", **{**base, **options})
    assert list(place.iterdir()) == []


def test_a_model_without_batches_says_so(llm: FakeLLM, place: Path) -> None:
    weights = place / "tiny.gguf"
    weights.write_bytes(b"GGUF")
    with pytest.raises(InvalidArgumentError, match="no batch API"):
        pi.submit_batch(pairs(1), f"local:{weights}", place / "local")
    assert list(place.iterdir()) == [weights]
    with pytest.raises(ModelNotFoundError, match="seems to have no batch API"):
        pi.submit_batch(pairs(1), "fake", place / "b", api_base=llm.api_base)
    assert llm.calls == 0


def test_a_folder_without_a_batch_says_so(place: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="holds no batch"):
        collect(place)
    for handle in ('{"version": 2}', "{", "[]", "[" * 100_000):
        (place / "batch.json").write_text(handle)
        with pytest.raises(DataError, match="not the handle of a batch"):
            collect(place)


def test_a_folder_that_was_copied_in_part_says_so(provider: BatchServer, place: Path) -> None:
    batch = submit(provider, pairs(1), place / "b")
    batch.rows_file.unlink()
    with pytest.raises(DataError, match="Copy the whole folder"):
        collect(batch)


@pytest.mark.parametrize("path", [7, None, ["b"]])
def test_a_path_is_a_path(provider: BatchServer, place: Path, path: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a path"):
        submit(provider, pairs(1), path)
    with pytest.raises(InvalidArgumentError, match="is not a path"):
        collect(path)


def test_a_handle_with_options_of_another_version_says_so(
    provider: BatchServer, place: Path
) -> None:
    batch = submit(provider, pairs(1), place / "b")
    batch.model_copy(update={"llm_options": {**batch.llm_options, "retries": 3}}).save()
    with pytest.raises(DataError, match="no option retries="):
        collect(batch)


@pytest.mark.parametrize(
    "bad", [{"poll": 0}, {"poll": "1"}, {"poll": 1e300}, {"timeout": -1}, {"timeout": True}]
)
def test_waiting_takes_seconds(provider: BatchServer, place: Path, bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(InvalidArgumentError, match=f"{name}=.* must be a positive number"):
        pi.collect_batch(place, **bad)


def test_requests_that_are_no_longer_the_same_are_not_collected(
    provider: BatchServer, place: Path
) -> None:
    batch = submit(provider, pairs(2), place / "b")
    batch.model_copy(update={"exemplars": "none"}).save()  # as if the prompts had changed
    with pytest.raises(DataError, match=r"made by personainfer .* with litellm"):
        collect(place / "b")


# Money


def test_a_batch_costs_the_price_of_batches(provider: BatchServer, place: Path) -> None:
    listed, single = find_batch_price("gpt-4o-mini", None), find_price("gpt-4o-mini", None)
    assert listed is not None
    assert single is not None
    assert listed.prompt == pytest.approx(single.prompt / 2)
    assert find_batch_price("nobody/knows", None) is None
    usage = collect(submit(provider, pairs(3), place / "b", prices=(2.0, 8.0))).usage
    assert usage.prompt_tokens * usage.completion_tokens > 0
    assert usage.cost == pytest.approx(usage.prompt_tokens * 1e-6 + usage.completion_tokens * 4e-6)
    assert collect(submit(provider, pairs(3), place / "unknown", seed=2)).usage.cost is None


def test_the_budget_holds_for_the_whole_batch(provider: BatchServer, place: Path) -> None:
    prices = (10.0, 10.0)
    with pytest.raises(BudgetExceededError, match="3 requests may cost"):
        submit(provider, pairs(3), place / "b", budget=0.001, prices=prices)
    assert (provider.calls, list(place.iterdir())) == ([], [])
    batch = submit(provider, pairs(3), place / "b", budget=1.0, prices=prices)
    cost = collect(batch).usage.cost
    assert cost is not None
    assert 0 < cost < 1.0


def test_a_batch_is_charged_for_its_script_as_single_calls_are(
    provider: BatchServer, place: Path
) -> None:
    """Each byte can be a token."""
    said = {"prompt": "问" * 2000, "chosen": "答" * 2000, "rejected": "案" * 2000}
    rows = [{**said, "prompt": said["prompt"] + str(n)} for n in range(3)]
    most = 3 * 3 * 6000 * 1e-3 / 2  # 54,000 bytes of Chinese, at half of $1,000 a million tokens
    options: dict[str, Any] = {"prices": (1000.0, 0.0), "exemplars": "none"}
    with pytest.raises(BudgetExceededError, match="3 requests may cost"):
        submit(provider, rows, place / "b", budget=most, **options)
    assert (provider.calls, list(place.iterdir())) == ([], [])
    submit(provider, rows, place / "b", budget=1.2 * most, **options)


@pytest.mark.parametrize(
    "usage",
    [None, *({"prompt_tokens": count, "completion_tokens": count} for count in (-5, "many"))],
)
def test_replies_of_a_batch_whose_tokens_are_not_told_cost_the_most_they_can(
    usage: object, provider: BatchServer, place: Path
) -> None:
    def edited(lines: list[bytes]) -> list[bytes]:
        answers = [json.loads(line) for line in lines]
        for answer in answers:
            answer["response"]["body"]["usage"] = usage
        return [json.dumps(answer).encode() for answer in answers]

    provider.edit = edited
    options: dict[str, Any] = {"prices": (1.0, 1000.0), "max_tokens": 100}
    used = collect(submit(provider, pairs(4), place / "b", **options)).usage
    assert used.cost is not None
    assert 4 * 100 * 0.5e-3 < used.cost < 1.2 * 4 * 100 * 0.5e-3


def test_the_budget_counts_the_batch_before_what_is_asked_singly(
    provider: BatchServer, place: Path
) -> None:
    provider.edit = lambda lines: lines[:3]
    options: dict[str, Any] = {"prices": (10.0, 10.0), "max_tokens": 100}
    most = collect(submit(provider, pairs(4), place / "a", **options)).usage.cost
    assert most is not None
    batch = submit(provider, pairs(4), place / "b", cache=False, budget=8 * most, **options)
    # What the batch took: nothing is left.
    table = collect(batch, ask_missing=True, budget=most)
    assert "of the budget" in str(table[3].error)
    assert provider.count(ASK) == 0


def test_a_batch_whose_thinking_has_no_bound_is_refused_where_a_budget_holds(
    provider: BatchServer, place: Path
) -> None:
    options: dict[str, Any] = {
        "extra_body": {"thinking": {"type": "enabled"}},
        "prices": (0.0, 1000.0),
        "max_tokens": 100,
    }
    with pytest.raises(InvalidArgumentError, match="may ask for longer replies"):
        submit(provider, pairs(3), place / "a", budget=10.0, **options)
    assert not provider.calls
    assert not (place / "a").exists()
    submit(provider, pairs(3), place / "b", **options)
    llm = pi.LLM("fake", api_base=provider.api_base, budget=10.0, **options)
    llm.ask([{"role": "user", "content": "Say hello."}])
    pi.submit_batch(pairs(3), llm, place / "c")


def test_what_a_batch_may_cost_is_read_from_its_files_once(
    provider: BatchServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    most_cost = costs.most_cost

    def counted(batch: PersonaBatch, number: int, *others: Any) -> float:
        read.append(number)
        return most_cost(batch, number, *others)

    monkeypatch.setattr(costs, "most_cost", counted)
    submit(provider, pairs(3), place / "b", budget=1.0, prices=(1.0, 1.0))
    assert read == [0]
    submit(provider, pairs(3), place / "free", prices=(1.0, 1.0))
    assert read == [0]


def test_batches_of_one_model_share_its_budget(provider: BatchServer, place: Path) -> None:
    """The first may cost $0.15: three replies of 100 tokens, at half of $1,000 a million."""
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "budget": 0.2}
    model = pi.LLM("fake", api_base=provider.api_base, **options)
    pi.submit_batch(pairs(3), model, place / "first")
    with pytest.raises(BudgetExceededError, match=r"\$0.05 of the budget is left"):
        pi.submit_batch(pairs(6), model, place / "second")
    assert len(provider.batches) == 1


def test_a_batch_is_charged_when_it_is_submitted_whoever_filled_its_folder(
    provider: BatchServer, place: Path
) -> None:
    """A first call may have failed after the folder was written, under another budget."""
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "patience": 0.1}
    provider.faults = [(UPLOAD, 400)]
    with pytest.raises(RequestRejectedError):
        submit(provider, pairs(3), place / "b", budget=1.0, **options)
    with pytest.raises(BudgetExceededError, match="3 requests may cost"):
        submit(provider, pairs(3), place / "b", budget=0.1, **options)
    assert provider.batches == {}
    model = pi.LLM("fake", api_base=provider.api_base, budget=0.2, **options)
    budget = model.account.bounds.budget
    assert budget is not None
    provider.faults = [(UPLOAD, 400), (CREATE, 400)]
    with pytest.raises(RequestRejectedError):
        pi.submit_batch(pairs(3), model, place / "b")
    assert budget.spent == 0  # nothing was ordered
    for error in (RequestRejectedError, None):  # ordered, perhaps, and then once
        with pytest.raises(error) if error else nullcontext():
            pi.submit_batch(pairs(3), model, place / "b")
        assert budget.spent == pytest.approx(0.15)
    assert len(provider.batches) == 1


def test_a_part_that_the_provider_refused_is_charged_once_when_it_is_submitted_again(
    provider: BatchServer, place: Path
) -> None:
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "budget": 0.2}
    model = pi.LLM("fake", api_base=provider.api_base, **options)
    provider.statuses, provider.problem = ["failed"], "the queue is full"
    collect(pi.submit_batch(pairs(3), model, place / "b"))
    provider.statuses, provider.problem = ["completed"], ""
    batch = pi.submit_batch(pairs(3), model, place / "b")
    assert model.account.bounds.budget is not None
    assert model.account.bounds.budget.spent == pytest.approx(0.15)
    table = collect(batch)
    assert not table.errors
    assert model.account.bounds.budget.spent == pytest.approx(table.usage.cost)


def test_calls_in_flight_count_beside_a_batch(provider: BatchServer, place: Path) -> None:
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "budget": 0.2}
    model = pi.LLM("fake", api_base=provider.api_base, cache=False, **options)
    budget = model.account.bounds.budget
    assert budget is not None
    asyncio.run(budget.reserve(0.1))
    with pytest.raises(BudgetExceededError, match="beside the calls in flight"):
        pi.submit_batch(pairs(3), model, place / "b")
    assert provider.calls == []


def test_the_most_that_a_batch_can_cost_has_the_prices_of_long_prompts(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """Of each request: on the average they are short."""
    price = Price(1e-6, 0.0, longer=((100_000, 1e-3, 0.0, 0.0),))
    monkeypatch.setattr("personainfer.llm.client.find_batch_price", lambda *_: price)
    rows = [*pairs(9), {**pairs(1)[0], "prompt": "w" * 120_000}]
    with pytest.raises(BudgetExceededError, match=r"10 requests may cost \$12\d"):
        submit(provider, rows, place / "b", budget=100.0, prices=(1.0, 0.0))


def test_who_goes_on_with_a_folder_decides_how_it_is_collected(
    provider: BatchServer, place: Path
) -> None:
    """Budget, prices and cache are those of the last call of `submit_batch`, whoever made the folder."""
    folder = place / "b"
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "max_attempts": 1}
    provider.faults.append((CREATE, 400))
    with pytest.raises(RequestRejectedError):
        submit(provider, pairs(40), folder, budget=50.0, **options)
    file = PersonaBatch.handle(folder)
    handle = json.loads(file.read_text())
    handle["on_error"] = "drop"
    handle["llm_options"] |= {"budget": None, "prices": [0, 0], "cache_dir": str(place / "theirs")}
    file.write_text(json.dumps(handle))
    provider.refuse = lambda _: True
    batch = submit(provider, pairs(40), folder, budget=3.0, **options)
    table = collect(batch, ask_missing=True)
    assert len(table) == 40
    assert 0 < len(table.errors) < 40
    assert table.usage.cost is not None
    assert 2.0 < table.usage.cost <= 3.0
    assert not (place / "theirs").exists()
    assert PersonaBatch.load(folder).llm_options["budget"] == 3.0


def test_replies_in_a_folder_that_one_goes_on_with_do_not_get_into_your_cache(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    folder, mine = place / "theirs", place / "mine"
    collect(submit(provider, pairs(3), folder, cache_dir=place / "their cache"))
    monkeypatch.setattr(batch_folder, "_made_here", set())  # as in another process
    calls = list(provider.calls)
    batch = submit(provider, pairs(3), folder, cache_dir=mine)
    assert not collect(batch).errors
    assert provider.calls == calls
    assert pi.cache_info(mine).replies == 0


def test_a_handle_that_is_replaced_while_a_collect_waits_is_an_error(
    provider: BatchServer, place: Path
) -> None:
    batch = submit(provider, pairs(3), place / "b")
    file = PersonaBatch.handle(batch.path)
    handle = json.loads(file.read_text())
    handle["llm_options"]["api_base"] = "http://127.0.0.1:9/v1"
    file.write_text(json.dumps(handle))
    with pytest.raises(DataError, match="was replaced"), batch.alone():
        pytest.fail("the folder was taken for the batch")


def test_a_strangers_replies_do_not_get_into_your_cache(provider: BatchServer, place: Path) -> None:
    """They would be taken for those of your endpoint."""
    folder, mine = place / "theirs", place / "mine"
    submit(provider, pairs(3), folder, cache_dir=place / "their cache")
    here: dict[str, Any] = {"poll": 0.001, "api_base": provider.api_base, "cache_dir": mine}
    pi.collect_batch(folder, **here)
    assert pi.cache_info(mine).replies == 3  # downloaded by this call
    pi.clear_cache(cache_dir=mine)
    shutil.rmtree(folder / "replies")
    calls = list(provider.calls)
    assert not pi.collect_batch(folder, **here).errors
    assert provider.calls == calls
    assert pi.cache_info(mine).replies == 0


def test_nor_does_it_where_the_failed_rows_of_its_table_are_asked_again(
    provider: BatchServer, place: Path
) -> None:
    provider.refuse = lambda _: True
    submit(provider, pairs(3), place / "b")
    table = collect(place / "b", api_base=provider.api_base)
    with pytest.raises(InvalidArgumentError, match="what you pay for") as caught:
        pi.retry_errors(table, cache=False)
    assert caught.value.argument == "model"
    assert provider.count(ASK) == 0
    assert not pi.retry_errors(table, "fake", cache=False).errors
    assert not pi.retry_errors(table, api_base=provider.api_base, cache=False).errors


@pytest.mark.parametrize(
    "option",
    [{"extra_body": {"models": ["x"]}}, {"max_tokens": 100_000}, {"reasoning_effort": "high"}],
)
def test_a_folder_never_decides_that_single_calls_cost_more(
    option: dict[str, Any], provider: BatchServer, place: Path
) -> None:
    [name] = option
    provider.edit = lambda lines: lines[:2]
    submit(provider, pairs(3), place / "b", **option)
    with pytest.raises(InvalidArgumentError, match=f"give {name}= again") as caught:
        collect(place / "b", ask_missing=True, model="fake")
    assert caught.value.argument == name
    table = collect(place / "b")
    assert len(table.errors) == 1
    with pytest.raises(InvalidArgumentError, match=f"give {name}= again"):
        pi.retry_errors(table)
    assert provider.count(ASK) == 0
    assert not collect(place / "b", ask_missing=True, model="fake", **option).errors


def test_a_folder_never_decides_what_is_uploaded(provider: BatchServer, place: Path) -> None:
    provider.faults = [("POST /v1/files", 400)]
    with pytest.raises(ModelError):
        submit(provider, pairs(3), place / "b", max_tokens=100)
    file = place / "b" / "requests-0000.jsonl"
    written = file.read_bytes()
    lines = list(map(json.loads, written.splitlines()))
    for line in lines:
        line["body"] |= {"model": "theirs", "max_tokens": 10**5, "n": 20}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InvalidArgumentError, match="other data"):
        submit(provider, pairs(2), place / "b", max_tokens=100)
    submit(provider, pairs(3), place / "b", max_tokens=100)
    assert file.read_bytes() == written
    assert {(one["body"]["model"], one["body"]["max_tokens"]) for one in provider.lines} == {
        ("fake", 100)
    }


@pytest.mark.parametrize("step", ["POST /v1/files", CREATE])
def test_a_file_of_requests_that_is_gone_is_named(
    provider: BatchServer, place: Path, step: str
) -> None:
    provider.faults = [(step, 400)]
    options: dict[str, Any] = {"budget": 1.0, "prices": (1.0, 1.0)}
    with pytest.raises(ModelError):
        submit(provider, pairs(3), place / "b", **options)
    (place / "b" / "requests-0000.jsonl").unlink()
    with pytest.raises(DataError, match=r"requests-0000.jsonl is not as it was written"):
        submit(provider, pairs(3), place / "b", **options)


@pytest.mark.parametrize("step", ["POST /v1/files", CREATE])
def test_a_line_of_requests_without_end_does_not_fill_the_memory(
    provider: BatchServer, place: Path, step: str, monkeypatch: Patch
) -> None:
    """A stranger's archive may hold a file of terabytes in a few bytes."""
    provider.faults = [(step, 400)]
    options: dict[str, Any] = {"budget": 1.0, "prices": (1.0, 1.0)}
    with pytest.raises(ModelError):
        submit(provider, pairs(3), place / "b", **options)
    file = place / "b" / "requests-0000.jsonl"
    file.write_bytes(b" " * 2**17 + file.read_bytes())
    monkeypatch.setattr("personainfer.data.file_formats.LONGEST_LINE", 2**17)
    with pytest.raises(DataError, match=r"requests-0000.jsonl is not as it was written"):
        submit(provider, pairs(3), place / "b", **options)


def test_the_budget_of_a_batch_holds_for_a_judge_in_another_process(
    provider: BatchServer, place: Path, llm: FakeLLM
) -> None:
    options: dict[str, Any] = {"prices": (1.0, 1.0), "candidates": 2, "temperature": 0.7}
    submit(provider, pairs(3), place / "b", budget=1.0, **options)
    there: dict[str, Any] = {"api_base": llm.api_base, "cache": False, "prices": (1e6, 1e6)}
    judge = pi.Verifier("judge", **there)
    with suppress(ModelError):
        collect(place / "b", select=judge, prices=(1.0, 1.0))
    assert judge.usage.calls == 0


def test_the_budget_of_a_batch_holds_for_single_calls_in_another_process(
    provider: BatchServer, place: Path
) -> None:
    provider.edit = lambda lines: lines[:2]
    submit(provider, pairs(3), place / "b", budget=1.0, prices=(1.0, 1.0))
    ask: dict[str, Any] = {"ask_missing": True, "model": "fake"}
    with pytest.raises(InvalidArgumentError, match="prices="):
        collect(place / "b", **ask)
    ask["prices"] = (1.0, 100_000.0)  # one call may cost more than the budget of the folder
    [failed] = collect(place / "b", **ask).errors
    assert "of the budget of $1 is spent" in (failed.error or "")
    assert provider.count(ASK) == 0
    table = collect(place / "b", budget=1000.0, **ask)
    assert not table.errors
    assert table.usage.cost is not None


UNUSABLE = Fault.response(
    {
        "choices": [{"message": {"content": "no object"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 100},
    }
)


@pytest.mark.parametrize("by_folder", [True, False])
def test_each_collect_counts_the_single_calls_of_those_before(by_folder: bool, place: Path) -> None:
    """Their replies cannot be used, so they are not cached, and are paid for each time."""
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "cache": False}
    with FakeLLM(faults=[UNUSABLE] * 99) as llm, BatchServer(llm, refuse=lambda _: True) as server:
        batch = submit(server, pairs(5), place / "b", budget=1.0, max_attempts=2, **options)
        ask: dict[str, Any] = {"ask_missing": True, "model": "fake", "prices": (0.0, 1000.0)}
        for _ in range(4):
            with suppress(ModelError):
                collect(place / "b" if by_folder else batch, **ask)
        assert llm.calls == 10  # 0.1 USD each
        with suppress(ModelError):
            collect(place / "b", budget=1.25, **ask)
        assert llm.calls == 12
        assert PersonaBatch.load(place / "b").asked_singly == pytest.approx(1.2)


def test_the_llm_that_submitted_a_batch_counts_its_single_calls(place: Path) -> None:
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "cache": False}
    with FakeLLM(faults=[UNUSABLE] * 99) as llm, BatchServer(llm, refuse=lambda _: True) as server:
        model = pi.LLM("fake", api_base=server.api_base, budget=1.0, max_attempts=1, **options)
        budget = model.account.bounds.budget
        assert budget is not None
        batch = pi.submit_batch(pairs(5), model, place / "b")
        assert budget.spent == pytest.approx(0.25)  # at most, at half of the price
        for number, usd in enumerate((0.5, 1.0, 1.0), start=1):
            with suppress(ModelError):
                collect(batch, ask_missing=True)
            assert budget.spent == pytest.approx(usd), number
        with suppress(ModelError):
            collect(pickle.loads(pickle.dumps(batch)), ask_missing=True, budget=1.25)
        assert llm.calls == 12
        assert budget.spent == pytest.approx(1.2)


def test_a_plain_collect_gives_back_what_a_batch_did_not_cost(place: Path) -> None:
    with FakeLLM() as llm, BatchServer(llm) as server:
        options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 500}
        model = pi.LLM("fake", api_base=server.api_base, budget=9.0, **options)
        budget = model.account.bounds.budget
        assert budget is not None
        batch = pi.submit_batch(pairs(5), model, place / "b")
        assert budget.spent == pytest.approx(1.25)
        table = collect(batch)
        assert budget.spent == pytest.approx(table.usage.cost)
        assert budget.spent < 1.25


def test_of_a_batch_that_was_replaced_its_handle_collects_nothing(place: Path) -> None:
    """The one in its place decided where the key goes."""
    with FakeLLM() as llm, BatchServer(llm) as server, BatchServer(llm) as other:
        batch = submit(server, pairs(3), place / "b")
        submit(other, pairs(3), place / "theirs")
        shutil.copy(place / "theirs" / "batch.json", place / "b" / "batch.json")
        before = len(other.calls)
        with pytest.raises(DataError, match="was replaced since the batch was submitted"):
            collect(batch, api_key="sk-mine", ask_missing=True)
        assert len(other.calls) == before


def test_batches_that_are_collected_at_once_note_each_its_own_calls(place: Path) -> None:
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "max_attempts": 1}
    with FakeLLM(latency=0.05) as llm, BatchServer(llm, refuse=lambda _: True) as server:
        model = pi.LLM("fake", api_base=server.api_base, budget=9.0, max_concurrency=1, **options)
        groups = {"one": pairs(40)[:6], "two": pairs(40)[20:]}
        batches = {n: pi.submit_batch(rows, model, place / n) for n, rows in groups.items()}
        with ThreadPoolExecutor(2) as threads:
            tables = [*threads.map(lambda b: collect(b, ask_missing=True), batches.values())]
        noted = [PersonaBatch.load(place / name) for name in groups]
        assert [batch.asked_singly for batch in noted] == pytest.approx(
            [table.usage.cost for table in tables]
        )
        assert [batch.being_asked for batch in noted] == [0, 0]
        budget = model.account.bounds.budget
        assert budget is not None
        assert budget.spent == pytest.approx(sum(table.usage.cost or 0 for table in tables))


def test_of_collects_at_once_nothing_is_left_that_a_later_one_would_warn_of(
    provider: BatchServer, place: Path
) -> None:
    """0.3 + 0.7 - 0.7 - 0.3 is 0.00000000000000006 in floats."""
    batch = submit(provider, pairs(1), place / "b", prices=(0.0, 1000.0), budget=0.3)
    one, other = (
        pi.LLM("fake", api_base=provider.api_base, prices=(0.0, 1000.0), budget=usd)
        for usd in (0.3, 1.0)
    )
    with (
        costs.single_calls(batch, one, 0.0),
        pytest.warns(UserWarning, match="has not ended"),
        costs.single_calls(batch, other, 0.0),
    ):
        pass
    assert batch.load(batch.path).being_asked == 0.0


def test_a_judge_that_chooses_in_two_collects_at_once_is_noted_in_each_with_its_own_calls(
    place: Path,
) -> None:
    there: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "cache": False}
    judged = Reply({"answer": "1"}, prompt_tokens=3, completion_tokens=10)
    with (
        FakeLLM(lambda body: judged if body["model"] == "judge" else None, latency=0.05) as llm,
        BatchServer(llm) as server,
    ):
        options = {**there, "api_base": server.api_base, "candidates": 2, "temperature": 1.0}
        groups = {"one": pairs(40)[:3], "two": pairs(40)[20:32]}
        for name, rows in groups.items():
            pi.submit_batch(rows, "fake", place / name, budget=50.0, **options)
        told: dict[str, Any] = {"api_base": llm.api_base, "soft": False, **there}
        judge = pi.Verifier("judge", max_concurrency=2, **told)

        def collected(name: str) -> pi.PersonaTable:
            here = {"api_base": server.api_base, "prices": there["prices"]}
            return collect(place / name, select=judge, **here)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(collected, groups))
        # A side's candidates are equal: one is judged, in both orders, for 0.01 USD each.
        noted = [PersonaBatch.load(place / name).asked_singly for name in groups]
        assert noted == pytest.approx([0.04 * len(rows) for rows in groups.values()])
        assert judge.usage.cost == pytest.approx(sum(noted))
        judge = pi.Verifier(
            "judge", budget=5.0, **told
        )  # what its own budget pays is not the batch's
        collected("one")
        assert judge.usage.calls
        assert PersonaBatch.load(place / "one").asked_singly == pytest.approx(noted[0])


def test_a_collect_that_is_killed_has_taken_all_that_was_left(place: Path) -> None:
    options: dict[str, Any] = {"prices": (0.0, 1000.0), "max_tokens": 100, "max_attempts": 1}
    with (
        FakeLLM(faults=[UNUSABLE] * 99, latency=2.0) as llm,
        BatchServer(llm, refuse=lambda _: True) as server,
    ):
        pi.submit_batch(
            pairs(20), "fake", place / "b", api_base=server.api_base, budget=5.0, **options
        )
        again: dict[str, Any] = {"ask_missing": True, "model": "fake", "api_base": server.api_base}
        again |= {"prices": (0.0, 1000.0)}
        if (child := os.fork()) == 0:
            collect(place / "b", **again)
            os._exit(0)
        while not llm.calls:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        time.sleep(0.5)  # what it has sent arrives
        paid, llm.latency = llm.calls, 0.0
        with pytest.warns(UserWarning, match="has not ended, or was killed"):
            table = collect(place / "b", **again)
        assert llm.calls == paid
        assert "budget" in str(table[0].error)
        with pytest.warns(UserWarning, match="has not ended, or was killed"):
            more = collect(place / "b", **again, budget=5.3)
        assert llm.calls > paid
        assert 0.2 < (more.usage.cost or 0.0) <= 0.3


def test_the_warning_of_a_collect_that_was_cut_off_points_at_the_callers_line(
    provider: BatchServer, place: Path
) -> None:
    batch = submit(provider, pairs(1), place / "b", prices=(0.0, 1000.0), budget=5.0)
    batch.model_copy(update={"being_asked": 1.0}).save()
    with pytest.warns(UserWarning, match="has not ended, or was killed") as told:
        pi.collect_batch(batch, ask_missing=True, poll=0.001)
    assert [one.filename for one in told] == [__file__]


@pytest.mark.filterwarnings("error::UserWarning")
def test_this_warning_takes_nothing_of_the_budget_where_it_is_an_error(
    provider: BatchServer, place: Path
) -> None:
    batch = submit(provider, pairs(1), place / "b", prices=(0.0, 1000.0), budget=5.0)
    batch.model_copy(update={"being_asked": 1.0}).save()
    with pytest.raises(UserWarning, match="has not ended, or was killed"):
        pi.collect_batch(batch, ask_missing=True, poll=0.001)
    assert pi.collect_batch(batch, poll=0.001).errors == []
    assert batch.load(batch.path).being_asked == 1.0


@pytest.mark.parametrize(
    "option",
    [
        {"rpm": 1e-6},
        {"tpm": 1e-6},
        {"timeout": 1e-9},
        {"prices": [0, 0]},
        {"max_concurrency": 10**9},
        {"patience": 1e300},
        {"max_attempts": 10**9},
        {"cache_dir": "theirs"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_folder_decides_only_what_its_requests_hold(
    option: dict[str, Any], provider: BatchServer, place: Path
) -> None:
    """With a limit of somebody else's, single calls would never end, fail after payment, or seem free."""
    provider.edit = lambda lines: lines[:2]
    submit(provider, pairs(3), place / "b", temperature=0.5, seed=3)
    handle = place / "b" / "batch.json"
    stored = json.loads(handle.read_text())
    stored["llm_options"] |= option
    handle.write_text(json.dumps(stored))
    batch = PersonaBatch.load(place / "b")
    here = {"api_base": provider.api_base, "model": "fake"}
    plain = pi.LLM(
        "fake",
        api_base=provider.api_base,
        temperature=0.5,
        seed=3,
        cache_dir=batch.replies_folder,
    )
    assert llm_of(batch, here, calls=True).options == plain.options
    table = collect(place / "b", ask_missing=True, model="fake")
    assert (table.errors, table.usage.cost, provider.count(ASK)) == ([], None, 1)


def test_a_folder_never_decides_how_many_candidates_are_paid(
    provider: BatchServer, place: Path
) -> None:
    provider.edit = lambda lines: lines[:2]
    submit(provider, pairs(2), place / "b", candidates=9)
    with pytest.raises(InvalidArgumentError, match="candidates=9, …") as caught:
        collect(place / "b", ask_missing=True, model="fake", select=Longest())
    assert caught.value.argument == "ask_missing"
    table = collect(place / "b", select=Longest())
    again: dict[str, Any] = {"model": "fake", "api_base": provider.api_base}
    with pytest.raises(InvalidArgumentError, match="give candidates= again"):
        pi.retry_errors(table, **again, select=Longest())
    assert provider.count(ASK) == 0
    table = pi.retry_errors(table, **again, candidates=9, select=Longest())
    assert not table.errors


def test_a_table_of_a_folder_does_not_decide_which_model_is_asked_again(
    provider: BatchServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("OPENAI_BASE_URL", provider.api_base)  # for that of OpenAI itself
    provider.refuse = lambda _: True
    pi.submit_batch(pairs(3), "openai/fake", place / "b")
    table = pi.collect_batch(place / "b", poll=0.001)
    assert len(table.errors) == 3
    with pytest.raises(InvalidArgumentError, match="name the model yourself"):
        pi.retry_errors(table)
    table = pi.collect_batch(place / "b", poll=0.001, model="openai/fake")
    pi.retry_errors(table).raise_for_errors()


def test_a_folder_never_decides_which_model_is_paid(provider: BatchServer, place: Path) -> None:
    provider.edit = lambda lines: lines[:2]
    batch = submit(provider, pairs(3), place / "b")
    for given, words in [({}, "give model= again"), ({"model": "dear"}, "another folder")]:
        with pytest.raises(InvalidArgumentError, match=words) as caught:
            collect(place / "b", ask_missing=True, **given)
        assert caught.value.argument == "model"
    assert provider.count(ASK) == 0
    assert len(collect(place / "b").errors) == 1
    assert not collect(batch, ask_missing=True).errors  # here this process named it
    assert not collect(place / "b", ask_missing=True, model="fake").errors


def test_headers_that_choose_a_model_are_given_again(provider: BatchServer, place: Path) -> None:
    """The folder does not keep them, since they may be secret, and takes none from a stranger."""
    headers = {"x-portkey-provider": "openai"}
    submit(provider, pairs(3), place / "b", extra_headers=headers)
    with pytest.raises(DataError, match="extra_headers="):
        collect(place / "b")
    assert not collect(place / "b", extra_headers=headers).errors
    handle = place / "b" / "batch.json"
    stored = json.loads(handle.read_text())
    stored["llm_options"]["extra_headers"] = headers
    handle.write_text(json.dumps(stored))
    with pytest.raises(DataError, match="extra_headers"):
        collect(place / "b")


# When files come late


def hide_at_first(provider: BatchServer, name: str, monkeypatch: Patch) -> None:
    """Have a provider not name a file at the first look after the end of a batch."""
    shown, left = provider._shown, [1]

    def without(batch: Batch) -> Any:
        said = shown(batch)
        if batch.ran and left[0] and said.pop(name, None):
            left[0] -= 1
        return said

    monkeypatch.setattr(provider, "_shown", without)


@pytest.mark.parametrize("spare", [False, True], ids=["", "no counts"])
@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_replies_whose_file_is_named_long_after_the_first_look_are_fetched(
    status: str, spare: bool, provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """The laptop was closed for an hour, or the clock was set ahead: it is the provider that tells."""
    provider.late, provider.answered, provider.statuses = 1, 2, ["in_progress", status]
    provider.spare = spare
    batch = submit(provider, pairs(3), place / "b")
    with suppress(BatchPendingError):
        collect(batch, wait=False)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    table = collect(batch, wait=False)
    assert [row.error is None for row in table] == [True, True, False]
    assert table.usage.calls == 2


def test_a_file_of_errors_that_comes_first_is_not_all(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    provider.refuse = lambda body: "Question 1?" in json.dumps(body)
    hide_at_first(provider, "output_file_id", monkeypatch)
    table = collect(submit(provider, pairs(3), place / "b"))
    assert [row.error is None for row in table] == [True, False, True]


def test_errors_may_stand_in_the_file_of_replies(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """Some providers have no other file, and none is waited for."""
    provider.refuse = lambda body: "Question 1?" in json.dumps(body)
    ran, shown = provider._run, provider._shown

    def joined(batch: Batch) -> None:
        ran(batch)
        batch.output += batch.errors
        batch.errors = []

    def counted(batch: Batch) -> Any:
        said = shown(batch)
        counts = {"total": 3, "completed": 2, "failed": 1} if batch.ran else {}
        return said | {"request_counts": counts}

    monkeypatch.setattr(provider, "_run", joined)
    monkeypatch.setattr(provider, "_shown", counted)
    table = collect(submit(provider, pairs(3), place / "b"), timeout=5)
    assert [row.error is None for row in table] == [True, False, True]
    assert "scripted refusal" in str(table[1].error)


def test_a_batch_that_lost_a_line_is_collected_without_a_key(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    batch = submit(provider, pairs(3), place / "b")
    collect(batch)
    replies = place / "b" / "output-0000.jsonl"
    replies.write_bytes(b"".join(replies.read_bytes().splitlines(keepends=True)[:2]))

    def without_a_key(_: object) -> Any:
        raise AuthenticationError("no key for openai/x: OPENAI_API_KEY is not set.")

    monkeypatch.setattr("personainfer.batch.downloads.batch_api", without_a_key)
    assert len(collect(batch)) == 3


def test_the_largest_limit_of_a_reply_is_taken(provider: BatchServer, place: Path) -> None:
    collect(submit(provider, pairs(1), place / "b", max_tokens=2**31 - 1)).raise_for_errors()


@pytest.mark.parametrize("hidden", ["output_file_id", "error_file_id"])
def test_where_no_counts_tell_it_a_later_collect_brings_the_second_file(
    hidden: str, provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    provider.refuse = lambda body: "Question 1?" in json.dumps(body)
    provider.spare = True
    hide_at_first(provider, hidden, monkeypatch)
    batch = submit(provider, pairs(3), place / "b")
    collect(batch)
    table = collect(batch)
    assert [row.error is None for row in table] == [True, False, True]
    assert "scripted refusal" in str(table[1].error)


def test_what_is_there_is_collected_where_nobody_can_be_asked_for_more(
    provider: BatchServer, place: Path
) -> None:
    provider.spare = True
    batch = submit(provider, pairs(3), place / "b")
    collect(batch).raise_for_errors()
    provider.faults = [(LOOK, 404)] * 9
    collect(batch).raise_for_errors()
    provider.faults = [(LOOK, 500)] * 9
    collect(batch).raise_for_errors()


def test_a_file_that_was_served_before_it_was_whole_is_fetched_again(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """Until then, the lines that it lacks count at the most that they can cost."""
    served = provider._answer

    def cut(call: str, *rest: Any) -> tuple[int, bytes]:
        status, said = served(call, *rest)
        return status, said.split(b"\n")[0] + b"\n" if call == FETCH else said

    batch = submit(provider, pairs(3), place / "b", prices=(10.0, 100.0))
    monkeypatch.setattr(provider, "_answer", cut)
    table = collect(batch)
    assert len(table.errors) == 2
    assert table.usage.calls == 3
    monkeypatch.setattr(provider, "_answer", served)
    whole = collect(batch)
    whole.raise_for_errors()
    assert whole.usage.calls == 3
    assert (whole.usage.cost or 9) < (table.usage.cost or 0)
    calls = list(provider.calls)
    collect(batch)
    assert provider.calls == calls


def test_a_completed_batch_that_never_names_a_file_is_given_up(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    provider.late = 10**9
    batch = submit(provider, pairs(2), place / "b")
    with pytest.raises(BatchPendingError):
        collect(batch, timeout=0.2)
    monkeypatch.setattr("personainfer.batch.part._NAMED_WITHIN", 0.1)
    assert len(collect(batch).errors) == 2
    provider.late = 0
    collect(batch).raise_for_errors()


@pytest.mark.parametrize("created", [[9, 1], [1, 9], [1, None]])
def test_a_batch_behind_a_thousand_newer_ones_is_not_made_twice(
    created: list[int | None], provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    """Where the list goes back to before the upload, there is none, and one is made."""
    monkeypatch.setattr("personainfer.batch.states._MOST_LISTED", 3)
    upload, others = created
    monkeypatch.setattr(provider, "created", upload)
    provider.faults = [(CREATE, 500), *[(LIST, 500)] * 9]
    with pytest.raises(TransportError):
        submit(provider, pairs(2), place / "b", patience=0.01)
    provider.faults = []
    for number in range(4):
        other = Batch(f"batch-{number + 70}", f"file-{number + 500}", ["completed"], created=others)
        provider.batches[other.id] = other
        provider.files[other.file_id] = b""
    if others == 1:
        assert submit(provider, pairs(2), place / "b").parts[0].batch_id
    else:
        with pytest.raises(ReplyError, match="does not list its batches"):
            submit(provider, pairs(2), place / "b")


def test_a_line_after_an_error_of_its_request_is_charged(
    provider: BatchServer, place: Path
) -> None:
    """A provider may write down a call that it tried again."""

    def edit(lines: Lines) -> Lines:
        names = [json.loads(line)["custom_id"] for line in lines]
        busy = {"response": {"status_code": 429, "body": {"error": {"message": "busy"}}}}
        lost = {"response": None, "error": {"code": "lost", "message": "lost"}}
        both = [
            [json.dumps({"custom_id": name} | one).encode() for one in (busy, lost)]
            for name in names
        ]
        return [line for found, good in zip(both, lines, strict=True) for line in (*found, good)]

    prices: dict[str, Any] = {"prices": (10.0, 1000.0)}
    plain = collect(submit(provider, pairs(3), place / "a", cache=False, **prices))
    provider.edit = edit
    table = collect(submit(provider, pairs(3), place / "b", cache=False, **prices))
    table.raise_for_errors()
    assert table.usage == plain.usage


def test_a_batch_that_failed_after_it_answered_is_not_submitted_again(
    provider: BatchServer, place: Path
) -> None:
    provider.statuses, provider.answered, provider.late = ["in_progress", "failed"], 2, 1
    batch = submit(provider, pairs(3), place / "b")
    with suppress(BatchPendingError):
        collect(batch, wait=False)
    submit(provider, pairs(3), place / "b")
    assert provider.count(CREATE) == 1
    assert provider.llm.calls == 2


def test_from_its_path_each_part_is_in_the_users_cache_as_soon_as_it_is_fetched(
    provider: BatchServer, place: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(request_files, "MAX_REQUESTS", 2)
    provider.statuses = ["in_progress", "completed"]
    batch = submit(provider, pairs(4), place / "b", cache_dir=place / "another")
    slow = provider.batches[str(batch.parts[1].batch_id)]
    slow.statuses = ["in_progress"] * 3 + ["completed"]
    with pytest.raises(BatchPendingError):
        pi.collect_batch(
            place / "b", wait=False, api_base=provider.api_base, cache_dir=place / "mine"
        )
    assert pi.cache_info(place / "mine").replies == 2
    collect(place / "b", cache_dir=place / "mine").raise_for_errors()
    assert pi.cache_info(place / "mine").replies == 4


def test_from_its_path_single_calls_are_in_the_users_cache(
    provider: BatchServer, place: Path
) -> None:
    provider.edit = lambda lines: lines[:1]
    submit(provider, pairs(3), place / "b", cache_dir=place / "another")
    mine: dict[str, Any] = {"cache_dir": place / "mine"}
    collect(place / "b", ask_missing=True, model="fake", **mine).raise_for_errors()
    assert infer(provider, pairs(3), **mine).usage.cached == 3


def test_what_the_submitting_model_had_learned_counts_in_each_collect(
    provider: BatchServer, place: Path
) -> None:
    """It reasons: its requests allow 8 times as many tokens, and lines without tokens may have taken them."""

    def untold(lines: Lines) -> Lines:
        return [re.sub(rb'"usage": \{[^{}]*\}', b'"usage": null', line) for line in lines]

    prices: dict[str, Any] = {"prices": (0.0, 1000.0)}
    llm: Any = pi.LLM("fake", api_base=provider.api_base, cache=False, budget=100.0, **prices)
    llm.transport.dialect.reasons = True
    most = llm.most_tokens()
    assert most == 4000
    provider.edit = untold
    batch = pi.submit_batch(pairs(4), llm, place / "b")
    reserved = llm.account.bounds.budget.spent
    assert reserved == pytest.approx(4 * most * 1e-3 / 2)
    for given in (batch, place / "b"):
        table = collect(given, **prices)
        assert table.usage.cost == pytest.approx(reserved)
    provider.faults = [(CREATE, 400)]
    with pytest.raises(ModelError):
        pi.submit_batch(pairs(4), llm, place / "c")
    with pytest.raises(BudgetExceededError):
        submit(provider, pairs(4), place / "c", cache=False, budget=3.0, **prices)


def test_what_an_endpoint_adds_to_prompts_counts_in_a_batch_and_its_collect(
    provider: BatchServer, place: Path
) -> None:
    """A single call had told it, and lines without tokens may have taken as many."""

    def untold(lines: Lines) -> Lines:
        return [re.sub(rb'"usage": \{[^{}]*\}', b'"usage": null', line) for line in lines]

    prices: dict[str, Any] = {"prices": (1000.0, 0.0)}
    llm: Any = pi.LLM("fake", api_base=provider.api_base, cache=False, budget=100.0, **prices)
    llm.account.added = 20_000
    provider.edit = untold
    batch = pi.submit_batch(pairs(2), llm, place / "b")
    reserved = llm.account.bounds.budget.spent
    assert reserved > 2 * 20_000 * 1e-3 / 2
    for given in (batch, place / "b"):
        assert collect(given, **prices).usage.cost == pytest.approx(reserved, rel=0.01)
    provider.faults = [(CREATE, 400)]
    with pytest.raises(ModelError):
        pi.submit_batch(pairs(2), llm, place / "c")
    with pytest.raises(BudgetExceededError):
        submit(provider, pairs(2), place / "c", cache=False, budget=10.0, **prices)


def test_a_collect_without_the_submitters_prices_leaves_what_it_reserved(
    provider: BatchServer, place: Path
) -> None:
    prices: dict[str, Any] = {"prices": (100.0, 1000.0)}
    llm = pi.LLM("fake", api_base=provider.api_base, budget=100.0, **prices)
    pi.submit_batch(pairs(5), llm, place / "b")
    budget = llm.account.bounds.budget
    assert budget is not None
    reserved = budget.spent
    for other in ({}, {"prices": (0.0, 0.001)}):
        collect(place / "b", **other)
        assert budget.spent == reserved > 1
    cost = collect(place / "b", **prices).usage.cost
    assert budget.spent == pytest.approx(cost)


def test_a_look_beside_single_calls_takes_nothing_of_their_budget(
    provider: BatchServer, place: Path
) -> None:
    provider.refuse = lambda _: True
    llm = pi.LLM(
        "fake", api_base=provider.api_base, budget=100.0, prices=(0.0, 1000.0), max_concurrency=4
    )
    batch = pi.submit_batch(pairs(20), llm, place / "b")
    collect(batch)
    provider.llm.latency = 0.1
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(collect, batch, ask_missing=True)
        while not provider.llm.calls:
            time.sleep(0.01)
        collect(batch)
        assert not asked.result().errors


def test_a_folder_put_in_the_place_of_a_batch_is_not_taken_for_it(
    provider: BatchServer, place: Path
) -> None:
    """All replies were cached, so there is no part whose name could tell."""
    infer(provider, pairs(2))
    batch = submit(provider, pairs(2), place / "b")
    good = [row.chosen for row in collect(batch)]
    (place / "b").rename(place / "old")
    infer(provider, pairs(2), cache_dir=place / "theirs")
    submit(provider, pairs(2), place / "b", cache_dir=place / "theirs")
    cached = place / "b" / "cached.jsonl"
    cached.write_bytes(
        cached.read_bytes().replace(b"prefers", b"poison").replace(b"plain", b"poison")
    )
    with pytest.raises(DataError, match="was replaced"):
        collect(batch)
    collect(submit(provider, pairs(2), place / "b"))
    assert [row.chosen for row in infer(provider, pairs(2))] == good
