"""Prompts about a user, and the words of prefixes. The texts are files in `personainfer/personas/texts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from ..personas.prompts import Filled, at_most, filled
from ..records import Message, Persona, Preference

__all__ = [
    "ChoiceNote",
    "Show",
    "WrittenPersona",
    "prefix_examples",
    "prefix_name",
    "prefix_persona",
    "user_message",
]

Show = Literal["chosen", "rejected", "both"]

_NUMBER = {"pattern": "^[1-9][0-9]{0,1}$"}
_NOTES = {"minItems": 1, "maxItems": 4}  # for engines that decode by a schema, as `at_most`


class ChoiceNote(BaseModel):
    """What one choice of a user shows."""

    choice: Annotated[
        str,
        BeforeValidator(lambda value: str(value).strip()),
        Field(json_schema_extra=_NUMBER),
    ]
    shows: Annotated[Filled, Field(json_schema_extra=at_most(100))]


class WrittenPersona(BaseModel):
    """The form of a reply about a user; the evidence is asked for first."""

    evidence: Annotated[list[ChoiceNote], Field(json_schema_extra=dict(_NOTES))]
    background: Annotated[
        Filled,
        Field(json_schema_extra=at_most(300)),
    ]
    preferences: Annotated[Filled, Field(json_schema_extra=at_most(300))]


def user_message(
    choices: Sequence[Preference], explanations: Sequence[Persona | None], earlier: str = ""
) -> Message:
    """The turn with one user's choices, ids "1", "2", …, their explanations, and the earlier persona."""
    parts = []
    for number, (choice, persona) in enumerate(zip(choices, explanations, strict=True), 1):
        pair = {"prompt": choice.prompt, "preferred": choice.chosen, "other": choice.rejected}
        parts.append(filled("user_choice.txt", {"id": str(number), **pair}))
        if persona is not None:
            said = f"{persona} ({persona.evidence})" if persona.evidence else str(persona)
            fields = {"id": str(number), "explanation": said}
            parts.append(filled("user_explanation.txt", fields))
    if earlier:
        parts.append(filled("user_earlier.txt", {"earlier": earlier}))
    return Message(role="user", content="\n".join(parts))


def prefix_persona(persona: str) -> str:
    """The prefix that describes a user."""
    return filled("prefix_persona.txt", {"persona": persona})


def prefix_name(name: str) -> str:
    """The prefix that only names a user."""
    return filled("prefix_name.txt", {"name": name})


def prefix_examples(choices: Sequence[Preference], show: Show, *, similar: bool = False) -> str:
    """The prefix with earlier choices; "" where there are none.

    `similar`: they are choices of similar users, not of the user.
    """
    if not choices:
        return ""
    who = "users with a similar taste" if similar else "this user"
    examples = [
        filled(
            f"prefix_example_{show}.txt",
            {"prompt": choice.prompt, "preferred": choice.chosen, "other": choice.rejected},
        )
        for choice in choices
    ]
    return "\n".join([filled(f"prefix_examples_{show}.txt", {"who": who}), *examples])
