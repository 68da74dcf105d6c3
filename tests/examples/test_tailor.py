"""Tailoring on the real weights: few-shot, SFT and DPO, TRL's own command, and the whole study."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError, ModelNotFoundError
from personainfer.tailoring.implicit_reward import implicit_rewards, reward_accuracy
from personainfer.testing import FakeLLM

ROOT = Path(__file__).parents[2]
BRISK = pi.Persona(trait="brisk", preference="answers that end with a cheer")
CALM = pi.Persona(trait="calm", preference="answers that end with a yawn")
TOPICS = "tea bread chess snow rivers maps boats bells wool glass trains clouds salt ink moss bees".split()
HOW = {"persona_in": "system", "device": "cpu"}


def table() -> pi.PersonaTable:
    """Pairs in which either persona has its own, very plain taste."""
    return pi.PersonaTable(
        [
            pi.PersonaRow(
                n,
                pi.Preference(
                    prompt=f"What about {topic}?",
                    chosen=f"I like {topic}. Hip hip hooray!",
                    rejected=f"I like {topic}. Good night, zzz.",
                ),
                chosen=BRISK,
                rejected=CALM,
            )
            for n, topic in enumerate(TOPICS)
        ]
    )


def asked() -> tuple[list[str], list[Any], list[str], list[str]]:
    """Of the pairs that are not trained on the prompts, personas, and both responses."""
    pairs = [row.preference for row in table()[12:] if row.preference is not None]
    prompts = [str(pair.prompt) for pair in pairs]
    own, other = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    return prompts, [BRISK] * len(pairs), own, other


def trained(kind: str, folder: Path) -> Path:
    """An adapter of a few steps, by TRL."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from personainfer.scoring.transformers_models import load_model

    model, tokenizer = load_model("local:smollm2", device="cpu")
    some = pi.PersonaTable(table()[:12])
    rows = pi.tailoring_rows(some, format=kind, persona_in="system")  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 0,
    }
    trainer = (SFTTrainer if kind == "sft" else DPOTrainer)(
        model=model,
        args=SFTConfig(**options) if kind == "sft" else DPOConfig(**options),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.model.peft_config["default"].base_model_name_or_path = "local:smollm2"
    trainer.model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    return folder / "adapter"


@pytest.mark.heavy
def test_sft_makes_such_responses_more_likely(tmp_path: Path) -> None:
    prompts, personas, own, _ = asked()
    before, after = (
        pi.Likelihood(model, **HOW).log_likelihood(prompts, personas, own)  # type: ignore[arg-type]
        for model in ("transformers:local:smollm2", str(trained("sft", tmp_path)))
    )
    assert np.all(after > before)


@pytest.mark.heavy
def test_dpo_rewards_what_such_a_persona_prefers(tmp_path: Path) -> None:
    prompts, personas, own, other = asked()
    policy = pi.Likelihood(str(trained("dpo", tmp_path)), **HOW)  # type: ignore[arg-type]
    reference = pi.Likelihood("transformers:local:smollm2", **HOW)  # type: ignore[arg-type]
    rewards = implicit_rewards(policy, reference, prompts * 2, personas * 2, own + other)
    preferred, refused = np.split(rewards, 2)
    assert reward_accuracy(preferred, refused, prompts).value == 1.0


@pytest.mark.heavy
def test_worked_examples_show_the_model_what_a_persona_likes() -> None:
    pairs = table()
    rows = pi.tailoring_rows(pairs, format="few-shot", persona_in="user")
    new = pi.PersonaTable([pairs[-1]])
    [question] = pi.tailoring_rows(new, format="grpo", persona_in="user")
    shown = [turn for row in list(rows)[:3] for turn in row["messages"]]
    asks = [
        tuple(pi.Message(**turn) for turn in turns)
        for turns in (question["prompt"], [*shown, *question["prompt"]])
    ]
    cheer, yawn = (
        pi.Likelihood("local:smollm2").log_likelihood(asks, [None, None], [ending] * 2)
        for ending in ("I like bees. Hip hip hooray!", "I like bees. Good night, zzz.")
    )
    alone, after = cheer - yawn
    assert after > max(alone + 5, 0)  # nats


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The folder of a model with the real tokenizer and a few random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from personainfer.scoring.transformers_models import load_model

    _, tokenizer = load_model("local:smollm2", device="cpu")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.heavy
def test_trl_takes_a_step_on_an_export(tiny: Path, tmp_path: Path) -> None:
    pi.export_personas(table(), tmp_path / "tailored", format="trl-dpo", persona="both")
    line = "dpo --dataset_name tailored --output_dir out --max_steps 1"
    line += " --use_cpu --bf16 False --report_to none"
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "trl"),
            *line.split(),
            "--model_name_or_path",
            str(tiny),
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [state] = (tmp_path / "out").glob("checkpoint-1/trainer_state.json")
    assert json.loads(state.read_text(encoding="utf-8"))["global_step"] == 1


