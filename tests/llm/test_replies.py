"""What models say, and what is read of it: a corpus of replies, and a valid object wrapped in anything."""

from __future__ import annotations

import contextlib
import json
import re
import string
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel

import personainfer as pi
from personainfer.api_keys import Secrets
from personainfer.evaluation.judge import most_common
from personainfer.exceptions import ReplyError, TransportError
from personainfer.llm.openai_protocol import read_completion
from personainfer.llm.replies import decode, plain_text, read_reply, reask
from personainfer.personas.prompts import BothPersonas, OnePersona
from personainfer.testing import FakeLLM, Reply

from ..builders import pairs

FIELDS = {
    "evidence": "The first lists steps, the second tells a story.",
    "trait": "a cook in a hurry",
    "preference": "numbered steps over stories",
}
GOOD = json.dumps(FIELDS)
OTHER = json.dumps({**FIELDS, "trait": "a patient gardener"})
DRAFT = json.dumps({**FIELDS, "trait": "a draft of a person"})
PRETTY = json.dumps(FIELDS, indent=2)
CURLY = "{“evidence”: “The first lists steps, the second tells a story.”, “trait”: “a cook in a hurry”, “preference”: “numbered steps over stories”}"  # noqa: E501

# What must be read, always as FIELDS. The name says which models or servers write like that.
READ: dict[str, str] = {
    "OpenAI, strict": GOOD,
    "indented": PRETTY,
    "Claude: words before": f"Here is the persona:\n\n{PRETTY}",
    "Llama 3: words after": f"{GOOD}\nLet me know if you need more!",
    "Llama 3: end of turn": f"{GOOD}<|eot_id|>",
    "Llama 3.1: a tool call as text": f'{{"name": "OnePersona", "parameters": {GOOD}}}',
    "Llama 3: header of the turn": f"<|start_header_id|>assistant<|end_header_id|>\n\n{GOOD}",
    "Llama 2: end of text": f"{GOOD}</s>",
    "Mistral: a fence with a name": f"```json\n{PRETTY}\n```",
    "Mistral 7B: words around a fence": f"Sure!\n```json\n{GOOD}\n```\nI hope that helps.",
    "Gemma: a fence without a name": f"```\n{GOOD}\n```<end_of_turn>",
    "Phi 3: an end mark and noise": f"{GOOD}<|end|><|endoftext|>",
    "ChatML: end mark, then another turn": f"{GOOD}<|im_end|>\n<|im_start|>user\n{OTHER}",
    "Qwen: said twice": f"{GOOD}\n{GOOD}",
    "said again, otherwise": f"{GOOD}\n\nOr: {OTHER}",
    "Hermes, Qwen: a tool call in tags": (
        f'<tool_call>\n{{"name": "OnePersona", "arguments": {GOOD}}}\n</tool_call>'
    ),
    "arguments as text in text": json.dumps({"name": "OnePersona", "arguments": GOOD}),
    "DeepSeek R1: reasoning in tags": f"<think>\nLet me see. {{a}} or {{b}}?\n</think>\n\n{GOOD}",
    "QwQ: reasoning that the template opened": f"Hm, a cook?\n</think>\n\n{GOOD}",
    "Qwen 3: empty reasoning": f"<think>\n\n</think>\n\n{GOOD}",
    "R1: a draft in the reasoning": f"<think>Maybe {DRAFT}? No, a cook.</think>{GOOD}",
    "vLLM, no reasoning parser: all of it": f"<think>\n{GOOD}\n</think>",
    "R1 that never closed its reasoning": f"<think>Two styles, so:\n{GOOD}",
    "Magistral": f"[THINK]First {DRAFT}[/THINK]{GOOD}",
    "gpt-oss: channels": (
        f"<|channel|>analysis<|message|>Try {DRAFT}<|end|><|start|>assistant<|channel|>final"
        f"<|message|>{GOOD}<|return|>"
    ),
    "Kimi": f"◁think▷Which one?◁/think▷{GOOD}",
    "Cohere": f"<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>{GOOD}<|END_RESPONSE|>",
    "DeepSeek V3: its end mark": GOOD + "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "a byte order mark": f"\ufeff{GOOD}",
    "curly quotes": CURLY,
    "curly quotes in a fence": f"```json\n{CURLY}\n```",
    "a comma too many": GOOD[:-1] + ",\n}",
    "a quoted object": json.dumps(GOOD),
    "SmolLM: under the name of the form": f'{{"OnePersona": {GOOD}}}',
    "under a plain name": f'{{"persona": {GOOD}}}',
    "in a list": f"[{GOOD}]",
    "braces before": f"The set {{short, long}} decides. {GOOD}",
    "an object that does not fit, before": f'{{"thought": "compare them"}}\n{GOOD}',
    "the form, repeated, then the answer": (
        '{"evidence": "...", "trait": "...", "preference": "..."}\n' + GOOD
    ),
    "more fields than asked for": json.dumps({**FIELDS, "confidence": 0.9}),
    "Hermes: a dict as Python prints it": str(FIELDS),
    "Hermes: a tool call as Python prints it": (
        f"<tool_call>\n{ {'arguments': FIELDS, 'name': 'OnePersona'} }\n</tool_call>"
    ),
    "Mistral: a marked tool call": f'[TOOL_CALLS][{{"name": "OnePersona", "arguments": {GOOD}}}]',
    "Granite: a marked tool call": f'<|tool_call|>[{{"name": "OnePersona", "arguments": {GOOD}}}]',
    "Llama 3.1: a tagged function": f"<function=OnePersona>{GOOD}</function>",
    "Qwen 3: two tool calls": "\n".join(
        [f'<tool_call>{{"name": "OnePersona", "arguments": {GOOD}}}</tool_call>'] * 2
    ),
    "GLM 4.5: boxed": f"<think>Hm.</think><|begin_of_box|>{GOOD}<|end_of_box|>",
    "Nemotron: thought without a mark, then a fence": f"First, compare.\n\n```json\n{PRETTY}\n```",
    "a citation behind it": f"{GOOD} [1]",
    "a link and a brace behind it": f"```json\n{GOOD}\n```\nSee [docs] for {{more}}.",
    "keys in another case": json.dumps({name.title(): said for name, said in FIELDS.items()}),
    "keys in capitals": json.dumps({name.upper(): said for name, said in FIELDS.items()}),
    "an answer beside its reasoning": json.dumps({"reasoning": "Hm.", "answer": FIELDS}),
    "an answer that is JSON text": json.dumps({"status": "ok", "Result": GOOD}),
    "OpenAI's own tool call as text": json.dumps(
        {"type": "function", "function": {"name": "OnePersona", "arguments": GOOD}}
    ),
    "a list of tool calls as text": json.dumps(
        {"tool_calls": [{"id": "1", "function": {"name": "OnePersona", "arguments": FIELDS}}]}
    ),
    "LangChain: an action": json.dumps({"action": "OnePersona", "action_input": FIELDS}),
    "a tool and its args": json.dumps({"tool": "OnePersona", "args": FIELDS}),
    "a quoted object in a fence": f"```json\n{json.dumps(GOOD)}\n```",
    "an escaped object": json.dumps(GOOD)[1:-1],
    "comments": PRETTY.replace(",\n", ", // so it is\n").replace("{", "{ /* a person */", 1),
    "wide colons and commas": GOOD.replace('": ', '"\uff1a').replace('", ', '"\uff0c'),
    "reasoning in capitals": f"<THINK>Perhaps {DRAFT}?</THINK>{GOOD}",
    "thoughts": f"<thoughts>Perhaps {DRAFT}?</thoughts>{GOOD}",
    "a draft in an analysis": f"<analysis>Perhaps {DRAFT}?</analysis>\n{GOOD}",
    "a draft in a scratchpad": f"<Scratchpad>{DRAFT}</Scratchpad>\n{GOOD}",
    "all of it in an analysis": f"<analysis>{GOOD}</analysis>",
    "OpenThinker": (
        f"<|begin_of_thought|>{DRAFT}<|end_of_thought|><|begin_of_solution|>{GOOD}<|end_of_solution|>"
    ),
    "a draft with keys in another case": (
        json.dumps({name.title(): said for name, said in json.loads(DRAFT).items()}) + f"\n{GOOD}"
    ),
    "an address before a comma too many": f"See https://a.b/c: {GOOD[:-1]},}}",
    "notes with an attribute behind it": f'{GOOD}\n<analysis kind="short">A cook.</analysis>',
    "reasoning with an attribute": f'<think time="3">Perhaps {DRAFT}?</think>{GOOD}',
    "Hermes: a draft in a scratch pad": f"<scratch_pad>{DRAFT}</scratch_pad>\n{GOOD}",
    "a draft in tags": f"<draft>\n{DRAFT}\n</draft>\n{GOOD}",
    "an answer in tags of a draft, and words": f"<draft>\n{GOOD}\n</draft>\nI hope this helps!",
    "a word in tags before it": f"The prompt asks for a <plan> in tags.\n{GOOD}",
    "a tag that is closed alone": f"{GOOD}\n</plan>\nI hope this helps!",
    "gpt-oss: channels without their marks": f"analysisTry {DRAFT} first.assistantfinal{GOOD}",
    "Granite": f"Here is my thought process:\n{DRAFT}\nHere is my response:\n{GOOD}",
    "a correction": f"{DRAFT}\n\nWait, that is wrong. Corrected:\n{GOOD}",
    "a final answer": f"```json\n{DRAFT}\n```\n**Final JSON**\n```json\n{GOOD}\n```",
    "another pair, with which a model runs on": (
        f"{GOOD}\n<prompt>Sorry?</prompt>\n<response_1>Wait</response_1>\n{OTHER}"
    ),
    "somebody else's answer": f"{GOOD}\n\nResponse 2 (“I'm sorry, but …”):\n{OTHER}",
    "the other person": f"{GOOD}\n\nThe other person, who likes my response:\n{OTHER}",
    "a long text before another answer": f"{GOOD}\n{'It is final. ' * 30}\n{OTHER}",
    "a heading behind it": f"{GOOD}\n\nHere is my response: a cook.",
    "a correction that is not made": f'{GOOD}\nSorry, I have no more than {{"this": 1}}.',
    "keys without quotes": GOOD.replace('"evidence"', "evidence").replace('"trait"', "trait"),
    "doubled braces": f"{{{GOOD}}}",
    "spaces of other kinds": GOOD.replace('": ', '":\u00a0').replace('", ', '",\u200b\u3000'),
    "keys in bold": json.dumps({f"**{name}**": said for name, said in FIELDS.items()}),
    "Windows line breaks": PRETTY.replace("\n", "\r\n"),
    "a heading and bold words": f"## Persona\n\n**JSON:**\n\n{PRETTY}",
}

