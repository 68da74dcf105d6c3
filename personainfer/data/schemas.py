"""What a row of preference data looks like, and how it becomes a `Preference`.

A shape is a set of columns that play known roles. It does not know where rows come from (readers).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final
from uuid import UUID

from pydantic import ValidationError

from ..exceptions import DataError, InvalidArgumentError
from ..records import Message, Preference

__all__ = [
    "ABSENT",
    "LEAVE_OUT",
    "Shape",
    "check_labels",
    "check_roles",
    "is_null",
    "match",
    "read_pair",
    "read_prompt",
    "recognise",
    "surrogate_problem",
]

Turn = tuple[str, str]
Turns = tuple[Turn, ...]


class _Absent:
    """Stands for a key that a row does not have, which is not the same as a null."""


ABSENT: Final = _Absent()

_TIES = {"tie", "tie (bothbad)", "bothbad", "both", "neither", "equal", "draw"}
_ONE_TWO = {"1": 0, "2": 1, "response_1": 0, "response_2": 1}
_A_B = {"a": 0, "b": 1, "model_a": 0, "model_b": 1, "response_a": 0, "response_b": 1}
_ZERO_ONE = {"0": 0, "1": 1, "false": 0, "true": 1, "response_0": 0, "response_1": 1}
_A_IS_ONE = {"1": 0, "0": 1, "true": 0, "false": 1}
_TIE = 2  # the verdict beside 0 (the first is better) and 1 (the second)
_VERDICTS = {"first": 0, "second": 1, "tie": _TIE}
LEAVE_OUT: Final = "Mend the row or leave it out."
# A turn begins at the start of the text or after a blank line: within a line somebody quotes one.
_SPEAKER = re.compile(r"(?:\A\s*|\n[ \t\r]*\n[ \t]*)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant", "human": "user"}


def surrogate_problem(name: str) -> str:
    """What to say of a text that cannot be written as UTF-8."""
    return (
        f"{name} holds bytes that are not UTF-8, or half of a surrogate pair. "
        "Read the data with its own encoding, or remove those characters."
    )


def _preference(
    prompt: str | Turns, chosen: str, rejected: str, id: str | None, user: str | None
) -> Preference:
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


def _messages(turns: Turns) -> str | tuple[Message, ...]:
    """One user turn is the same prompt as its bare text, however it was written down."""
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return tuple(Message(role=role, content=content) for role, content in turns)


# Values


def _plain(value: object) -> object:
    """Numpy arrays and scalars, which frames hold, as Python's own lists and numbers."""
    if type(value).__module__ == "numpy":
        return value.tolist()  # type: ignore[attr-defined]
    return value


def is_null(value: object) -> bool:
    """Whether it is what a row, a frame or an array has for nothing."""
    absent = value is None or value is ABSENT or type(value).__name__ in ("NAType", "NaTType")
    return absent or (isinstance(value, float) and math.isnan(value))


def _unfit(name: str, value: object, wanted: str) -> DataError:
    if value is ABSENT:
        return DataError(f"the row has no {name!r}.", hint=LEAVE_OUT)
    if is_null(value):
        return DataError(f"{name!r} is missing (null).", hint=LEAVE_OUT)
    return DataError(f"{name!r} is of type {type(value).__name__}, not {wanted}.", hint=LEAVE_OUT)


def _identifier(value: object) -> str | None:
    """An id as text. What cannot be one (null, empty, a list) is no id, and costs no row."""
    if value is None or value is ABSENT:
        return None
    if type(value) is str:
        return value or None
    value = _plain(value)
    if is_null(value) or not isinstance(value, str | int | float | UUID):
        return None
    if isinstance(value, float) and value.is_integer():  # integers of a column with nulls
        value = int(value)
    return str(value) or None


