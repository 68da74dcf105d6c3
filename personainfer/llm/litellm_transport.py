"""Send one request through litellm, to any provider that it knows."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache, partial
from itertools import combinations
from typing import Any
from urllib.request import getproxies, getproxies_environment

from pydantic import BaseModel

from ..api_keys import (
    Address,
    Secrets,
    SecretText,
    can_be_sent,
    hide_secrets,
    is_openai,
    key_headers,
    openai_headers,
    route_of,
    shown_address,
)
from ..connections import LARGEST_REPLY, Answer
from ..exceptions import (
    AuthenticationError,
    InvalidArgumentError,
    ModelError,
    PersonaInferError,
    keeps_no_cause,
    reads,
    unreadable,
)
from ..http_guard import Exchange, Rules, guarded_http
from ..observability import silent_libraries
from ..records import Completion
from .dialect import FORMS, Dialect
from .instructor_client import InstructorClient
from .openai_protocol import (
    BROKEN_OFF,
    CUT_OFF,
    Json,
    check_was_read,
    message_texts,
    read_answer,
    response_format,
    taken,
    tool_call,
)
from .refusals import library_error
from .replies import last_bad_reply, taken_by
from .transports import Sending, Transport

_LATER = 3600.0  # seconds beyond our own deadline, after which litellm gives up
_FOR_THREADS = 1.0  # seconds after our own deadline that ends no thread, until the thread ends
_IN_PROCESS = {"petals", "vllm"}  # litellm's providers that may send nothing over HTTP
_FOLLOWING = {"aiohttp_openai"}  # those whose client `guarded_http` does not reach
# Those for which `litellm.api_base` comes before the address that a call names.
_GLOBAL_FIRST = {"ollama", "ollama_chat", "triton", "gradient_ai", "custom"}
_DIRECTLY = 'Give the address of an OpenAI-compatible endpoint as api_base=, without "litellm/".'


class LiteLLMTransport(Transport):
    """Any provider that litellm knows. `InstructorClient` makes the calls.

    Making one imports litellm, which takes seconds. litellm may sign in to a provider, or ask a server what
    its model can do.

    Args:
        model: the name, such as "anthropic/claude-…".
        api_base: the address; None: that of the environment, or litellm's own.
        api_key: the key; None: that of the environment.
        headers: more headers of each request.

    Raises:
        InvalidArgumentError: litellm knows no such provider, calls it by a client that follows redirects, or
            takes OpenAI for it.
        ModelError: litellm failed to find out where the model is.
    """

    def __init__(
        self,
        model: str,
        api_base: str | None = None,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(model)
        self._litellm = _import_litellm()
        self.options: Json = {"api_base": api_base, "api_key": api_key}
        if headers:
            self.options["extra_headers"] = headers
        hide_secrets(self.options)
        self.key = SecretText(api_key or "")
        # Secrets of the last request, some found by litellm itself.
        self._carried: tuple[str, ...] = ()
        try:
            self._told = _Told(self._litellm, model)
        except self._litellm.BadRequestError:
            raise InvalidArgumentError(
                f"model={model!r} names no provider that litellm knows.",
                hint='Write "provider/model" (https://docs.litellm.ai/docs/providers), give the address of'
                ' an OpenAI-compatible endpoint (api_base), or use "local".',
                argument="model",
            ) from None
        self.name, self.provider = self._told.name, self._told.provider
        named, has_slash, _ = self.name.partition("/")
        other = has_slash and self.provider == "openai" and named in self._litellm.provider_list
        if api_base is None and other and self.name == model:  # such as azure/mistral-large
            raise InvalidArgumentError(
                f"model={model!r}: litellm calls it at OpenAI where no address is given.",
                hint="Give its address as api_base=.",
                argument="model",
            )
        self._told_by = self._told.snapshot()
        address = api_base or self._told.address()
        self._addresses = tuple(map(Address, address.split()))
        shown = shown_address(address.rstrip("/"))
        self.endpoint = f"litellm:{self.provider}:{shown}"
        self._shown_name = shown or model  # in errors
        self.limits_thinking = self.provider in ("openai", "azure") and all(
            map(is_openai, self._addresses)
        )
        self.places = [] if api_base else self._told.places()
        self.route = route_of(self._addresses, headers or {}, self.places)
        self._called = ""  # scheme, host and port of the first call without an `api_base=`
        # Whether the place is another one than where an LLM was made before.
        self._has_moved = False
        if self.provider in _FOLLOWING:
            raise InvalidArgumentError(
                f"model={model!r}: litellm calls {self.provider} by a client that follows redirects.",
                hint=_DIRECTLY,
                argument="model",
            )
        self._instructor = InstructorClient(self._litellm)
        self._find_abilities()

    def _find_abilities(self) -> None:
        """Find out what the model takes: now, and not later, as it is part of the key of a reply."""
        litellm = self._litellm
        self._known_params: list[str] | None = None  # not known
        with guarded_http(largest=LARGEST_REPLY):  # litellm may ask a server what its model can do
            with suppress(Exception):  # of a provider without such a list, litellm raises anything
                self._known_params = litellm.get_supported_openai_params(self.name, self.provider)
            self._asks_by_tool_call = not litellm.supports_response_schema(self.model) and (
                litellm.supports_function_calling(self.model)
            )
        if self._asks_by_tool_call:
            self.dialect = Dialect(self.model, FORMS.index("tools"))

    @property
    def secrets(self) -> Secrets:
        """The keys, the added headers, what the addresses hide, and what the last request carried."""
        headers = self.options.get("extra_headers")
        keys = (self.key, *self._told.texts("KEY|TOKEN|SECRET|PASSWORD"))
        # litellm's own HTTP finds its proxies in the environment itself.
        proxies = map(Address, getproxies_environment().values())
        addresses = (*self._addresses, *self._connections.proxies, *proxies)
        texts = (*keys, *self._carried, *openai_headers().values())
        return Secrets(texts, headers=headers, addresses=addresses)

    @property
    def left_out(self) -> frozenset[str]:
        """Names of fields that are known to be in no request, with those that litellm drops."""
        if self._known_params is None:
            return super().left_out
        return super().left_out | _OPTIONS.difference(self._known_params)

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """Return the fields that ask for a JSON schema, or for a tool call if the model takes only that."""
        if schema is None:
            return {}
        fields = response_format(schema, strict=True)
        asked = fields["response_format"]["json_schema"]
        self._instructor.learn(schema, asked["schema"])
        return tool_call(asked) if self._asks_by_tool_call else fields

    @keeps_no_cause
    async def _send(
        self, body: bytes, timeout: float, dialect: Dialect, sending: Sending
    ) -> Completion:
        """Send one request through litellm. Its own retries are off, since they ignore Retry-After.

        The answer is read like that of any endpoint. If the provider has a protocol of its own, what litellm
        made of the answer is read instead.
        """
        self.check_address()
        # Our own deadline counts: after the process was stopped, it lets what has come be read.
        fields: Json = {**json.loads(body), **self.options, "timeout": timeout + _LATER}
        dialect.write_fields(fields)
        fields["drop_params"] = True  # such as `seed`, or `temperature` of models that reason
        fields |= self._kept_limits(fields)
        bad = last_bad_reply(fields["messages"])
        if bad is not None:
            del fields["messages"][-2:]
        delivers = _sends_as_it_came(self._litellm)
        rules: Rules = {
            "largest": LARGEST_REPLY,
            "seconds": timeout + _FOR_THREADS,
            "texts": message_texts(fields["messages"]),
            "hidden": self.secrets,
            "base": None if self.provider in self._own() else self.options.get("api_base"),
            "prepare": partial(self._prepare, sending, _limit(fields)),
            "deliver": partial(self._deliver, sending) if delivers else None,
        }
        if not delivers or self.provider in _IN_PROCESS | self._own():
            sending.is_sent()  # it is not known when
        reply, failure = None, None
        with silent_libraries(), guarded_http(**rules) as exchange:
            asking = self._instructor.ask(fields, bad, dialect)
            try:
                reply = await self._in_time(timeout, self._shown_name, asking)
            except Exception as error:
                failure = error
            finally:  # also of a call that was cancelled
                if exchange.by_client:
                    sending.was_sent()
        if exchange.secrets:
            self._carried = tuple(map(SecretText, exchange.secrets))
        if failure is None:
            exchange.end_well()
            if exchange.answers:
                self._learn_place(exchange, reply)
            elif bad is None:
                self._check_is_in_this_process()
        return self._read_exchange(body, timeout, exchange, reply, failure)

    def _kept_limits(self, fields: Json) -> Json:
        """Return the argument by which litellm drops no limit of a reply that it knows no translation for."""
        if self._known_params is None:
            return {}
        lost = sorted({*_LIMITS} & fields.keys() - {*self._known_params})
        return {"allowed_openai_params": lost} if lost else {}

    def _prepare(
        self, sending: Sending, limit: int, request: Any, client: Any, may_be: bool
    ) -> bool:
        """Check a request that is about to be sent, and write its headers, whoever sends it.

        Args:
            sending: says whether a budget allows a request of this size, or without a limit.
            limit: the most tokens of the reply; 0: none was asked for.
            request: the library's request.
            client: the library's client.
            may_be: whether the request may be the call.

        Returns:
            Whether it is the call for sure: it goes to `api_base` or where the call before went, or names a
            limit of the reply, or no limit was asked for.

        Raises:
            ModelError: it names no limit of the reply that is low enough, and a budget was reserved for it;
                or an earlier call went elsewhere.
            RequestRejectedError: the budget has too little left for a request of this size.
        """
        if not may_be or self.provider in self._own():
            self._write_headers(request, client, may_be)
            return may_be
        sent = _decoded(request.content)
        has_limit = _names_limit(sent, limit)
        is_sure = has_limit or not limit or self.options["api_base"] is not None
        # Such as the limit of a model that thinks, to which litellm adds tokens.
        is_sure = is_sure or _names_limit(sent, math.inf) or _origin(request.url) == self._called
        sending.is_written(_size(request.content, sent) if is_sure else 0, has_limit=has_limit)
        if self.options["api_base"] is None:
            self._check_called(request.url, is_sure)
        self._write_headers(request, client, is_sure)
        return is_sure

    def _learn_place(self, exchange: Exchange, reply: Any) -> None:
        """Learn where a call goes whose requests name no limit: once it succeeded, it is known for the call.

        Raises:
            ModelError: it went elsewhere than the one before.
        """
        if exchange.is_sure or exchange.answer is None:
            return
        called = _origin(exchange.answer.request.url)
        if called == self._called:  # it was sent before another one had succeeded there
            return
        if self._called:
            raise _moved(
                f"litellm called {called} for {self.provider}, and not {self._called} as before",
                "the reply is not used",
                took=self._taken(exchange, reply),
            )
        if exchange.answers == 1:
            self._called = called

    def _check_called(self, url: Any, is_sure: bool) -> None:
        """Raise ModelError if a call without an `api_base=` goes to OpenAI instead, or elsewhere than before.

        What may be the request of a callback may go anywhere else.
        """
        if url.host == "api.openai.com" and "openai" not in self.provider:
            raise _moved(f"litellm knows no address of {self.provider}, and would call OpenAI's")
        called = _origin(url)
        if is_sure:
            self._called = self._called or called
        if is_sure and called != self._called:  # whatever told litellm the other one
            raise _moved(
                f"litellm calls {called} for {self.provider}, and not {self._called} as before"
            )

    def _write_headers(self, request: Any, client: Any, is_call: bool) -> None:
        """Write the headers of a request.

        If another address than OpenAI's own was given, the openai SDK's request keeps the headers that are
        known to belong there. Its client has others of the environment, as that was when it was made, which
        may be long ago and by other code. The user's own headers take the place of others, in the call alone.
        """
        headers = request.headers
        # The environment changes the headers of the SDK, but takes out none.
        is_sdks = any(name.startswith("x-stainless-") for name in headers)
        added = self.options.get("extra_headers") or {} if is_call else {}
        if self.options["api_base"] is not None:
            known = {name.lower() for name in added}
            if is_sdks:
                known |= self._known_headers(request, client)
            for name in set(headers) - known:
                if is_sdks or name.startswith("openai-"):
                    del headers[name]
        for name, text in added.items():
            if is_sdks or len(headers.get_list(name)) > 1 or name not in headers:
                headers[name] = text  # the user's own counts

    def _known_headers(self, request: Any, client: Any) -> set[str]:
        """Mend the headers of a request of the openai SDK. Return the names of those that belong there.

        These are those of the protocol, the key, and what the program gave to litellm or its HTTP client.
        """
        headers = request.headers
        given = {**client.headers, **(self._litellm.headers or {})}
        known = {name.lower() for name, text in given.items() if headers.get(name) == text}
        keys = {name for name in ("authorization", "api-key") if self._is_key_in(headers, name)}
        if self.key and not keys:
            named = key_headers(str(request.url), self.key)
            headers.update(named)
            keys = {name.lower() for name in named}
        if "api-key" not in headers and request.url.params.get("api-version"):
            keys.add("authorization")  # of Azure's sign-in, which the SDK sets in each request
        headers["host"] = request.url.netloc.decode("ascii")
        headers["accept"] = headers["content-type"] = "application/json"
        headers["content-length"] = str(len(request.content))
        if _SDK.fullmatch(headers.get("user-agent", "")):
            known.add("user-agent")
        return {*known, *keys, *_OF_EACH_CALL}

    def _is_key_in(self, headers: Any, name: str) -> bool:
        """Whether a header holds the key that was given, or else one that litellm takes for this provider."""
        text = headers.get(name, "").rpartition(" ")[2]
        if self.key or not text:
            return bool(text) and text == self.key
        of_the_environment = {
            *self._told.texts("KEY|TOKEN"),
            os.environ.get("OPENAI_API_KEY"),
        }
        return text in of_the_environment or text in self._told.given_keys()

    async def _deliver(self, sending: Sending, request: Any) -> Answer:
        """Send a request that litellm has written, by our own connections. Return the answer."""
        import yarl

        headers = dict(request.headers)
        if request.url.userinfo:  # the password in the address takes the place of the key
            headers.pop("authorization", None)
        address = yarl.URL(str(request.url), encoded=True)
        return await self._connections.send(
            request.method,
            address,
            headers,
            request.content,
            name=self._shown_name,
            is_sent=sending.is_sent,
        )

    @reads(
        "the reply",
        took=lambda self, body, timeout, exchange, reply, failure: self._taken(exchange, reply),
    )
    def _read_exchange(
        self,
        body: bytes,
        timeout: float,
        exchange: Exchange,
        reply: Any,
        failure: Exception | None,
    ) -> Completion:
        """Return the completion in what came over HTTP, or in what litellm made of it, or raise the error.

        Args:
            body: the request.
            timeout: seconds, for the message of a call without an answer.
            exchange: what came over HTTP.
            reply: what litellm made of it; None: there is none.
            failure: what litellm raised; None: nothing.

        Raises:
            ModelError: the call failed, or the reply cannot be used.
        """
        answer = exchange.answer
        if answer is not None and exchange.error is None:
            in_this_protocol = answer.request.url.path.endswith("/chat/completions")
            if answer.status_code // 100 != 2 or in_this_protocol:
                return self._read_completion(
                    body, answer.status_code, answer.headers, exchange.content
                )
        if failure is None:
            completion = read_answer(
                self._with_real_counts(exchange, reply),
                self.secrets,
                lambda status, words: self._refusal(body, status, {}, words),
            )
            check_was_read(completion, body)
            return completion
        if isinstance(failure, PersonaInferError) and exchange.error is None:
            raise failure
        asked = message_texts(json.loads(body)["messages"])
        found = library_error(self._shown_name, timeout, failure, exchange, self.secrets, asked)
        raise found or unreadable("the reply", failure)

    def _with_real_counts(self, exchange: Exchange, reply: Any) -> Json:
        """Return a reply of litellm without the counts of tokens and the whole ends that it made up.

        Where an answer has no counts, litellm counts the words that it sees by a tokenizer of its own.
        """
        found: Json = reply.model_dump(warnings=False)  # a warning would show the reply
        usage = found.get("usage")
        if isinstance(usage, dict) and exchange.answers and self.provider not in self._own():
            told = _counts_in(exchange)
            made_up = [name for name in _COUNTS if usage.get(name) and usage[name] not in told]
            found["usage"] = {n: count for n, count in usage.items() if n not in made_up}
        for reason in _REASON.findall(exchange.content.lower())[-1:]:
            if (said := reason.decode()) in CUT_OFF | BROKEN_OFF:  # of some, litellm says "stop"
                found["choices"][0]["finish_reason"] = said
        return found

    def _taken(self, exchange: Exchange, reply: Any) -> Completion | None:
        """Return what a call has taken, by what came over HTTP or what litellm made of it; None: unknown."""
        if exchange.answer is not None:
            found = taken_by(exchange.content, exchange.answer.status_code)
            if reply is None or (found is not None and found.counted):
                return found
        return None if reply is None else taken(self._with_real_counts(exchange, reply))

    def _check_is_in_this_process(self) -> None:
        """Raise ModelError unless litellm runs the model in this process, or the user wrote its provider.

        A reply came without a request that `guarded_http` saw: redirects may have been followed.
        """
        if self.provider not in _IN_PROCESS | self._own():
            raise ModelError(
                f"litellm calls {self.provider} by a client that may follow redirects.",
                hint=_DIRECTLY,
                fatal=True,
            )

    def _own(self) -> set[str]:
        return {handler["provider"] for handler in self._litellm.custom_provider_map}

    def check_address(self) -> None:
        """Raise if litellm would now call another model or address than that under which replies are stored.

        litellm looks up both at each call. The key of a reply has the address, the region and the like that
        were told when this was made.

        Raises:
            ModelError: `litellm.model_alias_map` names another model, or the environment another address; or
                `litellm.api_base` would take the place of `api_base=`.
        """
        alias = (self._litellm.model_alias_map or {}).get(self.model)
        if alias is not None:
            raise ModelError(
                f"litellm.model_alias_map has another model for {self.model!r}: nothing was sent.",
                hint=f"Name {alias!r} itself.",
                fatal=True,
            )
        if self.options["api_base"] is not None:
            self._check_global()
            return
        told_by = self._told.snapshot()
        if told_by == self._told_by and not self._has_moved:
            return
        told = self._told.address().split(), self._told.places()
        if self._has_moved or told != (list(self._addresses), self.places):
            raise self.moved()
        self._told_by = told_by

    def moved(self) -> ModelError:
        """Make, and do not raise, the error that litellm would call another place than when this was made."""
        return _moved(
            f"the environment, or litellm itself, names another address of {self.provider} than when this"
            " model was made (or another region, account or project)"
        )

    def stay_at(self, endpoint: str, route: str) -> None:
        """Be the model of an LLM that was made at a place before, and was copied or unpickled.

        If litellm would now call another place, `check_address` raises.
        """
        self._has_moved = (self.endpoint, self.route) != (endpoint, route)
        self.endpoint, self.route = endpoint, route

    def _check_global(self) -> None:
        """Raise ModelError if litellm would call `litellm.api_base`, and not the address that was given."""
        told = self._litellm.api_base
        if self.provider not in _GLOBAL_FIRST or told in (None, "", self.options["api_base"]):
            return
        raise ModelError(
            f"litellm.api_base takes the place of api_base= for {self.provider}: nothing was sent.",
            hint="Set litellm.api_base to None.",
            fatal=True,
        )

    def open(self) -> None:
        """Note that a run begins to use this transport. The run has to call `close` once.

        Raises:
            AuthenticationError: see `check_key`.
        """
        self.check_key()
        super().open()

    def check_key(self) -> None:
        """Raise AuthenticationError if the key is known to be missing, or to be one that cannot be sent.

        It is known to be missing if one environment variable is all that litellm lacks.
        """
        if not (self.key or all(map(can_be_sent, self._told.texts("APIKEY")))):
            raise AuthenticationError(
                f"the environment's key for {self.provider} cannot be sent: it has a line break, a space or a"
                " letter that is not ASCII.",
                hint="Set the variable to the key alone, or give another key.",
            )
        if self.key or self._told.texts("KEY|TOKEN"):
            return
        missing = self._litellm.validate_environment(self.model)["missing_keys"]
        is_one = len(missing) == 1 and missing[0].endswith("_API_KEY")
        if is_one and not self._told.has_key():
            raise AuthenticationError(
                f"no key for {self.model}: {missing[0]} is not set.",
                hint=f'Set {missing[0]}, give a key (api_key), or try the model "local", which needs none.',
            )


def _sends_as_it_came(litellm: Any) -> bool:
    """Return whether litellm sends requests as by default: nobody gave it a client or certificates."""
    told = litellm.aclient_session, litellm.ssl_verify, litellm.ssl_certificate, litellm.force_ipv4
    ciphers = any(getattr(litellm, name, None) for name in ("ssl_security_level", "ssl_ecdh_curve"))
    variables = ("SSL_VERIFY", "SSL_SECURITY_LEVEL", "SSL_ECDH_CURVE")
    in_environment = any(map(os.environ.get, variables)) or "all" in getproxies()
    return told == (None, True, None, False) and not (ciphers or in_environment)


_OPTIONS = frozenset(("temperature", "seed", "reasoning_effort"))
_LIMITS = ("max_tokens", "max_completion_tokens")
# What providers call the limit of a reply; and what else has numbers with such names.
_LIMIT_NAME = re.compile(
    "(?!.*(input|prompt|context|thinking|reason|budget)).*(max.*(token|len)|predict|tokens_to_)",
    re.IGNORECASE,
)
_NO_SETTING = re.compile("schema|properties|tools|functions|response_format", re.IGNORECASE)


def _decoded(content: bytes) -> Any:
    """Return the JSON of a request; None: it is none, such as lines of JSON that a callback sends."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def _size(content: bytes, sent: Any) -> int:
    """Return the bytes of a request in UTF-8, which an escape makes longer. `sent` is its JSON."""
    if sent is None or rb"\u" not in content:
        return len(content)
    return len(json.dumps(sent, ensure_ascii=False).encode(errors="surrogatepass"))


