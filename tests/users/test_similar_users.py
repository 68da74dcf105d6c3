"""Nearest texts and users, by hand and against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.records import Preference
from personainfer.users import similar_users as neighbours
from personainfer.users.similar_users import cosines, nearest_users, user_vectors

brief = settings(max_examples=40)


def letters(texts: list[str]) -> Any:
    """How often each of four letters occurs."""
    return [[text.count(letter) for letter in "abcd"] for text in texts]


def choice(user: str | None, chosen: str, rejected: str) -> Preference:
    return Preference(prompt="Why?", chosen=chosen, rejected=rejected, user=user)


def test_cosines_by_hand() -> None:
    assert_allclose(
        cosines([[3, 4], [0, 0]], [[1, 0], [-4, 3]]), [[0.6, 0.0], [0.0, 0.0]], atol=1e-12
    )


def test_a_user_is_the_mean_difference_of_what_was_chosen_and_not() -> None:
    history = [choice("ann", "aab", "b"), choice("bob", "d", "c"), choice("ann", "", "cc")]
    found = user_vectors(history, letters)
    assert_allclose(found["ann"], [1, 0, -1, 0])
    assert_allclose(found["bob"], [0, 0, -1, 1])
    assert_allclose(user_vectors(history, letters, of="chosen")["ann"], [1, 0.5, 0, 0])
    assert_allclose(user_vectors(history, letters, of="rejected")["ann"], [0, 0.5, 1, 0])


def test_each_text_is_embedded_once() -> None:
    calls: list[list[str]] = []

    def counted(texts: list[str]) -> Any:
        calls.append(texts)
        return letters(texts)

    user_vectors([choice("ann", "a", "b"), choice("bob", "a", "b")], counted)
    assert calls == [["a"], ["b"]]


@pytest.mark.heavy
@brief
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 1000))
def test_the_nearest_users_are_those_of_a_plain_loop(users: int, k: int, seed: int) -> None:
    drawn = np.random.default_rng(seed).normal(size=(users, 5))
    vectors = {f"u{n}": row for n, row in enumerate(drawn)}
    found = nearest_users(vectors, k)
    assert list(found) == list(vectors)
    for name, one in vectors.items():
        cosine = {
            label: float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
            for label, other in vectors.items()
            if label != name
        }
        assert len(set(found[name])) == len(found[name])
        highest = sorted(cosine.values(), reverse=True)[:k]
        assert_allclose([cosine[label] for label in found[name]], highest, atol=1e-6)


def test_users_are_compared_in_parts_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {f"u{n}": v for n, v in enumerate(np.random.default_rng(0).normal(size=(50, 4)))}
    whole = nearest_users(vectors, 7)
    monkeypatch.setattr(neighbours, "_QUERIES", 3)
    assert nearest_users(vectors, 7) == whole
    assert nearest_users(vectors, 7, of=["u9"]) == {"u9": whole["u9"]}


def test_users_that_are_tested_are_no_neighbours_of_each_other() -> None:
    drawn = np.random.default_rng(3).normal(size=(60, 4))
    vectors = {f"u{n}": row for n, row in enumerate(drawn)}
    tested, known = [f"u{n}" for n in range(50)], [f"u{n}" for n in range(50, 60)]
    found = nearest_users(vectors, 3, of=tested)
    assert list(found) == tested
    assert {name for near in found.values() for name in near} <= set(known)
    assert found == nearest_users(vectors, 3, of=tested, among=known)
    assert found["u0"] == nearest_users({name: vectors[name] for name in ("u0", *known)}, 3)["u0"]
    wide = nearest_users(vectors, 3, of=tested, among=list(vectors))
    assert wide == {
        name: near for name, near in nearest_users(vectors, 3).items() if name in tested
    }
    some = nearest_users(vectors, 99, among=["u1", "u2", "u1"])
    assert some["u1"] == ["u2"]
    assert sorted(some["u0"]) == ["u1", "u2"]


def test_a_vector_of_zeros_has_no_neighbours() -> None:
    vectors = {"a": [0.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 1.0]}
    assert nearest_users(vectors, 1)["a"] == []
    assert nearest_users(vectors, 2)["b"] == ["a", "c"]


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="choice 0 has no user"):
        user_vectors([choice(None, "a", "b")], letters)
    with pytest.raises(InvalidArgumentError, match=r"shape \(1, 4\) for 2 texts"):
        user_vectors([choice("a", "a", "b"), choice("a", "b", "a")], lambda t: letters(t[:1]))
    with pytest.raises(InvalidArgumentError, match="k=0"):
        nearest_users({"a": [1.0]}, 0)
    with pytest.raises(InvalidArgumentError, match="'b', who has no vector"):
        nearest_users({"a": [1.0]}, of=["b"])
    with pytest.raises(InvalidArgumentError, match=r"among= names user 'b'"):
        nearest_users({"a": [1.0]}, among=["b"])
    with pytest.raises(InvalidArgumentError, match="nobody is left to search"):
        nearest_users({"a": [1.0], "b": [0.0]}, of=["a", "b"])
    assert nearest_users({"a": [1.0]}) == {"a": []}
    assert nearest_users({}) == {}
    with pytest.raises(DataError, match="'b' is not finite"):
        nearest_users({"a": [1.0, 0.0], "b": [np.nan, 1.0], "c": [0.0, 1.0]}, 1)
    with pytest.raises(InvalidArgumentError, match="shapes"):
        nearest_users({"a": [1.0], "b": [1.0, 0.0]}, 1)
