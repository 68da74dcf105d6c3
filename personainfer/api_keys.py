"""Keep an API key out of fingerprints while the options that hold it are pickled.

Hugging Face's datasets hashes the function it maps with by pickling it. With the key in that hash, a
renewed key would discard all that was mapped before. An ordinary pickle, for another process, keeps it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["HiddenKey", "hide_key", "show_key"]


class HiddenKey:
    """A key within the options of a model that are about to be pickled."""

    __slots__ = ("key",)

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def __repr__(self) -> str:
        return "HiddenKey(…)"


def hide_key(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the key in a form that datasets does not hash."""
    if not options.get("api_key"):
        return dict(options)
    if "datasets" in sys.modules:
        _leave_out_of_fingerprints()
    return {**options, "api_key": HiddenKey(options["api_key"])}


def show_key(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their key again."""
    key = options.get("api_key")
    return {**options, "api_key": key.key} if isinstance(key, HiddenKey) else dict(options)


def _leave_out_of_fingerprints() -> None:
    # The pickler that datasets hashes with, and nothing else does. Without this, or where a later
    # version has another one, all that is lost is the cache of maps when the key changes.
    with suppress(ImportError, AttributeError):
        from datasets.utils._dill import pklregister

        pklregister(HiddenKey)(_save_without_key)


def _save_without_key(pickler: Any, key: HiddenKey) -> None:
    pickler.save_reduce(HiddenKey, (), obj=key)
