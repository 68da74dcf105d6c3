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
from collections.abc import Sequence, Set

from .records import Persona, Preference

__all__ = ["FLAGS", "find_flags", "flags_in_text", "pair_text"]

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

# A million rows go through here: words are looked up in sets, and a pattern that could match only in
# the company of certain words is tried only then.
_REFUSAL_WORDS = frozenset(
    """
    i i'm can't cannot won't don't ai model unable appropriate n persona
    """.split()
)
_REFUSAL = re.compile(
    r"\b(?:i (?:cannot|can't|can not|won't|am unable|am not able|do not|don't)|i'm (?:sorry|unable)"
    r"|as an ai|language model|cannot (?:provide|assist|help|fulfil)"
    r"|unable to (?:provide|assist|help)|not appropriate to|n/a|no persona)\b"
)
_PROTECTED_WORDS = frozenset(
    """
    man men woman women male males female females boy boys girl girls lady ladies gender trans
    transgender nonbinary gay gays lesbian lesbians queer bisexual homosexual heterosexual lgbt
    lgbtq black white asian hispanic latino latina latinx caucasian african arab race racial
    indigenous christian christians muslim muslims jew jews jewish hindu hindus buddhist buddhists
    catholic catholics protestant protestants atheist atheists religious religion devout elderly
    teen teens teenage teenager teenagers millennial millennials adolescent adolescents retiree
    retirees immigrant immigrants foreigner foreigners nationality american americans british
    chinese indian indians mexican mexicans russian russians german germans french japanese european
    europeans disabled blind deaf adhd republican republicans democrat democrats conservative
    conservatives liberal liberals socialist socialists communist communists feminist feminists
    """.split()
)
_PROTECTED_RUN = re.compile(
    r"\b(?:(?:ethnic|islam|disabilit|autis|wheelchair|dyslexi|pregnan)"
    r"|(?:senior citizens?|middle aged|(?:left|right) wing|non binary|\d+ years? old)\b)"
)
# One of these stands in every phrase that the pattern above can match.
_PROTECTED_MARKS = (
    "ethnic", "islam", "disabilit", "autis", "wheelchair", "dyslexi", "pregnan",
    "senior", "middle", "wing", "binary", "year",
)  # fmt: skip
_NAME = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof)\.? [A-Z]\w+|\b[A-Z][a-z]+ (?:[A-Z]\. )?[A-Z][a-z]+\b)"
)
_OPEN_ENDS = frozenset(
    """
    a an the and or of to with for in on by that which who is are more very their his her its your
    my our how what about as than be will can
    """.split()
)
_VERBS = frozenset(
    """
    has have like likes want wants value values enjoy enjoys seek seeks need needs would can does do
    prefer prefers is was
    """.split()
)
_NOT_WORD = re.compile(r"[^\w']+")


def find_flags(
    persona: Persona, preference: Preference, *, exemplar_phrases: Set[str] = frozenset()
) -> tuple[str, ...]:
    """The flags of one persona.

    Args:
        persona: what the model said.
        preference: the pair that it was said about.
        exemplar_phrases: traits and preferences of the exemplars, in lower case.
    """
    return flags_in_text(persona, pair_text(preference), exemplar_phrases)


def flags_in_text(persona: Persona, text: str, exemplar_phrases: Set[str]) -> tuple[str, ...]:
    """`find_flags` where the text of the pair is at hand: both personas of a row share it."""
    trait, wish = _plain(persona.trait), _plain(persona.preference)
    trait_words, wish_words = _words(trait), _words(wish)
    words = trait_words + wish_words
    said = f"{trait} | {wish}"
    found = []
    if not _REFUSAL_WORDS.isdisjoint(words) and _REFUSAL.search(said):
        found.append("refusal")
    if _may_copy(trait_words, text) or _may_copy(wish_words, text):
        plain = f" {' '.join(_words(text))} "
        if _copies(trait_words, plain) or _copies(wish_words, plain):
            found.append("copies_text")
    if trait in exemplar_phrases or wish in exemplar_phrases:
        found.append("copies_exemplar")
    if _is_protected(words, said):
        found.append("protected_attribute")
    if not (persona.trait.islower() and persona.preference.islower()) and _names(persona):
        found.append("named_person")
    if _is_ungrammatical(trait) or _is_ungrammatical(wish):
        found.append("ungrammatical")
    return tuple(found)


def pair_text(preference: Preference) -> str:
    """The prompt and both responses in lower case: where copied words are looked for."""
    prompt = preference.prompt
    if not isinstance(prompt, str):
        prompt = "\n".join(message.content for message in prompt)
    return _plain(f"{prompt}\n{preference.chosen}\n{preference.rejected}")


def _plain(phrase: str) -> str:
    phrase = phrase.lower()
    # The apostrophe that models write.
    return phrase if phrase.isascii() else phrase.replace("’", "'")  # noqa: RUF001


def _words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    words = text.split()
    return words if "".join(words).isalnum() else _NOT_WORD.sub(" ", text).split()


def _may_copy(words: Sequence[str], text: str) -> bool:
    """Whether four words in a row are each somewhere in the text: cheap, and rarely so.

    Four in a row hold one of every fourth word: only around those that are there is looked further.
    """
    last = len(words) - 1
    for place in range(_COPIED_RUN - 1, last + 1, _COPIED_RUN):
        if words[place] in text:
            first, end = place, place
            while first > 0 and place - first < _COPIED_RUN - 1 and words[first - 1] in text:
                first -= 1
            while end < last and end - first < _COPIED_RUN - 1 and words[end + 1] in text:
                end += 1
            if end - first >= _COPIED_RUN - 1:
                return True
    return False


def _copies(words: Sequence[str], plain: str) -> bool:
    """Whether four words in a row stand in the pair, whatever punctuation is between them there."""
    return any(
        f" {' '.join(words[start : start + _COPIED_RUN])} " in plain
        for start in range(len(words) - _COPIED_RUN + 1)
    )


def _is_protected(words: Sequence[str], said: str) -> bool:
    if not _PROTECTED_WORDS.isdisjoint(words):
        return True
    marked = any(map(said.__contains__, _PROTECTED_MARKS))
    return marked and bool(_PROTECTED_RUN.search(" ".join(words)))


def _names(persona: Persona) -> bool:
    return bool(_NAME.search(persona.trait) or _NAME.search(persona.preference))


def _is_ungrammatical(phrase: str) -> bool:
    """A phrase that is empty, stops in the middle, or brings a verb where the sentence has its own."""
    first, last = phrase.split(" ", 1)[0], phrase.rsplit(" ", 1)[-1]
    return not phrase or last in _OPEN_ENDS or first in _VERBS
