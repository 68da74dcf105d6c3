"""Reproduce the main figures of the papers: the published number, ours with its interval, and what differs.

`pi` and `pt`: "Whose Boat Does it Float?" (arXiv 2501.11549), persona inference and persona tailoring.
`wikipersonas`: FamousPersona (arXiv 2505.13257). `personalllm`: PersonalLLM (arXiv 2409.20296).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..arguments import Count, check_argument
from ..data.files import FILES, open_rows
from ..data.table import PersonaTable
from ..evaluation.comparison import compare_responses
from ..evaluation.statistics import Estimate, bootstrap_rate
from ..evaluation.verification import verify_personas
from ..exceptions import DataError, InvalidArgumentError
from ..personas.infer import infer_personas
from ..records import Persona, Preference, Side
from ..scoring.likelihood import Likelihood
from ..tailoring.published import read_persona_tailoring
from ..tailoring.responses import tailor_responses
from ..users.evaluate import evaluate_prefixes
from ..users.infer import infer_user_personas
from ..users.prefixes import persona_prefix
from .datasets import read_famous_persona, read_personal_llm
from .heterogeneity import votes
from .simulated_users import SimulatedUsers

Paper = Literal["pi", "pt", "wikipersonas", "personalllm"]
Rows = list[dict[str, Any]]

PAPERS: tuple[Paper, ...] = ("pi", "pt", "wikipersonas", "personalllm")
LIKELIHOOD = "likelihood"  # the judge that is a model's log-probabilities, "likelihood:MODEL"
_SIDES: tuple[Side, ...] = ("chosen", "rejected")
_TAILORED: dict[str, str] = {side: f"response_for_{side}_persona" for side in _SIDES}

_WHOSE_BOAT, _FAMOUS_PERSONA, _PERSONAL_LLM = (
    "arXiv 2501.11549",
    "arXiv 2505.13257",
    "arXiv 2409.20296",
)
_ACCURACY = (
    0.91,
    f"{_WHOSE_BOAT}, figure 3 (sections 2 and 3): personas by Llama-3.1-405B, mean over four data sets",
)
# ΔPQ * 100 on BeaverTails against the same method without personas, personas: (retrieved, gold).
_TAILORING = {"few-shot": (46.3, 55.0), "SFT": (12.3, 23.0), "DPO": (36.8, 41.6)}
# Accuracy of the tuned Zephyr-7B on users that it was trained on, (personal, divergent) questions.
_PREFIXES = {
    "none": (0.554, 0.534),
    "tag": (0.557, 0.538),
    "few-shot": (0.590, 0.614),
    "persona": (0.587, 0.630),
}
_FEW_SHOT, _PAIRS_A_USER = 2, 4
_USERS, _ALPHA = 1000, 0.05


@dataclass(frozen=True)
class Figure:
    """One number of a paper, and our measurement of it. `published` is None if the paper does not give it."""

    name: str
    published: float | None
    source: str
    ours: Estimate

    def __str__(self) -> str:
        said = "not published" if self.published is None else f"published {self.published:g}"
        where = f" ({self.source})" if self.source else ""
        return f"{self.name}: {said}{where}\n  ours {self.ours}"


@dataclass(frozen=True)
class Reproduction:
    """The figures of a paper, and how its measurement and ours differ."""

    paper: Paper
    figures: tuple[Figure, ...]
    differs: tuple[str, ...]

    def __str__(self) -> str:
        lines = [str(figure) for figure in self.figures]
        return "\n".join([*lines, "What differs:", *(f"  - {one}" for one in self.differs)])

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


def reproduce(
    paper: Paper,
    data: str | Path | Iterable[Mapping[str, Any]],
    *,
    model: str | None = None,
    judge: str = LIKELIHOOD,
    limit: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Reproduction:
    """Measure the main figures of a paper on data that you have.

    Args:
        paper: "pi", "pt", "wikipersonas" or "personalllm".
        data: "pi", "pt": a file or rows with the columns of the authors' data set `persona-tailoring`, or
            with personas and the responses that were tailored to them (`response_for_chosen_persona`,
            `response_for_rejected_persona`, `generic_response`); for "pi" also preference pairs, with or
            without `chosen_persona` and `rejected_persona`. For the others the name of the published data
            set on the hub, or a folder of its files.
        model: the model that writes what the data lacks: personas ("pi", "wikipersonas") or responses ("pt").
        judge: a model that judges; or "likelihood", "likelihood:MODEL": the log-probabilities of a model,
            by default of "local". "wikipersonas" is always judged by likelihood.
        limit: only the first N rows, or users; None: all.
        progress: a bar on standard error; None: in a terminal or a notebook.
        options: configure the LLM that model= or judge= makes: see `LLM`.

    Raises:
        InvalidArgumentError: a bad argument, or a model that is needed and not named.
        DataError: the data has other columns.
        ModelError: the model or the judge failed.
    """
    InvalidArgumentError.check("paper", paper, PAPERS)
    check_argument("limit", limit, Count | None)
    if not isinstance(judge, str):
        raise InvalidArgumentError(f"judge={judge!r:.60} is not a name of a model.")
    if paper == "personalllm":
        return _personal_llm(data, limit)
    scorer = _likelihood(judge)
    if paper == "wikipersonas":
        return _wikipersonas(data, model, scorer or Likelihood(), limit, options)
    rows = list(islice(_rows(data), limit))
    if not rows:
        raise DataError("the data has no rows.")
    measure = _persona_inference if paper == "pi" else _persona_tailoring
    return measure(rows, model, judge, scorer, {**options, "progress": progress})


def _likelihood(judge: str) -> Likelihood | None:
    kind, _, model = judge.partition(":")
    return Likelihood(model or "local") if kind == LIKELIHOOD else None


def _rows(data: str | Path | Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    if not isinstance(data, str | Path):
        return map(dict, data)
    if Path(data).suffix not in FILES:
        raise InvalidArgumentError(
            f"data={str(data)!r} is not a file that is read.",
            hint=f"Give a {', '.join(FILES)} file.",
        )
    return (row for row in open_rows(data)[0] if isinstance(row, dict))


def _judged_by(judge: str, scorer: Likelihood | None) -> str:
    return f"judged by {judge}" if scorer is None else f"judged by the likelihood of {scorer.model}"


# Persona inference


def _persona_inference(
    rows: Rows, model: str | None, judge: str, scorer: Likelihood | None, options: Mapping[str, Any]
) -> Reproduction:
    """How often the judge, given a persona, picks the response that this persona prefers."""
    table, differs = _with_personas(rows, model, options)
    if scorer is None:
        found = verify_personas(table, judge, **options)
        accuracy = {side: one.accuracy for side, one in found.sides.items()}
        overall = found.overall.accuracy
    else:
        scores = _explained(table, scorer)
        overall = bootstrap_rate(scores)
        accuracy = {side: bootstrap_rate(scores[:, n]) for n, side in enumerate(_SIDES)}
    figures = [Figure("accuracy of personas", *_ACCURACY, overall)]
    figures += [
        Figure(f"accuracy of the {side} personas", None, "", one) for side, one in accuracy.items()
    ]
    judged = f"{_judged_by(judge, scorer)}, not by GPT-4o"
    size = f"{overall.n:,} rows, not 300 pairs of each of four data sets"
    return Reproduction("pi", tuple(figures), (judged, size, *differs))


def _with_personas(
    rows: Rows, model: str | None, options: Mapping[str, Any]
) -> tuple[PersonaTable, list[str]]:
    """The table of personas, from the rows or inferred by the model; and how it differs from the paper's."""
    names = rows[0].keys()
    if "chosen_persona_gold" in names:
        return read_persona_tailoring(rows), []
    if "chosen_persona" in names and "chosen" not in names and set(_TAILORED.values()) <= names:
        complete = [row for row in rows if row.get("complete", True)]
        told = (
            "the responses were written for the personas by a tuned model: they are not the pairs from"
            " which the personas were inferred"
        )
        differs = [told]
        if cut := len(rows) - len(complete):
            differs.append(f"{cut:,} rows with a response that was cut off are left out")
        return PersonaTable.from_data(complete, columns=_TAILORED), differs
    if "chosen_persona" in names:
        return PersonaTable.from_data(rows), ["personas of the data, by whoever wrote them"]
    if model is None:
        raise InvalidArgumentError(
            "the data has no personas, and no model= is named to infer them.", hint="Name a model."
        )
    return infer_personas(rows, model, **options), [f"personas by {model}, not by Llama-3.1-405B"]


