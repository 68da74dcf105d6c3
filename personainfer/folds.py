"""Users who are trained on and users who are not: k folds, or one group left out at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .exceptions import DataError, InvalidArgumentError

__all__ = ["Fold", "folds_of"]


@dataclass(frozen=True, slots=True)
class Fold:
    """What is fitted knows the users `trained`; `unseen` are all others. `name` tells folds apart."""

    name: str
    trained: tuple[str, ...]
    unseen: tuple[str, ...]


def folds_of(
    users: Sequence[str],
    folds: int | str,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
) -> list[Fold]:
    """Every user is unseen in one fold, and trained on in the others.

    Args:
        users: their names, each once.
        folds: how many, drawn by `seed`; or the attribute of users of which one value is left out at a
            time. Users without a value are in no fold's `unseen`.
        groups: attribute -> user -> value.
        seed: of the draw.

    Raises:
        InvalidArgumentError: fewer than two folds, or an attribute that is not in `groups`.
        DataError: fewer users than folds, or an attribute with a single value.
    """
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
            f"folds={attribute!r} is no attribute of users.", hint=f"groups= has: {known}."
        )
    assert groups is not None
    parts: dict[str, set[str]] = {}
    for user in users:
        if user in groups[attribute]:
            parts.setdefault(groups[attribute][user], set()).add(user)
    if len(parts) < 2:
        raise DataError(f"the attribute {attribute!r} has {len(parts)} values here; 2 are needed.")
    return dict(sorted(parts.items()))
