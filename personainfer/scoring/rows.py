"""Check the rows to be scored: as many prompts and personas as responses."""

from __future__ import annotations

from collections.abc import Sequence, Sized

from ..exceptions import InvalidArgumentError
from ..records import Message, Persona, Prompt

PromptLike = str | Sequence[Message]
Row = tuple[Prompt, str | None, str]  # prompt, persona, response


def check_rows(
    prompts: Sequence[PromptLike],
    personas: Sequence[Persona | str | None],
    responses: Sequence[str],
) -> list[Row]:
    check_lengths(prompts=prompts, personas=personas, responses=responses)
    given = enumerate(zip(prompts, personas, responses, strict=True))
    return [check_row(number, *one) for number, one in given]


def check_row(number: int, prompt: object, persona: object, response: object) -> Row:
    if not (persona is None or isinstance(persona, str | Persona)):
        raise InvalidArgumentError(
            f"personas[{number}]={persona!r:.80} is neither a persona, nor text, nor None."
        )
    if not isinstance(response, str):
        raise InvalidArgumentError(f"responses[{number}]={response!r:.80} is not text.")
    row = _prompt(number, prompt), None if persona is None else str(persona), response
    try:
        "".join(text for text in row if isinstance(text, str)).encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"row {number} holds half of a surrogate pair.") from None
    return row


def _prompt(number: int, prompt: object) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list | tuple) and prompt:
        messages = tuple(one for one in prompt if isinstance(one, Message))
        if len(messages) == len(prompt):
            return messages
    raise InvalidArgumentError(
        f"prompts[{number}]={prompt!r:.80} is neither text nor a sequence of personainfer.Message."
    )


def check_lengths(**columns: object) -> None:
    lengths = {}
    for name, column in columns.items():
        if isinstance(column, str) or not isinstance(column, Sized):
            raise InvalidArgumentError(f"{name}={column!r:.80} is not a sequence, one item a row.")
        lengths[name] = len(column)
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{size} {name}" for name, size in lengths.items())
        raise InvalidArgumentError(f"{said}: one of each a row is needed.")
