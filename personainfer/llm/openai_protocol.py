"""The OpenAI protocol as endpoints speak it: schemas in requests, and the completions that come back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from ..api_keys import Secrets
from ..exceptions import Facts, InvalidArgumentError, ModelError, ReplyError, TransportError
from ..records import Completion, Logprobs
from .refusals import embedded_status

Json = dict[str, Any]


def response_format(schema: type[BaseModel], *, strict: bool) -> Json:
    """Return the field `response_format` of OpenAI's protocol that asks for this pydantic model.

    Args:
        schema: the model. Its JSON schema is that of `wire_schema`.
        strict: what `strict` says in the field. True also leaves out the bounds on strings and lists.
    """
    form = {
        "name": schema.__name__,
        "schema": wire_schema(schema, tight=not strict),
        "strict": strict,
    }
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def tool_call(asked: Json) -> Json:
    """Return the fields that ask for a tool call in place of a response_format with this `json_schema`."""
    function = {"name": asked["name"], "parameters": asked["schema"]}
    choice = {"type": "function", "function": {"name": asked["name"]}}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": choice}


def message_texts(messages: Iterable[Json]) -> list[str]:
    """Return the texts of messages: contents first, then the texts in those that are lists of parts."""
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    found = [*contents, *(part.get("text") for part in parts if isinstance(part, dict))]
    return [text for text in found if isinstance(text, str)]


_LOOSE = {"title", "description", "default"}
# Some providers refuse some of these in strict mode.
_TIGHT = {"pattern", "minLength", "maxLength", "minItems", "maxItems"}


@lru_cache(maxsize=64)  # pydantic takes a millisecond, and each LLM asks
def wire_schema(schema: type[BaseModel], *, tight: bool) -> Json:
    """Return the JSON schema of a model: references resolved, every field required, no other field allowed.

    The result is cached, so do not change it.

    Args:
        schema: the model.
        tight: whether to keep bounds on strings and lists, from which llama.cpp makes a grammar.

    Raises:
        InvalidArgumentError: the model refers to itself, so its references have no end.
    """
    document = schema.model_json_schema()
    definitions = document.pop("$defs", {})
    dropped = _LOOSE if tight else _LOOSE | _TIGHT

    def resolve(node: Any, *, named: bool = False) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
        # A property may be called "title": only keywords are dropped, never the names of fields.
        kept = {
            key: resolve(value, named=key == "properties")
            for key, value in node.items()
            if named or key not in dropped
        }
        if kept.get("type") == "object" and not named:
            kept["additionalProperties"] = False
            kept["required"] = list(kept.get("properties", {}))
        return kept

    try:
        resolved: Json = resolve(document)
    except RecursionError:
        raise InvalidArgumentError(
            f"the model {schema.__name__} holds itself.", hint="Ask for one that does not."
        ) from None
    return resolved


_ROUNDING = 1e-3  # by how much log p may exceed 0 if it was computed in half precision
_MOST_TOKENS = 2**31
CUT_OFF = {"length", "max_tokens", "max_length", "model_length", "token_limit", "max_output_tokens"}
_FILTERED = re.compile(
    r"filter|safety|prohibited|blocklist|blocked|spii|recitation|sensitive|^language$|guardrail|refusal"
    r"|moderat|toxic"
)
# The server gave up in the middle: DeepSeek, OpenRouter, vLLM and SGLang.
BROKEN_OFF = {
    "insufficient_system_resource",
    "error",
    "abort",
    "aborted",
    "timeout",
    "time_limit",
    "cancelled",
}


def read_completion(reply: Mapping[str, Any], secrets: Secrets) -> Completion:
    """Return the text and the counts of a chat completion.

    If a model gave only reasoning, the text is that reasoning, between <think> tags.

    Args:
        reply: the JSON object of the answer.
        secrets: masked in what an error quotes. In the reply, those are masked that none holds by chance; it
            then has no log-probabilities, whose tokens may spell them.

    Raises:
        ReplyError: the reply is no completion, or is refused, filtered, cut off or empty. `cut_off` and
            `reasoned` say more, and `completion` has what there is.
        TransportError: the server broke the reply off.
    """
    try:
        completion, message = _completion(reply)
    except UnicodeEncodeError:
        raise ReplyError("the reply holds half of a surrogate pair, which no text may.") from None
    except _NO_COMPLETION:
        raise ReplyError(
            "the reply is JSON, but not a chat completion.",
            hint="Check the address: it has to speak OpenAI's protocol (often ending in /v1).",
        ) from None
    told = completion.text, completion.finish_reason, _spelled(completion.logprobs or ())
    text, finish, tokens = map(secrets.mask_reply, told)
    if (text, finish, tokens) != told:
        completion = replace(completion, text=text, finish_reason=finish, logprobs=None)
    problem = _completion_problem(completion, message, secrets)
    if problem is not None:
        raise problem
    return completion


def _spelled(logprobs: Logprobs) -> str:
    """Return the text that tokens spell, and then each of their alternatives."""
    text = "".join(token for token, _ in logprobs)
    return " ".join([text, *(one for _, near in logprobs for one in near)])


def read_answer(
    reply: Mapping[str, Any], secrets: Secrets, refusal: Callable[[int, str], ModelError]
) -> Completion:
    """Return the completion in an answer with status 200, in which there may be an error all the same.

    Args:
        reply: the JSON object of the answer.
        secrets: see `read_completion`.
        refusal: makes the error for an error in the answer, of its status and its words.

    Raises:
        ModelError: that of `refusal`, or those of `read_completion`.
    """
    reply = reply if "choices" in reply else _unwrapped(reply)
    if (found := embedded_status(reply)) is not None:
        raise refusal(*found)
    return read_completion(reply, secrets)


_ENVELOPES = ("data", "result", "response")  # fields in which some gateways put a reply


def _unwrapped(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the completion in a field of a reply that some gateways add, or the reply itself."""
    inner = (reply.get(name) for name in _ENVELOPES)
    return next((one for one in inner if isinstance(one, dict) and "choices" in one), reply)


