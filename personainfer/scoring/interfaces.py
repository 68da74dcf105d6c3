"""The interface of all scorers: tokens in, log-probabilities out; checks of rows; a client of servers.

A text is scored as two lists of tokens: the prefix that is given, and the response. Each is tokenized by
itself, so that no token spans the boundary and a response has the same tokens after every prefix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from .. import event_loop
from ..connections import attempts
from ..exceptions import (
    InvalidArgumentError,
    ModelError,
    PersonaInferError,
    ReplyError,
    RequestRejectedError,
    keeps_no_cause,
    reads,
    unreadable,
)
from ..llm.openai_protocol import Json
from ..llm.transports import EndpointTransport
from ..records import FloatArray, Message, Persona, Prompt

_ROUNDING = 1e-3  # by how much log p may exceed 0 where it was computed in half precision
_OF_ONE_TEXT = (RequestRejectedError, ReplyError)  # the next one may pass
_FIRST_REFUSED = 16  # texts: if the server refuses the first ones, it refuses all
_FIRST_FAILED = 3  # if it fails at the first ones, it is away
_GONE_AFTER = 20  # failures in a row after which nothing more is sent

T = TypeVar("T")
U = TypeVar("U")

PromptLike = str | Sequence[Message]
Row = tuple[Prompt, str | None, str]  # prompt, persona, response
Chat = Sequence[Message]
Tokens = tuple[int, ...]
# Is told of texts at which a scorer failed, if it scored others: how many, and the first error.
Failed = Callable[[int, PersonaInferError], object]


@dataclass(frozen=True, slots=True)
class TokenText:
    """A text to score: the tokens of `response`, given those of `prefix`."""

    prefix: Tokens
    response: Tokens


class Scorer(Protocol):
    """A language model that gives the log-probabilities of a text.

    `decodes`: whether each scored token costs a step of decoding; a scorer that reads whole texts at once
    does not.
    """

    decodes: bool

    def context(self) -> int | None:
        """The most tokens of prefix and response together; None: unknown or unlimited."""

    def encode(self, texts: Sequence[str]) -> Sequence[Tokens | None]:
        """The tokens of each text; a text that looks like a special token does not become one.

        None for a text that is refused, here and below.
        """

    def encode_prefixes(self, prefixes: Sequence[str | Chat]) -> Sequence[Tokens | None]:
        """The tokens of what comes before a response: plain text, or a chat by the model's template.

        Marks of special tokens become these tokens; the token that begins a text is added.
        """

    def score(self, texts: Sequence[TokenText]) -> Sequence[FloatArray | None]:
        """log p of each token of each response, in nats; no response is empty."""


def ignored(count: int, first: PersonaInferError) -> None:
    """A `Failed` that does nothing."""


class ScoringEndpoint(EndpointTransport):
    """Client of a server that scores. Repeats requests that may succeed later."""

    def __init__(
        self,
        model: str,
        api_base: str,
        api_key: str | None = None,
        *,
        concurrency: int,
        timeout: float = 600.0,
        max_attempts: int = 5,
        failed: Failed = ignored,
    ) -> None:
        # Scoring wants llama.cpp's and vLLM's own paths, which lie beside /v1.
        super().__init__(model, api_base.rstrip("/").removesuffix("/v1"), api_key)
        self.concurrency = concurrency
        self._timeout = timeout
        self._retrying = attempts(max_attempts)
        self._failed = failed

    async def ask(self, path: str, body: Json) -> Json:
        """POST `body` and read the JSON reply.

        Raises:
            ModelError: no usable reply after all attempts.
        """
        return await self._retrying(self._ask, path, json.dumps(body).encode())

    async def _ask(self, path: str, body: bytes) -> Json:
        return self._read_json(*await self._post(path, body, self._timeout))

    async def read(self, path: str) -> Json:
        """GET a JSON document; {} where the server has none.

        Raises:
            TransportError: the server cannot be reached.
        """
        return self._read_if_there(*await self._post(path, None, self._timeout))

    @reads("the reply")
    def _read_if_there(self, status: int, *answer: Any) -> Json:
        return self._read_json(status, *answer) if status // 100 == 2 else {}

    def one(self, ask: Callable[[T], Coroutine[Any, Any, U]], item: T) -> U:
        """`each` of a single item."""
        [found] = self.each(ask, [item])
        assert found is not None  # it would have been raised
        return found

    @keeps_no_cause
    def each(
        self,
        ask: Callable[[T], Coroutine[Any, Any, U]],
        items: Sequence[T],
        runs: Iterable[slice] | None = None,
    ) -> list[U | None]:
        """Call `ask` for every item, several at once; results in order, None where the server fails.

        `ask` reads what the server sent. Whatever that is, the error is one of this library.

        Args:
            ask: what is called.
            items: for which it is called.
            runs: those that are asked for one after the other; None: each by itself.

        Raises:
            ModelError: the first failure, if the server fails at all items, or at the first ones.
        """
        runs = runs or [slice(n, n + 1) for n in range(len(items))]
        replies, first = event_loop.run(self._each(ask, items, runs))
        if first is not None:
            self._failed(len(items) - len(replies), first)
        return [replies.get(place) for place in range(len(items))]

    async def _each(
        self,
        ask: Callable[[T], Coroutine[Any, Any, U]],
        items: Sequence[T],
        runs: Iterable[slice],
    ) -> tuple[dict[int, U], ModelError | None]:
        """The results by the places of their items, and the first failure."""
        import asyncio

        replies: dict[int, U] = {}
        failures = _Failures(len(items))
        queue = iter(runs)

        async def work() -> None:
            for run in queue:
                for place in range(*run.indices(len(items))):
                    if failures.in_a_row >= _GONE_AFTER:
                        return
                    try:
                        replies[place] = await ask(items[place])
                        failures.in_a_row, failures.only = 0, False
                    except ModelError as error:
                        failures.add(error)
                    except PersonaInferError:
                        raise
                    except Exception as error:
                        failures.add(unreadable("what the server answered", error))

        self.open()
        workers = [asyncio.ensure_future(work()) for _ in range(min(self.concurrency, len(items)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self.close()
        return replies, failures.first


class _Failures:
    """The failures of a server at some of so many texts."""

    def __init__(self, texts: int) -> None:
        self.first: ModelError | None = None
        self.in_a_row = 0  # for another reason than what a text holds
        self.only = True  # whether nothing was answered
        self._all_fail_after = min(texts, _FIRST_REFUSED)
        self._count = 0

    def add(self, error: ModelError) -> None:
        """Count one more. Raises the first failure if all texts will fail."""
        self.first = self.first or error
        self._count += 1
        self.in_a_row = 0 if isinstance(error, _OF_ONE_TEXT) else self.in_a_row + 1
        if self.only and (self._count == self._all_fail_after or self.in_a_row == _FIRST_FAILED):
            raise self.first


def read_tokens(reply: Json) -> Tokens:
    """The list that both llama.cpp and vLLM send from /tokenize."""
    tokens = reply.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ReplyError("the endpoint's /tokenize gave no list of tokens.")
    return tuple(tokens)


def tokens_of_text(text: str, tokens: Tokens) -> Tokens:
    """The tokens of a text, which has some.

    Raises:
        ReplyError: there is none. A score of no token would be that of an empty text.
    """
    if text.strip() and not tokens:
        raise ReplyError("the endpoint's /tokenize gave no token for a text that has words.")
    return tokens


def read_text(reply: Json, field: str) -> str:
    """The text that a server sends in this field."""
    if not isinstance(reply.get(field), str):
        raise ReplyError(f"the endpoint's reply has no text {field!r}.")
    return str(reply[field])


def log_probabilities(values: Sequence[float]) -> FloatArray:
    """log p of each token as a server sent them, shape (tokens,).

    Raises:
        ReplyError: a value is no logarithm of a probability: NaN, infinite, or more than 0.
    """
    found = np.array(values, dtype=float)
    if not (np.isfinite(found) & (found <= _ROUNDING)).all():
        raise ReplyError("the server gave log-probabilities that are none: NaN, or more than 0.")
    found[found > 0] = 0.0
    return found


# Rows to be scored: as many prompts and personas as responses


def check_rows(
    prompts: Sequence[PromptLike],
    personas: Sequence[Persona | str | None],
    responses: Sequence[str],
) -> list[Row]:
    check_lengths(prompts=prompts, personas=personas, responses=responses)
    given = enumerate(zip(prompts, personas, responses, strict=True))
    return [check_row(number, *one) for number, one in given]


def check_row(number: int, prompt: object, persona: object, response: object) -> Row:
    if not (persona is None or isinstance(persona, str | Persona)):
        raise InvalidArgumentError(
            f"personas[{number}]={persona!r:.80} is neither a persona, nor text, nor None."
        )
    if not isinstance(response, str):
        raise InvalidArgumentError(f"responses[{number}]={response!r:.80} is not text.")
    row = _prompt(number, prompt), None if persona is None else str(persona), response
    try:
        "".join(text for text in row if isinstance(text, str)).encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"row {number} holds half of a surrogate pair.") from None
    return row


def _prompt(number: int, prompt: object) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list | tuple) and prompt:
        messages = tuple(one for one in prompt if isinstance(one, Message))
        if len(messages) == len(prompt):
            return messages
    raise InvalidArgumentError(
        f"prompts[{number}]={prompt!r:.80} is neither text nor a sequence of personainfer.Message."
    )


def check_lengths(**columns: object) -> None:
    lengths = {}
    for name, column in columns.items():
        if isinstance(column, str) or not isinstance(column, Sized):
            raise InvalidArgumentError(f"{name}={column!r:.80} is not a sequence, one item a row.")
        lengths[name] = len(column)
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{size} {name}" for name, size in lengths.items())
        raise InvalidArgumentError(f"{said}: one of each a row is needed.")
