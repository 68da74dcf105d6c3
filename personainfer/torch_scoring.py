"""Log-probabilities from transformers: any causal model that it loads, on a CPU or a GPU, in batches.

What several texts have in front is read once: its keys and values serve every response after it. Only
the tokens of responses go through the output layer, a few at a time: the logits of a whole batch
would fill the memory. What the texts are about is not known here.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .batching import batches, common_starts, length_groups
from .embedded import find_weights
from .exceptions import InvalidArgumentError, MissingExtraError, ModelNotFoundError
from .onednn import pack_linear_layers
from .scoring import Chat, FloatArray, Tokens, TokenText

if TYPE_CHECKING:
    import torch

__all__ = ["TorchScorer", "check_installed", "load_model"]

_PROBE = (1, 2, 3, 4, 5, 6, 7, 8)  # tokens that every vocabulary has
_PASS = {"cpu": 64, "other": 4096}  # tokens that take as long as it takes to begin a pass
# Logits made at once. On a CPU what fits its cache is several times faster than what does not.
_LOGIT_BYTES = {"cpu": 24 * 2**20, "other": 512 * 2**20}


class TorchScorer:
    """A `Scorer` of a model that `load_model` loads."""

    def __init__(
        self, name: str, *, device: str | None, dtype: str | None, batch_size: int
    ) -> None:
        self._batch_size = batch_size
        self._model, self._tokenizer = load_model(name, device=device, dtype=dtype)
        self._kind = "cpu" if self._model.device.type == "cpu" else "other"
        if self._kind == "cpu":
            pack_linear_layers(self._model, self._probe)
        self._takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        self._body = self._find_body()

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text; marks of special tokens are text."""
        return self._tokens(texts, add_special_tokens=False, split_special_tokens=True)

    def decode(self, tokens: Sequence[Tokens]) -> list[str]:
        """The text of tokens."""
        return [
            self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) for ids in tokens
        ]

    def encode_prefixes(self, prefixes: Sequence[str | Chat]) -> list[Tokens]:
        """The tokens of plain text, or of a chat by the tokenizer's template."""
        return [self._encode_prefix(prefix) for prefix in prefixes]

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
        return [tuple(ids) for ids in self._tokenizer(list(texts), **options)["input_ids"]]

    def score(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        """log p of each token of each response."""
        import torch

        longest = max((len(text.prefix) + len(text.response) for text in texts), default=0)
        context = getattr(self._model.config, "max_position_embeddings", None) or longest
        if longest > context:
            raise InvalidArgumentError(
                f"a text of {longest} tokens is longer than the model's context of {context}.",
                hint="Lower max_prompt_tokens= or max_response_tokens=.",
            )
        scores: dict[int, FloatArray] = {}
        with torch.inference_mode():
            for batch in batches(texts, self._batch_size):
                found = self._score_batch([texts[place] for place in batch])
                scores.update(zip(batch, found, strict=True))
        return [scores[place] for place in range(len(texts))]

    def _score_batch(self, texts: Sequence[TokenText]) -> list[FloatArray]:
        """Each prefix is read once, then the responses, those of nearly one length together."""
        prefixes = list(dict.fromkeys(text.prefix for text in texts))
        last, seen, memory = self._read_prefixes(prefixes)
        groups = length_groups([len(text.response) for text in texts], _PASS[self._kind])
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
        """log p of each token of each response, after the prefix of that row of the others."""
        import torch

        rows = torch.tensor(prefixes)
        said, scored = _padded(responses)
        states = last[:, -1:][rows.to(last.device)]  # they predict the first token of a response
        if said.shape[1] > 1:
            memory.batch_select_indices(rows.to(last.device))
            after, _ = self._read(said[:, :-1], torch.cat([seen[rows], scored[:, :-1]], 1), memory)
            states = torch.cat([states, after], 1)
        found = self._log_probabilities(states, said, scored).cpu().numpy().astype(np.float64)
        ends = np.cumsum([len(response) for response in responses])
        return np.split(found, ends[:-1])

    def _read_prefixes(self, prefixes: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """What the model makes of them, what of it is no padding, and its keys and values."""
        import torch

        start_of = common_starts(prefixes)
        if not start_of:
            given, seen = _padded(prefixes, left=True)
            last, memory = self._read(given, seen)
            return last, seen, memory
        starts = list(dict.fromkeys(start_of.values()))
        given, seen = _padded(starts, left=True)
        first, memory = self._read(given, seen)
        rows = torch.tensor([starts.index(start_of[prefix]) for prefix in prefixes])
        memory.batch_select_indices(rows.to(first.device))
        rest, more = _padded([prefix[len(start_of[prefix]) :] for prefix in prefixes], left=True)
        seen = torch.cat([seen[rows], more], 1)
        last, memory = self._read(rest, seen, memory)
        return last, seen, memory

    def _read(
        self, tokens: torch.Tensor, seen: torch.Tensor, memory: Any = None
    ) -> tuple[torch.Tensor, Any]:
        """What the model makes of tokens, and its keys and values; `seen` marks all that is no padding."""
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        options = {"position_ids": positions} if self._takes_positions else {}
        place = self._model.device
        reply = (self._body or self._model)(
            input_ids=tokens.to(place),
            attention_mask=seen.to(place),
            past_key_values=memory,
            use_cache=True,
            **{name: value.to(place) for name, value in options.items()},
        )
        memory = getattr(reply, "past_key_values", None)
        if not hasattr(memory, "batch_select_indices"):
            raise InvalidArgumentError(
                f"{type(self._model).__name__} keeps no keys and values that texts could share.",
                hint="Serve it with vLLM or llama.cpp and give api_base=.",
            )
        return (reply.last_hidden_state if self._body else reply.logits), memory

    def _log_probabilities(
        self, states: torch.Tensor, said: torch.Tensor, scored: torch.Tensor
    ) -> torch.Tensor:
        """log p of the tokens that count, row after row."""
        import torch

        kept = scored.bool().to(states.device)
        states, tokens = states[kept], said.to(states.device)[kept]
        head = self._model.get_output_embeddings() if self._body else torch.nn.Identity()
        rows = max(
            1, _LOGIT_BYTES[self._kind] // (4 * self._model.get_output_embeddings().out_features)
        )
        parts = []
        for some, ids in zip(states.split(rows), tokens.split(rows), strict=True):
            logits = head(some).float()
            parts.append(-torch.nn.functional.cross_entropy(logits, ids, reduction="none"))
        return torch.cat(parts)

    def _probe(self) -> Any:
        """Logits for a few tokens: what must stay as it is."""
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([_PROBE], device=self._model.device)).logits

    def _find_body(self) -> Any:
        """The model without its output layer, if that layer is all that follows; else None.

        Some models scale or cap their logits: those go through whole.
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


def check_installed(name: str) -> None:
    """Raise unless the packages and files are there that `load_model` needs: nothing is loaded.

    Raises:
        MissingExtraError: a package, or the embedded weights.
        InvalidArgumentError: an adapter that does not name its base, or no file of weights.
    """
    base = _adapter_base(name)
    source = _source(base or name)
    needed = ["torch", "transformers", "accelerate"]
    needed += ["gguf"] * source.endswith(".gguf") + ["peft"] * (base is not None)
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f"{name} is scored by transformers, which needs {' and '.join(missing)}.",
            hint=f'Run: pip install "personainfer[{"likelihood" if base is None else "train"}]"',
        )


def load_model(
    name: str, *, device: str | None = None, dtype: str | None = None
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, by transformers.

    Args:
        name: a Hugging Face id, a folder, the path of a .gguf file, "local" (the embedded weights), or
            the folder of a LoRA adapter that peft saved: it is merged into the model that it names.
        device: None: a GPU if there is one.
        dtype: None: float32 on a CPU, the checkpoint's own on a GPU.

    Raises:
        InvalidArgumentError: no such device or type.
        ModelNotFoundError: transformers cannot load it.
    """
    place = _device(device)
    base = _adapter_base(name)
    model, tokenizer = _load(_source(base or name), place, _dtype(dtype, place))
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, name).merge_and_unload()
    return model.eval(), tokenizer


