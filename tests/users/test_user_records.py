"""Personas of users as records: a file gives back what was saved, and what was left out is told."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.data import table_reader
from personainfer.exceptions import DataError, InvalidArgumentError, MissingFileError
from personainfer.testing import FakeLLM
from personainfer.users.records import UserPersona, UserPersonas, UserRow


def row(user: str) -> UserRow:
    said = "The user is brief."
    return UserRow(
        user=user, persona=UserPersona(user=user, background=said, preferences=said, pairs=1)
    )


def choices(user: str | None, count: int = 3) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{user} {n}?", "chosen": f"yes {n}", "rejected": "no", "whose": user}
        for n in range(count)
    ]


def test_a_file_keeps_the_settings(llm: FakeLLM, tmp_path: Path) -> None:
    made = pi.infer_user_personas(
        choices("ann"), "fake", api_base=llm.api_base, user="whose", method="summary"
    )
    made.save(tmp_path / "users.jsonl")
    assert len((tmp_path / "users.jsonl").read_text().splitlines()) == len(made)
    loaded = UserPersonas.load(tmp_path / "users.jsonl")
    assert loaded.rows == made.rows
    assert loaded.settings == made.settings
    calls = llm.calls
    with pytest.raises(InvalidArgumentError, match="update= was made by 'summary'"):
        pi.infer_user_personas(
            choices("bob"),
            "fake",
            api_base=llm.api_base,
            user="whose",
            method="tastes",
            update=loaded,
        )
    assert llm.calls == calls


def test_a_file_without_settings_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(row("ann").model_dump_json() + "\n")
    loaded = UserPersonas.load(path)
    assert loaded.rows == (row("ann"),)
    assert loaded.settings == {}


def test_settings_of_very_many_wrong_values_do_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_reader, "_MOST_VALUES", 1_000)
    path = tmp_path / "users.jsonl"
    settings = {"retries": [0] * 10_000}
    path.write_text(json.dumps({**row("ann").model_dump(), "settings": settings}))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"not a row of UserPersonas\.save"):
        UserPersonas.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_two_lines_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    UserPersonas((row("ann"),), settings={"method": "summary"}).save(path)
    line = json.loads(path.read_text())
    for other, what in (
        ({"settings": {"method": "tastes"}, "user": "bob"}, "line 2: made by the method 'tastes'"),
        ({}, "line 2: the user 'ann' has a line before"),
    ):
        path.write_text(f"{json.dumps(line)}\n{json.dumps({**line, **other})}\n")
        with pytest.raises(DataError, match=what):
            UserPersonas.load(path)


def explained() -> dict[str, Any]:
    """A row whose choices are explained, as a line of a file holds it."""
    used = [{"id": n, "prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in "ab"]
    persona = {"evidence": "", "trait": "brief", "preference": "lists"}
    hypothesis = {"pair": "a", "persona": persona, "scores": [["b", 1.0]]}
    return {"user": "ann", "error": "none", "choices": used, "hypotheses": [hypothesis]}


def test_hypotheses_are_of_the_choices_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"

    def loaded(line: dict[str, Any]) -> UserPersonas:
        path.write_text(json.dumps(line))
        return UserPersonas.load(path)

    assert loaded(explained())[0] == UserRow(**explained())
    [hypothesis], used = explained()["hypotheses"], explained()["choices"]
    changes: list[dict[str, Any]] = [
        {"choices": []},
        {"choices": [used[0]]},
        {"choices": [*used, {**used[1], "id": None}]},
        {"choices": [*used, {**used[1], "id": "a"}]},
        {"hypotheses": [{**hypothesis, "pair": "c"}]},
        {"hypotheses": [{**hypothesis, "scores": [["c", 1.0]]}]},
    ]
    for change in changes:
        with pytest.raises(DataError, match="line 1: this is not a row"):
            loaded(explained() | change)
        with pytest.raises(ValueError, match="choices"):
            UserRow(**(explained() | change))


def test_a_user_has_one_row() -> None:
    with pytest.raises(InvalidArgumentError, match="the user 'ann' twice"):
        UserPersonas((row("ann"), row("ann")))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.jsonl.*Check the folder"):
        UserPersonas.load(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "content", ["notes\n", '{"user": "ann", "prompt": "q"}\n', '{"user": "ann"}\n']
)
def test_a_file_of_the_users_own_is_not_replaced(content: str, tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidArgumentError, match=r"not a file of UserPersonas\.save.*overwrite"):
        UserPersonas((row("ann"),)).save(path)
    assert path.read_text() == content
    UserPersonas((row("ann"),)).save(path, overwrite=True)
    UserPersonas((row("bob"),)).save(path)
    assert [one.user for one in UserPersonas.load(path)] == ["bob"]


@pytest.mark.parametrize("name", ["users.parquet", "users.csv", "users.jsonl.gz"])
def test_json_lines_do_not_get_the_name_of_another_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"JSON lines.*ends in \.jsonl"):
        UserPersonas((row("ann"),)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (choices("ann"), {}, r"3 rows have none.*'rejected', 'whose'.*columns=\{'user': '…'\}"),
        ([("q", "a", "b")], {}, "none has a user.*user_id"),
        (choices(None), {"user": "whose"}, "3 rows have none"),
        ([{**choices("ann")[0], "user_id": "ann", "rejected": None}], {}, "no row is a choice"),
    ],
    ids=["another column", "tuples", "empty column", "nothing can be read"],
)
def test_data_without_users_is_refused_before_a_call(
    data: Any, options: dict[str, Any], words: str, llm: FakeLLM
) -> None:
    for function in (
        lambda: pi.infer_user_personas(data, "fake", api_base=llm.api_base, **options),
        lambda: pi.audit_personas({"ann": "x"}, data, "fake", api_base=llm.api_base, **options),
    ):
        with pytest.raises(DataError, match=words):
            function()
    assert not llm.calls


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"response_a": "a", "response_b": "b", "label": 1},
            r"labels=\{1: '…'\}.*read_preferences",
        ),
        ({"response": "a", "score": 1}, 'pairs="all".*read_preferences'),
    ],
)
def test_options_that_are_not_there_are_named_with_their_function(
    row: dict[str, Any], words: str, llm: FakeLLM
) -> None:
    """Neither function has labels= or pairs=: the error says which one does."""
    data = [{"prompt": "q", "user": "ann", **row}]
    for function in (
        lambda: pi.infer_user_personas(data, "fake", api_base=llm.api_base),
        lambda: pi.audit_personas({"ann": "x"}, data, "fake", api_base=llm.api_base),
        lambda: pi.PersonaTable.from_data(data),
    ):
        with pytest.raises(DataError, match=words):
            function()


def test_what_is_not_used_is_told(llm: FakeLLM) -> None:
    data = [*choices("ann", 9), *choices(None, 7), *choices("bob", 1)]
    found = pi.infer_user_personas(data, "fake", api_base=llm.api_base, user="whose")
    assert sorted(found.skipped.values()) == [5, 7]
    told = str(found)
    assert "1 personas of 2 users; 12 rows left out" in told
    assert "7 rows left out: it has no user." in told
    assert "5 rows left out: beyond the 4 of each user that pairs_per_user= takes." in told
    assert "1 of 2 users have an error, such as 'bob': the user has 1 usable pairs" in told


def test_a_long_name_of_a_user_is_cut_where_an_error_is_shown() -> None:
    rows = (UserRow(user="u" * 100_000, error="it has no choice."),)
    assert len(str(UserPersonas(rows))) < 1_000


def test_records_have_the_column_user(llm: FakeLLM) -> None:
    data = [pi.Preference(prompt=f"{n}?", chosen="a", rejected="b", user="ann") for n in range(3)]
    for named in ("user_id", "user"):
        found = pi.infer_user_personas(data, "fake", api_base=llm.api_base, user=named)
        assert found.personas["ann"].pairs == 3
    with pytest.raises(InvalidArgumentError, match="columns= needs rows with named columns"):
        pi.infer_user_personas(data, "fake", api_base=llm.api_base, user="annotator")


def test_scores_that_are_no_numbers_and_odd_texts_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    settings = {"lowest": float("-inf")}
    persona = UserPersona(
        user="a", background="b", preferences="p", evidence=(), pairs=1, score=float("-inf")
    )
    made = UserPersonas((UserRow(user="a", persona=persona),), settings=settings)
    made.save(path)
    loaded = UserPersonas.load(path)
    assert (loaded.settings, loaded.rows) == (settings, made.rows)
    with pytest.raises(DataError, match="cannot be written as JSON"):
        UserPersonas((UserRow(user="half \ud800", error="none"),)).save(path)
    assert UserPersonas.load(path).settings == settings
    UserPersonas(made.rows, settings={"selected_by": 5}).save(path)
    with pytest.raises(DataError, match="not a row of UserPersonas"):
        UserPersonas.load(path)
