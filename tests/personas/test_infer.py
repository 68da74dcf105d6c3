"""infer_personas and its twins, against a loopback server."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.exceptions import (
    AuthenticationError,
    DataError,
    InvalidArgumentError,
    ModelNotFoundError,
    ReplyError,
    RequestRejectedError,
    TransportError,
    UnknownOptionError,
)
from personainfer.personas import infer as infer_module
from personainfer.personas.infer import PersonaStream, first_request
from personainfer.personas.prompts import default_exemplars
from personainfer.testing import FakeLLM, Fault

from ..builders import examples, pairs, shared, until

EXEMPLAR_PREFERENCE = default_exemplars()[0].chosen.preference


def test_each_row_gets_two_personas_in_the_order_of_the_input(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    table = pi.infer_personas(pairs(200), **endpoint)
    assert len(table) == 200
    assert [row.index for row in table] == list(range(200))
    assert [row.preference.prompt for row in table if row.preference] == [
        f"Question {n}?" for n in range(200)
    ]
    assert all(row.chosen and row.rejected and row.error is None for row in table)
    assert len({str(row.chosen) for row in table}) > 190
    assert llm.calls == table.usage.calls == 200
    assert llm.repeats == 0


def _both(one: str, other: str, seen: str = "a joke") -> dict[str, dict[str, str]]:
    return {
        "person_1": {"evidence": "a list", "trait": "calm", "preference": one},
        "person_2": {"evidence": seen, "trait": "calm", "preference": other},
    }


@pytest.mark.parametrize("first", [("lists", "Lists"), (EXEMPLAR_PREFERENCE, "lists")])
def test_equal_sides_and_a_copied_exemplar_are_asked_again_once(first: tuple[str, str]) -> None:
    replies = iter([_both(*first), _both("lists", "stories")])
    with FakeLLM(reply=lambda body: next(replies)) as server:
        table = pi.infer_personas(pairs(1), "fake", api_base=server.api_base)
        (row,) = pi.infer_personas(pairs(1), "fake", api_base=server.api_base)
        asked, told = (body["messages"][-1]["content"] for body in server.requests)
    assert (table.usage.calls, table.usage.reasks) == (2, 1)
    assert told.startswith(asked)
    assert "different things" in told.removeprefix(asked)
    assert row.chosen is not None
    assert row.rejected is not None
    assert {row.chosen.preference, row.rejected.preference} == {"lists", "stories"}
    assert row.chosen.flags == row.rejected.flags == ()


@pytest.mark.parametrize(("seen", "calls"), [("a joke", 2), ("a list", 1)])
def test_sides_that_stay_equal_are_flagged_and_no_error(seen: str, calls: int) -> None:
    """A model that sees the same in both responses is not asked again."""
    with FakeLLM(_both("lists", "lists", seen)) as server:
        table = pi.infer_personas(pairs(1), "fake", api_base=server.api_base)
    assert (table.usage.calls, table.errors) == (calls, [])
    assert table[0].chosen is not None
    assert "same_as_other_side" in table[0].chosen.flags


@pytest.mark.parametrize("nothing", ["...", ";", "\u2014", "\N{ZERO WIDTH SPACE}"])
def test_a_preference_without_a_word_is_no_persona(nothing: str) -> None:
    """ "The user is calm and prefers ." was a persona."""
    replies = iter([_both("lists", nothing), _both("lists", "stories")])
    with FakeLLM(reply=lambda body: next(replies)) as server:
        table = pi.infer_personas(pairs(1), "fake", api_base=server.api_base)
        told = server.requests[-1]["messages"][-1]["content"]
        schema = json.dumps(server.requests[-1]["response_format"])
    assert table.errors == []
    assert {row.preference for row in (table[0].chosen, table[0].rejected) if row} == {
        "lists",
        "stories",
    }
    assert "person_2.preference" in told
    assert "pattern" not in schema  # some endpoints refuse a schema with one


def test_the_second_run_makes_no_call(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    first = pi.infer_personas(pairs(30), **endpoint)
    second = pi.infer_personas(pairs(30), **endpoint)
    assert llm.calls == 30
    assert second.usage.calls == 0
    assert second.usage.cached == 30
    assert list(second) == list(first)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"max_tokens": 77},
        {"seed": 3},
        {"exemplars": "none"},
        {"protocol": "separate"},
    ],
)
def test_what_changes_the_request_misses_the_cache(
    llm: FakeLLM, endpoint: dict[str, Any], change: dict[str, Any]
) -> None:
    pi.infer_personas(pairs(3), **endpoint)
    before = llm.calls
    pi.infer_personas(pairs(3), **endpoint, **change)
    assert llm.calls > before


@pytest.mark.parametrize(
    "change",
    [{"timeout": 5.0}, {"max_concurrency": 2}, {"api_key": "sk-other-key"}, {"rpm": 600.0}],
)
def test_what_does_not_change_the_request_hits_the_cache(
    llm: FakeLLM, endpoint: dict[str, Any], change: dict[str, Any]
) -> None:
    pi.infer_personas(pairs(3), **endpoint)
    again = pi.infer_personas(list(reversed(pairs(3))), **endpoint, **change)
    assert llm.calls == 3
    assert again.usage.cached == 3


def test_equal_pairs_are_paid_for_once(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    table = pi.infer_personas(pairs(1) * 50, **endpoint)
    assert llm.calls == 1
    assert len({str(row.chosen) for row in table}) == 1


def test_without_a_cache_every_run_calls(
    llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    for _ in range(2):
        pi.infer_personas(pairs(5), **endpoint, cache=False)
    assert llm.calls == 10
    assert not (tmp_path / "cache").exists()


def test_separate_protocol_calls_once_a_side(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    table = pi.infer_personas(pairs(4), protocol="separate", **endpoint)
    assert llm.calls == 8
    assert all(row.chosen and row.rejected for row in table)


@pytest.mark.parametrize(("side", "other"), [("chosen", "rejected"), ("rejected", "chosen")])
def test_one_side_alone_is_one_call_and_one_persona(
    llm: FakeLLM, endpoint: dict[str, Any], side: Any, other: str
) -> None:
    table = pi.infer_personas(pairs(3), sides=side, **endpoint)
    assert llm.calls == 3
    assert all(getattr(row, side) and getattr(row, other) is None for row in table)
    both = pi.infer_personas(pairs(3), protocol="separate", **endpoint)
    assert [getattr(row, side) for row in table] == [getattr(row, side) for row in both]


def test_a_pair_never_says_which_response_was_chosen(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    pi.infer_personas(pairs(1), **endpoint)
    turn = llm.requests[0]["messages"][-1]["content"]
    assert "Short answer 0." in turn
    assert "chosen" not in turn.lower()
    assert "reject" not in turn.lower()


def test_a_bad_row_costs_only_itself(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    data: list[Any] = pairs(6)
    data[1] = {**data[1], "rejected": data[1]["chosen"]}
    data[2] = {**data[2], "prompt": " "}
    data[3] = {**data[3], "chosen": 7}
    data[4] = {"prompt": "Only this"}
    table = pi.infer_personas(data, **endpoint)
    assert [row.error is None for row in table] == [True, False, False, False, False, True]
    assert llm.calls == 2
    errors = [row.error or "" for row in table]
    assert "rejected" in errors[1]
    assert "prompt" in errors[2]
    assert "chosen" in errors[3]
    with pytest.raises(pi.PersonaInferError, match="4 of 6 rows"):
        table.raise_for_errors()


def test_a_reply_that_cannot_be_used_fails_its_row_only(endpoint: dict[str, Any]) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return (
            Fault.refusal("I cannot help") if "Question 3?" in str(body["messages"][-1]) else None
        )

    with FakeLLM(reply=reply) as llm:
        table = pi.infer_personas(pairs(6), model="fake", api_base=llm.api_base, max_attempts=2)
    assert [row.index for row in table.errors] == [3]
    assert "refused" in str(table[3].error)


def test_on_error_raise_and_drop(endpoint: dict[str, Any]) -> None:
    frame = pd.DataFrame(pairs(4), index=list("abcd"))
    frame.loc["b", "chosen"] = ""
    with pytest.raises(DataError, match="row 1: chosen is empty"):
        pi.infer_personas(frame, on_error="raise", **endpoint)
    table = pi.infer_personas(frame, on_error="drop", **endpoint)
    assert list(table.to_pandas().index) == ["a", "c", "d"]
    assert table.settings["dropped"] == 1


def test_on_error_raise_names_the_row_of_a_failed_reply() -> None:
    with FakeLLM(reply=Fault.invalid_json()) as llm, pytest.raises(ReplyError, match="row 0"):
        pi.infer_personas(pairs(1), "fake", api_base=llm.api_base, on_error="raise", max_attempts=1)


def test_a_generator_is_read_no_further_than_a_window(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    read = 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal read
        for row in pairs(5000):
            read += 1
            yield row

    with pi.iter_personas(rows(), max_concurrency=4, **endpoint) as stream:
        first = [next(stream) for _ in range(3)]
    assert [row.index for row in first] == [0, 1, 2]
    assert read < 300
    assert llm.calls < 300


def test_iteration_matches_the_table(endpoint: dict[str, Any]) -> None:
    rows = list(pi.iter_personas(pairs(40), **endpoint))
    assert rows == list(pi.infer_personas(pairs(40), **endpoint))


def test_async_twin_inside_a_running_loop(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    async def both() -> list[pi.PersonaTable]:
        halves = (pairs(20)[:10], pairs(20)[10:])
        return list(
            await asyncio.gather(*[pi.ainfer_personas(half, **endpoint) for half in halves])
        )

    one, two = asyncio.run(both())
    assert [row.preference.prompt for row in [*one, *two] if row.preference] == [
        f"Question {n}?" for n in range(20)
    ]
    assert llm.calls == 20
    assert not one.errors
    assert not two.errors


def test_sync_call_inside_a_running_loop(endpoint: dict[str, Any]) -> None:
    async def caller() -> int:
        return len(pi.infer_personas(pairs(5), **endpoint))

    assert asyncio.run(caller()) == 5


def test_output_is_in_the_folder_where_the_run_began(
    endpoint: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from pairs(2)
        monkeypatch.chdir(tmp_path / "elsewhere")  # as %cd in a notebook, beside a run

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    table = pi.infer_personas(rows(), output="t.parquet", **endpoint)
    assert len(table) == len(pi.PersonaTable.load(tmp_path / "t.parquet")) == 2


def test_cancelling_the_async_twin_stops_the_calls() -> None:
    async def cancelled(api_base: str) -> None:
        task = asyncio.create_task(
            pi.ainfer_personas(pairs(500), "fake", api_base=api_base, max_concurrency=2)
        )
        while llm.calls < 4:  # noqa: ASYNC110 - the server counts in another thread
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with FakeLLM(latency=0.02) as llm:
        asyncio.run(cancelled(llm.api_base))
        assert llm.calls < 100


def test_a_loop_that_is_closed_stops_the_calls() -> None:
    with FakeLLM(latency=0.01) as llm:
        made = pi.ainfer_personas(pairs(500), "fake", api_base=llm.api_base, max_concurrency=2)

        async def fails() -> None:
            waits.append(asyncio.ensure_future(made))
            while llm.calls < 4:  # noqa: ASYNC110 - the server counts in another thread
                await asyncio.sleep(0.01)
            raise KeyError

        waits: list[asyncio.Future[Any]] = []
        loop = asyncio.new_event_loop()
        with pytest.raises(KeyError):
            loop.run_until_complete(fails())
        loop.close()
        made.close()  # as when it is collected as garbage
        before = llm.calls
        time.sleep(0.1)
        assert llm.calls <= before + 2  # of 500


def test_the_data_of_a_stream_that_is_closed_leaves_the_memory(llm: FakeLLM) -> None:
    """Also where a judge's connections, which were made within the run, stay open."""

    class Rows(list[Any]):
        pass

    data = Rows(pairs(100))
    left = weakref.ref(data)
    personas = pi.LLM("fake", api_base=llm.api_base, temperature=0.8, max_concurrency=2)
    select = pi.Verifier("judge", api_base=llm.api_base)
    with pi.iter_personas(data, personas, candidates=2, select=select) as stream:
        next(stream)
    del data, stream
    gc.collect()
    assert left() is None


