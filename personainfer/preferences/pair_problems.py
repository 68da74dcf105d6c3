"""Tell why a preference cannot be used: an empty text, equal responses, text that is not UTF-8."""

from __future__ import annotations

from typing import Final

from ..records import Preference, Prompt
from .cells import LEAVE_OUT, surrogate_problem

SAME_TEXT: Final = f"chosen and rejected are the same text, so there is no preference. {LEAVE_OUT}"


def pair_problem(preference: Preference) -> str | None:
    """Why the texts of a preference cannot be used, and what to do; None if they can be used."""
    prompt = preference.prompt
    asked = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
    if not isinstance(prompt, str) and prompt and prompt[-1].role == "system":
        return f"the prompt ends with a system message: there is nothing to answer. {LEAVE_OUT}"
    if not asked.strip():
        return f"prompt is empty: there is nothing to answer. {LEAVE_OUT}"
    chosen, rejected = preference.chosen.strip(), preference.rejected.strip()
    if not chosen or not rejected:
        return f"{'rejected' if chosen else 'chosen'} is empty. {LEAVE_OUT}"
    if chosen == rejected:
        return SAME_TEXT
    return encoding_problem(preference)


def encoding_problem(preference: Preference) -> str | None:
    """The problem of a text that cannot be written as UTF-8; None if there is none."""
    for name in ("prompt", "chosen", "rejected", "id", "user"):
        if not _encodable(getattr(preference, name)):
            return surrogate_problem(name)
    return None


def _encodable(value: Prompt | None) -> bool:
    if value is None or (type(value) is str and value.isascii()):
        return True
    if isinstance(value, tuple):
        return all(_encodable(each.role) and _encodable(each.content) for each in value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
