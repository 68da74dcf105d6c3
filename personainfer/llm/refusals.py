"""Turn an endpoint's refusal into an error: is the row at fault, the whole run, or only this moment?

`RULES` decides by the status *and* the text of the body, since neither is enough: a 403 may mean a wrong
key or one toxic row, and a 429 may pass in a second or never. Every error quotes the provider; keys in the
quotation are masked. `retry_after` reads how long to wait.
"""

from __future__ import annotations

import html
import json
import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple, Unpack

from ..api_keys import KEY_START, Secrets
from ..exceptions import (
    AuthenticationError,
    Facts,
    ModelError,
    ModelNotFoundError,
    RateLimitError,
    ReplyError,
    RequestRejectedError,
    TransportError,
    unreadable,
)
from ..http_guard import Exchange, Rules, guarded_http, redirect_error

Scope = Literal["row", "run", "moment", "form", "unclear"]

_ANY = range(200, 600)
_CLIENT = (200, *range(400, 500))
_SERVER = range(500, 600)


class Rule(NamedTuple):
    """Refusals of one kind: the statuses and words by which they are known, and what they mean.

    Attributes:
        name: of the rule.
        scope: what is at fault. "row": this request, and the next may pass; "run": every request would fail
            alike, so the run ends; "moment": the same request may pass later; "form": the request can be
            written otherwise, see `dialect`; "unclear": this request, unless the first requests all meet it.
        statuses: the HTTP statuses of such refusals. 200 stands for an error inside a reply.
        words: a regular expression that is searched in the body, in lower case; "" fits every body.
        error: the class of the error.
        says: the start of its message.
        hint: what the user can do; "": nothing is known.
    """

    name: str
    scope: Scope
    statuses: range | tuple[int, ...]
    words: str
    error: type[ModelError]
    says: str
    hint: str = ""


