"""Training rows: whose labels, where the persona stands, what is left out, which split."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any

import pytest

import personainfer as pi
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.personas.placement import TEMPLATES, place_persona
from personainfer.records import Message
from personainfer.tailoring.rows import FORMATS, TailoringRows
from personainfer.testing import FakeLLM

from ..builders import BRIEF, CHAT, CURIOUS, pairs, repeated, row, table

WHO = {"chosen": str(BRIEF), "rejected": str(CURIOUS)}
PLACES = ("system", "user", "plain")
SHARES = {"train": 0.6, "dev": 0.15, "test": 0.25}


def chat_of(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


# Shapes and labels


def test_dpo_with_the_persona_in_the_system_message_is_the_default() -> None:
    made = pi.tailoring_rows(table(1))
    assert list(made) == [
        {
            "prompt": chat_of(("system", WHO["chosen"]), ("user", "Question 0?")),
            "chosen": chat_of(("assistant", "Short.")),
            "rejected": chat_of(("assistant", "Long.")),
        }
    ]
    assert made.ids == ["r0:chosen"]


def test_other_fields_of_a_turn_do_not_say_who_speaks() -> None:
    extra = {"role": "assistant", "content": 5, "name": "Ann"}
    turn = Message(role="user", content="Why?", extra=extra)
    asked = pi.Preference(prompt=(turn,), chosen="A", rejected="B")
    given = pi.PersonaTable([pi.PersonaRow(0, asked, chosen=BRIEF, rejected=CURIOUS)])
    (made,) = pi.tailoring_rows(given, persona="none")
    assert made["prompt"] == [{"role": "user", "content": "Why?", "name": "Ann"}]


def test_the_holder_of_the_rejected_persona_prefers_the_rejected_response() -> None:
    first, second = pi.tailoring_rows(table(1), persona="both", persona_in="plain")
    assert second == {
        "prompt": f"Prompt: Question 0?\nPersona: {WHO['rejected']}\nResponse:\n",
        "chosen": "Long.",
        "rejected": "Short.",
    }
    assert (first["chosen"], first["rejected"]) == ("Short.", "Long.")
    assert WHO["chosen"] in first["prompt"]
    assert list(pi.tailoring_rows(table(1), persona="rejected", persona_in="plain")) == [second]


def test_without_personas_the_prompt_and_the_labels_are_those_of_the_data() -> None:
    made = pi.tailoring_rows(table(1), persona="none")
    assert made[0]["prompt"] == chat_of(("user", "Question 0?"))
    assert made[0]["chosen"] == chat_of(("assistant", "Short."))
    plain = pi.tailoring_rows(table(1), persona="none", persona_in="plain")
    assert plain[0]["prompt"] == "Prompt: Question 0?\nResponse:\n"


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("sft", [{"prompt": "P", "completion": "Long."}]),
        (
            "kto",
            [
                {"prompt": "P", "completion": "Long.", "label": True},
                {"prompt": "P", "completion": "Short.", "label": False},
            ],
        ),
        ("few-shot", [{"text": "PLong."}]),
        ("reward", [{"chosen": "PLong.", "rejected": "PShort."}]),
        ("grpo", [{"prompt": "P"}]),
    ],
)
def test_other_formats(format: Any, expected: list[dict[str, Any]]) -> None:
    made = pi.tailoring_rows(table(1), persona="rejected", persona_in="plain", format=format)
    start = f"Prompt: Question 0?\nPersona: {WHO['rejected']}\nResponse:\n"
    assert json.loads(json.dumps(list(made)).replace(json.dumps(start)[1:-1], "P")) == expected
    assert len(set(made.ids)) == len(made) == len(expected)


def test_a_chat_ends_with_the_response_of_the_assistant() -> None:
    (whole,) = pi.tailoring_rows(table(1), format="few-shot", persona_in="user")
    asked, said = whole["messages"]
    assert said == {"role": "assistant", "content": "Short."}
    assert asked["role"] == "user"
    assert asked["content"].startswith("Question 0?\n\n")
    assert asked["content"].endswith(BRIEF.render("first"))


@pytest.mark.parametrize("format", FORMATS)
def test_no_two_columns_or_rows_share_a_message(format: Any) -> None:
    made = pi.tailoring_rows(table(1), persona="both", format=format)
    messages = [
        message
        for row in made
        for value in row.values()
        if isinstance(value, list)
        for message in value
    ]
    assert len(set(map(id, messages))) == len(messages)


# Where the persona stands


@pytest.mark.parametrize("format", FORMATS)
def test_all_rows_have_the_same_columns(format: Any) -> None:
    """`Dataset.from_list` takes the columns of the first row alone: the tools of the others were lost."""
    asked = {"prompt": [{"role": "user", "content": "When?"}], "tools": [{"name": "clock"}]}
    given: list[dict[str, Any]] = [pairs(1)[0], {**asked, "chosen": "Noon.", "rejected": "Late."}]
    personas = [{**each, "chosen_persona": "The user is kind."} for each in given]
    made = pi.PersonaTable.from_data(personas, rejected_persona=None)
    rows = pi.tailoring_rows(made, format=format)
    assert rows[0]["tools"] is None
    assert rows[len(rows) - 1]["tools"] == '[{"name": "clock"}]'
    assert {tuple(each) for each in rows} == {tuple(rows[0])}


def test_a_conversation_keeps_its_turns_and_its_system_message() -> None:
    made = pi.PersonaTable(
        [row(0, preference=pi.Preference(prompt=CHAT, chosen="A", rejected="B"))]
    )
    system = pi.tailoring_rows(made)[0]["prompt"]
    assert system[0] == {"role": "system", "content": f"Be kind.\n\n{BRIEF}"}
    assert [turn["content"] for turn in system[1:]] == ["Hello", "Hi.", "How are you?"]
    user = pi.tailoring_rows(made, persona_in="user")[0]["prompt"]
    assert [turn["content"] for turn in user[:-1]] == ["Be kind.", "Hello", "Hi."]
    assert user[-1]["content"].startswith("How are you?\n\n")
    plain = pi.tailoring_rows(made, persona_in="plain")[0]["prompt"]
    assert plain.startswith(
        "Prompt: System: Be kind.\n\nUser: Hello\n\nAssistant: Hi.\n\nUser: How"
    )


@pytest.mark.parametrize(
    ("place", "template", "last"),
    [
        ("system", "You talk to somebody. {persona} {other}", "Question 0?"),
        (
            "user",
            "{persona}\nI ask: {prompt}",
            f"{BRIEF.render('first')}\nI ask: Question 0?",
        ),
        ("plain", "{persona}\nQ: {prompt}\nA: ", f"{BRIEF}\nQ: Question 0?\nA: "),
    ],
)
def test_other_words(place: Any, template: str, last: str) -> None:
    prompt = pi.tailoring_rows(table(1), persona_in=place, template=template)[0]["prompt"]
    assert (prompt if isinstance(prompt, str) else prompt[-1]["content"]) == last
    if place == "system":  # other braces are the user's own
        assert prompt[0]["content"] == f"You talk to somebody. {BRIEF} {{other}}"


def test_text_of_the_data_is_not_taken_for_a_field() -> None:
    pair = pi.Preference(prompt="What is {persona}?", chosen="A {prompt}", rejected="B")
    made = pi.tailoring_rows(pi.PersonaTable([row(0, preference=pair)]), persona_in="plain")
    assert made[0]["prompt"].startswith("Prompt: What is {persona}?\nPersona: The user")
    assert made[0]["chosen"] == "A {prompt}"


@pytest.mark.parametrize("place", PLACES)
def test_a_persona_cannot_end_its_turn(place: Any) -> None:
    persona = pi.Persona(trait="calm<|im_end|>", preference="tea")
    assert "<|" not in str(place_persona((Message(role="user", content="Q"),), persona, place))


def test_only_the_personas_own_verb_is_put_in_the_first_person() -> None:
    parent = pi.Persona(
        trait="the parent of a child who reads and prefers games", preference="tips"
    )
    asked = place_persona("Q", parent, "user")[0]
    assert isinstance(asked, Message)
    assert asked.content.endswith(parent.render("first"))
    assert "reads and prefers games and prefer tips" in asked.content


def test_the_persona_is_asked_after_where_the_last_turn_is_the_assistants() -> None:
    last = place_persona(CHAT[1:3], BRIEF, "user")[-1]
    assert isinstance(last, Message)
    assert last.role == "user"
    assert last.content.startswith("Write the response")


# What is left out


def faulty() -> pi.PersonaTable:
    same = pi.Preference(prompt="Q", chosen="A", rejected=" A ")
    system = pi.Preference(
        prompt=(Message(role="system", content="Be kind."),), chosen="A", rejected="B"
    )
    return pi.PersonaTable(
        [
            row(0),
            row(1, preference=None, chosen=None, rejected=None, error="broken"),
            row(2, preference=same),
            row(3, rejected=None, error="rejected: the reply was empty"),
            row(4, preference=system),
        ]
    )


def test_what_is_left_out_is_counted_by_reason() -> None:
    made = pi.tailoring_rows(faulty(), persona="both", drop_flagged=True)
    assert made.ids == ["0:chosen", "3:chosen"]  # row 2 has no id, so places stand for all
    assert made.left_out == {
        "flagged": 1, "no_pair": 2, "same_responses": 2, "no_persona": 1, "no_question": 2,
    }  # fmt: skip


def test_flags_may_be_named() -> None:
    kept = pi.tailoring_rows(table(2), persona="both", drop_flagged=["refusal"])
    assert (len(kept), kept.left_out) == (4, {})
    fewer = pi.tailoring_rows(table(2), persona="both", drop_flagged=["refusal", "ungrammatical"])
    assert (len(fewer), fewer.left_out) == (2, {"flagged": 2})


def test_any_flag_is_also_one_of_the_users_own() -> None:
    doubted = BRIEF.model_copy(update={"flags": ("too_vague",)})
    made = pi.tailoring_rows(pi.PersonaTable([row(0, chosen=doubted)]), drop_flagged=True)
    assert (len(made), made.left_out) == (0, {"flagged": 1})


@pytest.mark.parametrize(
    ("persona", "format", "place"),
    list(product(("chosen", "rejected", "both", "none"), FORMATS, PLACES)),
)
def test_every_example_is_a_row_or_counted(persona: Any, format: Any, place: Any) -> None:
    made = pi.tailoring_rows(faulty(), persona=persona, format=format, persona_in=place)
    examples = len(made) // (2 if format == "kto" else 1)
    assert examples + sum(made.left_out.values()) == len(faulty()) * (1 + (persona == "both"))
    assert len(made) == len(made.ids) == len(set(made.ids)) == len(made.prompts)
    kinds = {type(value) for each in made for name, value in each.items() if name != "label"}
    assert kinds == ({str} if place == "plain" else {list})  # never both in one dataset


def test_a_pair_with_equal_responses_is_counted_where_it_came_from_data(llm: FakeLLM) -> None:
    data = [*pairs(1), {"prompt": "Q?", "chosen": "Same.", "rejected": "Same."}]
    made = pi.tailoring_rows(pi.infer_personas(data, "fake", api_base=llm.api_base))
    assert (len(made), made.left_out) == (1, {"same_responses": 1})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"persona": "each"}, "persona='each'"),
        ({"format": "ppo"}, "format='ppo'"),
        ({"persona_in": "footer"}, "persona_in='footer'"),
        ({"template": "nothing"}, "template='nothing'"),
        ({"template": "{prompt} {persona}"}, "system"),
        ({"persona_in": "plain", "template": "{prompt} for {persona}"}, "one line"),
        ({"drop_flagged": "refusal"}, "drop_flagged='refusal'"),
        ({"drop_flagged": ["refused"]}, "drop_flagged='refused'"),
    ],
)
def test_a_bad_argument_says_which(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        pi.tailoring_rows(table(1), **options)


def test_rows_are_made_of_a_table() -> None:
    with pytest.raises(InvalidArgumentError, match="not of list"):
        pi.tailoring_rows([])  # type: ignore[arg-type]


def test_the_default_templates_are_templates() -> None:
    for place, template in TEMPLATES.items():
        given = pi.tailoring_rows(table(2), persona="both", persona_in=place, template=template)
        assert list(given) == list(pi.tailoring_rows(table(2), persona="both", persona_in=place))


# Splits


def test_an_accent_is_the_same_in_either_encoding() -> None:
    pairs = [
        pi.Preference(prompt=prompt, chosen="A", rejected="B")
        for prompt in ("Caf\u00e9?", "Cafe\u0301?")
    ]
    made = pi.tailoring_rows(pi.PersonaTable([row(n, preference=p) for n, p in enumerate(pairs)]))
    assert made.prompts[0] == made.prompts[1]


def test_ids_are_not_repeated_where_tables_were_put_together() -> None:
    pair = pi.Preference(prompt="Q?", chosen="A", rejected="B")
    rows = [row(n, preference=pair) for n in (0, 1, 0, 1)]
    made = pi.tailoring_rows(pi.PersonaTable(rows), format="kto")
    assert len(set(made.ids)) == len(made) == 8


@pytest.mark.parametrize("seed", ["0", [0], 0.5, True])
def test_a_seed_that_cannot_be(seed: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="seed="):
        pi.tailoring_rows(table()).split({"train": 1.0}, seed=seed)


def prompts_of(part: TailoringRows) -> set[str]:
    return {each["prompt"][-1]["content"].strip().casefold().split()[1] for each in part}


def test_no_prompt_is_in_two_splits() -> None:
    made = pi.tailoring_rows(repeated(), persona="both")
    parts = made.split(SHARES)
    assert list(parts) == ["train", "dev", "test"]
    found = [prompts_of(part) for part in parts.values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 100
    assert sorted(each for part in parts.values() for each in part.ids) == sorted(made.ids)
    assert [len(names) for names in found] == pytest.approx([60, 15, 25], abs=10)


def test_a_prompt_has_its_split_in_every_order_and_format() -> None:
    rows = list(repeated())
    random.Random(0).shuffle(rows)
    shuffled = pi.tailoring_rows(pi.PersonaTable(rows[:300]), persona="none", format="sft")
    before = pi.tailoring_rows(repeated()).split(SHARES)
    for name, part in shuffled.split(SHARES).items():
        assert prompts_of(part) <= prompts_of(before[name])


def test_another_seed_divides_otherwise() -> None:
    made = pi.tailoring_rows(repeated())
    assert made.split(SHARES)["train"].ids == made.split(SHARES, seed=0)["train"].ids
    assert made.split(SHARES)["train"].ids != made.split(SHARES, seed=1)["train"].ids


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({}, "no split"),
        ({"train": 0.5, "test": 0.4}, "add up to 0.9"),
        ({"train": 1.5, "test": -0.5}, "'train' is 1.5"),
        ({"train": "all"}, "'train' is 'all'"),
    ],
)
def test_shares_that_cannot_be(shares: Any, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        pi.tailoring_rows(table()).split(shares)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match="'rest' would be empty: there are 3 prompts"):
        pi.tailoring_rows(table()).split({"train": 0.999999, "rest": 0.000001})


def test_the_settings_are_the_arguments() -> None:
    assert pi.tailoring_rows(table(), drop_flagged=["refusal"]).settings == {
        "persona": "chosen",
        "format": "dpo",
        "persona_in": "system",
        "template": None,
        "drop_flagged": ["refusal"],
    }


def test_rows_read_like_a_sequence() -> None:
    made = pi.tailoring_rows(table())
    assert made[1:] == [made[1], made[2]]
    assert repr(made).startswith("TailoringRows(left_out={}, settings={'persona': 'chosen'")


def test_flags_are_looked_for_in_personas_that_somebody_else_made() -> None:
    """Nobody looked for them when they were made, so none of them has any."""
    data = [
        {
            "prompt": f"What is for lunch, {n}?",
            "chosen": "Soup.",
            "rejected": "Nothing at all.",
            "chosen_persona": text,
            "rejected_persona": "The user is on a fast and prefers to skip meals.",
        }
        for n, text in enumerate(
            (
                "The user is an elderly Muslim and prefers soup.",
                "The user is hungry and prefers soup.",
            )
        )
    ]
    table = pi.PersonaTable.from_data(data)
    for dropped in (True, ["protected_attribute"]):
        rows = pi.tailoring_rows(table, drop_flagged=dropped)
        assert rows.left_out == {"flagged": 1}
        assert "hungry" in str(rows[0])
        found = pi.PersonaRetriever.from_table(table, drop_flagged=dropped)
        assert len(found) == 1
    assert len(pi.tailoring_rows(table)) == 2
    assert len(pi.tailoring_rows(table, drop_flagged=["refusal"])) == 2
