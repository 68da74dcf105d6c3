"""Reproduce the main figures of papers: published numbers, ours, and how the measurements differ.

- "pi", "pt": persona inference and persona tailoring of "Whose Boat Does it Float?" (arXiv 2501.11549).
- "wikipersonas": FamousPersona (arXiv 2505.13257).
- "personalllm": PersonalLLM (arXiv 2409.20296).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, Unpack

import numpy as np

from ..arguments import Count, check_argument, takes_options
from ..data.file_formats import FILES, BrokenRow, open_rows
from ..data.table import PersonaTable
from ..data.table_display import result_text
from ..evaluation.comparison import compare_responses
from ..evaluation.judge import LikelihoodJudge, in_parts
from ..evaluation.paired_responses import pair_responses
from ..evaluation.results import ResponseComparison
from ..evaluation.statistics import Estimate, bootstrap_rate
from ..evaluation.verification import verify_personas
from ..exceptions import DataError, InvalidArgumentError, ModelError, UnknownOptionError
from ..llm.client import LLM, OPTIONS, LLMOptions, make_beside
from ..personas.infer import infer_personas
from ..preferences.labels import read_flag
from ..records import Persona, Preference, Side
from ..scoring.likelihood import Likelihood
from ..tailoring.published import read_persona_tailoring
from ..tailoring.responses import tailor_responses
from ..users.evaluate import evaluate_prefixes
from ..users.infer import infer_user_personas
from ..users.prefixes import persona_prefix
from ..users.records import ChoicesUsed
from .datasets import read_famous_persona, read_personal_llm
from .heterogeneity import votes
from .simulated_users import SimulatedUsers

Paper = Literal["pi", "pt", "wikipersonas", "personalllm"]
Rows = list[dict[str, Any]]

PAPERS: tuple[Paper, ...] = ("pi", "pt", "wikipersonas", "personalllm")
# The judge that compares log-probabilities; "likelihood:MODEL" names a model.
LIKELIHOOD = "likelihood"
_SIDES: tuple[Side, ...] = ("chosen", "rejected")
_TAILORED: dict[str, str] = {side: f"response_for_{side}_persona" for side in _SIDES}

# Sources of the published numbers, by section, because the numbers of tables were not checked.
_INFERENCE = (
    "arXiv 2501.11549, results of persona inference: Llama-3.1-405B, mean over four data sets"
)
_TAILORED_RESULTS = "arXiv 2501.11549, results of persona tailoring: BeaverTails, Llama-3.1-8B"
_BY_PREFIX = "arXiv 2505.13257, plot of accuracy by prefix: Zephyr-7B, trained users, to 0.002"
_HETEROGENEITY = "arXiv 2409.20296, heterogeneity of simulated users: round numbers of the text"
_ACCURACY = 0.91
# Method -> 100 ΔPQ on BeaverTails against the same method without personas: (retrieved, gold) personas.
_TAILORING = {"few-shot": (46.3, 55.0), "SFT": (12.3, 23.0), "DPO": (36.8, 41.6)}
# Prefix -> accuracy of the tuned Zephyr-7B on users of its training: (personal, divergent) questions.
_PREFIXES = {
    "none": (0.554, 0.534),
    "tag": (0.557, 0.538),
    "few-shot": (0.590, 0.614),
    "persona": (0.587, 0.630),
}
_FEW_SHOT, _PAIRS_A_USER = 2, 4
_USERS, _ALPHA = 1000, 0.05
_WIDTH = 80  # columns of what is printed


@dataclass(frozen=True)
class Figure:
    """One number of a paper, and the measurement of the same on other data.

    Attributes:
        name: what is measured, such as "accuracy, all personas".
        published: the number in the paper; None: the paper does not have it.
        source: where the paper has it; "" if `published` is None.
        ours: the measurement, with its 95 % interval.
    """

    name: str
    published: float | None
    source: str
    ours: Estimate


@dataclass(frozen=True)
class Reproduction:
    """The result of `reproduce`.

    Attributes:
        paper: the name of the paper, as given to `reproduce`.
        figures: the numbers of the paper beside the measured ones.
        differs: sentences on how the measurement differs from that of the paper, and on what failed.
        failed: how many rows, personas, responses and verdicts are missing because they failed.
    """

    paper: Paper
    figures: tuple[Figure, ...]
    differs: tuple[str, ...]
    failed: int = 0

    def __str__(self) -> str:
        grid: list[tuple[str, ...]] = [(self.paper, "published", "ours, 95 % interval")]
        for one in self.figures:
            published = "none" if one.published is None else f"{one.published:g}"
            grid.append((one.name, published, str(one.ours)))
        sources = dict.fromkeys(one.source for one in self.figures if one.source)
        said = ["Published:", *map(_item, sources), "What differs:", *map(_item, self.differs)]
        return result_text([], grid, said)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as dicts, tuples, texts and numbers. What could not be measured is NaN."""
        return asdict(self)


