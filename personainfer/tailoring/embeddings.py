"""Embed texts as unit vectors, by a sentence-transformers model or an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import event_loop
from ..connections import attempts
from ..exceptions import InvalidArgumentError, MissingExtraError, ModelError, ReplyError, reads
from ..llm.transports import EndpointTransport
from ..records import FloatArray

Floats = NDArray[np.float32]
Embedder = Callable[[Sequence[str]], ArrayLike]  # n texts -> (n, dimensions)

_TEXTS_A_REQUEST = 16  # so that the reply stays small, whatever the number of dimensions
_IN_FLIGHT = 8


def embed(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """Embed each text as a vector of length 1. Equal texts are embedded once.

    Args:
        embedder: a function from n texts to vectors, shape (n, dimensions). Its own errors are raised
            unchanged.
        texts: the texts. With none, the embedder is not called.

    Returns:
        Shape (texts, dimensions), in the order of the texts; (0, 0) for none. A vector of zeros stays as it
        is.

    Raises:
        ModelError: the embedder did not return one finite vector for each distinct text.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return np.zeros((0, 0), dtype=np.float32)
    returned = embedder(distinct)
    try:
        found = np.asarray(returned, dtype=np.float64)  # in float32 a length can be 0, or infinite
    except (TypeError, ValueError) as error:
        raise ModelError(f"the embedding model returned no array of numbers: {error}") from None
    if found.ndim != 2 or len(found) != len(distinct) or not np.isfinite(found).all():
        raise ModelError(
            f"the embedding model returned the shape {found.shape} for {len(distinct)} texts:"
            " one vector of finite numbers a text is needed."
        )
    place = {text: number for number, text in enumerate(distinct)}
    return np.asarray(unit_vectors(found)[[place[text] for text in texts]], dtype=np.float32)


def unit_vectors(vectors: FloatArray) -> FloatArray:
    """Divide each vector by its Euclidean length, (n, d) -> (n, d). A vector of zeros stays as it is."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=0.0)
    # Scaled by its largest number first, so that no square overflows.
    scaled = vectors / np.where(largest > 0, largest, 1.0)
    lengths = np.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / np.where(lengths > 0, lengths, 1.0)


def sentence_embedder(model: str | Path) -> Embedder:
    """Load a sentence-transformers model, and return the function that embeds texts with it.

    Args:
        model: the model's name on the Hugging Face hub, from where it is downloaded, or its folder.

    Returns:
        A function from n texts to vectors, shape (n, dimensions).

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        InvalidArgumentError: there is no such model, or it cannot be loaded.
    """
    if not str(model).strip():
        raise InvalidArgumentError("model= is the name of no model.", argument="model")
    package = MissingExtraError.require("sentence_transformers")
    try:
        loaded = package.SentenceTransformer(str(model))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"model={str(model)!r} is not a sentence-transformers model: {str(error)[:200]}",
            hint='Name one of the hub or a folder, use "bm25", or give api_base= for an endpoint.',
        ) from None
    return lambda texts: loaded.encode(list(texts), show_progress_bar=False)


def endpoint_embedder(
    model: str, api_base: str, api_key: str | None, *, timeout: float, max_attempts: int
) -> Embedder:
    """Return a function that embeds texts by POST /embeddings to an OpenAI-compatible endpoint.

    The function sends 16 texts a request, up to 8 requests at once, and blocks until all are answered. It
    raises ModelError if a request fails.

    Args:
        model: the model's name at the endpoint.
        api_base: the endpoint's address.
        api_key: its key; None: that of OpenAI or Azure from the environment, if the address is theirs, else
            none.
        timeout: seconds for one request.
        max_attempts: how often a request is sent before its error is raised.
    """

    def encode(texts: Sequence[str]) -> ArrayLike:
        transport = _EmbeddingTransport(model, api_base, api_key)
        return event_loop.run(transport.embed(texts, timeout, max_attempts))

    return encode


class _EmbeddingTransport(EndpointTransport):
    """Sends requests for embeddings to an endpoint."""

    async def embed(
        self, texts: Sequence[str], timeout: float, max_attempts: int
    ) -> list[list[float]]:
        """Return one vector for each text, in order.

        Raises:
            ModelError: a request failed at every attempt, or in a way that no repetition mends. Requests in
                flight are cancelled.
        """
        parts = [
            texts[start : start + _TEXTS_A_REQUEST]
            for start in range(0, len(texts), _TEXTS_A_REQUEST)
        ]
        places = asyncio.Semaphore(_IN_FLIGHT)
        retrying = attempts(max_attempts)

        async def part_of(part: Sequence[str]) -> list[list[float]]:
            async with places:
                return await retrying.copy()(self._embed_part, part, timeout)

        self.open()
        tasks = [asyncio.ensure_future(part_of(part)) for part in parts]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one failed, or the caller was interrupted
                task.cancel()
            await self.close()
        return [vector for part in found for vector in part]

    async def _embed_part(self, part: Sequence[str], timeout: float) -> list[list[float]]:
        body = {"model": self.model, "input": list(part), "encoding_format": "float"}
        sent = json.dumps(body).encode()
        return _vectors(self._read_json(*await self._post("/embeddings", sent, timeout)), len(part))


@reads("the reply")
def _vectors(reply: dict[str, Any], count: int) -> list[list[float]]:
    """Read the embeddings of a reply, in the order of the request's texts.

    Raises:
        ReplyError: the reply does not hold an embedding for each text.
    """
    try:
        found = {int(one["index"]): [float(x) for x in one["embedding"]] for one in reply["data"]}
        return [found[place] for place in range(count)]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise ReplyError(f"the reply does not hold embeddings of {count} texts.") from None
