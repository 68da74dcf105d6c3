"""Compute log-probabilities with transformers: any causal model, on a CPU or a GPU, in batches.

A prefix that several texts share is computed once, and every response after it reuses its KV cache. Models
without a KV cache, or with a state that padding would change, read each text whole. Only the tokens of
responses go through the output layer, a few at a time: the logits of a whole batch would fill the memory.
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
from .hf_models import load_model
from .interfaces import Chat, Failed, Tokens, TokenText, ignored

if TYPE_CHECKING:
    import torch

_PROBE = (1, 2, 3, 4, 5, 6, 7, 8)  # tokens that every vocabulary has
_PASS_COST = {"cpu": 64, "other": 4096}  # the cost of one more forward pass, in tokens
_SHARED_TOLERANCE = {
    True: 0.01,
    False: 1.0,
}  # nats, with weights in full precision and in lower precision
# The names of an attention window in configurations.
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
# How many bytes of logits are computed at once. On a CPU it is several times faster if they fit its cache.
_LOGIT_BYTES = {"cpu": 24 * 2**20, "other": 512 * 2**20}


class TorchScorer:
    """A `Scorer` of a model that `load_model` loads."""

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
        """How many positions the model has; None where its configuration names no limit."""
        found = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text; marks of special tokens are text."""
        return self._tokens(texts, add_special_tokens=False, split_special_tokens=True)

    def encode_prefixes(self, prefixes: Sequence[str | Chat]) -> list[Tokens | None]:
        """The tokens of plain text, or of a chat by the tokenizer's template; None: it is refused.

        Raises:
            InvalidArgumentError: there is no template, or it refuses all of them.
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
        return self._tokens([text], add_special_tokens=False)[0]  # the template holds them

    def _tokens(self, texts: Sequence[str], **options: bool) -> list[Tokens]:
        if not texts:
            return []
        with self._lock:  # an option is set in the tokenizer itself, for all threads
            return [tuple(ids) for ids in self._tokenizer(list(texts), **options)["input_ids"]]

    def score(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        """log p of each token of each response."""
        import torch

        scores: dict[int, FloatArray] = {}
        with torch.inference_mode():
            for batch in batches(texts, self._batch_size):
                score = self._score_batch if self._shares else self._score_whole
                found = score([texts[place] for place in batch])
                scores.update(zip(batch, found, strict=True))
        return [scores[place] for place in range(len(texts))]

    def _score_batch(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        """Read each prefix once, then the responses, with those of similar length in one pass."""
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
        """log p of each token of each response, after the prefix in the same row."""
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
        """Score whole texts. Padding stands behind them, where no causal model looks at it."""
        given, seen = _padded([text.prefix + text.response for text in texts])
        scored = seen.clone()
        for row, text in zip(scored, texts, strict=True):
            row[: len(text.prefix)] = 0
        states = self._states(input_ids=given, attention_mask=seen, use_cache=False)[0]
        return self._log_probabilities(states[:, :-1], given[:, 1:], scored[:, 1:])

    def _read_prefixes(
        self, prefixes: Sequence[Tokens], longest: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """The last state of each prefix, the mask of tokens that are not padding, and the KV cache.

        `longest`: tokens of the longest response to follow. An attention window counts padding, so no
        padding is put between tokens where it could push a token out of the window.
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
        """The states of tokens, and the KV cache; `seen` is 0 where there is padding.

        `keep`: how many of the last states are needed, at least; 0: all.
        """
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        options = {"position_ids": positions, self._memory: memory, "use_cache": True}
        if keep and self._takes_last:  # logits of all of a prompt would fill the memory
            options["logits_to_keep"] = keep
        return self._states(input_ids=tokens, attention_mask=seen, **options)

    def _states(self, **options: Any) -> tuple[torch.Tensor, Any]:
        """The states that the model, or its body, computes from its arguments, and the KV cache."""
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
        """Whether texts score the same when the KV cache of their common start is shared.

        They do not if a layer has a recurrent state in place of a KV cache: padding changes that state.
        """
        import torch

        prefixes = (_PROBE, (*_PROBE[:-1], 1), _PROBE[2:4])
        texts = [TokenText(prefix, _PROBE[: n + 1]) for n, prefix in enumerate(prefixes)]
        with torch.inference_mode():
            whole = np.concatenate(self._score_whole(texts))
            try:
                shared = np.concatenate(self._score_batch(texts))
            except (AttributeError, RuntimeError, TypeError, ValueError):  # of such a layer
                return False
        return bool(
            np.abs(shared - whole).max() < _SHARED_TOLERANCE[self._model.dtype.itemsize >= 4]
        )

    def _log_probabilities(
        self, states: torch.Tensor, said: torch.Tensor, scored: torch.Tensor
    ) -> list[FloatArray]:
        """log p of the tokens that count, for each row."""
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

    def _probe(self) -> Any:
        """Logits for a few tokens, to compare two ways of computing them."""
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([_PROBE], device=self._model.device)).logits

    def _find_body(self) -> Any:
        """The model without its output layer, if that layer is all that follows; else None.

        Models that scale or cap their logits are used whole.
        """
        import torch

        body, head = self._model.base_model, self._model.get_output_embeddings()
        if body is self._model or head is None:
            return None
        whole = self._probe()
        with torch.inference_mode():
            apart = head(body(torch.tensor([_PROBE], device=whole.device)).last_hidden_state)
        same = apart.shape == whole.shape and torch.allclose(apart, whole, rtol=1e-3, atol=1e-3)
        return body if same else None


def _padded(rows: Sequence[Tokens], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as a matrix, and a mask with 1 where there is a token and 0 where there is padding."""
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
    """How many tokens every layer of the model looks back over."""
    text = config.get_text_config()
    sizes = [getattr(text, name, None) for name in _WINDOWS]
    return min((size for size in sizes if isinstance(size, int)), default=math.inf)


# Which texts go through a model together


def batches(texts: Sequence[TokenText], size: int) -> Iterator[list[int]]:
    """Batches of at most `size` places of texts that share a start, or have starts of similar length."""
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
    """Groups of rows to pad to one length. Rows are split where that saves more tokens than a pass costs."""
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
    """For each prefix, the start that it shares with others and that is read first; never the whole prefix.

    Empty where no two prefixes have enough in common.
    """
    groups = _groups(prefixes)
    if all(len(group) == 1 for _, group in groups):
        return {}
    return {prefix: prefix[:length] for length, group in groups for prefix in group}


def _groups(prefixes: Iterable[Tokens]) -> list[tuple[int, list[Tokens]]]:
    """Groups of prefixes and the length of the start that each group shares, as long as that saves tokens."""
    groups: list[tuple[int, list[Tokens]]] = []
    for prefix in sorted(set(prefixes)):
        if groups:
            length, group = groups[-1]
            common = min(length, _common(group[-1], prefix), len(prefix) - 1)
            # This prefix saves `common` tokens, and each of the others reads `length - common` more.
            if common > (len(group) - 1) * (length - common):
                groups[-1] = (common, [*group, prefix])
                continue
        groups.append((len(prefix) - 1, [prefix]))
    return groups


def _common(one: Tokens, other: Tokens) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
