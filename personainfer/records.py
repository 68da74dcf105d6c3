"""The records that travel through the library: frozen, typed, made of plain text and numbers.

They do not know where they come from (readers), how they are inferred (inference) or stored (table).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = [
    "Candidate",
    "Completion",
    "Exemplar",
    "Logprobs",
    "Message",
    "Persona",
    "PersonaRow",
    "Preference",
    "Side",
    "Usage",
]

Side = Literal["chosen", "rejected"]
Person = Literal["third", "first", "second"]


class Record(BaseModel):
    """A frozen record; unknown fields are an error rather than lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation, in the form that chat models take."""

    role: str
    content: str


class Preference(Record):
    """A prompt and two responses to it, of which somebody preferred `chosen`.

    `prompt` is a string, or the messages of a conversation whose last turn is to be answered.
    `id` and `user` are the data's own; nothing here invents them.
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str
    id: str | None = None
    user: str | None = None

    @property
    def swapped(self) -> Preference:
        """The same pair as seen by someone who prefers the rejected response."""
        return self.model_copy(update={"chosen": self.rejected, "rejected": self.chosen})


# The words with which the pattern can begin: it is tried on nothing else.
_LEADERS = frozenset("the this they i you someone who is are am prefer prefers would".split())
_SUBJECT = (
    r"^(?:(?:the|this) (?:user|person)\s+|(?:they|i|you)\s+"
    r"|(?:someone )?who\s+(?=is|are|would|prefer))?"
)
_BEFORE_TRAIT = re.compile(_SUBJECT + r"(?:(?:is|are|am)\s+)?", re.IGNORECASE)
_BEFORE_PREFERENCE = re.compile(
    _SUBJECT + r"(?:(?:is|are|am|prefers?|would prefer)\s+)?", re.IGNORECASE
)


def _phrase(text: object, before: re.Pattern[str]) -> object:
    """A phrase that fits into the sentence: one line, no subject, verb or full stop of its own."""
    if not isinstance(text, str):
        return text
    phrase = " ".join(text.split()).rstrip(" .;,")
    first = phrase.partition(" ")[0]
    if first not in _LEADERS and first.islower():  # nearly all are as they should be
        return phrase
    while first.lower() in _LEADERS:
        shorter = before.sub("", phrase, count=1)
        if shorter == phrase:
            break
        phrase = shorter  # and again: "the user is someone who is"
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


class Persona(Record):
    """Someone who would prefer one response, and why.

    `evidence` says what in the contrast between the responses supports the persona; `trait` and
    `preference` are phrases without subject, verb or full stop, from which `render` makes a sentence.
    `flags` names what is doubtful about it (see `personainfer.personas.find_flags`); an empty tuple is no
    guarantee.
    """

    evidence: str = ""
    trait: Trait
    preference: Wish
    flags: tuple[str, ...] = ()

    def render(self, person: Person = "third") -> str:
        """The persona as one sentence about "The user", "I" (`"first"`) or "You" (`"second"`)."""
        subject, verb = {
            "third": ("The user is", "prefers"),
            "first": ("I am", "prefer"),
            "second": ("You are", "prefer"),
        }[person]
        return f"{subject} {self.trait} and {verb} {self.preference}."

    def __str__(self) -> str:
        return self.render()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of several hypotheses about a side, and how well it explains the choice (above 0: it does)."""

    persona: Persona
    score: float | None = None


@dataclass(frozen=True, slots=True)
class PersonaRow:
    """One pair and its personas. `error` says why there are none, and what to do.

    `columns` are the row's own columns where the data was a file or dicts; for a frame, and for a row
    that is read from a stored table, they are empty, since the frame or the file has them.
    """

    index: int
    preference: Preference | None
    chosen: Persona | None = None
    rejected: Persona | None = None
    error: str | None = None
    chosen_candidates: tuple[Candidate, ...] = ()
    rejected_candidates: tuple[Candidate, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of either persona."""
        both = [persona.flags for persona in (self.chosen, self.rejected) if persona is not None]
        return tuple(dict.fromkeys(flag for flags in both for flag in flags))


class Exemplar(Record):
    """A worked example shown to the model: a pair, and the persona of each side."""

    preference: Preference
    chosen: Persona
    rejected: Persona


# Each token of a reply, with the log-probabilities (in nats) of itself and of the likeliest others.
Logprobs = Sequence[tuple[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Completion:
    """The reply of a model, before anybody asked what it means. Tokens are the endpoint's counts.

    `logprobs` are there where the request asked for them and the endpoint gives them.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: Logprobs | None = None


class Usage(Record):
    """What a run took. `cost` is in USD, and None as soon as one price is unknown.

    `calls` counts the requests that were sent, retries and re-asks included; `cached` counts replies
    read from disk, `retries` calls repeated after a transport failure, `reasks` calls repeated with
    the validation error. Tokens are the endpoint's own counts over all calls. Of a run that is left,
    calls that waited for the embedded model count as sent.
    """

    calls: int = 0
    cached: int = 0
    retries: int = 0
    reasks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        known = self.cost is not None and other.cost is not None
        return Usage(
            calls=self.calls + other.calls,
            cached=self.cached + other.cached,
            retries=self.retries + other.retries,
            reasks=self.reasks + other.reasks,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=(self.cost or 0.0) + (other.cost or 0.0) if known else None,
        )