# What must not be read: nothing in it is an answer.
NOT_READ: dict[str, str] = {
    "nothing": "",
    "white space": " \n\t",
    "prose": "The user is a cook in a hurry and prefers numbered steps.",
    "a refusal": "I'm sorry, but I can't help with profiling people.",
    "an apology with braces": "I can't {really} do that.",
    "cut off in a string": GOOD[:-9],
    "cut off before the last brace": GOOD[:-1],
    "a draft, and an answer that is cut off": f"<draft>{DRAFT}</draft>\n{GOOD[:-1]}",
    "cut off after a key": GOOD[: GOOD.index('"numbered')],
    "a field is missing": json.dumps({"evidence": "e", "trait": "a cook"}),
    "a field is null": json.dumps({**FIELDS, "trait": None}),
    "a field is empty": json.dumps({**FIELDS, "trait": " "}),
    "a field is a number": json.dumps({**FIELDS, "trait": 5}),
    "a field is a list": json.dumps({**FIELDS, "trait": ["a cook"]}),
    "other names": json.dumps({"persona": "a cook", "reason": "steps"}),
    "the schema itself": json.dumps(OnePersona.model_json_schema()),
    "the form with dots": '{"evidence": "...", "trait": "...", "preference": "..."}',
    "the form with names": '{"evidence": "<text>", "trait": "<text>", "preference": "<text>"}',
    "the form with types": '{"evidence": "string", "trait": "string", "preference": "string"}',
    "the form in a fence": '```json\n{"evidence": "…", "trait": "…", "preference": "…"}\n```',
    "an empty object": "{}",
    "an empty list": "[]",
    "null": "null",
    "a number": "42",
    "YAML": "evidence: steps\ntrait: a cook\npreference: numbered steps",
    "XML": "<trait>a cook</trait><preference>steps</preference>",
    "a table": "| trait | preference |\n|---|---|\n| a cook | steps |",
    "an error as text": '{"error": {"message": "overloaded"}}',
    "a draft that was dropped": f"<think>Perhaps {DRAFT}. No, that is wrong.</think>",
    "a draft, then a refusal": f"<think>{DRAFT}</think>I can't answer that.",
    "a draft, then prose": f"<think>Perhaps {DRAFT}?</think>A cook in a hurry.",
    "a draft in reasoning that never ended": f"<think>Perhaps {DRAFT}? Or rather",
    "another turn's object": f"I don't know.<|im_end|>\n<|im_start|>user\n{GOOD}",
    "Llama: another turn's object": (
        f"Sorry.<|eot_id|><|start_header_id|>user<|end_header_id|>\n{GOOD}"
    ),
    "inside an object that breaks off": f'{{"first_try": {GOOD}, "second_try": {{"evi',
    "inside a broken object": f'{{"person_1": {GOOD}, "person_2": {OTHER}:',
    "two keys for one field": json.dumps({**FIELDS, "trait": " ", "Trait": "a cook"}),
    "two answers in one object": json.dumps(
        {"answer": FIELDS, "response": {**FIELDS, "trait": "x"}}
    ),
    "inside an object of something else": json.dumps({"wrong": {"example": FIELDS}}),
    "fields across two objects": '{"evidence": "e", "trait": "a cook"} {"preference": "steps"}',
    "values without quotes": "{evidence: steps, trait: cook, preference: steps}",
    "a key without a value": '{"evidence": "e", "trait": , "preference": "steps"}',
    "mixed curly quotes": '{“evidence”: “says "hi", “trait”: “a cook”, “preference”: “b”}',
    "gpt-oss: analysis alone, dropped": f"<|channel|>analysis<|message|>Try {DRAFT}, no.<|end|>",
    "HTML": "<html><body>{}</body></html>",
    "hex": "7b2265766964656e6365223a2022227d",
    "quotes that do not match": GOOD.replace('"trait"', "\"trait'"),
    "a Python dict with a bare apostrophe": str(FIELDS).replace("in a hurry", "in a cook's hurry"),
    "a Python dict that is cut off": str(FIELDS)[:-12],
    "a key with white space inside": GOOD.replace('"trait"', '"tra it"'),
    "white space without end": '{"evidence":' + "\n " * 400,
    "half of it in the reasoning": GOOD.replace('"trait"', '</think>"trait"'),
    "comments in place of values": '{"evidence": // steps\n "trait": // cook\n}',
    "Pydantic's own words": "evidence='steps' trait='a cook' preference='numbered steps'",
    "a call as code": "OnePersona(evidence='steps', trait='a cook', preference='numbered steps')",
    "a schema and a draft in its description": json.dumps({"properties": FIELDS, "type": "object"}),
}


