"""Read a model's reply: from the bytes of the HTTP body to a record of the schema.

`decode` parses the body: JSON, or an event stream although none was requested. `read_reply` finds the object
in the text that fits the schema. Models wrap it in reasoning, code fences, friendly words and end-of-turn
marks. Only a complete object that fits is read; missing values are never made up.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import from_json

from ..api_keys import Secrets
from ..exceptions import ModelError, ReplyError, TransportError, reads
from ..records import Completion
from .openai_protocol import Json, arguments_of, reasoning_of, split_content, taken, takes_back


class HasSecrets(Protocol):
    """What sent a reply, and may have repeated secrets in it."""

    @property
    def secrets(self) -> Secrets:
        """What no quotation of the sender's words may show."""


# More than this in one reply is noise, and would take long.
_MOST_OBJECTS = 2_000  # braces that are tried, and marks of reasoning and turns
_MOST_PROBLEMS = 1_000  # values of a reply that do not fit
_MOST_WORK = 50_000_000  # characters that are read again, from one brace after the other


def decode(content: bytes) -> Json:
    """Parse the body of a reply into a JSON object. An event stream is joined to the reply that it streams.

    A list of one object, as Gemini sends, gives that object.

    Raises:
        ReplyError: it is empty, or not a JSON object.
        TransportError: it is an event stream that broke off.
    """
    if not content.startswith(b"{"):  # nearly all do
        begin = content.lstrip()[:6]
        if begin.startswith(b":"):  # comments that keep a connection alive
            content = _COMMENTS.sub(b"", content, count=1)
            begin = content.lstrip()[:6]
        if not begin:
            raise ReplyError("the reply has an empty body.")
        if begin.startswith((b"data:", b"event:", b"id:", b"retry:")):
            return _joined_stream(content)
    try:
        try:
            reply = from_json(content)
        except ValueError:  # the slower parser says what is wrong, and takes lone surrogates
            reply = json.loads(content)
    except UnicodeDecodeError:
        raise ReplyError(_NO_UTF_8) from None
    except (ValueError, RecursionError):
        raise ReplyError("the reply is not JSON.") from None
    if isinstance(reply, list) and len(reply) == 1:  # Gemini wraps its errors so
        reply = reply[0]
    if not isinstance(reply, dict):
        raise ReplyError("the reply is JSON, but not a chat completion.")
    return reply


