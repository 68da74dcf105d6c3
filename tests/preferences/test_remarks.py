"""What speaks against the choices that were read is counted, and told where people look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import personainfer as pi
from personainfer.cli.commands import app
from personainfer.data import read_preferences
from personainfer.preferences.remarks import how_read, remarks
from personainfer.testing import FakeLLM

from ..builders import USER

EXPLICIT = {"prompt": "Tea?", "chosen": "Tea.", "rejected": "Coffee."}
TWO = {"prompt": "Tea?", "response_a": "Tea.", "response_b": "Coffee."}
SWAPPED = {**EXPLICIT, "chosen_score": 1, "rejected_score": 9}


def summary(*rows: dict[str, Any], **options: Any) -> dict[str, Any]:
    source = read_preferences(list(rows), **options)
    list(source)
    return source.summary


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (SWAPPED, "lower score in 1 of 1 pairs with scores: are the columns swapped"),
        ({**TWO, "winner": "a", "score_a": 1, "score_b": 9}, "lower score in 1 of 1"),
        ({**TWO, "winner": "a", "label": "b"}, "'label' contradicts 'winner' in 1 rows"),
        ({**TWO, **EXPLICIT, "winner": "b"}, "'winner' contradicts chosen and rejected in 1 rows"),
        ({**TWO, "chosen": "a", "rejected": "b", "winner": "b"}, "'winner' contradicts 'chosen'"),
    ],
)
def test_what_contradicts_the_choice_is_told(row: dict[str, Any], words: str) -> None:
    (said,) = remarks(summary(row))
    assert words in said


@pytest.mark.parametrize(
    "row",
    [
        EXPLICIT,
        {**SWAPPED, "chosen_score": 10},
        {**SWAPPED, "chosen_score": 9},  # equal: counted, but no sign of swapped columns
        {**SWAPPED, "chosen_score": None},
        {**SWAPPED, "chosen_score": "good"},
        {**TWO, "winner": "a", "score_a": 9, "score_b": 1},
        {**TWO, "winner": "a", "label": "a"},
        {**TWO, "winner": "a", "label": "tie"},
        {**TWO, "winner": "a", "label": 1},  # of no certain coding
        {**TWO, "winner": "a", "label": "tea"},  # a label of another kind
        {**TWO, **EXPLICIT, "winner": "a"},
        {**TWO, **EXPLICIT, "chosen": "Water.", "winner": "b"},  # of other responses
    ],
)
def test_what_does_not_contradict_says_nothing(row: dict[str, Any]) -> None:
    assert remarks(summary(row)) == []


def test_a_few_pairs_the_wrong_way_round_are_counted_only() -> None:
    found = summary(SWAPPED, *[{**SWAPPED, "chosen_score": 10}] * 2)
    assert (found["chosen_scored_lower"], found["pairs_scored"]) == (1, 3)
    assert remarks(found) == []


@pytest.mark.heavy
def test_every_table_says_which_column_was_read_as_what() -> None:
    rows = [{**EXPLICIT, "question": "Else?", "user": "ann", "user_id": "bob", "note": 1}]
    with FakeLLM() as llm:
        for data in (rows, pd.DataFrame(rows)):
            table = pi.infer_personas(data, "fake", api_base=llm.api_base, cache=False)
            read = table.settings["read"]
            roles = ("prompt", "chosen", "rejected")
            assert read["columns"] == {**{role: role for role in roles}, "user": "user_id"}
            assert how_read(read) == "read prompt, chosen, rejected, user from 'user_id'"


def test_labels_are_told_too() -> None:
    found = summary({**TWO, "label": 0}, {**TWO, "label": 1}, labels={0: "first", 1: "second"})
    assert how_read(found).endswith("label; labels: 0 = first, 1 = second")


def test_the_line_is_where_people_look(tmp_path: Path) -> None:
    rows = [{**SWAPPED, "prompt": f"q{n}"} for n in range(3)]
    pd.DataFrame(rows).to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    with FakeLLM() as llm:
        table = pi.infer_personas(rows, "fake", api_base=llm.api_base, cache=False)
        reach = ["--model", "fake", "--api-base", llm.api_base, "--no-cache"]
        done = CliRunner().invoke(app, ["infer", str(tmp_path / "rows.jsonl"), *reach])
    words = "lower score in 3 of 3 pairs"
    assert words in str(table)
    assert words in table._repr_html_()
    saved = pi.PersonaTable.load(table.save(tmp_path / "t.parquet"))
    assert words in str(saved[:1])
    assert words in done.stderr
    assert "read prompt, chosen, rejected" in done.stderr


def test_a_text_that_may_belong_to_the_prompt_is_told() -> None:
    rows = [
        {"question": f"Why {n}?", "context": f"Document {n}", "chosen": f"a{n}", "rejected": "b"}
        for n in range(9)
    ]
    (said,) = remarks(summary(*rows))
    assert "'context' holds texts, too, and is no part of the prompt" in said
    alike = [{**row, "context": "forum"} for row in rows]
    within = [{**row, "context": f"Question: {row['question']}"} for row in rows]
    answers = [{**row, "text": row["chosen"]} for row in map(dict, alike)]
    for quiet in (alike, within, answers):
        assert remarks(summary(*quiet)) == []


@pytest.mark.parametrize("asked", ["prompt", "instruction", "question", "query"])
def test_a_history_belongs_to_any_question(asked: str) -> None:
    row = {asked: "Why?", "history": [["Hi", "Hello"]], "chosen": "a", "rejected": "b"}
    (found,) = read_preferences([row])
    assert found.preference is not None
    assert isinstance(found.preference.prompt, tuple)
    assert [turn.content for turn in found.preference.prompt] == ["Hi", "Hello", "Why?"]


@pytest.mark.parametrize("text", ["negative", "Classify", "A document."])
def test_an_input_belongs_to_an_instruction_alone(text: str) -> None:
    """Elsewhere it may be the whole prompt, with a template: whether it is a part is told."""
    pair = {"chosen": "Tea, please.", "rejected": "Coffee, please."}
    asked = "Classify as positive or negative"
    (found,) = read_preferences([{"instruction": asked, "input": text, **pair}])
    assert found.preference == pi.Preference(prompt=f"{asked}\n{text}", **pair)
    rows = [{"prompt": f"{asked}: {n}", "input": f"{text} {n}", **pair} for n in range(9)]
    assert [row.preference and row.preference.prompt for row in read_preferences(rows)] == [
        row["prompt"] for row in rows
    ]
    assert summary(*rows)["not_in_prompt"] == ["input"]
    whole = [{**row, "input": f"### Question:\n{row['prompt']}\n### Answer:"} for row in rows]
    assert "not_in_prompt" not in summary(*whole)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "### Input:\nDoc\n### Response:", "instruction": "Sum up.", "input": "Doc"},
        {"prompt": "Context: A document. Question: Why?", "input": "A document."},
        {
            "prompt": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yo"},
                USER,
            ],
            "history": [["Hi", "Yo"]],
        },
        {"prompt": "Why?", "history": [{"role": "user", "content": "Why?"}]},
    ],
)
def test_what_the_prompt_holds_is_not_added_to_it(row: dict[str, Any]) -> None:
    pair = {"chosen": "a", "rejected": "b"}
    for system in ({}, {"system": "Be kind."}):
        (found,) = read_preferences([{**row, **system, **pair}])
        (alone,) = read_preferences([{"prompt": row["prompt"], **system, **pair}])
        assert found.preference == alone.preference


@pytest.mark.parametrize("more", [{"history": "of the forum"}, {"input": {"id": 1}}])
def test_what_is_no_input_or_history_is_left_alone(more: dict[str, Any]) -> None:
    rows = [{**EXPLICIT, **more}] * 3
    assert [row.error for row in read_preferences(rows)] == [None] * 3
    assert [row.error for row in read_preferences(pd.DataFrame(rows))] == [None] * 3


def test_a_system_message_alone_is_no_prompt() -> None:
    good, odd = ([{"role": role, "content": "Be short."}] for role in ("user", "system"))
    rows = [{**EXPLICIT, "prompt": prompt} for prompt in (good, odd)]
    first, second = read_preferences(rows)
    assert first.error is None
    assert "ends with a system message" in str(second.error)
