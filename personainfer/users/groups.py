"""Groups of users: leave them out one at a time, and test whether something works as well for each.

The test is a one-way analysis of variance over users, as in FamousPersona (arXiv 2505.13257). Its
p-values are from permutations, which assume no normal distribution, and corrected for their number.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..arguments import Count, CountFromZero, check_argument, read_labels, read_numbers
from ..evaluation.grouped import check_lengths, mean_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, holm
from ..exceptions import DataError, InvalidArgumentError
from ..preferences.cells import is_null
from ..records import FloatArray, Preference, Prompt

Measure = Literal["accuracy", "gain", "over untuned", "own - shuffled"]

_PERMUTATIONS = 9_999
_CELLS = 2_000_000  # numbers held at once while permuting
_CLOSE = 0.25  # the share by which the length of another user's persona may differ
_FEWEST = 5  # personas to draw another user's from, where so few are that close
_ROUNDING = 1e-10  # share of a sum of squares that may be nothing but rounding


@dataclass(frozen=True, slots=True)
class Equity:
    """One measure of one prefix by the values of one attribute of users.

    Attributes:
        measure: "accuracy"; "gain": accuracy less that without a prefix; "over untuned": accuracy less
            that of the untuned scorer with the same prefix.
        groups: the mean in each group; intervals resample users.
        gap: the largest difference between two groups, which is above 0 by chance already.
        f: F of the analysis of variance over users; NaN with fewer than two groups, or as many as users.
        p: how often F is as large when users are shuffled over groups.
        adjusted_p: the same, corrected over all tests (Holm).
        without: users without a group.
    """

    prefix: str
    attribute: str
    measure: Measure
    groups: Mapping[str, Estimate]
    gap: float
    f: float
    p: float
    adjusted_p: float
    without: int = 0


def equity_by_group(
    values: npt.ArrayLike,
    users: Sequence[str],
    group_of: Mapping[str, str],
    *,
    prefix: str,
    attribute: str,
    measure: Measure,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Equity:
    """The measure by group, its largest gap, and the analysis of variance; `adjusted_p` is not corrected yet.

    Args:
        values: shape (choices,); NaN is a missing one.
        users: the user of each choice.
        group_of: the group of each user.
        prefix, attribute, measure: names for the result.
        confidence, seed: of intervals and permutations.
    """
    given, names = read_numbers("values", values), np.asarray(users)
    check_lengths(given, names)
    of = np.array([group_of.get(user, "") for user in users])
    known = ~np.isnan(given) & (of != "")
    groups = {
        str(group): mean_by_group(
            given[known & (of == group)],
            names[known & (of == group)],
            bounds=(0.0, 1.0) if measure == "accuracy" else (-1.0, 1.0),
            confidence=confidence,
        )
        for group in np.unique(of[known])
    }
    people, place = np.unique(names[known], return_inverse=True)
    means = np.bincount(place, given[known]) / np.maximum(np.bincount(place), 1)
    f, p = anova(means, [group_of[str(user)] for user in people], seed=seed)
    found = [estimate.value for estimate in groups.values()]
    gap = max(found) - min(found) if found else float("nan")
    without = len(set(names[of == ""].tolist()))
    return Equity(prefix, attribute, measure, groups, gap, f, p, p, without)


def equities(
    measured: Sequence[tuple[str, Measure, npt.ArrayLike]],
    users: Sequence[str],
    groups: Mapping[str, Mapping[str, str]],
    *,
    confidence: float,
    seed: int,
) -> tuple[Equity, ...]:
    """`equity_by_group` of each prefix, measure and its values, by each attribute, corrected together."""
    return correct_together(
        [
            equity_by_group(
                values,
                users,
                group_of,
                prefix=prefix,
                attribute=attribute,
                measure=measure,
                confidence=confidence,
                seed=seed,
            )
            for attribute, group_of in groups.items()
            for prefix, measure, values in measured
        ]
    )


def correct_together(found: Sequence[Equity]) -> tuple[Equity, ...]:
    """Copies with `adjusted_p` by Holm's correction. Those without a p-value stay as they are."""
    tested = [one for one in found if not np.isnan(one.p)]
    adjusted = iter(holm([one.p for one in tested]) if tested else ())
    return tuple(
        one if np.isnan(one.p) else replace(one, adjusted_p=float(next(adjusted))) for one in found
    )


