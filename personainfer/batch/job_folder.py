"""The folder of a batch job: the rows, the files of requests and replies, and the state of the job.

    batch.json            the model, the options, and the id and state of each part: `PersonaBatch`
    rows.parquet          the input, as a table that has no personas yet
    requests-0000.jsonl   for each part: the requests, as they are uploaded
    output-0000.jsonl     for each part: the file of replies that was downloaded
    errors-0000.jsonl     for each part: the file of requests that failed, as it was downloaded
    cached.jsonl          the replies that were already in the cache when the batch was submitted
    replies/              a cache of replies, where the user's cache is off or does not trust the folder
    lock                  held by the process that works on the folder; freed when that process ends

`batch.json` is called the handle. Each change replaces the whole file. A folder with a link, a pipe, a device
or another folder in it is refused; other files may be there, and are left alone.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import IO, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError

from ..api_keys import StoredNumber
from ..data.file_formats import bounded_lines
from ..data.source_rows import PreferenceSource, SourceRow
from ..data.table_reader import StoredTable
from ..exceptions import (
    BatchPendingError,
    DataError,
    InvalidArgumentError,
    UnknownOptionError,
    visible,
)
from ..llm.client import OPTIONS
from ..local.atomic_files import atomic_folder, write_file
from ..local.paths import as_path, place_errors, read_small_file
from ..personas.prompts import PersonaPrompt, Protocol
from ..personas.requests import Plan
from ..preferences.cells import read_json
from ..records import Exemplar, Record, Side
from .part import BatchPart
from .request_files import CACHED, file_of

MOST_SAMPLES = 1000  # candidates of a batch: a folder from a stranger names them, too
_MOST_VALUES = 100_000  # of batch.json: each that is wrong takes memory for its error
_REPLIES = "replies"
_LOCK_PATIENCE = 600.0  # seconds: another process may be uploading

_made_here: set[str] = set()  # identities of batches


class PersonaBatch(Record):
    """A submitted batch, as stored in its folder: model, options, and the state of each part.

    No API key is stored. The fields that are not listed here are arguments of `submit_batch`.

    Attributes:
        path: the folder, absolute.
        submitted_here: whether this object came from `submit_batch`, so that its model and address are known
            to be the caller's. An object that was loaded from a folder has False.
        version: the version of the format of `batch.json`.
        name: a random text that another batch in this folder would not have; "": an older version made it.
        made_by: the versions of personainfer and litellm that made the requests.
        llm_options: the options of the LLM, without model and key.
        rows: how many rows the data has.
        requests: how many distinct requests all rows have.
        cached: how many of these had a reply in the cache, and are in no part.
        asked_singly: USD that calls of `collect_batch` took: those of `ask_missing`, and those of a judge
            (`select`) that the budget pays.
        being_asked: the most USD that single calls may take of a `collect_batch` which runs now, or was
            killed.
        digest: a SHA-256 of all rows and the keys of their requests, which shows whether they have changed.
        parts: the parts. The number of a part is its place here, from 0; the names of its files have it.
    """

    path: Path = Field(exclude=True)
    submitted_here: bool = Field(default=False, exclude=True)
    version: Literal[1] = 1
    name: str = ""
    made_by: str
    model: str
    llm_options: dict[str, Any]
    sides: Annotated[tuple[Side, ...], Field(min_length=1, max_length=2)]
    protocol: Protocol
    exemplars: Literal["default", "none"] | tuple[Exemplar, ...]
    candidates: Annotated[int, Field(ge=1, le=MOST_SAMPLES)]
    on_error: Literal["keep", "raise", "drop"]
    rows: int
    requests: int
    cached: int
    asked_singly: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    being_asked: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    digest: str
    parts: tuple[BatchPart, ...]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the batch in a folder that `submit_batch` made.

        Raises:
            InvalidArgumentError: `path` is no path, or there is no `batch.json` that can be opened.
            DataError: `batch.json` is not as this version writes it, or the folder holds something that no
                batch has: a link, a pipe, a device, another folder, or a file that has a second name
                elsewhere (a hard link).
        """
        folder = as_path(path, "folder").absolute()  # the program may go to another one
        try:
            _check_own_files(folder)
            fields = read_json(read_small_file(cls.handle(folder)), _MOST_VALUES)
            batch = cls.model_validate({**fields, "path": folder, "submitted_here": False})
            UnknownOptionError.check(batch.llm_options, OPTIONS - {"api_key", "extra_headers"})
            return batch
        except OSError:
            raise InvalidArgumentError(
                f"{folder} holds no batch.", hint="Name the folder that was given to submit_batch."
            ) from None
        except DataError:  # of `_check_own_files`, whose words are better than those below
            raise
        except (ValidationError, ValueError, TypeError) as error:
            raise DataError(
                f"{cls.handle(folder)} is not the handle of a batch: {error}",
                hint="Was it written by another version, or by hand?",
            ) from None

    def reread(self) -> Self:
        """Return this batch as its folder has it now.

        Of a batch that was submitted here, only the state is taken: parts, `asked_singly` and `being_asked`,
        which change while the batch is processed. Options of the LLM and `on_error` stay as they are: another
        call with other ones may have gone on with the folder since.

        Raises:
            InvalidArgumentError, DataError: as `load`.
            DataError: the batch was submitted here, and another field differs, or the address. So somebody
                replaced `batch.json`.
        """
        there = self.load(self.path)
        if not self.submitted_here:
            return there
        state = {"parts", "asked_singly", "being_asked"}
        may_differ = {*state, "llm_options", "on_error"}
        both = [
            (one.llm_options.get("api_base"), one.model_dump(exclude=may_differ))
            for one in (self, there)
        ]
        if both[0] != both[1]:
            raise DataError(
                f"{self.handle(self.path)} was replaced since the batch was submitted.",
                hint="If you trust it, collect its folder, and give api_base= and model= again.",
            )
        return self.model_copy(update={name: getattr(there, name) for name in state})

    @contextmanager
    def alone(self, *, within: float = inf) -> Iterator[PersonaBatch]:
        """Lock this batch against other processes, and yield it as its folder has it now, see `reread`.

        It waits up to `within` seconds for the lock, at most 600, and frees it when the block ends.

        Raises:
            BatchPendingError: another process still holds the lock, or the lock cannot be written.
            InvalidArgumentError, DataError: as `reread`.
        """
        from filelock import FileLock  # takes longer to load than a batch is read without it

        path, patience = self.path / "lock", min(within, _LOCK_PATIENCE)
        try:
            held = FileLock(path, timeout=patience, mode=0o600, poll_interval=0.1).acquire()
        except (OSError, NotImplementedError) as error:
            raise BatchPendingError(
                f"{path} is held by another process, or cannot be written: {error}.",
                hint="Call again later, from a place where the folder can be written.",
            ) from None
        with held:
            yield self.reread()

    def save(self) -> None:
        """Replace `batch.json` on the disk, atomically and flushed.

        Raises:
            OSError: it cannot be written, or the disk is full.
        """
        path = self.handle(self.path)
        write_file(path, self.model_dump_json(indent=2), private=True)

    def updated(self, number: int, part: BatchPart) -> PersonaBatch:
        """Return this batch with `part` at the place `number` of `parts`. Save `batch.json` if that is new.

        Raises:
            OSError: `batch.json` cannot be written, or the disk is full.
        """
        batch = self.with_part(number, part)
        if batch is not self:
            batch.save()
        return batch

    def with_part(self, number: int, part: BatchPart) -> PersonaBatch:
        """Return this batch with `part` at the place `number` of `parts`, which is not saved."""
        if self.parts[number] == part:
            return self
        parts = (*self.parts[:number], part, *self.parts[number + 1 :])
        return self.model_copy(update={"parts": parts})

    def as_submitted_here(self, *, made_here: bool) -> Self:
        """Return a copy with `submitted_here`. `made_here`: remember that this process made the folder."""
        if made_here:
            _made_here.add(self.identity)
        return self.model_copy(update={"submitted_here": True})

    @property
    def made_here(self) -> bool:
        """Whether this process submitted the batch and made its folder: all that is in it is the caller's."""
        return self.submitted_here and self.identity in _made_here

    @property
    def identity(self) -> str:
        """A text that no other batch has. It stays the same when a part is submitted again."""
        orders = (part.order for part in self.parts)
        return " ".join([str(self.path.resolve()), self.name, *orders])

    @property
    def sent(self) -> int:
        """How many requests all parts hold, whether they are submitted yet or not."""
        return sum(part.requests for part in self.parts)

    @property
    def answered(self) -> int:
        """How many requests had a reply or an error when the provider was last asked."""
        return sum(part.answered for part in self.parts)

    @property
    def done(self) -> bool:
        """Whether every part is done, see `BatchPart.done`. True if there is no part: all were cached."""
        return all(part.done for part in self.parts)

    @property
    def is_fetched(self) -> bool:
        """Whether every part is done, and the folder has each file that the provider has named."""
        return self.done and not any(map(self.unfetched, range(len(self.parts))))

    @property
    def unsubmitted(self) -> list[int]:
        """The numbers of the parts that are to be submitted: no batch of them is known, or it was refused."""
        parts = enumerate(self.parts)
        return [number for number, part in parts if part.batch_id is None or part.refused]

    def __str__(self) -> str:
        done = sum(part.done for part in self.parts)
        return visible(
            f"{self.path}: {done} of {len(self.parts)} parts are done,"
            f" {self.answered} of {self.sent} requests answered"
        )

    def plan(self) -> Plan:
        """Return what is asked about each row: protocol, exemplars, sides, and the number of candidates.

        If another process submitted the batch, the number of candidates is marked as one that a file says.
        """
        count = self.candidates if self.submitted_here else StoredNumber(self.candidates)
        return Plan(PersonaPrompt(self.protocol, self.exemplars), self.sides, count)

    def source(self) -> PreferenceSource:
        """Read the rows of the input from the copy in the folder, in the order of the input.

        Returns:
            The rows. Each iteration reads them again.

        Raises:
            DataError: the copy, `rows_file`, is missing or is not a table.
        """
        try:
            saved = StoredTable(self.rows_file)
        except OSError as error:
            raise DataError(f"{self.rows_file}: {error}", hint="Copy the whole folder.") from None
        return PreferenceSource(
            lambda: (SourceRow(row.preference, row.error, {}) for row in saved.rows),
            shape="batch",
            total=len(saved.rows),
            original=saved.columns.piece(range(len(saved.rows)), ()),
            summary=lambda: dict(saved.settings.get("read") or {}),
        )

    @staticmethod
    def handle(folder: Path) -> Path:
        """Return the path of `batch.json`, whose presence marks a folder as a batch's."""
        return folder / "batch.json"

    @property
    def rows_file(self) -> Path:
        """The path of the Parquet file with the rows of the input."""
        return self.path / "rows.parquet"

    @property
    def replies_folder(self) -> Path:
        """The path of the folder's own cache of replies. See `trust.llm_of` for when it is used."""
        return self.path / _REPLIES

    def requests_file(self, number: int) -> Path:
        """Return the path of the file of requests that is uploaded for a part; `number` counts from 0."""
        return file_of(self.path, "requests", number)

    @contextmanager
    def opened_requests(self, number: int) -> Iterator[Iterator[bytes]]:
        """Open the file of requests of a part, and yield its lines, to be read in the block.

        Raises:
            DataError: the file cannot be read, or the block met a line that is not a request.
        """
        path = self.requests_file(number)
        try:
            with path.open("rb") as file:
                yield _bounded(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not as it was written ({type(error).__name__}).",
                hint="Submit the batch to another folder.",
            ) from None

    def keys_of(self, number: int) -> list[bytes]:
        """Read the keys of the requests of a part from its file, in the order of the file.

        Raises:
            DataError: the file cannot be read, or a line is not a request.
        """
        with self.opened_requests(number) as lines:
            return [bytes.fromhex(read_json(line)["custom_id"]) for line in lines]

    def cached_replies(self) -> Iterator[tuple[bytes, str]]:
        """Read the replies that were in the cache when the batch was submitted.

        Yields:
            (key of the request, the reply as the cache stores it). Broken lines are left out.
        """
        path = self.path / CACHED
        if path.exists():
            with path.open("rb") as file:
                for line in bounded_lines(file):
                    with suppress(ValueError, TypeError):  # spoilt: it is asked again
                        key, text = read_json(line or b"")
                        if isinstance(text, str):
                            yield bytes.fromhex(key), text

    def answer_files(self) -> list[Path]:
        """Return the paths of the files that were downloaded: first the replies, then the errors."""
        numbers = range(len(self.parts))
        files = [file_of(self.path, kind, n) for kind in ("output", "errors") for n in numbers]
        return [path for path in files if path.exists()]

    def unfetched(self, number: int) -> list[tuple[str, Path]]:
        """Return which files of replies and of errors of a part have to be downloaded.

        Args:
            number: the place of the part in `parts`, from 0.

        Returns:
            (the provider's id of a file, the path to write) for each file that the provider has named and the
            folder lacks.
        """
        part = self.parts[number]
        named = {"output": part.output_file_id, "errors": part.error_file_id}
        places = ((name, file_of(self.path, kind, number)) for kind, name in named.items())
        return [(name, place) for name, place in places if name and not place.exists()]

    def fetched_early(self, number: int) -> list[tuple[str, Path]]:
        """Return the file of replies of a part, as `unfetched`, if it was downloaded before it was whole.

        It then has fewer lines than the provider tells replies, and errors if these have no other file.
        """
        part, place = self.parts[number], file_of(self.path, "output", number)
        if part.output_file_id is None or not place.exists():
            return []
        least = (part.completed or 0) + (0 if part.error_file_id else part.failed or 0)
        with place.open("rb") as file:
            lines = sum(line is None or bool(line.strip()) for line in bounded_lines(file))
        return [(part.output_file_id, place)] if lines < least else []

    def afresh(self, number: int) -> BatchPart:
        """Delete the files that were downloaded for a part. Return the part as it was before it was uploaded.

        The batch itself is not changed: pass the part to `updated`.

        Args:
            number: the place of the part in `parts`, from 0.
        """
        for kind in ("output", "errors"):
            file_of(self.path, kind, number).unlink(missing_ok=True)
        return self.parts[number].before_upload()


