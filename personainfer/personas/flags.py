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
from collections.abc import Callable, Collection, Sequence, Set

from ..exceptions import InvalidArgumentError
from ..records import Persona, Preference

__all__ = ["FLAGS", "find_flags", "flag_filter", "flags_in_text", "pair_text"]

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

# A million rows go through here: words are looked up in sets, and a pattern is tried only in the company
# of a word that every match of it holds.
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
    indigenous ethnic ethnics ethnically ethnicity ethnicities christian christians muslim muslims
    islam islamic islamism islamist islamists islamophobia islamophobic jew jews jewish hindu hindus
    buddhist buddhists catholic catholics protestant protestants atheist atheists religious religion
    devout elderly teen teens teenage teenager teenagers millennial millennials adolescent
    adolescents retiree retirees immigrant immigrants foreigner foreigners nationality american
    americans british chinese indian indians mexican mexicans russian russians german germans french
    japanese european europeans disabled disability disabilities blind deaf adhd autism autist
    autists autistic autistics dyslexia dyslexic dyslexics wheelchair wheelchairs pregnant pregnancy
    pregnancies republican republicans democrat democrats conservative conservatives liberal
    liberals socialist socialists communist communists feminist feminists
    """.split()
)
_PROTECTED_RUN = re.compile(
    r"\b(?:senior citizens?|middle aged|(?:left|right) wing|non binary|\d+ years? old)\b"
)
_PROTECTED_STARTS = frozenset("senior middle left right non year years".split())
_TELLING = _REFUSAL_WORDS | _PROTECTED_WORDS | _PROTECTED_STARTS
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


def flag_filter(drop_flagged: object) -> Callable[[Persona], bool]:
    """What says whether a persona has a flag that is not wanted.

    Args:
        drop_flagged: True for any flag, one of the user's own too; False for none; or names of FLAGS.

    Raises:
        InvalidArgumentError: something else.
    """
    if isinstance(drop_flagged, bool):
        return lambda persona: bool(drop_flagged and persona.flags)
    if isinstance(drop_flagged, str) or not isinstance(drop_flagged, Collection):
        raise InvalidArgumentError(
            f"drop_flagged={drop_flagged!r} is neither a bool nor names of flags."
        )
    for flag in drop_flagged:
        InvalidArgumentError.check("drop_flagged", flag, FLAGS)
    dropped = frozenset(drop_flagged)
    return lambda persona: not dropped.isdisjoint(persona.flags)


def find_flags(
    persona: Persona, preference: Preference, *, exemplar_phrases: Set[str] = frozenset()
) -> tuple[str, ...]:
    """The flags of one persona.

    Args:
        persona: what the model said.
        preference: the pair that it was said about.
        exemplar_phrases: traits and preferences of the exemplars, in lower case.
    """
    (flags,) = flags_in_text([persona], pair_text(preference), exemplar_phrases)
    return flags


def flags_in_text(
    personas: Sequence[Persona], text: str, exemplar_phrases: Set[str]
) -> list[tuple[str, ...]]:
    """`find_flags` of several personas that share a pair, or pairs: `text` is theirs, by `pair_text`.

    What hardly any persona has is first looked for in all of them at once.
    """
    said = " ".join([phrase for persona in personas for phrase in persona.phrases])
    plain = _plain(said)
    words = _words(plain)
    wary = (
        plain != said  # capitals, as names have
        or "'" in said
        or not _TELLING.isdisjoint(words)
        or _may_copy(words, text)
    )
    return [_flags(persona, text, exemplar_phrases, wary) for persona in personas]


def _flags(persona: Persona, text: str, exemplar_phrases: Set[str], wary: bool) -> tuple[str, ...]:
    phrases = [_plain(phrase) for phrase in persona.phrases]
    found = []
    words = _words(" ".join(phrases)) if wary else ()
    if not _REFUSAL_WORDS.isdisjoint(words) and _REFUSAL.search(" | ".join(phrases)):
        found.append("refusal")
    if wary and _may_copy(words, text) and _copies(text, *phrases):
        found.append("copies_text")
    if not exemplar_phrases.isdisjoint(phrases):
        found.append("copies_exemplar")
    if wary and _is_protected(words):
        found.append("protected_attribute")
    if wary and any(map(_NAME.search, persona.phrases)):
        found.append("named_person")
    if any(map(_is_ungrammatical, phrases)):
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


def _copies(text: str, *phrases: str) -> bool:
    """Whether four words in a row of a phrase stand in the pair, whatever punctuation is between them."""
    plain = f" {' '.join(_words(text))} "
    runs = (
        words[start : start + _COPIED_RUN]
        for words in map(_words, phrases)
        for start in range(len(words) - _COPIED_RUN + 1)
    )
    return any(f" {' '.join(run)} " in plain for run in runs)


def _is_protected(words: Sequence[str]) -> bool:
    said = " ".join(words)
    if "'" in said:  # a quotation mark, or a genitive
        words = said.replace("'", " ").split()
        said = " ".join(words)
    if not _PROTECTED_WORDS.isdisjoint(words):
        return True
    return not _PROTECTED_STARTS.isdisjoint(words) and bool(_PROTECTED_RUN.search(said))


def _is_ungrammatical(phrase: str) -> bool:
    """A phrase that is empty, stops in the middle, or brings a verb where the sentence has its own."""
    first, last = phrase.partition(" ")[0], phrase.rpartition(" ")[2]
    return not phrase or last in _OPEN_ENDS or first in _VERBS
