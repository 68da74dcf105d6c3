"""Make a `Preference` of a prompt and two responses, or of two conversations with a common start.

Prompt and responses may be texts or turns. A response is a text, or the assistant's turns at the end of a
conversation. A transcript is a conversation as one text: "\\n\\nHuman: … \\n\\nAssistant: …".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from ..exceptions import DataError
from ..records import Message, Preference, Prompt, unchecked
from .cells import LEAVE_OUT, surrogate_problem
from .turns import ROLES, TOOL_DEFINITIONS, TOOL_KEYS, Turn, Turns, as_turns, text_or_turns

# A turn begins at the start of the text or after a blank line. Elsewhere it is a quotation.
_SPEAKER = re.compile(r"(?:\A\s*|\n[ \t\r]*\n[ \t]*)(Human|Assistant):")


_FIRST_CJK = "\u2e80"  # from here on, scripts put no spaces between words


def _transcript(text: str) -> Turns | None:
    """Split a transcript into turns, whose texts are stripped; return None if the text is no transcript."""
    before, *rest = _SPEAKER.split(text)
    if not rest or before.strip():
        return None
    return tuple(
        Turn(ROLES[speaker.lower()], said.strip())
        for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    )


def is_transcript(text: object) -> bool:
    """Whether a value is a text of one turn or more, such as "\\n\\nHuman: … \\n\\nAssistant: …"."""
    return isinstance(text, str) and _transcript(text) is not None


def is_exchange(text: object) -> bool:
    """Whether a value is a transcript whose first turn is the user's and whose last is the assistant's."""
    turns = (isinstance(text, str) and _transcript(text)) or ()
    return len(turns) > 1 and (turns[0].role, turns[-1].role) == ("user", "assistant")


def transcript_prompt(text: str) -> Turns:
    """Split a prompt into turns if it is a transcript; else return the text as one turn of the user.

    An empty assistant turn at the end, which asks for the response, is dropped. A transcript whose first
    character is not white space ("Human: …") may be a quotation. So it is split only if it has several turns,
    of which the last one is the user's or is empty and the assistant's.
    """
    turns = _transcript(text) or ()
    if len(turns) > 1 and turns[-1].role == "assistant" and not turns[-1].content:
        return turns[:-1]
    is_open = len(turns) > 1 and turns[-1].role == "user"
    return turns if turns and (is_open or text[0].isspace()) else (Turn("user", text),)


def cut_at_turn(name: str, value: object, count: float | None) -> object:
    """Cut a conversation after its assistant turn number `count`.

    Args:
        name: the column, for errors.
        value: the conversation, or text.
        count: the number of the turn, from 1; None or less than 1: nothing is cut.

    Returns:
        The turns, as dicts with role and content; all turns if fewer are the assistant's. If nothing is to be
        cut, or `value` is text, `value` itself.

    Raises:
        DataError: `value` is neither text nor a conversation.
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
    removed only if white space follows it; if the prompt has fewer than three words, the white space must
    hold a line break.

    Args:
        prompt, chosen, rejected: the texts.
        counts: `counts["prompt_repeated"]` is increased by 1 if the prompt is removed.
        is_usual: whether nearly all responses of the data repeat their prompt. Then the prompt is removed
            whatever follows it, and white space around it does not matter. The rule above still holds for a
            prompt of one or two bare words, with which an answer of a glossary begins.

    Returns:
        (chosen, rejected): both without the prompt and the white space after it, or both unchanged.
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
        counts: `counts["response_fields_left_out"]` counts the turns of responses that have further fields,
            which are left out; None: nothing is counted.
        run: whether all consecutive assistant turns at the end are the response, joined by blank lines. If
            not, only the last turn is: of two transcripts, the turns before it must be the same.

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


def _stripped(turns: Turns) -> list[tuple[object, ...]]:
    """Return what makes turns the same: role, text, calls and tools. Counts, times and ids may differ."""
    return [(turn.role, turn.content.strip(), turn.extra and _calls(turn.extra)) for turn in turns]


