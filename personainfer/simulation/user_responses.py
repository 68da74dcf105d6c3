"""Generate a response for each simulated user after each prefix, and score it by the user's rewards.

The baselines of PersonalLLM (arXiv 2409.20296, section 4) are prefixes: none (zero-shot), examples of the
user's own choices, and examples of similar users' choices. A baseline is scored by the mean utility of its
responses, and by their win rate against reference responses, on the scale by which the users chose.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Unpack

import numpy as np
from pydantic import InstanceOf

from ..arguments import Text, check_argument, read_items, read_labels, takes_options
from ..data.table_display import result_text
from ..evaluation.grouped import mean_by_group, rate_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, check_confidence
from ..exceptions import DataError, InvalidArgumentError, UnknownOptionError
from ..llm.client import LLM, OPTIONS, LLMOptions, make_llm
from ..llm.requests import Request
from ..personas.placement import prompt_messages
from ..records import FloatArray, Prompt, Record
from ..scoring.interfaces import check_rows
from ..tailoring.responses import read_prompts
from ..users.prefixes import Prefix
from .reward_matrix import RewardMatrix, Scorer, scored
from .simulated_users import SimulatedUsers


class UserResponse(Record):
    """A model's response for one user after one prefix, or the error.

    Attributes:
        baseline: the name of the prefix.
        user: the name of the user.
        prompt: the place of the prompt in `prompts=` of `respond_to_users`, from 0.
        response: the model's response; None: see `error`.
        error: why there is no response; None: there is one.
    """

    baseline: str
    user: str
    prompt: int
    response: str | None = None
    error: str | None = None


@takes_options(LLMOptions)
def respond_to_users(
    prefixes: Mapping[str, Prefix],
    users: Iterable[str],
    prompts: Sequence[Prompt],
    model: str | LLM | None = None,
    **options: Unpack[LLMOptions],
) -> list[UserResponse]:
    """Let a model answer each prompt for each user, after each prefix.

    Equal requests, such as those without a prefix, are sent once. If a request fails, or a prompt cannot be
    read, its rows have an error. Prompts are sent as `tailor_responses` sends them: marks of chat templates
    are broken up, and tool calls are JSON in their turn.

    Args:
        prefixes: name of a baseline -> prefix from `persona_prefix`.
        users: the names of the users; or a mapping with these names as keys, such as `UserData.users`.
        prompts: texts or conversations.
        model: as for `infer_personas`.
        options: configure the LLM that a model string makes: see `LLM`.

    Returns:
        One row for each baseline, user and prompt, sorted in this order.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, before any call is made.
        DataError: a prefix has nothing for a user, before any call is made.
        MissingExtraError: the model needs a package that is not installed.
        ModelError: only if every request would fail (key, model).
        CacheError: the cache of replies cannot be read or written.
    """
    UnknownOptionError.check(options, OPTIONS.union(inspect.signature(respond_to_users).parameters))
    users = list(users) if isinstance(users, Mapping) else read_items("users", users)
    prompts = read_items("prompts", prompts)
    _check_asked(prefixes, users, prompts)
    readable, problems = read_prompts(dict(enumerate(prompts)))
    asked = {
        (name, user, place): prefix.around(prefix.text(user, prompt), prompt_messages(prompt))
        for name, prefix in prefixes.items()
        for user in users
        for place, prompt in readable.items()
    }
    distinct = list(dict.fromkeys(asked.values()))
    replies = make_llm(model, options).ask_many(Request(messages) for messages in distinct)
    said = dict(zip(distinct, replies, strict=True))
    rows = []
    for name, user, place in product(prefixes, users, range(len(prompts))):
        text, error = None, problems.get(place)
        if error is None:
            reply = said[asked[name, user, place]]
            text = None if reply.error else str(reply.value)
            error = str(reply.error) if reply.error else None
        rows.append(
            UserResponse(baseline=name, user=user, prompt=place, response=text, error=error)
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineScore:
    """The scores of the responses after one prefix. Intervals resample users.

    Attributes:
        reward: the mean utility of the responses: z-scored rewards, weighted by their users.
        win_rate: the share of responses with a higher utility than the reference response; a tie counts half.
        gain: `reward` minus that of the first baseline, over users and prompts with both responses.
        failed: how many responses are missing. They are left out.
    """

    reward: Estimate
    win_rate: Estimate
    gain: Estimate
    failed: int


@dataclass(frozen=True)
class BaselineScores:
    """The scores of all baselines.

    Attributes:
        baselines: name -> scores, in the order of the responses.
        reference: the mean utility of the reference responses.
        cells: each (user, place of a prompt) that has a row in the responses.
        utilities: name of a baseline -> the utility of its response to each of `cells`, shape (cells,); NaN:
            no response.
    """

    baselines: Mapping[str, BaselineScore]
    reference: Estimate
    cells: tuple[tuple[str, int], ...] = field(repr=False)
    utilities: Mapping[str, FloatArray] = field(repr=False)

    def __str__(self) -> str:
        lines = [
            f"{name}: reward {one.reward}, win rate {one.win_rate}, gain {one.gain}"
            + (f", {one.failed:,} failed" if one.failed else "")
            for name, one in self.baselines.items()
        ]
        return result_text([*lines, f"reference: reward {self.reference}"])


def score_responses(
    responses: Sequence[UserResponse],
    users: SimulatedUsers,
    scale: RewardMatrix,
    scorers: Mapping[str, Scorer],
    *,
    prompts: Sequence[Prompt],
    reference: Sequence[str],
    confidence: float = CONFIDENCE,
) -> BaselineScores:
    """Compute the mean utility of each baseline, its win rate against reference responses, and its gain.

    Args:
        responses: rows of `respond_to_users`, with the same users and prompts for each baseline. The gain is
            over the baseline of the first row. Rows without a response are counted as failed, and left out.
        users: the users with their weights.
        scale: the rewards by which the users chose. Responses are z-scored on the same scale.
        scorers: name of each reward model in `scale` -> callable (n prompts, n responses) -> n rewards. Each
            is called once; its errors are raised unchanged.
        prompts: the prompts that were answered, as they were given to `respond_to_users`.
        reference: one response to each prompt, such as a strong model's.
        confidence: of the intervals, between 0 and 1. They resample users.

    Returns:
        The scores of each baseline, the mean utility of the reference, and the utility of each response.

    Raises:
        InvalidArgumentError: users, models or lengths that do not fit, two responses for one cell, a scorer
            that does not return n numbers, or a bad `confidence`.
        DataError: no row has a response, or a reward is NaN or infinite.
    """
    confidence = check_confidence(confidence)
    responses, prompts = read_items("responses", responses), read_items("prompts", prompts)
    reference = read_items("reference", reference)
    for row in responses:
        check_argument("responses", row, InstanceOf[UserResponse])
    check_argument("users", users, InstanceOf[SimulatedUsers])
    check_argument("scale", scale, InstanceOf[RewardMatrix])
    check_argument("scorers", scorers, Mapping[Text, Callable[..., Any]])
    _check(responses, users, scale, scorers, prompts, reference)
    check_rows(prompts, [None] * len(prompts), reference)
    names = list(dict.fromkeys(row.baseline for row in responses))
    cells = list(dict.fromkeys((row.user, row.prompt) for row in responses))
    answered = [row for row in responses if row.response is not None]
    texts = [(row.prompt, str(row.response)) for row in answered] + list(enumerate(reference))
    zscores = _zscores(texts, scale, scorers, prompts)
    weights = dict(zip(users.names, users.weights_for(scale), strict=True))
    _, people = read_labels("users", [user for user, _ in cells])
    place = {cell: n for n, cell in enumerate(cells)}
    worth = np.full((len(names), len(cells)), np.nan)
    for row, scores in zip(answered, zscores, strict=False):
        cell = names.index(row.baseline), place[row.user, row.prompt]
        worth[cell] = weights[row.user] @ scores
    theirs = np.array([weights[user] @ zscores[len(answered) + prompt] for user, prompt in cells])
    wins = (np.sign(worth - theirs) + 1) / 2
    found = {
        name: BaselineScore(
            reward=mean_by_group(worth[n], people, confidence=confidence),
            win_rate=rate_by_group(wins[n], people, confidence=confidence),
            gain=mean_by_group(worth[n] - worth[0], people, confidence=confidence),
            failed=int(np.isnan(worth[n]).sum()),
        )
        for n, name in enumerate(names)
    }
    return BaselineScores(
        found,
        mean_by_group(theirs, people, confidence=confidence),
        tuple(cells),
        dict(zip(names, worth, strict=True)),
    )


def _check_asked(prefixes: object, users: Sequence[str], prompts: Sequence[Prompt]) -> None:
    if not isinstance(prefixes, Mapping) or not prefixes:
        raise InvalidArgumentError("prefixes= is a mapping of names to prefixes.")
    for name, prefix in prefixes.items():
        if not isinstance(prefix, Prefix):
            raise InvalidArgumentError(f"prefixes[{name!r}]={prefix!r:.80} is not a prefix.")
    if not all(isinstance(user, str) for user in users):
        raise InvalidArgumentError(f"users={users!r:.80} must be names of users, as texts.")
    if len(set(users)) < len(users):
        raise InvalidArgumentError("users= names one of them twice.")
    check_rows(prompts, [None] * len(prompts), [""] * len(prompts))


def _zscores(
    texts: Sequence[tuple[int, str]],
    scale: RewardMatrix,
    scorers: Mapping[str, Scorer],
    prompts: Sequence[Prompt],
) -> FloatArray:
    """Score responses, equal ones once, and return z-scores of shape (texts, models).

    `texts` holds (place of a prompt, response).
    """
    distinct = list(dict.fromkeys(texts))
    in_order = list(prompts)  # a pandas series has labels of its own, which are no places
    asked, said = [in_order[place] for place, _ in distinct], [text for _, text in distinct]
    columns = [scored(name, scorers[name], asked, said) for name in scale.models]
    found = scale.like(np.stack(columns, axis=-1)[:, None, :]).zscores[:, 0]
    row = {text: n for n, text in enumerate(distinct)}
    return found[[row[text] for text in texts]]


def _check(
    responses: Sequence[UserResponse],
    users: SimulatedUsers,
    scale: RewardMatrix,
    scorers: Mapping[str, Scorer],
    prompts: Sequence[Prompt],
    reference: Sequence[str],
) -> None:
    """Raise for a bad argument before anything is scored.

    Raises:
        DataError: there is no response.
        InvalidArgumentError: names, lengths or places that do not fit, or two responses for one cell.
    """
    if not any(row.response is not None for row in responses):
        first = responses[0].error if responses else "there are no rows"
        raise DataError(f"there is no response to score: {first}.")
    if not set(users.models) == set(scale.models) == set(scorers):
        raise InvalidArgumentError(
            f"users weigh {', '.join(sorted(users.models))}, scale= has"
            f" {', '.join(sorted(scale.models))}, scorers= {', '.join(sorted(scorers))}: the names"
            " must be the same."
        )
    if len(reference) != len(prompts):
        raise InvalidArgumentError(f"{len(reference)} reference= for {len(prompts)} prompts.")
    strangers = {row.user for row in responses} - set(users.names)
    if strangers:
        raise InvalidArgumentError(f"users= has no user {min(strangers)!r}.")
    if not all(0 <= row.prompt < len(prompts) for row in responses):
        raise InvalidArgumentError(f"a response is to a prompt beyond the {len(prompts)} prompts=.")
    twice = Counter((row.baseline, row.user, row.prompt) for row in responses).most_common(1)[0]
    if twice[1] > 1:
        raise InvalidArgumentError(f"responses= holds {twice[0]} {twice[1]} times.")
