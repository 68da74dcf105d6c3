"""The options of a model decide its requests alike in each function, given by name or as an `LLM`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

import personainfer as pi
from personainfer.simulation.user_responses import respond_to_users
from personainfer.testing import FakeLLM

from .builders import pairs, table

PAIRS = pairs(2)
ASKED = [{**pair, "user_id": "u"} for pair in PAIRS]
TEXTS = {"u": "The user is busy and prefers short answers."}
PREFIXES = {"persona": pi.persona_prefix("persona", personas=TEXTS)}
WAYS: dict[str, Callable[..., object]] = {
    "infer": lambda model, **more: pi.infer_personas(PAIRS, model, **more),
    "iter": lambda model, **more: list(pi.iter_personas(PAIRS, model, **more)),
    "add": lambda model, **more: pi.AddPersonas(model, **more)(list(PAIRS)),
    "verify": lambda model, **more: pi.verify_personas(table(2), model, **more),
    # The rows of `table` have the same personas, and equal requests may share a reply.
    "compare personas": lambda model, **more: pi.compare_personas(table(1), model, **more),
    "rate": lambda model, **more: pi.rate_personas(table(2), model, **more),
    "compare responses": lambda model, **more: pi.compare_responses(
        ["q"], ["a"], ["b"], model, **more
    ),
    "tailor": lambda model, **more: pi.tailor_responses(table(2), model, **more),
    "users": lambda model, **more: pi.infer_user_personas(ASKED, model, **more),
    "prefixes": lambda model, **more: pi.evaluate_prefixes(PREFIXES, ASKED, model, **more),
    "respond": lambda model, **more: respond_to_users(PREFIXES, ["u"], ["q"], model, **more),
}
FIELDS = {"temperature": 0.7, "max_tokens": 123, "seed": 11, "reasoning_effort": "low"}


@pytest.mark.parametrize("way", WAYS)
def test_options_by_name_and_of_a_model_decide_the_same_requests(way: str) -> None:
    options: dict[str, Any] = {**FIELDS, "extra_body": {"top_k": 5}, "cache": False}
    options |= {"api_key": "sk-mine", "extra_headers": {"X-Team": "a"}, "max_concurrency": 1}
    told = []
    for kind in ("name", "model", "pickled"):
        with FakeLLM(api_key="sk-mine") as server:
            options["api_base"] = server.api_base
            if kind == "name":
                WAYS[way]("fake", **options)
            else:
                model = pi.LLM("fake", **options)
                WAYS[way](pickle.loads(pickle.dumps(model)) if kind == "pickled" else model)
        assert server.in_flight_peak == 1
        assert all({**FIELDS, "top_k": 5}.items() <= body.items() for body in server.requests)
        assert {headers["X-Team"] for headers in server.headers} == {"a"}
        told.append(server.requests)
    assert told[0] == told[1] == told[2] != []
