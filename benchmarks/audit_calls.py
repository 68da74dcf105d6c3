"""How much does an audit save by sharing scores between its conditions? Counted, without a model.

    python benchmarks/audit_calls.py DATA

For the held-out choices of each set (docs/audit.md), and personas of invented words, it counts what the
scorer is asked when each condition is scored by itself (the own persona, another user's, none and
few-shot, for each k), and what `audit_personas` asks: texts, and tokens at four bytes each. "Read once" are
the tokens of an engine that reads each conversation of a call once, and all its responses after it, as the
transformers engine of `Likelihood` does, here and there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from people_study import SETS, Choices, read

import personainfer as pi
from personainfer.personas.costs import BYTES_A_TOKEN
from personainfer.records import FloatArray, Message

WORDS = 60  # of a persona
MOST_EXAMPLES = 16

Row = tuple[tuple[Message, ...], str]


class Counting:
    """A scorer that notes what it is asked."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __call__(self, chats: Sequence[Sequence[Message]], responses: Sequence[str]) -> FloatArray:
        self.rows += [(tuple(chat), text) for chat, text in zip(chats, responses, strict=True)]
        return np.array([float(len(text)) for text in responses])


def tokens(rows: Sequence[Row], *, once: bool = False) -> int:
    """Tokens of conversations and responses; with `once` each conversation counts once."""
    heads = [chat for chat, _ in rows]
    read_heads = dict.fromkeys(heads) if once else heads
    size = sum(len(turn.content.encode()) for chat in read_heads for turn in chat)
    return round((size + sum(len(text.encode()) for _, text in rows)) / BYTES_A_TOKEN)


def personas(choices: Choices, k: int) -> dict[str, str]:
    random = np.random.default_rng(k)
    return {
        user: " ".join(f"word{n}" for n in random.integers(1000, size=WORDS))
        for user in choices.users
    }


def by_themselves(choices: Choices, ks: Sequence[int]) -> list[list[Row]]:
    """What is asked when each condition of each k is scored by itself, a list a condition."""
    conditions = []
    history = [choice for choice in choices.history if choice.user in choices.users]
    for k in ks:
        own = pi.persona_prefix("persona", personas=personas(choices, k))
        few = pi.persona_prefix("few-shot", history=history, k=MOST_EXAMPLES, show="both")
        for prefix in (own, own.shuffled(), pi.persona_prefix("none"), few):
            asked: list[Row] = []
            conditions.append(asked)
            for choice in choices.held_out:
                said = prefix.before(choice).text
                chat = prefix.around(said, choice.prompt)
                asked += [(chat, choice.chosen), (chat, choice.rejected)]
    return conditions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    print("| set | k | texts, by themselves | texts, audit | times fewer | tokens | read once |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in SETS:
        choices = read(options.data, name, "test", 0)
        for ks in [(8,), (4, 16), (2, 4, 8, 16)]:
            conditions, scorer = by_themselves(choices, ks), Counting()
            alone = [row for condition in conditions for row in condition]
            pi.audit_personas(
                lambda k: personas(choices, k),  # noqa: B023
                choices.held_out,
                scorer,
                baselines=["few-shot"],
                history=choices.history,
                k=ks,
            )
            fewer = len(alone) / len(scorer.rows)
            less = tokens(alone) / tokens(scorer.rows)
            at_once = sum(tokens(condition, once=True) for condition in conditions)
            least = at_once / tokens(scorer.rows, once=True)
            counts = " | ".join(f"{n:,}" for n in (len(alone), len(scorer.rows)))
            ks_said = ", ".join(map(str, ks))
            print(f"| {name} | {ks_said} | {counts} | {fewer:.2f} | {less:.2f} | {least:.2f} |")


if __name__ == "__main__":
    main()
