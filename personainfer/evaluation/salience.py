"""Find the words that are more frequent in the personas of one side than in those of the other.

"Whose Boat Does it Float?" (arXiv 2501.11549, saliency) reports P(side | word) for words above a minimum
count. This module adds a log-odds ratio with an interval, and a p-value corrected for the number of words.
Only words of traits and preferences count, not the fixed words of the sentence around them.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from functools import cache, partial
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from ..arguments import Count, PositiveNumber, check_argument
from ..data.table import PersonaTable
from ..exceptions import DataError, InvalidArgumentError, visible
from ..personas.flags import MARKS
from ..personas.prompts import composed
from ..records import Persona, Side
from .statistics import (
    CONFIDENCE,
    Estimate,
    benjamini_hochberg,
    check_confidence,
    holm,
    log_odds,
    two_sided_p,
    wilson,
)

FLOOR = 10  # as in the paper
# A word may have hyphens ("to-the-point"), apostrophes, and combining marks at its letters.
_LETTER = rf"[^\W\d_][{MARKS}]*"
_WORD = re.compile(rf"(?:{_LETTER})+(?:['\u2019-](?:{_LETTER})+)*")
_FRAME = re.compile(r"^\s*(?:the|this) (?:user|person)\b|\bprefer(?:s|ring)?\b", re.I)
_CORRECTIONS = {"benjamini-hochberg": benjamini_hochberg, "holm": holm}

# Words that say nothing about a person. If they counted, the correction for many words would be stricter.
STOP_WORDS = frozenset(
    """
    a an and any are as at be been being but by can do does for from has have how i if in into is it
    its more most of on or other over rather than that the their them they this to was what when
    where which while who whose will with without would you your
    """.split()
)


@dataclass(frozen=True, slots=True)
class SalientWord:
    """A word, and how strongly it marks one side.

    Attributes:
        word: the word, or its lemma, in lower case.
        side: the side that the word marks; None if the log-odds ratio is 0.
        chosen, rejected: how many personas of each side have the word.
        probability: the paper's P(chosen | word): the share of chosen personas among those with the word,
            with Wilson's interval. Compare it to the share of chosen personas among all.
        log_odds: the log-odds ratio in nats, above 0 if the word marks the chosen side.
        z: `log_odds` divided by its standard error.
        p_value: two-sided.
        p_adjusted: `p_value` corrected for all words that reach the floor.
        lemmatizer: what turned words into lemmas: a package with its version, or the name of your function;
            None: words were not changed.
    """

    word: str
    side: Side | None
    chosen: int
    rejected: int
    probability: Estimate
    log_odds: Estimate
    z: float
    p_value: float
    p_adjusted: float
    lemmatizer: str | None = None

    def __str__(self) -> str:
        counts = f"{self.chosen:,} chosen, {self.rejected:,} rejected"
        tested = f"z = {self.z:+.2f}, p = {self.p_adjusted:.3g}"
        return visible(f"{self.word} → {self.side or 'neither side'} ({counts}, {tested})")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; an `Estimate` is a dict, too."""
        return asdict(self)