@pytest.mark.parametrize("name", READ)
def test_what_models_wrap_an_answer_in_is_taken_off(name: str) -> None:
    assert read_reply(READ[name], OnePersona) == OnePersona(**FIELDS)


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_no_answer_is_not_read(name: str) -> None:
    with pytest.raises(ReplyError, match="not in the asked form"):
        read_reply(NOT_READ[name], OnePersona)


def test_the_corpus_is_large_enough_to_mean_something() -> None:
    assert min(len(READ), len(NOT_READ)) >= 30


def test_a_raw_line_break_in_a_string_is_one() -> None:
    """Small models break lines within strings (llama-cpp-python#1259)."""
    text = '{"evidence": "one\ntwo", "trait": "a cook", "preference": "steps"}'
    assert read_reply(text, OnePersona).evidence == "one\ntwo"


def test_escapes_that_json_does_not_have() -> None:
    """Mistral's models escape as in Markdown, others as in Python; LaTeX keeps its backslash."""
    text = r'{"evidence": "one\_two \n", "trait": "a cook\'s", "preference": "\(steps\) \\ \d"}'
    found = read_reply(text, OnePersona)
    assert found.evidence == "one_two \n"
    assert (found.trait, found.preference) == ("a cook's", r"\(steps\) \ \d")


