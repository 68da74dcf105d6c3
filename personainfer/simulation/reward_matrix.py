"""The rewards that several models give to the responses to prompts: a named array, on one scale.

Rewards come from an array, from columns, from reward models of transformers, from the lift of personas, or
from any callable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..arguments import read_numbers
from ..exceptions import DataError, InvalidArgumentError, shown_when_made
from ..records import FloatArray, Persona, Prompt

Scorer = Callable[[Sequence[Prompt], Sequence[str]], npt.ArrayLike]

# PersonalLLM's column of the model PKU-Alignment/beaver-7b-v1.0-cost.
_KNOWN_COSTS = frozenset(["beaver_7b"])
_COST = re.compile(r"(?:^|[^a-z])cost(?:$|[^a-z])")
_RESPONSE = re.compile(r"response_(\d+)")
_HEAD = 100  # rows that are read to find the reward columns: a single row may lack a reward


class Lifting(Protocol):
    """Says how much a persona raises the likelihood of a response: `Likelihood`."""

    def lift(
        self, prompts: Sequence[Prompt], personas: Sequence[Persona | str], responses: Sequence[str]
    ) -> npt.ArrayLike:
        """One number for each prompt, persona and response, all of length n."""


class RewardMatrix:
    """Rewards of shape (prompts, responses, models), with the names of the models.

    Each reward model has its own scale, so each is z-scored once, over all prompts and responses of the
    matrix; users choose and are scored by `zscores`. `take` and `like` make other matrices on the same
    scale. Costs are negated before that, so that more is better.

    Args:
        rewards: shape (prompts, responses, models), as the models gave them.
        models: the name of each model.
        prompts: a text or messages for each prompt; needed to make `Preference` records.
        responses: texts, shape (prompts, responses); needed for the same.
        costs: the models whose output is a cost, by name; None: those with the word "cost" in their
            name, and PersonalLLM's `beaver_7b`.

    Raises:
        DataError: a reward is missing (NaN) or infinite, a model gives every response the same reward,
            or a prompt occurs twice.
        InvalidArgumentError: shapes and names that do not fit each other.

    PersonalLLM (arXiv 2409.20296, section 4) evaluates by these z-scores; its users choose by raw rewards.
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
        self.rewards = _rewards(rewards, self.models)
        self.prompts = _prompts(prompts, len(self.rewards))
        self.responses = _responses(responses, self.rewards.shape[:2])
        self.costs = _costs(costs, self.models)
        self.mean, self.deviation = _scale(self.rewards, self.models)
        self.dropped: Mapping[str, int] = {}
        self.zscores = self._zscores()

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
        """Prompts and responses.

        Raises:
            InvalidArgumentError: the matrix was made without them.
        """
        if self.prompts is None or self.responses is None:
            raise InvalidArgumentError(
                "the RewardMatrix has no texts.",
                hint="Make it with prompts= and responses=.",
            )
        return self.prompts, self.responses

    def take(self, prompts: Sequence[int] | npt.NDArray[np.int_] | slice) -> RewardMatrix:
        """The matrix of some prompts, by their places, on the same scale.

        Raises:
            InvalidArgumentError: a place that there is not.
        """
        try:
            places = np.arange(len(self))[prompts]
        except IndexError as error:
            raise InvalidArgumentError(f"prompts= names no places: {error}") from None
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
        """Rewards of the same models for other prompts or responses, on the same scale.

        They are z-scored by this matrix's means and deviations, so that a response generated later is
        scored like those that users chose from.
        """
        other = object.__new__(RewardMatrix)
        other.models, other.costs, other.dropped = self.models, self.costs, {}
        other.mean, other.deviation = self.mean, self.deviation
        other.rewards = _rewards(rewards, self.models)
        other.prompts = _prompts(prompts, len(other.rewards))
        other.responses = _responses(responses, other.rewards.shape[:2])
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
        """Rewards from columns `response_1`, `response_1_<model>`, …, as PersonalLLM publishes them.

        Args:
            rows: dicts, or a Hugging Face dataset; `frame.to_dict("records")` of a pandas frame.
            models: which of them; None: all whose column holds numbers in the first 100 rows.
            prompt: the name of the prompt's column.
            costs: as for `RewardMatrix`.

        Rows with a repeated prompt, or without a text or a reward, are left out and counted in `dropped`.
        """
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
        """Rewards from callables, each called once with all prompts and responses.

        Args:
            scorers: for each name a callable (prompts, responses) -> numbers, where both have the same
                length n; a `RewardClassifier` is one.
            prompts: a text or messages for each prompt.
            responses: texts, shape (prompts, responses).
            costs: as for `RewardMatrix`.
        """
        if not scorers:
            raise InvalidArgumentError("scorers= names no model.")
        prompts, responses = _several(prompts), _several(responses)
        asked = _prompts(prompts, len(prompts)) or ()
        shape = (len(asked), len(responses[0]) if responses else 0)
        offered = _responses(responses, shape) or ()
        flat = [prompt for prompt, texts in zip(asked, offered, strict=True) for _ in texts]
        texts = [text for texts in offered for text in texts]
        columns = [_scored(name, scorer, flat, texts) for name, scorer in scorers.items()]
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
        """Rewards that are lifts: log p(response | prompt, persona) - log p(response | prompt), in nats.

        Each persona is a reward model, so this needs no download.

        Args:
            likelihood: an object with `lift(prompts, personas, responses)`, as `Likelihood`.
            personas: the personas by name.
            prompts, responses: as for `from_scorers`.
        """

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
    """The names as a tuple.

    Raises:
        InvalidArgumentError: there are none, one is not text, or one occurs twice.
    """
    names = _several(models)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidArgumentError(f"models={models!r:.80} must be the names of the models.")
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
    return flat.mean(axis=0), (flat / spread).std(
        axis=0
    ) * spread  # a tiny or huge unit has no square


