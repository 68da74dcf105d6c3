"""Every reader of bytes from outside, given valid bytes that were spoilt: errors of ours, in bounded memory.

A reader gets inputs of three kinds: bytes with some changed, cut or repeated; JSON with a value replaced by
an odd one; and values that hypothesis makes.
"""

from __future__ import annotations

import gzip
import json
import random
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pandas as pd
import pytest

import personainfer as pi
from personainfer.api_keys import Secrets
from personainfer.batch.job_folder import PersonaBatch
from personainfer.batch.lines import read_answers, read_line
from personainfer.batch.trust import llm_of
from personainfer.connections import Answer
from personainfer.data.containers import read_preferences
from personainfer.evaluation.human import read_rating_sheet, write_rating_sheet
from personainfer.exceptions import PersonaInferError
from personainfer.llm.client import LLM
from personainfer.llm.dialect import Dialect
from personainfer.llm.replies import read_reply
from personainfer.llm.requests import Request, cached_reply
from personainfer.llm.transports import EndpointTransport
from personainfer.local.cache import ReplyCache
from personainfer.local.weights import find_weights, has_chat_template
from personainfer.records import Completion, Message
from personainfer.testing import Reply
from personainfer.users.records import UserPersonas, UserRow

from .builders import table
from .fuzz_values import generated, values

MOST_SECONDS = 5.0  # of this process, for one input
MOST_BYTES = 300_000_000  # that one reader's inputs may add to the memory of the process

ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 2**63, 10**30, float("nan"), float("inf"), "", " ", "\0", "\x1b[31m"),
    *(
        "\ud800",
        "9" * 30,
        [],
        {},
        [[]],
        [None],
        {"": None},
        [[[[[[]]]]]],
        {"role": 1},
        [{}],
        "null",
    ),
]
TOKENS = [
    *(b"\0", b"\xff", b"\xfe", b"\n", b"\r", b'"', b"{", b"}", b"[", b"]", b",", b":", b"null"),
    *(b"1e999", b"-", b"NaN", b"\\ud800", b"\xe2\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"),
    *(b"[" * 3000, b"data: ", b"'", b"\x00\x00\x00\x80"),
]


def spoilt(seed: bytes, draw: random.Random) -> bytes:
    """Valid bytes with one to four changes."""
    content = bytearray(seed)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(content) + 1)
        length = draw.choice((1, 1, 2, 4, 16, 100))
        kind = draw.randrange(6)
        if kind == 0 and place < len(content):
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = draw.choice(TOKENS)
        elif kind == 3:
            content[place : place + length] = draw.randbytes(length)
        elif kind == 4:
            content[place:place] = content[place : place + length] * draw.choice((1, 2, 50))
        else:
            del content[place:]
    return bytes(content)