def test_cancelling_the_async_twin_stops_the_calls_of_its_judge(llm: FakeLLM) -> None:
    async def cancelled() -> None:
        personas = pi.LLM("fake", api_base=llm.api_base, temperature=0.8)
        select = pi.Verifier("judge", api_base=judge.api_base, max_concurrency=2)
        made = pi.ainfer_personas(pairs(16), personas, candidates=2, select=select)
        task = asyncio.create_task(made)
        while judge.calls < 4:  # noqa: ASYNC110 - the server counts in another thread
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = judge.calls
        await asyncio.sleep(0.1)
        assert judge.calls <= before + 2  # of 64

    with FakeLLM(latency=0.01) as judge:
        asyncio.run(cancelled())


def test_the_async_twin_takes_no_thread_of_the_loop(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    """A program looks up names of hosts there, and a run may take hours."""

    async def beside() -> bool:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        task = asyncio.create_task(pi.ainfer_personas(pairs(1), **endpoint))
        while llm.calls < 1:  # noqa: ASYNC110 - the server counts in another thread
            await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.to_thread(int), 5)
        was_done = task.done()
        may_answer.set()
        assert not (await task).errors
        return was_done

    may_answer = threading.Event()

    def waits(body: dict[str, Any]) -> str:
        may_answer.wait(10)
        return sampled({"seed": 1})

    llm.reply = waits
    assert asyncio.run(beside()) is False
    until(lambda: not [one for one in threading.enumerate() if "personainfer-run" in one.name])


