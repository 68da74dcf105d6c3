"""One data set through every way to infer personas: the same rows, requests, usage and cached replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import personainfer as pi
from personainfer.cli.commands import app
from personainfer.testing import FakeLLM, Fault
from personainfer.testing.faults import texts_of

from .batch_server import BatchServer
from .builders import pairs

Texts = tuple[str | None, str | None, str | None]
Made = tuple[list[Texts], pi.Usage]
Way = Callable[[list[dict[str, Any]], dict[str, Any], Path], Made]


def told(rows: Any, usage: pi.Usage) -> Made:
    """The texts of rows as a loader's batch has them."""
    names = ("chosen_persona", "rejected_persona", "persona_error")
    found = [tuple(None if pd.isna(row[name]) else row[name] for name in names) for row in rows]
    return found, usage  # type: ignore[return-value]


def of_table(table: pi.PersonaTable) -> Made:
    return told(table.to_pandas().to_dict("records"), table.usage)


def saved(rows: list[dict[str, Any]], options: dict[str, Any], place: Path) -> Made:
    pi.infer_personas(rows, output=place / "t.parquet", **options)
    return of_table(pi.PersonaTable.load(place / "t.parquet"))


def one_by_one(rows: list[dict[str, Any]], options: dict[str, Any], _: Path) -> Made:
    stream = pi.iter_personas(rows, **options)
    found: list[Texts] = []
    for row in stream:
        one, other = (None if who is None else str(who) for who in (row.chosen, row.rejected))
        found.append((one, other, row.error))
    return found, stream.usage


async def in_a_loop(rows: list[dict[str, Any]], options: dict[str, Any]) -> pi.PersonaTable:
    return pi.infer_personas(rows, **options)


def loaded(rows: list[dict[str, Any]], options: dict[str, Any], _: Path) -> Made:
    add = pi.AddPersonas(**options)
    return told(
        [row for at in range(0, len(rows), 4) for row in add(rows[at : at + 4])], add.llm.usage
    )


def framed(rows: list[dict[str, Any]], options: dict[str, Any], _: Path) -> Made:
    add = pi.AddPersonas(pi.LLM(**options))
    return told(add(pd.DataFrame(rows)).to_dict("records"), add.llm.usage)


def commanded(rows: list[dict[str, Any]], options: dict[str, Any], place: Path) -> Made:
    data = place / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = [
        part
        for name, value in options.items()
        for part in ("--" + name.replace("_", "-"), str(value))
    ]
    result = CliRunner().invoke(app, ["infer", str(data), "-o", "-", "--json", *given])
    assert result.exit_code == 3
    usage = json.loads(result.stderr.splitlines()[-1])["usage"]
    return told(map(json.loads, result.stdout.splitlines()), pi.Usage(**usage))


def batched(rows: list[dict[str, Any]], options: dict[str, Any], place: Path) -> Made:
    return of_table(pi.collect_batch(pi.submit_batch(rows, path=place / "b", **options), poll=0.01))


WAYS: dict[str, Way] = {
    "at once": lambda rows, options, _: of_table(pi.infer_personas(rows, **options)),
    "to a file": saved,
    "awaited": lambda rows, options, _: of_table(asyncio.run(pi.ainfer_personas(rows, **options))),
    "in a loop": lambda rows, options, _: of_table(asyncio.run(in_a_loop(rows, options))),
    "one by one": one_by_one,
    "by an LLM": lambda rows, options, _: of_table(pi.infer_personas(rows, pi.LLM(**options))),
    "in a loader": loaded,
    "in a loader of frames": framed,
    "by the command": commanded,
    "in a batch": batched,
}


def replied(body: dict[str, Any]) -> Fault | None:
    """No reply to one of the rows can be used, and asking again would not help."""
    return Fault("filtered") if "Question 3?" in texts_of(body, "user")[-1] else None


@pytest.mark.heavy  # many servers and imports
def test_every_way_gives_the_same_and_pays_for_the_same(tmp_path: Path) -> None:
    rows = [*pairs(6), {"prompt": "Bad?", "chosen": "", "rejected": "No."}]
    found: dict[str, Any] = {}
    for name, way in WAYS.items():
        place = tmp_path / name.replace(" ", "-")
        place.mkdir()
        with FakeLLM(reply=replied) as llm, BatchServer(llm) as server:
            base = server.api_base if way is batched else llm.api_base
            options: dict[str, Any] = {
                "model": "fake",
                "api_base": base,
                "cache_dir": place / "cache",
            }
            texts, usage = way(rows, options, place)
            sent = sorted(json.dumps(body) for body in llm.requests)
            cached = pi.cache_info(place / "cache").replies
            estimate = pi.estimate_cost(rows, **options)
        found[name] = (texts, usage, sent, cached, estimate)
    first = found["at once"]
    assert [error is None for *_, error in first[0]] == [True] * 3 + [False] + [True] * 2 + [False]
    assert (first[1].calls, len(first[2]), first[3], first[4].calls) == (6, 6, 5, 1)
    different = [name for name, one in found.items() if one != first]
    assert different == [], [(one, first) for one in map(found.get, different)]
