"""What is asked about a user, and what is said of a user before a prompt.

The words are in the text files of the folder `prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from ..personas.prompts import Filled, at_most, filled
from ..records import Message, Persona, Preference

__all__ = [
    "ChoiceNote",
    "WrittenPersona",
    "prefix_examples",
    "prefix_name",
    "prefix_persona",
    "user_message",
]


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
    """The turn that shows what one user chose, with ids "1", "2", …, and what is known of that user."""
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
    """What is said of a user before a prompt."""
    return filled("prefix_persona.txt", {"persona": persona})


def prefix_name(name: str) -> str:
    """The same by nothing but a name."""
    return filled("prefix_name.txt", {"name": name})


def prefix_examples(
    choices: Sequence[Preference], show: Literal["chosen", "rejected", "both"]
) -> str:
    """The same by what the user chose before; "" where there is nothing to show."""
    if not choices:
        return ""
    examples = [
        filled(
            f"prefix_example_{show}.txt",
            {"prompt": choice.prompt, "preferred": choice.chosen, "other": choice.rejected},
        )
        for choice in choices
    ]
    return "\n".join([filled("prefix_examples.txt", {}), *examples])
