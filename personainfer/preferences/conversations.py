"""Read the cells of a row as text or as turns of a conversation, and make a `Preference` of them.

Turns come in many spellings: `role`/`content`, `from`/`value` (ShareGPT), a list under `messages`,
content in parts, or all of it as JSON text. They become `Turn`s with the roles system, user,
assistant and tool.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic import ValidationError

from ..exceptions import DataError, NoPreferenceError
from ..records import Message, Preference, Prompt

__all__ = [
    "ABSENT",
    "LEAVE_OUT",
    "Turn",
    "Turns",
    "as_turns",
    "cut_at_turn",
    "identifier",
    "is_null",
    "is_transcript",
    "looks_like_turns",
    "parse_cell",
    "plain",
    "preference_of",
    "read_conversations",
    "read_history",
    "read_pair",
    "read_prompt",
    "surrogate_problem",
    "text_or_turns",
    "transcript_prompt",
    "without_prompt",
    "wrong_type",
]


class Turn(NamedTuple):
    """One turn; `extra` has what it holds beside its role and content, such as tool calls."""

    role: str
    content: str
    extra: dict[str, Any] | None = None


Turns = tuple[Turn, ...]


class _Absent:
    """Marks a key that a row does not have, as opposed to a null."""


ABSENT: Final = _Absent()
LEAVE_OUT: Final = "Mend the row or leave it out."

# A turn begins at the start of the text or after a blank line. Elsewhere it is a quotation.
_SPEAKER = re.compile(r"(?:\A\s*|\n[ \t\r]*\n[ \t]*)(Human|Assistant):")
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "customer", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai", "chatbot"), "assistant"),
    **dict.fromkeys(("bing", "bard", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
}
_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
_LIST_KEYS = ("messages", "conversations", "conversation", "turns")
_TEXT_KEYS = ("full_text", "text", "content", "value")
_TOOL_KEYS = ("tool_calls", "function_call")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IN_JSON = re.compile(r"""\s*(?:\[\s*)?\{.*?["'](?:role|from|content|value)["']\s*:""", re.DOTALL)


# Cells


def plain(value: object) -> object:
    """Numpy's arrays and scalars as Python's lists and numbers; other values as they are."""
    if type(value).__module__ == "numpy":
        return value.tolist()  # type: ignore[attr-defined]
    return value


def is_null(value: object) -> bool:
    """Whether a value is None, absent, NaN, or a null of pandas."""
    absent = value is None or value is ABSENT or type(value).__name__ in ("NAType", "NaTType")
    return absent or (isinstance(value, float) and math.isnan(value))


def wrong_type(name: str, value: object, wanted: str) -> DataError:
    """The error for a value that is absent, null, or of a wrong type."""
    if value is ABSENT:
        return DataError(f"the row has no {name!r}.", hint=LEAVE_OUT)
    if is_null(value):
        return NoPreferenceError(f"{name!r} is missing (null).", hint=LEAVE_OUT)
    return DataError(f"{name!r} is of type {type(value).__name__}, not {wanted}.", hint=LEAVE_OUT)


def identifier(value: object) -> str | None:
    """An id as text. A null, an empty text or a list is no id; that is not an error."""
    if value is None or value is ABSENT:
        return None
    if type(value) is str:
        return value or None
    value = plain(value)
    if is_null(value) or not isinstance(value, str | int | float | UUID):
        return None
    if isinstance(value, float) and value.is_integer():  # integers of a column with nulls
        value = int(value)
    return str(value) or None


def surrogate_problem(name: str) -> str:
    """The error of a text that cannot be written as UTF-8."""
    return (
        f"{name} holds bytes that are not UTF-8, or half of a surrogate pair. "
        "Read the data with its own encoding, or remove those characters."
    )


def looks_like_turns(value: object) -> bool:
    """Whether a text seems to be a list of messages that was written as JSON or by Python."""
    return isinstance(value, str) and value.lstrip()[:1] in "[{" and bool(_IN_JSON.match(value))


def parse_cell(name: str, value: object) -> object:
    """A cell of a column that holds JSON text, parsed; also what Python prints of lists.

    Raises:
        DataError: the text is neither.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise DataError(
            f"{name!r} is no JSON, as the column has in other rows: {value!r:.60}.",
            hint="Write it with json.dumps.",
        ) from None


# Turns


def text_or_turns(name: str, value: object) -> str | Turns:
    """A cell as text, or as turns. Raises `DataError` if it is neither."""
    if type(value) is str:
        return value
    value = plain(value)
    if isinstance(value, Message):
        return (_turn(name, value),)
    if isinstance(value, Mapping):
        return _of_mapping(name, value)
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise wrong_type(name, value, "text or a list of messages")
    if not value:
        raise NoPreferenceError(f"{name!r} is an empty list of messages.", hint=LEAVE_OUT)
    return tuple(_turn(name, item) for item in value)


def as_turns(value: str | Turns) -> Turns:
    """A text as one user turn; turns as they are."""
    return (Turn("user", value),) if isinstance(value, str) else value


def _of_mapping(name: str, value: Mapping[Any, Any]) -> str | Turns:
    """A single turn, a list under "messages" or the like, or a record that holds one text."""
    if _first(value, _ROLE_KEYS) is None:
        for key in _LIST_KEYS:
            if isinstance(plain(value.get(key)), list | tuple):
                return text_or_turns(name, value[key])
        for key in _TEXT_KEYS:
            if isinstance(value.get(key), str):
                return str(value[key])
    return (_turn(name, value),)


def _first(item: Mapping[Any, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys for which the item has a value."""
    return next((key for key in keys if not is_null(item.get(key))), None)


def _turn(name: str, item: object) -> Turn:
    if isinstance(item, Turn):
        return item
    if isinstance(item, Message):
        return Turn(item.role, item.content, dict(item.extra) if item.extra else None)
    if not isinstance(item, Mapping):
        raise DataError(f"{name!r} has a turn that is no {{'role': …, 'content': …}}.")
    role_key = _first(item, _ROLE_KEYS)
    role = item[role_key] if role_key else None
    if isinstance(role, Mapping):
        role = role.get("role")
    if not isinstance(role, str):
        raise DataError(f"{name!r} has a turn that is no {{'role': …, 'content': …}}.")
    content_key = _first(item, _CONTENT_KEYS)
    others = {key: v for key, v in item.items() if key not in (role_key, content_key)}
    extra = _extra(name, others)
    content = _content(name, item[content_key] if content_key else None, extra)
    role = role.strip()
    return Turn(_ROLES.get(role.lower(), role), content, extra)


def _content(name: str, value: object, extra: Mapping[str, Any] | None) -> str:
    content = plain(value)
    if isinstance(content, Mapping) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if isinstance(content, list | tuple):
        return "".join(_part(name, part) for part in content)
    if content is None and extra and any(key in extra for key in _TOOL_KEYS):
        return ""
    if not isinstance(content, str):
        raise wrong_type(f"{name} content", content, "text")
    return content


def _part(name: str, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        what = repr(kind) if isinstance(kind, str) else type(kind).__name__
        raise DataError(
            f"{name!r} has a part that is not text ({what}).", hint="Only text can be used."
        )
    return text


def _extra(name: str, others: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The other fields of a turn that hold something, as values that JSON has."""
    kept = {str(key): v for key, v in others.items() if not is_null(v) and not _is_empty(v)}
    if not kept:
        return None
    try:
        return dict(json.loads(json.dumps(kept, default=_json_default)))
    except (ValueError, TypeError, RecursionError):
        raise DataError(
            f"{name!r} has a turn with fields that JSON cannot hold ({', '.join(kept):.80}).",
            hint="Remove them.",
        ) from None


def _json_default(value: object) -> object:
    changed = plain(value)
    return str(value) if changed is value else changed


def _is_empty(value: object) -> bool:
    return isinstance(value, str | list | tuple | dict) and not value


def read_history(name: str, value: object) -> Turns:
    """The turns before the prompt: turns, or pairs of what the user and the assistant said."""
    value = plain(value)
    if is_null(value) or value in ("", [], ()):
        return ()
    if isinstance(value, list | tuple) and all(_is_exchange(plain(each)) for each in value):
        texts = [text for each in value for text in each]
        return tuple(Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(texts))
    turns = text_or_turns(name, value)
    if isinstance(turns, str):
        raise DataError(f"{name!r} is text, not the turns before the prompt.", hint=LEAVE_OUT)
    return turns


def _is_exchange(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(each, str) for each in value)
    )


# Conversations


def _transcript(text: str) -> Turns | None:
    """The turns of a "\\n\\nHuman: … \\n\\nAssistant: …" text; None if it is no such text."""
    before, *rest = _SPEAKER.split(text)
    if not rest or before.strip():
        return None
    return tuple(
        Turn(_ROLES[speaker.lower()], said.strip())
        for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    )


def is_transcript(text: object) -> bool:
    """Whether a text is a conversation in the form of "\\n\\nHuman: … \\n\\nAssistant: …"."""
    return isinstance(text, str) and _transcript(text) is not None


def transcript_prompt(text: str) -> Turns:
    """The turns of a prompt that is a transcript, without the empty assistant turn at its end."""
    turns = _transcript(text) or (Turn("user", text),)
    is_open = len(turns) > 1 and turns[-1].role == "assistant" and not turns[-1].content
    return turns[:-1] if is_open else turns


def cut_at_turn(name: str, value: object, count: object) -> object:
    """A conversation up to its assistant turn of that number, counted from 1."""
    turns = text_or_turns(name, value)
    if isinstance(turns, str) or not isinstance(count, int | float) or count < 1:
        return value
    ends = [place for place, turn in enumerate(turns, 1) if turn.role == "assistant"]
    kept = turns[: ends[int(count) - 1]] if len(ends) >= count else turns
    return [{"role": t.role, "content": t.content, **(t.extra or {})} for t in kept]


def without_prompt(
    prompt: str, chosen: str, rejected: str, counts: Counter[str]
) -> tuple[str, str]:
    """Two responses without the prompt, where both begin with the whole of it.

    The prompt has to end where a word ends, so that "The" is not taken from "There is".
    """
    if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
        return chosen, rejected
    rest = chosen[len(prompt) :], rejected[len(prompt) :]
    if prompt[-1:].isalnum() and any(text[:1].isalnum() for text in rest):
        return chosen, rejected
    counts["prompt_repeated"] += 1
    return rest[0].lstrip(), rest[1].lstrip()


def _split(
    name: str, turns: Turns, counts: Counter[str] | None, *, run: bool = True
) -> tuple[Turns, str]:
    """The turns before the response, and the response at the end.

    With `run`, consecutive assistant messages at the end are one response. In a transcript only the
    last turn is: where just one of two transcripts has a turn before it, they share no prompt.
    """
    end = len(turns)
    while end and turns[end - 1].role == "assistant" and (run or end == len(turns)):
        end -= 1
    if end == len(turns):
        raise DataError(
            f"{name!r} ends with a turn of {turns[-1].role!r}, so it holds no response.",
            hint="A conversation must end with an assistant turn.",
        )
    for turn in turns[end:]:
        if turn.extra and any(key in turn.extra for key in _TOOL_KEYS):
            raise DataError(
                f"{name!r} ends with a response that calls tools, and only text can be compared.",
                hint="Put the calls into the response's text, or leave the row out.",
            )
        if turn.extra and counts is not None:
            counts["response_fields_left_out"] += 1
    return turns[:end], "\n\n".join(turn.content for turn in turns[end:])


def _stripped(turns: Turns) -> tuple[Turn, ...]:
    return tuple(Turn(turn.role, turn.content.strip(), turn.extra) for turn in turns)


def _context(name: str, asked: Turns, head: Turns) -> Turns:
    """The conversation to answer; a response may repeat the prompt or extend it."""
    if not head:
        return asked
    system = tuple(turn for turn in head[:1] if turn.role == "system")
    body = head[len(system) :]
    question = asked[1:] if asked[0].role == "system" else asked
    if not body:
        return system + question
    size, whole, part = len(question), _stripped(body), _stripped(question)
    if not part or part not in (whole[:size], whole[-size:]):
        raise DataError(
            f"{name!r} is a conversation that does not begin with the prompt.",
            hint="Give the response alone, or the same conversation as in the prompt.",
        )
    return (system or asked[: len(asked) - size]) + body


def _same_start(names: tuple[str, str], first: Turns, second: Turns) -> Turns:
    if _stripped(first) != _stripped(second):
        raise DataError(
            f"{names[0]!r} and {names[1]!r} do not share a prompt: they differ before their responses.",
            hint="Both must answer the same conversation.",
        )
    return first


def _without_answer(asked: Turns, texts: Sequence[str]) -> Turns:
    """The prompt without a last assistant turn that is one of the responses."""
    last = asked[-1]
    is_answer = last.role == "assistant" and last.content.strip() in map(str.strip, texts)
    return asked[:-1] if is_answer and len(asked) > 1 else asked


def read_pair(
    names: tuple[str, str, str],
    prompt: object,
    chosen: object,
    rejected: object,
    *,
    before: Turns = (),
    id: str | None = None,
    user: str | None = None,
    counts: Counter[str] | None = None,
) -> Preference:
    """The preference of a prompt and two responses, each a text or a list of messages.

    Args:
        names: what errors call the three.
        prompt, chosen, rejected: texts, messages in any spelling, or conversations that repeat the
            prompt before their response.
        before: turns that come before the prompt, such as a system message in a column of its own.
        id, user: of the preference.
        counts: gets the number of responses whose other fields are left out.

    Raises:
        DataError: they cannot be used.
    """
    if type(prompt) is str and type(chosen) is str and type(rejected) is str and not before:
        return preference_of(prompt, chosen, rejected, id, user)
    asked = text_or_turns(names[0], prompt)
    heads, texts = [], []
    for name, value in ((names[1], chosen), (names[2], rejected)):
        response = text_or_turns(name, value)
        head, text = ((), response) if isinstance(response, str) else _split(name, response, counts)
        heads.append(head)
        texts.append(text)
    question = as_turns(asked)
    if not any(heads):
        question = _without_answer(question, texts)
    contexts = [_context(name, question, head) for name, head in zip(names[1:], heads, strict=True)]
    context = _same_start((names[1], names[2]), contexts[0], contexts[1])
    return preference_of(_preceded(names[0], before, context), texts[0], texts[1], id, user)


def _preceded(name: str, before: Turns, context: Turns) -> Turns:
    """The conversation after the turns of other columns; one system message is enough."""
    if before and before[0].role == "system" and context[0].role == "system":
        if before[0].content.strip() != context[0].content.strip():
            raise DataError(
                f"the row has a system message of its own and another one in {name!r}.",
                hint="Leave one of them out.",
            )
        before = before[1:]
    return before + context


def read_prompt(prompt: object) -> Prompt:
    """A text or a list of messages as a prompt. Raises `DataError` if it is neither."""
    asked = text_or_turns("prompt", prompt)
    return asked if isinstance(asked, str) else _messages(asked)


def read_conversations(
    names: tuple[str, str],
    chosen: object,
    rejected: object,
    *,
    before: Turns = (),
    id: str | None = None,
    user: str | None = None,
    counts: Counter[str] | None = None,
) -> Preference:
    """The preference of two conversations whose common start is the prompt.

    Raises:
        DataError: one is no conversation, or they do not share their start.
    """
    heads, texts = [], []
    for name, value in zip(names, (chosen, rejected), strict=True):
        said = text_or_turns(name, value)
        turns = (_transcript(said) or ()) if isinstance(said, str) else said
        if not turns:
            raise DataError(
                f"{name!r} is no conversation, and the row has no prompt.",
                hint="Add the prompt, or write turns as '\\n\\nHuman: … \\n\\nAssistant: …'.",
            )
        head, text = _split(name, turns, counts, run=not isinstance(said, str))
        heads.append(head)
        texts.append(text)
    context = _same_start(names, heads[0], heads[1])
    if not context:
        raise DataError(f"{names[0]!r} holds no turn before the response.", hint=LEAVE_OUT)
    return preference_of(_preceded(names[0], before, context), texts[0], texts[1], id, user)


# Records


def preference_of(
    prompt: str | Turns, chosen: str, rejected: str, id: str | None, user: str | None
) -> Preference:
    """The record. Raises `DataError` for text that is not UTF-8."""
    # Every value is a str or None by now, so the only thing left to refuse is a lone surrogate.
    try:
        asked = prompt if isinstance(prompt, str) else _messages(prompt)
    except ValidationError:
        raise DataError(surrogate_problem("prompt")) from None
    values = {"prompt": asked, "chosen": chosen, "rejected": rejected, "id": id, "user": user}
    for name, text in values.items():
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(surrogate_problem(name)) from None
    return Preference.unchecked(**values)


def _messages(turns: Turns) -> Prompt:
    """One user turn is the same prompt as its bare text, however it was written down."""
    if len(turns) == 1 and turns[0].role == "user" and not turns[0].extra:
        return turns[0].content
    return tuple(Message(role=role, content=content, extra=extra) for role, content, extra in turns)
