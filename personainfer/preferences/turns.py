"""Read a cell as text or as the turns of a conversation.

Turns come in many spellings: `role`/`content`, `from`/`value` (ShareGPT), a list under `messages`, or
content in parts. They become `Turn`s with the roles system, user, assistant and tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..exceptions import DataError, NoPreferenceError
from ..records import Message, Preference
from .cells import LEAVE_OUT, is_null, looks_like_turns, parse_cell, plain, wrong_type


class Turn(NamedTuple):
    """One turn; `extra` has what it holds besides its role and content, such as tool calls."""

    role: str
    content: str
    extra: dict[str, Any] | None = None


Turns = tuple[Turn, ...]

ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "customer", "instruction"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai", "chatbot"), "assistant"),
    **dict.fromkeys(("bing", "bard", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
}
_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_CONTENT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
_LIST_KEYS = ("messages", "conversations", "conversation", "turns", "contents", "dialog")
_TEXT_KEYS = (
    "full_text", "text", "content", "value", "answer", "response", "output", "completion", "post", "article"
)  # fmt: skip
TOOL_KEYS = ("tool_calls", "function_call")
TOOL_DEFINITIONS = "tools"  # in the extra of the first message: what the assistant could call
_TEXT_PARTS = ("text", "input_text", "output_text")


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


def may_be_turns(text: str) -> bool:
    """Whether a text is JSON (or what Python prints) of turns, of whatever roles, or a cut-off part of it."""
    if not looks_like_turns(text):
        return False
    try:
        value = parse_cell("", text)
    except DataError:
        return True
    items = value if isinstance(value, list | tuple) else [value]
    keys = (*_ROLE_KEYS, *_LIST_KEYS)
    return any(isinstance(item, Mapping) and _first(item, keys) is not None for item in items)


def printed(text: str) -> type[dict[str, Any]] | type[list[str]] | None:
    """dict or list, if the text is exactly what Python prints of a record with a text, or of a list of texts.

    Files of rows hold such cells where a frame of dicts and lists was written as CSV. JSON is none: its
    quotes are other ones, and a model that was asked for JSON answers with it.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = parse_cell("", text)
    except DataError:
        return None
    if repr(value) != text.strip():
        return None
    if isinstance(value, dict):
        return dict if any(isinstance(value.get(key), str) for key in _TEXT_KEYS) else None
    is_list = isinstance(value, list) and value and all(isinstance(each, str) for each in value)
    return list if is_list else None


def check_text(name: str, value: object, *, is_response: bool) -> None:
    """Raise DataError if a text of a column of texts is in fact JSON of turns: nobody knows which is meant.

    JSON that could not be a response, since it does not end with the assistant, is a response's text.
    """
    if not looks_like_turns(value):
        return
    try:
        found = text_or_turns(name, parse_cell(name, value))
    except DataError:
        return
    if isinstance(found, str) or (is_response and found[-1].role != "assistant"):
        return
    raise DataError(
        f"{name!r} is a list of messages as JSON text here, and plain text in other rows.",
        hint="Parse it with json.loads. If that very text is meant, write it as the content of a message.",
    )


def read_responses(names: tuple[str, str], good: object, bad: object) -> tuple[object, object]:
    """Two responses, as turns if both are JSON text of turns that end with the assistant; else as they are.

    Raises:
        DataError: one of them is JSON text of turns, and the other is not.
    """
    are_turns = looks_like_turns(good), looks_like_turns(bad)
    if not any(are_turns):
        return good, bad
    if all(are_turns):
        with suppress(DataError):
            one, other = (
                text_or_turns(name, parse_cell(name, value))
                for name, value in zip(names, (good, bad), strict=True)
            )
            if (
                isinstance(one, tuple)
                and isinstance(other, tuple)
                and one[-1].role == other[-1].role == "assistant"
            ):
                return one, other
    for name, value in zip(names, (good, bad), strict=True):
        check_text(name, value, is_response=True)
    return good, bad


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
        extra = dict(item.extra) if item.extra else None
        return Turn(_known_role(name, item.role), item.content, extra)
    if looks_like_turns(item):
        item = parse_cell(name, item)
    if not isinstance(item, Mapping):
        raise DataError(f"{name!r} has a turn that is not {{'role': …, 'content': …}}.")
    role_key = _first(item, _ROLE_KEYS)
    role = item[role_key] if role_key else None
    if isinstance(role, Mapping):
        role = role.get("role")
    if not isinstance(role, str):
        raise DataError(f"{name!r} has a turn that is not {{'role': …, 'content': …}}.")
    content_key = _first(item, _CONTENT_KEYS)
    others = {key: v for key, v in item.items() if key not in (role_key, content_key)}
    extra = _extra(name, others)
    content = _content(name, item[content_key] if content_key else None, extra)
    return Turn(_known_role(name, role), content, extra)


def _known_role(name: str, role: str) -> str:
    """The role by the name that models know."""
    known = ROLES.get(role.strip().lower())
    if known is None:
        raise DataError(
            f"{name!r} has a turn of the role {role!r:.60}, which is not known.",
            hint=f"Known are {', '.join(dict.fromkeys(ROLES.values()))}, and other usual names of these.",
        )
    return known


def _content(name: str, value: object, extra: Mapping[str, Any] | None) -> str:
    content = plain(value)
    if isinstance(content, Mapping) and isinstance(content.get("parts"), list):
        content = content["parts"]
    if isinstance(content, list | tuple):
        return "".join(_part(name, part) for part in content)
    if content is None and extra and any(key in extra for key in TOOL_KEYS):
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


def with_tools(preference: Preference, tools: object) -> Preference:
    """The preference, whose prompt says which tools there were. Anything but definitions is ignored.

    Args:
        preference: of a row.
        tools: a list of definitions, or the JSON text of one.
    """
    try:
        found = parse_cell(TOOL_DEFINITIONS, plain(tools))
    except DataError:
        return preference
    if not (
        isinstance(found, list | tuple) and found and all(isinstance(t, Mapping) for t in found)
    ):
        return preference
    prompt = preference.prompt
    turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    extra = {**(turns[0].extra or {}), **(_extra("prompt", {TOOL_DEFINITIONS: found}) or {})}
    first = turns[0].model_copy(update={"extra": extra})
    return preference.model_copy(update={"prompt": (first, *turns[1:])})


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


def is_history(name: str, value: object) -> bool:
    """Whether a cell holds turns, also as JSON text, or nothing."""
    try:
        read_history(name, parse_cell(name, value))
    except DataError:
        return False
    return True


def _is_exchange(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(each, str) for each in value)
    )