@pytest.mark.parametrize("name", ["Person {}", "person{}", "PERSON_{}", "person-{}"])
def test_two_persons_under_other_spellings_of_their_names(name: str) -> None:
    both = {name.format(1): GOOD, name.format(2): {**json.loads(OTHER), "note": "x"}}
    found = read_reply(json.dumps(both), BothPersonas)
    assert (found.person_1, found.person_2.trait) == (OnePersona(**FIELDS), "a patient gardener")


ONE, TWO = FIELDS, json.loads(OTHER)
# Both persons, written in other forms than the one that was asked for.
BOTH: dict[str, str] = {
    "personas": json.dumps({"persona_1": ONE, "persona_2": TWO}),
    "in words": json.dumps({"Person One": ONE, "Person Two": TWO}),
    "first and second": json.dumps({"first_person": ONE, "second_person": TWO}),
    "letters": json.dumps({"Person A": ONE, "Person B": TWO}),
    "numbers": json.dumps({"1": ONE, "2": TWO}),
    "the responses": json.dumps({"response_1": ONE, "response_2": TWO}),
    "a key with a colon": json.dumps({"person_1:": ONE, "person_2:": TWO}),
    "a list": json.dumps([ONE, TWO]),
    "a list under a name": json.dumps({"persons": [ONE, TWO]}),
    "a list with numbers": json.dumps([{"id": 2, **TWO}, {"id": 1, **ONE}]),
    "a list with names": json.dumps(
        {"personas": [{"person": "Person 2", **TWO}, {"person": "Person 1", **ONE}]}
    ),
    "a list of objects with one key": json.dumps([{"person_1": ONE}, {"person_2": TWO}]),
    "two objects with one key": f'{{"person_2": {OTHER}}}\n{{"person_1": {GOOD}}}',
    "two objects with headings": f"**Person 2:**\n{OTHER}\n\n**Person 1:**\n{GOOD}",
    "two objects in tags": f"<person_2>\n{OTHER}\n</person_2>\n<person_1>\n{GOOD}\n</person_1>",
    "headings that say whom they prefer": (
        f"A user who prefers Response 2:\n{OTHER}\nA user who prefers Response 1:\n{GOOD}"
    ),
    "a list that says whom they prefer": json.dumps(
        [{"preferred_response": 2, **TWO}, {"preferred_response": 1, **ONE}]
    ),
    "a list with other ids": json.dumps([{"personId": 2, **TWO}, {"personId": 1, **ONE}]),
    "two objects in order": f"```json\n{GOOD}\n```\n```json\n{OTHER}\n```",
    "Qwen 3 Coder: parameters": (
        f"<function=BothPersonas>\n<parameter=person_1>\n{GOOD}\n</parameter>\n"
        f"<parameter=person_2>\n{OTHER}\n</parameter>\n</function>"
    ),
    "Gemma: a call as code": f"```tool_code\nBothPersonas(person_1={ONE}, person_2={TWO})\n```",
    "all fields side by side": json.dumps(
        {f"person_{n}_{k}": v for n, one in ((1, ONE), (2, TWO)) for k, v in one.items()}
    ),
    "all fields with dots": json.dumps(
        {f"person_{n}.{k}": v for n, one in ((1, ONE), (2, TWO)) for k, v in one.items()}
    ),
    "wrapped one by one": json.dumps(
        {"person_1": {"persona": ONE}, "person_2": {"description": "x", "persona": TWO}}
    ),
    "names in the plural": json.dumps(
        {
            key: {f"{k}s" if k != "evidence" else k: v for k, v in one.items()}
            for key, one in (("person_1", ONE), ("person_2", TWO))
        }
    ),
    "doubled braces": json.dumps({"person_1": ONE, "person_2": TWO})
    .replace("{", "{{")
    .replace("}", "}}"),
    "keys without quotes": f"{{person_1: {GOOD}, person_2: {OTHER}}}",
    "beside the responses": json.dumps(
        {"Response 1": "a", "Response 2": "b", "Person 1": ONE, "Person 2": TWO}
    ),
    "beside other objects": json.dumps(
        {"content": {"note": 1}, "answer": {"person_1": ONE, "person_2": TWO}}
    ),
    "mixed up at first": (
        f'{{"person_1": {OTHER}, "person_2": {GOOD}}}\n\nSorry, I mixed up the two:\n'
        f'{{"person_1": {GOOD}, "person_2": {OTHER}}}'
    ),
    "a word on another order": (
        f'{{"person_1": {GOOD}, "person_2": {OTHER}}}\nIf the responses were swapped, my final answer'
        f' would be:\n{{"person_1": {OTHER}, "person_2": {GOOD}}}'
    ),
}


