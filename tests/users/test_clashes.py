"""Which questions users clash on."""

from __future__ import annotations

from typing import Any

import pytest

from personainfer.exceptions import InvalidArgumentError
from personainfer.records import Message, Preference
from personainfer.users.similar_users import find_questions

YES, NO = "Yes, a vegan diet is best for everybody.", "No, meat belongs on the table."


def choice(user: str, prompt: str, chosen: str = YES, rejected: str = NO) -> Preference:
    return Preference(prompt=prompt, chosen=chosen, rejected=rejected, user=user)


def test_one_user_chose_what_the_other_rejected() -> None:
    asked = [
        choice("ann", "Is meat wrong?"),
        choice("bob", "  is meat WRONG? ", NO, YES),
        choice("cy", "Is milk wrong?"),
    ]
    assert find_questions(asked, near=1.0) == ["clashing", "clashing", "personal"]


def test_users_who_agree_do_not_clash() -> None:
    assert set(find_questions([choice("ann", "Meat?"), choice("bob", "Meat?")])) == {"personal"}


def test_nobody_clashes_with_themselves() -> None:
    both = [choice("ann", "Meat?"), choice("ann", "Meat?", NO, YES)]
    assert set(find_questions(both)) == {"personal"}


def test_the_same_last_words_of_another_conversation_are_another_question() -> None:
    def turns(first: str) -> tuple[Message, ...]:
        return (
            Message(role="user", content=first),
            Message(role="assistant", content="Perhaps."),
            Message(role="user", content="Why?"),
        )

    asked = [
        Preference(prompt=turns(first), chosen=chosen, rejected=rejected, user=user)
        for user, first, chosen, rejected in (
            ("ann", "Should everybody eat meat at lunch?", YES, NO),
            ("bob", "Is the tax on inherited houses fair?", NO, YES),
        )
    ]
    assert set(find_questions(asked)) == {"personal"}


def test_near_prompts_count_as_far_as_is_asked() -> None:
    asked = [
        choice("ann", "Is it really wrong to eat any meat today?"),
        choice("bob", "Is it wrong to eat any meat today?", NO, YES),
    ]
    assert find_questions(asked) == ["clashing", "clashing"]
    assert find_questions(asked, near=1.0) == ["personal", "personal"]


def test_vectors_may_come_from_elsewhere() -> None:
    def embed(texts: list[str]) -> Any:
        return [[1.0, -1.0 if "meat" in text else 1.0] for text in texts]

    asked = [choice("ann", "One?"), choice("bob", "Quite another?", NO, YES)]
    assert find_questions(asked, embed=embed) == ["clashing", "clashing"]


def test_choices_are_compared_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        choice(f"u{n % 3}", f"Meat {n % 4}?", *((YES, NO) if n % 5 else (NO, YES)))
        for n in range(23)
    ]
    whole = find_questions(asked, near=1.0)
    assert set(whole) == {"clashing", "personal"}
    monkeypatch.setattr("personainfer.users.similar_users._CHOICES", 3)
    assert find_questions(asked, near=1.0) == whole


def test_a_system_message_makes_no_other_question() -> None:
    turns = (Message(role="system", content="Be kind."), Message(role="user", content="Meat?"))
    asked = [
        choice("ann", "Meat?"),
        Preference(prompt=turns, chosen=NO, rejected=YES, user="bob"),
    ]
    assert find_questions(asked) == ["clashing", "clashing"]
    assert find_questions([]) == []


@pytest.mark.parametrize("near", [-0.1, 1.1, True, "0.9"])
def test_near_lies_between_0_and_1(near: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="near="):
        find_questions([], near=near)


def test_equal_prompts_without_words_are_one_question() -> None:
    mine, theirs = choice("ann", "?"), choice("bob", "?", NO, YES)
    assert find_questions([mine, theirs]) == ["clashing", "clashing"]
