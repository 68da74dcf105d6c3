"""Count how often a preference changes packages on its way from `infer_personas` to the table.

One pair and its reply hold a word that occurs nowhere else. The pair is inferred with a fake model, and each
function of the library is noted when one of its arguments first has this word, in any thread.
Each function then belongs to the room that is its package, and rooms are in the order of CONTRIBUTING.md.
Modules at top level (records, errors, options) are left out, since every room uses them.

    climb    a change to a room above the one before
    return   a change to a room that was left earlier

    python benchmarks/room_changes.py       # the numbers, and the rooms in order
    python benchmarks/room_changes.py -v    # and the functions
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel

import personainfer as pi
from personainfer import event_loop
from personainfer.testing import FakeLLM

PACKAGE = Path(pi.__file__).parent
GUIDE = PACKAGE.parent / "CONTRIBUTING.md"
WORD = "quokka"
REPLY = {
    f"person_{n}": {
        "evidence": WORD,
        "trait": f"fond of the {WORD}",
        "preference": f"{WORD} facts {n}",
    }
    for n in (1, 2)
}


def holds_word(value: Any) -> bool:
    """Whether the value is a text with the word, or a record or container with one."""
    if isinstance(value, str | bytes):
        return WORD in value if isinstance(value, str) else WORD.encode() in value
    if isinstance(value, dict):
        return any(map(holds_word, value.values()))
    if isinstance(value, list | tuple):
        return any(map(holds_word, value))
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return any(holds_word(getattr(value, one.name, None)) for one in fields)
    if isinstance(value, BaseModel):
        return any(map(holds_word, vars(value).values()))
    slots = getattr(type(value), "__slots__", ())
    return any(holds_word(getattr(value, name, None)) for name in slots if "__" not in name)


class Way:
    """The functions that are given the word, in the order of their first calls: (room, function)."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], None] = {}

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """A profile function, as `sys.setprofile` takes it."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(PACKAGE)):
            return
        room, *module = Path(code.co_filename).relative_to(PACKAGE).with_suffix("").parts
        function = room, ".".join([*module, code.co_qualname])
        if not module or room == "testing" or "<" in code.co_name or function in self.found:
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(holds_word(frame.f_locals[name]) for name in names if name in frame.f_locals):
            self.found[function] = None


def inferred(prompt: str, **options: Any) -> None:
    """Infer the personas of one pair."""
    pair = {"prompt": prompt, "chosen": "Short.", "rejected": "A long answer."}
    pi.infer_personas([pair], "fake", progress=False, **options).raise_for_errors()


def way_of_a_pair() -> list[tuple[str, str]]:
    """What one pair passes through; another pair before it has imported all modules."""
    way = Way()
    with FakeLLM(reply=REPLY) as server, tempfile.TemporaryDirectory() as folder:
        inferred("A first pair?", api_base=server.api_base, cache_dir=folder)
        event_loop.call(sys.setprofile, way.note)  # on the thread that sends requests
        sys.setprofile(way.note)
        try:
            inferred(f"What is a {WORD}?", api_base=server.api_base, cache_dir=folder)
        finally:
            sys.setprofile(None)
            event_loop.call(sys.setprofile, None)
    return list(way.found)


def main() -> None:
    rooms = re.findall(r"^- `(\w+)/`:", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    visits = [(room, list(group)) for room, group in groupby(way_of_a_pair(), lambda one: one[0])]
    order = [room for room, _ in visits]
    climbs = sum(rooms.index(later) < rooms.index(earlier) for earlier, later in pairwise(order))
    print(f"{climbs} climbs, {len(order) - len(set(order))} returns: {' > '.join(order)}")
    if "-v" in sys.argv:
        for room, group in visits:
            print(room, *(f"    {function}" for _, function in group), sep="\n")


if __name__ == "__main__":
    main()
