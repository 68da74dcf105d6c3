"""Data as other tools write it: the same cells in another notation, or under another usual name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personainfer.data import read_preferences
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.preferences.cells import parse_cell
from personainfer.preferences.remarks import remarks
from personainfer.records import Message, Preference

from ..builders import EXPLICIT, PAIR, USER, read, say

AB = {"prompt": "q", "response_a": "a", "response_b": "b"}
TOOL = {"name": "clock", "parameters": {}}
EARLIER = [say("hello", "user"), say("hi")]


def turns_of(found: Preference | str) -> list[tuple[str, str]]:
    """The roles and texts of the prompt's turns."""
    assert isinstance(found, Preference), found
    return [(turn.role, turn.content) for turn in found.prompt if isinstance(turn, Message)]


def read_csv(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[Preference | str]:
    """What rows are read as, once pandas read them from Parquet and wrote them to a CSV file."""
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    pd.read_parquet(folder / "rows.parquet").to_csv(folder / "rows.csv", index=False)
    found = read_preferences(folder / "rows.csv", **options)
    return [row.preference or str(row.error) for row in found]


# Which response is the better one


def test_of_two_ranks_the_lower_one_is_the_better() -> None:
    names = {"prompt": "prompt", "response_1": "response_a", "response_2": "response_b"}
    names |= {"score_1": "rank_a", "score_2": "rank_b"}
    rows = [{**AB, "rank_a": one, "rank_b": other} for one, other in ((1, 2), (3, 1))]
    assert read(*rows, columns=names) == [PAIR, PAIR.swapped]
    assert read(rows[1], columns=names, min_gap=2) == [PAIR.swapped]


@pytest.mark.parametrize(
    ("one", "two", "label"),
    [
        ("response_b", "response_a", "a"),
        ("output_2", "output_1", 1),
        ("model_b_text", "model_a_text", "model_a"),
        ("right", "left", "left"),
    ],
)
def test_responses_whose_names_say_another_order_than_columns_are_refused(
    one: str, two: str, label: object
) -> None:
    """The label "a" means response_a, whatever its place in `columns=`."""
    rows: list[dict[str, Any]] = [{"prompt": "q", one: "b", two: "a", "best": label}] * 2
    names = {"prompt": "prompt", "response_1": one, "response_2": two, "label": "best"}
    with pytest.raises(InvalidArgumentError, match="Swap response_1 and response_2"):
        read(*rows, columns=names)
    swapped = {**names, "response_1": two, "response_2": one}
    if label != 1:  # a column that never holds a 2 is not certain
        assert read(*rows, columns=swapped) == [PAIR, PAIR]
    assert read(*rows, columns=names, labels={label: "second"}) == [PAIR, PAIR]


def test_labels_of_zero_and_one_read_booleans_and_the_other_way_round() -> None:
    rows = [{**AB, "label": label} for label in (True, False, "True")]
    assert read(*rows, labels={1: "first", 0: "second"}) == [PAIR, PAIR.swapped, PAIR]
    numbers = [{**AB, "label": label} for label in (1, 0, 1.0)]
    assert read(*numbers, labels={True: "first", False: "second"}) == [PAIR, PAIR.swapped, PAIR]
    with pytest.raises(DataError, match="is True, which is none of"):
        read({**AB, "label": True}, labels={1: "first", 2: "second"})


# System messages, earlier turns and tools


@pytest.mark.parametrize(
    "name", ["system_instruction", "systemInstruction", "System Instructions", "sys_prompt"]
)
def test_other_usual_names_of_the_system_message(name: str) -> None:
    (found,) = read({**EXPLICIT, name: "Be brief."})
    assert turns_of(found) == [("system", "Be brief."), ("user", "q")]


@pytest.mark.parametrize(
    "system",
    [
        {"parts": [{"text": "Be brief."}]},
        [{"type": "text", "text": "Be brief."}],
        say("Be brief.", "system"),
        [say("Be ", "system", name="a"), say("brief.", "developer")],
        np.array(["Be brief."]),
    ],
    ids=["Gemini", "Anthropic", "a message", "two messages", "parts"],
)
def test_system_messages_that_are_no_text(system: Any) -> None:
    (found,) = read({**EXPLICIT, "system": system})
    ((role, text), question) = turns_of(found)
    assert (role, text.replace("\n\n", ""), question) == ("system", "Be brief.", ("user", "q"))


def test_a_system_column_without_a_system_message() -> None:
    nothing: list[object] = [[], None, " "]
    assert read(*({**EXPLICIT, "system": each} for each in nothing)) == [PAIR] * 3
    rows = [{**EXPLICIT, "system": each} for each in ([USER], 7, {"a": 1}, "Be brief.")]
    assert [isinstance(each, str) for each in read(*rows)] == [True, True, True, False]


@pytest.mark.parametrize("nothing", [None, "", " "])
def test_a_system_turn_without_words_is_none(nothing: str | None) -> None:
    blank = say(nothing, "system")
    row = {"chosen": [blank, USER, say("a")], "rejected": [USER, say("b")]}
    assert read(row) == read({**EXPLICIT, "prompt": [blank, USER]}) == [PAIR]
    (found,) = read({**EXPLICIT, "prompt": [blank]})
    assert "ends with a system message" in str(found)


@pytest.mark.parametrize("name", ["chat_history", "conversation_history", "previous_messages"])
def test_earlier_turns_in_a_column_of_another_usual_name(name: str) -> None:
    whole = [*EARLIER, USER, say("a")]
    for earlier in (EARLIER, [*EARLIER, USER], whole, [["hello", "hi"]], json.dumps(EARLIER)):
        (found,) = read({**EXPLICIT, name: earlier})
        assert turns_of(found) == [("user", "hello"), ("assistant", "hi"), ("user", "q")]


def test_turns_and_texts_beside_the_prompt_are_told() -> None:
    rows = [
        {
            "prompt": f"What of the {n}th?",
            "chosen": "Drink tea.",
            "rejected": "Drink coffee.",
            "context": [say(f"the {n}th of May", "user"), say("yes")],
            "passage": f"A text, number {n}.",
            "messages": [say(f"What of the {n}th?", "user"), say("Drink tea.")],  # nothing else
        }
        for n in range(10, 15)
    ]
    source = read_preferences(rows)
    assert all(row.preference for row in source)
    assert source.summary["not_in_prompt"] == ["context", "passage"]
    assert len(remarks(source.summary)) == 2


@pytest.mark.parametrize("other", [3, "User: hello\nBot: hi", ["hello", "hi"]])
def test_a_column_like_a_history_that_holds_something_else_costs_no_row(other: object) -> None:
    """The rows where it is empty would be read with it, and all others would have errors."""
    cells: list[object] = [None, other, other]
    assert read(*({**EXPLICIT, "previous_turns": each} for each in cells)) == [PAIR] * 3
    cells = [[], EARLIER, EARLIER, other]
    found = read(*({**EXPLICIT, "previous_turns": each} for each in cells))
    assert [isinstance(each, str) for each in found] == [False, False, False, True]


@pytest.mark.heavy
def test_long_conversations_beside_the_prompt_are_read_in_little_time() -> None:
    """Each of 6,000 turns was looked for in each of 6,000 others."""
    whole = [[say(f"{name} {n}", "user") for n in range(6000)] for name in ("asked", "other")]
    rows = [{**EXPLICIT, "prompt": whole[0], "messages": whole[1], "id": n} for n in range(2)]
    started = time.process_time()
    assert all(row.preference for row in read_preferences(rows))
    assert time.process_time() - started < 6  # of 1.5; it took 14


@pytest.mark.parametrize(
    ("name", "tools"),
    [
        ("tools", [json.dumps(TOOL)]),  # nvidia/When2Call
        ("tools", TOOL),
        ("tools", json.dumps(TOOL)),
        ("functions", [TOOL]),
    ],
)
def test_definitions_of_tools_in_other_notations(name: str, tools: object) -> None:
    (found,) = read({**EXPLICIT, name: tools})
    assert isinstance(found, Preference)
    assert isinstance(found.prompt[0], Message)
    assert found.prompt[0].extra == {"tools": [TOOL]}


def test_tools_that_cannot_be_read_are_counted() -> None:
    cells: list[object] = [["search"], "search", {"a": 1}, 3, [], "", None, "[]", [TOOL]]
    source = read_preferences([{**EXPLICIT, "tools": cell} for cell in cells])
    assert all(row.preference for row in source)
    assert source.summary["tools_left_out"] == 4


# Conversations


def test_fields_of_shared_turns_may_differ_unless_they_are_calls() -> None:
    """Counts of tokens, ids and times differ between two conversations about the same."""
    row = {
        "chosen": [{**USER, "id": "x", "num_tokens": 1}, say("a", id="y")],
        "rejected": [{**USER, "id": "z"}, say("b")],
    }
    (found,) = read(row)
    assert turns_of(found) == [("user", "q")]
    call = {"type": "function", "function": {"name": "clock", "arguments": "{}"}}
    called = [USER, say(None, tool_calls=[call]), say("12:00", "tool")]
    other = {"chosen": [*called, say("a")], "rejected": [USER, say(""), called[2], say("b")]}
    assert "do not share a prompt" in str(read(row, other)[1])
    more = {**row, "prompt": [{**USER, "tools": [TOOL]}]}
    assert "does not begin with the prompt" in str(read(row | {"prompt": [USER]}, more)[1])


def test_responses_that_call_a_tool_before_they_answer() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": "{}"}}
    steps = [say(None, tool_calls=[call]), say("12:00", "tool")]
    row = {"prompt": [USER], "chosen": [*steps, say("a")], "rejected": [*steps, say("b")]}
    found, other = read(row, {**row, "rejected": [say("b")]})
    assert [role for role, _ in turns_of(found)] == ["user", "assistant", "tool"]
    assert isinstance(found, Preference)
    assert (found.chosen, found.rejected) == ("a", "b")
    assert "do not share a prompt" in str(other)


def test_a_prompt_of_tool_turns_that_the_responses_repeat_is_there_once() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": "{}"}}
    steps = [say(None, tool_calls=[call]), say("12:00", "tool")]
    row = {"prompt": steps, "chosen": [*steps, say("a")], "rejected": [*steps, say("b")]}
    assert len(turns_of(read(row)[0])) == 2


def test_turns_as_a_dict_of_lists() -> None:
    """`datasets` reads a Sequence of dicts so; ELI5 has its answers so."""
    chosen, rejected = (
        {"role": ["user", "assistant"], "content": np.array(["q", text])} for text in "ab"
    )
    assert read({"chosen": chosen, "rejected": rejected}) == [PAIR]
    answers = {"id": ["x", "y"], "text": ["b", "a"], "score": [3, 9]}
    assert read({"prompt": "q", "answers": answers}, pairs="all") == [PAIR]


def mapped(value: Any) -> Any:
    """Return a cell as Arrow gives it if its dicts have the type map, as Spark and DuckDB write them."""
    if isinstance(value, list):
        return [mapped(each) for each in value]
    return list(value.items()) if isinstance(value, dict) else value


def test_turns_and_texts_in_maps() -> None:
    prompt, chosen, rejected = (mapped([turn]) for turn in (USER, say("a"), say("b")))
    assert read({"prompt": prompt, "chosen": chosen, "rejected": rejected}) == [PAIR]
    assert read({**EXPLICIT, "prompt": mapped({"full_text": "q", "id": "x"})}) == [PAIR]
    (found,) = read({**EXPLICIT, "chat_history": mapped(EARLIER)})
    assert turns_of(found) == [("user", "hello"), ("assistant", "hi"), ("user", "q")]
    answers = mapped([{"text": "b", "rank": "2"}, {"text": "a", "rank": "1"}])
    assert read({"prompt": "q", "answers": answers}, pairs="all") == [PAIR]


def test_maps_in_a_parquet_file(tmp_path: Path) -> None:
    turns = pa.list_(pa.map_(pa.string(), pa.string()))
    cells = {side: pa.array([mapped([USER, say(text)])], turns) for side, text in (SIDES_AB)}
    pq.write_table(pa.table(cells), tmp_path / "rows.parquet")
    for data in (tmp_path / "rows.parquet", pd.read_parquet(tmp_path / "rows.parquet")):
        (found,) = read_preferences(data)
        assert found.preference == PAIR


def test_pairs_of_texts_are_no_maps() -> None:
    pairs = [("hello", "hi"), ("and", "so")]
    (found,) = read({**EXPLICIT, "history": pairs})
    assert [role for role, _ in turns_of(found)] == ["user", "assistant"] * 2 + ["user"]
    for prompt in ([("hello", "hi")], [[("hello", "hi")]], [("role", "user"), ("role", "x")]):
        (found, _) = read({**EXPLICIT, "prompt": prompt}, EXPLICIT)
        assert "has a turn that is not" in str(found)


def test_annotations_as_maps_and_as_a_dict_of_lists() -> None:
    votes = [{"overall_pref": "A-is-clearly-better", "evaluator": "e"}] * 2
    row = {"text": "q", "completion_a": "a", "completion_b": "b", "expert_worker_annotations": []}
    lists = {key: [vote[key] for vote in votes] for key in votes[0]}
    for cell in (votes, mapped(votes), lists):
        assert read({**row, "normal_worker_annotations": cell}) == [PAIR]


def test_definitions_of_tools_as_a_dict_of_lists() -> None:
    tools: dict[str, list[Any]] = {
        "type": ["function"] * 2,
        "function": [TOOL, {"name": "other"}],
    }
    (found,) = read({**EXPLICIT, "tools": tools})
    assert isinstance(found, Preference)
    assert isinstance(found.prompt[0], Message)
    assert found.prompt[0].extra == {
        "tools": [{"type": "function", "function": each} for each in tools["function"]]
    }


def test_turns_that_were_written_as_json_twice() -> None:
    twice = {
        side: json.dumps(json.dumps([USER, say(text)]))
        for side, text in zip(SIDES, "ab", strict=True)
    }
    assert read(*[twice] * 2) == [PAIR, PAIR]
    assert read(*[{"prompt": json.dumps(json.dumps([USER])), **twice}] * 2) == [PAIR, PAIR]
    quoted = {**EXPLICIT, "chosen": '"[yes]"', "rejected": json.dumps('{"no": 1}')}
    (found,) = read(quoted)
    assert isinstance(found, Preference)
    assert found.chosen == '"[yes]"'


@pytest.mark.parametrize(
    "text", ['"[Chorus] la la" is a song', '"{name}" is a field', '"[sic]" he']
)
@pytest.mark.parametrize("name", ["prompt", "chosen"])
def test_a_text_that_begins_with_a_quotation_is_no_json(name: str, text: str) -> None:
    (found,) = read({**EXPLICIT, name: text})
    assert isinstance(found, Preference)
    assert getattr(found, name) == text


SIDES = ("chosen", "rejected")
SIDES_AB = tuple(zip(SIDES, "ab", strict=True))
ROUNDS = {"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]}


@pytest.mark.parametrize("write", [json.dumps, list], ids=["JSON", "lists"])
@pytest.mark.parametrize("is_labelled", [True, False])
def test_lists_of_rounds_with_any_kind_of_choice(write: Any, is_labelled: bool) -> None:
    """Arena 55k has JSON lists; people add a `winner` to it, or make chosen and rejected of it."""
    row = {name: write(texts) for name, texts in ROUNDS.items()}
    more = {name: write([*texts, "x"]) for name, texts in ROUNDS.items()}
    if is_labelled:
        names = dict(zip(("prompt", *SIDES), ("prompt", "response_a", "response_b"), strict=True))
        row, more = ({names[k]: v for k, v in r.items()} | {"winner": "a"} for r in (row, more))
    one, two = read(row, more)
    assert one == PAIR
    assert "differ before their responses" in str(two)


def test_answers_in_json_to_a_plain_prompt_stay_texts() -> None:
    row = {"prompt": "List a drink.", "chosen": '["tea"]', "rejected": '["milk"]'}
    (found,) = read(row)
    assert isinstance(found, Preference)
    assert found.chosen == '["tea"]'


def test_lists_as_answers_to_a_list_stay_texts() -> None:
    """What is sorted, or marked word by word, is no rounds: no two responses share their first texts."""
    rows = [
        {"prompt": json.dumps(["b", "a"]), "chosen": json.dumps(good), "rejected": json.dumps(bad)}
        for good, bad in ((["a", "b"], ["b", "a"]), (["a"], ["b"]))
    ]
    for row, found in zip(rows, read(*rows), strict=True):
        assert isinstance(found, Preference)
        assert found.chosen == row["chosen"]


def test_rounds_in_json_after_white_space() -> None:
    row: dict[str, Any] = {f"winner_{verdict}": verdict == "model_a" for verdict in VERDICTS}
    names = zip(("prompt", "response_a", "response_b"), "qab", strict=True)
    assert read(row | {name: f" {json.dumps([text])}" for name, text in names}) == [PAIR]


VERDICTS = ("model_a", "model_b", "tie")


# Several responses


def test_two_responses_in_a_list_beside_marks_of_sides() -> None:
    """The marks may be compared with the choice, but name no column of a response."""
    rows = [{"prompt": "q", "responses": ["a", "b"], "winner": each} for each in ("a", "b")]
    for good, bad in ("chosen rejected".split(), "selected rejected".split()):
        more = {good: True, bad: False}
        assert read(*({**row, **more} for row in rows)) == [PAIR, PAIR.swapped]


@pytest.mark.parametrize("reject", [False, None, "too long"])
def test_reject_beside_a_label_is_no_response(reject: object) -> None:
    row = {**AB, "chosen": "a", "reject": reject}
    assert read(row, {**row, "chosen": "b"}) == [PAIR, PAIR.swapped]


def test_one_chosen_response_and_a_list_of_rejected_ones() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}
    with pytest.raises(DataError, match="lists of responses"):
        read(row)
    found = read(row, {**row, "chosen": ["a"], "rejected": "b"}, pairs="all")
    assert found == [PAIR, PAIR.model_copy(update={"rejected": "c"}), PAIR]


# Files that pandas wrote


def test_lists_of_numpy_in_csv_files(tmp_path: Path) -> None:
    """Cells that pandas reads of Parquet are arrays, which have no commas in a CSV file."""
    question = say('isn\'t } { "so"?', "user")
    both = {side: [question, say(f"{side} isn't")] for side in SIDES}
    found = read_csv(tmp_path, [both] * 5)
    assert found == read(*[both] * 5)
    rows = [{"prompt": "q", "responses": ["b", "a"], "scores": [-1.5, 2.0]}] * 5
    assert read_csv(tmp_path, rows, pairs="all") == [PAIR] * 5
    lists = [{"prompt": "q", "chosen": ["a", "it's"], "rejected": ["b", "no"]}] * 5
    with pytest.raises(DataError, match="lists of responses"):
        read_csv(tmp_path, lists)
    assert read_csv(tmp_path, lists[:1] * 5, pairs="adjacent")[0] == PAIR


def test_annotations_in_csv_files(tmp_path: Path) -> None:
    votes = [{"overall_pref": "A-is-clearly-better"}, {"overall_pref": "Tie"}]
    row: dict[str, Any] = {"text": "q", "completion_a": "a", "completion_b": "b"}
    row |= {"normal_worker_annotations": votes, "expert_worker_annotations": votes[:1]}
    assert read_csv(tmp_path, [row] * 2) == [PAIR, PAIR]
    assert read({**row, "expert_worker_annotations": "n/a"}) == [PAIR]


def test_values_without_commas_are_counted_before_they_are_parsed() -> None:
    with pytest.raises(DataError, match="more than 200,000 values"):
        parse_cell("x", "[" + "'' " * 200_001 + "]")


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("selected", "rejected"),
        ("winning_answer", "losing_answer"),
    ],
)
def test_further_usual_names_of_the_two_sides(good: str, bad: str) -> None:
    assert read({"prompt": "q", good: "a", bad: "b"}) == [PAIR]


