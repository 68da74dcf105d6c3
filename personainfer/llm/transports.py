"""What a transport is, and those to OpenAI-compatible endpoints and to llama.cpp's servers on this machine.

A transport sends one request, and returns its reply. Every one takes the same bytes: an OpenAI chat
completion request. `refusals` turns refusals into errors, and a `Dialect` rewrites requests for endpoints
that need another form.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel

from ..api_keys import (
    Address,
    Secrets,
    SecretText,
    environment_key,
    is_openai,
    key_headers,
    route_of,
    shown_address,
)
from ..connections import Answer, Connections
from ..event_loop import Deadlines, renew_in_forks
from ..exceptions import (
    InvalidArgumentError,
    ModelError,
    ModelNotFoundError,
    RateLimitError,
    ReplyError,
    RequestRejectedError,
    TransportError,
    keeps_no_cause,
    reads,
    visible,
)
from ..local.local_models import Server, check_chat_template, local_model
from ..local.weights import Weights
from ..records import Completion
from .dialect import Asked, Dialect
from .openai_protocol import Json, check_was_read, message_texts, read_answer, response_format
from .refusals import error_text, no_answer, status_error
from .replies import decode, taken_by

T = TypeVar("T")

_NAMES_NOTED = 8
_COMPLETIONS = re.compile(r"\A([^?#]*)/chat/completions/*(\?.*)?\Z")
_SLOT_ACTION_TIMEOUT = 60.0  # seconds


class Sending(Protocol):
    """A request that a transport sends, which it tells how far it is."""

    def is_written(self, size: int, *, has_limit: bool) -> None:
        """Note how a library has written the request, before it is sent. What this raises is raised.

        Args:
            size: the bytes; 0: not known.
            has_limit: whether it names the most tokens of its reply.
        """

    def is_sent(self) -> None:
        """Note that there is a connection, and the request is sent next.

        What this raises is raised, and nothing is sent.
        """

    def was_sent(self) -> None:
        """Note that the request was sent, which was not known before."""


class Transport:
    """A way to reach a model: connections, deadlines, the reader of answers, and a dialect.

    What an endpoint takes is learned from its refusals: see `Dialect`. A subclass sets `endpoint`, `route`
    and `key`, and has `secrets`, `settings` and `_send`.

    Args:
        model: the name that requests carry, by which some forms are known before the first call.

    Attributes:
        model: as given.
        endpoint: where requests go, in the cache's key. It holds no API key, and no port that changes.
        route: what else chooses the model, as `route_of` tells; also in the cache's key.
        key: the API key, of the caller or of the environment; "": none that this library knows.
        limits_thinking: whether a reply with its reasoning is known to hold no more tokens than allowed.
        enforces_forms: whether every reply is in the form that was asked for.
        name: the model, as the endpoint knows it.
    """

    endpoint: str
    route: str
    key: str
    limits_thinking = False
    enforces_forms = False

    def __init__(self, model: str) -> None:
        self.model = model
        self.dialect = Dialect(model)
        self.name = model
        self._answered_as: dict[str, None] = {}
        self._connections = Connections()
        self._deadlines = Deadlines()
        self._runs = 0
        renew_in_forks(self)

    def renew_in_fork(self) -> None:
        """Go on in a fork with what was learned of the endpoint, without the runs of the parent process."""
        self._runs = 0
        self.dialect.renew_in_fork()

    @property
    def secrets(self) -> Secrets:
        """What no quotation of the endpoint's words may show."""
        raise NotImplementedError

    @property
    def notes(self) -> Json:
        """What was learned about the endpoint, as JSON, for the settings of a table.

        It has the form of replies that the endpoint takes, the fields left out, and its names for the model.
        """
        names = {"answered_as": sorted(self._answered_as)} if self._answered_as else {}
        return {**self.dialect.notes, **names}

    @property
    def left_out(self) -> frozenset[str]:
        """Names of fields that are known to be in no request, as the endpoint does not take them."""
        return self.dialect.left_out

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """Return the fields of a request that ask for a reply of this form; None: plain text."""
        raise NotImplementedError

    def check_key(self) -> None:
        """Raise AuthenticationError if it is known before the first call that a key is missing."""

    def send_one_first(self) -> None:
        """Have the next requests wait until one of them has its outcome."""
        self.dialect.proven = False

    def open(self) -> None:
        """Note that a run begins to use this transport. The run has to call `close` once.

        If the endpoint refused every form before, all are tried again.
        """
        self.dialect = self.dialect.for_a_new_run()
        self._runs += 1

    async def close(self) -> None:
        """End a run's use of this transport. Close the connections if no other run uses it.

        Call it once for each `open`. A run that begins later opens new connections.
        """
        self._runs -= 1
        if not self._runs:
            await self._connections.close()

    async def complete(
        self, body: bytes, timeout: float, asked: Asked, sending: Sending
    ) -> Completion:
        """Send a request once, in the dialect of the endpoint, and learn from the answer.

        While another request tries a change of the dialect, this waits.

        Args:
            body: the request, as JSON.
            timeout: seconds to wait for the reply.
            asked: the request, which remembers in what form it is to be sent.
            sending: is told when the request is written and sent. What it raises is raised.

        Raises:
            ModelError: there is no reply that can be used. `rewritten` says that the same request would now
                be sent in another form, which may be noted in `asked`.
        """
        dialect = self.dialect
        is_first = not dialect.proven and await dialect.wait_for_turn()
        own = asked.trial or dialect  # as its own refusal asks for, or as all are written
        version = own.version
        try:
            completion = await self._send(body, timeout, own, sending)
        except RequestRejectedError as error:
            if not error.rewritten:  # True: it was not sent, and the endpoint has refused nothing
                error.rewritten = dialect.refused(version, error, body, asked)
            raise
        except ReplyError as error:
            if error.completion is not None:
                dialect.accepted(version, body, asked)
            if error.cut_off and error.reasoned:
                error.rewritten = dialect.thinks(version)
            raise
        else:
            dialect.accepted(version, body, asked)
            return completion if dialect.fits else replace(completion, dialect=version)
        finally:
            if is_first:
                dialect.end_turn()

    def was_read(self, completion: Completion, *, fits: bool) -> None:
        """Learn whether a reply was in the form that was asked for, see `Dialect.was_read`.

        Once a reply was in the form, or if the endpoint enforces forms, nothing is learned.
        """
        if not (self.dialect.fits or self.enforces_forms):
            self.dialect.was_read(completion.dialect, fits=fits)

    async def _in_time(self, timeout: float, name: str, work: Awaitable[T]) -> T:
        """Await `work`, for up to `timeout` seconds.

        Raises:
            TransportError: the time is up: `name` did not answer. `work` is cancelled. Or something within
                `work` was cancelled, such as a task of a library, and this task was not.
        """
        task = self._deadlines.start(timeout)
        try:
            return await work
        except asyncio.CancelledError:
            if self._deadlines.has_passed(task):
                raise no_answer(name, timeout) from None
            if task.cancelling():
                raise
            broken_off = f"the call to {name} was broken off from within."
            raise TransportError(broken_off, unanswered=True) from None
        finally:
            self._deadlines.stop(task)

    @reads("the reply", took=lambda self, body, status, headers, content: taken_by(content, status))
    def _read_completion(
        self, body: bytes, status: int, headers: Mapping[str, str], content: bytes
    ) -> Completion:
        """Return the completion in an answer of OpenAI's protocol to a request.

        Raises:
            ModelError: the endpoint refuses the request, or its answer is no usable reply.
        """
        if status // 100 != 2:  # some gateways answer a POST with 201
            raise self._refusal(body, status, headers, error_text(content, headers))
        if content[:50].lstrip().startswith(b"<"):
            raise ReplyError(
                "the reply is not JSON, but a web page.",
                hint="Check the address (often ending in /v1).",
            )
        reply = decode(content)
        if reply.get("model") not in (self.model, self.name):
            self._note_name(reply.get("model"))
        completion = read_answer(
            reply,
            self.secrets,
            lambda status, words: self._refusal(body, status, headers, words),
        )
        check_was_read(completion, body, reply.get("usage"))
        return completion

    def _refusal(
        self, body: bytes, status: int, headers: Mapping[str, str], words: str
    ) -> ModelError:
        """Make the error for a refusal of a request, by its status, its headers and its words."""
        asked = message_texts(json.loads(body)["messages"])
        return status_error(status, headers, words, self.secrets, asked)

    async def _send(
        self, body: bytes, timeout: float, dialect: Dialect, sending: Sending
    ) -> Completion:
        """Send a request, written in this dialect, and return its reply.

        Raises:
            ModelError: the endpoint refuses the request, or its answer is no usable reply.
        """
        raise NotImplementedError

    def _note_name(self, name: object) -> None:
        """Remember the model's name in a reply: a gateway may name the model behind it."""
        if isinstance(name, str) and name and len(self._answered_as) < _NAMES_NOTED:
            self._answered_as[self.secrets.mask(visible(name))[:80]] = None


