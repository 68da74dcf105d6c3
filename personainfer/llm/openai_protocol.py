"""The OpenAI protocol as endpoints speak it: the form of a reply, a completion, each endpoint's dialect.

Servers differ in what they accept: some know no JSON schema, some want `max_completion_tokens`, some refuse
a system message. A `Dialect` learns this from the first refusal and writes all later requests accordingly.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..api_keys import Secrets
from ..exceptions import ReplyError, RequestRejectedError, TransportError
from ..records import Completion, Logprobs

Json = dict[str, Any]


def response_format(schema: type[BaseModel], *, strict: bool) -> Json:
    """The `response_format` of OpenAI's protocol for a pydantic model."""
    form = {
        "name": schema.__name__,
        "schema": wire_schema(schema, tight=not strict),
        "strict": strict,
    }
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def tool_call(asked: Json) -> Json:
    """The fields that ask for a tool call instead; `asked` is the `json_schema` of a response_format."""
    function = {"name": asked["name"], "parameters": asked["schema"]}
    choice = {"type": "function", "function": {"name": asked["name"]}}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": choice}


_LOOSE = {"title", "description", "default"}
# Strict mode refuses some of them at some providers.
_TIGHT = {"pattern", "minLength", "maxLength", "minItems", "maxItems"}


def wire_schema(schema: type[BaseModel], *, tight: bool) -> Json:
    """The JSON schema of a model: references resolved, every field required, nothing else allowed.

    `tight` keeps bounds on strings and lists, from which llama.cpp makes a grammar.
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

    resolved: Json = resolve(document)
    return resolved


_MOST_TOKENS = 2**31
_CUT_OFF = {"length", "max_tokens", "model_length"}
_FILTERED = re.compile(
    r"filter|safety|prohibited|blocklist|blocked|spii|recitation|sensitive|^language$|guardrail|refusal"
    r"|moderat"
)
# The server gave up in the middle: DeepSeek, OpenRouter, vLLM and SGLang.
_BROKEN_OFF = {"insufficient_system_resource", "error", "abort", "aborted", "timeout", "cancelled"}


def read_completion(reply: Mapping[str, Any], secrets: Secrets) -> Completion:
    """The text and the counts of a chat completion.

    If a model gave only reasoning, the text is that reasoning, between <think> tags. `secrets` are masked in
    what an error quotes.

    Raises:
        ReplyError: refused, filtered, cut off or empty; `cut_off` and `reasoned` say more.
        TransportError: the server broke the reply off.
    """
    try:
        choice = reply["choices"][0] if "choices" in reply else _native_choice(reply)
        message = choice.get("message")
        if message is None:
            message = {
                "content": choice.get("text") if choice.get("finish_reason") else choice["text"]
            }
        text = message.get("content")
        if not isinstance(text, str) or not text.strip():
            text = _other_text(message)
        if not text.isascii():
            text.encode()
        asked, said, reasoning = _counted(reply.get("usage") or {})
        completion = Completion(
            text,
            str(choice.get("finish_reason") or "stop"),
            asked,
            said,
            _logprobs(choice["logprobs"]) if choice.get("logprobs") else None,
            reasoning,
        )
    except UnicodeEncodeError:
        raise ReplyError("the reply holds half of a surrogate pair, which no text may.") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        raise ReplyError("the reply is JSON, but not a chat completion.") from None
    problem = _completion_problem(completion, message, secrets)
    if isinstance(problem, TransportError):
        raise problem
    if problem is not None:
        problem.completion = completion
        problem.reasoned = bool(
            reasoning or reasoning_of(message) or not text.strip() or text.startswith("<think>")
        )
        raise problem
    return completion


def _native_choice(reply: Mapping[str, Any]) -> Json:
    """The choice in a reply of Ollama's own protocol, which gateways let through."""
    return {"message": reply["message"], "finish_reason": reply.get("done_reason")}


def _other_text(message: Mapping[str, Any]) -> str:
    """The text of a message whose content is not a string: parts, tool calls, or reasoning alone."""
    text, reasoning = split_content(message.get("content"))
    if text.strip():
        return text
    calls = message.get("tool_calls") or [message.get("function_call")]
    if arguments := "\n".join(filter(None, [arguments_of(call) for call in calls if call])):
        return arguments  # of several calls the first one counts that fits
    reasoning = reasoning or reasoning_of(message)
    if not reasoning.strip() or "</think>" in reasoning:
        return reasoning.strip()
    return f"<think>\n{reasoning}\n</think>"


def split_content(content: Any) -> tuple[str, str]:
    """The text and the reasoning of a message's content: a string, None, or a list of parts."""
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
    return "".join(texts), "".join(reasoning)


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The model's reasoning before its answer, from whichever field the server uses."""
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