class ByLength:
    """Explains by how long the persona's sentence is: a stand-in with a known best."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset
        self.asked = 0

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> np.ndarray[Any, Any]:
        assert len(preferences) == len(personas)
        self.asked += len(personas)
        return np.array([len(str(persona)) + self.offset for persona in personas], float)


def sampled(body: dict[str, Any]) -> str:
    """A different pair of personas for each seed."""
    trait = "calm" + "x" * (body["seed"] % 7)
    one = {"evidence": "brevity", "trait": trait, "preference": "short answers"}
    two = {"evidence": "detail", "trait": trait + " curious", "preference": "long answers"}
    return json.dumps({"person_1": one, "person_2": two})


def test_the_best_of_several_candidates_is_kept_with_the_others() -> None:
    with FakeLLM(reply=sampled) as llm:
        table = pi.infer_personas(
            pairs(3), "fake", api_base=llm.api_base, candidates=4, select=ByLength(), seed=0
        )
        assert llm.calls == 12
        assert llm.requests[0]["temperature"] > 0
    for row in table:
        assert row.chosen is not None
        assert row.rejected is not None
        assert {row.chosen.trait, row.rejected.trait} == {"calmxxx", "calmxxx curious"}
        scores = [candidate.score for candidate in row.chosen_candidates]
        assert len(scores) == 4
        assert scores == sorted(scores, key=lambda score: -(score or 0))
        assert row.chosen_candidates[0].persona == row.chosen


@pytest.mark.parametrize("output", [False, True], ids=["memory", "file"])
def test_a_frame_that_is_changed_later_leaves_the_table_as_it_was(
    output: bool, tmp_path: Path
) -> None:
    """A notebook goes on with the same frame: personas must not end up beside other rows."""
    frame = pd.DataFrame(pairs(3), index=[7, 7, 1]).assign(kind="old")
    before = frame.copy()
    path = tmp_path / "t.parquet" if output else None
    with FakeLLM() as llm:
        table = pi.infer_personas(frame, "fake", api_base=llm.api_base, output=path)
    del frame["kind"]
    frame["new"] = 1
    frame.loc[9] = pd.Series(["another row", "a", "b", 2], index=frame.columns)
    frame.index = pd.Index(range(len(frame)))
    for found in (table.to_pandas(), table.to_arrow().to_pandas()):
        pd.testing.assert_frame_equal(found[list(before)], before)


class Scores:
    """Gives what it is told, whatever is asked."""

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def explains(self, _: Sequence[pi.Preference], personas: Sequence[pi.Persona]) -> Any:
        return self.scores[: len(personas)] if self.scores else None


def test_a_score_that_is_no_number_is_the_last_choice(tmp_path: Path) -> None:
    select = Scores([float("nan"), 2.0, 1.0] * 2)
    with FakeLLM(reply=sampled) as llm:
        table = pi.infer_personas(
            pairs(1), "fake", api_base=llm.api_base, candidates=3, select=select, seed=0
        )
        unknown = pi.infer_personas(
            pairs(1),
            "fake",
            api_base=llm.api_base,
            candidates=2,
            select=Scores([float("nan")] * 4),
            seed=0,
        )
    assert [candidate.score for candidate in table[0].chosen_candidates] == [2.0, 1.0, None]
    assert table[0].chosen == table[0].chosen_candidates[0].persona
    assert "chosen: none of 2 personas could be scored;" in str(unknown[0].error)
    for one in (table, unknown):
        page = pi.write_report(one, tmp_path / "report.html").read_text()
        assert "NaN" not in page


@pytest.mark.parametrize("scores", [[1.0], None, ["a"] * 4, [[1.0, 2.0]] * 4])
def test_a_selector_that_gives_no_scores_is_named(scores: Any) -> None:
    with FakeLLM(reply=sampled) as llm, pytest.raises(InvalidArgumentError, match="select="):
        pi.infer_personas(
            pairs(1), "fake", api_base=llm.api_base, candidates=2, select=Scores(scores), seed=0
        )


class Picky(ByLength):
    """Takes no prompt with a certain number in it."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> np.ndarray[Any, Any]:
        if any("7" in str(pair.prompt) for pair in preferences):
            raise self.error("the chat template refuses these messages.")
        return super().explains(preferences, personas)


