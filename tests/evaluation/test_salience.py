"""Words that mark one side: counted once a persona, tested, corrected."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import personainfer as pi
from personainfer.data.table import PersonaTable
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.records import PersonaRow

WORDS = "careful patient brief practical curious warm direct formal playful exact".split()


def table(chosen: list[str], rejected: list[str]) -> PersonaTable:
    """Each text is a trait; the preference is the same everywhere."""

    def persona(trait: str) -> pi.Persona:
        return pi.Persona(evidence="evidence", trait=trait, preference="good answers")

    pair = pi.Preference(prompt="p", chosen="c", rejected="r")
    return PersonaTable(
        [
            PersonaRow(i, pair, chosen=persona(one), rejected=persona(other))
            for i, (one, other) in enumerate(zip(chosen, rejected, strict=True))
        ]
    )


def by_word(found: list[Any]) -> dict[str, Any]:
    return {one.word: one for one in found}


def test_a_word_of_one_side_is_found_and_comes_first() -> None:
    draw = random.Random(0)
    noise = [" ".join(draw.sample(WORDS, 3)) for _ in range(400)]
    chosen = [f"{words}{' meticulous' if i % 4 else ''}" for i, words in enumerate(noise[:200])]
    rejected = [f"{words}{' concise' if i % 4 else ''}" for i, words in enumerate(noise[200:])]
    found = pi.salient_words(table(chosen, rejected))
    assert {one.word: one.side for one in found[:2]} == {
        "meticulous": "chosen",
        "concise": "rejected",
    }
    first = by_word(found)["meticulous"]
    assert (first.chosen, first.rejected) == (150, 0)
    assert first.probability.value == 1.0
    assert first.log_odds.low > 0
    assert first.p_adjusted < 1e-4
    assert not [one for one in found[2:] if one.p_adjusted < 0.05]


@pytest.mark.heavy
def test_nothing_is_found_where_there_is_nothing() -> None:
    """Of many words on shuffled sides, next to none survive the correction."""
    false = 0
    for seed in range(20):
        draw = random.Random(seed)
        texts = [" ".join(draw.sample(WORDS, 4)) for _ in range(400)]
        found = pi.salient_words(table(texts[:200], texts[200:]))
        assert len(found) == len(WORDS) + 2
        false += any(one.p_adjusted < 0.05 for one in found)
    assert false <= 3


def test_shorter_personas_do_not_mark_their_side_with_every_word() -> None:
    """ "good" and "answers" are in all of them: 60 to 60 says nothing, however much else one side says."""
    longer = ["curious about how all things around here work"] * 60
    found = by_word(pi.salient_words(table(["busy"] * 60, longer)))
    for word in ("good", "answers"):
        assert found[word].log_odds.value == pytest.approx(0)
        assert found[word].p_adjusted == pytest.approx(1)
    assert found["busy"].side == "chosen"
    assert found["curious"].side == "rejected"
    assert max(found["busy"].p_adjusted, found["curious"].p_adjusted) < 1e-4


def test_the_fixed_words_of_the_sentence_and_the_evidence_are_not_read() -> None:
    found = by_word(pi.salient_words(table(["busy"] * 20, ["calm"] * 20)))
    assert set(found) == {"busy", "calm", "good", "answers"}


def test_words_are_whole_and_lower_case() -> None:
    text = "Overly to-the-point, user's naïve over-eager x2 42"
    found = by_word(pi.salient_words(table([text] * 10, ["calm"] * 10)))
    assert {"overly", "to-the-point", "user's", "naïve", "over-eager", "x"} <= set(found)
    assert "over" not in found


def test_a_word_counts_once_a_persona_and_only_from_the_floor_on() -> None:
    rows = table(["clear clear clear"] * 9 + ["warm"], ["warm"] * 9 + ["calm"])
    found = by_word(pi.salient_words(rows))
    assert "clear" not in found
    assert (found["warm"].chosen, found["warm"].rejected) == (1, 9)
    assert by_word(pi.salient_words(rows, floor=9))["clear"].chosen == 9
    assert pi.salient_words(rows, floor=100) == []


def test_lemmas_are_the_callers() -> None:
    rows = table(["values detail"] * 6 + ["valued detail"] * 6, ["calm"] * 12)
    found = by_word(pi.salient_words(rows, lemmatize=lambda word: word.removesuffix("s")[:4]))
    assert found["valu"].chosen == 12

    assert {word.lemmatizer for word in found.values()} == {"<lambda>"}


def test_an_installed_lemmatizer_is_used_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """simplemma's interface: its lemma is taken if a persona has it as a word."""
    rows = table(["vivid stories preferring"] * 6 + ["a vivid story"] * 6, ["calm"] * 12)
    found = by_word(pi.salient_words(rows, floor=1, lemmatize=None))
    assert {"stories", "story", "preferring"} < set(found)
    assert {word.lemmatizer for word in found.values()} == {None}

    lemmas = {"stories": "story", "preferring": "preferr"}
    (tmp_path / "simplemma.py").write_text(
        f"def lemmatize(word, lang):\n    return {lemmas!r}.get(word, word)\n"
    )
    (tmp_path / "simplemma-9.1.dist-info").mkdir()
    (tmp_path / "simplemma-9.1.dist-info" / "METADATA").write_text(
        "Name: simplemma\nVersion: 9.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "simplemma", raising=False)
    found = by_word(pi.salient_words(rows, floor=1))
    del sys.modules["simplemma"]  # for good: monkeypatch would put it back
    assert found["story"].chosen == 12
    assert "stories" not in found
    assert "preferring" in found  # "preferr" is a word of no persona
    assert {word.lemmatizer for word in found.values()} == {"simplemma 9.1"}
    with pytest.raises(InvalidArgumentError, match="lemmatize='porter'"):
        pi.salient_words(rows, lemmatize="porter")  # type: ignore[arg-type]


def test_stop_words_can_be_kept() -> None:
    rows = table(["fond of the sea"] * 10, ["calm"] * 10)
    assert "the" not in by_word(pi.salient_words(rows))
    assert "the" in by_word(pi.salient_words(rows, stop_words=()))


def test_stop_words_may_come_from_a_generator() -> None:
    rows = table(["calm one"] * 12, ["bold one"] * 12)
    found = by_word(pi.salient_words(rows, stop_words=(word for word in ["one"])))
    assert {"calm", "bold"} <= found.keys()
    assert "one" not in found


@pytest.mark.heavy
@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(*[st.lists(st.sampled_from(WORDS), min_size=1)] * 2), min_size=1, max_size=30
    )
)
def test_swapping_the_sides_swaps_the_findings(texts: list[tuple[list[str], list[str]]]) -> None:
    one, other = ([" ".join(words) for words in side] for side in zip(*texts, strict=True))
    there = by_word(pi.salient_words(table(one, other), floor=1))
    back = by_word(pi.salient_words(table(other, one), floor=1))
    assert set(there) == set(back)
    for word, found in there.items():
        assert found.z == pytest.approx(-back[word].z, abs=1e-9)
        assert (found.chosen, found.rejected) == (back[word].rejected, back[word].chosen)
        assert found.probability.value == pytest.approx(1 - back[word].probability.value)
        assert found.p_adjusted == pytest.approx(back[word].p_adjusted)