_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_COUNT = re.compile(
    rb'"\w{0,40}(?:token(?!_?id)|eval_count)\w{0,40}"\s{0,9}:\s{0,9}(\d{1,15})', re.IGNORECASE
)
_REASON = re.compile(rb'"(?:completion|done|finish|stop)_?reason"\s{0,9}:\s{0,9}"([a-z_]{1,40})"')
_MOST_ADDED = 16  # counts at the end of an answer, of which there may be sums


def _counts_in(exchange: Exchange) -> set[int]:
    """Return the counts of tokens in an answer as it came, and the sums of two or three of them.

    litellm adds up those of caches to the prompt, and those of thinking to the reply.
    """
    if exchange.answer is None:
        return set()
    headers = exchange.answer.headers.items()
    counts = [int(text) for name, text in headers if "token-count" in name and text.isdecimal()]
    counts += map(int, _COUNT.findall(exchange.content))
    last = counts[-_MOST_ADDED:]
    sums = (sum(some) for size in (2, 3) for some in combinations(last, size))
    return {*counts, *sums}


def _origin(url: Any) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


def _limit(fields: Json) -> int:
    """Return the most tokens that a request allows its reply; 0: it names no number."""
    return max((fields[name] for name in _LIMITS if type(fields.get(name)) is int), default=0)