def _calls(extra: Mapping[str, object]) -> object:
    return {key: extra[key] for key in (*TOOL_KEYS, TOOL_DEFINITIONS) if key in extra} or None


def _context(name: str, asked: Turns, head: Turns) -> Turns:
    """Merge the prompt with the turns before a response in its own conversation, and return all of them.

    Args:
        name: the response's column, for errors.
        asked: the turns of the prompt.
        head: the turns before the response, which may repeat or extend the prompt, or follow it without a
            turn of the user; () if there are none.

    Raises:
        DataError: `head` neither begins nor ends with the prompt, or `head` and the prompt have different
            system messages.
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
    own = system or asked[: len(asked) - size]
    if part and part in (whole[:size], whole[-size:]):
        return own + body
    if part and {turn.role for turn in body} <= {"assistant", "tool"}:
        return own + question + body  # a response that calls tools before it answers
    raise DataError(
        f"{name!r} is a conversation that does not begin with the prompt.",
        hint="Give the response alone, or the same conversation as in the prompt.",
    )


def _same_start(names: tuple[str, str], first: Turns, second: Turns) -> Turns:
    if _stripped(first) != _stripped(second):
        raise DataError(
            f"{names[0]!r} and {names[1]!r} do not share a prompt: they differ before their responses.",
            hint="Both must answer the same conversation: after different earlier answers, a later one"
            " cannot be compared.",
        )
    return first


def _without_answer(asked: Turns, texts: Sequence[str]) -> Turns:
    """Return a prompt without its last turn, if this is the assistant's and equals one of the responses."""
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
    """Make a preference of a prompt and two responses. `pair_problem` tells whether its texts can be used.

    Args:
        names: the columns of prompt, chosen and rejected, for errors.
        prompt: a text, a message or a list of messages, with any keys and roles that `turns` knows.
        chosen, rejected: the same. Of a conversation, the response is what the assistant says at its end; the
            turns before must begin or end with the prompt, and may add others to it.
        before: turns from other columns that come before the prompt, such as a system message.
        id, user: the id and the user of the preference; None: unknown.
        counts: `counts["response_fields_left_out"]` counts responses with fields that are left out; None:
            nothing is counted.

    Raises:
        NoPreferenceError: a value is null or an empty list.
        DataError: a value is neither text nor messages, a response calls tools, the two responses do not
            answer the same conversation, or the conversation has two different system messages.
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
    prompt_turns = _preceded(names[0], before, context, texts)
    return preference_of(prompt_turns, texts[0], texts[1], id, user)


def _preceded(name: str, before: Turns, context: Turns, responses: Sequence[str]) -> Turns:
    """Return a conversation with the turns of other columns before it.

    Args:
        name: the column of the conversation, for errors.
        before: the turns of other columns: a system message, then earlier turns. They may go on with the
            last turn of the conversation and one of the responses, which are left out.
        context: the conversation. Turns of `before` with which it begins are not added again.
        responses: the texts of the two responses.

    Raises:
        DataError: `before` and `context` have different system messages.
    """
    system, history = (
        (before[:1], before[1:]) if before and before[0].role == "system" else ((), before)
    )
    own, said = (context[:1], context[1:]) if context[0].role == "system" else ((), context)
    if system and own:
        _check_same_system(system[0], own[0], "the row has a system message of its own", name)
        system = ()
    if len(history) > 1 and history[-1].content.strip() in map(str.strip, responses):
        is_whole = _stripped(history[-2:-1]) == _stripped(said[-1:])
        history = history[:-2] if is_whole else history
    if _stripped(said[: len(history)]) == _stripped(history):
        history = ()
    elif history[-1].role == "user" and _stripped(history[-1:]) == _stripped(said[:1]):
        history = history[:-1]
    return system + own + history + said


def _check_same_system(one: Turn, other: Turn, first: str, name: str) -> None:
    if one.content.strip() != other.content.strip():
        raise DataError(f"{first} and another one in {name!r}.", hint="Leave one of them out.")


def read_prompt(prompt: object) -> Prompt:
    """Read a text, a message or a list of messages as a prompt.

    Returns:
        A text for a text or for a single message of the user; else the messages, with the roles system, user,
        assistant and tool.

    Raises:
        NoPreferenceError: `prompt` is null or an empty list.
        DataError: `prompt` is something else, or a message has an unknown role or content other than text.
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

    Args:
        names: the columns of chosen and rejected, for errors.
        chosen, rejected: each a list of messages or a transcript, which ends with the response. If one is a
            list of messages, the other one may be the response alone, as text.
        before, id, user, counts: as for `read_pair`.

    Raises:
        NoPreferenceError: a value is null or an empty list.
        DataError: a value is no conversation, does not end with the assistant, or has no turn before the
            response; a response calls tools; or the two conversations differ before their responses.
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
    prompt_turns = _preceded(names[0], before, context, texts)
    return preference_of(prompt_turns, texts[0], texts[1], id, user)


