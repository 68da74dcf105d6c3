"""Find out whether personas know their users: predict choices that the personas were not made from.

Each held-out choice is predicted with the user's persona, with the persona of another user, with none, and
by baselines that need no persona. The scorer gets equal questions once.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Unpack

import numpy as np
from pydantic import Field

from ..arguments import (
    Count,
    CountFromZero,
    Finite,
    Flag,
    Wanted,
    by_text,
    check_argument,
    check_text,
    id_text,
    read_items,
    read_numbers,
    takes_options,
)
from ..evaluation.statistics import CONFIDENCE, check_confidence
from ..exceptions import DataError, InvalidArgumentError, MissingExtraError, UnknownOptionError
from ..llm.client import OPTIONS, LLMOptions
from ..personas.costs import BYTES_A_TOKEN
from ..preferences.cells import is_null
from ..records import FloatArray, Persona, Preference
from ..scoring.choice_models import (
    ChoiceModel,
    LongerWins,
    MajorityVote,
    SimilarUsersVote,
    word_features,
)
from ..scoring.latent_users import LatentUsers
from ..tailoring.user_rewards import BradleyTerry, LowRankRewards
from .audit_verdict import FEW_SHOT, Margins, PersonaAudit
from .groups import check_groups, group_values, strangers
from .hypotheses import refuse_leaks, users_in
from .predictors import Case, ChoiceScorer, SharedCalls, predictor_of, sees_ids
from .prefixes import Prefix, persona_prefix
from .records import ChoicesUsed, UserPersona, UserPersonas
from .results import BARE

AnyPersonas = UserPersonas | Mapping[str, Persona | UserPersona | str]
Groups = Mapping[str, Mapping[str, object]]

_NEED_NO_HISTORY = ("longer", "majority")  # baselines
_LATENT = "latent"  # needs torch, which takes seconds to import
_LEAST_EFFECT = 1e-4  # a difference of accuracy; no audit has enough choices to show a smaller one
_Effect = Annotated[
    Finite,
    Field(ge=_LEAST_EFFECT, lt=1),
    Wanted(f"must lie between {_LEAST_EFFECT:g} and 1.", hint="Give 0.05 for five points."),
]
_MOST_EXAMPLES = 16  # of the few-shot baseline: more would fill the context of a small model


@takes_options(LLMOptions)
def audit_personas(
    personas: AnyPersonas | Callable[[int], AnyPersonas],
    choices: object,
    scorer: ChoiceScorer,
    *,
    history: object | None = None,
    baselines: Sequence[str] | Mapping[str, ChoiceModel] | None = None,
    groups: Groups | None = None,
    k: int | Sequence[int] | None = None,
    fitted_users: Collection[str] = (),
    smallest_effect: float = 0.05,
    lift: bool = False,
    role: Literal["system", "user"] = "system",
    user: str = "user_id",
    columns: Mapping[str, str] | None = None,
    confidence: float = CONFIDENCE,
    draw_seed: int = 0,
    **options: Unpack[LLMOptions],
) -> PersonaAudit:
    """Test whether personas know their own users, on choices that the personas were not made from.

    Args:
        personas: the result of `infer_user_personas`; or a mapping of users to personas (records or texts),
            made by any system; or a function k -> either of these, made from k choices of each user. The
            function is called once for each `k`. Users with None, NaN or an empty text count as users
            without a persona.
        choices: the held-out choices: preference data as for `infer_personas`, with a user for each row.
        scorer: the model that predicts: a `Likelihood`, a judge (a model's name, an `LLM`, an object with
            `explains`), or a callable (conversations, responses) -> numbers, as for `evaluate_prefixes`.
        history: the choices that the personas were made from, as preference data. Baselines are fitted on
            them; a held-out choice must not be among them. None: the choices in `UserPersonas`.
        baselines: names out of "longer", "majority", "similar users", "few-shot", "low-rank", "pooled" and
            "latent"; or name -> a model of your own with `fit(choices)` and `predict(choices)`. None: all
            that can be fitted, except "latent", which needs torch.
        groups: attribute -> user -> value. Accuracy is compared between the values, and the control persona
            comes from a user with the same values if possible.
        k: if `personas` is a function: the numbers of choices to make personas from, such as (2, 4, 8).
            `PersonaAudit.curve` has all of them; the other numbers are of the largest. None: `personas` is
            not a function.
        fitted_users: users whose choices were used to fit anything, such as a tuned scorer.
            `PersonaAudit.unseen` has the accuracies of the other users.
        smallest_effect: the smallest difference of accuracy that matters, for the verdict: from 0.0001 to
            below 1.
        lift: whether to subtract the margin of the bare prompt from each margin, so that the scorer's general
            tastes do not count.
        role: "system": the persona is a system message; "user": it is part of the user's last turn.
        user: the column with the user's id.
        columns: the library's column names -> yours, if they differ.
        confidence: how often the intervals should cover the truth, between 0 and 1. They resample users with
            all their choices.
        draw_seed: of the control persona, the examples and the permutations.
        options: configure the LLM that a judge's name makes: see `LLM`.

    Returns:
        The verdict, and the numbers behind it. `print` shows a table.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, before anything is scored; or the scorer's
            numbers are missing for all choices.
        MissingExtraError: a baseline that you named, or the scorer, needs a package that is not installed.
        DataError: a persona was made from a held-out choice of its user; or no row is a choice of a user with
            a persona. Nothing is scored then.
        ModelError: the scorer failed for all choices, or would (key, model).
        CacheError: the cache of a judge's replies cannot be used.
    """
    UnknownOptionError.check(options, OPTIONS.union(inspect.signature(audit_personas).parameters))
    counts = _counts(personas, k)
    models = _models(baselines)
    smallest_effect = check_argument("smallest_effect", smallest_effect, _Effect)
    confidence = check_confidence(confidence)
    _check(role, fitted_users)
    lift = check_argument("lift", lift, Flag)
    draw_seed = check_argument("draw_seed", draw_seed, CountFromZero)
    predict = predictor_of(scorer, options)
    held_out, skipped = users_in(choices, user, columns, None, None)
    asked = [choice for one in held_out for choice in one.new]
    known = group_values(groups)
    earlier = None if history is None else users_in(history, user, columns, None, None)[0]
    if earlier is not None:
        refuse_leaks(held_out, {one.name: ChoicesUsed(one.new) for one in earlier}, "choices")
    made = {
        count: _Made.of(personas(count) if callable(personas) else personas) for count in counts
    }
    for one in made.values():
        refuse_leaks(held_out, one.sources, "choices")
    main = made[max(counts)]
    kept = [choice for choice in asked if choice.user in main.texts]
    if not kept:
        raise DataError(
            "no held-out choice is of a user with a persona.",
            hint="The users' ids in personas= and choices= must be the same.",
        )
    past = main.history if earlier is None else [c for one in earlier for c in one.new]
    others = strangers(main.texts, kept, known, draw_seed)
    check_groups(known, kept)
    fitted, left_out = _fitted(models, past, kept, must_fit=baselines is not None)
    examples = FEW_SHOT in models and FEW_SHOT not in left_out
    # The few-shot baseline shows the choices that the persona was made from, if they are known.
    shown = main.history or past
    prefixes = _prefixes(made, shown if examples else [], role, draw_seed)
    shared = SharedCalls(predict, sees_ids=sees_ids(scorer))
    return PersonaAudit.of(
        _margins(kept, prefixes, others, shared, lift, fitted),
        names=list(models),
        left_out=left_out,
        groups=known,
        fitted_users={id_text(one) for one in fitted_users},
        unknown=len(asked) - len(kept),
        skipped=skipped,
        settings={
            "smallest_effect": smallest_effect,
            "confidence": confidence,
            "lift": lift,
            "draw_seed": draw_seed,
        },
    )


# The personas, and what they were made from


@dataclass(frozen=True)
class _Made:
    """The personas of one k.

    Attributes:
        texts: user -> persona. Users without a persona are left out.
        sources: user -> what is known of the choices that the persona was made from.
        history: these choices, where their texts are known, each with its user.
    """

    texts: dict[str, str]
    sources: dict[str, ChoicesUsed]
    history: list[Preference]

    @classmethod
    def of(cls, personas: object) -> _Made:
        """Read `UserPersonas`, or a mapping of users to personas.

        Raises:
            InvalidArgumentError: it is something else, holds something else, or has a user twice (7 and "7").
        """
        if isinstance(personas, UserPersonas):
            choices = {row.user: row.choices for row in personas}
            said: dict[str, object] = dict(personas.personas.items())
        elif isinstance(personas, Mapping):
            choices, said = {}, by_text("personas", personas)
        else:
            raise InvalidArgumentError(
                f"personas={personas!r:.80} is neither UserPersonas nor a mapping of users to personas.",
                argument="personas",
            )
        texts, sources = {}, {user: ChoicesUsed(mine) for user, mine in choices.items()}
        for user, one in said.items():
            if is_null(one):
                continue
            if not isinstance(one, str | Persona | UserPersona):
                raise InvalidArgumentError(
                    f"personas[{user!r}]={one!r:.80} is not a persona.", argument="personas"
                )
            if str(one).strip():
                check_text(f"personas[{user!r}]", str(one), "personas")
                texts[user] = str(one)
            if isinstance(one, UserPersona):
                ids = {note.pair for note in one.evidence}
                sources[user] = ChoicesUsed(choices.get(user, ()), ids)
        history = [
            choice.model_copy(update={"user": user})
            for user, mine in choices.items()
            for choice in mine
        ]
        return cls(texts, sources, history)


# Predictions of the scorer


def _prefixes(
    made: Mapping[int, _Made],
    history: Sequence[Preference],
    role: Literal["system", "user"],
    seed: int,
) -> dict[str | int, Prefix]:
    """Make the prefix of each condition. A prefix is a text before a prompt.

    Args:
        made: k -> the personas made from k choices.
        history: the choices to show as few-shot examples; empty: there is no such prefix.
        role, seed: as for `persona_prefix`.

    Returns:
        `BARE`, each k, and `FEW_SHOT` -> its prefix.
    """
    found: dict[str | int, Prefix] = {BARE: persona_prefix(BARE)}
    for k, one in made.items():
        found[k] = persona_prefix("persona", personas=one.texts, role=role)
    if history:
        counts = Counter(choice.user for choice in history)
        most = min(max(counts.values()), _MOST_EXAMPLES)
        found[FEW_SHOT] = persona_prefix(
            FEW_SHOT, history=history, k=most, show="both", role=role, seed=seed
        )
    return found


def _margins(
    choices: Sequence[Preference],
    prefixes: Mapping[str | int, Prefix],
    others: Sequence[str | None],
    shared: SharedCalls,
    lift: bool,
    baselines: Mapping[str, FloatArray],
) -> Margins:
    """Predict the choices under each condition, in one call of the scorer.

    Args:
        choices: the held-out choices.
        prefixes: from `_prefixes`; a name that is a number is a k.
        others: for each choice the user whose persona is the control; None: there is none.
        shared: predicts equal cases once. It must be new.
        lift: whether to subtract the margins without a persona.
        baselines: name -> margins of shape (choices,), for the result.
    """
    cases: dict[tuple[str | int, str], list[Case | None]] = {}
    for name, prefix in prefixes.items():
        cases[name, "own"] = [_case(prefix, choice, choice.user or "") for choice in choices]
        if isinstance(name, int):
            cases[name, "shuffled"] = [
                _case(prefix, choice, other) for choice, other in zip(choices, others, strict=True)
            ]
    places = {
        name: [None if case is None else shared.add(case) for case in mine]
        for name, mine in cases.items()
    }
    found = shared.predict()
    margins = {name: _taken(found.margins, mine) for name, mine in places.items()}
    none = margins[BARE, "own"]
    if lift:
        margins = {n: m if n[0] == BARE else m - none for n, m in margins.items()}
    counts = [name for name in prefixes if isinstance(name, int)]
    most = max(counts)
    main = [place for place in places[most, "own"] if place is not None]
    names = {"own persona": (most, "own"), "none": (BARE, "own"), FEW_SHOT: (FEW_SHOT, "own")}
    return Margins(
        tuple(choices),
        {k: margins[k, "own"] for k in counts},
        {k: margins[k, "shuffled"] for k in counts},
        none,
        margins.get((FEW_SHOT, "own")),
        baselines,
        {name: _tokens(cases[what]) for name, what in names.items() if what in cases},
        int(found.unusable[main].sum()),
        int((found.turns_cut | found.responses_cut)[main].sum()),
        _mean(found.neither[main]),
    )


def _mean(shares: FloatArray) -> float:
    """Return the mean of the numbers that are not NaN; NaN if there are none."""
    known = shares[~np.isnan(shares)]
    return float(known.mean()) if len(known) else math.nan


def _case(prefix: Prefix, choice: Preference, user: str | None) -> Case | None:
    """Return the choice with the prefix of any user; None: there is no user, or no prefix for the user."""
    if user is None or not prefix.works_for(user):
        return None
    return Case.of(prefix, choice, prefix.before(choice.model_copy(update={"user": user})).text)


def _taken(values: FloatArray, places: Sequence[int | None]) -> FloatArray:
    """Select the values at these places, shape (places,); None gives NaN."""
    return np.array([math.nan if place is None else values[place] for place in places])


def _tokens(cases: Sequence[Case | None]) -> FloatArray:
    """Estimate the tokens that the scorer reads for each case: the conversation and both responses.

    Returns:
        Shape (cases,); NaN for None.
    """

    def tokens(case: Case) -> float:
        texts = [turn.content for turn in case.messages]
        texts += [case.choice.chosen, case.choice.rejected]
        return sum(len(text.encode()) for text in texts) / BYTES_A_TOKEN

    return np.array([math.nan if case is None else tokens(case) for case in cases])


# Baselines that read no persona


def _fitted(
    models: Mapping[str, ChoiceModel | None],
    history: Sequence[Preference],
    choices: Sequence[Preference],
    *,
    must_fit: bool,
) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """Fit each model on the history, and predict the choices.

    Args:
        models: from `_models`; None is the few-shot baseline, which the scorer predicts.
        history: the choices to fit on.
        choices: the choices to predict.
        must_fit: whether to raise an error if a model cannot be fitted, because the user named it; else the
            model is left out.

    Returns:
        Name -> margins of shape (choices,); and name -> why the model is left out.

    Raises:
        InvalidArgumentError: a model needs a history that is not there, or does not predict one number for
            each choice.
        MissingExtraError: a model needs a package that is not installed.
    """
    margins, left_out = {}, {}
    for name, model in models.items():
        if not history and name not in _NEED_NO_HISTORY:
            if must_fit:
                raise InvalidArgumentError(
                    f"baselines= has {name!r}, which learns from other choices.",
                    hint="Give history=, the choices that the personas were made from.",
                    argument="history",
                )
            left_out[name] = "it needs history=, the choices that the personas were made from."
            continue
        if model is None:  # few-shot, which the scorer reads
            continue
        # The majority leaves out the votes of the user whose choice it predicts.
        seen = [*history, *choices] if isinstance(model, MajorityVote) else history
        try:
            found = read_numbers(
                f"baselines[{name!r}].predict()", model.fit(seen).predict(choices), infinite=True
            )
        except MissingExtraError as error:
            if must_fit:
                raise
            left_out[name] = str(error)
            continue
        if found.shape != (len(choices),):
            raise InvalidArgumentError(
                f"baselines[{name!r}] predicts numbers of shape {found.shape}, where"
                f" {len(choices)} are needed.",
                argument="baselines",
            )
        margins[name] = found
    return margins, left_out


# Arguments


def _models(
    baselines: Sequence[str] | Mapping[str, ChoiceModel] | None,
) -> dict[str, ChoiceModel | None]:
    """Make the model of each baseline that is named, or check those that are given.

    Args:
        baselines: as for `audit_personas`.

    Returns:
        Name -> model; None is the few-shot baseline, which the scorer predicts.

    Raises:
        InvalidArgumentError: an unknown name, or a model without `fit` and `predict`.
    """
    if isinstance(baselines, Mapping):
        for name, model in baselines.items():
            if not (
                callable(getattr(model, "fit", None)) and callable(getattr(model, "predict", None))
            ):
                raise InvalidArgumentError(
                    f"baselines[{name!r}]={model!r:.80} has no fit(choices) and predict(choices).",
                    argument="baselines",
                )
        return dict(baselines)
    known: dict[str, ChoiceModel | None] = {
        "longer": LongerWins(),
        "majority": MajorityVote(),
        "similar users": SimilarUsersVote(),
        FEW_SHOT: None,
        "low-rank": LowRankRewards(),
        "pooled": BradleyTerry(word_features),
        _LATENT: LatentUsers(),
    }
    names = [name for name in known if name != _LATENT] if baselines is None else baselines
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, Iterable):
        raise InvalidArgumentError(
            f"baselines={names!r:.60} is neither names nor models by name.", argument="baselines"
        )
    for name in names:
        InvalidArgumentError.check("baselines", name, known)
    return {name: known[name] for name in names}


def _counts(personas: object, k: int | Sequence[int] | None) -> list[int]:
    """Check `k`, and return its distinct numbers in order; [0] if `personas` is not a function of k.

    Raises:
        InvalidArgumentError: k is missing, is not needed, or is not one or several whole numbers from 1 up.
    """
    if not callable(personas):
        if k is not None:
            raise InvalidArgumentError(
                f"k={k!r} is for a function k -> personas.", hint="Leave it out.", argument="k"
            )
        return [0]
    if k is None:
        raise InvalidArgumentError(
            "personas= is a function, and k= does not say for how many choices.",
            hint="Such as k=(2, 4, 8).",
            argument="k",
        )
    given = read_items("k", k) if isinstance(k, Iterable) else [k]
    counts = {check_argument("k", count, Count) for count in given}
    if not counts:
        raise InvalidArgumentError("k= is empty.", hint="Such as k=(2, 4, 8).", argument="k")
    return sorted(counts)


def _check(role: str, fitted_users: object) -> None:
    if isinstance(fitted_users, str | Mapping) or not isinstance(fitted_users, Collection):
        raise InvalidArgumentError(
            f"fitted_users={fitted_users!r:.60} is not a list of users.", argument="fitted_users"
        )
    InvalidArgumentError.check("role", role, ("system", "user"))
