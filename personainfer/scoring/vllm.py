"""Get log-probabilities from an endpoint that knows vLLM's `prompt_logprobs`.

Prefix and response are sent together as the prompt, in tokens. The endpoint must generate a token, which is
ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..exceptions import ReplyError
from ..personas.placement import disarm
from ..records import FloatArray
from .interfaces import (
    Chat,
    ScoringEndpoint,
    Tokens,
    TokenText,
    log_probabilities,
    read_tokens,
    tokens_of_text,
)


class PromptLogprobs:
    """A `Scorer` of the model behind an endpoint that returns the log-probabilities of a prompt.

    Args:
        endpoint: the client of the server.
        max_model_len: the context in tokens, as /tokenize reports it; None, or no number above 1: unknown.
    """

    decodes = False

    def __init__(self, endpoint: ScoringEndpoint, max_model_len: object = None) -> None:
        self._endpoint = endpoint
        # One token is generated in addition to those that are scored.
        size = max_model_len if isinstance(max_model_len, int) else 0
        self._context = size - 1 if size > 1 else None

    def context(self) -> int | None:
        """Return the context that the endpoint reports, less the generated token; None: it reports none."""
        return self._context

    def encode(self, texts: Sequence[str]) -> list[Tokens | None]:
        """Tokenize each text; None where the endpoint failed.

        Marks of special tokens are changed first (`disarm`), since vLLM would turn them into special tokens.

        Raises:
            ModelError: as `ScoringEndpoint.each`.
        """
        return self._endpoint.each(self._encode, [disarm(text) for text in texts])

    async def _encode(self, text: str, *, special: bool = False) -> Tokens:
        body = {"model": self._endpoint.model, "prompt": text, "add_special_tokens": special}
        return tokens_of_text(text, read_tokens(await self._endpoint.ask("/tokenize", body)))

    def encode_prefixes(self, prefixes: Sequence[str | Chat]) -> list[Tokens | None]:
        """Tokenize plain text, or a chat by the endpoint's template; None where the endpoint failed.

        Raises:
            ModelError: as `ScoringEndpoint.each`.
        """
        return self._endpoint.each(self._encode_prefix, prefixes)

    async def _encode_prefix(self, prefix: str | Chat) -> Tokens:
        if isinstance(prefix, str):
            return await self._encode(prefix, special=True)
        messages = [message.model_dump() for message in prefix]
        body = {"model": self._endpoint.model, "messages": messages, "add_generation_prompt": True}
        return read_tokens(await self._endpoint.ask("/tokenize", body))

    def score(self, texts: Sequence[TokenText]) -> list[FloatArray | None]:
        """Compute log p of each response's tokens, in nats: an array (tokens,) for each text, in order.

        A text at which the endpoint failed gets None.

        Raises:
            ModelError: as `ScoringEndpoint.each`.
        """
        return self._endpoint.each(self._score, texts)

    async def _score(self, text: TokenText) -> FloatArray:
        """Compute log p of a response's tokens. Raises ModelError if the endpoint gives none."""
        prompt = text.prefix + text.response
        body = {
            "model": self._endpoint.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 1,  # the token itself is always included; some servers refuse 0
        }
        reply = await self._endpoint.ask("/v1/completions", body)
        try:
            records: list[Any] = reply["choices"][0]["prompt_logprobs"]
            if len(records) != len(prompt):
                raise ValueError("the records cannot be matched to the tokens")
            found = zip(records[-len(text.response) :], text.response, strict=True)
            return log_probabilities([float(r[str(token)]["logprob"]) for r, token in found])
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            raise ReplyError(
                "the endpoint gave no log-probabilities of the prompt.",
                hint="It must know vLLM's prompt_logprobs; a llama.cpp server or transformers will do.",
            ) from None
