"""Keep an API key out of fingerprints while the options that hold it are pickled.

Hugging Face's datasets hashes the function it maps with by pickling it. With the key in that hash, a
renewed key would discard all that was mapped before. An ordinary pickle, for another process, keeps it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

__all__ = [
    "HiddenKey",
    "environment_key",
    "hide_key",
    "key_headers",
    "show_key",
    "shown_address",
]


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


def environment_key(endpoint: str) -> str:
    """The key of the environment for OpenAI and Azure themselves; other endpoints are not told it."""
    host = urlsplit(endpoint).hostname or ""
    if host == "api.openai.com":
        return os.environ.get("OPENAI_API_KEY", "")
    if host.endswith(".azure.com"):
        return os.environ.get("AZURE_OPENAI_API_KEY") or os.environ.get("AZURE_API_KEY", "")
    return ""


def key_headers(endpoint: str, key: str) -> dict[str, str]:
    """The header that carries the key: Azure has its own."""
    if not key:
        return {}
    return {"api-key": key} if _is_azure(endpoint) else {"Authorization": f"Bearer {key}"}


def _is_azure(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    return (
        "/openai/deployments/" in f"{parts.path}/"
        or "api-version=" in parts.query
        or host.endswith((".openai.azure.com", ".cognitiveservices.azure.com"))
    )


def shown_address(address: str) -> str:
    """An address without the password or token that it may hold."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    query = (
        re.sub(r"=[^&]*", "=…", parts.query) if "api-version" not in parts.query else parts.query
    )
    return urlunsplit(SplitResult(parts.scheme, host, parts.path, query, ""))
