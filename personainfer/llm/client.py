"""`LLM`: a language model and how to call it. Messages in, a record or text out, many at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, Unpack

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue, Strict
from pydantic_core import to_json

from ..api_keys import Stored, hide_key, show_key, shown_address
from ..arguments import (
    ApiBase,
    ApiKey,
    Count,
    Flag,
    Headers,
    PositiveNumber,
    Wanted,
    WholeNumber,
    check_argument,
    options_of,
    takes_options,
)
from ..connections import most_connections
from ..event_loop import renew_in_forks
from ..exceptions import InvalidArgumentError, quoted, shown_when_made
from ..local.cache import ReplyCache, default_cache_dir
from ..local.weights import find_weights, whole_name
from ..preferences.cells import surrogate_problem
from ..records import Message, Usage
from .litellm_transport import LiteLLMTransport
from .llamacpp import EmbeddedTransport
from .pricing import Budget, Price, ReplySize, Tally, find_batch_price, find_price
from .rate_limits import Account, Bounds
from .requests import Form, Job, Reply, Request, Run
from .transports import EndpointTransport, Transport
from .workers import CallSettings, Workers

T = TypeVar("T")

_FORMS_KEPT = 64
_OWN_FIELDS = frozenset(
    "model messages temperature max_tokens max_completion_tokens seed n stream response_format"
    " reasoning_effort extra_query extra_headers api_base base_url api_key timeout"
    " allowed_openai_params".split()
)
_OPENAI_PREFIXES = ("openai/", "hosted_vllm/")  # litellm's names for "speaks the OpenAI protocol"


def _check_prices(prices: Any) -> Any:
    if prices is None:
        return None
    try:
        prompt, completion = map(float, prices)
    except (TypeError, OverflowError) as error:  # which pydantic would let through
        raise ValueError from error
    if not (0 <= prompt < inf and 0 <= completion < inf):  # NaN would pass any budget
        raise ValueError
    return prompt, completion


def _check_extra_body(body: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
    inner = (body or {}).get(
        "extra_body"
    )  # a field of Google's endpoint; litellm sends what is in it
    for name in _OWN_FIELDS.intersection(
        (*(body or ()), *(inner if isinstance(inner, dict) else ()))
    ):
        raise InvalidArgumentError(
            f"extra_body={{{name!r}: …}}: this field is not free.",
            hint="temperature=, max_tokens=, api_base= and some others are options of their own; the library"
            " sets the rest.",
        )
    to_json(body)  # ValueError: half of a surrogate pair
    return body


def _check_model(model: str) -> str:
    if not model.encode().strip():  # UnicodeEncodeError is a ValueError
        raise ValueError
    return model


ModelName = Annotated[str, AfterValidator(_check_model), Wanted("must be the name of a model.")]
JsonObject = dict[str, JsonValue]


class LLMOptions(TypedDict, total=False):
    """How a model is called: the options of `LLM`, and of every function that takes a model's name."""

    api_base: Annotated[
        ApiBase | None,
        Field(
            default=None,
            description="The address of an OpenAI-compatible endpoint, usually ending in /v1.",
        ),
    ]
    api_key: Annotated[
        ApiKey | None,
        Field(default=None, description="The key. Default: the provider's environment variable."),
    ]
    temperature: Annotated[
        Annotated[float, Strict(), Field(ge=0, le=2), Wanted("must be between 0 and 2.")] | None,
        Field(default=0.0, description="0 for the likeliest reply; None: the endpoint's default."),
    ]
    max_tokens: Annotated[
        Count,
        Field(
            default=500, description="The most tokens of a reply; one that is cut off is an error."
        ),
    ]
    seed: Annotated[
        WholeNumber | None,
        Field(default=None, description="Sent to endpoints that take one; sample n gets seed + n."),
    ]
    reasoning_effort: Annotated[
        Annotated[str, Strict(), Field(pattern=r"^[a-z]+$"), Wanted('must be a word, as "low".')]
        | None,
        Field(
            default=None,
            description='How much a model reasons, as its endpoint names it: "low", "high".',
        ),
    ]
    extra_headers: Annotated[
        Headers | None,
        Field(default=None, description="More headers of each request; kept as secret as the key."),
    ]
    extra_body: Annotated[
        JsonObject | None,
        AfterValidator(_check_extra_body),
        Wanted("must be a dict that JSON can hold."),
        Field(default=None, description='More fields of each request, such as {"top_k": 20}.'),
    ]
    max_concurrency: Annotated[
        Count | None,
        Field(default=None, description="The most calls in flight. Default: 64."),
    ]
    rpm: Annotated[
        PositiveNumber | None, Field(default=None, description="The most requests in any minute.")
    ]
    tpm: Annotated[
        PositiveNumber | None, Field(default=None, description="The most tokens in any minute.")
    ]
    timeout: Annotated[
        PositiveNumber | None,
        Field(default=None, description="Seconds for one call. Default: 60; the local model: 600."),
    ]
    max_attempts: Annotated[
        Count,
        Field(
            default=5,
            description="The most calls for one request. Refusals for going too fast do not count.",
        ),
    ]
    patience: Annotated[
        PositiveNumber,
        Field(
            default=300.0,
            description="Seconds: an endpoint that asks to wait longer than this is given up.",
        ),
    ]
    budget: Annotated[
        PositiveNumber | None,
        Field(default=None, description="USD: a call that could exceed it is not made."),
    ]
    prices: Annotated[
        tuple[float, float] | None,
        BeforeValidator(_check_prices),
        Wanted("must be two numbers: USD a million prompt and completion tokens."),
        Field(
            default=None,
            description="USD a million prompt and completion tokens. Default: litellm's price list.",
        ),
    ]
    cache: Annotated[
        Flag, Field(default=True, description="Keep replies on disk, and read them from there.")
    ]
    cache_dir: Annotated[
        str | Path | None,
        Wanted("must be a path."),
        Field(
            default=None,
            description="Where replies are kept. Default: $PERSONAINFER_CACHE_DIR, else the user's cache.",
        ),
    ]