def odd_json(value: Any, draw: random.Random) -> Any:
    """A JSON value, one part of which is replaced, removed or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(list(value))
        rest = {key: inner for key, inner in value.items() if key != name}
        return rest if draw.random() < 0.1 else {**value, name: odd_json(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        return [*value[:place], odd_json(value[place], draw), *value[place + 1 :]]
    return draw.choice(ODD)


def dumped(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


def odd_lines(seed: bytes, draw: random.Random) -> bytes:
    """JSON, or lines of it, with an odd value; what is no JSON is spoilt as bytes."""
    try:
        lines = [json.loads(line) for line in seed.splitlines()]
    except ValueError:
        return spoilt(seed, draw)
    place = draw.randrange(len(lines))
    return b"\n".join(dumped(odd_json(v, draw) if n == place else v) for n, v in enumerate(lines))


@dataclass(frozen=True)
class Reader:
    """What reads the bytes of one kind, and valid ones. `name` is that of the file they are put into."""

    name: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path], object]
    count: int = (
        10_000  # fewer where each one starts and salvages a database, which flushes the disk
    )


# Files of preference data

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "id": 1, "extra": {"a": [1, None]}},
    {"prompt": TURNS[:1], "chosen": TURNS, "rejected": [TURNS[0], {**TURNS[1], "content": "No"}]},
    {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1.0, 2.5, 0]},
    {"question": "Q", "answer_a": "a", "answer_b": "b", "label": "first"},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
]


def preference_rows(path: Path) -> object:
    errors = []
    ways: list[dict[str, Any]] = [{}, {"labels": {1: "first", "first": "first"}}, {"pairs": "all"}]
    for options in ways:
        try:
            return [str(row) for row in read_preferences(path, **options)]
        except PersonaInferError as error:
            errors.append(error)
    raise errors[0]


def as_lines(folder: Path) -> list[bytes]:
    return [dumped(row) + b"\n" + dumped(row) for row in ROWS]


def as_list(folder: Path) -> list[bytes]:
    return [dumped([row, row]) for row in ROWS]


def as_csv(folder: Path) -> list[bytes]:
    return [pd.DataFrame([row, row]).to_csv(index=False).encode() for row in ROWS]


def as_packed(folder: Path) -> list[bytes]:
    return [gzip.compress(lines) for lines in as_lines(folder)]


def as_parquet(folder: Path) -> list[bytes]:
    return [pd.DataFrame([row, row]).to_parquet() for row in ROWS]


# Cells of frames


def cells(path: Path) -> object:
    """The bytes are the cells of two columns of a frame, as JSON or as text."""
    content = path.read_bytes()
    try:
        prompt, chosen, rejected = json.loads(content)
    except (ValueError, TypeError, RecursionError):
        chosen = prompt = content.decode(errors="surrogateescape")
        rejected = dumped(TURNS).decode()
    columns = {"prompt": [prompt] * 2, "chosen": [chosen] * 2, "rejected": [rejected] * 2}
    frame = pd.DataFrame({name: pd.Series(cell, dtype=object) for name, cell in columns.items()})
    return [str(row) for row in read_preferences(frame)]


def as_cells(folder: Path) -> list[bytes]:
    told = dumped(TURNS).decode()
    return [dumped(["Hi", TURNS, TURNS]), dumped(["Hi", told, told]), dumped([TURNS, "a", "b"])]


# Saved tables, users, sheets


def saved_table(path: Path) -> object:
    found = pi.PersonaTable.load(path)
    str(found)
    found._repr_html_()
    found.to_pandas(details=True)
    return [(row.error, row.flags, row.unexplained, str(row.chosen)) for row in found]


def as_table(folder: Path) -> list[bytes]:
    table(3).save(folder / "seed.parquet")
    return [(folder / "seed.parquet").read_bytes()]


def as_users(folder: Path) -> list[bytes]:
    UserPersonas((UserRow(user="a", persona=None), UserRow(user="b", error="e"))).save(
        folder / "u.jsonl"
    )
    return [(folder / "u.jsonl").read_bytes()]


def ratings(path: Path) -> object:
    files = {"key": path.parent / "key.seed", "csv": path.parent / "seed.csv"}
    if path.name == "key.json":
        return read_rating_sheet(path, [files["csv"]], table=table(3))
    return read_rating_sheet(files["key"], [path], table=table(3))


def as_sheet(folder: Path) -> tuple[bytes, bytes]:
    sheet = write_rating_sheet(table(3), folder / "sheet")
    rows = sheet.csv.read_text().splitlines()
    filled = "\n".join([rows[0], *(f"{row.rstrip(',')},1" for row in rows[1:])])
    (folder / "seed.csv").write_text(filled)
    (folder / "key.seed").write_bytes(sheet.key.read_bytes())
    return filled.encode(), sheet.key.read_bytes()


# Replies


class _Given(EndpointTransport):
    """An endpoint that answers every request with the same bytes."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__("fake", "http://127.0.0.1:9/v1", "key")
        self._given = status, content

    async def _post(
        self, path: str, body: bytes | None, timeout: float, is_sent: Any = object
    ) -> Answer:
        status, content = self._given
        return Answer(status, {"Retry-After": content[:20].decode("latin-1")}, content)


def answered(status: int) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        made = _Given(status, path.read_bytes())._send(b"{}", 1.0, Dialect("fake"), Mock())
        try:
            made.send(None)
        except StopIteration as found:
            completion: Completion = found.value
            return read_reply(completion.text, PERSONAS)
        raise AssertionError("it waits for something")

    return read


def _schema() -> Any:
    from personainfer.personas.prompts import PersonaPrompt

    return PersonaPrompt("joint", "none").schema


PERSONAS = _schema()
PERSON = {"evidence": "e", "trait": "calm", "preference": "short answers"}
SAID = {"person_1": PERSON, "person_2": PERSON}
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Q"}], "model": "fake"}


def as_completion(folder: Path) -> list[bytes]:
    usual = json.loads(Reply(SAID).render(BODY))
    tool = json.loads(Reply(SAID).render({**BODY, "tools": [{"function": {"name": "f"}}]}))
    parts = json.loads(Reply("x").render(BODY))
    parts["choices"][0]["message"]["content"] = [{"type": "text", "text": dumped(SAID).decode()}]
    parts["choices"][0]["message"]["reasoning_details"] = [{"text": "hm"}]
    halves = (dumped(SAID).decode()[:9], dumped(SAID).decode()[9:])
    deltas = [{"choices": [{"delta": {"content": half}}]} for half in halves]
    stream = b"".join(b"data: " + dumped(delta) + b"\n\n" for delta in deltas) + b"data: [DONE]\n"
    calls = {
        "choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{}"}}]}}],
        "usage": {},
    }
    return [
        *map(dumped, (usual, tool, parts)),
        stream,
        b"data: " + dumped(calls) + b"\ndata: [DONE]",
    ]


