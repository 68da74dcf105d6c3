"""Ask the provider for the states of a batch's parts, and download the files of those that are done."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

from ..api_keys import Secrets
from ..connections import until_deadline
from ..exceptions import (
    BatchPendingError,
    ModelError,
    ModelNotFoundError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from ..llm.client import LLM
from ..local.atomic_files import atomic_writer
from .job_folder import PersonaBatch
from .lines import MaskedLines, provider_words, read_answers
from .provider import BatchAPI, batch_api

_LONGEST_LINE = 2**24  # bytes of a file's last line that are looked at


def looked(
    batch: PersonaBatch,
    api: BatchAPI,
    patience: float,
    secrets: Secrets,
    keep: Callable[[IO[bytes]], None] | None,
) -> PersonaBatch:
    """Ask for the state of each part that is not done, once, and download the files of those that are done.

    Args:
        batch: the batch, whose folder is locked.
        api: the provider's batch API.
        patience: seconds for which failed connections are tried again.
        secrets: what is masked in the files.
        keep: a function that gets each file of answers before it has its place in the folder; or None.

    Returns:
        The batch with the new states of its parts.

    Raises:
        BatchPendingError: a part was not submitted.
    """
    if any(part.batch_id is None for part in batch.parts):
        raise BatchPendingError(
            f"not all of it was submitted: {batch}.",
            hint="Call submit_batch again, with the same arguments and folder.",
        )
    for number, part in enumerate(batch.parts):
        if not part.done:
            state = until_deadline(patience)(api.look, str(part.batch_id))
            batch = batch.updated(number, part.at(state))
        if batch.parts[number].done:
            for file_id, place in batch.unfetched(number):
                until_deadline(patience)(_fetch, api, file_id, place, secrets, part.requests, keep)
    return batch


def looked_again(
    batch: PersonaBatch,
    llm: LLM,
    ends: float,
    keep: Callable[[IO[bytes]], None] | None,
    *,
    pays: bool,
) -> PersonaBatch:
    """Ask once what more the provider has of a batch that is done, and download it.

    Files may have been named late, or served before they were whole. More is welcome, and none is no error:
    where nobody can be asked, or the folder cannot be written, the batch stays as it is.

    Args:
        batch: the batch, whose files are all there.
        llm: the LLM of the batch.
        ends: the time, by `time.monotonic`, after which no part is asked about.
        keep: as for `looked`.
        pays: whether what the batch lacks will be paid for again. Then a folder that another process holds is
            waited for, and one that cannot be written is an error.

    Returns:
        The batch as it is then. It is not done if another process has submitted a part again.

    Raises:
        BatchPendingError, OSError: with `pays`, the folder is held by another process, or cannot be written.
    """
    if all(_is_all_there(batch, number) for number in range(len(batch.parts))):
        return batch
    # A part that was refused may be submitted again just now.
    waits = pays or any(part.refused for part in batch.parts)
    with (
        suppress(ModelError, *(() if pays else (BatchPendingError, OSError))),
        closing(batch_api(llm.transport)) as api,
        batch.alone(within=max(0.0, ends - time.monotonic()) if waits else 0.0) as now,
    ):
        batch = now
        for number in range(len(now.parts)):
            if now.done and not _is_all_there(now, number) and time.monotonic() < ends:
                with suppress(ReplyError, ModelNotFoundError, RequestRejectedError):  # of one part
                    batch = now = _with_more(now, number, api, llm.transport.secrets, keep)
    return batch


def _is_all_there(batch: PersonaBatch, number: int) -> bool:
    """Whether a part that is done has all files and lines that it has by the provider's counts."""
    part = batch.parts[number]
    return part.whole and (part.settled or not batch.fetched_early(number))


def _with_more(
    batch: PersonaBatch,
    number: int,
    api: BatchAPI,
    secrets: Secrets,
    keep: Callable[[IO[bytes]], None] | None,
) -> PersonaBatch:
    """Ask for the state of a part that is done, download what more it has, and then save the state.

    A state that takes back what was there is not believed: the part has ended.
    """
    part = batch.parts[number]
    later = part.at(api.look(str(part.batch_id)))
    is_more = later.done and later.answered >= part.answered
    known = batch.with_part(number, later) if is_more else batch
    short = [] if part.settled else known.fetched_early(number)
    for file_id, place in short:
        try:
            _fetch(api, file_id, place, secrets, part.requests, keep)
        except ReplyError:  # the next call asks again, however late it is
            unsettled = known.parts[number].model_copy(update={"looked_at": part.looked_at})
            known = known.with_part(number, unsettled)
    for file_id, place in known.unfetched(number):
        _fetch(api, file_id, place, secrets, part.requests, keep)
    return batch.updated(number, known.parts[number])


def _fetch(
    api: BatchAPI,
    file_id: str,
    place: Path,
    secrets: Secrets,
    requests: int,
    keep: Callable[[IO[bytes]], None] | None,
) -> None:
    """Download one of the provider's files to `place`, with secrets masked, whole or not at all.

    Raises:
        ReplyError: the file has no line of a batch, or lacks an answer that the file at `place` has.
        TransportError: the file breaks off within a line.
    """
    with atomic_writer(place, private=True) as file:
        with MaskedLines(file, secrets) as lines:
            api.download(file_id, lines, requests)
        size = file.tell()
        file.seek(0)
        if size and next(read_answers(file, secrets), None) is None:
            file.seek(0)
            begins = provider_words(file.read(200), secrets)
            raise ReplyError(
                f"what the provider sent as {file_id} holds no line of a batch: {begins}.",
                hint="Repeat the call to download it again.",
            )
        if _is_cut(file, size):
            raise TransportError(f"what the provider sent as {file_id} breaks off.")
        if place.exists():
            with place.open("rb") as before:
                lost = _answers_in(before, secrets) - _answers_in(file, secrets)
            if lost:  # what is there is paid for
                raise ReplyError(
                    f"what the provider sends as {file_id} has lost {len(lost)} answers."
                )
        if keep is not None:
            file.seek(0)
            keep(file)


def _answers_in(file: IO[bytes], secrets: Secrets) -> set[tuple[bytes, bool]]:
    """Return (key, False) for each answer in a file, and also (key, True) if it is no error."""
    file.seek(0)
    answers = read_answers(file, secrets)
    return {(one.key, good) for one in answers for good in {False, one.error is None}}


def _is_cut(file: IO[bytes], size: int) -> bool:
    """Whether a file ends within a JSON object, as where a connection broke off without a word."""
    file.seek(max(0, size - _LONGEST_LINE))
    last = file.read().rpartition(b"\n")[2].strip()
    return last.startswith(b"{") and not last.endswith(b"}")
