"""Every function that computes a number, with values that are missing, wrong, huge, or all the same."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose

import personainfer as pi
from personainfer.arguments import CountFromZero, check_argument, read_labels, read_numbers
from personainfer.evaluation import cohen_kappa, krippendorff_alpha
from personainfer.evaluation.grouped import (
    delta_pq,
    length_controlled_difference,
    length_controlled_rate,
    mean_by_group,
    rate_by_group,
    win_rate,
    win_rate_by_group,
)
from personainfer.evaluation.statistics import (
    Estimate,
    benjamini_hochberg,
    bootstrap_mean,
    bootstrap_rate,
    holm,
    log_odds,
    paired_difference,
    two_sided_p,
    wilson,
)
from personainfer.exceptions import InvalidArgumentError
from personainfer.scoring.posterior import PersonaPosterior
from personainfer.simulation import votes
from personainfer.simulation.heterogeneity import entropy_by_word
from personainfer.tailoring.embeddings import unit_vectors
from personainfer.tailoring.implicit_reward import implicit_rewards, reward_accuracy
from personainfer.tailoring.user_rewards import BradleyTerry, LowRankRewards, fit_user_weights
from personainfer.users.groups import anova, correlation, equity_by_group
from personainfer.users.similar_users import cosines, nearest_users

NAN, INF = math.nan, math.inf
LABELS = ["a", "b", "c", "a"]


def equity(values: Any) -> Any:
    found = equity_by_group(
        values,
        ["u", "v", "w", "x"],
        {"u": "A", "v": "B", "w": "A", "x": "B"},
        prefix="p",
        attribute="a",
        measure="accuracy",
    )
    return found.gap, found.f, found.p, *found.groups.values()


# name -> (values, shape (4,)) -> numbers
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "bootstrap_mean": bootstrap_mean,
    "bootstrap_rate": bootstrap_rate,
    "paired_difference": lambda v: paired_difference(v, [0.0, 1.0, 0.0, 1.0]),
    "win_rate": win_rate,
    "mean_by_group": lambda v: mean_by_group(v, LABELS),
    "rate_by_group": lambda v: rate_by_group(v, LABELS),
    "win_rate_by_group": lambda v: win_rate_by_group(v, LABELS),
    "delta_pq": lambda v: delta_pq(v, [1, -1, 1, -1], LABELS),
    "length_controlled_rate: outcomes": lambda v: length_controlled_rate(v, [1, 2, -3, 1], LABELS),
    "length_controlled_rate: lengths": lambda v: length_controlled_rate([1, -1, 1, 1], v, LABELS),
    "length_controlled_difference": lambda v: length_controlled_difference(
        v, [1, -1, 1, -1], [1, 2, -3, 1], LABELS
    ),
    "cohen_kappa": lambda v: cohen_kappa(v, [1.0, 0.0, 1.0, 1.0]),
    "krippendorff_alpha": lambda v: krippendorff_alpha([v, [1.0, 0.0, 1.0, 1.0]]),
    "correlation": lambda v: correlation(v, [1.0, 0.0, 3.0, 2.0]),
    "anova": lambda v: anova(v, ["A", "B", "A", "B"]),
    "equity_by_group": equity,
}
# These compare, and take infinite numbers too.
ORDERED: dict[str, Callable[[Any], Any]] = {
    "reward_accuracy": lambda v: reward_accuracy(v, [0.0, 1.0, 0.5, 0.2], list("pqrp")),
    "two_sided_p": two_sided_p,
}
# A missing number is refused as well.
COMPLETE: dict[str, Callable[[Any], Any]] = {
    "holm": holm,
    "benjamini_hochberg": benjamini_hochberg,
    "log_odds": lambda v: log_odds(v, [1, 2, 3, 4], prior=[1, 1, 1, 1]).z,
    "PersonaPosterior.update": lambda v: PersonaPosterior([*"abcd"]).update(v).probabilities,
    "PersonaPosterior.predict": lambda v: PersonaPosterior([*"abcd"]).predict(v),
    "PersonaPosterior: prior": lambda v: PersonaPosterior([*"abcd"], prior=v).probabilities,
}
EVERY = FUNCTIONS | ORDERED | COMPLETE
NO_NUMBERS = {
    "a text": [1.0, "one", 0.0, 1.0],
    "texts of digits": ["1", "0", "0", "1"],
    "a date": [date(2020, 1, 1), 0.0, 1.0, 1.0],
    "dates": np.array(["2020-01-01"] * 4, dtype="M8[D]"),
    "complex": [1j, 0, 1, 0],
    "a dict": {"a": 1.0},
    "one text": "1001",
    "ragged": [[1.0], [0.0, 1.0], [1.0], [0.0]],
}


def masked_array(values: list[Any], kind: Any = None) -> Any:
    """-999 is masked."""
    return np.ma.masked_equal(np.array(values, dtype=kind), -999)


def flat(found: Any) -> list[float]:
    """All numbers of a result."""
    if isinstance(found, Estimate):
        return list(found.to_dict().values())
    if isinstance(found, tuple | list):
        return [number for one in found for number in flat(one)]
    if isinstance(found, np.ndarray):
        return [float(one) for one in found.ravel()]
    if hasattr(found, "rate"):
        return [found.wins, found.ties, found.losses, *flat([found.rate, found.rate_with_ties])]
    return [float(found)]


@pytest.mark.parametrize("what", NO_NUMBERS)
@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_number_is_refused(name: str, what: str) -> None:
    with pytest.raises(InvalidArgumentError):
        EVERY[name](NO_NUMBERS[what])


@pytest.mark.parametrize("value", [INF, -INF, 1e200])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_infinite_value_is_refused_and_never_left_out(name: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError):
        FUNCTIONS[name]([1.0, value, 0.0, 1.0])


@pytest.mark.parametrize("name", COMPLETE)
def test_a_missing_number_is_refused_where_all_are_needed(name: str) -> None:
    masked = masked_array([1.0, -999.0, 0.0, 1.0])
    for values in ([1.0, NAN, 0.0, 1.0], [1.0, None, 0.0, 1.0], masked):
        with pytest.raises(InvalidArgumentError):
            COMPLETE[name](values)


@pytest.mark.parametrize("name", FUNCTIONS | ORDERED)
def test_none_is_a_missing_value_like_nan(name: str) -> None:
    one, *others = (flat(EVERY[name]([1.0, missing, 0.0, 1.0])) for missing in (NAN, None))
    others.append(flat(EVERY[name](masked_array([1.0, -999.0, 0.0, 1.0]))))
    for other in others:
        assert_allclose(other, one)


@pytest.mark.heavy
@pytest.mark.parametrize("name", EVERY)
def test_the_type_of_a_number_does_not_matter(name: str) -> None:
    known = flat(EVERY[name]([1.0, 0.0, 1.0, 1.0]))
    for same in (
        [True, False, True, True],
        [1, 0, 1, 1],
        np.array([1, 0, 1, 1], dtype=np.int8),
        np.array([1, 0, 1, 1], dtype=np.float32),
        [Fraction(1), Decimal(0), 1, np.bool_(True)],
    ):
        assert_allclose(flat(EVERY[name](same)), known)
    if name != "krippendorff_alpha":  # whose argument is a list of raters
        assert_allclose(flat(EVERY[name](iter([1.0, 0.0, 1.0, 1.0]))), known)


@pytest.mark.parametrize("unit", [1e-300, 1e-20, 1e99])
@pytest.mark.parametrize(
    "name", ["length_controlled_rate: lengths", "correlation", "anova", "win_rate", "cohen_kappa"]
)
def test_the_unit_does_not_matter_where_none_should(name: str, unit: float) -> None:
    values = np.array([1.0, 0.0, 0.5, 1.0])
    known = FUNCTIONS[name](values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = FUNCTIONS[name](values * unit)
    if name != "cohen_kappa":  # whose categories are the values
        assert_allclose(flat(scaled), flat(known))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_p_value_or_rate_comes_from_nothing(name: str) -> None:
    if name in ("delta_pq", "length_controlled_difference") or ":" in name:
        return  # another argument has values
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = FUNCTIONS[name]([NAN] * 4)
    numbers = flat(found)
    assert all(math.isnan(one) or one in (0, 4) for one in numbers), found


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_a_mask_that_hides_nothing_and_rows_with_masks_are_read(kind: type) -> None:
    row, hidden = masked_array([1, 2], kind), masked_array([3, -999], kind)
    assert read_numbers("values", row).tolist() == [1.0, 2.0]
    found = read_numbers("values", [row, hidden], dimensions=(2,))
    assert found[0].tolist() == [1.0, 2.0]
    assert np.isnan(found).tolist() == [[False, False], [False, True]]
    deep = read_numbers("values", [[row, hidden], (hidden, row)], dimensions=(3,))
    assert np.isnan(deep).sum() == 2


PLACES: dict[str, Callable[[Any], Any]] = {
    "votes": lambda p: votes([p], 3),
    "pairs": lambda p: pi.SimulatedUsers([[1.0]], models=["a"]).choose(
        pi.RewardMatrix(np.arange(6.0).reshape(2, 3, 1), models=["a"]), pairs=[p, p]
    ),
    "fit_user_weights": lambda p: fit_user_weights([[1.0, 2.0], [2.0, 1.0]], p),
}


@pytest.mark.parametrize(
    "places",
    [
        [0, -1],
        [0, 10**15],
        [0, 1.0],
        ["a", "b"],
        [0, None],
        [],
        [[0, 1], [2]],
        masked_array([0, -999]),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PLACES)
def test_places_are_whole_numbers_in_bounds(name: str, places: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        PLACES[name](places)


MARGINS: dict[str, Any] = {"a NaN": NAN, "infinite": INF, "a text": "x", "missing": None}


@pytest.mark.parametrize("what", MARGINS)
def test_margins_that_nothing_fits_are_refused(what: str) -> None:
    with pytest.raises(InvalidArgumentError, match="margins"):
        fit_user_weights([[1.0, 2.0], [MARGINS[what], 0.0]], [0, 1])


@pytest.mark.parametrize("value", [NAN, INF, -INF, np.ma.masked, 1e200], ids=str)
@pytest.mark.parametrize(
    "make", [BradleyTerry, lambda features: LowRankRewards(2, features=features)]
)
def test_a_feature_that_is_not_finite_is_refused(make: Any, value: Any) -> None:
    pytest.importorskip("scipy")

    def features(prompts: Any, responses: Any) -> Any:
        rows = [[len(text), value if text == "odd" else 1.0] for text in responses]
        return np.ma.array([np.ma.array(row) for row in rows]) if value is np.ma.masked else rows

    choices = [
        pi.Preference(prompt=f"q{n}", chosen="good", rejected="odd" if n else "bad", user="u")
        for n in range(3)
    ]
    with pytest.raises(InvalidArgumentError, match=r"features=.*'odd'|too large"):
        make(features).fit(choices)


@pytest.mark.heavy
@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_agreement_on_a_slider_is_that_of_all_pairs_of_ratings(level: Any) -> None:
    """By the definition: distances within items against distances between all ratings."""
    ratings = np.random.default_rng(0).integers(0, 101, size=(3, 40)).astype(float) + 1e6
    ratings[0, :5] = NAN
    ranked = np.sort(ratings[~np.isnan(ratings)])

    def apart(one: float, other: float) -> float:
        if level == "ordinal":  # ranks: the middle of the ratings that are equal
            one, other = (float(np.mean(np.flatnonzero(ranked == v))) for v in (one, other))
        return float(one != other) if level == "nominal" else (one - other) ** 2

    def within(values: Any) -> float:
        return sum(apart(a, b) for a in values for b in values) / (len(values) - 1)

    items = [column[~np.isnan(column)] for column in ratings.T]
    known = 1.0 - sum(map(within, items)) / within(np.concatenate(items))
    assert krippendorff_alpha(ratings, level=level).value == pytest.approx(known)


def test_ratings_that_all_differ_are_no_categories() -> None:
    ratings = np.random.default_rng(0).random((2, 200))
    calls: list[Callable[[], Estimate]] = [
        lambda: krippendorff_alpha(ratings),
        lambda: krippendorff_alpha(ratings, level="ordinal"),
        lambda: cohen_kappa(*ratings),
    ]
    for found in calls:
        with pytest.raises(InvalidArgumentError, match="400 different values"):
            found()
    assert -1 < krippendorff_alpha(ratings, level="interval").value < 1


BY_GROUP: dict[str, Callable[[Any], Any]] = {
    "mean_by_group": lambda g: mean_by_group([1.0, 0.0, 1.0], g),
    "rate_by_group": lambda g: rate_by_group([1.0, 0.0, 1.0], g),
    "win_rate_by_group": lambda g: win_rate_by_group([1, -1, 1], g),
    "delta_pq": lambda g: delta_pq([1, -1, 1], [1, 1, -1], g),
    "length_controlled_rate": lambda g: length_controlled_rate([1, -1, 1], [1, 2, 3], g),
    "anova": lambda g: anova([1.0, 2.0, 3.5], g),
}


@pytest.mark.parametrize(
    "groups",
    [["a", None, "b"], ["a", NAN, "b"], [1.0, NAN, 2.0], np.array([1.0, NAN, NAN]), "abc", None, 5],
    ids=str,
)
@pytest.mark.parametrize("name", BY_GROUP)
def test_a_missing_group_is_refused(name: str, groups: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        BY_GROUP[name](groups)


def test_groups_of_different_types_stay_apart() -> None:
    assert mean_by_group([1, 0, 1], ["1", 1, ("1",)]).n == 3
    distinct, places = read_labels("groups", ["b", "a", "b"])
    assert (distinct, places.tolist()) == (["a", "b"], [1, 0, 1])


class Tensor:
    """As torch's: a key of a dict by its identity, and no condition if it has several items."""

    def __init__(self, items: Any) -> None:
        self._items = items
        self.shape = np.shape(items)

    def __iter__(self) -> Any:
        return map(Tensor, self._items)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Got unsupported ScalarType BFloat16")

    def tolist(self) -> Any:
        return self._items

    item = tolist


