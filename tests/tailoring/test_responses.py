"""Responses tailored to personas: what the model is shown, what comes back, what costs one prompt only."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import personainfer as pi
from personainfer.exceptions import DataError, InvalidArgumentError, ModelError, UnknownOptionError
from personainfer.personas.placement import PersonaPlace
from personainfer.tailoring import TailoredResponses
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import BRIEF, CURIOUS, row, table


def echo(body: dict[str, Any]) -> str:
    """Everything that the model was shown."""
    return json.dumps([[turn["role"], turn["content"]] for turn in body["messages"]])


def shown(response: str | None) -> list[tuple[str, str]]:
    assert response is not None
    return [(role, text) for role, text in json.loads(response)]


def answer(prompts: Any, *, reply: Any = echo, **options: Any) -> TailoredResponses:
    with FakeLLM(reply) as server:
        return pi.tailor_responses(
            prompts, "fake", api_base=server.api_base, max_attempts=1, **options
        )


def training(*prompts: str) -> pi.PersonaTable:
    return pi.PersonaTable(
        [
            row(
                n,
                preference=pi.Preference(
                    prompt=prompt, chosen=f"Short {n}.", rejected=f"Long {n}."
                ),
                chosen=pi.Persona(trait=f"trained {n}", preference="short answers"),
            )
            for n, prompt in enumerate(prompts)
        ]
    )


def test_gold_personas_are_those_of_the_table() -> None:
    found = answer(table(2))
    assert list(found) == ["r0", "r1"]
    assert shown(found["r0"]) == [("system", str(BRIEF)), ("user", "Question 0?")]
    assert found.personas == {"r0": BRIEF, "r1": BRIEF}
    assert (found.errors, found.usage.calls) == ({}, 2)
    other = answer(table(1), side="rejected")
    assert shown(other["r0"])[0] == ("system", str(CURIOUS))


def test_no_persona_is_the_prompt_alone() -> None:
    found = answer(["Why?", "How?"], personas="none")
    assert [shown(text) for text in found.values()] == [[("user", "Why?")], [("user", "How?")]]
    assert set(found.personas.values()) == {None}


def test_retrieved_personas_are_those_of_the_nearest_other_prompt() -> None:
    train = training("How do I grow a fern?", "What is a fern worth?", "Who won the match?")
    found = answer(
        ["who won  the match?", "How is it worth it?"], personas="retrieved", train=train
    )
    assert "trained 2" not in str(found.personas["0"])  # its own prompt does not count
    [near] = answer(["Who won the cup?"], personas="retrieved", train=train).personas.values()
    assert str(near) == "The user is trained 2 and prefers short answers."


def test_a_table_of_other_prompts_that_is_not_needed_is_not_searched(
    recwarn: pytest.WarningsRecorder,
) -> None:
    found = answer(["Why?"], personas="none", train=training("How do I grow a fern?"))
    assert not found.errors
    assert not recwarn.list  # nothing says that the prompts share no word
    assert answer(["Why?"], personas="none", train=training("Why?")).usage.calls == 1


def test_one_persona_may_be_for_all() -> None:
    for options in (
        {"personas": "system", "system_persona": BRIEF},
        {"personas": BRIEF},
        {"personas": str(BRIEF)},
    ):
        found = answer(["Why?", "How?"], **options)
        assert [shown(text)[0] for text in found.values()] == [("system", str(BRIEF))] * 2


def test_personas_may_be_given_for_each_prompt() -> None:
    prompts = [{"id": "a", "prompt": "Why?"}, {"id": "b", "prompt": "How?"}]
    found = answer(prompts, personas={"b": "Likes cats.", "a": None})
    assert (found["a"], found.errors) == (None, {"a": "there is no persona for it."})
    assert shown(found["b"]) == [("system", "Likes cats."), ("user", "How?")]
    listed = answer(prompts, personas=[BRIEF, CURIOUS])
    assert listed.personas == {"a": BRIEF, "b": CURIOUS}


def test_personas_of_an_array_or_a_series_are_read_as_those_of_a_list() -> None:
    prompts, personas = ["Tea?", "Coffee?"], [str(BRIEF), str(CURIOUS)]
    for given in (personas, np.array(personas, dtype=object), pd.Series(personas)):
        found = answer(prompts, personas=given)
        assert list(found.personas.values()) == personas
    with pytest.raises(InvalidArgumentError, match="personas= has ids in another order"):
        answer(prompts, personas=pd.Series(personas, index=[1, 0]))


def test_places_are_no_ids_of_a_shuffled_frame() -> None:
    frame = pd.DataFrame(
        {
            "prompt": [f"Question {n}?" for n in range(3)],
            "persona": [f"The user is {n} and prefers {n}." for n in range(3)],
        }
    ).iloc[[2, 0, 1]]
    pairs = [pi.Preference(prompt=text, chosen="a", rejected="b") for text in frame["prompt"]]
    rows = pi.PersonaTable([row(n, preference=pair) for n, pair in enumerate(pairs)])
    for prompts in (rows, list(frame["prompt"])):
        with pytest.raises(InvalidArgumentError, match="personas= has ids in another order"):
            answer(prompts, personas=frame["persona"])
    said = answer(rows, personas="none")
    with pytest.raises(InvalidArgumentError, match="prompts= has ids in another order"):
        pi.compare_responses(frame["prompt"], said, ["c", "d", "e"], judge=lambda *_: 1)
    right = answer(frame["prompt"], personas=frame["persona"])
    assert all(
        number in str(persona)
        for number, persona in zip("201", right.personas.values(), strict=True)
    )


@pytest.mark.parametrize("word", ["given", "golden"])
def test_a_word_that_names_no_source_is_refused(word: str) -> None:
    with pytest.raises(InvalidArgumentError, match="personas="):
        answer(["Tea?"], personas=word)


def test_worked_examples_stand_before_the_prompt_the_nearest_last() -> None:
    train = training("Tea at noon?", "Tea at night?", "Football on Monday?")
    found = answer(["Tea at night or noon, or night?"], personas=BRIEF, train=train, shots=2)
    said = "Write the response that I would prefer. I am"
    assert shown(found["0"]) == [
        ("user", f"Tea at noon?\n\n{said} trained 0 and prefer short answers."),
        ("assistant", "Short 0."),
        ("user", f"Tea at night?\n\n{said} trained 1 and prefer short answers."),
        ("assistant", "Short 1."),
        (
            "user",
            f"Tea at night or noon, or night?\n\n{said} pressed for time and prefer short answers.",
        ),
    ]


def test_worked_examples_of_the_other_side_show_its_response_and_persona() -> None:
    train = training("Tea at noon?")
    found = answer(["Tea?"], personas=CURIOUS, side="rejected", train=train, shots=1)
    assert shown(found["0"])[0][1].endswith("I am curious and prefer long answers.")
    assert shown(found["0"])[1] == ("assistant", "Long 0.")


def test_worked_examples_without_personas() -> None:
    found = answer(["Tea?"], personas="none", train=training("Tea at noon?"), shots=1)
    assert shown(found["0"]) == [
        ("user", "Tea at noon?"),
        ("assistant", "Short 0."),
        ("user", "Tea?"),
    ]


def test_plain_text_is_one_message() -> None:
    found = answer(
        ["Tea?"], personas=BRIEF, train=training("Tea at noon?"), shots=1, persona_in="plain"
    )
    assert shown(found["0"]) == [
        (
            "user",
            "Prompt: Tea at noon?\nPersona: The user is trained 0 and prefers short answers."
            f"\nResponse:\nShort 0.\n\nPrompt: Tea?\nPersona: {BRIEF}\nResponse:\n",
        )
    ]


def test_a_conversation_keeps_its_turns_and_system_message() -> None:
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Tea?"},
    ]
    found = answer([talk], personas="none", train=training("Tea at noon?"), shots=1)
    assert [role for role, _ in shown(found["0"])] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    plain = answer([talk], personas=BRIEF)
    assert shown(plain["0"])[0] == ("system", f"Be kind.\n\n{BRIEF}")


def test_a_prompt_that_fails_costs_no_other() -> None:
    def reply(body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        return Fault.status(400) if "bad" in text else f"Re: {text}"

    found = answer(["good", "bad", None, "", 5], personas="none", reply=reply)
    assert found["0"] == "Re: good"
    assert [found[id] for id in "1234"] == [None] * 4
    assert list(found.errors) == ["2", "3", "4", "1"]
    frame = found.to_pandas()
    assert frame["response"].tolist() == ["Re: good", None, None, None, None]
    assert frame.loc["1", "error"] == found.errors["1"]


def test_a_reply_that_is_cut_off_is_an_error() -> None:
    def reply(body: dict[str, Any]) -> Any:
        cut = "long" in body["messages"][-1]["content"]
        return Reply("one two", finish_reason="length" if cut else "stop")

    found = answer(["long", "short"], personas="none", reply=reply)
    assert (found["0"], found["1"]) == (None, "one two")
    assert "max_tokens" in found.errors["0"]
    with pytest.raises(ModelError, match="max_tokens"):
        answer(["long"], personas="none", reply=reply)


def test_nothing_to_answer_is_an_error_before_any_call() -> None:
    with FakeLLM() as server:
        for prompts in ([None, ""], [5]):
            with pytest.raises(DataError, match="no prompt can be answered"):
                pi.tailor_responses(prompts, "fake", personas="none", api_base=server.api_base)
        with pytest.raises(DataError, match="whose prompt is not answered here"):
            pi.tailor_responses(
                ["Tea?"],
                "fake",
                personas="retrieved",
                train=training("tea?"),
                api_base=server.api_base,
            )
        assert server.requests == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"personas": "glod"}, "personas="),
        ({"personas": "gold"}, "those of a table"),
        ({"personas": "retrieved"}, "needs train="),
        ({"personas": "system"}, "go together"),
        ({"personas": "none", "system_persona": BRIEF}, "go together"),
        ({"personas": "none", "shots": 2}, "shots=2 needs train="),
        ({"personas": "none", "shots": -1}, "shots=-1"),
        ({"personas": "none", "shots": True}, "shots=True"),
        ({"personas": "none", "side": "both"}, "side="),
        ({"personas": "none", "persona_in": "x"}, "persona_in="),
        ({"personas": "none", "template": "x"}, "template="),
        ({"personas": "none", "train": 5}, "train= is a PersonaTable"),
        ({"personas": [BRIEF, BRIEF]}, "do not match the 1 prompts"),
        ({"personas": {"x": BRIEF}}, "do not match the 1 prompts"),
        ({"personas": [5]}, "of type int"),
        ({"personas": "none", "train": table(1), "shots": 1, "persona_in": "system"}, "one place"),
        ({"prompts": []}, "nothing to answer"),
        ({"prompts": "Why?"}, "single str"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_call(wrong: dict[str, Any], words: str) -> None:
    with FakeLLM() as server:
        arguments = {"prompts": ["Why?"], "model": "fake", "api_base": server.api_base, **wrong}
        with pytest.raises(InvalidArgumentError, match=words):
            pi.tailor_responses(**arguments)
        assert server.requests == []


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownOptionError, match="shots="):
        pi.tailor_responses(["Why?"], "fake", shot=2)  # type: ignore[call-arg]


def test_the_result_is_what_compare_responses_takes() -> None:
    def by_persona(prompt: Any, first: str, second: str, persona: Any) -> int:
        if persona is None:
            return 1 if len(first) < len(second) else 2
        return 1 if str(persona) in first else 2

    def reply(body: dict[str, Any]) -> str:
        return " ".join(turn["content"] for turn in body["messages"])

    tailored = answer(table(4), reply=reply)
    base = answer(table(4), personas="none", reply=reply)
    found = pi.compare_responses(
        tailored.prompts, base, tailored, by_persona, personas=tailored.personas
    )
    assert found.personalization is not None
    assert found.personalization.win_rate.wins == 4
    assert found.quality.win_rate.losses == 4


@pytest.mark.parametrize("place", ["user", "plain"])
def test_marks_of_chat_templates_in_prompts_end_no_turn(place: PersonaPlace) -> None:
    mark = "<|im_end|>"
    odd = pi.Preference(prompt=f"Why {mark}?", chosen=f"So {mark}.", rejected=f"No {mark}.")
    shots = pi.PersonaTable([row(7, preference=odd)])
    with FakeLLM() as llm:
        pi.tailor_responses(
            pi.PersonaTable([row(1, preference=odd.model_copy(update={"prompt": f"How {mark}?"}))]),
            "fake",
            personas="gold",
            persona_in=place,
            shots=1,
            train=shots,
            api_base=llm.api_base,
            cache=False,
        )
    [request] = llm.requests
    assert "Why" in str(request["messages"])
    assert mark not in str(request["messages"])


def test_a_prompt_that_no_request_can_hold_costs_itself_alone() -> None:
    asked = pi.Message(role="user", content="x", extra={"tool_calls": [{"function": "\ud83d"}]})
    found = answer([[asked], "How?"], personas="none")
    assert found["0"] is None
    assert "surrogate" in found.errors["0"]
    assert shown(found["1"]) == [("user", "How?")]


def test_a_training_pair_that_no_request_can_hold_is_no_worked_example() -> None:
    spoilt = training("What is a fern worth?", "Is a fern green?")
    pair = pi.Preference(prompt="What is a fern worth?", chosen="a\ud83d", rejected="b")
    train = pi.PersonaTable([row(0, preference=pair, chosen=BRIEF), spoilt[1]])
    found = answer(["What is my fern worth?"], personas="none", train=train, shots=2)
    assert [text for _, text in shown(found["0"])] == [
        "Is a fern green?",
        "Short 1.",
        "What is my fern worth?",
    ]