def _explained(table: PersonaTable, scorer: Likelihood) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 if a persona lifts the response of its own side more than the other one, 0.5 if equally, else 0.

    Shape (rows, 2): the chosen and the rejected side; NaN if there is no persona.
    """
    asked: list[tuple[int, int, Preference, Persona]] = []
    for place, row in enumerate(table):
        for n, persona in enumerate((row.chosen, row.rejected)):
            if row.preference is not None and persona is not None:
                pair = row.preference.swapped if n else row.preference
                asked.append((place, n, pair, persona))
    if not asked:
        raise DataError("no row has a persona and two responses.")
    margins = scorer.explains([pair for *_, pair, _ in asked], [who for *_, who in asked])
    scores = np.full((len(table), 2), np.nan)
    for (place, n, *_), margin in zip(asked, margins, strict=True):
        scores[place, n] = (np.sign(margin) + 1) / 2
    return scores


# Persona tailoring


def _persona_tailoring(
    rows: Rows, model: str | None, judge: str, scorer: Likelihood | None, options: Mapping[str, Any]
) -> Reproduction:
    """ΔPQ of responses for a persona against responses without a persona."""
    judging = {"judge": judge, **options}
    if scorer is not None:
        judging = {"judge": _judge_by_likelihood(scorer), "progress": options["progress"]}
    names = rows[0].keys()
    if {*_TAILORED.values(), "generic_response"} <= names:
        figures = _published_responses(rows, judging)
        differs = [
            "responses of the data, by an 8B model; whether SFT or DPO, its file does not say"
        ]
    elif "chosen_persona_gold" in names:
        if model is None:
            raise InvalidArgumentError(
                "the data has no responses, and no model= is named to write them.",
                hint="Name a model.",
            )
        figures = _few_shot(rows, model, judging, options)
        differs = [f"{model}, not Llama-3.1-8B, with 5 worked examples from half of the rows"]
    else:
        raise DataError(
            "the data has neither tailored responses nor the columns of persona-tailoring.",
            hint=f"Columns: prompt, chosen_persona, {', '.join(_TAILORED.values())}, generic_response.",
        )
    judged = f"{_judged_by(judge, scorer)}, not by Prometheus-2-7B"
    size = f"{figures[0].ours.n:,} prompts"
    return Reproduction("pt", tuple(figures), (judged, size, *differs))


def _judge_by_likelihood(scorer: Likelihood) -> Callable[..., int | str | None]:
    """A judge that prefers the response with the higher log p a token; with a persona, the higher lift.

    Responses that are too long for the model have no score, and so no verdict (None).
    """

    def likelihood(
        prompt: Any, first: str, second: str, persona: Persona | str | None
    ) -> int | str | None:
        if persona is None:
            one, two = scorer.log_likelihood(
                [prompt] * 2, [None] * 2, [first, second], per_token=True
            )
            margin = float(one - two)
        else:
            pair = Preference(prompt=prompt, chosen=first, rejected=second)
            margin = float(scorer.explains([pair], [persona])[0])
        if math.isnan(margin):
            return None
        return "neither" if margin == 0 else 1 if margin > 0 else 2

    return likelihood


def _published_responses(rows: Rows, judging: Mapping[str, Any]) -> list[Figure]:
    figures = []
    kept = [row for row in rows if row.get("complete", True)]
    for side in _SIDES:
        found = compare_responses(
            [row["prompt"] for row in kept],
            [row["generic_response"] for row in kept],
            [row[_TAILORED[side]] for row in kept],
            personas=[row[f"{side}_persona"] for row in kept],
            **judging,
        )
        assert found.delta_pq is not None  # personas are given
        for method in ("SFT", "DPO") if side == "chosen" else ():
            source = f"{_WHOSE_BOAT}, sections 4 and 5: {method}, BeaverTails, gold personas"
            name = f"ΔPQ, chosen personas, against {method}"
            figures.append(Figure(name, _TAILORING[method][1], source, _percent(found.delta_pq)))
        if side == "rejected":
            figures.append(Figure("ΔPQ, rejected personas", None, "", _percent(found.delta_pq)))
    return figures


def _few_shot(
    rows: Rows, model: str, judging: Mapping[str, Any], options: Mapping[str, Any]
) -> list[Figure]:
    gold, retrieved = (
        read_persona_tailoring(rows[1::2], personas=kind) for kind in ("gold", "retrieved")
    )
    writing = {"train": read_persona_tailoring(rows[::2]), "shots": 5, **options}
    plain = tailor_responses(gold, model, personas="none", **writing)
    figures = []
    for n, (kind, table) in enumerate((("retrieved", retrieved), ("gold", gold))):
        tailored = tailor_responses(table, model, personas="gold", **writing)
        found = compare_responses(
            tailored.prompts, plain, tailored, personas=tailored.personas, **judging
        )
        assert found.delta_pq is not None  # personas are given
        source = f"{_WHOSE_BOAT}, sections 4 and 5: few-shot, BeaverTails, {kind} personas"
        name = f"ΔPQ, few-shot, {kind} personas"
        figures.append(Figure(name, _TAILORING["few-shot"][n], source, _percent(found.delta_pq)))
    return figures


def _percent(one: Estimate) -> Estimate:
    return replace(one, value=100 * one.value, low=100 * one.low, high=100 * one.high)


# FamousPersona


def _wikipersonas(
    data: Any, model: str | None, scorer: Likelihood, limit: int | None, options: Mapping[str, Any]
) -> Reproduction:
    """How well prefixes predict the choices of famous people."""
    if model is None:
        raise InvalidArgumentError("wikipersonas needs model=, which writes the personas.")
    train, test = (read_famous_persona(data, split=split) for split in ("train", "test"))
    people = set(list(train.users)[:limit])
    history, asked = (
        [one for one in part.preferences if one.user in people] for part in (train, test)
    )
    personas = infer_user_personas(history, model, pairs_per_user=_PAIRS_A_USER, **options)
    prefixes = {
        "none": persona_prefix("none"),
        "tag": persona_prefix("tag"),
        "few-shot": persona_prefix("few-shot", history=history, k=_FEW_SHOT),
        "persona": persona_prefix("persona", personas=personas),
    }
    found = evaluate_prefixes(prefixes, asked, scorer, questions=test.questions or None)
    figures = []
    for name, published in _PREFIXES.items():
        by_kind = found.prefixes[name].questions
        for kind, value in zip(("personal", "divergent"), published, strict=True):
            if kind in by_kind:
                source = f"{_FAMOUS_PERSONA}, accuracy by prefix: Zephyr-7B, trained users; read off the plot"
                figures.append(Figure(f"accuracy, {name}, {kind}", value, source, by_kind[kind]))
    if not figures:
        figures = [
            Figure(f"accuracy, {name}", None, "", found.prefixes[name].accuracy)
            for name in _PREFIXES
        ]
    differs = (
        f"scored by {scorer.model} as it is, not by Zephyr-7B after DPO with the prefix",
        f"personas by {model}, from {_PAIRS_A_USER} pairs a person",
        f"{len(people):,} people, {len(asked):,} choices",
        "a tie counts half; intervals resample people",
    )
    return Reproduction("wikipersonas", tuple(figures), differs)


# PersonalLLM


def _personal_llm(data: Any, limit: int | None) -> Reproduction:
    """How far simulated users agree on the best response."""
    train = read_personal_llm(data, split="train")
    test = read_personal_llm(data, split="test", models=train.models)
    scaled = train.like(test.rewards, prompts=test.prompts, responses=test.responses)
    users = SimulatedUsers.sample(limit or _USERS, models=train.models, alpha=_ALPHA)
    found = votes(users.choose(scaled), scaled.rewards.shape[1])
    source = f"{_PERSONAL_LLM}, heterogeneity of simulated users"
    figures = (
        Figure(
            "share of prompts whose top response has a majority of the users",
            0.5,
            f"{source}: about half",
            bootstrap_rate((found.top_share > 0.5).astype(float)),
        ),
        Figure(
            "share of prompts with at least 5 responses that are somebody's best",
            0.6,
            f"{source}: about 60 %",
            bootstrap_rate((found.winners >= 5).astype(float)),
        ),
    )
    differs = (
        f"{found.users:,} users with alpha = {_ALPHA}; the paper has 1,000",
        f"{len(scaled):,} prompts of the test split, rewards z-scored by the training split",
        "published numbers are the paper's round ones",
    )
    return Reproduction("personalllm", figures, differs)