def test_groups_in_a_tensor_are_those_of_its_numbers() -> None:
    """Each item would be a group of its own, and the interval too narrow or too wide."""
    expected = mean_by_group([1, 0, 1, 1], [7, 7, 8, 8])
    numbers: Any = Tensor([7, 7, 8, 8])
    groups: Any
    for groups in (numbers, list(numbers), pa.array([7, 7, 8, 8]), list(pa.array([7, 7, 8, 8]))):
        assert mean_by_group([1, 0, 1, 1], groups) == expected
    for groups in (pa.array([7, None, 8, 8]), pa.chunked_array([[7, None], [8, 8]])):
        with pytest.raises(InvalidArgumentError, match=r"groups\[1\] is missing"):
            mean_by_group([1, 0, 1, 1], groups)
    for groups in ({1, 2, 3, 4}, pd.DataFrame({"a": [1]}), Tensor(3)):
        with pytest.raises(InvalidArgumentError, match="a label for each item"):
            mean_by_group([1, 0, 1, 1], groups)


def test_a_masked_item_of_a_list_is_no_group_of_its_own() -> None:
    """It would be read as the number 0."""
    masked: Any = np.ma.array([7, 0, 8, 8], mask=[False, True, False, False])
    for groups in (masked, list(masked)):
        with pytest.raises(InvalidArgumentError):
            mean_by_group([1, 0, 1, 1], groups)


