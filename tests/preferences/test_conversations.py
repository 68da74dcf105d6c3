"""Turns in every spelling are the same conversation."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from personainfer.data import read_preferences
from personainfer.records import Message

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ROLES = {
    "user": ("user", "human", "prompter", "User", "HUMAN"),
    "assistant": ("assistant", "gpt", "model", "bot", "Assistant"),
    "system": ("system", "System", "developer"),
}
KEYS = (("role", "content"), ("from", "value"), ("role", "text"), ("from", "content"))


@given(st.lists(TEXTS, min_size=1, max_size=5).filter(lambda t: len(t) % 2), st.data())
def test_spellings_of_turns(texts: list[str], data: st.DataObject) -> None:
    """Keys, names of roles, parts, wrapping and JSON text change nothing."""
    role_key, content_key = data.draw(st.sampled_from(KEYS))
    speakers = ["user", "assistant"] * 3

    def turn(speaker: str, text: str) -> dict[str, Any]:
        content: object = text
        if data.draw(st.booleans()):
            content = [{"type": "text", "text": text}]
        return {role_key: data.draw(st.sampled_from(ROLES[speaker])), content_key: content}

    start = [turn(speaker, text) for speaker, text in zip(speakers, texts, strict=False)]
    conversations = [[*start, turn("assistant", said)] for said in ("yes", "no")]
    wrap = data.draw(st.sampled_from(["list", "messages", "json"]))
    if wrap == "messages":
        row: dict[str, Any] = {
            name: {"messages": turns}
            for name, turns in zip(("chosen", "rejected"), conversations, strict=True)
        }
    else:
        written = [json.dumps(c) if wrap == "json" else c for c in conversations]
        row = dict(zip(("chosen", "rejected"), written, strict=True))
    (found,) = read_preferences([row])
    assert found.error is None
    pair = found.preference
    assert pair is not None
    assert (pair.chosen, pair.rejected) == ("yes", "no")
    plain = tuple(Message(role=r, content=t) for r, t in zip(speakers, texts, strict=False))
    assert pair.prompt == (texts[0] if len(texts) == 1 else plain)