# The first rule that fits counts. A status of 200 stands for an error inside a reply.
RULES = (
    Rule(
        "loading",
        "moment",
        (200, 409, 425, *_SERVER),
        r"(?<!error )(?<!failed )loading (the )?model|model (.{0,80} )?is (\w+ )?(being )?load|warming up"
        r"|model is not ready|loading_model|scal(ing up|ed to zero)|cold.?start"
        r"|(server|service|endpoint|deployment|engine|container|worker) is (\w+ )?"
        r"(not (yet )?ready|starting|initiali[sz]ing|booting|deploying)",
        RateLimitError,
        "the endpoint still loads its model",
    ),
    Rule(
        "no credit",
        "run",
        _ANY,
        r"insufficient_(user_)?quota|billing_hard_limit|insufficient.{0,9}(balance|credit|fund)"
        r"|credit balance is too low|(no|more|out of) credits(?! were)|exceeded_current_quota|arrear"
        r"|account.{0,20}(not active|suspended|deactivated)|(spend|spending|monthly) limit"
        r"|budget has been exceeded\W+current|budget_exceeded|exceeded(token| )?budget"
        r"|credits are (depleted|exhausted)|specified api usage limits"
        r"|quota exceeded for metric: \S+, limit: 0\b"
        r"|\u4f59\u989d\u4e0d\u8db3"  # Zhipu: too little balance
        r"|(?=.*exceeded your current quota)(?!.*(retry|resource_exhausted|per ?(minute|day)|free.?tier))",
        AuthenticationError,
        "the account has no quota left",
        "Top it up; replies so far are cached.",
    ),
    Rule(
        "payment required",
        "run",
        (402,),
        "",
        AuthenticationError,
        "the account has no quota left",
        "Top it up; replies so far are cached.",
    ),
    Rule(
        "moderation",
        "row",
        (*_CLIENT, 500),
        r"flagged|moderation|content.?(filter|policy|management|violat)|responsibleai|safety"
        r"|data_inspection_failed|(prohibited|harmful|sensitive|inappropriate|unsafe) content"
        r"|violat\w+ .{0,40}(polic|guidelines|terms)|usage polic|prohibited_content|guardrail_interven"
        r"|contentpolicy|block_?reason|(prompt|response) (\w+ )?(is |was )?blocked|blocked entity"
        r"|content exists risk|new_sensitive",
        RequestRejectedError,
        "the provider's moderation refuses this request",
    ),
    Rule(
        "rate, in tokens",
        "moment",
        (400, 429, 503),
        r"too many tokens.{0,3} please wait|tokens per (minute|day|hour) limit exceeded"
        r"|too many tokens for team"
        r"|(?=.*too many (input )?tokens.{0,40}per.?(min|day|hour))(?!.*too (large|long))",
        RateLimitError,
        "the endpoint refused, for too many tokens",
    ),
    Rule(  # Anthropic advises shorter prompts, too
        "rate, in tokens, by its status",
        "moment",
        (429,),
        r"\A(?=.*tokens)(?=.*(\brate.?limit|quota|per.?(minute|hour|day)))"
        r"(?!.*(too (large|long)|context.?(length|window)|maximum (context|prompt)))",
        RateLimitError,
        "the endpoint refused, for too many tokens",
    ),
    Rule(
        "limit of a reply",
        "form",
        (200, 400, 422),
        r"(?!.*(input tokens|your (messages|prompt)|context length))(?:"
        r"max_(completion_|output_)?tokens\W{0,3}(must be|should be|cannot|is too large|exceeds|: \d+ >)"
        r"|range of max_tokens|at most \d+ completion tokens)",
        RequestRejectedError,
        "the endpoint rejects this form of request",
    ),
    Rule(
        "too long",
        "row",
        (*_CLIENT, 500),
        r"context.?(length|window|size)|maximum context|input tokens|too many (input )?tokens"
        r"|(prompt|input|request|message|payload|entity)s? (is |are )?too (long|large)"
        r"|exceeds? .{0,60}(token|context|length)|reduce (the )?(length|your)|max_input_tokens"
        r"|above_max_length|tokens.{0,40}must (be|have) (<|less|at most)|(messages|input|prompt) is too long",
        RequestRejectedError,
        "the request is too long for the model",
    ),
    Rule(
        "rate",
        "moment",
        _ANY,
        r"\brate.?limit|too many requests|throttl|resource.?exhausted|per.?min(ute)?\b|per.?day\b"
        r"|call volume quota",
        RateLimitError,
        "the endpoint refused, for too many requests",
    ),
    Rule("rate, by its status", "moment", (429,), "", RateLimitError, "the endpoint refused"),
    Rule(
        "broken JSON that the provider noticed",
        "moment",
        (*_CLIENT, 500),
        r"json_validate_failed|tool_use_failed|failed_generation|failed to (generate|validate) json"
        r"|model (output|generated|produced) .{0,40}(invalid|malformed)",
        ReplyError,
        "the provider could not read the model's own reply",
    ),
    Rule(
        "no such model",
        "run",
        (*_CLIENT, 503),
        r"model_not_found|model.?not.?(exist|found)|invalid.?model|unknown model|no such model"
        r"|not a valid model|model .{0,120}(does not|doesn't|not) (exist|found|support\w* by)"
        r"|model .{0,120}(has been|is|been) (decommissioned|deprecated|retired|removed)"
        r"|access to (the )?model|try pulling it|no available channel",
        ModelNotFoundError,
        "the endpoint does not serve this model",
        "Check the model's name: the endpoint lists its models under /models.",
    ),
    Rule(  # OpenAI's words for models that reason
        "log-probabilities",
        "row",
        (403,),
        r"request logprobs",
        RequestRejectedError,
        "the endpoint rejects this form of request",
    ),
    Rule(
        "key",
        "run",
        _ANY,
        r"api.?key.{0,40}(not valid|invalid|incorrect|missing|required|expired|not found|provid)"
        r"|(invalid|incorrect|missing|no|expired).{0,12}api.?key|invalid_api_key|unauthori[sz]ed",
        AuthenticationError,
        "the endpoint refuses the key",
        "Check the key.",
    ),
    Rule(
        "key, by its status",
        "run",
        (401, 403, 407),
        "",
        AuthenticationError,
        "the endpoint refuses the key",
        "Check the key, and whether it may use this model.",
    ),
    Rule(
        "unsupported form",
        "form",
        (200, 400, 404, 405, 415, 422, 500, 501),
        r"response.?format|json.?(schema|object|mode)|structured.?output|guided|grammar|(response|specified).?schema"
        r"|tool|function.?call|max_(completion_)?tokens|temperature|\bseed\b|system.?(role|prompt|message)"
        r"|developer instruction"
        r"|role.{0,30}system|roles must alternate|requested parameters|additional.?properties",
        RequestRejectedError,
        "the endpoint rejects this form of request",
    ),
    Rule(
        "wrong path",
        "run",
        (404, 405, 410),
        "",
        ModelNotFoundError,
        "not found",
        "Check the model's name and the address (often ending in /v1).",
    ),
    Rule(
        "wrong path, said with a 200",
        "run",
        _CLIENT,
        r"unexpected endpoint|no route|invalid url|unknown (url|path|endpoint)|method not allowed",
        ModelNotFoundError,
        "not found",
        "Check the address (often ending in /v1).",
    ),
    Rule(
        "failed server, said as a bad request",
        "moment",
        (400, 422, 498),
        r"\bno healthy|model (has )?(crashed|unloaded)|no valid response|capacity exceeded"
        r"|upstream connect error|please retry|try again (later|shortly|soon)\b",
        TransportError,
        "the endpoint failed",
    ),
    Rule(
        "failed server",
        "moment",
        (200, 408, 409, 423, 424, 425, 499, *_SERVER),
        "",
        TransportError,
        "the endpoint failed",
    ),
    Rule("other", "unclear", _ANY, "", RequestRejectedError, "the endpoint rejects this request"),
)

