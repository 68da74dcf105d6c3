"""Groups of users: folds; analysis of variance and correlation against plain sums."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from personainfer.exceptions import DataError
from personainfer.users.groups import (
    anova,
    correct_together,
    correlation,
    equity_by_group,
    folds_of,
    group_values,
)


def test_f_is_that_of_the_textbook() -> None:
    groups = {"a": [6.0, 8, 4, 5, 3, 4], "b": [8.0, 12, 9, 11, 6, 8], "c": [13.0, 9, 11, 8, 7, 12]}
    values = [value for numbers in groups.values() for value in numbers]
    names = [name for name, numbers in groups.items() for _ in numbers]
    f, p = anova(values, names)
    mean = sum(values) / 18
    between = sum(6 * (sum(g) / 6 - mean) ** 2 for g in groups.values()) / 2
    within = sum((v - sum(g) / 6) ** 2 for g in groups.values() for v in g) / 15
    assert f == pytest.approx(between / within)
    assert f == pytest.approx(9.26, abs=0.01)  # whose p from the F distribution is 0.0024
    assert p == pytest.approx(0.0024, abs=0.0015)


def test_p_is_uniform_where_groups_do_not_matter() -> None:
    random = np.random.default_rng(0)
    found = [anova(random.random(12), ["a", "b", "c"] * 4, permutations=199)[1] for _ in range(300)]
    assert np.mean(np.array(found) <= 0.05) < 0.09
    assert 0.4 < np.mean(found) < 0.6


def test_p_is_never_0() -> None:
    f, p = anova([0.0] * 10 + [1.0] * 10, ["a"] * 10 + ["b"] * 10)
    assert f == np.inf
    assert 0 < p < 0.001


@pytest.mark.parametrize("groups", [["a"] * 4, ["a", "b", "c", "d"]], ids=["one", "as many"])
def test_what_cannot_be_tested_is_nan(groups: list[str]) -> None:
    assert np.isnan(anova([0.1, 0.4, 0.2, 0.9], groups)).all()


def test_users_count_once_however_many_choices_they_made() -> None:
    values = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    users = ["a", "a", "a", "a", "b", "c", "d"]
    group = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "y"}
    one = equity_by_group(values, users, group, prefix="p", attribute="g", measure="accuracy")
    assert one.f == 0.0  # the means of users are 1, 0 and 1, 0
    assert one.groups["x"].value == pytest.approx(0.8)
    assert one.gap == pytest.approx(0.3)
    left = equity_by_group(values, users, {"a": "x"}, prefix="p", attribute="g", measure="gain")
    assert (left.without, left.gap) == (3, 0.0)
    assert np.isnan(left.p)


def test_tests_are_corrected_together() -> None:
    random = np.random.default_rng(1)
    users = [str(n) for n in range(12)]
    group = {user: "ab"[n % 2] for n, user in enumerate(users)}
    found = [
        equity_by_group(random.random(12), users, group, prefix=p, attribute="g", measure="gain")
        for p in "xyz"
    ]
    corrected = correct_together(found)
    assert [one.p for one in corrected] == [one.p for one in found]
    least, middle, _ = sorted(corrected, key=lambda one: one.p)
    assert least.adjusted_p == pytest.approx(min(3 * least.p, 1.0))
    assert middle.adjusted_p == pytest.approx(min(max(2 * middle.p, 3 * least.p), 1.0))


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_correlation_knows_no_scale(scale: float) -> None:
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 5.0])
    found = correlation(scale * x, scale * y)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_equal_numbers_do_not_vary_by_rounding() -> None:
    assert np.isnan(correlation([0.1 + 0.2, 0.3, 0.3], [1.0, 2.0, 4.0]).value)
    # A resample without the one user who differs says nothing, whatever rounding leaves of it.
    x, y = np.full(100, 0.5), np.random.default_rng(0).normal(size=100)
    x[0], y[0] = 0.6, 9.0
    assert correlation(x, y).low > 0.3


def test_correlation_is_pearson_s() -> None:
    random = np.random.default_rng(2)
    x = random.random(30)
    y = x + 0.3 * random.random(30)
    found = correlation([*x, np.nan], [*y, 1.0])
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.low < found.value < found.high
    assert found.n == 30
    assert np.isnan(correlation([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]).value)


@pytest.mark.parametrize("pairs", [2, 3])
def test_a_correlation_of_very_few_pairs_has_no_interval(pairs: int) -> None:
    found = correlation(np.arange(pairs), np.arange(pairs) ** 2)
    assert found.value > 0.9
    assert np.isnan([found.low, found.high]).all()


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


def test_nulls_of_arrow_are_no_group() -> None:
    values = pa.table({"user": [1, 2, 3], "diet": ["vegan", None, ""]})
    by_user = dict(zip(values["user"], values["diet"], strict=True))
    assert group_values({"diet": by_user}) == {"diet": {"1": "vegan"}}