def as_error(folder: Path) -> list[bytes]:
    openai = {"error": {"message": "Too many requests", "code": "x", "metadata": {"raw": "r"}}}
    gemini = [{"error": {"message": "m", "details": [{"retryDelay": "3s"}], "status": "S"}}]
    return [dumped(openai), dumped(gemini), dumped({"detail": [{"msg": "m"}]}), b"<html>no</html>"]


def reply_text(path: Path) -> object:
    return read_reply(path.read_bytes().decode(errors="replace"), PERSONAS)


def as_reply_text(folder: Path) -> list[bytes]:
    text = dumped(SAID)
    return [text, b"<think>hm</think>```json\n" + text + b"\n```", str(SAID).encode(), text[:-1]]


# Batches


def batch_handle(path: Path) -> object:
    batch = PersonaBatch.load(path.parent)
    str(batch)
    batch.plan()
    return llm_of(
        batch,
        {
            "model": batch.model,
            "api_key": "key",
            "api_base": "http://127.0.0.1:9/v1",
            "cache_dir": path.parent / "cache",
        },
        calls=True,
    )


def batch_rows(path: Path) -> object:
    return list(PersonaBatch.load(path.parent).source())


def batch_answers(path: Path) -> object:
    with path.open("rb") as file:
        return list(read_answers(file, Secrets()))


def batch_cached(path: Path) -> object:
    return list(PersonaBatch.load(path.parent).cached_replies())


def as_handle(folder: Path) -> list[bytes]:
    batch: dict[str, Any] = {
        "made_by": "x",
        "model": "fake",
        "llm_options": {"api_base": "http://a/v1"},
    }
    batch |= {"sides": ["chosen"], "protocol": "joint", "exemplars": "none", "candidates": 1}
    part: dict[str, Any] = {"requests": 1, "file_id": "f", "batch_id": "b", "status": "completed"}
    batch |= {"on_error": "keep", "rows": 1, "requests": 1, "cached": 0, "digest": "d"}
    content = dumped({**batch, "parts": [{**part, "output_file_id": "o"}]})
    (folder / "batch.json").write_bytes(content)
    return [content]


def as_answers(folder: Path) -> list[bytes]:
    as_handle(folder)
    body = json.loads(Reply(SAID).render(BODY))
    good = {"custom_id": "ab" * 32, "response": {"status_code": 200, "body": body}}
    bad = {"custom_id": "ab" * 32, "response": {"status_code": 400, "body": {"error": {"code": 1}}}}
    expired = {"custom_id": "ab" * 32, "response": None, "error": {"code": "x", "message": "m"}}
    assert read_line(dumped(good), Secrets()) is not None
    return [dumped(good), dumped(bad), dumped(expired)]


def as_cached(folder: Path) -> list[bytes]:
    as_handle(folder)
    return [dumped(["ab" * 32, '{"text": "x"}'])]


def as_batch_rows(folder: Path) -> list[bytes]:
    as_handle(folder)
    table(3).save(folder / "rows.parquet")
    return [(folder / "rows.parquet").read_bytes()]


# The cache, and weights


@cache
def a_job() -> Any:
    llm = LLM("fake", api_base="http://127.0.0.1:9/v1", cache=False)
    return llm.job(Request([Message(role="user", content="Q")], PERSONAS))


@cache
def opened_cache(folder: Path) -> ReplyCache:
    return ReplyCache(folder)


