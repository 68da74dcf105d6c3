"""Measure how well a prefix lets a scorer predict the other choices of its user.

A prefix is a text about a user before a prompt, see `prefixes`. The comparisons are those of FamousPersona
(arXiv 2505.13257): users in the training data and unseen users, personal and clashing questions, groups of
users, sentences of the prefix. This module adds a control, in which each user gets another user's prefix, and
intervals that resample users.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np

from ..arguments import Count, CountFromZero, Flag, check_argument, read_items, takes_options
from ..evaluation.statistics import CONFIDENCE, check_confidence
from ..exceptions import InvalidArgumentError, UnknownOptionError
from ..llm.client import LLM, OPTIONS, LLMOptions, make_beside
from ..records import Preference
from .attribution import ABLATIONS, WITH_SENTENCES, Attribution, attribute_prefix, drawn_halves
from .groups import Fold, Folds, check_groups, folds_of, group_values, texts_of
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
    attribute: Iterable[str] = (),
    ablations: int = ABLATIONS,
    user: str = "user_id",
    columns: Mapping[str, str] | None = None,
    confidence: float = CONFIDENCE,
    draw_seed: int = 0,
    **options: Unpack[LLMOptions],
) -> PrefixEvaluation:
    """Measure how well each prefix lets a scorer predict the held-out choices of users.

    Args:
        prefixes: name -> a prefix from `persona_prefix`, or a function (names of the users to train on) ->
            prefix, for a prefix that is made from other users' choices. The prefix "none" is added.
        data: the held-out choices: preference data as for `infer_personas`, with a user for each row.
        scorer: a `Likelihood`, a judge (a model's name, an `LLM`, an object with `explains`), or a callable
            (conversations, responses) -> numbers. See `personainfer.users.predictors`. None: `fit` makes it.
        fit: in place of a scorer: a function (names of the users to train on) -> scorer, such as one that
            trains a model or loads it.
        untuned: the scorer before it was tuned. It predicts the same choices with each prefix, and
            `over_untuned` is the gain of tuning, by group as well (FamousPersona's equity). None: there is
            none.
        folds: N: split the users into N parts; or an attribute in `groups`: the users of each of its values
            are one part. Each part is predicted by what was fitted on the other parts: functions in
            `prefixes` and `fit` get only the users of these. None: functions get all users.
        lift: whether to subtract the margin of the bare prompt from each margin, so that the scorer's general
            tastes do not count. The margin of "none" stays as it is.
        groups: attribute -> user -> value: groups to compare. None, NaN and "" are missing values.
        questions: id of a choice -> kind of its question; or "find": "clashing" if users choose differently
            on the prompt, else "personal" (see `personainfer.users.similar_users`). None: questions are not
            told apart.
        attribute: names of prefixes whose sentences get effects (see `attribute_prefix`). They are of the
            kinds "few-shot", "persona" or "gold". With folds, the choices are those of the users that the
            last fold leaves out.
        ablations: the most subsets of the sentences of a prefix that are scored for each choice; 2 or more.
        user: the column with the user's id.
        columns: the library's column names -> yours, if they differ.
        confidence: how often the intervals should cover the truth, between 0 and 1. They resample users with
            all their choices.
        draw_seed: of folds, shuffled prefixes, draws and permutations.
        options: configure the LLMs that names of judges make: see `LLM`. `budget` is that of all calls
            together. Without `api_base`, a judge of another provider than the first that is called is not
            told the key and the headers.

    Returns:
        For each prefix the accuracy, the gain over none, and the accuracy with another user's prefix, also by
        question and by group. A tie counts half. The result counts texts that were cut, choices that failed,
        and prefixes with too few examples; `without_cuts()` leaves choices with cut texts out. `print` shows
        a table.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, before anything is scored; or the scorer's
            numbers are missing for all choices.
        DataError: no row is a choice of a user, or a persona of `infer_user_personas` was made from a choice
            of its user in `data` (unless its prefix is "gold"); there are fewer users than folds, or an
            attribute for `folds` has one value; or the texts of a prefix in `attribute` have no sentence, or
            no user has two choices to measure effects on. Nothing is scored then.
        MissingExtraError: the scorer needs a package that is not installed.
        ModelError: the scorer failed for all choices, or would (key, model).
        CacheError: the cache of a judge's replies cannot be used.
    """
    UnknownOptionError.check(
        options, OPTIONS.union(inspect.signature(evaluate_prefixes).parameters)
    )
    confidence = check_confidence(confidence)
    lift = check_argument("lift", lift, Flag)
    draw_seed = check_argument("draw_seed", draw_seed, CountFromZero)
    named = [attribute] if isinstance(attribute, str) else read_items("attribute", attribute)
    folds = check_argument("folds", folds, Folds | None)
    ablations = check_argument("ablations", ablations, Count)
    _check(prefixes, scorer, fit, folds, questions, named, ablations)
    known = group_values(groups)
    judges: list[LLM] = []

    def predictor(one: ChoiceScorer) -> Predictor:
        if not isinstance(one, str):
            return predictor_of(one, options)
        judges.append(make_beside(judges, one, options))
        return predictor_of(judges[-1])

    fixed = None if scorer is None else predictor(scorer)

    def fitted(names: Names) -> Predictor:
        if fit is not None:
            return predictor(fit(names))
        assert fixed is not None  # checked before
        return fixed

    # With another untuned scorer than a name, the options are those of `scorer` alone.
    tells = predictor if isinstance(untuned, str) else predictor_of
    before_tuning = None if untuned is None else tells(untuned)
    users, skipped = users_in(data, user, columns, None, None)
    choices = [choice for one in users for choice in one.new]
    check_groups(known, choices)
    for one in prefixes.values():  # before anything is fitted
        if isinstance(one, Prefix):
            one.check_held_out(users)
    ids = [one.data_ids.get(c.id or "", c.id) for one in users for c in one.new]
    kinds = _questions(questions, choices, ids)
    names = tuple(one.name for one in users if one.new)
    parts = (
        [Fold("all", names, names)] if folds is None else folds_of(names, folds, known, draw_seed)
    )
    everything = {BARE: persona_prefix(BARE), **prefixes}
    tests = [FittedFold(part, everything, fitted(part.trained)) for part in parts]
    for made in {one for test in tests for one in test.prefixes.values()}:
        made.check_held_out(users)
    _check_attribute(named, tests[-1], choices, draw_seed)
    settings = {"lift": lift, "folds": folds, "confidence": confidence, "draw_seed": draw_seed}
    return PrefixEvaluation.of(
        _score(tests, choices, folds is not None, lift, draw_seed, before_tuning),
        choices,
        questions=kinds,
        groups=known,
        attribution=_attribution(named, tests, choices, ablations, confidence, draw_seed),
        skipped=skipped,
        settings=settings,
    )


def _check_attribute(
    names: Sequence[str], test: FittedFold, choices: Sequence[Preference], seed: int
) -> None:
    """Check that effects of the named prefixes can be measured on the last fold, before it is scored.

    Raises:
        InvalidArgumentError: a prefix is of a kind without sentences.
        DataError: its texts have no sentence, or no user has two choices.
    """
    for name in names:
        prefix = test.prefixes[name]
        kind = prefix.kind
        if kind not in WITH_SENTENCES:
            raise InvalidArgumentError(
                f"attribute= names {name!r}, a prefix of the kind {kind!r}, which has no sentences.",
                hint=f"Name prefixes of the kinds {', '.join(map(repr, WITH_SENTENCES))}.",
                argument="attribute",
            )
        drawn_halves(name, prefix, _choices_of(prefix, test, choices), np.random.default_rng(seed))


# Margins


class FittedFold:
    """The prefixes and the predictor of one fold, fitted on its trained users.

    Args:
        fold: the users to fit on and to test on.
        prefixes: name -> a prefix; or name -> a function from the users to fit on to a prefix, which is
            called here.
        predict: the predictor, fitted on these users.

    Raises:
        InvalidArgumentError: a function in `prefixes` returns something else than a prefix.
    """

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
    """Predict some choices with a prefix, and write the margins into a record.

    Attributes:
        scored: the record.
        field: the array of the record that gets the margins.
        prefix: the prefix.
        places: the places of the choices, and of their margins in the array.
    """

    scored: Scored
    field: Literal["own", "trained", "shuffled", "untuned"]
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
    """Predict the choices of each user with every prefix.

    "own" and "shuffled" margins come from the fold that leaves the user out; with folds, "trained" margins
    come from the next fold, which was fitted on the user. The untuned predictor gives "untuned" margins.

    Args:
        tests: the folds.
        choices: the held-out choices.
        folded: whether there are folds. If not, `tests` is one fold with all users.
        lift: whether to subtract the margins of the bare prompt.
        seed: of the shuffled prefixes.
        untuned: predicts with the untuned scorer; None: there is none.

    Returns:
        Name of a prefix -> its margins and flags. Margins that do not apply are NaN.
    """
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
        _run(jobs, test.predict, choices, lift)
        if untuned is not None:
            own = [job._replace(field="untuned") for job in jobs if job.field == "own"]
            _run(own, untuned, choices, lift)
    return found


def _run(
    jobs: Sequence[Job], predict: Predictor, choices: Sequence[Preference], lift: bool
) -> None:
    """Predict the cases of all jobs in one call, and write the results into `Job.scored`."""
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


def _predict(
    predict: Predictor, jobs: Sequence[Job], cases: Sequence[Sequence[Case]], lift: bool
) -> list[Predictions]:
    """Predict the cases of all jobs in one call; return the predictions of each job.

    With `lift`, the margins of the bare prompt are subtracted, except for jobs of the prefix "none".
    """
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
    """Return the places of the choices of these people for whom the prefix works."""
    who = set(people)
    return [n for n, one in enumerate(choices) if one.user in who and prefix.works_for(one.user)]


def _choices_of(
    prefix: Prefix, test: FittedFold, choices: Sequence[Preference]
) -> list[Preference]:
    """Return the choices of the fold's unseen users for whom the prefix works."""
    return [choices[place] for place in _places(prefix, test.fold.unseen, choices)]


def _case(prefix: Prefix, choice: Preference) -> tuple[Case, int]:
    """Return the case, and how many of the k examples its prefix lacks."""
    said = prefix.before(choice)
    return Case.of(prefix, choice, said.text), said.missing


def _questions(
    given: Mapping[str, str] | str | None,
    choices: Sequence[Preference],
    ids: Sequence[str | None],
) -> tuple[str | None, ...]:
    if isinstance(given, str):
        return tuple(find_questions(choices))
    known = texts_of("questions", given or {})
    each = zip(choices, ids, strict=True)  # `PrefixEvaluation.choices` have ids of their own
    kinds = tuple(known.get(choice.id or "", known.get(one or "")) for choice, one in each)
    if known and not any(kinds):
        raise InvalidArgumentError(
            f"questions= has none of the {len(choices):,} choices, such as {choices[0].id!r}.",
            hint="Its keys are the ids of the choices.",
            argument="questions",
        )
    return kinds if known else ()


def _attribution(
    names: Sequence[str],
    tests: Sequence[FittedFold],
    choices: Sequence[Preference],
    ablations: int,
    confidence: float,
    seed: int,
) -> dict[str, Attribution]:
    """Measure the effects of the sentences of each named prefix, on the users of the last fold."""
    test = tests[-1]
    found = {}
    for name in names:
        prefix = test.prefixes[name]
        mine = _choices_of(prefix, test, choices)
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
    """Raise InvalidArgumentError for a bad argument before anything is read or scored."""
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
        if not isinstance(name, str) or name not in prefixes:
            raise InvalidArgumentError(f"attribute= names {name!r}, which prefixes= does not.")
    if ablations < 2:
        raise InvalidArgumentError(f"ablations={ablations!r}: 2 are needed for a fit.")
