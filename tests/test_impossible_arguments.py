"""Public functions of all packages name an argument that cannot be one, in an error of the tree."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError
from personainfer.personas import place_persona, prompt_messages
from personainfer.scoring import word_features
from personainfer.simulation import (
    entropy_by_word,
    feature_regression,
    persona_groups,
    plot_salient_words,
    plot_winners,
    reproduce,
    score_responses,
)
from personainfer.tailoring import (
    choose_system_persona,
    fit_user_weights,
    reward_accuracy,
    words,
)
from personainfer.users import UserPersonas, nearest_users, user_vectors

from .builders import table

PAIR = pi.Preference(prompt="q", chosen="a", rejected="b", user="ann")
USERS = UserPersonas(())

# Calls of public functions with arguments that no type checker passes.
NOTHING: Any = None
MATRIX = pi.RewardMatrix([[[0.0], [1.0]]], models=["m"], prompts=["q"], responses=[["a", "b"]])
POSTERIOR = pi.PersonaPosterior(["calm"])
EXPLAINER: Any = SimpleNamespace(explains=len, lift=len)
REWARD = pi.persona_reward(EXPLAINER)
CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a bool as a place": (lambda t: t[True], "the place of a row, or a slice"),
    "nothing as a place": (lambda t: USERS[NOTHING], r"users\.personas"),
    "users' rows": (lambda t: UserPersonas(NOTHING), "rows= is None"),
    "candidates": (lambda t: pi.PersonaPosterior(NOTHING), "personas= is None"),
    "posteriors": (
        lambda t: pi.PersonaPosterior.fit_common_temperature(NOTHING, []),
        "posteriors= is None",
    ),
    "a posterior": (
        lambda t: pi.PersonaPosterior.fit_common_temperature([NOTHING], [[[1.0]]]),
        "posteriors=None",
    ),
    "bounds": (lambda t: POSTERIOR.fit_temperature([[1.0]], NOTHING), "bounds=None"),
    "word features": (lambda t: word_features(["q"], [NOTHING]), r"responses\[0\]=None"),
    "vectors of users": (lambda t: nearest_users(NOTHING), "vectors=None is not a mapping"),
    "users asked": (lambda t: nearest_users({"a": [1.0]}, of=3), "of= is a single int"),  # type: ignore[arg-type]
    "no embedder": (lambda t: user_vectors([PAIR], NOTHING), "embed=None"),
    "votes": (lambda t: entropy_by_word(NOTHING, []), "found=None"),
    "a regression": (lambda t: feature_regression(NOTHING, MATRIX), "users=None"),
    "groups of": (lambda t: persona_groups(NOTHING), "table=None"),
    "prompts": (lambda t: MATRIX.like(MATRIX.rewards, prompts=3), "prompts= is a single int"),  # type: ignore[arg-type]
    "messages": (
        lambda t: MATRIX.like(MATRIX.rewards, prompts=[[{"role": "user"}]]),  # type: ignore[list-item]
        r"prompts\[0\] is neither",
    ),
    "costs": (lambda t: pi.RewardMatrix([[[0.0], [1.0]]], models=["m"], costs=3), "costs= is a"),  # type: ignore[arg-type]
    "places": (lambda t: MATRIX.take(NOTHING), "prompts=None is not a list of places"),
    "scorers": (lambda t: pi.RewardMatrix.from_scorers({"m": 1}, ["q"], [["a"]]), "scorers="),  # type: ignore[dict-item]
    "responses": (
        lambda t: pi.RewardMatrix.from_scorers({"m": lambda asked, said: []}, ["q"], [NOTHING]),
        r"rewards has the shape",
    ),
    "lifts": (lambda t: pi.RewardMatrix.from_lifts(NOTHING, {}, [], []), "has no method lift"),
    "personas of lifts": (
        lambda t: pi.RewardMatrix.from_lifts(EXPLAINER, NOTHING, [], []),
        "personas=None",
    ),
    "a plot": (lambda t: plot_winners(NOTHING), "votes=None"),
    "words of a plot": (lambda t: plot_salient_words(["word"]), "words='word'"),  # type: ignore[list-item]
    "prompts of rewards": (
        lambda t: reward_accuracy([1.0], [0.0], NOTHING),
        "prompts= is None",
    ),
    "no words": (lambda t: words(NOTHING), "text=None is not text"),
    "a persona": (lambda t: place_persona("q", 3, "user"), "persona=3 is neither"),  # type: ignore[arg-type]
    "no prompt": (lambda t: place_persona(NOTHING, "calm", "user"), "prompt=None is neither"),
    "an empty chat": (lambda t: prompt_messages(()), r"prompt=\(\) is neither"),
    "a prefix's user": (lambda t: pi.persona_prefix("none").text([], "q"), r"user=\[\]"),  # type: ignore[arg-type]
    "a prefix's prompt": (
        lambda t: pi.persona_prefix("none").messages("ann", NOTHING),
        r"prompts\[0\]=None",
    ),
    "roles": (lambda t: pi.persona_reward(EXPLAINER, columns=3), "columns=3 is not a mapping"),  # type: ignore[arg-type]
    "completions": (
        lambda t: REWARD(["p"], [3], question=["q"], chosen=["a"], rejected=["b"]),
        r"completions\[0\]=3",
    ),
    "a short column": (
        lambda t: REWARD(["p"], ["The user is calm."], question=["q"], chosen=["a"], rejected=[]),
        "1 completions, 0 values of the column 'rejected'",
    ),
    "no column": (
        lambda t: REWARD(["p"], ["calm"], question=NOTHING, chosen=["a"], rejected=["b"]),
        "question= is None",
    ),
    "system personas": (
        lambda t: choose_system_persona(NOTHING, [PAIR], EXPLAINER),
        "personas= is None",
    ),
    "rows of a paper": (lambda t: reproduce("pi", NOTHING), "data=None is neither"),
    "a row of a paper": (lambda t: reproduce("pi", ["q"]), r"data\[0\]='q' is not a dict"),  # type: ignore[list-item]
    "responses of users": (
        lambda t: score_responses(NOTHING, NOTHING, MATRIX, {}, prompts=[], reference=[]),
        "responses= is None",
    ),
    "bytes as a model": (lambda t: pi.LLM(b"x"), "model=b'x'"),  # type: ignore[arg-type]
    "bytes as a folder": (lambda t: pi.LLM("x", cache_dir=b"x"), "cache_dir=b'x'"),  # type: ignore[arg-type]
    "bytes as a key": (lambda t: pi.LLM("x", api_key=b"sk-secret"), "^api_key= must be"),  # type: ignore[arg-type]
    "no name of an embedder": (
        lambda t: pi.PersonaRetriever(["q"], ["calm"], model=""),
        "model= is the name of no model",
    ),
    "ids of nothing": (
        lambda t: pi.PersonaRetriever(["q"], ["calm"], ids=5),  # type: ignore[arg-type]
        "ids= is a single int",
    ),
    "a place as a column": (lambda t: pi.persona_reward(EXPLAINER, choices=5), "choices=5"),  # type: ignore[arg-type]
    "no basis": (lambda t: fit_user_weights([[]], [0]), "margins= holds no basis"),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_that_cannot_be_is_named(name: str) -> None:
    call, said = CALLS[name]
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        call(table())
    if said.partition("=")[0].isidentifier():
        assert caught.value.argument == said.partition("=")[0]
