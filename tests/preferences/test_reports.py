"""What people reported of reading preference data, each with its right value.

The docstring of a test names the report or the data set, where there is one; the inputs are our own.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.records import Message, Preference
from personainfer.testing import FakeLLM

from ..builders import EXPLICIT, PAIR, USER, read, say


def labelled(*labels: object, **names: str) -> list[dict[str, object]]:
    return [{"prompt": "q", "response_1": "a", "response_2": "b", "label": each} for each in labels]


# Read wrongly or lost without a word


def test_signed_preferences() -> None:
    """HelpSteer3's card: -3 to 3, negative where the first response is the better one."""
    rows = [
        {"context": [USER], "response1": "a", "response2": "b", "overall_preference": strength}
        for strength in (1, 3, -3, 0)
    ]
    names = {"prompt": "context", "response_1": "response1", "response_2": "response2"}
    named = read(*rows, columns={**names, "label": "overall_preference"})
    assert named[:3] == [PAIR.swapped, PAIR.swapped, PAIR]
    assert "tie" in str(named[3])
    assert read(*rows) == named
    assert read(rows[0]) == [PAIR.swapped]


SCALE = {"prompt": "q", "response_1": "a", "response_2": "b"}


@pytest.mark.parametrize("name", ["preference_strength", "overall_preference", "overallPreference"])
@pytest.mark.parametrize("numbers", [(1, 2, 3), (1, 2), (1, 7, 4), (3,), (0,), (-1, 1, 7)])
def test_a_strength_without_a_sign_is_not_guessed(name: str, numbers: tuple[int, ...]) -> None:
    """Labelling tools have scales from 1 (A is much better) to 5 or 7."""
    rows = [{**SCALE, name: number} for number in numbers]
    with pytest.raises(DataError, match=r"for certain.*labels="):
        read(*rows)
    told = read(*rows, {**SCALE, name: 5}, labels={**dict.fromkeys(numbers, "first"), 5: "second"})
    assert told == [PAIR] * len(rows) + [PAIR.swapped]


@pytest.mark.parametrize("name", ["preference_strength", "overall_preference"])
def test_a_strength_beside_a_side_says_only_how_strong_it_is(name: str) -> None:
    rows = [{**SCALE, name: 3, "winner": side} for side in ("response_1", "response_2")]
    assert read(*rows) == [PAIR, PAIR.swapped]


def test_labels_of_three_values_are_not_guessed() -> None:
    """auto-j has 0 first, 1 second, 2 tie; PandaLM has 0 tie, 1 first, 2 second."""
    with pytest.raises(DataError, match=r"first, second or tie: labels=\{0: '…', 1: '…', 2: '…'\}"):
        read(*labelled(0, 1, 2))
    told = read(*labelled(0, 1, 2), labels={0: "first", 1: "second", 2: "tie"})
    assert told[:2] == [PAIR, PAIR.swapped]
    assert "tie" in str(told[2])
    told = read(*labelled(0, 1, 2), labels={"0": "tie", "1": "first", "2": "second"})
    assert told[1:] == [PAIR, PAIR.swapped]


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_column_becomes_the_system_message(name: str) -> None:
    """trl#2385; truthy-dpo and orca_dpo_pairs have such a column."""
    (pair,) = read({name: "You are a pirate.", **EXPLICIT})
    assert isinstance(pair, Preference)
    assert pair.prompt == (
        Message(role="system", content="You are a pirate."),
        Message(role="user", content="q"),
    )
    assert read({name: "", **EXPLICIT}, {name: None, **EXPLICIT}) == [PAIR, PAIR]


def test_two_system_messages_that_differ_cost_their_row() -> None:
    """A system column beside a prompt that has a system message: neither may vanish."""
    own = {**EXPLICIT, "prompt": [say("Be kind.", "system"), USER]}
    same, other = read({**own, "system": "Be kind. "}, {**own, "system": "Be brief."})
    assert isinstance(same, Preference)
    assert len(same.prompt) == 2
    assert "system message of its own" in str(other)


@pytest.mark.parametrize("write", [json.dumps, str], ids=["json", "python"])
def test_messages_as_text_in_cells(write: Any) -> None:
    """diatool-dpo#2: csv files hold lists as JSON, or as Python prints them."""
    row = {
        "prompt": "q",
        "chosen": write([USER, say("a")]),
        "rejected": write([USER, say("b")]),
    }
    assert read(row, row) == [PAIR, PAIR]
    assert read({name: row[name] for name in ("chosen", "rejected")}) == [PAIR]


def test_text_that_only_begins_like_json_stays_text() -> None:
    """A response may be code: it is text unless the whole column holds messages."""
    code = '[{"role": "user", "content": "x"}]'
    rows = [{**EXPLICIT, "chosen": code}, EXPLICIT, {**EXPLICIT, "chosen": "[1, 2"}]
    assert [pair.chosen for pair in read(*rows) if isinstance(pair, Preference)] == [
        code,
        "a",
        "[1, 2",
    ]


WHOLE = {"chosen": json.dumps([USER, say("a")]), "rejected": json.dumps([USER, say("b")])}
ROUNDS = {"prompt": '["q"]', "response_a": '["a"]', "response_b": '["b"]', "winner_model_a": 1}
ROUNDS |= {"winner_model_b": 0, "winner_tie": 0}


@pytest.mark.parametrize("odd", ["", " ", "(none)", "[1, 2", None])
@pytest.mark.parametrize(
    ("row", "cell"),
    [(WHOLE, "rejected"), ({"prompt": "q", **WHOLE}, "chosen"), (ROUNDS, "response_b")],
    ids=["implicit", "explicit", "rounds"],
)
def test_one_odd_cell_does_not_make_the_json_of_all_rows_text(
    row: dict[str, Any], cell: str, odd: str | None
) -> None:
    """Nearly all cells tell what a column holds, and the odd one costs its row."""
    found = read(*[row] * 20, {**row, cell: odd}, *[row] * 9)
    assert [each for each in found if isinstance(each, Preference)] == [PAIR] * 29
    assert isinstance(found[20], str)


