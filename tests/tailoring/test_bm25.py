"""BM25 against scores computed by hand."""

from __future__ import annotations

import math

import pytest

from personainfer.tailoring.bm25 import BM25, words

TEXTS = ["Tea with milk", "Coffee, coffee and more coffee!", "Green tea or black tea?"]


def weight(documents: int, times: int, length: int, *, k1: float = 1.2, b: float = 0.75) -> float:
    """Of a word that so many of the three texts hold, in a text of that length; the mean length is 13/3."""
    rarity = math.log(1 + (3 - documents + 0.5) / (documents + 0.5))
    return rarity * times * (k1 + 1) / (times + k1 * (1 - b + b * length / (13 / 3)))


def test_scores_by_hand() -> None:
    tea = BM25(TEXTS).scores("tea")
    assert tea == pytest.approx([weight(2, 1, 3), 0, weight(2, 2, 5)])
    coffee = BM25(TEXTS).scores("COFFEE?")
    assert coffee == pytest.approx([0, weight(1, 3, 5), 0])
    assert coffee[1] == pytest.approx(
        math.log(1 + 2.5 / 1.5) * 6.6 / (3 + 1.2 * (0.25 + 0.75 * 15 / 13))
    )


def test_words_of_a_query_add_up_as_often_as_they_come() -> None:
    index = BM25(TEXTS, k1=2.0, b=0.5)
    both = index.scores("milk tea tea unknown")
    assert both == pytest.approx(
        [
            weight(1, 1, 3, k1=2.0, b=0.5) + 2 * weight(2, 1, 3, k1=2.0, b=0.5),
            0,
            2 * weight(2, 2, 5, k1=2.0, b=0.5),
        ]
    )


def test_a_word_in_every_text_never_counts_against_one() -> None:
    assert (BM25(["a b", "a c"]).scores("a") > 0).all()


def test_texts_without_words_score_nothing() -> None:
    assert BM25(["", "?!"]).scores("tea").tolist() == [0, 0]
    assert BM25(["", "tea"]).scores("").tolist() == [0, 0]
    assert BM25([]).scores("tea").tolist() == []


def test_words_of_scripts_without_spaces_are_characters() -> None:
    assert words("Straße in Kraków_2, l'été") == ["strasse", "in", "kraków", "2", "l", "été"]
    assert words("お茶 OK") == ["お", "茶", "ok"]
    assert BM25(["咖啡", "绿茶"]).scores("茶")[1] > 0


def test_an_accent_is_the_same_in_either_encoding() -> None:
    assert words("Cafe\u0301") == words("CAF\u00c9") == ["caf\u00e9"]


@pytest.mark.parametrize(
    "text", ["कॉफी का दाम", "உலகம் நல்லது", "bre\u0304ve re\u0331ponse", "קְצָרוֹת"]
)
def test_marks_belong_to_their_words(text: str) -> None:
    assert len(words(text)) == len(text.split())
