"""Compare groups of users, split users into folds, and choose whose persona to try on another user.

The test of a difference between groups is a one-way analysis of variance over users, as in FamousPersona
(arXiv 2505.13257). Its p-values come from permutations, which need no normal distribution, and are corrected
for the number of tests.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, Strict

from ..arguments import (
    MOST,
    Count,
    CountFromZero,
    Text,
    Wanted,
    by_text,
    check_argument,
    id_text,
    read_items,
    read_labels,
    read_numbers,
    unboxed,
)
from ..evaluation.grouped import check_lengths, mean_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, check_confidence, holm_of_tested
from ..exceptions import DataError, InvalidArgumentError
from ..preferences.cells import is_null
from ..records import FloatArray, Preference, Prompt

Measure = Literal["accuracy", "gain", "over untuned", "own - shuffled"]

_PERMUTATIONS = 9_999
_CELLS = 2_000_000  # numbers held at once while permuting
_CLOSE = 0.25  # the length of another user's persona may differ by this share
_FEWEST = 5  # draw among at least so many personas, even if their lengths differ by more
_ROUNDING = 1e-10  # a relative difference below this is rounding


@dataclass(frozen=True, slots=True)
class Equity:
    """One measure of one prefix, compared between the groups that an attribute of users defines.

    Attributes:
        prefix: the name of the prefix.
        attribute: the name of the attribute, such as "diet"; each of its values is a group.
        measure: "accuracy"; "gain": accuracy minus the accuracy without a prefix; "over untuned": accuracy
            minus the accuracy of the untuned scorer with the same prefix; "own - shuffled": accuracy minus
            the accuracy with another user's persona.
        groups: the mean in each group, with an interval that resamples users.
        gap: the largest difference between two groups. Chance alone makes it larger than 0. NaN without
            groups.
        f: F of the analysis of variance over users; infinite if all users of each group have the same mean,
            and groups differ. NaN with fewer than two groups, as many groups as users, or if all users have
            the same mean.
        p: the p-value of `f` by permutation; NaN where `f` is.
        adjusted_p: `p` corrected for all tests of one evaluation (Holm 1979).
        without: how many users have no value of the attribute. They are left out.
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
    """Compare a measure between groups of users, by an analysis of variance over the means of users.

    Args:
        values: the measure on each choice, shape (choices,); NaN is a missing one.
        users: the user of each choice, length (choices,).
        group_of: user -> group. Choices of users without a group are left out.
        prefix, attribute, measure: names for the result. An "accuracy" lies between 0 and 1, another measure
            between -1 and 1.
        confidence: of the intervals, between 0 and 1.
        seed: of the permutations.

    Returns:
        The comparison. `adjusted_p` equals `p`: see `correct_together`.

    Raises:
        InvalidArgumentError: values and users of different lengths, or values that are not numbers, or
            outside of the limits of the measure.
    """
    given, (names, numbers) = read_numbers("values", values), read_labels("users", users)
    check_lengths(given, numbers)
    named = [group_of.get(name, "") for name in names]
    kinds, kind_of = read_labels("groups", named)
    of = kind_of[numbers]
    grouped = np.array([kind != "" for kind in kinds], dtype=bool)[of]
    known = ~np.isnan(given) & grouped
    groups = {
        str(kinds[kind]): mean_by_group(
            given[known & (of == kind)],
            numbers[known & (of == kind)],
            bounds=(0.0, 1.0) if measure == "accuracy" else (-1.0, 1.0),
            confidence=confidence,
        )
        for kind in np.unique(of[known])
    }
    people, place = np.unique(numbers[known], return_inverse=True)
    means = np.bincount(place, given[known]) / np.maximum(np.bincount(place), 1)
    f, p = anova(means, [named[person] for person in people], seed=seed)
    found = [estimate.value for estimate in groups.values()]
    gap = max(found) - min(found) if found else float("nan")
    without = len(np.unique(numbers[~grouped]))
    return Equity(prefix, attribute, measure, groups, gap, f, p, p, without)


def equities(
    measured: Sequence[tuple[str, Measure, npt.ArrayLike]],
    users: Sequence[str],
    groups: Mapping[str, Mapping[str, str]],
    *,
    confidence: float,
    seed: int,
) -> tuple[Equity, ...]:
    """Call `equity_by_group` for each measurement and attribute, and correct all p-values together.

    Args:
        measured: (name of the prefix, measure, values of shape (choices,)) of each measurement.
        users: the user of each choice, length (choices,).
        groups: attribute -> user -> group.
        confidence: of the intervals.
        seed: of the permutations.
    """
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
    """Copy each comparison with `adjusted_p` by Holm's correction (1979) over all that have a p-value."""
    adjusted = holm_of_tested([one.p for one in found])
    return tuple(replace(one, adjusted_p=float(p)) for one, p in zip(found, adjusted, strict=True))