@pytest.mark.parametrize("count", [2, 9, 60])
def test_most_cells_decide_however_few_there_are(count: int) -> None:
    found = read(*[WHOLE] * count, {**WHOLE, "rejected": "(none)"}, WHOLE)
    assert [isinstance(each, Preference) for each in found] == [True] * count + [False, True]


def test_lists_and_their_json_in_one_column_are_both_turns() -> None:
    assert (
        read(*[{name: json.loads(text) for name, text in WHOLE.items()}] * 3, WHOLE) == [PAIR] * 4
    )


def test_json_of_turns_in_a_column_of_texts_costs_its_row() -> None:
    """Half of the rows are texts: nobody knows which is meant, and neither is taken silently."""
    text: dict[str, Any] = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for rows in ([text, {**text, **WHOLE}] * 20, [tuple({**text, **WHOLE}.values()), text]):
        found = read_preferences(rows)
        for row in found:
            assert row.preference == PAIR or "as JSON text here" in str(row.error)
    asked = read(*[text] * 3, {**text, "prompt": json.dumps([USER])})
    assert "'prompt' is a list of messages as JSON text" in str(asked[-1])


def test_json_that_is_no_turns_is_the_response() -> None:
    """Models are asked for JSON: a column of it holds texts, whatever its keys are."""
    row = {"prompt": "q", "chosen": '{"name": "tea", "value": 3}', "rejected": '{"value": "x"}'}
    assert read(*[row] * 3) == [Preference(**row)] * 3


@pytest.mark.parametrize("name", ["info", "text", "x", "context", "history", "prompt"])
def test_transcripts_beside_another_column_hold_their_prompt(name: str) -> None:
    """HH-RLHF with a column more: its text was the prompt, and the whole transcripts the responses."""
    row = {
        f: f"\n\nHuman: q\n\nAssistant: {text}" for f, text in (("chosen", "a"), ("rejected", "b"))
    }
    assert read(*[{**row, name: "q"}] * 3) == [PAIR] * 3
    other = read({**row, name: "q"}, {**row, name: "batch 7"})[1]
    assert ("is no turn" in str(other)) if name == "prompt" else other == PAIR
    whole = {**row, name: "\n\nHuman: q\n\nAssistant:"}
    assert read(*[whole] * 3) == [PAIR] * 3


def test_a_plain_prompt_among_transcripts_is_a_text_and_they_are_turns() -> None:
    row = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}
    assert read(*[row] * 3, EXPLICIT, {**row, "prompt": ""}, *[row] * 3)[:4] == [PAIR] * 4


def test_a_cell_that_is_cut_off_costs_its_row() -> None:
    """A csv file whose long cells were cut: what is no JSON any more is no response."""
    whole = json.dumps([say("a")])
    rows = [{**EXPLICIT, "chosen": whole, "rejected": json.dumps([say("b")])}] * 2
    good, cut = read(rows[0], {**rows[0], "chosen": whole[:-5]})
    assert good == PAIR
    assert "not JSON" in str(cut)


def test_responses_that_repeat_the_prompt() -> None:
    """reward-bench#140, OpenRLHF#909: the prompt was twice in the exported rows."""
    source = read_preferences([{"prompt": "Q?", "chosen": "Q?\na", "rejected": "Q?\nb"}, EXPLICIT])
    first, second = (row.preference for row in source)
    assert first == Preference(prompt="Q?", chosen="a", rejected="b")
    assert second == PAIR
    assert source.summary["prompt_repeated"] == 1


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ("Hello", "Hello! How can I help?"),
        ("Yes", "Yes you may."),
        ("1", "1, 2 and 3"),
        ("Tea or milk?", "Tea or milk?!"),
    ],
)
def test_an_answer_in_the_words_of_the_prompt_keeps_them(prompt: str, chosen: str) -> None:
    [found] = read({"prompt": prompt, "chosen": chosen, "rejected": f"{prompt}, and so on."})
    assert isinstance(found, Preference)
    assert (found.chosen, found.rejected) == (chosen, f"{prompt}, and so on.")


def test_a_response_that_begins_with_the_same_letters_repeats_nothing() -> None:
    """A short prompt may begin a longer word, and one response alone may quote the question."""
    rows: list[dict[str, Any]] = [
        {"prompt": "The", "chosen": "There it is.", "rejected": "Then it is."},
        {"prompt": "Q?", "chosen": "Q? That is odd.", "rejected": "No."},
    ]
    assert read(*rows) == [Preference(**row) for row in rows]


CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def test_tool_calls_of_earlier_turns_are_carried_to_the_export() -> None:
    """axolotl#3538: tool_calls were dropped, and content null with tool calls was refused."""
    prompt = [
        say("What time is it?", "user"),
        say(None, tool_calls=[CALL]),
        say("12:00", "tool", tool_call_id="1"),
    ]
    row = {"prompt": prompt, "chosen": "Noon.", "rejected": "Late."}
    with FakeLLM() as llm:
        table = pi.infer_personas([row], "fake", api_base=llm.api_base, cache=False)
        assert table.errors == []
        assert "clock" in llm.requests[0]["messages"][-1]["content"]
    (exported,) = pi.tailoring_rows(table, persona="chosen", format="dpo")
    said = exported["prompt"]
    assert [turn["tool_calls"] for turn in said if "tool_calls" in turn] == [[CALL]]
    assert [turn.get("tool_call_id") for turn in said if turn["role"] == "tool"] == ["1"]


def test_a_response_that_calls_tools_says_why_it_cannot_be_used() -> None:
    """axolotl#3538: a response of calls has no text that could be compared."""
    row = {**EXPLICIT, "chosen": [say(None, tool_calls=[CALL])]}
    assert "calls tools" in str(read(EXPLICIT, row)[1])


