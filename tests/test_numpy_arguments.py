"""A number, a flag or a seed of NumPy is taken as Python's own, and none reaches results, JSON, or torch.

No value of an option, however large, small or odd, raises an error that is not of this library.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import personainfer as pi
from personainfer.arguments import MOST, in_python
from personainfer.data import read_preferences
from personainfer.evaluation import bootstrap_mean, cohen_kappa, write_rating_sheet
from personainfer.evaluation.grouped import mean_by_group
from personainfer.exceptions import InvalidArgumentError, PersonaInferError
from personainfer.llm import Request
from personainfer.local.cache import prune_cache
from personainfer.scoring import LatentUsers, SimilarUsersVote
from personainfer.simulation import entropy_by_word, plot_salient_words, reproduce, votes
from personainfer.tailoring import BradleyTerry, LowRankRewards, fit_user_weights, implicit_rewards
from personainfer.testing import FakeLLM
from personainfer.users import TasteSimilarity, nearest_users
from personainfer.users.groups import anova
from personainfer.users.similar_users import find_questions

from .builders import table

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9/v1"
USERS = ("ann", "bob", "cid", "dan")
CHOICES = [
    pi.Preference(
        prompt=f"Question {n}?", chosen=f"{user} {n}", rejected=f"No {n * 'x'}", user=user
    )
    for user in USERS
    for n in range(4)
]
PERSONAS = {user: f"{user} likes tea. {user} avoids noise." for user in USERS}
MATRIX = pi.RewardMatrix(
    [[[1.0, 2.0], [3.0, 1.0]]] * 3,
    models=["a", "b"],
    prompts=["one", "two", "three"],
    responses=[["yes", "no"]] * 3,
)
TWO_USERS = pi.SimulatedUsers([[0.5, 0.5], [1.0, 0.0]], models=["a", "b"])
SCORES = [{"prompt": "q", "responses": ["a", "b"], "scores": [1.0, 2.0]}]


def said(conversations: Sequence[Any], responses: Sequence[str]) -> Any:
    return [len(str(one)) + len(two) for one, two in zip(conversations, responses, strict=True)]


def features(prompts: Sequence[Any], responses: Sequence[str]) -> Any:
    return [[len(response), 1.0] for response in responses]


def explains(preferences: Any, personas: Any) -> list[float]:
    return [float(len(str(persona))) for persona in personas]


class Explainer:
    explains = staticmethod(explains)


def options_of_llm(**given: Any) -> Any:
    return {**pi.LLM("fake", api_base=NOWHERE, **given).options, "cache_dir": None}


def evaluation(**given: Any) -> Any:
    prefixes = {"p": lambda names: pi.persona_prefix("persona", personas=PERSONAS)}
    found = pi.evaluate_prefixes(prefixes, CHOICES, said, attribute=["p"], **given)
    return found.to_dict()


def audit(**given: Any) -> Any:
    made = {"personas": PERSONAS} if "k" not in given else {"personas": lambda k: PERSONAS}
    return pi.audit_personas(
        choices=CHOICES, scorer=said, baselines=["longer"], **made, **given
    ).to_dict()


def rewards(**given: Any) -> Any:
    reward = pi.persona_reward(Explainer(), **given)
    return reward(["p"], ["The user is calm."], question=["q"], chosen=["a"], rejected=["b"])


def parts(seed: Any, shares: Any, drop_flagged: Any) -> Any:
    rows = pi.tailoring_rows(table(12), drop_flagged=drop_flagged)
    return [rows.settings, {name: part.ids for name, part in rows.split(shares, seed=seed).items()}]


def nearest(**given: Any) -> Any:
    found = pi.PersonaRetriever.from_table(table(3)).retrieve(["question 1"], **given)
    return [[one.index for one in each] for each in found]


# Each call returns what JSON can hold, if its arguments are Python's.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "LLM": (
        options_of_llm,
        {"temperature": 0.5, "max_tokens": 40, "seed": 3, "max_concurrency": 4, "rpm": 60.0}
        | {"tpm": 1000, "timeout": 5.0, "max_attempts": 2, "patience": 3.0, "budget": 0.5}
        | {"prices": (1.0, 2), "cache": False},
    ),
    "Likelihood": (
        lambda **given: pi.Likelihood("m", api_base=NOWHERE, **given)._options,
        {"batch_size": 2, "max_response_tokens": 8, "max_prompt_tokens": 9, "timeout": 2.0},
    ),
    "evaluate_prefixes": (
        evaluation,
        {"folds": 2, "lift": True, "ablations": 4, "confidence": 0.5, "draw_seed": 2},
    ),
    "audit_personas": (
        audit,
        {"smallest_effect": 0.25, "lift": True, "confidence": 0.5, "draw_seed": 2},
    ),
    "audit_personas, k": (audit, {"k": 2}),
    "audit_personas, several k": (audit, {"k": (2, 1)}),
    "persona_prefix": (
        lambda k, seed: (
            pi.persona_prefix("few-shot", history=CHOICES, k=k, seed=seed)
            .shuffled(seed)
            .text("ann", "Tea?")
        ),
        {"k": 2, "seed": 3},
    ),
    "nearest_users": (
        lambda k: nearest_users({"ann": [1.0, 0.0], "bob": [1.0, 1.0]}, k=k),
        {"k": 1},
    ),
    "find_questions": (lambda near: find_questions(CHOICES, near=near), {"near": 0.5}),
    "TasteSimilarity": (lambda scale: TasteSimilarity(len, scale=scale)._scale, {"scale": 0.5}),
    "sample": (
        lambda n, seed: [one.index for one in table(9).sample(n, seed=seed)],
        {"n": 4, "seed": 3},
    ),
    "head": (lambda n: len(table(3).head(n)), {"n": 2}),
    "sort": (
        lambda reverse: [
            one.index for one in table(3).sort(lambda row: row.index, reverse=reverse)
        ],
        {"reverse": True},
    ),
    "split": (parts, {"seed": 3, "shares": {"a": 0.5, "b": 0.5}, "drop_flagged": False}),
    "retrieve": (nearest, {"k": 2, "exclude": False}),
    "persona_reward": (rewards, {"temperature": 0.5, "penalty": 0.25, "no_persona": -0.5}),
    "salient_words": (
        lambda **given: [asdict(one) for one in pi.salient_words(table(9), **given)],
        {"floor": 1, "prior": 2.0, "confidence": 0.5},
    ),
    "read_preferences": (
        lambda min_gap: len(list(read_preferences(SCORES, pairs="all", min_gap=min_gap))),
        {"min_gap": 0.5},
    ),
    "prune_cache": (
        lambda **given: prune_cache(cache_dir="none", **given),
        {"older_than": 0.5, "max_size": 5},
    ),
    "bootstrap_mean": (
        lambda **given: asdict(bootstrap_mean([1.0, 2.0, 4.0], **given)),
        {"confidence": 0.5, "resamples": 20, "seed": 3, "bounds": (0.0, 5)},
    ),
    "mean_by_group": (
        lambda confidence: asdict(
            mean_by_group([1.0, 2.0, 4.0, 0.0], ["a", "a", "b", "c"], confidence=confidence)
        ),
        {"confidence": 0.5},
    ),
    "cohen_kappa": (
        lambda confidence: asdict(cohen_kappa([1, 2, 1], [1, 2, 2], confidence=confidence)),
        {"confidence": 0.5},
    ),
    "PersonaPosterior": (
        lambda temperature, bounds: [
            vars(pi.PersonaPosterior(["calm"], temperature=temperature))["temperature"],
            pi.PersonaPosterior(["calm", "bold"]).fit_temperature([[1.0, 0.0]], bounds),
        ],
        {"temperature": 0.5, "bounds": (0.5, 2)},
    ),
    "SimulatedUsers": (
        lambda **given: pi.SimulatedUsers.sample(models=["a", "b"], **given).weights.tolist(),
        {"n": 3, "alpha": 0.5, "min_distance": 0.0, "seed": 3},
    ),
    "choose": (
        lambda **given: TWO_USERS.choose(MATRIX, **given).tolist(),
        {"temperature": 0.5, "seed": 3},
    ),
    "histories": (
        lambda **given: [one.model_dump() for one in TWO_USERS.histories(MATRIX, **given)],
        {"pairs_per_user": 2, "temperature": 0.5, "seed": 3},
    ),
    "votes": (lambda responses: votes([[0, 1]], responses).shares.tolist(), {"responses": 2}),
    "entropy_by_word": (
        lambda **given: [one.prompts for one in entropy_by_word(votes([[0]], 2), ["tea"], **given)],
        {"floor": 1, "confidence": 0.5},
    ),
    "LatentUsers": (
        lambda **given: vars(LatentUsers(**given)),
        {"dimensions": 2, "width": 3, "kl": 0.5, "steps": 4, "seed": 5},
    ),
    "SimilarUsersVote": (lambda doubt: vars(SimilarUsersVote(doubt)), {"doubt": 0.5}),
    "LowRankRewards": (
        lambda **given: {
            user: weights.tolist()
            for user, weights in LowRankRewards(features=features, **given)
            .fit(CHOICES)
            .weights.items()
        },
        {"rank": 2, "steps": 3, "ridge": 0.5, "shrink": 0.5, "seed": 5, "fixed_basis": False},
    ),
    "BradleyTerry": (
        lambda **given: BradleyTerry(**given).fit(CHOICES).predict(CHOICES).tolist(),
        {"ridge": 0.5, "user_ridge": 0.25, "steps": 3},
    ),
    "fit_user_weights": (
        lambda **given: fit_user_weights([[1.0, 2.0]], [0], **given).tolist(),
        {"shrink": 0.5, "steps": 3},
    ),
}
EACH = [
    pytest.param(name, argument, id=f"{name}, {argument}")
    for name, (_, given) in CALLS.items()
    for argument, value in given.items()
    # The place of a row may be whatever has an index, and a 0-d array has one.
    if not isinstance(value, tuple | dict)
    and (name, argument) not in (("sample", "n"), ("head", "n"))
]


def of_numpy(value: Any) -> Any:
    """Return a value, or those in a tuple or a dict, as NumPy's. 0.5 is the same in 32 bits."""
    if isinstance(value, tuple):
        return tuple(map(of_numpy, value))
    if isinstance(value, dict):
        return {name: of_numpy(one) for name, one in value.items()}
    if isinstance(value, bool):
        return np.bool_(value)
    return np.int64(value) if isinstance(value, int) else np.float32(value)


