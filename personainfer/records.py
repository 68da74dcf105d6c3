"""The records that the parts of the library pass to each other: frozen, typed, of plain text and numbers."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from .exceptions import InvalidArgumentError, quoted

if TYPE_CHECKING:
    import numpy.typing

Side = Literal["chosen", "rejected"]
FloatArray: TypeAlias = "numpy.typing.NDArray[numpy.float64]"  # text, so that records need no numpy
Person = Literal["third", "first", "second"]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


class Record(BaseModel):
    """A frozen record. Its constructor raises pydantic's `ValidationError` for bad or unknown fields."""

    # A score may be minus infinity, which has to come back from a file of JSON.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


R = TypeVar("R", bound=Record)

# The names of the fields of each record class: pydantic takes long to look up an attribute of a class.
_field_names: dict[type[Record], set[str]] = {}
# What a pydantic model holds, by its slots: as `model_construct` sets it, without looking the slots up.
_set_values, _set_names, _set_extra, _set_private = (
    vars(BaseModel)[slot].__set__
    for slot in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)


def unchecked(kind: type[R], values: dict[str, Any]) -> R:
    """Make a record of values that are known to be valid, without validation.

    Validation would take a fifth of the time of a row that comes from the cache. All records of a class share
    one set of field names, since a set for each would cost the garbage collector as much.

    Args:
        kind: the class of the record.
        values: a value for each field, also for those with defaults. The record keeps this dict itself.
    """
    try:
        names = _field_names[kind]
    except KeyError:
        names = _field_names[kind] = set(kind.model_fields)
    record = object.__new__(kind)
    _set_values(record, values)
    _set_names(record, names)
    _set_extra(record, None)
    _set_private(record, None)
    return record


