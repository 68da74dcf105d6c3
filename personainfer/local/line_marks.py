"""A mark in a file of JSON lines that says which function of this library wrote it.

The columns do not tell: others write data in the same columns. The mark is white space after the first
brace, which readers of JSON skip. A program that parses the rows and writes them again loses the mark. The
mark tells how the file began; rows may have been added to its end by anything.
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
    """Return a line of JSON with the mark of `kind` after its first brace; a line without one as it is."""
    return text.replace("{", "{" + _mark(kind), 1)


def marked_lines(lines: Sequence[str], kind: Kind) -> str:
    """Join lines into the text of a file, with the mark of `kind` in the first line.

    The lines are joined once, because the text may be large.

    Args:
        lines: lines of JSON with their line ends. The first one must hold an object. No lines give "".
        kind: what the file is, which the mark says.
    """
    return "".join([*(marked(line, kind) for line in lines[:1]), *lines[1:]])


def has_mark(path: Path, kind: Kind) -> bool:
    """Return whether a file begins with the mark of `kind`; False if it cannot be read or is no file."""
    begin = ("{" + _mark(kind)).encode()
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(len(begin)) == begin
    return False


def _mark(kind: str) -> str:
    """Return 16 blanks, one for each bit of the first two letters of `kind`: a space for 0, a tab for 1."""
    return "".join(f"{byte:08b}" for byte in kind[:2].encode()).translate({48: " ", 49: "\t"})
