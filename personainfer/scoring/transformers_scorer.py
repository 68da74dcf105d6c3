"""Compute log-probabilities with transformers: any causal model, on a CPU or a GPU, in batches.

A prefix that several texts share is read once, and its KV cache is reused for every response after it. Models
without a KV cache, or with a state that padding would change, read each whole text. Only the hidden states of
response tokens go through the output layer, a few at a time: all logits of a batch would fill the memory.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..exceptions import InvalidArgumentError
from ..records import FloatArray
from .interfaces import Chat, Failed, Tokens, TokenText, common_start, ignored
from .transformers_models import load_model

if TYPE_CHECKING:
    import torch

_PROBE = (1, 2, 3, 4, 5, 6, 7, 8)  # tokens that every vocabulary has
_PASS_COST = {"cpu": 64, "other": 4096}  # the time of one more forward pass, in tokens
_FULL_PRECISION_TOLERANCE, _HALF_PRECISION_TOLERANCE = 0.01, 1.0  # nats
# The names of an attention window in configurations.
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
# The most bytes of logits to compute at once. A CPU is several times faster if they fit into its cache.
_LOGIT_BYTES = {"cpu": 24 * 2**20, "other": 512 * 2**20}


class TorchScorer:
    """A `Scorer` that runs a model of transformers in this process.

    Args:
        name, device, dtype: as for `load_model`, which loads the weights at once.
        batch_size: the most texts of one forward pass.
        failed: `encode_prefixes` calls it if the chat template refuses some prefixes and not others: with
            how many, and the first error. A text after such a prefix has no score.

    Attributes:
        decodes: False: a text is read in one pass.
    """

    decodes = False

    def __init__(
        self,
        name: str,
        *,
        device: str | None,
        dtype: str | None,
        batch_size: int,
        failed: Failed = ignored,
    ) -> None:
        self._batch_size = batch_size
        self._failed = failed
        self._model, self._tokenizer = load_model(name, device=device, dtype=dtype)
        self._kind = "cpu" if self._model.device.type == "cpu" else "other"
        self._body = self._find_body()
        forward = inspect.signature((self._body or self._model).forward).parameters
        self._takes_positions = "position_ids" in forward
        self._takes_last = "logits_to_keep" in forward
        # transformers 5 renames `past_key_values`; from 5.40 on only the new name is accepted.
        self._memory = "cache" if "cache" in forward else "past_key_values"
        self._window = _window(self._model.config)
        self._shares = self._takes_positions and self._shared_is_same()
        self._lock = threading.Lock()

    def context(self) -> int | None:
        """Return the number of positions of the model; None if its configuration names no limit."""
        found = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenize each text. Marks of special tokens are ordinary text."""
        return self._tokens(texts, add_special_tokens=False, split_special_tokens=True)

    def encode_prefixes(self, prefixes: Sequence[str | Chat]) -> list[Tokens | None]:
        """Tokenize plain text, or a chat by the tokenizer's template; None for a chat that it refuses.

        Raises:
            InvalidArgumentError: there is no template, or it refuses all prefixes.
        """
        found, refusals = list[Tokens | None](), list[InvalidArgumentError]()
        for prefix in prefixes:
            try:
                found.append(self._encode_prefix(prefix))
            except InvalidArgumentError as refusal:
                found.append(None)
                refusals.append(refusal)
        if refusals and len(refusals) == len(found):
            raise refusals[0]
        if refusals:
            self._failed(len(refusals), refusals[0])
        return found

    def _encode_prefix(self, prefix: str | Chat) -> Tokens:
        """Tokenize one prefix. Raises InvalidArgumentError if a chat has no template, or is refused by it."""
        if isinstance(prefix, str):
            return self._tokens([prefix], add_special_tokens=True)[0]
        import jinja2

        if self._tokenizer.chat_template is None:
            raise InvalidArgumentError(
                "the model has no chat template.", hint='Use persona_in="plain".'
            )
        messages = [message.model_dump() for message in prefix]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise InvalidArgumentError(
                f"the model's chat template refuses these messages: {error}.",
                hint='Use another persona_in= ("user", "plain").',
            ) from None
        return self._tokens([text], add_special_tokens=False)[0]  # the template has added them

    def _tokens(self, texts: Sequence[str], **options: bool) -> list[Tokens]:
        """Tokenize texts with these options of the tokenizer."""
        if not texts:
            return []
        with self._lock:  # the tokenizer stores options in itself, which all threads share
            return [tuple(ids) for ids in self._tokenizer(list(texts), **options)["input_ids"]]

    def score(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        """Compute log p of each response's tokens, in nats: an array (tokens,) for each text, in order."""
        import torch

        scores: dict[int, FloatArray] = {}
        with torch.inference_mode():
            for batch in batches(texts, self._batch_size):
                score = self._score_batch if self._shares else self._score_whole
                found = score([texts[place] for place in batch])
                scores.update(zip(batch, found, strict=True))
        return [scores[place] for place in range(len(texts))]

    def _score_batch(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        """Score a batch: read each distinct prefix once, then responses of similar length in one pass."""
        prefixes = list(dict.fromkeys(text.prefix for text in texts))
        lengths = [len(text.response) for text in texts]
        last, seen, memory = self._read_prefixes(prefixes, max(lengths))
        groups = length_groups(lengths, _PASS_COST[self._kind])
        scores: dict[int, FloatArray] = {}
        for number, group in enumerate(groups, 1):
            some = [texts[place] for place in group]
            own = memory if number == len(groups) else copy.deepcopy(memory)  # it is written to
            rows = [prefixes.index(text.prefix) for text in some]
            found = self._score_responses([text.response for text in some], rows, last, seen, own)
            scores.update(zip(group, found, strict=True))
        return [scores[place] for place in range(len(texts))]

    def _score_responses(
        self,
        responses: Sequence[Tokens],
        prefixes: Sequence[int],
        last: torch.Tensor,
        seen: torch.Tensor,
        memory: Any,
    ) -> list[FloatArray]:
        """Score responses whose prefixes have been read.

        Args:
            responses: n responses.
            prefixes: n rows in `last`, `seen` and `memory`: each response's prefix.
            last: the last hidden state of each prefix, (prefixes, 1 or more, width).
            seen: 1 for a token, 0 for padding, (prefixes, tokens).
            memory: the KV cache of the prefixes. It is written to.
        """
        import torch

        rows = torch.tensor(prefixes)
        said, scored = _padded(responses)
        states = last[:, -1:][rows.to(last.device)]  # they predict the first token of a response
        if said.shape[1] > 1:
            memory.batch_select_indices(rows.to(last.device))
            after, _ = self._read(said[:, :-1], torch.cat([seen[rows], scored[:, :-1]], 1), memory)
            states = torch.cat([states, after], 1)
        return self._log_probabilities(states, said, scored)

    def _score_whole(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        """Score texts, each read whole. Padding is on the right, where no causal model attends to it."""
        given, seen = _padded([text.prefix + text.response for text in texts])
        scored = seen.clone()
        for row, text in zip(scored, texts, strict=True):
            row[: len(text.prefix)] = 0
        states = self._states(input_ids=given, attention_mask=seen, use_cache=False)[0]
        return self._log_probabilities(states[:, :-1], given[:, 1:], scored[:, 1:])

    def _read_prefixes(
        self, prefixes: Sequence[Tokens], longest: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Read prefixes: first the starts that several share, then the rest of each.

        An attention window counts padding. If padding between start and rest could push a token out of the
        window, the prefixes are read whole.

        Args:
            prefixes: distinct prefixes.
            longest: the number of tokens of the longest response that follows.

        Returns:
            The last hidden state of each prefix, the mask of its tokens (0: padding), and the KV cache.
        """
        import torch

        start_of = common_starts(prefixes)
        starts = list(dict.fromkeys(start_of.values()))
        rests = [prefix[len(start_of.get(prefix, ())) :] for prefix in prefixes]
        width = max(map(len, starts), default=0) + max(map(len, rests)) + longest
        if not starts or width > self._window:
            given, seen = _padded(prefixes, left=True)
            last, memory = self._read(given, seen, keep=1)
            return last, seen, memory
        given, seen = _padded(starts, left=True)
        first, memory = self._read(given, seen, keep=1)
        rows = torch.tensor([starts.index(start_of[prefix]) for prefix in prefixes])
        memory.batch_select_indices(rows.to(first.device))
        rest, more = _padded(rests, left=True)
        seen = torch.cat([seen[rows], more], 1)
        last, memory = self._read(rest, seen, memory, keep=1)
        return last, seen, memory

    def _read(
        self, tokens: torch.Tensor, seen: torch.Tensor, memory: Any = None, *, keep: int = 0
    ) -> tuple[torch.Tensor, Any]:
        """Read tokens after those in the KV cache.

        Args:
            tokens: (rows, tokens).
            seen: 1 for a token, 0 for padding, (rows, tokens before and these).
            memory: the KV cache; None: nothing was read before.
            keep: how many of the last states are needed; 0: all. More may be returned.

        Returns:
            The hidden states, (rows, tokens, width), and the KV cache.
        """
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        options = {"position_ids": positions, self._memory: memory, "use_cache": True}
        if keep and self._takes_last:  # the logits of a whole prompt would fill the memory
            options["logits_to_keep"] = keep
        return self._states(input_ids=tokens, attention_mask=seen, **options)

    def _states(self, **options: Any) -> tuple[torch.Tensor, Any]:
        """Run the body, or the whole model if there is no `_body`.

        Returns:
            The hidden states (or the logits of a whole model), and the KV cache, which may be None.
        """
        import torch

        place = self._model.device
        reply = (self._body or self._model)(
            **{
                name: value.to(place) if isinstance(value, torch.Tensor) else value
                for name, value in options.items()
            }
        )
        states = reply.last_hidden_state if self._body else reply.logits
        return states, getattr(reply, self._memory, None)

    def _shared_is_same(self) -> bool:
        """Whether texts get the same scores if the KV cache of their common start is shared.

        They do not if a layer has a recurrent state in place of a KV cache: padding changes that state.
        """
        import torch

        prefixes = (_PROBE, (*_PROBE[:-1], 1), _PROBE[2:4])
        texts = [TokenText(prefix, _PROBE[: n + 1]) for n, prefix in enumerate(prefixes)]
        with torch.inference_mode():
            whole = np.concatenate(self._score_whole(texts))
            try:
                shared = np.concatenate(self._score_batch(texts))
            except (AttributeError, RuntimeError, TypeError, ValueError):  # raised by such a layer
                return False
        full = self._model.dtype.itemsize >= 4
        tolerance = _FULL_PRECISION_TOLERANCE if full else _HALF_PRECISION_TOLERANCE
        return bool(np.abs(shared - whole).max() < tolerance)

    def _log_probabilities(
        self, states: torch.Tensor, said: torch.Tensor, scored: torch.Tensor
    ) -> list[FloatArray]:
        """Compute log p of the tokens of `said` that have a 1 in `scored`, one array for each row.

        `states[row, n]` is the state that predicts `said[row, n]`.
        """
        import torch

        kept = scored.bool().to(states.device)
        ends = scored.sum(1).cumsum(0)[:-1].tolist()
        states, tokens = states[kept], said.to(states.device)[kept]
        head = self._model.get_output_embeddings() if self._body else torch.nn.Identity()
        width = head.out_features if self._body else states.shape[-1]
        rows = max(1, _LOGIT_BYTES[self._kind] // (4 * width))
        parts = []
        for some, ids in zip(states.split(rows), tokens.split(rows), strict=True):
            logits = head(some).float()
            parts.append(-torch.nn.functional.cross_entropy(logits, ids, reduction="none"))
        return np.split(torch.cat(parts).cpu().numpy().astype(np.float64), ends)

    def _find_body(self) -> Any:
        """Return the model without its output layer; None if the whole model has to be run.

        That is so if more than this layer follows the body, as in models that scale or cap their logits.
        """
        import torch

        body, head = self._model.base_model, self._model.get_output_embeddings()
        if body is self._model or head is None:
            return None
        tokens = torch.tensor([_PROBE], device=self._model.device)
        with torch.inference_mode():
            whole = self._model(tokens).logits
            apart = head(body(tokens).last_hidden_state)
        same = apart.shape == whole.shape and torch.allclose(apart, whole, rtol=1e-3, atol=1e-3)
        return body if same else None


def _padded(rows: Sequence[Tokens], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows to one length. Returns tokens and mask, (rows, tokens); the mask is 0 for padding."""
    import torch

    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(len(row))
        tokens[number, part] = torch.tensor(row)
        mask[number, part] = 1
    return tokens, mask


def _window(config: Any) -> float:
    """Return the smallest attention window of the model, in tokens; infinity if it has none."""
    text = config.get_text_config()
    sizes = [getattr(text, name, None) for name in _WINDOWS]
    return min((size for size in sizes if isinstance(size, int)), default=math.inf)


# Batches


def batches(texts: Sequence[TokenText], size: int) -> Iterator[list[int]]:
    """Yield batches of texts that share a start or have starts of similar length.

    A batch is a list of at most `size` places in `texts`.
    """
    places: dict[Tokens, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        places[text.prefix].append(place)
    batch: list[int] = []
    for _, prefixes in sorted(_groups(places), reverse=True):
        group = [place for prefix in prefixes for place in places[prefix]]
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch += group
        while len(batch) >= size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch


def length_groups(lengths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Group rows to pad to one length, as lists of places in `lengths`, the longest rows first.

    A new group begins if it saves more than `pass_cost` tokens of padding.
    """
    groups: list[list[int]] = []
    width = 0
    for number, place in enumerate(sorted(range(len(lengths)), key=lambda place: -lengths[place])):
        saved = (width - lengths[place]) * (len(lengths) - number)
        if not groups or saved > pass_cost:
            groups.append([])
            width = lengths[place]
        groups[-1].append(place)
    return groups


def common_starts(prefixes: Iterable[Tokens]) -> dict[Tokens, Tokens]:
    """Map each prefix to its start that is read first, for all prefixes with this start together.

    A start is never a whole prefix: that of a prefix in no group is all but its last token. Returns {} if
    no two prefixes have enough in common to save tokens.
    """
    groups = _groups(prefixes)
    if all(len(group) == 1 for _, group in groups):
        return {}
    return {prefix: prefix[:length] for length, group in groups for prefix in group}


def _groups(prefixes: Iterable[Tokens]) -> list[tuple[int, list[Tokens]]]:
    """Group prefixes if reading their common start once saves tokens.

    Returns (length of the common start, prefixes) of each group.
    """
    groups: list[tuple[int, list[Tokens]]] = []
    for prefix in sorted(set(prefixes)):
        if groups:
            length, group = groups[-1]
            common = min(length, common_start(group[-1], prefix), len(prefix) - 1)
            # This prefix saves `common` tokens, and each of the others reads `length - common` more.
            if common > (len(group) - 1) * (length - common):
                groups[-1] = (common, [*group, prefix])
                continue
        groups.append((len(prefix) - 1, [prefix]))
    return groups
