"""The interface of all scorers, checks of the rows to score, and a client of servers that score.

A scorer takes tokens and returns their log-probabilities. A text to score has two parts: the prefix, which is
given, and the response. Each part is tokenized by itself, so that no token spans the boundary and a response
has the same tokens after every prefix.
"""

from __future__ import annotations

import asyncio
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
from ..llm.transports import EndpointTransport, root_of
from ..preferences.cells import is_null
from ..preferences.conversations import text_problem
from ..records import FloatArray, Message, Persona, Prompt

_ROUNDING = 1e-3  # by how much log p may exceed 0 where it was computed in half precision
_OF_ONE_TEXT = (RequestRejectedError, ReplyError)  # errors that the next text may not have
_FIRST_REFUSED = 16  # a server that refuses this many texts, and answers none, refuses all
_FIRST_FAILED = 3  # a server that fails this often in a row, and answers nothing, is down
_GONE_AFTER = 20  # after this many failures in a row nothing more is sent

T = TypeVar("T")
U = TypeVar("U")

PromptLike = str | Sequence[Message]
Row = tuple[Prompt, str | None, str]  # prompt, persona, response
Chat = Sequence[Message]
Tokens = tuple[int, ...]
# A callback (count, first error): a scorer calls it if it failed at some texts and scored others.
Failed = Callable[[int, PersonaInferError], object]


@dataclass(frozen=True, slots=True)
class TokenText:
    """A text whose response is scored: log p of the tokens of `response`, given those of `prefix`."""

    prefix: Tokens
    response: Tokens


class Scorer(Protocol):
    """A language model that computes the log-probabilities of a text's tokens. Its methods block.

    Attributes:
        decodes: True if each scored token takes a decoding step, so that fewer tokens take less time. False
            if a text is read in one pass.
    """

    decodes: bool

    def context(self) -> int | None:
        """Return the most tokens that prefix and response may have together; None: unknown or unlimited."""

    def encode(self, texts: Sequence[str]) -> Sequence[Tokens | None]:
        """Tokenize each text; None for a text at which the scorer failed.

        Text that looks like a special token ("<|im_end|>") is tokenized as ordinary text.
        """

    def encode_prefixes(self, prefixes: Sequence[str | Chat]) -> Sequence[Tokens | None]:
        """Tokenize what stands before a response; None for a prefix that was refused, or failed.

        A chat is formatted by the model's template, whose marks become special tokens. The token that begins
        a text (BOS) is added where the model has one.
        """

    def score(self, texts: Sequence[TokenText]) -> Sequence[FloatArray | None]:
        """Compute log p of each response's tokens, in nats: an array (tokens,) for each text, in order.

        A text at which the scorer failed gets None. No response may be empty.
        """


def ignored(count: int, first: PersonaInferError) -> None:
    """Do nothing: the default for callbacks of the type `Failed`."""