def test_other_fields_of_a_response_are_counted() -> None:
    """Nothing of a row goes without a word: a name or a weight of a response is no text."""
    source = read_preferences([{**EXPLICIT, "chosen": [say("a", weight=0)]}])
    assert [row.preference for row in source] == [PAIR]
    assert source.summary["response_fields_left_out"] == 1


# Shapes that people have


@pytest.mark.parametrize(
    "word",
    ["both_bad", "tie (bothbad)", "tie", "Tie", "neither", "both", "equal", "draw", "both_good"],
)
def test_ties_in_all_spellings(word: str) -> None:
    """arena-human-preference-100k and -140k: both_bad and tie (bothbad) are ties."""
    arena = {"conversation_a": [USER, say("a")], "conversation_b": [USER, say("b")]}
    (tie,) = read({**arena, "winner": word})
    assert "tie" in str(tie)
    assert read({**arena, "winner": word}, {**arena, "winner": "model_b"})[1] == PAIR.swapped


def test_mt_bench_has_the_exchange_of_its_turn() -> None:
    """mt_bench_human_judgments: two conversations of two rounds, and which of them was judged."""
    later = say("And why?", "user")
    row = {
        "model_a": "m1",
        "model_b": "m2",
        "winner": "model_b",
        "conversation_a": [USER, say("a"), later, say("x")],
        "conversation_b": [USER, say("b"), later, say("y")],
    }
    first, second, text = read({**row, "turn": 1}, {**row, "turn": 2}, {**row, "turn": "1"})
    assert first == text == PAIR.swapped
    assert "do not share a prompt" in str(second)


def test_sharegpt() -> None:
    """LLaMA-Factory's ShareGPT format of preferences: from and value, a turn for each side."""
    row = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    assert read(row) == [PAIR]


def test_openai_preference_file() -> None:
    """OpenAI's guide to preference fine-tuning."""
    row = {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [say("a")],
        "non_preferred_output": [say("b")],
    }
    assert read(row) == [PAIR]


def test_messages_with_two_answers() -> None:
    """axolotl#2333: messages, and a turn for each side."""
    assert read({"messages": [USER], "chosen": say("a"), "rejected": say("b")}) == [PAIR]
    with_answer = {"messages": [USER, say("a")], "chosen": say("a"), "rejected": say("b")}
    assert read(with_answer) == [PAIR]


def test_lists_of_responses_are_refused_or_paired() -> None:
    """RM-Bench: three chosen and three rejected responses to a prompt."""
    row = {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"]}
    with pytest.raises(DataError, match='pairs="all"'):
        read(row)
    together = [(p.chosen, p.rejected) for p in read(row, pairs="all") if isinstance(p, Preference)]
    assert together == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    pairs = read(row, pairs="adjacent")
    assert [(p.chosen, p.rejected) for p in pairs if isinstance(p, Preference)] == [
        ("a", "c"),
        ("b", "d"),
    ]


def test_equal_scores_are_counted_and_can_be_left_out() -> None:
    """distilabel#264: pairs whose score_chosen equals score_rejected were used like any other."""
    rows: list[dict[str, Any]] = [
        {**EXPLICIT, "score_chosen": chosen, "score_rejected": 4.0} for chosen in (4.0, 5.0, 3.0)
    ]
    source = read_preferences(rows)
    assert [row.preference for row in source] == [PAIR] * 3
    assert source.summary["equal_scores"] == 1
    assert source.summary["chosen_scored_lower"] == 1
    assert source.summary["pairs_scored"] == 3
    equal, higher, lower = read(*rows, min_gap=0.5)
    assert (str(equal), higher) == ("the scores differ by 0, less than min_gap=0.5.", PAIR)
    assert str(lower) == "the chosen response scores 1 lower, and min_gap= is given."


# Label columns


def test_one_and_two() -> None:
    """The reading of a coding that is certain: both numbers are there."""
    assert read(*labelled(1, 2, "1", 2.0)) == [PAIR, PAIR.swapped, PAIR, PAIR.swapped]


@pytest.mark.parametrize(
    "labels", [(0, 1), (1, 0), (0,), (-1, 1), (-1, 0, 1), (1, 2, 3), (1, 2, 3, 4, 5), (True, False)]
)
def test_codings_that_are_not_certain_are_refused(labels: tuple[object, ...]) -> None:
    """PandaLM, auto-j, JudgeLM and Likert scales all use such numbers, each in its own way."""
    with pytest.raises(DataError, match=r"for certain.*labels="):
        read(*labelled(*labels))


def test_a_later_label_of_another_coding_ends_the_run() -> None:
    """300 rows of 1, then a 0: the first rows may have been read the wrong way round."""
    rows = read_preferences(labelled(*[1] * 300, 0))
    with pytest.raises(DataError, match=r"wrong way round.*labels="):
        list(rows)


def test_a_later_label_that_is_unknown_costs_its_row() -> None:
    """A coding of which both numbers were seen is not changed by a stray one."""
    found = read(*labelled(*[1, 2] * 150, 0))
    assert found[:2] == [PAIR, PAIR.swapped]
    assert "none of '1', '2'" in str(found[-1])


def test_a_stream_is_read_as_a_list_is() -> None:
    """The coding comes from the first rows, of an iterator too, and no row is lost for it."""
    labels = [2, 1] * 200
    rows = list(read_preferences(iter(labelled(*labels))))
    assert [row.preference for row in rows] == [PAIR.swapped, PAIR] * 200


def test_names_of_models_as_labels() -> None:
    """Judgements that name the winner by its model, beside the names of both."""
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "model_a": "m1", "model_b": "m2"}
    assert read({**row, "winner": "m2"}, {**row, "winner": "m1"}) == [PAIR.swapped, PAIR]
    assert "none of" in str(read({**row, "winner": "m2"}, {**row, "winner": "m3"})[1])