def salient_words(
    table: PersonaTable,
    *,
    floor: int = FLOOR,
    lemmatize: Callable[[str], str] | Literal["installed"] | None = "installed",
    stop_words: Iterable[str] = STOP_WORDS,
    prior: float | None = None,
    confidence: float = CONFIDENCE,
    correction: Literal["benjamini-hochberg", "holm"] = "benjamini-hochberg",
) -> list[SalientWord]:
    """Find the words that mark chosen or rejected personas, the highest |z| first.

    A persona counts once for each of its words, without clauses of contrast (see `without_contrast`). The
    odds of a word compare personas with it to personas without it, so that the side with shorter personas is
    not favoured. The odds ratio has a Dirichlet prior ("Fightin' Words", Monroe, Colaresi & Quinn 2008), so
    that it is finite for a word which one side never uses.

    Args:
        table: a table with personas of both sides.
        floor: words in fewer personas, both sides together, are left out.
        lemmatize: a function from a lower-case word to its lemma. "installed": English lemmas by the package
            simplemma, if it is installed, else as None; a lemma that is no word of any persona is not used,
            because simplemma invents some, such as "preferr". None: words are not changed.
            `SalientWord.lemmatizer` says which it was.
        stop_words: words that do not count, in lower case. Lemmas are compared to them, if there are lemmas.
        prior: the number of pseudo-counts, spread over words in proportion to both sides together. More of
            them shrink the log-odds towards 0. None: Jeffreys' prior: half a persona with each word, and half
            a persona without it.
        confidence: how often the intervals should cover the truth, between 0 and 1. They are not corrected
            for many words.
        correction: of the p-values: "benjamini-hochberg" bounds the share of false findings, "holm" the
            chance of any false finding.

    Returns:
        One record for each word that reaches the floor; empty if none does.

    Raises:
        DataError: no personas on one of the sides.
        InvalidArgumentError: a bad argument, or `lemmatize` does not return a text.
    """
    if not isinstance(table, PersonaTable):
        raise InvalidArgumentError(
            f"salient_words takes a PersonaTable, not {type(table).__name__}."
        )
    left_out = _stop_words(stop_words)
    floor = check_argument("floor", floor, Count)
    prior = check_argument("prior", prior, PositiveNumber | None)
    InvalidArgumentError.check("correction", correction, _CORRECTIONS)
    confidence = check_confidence(confidence)
    chosen = _personas("chosen", (row.chosen for row in table))
    rejected = _personas("rejected", (row.rejected for row in table))
    said = [[_words(persona) for persona in people] for people in (chosen, rejected)]
    lemma, lemmatizer = _lemmatizer(
        lemmatize, {word for side in said for one in side for word in one}
    )
    counts = [_counts(side, lemma, left_out) for side in said]
    words = sorted(counts[0] | counts[1])
    one, other = (np.array([count[word] for word in words], dtype=np.float64) for count in counts)
    both = one + other
    personas = len(chosen) + len(rejected)
    added, share = 1.0, np.full(len(words), 0.5)
    if prior is not None:
        added = prior * personas / max(both.sum(), 1.0)  # personas: they hold `prior` words in all
        share = (both + 1) / (personas + 2)  # neither 0 nor 1
    odds = log_odds(one, other, prior=added * share, texts=(len(chosen), len(rejected), added))
    kept = np.flatnonzero(both >= floor)
    p_values = two_sided_p(odds.z[kept])
    adjusted = _CORRECTIONS[correction](p_values)
    spread = NormalDist().inv_cdf((1 + confidence) / 2) * odds.standard_error
    low, high = odds.value - spread, odds.value + spread
    found = [
        SalientWord(
            words[i],
            None if odds.z[i] == 0 else "chosen" if odds.z[i] > 0 else "rejected",
            int(one[i]),
            int(other[i]),
            wilson(one[i], int(both[i]), confidence=confidence),
            Estimate(float(odds.value[i]), float(low[i]), float(high[i]), int(both[i])),
            float(odds.z[i]),
            float(p),
            float(p_adjusted),
            lemmatizer=lemmatizer,
        )
        for i, p, p_adjusted in zip(kept, p_values, adjusted, strict=True)
    ]
    return sorted(found, key=lambda word: (-abs(word.z), word.word))


def _personas(side: Side, personas: Iterable[Persona | None]) -> list[Persona]:
    found = [persona for persona in personas if persona is not None]
    if not found:
        raise DataError(
            f"salient_words needs personas of both sides; the table has none of the {side} one.",
            hint='Infer with sides="both", and see table.errors.',
        )
    return found


def _words(persona: Persona) -> set[str]:
    """Return the words of a persona in lower case.

    Clauses of contrast, and the words with which every persona begins ("The user prefers"), are left out.
    """
    said = " ".join(persona.phrases)
    said = said if persona.trait else _FRAME.sub(" ", said)
    return set(_WORD.findall(without_contrast(composed(said.lower()))))


def _lemmatizer(
    given: Callable[[str], str] | str | None, words: Collection[str]
) -> tuple[Callable[[str], str] | None, str | None]:
    """Return the function from a word to its lemma, and its name; (None, None): words are not changed.

    Args:
        given: as `lemmatize` of `salient_words`.
        words: all words of the personas.

    Raises:
        InvalidArgumentError: `given` is something else.
    """
    if callable(given):
        return cache(partial(_lemma, given)), getattr(given, "__name__", type(given).__name__)
    if given is not None and not (isinstance(given, str) and given == "installed"):
        raise InvalidArgumentError(
            f"lemmatize={given!r:.40} is not a function.",
            hint='Give a function from a word to its lemma, "installed" or None.',
            argument="lemmatize",
        )
    if given is None or importlib.util.find_spec("simplemma") is None:
        return None, None
    simplemma = importlib.import_module("simplemma")

    def lemma(word: str) -> str:
        found = str(simplemma.lemmatize(word, lang="en")).lower()
        return found if found in words else word

    return cache(lemma), f"simplemma {importlib.metadata.version('simplemma')}"


def _lemma(lemmatize: Callable[[str], str], word: str) -> str:
    """Call the user's `lemmatize`. Raise InvalidArgumentError if it returns no text, or an empty one."""
    found = lemmatize(word)
    if not isinstance(found, str) or not found:
        raise InvalidArgumentError(
            f"lemmatize= gave {found!r:.40} for {word!r}.",
            hint="It must give a text for each word.",
            argument="lemmatize",
        )
    return found


