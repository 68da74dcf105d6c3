"""How good a model's personas are: the pairs that ship, what is counted, and by whom it is scored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import personainfer as pi
from personainfer.cli.commands import app
from personainfer.evaluation import benchmark as benchmark_module
from personainfer.evaluation import benchmark_model, benchmark_pairs, persona_shares
from personainfer.evaluation.benchmark import sides_explained
from personainfer.exceptions import InvalidArgumentError
from personainfer.personas.prompts import default_exemplars, prompt_text
from personainfer.testing import FakeLLM, Fault

from ..scoring_server import ScoringServer

ROOT = Path(__file__).parents[2]
PAIR = pi.Preference(prompt="How?", chosen="alpha beta", rejected="gamma delta")


class Words:
    """A selector: how many words of the persona stand in the chosen response, less those in the other."""

    def explains(
        self, preferences: Sequence[pi.Preference], personas: Sequence[pi.Persona | str]
    ) -> list[float]:
        def shared(persona: pi.Persona | str, text: str) -> int:
            return len(_words(str(persona)) & _words(text))

        pairs = zip(preferences, personas, strict=True)
        return [float(shared(who, p.chosen) - shared(who, p.rejected)) for p, who in pairs]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def persona(preference: str, trait: str = "calm") -> pi.Persona:
    return pi.Persona(trait=trait, preference=preference)


def rows(*sides: tuple[pi.Persona | None, pi.Persona | None]) -> list[pi.PersonaRow]:
    return [pi.PersonaRow(n, PAIR, one, other) for n, (one, other) in enumerate(sides)]


def shares(*sides: tuple[pi.Persona | None, pi.Persona | None]) -> dict[str, float]:
    return {
        name: found.value for name, found in persona_shares(rows(*sides), {"w": Words()}).items()
    }


# The pairs


def test_there_are_sixty_pairs_of_two_kinds() -> None:
    pairs = benchmark_pairs()
    kinds = [str(pair.id).partition("-")[0] for pair in pairs]
    assert (kinds.count("manner"), kinds.count("content"), len(pairs)) == (30, 30, 60)
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert all(25 <= len(text.split()) <= 60 for text in texts)


def test_no_pair_is_like_another_or_like_one_that_the_prompt_or_the_examples_have() -> None:
    examples = (ROOT / "examples/data/preferences.jsonl").read_text(encoding="utf-8").splitlines()
    others = [_content(json.loads(line)["chosen"]) for line in examples]
    others += [_content(json.loads(line)["rejected"]) for line in examples]
    others += [
        _content(text)
        for one in default_exemplars()
        for text in (one.preference.chosen, one.preference.rejected)
    ]
    own = [_content(t) for pair in benchmark_pairs() for t in (pair.chosen, pair.rejected)]
    assert len({prompt_text(pair.prompt) for pair in benchmark_pairs()}) == 60
    for place, text in enumerate(own):
        for other in (*others, *own[:place]):
            assert len(text & other) < 0.5 * min(len(text), len(other)) or len(other) < 6


def _content(text: str) -> set[str]:
    return {word for word in _words(text) if len(word) > 4}


def test_the_longer_response_is_not_the_chosen_one() -> None:
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in benchmark_pairs())
    assert 18 <= longer <= 42


# What is counted


def test_pairing_and_sides_are_counted_by_what_a_scorer_says() -> None:
    found = shares(
        (persona("alpha"), persona("gamma")),  # both fit
        (persona("gamma delta"), persona("gamma")),  # the rejected one fits, not enough for both
        (persona("delta"), persona("beta")),  # crossed
        (persona("alpha"), None),
    )
    assert found["sides explained, by w"] == 4 / 8
    assert found["pairing, by w"] == 1 / 4
    assert found["without a persona"] == 1 / 8


def test_a_pair_with_a_persona_that_explains_nothing_is_paired_if_the_other_one_fits() -> None:
    found = shares((persona("omega"), persona("gamma")), (None, persona("gamma")))
    assert found["pairing, by w"] == 1 / 2


def test_faults_are_counted_whoever_wrote_the_personas() -> None:
    repeated = default_exemplars()[0].chosen
    found = shares(
        (persona("tea", "same"), persona("tea", "same")),
        (persona("stories of the"), persona("plain words")),
        (repeated.model_copy(update={"flags": ()}), persona("other things")),
        (persona("short answers"), persona("long answers", "a Christian")),
    )
    assert found["both sides equal"] == 2 / 8
    assert found["not a sentence"] == 1 / 8
    assert found["exemplars repeated"] == 1 / 8
    assert found["flagged"] == 5 / 8
    assert found["copied from the pair"] == 0


def test_words_of_the_pair_are_found() -> None:
    pair = pi.Preference(
        prompt="How?", chosen="Bring warm woollen winter socks.", rejected="No advice."
    )
    row = pi.PersonaRow(0, pair, persona("warm woollen winter socks"), persona("silence"))
    found = persona_shares([row], {})
    assert found["copied from the pair"].value == 0.5


def test_a_pair_that_cannot_be_scored_is_left_out() -> None:
    class Deaf(Words):
        def explains(self, preferences: Any, personas: Any) -> list[float]:
            found = super().explains(preferences, personas)
            return [
                math.nan if "loud" in str(who) else s
                for s, who in zip(found, personas, strict=True)
            ]

    given = rows((persona("alpha"), persona("gamma")), (persona("loud alpha"), persona("beta")))
    found = persona_shares(given, {"w": Deaf()})
    assert (found["pairing, by w"].value, found["pairing, by w"].n) == (1.0, 1)
    assert found["sides explained, by w"].value == 2 / 3
    scores = sides_explained(Words(), [PAIR], [("beta", None)])
    assert np.array_equal(scores, [[1.0, 0.0]])


# A model


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """Personas with the words of the responses, in the order in which they are shown."""
    said = body["messages"][-1]["content"]
    responses = re.findall(r"<response_\d>\n(.*?)\n</response_\d>", said, re.DOTALL)
    sides = [" ".join(sorted(_words(text))[:6]) for text in responses]
    return {
        f"person_{n + 1}": {"evidence": "e", "trait": "calm", "preference": side}
        for n, side in enumerate(sides)
    }


@pytest.mark.heavy
def test_a_model_is_measured_with_time_tokens_and_cost(tmp_path: Path) -> None:
    with FakeLLM(reply) as llm:
        options: dict[str, Any] = {"api_base": llm.api_base, "prices": (1.0, 2.0)}
        options |= {"cache_dir": tmp_path, "scorers": {"words": Words()}}
        found = benchmark_model("fake", **options)
        again = benchmark_model("fake", **options)
    assert llm.calls == 60
    assert found.shares["pairing, by words"].value > 0.9
    assert found.failed == 0
    assert found.rows_a_minute is not None
    assert found.rows_a_minute > 60
    assert found.usage.cost == pytest.approx(
        (found.usage.prompt_tokens + 2 * found.usage.completion_tokens) / 1e6
    )
    assert found.notes == ()
    assert (again.rows_a_minute, again.shares) == (None, found.shares)
    assert "cache" in again.notes[0]
    json.dumps(found.to_dict())


def test_who_scores_its_own_words_is_said() -> None:
    with FakeLLM(reply) as llm:
        found = benchmark_model(
            "fake", api_base=llm.api_base, scorers={"fake": Words()}, data=[PAIR]
        )
    assert found.notes == ("fake scored its own personas: a model favours its own words.",)
    assert found.notes[0] in str(found)


@pytest.mark.parametrize(
    ("model", "scorer"),
    [("local:smollm2", "local:qwen2.5-coder-0.5b"), ("local", "local:smollm2")],
)
def test_a_model_never_scores_its_own_words_unasked(
    model: str, scorer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="find_weights needs the engine")

    def named(name: str) -> Any:
        raise InvalidArgumentError(f"asked for {name}")

    monkeypatch.setattr(benchmark_module, "likelihood_scorer", named)
    with pytest.raises(InvalidArgumentError, match=f"asked for {re.escape(scorer)}$"):
        benchmark_model(model, data=[PAIR])


@pytest.mark.parametrize(
    "wrong",
    [
        {"scorers": []},
        {"scorers": "local"},
        {"max_tokens": 0},
        {"scorers": ["local:nobody"]},
        {"scorers": {"words": 7}},
        {"scorers": [3]},
        {"scorers": 3},
        {"scorers": {3: Words()}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_cannot_work_fails_before_any_call(wrong: dict[str, Any]) -> None:
    with FakeLLM(reply) as llm:
        options = {"api_base": llm.api_base, "scorers": {"words": Words()}, **wrong}
        with pytest.raises(pi.PersonaInferError):
            benchmark_model("fake", data=[PAIR], **options)
        assert llm.calls == 0


# The command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["benchmark", *arguments])


@pytest.mark.heavy
def test_the_command_prints_shares_time_and_cost(command: Callable[..., Any]) -> None:
    with FakeLLM(reply) as llm, ScoringServer("vllm") as server:
        reach = ["fake", "--api-base", llm.api_base, "--limit", "2", "--scorer", "tiny"]
        reach += ["--scorer-api-base", server.api_base]
        said = command(*reach, "-o", "personas.parquet")
        assert said.exit_code == 0, said.output
        for words in ("pairing, by tiny", "both sides equal", "not a sentence", "rows a minute"):
            assert words in said.stdout
        assert len(pi.PersonaTable.load("personas.parquet")) == 2
        told = json.loads(command(*reach, "--json", "--no-cache").stdout)
    assert told["pairs"] == 2
    assert set(told["shares"]["flagged"]) == {"value", "low", "high", "n"}
    assert told["usage"]["completion_tokens"] > 0
    assert told["rows_a_minute"] > 0


@pytest.mark.heavy
def test_pairs_that_fail_have_the_exit_code_of_failed_rows(command: Callable[..., Any]) -> None:
    with (
        FakeLLM(reply, faults=[Fault.status(400, message="no")]) as llm,
        ScoringServer("vllm") as server,
    ):
        reach = ["fake", "--api-base", llm.api_base, "--limit", "2", "--scorer", "tiny"]
        said = command(*reach, "--scorer-api-base", server.api_base)
    assert said.exit_code == 3, said.output
    assert "2 pairs, 1 failed" in said.stdout


def test_an_address_without_a_name_is_refused(command: Callable[..., Any]) -> None:
    said = command("fake", "--scorer-api-base", "http://localhost:1/v1")
    assert said.exit_code == 2
    assert "--scorer" in said.output