@pytest.mark.parametrize("response", ["completion", "response"])
def test_one_response_a_row_is_told_how_its_rows_can_be_compared(response: str) -> None:
    """TRL's unpaired preferences (KTO), and marks of safety (BeaverTails)."""
    rows = [{"prompt": "q", response: text, "is_good": text == "a"} for text in "ab"]
    with pytest.raises(DataError, match='"score": "…"} and pairs="all"'):
        read(*rows)
    names = {"prompt": "prompt", "response": response, "score": "is_good"}
    assert read(*rows, columns=names, pairs="all") == [PAIR]


# Responses that hold more than the answer


@pytest.mark.parametrize(
    "form",
    [
        "User: {}\nAssistant: {}",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>",
        "### Instruction:\n{}\n\n### Response:\n{}",
    ],
)
@pytest.mark.parametrize("is_labelled", [True, False])
def test_responses_that_hold_the_prompt_behind_other_words_are_told(
    form: str, is_labelled: bool
) -> None:
    names = ("response_a", "response_b") if is_labelled else SIDES
    rows = [
        {"prompt": f"What is {n} and {n}?", "winner": "a"}
        | {name: form.format(f"What is {n} and {n}?", f"{name} {n}") for name in names}
        for n in range(5)
    ]
    source = read_preferences(rows)
    assert source.summary["prompt_within_responses"] is True
    assert ["so it is there twice" in each for each in remarks(source.summary)] == [True]
    assert "prompt_within_responses" not in read_preferences(rows[:4]).summary
    others = [{**row, "prompt": "What is it?"} for row in rows]
    assert "prompt_within_responses" not in read_preferences([*rows, *others]).summary


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("“{}” is a good question.", "You asked “{}”"),
        ("# {}\n\nOnce …", "**{}**\n\nOnce …"),
        ("```python\n{}\n    return 1\n```", "```python\n{}\n    pass\n```"),
    ],
)
def test_answers_that_quote_or_complete_the_prompt_are_not_told(good: str, bad: str) -> None:
    prompts = [f"A tale of number {n}" for n in range(5)]
    rows = [{"prompt": q, "chosen": good.format(q), "rejected": bad.format(q)} for q in prompts]
    assert "prompt_within_responses" not in read_preferences(rows).summary


