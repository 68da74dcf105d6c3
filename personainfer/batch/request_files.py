"""Files of the requests that are uploaded, and of the replies that are cached already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from .lines import WireRequest
from .provider import BatchAPI

MAX_REQUESTS = 50_000  # in a file, by OpenAI's rules
MAX_BYTES = 190_000_000  # of its 200 MB

CACHED = "cached.jsonl"


class RequestFiles:
    """Writes the new requests of each row to files, and the replies that are already cached to another.

    A new file begins when one has 50,000 requests or 190 MB.

    Args:
        folder: where the files go.
        api: writes a request as a line of a file.

    Attributes:
        counts: how many requests each file has.
        keys: the keys of all requests so far, also of those whose reply was cached.
    """

    def __init__(self, folder: Path, api: BatchAPI) -> None:
        self.counts: list[int] = []
        self.keys: set[bytes] = set()
        self._digest = hashlib.sha256()
        self._folder = folder
        self._api = api
        self._file: IO[bytes] | None = None
        self._cached = (folder / CACHED).open("wb")

    @property
    def digest(self) -> str:
        """A SHA-256, in hexadecimal, of all rows so far and of the keys of their requests."""
        return self._digest.hexdigest()

    def add(self, wired: Sequence[WireRequest]) -> None:
        """Write the requests of one row. A request that was added before is not written again.

        Raises:
            OSError: the disk is full.
        """
        add_to_digest(self._digest, wired)
        for wire in wired:
            if wire.key not in self.keys:
                self.keys.add(wire.key)
                if wire.cached is not None:
                    self._cached.write(json.dumps([wire.key.hex(), wire.cached]).encode() + b"\n")
                else:
                    self._write(self._api.line(wire.key.hex(), wire.body))

    def close(self) -> None:
        """Close the files."""
        self._cached.close()
        if self._file is not None:
            self._file.close()

    def _write(self, line: bytes) -> None:
        file = self._file
        if file is None or self.counts[-1] >= MAX_REQUESTS or file.tell() + len(line) > MAX_BYTES:
            if file is not None:
                file.close()
            file = self._file = file_of(self._folder, "requests", len(self.counts)).open("wb")
            self.counts.append(0)
        file.write(line)
        self.counts[-1] += 1


def add_to_digest(digest: Any, wired: Sequence[WireRequest]) -> None:
    """Add a row to a hash of hashlib, changed in place: the number of its requests, and their keys."""
    digest.update(b"%d:" % len(wired))
    for wire in wired:
        digest.update(wire.key)


def file_of(folder: Path, kind: str, number: int) -> Path:
    """Return the path of a file of a part; `kind` is "requests", "output" or "errors"."""
    return folder / f"{kind}-{number:04}.jsonl"