_OPTIONS = options_of(LLMOptions)
OPTIONS = frozenset(_OPTIONS.each)


@takes_options(LLMOptions)
class LLM:
    """A model and how to call it. Arguments are checked here, before any call.

    Args:
        model: a litellm model string ("openai/gpt-4o-mini", "anthropic/…"); "local", "local:NAME" or
            "local:/path/model.gguf" for a model on this machine; with `api_base`, the name that the
            endpoint knows ("openai/" before it is sent only where the endpoint refuses the rest).
            None: $PERSONAINFER_MODEL, else "local".
        options: see below.

    Raises:
        InvalidArgumentError: a value that cannot work.
        MissingExtraError: the model needs a package that is not installed.
        AuthenticationError: the provider's key is not set.
    """

    def __init__(self, model: str | None = None, **options: Unpack[LLMOptions]) -> None:
        self.model = named_model(model)
        chosen = _OPTIONS.check(options)
        self._options = _with_whole_paths({"model": self.model, **chosen})
        self.usage = Usage()
        self.transport = _transport(
            self.model.strip(), chosen["api_base"], chosen["api_key"], chosen["extra_headers"]
        )
        local = isinstance(self.transport, EmbeddedTransport)
        self._sampling = {name: chosen[name] for name in ("temperature", "max_tokens", "seed")}
        if chosen["temperature"] is not None:  # 0, 0.0 and -0.0 are one request
            self._sampling["temperature"] = chosen["temperature"] + 0.0
        if chosen["reasoning_effort"] is not None:
            self._sampling["reasoning_effort"] = chosen["reasoning_effort"]
        self.max_concurrency: int = chosen["max_concurrency"] or 64
        size = ReplySize.of(chosen["extra_body"] or {})
        if not size.is_told:  # another model's budget may pay
            self.transport.send_one_first()
        self._call_settings = CallSettings(
            timeout=chosen["timeout"] or (600.0 if local else 60.0),
            max_attempts=chosen["max_attempts"],
            max_tokens=chosen["max_tokens"],
            size=size,
            max_concurrency=self.max_concurrency,
            model=self.model,
        )
        self.price = (
            Price(0.0, 0.0)
            if local
            else find_price(self.model, chosen["prices"], chosen["extra_body"])
        )
        self.account = Account(
            # What waits for a connection would use up its time to answer.
            max_concurrency=min(self.max_concurrency, most_connections() or self.max_concurrency),
            rpm=chosen["rpm"],
            tpm=chosen["tpm"],
            rounds=2 * chosen["max_attempts"],
            patience=chosen["patience"],
            budget=_budget(chosen["budget"], self.price, self.model, chosen["extra_body"]),
            keeps_beyond=not size.is_told,
        )
        self.cache: ReplyCache | None = None
        if chosen["cache"]:
            self.cache = ReplyCache(self._options["cache_dir"] or default_cache_dir())
        self._forms: dict[tuple[Any, ...], Form] = {}
        self._counting = threading.Lock()
        renew_in_forks(self)

    @property
    def samples(self) -> bool:
        """Whether one request can have several different replies."""
        return bool(self._sampling["temperature"] != 0)

    @property
    def batch_price(self) -> Price | None:
        """The price of a token in a batch; None: it is not known."""
        return find_batch_price(self.model, self._options["prices"], self._options["extra_body"])

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the replies, as it may be written down: never the key."""
        base = self._options["api_base"]
        extra = self._options["extra_body"]
        more = {"extra_body": extra} if extra else {}
        return {
            "model": self.model,
            "api_base": base and shown_address(base),
            **self._sampling,
            **more,
            **self.transport.notes,
        }

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make this LLM again, but for its key and headers."""
        secret = ("api_key", "extra_headers")
        return {name: value for name, value in self._options.items() if name not in secret}

    @shown_when_made
    def __repr__(self) -> str:
        base = self._options["api_base"]
        return f"LLM({self.model!r}{f', api_base={shown_address(base)!r}' if base else ''})"

    def __getstate__(self) -> dict[str, Any]:
        # For fingerprints: a path may lead to another model by now, and a name to another address.
        return {**hide_key(self._options), "reached": self.reached, "named": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shown = show_key(state)
        named = shown.pop("named", shown["model"])
        shown.pop("reached", None)
        self.__init__(**shown)  # type: ignore[misc]
        self.model = named
        self._call_settings = replace(self._call_settings, model=named)

    @property
    def reached(self) -> tuple[str, str]:
        """What chooses the model besides its name, as in the key of a reply: address or weights, route."""
        return self.transport.endpoint, self.transport.route

    def is_called_as(self, other: LLM) -> bool:
        """Whether both are called at one address with one key, and so share what it allows in a minute."""
        one, two = (
            (type(llm.transport), llm.transport.endpoint.lower(), llm.transport.key, llm._headers)
            for llm in (self, other)
        )
        return one == two

    @property
    def _headers(self) -> dict[str, str]:
        return self._options["extra_headers"] or {}

    def ask(
        self, messages: Sequence[Message | Mapping[str, str]], schema: type[BaseModel] | None = None
    ) -> Reply:
        """Ask once. `Reply.value` is an instance of `schema`, or the text where there is none.

        Raises:
            ModelError: there is no usable reply.
        """
        reply = self.ask_many([Request(_messages(messages), schema)])[0]
        if reply.error is not None:
            raise reply.error
        return reply

    def ask_many(self, requests: Iterable[Request | tuple[Any, ...]]) -> list[Reply]:
        """The replies to many requests, in order; one that failed has `error` set.

        A request is a `Request` or a tuple (messages, schema).

        Raises:
            InvalidArgumentError: something else, or a text that UTF-8 cannot hold; nothing was sent.
            ModelError: only for what would fail every request (key, model, cache).
        """
        checked = [(None, [_request(number, one)]) for number, one in enumerate(requests)]
        return [replies[0] for _, replies in self.run(checked)]

    def run(
        self, items: Iterable[tuple[T, Sequence[Request]]], *, within: Bounds | None = None
    ) -> Run[T]:
        """Stream: for each (item, requests) yields (item, replies), in order, in bounded memory.

        `within` bounds the calls; None: the budget and the limits a minute of this model.
        """
        self.account.begin()
        tally = Tally(self.price)
        return Run(
            self.jobs(items),
            Workers(
                self.transport,
                self.account,
                within or self.account.bounds,
                self.cache,
                self._call_settings,
                tally,
            ),
            cache=self.cache,
            tally=tally,
            model=self.model,
            width=self.max_concurrency,
            ended=self.add_usage,
        )

    def most_tokens(self) -> int:
        """The most tokens of the reply to a request, as far as its options tell."""
        settings = self._call_settings
        asked = settings.size.most(self.transport.most_tokens(settings.max_tokens))
        return asked + self.account.beyond

    def __copy__(self) -> LLM:
        made = LLM.__new__(type(self))
        made.__setstate__(self.__getstate__())
        made.account = self.account
        return made

    def __deepcopy__(self, memo: object) -> LLM:
        return self.__copy__()

    def renew_in_fork(self) -> None:
        """Replace the lock, which another thread of the parent process may have held."""
        self._counting = threading.Lock()

    def jobs(self, items: Iterable[tuple[T, Sequence[Request]]]) -> Iterator[tuple[T, list[Job]]]:
        """Each item with its requests as this model is sent them."""
        return ((item, [self.job(request) for request in requests]) for item, requests in items)

    def add_usage(self, usage: Usage) -> None:
        """Count what a run took."""
        with self._counting:  # runs of several threads may end at once
            self.usage += usage

    def job(self, request: Request) -> Job:
        """The request as this model is sent it: its key in the cache, and its bytes."""
        return self._form(request).job(request.messages)

    def _form(self, request: Request) -> Form:
        # By identity: hashing the messages of the prefix for every row would cost more than the rest.
        told = (request.schema, request.sample, request.logprobs, request.doubt)
        name = (id(request.prefix), *told)
        form = self._forms.get(name)
        if form is None or form.prefix is not request.prefix:
            fields = {**self._sampling, **(self._options["extra_body"] or {})}
            if len(self._forms) >= _FORMS_KEPT:  # each call of infer_personas makes its own prefix
                self._forms.clear()
            form = self._forms[name] = Form(self.transport, request, fields)
        return form


def _with_whole_paths(options: dict[str, Any]) -> dict[str, Any]:
    """The options of an LLM, which may be pickled, and read where the process is in another folder."""
    model, folder = options["model"], options["cache_dir"]
    whole = whole_name(model.strip()) if model.strip().startswith("local:") else model
    if folder:
        with suppress(OSError, RuntimeError, ValueError):  # the cache refuses it, if there is one
            folder = Path(folder).expanduser().absolute()
    return {**options, "model": whole, "cache_dir": folder or None}


def named_model(model: str | None) -> str:
    """The given name of a model; for None, that in $PERSONAINFER_MODEL, or "local".

    Raises:
        InvalidArgumentError: a name of a model cannot be so.
    """
    name = os.environ.get("PERSONAINFER_MODEL") or "local" if model is None else model
    check_argument("model", name, ModelName)
    return name


def _request(number: int, request: Request | tuple[Any, ...]) -> Request:
    if isinstance(request, tuple) and not isinstance(request, Request) and 1 <= len(request) <= 2:
        request = Request(_messages(request[0]), *request[1:])
    if not isinstance(request, Request):
        raise InvalidArgumentError(
            f"a request is a Request or (messages, schema), not {quoted(request, 80)}."
        )
    for message in request.messages:
        try:
            message.content.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(
                f"requests[{number}]: {surrogate_problem('a message')}"
            ) from None
    return request


def _messages(messages: Sequence[Message | Mapping[str, str]]) -> tuple[Message, ...]:
    if isinstance(messages, str) or not messages:
        raise InvalidArgumentError("messages is a non-empty sequence of Message or dicts.")
    return tuple(m if isinstance(m, Message) else Message.model_validate(m) for m in messages)


def _transport(
    model: str, api_base: str | None, api_key: str | None, headers: Mapping[str, str] | None
) -> Transport:
    if model == "local" or model.startswith("local:"):
        if api_base is not None:
            raise InvalidArgumentError(
                f"api_base={api_base!r}, but no model= that it serves.",
                hint=f"Name the model; {model!r} runs on this machine.",
                argument="api_base",
            )
        return EmbeddedTransport(find_weights(model))
    if model.startswith("litellm/"):
        return LiteLLMTransport(model.removeprefix("litellm/"), api_base, api_key, headers=headers)
    if api_base is None:
        return LiteLLMTransport(model, None, api_key, headers=headers)
    full_name = model
    for prefix in _OPENAI_PREFIXES:
        model = model.removeprefix(prefix)
    if not model:
        raise InvalidArgumentError("model= names a provider, but no model.", argument="model")
    return EndpointTransport(model, api_base, api_key, headers=headers, full_name=full_name)


def _budget(
    usd: float | None, price: Price | None, model: str, fields: Mapping[str, Any] | None
) -> Budget | None:
    if usd is None:
        return None
    if price is None:
        more = f" with extra_body={quoted(fields)}" if fields else ""
        raise InvalidArgumentError(
            f"budget={usd:g}, but the price of {model!r}{more} is not known.",
            hint="Give prices=(USD a million prompt tokens, USD a million completion tokens).",
            argument="budget",
        )
    return Budget(usd)


# What makes a request what it is: all that a file may decide of how a model is called.
_OF_A_REQUEST = ("temperature", "max_tokens", "seed", "reasoning_effort", "extra_body")
MOST_CANDIDATES = 8
# The most that a file may ask for without the caller's word.
_MOST_OF_A_FILE = {
    "max_tokens": _OPTIONS.defaults["max_tokens"],
    "reasoning_effort": None,
    "extra_body": {},
    "candidates": MOST_CANDIDATES,
}


def stored_options(
    stored: Mapping[str, Any], given: Mapping[str, Any], place: object, *, calls: bool = True
) -> dict[str, Any]:
    """What a table or a batch says of the requests that it was made with; no limits, prices or addresses.

    Args:
        stored: its options, marked as `Stored` where a file says them.
        given: those that the caller names.
        place: the file, as the error names it.
        calls: whether calls are made with them.

    Raises:
        InvalidArgumentError: a file would make calls cost more than the caller said.
    """
    for name, most in _MOST_OF_A_FILE.items() if calls else ():
        value = stored.get(name)
        is_less = isinstance(value, int) and isinstance(most, int) and value <= most
        is_said = name in given or not isinstance(value, Stored)
        if not (is_said or value == most or is_less):
            raise InvalidArgumentError(
                f"{place} was made with {name}={value!r:.200}.",
                hint="Whoever wrote the file would decide what you pay for, and may have put other models or"
                f" tools in it: give {name}= again{' ({}: none)' if most == {} else ''}.",
                argument=name,
            )
    return {name: stored[name] for name in _OF_A_REQUEST if name in stored}


def make_llm(model: str | LLM | None, options: Mapping[str, Any]) -> LLM:
    """The LLM that was given, or the one that a model string and options configure."""
    if not isinstance(model, LLM):
        return LLM(model, **options)
    if options:
        raise InvalidArgumentError(
            f"{', '.join(sorted(options))}: the LLM that was given as model= has its own options.",
            hint="Pass them to LLM(...) instead.",
        )
    return model
