"""The folder of a batch job: the rows, the files of requests and replies, and the state of the job.

    batch.json            the model, the options, and the id and state of each part: `PersonaBatch`
    rows.parquet          the input, as a table that has no personas yet
    requests-0000.jsonl   a file for each part, as it is uploaded
    output-0000.jsonl     what came back: replies, and the requests that failed
    errors-0000.jsonl
    cached.jsonl          the replies that were already in the cache
    replies/              the cache of replies of a run that does not use the user's cache
    lock                  held by the process that works on the folder; freed when that process ends

The handle is replaced as a whole whenever it changes. A folder with anything else in it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Literal, Self
from weakref import WeakValueDictionary

from pydantic import Field, ValidationError

from ..api_keys import Secrets, StoredNumber, as_stored, shown_address
from ..data.file_formats import bounded_lines
from ..data.source_rows import PreferenceSource, SourceRow
from ..data.table_reader import StoredTable
from ..exceptions import BatchPendingError, DataError, InvalidArgumentError, UnknownOptionError
from ..llm.client import LLM, MOST_CANDIDATES, OPTIONS, stored_options
from ..llm.pricing import Budget, Price, most_tokens
from ..llm.rate_limits import Account
from ..local.atomic_files import as_path, atomic_folder, place_errors, read_small_file, write_file
from ..local.cache import ReplyCache, default_cache_dir
from ..local.weights import check_stored_model
from ..personas.prompts import PersonaPrompt, Protocol
from ..personas.requests import Plan
from ..preferences.cells import read_json
from ..records import Exemplar, Record, Side
from .lines import Answer, WireRequest, read_line
from .provider import FINAL, BatchAPI, BatchState

MAX_REQUESTS = 50_000  # in a file, by OpenAI's rules
MAX_BYTES = 190_000_000  # of its 200 MB

_CACHED = "cached.jsonl"
_REPLIES = "replies"
_NAMED_WITHIN = 600.0  # seconds
_LOCK_PATIENCE = 600.0  # seconds: another process may be uploading


class BatchPart(Record):
    """One file of requests and the provider's batch of it; `status` is the provider's word."""

    requests: int
    file_id: str | None = None
    batch_id: str | None = None
    status: str = "not submitted"
    answered: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    problem: str = ""
    ended_at: float = 0.0  # when its end was first seen, in seconds since 1970
    order: str = ""  # with its folder and number, its name in a budget

    @property
    def done(self) -> bool:
        """Whether the batch has ended and its files have ids. The ids may come later than the status.

        A batch of which nothing was answered has no files. One that ended early may never get any: they are
        waited for, for `_NAMED_WITHIN`.
        """
        named = self.output_file_id or self.error_file_id
        has_waited = self.status != "completed" and time.time() - self.ended_at > _NAMED_WITHIN
        is_empty = self.status != "completed" and not self.answered
        return self.status in FINAL and bool(named or is_empty or (self.ended_at and has_waited))

    @property
    def refused(self) -> bool:
        """Whether the whole batch failed, so that no request was answered."""
        return self.status == "failed" and not self.output_file_id

    def at(self, state: BatchState) -> BatchPart:
        """This part, updated with the state that the provider reports. Once it has an id, it keeps it."""
        found = asdict(state)
        found["batch_id"] = self.batch_id or state.batch_id
        ended_at = self.ended_at or (time.time() if state.status in FINAL else 0.0)
        kept = {name: getattr(self, name) for name in ("requests", "file_id", "order")}
        return BatchPart(**kept, **found, ended_at=ended_at)


class PersonaBatch(Record):
    """A submitted batch, as stored in its folder: model, options, and the state of each part.

    `requests` counts the distinct requests of all rows; `cached` counts those whose reply was already in the
    cache, which are in no part. `asked_singly` are the USD that calls of `collect_batch` took: of
    `ask_missing`, and of a judge that the budget pays. `being_asked` are those that a collect may take which
    has not ended, or was killed. No API key is kept.
    """

    path: Path = Field(exclude=True)
    submitted_here: bool = Field(
        default=False, exclude=True
    )  # this process chose model and address
    version: Literal[1] = 1
    made_by: str
    model: str
    llm_options: dict[str, Any]
    sides: tuple[Side, ...]
    protocol: Protocol
    exemplars: Literal["default", "none"] | tuple[Exemplar, ...]
    candidates: int
    on_error: Literal["keep", "raise", "drop"]
    rows: int
    requests: int
    cached: int
    asked_singly: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    being_asked: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    digest: str  # of all rows and the keys of their requests: it shows whether these have changed
    parts: tuple[BatchPart, ...]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The batch in a folder that `submit_batch` made.

        Raises:
            InvalidArgumentError: there is none.
            DataError: its handle cannot be read, or the folder holds what is no file of a batch.
        """
        folder = as_folder(path)
        try:
            _check_own_files(folder)
            fields = read_json(read_small_file(cls.handle(folder)))
            batch = cls.model_validate({**fields, "path": folder, "submitted_here": False})
            UnknownOptionError.check(batch.llm_options, OPTIONS - {"api_key", "extra_headers"})
            return batch
        except OSError:
            raise InvalidArgumentError(
                f"{folder} holds no batch.", hint="Name the folder that was given to submit_batch."
            ) from None
        except DataError:  # of another file
            raise
        except (ValidationError, ValueError, TypeError) as error:
            raise DataError(
                f"{cls.handle(folder)} is not the handle of a batch: {error}",
                hint="Was it written by another version, or by hand?",
            ) from None

    def submitted_by(self, llm: LLM) -> Self:
        """This batch for who called `submit_batch`: the account of that LLM is told of all that follows."""
        _submitters[self._name] = llm.account
        return self.model_copy(update={"submitted_here": True})

    @property
    def submitter(self) -> Account | None:
        """The account of the LLM that submitted this batch in this process, if anybody still has it."""
        return _submitters.get(self._name)

    @property
    def _name(self) -> str:
        """What tells it from all others. A part has the same name when it is submitted again."""
        return " ".join([str(self.path.resolve()), *(part.order for part in self.parts)])

    @staticmethod
    def handle(folder: Path) -> Path:
        """The file whose presence marks a folder as a batch's."""
        return folder / "batch.json"

    @property
    def rows_file(self) -> Path:
        """The rows of the input, as a Parquet file."""
        return self.path / "rows.parquet"

    @property
    def replies_folder(self) -> Path:
        """The cache of replies of a run that does not use the user's cache."""
        return self.path / _REPLIES

    @property
    def sent(self) -> int:
        """How many requests the parts hold."""
        return sum(part.requests for part in self.parts)

    @property
    def answered(self) -> int:
        """How many requests were answered when the provider was last asked."""
        return sum(part.answered for part in self.parts)

    @property
    def done(self) -> bool:
        """Whether every part is done."""
        return all(part.done for part in self.parts)

    def __str__(self) -> str:
        done = sum(part.done for part in self.parts)
        return (
            f"{self.path}: {done} of {len(self.parts)} parts are done,"
            f" {self.answered} of {self.sent} requests answered"
        )

    def llm(
        self,
        given: Mapping[str, Any],
        *,
        submitted_here: bool = False,
        calls: bool = False,
        pays: bool = False,
    ) -> LLM:
        """The model of the batch.

        Replies are kept in the folder if the user's cache is off, or if another process submitted the batch:
        somebody else may have written the replies that are in the folder, and the user's cache is believed.
        `own_cache` is where the others belong.

        If another process submitted the batch, whoever wrote the folder could choose where the key goes and
        what calls cost. All but the options of requests are then those of the caller, or the defaults:
        address, cache directory, limits, prices, attempts. So are the model of single calls, if there are
        any, and what makes them cost more than usual. The folder's budget holds, since it only forbids.

        Args:
            given: the options that the caller names, which replace those of the folder, and the model.
            submitted_here: whether this process submitted the batch.
            calls: whether the model is called for what the batch does not answer.
            pays: whether its budget pays for the calls of a judge.

        Raises:
            InvalidArgumentError: the folder names an address, the model of calls, or something that costs
                more, and `given` does not; `given` names another model; or the model's name says where it
                is loaded from or called.
        """
        options, given = dict(self.llm_options), dict(given)
        self._check_model(given.pop("model", None), needed=calls and not submitted_here)
        stored = options.get("api_base")
        if not submitted_here:
            check_stored_model(self.model, self.path)
            if stored is not None and given.get("api_base") is None:
                raise InvalidArgumentError(
                    f"{self.path} was submitted to {shown_address(str(stored))!r}.",
                    hint="Your key would go there: give api_base= again.",
                    argument="api_base",
                )
            if calls:
                self._check_candidates()
            has_budget = "budget" in options and (calls or pays)
            held = {"budget": options["budget"]} if has_budget else {}
            options = stored_options(as_stored(options), given, self.path, calls=calls) | held
        options |= given
        if not submitted_here or not options.get("cache", True):
            options |= {"cache": True, "cache_dir": self.replies_folder}
        made = LLM(self.model, **options)
        if submitted_here and self.submitter is not None and "budget" not in given:
            made.account = self.submitter
        return made

    def _check_model(self, given: str | None, *, needed: bool) -> None:
        if given == self.model or (given is None and not needed):
            return
        problem = "" if given is None else f", not to {given!r:.200}"
        raise InvalidArgumentError(
            f"{self.path} was submitted to the model {shown_address(self.model)!r}{problem}.",
            hint="Whoever made the folder would decide which model you pay for: give model= again."
            if given is None
            else "Submit the data to another folder for another model.",
            argument="model",
        )

    def _check_candidates(self) -> None:
        if self.candidates > MOST_CANDIDATES:
            raise InvalidArgumentError(
                f"{self.path} was made with candidates={self.candidates}.",
                hint="Whoever made the folder would decide how many calls you pay for: leave out ask_missing="
                f" and call retry_errors(table, candidates={self.candidates}, …) for what is missing.",
                argument="ask_missing",
            )

    def own_cache(self, cache_dir: str | Path | None) -> ReplyCache | None:
        """The user's cache, for replies that this call downloads; None if it is off."""
        if not self.llm_options.get("cache", True):
            return None
        return ReplyCache(Path(cache_dir) if cache_dir else default_cache_dir())

    def plan(self, *, submitted_here: bool = True) -> Plan:
        """The plan of the run: protocol, sides and candidates; these are marked as a file's."""
        count = self.candidates if submitted_here else StoredNumber(self.candidates)
        return Plan(PersonaPrompt(self.protocol, self.exemplars), self.sides, count)

    def source(self) -> PreferenceSource:
        """The rows of the input."""
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

    def requests_file(self, number: int) -> Path:
        """The file that is uploaded for a part."""
        return _file(self.path, "requests", number)

    @property
    def unsubmitted(self) -> list[int]:
        """The numbers of the parts of which no batch is known, or whose batch the provider refused."""
        parts = enumerate(self.parts)
        return [number for number, part in parts if part.batch_id is None or part.refused]

    def order(self, number: int) -> str:
        """The name of a part in the budget that pays for it: the same when it is submitted again."""
        return f"{self.path.resolve()} {number} {self.parts[number].order}"

    def check_is_of(self, submitted: PersonaBatch) -> None:
        """Check that this batch, read from the folder of one that was submitted here, is that one.

        Raises:
            DataError: another one is in its place, which may have another address.
        """
        changing = {"parts", "asked_singly", "being_asked"}
        if self.model_dump(exclude=changing) != submitted.model_dump(exclude=changing):
            raise DataError(
                f"{self.handle(self.path)} was replaced since the batch was submitted.",
                hint="If you trust it, collect its folder, and give api_base= and model= again.",
            )

    def count_in(self, budget: Budget, cost: float, spent: float = 0.0) -> None:
        """Count in a budget what this batch cost, and the single calls so far, whoever made them.

        Its parts that are submitted were charged with the most that they could cost. So much of what single
        calls took has the budget counted as `spent`.
        """
        submitted = {*range(len(self.parts))}.difference(self.unsubmitted)
        singly = self.asked_singly + self.being_asked
        took = {f"{self._name}: batch": cost, f"{self._name}: single calls": singly}
        budget.replace(map(self.order, submitted), took, spent=spent)

    def most_cost(self, number: int, price: Price, max_tokens: int) -> float:
        """USD that the requests in the file of a part can cost at most, with so many tokens in each reply."""
        with self.requests_file(number).open("rb") as file:
            return sum(price.most(_prompt_tokens(line), max_tokens) for line in file)

    def keys_of(self, number: int) -> list[bytes]:
        """The keys of the requests in the file of a part.

        Raises:
            DataError: a line is not a request.
        """
        path = self.requests_file(number)
        try:
            with path.open("rb") as file:
                return [bytes.fromhex(read_json(line)["custom_id"]) for line in file]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not as it was written ({type(error).__name__}).",
                hint="Submit the batch to another folder.",
            ) from None

    def unfetched(self, number: int) -> list[tuple[str, Path]]:
        """The provider's files of a part that are not downloaded yet: their ids, and where they belong."""
        part = self.parts[number]
        named = {"output": part.output_file_id, "errors": part.error_file_id}
        places = [(file_id, _file(self.path, kind, number)) for kind, file_id in named.items()]
        return [(file_id, place) for file_id, place in places if file_id and not place.exists()]

    def cached_replies(self) -> Iterator[tuple[bytes, str]]:
        """The replies that were in the cache when the batch was made: keys and texts as stored there."""
        path = self.path / _CACHED
        if path.exists():
            with path.open("rb") as file:
                for line in bounded_lines(file):
                    with suppress(ValueError, TypeError):  # spoilt: it is asked again
                        key, text = read_json(line or b"")
                        if isinstance(text, str):
                            yield bytes.fromhex(key), text

    def answer_files(self) -> list[Path]:
        """The files of answers that were downloaded: replies first, then errors."""
        numbers = range(len(self.parts))
        files = [_file(self.path, kind, n) for kind in ("output", "errors") for n in numbers]
        return [path for path in files if path.exists()]

    @contextmanager
    def alone(self) -> Iterator[PersonaBatch]:
        """Lock this batch against other processes, and read its handle again.

        Raises:
            BatchPendingError: another process holds the lock.
        """
        from filelock import FileLock  # takes longer to load than a batch is read without it

        path = self.path / "lock"
        try:
            held = FileLock(path, timeout=_LOCK_PATIENCE, mode=0o600, poll_interval=0.1).acquire()
        except (OSError, NotImplementedError) as error:
            raise BatchPendingError(
                f"{path} is held by another process, or cannot be written: {error}.",
                hint="Call again later, from a place where the folder can be written.",
            ) from None
        with held:
            yield self.load(self.path)

    def save(self) -> None:
        """Replace the handle on disk, atomically and flushed."""
        path = self.handle(self.path)
        write_file(path, self.model_dump_json(indent=2), private=True)

    def afresh(self, number: int) -> BatchPart:
        """Reset a part to the state before it was sent, and delete its downloaded files."""
        for kind in ("output", "errors"):
            _file(self.path, kind, number).unlink(missing_ok=True)
        part = self.parts[number]
        return BatchPart(requests=part.requests, order=part.order)

    def updated(self, number: int, part: BatchPart) -> PersonaBatch:
        """Replace the state of one part, and save the handle."""
        if self.parts[number] == part:
            return self
        parts = (*self.parts[:number], part, *self.parts[number + 1 :])
        batch = self.model_copy(update={"parts": parts})
        batch.save()
        return batch


