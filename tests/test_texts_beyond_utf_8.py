"""Half of a surrogate pair, which no request can hold, in conversations, pairs and ids that are arguments."""

from __future__ import annotations

from typing import Any

import pytest

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError
from personainfer.records import Message
from personainfer.testing import FakeLLM

from .builders import BRIEF
from .scoring_server import ScoringServer

HALF = "x\ud83d"
SPOILT = [
    Message(role="user", content=HALF),
    Message(role=HALF, content="x"),
    Message(role="user", content="x", extra={"name": HALF}),
    Message(role="user", content="x", extra={"tool_calls": [{"a": HALF}]}),
]


@pytest.mark.parametrize("turn", SPOILT, ids=["content", "role", "name", "call"])
def test_a_turn_that_no_request_can_hold_is_never_sent(turn: Message, llm: FakeLLM) -> None:
    pair = pi.Preference(prompt=(turn,), chosen="a", rejected="b")
    with ScoringServer("vllm") as server:
        model = pi.Likelihood("tiny", api_base=server.api_base)
        with pytest.raises(InvalidArgumentError, match="row 0 holds half of a surrogate pair"):
            model.log_likelihood([[turn]], [None], ["r"])
        with pytest.raises(InvalidArgumentError, match="half of a surrogate pair"):
            model.explains([pair], [BRIEF])
        assert not server.asked
    judge = pi.Verifier("fake", api_base=llm.api_base)
    with pytest.raises(InvalidArgumentError, match=r"preferences\[0\]: prompt holds .*half of a"):
        judge.explains([pair], [BRIEF])
    made = pi.tailor_responses([[turn], "q"], "fake", personas="none", api_base=llm.api_base)
    assert list(made.errors) == ["0"]
    assert len(llm.requests) == 1


def test_ids_that_no_request_or_frame_can_hold_are_refused_before_any_call(llm: FakeLLM) -> None:
    given: list[Any] = [{HALF: "q"}, [{"id": HALF, "prompt": "q"}]]
    for prompts in given:
        with pytest.raises(
            InvalidArgumentError, match=r"prompts=: an id holds half of a surrogate"
        ):
            pi.tailor_responses(prompts, "fake", personas="none", api_base=llm.api_base)
    assert not llm.requests


def test_every_user_has_a_tag() -> None:
    said = [pi.persona_prefix("tag").messages(user, "q")[0].content for user in (HALF, "x")]
    assert len(set(said)) == 2
