"""Evaluate how well a prefix lets a scorer predict its user's other choices.

After FamousPersona (arXiv 2505.13257), which compares users in the training data with unseen ones, personal
with clashing questions, groups of users, and sentences of the prefix. This module adds a control, in which
each user gets another user's prefix, and intervals that resample users.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np

from ..arguments import Count, CountFromZero, check_argument, takes_options
from ..evaluation.statistics import CONFIDENCE, check_confidence
from ..exceptions import InvalidArgumentError, UnknownOptionError
from ..llm.client import OPTIONS, LLMOptions
from ..records import Preference
from .attribution import ABLATIONS, Attribution, attribute_prefix
from .groups import Fold, check_groups, folds_of, group_values, texts_of
from .hypotheses import users_in
from .predictors import Case, ChoiceScorer, Predictions, Predictor, predictor_of
from .prefixes import Prefix, persona_prefix
from .results import BARE, PrefixEvaluation, Scored
from .similar_users import find_questions

Names = tuple[str, ...]
AnyPrefix = Prefix | Callable[[Names], Prefix]
Fit = Callable[[Names], ChoiceScorer]
Groups = Mapping[str, Mapping[str, Any]]


@takes_options(LLMOptions)
def evaluate_prefixes(
    prefixes: Mapping[str, AnyPrefix],
    data: object,
    scorer: ChoiceScorer | None = None,
    *,
    fit: Fit | None = None,
    untuned: ChoiceScorer | None = None,
    folds: int | str | None = None,
    lift: bool = False,
    groups: Groups | None = None,
    questions: Mapping[str, str] | Literal["find"] | None = None,
    attribute: Sequence[str] = (),
    ablations: int = ABLATIONS,
    user: str = "user_id",
    columns: Mapping[str, str] | None = None,
    confidence: float = CONFIDENCE,
    draw_seed: int = 0,
    **options: Unpack[LLMOptions],
) -> PrefixEvaluation:
    """Measure how well each prefix lets a scorer predict the held-out choices of users.

    Args:
        prefixes: by name, from `persona_prefix`; or a function (names of the users to train on) ->
            prefix, for one that is made of other users' choices. "none" is added.
        data: held-out choices, preference data as for `infer_personas`, with a user for each row.
        scorer: a `Likelihood`, a judge (a model's name, an `LLM`, an object with `explains`), or a
            callable (conversations, responses) -> numbers. See `personainfer.users.predictors`.
        fit: in place of a scorer: a function (names of the users to train on) -> scorer, such as one
            that trains a model or loads it.
        untuned: the scorer before it was tuned. Each prefix is scored by it too, on the same choices:
            `over_untuned` is the gain of tuning, by group as well (FamousPersona's equity).
        folds: N parts of the users, or an attribute in `groups` of which one value is left out at
            a time. `prefixes` and `fit` then get only the users that they are not tested on.
        lift: judge a prefix by how much it raises the margin against the bare prompt, so that general
            tastes of the scorer do not count. "none" is judged by the margin itself.
        groups: attribute -> user -> value, for equity. None, NaN and "" are missing values.
        questions: the kind of question by the id of the choice; "find": "clashing" where users choose
            differently on a prompt, else "personal" (see `personainfer.users.similar_users`).
        attribute: names of prefixes whose sentences are attributed (see `attribute_prefix`), with
            folds on the users that the last one leaves out.
        ablations: how many versions of a prefix without some sentences are scored for each choice.
        user: the column with the user's id.
        columns: the library's column names to yours, where they differ.
        confidence: of the intervals, which resample users with all their choices.
        draw_seed: of folds, shuffled prefixes, draws and permutations.
        options: of the LLM that a judge's name makes: see `LLM`.

    Returns:
        For each prefix the accuracy, the gain over none, the accuracy with another user's prefix, by
        question and by group; a tie counts half. It counts texts that were cut, choices that failed,
        and prefixes with too few examples; `without_cuts()` leaves cut ones out. `print` shows a table.

    Raises:
        ValueError, TypeError: a bad argument, before anything is scored.
        DataError: no row is a choice of a user.
        ModelError: from the scorer.
    """
    UnknownOptionError.check(
        options, OPTIONS.union(inspect.signature(evaluate_prefixes).parameters)
    )
    check_confidence(confidence)
    check_argument("draw_seed", draw_seed, CountFromZero)
    attribute = (attribute,) if isinstance(attribute, str) else tuple(attribute)
    _check(prefixes, scorer, fit, folds, questions, attribute, ablations)
    known = group_values(groups)
    before_tuning = None if untuned is None else _predictor("untuned", untuned, options)
    users, skipped = users_in(data, user, columns, None, None)
    choices = [choice for one in users for choice in one.new]
    check_groups(known, choices)
    names = tuple(one.name for one in users if one.new)
    parts = (
        [Fold("all", names, names)] if folds is None else folds_of(names, folds, known, draw_seed)
    )
    everything = {BARE: persona_prefix(BARE), **prefixes}
    tests = [
        FittedFold(part, everything, _predictor("scorer", _scorer(scorer, fit, part), options))
        for part in parts
    ]
    settings = {"lift": lift, "folds": folds, "confidence": confidence, "draw_seed": draw_seed}
    return PrefixEvaluation.of(
        _score(tests, choices, folds is not None, lift, draw_seed, before_tuning),
        choices,
        questions=_questions(questions, choices),
        groups=known,
        attribution=_attribution(attribute, tests, choices, ablations, confidence, draw_seed),
        skipped=skipped,
        settings=settings,
    )


def _scorer(scorer: ChoiceScorer | None, fit: Fit | None, fold: Fold) -> ChoiceScorer:
    if fit is not None:
        return fit(fold.trained)
    assert scorer is not None  # checked before
    return scorer


def _predictor(name: str, scorer: ChoiceScorer, options: LLMOptions) -> Predictor:
    if name == "untuned" and not isinstance(scorer, str):
        return predictor_of(scorer)  # the options are the scorer's
    return predictor_of(scorer, options)


# Margins


class FittedFold:
    """The prefixes and the predictor that were fitted on the trained users of one fold."""

    def __init__(self, fold: Fold, prefixes: Mapping[str, AnyPrefix], predict: Predictor) -> None:
        self.fold, self.predict = fold, predict
        self.prefixes = {
            name: one if isinstance(one, Prefix) else one(fold.trained)
            for name, one in prefixes.items()
        }
        for name, one in self.prefixes.items():
            if not isinstance(one, Prefix):
                raise InvalidArgumentError(
                    f"prefixes[{name!r}] made {one!r:.80}, which is not a prefix."
                )


class Job(NamedTuple):
    """One prefix on the choices at some places; the margins go into a field of `scored`."""

    scored: Scored
    field: Literal["own", "trained", "shuffled"]
    prefix: Prefix
    places: list[int]


def _score(
    tests: Sequence[FittedFold],
    choices: Sequence[Preference],
    folded: bool,
    lift: bool,
    seed: int,
    untuned: Predictor | None,
) -> dict[str, Scored]:
    """Test each user in the fold that leaves it out, and in the next one, which trained on it."""
    found = {name: Scored.blank(len(choices)) for name in tests[0].prefixes}
    for test, before in zip(tests, [tests[-1], *tests[:-1]], strict=True):
        jobs = []
        for name, prefix in test.prefixes.items():
            unseen = _places(prefix, test.fold.unseen, choices)
            jobs.append(Job(found[name], "own", prefix, unseen))
            if folded:
                trained = _places(prefix, before.fold.unseen, choices)
                jobs.append(Job(found[name], "trained", prefix, trained))
            if len(prefix.users) > 1:
                jobs.append(Job(found[name], "shuffled", prefix.shuffled(seed), unseen))
        _run(jobs, test.predict, choices, lift, untuned)
    return found


def _run(
    jobs: Sequence[Job],
    predict: Predictor,
    choices: Sequence[Preference],
    lift: bool,
    untuned: Predictor | None,
) -> None:
    """Write the predictions of all jobs into their records; all cases are scored in one call."""
    cases = [[_case(job.prefix, choices[place]) for place in job.places] for job in jobs]
    for job, mine in zip(jobs, cases, strict=True):
        if job.field == "own":
            job.scored.known[job.places] = True
            missing = np.array([missing for _, missing in mine], dtype=int)
            job.scored.empty[job.places] = (missing > 0) & (missing == job.prefix.k)
            job.scored.short[job.places] = (missing > 0) & (missing < job.prefix.k)
    done = _predict(predict, jobs, [[case for case, _ in mine] for mine in cases], lift)
    for job, part in zip(jobs, done, strict=True):
        getattr(job.scored, job.field)[job.places] = part.margins
        job.scored.cut[job.places] |= part.turns_cut | part.responses_cut
        if job.field == "own":
            job.scored.failed[job.places] = np.isnan(part.margins)
            for name in ("turns_cut", "responses_cut", "unusable"):
                getattr(job.scored, name)[job.places] = getattr(part, name)
    if untuned is not None:
        own = [n for n, job in enumerate(jobs) if job.field == "own"]
        asked = [[case for case, _ in cases[n]] for n in own]
        for n, part in zip(
            own, _predict(untuned, [jobs[n] for n in own], asked, lift), strict=True
        ):
            jobs[n].scored.untuned[jobs[n].places] = part.margins
            jobs[n].scored.cut[jobs[n].places] |= part.turns_cut | part.responses_cut


def _predict(
    predict: Predictor, jobs: Sequence[Job], cases: Sequence[Sequence[Case]], lift: bool
) -> list[Predictions]:
    """The predictions of each job, in one call; with `lift`, less those of the bare prompt."""
    flat = [case for mine in cases for case in mine]
    nothing = persona_prefix(BARE)
    bare = [_case(nothing, case.choice)[0] for case in flat if lift]
    found = predict([*flat, *bare])
    if lift:
        said = [
            job.prefix.kind != BARE for job, mine in zip(jobs, cases, strict=True) for _ in mine
        ]
        of_bare = found.part(slice(len(flat), None))
        found = found.part(slice(len(flat))).less(of_bare, np.array(said, dtype=bool))
    ends = np.cumsum([0, *map(len, cases)])
    return [found.part(slice(start, end)) for start, end in pairwise(ends)]


def _places(prefix: Prefix, people: Names, choices: Sequence[Preference]) -> list[int]:
    """The choices of these people that the prefix has something for."""
    who = set(people)
    return [n for n, one in enumerate(choices) if one.user in who and prefix.works_for(one.user)]


def _case(prefix: Prefix, choice: Preference) -> tuple[Case, int]:
    """The case, and how many examples its prefix lacks."""
    said = prefix.before(choice)
    return Case(choice, said.text, prefix.around(said.text, choice.prompt)), said.missing


def _questions(
    given: Mapping[str, str] | str | None, choices: Sequence[Preference]
) -> tuple[str | None, ...]:
    if isinstance(given, str):
        return tuple(find_questions(choices))
    known = texts_of(given or {})
    return tuple(known.get(choice.id or "") for choice in choices) if known else ()


def _attribution(
    names: Sequence[str],
    tests: Sequence[FittedFold],
    choices: Sequence[Preference],
    ablations: int,
    confidence: float,
    seed: int,
) -> dict[str, Attribution]:
    """The attribution of each named prefix, on the users that the last fold leaves out."""
    test = tests[-1]
    people = set(test.fold.unseen)
    found = {}
    for name in names:
        prefix = test.prefixes[name]
        mine = [c for c in choices if c.user in people and prefix.works_for(c.user)]
        found[name] = attribute_prefix(
            name, prefix, mine, test.predict, ablations=ablations, confidence=confidence, seed=seed
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
    ablations: int,
) -> None:
    """Raise for a bad argument before anything is read or scored."""
    if not isinstance(prefixes, Mapping) or not prefixes:
        raise InvalidArgumentError("prefixes= is a mapping of names to prefixes.")
    for name, prefix in prefixes.items():
        if not isinstance(prefix, Prefix) and not callable(prefix):
            raise InvalidArgumentError(f"prefixes[{name!r}]={prefix!r:.80} is not a prefix.")
        if name == BARE and getattr(prefix, "kind", "") != BARE:
            raise InvalidArgumentError(f"prefixes[{BARE!r}] is another prefix than {BARE!r}.")
    if (scorer is None) == (fit is None):
        raise InvalidArgumentError("give scorer=, or fit= that makes one, and not both.")
    makes = fit is not None or any(not isinstance(one, Prefix) for one in prefixes.values())
    if folds is not None and not makes:
        raise InvalidArgumentError(
            f"folds={folds!r} has nothing to fit on the users that are left.",
            hint="Give fit=, or a function as a prefix.",
        )
    if fit is not None and not callable(fit):
        raise InvalidArgumentError(f"fit={fit!r:.80} is not a function (names of users) -> scorer.")
    if not (questions is None or questions == "find" or isinstance(questions, Mapping)):
        raise InvalidArgumentError(f'questions={questions!r} is neither "find" nor kinds by id.')
    for name in attribute:
        if name not in prefixes:
            raise InvalidArgumentError(f"attribute= names {name!r}, which prefixes= does not.")
    check_argument("ablations", ablations, Count)
    if ablations < 2:
        raise InvalidArgumentError(f"ablations={ablations!r}: 2 are needed for a fit.")
