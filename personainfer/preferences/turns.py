"""Read a cell as text or as the turns of a conversation.

Data writes turns in many ways: with `role`/`content`, with `from`/`value` (ShareGPT), as a list under
`messages`, or with content in parts. They become `Turn`s with the roles system, user, assistant and tool.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..exceptions import DataError, NoPreferenceError
from ..records import Message, Preference
from .cells import (
    LEAVE_OUT,
    is_null,
    listed_dicts,
    looks_like_turns,
    of_pairs,
    parse_cell,
    plain,
    with_commas,
    wrong_type,
)


class Turn(NamedTuple):
    """One turn of a conversation.

    `role` is system, user, assistant or tool. `extra` holds the turn's other fields, such as tool calls, as
    JSON values; None: it has none.
    """

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
# The key, in the first message's extra, of the tools that the assistant could call.
TOOL_DEFINITIONS = "tools"
_TEXT_PARTS = ("text", "input_text", "output_text")


def text_or_turns(name: str, value: object) -> str | Turns:
    """Read a cell as text or as turns.

    Args:
        name: the column, for errors.
        value: a text, a message, a list of messages, or a dict that holds one of these.

    Returns:
        Text unchanged, even if it is JSON or a transcript; else one turn or more.

    Raises:
        NoPreferenceError: the cell is null or an empty list.
        DataError: the cell is something else, or a message has an unknown role or content other than text.
    """
    if type(value) is str:
        return value
    value = plain(value)
    if isinstance(value, Message):
        return (_turn(name, value),)
    if isinstance(value, Mapping):
        value = listed_dicts(value, _ROLE_KEYS)
    if isinstance(value, Mapping):
        return _of_mapping(name, value)
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise wrong_type(name, value, "text or a list of messages")
    if not value:
        raise NoPreferenceError(f"{name!r} is an empty list of messages.", hint=LEAVE_OUT)
    if type(value[0]) is tuple:
        mapped = of_pairs(value, (*_ROLE_KEYS, *_LIST_KEYS, *_TEXT_KEYS))
        if mapped is not value:
            return text_or_turns(name, mapped)
    turns = tuple(_turn(name, item) for item in value)
    first = turns[0]
    is_blank = first.role == "system" and not first.content.strip() and not first.extra
    return (turns[1:] or turns) if is_blank else turns


def texts_of(value: object) -> list[str]:
    """Return the texts in a cell of text or turns, without white space around; [] for any other cell."""
    try:
        found = text_or_turns("", parse_cell("", value) if looks_like_turns(value) else value)
    except DataError:
        return []
    texts = [found] if isinstance(found, str) else [turn.content for turn in found]
    return [text.strip() for text in texts if text.strip()]


def may_be_turns(text: str) -> bool:
    """Whether a text is messages in JSON or as Python prints them, of any roles, and perhaps cut off."""
    is_quoted = text.startswith(('"[', '"{'))  # JSON of JSON, or a quotation
    if not is_quoted and not looks_like_turns(text):
        return False
    try:
        value = parse_cell("", text)
    except DataError:
        return not is_quoted
    items = value if isinstance(value, list | tuple) else [value]
    keys = (*_ROLE_KEYS, *_LIST_KEYS)
    return any(isinstance(item, Mapping) and _first(item, keys) is not None for item in items)


def printed(text: str) -> type[dict[str, Any]] | type[list[str]] | None:
    """Recognise a dict or a list as Python prints it: pandas writes such cells to a CSV file.

    JSON, which has other quotes, does not count: it may be a model's answer.

    Returns:
        dict for a dict that holds a text under a usual key, list for a list of texts; else None.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = parse_cell("", text)
    except DataError:
        return None
    if repr(value) != with_commas(text.strip()):
        return None
    if isinstance(value, dict):
        return dict if any(isinstance(value.get(key), str) for key in _TEXT_KEYS) else None
    is_list = isinstance(value, list) and value and all(isinstance(each, str) for each in value)
    return list if is_list else None


def check_text(name: str, value: object, *, is_response: bool) -> None:
    """Raise DataError if a text in a column of plain texts is JSON of turns: either may be meant.

    Args:
        name: the column.
        value: the cell; what is no text is ignored.
        is_response: whether the cell is a response. Turns that do not end with the assistant are no response,
            so then their JSON is accepted as a plain text.
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
    """Parse two responses if both are JSON text of turns that end with the assistant.

    Args:
        names: the columns of the two responses, for errors.
        good, bad: the cells.

    Returns:
        (good, bad): both as turns, or both unchanged.

    Raises:
        DataError: only one response is JSON text of turns that end with the assistant.
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
    """Convert a text to one turn of the user; return turns unchanged."""
    return (Turn("user", value),) if isinstance(value, str) else value


def _of_mapping(name: str, value: Mapping[Any, Any]) -> str | Turns:
    """Read a dict: a single turn, a list of turns under "messages" or a similar key, or one text."""
    if _first(value, _ROLE_KEYS) is None:
        for key in _LIST_KEYS:
            if isinstance(plain(value.get(key)), list | tuple):
                return text_or_turns(name, value[key])
        for key in _TEXT_KEYS:
            if isinstance(value.get(key), str):
                return str(value[key])
    return (_turn(name, value),)


