"""How well prefixes let a scorer predict: known answers, controls, folds, groups, and bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import personainfer as pi
from personainfer.exceptions import (
    DataError,
    InvalidArgumentError,
    PersonaInferError,
    UnknownOptionError,
)
from personainfer.records import Message
from personainfer.testing import FakeLLM, Reply
from personainfer.users import UserPersona, UserPersonas
from personainfer.users.prefixes import Prefix
from personainfer.users.records import UserRow

from ..scoring_server import ScoringServer

TASTE = {"ann": "short", "bob": "long", "cy": "short", "dee": "long", "eve": "short", "fay": "long"}


def choice(user: str, number: int, **changes: Any) -> dict[str, Any]:
    """Somebody prefers short responses, or long ones."""
    short, long = f"Yes, {number}.", f"Yes, {number}, and here is at length why that is so."
    chosen, rejected = (short, long) if TASTE.get(user) == "short" else (long, short)
    row = {"user_id": user, "id": f"{user}{number}", "prompt": f"Question {number}?"}
    return {**row, "chosen": chosen, "rejected": rejected, **changes}


def held_out(count: int = 4, users: Sequence[str] = tuple(TASTE)) -> list[dict[str, Any]]:
    return [choice(user, number) for user in users for number in range(count)]


def personas(users: Sequence[str] = tuple(TASTE)) -> Prefix:
    said = {user: f"The user likes {TASTE[user]} answers." for user in users}
    return pi.persona_prefix("persona", personas=said)


def obeys(conversations: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
    """Scores a response by the length that is asked for; without a wish all are alike."""
    scores = []
    for turns, response in zip(conversations, responses, strict=True):
        said = turns[0].content
        wish = 1.0 if "likes long" in said else -1.0 if "likes short" in said else 0.0
        scores.append(wish * len(response))
    return scores


def prefers_long(conversations: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """As `obeys`, but likes long responses anyhow, far more."""
    wishes = obeys(conversations, responses)
    return [wish + 10.0 * len(text) for wish, text in zip(wishes, responses, strict=True)]


# Known answers


def test_the_right_persona_predicts_every_choice_and_no_prefix_none() -> None:
    found = pi.evaluate_prefixes({"persona": personas()}, held_out(), obeys)
    assert list(found.prefixes) == ["none", "persona"]
    none, persona = found.prefixes.values()
    assert none.accuracy.value == 0.5  # every choice a tie
    assert none.shuffled is None
    assert persona.accuracy.value == 1.0
    assert persona.accuracy.n == len(TASTE)  # users are what is resampled
    assert persona.accuracy.low < 1.0
    assert persona.gain.value == 0.5
    assert persona.trained is None
    assert "24 choices of 6 users" in str(found)


def test_another_user_s_persona_is_the_control() -> None:
    users = ("ann", "bob")  # each gets the persona of the other, who has the opposite taste
    found = pi.evaluate_prefixes({"persona": personas(users)}, held_out(4, users), obeys)
    persona = found.prefixes["persona"]
    assert persona.shuffled is not None
    assert persona.own_gain is not None
    assert persona.shuffled.value == 0.0
    assert persona.own_gain.value == 1.0


def test_lift_takes_away_what_the_scorer_likes_anyhow() -> None:
    prefixes = {"persona": personas()}
    plain = pi.evaluate_prefixes(prefixes, held_out(), prefers_long)
    assert plain.prefixes["persona"].accuracy.value == 0.5  # right for those who like long ones
    lifted = pi.evaluate_prefixes(prefixes, held_out(), prefers_long, lift=True)
    assert lifted.prefixes["persona"].accuracy.value == 1.0
    assert lifted.prefixes["none"].accuracy.value == 0.5  # by its own margins
    assert lifted.prefixes["persona"].gain.value == 0.5


def test_margins_are_those_of_a_plain_loop() -> None:
    data = held_out(3)
    prefix = personas()
    found = pi.evaluate_prefixes({"persona": prefix}, data, prefers_long)
    by_hand = []
    for row in data:
        messages = prefix.messages(row["user_id"], row["prompt"])
        chosen, rejected = prefers_long([messages] * 2, [row["chosen"], row["rejected"]])
        by_hand.append(chosen - rejected)
    assert_allclose(found.margins["persona"], by_hand)
    assert [one.id for one in found.choices] == [row["id"] for row in data]


def test_every_kind_of_prefix_is_evaluated() -> None:
    history = [
        pi.Preference(prompt=f"Past {n}?", chosen="likes long", rejected="No.", user=user)
        for user in TASTE
        for n in range(3)
    ]
    prefixes: dict[str, Any] = {
        "tag": pi.persona_prefix("tag"),
        "name": pi.persona_prefix("name"),
        "few-shot": pi.persona_prefix("few-shot", history=history),
        "persona": personas(),
    }
    found = pi.evaluate_prefixes(prefixes, held_out(), obeys)
    assert found.prefixes["tag"].accuracy.value == 0.5
    assert found.prefixes["tag"].shuffled is None  # it knows no users to shuffle
    assert found.prefixes["few-shot"].accuracy.value == 0.5  # right for half of the users
    assert found.prefixes["few-shot"].shuffled is not None


def test_accuracy_that_follows_the_baseline_is_seen() -> None:
    """Where a prefix changes nothing, its accuracy by user is the baseline's."""
    found = pi.evaluate_prefixes({"tag": pi.persona_prefix("tag")}, held_out(), prefers_long)
    assert found.prefixes["tag"].with_baseline.value == pytest.approx(1.0)
    steady = pi.evaluate_prefixes({"persona": personas()}, held_out(), prefers_long, lift=True)
    assert np.isnan(steady.prefixes["persona"].with_baseline.value)  # 1 for every user


