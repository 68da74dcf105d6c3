"""Every formula against scipy and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import personainfer as pi
from personainfer.evaluation import cohen_kappa
from personainfer.evaluation.grouped import length_controlled_rate
from personainfer.evaluation.statistics import (
    benjamini_hochberg,
    bootstrap_mean,
    holm,
    log_odds,
    t_quantile,
    two_sided_p,
    wilson,
)
from personainfer.simulation import feature_regression, votes
from personainfer.tailoring.bm25 import BM25
from personainfer.users.groups import anova, correlation
from personainfer.users.similar_users import cosines

pytestmark = pytest.mark.heavy
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def stats() -> Any:
    return pytest.importorskip("scipy.stats")


def test_wilson(stats: Any) -> None:
    for n in (1, 2, 7, 40, 1000):
        for wins in {0, 1, n // 3, n}:
            for confidence in (0.5, 0.95, 0.999):
                known = stats.binomtest(wins, n).proportion_ci(confidence, method="wilson")
                found = wilson(wins, n, confidence=confidence)
                assert_allclose([found.low, found.high], [known.low, known.high], atol=1e-12)


def test_t_quantiles(stats: Any) -> None:
    for freedom in (*range(1, 40), 199, 200, 201, 5000):
        for probability in (0.6, 0.9, 0.975, 0.9995):
            known = stats.t.ppf(probability, freedom)
            assert t_quantile(probability, freedom) == pytest.approx(known, rel=1e-6)


def test_two_sided_p(stats: Any) -> None:
    z = RANDOM.normal(size=50) * 4
    assert_allclose(two_sided_p(z), 2 * stats.norm.sf(np.abs(z)), rtol=1e-12)


def test_corrections(stats: Any) -> None:
    for n in (1, 2, 5, 60):
        p = RANDOM.random(n) ** 2
        assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-12)
        order = np.argsort(p)
        steps = np.minimum(1, [max(p[order[j]] * (n - j) for j in range(k + 1)) for k in range(n)])
        assert_allclose(holm(p)[order], steps)


def test_log_odds_are_those_of_a_table(stats: Any) -> None:
    """With half a text added everywhere: Haldane and Anscombe's."""
    first, second = np.array([12.0, 3.0]), np.array([4.0, 3.0])
    found = log_odds(first, second, prior=[0.5, 0.5], texts=(20, 15, 1))
    for n in range(2):
        table = [[first[n] + 0.5, 20.5 - first[n]], [second[n] + 0.5, 15.5 - second[n]]]
        known = stats.contingency.odds_ratio(np.array(table).astype(int), kind="sample")
        assert known.statistic > 0  # whole numbers only: the formula is checked by hand
        (a, b), (c, d) = table
        assert found.value[n] == pytest.approx(np.log(a * d / (b * c)))
        assert found.standard_error[n] == pytest.approx(np.sqrt(1 / a + 1 / b + 1 / c + 1 / d))


def test_a_bootstrap_interval_is_that_of_scipy_widened(stats: Any) -> None:
    values = RANDOM.exponential(size=400)
    found = bootstrap_mean(values, resamples=20_000)
    known = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    assert_allclose([found.low, found.high], [known.low, known.high], atol=0.01)


def test_analysis_of_variance(stats: Any) -> None:
    for _ in range(5):
        groups = RANDOM.choice(list("abcd"), size=30)
        values = RANDOM.normal(size=30) + (groups == "a")
        f, p = anova(values, groups.tolist())
        parts = [values[groups == name] for name in "abcd"]
        known = stats.f_oneway(*parts)
        assert f == pytest.approx(known.statistic)
        assert p == pytest.approx(known.pvalue, abs=0.03)  # permutations against the F distribution


def test_correlation(stats: Any) -> None:
    for n in (4, 10, 60):
        x = RANDOM.normal(size=n)
        y = 0.5 * x + RANDOM.normal(size=n)
        found, known = correlation(x, y), stats.pearsonr(x, y)
        interval = known.confidence_interval(0.95)
        assert found.value == pytest.approx(known.statistic)
        assert_allclose([found.low, found.high], [interval.low, interval.high], atol=1e-9)


def test_kappa() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for _ in range(5):
        one, other = RANDOM.integers(0, 4, size=(2, 50))
        other = np.where(RANDOM.random(50) < 0.5, one, other)
        assert cohen_kappa(one, other).value == pytest.approx(metrics.cohen_kappa_score(one, other))


def test_the_rate_at_equal_length_is_that_of_a_penalised_regression() -> None:
    models = pytest.importorskip("sklearn.linear_model")
    won, lengths = RANDOM.choice([-1, 1], size=200), RANDOM.normal(10, 40, size=200)
    found = length_controlled_rate(won, lengths, range(200), resamples=10)
    fit = models.LogisticRegression(C=2.5**2, tol=1e-10, max_iter=1000)
    fit.fit(np.tanh(lengths / lengths.std())[:, None], won > 0)
    known = 1 / (1 + np.exp(-fit.intercept_[0]))
    assert found.value == pytest.approx(known, abs=1e-6)


def test_cosines() -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    one, other = RANDOM.normal(size=(6, 9)), RANDOM.normal(size=(4, 9))
    assert_allclose(cosines(one, other), pairwise.cosine_similarity(one, other))


def test_entropy_of_votes(stats: Any) -> None:
    found = votes(RANDOM.integers(0, 5, size=(50, 30)), 5)
    assert_allclose(found.entropy, stats.entropy(found.shares, axis=1))


def test_coefficients_of_features() -> None:
    models = pytest.importorskip("sklearn.linear_model")
    texts = [
        [" ".join("wo" * int(k) for k in RANDOM.integers(1, 5, size=n + 1)) for n in range(4)]
        for _ in range(30)
    ]
    matrix = pi.RewardMatrix(
        RANDOM.normal(size=(30, 4, 2)),
        models=["a", "b"],
        prompts=[f"p{n}" for n in range(30)],
        responses=texts,
    )
    users = pi.SimulatedUsers([[1.0, 0.0]], models=["a", "b"])
    features: dict[str, Callable[[str], float]] = {
        "length": lambda text: float(len(text)),
        "words": lambda text: float(text.count(" ")),
    }
    found = feature_regression(users, matrix, features)
    table = np.array([[[f(text) for f in features.values()] for text in row] for row in texts])
    table = (table - table.mean(axis=(0, 1))) / table.std(axis=(0, 1))
    best, worst = (getattr(matrix.zscores[..., 0], a)(axis=1) for a in ("argmax", "argmin"))
    rows = np.concatenate([table[np.arange(30), best], table[np.arange(30), worst]])
    fit = models.LinearRegression().fit(rows, np.repeat([1.0, 0.0], 30))
    assert_allclose(found.coefficients[0], fit.coef_)
    assert found.r_squared[0] == pytest.approx(fit.score(rows, np.repeat([1.0, 0.0], 30)))


def test_bm25_by_hand() -> None:
    texts = ["tea with milk", "coffee", "tea tea tea and more tea than milk"]
    lengths, k1, b = np.array([3.0, 1.0, 8.0]), 1.2, 0.75
    often, rarity = np.array([1.0, 0.0, 4.0]), np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    known = rarity * often * (k1 + 1) / (often + k1 * (1 - b + b * lengths / lengths.mean()))
    assert_allclose(BM25(texts).scores("Tea?"), known)
