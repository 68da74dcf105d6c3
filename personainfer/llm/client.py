"""`LLM`: a language model and how to call it. Messages in, a record or text out, many at once."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..api_keys import opened, sealed
from ..exceptions import InvalidArgumentError
from ..records import Message, Usage
from .cache import ReplyCache, default_cache_dir
from .llamacpp import EmbeddedTransport
from .pricing import find_price
from .rate_limits import Budget, Limits, Price
from .requests import Form, Job, Reply, Request
from .runs import Run
from .transports import EndpointTransport, LiteLLMTransport, Transport
from .weights import find_weights
from .workers import CallSettings, Tally, Workers

__all__ = ["LLM", "OPTIONS", "make_llm"]

T = TypeVar("T")

_FORMS_KEPT = 64
_OPENAI_PREFIXES = ("openai/", "hosted_vllm/")  # litellm's names for "speaks the OpenAI protocol"


class LLM:
    """A model and how to call it. Arguments are checked here, before any call.

    Args:
        model: a litellm model string ("openai/gpt-4o-mini", "anthropic/…"), "local" for the embedded
            model, "local:/path/model.gguf"; with `api_base`, the name the endpoint knows. None:
            $PERSONAINFER_MODEL, else "local".
        api_base: the address of an OpenAI-compatible endpoint, usually ending in /v1.
        api_key: the key; else the provider's environment variable.
        temperature: 0 for the likeliest reply; None leaves it to the endpoint.
        max_tokens: the most a reply may take (for each of its parts, if it has several); a reply that
            is cut off is an error.
        seed: sent to endpoints that take one; the n-th sample of a request gets seed + n.
        max_concurrency: the most calls in flight. (The embedded model decodes 8 of them together.)
        rpm, tpm: requests and tokens in any minute.
        timeout: seconds for one call (None: 60, or 600 for the embedded model).
        max_attempts: the most calls for one request, re-asks included; only refusals for going too
            fast (429) are repeated beyond that.
        patience: seconds; an endpoint that asks to wait longer than this is given up.
        budget: USD; a call that could pass it is not made.
        prices: (prompt, completion) in USD a million tokens; None: litellm's price list.
        cache: whether replies are kept on disk and read from there.
        cache_dir: where (None: $PERSONAINFER_CACHE_DIR, else the user's cache directory).

    Raises:
        InvalidArgumentError: a value that cannot work.
        MissingExtraError: the model needs a package that is not installed.
        AuthenticationError: the provider's key is not set.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        api_base: str | None = None,
        api_key: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int = 500,
        seed: int | None = None,
        max_concurrency: int | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        timeout: float | None = None,
        max_attempts: int = 5,
        patience: float = 300.0,
        budget: float | None = None,
        prices: tuple[float, float] | None = None,
        cache: bool = True,
        cache_dir: str | Path | None = None,
    ) -> None:
        self._options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        _check_options(self._options)
        self._pid = os.getpid()
        self.model = model or os.environ.get("PERSONAINFER_MODEL") or "local"
        self.usage = Usage()
        self._api_key = api_key
        self.transport = _transport(self.model.strip(), api_base, api_key)
        local = isinstance(self.transport, EmbeddedTransport)
        self._sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        self.max_concurrency = max_concurrency or 64
        self._call_settings = CallSettings(
            timeout=timeout or (600.0 if local else 60.0),
            max_attempts=max_attempts,
            max_tokens=max_tokens,
            max_concurrency=self.max_concurrency,
            model=self.model,
        )
        self.price = Price(0.0, 0.0) if local else find_price(self.model, prices)
        self.limits = Limits(
            max_concurrency=self.max_concurrency,
            rpm=rpm,
            tpm=tpm,
            rounds=2 * max_attempts,
            patience=patience,
            budget=_budget(budget, self.price, self.model),
        )
        self.cache: ReplyCache | None = None
        if cache:
            self.cache = ReplyCache(Path(cache_dir) if cache_dir else default_cache_dir())
        self._forms: dict[tuple[Any, ...], Form] = {}
        self._counting = threading.Lock()

    @property
    def samples(self) -> bool:
        """Whether one request can have several different replies."""
        return self._sampling["temperature"] != 0

    @property
    def embedded(self) -> bool:
        """Whether the model runs inside this process."""
        return isinstance(self.transport, EmbeddedTransport)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the replies, as it may be written down: never the key."""
        base = self._options["api_base"]
        if base is not None and ("@" in base or "?" in base):  # may hold a password or a token
            base = None
        return {"model": self.model, "api_base": base, **self._sampling}

    @property
    def options(self) -> dict[str, Any]:
        """The arguments that make this LLM again, but for its key."""
        return {name: value for name, value in self._options.items() if name != "api_key"}

    def __repr__(self) -> str:
        base = self._options["api_base"]
        return f"LLM({self.model!r}{f', api_base={base!r}' if base else ''})"

    def __getstate__(self) -> dict[str, Any]:
        return sealed(self._options)

    def __setstate__(self, options: dict[str, Any]) -> None:
        self.__init__(**opened(options))  # type: ignore[misc]

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
            ModelError: only for what would fail every request (key, model, cache).
        """
        return [replies[0] for _, replies in self.run((None, [_request(r)]) for r in requests)]

    def run(self, items: Iterable[tuple[T, Sequence[Request]]]) -> Run[T]:
        """Stream: for each (item, requests) yields (item, replies), in order, in bounded memory."""
        if self._pid != os.getpid():  # a fork has none of its parent's connections and locks
            self.__setstate__(self.__getstate__())
        self.limits.gate.reset()
        tally = Tally(self.price)
        return Run(
            self.jobs(items),
            Workers(self.transport, self.limits, self.cache, self._call_settings, tally),
            cache=self.cache,
            tally=tally,
            model=self.model,
            width=self.max_concurrency,
            ended=self.add_usage,
        )

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
        name = (
            id(request.prefix),
            request.schema,
            request.sample,
            request.logprobs,
        )
        form = self._forms.get(name)
        if form is None or form.prefix is not request.prefix:
            if len(self._forms) >= _FORMS_KEPT:  # each call of infer_personas makes its own prefix
                self._forms.clear()
            form = self._forms[name] = Form(self.transport, request, self._sampling)
        return form


