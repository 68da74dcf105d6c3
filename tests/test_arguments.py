"""Options are declared once: Python, editors and the command line show the same, and check it alike."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypedDict, Unpack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from typer.testing import CliRunner

import personainfer as pi
from personainfer.arguments import (
    Count,
    Flag,
    Options,
    PositiveNumber,
    Wanted,
    by_text,
    check_argument,
    read_items,
    takes_options,
)
from personainfer.cli.commands import app
from personainfer.exceptions import InvalidArgumentError, UnknownOptionError
from personainfer.llm.client import OPTIONS as LLM_NAMES
from personainfer.llm.client import LLMOptions
from personainfer.local.cache import prune_cache
from personainfer.personas.options import RUN_OPTIONS
from personainfer.preferences.pairing import check_pairing
from personainfer.scoring import SimilarUsersVote
from personainfer.users import TasteSimilarity


class Sorts(TypedDict, total=False):
    count: Annotated[Count | None, Field(default=3, description="How many.")]
    share: Annotated[PositiveNumber, Field(default=1.0, description="Of what.")]
    order: Annotated[Literal["up", "down"], Field(default="up", description="Which way.")]
    word: Annotated[
        str, Wanted("must be a word.", secret=True), Field(default="", description="Not shown.")
    ]


@takes_options(Sorts)
def sort(items: list[int], **options: Unpack[Sorts]) -> dict[str, Any]:
    """Sort items."""
    return Options(Sorts).check(options)


def test_options_are_parameters_with_types_defaults_and_help() -> None:
    assert str(inspect.signature(sort)).startswith(
        "(items: 'list[int]', *, count: Optional[int] = 3, share: float = 1.0, order: Literal["
    )
    assert sort.__doc__ is not None
    assert "    count: How many.\n" in sort.__doc__
    assert sort([], count=None) == {"count": None, "share": 1.0, "order": "up", "word": ""}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "count=0 must be a whole number from 1 up."),
        ({"count": True}, "count=True must be a whole number from 1 up."),
        ({"count": "3"}, "count='3' must be a whole number from 1 up."),
        ({"share": float("nan")}, "share=nan must be a positive number."),
        ({"share": True}, "share=True must be a positive number."),
        ({"share": 10**400}, "must be a positive number."),
        ({"order": "left"}, 'order=\'left\' is not known. It is one of "up", "down".'),
        ({"order": ["up"]}, "order=['up'] is not known. It is one of"),
        ({"word": 3}, "word= must be a word."),
    ],
)
def test_a_wrong_value_is_named_in_our_words(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        sort([], **wrong)
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert [caught.value.argument] == list(wrong)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(
        UnknownOptionError, match=r"no option cuont=. Did you mean count="
    ) as caught:
        sort([], cuont=1)  # type: ignore[call-arg]
    assert caught.value.argument == "cuont"


def test_a_single_argument_is_checked_alike() -> None:
    check_argument("poll", 0.5, PositiveNumber)
    with pytest.raises(InvalidArgumentError, match=r"poll=-1 must be a positive number") as caught:
        check_argument("poll", -1, PositiveNumber)
    assert caught.value.argument == "poll"


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
) | st.dictionaries(st.text(), st.integers())


@pytest.mark.heavy
@given(name=st.sampled_from(sorted(LLM_NAMES)), value=ANYTHING)
def test_any_value_is_taken_or_refused_by_name(name: str, value: Any) -> None:
    try:
        taken = Options(LLMOptions).check({name: value})[name]
        refused = type(taken) is not type(value) or taken != value  # a dict or list is copied
        said = argument = None
    except InvalidArgumentError as error:
        refused, said, argument = True, error.message, error.argument
    assert not refused or (argument == name and str(said).startswith(f"{name}="))


TAKES_A_MODEL = [pi.LLM, pi.verify_personas, pi.rate_personas, pi.compare_personas]
TAKES_A_RUN = [
    pi.infer_personas,
    pi.ainfer_personas,
    pi.iter_personas,
    pi.estimate_cost,
    pi.submit_batch,
    pi.retry_errors,
    pi.AddPersonas,
]


@pytest.mark.parametrize("function", TAKES_A_MODEL + TAKES_A_RUN, ids=lambda one: one.__name__)
def test_public_functions_show_every_option(function: Callable[..., Any]) -> None:
    shown = inspect.signature(function).parameters
    declared = RUN_OPTIONS if function in TAKES_A_RUN else Options(LLMOptions)
    assert not [one for one in shown.values() if one.kind is one.VAR_KEYWORD]
    for option in declared.each.values():
        parameter = shown[option.name]
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert (parameter.default, parameter.annotation) == (option.default, option.kind)
        assert f"{option.name}: {option.help}" in str(function.__doc__)


@pytest.mark.parametrize("option", RUN_OPTIONS.each.values(), ids=lambda one: one.name)
def test_every_option_has_one_line_of_help(option: Any) -> None:
    assert option.help.endswith(".")
    assert len(option.help) <= 90
    assert "\n" not in option.help


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("pi.infer_personas(data, cand", "candidates="),
        pytest.param("pi.LLM('x', rp", "rpm="),
    ],
)
def test_an_editor_completes_an_option(start: str, name: str) -> None:
    jedi = pytest.importorskip("jedi", reason="jedi is not installed")
    found = jedi.Interpreter(start, [{"pi": pi, "data": []}]).complete()
    assert name in [one.name for one in found]


def test_the_command_line_has_every_option() -> None:
    run = CliRunner().invoke(app, ["infer", "--help"], env={"COLUMNS": "300"})
    shell = {
        "columns": "column",
        "labels": "label",
        "select": "judge",
        "extra_headers": "extra-header",
    }
    for name in RUN_OPTIONS.each:
        assert f"--{shell.get(name, name).replace('_', '-')} " in run.stdout
    assert Options(LLMOptions).each["budget"].help in " ".join(run.stdout.split())


def test_labels_of_another_coding_are_read(endpoint: dict[str, Any]) -> None:
    rows = [{"prompt": "Why?", "response_1": "A", "response_2": "B", "label": 0}]
    table = pi.infer_personas(rows, labels={0: "first", 1: "second"}, **endpoint)
    assert table[0].preference is not None
    assert table[0].preference.chosen == "A"
    added = pi.AddPersonas(labels={0: "second"}, **endpoint)(rows)
    assert added[0]["persona_error"] is None
    with pytest.raises(InvalidArgumentError, match="labels") as caught:
        pi.infer_personas(rows, labels={0: "left"}, **endpoint)
    assert caught.value.argument == "labels"


def test_several_pairs_a_request_were_taken_out(endpoint: dict[str, Any]) -> None:
    assert not pi.infer_personas([("Why?", "A", "B")], rows_per_call=1, **endpoint).errors
    with pytest.raises(InvalidArgumentError, match="no longer supported"):
        pi.infer_personas([("Why?", "A", "B")], rows_per_call=4, **endpoint)


SCORER: Any = SimpleNamespace(explains=len)
NUMBERS: dict[str, Callable[[Any], object]] = {
    "prune_cache": lambda true: prune_cache(older_than=true),
    "prune_cache, bytes": lambda true: prune_cache(max_size=true),
    "min_gap": lambda true: check_pairing("all", true),
    "a scale": lambda true: TasteSimilarity(len, scale=true),
    "alpha": lambda true: pi.SimulatedUsers.sample(2, models=["a", "b"], alpha=true),
    "min_distance": lambda true: pi.SimulatedUsers.sample(2, models=["a", "b"], min_distance=true),
    "temperature": lambda true: pi.PersonaPosterior(["calm"], temperature=true),
    "bounds": lambda true: pi.PersonaPosterior(["calm"]).fit_temperature([[1.0]], (true, 2.0)),
    "doubt": lambda true: SimilarUsersVote(doubt=true),
    "penalty": lambda true: pi.persona_reward(SCORER, penalty=true),
}


@pytest.mark.parametrize("true", [True, np.True_], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_no_truth_value(name: str, true: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"must be .*number"):
        NUMBERS[name](true)


def test_counts_and_flags_may_be_of_numpy_and_become_pythons_in_options() -> None:
    class Given(TypedDict, total=False):
        count: Annotated[Count, Field(default=3)]
        flag: Annotated[Flag, Field(default=False)]

    for kind in (np.int64, np.uint8):
        check_argument("count", kind(2), Count)
    check_argument("flag", np.True_, Flag)
    checked = Options(Given).check({"count": np.int64(2), "flag": np.True_})
    assert json.dumps(checked) == '{"count": 2, "flag": true}'
    for wrong in (np.int64(0), np.float64(2), np.True_, True):
        with pytest.raises(InvalidArgumentError, match="count="):
            check_argument("count", wrong, Count)
    with pytest.raises(InvalidArgumentError, match="flag="):
        check_argument("flag", np.int64(1), Flag)


def test_a_mapping_is_to_be_passed_as_a_list_of_its_keys() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_items("names", {"a": 1})
    assert caught.value.hint == "Pass list(it)."


def test_ids_that_a_column_with_gaps_made_floats_are_those_of_the_data() -> None:
    assert by_text("personas", {1: "a", 2.0: "b", np.float64(3): "c", "d": "d"}) == {
        "1": "a",
        "2": "b",
        "3": "c",
        "d": "d",
    }
    with pytest.raises(InvalidArgumentError, match="'1' twice"):
        by_text("personas", {1.0: "a", "1": "b"})
