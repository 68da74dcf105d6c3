"""How well a prefix lets a scorer predict what its user chooses; the user's other choices are the test.

After FamousPersona (arXiv 2505.13257): users that were trained on against unseen ones, personal against
clashing questions, groups of users, and sentences of the prefix; beside that the control in which each
user has another one's prefix, and intervals by user. What scores is known by `predictors`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Unpack

import numpy as np
import numpy.typing as npt

from ..arguments import takes_options
from ..evaluation.grouped import mean_by_group, rate_by_group
from ..evaluation.statistics import CONFIDENCE, Estimate, check_confidence
from ..exceptions import DataError, InvalidArgumentError, UnknownOptionError
from ..llm.client import OPTIONS, LLMOptions
from ..records import Preference
from .attribution import Attribution, attribute_prefix
from .fairness import Equity, Measure, correct_together, correlation, equity_by_group
from .hypotheses import users_in
from .predictors import Case, ChoiceScorer, Predictor, predictor_of
from .prefixes import Prefix, persona_prefix
from .results import PrefixAccuracy, PrefixEvaluation
from .splits import Fold, find_questions, folds_of

__all__ = ["evaluate_prefixes"]

Floats = npt.NDArray[np.float64]
Names = tuple[str, ...]
AnyPrefix = Prefix | Callable[[Names], Prefix]
Fit = Callable[[Names], ChoiceScorer]
Groups = Mapping[str, Mapping[str, Any]]

BARE: Final = "none"


class Margins(NamedTuple):
    """Of one prefix, one number a choice each: as it is; on trained users; that of another user."""

    own: Floats
    trained: Floats
    shuffled: Floats


@takes_options(LLMOptions)
def evaluate_prefixes(
    prefixes: Mapping[str, AnyPrefix],
    data: object,
    scorer: ChoiceScorer | None = None,
    *,
    fit: Fit | None = None,
    folds: int | str | None = None,
    lift: bool = False,
    groups: Groups | None = None,
    questions: Mapping[str, str] | Literal["find"] | None = None,
    attribute: Sequence[str] = (),
    user: str = "user_id",
    columns: Mapping[str, str] | None = None,
    confidence: float = CONFIDENCE,
    draw_seed: int = 0,
    **options: Unpack[LLMOptions],
) -> PrefixEvaluation:
    """How well each prefix lets a scorer predict the held-out choices of users.

    Args:
        prefixes: by name, from `persona_prefix`; or a function (names of the users to train on) ->
            prefix, for one that is made of other users' choices. "none" is added.
        data: held-out choices, preference data as for `infer_personas`, with a user for each row.
        scorer: a `Likelihood`, a judge (a model's name, an `LLM`, an object with `explains`), or a
            callable (conversations, responses) -> numbers: see `personainfer.users.predictors`.
        fit: in place of a scorer: a function (names of the users to train on) -> scorer, such as one
            that trains a model or loads what was trained.
        folds: so many parts of the users, or the attribute in `groups` of which one value is left out at a
            time: what `prefixes` and `fit` make then never knows the users that it is tested on.
        lift: whether a prefix is judged by how much it raises the margin against the bare prompt, so
            that what the scorer likes anyhow does not count; "none" is judged by the margin itself.
        groups: attribute -> user -> value, for equity. A value that is missing (None, NaN, "") is none.
        questions: the kind of question by the id of the choice; "find": "clashing" where users choose
            differently on a prompt, else "personal" (see `personainfer.users.splits`).
        attribute: the prefixes, by name, whose sentences are left out one by one, on up to 64 choices (with
            folds, of the users that the last one leaves out).
        user: the column that says whose choice a row is.
        columns: our name to yours where they differ.
        confidence: of the intervals, for which users are resampled, each with all choices.
        draw_seed: of folds, shuffled prefixes, draws and permutations.
        options: configure the LLM that a judge's name makes: see `LLM`.

    Returns:
        For each prefix the accuracy, the gain over none, the same with another user's prefix, by question
        and by group; a tie counts half. `print` shows a table.

    Raises:
        ValueError, TypeError: a bad argument, before anything is scored.
        DataError: no row is a choice of a user.
        ModelError: as the scorer raises it.
    """
    UnknownOptionError.check(
        options, OPTIONS.union(inspect.signature(evaluate_prefixes).parameters)
    )
    check_confidence(confidence)
    attribute = (attribute,) if isinstance(attribute, str) else tuple(attribute)
    _check(prefixes, scorer, fit, folds, questions, attribute)
    known = _groups(groups)
    users, skipped = users_in(data, user, columns, None, None)
    choices = [choice for one in users for choice in one.new]
    if not choices:
        raise DataError("no row is a choice of a user.", hint=f"Left out: {skipped or 'nothing'}.")
    names = tuple(one.name for one in users if one.new)
    parts = (
        [Fold("all", names, names)] if folds is None else folds_of(names, folds, known, draw_seed)
    )
    tests = [
        FittedFold(
            part,
            {BARE: persona_prefix(BARE), **prefixes},
            predictor_of(_scorer(scorer, fit, part), options),
        )
        for part in parts
    ]
    margins = _margins(tests, choices, folds is not None, lift, draw_seed)
    kinds = _questions(questions, choices)
    equity = _equity(margins, choices, known, confidence, draw_seed)
    settings: dict[str, Any] = {"lift": lift, "folds": folds, "confidence": confidence}
    settings["draw_seed"] = draw_seed
    return PrefixEvaluation(
        prefixes={
            name: _accuracy(of, margins[BARE], choices, kinds, confidence)
            for name, of in margins.items()
        },
        equity=equity,
        attribution=_attribution(attribute, tests, choices, confidence, draw_seed),
        choices=tuple(choices),
        margins={name: of.own for name, of in margins.items()},
        questions=kinds,
        skipped=skipped,
        settings=settings,
    )


def _scorer(scorer: ChoiceScorer | None, fit: Fit | None, fold: Fold) -> ChoiceScorer:
    if fit is not None:
        return fit(fold.trained)
    assert scorer is not None  # as checked
    return scorer


# Margins


class FittedFold:
    """One fold: the prefixes and the predictor that know its trained users."""

    def __init__(self, fold: Fold, prefixes: Mapping[str, AnyPrefix], predict: Predictor) -> None:
        self.fold, self.predict = fold, predict
        self.prefixes = {
            name: one if isinstance(one, Prefix) else one(fold.trained)
            for name, one in prefixes.items()
        }
        for name, one in self.prefixes.items():
            if not isinstance(one, Prefix):
                raise InvalidArgumentError(
                    f"prefixes[{name!r}] made {one!r:.80}, which is no prefix."
                )


def _margins(
    tests: Sequence[FittedFold], choices: Sequence[Preference], folded: bool, lift: bool, seed: int
) -> dict[str, Margins]:
    """Each user is tested where unseen; where there are folds, in the next one too, which trained on it."""
    found = {
        name: Margins(*(np.full(len(choices), np.nan) for _ in Margins._fields))
        for name in tests[0].prefixes
    }
    for test, before in zip(tests, [tests[-1], *tests[:-1]], strict=True):
        jobs = []
        for name, prefix in test.prefixes.items():
            jobs.append((found[name].own, prefix, test.fold.unseen))
            if folded:
                jobs.append((found[name].trained, prefix, before.fold.unseen))
            if len(prefix.users) > 1:
                jobs.append((found[name].shuffled, prefix.shuffled(seed), test.fold.unseen))
        _fill(jobs, test, choices, lift)
    return found


def _fill(
    jobs: Sequence[tuple[Floats, Prefix, Names]],
    test: FittedFold,
    choices: Sequence[Preference],
    lift: bool,
) -> None:
    """Put the margins of each job's users into its array; all are scored in one go."""
    places = [_places(prefix, people, choices) for _, prefix, people in jobs]
    cases = [
        _case(prefix, choices[place])
        for (_, prefix, _), mine in zip(jobs, places, strict=True)
        for place in mine
    ]
    nothing = persona_prefix(BARE)
    bare = [_case(nothing, case.choice) for case in cases if lift]
    margins = test.predict([*cases, *bare])
    if lift:
        prefixed = np.array([bool(case.prefix) for case in cases], dtype=bool)
        margins = margins[: len(cases)] - np.where(prefixed, margins[len(cases) :], 0.0)
    ends = np.cumsum([len(mine) for mine in places])[:-1]
    for (array, *_), mine, values in zip(jobs, places, np.split(margins, ends), strict=True):
        array[mine] = values


def _places(prefix: Prefix, people: Names, choices: Sequence[Preference]) -> list[int]:
    """Which choices are theirs, as far as the prefix knows of them."""
    who = set(people)
    return [n for n, one in enumerate(choices) if one.user in who and _knows(prefix, one)]


def _knows(prefix: Prefix, choice: Preference) -> bool:
    return not prefix.needs_users or choice.user in prefix.users


def _case(prefix: Prefix, choice: Preference) -> Case:
    said = prefix.text(choice.user or "", choice.prompt)
    return Case(choice, said, prefix.around(said, choice.prompt))


# Numbers


def _right(margins: Floats) -> Floats:
    """1 where the choice is predicted, 0.5 for a tie, NaN where there is no margin."""
    found: Floats = (np.sign(margins) + 1) / 2
    return found


def _accuracy(
    of: Margins,
    bare: Margins,
    choices: Sequence[Preference],
    kinds: Sequence[str | None],
    confidence: float,
) -> PrefixAccuracy:
    users = np.array([choice.user for choice in choices])
    own, trained, shuffled = (_right(margins) for margins in of)
    asked = np.array([kind or "" for kind in kinds])

    def rate(scores: Floats, which: npt.NDArray[np.bool_] | slice = slice(None)) -> Estimate:
        return rate_by_group(scores[which], users[which], confidence=confidence)

    known = sorted({kind for kind in kinds if kind})
    other = not np.isnan(shuffled).all()
    return PrefixAccuracy(
        accuracy=rate(own),
        trained=None if np.isnan(trained).all() else rate(trained),
        gain=mean_by_group(own - _right(bare.own), users, confidence=confidence),
        shuffled=rate(shuffled) if other else None,
        own_gain=mean_by_group(own - shuffled, users, confidence=confidence) if other else None,
        questions={kind: rate(own, asked == kind) for kind in known},
        with_baseline=correlation(*_by_user(users, own, _right(bare.own)), confidence=confidence),
        unknown=int((np.isnan(own) & ~np.isnan(bare.own)).sum()),
    )


def _by_user(users: npt.NDArray[Any], *scores: Floats) -> list[Floats]:
    """The mean of each user's scores where all of them are known; NaN for a user without."""
    known = ~np.isnan(np.stack(scores)).any(axis=0)
    _, place = np.unique(users, return_inverse=True)
    counts = np.bincount(place, known)
    with np.errstate(invalid="ignore"):
        return [np.bincount(place, np.where(known, one, 0.0)) / counts for one in scores]


def _equity(
    margins: Mapping[str, Margins],
    choices: Sequence[Preference],
    groups: Groups,
    confidence: float,
    seed: int,
) -> tuple[Equity, ...]:
    users = [choice.user or "" for choice in choices]
    bare = _right(margins[BARE].own)
    found = []
    for attribute, group_of in groups.items():
        for name, of in margins.items():
            right = _right(of.own)
            measures: list[tuple[Measure, Floats]] = [("accuracy", right), ("gain", right - bare)]
            found += [
                equity_by_group(
                    values,
                    users,
                    group_of,
                    prefix=name,
                    attribute=attribute,
                    measure=measure,
                    confidence=confidence,
                    seed=seed,
                )
                for measure, values in measures
                if name != BARE or measure == "accuracy"  # nothing gains on itself
            ]
    return correct_together(found)


def _questions(
    given: Mapping[str, str] | str | None, choices: Sequence[Preference]
) -> tuple[str | None, ...]:
    if isinstance(given, str):
        return tuple(find_questions(choices))
    known = {str(id): kind for id, kind in (given or {}).items()}
    return tuple(known.get(choice.id or "") for choice in choices) if known else ()


def _attribution(
    names: Sequence[str],
    tests: Sequence[FittedFold],
    choices: Sequence[Preference],
    confidence: float,
    seed: int,
) -> dict[str, Attribution]:
    """Of the users that the last fold leaves out: of all, where there are no folds."""
    test = tests[-1]
    people = set(test.fold.unseen)
    found = {}
    for name in names:
        prefix = test.prefixes[name]
        mine = [c for c in choices if c.user in people and _knows(prefix, c)]
        found[name] = attribute_prefix(
            name, prefix, mine, test.predict, confidence=confidence, seed=seed
        )
    return found


# Arguments


def _check(
    prefixes: object,
    scorer: object,
    fit: object,
    folds: object,
    questions: object,
    attribute: Sequence[str],
) -> None:
    """Raise for what can be seen to be wrong before anything is read or scored."""
    if not isinstance(prefixes, Mapping) or not prefixes:
        raise InvalidArgumentError("prefixes= is a mapping of names to prefixes.")
    for name, prefix in prefixes.items():
        if not isinstance(prefix, Prefix) and not callable(prefix):
            raise InvalidArgumentError(f"prefixes[{name!r}]={prefix!r:.80} is no prefix.")
        if name == BARE and getattr(prefix, "kind", "") != BARE:
            raise InvalidArgumentError(f"prefixes[{BARE!r}] is another prefix than {BARE!r}.")
    if (scorer is None) == (fit is None):
        raise InvalidArgumentError("give scorer=, or fit= that makes one, and not both.")
    makes = fit is not None or any(not isinstance(one, Prefix) for one in prefixes.values())
    if folds is not None and not makes:
        raise InvalidArgumentError(
            "folds= has nothing to fit: all prefixes and the scorer are made already.",
            hint="Give fit=, or a function as a prefix.",
        )
    if fit is not None and not callable(fit):
        raise InvalidArgumentError(f"fit={fit!r:.80} is no function (names of users) -> scorer.")
    if not (questions is None or questions == "find" or isinstance(questions, Mapping)):
        raise InvalidArgumentError(f'questions={questions!r} is neither "find" nor kinds by id.')
    for name in attribute:
        if name not in prefixes:
            raise InvalidArgumentError(f"attribute= names {name!r}, which prefixes= does not.")


def _groups(given: Groups | None) -> dict[str, dict[str, str]]:
    """The values as texts, by users as texts, as they are in the data; without those that are missing."""
    hint = 'Such as {"diet": {"ann": "vegan", "bob": "none"}}.'
    if not isinstance(given or {}, Mapping):
        raise InvalidArgumentError(f"groups={given!r:.80} is no mapping of attributes.", hint=hint)
    found = {}
    for name, of in (given or {}).items():
        if not isinstance(of, Mapping):
            raise InvalidArgumentError(
                f"groups[{name!r}] is no mapping of users to values.", hint=hint
            )
        there = {user: value for user, value in of.items() if value not in (None, "")}
        found[name] = {str(u): str(value) for u, value in there.items() if value == value}  # no NaN
    return found