def test_a_prompt_of_messages_at_the_start_of_texts_is_told() -> None:
    rows = [
        {"prompt": [say(q := f"What is {n}?", "user")]} | {side: f"{q} A {side}." for side in SIDES}
        for n in range(5)
    ]
    assert read_preferences(rows).summary["prompt_within_responses"] is True


@pytest.mark.parametrize("prompt", ["What is tea?", [say("What is tea?", "user")]])
def test_conversations_and_repeated_prompts_hold_no_prompt(prompt: Any) -> None:
    whole = [say("What is tea?", "user")]
    sides = {side: [*whole, say(side)] for side in SIDES}
    rows = [
        {"prompt": prompt, **sides},
        {"prompt": prompt} | {k: json.dumps(v) for k, v in sides.items()},
    ]
    for row in rows:
        assert "prompt_within_responses" not in read_preferences([row] * 5).summary
    begun = {"prompt": "What is tea?"} | {side: f"What is tea?\n{side}" for side in SIDES}
    assert "prompt_within_responses" not in read_preferences([begun] * 5).summary


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_calls_that_are_json_text_are_calls(key: str) -> None:
    """Arrow has no common type for calls with other arguments, so many write them as text."""
    call = {"name": "clock", "arguments": "{}"}
    turns = [USER, say(None, **{key: json.dumps([call])}), say("12:00", "tool", **{key: "[]"})]
    row = {
        "prompt": turns,
        "chosen": [say("a", **{key: "[]"})],
        "rejected": [say("b", **{key: "null"})],
    }
    (found,) = read(row)
    assert isinstance(found, Preference)
    assert [turn.extra for turn in found.prompt if isinstance(turn, Message)] == [
        None,
        {key: [call]},
        None,
    ]
    texts: list[Any] = [[json.dumps(call)], np.array([json.dumps(call)])]
    for each in texts:  # as `datasets` stores some
        assert read({**row, "prompt": [USER, say(None, **{key: each}), turns[2]]}) == [found]
    (found,) = read({**row, "prompt": [USER, say("x", **{key: "clock()"}), turns[2]]})
    assert isinstance(found, Preference)
    assert isinstance(found.prompt[1], Message)
    assert found.prompt[1].extra == {key: "clock()"}


def test_calls_that_contain_themselves_cost_their_row_alone() -> None:
    around: list[Any] = []
    around.append(around)
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    for calls in (around, deep):
        turns = [USER, say("hm", tool_calls=calls), USER]
        (error, found) = read({**EXPLICIT, "prompt": turns}, EXPLICIT)
        assert "nested deeper" in str(error)
        assert found == PAIR


def test_a_row_without_a_prompt_is_told_how_its_column_is_named() -> None:
    with pytest.raises(DataError) as caught:
        read({"title": "q", "chosen": "a", "rejected": "b"})
    assert list(caught.value.example or ()) == ["prompt", "chosen", "rejected"]