def _item(text: str) -> str:
    return fill(text, _WIDTH, initial_indent="  - ", subsequent_indent="    ")


@takes_options(LLMOptions)
def reproduce(
    paper: Paper,
    data: str | Path | Iterable[Mapping[str, Any]],
    *,
    model: str | None = None,
    judge: str = LIKELIHOOD,
    limit: int | None = None,
    progress: bool | None = None,
    **options: Unpack[LLMOptions],
) -> Reproduction:
    """Measure the main figures of a paper on data that you have.

    Args:
        paper: "pi", "pt", "wikipersonas" or "personalllm".
        data: "pi", "pt": a file or rows with the columns of the authors' data set `persona-tailoring`; or
            with personas and the responses that were tailored to them (`response_for_chosen_persona`,
            `response_for_rejected_persona`, `generic_response`); for "pi" also preference pairs, with or
            without `chosen_persona` and `rejected_persona`. "wikipersonas", "personalllm": the name of the
            published data set on the hub, or a folder with its files.
        model: the model that writes what is missing in the data: personas ("pi", "wikipersonas") or responses
            ("pt"). None: nothing may be missing; "wikipersonas" always needs a model, "personalllm" none.
        judge: a model that judges; or "likelihood:MODEL": compare the log-probabilities of a model;
            "likelihood": of "local". "wikipersonas" is always judged by likelihood, and "personalllm" needs
            no judge.
        limit: use only the first rows ("pi", "pt") or people ("wikipersonas"), so many; None: all.
            "personalllm": how many users are simulated; None: 1,000.
        progress: show a bar on standard error; None: in a terminal or a notebook.
        options: configure the LLMs that `model` and `judge` name: see `LLM`. `budget` is that of all calls
            together. Without `api_base`, a judge of another provider than the model's is not told the key and
            the headers.

    Returns:
        The published numbers beside the measured ones, and how the measurements differ.

    Raises:
        InvalidArgumentError: a bad argument; a model is needed and not named; or options that no model takes.
            (An `api_key` may be that of the environment.)
        UnknownOptionError: an option that `LLM` does not have.
        MissingExtraError: a package that loads the data or runs a model is not installed.
        DataError: the data cannot be loaded, has no rows, or lacks columns.
        ModelError: the model or the judge failed.
        CacheError: the cache of replies cannot be read or written.
    """
    UnknownOptionError.check(options, OPTIONS.union(inspect.signature(reproduce).parameters))
    InvalidArgumentError.check("paper", paper, PAPERS)
    limit = check_argument("limit", limit, Count | None)
    if not isinstance(judge, str):
        raise InvalidArgumentError(f"judge={judge!r:.60} is not a name of a model.")
    if paper == "personalllm":
        _refuse_unused(options)
        return _personal_llm(data, limit)
    scorer = _likelihood(judge)
    if paper == "wikipersonas":
        further = {**options, "progress": progress}
        return _wikipersonas(data, model, scorer or Likelihood(), limit, further)
    rows, broken = _first_rows(data, limit)
    if not rows:
        raise DataError("the data has no rows.")
    measure = _persona_inference if paper == "pi" else _persona_tailoring
    found = measure(rows, model, judge, scorer, progress, options)
    differs = (*found.differs, *_told(broken, "rows that cannot be read"))
    return replace(found, differs=differs, failed=found.failed + len(broken))


