"""Inputs and replies that nobody would write: each costs at most its own row."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.exceptions import InvalidArgumentError, PersonaInferError
from personainfer.personas.options import PersonaOptions
from personainfer.personas.prompts import chosen_is_first, pair_message
from personainfer.testing import FakeLLM, Fault

from .builders import examples, pairs
from .fuzz_values import broken, generated, long, rows, values, words

BATCH = 500  # inputs that one call gets

FIRST = {"prompt": "Why?", "chosen": "short", "rejected": "long"}


def digest(message: str) -> str:
    return hashlib.sha256(message.encode()).hexdigest()


def echo(body: dict[str, Any]) -> dict[str, Any]:
    """A persona that names the pair it was asked about."""
    about = digest(body["messages"][-1]["content"])
    person = {"evidence": about, "trait": "calm", "preference": "short answers"}
    return {"person_1": person, "person_2": person}


def is_own(row: pi.PersonaRow, given_row: Any) -> bool:
    """Whether a row of the table tells of the row of the input: of its own text where it has some."""
    if row.preference is None or not isinstance(given_row, dict):
        return True
    pair = row.preference
    said = [(given_row.get(name), getattr(pair, name)) for name in ("prompt", "chosen", "rejected")]
    return all(own == kept for own, kept in said if isinstance(own, str))


def shown(value: Any) -> str:
    """The beginning of a value, for the message of a failure."""
    try:
        return ascii(value)[:500]
    except ValueError:
        return "a value that Python does not print"


def infer_generated(inputs: list[Any]) -> int:
    """Infer in batches; returns how many rows got personas. Every row must be accounted for."""
    personas = 0
    with FakeLLM(reply=echo, keep=0) as server:
        model = pi.LLM("fake", api_base=server.api_base, max_attempts=1, cache=False)
        for start in range(0, len(inputs), BATCH):
            batch = [FIRST, *inputs[start : start + BATCH]]
            table = pi.infer_personas(batch, model)
            assert len(table) == len(batch)
            for number, (given_row, row) in enumerate(zip(batch, table, strict=True)):
                assert row.index == number
                assert is_own(row, given_row), shown(given_row)
                assert (row.error is None) == (row.chosen is not None), shown(given_row)
                if row.chosen is not None:
                    assert row.preference is not None
                    pair = row.preference
                    asked = pair_message(pair if chosen_is_first(pair) else pair.swapped).content
                    assert row.chosen.evidence == digest(asked), shown(given_row)
                    personas += 1
                else:
                    assert "FakeLLM could not" not in str(row.error)
                    assert len(str(row.error)) > 10
            assert_can_be_used(table)
        assert server.calls <= personas
    return personas


def assert_can_be_used(table: pi.PersonaTable) -> None:
    """Whatever happened, the table can be shown and its personas and errors are text."""
    str(table).encode("utf-8", "surrogatepass")
    table._repr_html_()
    for row in table:
        str(row.error or "").encode()
        for persona in (row.chosen, row.rejected):
            str(persona or "").encode()


@pytest.mark.heavy
def test_generated_inputs_cost_at_most_their_row() -> None:
    assert infer_generated(generated(rows, 500)) > 100


@pytest.mark.heavy
def test_ten_thousand_generated_inputs_cost_at_most_their_row() -> None:
    assert infer_generated(generated(rows, 10_000)) > 2_000


@pytest.mark.heavy
def test_fields_of_a_megabyte_pass_whole() -> None:
    large = generated(long, 4)
    inputs = [{"prompt": "Large?", "chosen": each, "rejected": "no"} for each in large]
    infer_generated([*inputs, {"prompt": large[0], "chosen": "a", "rejected": large[1] + "b"}])


GIVEN = {"api_base", "cache", "cache_dir"}  # what the test itself sets


@examples(150, database=None, derandomize=True)
@given(data=values | st.lists(rows, max_size=3), options=st.data())
def test_bad_arguments_are_errors_of_ours(data: Any, options: st.DataObject) -> None:
    names = st.sampled_from([*sorted(set(PersonaOptions.__annotations__) - GIVEN), "nonsense"])
    chosen: dict[str, Any] = options.draw(st.dictionaries(names, values, max_size=2))
    chosen = {"max_attempts": 1, "timeout": 5.0, **chosen, "cache": False}
    try:
        pi.estimate_cost(data, "fake", api_base="http://127.0.0.1:9/v1", **chosen)
    except (PersonaInferError, ValueError, TypeError) as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "given",
    [
        {"max_concurrency": 10**400},
        {"max_tokens": 10**400},
        {"rpm": 10**400},
        {"prices": (10**400, 1)},
        {"budget": 10**400, "prices": (1, 1)},
        {"seed": 10**400},
        {"max_tokens": 10**5000},  # Python writes no such number
        {"seed": 10**5000},
    ],
    ids=list,
)
def test_numbers_that_no_machine_holds_are_refused(given: dict[str, Any]) -> None:
    [name, *_] = given
    with pytest.raises(InvalidArgumentError, match=name):
        pi.LLM("fake", api_base="http://127.0.0.1:9/v1", **given)


# Replies


def completion(content: Any, **fields: Any) -> bytes:
    """The body of a completion, as ASCII, so that any text can be in it."""
    message = {"role": "assistant", "content": content}
    whole = {"model": "fake", "choices": [{"message": message, "finish_reason": "stop"}]}
    return json.dumps(whole | fields).encode()


PERSON = {"evidence": "e", "trait": "calm", "preference": "short answers"}
GOOD = {"person_1": PERSON, "person_2": PERSON}
HALF = GOOD | {"person_1": PERSON | {"trait": "calm \ud800"}}

STRANGE: dict[str, bytes | Fault] = {
    "half a surrogate pair": completion("\ud800"),
    "half a pair inside JSON, as itself": completion(json.dumps(HALF, ensure_ascii=False)),
    "half a pair inside JSON, escaped": completion(json.dumps(HALF)),
    "half a pair in the name of the model": completion(json.dumps(GOOD), model="\ud800"),
    "half a pair in an error": Fault("body", code=500, body=b'{"error": {"message": "\\ud800"}}'),
    "half a pair in a refusal": completion(None).replace(
        b'"content": null', b'"refusal": "\\udfff", "content": null'
    ),
    "content that is a list": completion(["calm"]),
    "content that is an object": completion({"type": "text"}),
    "content that is a number": completion(5),
    "content that is true": completion(True),
    "a body nested deeply": b"[" * 100_000,
    "an error nested deeply": Fault("body", code=500, body=b'{"error":' * 100_000),
    "content nested deeply": completion('{"person_1":' * 50_000),
    "infinitely many tokens": completion(json.dumps(GOOD), usage={"prompt_tokens": math.inf}),
    "no number of tokens": completion(json.dumps(GOOD), usage={"prompt_tokens": math.nan}),
    "a list of tokens": completion(json.dumps(GOOD), usage=[1]),
    "a number of 5,000 digits": b'{"choices": ' + b"9" * 5_000 + b"}",
    "10**400 tokens": completion(json.dumps(GOOD), usage={"prompt_tokens": 10**400}),
    "choices that are an object": b'{"choices": {"0": 1}}',
    "a message that is text": b'{"choices": [{"message": "calm"}]}',
    "null": b"null",
    "an empty list of choices": b'{"choices": []}',
    "tool calls that are text": b'{"choices": [{"message": {"tool_calls": "calm"}}]}',
    "tool calls without arguments": b'{"choices": [{"message": {"tool_calls": [{}]}}]}',
    "a byte order mark": b"\xef\xbb\xbf" + completion(json.dumps(GOOD)),
    "UTF-16": completion(json.dumps(GOOD)).decode().encode("utf-16"),
    "binary zeros": bytes(1_000),
}


def infer_among_good(strange: Callable[[int], Any], count: int) -> pi.PersonaTable:
    """Every other row gets a strange reply; the others must not feel it."""

    def reply(body: dict[str, Any]) -> Any:
        said = " ".join(turn["content"] for turn in body["messages"] if turn["role"] == "user")
        number = int(said.rsplit("Question ", 1)[1].split("?", 1)[0])
        return strange(number // 2) if number % 2 else GOOD

    with FakeLLM(reply=reply, keep=0) as server:
        table = pi.infer_personas(
            pairs(2 * count), "fake", api_base=server.api_base, max_attempts=2, timeout=20.0
        )
        assert server.calls <= 3 * count
        again = pi.infer_personas(
            pairs(2 * count), "fake", api_base=server.api_base, max_attempts=1
        )
    assert len(table) == 2 * count
    for number, row in enumerate(table):
        assert row.index == number
        assert (row.error is None) == (row.chosen is not None)
        if number % 2 == 0:
            assert row.chosen is not None
            assert row.chosen.trait == "calm"
    assert_can_be_used(table)
    table.to_arrow()
    assert [row.chosen for row in again] == [row.chosen for row in table]
    return table


@pytest.mark.heavy
def test_a_strange_reply_costs_at_most_its_row() -> None:
    replies = list(STRANGE.values())
    for row in infer_among_good(lambda number: replies[number], len(replies)).errors:
        assert len(str(row.error)) > 20


@pytest.mark.heavy
@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_reply_that_stays_costs_at_most_its_rows(name: str) -> None:
    for row in infer_among_good(lambda number: STRANGE[name], 3).errors:
        assert len(str(row.error)) > 20


leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | broken
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
people = st.fixed_dictionaries(
    {}, optional={"evidence": documents, "trait": documents, "preference": documents}
)
almost = st.fixed_dictionaries({"person_1": people, "person_2": people | documents})
contents = st.one_of(
    documents,
    words,
    broken,
    documents.map(json.dumps),
    almost.map(json.dumps),
    almost.map(lambda value: "```json\n" + json.dumps(value, ensure_ascii=False) + "\n```"),
)
messages = st.fixed_dictionaries(
    {}, optional={"content": contents, "refusal": documents, "tool_calls": documents}
)
choices = st.fixed_dictionaries({"message": messages | documents, "finish_reason": documents})
replies = st.one_of(
    contents.map(completion),
    st.fixed_dictionaries(
        {"choices": st.lists(choices | documents, max_size=2)},
        optional={"usage": documents, "model": documents},
    ).map(lambda value: json.dumps(value).encode()),
    documents.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=50),
    st.builds(
        lambda code, value: Fault("body", code=code, body=json.dumps({"error": value}).encode()),
        st.sampled_from([400, 408, 409, 413, 422]),
        documents,
    ),
)


@pytest.mark.heavy
def test_generated_replies_cost_at_most_their_row() -> None:
    made = generated(replies, 150)
    infer_among_good(lambda number: made[number], len(made))


@pytest.mark.heavy
def test_three_thousand_generated_replies_cost_at_most_their_row() -> None:
    made = generated(replies, 3_000)
    infer_among_good(lambda number: made[number], len(made))
