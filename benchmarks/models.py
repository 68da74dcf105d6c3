"""How good the personas of models are, measured alike: explained, flagged, copied, time.

    python benchmarks/models.py local --set examples --scorer local:smollm2 --scorer local:gemma.gguf
    python benchmarks/models.py local --candidates 4 --set real --real ../shared/data --seconds 600
    python benchmarks/models.py --personas tests/personas/handwritten_personas.jsonl
    python benchmarks/models.py --tailored tailored_beavertails.jsonl      # personas by Llama 3.1 405B
    python benchmarks/models.py --table                                    # all of it so far, as Markdown

The measures are those of `personainfer benchmark`. A scorer should not be the model itself. What is inferred
or scored is kept in `--folder`: the same command goes on where it was stopped, by you or by `--seconds`.

Sets: the 30 example pairs; `ours`, the 60 pairs of `personainfer benchmark`; `real`, 30 pairs of LLMBar
(Natural) and 30 of HH-RLHF (harmless-base, test), drawn with a fixed seed among those with no text over 80
words. The 405B model's personas are from published rows, with the responses that were tailored to them as
the pair.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from persona_runs import ROOT, Deadline, Run, Sided, inferring, pair_set

import personainfer as pi
from personainfer.evaluation import bootstrap_rate
from personainfer.evaluation.benchmark import explained_shares

HEAD = (
    "personas by",
    "pairs",
    "pairing",
    "sides explained",
    "flagged",
    "copied",
    "exemplars repeated",
)
HEAD += ("equal", "not a sentence", "missing", "rows a minute")
TAILORED = 60  # rows of the published personas
Words = dict[str, Any]


def run_of(words: Words, folder: Path) -> Run:
    """The run that the words of a command describe; they are kept, so that `--table` finds it again."""
    real = None if words["real"] is None else Path(words["real"])
    if words["tailored"] is not None:
        pairs, given = tailored(Path(words["tailored"]))
        return Run("Llama 3.1 405B", "tailored", pairs, folder, given=given)
    pairs = pair_set(words["set"], real)
    if words["personas"] is not None:
        return Run("by hand", words["set"], pairs, folder, given=written(Path(words["personas"])))
    model, candidates = words["model"] or "local", words["candidates"]
    label = model if candidates == 1 else f"{model}, best of {candidates}"
    options = {} if words["api_base"] is None else {"api_base": words["api_base"]}
    write = inferring(model, candidates, words["chooser"], **options)
    return Run(label, words["set"], pairs, folder, write=write)


def written(path: Path) -> list[Sided]:
    """Personas of a file: a line a pair, with `chosen` and `rejected`."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(pi.Persona.parse(row["chosen"]), pi.Persona.parse(row["rejected"])) for row in rows]


def tailored(path: Path) -> tuple[list[pi.Preference], list[Sided]]:
    """Published personas, and the responses that an 8B model tailored to each of the two."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    kept = [row for row in rows if row["complete"]][:TAILORED]
    pairs = [
        pi.Preference(
            prompt=row["prompt"],
            chosen=row["response_for_chosen_persona"],
            rejected=row["response_for_rejected_persona"],
        )
        for row in kept
    ]
    sides = ("chosen_persona", "rejected_persona")
    both = [tuple(pi.Persona.parse(row[side]) for side in sides) for row in kept]
    return pairs, [(one, other) for one, other in both]


def cells(run: Run, scorer: str) -> list[str]:
    """The line of a run in the table, by one scorer."""
    scores = run.scores(scorer)
    missing = [[one is None for one in both] for both in run.personas[: len(scores)]]
    explained = explained_shares(scores, np.array(missing, dtype=bool).reshape(-1, 2))
    faults = {name: bootstrap_rate(values) for name, values in run.faults().items()}
    names = ("flagged", "copied from the pair", "exemplars repeated", "both sides equal")
    shares = [faults[name] for name in (*names, "not a sentence", "without a persona")]
    seconds = run.total("seconds")
    rate = f"{60 * len(run.personas) / seconds:.1f}" if seconds else ""
    return [
        run.label,
        f"{len(scores)} {run.set}",
        *(f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in explained.values()),
        *(f"{share.value:.0%}" for share in shares),
        rate,
    ]


def table(folder: Path) -> str:
    """All runs in the folder, a table a scorer."""
    runs = [run_of(json.loads(file.read_text()), folder) for file in sorted(folder.glob("*.run"))]
    scorers = {
        s: None for f in sorted(folder.glob("*.run")) for s in json.loads(f.read_text())["scorer"]
    }
    said = []
    for scorer in scorers:
        lines = [cells(run, scorer) for run in runs if len(run.scores(scorer))]
        said += ["", f"By {Path(scorer).stem}:", "", _line(HEAD), _line(["---"] * len(HEAD))]
        said += [_line(line) for line in lines]
    return "\n".join(said)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="as for infer_personas")
    parser.add_argument("--set", choices=("examples", "ours", "real"), default="examples")
    parser.add_argument("--personas", help="a file with personas, in the order of the set")
    parser.add_argument("--tailored", help="the file with published personas")
    parser.add_argument("--real", help="the folder with the files of the real pairs")
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--chooser", default="local:smollm2", help="chooses among candidates")
    parser.add_argument("--api-base")
    parser.add_argument("--scorer", action="append", help="repeatable; default: local:smollm2")
    parser.add_argument("--seconds", type=float, help="stop after the piece in which they are over")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs/models")
    parser.add_argument("--table", action="store_true", help="print what there is; infer nothing")
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    words = vars(options) | {"scorer": options.scorer or ["local:smollm2"], "folder": None}
    run, deadline = run_of(words, options.folder), Deadline(options.seconds)
    options.folder.mkdir(parents=True, exist_ok=True)
    name = f"{run.label}-{run.set}".replace("/", "_").replace(" ", "_")
    kept = options.folder / f"{name}.run"
    before = json.loads(kept.read_text())["scorer"] if kept.exists() else []
    kept.write_text(json.dumps(words | {"scorer": list(dict.fromkeys(before + words["scorer"]))}))
    while run.infer_next():
        deadline.check()
    scorers: dict[str, pi.Likelihood] = {}
    for scorer in words["scorer"]:
        while run.score_next(scorer, scorers):
            deadline.check()
        print(_line(HEAD), _line(cells(run, scorer)), sep="\n")


if __name__ == "__main__":
    main()
