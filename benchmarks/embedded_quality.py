"""How good the embedded model's personas are, by what can be counted, on the example pairs.

    python benchmarks/embedded_quality.py [--protocol separate]

A side is valid when it has a persona: the reply was not cut off, not a refusal, in the asked form.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import personainfer as pi

PAIRS = Path(__file__).parents[1] / "examples" / "data" / "preferences.jsonl"


def measure(table: pi.PersonaTable) -> dict[str, float]:
    """Shares of sides, but `differ`: the share of rows whose sides got different sentences."""
    sides = [persona for row in table for persona in (row.chosen, row.rejected)]
    found = [persona for persona in sides if persona is not None]
    flags = Counter(flag for persona in found for flag in persona.flags)
    valid = len(found) - flags["refusal"]
    differ = sum(str(row.chosen) != str(row.rejected) for row in table if row.error is None)
    return {
        "valid": valid / len(sides),
        "copies_exemplar": flags["copies_exemplar"] / len(sides),
        "differ": differ / len(table),
        "distinct": len({str(persona) for persona in found}) / len(sides),
        **{name: count / len(sides) for name, count in sorted(flags.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--protocol", default="joint", choices=("joint", "separate"))
    protocol = parser.parse_args().protocol
    began = time.perf_counter()
    table = pi.infer_personas(PAIRS, "local:smollm2", protocol=protocol, cache=False)
    seconds = time.perf_counter() - began
    print(f"{len(table)} pairs, {protocol}, {seconds:.0f} s")
    for name, share in measure(table).items():
        print(f"  {name:20} {share:.3f}")


if __name__ == "__main__":
    main()