TAGS = [("pos", "neg"), ("win", "lose"), ("w", "l"), ("accepted", "rejected"), ("good", "bad")]


@pytest.mark.parametrize("names", TAGS)
def test_tags_beside_two_responses_and_a_label_are_no_responses(names: tuple[str, str]) -> None:
    """Counts of wins and losses, tags, flags: each has a name that a pair of responses may have."""
    tags = dict(zip(names, ("3", "5"), strict=True))
    row = {"prompt": "q", "response_1": "a", "response_2": "b", **tags}
    assert read({**row, "label": 2}, {**row, "label": 1}) == [PAIR.swapped, PAIR]
    alone = {"prompt": "q", **dict(zip(names, ("a", "b"), strict=True))}
    assert read(alone) == [PAIR]


@pytest.mark.parametrize(
    ("original", "better", "worse"),
    [
        ("response", "chosen_response", "rejected_response"),
        ("response", "preferred_response", "dispreferred_response"),
        ("messages", "chosen_messages", "rejected_messages"),
    ],
)
def test_the_original_answer_is_not_the_chosen_one(original: str, better: str, worse: str) -> None:
    """A data set may keep the answer that it began with; ms-swift calls the chosen one response."""
    turns = original == "messages"

    def said(text: str) -> Any:
        return [USER, say(text)] if turns else text

    row = {"prompt": "q", original: said("x"), better: said("a"), worse: said("b")}
    assert read(row) == [PAIR]
    if not turns:
        assert read({**row, "rejected_response": "b"}) == [PAIR]


@pytest.mark.parametrize("labels", ["12", "ab"])
def test_a_label_is_a_text_only_if_most_labels_are(labels: str) -> None:
    """1+1? "2" and "1": label 1 is the first of them, in a file whose labels are 1 and 2."""
    texts = {"prompt": "q", "response_1": "x", "response_2": "y"}
    rows = [{**texts, "label": labels[n % 2]} for n in range(60)]
    odd = {**SCALE, "response_1": labels[1], "response_2": labels[0], "label": labels[0]}
    found = read(*rows, odd)[-1]
    assert found == Preference(prompt="q", chosen=labels[1], rejected=labels[0])
    with pytest.raises(DataError, match=r"for certain.*labels="):
        read(*[odd] * 3)


def test_one_hot_winners() -> None:
    """lmsys-55k: winner_model_a, winner_model_b and winner_tie, texts as JSON lists."""
    row = {"prompt": '["q"]', "response_a": '["a"]', "response_b": '["b"]'}

    def won(a: int, b: int, tie: int) -> dict[str, Any]:
        return {**row, "winner_model_a": a, "winner_model_b": b, "winner_tie": tie}

    first, second, tie, two = read(won(1, 0, 0), won(0, 1, 0), won(0, 0, 1), won(1, 1, 0))
    assert [first, second] == [PAIR, PAIR.swapped]
    assert "tie" in str(tie)
    assert "2 are set" in str(two)


def test_a_row_without_any_round_costs_no_other_row() -> None:
    none = {**ROUNDS, "prompt": "[]", "response_a": "[]", "response_b": "[]"}
    found = read(ROUNDS, ROUNDS, none)
    assert found[:2] == [PAIR, PAIR]
    assert "a round is missing" in str(found[2])


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("A", True),
        ("[[B]]", False),
        ("model_a", True),
        ("Assistant B", False),
        ("A>>B", True),
        ("B>A", False),
        ("A-is-slightly-better", True),
        ("response_2", False),
        ("left", True),
        ("second", False),
    ],
)
def test_words_for_a_side(word: str, first: bool) -> None:
    """MT-bench's judges, Arena-Hard, MultiPref, and interfaces with a left and a right side."""
    assert read(*labelled(word)) == [PAIR if first else PAIR.swapped]


# Several responses


ULTRA = {
    "instruction": "q",
    "completions": [
        {"response": "worst", "overall_score": 1.0},
        {"response": "a", "overall_score": 9},
        {"response": "middle", "overall_score": 5},
        {"response": "b", "overall_score": 1},
        {"response": "unknown", "overall_score": None},
    ],
}


def test_scores_make_pairs_by_rule() -> None:
    """UltraFeedback: four completions with ratings; ties make no pair."""

    def made(**options: Any) -> list[tuple[str, str]]:
        found = read(ULTRA, **options)
        return [(p.chosen, p.rejected) for p in found if isinstance(p, Preference)]

    assert made(pairs="best-worst") == [("a", "worst")]
    assert made(pairs="adjacent") == [("a", "middle"), ("middle", "worst")]
    every = [("a", "middle"), ("a", "worst"), ("a", "b"), ("middle", "worst"), ("middle", "b")]
    assert made(pairs="all") == every
    assert made(pairs="all", min_gap=5) == [("a", "worst"), ("a", "b")]
    assert made(pairs="best-worst", min_gap=8) == [("a", "worst")]
    equal = {**ULTRA, "completions": ULTRA["completions"][::3]}
    assert "no two differ" in str(read(equal, pairs="best-worst")[0])


@pytest.mark.parametrize(
    ("name", "is_rank"),
    [
        *[(name, True) for name in ("rank", "Ranks", "human_ranking", "overallRank", "rank_2")],
        *[(name, False) for name in ("reranker_scores", "rerank_score", "RankerScore", "frank")],
    ],
)
def test_a_rank_is_a_word_of_its_own_in_the_name(name: str, is_rank: bool) -> None:
    """Of a reranker's scores, the highest is the best."""
    numbers = [1, 2] if is_rank else [2, 1]
    listed = {"prompt": "q", "responses": ["a", "b"], name: numbers}
    each = [
        {"prompt": "q", "response": text, name: n} for text, n in zip("ab", numbers, strict=True)
    ]
    assert read(listed, columns={"scores": name}, pairs="all") == [PAIR]
    assert read(*each, columns={"score": name}, pairs="all") == [PAIR]


