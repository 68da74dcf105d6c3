"""Log-probabilities that are kept on disk, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import personainfer as pi
from personainfer.personas import prompt_messages
from personainfer.scoring import PEOPLE_IN_GENERAL

CHUNK = 64  # texts scored between two writes

Floats = npt.NDArray[np.float64]
Prompt = str | tuple[pi.Message, ...]
Row = tuple[Prompt, str | None, str]  # prompt, persona, response


class Scores:
    """log p a token of responses, by one model; each is on disk before it counts."""

    def __init__(self, file: Path, model: pi.Likelihood) -> None:
        self._file, self._model = file, model
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self._known: dict[str, float] = dict(map(json.loads, lines))
        self.seconds, self.scored = 0.0, 0

    def of(self, rows: Sequence[Row]) -> Floats:
        """One number a row, shape (rows,)."""
        keys = [_key(row) for row in rows]
        left = [key for key in dict.fromkeys(keys) if key not in self._known]
        row_of = dict(zip(keys, rows, strict=True))
        for start in range(0, len(left), CHUNK):
            self._score({key: row_of[key] for key in left[start : start + CHUNK]})
            done = min(start + CHUNK, len(left))
            said = f"{self._file.stem}: {done:,} of {len(left):,}, {self.seconds:,.0f} s so far"
            print(said, file=sys.stderr, flush=True)
        return np.array([self._known[key] for key in keys])

    def _score(self, rows: dict[str, Row]) -> None:
        began = time.perf_counter()
        prompts, personas, responses = zip(*rows.values(), strict=True)
        found = self._model.log_likelihood(prompts, personas, responses, per_token=True)
        new = dict(zip(rows, map(float, found), strict=True))
        with self._file.open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(pair) + "\n" for pair in new.items())
        self._known |= new
        self.seconds += time.perf_counter() - began
        self.scored += len(new)

    def margins(
        self, asked: Sequence[tuple[Prompt, str | None]], pairs: Sequence[pi.Preference]
    ) -> Floats:
        """By how much `chosen` is the likelier one after each prompt and persona, shape (pairs,)."""
        rows = [
            (prompt, persona, response)
            for (prompt, persona), pair in zip(asked, pairs, strict=True)
            for response in (pair.chosen, pair.rejected)
        ]
        return self.of(rows).reshape(-1, 2) @ (1.0, -1.0)

    def explains(self, preferences: Sequence[pi.Preference], personas: Sequence[Any]) -> Floats:
        """As `Likelihood.explains` against people in general: so that it chooses among explanations."""
        said = [None if persona is None else str(persona) for persona in personas]
        prompts = [pair.prompt for pair in preferences]
        own = self.margins(list(zip(prompts, said, strict=True)), preferences)
        general = [
            self.margins([(prompt, one) for prompt in prompts], preferences)
            for one in PEOPLE_IN_GENERAL
        ]
        return own - np.mean(general, axis=0)


def _key(row: Row) -> str:
    prompt, persona, response = row
    turns = [(turn.role, turn.content) for turn in prompt_messages(prompt)]
    return hashlib.sha256(json.dumps([turns, persona, response]).encode()).hexdigest()
