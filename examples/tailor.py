"""Train a model that tailors to a persona, on real weights, and measure whether it does.

    python examples/tailor.py pairs.jsonl           # one seed, short responses: two CPU cores, under an hour
    python examples/tailor.py pairs.jsonl --full    # three seeds, whole responses: a GPU

A row of the file has a `prompt`, `chosen_persona`, `rejected_persona`, `response_for_chosen_persona` and
`response_for_rejected_persona`. A persona's holder prefers the response that was written for them. Prompts
are split 60 / 15 / 25. Three arms are trained by TRL and peft, SFT first and then DPO from there ("Whose
Boat Does it Float?", arXiv 2501.11549, section 4), in equally many steps: without personas (the response for
the chosen persona over the other one), with personas, and with shuffled ones. The loss is that of the
response alone, and the checkpoint the one with the lowest loss on the development split.

Every stage is a folder or a file under --out, there when it is done: the same command again goes on from
it. RESULTS.md says what came out, and results.json the same in numbers.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tailor_answers
import tailor_study as study
from tailor_study import ARMS, Data, Row

from personainfer.scoring import load_model

TRAINED = [arm for arm in ARMS if arm != "untrained"]
AGAINST = {"personas": "none", "few-shot": "untrained"}  # whose answers are judged against whose
# LoRA on 135M parameters, two cores, for the plan alone: float32 as the whole study had it, bfloat16
# by what a step takes with instructions for it.
CPU_TOKENS_A_SECOND = {"bfloat16": 370, "float32": 220}
FULL = {
    "seeds": [0, 1, 2],
    "response_tokens": 512,
    "train_tokens": None,
    "dev_pairs": None,
    "sft_share": 1.0,
    "epochs": 3.0,
    "batch": 8,
    "answers": 100,
}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The sizes of the study."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("data", type=Path, help="a JSONL file")
    add("--full", action="store_true", help=f"other defaults: {FULL}")
    add("--out", type=Path, default=Path("tailored"), help="folder of all that is made")
    add(
        "--model",
        default="local:smollm2",
        help='"local:smollm2", a hub id, a folder or a .gguf file',
    )
    add("--seeds", type=int, nargs="+", default=[0])
    add("--pairs", type=int, help="read no more rows than this")
    add("--response-tokens", type=int, default=64, help="the whole sentences of so many tokens")
    add("--train-tokens", type=int, default=70_000, help="of the pairs DPO reads in one epoch")
    add("--dev-pairs", type=int, default=16, help="pairs of the development split that are used")
    add("--persona-in", choices=["user", "system", "plain"], default="user")
    add("--epochs", type=float, default=1.0, help="of DPO and of SFT")
    add("--max-steps", type=int, default=-1, help="of each stage, to try it out")
    add("--sft-share", type=float, default=0.25, help="of the training pairs; 0: no SFT")
    add("--sft-learning-rate", type=float, default=1e-4)
    add("--learning-rate", type=float, default=5e-4, help="of DPO")
    add("--beta", type=float, default=0.1)
    add("--rank", type=int, default=16, help="of LoRA; alpha is twice that")
    add(
        "--dtype",
        choices=[*CPU_TOKENS_A_SECOND],
        help="of the weights in training; left out: the one that this machine is faster in",
    )
    add("--batch", type=int, default=4, help="rows a step, two for each pair")
    add("--checks", type=int, default=2, help="times a stage is checked on the development split")
    add("--retriever", default="bm25", help="a sentence-transformers model, or bm25")
    add("--answers", type=int, default=12, help="held-out prompts that are answered and judged")
    add("--examples", type=int, default=2, help="worked examples of the few-shot answers")
    add("--judge", default="local:smollm2", help="a model, as for personainfer.compare_responses")
    add("--api-base", help="the address of the judge's endpoint")
    if parser.parse_known_args(given)[0].full:
        parser.set_defaults(**FULL)
    found = parser.parse_args(given)
    if found.batch < 2 or found.batch % 2:
        parser.error("--batch must be even: the personas of a pair share a step.")
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Train, score, answer, judge, report: what is on disk is not done again."""
    s = arguments(given)
    s.out.mkdir(parents=True, exist_ok=True)
    one_device()
    same_settings(s)
    s.base = base(s)
    _, tokenizer = load_model(s.base, device="cpu")
    study.write_json(s.out / "settings.json", settings_of(s))
    name_base(s)
    data = study.read(s.data, tokenizer, pairs=s.pairs, response_tokens=s.response_tokens)
    train = study.within(data.splits["train"], tokenizer, s.persona_in, s.train_tokens)
    dev = study.first(data.splits["dev"], s.dev_pairs)
    plan = planned(s, data, train, dev, tokenizer)
    print(plan["said"], flush=True)
    held = study.held_out(train, data.splits["test"], s.retriever)
    runs = [seed_run(s, seed, held, train, dev) for seed in s.seeds]
    judged = judge(s, data, train)
    results = {
        "settings": settings_of(s),
        "data": plan,
        "training": [run["training"] for run in runs],
        "rewards": study.over_seeds([run["scores"] for run in runs], held.prompts),
        "judged": judged,
    }
    study.write_json(s.out / "results.json", results)
    page = tailor_answers.page(results, seeds=s.seeds)
    (s.out / "RESULTS.md").write_text(page, encoding="utf-8")
    print(page)