def _request(request: Request | tuple[Any, ...]) -> Request:
    if isinstance(request, Request):
        return request
    if isinstance(request, tuple) and 1 <= len(request) <= 2:
        return Request(_messages(request[0]), *request[1:])
    raise InvalidArgumentError(
        f"a request is a Request or (messages, schema), not {request!r:.80}."
    )


def _messages(messages: Sequence[Message | Mapping[str, str]]) -> tuple[Message, ...]:
    if isinstance(messages, str) or not messages:
        raise InvalidArgumentError("messages is a non-empty sequence of Message or dicts.")
    return tuple(m if isinstance(m, Message) else Message.model_validate(m) for m in messages)


def _transport(model: str, api_base: str | None, api_key: str | None) -> Transport:
    if model == "local" or model.startswith("local:"):
        if api_base is not None:
            raise InvalidArgumentError(
                f"api_base={api_base!r}, but no model= that it serves.",
                hint=f"Name the model; {model!r} runs inside this process.",
            )
        return EmbeddedTransport(find_weights(model))
    if model.startswith("litellm/"):
        return LiteLLMTransport(model.removeprefix("litellm/"), api_base, api_key)
    if api_base is None:
        return LiteLLMTransport(model, None, api_key)
    for prefix in _OPENAI_PREFIXES:
        model = model.removeprefix(prefix)
    if not model:
        raise InvalidArgumentError("model= names a provider, but no model.")
    return EndpointTransport(model, api_base, api_key)


def _budget(usd: float | None, price: Price | None, model: str) -> Budget | None:
    if usd is None:
        return None
    if price is None:
        raise InvalidArgumentError(
            f"budget={usd:g}, but the price of {model!r} is not known.",
            hint="Give prices=(USD a million prompt tokens, USD a million completion tokens).",
        )
    return Budget(usd, price)


def _is_number(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("max_tokens", "max_concurrency", "max_attempts"):
        value = options[name]
        optional = value is None and name == "max_concurrency"
        if not optional and not (_is_number(value, int) and 1 <= value <= sys.maxsize):
            raise InvalidArgumentError(f"{name}={value!r} must be a whole number from 1 up.")
    for name in ("rpm", "tpm", "timeout", "patience", "budget"):
        value = options[name]
        optional = value is None and name != "patience"
        if not optional and not (_is_number(value, int, float) and 0 < value <= sys.float_info.max):
            raise InvalidArgumentError(f"{name}={value!r} must be a positive number.")
    seed, key, folder = options["seed"], options["api_key"], options["cache_dir"]
    if seed is not None and not _is_number(seed, int):
        raise InvalidArgumentError(f"seed={seed!r} must be a whole number.")
    if key is not None and not (isinstance(key, str) and key.isprintable() and key.strip() == key):
        raise InvalidArgumentError("api_key= must be a text without white space around it.")
    if folder is not None and not isinstance(folder, str | Path):
        raise InvalidArgumentError(f"cache_dir={folder!r} must be a path.")
    temperature = options["temperature"]
    if temperature is not None and not (
        isinstance(temperature, int | float) and 0 <= temperature <= 2
    ):
        raise InvalidArgumentError(f"temperature={temperature!r} must be between 0 and 2.")
    model, base = options["model"], options["api_base"]
    if model is not None and not (isinstance(model, str) and model.strip()):
        raise InvalidArgumentError(f"model={model!r} must be the name of a model.")
    if base is not None and not str(base).startswith(("http://", "https://")):
        raise InvalidArgumentError(
            f"api_base={base!r} is not an address.", hint='It starts with "http://" or "https://".'
        )


OPTIONS = frozenset(inspect.signature(LLM).parameters) - {"model"}


def make_llm(model: str | LLM | None, options: Mapping[str, Any]) -> LLM:
    """The LLM that a model string and options configure, or the LLM that was given.

    Raises:
        InvalidArgumentError: options beside an LLM, which has its own.
    """
    if not isinstance(model, LLM):
        return LLM(model, **options)
    if options:
        raise InvalidArgumentError(
            f"{', '.join(sorted(options))}: the LLM that was given as model= has its own options.",
            hint="Pass them to LLM(...) instead.",
        )
    return model
