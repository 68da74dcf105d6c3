"""Control characters in what an endpoint or the data says."""

from __future__ import annotations

import pytest

import personainfer as pi
from personainfer.testing import FakeLLM, Fault

BAD = ["\x1b[2J", "\x1b]0;title\x07", "\u202e", "\u2066", "\x9b", "\x08", "\u200b"]


@pytest.mark.parametrize("bad", BAD)
def test_control_characters_are_escaped_where_rows_are_shown(bad: str) -> None:
    rows = [{"prompt": f"a{bad}b", "chosen": "c", "rejected": "d", "id": f"x{bad}"}]
    with FakeLLM(faults=[Fault.status(400, message=f"no{bad}no")]) as server:
        table = pi.infer_personas(rows, "fake", api_base=server.api_base, max_attempts=1)
    persona = pi.Persona(trait=f"t{bad}t", preference=f"p{bad}p")
    given = pi.PersonaTable.from_data(
        [{**rows[0], "chosen_persona": str(persona), "rejected_persona": f"r{bad}r"}]
    )
    assert bad not in str(table[0].error)
    assert "no" in str(table[0].error)
    for shown in (table, given):
        for text in (str(shown), repr(shown), shown._repr_html_()):
            assert bad[0] not in text


def test_text_of_any_script_is_shown_as_it_is(llm: FakeLLM) -> None:
    prompt = "naïve 你好 مرحبا \U0001f469\u200d\U0001f4bb"
    table = pi.infer_personas(
        [{"prompt": prompt, "chosen": "c", "rejected": "d"}], "fake", api_base=llm.api_base
    )
    assert prompt in str(table)
    assert prompt in table._repr_html_()
