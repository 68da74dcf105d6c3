"""The records: what they refuse, how a persona becomes a sentence, how usage adds up."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError
from personainfer.records import (
    Candidate,
    Exemplar,
    Message,
    Person,
    Persona,
    Preference,
    Record,
    Usage,
    unchecked,
    unchecked_row,
)
from personainfer.users.records import UserRow

PERSONS: tuple[Person, ...] = get_args(Person)

PAIR = Preference(prompt="q", chosen="yes", rejected="no", id="7", user="u")
PERSONA = Persona(
    evidence="steps, no theory", trait="busy", preference="short answers", flags=("copies_text",)
)
RECORDS: list[BaseModel] = [
    Message(role="user", content="hello"),
    PAIR,
    Preference(prompt=(Message(role="user", content="a"),), chosen="b", rejected="c"),
    PERSONA,
    Exemplar(preference=PAIR, chosen=PERSONA, rejected=PERSONA),
    Usage(calls=3, cached=1, cost=None),
]
records = pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)


def phrase(text: str) -> str:
    return Persona(trait=text, preference="x").trait


@pytest.mark.parametrize("name", ["evidence", "trait", "preference", "sentence", "flags"])
def test_a_persona_holds_no_half_of_a_surrogate_pair(name: str) -> None:
    value = ["a\ud83d"] if name == "flags" else "a\ud83d"
    with pytest.raises(ValidationError, match="surrogates not allowed"):
        Persona(**{"trait": "busy", "preference": "tea", name: value})  # type: ignore[arg-type]


@records
def test_a_record_is_frozen(record: BaseModel) -> None:
    for name in type(record).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, None)


@records
def test_a_field_that_is_not_known_is_refused(record: BaseModel) -> None:
    with pytest.raises(ValidationError, match="colour"):
        type(record).model_validate({**dict(record), "colour": "red"})


@records
def test_a_record_survives_pickle_and_json(record: BaseModel) -> None:
    assert pickle.loads(pickle.dumps(record)) == record
    assert type(record).model_validate_json(record.model_dump_json()) == record


@records
def test_a_record_that_is_made_unchecked_is_the_same_record(record: Record) -> None:
    made = unchecked(type(record), dict(record))
    assert made == record
    assert repr(made) == repr(record)
    assert pickle.loads(pickle.dumps(made)) == record


def test_a_row_that_is_made_unchecked_is_the_same_row() -> None:
    other = PERSONA.model_copy(update={"trait": "calm"})
    one, two = (Candidate(PERSONA, 0.5),), (Candidate(other),)
    row = pi.PersonaRow(3, PAIR, PERSONA, other, "no reply", one, two, {"id": 7})
    made = unchecked_row(3, PAIR, PERSONA, other, "no reply", one, two, {"id": 7})
    assert made == row
    assert repr(made) == repr(row)
    assert pickle.loads(pickle.dumps(made)) == row
    assert list(pi.PersonaTable([row])) == [row]


@records
def test_a_record_can_be_a_key(record: BaseModel) -> None:
    assert len({record, record.model_copy()}) == 1


def test_a_persona_speaks_in_three_persons() -> None:
    assert PERSONA.render() == "The user is busy and prefers short answers."
    assert PERSONA.render("first") == "I am busy and prefer short answers."
    assert PERSONA.render("second") == "You are busy and prefer short answers."
    assert str(PERSONA) == PERSONA.render("third")


def test_a_persona_without_a_trait_or_a_preference_says_what_there_is() -> None:
    calm = Persona(trait="calm", preference="")
    assert [calm.render(person) for person in PERSONS] == [
        "The user is calm.",
        "I am calm.",
        "You are calm.",
    ]
    lists = Persona(trait="", preference="lists")
    assert [lists.render(person) for person in PERSONS] == [
        "The user prefers lists.",
        "I prefer lists.",
        "You prefer lists.",
    ]
    for persona in (calm, lists):
        assert str(Persona.parse(str(persona))) == str(persona)


def test_messages_of_a_prompt_may_be_given_as_dicts() -> None:
    given_as: Any = [{"role": "user", "content": "a"}]
    pair = Preference(prompt=given_as, chosen="b", rejected="c")
    assert pair.prompt == (Message(role="user", content="a"),)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("The user is patient.", "patient"),
        ("the person who is patient", "patient"),
        ("someone who prefers brevity", "brevity"),
        ("The user is someone who is patient", "patient"),
        ("prefers\n  short answers ;", "short answers"),
        ("Would prefer short answers", "short answers"),
        ("They are curious, ", "curious"),
        ("I am curious", "curious"),
        ("A playful, visual learner", "a playful, visual learner"),
        ("Short answers", "short answers"),
        ("TV series", "TV series"),
        ("IT-savvy", "IT-savvy"),
        ("isolated but content", "isolated but content"),
        ("area experts", "area experts"),
        ("theory", "theory"),
        ("", ""),
        (" . ", ""),
    ],
)
def test_a_phrase_is_made_to_fit_the_sentence(said: str, kept: str) -> None:
    assert Persona(trait="x", preference=said).preference == kept


def test_a_trait_that_is_a_preference_keeps_its_verb_so_that_it_shows() -> None:
    assert Persona(trait="The user is prefers tea", preference="x").trait == "prefers tea"


PARTS = ["The user ", "who ", "is ", "someone ", "prefers ", "A ", "Short ", "TV", ".", "\n", ", "]


@given(st.text() | st.lists(st.sampled_from(PARTS)).map("".join))
def test_a_phrase_is_one_line_without_a_full_stop_and_stays_as_it_is(text: str) -> None:
    once = phrase(text)
    assert len(once.splitlines()) <= 1
    assert not once.endswith((".", ";", ",", " "))
    assert phrase(once) == once


@pytest.mark.parametrize("wrong", [None, 3, ["busy"]])
def test_a_phrase_is_text(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Persona(trait=wrong, preference="x")


def test_swapped_turns_the_pair_round_and_keeps_the_rest() -> None:
    assert PAIR.swapped == Preference(prompt="q", chosen="no", rejected="yes", id="7", user="u")
    assert PAIR.swapped.swapped == PAIR


usages = st.builds(
    Usage,
    calls=st.integers(0, 9),
    cached=st.integers(0, 9),
    retries=st.integers(0, 9),
    reasks=st.integers(0, 9),
    prompt_tokens=st.integers(0, 9),
    completion_tokens=st.integers(0, 9),
    cost=st.none() | st.integers(0, 8).map(lambda eighths: eighths / 8),
)


@given(usages, usages)
def test_usage_adds_field_by_field(one: Usage, other: Usage) -> None:
    total = (one + other).model_dump()
    for name in set(total) - {"cost"}:
        assert total[name] == getattr(one, name) + getattr(other, name)
    assert one + Usage() == one


@given(st.lists(usages, max_size=5))
def test_one_unknown_cost_makes_the_sum_unknown(parts: list[Usage]) -> None:
    total = sum(parts, start=Usage())
    costs = [part.cost for part in parts]
    known = [cost for cost in costs if cost is not None]
    assert total.cost == (sum(known) if len(known) == len(costs) else None)


@pytest.mark.parametrize("persona", ["The user is kind.", {"trait": "kind"}, 3, ["kind"]], ids=str)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_row_takes_personas_and_no_sentences(side: str, persona: object) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"{side}=.*Persona\.parse"):
        pi.PersonaRow(0, None, **{side: persona})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "field",
    [
        {"index": "a"},
        {"index": None},
        {"index": True},
        {"index": 1.0},
        {"preference": {"prompt": "p"}},
        {"preference": Preference(prompt=(), chosen="a", rejected="b")},
        {"error": 5},
        {"columns": None},
        {"columns": [1]},
        {"chosen_candidates": (PERSONA,)},
        {"rejected_candidates": "ab"},
    ],
    ids=str,
)
def test_a_row_holds_nothing_that_no_file_gives_back(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(InvalidArgumentError, match="PersonaRow: ") as caught:
        pi.PersonaRow(**{"index": 0, "preference": PAIR, **field})
    assert caught.value.argument == name


def test_a_value_that_cannot_be_shown_is_refused_as_others_are() -> None:
    class Unshown:
        def __repr__(self) -> str:
            raise KeyError("x")

    odd: list[Any] = [10**5000, Unshown()]
    for value in odd:
        with pytest.raises(InvalidArgumentError, match=r"error=<.*> is no text"):
            pi.PersonaRow(0, None, error=value)
        with pytest.raises(InvalidArgumentError, match=r"score=<.*> is no number"):
            Candidate(PERSONA, value)


@pytest.mark.parametrize("score", ["a", True, [0.5], 10**400, 1j], ids=lambda s: str(s)[:9])
def test_a_candidate_has_a_persona_and_a_number_as_its_score(score: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"score=.* is no number"):
        Candidate(PERSONA, score)
    no_persona: Any = "The user is kind."
    with pytest.raises(InvalidArgumentError, match=r"persona=.*Persona\.parse"):
        Candidate(no_persona)


def test_numbers_of_numpy_in_a_row_are_saved_and_loaded(tmp_path: Path) -> None:
    place: Any = np.int64(3)
    candidates: Any = [Candidate(PERSONA, float32) for float32 in np.array([0.5, -np.inf], "f4")]
    row = pi.PersonaRow(place, PAIR, PERSONA, chosen_candidates=candidates)
    assert (type(row.index), type(row.chosen_candidates[0].score)) == (int, float)
    path = pi.PersonaTable([row]).save(tmp_path / "t.parquet")
    assert list(pi.PersonaTable.load(path)) == [row]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Preference, {"prompt": [0] * 1000, "chosen": "a", "rejected": "b"}),
        (Persona, {"trait": "t", "preference": "p", "flags": [0] * 1000}),
        (UserRow, {"user": "u", "choices": [0] * 1000, "hypotheses": [0] * 1000}),
    ],
)
def test_of_very_many_wrong_values_the_first_is_the_error(
    kind: type[BaseModel], fields: dict[str, Any]
) -> None:
    """Those of a row in a file of 200 KB took 2 GB."""
    with pytest.raises(ValidationError) as caught:
        kind(**fields)
    assert caught.value.error_count() <= 2
