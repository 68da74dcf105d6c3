"""Put a persona into a prompt: into the user's message, the system message, or labelled text."""

from __future__ import annotations

import re
from typing import Literal, get_args

from ..arguments import check_text
from ..exceptions import InvalidArgumentError, quoted
from ..records import Message, Persona, Prompt

PersonaPlace = Literal["user", "system", "plain"]


# By place: the last message, the system message, or the whole text, with the persona in it.
TEMPLATES: dict[PersonaPlace, str] = {
    "user": "{prompt}\n\nWrite the response that I would prefer. {persona}",
    "system": "{persona}",
    "plain": "Prompt: {prompt}\nPersona: {persona}\nResponse:\n",
}
# The marks of turns, tools and reasoning in chat templates.
_MARK = re.compile(
    r"<(?=[|\uff5c]|/?\w+[|\uff5c]>"  # ChatML, Llama 3, Phi, Granite, Cohere; DeepSeek; Gemma 4
    r"|</?SYS>>"  # Llama 2
    r"|/?(?i:s|unk|pad|mask|cls|sep|[be]o[sphatmd]|sop)>"  # sentencepiece, GLM, InternLM, Baichuan
    r"|(?:/?role|\u7528\u6237|AI)>"  # Ling; MiniCPM, whose word is "user"
    r"|/?(?:think|unused\d+|reponame|filename)>"  # Qwen, Gemma, StarCoder, SmolLM
    r"|/?(?=\w{1,80}>)\w*_"  # <start_of_turn>, <tool_call>, <fim_prefix>, <BOS_TOKEN>
    r"|/?(?:seed|minimax):\w+>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_\w+|MODEL_SETTINGS|ARGS|CALL_ID|THINK|IMG\w*"
    r"|AUDIO|BEGIN_AUDIO|PREFIX|MIDDLE|SUFFIX|control_\d+|gMASK|sMASK|BOS|EOS|UNK|PAD|CLS|SEP|MASK|unused\d+)\]"
    r"|\||e~\[)"  # Mistral, GLM, BERT, Pangu; EXAONE; MiniMax, as is the next
    r"|\](?=~!?b[\[\]])"
)
_THIRD_PERSON = re.compile(r"The user (?=is |prefers )")
_FIELD = re.compile(r"\{(prompt|persona)\}")


def check_place(place: object) -> None:
    """Raise InvalidArgumentError unless `place` is a `PersonaPlace`."""
    InvalidArgumentError.check("persona_in", place, get_args(PersonaPlace))


def check_template(template: object, place: PersonaPlace) -> None:
    """Raise InvalidArgumentError unless `template` has the fields that `place` needs, and no others.

    The fields are {prompt} and {persona}, as in `TEMPLATES`. For "plain" they must be on different lines.
    """
    fields = _FIELD.findall(template) if isinstance(template, str) else []
    if set(fields) != set(_FIELD.findall(TEMPLATES[place])):
        raise InvalidArgumentError(
            f'template={template!r:.200} does not fit persona_in="{place}".',
            hint=f"It needs the fields of {TEMPLATES[place]!r}, and no others.",
            argument="template",
        )
    check_text("template=", str(template), "template")
    if place == "plain" and any(
        set(_FIELD.findall(line)) == {"prompt", "persona"} for line in str(template).splitlines()
    ):
        raise InvalidArgumentError(
            f"template={template!r:.200} has prompt and persona on one line.",
            hint="Give the persona its own line, which is left out if there is no persona.",
            argument="template",
        )


