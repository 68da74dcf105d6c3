"""Flag what is doubtful about a persona. A flag never removes a persona and never raises an error.

Flags come from word lists and patterns, so they depend on the wording, not on the meaning. Use
`personainfer.evaluation` to test whether a persona is true.

    refusal              the model declined and described nobody
    copies_text          four words in a row are taken from the pair
    copies_exemplar      the trait or the preference is that of an exemplar
    protected_attribute  age, gender, race, nationality, religion, politics, orientation, disability,
                         health, family status or income
    named_person         the name of a person
    ungrammatical        a phrase that is missing, or cannot complete the sentence
    same_as_other_side   both sides of the pair got the same preference
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from functools import cache
from typing import Final
from unicodedata import category

from ..arguments import in_python, read_items
from ..exceptions import InvalidArgumentError
from ..records import Persona, PersonaRow, Preference, Side
from .protected_attributes import is_place, is_protected, trigger_words

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
# Frequent words: four words in a row with fewer than two other words are an idiom ("at the end of the day").
_FUNCTION_WORDS = frozenset(
    """
    a an the and or but of to in on at by for from with without as than that this these those it its is are
    was were be been being do does did not no all any some most more one lot end day same time what which who
    how when where why i you we they he she his her their your our my can will would should could have has
    had so if then there out up into over about
    """.split()
)

# A million rows go through here: words are looked up in sets, and a pattern is tried only in the company
# of a word that every match of it holds.
_REFUSAL_WORDS = frozenset(
    """
    i i'm can't cannot won't don't ai model unable sorry appropriate n persona
    insufficient determined inferred
    """.split()
)
_REFUSAL = re.compile(
    r"\b(?:i (?:cannot|can't|can not|won't|am unable|am not able)"
    r"|i (?:do not|don't) (?:have|know|feel|think|believe|see|want to|wish to)"
    r"|(?:i'm|i am) (?:sorry|unable|not able|an ai)|sorry,? but|as an? (?:ai|(?:large )?language model)"
    r"|cannot (?:provide|assist|help|fulfil|comply|answer|describe|be determined|be inferred)"
    r"|unable to (?:provide|assist|help with|comply|describe|infer|determine)"
    r"|(?:insufficient|not enough) information|not appropriate to|n/a|no persona)\b"
)
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof)\.? [^\W\d_a-z]\w+")
_CALLED = re.compile(
    r"\b(?:named|(?:person|someone|user|man|woman|boy|girl) called|name is) [^\W\d_a-z][^\W\d_]"
)
_CAPITAL = r"[^\W\d_a-z](?=[A-Z]*+[^\W\d_A-Z])"  # of a word that is not all in capitals
# Capitalised words, with initials and particles between: "George W. Bush", "Ludwig van Beethoven".
_CAPITALIZED = re.compile(
    rf"\b(?:[A-Z]\. ?){{0,4}}{_CAPITAL}[^\W\d_]*+"
    r"(?: (?:(?:[A-Z]\.? ?){1,4}|van|von|de|da|del|di|bin|al|la|der|den)){0,2}"
    rf"(?: {_CAPITAL}\w*+)+|\b(?:[A-Z]\. ?){{1,4}}[A-Z][a-z]+"
)
# Capitalised words that make a place, a product, a work or an event of the words beside them.
_NOT_IN_NAMES = frozenset(
    """
    new old north south east west northern southern eastern western central upper lower great grand saint
    united national international american european african asian british english french german italian
    spanish chinese japanese indian russian roman greek ancient modern civil world cold golden silent middle
    the a an and or of in on for to with my your this that his her their no not every any some
    star wars trek potter rings dragons dungeons marvel game games league cup olympic olympics super premier
    visual studio stack overflow machine learning deep data science artificial intelligence computer open
    source web cloud docs office word excel power point google microsoft apple amazon facebook meta github
    hugging face python java script type react native ruby rails linux windows android mac raspberry pi
    times post journal review magazine news radio network press university college school institute academy
    library museum church street avenue road river lake mountain mountains island islands bay ocean sea city
    county state states park bridge valley coast forest crest trail tower palace square airport station hall
    bank company group union party house senate court act bill law rights constitution association society
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july
    august september october november december spring summer autumn winter christmas easter thanksgiving
    boy girl scout scouts black red green blue white day year night week eve age war revolution renaissance
    depression festival award awards prize club team band orchestra symphony opera theory theorem method
    model system language programming code software engineering design management business marketing
    """.split()
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
# What scripts write above and below letters: a part of the word, and no letter to Python.
MARKS: Final = "".join(c for c in map(chr, range(0x300, 0x2000)) if category(c).startswith("M"))
_NOT_WORD = re.compile(rf"[^\w'{MARKS}]+")
_ASCII_SPACES = {code: " " for code in range(128) if _NOT_WORD.match(chr(code))}


def flag_filter(
    drop_flagged: object, *, looked_for: bool = True
) -> Callable[[PersonaRow, Side], bool]:
    """Make a function (row, side) -> whether the persona of this side has an unwanted flag.

    The function returns False for a side without a persona.

    Args:
        drop_flagged: which flags are unwanted. True: any flag, also one that is not in `FLAGS`; False: none;
            or names of `FLAGS`.
        looked_for: whether flags were looked for when the personas were made. If not, as with personas that
            somebody else made, the function looks for all but "copies_exemplar", besides the flags they have.

    Raises:
        InvalidArgumentError: `drop_flagged` is neither a bool nor a collection of names of `FLAGS`.
    """
    flags_of = _given_flags if looked_for else _all_flags
    drop_flagged = in_python(drop_flagged)
    if isinstance(drop_flagged, bool):
        return lambda row, side: drop_flagged and bool(flags_of(row, side))
    if isinstance(drop_flagged, str) or not isinstance(drop_flagged, Collection):
        raise InvalidArgumentError(
            f"drop_flagged={drop_flagged!r} is neither a bool nor names of flags."
        )
    names = read_items("drop_flagged", drop_flagged)
    for name in names:
        InvalidArgumentError.check("drop_flagged", name, FLAGS)
    dropped = frozenset(names)
    return lambda row, side: not dropped.isdisjoint(flags_of(row, side))


def _given_flags(row: PersonaRow, side: Side) -> tuple[str, ...]:
    persona: Persona | None = getattr(row, side)
    return () if persona is None else persona.flags


def _all_flags(row: PersonaRow, side: Side) -> tuple[str, ...]:
    """Return the flags that a persona has, and then those that are found in its text."""
    persona: Persona | None = getattr(row, side)
    if persona is None or row.preference is None:
        return _given_flags(row, side)
    found = (*persona.flags, *find_flags(persona, row.preference))
    both = [one for one in (row.chosen, row.rejected) if one is not None]
    return (*found, "same_as_other_side") if want_the_same(both) else found


def find_flags(
    persona: Persona, preference: Preference, *, exemplar_phrases: Set[str] = frozenset()
) -> tuple[str, ...]:
    """Find what is doubtful about the text of one persona.

    Args:
        persona: the persona. The flags that it has already do not matter.
        preference: the pair from which the persona was inferred.
        exemplar_phrases: traits and preferences of the exemplars, in lower case. Without them,
            "copies_exemplar" cannot be found.

    Returns:
        Names of flags, such as "named_person", in the order of `FLAGS`; () if there is no doubt.
        "same_as_other_side", which needs both personas, is never among them.

    Raises:
        InvalidArgumentError: `persona` is no Persona, `preference` is no Preference, or `exemplar_phrases` is
            no set.
    """
    for name, given, kind in (
        ("persona", persona, Persona),
        ("preference", preference, Preference),
    ):
        if not isinstance(given, kind):
            raise InvalidArgumentError(
                f"{name}={given!r:.60} is no {kind.__name__}.",
                hint="Persona.parse makes one of a sentence." if kind is Persona else "",
                argument=name,
            )
    if not isinstance(exemplar_phrases, Set):
        raise InvalidArgumentError(
            f"exemplar_phrases={exemplar_phrases!r:.60} is not a set of texts.",
            argument="exemplar_phrases",
        )
    (flags,) = flags_in_text([persona], pair_text(preference), exemplar_phrases)
    return flags


def flags_in_text(
    personas: Sequence[Persona], text: str, exemplar_phrases: Set[str]
) -> list[tuple[str, ...]]:
    """Find the flags of several personas, which were inferred from the same pair or pairs.

    Most personas have no flag, so all of them together are first searched for any sign of one.

    Args:
        personas: the personas.
        text: the text of the pair or pairs, by `pair_text`.
        exemplar_phrases: traits and preferences of the exemplars, in lower case.

    Returns:
        The flags of each persona, as `find_flags` returns them.
    """
    phrases: list[str] = []
    for persona in personas:
        phrases += persona.phrases
    said = " ".join(phrases)
    words = _words(said)
    if (
        said == _plain(said)  # no capitals, as names have
        and "'" not in said
        and _telling_words().isdisjoint(words)
        and exemplar_phrases.isdisjoint(phrases)
        and not _is_any_ungrammatical(phrases)
        and not _may_copy(words, text)
    ):
        return [()] * len(personas)
    return [_flags(persona, text, exemplar_phrases) for persona in personas]


def _flags(persona: Persona, text: str, exemplar_phrases: Set[str]) -> tuple[str, ...]:
    phrases = [_plain(phrase) for phrase in persona.phrases]
    words = _words(" ".join(phrases))
    found = []
    if not _REFUSAL_WORDS.isdisjoint(words) and _REFUSAL.search(" | ".join(phrases)):
        found.append("refusal")
    if _may_copy(words, text) and _copies(text, *phrases):
        found.append("copies_text")
    if is_protected(*persona.phrases):
        found.append("protected_attribute")
    if any(map(_has_name, persona.phrases)):
        found.append("named_person")
    if not exemplar_phrases.isdisjoint(phrases):
        found.append("copies_exemplar")
    composed = persona.sentence is None or persona.trait  # else it brings a sentence of its own
    if composed and _is_any_ungrammatical(phrases):
        found.append("ungrammatical")
    return tuple(sorted(found, key=FLAGS.index))


def want_the_same(personas: Sequence[Persona]) -> bool:
    """Whether there are two personas with the same preference, which then explains no choice.

    Case does not matter. Of a persona without a preference, the whole sentence is compared.
    """
    if len(personas) != 2:
        return False
    one, other = personas
    wanted, other_wanted = one.preference or str(one), other.preference or str(other)
    return wanted.strip().lower() == other_wanted.strip().lower()


def pair_text(preference: Preference) -> str:
    """Return the prompt and both responses as one text in lower case, to look for copied words in it."""
    prompt = preference.prompt
    if not isinstance(prompt, str):
        prompt = "\n".join(message.content for message in prompt)
    return _plain(f"{prompt}\n{preference.chosen}\n{preference.rejected}")


def _plain(phrase: str) -> str:
    phrase = phrase.lower()
    # The apostrophe that models write.
    return phrase if phrase.isascii() else phrase.replace("’", "'")  # noqa: RUF001


def _words(text: str) -> list[str]:
    """Split a text into its words, without punctuation. Their case stays."""
    words = text.split()
    if "".join(words).isalnum():
        return words
    if text.isascii():  # a table is four times as quick as the pattern
        return text.translate(_ASCII_SPACES).split()
    return _NOT_WORD.sub(" ", text).split()


def _may_copy(words: Sequence[str], text: str) -> bool:
    """Whether there are four `words` in a row, each of which is somewhere in the text.

    If not, no four words in a row are copied. This is cheaper than `_copies`, and rarely true. Each run of
    four is looked up from its last word to its first. After a word that is missing, the next run begins. So
    mostly one word of four is looked up.
    """
    first, place, count = 0, _COPIED_RUN - 1, len(words)
    while place < count:
        if words[place] not in text:
            first, place = place + 1, place + _COPIED_RUN
        elif place > first:
            place -= 1
        else:
            return True
    return False


def _copies(text: str, *phrases: str) -> bool:
    """Whether four words in a row of a phrase are in the pair's text, whatever punctuation is between them.

    At least two of the four must not be in `_FUNCTION_WORDS`.
    """
    plain = f" {' '.join(_words(text))} "
    runs = (
        words[start : start + _COPIED_RUN]
        for words in map(_words, phrases)
        for start in range(len(words) - _COPIED_RUN + 1)
    )
    return any(
        f" {' '.join(run)} " in plain and sum(word not in _FUNCTION_WORDS for word in run) >= 2
        for run in runs
    )


@cache
def _telling_words() -> frozenset[str]:
    """Return words of which every refusal, and every phrase with a protected attribute, has at least one."""
    return _REFUSAL_WORDS | trigger_words()


def _has_name(phrase: str) -> bool:
    """Whether a phrase names a person: by a title and a name, "named Anna", or two capitalised words.

    Two capitalised words that name a place, a product, a work or an event do not count.
    """
    if _TITLE.search(phrase) or _CALLED.search(phrase):
        return True
    return any(
        _NOT_IN_NAMES.isdisjoint(found[0].lower().split()) and not is_place(found[0])
        for found in _CAPITALIZED.finditer(phrase)
    )


def _is_any_ungrammatical(phrases: Iterable[str]) -> bool:
    """Whether one is empty, stops in the middle, or begins with a verb that the sentence has already."""
    for phrase in phrases:
        last = phrase[phrase.rfind(" ") + 1 :]
        if not phrase or last in _OPEN_ENDS or phrase.partition(" ")[0] in _VERBS:
            return True
    return False