class ScoringEndpoint(EndpointTransport):
    """A client of a server that scores. It repeats requests that may succeed later.

    Args:
        model: the model's name at the server.
        api_base: the server's address, with or without "/v1" at its end.
        api_key: the key; None: no key, but for an https address of OpenAI or Azure that of the environment.
        concurrency: how many requests may be in flight.
        timeout: seconds for one request.
        max_attempts: how often a request is sent at most.
        failed: `each` calls it if the server failed at some items and not at others: with how many, and the
            first error.
    """

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
        super().__init__(model, root_of(api_base).removesuffix("/v1"), api_key)
        self.concurrency = concurrency
        self._timeout = timeout
        self._retrying = attempts(max_attempts)
        self._failed = failed

    async def ask(self, path: str, body: Json) -> Json:
        """POST `body`, and return the JSON reply.

        Raises:
            ModelError: no attempt got a usable reply.
        """
        return await self._retrying(self._ask, path, json.dumps(body).encode())

    async def _ask(self, path: str, body: bytes) -> Json:
        return self._read_json(*await self._post(path, body, self._timeout))

    async def read(self, path: str) -> Json:
        """GET a JSON document; {} if the answer's status is not 2xx.

        Raises:
            TransportError: the server cannot be reached.
        """
        return self._read_if_there(*await self._post(path, None, self._timeout))

    @reads("the reply")
    def _read_if_there(self, status: int, *answer: Any) -> Json:
        return self._read_json(status, *answer) if status // 100 == 2 else {}

    def one(self, ask: Callable[[T], Coroutine[Any, Any, U]], item: T) -> U:
        """Call `ask` for one item, and return its result.

        Raises:
            ModelError: the server failed.
        """
        [found] = self.each(ask, [item])
        assert found is not None  # `each` raises if all items fail
        return found

    @keeps_no_cause
    def each(
        self,
        ask: Callable[[T], Coroutine[Any, Any, U]],
        items: Sequence[T],
        runs: Iterable[slice] | None = None,
    ) -> list[U | None]:
        """Call `ask` for every item, up to `concurrency` at once, and wait for all results.

        Args:
            ask: sends an item to the server and reads the reply. Any error that it raises while reading
                becomes a `ModelError`.
            items: the items.
            runs: slices of `items`; one worker asks for the items of a slice one after the other. None: each
                item is a slice of its own.

        Returns:
            The result of each item, in order; None where the server failed, or where nothing was sent because
            it had failed 20 times in succession.

        Raises:
            ModelError: the first failure, if the server failed at all items, at the first 16, or in a way
                that is not about one item's content at the first 3.
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
        """Return place of an item -> its result, and the first failure."""
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
    """Counts the failures of a server at a number of texts, and decides when to give up.

    Attributes:
        first: the first failure; None: there is none.
        in_a_row: how many failures came in succession that were not about one text's content.
        only: whether no text was answered so far.
    """

    def __init__(self, texts: int) -> None:
        self.first: ModelError | None = None
        self.in_a_row = 0  # failures that are not about one text's content
        self.only = True  # whether no text was answered so far
        self._all_fail_after = min(texts, _FIRST_REFUSED)
        self._count = 0

    def add(self, error: ModelError) -> None:
        """Count a failure.

        Raises:
            ModelError: the first failure, if all texts are expected to fail.
        """
        self.first = self.first or error
        self._count += 1
        self.in_a_row = 0 if isinstance(error, _OF_ONE_TEXT) else self.in_a_row + 1
        if self.only and (self._count == self._all_fail_after or self.in_a_row == _FIRST_FAILED):
            raise self.first


def read_tokens(reply: Json) -> Tokens:
    """Read the tokens in a reply of /tokenize, by llama.cpp or vLLM.

    Raises:
        ReplyError: the reply holds no list of tokens.
    """
    tokens = reply.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise ReplyError("the endpoint's /tokenize gave no list of tokens.")
    return tuple(tokens)


def tokens_of_text(text: str, tokens: Tokens) -> Tokens:
    """Check that a text with words has tokens, and return the tokens.

    Raises:
        ReplyError: a text with words has no token. It would get the score of an empty text.
    """
    if text.strip() and not tokens:
        raise ReplyError("the endpoint's /tokenize gave no token for a text that has words.")
    return tokens


def read_text(reply: Json, field: str) -> str:
    """Read a text field of a reply.

    Raises:
        ReplyError: the field is missing, or is no text.
    """
    if not isinstance(reply.get(field), str):
        raise ReplyError(f"the endpoint's reply has no text {field!r}.")
    return str(reply[field])


def log_probabilities(values: Sequence[float]) -> FloatArray:
    """Check log-probabilities that a server sent, and return them as an array, shape (tokens,).

    Values up to 0.001 above 0 are rounding errors, and become 0.

    Raises:
        ReplyError: a value is NaN, infinite, or more than 0.001.
    """
    found = np.array(values, dtype=float)
    if not (np.isfinite(found) & (found <= _ROUNDING)).all():
        raise ReplyError("the server gave log-probabilities that are none: NaN, or more than 0.")
    found[found > 0] = 0.0
    return found


def common_start(one: Tokens, other: Tokens) -> int:
    """Count the tokens that two texts have in common at their start."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(one), len(other)))


# Checks of rows to score


def check_rows(
    prompts: Sequence[PromptLike],
    personas: Sequence[Persona | str | None],
    responses: Sequence[str],
) -> list[Row]:
    """Check n prompts, n personas and n responses. Return them as rows, with each persona as text or None.

    Raises:
        InvalidArgumentError: the lengths differ, or a value is of the wrong type.
    """
    check_lengths(prompts=prompts, personas=personas, responses=responses)
    given = enumerate(zip(prompts, personas, responses, strict=True))
    return [check_row(number, *one) for number, one in given]


def check_row(number: int, prompt: object, persona: object, response: object) -> Row:
    """Check one row, and return it with the persona as text. `number` is its place, for errors.

    A null, such as the NaN of a pandas column, is the persona None.

    Raises:
        InvalidArgumentError: a value is of the wrong type, or cannot be written as JSON in UTF-8: it holds
            half of a surrogate pair, for one, in any part of a conversation.
    """
    persona = None if is_null(persona) else persona
    if not (persona is None or isinstance(persona, str | Persona)):
        raise InvalidArgumentError(
            f"personas[{number}]={persona!r:.80} is neither a persona, nor text, nor None."
        )
    if not isinstance(response, str):
        raise InvalidArgumentError(f"responses[{number}]={response!r:.80} is not text.")
    row = _prompt(number, prompt), None if persona is None else str(persona), response
    if any(text_problem("", value) for value in row):
        raise InvalidArgumentError(
            f"row {number} holds half of a surrogate pair, or a turn with a field that JSON cannot hold."
        )
    return row


def _prompt(number: int, prompt: object) -> Prompt:
    """Return a prompt as text, or a conversation as a tuple of messages. Raises InvalidArgumentError."""
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
    """Raise InvalidArgumentError unless all arguments are sequences of the same length."""
    lengths = {}
    for name, column in columns.items():
        single = isinstance(column, str) or getattr(column, "shape", None) == ()  # of an array
        if single or not isinstance(column, Sized):
            raise InvalidArgumentError(f"{name}={column!r:.80} is not a sequence, one item a row.")
        lengths[name] = len(column)
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{size} {name}" for name, size in lengths.items())
        raise InvalidArgumentError(f"{said}: one of each a row is needed.")