def _names_limit(sent: Any, limit: float) -> bool:
    """Whether a request, as a provider gets it, names a limit of the reply that is at most `limit`."""
    if isinstance(sent, list):
        return any(_names_limit(part, limit) for part in sent)
    if not isinstance(sent, dict):
        return False
    settings = [(name, value) for name, value in sent.items() if not _NO_SETTING.search(name)]
    return any(
        _LIMIT_NAME.match(name) and 0 < value <= limit
        if type(value) is int
        else _names_limit(value, limit)
        for name, value in settings
    )


# The SDK reads the last one in the request when the answer has come.
_OF_EACH_CALL = ("host", "accept", "content-type", "content-length", "x-stainless-raw-response")
_SDK = re.compile(r"(Async)?(Azure)?OpenAI/Python [\w.+-]+")  # its `User-Agent`


def _moved(
    words: str, outcome: str = "nothing was sent", took: Completion | None = None
) -> ModelError:
    hint = "Make it again, or give the address as api_base=."
    return ModelError(f"{words}: {outcome}.", hint=hint, fatal=True, took=took)


# Variables that decide where a provider is called, beside its address; AWS's profile has a region. The
# workspace of GitHub is a folder.
_PLACES = (
    "(DEFAULT)?REGION(NAME)?|PROFILE|LOCATION|HOST|(ACCOUNT|PROJECT|TENANT|(?<!WORK)SPACE)(ID)?"
)


