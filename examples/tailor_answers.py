"""What the models of the tailoring study answer, what a judge makes of it, and the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tailor_study import ARMS, Row, arm_rows, text_of

import personainfer as pi
from personainfer.personas import place_persona, prompt_messages
from personainfer.scoring import load_model

# Answers


@dataclass(frozen=True)
class Question:
    """A held-out prompt, who asks, and the response that suits them and the one that does not."""

    prompt: str
    persona: pi.Persona
    own: str
    other: str


def questions(test: pi.PersonaTable, count: int) -> list[Question]:
    """The first prompts, each asked by both of its personas."""
    found = []
    for row in test[:count]:
        pair = row.preference
        found.append(Question(pair.prompt, row.chosen, pair.chosen, pair.rejected))
        found.append(Question(pair.prompt, row.rejected, pair.rejected, pair.chosen))
    return found


def asked(question: Question, place: str, examples: Sequence[Row] = ()) -> Any:
    """The prompt with its persona, after worked examples (rows of the few-shot format)."""
    prompt = place_persona(prompt_messages(question.prompt), question.persona, place)
    if isinstance(prompt, str):
        return "\n\n".join([*(example["text"] for example in examples), prompt])
    turns = [turn for example in examples for turn in example["messages"]]
    return [*turns, *(message.model_dump() for message in prompt)]


def nearest_examples(
    train: pi.PersonaTable, wanted: Sequence[Question], place: str, k: int
) -> list[list[Row]]:
    """For each question the worked examples of the nearest training prompts, the nearest last."""
    rows = arm_rows("personas", train, "few-shot", place, 0)
    near = pi.PersonaRetriever.from_table(train).retrieve([q.prompt for q in wanted], k=k)
    # Two rows a pair; every other one is of the rejected side, so that neither side's taste is shown.
    return [[rows[2 * one.index + n % 2] for n, one in enumerate(found)][::-1] for found in near]


def answers(name: str, prompts: Sequence[Any], new_tokens: int, *, batch: int = 8) -> list[str]:
    """Greedy answers of a model, or of an adapter's folder."""
    import torch

    model, tokenizer = load_model(name)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [text_of(prompt, tokenizer) for prompt in prompts]
    said: list[str] = []
    for start in range(0, len(texts), batch):
        given = tokenizer(
            texts[start : start + batch],
            padding=True,
            add_special_tokens=False,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            out = model.generate(
                **given,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        width = given["input_ids"].shape[1]
        said += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return [text.strip() for text in said]


# The judge


def judged(
    wanted: Sequence[Question],
    said: Mapping[str, Sequence[str]],
    against: Mapping[str, str],
    judge: str,
    **options: Any,
) -> Row:
    """What the judge makes of answers, and of responses of which it is known whom they suit."""

    def compared(base: Sequence[str], test: Sequence[str]) -> Any:
        prompts, personas = [q.prompt for q in wanted], [q.persona for q in wanted]
        return pi.compare_responses(prompts, base, test, judge, personas=personas, **options)

    try:
        known = compared([q.other for q in wanted], [q.own for q in wanted])
    except pi.PersonaInferError as error:  # what was trained and scored has its page all the same
        return {"judge": judge, "error": str(error)}
    agreement, consistency = known.personalization.win_rate.rate, known.personalization.consistency
    found: Row = {
        "judge": known.judge,
        "agreement": agreement.to_dict(),
        "consistency": consistency.to_dict(),
        "quality consistency": known.quality.consistency.to_dict(),
        "worth": bool(agreement.low > 0.5 and consistency.low > 0.5),
        "known": known.to_dict(),
    }
    for test, base in against.items():
        try:
            found[f"{test} against {base}"] = compared(said[base], said[test]).to_dict()
        except pi.PersonaInferError as error:
            found[f"{test} against {base}"] = {"error": str(error)}
    return found


def unasked(found: Row) -> bool:
    """Whether some of it is an error, which asking again may mend."""
    return "error" in found or any(
        "error" in one for one in found.values() if isinstance(one, dict)
    )


# The page

_NO_REWARD = {"gap": "0"}  # of the untrained model, by definition; its other rates are 0.5
_JUDGED = 12  # columns of the table of judged answers


def shown(estimate: Row | None) -> str:
    """A rate with its interval."""
    if estimate is None or estimate.get("value") is None or np.isnan(estimate["value"]):
        return "n/a"
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**estimate)


def reward_table(found: Mapping[str, Row], what: str) -> list[str]:
    """A row for each arm."""
    sides = ("chosen", "rejected", "both", "pairing", "gap")
    names = [f"{kind}, {side}" for kind in ("gold", "retrieved") for side in sides]
    lines = [f"| arm | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for arm, scores in found.items():
        cells = [
            shown(scores[what][kind][side]) if what in scores else _NO_REWARD.get(side, "0.5")
            for kind in ("gold", "retrieved")
            for side in sides
        ]
        lines.append(f"| {ARMS[arm]} | {' | '.join(cells)} |")
    return lines


def judge_table(found: Row) -> list[str]:
    """What the judge is worth, then what it said."""
    if "error" in found:
        return [f"The judge `{found['judge']}` could not be asked: {found['error']}"]
    worth = (
        "It tells responses apart, so its verdicts on personalization count."
        if found["worth"]
        else "**It is worth nothing here: it does not tell the known answers, or agrees with itself no more"
        " often than by chance. No win is claimed from what it says below.**"
    )
    lines = [
        f"Judge: `{found['judge']}`. Agreement with the known answers (wins of the response written for the"
        f" persona over the other one): {shown(found['agreement'])}; agreement of its two orders:"
        f" {shown(found['consistency'])}. {worth}",
        "",
        "Of quality there is no known answer: agreement of its two orders on the same responses,"
        f" {shown(found['quality consistency'])}. {_of_quality(found)}",
        "",
        "| answers | W quality | at equal length | W personalization | at equal length | ΔPQ |"
        " orders agree, quality | personalization | longer by, characters | ties, quality |"
        " personalization | verdicts without a usable reply |",
        f"|{' --- |' * _JUDGED}",
    ]
    for name, one in found.items():
        if " against " not in name:
            continue
        if "error" in one:
            lines.append(f"| {name} | {one['error']} |{' |' * (_JUDGED - 2)}")
            continue
        rubrics = [one[rubric] for rubric in ("quality", "personalization")]
        cells = [
            shown(rate)
            for rubric in rubrics
            for rate in (rubric["win_rate"]["rate"], rubric["length_controlled"])
        ]
        cells += [shown(one["delta_pq"]), *(shown(rubric["consistency"]) for rubric in rubrics)]
        cells += [shown(one["length"]["difference"])]
        cells += [str(rubric["win_rate"]["ties"]) for rubric in rubrics]
        lines.append(f"| {' | '.join([name, *cells, str(one['failed'])])} |")
    notes = [f"- {name}: {note}" for name, one in found.items() for note in _notes(name, one)]
    return [*lines, *([""] if notes else []), *notes]


def _of_quality(found: Row) -> str:
    """Whether W quality and ΔPQ, which holds it, say anything."""
    if found["worth"] and found["quality consistency"]["low"] > 0.5:
        return "That is no proof that it knows quality: read W quality and ΔPQ with care."
    return "**No claim is made from W quality or ΔPQ below.**"


def _notes(name: str, one: Any) -> list[str]:
    """What a reader of a comparison should know, such as that its judge goes by position."""
    return list(one.get("notes", ())) if " against " in name else []


def page(results: Row, seeds: Sequence[int]) -> str:
    """The results as Markdown."""
    data, judged_ = results["data"], results["judged"]
    rewards = results["rewards"]
    personas = rewards["personas"]["reward"]["gold"]["both"]
    stages = [
        f"| {seed} | {name} | {found['rows']} | {found['steps']} | {found['best step']} |"
        f" {found['best dev loss']:.4f} | {found['seconds']} | {found['device']} |"
        for seed, run in zip(seeds, results["training"], strict=True)
        for name, found in sorted(run.items())
    ]
    many = (
        f" Over {len(seeds)} seeds, those of a prompt resampled together." if len(seeds) > 1 else ""
    )
    lines = [
        "# Tailoring: what training with personas comes to",
        "",
        "Written by `examples/tailor.py`. Intervals (95 %) come from resampling prompts." + many,
        "",
        *(f"- {name}: {value}" for name, value in data.items() if name != "said"),
        "",
        "## Implicit reward, held-out prompts",
        "",
        "How often the response that suits the persona shown has the higher β(log π - log π_ref), where π_ref"
        " is the untrained model with the same persona. *Pairing*: both personas of a prompt fit their own"
        " responses better than crossed; *gap*: by how much, in nats. A guess has 0.5; the untrained model is"
        " its own reference.",
        "",
        *reward_table(rewards, "reward"),
        "",
        f"Trained with personas: {shown(personas)}, "
        + ("at or above 0.75." if personas["value"] >= 0.75 else "below 0.75."),
        "",
        "## Lift, held-out prompts",
        "",
        "The same for log π(response given prompt and persona) - log π(response given prompt), which needs no"
        " reference.",
        "",
        *reward_table(rewards, "lift"),
        "",
        "## Answers, judged",
        "",
        *judge_table(judged_),
        "",
        "## Training",
        "",
        "| seed | stage | rows | steps | best step | its loss on dev | seconds | device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *stages,
        "",
        "Settings: " + ", ".join(f"{k} {v}" for k, v in results["settings"].items()),
        "",
    ]
    return "\n".join(lines)