def arguments_of(call: Mapping[str, Any]) -> str:
    """The arguments of a tool call: text in OpenAI's protocol, an object in that of some servers."""
    found = (call.get("function") or call).get("arguments") or ""
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _tokens(usage: Mapping[str, Any], name: str) -> int:
    """A count of tokens by its name in the usage of a reply, limited to what 64 bits can hold."""
    count = int(usage.get(name) or 0)
    return count if 0 <= count <= _MOST_TOKENS else min(max(count, 0), _MOST_TOKENS)


def _counted(usage: Mapping[str, Any]) -> tuple[int, int, int]:
    """The tokens of the prompt, of the output that is paid for, and how many of these are reasoning.

    OpenAI counts reasoning within `completion_tokens`. Gemini and xAI leave it out there, and count it
    within `total_tokens` alone.
    """
    asked, said = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    details = usage.get("completion_tokens_details")
    reasoning = _tokens(details if isinstance(details, dict) else usage, "reasoning_tokens")
    unnamed = _tokens(usage, "total_tokens") - asked - said
    if unnamed > 0 and reasoning in (0, unnamed):
        return asked, said + unnamed, unnamed
    return asked, max(said, reasoning), reasoning


def _logprobs(found: Any) -> Logprobs | None:
    """The log-probabilities of a choice; None where they are not in OpenAI's form."""
    try:
        return [
            (
                str(token["token"]),
                {
                    str(one["token"]): float(one["logprob"])
                    for one in (token, *(token.get("top_logprobs") or ()))
                },
            )
            for token in found["content"] or ()
        ] or None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _completion_problem(
    completion: Completion, message: Mapping[str, Any], secrets: Secrets
) -> ReplyError | TransportError | None:
    finish = completion.finish_reason.lower()
    if message.get("refusal"):
        return ReplyError(f"the model refused: {secrets.mask(str(message['refusal']))[:200]!r}.")
    if finish == "stop" and completion.text.strip():
        return None
    if finish in _BROKEN_OFF:
        broken = TransportError(f"the endpoint broke its reply off ({completion.finish_reason}).")
        broken.unanswered = True
        return broken
    if _FILTERED.search(finish):
        reason = secrets.mask(completion.finish_reason)[:80]
        error = ReplyError(f"the reply was stopped by the provider's content filter ({reason}).")
        error.retryable = False
        return error
    if finish in _CUT_OFF:
        error = ReplyError("the reply was cut off at max_tokens.", hint="Raise max_tokens=.")
        error.cut_off = True
        return error
    if not completion.text.strip():
        return ReplyError("the reply is empty: the model said nothing.")
    return None


FORMS = ("json_schema", "json_object", "tools", "text")  # tried in this order

_REASONS = re.compile(  # names of models that think before they answer
    r"(^|/)o[134](-|$)|(^|/)gpt-5(?!.*chat)|gpt-oss|deepseek-r|deepseek-reasoner|qwq|magistral"
    r"|thinking|reasoning",
    re.IGNORECASE,
)
_OPENAI_REASONS = re.compile(r"(^|/)(o[134](-|$)|gpt-5)", re.IGNORECASE)
_MISFITS = 3  # replies in another form than asked for, and none in that one
_FOR_REASONING = 8  # times max_tokens: reasoning counts as output, and takes most of it
_NUMBER = re.compile(
    r"(?:at most|maximum (?:of|is)|less than or equal to|<=|limit (?:of|is)|> |exceed|\[\d+,|between \d+ and)"
    r" ?[`'\"]?(\d+)"
)


