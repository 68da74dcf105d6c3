"""Data that may be read in two ways is refused, with both readings in the error, until the caller chooses."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from personainfer.data import read_preferences
from personainfer.exceptions import DataError
from personainfer.preferences import example_rows
from personainfer.records import Preference

from ..builders import EXPLICIT, PAIR, USER, read, say

TWO = {"prompt": "q", "response_1": "a", "response_2": "b"}
AB = {"prompt": "q", "response_a": "a", "response_b": "b"}
ENTAILS = {"chosen": "entailment", "rejected": "neutral"}
YES = {"chosen": "yes", "rejected": "no"}
SIDES = {"chosen": "a", "rejected": "b"}


def read_all(data: object, **options: Any) -> list[Preference | str]:
    return [row.preference or str(row.error) for row in read_preferences(data, **options)]


# More than two responses


@pytest.mark.parametrize(
    ("names", "choice"),
    [
        (("response_1", "response_2", "response_3"), {"score_1": 1, "score_2": 2, "score_3": 3}),
        (("response_a", "response_b", "response_c", "response_d"), {"winner": "a"}),
        (("response_0", "response_1", "response_2"), {"label": 1}),
        (("Completion A", "Completion B", "Completion C"), {"preference": "A"}),
        (("answer1", "answer2", "answer3"), {"label": 1}),
        (("a_text", "b_text", "c_text"), {"winner": "a"}),
    ],
)
@pytest.mark.parametrize("pairs", [None, "all"])
@pytest.mark.parametrize("kind", [list, iter, pd.DataFrame])
def test_a_third_response_is_not_dropped(
    names: tuple[str, ...], choice: dict[str, Any], pairs: str | None, kind: Callable[..., Any]
) -> None:
    rows = [{"prompt": "q", **{name: name for name in names}, **choice}] * 3
    with pytest.raises(DataError, match="more than two responses") as caught:
        read_all(kind(rows), pairs=pairs)
    assert all(repr(name) in str(caught.value) for name in names)


def test_the_caller_says_which_two_of_several_responses_are_meant() -> None:
    row = {**TWO, "response_3": "c", "label": "response_1"}
    assert read(row, columns={"response_1": "response_1", "response_2": "response_2"}) == [PAIR]
    assert read({**row, **SIDES}) == [PAIR]  # texts of columns that hold nothing else
    both = {"response": "x", "responses": "y", "responsex": "z"}
    assert read({"prompt": "q", "response1": "a", "response2": "b", "label": 1, **both}) == [PAIR]


def test_a_third_response_in_a_few_rows_or_later_is_not_dropped() -> None:
    rows = [{**TWO, "winner": "response_1"}] * 20
    third = {**rows[0], "response_3": "c"}
    with pytest.raises(DataError, match="more than two responses"):
        read(*rows, third)
    found = read_all(iter([*rows, third]))
    assert found[:20] == [PAIR] * 20
    assert "'response_3'" in str(found[20])


# Where the prompt is


@pytest.mark.parametrize("name", ["user_query", "user_message", "Question text", "problem"])
def test_further_names_of_a_prompt_are_read_where_no_older_one_is(name: str) -> None:
    assert read({name: "q", **SIDES}) == [PAIR]


@pytest.mark.parametrize("beside", [None, False, "", "none", "off-topic answer", "it is not right"])
@pytest.mark.parametrize("vague", ["text", "input", "context"])
def test_a_remark_beside_a_vague_prompt_is_no_prompt(vague: str, beside: object) -> None:
    rows = [{vague: f"Which is it, {n}?", "problem": beside, **SIDES} for n in range(9)]
    assert [p.prompt for p in read(*rows) if isinstance(p, Preference)] == [
        row[vague] for row in rows
    ]


@pytest.mark.parametrize(
    ("name", "vague"),
    [
        *(("task", "input"), ("ask", "post"), ("request", "x"), ("human", "text")),
        *(("user", "context"), ("user_query", "context"), ("problem", "info")),
    ],
)
@pytest.mark.parametrize("kind", [list, iter, pd.DataFrame])
def test_a_prompt_of_an_unknown_name_beside_a_vague_one_is_asked_for(
    name: str, vague: str, kind: Callable[..., Any]
) -> None:
    rows = [{vague: f"more {n}", name: f"Which one of them is it, {n}?", **SIDES} for n in range(9)]
    with pytest.raises(DataError, match=r"columns=\{'prompt'") as caught:
        read_all(kind(rows))
    assert repr(name) in str(caught.value)
    assert repr(vague) in str(caught.value)
    found = read_all(kind(rows), columns={"prompt": name})
    assert found[0] == Preference(prompt="Which one of them is it, 0?", chosen="a", rejected="b")


@pytest.mark.parametrize(
    "beside",
    [
        {"task": "summarization"},
        {"user": "ann"},
        {"user": 7},
        {"user": "Dr. Ann Lee Smith"},
        {"user_name": "Ann Lee Smith"},
        {"prompt_id": "the id of it"},
        {"user_query": None},
        {"request": ""},
    ],
)
def test_what_is_no_question_beside_a_vague_prompt_says_nothing(beside: dict[str, Any]) -> None:
    if "user_query" not in beside:
        (pair,) = read({"context": "q", **SIDES, **beside})
        assert isinstance(pair, Preference)
        assert pair.prompt == "q"
        assert len(read(*[{"context": f"q{n}", **SIDES, **beside} for n in range(9)])) == 9
    (pair, _) = read(*[{"text": "q", "task": "Sum up the text.", **SIDES}] * 2)
    assert pair == PAIR


# Which label holds the choice


@pytest.mark.parametrize(
    ("name", "sides"),
    [("preference", "AB"), ("best", ("response_1", "response_2")), ("verdict", ("1", "2"))],
)
def test_two_labels_that_contradict_each_other_are_asked_for(name: str, sides: Any) -> None:
    rows = [{**TWO, "label": 1 + n % 2, name: sides[n // 2 % 2]} for n in range(40)]
    with pytest.raises(DataError, match=r"contradict each other in 20 of .*columns=\{'label'") as c:
        read(*rows)
    assert "'label'" in str(c.value)
    assert repr(name) in str(c.value)
    assert read(*rows, columns={"label": "label"}) == [PAIR, PAIR.swapped] * 20
    assert read(*rows, columns={"label": name})[:4] == [PAIR, PAIR, PAIR.swapped, PAIR.swapped]


def test_a_data_set_of_a_few_usual_names_does_not_decide_between_labels() -> None:
    """LLMBar has input, output_1, output_2 and label, and its prompts are in input."""
    texts = {"output_1": "a", "output_2": "b"}
    for prompt in ({"prompt": "q", "input": ""}, {"question": "q", "input": "of it"}):
        rows = [
            {**prompt, **texts, "label": 1 + n % 2, "best": f"output_{1 + n // 2 % 2}"}
            for n in range(40)
        ]
        with pytest.raises(DataError, match="contradict each other"):
            read(*rows)


@pytest.mark.parametrize("names", [("response_1", "response_2"), ("response1", "response2")])
@pytest.mark.parametrize("strength", ["preference_strength", "overall_preference"])
def test_a_strength_beside_a_side_decides_nothing(names: tuple[str, str], strength: str) -> None:
    """Its sign may mean the other side, and without one it is a scale."""
    texts = {"prompt": "q", names[0]: "a", names[1]: "b"}
    for amounts in ((2, -1), (1, 3), (-1, 2)):
        sides = [{**texts, "winner": "ab"[n % 2], strength: amounts[n % 2]} for n in range(40)]
        assert read(*sides) == [PAIR, PAIR.swapped] * 20
    numbers = [{**texts, "label": 1 + n % 2, strength: (2, -1)[n % 2]} for n in range(40)]
    with pytest.raises(DataError, match="contradict each other"):
        read(*numbers)


def test_two_labels_that_seldom_differ_are_compared_only() -> None:
    rows = [{**TWO, "winner": "1", "verdict": "2" if n < 4 else "1"} for n in range(40)]
    assert read(*rows) == [PAIR] * 40


# Prompts that are answered already


ANSWERED = [USER, say("an old draft")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ANSWERED, **SIDES},
        {**EXPLICIT, "prompt": ANSWERED},
        {**TWO, "prompt": ANSWERED, "winner": "1"},
        {**EXPLICIT, "prompt": ANSWERED, "chosen": [say("a")], "rejected": [say("b")]},
        {**EXPLICIT, "prompt": [USER, say("a.")]},
    ],
)
def test_prompts_that_end_with_another_answer_are_asked_for(row: dict[str, Any]) -> None:
    name = "messages" if "messages" in row else "prompt"
    with pytest.raises(DataError, match=rf"end with an answer.*columns=\{{'prompt': '{name}'"):
        read(*[row] * 9)
    for found in (read(*[row] * 9, columns={"prompt": name}), read(*[row] * 4)):
        assert isinstance(found[0], Preference)
        assert found[0].prompt[-1].role == "assistant"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, say("a")], **SIDES},  # one of the two: it is taken off
        {**EXPLICIT, "prompt": [USER, say("I say")], "chosen": "I say a", "rejected": "I say b"},
        {**EXPLICIT, "prompt": [USER, say("x"), USER]},
    ],
)
def test_other_prompts_of_several_turns_are_read(row: dict[str, Any]) -> None:
    assert all(isinstance(pair, Preference) for pair in read(*[row] * 9))


# Iterators, of which the first row decides


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (
            {**TWO, "score_1": 1, "score_2": 2},
            {**TWO, "score_1": 1, "score_2": 2, "winner": "1"},
        ),
        ({"prompt": "q", "pos": "a", "neg": "b"}, {"pos": "1", "neg": "2", **EXPLICIT}),
        ({**AB, "winner": "model_a"}, {**AB, "winner": "tie", **EXPLICIT}),
    ],
)
def test_a_likelier_choice_in_later_rows_costs_them(
    first: dict[str, Any], later: dict[str, Any]
) -> None:
    found = read_all(iter([first, later, first, {**later, "n": 1}, {**first, "n": 1}]))
    assert [isinstance(each, Preference) for each in found] == [True, False, True, False, True]
    assert "columns=" in str(found[1])


def test_other_new_columns_say_nothing() -> None:
    rows = [EXPLICIT, {**EXPLICIT, "label": 1}, {**EXPLICIT, "response_1": "a", "user": "ann"}]
    assert [p.user for p in read_all(iter(rows)) if isinstance(p, Preference)] == [
        None,
        None,
        "ann",
    ]


def test_names_after_a_first_row_of_texts_are_followed() -> None:
    named = {**TWO, "chosen": "b", "rejected": "a", "response_1": "A text", "response_2": "Another"}
    rows = [{**named, "chosen": "A text", "rejected": "Another"}, *[named] * 40]
    assert read_all(iter(rows)) == read(*rows)


# Records and lists that a file holds as text


PRINTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "records": (
        {**EXPLICIT, "chosen": {"response": "a", "n": 1}, "rejected": {"response": "b"}},
        {},
    ),
    "WebGPT": (
        {**example_rows()["WebGPT"], "question": {"dataset": "eli5", "full_text": "it's"}},
        {},
    ),
    "TL;DR": (example_rows()["TL;DR comparisons"], {}),
    "RM-Bench": (example_rows()["RM-Bench"], {"pairs": "adjacent"}),
}


@pytest.mark.parametrize("form", PRINTED)
def test_records_and_lists_in_a_csv_file_are_read_as_in_a_frame(form: str, tmp_path: Path) -> None:
    row, options = PRINTED[form]
    frame = pd.DataFrame([row] * 9)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    first, other = (read_all(each, **options) for each in (frame, tmp_path / "rows.csv"))
    assert all(isinstance(pair, Preference) for pair in first)
    assert other == first


def test_a_record_with_a_missing_number_is_a_record(tmp_path: Path) -> None:
    texts = ({"text": f"it's: nan, {n}", "s": float("nan"), "t": -float("inf")} for n in range(9))
    rows = [{**EXPLICIT, "chosen": text, "rejected": {"text": "b", "s": 1.5}} for text in texts]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    found = read_all(tmp_path / "rows.csv")
    assert [p.rejected for p in found if isinstance(p, Preference)] == ["b"] * 9
    assert found == read(*rows)


def test_printed_lists_of_responses_ask_for_pairs(tmp_path: Path) -> None:
    pd.DataFrame([example_rows()["RM-Bench"]] * 9).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match="pairs="):
        read_all(tmp_path / "rows.csv")


@pytest.mark.parametrize("kind", [list, iter, pd.DataFrame])
@pytest.mark.parametrize(
    "answer",
    ["['a', '%d']", "{'text': '%d'}", '{"answer": "%d"}', "[%d, 2]", "{'a': %d}", "[['%d'], []]"],
)
def test_answers_that_are_json_or_code_are_texts(answer: str, kind: Callable[..., Any]) -> None:
    rows = [{"prompt": f"{n}?", "chosen": answer % n, "rejected": answer % -1} for n in range(9)]
    found = read_all(kind(rows))
    assert [p.chosen for p in found if isinstance(p, Preference)] == [answer % n for n in range(9)]


def test_a_printed_record_in_a_row_of_texts_is_a_text() -> None:
    odd = {**EXPLICIT, "chosen": "{'text': 'a'}"}
    assert read(*[EXPLICIT] * 9, odd)[-1] == Preference(
        prompt="q", chosen="{'text': 'a'}", rejected="b"
    )


# What is no name of a response, and no mistake


@pytest.mark.parametrize("word", ["Option {}", "answer {}", "Answer_{}"])
@pytest.mark.parametrize("columns", [None, {"chosen": "chosen", "rejected": "rejected"}])
def test_options_of_a_question_are_answers(word: str, columns: dict[str, str] | None) -> None:
    rows = [
        {"prompt": f"{n}?", "chosen": word.format("ABCD"[n % 4]), "rejected": word.format("E")}
        for n in range(9)
    ]
    rows = [{**row, "rejected": word.format("ABCD"[n % 3 - 3])} for n, row in enumerate(rows)]
    found = read(*rows, columns=columns)
    assert [p.chosen for p in found if isinstance(p, Preference)] == [r["chosen"] for r in rows]


@pytest.mark.parametrize("names", [("response", "rejected_response"), ("y_w", "y_l")])
def test_words_beside_another_pair_of_texts_are_no_answers(names: tuple[str, str]) -> None:
    texts = [{"prompt": f"{n}?", names[0]: f"Good {n}", names[1]: f"Bad {n}"} for n in range(9)]
    rows = [{**row, "chosen": "gpt-4", "rejected": "llama"} for row in texts]
    with pytest.raises(DataError, match="do not hold responses") as caught:
        read(*rows)
    assert caught.value.example == {"chosen": names[0], "rejected": names[1]}
    assert read(*rows, columns=caught.value.example) == read(*texts)
    counts = [{"prompt": f"{n}?", "win": n, "lose": 9, **YES} for n in range(9)]
    assert read(*counts)[8] == Preference(prompt="8?", chosen="yes", rejected="no")
    answers = [{**row, "chosen": f"yes {n}", "rejected": "no"} for n, row in enumerate(texts)]
    assert [p.chosen for p in read(*answers) if isinstance(p, Preference)][8] == "yes 8"


@pytest.mark.parametrize("beside", [("text_a", "text_b"), ("positive", "negative")])
def test_classes_beside_two_texts_are_asked_about(beside: tuple[str, str]) -> None:
    rows = [
        {"prompt": f"{n}?", beside[0]: f"one {n}", beside[1]: f"two {n}", **ENTAILS}
        for n in range(9)
    ]
    told = {"chosen": "chosen", "rejected": "rejected"}
    with pytest.raises(DataError, match=r"are the answers, say so: columns=") as caught:
        read(*rows)
    assert str(told) in str(caught.value)
    assert [p.chosen for p in read(*rows, columns=told) if isinstance(p, Preference)] == [
        "entailment"
    ] * 9


def test_numbers_beside_a_list_are_answers_if_the_caller_says_so() -> None:
    rows = [
        {"prompt": f"{n}+1?", "chosen": str(n % 3), "rejected": "3", "responses": ["7", "8", "9"]}
        for n in range(9)
    ]
    with pytest.raises(DataError):
        read(*rows)
    found = read(*rows, columns={"chosen": "chosen", "rejected": "rejected"})
    assert [p.chosen for p in found if isinstance(p, Preference)] == list("012012012")


@pytest.mark.parametrize("write", [bool, str, float])
def test_rows_of_kto_make_pairs(write: Callable[[bool], object]) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "label": write(True)},
        {"prompt": "q", "completion": "b", "label": write(False)},
    ]
    told = {"prompt": "prompt", "response": "completion", "score": "label"}
    assert read(*rows, columns=told, pairs="all") == [PAIR]


def test_columns_of_a_sheet_without_a_name_are_no_twins(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,,\nq,a,b,,\n", encoding="utf-8")
    assert read_all(tmp_path / "rows.csv") == [PAIR]


def test_a_prompt_that_the_responses_hold_is_not_said_to_be_in_a_column() -> None:
    turns = "\n\nHuman: q\n\nAssistant: "
    source = read_preferences([{"info": "x", "chosen": turns + "a", "rejected": turns + "b"}])
    assert [row.preference for row in source] == [PAIR]
    assert source.summary["columns"] == {"chosen": "chosen", "rejected": "rejected"}


def test_a_score_that_is_an_infinite_decimal_is_a_score() -> None:
    rows = [{**TWO, "score_1": Decimal("inf"), "score_2": Decimal("1.5")}]
    assert read(*rows) == [PAIR]


@pytest.mark.parametrize("history", [range(9), ["seen once"] * 9, [["a", "b"]] * 9])
def test_a_history_that_holds_no_turns_parts_no_ratings(history: Any) -> None:
    rated = [
        {"prompt": "q", "response": text, "score": score, "history": history[score]}
        for text, score in (("a", 5), ("b", 1))
    ]
    assert read(*rated, pairs="all") == [PAIR]
    others = [{**row, "history": [[f"{n}", "x"]]} for n, row in enumerate(rated)]
    assert "no two differ" in str(read(*others, pairs="all")[0])


def test_a_certain_label_comes_before_a_later_one_in_words() -> None:
    rows = [{**TWO, "label": 1, "verdict": "b"}, {**TWO, "label": 2, "verdict": "a"}]
    assert read(*rows) == [PAIR, PAIR.swapped]


def test_a_few_rows_are_read_by_the_name_of_the_prompt() -> None:
    rows = [{"context": "q", "task": "write me a poem", **SIDES}]
    for data in (rows, rows * 4, rows * 60):
        assert read(*data) == [PAIR] * len(data)


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("name", ["explicit, as messages", "ShareGPT", "messages with two answers"])
def test_a_row_of_transcripts_among_rows_of_turns_costs_itself(name: str, place: int) -> None:
    example = example_rows()[name]
    [pair] = read(example)
    rows = [example] * 6
    rows[place] = example_rows()["HH-RLHF"]
    found = read(*rows)
    assert isinstance(found.pop(place), str)
    assert found == [pair] * 5
