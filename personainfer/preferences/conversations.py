"""Make a `Preference` of a prompt and two responses, or of two conversations with a common start.

Each may be text or turns. A response is a text, or the assistant's turns at the end of a conversation. A
transcript is a conversation as one text: "\\n\\nHuman: … \\n\\nAssistant: …".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from ..exceptions import DataError
from ..records import Message, Preference, Prompt
from .cells import LEAVE_OUT, surrogate_problem
from .turns import ROLES, TOOL_KEYS, Turn, Turns, as_turns, text_or_turns

# A turn begins at the start of the text or after a blank line. Elsewhere it is a quotation.
_SPEAKER = re.compile(r"(?:\A\s*|\n[ \t\r]*\n[ \t]*)(Human|Assistant):")


_FIRST_CJK = "\u2e80"  # from here on, scripts put no spaces between words


def _transcript(text: str) -> Turns | None:
    """Split a transcript into turns; None if the text is no transcript."""
    before, *rest = _SPEAKER.split(text)
    if not rest or before.strip():
        return None
    return tuple(
        Turn(ROLES[speaker.lower()], said.strip())
        for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    )


def is_transcript(text: object) -> bool:
    """Whether a value is a transcript, "\\n\\nHuman: … \\n\\nAssistant: …"."""
    return isinstance(text, str) and _transcript(text) is not None


def is_exchange(text: object) -> bool:
    """Whether a value is a transcript that begins with the user's turn and ends with the assistant's."""
    turns = (isinstance(text, str) and _transcript(text)) or ()
    return len(turns) > 1 and (turns[0].role, turns[-1].role) == ("user", "assistant")


def transcript_prompt(text: str) -> Turns:
    """Split a prompt that may be a transcript into turns. An empty assistant turn at its end is dropped.

    A text whose first character is not white space ("Human: …") may quote a conversation. It is split only if
    it ends with a second user turn or an empty assistant turn; otherwise the whole text is one user turn.
    """
    turns = _transcript(text) or ()
    if len(turns) > 1 and turns[-1].role == "assistant" and not turns[-1].content:
        return turns[:-1]
    is_open = len(turns) > 1 and turns[-1].role == "user"
    return turns if turns and (is_open or text[0].isspace()) else (Turn("user", text),)


def cut_at_turn(name: str, value: object, count: float | None) -> object:
    """Cut a conversation after its assistant turn number `count`, counted from 1.

    The value is returned whole if it is text, `count` is None, or there are fewer assistant turns.
    """
    turns = text_or_turns(name, value)
    if isinstance(turns, str) or count is None or count < 1:
        return value
    ends = [place for place, turn in enumerate(turns, 1) if turn.role == "assistant"]
    kept = turns[: ends[int(count) - 1]] if len(ends) >= count else turns
    return [{"role": t.role, "content": t.content, **(t.extra or {})} for t in kept]


def without_prompt(
    prompt: str, chosen: str, rejected: str, counts: Counter[str], *, is_usual: bool = False
) -> tuple[str, str]:
    """Remove the prompt from two responses, if both repeat it at their start.

    A response may begin with the prompt's words by chance: "Hello, …" answers "Hello". So the prompt is
    removed only if white space follows it; if it has fewer than three words, a line break must follow.

    Args:
        prompt, chosen, rejected: the texts.
        counts: `counts["prompt_repeated"]` is increased if the prompt is removed.
        is_usual: whether nearly all responses of the data repeat their prompt. Then anything may follow the
            prompt, unless it is one or two bare words, which glossaries restate.

    Returns:
        The two responses, without the prompt or unchanged.
    """
    is_bare = len(prompt.split()) < 3 and prompt.strip()[-1:].isalnum() and max(prompt) < _FIRST_CJK
    is_usual = is_usual and not is_bare
    asked = prompt.strip() if is_usual else prompt
    both = [text.lstrip() if is_usual else text for text in (chosen, rejected)]
    if not all(text.startswith(asked) for text in both):
        return chosen, rejected
    rest = [text[len(asked) :] for text in both]
    space = asked[len(asked.rstrip()) :]
    gaps = [space + text[: len(text) - len(text.lstrip())] for text in rest]
    is_chance = len(asked.split()) < 3 and not all("\n" in gap for gap in gaps)
    if not is_usual and (not all(gaps) or is_chance):
        return chosen, rejected
    counts["prompt_repeated"] += 1
    return rest[0].lstrip(), rest[1].lstrip()


def _split(
    name: str, turns: Turns, counts: Counter[str] | None, *, run: bool = True
) -> tuple[Turns, str]:
    """Split a conversation into the turns before the response, and the text of the response.

    Args:
        name: the column, for errors.
        turns: the conversation.
        counts: counts responses with further fields, which are left out; None: does not count.
        run: True: all consecutive assistant turns at the end are the response. False: only the last turn is.
            False is for transcripts, where two conversations must have the same turns before it.

    Raises:
        DataError: the last turn is not the assistant's, or the response calls tools.
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
        if turn.extra and any(key in turn.extra for key in TOOL_KEYS):
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
    """Merge the prompt with the turns before the response in a response's own conversation.

    Args:
        name: the response's column, for errors.
        asked: the turns of the prompt.
        head: the turns before the response, which may repeat or extend the prompt; () if there are none.

    Raises:
        DataError: `head` neither begins nor ends with the prompt, or both have different system messages.
    """
    if not head:
        return asked
    system = tuple(turn for turn in head[:1] if turn.role == "system")
    body = head[len(system) :]
    question = asked[1:] if asked[0].role == "system" else asked
    if system and question is not asked:
        _check_same_system(asked[0], system[0], "the prompt has a system message", name)
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
            hint="Both must answer the same conversation: after different earlier answers, a later one"
            " cannot be compared.",
        )
    return first