class Away(ByLength):
    """Ends after some calls."""

    calls = 0

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> np.ndarray[Any, Any]:
        self.calls += 1
        if self.calls > 1:
            raise TransportError("the connection failed.")
        return super().explains(preferences, personas)


@pytest.mark.heavy
def test_a_selector_that_is_away_ends_the_run_soon() -> None:
    away = Away()
    with FakeLLM(reply=sampled) as llm, pytest.raises(TransportError, match="connection failed"):
        pi.infer_personas(
            pairs(64), "fake", api_base=llm.api_base, candidates=2, select=away, seed=0
        )
    assert away.calls == 5  # a group, one that fails, and three rows of it


@pytest.mark.parametrize("error", [InvalidArgumentError, RequestRejectedError, TransportError])
def test_a_row_that_the_selector_refuses_costs_no_other(error: type[Exception]) -> None:
    """Here by transformers, or by a server, which answers 400 for a text that is too long for it."""
    with FakeLLM(reply=sampled) as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "candidates": 2, "seed": 0}
        found = pi.infer_personas(pairs(10), "fake", select=Picky(error), **options)
        with pytest.raises(error, match="chat template refuses"):
            pi.infer_personas(pairs(10)[7:8], "fake", select=Picky(error), **options)
    assert [row.index for row in found.errors] == [7]
    assert "could not be scored: the chat template refuses" in str(found[7].error)
    assert (found[7].chosen, len(found[7].chosen_candidates)) == (None, 2)
    assert all(row.chosen and row.rejected for row in found if row.index != 7)


def test_a_selector_that_refuses_everything_ends_the_run_whatever_else_is_wrong() -> None:
    """A row that cannot be read has nothing to be refused."""
    data = [{"prompt": "?"}, *pairs(10)[7:8]]
    with (
        FakeLLM(reply=sampled) as llm,
        pytest.raises(InvalidArgumentError, match="chat template refuses"),
    ):
        pi.infer_personas(
            data,
            "fake",
            api_base=llm.api_base,
            candidates=2,
            seed=0,
            select=Picky(InvalidArgumentError),
        )


