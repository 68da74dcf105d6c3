"""What is sent to another process arrives as it was: records, requests, models, tables, errors."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import personainfer as pi
from personainfer import exceptions
from personainfer.exceptions import PersonaInferError, RateLimitError, ReplyError
from personainfer.local.cache import CacheInfo
from personainfer.records import Candidate, Completion
from personainfer.testing import FakeLLM

from .builders import pairs

PAIR = pi.Preference(
    prompt=(pi.Message(role="user", content="Why?"),), chosen="✓", rejected="no", id="7", user="u"
)
PERSONA = pi.Persona(evidence="e", trait="busy", preference="short answers", flags=("refusal",))


class Answer(BaseModel):
    """The form of a reply."""

    text: str


VALUES: dict[str, Any] = {
    "Preference": PAIR,
    "Message": PAIR.prompt[0],
    "Persona": PERSONA,
    "Exemplar": pi.Exemplar(preference=PAIR, chosen=PERSONA, rejected=PERSONA),
    "Usage": pi.Usage(calls=3, cost=None),
    "Request": pi.Request(
        (pi.Message(role="user", content="Why?"),),
        Answer,
        (pi.Message(role="system", content="Be brief."),),
        sample=2,
    ),
    "PersonaRow": pi.PersonaRow(
        3,
        PAIR,
        chosen=PERSONA,
        error="no reply",
        rejected_candidates=(Candidate(PERSONA, 0.5), Candidate(PERSONA)),
        columns={"n": [1, {"a": None}]},
    ),
    "CacheInfo": CacheInfo(Path("cache"), 3, 100, {"fake": 3}),
}
protocols = pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))


@protocols
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_record_is_equal_after_the_way(value: Any, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(value, protocol)) == value


def errors() -> list[type[PersonaInferError]]:
    classes = inspect.getmembers(exceptions, inspect.isclass)
    return [kind for _, kind in classes if issubclass(kind, PersonaInferError)]


def test_the_whole_tree_of_errors_is_tried() -> None:
    documented = set(re.findall(r"\w+Error\b", exceptions.__doc__ or ""))
    builtin = {"ValueError", "TypeError", "ImportError"}
    assert documented - builtin == {kind.__name__ for kind in errors()}
    assert len(errors()) >= 18


@pytest.mark.parametrize("kind", errors())
def test_an_error_keeps_its_message_and_hint(kind: type[PersonaInferError]) -> None:
    error = kind("row 3: it went wrong.", hint="Do this.")
    error.__cause__ = ValueError("which is not sent along")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.message, back.hint) == ("row 3: it went wrong.", "Do this.")
    assert str(back) == str(error) == "row 3: it went wrong. Do this."
    assert back.args == error.args
    assert back.retryable == kind.retryable
    assert str(pickle.loads(pickle.dumps(kind("alone")))) == "alone"


def test_an_error_keeps_what_else_it_knows() -> None:
    limit = RateLimitError("slower", hint="wait", retry_after=2.5, given_up=True)
    back = pickle.loads(pickle.dumps(limit))
    assert (back.retry_after, back.given_up) == (2.5, True)
    reply = ReplyError("cut off", completion=Completion("half a", "length", 10, 20))
    assert pickle.loads(pickle.dumps(reply)).completion == reply.completion


def test_a_model_keeps_its_options_and_counts_anew(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    model = pi.LLM(**endpoint, temperature=0.3, seed=5, max_concurrency=3, prices=(1.0, 2.0))
    assert not pi.infer_personas(pairs(4), model).errors  # with connections and threads open
    back = pickle.loads(pickle.dumps(model))
    assert repr(back) == repr(model)
    assert back.settings == model.settings
    assert back.price == model.price
    assert back.usage == pi.Usage()
    table = pi.infer_personas(pairs(4), back)
    assert (table.usage.calls, table.usage.cached) == (0, 4)  # the same keys, the same cache
    assert llm.calls == 4


def test_a_table_keeps_rows_columns_usage_and_settings(endpoint: dict[str, Any]) -> None:
    data = [{**pair, "n": n} for n, pair in enumerate(pairs(5))]
    data[2]["chosen"] = ""
    table = pi.infer_personas(data, **endpoint)
    back = pickle.loads(pickle.dumps(table))
    assert list(back) == list(table)
    assert back.to_arrow().equals(table.to_arrow())
    assert (back.usage, back.settings) == (table.usage, table.settings)


def answer(options: dict[str, Any]) -> tuple[list[str], int]:
    """What a process does that makes the cache directory, or finds that another is about to."""
    table = pi.infer_personas(pairs(5), progress=False, **options)
    return [str(row.chosen) for row in table], table.usage.calls


@pytest.mark.heavy
def test_several_processes_may_start_one_cache_at_once(
    llm: FakeLLM, endpoint: dict[str, Any], tmp_path: Path
) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for number in range(20):
            folder = tmp_path / str(number)
            found = pool.map(answer, [{**endpoint, "cache_dir": folder}] * 4, chunksize=1)
            assert all(texts == found[0][0] for texts, _ in found)
            assert pi.cache_info(folder).replies == 5
            assert not list(folder.glob("*broken*"))
    assert llm.calls <= 20 * 4 * 5