def test_a_name_of_ranks_and_of_scores_is_refused() -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "rank_score": [1, 2]}
    with pytest.raises(InvalidArgumentError, match="'rank_score' may hold ranks"):
        read(row, columns={"scores": "rank_score"}, pairs="all")


@pytest.mark.parametrize("score", [float("inf"), float("-inf")])
def test_two_infinite_scores_are_equal(score: float) -> None:
    """-Infinity is what a failed reward is in JSON."""
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "score_a": score}
    assert "is a tie" in str(read({**row, "score_b": score})[0])
    assert read({**row, "score_b": 0}) == [PAIR if score > 0 else PAIR.swapped]
    source = read_preferences([{**EXPLICIT, "score_chosen": score, "score_rejected": score}])
    assert [row.preference for row in source] == [PAIR]
    assert source.summary["equal_scores"] == 1


def test_pairs_of_a_frame_keep_the_other_columns() -> None:
    """A table of pairs has a row for each pair, with its prompt's own columns."""
    import pandas as pd

    row = {"prompt": "q", "responses": ["b", "a", "c"], "ranks": [2, 1, 3], "topic": "tea"}
    with FakeLLM() as llm:
        source = read_preferences(pd.DataFrame([row, {**row, "topic": "sea"}]), pairs="all")
        table = pi.infer_personas(source, "fake", api_base=llm.api_base, cache=False)
    assert [(r.preference.chosen, r.preference.rejected) for r in table if r.preference][:3] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert table.to_pandas()["topic"].tolist() == ["tea"] * 3 + ["sea"] * 3
    assert table.settings["read"]["pairs"] == "all"
    assert table.settings["read"]["pairs_made"] == 6


def test_one_response_a_row() -> None:
    """HelpSteer2's ratings and PRISM's utterances: the rows of a prompt follow one another."""
    rows = [
        {"prompt": "q", "response": "b", "helpfulness": 1},
        {"prompt": "q", "response": "a", "helpfulness": 4},
        {"prompt": "r", "response": "x", "helpfulness": 2},
    ]
    pair, alone = read(*rows, pairs="best-worst")
    assert pair == PAIR
    assert "no two differ" in str(alone)


def rating(user: object, response: str, score: int, **more: object) -> dict[str, Any]:
    return {"prompt": "q", "response": response, "score": score, "user_id": user, **more}


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 3, 1)])
@pytest.mark.parametrize("rule", ["best-worst", "all", "adjacent"])
@pytest.mark.parametrize("group", [None, "session"])
def test_ratings_of_several_users_are_not_mixed(
    order: tuple[int, ...], rule: str, group: str | None
) -> None:
    """A pair is one person's choice, whoever else rated the same prompt, in whatever order."""
    rows = [
        rating("ann", "a", 5),
        rating("ann", "b", 1),
        rating("bob", "a", 1),
        rating("bob", "b", 5),
    ]
    rows = [{**rows[place], "session": 7} for place in order]
    options: dict[str, Any] = {"columns": {"group": group}} if group else {}
    found = read(*rows, pairs=rule, **options)
    told = {p.user: (p.chosen, p.rejected) for p in found if isinstance(p, Preference)}
    assert told == {"ann": ("a", "b"), "bob": ("b", "a")}
    assert len(found) == 2


@pytest.mark.parametrize("role", ["input", "system", "history", "tools", "interaction_id"])
def test_responses_to_prompts_that_differ_in_any_part_are_no_pair(role: str) -> None:
    """Alpaca's instruction may be one for all rows, such as "Summarize."; the input tells them apart."""
    parts: list[Any] = [[["x", "y"]], None] if role == "history" else ["one", "two"]
    rows = [
        {"instruction": "q", "output": text, "score": score, role: part}
        for part, text, score in zip(parts, "ab", (2, 1), strict=True)
    ]
    assert all("no two differ" in str(each) for each in read(*rows, pairs="all"))
    assert len(read(*({**row, role: parts[0]} for row in rows), pairs="all")) == 1


def test_ratings_without_a_user_and_with_a_bad_one_stay_apart() -> None:
    rows = [
        rating(None, "a", 5),
        rating(["ann"], "x", 3),
        rating(None, "b", 1),
        rating("ann", "a", 2),
    ]
    none, bad, alone = read(*rows, pairs="all")
    assert none == PAIR
    assert "'user_id' is of type list" in str(bad)
    assert "no two differ" in str(alone)


def test_responses_to_different_prompts_are_no_pair_whatever_their_group() -> None:
    rows = [rating("ann", "a", 5, s=1), {**rating("ann", "b", 1, s=1), "prompt": "r"}]
    assert all(isinstance(each, str) for each in read(*rows, columns={"group": "s"}, pairs="all"))


def test_ratings_that_do_not_follow_one_another_say_to_sort() -> None:
    """Only neighbours are paired, since data may be a stream: what is elsewhere is not lost silently."""
    other = {**rating("ann", "x", 1), "prompt": "r"}
    source = read_preferences([rating("ann", "a", 5), other, rating("ann", "b", 1)], pairs="all")
    told = [str(row.error) for row in source]
    assert all("sort the data by 'prompt'" in error for error in told)
    assert source.summary["prompts_apart"] == 1


