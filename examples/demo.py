"""Infer the personas of the example pairs on a local model, and show them.

Run by `make demo`. Replies and scores are kept, so a second run takes seconds.
"""

import json
import shutil
import textwrap
from pathlib import Path

import personainfer as pi

HERE = Path(__file__).parent
FOLDER = HERE.parent / "demo"
PAIRS = 24
TOKENS = 16  # of each response are scored: the time grows with them


def table_text(table: pi.PersonaTable, width: int) -> str:
    """Each pair as a prompt and two lines of columns: what a response says, and who prefers it."""
    said = max(20, (width - 12) * 2 // 5)
    who = width - 12 - said
    lines = []
    for row in table:
        pair = row.preference
        assert pair is not None
        prompt = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1].content
        lines += ["─" * width, textwrap.shorten(prompt, width, placeholder="…")]
        for side, response, persona in (
            ("chosen", pair.chosen, row.chosen),
            ("rejected", pair.rejected, row.rejected),
        ):
            preferred_by = textwrap.wrap(str(persona or row.error), who)
            excerpt = textwrap.wrap(response, said, max_lines=len(preferred_by), placeholder="…")
            excerpt += [""] * (len(preferred_by) - len(excerpt))
            for number, (left, right) in enumerate(zip(excerpt, preferred_by, strict=True)):
                lines.append(f"{'' if number else side:<10}{left:<{said}}  {right}")
    return "\n".join([*lines, "─" * width])


def explained(table: pi.PersonaTable) -> tuple[float, float]:
    """How far the personas explain the choices, by a model that did not write them.

    Returns the share of pairs whose personas fit their own responses better than crossed, and the share of
    sides whose persona makes its own response likelier than the other one.
    """
    pairs = [row.preference for row in table if row.preference is not None]
    personas = [row.chosen for row in table] + [row.rejected for row in table]
    kept = FOLDER / "scores.json"
    named = [str(persona) for persona in personas]
    if kept.exists() and (known := json.loads(kept.read_text(encoding="utf-8")))["of"] == named:
        scores = known["scores"]
    else:
        scorer = pi.Likelihood("local:smollm2", max_response_tokens=TOKENS)
        found = scorer.explains([*pairs, *(pair.swapped for pair in pairs)], personas)
        scores = [float(score) for score in found]
        kept.write_text(json.dumps({"of": named, "scores": scores}), encoding="utf-8")
    own, other = scores[: len(pairs)], scores[len(pairs) :]
    pairing = sum(a + b > 0 for a, b in zip(own, other, strict=True)) / len(pairs)
    return pairing, sum(score > 0 for score in scores) / len(scores)


def main() -> None:
    lines = (HERE / "data" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines[:PAIRS]]
    table = pi.infer_personas(pairs, "local")
    print(table_text(table, min(shutil.get_terminal_size((100, 24)).columns, 120)))
    FOLDER.mkdir(exist_ok=True)
    pairing, sides = explained(table)
    print(
        f"By SmolLM2-135M, which did not write them, {pairing:.0%} of the pairs have personas that fit"
        f" their own responses, and {sides:.0%} of the personas make theirs the likelier one."
    )
    saved = table.save(FOLDER / "personas.parquet")
    report = pi.write_report(table, FOLDER / "report.html", title="Personas of the example pairs")
    print(f"{table.usage.calls} calls, {table.usage.cached} replies from the cache.")
    print(f"The table: {saved}\nThe report: {report}")


if __name__ == "__main__":
    main()