def _told(errors: Sequence[str], what: str) -> list[str]:
    return [f"{len(errors):,} {what}: {errors[0]}"] if errors else []


def _refuse_unused(options: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for options where no model is called."""
    for name in options.keys() - {"api_key"}:
        raise InvalidArgumentError(
            f"{name}= configures a model, and none is called here.",
            hint="Leave it out.",
            argument=name,
        )


def _likelihood(judge: str) -> Likelihood | None:
    kind, _, model = judge.partition(":")
    return Likelihood(model or "local") if kind == LIKELIHOOD else None


def _as_dict(place: int, row: object) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise InvalidArgumentError(
            f"data[{place}]={row!r:.80} is not a dict.",
            hint='Give frame.to_dict("records") of a pandas frame.',
        )
    return dict(row)


def _first_rows(
    data: str | Path | Iterable[Mapping[str, Any]], limit: int | None
) -> tuple[Rows, list[str]]:
    """Return the first rows that can be read, at most `limit`, and why the others among them cannot be."""
    rows: Rows = []
    broken: list[str] = []
    for row in _rows(data):
        if isinstance(row, BrokenRow):
            broken.append(row.error)
        elif isinstance(row, dict):
            rows.append(row)
        if len(rows) == limit:
            break
    return rows, broken


def _rows(data: str | Path | Iterable[Mapping[str, Any]]) -> Iterable[object]:
    if not isinstance(data, str | Path):
        if not isinstance(data, Iterable):
            raise InvalidArgumentError(f"data={data!r:.80} is neither a file nor rows.")
        return map(_as_dict, count(), data)
    if Path(data).suffix not in FILES:
        raise InvalidArgumentError(
            f"data={str(data)!r} is not a file that is read.",
            hint=f"Give a {', '.join(FILES)} file.",
        )
    return open_rows(data)[0]


def _names(rows: Rows) -> set[str]:
    """Return the names of the columns, which no single row needs to have all."""
    return set().union(*rows)


def _complete(rows: Rows) -> tuple[Rows, list[str]]:
    """Return the rows whose responses are whole, and a sentence on the others, if any."""
    complete = [row for row in rows if _is_complete(row)]
    cut = len(rows) - len(complete)
    said = f"{cut:,} rows with a response that was cut off are left out"
    return complete, [said] if cut else []


def _is_complete(row: Mapping[str, Any]) -> bool:
    try:
        return read_flag("complete", row.get("complete")) is not False
    except DataError:  # nobody knows
        return False


def _judged_by(judge: str, scorer: Likelihood | None) -> str:
    return f"judged by {judge}" if scorer is None else f"judged by the likelihood of {scorer.model}"


# Persona inference


def _writer(model: str | None, options: LLMOptions, lacking: str) -> LLM:
    if model is None:
        raise InvalidArgumentError(
            f"the data has no {lacking}.", hint="Name a model.", argument="model"
        )
    return LLM(model, **options)


def _persona_inference(
    rows: Rows,
    model: str | None,
    judge: str,
    scorer: Likelihood | None,
    progress: bool | None,
    options: LLMOptions,
) -> Reproduction:
    """Measure how often a judge who sees a persona picks the response of the persona's side."""
    read = _read_personas(rows)
    writer = None
    if read is None:
        writer = _writer(model, options, "personas, and no model is named to infer them")
    elif scorer is not None:
        _refuse_unused(options)
    # Before any call is paid for.
    asker = None if scorer is not None else make_beside([writer], judge, options)
    table, differs = read or _inferred(rows, writer, progress)
    failed = 0 if read else len(table.failed_places())
    if scorer is None:
        assert asker is not None
        found = verify_personas(table, asker, progress=progress)
        differs = [*differs, *found.remarks()]
        failed += found.failed
        accuracy = {side: one.accuracy for side, one in found.sides.items()}
        overall = found.overall.accuracy
    else:
        scores, unscored = _explained(table, scorer, progress)
        failed += unscored
        overall = bootstrap_rate(scores)
        accuracy = {side: bootstrap_rate(scores[:, n]) for n, side in enumerate(_SIDES)}
    figures = [Figure("accuracy, all personas", _ACCURACY, _INFERENCE, overall)]
    figures += [
        Figure(f"accuracy, {side} personas", None, "", one) for side, one in accuracy.items()
    ]
    judged = f"{_judged_by(judge, scorer)}, not by GPT-4o"
    size = f"{overall.n:,} rows, not 300 pairs of each of four data sets"
    return Reproduction("pi", tuple(figures), (judged, size, *differs), failed)


def _inferred(
    rows: Rows, writer: LLM | None, progress: bool | None
) -> tuple[PersonaTable, list[str]]:
    """Infer the personas of the rows; return them, and how they differ from those of the paper.

    Raises:
        ModelError: the model failed on every row.
    """
    table = infer_personas(rows, writer, progress=progress)
    failed = [table[place] for place in table.failed_places()]
    said = _told([str(row.error) for row in failed], "rows without a persona")
    if len(failed) == len(table) and any(row.preference is not None for row in failed):
        raise ModelError(*said)
    return table, [f"personas by {table.settings['model']}, not by Llama-3.1-405B", *said]


def _read_personas(rows: Rows) -> tuple[PersonaTable, list[str]] | None:
    """Read the personas of the rows, and how they differ from those of the paper; None: there are none."""
    names = _names(rows)
    if "chosen_persona_gold" in names:
        return read_persona_tailoring(rows), []
    if "chosen_persona" in names and "chosen" not in names and set(_TAILORED.values()) <= names:
        complete, cut = _complete(rows)
        told = (
            "the responses were written for the personas by a tuned model: they are not the pairs from"
            " which the personas were inferred"
        )
        return PersonaTable.from_data(complete, columns=_TAILORED), [told, *cut]
    if "chosen_persona" in names:
        return PersonaTable.from_data(rows), ["personas of the data, by whoever wrote them"]
    return None


def _explained(
    table: PersonaTable, scorer: Likelihood, progress: bool | None
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], int]:
    """Score personas by likelihood, shape (rows, 2): the chosen and the rejected side.

    1: the persona raises the log-probability of its own side's response more than that of the other one; 0.5:
    equally; 0: less. NaN: there is no persona, or no score. The second value counts personas without a score.

    Raises:
        DataError: no row has a persona and two responses.
    """
    asked: list[tuple[int, int, Preference, Persona]] = []
    for place, row in enumerate(table):
        for n, persona in enumerate((row.chosen, row.rejected)):
            if row.preference is not None and persona is not None:
                pair = row.preference.swapped if n else row.preference
                asked.append((place, n, pair, persona))
    if not asked:
        raise DataError("no row has a persona and two responses.")
    margins = in_parts(
        asked,
        progress,
        "persona",
        lambda part: scorer.explains([pair for *_, pair, _ in part], [who for *_, who in part]),
    )
    scores = np.full((len(table), 2), np.nan)
    for (place, n, *_), margin in zip(asked, margins, strict=True):
        scores[place, n] = (np.sign(margin) + 1) / 2
    return scores, int(np.isnan(margins).sum())