class EndpointTransport(Transport):
    """Any server that speaks the OpenAI protocol: vLLM, llama.cpp, SGLang, a gateway, OpenAI, Azure.

    Args:
        model: the name that requests carry.
        api_base: the address, usually ending in /v1.
        api_key: the key; None: that of the environment, for an endpoint of OpenAI or Azure, or none.
        headers: more headers of each request, which take the place of others with the same name.
        full_name: the name with a prefix such as "openai/" before it, which is tried if the endpoint does not
            know `model`; "": there is none.

    Raises:
        InvalidArgumentError: the address has a password, and a key or a header for it is given, too.
        AuthenticationError: the key in the environment cannot be sent.
    """

    _is_strict = True  # schemas are in OpenAI's strict form, which has no bounds on lengths

    def __init__(
        self,
        model: str,
        api_base: str,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        full_name: str = "",
    ) -> None:
        super().__init__(model)
        # With "openai/" before it: for litellm that is the protocol, for OpenRouter part of the name.
        self._full_name = full_name
        self._wants_full_name = self._lists_full_name = False
        self._base: str = Address(root_of(api_base))
        self.endpoint = shown_address(self._base)
        self.limits_thinking = is_openai(self._base)
        self.headers = {name: SecretText(text) for name, text in (headers or {}).items()}
        self.route = route_of([self._base], self.headers)
        self.key = SecretText(api_key or "")
        if "@" in urlsplit(self._base).netloc:
            _check_credentials(self.endpoint, self.key, self.headers)
        else:
            self.key = SecretText(api_key or environment_key(self._base))
        self._socket: str | None = None  # a Unix socket through which the address is reached
        self._known: tuple[object, ...] = ()  # what the next two were made of
        self._secrets = Secrets()
        self._sent_headers: Mapping[str, str] = {}

    @property
    def secrets(self) -> Secrets:
        """The key, the added headers, and what the addresses of the endpoint and of the proxy hide."""
        self._renew()
        return self._secrets

    def _renew(self) -> None:
        """Make secrets and headers again if the address, the key or the proxies have changed.

        A local server has another address and key after each start.
        """
        proxies = self._connections.proxies
        known = (self._base, self.key, proxies)
        if known != self._known:
            addresses = (self._base, *proxies)
            self._secrets = Secrets((self.key,), headers=self.headers, addresses=addresses)
            key = key_headers(self._base, self.key)
            self._sent_headers = _request_headers(key, self.headers)
            self._known = known

    def proxy(self) -> str | None:
        """Return the proxy of the endpoint; what the address of it hides is a secret from then on."""
        return self._connections.proxy(self._base)

    def settings(self, schema: type[BaseModel] | None) -> Json:
        """Return the fields that ask for a JSON schema; {} for plain text."""
        return response_format(schema, strict=self._is_strict) if schema else {}

    @property
    def has_two_names(self) -> bool:
        """Whether there is a full name, and the endpoint has not taken a request yet: it may know either."""
        return self._full_name not in ("", self.model) and not self.dialect.answered

    def learn_name(self, listed: Collection[str]) -> None:
        """Send the model's full name from now on, if the endpoint lists it, and not the name without prefix.

        Args:
            listed: the names of all models that the endpoint lists.
        """
        self._lists_full_name |= self._full_name in listed and self.model not in listed
        self._wants_full_name |= self._lists_full_name

    def open(self) -> None:
        """Note that a run begins to use this transport. It tries the name without prefix first again.

        The endpoint may have refused both names of a request for other reasons, and taken none.
        """
        super().open()
        if not self.dialect.answered:
            self._wants_full_name = self._lists_full_name

    def written(self, body: bytes, dialect: Dialect | None = None) -> bytes:
        """Return a request as the endpoint takes it.

        Args:
            body: the request as JSON.
            dialect: how it is written; None: as all requests are.

        Returns:
            The request in that dialect, with the model's full name if the endpoint has turned out to need it.
        """
        written = (dialect or self.dialect).written(body)
        if self._wants_full_name:
            written = json.dumps({**json.loads(written), "model": self._full_name}).encode()
        return written

    async def _send(
        self, body: bytes, timeout: float, dialect: Dialect, sending: Sending
    ) -> Completion:
        written, in_full = self.written(body, dialect), self._wants_full_name
        try:  # no variable holds the answer: a traceback would show what it repeats
            completion = self._read_completion(
                body, *await self._post("/chat/completions", written, timeout, sending.is_sent)
            )
        except ModelNotFoundError as error:
            error.rewritten = self._tries_other_name(in_full=in_full)
            raise
        except ReplyError as error:
            if error.completion is not None:  # such as one that was cut off
                self._wants_full_name = in_full
            raise
        self._wants_full_name = in_full
        return completion

    def _tries_other_name(self, *, in_full: bool) -> bool:
        """Return whether to send a request again, whose model's name the endpoint does not know.

        Args:
            in_full: whether the request had the full name.
        """
        if not in_full:
            self._wants_full_name |= self.has_two_names
            return self._wants_full_name
        if self.dialect.answered:
            return not self._wants_full_name  # meanwhile it has taken the other name
        self._wants_full_name = self._lists_full_name  # neither is known, or it refuses this row
        return False

    @reads("the reply")
    def _read_json(self, status: int, headers: Mapping[str, str], content: bytes) -> Json:
        """Return the JSON object in an answer of the endpoint.

        Raises:
            ModelError: the endpoint refuses the request, or its answer is not a JSON object.
        """
        if status // 100 != 2:
            raise status_error(status, headers, error_text(content, headers), self.secrets)
        return decode(content)

    @keeps_no_cause
    async def _post(
        self,
        path: str,
        body: bytes | None,
        timeout: float,
        is_sent: Callable[[], object] = object,
    ) -> Answer:
        """POST the body to a path below the address, or GET if the body is None. Return the whole answer.

        Raises:
            TransportError: there is no connection, it broke, or `timeout` seconds have passed.
            ReplyError: the answer is too large.
        """
        method, address = "GET" if body is None else "POST", _address(self._base, path)
        self._renew()
        sent = self._connections.send(
            method,
            address,
            self._sent_headers,
            body,
            name=self.endpoint,
            socket=self._socket,
            is_sent=is_sent,
        )
        return await self._in_time(timeout, self.endpoint, sent)


