"""Whatever columns stand beside the data, a pair is read as it is, or its reading is refused.

Pairs that are known are written in each of the usual forms. Columns of other data sets are put beside them:
tags, scores, references, other questions, other labels. No column may reverse a pair, replace one of its
texts, or, without a remark, its prompt.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from personainfer.data.containers import read_preferences
from personainfer.exceptions import DataError

Row = dict[str, Any]

ROWS = 40
WORDS = "alpha beta gamma delta omega sigma kappa lambda theta zeta iota rho".split()
DRAW = random.Random(0)
PAIRS = [
    (
        f"Question number {n} about {DRAW.choice(WORDS)}?",
        f"Good answer {n} {DRAW.choice(WORDS)}.",
        f"Bad reply {n} {DRAW.choice(WORDS)}.",
    )
    for n in range(ROWS)
]
GOOD_IS_FIRST = [DRAW.random() < 0.5 for _ in range(ROWS)]


def pairs(prompt: str, chosen: str, rejected: str) -> list[Row]:
    return [{prompt: asked, chosen: good, rejected: bad} for asked, good, bad in PAIRS]


def labelled(
    first: str, second: str, label: str, sides: tuple[Any, Any], prompt: str = "prompt"
) -> list[Row]:
    """Two responses with a label: the first of `sides` where the first response is the good one."""
    rows = []
    for (asked, good, bad), is_first in zip(PAIRS, GOOD_IS_FIRST, strict=True):
        one, two = (good, bad) if is_first else (bad, good)
        rows.append({prompt: asked, first: one, second: two, label: sides[0 if is_first else 1]})
    return rows


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(asked: str, answer: str) -> list[dict[str, str]]:
    return [said("user", asked), said("assistant", answer)]


FORMS: dict[str, list[Row]] = {
    "pairs": pairs("prompt", "chosen", "rejected"),
    "pairs, of a question": pairs("question", "chosen", "rejected"),
    "pairs, of an instruction": pairs("instruction", "chosen", "rejected"),
    "chosen_response": pairs("prompt", "chosen_response", "rejected_response"),
    "response_chosen": pairs("prompt", "response_chosen", "response_rejected"),
    "preferred": pairs("prompt", "preferred", "dispreferred"),
    "y_w": pairs("prompt", "y_w", "y_l"),
    "good": pairs("prompt", "good", "bad"),
    "winner and loser": pairs("prompt", "winner", "loser"),
    "ms-swift": pairs("query", "response", "rejected_response"),
    "messages": [
        {
            "prompt": [said("user", asked)],
            "chosen": [said("assistant", good)],
            "rejected": [said("assistant", bad)],
        }
        for asked, good, bad in PAIRS
    ],
    "conversations": [
        {"chosen": conversation(asked, good), "rejected": conversation(asked, bad)}
        for asked, good, bad in PAIRS
    ],
    "transcripts": [
        {
            "chosen": f"\n\nHuman: {asked}\n\nAssistant: {good}",
            "rejected": f"\n\nHuman: {asked}\n\nAssistant: {bad}",
        }
        for asked, good, bad in PAIRS
    ],
    "letters": labelled("response_a", "response_b", "winner", ("a", "b")),
    "models": labelled("response_a", "response_b", "winner", ("model_a", "model_b")),
    "capitals": labelled("answer_A", "answer_B", "preference", ("A", "B"), "question"),
    "numbers": labelled("response_1", "response_2", "label", (1, 2)),
    "names of columns": labelled("output_1", "output_2", "best", ("output_1", "output_2")),
    "places": labelled("response_0", "response_1", "label", (0, 1)),
    "completions": labelled(
        "completion_a", "completion_b", "preferred", ("completion_a", "completion_b")
    ),
}

Value = Callable[[int, random.Random], Any]


def one_of(*values: Any) -> Value:
    return lambda _, draw: draw.choice(values)


def text(words: str) -> Value:
    return lambda place, _: f"{words} {place}"


FURTHER: dict[str, Value] = {
    **{name: one_of(1, 2) for name in ("label", "rank", "best")},
    **{name: one_of("A", "B") for name in ("choice", "verdict", "preference")},
    **{name: one_of("gpt-4", "llama") for name in ("winner", "chosen", "rejected", "model")},
    **{
        name: one_of(1, 2, 3)
        for name in ("strength", "preference_strength", "rating_a", "rating_b")
    },
    **{name: one_of(3, 4) for name in ("score_a", "score_b", "score_1", "score_2", "win", "lose")},
    **{name: one_of(5) for name in ("chosen_score", "turn", "score")},
    **{name: one_of("gpt") for name in ("model_a", "model_b", "chosen_model", "rejected_model")},
    **{
        name: text("a text of its own")
        for name in ("text", "context", "post", "info", "x", "title")
    },
    **{
        name: text("reference")
        for name in ("response", "output", "answer", "completion", "summary")
    },
    **{name: text("another question") for name in ("question", "query", "user_prompt", "dialogue")},
    **{
        name: one_of(["r1", "r2"]) for name in ("responses", "candidates", "outputs", "completions")
    },
    **{name: text("") for name in ("id", "prompt_id", "user", "annotator")},
    **{name: one_of("") for name in ("input", "system")},
    "category": one_of("a", "b"),
    "better": one_of("yes", "no"),
    "accepted": one_of("yes"),
    "labels": one_of(["tag"]),
    "overall_preference": one_of(1, 2, 3, 4, 5, 6, 7),
    "history": one_of([]),
    "messages": one_of([said("user", "other")]),
    "scores": one_of([1, 2]),
    "is_tie": one_of(False),
    "instruction": one_of("Answer."),
    "response_c": text("third response"),
    "explanation": one_of("because B"),
}


def beside(rows: Sequence[Row], names: Sequence[str], *, is_first: bool) -> list[Row] | None:
    """The rows with further columns before or behind theirs; None: they have one of these names."""
    if any(name in rows[0] for name in names):
        return None
    draw = random.Random(repr(names))
    further = [{name: FURTHER[name](n, draw) for name in names} for n in range(len(rows))]
    return [
        {**more, **row} if is_first else {**row, **more}
        for row, more in zip(rows, further, strict=True)
    ]


def reading(rows: Sequence[Row]) -> str:
    """What became of the pairs: "right", "refused", "another prompt, told" or what is wrong."""
    try:
        source = read_preferences(rows)
        read = [row.preference for row in source]
    except DataError:
        return "refused"
    is_told = "not_in_prompt" in source.summary
    outcomes = set[str]()
    for pair, (asked, good, bad) in zip(read, PAIRS, strict=True):
        if pair is None:
            continue
        prompt = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1].content
        if (pair.chosen, pair.rejected) == (bad, good):
            outcomes.add("reversed")
        elif (pair.chosen, pair.rejected) != (good, bad):
            outcomes.add("other responses")
        elif prompt != asked:
            outcomes.add("another prompt, told" if is_told else "another prompt")
    if None in read:
        outcomes.add("errors")
    return " and ".join(sorted(outcomes)) or "right"


def tried(choices: Sequence[tuple[str, Sequence[str], bool]]) -> Mapping[str, list[str]]:
    """What was read of forms beside further columns, by the outcome."""
    found: dict[str, list[str]] = {}
    for form, names, is_first in choices:
        if (rows := beside(FORMS[form], names, is_first=is_first)) is not None:
            found.setdefault(reading(rows), []).append(f"{form} + {', '.join(names)}")
    return found


def check(found: Mapping[str, list[str]], least: float) -> None:
    """Nothing is wrong, and at least this share is read right: a reading that refuses all is of no use."""
    counts = Counter({outcome: len(those) for outcome, those in found.items()})
    wrong = found.keys() - {"right", "refused", "another prompt, told"}
    assert not wrong, {outcome: found[outcome][:5] for outcome in wrong}
    assert counts["right"] >= least * counts.total(), counts


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read(form: str) -> None:
    assert reading(FORMS[form]) == "right"


@pytest.mark.heavy
def test_one_further_column_changes_no_pair() -> None:
    every = [(form, [name]) for form in FORMS for name in FURTHER]
    check(tried([(*one, n % 2 == 0) for n, one in enumerate(every[::8])]), least=0.9)


@pytest.mark.heavy
@pytest.mark.parametrize("form", FORMS)
def test_further_columns_change_no_pair(form: str) -> None:
    draw = random.Random(form)
    names = sorted(FURTHER)
    several = [draw.sample(names, draw.choice((2, 3, 4))) for _ in range(150)]
    alone = [[name] for name in names]
    choices = [(form, some, draw.random() < 0.5) for some in (*alone, *several)]
    check(tried(choices), least=0.6)
