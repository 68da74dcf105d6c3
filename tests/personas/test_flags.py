"""Flags: what they find in a persona, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import personainfer as pi
from personainfer.personas.flags import FLAGS, find_flags
from personainfer.records import Message, Persona, Preference
from personainfer.testing import FakeLLM

from ..builders import pairs

PAIR = Preference(
    prompt="How do I keep houseplants alive?",
    chosen="Put it near a window and water it every second Saturday.",
    rejected="Learn to read soil, light and season; don't follow a calendar.",
)


def flags(trait: str = "patient", preference: str = "clear explanations") -> tuple[str, ...]:
    persona = Persona(trait=trait, preference=preference)
    return find_flags(
        persona,
        PAIR,
        exemplar_phrases=frozenset({"curious about how things work"}),
    )


FOUND = [
    ("refusal", "unable to provide a description"),
    ("refusal", "an unknown person, as I cannot describe them"),
    ("refusal", "described by an AI that says: as an AI, nothing"),
    ("refusal", "N/A"),
    ("copies_text", "glad to water it every second Saturday"),
    ("copies_text", "able to READ soil, light and season"),
    ("copies_text", "one of those who don't follow a calendar"),
    ("copies_text", "wondering how do I keep houseplants"),
    ("copies_exemplar", "Curious about how things work"),
    ("protected_attribute", "a Christian looking for comfort"),
    ("protected_attribute", "an elderly reader"),
    ("protected_attribute", "a 25-year-old student"),
    ("protected_attribute", "a woman in a hurry"),
    ("protected_attribute", "transgender and private"),
    ("protected_attribute", "an Asian cook"),
    ("protected_attribute", "politically left-wing"),
    ("protected_attribute", "deaf and independent"),
    ("protected_attribute", "a recent immigrant"),
    ("protected_attribute", "devout"),
    ("protected_attribute", "one of the so-called 'senior citizens'"),
    ("protected_attribute", "curious about islam's history"),
    ("protected_attribute", "what they call \u2018middle-aged\u2019"),
    ("protected_attribute", "an autist who likes order"),
    ("named_person", "someone like Marie Curie"),
    ("named_person", "an admirer of George W. Bush"),
    ("named_person", "a patient of Dr. Smith"),
    ("named_person", "someone named Anna"),
    ("named_person", "fond of José García"),
    ("named_person", "an admirer of Ludwig van Beethoven"),
    ("named_person", "a reader of J. K. Rowling"),
    ("refusal", "impossible to describe, since there is insufficient information"),
    ("refusal", "unclear; it cannot be determined"),
    ("ungrammatical", "curious and"),
    ("ungrammatical", "interested in learning about the"),
    ("ungrammatical", "has little time"),
    ("ungrammatical", "wants quick wins"),
    ("ungrammatical", ""),
]

INNOCENT = [
    "protective of family time",
    "practical and hands-on",
    "a do-it-yourself enthusiast",
    "values-driven and patient",
    "blessed with a can-do attitude",
    "can-do and cheerful",
    "wary of being misled",
    "womanly",  # only whole words are looked for
    "good at asking questions",
    "mandatory-training weary",
    "a careful planner with a tight budget",
    "respectful of the law",
    "direct, no-nonsense guidance",
    "keen on history and the sciences",
    "traceable sources",
    "IT-savvy",
    "fond of TV series",
    "willing to help others in need",
    "sensitive to setbacks and in need of reassurance",
    "answers that can be acted upon at once",
    "a step-by-step plan",
    "examples from Python",
    "planning a trip to New York",
    "a fan of Star Wars and Machine Learning",
    "a visitor of South Dakota who uses Visual Studio",
    "curious about how a language model works",
    "one of those who say 'I don't compromise'",
]
SENTENCES = Path(__file__).parent / "sentences"


@pytest.mark.parametrize(("flag", "phrase"), FOUND)
def test_a_flag_is_found_in_either_phrase(flag: str, phrase: str) -> None:
    assert flag in flags(trait=phrase)
    assert flag in flags(preference=phrase)


@pytest.mark.parametrize("phrase", INNOCENT)
def test_an_innocent_persona_has_no_flag(phrase: str) -> None:
    assert flags(trait=phrase) == ()
    assert flags(preference=phrase) == ()


def test_a_copy_is_found_whichever_apostrophe_the_pair_has() -> None:
    pair = PAIR.model_copy(update={"rejected": "Don\u2019t follow a calendar; read the soil."})
    persona = Persona(trait="patient", preference="those who don't follow a calendar")
    assert find_flags(persona, pair) == ("copies_text",)


MARKED = ["छोटे उत्तर", "ছোট উত্তর", "சிறிய பதில்கள்", "الإِجَابَاتُ القَصِيرَةُ", "re\u0301ponses bre\u0300ves"]


@pytest.mark.parametrize("phrase", MARKED)
def test_two_words_with_marks_are_not_a_run_of_four(phrase: str) -> None:
    """Marks above and below letters split them into letters, of which four stood in the pair."""
    pair = PAIR.model_copy(update={"chosen": f"{phrase} X."})
    assert find_flags(Persona(trait="patient", preference=phrase), pair) == ()
    copied = PAIR.model_copy(update={"chosen": f"{phrase}, {phrase} X."})
    twice = Persona(trait="patient", preference=f"{phrase} {phrase}")
    assert find_flags(twice, copied) == ("copies_text",)


def found_in(name: str, half: int) -> tuple[list[str], list[str]]:
    """Of every second sentence of a file: those with the flag, and those without."""
    sentences = (SENTENCES / name).read_text(encoding="utf-8").splitlines()[half::2]
    flagged = [
        said for said in sentences if "protected_attribute" in find_flags(Persona.parse(said), PAIR)
    ]
    return flagged, [said for said in sentences if said not in flagged]


@pytest.mark.parametrize("half", [0, 1], ids=["that the rules were made on", "held out"])
def test_protected_attributes_are_found_and_innocent_words_are_not(half: int) -> None:
    found, missed = found_in("protected.txt", half)
    alarms, _ = found_in("innocent.txt", half)
    recall = len(found) / (len(found) + len(missed))
    precision = len(found) / (len(found) + len(alarms))
    assert recall >= 0.85, missed
    assert precision >= 0.9, alarms


def test_an_idiom_that_the_pair_has_too_is_not_copied() -> None:
    pair = Preference(prompt="Why?", chosen="At the end of the day it is yours.", rejected="No.")
    persona = Persona(trait="calm at the end of the day", preference="x")
    assert find_flags(persona, pair) == ()


def test_every_flag_but_the_one_about_both_sides_has_an_example() -> None:
    assert {flag for flag, _ in FOUND} == set(FLAGS) - {"same_as_other_side"}


def test_flags_come_in_their_documented_order() -> None:
    found = flags("has learned to water it every second Saturday", "what Marie Curie, a woman, and")
    assert found == ("copies_text", "protected_attribute", "named_person", "ungrammatical")


@pytest.mark.parametrize("phrase", ["near a window", "able to read soil", "light and season"])
def test_three_words_in_a_row_are_not_copied(phrase: str) -> None:
    assert "copies_text" not in flags(trait=phrase)


def test_a_run_of_words_does_not_join_trait_and_preference() -> None:
    assert "copies_text" not in flags("told to water it", "every second Saturday")


def test_only_whole_words_count_as_copied() -> None:
    pair = Preference(prompt="What to sow?", chosen="Grow late tomatoes in pots", rejected="Peas")
    persona = Persona(trait="keen to row late tomatoes in tins", preference="x")
    assert find_flags(persona, pair) == ()


def test_evidence_may_quote_the_pair() -> None:
    persona = Persona(
        evidence="says to water it every second Saturday", trait="busy", preference="routine"
    )
    assert find_flags(persona, PAIR) == ()


def test_every_turn_of_a_conversation_counts_as_text_of_the_pair() -> None:
    turns = (
        Message(role="system", content="Answer as a pirate would do."),
        Message(role="user", content="Where is the hidden treasure?"),
    )
    pair = Preference(prompt=turns, chosen="Here", rejected="There")
    for copied in ("keen to answer as a pirate would", "curious where is the hidden treasure"):
        persona = Persona(trait=copied, preference="x")
        assert find_flags(persona, pair) == ("copies_text",)


@pytest.mark.parametrize(
    ("rejected", "is_flagged"),
    [
        ({"trait": "calm", "preference": "plain answers"}, True),
        ({"trait": "hurried", "preference": "Plain answers"}, True),  # explains no choice either
        ({"trait": "calm", "preference": "vivid stories"}, False),
    ],
)
def test_sides_with_the_same_preference_are_flagged(
    rejected: dict[str, str], is_flagged: bool
) -> None:
    one = {"evidence": "e", "trait": "calm", "preference": "plain answers"}
    with FakeLLM({"person_1": one, "person_2": {"evidence": "e", **rejected}}) as server:
        (row,) = pi.infer_personas(pairs(1), "fake", api_base=server.api_base, cache=False)
    assert row.chosen is not None
    assert row.rejected is not None
    for persona in (row.chosen, row.rejected):
        assert ("same_as_other_side" in persona.flags) is is_flagged