def test_numbers_of_a_tensor_that_numpy_does_not_read_are_read() -> None:
    """One of bfloat16, on a GPU, or with a gradient."""
    assert read_numbers("values", Tensor([0.5, 2])).tolist() == [0.5, 2.0]


@pytest.mark.parametrize("scores", [[2.0, 0.0], [-0.1, 0.5]])
def test_a_rate_is_of_scores_between_0_and_1(scores: list[float]) -> None:
    rates: list[Callable[[], Estimate]] = [
        lambda: rate_by_group(scores, ["a", "b"]),
        lambda: bootstrap_rate(scores),
        lambda: bootstrap_mean(scores, bounds=(0.0, 1.0)),
    ]
    for rate in rates:
        with pytest.raises(InvalidArgumentError, match="between 0 and 1"):
            rate()


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True])
def test_a_seed_is_a_whole_number_from_0_up(seed: Any) -> None:
    users = pi.SimulatedUsers([[0.5, 0.5]], models=["a", "b"])
    matrix = pi.RewardMatrix([[[1.0, 2.0], [3.0, 1.0]]], models=["a", "b"])
    for call in (
        lambda: bootstrap_mean([1.0, 2.0], seed=seed),
        lambda: anova([1.0, 2.0, 3.0], ["a", "a", "b"], seed=seed),
        lambda: length_controlled_rate([1, -1], [1, 2], ["a", "b"], seed=seed),
        lambda: pi.SimulatedUsers.sample(2, models=["a", "b"], seed=seed),
        lambda: users.choose(matrix, seed=seed),
        lambda: pi.persona_prefix("none", seed=seed),
    ):
        with pytest.raises(InvalidArgumentError, match="seed="):
            call()
    check_argument("seed", np.int64(3), CountFromZero)


