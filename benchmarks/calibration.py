"""Are the intervals and p-values right? Simulated data with a known truth, many seeds.

    python benchmarks/calibration.py [--seeds 400] [--start 0] [--only PART] [--keep FILE]

Each part draws data from a distribution whose truth is known, calls the public function, and notes whether
the 95 % interval covers the truth, or whether p < 0.05 where there is nothing to find. Prints a table in
Markdown: the share with its own 95 % interval (Wilson); Ctrl-C prints what was counted so far. Nominal: 0.95
for coverage, 0.05 for rejection. With `--keep` the counts go to a file: the same command goes on after its
last seed, so that many seeds can be run in pieces.
The parts about users are in `calibration_users.py`, those about statistics in `calibration_evaluation.py`,
and those about judges, models and people, in `calibration_judges.py`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import calibration_evaluation
import calibration_judges
import calibration_users

from personainfer.evaluation.statistics import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--start", type=int, default=0, help="the first seed, to run it in pieces")
    parser.add_argument("--only", default="", help="run the parts whose name contains this")
    parser.add_argument("--keep", type=Path, help="a file of counts to go on from")
    options = parser.parse_args()
    every = calibration_evaluation.PARTS | calibration_judges.PARTS | calibration_users.PARTS
    kept = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for name, kind, happened in kept.get("counts", []):
        counts[name, kind] = happened
    start = kept.get("next", options.start)
    for name, make in every.items():
        if options.only in name:
            with suppress(KeyboardInterrupt):  # what was counted so far is printed
                part = make()
                for seed in range(start, start + options.seeds):
                    for finding in part(seed):
                        counts[finding.name, finding.kind].append(bool(finding.happened))
    if options.keep:
        listed = [(*what, happened) for what, happened in counts.items()]
        options.keep.write_text(json.dumps({"next": start + options.seeds, "counts": listed}))
    print("| of | measured | share [95 %] | runs |\n| --- | --- | --- | --- |")
    for (name, kind), happened in counts.items():
        share = wilson(sum(happened), len(happened))
        print(
            f"| `{name}` | {kind} | {share.value:.3f} [{share.low:.3f}, {share.high:.3f}] | {share.n} |"
        )


if __name__ == "__main__":
    main()