def one_device() -> None:
    """Stop where the trainer would divide each step among several GPUs: that is another study."""
    import torch

    if torch.cuda.device_count() > 1:
        raise SystemExit("This study trains on one GPU: set CUDA_VISIBLE_DEVICES=0.")


def settings_of(s: argparse.Namespace) -> Row:
    """What the models depend on, and what is said of the data: its name, and no folder of anybody's."""
    apart = ("out", "base", "judge", "api_base")
    kept = {k: v for k, v in vars(s).items() if k not in apart}
    digest = hashlib.sha256(s.data.read_bytes()).hexdigest()[:16]
    return kept | {"data": s.data.name, "sha256": digest}


def same_settings(s: argparse.Namespace) -> None:
    """Stop where the folder holds another study: its stages would be taken for this one's.

    A type that was not asked for is the one of the study that is there: it may go on elsewhere.
    """
    kept = s.out / "settings.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    s.dtype = s.dtype or before.get("dtype") or study.fast_dtype()
    now = settings_of(s)
    names = {**before, **now} if before else {}
    if changed := [name for name in names if now.get(name) != before.get(name)]:
        raise SystemExit(
            f"{s.out} holds a study with other {', '.join(changed)}: give another --out."
        )


def planned(s: argparse.Namespace, data: Data, train: Any, dev: Any, tokenizer: Any) -> Row:
    """What will be trained on, in tokens, before anything is."""
    rows = study.arm_rows("personas", train, "dpo", s.persona_in, 0)
    tokens = sum(study.count_tokens(rows, tokenizer)) * s.epochs
    checked = study.arm_rows("personas", dev, "dpo", s.persona_in, 0)
    # Forward passes are a third of a step: the reference's, once each row, and the checks on dev.
    passes = tokens / s.epochs + (1 + s.checks) * sum(study.count_tokens(checked, tokenizer))
    arm = tokens + passes / 3 + s.sft_share * tokens / 2
    minutes = arm * len(TRAINED) * len(s.seeds) / CPU_TOKENS_A_SECOND[s.dtype] / 60
    found = {
        "pairs": {name: len(table) for name, table in data.splits.items()},
        "trained on": len(train),
        "checked on": len(dev),
        "left out": dict(data.left_out),
        "responses shortened": data.shortened,
        "DPO tokens an arm": int(tokens),
    }
    said = "\n".join(f"{name}: {value}" for name, value in found.items())
    said += f"\nTraining on two CPU cores would take about {minutes:.0f} minutes (an estimate)."
    return {**found, "said": said}


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """The folder or file, made if it is not there; half of it is never taken for it."""
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        part.rename(path)
    return path