def _source(name: str) -> str:
    """What transformers loads: of the embedded weights, their file."""
    local = name == "local" or name.startswith("local:")
    return str(find_weights(name, engine=False)) if local else name


def _adapter_base(name: str) -> str | None:
    """The model that the adapter in this folder belongs to; None where it holds no adapter."""
    path = Path(name).expanduser() / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, TypeError, KeyError):
        base = None
    if not isinstance(base, str) or not base:
        raise InvalidArgumentError(
            f"{path} does not say which model the adapter belongs to.",
            hint='Give it "base_model_name_or_path": a hub id, a folder, a .gguf file or "local".',
        )
    return base


def _load(name: str, device: torch.device, dtype: str) -> tuple[Any, Any]:
    import transformers

    path = Path(name).expanduser()
    source, options, unpacked = str(path) if path.is_dir() else name, dict[str, Any](), {}
    if path.is_file():
        source, options = str(path.parent), {"gguf_file": path.name}
        if hasattr(
            transformers, "GgufConfig"
        ):  # where weights may stay in their blocks: not to train
            unpacked = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, **options, **unpacked
            )
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"transformers cannot load {name}: {' '.join(str(error).split())[:300]}",
                hint="Give a hub id, a folder with weights and tokenizer, or a .gguf file.",
            ) from None
    if options:
        _mend_tokenizer(tokenizer, path)
    return model.to(device), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and warnings while it loads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _mend_tokenizer(tokenizer: Any, path: Path) -> None:
    """Split text as the file says: transformers splits a SmolLM's as GPT-2 does, digits in groups."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)


def _device(name: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(
            f"device={name!r} is not there: {str(error).splitlines()[0]}",
            hint='Leave it out, or give "cpu".',
        ) from None
    return device


def _dtype(name: str | None, device: torch.device) -> str:
    import torch

    chosen = name or ("float32" if device.type == "cpu" else "auto")
    if chosen != "auto" and not isinstance(getattr(torch, chosen, None), torch.dtype):
        raise InvalidArgumentError(
            f"dtype={name!r} is not a type of torch.", hint='Give "float32", "bfloat16" or "auto".'
        )
    return chosen
