"""`chosen` and `rejected` that only name the responses are followed or refused, never taken as texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.exceptions import DataError
from personainfer.records import Preference
from personainfer.testing import FakeLLM

from ..builders import read

TWO = {
    "prompt": "Tea?",
    "answer_a": "Tea.",
    "answer_b": "Coffee.",
    "model_a": "m1",
    "model_b": "m2",
}
LIST = {"prompt": "Tea?", "responses": ["Tea.", "Coffee."]}
COFFEE = Preference(prompt="Tea?", chosen="Coffee.", rejected="Tea.")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("answer_b", "answer_a"),
        ("Answer B", "Answer A"),
        ("b", "a"),
        ("B", "A"),
        ("response_2", "response_1"),
        ("2", "1"),
        (2, 1),
        ("m2", "m1"),
    ],
)
@pytest.mark.parametrize("columns", [("chosen", "rejected"), ("better", "worse"), ("y_w", "y_l")])
def test_names_of_two_responses_are_followed(
    chosen: object, rejected: object, columns: tuple[str, str]
) -> None:
    row = {**TWO, columns[0]: chosen, columns[1]: rejected}
    assert read(row) == [COFFEE]
    (framed,) = read_preferences(pd.DataFrame([row]))
    assert framed.preference == COFFEE
    with FakeLLM() as llm:
        added = pi.AddPersonas("fake", api_base=llm.api_base, cache=False)
        error = added([row])[0]["persona_error"]
        if (
            str(chosen)[-1].isdigit() and chosen != "m2"
        ):  # numbers of one row are not certain in a batch
            assert "labels=" in error
        else:
            assert error is None
            assert "Coffee." in llm.requests[0]["messages"][-1]["content"]


@pytest.mark.parametrize(
    "row",
    [
        {"text_a": "Tea.", "text_b": "Coffee.", "chosen": "B", "rejected": "A"},
        {"reply_1": "Tea.", "reply_2": "Coffee.", "chosen": "second", "rejected": "first"},
        {"left_text": "Tea.", "right_text": "Coffee.", "chosen": "right", "rejected": "left"},
        {
            "output_1": "Tea.",
            "output_2": "Coffee.",
            "generator_1": "m1",
            "generator_2": "m2",
            "chosen": "m2",
            "rejected": "m1",
        },
        {
            "a_text": "Tea.",
            "b_text": "Coffee.",
            "a_id": "u0x",
            "b_id": "u0y",
            "chosen": "u0y",
            "rejected": "u0x",
        },
        {"responses": ["Tea.", "Coffee."], "chosen": "B", "rejected": "A"},
        {"responses": ["Tea.", "Coffee."], "chosen": "second", "rejected": "first"},
    ],
)
def test_names_of_texts_in_columns_of_other_names_are_followed(row: dict[str, Any]) -> None:
    assert read({"prompt": "Tea?", **row}) == [COFFEE]


@pytest.mark.parametrize("words", [("#1", "#2"), ("one", "two"), ("r1", "r2")])
def test_the_same_two_words_in_all_rows_beside_two_texts_are_no_texts(words: Sequence[str]) -> None:
    rows = [
        {"response_1": f"Tea {n}.", "response_2": f"Milk {n}.", "prompt": f"{n}?"} for n in range(9)
    ]
    named = [{**row, "chosen": words[0], "rejected": words[1]} for row in rows]
    with pytest.raises(DataError, match=r"labels=|columns="):
        read(*named)
    answers = [{**row, "chosen": f"Yes, {n}", "rejected": "No"} for n, row in enumerate(rows)]
    assert all(isinstance(found, Preference) for found in read(*answers))


def test_names_of_many_models_are_no_texts_where_a_label_says_which_text_is_better() -> None:
    rows = [
        {"prompt": f"{n}?", "response_a": f"Tea {n}.", "response_b": f"Milk {n}.", "winner": "b"}
        for n in range(20)
    ]
    models = ["gpt", "llama", "qwen", "phi"]
    named = [
        {**row, "chosen": models[n % 4], "rejected": models[n % 3]} for n, row in enumerate(rows)
    ]
    found = read(*named)
    assert [pair.chosen for pair in found if isinstance(pair, Preference)] == [
        row["response_b"] for row in rows
    ]


@pytest.mark.parametrize(("chosen", "rejected"), [("1", "0"), (1, 0)])
def test_places_in_a_list_of_two_are_followed(chosen: object, rejected: object) -> None:
    assert read({**LIST, "chosen": chosen, "rejected": rejected}) == [COFFEE]


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_they_are_followed_in_a_list_that_is_text_as_in_a_csv_file(
    written: Callable[[object], str],
) -> None:
    texts = {"prompt": "Tea?", "responses": written(["Tea.", "Coffee."])}
    for chosen, rejected in (("1", "0"), ("b", "a")):
        assert read({**texts, "chosen": chosen, "rejected": rejected}) == [COFFEE]
    models = {"m1": "Tea.", "m2": "Coffee."}
    for outputs in (models, [{"model": name, "text": text} for name, text in models.items()]):
        with pytest.raises(DataError, match=r"labels=|columns="):
            read({"prompt": "Tea?", "outputs": written(outputs), "chosen": "m2", "rejected": "m1"})


@pytest.mark.parametrize(
    "row",
    [
        {**TWO, "chosen": "1", "rejected": "0"},  # counted from where?
        {**LIST, "chosen": "2", "rejected": "1"},
        {**LIST, "responses": ["Tea.", "Coffee.", "Water."], "chosen": "2", "rejected": "0"},
        {"prompt": "Tea?", "options": ["Tea.", "Coffee."], "chosen": "1", "rejected": "0"},
        {"prompt": "Tea?", "model_replies": '["Tea.", "Coffee."]', "chosen": "b", "rejected": "a"},
        {
            "prompt": "Tea?",
            "gpt4": "Tea.",
            "llama": "Coffee.",
            "chosen": "llama",
            "rejected": "gpt4",
        },
        {"prompt": "Tea?", "model_a": "m1", "model_b": "m2", "chosen": "m2", "rejected": "m1"},
        {
            "instruction": "Tea?",
            "completions": [
                {"model": "m1", "response": "Tea."},
                {"model": "m2", "response": "Coffee."},
            ],
            "chosen": "m2",
            "rejected": "m1",
        },
    ],
)
def test_names_that_cannot_be_followed_are_refused(row: dict[str, Any]) -> None:
    for data in ([row], [row] * 300, pd.DataFrame([row])):
        with pytest.raises(DataError, match=r"labels=|columns=|pairs="):
            read_preferences(data)


def test_numbers_beside_a_list_are_texts_if_the_caller_says_so_or_the_list_holds_them_or_no_texts() -> (
    None
):
    row = {"prompt": "1 + 1?", "chosen": "2", "rejected": "1"}
    both = {"chosen": "chosen", "rejected": "rejected"}
    two = Preference(prompt="1 + 1?", chosen="2", rejected="1")
    assert read({**row, "options": ["one", "two"]}, columns=both) == [two]
    assert read({**row, "options": ["1", "2"]}) == [two]
    assert read({**row, "text_ids": [7, 8, 9]}) == [two]


def test_the_line_to_copy_reads_the_names() -> None:
    columns = {
        "chosen": "chosen",
        "rejected": "rejected",
    }  # they are believed to be texts, and are none
    row = {**TWO, "chosen": "b", "rejected": "a"}
    with pytest.raises(DataError, match="do not hold responses") as caught:
        read(row, columns=columns)
    assert caught.value.example == {
        "response_1": "answer_a",
        "response_2": "answer_b",
        "label": "chosen",
    }
    assert read(row, columns=caught.value.example) == [COFFEE]


def test_a_response_that_is_a_letter_is_a_text() -> None:
    """One row that looks like names does not decide: the first rows together do."""
    letters = {**TWO, "chosen": "b", "rejected": "a"}
    words = {**TWO, "chosen": "Neither, thank you.", "rejected": "a"}
    first, second = read(letters, words)
    assert first == Preference(prompt="Tea?", chosen="b", rejected="a")
    assert isinstance(second, Preference)
    assert read({"prompt": "Tea?", "chosen": "b", "rejected": "a"}) == [first]


def test_texts_that_repeat_the_responses_are_texts() -> None:
    row = {**TWO, "answer_a": "1", "answer_b": "2", "chosen": "2", "rejected": "1"}
    assert read(row) == [Preference(prompt="Tea?", chosen="2", rejected="1")]


HUGE, LONG = pytest.param(10**5000, id="huge"), pytest.param("b" * 10**6, id="long")


@pytest.mark.heavy
@pytest.mark.parametrize("odd", [HUGE, LONG, "²", "", " ", 1.5, b"b", ["b"], {"b": 1}])
def test_odd_values_among_names_cost_their_row(odd: object) -> None:
    for row, key in ((TWO, "b"), (LIST, "1")):
        rows = [{**row, "chosen": key, "rejected": {"b": "a", "1": "0"}[key]}] * 40
        found = read(*rows, {**row, "chosen": odd, "rejected": "a"})
        assert found[:40] == [COFFEE] * 40
        assert isinstance(found[40], str)


def test_a_row_that_names_no_response_or_the_same_twice_has_an_error() -> None:
    rows = [{**TWO, "chosen": "b", "rejected": "a"}] * 40
    odd = [{**TWO, "chosen": "c", "rejected": "a"}, {**TWO, "chosen": "b", "rejected": "b"}]
    found = read(*rows, *odd)
    assert found[:40] == [COFFEE] * 40
    assert "'chosen' is 'c'" in str(found[40])
    assert "name the same response" in str(found[41])


def test_batches_of_several_responses_to_a_prompt_are_refused() -> None:
    """A batch keeps its rows, so that no pair of them is picked silently."""
    ratings = {"prompt": "q", "response": "a", "score": 5, "user": "ann"}
    listed = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
    with FakeLLM() as llm:
        add = pi.AddPersonas("fake", api_base=llm.api_base, cache=False)
        for row in (ratings, listed):
            with pytest.raises(DataError, match="several responses to a prompt"):
                add(pd.DataFrame([row] * 2))
            assert "several responses" in add([row])[0]["persona_error"]
    assert not llm.calls
