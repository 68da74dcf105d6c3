"""Users, groups, questions and personas of any text: a long one takes no memory for each other one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

import personainfer as pi
from personainfer.records import Message
from personainfer.simulation.user_responses import UserResponse, score_responses

LONG = "x" * 500_000
USERS = 50
CHOICES = 250  # an array of texts of one width would have 250 * 500,000 * 4 bytes
MOST_BYTES = 100_000_000


def by_length(chats: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def evaluated(user: str, group: str, persona: str, question: str, prompt: str) -> tuple[str, str]:
    """Audit and evaluate personas of users, where one text is the given one."""
    names = [user, *(f"u{n}" for n in range(1, USERS))]
    rows = [
        pi.Preference(
            prompt=prompt if n == 0 else f"p{n}",
            chosen="c" * (1 + n % 3),
            rejected="rr",
            user=names[n % USERS],
            id=str(n),
        )
        for n in range(CHOICES)
    ]
    said = {name: f"The user is t{n} and prefers b{n}." for n, name in enumerate(names)}
    said[names[1]] = persona
    groups = {"g": {name: "ab"[n % 2] for n, name in enumerate(names)} | {names[2]: group}}
    prefix = pi.persona_prefix("persona", personas=said)
    audit = pi.audit_personas(said, rows, by_length, groups=groups, baselines=("longer",))
    found = pi.evaluate_prefixes(
        {"p": prefix},
        rows,
        by_length,
        groups=groups,
        attribute=["p"],
        questions={"0": question, "1": "personal"},
    )
    return str(audit), str(found)


@pytest.mark.heavy
@pytest.mark.parametrize("what", ["user", "group", "persona", "question", "prompt"])
def test_a_long_text_takes_no_memory_for_each_other_one(what: str) -> None:
    texts = {"user": "u0", "group": "a", "persona": "is old", "question": "q", "prompt": "p0"}
    tracemalloc.start()
    try:
        evaluated(**(texts | {what: LONG}))
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_a_long_name_of_a_simulated_user_takes_no_memory_for_each_response() -> None:
    names = [LONG, *(f"u{n}" for n in range(CHOICES))]
    users = pi.SimulatedUsers([[0.5, 0.5]] * len(names), models=["a", "b"], names=names)
    scale = pi.RewardMatrix([[[0.0, 1.0], [1.0, 0.0]]], models=["a", "b"])
    rows = [UserResponse(baseline="x", user=name, prompt=0, response="r") for name in names]

    def scorer(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
        return [float(len(one)) for one in responses]

    tracemalloc.start()
    try:
        score_responses(
            rows, users, scale, {"a": scorer, "b": scorer}, prompts=["p"], reference=["rr"]
        )
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_ids_and_groups_that_end_in_nul_are_others_than_those_without() -> None:
    users = ["u", "u\0", "v", "v\0"]
    groups = {"g": dict(zip(users, ["a", "a\0", "a", "a\0"], strict=True))}
    rows = [
        pi.Preference(prompt=f"p{n}", chosen="c" * (1 + n % 3), rejected="rr", user=users[n % 4])
        for n in range(16)
    ]
    prefix = pi.persona_prefix("persona", personas={user: f"is {user!r}" for user in users})
    found = pi.evaluate_prefixes({"p": prefix}, rows, by_length, groups=groups)
    assert found.prefixes["p"].accuracy.n == 4
    assert {*found.equity[0].groups} == {"a", "a\0"}
    assert found.equity[0].without == 0
