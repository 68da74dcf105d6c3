"""Personas that somebody else made: read from any container, and everything works on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.exceptions import InvalidArgumentError, RowsFailedError
from personainfer.personas.flags import find_flags
from personainfer.scoring.posterior import PersonaPosterior
from personainfer.tailoring.published import read_persona_tailoring
from personainfer.testing import FakeLLM

from .builders import pairs, shared
from .scoring_server import ScoringServer

SENTENCE = "The user is busy and prefers short answers."
OTHER = "Somebody who reads on a telephone, and hates long text!"

RECORD = {"trait": "busy", "preference": "tea"}


# Parse


@pytest.mark.parametrize(
    ("text", "trait", "preference", "first"),
    [
        (SENTENCE, "busy", "short answers", "I am busy and prefer short answers."),
        (SENTENCE[:-1], "busy", "short answers", "I am busy and prefer short answers."),
        (
            "The user is vigilant and alert, preferring concrete signs.",
            "vigilant and alert",
            "concrete signs",
            "I am vigilant and alert and prefer concrete signs.",
        ),
        (
            "The user is a practical, direct individual who prefers plain advice.",
            "a practical, direct individual",
            "plain advice",
            "I am a practical, direct individual and prefer plain advice.",
        ),
        (
            "The user is busy, values time, and prefers short answers.",
            "busy, values time",
            "short answers",
            "This describes me: The user is busy, values time, and prefers short answers.",
        ),
        (
            "The user is busy and prefers answers that fit their day.",
            "busy",
            "answers that fit their day",
            "This describes me: The user is busy and prefers answers that fit their day.",
        ),
        (OTHER, "", "", f"This describes me: {OTHER}"),
        ("I like cats. I am 12.", "", "", "I like cats. I am 12."),
        (
            "The user is the parent of a child who prefers sweets.",
            "",
            "",
            "This describes me: The user is the parent of a child who prefers sweets.",
        ),
        (
            "The user is busy and prefers tea. They hate coffee.",
            "",
            "",
            "This describes me: The user is busy and prefers tea. They hate coffee.",
        ),
    ],
)
def test_a_text_is_read_as_a_persona(text: str, trait: str, preference: str, first: str) -> None:
    persona = pi.Persona.parse(text)
    assert (persona.trait, persona.preference) == (trait, preference)
    assert str(persona) == persona.render() == text
    assert persona.render("first") == first
    assert persona.render("second").startswith(("You are", f"This describes you: {text}"))


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_any_text_is_given_back_exactly(text: str) -> None:
    for said in (text, f"The user is {text} and prefers {text}.", f"The user is {text}"):
        persona = pi.Persona.parse(said)
        assert str(persona) == said
        assert persona.render("first").startswith(("I am ", "This describes me: ", said))
        assert pi.Persona.model_validate_json(persona.model_dump_json()) == persona


def test_a_sentence_of_our_own_is_read_back_as_the_same_record() -> None:
    persona = pi.Persona(trait="busy", preference="short answers")
    assert pi.Persona.parse(str(persona)) == persona


@pytest.mark.parametrize("wrong", ["", " \n", None, 3, ["x"], "half \ud800"])
def test_what_is_no_text_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Persona\.parse"):
        pi.Persona.parse(wrong)


# From data


def data(**more: Any) -> list[dict[str, Any]]:
    rows = [{**row, "chosen_persona": SENTENCE, "rejected_persona": OTHER} for row in pairs(4)]
    return [{**row, **more} for row in rows]


CONTAINERS: dict[str, Callable[[list[dict[str, Any]], Path], Any]] = {
    "dicts": lambda rows, _: rows,
    "generator": lambda rows, _: iter(rows),
    "pandas": lambda rows, _: pd.DataFrame(rows, index=[f"row {n}" for n in range(len(rows))]),
    "polars": lambda rows, _: pl.DataFrame(rows),
    "polars, lazy": lambda rows, _: pl.LazyFrame(rows),
    "arrow": lambda rows, _: pa.Table.from_pylist(rows),
    "hf": lambda rows, _: datasets.Dataset.from_list(rows),
    "hf, streamed": lambda rows, _: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "jsonl": lambda rows, folder: _file(
        folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    ),
    "parquet": lambda rows, folder: _parquet(folder / "rows.parquet", rows),
}
containers = pytest.mark.parametrize("container", CONTAINERS)


def _file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pl.DataFrame(rows).write_parquet(path)
    return path


@containers
def test_sentences_are_read_from_any_container(container: str, tmp_path: Path) -> None:
    table = pi.PersonaTable.from_data(CONTAINERS[container](data(), tmp_path))
    table.raise_for_errors()
    assert [str(row.chosen) for row in table] == [SENTENCE] * 4
    assert [str(row.rejected) for row in table] == [OTHER] * 4
    assert table[2].preference is not None
    assert table[2].preference.prompt == "Question 2?"
    frame = table.to_pandas()
    assert frame["rejected_persona"].tolist() == [OTHER] * 4
    assert frame.columns.is_unique
    loaded = pi.PersonaTable.load(table.save(tmp_path / "table.parquet"))
    assert [(row.chosen, row.rejected) for row in loaded] == [
        (row.chosen, row.rejected) for row in table
    ]
    if container == "pandas":
        assert list(frame.index) == list(loaded.to_pandas().index) == [f"row {n}" for n in range(4)]


@containers
def test_records_are_read_from_any_container(container: str, tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "trait": "busy",
        "preference": "tea",
        "evidence": "few words",
        "flags": ["refusal"],
    }
    rows = data(chosen_persona=record, rejected_persona={**record, "flags": [], "evidence": None})
    table = pi.PersonaTable.from_data(CONTAINERS[container](rows, tmp_path))
    assert table[0].chosen == pi.Persona(**record)
    assert table[0].rejected == pi.Persona(trait="busy", preference="tea")


def test_personas_of_two_responses_are_no_personas_of_the_chosen_and_the_rejected_one() -> None:
    """A label chooses now one and now the other: by column, half of the personas would be swapped."""
    rows = [
        {
            "prompt": f"Question {n}?",
            "response_a": f"Short {n}.",
            "response_b": f"Long {n}.",
            "winner": "ab"[n % 2],
            "persona_a": SENTENCE,
            "persona_b": OTHER,
        }
        for n in range(4)
    ]
    with pytest.raises(InvalidArgumentError, match=r"personas of 'response_a' and 'response_b'"):
        pi.PersonaTable.from_data(rows, chosen_persona="persona_a", rejected_persona="persona_b")
    told = [{**row, "liked": row["persona_a"], "other": row["persona_b"]} for row in rows]
    read = pi.PersonaTable.from_data(told, chosen_persona="liked", rejected_persona="other")
    assert len(read) == 4


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORD),
        str(RECORD),
        json.dumps([RECORD]),
        json.dumps(["The user is busy and prefers tea."]),
        f"```json\n{json.dumps(RECORD)}\n```",
    ],
)
def test_a_record_that_is_written_as_text_is_the_record(text: str) -> None:
    (row,) = pi.PersonaTable.from_data(
        [{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_persona": text}],
        rejected_persona=None,
    )
    assert row.chosen is not None
    assert (row.chosen.trait, row.chosen.preference) == ("busy", "tea")


def test_personas_in_rows_are_taken_as_they_are() -> None:
    persona = pi.Persona(trait="busy", preference="tea")
    assert pi.PersonaTable.from_data(data(chosen_persona=persona))[0].chosen == persona


def test_a_table_that_was_inferred_is_read_back_from_its_frame(endpoint: dict[str, Any]) -> None:
    table = pi.infer_personas([*pairs(2), {**pairs(1)[0], "chosen": ""}], **endpoint)
    again = pi.PersonaTable.from_data(table.to_pandas())
    assert [(str(row.chosen), row.error) for row in again] == [
        (str(row.chosen), row.error) for row in table
    ]


@containers
def test_the_error_of_a_row_is_read_from_any_container(container: str, tmp_path: Path) -> None:
    rows = data(chosen_persona=None, rejected_persona=None, persona_error="it was refused")
    rows[0] |= {"chosen_persona": SENTENCE, "persona_error": None}
    table = pi.PersonaTable.from_data(CONTAINERS[container](rows, tmp_path))
    assert [row.error for row in table] == [None, *["it was refused"] * (len(rows) - 1)]


def test_a_saved_table_whose_sides_were_told_is_not_read_the_other_way_round(
    endpoint: dict[str, Any], tmp_path: Path
) -> None:
    """Each persona stood beside the other response."""
    rows = [{"prompt": "p", "response_1": "a", "response_2": "b", "winner": "a"}]
    labels = {"a": "second", "b": "first"}
    path = pi.infer_personas(rows, labels=labels, **endpoint).save(tmp_path / "t.parquet")
    for it in (path, pd.read_parquet(path)):
        with pytest.raises(InvalidArgumentError, match="read the other response as the chosen"):
            pi.PersonaTable.from_data(it)
        read = pi.PersonaTable.from_data(read_preferences(it, labels=labels))
        assert [row.preference and row.preference.chosen for row in read] == ["b"]
        assert len(pi.PersonaTable.load(read.save(tmp_path / "again.parquet"))) == 1


def test_a_column_personainfer_of_the_user_is_kept() -> None:
    rows = data(personainfer="mine")
    for it in (rows, pd.DataFrame(rows)):
        assert pi.PersonaTable.from_data(it).to_pandas()["personainfer"].tolist() == ["mine"] * 4


def test_a_column_without_a_name_tells_no_errors() -> None:
    """An index in a CSV file has none."""
    rows = [{"": "i", **row, "chosen_persona": None} for row in pairs(2)]
    for it in (rows, pl.DataFrame(rows)):
        table = pi.PersonaTable.from_data(it, rejected_persona=None)
        assert [row.error for row in table] == ["the row has no persona in 'chosen_persona'."] * 2


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (5, "of type int, not a persona"),
        ({"trait": "busy"}, "cannot be used"),
        ({"trait": "", "preference": ""}, "without a trait or a preference"),
        ({"trait": "busy", "preference": "tea", "age": 4}, "cannot be used"),
        ([SENTENCE], "of type list"),
        *(({**RECORD, name: "a\ud83d"}, "cannot be used") for name in ("trait", "sentence")),
        ({**RECORD, "flags": ["a\ud83d"]}, "cannot be used"),
    ],
)
def test_a_persona_that_cannot_be_read_costs_its_row(value: Any, error: str) -> None:
    rows = data()
    rows[1]["chosen_persona"] = value
    table = pi.PersonaTable.from_data(rows)
    assert [row.index for row in table.errors] == [1]
    assert error in str(table[1].error)
    assert "chosen_persona" in str(table[1].error)


@pytest.mark.parametrize("nothing", [None, "", "  ", float("nan"), pd.NA])
def test_a_row_without_any_persona_says_so(nothing: Any) -> None:
    rows = data()
    rows[0] |= {"chosen_persona": nothing}
    rows[1] |= {"chosen_persona": nothing, "rejected_persona": nothing}
    table = pi.PersonaTable.from_data(rows)
    assert (table[0].chosen, table[0].error) == (None, None)
    assert [row.index for row in table.errors] == [1]
    with pytest.raises(RowsFailedError, match="no persona in 'chosen_persona' and"):
        table.raise_for_errors()


@containers
def test_a_column_that_is_not_there_is_named(container: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"chosen_persona='chosen_personas'.*Nearest is"):
        pi.PersonaTable.from_data(
            CONTAINERS[container](data(), tmp_path), chosen_persona="chosen_personas"
        )


def test_a_side_may_have_no_personas() -> None:
    rows = [{**row, "who": SENTENCE} for row in pairs(2)]
    with pytest.raises(InvalidArgumentError, match="give rejected_persona=None"):
        pi.PersonaTable.from_data(rows, chosen_persona="who")
    table = pi.PersonaTable.from_data(rows, chosen_persona="who", rejected_persona=None)
    assert (str(table[0].chosen), table[0].rejected) == (SENTENCE, None)
    assert table.errors == []
    assert table.settings["sides"] == ["chosen"]


def test_a_column_that_the_table_would_replace_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="would replace"):
        pi.PersonaTable.from_data(data(mine=SENTENCE), chosen_persona="mine")
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "mine": SENTENCE}
    rows = [pair] * 50 + [{**pair, "chosen_persona": OTHER}]
    with pytest.raises(InvalidArgumentError, match="would replace"):
        pi.PersonaTable.from_data(rows, chosen_persona="mine", rejected_persona=None)


def test_columns_say_what_the_pair_is() -> None:
    rows = [
        {
            "q": "Why?",
            "good": "a",
            "bad": "b",
            "chosen_persona": SENTENCE,
            "rejected_persona": OTHER,
        }
    ]
    names = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    table = pi.PersonaTable.from_data(rows, columns=names)
    assert table[0].preference == pi.Preference(prompt="Why?", chosen="a", rejected="b")


# What is done with them


@pytest.fixture
def given_table() -> pi.PersonaTable:
    return pi.PersonaTable.from_data(pd.DataFrame(data()))


@pytest.fixture(params=["in memory", "stored", "cut"])
def table(given_table: pi.PersonaTable, request: Any, tmp_path: Path) -> pi.PersonaTable:
    if request.param == "in memory":
        return given_table
    stored = pi.PersonaTable.load(given_table.save(tmp_path / "given.parquet"))
    return stored if request.param == "stored" else stored[1:][::-1]


def judge(llm: FakeLLM) -> dict[str, Any]:
    return {"judge": "fake", "api_base": llm.api_base}


@pytest.mark.heavy
def test_judges_see_the_text_as_it_is(table: pi.PersonaTable, llm: FakeLLM) -> None:
    found = pi.verify_personas(table, **judge(llm))
    assert (found.skipped, found.failed) == (0, 0)
    sent = [body["messages"][-1]["content"] for body in llm.requests]
    assert any(OTHER in text for text in sent)
    assert pi.compare_personas(table, **judge(llm)).skipped == 0
    assert pi.rate_personas(table, **judge(llm)).skipped == 0
    assert isinstance(found.table, pi.PersonaTable)
    assert list(found.table[:2].added) == list(found.table.added)


def test_errors_of_a_cut_are_asked_again(llm: FakeLLM, endpoint: dict[str, Any]) -> None:
    rows = data()
    rows[2] |= {"chosen_persona": None, "rejected_persona": None}
    table = pi.PersonaTable.from_data(rows)[1:]
    mended = pi.retry_errors(table, **endpoint)
    assert len(llm.requests) == 1
    assert (mended.errors, str(mended[0].chosen)) == ([], SENTENCE)
    assert [row.index for row in mended] == [1, 2, 3]


def test_words_are_those_of_the_persons(table: pi.PersonaTable) -> None:
    words = {word.word: word.side for word in pi.salient_words(table, floor=1)}
    assert {"busy": "chosen", "short": "chosen", "telephone": "rejected"}.items() <= words.items()
    assert "user" not in words


def test_rows_are_made_and_exported(table: pi.PersonaTable, tmp_path: Path) -> None:
    rows = pi.tailoring_rows(table, persona="both")
    assert rows[0]["prompt"][0] == {"role": "system", "content": SENTENCE}
    assert rows[1]["prompt"][0] == {"role": "system", "content": OTHER}
    said = pi.tailoring_rows(table, persona="rejected", persona_in="user")[0]["prompt"][-1]
    assert said["content"].endswith(f"This describes me: {OTHER}")
    made = pi.export_personas(table, tmp_path / "export")
    assert made.rows == {"train": len(table)}


def test_a_report_shows_them(table: pi.PersonaTable, tmp_path: Path) -> None:
    page = pi.write_report(table, tmp_path / "report.html").read_text(encoding="utf-8")
    assert OTHER in page
    assert OTHER in table.format(width=200)
    assert OTHER in table._repr_html_()


def test_they_are_retrieved(table: pi.PersonaTable) -> None:
    [[found]] = pi.PersonaRetriever.from_table(table, "rejected").retrieve(["Question 2?"])
    assert str(found.persona) == OTHER


@pytest.mark.heavy
def test_responses_are_compared_for_them(table: pi.PersonaTable, llm: FakeLLM) -> None:
    found = pi.compare_responses(
        [row.preference.prompt for row in table if row.preference],
        [f"base {n}" for n in range(len(table))],
        [f"test {n}" for n in range(len(table))],
        personas=[row.rejected for row in table],
        **judge(llm),
    )
    assert (found.skipped, found.failed) == (0, 0)
    assert found.columns["persona"] == [OTHER] * len(table)


def test_flags_are_found_in_text_of_any_form() -> None:
    pair = pi.Preference(prompt="q", chosen="a", rejected="b")
    assert find_flags(pi.Persona.parse(SENTENCE), pair) == ()
    assert "ungrammatical" not in find_flags(pi.Persona.parse(OTHER), pair)
    assert "refusal" in find_flags(pi.Persona.parse("I cannot provide that information."), pair)


def test_an_exemplar_needs_trait_and_preference(endpoint: dict[str, Any]) -> None:
    exemplar = pi.Exemplar(
        preference=pi.Preference(prompt="q", chosen="a", rejected="b"),
        chosen=pi.Persona.parse(SENTENCE),
        rejected=pi.Persona.parse(OTHER),
    )
    with pytest.raises(InvalidArgumentError, match="without trait and preference"):
        pi.infer_personas(pairs(1), exemplars=[exemplar], **endpoint)


@pytest.mark.heavy
def test_likelihood_scores_them(table: pi.PersonaTable) -> None:
    rows = [row for row in table if row.preference and row.rejected]
    with ScoringServer("vllm") as server:
        scorer = pi.Likelihood("tiny", api_base=server.api_base)
        preferences = [row.preference.swapped for row in rows if row.preference]
        found = scorer.explains(preferences, [row.rejected for row in rows])
        assert found.shape == (len(rows),)
        people = [person for row in rows for person in (row.chosen, row.rejected) if person]
        posterior = PersonaPosterior.from_preferences(people[:2], preferences, scorer)
        assert posterior.probabilities.sum() == pytest.approx(1.0)
        sent = list(map(str, server.asked))
    assert sent


# Published ones


def published() -> list[dict[str, Any]]:
    return [
        {
            **row,
            "chosen_persona_gold": SENTENCE,
            "rejected_persona_gold": OTHER,
            "chosen_persona_retr": OTHER,
            "rejected_persona_retr": None,
        }
        for row in pairs(3)
    ]


def test_the_published_personas_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "persona-tailoring"
    folder.mkdir()
    _file(folder / "test.jsonl", "".join(json.dumps(row) + "\n" for row in published()))
    for source in (folder, folder / "test.jsonl", published()):
        gold = read_persona_tailoring(source)
        assert [(str(row.chosen), str(row.rejected)) for row in gold] == [(SENTENCE, OTHER)] * 3
        retrieved = read_persona_tailoring(source, personas="retrieved")
        assert [(str(row.chosen), row.rejected) for row in retrieved] == [(OTHER, None)] * 3
        assert "chosen_persona_gold" in retrieved.to_pandas()
        assert "Llama-3.1-405B" in gold.settings["model"]


def test_real_published_personas_are_given_back_exactly() -> None:
    path = shared("tailored_beavertails.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {
        "chosen": "response_for_chosen_persona",
        "rejected": "response_for_rejected_persona",
    }
    table = pi.PersonaTable.from_data(path, columns=names)
    known = [(row, given) for row, given in zip(table, rows, strict=True) if row.error is None]
    assert len(known) >= 498  # two responses of one row are the same text
    for row, given_row in known:
        assert str(row.chosen) == given_row["chosen_persona"]
        assert str(row.rejected) == given_row["rejected_persona"]
    parsed = [person for row, _ in known for person in (row.chosen, row.rejected) if person]
    assert sum(bool(person.trait) for person in parsed) > 700


def test_words_for_nothing_in_a_csv_file_are_no_personas(tmp_path: Path) -> None:
    words = ["null", "NaN", "None", "N/A", ""]
    frame = pd.DataFrame(
        {
            "prompt": [f"q{n}" for n in range(len(words) + 1)],
            "chosen": "a",
            "rejected": "b",
            "chosen_persona": [*words, "The user is calm."],
            "persona_error": "",
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = pi.PersonaTable.from_data(tmp_path / "t.csv", rejected_persona=None)
    assert [row.chosen is None for row in table] == [True] * len(words) + [False]
    assert all("no persona in 'chosen_persona'" in str(row.error) for row in table.errors)
