"""An argument of another kind than the function takes has an error of the tree that names it."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import personainfer as pi
from personainfer.data import read_preferences
from personainfer.evaluation.benchmark import benchmark_model
from personainfer.evaluation.grouped import mean_by_group
from personainfer.evaluation.statistics import bootstrap_mean
from personainfer.exceptions import InvalidArgumentError, MissingExtraError, MissingFileError
from personainfer.personas import find_flags
from personainfer.personas.placement import place_persona
from personainfer.personas.prompts import PersonaPrompt
from personainfer.scoring.choice_models import MajorityVote
from personainfer.tailoring import LowRankRewards
from personainfer.testing import FakeLLM
from personainfer.users import UserPersonas, user_vectors
from personainfer.users.similar_users import find_questions, nearest_users

from .builders import table

ROOT = Path(__file__).parents[1]
PAIR = pi.Preference(prompt="q", chosen="a", rejected="b", user="ann")
PERSONA = pi.Persona(trait="calm", preference="order")
USERS = UserPersonas(())
MODEL = pi.LLM("none", api_base="http://127.0.0.1:9/v1", cache=False)
JUDGE = pi.Verifier(MODEL)
SCORER: Any = len
TAGS = {"tag": pi.persona_prefix("tag")}
VECTORS = {"ann": [1.0], "bob": [1.0]}


def no_vectors(texts: list[str]) -> Any:
    raise AssertionError(texts)


CALLS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "render": (lambda t: PERSONA.render("frist"), "person='frist'"),  # type: ignore[arg-type]
    "find_flags, text": (lambda t: find_flags("calm", PAIR), "persona='calm' is no Persona"),  # type: ignore[arg-type]
    "find_flags, pair": (lambda t: find_flags(PERSONA, "q"), "preference='q' is no Preference"),  # type: ignore[arg-type]
    "a table's row": (lambda t: t["u1"], "the place of a row, or a slice"),
    "a user's row": (lambda t: USERS["ann"], r"users\.personas"),  # type: ignore[call-overload]
    "sort": (lambda t: t.sort(3), "key=3 is neither"),
    "columns": (lambda t: t.with_columns(3), "columns=3 is not a mapping"),
    "a column": (lambda t: t.with_columns({"a": 3}), r"columns\['a'\]=3 is not one value a row"),
    "save": (lambda t: t.save(3), "path=3 is not a path"),
    "load": (lambda t: pi.PersonaTable.load(3), "path=3 is not a path"),  # type: ignore[arg-type]
    "users' save": (lambda t: USERS.save(None), "path=None is not a path"),  # type: ignore[arg-type]
    "users' load": (lambda t: UserPersonas.load(3), "path=3 is not a path"),  # type: ignore[arg-type]
    "report": (lambda t: pi.write_report(t, 3), "path=3 is not a path"),  # type: ignore[arg-type]
    "vectors": (
        lambda t: user_vectors([("q", "a", "b")], no_vectors),  # type: ignore[list-item]
        r"histories\[0\].*no Preference.*read_preferences",
    ),
    "questions": (
        lambda t: find_questions([{"prompt": "q"}]),  # type: ignore[list-item]
        r"choices\[0\].*no Preference",
    ),
    "a history": (
        lambda t: pi.persona_prefix("few-shot", history=3),  # type: ignore[arg-type]
        "history=3 holds no Preference",
    ),
    "a name": (lambda t: pi.Verifier(b"local"), "model=b'local' must be the name"),  # type: ignore[arg-type]
    "exemplars": (
        lambda t: PersonaPrompt(exemplars=np.zeros(2)),  # type: ignore[arg-type]
        "exemplars=array.* is not known",
    ),
    "exemplars' phrases": (
        lambda t: find_flags(PERSONA, PAIR, exemplar_phrases=None),  # type: ignore[arg-type]
        "exemplar_phrases=None is not a set",
    ),
    "a chat": (lambda t: place_persona([3], PERSONA, "user"), r"prompt=\[3\] is neither"),  # type: ignore[arg-type]
    "no chat": (lambda t: place_persona(None, PERSONA, "user"), "prompt=None is neither"),  # type: ignore[arg-type]
    "lists of stop words": (
        lambda t: pi.salient_words(t, stop_words=[["a"]]),  # type: ignore[list-item]
        "stop_words=.* is not a list of words",
    ),
    "stop words": (lambda t: pi.salient_words(t, stop_words=None), "stop_words=None is not"),  # type: ignore[arg-type]
    "lemmas": (
        lambda t: pi.salient_words(t, lemmatize=np.zeros(2)),  # type: ignore[arg-type]
        "lemmatize=array.* is not a function",
    ),
    "bounds": (lambda t: bootstrap_mean([0.5], bounds=3), "bounds="),  # type: ignore[arg-type]
    "bounds of texts": (lambda t: bootstrap_mean([0.5], bounds="01"), "bounds="),  # type: ignore[arg-type]
    "three bounds": (lambda t: mean_by_group([0.5], ["a"], bounds=(0, 1, 2)), "bounds="),  # type: ignore[arg-type]
    "pairs of a judge": (lambda t: JUDGE.explains(["q"], [PERSONA]), r"preferences\[0\]='q' is no"),  # type: ignore[list-item]
    "no pairs": (lambda t: JUDGE.explains(None, [PERSONA]), "preferences=None is not a list"),  # type: ignore[arg-type]
    "a judge's personas": (lambda t: JUDGE.explains([PAIR], [None]), r"personas\[0\]=None is no"),  # type: ignore[list-item]
    "requests": (lambda t: MODEL.ask_many(None), "requests=None is not a list"),  # type: ignore[arg-type]
    "messages": (lambda t: MODEL.ask(np.zeros(2)), "messages=.* is not a non-empty sequence"),  # type: ignore[arg-type]
    "no prefixes": (
        lambda t: pi.evaluate_prefixes(TAGS, [PAIR], SCORER, attribute=None),  # type: ignore[arg-type]
        "attribute= is None",
    ),
    "no vectors": (lambda t: nearest_users(None), "vectors=None is not a mapping"),  # type: ignore[arg-type]
    "users": (lambda t: nearest_users(VECTORS, of=3), "of= is a single int"),  # type: ignore[arg-type]
    "lists of users": (
        lambda t: nearest_users(VECTORS, among=[["ann"]]),  # type: ignore[list-item]
        r"among= names user \['ann'\]",
    ),
    "no function": (lambda t: user_vectors([PAIR], None), "embed=None"),  # type: ignore[arg-type]
    "rows": (lambda t: pi.PersonaTable(["q"]), r"rows\[0\]='q' is no PersonaRow.*from_data"),  # type: ignore[list-item]
    "no rows": (lambda t: pi.PersonaTable(None), "rows=None is not a list"),  # type: ignore[arg-type]
    "a model": (
        lambda t: LowRankRewards().fit(["q"]),  # type: ignore[list-item]
        r"choices\[0\] is 'q', no Preference",
    ),
}

HALF = "a\ud83d"  # half of a surrogate pair, which no request can hold
HALVES: dict[str, Callable[[Any], Any]] = {
    "personas of users": lambda t: pi.audit_personas({"ann": HALF}, [PAIR], JUDGE),
    "a prefix": lambda t: pi.persona_prefix("persona", personas={"ann": HALF}),
    "personas of prompts": lambda t: pi.tailor_responses(["q"], MODEL, personas=[HALF]),
    "a system's persona": lambda t: pi.tailor_responses(
        ["q"], MODEL, personas="system", system_persona=HALF
    ),
    "a template": lambda t: pi.tailoring_rows(t, template="\ud83d{persona}"),
    "a judge's personas": lambda t: JUDGE.explains([PAIR], [HALF]),
}


@pytest.mark.parametrize("call", HALVES.values(), ids=HALVES)
def test_a_text_that_no_request_can_hold_is_an_error_before_any(call: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="holds half of a surrogate pair"):
        call(table())


NO: Any = "no"
SWITCHES: dict[str, Callable[[Any], Any]] = {
    "lift": lambda t: pi.audit_personas({"ann": "calm"}, [PAIR], SCORER, lift=NO),
    "lift ": lambda t: pi.evaluate_prefixes(TAGS, [PAIR], SCORER, lift=NO),
    "soft": lambda t: pi.verify_personas(t, "fake", soft=NO),
    "soft ": lambda t: pi.Verifier("fake", soft=NO),
    "per_token": lambda t: pi.Likelihood("local:smollm2").log_likelihood([], [], [], per_token=NO),
    "overwrite": lambda t: t.save("t.parquet", overwrite=NO),
    "overwrite ": lambda t: USERS.save("u.jsonl", overwrite=NO),
    "overwrite  ": lambda t: pi.export_personas(t, "e.jsonl", overwrite=NO),
    "overwrite   ": lambda t: pi.write_report(t, "r.html", overwrite=NO),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_true_or_false(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text such as "no" would count as true, and `overwrite="no"` would replace somebody's file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match="must be True or False") as caught:
        SWITCHES[name](table())
    assert caught.value.argument == name.strip()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_kind_is_named(name: str) -> None:
    call, words = CALLS[name]
    with pytest.raises(InvalidArgumentError, match=words):
        call(table())


def test_what_the_error_says_makes_records_of_any_data() -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "user_id": "ann"}]
    records = [row.preference for row in read_preferences(rows) if row.preference]
    assert user_vectors(records, lambda texts: [[len(text)] for text in texts]).keys() == {"ann"}
    assert MajorityVote().fit(records).predict(records).shape == (1,)


@pytest.mark.parametrize("open_it", [pi.PersonaTable.load, pi.retry_errors, UserPersonas.load])
def test_a_file_that_is_not_there_has_one_error(
    open_it: Callable[[Path], Any], tmp_path: Path
) -> None:
    table().save(tmp_path / "personas.parquet")
    with pytest.raises(MissingFileError, match=r"file not found: '.*person\.parquet'") as error:
        open_it(tmp_path / "person.parquet")
    assert isinstance(error.value, FileNotFoundError)
    if open_it != UserPersonas.load:
        assert "'personas.parquet'" in error.value.hint


@pytest.mark.parametrize("open_it", [pi.PersonaTable.load, UserPersonas.load])
def test_a_folder_and_a_pipe_are_not_opened(open_it: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "a pipe")):
        with pytest.raises(InvalidArgumentError, match=f"is {kind}"):
            open_it(path)


def test_a_persona_says_something() -> None:
    for said in ({}, {"sentence": None}, {"sentence": " "}):
        with pytest.raises(ValidationError, match="needs a trait, a preference or a sentence"):
            pi.Persona(trait="", preference="", **said)
    assert str(pi.Persona(trait="", preference="", sentence="Hm.")) == "Hm."
    assert str(pi.Persona.parse("The user is is, and prefers prefers.")).startswith(
        "The user is is"
    )


# Packages that are not installed


def test_a_missing_package_is_named_as_an_index_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, package in (
        ("scipy.sparse_none", "scipy"),
        ("sklearn.none", "scikit-learn"),
        ("sentence_transformers.none", "sentence-transformers"),
    ):
        monkeypatch.setitem(sys.modules, module.partition(".")[0], None)  # as if not installed
        with pytest.raises(MissingExtraError) as error:
            MissingExtraError.require(module)
        assert error.value.hint == f"Run: pip install {package}"


@pytest.mark.heavy
def test_no_error_names_a_package_that_the_project_does_not_have() -> None:
    """Nor the project itself: it is on no index, and somebody else's package may have its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    known = {re.split(r"[\[<>=!]", one)[0] for one in (*extras, *project["dependencies"])}
    named = set()
    for path in (ROOT / "personainfer").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "personainfer[" not in text, path
        if "MissingExtraError" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtraError.require":
                named |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    assert len(named) > 5
    for module in named:
        error = MissingExtraError.of([str(module).partition(".")[0]], "needed")
        assert error.hint.removeprefix("Run: pip install ") in known


def test_a_class_is_no_selector_and_no_scorer_and_nothing_is_asked() -> None:
    """`select=Likelihood` for `select=Likelihood()`."""
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "user_id": "u"}]
    prefixes = {"persona": pi.persona_prefix("persona", personas={"u": "calm"})}
    likelihood: Any = pi.Likelihood
    verifier: Any = pi.Verifier
    with FakeLLM() as llm:
        model: dict[str, Any] = {"api_base": llm.api_base}
        for wrong in (
            lambda: pi.infer_personas(rows, "m", select=likelihood, **model),
            lambda: pi.infer_personas(rows, "m", select=verifier, **model),
            lambda: pi.infer_user_personas(rows, "m", method="tastes", select=likelihood, **model),
            lambda: pi.evaluate_prefixes(prefixes, rows, "m", untuned=likelihood, **model),
            lambda: benchmark_model("m", scorers={"x": likelihood}, data=rows, **model),
            lambda: pi.persona_reward(verifier),
        ):
            with pytest.raises(InvalidArgumentError):
                wrong()
    assert llm.calls == 0
