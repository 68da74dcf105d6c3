"""Find the words that are more frequent in the personas of one side than in those of the other.

"Whose Boat Does it Float?" (arXiv 2501.11549, saliency) reports P(side | word) of words above a minimum
count. Each word also gets its log-odds ratio with an interval, and a p-value corrected for the number of
words. Only words of traits and preferences count, not the fixed words of the sentence around them.
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
from unicodedata import normalize

import numpy as np

from ..arguments import Count, PositiveNumber, check_argument
from ..data.table import PersonaTable
from ..exceptions import DataError, InvalidArgumentError
from ..personas.flags import MARKS
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

FLOOR = 10  # the paper's
# "to-the-point" is one word; so is what a script writes with marks above and below its letters.
_LETTER = rf"[^\W\d_][{MARKS}]*"
_WORD = re.compile(rf"(?:{_LETTER})+(?:['\u2019-](?:{_LETTER})+)*")
_FRAME = re.compile(r"^\s*(?:the|this) (?:user|person)\b|\bprefer(?:s|ring)?\b", re.I)
_CORRECTIONS = {"benjamini-hochberg": benjamini_hochberg, "holm": holm}

# Words that say nothing of a person, and would only make the correction for many words harsher.
STOP_WORDS = frozenset(
    """
    a an and any are as at be been being but by can do does for from has have how i if in into is it
    its more most of on or other over rather than that the their them they this to was what when
    where which while who whose will with without would you your
    """.split()
)


@dataclass(frozen=True, slots=True)
class SalientWord:
    """A word, and how far it marks one side.

    `chosen` and `rejected` count the personas of each side that hold it; `probability` is the paper's
    P(chosen | word), with Wilson's interval, to be read against the share of chosen personas;
    `log_odds` is above 0 where the word marks the chosen side, and `side` is None where it is 0; `p_value`
    is two-sided, and `p_adjusted` is corrected for all words that reach the floor. `lemmatizer` says what
    made a lemma of each word: a package with its version, or your function's name; None: words are as
    they stand.
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
        return f"{self.word} → {self.side or 'neither side'} ({counts}, {tested})"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def salient_words(
    table: PersonaTable,
    *,
    floor: int = FLOOR,
    lemmatize: Callable[[str], str] | Literal["installed"] | None = "installed",
    stop_words: Collection[str] = STOP_WORDS,
    prior: float | None = None,
    confidence: float = CONFIDENCE,
    correction: Literal["benjamini-hochberg", "holm"] = "benjamini-hochberg",
) -> list[SalientWord]:
    """The words that mark chosen against rejected personas, the most telling first.

    Clauses of contrast are cut first: see `without_contrast`.

    A word counts once a persona, however often the persona says it. Its log-odds are of personas with
    it to personas without it, so that the side with the shorter personas is not favoured. Their ratio
    has a Dirichlet prior ("Fightin' Words", Monroe, Colaresi & Quinn 2008): a word that one side never
    says has a finite ratio.

    Args:
        table: with personas of both sides.
        floor: words in fewer personas, both sides together, are left out.
        lemmatize: a lower-case word -> its lemma. "installed": English lemmas by simplemma where that
            package is installed, if a persona has the lemma as a word: it invents some, such as "preferr".
            None: words as they stand. Each record says which it was.
        stop_words: not counted; compared after `lemmatize`.
        prior: pseudo-counts in all, in the proportions of both sides together: they shrink ratios
            towards none. None: Jeffreys', half a persona with each word and half a one without.
        confidence: of the intervals, which are not corrected for many words.
        correction: of the p-values: bound the share of false findings, or with "holm" the chance of one.

    Returns:
        One record a word, sorted by |z|; an empty list where no word reaches the floor.

    Raises:
        DataError: no personas on one of the sides.
        InvalidArgumentError: a bad argument.
    """
    if not isinstance(table, PersonaTable):
        raise InvalidArgumentError(
            f"salient_words takes a PersonaTable, not {type(table).__name__}."
        )
    _check(floor, prior, correction, stop_words)
    check_confidence(confidence)
    chosen = _personas("chosen", (row.chosen for row in table))
    rejected = _personas("rejected", (row.rejected for row in table))
    said = [[_words(persona) for persona in people] for people in (chosen, rejected)]
    lemma, lemmatizer = _lemmatizer(
        lemmatize, {word for side in said for one in side for word in one}
    )
    counts = [_counts(side, lemma, frozenset(stop_words)) for side in said]
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
    found = [
        SalientWord(
            words[i],
            None if odds.z[i] == 0 else "chosen" if odds.z[i] > 0 else "rejected",
            int(one[i]),
            int(other[i]),
            wilson(one[i], int(both[i]), confidence=confidence),
            _around(odds.value[i], spread[i], int(both[i])),
            float(odds.z[i]),
            float(p),
            float(p_adjusted),
            lemmatizer=lemmatizer,
        )
        for i, p, p_adjusted in zip(kept, p_values, adjusted, strict=True)
    ]
    return sorted(found, key=lambda word: (-abs(word.z), word.word))


