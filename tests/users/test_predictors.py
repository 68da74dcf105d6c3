"""Predictions by embeddings, and scores that conditions share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError, ModelError
from personainfer.records import FloatArray, Message
from personainfer.users import TasteSimilarity
from personainfer.users.predictors import Case, predictor_of, tastes_in

SUBJECTS = ("cats", "ships", "tax", "bikes")


def embed(texts: Sequence[str]) -> FloatArray:
    """One dimension a subject that a text names, and one that all texts share."""
    return np.array([[1.0, *(float(word in text) for word in SUBJECTS)] for text in texts])


def persona(text: str) -> tuple[Message, ...]:
    prefix = pi.persona_prefix("persona", personas={"ann": text})
    return prefix.messages("ann", "What is new?")


def test_a_list_of_tastes_is_read_as_it_was_written() -> None:
    found = tastes_in(persona("The user likes: bikes; cats.\n\nThe user dislikes: tax.")[0].content)
    assert found == (("bikes", "cats"), ("tax",))


@pytest.mark.parametrize(
    ("text", "likes", "dislikes"),
    [
        ("The user prefers cats, and avoids tax.", ("prefers cats",), ("avoids tax",)),
        ("The user is calm. They dislike ships!", ("is calm",), ("dislike ships!",)),
        ("The user opposes bikes but likes cats", (), ("opposes bikes but likes cats",)),
        ("The user likes: Tax! I oppose ships.; cats", ("Tax! I oppose ships", "cats"), ()),
        ("The user is calm.\n\nThe user dislikes: tax. Really", ("is calm",), ("tax. Really",)),
        ("", (), ()),
    ],
)
def test_sentences_say_whether_they_are_dislikes(
    text: str, likes: tuple[str, ...], dislikes: tuple[str, ...]
) -> None:
    assert tastes_in(text) == (likes, dislikes)


def test_of_examples_the_preferred_responses_are_likes() -> None:
    choice = pi.Preference(prompt="Which?", chosen="cats", rejected="tax", user="ann")
    prefix = pi.persona_prefix("few-shot", history=[choice], k=1, show="both")
    assert tastes_in(prefix.text("ann", "What else?")) == (("cats",), ("tax",))


def test_a_response_near_to_the_likes_scores_higher() -> None:
    score = TasteSimilarity(embed)
    chats = [persona("The user likes: bikes.\n\nThe user dislikes: tax.")] * 3
    bikes, tax, neither = score(chats, ["More bikes!", "More tax!", "Hello."])
    assert bikes > neither > tax
    assert bikes == pytest.approx(-tax)


def test_without_a_persona_only_the_prior_counts() -> None:
    bare = (Message(role="user", content="What is new?"),)
    assert TasteSimilarity(embed)([bare, bare], ["cats", "tax"]).tolist() == [0.0, 0.0]
    seen: list[object] = []

    def prior(prompts: Sequence[object], responses: Sequence[str]) -> list[float]:
        seen.extend(prompts)
        return [float(len(text)) for text in responses]

    likes = persona("The user likes: cats.")
    found = TasteSimilarity(embed, prior=prior, scale=100.0)([bare, likes], ["ships", "cats"])
    assert found[0] == 5.0
    assert found[1] == pytest.approx(4.0 + 100.0)
    assert seen == ["What is new?"] * 2  # without the persona


def test_it_selects_among_explanations_and_is_still_a_scorer_of_responses() -> None:
    pairs = [pi.Preference(prompt="?", chosen="bikes", rejected="tax", user="ann")] * 2
    score = TasteSimilarity(embed, prior=lambda prompts, responses: np.zeros(len(responses)))
    found = score.explains(pairs, [pi.Persona.parse("The user likes: bikes."), "He avoids bikes."])
    assert found[0] > 0 > found[1]
    case = Case(pairs[0], "", (Message(role="user", content="?"),))
    assert predictor_of(score)([case]).margins.tolist() == [
        0.0
    ]  # by the prior, as there is no persona


def test_each_text_is_embedded_once() -> None:
    asked: list[str] = []

    def counting(texts: Sequence[str]) -> FloatArray:
        asked.extend(texts)
        return embed(texts)

    score = TasteSimilarity(counting)
    for _ in range(2):
        score([persona("The user likes: cats.")] * 2, ["cats", "tax"])
    assert sorted(asked) == ["cats", "tax"]


def test_bad_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match="scale"):
        TasteSimilarity(embed, scale=0)
    with pytest.raises(ModelError, match="shape"):
        TasteSimilarity(lambda texts: np.zeros(3))([persona("The user likes: cats.")], ["cats"])


def test_a_response_is_scored_once_after_equal_conversations() -> None:
    """Two pairs of one prompt share a response."""
    asked: list[str] = []

    def scorer(chats: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
        asked.extend(responses)
        return [float(len(text)) for text in responses]

    chat = (Message(role="user", content="Which?"),)
    pairs = [("a", "bbb"), ("bbb", "cc"), ("a", "cc")]
    choices = [pi.Preference(prompt="Which?", chosen=one, rejected=other) for one, other in pairs]
    predict = predictor_of(scorer)
    found = predict([Case(choice, "", chat) for choice in choices])
    assert found.margins.tolist() == [-2.0, 1.0, -1.0]
    assert sorted(asked) == ["a", "bbb", "cc"]
    assert predict([]).margins.tolist() == []