def cache_row(path: Path) -> object:
    """The bytes are the value of a row, as text where they are UTF-8."""
    content, stored = path.read_bytes(), cast("str | bytes", "")
    try:
        stored = content.decode()
    except UnicodeDecodeError:
        stored = content
    found, job = opened_cache(path.parent / "cache"), a_job()
    with closing(sqlite3.connect(found.directory / "cache.db", isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("DELETE FROM Cache")
        database.execute(
            "INSERT INTO Cache (key, raw, store_time, tag, mode, value) VALUES (?, 1, 0, 'm', 1, ?)",
            (job.key, stored),
        )
    return cached_reply(job, found.get_many([job.key]).get(job.key))


def as_cache_row(folder: Path) -> list[bytes]:
    text = dumped(SAID).decode()
    near = [["a", {"a": -0.5, "b": -2.0}]]
    return [dumped({"text": text}), dumped({"text": text, "prompt_tokens": 1, "logprobs": near})]


def cache_file(path: Path) -> object:
    """The bytes are the database."""
    for name in list(path.parent.iterdir()):
        if name.name.startswith("cache.db") and name != path:
            name.unlink()
    try:
        opened = ReplyCache(path.parent)
        opened.get_many([b"k" * 32])
        opened.set_many([(b"l" * 32, "{}")], model="m")
        opened.info()
        opened.close()
    finally:
        with suppress(PersonaInferError):  # moved aside: the next start is a new cache
            ReplyCache(path.parent).close()
    return None


def as_cache_file(folder: Path) -> list[bytes]:
    made = ReplyCache(folder / "made")
    made.set_many([(bytes([n]) * 32, '{"text": "x"}') for n in range(30)], model="m")
    made.close()
    return [(folder / "made" / "cache.db").read_bytes()]


def weights_file(path: Path) -> object:
    found = find_weights(f"local:{path}", engine=False)
    return has_chat_template(found.path())


def as_weights(folder: Path) -> list[bytes]:
    key = b"tokenizer.chat_template"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    return [header + struct.pack("<IQ", 8, 2) + b"{}" + bytes(64)]


READERS = {
    "jsonl": Reader("rows.jsonl", as_lines, preference_rows),
    "json": Reader("rows.json", as_list, preference_rows),
    "csv": Reader("rows.csv", as_csv, preference_rows),
    "packed": Reader("rows.jsonl.gz", as_packed, preference_rows),
    "parquet": Reader("rows.parquet", as_parquet, preference_rows),
    "cells": Reader("cells", as_cells, cells),
    "table": Reader("t.parquet", as_table, saved_table),
    "users": Reader("users.jsonl", as_users, lambda path: str(UserPersonas.load(path))),
    "ratings": Reader("filled.csv", lambda folder: [as_sheet(folder)[0]], ratings),
    "ratings-key": Reader("key.json", lambda folder: [as_sheet(folder)[1]], ratings),
    "completion": Reader("body", as_completion, answered(200)),
    "error": Reader("error", as_error, answered(429)),
    "reply": Reader("text", as_reply_text, reply_text),
    "batch-handle": Reader("batch.json", as_handle, batch_handle),
    "batch-rows": Reader("rows.parquet", as_batch_rows, batch_rows),
    "batch-answers": Reader("output-0000.jsonl", as_answers, batch_answers),
    "batch-cached": Reader("cached.jsonl", as_cached, batch_cached),
    "cache-row": Reader("row", as_cache_row, cache_row),
    "cache-file": Reader("cache.db", as_cache_file, cache_file, count=400),
    "weights": Reader("model.gguf", as_weights, weights_file),
}


def inputs(seeds: list[bytes], count: int) -> Iterator[bytes]:
    """Half of them spoilt bytes, most of the others JSON with an odd value, the rest odd values."""
    draw = random.Random(0)
    for _ in range(count // 2):
        yield spoilt(draw.choice(seeds), draw)
    for _ in range(count * 2 // 5):
        yield odd_lines(draw.choice(seeds), draw)
    yield from map(dumped_oddly, generated(values, count - count // 2 - count * 2 // 5))


def dumped_oddly(value: Any) -> bytes:
    try:
        return dumped(value)
    except (ValueError, TypeError):  # an integer that Python does not print, a key that is no text
        return repr(type(value)).encode()


def peak_memory() -> int:
    """The most bytes that the process has had since `forget_peak`; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 if status.exists() else 0


def forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def fuzz(reader: Reader, place: Path, count: int) -> int:
    """Read so many inputs; returns how many were read without an error."""
    seeds, path = reader.seeds(place), place / reader.name
    if reader.name != "error":  # valid ones are read, or what follows tries nothing
        path.write_bytes(seeds[0])
        reader.read(path)
    forget_peak()
    before, good = peak_memory(), 0
    for content in inputs(seeds, count):
        path.write_bytes(content)
        began = time.process_time()
        try:
            reader.read(path)
            good += 1
        except PersonaInferError as error:
            assert str(error)  # noqa: PT017
        except Exception as error:
            pytest.fail(f"{error!r:.300} for {content[:2000]!r}")
        assert time.process_time() - began < MOST_SECONDS, content[:2000]
    assert peak_memory() - before < MOST_BYTES
    return good


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_spoilt_inputs_are_read_or_refused(name: str, place: Path) -> None:
    good = fuzz(READERS[name], place, READERS[name].count)
    print(f"{name}: {READERS[name].count:,} inputs, {good:,} read, the others refused")


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_some_spoilt_inputs_are_read_or_refused(name: str, place: Path) -> None:
    fuzz(READERS[name], place, 40)