_RULES = tuple((rule, re.compile(rule.words, re.DOTALL)) for rule in RULES)
_LONGEST_WORDS = 300  # characters that an error quotes
_LONGEST_WAIT = 100  # characters of a time
_LONGEST_READ = 2000  # characters that are searched: the time of some rules grows with their square
_LONGEST_MASKED = 100_000  # characters that are masked: a cut before could leave half of a secret


def status_error(
    status: int,
    headers: Mapping[str, str],
    text: str,
    secrets: Secrets,
    asked: Iterable[str] = (),
) -> ModelError:
    """Make the error for a refusal. It is returned, not raised.

    Args:
        status: the HTTP status; 200 for an error inside a reply.
        headers: of the answer.
        text: what `error_text` found in the body.
        secrets: masked in what the error quotes.
        asked: the texts of the request. What the refusal repeats of them says nothing about its reason.

    Returns:
        An error of the class that the first fitting rule names, with `fatal`, `retry_after` and the other
        attributes that workers heed.
    """
    if 300 <= status < 400:
        place = headers.get("Location") or headers.get("location") or ""
        return redirect_error(status, redact(place, secrets))
    text = " ".join(text.encode(errors="replace").decode().split())
    said = redact(text, secrets)[:_LONGEST_WORDS].strip(" .") or "the endpoint says no more"
    # Not the masked text: a header's words, such as a title, may be those that give the reason.
    lowered = html.unescape(text[:_LONGEST_READ].lower())
    own: Collection[tuple[str, ...]] = ()
    if asked and _is_told_by_words(status, _fitting(status, lowered)):
        own = _pieces_of(asked)
        lowered = _without_quotations(lowered, own)
    wait = retry_after(headers, lowered)
    number = f" ({status})" if status != 200 else ""
    may_have_run = status in _GATEWAY_LOST_IT
    says_when = any(name.lower().startswith("retry-after") for name in headers)
    if wait is not None and (status == 503 or (says_when and status >= 500 and not may_have_run)):
        status = 429
    rule = _fitting(status, lowered, own)
    facts = _facts(rule, status, lowered, wait, says_when=says_when)
    return rule.error(f"{rule.says}{number}: {said}.", hint=rule.hint, **facts)


