"""Reward models of transformers (sequence classifiers) as scorers for `RewardMatrix`.

A batch holds texts with the same number of tokens. It needs no padding, so the other texts of a batch do not
change a reward.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import Count, CountFromZero, check_argument
from ..exceptions import DataError, InvalidArgumentError, MissingExtraError
from ..personas.placement import disarm
from ..records import Message, Prompt

# token ids, and segment ids (token_type_ids) if the model has them
Tokens = tuple[tuple[int, ...], tuple[int, ...] | None]


class RewardClassifier:
    """A reward model of transformers: `RewardMatrix.from_scorers({"name": RewardClassifier(…)}, …)`.

    Args:
        model: the name (on the hub, from where it is downloaded) or the folder of a model for sequence
            classification; or the model itself.
        tokenizer: the model's tokenizer; None: load it by the name.
        batch_size: the most texts in a batch. It changes rewards only by rounding. A model without a padding
            token gets one text at a time.
        label: the number of the output that is the reward, from 0; None: the model has a single output.
        render: (prompt, response) -> the text to score. None: the tokenizer's chat template if it has one,
            else prompt and response as a pair of texts.
        device: "cpu", "cuda", …; None: the model stays where it is.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        InvalidArgumentError: there is no such model, or it cannot be loaded; a model that is given itself
            has no tokenizer, or has several outputs and no `label`; or a bad argument.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 16,
        label: int | None = None,
        render: Callable[[Prompt, str], str] | None = None,
        device: str | None = None,
    ) -> None:
        batch_size = check_argument("batch_size", batch_size, Count)
        if not isinstance(model, str | Path) and tokenizer is None:
            raise InvalidArgumentError("tokenizer= is needed with a model that is already loaded.")
        self._torch = MissingExtraError.require("torch")
        transformers = MissingExtraError.require("transformers")
        if isinstance(model, str | Path):
            tokenizer, model = _loaded(transformers, str(model), tokenizer)
        self._model = model.eval() if device is None else model.eval().to(device)
        self._tokenizer = tokenizer
        self._render = render
        self._label = _label(label, int(model.config.num_labels))
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        # Without a padding token transformers refuses batches.
        self._batch_size = batch_size if padding is not None else 1
        self._longest = _longest(model)

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """Score each response to the prompt at the same place, shape (n,), in the unit of the model.

        Raises:
            DataError: a text is longer than the model can read. No text is cut.
            ValueError: the numbers of prompts and responses differ.
        """
        pairs = list(zip(prompts, responses, strict=True))
        tokens = [self._tokens(place, *pair) for place, pair in enumerate(pairs)]
        rewards = np.empty(len(tokens))
        for places in self._batches(tokens):
            rewards[places] = self._forward([tokens[place] for place in places])
        return rewards

    def _tokens(self, place: int, prompt: Prompt, response: str) -> Tokens:
        if self._render is not None:
            coded = self._tokenizer(self._render(prompt, response))
        elif getattr(self._tokenizer, "chat_template", None):
            asked = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
            said = [*asked, Message(role="assistant", content=response)]
            turns = [{**one.model_dump(), "content": disarm(one.content)} for one in said]
            text = self._tokenizer.apply_chat_template(turns, tokenize=False)
            coded = self._tokenizer(text, add_special_tokens=False)
        else:
            text = prompt if isinstance(prompt, str) else "\n\n".join(m.content for m in prompt)
            coded = self._tokenizer(disarm(text), disarm(response))
        if len(coded["input_ids"]) > self._longest:
            raise DataError(
                f"text {place} has {len(coded['input_ids']):,} tokens; the model reads {self._longest:,}.",
                hint="Leave the prompt out, or shorten it.",
            )
        segments = coded.get("token_type_ids")
        return tuple(coded["input_ids"]), None if segments is None else tuple(segments)

    def _batches(self, tokens: Sequence[Tokens]) -> Iterator[list[int]]:
        """Yield places of texts with equally many tokens, at most `batch_size` at once.

        The longest come first, so that missing memory shows at once.
        """
        of_length = defaultdict(list)
        for place, (ids, _) in enumerate(tokens):
            of_length[len(ids)].append(place)
        for length in sorted(of_length, reverse=True):
            places = of_length[length]
            for start in range(0, len(places), self._batch_size):
                yield places[start : start + self._batch_size]

    def _forward(self, batch: Sequence[Tokens]) -> npt.NDArray[np.float64]:
        torch = self._torch
        device = next(self._model.parameters()).device
        fields = {"input_ids": torch.tensor([ids for ids, _ in batch], device=device)}
        fields["attention_mask"] = torch.ones_like(fields["input_ids"])
        if batch[0][1] is not None:
            fields["token_type_ids"] = torch.tensor([s for _, s in batch], device=device)
        with torch.inference_mode():
            logits = self._model(**fields).logits
        found: npt.NDArray[np.float64] = logits[:, self._label].double().cpu().numpy()
        return found


def _loaded(transformers: Any, name: str, tokenizer: Any) -> tuple[Any, Any]:
    """Load a model by its name or folder, and its tokenizer unless one is given; return tokenizer and model.

    Raises:
        InvalidArgumentError: transformers finds no such model, or cannot load it.
    """
    try:
        tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(name)
        return tokenizer, transformers.AutoModelForSequenceClassification.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"model={name!r} is not a sequence classifier of transformers: {str(error)[:200]}",
            hint="Name one of the hub or a folder, or pass the model itself.",
            argument="model",
        ) from None


def _longest(model: Any) -> float:
    """Return how many tokens a model can read; infinity if there is no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:  # XLNet says -1
        return math.inf
    embeddings = getattr(getattr(model, model.base_model_prefix, None), "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return limit if padding is None else limit - padding - 1  # RoBERTa counts from behind it


def _label(given: int | None, labels: int) -> int:
    given = check_argument("label", given, CountFromZero | None)
    if given is None and labels == 1:
        return 0
    if given is None or given >= labels:
        raise InvalidArgumentError(
            f"label={given!r}, but the model has {labels} outputs.",
            hint="Say which of them is the reward, counted from 0.",
        )
    return given
