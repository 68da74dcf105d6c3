"""Draw the weights of simulated users from a Dirichlet distribution; near duplicates can be drawn again."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from ..records import FloatArray

_ROUNDS = 50  # the most times that near duplicates are drawn again


def draw_weights(
    users: int, models: int, alpha: float, min_distance: float, seed: int
) -> tuple[FloatArray, int]:
    """Draw weights, and draw a user again who is nearer than `min_distance` (Euclidean) to an earlier one.

    Args:
        users: how many users.
        models: how many models, between which each user's weights are divided.
        alpha: the concentration of the Dirichlet distribution.
        min_distance: the least distance of two users; 0: nobody is drawn again.
        seed: of the draw.

    Returns:
        Weights of shape (users, models), of which each row sums to 1, and how often a user was drawn again.
        If near users are left after 50 rounds, a warning says how many.
    """
    random = np.random.default_rng(seed)
    drawn = _dirichlet(random, alpha, models, users)
    redrawn = 0
    for _ in range(_ROUNDS if min_distance else 0):
        near = _near_duplicates(drawn, min_distance)
        count = int(near.sum())
        if not count:
            return drawn, redrawn
        redrawn += count
        drawn = np.concatenate([drawn[~near], _dirichlet(random, alpha, models, count)])
    if min_distance and (left := int(_near_duplicates(drawn, min_distance).sum())):
        warnings.warn(
            f"{left:,} of {users:,} users are nearer than min_distance={min_distance:g} to others: there"
            " are too few different ones at this alpha.",
            stacklevel=3,
        )
    return drawn, redrawn


def _dirichlet(random: np.random.Generator, alpha: float, models: int, count: int) -> FloatArray:
    drawn = random.dirichlet(np.full(models, alpha), size=count)
    weights: FloatArray = drawn / drawn.sum(axis=1, keepdims=True)
    return weights


def _near_duplicates(users: FloatArray, distance: float) -> npt.NDArray[np.bool_]:
    """Mark users who are nearer than `distance` to an earlier user who is kept: booleans, shape (users,)."""
    kept = np.zeros(len(users), dtype=bool)
    # First keep one user in each cell of a fine grid, so that few are left to compare.
    _, first = np.unique(np.floor(users / (distance / users.shape[1])), axis=0, return_index=True)
    kept[first] = True
    direction = np.sqrt(np.arange(1, users.shape[1] + 1))
    order = first[np.argsort(users[first] @ direction)]
    along = users[order] @ direction
    reach = distance * np.linalg.norm(direction)  # |a.v - b.v| <= |a - b| |v|
    step = 1
    near: list[tuple[int, int]] = []
    while (close := np.flatnonzero(along[step:] - along[:-step] < reach)).size:
        one, other = order[close], order[close + step]
        same = np.linalg.norm(users[one] - users[other], axis=1) < distance
        near += zip(np.minimum(one, other)[same], np.maximum(one, other)[same], strict=True)
        step += 1
    for earlier, later in sorted(near, key=lambda pair: pair[1]):
        if kept[earlier]:
            kept[later] = False
    return ~kept
