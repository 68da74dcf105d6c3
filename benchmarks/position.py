"""Whether the order in which responses are shown leaves traces in the personas.

    python benchmarks/position.py hh_rlhf_harmless_base_test.jsonl --model local:smollm2 --seconds 600

Of 200 pairs the personas are inferred as they are, and with the choice swapped: 400 rows. Which response
stands first depends on the texts alone: a row and its swapped twin are shown in the same order, and in half
of the pairs the chosen response is first. So no word may be said more often of chosen than of rejected ones.

For every word in 10 personas or more, the log-odds of "chosen" against "rejected" are tested, with Holm's
correction for the number of words: in the 400 rows, and in the 200 rows as they are, where the data itself
may differ. Last come the words that mark the response shown first. They say how far the model is swayed by
the order; the rule of the order keeps that out of the comparison of sides.

Replies are kept in `--folder`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from persona_runs import ROOT, Deadline, single_questions

import personainfer as pi
from personainfer.personas.prompts import chosen_is_first

PIECE = 10  # pairs between two looks at the clock


def by_position(rows: Sequence[pi.PersonaRow]) -> list[pi.PersonaRow]:
    """The rows with what was shown first as the chosen side."""
    return [
        row
        if row.preference is None or chosen_is_first(row.preference)
        else replace(
            row, preference=row.preference.swapped, chosen=row.rejected, rejected=row.chosen
        )
        for row in rows
    ]


def report(title: str, rows: Sequence[pi.PersonaRow]) -> None:
    """Print how many words mark a side after the correction, and the most telling ones."""
    words = pi.salient_words(pi.PersonaTable(list(rows)), correction="holm")
    telling = [word for word in words if word.p_adjusted < 0.05]
    print(f"{title}: {len(telling)} of {len(words)} words")
    for word in telling[:10]:
        print(f"  {word}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--model", default="local")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seconds", type=float, help="stop after the piece in which they are over")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs/position")
    options = parser.parse_args()
    pairs, deadline = single_questions(options.path, options.pairs), Deadline(options.seconds)
    rows: list[pi.PersonaRow] = []
    swapped: list[pi.PersonaRow] = []
    for start in range(0, len(pairs), PIECE):
        some = pairs[start : start + PIECE]
        both = [*some, *(pair.swapped for pair in some)]
        found = list(pi.infer_personas(both, options.model, cache_dir=options.folder))
        rows += found[: len(some)]
        swapped += found[len(some) :]
        deadline.check()
    first = sum(chosen_is_first(pair) for pair in pairs)
    print(f"the chosen response is shown first in {first} of {len(pairs)} pairs")
    report("words that mark a side, each pair also swapped", [*rows, *swapped])
    report("words that mark a side, pairs as they are", rows)
    report("words that mark the response shown first", by_position(rows))


if __name__ == "__main__":
    main()
