"""Get log-probabilities of responses from a llama.cpp server, or from a local model's own server.

The server has no call for this, so a grammar makes it generate the response: token literals allow one token
at each step, and `logprobs` are those of the distribution before the grammar. A grammar of plain text would
allow other tokenizations of the same text.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..exceptions import ModelError, ReplyError, RequestRejectedError, TransportError
from ..llm.llamacpp import SLOTS, Server, check_chat_template, local_model
from ..llm.openai_protocol import Json
from ..local.weights import Weights
from ..records import FloatArray
from .interfaces import (
    Chat,
    Failed,
    ScoringEndpoint,
    Tokens,
    TokenText,
    ignored,
    log_probabilities,
    read_text,
    read_tokens,
    tokens_of_text,
)

# llama.cpp hands out float32 probabilities: below the smallest one it says log p = -3.4e38.
_LEAST = float(np.log(np.finfo(np.float32).smallest_subnormal))
# A text that no model generates by itself, of several tokens: some engines hold a grammar for one token only.
_GRAMMAR_PROBE = "plums, 7 of them"
# How many of the likeliest tokens to ask for when a token is looked up among them; 32,768 are a few MB.
_RANKS = (256, 32_768)

_NO_LOG_PROBABILITIES = "the server gave no log-probabilities."


class EmbeddedEndpoint(ScoringEndpoint):
    """The server of a local model; the weights are fetched and it is started at the first request."""

    def __init__(self, weights: Weights, *, concurrency: int, failed: Failed = ignored) -> None:
        slots = min(concurrency, SLOTS)
        super().__init__(weights.file, "", "none", concurrency=slots, failed=failed)
        self._weights = weights
        self.endpoint = f"llama.cpp:{weights.file}"

    def open(self) -> None:
        """A run begins: it may start servers again, however many have ended before."""
        super().open()
        local_model(self._weights).reset()

    async def read(self, path: str) -> Json:
        """Start the server if necessary, and GET from it."""

        async def send(server: Server, alone: bool) -> Json:
            self._connect_to(server)
            async with server.entered(alone=alone):
                return await super(EmbeddedEndpoint, self).read(path)

        return await local_model(self._weights).ask(send, chat=None)

    async def ask(self, path: str, body: Json) -> Json:
        """Start the server if necessary; completions go to the slot that has read most of the prompt.

        Raises:
            ModelNotFoundError: the weights cannot be fetched or loaded, lack a chat template, or have one
                that stops llama.cpp; or the servers keep ending.
        """
        return await self._retrying(self._ask_server, path, body)

    async def _ask_server(self, path: str, body: Json) -> Json:
        is_chat = path == "/apply-template"

        async def send(server: Server, alone: bool) -> Json:
            self._connect_to(server)
            if is_chat:
                check_chat_template(server)
            if path != "/completion":
                async with server.entered(alone=alone):
                    return await self._ask(path, json.dumps(body).encode())
            tokens = array("I", body["prompt"]).tobytes()
            async with server.slots.lent(b"", tokens) as slot, server.entered(alone=alone):
                return await self._ask(path, json.dumps(body | {"id_slot": slot.number}).encode())

        chat = json.dumps(body).encode() if is_chat else None
        return await local_model(self._weights).ask(send, chat=chat)

    def _connect_to(self, server: Server) -> None:
        self._base, self.key = server.api_base.removesuffix("/v1"), server.api_key
        self._socket = server.process.socket


class ForcedDecoding:
    """A `Scorer` of the model that a llama.cpp server has loaded."""

    decodes = True

    def __init__(self, endpoint: ScoringEndpoint) -> None:
        self._endpoint = endpoint
        self._grammar: Callable[[Sequence[int]], str] | None = None
        self._clean: dict[int, bool] = {}  # tokens seen, and whether they are whole characters
        self._filler = -1  # a token that is
        self._context: int | None = None
        self._asked_context = False

    def context(self) -> int | None:
        """The tokens that one slot of the server holds; None where /props does not say."""
        if not self._asked_context:
            props = self._endpoint.one(self._endpoint.read, "/props")
            settings = props.get("default_generation_settings")
            size = settings.get("n_ctx") if isinstance(settings, dict) else None
            self._context = size if isinstance(size, int) and size > 0 else None
            self._asked_context = True
        return self._context

    def encode(self, texts: Sequence[str]) -> list[Tokens | None]:
        """The tokens of each text; marks of special tokens are text."""
        return self._endpoint.each(self._encode, texts)

    async def _encode(self, text: str) -> Tokens:
        body = {"content": text, "add_special": False, "parse_special": False, "with_pieces": True}
        reply = await self._endpoint.ask("/tokenize", body)
        try:
            pieces = {int(token["id"]): token["piece"] for token in reply["tokens"]}
            tokens = tuple(int(token["id"]) for token in reply["tokens"])
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            raise ReplyError("the server's /tokenize gave no tokens with pieces.") from None
        self._clean.update((token, _is_clean(piece)) for token, piece in pieces.items())
        return tokens_of_text(text, tokens)

    def encode_prefixes(self, prefixes: Sequence[str | Chat]) -> list[Tokens | None]:
        """The tokens of plain text, or of a chat by the template in the weights."""
        return self._endpoint.each(self._encode_prefix, prefixes)

    async def _encode_prefix(self, prefix: str | Chat) -> Tokens:
        if not isinstance(prefix, str):
            messages = [message.model_dump() for message in prefix]
            reply = await self._endpoint.ask("/apply-template", {"messages": messages})
            prefix = read_text(reply, "prompt")
        body = {"content": prefix, "add_special": True, "parse_special": True}
        return read_tokens(await self._endpoint.ask("/tokenize", body))

    def score(self, texts: Sequence[TokenText]) -> list[FloatArray | None]:
        """log p of each token of each response.

        Texts with the same start follow each other to the same slot of the server, which has read the
        beginning then.
        """
        if self._grammar is None:
            self._grammar = self._endpoint.one(self._find_grammar, _GRAMMAR_PROBE)
        order = sorted(range(len(texts)), key=lambda place: texts[place].prefix)
        runs = _runs([texts[place].prefix for place in order], self._endpoint.concurrency)
        scores = self._endpoint.each(self._score, [texts[place] for place in order], runs)
        return [scores[place] for place in np.argsort(order, kind="stable")]

    async def _find_grammar(self, text: str) -> Callable[[Sequence[int]], str]:
        """Find the grammar engine: llguidance, which is faster, or the one that every server has."""
        tokens = await self._encode(text)
        self._filler = tokens[0]
        for grammar in (_llguidance, _gbnf):
            try:
                await self._forced(grammar, tokens, tokens)
            except (RequestRejectedError, TransportError, ReplyError):
                continue
            return grammar
        raise ModelError(
            "this llama.cpp server cannot be made to generate given tokens.",
            hint="Its grammars have no token literals: use a release of 2026, or transformers.",
        )

    async def _score(self, text: TokenText) -> FloatArray:
        """Score one text. Parts of characters are looked up: the server gives no log-probability for them."""
        assert self._grammar is not None
        prefix, scores = text.prefix, list[float]()
        for clean, tokens in self._pieces(text.response):
            if clean:
                scores += await self._forced(self._grammar, prefix, tokens)
            else:
                scores.append(await self._looked_up(self._grammar, prefix, tokens[0]))
            prefix += tokens
        return np.maximum(log_probabilities(scores), _LEAST)

    def _pieces(self, response: Tokens) -> Iterator[tuple[bool, Tokens]]:
        """Runs of tokens that are whole characters, and single ones that are not."""
        start = 0
        for place, token in enumerate(response):
            if not self._clean.get(token, False):
                if start < place:
                    yield True, response[start:place]
                yield False, (token,)
                start = place + 1
        if start < len(response):
            yield True, response[start:]

    async def _forced(
        self, grammar: Callable[[Sequence[int]], str], prefix: Tokens, tokens: Tokens
    ) -> list[float]:
        records = await self._said(grammar, prefix, tokens, ranks=1)
        return [logprob for _, logprob in _read(records)]

    async def _looked_up(
        self, grammar: Callable[[Sequence[int]], str], prefix: Tokens, token: int
    ) -> float:
        """log p of one token, read from the list of likeliest tokens while another token is generated."""
        for ranks in _RANKS:
            [record] = await self._said(grammar, prefix, (self._filler,), ranks=ranks)
            likeliest = _read(record.get("top_logprobs"))
            found = [logprob for other, logprob in likeliest if other == token]
            if found:
                return found[0]
        return likeliest[-1][1]  # an upper bound: the token is less likely than all of these

    async def _said(
        self,
        grammar: Callable[[Sequence[int]], str],
        prefix: Tokens,
        tokens: Tokens,
        *,
        ranks: int,
    ) -> list[dict[str, Any]]:
        body = {
            "prompt": prefix,
            "n_predict": len(tokens),
            "grammar": grammar(tokens),
            "n_probs": ranks,
            "temperature": 0,
            "samplers": [],  # the grammar allows one token, so sampling changes nothing
            "cache_prompt": True,
            "response_fields": ["completion_probabilities"],
        }
        reply = await self._endpoint.ask("/completion", body)
        try:
            records: list[dict[str, Any]] = reply["completion_probabilities"]
            said = tuple(record["id"] for record in records)
        except (LookupError, TypeError, AttributeError):
            raise ReplyError(_NO_LOG_PROBABILITIES) from None
        if said != tokens:
            raise ReplyError(
                f"the server generated {len(said)} tokens, not the {len(tokens)} that were asked for.",
                hint="Is its context (n_ctx) long enough? Lower max_prompt_tokens=.",
            )
        return records


def _llguidance(tokens: Sequence[int]) -> str:
    return "%llguidance {}\nstart: " + " ".join(f"<[{token}]>" for token in tokens)


def _gbnf(tokens: Sequence[int]) -> str:
    return "root ::= " + " ".join(f"<[{token}]>" for token in tokens)


def _read(entries: Any) -> list[tuple[int, float]]:
    """Tokens and their log-probabilities."""
    try:
        found = [(int(entry["id"]), float(entry["logprob"])) for entry in entries]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise ReplyError(_NO_LOG_PROBABILITIES) from None
    if not found:
        raise ReplyError(_NO_LOG_PROBABILITIES)
    return found


def _is_clean(piece: str | list[int]) -> bool:
    """Whether a token is whole characters: pieces that are not UTF-8 come as lists of bytes.

    A NUL ends the text for some engines of grammars.
    """
    return isinstance(piece, str) and "\0" not in piece


def _runs(prefixes: Sequence[Tokens], workers: int) -> Iterator[slice]:
    """Slices of sorted texts whose prefixes share half or more, short enough to keep all workers busy."""
    longest = -(-len(prefixes) // workers)
    start = 0
    for place in range(1, len(prefixes) + 1):
        if (
            place == len(prefixes)
            or place - start >= longest
            or 2 * _shared(prefixes[place - 1], prefixes[place]) < len(prefixes[place])
        ):
            yield slice(start, place)
            start = place


def _shared(one: Tokens, other: Tokens) -> int:
    """How many tokens two texts have in common at their start."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(one), len(other)))
