"""What is doubtful about a persona, as data: a flag never hides a persona and never raises.

These are word lists and patterns. They find what is written, not what is meant; `verification` asks
whether a persona is true. Flags:

    refusal              the model declined instead of describing anybody
    copies_text          four words in a row are taken from the pair
    copies_exemplar      the trait or the preference is that of an exemplar
    protected_attribute  race, religion, gender, age, nationality, orientation, disability, politics
    named_person         somebody's name
    ungrammatical        a phrase that cannot complete the sentence
    same_as_other_side   both sides of the pair got the same persona
"""

from __future__ import annotations

import re
from collections.abc import Set

from .records import Persona, Preference

__all__ = ["FLAGS", "find_flags", "words_of"]

FLAGS = (
    "refusal",
    "copies_text",
    "copies_exemplar",
    "protected_attribute",
    "named_person",
    "ungrammatical",
    "same_as_other_side",
)

_COPIED_RUN = 4  # words in a row; three are often an idiom

_REFUSAL = re.compile(
    r"\b(?:i (?:cannot|can't|can not|won't|am unable|am not able|do not|don't)|i'm (?:sorry|unable)"
    r"|as an ai|language model|cannot (?:provide|assist|help|fulfil)|unable to (?:provide|assist|help)"
    r"|not appropriate to|n/a|no persona)\b",
    re.IGNORECASE,
)
_PROTECTED = re.compile(
    r"\b(?:(?:wo)?m[ae]n|males?|females?|boys?|girls?|ladies|lady|gender|trans(?:gender)?|non-?binary"
    r"|gays?|lesbians?|queer|bisexual|homosexual|heterosexual|lgbtq?\+?"
    r"|black|white|asian|hispanic|latin[oax]|caucasian|african|arab|race|racial|ethnic\w*|indigenous"
    r"|christians?|muslims?|jew(?:s|ish)?|hindus?|buddhists?|catholics?|protestants?|atheists?"
    r"|islam\w*|religious|religion|devout"
    r"|elderly|teen(?:age)?(?:rs?)?|senior citizens?|middle-aged|millennials?|\d+[- ]years?[- ]old"
    r"|adolescents?|retirees?|immigrants?|foreigners?|nationality|americans?|british|chinese|indians?"
    r"|mexicans?|russians?|germans?|french|japanese|europeans?"
    r"|disabled|disabilit\w+|autis\w+|blind|deaf|wheelchair\w*|dyslexi\w+|adhd"
    r"|republicans?|democrats?|left-wing|right-wing|conservatives?|liberals?|socialists?|communists?"
    r"|feminists?|pregnan\w+)\b",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof)\.? [A-Z]\w+|\b[A-Z][a-z]+ (?:[A-Z]\. )?[A-Z][a-z]+\b)"
)
_OPEN_END = re.compile(
    r"(?<![\w-])(?:a|an|the|and|or|of|to|with|for|in|on|by|that|which|who|is|are|more|very|their|as"
    r"|than)$",
    re.IGNORECASE,
)
_VERB_FIRST = re.compile(
    r"^(?:has|have|likes?|wants?|values?|enjoys?|seeks?|needs?|would|can|does|do|prefers?|is|was)"
    r"(?![\w-])",
    re.IGNORECASE,
)
_NOT_WORD = re.compile(r"[^\w']+")


def words_of(text: str) -> str:
    """Lower-case words between single spaces, so that a run of words can be searched for."""
    return f" {_NOT_WORD.sub(' ', text.lower()).strip()} "


def find_flags(
    persona: Persona, *, pair_words: str, exemplar_phrases: Set[str] = frozenset()
) -> tuple[str, ...]:
    """The flags of one persona.

    Args:
        persona: what the model said.
        pair_words: `words_of` the prompt and both responses.
        exemplar_phrases: traits and preferences of the exemplars, in lower case.
    """
    phrases = f"{persona.trait} | {persona.preference}"
    found = []
    if _REFUSAL.search(phrases):
        found.append("refusal")
    if _copies(persona.trait, pair_words) or _copies(persona.preference, pair_words):
        found.append("copies_text")
    if {persona.trait.lower(), persona.preference.lower()} & exemplar_phrases:
        found.append("copies_exemplar")
    if _PROTECTED.search(phrases):
        found.append("protected_attribute")
    if _NAME.search(phrases):
        found.append("named_person")
    if _is_ungrammatical(persona):
        found.append("ungrammatical")
    return tuple(found)


def pair_text(preference: Preference) -> str:
    """All text of a pair, for `words_of`."""
    prompt = preference.prompt
    if not isinstance(prompt, str):
        prompt = "\n".join(message.content for message in prompt)
    return f"{prompt}\n{preference.chosen}\n{preference.rejected}"


def _copies(phrase: str, pair_words: str) -> bool:
    words = words_of(phrase).split()
    return any(
        f" {' '.join(words[start : start + _COPIED_RUN])} " in pair_words
        for start in range(len(words) - _COPIED_RUN + 1)
    )


def _is_ungrammatical(persona: Persona) -> bool:
    phrases = (persona.trait, persona.preference)
    return any(
        not phrase or _OPEN_END.search(phrase) or _VERB_FIRST.search(phrase) for phrase in phrases
    )