# Records


def preference_of(
    prompt: str | Turns, chosen: str, rejected: str, id: str | None, user: str | None
) -> Preference:
    """Make a `Preference` without checking its texts, for speed. `pair_problem` checks them later.

    Raises:
        DataError: pydantic refuses a turn that cannot be encoded as UTF-8, as some of its versions do.
    """
    asked = prompt if isinstance(prompt, str) else _messages(prompt)
    fields = {"prompt": asked, "chosen": chosen, "rejected": rejected, "id": id, "user": user}
    return unchecked(Preference, fields)


def _messages(turns: Turns) -> Prompt:
    """Convert turns to messages. A single turn of the user becomes its text, so that both forms are equal.

    Raises:
        DataError: pydantic refuses a turn that cannot be encoded as UTF-8, as some of its versions do.
    """
    if len(turns) == 1 and turns[0].role == "user" and not turns[0].extra:
        return turns[0].content
    try:
        return tuple(
            Message(role=role, content=content, extra=extra) for role, content, extra in turns
        )
    except ValidationError:
        raise DataError(surrogate_problem("prompt")) from None


# Why a preference cannot be used

SAME_TEXT: Final = f"chosen and rejected are the same text, so there is no preference. {LEAVE_OUT}"


def pair_problem(preference: Preference) -> str | None:
    """Return why the texts of a preference cannot be used, and what to do; None if they can be used.

    They cannot be used if the prompt or a response is blank, the prompt ends with a system message, both
    responses are the same but for white space around them, or a text, the id or the user cannot be encoded as
    UTF-8.
    """
    prompt = preference.prompt
    if isinstance(prompt, str):
        asked = prompt
    else:
        asked = prompt[-1].content if prompt else ""
        if prompt and prompt[-1].role == "system":
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
    """Return the error message for the first field that cannot be written as JSON in UTF-8; None for none."""
    one = preference
    if type(one.prompt) is str:  # as in most rows
        are_ascii = one.prompt.isascii() and one.chosen.isascii() and one.rejected.isascii()
        if are_ascii and f"{one.id}{one.user}".isascii():
            return None
    values = {name: getattr(one, name) for name in ("prompt", "chosen", "rejected", "id", "user")}
    return next(filter(None, (text_problem(name, each) for name, each in values.items())), None)


def text_problem(name: str, value: Prompt | None) -> str | None:
    """Return the error message for a text or a conversation that no request can hold; None if one can.

    Args:
        name: what it is, for the message.
        value: the text or the conversation. None has no problem.
    """
    try:
        return None if _encodable(value) else surrogate_problem(name)
    except (TypeError, ValueError, RecursionError):  # of `json`
        return f"{name} has a turn with a field that JSON cannot hold. {LEAVE_OUT}"


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