@pytest.mark.parametrize("name", CALLS)
def test_a_number_or_flag_of_numpy_is_taken_as_pythons_own(name: str) -> None:
    call, given = CALLS[name]
    found = call(**{argument: of_numpy(value) for argument, value in given.items()})
    assert json.dumps(found) == json.dumps(call(**given))


@pytest.mark.parametrize(("name", "argument"), EACH)
def test_an_array_without_dimensions_is_refused_by_name(name: str, argument: str) -> None:
    call, given = CALLS[name]
    with pytest.raises(InvalidArgumentError, match=f"{argument}=") as caught:
        call(**{**given, argument: np.array(given[argument])})
    assert "item()" in caught.value.hint or "[it]" in caught.value.hint


@pytest.mark.parametrize(
    ("call", "more"),
    [(pi.infer_personas, {}), (pi.infer_user_personas, {"pairs_per_user": 3, "min_pairs": 2})],
    ids=["pairs", "users"],
)
def test_a_result_with_options_of_numpy_is_saved(
    llm: FakeLLM, tmp_path: Path, call: Callable[..., Any], more: dict[str, Any]
) -> None:
    options = {"temperature": 0.5, "max_tokens": 50, "seed": 3}
    fake = {"model": "fake", "api_base": llm.api_base, "cache": False}
    found = call(CHOICES, **fake, **of_numpy(options), **of_numpy(more))
    assert options.items() <= json.loads(json.dumps(found.settings)).items()
    found.save(tmp_path / ("t.parquet" if isinstance(found, pi.PersonaTable) else "t.jsonl"))