def _first(item: Mapping[Any, Any], keys: Sequence[str]) -> str | None:
    """Return the first of the keys whose value in `item` is not null; None if there is none."""
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
        item = of_pairs(plain(item), _ROLE_KEYS)
    if not isinstance(item, Mapping):
        raise _no_turn(name)
    role_key = _first(item, _ROLE_KEYS)
    role = item[role_key] if role_key else None
    if isinstance(role, Mapping):
        role = role.get("role")
    if not isinstance(role, str):
        raise _no_turn(name)
    content_key = _first(item, _CONTENT_KEYS)
    others = {key: v for key, v in item.items() if key not in (role_key, content_key)}
    extra = _extra(name, others)
    known = _known_role(name, role)
    if content_key is None and known == "system":  # data sets with system messages in some rows
        return Turn(known, "", extra)
    return Turn(known, _content(name, item[content_key] if content_key else None, extra), extra)


def _no_turn(name: str) -> DataError:
    return DataError(f"{name!r} has a turn that is not {{'role': …, 'content': …}}.")


def _known_role(name: str, role: str) -> str:
    """Translate a usual name of a role, such as "human" or "gpt", to system, user, assistant or tool.

    Raises:
        DataError: the role is not known.
    """
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
    """Return the further fields of a turn that are not empty, as values that JSON has; None if there is none.

    A value of a type that JSON does not have becomes its text.

    Raises:
        DataError: JSON cannot hold a field, which contains itself or is nested too deep, for example.
    """
    read = {key: _calls(v) if key in TOOL_KEYS else v for key, v in others.items()}
    kept = {str(key): v for key, v in read.items() if not _is_nothing(v)}
    if not kept:
        return None
    try:
        return dict(json.loads(json.dumps(kept, default=_json_default)))
    except (ValueError, TypeError, RecursionError):
        raise DataError(
            f"{name!r} has a turn with fields that JSON cannot hold ({', '.join(kept):.80}).",
            hint="Remove them.",
        ) from None


def _calls(value: object) -> object:
    """Return the calls of a turn: JSON text of some, or of each, is parsed. Any other value is unchanged."""
    value = plain(value)
    if isinstance(value, list | tuple):
        return [_calls(each) if isinstance(each, str) else each for each in value]
    if isinstance(value, str) and value.strip()[:1] in ("[", "{", "n"):  # or "null"
        with suppress(DataError):
            return parse_cell("", value)
    return value


def with_tools(preference: Preference, tools: object, counts: Counter[str]) -> Preference:
    """Return a copy of a preference with tool definitions in `extra["tools"]` of its prompt's first message.

    A prompt that is a text becomes a message of the user.

    Args:
        preference: the preference of a row.
        tools: a definition or a list of some, each a dict or JSON text; or JSON text of the list. For any
            other value, `preference` itself is returned.
        counts: `counts["tools_left_out"]` is increased by 1 if `tools` holds something else.

    Raises:
        DataError: JSON cannot hold a definition, which contains itself or is nested too deep, for example.
    """
    try:
        found = _definitions(tools)
    except DataError:
        counts["tools_left_out"] += 1
        return preference
    if not found:
        return preference
    prompt = preference.prompt
    turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
    extra = {**(turns[0].extra or {}), **(_extra("prompt", {TOOL_DEFINITIONS: found}) or {})}
    first = turns[0].model_copy(update={"extra": extra})
    return preference.model_copy(update={"prompt": (first, *turns[1:])})


def _definitions(tools: object) -> list[object]:
    """Return the tool definitions in a cell; [] if it is empty.

    Raises:
        DataError: it holds something else.
    """
    cell = listed_dicts(parse_cell(TOOL_DEFINITIONS, plain(tools)), ("name", "function"))
    if _is_nothing(cell):
        return []
    if isinstance(cell, Mapping) and not cell.keys().isdisjoint(("name", "function")):
        return [cell]
    each = cell if isinstance(cell, list | tuple) else [0]
    found = [parse_cell(TOOL_DEFINITIONS, tool) for tool in each if not _is_nothing(tool)]
    if not all(isinstance(tool, Mapping) for tool in found):
        raise wrong_type(TOOL_DEFINITIONS, tools, "a list of definitions")
    return found


def _json_default(value: object) -> object:
    changed = plain(value)
    return str(value) if changed is value else changed


def _is_empty(value: object) -> bool:
    return isinstance(value, str | list | tuple | dict) and not value


def _is_nothing(value: object) -> bool:
    return is_null(value) or _is_empty(value)


def read_system(name: str, value: object) -> str:
    """Read a system message: a text, the parts of one, or messages of the role system.

    Raises:
        DataError: the cell holds something else.
    """
    value = plain(value)
    if isinstance(value, str):
        return value
    each = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, Mapping) and _first(item, _ROLE_KEYS) for item in each):
        turns = text_or_turns(name, value)
        if isinstance(turns, tuple) and all(turn.role == "system" for turn in turns):
            return "\n\n".join(turn.content for turn in turns)
        raise DataError(f"{name!r} holds a turn of another role than system.", hint=LEAVE_OUT)
    return _content(name, value, None)


def read_history(name: str, value: object) -> Turns:
    """Read the turns before the prompt.

    Args:
        name: the column, for errors.
        value: a list of messages, or of pairs [user's text, assistant's text].

    Returns:
        The turns; () for a null or an empty value.

    Raises:
        DataError: the cell holds something else, such as text.
    """
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
    """Whether `read_history` can read a cell, after JSON text is parsed. It can read an empty cell."""
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
