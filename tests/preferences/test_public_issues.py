"""Data as people have it who asked about it in public: each row is read as they mean it.

The docstring of a test names the thread; the inputs are our own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.exceptions import DataError
from personainfer.records import Message, Preference
from personainfer.testing import FakeLLM

from ..builders import EXPLICIT, PAIR, USER, read, say

# Names of columns


def test_the_columns_of_ms_swift() -> None:
    """modelscope/ms-swift#1922: query, response and rejected_response; KeyError: 'prompt'."""
    row = {"query": "q", "response": "a", "rejected_response": "b", "images": []}
    assert read(row) == [PAIR]
    with_history = {**row, "history": [["hello", "hi"]], "system": "Be brief."}
    (pair,) = read(with_history)
    assert isinstance(pair, Preference)
    assert [turn.role for turn in pair.prompt if isinstance(turn, Message)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_messages_whose_last_turn_is_the_chosen_one() -> None:
    """modelscope/ms-swift#7184: messages end with the chosen answer; rejected_response is beside them."""
    later = [USER, say("x"), say("And?", "user"), say("a")]
    first, second = read(
        {"messages": [USER, say("a")], "rejected_response": "b"},
        {"messages": later, "rejected_response": "b"},
    )
    assert first == PAIR
    assert isinstance(second, Preference)
    assert (second.chosen, second.rejected, len(second.prompt)) == ("a", "b", 3)


def test_roles_of_tools_that_ms_swift_has() -> None:
    """modelscope/ms-swift#7184: tool_call and tool_response are roles of their own."""
    prompt = [USER, say('{"name": "clock"}', "tool_call"), say("12:00", "tool_response")]
    (pair,) = read({**EXPLICIT, "prompt": prompt})
    assert isinstance(pair, Preference)
    assert [turn.role for turn in pair.prompt if isinstance(turn, Message)] == [
        "user",
        "assistant",
        "tool",
    ]


def test_answers_that_are_records() -> None:
    """hiyouga/LlamaFactory#4717: pos_answer and neg_answer, each a record of an answer and more."""
    row = {
        "id": "calendar_135",
        "question": "q",
        "pos_answer": {"answer": "a", "score": 1.0, "actions": "thinks"},
        "neg_answer": {"answer": "b", "score": 0.0, "actions": "guesses"},
    }
    assert read(row) == [Preference(prompt="q", chosen="a", rejected="b", id="calendar_135")]


def test_two_answers_in_their_order() -> None:
    """hiyouga/LlamaFactory#1913: the better answer first in a list, without a score."""
    row = {"instruction": "q", "input": "", "output": ["a", "b"]}
    with pytest.raises(DataError, match="columns="):
        read(row)
    with pytest.raises(DataError, match=r"order alone does not say"):
        read(row, columns={"responses": "output"}, pairs="best-worst")
    ranked = {**row, "ranks": [1, 2]}
    assert read(ranked, columns={"responses": "output"}, pairs="best-worst") == [PAIR]


def test_two_conversations_in_one_column() -> None:
    """hiyouga/LlamaFactory#3354: a question, and a list of the chosen and the rejected turns."""
    row = {"question": "q", "answer": [[USER, say("a")], [USER, say("b")]]}
    with pytest.raises(DataError, match="columns="):
        read(row)


@pytest.mark.parametrize("role", ["Human", "human", "HUMAN", "User"])
def test_roles_in_capitals(role: str) -> None:
    """hiyouga/LlamaFactory#3264: multi-turn data with the roles Human and Assistant."""
    start = [say("x", role), say("y", "Assistant"), say("q", role)]
    (pair,) = read(
        {
            "chosen": [*start, say("a", "Assistant")],
            "rejected": [*start, say("b", "Assistant")],
        }
    )
    assert isinstance(pair, Preference)
    assert [turn.role for turn in pair.prompt if isinstance(turn, Message)] == [
        "user",
        "assistant",
        "user",
    ]


def test_a_prompt_as_text_beside_whole_conversations() -> None:
    """huggingface/trl#1886: a text prompt, and chosen and rejected that repeat it as turns."""
    assert read({"prompt": "q", "chosen": [USER, say("a")], "rejected": [USER, say("b")]}) == [PAIR]


def test_messages_beside_prompt_chosen_and_rejected() -> None:
    """hiyouga/LlamaFactory#3066 (ultrafeedback_binarized): a messages column repeats the chosen side."""
    row = {
        "prompt": "q",
        "prompt_id": "7",
        "chosen": [USER, say("a")],
        "rejected": [USER, say("b")],
        "messages": [USER, say("a")],
        "score_chosen": 8.0,
        "score_rejected": 6.5,
    }
    assert read(row) == [PAIR]


@pytest.mark.heavy
def test_further_columns_come_along() -> None:
    """axolotl-ai-cloud/axolotl#2415: messages, chosen and rejected, and columns beside them."""
    row = {"messages": [USER], "chosen": say("a"), "rejected": say("b"), "source": "x", "turns": 1}
    with FakeLLM() as llm:
        table = pi.infer_personas([row], "fake", api_base=llm.api_base, cache=False)
    assert [each.preference for each in table] == [PAIR]
    assert table.to_pandas()["source"].tolist() == ["x"]


def test_conversations_of_several_rounds_are_not_cut() -> None:
    """axolotl-ai-cloud/axolotl#1645: later rounds were dropped without a word."""
    start = [USER, say("x"), say("And then?", "user")]
    (pair,) = read({"chosen": [*start, say("a")], "rejected": [*start, say("b")]})
    assert isinstance(pair, Preference)
    assert (len(pair.prompt), pair.chosen, pair.rejected) == (3, "a", "b")


def test_answers_with_rewards_make_pairs() -> None:
    """OpenRLHF/OpenRLHF#860: rejection sampling leaves input, output and reward, one answer a row."""
    rows = [
        {"input": "q", "output": "b", "reward": 0.1},
        {"input": "q", "output": "a", "reward": 0.9},
    ]
    assert read(*rows, pairs="best-worst") == [PAIR]


def test_generations_with_ratings() -> None:
    """argilla-io/distilabel#879: the ratings of a list of generations."""
    row = {"instruction": "q", "generations": ["b", "a", "c"], "ratings": [1, 5, None]}
    assert read(row, pairs="best-worst") == [PAIR]


def test_a_list_of_answers_and_a_list_of_worse_ones() -> None:
    """hiyouga/LlamaFactory#6509: several chosen and several rejected responses to one instruction."""
    row = {"instruction": "q", "input": "", "chosen": ["a", "c"], "rejected": ["b"]}
    pairs = read(row, pairs="all")
    assert [(p.chosen, p.rejected) for p in pairs if isinstance(p, Preference)] == [
        ("a", "b"),
        ("c", "b"),
    ]
    assert "1" in str(read(row, EXPLICIT, pairs="adjacent")[0])


def test_a_margin_may_be_missing() -> None:
    """modelscope/ms-swift#9927: rows without a margin were dropped, and the others moved up."""
    rows = [{**EXPLICIT, "margin": margin, "id": n} for n, margin in enumerate((0.1, None, 0.3))]
    found = read(*rows)
    assert [p.id for p in found if isinstance(p, Preference)] == ["0", "1", "2"]


@pytest.mark.heavy
def test_templates_written_into_the_prompt_stay_text() -> None:
    """huggingface/trl#1115: prompts in the form of a chat template are data, and close no turn of ours."""
    prompt = "<s>[INST] <<SYS>> Be brief. <</SYS>> q [/INST]"
    assert read({**EXPLICIT, "prompt": prompt}) == [
        Preference(prompt=prompt, chosen="a", rejected="b")
    ]
    with FakeLLM() as llm:
        pi.infer_personas(
            [{**EXPLICIT, "prompt": prompt}], "fake", api_base=llm.api_base, cache=False
        )
        assert "[INST]" not in llm.requests[0]["messages"][-1]["content"]


# Cells


def test_structs_of_parquet_have_every_key_of_every_turn(tmp_path: Path) -> None:
    """axolotl-ai-cloud/axolotl#3538: Arrow gives each turn the keys of all turns, as nulls."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    prompt = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12:00", "tool_call_id": "1"},
    ]
    rows = [{"prompt": prompt, "chosen": [say("a")], "rejected": [say("b")]}]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    (row,) = read_preferences(str(path))
    assert row.preference is not None, row.error
    extras = [turn.extra for turn in row.preference.prompt if isinstance(turn, Message)]
    assert extras == [None, {"tool_calls": [call]}, {"tool_call_id": "1"}]


def test_arrays_inside_arrays() -> None:
    """A frame that pandas read from Parquet has arrays of dicts, whose content may be an array of parts."""
    parts = np.array([{"type": "text", "text": "a"}], dtype=object)
    row = {
        "prompt": np.array([USER], dtype=object),
        "chosen": np.array([say(parts)], dtype=object),
        "rejected": np.array([say("b")], dtype=object),
    }
    assert read(row) == [PAIR]


def test_json_text_inside_a_list() -> None:
    """diatool-dpo#2 had lists as text; some writers make a text of each turn of a list instead."""
    row = {**EXPLICIT, "chosen": [json.dumps(say("a"))], "rejected": [json.dumps(say("b"))]}
    assert read(row) == [PAIR]


def test_an_empty_side_costs_its_row() -> None:
    """argilla-io/distilabel#264: sides that are empty, null or alike prefer nothing."""
    rows: list[dict[str, Any]] = [
        EXPLICIT,
        {**EXPLICIT, "rejected": []},
        {**EXPLICIT, "rejected": [say("")]},
        {**EXPLICIT, "rejected": None},
        {**EXPLICIT, "rejected": "a"},
    ]
    found = read(*rows)
    assert found[0] == PAIR
    assert all(isinstance(each, str) for each in found[1:])
    assert "same text" in str(found[4])


def test_pictures_are_named_as_the_reason() -> None:
    """hiyouga/LlamaFactory#7696: preference data of a vision model cannot be compared as text."""
    turn = say([{"type": "image"}, {"type": "text", "text": "What is this?"}], "user")
    assert "not text ('image')" in str(read(EXPLICIT, {**EXPLICIT, "prompt": [turn]})[1])


# Tools


TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
@pytest.mark.parametrize("place", ["system", "user"])
def test_definitions_of_tools_are_exported(tools: object, place: Any) -> None:
    """axolotl-ai-cloud/axolotl#3269, huggingface/trl#5311: a tools column, as a list or as JSON text."""
    with FakeLLM() as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "cache": False}
        table = pi.infer_personas([{**EXPLICIT, "tools": tools}], "fake", **options)
        plain = pi.infer_personas([EXPLICIT], "fake", **options)
        assert llm.requests[0]["messages"] == llm.requests[1]["messages"]
    for format in ("dpo", "sft", "kto", "reward", "grpo"):
        rows = pi.tailoring_rows(table, persona="chosen", format=format, persona_in=place)
        assert all(json.loads(row["tools"]) == [TOOL] for row in rows)
        bare = pi.tailoring_rows(plain, persona="chosen", format=format, persona_in=place)
        assert [{k: v for k, v in row.items() if k != "tools"} for row in rows] == list(bare)


def test_tools_of_an_openai_file() -> None:
    """OpenAI's guide to preference fine-tuning: the tools are beside the messages of the input."""
    row = {
        "input": {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": [say("a")],
        "non_preferred_output": [say("b")],
    }
    (pair,) = read(row)
    assert isinstance(pair, Preference)
    assert isinstance(pair.prompt, tuple)
    assert pair.prompt[0].extra == {"tools": [TOOL]}


@pytest.mark.parametrize("tools", ["hammer", "[]", [], None, ["hammer"], "{not json", 3])
def test_a_column_that_only_has_the_name_is_left_alone(tools: object) -> None:
    """A column called tools may hold anything; it stays a column of the table."""
    assert read({**EXPLICIT, "tools": tools}) == [PAIR]
