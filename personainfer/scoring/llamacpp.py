"""Get log-probabilities of responses from a llama.cpp server: one at an address, or that of a local model.

The server has no call for this, so a grammar makes it generate the response. The grammar consists of token
literals, so that it allows one token at each step; `logprobs` come from the distribution before the grammar
is applied. A grammar of plain text would allow other tokenizations of the same text.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..exceptions import ModelError, ReplyError, RequestRejectedError, TransportError
from ..llm.openai_protocol import Json
from ..local.local_models import SLOTS, Server, check_chat_template, local_model
from ..local.weights import Weights
from ..records import FloatArray
from .interfaces import (
    Chat,
    Failed,
    ScoringEndpoint,
    Tokens,
    TokenText,
    common_start,
    ignored,
    log_probabilities,
    read_text,
    read_tokens,
    tokens_of_text,
)

Grammar = Callable[[Sequence[int]], str]  # tokens -> a grammar that allows only these, in order

# llama.cpp computes probabilities in float32: for a smaller one it sends log p = -3.4e38.
_LEAST = float(np.log(np.finfo(np.float32).smallest_subnormal))
# A text that no model generates by itself. It has several tokens, since some servers apply a grammar to the
# first token only.
_GRAMMAR_PROBE = "plums, 7 of them"
# To look a token up, ask for this many of the likeliest tokens; 32,768 of them are a few MB.
_RANKS = (256, 32_768)

_NO_LOG_PROBABILITIES = "the server gave no log-probabilities."


class EmbeddedEndpoint(ScoringEndpoint):
    """A client of a local model's own server. The first request fetches the weights and starts the server.

    Args:
        weights: the weights that the server runs.
        concurrency: how many requests may be in flight; the server's slots are an upper limit.
        failed: as for `ScoringEndpoint`.
    """

    def __init__(self, weights: Weights, *, concurrency: int, failed: Failed = ignored) -> None:
        slots = min(concurrency, SLOTS)
        super().__init__(weights.file, "", "none", concurrency=slots, failed=failed)
        self._weights = weights
        self.endpoint = f"llama.cpp:{weights.file}"

    def open(self) -> None:
        """Begin a run. Earlier servers that ended do not count against its limit of restarts."""
        super().open()
        local_model(self._weights).reset()

    async def read(self, path: str) -> Json:
        """Start the server if necessary, and GET a JSON document; {} if the answer's status is not 2xx.

        Raises:
            ModelNotFoundError: the weights cannot be fetched or loaded, or too many servers have ended.
            MissingExtraError: xllamacpp cannot be imported.
            TransportError: the server cannot be reached.
        """

        async def send(server: Server, alone: bool) -> Json:
            self._connect_to(server)
            async with server.entered(alone=alone):
                return await super(EmbeddedEndpoint, self).read(path)

        return await local_model(self._weights).ask(send, chat=None)

    async def ask(self, path: str, body: Json) -> Json:
        """Start the server if necessary, POST `body`, and return the JSON reply.

        A completion goes to the slot whose KV cache holds most of its prompt.

        Args:
            path: such as "/completion", "/tokenize" or "/apply-template".
            body: the fields of the request. For "/completion", `prompt` is a list of the ids of tokens.

        Raises:
            ModelNotFoundError: the weights cannot be fetched or loaded, or each new server ends. For
                "/apply-template" also: they have no chat template, or one that crashes llama.cpp.
            MissingExtraError: xllamacpp cannot be imported.
            ModelError: no attempt got a usable reply.
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
    """A `Scorer` that makes a llama.cpp server generate the responses."""

    decodes = True

    def __init__(self, endpoint: ScoringEndpoint) -> None:
        self._endpoint = endpoint
        self._grammar: Grammar | None = None
        self._clean: dict[int, bool] = {}  # token -> whether it consists of whole characters
        self._filler = -1  # a token of whole characters
        self._context: int | None = None
        self._asked_context = False

    def context(self) -> int | None:
        """Return how many tokens one slot of the server holds; None if /props does not tell."""
        if not self._asked_context:
            props = self._endpoint.one(self._endpoint.read, "/props")
            settings = props.get("default_generation_settings")
            size = settings.get("n_ctx") if isinstance(settings, dict) else None
            self._context = size if isinstance(size, int) and size > 0 else None
            self._asked_context = True
        return self._context

    def encode(self, texts: Sequence[str]) -> list[Tokens | None]:
        """Tokenize each text; None where the server failed. Marks of special tokens are ordinary text.

        Raises:
            ModelError: as `ScoringEndpoint.each`.
        """
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
        """Tokenize plain text, or a chat by the template in the weights; None where the server failed.

        Raises:
            ModelError: as `ScoringEndpoint.each`.
        """
        return self._endpoint.each(self._encode_prefix, prefixes)

    async def _encode_prefix(self, prefix: str | Chat) -> Tokens:
        if not isinstance(prefix, str):
            messages = [message.model_dump() for message in prefix]
            reply = await self._endpoint.ask("/apply-template", {"messages": messages})
            last, prefix = prefix[-1], read_text(reply, "prompt")
            said = last.content.strip() if last.role == "assistant" else ""
            if said and prefix.rstrip().endswith(said):
                raise RequestRejectedError(
                    "this llama.cpp server would go on with the assistant's last turn, not answer it.",
                    hint="Start it with --no-prefill-assistant.",
                )
        body = {"content": prefix, "add_special": True, "parse_special": True}
        return read_tokens(await self._endpoint.ask("/tokenize", body))

    def score(self, texts: Sequence[TokenText]) -> list[FloatArray | None]:
        """Compute log p of each response's tokens, in nats: an array (tokens,) for each text, in order.

        A text at which the server failed gets None. Texts are sent in the order of their prefixes, and one
        worker sends texts with a common start one after the other, so that the slot has the start in its KV
        cache.

        Raises:
            ModelError: as `ScoringEndpoint.each`; or the server cannot be made to generate given tokens.
        """
        if self._grammar is None:
            self._grammar = self._endpoint.one(self._find_grammar, _GRAMMAR_PROBE)
        order = sorted(range(len(texts)), key=lambda place: texts[place].prefix)
        runs = _runs([texts[place].prefix for place in order], self._endpoint.concurrency)
        scores = self._endpoint.each(self._score, [texts[place] for place in order], runs)
        return [scores[place] for place in np.argsort(order, kind="stable")]

    async def _find_grammar(self, text: str) -> Grammar:
        """Find a grammar that this server can use: llguidance, which is faster, or GBNF.

        Raises:
            ModelError: the server can use neither.
        """
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
        """Score one text.

        Tokens that are parts of characters are looked up: the server gives no log-probability for them.
        """
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
        """Split a response into runs of tokens of whole characters (True), and other single tokens."""
        start = 0
        for place, token in enumerate(response):
            if not self._clean.get(token, False):
                if start < place:
                    yield True, response[start:place]
                yield False, (token,)
                start = place + 1
        if start < len(response):
            yield True, response[start:]

    async def _forced(self, grammar: Grammar, prefix: Tokens, tokens: Tokens) -> list[float]:
        records = await self._generate(grammar, prefix, tokens, ranks=1)
        return [logprob for _, logprob in _read(records)]

    async def _looked_up(self, grammar: Grammar, prefix: Tokens, token: int) -> float:
        """Read log p of one token from the list of likeliest tokens, while another token is generated.

        If it is not among the 32,768 likeliest, return log p of the last of these, an upper bound.
        """
        for ranks in _RANKS:
            [record] = await self._generate(grammar, prefix, (self._filler,), ranks=ranks)
            likeliest = _read(record.get("top_logprobs"))
            found = [logprob for other, logprob in likeliest if other == token]
            if found:
                return found[0]
        return likeliest[-1][1]  # an upper bound: the token is less likely than all of these

    async def _generate(
        self, grammar: Grammar, prefix: Tokens, tokens: Tokens, *, ranks: int
    ) -> list[dict[str, Any]]:
        """Make the server generate these tokens, and return its record of each.

        Args:
            grammar: makes the grammar that allows only `tokens`.
            prefix: the tokens before.
            tokens: the tokens to generate.
            ranks: how many of the likeliest tokens each record has.

        Raises:
            ReplyError: the reply has no records, or records of other tokens.
        """
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
    """Read (token, log-probability) pairs from records of the server.

    Raises:
        ReplyError: there is none, or a record holds no number.
    """
    try:
        found = [(int(entry["id"]), float(entry["logprob"])) for entry in entries]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise ReplyError(_NO_LOG_PROBABILITIES) from None
    if not found:
        raise ReplyError(_NO_LOG_PROBABILITIES)
    return found


def _is_clean(piece: str | list[int]) -> bool:
    """Whether a token can be forced by a grammar: it consists of whole characters, and none is NUL.

    /tokenize sends a piece that is not UTF-8 as a list of bytes. Some grammar engines stop at a NUL.
    """
    return isinstance(piece, str) and "\0" not in piece


def _runs(prefixes: Sequence[Tokens], workers: int) -> Iterator[slice]:
    """Slice sorted prefixes into runs for one worker each.

    A prefix of a run shares at least half of its tokens with the one before it. No run is longer than
    1 / `workers` of all prefixes, so that every worker has something to do.
    """
    longest = -(-len(prefixes) // workers)
    start = 0
    for place in range(1, len(prefixes) + 1):
        if (
            place == len(prefixes)
            or place - start >= longest
            or 2 * common_start(prefixes[place - 1], prefixes[place]) < len(prefixes[place])
        ):
            yield slice(start, place)
            start = place