def test_holm_is_the_harsher_correction() -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.sample(WORDS, 4)) for _ in range(60)]
    rows = table(texts[:30], texts[30:])
    holm = by_word(pi.salient_words(rows, correction="holm", floor=1))
    for word, found in by_word(pi.salient_words(rows, floor=1)).items():
        assert holm[word].p_adjusted >= found.p_adjusted >= found.p_value


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_table_without_personas_of_a_side_is_refused(side: str) -> None:
    persona = pi.Persona(trait="busy", preference="short answers")
    other: dict[str, Any] = {"rejected" if side == "chosen" else "chosen": persona}
    with pytest.raises(DataError, match=f"none of the {side} one"):
        pi.salient_words(PersonaTable([PersonaRow(0, None, **other)]))
    with pytest.raises(DataError):
        pi.salient_words(PersonaTable([]))


@pytest.mark.parametrize(
    "options",
    [{"floor": 0}, {"floor": True}, {"prior": 0}, {"confidence": 95}, {"correction": "none"}],
    ids=str,
)
def test_bad_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        pi.salient_words(table(["busy"], ["calm"]), **options)


def test_a_finding_reads_as_a_line_and_becomes_a_dict() -> None:
    (first, *_) = pi.salient_words(table(["busy"] * 30, ["calm"] * 30))
    assert str(first).startswith("busy → chosen (30 chosen, 0 rejected, z = +")
    assert first.to_dict()["log_odds"]["n"] == 30


def test_words_of_every_script_are_whole() -> None:
    """Vowel signs and accents are marks, which Python does not count among letters."""
    made = table(["हिन्दी में", "e\u0301le\u0300ve", "نَعَم"], ["ภาษาที่ดี", "élève", "x"])
    found = {one.word for one in pi.salient_words(made, floor=1)}
    assert {"हिन्दी", "में", "ภาษาที่ดี", "élève", "نَعَم"} <= found


def test_what_is_no_table_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="PersonaTable, not list"):
        pi.salient_words([])  # type: ignore[arg-type]


@pytest.mark.heavy
def test_the_intervals_hold_the_true_ratio() -> None:
    """Of words that 30 % of one side say and 5 % of the other; 95 % are promised."""
    draw, held, truth = random.Random(0), 0, math.log(0.3 / 0.7) - math.log(0.05 / 0.95)
    for _ in range(40):
        sides = [
            [
                " ".join([*draw.sample(WORDS, 2), *(["frank"] if draw.random() < p else [])])
                for _ in range(200)
            ]
            for p in (0.3, 0.05)
        ]
        ratio = by_word(pi.salient_words(table(*sides)))["frank"].log_odds
        held += ratio.low <= truth <= ratio.high
    assert held >= 34


def test_a_prior_shrinks_the_ratio() -> None:
    chosen = ["frank" if n < 60 else "calm" for n in range(100)]
    pairs = table(chosen, chosen[::-1][:40] + ["calm"] * 60)
    free, shrunk = (by_word(pi.salient_words(pairs, prior=p))["frank"] for p in (None, 100))
    assert 0 < shrunk.log_odds.value < free.log_odds.value


def test_a_word_of_both_sides_marks_neither() -> None:
    found = by_word(pi.salient_words(table(["calm sea"] * 12, ["calm hills"] * 12)))
    assert found["calm"].side is None
    assert "neither side" in str(found["calm"])
    swapped = by_word(pi.salient_words(table(["calm hills"] * 12, ["calm sea"] * 12)))
    assert (found["sea"].side, swapped["sea"].side) == ("chosen", "rejected")
    assert swapped["calm"].side is None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"stop_words": "the"}, "stop_words='the'"),
        ({"lemmatize": lambda word: None}, "lemmatize= gave None"),
        ({"lemmatize": lambda word: ""}, "lemmatize= gave ''"),
    ],
)
def test_what_is_no_word_is_refused(option: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        pi.salient_words(table(["calm"] * 12, ["busy"] * 12), **option)