def taken_by(content: bytes, status: int) -> Completion | None:
    """Return what a call has taken, by an answer in which no completion was read; None: nothing is known.

    With a status of success a model ran, unless the answer says that it is an error: see `taken`.

    Args:
        content: the body of the answer.
        status: its HTTP status.
    """
    reply: Json = {}
    try:
        reply = decode(content)
    except ModelError as error:
        if error.took is not None:
            found: Completion = error.took
            return found
    return taken(reply, refused=status // 100 != 2)


_NO_UTF_8 = "the reply holds bytes that are not UTF-8."
_COMMENTS = re.compile(rb"\A(?:\s*:[^\r\n]*(?:[\r\n]+|\Z))+")


def _joined_stream(content: bytes) -> Json:
    """Join the chunks of an event stream to the reply that would have come without streaming.

    Raises:
        TransportError: the stream broke off.
        ReplyError: it is not that of a chat completion. In both, `took` has what the chunks say of tokens.
    """
    texts: dict[str, list[str]] = {"content": [], "reasoning_content": [], "arguments": []}
    whole: Json = {}
    choices: list[tuple[Any, Any]] = []  # each with its place, in the order of chunks
    finish: Any = None
    ended = False
    try:
        for chunk in _events(content):
            if chunk is None:
                ended = True
                continue
            whole |= {key: chunk[key] for key in ("model", "error") if chunk.get(key)}
            if usage := chunk.get("usage"):
                whole["usage"] = _most_of(whole.get("usage"), usage)
            choices += ((one.get("index") or 0, one) for one in chunk.get("choices") or ())
        # Each of several replies (`n`) has its end, and the first one is read. Some gateways number the parts
        # of one reply: its reasoning, its text.
        ends = {place for place, choice in choices if choice.get("finish_reason")}
        for place, choice in choices:
            if len(ends) < 2 or place == choices[0][0]:
                finish = choice.get("finish_reason") or finish
                _add_delta(texts, choice.get("delta") or choice.get("message") or {})
        if not (ended or finish or "error" in whole):
            broken_off = "the endpoint sent an event stream that broke off."
            raise TransportError(broken_off, unanswered=True)
        codecs.getincrementaldecoder("utf-8")().decode(content)  # it may break off
    except UnicodeDecodeError:
        raise ReplyError(_NO_UTF_8, took=taken(whole)) from None
    except ModelError as error:
        error.took = taken(whole)
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
        strange = "the reply is an event stream, but not of a chat completion."
        raise ReplyError(strange, took=taken(whole)) from None
    message: Json = {name: "".join(parts) or None for name, parts in texts.items()}
    if arguments := message.pop("arguments"):
        message["tool_calls"] = [{"function": {"arguments": arguments}}]
    return whole | {"choices": [{"message": message, "finish_reason": finish or "stop"}]}


def _most_of(usage: Any, more: Any) -> Any:
    """Join what two chunks tell of tokens: some streams tell a part in each, or less at the end."""
    if not isinstance(usage, dict) or not isinstance(more, dict):
        return more
    joined = dict(usage)
    for name, count in more.items():
        old, are_counts = joined.get(name), isinstance(count, int | float)
        if are_counts and isinstance(old, int | float):
            joined[name] = max(count, old)
        elif count is not None:
            joined[name] = count
    return joined


def _events(content: bytes) -> Iterator[Json | None]:
    """Yield the chunks of an event stream; None for the mark of its end.

    Raises:
        ReplyError: a chunk is broken JSON.
    """
    # Not `splitlines`, which also splits at U+2028 and others that a text may have.
    for line in re.split(r"\r\n|\n|\r", content.decode("utf-8", "replace")):
        field, _, data = line.partition(":")
        data = data.strip()
        if field.strip() != "data" or not data or data.startswith(":"):  # a misplaced comment
            continue
        if data == "[DONE]":
            yield None
            continue
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise ReplyError("the reply is an event stream with broken JSON.") from None
        if isinstance(chunk, dict):
            yield chunk


def _add_delta(texts: Mapping[str, list[str]], delta: Mapping[str, Any]) -> None:
    content, reasoning = split_content(delta.get("content"))
    texts["content"].append(content)
    texts["reasoning_content"].append(reasoning or reasoning_of(delta))
    for call in delta.get("tool_calls") or ():
        texts["arguments"].append(arguments_of(call))


_ATTRIBUTES = r"(?:\s[^<>=]*=[^<>]*)?"  # of a tag; "<think about it>" is none
# How models open and close their reasoning: DeepSeek, Qwen and most others; Magistral; gpt-oss;
# Cohere; Kimi; Seed.
_THINKING = [
    (rf"<(?i:think|thinking|thoughts?|reasoning|reflection|seed:think){_ATTRIBUTES}>",) * 2,
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"<\|channel\|>(?:analysis|commentary)[^<{]*<\|message\|>", r"<\|end\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
]
_OPENS = "|".join(opening for opening, _ in _THINKING)
_CLOSES = "|".join(
    closing.replace("<(", "</(", 1) if opening == closing else closing
    for opening, closing in _THINKING
)
# Where a draft of an object may stand, too. In plain text, these tags may belong to the answer.
_DRAFT = "(?i:draft|plan|brainstorm)"
_NOTE = f"(?i:analysis|scratch_?pad|{_DRAFT})"
_NOTES = rf"<{_NOTE}{_ATTRIBUTES}>"
_CLOSES_NOTES = rf"{_CLOSES}|</{_NOTE}>|assistant(?:commentary|final)"  # gpt-oss without its marks
# Where somebody else's turn begins: a model that runs on has ended its reply before.
_NEXT_TURN = (
    r"<\|im_start\|>\s*(?:user|system)|<\|start_header_id\|>\s*(?:user|system)"
    r"|<start_of_turn>\s*user|<\|(?:user|User|USER)\|>|<\uff5cUser\uff5c>|<\|start\|>\s*(?:user|system)"
    r"|\[INST\]"
)
_CHAT_MARK = (
    r"<\|[^<>|\n{}]{1,40}\|>|<\uff5c[^<>\uff5c\n{}]{1,40}\uff5c>|</?s>|<(?:start|end)_of_turn>|<[be]os>"
    r"|\[/?INST\]|\ufeff"
)
_MARK = re.compile(rf"{_CHAT_MARK}|```\w*")
_TOKENS = re.compile(
    rf"(?P<open>{_OPENS}|{_NOTES})|(?P<close>{_CLOSES_NOTES})"
    rf"|(?P<turn>(?:(?<!`)|(?<=```))(?:{_NEXT_TURN}))|(?P<brace>[{{[])"
)
_LEADING_MARKS = re.compile(rf"\s*(?:(?:{_CHAT_MARK})\s*(?:(?:assistant|model|final)\b\s*)?)*")
_FIRST_THOUGHT = re.compile(rf"{_LEADING_MARKS.pattern}(?:{_OPENS})")
# In Markdown. A mark in it is what the reply is about, such as "`[INST]` begins a turn".
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_CLOSING = re.compile(f"(?:(?<!`)|(?<=``))(?:{_CLOSES})|(?:{_CLOSES})(?!`(?!``))")
_MARK_AT_END = re.compile(rf"(?:{_CHAT_MARK})\Z")
_LONGEST_MARK = 50  # characters of a chat template's mark

_PLACEHOLDER = re.compile(r"\.{3}|…|<[^<>]*>|string")
_MAY_BE_PLACEHOLDER = re.compile(rf'"(?:{_PLACEHOLDER.pattern})"')
_DECODER = json.JSONDecoder(strict=False)  # a raw line break in a string is taken for one


def read_reply(text: str, schema: type[BaseModel] | None, sender: HasSecrets | None = None) -> Any:
    """Find the object in a reply that fits `schema`.

    The first complete object outside the reasoning that fits is taken, or the one after words that take an
    answer back. An object in the reasoning is taken only if the reply has nothing else and ends with it.

    Args:
        text: the reply.
        schema: the pydantic model; None: plain text.
        sender: what sent it; None: nothing is masked in errors.

    Returns:
        An instance of `schema`; without one, the text without reasoning and marks of chat templates.

    Raises:
        ReplyError: nothing fits. The secrets of `sender` are masked in what it quotes.
        Exception: what a validator of the schema raises, other than the ValueError of a value that does not
            fit.
    """
    if schema is None:
        return plain_text(text)
    if text.startswith("{") and not _MAY_BE_PLACEHOLDER.search(text):  # most replies
        try:
            value = schema.model_validate_json(text)
        except ValidationError:
            pass
        else:
            if _is_said(value):
                return value
    problems: list[str] = []
    tidied = _tidied(text)
    for variant in dict.fromkeys((text, tidied, _without_tags(tidied))):
        for fields, content in _found_in(variant, schema):
            try:
                return _fitting(fields, content, schema)
            except ValidationError as error:
                problems.append(_first_problem(error))
            except ValueError as error:
                problems.append(str(error))
    from_text = getattr(schema, "from_text", None)  # a schema may also be read from plain text
    if from_text is not None and (read := from_text(text)) is not None:
        return read
    broken = "the object is broken or not complete" if "{" in text else "there is no object"
    problem = problems[0] if problems else f"Invalid JSON: {broken}"
    said = " ".join(text[:_QUOTED].split())
    if sender:
        problem, said = sender.secrets.mask(problem), sender.secrets.mask(said)
    hint = f"{BEGINS}{said[:_SHOWN]!r}." if said else ""
    raise ReplyError(f"it is not in the asked form: {problem}.", hint=hint)


BEGINS = "The reply begins: "  # in an error, before what the model said
_QUOTED, _SHOWN = 2_000, 80  # characters that are masked, and those that are shown


_reads_text = reads("the text of the reply")


@_reads_text
def plain_text(text: str) -> str:
    """Return a reply without the reasoning before it, and without the marks of a chat template around it.

    Raises:
        ReplyError: nothing else is in it.
    """
    if not any(sign in text for sign in "<[◁\ufeff"):
        return text
    answer = text
    opening = _FIRST_THOUGHT.match(text)
    if opening:
        closing = _CLOSING.search(text, opening.end())
        answer = text[closing.end() :] if closing else ""
    elif not re.search(_OPENS, text):  # the prompt's template has opened it
        answer = _CLOSING.split(text)[-1]
    turn = re.search(_NEXT_TURN, _CODE.sub(lambda found: "`" * len(found[0]), answer))
    if turn and _has_words(answer[: turn.start()]):
        answer = answer[: turn.start()]
    leading = _LEADING_MARKS.match(answer)
    bare = _without_trailing_marks(answer[leading.end() :] if leading else answer)
    if text.strip() and not bare.strip():
        raise ReplyError("the reply is empty, but for its reasoning.")
    return text if bare.strip() == text.strip() else bare.strip()


def _without_trailing_marks(text: str) -> str:
    """Return a text without the marks of a chat template at its end."""
    bare = text.rstrip()
    end = len(bare)
    while found := _MARK_AT_END.search(bare, max(0, end - _LONGEST_MARK), end):
        end = found.start()
        while end and bare[end - 1].isspace():
            end -= 1
    return text if end == len(bare) else bare[:end]


@_reads_text
def _found_in(text: str, schema: type[BaseModel]) -> list[tuple[Any, str]]:
    """Return the values in a text that may be its answer, in order, each also as JSON.

    Args:
        text: the reply.
        schema: what is looked for. Lists count only if its root is a list.
    """
    answers = _candidates(text, list_root=issubclass(schema, RootModel))
    found = [
        fields
        for candidate in _latest_first(answers, text)
        for fields in (candidate, *_wrapped(candidate, schema))
    ]
    ends = [0, *(one.end for one in answers)]
    parts = [(one.value, text[end : one.start]) for one, end in zip(answers, ends, strict=False)]
    if len(parts) > 1 and not any(takes_back(words) for _, words in parts[1:]):
        joined = _joined(parts, schema)
        found += [joined] if joined else []
    return [(fields, json.dumps(fields)) for fields in _variants(found, schema)]


def _latest_first(answers: Sequence[_Found], text: str) -> list[Any]:
    """Return the values in order; but those after words that take an answer back come first."""
    values = [one.value for one in answers]
    for place in range(len(answers) - 1, 0, -1):
        if takes_back(text[answers[place - 1].end : answers[place].start]):
            return values[place:] + values[:place]
    return values


class _Found(NamedTuple):
    """A complete JSON value in a text, and where it stands."""

    start: int
    end: int
    value: Any


def _candidates(text: str, *, list_root: bool) -> list[_Found]:
    """Return the JSON objects of a reply that may be its answer, in order; lists too, with `list_root`."""
    objects, thoughts, length = _scanned(text, list_root=list_root)
    answers = [one for one in objects if not any(s <= one.start < e for s, e in thoughts)]
    if answers:
        return answers
    rest = "".join(text[i:j] for i, j in _gaps(thoughts, length))
    if thoughts and objects and not _has_words(rest):
        last, end = objects[-1], max(e for s, e in thoughts if s <= objects[-1].start)
        closing = list(re.finditer(_CLOSES_NOTES, text[last.end : end]))
        follows = text[last.end : last.end + closing[0].start() if closing else end]
        if not _has_words(follows):
            return [last]
    return []


def _scanned(text: str, *, list_root: bool) -> tuple[list[_Found], list[tuple[int, int]], int]:
    """Return the objects of a text, the (start, end) of each part that is reasoning, and the reply's end.

    Marks of reasoning or turns within an object belong to its texts. If the text ends in the middle of an
    object, the search ends there: what is inside that object is a part of something else.
    """
    objects: list[_Found] = []
    thoughts: list[tuple[int, int]] = []
    opened: int | None = None
    place = tried = work = looked = 0
    end = len(text)
    while (token := _TOKENS.search(text, place)) is not None and tried < _MOST_OBJECTS:
        place = token.end()
        if token["brace"] == "[" and not list_root:
            continue
        tried += 1
        if token["brace"]:
            # Skip a value after a key: the object that has it is broken.
            if _KEY_BEFORE.search(text, max(0, token.start() - _LONGEST_MARK), token.start()):
                continue
            try:
                value, place = _DECODER.raw_decode(text, token.start())
                objects.append(_Found(token.start(), place, value))
            except json.JSONDecodeError as error:
                work += error.pos - token.start()
                if _breaks_off(error, text) or work > _MOST_WORK:
                    break
            except (RecursionError, ValueError):  # nested too deep, or of thousands of digits
                break
        elif token["open"]:
            opened = token.start() if opened is None else opened
        elif token["close"]:
            thoughts.append((0 if opened is None else opened, place))  # 0: the template opened it
            opened = None
        elif opened is None:  # somebody else's turn: the reply ends here, if it has begun
            if _has_words(text[looked : token.start()]):
                end = token.start()
                break
            looked = token.start()
    if opened is not None:
        thoughts.append((opened, end))
    return objects, thoughts, end


_KEY_BEFORE = re.compile(r'"\s*:\s*\Z')


def _breaks_off(error: json.JSONDecodeError, text: str) -> bool:
    """Return whether the text ends before the object does."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())


def _gaps(parts: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of what lies between the parts of a text of this length."""
    place = 0
    for start, end in parts:
        yield place, start
        place = max(place, end)
    yield place, length


def _has_words(text: str) -> bool:
    """Return whether there is more than white space, code fences and the marks of a chat template."""
    return bool(_MARK.sub("", text).strip())


def _fitting(fields: Any, content: str, schema: type[BaseModel]) -> BaseModel:
    """Return the record of these fields, which `content` has as JSON.

    Raises:
        ValueError: they do not fit, or the model only repeated the form.
        Exception: what a validator of the user's raises. It is the user's to see.
    """
    value = schema.model_validate_json(content)
    if not _is_said(value):
        raise ValueError("none of its fields is there")
    strings = _strings(fields)
    if strings and all(_PLACEHOLDER.fullmatch(one.strip()) for one in strings):
        raise ValueError("it repeats the form, without values")
    return value


def _is_said(value: BaseModel) -> bool:
    """Return whether the model set any field of a record: all of them may have their defaults."""
    return bool(value.__pydantic_fields_set__) or not type(value).model_fields


@_reads_text
def _strings(value: Any) -> list[str]:
    """Return the texts in a JSON value, at any depth."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for item in inner for text in _strings(item)]
    return [value] if isinstance(value, str) else []


_WRAPPERS = {
    *(
        "answer",
        "content",
        "data",
        "final",
        "final_answer",
        "json",
        "object",
        "output",
        "people",
        "person",
        "persona",
        "personas",
        "persons",
        "profiles",
    ),
    *("reply", "response", "result", "users"),
}
_CALLED = {"action", "function", "name", "recipient_name", "tool", "tool_name"}
_ARGUMENTS = ("arguments", "parameters", "input", "args", "action_input", "tool_input")


def _wrapped(candidate: Any, schema: type[BaseModel]) -> Iterator[Any]:
    """Yield the object in a tool call that was written as text, or in an object that wraps one.

    The field that holds it has a known name, such as "answer", or the name of the schema.
    """
    if not isinstance(candidate, dict):
        return
    calls = candidate.get("tool_calls")
    for call in (candidate, *(calls if isinstance(calls, list) else ())):
        for one in (call, call.get("function")) if isinstance(call, dict) else ():
            if isinstance(one, dict) and not _CALLED.isdisjoint(one):
                yield from (_parsed(one[name]) for name in _ARGUMENTS if name in one)
    known = _WRAPPERS | {_plain_key(schema.__name__), schema.__name__.lower()}
    inner = [_parsed(value) for name, value in candidate.items() if name.lower() in known]
    inner += [
        _joined([(one, "") for one in each], schema) for each in inner if isinstance(each, list)
    ]
    found = [value for value in inner if isinstance(value, dict)]
    holding = [v for v in found if not _renamed(v, schema).keys().isdisjoint(schema.model_fields)]
    if len(holding or found) == 1:
        yield (holding or found)[0]


def _joined(parts: Sequence[tuple[Any, str]], schema: type[BaseModel]) -> dict[str, Any] | None:
    """Put together an object of which each record was written on its own, as a list or one after another.

    Args:
        parts: values, each with the words before it: objects that hold different fields of the schema, or
            a record for each field. Numbers say which is which, such as "Person 2:" before a record or an
            "id" in it; their order does only if there is nothing else between and in them.
        schema: it has several fields, all of one kind of record. For another one, nothing is put together.

    Returns:
        The object; None: a part is missing, one too many, or it is not certain which one it is.
    """
    names = list(schema.model_fields)
    kinds = {field.annotation for field in schema.model_fields.values()}
    objects = [value for value, _ in parts if isinstance(value, dict)]
    kind = next(iter(kinds), None)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return None
    if len(kinds) > 1 or len(names) < 2 or len(objects) < len(parts):
        return None
    renamed = [_renamed(value, schema) for value in objects]
    held = [name for value in renamed for name in names if name in value]
    if sorted(held) == sorted(names):
        return {name: value[name] for value in renamed for name in names if name in value}
    if held or len(objects) != len(names) or objects.count(objects[0]) > 1:
        return None
    more = [_more_fields(value, kind) for value in objects]
    numbers = [_numbers(one, words) for one, (_, words) in zip(more, parts, strict=True)]
    if not any(numbers):  # words and fields that are not understood may name another order
        is_plain = not any(more) and not any(_has_letters(words) for _, words in parts[1:])
        return dict(zip(names, objects, strict=True)) if is_plain else None
    named = {
        name: value
        for value, found in zip(objects, numbers, strict=True)
        for name in names
        if {name.rpartition("_")[2]} == found
    }
    return named if len(named) == len(names) else None


def _more_fields(record: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a record that `kind` does not have."""
    return {key: v for key, v in _renamed(record, kind).items() if key not in kind.model_fields}


def _numbers(more: Mapping[str, Any], words: str) -> set[str]:
    """Return the numbers that further fields of a record, or the heading before it, have of its person.

    A sentence with a number, such as "unlike response 2", may name the other person: it adds "".
    """
    lines = [line for line in _MARK.sub("", words).splitlines() if _has_letters(line)]
    said = {key: v for key, v in more.items() if isinstance(v, str | int)}
    fields = [f"{'person' if _plain_key(key) in _IDS else key} {v}" for key, v in said.items()]
    found: set[str] = set()
    for text in (*lines[-1:], *fields):
        if numbers := _NUMBERED.findall(text):
            found |= {*numbers, *([""] if _has_letters(_OF_HEADINGS.sub("", text)) else [])}
    return found


def _has_letters(words: str) -> bool:
    """Return whether there are letters or digits in words, marks and names of code fences aside."""
    return any(map(str.isalnum, _MARK.sub("", words)))


_IDS = {
    *("id", "index", "name", "number", "person", "persona", "user"),
    *("person_id", "persona_id", "user_id"),
}
_PERSON = "(?:person|persona|user|response)"
_NUMBERED = re.compile(
    rf"(?<![^\W_]){_PERSON}[\W_]{{0,3}}(?:{_PERSON}[\W_]{{0,3}})?(\d+)", re.IGNORECASE
)
# The words of a heading, such as "The user who prefers response 2:" or "f(person_2=".
_OF_HEADINGS = re.compile(
    rf"\d+|\w{{1,40}}\(|(?<![^\W_])(?:{_PERSON}|an?|description|for|json|key|label|likes?|object|of|parameter|prefer(?:s|red|ring)?"
    r"|profile|that|the|title|who|would)(?![^\W\d_])",
    re.IGNORECASE,
)


def _variants(found: list[Any], schema: type[BaseModel]) -> Iterator[Any]:
    """Yield each value as it is; then those in which keys or texts had to be turned into the schema's."""
    yield from found
    for value in found:
        if (renamed := _renamed(value, schema)) != value:
            yield renamed


def _renamed(value: Any, schema: type[BaseModel]) -> Any:
    """Return an object with keys as the schema spells them: "Person 1" and "person1" are `person_1`.

    `other_names` of the schema, key -> field, has further names. A record in it that is JSON text is parsed.
    One whose fields stand beside the others, as `person_1_trait` does, becomes a record. If two keys are the
    same field, `value` itself is returned.
    """
    if not isinstance(value, dict):
        return value
    fields = {_plain_key(name): name for name in schema.model_fields}
    keys = {key: _plain_key(key) for key in value}
    there = {fields.get(plain) for plain in keys.values()}
    others: Mapping[str, str] = getattr(schema, "other_names", {})
    fields |= {other: name for other, name in others.items() if name not in there}
    named = {fields.get(plain) or str(key): value[key] for key, plain in keys.items()}
    if len(named) < len(value):
        return value
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        if name in named:
            named[name] = _record(_parsed(named[name]), kind)
        elif beside := {
            plain.removeprefix(f"{name}_"): value[key]
            for key, plain in keys.items()
            if plain.startswith(f"{name}_")
        }:
            named[name] = beside
    return named


def _record(value: Any, kind: type[BaseModel]) -> Any:
    """Return a record within an object with keys as `kind` spells them, and without a wrapper of its own."""
    renamed = _renamed(value, kind)
    if isinstance(renamed, dict) and renamed.keys().isdisjoint(kind.model_fields):
        return next((_renamed(inner, kind) for inner in _wrapped(renamed, kind)), renamed)
    return renamed


def _plain_key(name: str) -> str:
    return _BETWEEN_WORDS.sub("_", name.strip(" \n\t*:#`")).lower()


_BETWEEN_WORDS = re.compile(r"[\s.-]+|(?<=[a-z])(?=[A-Z\d])")


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


_OPENING_QUOTE = re.compile(r"(?<=[{\[,:])(\s*)[“”„«]")
_CLOSING_QUOTE = re.compile(r"[“”»](?=\s*[:,}\]])")
# A text; else a comment, a wide sign or space, a comma before a bracket, or a key without quotes.
_TEXT_OR_SIGN = re.compile(
    r'("(?:[^"\\]|\\.?)*+"?)|(?<!:)//[^\n]*|/\*[^*]*\*/|[\uff1a\uff0c\u00a0\u200b\u3000]|,(?=\s*[}\]])'
    r'|\{\s*(\w+)(?=\s*:\s*["{])|(?<=["}\]]),\s*(\w+)(?=\s*:\s*["{])',
    re.DOTALL,
)
_WIDE = {"\uff1a": ":", "\uff0c": ","}
_ESCAPE = re.compile(r"""\\(?:["\\/bfnrtu]|([_'`*#~.!&$%-])|(.))""", re.DOTALL)


# A dict whose keys and values are all texts or dicts, as Python prints it. Each character can be matched in
# one way only: with two, the time would double with every dict that is not closed.
_PYTHON_TEXT = r"""(?:'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+")"""
_PYTHON_DICT = re.compile(
    rf"\{{\s*+{_PYTHON_TEXT}\s*+:\s*+(?:{_PYTHON_TEXT}|\{{)(?:[\s,:{{}}]|{_PYTHON_TEXT})*\}}"
)
_LONGEST_PYTHON_DICT = 10_000  # characters of a reply: each start of a dict is followed to the end


def _as_json(found: re.Match[str]) -> str:
    """Return a dict as Python prints it in JSON; other text as it is."""
    try:
        value = ast.literal_eval(found[0])
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return found[0]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else found[0]


_DRAFT_ENDS = re.compile(f"</{_DRAFT}>")
_DRAFT_TAGS = re.compile(f"</?{_DRAFT}{_ATTRIBUTES}>")


def _without_tags(text: str) -> str:
    """Return a text without the tags of drafts, if no object is behind them: then a draft is the answer."""
    ends = [found.end() for found in _DRAFT_ENDS.finditer(text)]
    return text if ends and "{" in text[ends[-1] :] else _DRAFT_TAGS.sub(" ", text)


@_reads_text
def _tidied(text: str) -> str:
    """Return a text with straight quotes around keys and values, and no comma or comment too many.

    A text that is one quoted string is unpacked. A dict as Python prints it becomes JSON. Only the
    punctuation changes: no word and no value does.
    """
    bare = text.strip("\ufeff \n\r\t")
    if bare.startswith("```") and bare.endswith("```"):
        bare = bare[3:-3].removeprefix("json").strip()
    if "{{" in bare and 2 * bare.count("{{") == bare.count("{"):  # as in a template of Python's
        text = bare = bare.replace("{{", "{").replace("}}", "}")
    quoted = f'"{bare}"' if bare.startswith('{\\"') else bare
    if quoted.startswith('"') and isinstance(inner := _parsed(quoted), str):
        return inner
    if any(quote in text for quote in "“”„«»"):
        text = _OPENING_QUOTE.sub(r'\1"', text)
        text = _CLOSING_QUOTE.sub('"', text)
    if len(text) <= _LONGEST_PYTHON_DICT and ("{'" in text or "{ '" in text):
        text = _PYTHON_DICT.sub(_as_json, text)
    return _TEXT_OR_SIGN.sub(_tidied_part, text)


def _tidied_part(found: re.Match[str]) -> str:
    """Return a text with escapes that JSON has, or what stands in the place of a sign outside texts."""
    if not found[1]:
        key = found[2] or found[3]
        return f'{found[0][0]}"{key}"' if key else _WIDE.get(found[0], "")
    if "\\" not in found[1]:
        return found[1]
    return _ESCAPE.sub(_valid_escape, found[1])


def _valid_escape(found: re.Match[str]) -> str:
    """Return an escape that JSON has: of Markdown's, the sign alone; any other backslash stays one."""
    return found[1] or (f"\\{found[0]}" if found[2] else found[0])


def _first_problem(error: ValidationError) -> str:
    if error.error_count() > _MOST_PROBLEMS:  # pydantic makes a dict of each, or of none
        return f"{error.error_count():,} of its values do not fit"
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


_REASK = "That reply cannot be used: "


def reask(error: ReplyError) -> str:
    """Return the message that tells the model why its reply cannot be used."""
    return f"{_REASK}{error.message} Reply again, in the form asked for."


def last_bad_reply(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the reply that the last two turns show the model as a bad one, see `reask`; else None."""
    if len(messages) < 2 or not messages[-1]["content"].startswith(_REASK):
        return None
    return str(messages[-2]["content"])