def _text_or_turns(name: str, value: object) -> str | Turns:
    value = _plain(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | Message):
        value = (value,)
    if not isinstance(value, list | tuple):
        raise _unfit(name, value, "text or a list of messages")
    if not value:
        raise DataError(f"{name!r} is an empty list of messages.", hint=LEAVE_OUT)
    return tuple(_turn(name, item) for item in value)


def _turn(name: str, item: object) -> Turn:
    if isinstance(item, Message):
        return item.role, item.content
    role = item.get("role") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(role, str):
        raise DataError(f"{name!r} has a turn that is no {{'role': …, 'content': …}}.")
    content = _plain(item.get("content"))
    if isinstance(content, list | tuple):
        content = "".join(_part(name, part) for part in content)
    if not isinstance(content, str):
        raise _unfit(f"{name} content", content, "text")
    return _ROLES.get(role, role), content


def _part(name: str, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        what = repr(kind) if isinstance(kind, str) else type(kind).__name__
        raise DataError(
            f"{name!r} has a part that is not text ({what}).", hint="Only text can be used."
        )
    return text


# Conversations


def _transcript(text: str) -> Turns | None:
    """The turns of a "\\n\\nHuman: … \\n\\nAssistant: …" text; None if it is no such text."""
    before, *rest = _SPEAKER.split(text)
    if not rest or before.strip():
        return None
    return tuple(zip(map(_ROLES.__getitem__, rest[::2]), map(str.strip, rest[1::2]), strict=True))


def _split(name: str, turns: Turns, *, run: bool = True) -> tuple[Turns, str]:
    """What comes before the last assistant turn, and that turn.

    In a list of messages a `run` of assistant messages at the end is one response. In a transcript
    the last turn is: where only one of two transcripts has a turn before it, they share no prompt.
    """
    end = len(turns)
    while end and turns[end - 1][0] == "assistant" and (run or end == len(turns)):
        end -= 1
    if end == len(turns):
        raise DataError(
            f"{name!r} ends with a turn of {turns[-1][0]!r}, so it holds no response.",
            hint="A conversation must end with an assistant turn.",
        )
    return turns[:end], "\n\n".join(content for _, content in turns[end:])


def _stripped(turns: Turns) -> Turns:
    return tuple((role, content.strip()) for role, content in turns)


def _context(name: str, asked: Turns, head: Turns) -> Turns:
    """The conversation to answer, where a response may repeat the prompt or extend it."""
    if not head:
        return asked
    system = tuple(turn for turn in head[:1] if turn[0] == "system")
    body = head[len(system) :]
    question = asked[1:] if asked[0][0] == "system" else asked
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


def read_pair(
    names: tuple[str, str, str],
    prompt: object,
    chosen: object,
    rejected: object,
    *,
    id: str | None = None,
    user: str | None = None,
) -> Preference:
    """The preference of a prompt and two responses, each a text or a list of messages.

    `names` is what messages call the three. Raises `DataError` if they cannot be used.
    """
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return _preference(prompt, chosen, rejected, id, user)
    asked = _text_or_turns(names[0], prompt)
    question: Turns = (("user", asked),) if isinstance(asked, str) else asked
    contexts, texts = [], []
    for name, value in ((names[1], chosen), (names[2], rejected)):
        response = _text_or_turns(name, value)
        head, text = ((), response) if isinstance(response, str) else _split(name, response)
        contexts.append(_context(name, question, head))
        texts.append(text)
    context = _same_start((names[1], names[2]), contexts[0], contexts[1])
    return _preference(context, texts[0], texts[1], id, user)


def read_prompt(prompt: object) -> str | tuple[Message, ...]:
    """A text or a list of messages as a prompt. Raises `DataError` if it is neither."""
    asked = _text_or_turns("prompt", prompt)
    return asked if isinstance(asked, str) else _messages(asked)


def _read_conversations(
    names: tuple[str, str], chosen: object, rejected: object, id: str | None, user: str | None
) -> Preference:
    """The preference of two conversations whose common start is the prompt."""
    heads, texts = [], []
    for name, value in zip(names, (chosen, rejected), strict=True):
        said = _text_or_turns(name, value)
        turns = (_transcript(said) or ()) if isinstance(said, str) else said
        if not turns:
            raise DataError(
                f"{name!r} is no conversation, and the row has no prompt.",
                hint="Add the prompt, or write turns as '\\n\\nHuman: … \\n\\nAssistant: …'.",
            )
        head, text = _split(name, turns, run=not isinstance(said, str))
        heads.append(head)
        texts.append(text)
    context = _same_start(names, heads[0], heads[1])
    if not context:
        raise DataError(f"{names[0]!r} holds no turn before the response.", hint=LEAVE_OUT)
    return _preference(context, texts[0], texts[1], id, user)


# Shapes


@dataclass(frozen=True)
class Shape:
    """Columns and the roles they play: `columns` maps role to column, `labels` label to winner."""

    name: str
    columns: Mapping[str, str]
    labels: Mapping[str, int] = field(default_factory=dict)

    def read(self, values: Sequence[object]) -> Preference:
        """The preference in a row's values, given in the order of `columns`, or a `DataError`."""
        row = dict(zip(self.columns, values, strict=True))
        good, bad = "chosen", "rejected"
        if self.labels:
            winner = self._winner(row["label"])
            good, bad = ("response_2", "response_1") if winner else ("response_1", "response_2")
        id, user = _identifier(row.get("id")), _identifier(row.get("user"))
        names = (self.columns.get("prompt", "prompt"), self.columns[good], self.columns[bad])
        if "prompt" not in row:
            return _read_conversations(names[1:], row[good], row[bad], id, user)
        return read_pair(names, row["prompt"], row[good], row[bad], id=id, user=user)

    def _winner(self, value: object) -> int:
        name, value = self.columns["label"], _plain(value)
        if is_null(value) or not isinstance(value, str | int | float):
            raise _unfit(name, value, "a label")
        if (label := str(value).strip().lower()) in _TIES:
            raise DataError(f"{name!r} is a tie, so neither response is preferred.")
        if (winner := self.labels.get(re.sub(r"\.0+\Z", "", label))) == _TIE:
            raise DataError(f"{name!r} is a tie, so neither response is preferred.")
        if winner is None:
            known = ", ".join(map(repr, self.labels))
            raise DataError(f"{name!r} is {value!r:.60}, which is none of {known}.")
        return winner

    def check(self, rows: Iterable[Sequence[object]]) -> None:
        """Raise `DataError` if there is no prompt: no column for it, and no row that holds one."""
        texts = [value for values in rows for value in tuple(values)[:2]]
        if "prompt" in self.columns or not texts:
            return
        if all(isinstance(text, str) and text.strip() and not _transcript(text) for text in texts):
            pair = " and ".join(map(repr, list(self.columns.values())[:2]))
            raise DataError(
                f"{pair} hold no conversations, and no column is known to be the prompt.",
                hint="Say which it is: columns={'prompt': 'the column'}.",
                argument="columns",
            )


def _labelled(
    name: str, columns: str, labels: Mapping[str, int], roles: str = "prompt response_1 response_2"
) -> Shape:
    return Shape(name, dict(zip(f"{roles} label".split(), columns.split(), strict=True)), labels)


_TWO = "response_1 response_2"
# The first that fits wins, but among those with a label the one with most columns of its own.
SHAPES: Final = (
    Shape("explicit", {name: name for name in ("prompt", "chosen", "rejected")}),
    Shape("implicit", {name: name for name in ("chosen", "rejected")}),
    _labelled("labelled", "prompt response_1 response_2 label", _ONE_TWO | _A_B),
    _labelled("labelled", "prompt response_1 response_2 preference", _ONE_TWO),
    _labelled("LLMBar", "input output_1 output_2 label", {"1": 0, "2": 1}),
    _labelled("SHP", "history human_ref_A human_ref_B labels", _A_IS_ONE),
    _labelled("PKU-SafeRLHF", "prompt response_0 response_1 better_response_id", _ZERO_ONE),
    _labelled("responses a and b", "prompt response_a response_b winner", _A_B),
    _labelled("responses a and b", "prompt response_a response_b preference", _A_B),
    _labelled("Chatbot Arena", "conversation_a conversation_b winner", _A_B, _TWO),
)
_KNOWN_ROLES: Final = (*SHAPES[0].columns, "id", "user", "response_1", "response_2", "label")


def check_roles(roles: Mapping[str, str]) -> None:
    """Raise `InvalidArgumentError` if `columns=` names a role that there is not."""
    for role, column in roles.items():
        if role not in _KNOWN_ROLES:
            known = _nearest(role, _KNOWN_ROLES)
            raise InvalidArgumentError(
                f"columns= has no {role!r}: ours come first.", hint=known, argument="columns"
            )
        if not isinstance(column, str):
            raise InvalidArgumentError(
                f"columns[{role!r}] must be the name of a column.", argument="columns"
            )


def check_labels(labels: Mapping[Any, str] | None) -> dict[str, int]:
    """The verdict of each label in `labels=`; raise `InvalidArgumentError` for another verdict."""
    for label, verdict in (labels or {}).items():
        if verdict not in _VERDICTS:
            raise InvalidArgumentError(
                f"labels[{label!r}] is {verdict!r}.",
                hint='It is one of "first", "second", "tie".',
                argument="labels",
            )
    return {str(k).strip().lower(): _VERDICTS[v] for k, v in (labels or {}).items()}


def _nearest(name: object, known: Sequence[str]) -> str:
    close = get_close_matches(str(name), known, n=1)
    listed = ", ".join(map(repr, known[:20])) + (", …" if len(known) > 20 else "")
    return (f"Nearest is {close[0]!r}, of " if close else "It is one of ") + f"{listed or 'none'}."


def match(found: Iterable[str], roles: Mapping[str, str]) -> Shape | None:
    """The shape that these columns have, bound to them, with `roles` overriding its own names."""
    names, best, most = set(found), None, -1
    named = {role: column for role, column in roles.items() if role not in ("id", "user")}
    for shape in SHAPES:
        columns = {**shape.columns, **named}
        used = set(columns.values())
        if len(columns) > len(shape.columns) or len(used) < len(columns) or not used <= names:
            continue
        own = sum(columns[role] == column for role, column in shape.columns.items())
        if own > most:
            best, most = replace(shape, columns=columns), own
        if not shape.labels:  # chosen and rejected say it all; a label beside them is a score
            break
    return best and replace(best, columns={**best.columns, **_marks(names, best, roles)})


def _marks(names: set[str], shape: Shape, roles: Mapping[str, str]) -> dict[str, str]:
    """The columns of the optional roles."""
    user = next((name for name in ("user_id", "user") if name in names), "user")
    marks = {"id": roles.get("id", "id"), "user": roles.get("user", user)}
    return {role: name for role, name in marks.items() if name not in shape.columns.values()}


def recognise(
    found: Sequence[str], roles: Mapping[str, str], labels: Mapping[str, int] | None = None
) -> Shape:
    """The shape that these columns have; an error says what is missing if they have none."""
    for role, column in roles.items():
        if column not in found:
            raise InvalidArgumentError(
                f"columns[{role!r}] is {column!r}, which is no column of the data.",
                hint=_nearest(column, found),
                argument="columns",
            )
    if shape := match(found, roles):
        return replace(shape, labels=labels) if labels and shape.labels else shape
    listed = ", ".join(map(repr, found[:20])) + (", …" if len(found) > 20 else "")
    known = "; ".join(", ".join(shape.columns.values()) for shape in SHAPES)
    raise DataError(
        f"no preference data recognised in the columns {listed or '(none)'}.",
        hint=f"Known are: {known}. Or say which is which: columns={{'prompt': 'question', …}}.",
        argument="columns",
    )