# Other starts of the names of a provider's variables: litellm takes WX_URL for watsonx.
_OTHER_STARTS = {
    "bedrock": "aws",
    "sagemaker": "aws",
    "watsonx": "wx|wml",
    "custom": "openai",
    "lm": "openai",
}
# Those of keys, such as HF_TOKEN. Other programs have variables that begin so, too: beside the keys, litellm
# reads HF_API_BASE and the like alone.
_OTHER_STARTS_OF_KEYS = {
    "huggingface": "hf",
    "volcengine": "ark",
    "scaleway": "scw(secret)?",
    "nano": "nanogpt",
    "apertis": "stima",
    "friendliai": "friendli",
    "meta": "llama",
}


class _Told:
    """What tells litellm where to call a model, and with which key: the environment, and the program.

    Args:
        litellm: the library.
        model: the name of the model.

    Attributes:
        name, provider: of the model, as litellm knows them.

    Raises:
        BadRequestError: of litellm: it knows no such provider.
        ModelError: it failed. To find some providers it signs in to them.
    """

    def __init__(self, litellm: Any, model: str) -> None:
        self._litellm = litellm
        self._model = model
        self.name, self.provider, _, _ = self._look_up()

    def texts(self, kinds: str, *, of_keys: bool = True) -> set[str]:
        """Return the values of the provider's environment variables whose names end in one of `kinds`.

        The variables of ollama_chat are those of ollama.

        Args:
            kinds: such as "KEY|TOKEN".
            of_keys: whether these are kinds of keys.
        """
        return {
            text
            for key, text in os.environ.items()
            if text and _is_variable_of(self.provider, kinds, key, of_keys=of_keys)
        }

    def _look_up(self) -> tuple[str, str, str | None, str | None]:
        """Return the name of the model, its provider, its key and its address, as litellm finds them now."""
        try:
            with silent_libraries(), guarded_http(largest=LARGEST_REPLY):
                name, provider, key, address = self._litellm.get_llm_provider(self._model)
        except self._litellm.BadRequestError:
            raise
        except Exception as error:  # its words may hold a key
            raise ModelError(
                f"litellm could not find out where {self._model} is ({type(error).__name__}).",
                hint="Give the address as api_base=, or see what litellm.get_llm_provider says.",
                fatal=True,
            ) from None
        return name, provider, key, address

    def found(self) -> tuple[str | None, str | None]:
        """Return the key and the address that litellm finds now; None: it finds none."""
        try:
            _, _, key, address = self._look_up()
        except self._litellm.BadRequestError:  # litellm knew the provider when this was made
            return None, None
        return key, address

    def snapshot(self) -> int:
        """Return a number that changes with what tells litellm an address. A look-up would take longer."""
        program = self._litellm
        told = program.api_base, program.vertex_location, program.vertex_project
        return hash((told, frozenset(os.environ.items())))

    def address(self) -> str:
        """Return where litellm would call now without an `api_base=`, by OPENAI_BASE_URL, OLLAMA_API_BASE, …

        Returns:
            The addresses that the environment or the program tells, sorted, with a space between them;
            litellm finds some only when it calls them. "": there is none.
        """
        _, found = self.found()
        told = self.texts("BASE|URL|ENDPOINT", of_keys=False)
        if found and found in os.environ.values():  # else it is an address of litellm's own
            told.add(found)
        return " ".join(sorted(filter(None, {*told, self._litellm.api_base})))

    def places(self) -> list[tuple[str, str]]:
        """Return what else decides where litellm calls now: regions, accounts and projects, by variable."""
        told = {
            name: text
            for name, text in os.environ.items()
            if text and _is_variable_of(self.provider, _PLACES, name, of_keys=False)
            if not name.startswith(("OPENAI_", "WANDB_"))  # theirs is a header, or one of a log
        }
        if self.provider.startswith("vertex"):
            told["location"] = self._litellm.vertex_location or ""
            told["project"] = self._litellm.vertex_project or ""
        return sorted((name, text) for name, text in told.items() if text)

    def given_keys(self) -> set[str]:
        """Return the keys that the program gave to litellm, and the one that litellm finds for this model."""
        told = vars(self._litellm).items()
        keys = {text for name, text in told if name.endswith("_key") and isinstance(text, str)}
        return {*keys, self.found()[0] or ""} - {""}

    def has_key(self) -> bool:
        """Whether the program gave litellm a key for this provider or for all, or litellm finds one."""
        told = vars(self._litellm).items()
        names = {name for name, text in told if name.endswith("_key") and text}
        of_this = (_is_variable_of(self.provider, "KEY", name) for name in names)
        return "api_key" in names or any(of_this) or bool(self.found()[0])