def test_a_scalar_of_numpy_is_read_once_for_all() -> None:
    for value, expected in {np.int8(3): 3, np.float16(0.5): 0.5, np.longdouble(0.25): 0.25}.items():
        assert type(in_python(value)) is type(expected)
        assert in_python(value) == expected
    assert in_python(np.False_) is False
    assert type(in_python(np.str_("up"))) is str
    for other in (
        np.array(3),
        np.array([3]),
        np.datetime64("2020-01-01", "ns"),
        "3",
        None,
        10**400,
    ):
        assert in_python(other) is other


def test_a_checked_number_is_used_as_the_check_returns_it() -> None:
    """`check_argument(...)` as a statement would leave a number of NumPy where it is."""
    of_numbers = r"^ +check_argument\(\"?\w+\"?, \w+, \w*(Count|Number|Flag|Finite|Folds)[^,\n]*$"
    unused = re.compile(of_numbers, re.MULTILINE)
    sources = (ROOT / "personainfer").rglob("*.py")
    assert not [path for path in sources if unused.search(path.read_text(encoding="utf-8"))]


class Sums:
    def log_likelihood(self, prompts: Any, personas: Any, responses: Any) -> Any:
        return [[-1.0] * len(prompts)]


def inferred(**given: Any) -> pi.PersonaTable:
    with FakeLLM() as server:
        return pi.infer_personas(
            [("q", "a", "b")], "fake", api_base=server.api_base, cache=False, **given
        )