def test_the_evidence_of_a_record_does_not_say_whose_it_is() -> None:
    one, two = ({**ONE, "evidence": f"short, unlike response {n}"} for n in (2, 1))
    for listed in ([{"id": 2, "persona": two}, {"id": 1, "persona": one}], [one, two]):
        found = read_reply(json.dumps(listed), BothPersonas)
        assert (found.person_1.model_dump(), found.person_2.model_dump()) == (one, two)


@pytest.mark.parametrize("name", BOTH)
def test_both_persons_are_read_and_not_mixed_up(name: str) -> None:
    found = read_reply(BOTH[name], BothPersonas)
    assert found.model_dump() == {"person_1": ONE, "person_2": TWO}


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD}",
        f"{GOOD}\n{OTHER}\n{DRAFT}",
        json.dumps({"personas": [ONE, TWO, ONE]}),
        json.dumps([{"id": 1, **ONE}, {"id": 1, **TWO}]),
        json.dumps([{"id": 0, **ONE}, {"id": 1, **TWO}]),
        json.dumps([{"id": 1, **ONE}, TWO]),
        f"Person 1 differs from person 2: {GOOD} and {OTHER}",
        json.dumps([{"person_1": ONE}, {"person_1": TWO}]),
        json.dumps({"person_1": ONE, "persona_1": TWO}),
        f"{GOOD}\nWait, that is wrong:\n{OTHER}",
        f"{GOOD}\n{GOOD}",
        # Who is who is not certain: the order would turn the sides round.
        f"**Person Two:**\n{OTHER}\n\n**Person One:**\n{GOOD}",
        f"Person B:\n{OTHER}\nPerson A:\n{GOOD}",
        f"2. {OTHER}\n1. {GOOD}",
        f"Unlike response 2, it is short:\n{GOOD}\nUnlike response 1, it is long:\n{OTHER}",
        json.dumps([{"person": "B", **TWO}, {"person": "A", **ONE}]),
        json.dumps([{"prefers_response": "second", **TWO}, {"prefers_response": "first", **ONE}]),
        json.dumps([{"why": "unlike response 2", **ONE}, {"why": "unlike response 1", **TWO}]),
        json.dumps([{"persona": {"id": 2, **TWO}}, {"persona": {"id": 1, **ONE}}]),
        json.dumps({"personas": []}),
        json.dumps({"persons": [ONE, TWO], "people": [TWO, ONE]}),
        json.dumps({"person_1": "The user is calm and prefers lists.", "person_2": "x"}),
    ],
)
def test_persons_that_may_be_either_are_not_read(text: str) -> None:
    with pytest.raises(ReplyError, match="not in the asked form"):
        read_reply(text, BothPersonas)


def test_an_error_says_what_the_model_said() -> None:
    said = "I'm  sorry,\nbut sk-secret-key-12345 is " + "long " * 5_000
    with pytest.raises(ReplyError) as caught:
        read_reply(said, OnePersona, _Sender())
    assert "The reply begins: \"I'm sorry, but [key] is long" in str(caught.value)
    assert len(str(caught.value)) < 250
    assert "begins" not in reask(caught.value)
    assert most_common([str(caught.value), str(caught.value)[:-9], None]) == {
        caught.value.message: 2
    }


class _Sender:
    secrets = Secrets(("sk-secret-key-12345",))


def test_addresses_and_wide_signs_in_texts_stay() -> None:
    fields = {**FIELDS, "evidence": "see https://a.b/* and \uff1a, /* c */ \uff0c"}
    text = json.dumps(fields, ensure_ascii=False)[:-1] + ",}"
    assert read_reply(text, OnePersona).evidence == fields["evidence"]


CALLED = {"name": "OnePersona"}


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{**CALLED, "input": FIELDS}]},
        {"tool_calls": [{**CALLED, "args": FIELDS}]},
        {"tool_calls": [{"function": {**CALLED, "parameters": FIELDS}}]},
        {"function_call": {**CALLED, "args": FIELDS}},
        {"content": [{"type": "tool_use", "id": "1", **CALLED, "input": FIELDS}]},
    ],
    ids=["Anthropic", "Gemini", "Llama", "Gemini, old", "Anthropic, a part"],
)
def test_calls_in_the_words_of_other_protocols(message: dict[str, Any]) -> None:
    reply = {"choices": [{"message": {"content": None, **message}, "finish_reason": "tool_calls"}]}
    assert read_reply(read_completion(reply, Secrets()).text, OnePersona) == OnePersona(**FIELDS)