def left_out_of_groups(found: Iterable[Equity]) -> list[str]:
    """Return a sentence for each attribute that some users have no value of."""
    counts = {one.attribute: one.without for one in found if one.without}
    return [
        f"{n:,} users without a value of {name}, left out of its groups."
        for name, n in counts.items()
    ]


def anova(
    values: npt.ArrayLike,
    groups: Iterable[Hashable],
    *,
    permutations: int = _PERMUTATIONS,
    seed: int = 0,
) -> tuple[float, float]:
    """Return F of a one-way analysis of variance, and its p-value by permutation of the groups.

    p = (1 + permutations with an F at least as large) / (1 + permutations), which is never 0 (Phipson & Smyth
    2010). Both are NaN with fewer than two groups, with as many groups as values, or if all values are equal.
    F is infinite if values differ between groups only.

    Args:
        values: shape (n,); NaN is a missing one, which is left out.
        groups: the group of each value, length (n,).
        permutations: how many to draw.
        seed: of the draw.

    Raises:
        InvalidArgumentError: values that are not finite numbers, a missing group, lengths that differ, or
            another bad argument.
    """
    permutations = check_argument("permutations", permutations, Count)
    seed = check_argument("seed", seed, CountFromZero)
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
    """Return the sum of squares between groups for each of so many permutations, shape (permutations,)."""
    random = np.random.default_rng(seed)
    size = max(1, _CELLS // len(centred))
    parts = []
    for start in range(0, permutations, size):
        rows = np.tile(centred, (min(size, permutations - start), 1))
        parts.append(_between(random.permuted(rows, axis=1), place, groups))
    return np.concatenate(parts)


def _between(rows: FloatArray, place: npt.NDArray[np.intp], groups: int) -> FloatArray:
    """Return the sum of squares between groups for each row of centred values: (k, n) -> (k,)."""
    member = np.zeros((rows.shape[1], groups))
    member[np.arange(rows.shape[1]), place] = 1.0
    found: FloatArray = ((rows @ member) ** 2 / member.sum(axis=0)).sum(axis=1)
    return found


def correlation(
    first: npt.ArrayLike, second: npt.ArrayLike, *, confidence: float = CONFIDENCE
) -> Estimate:
    """Estimate Pearson's r of two arrays of shape (n,), with the interval of Fisher's z (1921).

    Pairs with a NaN are left out; `n` counts the others. r is NaN if either array does not vary; the interval
    is NaN with fewer than 4 pairs. A nominal 95 % interval covered r in 93 % of samples of 40 users; a
    bootstrap in 87 to 88 %.

    Raises:
        InvalidArgumentError: values that are not finite numbers, lengths that differ, or a `confidence` that
            is not between 0 and 1.
    """
    confidence = check_confidence(confidence)
    one, other = read_numbers("first", first), read_numbers("second", second)
    check_lengths(one, other)
    known = ~(np.isnan(one) | np.isnan(other))
    x, y = _centred(one[known]), _centred(other[known])
    if not (x.any() and y.any()):
        return Estimate(float("nan"), float("nan"), float("nan"), len(x))
    r = float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))
    if len(x) < 4:
        return Estimate(r, float("nan"), float("nan"), len(x))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) / np.sqrt(len(x) - 3)
    z = np.arctanh(np.clip(r, -1 + _ROUNDING, 1 - _ROUNDING))
    low, high = np.tanh(z - reach), np.tanh(z + reach)
    return Estimate(r, float(min(low, r)), float(max(high, r)), len(x))


def _centred(values: FloatArray) -> FloatArray:
    """Subtract the mean, and scale so that the largest absolute value is 1; all 0 if values are equal."""
    largest = np.abs(values).max(initial=0.0)
    if not largest:
        return np.zeros_like(values)
    unit = values / largest
    centred = unit - unit.mean()
    spread = np.abs(centred).max()
    return centred / spread if spread > _ROUNDING else np.zeros_like(values)


# Values of groups, and folds


def group_values(given: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, str]]:
    """Turn users and values of groups= into texts, and drop missing values.

    Args:
        given: attribute -> user -> value; None: there are no groups.

    Returns:
        Attribute -> user -> value, which is empty for None.

    Raises:
        InvalidArgumentError: `given`, or an attribute of it, is not a mapping, or has a user twice.
    """
    hint = 'Such as {"diet": {"ann": "vegan", "bob": "none"}}.'
    if given is not None and not isinstance(given, Mapping):
        raise InvalidArgumentError(
            f"groups={given!r:.80} is not a mapping of attributes.", hint=hint
        )
    found = {}
    for name, of in (given or {}).items():
        if not isinstance(of, Mapping):
            raise InvalidArgumentError(
                f"groups[{name!r}] is not a mapping of users to values.", hint=hint
            )
        found[name] = texts_of("groups", of)
    return found


