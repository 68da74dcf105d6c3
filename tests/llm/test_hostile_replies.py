"""An endpoint that wishes its client ill: what it sends costs one row, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
import zlib
from typing import Any

import pytest

import personainfer as pi
from personainfer.exceptions import ModelError, ReplyError
from personainfer.llm.replies import plain_text
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import each_way, pairs

PACKED = 60  # MB, when unpacked


@pytest.mark.heavy
@each_way
@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15)])
def test_a_packed_reply_is_bounded_after_it_is_unpacked(encoding: str, wbits: int) -> None:
    compressor = zlib.compressobj(1, wbits=wbits)
    body = compressor.compress(b'{"choices": "')
    body += b"".join(compressor.compress(b" " * 10**6) for _ in range(PACKED)) + compressor.flush()
    bomb = Fault("body", headers={"Content-Encoding": encoding}, body=body)
    with FakeLLM(faults=[bomb]) as llm:
        tracemalloc.start()
        try:
            table = pi.infer_personas(
                pairs(2), "fake", api_base=llm.api_base, max_attempts=1, max_concurrency=1
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert "larger than" in str(table[0].error)
    assert table[1].error is None
    assert peak < PACKED * 10**6 / 2


@each_way
@pytest.mark.heavy
@pytest.mark.parametrize("words", ["model ", "too many tokens ", "violates "])
def test_a_refusal_of_megabytes_is_read_at_once(words: str) -> None:
    """Some rules look ahead from each character: over all of it they would take hours."""
    refusal = Fault.status(400, message=words * (3_000_000 // len(words)))
    with FakeLLM(refusal) as llm, pytest.raises(ModelError, match=words) as caught:
        pi.LLM("fake", api_base=llm.api_base, max_attempts=1).ask(
            [{"role": "user", "content": "?"}]
        )
    assert len(str(caught.value)) < 1000


MARKS = "</s>" * 50_000
HOSTILE = {
    "turns": "[INST]" * 50_000,
    "reasoning": "<think></think>" * 20_000 + "{}" * 2_000,
    "marks, then a word": f"{MARKS}x",
    "a word, then marks": f"x{MARKS}",
    "spaces beside a mark": "<" + " " * 300_000 + "x",
    "quotes": '\\"' * 150_000 + "\\",
    "quotes and braces": '"' * 200_000 + "{" * 2_000,
    "keys": '{"a": ' * 2_000 + " " * 300_000 + "x",
    "a number of many digits": '{"person_1": ' + "1" * 200_000,
    "commas": "{" + "," * 300_000 + "}",
    "dicts of Python": "{'a': " * 50_000,
}
READ = """
import json, sys
from pydantic import BaseModel
from personainfer.exceptions import ReplyError
from personainfer.llm.replies import read_reply
class Form(BaseModel):
    a: str
for name, text in json.load(sys.stdin).items():
    print(name, flush=True)
    for schema in (Form, None):
        try:
            read_reply(text, schema)
        except ReplyError:
            pass
"""


@pytest.mark.heavy
def test_a_reply_is_read_in_a_time_that_grows_with_its_length() -> None:
    """Where it grew with the square of the length, these would take from minutes to hours."""
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input=json.dumps(HOSTILE),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(HOSTILE)


@each_way
def test_a_number_of_many_digits_costs_its_row_alone() -> None:
    bad = HOSTILE["a number of many digits"]

    def reply(body: dict[str, Any]) -> str | None:
        return bad if "Question 0" in str(body["messages"][-1]) else None

    with FakeLLM(reply=reply) as llm:
        table = pi.infer_personas(pairs(2), "fake", api_base=llm.api_base, max_attempts=1)
    assert [row.error is None for row in table] == [False, True]


@pytest.mark.parametrize("text", ["Thanks </s>", "</s>", "Thanks\n <|im_end|> </s>\n", "a </s> b"])
def test_marks_at_the_end_are_no_words_of_a_text(text: str) -> None:
    words = text.replace("</s>", "").replace("<|im_end|>", "").strip()
    if not words:
        with pytest.raises(ReplyError, match="empty"):
            plain_text(text)
    else:
        assert plain_text(text) == (text if text.endswith("b") else words)


@each_way
@pytest.mark.parametrize("text", ["one word after the other " * 2000, "一个接一个的词语" * 7500])
@pytest.mark.parametrize(("counted", "has_error"), [(4096, True), (10_000, False), (900, False)])
def test_a_prompt_that_the_endpoint_has_cut_is_an_error(
    counted: int, has_error: bool, text: str
) -> None:
    """As Ollama does at its num_ctx: the persona would be that of half a pair."""
    texts = [text, "short"]
    with FakeLLM(lambda _: Reply("yes", prompt_tokens=counted)) as server:
        llm = pi.LLM("fake", api_base=server.api_base, cache=False)
        cut, whole = llm.ask_many([([{"role": "user", "content": text}],) for text in texts])
        assert server.calls == 2
    assert ("it cuts prompts" in str(cut.error)) is has_error
    assert whole.error is None
    assert llm.usage.prompt_tokens == 2 * counted  # it is paid