@pytest.mark.parametrize(
    "counts", [(INF, INF), (1, INF), (NAN, 3), ("1", 3), (None, 3), (-1, 3), (1, 10**400)], ids=str
)
def test_a_share_is_of_finite_counts(counts: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        wilson(*counts)


def test_nulls_of_pandas_are_missing_values() -> None:
    pd = pytest.importorskip("pandas")
    column = pd.Series([1, None, 0], dtype="Int64")
    assert_allclose(read_numbers("values", column), [1.0, NAN, 0.0])
    with pytest.raises(InvalidArgumentError, match=r"groups\[1\] is missing"):
        mean_by_group([1, 2, 3], pd.Series(["a", None, "b"]))


@pytest.mark.parametrize(
    "label",
    [
        ("a", NAN),
        ("a", None),
        ("a", ("b", NAN)),
        Decimal("nan"),
        np.datetime64("NaT"),
        complex(NAN),
    ],
    ids=str,
)
def test_a_label_that_equals_nothing_is_missing(label: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"groups\[1\] is missing"):
        read_labels("groups", [("a", 1), label])


# No certainty from a few equal items


@pytest.mark.parametrize(
    "found",
    [
        lambda: rate_by_group([1, 1, 1], [*"abc"]),
        lambda: mean_by_group([0.5, 0.5], [*"ab"], bounds=(-1.0, 1.0)),
        lambda: bootstrap_mean([5, 5, 5], bounds=(1.0, 5.0)),
        lambda: paired_difference([3, 3, 3], [3, 3, 3], bounds=(-4.0, 4.0)),
        lambda: delta_pq([1, -1, 1], [-1, 1, -1], range(3)),
        lambda: length_controlled_difference([1, -1, 1], [1, -1, 1], [3, 1, -2], [*"abc"]),
        lambda: cohen_kappa([1, 2, 1], [1, 2, 1]),
        lambda: krippendorff_alpha([[1, 2, 1], [1, 2, 1]]),
        lambda: krippendorff_alpha([[1, 2, 4], [1, 2, 4]], level="ordinal"),
        lambda: krippendorff_alpha([[1, 2, 4], [1, 2, 4]], level="interval"),
        lambda: equity([1, 1, 1, 1])[3],
        lambda: votes([[0, 1], [0, 1]], 2).summary()["entropy of the vote, nats"],
        lambda: votes([[0, 1], [0, 1]], 2).summary()["distinct winners a prompt"],
        lambda: entropy_by_word(votes([[0, 1], [1, 0]], 2), ["tea", "tea"], floor=1)[0].entropy,
    ],
)
def test_equal_items_leave_an_interval_of_some_width(found: Callable[[], Estimate]) -> None:
    few = found()
    assert few.low <= few.value <= few.high
    assert few.high - few.low > 0.25


def test_agreement_of_more_items_is_surer() -> None:
    agreements: list[Callable[[int], Estimate]] = [
        lambda n: cohen_kappa([1, 2] * n, [1, 2] * n),
        lambda n: krippendorff_alpha([[1, 2] * n, [1, 2] * n]),
    ]
    for agree in agreements:
        assert agree(2).low < agree(20).low < agree(200).low < 1.0
        assert agree(2).value == agree(200).value == 1.0


def test_a_rater_who_always_says_the_same_has_a_kappa_of_0_and_no_interval() -> None:
    found = cohen_kappa([1, 1, 1, 1], [1, 2, 1, 2])
    assert found.value == 0.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)


