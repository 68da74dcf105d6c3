"""Attacks on the promises of docs/promises.md, tried on this tree and on another one.

Each attack of `benchmarks/promises/` runs as a fresh process, in an empty folder that is its home, its cache
and its temporary folder. `python benchmarks/attacks.py [--beside FOLDER] [--only NUMBER …]` prints a table in
Markdown, and exits with 1 if a promise is broken here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from promises.attack import ATTACKS, Attack, BrokenPromiseError

HERE = Path(__file__).parent
SUBJECTS = ("addresses", "replies", "caches", "files", "local_models", "dependencies")
AT_ONCE = 2  # attacks


def main() -> None:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=Path, help="another checkout, attacked too")
    parser.add_argument("--only", nargs="+", type=int, metavar="NUMBER", help="of the attacks")
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)  # one attack, in this process
    options = parser.parse_args()
    if options.here:
        for subject in SUBJECTS:
            import_module(f"promises.{subject}")
        print(json.dumps(_run(ATTACKS[options.here])))
        return
    attacks = _listed(options.only)
    trees = [*([options.beside.absolute()] if options.beside else []), HERE.parent]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda one: _try_on_each(one, trees), attacks))
    print("|", " | ".join(["#", "promise", *map(str, trees), "the test that keeps it"]), "|")
    print("| ---" * (3 + len(trees)), "|")
    for one, found in zip(attacks, results, strict=True):
        cells = [str(one.number), one.promise, *map(_told, found), f"`{one.test}`"]
        print("|", " | ".join(cells), "|")
    for place, tree in enumerate(trees):
        held = sum(found[place][0] for found in results)
        print(f"{tree}: {held} of {len(results)} hold", file=sys.stderr)
    sys.exit(not all(found[-1][0] for found in results))


def _try_on_each(one: Attack, trees: list[Path]) -> list[tuple[bool, str]]:
    start = time.monotonic()
    found = [try_attack(one, tree) for tree in trees]
    print(f"{one.number}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def try_attack(one: Attack, tree: Path) -> tuple[bool, str]:
    """Run one attack on one tree in a process of its own: whether the promise holds, and what was seen."""
    with tempfile.TemporaryDirectory(prefix="personainfer-attack-") as name:
        home = Path(name)
        (home / "tmp").mkdir()
        (home / "work").mkdir()
        environment = {
            **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            "HOME": name,
            "XDG_CACHE_HOME": f"{name}/cache",
            "PERSONAINFER_CACHE_DIR": f"{name}/cache/personainfer",
            "TMPDIR": f"{name}/tmp",
            "OPENAI_API_KEY": "sk-mine",
            "PYTHONPATH": str(tree),
        }
        command = [sys.executable, __file__, "--here", str(one.number)]
        with subprocess.Popen(
            command,
            env=environment,
            cwd=home / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                said, errors = process.communicate(timeout=one.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return False, f"it hangs: not done in {one.seconds:g} s"
    try:
        holds, seen = json.loads(said.strip().splitlines()[-1])
    except (IndexError, ValueError):
        last = (errors.strip() or "it printed nothing").splitlines()[-1]
        return False, f"the attack itself failed: {last}"
    return bool(holds), str(seen)


def _run(one: Attack) -> tuple[bool, str]:
    try:
        return True, one.run(Path.cwd())
    except BrokenPromiseError as broken:
        return False, str(broken)


def _listed(numbers: list[int] | None) -> list[Attack]:
    """The attacks of these numbers, or all."""
    for subject in SUBJECTS:
        import_module(f"promises.{subject}")
    return [ATTACKS[number] for number in sorted(ATTACKS) if number in (numbers or ATTACKS)]


def _told(found: tuple[bool, str]) -> str:
    holds, seen = found
    return f"{'holds' if holds else 'BROKEN'}: {seen}".replace("|", "\\|")


if __name__ == "__main__":
    main()
