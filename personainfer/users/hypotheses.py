"""Explain each choice of a user, and score how well each explanation predicts the user's other choices.

An explanation (`Hypothesis`) is a persona inferred from one choice. Its score on another choice is a number
from a selector's `explains`: above 0 it predicts this choice.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from zlib import crc32

import numpy as np
import numpy.typing as npt

from ..arguments import LARGEST
from ..data.containers import read_with_columns
from ..data.own_columns import own_names
from ..exceptions import DataError, InvalidArgumentError
from ..llm.client import LLM
from ..personas.infer import infer_personas
from ..personas.selection import explains_each
from ..records import Preference, Selector
from .records import ChoicesUsed, Hypothesis, UserPersona, UserPersonas, UserRow

_NO_USER = "it has no user"
NEUTRAL = 0.0  # a score that speaks neither for nor against an explanation


@dataclass
class UserAtWork:
    """The state of one user during a run.

    Attributes:
        name: the user's id.
        before: the row of an earlier run that is updated; None: there is none.
        new: choices that are not in `before`, each with an id that no other choice of the user has.
        hypotheses: explanations of choices, those of `before` first.
        problem: why there is no persona; None: nothing is wrong so far.
        old: the choices of `before`.
        data_ids: id of a new choice -> its id in the data, which a choice before it may have, too.
    """

    name: str
    before: UserRow | None = None
    new: list[Preference] = field(default_factory=list)
    hypotheses: list[Hypothesis] = field(default_factory=list)
    problem: str | None = None

    def __post_init__(self) -> None:
        self.old = self.before.choices if self.before else ()
        self.hypotheses += self.before.hypotheses if self.before else ()
        self._known = set(map(_texts, self.old))
        self._ids = {choice.id for choice in self.old}
        self.data_ids: dict[str, str] = {}

    @property
    def choices(self) -> tuple[Preference, ...]:
        """All choices of the user: those of `before`, then the new ones."""
        return (*self.old, *self.new)

    @property
    def earlier(self) -> UserPersona | None:
        """The persona of `before`; None: there is none."""
        return self.before.persona if self.before else None

    def knows(self, choice: Preference) -> bool:
        """Whether the user has a choice with this prompt and these responses."""
        return _texts(choice) in self._known

    def add(self, choice: Preference, number: int) -> None:
        """Add a new choice, with an id that no other choice of the user has.

        The id is the choice's own, or else `number`. If the user has a choice with this id, a suffix is
        added. Whether the user has the same choice already is not checked: ask `knows` before.

        Args:
            choice: a choice of this user.
            number: the place of its row in the data, from 0.
        """
        name = choice.id or str(number)
        if name in self._ids:  # for example, the id names the data set
            name = f"{name}#{number}"
        while name in self._ids:
            name += "'"
        self._known.add(_texts(choice))
        self._ids.add(name)
        if choice.id:
            self.data_ids[name] = choice.id
        self.new.append(choice if name == choice.id else choice.model_copy(update={"id": name}))


def _texts(choice: Preference) -> tuple[Any, ...]:
    return choice.prompt, choice.chosen, choice.rejected


# Users and their choices


def users_in(
    data: object,
    user: str,
    columns: Mapping[str, str] | None,
    most: int | None,
    update: UserPersonas | None,
) -> tuple[list[UserAtWork], dict[str, int]]:
    """Read the choices of users from preference data.

    Args:
        data: preference data as for `infer_personas`.
        user: the column with the user's id.
        columns: the library's column names -> yours; None: they are recognised.
        most: the most new choices to take of each user; None: all.
        update: personas to continue from. A choice that they rest on is not new. None: there are none.

    Returns:
        All users, those of `update` first; and reason -> how many rows were left out.

    Raises:
        InvalidArgumentError: `columns` is not a mapping, a column does not exist, or the data is of no
            supported kind.
        DataError: no row has a user; or there are no rows, and no `update`.
    """
    users = {row.user: UserAtWork(row.user, row) for row in update or ()}
    if columns is not None and not isinstance(columns, Mapping):
        raise InvalidArgumentError(
            f"columns={columns!r:.60} is not a mapping of our names to yours.",
            hint='Such as {"user": "annotator"}.',
            argument="columns",
        )
    roles = dict(columns or {})
    if user != "user_id":  # which is recognised by itself
        roles.setdefault("user", user)
    skipped: Counter[str] = Counter()
    beyond = f"beyond the {most} of each user that pairs_per_user= takes"
    source = read_with_columns(data, roles)
    names = [] if source.original is None else list(own_names(source.original))
    with_user = 0
    for number, row in enumerate(source):
        choice = row.preference
        names = names or list(row.columns)
        if choice is None:
            skipped[row.error or "it cannot be used"] += 1
        elif choice.user is None:
            skipped[_NO_USER] += 1
        else:
            with_user += 1
            one = users.setdefault(choice.user, UserAtWork(choice.user))
            if one.knows(choice):
                skipped["the user made this choice before"] += 1
            elif most is not None and len(one.new) >= most:
                skipped[beyond] += 1
            else:
                one.add(choice, number)
    if not with_user and (skipped or update is None):
        _refuse(names, skipped)
    return list(users.values()), dict(skipped)


def _refuse(names: Sequence[str], skipped: Mapping[str, int]) -> NoReturn:
    """Raise the DataError that says why no row is a choice of a user."""
    if _NO_USER not in skipped:
        why = next(iter(skipped), "there are no rows")
        raise DataError(f"no row is a choice of a user: {why}")
    if not names:  # records and tuples
        raise DataError(
            "no row is a choice of a user: none has a user.",
            hint="Give dicts or a frame with a column user_id, or Preference(…, user=…).",
        )
    raise DataError(
        f"no row is a choice of a user: {skipped[_NO_USER]:,} rows have none. The columns are"
        f" {', '.join(map(repr, names))}.",
        hint="Say which one names the user:",
        argument="columns",
        example={"user": "…"},
    )


def refuse_leaks(
    held_out: Sequence[UserAtWork],
    sources: Mapping[str, ChoicesUsed],
    argument: str,
    by_ids: bool = True,
) -> None:
    """Raise DataError if a persona was made from a held-out choice of its user.

    Args:
        held_out: the users with their held-out choices.
        sources: user -> the choices that the persona was made from.
        argument: the argument that holds the choices, for the error.
        by_ids: whether an id may tell that a choice is one of these.
    """
    leaks = [
        choice
        for one in held_out
        if one.name in sources
        for choice in one.new
        if sources[one.name].holds(
            choice, by_ids and choice.id == one.data_ids.get(choice.id or "")
        )
    ]
    if not leaks:
        return
    total = sum(len(one.new) for one in held_out)
    by_id = not any(sources[one.user or ""].holds_texts(one) for one in leaks)
    how = "have ids of choices" if by_id else "are among those"
    hint = "Split each user's choices first; infer personas from one part, predict the other."
    if by_id:
        hint += " If the ids start anew in each file, leave the column of ids out."
    raise DataError(
        f"{len(leaks):,} of {total:,} held-out choices {how} that the user's persona was made from, such as"
        f" choice {leaks[0].id!r} of user {leaks[0].user!r}.",
        hint=hint,
        argument=argument,
    )


# Explanations and their scores


def explain(
    users: Sequence[UserAtWork], llm: LLM, progress: bool | None, *, candidates: bool
) -> None:
    """Infer a hypothesis for each choice without one; write it, or the problem, into the user.

    Args:
        users: the users. Their `hypotheses` and `problem` are changed.
        llm: the model that explains.
        progress: whether to show a bar on standard error; None: in a terminal or a notebook.
        candidates: whether hypotheses are candidates for one persona: users who have any then get no new
            ones.

    Raises:
        ModelError: every request would fail in the same way (key, model).
        CacheError: the cache of replies cannot be used.
    """
    asked = []
    for one in users:
        explained = {hypothesis.pair for hypothesis in one.hypotheses}
        if not (candidates and explained):
            asked += [(one, pair) for pair in one.choices if pair.id not in explained]
    if not asked:
        return
    pairs = [pair for _, pair in asked]
    table = infer_personas(pairs, llm, sides="chosen", protocol="separate", progress=progress)
    for (one, pair), row in zip(asked, table, strict=True):
        if row.chosen is not None:
            one.hypotheses.append(Hypothesis(pair=pair.id or "", persona=row.chosen))
        else:
            one.problem = row.error
    for one in users:
        if one.hypotheses:
            one.problem = None


def score_hypotheses(
    users: Sequence[UserAtWork], selector: Selector, checks: int | None, contrast: int = 0
) -> None:
    """Score each hypothesis on other choices of its user, and write the scores into the hypotheses.

    A score that is NaN, infinite or beyond 1e100 is left out with a warning. A user gets a `problem` if more
    than half of the scores are NaN.

    Args:
        users: the users with their hypotheses, which are replaced.
        selector: scores explanations by `explains(preferences, personas)`.
        checks: how many choices to score each hypothesis on; None: all other choices of the user. A choice on
            which a hypothesis has a score is not scored again.
        contrast: subtract the mean score on so many choices of other users, so that an explanation which
            holds for everybody scores about 0. 0: subtract nothing.

    Raises:
        InvalidArgumentError, ModelError, CacheError: the selector failed for all choices, or three times in
            succession, or its cache of replies cannot be used.
    """
    asked: list[tuple[UserAtWork, int, Preference]] = []
    for one in users:
        for place, hypothesis in enumerate(one.hypotheses):
            known = {pair for pair, _ in hypothesis.scores}
            others = _others(one.choices, hypothesis.pair, checks)
            asked += [(one, place, choice) for choice in others if choice.id not in known]
    if not asked:
        return
    tried = dict.fromkeys((one.name, place) for one, place, _ in asked)
    personas = {(one.name, place): one.hypotheses[place].persona for one, place, _ in asked}
    elsewhere = [(of, choice) for of in tried for choice in _of_others(users, of, contrast)]
    rows = [*((one.name, place) for one, place, _ in asked), *(of for of, _ in elsewhere)]
    pairs = [*(choice for *_, choice in asked), *(choice for _, choice in elsewhere)]
    scores = explains_each(selector, pairs, [personas[of] for of in rows])
    scores, general = scores[: len(asked)], scores[len(asked) :]
    of_others: dict[tuple[str, int], list[float]] = {of: [] for of in tried}
    for (of, _), score in zip(elsewhere, general, strict=True):
        of_others[of] += [score] if abs(score) <= LARGEST else []
    mean = {of: float(np.mean(mine or [NEUTRAL])) for of, mine in of_others.items()}
    scores = scores - np.array([mean[one.name, place] for one, place, _ in asked])
    finite = np.abs(scores) <= LARGEST
    if not finite.all():  # infinity would outweigh all others, and JSON has no NaN
        warnings.warn(
            f"{np.count_nonzero(~finite):,} of {len(scores):,} scores of select= are not finite"
            f" numbers up to {LARGEST:g}; they are left out.",
            stacklevel=3,
        )
    checked = Counter(one.name for one, *_ in asked)
    none = np.isnan(scores)
    missing = Counter(one.name for (one, *_), is_none in zip(asked, none, strict=True) if is_none)
    for one in users:
        one.problem = one.problem or unchecked(missing[one.name], checked[one.name])
    for (one, place, choice), score in itertools.compress(zip(asked, scores, strict=True), finite):
        old = one.hypotheses[place]
        scored = (*old.scores, (choice.id or "", float(score)))
        one.hypotheses[place] = old.model_copy(update={"scores": scored})


def unchecked(missing: int, asked: int) -> str | None:
    """Return why there is no persona if more than half of the checks have no score; None: enough have one."""
    if 2 * missing <= asked:
        return None
    return (
        f"{missing:,} of {asked:,} checks of what explains the choices have no score: a warning says why."
        " Where a judge was away, or a budget ended, call again: its replies are in the cache."
    )


def _of_others(
    users: Sequence[UserAtWork], of: tuple[str, int], count: int
) -> Sequence[Preference]:
    """Draw up to `count` choices of users other than the one that `of` names.

    Args:
        users: all users.
        of: the user's name and the place of the hypothesis, which are also the seed.
        count: how many to draw.
    """
    pool = [choice for one in users if one.name != of[0] for choice in one.choices] if count else []
    drawn = np.random.default_rng(crc32(repr(of).encode())).permutation(len(pool))[:count]
    return [pool[place] for place in drawn]


def _others(
    choices: Sequence[Preference], explained: str, checks: int | None
) -> Sequence[Preference]:
    """Select the choices to score an explanation on, which are never the choice that it explains.

    Choices that an update adds at the end change no selection that was complete.

    Args:
        choices: the user's choices.
        explained: the id of the choice that is explained.
        checks: how many to select: the nearest choices before that one, then the nearest after it. None: all.
    """
    place = next(n for n, choice in enumerate(choices) if choice.id == explained)
    if checks is None:
        return [*choices[:place], *choices[place + 1 :]]
    before = choices[max(0, place - checks) : place]
    return [*before, *choices[place + 1 : place + 1 + checks - len(before)]]


# What the scores say


def explains_of(one: UserAtWork) -> npt.NDArray[np.float64]:
    """Return the scores of a user's hypotheses as a table, shape (choices, hypotheses).

    A hypothesis has no score on the choice that it was made from, which would favour it. Where a hypothesis
    has no score on a choice, it gets the mean score of the other hypotheses on this choice, so that the
    choice does not change its rank. If fewer than two others have a score, it gets 0.
    """
    scores = np.full((len(one.choices), len(one.hypotheses)), np.nan)
    place = {choice.id: row for row, choice in enumerate(one.choices)}
    for column, hypothesis in enumerate(one.hypotheses):
        for pair, score in hypothesis.scores:
            scores[place[pair], column] = score
    known = ~np.isnan(scores)
    counts = known.sum(axis=1)
    means = np.where(known, scores, 0).sum(axis=1) / np.maximum(counts, 1)
    fill = np.where(counts >= 2, means, NEUTRAL)
    return np.where(known, scores, fill[:, None])


def predicting(one: UserAtWork) -> dict[int, float] | str:
    """Select the hypotheses of a user that predict the user's other choices.

    Returns:
        Place of the hypothesis -> mean score, above 0. A text instead says why no hypothesis predicts.
    """
    if one.problem or not one.hypotheses:
        return one.problem or "no choice could be explained."
    means = [
        float(np.mean([score for _, score in hypothesis.scores] or [NEUTRAL]))
        for hypothesis in one.hypotheses
    ]
    kept = {place: mean for place, mean in enumerate(means) if mean > NEUTRAL}
    if kept:
        return kept
    return (
        f"none of {len(means)} explanations predicts the user's other choices: the best scores"
        f" {max(means):.3f}. Give more choices of this user."
    )
