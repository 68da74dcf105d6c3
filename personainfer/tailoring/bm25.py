"""Okapi BM25: score texts by the words that they share with a query; rare words count more. Numpy only.

Source: Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009, section 3.4).
The inverse document frequency of a word that n of N texts hold is log(1 + (N - n + 0.5) / (n + 0.5)). The
paper's has no 1, and can be negative.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..exceptions import InvalidArgumentError
from ..personas.flags import MARKS
from ..personas.prompts import composed

# In scripts without spaces between words (kana, Han), each character counts as a word.
_SINGLE = "぀-ヿ㐀-鿿豈-﫿"
_WORD = re.compile(rf"[{_SINGLE}]|(?:[^\W_{_SINGLE}][{MARKS}]*)+")


def words(text: str) -> list[str]:
    """Split a text into words, case-folded. Accented letters are composed (NFC).

    Of kana and Han, each character is a word. Underscores and punctuation belong to no word.

    Raises:
        InvalidArgumentError: `text` is not text.
    """
    if not isinstance(text, str):
        raise InvalidArgumentError(f"text={text!r:.80} is not text.", argument="text")
    return _WORD.findall(composed(text).casefold())


class BM25:
    """An index of texts that computes how well each text matches a query.

    Args:
        texts: the texts to search.
        k1: how much further occurrences of a word in a text add to its score; 0: nothing.
        b: how much a text loses because it is longer than the mean (and gains because it is shorter), from 0
            (nothing) to 1.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        counts = [Counter(words(text)) for text in texts]
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        mean = lengths.mean() if lengths.any() else 1.0
        held: dict[str, list[tuple[int, int]]] = {}
        for place, count in enumerate(counts):
            for word, times in count.items():
                held.setdefault(word, []).append((place, times))
        self._size = len(counts)
        self._weights: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        damping = k1 * (1 - b + b * lengths / mean)
        for word, found in held.items():
            places = np.array([place for place, _ in found])
            often = np.array([times for _, times in found], dtype=np.float64)
            rarity = math.log(1 + (self._size - len(found) + 0.5) / (len(found) + 0.5))
            self._weights[word] = places, rarity * often * (k1 + 1) / (often + damping[places])

    def scores(self, query: str) -> NDArray[np.float64]:
        """Compute the BM25 score of each text, shape (texts,); 0: the text shares no word with the query.

        A word that occurs twice in the query counts twice.
        """
        total = np.zeros(self._size)
        for word, times in Counter(words(query)).items():
            if word in self._weights:
                places, weights = self._weights[word]
                total[places] += times * weights
        return total
