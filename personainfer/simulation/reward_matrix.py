"""Rewards of several models for responses to prompts, on one scale.

The rewards come from an array, from columns, from reward models of transformers, from the lift of personas,
or from any callable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from itertools import islice
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from ..arguments import Text, check_argument, read_items, read_numbers
from ..exceptions import DataError, InvalidArgumentError, shown_when_made
from ..records import FloatArray, Message, Persona, Prompt

# Prompts and responses -> n rewards.
Scorer = Callable[[Sequence[Prompt], Sequence[str]], npt.ArrayLike]

# PersonalLLM's name for the model PKU-Alignment/beaver-7b-v1.0-cost
_KNOWN_COSTS = frozenset(["beaver_7b"])
_COST = re.compile(r"(?:^|[^a-z])cost(?:$|[^a-z])")
_RESPONSE = re.compile(r"response_(\d{1,9})")
_HEAD = 100  # rows in which reward columns are looked for, because a single row may lack a reward


class Lifting(Protocol):
    """An object that says how much a persona raises the likelihood of a response, such as `Likelihood`."""

    def lift(
        self, prompts: Sequence[Prompt], personas: Sequence[Persona | str], responses: Sequence[str]
    ) -> npt.ArrayLike:
        """Return how much each persona raises log p of its response, in nats: n numbers for n rows."""


class RewardMatrix:
    """Rewards of shape (prompts, responses, models), with the names of the models.

    Reward models have different scales, so the rewards of each are z-scored once, over all prompts and
    responses of the matrix. Simulated users choose by `zscores`, and `score_responses` scores by z-scores,
    too. `take` and `like` make other matrices on the same scale. The z-scores of costs are negated, so that
    more is better. PersonalLLM (arXiv 2409.20296, section 4) evaluates by z-scores too, but its users choose
    by raw rewards.

    Args:
        rewards: shape (prompts, responses, models), as the models gave them.
        models: the name of each model.
        prompts: a text or messages for each prompt. `SimulatedUsers.histories` needs them. None: there are no
            texts of prompts.
        responses: texts, shape (prompts, responses). `SimulatedUsers.histories` needs them. None: there are
            no texts of responses.
        costs: the names of the models whose output is a cost; None: those with the word "cost" in their name,
            and PersonalLLM's `beaver_7b`.

    Attributes:
        rewards, models, prompts, responses: what was given; `rewards` as an array that cannot be written, the
            others as tuples, or None.
        costs: the names of the models whose output is a cost.
        mean, deviation: mean and standard deviation of each model's rewards, shape (models,).
        zscores: shape (prompts, responses, models); the array cannot be written.
        dropped: reason -> how many rows `from_columns` left out; empty for a matrix that was made otherwise.

    Raises:
        DataError: a reward is missing (NaN) or infinite, a model gives every response the same reward, or a
            prompt occurs twice.
        InvalidArgumentError: shapes and names that do not fit each other.
    """

    def __init__(
        self,
        rewards: npt.ArrayLike,
        *,
        models: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        responses: Sequence[Sequence[str]] | None = None,
        costs: Collection[str] | None = None,
    ) -> None:
        self.models = check_models(models)
        self._set(rewards, prompts, responses)
        self.costs = _costs(costs, self.models)
        self.mean, self.deviation = _scale(self.rewards, self.models)
        self.dropped: Mapping[str, int] = {}
        self.zscores = self._zscores()

    def _set(
        self,
        rewards: npt.ArrayLike,
        prompts: Sequence[Prompt] | None,
        responses: Sequence[Sequence[str]] | None,
    ) -> None:
        self.rewards = _rewards(rewards, self.models)
        self.prompts = _prompts(prompts, len(self.rewards))
        self.responses = _responses(responses, self.rewards.shape[:2])

    @shown_when_made
    def __repr__(self) -> str:
        prompts, responses, models = self.rewards.shape
        names = ", ".join(self.models)
        return (
            f"RewardMatrix({prompts:,} prompts x {responses} responses x {models} models: {names})"
        )

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.rewards)

    @property
    def texts(self) -> tuple[tuple[Prompt, ...], tuple[tuple[str, ...], ...]]:
        """The prompts, and for each prompt its responses.

        Raises:
            InvalidArgumentError: the matrix has no prompts or no responses.
        """
        if self.prompts is None or self.responses is None:
            raise InvalidArgumentError(
                "the RewardMatrix has no texts.",
                hint="Make it with prompts= and responses=.",
            )
        return self.prompts, self.responses

    def take(self, prompts: Sequence[int] | npt.NDArray[np.int_] | slice) -> RewardMatrix:
        """Make a matrix of some prompts, which are selected by their places. The z-scores stay the same.

        Args:
            prompts: places from 0, or a slice of places; at least one, and none twice.

        Raises:
            InvalidArgumentError: a place does not exist or is no place, or none is given.
            DataError: a place is given twice, and the matrix has prompts.
        """
        try:
            places = np.arange(len(self))[prompts]
        except (IndexError, ValueError, TypeError) as error:
            raise InvalidArgumentError(f"prompts= names no places: {error}") from None
        if places.ndim != 1:
            raise InvalidArgumentError(f"prompts={prompts!r:.80} is not a list of places.")
        texts = None if self.prompts is None else [self.prompts[n] for n in places]
        responses = None if self.responses is None else [self.responses[n] for n in places]
        return self.like(self.rewards[places], prompts=texts, responses=responses)

    def like(
        self,
        rewards: npt.ArrayLike,
        *,
        prompts: Sequence[Prompt] | None = None,
        responses: Sequence[Sequence[str]] | None = None,
    ) -> RewardMatrix:
        """Make a matrix of other rewards of the same models, on the same scale.

        The means, the deviations and the costs of this matrix are used, so that responses which were
        generated later are scored like those that users chose from.

        Args:
            rewards: shape (prompts, responses, models), with the models in the same order. The numbers of
                prompts and responses may be others.
            prompts, responses: as for `RewardMatrix`.

        Raises:
            DataError: a reward is missing (NaN) or infinite, or a prompt occurs twice.
            InvalidArgumentError: shapes that do not fit.
        """
        other = copy(self)
        other.dropped = {}
        other._set(rewards, prompts, responses)
        other.zscores = other._zscores()
        return other

    @classmethod
    def from_columns(
        cls,
        rows: Iterable[Mapping[str, Any]],
        *,
        models: Sequence[str] | None = None,
        prompt: str = "prompt",
        costs: Collection[str] | None = None,
    ) -> RewardMatrix:
        """Read rewards from columns `response_1`, `response_1_<model>`, …, as PersonalLLM publishes them.

        Rows with a repeated prompt, or without a text or a reward, are left out and counted in `dropped`.

        Args:
            rows: dicts, or a Hugging Face dataset; `frame.to_dict("records")` of a pandas frame.
            models: the models to read; None: all with a number in the first 100 rows.
            prompt: the name of the prompt's column.
            costs: as for `RewardMatrix`.

        Raises:
            DataError: a column is missing, no row can be used, or a model gives every response the same
                reward.
            InvalidArgumentError: the rows are not dicts, or a bad argument.
        """
        check_argument("prompt", prompt, Text)
        if not isinstance(rows, Iterable):
            raise InvalidArgumentError(f"rows={rows!r:.80} is not rows.", hint="Give dicts.")
        stream = iter(rows)
        head = list(islice(stream, _HEAD))
        if not head:
            raise DataError("there are no rows.")
        numbers, names = _columns(head, models, prompt)
        kept: dict[str, tuple[list[str], list[list[float]]]] = {}
        dropped: Counter[str] = Counter()
        for row in (*head, *stream):
            problem, texts, scores = _read_row(row, numbers, names, prompt)
            if problem is None and row[prompt] in kept:
                problem = "prompt occurs twice"
            if problem is None:
                kept[row[prompt]] = (texts, scores)
            else:
                dropped[problem] += 1
        if not kept:
            raise DataError(f"no row can be used: {_listed(dropped)}.")
        rewards = [scores for _, scores in kept.values()]
        responses = [texts for texts, _ in kept.values()]
        matrix = cls(rewards, models=names, prompts=list(kept), responses=responses, costs=costs)
        matrix.dropped = dict(dropped)
        return matrix

    @classmethod
    def from_scorers(
        cls,
        scorers: Mapping[str, Scorer],
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[str]],
        *,
        costs: Collection[str] | None = None,
    ) -> RewardMatrix:
        """Compute rewards with callables. Each is called once, with all responses.

        Args:
            scorers: name -> callable (n prompts, n responses) -> n rewards, such as a `RewardClassifier`. n
                is the number of all responses. Errors of a callable are raised unchanged.
            prompts: a text or messages for each prompt.
            responses: texts, shape (prompts, responses).
            costs: as for `RewardMatrix`.

        Raises:
            DataError: as `RewardMatrix`.
            InvalidArgumentError: there is no scorer, a scorer does not return n numbers, or as
                `RewardMatrix`.
        """
        check_argument("scorers", scorers, Mapping[str, Callable[..., Any]])
        if not scorers:
            raise InvalidArgumentError("scorers= names no model.")
        prompts, responses = read_items("prompts", prompts), read_items("responses", responses)
        asked = _prompts(prompts, len(prompts)) or ()
        shape = (len(asked), len(_several(responses[0])) if responses else 0)
        offered = _responses(responses, shape) or ()
        flat = [prompt for prompt, texts in zip(asked, offered, strict=True) for _ in texts]
        texts = [text for texts in offered for text in texts]
        columns = [scored(name, scorer, flat, texts) for name, scorer in scorers.items()]
        rewards = np.stack(columns, axis=-1).reshape(*shape, len(scorers))
        return cls(rewards, models=list(scorers), prompts=asked, responses=offered, costs=costs)

    @classmethod
    def from_lifts(
        cls,
        likelihood: Lifting,
        personas: Mapping[str, Persona | str],
        prompts: Sequence[Prompt],
        responses: Sequence[Sequence[str]],
    ) -> RewardMatrix:
        """Use personas as reward models, whose reward is the lift of a response, in nats.

        lift = log p(response | prompt, persona) - log p(response | prompt).

        Args:
            likelihood: an object with `lift(prompts, personas, responses)`, as `Likelihood`. The method is
                called once for each persona.
            personas: the personas by name.
            prompts, responses: as for `from_scorers`.

        Raises:
            DataError, InvalidArgumentError: as `from_scorers`. A lift that is NaN is a missing reward.
            ModelError: the model of `likelihood` cannot be loaded or reached.
        """

        if not callable(getattr(likelihood, "lift", None)):
            raise InvalidArgumentError(
                f"likelihood={likelihood!r:.80} has no method lift.", hint="Pass a Likelihood."
            )
        check_argument("personas", personas, Mapping[str, Any])

        def scorer(persona: Persona | str) -> Scorer:
            return lambda asked, texts: likelihood.lift(asked, [persona] * len(texts), texts)

        scorers = {name: scorer(persona) for name, persona in personas.items()}
        return cls.from_scorers(scorers, prompts, responses, costs=())

    def _zscores(self) -> FloatArray:
        sign = np.where([name in self.costs for name in self.models], -1.0, 1.0)
        scores: FloatArray = (self.rewards - self.mean) * (sign / self.deviation)
        scores.setflags(write=False)
        return scores


def check_models(models: Sequence[str]) -> tuple[str, ...]:
    """Return the names of models as a tuple.

    Raises:
        InvalidArgumentError: there is no name, a name is not text, or it occurs twice.
    """
    names = _several(models)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidArgumentError(
            f"models={models!r:.80} must be the names of the models, in order."
        )
    if twins := [name for name, count in Counter(names).items() if count > 1]:
        raise InvalidArgumentError(f"models= names {twins[0]!r} twice.")
    return names


def _rewards(given: npt.ArrayLike, models: Sequence[str]) -> FloatArray:
    rewards = read_numbers("rewards", given, dimensions=(0, 1, 2, 3), infinite=True)
    if rewards.ndim != 3 or not rewards.size or rewards.shape[2] != len(models):
        raise InvalidArgumentError(
            f"rewards has the shape {rewards.shape}, not (prompts, responses, {len(models)} models)."
        )
    broken = np.argwhere(~np.isfinite(rewards))
    if len(broken):
        prompt, response, model = broken[0]
        raise DataError(
            f"{len(broken):,} rewards are missing or infinite; the first is that of prompt {prompt},"
            f" response {response}, model {models[model]!r}.",
            hint="Leave the prompt or the model out.",
        )
    rewards.setflags(write=False)
    return rewards


def _scale(rewards: FloatArray, models: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    flat = rewards.reshape(-1, rewards.shape[2])
    spread = np.ptp(flat, axis=0)
    same = np.flatnonzero(spread == 0)
    if len(same):
        raise DataError(
            f"the model {models[same[0]]!r} gives every response the reward {flat[0, same[0]]:g}, so it"
            " has no z-scores.",
            hint="Leave it out, or give more responses.",
        )
    # Divided by the spread first, because the square of a tiny or huge reward is 0 or infinite.
    return flat.mean(axis=0), (flat / spread).std(axis=0) * spread


def _costs(given: Collection[str] | None, models: Sequence[str]) -> frozenset[str]:
    if given is None:
        words = (name for name in models if _COST.search(name.lower()))
        return frozenset(words) | _KNOWN_COSTS.intersection(models)
    named = frozenset([given] if isinstance(given, str) else map(str, read_items("costs", given)))
    if unknown := named - set(models):
        raise InvalidArgumentError(
            f"costs= names {_listed(unknown)}, which models= does not.",
            hint=f"The models are {', '.join(models)}.",
        )
    return named


def _prompts(given: Sequence[Prompt] | None, count: int) -> tuple[Prompt, ...] | None:
    if given is None:
        return None
    prompts = tuple(
        each if isinstance(each, str) else _several(each) for each in read_items("prompts", given)
    )
    if len(prompts) != count:
        raise InvalidArgumentError(f"{len(prompts)} prompts= for rewards of {count} prompts.")
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not (
            prompt and all(isinstance(one, Message) for one in prompt)
        ):
            raise InvalidArgumentError(f"prompts[{place}] is neither a text nor messages.")
    first: dict[Prompt, int] = {}
    for place, prompt in enumerate(prompts):
        if first.setdefault(prompt, place) != place:
            raise DataError(
                f"prompt {place} is the same as prompt {first[prompt]}: {prompt!r:.60}.",
                hint="Each prompt is one row; leave the second one out.",
            )
    return prompts


def _responses(
    given: Sequence[Sequence[str]] | None, shape: tuple[int, ...]
) -> tuple[tuple[str, ...], ...] | None:
    if given is None:
        return None
    responses = tuple(map(_several, read_items("responses", given)))
    if len(responses) != shape[0]:
        raise InvalidArgumentError(f"{len(responses)} rows of responses= for {shape[0]} prompts.")
    for place, texts in enumerate(responses):
        if len(texts) != shape[1] or not all(isinstance(text, str) for text in texts):
            raise InvalidArgumentError(f"responses[{place}] is not a list of {shape[1]} texts.")
    return responses


def _several(given: Any) -> tuple[Any, ...]:
    """Return the items of an iterable as a tuple; () for a text, a set (no order), and no iterable."""
    try:
        return () if isinstance(given, str | set | frozenset) else tuple(given)
    except TypeError:
        return ()


def scored(
    name: str, scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[str]
) -> FloatArray:
    """Call a scorer, and check that it returns one number for each response, shape (n,).

    NaN and infinite numbers are returned, too.

    Raises:
        InvalidArgumentError: the scorer returned something else.
    """
    found = read_numbers(
        f"the result of scorers[{name!r}]",
        scorer(prompts, responses),
        dimensions=(0, 1, 2),
        infinite=True,
    )
    if found.shape != (len(responses),):
        raise InvalidArgumentError(
            f"scorers=: {name!r} gives numbers of shape {found.shape} for {len(responses)} responses."
        )
    return found


def _columns(
    head: Sequence[Mapping[str, Any]], models: Sequence[str] | None, prompt: str
) -> tuple[list[int], tuple[str, ...]]:
    """Find the numbers of the responses (1, 2, …) and the models' names in the columns of the first rows.

    Args:
        head: the first rows, each of which may lack a column. A column that has no number in any is no model.
        models: the models to read; None: all.
        prompt: the name of the prompt's column.

    Raises:
        DataError: a column is missing.
        InvalidArgumentError: the first row is not a dict, or `models` holds something else than different
            names.
    """
    if not isinstance(head[0], Mapping):
        hint = 'Give frame.to_dict("records") of a pandas frame.'
        raise InvalidArgumentError(f"rows= gives {head[0]!r:.40}, which is not a dict.", hint=hint)
    rows = [row for row in head if isinstance(row, Mapping)]
    known = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in known if isinstance(name, str)]
    numbers = sorted(int(m[1]) for name in columns if (m := _RESPONSE.fullmatch(name)))
    if prompt not in known or not numbers:
        raise DataError(
            f"the columns are {_listed(known)}: not {prompt!r}, 'response_1', 'response_1_<model>', ….",
            hint="These are the columns of namkoong-lab/PersonalLLM.",
        )
    start = f"response_{numbers[0]}_"
    scored = [
        name.removeprefix(start)
        for name in columns
        if name.startswith(start) and any(is_real(row.get(name)) for row in rows)
    ]
    names = check_models(models if models is not None else sorted(scored))
    for name in (f"response_{number}_{model}" for number in numbers for model in names):
        if name not in known:
            raise DataError(
                f"there is no column {name!r}.", hint=f"The models are {_listed(scored)}."
            )
    return numbers, names


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a number, and not a bool."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _read_row(
    row: Mapping[str, Any], numbers: Sequence[int], models: Sequence[str], prompt: str
) -> tuple[str | None, list[str], list[list[float]]]:
    """Return why a row cannot be used (None: it can), its responses, and its rewards by response.

    The rewards have the shape (responses, models). If the row cannot be used, both lists are empty.
    """
    if not isinstance(row, Mapping):
        return f"a row is of type {type(row).__name__}", [], []
    texts = [row.get(f"response_{number}") for number in numbers]
    if not all(isinstance(text, str) and text.strip() for text in (row.get(prompt), *texts)):
        return "text missing", [], []
    values = [[row.get(f"response_{number}_{model}") for model in models] for number in numbers]
    try:
        scores = [[float(v) for v in line if is_real(v)] for line in values]
    except OverflowError:
        return "reward too large", [], []
    if not all(len(line) == len(models) and np.isfinite(line).all() for line in scores):
        return "reward missing", [], []
    return None, [str(text) for text in texts], scores


def _listed(names: Iterable[object] | Mapping[str, int]) -> str:
    if isinstance(names, Counter):
        return ", ".join(f"{name} ({count:,})" for name, count in names.most_common())
    shown = sorted(map(str, names))
    more = f", … ({len(shown)} in all)" if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more