def _around(value: float, spread: float, n: int) -> Estimate:
    return Estimate(float(value), float(value - spread), float(value + spread), n)


def _personas(side: Side, personas: Iterable[Persona | None]) -> list[Persona]:
    found = [persona for persona in personas if persona is not None]
    if not found:
        raise DataError(
            f"salient_words needs personas of both sides; the table has none of the {side} one.",
            hint='Infer with sides="both", and see table.errors.',
        )
    return found


def _words(persona: Persona) -> set[str]:
    """The words of a persona that count."""
    return set(_WORD.findall(without_contrast(normalize("NFC", _said(persona).lower()))))


def _lemmatizer(
    given: Callable[[str], str] | str | None, words: Collection[str]
) -> tuple[Callable[[str], str] | None, str | None]:
    """The function from a word to its lemma, and what it is called; (None, None): words as they stand."""
    if callable(given):
        return cache(partial(_lemma, given)), getattr(given, "__name__", type(given).__name__)
    if given is not None and given != "installed":
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
    """The lemma that a function of the caller's gives."""
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
    """In how many personas each word occurs."""
    counts: Counter[str] = Counter()
    for words in said:
        counts.update((words if lemma is None else set(map(lemma, words))) - stop)
    return counts


def _said(persona: Persona) -> str:
    """What is said of the person, without the words with which every persona begins."""
    said = " ".join(persona.phrases)
    return said if persona.trait else _FRAME.sub(" ", said)


def _check(floor: int, prior: float | None, correction: str, stop_words: Collection[str]) -> None:
    if isinstance(stop_words, str):
        raise InvalidArgumentError(
            f"stop_words={stop_words!r:.40} is one text, not several words.", argument="stop_words"
        )
    check_argument("floor", floor, Count)
    check_argument("prior", prior, PositiveNumber | None)
    InvalidArgumentError.check("correction", correction, _CORRECTIONS)


# What a persona does not want

# "over" compares only between two things: not in "over time", "over 50", "control over", "talk over".
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
# A list goes on after its commas: "not statistics, charts or tables". Words that begin a clause are no item.
_NO_ITEM = (
    r"(?!(?:and|or|but|because|so|while|when|if|since|as|who|whether|even|especially|like|with|in|for|at|on|to"
    r"|that|which|is|are|has|also|likes|loves|wants|needs|values|enjoys|seeks|prefers|appreciates)\b)"
)
# Bounds keep the time linear: a text may say "not" in a clause or list without end.
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
    """The text without clauses of contrast or negation, from their first word to the clause's end.

    After "Whose Boat Does it Float?" (arXiv 2501.11549), which cuts them before it counts words. "not only
    X but also Y" stays whole, and so do "overly" and "over time". A list is cut to its end if "or" joins its
    last item, or if "and" does and the items are single words: "answers, not statistics, charts or tables".
    At the start of a text what follows the comma is wanted: "rather than charts, stories or jokes".
    """
    return _CLAUSE.sub(" ", _LIST.sub(" ", text))