# Persona tailoring


def _persona_tailoring(
    rows: Rows,
    model: str | None,
    judge: str,
    scorer: Likelihood | None,
    progress: bool | None,
    options: LLMOptions,
) -> Reproduction:
    """Measure 100 ΔPQ of responses for a persona against responses without a persona.

    ΔPQ = W_P + W_Q - 1: the former responses' win rates in personalization and in quality. See `delta_pq`.
    """

    def judging(writer: LLM | None) -> dict[str, Any]:
        if scorer is not None:
            return {"judge": LikelihoodJudge(scorer, progress), "progress": False}
        return {"judge": make_beside([writer], judge, options), "progress": progress}

    names, unwritten = _names(rows), list[str]()
    if {*_TAILORED.values(), "generic_response"} <= names:
        if scorer is not None:
            _refuse_unused(options)
        complete, cut = _complete(rows)
        figures, found = _published_responses(complete, judging(None))
        differs = [
            "responses of the data, by an 8B model; whether SFT or DPO, its file does not say",
            *cut,
        ]
    elif "chosen_persona_gold" in names:
        llm = _writer(model, options, "responses, and no model is named to write them")
        figures, found, unwritten = _few_shot(rows, llm, judging(llm), progress)
        differs = [f"{model}, not Llama-3.1-8B, with 5 worked examples from half of the rows"]
        differs += _told(unwritten, "responses that were not written")
    else:
        raise DataError(
            "the data has neither tailored responses nor the columns of persona-tailoring.",
            hint=f"Columns: prompt, chosen_persona, {', '.join(_TAILORED.values())}, generic_response.",
        )
    unjudged = [why for one in found for why, count in one.problems.items() for _ in range(count)]
    differs += _told(unjudged, "verdicts without a usable reply")
    failed = len(unwritten) + len(unjudged)
    judged = f"{_judged_by(judge, scorer)}, not by Prometheus-2-7B"
    size = f"{figures[0].ours.n:,} prompts, whose responses the judge tells apart"
    return Reproduction("pt", tuple(figures), (judged, size, *differs), failed)


