"""What a provider says of a file or a batch: its id, its state, its counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..api_keys import Secrets
from ..exceptions import ReplyError
from .lines import provider_words

FINAL = frozenset({"completed", "failed", "expired", "cancelled"})  # statuses that do not change

_FILE_PATIENCE = 3600.0  # seconds for the provider to read a file
_FILE_POLL_SECONDS = 2.0  # seconds between two checks whether the provider has processed a file
_MOST_COUNTED = 2**31  # requests of a batch
_LONGEST_NAME = 2000  # characters of the id of a file or a batch
_MOST_LISTED = 1000  # how many of the newest batches to search for one


@dataclass(frozen=True, slots=True)
class BatchState:
    """The state of a batch at the provider.

    Attributes:
        batch_id: the provider's id of the batch.
        status: the provider's word, such as "in_progress"; "unknown": the provider said none.
        completed: how many requests have a reply; None: the provider does not tell.
        failed: how many requests have an error; None: the provider does not tell.
        output_file_id: the id of the file of replies; None: none is named yet.
        error_file_id: the id of the file of requests that failed; None: none is named yet.
        problem: up to three of the provider's reasons for a failure; "": it gave none.
    """

    batch_id: str
    status: str
    completed: int | None = None
    failed: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    problem: str = ""

    @property
    def answered(self) -> int:
        """How many requests have a reply or an error, as far as the provider tells."""
        return (self.completed or 0) + (self.failed or 0)


def state_of(batch: Any, secrets: Secrets) -> BatchState:
    """Return the state of a batch from the SDK's object. Raises ReplyError if an id in it cannot be used."""
    counts = getattr(batch, "request_counts", None)
    status = str(getattr(batch, "status", None) or "unknown")
    problems = getattr(getattr(batch, "errors", None), "data", None)
    found = problems if isinstance(problems, list) else []
    words = dict.fromkeys(
        provider_words(getattr(problem, "message", problem), secrets) for problem in found
    )
    return BatchState(
        batch_id=_id(batch, "batch", secrets),
        status=status if status in FINAL else provider_words(status, secrets),
        completed=_count(getattr(counts, "completed", None)),
        failed=_count(getattr(counts, "failed", None)),
        output_file_id=_file_of(batch, "output_file_id", secrets),
        error_file_id=_file_of(batch, "error_file_id", secrets),
        problem="; ".join(islice(words, 3)),
    )


def id_once_read(made: Any, look: Callable[[str], Any], secrets: Secrets) -> str:
    """Wait until the provider has processed an uploaded file, as Azure does after the upload; return its id.

    Args:
        made: the SDK's object for the file.
        look: asks for that object again, by the id.
        secrets: an id that contains one of them is refused.

    Raises:
        ReplyError: there is no id, or the file is still pending after an hour.
    """
    name = _id(made, "file", secrets)
    ends = time.monotonic() + _FILE_PATIENCE
    while getattr(made, "status", None) == "pending":
        if time.monotonic() > ends:
            raise ReplyError(
                f"the provider has not read the file {name} within {_FILE_PATIENCE:g} s."
            )
        time.sleep(_FILE_POLL_SECONDS)
        made = look(name)
    return name


def find_batch(
    file_id: str, list_all: Callable[[], Any], look: Callable[[str], Any], secrets: Secrets
) -> BatchState | None:
    """Find the batch that was made of a file, among the newest 1,000.

    Args:
        file_id: the id of the file.
        list_all: returns the SDK's list of batches.
        look: returns the SDK's object for a file, by its id.
        secrets: as for `id_once_read`.

    Returns:
        The state of the batch. None only if a readable list shows that there is none.

    Raises:
        ReplyError: the answer is not a list of batches, or names the file of none of them; or the newest
            1,000 do not go back to before the upload.
    """
    try:
        batches = list_all()
    except (AttributeError, TypeError):  # the SDK's, where it is given JSON that is not a list
        batches = None
    if not isinstance(getattr(batches, "data", None), list):
        raise ReplyError("the provider answered with something that is not a list of batches.")
    newest = list(_distinct(islice(batches, _MOST_LISTED), secrets))
    files = [getattr(batch, "input_file_id", None) for batch in newest]
    if newest and not any(files):  # some may lack a file: Azure also makes batches of other things
        raise ReplyError("the provider does not say which files its batches were made of.")
    if file_id in files:
        return state_of(newest[files.index(file_id)], secrets)
    if len(newest) == _MOST_LISTED:
        oldest, upload = (getattr(one, "created_at", None) for one in (newest[-1], look(file_id)))
        if type(oldest) is not int or type(upload) is not int or oldest >= upload:
            raise ReplyError(f"it lists {_MOST_LISTED:,} newer ones.")
    return None


def _distinct(batches: Iterable[Any], secrets: Secrets) -> Iterator[Any]:
    """Yield the batches of a list up to one that came before: its pages may go round in a circle."""
    seen = set[str]()
    for batch in batches:
        name = _name(getattr(batch, "id", None), secrets) or ""
        if name in seen:
            return
        seen.add(name)
        yield batch


def _id(answer: Any, kind: str, secrets: Secrets) -> str:
    """Return the id in an answer. Raises ReplyError if there is none; `kind` says what was asked for."""
    name = _name(getattr(answer, "id", None), secrets)
    if name is None:
        raise ReplyError(f"the provider answered with something that is not a {kind}.")
    return name


def _name(value: object, secrets: Secrets) -> str | None:
    """Return an id, or None if the value is none or would not be safe in a file and an address.

    Ids are stored and shown, so one that contains a secret is none.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        return None
    if {".", ".."} & set(value.split("/")) or set("?#") & set(value):
        return None
    is_text = value.isascii() and value.isprintable()
    return value if is_text and secrets.mask_reply(value) == value else None


def _file_of(batch: Any, field: str, secrets: Secrets) -> str | None:
    """Return the id of one of a batch's files; None: the provider names none yet.

    Raises:
        ReplyError: the provider names one that is no usable id. To wait for another one would have no end.
    """
    value = getattr(batch, field, None)
    if not isinstance(value, str) or not value:
        return None
    name = _name(value, secrets)
    if name is None:
        said = provider_words(value, secrets)[:80]
        raise ReplyError(
            f"the provider says {said!r} for the batch's {field}, which is no id of a file."
        )
    return name


def _count(value: object) -> int | None:
    """Return a number of requests, at least 0 and at most 2**31; None for what is not a whole number."""
    return min(max(value, 0), _MOST_COUNTED) if type(value) is int else None
