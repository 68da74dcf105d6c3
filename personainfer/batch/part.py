"""One file of requests of a batch, and the state of what the provider made of it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

from pydantic import Field

from ..records import Record
from .states import FINAL, BatchState

_NAMED_WITHIN = 600.0  # seconds
MOST_TOKENS = 2**40  # of a reply
_OF_THE_REQUESTS = ("requests", "order", "most_tokens", "most_added")  # what no upload changes


class BatchPart(Record):
    """One file of requests, and the state of the batch that the provider made of it.

    Attributes:
        requests: how many requests the file holds.
        file_id: the provider's id of the file; None: it is not uploaded yet.
        batch_id: the provider's id of the batch; None: none is known.
        status: the provider's word for the state of the batch, such as "in_progress"; before there is a
            batch, "not submitted" or "uploaded".
        answered: how many requests had a reply or an error when the provider was last asked.
        completed: how many of these had a reply; None: the provider did not tell.
        failed: how many of these had an error; None: the provider did not tell.
        output_file_id: the provider's id of the file of replies; None: none is named yet.
        error_file_id: the provider's id of the file of failed requests; None: none is named yet.
        problem: why the batch failed, in the provider's words; "": no reason is known.
        ended_at: when a final status was first seen, in seconds since 1970; 0: not yet. If the clock was
            ahead then: when one was first seen after it was set back.
        looked_at: when a final status was last seen, in seconds since 1970; 0: not yet.
        order: a random name, which tells this part from those of other batches in a budget.
        most_tokens: the most tokens of a reply to a request in the file, when it was written; 0: not known.
        most_added: the most tokens that the endpoint had added to a prompt by then.
    """

    requests: int
    file_id: str | None = None
    batch_id: str | None = None
    status: str = "not submitted"
    answered: int = 0
    completed: int | None = None
    failed: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    problem: str = ""
    ended_at: float = 0.0
    looked_at: float = 0.0
    order: str = ""
    most_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    most_added: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0

    @property
    def whole(self) -> bool:
        """Whether the batch has ended, and all files are named that it has by the provider's counts."""
        if self.status not in FINAL or not self.answered:  # some providers tell 0 of any batch
            return False
        return self._has_replies and (self.error_file_id is not None or self.failed == 0)

    @property
    def _has_replies(self) -> bool:
        return self.output_file_id is not None or self.completed == 0

    @property
    def done(self) -> bool:
        """Whether the batch has ended, and nothing more is waited for.

        Files may be named later than the status is final. So a batch whose file of replies is not named is
        done only if it was seen so for 600 seconds: it may never get one. There is no such wait if no request
        was answered before a batch failed, expired or was cancelled; or if the provider tells no counts, and
        one file is named, or the batch failed. Some providers name no file of errors: none is waited for.
        """
        counts = (self.completed, self.failed)
        if None in counts or (self.status == "completed" and not self.answered):
            is_enough = bool(self.output_file_id or self.error_file_id or self.status == "failed")
        else:
            is_enough = self._has_replies or not self.answered
        return self.status in FINAL and (is_enough or self.settled)

    @property
    def settled(self) -> bool:
        """Whether a final status was seen for 600 seconds: files that are named by now are whole."""
        return self.looked_at - self.ended_at > _NAMED_WITHIN

    @property
    def refused(self) -> bool:
        """Whether the provider refused the whole part: its batch failed, and there are no replies."""
        return self.status == "failed" and not (self.output_file_id or self.completed)

    def before_upload(self) -> BatchPart:
        """Return this part as it was before it was uploaded: the same requests, and the same order."""
        return BatchPart(**self.model_dump(include={*_OF_THE_REQUESTS}))

    def at(self, state: BatchState) -> BatchPart:
        """Return this part with the state that the provider reports.

        The first id of a batch that was reported stays, and so do files that were named. If the status is
        final, `looked_at` becomes the time of this call, and so does `ended_at`, unless it is set already.
        """
        found = asdict(state) | {"answered": state.answered}
        for name in ("batch_id", "output_file_id", "error_file_id"):
            found[name] = getattr(self, name) or found[name]
        now = time.time() if state.status in FINAL else 0.0
        kept = {name: getattr(self, name) for name in ("file_id", *_OF_THE_REQUESTS)}
        # A clock that was ahead and is set back would keep the batch waiting for as long.
        ended_at = min(self.ended_at or now, now or self.ended_at)
        return BatchPart(**kept, **found, ended_at=ended_at, looked_at=now)
