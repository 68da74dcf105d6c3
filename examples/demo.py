"""Infer personas for the example pairs on the embedded model, and keep of each side the best explanation.

Run by `make demo`. A second run asks for nothing: every reply is in the cache; it only scores again.
"""

import asyncio
import json
from pathlib import Path

import personainfer as pi
from personainfer.personas import default_exemplars
from personainfer.scoring import PEOPLE_IN_GENERAL

HERE = Path(__file__).parent
PAIRS = 24
CANDIDATES = 2  # a side
EXEMPLARS = 2  # worked examples that the model is shown, of the five that there are
TOKENS = 8  # of a response, from its start, are scored: more would say more, and take longer


def explained(table: pi.PersonaTable, model: pi.Likelihood) -> float:
    """The share of sides whose persona makes the choice likelier than people in general do."""
    pairs, personas = [], []
    for row in table:
        if row.preference is not None:
            pairs += [row.preference, row.preference.swapped]
            personas += [row.chosen, row.rejected]
    return float((model.explains(pairs, personas) > 0).mean())


async def inferred(
    pairs: list[dict[str, str]], model: pi.Likelihood
) -> tuple[pi.PersonaTable, pi.PersonaTable]:
    """The greedy personas, and the best of several samples: at the same time, to read each pair once."""
    exemplars = default_exemplars()[:EXEMPLARS]
    greedy = pi.ainfer_personas(pairs, "local", exemplars=exemplars, progress=False)
    sampled = pi.ainfer_personas(
        pairs,
        "local",
        exemplars=exemplars,
        temperature=1.0,
        seed=0,
        candidates=CANDIDATES,
        select=model,
    )
    both = await asyncio.gather(greedy, sampled)
    return both[0], both[1]


def main() -> None:
    lines = (HERE / "data" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines[:PAIRS]]
    model = pi.Likelihood("local", max_response_tokens=TOKENS, baseline=PEOPLE_IN_GENERAL)
    greedy, table = asyncio.run(inferred(pairs, model))
    kept = sum((row.chosen is not None) + (row.rejected is not None) for row in table)
    print(table.format())
    print(
        f"\nSides whose persona explains the choice: {explained(greedy, model):.0%} of greedy personas,"
        f" {kept / (2 * len(table)):.0%} of the best of {CANDIDATES} samples."
        "\nA side that no sample explains has no persona, and its row says so."
        "\nThese personas come from a model of 135 million parameters, which is for trying the API:"
        "\nname a stronger one to get personas that you would rely on."
    )
    saved = table.save(HERE.parent / "demo" / "personas.parquet")
    calls = greedy.usage.calls + table.usage.calls
    cached = greedy.usage.cached + table.usage.cached
    if calls == 0:
        print(f"\nNo call was made: all {cached} replies came from the cache.")
    else:
        print(f"\n{calls} calls, {cached} replies from the cache.")
    print(
        f"Saved to {saved.relative_to(Path.cwd()) if saved.is_relative_to(Path.cwd()) else saved}"
    )


if __name__ == "__main__":
    main()