def test_votes_and_safety_can_be_asked_for() -> None:
    """The filters of "Whose Boat Does it Float?": SHP's votes, PKU-SafeRLHF's safe rejected ones."""
    shp = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
    rows = [{**shp, "score_A": 30, "score_B": votes} for votes in (10, 9)]
    many, few = read(*rows, min_votes=10)
    assert many == PAIR
    assert "min_votes=10" in str(few)
    pku = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}
    marks = [{"is_response_0_safe": False, "is_response_1_safe": safe} for safe in (True, False)]
    safe, harmful = read(*({**pku, **mark} for mark in marks), safe_rejected=True)
    assert safe == PAIR
    assert "not safe" in str(harmful)
    said = ("False", "no", 0, "0", None, float("nan"), pd.NA, "maybe", 2)
    rows = [{**pku, **marks[0], "is_response_1_safe": mark} for mark in said]
    told = [str(problem) for problem in read({**pku, **marks[0]}, *rows, safe_rejected=True)[1:]]
    assert all("not safe" in problem for problem in told[:4])
    assert all("does not say whether it is safe" in problem for problem in told[4:7])
    assert "neither true nor false" in told[8]
    for option in ({"min_votes": 3}, {"safe_rejected": True}, {"min_gap": 1}, {"pairs": "all"}):
        with pytest.raises(InvalidArgumentError, match="needs"):
            read(shp | {"score_A": None} if "min_gap" in option else EXPLICIT, **option)


# Data that gives nothing


def test_data_of_which_no_row_can_be_read_is_refused_before_a_call() -> None:
    """As with ShareGPT data before: every row failed, one by one, with the same words."""
    rows = [{"prompt": "q", "chosen": [{"speech": "a"}], "rejected": [{"speech": "b"}]}] * 300
    with FakeLLM() as llm, pytest.raises(DataError, match=r"none of the first 200 rows.*columns="):
        pi.infer_personas(rows, "fake", api_base=llm.api_base)
    assert llm.calls == 0


def test_two_hundred_rows_without_a_preference_are_refused() -> None:
    """Data of which all rows are ties or equal texts is another data set than was meant."""
    with pytest.raises(DataError, match="none of the first 200 rows"):
        read(*[{"prompt": "q", "chosen": "a", "rejected": None}] * 250)
    assert "missing" in str(read({"prompt": "q", "chosen": "a", "rejected": None})[0])


def test_unknown_columns_name_the_nearest_schema() -> None:
    """The error has the columns that were found and the line to copy."""
    with pytest.raises(DataError, match=r"'answer'.*Nearest is.*columns=\{'prompt'"):
        read({"question": "q", "answer": "a"})


def test_pairs_are_an_option_of_infer_personas() -> None:
    """UltraFeedback by name: the rule is said where the personas are asked for."""
    with FakeLLM() as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "cache": False, "progress": False}
        table = pi.infer_personas([ULTRA], "fake", pairs="all", min_gap=5, **options)
        with pytest.raises(InvalidArgumentError, match="pairs"):
            pi.infer_personas([ULTRA], "fake", pairs="some", **options)  # type: ignore[arg-type]
    assert len(table) == 2
    assert table.settings["read"]["min_gap"] == 5
    with FakeLLM() as llm:
        options = {"api_base": llm.api_base, "cache": False, "progress": False}
        shp = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
        rows = [{**shp, "score_A": 30, "score_B": votes} for votes in (10, 9)]
        table = pi.infer_personas(rows, "fake", min_votes=10, **options)
        assert (len(table.errors), table.settings["read"]["min_votes"]) == (1, 10)
        pku = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}
        marks = [{"is_response_0_safe": False, "is_response_1_safe": s} for s in (True, False)]
        table = pi.infer_personas(
            [{**pku, **m} for m in marks], "fake", safe_rejected=True, **options
        )
        assert len(table.errors) == 1
    with pytest.raises(InvalidArgumentError, match="keep their rows"):
        pi.AddPersonas("fake", pairs="all")


@pytest.mark.parametrize("form", ["frame", "converted", "rows"])
def test_pandas_na_is_a_null_wherever_it_stands(form: str) -> None:
    """`convert_dtypes()` makes it, and `to_dict("records")` keeps it; it is neither true nor false."""
    columns = {"prompt": "q", "response_1": "a", "response_2": "b", "label": "a", "user_id": "u"}
    frame = pd.DataFrame([columns] * (1 + len(columns)), dtype=object)
    for place, name in enumerate(columns, 1):
        frame.loc[place, name] = pd.NA
    given = {"frame": frame, "converted": frame.convert_dtypes(), "rows": frame.to_dict("records")}
    first, *missing, anonymous = read_preferences(given[form])
    assert first.preference == PAIR.model_copy(update={"user": "u"})
    assert anonymous.preference == PAIR
    assert len(missing) == 4
    assert all("missing (null)" in str(row.error) for row in missing)


NAMES_BESIDE: dict[str, dict[str, Any]] = {
    "keys of a dict": {"chosen": "gpt-4", "outputs": {"gpt-4": "Tea.", "b": "Milk."}},
    "letters": {"chosen": "A", "candidates": {"A": {"text": "Tea."}, "b": {"text": "Milk."}}},
    "ids of records": {
        "chosen": "x1",
        "texts": [{"text_id": "x1", "text": "Tea."}, {"text_id": "b", "text": "Milk."}],
    },
    "beginnings of columns": {"chosen": "gpt4", "gpt4_output": "Tea.", "b_output": "Milk."},
}


@pytest.mark.parametrize("form", NAMES_BESIDE)
def test_a_name_of_a_text_beside_is_not_the_text(form: str) -> None:
    with pytest.raises(DataError, match=r"chosen|candidates"):
        read(*[{"prompt": "q", "rejected": "b", **NAMES_BESIDE[form]}] * 5)


def test_words_for_sides_are_no_responses() -> None:
    rows = [
        {"prompt": "q", "chosen": f"response_{1 + n % 2}", "rejected": f"response_{2 - n % 2}"}
        for n in range(4)
    ]
    with pytest.raises(DataError, match="do not hold responses"):
        read(*rows)


