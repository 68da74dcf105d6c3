"""What the tailoring study trains on, and how its models are scored: data, arms, tokens, rewards.

`tailor.py` says what is done in which order, and trains; `tailor_answers.py` knows the judge and the page.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import personainfer as pi
from personainfer.evaluation import mean_by_group
from personainfer.personas.prompts import prompt_numbers
from personainfer.tailoring import TailoringRows, implicit_rewards, reward_accuracy

SHARES = {"train": 0.60, "dev": 0.15, "test": 0.25}
ARMS = {
    "untrained": "untrained",
    "none": "trained without personas",
    "personas": "trained with personas",
    "shuffled": "trained with shuffled personas",
}
SHOWN = ("gold chosen", "gold rejected", "retrieved chosen", "retrieved rejected", "none")
LONGEST_PROMPT = 512  # tokens of a prompt with its persona: a longer one is left out, never cut
# The plain word first: who "values honesty and prefers" something prefers that.
_PERSONA = [
    re.compile(rf"The user is (.+?)(?:,| and| who|, and|, who)? (?:{verbs}) (.+?)\.?")
    for verbs in ("prefers|preferring", "prioritizes|prioritizing|values|valuing")
]
_SENTENCE_END = re.compile(r"(?<!\d)[.!?](?=\s|$)")  # "2." begins an item of a list

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


# The data


@dataclass(frozen=True)
class Data:
    """The pairs of each split, what was left out, and how many responses were shortened."""

    splits: Mapping[str, pi.PersonaTable]
    left_out: Mapping[str, int]
    shortened: int


def read(path: Path, tokenizer: Any, *, pairs: int | None, response_tokens: int) -> Data:
    """The rows of a JSONL file, with responses of whole sentences, in splits by prompt."""
    rows: list[pi.PersonaRow] = []
    left_out: Counter[str] = Counter()
    shortened = 0
    with path.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines][:pairs]
    for number, row in enumerate(found):
        personas = [_persona(row["chosen_persona"]), _persona(row["rejected_persona"])]
        texts = [row["response_for_chosen_persona"], row["response_for_rejected_persona"]]
        short = [_shortened(text, tokenizer, response_tokens) for text in texts]
        reason = _problem(row, personas, short, tokenizer)
        if reason is not None:
            left_out[reason] += 1
            continue
        shortened += sum(a != b for a, b in zip(short, texts, strict=True))
        pair = pi.Preference(prompt=row["prompt"], chosen=short[0], rejected=short[1])
        rows.append(pi.PersonaRow(number, pair, *personas))
    prompts = pi.tailoring_rows(pi.PersonaTable(rows), persona="none", format="grpo")
    left_out.update(prompts.left_out)
    parts = {name: set(part.ids) for name, part in prompts.split(SHARES).items()}
    splits = {
        name: pi.PersonaTable([row for row in rows if str(row.index) in ids])
        for name, ids in parts.items()
    }
    return Data(splits, dict(left_out), shortened)


def _persona(text: str) -> pi.Persona | None:
    for form in _PERSONA:
        if found := form.fullmatch(text):
            return pi.Persona(trait=found[1], preference=found[2])
    return None


def _shortened(text: str, tokenizer: Any, limit: int) -> str:
    """The whole sentences among the first tokens; where there is none, those tokens."""
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) <= limit:
        return text.strip()
    start = tokenizer.decode(tokens[:limit]).strip()
    ends = [found.end() for found in _SENTENCE_END.finditer(start)]
    return start[: ends[-1]] if ends else start


def _problem(
    row: Row, personas: Sequence[pi.Persona | None], responses: Sequence[str], tokenizer: Any
) -> str | None:
    """Why a row is not used."""
    if not row.get("complete", True):
        return "a response was cut off in the data"
    if not all(text.strip() for text in (row["prompt"], *responses)):
        return "a text is empty"
    if None in personas:
        return "a persona has no trait and preference"
    if responses[0] == responses[1]:
        return "responses with the same start"
    said = [row["prompt"], *map(str, personas)]
    if len(tokenizer("\n".join(said))["input_ids"]) > LONGEST_PROMPT:
        return f"more than {LONGEST_PROMPT} tokens of prompt and personas"
    return None


def arm_rows(arm: str, table: pi.PersonaTable, format: Any, place: Any, seed: int) -> TailoringRows:
    """What an arm is trained on: the same pairs, with their personas, none, or those of other pairs."""
    if arm == "shuffled":
        table = _shuffled(table, seed)
    shown = "none" if arm == "none" else "both"
    return pi.tailoring_rows(table, persona=shown, format=format, persona_in=place)


def _shuffled(table: pi.PersonaTable, seed: int) -> pi.PersonaTable:
    """Each persona moves to another place, of either side: nothing is left to be learned from it."""
    pool = [persona for row in table for persona in (row.chosen, row.rejected)]
    order = np.random.default_rng(seed).permutation(len(pool))
    moved = dict(zip(order, np.roll(order, 1), strict=True))
    return pi.PersonaTable(
        [
            replace(row, chosen=pool[moved[2 * n]], rejected=pool[moved[2 * n + 1]])
            for n, row in enumerate(table)
        ]
    )


# Tokens


def fast_dtype() -> str:
    """The type that this machine trains faster in.

    A CPU that multiplies bfloat16 takes 0.6 of the time of float32; one that does not, 2.7 times as long.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    found = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.10 cannot say
    named = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
    return "bfloat16" if any(found.get(name) for name in named) else "float32"