_submitters: WeakValueDictionary[str, Account] = WeakValueDictionary()


class RequestFiles:
    """Writes the new requests of each row to files, and replies that are already cached to another."""

    def __init__(self, folder: Path, api: BatchAPI) -> None:
        self.counts: list[int] = []  # of the requests in each file
        self.keys: set[bytes] = set()  # of all requests, cached ones included
        self._digest = hashlib.sha256()
        self._folder = folder
        self._api = api
        self._file: IO[bytes] | None = None
        self._cached = (folder / _CACHED).open("wb")

    @property
    def digest(self) -> str:
        """The digest of all rows so far and of the keys of their requests."""
        return self._digest.hexdigest()

    def add(self, wired: Sequence[WireRequest]) -> None:
        """Write the requests of one row."""
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
            file = self._file = _file(self._folder, "requests", len(self.counts)).open("wb")
            self.counts.append(0)
        file.write(line)
        self.counts[-1] += 1


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder whole or not at all: yields a temporary one, which is renamed at the end.

    Raises:
        InvalidArgumentError: the folder exists and is not empty, or cannot be made.
    """
    if not folder.name or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InvalidArgumentError(
            f"{folder} exists, and holds no batch.", hint="Name a folder that does not exist."
        )
    with place_errors(folder, "folder"), atomic_folder(folder, private=True) as unfinished:
        yield unfinished  # for people's texts


def read_answers(file: IO[bytes], secrets: Secrets) -> Iterator[Answer]:
    """The answers in a file of replies; lines that name no request are left out.

    `secrets` are masked in what errors quote.
    """
    for line in bounded_lines(file):
        if line is not None and (answer := read_line(line, secrets)):
            yield answer


def _check_own_files(folder: Path) -> None:
    """Raise DataError if the folder holds anything but files, which have no other names.

    A folder from a stranger could otherwise upload or overwrite your other files, or wait for ever. Files
    that are not of a batch, such as a table that you saved there, are neither read nor written.
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
    """The states of all that is in a folder; what vanishes meanwhile is left out."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found[path] = path.lstat()
    return found


def as_folder(path: object) -> Path:
    """The folder that an argument names; raises as `as_path`."""
    return as_path(path, "folder")


def _prompt_tokens(line: bytes) -> int:
    """The most tokens of the prompt of a request in a file."""
    try:
        body = read_json(line)["body"]
    except (ValueError, KeyError, TypeError):  # not as it was written
        return most_tokens(line)
    return most_tokens(json.dumps(body, ensure_ascii=False).encode())


def add_to_digest(digest: Any, wired: Sequence[WireRequest]) -> None:
    """Add a row to a digest: the number of its requests, and their keys."""
    digest.update(b"%d:" % len(wired))
    for wire in wired:
        digest.update(wire.key)


def _file(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:04}.jsonl"