def _counts(
    said: Iterable[set[str]], lemma: Callable[[str], str] | None, stop: frozenset[str]
) -> Counter[str]:
    """Count for each word, or each lemma, the personas that have it.

    Args:
        said: the words of each persona.
        lemma: the function from a word to its lemma; None: words are not changed.
        stop: words, or lemmas, that do not count.
    """
    counts: Counter[str] = Counter()
    for words in said:
        counts.update((words if lemma is None else set(map(lemma, words))) - stop)
    return counts


def _stop_words(given: Iterable[str]) -> frozenset[str]:
    """Read `stop_words`. Raise InvalidArgumentError if they are no words."""
    are_many = isinstance(given, Iterable) and not isinstance(given, str)
    words = list(given) if are_many else [None]
    if not all(isinstance(word, str) for word in words):
        raise InvalidArgumentError(
            f"stop_words={given!r:.40} is not a list of words.", argument="stop_words"
        )
    return frozenset(map(str, words))


# Clauses of contrast

# "over" starts a clause of contrast ("lists over prose"), but not in "over time", "over 50", "control over".
_OVER = (
    r"(?<!\ball )(?<!\bcontrol )(?<!\bpower )(?<!\bauthority )(?<!\badvantage )(?<!\btalk )(?<!\bgo )"
    r"(?<!\blook )(?<!\bmull )(?<!\bthink )(?<!\bworry )(?<!\bstart )(?<!\btake )(?<!\bover and )"
    r"over(?![\w-])(?!\s+(?:\d|and over|again|time\b|years?\b|decades\b|dinner\b|lunch\b|coffee\b|drinks\b"
    r"|the (?:phone|years|long|course|next|past|last|internet|top|holidays|weekend|summer)\b"
    r"|(?:a|several|many|long|the) (?:\w+ )?"
    r"(?:periods?|years|days|weeks|months|hours|distances?|meal|coffee)\b))"
)
_NOT = (
    r"(?:(?:do|does|is|are|would)n['\u2019]t|(?:(?:do|does|is|are|would|but|and) )?not)"
    r"(?![\w-])(?!\s+(?:only|just|merely|simply|necessarily)\b)"
)
_CONTRAST = (
    r"(?:rather than|instead of|in place of|as opposed to|in preference to|versus|vs\.?|without|"
    rf"{_OVER}|{_NOT})"
)
# A clause ends at a mark, at "but", or where another verb or reason begins.
_END = (
    r"(?=[,;:.!?()\u2014]|\s(?:but|because|so that|so they|when|while|if|since|as they)\b"
    r"|\sand (?:is|are|has|who|also|likes|loves|wants|needs|values|enjoys|seeks|prefers|appreciates)\b|$)"
)
# A list continues after commas: "not statistics, charts or tables". Words that begin a clause are no items.
_NO_ITEM = (
    r"(?!(?:and|or|but|because|so|while|when|if|since|as|who|whether|even|especially|like|with|in|for|at|on|to"
    r"|that|which|is|are|has|also|likes|loves|wants|needs|values|enjoys|seeks|prefers|appreciates)\b)"
)
# The numbers of repeats are bounded, which keeps the time linear for texts with endless clauses.
_REST = rf"(?:(?!{_END}).){{0,200}}"
_ITEMS = rf"(?:,\s+{_NO_ITEM}[\w'\u2019-]+(?:\s+[\w'\u2019-]+){{0,3}}?){{0,20}}"
_SINGLE = (
    rf"\s+(?:[\w'\u2019-]+\s+)?[\w'\u2019-]+(?:,\s+{_NO_ITEM}[\w'\u2019-]+){{1,20}}"
    rf"\s+and\s+[\w'\u2019-]+{_END}"
)
_CLAUSE = re.compile(rf"\b{_CONTRAST}(?!\w){_REST}", re.IGNORECASE | re.DOTALL)
_LIST = re.compile(
    rf"(?<=\S)\s*\b{_CONTRAST}(?!\w)(?:{_SINGLE}|{_REST}{_ITEMS},?\s+n?or\s+{_REST})",
    re.IGNORECASE | re.DOTALL,
)


def without_contrast(text: str) -> str:
    """Remove clauses of contrast and negation from a text, such as "rather than long lists".

    "Whose Boat Does it Float?" (arXiv 2501.11549) removes them before it counts words. A clause ends at a
    punctuation mark, at "but", or before another verb. A list is removed up to its last item, which "or"
    joins; or "and", if all items are single words: "answers, not statistics, charts or tables". A clause at
    the start of the text ends at its first comma, because what follows is wanted: "rather than charts,
    stories or jokes". "not only X but also Y", "overly" and "over time" stay. A space stands for each clause.
    """
    return _CLAUSE.sub(" ", _LIST.sub(" ", text))
