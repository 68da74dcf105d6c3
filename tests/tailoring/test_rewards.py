"""Rewards for persona writers: what a completion is worth, and that TRL's own trainer takes them."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.exceptions import BudgetExceededError, InvalidArgumentError
from personainfer.tailoring import choose_system_persona
from personainfer.testing import FakeLLM, Reply

BUSY = "The user is busy and prefers brevity."
CURIOUS = "The user is curious and prefers depth."


class Words:
    """A scorer by words: brevity explains the short response, depth the long one."""

    def __init__(self) -> None:
        self.asked: list[tuple[pi.Preference, str]] = []

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> Iterable[float]:
        for pair, persona in zip(preferences, personas, strict=True):
            self.asked.append((pair, str(persona)))
            if "unknown" in str(pair.prompt):
                yield math.nan
                continue
            longer = len(pair.chosen) > len(pair.rejected)
            sign = {True: 1.0, False: -1.0}[longer]
            yield sign if "depth" in str(persona) else -sign if "brevity" in str(persona) else 0.0


def row(n: int = 0, *, longer: bool = False) -> dict[str, Any]:
    texts = ("Yes.", "It grows quickly near sunny windows, and slowly elsewhere.")
    chosen, rejected = texts[::-1] if longer else texts
    return {"question": f"Is it {n}?", "chosen": chosen, "rejected": rejected}


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [each[name] for each in rows] for name in rows[0]}


def test_a_persona_is_worth_what_it_explains() -> None:
    scorer = Words()
    reward = pi.persona_reward(scorer)
    texts = [BUSY, CURIOUS, BUSY, "The user is calm and prefers tea."]
    rows = [row(0), row(0), row(1, longer=True), row(1)]
    assert reward(["Who?"] * 4, texts, **columns(rows)) == [1.0, -1.0, -1.0, 0.0]
    assert scorer.asked[0] == (
        pi.Preference(prompt="Is it 0?", chosen="Yes.", rejected=rows[0]["rejected"]),
        BUSY,
    )


@pytest.mark.parametrize(
    "said",
    [
        BUSY,
        [{"role": "assistant", "content": BUSY}],
        '{"trait": "busy", "preference": "brevity"}',
        '{"evidence": "short", "trait": "busy", "preference": "brevity"}',
        '```json\n{"trait": "busy", "preference": "brevity"}\n```',
        f"<think>long</think>\n{BUSY}",
        "likes brevity!",
    ],
)
def test_a_completion_may_have_several_forms(said: Any) -> None:
    assert pi.persona_reward(Words())(["Who?"], [said], **columns([row()])) == [1.0]


def test_the_text_of_a_completion_in_parts_is_the_persona() -> None:
    """Not the list of parts as Python prints it, whose reward the policy would learn."""
    scorer = Words()
    said = [{"role": "assistant", "content": [{"type": "text", "text": BUSY}]}]
    assert pi.persona_reward(scorer)(["Who?"], [said], **columns([row()])) == [1.0]
    assert scorer.asked[0][1] == BUSY


@pytest.mark.parametrize(
    "said", ["", "  ", [], [{"role": "assistant", "content": None}], '{"trait": "b']
)
def test_no_persona_has_a_reward_of_its_own(said: Any) -> None:
    scorer = Words()
    reward = pi.persona_reward(scorer, no_persona=-3.0)
    assert reward(["Who?"] * 2, [said, BUSY], **columns([row(), row()])) == [-3.0, 1.0]
    assert len(scorer.asked) == 1


def test_a_persona_that_copies_a_response_is_not_worth_it() -> None:
    copied = "The user prefers brevity: grows quickly near sunny windows."
    reward = pi.persona_reward(Words(), penalty=5.0)
    assert reward(["Who?"], [copied], **columns([row()])) == [-4.0]


def test_nats_have_a_ceiling() -> None:
    reward = pi.persona_reward(Words(), form="log_probability", temperature=0.01)
    good, bad, none = reward(
        ["Who?"] * 3,
        [BUSY, CURIOUS, "The user is calm and prefers tea."],
        **columns([row(), row(), row()]),
    )
    assert good == pytest.approx(math.log(2))
    assert none == pytest.approx(0.0)
    assert bad == pytest.approx(math.log(2) - 100)


def test_a_reward_is_the_mean_over_a_users_choices() -> None:
    def choice(n: int, longer: bool) -> dict[str, Any]:
        found = row(n, longer=longer)
        return {
            "prompt": found["question"],
            "chosen": found["chosen"],
            "rejected": found["rejected"],
        }

    held_out = [choice(0, False), choice(1, False), choice(2, True)]
    reward = pi.persona_reward(Words(), choices="held_out")
    assert reward(["Who?"], [BUSY], held_out=[held_out]) == [pytest.approx(1 / 3)]
    records = [pi.Preference(**one) for one in held_out]
    assert reward(["Who?"], [BUSY], held_out=[records]) == [pytest.approx(1 / 3)]


def test_a_choice_that_cannot_be_read_or_scored_counts_for_nothing() -> None:
    rows = [row(), {**row(), "chosen": None}, {**row(), "question": "unknown?"}, row()]
    with pytest.warns(UserWarning, match="1 choices cannot be read.*chosen"):
        found = pi.persona_reward(Words())(["Who?"] * 4, [BUSY] * 4, **columns(rows))
    assert [math.isnan(each) for each in found] == [False, True, True, False]


def test_a_judge_whose_budget_is_spent_ends_the_training() -> None:
    columns = {"question": ["q"], "chosen": ["Tea."], "rejected": ["Coffee."]}
    limits: dict[str, Any] = {"prices": (0, 1e6), "max_tokens": 100, "cache": False}
    with FakeLLM(lambda _: Reply({"answer": "1"}, completion_tokens=100)) as server:
        judge = pi.Verifier("j", api_base=server.api_base, budget=250, **limits)
        reward = pi.persona_reward(judge)
        assert reward(["p"], ["The user is calm."], **columns) == [0.0]
        with pytest.raises(BudgetExceededError), pytest.warns(UserWarning, match="budget"):
            reward(["p"], ["The user is brisk."], **columns)


def test_no_system_persona_is_chosen_by_the_few_scores_that_a_budget_pays() -> None:
    people = [pi.Persona.parse(f"The user is {how}.") for how in ("calm", "brisk")]
    choices = [pi.Preference(prompt=f"q{n}", chosen="Tea.", rejected="Coffee.") for n in range(3)]
    limits: dict[str, Any] = {"prices": (0, 1e6), "max_tokens": 100, "cache": False, "budget": 950}
    with FakeLLM(lambda _: Reply({"answer": "1"}, completion_tokens=100)) as server:
        judge = pi.Verifier("j", api_base=server.api_base, **limits)
        with pytest.raises(BudgetExceededError), pytest.warns(UserWarning, match="budget"):
            choose_system_persona(people, choices, judge)


def test_no_system_persona_is_chosen_where_a_budget_pays_for_the_last_score_alone() -> None:
    people = [pi.Persona.parse(f"The user is {how}.") for how in ("calm", "brisk")]
    prompts = ["q", "q " * 20_000, "q?"]
    choices = [pi.Preference(prompt=one, chosen="Tea.", rejected="Coffee.") for one in prompts]
    limits: dict[str, Any] = {"prices": (1e6, 0), "cache": False, "budget": 19_000}
    with FakeLLM(lambda _: Reply({"answer": "1"}, prompt_tokens=100)) as server:
        judge = pi.Verifier("j", api_base=server.api_base, **limits)
        with pytest.raises(BudgetExceededError), pytest.warns(UserWarning, match="budget"):
            choose_system_persona(people, choices, judge)


def test_columns_have_the_users_names() -> None:
    given = [{"ask": "Is it?", "good": "Yes.", "bad": "It depends on much more than that."}]
    names = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    reward = pi.persona_reward(Words(), columns=names)
    assert reward(["Who?"], [BUSY], completion_ids=[[1]], trainer_state=None, **columns(given)) == [
        1.0
    ]
    with pytest.raises(InvalidArgumentError, match=r"no column 'question'.*'ask'"):
        pi.persona_reward(Words())(["Who?"], [BUSY], **columns(given))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"scorer": object()}, "no method explains"),
        ({"form": "x"}, "form="),
        ({"columns": {"question": "a"}}, "columns="),
        ({"columns": {"prompt": "a"}, "choices": "b"}, "not both"),
        ({"temperature": 0}, "temperature=0"),
        ({"penalty": math.inf}, "penalty=inf"),
        ({"no_persona": "x"}, "no_persona='x'"),
    ],
)
def test_a_wrong_argument_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        pi.persona_reward(**{"scorer": Words(), **wrong})


def test_it_can_be_sent_to_another_process() -> None:
    reward = pickle.loads(pickle.dumps(pi.persona_reward(Words())))
    assert reward(["Who?"], [BUSY], **columns([row()])) == [1.0]
    assert reward.__name__ == "persona_reward"


def test_no_setting_of_a_reward_changes_unchecked() -> None:
    assert all(name.startswith("_") for name in vars(pi.persona_reward(Words())))


@pytest.mark.heavy
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_trl_takes_a_step(chat: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import LlamaConfig, LlamaForCausalLM

    from personainfer.scoring.transformers_models import load_model

    _, tokenizer = load_model("local:smollm2", device="cpu")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    asked: Any = [{"role": "user", "content": "Who prefers it?"}] if chat else "Who prefers it?"
    rows = [{"prompt": asked, **row(n)} for n in range(4)]
    scorer = Lengths()
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=pi.persona_reward(scorer),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=12,
            learning_rate=1e-2,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
        ),
    )
    trainer.train()
    logged = [each for each in trainer.state.log_history if "reward" in each]
    assert logged
    assert math.isfinite(logged[0]["reward"])
    assert logged[0]["rewards/persona_reward/mean"] == pytest.approx(logged[0]["reward"])
    assert scorer.asked == 4
    changed = model.state_dict()
    assert any(not torch.equal(before[name], changed[name]) for name in before)


class Lengths:
    """A scorer that gives every text another number, so that rewards differ within a group."""

    def __init__(self) -> None:
        self.asked = 0

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> list[float]:
        self.asked += len(personas)
        return [len(str(persona)) / 10 for persona in personas]