def anova(
    values: npt.ArrayLike,
    groups: Iterable[Hashable],
    *,
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> tuple[float, float]:
    """F of a one-way analysis of variance, and its p-value by permutation of the groups.

    p = (1 + permutations with an F at least as large) / (1 + permutations), which is never 0 (Phipson &
    Smyth 2010). NaN where there are fewer than two groups, or as many as values.

    Args:
        values: shape (n,); NaN is a missing one.
        groups: the group of each.
        permutations: how many are drawn.
        seed: of the draw.

    Raises:
        InvalidArgumentError: values that are not finite numbers, a missing group, or lengths that differ.
    """
    check_argument("permutations", permutations, Count)
    check_argument("seed", seed, CountFromZero)
    given, (_, numbers) = read_numbers("values", values), read_labels("groups", groups)
    check_lengths(given, numbers)
    known = ~np.isnan(given)
    given = given[known]
    names, place = np.unique(numbers[known], return_inverse=True)
    if len(names) < 2 or len(names) >= len(given):
        return float("nan"), float("nan")
    centred = _centred(given)
    between = _between(centred[None], place, len(names))[0]
    # The total is the same in all permutations, so F grows with the part between groups.
    as_large = _permuted(centred, place, len(names), permutations, seed) >= between - 1e-12
    p = (1 + np.count_nonzero(as_large)) / (1 + permutations)
    within = float(centred @ centred) - between
    if within <= 1e-12 * max(1.0, between):  # all alike, or alike within groups
        return (float("inf"), float(p)) if between > 1e-12 else (float("nan"), float("nan"))
    return float(between / (len(names) - 1) / (within / (len(given) - len(names)))), float(p)


def _permuted(
    centred: FloatArray, place: npt.NDArray[np.intp], groups: int, permutations: int, seed: int
) -> FloatArray:
    """The sum of squares between groups of each permutation, in parts that fit into memory."""
    random = np.random.default_rng(seed)
    size = max(1, _CELLS // len(centred))
    parts = []
    for start in range(0, permutations, size):
        rows = np.tile(centred, (min(size, permutations - start), 1))
        parts.append(_between(random.permuted(rows, axis=1), place, groups))
    return np.concatenate(parts)


def _between(rows: FloatArray, place: npt.NDArray[np.intp], groups: int) -> FloatArray:
    """The sum of squares between groups of each row of centred values."""
    member = np.zeros((rows.shape[1], groups))
    member[np.arange(rows.shape[1]), place] = 1.0
    found: FloatArray = ((rows @ member) ** 2 / member.sum(axis=0)).sum(axis=1)
    return found


def correlation(
    first: npt.ArrayLike, second: npt.ArrayLike, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Pearson's r of pairs of numbers, shape (n,) each, with the interval of Fisher's z (1921).

    NaN where either does not vary. Pairs with a NaN are left out. Fewer than 4 pairs have no interval
    (NaN). A bootstrap over 40 users covered 87 to 88 % where this covers 93 %.
    """
    one, other = read_numbers("first", first), read_numbers("second", second)
    check_lengths(one, other)
    known = ~(np.isnan(one) | np.isnan(other))
    x, y = _centred(one[known]), _centred(other[known])
    items = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)

    def pearson(s: FloatArray) -> FloatArray:
        n, sx, sy, sxx, syy, sxy = s.T
        spreads = [n * sxx - sx**2, n * syy - sy**2]
        # Equal numbers leave nothing but rounding, at any scale.
        varies = (spreads[0] > _ROUNDING * n * sxx) & (spreads[1] > _ROUNDING * n * syy)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (n * sxy - sx * sy) / np.sqrt(np.where(varies, spreads[0] * spreads[1], np.nan))
        found: FloatArray = np.clip(r, -1.0, 1.0)
        return found

    if len(x) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), len(x))
    r = float(pearson(items.sum(axis=0, keepdims=True))[0])
    if len(x) < 4 or np.isnan(r):
        return Estimate(r, float("nan"), float("nan"), len(x))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) / np.sqrt(len(x) - 3)
    z = np.arctanh(np.clip(r, -1 + _ROUNDING, 1 - _ROUNDING))
    low, high = np.tanh(z - reach), np.tanh(z + reach)
    return Estimate(r, float(min(low, r)), float(max(high, r)), len(x))


def _centred(values: FloatArray) -> FloatArray:
    """The values minus their mean, in a unit in which the largest is 1; 0 where there is only rounding."""
    largest = np.abs(values).max(initial=0.0)
    if not largest:
        return np.zeros_like(values)
    unit = values / largest
    centred = unit - unit.mean()
    spread = np.abs(centred).max()
    return centred / spread if spread > _ROUNDING else np.zeros_like(values)


# Values of groups, and folds


def group_values(given: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, str]]:
    """Users and values as texts, as they are in the data; without missing values."""
    hint = 'Such as {"diet": {"ann": "vegan", "bob": "none"}}.'
    if not isinstance(given or {}, Mapping):
        raise InvalidArgumentError(
            f"groups={given!r:.80} is not a mapping of attributes.", hint=hint
        )
    found = {}
    for name, of in (given or {}).items():
        if not isinstance(of, Mapping):
            raise InvalidArgumentError(
                f"groups[{name!r}] is not a mapping of users to values.", hint=hint
            )
        found[name] = texts_of(of)
    return found


def check_groups(groups: Mapping[str, Mapping[str, str]], choices: Sequence[Preference]) -> None:
    """Raise InvalidArgumentError for an attribute that is known of no user of the choices."""
    users = {choice.user or "" for choice in choices}
    for attribute, of in groups.items():
        if users.isdisjoint(of):
            raise InvalidArgumentError(
                f"groups[{attribute!r}] has none of the {len(users):,} users, such as {min(users)!r}.",
                hint="The users' ids must be the same as in the choices.",
                argument="groups",
            )


def texts_of(values: Mapping[Any, Any]) -> dict[str, str]:
    """Keys and values as texts, without values that are missing: None, "", NaN and other nulls."""
    there = {key: value for key, value in values.items() if not (is_null(value) or value == "")}
    return {str(key): str(value) for key, value in there.items()}


@dataclass(frozen=True, slots=True)
class Fold:
    """The users to fit on (`trained`), and the users to test on (`unseen`)."""

    name: str
    trained: tuple[str, ...]
    unseen: tuple[str, ...]


def folds_of(
    users: Sequence[str],
    folds: int | str,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
) -> list[Fold]:
    """Split users into folds: each is unseen in one, and trained on in the others.

    Args:
        users: their names, each once.
        folds: how many, drawn by `seed`; or an attribute of users, of which one value is left out at a
            time. Users without a value are unseen in no fold.
        groups: attribute -> user -> value.
        seed: of the draw.

    Raises:
        InvalidArgumentError: fewer than two folds, or an attribute that is not in `groups`.
        DataError: fewer users than folds, or an attribute with a single value.
    """
    check_argument("seed", seed, CountFromZero)
    if isinstance(folds, str):
        parts = _by_value(users, folds, groups)
    elif isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise InvalidArgumentError(f"folds={folds!r} must be a whole number from 2 up, or a group.")
    elif folds > len(users):
        raise DataError(f"folds={folds}, but there are only {len(users)} users.")
    else:
        order = [users[place] for place in np.random.default_rng(seed).permutation(len(users))]
        parts = {str(n + 1): set(order[n::folds]) for n in range(folds)}
    return [
        Fold(
            name,
            tuple(user for user in users if user not in left_out),
            tuple(user for user in users if user in left_out),
        )
        for name, left_out in parts.items()
    ]


def _by_value(
    users: Sequence[str], attribute: str, groups: Mapping[str, Mapping[str, str]] | None
) -> dict[str, set[str]]:
    if attribute not in (groups or {}):
        known = ", ".join(groups or {}) or "none"
        raise InvalidArgumentError(
            f"folds={attribute!r} is not an attribute of users.", hint=f"groups= has: {known}."
        )
    assert groups is not None
    parts: dict[str, set[str]] = {}
    for user in users:
        if user in groups[attribute]:
            parts.setdefault(groups[attribute][user], set()).add(user)
    if len(parts) < 2:
        raise DataError(f"the attribute {attribute!r} has {len(parts)} values here; 2 are needed.")
    return dict(sorted(parts.items()))


def other_users(
    texts: Mapping[str, str],
    choices: Sequence[Preference],
    groups: Mapping[str, Mapping[str, str]],
    seed: int,
) -> dict[str, str]:
    """For each user with choices the user whose persona is tried in place of the own one.

    The other persona has other words. Where possible the other user is of the same groups, then one who
    chose on the same prompts, and the personas differ in length by a quarter at most. Among these one is
    drawn: the nearest in length would often be one that says the same.

    Args:
        texts: the persona of each user.
        choices: the held-out choices.
        groups: attribute -> user -> value.
        seed: of the draw.
    """
    users = _Users(texts, groups)
    if len(users.names) < 2:
        return {}
    of_prompt: dict[Prompt, set[int]] = {}
    prompts: dict[str, set[Prompt]] = {}
    for choice in choices:
        of_prompt.setdefault(choice.prompt, set()).add(users.row[choice.user or ""])
        prompts.setdefault(choice.user or "", set()).add(choice.prompt)
    rows = {prompt: np.array(list(found)) for prompt, found in of_prompt.items()}
    random = np.random.default_rng(seed)
    found = {}
    for user, mine in prompts.items():
        row = users.row[user]
        near = np.zeros(len(users.names), dtype=bool)
        for prompt in mine:
            near[rows[prompt]] = True
        # Other words before all else, then the groups, then the prompts.
        same_words = users.words == users.words[row]
        tier = 4 * (len(users.values) + 1) * same_words + 2.0 * users.differing(row) + ~near
        tier[row] = np.inf
        best = np.flatnonzero(tier == tier.min())
        distance = np.abs(users.lengths[best] - users.lengths[row])
        nearest = np.partition(distance, min(_FEWEST, len(best)) - 1)[:_FEWEST]
        close = distance <= max(_CLOSE * users.lengths[row], nearest.max())
        found[user] = users.names[int(random.choice(best[close]))]
    return found


class _Users:
    """Users by their rows in arrays: what is compared of their personas and their groups."""

    def __init__(self, texts: Mapping[str, str], groups: Mapping[str, Mapping[str, str]]) -> None:
        self.names = list(texts)
        self.row = {name: row for row, name in enumerate(self.names)}
        self.lengths = np.array([len(text) for text in texts.values()], dtype=float)
        self.words = _numbered(texts.values())
        self.values = [_numbered(of.get(name, "") for name in self.names) for of in groups.values()]

    def differing(self, row: int, among: npt.NDArray[np.intp] | slice = slice(None)) -> Any:
        """In how many attributes users differ from that of a row."""
        return sum((of[among] != of[row] for of in self.values), np.zeros_like(self.words[among]))


def _numbered(texts: Iterable[str]) -> npt.NDArray[np.intp]:
    """The same number for the same text."""
    return np.unique(list(texts), return_inverse=True)[1]


def strangers(
    texts: Mapping[str, str],
    choices: Sequence[Preference],
    groups: Mapping[str, Mapping[str, str]],
    seed: int,
) -> list[str | None]:
    """For each choice the user whose persona is tried in place of the own one; None where there is none.

    Where it is possible one who has held-out choices with both responses: with that user's persona both
    are scored anyway, so that the control costs nothing. Such a user must be as fitting as the one of
    `other_users`, which is taken elsewhere: of the same groups, and with a persona about as long.

    Args:
        texts, choices, groups, seed: as for `other_users`.
    """
    of_user = other_users(texts, choices, groups, seed)
    users = _Users(dict(sorted(texts.items())), groups)
    holders: dict[tuple[Prompt, str], set[int]] = {}
    for choice in choices:
        for said in (choice.chosen, choice.rejected):
            holders.setdefault((choice.prompt, said), set()).add(users.row[choice.user or ""])

    @cache
    def with_both(prompt: Prompt, one: str, other: str) -> npt.NDArray[np.intp]:
        return np.array(sorted(holders[prompt, one] & holders[prompt, other]))

    random = np.random.default_rng(seed)
    found = list[str | None]()
    for choice in choices:
        taken = of_user.get(choice.user or "")
        free: Any = ()
        if taken is not None:
            row = users.row[choice.user or ""]
            both = with_both(choice.prompt, choice.chosen, choice.rejected)
            distance = np.abs(users.lengths[both] - users.lengths[row])
            most = users.differing(row, np.array([users.row[taken]]))
            fits = (users.words[both] != users.words[row]) & (users.differing(row, both) <= most)
            free = both[fits & (distance <= _CLOSE * users.lengths[row])]
        found.append(users.names[int(random.choice(free))] if len(free) else taken)
    return found