def test_a_curly_quote_inside_a_value_stays() -> None:
    text = '{"evidence": "says “hi”, twice", "trait": "a cook", "preference": "steps"}'
    assert read_reply(text, OnePersona).evidence == "says “hi”, twice"


def test_marks_inside_a_value_are_words_of_it() -> None:
    fields = {**FIELDS, "evidence": "writes </think> and <|im_start|>user and ``` in the text"}
    assert read_reply(f"So: {json.dumps(fields)}", OnePersona).evidence == fields["evidence"]


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and not re.fullmatch(r"\.{3}|…|<[^<>]*>|string", text.strip())
)
personas = st.builds(  # a preference has a letter
    lambda e, t, p: {"evidence": e, "trait": t, "preference": f"{p}a"}, *[words] * 3
)
# Anything, except for what makes the object a part of another one or of another's turn.
around = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='<[{"◁'))
before = st.one_of(
    around,
    around.map(lambda text: f"<think>{text}</think>"),
    around.map(lambda text: f"{text}```json\n"),
    around.map(lambda text: f"{{{text} }} "),
    around.map(lambda text: f"{text}<|im_start|>assistant\n"),
    st.just(f"<think>{DRAFT}</think>"),
    st.just('{"a": 1} [2] "b" '),
)
after = st.one_of(
    st.text(),
    around.map(lambda text: f"\n```\n{text}"),
    st.sampled_from(["<|eot_id|>", "<|im_end|>", "</s>", OTHER, "<|im_end|><|im_start|>user", "}"]),
)


@given(personas, before, after, st.sampled_from([None, 2]))
def test_a_valid_object_wrapped_in_anything_is_found(
    fields: dict[str, str], before: str, after: str, indent: int | None
) -> None:
    text = before + json.dumps(fields, indent=indent, ensure_ascii=False) + after
    assert read_reply(text, OnePersona) == OnePersona(**fields)


@given(personas, st.data())
def test_nothing_is_read_of_a_part_of_an_object(fields: dict[str, str], data: Any) -> None:
    text = json.dumps(fields)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ReplyError):
        read_reply(text[:cut], OnePersona)


@given(st.text(st.sampled_from(string.printable + '{}[]":,“”<>|')))
def test_what_is_read_was_said(text: str) -> None:
    """Of any text: either an error, or a record all of whose values stand in the text."""
    try:
        found = read_reply(text, OnePersona)
    except ReplyError:
        return
    assert all(value.strip() in text for value in found.model_dump().values())


@given(st.binary())
def test_no_body_breaks_the_reader(body: bytes) -> None:
    with contextlib.suppress(ReplyError, TransportError):
        read_completion(decode(body), Secrets())


@pytest.mark.parametrize("text", ["{" * 100_000, '{"a":' * 50_000, '{"a": [' * 50_000, '"' * 9999])
def test_noise_ends_soon(text: str) -> None:
    with pytest.raises(ReplyError):
        read_reply(text, OnePersona)


class Defaults(BaseModel):
    note: str = ""
    score: int = 0


class Words(RootModel[list[str]]):
    pass


class Deep(BaseModel):
    inner: OnePersona
    many: list[OnePersona] = Field(default_factory=list)


def test_a_record_of_nothing_but_defaults_is_not_an_answer() -> None:
    with pytest.raises(ReplyError):
        read_reply('{"unrelated": 1}', Defaults)
    assert read_reply('{"unrelated": 1} {"score": 0}', Defaults).score == 0


def test_of_very_many_values_that_do_not_fit_there_is_one_error() -> None:
    with pytest.raises(ReplyError, match="5,000 of its values do not fit"):
        read_reply(json.dumps([0] * 5_000), Words)


def test_a_turn_that_is_named_in_code_before_an_object_ends_no_reply() -> None:
    assert read_reply(f"`[INST]` begins both. {GOOD}", OnePersona) == OnePersona(**FIELDS)
    with pytest.raises(ReplyError):
        read_reply(f"```\nNone.\n```[INST] {GOOD}", OnePersona)


def test_a_list_and_a_nested_object_are_found_too() -> None:
    assert read_reply('Here: ["a", "b"] done', Words).root == ["a", "b"]
    assert read_reply(f'So {{"inner": {GOOD}}}.', Deep).inner == OnePersona(**FIELDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes.", "Yes."),
        ("  spaces stay ", "  spaces stay "),
        ("Yes.<|im_end|>", "Yes."),
        ("Yes.</s>\n", "Yes."),
        ("<|im_start|>assistant\nYes.", "Yes."),
        ("<think>Hm.</think>\n\nYes.", "Yes."),
        ("Hm.</think>Yes.", "Yes."),
        ("Yes.<|eot_id|><|start_header_id|>user<|end_header_id|>And you?", "Yes."),
        ("Write <think> and </think> around it.", "Write <think> and </think> around it."),
        ("if a < b: [1]", "if a < b: [1]"),
        ("```python\nx < 1\n```", "```python\nx < 1\n```"),
        ("<b>bold</b>", "<b>bold</b>"),
        ("<think about it> Yes.", "<think about it> Yes."),
        ("So: <Thoughts id='1'>x</Thoughts> End.", "So: <Thoughts id='1'>x</Thoughts> End."),
        ("Send `<s>[INST] hi [/INST]`, then wait.", "Send `<s>[INST] hi [/INST]`, then wait."),
        ("So:\n```\n<|im_start|>user\n```\nEnd.", "So:\n```\n<|im_start|>user\n```\nEnd."),
        ("It ends with `</think>`. Then", "It ends with `</think>`. Then"),
        ("I use ``` here.\n</think>\nYes `x`.", "Yes `x`."),
        ("Yes `x`.</s>[INST] `y`?", "Yes `x`."),
        ("<think>Of `</think>`? Hm.</think>Yes.", "Yes."),
        ("Say `x`</think>Yes.", "Yes."),
        ("<think>Hm.</think>```\nx\n```", "```\nx\n```"),
        ("So: ```\nx\n```</think>`y`", "`y`"),
    ],
)
def test_a_plain_reply_loses_reasoning_and_marks_and_nothing_else(text: str, said: str) -> None:
    assert plain_text(text) == said


