"""Published data sets, in small files of the same columns. Every text here is made up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.testing import assert_array_equal

import personainfer as pi
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.records import Message
from personainfer.simulation.datasets import read_famous_persona, read_personal_llm, read_prism
from personainfer.tailoring import read_persona_tailoring
from personainfer.users.groups import folds_of
from personainfer.users.prefixes import Prefix


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes what it loads nowhere but here."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


# FamousPersona


def famous(name: str, n: int, **changes: Any) -> dict[str, Any]:
    row = {
        "name": name,
        "prompt": f"What should I cook on day {n}?",
        "chosen": f"Beans, {n} ways.",
        "rejected": f"Steak, {n} ways.",
        "question_type": "personal" if n % 2 else "common",
    }
    return {**row, **changes}


@pytest.mark.heavy
def test_famous_persona_is_read_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "famous"
    write(folder / "train.jsonl", [famous(name, n) for name in ("Ada", "Bo") for n in range(3)])
    write(folder / "test.jsonl", [famous("Ada", 7)])
    found = read_famous_persona(folder)
    assert len(found) == 6
    assert [choice.user for choice in found.preferences] == ["Ada"] * 3 + ["Bo"] * 3
    first = found.of("Bo")[0]
    assert (first.prompt, first.chosen, first.rejected, first.id) == (
        "What should I cook on day 0?",
        "Beans, 0 ways.",
        "Steak, 0 ways.",
        "train:3",
    )
    assert [found.questions[f"train:{n}"] for n in range(3)] == [
        "divergent",
        "personal",
        "divergent",
    ]
    (only,) = read_famous_persona(folder, split="test").preferences
    assert only.id == "test:0"


def test_the_authors_own_columns_and_messages_are_read() -> None:
    asked = {"role": "user", "content": "Tea?"}
    rows = [
        {"name": "Ada", "prompt": "Tea?", "yw": "Always.", "yl": "Never."},
        {"name": "Ada", "prompt": "Coffee?", "yw": "Never.", "yl": "Always."},
    ]
    plain = read_famous_persona(rows).preferences
    assert [choice.chosen for choice in plain] == ["Always.", "Never."]
    (messages,) = read_famous_persona(
        [
            {
                "name": "Ada",
                "prompt": "Tea?",
                "chosen": [asked, {"role": "assistant", "content": "Always."}],
                "rejected": [asked, {"role": "assistant", "content": "Never."}],
            }
        ]
    ).preferences
    assert messages.model_copy(update={"id": None}) == plain[0].model_copy(update={"id": None})


def test_demographics_are_joined_by_name(tmp_path: Path) -> None:
    file = tmp_path / "demographics.csv"
    file.write_text("name,birth state,birth country,religion\nAda,Ohio, USA,NA\nCy,Bern, CH,none\n")
    found = read_famous_persona([famous("Ada", 1), famous("Bo", 1)], demographics=file)
    assert found.users == {"Ada": {"birth state": "Ohio", "birth country": "USA"}, "Bo": {}}
    assert found.groups == {"birth state": {"Ada": "Ohio"}, "birth country": {"Ada": "USA"}}


PEOPLE = "name,diet,party\nAda,a,x\nBo,b,y\nCy,a,x\nDi,b,y\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PEOPLE.replace("Bo,b", 'Bo,"b'), "line 3 is not CSV"),
        (PEOPLE.replace("Bo,b,y", "Bo,b,c,y"), "line 3 has 4 fields where the header has 3"),
        (PEOPLE.replace("Bo,b,y", "Bo,b"), "line 3 has 2 fields where the header has 3"),
        (PEOPLE.replace("Bo,b,y", "Bo,\udcff,y"), "a row holds bytes that are not UTF-8"),
    ],
)
def test_a_damaged_line_of_demographics_costs_itself(
    text: str, reason: str, tmp_path: Path
) -> None:
    people = [famous(name, 1) for name in ("Ada", "Bo", "Cy", "Di")]
    file = tmp_path / "demographics.csv"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    found = read_famous_persona(people, demographics=file)
    assert found.users == {
        "Ada": {"diet": "a", "party": "x"},
        "Bo": {},
        "Cy": {"diet": "a", "party": "x"},
        "Di": {"diet": "b", "party": "y"},
    }
    ((said, count),) = found.dropped.items()
    assert said.startswith(f"demographics: {reason}")
    assert count == 1


def test_of_two_rows_of_demographics_with_one_name_the_first_counts(tmp_path: Path) -> None:
    file = tmp_path / "demographics.csv"
    file.write_text(PEOPLE + "Ada,b,y\n")
    found = read_famous_persona([famous("Ada", 1)], demographics=file)
    assert found.users == {"Ada": {"diet": "a", "party": "x"}}
    assert found.dropped == {"demographics: a name that was there before": 1}
    file.write_text(PEOPLE.replace("party", "diet"))
    with pytest.raises(DataError, match="has the column 'diet' twice"):
        read_famous_persona([famous("Ada", 1)], demographics=file)


def test_rows_of_nobody_and_pairs_without_a_preference_are_counted() -> None:
    rows = [famous("Ada", 1), famous("", 2), famous("Bo", 3, rejected="Beans, 3 ways.")]
    found = read_famous_persona(rows)
    assert len(found) == 1
    assert sorted(found.dropped.values()) == [1, 1]
    with pytest.raises(DataError, match=r"no row can be used: 'name' is missing\. \(1\)"):
        read_famous_persona([famous("", 1)])
    with pytest.raises(DataError, match="no column 'chosen' or 'yw'"):
        read_famous_persona([{"name": "Ada", "prompt": "Tea?", "good": "Yes."}])
    with pytest.raises(DataError, match="there are none"):
        read_famous_persona([])


# PersonalLLM


@pytest.mark.heavy
def test_personal_llm_is_read_from_a_folder(tmp_path: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        found: dict[str, Any] = {"prompt": f"Why, {n}?", "subset": "made up", "prompt_id": n}
        for r in range(1, 9):
            found |= {f"response_{r}": f"Because {n}.{r}", f"response_{r}_model": "a/model"}
            found |= {f"response_{r}_gemma_2b": r / 2 + n, f"response_{r}_beaver_7b": r * n}
        return found

    folder = tmp_path / "personal"
    write(folder / "train.jsonl", [row(n) for n in range(4)])
    write(folder / "test.jsonl", [row(9)])
    train, test = read_personal_llm(folder), read_personal_llm(folder, split="test")
    assert train.rewards.shape == (4, 8, 2)
    assert train.models == ("beaver_7b", "gemma_2b")
    assert train.costs == {"beaver_7b"}
    assert train.texts[1][3][7] == "Because 3.8"
    assert_array_equal(test.rewards[0, :, 1], [r / 2 + 9 for r in range(1, 9)])
    assert read_personal_llm(folder, models=["gemma_2b"]).models == ("gemma_2b",)


# PRISM


def said(turn: int, letter: str, score: int | None, *, chosen: bool = False, **changes: Any) -> Any:
    row = {
        "utterance_id": f"ut{turn}{letter}",
        "interaction_id": f"int{turn}",
        "conversation_id": "c1",
        "user_id": "user1",
        "turn": turn,
        "within_turn_id": "abcd".index(letter),
        "conversation_type": "values guided",
        "user_prompt": f"Question {turn}?",
        "model_response": f"Answer {turn}{letter}.",
        "model_name": "made-up",
        "score": score,
        "if_chosen": chosen,
    }
    return {**row, **changes}


UTTERANCES = [
    said(1, "a", 70),
    said(1, "b", 90, chosen=True),
    said(0, "a", 40),
    said(0, "b", 95, chosen=True),
    said(0, "c", 10),
    said(0, "d", 95),
]
SURVEY = [
    {"user_id": "user1", "age": "25-34 years old", "location": {"birth_region": "Europe"}},
    {"user_id": "user2", "age": "65+ years old", "location": {"birth_region": "Asia"}},
]


@pytest.mark.heavy
def test_prism_is_read_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "prism"
    write(folder / "utterances.jsonl", UTTERANCES)
    write(folder / "survey.jsonl", SURVEY)
    found = read_prism(folder)
    opening, later = found.preferences
    assert (opening.prompt, opening.chosen, opening.rejected) == (
        "Question 0?",
        "Answer 0b.",
        "Answer 0c.",
    )
    assert (opening.id, opening.user) == ("ut0b>ut0c", "user1")
    assert later.prompt == (
        Message(role="user", content="Question 0?"),
        Message(role="assistant", content="Answer 0b."),
        Message(role="user", content="Question 1?"),
    )
    assert (later.chosen, later.rejected) == ("Answer 1b.", "Answer 1a.")
    assert found.users == {"user1": {"age": "25-34 years old", "location_birth_region": "Europe"}}
    assert set(found.questions.values()) == {"values guided"}


def test_prism_against_each_other_response() -> None:
    found = read_prism((UTTERANCES, SURVEY), against="each")
    assert [choice.id for choice in found.preferences] == ["ut0b>ut0a", "ut0b>ut0c", "ut1b>ut1a"]
    assert found.dropped == {"its score is not lower than that of the chosen response": 1}


@pytest.mark.parametrize("field", ["model_response", "user_prompt", "user_id", "score", "turn"])
def test_a_missing_cell_of_prism_is_the_same_however_it_is_missing(field: str) -> None:
    others = [{**row, "conversation_id": "another"} for row in UTTERANCES]
    for place, row in enumerate(UTTERANCES):
        bare = {name: cell for name, cell in row.items() if name != field}
        rest = [*others, *UTTERANCES[:place], *UTTERANCES[place + 1 :]]
        left_out, null, nan = (
            read_prism(([*rest, one], SURVEY), against="each")
            for one in (bare, {**row, field: None}, {**row, field: float("nan")})  # NaN: of pandas
        )
        assert left_out == null == nan


def test_a_prism_turn_without_a_choice_ends_the_conversation() -> None:
    lost = [row for row in UTTERANCES if row["utterance_id"] != "ut0b"]
    other = (
        said(0, "a", 5, conversation_id="c2"),
        said(0, "b", 9, conversation_id="c2", chosen=True),
    )
    found = read_prism(([*lost, *other], SURVEY))
    assert [choice.prompt for choice in found.preferences] == ["Question 0?"]
    (count,) = found.dropped.values()
    assert count == 2
    with pytest.raises(DataError, match="no row can be used"):
        read_prism((lost, SURVEY))


def test_a_prism_response_without_a_score_is_preferred_to_nothing() -> None:
    rows = [said(0, "a", None), said(0, "b", 50, chosen=True), said(0, "c", 60)]
    with pytest.raises(DataError, match="no response has a lower score"):
        read_prism((rows, SURVEY))


@pytest.mark.parametrize(
    ("no", "yes"),
    [
        (False, True),
        ("False", "True"),
        ("false", " true "),
        ("0", "1"),
        (0.0, 1.0),
        (np.False_, np.True_),
        (None, True),
        ("", "True"),
        (float("nan"), 1.0),
        (pd.NA, True),
    ],
    ids=str,
)
def test_a_prism_response_is_chosen_if_its_mark_says_so(no: object, yes: object) -> None:
    """In any text but an empty one, and in NaN, Python sees a truth."""
    marks = {False: no, True: yes}
    rows = [{**row, "if_chosen": marks[row["if_chosen"]]} for row in UTTERANCES]
    assert read_prism((rows, SURVEY)) == read_prism((UTTERANCES, SURVEY))


@pytest.mark.parametrize(
    "changes",
    [{"if_chosen": "perhaps"}, {"if_chosen": 2}, {"if_chosen": []}, {"if_chosen": [True]},
     {"user_id": "user2"}, {"user_prompt": "Another question?"}],
    ids=str,
)  # fmt: skip
def test_a_prism_turn_of_which_one_response_is_odd_is_left_out(changes: dict[str, Any]) -> None:
    odd = [
        said(0, "a", 5, conversation_id="c2") | changes,
        said(0, "b", 9, conversation_id="c2", chosen=True),
        said(1, "a", 5, conversation_id="c2"),
        said(1, "b", 9, conversation_id="c2", chosen=True),
    ]
    found = read_prism(([*UTTERANCES, *odd], SURVEY))
    assert found.preferences == read_prism((UTTERANCES, SURVEY)).preferences
    assert sorted(found.dropped.values()) == [1, 1]


@pytest.mark.parametrize("kind", [float, np.int64])
def test_prism_turns_are_numbers_of_any_kind(kind: type) -> None:
    rows = [{**row, "turn": kind(row["turn"])} for row in UTTERANCES]
    gap = {**UTTERANCES[0], "turn": float("nan")}
    assert read_prism((rows, SURVEY)).preferences == read_prism((UTTERANCES, SURVEY)).preferences
    assert read_prism(([*rows, gap], SURVEY)).dropped == {"it names no conversation or no turn": 1}


def test_frames_are_no_rows() -> None:
    frame: Any = pd.DataFrame(UTTERANCES)
    ann = famous("ann", 0)
    with pytest.raises(InvalidArgumentError, match="to_dict"):
        read_prism((frame, SURVEY))
    lazy: Any = pl.LazyFrame({"name": ["ann"]})
    for rows, demographics in ((frame, None), ([ann], frame), (lazy, None), ([ann], lazy)):
        with pytest.raises(InvalidArgumentError, match="to_dict"):
            read_famous_persona(rows, demographics=demographics)
    blank = {"name": "ann", "diet": float("nan"), "age": 4}
    assert read_famous_persona([ann], demographics=[blank]).users["ann"]["age"] == 4
    assert "diet" not in read_famous_persona([ann], demographics=[blank]).users["ann"]


def test_other_columns_are_named() -> None:
    with pytest.raises(DataError, match="no column 'turn'"):
        read_prism(([{"conversation_id": "c1"}], SURVEY))


def test_the_axis_of_each_person_is_an_attribute() -> None:
    """The paper leaves one axis out at a time: 11 folds."""
    axes = {"ann": ["diet"], "bob": ["politics"], "cy": ["diet"], "dee": ["religion", "diet"]}
    rows = [
        {"name": name, "prompt": f"Q{n}?", "chosen": f"a{n}", "rejected": "b", "axis": axis}
        for name, mine in axes.items()
        for n, axis in enumerate(mine)
    ]
    rows.append({"name": "eve", "prompt": "Q?", "chosen": "a", "rejected": "b"})
    people = read_famous_persona(rows, demographics=[{"name": "ann", "diet": "vegan"}])
    assert people.users["ann"] == {"axis": "diet", "diet": "vegan"}
    assert people.groups["axis"] == {
        "ann": "diet", "bob": "politics", "cy": "diet", "dee": "diet, religion",
    }  # fmt: skip
    rows = [famous(f"P{n}", 0, axis=f"axis {n % 11}") for n in range(44)]
    everybody = read_famous_persona(rows)
    names = tuple(everybody.users)
    folds = folds_of(names, "axis", everybody.groups)
    assert len(folds) == 11
    assert all(len(fold.unseen) == 4 and len(fold.trained) == 40 for fold in folds)

    seen: list[set[str]] = []

    def crowd(trained: tuple[str, ...]) -> Prefix:
        seen.append(set(trained))
        return pi.persona_prefix("tag")

    pi.evaluate_prefixes(
        {"crowd": crowd},
        people.preferences,
        lambda conversations, responses: [len(text) for text in responses],
        folds="axis",
        groups=people.groups,
    )
    assert seen == [
        {"bob", "dee", "eve"}, {"ann", "bob", "cy", "eve"}, {"ann", "cy", "dee", "eve"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [
        {"score": "x"},
        {"score": [1]},
        {"score": 10**400},
        {"turn": "z"},
        {"turn": None},
        {"conversation_id": [1]},
        {"model_response": 5},
        {"user_id": [1]},
    ],
    ids=str,
)
def test_an_odd_prism_row_costs_its_own_conversation(odd: dict[str, Any]) -> None:
    strange = said(0, "b", 9, chosen=True, conversation_id="c2") | odd
    rows = [*UTTERANCES, said(0, "a", 5, conversation_id="c2"), strange]
    found = read_prism((rows, [*SURVEY, {"user_id": [1]}]))
    assert [choice.id for choice in found.preferences] == ["ut0b>ut0c", "ut1b>ut1a"]
    assert found.dropped


def test_demographics_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    rows = [famous("Ada", 1)]
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "bytes.csv").write_bytes(b"name,diet\nAda,x\0\xff\n")
    (tmp_path / "nobody.csv").write_text("who,diet\nAda,x\n")
    (tmp_path / "text.txt").write_text("name,diet\nAda,x\n")
    for name in ("pipe.csv", "bytes.csv", "nobody.csv", "missing.csv", "text.txt", "."):
        with pytest.raises(DataError, match="demographics="):
            read_famous_persona(rows, demographics=tmp_path / name)
    with pytest.raises(DataError, match="cannot be loaded"):
        read_famous_persona(str(tmp_path / "nowhere"))


# Cells and rows of other types than the data sets have

ODD: list[Any] = [
    None, float("nan"), float("inf"), pd.NA, True, 10**400, "x", "", b"x", [], [1], ["x"], {}, {"a": [1]},
    (1,), {1}, object(), 1j, np.array([1, 2]), np.float32(3), "\ud800",
]  # fmt: skip
ODD_ROWS: list[Any] = [None, 3, "row", ["row"], {}, {1: 2}, {"prompt": 5}]
PERSONAL = {
    "prompt": "Why?", "response_1": "A", "response_2": "B",
    "response_1_m": 1.0, "response_2_m": 2.0,
}  # fmt: skip


TAILORING = {
    "prompt": "Q?", "chosen": "A", "rejected": "B",
    "chosen_persona_gold": "The user is calm.", "rejected_persona_gold": "The user is loud.",
}  # fmt: skip


def read_demographics(rows: Any) -> Any:
    return read_famous_persona([famous("Ada", 1)], demographics=rows)


def read_utterances(rows: Any) -> Any:
    return read_prism((rows, SURVEY))


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        pytest.param(
            read_famous_persona, [famous("Ada", 1, axis="diet"), famous("Bo", 2)], id="famous"
        ),
        pytest.param(read_utterances, UTTERANCES, id="utterances"),
        pytest.param(lambda rows: read_prism((UTTERANCES, rows)), SURVEY, id="survey"),
        pytest.param(read_demographics, [{"name": "Ada", "diet": "x"}], id="demographics"),
        pytest.param(read_personal_llm, [PERSONAL, {**PERSONAL, "prompt": "Who?"}], id="personal"),
        pytest.param(read_persona_tailoring, [TAILORING], id="tailoring", marks=pytest.mark.heavy),
    ],
)
def test_cells_and_rows_of_other_types_are_left_out_or_errors_of_the_data(
    read: Callable[[Any], Any], rows: list[dict[str, Any]]
) -> None:
    spoilt = [[*rows[:-1], {**rows[-1], name: odd}] for name in rows[-1] for odd in ODD]
    for given in [*spoilt, *([*rows, odd] for odd in ODD_ROWS), *([odd] for odd in ODD_ROWS)]:
        with suppress(DataError, InvalidArgumentError):
            read(given)


class OfKeys:
    """What has __getitem__ alone: it may be no rows, but a record."""

    def __getitem__(self, key: str) -> str:
        return {"name": "Ada"}[key]


@pytest.mark.parametrize(
    "source",
    [None, 3, {"prompt": ["q"]}, b"rows", dict, np.array(1), OfKeys()],
    ids=[
        "None",
        "a number",
        "columns",
        "bytes",
        "a class",
        "an array without dimensions",
        "a record",
    ],
)
def test_what_is_no_rows_is_named(source: Any) -> None:
    for read in (read_famous_persona, read_prism, read_personal_llm):
        with pytest.raises(InvalidArgumentError, match=r"is (not rows|neither a name)"):
            read(source)
    for both in ((UTTERANCES,), (UTTERANCES, SURVEY, SURVEY)):
        with pytest.raises(InvalidArgumentError, match="nor two lists of rows"):
            read_prism(both)  # type: ignore[arg-type]


def test_an_optional_column_may_have_gaps_and_no_lists() -> None:
    rows = [
        famous("Ada", 1, question_type=float("nan"), axis=pd.NA),
        famous("Bo", 1, question_type=["personal"]),
        famous("Cy", 1, axis={"diet": 1}),
        famous("Di", 1, axis=Decimal("sNaN")),
    ]
    found = read_famous_persona(rows)
    assert (found.questions, found.users) == (
        {"train:2": "personal", "train:3": "personal"},
        {"Ada": {}, "Bo": {}, "Cy": {}, "Di": {}},
    )
    assert found.dropped == {  # it counts cells: the rows are read
        "the 'question_type' of a row is no text that can be read (list): it has none": 1,
        "the 'axis' of a row is no text that can be read (dict): it has none": 1,
    }
    with pytest.raises(DataError, match="row 1 of demographics="):
        read_famous_persona([famous("Ada", 1)], demographics=[{"name": "Ada"}, {"name": 5}])


@pytest.mark.parametrize("bad", [["controversy"], 10**5000], ids=["a list", "a long number"])
def test_a_bad_kind_of_a_prism_conversation_costs_no_pair(bad: object) -> None:
    rows = [{**row, "conversation_type": bad} for row in UTTERANCES]
    found = read_prism((rows, SURVEY))
    assert found.preferences == read_prism((UTTERANCES, SURVEY)).preferences
    assert any(reason.startswith("the 'conversation_type' of") for reason in found.dropped)
    assert read_famous_persona([famous("Ada", 1, axis=bad)]).users == {"Ada": {}}


def test_rows_may_be_of_a_class_that_has_only_places() -> None:
    class Rows:
        def __init__(self, rows: list[dict[str, Any]]) -> None:
            self.rows = rows

        def __getitem__(self, place: int) -> dict[str, Any]:
            return self.rows[place % len(self.rows)]  # it never raises IndexError

        def __len__(self) -> int:
            return len(self.rows)

    rows: Any = Rows([famous("Ada", 1), famous("Bo", 2)])
    assert len(read_famous_persona(rows)) == 2