def _facts(rule: Rule, status: int, words: str, wait: float | None, *, says_when: bool) -> Facts:
    """Return what the error for a refusal knows of it, beside its words.

    Args:
        rule: the rule that fits.
        status: see `status_error`.
        words: of the refusal, in lower case.
        wait: seconds; None: no time is named.
        says_when: whether a header of its own names the time: x-ratelimit-reset comes with any answer.
    """
    if rule.error is RateLimitError:
        return {"retry_after": wait, "loading": rule.name == "loading"}
    if rule.error is TransportError:
        return {
            "retry_after": wait if says_when else None,
            "unanswered": status in _GATEWAY_LOST_IT,
            "overloaded": status == 529 or _OVERLOADED.search(words) is not None,
        }
    if rule.scope == "form":
        return {"unsupported": _unsupported(words)}
    if rule.scope == "run":
        is_of_key = rule.error is AuthenticationError and rule.name not in _OF_CREDIT
        return {
            "fatal": True,
            "is_refusal": True,
            "is_doubtful": status not in _OF_ALL,
            "ran_nothing": is_of_key,  # credit may end while other calls run
        }
    return {}


def _fitting(status: int, lowered: str, own: Collection[tuple[str, ...]] = ()) -> Rule:
    """Return the first rule that fits; the last one if HTTP has no such status.

    Args:
        status: see `status_error`.
        lowered: the words of the refusal, in lower case.
        own: the words of the request, see `_pieces_of`.
    """
    fitting = (
        rule
        for rule, words in _RULES
        if status in rule.statuses
        and any(not _is_quoted(rule, found, own) for found in words.finditer(lowered))
    )
    return next(fitting, RULES[-1])


def _is_told_by_words(status: int, rule: Rule) -> bool:
    """Return whether a refusal concerns more than its row by its words, and not by its status.

    Only then it matters whether the words are the request's own, and to find that out takes time.
    """
    if rule.scope not in ("run", "moment", "form"):
        return False
    by_status = next(one for one in RULES if status in one.statuses and not one.words)
    return (rule.scope, rule.error) != (by_status.scope, by_status.error)


_WORD = re.compile(r"[a-z0-9_]+")
_ESCAPE = re.compile(r"\\{1,8}(?:u[0-9a-f]{4}|[nrtbf])")  # of a line break or a letter, in JSON
_LONGEST_ASKED = 20_000  # characters of a text: what is read of a refusal repeats no more
_QUOTED = 3  # words of a request in a row are a quotation


def _pieces_of(asked: Iterable[str]) -> set[tuple[str, ...]]:
    """Return the words of a request's texts: each one, and each two and three in a row."""
    pieces: set[tuple[str, ...]] = set()
    for text in asked:
        words = [word for word, _, _ in _words_in(text[:_LONGEST_ASKED])]
        for length in range(1, _QUOTED + 1):
            starts = range(len(words) - length + 1)
            pieces.update(tuple(words[start : start + length]) for start in starts)
    return pieces


def _without_quotations(refusal: str, own: Collection[tuple[str, ...]]) -> str:
    """Return a refusal, in lower case, without what it repeats of a request.

    Three words of the request in a row, or more, are a repetition. Servers that check requests repeat them. A
    row whose text says "insufficient_quota" would otherwise look like an account without quota, and end the
    run.
    """
    words = _words_in(refusal) if own else []
    quoted: set[int] = set()
    for start in range(len(words) - _QUOTED + 1):
        if tuple(word for word, _, _ in words[start : start + _QUOTED]) in own:
            quoted.update(range(start, start + _QUOTED))
    kept, end = [], 0
    for place, (_, word_start, word_end) in enumerate(words):
        if place in quoted:
            kept.append(refusal[end:word_start] if place - 1 not in quoted else " ")
            end = word_end
    return "".join([*kept, refusal[end:]])


