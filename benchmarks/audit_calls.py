"""How much does an audit save by sharing scores between its conditions? Counted, without a model.

    python benchmarks/audit_calls.py DATA

For the held-out choices of each set (docs/studies.md), and personas of invented words, it counts what the
scorer is asked when each condition is scored by itself (the own persona, another user's, none and few-shot,
for each k), and what `audit_personas` asks. A text is a response after a conversation.

- plain: each condition by itself asks for both responses of each choice;
- with lift: a condition with a persona or examples asks for both without them, too, since a persona is judged
  by how much it raises the margin (`lift=True`). The audit asks for these once;
- with lift, once: the same, where each condition asks for equal texts once;
- at most: plain, if another user's persona cost nothing. The own persona, few-shot and none have no text in
  common, so no audit of these conditions can ask for fewer;
- tokens: plain, at four bytes each. "Read once": of an engine that reads each conversation of a call once and
  all its responses after it, as the transformers engine of `Likelihood` does, both here and there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from people_study import SETS, Choices, read

import personainfer as pi
from personainfer.personas.costs import BYTES_A_TOKEN
from personainfer.records import FloatArray, Message
from personainfer.users.prefixes import Prefix

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


@dataclass(frozen=True)
class Conditions:
    """What each condition of each k asks by itself. Both responses of each choice, a list a condition."""

    none: list[Row]
    with_text: dict[str, list[Row]]

    @classmethod
    def of(cls, choices: Choices, ks: Sequence[int]) -> Conditions:
        history = [choice for choice in choices.history if choice.user in choices.users]
        few = pi.persona_prefix("few-shot", history=history, k=MOST_EXAMPLES, show="both")
        with_text = {}
        for k in ks:
            own = pi.persona_prefix("persona", personas=personas(choices, k))
            for name, prefix in (("own", own), ("shuffled", own.shuffled()), ("few-shot", few)):
                with_text[f"{name} {k}"] = rows_of(prefix, choices)
        return cls(rows_of(pi.persona_prefix("none"), choices), with_text)

    def by_themselves(self, *, ks: int, lift: bool) -> list[list[Row]]:
        """The texts of each; with `lift`, those without persona or examples are asked again by each."""
        with_text = list(self.with_text.values())
        if lift:
            with_text = [[*rows, *self.none] for rows in with_text]
        return [*with_text, *[self.none] * ks]

    def fewest(self) -> int:
        """How many texts are left if another user's persona costs nothing."""
        kept = [rows for name, rows in self.with_text.items() if not name.startswith("shuffled")]
        return len({row for rows in [*kept, self.none] for row in rows})


def rows_of(prefix: Prefix, choices: Choices) -> list[Row]:
    rows: list[Row] = []
    for choice in choices.held_out:
        chat = prefix.around(prefix.before(choice).text, choice.prompt)
        rows += [(chat, choice.chosen), (chat, choice.rejected)]
    return rows


def asked_by_the_audit(choices: Choices, ks: Sequence[int]) -> list[Row]:
    scorer = Counting()
    pi.audit_personas(
        lambda k: personas(choices, k),
        choices.held_out,
        scorer,
        baselines=["few-shot"],
        history=choices.history,
        k=ks,
    )
    return scorer.rows


def line(name: str, choices: Choices, ks: Sequence[int]) -> str:
    """One line of the table."""
    conditions, audit = Conditions.of(choices, ks), asked_by_the_audit(choices, ks)
    plain = conditions.by_themselves(ks=len(ks), lift=False)
    lifted = conditions.by_themselves(ks=len(ks), lift=True)
    counts = [
        sum(map(len, plain)),
        sum(map(len, lifted)),
        sum(len(set(rows)) for rows in lifted),
    ]
    ratios = [
        *(count / len(audit) for count in counts),
        counts[0] / conditions.fewest(),
        sum(map(tokens, plain)) / tokens(audit),
        sum(tokens(rows, once=True) for rows in plain) / tokens(audit, once=True),
    ]
    said = [name, ", ".join(map(str, ks)), *(f"{n:,}" for n in (counts[0], counts[1], len(audit)))]
    return "| " + " | ".join([*said, *(f"{one:.2f}" for one in ratios)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    print(
        "| set | k | texts, plain | with lift | audit | times fewer: plain | with lift |"
        " with lift, once | at most | tokens | read once |"
    )
    print("| --- |" + " --- |" * 10)
    for name in SETS:
        choices = read(options.data, name, "test", 0)
        for ks in [(8,), (4, 16), (2, 4, 8, 16)]:
            print(line(name, choices, ks))


if __name__ == "__main__":
    main()