def _bounded(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file. A ValueError is raised at one that is too long for a request."""
    for line in bounded_lines(file):
        if line is None:
            raise ValueError("a line is too long")
        yield line


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder whole or not at all: yield a temporary one, which is renamed to `folder` at the end.

    Only its owner can read it, because it holds people's texts.

    Raises:
        InvalidArgumentError: `folder` exists and is not an empty folder, or cannot be made.
        OSError: the disk is full.
    """
    if not folder.name or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InvalidArgumentError(
            f"{folder} exists, and holds no batch.", hint="Name a folder that does not exist."
        )
    with place_errors(folder, "folder"), atomic_folder(folder, private=True) as unfinished:
        yield unfinished


def _check_own_files(folder: Path) -> None:
    """Raise DataError if the folder holds a link, a pipe, a device, a folder, or a file with a second name.

    `replies` may be a folder; its files are also checked for second names. With such things, a folder from a
    stranger could make this process upload or overwrite your other files, or wait for ever. Other files, such
    as a table that you saved there, are neither read nor written.
    """
    found, replies = _states(folder), folder / _REPLIES
    has_replies = replies in found and stat.S_ISDIR(found[replies].st_mode)
    below = _states(replies) if has_replies else {}
    # A cache that was being mended may have two names for its database there.
    names = Counter(state.st_ino for state in (*found.values(), *below.values()))
    for path, state in (found | below).items():
        is_file = stat.S_ISREG(state.st_mode)
        problem = ""
        if path in found and not is_file and not (path == replies and has_replies):
            problem = "is a link, a pipe, a folder or a device"
        elif is_file and state.st_nlink > names[state.st_ino]:
            problem = "is a second name of another file"
        if problem:
            raise DataError(
                f"{path} {problem}.",
                hint="A batch has files of its own. Of your own folder, take a copy: cp -rL OLD NEW.",
            )


def _states(folder: Path) -> dict[Path, os.stat_result]:
    """Return path -> state, of each entry in a folder. What vanishes meanwhile is left out."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found[path] = path.lstat()
    return found
