"""Group personas that want something similar, by the meaning of their preferences or by frequent phrases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import InstanceOf

from ..arguments import check_argument
from ..data.table import PersonaTable
from ..evaluation.salience import STOP_WORDS, without_contrast
from ..evaluation.summary import SIDES
from ..exceptions import MissingExtraError
from ..records import Persona, Side
from ..tailoring.embeddings import Embedder, Floats, embed, sentence_embedder

EXAMPLES = 3  # personas shown of each group
_MOST = 8  # groups
_LEAST_SHARE = 0.02  # the smallest group, as a share of the personas
_LEAST = 3  # the smallest group, in personas
_LONGEST = 3  # the most words of a phrase
_SAMPLE = 1000  # the most vectors to choose the number of clusters by
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_CLAUSES = re.compile(r"[,;:.!?()\u2014]")
# Words for a response. Alone, they do not say what somebody wants.
_RESPONSES = frozenset(
    """
    advice answer answers approach approaches explanation explanations guidance information response
    responses solution solutions someone something suggestion suggestions user way ways things
    """.split()
)
# Words that do not start or end a phrase, because they do not say what somebody wants.
_NO_LABEL = frozenset(STOP_WORDS) | frozenset(
    """
    about acknowledges addresses also both covers emphasizes focuses gives her him his includes no not
    offers only prefer preferring prefers prioritizes provides so them values
    """.split()
)


class Place(NamedTuple):
    """A persona of a table: the place of its row, from 0, and its side."""

    row: int
    side: Side


@dataclass(frozen=True, slots=True)
class PersonaGroup:
    """Personas that want something similar.

    Attributes:
        label: one to three frequent phrases of the personas, with commas between; "other" if no phrase is
            typical of them.
        members: the places of the personas in the table.
        examples: the places of up to three personas with different texts: the nearest to the centre of the
            group, or the first ones if personas were grouped by phrases.
        share: the number of the personas divided by the number of all personas.
    """

    label: str
    members: tuple[Place, ...]
    examples: tuple[Place, ...]
    share: float

    @property
    def chosen(self) -> int:
        """How many of the personas are of the chosen side."""
        return sum(one.side == "chosen" for one in self.members)

    @property
    def rejected(self) -> int:
        """How many of the personas are of the rejected side."""
        return len(self.members) - self.chosen


def persona_groups(
    table: PersonaTable, *, embedder: Embedder | str | Path | None = None
) -> list[PersonaGroup]:
    """Find up to eight groups of personas that want something similar, the largest first.

    Args:
        table: a table with personas of one side or both.
        embedder: to group by meaning: a sentence-transformers model (its name or folder), or a function from
            n texts to vectors (n, dimensions). The vectors are clustered by scikit-learn's k-means; the
            number of clusters has the best silhouette. None: group by phrases. The most frequent phrase is
            taken first, where a longer phrase counts more, and each persona is in the group of the first
            phrase that it has.

    Returns:
        The groups. A group with fewer than three personas, or less than 2 % of all, is left out, so the
        shares may add up to less than 1, and there may be no group.

    Raises:
        MissingExtraError: sentence-transformers or scikit-learn is needed and not installed.
        InvalidArgumentError: `table` is no table, or there is no model `embedder`.
        ModelError: the embedder did not give one finite vector for each text.
    """
    check_argument("table", table, InstanceOf[PersonaTable])
    found = [
        (Place(place, side), persona)
        for place, row in enumerate(table)
        for side in SIDES
        if (persona := getattr(row, side)) is not None
    ]
    texts = [_wanted(persona) for _, persona in found]
    least = max(_LEAST, ceil(_LEAST_SHARE * len(found)))
    if len(found) < least:
        return []
    grouped = _by_phrases(texts, least) if embedder is None else _by_meaning(texts, embedder)
    groups = []
    for label, members in grouped:
        if len(members) < least:
            continue
        examples = _examples(members, [str(persona) for _, persona in found])
        groups.append(
            PersonaGroup(
                label=label,
                members=tuple(found[n][0] for n in sorted(members)),
                examples=tuple(found[n][0] for n in examples),
                share=len(members) / len(found),
            )
        )
    return sorted(groups, key=lambda one: -len(one.members))


def _wanted(persona: Persona) -> str:
    """The persona's preference, else its sentence, in lower case and without clauses of contrast."""
    return without_contrast(persona.preference or str(persona)).lower()


def _examples(members: Sequence[int], texts: Sequence[str]) -> list[int]:
    """Select the first three members with different texts; `texts` are those of all personas."""
    first = {texts[n]: n for n in reversed(members)}
    return sorted(first.values(), key=members.index)[:EXAMPLES]


# By phrases