class Message(Record):
    """One turn of a conversation, in the form that chat models take.

    Attributes:
        role: who speaks, such as "system", "user" or "assistant".
        content: the text of the turn.
        extra: the turn's other fields, such as `tool_calls` or `name`, as JSON values; None: there are none.
    """

    role: str
    content: str
    extra: Mapping[str, Any] | None = None

    def __hash__(self) -> int:
        return hash((self.role, self.content))

    @model_serializer(mode="wrap")
    def _without_empty_extra(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if self.extra is None:
            fields.pop("extra", None)
        return fields

    @property
    def text(self) -> str:
        """What the turn says, with the tools that it calls as JSON in the lines below."""
        calls = [v for k in ("tool_calls", "function_call") if (v := (self.extra or {}).get(k))]
        if not calls:
            return self.content
        return "\n".join(filter(None, [self.content, *map(_json, calls)]))


T = TypeVar("T")
# A tuple of which the first wrong value is the error: those of millions, as a file may have, fill the memory.
Many = Annotated[tuple[T, ...], Field(fail_fast=True)]
Prompt = str | Many[Message]  # a text, or the turns of a conversation to be answered


class Preference(Record):
    """A prompt and two responses to it, where somebody preferred `chosen`.

    Attributes:
        prompt: a text, or the messages of a conversation whose last turn is to be answered.
        chosen, rejected: the text of each response.
        id: the pair's id in the data; None: the data has none, and the library makes none up.
        user: who made the choice, as the data says; None: the data does not say.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    id: str | None = None
    user: str | None = None

    @property
    def swapped(self) -> Preference:
        """The same pair as seen by someone who prefers the rejected response."""
        sides = {"chosen": self.rejected, "rejected": self.chosen}
        return unchecked(type(self), {**self.__dict__, **sides})


# Every match of the patterns below begins with one of these words; the patterns are only tried on such texts.
_LEADERS = frozenset("the this they i you someone who is are am prefer prefers would".split())
_MOST_LEADERS = 8  # "the user is someone who is" has two
_SUBJECT = (
    r"^(?:(?:the|this) (?:user|person)\s+|(?:they|i|you)\s+"
    r"|(?:someone )?who\s+(?=is|are|would|prefer))?"
)
_BEFORE_TRAIT = re.compile(_SUBJECT + r"(?:(?:is|are|am)\s+)?", re.IGNORECASE)
_BEFORE_PREFERENCE = re.compile(
    _SUBJECT + r"(?:(?:is|are|am|prefers?|would prefer)\s+)?", re.IGNORECASE
)


def _phrase(text: object, before: re.Pattern[str]) -> object:
    """Return the text as a phrase that fits into the sentence: one line, without subject, verb and full stop.

    Args:
        text: the text; any other value is returned as it is.
        before: the pattern of what is cut from its beginning.
    """
    if not isinstance(text, str):
        return text
    # A text of printable characters has no other white space than spaces: then nothing is to be split.
    is_one_line = "  " not in text and text.isprintable()
    phrase = (text.lstrip() if is_one_line else " ".join(text.split())).rstrip(" .;,")
    first = phrase.partition(" ")[0]
    if first not in _LEADERS and first.islower():  # nearly all phrases fit already
        return phrase
    for _ in range(_MOST_LEADERS):  # again and again: "the user is someone who is"
        if first.lower() not in _LEADERS:
            break
        phrase = before.sub("", phrase, count=1)
        first = phrase.partition(" ")[0]
    if first == "A" or first[1:].islower():  # "Short" -> "short", while "TV" and "IT-savvy" stay
        phrase = phrase[0].lower() + phrase[1:]
    return phrase


def _trait(text: object) -> object:
    return _phrase(text, _BEFORE_TRAIT)


def _wish(text: object) -> object:
    return _phrase(text, _BEFORE_PREFERENCE)


Trait = Annotated[str, BeforeValidator(_trait)]
Wish = Annotated[str, BeforeValidator(_wish)]


# Other ways to say "The user is … and prefers …" that leave no doubt who prefers.
_ADJECTIVES = r"[\w'\u2019-]+(?:(?:,? and |, )[\w'\u2019-]+)*"
_SENTENCES = tuple(
    re.compile(rf"^The user is {pattern} (?P<preference>\S.*?)\.?$", re.DOTALL)
    for pattern in (
        r"(?P<trait>\S.*?),? and prefers",
        rf"(?P<trait>(?:an? )?{_ADJECTIVES}), preferring",
        rf"(?P<trait>an? {_ADJECTIVES} (?:individual|person)) who prefers",
    )
)
# Words that do not fit after "I" or "You": a further verb in the third person, or a pronoun for the user.
_THIRD_PERSON = re.compile(
    r"(?:\b(?:and|but|or)|,)\s+(?:also |not |\w+ly )*(?:is|has|does|likes|dislikes|wants|needs|values"
    r"|enjoys|appreciates|avoids|seeks|prioriti[sz]es|prefers|hates|loves|wishes|believes|lives|works"
    r"|tends|expects|finds|focuses|cares|considers|relies|looks|uses|requires|desires|feels|thinks|trusts"
    r"|doesn['\u2019]t|isn['\u2019]t)\b"
    r"|\b(?:they|their|theirs|them|themsel(?:f|ves)|he|his|him|himself|she|her|hers|herself)\b",
    re.IGNORECASE,
)
_OWN_PERSON = {
    "third": re.compile(""),
    "first": re.compile(r"(?:I|I['\u2019]m|My)\b", re.IGNORECASE),
    "second": re.compile(r"(?:You|You['\u2019]re|Your)\b", re.IGNORECASE),
}
_WORDS = {  # subject, "is", "prefers"
    "third": ("The user", "is", "prefers"),
    "first": ("I", "am", "prefer"),
    "second": ("You", "are", "prefer"),
}
_FRAMES = {"first": "This describes me: ", "second": "This describes you: "}


class Persona(Record):
    """Someone who would prefer one response, and why.

    The constructor raises pydantic's `ValidationError` if trait, preference and sentence are all empty, or if
    a text holds half of a surrogate pair, which neither requests nor files can hold. It cuts subject, verb
    and full stop from trait and preference, and begins these in lower case: "The user is calm." becomes
    "calm".

    Attributes:
        evidence: what in the contrast between the responses supports the persona; "": nothing is known.
        trait, preference: phrases without subject, verb or full stop, from which `render` makes a sentence;
            "": the text of the persona has no such part.
        flags: names of doubts about the persona (see `personainfer.personas.find_flags`). No flag does not
            mean that the persona is true.
        sentence: the text of a persona that somebody else wrote, if `render` would make another one (see
            `parse`); else None.
    """

    evidence: str = ""
    trait: Trait
    preference: Wish
    flags: Many[str] = ()
    sentence: str | None = None

    @model_validator(mode="after")
    def _says_something_in_utf_8(self) -> Self:
        if not (self.trait or self.preference or (self.sentence and self.sentence.strip())):
            raise ValueError("a persona needs a trait, a preference or a sentence")
        texts = (self.evidence, self.trait, self.preference, self.sentence or "", *self.flags)
        "".join(texts).encode()  # UnicodeEncodeError is a ValueError
        return self

    @classmethod
    def of_phrases(cls, evidence: str, trait: str, preference: str) -> Persona:
        """Make a persona of these texts, as the constructor does, in less time and without its check."""
        return unchecked(
            cls,
            {
                "evidence": evidence,
                "trait": _phrase(trait, _BEFORE_TRAIT),
                "preference": _phrase(preference, _BEFORE_PREFERENCE),
                "flags": (),
                "sentence": None,
            },
        )

    @classmethod
    def parse(cls, text: str) -> Persona:
        """Make a persona of a text that somebody wrote; `str()` gives the same text back.

        "The user is … and prefers …" gives a trait and a preference; so do "The user is …, preferring …" and
        "The user is a … person who prefers …". For any other text, and for several sentences, both are empty.
        `render("first")` then puts "This describes me: " in front of the text, unless the text is in the
        first person already.

        Raises:
            InvalidArgumentError: no text, an empty one, or one that cannot be written as UTF-8.
        """
        if not isinstance(text, str) or not text.strip():
            raise InvalidArgumentError(
                f"Persona.parse({text!r:.40}): a persona is text.", hint="Pass its sentence."
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(
                f"Persona.parse({text!r:.40}): it holds half of a surrogate pair.",
                hint="Remove that character.",
            ) from None
        one = not re.search(
            r"[.!?][\"')\u201d\u2019]?\s", text.strip()
        )  # one sentence, not several
        found = (
            next(filter(None, (p.match(text.strip()) for p in _SENTENCES)), None) if one else None
        )
        if found is None:
            return cls(trait="", preference="", sentence=text)
        persona = cls.of_phrases("", found["trait"], found["preference"])
        if not persona.trait or not persona.preference:
            return cls(trait="", preference="", sentence=text)
        if str(persona) == text and not _THIRD_PERSON.search(" | ".join(persona.phrases)):
            return persona
        return persona.model_copy(update={"sentence": text})

    @property
    def phrases(self) -> tuple[str, ...]:
        """The trait and the preference; for a text without a trait, the whole text alone."""
        if self.sentence is not None and not self.trait:
            return (self.sentence,)
        return (self.trait, self.preference)

    def render(self, person: Person = "third") -> str:
        """Write the persona as a sentence: "The user is calm and prefers lists."

        Without a preference it is "The user is calm.", and without a trait "The user prefers lists."

        `person` chooses its subject: "third" for "The user", "first" for "I", "second" for "You".

        The text of a persona that somebody else wrote stays as it is in the third person. In the other two,
        it stands after "This describes me: " or "This describes you: " if it has no trait or has words that
        do not fit "I" or "You" ("and dislikes", "their"), unless it is in that person already.

        Raises:
            InvalidArgumentError: `person` is another text.
        """
        InvalidArgumentError.check("person", person, _WORDS)
        kept = self.sentence is not None and (
            person == "third" or not self.trait or _THIRD_PERSON.search(" | ".join(self.phrases))
        )
        if kept and self.sentence is not None:
            mine = _OWN_PERSON[person].match(self.sentence.lstrip())
            return self.sentence if mine else _FRAMES[person] + self.sentence
        subject, is_, prefers = _WORDS[person]
        if self.trait and self.preference:
            return f"{subject} {is_} {self.trait} and {prefers} {self.preference}."
        return (
            f"{subject} {is_} {self.trait}."
            if self.trait
            else f"{subject} {prefers} {self.preference}."
        )

    def __str__(self) -> str:
        return self.render()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several hypotheses about a side: a persona that may explain why its response is preferred.

    Attributes:
        persona: the hypothesis.
        score: how well it explains the choice, in the unit of what scored it (see `Selector`); None: it was
            not scored, or cannot be.

    Raises:
        InvalidArgumentError: `persona` is no `Persona`, or `score` is neither a number nor None.
    """

    persona: Persona
    score: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.persona, Persona):
            raise _no_field(self, "persona", "Persona")
        score = self.score
        if score is None or type(score) is float:
            return
        try:
            if isinstance(score, bool) or not isinstance(score, Real):
                raise TypeError
            object.__setattr__(self, "score", float(score))  # such as one of NumPy
        except (TypeError, ValueError, OverflowError):
            raise _no_field(self, "score", "number") from None