@lru_cache(maxsize=4096)  # each call of a model asks for its keys
def _is_variable_of(provider: str, kinds: str, variable: str, *, of_keys: bool = True) -> bool:
    name = re.escape(provider.rpartition("-")[2].replace("_", ""))
    family = re.split("[_-]", provider.removeprefix("text-completion-"))[0]
    other = _OTHER_STARTS.get(family, re.escape(family))
    if (start := _OTHER_STARTS_OF_KEYS.get(family)) is not None:
        other = start if of_keys else f"({start})(?=APIBASE$)"
    names = f"{re.escape(family)}|{other}"
    named = f"(AWS)?{name}.*({kinds})|({names})(API|BASE)?({kinds})"
    return re.fullmatch(named, variable.replace("_", ""), re.IGNORECASE) is not None


def _import_litellm() -> Any:
    """Import litellm, without the price map that it would fetch and the `.env` file that it would read.

    litellm would read a `.env` file of this folder or one above it, which may be somebody else's, into the
    environment: then that file would choose where keys and texts go.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    mode = os.environ.get("LITELLM_MODE")
    os.environ["LITELLM_MODE"] = mode or "PRODUCTION"
    try:
        import litellm
    finally:
        if mode is None:
            del os.environ["LITELLM_MODE"]

    litellm.suppress_debug_info = True
    return litellm
