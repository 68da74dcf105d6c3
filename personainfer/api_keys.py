"""An API key on its way to another process: in a pickle as it is, in a fingerprint not at all.

Hugging Face's datasets hashes the function it maps with by pickling it. With the key in that hash, a
renewed key would discard all that was mapped before. What a key opens is not known here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["SealedKey", "opened", "sealed"]


class SealedKey:
    """A key within the options of a model that are about to be pickled."""

    __slots__ = ("key",)

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def __repr__(self) -> str:
        return "SealedKey(…)"


def sealed(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the key in a form that datasets does not hash."""
    if not options.get("api_key"):
        return dict(options)
    if "datasets" in sys.modules:
        _leave_out_of_fingerprints()
    return {**options, "api_key": SealedKey(options["api_key"])}


def opened(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their key again."""
    key = options.get("api_key")
    return {**options, "api_key": key.key} if isinstance(key, SealedKey) else dict(options)


def _leave_out_of_fingerprints() -> None:
    # The pickler that datasets hashes with, and nothing else does. Without this, or where a later
    # version has another one, all that is lost is the cache of maps when the key changes.
    with suppress(ImportError, AttributeError):
        from datasets.utils._dill import pklregister

        pklregister(SealedKey)(_save_without_key)


def _save_without_key(pickler: Any, key: SealedKey) -> None:
    pickler.save_reduce(SealedKey, (), obj=key)