def _without_answer(asked: Turns, texts: Sequence[str]) -> Turns:
    """Drop the last turn of a prompt if it is the assistant's and equals one of the responses."""
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
    """Make a preference of a prompt and two responses.

    Args:
        names: the columns of prompt, chosen and rejected, for errors.
        prompt: text, or messages with any of the known keys and roles.
        chosen, rejected: the same; a conversation may repeat the prompt before its response.
        before: turns from other columns that come before the prompt, such as a system message.
        id, user: the id and the user of the preference.
        counts: `counts["response_fields_left_out"]` counts responses with fields that are left out.

    Raises:
        DataError: a value cannot be read, or the two responses do not answer the same prompt.
    """
    if type(prompt) is str and type(chosen) is str and type(rejected) is str and not before:
        return preference_of(prompt, chosen, rejected, id, user)
    asked = text_or_turns(names[0], prompt)
    heads, texts = [], []
    for name, value in ((names[1], chosen), (names[2], rejected)):
        response = text_or_turns(name, value)
        if counts is not None and type(response) is str and type(value) is dict and len(value) > 1:
            counts["response_fields_left_out"] += 1
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
    """Put the turns of other columns before a conversation. Turns that it repeats are not added again.

    Raises:
        DataError: both have a system message, and the two differ.
    """
    system, history = (
        (before[:1], before[1:]) if before and before[0].role == "system" else ((), before)
    )
    own, said = (context[:1], context[1:]) if context[0].role == "system" else ((), context)
    if system and own:
        _check_same_system(system[0], own[0], "the row has a system message of its own", name)
        system = ()
    if _stripped(said[: len(history)]) == _stripped(history):
        history = ()
    elif history[-1].role == "user" and _stripped(history[-1:]) == _stripped(said[:1]):
        history = history[:-1]
    return system + own + history + said


def _check_same_system(one: Turn, other: Turn, first: str, name: str) -> None:
    if one.content.strip() != other.content.strip():
        raise DataError(f"{first} and another one in {name!r}.", hint="Leave one of them out.")