# Numbers that other code gives


class Policy:
    def __init__(self, found: Any) -> None:
        self.found = found

    def log_likelihood(self, prompts: Any, personas: Any, responses: Any) -> Any:
        return self.found


@pytest.mark.parametrize(
    "found", [[1.0], ["a", "b"], np.zeros((2, 1)), None, [[1.0], [2.0, 3.0]]], ids=str
)
def test_a_policy_gives_one_number_a_row(found: Any) -> None:
    rows = ["p", "q"], [None, None], ["x", "y"]
    with pytest.raises(InvalidArgumentError, match="result of"):
        implicit_rewards(Policy(found), Policy([0.0, 0.0]), *rows)


def test_rows_of_an_implicit_reward_are_checked_before_anything_is_scored() -> None:
    policy, reference = Policy([1.0, 2.0]), Policy([0.0, 0.0])
    for prompts in ("pq", ["p"], [1, 2]):
        with pytest.raises(InvalidArgumentError, match="prompts"):
            implicit_rewards(policy, reference, prompts, [None, None], ["x", "y"])  # type: ignore[arg-type]
    impossible = implicit_rewards(
        Policy([-INF, -INF]), Policy([-INF, 0.0]), ["p", "q"], [None] * 2, ["x", "y"]
    )
    assert_allclose(impossible, [NAN, -INF])