def _is_quoted(rule: Rule, found: re.Match[str], own: Collection[tuple[str, ...]]) -> bool:
    """Return whether the words that a rule found may be the row's own, since the request has them, too.

    Such words neither end the run nor pause it, and other rules decide. What a refusal says of a field, such
    as "temperature", is believed all the same.
    """
    if rule.scope not in ("run", "moment") or not found[0]:
        return False
    text = found.string
    start, end = found.span()
    while start and _WORD.match(text[start - 1]):
        start -= 1
    while end < len(text) and _WORD.match(text[end]):
        end += 1
    words = tuple(word for word, _, _ in _words_in(text[start:end]))
    return words in own


def _words_in(text: str) -> list[tuple[str, int, int]]:
    """Return (word, start, end) of each word of a text, in lower case. Escapes of JSON are white space."""
    bare = _ESCAPE.sub(lambda found: " " * len(found[0]), text.lower())
    return [(found[0], *found.span()) for found in _WORD.finditer(bare)]


_OF_CREDIT = ("no credit", "payment required")  # names of rules
# A key, an account or an address is refused with these statuses. With others a firewall may refuse one row.
_OF_ALL = {401, 402, 404, 405, 407, 410}
# A server that has too much to do, and says so without a time to come back. PyTorch tells the total capacity
# of a GPU whose memory was too small.
_OVERLOADED = re.compile(
    r"overload|\bbusy\b|(?<!total )capacity|queue is full|high (demand|traffic|load)|slow down"
    r"|no (slot|instance)s? available|(temporarily|currently) unavailable"
)

# A gateway had no answer, or none in time: the model behind it may have run.
_GATEWAY_LOST_IT = {408, 499, 502, 504, 520, 524}

# What a refusal names, in the order in which it is looked for.
_UNSUPPORTED = (
    (
        "system role",
        r"system.?(role|prompt|message)|role.{0,30}system|roles must alternate|developer instruction",
    ),
    ("max_tokens", r"max_completion_tokens|max_tokens"),
    ("temperature", r"temperature"),
    ("seed", r"\bseed\b"),
    (
        "response_format",
        r"response.?format|json.?(schema|object|mode)|structured.?output|guided|grammar"
        r"|(response|specified).?schema|additional.?properties|tool|function.?call|requested parameters",
    ),
)


def _unsupported(words: str) -> str:
    """Return the field of the request that the endpoint does not take, by its words; "": they name none."""
    return next((name for name, pattern in _UNSUPPORTED if re.search(pattern, words)), "")