def text_of(prompt: Any, tokenizer: Any) -> str:
    """What the model reads before it answers."""
    if isinstance(prompt, str):
        return prompt
    text: str = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return text


def count_tokens(rows: Sequence[Row], tokenizer: Any) -> list[int]:
    """Tokens that training on each row reads: of a preference, the prompt twice."""
    counts = []
    for row in rows:
        texts = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
        said = [text if isinstance(text, str) else text[0]["content"] for text in texts]
        prompt = text_of(row["prompt"], tokenizer)
        counts.append(sum(len(tokenizer(prompt + text)["input_ids"]) + 2 for text in said))
    return counts


def within(
    table: pi.PersonaTable, tokenizer: Any, place: str, budget: int | None
) -> pi.PersonaTable:
    """The first pairs whose preferences, with both personas, take no more tokens than that."""
    rows = arm_rows("personas", table, "dpo", place, 0)
    total = np.cumsum(count_tokens(rows, tokenizer))[1::2]  # two rows a pair
    return table if budget is None else table[: int((total <= budget).sum())]


def in_random_order(table: pi.PersonaTable, seed: int) -> pi.PersonaTable:
    """The pairs of a table, shuffled."""
    order = np.random.default_rng(seed).permutation(len(table))
    return pi.PersonaTable([table[int(place)] for place in order])


def first(table: pi.PersonaTable, count: int | None) -> pi.PersonaTable:
    """No more rows than that."""
    return table if count is None else table[:count]


# Rewards


class ScoredOnce:
    """A `Likelihood` whose log-probabilities are kept in a file: a run that is resumed goes on from it.

    `weights` says which weights they are of, wherever the model lies.
    """

    def __init__(self, model: str, path: Path, weights: str, **options: Any) -> None:
        self._model, self._path, self._weights, self._options = model, path, weights, options

    def log_likelihood(
        self, prompts: Sequence[Any], personas: Sequence[Any], responses: Sequence[str]
    ) -> Floats:
        key = digest(self._weights, *map(str, prompts), *map(str, personas), *responses)
        if self._path.exists():
            kept = json.loads(self._path.read_text())
            if kept["rows"] == key:
                return np.array(kept["log_likelihood"])
        # The model is let go: those of all arms together would fill the memory.
        model = pi.Likelihood(self._model, **self._options)
        found = model.log_likelihood(prompts, personas, responses)
        write_json(self._path, {"rows": key, "log_likelihood": found.tolist()})
        return found


