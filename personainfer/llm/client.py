"""`LLM`: a language model and how to call it. Many requests in, their replies out, in the same order."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, Unpack

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    Strict,
    ValidationError,
)
from pydantic_core import to_json

from ..api_keys import Stored, environment_key, hide_key, show_key, shown_address
from ..arguments import (
    ApiBase,
    ApiKey,
    Count,
    CountFromZero,
    Finite,
    Flag,
    Headers,
    PositiveNumber,
    Seconds,
    Text,
    Wanted,
    WholeNumber,
    check_argument,
    options_of,
    own_copy,
    takes_options,
)
from ..connections import most_connections
from ..event_loop import renew_in_forks
from ..exceptions import InvalidArgumentError, ModelError, quoted, shown_when_made, visible
from ..local.cache import ReplyCache, default_cache_dir
from ..local.weights import find_weights, whole_name
from ..observability import log
from ..preferences.cells import surrogate_problem
from ..records import Message, Usage
from .litellm_transport import LiteLLMTransport
from .pricing import Budget, Price, ReplySize, Tally, find_batch_price, find_price
from .rate_limits import Account, Bounds
from .requests import Form, Job, Reply, Request, Run
from .transports import EmbeddedTransport, EndpointTransport, Transport, root_of
from .workers import CallSettings, Workers

T = TypeVar("T")

_FORMS_KEPT = 64
_LEAST_PRICE = 1e-3  # USD a million tokens: nobody sells them for less, nor one for more
_OWN_FIELDS = frozenset(
    "model messages temperature max_tokens max_completion_tokens seed n stream response_format"
    " reasoning_effort extra_query extra_headers api_base base_url api_key timeout"
    " allowed_openai_params".split()
)
_OPENAI_PREFIXES = ("openai/", "hosted_vllm/")  # litellm's names for "speaks the OpenAI protocol"


def _check_prices(prices: Any) -> Any:
    if prices is None:
        return None
    # An iterator gives its numbers once, a set in any order, and "12" would be 1 and 2.
    if isinstance(prices, Iterator | str | bytes | Mapping | Set):
        raise ValueError
    try:
        prompt, completion = map(float, prices)
    except (TypeError, OverflowError) as error:  # pydantic would let these through
        raise ValueError from error
    if not (0 <= prompt < inf and 0 <= completion < inf):  # NaN would pass any budget
        raise ValueError
    if 0 < max(prompt, completion) < _LEAST_PRICE:  # no budget would ever be spent
        raise InvalidArgumentError(
            f"prices={prompt:g}, {completion:g} are those of a single token, as litellm's list has them.",
            hint="Give USD a million tokens, such as prices=(0.15, 0.6).",
            argument="prices",
        )
    return prompt, completion


def _check_extra_body(body: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
    inner = (body or {}).get("extra_body")  # of Google's endpoint; litellm sends what is in it
    named = (*(body or ()), *(inner if isinstance(inner, dict) else ()))
    for name in _OWN_FIELDS.intersection(named):
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


ModelName = Annotated[Text, AfterValidator(_check_model), Wanted("must be the name of a model.")]
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
        Annotated[Finite, Field(ge=0, le=2), Wanted("must be between 0 and 2.")] | None,
        Field(default=0.0, description="0 for the likeliest reply; None: the endpoint's default."),
    ]
    max_tokens: Annotated[
        Count,
        Field(
            default=500,
            description="The most tokens of a reply; 8 times as many if it reasons, twice after one is cut"
            " off.",
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
        Seconds | None,
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
        Seconds,
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
        BeforeValidator(lambda path: object() if isinstance(path, bytes) else path),
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
    """A language model, and how to call it. The constructor checks the arguments, and makes no call.

    It may download the file of a local model from the Hugging Face hub. Copies and forks share the limits and
    the budget of an LLM.

    Args:
        model: a litellm model string ("openai/gpt-4o-mini", "anthropic/…"); "local", "local:NAME" or
            "local:/path/model.gguf" for a model on this machine; with `api_base`, the name that the
            endpoint knows (an "openai/" before it is sent only if the endpoint refuses the name without it).
            None: $PERSONAINFER_MODEL, else "local".
        options: see below.

    Attributes:
        model: the name, as it was given.
        usage: the calls, tokens and USD of all runs that have ended.
        price: of a token, in USD; None: it is not known, and neither is the cost in `usage`.
        cache: where replies are kept; None: with `cache=False`.
        max_concurrency: the most calls in flight.

    Raises:
        InvalidArgumentError: a value that cannot work, or a model of no provider that litellm knows.
        MissingExtraError: the model needs a package that is not installed.
        ModelNotFoundError: the file of a local model cannot be read, or the hub does not give it.
        AuthenticationError: the key in the environment cannot be sent. (The first call raises it for a key
            that is missing.)
        ModelError: litellm cannot find out where the model is.
        CacheError: the cache directory cannot be used.
    """

    def __init__(self, model: str | None = None, **options: Unpack[LLMOptions]) -> None:
        self.model = named_model(model)
        chosen = _OPTIONS.check(options)
        chosen["prices"] = _check_prices(chosen["prices"])  # as floats of Python, also if of NumPy
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
        size = ReplySize.of(self._fields_of_size(chosen), chosen["max_tokens"])
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
            else find_price(self.model, chosen["prices"], chosen["extra_body"], self._place)
        )
        # A request that waits for a connection would use up its time to answer.
        connections = most_connections()
        self.account = Account(
            max_concurrency=min(self.max_concurrency, connections or self.max_concurrency),
            connections=connections,
            rpm=chosen["rpm"],
            tpm=chosen["tpm"],
            rounds=2 * chosen["max_attempts"],
            patience=chosen["patience"],
            budget=self._budget(chosen["budget"]),
            keeps_beyond=not size.is_told,
        )
        self.cache: ReplyCache | None = None
        if chosen["cache"]:
            self.cache = ReplyCache(self._options["cache_dir"] or default_cache_dir())
        self._forms: dict[tuple[int, tuple[Any, ...]], Form] = {}
        self._counting = threading.Lock()
        self._here = threading.local()
        renew_in_forks(self)

    def _fields_of_size(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the fields of requests, beside `max_tokens`, that say how long replies may become."""
        fields = chosen["extra_body"] or {}
        effort = chosen["reasoning_effort"]
        if effort in (None, "none") or self.transport.limits_thinking:
            return fields
        return {**fields, "reasoning_effort": effort}

    def _budget(self, usd: float | None) -> Budget | None:
        if usd is None:
            return None
        if not self.is_priced:
            fields = self._options["extra_body"]
            more = f" with extra_body={quoted(fields)}" if fields else ""
            raise InvalidArgumentError(
                f"budget={usd:g}, but the price of {self.model!r}{more} is not known.",
                hint="Give prices=(USD a million prompt tokens, USD a million completion tokens), or (0, 0)"
                " if it is free.",
                argument="budget",
            )
        return Budget(usd)

    @property
    def is_priced(self) -> bool:
        """Whether a budget can count what calls cost.

        A price of 0 in litellm's list may stand for one that nobody has entered: your own `prices` tell it.
        """
        is_told = isinstance(self.transport, EmbeddedTransport) or self._options["prices"]
        return self.price is not None and bool(is_told or self.price.most(1, 1))

    @property
    def usage_here(self) -> Usage:
        """The part of `usage` that is of runs which ended in this thread."""
        usage: Usage = getattr(self._here, "usage", Usage())
        return usage

    @property
    def samples(self) -> bool:
        """Whether one request can have several different replies: the temperature is not 0."""
        return bool(self._sampling["temperature"] != 0)

    @property
    def batch_price(self) -> Price | None:
        """The price of a token in a provider's batch, in USD; None: it is not known."""
        options = self._options
        return find_batch_price(self.model, options["prices"], options["extra_body"], self._place)

    @property
    def _place(self) -> str:
        """Where the model is called, as `find_price` reads it."""
        places = getattr(self.transport, "places", ())
        located = [text for name, text in places if "LOCATION" in name.upper()]
        return " ".join([self.transport.endpoint, *located])

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the replies, as it is written into tables, without the key and the headers.

        It has the model, the address, the sampling options, `extra_body`, and what was learned about the
        endpoint.
        """
        base = self._options["api_base"]
        extra = self._options["extra_body"]
        more = {"extra_body": own_copy(extra)} if extra else {}
        notes = self.transport.notes
        if lost := self._lost_options():
            notes["left_out"] = sorted({*notes.get("left_out", ()), *lost})
        return {
            "model": self.model,
            "api_base": base and shown_address(base),
            **self._sampling,
            **more,
            **notes,
        }

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make this LLM again, "model" among them, but for its key and headers."""
        secret = ("api_key", "extra_headers")
        return {n: own_copy(value) for n, value in self._options.items() if n not in secret}

    @shown_when_made
    def __repr__(self) -> str:
        base = self._options["api_base"]
        return f"LLM({self.model!r}{f', api_base={shown_address(base)!r}' if base else ''})"

    def __getstate__(self) -> dict[str, Any]:
        # For fingerprints, and for the next process: a path may lead to another model by now, and a name to
        # another address.
        return {**hide_key(self._options), "reached": self.reached, "named": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        shown = show_key(state)
        named = shown.pop("named", shown["model"])
        reached = shown.pop("reached", None)
        self.__init__(**shown)  # type: ignore[misc]
        if reached and isinstance(self.transport, LiteLLMTransport):
            self.transport.stay_at(*reached)
        self.model = named
        self._call_settings = replace(self._call_settings, model=named)

    @property
    def reached(self) -> tuple[str, str]:
        """What chooses the model besides its name, as in the key of a reply: (address or weights, route).

        The address is shown without secrets. The route is a digest of the fields of the address and the
        headers that choose a model and are not shown; "": there are none.
        """
        return self.transport.endpoint, self.transport.route

    def check_is_at(self, reached: tuple[str, str]) -> None:
        """Raise ModelError if litellm calls this model elsewhere than there: see `reached`."""
        if isinstance(self.transport, LiteLLMTransport) and self.reached != reached:
            raise self.transport.moved()

    def is_called_as(self, other: LLM) -> bool:
        """Return whether both call one address with one key and the same headers, and so share its limits."""
        return self._caller == other._caller

    @property
    def _caller(self) -> tuple[object, ...]:
        """Who calls where. An address that was given is one, by whatever way and provider it is called."""
        transport, base = self.transport, self._options["api_base"]
        if base is None:
            return type(transport), transport.endpoint.lower(), transport.key, self._headers
        key = transport.key or environment_key(base)
        return shown_address(root_of(base)).lower(), key, self._headers

    @property
    def _headers(self) -> dict[str, str]:
        return self._options["extra_headers"] or {}

    def ask(
        self, messages: Sequence[Message | Mapping[str, str]], schema: type[BaseModel] | None = None
    ) -> Reply:
        """Send one request, and wait for its reply. A reply in the cache is not asked for again.

        Args:
            messages: the turns of the conversation, at least one. A dict has the texts "role" and "content".
            schema: the pydantic model that the reply must fit; None: plain text.

        Returns:
            The reply. Its `value` is an instance of `schema`, or the text if there is none.

        Raises:
            InvalidArgumentError: `messages` or `schema` is something else, or a text that UTF-8 cannot hold.
            ModelError: there is no usable reply.
            CacheError: the cache fails.
        """
        reply = self.ask_many([Request(_messages(messages), schema)])[0]
        if reply.error is not None:
            raise reply.error
        return reply

    def ask_many(self, requests: Iterable[Request | tuple[Any, ...]]) -> list[Reply]:
        """Send many requests, and wait for all replies. Replies in the cache are not asked for again.

        Args:
            requests: each is a `Request` or a tuple (messages, schema), as the arguments of `ask`. All are
                read before any is sent.

        Returns:
            The replies, in the order of the requests. One that failed has `error` set.

        Raises:
            InvalidArgumentError: a request is something else, or a text that UTF-8 cannot hold. Nothing is
                sent.
            ModelError: every request would fail (the key, the model, the endpoint).
            CacheError: the cache fails.
        """
        if isinstance(requests, str) or not isinstance(requests, Iterable):
            raise InvalidArgumentError(
                f"requests={quoted(requests, 80)} is not a list of requests.", argument="requests"
            )
        checked = [(None, [_request(number, one)]) for number, one in enumerate(requests)]
        return [replies[0] for _, replies in self.run(checked)]

    def run(
        self, items: Iterable[tuple[T, Sequence[Request]]], *, within: Bounds | None = None
    ) -> Run[T]:
        """Return a stream of (item, replies to its requests), in the order of the items, in bounded memory.

        Items are read, and requests sent, as the stream is iterated. Iterate it to its end, or close it.

        Args:
            items: each item with its requests. They are read some way ahead of what is yielded.
            within: limits the calls; None: the budget and the limits a minute of this model.

        Returns:
            The stream; see `Run` for the errors of its iteration.
        """
        bounds = within or self.account.bounds
        is_doubtful = self.account.begin() or not self.most_is_known
        if is_doubtful and bounds.budget is not None:  # its own, or that of another model
            self.transport.send_one_first()
        tally = Tally(self.price)
        return Run(
            self.jobs(items),
            Workers(
                self.transport,
                self.account,
                bounds,
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
        """Return the most tokens that the reply to a request may take, with its reasoning.

        It follows from the options. If a reply has taken more, the number has grown by the difference.
        """
        settings = self._call_settings
        asked = settings.size.most(self.transport.dialect.most_tokens(settings.max_tokens))
        return asked + self.account.beyond

    @property
    def most_is_known(self) -> bool:
        """Whether `most_tokens` says the most that a reply can take.

        Requests that ask for thinking, or have fields that may ask for longer replies, do not tell. A first
        reply does.
        """
        return self._call_settings.size.is_told or self.account.has_run

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
        """Yield each item with its requests, written as this model is sent them.

        A request that cannot be encoded has an error as its reply: it costs its item and no other.
        """
        return ((item, list(map(self._job_or_error, requests))) for item, requests in items)

    def _job_or_error(self, request: Request) -> Job:
        form = self._form(request)
        try:
            return form.job(request.messages)
        except ModelError as error:
            return Job(b"", form, b"", Reply(error=error))

    def add_usage(self, usage: Usage) -> None:
        """Add what a run took to `usage`. Warn of options that its requests have left out."""
        with self._counting:  # runs of several threads may end at once
            self.usage += usage
        self._here.usage = self.usage_here + usage
        lost = self._lost_options() if usage.calls else []
        if lost:
            named = " and ".join(f"{name}=" for name in lost)
            were = "it was" if len(lost) == 1 else "they were"
            told = f"{visible(self.model)} does not take {named}: {were} left out."
            try:
                warnings.warn(told, stacklevel=2)
            except Warning:  # an error, by the user's filters; but the replies are paid
                log.warning("%s", told)

    def _lost_options(self) -> list[str]:
        """Return the options that the user gave, and requests leave out: no temperature of 0, the default."""
        given = {name for name, value in self._sampling.items() if value is not None}
        if not self._sampling["temperature"]:
            given.discard("temperature")
        return sorted(given & self.transport.left_out)

    def job(self, request: Request) -> Job:
        """Return the request as this model is sent it: its key in the cache, and its bytes.

        Raises:
            ModelError: a message holds half of a surrogate pair. `unsent` is set.
        """
        return self._form(request).job(request.messages)

    def _form(self, request: Request) -> Form:
        # By identity: hashing the messages of the prefix for every row would cost more than the rest.
        told = request.schema, request.sample, request.logprobs, request.doubt
        name = id(request.prefix), told
        form = self._forms.get(name)
        if form is None or form.prefix is not request.prefix:
            fields = {**self._sampling, **(self._options["extra_body"] or {})}
            if len(self._forms) >= _FORMS_KEPT:  # each call of infer_personas makes its own prefix
                self._forms.clear()
            form = self._forms[name] = Form(self.transport, request, fields)
        return form


def _with_whole_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of an LLM with absolute paths, since another process may unpickle them elsewhere."""
    model, folder = options["model"], options["cache_dir"]
    whole = whole_name(model.strip()) if model.strip().startswith("local:") else model
    if folder:
        folder = Path(folder)
        with suppress(OSError, RuntimeError, ValueError):  # the cache refuses it, if there is one
            folder = folder.expanduser().absolute()
    return {**options, "model": whole, "cache_dir": folder or None}


def named_model(model: str | None) -> str:
    """Return the name of a model that was given; for None, that in $PERSONAINFER_MODEL, or "local".

    Raises:
        InvalidArgumentError: the name is blank, not a text, or not UTF-8.
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
    _check_schema(request.schema)
    request = replace(
        request,
        sample=check_argument("sample", request.sample, WholeNumber),
        logprobs=check_argument("logprobs", request.logprobs, CountFromZero),
    )
    for message in (*request.prefix, *request.messages):
        if not isinstance(message, Message):
            raise InvalidArgumentError(
                f"requests[{number}]: {quoted(message, 80)} is not a Message.",
                hint="The messages of a Request are instances of Message.",
            )
        try:
            (message.role + message.content).encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(
                f"requests[{number}]: {surrogate_problem('a message')}"
            ) from None
    return request


def _messages(messages: Sequence[Message | Mapping[str, str]]) -> tuple[Message, ...]:
    if not isinstance(messages, str):
        with suppress(TypeError, ValidationError):
            read = [m if isinstance(m, Message) else Message.model_validate(m) for m in messages]
            if read:
                return tuple(read)
    raise InvalidArgumentError(
        f"messages={quoted(messages, 80)} is not a non-empty sequence of Message or dicts.",
        hint='A dict has the texts "role" and "content".',
        argument="messages",
    )


def _check_schema(schema: object) -> None:
    if schema is not None and not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        raise InvalidArgumentError(
            f"schema={quoted(schema, 80)} is not a pydantic model.",
            hint="Pass a class made from pydantic.BaseModel, or None for plain text.",
            argument="schema",
        )


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


# What a file may decide of how a model is called: the options that decide the reply.
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
    """Return the options of requests with which a table or a batch was made: no limits, prices, addresses.

    Args:
        stored: its options by name. A value that was read from a file is an instance of `Stored`.
        given: the options that the caller names, which are not checked. Their values are not returned.
        place: the file, as the error names it.
        calls: whether calls are made with the options. False: they are not checked.

    Raises:
        InvalidArgumentError: an option from the file could make calls cost more than the defaults do, and the
            caller does not name it.
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


def make_beside(earlier: Iterable[LLM | None], model: str, options: Mapping[str, Any]) -> LLM:
    """Make a further LLM for a call that calls several models by the same options.

    All of them have one budget, and one limit a minute where they are called at one address with one key.
    Without `api_base`, the key and the headers are those of the provider that is called first: a model that
    is called elsewhere is not told them.

    Args:
        earlier: those that were made before by these options, in order. None is passed over.
        model: the name of the model.
        options: those of `LLM`.

    Raises:
        As `LLM`. AuthenticationError: the key of a further one is missing.
    """
    others = [one for one in earlier if one is not None]
    if not others:
        return LLM(model, **options)
    made = LLM(model, **{n: v for n, v in options.items() if n not in ("api_key", "extra_headers")})
    # A local model is told a key, but has no use for it.
    called = [one for one in others if not isinstance(one.transport, EmbeddedTransport)]
    is_there = not called or made.transport.endpoint == called[0].transport.endpoint
    if options.get("api_base") is not None or is_there:
        made = LLM(model, **options)
    made.transport.check_key()  # it would be missed only after the calls of the others
    bounds = made.account.bounds
    for one in filter(made.is_called_as, others):
        bounds = bounds.with_minute_of(one.account.bounds)
    made.account.bounds = bounds._replace(budget=others[0].account.bounds.budget)
    return made


def make_llm(model: str | LLM | None, options: Mapping[str, Any]) -> LLM:
    """Return the LLM that was given, or one that a model's name and options make.

    Raises:
        InvalidArgumentError: an LLM was given with options, which it has itself. Other errors: see `LLM`.
    """
    if not isinstance(model, LLM):
        return LLM(model, **options)
    if options:
        raise InvalidArgumentError(
            f"{', '.join(sorted(options))}: the LLM that was given as model= has its own options.",
            hint="Pass them to LLM(...) instead.",
            argument=min(options),
        )
    return model