@pytest.mark.parametrize(
    "beside",
    [
        {"votes": {"yes": 0.7, "no": 0.3}},
        {"choices": [{"text": "yes", "letter": "A"}, {"text": "no", "letter": "B"}]},
        {"choices": ["yes", "no"]},
        {"why": "yes means agreement"},
    ],
)
def test_short_answers_are_texts_whatever_counts_them(beside: dict[str, Any]) -> None:
    rows = [
        {"prompt": f"Is {n} even?", "chosen": "yes", "rejected": "no", **beside} for n in range(5)
    ]
    assert all(isinstance(found, Preference) for found in read(*rows))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("label", (0, 1)),
        ("preference", ("upper", "lower")),
        ("winner", ("gpt-4", "llama")),
        ("overall_preference", (1, 7)),
        ("preference_strength", (1, 3)),
        ("preference", ([{"value": "response_1"}], [{"value": "response_2"}])),
    ],
)
def test_scores_decide_nothing_beside_a_label_that_is_not_certain(
    name: str, labels: tuple[Any, Any]
) -> None:
    """They may be a reward model's, or of something else than the label."""
    rows = [{**SCALE, name: label, "score_1": 1, "score_2": 9} for label in labels * 9]
    with pytest.raises(DataError, match=rf"'{name}'"):
        read(*rows)
    assert read(rows[0] | {"best": "a"}) == [PAIR]  # a label that is certain


@pytest.mark.parametrize(
    "beside",
    [
        {"label": "math"},
        {"label": None},
        {"labels": ["tag"]},
        {"preference": ""},
        {"choice": "because it is the longer one"},
    ],
)
def test_columns_with_the_name_of_a_label_that_hold_none_are_passed_over(
    beside: dict[str, Any],
) -> None:
    rows = [{**SCALE, "score_1": 9, "score_2": 1, **beside}] * 9
    assert read(*rows) == [PAIR] * 9
    named = [{**row, "winner": side, "label": "math"} for row in rows for side in ("a", "b")]
    assert read(*named) == [PAIR, PAIR.swapped] * 9


@pytest.mark.parametrize(
    "beside", [{"best": [1, 2]}, {"label": [2, 1]}, {"choice": ["a", "a"]}, {"verdict": [1, 1]}]
)
def test_a_label_that_is_not_certain_is_asked_about_whatever_else_is_there(
    beside: dict[str, Any],
) -> None:
    """Another column may be of something else, such as a class."""
    (name, other), *_ = beside.items()
    rows = [
        {**SCALE, "winner": ("upper", "lower")[n % 2], name: other[n % 3 % 2]} for n in range(20)
    ]
    with pytest.raises(DataError, match="'winner'"):
        read(*rows)


def test_scores_may_be_named() -> None:
    rows = [{**SCALE, "score_1": 1, "score_2": 9, "label": n % 2} for n in range(9)]
    told = {"score_1": "score_1", "score_2": "score_2"}
    assert read(*rows, columns=told) == [PAIR.swapped] * 9


def test_the_label_of_a_known_data_set_is_followed_before_others() -> None:
    row = {"instruction": "q", "input": "", "output_1": "a", "output_2": "b", "preference": 1}
    rows = [{**row, "label": label} for label in (2,) * 19 + (1,)]
    assert read(*rows) == [PAIR] * 20


def test_a_strength_of_a_known_data_set_does_not_beat_another_label() -> None:
    row = {"context": "q", "response1": "a", "response2": "b", "overall_preference": -2}
    with pytest.raises(DataError, match="contradict each other in 19"):
        read(*[{**row, "label": label} for label in (2,) * 19 + (1,)])


@pytest.mark.parametrize(
    ("prompt", "before", "after"),
    [
        ("<|user|>How old is {}?<|assistant|>", "", ""),
        ("[INST] How old is {}? [/INST]", "", ""),
        ("### Instruction:\nHow old is {}?\n\n### Response:", "", ""),
        ("{}?", "", " "),
        ("def f{}(", "", ""),
        ("How old is {}? ", "", "\n"),
        ("How old is {}?", " ", "\n"),
    ],
)
def test_a_prompt_that_nearly_all_responses_repeat_is_taken_off(
    prompt: str, before: str, after: str
) -> None:
    """Texts to which a chat template was applied have no white space after the prompt."""
    rows = []
    for number in range(60):
        asked = prompt.format(number)
        head = before + asked.rstrip() + after
        rows.append({"prompt": asked, "chosen": head + "Old.", "rejected": head + "New."})
    rows[7] = {"prompt": "Hello", "chosen": "Hello!", "rejected": "Hi."}
    for data in (rows, iter(rows), pd.DataFrame(rows)):
        found = [row.preference for row in read_preferences(data)]
        assert found[3] == Preference(prompt=rows[3]["prompt"], chosen="Old.", rejected="New.")
        assert found[7] == Preference(**rows[7])
        assert sum(pair is not None and pair.chosen == "Old." for pair in found) == 59


def test_a_repeated_instruction_is_taken_off_with_its_input() -> None:
    rows = [
        {
            "instruction": f"Add {n}.",
            "input": "X",
            "chosen": f"Add {n}.\nX\nA",
            "rejected": f"Add {n}.\nX\nB",
        }
        for n in range(9)
    ]
    assert read(*rows)[0] == Preference(prompt="Add 0.\nX", chosen="A", rejected="B")


