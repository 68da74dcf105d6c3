"""Reward models of transformers: tiny ones with random weights, made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.simulation.reward_matrix import RewardMatrix
from personainfer.simulation.reward_models import RewardClassifier

pytestmark = pytest.mark.heavy

WORDS = "question answer yes no perhaps tea coffee why how because it is not good".split()
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"


def tokenizer(template: str | None = None, **special: Any) -> Any:
    """Whole words, with [CLS] and [SEP] as BERT has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=words, chat_template=template, **special)


def classifier(kind: str, *, labels: int = 1, padded: bool = True) -> Any:
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    torch.manual_seed(0)
    size: dict[str, Any] = {
        "vocab_size": len(WORDS) + 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "initializer_range": 0.5,  # so that the rewards differ
        "num_labels": labels,
        "pad_token_id": 0 if padded else None,
    }
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**size))
    llama: Any = LlamaForSequenceClassification
    return llama(LlamaConfig(**size))


def texts(n: int) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(0)
    said = [" ".join(random.choice(WORDS, size=random.integers(1, 12))) for _ in range(2 * n)]
    return said[:n], said[n:]


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["pair", "chat"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_batch_size_changes_no_reward(kind: str, template: str | None) -> None:
    prompts, responses = texts(40)
    model, words = classifier(kind), tokenizer(template)
    alone, some, all_at_once = (
        RewardClassifier(model, words, batch_size=size)(prompts, responses) for size in (1, 7, 64)
    )
    assert np.ptp(alone) > 0.01  # the rewards differ, so that there is something to compare
    assert_allclose(some, alone, rtol=1e-4, atol=1e-5)
    assert_allclose(all_at_once, alone, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_padding_token_is_asked_one_by_one() -> None:
    prompts, responses = texts(12)
    with_token = RewardClassifier(classifier("llama"), tokenizer())(prompts, responses)
    without = RewardClassifier(classifier("llama", padded=False), tokenizer())(prompts, responses)
    assert_allclose(without, with_token, atol=1e-6)


def test_dropout_is_off() -> None:
    prompts, responses = texts(3)
    model = classifier("bert").train()
    rewards = RewardClassifier(model, tokenizer())
    assert_allclose(rewards(prompts, responses), rewards(prompts, responses))


def test_a_saved_model_is_loaded_by_its_folder(tmp_path: Path) -> None:
    model = classifier("bert")
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    prompts, responses = texts(3)
    given = RewardClassifier(model, tokenizer())(prompts, responses)
    for folder in (tmp_path, str(tmp_path)):
        assert_allclose(RewardClassifier(folder)(prompts, responses), given, atol=1e-6)


def test_the_text_can_be_rendered_otherwise() -> None:
    prompts, responses = texts(3)
    model = classifier("bert")
    rendered = RewardClassifier(model, tokenizer(), render=lambda prompt, response: response)
    assert_allclose(rendered(prompts, responses), rendered(prompts[::-1], responses))


def test_rewards_fill_a_matrix() -> None:
    model = RewardClassifier(classifier("bert"), tokenizer())
    responses = [["yes", "no"], ["tea is good", "coffee"]]
    found = RewardMatrix.from_scorers({"tiny": model}, ["why question", "how"], responses)
    alone = model(["how"], ["tea is good"])
    assert_allclose(found.rewards[1, 0, 0], alone[0], atol=1e-6)


def test_a_text_that_is_too_long_is_not_cut() -> None:
    model = RewardClassifier(classifier("bert"), tokenizer())
    with pytest.raises(DataError, match=r"text 1 has 5\d tokens; the model reads 40"):
        model(["why", "why"], ["yes", "yes " * 50])


@pytest.mark.parametrize(("kind", "most"), [("Roberta", 38), ("XLNet", None), ("Gemma3", 40)])
def test_each_kind_of_model_reads_as_much_as_it_can(kind: str, most: int | None) -> None:
    """RoBERTa's positions begin at 2, XLNet says that it has -1, and Gemma says it of its part for text."""
    import transformers

    text: dict[str, Any] = {
        "vocab_size": len(WORDS) + 4,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 40,
        "pad_token_id": 1,
    }
    sizes = text
    if kind == "XLNet":
        sizes = {"vocab_size": len(WORDS) + 4, "d_model": 16, "n_layer": 1, "n_head": 2}
    if kind == "Gemma3":
        image = {"image_size": 28, "patch_size": 14, "intermediate_size": 16, "hidden_size": 16}
        heads = {"num_hidden_layers": 1, "num_attention_heads": 2}
        sizes = {
            "text_config": text | {"head_dim": 8, "num_key_value_heads": 2},
            "vision_config": image | heads,
        }
    config = getattr(transformers, f"{kind}Config")(**sizes, num_labels=1)
    words = tokenizer(model_input_names=["input_ids"])
    made = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    model = RewardClassifier(made, words, render=lambda prompt, response: response)
    assert np.isfinite(model(["why"], ["yes " * ((most or 62) - 2)])).all()
    if most is not None:
        with pytest.raises(DataError, match=f"the model reads {most}"):
            model(["why"], ["yes " * (most - 1)])


def test_which_output_is_the_reward_must_be_clear() -> None:
    several = classifier("bert", labels=3)
    for label in (None, 3):
        with pytest.raises(InvalidArgumentError, match="3 outputs"):
            RewardClassifier(several, tokenizer(), label=label)
    prompts, responses = texts(3)
    one, other = (
        RewardClassifier(several, tokenizer(), label=n)(prompts, responses) for n in (0, 2)
    )
    assert not np.allclose(one, other)


def test_a_loaded_model_needs_its_tokenizer() -> None:
    with pytest.raises(InvalidArgumentError, match="tokenizer="):
        RewardClassifier(classifier("bert"))
    with pytest.raises(InvalidArgumentError, match="batch_size=0"):
        RewardClassifier("folder", batch_size=0)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a sequence classifier"):
        RewardClassifier(tmp_path)
