"""Odd answers of servers that score or embed: an error of this library, and no score that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.exceptions import ModelError, ReplyError
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


@examples(100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=odd_in(EMBEDDINGS))
def test_an_odd_answer_of_an_embedding_server_is_an_error_or_vectors(body: Any) -> None:
    with AnyServer(body=json.dumps(body).encode()) as server, suppress(ModelError):
        embedder = endpoint_embedder("m", server.address, None, timeout=5, max_attempts=1)
        assert np.isfinite(embed(embedder, ["one", "two"])).all()


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