def check_was_read(completion: Completion, body: bytes, usage: object = None) -> None:
    """Raise ReplyError if the endpoint counted too few tokens to have read all of a request.

    Some servers cut prompts at their context. Two words have a token at least, and so have six characters of
    a script without blanks. Only the words of the last message count, as a server may leave out of its count
    what it had read for an earlier prompt. Counts below 1,000 are not checked.

    Args:
        completion: the reply.
        body: the request.
        usage: the endpoint's own counts. If they tell of tokens from a cache, nothing is checked, as those
            may be in either count.
    """
    fewest = max(completion.prompt_tokens, _SHORTEST_CUT)
    if len(body) < _BYTES_A_TOKEN * fewest:  # nearly all requests, which need not be parsed
        return
    texts = message_texts(json.loads(body)["messages"][-1:])
    least = sum(len(text.split()) + len(_UNSPACED.findall(text)) // 3 for text in texts) // 2
    if completion.prompt_tokens >= _SHORTEST_CUT and least > fewest and not _had_cached(usage):
        raise ReplyError(
            f"the endpoint counted {completion.prompt_tokens:,} tokens of a prompt that has {least:,} at"
            " least: it cuts prompts.",
            hint="Raise the context that it is started with (of Ollama: OLLAMA_CONTEXT_LENGTH).",
            retryable=False,
            completion=completion,
        )


def _had_cached(usage: object) -> bool:
    """Return whether the usage of a reply tells of tokens that came from a cache."""
    if not isinstance(usage, dict):
        return False
    parts = [usage, *(part for part in usage.values() if isinstance(part, dict))]
    return any("cache" in name and _tokens(part, name) for part in parts for name in part)


_BYTES_A_TOKEN = 10  # of two words with their blanks, at least
_UNSPACED = re.compile(
    "[\u0e00-\u0e7f\u3040-\u9fff\uac00-\ud7af]"
)  # Thai, Japanese, Chinese, Korean
_SHORTEST_CUT = 1000  # tokens: smaller counts may leave out what the endpoint had cached


def taken(reply: Mapping[str, Any], *, refused: bool = False) -> Completion | None:
    """Return what a call has taken whose reply cannot be used; None: nothing says that a model ran.

    A model ran if there are counts of tokens, also in another protocol's names, or a text. It also ran for an
    object that is neither a completion nor an error, unless the call was refused.

    Args:
        reply: the JSON object of the answer.
        refused: whether its status says that the call was refused.

    Returns:
        The counts. "…" stands for a text: nobody reads it, and it may repeat a key.
    """
    reply = reply if "choices" in reply else _unwrapped(reply)
    error = reply.get("error")
    usage = reply.get("usage") or (error.get("usage") if isinstance(error, dict) else None)
    try:
        completion, _ = _completion({**reply, "usage": usage})
    except _NO_COMPLETION:
        completion, _ = _completion({"choices": [{"text": ""}], "usage": usage})
    counts = usage if isinstance(usage, dict) else {}
    # Only fields of tokens: usage may also tell of a quota.
    is_counted = any(_tokens(counts, name) for name in counts if "token" in name.lower())
    is_empty = not any(_may_be_an_answer(reply.get(name)) for name in _ENVELOPES)
    says_so = isinstance(reply.get("choices"), list) or not _OF_A_REFUSAL.isdisjoint(reply)
    is_refusal = refused or (says_so and is_empty)
    if is_refusal and not (is_counted or completion.text):
        return None
    finish = completion.finish_reason if completion.finish_reason.lower() in CUT_OFF else ""
    return replace(completion, text=completion.text and "…", finish_reason=finish, logprobs=None)


def _may_be_an_answer(inner: object) -> bool:
    """Return whether what is in a gateway's field may come from a model; an id of the request does not."""
    return bool(inner) and (not isinstance(inner, dict) or not _OF_AN_ANSWER.isdisjoint(inner))


_OF_AN_ANSWER = frozenset("choices message content text output result response usage".split())
_OF_A_REFUSAL = frozenset("error message detail msg code prompt_feedback promptFeedback".split())
_NO_COMPLETION = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


def _completion(reply: Mapping[str, Any]) -> tuple[Completion, Json]:
    """Return the completion in a reply, and its message.

    Raises:
        One of `_NO_COMPLETION`: there is none.
    """
    if "choices" in reply:
        choice = reply["choices"][0]
    else:  # of Ollama's own protocol, which gateways let through
        choice = {"message": reply["message"], "finish_reason": reply.get("done_reason")}
    message = choice.get("message")
    if message is None:
        message = choice.get("delta")
    if message is None:
        message = {"content": choice.get("text") if choice.get("finish_reason") else choice["text"]}
    text, finish = message.get("content"), choice.get("finish_reason") or "stop"
    if not isinstance(text, str) or not text.strip():
        text = _other_text(message)
        finish = finish if text.strip() else _filter_of(choice) or finish
    if message.get("tool_calls") or message.get("function_call"):  # the words announce the call
        called = _all_arguments(message)
        text = f"{text}\n{called}" if called.strip("{}") and called != text else text
    if not text.isascii():
        text.encode()
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    asked, said, reasoning, counted = _counted(usage)
    completion = Completion(
        text,
        str(finish),
        asked,
        said,
        _logprobs(choice["logprobs"]) if choice.get("logprobs") else None,
        reasoning,
        counted,
        written_tokens=0 if usage.keys() <= _PLAIN_COUNTS else min(asked, _cached(usage, _WRITTEN)),
    )
    return completion, message


def _filter_of(choice: Mapping[str, Any]) -> str:
    """Return what names the filter that left a choice empty although it says "stop"; "": nothing does.

    Azure marks the reason among its results; OpenRouter keeps the provider's own word.
    """
    results = choice.get("content_filter_results")
    for name, found in results.items() if isinstance(results, dict) else ():
        if isinstance(found, dict) and found.get("filtered") is True:
            return f"content_filter: {name}"
    native = str(choice.get("native_finish_reason") or "")
    return native if _FILTERED.search(native.lower()) else ""


def _other_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message whose content is blank or no string: parts, tool calls, or reasoning.

    Reasoning is taken only if there is nothing else, and stands between <think> tags; "": there is nothing.
    """
    text, reasoning = split_content(message.get("content"))
    if not text.strip() and isinstance(message.get("parsed"), dict):
        text = json.dumps(message["parsed"], ensure_ascii=False)
    if text.strip():
        return text
    if arguments := _all_arguments(message):
        return arguments
    reasoning = reasoning or reasoning_of(message)
    if not reasoning.strip() or "</think>" in reasoning:
        return reasoning.strip()
    return f"<think>\n{reasoning}\n</think>"


def split_content(content: Any) -> tuple[str, str]:
    """Return the text and the reasoning of a content: a string, None, an object or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if isinstance(content, dict) and "type" not in content and "text" not in content:
        return json.dumps(content, ensure_ascii=False), ""  # the object itself
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    reasoning: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = str(part.get("type", "text"))
        if "think" in kind or "reason" in kind or part.get("thought") is True:
            reasoning.append(reasoning_of(part) or str(part.get("text") or ""))
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "tool_use":
            texts.append(arguments_of(part))
        elif isinstance(part.get("json"), dict):
            texts.append(json.dumps(part["json"], ensure_ascii=False))
    return "".join(texts), "".join(reasoning)


def reasoning_of(message: Mapping[str, Any]) -> str:
    """Return the model's reasoning before its answer, from whichever field has it; "": there is none."""
    for name in ("reasoning_content", "reasoning", "thinking", "reasoning_text"):
        found = message.get(name)
        if isinstance(found, str) and found:
            return found
        if isinstance(found, list):
            return split_content(found)[0]
    details = message.get("reasoning_details")
    if isinstance(details, list):
        return "".join(str(one.get("text") or "") for one in details if isinstance(one, dict))
    return ""


def _all_arguments(message: Mapping[str, Any]) -> str:
    """Return the arguments of all tool calls of a message, a line each: the first that fits will be read."""
    calls = message.get("tool_calls") or [message.get("function_call")]
    known = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return "\n".join(filter(None, map(arguments_of, known)))


_ARGUMENTS = (
    "arguments",
    "input",
    "args",
    "parameters",
)  # OpenAI's name, and those of other protocols


def arguments_of(call: Mapping[str, Any]) -> str:
    """Return the arguments of a tool call as text; the object that some servers send becomes JSON."""
    function = call.get("function")
    called = function if isinstance(function, dict) else call
    found = next(filter(None, map(called.get, _ARGUMENTS)), "")
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _tokens(usage: Mapping[str, Any], name: str) -> int | None:
    """Return a count of tokens in the usage of a reply, by its name, and 2**31 if it is more.

    None: it is missing, negative or no number. A boolean or a text is no number.
    """
    count = usage.get(name)
    if type(count) is int and 0 <= count <= _MOST_TOKENS:  # nearly all counts
        return count
    if isinstance(count, bool) or not isinstance(count, (int, float)) or not count >= 0:
        return None
    return int(min(count, _MOST_TOKENS))


def _counted(usage: Mapping[str, Any]) -> tuple[int, int, int, bool]:
    """Return the tokens of the prompt, of the paid output, of reasoning in it, and whether they were told.

    A count that the endpoint did not tell is 0. The last value says whether it told those of prompt and
    output.

    OpenAI counts reasoning within `completion_tokens`. Gemini and xAI leave it out there, and count it within
    `total_tokens` alone. What is cached of a prompt is part of `prompt_tokens`, but for some gateways to
    Claude.
    """
    asked, said = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    counted = asked is not None and said is not None
    asked, said = asked or 0, said or 0
    if not usage.keys() <= _PLAIN_COUNTS:
        cached = _cached(usage, _WRITTEN) + _cached(usage, _READ)
        asked += cached if cached > asked else 0
    details = usage.get("completion_tokens_details")
    reasoning = _tokens(details if isinstance(details, dict) else usage, "reasoning_tokens") or 0
    unnamed = (_tokens(usage, "total_tokens") or 0) - asked - said
    if unnamed > 0 and reasoning in (0, unnamed):
        return asked, said + unnamed, unnamed, counted
    return asked, max(said, reasoning), reasoning, counted


_PLAIN_COUNTS = frozenset(("prompt_tokens", "completion_tokens", "total_tokens"))
_WRITTEN = re.compile("cache.*(creat|writ)", re.IGNORECASE)
_READ = re.compile("(?!.*(creat|writ)).*cache.*token", re.IGNORECASE)


def _cached(usage: Mapping[str, Any], names: re.Pattern[str]) -> int:
    """Return how many tokens of the prompt the provider wrote into its cache, or read there, by any name."""
    details = usage.get("prompt_tokens_details")
    told = {**usage, **details} if isinstance(details, dict) else usage
    # One count may stand under several names.
    return max((_tokens(told, name) or 0 for name in told if names.search(name)), default=0)


def _logprobs(found: Any) -> Logprobs | None:
    """Return the log-probabilities of a choice; None: they are not in OpenAI's form, or there are none."""
    try:
        logprobs = [
            (
                _token(token),
                {
                    _token(one): float(one["logprob"])
                    for one in (token, *(token.get("top_logprobs") or ()))
                },
            )
            for token in found["content"] or ()
        ]
        return logprobs if logprobs and are_logprobs(logprobs) else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
        return None


def are_logprobs(found: Logprobs) -> bool:
    """Return whether each number can be the logarithm of a probability: some servers give logits, or NaN."""
    return all(number <= _ROUNDING for _, near in found for number in near.values())


def _token(entry: Mapping[str, Any]) -> str:
    """Return the text of a token. Half of a surrogate pair (a part of an emoji) becomes "?"."""
    text = str(entry["token"])
    return text if text.isascii() else text.encode(errors="replace").decode()


_FIRST_BRACE = re.compile(r"\s*(?:```\w*\s*)?(?={)")
_DECODER = json.JSONDecoder(strict=False)
# A model that says so between two answers means the second one. Longer words may be those of another pair,
# with which a small model runs on.
_TAKES_BACK = re.compile(r"\b(?:wait|correct(?:ed|ion)|revised|mistake|mixed up)\b", re.IGNORECASE)
# These may be words of a heading of somebody else's answer, too, such as: Response 2 ("I'm sorry, …").
_MAY_TAKE_BACK = re.compile(r"\b(?:sorry|apolog\w+|final|my response)\b", re.IGNORECASE)
_SOMEBODY_ELSE = re.compile(r"\b(?:another|other|second|two)\b|(?<!\d)2(?!\d)", re.IGNORECASE)
# "If the responses were swapped, my final answer would be": about another order, and no correction.
_SUPPOSES = re.compile(r"\bif\b[^.:;{}]*\b(?:swapped|switched|reversed|other way)\b", re.IGNORECASE)
_LONGEST_CORRECTION = 300  # characters


def takes_back(words: str) -> bool:
    """Return whether the words between two answers take the first one back."""
    if len(words) > _LONGEST_CORRECTION or "<" in words or _SUPPOSES.search(words):
        return False
    if _TAKES_BACK.search(words):
        return True
    return _MAY_TAKE_BACK.search(words) is not None and not _SOMEBODY_ELSE.search(words)


def _begins_with_object(text: str) -> bool:
    """Return whether a text begins with a complete JSON object, maybe in a fence, which is its answer.

    It is none if the words behind it take it back: the reply was cut off within the correction.
    """
    start = _FIRST_BRACE.match(text)
    if start is None:
        return False
    try:
        _, end = _DECODER.raw_decode(text, start.end())
    except (ValueError, RecursionError):
        return False
    return not takes_back(text[end : end + _LONGEST_CORRECTION].partition("{")[0])


_CUT_OFF = "the reply was cut off at max_tokens.", "Raise max_tokens=."


def cut_off(completion: Completion, *, retryable: bool) -> ReplyError:
    """Make the error for a reply that was cut off, although its reason says otherwise. It is returned."""
    problem, hint = _CUT_OFF
    return ReplyError(problem, hint=hint, completion=completion, cut_off=True, retryable=retryable)


def _completion_problem(
    completion: Completion, message: Mapping[str, Any], secrets: Secrets
) -> ReplyError | TransportError | None:
    finish, is_blank = completion.finish_reason.lower(), not completion.text.strip()
    refusal = message.get("refusal")
    if finish == "stop" and not (is_blank or refusal):
        return None
    hint, facts = "", Facts(completion=completion)
    if refusal:
        problem = f"the model refused: {secrets.mask(str(refusal))[:200]!r}."
        hint = "Another model may answer."
    elif finish in BROKEN_OFF:
        problem = f"the endpoint broke its reply off ({completion.finish_reason})."
        return TransportError(problem, unanswered=True)
    elif _FILTERED.search(finish):
        reason = secrets.mask(completion.finish_reason)[:80]
        problem = f"the reply was stopped by the provider's content filter ({reason})."
        facts["retryable"] = False
    elif finish in CUT_OFF:
        problem, hint = _CUT_OFF
        facts["cut_off"], facts["is_whole"] = True, _begins_with_object(completion.text)
    elif is_blank:
        problem = "the reply is empty: the model said nothing."
    else:
        return None
    facts["reasoned"] = not facts.get("is_whole") and bool(
        completion.reasoning_tokens
        or reasoning_of(message)
        or is_blank
        or completion.text.startswith("<think>")
    )
    return ReplyError(problem, hint=hint, **facts)
