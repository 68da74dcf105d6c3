"""The order in which responses are shown leaves no trace in the personas of the two sides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import personainfer as pi
from personainfer.personas.infer import first_request
from personainfer.personas.prompts import chosen_is_first
from personainfer.testing import FakeLLM

PAIRS = [
    pi.Preference(prompt=f"Question {n}?", chosen=f"Yes, since {n}.", rejected=f"No, until {n}.")
    for n in range(200)
]


def biased(body: dict[str, Any]) -> dict[str, Any]:
    """A model that looks at nothing but the order."""
    one = {"evidence": "e", "trait": "hasty", "preference": "short answers"}
    other = {"evidence": "e", "trait": "patient", "preference": "winding stories"}
    return {"person_1": one, "person_2": other}


@pytest.fixture(scope="module")
def tables() -> Iterator[dict[str, pi.PersonaTable]]:
    with FakeLLM(biased) as llm:
        yield {
            name: pi.infer_personas(rows, "fake", api_base=llm.api_base, cache=False)
            for name, rows in (("as they are", PAIRS), ("swapped", [p.swapped for p in PAIRS]))
        }


def telling(rows: list[pi.PersonaRow]) -> list[str]:
    words = pi.salient_words(pi.PersonaTable(rows), correction="holm")
    assert len(words) == 6
    return [word.word for word in words if word.p_adjusted < 0.05]


@pytest.mark.heavy
def test_no_word_of_a_biased_model_marks_a_side(tables: dict[str, pi.PersonaTable]) -> None:
    assert telling(list(tables["as they are"])) == []


@pytest.mark.heavy
def test_with_each_pair_also_swapped_every_word_is_as_often_on_either_side(
    tables: dict[str, pi.PersonaTable],
) -> None:
    words = pi.salient_words(pi.PersonaTable([row for each in tables.values() for row in each]))
    assert [(word.chosen, word.rejected) for word in words] == [(200, 200)] * 6


@pytest.mark.heavy
def test_the_test_would_find_a_side_that_is_always_shown_first(
    tables: dict[str, pi.PersonaTable],
) -> None:
    both = zip(tables["as they are"], tables["swapped"], strict=True)
    always = [
        row if chosen_is_first(pair) else other
        for pair, (row, other) in zip(PAIRS, both, strict=True)
    ]
    assert len(telling(always)) == 6


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("local:smollm2", {}),
        ("gpt-4o-mini", {"api_key": "none"}),  # litellm
    ],
)
def test_the_order_is_the_same_whoever_is_asked(model: str, options: dict[str, Any]) -> None:
    pytest.importorskip("xllamacpp", reason="the embedded engine is not installed")
    models: list[tuple[str, dict[str, Any]]] = [
        ("fake", {"api_base": "http://127.0.0.1:1/v1"}),
        (model, options),
    ]
    for pair in PAIRS[:20]:
        bodies = [first_request([pair], name, **given) for name, given in models]
        swapped = [first_request([pair.swapped], name, **given) for name, given in models]
        shown = [body["messages"][-1] for body in (*bodies, *swapped)]
        assert all(message == shown[0] for message in shown)
        text = str(shown[0])
        assert (text.index(pair.chosen) < text.index(pair.rejected)) is chosen_is_first(pair)
