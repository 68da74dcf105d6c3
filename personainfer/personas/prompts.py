"""Turn a preference into messages for a model. The words are in the text files of the folder `texts`.

The text of a pair is never taken for a field of a template, and cannot close the tags around it. A model may
still obey what such a text says; the instructions ask it not to.

What all pairs share comes first, so that providers' caches of prompts have it.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Any, ClassVar, Literal
from zlib import crc32

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from ..exceptions import InvalidArgumentError
from ..preferences.conversations import encoding_problem
from ..records import Exemplar, Message, Persona, Preference, Prompt, unchecked
from .placement import disarm

Protocol = Literal["joint", "separate"]

# How much of a response is repeated to say which one is meant.
_FIRST_WORDS, _FIRST_CHARACTERS = 4, 40

# What a model should heed that gave equal preferences, or one of an exemplar.
_DIFFER = (
    "The two persons like different things: no words of one preference may stand in the other, and none in an"
    " earlier reply."
)
_OWN_WORDS = "No words of an earlier reply may stand in the preference."

_MOST_SIGNS = 500
_SIGN = r"[^\w\s\x00-\x7f]"  # holds all combining marks: they are no letters to Python
_A_WORD = re.compile(r"\w")
_LONG_RUN = re.compile(rf"{_SIGN}{{{_MOST_SIGNS}}}(?={_SIGN})")

Filled = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _with_a_word(text: str) -> str:
    if not _A_WORD.search(text):
        raise ValueError("it has no word.")
    return text


# Of "...", a sentence would show nothing. A pattern would be in the JSON schema, which some endpoints refuse.
Phrase = Annotated[Filled, AfterValidator(_with_a_word)]


def at_most(characters: int) -> dict[str, Any]:
    """Return a bound on the length of a text, to add to a field of a JSON schema.

    An engine that decodes by the schema stops a small model that repeats itself. Replies are not checked for
    the bound, so longer texts of other models are taken as they are.
    """
    return {"maxLength": characters}


class OnePersona(BaseModel):
    """The form of a reply about one person: the evidence in the pair, and then the persona."""

    # What models write in place of a field's name.
    other_names: ClassVar[Mapping[str, str]] = {
        "traits": "trait",
        "personality": "trait",
        "preferences": "preference",
        "prefers": "preference",
    }

    evidence: Annotated[str, Field(json_schema_extra=at_most(120))]
    trait: Annotated[Filled, Field(json_schema_extra=at_most(100))]
    preference: Annotated[Phrase, Field(json_schema_extra=at_most(120))]

    def persona(self) -> Persona:
        """Return the reply as a `Persona` without flags."""
        return Persona.of_phrases(self.evidence, self.trait, self.preference)


class BothPersonas(BaseModel):
    """The form of a reply with both personas: `person_1` prefers the response that is shown first."""

    other_names: ClassVar[Mapping[str, str]] = {
        form.format(thing, side): f"person_{number}"
        for thing in ("person", "persona", "user", "response")
        for number, sides in ((1, ("1", "one", "a", "first")), (2, ("2", "two", "b", "second")))
        for side in sides
        for form in ("{0}_{1}", "{1}_{0}", "{1}")
    }

    person_1: OnePersona
    person_2: OnePersona


class PersonaPrompt:
    """How personas are asked for: messages that all pairs share, and the form of a reply.

    Args:
        protocol: "joint": a request asks for both personas of a pair. "separate": a request asks for one.
        exemplars: "default": the worked examples of the library. "none": no examples. Or examples of your
            own.

    Attributes:
        protocol: as it was given.
        exemplars: the worked examples.
        schema: the form of a reply.
        prefix: the messages that all pairs share: the instructions, then the worked examples.
        version: 12 hexadecimal digits, a hash of `prefix` and of the template of a pair's message.
        phrases: the traits and preferences of the exemplars in lower case, which a reply should not repeat.

    Raises:
        InvalidArgumentError: `exemplars` is something else, or has a persona without a trait or preference.
    """

    def __init__(
        self,
        protocol: Protocol = "joint",
        exemplars: Literal["default", "none"] | Sequence[Exemplar] = "default",
    ) -> None:
        self.protocol = protocol
        self.exemplars = _exemplars(exemplars)
        self.schema: type[BaseModel] = BothPersonas if protocol == "joint" else OnePersona
        turns = [Message(role="system", content=_text(f"{protocol}.txt"))]
        for exemplar in self.exemplars:
            turns += self._worked(exemplar)
        self.prefix = tuple(turns)
        self.version = _digest(self.prefix)
        personas = [p for exemplar in self.exemplars for p in (exemplar.chosen, exemplar.rejected)]
        self.phrases = frozenset(text.lower() for p in personas for text in (p.trait, p.preference))

    def doubt(self, reply: OnePersona | BothPersonas) -> str | None:
        """Return what to tell the model when it is asked once more; None if the reply is as it should be.

        The model is asked once more if both personas have the same preference, which explains no choice, or
        if one has the preference or trait of an exemplar as its preference. If it gave the same evidence for
        both sides, it sees no difference: then equal preferences are accepted, since asking again would be of
        no use.
        """
        if isinstance(reply, OnePersona):
            return _OWN_WORDS if reply.preference.lower() in self.phrases else None
        one, other = reply.person_1, reply.person_2
        wanted = one.preference.lower(), other.preference.lower()
        equal = wanted[0] == wanted[1] and one.evidence != other.evidence
        return None if not equal and self.phrases.isdisjoint(wanted) else _DIFFER

    def _worked(self, exemplar: Exemplar) -> list[Message]:
        both = _replies(exemplar)
        reply = json.dumps(
            both if self.protocol == "joint" else both["person_1"], ensure_ascii=False
        )
        return [pair_message(exemplar.preference), Message(role="assistant", content=disarm(reply))]


def pair_message(preference: Preference, *, chosen_first: bool = True) -> Message:
    """Return the message that shows one pair. It does not say which response was chosen.

    The first words of each response come again at the end. A small model that starts its evidence with
    these words describes the right response.

    Args:
        preference: the pair.
        chosen_first: whether the chosen response is shown as the first one.
    """
    first, second = _disarm(preference.chosen), _disarm(preference.rejected)
    if not chosen_first:
        first, second = second, first
    fields = {
        "prompt": _disarm(prompt_text(preference.prompt)),
        "first": first,
        "second": second,
        "first_words": _first_words(first),
        "second_words": _first_words(second),
    }
    parts = list(_parts("pair.txt"))
    parts[1::2] = map(fields.__getitem__, parts[1::2])
    return unchecked(Message, {"role": "user", "content": "".join(parts), "extra": None})


def _first_words(text: str) -> str:
    """Return the first four words of a text, but at most 40 characters, with an ellipsis after them."""
    start = text[: _FIRST_CHARACTERS + 1].split(None, _FIRST_WORDS)
    return f"{' '.join(start[:_FIRST_WORDS])[:_FIRST_CHARACTERS]} …"


def chosen_is_first(preference: Preference) -> bool:
    """Whether the chosen response of a pair is to be shown first.

    A hash of the texts decides, so that the order says nothing about the choice: the chosen
    response is first in about half of all pairs, and a pair with the choice swapped is shown in the same
    order.
    """
    # A checksum is enough to toss a coin, and this runs twice for every row.
    prompt = crc32(prompt_text(preference.prompt).encode("utf-8", "surrogatepass"))
    chosen = crc32(preference.chosen.encode("utf-8", "surrogatepass"), prompt)
    return chosen <= crc32(preference.rejected.encode("utf-8", "surrogatepass"), prompt)


@cache
def default_exemplars() -> tuple[Exemplar, ...]:
    """Return the worked examples that come with the library. Their pairs contrast in different ways."""
    return tuple(
        Exemplar(
            preference=Preference(
                prompt=row["prompt"], chosen=row["chosen"], rejected=row["rejected"]
            ),
            chosen=Persona(**row["chosen_persona"]),
            rejected=Persona(**row["rejected_persona"]),
        )
        for row in map(json.loads, _text("exemplars.jsonl").splitlines())
    )


@cache
def instructions(name: str) -> tuple[Message, ...]:
    """Return the text of a file in `texts`, such as "user.txt", as the one system message of a request."""
    return (Message(role="system", content=_text(name)),)


def filled(template: str, fields: Mapping[str, Prompt]) -> str:
    """Return the text of a file in `texts` with its {fields} filled in.

    No value can close the tags around it.

    Args:
        template: the name of the file.
        fields: field -> a text or a prompt, for each field of the file.
    """
    texts = {name: prompt_text(value) for name, value in fields.items()}
    return _fill(template, texts).content


def choice_messages(persona: Persona | str, preference: Preference) -> tuple[Message, Message]:
    """Return two messages that ask which response a persona would prefer.

    The first message shows the chosen response first, the second one the rejected response.
    """
    return _both_orders("judge_choice_item.txt", preference, {"persona": str(persona)})


def quality_messages(preference: Preference) -> tuple[Message, Message]:
    """Return two messages that ask which response is better, without a persona, as `choice_messages` does."""
    return _both_orders("judge_quality_item.txt", preference, {})


def _both_orders(
    template: str, preference: Preference, fields: Mapping[str, str]
) -> tuple[Message, Message]:
    shown = {**fields, "prompt": prompt_text(preference.prompt)}
    one, other = preference.chosen, preference.rejected
    return (
        _fill(template, {**shown, "first": one, "second": other}),
        _fill(template, {**shown, "first": other, "second": one}),
    )


def persona_messages(first: Persona, second: Persona) -> tuple[Message, Message]:
    """Return two messages that ask which of two personas is better: `first` before `second`, then swapped."""
    one, other = str(first), str(second)
    return (
        _fill("judge_personas_item.txt", {"first": one, "second": other}),
        _fill("judge_personas_item.txt", {"first": other, "second": one}),
    )


def rating_message(persona: Persona, preference: Preference) -> Message:
    """Return the message that shows a persona with the response that it should prefer, and the other one.

    The persona should prefer `preference.chosen`.
    """
    shown = {"persona": str(persona), "prompt": prompt_text(preference.prompt)}
    responses = {"preferred": preference.chosen, "other": preference.rejected}
    return _fill("judge_rating_item.txt", {**shown, **responses})


def _exemplars(given: object) -> tuple[Exemplar, ...]:
    if isinstance(given, str) and given in ("default", "none"):
        return default_exemplars() if given == "default" else ()
    if isinstance(given, list | tuple) and all(isinstance(one, Exemplar) for one in given):
        personas = [persona for one in given for persona in (one.chosen, one.rejected)]
        if bad := next((one for one in personas if not (one.trait and one.preference)), None):
            raise InvalidArgumentError(
                f"exemplars= holds a persona without trait and preference: {str(bad)!r:.80}.",
                hint="The model is asked for both: write Persona(trait=…, preference=…).",
            )
        for place, one in enumerate(given):
            if (problem := encoding_problem(one.preference)) is not None:
                raise InvalidArgumentError(
                    f"exemplars[{place}].preference: {problem}", argument="exemplars"
                )
        return tuple(given)
    raise InvalidArgumentError(
        f"exemplars={given!r:.80} is not known.",
        hint='Use "default", "none" or a sequence of personainfer.Exemplar.',
        argument="exemplars",
    )


_TAG = re.compile(
    r"<(\s*+/?\s*+(?:prompt|response_[12]|person_[12]|persona(?:_[12])?|(?:preferred|other)_response"
    r"|choice|explanation|example|earlier_description)\b[^<>]*)>",
    re.IGNORECASE,
)


def _disarm(text: str) -> str:
    """Return a text that cannot close the tags around it or, by a mark of a chat template, its message."""
    return disarm(_TAG.sub(r"[\1]", text) if "<" in text else text)


def _fill(template: str, fields: Mapping[str, str]) -> Message:
    """Return a message of the user: a file of `texts` with its {fields} filled in, see `filled`.

    Fields are filled in one pass, so no value can open a field.
    """
    parts = enumerate(_parts(template))
    content = "".join([_disarm(fields[part]) if i % 2 else part for i, part in parts])
    return Message(role="user", content=content)


def prompt_numbers(prompts: Sequence[Prompt | None]) -> list[int]:
    """Return a number for each prompt, which is the same for prompts with the same `bare_text`.

    The numbers count from 0 without gaps. None counts as an empty prompt.
    """
    texts = ["" if p is None else bare_text(prompt_text(p)) for p in prompts]
    number = {text: place for place, text in enumerate(sorted(set(texts)))}
    return [number[text] for text in texts]


def bare_text(text: str) -> str:
    """Return a text without differences in white space, case and the encoding of accents."""
    return " ".join(composed(text).split()).casefold()


def composed(text: str) -> str:
    """Return a text whose accents are composed with their letters (NFC).

    NFC sorts the marks of a letter, in a time that grows with the square of their number. So in a run of
    signs without a letter, each 500 are followed by U+034F, at which sorting ends (UAX 15, section 13).
    """
    if len(text) > _MOST_SIGNS and not text.isascii():
        text = _LONG_RUN.sub("\\g<0>\u034f", text)
    return unicodedata.normalize("NFC", text)


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt as one text. In a conversation, each turn begins with its role, such as "User: ".

    A single message of the user gives its text alone. Tool calls are JSON below the text of their turn.
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.text}" for message in prompt)


def _replies(exemplar: Exemplar) -> dict[str, dict[str, str]]:
    """Return the reply that an exemplar shows, in the form of the joint protocol."""
    return {"person_1": _reply(exemplar.chosen), "person_2": _reply(exemplar.rejected)}


def _reply(persona: Persona) -> dict[str, str]:
    return persona.model_dump(include={"evidence", "trait", "preference"})


def _digest(messages: Sequence[Message]) -> str:
    words = [message.content for message in messages] + [_text("pair.txt")]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]


@cache
def _text(name: str) -> str:
    folder = resources.files(__package__).joinpath("texts")
    return folder.joinpath(name).read_text(encoding="utf-8").strip()


@cache
def _parts(template: str) -> tuple[str, ...]:
    """Return a file of `texts`, cut at its fields: text and names of fields in turn, text first and last."""
    return tuple(re.split(r"\{(\w+)\}", _text(template)))