def _costs(given: Collection[str] | None, models: Sequence[str]) -> frozenset[str]:
    if given is None:
        words = (name for name in models if _COST.search(name.lower()))
        return frozenset(words) | _KNOWN_COSTS.intersection(models)
    named = frozenset([given] if isinstance(given, str) else given)
    if unknown := named - set(models):
        raise InvalidArgumentError(
            f"costs= names {_listed(unknown)}, which models= does not.",
            hint=f"The models are {', '.join(models)}.",
        )
    return named


def _prompts(given: Sequence[Prompt] | None, count: int) -> tuple[Prompt, ...] | None:
    if given is None:
        return None
    prompts = tuple(each if isinstance(each, str) else _several(each) for each in given)
    if len(prompts) != count:
        raise InvalidArgumentError(f"{len(prompts)} prompts= for rewards of {count} prompts.")
    if () in prompts:
        raise InvalidArgumentError(f"prompts[{prompts.index(())}] is neither a text nor messages.")
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
    responses = tuple(map(_several, given))
    if len(responses) != shape[0]:
        raise InvalidArgumentError(f"{len(responses)} rows of responses= for {shape[0]} prompts.")
    for place, texts in enumerate(responses):
        if len(texts) != shape[1] or not all(isinstance(text, str) for text in texts):
            raise InvalidArgumentError(f"responses[{place}] is not a list of {shape[1]} texts.")
    return responses


def _several(given: Any) -> tuple[Any, ...]:
    """The items of a list or an array; () for a text, or what cannot be listed."""
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else ()


def _scored(
    name: str, scorer: Scorer, prompts: Sequence[Prompt], responses: Sequence[str]
) -> FloatArray:
    found = read_numbers(
        f"the result of scorers[{name!r}]",
        scorer(prompts, responses),
        dimensions=(0, 1, 2),
        infinite=True,
    )
    if found.shape != (len(responses),):
        raise InvalidArgumentError(
            f"the scorer {name!r} gives numbers of shape {found.shape} for {len(responses)} responses."
        )
    return found


def _columns(
    head: Sequence[Mapping[str, Any]], models: Sequence[str] | None, prompt: str
) -> tuple[list[int], tuple[str, ...]]:
    """The numbers of the responses, and the models that scored the first of them."""
    row = head[0]
    if not isinstance(row, Mapping):
        hint = 'Give frame.to_dict("records") of a pandas frame.'
        raise InvalidArgumentError(f"rows= gives {row!r:.40}, which is not a dict.", hint=hint)
    numbers = sorted(int(m[1]) for name in row if (m := _RESPONSE.fullmatch(name)))
    if prompt not in row or not numbers:
        raise DataError(
            f"the columns are {_listed(row)}: not {prompt!r}, 'response_1', 'response_1_<model>', ….",
            hint="These are the columns of namkoong-lab/PersonalLLM.",
        )
    start = f"response_{numbers[0]}_"
    scored = [
        name.removeprefix(start)
        for name in row
        if name.startswith(start) and any(_real(one.get(name)) for one in head)
    ]
    names = check_models(models if models is not None else sorted(scored))
    for name in (f"response_{number}_{model}" for number in numbers for model in names):
        if name not in row:
            raise DataError(
                f"there is no column {name!r}.", hint=f"The models are {_listed(scored)}."
            )
    return numbers, names


def _real(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _read_row(
    row: Mapping[str, Any], numbers: Sequence[int], models: Sequence[str], prompt: str
) -> tuple[str | None, list[str], list[list[float]]]:
    """Why a row cannot be used, or its texts and rewards."""
    texts = [row.get(f"response_{number}") for number in numbers]
    if not all(isinstance(text, str) and text.strip() for text in (row.get(prompt), *texts)):
        return "text missing", [], []
    values = [[row.get(f"response_{number}_{model}") for model in models] for number in numbers]
    scores = [[float(v) for v in line if v is not None and _real(v)] for line in values]
    if not all(len(line) == len(models) and np.isfinite(line).all() for line in scores):
        return "reward missing", [], []
    return None, [str(text) for text in texts], scores


def _listed(names: Iterable[object] | Mapping[str, int]) -> str:
    if isinstance(names, Counter):
        return ", ".join(f"{name} ({count:,})" for name, count in names.most_common())
    shown = sorted(map(str, names))
    more = f", … ({len(shown)} in all)" if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more