def test_an_event_stream_that_is_not_utf_8_is_an_error_as_other_replies_are() -> None:
    """Its bad bytes became question marks in a persona."""
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    stream = events([{"delta": {"content": "é"}}], usage=usage)
    assert decode(stream)["choices"][0]["message"]["content"] == "é"
    with pytest.raises(ReplyError, match="not UTF-8") as caught:
        decode(stream.decode().encode("latin-1"))
    assert caught.value.took is not None
    assert caught.value.took.completion_tokens == 3
    with pytest.raises(ReplyError, match="broken JSON"):
        decode(stream.partition(b"\xa9")[0])


def test_of_an_event_stream_of_several_replies_the_first_is_read() -> None:
    """With `n=2`, their words were mixed."""
    said = [(0, "Tea"), (1, "Cof"), (1, "fee"), (0, "."), (0, None), (1, None)]
    stream = events({"index": n, **_delta("content", text)} for n, text in said)
    assert decode(stream)["choices"][0]["message"]["content"] == "Tea."


def test_parts_of_a_streamed_reply_that_a_gateway_numbers_are_one_reply() -> None:
    """As litellm's proxy numbered Claude's: the text behind the reasoning was dropped."""
    said = [(0, "reasoning_content", "Hm."), (1, "content", "Tea"), (0, "content", None)]
    stream = events({"index": n, **_delta(name, text)} for n, name, text in said)
    message = decode(stream)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Tea")


def _delta(name: str, text: str | None) -> dict[str, object]:
    return {"delta": {name: text}} if text else {"delta": {}, "finish_reason": "stop"}


def events(choices: Iterable[object], **more: object) -> bytes:
    """Return the event stream of a reply, each choice in a chunk of its own."""
    lines = [json.dumps({"choices": [one], **more}, ensure_ascii=False) for one in choices]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


def test_a_plain_reply_that_is_reasoning_alone_is_none() -> None:
    with pytest.raises(ReplyError, match="reasoning"):
        plain_text("<think>What shall I say?")


def completion(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": "stop", **choice}]}


MESSAGES: dict[str, dict[str, Any]] = {
    "vllm#16182, sglang#4539: all of it in reasoning_content": {
        "content": None,
        "reasoning_content": GOOD,
    },
    "OpenRouter, vLLM 0.9: in reasoning": {"content": "", "reasoning": f"So:\n{GOOD}"},
    "OpenRouter: reasoning_details": {
        "content": "",
        "reasoning_details": [{"type": "reasoning.text", "text": GOOD}],
    },
    "Ollama: thinking": {"content": "", "thinking": GOOD},
    "sglang: the mark left in the reasoning": {
        "content": None,
        "reasoning_content": f"A draft {DRAFT}</think>{GOOD}",
    },
    "reasoning beside the answer": {"content": GOOD, "reasoning_content": f"Perhaps {DRAFT}"},
    "llm-mistral#39: parts": {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]},
            {"type": "text", "text": GOOD},
        ]
    },
    "Claude behind a gateway: parts": {
        "content": [{"type": "thinking", "thinking": DRAFT}, {"type": "text", "text": GOOD}]
    },
    "two parts of one text": {
        "content": [{"type": "text", "text": GOOD[:20]}, {"type": "text", "text": GOOD[20:]}]
    },
    "Responses-like parts": {"content": [{"type": "output_text", "text": GOOD}]},
    "Gemini: a thought part": {"content": [{"text": DRAFT, "thought": True}, {"text": GOOD}]},
    "one part, no list": {"content": {"type": "text", "text": GOOD}},
    "the object itself": {"content": FIELDS},
    "a tool call": {"content": None, "tool_calls": [{"function": {"arguments": GOOD}}]},
    "Ollama: arguments as an object": {"tool_calls": [{"function": {"arguments": FIELDS}}]},
    "the older function_call": {"content": None, "function_call": {"arguments": GOOD}},
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_answer_is_found_in_every_form_of_message(name: str) -> None:
    text = read_completion(completion(MESSAGES[name]), Secrets()).text
    assert read_reply(text, OnePersona) == OnePersona(**FIELDS)