def _no_field(record: object, name: str, wanted: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{type(record).__name__}: {name}={quoted(getattr(record, name), 60)} is no {wanted}.",
        hint="Persona.parse makes one of a sentence." if wanted == "Persona" else "",
        argument=name,
    )


# None comes first: to find that it is no record takes pydantic most of the time of a row.
_PREFERENCE_OR_NONE = (type(None), Preference)
_PERSONA_OR_NONE = (type(None), Persona)
_FIELDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("preference", _PREFERENCE_OR_NONE, "Preference"),
    ("chosen", _PERSONA_OR_NONE, "Persona"),
    ("rejected", _PERSONA_OR_NONE, "Persona"),
    ("error", (type(None), str), "text"),
    ("columns", (dict, Mapping), "mapping"),
)


@dataclass(frozen=True, slots=True)
class PersonaRow:
    """One pair and its personas.

    Attributes:
        index: the position of the row in the input, from 0.
        preference: the pair; None: the row of the input states none.
        chosen, rejected: who would prefer the chosen, and the rejected, response; None: there is an error,
            the side was not asked for, or no candidate explains it (see `unexplained`).
        error: what failed, and what to do; None: nothing did.
        chosen_candidates, rejected_candidates: the hypotheses of each side, the best first if they were
            scored; (): there were none besides the persona.
        columns: the row's own columns if the data was a file or dicts. They are empty for a frame and for a
            saved table, which have the columns themselves.

    Raises:
        InvalidArgumentError: a value of another type, or a conversation without a turn and no error.
    """

    index: int
    preference: Preference | None
    chosen: Persona | None = None
    rejected: Persona | None = None
    error: str | None = None
    chosen_candidates: tuple[Candidate, ...] = ()
    rejected_candidates: tuple[Candidate, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not (  # as it is with nearly all rows: there are millions of them
            type(self.index) is int
            and isinstance(self.preference, _PREFERENCE_OR_NONE)
            and isinstance(self.chosen, _PERSONA_OR_NONE)
            and isinstance(self.rejected, _PERSONA_OR_NONE)
            and (self.error is None or type(self.error) is str)
            and type(self.columns) is dict
            and (self.preference is None or self.preference.prompt)
        ):
            self._check()
        if self.chosen_candidates or self.rejected_candidates:
            self._check_candidates()

    def _check(self) -> None:
        try:
            if isinstance(self.index, bool):
                raise TypeError
            object.__setattr__(self, "index", operator.index(self.index))  # such as one of NumPy
        except TypeError:
            raise _no_field(self, "index", "whole number") from None
        for name, kinds, wanted in _FIELDS:
            if not isinstance(getattr(self, name), kinds):
                raise _no_field(self, name, wanted)
        if self.preference is not None and self.preference.prompt == () and self.error is None:
            raise InvalidArgumentError(
                "PersonaRow: its preference is a conversation without a turn.",
                hint="Give a prompt, or an error that says what is wrong.",
                argument="preference",
            )

    def _check_candidates(self) -> None:
        for name in ("chosen_candidates", "rejected_candidates"):
            given = getattr(self, name)
            if type(given) is list:
                given = tuple(given)
                object.__setattr__(self, name, given)
            if type(given) is not tuple or not set(map(type, given)) <= {Candidate}:
                raise _no_field(self, name, "tuple of candidates")

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of both personas, each once."""
        both = [persona.flags for persona in (self.chosen, self.rejected) if persona is not None]
        return tuple(dict.fromkeys(flag for flags in both for flag in flags))

    @property
    def unexplained(self) -> tuple[Side, ...]:
        """The sides, "chosen" or "rejected", without a persona because no candidate explains the choice.

        Such a side has candidates with scores, but none of them is above the threshold of the run. This is a
        finding about the pair and no error.
        """
        sides: tuple[tuple[Side, Persona | None, tuple[Candidate, ...]], ...] = (
            ("chosen", self.chosen, self.chosen_candidates),
            ("rejected", self.rejected, self.rejected_candidates),
        )
        return tuple(
            side
            for side, persona, candidates in sides
            if persona is None and any(one.score is not None for one in candidates)
        )


(
    _set_index,
    _set_preference,
    _set_chosen,
    _set_rejected,
    _set_error,
    _set_chosen_candidates,
    _set_rejected_candidates,
    _set_columns,
) = (vars(PersonaRow)[name].__set__ for name in PersonaRow.__slots__)


def unchecked_row(
    index: int,
    preference: Preference | None,
    chosen: Persona | None,
    rejected: Persona | None,
    error: str | None,
    chosen_candidates: tuple[Candidate, ...],
    rejected_candidates: tuple[Candidate, ...],
    columns: Mapping[str, Any],
) -> PersonaRow:
    """Make a row of values that are known to be valid, in less than half of the time of the constructor."""
    row = object.__new__(PersonaRow)
    _set_index(row, index)
    _set_preference(row, preference)
    _set_chosen(row, chosen)
    _set_rejected(row, rejected)
    _set_error(row, error)
    _set_chosen_candidates(row, chosen_candidates)
    _set_rejected_candidates(row, rejected_candidates)
    _set_columns(row, columns)
    return row


class Exemplar(Record):
    """A worked example shown to the model: a pair, and the persona of each side."""

    preference: Preference
    chosen: Persona
    rejected: Persona


# Each token of a reply, with the log-probabilities (in nats) of the likeliest tokens at its place.
Logprobs = Sequence[tuple[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Completion:
    """The reply of a model as text, with the tokens that the endpoint counted.

    Attributes:
        text: the reply, without reasoning that the endpoint gives apart from it.
        finish_reason: why the reply ended, in the endpoint's word, such as "stop" or "length".
        prompt_tokens: the tokens of the prompt.
        completion_tokens: the tokens of the reply, with those of reasoning.
        logprobs: each token of the reply with the log-probabilities, in nats, of the likeliest tokens at its
            place; None unless the request asked for them and the endpoint gave them.
        reasoning_tokens: the tokens of reasoning, if the endpoint tells.
        counted: whether the endpoint told the tokens of prompt and completion.
        dialect: the version of the endpoint's dialect (the form in which it takes requests) in which the
            request was written; 0 once a reply had the form that was asked for.
        written_tokens: the tokens of the prompt that the provider wrote into its cache, if it tells.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: Logprobs | None = None
    reasoning_tokens: int = 0
    counted: bool = True
    dialect: int = 0
    written_tokens: int = 0


class Selector(Protocol):
    """Scores hypotheses: `Likelihood`, `Verifier`, or an object of your own."""

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[Persona]
    ) -> Iterable[float]:
        """Score how well each persona explains that `chosen` was preferred, in a unit of the selector's own.

        Args:
            preferences: n pairs.
            personas: n personas, one for each pair.

        Returns:
            n scores. Above 0: the persona explains the choice. NaN: the pair cannot be scored.
        """


class Usage(Record):
    """The calls, tokens and cost of a run.

    Attributes:
        calls: the requests that were sent, with retries and re-asks, but without those that got no
            connection. Calls that wait for the local model when a run is stopped count.
        cached: the replies that were read from disk.
        retries: the calls repeated after a failure of the connection or the endpoint.
        reasks: the calls repeated because a reply was not in the form that was asked for, or was doubtful.
        prompt_tokens, completion_tokens: the endpoint's own counts over all calls.
        reasoning_tokens: those of the completion tokens in which a model reasoned, if its endpoint tells.
        cost: USD; None if any price is unknown.
    """

    calls: int = 0
    cached: int = 0
    retries: int = 0
    reasks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        unknown = self.cost is None or other.cost is None
        sums = {name: (value or 0) + (getattr(other, name) or 0) for name, value in self}
        return Usage.model_validate({**sums, "cost": None if unknown else sums["cost"]})