def root_of(api_base: str) -> str:
    """Return the address of an endpoint without the path of completions, which Azure's portal adds."""
    return _COMPLETIONS.sub(r"\1\2", api_base).rstrip("/")


def _check_credentials(endpoint: str, key: str, headers: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError if an address has a password, and a key or a header takes its place."""
    named = {name.lower() for name in headers}
    given = "api_key" if key else "extra_headers" if "authorization" in named else ""
    if given:
        raise InvalidArgumentError(
            f"api_base={endpoint!r} has a password, and {given}= is given too.",
            hint="An endpoint is told one of them: leave the other out.",
            argument=given,
        )


def _request_headers(key: Mapping[str, str], added: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers of a request. An added one replaces the library's of this name, in any case."""
    named = {name.lower() for name in added}
    ours = {"Content-Type": "application/json", **key}
    return {**{name: text for name, text in ours.items() if name.lower() not in named}, **added}


@cache
def _address(base: str, path: str) -> str:
    """Return the address of a path below the base. A query (Azure's api-version) stays at the end."""
    parts = urlsplit(base)
    return Address(urlunsplit(parts._replace(path=parts.path.rstrip("/") + path)))


class EmbeddedTransport(EndpointTransport):
    """Sends requests to a `.gguf` file that llama.cpp serves on this machine.

    The first request fetches the weights and starts the server. Every model with a chat template is treated
    in the same way: the form of a reply is a JSON schema, which the server turns into a grammar. For a file
    without a chat template, each request raises ModelNotFoundError.

    Args:
        weights: the file.
    """

    enforces_forms = True  # by a grammar
    _is_strict = False

    def __init__(self, weights: Weights) -> None:
        super().__init__(model=Path(weights.file).stem, api_base="", api_key="none")
        self._weights = weights
        self.limits_thinking = True
        # A reply depends on the weights, and not on the port, which differs each time.
        self.endpoint = f"llama.cpp:{weights.sha256}"

    def open(self) -> None:
        """Note that a run begins to use this transport. It may start servers, whatever ended before."""
        super().open()
        local_model(self._weights).reset()

    async def complete(
        self, body: bytes, timeout: float, asked: Asked, sending: Sending
    ) -> Completion:
        """Start the server if necessary, and send the request to the slot that has read most of its prompt.

        Arguments are those of `Transport.complete`. `timeout` counts from when the request is sent.

        Raises:
            ModelNotFoundError: the weights cannot be fetched or loaded, have no chat template, or one that
                stops llama.cpp; or the servers keep ending.
            MissingExtraError: xllamacpp cannot be imported.
            ModelError: the request failed, or its reply cannot be used.
        """

        async def send(server: Server, alone: bool) -> Completion:
            check_chat_template(server)
            self._base, self.key = Address(server.api_base), server.api_key
            self._socket = server.process.socket
            return await self._complete_on(server, body, timeout, asked, sending, alone=alone)

        return await local_model(self._weights).ask(send, chat=body)

    def _refusal(
        self, body: bytes, status: int, headers: Mapping[str, str], words: str
    ) -> ModelError:
        """Make the error for a refusal, which concerns this request alone: there is no account and no rate.

        A chat template may refuse a text in any words, which might look like those of a wrong key.
        """
        error = super()._refusal(body, status, headers, words)
        if error.fatal or isinstance(error, RateLimitError):
            said = self.secrets.mask(words)[:300]
            return RequestRejectedError(f"llama.cpp refuses this request ({status}): {said}")
        return error

    async def _complete_on(
        self,
        server: Server,
        body: bytes,
        timeout: float,
        asked: Asked,
        sending: Sending,
        *,
        alone: bool,
    ) -> Completion:
        _, _, text = body.partition(b'"messages": [')
        start, _, _ = text.rpartition(b'{"role": "user"')
        slots = server.slots
        async with slots.lent(start, text) as slot, server.entered(alone=alone):
            name, held = slots.copy_of(text)
            if slot.known < held:
                await self._act_on_slot(slot.number, "restore", name)
            answer: Completion | ReplyError
            try:
                answer = await self._complete_in(slot.number, body, timeout, asked, sending)
            except ReplyError as error:  # the prompt is read all the same
                answer = error
            if slots.is_awaited(start):
                name = slots.next_copy()
                made = await self._act_on_slot(slot.number, "save", name)
                slots.keep_copy(start, name if made else None)
        if isinstance(answer, ReplyError):
            raise answer
        return answer

    async def _complete_in(
        self, slot: int, body: bytes, timeout: float, asked: Asked, sending: Sending
    ) -> Completion:
        fields = json.loads(body) | {"id_slot": slot}
        return await super().complete(json.dumps(fields).encode(), timeout, asked, sending)

    async def _act_on_slot(self, slot: int, action: str, name: str) -> bool:
        """Save or restore a slot's KV cache. Return whether it worked; if not, the prompt is read again."""
        path, body = f"/../slots/{slot}?action={action}", json.dumps({"filename": name}).encode()
        with suppress(TransportError):
            status, _, _ = await self._post(path, body, _SLOT_ACTION_TIMEOUT)
            return status == 200
        return False
