"""Odd answers of servers that score or embed: an error of this library, and no score that is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.connections import attempts
from personainfer.exceptions import ModelError, ReplyError, TransportError
from personainfer.scoring.context import Cuts
from personainfer.tailoring.embeddings import embed, endpoint_embedder

from ..builders import AnyServer, examples
from ..fuzz_values import odd_in
from ..scoring_server import ScoringServer

Kind = Literal["vllm", "llama.cpp"]
PATHS = {
    "vllm": ("/tokenize", "/v1/completions"),
    "llama.cpp": ("/tokenize", "/apply-template", "/completion"),
}


EMBEDDINGS = {"data": [{"index": 0, "embedding": [1.0, 2.0]}, {"index": 1, "embedding": [0, 1]}]}


def score(kind: Kind, path: str, change: Callable[[Any], Any]) -> float:
    """The score of "ab" by a server whose answers to `path` are changed, but for the first one."""
    with ScoringServer(kind) as server:
        scorer = pi.Likelihood("m", api_base=server.api_base)
        scorer.log_likelihood(["How?"], [None], ["b"])
        answer = server.routes[path]
        server.routes[path] = lambda body: change(answer(body))
        return float(scorer.log_likelihood(["How?"], [None], ["ab"])[0])


@pytest.mark.heavy
@pytest.mark.parametrize("kind", PATHS)
@examples(12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_odd_answer_of_a_scoring_server_is_an_error_or_a_score(
    kind: Kind, data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(PATHS[kind]))
    with suppress(ModelError):
        assert score(kind, path, lambda answer: data.draw(odd_in(answer))) <= 0


@pytest.mark.heavy
@examples(100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=odd_in(EMBEDDINGS))
def test_an_odd_answer_of_an_embedding_server_is_an_error_or_vectors(body: Any) -> None:
    with AnyServer(body=json.dumps(body).encode()) as server, suppress(ModelError):
        embedder = endpoint_embedder("m", server.address, None, timeout=5, max_attempts=1)
        assert np.isfinite(embed(embedder, ["one", "two"])).all()


@pytest.mark.heavy
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5, 10**400, "x", None])
def test_what_is_no_log_probability_is_an_error(value: Any) -> None:
    """NaN would read as a row that is too long, and more than 0 as one that is likelier than certain."""

    def change(answer: Any) -> Any:
        records = answer["choices"][0]["prompt_logprobs"]
        for entry in records[-1].values():
            entry["logprob"] = value
        return answer

    with pytest.raises(ReplyError, match="log-probabilities"):
        score("vllm", "/v1/completions", change)


@pytest.mark.parametrize("kind", PATHS)
def test_a_text_without_tokens_is_an_error_and_no_score_of_0(kind: Kind) -> None:
    with pytest.raises(ReplyError, match="no token"):
        score(kind, "/tokenize", lambda answer: {**answer, "tokens": []})


def test_whatever_a_scorer_raises_is_an_error_of_this_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("whatever")

    with ScoringServer("vllm") as server:
        scorer = pi.Likelihood("m", api_base=server.api_base)
        monkeypatch.setattr("personainfer.scoring.vllm.read_tokens", fail)
        with pytest.raises(ReplyError, match=r"cannot be read \(ZeroDivisionError\)"):
            scorer.log_likelihood(["How?"], [None], ["ab"])


# A server that fails at some texts


def is_poisoned(body: dict[str, Any]) -> bool:
    """Whether a request holds the byte 7, as text, as a token or in a grammar."""
    return bool(re.search(r"\\u0007|[\[ ]7[\],]", json.dumps(body)))


@pytest.fixture
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personainfer.scoring.interfaces.attempts", lambda most: attempts(1))


@pytest.mark.heavy
@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("status", [400, 403, 500])
@pytest.mark.parametrize("where", ["prompt", "response", "response, where it is scored"])
def test_a_text_at_which_the_server_fails_costs_its_own_row(
    kind: Kind, status: int, where: str
) -> None:
    prompts, responses = [f"How {n}?" for n in range(9)], [f"So {n}." for n in range(9)]
    (prompts if where == "prompt" else responses)[7] += "\a"
    with ScoringServer(kind) as server:
        model = pi.Likelihood("m", api_base=server.api_base, batch_size=2)
        wanted = model.log_likelihood(prompts, [None] * 9, responses)
        server.refuses = lambda path, body: (
            is_poisoned(body) and ("completion" in path or "scored" not in where)
        )
        server.refusal = (status, {"error": {"message": "blocked"}})
        with pytest.warns(UserWarning, match="1 text could not be scored.*blocked"):
            found = model.log_likelihood(prompts, [None] * 9, responses)
        assert model.cuts == Cuts(failed=1)
        with pytest.raises(ModelError, match="blocked"):
            model.log_likelihood(prompts[7:8], [None], responses[7:8])
    assert np.flatnonzero(np.isnan(found)).tolist() == [7]
    np.testing.assert_allclose(np.delete(found, 7), np.delete(wanted, 7))


@pytest.mark.heavy
@pytest.mark.usefixtures("one_attempt")
def test_a_server_that_goes_away_keeps_what_it_scored_and_is_asked_no_more() -> None:
    texts = [f"So {n}." for n in range(200)]
    with ScoringServer("vllm") as server:
        model = pi.Likelihood("m", api_base=server.api_base, batch_size=1)
        model.log_likelihood(["How?"], [None], ["So."])
        server.refusal = (500, {})
        server.refuses = lambda path, body: len(server.bodies("/v1/completions")) > 11
        with pytest.warns(UserWarning, match="190 texts could not be scored"):
            found = model.log_likelihood(["How?"] * 200, [None] * 200, texts)
        assert np.isfinite(found).sum() == 10
        assert len(server.bodies("/v1/completions")) < 40
        with pytest.raises(TransportError):
            model.log_likelihood(["How?"] * 200, [None] * 200, texts)
        assert len(server.bodies("/v1/completions")) < 50


@pytest.mark.usefixtures("one_attempt")
@pytest.mark.filterwarnings("ignore:.*could not be scored:UserWarning")
def test_a_candidate_at_which_the_server_fails_has_no_score_and_costs_no_other() -> None:
    pairs = [pi.Preference(prompt=f"How {n}?", chosen="short", rejected="tales") for n in "ab"]
    personas = ["The user is busy.", "The user is calm.", "The user likes short words."]
    with ScoringServer("llama.cpp") as server:
        model = pi.Likelihood("m", api_base=server.api_base, batch_size=2)
        wanted = model.explains_candidates(pairs, [personas[:2], personas])
        server.refuses = lambda path, body: is_poisoned(body) and path == "/completion"
        server.refusal = (400, {})
        bad = [*personas[:2], "The user is \a."]
        found = model.explains_candidates(pairs, [bad, personas])
        whole = model.explains([*pairs, pairs[0]], [*personas[:2], bad[2]])
    np.testing.assert_allclose(found[0], [*wanted[0], np.nan])
    np.testing.assert_allclose(found[1], wanted[1])
    assert np.isnan(whole).tolist() == [False, False, True]
