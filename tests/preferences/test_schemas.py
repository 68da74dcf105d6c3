"""What each row shape becomes, and what is said of a row that is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from personainfer.data.containers import read_preferences
from personainfer.data.source_rows import SourceRow
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.preferences import column_names
from personainfer.preferences.column_names import check_roles
from personainfer.records import Message, Preference


def say(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def one(columns: dict[str, str] | None = None, /, **row: object) -> SourceRow:
    (result,) = read_preferences([row], columns=columns)
    return result


def usable(columns: dict[str, str] | None = None, /, **row: object) -> Preference:
    result = one(columns, **row)
    assert result.error is None
    assert result.preference is not None
    return result.preference


def refused(columns: dict[str, str] | None = None, /, **row: object) -> str:
    """Why a row cannot be used; data of which no row can be read is refused as a whole."""
    try:
        result = one(columns, **row)
    except DataError as error:
        return str(error)
    assert result.preference is None
    assert result.error is not None
    return result.error


PAIR = Preference(prompt="q", chosen="yes", rejected="no")
USER, YES, NO = say("user", "q"), say("assistant", "yes"), say("assistant", "no")


# Explicit prompts


@pytest.mark.parametrize("prompt", ["q", [USER], [Message(role="user", content="q")]])
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("yes", "no"), ([YES], [NO]), (YES, "no"), ([USER, YES], [USER, NO]), ([USER, YES], [NO])],
)
def test_explicit(prompt: object, chosen: object, rejected: object) -> None:
    assert usable(prompt=prompt, chosen=chosen, rejected=rejected) == PAIR


def test_numpy_arrays_of_messages_as_pandas_reads_them_from_parquet() -> None:
    arrays = {"prompt": np.array([USER]), "chosen": np.array([YES]), "rejected": np.array([NO])}
    assert usable(**arrays) == PAIR


def test_text_parts_are_joined_and_others_refused() -> None:
    parts = [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]
    assert usable(prompt="q", chosen=[say("assistant", parts)], rejected="no") == PAIR
    image = [say("user", [{"type": "image_url", "image_url": "x"}])]
    assert "not text ('image_url')" in refused(prompt=image, chosen="yes", rejected="no")


def test_conversations_keep_their_turns() -> None:
    start = [say("system", "s"), say("user", "a"), say("assistant", "b"), USER]
    want = tuple(Message.model_validate(turn) for turn in start)
    assert usable(prompt=start, chosen="yes", rejected="no").prompt == want
    assert usable(prompt=start, chosen=[*start, YES], rejected=[*start, NO]).prompt == want
    # A longer conversation than the prompt, and a prompt that is only its last turn.
    assert usable(prompt="a", chosen=[*start, YES], rejected=[*start, NO]).prompt == want
    assert usable(prompt="q", chosen=[*start, YES], rejected=[*start, NO]).prompt == want
    # The system turn may stand in the prompt alone.
    assert usable(prompt=start, chosen=[*start[1:], YES], rejected="no").prompt == want


def test_two_system_messages_are_not_one() -> None:
    one, other = say("system", "Be short."), say("system", "Be long.")
    error = refused(prompt=[one, USER], chosen=[other, USER, YES], rejected=[other, USER, NO])
    assert "the prompt has a system message and another one in 'chosen'" in error
    assert usable(prompt=[one, USER], chosen=[one, USER, YES], rejected=[USER, NO]).prompt


def test_conversations_that_do_not_fit_the_prompt() -> None:
    other = say("user", "another")
    assert "not begin with the prompt" in refused(prompt="q", chosen=[other, YES], rejected="no")
    longer = [USER, YES, other, YES]
    assert "do not share a prompt" in refused(prompt="q", chosen=longer, rejected=[USER, NO])
    assert "holds no response" in refused(prompt="q", chosen=[USER], rejected=[NO])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": [say("user", "")]}, "prompt is empty"),
        ({"prompt": []}, "empty list"),
        ({"chosen": ""}, "chosen is empty"),
        ({"rejected": "\t"}, "rejected is empty"),
        ({"rejected": " yes "}, "same text"),
        ({"chosen": None}, "missing"),
        ({"chosen": float("nan")}, "missing"),
        ({"chosen": 3}, "of type int"),
        ({"chosen": ["yes"]}, "lists of responses"),
        ({"chosen": [3]}, "not {'role'"),
        ({"chosen": [say("assistant", None)]}, "missing"),
        ({"chosen": "\ud800"}, "chosen holds bytes"),
        ({"prompt": [say("system", "\ud800"), USER]}, "prompt holds bytes"),
        ({"id": "\ud800"}, "id holds bytes"),
    ],
)
def test_content_that_cannot_be_used(row: dict[str, object], reason: str) -> None:
    assert reason in refused(**({"prompt": "q", "chosen": "yes", "rejected": "no"} | row))


# Implicit prompts


def hh(*turns: str) -> str:
    return "".join(
        f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns)
    )


def test_transcripts_share_their_prompt() -> None:
    assert usable(chosen=hh("q", "yes"), rejected=hh("q", "no")) == PAIR
    pair = usable(chosen=hh("a", "b", "q", "yes"), rejected=hh("a", "b", "q", "no"))
    assert [m.role for m in pair.prompt if isinstance(m, Message)] == ["user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == ("yes", "no")
    assert usable(chosen=[USER, YES], rejected=[USER, NO]) == PAIR


@pytest.mark.parametrize(
    "odd",
    ["Human: q\n\nAssistant: yes", "\n\n\n Human:q \n \n Assistant:yes\n", "\r\n\r\nHuman: q"],
)
def test_odd_spacing(odd: str) -> None:
    text = odd if "Assistant" in odd else odd + "\r\n\r\nAssistant: yes"
    assert usable(chosen=text, rejected=hh("q", "no")) == PAIR


def test_a_speaker_within_a_line_is_said_not_speaking() -> None:
    pair = usable(chosen=hh("q", "I say. Human: hi"), rejected=hh("q", "Human: x\nAssistant: y"))
    assert pair.chosen == "I say. Human: hi"
    assert pair.rejected == "Human: x\nAssistant: y"


def test_a_further_assistant_turn_in_one_transcript_is_part_of_its_prompt() -> None:
    longer = hh("q", "ye") + "\n\nAssistant: s"
    assert "do not share a prompt" in refused(chosen=longer, rejected=hh("q", "no"))
    both = usable(chosen=longer, rejected=hh("q", "ye") + "\n\nAssistant: no")
    assert (both.chosen, both.rejected) == ("s", "no")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (hh("q", "yes"), hh("r", "no"), "do not share a prompt"),
        (hh("q", "yes", "more", "x"), hh("q", "no"), "do not share a prompt"),
        (hh("q", "yes", "more"), hh("q", "no"), "holds no response"),
        (hh("q", ""), hh("q", "no"), "chosen is empty"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "no turn before"),
        ("preface" + hh("q", "yes"), hh("q", "no"), "not a conversation"),
        (None, hh("q", "no"), "missing"),
    ],
)
def test_transcripts_that_cannot_be_used(chosen: object, rejected: str, reason: str) -> None:
    assert reason in refused(chosen=chosen, rejected=rejected)


def test_plain_responses_without_a_prompt_ask_for_its_column() -> None:
    with pytest.raises(DataError, match="columns="):
        read_preferences([{"ask": "q", "chosen": "yes", "rejected": "no"}])


# Two responses and a label


def llmbar(label: object) -> dict[str, object]:
    return {"input": "q", "output_1": "yes", "output_2": "no", "label": label}


def shp(label: object) -> dict[str, object]:
    return {"history": "q", "human_ref_A": "yes", "human_ref_B": "no", "labels": label}


def pku(label: object) -> dict[str, object]:
    return {"prompt": "q", "response_0": "yes", "response_1": "no", "better_response_id": label}


def arena(label: object) -> dict[str, object]:
    return {"conversation_a": [USER, YES], "conversation_b": [USER, NO], "winner": label}


def a_b(label: object) -> dict[str, object]:
    return {"prompt": "q", "response_a": "yes", "response_b": "no", "preference": label}


@pytest.mark.parametrize(
    ("row", "first"),
    [
        *[(llmbar(label), True) for label in (1, 1.0, "1", " 1.0", np.int64(1), np.float32(1))],
        *[(llmbar(label), False) for label in (2, "2", np.int8(2))],
        *[(shp(label), True) for label in (1, True, "1", np.True_)],
        *[(shp(label), False) for label in (0, False, "False", 0.0)],
        *[(pku(label), True) for label in (0, False, "0")],
        *[(pku(label), False) for label in (1, True, "1.0")],
        *[(arena(label), True) for label in ("model_a", "A")],
        (arena("model_b"), False),
        *[(a_b(label), True) for label in ("a", "response_a")],
        (a_b("B"), False),
    ],
)
def test_labels(row: dict[str, object], first: bool) -> None:
    assert usable(**row) == (PAIR if first else PAIR.swapped)


@pytest.mark.parametrize(
    "row",
    [
        *map(llmbar, (0, 3, True, "chosen", 1.5, None, [], float("nan"), "", "c")),
        *map(shp, (2, -1, "C", {}, np.float64("nan"))),
        *map(pku, (2, -1, "none")),
        *map(a_b, (0, 1, "c")),
        llmbar(10**5000),
    ],
)
def test_unknown_labels_are_never_guessed(row: dict[str, object]) -> None:
    assert refused(**row)


@pytest.mark.parametrize("label", ["tie", "Tie (bothbad)"])
def test_ties_are_no_preference(label: str) -> None:
    assert "tie" in refused(**arena(label))


# Which columns


def test_columns_say_which_is_which() -> None:
    names = {"prompt": "question", "chosen": "good", "rejected": "bad", "id": "n", "user": "who"}
    pair = usable(names, question="q", good="yes", bad="no", n=7, who="u", prompt="other")
    assert pair == Preference(prompt="q", chosen="yes", rejected="no", id="7", user="u")
    labelled = {"prompt": "x", "response_1": "one", "response_2": "two", "label": "best"}
    assert usable(labelled, x="q", one="yes", two="no", best="b") == PAIR.swapped
    assert usable({"prompt": "ask"}, **(llmbar(2) | {"ask": "q"})) == PAIR.swapped
    assert usable({"chosen": "rejected", "rejected": "chosen"}, prompt="q", chosen="no",
                  rejected="yes") == PAIR  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "promt"}, "'prompt'"),
        ({"promt": "prompt"}, "Nearest is 'prompt'"),
        ({"prompt": "question"}, "It is one of 'prompt', 'chosen'"),  # nothing is near
        ({"question": "prompt"}, "no 'question': ours come first. It is one of"),
        ({"prompt": 3}, "name of a column"),
        ("prompt", "not a mapping"),
        (["prompt"], "not a mapping"),
        ([], "not a mapping"),
    ],
)
def test_wrong_columns_name_the_nearest(columns: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        read_preferences([{"prompt": "q", "chosen": "a", "rejected": "b"}], columns=columns)


def test_an_unknown_role_of_a_turn_is_an_error_of_its_row() -> None:
    assert "the role 'usr'" in refused(prompt=[say("usr", "q")], chosen="yes", rejected="no")
    for role, known in (("Human", "user"), ("developer", "system"), ("gpt", "assistant")):
        turns = [say(role, "x"), USER]
        prompt = usable(prompt=turns, chosen="yes", rejected="no").prompt
        assert [turn.role for turn in prompt if isinstance(turn, Message)] == [known, "user"]


def test_hints_name_only_roles_and_never_a_name_by_itself() -> None:
    """Each line to copy has to be filled in: what was found is in the message."""
    scores = {
        "prompt": "q",
        "response_a": "yes",
        "response_b": "no",
        "score_a": "good",
        "score_b": "bad",
    }
    for row in (scores, {"prompt": "q", "chosen": 3, "rejected": 4}, {"foo": 1}, {"question": 1}):
        with pytest.raises(DataError) as caught:
            read_preferences([row])
        example = caught.value.example
        assert example is not None
        assert set(example.values()) == {"…"}
        check_roles(example)  # each is one of ours


def test_one_column_cannot_play_two_roles() -> None:
    with pytest.raises(DataError):
        read_preferences([{"prompt": "q", "a": "x", "b": "y"}], columns={"chosen": "a"})


def test_unknown_columns_are_listed_with_what_is_known() -> None:
    with pytest.raises(DataError, match=r"'foo', 'human_ref_A'.*Nearest is SHP.*columns="):
        read_preferences([{"foo": 1, "human_ref_A": "a"}])


@pytest.mark.parametrize(
    ("value", "kept"),
    [(3, "3"), (3.0, "3"), ("x", "x"), (None, None), ("", None), ([1], None), (np.int64(4), "4")],
)
def test_identifiers(value: object, kept: str | None) -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    assert usable(**row, id=value).id == kept
    if value != [1]:
        assert usable(**row, user_id=value).user == kept


@pytest.mark.parametrize("value", [["ann"], {"id": "ann"}, ("ann",), b"ann", np.array(["ann"])])
def test_a_user_that_is_no_id_costs_its_row(value: object) -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    good, bad = read_preferences([{**row, "user_id": "ann"}, {**row, "user_id": value}])
    assert good.preference is not None
    assert "'user_id' is of type" in str(bad.error)
    source = read_preferences([{**row, "id": value}])
    assert [each.preference for each in source] == [PAIR]
    assert source.summary["ids_left_out"] == 1


@pytest.mark.parametrize(
    "name",
    "user_id user annotator annotator_id worker worker_id WorkerId rater rater_id uid participant_id"
    " labeler user_name username userId Annotator".split(),
)
def test_usual_names_of_users(name: str) -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    assert usable(**row, **{name: "ann"}).user == "ann"


def test_a_column_that_plays_another_role_is_not_the_user() -> None:
    names = {"prompt": "q", "chosen": "yes", "rejected": "worker"}
    assert usable(names, q="q", yes="yes", worker="no").user is None
    several = {"prompt": "q", "chosen": "yes", "rejected": "no", "annotator": "x", "user_id": "ann"}
    assert usable(**several).user == "ann"


def test_a_score_called_label_does_not_hide_chosen_and_rejected() -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    assert usable(**row, response_a="x", response_b="y", winner="b", score_chosen=1.0) == PAIR


def test_labels_say_what_each_value_means() -> None:
    rows = [{"prompt": "q", "a": "yes", "b": "no", "best": best} for best in (0, "1", 2.0, 3)]
    columns = {"response_1": "a", "response_2": "b", "label": "best"}
    labels = {0: "first", 1: "second", 2: "tie"}
    first, second, tie, unknown = read_preferences(rows, columns=columns, labels=labels)
    assert first.preference == PAIR
    assert second.preference == PAIR.swapped
    assert "tie" in str(tie.error)
    assert "none of '0', '1', '2'" in str(unknown.error)
    with pytest.raises(InvalidArgumentError, match='"first", "second", "tie"'):
        read_preferences(rows, columns=columns, labels={0: "left"})


@pytest.mark.parametrize(
    "names",
    [
        ("Prompt", "Chosen", "Rejected"),
        (" prompt ", "chosen ", "REJECTED"),
        ("Question", "Chosen Response", "Rejected Response"),
        ("userPrompt", "chosenResponse", "rejectedResponse"),
        ("prompt", "chosen-answer", "rejected-answer"),
        ("x", "y_w", "y_l"),
        ("prompt", "winner", "loser"),
        ("query", "positive", "negative"),
        ("question", "good", "bad"),
        ("dialog", "chosen", "rejected"),
    ],
)
def test_usual_names_in_any_spelling_are_found(names: tuple[str, str, str]) -> None:
    (row,) = read_preferences([dict(zip(names, ("Tea?", "Yes.", "No."), strict=True))])
    assert row.preference == Preference(prompt="Tea?", chosen="Yes.", rejected="No.")


def test_of_two_spellings_the_exact_one_counts_and_two_others_are_not_guessed() -> None:
    row = {"prompt": "Tea?", "Prompt": "Other", "chosen": "Yes.", "rejected": "No."}
    (read,) = read_preferences([row])
    assert read.preference == Preference(prompt="Tea?", chosen="Yes.", rejected="No.")
    with pytest.raises(DataError, match="recognised"):
        read_preferences([{"prompt": "Tea?", "Chosen": "a", "CHOSEN": "b", "rejected": "No."}])


def test_a_label_may_be_the_text_of_a_response() -> None:
    rows = [
        {"prompt": "Tea?", "response_a": "Yes.", "response_b": "No.", "winner": said}
        for said in ("No.", "Yes.")
    ]
    assert [row.preference and row.preference.chosen for row in read_preferences(rows)] == [
        "No.",
        "Yes.",
    ]


def test_a_label_prefers_one_of_two_responses_in_a_list() -> None:
    rows = [
        {"prompt": "Tea?", "responses": ["Yes.", "No."], "choice": place} for place in (0, 1, 1)
    ]
    chosen = [row.preference and row.preference.chosen for row in read_preferences(rows)]
    assert chosen == ["Yes.", "No.", "No."]
    with pytest.raises(DataError, match="3 responses"):
        read_preferences([{"prompt": "Tea?", "responses": ["a", "b", "c"], "choice": 0}])
    with pytest.raises(DataError, match="for certain"):  # 1 may stand for "the first is better"
        read_preferences([{"prompt": "Tea?", "responses": ["a", "b"], "label": 1}])
    (row,) = read_preferences(
        [{"prompt": "Tea?", "responses": ["a", "b"], "label": 1}], labels={1: "first"}
    )
    assert row.preference == Preference(prompt="Tea?", chosen="a", rejected="b")


def test_the_hundreds_of_usual_names_are_not_tried_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []
    column = column_names._Names.column

    def counted(names: column_names._Names, known: str) -> str | None:
        tried.append(known)
        return column(names, known)

    monkeypatch.setattr(column_names._Names, "column", counted)
    assert usable(prompt="q", chosen="a", rejected="b").chosen == "a"
    assert len(tried) < 400