def read_prompt(prompt: object) -> Prompt:
    """Read a text or a list of messages as a prompt.

    Raises:
        DataError: `prompt` is neither.
    """
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
    """Make a preference of two conversations, whose common start becomes the prompt.

    If one of them is a list of turns, the other may be the response alone. The arguments are those of
    `read_pair`, without the prompt.

    Raises:
        DataError: one is not a conversation, or the two differ before their responses.
    """
    heads, texts = [], []
    both = [
        text_or_turns(name, value) for name, value in zip(names, (chosen, rejected), strict=True)
    ]
    has_turns = any(not isinstance(said, str) for said in both)
    for name, said in zip(names, both, strict=True):
        turns = (_transcript(said) or ()) if isinstance(said, str) else said
        if not turns and has_turns and isinstance(said, str):
            turns = (Turn("assistant", said),)
        if not turns:
            raise DataError(
                f"{name!r} is not a conversation, and the row has no prompt.",
                hint="Add the prompt, or write turns as '\\n\\nHuman: … \\n\\nAssistant: …'.",
            )
        head, text = _split(name, turns, counts, run=not isinstance(said, str))
        heads.append(head)
        texts.append(text)
    alone = has_turns and not (heads[0] and heads[1])
    context = heads[0] or heads[1] if alone else _same_start(names, heads[0], heads[1])
    if not context:
        raise DataError(f"{names[0]!r} holds no turn before the response.", hint=LEAVE_OUT)
    return preference_of(_preceded(names[0], before, context), texts[0], texts[1], id, user)


# Records


def preference_of(
    prompt: str | Turns, chosen: str, rejected: str, id: str | None, user: str | None
) -> Preference:
    """Make a `Preference` without checking its texts, for speed. `pair_problem` checks them later.

    Raises:
        DataError: a turn of the prompt cannot be encoded as UTF-8.
    """
    try:
        asked = prompt if isinstance(prompt, str) else _messages(prompt)
    except ValidationError:
        raise DataError(surrogate_problem("prompt")) from None
    return Preference.unchecked(
        {"prompt": asked, "chosen": chosen, "rejected": rejected, "id": id, "user": user}
    )


def _messages(turns: Turns) -> Prompt:
    """Convert turns to messages. A single user turn becomes plain text, so that both notations are equal."""
    if len(turns) == 1 and turns[0].role == "user" and not turns[0].extra:
        return turns[0].content
    return tuple(Message(role=role, content=content, extra=extra) for role, content, extra in turns)


# Why a preference cannot be used

SAME_TEXT: Final = f"chosen and rejected are the same text, so there is no preference. {LEAVE_OUT}"


def pair_problem(preference: Preference) -> str | None:
    """Say why the texts of a preference cannot be used, and what to do; None if they can be used."""
    prompt = preference.prompt
    asked = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
    if not isinstance(prompt, str) and prompt and prompt[-1].role == "system":
        return f"the prompt ends with a system message: there is nothing to answer. {LEAVE_OUT}"
    if not asked.strip():
        return f"prompt is empty: there is nothing to answer. {LEAVE_OUT}"
    chosen, rejected = preference.chosen.strip(), preference.rejected.strip()
    if not chosen or not rejected:
        return f"{'rejected' if chosen else 'chosen'} is empty. {LEAVE_OUT}"
    if chosen == rejected:
        return SAME_TEXT
    return encoding_problem(preference)


def encoding_problem(preference: Preference) -> str | None:
    """Name the first field of a preference that cannot be encoded as UTF-8; None if all can be."""
    for name in ("prompt", "chosen", "rejected", "id", "user"):
        if not _encodable(getattr(preference, name)):
            return surrogate_problem(name)
    return None


def _encodable(value: Prompt | None) -> bool:
    if value is None or (type(value) is str and value.isascii()):
        return True
    if isinstance(value, tuple):
        return all(
            _encodable(each.role)
            and _encodable(each.content)
            and (each.extra is None or _encodable(json.dumps(dict(each.extra), ensure_ascii=False)))
            for each in value
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
