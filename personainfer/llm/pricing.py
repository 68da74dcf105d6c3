"""What a token costs: litellm's bundled price list, read as a file, or the user's own figures."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from .rate_limits import Price

__all__ = ["find_batch_price", "find_price"]

_LIST = "model_prices_and_context_window_backup.json"
_MILLION = 1_000_000


def find_price(model: str, prices: tuple[float, float] | None) -> Price | None:
    """USD a token: the user's (prompt, completion) a million tokens, else the list's, else None."""
    if prices is not None:
        prompt, completion = prices
        return Price(float(prompt) / _MILLION, float(completion) / _MILLION)
    return _from_list(model, "")


def find_batch_price(model: str, prices: tuple[float, float] | None) -> Price | None:
    """USD a token in a batch: the list's own where it has one, else half of `find_price`."""
    listed = _from_list(model, "_batches") if prices is None else None
    single = find_price(model, prices)
    return listed or (single and Price(single.prompt / 2, single.completion / 2))


def _from_list(model: str, ending: str) -> Price | None:
    listed = _listed()
    model = model.removeprefix("litellm/")
    entry = listed.get(model) or listed.get(model.split("/", 1)[-1]) or {}
    prompt = entry.get(f"input_cost_per_token{ending}")
    completion = entry.get(f"output_cost_per_token{ending}")
    if prompt is None or completion is None:
        return None
    return Price(float(prompt), float(completion))


@cache
def _listed() -> dict[str, Any]:
    """The list that ships with litellm. Importing litellm for it would take seconds."""
    spec = importlib.util.find_spec("litellm")
    path = Path(spec.origin).with_name(_LIST) if spec and spec.origin else None
    if path is None or not path.is_file():
        return {}
    prices: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return prices