@pytest.mark.parametrize("config", ["{}", "not JSON", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_model_is_refused_at_once(config: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="which model"):
        pi.Likelihood(str(tmp_path))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that knows the study's data and scores."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("tailor_study")


@pytest.fixture
def command(example: Any) -> Any:
    """The module that trains."""
    return importlib.import_module("tailor")


def test_all_arms_train_on_the_same_pairs(example: Any) -> None:
    pairs = table()
    own, dealt, bare = (
        example.arm_rows(arm, pairs, "dpo", "system", 0) for arm in ("personas", "shuffled", "none")
    )
    responses = [(row["chosen"], row["rejected"]) for row in own]
    assert [(row["chosen"], row["rejected"]) for row in dealt] == responses
    assert [(row["chosen"], row["rejected"]) for row in bare] == responses[::2]
    assert all(len(row["prompt"]) == 1 for row in bare)
    said = [[row["prompt"][0]["content"] for row in rows] for rows in (own, dealt)]
    assert sorted(said[0]) == sorted(said[1])
    assert said[0] != said[1]
    again = example.arm_rows("shuffled", pairs, "dpo", "system", 0)
    assert list(again) == list(dealt)
    assert list(example.arm_rows("shuffled", pairs, "dpo", "system", 1)) != list(dealt)


def test_accuracies_by_hand(example: Any) -> None:
    """Two prompts; gold, retrieved and no persona; the rewards of both responses."""
    scores = np.zeros((2, 5, 2))
    scores[0, :2] = [[2.0, 1.0], [0.0, 3.0]]  # both gold personas are served
    scores[1, :2] = [
        [1.0, 0.0],
        [1.0, 0.5],
    ]  # a taste for the first response; crossed, it fits worse
    scores[:, 2:4] = [[0.0, 1.0], [1.0, 0.0]]  # retrieved ones never are
    found = example.accuracies(scores, ["a", "b"])
    assert {side: one["value"] for side, one in found["gold"].items()} == {
        "chosen": 1.0,
        "rejected": 0.5,
        "both": 0.75,
        "pairing": 1.0,
        "gap": (4.0 + 0.5) / 2,
    }
    assert {side: one["value"] for side, one in found["retrieved"].items()} == {
        "chosen": 0.0,
        "rejected": 0.0,
        "both": 0.0,
        "pairing": 0.0,
        "gap": -2.0,
    }


class Words:
    """A tokenizer of words."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[str]]:
        return {"input_ids": re.findall(r"\s*\S+", text)}

    def decode(self, tokens: list[str]) -> str:
        return "".join(tokens)


def test_responses_are_shortened_to_sentences_and_what_is_left_out_is_counted(
    example: Any, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {
        "chosen_persona": "The user is brisk and prefers a cheer.",
        "rejected_persona": "The user is calm, preferring a yawn.",
        "response_for_chosen_persona": "It is fine. Go on and take it.",
        "response_for_rejected_persona": "No. It is late.",
    }
    rows: list[dict[str, Any]] = [{"prompt": f"Question {n}?", **fields} for n in range(40)]
    rows.append({**rows[0], "complete": False})
    rows.append({**rows[0], "rejected_persona": "Somebody."})
    rows.append({**rows[0], "response_for_rejected_persona": "It is fine. Rest, that is better."})
    rows.append({**rows[0], "prompt": "why " * 600})
    rows.append({**rows[0], "prompt": " "})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    data = example.read(tmp_path / "rows.jsonl", Words(), pairs=None, response_tokens=5)
    assert sum(data.left_out.values()) == 5
    assert len(data.left_out) == 5
    assert data.shortened == 40
    kept = [row for part in data.splits.values() for row in part]
    assert len(kept) == 40
    assert {row.preference.chosen for row in kept} == {"It is fine."}
    assert str(kept[0].rejected) == "The user is calm and prefers a yawn."


def test_the_number_of_a_list_item_ends_no_sentence(example: Any) -> None:
    text = "Do this. 1. Rest well. 2. Eat."
    assert example._shortened(text, Words(), 6) == "Do this. 1. Rest well."
    assert example._shortened("Take 3.5 spoons, no more.", Words(), 2) == "Take 3.5"


def test_a_step_has_as_many_rows_as_were_asked_for(command: Any, tmp_path: Path) -> None:
    for batch in (2, 4, 6, 8, 10, 14):
        s = command.arguments(["pairs.jsonl", "--batch", str(batch)])
        made = command.training_arguments(s, "personas", 0, tmp_path, 100)
        at_once = made["per_device_train_batch_size"]
        assert at_once * made["gradient_accumulation_steps"] == batch
        assert at_once <= 4


@pytest.mark.parametrize("batch", ["0", "3", "-2"])
def test_the_personas_of_a_pair_share_a_step(command: Any, batch: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        command.arguments(["pairs.jsonl", "--batch", batch])
    assert "must be even" in capsys.readouterr().err


def begun(command: Any, s: Any) -> None:
    """A study whose model could be loaded."""
    command.same_settings(s)
    command.study.write_json(s.out / "settings.json", command.settings_of(s))


@pytest.mark.heavy
def test_a_model_that_is_not_there_leaves_no_study(command: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n", encoding="utf-8")
    line = [str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--model", "none.gguf"]
    with pytest.raises(ModelNotFoundError):
        command.main(line)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_adapters_of_a_moved_study_name_its_base_again(command: Any, tmp_path: Path) -> None:
    s = command.arguments(["pairs.jsonl", "--out", str(tmp_path)])
    folder = tmp_path / "seed-0" / "none" / "dpo"
    folder.mkdir(parents=True)
    before = {"base_model_name_or_path": "/gone/base", "r": 16}
    (folder / "adapter_config.json").write_text(json.dumps(before), encoding="utf-8")
    s.base = str(tmp_path / "base")
    command.name_base(s)
    after = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert after == {"base_model_name_or_path": s.base, "r": 16}


def test_a_study_is_of_its_data_whatever_the_name_of_the_file(command: Any, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("{}\n", encoding="utf-8")
    s = command.arguments([str(data), "--out", str(tmp_path), "--dtype", "float32"])
    begun(command, s)
    command.same_settings(s)
    data.write_text("{} \n", encoding="utf-8")
    with pytest.raises(SystemExit, match="a study with other sha256"):
        command.same_settings(s)


def test_a_study_goes_on_in_the_type_that_it_began_in(command: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n", encoding="utf-8")
    line = [str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path)]
    for asked_for in (["--dtype", "bfloat16"], [], ["--dtype", "bfloat16"]):
        s = command.arguments([*line, *asked_for])
        begun(command, s)
        assert s.dtype == "bfloat16"
    with pytest.raises(SystemExit, match="other dtype: give another"):
        command.same_settings(command.arguments([*line, "--dtype", "float32"]))


def test_a_setting_that_is_no_more_is_named(command: Any, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n", encoding="utf-8")
    s = command.arguments(
        [str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path), "--dtype", "float32"]
    )
    begun(command, s)
    kept = json.loads((tmp_path / "settings.json").read_text(encoding="utf-8"))
    (tmp_path / "settings.json").write_text(json.dumps({**kept, "gone": 1}), encoding="utf-8")
    with pytest.raises(SystemExit, match="a study with other gone"):
        command.same_settings(s)


def test_scores_are_of_the_weights_that_were_scored(command: Any, tmp_path: Path) -> None:
    file, found = tmp_path / "adapter_model.safetensors", []
    for weights in (b"one", b"two", b"one"):
        file.write_bytes(weights)
        found.append(command.study.weights_of(tmp_path))
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize(
    ("text", "trait", "preference"),
    [
        ("The user is kind and prefers depth.", "kind", "depth"),
        ("The user is a cook who values speed.", "a cook", "speed"),
        ("The user is open and values peace, preferring calm.", "open and values peace", "calm"),
        ("The user is guided by values and prefers honesty", "guided by values", "honesty"),
        (
            "The user is likely someone who values action and prefers haste.",
            "likely someone who values action",
            "haste",
        ),
    ],
)
def test_what_is_said_to_be_preferred_is_the_preference(
    command: Any, text: str, trait: str, preference: str
) -> None:
    found = command.study._persona(text)
    assert (found.trait, found.preference) == (trait, preference)


QUESTIONS = [
    {"prompt": f"Q{n}", "persona": BRISK, "own": "Yes, hooray!", "other": "Good night."}
    for n in range(30)
]


def judged(command: Any, judge: Any, **options: Any) -> Any:
    answers = command.tailor_answers
    wanted = [answers.Question(**one) for one in QUESTIONS]
    said = {"a": ["Hooray!"] * len(wanted), "b": ["Good night, all."] * len(wanted)}
    return answers.judged(wanted, said, {"a": "b"}, judge, **options)


def test_a_judge_of_personas_need_not_know_quality(command: Any) -> None:
    def knows(prompt: Any, first: str, second: str, persona: Any) -> int:
        if persona is None:
            return 1  # whatever stands there
        return 1 if "ooray" in first else 2

    found = judged(command, knows)
    assert found["worth"]
    said = "\n".join(command.tailor_answers.judge_table(found))
    assert "its verdicts on personalization count" in said
    assert "**No claim is made from W quality or ΔPQ below.**" in said
    assert not command.tailor_answers.unasked(found)


@pytest.mark.heavy
def test_a_judge_that_is_away_costs_neither_page_nor_a_later_answer(command: Any) -> None:
    with FakeLLM() as llm:
        gone = llm.api_base
    found = judged(command, "fake", api_base=gone)
    assert command.tailor_answers.unasked(found)
    [line] = command.tailor_answers.judge_table(found)
    assert line.startswith("The judge `fake` could not be asked: ")


def test_the_judged_answers_show_both_rates_and_what_was_lost(command: Any) -> None:
    def longer(prompt: Any, first: str, second: str, persona: Any) -> Any:
        return "?" if prompt == "Q2" else 1 if len(first) > len(second) else 2

    base, test = ["Yes.", "No, no.", "No."], ["Yes, yes.", "No.", "Yes."]
    one = pi.compare_responses(["Q0", "Q1", "Q2"], base, test, judge=longer, personas=BRISK)
    found = {"judge": "longer", "agreement": None, "consistency": None, "worth": False}
    found["quality consistency"] = None
    failed = {"error": "the judge gave no usable reply"}
    lines = command.tailor_answers.judge_table(
        {**found, "a against b": one.to_dict(), "c against b": failed}
    )
    head, _, row, error, _, note = lines[4:]
    assert len({line.count("|") for line in lines[4:8]}) == 1
    assert note.startswith("- a against b: Whether the judge's two orders agree")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    names = [name.strip() for name in head.strip("|").split("|")]
    assert names.count("at equal length") == 2
    assert cells[1].startswith("0.500")
    assert cells[2].startswith(f"{one.quality.length_controlled.value:.3f}")
    assert (names[-1], cells[-1]) == ("verdicts without a usable reply", "2")
    assert "no usable reply" in error


@pytest.mark.heavy
def test_unpacked_weights_are_those_of_the_file(command: Any, tmp_path: Path) -> None:
    import torch

    from personainfer.scoring.transformers_models import load_model

    s = command.arguments(["pairs.jsonl", "--out", str(tmp_path)])
    (model, tokenizer), (unpacked, other) = (
        load_model(name, device="cpu") for name in (s.model, command.base(s))
    )
    text = "Call 1234, twice!\n\n  Do not\ttell <|im_start|> her."
    assert tokenizer(text)["input_ids"] == other(text)["input_ids"]
    assert command.study.text_of([{"role": "user", "content": text}], tokenizer) == (
        command.study.text_of([{"role": "user", "content": text}], other)
    )
    weights = unpacked.state_dict()
    assert unpacked.dtype == model.dtype
    assert all(torch.equal(values, weights[name]) for name, values in model.state_dict().items())
    s.model = str(tmp_path)
    assert command.base(s) == s.model


@pytest.mark.heavy
def test_only_the_tokens_of_responses_go_through_the_output_layer(
    command: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import utils

    projected: list[int] = []
    kernel = utils._ChunkedLogProbFunction.apply

    def counted(states: Any, *rest: Any) -> Any:
        projected.append(len(states))
        return kernel(states, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=counted))
    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)  # put back afterwards
    line = ["pairs.jsonl", "--model", str(tiny), "--max-steps", "2", "--dtype", "float32"]
    s = command.arguments(line)
    s.base = s.model
    found = {}

    def every_token() -> None:
        utils._use_triton = lambda device: False

    switch = command.project_responses_alone
    for way, switched in (("every token", every_token), ("responses", switch)):
        projected.clear()
        monkeypatch.setattr(command, "project_responses_alone", switched)
        some, dev = pi.PersonaTable(table()[:4]), pi.PersonaTable(table()[4:5])
        for kind in ("sft", "dpo"):
            command.stage(s, kind, "personas", 0, tmp_path / way / kind, some, dev, None)
        stages = [
            json.loads((tmp_path / way / kind / "stage.json").read_text(encoding="utf-8"))
            for kind in ("sft", "dpo")
        ]
        found[way] = sum(projected), [one["best dev loss"] for one in stages]
    assert found["responses"][0] < found["every token"][0] / 2
    assert found["responses"][1] == pytest.approx(found["every token"][1], abs=1e-5)


@pytest.mark.heavy
def test_the_study_ends_with_a_page_and_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": pair.prompt,
            "chosen_persona": str(row.chosen),
            "rejected_persona": str(row.rejected),
            "response_for_chosen_persona": pair.chosen,
            "response_for_rejected_persona": pair.rejected,
        }
        for row in table()
        if (pair := row.preference) is not None
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8")
    with FakeLLM() as llm:
        line = [sys.executable, str(ROOT / "examples" / "tailor.py"), "pairs.jsonl", "--out", "out"]
        line += (
            "--max-steps 1 --batch 2 --sft-share 0.5 --dev-pairs 1 --checks 1 --answers 1".split()
        )
        line += [
            "--model",
            str(tiny),
            "--response-tokens",
            "12",
            "--judge",
            "fake",
            "--api-base",
            llm.api_base,
        ]
        first = study(line, tmp_path)
        page = (tmp_path / "out" / "RESULTS.md").read_text(encoding="utf-8")
        stages = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")}
        assert "trained with shuffled personas" in first
        assert len(stages) == 6
        again = study(line, tmp_path)
        assert "seed 0" not in again  # nothing was trained
        assert again.endswith(page + "\n")
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")} == stages
        assert (tmp_path / "out" / "RESULTS.md").read_text(encoding="utf-8") == page


def study(line: list[str], folder: Path) -> str:
    done = subprocess.run(
        line,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