def base(s: argparse.Namespace) -> str:
    """What all arms start from: the model, or the folder that its .gguf file was unpacked to.

    transformers takes half a minute to read one, and something here reads the model more than a
    dozen times. peft reads the folder, too: it would not know what "local" is.
    """

    def unpack(part: Path) -> None:
        model, tokenizer = load_model(s.model, device="cpu", dtype="float32")
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)

    if s.model.partition(":")[0] != "local" and not s.model.lower().endswith(".gguf"):
        return str(s.model)
    return str(once(s.out / "base", unpack).resolve())


def name_base(s: argparse.Namespace) -> None:
    """Let the adapters that are there name the base where it is now: the folder may have been moved."""
    for path in s.out.glob("seed-*/*/*/adapter_config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("base_model_name_or_path") != s.base:
            study.write_json(path, config | {"base_model_name_or_path": s.base})


def seed_run(s: argparse.Namespace, seed: int, held: study.Held, train: Any, dev: Any) -> Row:
    """All arms with one seed, trained and scored on the held-out pairs."""
    folder = s.out / f"seed-{seed}"
    how = {
        "persona_in": s.persona_in,
        "max_response_tokens": s.response_tokens,
        "dtype": "float32",
        "max_prompt_tokens": 4 * study.LONGEST_PROMPT,
    }
    # The reference is the same with every seed, and wherever it lies.
    kept = s.out / "untrained.scores.json"
    policies = {"untrained": study.ScoredOnce(f"transformers:{s.base}", kept, s.model, **how)}
    for arm in TRAINED:
        model = trained(s, arm, seed, folder / arm, train, dev)
        kept, weights = folder / f"{arm}.scores.json", study.weights_of(model)
        policies[arm] = study.ScoredOnce(str(model), kept, weights, **how)
    stages = [*folder.glob("*/*/stage.json")]
    return {
        "training": {f"{p.parts[-3]}/{p.parts[-2]}": json.loads(p.read_text()) for p in stages},
        "scores": study.scores_of(policies, held, s.beta),
    }


# Training


def trained(s: argparse.Namespace, arm: str, seed: int, folder: Path, train: Any, dev: Any) -> Path:
    """The folder of the arm's adapter: SFT, then DPO from there."""
    start = None
    if s.sft_share > 0:
        some = study.first(train, max(1, round(s.sft_share * len(train))))
        start = once(folder / "sft", lambda part: stage(s, "sft", arm, seed, part, some, dev, None))
    return once(folder / "dpo", lambda part: stage(s, "dpo", arm, seed, part, train, dev, start))


def stage(
    s: argparse.Namespace,
    kind: str,
    arm: str,
    seed: int,
    folder: Path,
    train: Any,
    dev: Any,
    start: Path | None,
) -> None:
    """Train an adapter, a new one or the one in `start`, and save it with what was seen."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    project_responses_alone()
    model, tokenizer = load_model(s.base, dtype=s.dtype)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=s.rank,
        lora_alpha=2 * s.rank,
        lora_dropout=0.05,
    )
    if start is not None:
        model, lora = PeftModel.from_pretrained(model, str(start), is_trainable=True), None
    train = study.in_random_order(train, seed)
    rows, checked = (study.arm_rows(arm, table, kind, s.persona_in, seed) for table in (train, dev))
    common = training_arguments(s, arm, seed, folder, len(rows))
    config = (
        SFTConfig(**common, completion_only_loss=True, learning_rate=s.sft_learning_rate)
        if kind == "sft"
        else DPOConfig(
            **common, beta=s.beta, precompute_ref_log_probs=True, learning_rate=s.learning_rate
        )
    )
    began = time.monotonic()
    trainer = (SFTTrainer if kind == "sft" else DPOTrainer)(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset=Dataset.from_list(list(checked)),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    adapter = trainer.model.peft_config["default"]
    adapter.base_model_name_or_path = None  # else each checkpoint asks the hub about it
    trainer.train()
    adapter.base_model_name_or_path = s.base
    trainer.model.save_pretrained(
        str(folder), selected_adapters=["default"], save_embedding_layers=False
    )
    found = {
        "rows": len(rows),
        "steps": trainer.state.global_step,
        "best step": trainer.state.best_global_step,
        "best dev loss": trainer.state.best_metric,
        "seconds": round(time.monotonic() - began),
        "device": str(model.device),
        "log": trainer.state.log_history,
    }
    study.write_json(folder / "stage.json", found)
    said = ", ".join(f"{name} {value}" for name, value in found.items() if name != "log")
    print(f"seed {seed}, {ARMS[arm]}, {kind}: {said}", flush=True)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    del trainer, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def project_responses_alone() -> None:
    """Let TRL's trainers put only the tokens that count through the output layer, on a CPU too.

    Where it has no Triton, TRL 1.16 puts every token of a batch through it, prompts and padding, and
    leaves out afterwards what does not count: a fifth of a step. The loss is the same; a TRL without
    this switch stays as it is.
    """
    from trl.trainer import utils

    if hasattr(utils, "_use_triton"):
        utils._use_triton = lambda device: True


def training_arguments(
    s: argparse.Namespace, arm: str, seed: int, folder: Path, rows: int
) -> dict[str, Any]:
    """What SFT and DPO have in common."""
    # Without personas a pair is one row, with them two: as many steps for both.
    epochs = s.epochs * (2 if arm == "none" else 1)
    at_once = next(rows for rows in (4, 3, 2, 1) if s.batch % rows == 0)
    steps = s.max_steps if s.max_steps > 0 else max(1, round(epochs * rows / s.batch))
    every = max(1, steps // s.checks)
    return {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "max_steps": steps,
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": max(1, s.batch // at_once),
        # Both personas of a pair in one step: what is good for either cancels out, and what is left to
        # be learned is for whom. Apart, the later one meets a model that has just learned the reverse.
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_only_model": True,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "logging_steps": every,
        "max_length": None,  # nothing is cut here: responses are short enough as they were read
        "bf16": False,  # the weights may be; the adapter's are float32
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


# Answers


def answer(s: argparse.Namespace, wanted: Sequence[Any], train: Any, part: Path) -> None:
    """Let the models of the first seed answer."""
    plain = [tailor_answers.asked(question, s.persona_in) for question in wanted]
    shown = tailor_answers.nearest_examples(train, wanted, s.persona_in, s.examples)
    helped = [
        tailor_answers.asked(question, s.persona_in, rows)
        for question, rows in zip(wanted, shown, strict=True)
    ]
    first = s.out / f"seed-{s.seeds[0]}"
    models = {
        "untrained": (s.base, plain),
        "few-shot": (s.base, helped),
        "none": (str(first / "none" / "dpo"), plain),
        "personas": (str(first / "personas" / "dpo"), plain),
    }
    said = {
        name: tailor_answers.answers(model, prompts, s.response_tokens)
        for name, (model, prompts) in models.items()
    }
    study.write_json(part, said)


def judge(s: argparse.Namespace, data: Data, train: Any) -> Row:
    """What the judge makes of the answers to held-out prompts; another judge reads the same ones.

    Where it could not be asked, nothing is kept: the same command asks it again.
    """
    wanted = tailor_answers.questions(data.splits["test"], s.answers)
    models = [s.out / f"seed-{s.seeds[0]}" / arm / "dpo" for arm in ("none", "personas")]
    digest = study.digest(*map(study.weights_of, models))
    said = once(
        s.out / f"answers-{digest}.json", lambda part: answer(s, wanted, train, part)
    ).read_text(encoding="utf-8")
    name = re.sub(r"\W+", "-", s.judge)
    path = s.out / f"judged-{name}-{study.digest(s.judge, str(s.api_base), said)}.json"
    if path.exists():
        kept: Row = json.loads(path.read_text(encoding="utf-8"))
        return kept
    options = {"api_base": s.api_base} if s.api_base else {}
    found = tailor_answers.judged(wanted, json.loads(said), AGAINST, s.judge, **options)
    if not tailor_answers.unasked(found):
        study.write_json(path, found)
    return found


if __name__ == "__main__":
    main()