# Who scores


@pytest.mark.heavy
def test_a_likelihood_scores_by_the_mean_over_tokens() -> None:
    data = held_out(2, ("ann", "bob"))
    with ScoringServer("llama.cpp") as server:
        model = pi.Likelihood("tiny", api_base=server.api_base)
        found = pi.evaluate_prefixes({"persona": personas()}, data, model)
        prefix = personas()
        for place, row in enumerate(data):
            prompt = prefix.messages(row["user_id"], row["prompt"])
            chosen, rejected = (
                model.log_likelihood([prompt], [None], [row[side]])[0] / len(row[side].encode())
                for side in ("chosen", "rejected")
            )
            assert found.margins["persona"][place] == pytest.approx(chosen - rejected)


def test_a_judge_is_asked_in_both_orders(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    def answer(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        first, second = (said.split(f"<response_{n}>\n")[1].split("\n</response")[0] for n in "12")
        longer = "1" if len(first) > len(second) else "2"
        if "likes long" in said:
            return {"answer": longer}
        return {"answer": "12".replace(longer, "")} if "likes short" in said else {"answer": "1"}

    llm.reply = answer
    model = endpoint.pop("model")
    found = pi.evaluate_prefixes({"persona": personas()}, held_out(2), model, **endpoint)
    assert found.prefixes["persona"].accuracy.value == 1.0
    assert found.prefixes["none"].accuracy.value == 0.5  # always the first: a tie of the orders
    assert "Nothing is known" in str(llm.requests)


def test_no_question_is_asked_twice_for_the_lift(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    llm.reply, model = {"answer": "1"}, endpoint.pop("model")
    prefixes = {"persona": personas(("ann",))}
    limits: dict[str, Any] = {"cache": False, "max_concurrency": 1}
    pi.evaluate_prefixes(prefixes, held_out(2, ("ann",)), model, lift=True, **endpoint, **limits)
    assert (llm.calls > 0, llm.repeats) == (True, 0)


def test_the_budget_is_that_of_all_folds_and_of_the_untuned_judge_together() -> None:
    taken: list[int] = []

    def script(body: dict[str, Any]) -> Reply:
        taken.append(100)
        return Reply({"answer": "1"}, completion_tokens=100)

    limits: dict[str, Any] = {"budget": 500, "prices": (0, 1e6), "max_tokens": 100}
    with FakeLLM(script) as server, suppress(PersonaInferError):
        pi.evaluate_prefixes(
            {"persona": lambda _: personas()},
            held_out(),
            fit=lambda _: "tuned",
            untuned="untuned",
            folds=2,
            api_base=server.api_base,
            cache=False,
            **limits,
        )
    assert sum(taken) == 500


def test_anything_that_explains_scores() -> None:
    class ByLength:
        def explains(self, preferences: Sequence[pi.Preference], personas: Sequence[str]) -> Any:
            return [
                (len(pair.chosen) - len(pair.rejected)) * (1 if "likes long" in said else -1)
                for pair, said in zip(preferences, personas, strict=True)
            ]

    found = pi.evaluate_prefixes({"persona": personas()}, held_out(), ByLength())
    assert found.prefixes["persona"].accuracy.value == 1.0


# Folds


def test_a_prefix_of_other_users_never_knows_the_user_it_is_tested_on() -> None:
    seen: list[tuple[str, ...]] = []

    def crowd(trained: tuple[str, ...]) -> Prefix:
        seen.append(trained)
        return pi.persona_prefix("persona", personas=dict.fromkeys(TASTE, f"Not {trained}"))

    asked: list[tuple[str, str]] = []

    def scorer(conversations: Sequence[Any], responses: Sequence[str]) -> list[float]:
        asked.extend((turns[0].content, turns[-1].content) for turns in conversations)
        return [0.0] * len(responses)

    data = [choice(user, 0, prompt=f"Asks {user}?") for user in TASTE]
    pi.evaluate_prefixes({"crowd": crowd}, data, scorer, folds=3, draw_seed=5)
    assert [len(trained) for trained in seen] == [4, 4, 4]
    assert set.union(*(set(TASTE) - set(trained) for trained in seen)) == set(TASTE)
    unseen = {
        user
        for before, prompt in asked
        for user in TASTE
        if prompt == f"Asks {user}?" and "Not (" in before and f"'{user}'" not in before
    }
    assert unseen == set(TASTE)


def test_what_is_fitted_is_tested_on_trained_and_on_unseen_users() -> None:
    def fit(trained: tuple[str, ...]) -> Any:
        """A scorer that knows the taste of those it saw, by their tag."""
        tags = {pi.persona_prefix("tag").text(user, ""): TASTE[user] for user in trained}

        def scorer(conversations: Sequence[Any], responses: Sequence[str]) -> list[float]:
            tastes = [tags.get(turns[0].content, "") for turns in conversations]
            sign = {"short": -1.0, "long": 1.0, "": 0.0}
            return [sign[taste] * len(text) for taste, text in zip(tastes, responses, strict=True)]

        return scorer

    found = pi.evaluate_prefixes({"tag": pi.persona_prefix("tag")}, held_out(), fit=fit, folds=3)
    tag = found.prefixes["tag"]
    assert tag.trained is not None
    assert (tag.accuracy.value, tag.trained.value) == (0.5, 1.0)
    assert "trained users" in str(found)


def test_one_group_is_left_out_at_a_time() -> None:
    diet = {"ann": "vegan", "bob": "vegan", "cy": "none", "dee": "none", "eve": "fish"}
    seen = []

    def crowd(trained: tuple[str, ...]) -> Prefix:
        seen.append(set(trained))
        return personas()

    found = pi.evaluate_prefixes(
        {"crowd": crowd}, held_out(), obeys, folds="diet", groups={"diet": diet}
    )
    everybody = set(TASTE)
    assert seen == [everybody - {"eve"}, everybody - {"cy", "dee"}, everybody - {"ann", "bob"}]
    assert found.prefixes["crowd"].accuracy.n == 5  # fay has no diet, and is in no test
    assert "4 choices of users that no fold leaves out" in str(found)


# Leaks


def test_a_persona_is_not_evaluated_on_the_choices_that_it_was_made_from() -> None:
    """It may repeat them. Only a gold persona may know the answers."""
    asked: list[object] = []

    def never(*_: Any) -> list[float]:
        asked.append(None)
        return []

    texts = {"chosen": "Yes, 1.", "rejected": "Yes, 1, and HERE is at length  why that is so."}
    seen = pi.Preference(prompt="Question 1?", id="earlier", user="ann", **texts)
    said = UserPersona(user="ann", background="Brief.", preferences="Short.", pairs=1)
    made = UserPersonas((UserRow(user="ann", persona=said, choices=(seen,)),))
    with pytest.raises(DataError, match="1 of 24 held-out choices are among those"):
        pi.evaluate_prefixes({"p": pi.persona_prefix("persona", personas=made)}, held_out(), never)
    with pytest.raises(DataError, match="'ann1' of user 'ann'"):
        pi.evaluate_prefixes(
            {"p": lambda _: pi.persona_prefix("persona", personas=made)}, held_out(), never
        )
    assert not asked
    other = [row for row in held_out() if row["id"] != "ann1"]
    for kind, data in (("gold", held_out()), ("persona", other)):
        prefix = pi.persona_prefix(kind, personas=made)  # type: ignore[arg-type]
        assert pi.evaluate_prefixes({"p": prefix}, data, obeys).prefixes["p"].accuracy.n == 1


def test_choices_of_a_user_without_a_persona_are_no_leak() -> None:
    """Its model failed: nothing was made from them."""
    texts = {"chosen": "Yes, 1.", "rejected": "Yes, 1, and here is at length why that is so."}
    seen = pi.Preference(prompt="Question 1?", id="1", user="ann", **texts)
    said = UserPersona(user="bob", background="Brief.", preferences="Long.", pairs=1)
    rows = (
        UserRow(user="ann", persona=None, error="no reply", choices=(seen,)),
        UserRow(user="bob", persona=said),
    )
    prefix = pi.persona_prefix("persona", personas=UserPersonas(rows))
    found = pi.evaluate_prefixes({"p": prefix}, held_out(), obeys).prefixes["p"]
    assert (found.accuracy.n, found.unknown) == (1, 20)


# Questions, groups, sentences


def test_clashing_and_personal_questions_are_told_apart() -> None:
    """All ask the same questions, and two tastes clash on each; own ones are personal."""
    own = [choice(user, 90 + n, prompt=f"Only of {user}?") for n, user in enumerate(TASTE)]
    found = pi.evaluate_prefixes(
        {"persona": personas()}, held_out(2) + own, obeys, questions="find"
    )
    assert [*found.questions].count("personal") == len(TASTE)
    assert [*found.questions].count("clashing") == 2 * len(TASTE)
    assert {k: v.value for k, v in found.prefixes["persona"].questions.items()} == {
        "clashing": 1.0,
        "personal": 1.0,
    }
    named = pi.evaluate_prefixes(
        {"persona": personas()}, held_out(2), obeys, questions={"ann0": "divergent"}
    )
    assert list(named.prefixes["persona"].questions) == ["divergent"]


def test_all_choices_with_the_id_of_a_question_have_its_kind() -> None:
    data = held_out(4)
    for number, row in enumerate(data):
        row["id"] = f"q{number % 2}"  # two choices of each user on each question
    kinds = {"q0": "personal", "q1": "divergent"}
    found = pi.evaluate_prefixes({"persona": personas()}, data, obeys, questions=kinds)
    assert found.questions == ("personal", "divergent") * (len(data) // 2)
    own = {str(choice.id): str(place) for place, choice in enumerate(found.choices[:4])}
    again = pi.evaluate_prefixes({"persona": personas()}, data, obeys, questions=own)
    assert again.questions[:4] == ("0", "1", "2", "3")


def test_questions_of_no_choice_are_not_passed_over() -> None:
    asked: list[object] = []

    def never(*_: Any) -> list[float]:
        asked.append(None)
        return []

    with pytest.raises(InvalidArgumentError, match="questions= has none of the 24 choices"):
        pi.evaluate_prefixes({"persona": personas()}, held_out(), never, questions={"zoe0": "x"})
    assert not asked
    data = [row | {"id": float(n)} for n, row in enumerate(held_out())]
    found = pi.evaluate_prefixes({"persona": personas()}, data, obeys, questions={3.0: "x"})  # type: ignore[dict-item]
    assert found.prefixes["persona"].questions["x"].n == 1


def test_users_without_a_value_are_told_of() -> None:
    diet = {"ann": "vegan", "bob": "none", "cy": None, "dee": "none", "eve": 1, "fay": 1.0}
    found = pi.evaluate_prefixes({"persona": personas()}, held_out(), obeys, groups={"diet": diet})
    assert set(found.equity[0].groups) == {"vegan", "none", "1"}
    assert "1 users without a value of diet, left out of its groups." in found.remarks()


def test_a_prefix_that_serves_one_group_only_is_seen() -> None:
    users = [f"u{n}" for n in range(24)]
    group = {user: "served" if n < 12 else "not" for n, user in enumerate(users)}
    said = {u: f"The user likes {'long' if group[u] == 'served' else 'short'} ones." for u in users}
    data = [choice(user, n) for user in users for n in range(3)]  # all prefer long responses
    prefix = pi.persona_prefix("persona", personas=said)
    found = pi.evaluate_prefixes({"persona": prefix}, data, obeys, groups={"kind": group})
    assert [(one.prefix, one.measure) for one in found.equity] == [
        ("none", "accuracy"),
        ("persona", "accuracy"),
        ("persona", "gain"),
    ]
    none, accuracy, gain = found.equity
    assert np.isnan(none.p)  # 0.5 for everybody: there is nothing to test
    assert {k: v.value for k, v in accuracy.groups.items()} == {"served": 1.0, "not": 0.0}
    assert accuracy.gap == gain.gap == 1.0
    assert accuracy.adjusted_p == pytest.approx(2 * accuracy.p)  # of the two that could be made
    assert accuracy.adjusted_p < 0.01
    assert "gap 1.000" in str(found)


def test_the_sentence_that_moves_the_decision_is_found() -> None:
    said = {u: f"The user is here. The user likes {t} answers. Fine." for u, t in TASTE.items()}
    prefix = pi.persona_prefix("persona", personas=said)
    found = pi.evaluate_prefixes({"persona": prefix}, held_out(), obeys, attribute=["persona"])
    attribution = found.attribution["persona"]
    assert {one.sentence for one in attribution.strongest(12)} == {
        "The user likes short answers.",
        "The user likes long answers.",
    }
    assert {one.place for one in attribution.strongest(12)} == {2}
    assert all(one.effect == 0 for one in attribution.effects if one.place != 2)
    assert found.to_dict()["attribution"]["persona"][1]["right"]["value"] > 0


@pytest.mark.parametrize(
    "named",
    [
        "".join,
        set,
        lambda names: dict.fromkeys(names).keys(),
        iter,
        np.array,
        lambda names: pd.Series(names, index=[5]),
    ],
    ids=["text", "set", "keys", "iterator", "array", "column"],
)
def test_prefixes_can_be_named_in_any_collection_or_one_by_itself(
    named: Callable[[list[str]], Any],
) -> None:
    prefixes, names = {"persona": personas()}, named(["persona"])
    found = pi.evaluate_prefixes(prefixes, held_out(), obeys, attribute=names, ablations=2)
    assert list(found.attribution) == ["persona"]


def test_values_that_are_missing_are_no_group_and_ids_may_be_numbers() -> None:
    numbers = {user: number for number, user in enumerate(TASTE)}
    data = [{**row, "user_id": numbers[row["user_id"]]} for row in held_out()]
    age: dict[Any, Any] = dict(enumerate([30, 30, 40, 40, None, float("nan")]))
    prefixes = {"tag": pi.persona_prefix("tag")}
    found = pi.evaluate_prefixes(prefixes, data, prefers_long, groups={"age": age})
    one = found.equity[0]
    assert list(one.groups) == ["30", "40"]
    assert one.without == 2


# What was cut, what failed, and what a prefix lacks


@pytest.mark.heavy
def test_kinds_of_questions_may_be_numbers_or_missing() -> None:
    data = [{**row, "id": str(n)} for n, row in enumerate(held_out(1))]
    kinds: Any = {0: 1, "1": 1, "2": None, "3": float("nan"), "4": "", "5": "other"}
    found = pi.evaluate_prefixes({"persona": personas()}, data, obeys, questions=kinds)
    told = {kind: one.n for kind, one in found.prefixes["persona"].questions.items()}
    assert told == {"1": 2, "other": 1}


@pytest.mark.heavy
def test_a_long_prefix_is_never_cut_away() -> None:
    """Two examples of 3,500 characters are before the prompt, and change the margins."""
    long = {user: f"The user likes {taste} answers. " * 110 for user, taste in TASTE.items()}
    prefixes = {
        role: pi.persona_prefix("persona", personas=long, role=role) for role in ("system", "user")
    }
    data = held_out(1, ("ann", "bob"))
    with ScoringServer("llama.cpp") as server:
        server.context = 100_000
        found = pi.evaluate_prefixes(prefixes, data, pi.Likelihood("m", api_base=server.api_base))
        prompts = server.bodies("/completion")
    for role in prefixes:
        assert not np.isclose(found.margins[role], found.margins["none"]).any()
        assert found.prefixes[role].turns_cut.choices == 0
    said = ["".join(map(chr, body["prompt"])) for body in prompts]
    assert sum(long["ann"].strip() in text for text in said) >= 4


@pytest.mark.heavy
def test_old_turns_go_before_the_prefix_and_are_counted() -> None:
    talk = [
        {"role": "user", "content": "Old " * 150},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And now?"},
    ]
    data = [choice("ann", 0), choice("bob", 0, prompt=talk), choice("cy", 0, prompt="w" * 900)]
    with ScoringServer("llama.cpp") as server:
        server.context = 700
        model = pi.Likelihood("m", api_base=server.api_base, max_response_tokens=12)
        found = pi.evaluate_prefixes({"persona": personas()}, data, model)
        without = pi.Likelihood("m", api_base=server.api_base)
        whole = pi.evaluate_prefixes({"persona": personas()}, data[:1], without)
    persona, none = found.prefixes["persona"], found.prefixes["none"]
    assert (persona.turns_cut, persona.failed) == ((1, 1), (1, 1))
    assert none.failed == (1, 1)
    assert persona.responses_cut == (2, 2)
    assert np.isnan(found.margins["persona"]).tolist() == [False, False, True]
    assert persona.accuracy.n == 2
    assert "'persona': 1 choices of 1 users: the oldest turns were cut" in str(found)
    assert whole.prefixes["persona"].responses_cut == (0, 0)
    with pytest.raises(DataError, match="every choice"):
        found.without_cuts()


@pytest.mark.heavy
def test_the_numbers_can_be_had_without_the_rows_that_were_cut() -> None:
    talk = [
        {"role": "user", "content": "Old " * 150},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And now?"},
    ]
    data = [*held_out(2, ("ann", "bob")), choice("cy", 0, prompt=talk)]
    group = {"age": {"ann": "old", "bob": "new", "cy": "new"}}
    with ScoringServer("llama.cpp") as server:
        server.context = 700
        model = pi.Likelihood("m", api_base=server.api_base)
        options: dict[str, Any] = {"groups": group, "questions": "find"}
        found = pi.evaluate_prefixes({"persona": personas()}, data, model, **options)
        rest = pi.evaluate_prefixes({"persona": personas()}, data[:-1], model, **options)
    kept = found.without_cuts()
    assert len(found.choices) == 5
    assert kept.choices == rest.choices
    assert kept.prefixes["none"].questions == rest.prefixes["none"].questions
    assert kept.prefixes["persona"].accuracy == rest.prefixes["persona"].accuracy
    assert kept.questions == rest.questions


def test_a_row_without_a_number_is_counted_and_costs_no_other() -> None:
    def some(conversations: Sequence[Any], responses: Sequence[str]) -> list[float]:
        scores = obeys(conversations, responses)
        broken = ["Question 1?" in turns[-1].content for turns in conversations]
        return [np.nan if b else one for b, one in zip(broken, scores, strict=True)]

    found = pi.evaluate_prefixes({"persona": personas()}, held_out(2), some)
    persona = found.prefixes["persona"]
    assert persona.accuracy.value == 1.0
    assert persona.failed == (6, 6)
    assert persona.unknown == 0


def test_prefixes_without_enough_examples_are_counted() -> None:
    """Users whose prompts recur get examples; those with nothing but the asked pair are counted."""
    data = [choice("ann", 0), choice("bob", 0), choice("cy", 0)]
    history = [
        pi.Preference(
            prompt="Question 0?", chosen=f"likes long {n}", rejected=f"No, {n}.", user=user
        )
        for user, count in (("ann", 2), ("bob", 1))
        for n in range(count)
    ]
    asked = data[2]
    history.append(
        pi.Preference(prompt="Other?", chosen=asked["chosen"], rejected="Elsewhere.", user="cy")
    )
    prefix = pi.persona_prefix("few-shot", history=history, k=2)
    found = pi.evaluate_prefixes({"few-shot": prefix}, data, obeys)
    one = found.prefixes["few-shot"]
    assert (one.short, one.empty) == ((1, 1), (1, 1))
    assert found.margins["few-shot"].tolist() != found.margins["none"].tolist()
    assert "'few-shot': 1 choices of 1 users: no example" in str(found)
    assert found.to_dict()["prefixes"]["few-shot"]["empty"] == {"choices": 1, "users": 1}


def test_an_empty_prefix_lifts_nothing() -> None:
    history = [
        pi.Preference(prompt="Old?", chosen=c["chosen"], rejected="-", user=c["user_id"])
        for c in held_out(1)
    ]
    prefix = pi.persona_prefix("few-shot", history=history)
    found = pi.evaluate_prefixes({"few-shot": prefix}, held_out(1), prefers_long, lift=True)
    assert found.margins["few-shot"].tolist() == [0.0] * 6


@pytest.mark.filterwarnings("ignore:the judge gave no usable reply")
def test_replies_that_cannot_be_used_are_counted(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    llm.reply = lambda body: {"answer": "1"} if "likes" in str(body) else "?"
    model = endpoint.pop("model")
    found = pi.evaluate_prefixes({"persona": personas()}, held_out(1), model, **endpoint)
    assert found.prefixes["none"].unusable == (6, 6)
    assert found.prefixes["none"].accuracy.value == 0.0
    assert found.prefixes["persona"].unusable == (0, 0)


# Tuned and untuned


def test_the_gain_of_tuning_is_paired_with_the_same_prefix_untuned() -> None:
    group = {"taste": TASTE}
    found = pi.evaluate_prefixes(
        {"persona": personas()}, held_out(), obeys, untuned=prefers_long, groups=group
    )
    persona = found.prefixes["persona"]
    assert persona.over_untuned is not None
    assert persona.over_untuned.value == 0.5  # untuned: right for those who like long responses
    by_group = {
        (one.prefix, one.measure): {name: each.value for name, each in one.groups.items()}
        for one in found.equity
    }
    assert by_group["persona", "over untuned"] == {"short": 1.0, "long": 0.0}
    assert by_group["none", "over untuned"] == {"short": 0.5, "long": -0.5}
    assert by_group["persona", "gain"] == {"short": 0.5, "long": 0.5}
    assert "over untuned" in str(found)
    alone = pi.evaluate_prefixes({"persona": personas()}, held_out(), prefers_long)
    assert alone.prefixes["persona"].over_untuned is None


def test_an_equal_gain_of_every_user_is_no_certainty() -> None:
    found = pi.evaluate_prefixes({"persona": personas()}, held_out(), obeys)
    gain = found.prefixes["persona"].gain
    assert gain.value == 0.5
    assert -1 < gain.low < 0.1
    assert 0.6 < gain.high < 1


# Bad input


def test_rows_that_are_no_choice_of_a_user_are_counted() -> None:
    data = [
        *held_out(2),
        choice("ann", 0),  # a duplicate
        choice("ann", 7, user_id=None),
        choice("ann", 8, rejected=choice("ann", 8)["chosen"]),
    ]
    found = pi.evaluate_prefixes({"persona": personas()}, data, obeys)
    assert sum(found.skipped.values()) == 3
    assert found.skipped["the user made this choice before"] == 1
    assert len(found.choices) == 12


def test_users_with_one_choice_count_with_it() -> None:
    found = pi.evaluate_prefixes({"persona": personas()}, held_out(1), obeys)
    assert found.prefixes["persona"].accuracy.n == len(TASTE)


def test_users_that_a_prefix_knows_nothing_of_are_counted_and_left_out() -> None:
    found = pi.evaluate_prefixes({"persona": personas(("ann", "bob"))}, held_out(), obeys)
    persona = found.prefixes["persona"]
    assert (persona.unknown, persona.accuracy.n, persona.gain.n) == (16, 2, 2)
    assert "16 choices of users that 'persona' knows nothing of" in str(found)


def test_without_any_choice_there_is_nothing_to_evaluate() -> None:
    with pytest.raises(DataError, match="no row is a choice of a user"):
        pi.evaluate_prefixes(
            {"tag": pi.persona_prefix("tag")}, [choice("ann", 0, user_id="")], obeys
        )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"prefixes": {}}, "prefixes="),
        ({"prefixes": {"persona": "The user is kind."}}, r"prefixes\['persona'\]"),
        ({"prefixes": {"none": personas()}}, "another prefix"),
        ({"scorer": None}, "scorer=, or fit="),
        ({"fit": lambda trained: obeys}, "not both"),
        ({"scorer": 3}, "cannot score"),
        ({"folds": 3}, "nothing to fit"),
        ({"folds": 1, "prefixes": {"a": lambda trained: personas()}}, "folds=1"),
        ({"folds": 7, "prefixes": {"a": lambda trained: personas()}}, "only 6 users"),
        ({"folds": "diet", "prefixes": {"a": lambda trained: personas()}}, "not an attribute"),
        ({"folds": 2, "prefixes": {"a": lambda trained: "text"}}, "is not a prefix"),
        ({"groups": {"diet": "vegan"}}, r"groups\['diet'\]"),
        ({"groups": ["diet"]}, "not a mapping of attributes"),
        ({"questions": "clashing"}, "questions='clashing'"),
        ({"questions": ["clashing"]}, r"questions=\['clashing'\]"),
        ({"scorer": None, "fit": 3}, "fit=3 is not a function"),
        ({"attribute": ["gold"]}, "'gold'"),
        ({"ablations": 1}, "ablations=1"),
        ({"untuned": 3}, "cannot score"),
        ({"confidence": 95}, "confidence"),
        ({"scorer": lambda conversations, responses: [0.0]}, "where 12 are needed"),
        ({"scorer": lambda conversations, responses: [np.nan] * len(responses)}, "NaN"),
        ({"scorer": lambda conversations, responses: [np.inf] * len(responses)}, "infinite"),
        ({"temperature": 0.5}, "temperature= configures a model"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(changes: dict[str, Any], what: str) -> None:
    arguments: dict[str, Any] = {"prefixes": {"persona": personas()}, "scorer": obeys, **changes}
    prefixes = arguments.pop("prefixes")
    scorer = arguments.pop("scorer")
    with pytest.raises((InvalidArgumentError, DataError), match=what):
        pi.evaluate_prefixes(prefixes, held_out(2), scorer, **arguments)


def test_a_prefix_without_sentences_has_no_effects_and_is_refused_before_the_scorer_is_asked() -> (
    None
):
    def never(conversations: Sequence[Any], responses: Sequence[str]) -> list[float]:
        raise AssertionError("the scorer was asked")

    for prefix in (pi.persona_prefix("tag"), lambda trained: pi.persona_prefix("tag")):
        with pytest.raises(InvalidArgumentError, match="'code', a prefix of the kind 'tag'"):
            pi.evaluate_prefixes({"code": prefix}, held_out(2), never, attribute="code")


def test_effects_that_cannot_be_measured_are_refused_before_the_scorer_is_asked() -> None:
    def never(conversations: Sequence[Any], responses: Sequence[str]) -> list[float]:
        raise AssertionError("the scorer was asked")

    nobody: dict[str, list[str]] = {user: [] for user in TASTE}
    empty = pi.persona_prefix("few-shot", history=[], neighbours=nobody)
    for prefix, choices, said in (
        (empty, held_out(2), "'p' has no sentence"),
        (personas(), held_out(1), "no user has two choices"),
    ):
        with pytest.raises(DataError, match=said):
            pi.evaluate_prefixes({"p": prefix}, choices, never, attribute="p")


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownOptionError, match=r"fold=.*folds="):
        pi.evaluate_prefixes({"p": personas()}, held_out(), obeys, fold=3)  # type: ignore[call-arg]