@pytest.mark.heavy
def test_candidates_are_scored_while_others_are_still_asked_for() -> None:
    class Watching:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def explains(
            self, preferences: Sequence[pi.Preference], personas: Sequence[Any]
        ) -> list[float]:
            self.seen.append(llm.calls)
            if len(self.seen) == 1:
                until(lambda: llm.calls > self.seen[0])  # replies come while this scores
            return [1.0] * len(preferences)

    watching = Watching()
    with FakeLLM(latency=0.01) as llm:
        table = pi.infer_personas(
            pairs(40),
            "fake",
            api_base=llm.api_base,
            candidates=2,
            select=watching,
            max_concurrency=4,
        )
    assert not table.errors
    assert watching.seen[0] < 80


def test_a_selector_that_compares_candidates_is_asked_once_a_side() -> None:
    class Comparing:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def explains(self, preferences: Any, personas: Any) -> list[float]:
            raise AssertionError("it can compare")

        def explains_candidates(self, preferences: Any, candidates: Any) -> list[list[float]]:
            self.asked += [len(personas) for personas in candidates]
            return [[float(len(str(one))) for one in personas] for personas in candidates]

    likings = iter(["tea", "long stories", "tea", "cats"])

    def reply(_body: Any) -> dict[str, Any]:
        one = {"evidence": "e", "trait": "calm", "preference": next(likings)}
        return {"person_1": one, "person_2": {**one, "preference": "soup"}}

    comparing = Comparing()
    with FakeLLM(reply) as llm:
        [row] = pi.infer_personas(
            pairs(1),
            "fake",
            api_base=llm.api_base,
            candidates=4,
            select=comparing,
            max_concurrency=1,
        )
    assert sorted(comparing.asked) == [1, 3]  # equal candidates count once
    sides = {str(row.chosen), str(row.rejected)}
    assert any("long stories" in side for side in sides)
    assert any("soup" in side for side in sides)


def test_no_candidate_is_kept_that_does_not_explain() -> None:
    with FakeLLM(reply=sampled) as llm:
        table = pi.infer_personas(
            pairs(2), "fake", api_base=llm.api_base, candidates=2, select=ByLength(-1e6), seed=0
        )
    assert all(row.chosen is None and row.rejected is None for row in table)
    assert len(table[0].chosen_candidates) == 2
    assert table[0].unexplained == ("chosen", "rejected")
    assert table.errors == []  # a finding about the pair, and nothing that failed
    assert "2 unexplained" in repr(table)
    assert "no persona explains why somebody would prefer the chosen response" in str(table)
    assert "no persona explains" in table._repr_html_()