class Dialect:
    """How requests to one endpoint and model have to be written, as learned from its refusals.

    The bytes of a request, and so its key in the cache, stay the same: `written` translates it when it is
    sent. Most endpoints refuse nothing and get requests unchanged.
    """

    def __init__(self, model: str) -> None:
        self.form = 0  # in FORMS
        self.reasons = bool(_REASONS.search(model))
        self.version = 0  # counts what was learned
        self.proven = True  # requests may go side by side; else one goes first
        self.answered = False  # whether the endpoint has ever taken a request
        self.fits = False  # whether a reply has ever been in the form that was asked for
        self._misfits = 0  # replies in another form, since the last change
        self._limit_name = "max_tokens"
        self._largest_limit: int | None = None
        self._renamed = False
        self._left_out: set[str] = set()
        self._folds_system = False
        if _OPENAI_REASONS.search(model):
            self._limit_name = "max_completion_tokens"
            if self.reasons:
                self._left_out.add("temperature")
        self._refused: RequestRejectedError | None = None
        self._first = asyncio.Lock()

    @property
    def notes(self) -> Json:
        """What was learned, for the settings of a table."""
        notes: Json = {"reply_form": FORMS[self.form]}
        if self._left_out:
            notes["left_out"] = sorted(self._left_out)
        if self.reasons:
            notes["reasons"] = True
        return notes

    def most_tokens(self, asked: int) -> int:
        """The most tokens that a reply can have if `asked` are allowed for the answer."""
        most = asked * _FOR_REASONING if self.reasons else asked
        return most if self._largest_limit is None else min(most, self._largest_limit)

    async def wait_for_turn(self) -> bool:
        """After a change of the dialect, one request goes first and the others wait for its outcome.

        Returns:
            Whether this request goes first; then `end_turn` has to be called after it.

        Raises:
            RequestRejectedError: every form of the request has been refused.
        """
        await self._first.acquire()
        if self._refused is None and not self.proven:
            return True
        self._first.release()
        if self._refused is not None:
            raise self._refused
        return False

    def end_turn(self) -> None:
        """The first request is done."""
        self._first.release()

    def accepted(self) -> None:
        """The endpoint took a request."""
        self.proven = self.answered = True

    def refused(self, version: int, error: RequestRejectedError, body: bytes) -> None:
        """Learn from a refusal; sets `error.rewritten` where the request should be sent again."""
        name = error.unsupported
        field = _FIELD_OF.get(name, name)
        if not name or (f'"{field}":'.encode() not in body):
            return
        if version != self.version:  # another request has learned since this one was written
            error.rewritten = self._refused is None
        elif self._learned(name, error.message.lower()):
            self.version += 1
            self.proven = False
            error.rewritten = True
        elif self.version and not self.answered:  # every form was tried: nobody needs to try again
            error.fatal = True
            self._refused = error

    def _learned(self, name: str, words: str) -> bool:
        """Change what a refusal names. False if it was changed before."""
        if name == "max_tokens":
            return self._learned_limit(words)
        if name == "system role":
            changed, self._folds_system = not self._folds_system, True
        elif name == "response_format":
            changed = self.form < len(FORMS) - 1
            self.form += changed
        else:
            changed = name not in self._left_out
            self._left_out.add(name)
        return changed

    def _learned_limit(self, words: str) -> bool:
        """Take another name for the limit of a reply, or a smaller limit, as the refusal says."""
        most = _NUMBER.search(words)
        if most and 0 < int(most[1]) != self._largest_limit:
            self._largest_limit = int(most[1])
            return True
        if self._renamed:
            return False
        self._renamed = True
        new = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
        self._limit_name = new[self._limit_name]
        return True

    def was_read(self, version: int, *, fits: bool) -> None:
        """Learn from a reply that there is: some endpoints take every form, and ignore it.

        Where the first replies are all in another form, the next requests ask in the next way.
        """
        self.fits = fits
        self._misfits += not fits and version == self.version
        if self._misfits >= _MISFITS and self.form < len(FORMS) - 1:
            self.form += 1
            self.version += 1
            self._misfits = 0

    def thinks(self, version: int) -> bool:
        """Note that a reply was cut off while the model reasoned. True if replies now get more tokens."""
        if self.reasons:
            return version < self.version
        self.reasons = True
        self.version += 1
        return True

    def written(self, body: bytes) -> bytes:
        """A request in this dialect."""
        if not (self.version or self.reasons or self._limit_name != "max_tokens"):
            return body
        fields: Json = json.loads(body)
        self.write_limits(fields)
        for name in self._left_out:
            fields.pop(name, None)
        if self.form and "response_format" in fields:
            self._ask_otherwise(fields)
        if self._folds_system:
            _fold_system(fields["messages"])
        return json.dumps(fields, ensure_ascii=False).encode()

    def write_limits(self, fields: Json) -> None:
        """Give a reply the tokens that it needs, under the name that the endpoint knows."""
        if "max_tokens" in fields:
            fields[self._limit_name] = self.most_tokens(fields.pop("max_tokens"))

    def _ask_otherwise(self, fields: Json) -> None:
        """Ask for the schema of `response_format` in the form that the endpoint takes."""
        asked = fields.pop("response_format")["json_schema"]
        form = FORMS[self.form]
        if form == "tools":
            fields |= tool_call(asked)
            return
        if form == "json_object":
            fields["response_format"] = {"type": "json_object"}
        schema = json.dumps(asked["schema"], ensure_ascii=False)
        words = (
            f"Reply with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
        )
        messages = fields["messages"]
        if messages[0]["role"] == "system":
            messages[0]["content"] += f"\n\n{words}"
        else:
            messages.insert(0, {"role": "system", "content": words})


_FIELD_OF = {"system role": "role"}  # what a request has that may be refused so


def _fold_system(messages: list[Json]) -> None:
    """Put the system message at the start of the first user message."""
    if len(messages) > 1 and messages[0]["role"] == "system" and messages[1]["role"] == "user":
        system = messages.pop(0)["content"]
        messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