def _published_responses(
    rows: Rows, judging: Mapping[str, Any]
) -> tuple[list[Figure], list[ResponseComparison]]:
    found = {}
    prompts, generic = ([row.get(name) for row in rows] for name in ("prompt", "generic_response"))
    for side in _SIDES:
        tailored, said = (
            [row.get(name) for row in rows] for name in (_TAILORED[side], f"{side}_persona")
        )
        personas = [one if isinstance(one, str | Persona) else None for one in said]
        found[side] = _compared(prompts, generic, tailored, personas, judging)
    figures = [
        *(
            Figure(
                f"100 ΔPQ, chosen ({method} published)",
                _TAILORING[method][1],
                f"{_TAILORED_RESULTS}, {method}, gold personas",
                _percent(found["chosen"]),
            )
            for method in ("SFT", "DPO")
        ),
        Figure("100 ΔPQ, rejected", None, "", _percent(found["rejected"])),
    ]
    return figures, list(found.values())


def _compared(
    prompts: Sequence[Any],
    base: Sequence[str | None],
    test: Sequence[str | None],
    personas: Sequence[Persona | str | None],
    judging: Mapping[str, Any],
) -> ResponseComparison:
    """Compare the test responses with the base responses, for these personas."""
    if isinstance(judging["judge"], LikelihoodJudge):
        pairs = pair_responses(prompts, base, test, personas)
        read = [(one.pair, one.persona) for one in pairs if one.pair and one.persona is not None]
        judging["judge"].read(
            [pair.prompt for pair, _ in read],
            [persona for _, persona in read],
            [pair.rejected for pair, _ in read],
            [pair.chosen for pair, _ in read],
        )
    return compare_responses(prompts, base, test, personas=personas, **judging)


def _percent(compared: ResponseComparison) -> Estimate:
    """Return 100 ΔPQ of the test responses against the base responses."""
    found = compared.delta_pq
    assert found is not None  # personas are given
    return replace(found, value=100 * found.value, low=100 * found.low, high=100 * found.high)