TURNS_OF_BOTH: dict[str, dict[str, Any]] = {
    "transcripts": {
        "chosen": "\n\nHuman: q\n\nAssistant: a",
        "rejected": "\n\nHuman: q\n\nAssistant: b",
    },
    "JSON": {
        "chosen": json.dumps([say("a")]),
        "rejected": json.dumps([USER, say("b")]),
    },
    "a prompt": {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
}


@pytest.mark.parametrize("form", TURNS_OF_BOTH)
@pytest.mark.parametrize("is_first", [True, False])
def test_conversations_in_a_few_rows_are_read_as_such(form: str, is_first: bool) -> None:
    """Data sets that were put together: rows of the one are no responses of the other."""
    others = [
        {"prompt": f"Question {n}", "chosen": f"Good {n}", "rejected": f"Bad {n}"}
        for n in range(250)
    ]
    few = [{"prompt": "q", **TURNS_OF_BOTH[form]}] * 20
    found = read(*few, *others) if is_first else read(*others, *few)
    stripped = [
        Preference(prompt=p.prompt, chosen=p.chosen.strip(), rejected=p.rejected.strip())
        for p in found
        if isinstance(p, Preference)
    ]
    assert len(stripped) == 270
    assert (stripped[:20] if is_first else stripped[250:]) == [PAIR] * 20


def test_transcripts_of_another_prompt_cost_their_row() -> None:
    others = [{"prompt": f"{n}?", "chosen": f"Good {n}", "rejected": "Bad"} for n in range(20)]
    odd = {"prompt": "another", **TURNS_OF_BOTH["transcripts"]}
    assert "'prompt' is no turn" in str(read(*others, odd)[-1])


@pytest.mark.parametrize("name", ["text", "info", "input", "question", "instruction", "context"])
def test_batches_read_conversations_beside_a_column_that_is_no_prompt(name: str) -> None:
    row = {
        name: "note 3",
        "chosen": [USER, say("a")],
        "rejected": [USER, say("b")],
    }
    assert read(row, row) == [PAIR, PAIR]
    with FakeLLM() as llm:
        added = pi.AddPersonas("fake", api_base=llm.api_base, cache=False)(pd.DataFrame([row] * 4))
    assert added["persona_error"].isna().all()


def test_texts_of_any_class_are_read_as_texts() -> None:
    """Rows of NumPy's text arrays, and streams of datasets in NumPy's format."""
    alpaca = {"instruction": "Add.", "input": "X", "chosen": "a", "rejected": "b"}
    hh = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}
    for row in (alpaca, hh):
        odd = {name: np.str_(text) for name, text in row.items()}
        assert read(odd, odd) == read(row, row)
    assert read({name: np.str_(text) for name, text in alpaca.items()})[0] == Preference(
        prompt="Add.\nX", chosen="a", rejected="b"
    )


def test_decimals_of_a_database_are_numbers() -> None:
    rows = [{**SCALE, "label": Decimal(number)} for number in (1, 2)]
    assert read(*rows, labels={1: "first", 2: "second"}) == [PAIR, PAIR.swapped]


@pytest.mark.parametrize("nobody", ["", " ", "\t", None, np.str_(" ")])
def test_white_space_is_no_user(nobody: object) -> None:
    (found,) = read({**EXPLICIT, "user": nobody, "id": nobody})
    assert isinstance(found, Preference)
    assert (found.user, found.id) == (None, None)
    (ann,) = read({**EXPLICIT, "user": " ann "})
    assert isinstance(ann, Preference)
    assert ann.user == "ann"


def test_a_user_in_a_csv_file_with_gaps_is_the_same(tmp_path: Path) -> None:
    rows = [{**EXPLICIT, "user": user} for user in (7, None, 8)]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)  # 7.0, nothing, 8.0
    for data in (rows, tmp_path / "rows.csv"):
        found = [row.preference and row.preference.user for row in read_preferences(data)]
        assert found == ["7", None, "8"]


def test_answers_that_restate_the_term_keep_it() -> None:
    rows = [
        {"prompt": f"Term{n}", "chosen": f"Term{n}: a word.", "rejected": f"Term{n} is bad."}
        for n in range(20)
    ]
    assert read(*rows)[3] == Preference(**rows[3])


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: hi\n\nAssistant: hello\n\nSum up this chat.",
        "Human: the noun. Define it.",
    ],
)
def test_a_prompt_that_quotes_a_conversation_is_a_text(prompt: str) -> None:
    rows = [{**EXPLICIT, "prompt": prompt}] * 5
    assert read(*rows) == [Preference(prompt=prompt, chosen="a", rejected="b")] * 5


def test_a_row_is_read_by_the_columns_of_its_own_source(tmp_path: Path) -> None:
    """Two files that were put together: each has another name for the system message and the user."""
    one = {**EXPLICIT, "system_prompt": "Be short.", "worker": "ann"}
    other = {**EXPLICIT, "system": "Be long.", "annotator": "bob"}
    frame = pd.DataFrame([one, other])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(one)}\n{json.dumps(other)}\n")
    both = [one, other]
    dataset = datasets.Dataset.from_pandas(frame)
    for data in (both, iter(both), frame, dataset, tmp_path / "rows.csv", tmp_path / "rows.jsonl"):
        found = [row.preference for row in read_preferences(data)]
        said = [
            (pair.prompt[0].content, pair.user)
            for pair in found
            if pair and isinstance(pair.prompt, tuple)
        ]
        assert said == [("Be short.", "ann"), ("Be long.", "bob")]
    apart = [{**one, "annotator": "ann2"}, {**other, "system_prompt": "", "worker": ""}]
    for data in (
        apart,
        iter(apart),
        pd.DataFrame(apart),
    ):  # two columns of the same row are two things
        assert [row.preference and row.preference.user for row in read_preferences(data)][
            1
        ] != "ann2"
    both_filled = [
        {**EXPLICIT, "user_id": n and str(n), "annotator_id": str(n)} for n in (None, 1, 2)
    ]
    for data in (both_filled, pd.DataFrame(both_filled)):
        users = [row.preference and row.preference.user for row in read_preferences(data)]
        assert users == [None, "1", "2"]
    short = dataset.map(
        lambda row: {"chosen": "Yes", "rejected": "No", "system_message": row["system"]}
    )
    assert [row.error for row in read_preferences(short)] == [None, None]
    told = read(*both, columns={"system": "system_prompt"})[1]
    assert isinstance(told, Preference)
    assert told.prompt == "q"