def prompt_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Return the prompt as a chat, with the marks of chat templates in its texts made harmless by `disarm`.

    Tool calls of a message become JSON at the end of its text.

    Raises:
        InvalidArgumentError: the prompt is neither a text nor a chat.
    """
    return tuple(Message(role=one.role, content=disarm(one.text)) for one in _chat(prompt))


def place_persona(
    prompt: Prompt,
    persona: Persona | str | None,
    place: PersonaPlace,
    template: str | None = None,
) -> Prompt:
    """Put a persona into a prompt.

    Marks of chat templates in the persona are made harmless by `disarm`; those in the prompt stay.

    Args:
        prompt: a text or a chat.
        persona: a persona or its sentence; None: no persona is added.
        place: "user": at the end of the last message if it is the user's, else as a further user message; in
            the first person, with a request for the response that the user would prefer. "system": at the
            end of the system message, or as a new one. "plain": labelled text without a chat template, on
            which tailored models are trained ("Whose Boat Does it Float?", arXiv 2501.11549, section 4).
        template: your own wording for that place, with the same fields as in `TEMPLATES` (see
            `check_template`); None: that of `TEMPLATES`.

    Returns:
        What stands before the response: a chat, or one text if the place is "plain".

    Raises:
        InvalidArgumentError: there is no such place, `template` does not have the fields for it, or another
            argument is of the wrong type.
    """
    InvalidArgumentError.check("place", place, TEMPLATES)
    if template is not None:
        check_template(template, place)
    if not (persona is None or isinstance(persona, Persona | str)):
        raise InvalidArgumentError(
            f"persona={quoted(persona, 80)} is neither a Persona nor text.", argument="persona"
        )
    chat, said = _chat(prompt), None if persona is None else disarm(_said(persona, place))
    template = TEMPLATES[place] if template is None else template
    if place == "plain":
        return _labelled(chat, said, template)
    if said is None:
        return chat
    if place == "system":
        has_head = bool(chat) and chat[0].role == "system"
        head, rest = (chat[:1], chat[1:]) if has_head else ((), chat)
        told = "\n\n".join([*(one.content for one in head), _filled(template, "", said)])
        return (Message(role="system", content=told), *rest)
    if chat and chat[-1].role == "user":
        asked = _filled(template, chat[-1].content.rstrip(), said)
        return (*chat[:-1], chat[-1].model_copy(update={"content": asked}))
    return (*chat, Message(role="user", content=_filled(template, "", said).lstrip("\n")))


def _chat(prompt: Prompt) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    messages = isinstance(prompt, tuple | list) and all(isinstance(one, Message) for one in prompt)
    if not messages or not prompt:
        raise InvalidArgumentError(
            f"prompt={quoted(prompt, 80)} is neither text nor a sequence of personainfer.Message.",
            argument="prompt",
        )
    return tuple(prompt)


def _labelled(chat: tuple[Message, ...], persona: str | None, template: str) -> str:
    if len(chat) == 1:
        asked = chat[0].content
    else:
        asked = "\n\n".join(f"{one.role.capitalize()}: {one.text}" for one in chat)
    if persona is None:  # without the line of the persona
        lines = template.splitlines(keepends=True)
        template = "".join(line for line in lines if "{persona}" not in line)
    return _filled(template, asked, persona or "")


def _filled(template: str, prompt: str, persona: str) -> str:
    fields = {"prompt": prompt, "persona": persona}
    return _FIELD.sub(lambda match: fields[match[1]], template)


def disarm(text: str) -> str:
    """Return a text with a space in everything that a model could read as a mark of its chat template.

    Every text that a model reads (to infer, judge or score) is disarmed. Exports keep texts unchanged.
    """
    if "<" not in text and "[" not in text and "]" not in text:
        return text
    return _MARK.sub(r"\g<0> ", text)


def _said(persona: Persona | str, place: PersonaPlace) -> str:
    """Return the persona's sentence, in the first person if the place is "user"."""
    if place != "user":
        return str(persona)
    # A record tells which verb is the user's. In a sentence, "prefers" may belong to another person.
    return persona.render("first") if isinstance(persona, Persona) else _in_first_person(persona)


def _in_first_person(persona: str) -> str:
    """Turn "The user is … and prefers …" into "I am … and prefer …"; other text is returned unchanged."""
    if not _THIRD_PERSON.match(persona):
        return persona
    said = _THIRD_PERSON.sub("I ", persona)
    said = re.sub(r"\bI is\b", "I am", said)
    return re.sub(r"(\bI|\band|,) prefers\b", r"\1 prefer", said)
