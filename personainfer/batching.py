"""Which texts go through a model together, and what of them has to be read only once.

Texts about one prompt have the same start: a chat template, the prompt, and only then a persona. What
reads them is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from .scoring import Tokens, TokenText

__all__ = ["batches", "common_starts", "length_groups"]


def batches(texts: Sequence[TokenText], size: int) -> Iterator[list[int]]:
    """Places of texts that go together, at most `size`: with a common start, or starts of one length."""
    places: dict[Tokens, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        places[text.prefix].append(place)
    batch: list[int] = []
    for _, prefixes in sorted(_groups(places), reverse=True):
        group = [place for prefix in prefixes for place in places[prefix]]
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch += group
        while len(batch) >= size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch


def length_groups(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Places of rows that are padded to one length: apart where that saves more tokens than a pass costs."""
    groups: list[list[int]] = []
    width = 0
    for number, place in enumerate(sorted(range(len(lengths)), key=lambda place: -lengths[place])):
        saved = (width - lengths[place]) * (len(lengths) - number)
        if not groups or saved > pass_cost:
            groups.append([])
            width = lengths[place]
        groups[-1].append(place)
    return groups


def common_starts(prefixes: Iterable[Tokens]) -> dict[Tokens, Tokens]:
    """For each prefix the start to read first, once for all that have it; never the whole prefix.

    Empty where no two prefixes have enough in common.
    """
    groups = _groups(prefixes)
    if all(len(group) == 1 for _, group in groups):
        return {}
    return {prefix: prefix[:length] for length, group in groups for prefix in group}


def _groups(prefixes: Iterable[Tokens]) -> list[tuple[int, list[Tokens]]]:
    """Prefixes with a common start, and its length: neighbours in order, while that saves tokens."""
    groups: list[tuple[int, list[Tokens]]] = []
    for prefix in sorted(set(prefixes)):
        if groups:
            length, group = groups[-1]
            common = min(length, _common(group[-1], prefix), len(prefix) - 1)
            # Reading a shorter start is saved for this one, and the rest is read by each of the others.
            if common > (len(group) - 1) * (length - common):
                groups[-1] = (common, [*group, prefix])
                continue
        groups.append((len(prefix) - 1, [prefix]))
    return groups


def _common(one: Tokens, other: Tokens) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