@pytest.mark.parametrize("protocol", ["joint", "separate"])
def test_the_one_persona_of_a_side_is_kept_only_if_it_explains(
    protocol: Literal["joint", "separate"],
) -> None:
    """Without candidates to choose among, `select` says which choices no persona explains."""

    class OnlyChosen:
        def explains(self, preferences: Sequence[pi.Preference], personas: object) -> list[float]:
            return [1.0 if p.chosen.startswith("Tea") else -1.0 for p in preferences]

    asked = [("Tea or coffee?", f"Tea, {n} cups.", f"Coffee, {n} cups.") for n in range(3)]
    with FakeLLM() as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "protocol": protocol}
        plain = pi.infer_personas(asked, "fake", **options)
        calls = llm.calls
        table = pi.infer_personas(asked, "fake", select=OnlyChosen(), **options)
        assert llm.calls == calls  # the same requests, and their replies are in the cache
    assert table.errors == []
    for row, before in zip(table, plain, strict=True):
        assert (row.chosen, row.rejected) == (before.chosen, None)
        assert row.unexplained == ("rejected",)
        assert [(c.persona, c.score) for c in row.rejected_candidates] == [(before.rejected, -1.0)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"candidates": 8}, "select"),
        ({"candidates": 0}, "candidates=0"),
        ({"select": object()}, "explains"),
        ({"candidates": 2, "select": object()}, "explains"),
        ({"candidates": 2, "select": ByLength(), "temperature": 0.0}, "temperature"),
        ({"sides": "left"}, "sides='left'"),
        ({"protocol": "triple"}, "protocol='triple'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"exemplars": "some"}, "exemplars='some'"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_concurrency": 1.5}, "max_concurrency=1.5"),
        ({"temperature": 3}, "temperature=3"),
        ({"rpm": -1}, "rpm=-1"),
        ({"api_base": "localhost:8000"}, "api_base= is not an address"),
        ({"budget": 1.0}, "price of 'fake' is not known"),
        ({"columns": {"prompt": "question"}}, "question"),
    ],
)
def test_bad_arguments_fail_before_any_call(
    llm: FakeLLM, endpoint: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        pi.infer_personas(pairs(2), **{**endpoint, **options})
    assert isinstance(caught.value, pi.PersonaInferError)
    assert llm.calls == 0


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownOptionError, match="Did you mean temperature="):
        pi.infer_personas(pairs(1), temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        pi.infer_personas(pairs(1), temprature=1)  # type: ignore[call-arg]


def test_options_beside_an_llm_are_refused(endpoint: dict[str, Any]) -> None:
    model = pi.LLM(**endpoint)
    with pytest.raises(InvalidArgumentError, match="temperature"):
        pi.infer_personas(pairs(1), model, temperature=1.0)
    assert not pi.infer_personas(pairs(1), model).errors
    assert model.usage.calls == 1


@pytest.mark.heavy
def test_an_unknown_provider_is_refused_before_any_call() -> None:
    with pytest.raises(InvalidArgumentError, match="no provider"):
        pi.infer_personas(pairs(1), "no-such-model-anywhere")


@pytest.mark.heavy
def test_a_missing_key_is_named() -> None:
    with pytest.raises(AuthenticationError, match="OPENAI_API_KEY"):
        pi.infer_personas(pairs(1), "gpt-4o-mini")


def test_a_refused_key_and_an_unknown_model_end_the_run_at_once() -> None:
    with FakeLLM(api_key="right") as llm, pytest.raises(AuthenticationError, match="401"):
        pi.infer_personas(pairs(500), "fake", api_base=llm.api_base, max_concurrency=4)
    assert llm.calls <= 8
    with FakeLLM(known_models=["real"]) as llm, pytest.raises(ModelNotFoundError, match="404"):
        pi.infer_personas(pairs(500), "fake", api_base=llm.api_base, max_concurrency=4)
    assert llm.calls <= 8


def test_a_column_that_would_be_lost_is_refused(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    once = pi.infer_personas(pd.DataFrame(pairs(2)), **endpoint).to_pandas()
    with pytest.raises(InvalidArgumentError, match="chosen_persona"):
        pi.infer_personas(once, **endpoint)
    assert llm.calls == 2


@pytest.mark.heavy
def test_estimate_cost_makes_no_call_and_knows_the_cache(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    pi.infer_personas(pairs(4), **endpoint)
    estimate = pi.estimate_cost([*pairs(10), {"prompt": ""}], prices=(1.0, 2.0), **endpoint)
    assert (estimate.rows, estimate.unusable_rows) == (11, 1)
    assert (estimate.calls, estimate.cached) == (6, 4)
    assert estimate.cost == pytest.approx(
        (estimate.prompt_tokens * 1.0 + estimate.completion_tokens * 2.0) / 1e6
    )
    assert llm.calls == 4
    assert pi.estimate_cost(pairs(5), **endpoint).cost is None
    assert pi.estimate_cost(pairs(9), "gpt-4o-mini").cost is not None


def test_a_task_that_is_cancelled_while_it_waits_here_pays_for_no_more(tmp_path: Path) -> None:
    tasks: list[asyncio.Task[Any]] = []

    def reply(_: object) -> None:
        if llm.calls == 5:
            tasks[0].cancel()  # as asyncio.run does at the first Ctrl-C

    made: list[pi.PersonaTable] = []
    given: dict[str, Any] = {"cache_dir": tmp_path, "max_concurrency": 2}

    async def infer() -> None:
        tasks[:] = filter(None, [asyncio.current_task()])
        try:
            pi.infer_personas(pairs(40), "fake", api_base=llm.api_base, **given)
        finally:  # a task may call models when it cleans up
            before.append(llm.calls)
            made.append(pi.infer_personas(pairs(40), "fake", api_base=llm.api_base, **given))

    before: list[int] = []
    with FakeLLM(reply=reply) as llm, pytest.raises(asyncio.CancelledError):
        asyncio.run(infer())
    assert before[0] < 20
    assert len(made[0].errors) == 0


def test_a_thread_has_all_rows_after_the_task_that_began_their_run_was_cancelled(
    endpoint: dict[str, Any],
) -> None:
    streams: list[PersonaStream] = []

    async def begin() -> None:
        streams.append(pi.iter_personas(pairs(3), **endpoint))
        await asyncio.sleep(9)

    async def leave() -> list[pi.PersonaRow]:
        task = asyncio.create_task(begin())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return await asyncio.to_thread(list, streams[0])

    assert len(asyncio.run(leave())) == 3


@pytest.mark.parametrize("options", [{}, {"protocol": "separate"}])
def test_an_estimate_counts_equal_requests_once_as_they_are_sent(
    llm: FakeLLM, endpoint: dict[str, Any], options: dict[str, Any]
) -> None:
    swapped = [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs(2)]
    data = [*pairs(2), *swapped, *pairs(3)]
    estimate = pi.estimate_cost(data, **endpoint, **options)
    calls = pi.infer_personas(data, **endpoint, **options).usage.calls
    assert (estimate.calls, estimate.cached) == (calls, 0)
    again = pi.estimate_cost(data, **endpoint, **options)
    assert (again.calls, again.cached) == (0, len(data) * calls // 3)
    assert pi.estimate_cost(data, **endpoint, **options, cache=False).calls == again.cached


@pytest.mark.parametrize("model", ["fake", "o3-mini", "gpt-5-mini"])
def test_the_first_request_that_is_shown_is_the_one_that_is_sent(
    llm: FakeLLM, endpoint: dict[str, Any], model: str
) -> None:
    given = {**endpoint, "model": model}
    body = first_request(pairs(1), **given)
    pi.infer_personas(pairs(1), **given)
    assert llm.requests == [body]


def test_estimated_prompt_tokens_are_near_the_endpoints_count(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    estimate = pi.estimate_cost(pairs(20), **endpoint)
    usage = pi.infer_personas(pairs(20), **endpoint).usage
    assert estimate.prompt_tokens == pytest.approx(usage.prompt_tokens, rel=0.2)


def test_empty_data_gives_an_empty_table(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    inputs: list[object] = [[], pd.DataFrame({"prompt": [], "chosen": [], "rejected": []})]
    for data in inputs:
        table = pi.infer_personas(data, **endpoint)
        assert len(table) == 0
        assert "chosen_persona" in table.to_arrow().column_names
    assert llm.calls == 0


@pytest.mark.heavy
def test_hh_rlhf_2312_rows_in_order(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    path = shared("hh_rlhf_harmless_base_test.jsonl")
    table = pi.infer_personas(path, **endpoint)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(table) == len(lines) == 2312
    for row, line in zip(table, lines, strict=True):
        assert (row.error is None) == (row.chosen is not None and row.rejected is not None)
        starts = {line[side].rpartition("\n\nAssistant:")[0] for side in ("chosen", "rejected")}
        assert ("do not share a prompt" in str(row.error)) == (len(starts) > 1)
        if row.preference is not None:
            assert line["chosen"].rstrip().endswith(row.preference.chosen.rstrip())
            assert line["rejected"].rstrip().endswith(row.preference.rejected.rstrip())
    assert llm.calls == len({(r.preference) for r in table if r.preference})


def test_transcripts_without_a_common_prompt_say_so(endpoint: dict[str, Any]) -> None:
    rows = [
        {"chosen": "\n\nHuman: A?\n\nAssistant: yes", "rejected": "\n\nHuman: B?\n\nAssistant: no"},
        {"chosen": "\n\nHuman: A?\n\nAssistant: yes", "rejected": "\n\nHuman: A?\n\nAssistant: no"},
    ]
    table = pi.infer_personas(rows, **endpoint)
    assert "share" in str(table[0].error)
    assert table[1].error is None


def test_llmbar_100_rows(endpoint: dict[str, Any]) -> None:
    path = shared("llmbar_natural.json")
    table = pi.infer_personas(path, **endpoint)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(table) == len(rows) == 100
    assert not table.errors
    for row, source in zip(table, rows, strict=True):
        assert row.preference is not None
        assert row.preference.chosen == source[f"output_{source['label']}"]


junk = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.characters(codec=None),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(
        st.fixed_dictionaries({"prompt": junk, "chosen": junk, "rejected": junk}), max_size=8
    )
)
def test_no_input_raises_or_breaks_the_order(
    llm: FakeLLM, endpoint: dict[str, Any], data: list[dict[str, Any]]
) -> None:
    table = pi.infer_personas([*data, *pairs(1)], **endpoint)
    assert len(table) == len(data) + 1
    assert table[-1].error is None
    for row, source in zip(table, data, strict=False):
        assert (row.error is None) == (row.chosen is not None)
        if row.preference is not None and isinstance(source["chosen"], str):
            assert row.preference.chosen == source["chosen"]
    assert table.to_arrow().num_rows == len(table)


@pytest.mark.heavy
def test_a_stream_that_is_left_stops_calling() -> None:
    at_once = 4
    with FakeLLM(latency=0.02) as llm:

        def said_afterwards() -> int:
            """Calls that came in the time of sixty and more, had nobody stopped."""
            calls = llm.calls
            time.sleep(0.3)
            return llm.calls - calls

        for _ in pi.iter_personas(
            pairs(500), "fake", api_base=llm.api_base, max_concurrency=at_once
        ):
            break
        # Those on their way were sent before; a busy server may see them late.
        assert said_afterwards() <= at_once
        with pytest.raises(DataError):
            pi.infer_personas(
                [*pairs(1), ("", "a", "b"), *pairs(500)[1:]],
                "fake",
                api_base=llm.api_base,
                max_concurrency=at_once,
                cache=False,
                on_error="raise",
            )
        assert said_afterwards() <= at_once


@pytest.mark.parametrize(
    "ending",
    ["for row in rows: break", "next(rows)", "next(rows); sys.exit(3)", "next(rows); 1 / 0"],
)
@pytest.mark.heavy
def test_a_script_that_leaves_a_stream_ends(ending: str) -> None:
    script = (
        "import sys, personainfer as pi\n"
        "data = [('Why?', f'short {n}', f'long {n}') for n in range(500)]\n"
        f"rows = pi.iter_personas(data, 'fake', api_base=sys.argv[1], max_concurrency=4)\n{ending}"
    )
    with FakeLLM(latency=0.02) as llm:
        command = [sys.executable, "-c", script, llm.api_base]
        ended = subprocess.run(command, timeout=30, capture_output=True, text=True, check=False)
        assert ended.returncode == {"s": 3, "1": 1}.get(ending.rpartition("; ")[2][0], 0)
        assert llm.calls < 200


def test_an_address_without_a_model_is_not_answered_by_the_embedded_one(llm: FakeLLM) -> None:
    for model in (None, "local"):
        with pytest.raises(InvalidArgumentError, match="api_base="):
            pi.infer_personas(pairs(1), model, api_base=llm.api_base)


def test_rows_that_no_candidate_explains_are_no_errors() -> None:
    options: dict[str, Any] = {"candidates": 2, "select": ByLength(-1e6), "seed": 0}
    with FakeLLM(reply=sampled) as llm:
        options |= {"model": "fake", "api_base": llm.api_base}
        assert len(pi.infer_personas(pairs(3), on_error="drop", **options)) == 3
        table = pi.infer_personas(pairs(3), on_error="raise", **options)
    table.raise_for_errors()
    assert all(row.unexplained == ("chosen", "rejected") for row in table)


@pytest.mark.heavy
def test_a_slow_source_is_answered_as_it_comes(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    given = 0

    def slowly() -> Iterator[dict[str, str]]:
        nonlocal given
        for row in pairs(40):
            given += 1
            threading.Event().wait(0.15)  # slower than rows are held back for
            yield row

    with pi.iter_personas(slowly(), **endpoint) as stream:
        next(stream)
    assert given < 10


@pytest.mark.heavy
def test_a_source_that_fails_first_gives_what_it_gave(endpoint: dict[str, Any]) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield from pairs(150)
        raise OSError("the disk is gone")

    stream = pi.iter_personas(broken(), **endpoint)
    assert len([next(stream) for _ in range(150)]) == 150
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_a_dict_with_our_column_is_refused_before_any_call(
    llm: FakeLLM, endpoint: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match="chosen_persona"):
        pi.infer_personas([{**row, "chosen_persona": "mine"} for row in pairs(2)], **endpoint)
    assert llm.calls == 0


@pytest.mark.parametrize("name", ["persona_error", "chosen_persona", "personainfer"])
def test_a_later_row_with_a_column_that_the_table_needs_costs_itself(
    name: str, tmp_path: Path
) -> None:
    """Lines of infer's own among others: the run ended at such a row, and so did each repetition."""
    rows: list[dict[str, Any]] = pairs(3)
    rows[1] = {**rows[1], name: "x", "own": 7}
    with FakeLLM() as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "cache": False}
        path = tmp_path / "made.parquet"
        table = pi.infer_personas(rows, "fake", output=path, **options)
        assert [row.error is None for row in table] == [True, False, True]
        assert f"the row has '{name}'" in str(table[1].error)
        assert (table.to_pandas()["own"][1], llm.calls) == (7, 2)
        with pytest.raises(InvalidArgumentError, match=f"{name} already"):
            pi.infer_personas(rows[1:], "fake", **options)
        assert llm.calls == 2


def test_rows_that_bring_ever_more_columns_cost_themselves(
    monkeypatch: pytest.MonkeyPatch, llm: FakeLLM
) -> None:
    """A table has a cell for each row and name: a megabyte of such rows took a gigabyte."""
    monkeypatch.setattr(infer_module, "_MOST_COLUMNS", 50)
    data = [
        {**pair, "id": n} | {f"k{n}_{m}": m for m in range(10)} for n, pair in enumerate(pairs(9))
    ]
    data += [{**pairs(10)[9], "id": 9}]
    table = pi.infer_personas(data, "fake", api_base=llm.api_base)
    assert table.failed_places() == [4, 5, 6, 7, 8]
    assert "more than 50 columns" in str(table[4].error)
    assert (table[4].columns["id"], table[4].columns.get("k4_0")) == (4, None)
    assert len(table.to_pandas().columns) < 60
    wide = [{**pair} | {f"k{m}": m for m in range(100)} for pair in pairs(3)]
    assert not pi.infer_personas(
        wide, "fake", api_base=llm.api_base
    ).errors  # as the first row has them


@pytest.mark.parametrize("where", ["tool_calls", "a key", "name", "tools"])
def test_a_text_that_utf_8_cannot_hold_anywhere_in_a_turn_costs_its_row(
    llm: FakeLLM, tmp_path: Path, where: str
) -> None:
    """It ended the run when its request was written, or the export of all rows."""
    rows: list[dict[str, Any]] = []
    for number in range(6):
        half = "\ud83d" if number == 4 else "a"
        places: dict[str, dict[str, Any]] = {
            "tool_calls": {"tool_calls": [{"id": half if where == "tool_calls" else "a"}]},
            "a key": {"tool_calls": [{"function": {"arguments": {half: 1}}}]},
            "name": {"name": half},
            "tools": {},
        }
        prompt = [
            {"role": "user", "content": f"hello {number}"},
            {"role": "assistant", "content": "looking", **places[where]},
            {"role": "user", "content": "and now?"},
        ]
        tools = [{"type": "function", "function": {"name": half if where == "tools" else "a"}}]
        rows.append({"prompt": prompt, "chosen": "yes indeed", "rejected": "no", "tools": tools})
    table = pi.infer_personas(rows, "fake", api_base=llm.api_base)
    assert [row.error is not None for row in table] == [number == 4 for number in range(6)]
    pi.export_personas(table, tmp_path / "rows.parquet")
