"""retry_errors: the rows that failed are asked again, and nothing else changes or is paid for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import personainfer as pi
from personainfer.data import table_writer as writing
from personainfer.exceptions import InvalidArgumentError, RowsFailedError, UnknownOptionError
from personainfer.testing import FakeLLM, Fault

from ..builders import pairs

BAD = (2, 5)  # rows that cannot be used
FAILING = (1, 4, 7)  # rows that the model refuses at first


class Moody:
    """A model that refuses some rows until it is told not to."""

    def __init__(self, failing: tuple[int, ...] = FAILING) -> None:
        self.failing = failing
        self.only = ""  # refuse only requests with this text

    def __call__(self, body: dict[str, Any]) -> Any:
        said = str(body["messages"][-1])
        refused = any(f"Question {n}?" in said for n in self.failing) and self.only in said
        return Fault.refusal() if refused else None


def data() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{**pair, "n": n} for n, pair in enumerate(pairs(9))]
    for place in BAD:
        made[place]["rejected"] = made[place]["chosen"]
    return made


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 4)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["in memory", "loaded", "path", "text path", "frame", "output"])
def test_only_the_failed_rows_are_asked_again(kind: str, tmp_path: Path) -> None:
    model, path = Moody(), tmp_path / "t.parquet"
    with FakeLLM(reply=model) as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "max_attempts": 1}
        if kind == "output":
            options["output"] = path
        table = pi.infer_personas(
            pd.DataFrame(data()) if kind == "frame" else data(), "fake", **options
        )
        assert table.failed_places() == sorted([*BAD, *FAILING])
        if kind in ("loaded", "path", "text path"):
            table.save(path)
        given: Any = {"path": path, "text path": str(path)}.get(kind, table)
        if kind == "loaded":
            given = pi.PersonaTable.load(path)
        calls = llm.calls
        model.failing = FAILING[:1]
        mended = pi.retry_errors(given, api_base=llm.api_base, max_attempts=1)
        assert llm.calls == calls + 3
        asked = [str(body["messages"][-1]) for body in llm.requests[calls:]]
        assert sorted(n for n in range(9) for said in asked if f"Question {n}?" in said) == [
            1,
            4,
            7,
        ]
    assert mended.failed_places() == [1, *BAD]
    for place, (row, before) in enumerate(zip(mended, table, strict=True)):
        assert row.index == place
        if place not in FAILING:
            own = row.columns if kind in ("in memory", "frame") else {}  # else the file has them
            assert row == replace(before, columns=own)
        elif place != 1:
            assert row.chosen is not None
            assert row.rejected is not None
    assert "refused" in str(mended[1].error)
    assert table.failed_places() == sorted([*BAD, *FAILING])  # the old table is as it was
    assert mended.to_arrow()["n"].to_pylist() == list(range(9))
    assert mended.to_arrow().column_names == table.to_arrow().column_names
    assert mended.usage.calls == table.usage.calls + 3
    assert mended.settings["retries"] == [{"rows": 3, "mended": 2, "changed": {}}]
    assert {**mended.settings, "retries": None} == {**table.settings, "retries": None}


def test_what_was_mended_is_saved_over_its_own_file_and_mended_on(tmp_path: Path) -> None:
    model, path = Moody(), tmp_path / "t.parquet"
    with FakeLLM(reply=model) as llm:
        pi.infer_personas(data(), "fake", api_base=llm.api_base, max_attempts=1, output=path)
        for failing in ((1, 4), (4,), ()):
            model.failing = failing
            pi.retry_errors(path, api_base=llm.api_base, max_attempts=1).save(path)
    table = pi.PersonaTable.load(path)
    assert table.failed_places() == list(BAD)
    assert [(each["rows"], each["mended"]) for each in table.settings["retries"]] == [
        (3, 1),
        (2, 1),
        (1, 1),
    ]
    assert table.usage.calls == 7 + 3 + 2 + 1
    assert table.to_arrow()["n"].to_pylist() == list(range(9))


def test_of_a_row_that_failed_on_one_side_only_that_side_is_paid_for() -> None:
    model = Moody((1,))
    model.only = "<response_1>\\nLong"  # as the message is printed
    with FakeLLM(reply=model) as llm:
        table = pi.infer_personas(
            pairs(3), "fake", protocol="separate", api_base=llm.api_base, max_attempts=1
        )
        assert table[1].chosen is not None
        assert table[1].rejected is None
        model.failing = ()
        calls = llm.calls
        mended = pi.retry_errors(table)
        assert llm.calls == calls + 1
        assert not mended.errors
        assert mended[1].chosen == table[1].chosen
        assert mended[1].rejected is not None
        # and where no cache has the good side, and it now fails, it is not lost
        model.failing, model.only = (1,), ""
        again = pi.retry_errors(table, cache=False, max_attempts=1)
        assert again[1].chosen == table[1].chosen
        assert again[1].error is not None


@pytest.mark.heavy
@pytest.mark.parametrize(
    "made",
    [
        {"protocol": "separate"},
        {"sides": "rejected"},
        {"exemplars": "none", "temperature": 0.5, "max_tokens": 77, "seed": 3},
    ],
    ids=str,
)
def test_rows_are_asked_as_the_table_was(made: dict[str, Any]) -> None:
    model = Moody((1,))
    with FakeLLM(reply=model) as llm:
        options = {"api_base": llm.api_base, "max_attempts": 1, **made}
        table = pi.infer_personas(pairs(3), "fake", **options)
        model.failing = ()
        mended = pi.retry_errors(table)
        assert not mended.errors
        whole = pi.infer_personas(pairs(3), "fake", **options)
        assert whole.usage.calls == 0  # the same requests
    assert list(mended) == list(whole)
    assert mended.settings["retries"][0]["changed"] == {}


def test_what_the_model_is_asked_with_can_change_and_is_noted() -> None:
    with FakeLLM(faults=[Fault.truncated()]) as llm, FakeLLM() as other:
        table = pi.infer_personas(pairs(1), "fake", api_base=llm.api_base, max_attempts=1)
        assert table.errors
        mended = pi.retry_errors(table, "better", api_base=other.api_base, max_tokens=900)
        assert not mended.errors
        assert (other.calls, other.requests[0]["model"]) == (1, "better")
        assert mended.settings["retries"][0]["changed"] == {
            "model": "better",
            "api_base": other.api_base,
            "max_tokens": 900,
        }
        assert mended.settings["model"] == "fake"
        by_object = pi.retry_errors(table, pi.LLM("best", api_base=other.api_base))
        assert by_object.settings["retries"][0]["changed"]["model"] == "best"


def test_another_model_is_not_looked_for_at_the_old_address() -> None:
    with FakeLLM(reply=Fault.refusal()) as llm:
        table = pi.infer_personas(pairs(1), "fake", api_base=llm.api_base, max_attempts=1)
        with pytest.raises(InvalidArgumentError, match=r"missing\.gguf"):  # and not: api_base=
            pi.retry_errors(table, "local:/missing.gguf")


class ByTrait:
    """Explains by a given score for each trait."""

    def __init__(self, other: float = 1.0, **scores: float) -> None:
        self.other, self.scores = other, scores

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> list[float]:
        return [self.scores.get(persona.trait, self.other) for persona in personas]


def test_a_choice_that_no_candidate_explains_is_a_finding_and_stays() -> None:
    model = Moody((1,))

    def reply(body: dict[str, Any]) -> Any:
        if (refused := model(body)) is not None:
            return refused
        trait = "odd" if "Question 0?" in str(body["messages"][-1]) else f"calm {body['seed']}"
        one = {"evidence": "e", "trait": trait, "preference": "answers"}
        return json.dumps({"person_1": one, "person_2": one})

    select = ByTrait(odd=-1.0)
    with FakeLLM(reply=reply) as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "candidates": 2, "seed": 0}
        table = pi.infer_personas(pairs(3), "fake", select=select, max_attempts=1, **options)
        assert table.failed_places() == [1]
        assert table[0].unexplained == ("chosen", "rejected")
        model.failing = ()
        calls = llm.calls
        with pytest.raises(InvalidArgumentError, match="candidates=2 needs select="):
            pi.retry_errors(table)
        mended = pi.retry_errors(table, select=select)
        assert llm.calls == calls + 2
    assert mended.failed_places() == []
    assert mended[0] == table[0]
    assert len(mended[1].chosen_candidates) == 2


def test_personas_that_could_not_be_scored_are_scored_again(tmp_path: Path) -> None:
    """A judge that failed is no finding; what it is to judge is in the cache."""
    with FakeLLM() as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "candidates": 2, "seed": 0}
        broken = ByTrait(other=float("nan"))
        table = pi.infer_personas(pairs(2), "fake", select=broken, **options)
        assert "could be scored" in str(table[0].error)
        table.save(tmp_path / "t.parquet")
        calls = llm.calls
        mended = pi.retry_errors(tmp_path / "t.parquet", select=ByTrait(), api_base=llm.api_base)
        assert llm.calls == calls
    assert not mended.errors
    assert mended[0].chosen is not None


def test_exemplars_other_than_the_tables_are_refused_unless_they_are_given() -> None:
    pair = pi.Preference(prompt="p", chosen="c", rejected="r")
    persona = pi.Persona(trait="busy", preference="short answers")
    mine = [pi.Exemplar(preference=pair, chosen=persona, rejected=persona)]
    with FakeLLM(reply=Moody((1,))) as llm:
        table = pi.infer_personas(
            pairs(3), "fake", api_base=llm.api_base, exemplars=mine, max_attempts=1
        )
        calls = llm.calls
        with pytest.raises(InvalidArgumentError, match=r"made with other exemplars.*exemplars="):
            pi.retry_errors(table)
        assert llm.calls == calls
        same = pi.retry_errors(table, exemplars=mine, max_attempts=1)
        assert same.settings["retries"][0]["changed"] == {}
        others = pi.retry_errors(table, exemplars="default", max_attempts=1)
        assert set(others.settings["retries"][0]["changed"]) == {"prompt_version", "exemplars"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "separate"}, "protocol='separate', but the table was made with .*'joint'"),
        ({"sides": "chosen"}, "sides='chosen', but"),
        ({"candidates": 4}, "candidates=4, but"),
        ({"columns": {"prompt": "question"}}, "columns="),
        ({"on_error": "drop"}, 'on_error="drop"'),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_fail_before_any_call(options: dict[str, Any], words: str) -> None:
    with FakeLLM(reply=Moody()) as llm:
        table = pi.infer_personas(pairs(9), "fake", api_base=llm.api_base, max_attempts=1)
        calls = llm.calls
        with pytest.raises(InvalidArgumentError, match=words):
            pi.retry_errors(table, **options)
        with pytest.raises(UnknownOptionError, match="Did you mean protocol="):
            pi.retry_errors(table, protocl="joint")  # type: ignore[call-arg]
        assert llm.calls == calls


def test_the_same_settings_may_be_given_again() -> None:
    with FakeLLM() as llm:
        table = pi.infer_personas(pairs(2), "fake", api_base=llm.api_base)
        again = pi.retry_errors(
            table, "fake", protocol="joint", sides="both", candidates=1, exemplars="default"
        )
    assert list(again) == list(table)


def test_a_table_without_failures_is_taken_over(tmp_path: Path) -> None:
    with FakeLLM() as llm:
        table = pi.infer_personas(data(), "fake", api_base=llm.api_base)
        calls = llm.calls
        again = pi.retry_errors(table)
        assert llm.calls == calls
    assert again is not table
    assert list(again) == list(table)
    assert again.usage == table.usage
    assert again.settings["retries"] == [{"rows": 0, "mended": 0, "changed": {}}]


def test_a_table_that_does_not_remember_its_model_needs_one() -> None:
    pair = pi.Preference(prompt="p", chosen="c", rejected="r")
    table = pi.PersonaTable([pi.PersonaRow(0, pair, error="lost")])
    with pytest.raises(InvalidArgumentError, match="does not remember its model"):
        pi.retry_errors(table)
    with FakeLLM() as llm:
        assert not pi.retry_errors(table, "fake", api_base=llm.api_base).errors


def test_on_error_raise_names_the_row_of_the_table() -> None:
    with FakeLLM(reply=Moody()) as llm:
        table = pi.infer_personas(data(), "fake", api_base=llm.api_base, max_attempts=1)
        with pytest.raises(RowsFailedError, match=r"row 1 failed again: .*refused"):
            pi.retry_errors(table, on_error="raise", max_attempts=1)


def test_rows_keep_their_place_where_others_were_dropped(tmp_path: Path) -> None:
    """`row.index` is the place in the input, and not in the table."""
    with FakeLLM(reply=Moody()) as llm:
        kept = pi.infer_personas(data(), "fake", api_base=llm.api_base, max_attempts=1)
        few = pi.PersonaTable(kept[3:8], settings=kept.settings)
    with FakeLLM() as other:
        mended = pi.retry_errors(few, "fake", api_base=other.api_base)
        assert other.calls == 2
    assert [row.index for row in mended] == [3, 4, 5, 6, 7]
    assert [row.columns["n"] for row in mended] == [3, 4, 5, 6, 7]
    assert mended.failed_places() == [2]


def test_a_file_never_decides_where_the_pairs_and_the_key_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    path = tmp_path / "theirs.parquet"
    with FakeLLM(faults=[Fault.status(500)]) as stranger:
        base = stranger.api_base
        pi.infer_personas(pairs(2), "fake", api_base=base, max_attempts=1).save(path)
        calls = stranger.calls
        for table in (path, str(path), pi.PersonaTable.load(path), pi.PersonaTable.load(path)[:1]):
            with pytest.raises(InvalidArgumentError, match=re.escape(base)):
                pi.retry_errors(table)
        assert stranger.calls == calls
    with FakeLLM() as mine:
        assert not pi.retry_errors(path, api_base=mine.api_base).errors
        assert mine.calls


@pytest.mark.parametrize(
    "hidden", ["http://me:secret@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?token=secret"]
)
def test_an_address_that_held_a_password_is_asked_for_again(hidden: str) -> None:
    table = pi.infer_personas(pairs(1), "fake", api_base=hidden, max_attempts=1)
    assert table.errors
    with pytest.raises(InvalidArgumentError, match=r"127\.0\.0\.1:9/v1.*give api_base="):
        pi.retry_errors(table)


SECRET_ADDRESSES = [
    "http://me:secret@127.0.0.1:9/v1",
    "http://secret@127.0.0.1:9/v1",
    "http://127.0.0.1:9/v1?token=secret",
    "http://127.0.0.1:9/v1?secret",
    "http://127.0.0.1:9/v1?api-version=1&sig=secret",
    "http://127.0.0.1:9/v1#secret",
]


@pytest.mark.parametrize("base", SECRET_ADDRESSES)
def test_no_password_or_token_of_an_address_is_shown(base: str, tmp_path: Path) -> None:
    llm = pi.LLM("fake", api_base=base, max_attempts=1)
    table = pi.infer_personas(pairs(1), llm)
    pi.write_report(table, tmp_path / "page.html")
    told = [repr(llm), repr(table), str(table.errors), json.dumps(table.settings)]
    told += [
        (tmp_path / "page.html").read_text(),
        repr(pi.AddPersonas(llm)),
        llm.transport.endpoint,
    ]
    told.append(repr(pi.Likelihood("fake", api_base=base)))
    wrong: list[tuple[str, Any]] = [("fake", f"x{base}"), ("fake", [base]), ("local", base)]
    for model, given in wrong:
        with pytest.raises(InvalidArgumentError) as refused:
            pi.LLM(model, api_base=given)
        told.append(str(refused.value))
    with pytest.raises(InvalidArgumentError) as refused:
        pi.Likelihood("fake", api_base=f"x{base}")
    assert "secret" not in " ".join([*told, str(refused.value)])
    assert "127.0.0.1:9/v1" in repr(llm)


def test_a_password_and_a_key_are_one_too_many() -> None:
    with pytest.raises(InvalidArgumentError, match="leave the other out") as refused:
        pi.LLM("fake", api_base=SECRET_ADDRESSES[0], api_key="sk")
    assert "secret" not in str(refused.value)


def test_no_key_is_in_the_settings() -> None:
    settings = pi.iter_personas([], "fake", api_base="http://127.0.0.1:9/v1", api_key="sk").settings
    assert "sk" not in settings.values()


def test_replies_of_the_first_run_are_not_needed(tmp_path: Path) -> None:
    with FakeLLM(reply=Moody()) as llm:
        table = pi.infer_personas(data(), "fake", api_base=llm.api_base, max_attempts=1)
        shutil.rmtree(tmp_path / "cache")
        calls = llm.calls
        pi.retry_errors(table, max_attempts=1)
        assert llm.calls == calls + 3


def test_a_table_of_several_pairs_a_request_is_mended_pair_by_pair() -> None:
    """Tables of before remember a number of pairs a request, and the version of its prompt."""
    model = Moody((1,))
    with FakeLLM(reply=model) as llm:
        table = pi.infer_personas(pairs(4), "fake", api_base=llm.api_base, max_attempts=1)
        table.settings["rows_per_call"] = 4
        table.settings["prompt_version"] += "+0123456789ab"
        model.failing = ()
        mended = pi.retry_errors(table)
    assert not mended.errors
    assert mended.settings["retries"][0]["changed"]["rows_per_call"] == 1


def test_added_columns_are_kept_but_for_the_rows_that_were_asked(tmp_path: Path) -> None:
    model = Moody((1,))
    with FakeLLM(reply=model) as llm:
        table = pi.infer_personas(pairs(3), "fake", api_base=llm.api_base, max_attempts=1)
        judged = table.with_columns({"verdict": [True, False, True]})
        saved = judged.save(tmp_path / "t.parquet")
        model.failing = ()
        for one in (judged, saved):
            mended = pi.retry_errors(one, api_base=llm.api_base)
            assert not mended.errors
            assert mended.added == {"verdict": [True, None, True]}


@pytest.mark.parametrize(
    "model",
    [
        "oobabooga/http://127.0.0.1:9",
        "litellm/huggingface/http://127.0.0.1:9/x",
        "local:owner/repository/theirs.gguf",
        "local:theirs.gguf",
        "baseten/abcd1234",
        "litellm/gigachat/GigaChat",
        "openai/o1-pro",
        " localhost/x",
    ],
)
def test_a_file_never_decides_what_is_loaded_or_called(model: str, tmp_path: Path) -> None:
    """litellm takes an address within a model's name; a stranger's weights would be parsed."""
    path = tmp_path / "theirs.parquet"
    with FakeLLM(faults=[Fault.status(500)]) as server:
        table = pi.infer_personas(pairs(2), "fake", api_base=server.api_base, max_attempts=1)
        settings = {**table.settings, "model": model, "api_base": None}
        table.with_rows({}, usage=table.usage, settings=settings).save(path)
        with pytest.raises(InvalidArgumentError, match="name the model yourself"):
            pi.retry_errors(path)
        if model.startswith("litellm/"):  # which may sign in elsewhere, with the key
            with pytest.raises(InvalidArgumentError, match="model"):
                pi.retry_errors(path, api_base=server.api_base)
        assert not pi.retry_errors(path, "fake", api_base=server.api_base).errors


def test_a_file_never_decides_about_fields_of_requests(tmp_path: Path, llm: FakeLLM) -> None:
    """One of them may name other models, or tools."""
    path = tmp_path / "theirs.parquet"
    options: dict[str, Any] = {"api_base": llm.api_base, "max_attempts": 1}
    with FakeLLM(faults=[Fault.status(500)]) as stranger:
        made = pi.infer_personas(
            pairs(1),
            "fake",
            api_base=stranger.api_base,
            max_attempts=1,
            extra_body={"models": ["x"]},
        )
    made.save(path)
    with pytest.raises(InvalidArgumentError, match="give extra_body= again"):
        pi.retry_errors(path, **options)
    made.settings.pop("model")
    made.save(nameless := tmp_path / "nameless.parquet")
    with pytest.raises(InvalidArgumentError, match="give extra_body= again"):
        pi.retry_errors(nameless, "fake", **options)
    assert llm.calls == 0
    assert not pi.retry_errors(path, extra_body={}, **options).errors


@pytest.mark.parametrize("option", [{"max_tokens": 100_000}, {"reasoning_effort": "high"}])
def test_a_file_never_decides_that_calls_cost_more(
    option: dict[str, Any], tmp_path: Path, llm: FakeLLM
) -> None:
    path, [name] = tmp_path / "theirs.parquet", option
    with FakeLLM(faults=[Fault.status(500)]) as stranger:
        made = pi.infer_personas(
            pairs(1), "fake", api_base=stranger.api_base, max_attempts=1, **option
        )
    made.save(path)
    with pytest.raises(InvalidArgumentError, match=f"give {name}= again") as caught:
        pi.retry_errors(path, api_base=llm.api_base)
    assert caught.value.argument == name
    assert llm.calls == 0
    assert not pi.retry_errors(path, api_base=llm.api_base, **option).errors
    assert not pi.retry_errors(made, api_base=llm.api_base).errors  # no file
    made.settings[name] = 100 if name == "max_tokens" else None
    made.save(path)
    assert pi.retry_errors(path, api_base=llm.api_base).settings.get(name) == made.settings[name]


def test_a_table_whose_personas_were_selected_is_refused_without_the_selector() -> None:
    with FakeLLM() as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "max_attempts": 1, "cache": False}
        llm.reply = lambda body: Fault.status(500) if "Question 0?" in str(body) else None
        table = pi.infer_personas(pairs(2), "fake", select=ByTrait(), **options)
        llm.reply, calls = None, llm.calls
        with pytest.raises(InvalidArgumentError, match="selected the personas of the table"):
            pi.retry_errors(table, **options)
        assert llm.calls == calls
        assert pi.retry_errors(table, select=ByTrait(), **options)[0].chosen_candidates
        unselected = pi.retry_errors(table, select=None, **options)
        assert not unselected[0].chosen_candidates
        assert unselected.settings["retries"][0]["changed"] == {"selected_by": None}