class Scorer:
    def __init__(self, score: Any) -> None:
        self.score = score

    def explains(self, preferences: Any, personas: Any) -> Any:
        return [self.score] * len(preferences)


@pytest.mark.parametrize("form", ["margin", "log_probability"])
def test_a_reward_that_is_infinite_or_missing_is_left_out(form: Any) -> None:
    for score in (INF, -INF, NAN, None):
        reward = pi.persona_reward(Scorer(score), form=form)
        said = ["The user is kind and prefers tea."]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            [found] = reward(["x"], said, question=["q"], chosen=["c"], rejected=["r"])
        assert math.isnan(found)
    with pytest.raises(InvalidArgumentError, match="not an array of numbers"):
        pi.persona_reward(Scorer("a"))(["x"], said, question=["q"], chosen=["c"], rejected=["r"])


def test_a_penalty_is_never_a_gift() -> None:
    with pytest.raises(InvalidArgumentError, match="penalty=-1"):
        pi.persona_reward(Scorer(0.0), penalty=-1)


@pytest.mark.parametrize("unit", [1e-300, 1.0, 1e90])
def test_the_length_of_vectors_does_not_matter(unit: float) -> None:
    vectors = np.array([[3.0, 4.0], [4.0, 3.0], [-3.0, 4.0], [0.0, 0.0]]) * unit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_allclose(unit_vectors(vectors)[0], [0.6, 0.8])
        assert_allclose(cosines(vectors, vectors)[0], [1.0, 0.96, 0.28, 0.0], atol=1e-12)
        near = nearest_users(dict(zip("abcd", vectors, strict=True)), 1)
    assert near == {"a": ["b"], "b": ["a"], "c": ["a"], "d": []}


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e90])
def test_z_scores_do_not_depend_on_the_unit(unit: float) -> None:
    rewards = np.random.default_rng(0).normal(size=(4, 3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pi.RewardMatrix(rewards * unit, models=["a", "b"]).zscores
    assert_allclose(found, pi.RewardMatrix(rewards, models=["a", "b"]).zscores)


# Swapped sides, shuffled rows


@pytest.mark.heavy
def test_swapped_sides_change_the_sign_or_give_the_rest() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = random.choice([-1.0, 0.0, 1.0], size=(2, 12))
        groups, lengths = random.integers(4, size=12).tolist(), random.normal(size=12)
        pairs = [
            (mean_by_group(one, groups).value, -mean_by_group(-one, groups).value),
            (paired_difference(one, other).value, -paired_difference(other, one).value),
            (delta_pq(one, other, groups).value, -delta_pq(-one, -other, groups).value),
            (correlation(one, other).value, -correlation(-one, other).value),
            (cohen_kappa(one, other).value, cohen_kappa(other, one).value),
            (
                reward_accuracy(one, other, list(map(str, groups))).value,
                1 - reward_accuracy(other, one, list(map(str, groups))).value,
            ),
            (win_rate(one).rate.value, 1 - win_rate(-one).rate.value),
            (
                length_controlled_rate(one, lengths, groups, resamples=10).value,
                1 - length_controlled_rate(-one, -lengths, groups, resamples=10).value,
            ),
        ]
        for there, back in pairs:
            assert there == pytest.approx(back, nan_ok=True, abs=1e-8)


def test_the_order_of_rows_does_not_matter() -> None:
    random = np.random.default_rng(1)
    one, other = random.choice([-1.0, 0.0, 1.0], size=(2, 30))
    groups, lengths = random.integers(8, size=30), random.normal(size=30)
    order = random.permutation(30)
    for function in (
        lambda k: mean_by_group(one[k], groups[k]),
        lambda k: rate_by_group((one[k] + 1) / 2, groups[k]),
        lambda k: win_rate_by_group(one[k], groups[k]),
        lambda k: delta_pq(one[k], other[k], groups[k]),
        lambda k: length_controlled_rate(one[k], lengths[k], groups[k], resamples=100),
        lambda k: cohen_kappa(one[k], other[k]),
        lambda k: krippendorff_alpha([one[k], other[k]], level="ordinal"),
        lambda k: correlation(one[k], other[k]),
        lambda k: anova(one[k], groups[k])[0],
    ):
        assert_allclose(flat(function(order)), flat(function(np.arange(30))), rtol=1e-9)
