"""A mark in a file of JSON lines that says which function of this library wrote it.

The form of rows tells nothing: others write data in the same columns. The mark is a row of blanks after the
first brace, which readers of JSON skip, and it is lost where a program writes the rows anew.
It tells how the file began, and not that nothing was added at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

Kind = Literal["export", "inferred", "users"]

# For an error that refuses to replace a file without a mark.
NO_MARK = "the mark of ours is not in it, as where another program has written it anew"


def marked(text: str, kind: Kind) -> str:
    """The first line of a file with the mark. It holds an object."""
    return text.replace("{", "{" + _mark(kind), 1)


def marked_lines(lines: Sequence[str], kind: Kind) -> str:
    """The text of a file of these lines, the first one with the mark. It is made once: it may be large."""
    return "".join([*(marked(line, kind) for line in lines[:1]), *lines[1:]])


def has_mark(path: Path, kind: Kind) -> bool:
    """Whether a file begins with the mark; that of a pipe or a folder is not looked for."""
    begin = ("{" + _mark(kind)).encode()
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(begin)) == begin
    return False


def _mark(kind: str) -> str:
    """A blank for each bit of the word's first two letters: a space for 0, a tab for 1."""
    return "".join(f"{byte:08b}" for byte in kind[:2].encode()).translate({48: " ", 49: "\t"})
