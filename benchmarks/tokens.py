"""Prompt tokens a row: this library's one joint call against the papers' two, on the same exemplars.

The papers' protocol (arXiv 2501.11549, section 2, and its predecessors): a call for each side, which
holds the instruction before and after five worked examples (pair and persona sentence), then the pair.
Both are built from this library's own words, put through the chat template of the embedded model and
counted by its tokenizer. `python benchmarks/tokens.py`
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import llama

from personainfer.data import read_preferences
from personainfer.personas.prompts import PersonaPrompt, default_exemplars, pair_message
from personainfer.records import Preference

ROOT = Path(__file__).parent.parent
SOURCES = {
    "the 30 example pairs": (ROOT / "examples/data/preferences.jsonl", 30),
    "200 rows of HH": (ROOT.parent / "shared/data/hh_rlhf_harmless_base_test.jsonl", 200),
}
WORKED = 5  # of the ten (exemplar, side) that five exemplars with two sides give
Messages = list[dict[str, str]]


def joint(preference: Preference) -> list[Messages]:
    """What this library sends for a row by default."""
    turns = [*PersonaPrompt("joint").prefix, pair_message(preference)]
    return [[turn.model_dump() for turn in turns]]


def papers(preference: Preference) -> list[Messages]:
    """What the papers' protocol would send: a call for the chosen side, one for the rejected."""
    instruction = PersonaPrompt("separate", "none").prefix[0].content
    shown = []
    for one in default_exemplars():
        for pair, persona in (
            (one.preference, one.chosen),
            (one.preference.swapped, one.rejected),
        ):
            shown.append(f"{pair_message(pair).content}\n{persona}")
    start = "\n\n".join([instruction, *shown[:WORKED], instruction])
    sides = (preference, preference.swapped)
    return [[{"role": "user", "content": f"{start}\n\n{pair_message(s).content}"}] for s in sides]


def measure() -> dict[str, Any]:
    """Mean prompt tokens a row under both protocols, and their ratio, for each source there is."""
    results: dict[str, Any] = {}
    with llama.running() as address:

        def count(calls: list[Messages]) -> int:
            return sum(_tokens(address, messages) for messages in calls)

        for name, (path, rows) in SOURCES.items():
            if not path.exists():
                results[name] = {"problem": "this data is not here"}
                continue
            source = (row.preference for row in read_preferences(path))
            pairs = list(islice((pair for pair in source if pair), rows))
            ours = sum(count(joint(pair)) for pair in pairs) / len(pairs)
            theirs = sum(count(papers(pair)) for pair in pairs) / len(pairs)
            results[name] = {
                "rows": len(pairs),
                "ours": ours,
                "papers": theirs,
                "ratio": ours / theirs,
            }
    return results


def _tokens(address: str, messages: Messages) -> int:
    text = llama.post(address, "/apply-template", {"messages": messages})["prompt"]
    body = {"content": text, "parse_special": True}
    return len(llama.post(address, "/tokenize", body)["tokens"])


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
