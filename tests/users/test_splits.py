"""Users who are trained on, and users who are not."""

from __future__ import annotations

import pytest

from personainfer.exceptions import DataError
from personainfer.users.splits import folds_of

USERS = [f"u{n}" for n in range(10)]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_every_user_is_unseen_once(count: int) -> None:
    folds = folds_of(USERS, count, seed=count)
    assert len(folds) == count
    assert sorted(user for fold in folds for user in fold.unseen) == sorted(USERS)
    for fold in folds:
        assert not set(fold.trained) & set(fold.unseen)
        assert set(fold.trained) | set(fold.unseen) == set(USERS)
        assert len(fold.unseen) in (len(USERS) // count, len(USERS) // count + 1)


def test_equal_seeds_give_equal_folds_and_others_do_not() -> None:
    assert folds_of(USERS, 5, seed=1) == folds_of(USERS, 5, seed=1)
    assert folds_of(USERS, 5, seed=1) != folds_of(USERS, 5, seed=2)


def test_an_attribute_of_one_value_cannot_be_left_out() -> None:
    with pytest.raises(DataError, match="1 values"):
        folds_of(USERS, "diet", {"diet": dict.fromkeys(USERS, "vegan")})