def embedded_status(reply: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return the status and the words of an error in a reply that came with 200; None: there is no error.

    The status is 200 if the error tells none. A prompt that Gemini blocked is an error, too.
    """
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    error = reply.get("error") or (choice.get("error") if isinstance(choice, dict) else None)
    said = error.values() if isinstance(error, dict) else [error]
    if choices and all(map(_says_nothing, said)):
        return None  # some gateways always write an error that says nothing
    if not error:
        if choices:
            return None
        if feedback := reply.get("prompt_feedback") or reply.get("promptFeedback"):
            return 200, json.dumps(feedback)  # Gemini blocked the prompt, and gives no candidate
        if choices is not None and "detail" not in reply:
            return None  # an empty list of choices: an empty reply
        if "choices" not in reply and isinstance(reply.get("message"), dict):
            return None  # a reply in Ollama's own protocol
        names = {name for name, value in reply.items() if value}
        if names & _OF_OTHER_PROTOCOLS and not names & _OF_AN_ERROR:
            return None  # a reply, but no chat completion
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, str) and re.fullmatch("[45][0-9]{2}", status):
        status = int(status)
    known = status if isinstance(status, int) and 400 <= status < 600 else 200
    return known, _words(error or reply, time.time())


def _says_nothing(value: Any) -> bool:
    """Return whether the value of a field in an error means that there is none."""
    return (value.lower() if isinstance(value, str) else value) in _NO_ERROR


_NO_ERROR: tuple[Any, ...] = (
    *(None, False, 0, 200, "", "0", "200", "ok", "success", "none", "null", [], {}),
)
# Of Anthropic, Gemini, OpenAI's responses and text generation servers.
_OF_OTHER_PROTOCOLS = frozenset(
    "content candidates output generated_text completion result".split()
)
_OF_AN_ERROR = frozenset("message detail msg code errors".split())


def error_text(content: bytes, headers: Mapping[str, str] | None = None) -> str:
    """Return what the body of an error says: its message, code and details; or its first 100,000 bytes.

    The `headers` of the answer tell the time by which the dates in it are meant.
    """
    text = content[:_LONGEST_MASKED].decode("utf-8", "replace")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return text
    if isinstance(found, list) and len(found) == 1:  # Gemini
        found = found[0]
    if not isinstance(found, dict):
        return text
    lower = {key.lower(): value for key, value in (headers or {}).items()}
    return _words(found.get("error") or found, _now(lower)) or text


def _words(error: Any, now: float) -> str:
    """Return the words of an error object, in whatever form the provider has it.

    `now` is the endpoint's time, in seconds since 1970.
    """
    if isinstance(error, str):
        return error
    if not isinstance(error, dict):
        return json.dumps(error, ensure_ascii=False)[:_LONGEST_MASKED]
    metadata = error.get("metadata")
    details: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    named = {**error, "detail": _validation(error.get("detail"))}
    parts = [
        named.get(name) for name in ("message", "detail", "msg", "error", "code", "type", "param")
    ]
    parts += [details.get("raw"), details.get("reasons"), details.get("provider_name")]
    parts += [error.get("status"), error.get("estimated_time") and "estimated_time"]
    parts += [_retry_delay(error.get("details")), _told_wait(error, now), _told_wait(details, now)]
    said = [part if isinstance(part, str) else json.dumps(part) for part in parts if part]
    return " ".join(dict.fromkeys(said)) or json.dumps(error, ensure_ascii=False)[:_LONGEST_MASKED]


def _validation(detail: Any) -> Any:
    """Return FastAPI's problems of a request without the values that they repeat; other details as given."""
    if not isinstance(detail, list) or not all(isinstance(one, dict) for one in detail):
        return detail
    names = ("type", "loc", "msg")
    return [{name: one[name] for name in names if name in one} or one for one in detail]


def _told_wait(fields: Mapping[str, Any], now: float) -> str | None:
    """Return in words what fields of an error say of the time to wait; None: they say nothing.

    OpenRouter repeats the provider's headers there.
    """
    for name in ("retry_after", "retryAfter", "retry_after_seconds"):
        wait = _wait(str(fields.get(name))[:_LONGEST_WAIT], now)
        if wait is not None:
            return f"retry in {wait:.1f}s"
    headers = fields.get("headers")
    if isinstance(headers, dict):
        shown = {name: str(value)[:_LONGEST_WAIT] for name, value in headers.items()}
        if (wait := retry_after(shown, now=now)) is not None:
            return f"retry in {wait:.1f}s"
    return None


def _retry_delay(details: Any) -> str | None:
    """Return Gemini's RetryInfo in words, such as "retry in 7s"; None: there is none."""
    for one in details if isinstance(details, list) else ():
        if isinstance(one, dict) and isinstance(one.get("retryDelay"), str):
            return f"retry in {one['retryDelay']}"
    return None


@contextmanager
def provider_errors(
    name: str, timeout: float, secrets: Secrets, **rules: Unpack[Rules]
) -> Iterator[Exchange]:
    """Call the openai SDK, or litellm, in this block, and raise their errors as those of this library.

    Yields what came over HTTP, which keeps the rules of `guarded_http`.

    Args:
        name: what messages call the endpoint.
        timeout: seconds, for the message of a call without an answer.
        secrets: masked in what the provider says, like those that the request carries.
        rules: those of `guarded_http`.

    Raises:
        ModelError: in the place of an error of these libraries. Other errors are raised as they are.
    """
    rules["hidden"] = secrets
    with guarded_http(**rules) as exchange:
        try:
            yield exchange
        except Exception as error:
            asked = rules.get("texts", ())
            found = library_error(name, timeout, error, exchange, secrets, asked)
            if found is None:
                raise
            raise found from None


def no_answer(name: str, timeout: float) -> TransportError:
    """Make the error for a request that was sent and not answered within `timeout` seconds."""
    late = f"{name} did not answer within {timeout:g} s."
    return TransportError(late, hint="Raise timeout=.", unanswered=True)


def library_error(
    name: str,
    timeout: float,
    error: Exception,
    exchange: Exchange,
    secrets: Secrets,
    asked: Iterable[str],
) -> ModelError | None:
    """Make our error for what litellm or the openai SDK raised; None: it is none of theirs.

    What came over HTTP decides. If nothing came, the class of their error counts: they also say a status of
    500 for a connection that broke, and for a reply that they cannot read.

    Args:
        name: what messages call the endpoint.
        timeout: seconds, for the message of a call without an answer.
        error: what was raised.
        exchange: what came over HTTP.
        secrets: masked in what the error quotes, like those that the request carries.
        asked: the texts of the request.
    """
    import openai

    if exchange.error is not None:
        return exchange.error
    secrets = secrets.with_texts(exchange.secrets)
    answer = exchange.answer
    if answer is not None and answer.status_code // 100 != 2:
        words = error_text(exchange.content, answer.headers)
        return status_error(answer.status_code, answer.headers, words, secrets, asked)
    if isinstance(error, openai.APITimeoutError):
        return no_answer(name, timeout)
    words = str(error).partition("Traceback (most recent call last)")[0]  # litellm adds its own
    broken = exchange.failed[1] if exchange.failed is not None and answer is None else None
    if broken is not None or isinstance(error, openai.APIConnectionError):
        words = redact(words, secrets)[:_LONGEST_WORDS]
        may_have_run = not _never_arrived(broken or error)
        return TransportError(f"the connection to {name} failed: {words}", unanswered=may_have_run)
    if not isinstance(error, openai.APIError):
        return None
    if answer is not None:
        return unreadable("the reply", error)
    status = getattr(error, "status_code", None) or 500
    return status_error(int(status), {}, words, secrets, asked)


_NOT_CONNECTED = {  # of httpx, aiohttp and Python, each raised before anything is sent
    *("ConnectError", "ConnectTimeout", "ClientConnectorError", "ClientConnectorDNSError"),
    *("ConnectionRefusedError", "gaierror", "ProxyError"),
}


def _never_arrived(error: BaseException | None) -> bool:
    """Return whether no connection was made. The SDKs name calls that broke off in the same words."""
    for _ in range(10):
        if error is None:
            return False
        if type(error).__name__ in _NOT_CONNECTED:
            return True
        error = error.__cause__ or error.__context__
    return False


_DURATION = re.compile(r"(?<!\d)(\d++(?:\.\d++)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS = "ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?"
_TIME = rf"(\d++(?:\.\d++)?) ?({_UNITS})(?![a-z])"
_TIME_IN_WORDS = re.compile(_TIME)
_WAIT_IN_WORDS = re.compile(
    rf"(?:(?:retry|try again|resets?) (?:in|after)|\bwait(?: for)?) (?:about )?((?:{_TIME} ?(?:and )?)+)"
)


def _wait_in_words(words: str) -> float | None:
    """Return the seconds to wait that a body tells ("Please try again in 7.66s", "in 2 minutes"), or None."""
    found = _WAIT_IN_WORDS.search(words)
    if found is None:
        return None
    times = _TIME_IN_WORDS.findall(found[1])
    return sum(
        float(n) * _SECONDS["ms" if unit.startswith(("ms", "milli")) else unit[0]]
        for n, unit in times
    )


def retry_after(
    headers: Mapping[str, str], words: str = "", *, now: float | None = None
) -> float | None:
    """Return the seconds to wait before a request is sent again; None: nothing says so.

    The first of these that is there counts, and None is returned if it cannot be read: the header
    retry-after-ms, the header Retry-After (seconds or a date), the words, the headers x-ratelimit-reset-* and
    others of such names (`_RESET`).

    Args:
        headers: of the answer.
        words: of its body, in lower case.
        now: the endpoint's time, in seconds since 1970; None: the headers tell it.
    """
    lower = {key.lower(): str(value).strip() for key, value in headers.items()}
    now = _now(lower) if now is None else now
    if "retry-after-ms" in lower:
        return _number(lower["retry-after-ms"], scale=0.001)
    if "retry-after" in lower:
        return _wait(lower["retry-after"], now)
    said = _wait_in_words(words)
    return _reset(lower, now) if said is None else said


def _now(headers: Mapping[str, str]) -> float:
    """Return the time by the endpoint's clock, by which it also sets dates; the names are in lower case."""
    return _date(headers.get("date", "")) or time.time()


_SOON = 60.0  # seconds
_RESET = re.compile("rate-?limit.*reset")  # also ratelimit-reset, anthropic-ratelimit-tokens-reset


def _reset(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds until the limit that refused a request is free again; None: no header tells.

    The limits of which nothing is left count, or else those that do not say what is left: the longest time of
    them. Of limits that have something left it is the shortest time, if it is short: the one of a day, which
    gateways name with every answer, has refused nothing.
    """
    resets: dict[str, list[float]] = {"0": [], "": [], "more": []}
    for key, value in headers.items():
        if _RESET.search(key) and (wait := _wait(value, now)) is not None:
            left = headers.get(key.replace("reset", "remaining", 1), "")
            resets[left if left in resets else "more"].append(wait)
    most = resets["0"] or resets[""]
    if most:
        return max(most)
    soonest = min(resets["more"], default=math.inf)
    return soonest if soonest <= _SOON else None


# What Python raises for a date with an impossible year or zone.
_NO_DATE = (ValueError, OverflowError, OSError, TypeError, LookupError)


def _wait(value: str, now: float) -> float | None:
    """Return the seconds to wait that a header tells: a number, a duration ("6m0s") or a date; else None.

    Args:
        value: of the header.
        now: seconds since 1970.
    """
    seconds = _number(value)
    if seconds is not None:
        if seconds > 1e11:  # some send the epoch in milliseconds, such as OpenRouter
            seconds /= 1000
        return max(0.0, seconds - now) if seconds > 1e8 else seconds  # some send it in seconds
    parts = _DURATION.findall(value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if (said := _wait_in_words(f"wait {value.lower()}")) is not None:  # "30 seconds"
        return said
    date = _date(value)
    return None if date is None else max(0.0, date - now)


def _date(value: str) -> float | None:
    """Return the seconds since 1970 of a date of HTTP, or of ISO 8601 in UTC; None: the text is no date."""
    with suppress(*_NO_DATE):
        return parsedate_to_datetime(value).timestamp()
    with suppress(*_NO_DATE):
        date = datetime.fromisoformat(value)
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    return None


def _number(value: str, scale: float = 1.0) -> float | None:
    return float(value) * scale if re.fullmatch(r"\d+(\.\d+)?|\.\d+", value) else None


_KEY = re.compile(rf"\b{KEY_START.pattern}|(?<=Bearer )\S+")


def redact(text: str, secrets: Secrets) -> str:
    """Mask `secrets` in a text, and what looks like a key: endpoints repeat them in their errors."""
    return _KEY.sub("[key]", secrets.mask(text))