# Calls with further arguments, which need not return what JSON can hold.
MORE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "infer_personas": (
        inferred,
        {"temperature": 0.5, "max_tokens": 40, "seed": 3, "max_concurrency": 4, "rpm": 60.0}
        | {"tpm": 1000, "timeout": 5.0, "max_attempts": 2, "patience": 3.0, "budget": 0.5}
        | {"prices": (1.0, 2), "min_gap": 0.5, "min_votes": 2, "candidates": 1},
    ),
    "infer_user_personas": (
        lambda **given: pi.infer_user_personas(
            CHOICES, "fake", api_base=NOWHERE, method="verified", select=Explainer(), **given
        ),
        {"pairs_per_user": 3, "min_pairs": 2, "checks": 1, "contrast": 1, "choice_temperature": 1},
    ),
    "collect_batch": (
        lambda **given: pi.collect_batch("no folder", **given),
        {"poll": 1.0, "timeout": 2.0},
    ),
    "PersonaRetriever": (
        lambda **given: pi.PersonaRetriever(["q"], ["calm"], model="m", api_base=NOWHERE, **given),
        {"timeout": 1.0, "max_attempts": 1},
    ),
    "tailor_responses": (
        lambda **given: pi.tailor_responses(
            table(2), "fake", train=table(3), api_base=NOWHERE, **given
        ),
        {"shots": 1},
    ),
    "AddPersonas": (
        lambda **given: pi.AddPersonas("fake", api_base=NOWHERE, **given),
        {"workers": 2, "candidates": 2, "min_votes": 2},
    ),
    "read_preferences": (
        lambda min_votes: list(read_preferences(SCORES, pairs="all", min_votes=min_votes)),
        {"min_votes": 1},
    ),
    "write_rating_sheet": (
        lambda **given: write_rating_sheet(table(0), "no folder", **given),
        {"items": 2, "seed": 3},
    ),
    "anova": (
        lambda **given: anova([1.0, 2.0, 3.0], ["a", "a", "b"], **given),
        {"permutations": 20, "seed": 3},
    ),
    "implicit_rewards": (
        lambda beta: implicit_rewards(Sums(), Sums(), ["q"], ["calm"], ["a"], beta=beta),
        {"beta": 0.1},
    ),
    "format": (lambda **given: table(3).format(**given), {"limit": 2, "width": 80}),
    "reproduce": (lambda limit: reproduce("pt", [], limit=limit), {"limit": 1}),
    "plot_salient_words": (lambda limit: plot_salient_words([], limit=limit), {"limit": 1}),
    "a request": (
        lambda **given: pi.LLM("fake", api_base=NOWHERE).ask_many([Request([], **given)]),
        {"sample": 1, "logprobs": 2},
    ),
}
EXTREMES = (
    *(1e300, -1e300, 5e-324, float("nan"), float("inf"), float("-inf"), -0.0, 0, -1),
    *(10**400, -(10**400), 10**308, MOST + 1, 2**62, 2**63, 2**127, 2**128),
    *(np.float16(65504), np.float32("inf"), np.float64(1e300), np.longdouble(2), np.int64(2**62)),
    *(np.uint64(2**63), np.datetime64("NaT"), Decimal(1), Decimal("NaN"), Fraction(1, 2), 1j),
    *(True, np.True_, "3", b"3", [3]),
)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("call", "given", "argument"),
    [
        pytest.param(call, given, argument, id=f"{name}, {argument}")
        for calls in (CALLS, MORE)
        for name, (call, given) in calls.items()
        for argument in given
    ],
)
def test_no_number_raises_an_error_that_is_not_ours(
    call: Callable[..., Any], given: dict[str, Any], argument: str
) -> None:
    usual = given[argument]
    for extreme in EXTREMES:
        value: Any = extreme
        if isinstance(usual, tuple):
            value = (usual[0], extreme)
        elif isinstance(usual, dict):
            value = {**usual, "b": extreme}
        with suppress(PersonaInferError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**{**given, argument: value})


def test_every_number_of_an_argument_is_tried() -> None:
    """But bins of plots, which matplotlib checks; `name` and `smallest` are tried by other names."""
    numbers = r"(?:Count|\w*Number|Finite|Seconds|Folds|_Cosine|_Effect|_Confidence|_Bounds)\b"
    checked = re.compile(rf"check_argument\(\s*\"?(\w+)\"?,\s*[^,]+,\s*{numbers}")
    tried = {one for calls in (CALLS, MORE) for _, given in calls.values() for one in given}
    found = {
        name
        for path in (ROOT / "personainfer").rglob("*.py")
        for name in checked.findall(path.read_text(encoding="utf-8"))
    }
    assert len(found) > 40
    assert found - tried == {"bins", "name", "smallest"}