def check_groups(groups: Mapping[str, Mapping[str, str]], choices: Sequence[Preference]) -> None:
    """Raise InvalidArgumentError if no user of the choices has a value of some attribute."""
    users = {choice.user or "" for choice in choices}
    for attribute, of in groups.items():
        if users.isdisjoint(of):
            raise InvalidArgumentError(
                f"groups[{attribute!r}] has none of the {len(users):,} users, such as {min(users)!r}.",
                hint="The users' ids must be the same as in the choices.",
                argument="groups",
            )


def texts_of(name: str, values: Mapping[Any, Any]) -> dict[str, str]:
    """Turn keys and values of an argument into texts, and drop missing values: None, "", NaN and other nulls.

    Raises:
        InvalidArgumentError: two keys are one text, such as 7 and "7".
    """
    plain = {key: unboxed(value) for key, value in values.items()}
    there = {key: value for key, value in plain.items() if not (is_null(value) or value == "")}
    return {key: id_text(value) for key, value in by_text(name, there).items()}


@dataclass(frozen=True, slots=True)
class Fold:
    """A split of users.

    Attributes:
        name: the number of the fold, from "1", or the value that all of its unseen users have.
        trained: the users to fit on.
        unseen: the users to test on.
    """

    name: str
    trained: tuple[str, ...]
    unseen: tuple[str, ...]


Folds = Annotated[
    Annotated[int, Strict(), Field(ge=2, le=MOST)] | Text,
    Wanted("must be a whole number from 2 up, or a group."),
]


def folds_of(
    users: Sequence[str],
    folds: int | str,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
) -> list[Fold]:
    """Split users into folds: each is unseen in one, and trained on in the others.

    Args:
        users: their names, each once.
        folds: how many, drawn by `seed`; or an attribute of users, of which one value is left out at a time.
            Users without a value are trained on in all folds, and unseen in none.
        groups: attribute -> user -> value.
        seed: of the draw.

    Raises:
        InvalidArgumentError: fewer than two folds, an attribute that is not in `groups`, or a bad seed.
        DataError: fewer users than folds, or an attribute with fewer than two values among these users.
    """
    seed = check_argument("seed", seed, CountFromZero)
    folds = check_argument("folds", folds, Folds)
    users = read_items("users", users)
    if isinstance(folds, str):
        parts = _by_value(users, folds, groups)
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
    """Choose for each user who has choices another user, whose persona is tried as a control.

    Three things are preferred, in this order: a persona in other words; a user of the same groups; a user who
    chose on one of the same prompts. Of the users who are best by these, one is drawn whose persona's length
    differs by a quarter at most, or is among the five nearest lengths. A draw is better than the nearest
    length, which often belongs to a persona that says the same.

    Args:
        texts: user -> persona.
        choices: the held-out choices, all of users in `texts`.
        groups: attribute -> user -> value.
        seed: of the draw.

    Returns:
        User -> other user; empty if there are fewer than two personas.
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
    """The lengths and texts of users' personas, and their groups, as arrays to compare users by.

    Attributes:
        names: the users; `row` has the place of each name in the arrays.
        lengths: characters of each persona, shape (users,).
        words: a number for each distinct persona, shape (users,).
        values: for each attribute a number for each distinct value, shape (users,).
    """

    def __init__(self, texts: Mapping[str, str], groups: Mapping[str, Mapping[str, str]]) -> None:
        self.names = list(texts)
        self.row = {name: row for row, name in enumerate(self.names)}
        self.lengths = np.array([len(text) for text in texts.values()], dtype=float)
        _, self.words = read_labels("texts", texts.values())
        self.values = [
            read_labels("groups", [of.get(name, "") for name in self.names])[1]
            for of in groups.values()
        ]

    def differing(self, row: int, among: npt.NDArray[np.intp] | slice = slice(None)) -> Any:
        """Count the attributes in which each user of `among` differs from the user at the place `row`.

        Args:
            row: the place of a user in `names`.
            among: the places of the users to compare; a slice of everything: all users.

        Returns:
            Shape (users of `among`,), in their order.
        """
        return sum((of[among] != of[row] for of in self.values), np.zeros_like(self.words[among]))


def strangers(
    texts: Mapping[str, str],
    choices: Sequence[Preference],
    groups: Mapping[str, Mapping[str, str]],
    seed: int,
) -> list[str | None]:
    """Choose for each choice another user, whose persona is tried as a control.

    A user is preferred who has held-out choices with both of the responses. They are scored with that user's
    persona anyway, so the control costs no further call. The persona of such a user must have other words,
    and a length that differs by a quarter at most; and the user must not differ in more attributes than the
    user of `other_users`. If there is no such user, the user of `other_users` is taken.

    Args:
        texts, choices, groups, seed: as for `other_users`.

    Returns:
        One user for each choice, in order; None: there are fewer than two personas.
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