def _few_shot(
    rows: Rows, llm: LLM, judging: Mapping[str, Any], progress: bool | None
) -> tuple[list[Figure], list[ResponseComparison], list[str]]:
    """Return the figures, the comparisons behind them, and why responses were not written."""
    gold, retrieved = (
        read_persona_tailoring(rows[1::2], personas=kind) for kind in ("gold", "retrieved")
    )
    train = read_persona_tailoring(rows[::2])
    write = partial(tailor_responses, model=llm, train=train, shots=5, progress=progress)
    plain = write(gold, personas="none")
    figures, found, unwritten = [], [], list(plain.errors.values())
    for n, (kind, table) in enumerate((("retrieved", retrieved), ("gold", gold))):
        tailored = write(table, personas="gold")
        unwritten += tailored.errors.values()
        ours = _compared(
            [tailored.prompts[id] for id in tailored],
            [plain[id] for id in tailored],
            list(tailored.values()),
            [tailored.personas[id] for id in tailored],
            judging,
        )
        source = f"{_TAILORED_RESULTS}, few-shot"
        name = f"100 ΔPQ, few-shot, {kind}"
        figures.append(Figure(name, _TAILORING["few-shot"][n], source, _percent(ours)))
        found.append(ours)
    return figures, found, unwritten


# FamousPersona


def _wikipersonas(
    data: Any, model: str | None, scorer: Likelihood, limit: int | None, options: Mapping[str, Any]
) -> Reproduction:
    """Measure how well each prefix predicts the choices of famous people."""
    if model is None:
        raise InvalidArgumentError(
            "wikipersonas needs a model, which writes the personas.", argument="model"
        )
    train, test = (read_famous_persona(data, split=split) for split in ("train", "test"))
    people = set(list(train.users)[:limit])
    history, asked = (
        [one for one in part.preferences if one.user in people] for part in (train, test)
    )
    known = {user: ChoicesUsed(train.of(user)) for user in people}
    asked = [one for one in asked if not known[one.user or ""].holds_texts(one)]
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
                figures.append(
                    Figure(f"accuracy, {name}, {kind}", value, _BY_PREFIX, by_kind[kind])
                )
    if not figures:
        figures = [
            Figure(f"accuracy, {name}", None, "", found.prefixes[name].accuracy)
            for name in _PREFIXES
        ]
    unknown = list(personas.errors.values())
    differs = (
        f"scored by {scorer.model} as it is, not by Zephyr-7B after DPO with the prefix",
        f"personas by {model}, from {_PAIRS_A_USER} pairs a person",
        f"{len(people):,} people, {len(asked):,} choices",
        "a tie counts half; intervals resample people",
        *_told(unknown, "people without a persona"),
    )
    return Reproduction("wikipersonas", tuple(figures), differs, len(unknown))


# PersonalLLM


def _personal_llm(data: Any, limit: int | None) -> Reproduction:
    """Measure how often simulated users agree on the best response."""
    train = read_personal_llm(data, split="train")
    test = read_personal_llm(data, split="test", models=train.models)
    scaled = train.like(test.rewards, prompts=test.prompts, responses=test.responses)
    users = SimulatedUsers.sample(limit or _USERS, models=train.models, alpha=_ALPHA)
    found = votes(users.choose(scaled), scaled.rewards.shape[1])
    measured = (
        ("prompts on which most users agree", 0.5, found.top_share > 0.5),
        ("prompts with 5 or more winners", 0.6, found.winners >= 5),
    )
    figures = tuple(
        Figure(name, published, _HETEROGENEITY, bootstrap_rate(prompts.astype(float)))
        for name, published, prompts in measured
    )
    differs = (
        f"{found.users:,} users with alpha = {_ALPHA}; the paper has 1,000",
        f"{len(scaled):,} prompts of the test split, rewards z-scored by the training split",
    )
    return Reproduction("personalllm", figures, differs)