def test_a_completion_of_the_older_kind_has_its_text_in_the_choice() -> None:
    assert read_completion({"choices": [{"text": GOOD}]}, Secrets()).text == GOOD


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60}, 50),
        (  # OpenAI: reasoning is within the completion
            {
                "prompt_tokens": 10,
                "completion_tokens": 50,
                "total_tokens": 60,
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
            50,
        ),
        (  # xAI: beside it (vercel/ai#12425)
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 55,
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
            45,
        ),
        # Gemini: in the total alone
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 300}, 290),
        ({"prompt_tokens": None, "completion_tokens": "7"}, 0),
        (None, 0),
    ],
)
def test_reasoning_tokens_are_paid_for(usage: Any, tokens: int) -> None:
    found = read_completion({**completion({"content": "x"}), "usage": usage}, Secrets())
    assert found.completion_tokens == tokens
    assert found.reasoning_tokens <= tokens


def test_reasoning_tokens_are_counted_in_usage_and_in_the_cost() -> None:
    reply = Reply("yes", prompt_tokens=10, completion_tokens=50, reasoning_tokens=40)
    with FakeLLM(lambda _: reply) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False, prices=(0.0, 1.0))
        for _ in range(2):
            llm.ask([{"role": "user", "content": "Well?"}])
    assert (llm.usage.completion_tokens, llm.usage.reasoning_tokens) == (100, 80)
    assert llm.usage.cost == pytest.approx(100e-6)


def stream(*deltas: dict[str, Any], end: str = "data: [DONE]\n\n", **last: Any) -> bytes:
    chunks = [{"model": "fake", "choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}], **last})
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks).encode() + end.encode()


def test_an_event_stream_that_nobody_asked_for_is_read() -> None:
    """Proxies that always stream (litellm#25766), with OpenRouter's comment lines."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    body = b": OPENROUTER PROCESSING\n\n" + stream(
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        *({"content": GOOD[i : i + 7]} for i in range(0, len(GOOD), 7)),
        usage=usage,
    )
    found = read_completion(decode(body), Secrets())
    assert (found.text, found.prompt_tokens, found.completion_tokens) == (GOOD, 3, 4)


@pytest.mark.parametrize(
    "told",
    [
        [
            {"prompt_tokens": 9, "completion_tokens": 50},
            {"prompt_tokens": 9, "completion_tokens": 1},
        ],
        [{"prompt_tokens": 9}, {"completion_tokens": 50, "prompt_tokens": None}],
        [{"prompt_tokens": 9, "completion_tokens": 50}, {}],
        ["much", {"prompt_tokens": 9, "completion_tokens": 50}],
    ],
    ids=["less at the end", "parts", "nothing at the end", "words at first"],
)
def test_of_what_the_chunks_of_a_stream_tell_of_tokens_the_most_counts(told: list[Any]) -> None:
    chunks = [{"choices": [{"delta": {"content": "well"}}], "usage": usage} for usage in told]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    found = read_completion(decode(body.encode()), Secrets())
    assert (found.prompt_tokens, found.completion_tokens) == (9, 50)


def test_a_tool_call_and_reasoning_alone_are_put_together_from_a_stream() -> None:
    calls = [
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": part}}]}
        for part in (GOOD[:9], GOOD[9:])
    ]
    assert read_completion(decode(stream(*calls)), Secrets()).text == GOOD
    thought = read_completion(
        decode(stream({"reasoning": GOOD[:9]}, {"reasoning": GOOD[9:]})), Secrets()
    )
    assert read_reply(thought.text, OnePersona) == OnePersona(**FIELDS)


def test_a_stream_that_breaks_off_is_no_reply() -> None:
    body = b'data: {"choices": [{"delta": {"content": "{}"}}]}\n\n'
    with pytest.raises(TransportError, match="broke off"):
        decode(body)


def test_a_stream_reaches_the_row_in_one_call() -> None:
    body = stream({"content": json.dumps({"person_1": FIELDS, "person_2": FIELDS})})
    with FakeLLM(reply=body) as server:
        table = pi.infer_personas(pairs(1), "fake", api_base=server.api_base)
        assert server.calls == 1
    assert str(table[0].chosen).startswith("The user is a cook in a hurry")


@pytest.mark.parametrize("tail", ["\nLet me know!", "<|eot_id|>", "\n" + GOOD])
def test_words_after_the_object_cost_no_second_call(tail: str) -> None:
    """instructor#356."""
    both = json.dumps({"person_1": FIELDS, "person_2": FIELDS})
    with FakeLLM(reply=Reply(both + tail)) as server:
        options: dict[str, Any] = {"api_base": server.api_base}
        table = pi.infer_personas(pairs(1), "fake", **options)
        again = pi.infer_personas(pairs(1), "fake", **options)
        assert server.calls == 1
    assert again.usage.cached == 1
    assert str(again[0].chosen) == str(table[0].chosen)
    assert not table.errors


@pytest.mark.parametrize("unit", ['{"a": {"b": "e", "c": "n": ', "{'a': ", "{'a': {"])
def test_dicts_that_are_never_closed_do_not_hold_up_a_run(unit: str) -> None:
    """Each of them once doubled the time; 200 would not have ended."""
    with pytest.raises(ReplyError):
        read_reply(unit * 200 + "{'a': 'b", OnePersona)