def _by_phrases(texts: Sequence[str], least: int) -> list[tuple[str, list[int]]]:
    """Group texts greedily by their most frequent phrases.

    The frequency of a phrase counts 1, 1.5 or 2 times for 1, 2 or 3 words, because longer phrases say more. A
    text is in one group only. Phrases of fewer than `least` texts make no group.

    Returns:
        (label, places of the texts) of each group, at most eight. The label is the phrase, and up to two
        others that are typical of the group.
    """
    having: dict[str, set[int]] = {}
    for place, text in enumerate(texts):
        for phrase in _phrases(text):
            having.setdefault(phrase, set()).add(place)
    having = {phrase: places for phrase, places in having.items() if len(places) >= least}
    grouped: list[tuple[str, list[int]]] = []
    while having and len(grouped) < _MOST:
        best = max(having, key=lambda one: (len(having[one]) * (1 + one.count(" ") / 2), one))
        taken = having.pop(best)
        grouped.append((best, sorted(taken)))
        having = {
            phrase: left
            for phrase, places in having.items()
            if len(left := places - taken) >= least
        }
    also = _typical_phrases(texts, [members for _, members in grouped])
    return [
        (", ".join([phrase, *[one for one in more if not _is_within(phrase, one)][:2]]), members)
        for (phrase, members), more in zip(grouped, also, strict=True)
    ]


def _phrases(text: str) -> set[str]:
    """Find the phrases of a text: runs of up to three words within a clause that say what somebody wants.

    A phrase neither starts nor ends with a word of `_NO_LABEL`, and has a word that is not in `_RESPONSES`.
    """
    found = set()
    for clause in _CLAUSES.split(text):
        words = _WORD.findall(clause)
        for start, first in enumerate(words):
            if first in _NO_LABEL:
                continue
            for end in range(start + 1, min(start + _LONGEST, len(words)) + 1):
                run = words[start:end]
                if run[-1] not in _NO_LABEL and not _RESPONSES.issuperset(run):
                    found.add(" ".join(run))
    return found


# By meaning


def _by_meaning(
    texts: Sequence[str], embedder: Embedder | str | Path
) -> list[tuple[str, list[int]]]:
    """Cluster texts by their vectors.

    Returns:
        (label, places of the texts, the nearest to the centre first) of each cluster.
    """
    if isinstance(embedder, str | Path):
        embedder = sentence_embedder(embedder)
    cluster = MissingExtraError.require("sklearn.cluster")
    vectors = embed(embedder, texts)
    count = _cluster_count(cluster, vectors)
    fitted = cluster.KMeans(count, n_init=4, random_state=0).fit(vectors)
    distances = fitted.transform(vectors)
    places = [np.flatnonzero(fitted.labels_ == n) for n in range(count)]
    typical = [
        members[np.argsort(distances[members, n], kind="stable")].tolist()
        for n, members in enumerate(places)
    ]
    labels = [", ".join(phrases) or "other" for phrases in _typical_phrases(texts, typical)]
    return list(zip(labels, typical, strict=True))


def _cluster_count(cluster: Any, vectors: Floats) -> int:
    """Choose the number of clusters with the best silhouette on a sample; 1 if fewer than 3 vectors differ.

    The sample has up to 1,000 vectors. There are at most eight clusters.
    """
    silhouette = MissingExtraError.require("sklearn.metrics").silhouette_score
    drawn = np.random.default_rng(0).permutation(len(vectors))[:_SAMPLE]
    sample = vectors[drawn]
    most = min(_MOST, len(np.unique(sample, axis=0)) - 1)
    if most < 2:
        return 1
    scores = {
        count: silhouette(
            sample, cluster.KMeans(count, n_init=2, random_state=0).fit_predict(sample)
        )
        for count in range(2, most + 1)
    }
    return max(scores, key=lambda count: scores[count])


def _typical_phrases(texts: Sequence[str], groups: Sequence[Sequence[int]]) -> list[list[str]]:
    """Find for each group of texts up to three phrases that are more frequent in it than in all texts.

    score = n * log((n / texts in the group) / (N / all texts)) * w, for a phrase that n texts of the group
    and N of all texts have. The weight w is 1, 1.5 or 2 for 1, 2 or 3 words. A phrase is left out if n is
    below 3, if its score is not above 0, or if it contains a better phrase that is kept, or is within one.

    Args:
        texts: all texts.
        groups: for each group the places of its texts, from 0.

    Returns:
        The phrases of each group, the highest score first.
    """
    every = [_phrases(text) for text in texts]
    total = Counter(phrase for phrases in every for phrase in phrases)
    found = []
    for members in groups:
        here = Counter(phrase for n in members for phrase in every[n])
        scores = {
            phrase: count
            * log(count / total[phrase] * len(texts) / len(members))
            * (1 + phrase.count(" ") / 2)
            for phrase, count in here.items()
            if count >= _LEAST
        }
        named: list[str] = []
        for phrase in sorted(scores, key=lambda one: (-scores[one], one)):
            is_known = any(_is_within(phrase, one) or _is_within(one, phrase) for one in named)
            if scores[phrase] > 0 and not is_known:
                named.append(phrase)
        found.append(named[:3])
    return found


def _is_within(phrase: str, longer: str) -> bool:
    """Whether a phrase begins at a word of another one: "book" is in "new books", "art" is not in "smart"."""
    return f" {phrase}" in f" {longer}"