@dataclass(frozen=True)
class Held:
    """The held-out pairs, each with the personas that are shown: `SHOWN` of both responses."""

    prompts: list[str]
    rows: tuple[list[str], list[Any], list[str]]  # prompts, personas, responses: pairs x SHOWN x 2


def held_out(train: pi.PersonaTable, test: pi.PersonaTable, retriever: str) -> Held:
    """The test pairs with their own personas, those of the nearest training prompts, and none."""
    prompts = [row.preference.prompt for row in test]
    near = {
        side: pi.PersonaRetriever.from_table(train, side, model=retriever).retrieve(prompts)
        for side in ("chosen", "rejected")
    }
    rows: list[tuple[str, Any, str]] = []
    for n, row in enumerate(test):
        retrieved = [near[side][n][0].persona for side in ("chosen", "rejected")]
        for persona in (row.chosen, row.rejected, *retrieved, None):
            rows += [
                (prompts[n], persona, text)
                for text in (row.preference.chosen, row.preference.rejected)
            ]
    return Held(prompts, tuple(map(list, zip(*rows, strict=True))))


def accuracies(scores: Floats, prompts: Sequence[str]) -> dict[str, Row]:
    """Of scores (pairs, SHOWN, 2): how often the response that suits the persona has the higher one.

    For gold and for retrieved personas: of the chosen and the rejected side, of both, and the pairing:
    whether both personas together fit their own responses better than crossed, which no preference for one
    of the responses can feign. The gap is by how much they do, on average: no share, but in the scores' unit.
    """
    found: dict[str, Row] = {}
    for n, kind in enumerate(("gold", "retrieved")):
        gaps = scores[:, 2 * n : 2 * n + 2, 0] - scores[:, 2 * n : 2 * n + 2, 1]
        right = np.stack([gaps[:, 0], -gaps[:, 1]], axis=1)
        zeros = np.zeros(len(right))
        found[kind] = {
            "chosen": reward_accuracy(right[:, 0], zeros, prompts).to_dict(),
            "rejected": reward_accuracy(right[:, 1], zeros, prompts).to_dict(),
            "both": reward_accuracy(
                right.ravel(), np.zeros(right.size), [p for p in prompts for _ in range(2)]
            ).to_dict(),
            "pairing": reward_accuracy(right.sum(axis=1), zeros, prompts).to_dict(),
            "gap": mean_by_group(right.sum(axis=1), prompt_numbers(prompts)).to_dict(),
        }
    return found


def scores_of(
    policies: Mapping[str, ScoredOnce], held: Held, beta: float
) -> dict[str, dict[str, Floats]]:
    """For each arm its implicit rewards (the reference is untrained) and lifts: (pairs, SHOWN, 2)."""
    shape = (len(held.prompts), len(SHOWN), 2)
    reference = policies["untrained"]
    found: dict[str, dict[str, Floats]] = {}
    for arm, policy in policies.items():
        logs = policy.log_likelihood(*held.rows).reshape(shape)
        found[arm] = {"lift": logs - logs[:, -1:]}
        if arm != "untrained":  # its reward is 0 for everything
            rewards = implicit_rewards(policy, reference, *held.rows, beta=beta)
            found[arm]["reward"] = rewards.reshape(shape)
    return found


def over_seeds(
    runs: Sequence[Mapping[str, Mapping[str, Floats]]], prompts: Sequence[str]
) -> dict[str, dict[str, dict[str, Row]]]:
    """The accuracies of each arm; all seeds of a prompt are resampled together."""
    return {
        arm: {
            kind: accuracies(
                np.concatenate([run[arm][kind] for run in runs]), [*prompts] * len(runs)
            )
            for kind in kinds
        }
        for arm, kinds in runs[0].items()
    }


# Files


def digest(*texts: str) -> str:
    """A name for what the texts are."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def weights_of(adapter: Path) -> str:
    """A digest of an adapter's weights."""
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Written whole, or not at all."""
    part = path.with_name(f"{path.name}.new")
    part.write_text(json.dumps(value, indent=1, default=str), encoding="utf-8")
    part.replace(path)
