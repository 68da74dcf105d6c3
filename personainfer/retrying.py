"""The retry policy of every call to a model or a provider: which errors are retried, and after how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tenacity

from .exceptions import ModelError, RateLimitError, ReplyError, TransportError

_LONGEST_PAUSE = 60.0  # seconds; an endpoint that asks for more is tried again after this

_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=30.0)


def attempts(
    most: int, *, before_retry: Callable[[tenacity.RetryCallState], None] | None = None
) -> tenacity.AsyncRetrying:
    """Retry a coroutine up to `most` times, as long as its error is retryable.

    `before_retry` is called after each attempt that will be repeated.
    """
    return tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(most),
        wait=_pause,
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=before_retry,
        reraise=True,
    )


def until_deadline(seconds: float) -> tenacity.Retrying:
    """Retry a function for this many seconds, as long as connections break or the provider is busy.

    A reply that cannot be read is not retried: the provider may have done the step and charged for it.
    """
    return tenacity.Retrying(
        stop=tenacity.stop_before_delay(seconds),
        wait=_pause,
        retry=tenacity.retry_if_exception_type((TransportError, RateLimitError)),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, ModelError) and error.retryable and not error.given_up


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds: 0 after a bad reply; else random below 0.5, 1, … 30, but at least what the endpoint asks."""
    error: Any = state.outcome.exception() if state.outcome else None
    if isinstance(error, ReplyError):
        return 0.0
    asked = min(getattr(error, "retry_after", None) or 0.0, _LONGEST_PAUSE)
    return max(asked, _backoff(state))
