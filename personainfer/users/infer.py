"""Infer one persona for each user, from several of that user's choices.

There are four methods:

- "summary": summarise the choices in one call (arXiv 2505.13257, with 4 pairs).
- "tastes": list what the user likes and dislikes, in one call.
- "verified": explain each choice, keep the explanations that predict other choices of the same user, and
  write the persona from those (the idea of SynthesizeMe, arXiv 2506.05598).
- "posterior": explain each choice, and keep the explanation that is likeliest given all choices.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Unpack

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field

from ..arguments import (
    Count,
    CountFromZero,
    PositiveNumber,
    check_argument,
    takes_options,
)
from ..evaluation.verification import Verifier
from ..exceptions import InvalidArgumentError, UnknownOptionError
from ..llm.client import LLM, OPTIONS, LLMOptions, make_llm
from ..llm.requests import Request
from ..personas.flags import flags_in_text, pair_text
from ..personas.prompts import Filled, Phrase, at_most, filled, instructions
from ..personas.selection import can_explain, explains_each, of_one_run
from ..records import Message, Persona, Preference, Prompt, Selector, Usage
from ..scoring.context import Cuts
from ..scoring.likelihood import Likelihood
from ..scoring.posterior import PersonaPosterior
from .hypotheses import (
    NEUTRAL,
    UserAtWork,
    explain,
    explains_of,
    predicting,
    score_hypotheses,
    unchecked,
    users_in,
)
from .records import Method, PairEvidence, UserPersona, UserPersonas, UserRow

_METHODS = ("summary", "tastes", "verified", "posterior")
_WITHOUT_SCORES = ("summary", "tastes")
# The fewest choices that a method needs.
_FEWEST = {"summary": 1, "tastes": 1, "verified": 2, "posterior": 2}
_PREDICTED = "The persona predicts this choice."
_FLAGS = frozenset(["refusal", "copies_text", "protected_attribute", "named_person"])


@takes_options(LLMOptions)
def infer_user_personas(
    data: object,
    model: str | LLM | None = None,
    *,
    user: str = "user_id",
    pairs_per_user: int | None = 4,
    min_pairs: int = 2,
    method: Method = "summary",
    select: Selector | None = None,
    checks: int = 4,
    contrast: int = 0,
    choice_temperature: float = 1.0,
    update: UserPersonas | None = None,
    columns: Mapping[str, str] | None = None,
    progress: bool | None = None,
    **options: Unpack[LLMOptions],
) -> UserPersonas:
    """Infer what each user is like and prefers, from several of the user's choices.

    Args:
        data: preference data as for `infer_personas`, with a user for each row. A choice without an id gets
            its place in the data as its id.
        model: see `LLM`; None: $PERSONAINFER_MODEL, else the embedded model.
        user: the column with the user's id. `Preference` records have the field `user`.
        pairs_per_user: use the first N choices of each user (4 in arXiv 2505.13257); None: all. The other
            choices are counted in `skipped`, and `print` shows the count.
        min_pairs: a user with fewer choices gets an error; "verified" and "posterior" need 2.
        method: "summary": one call summarises the choices. "tastes": one call lists what the user likes and
            dislikes, which suits opinions, and scorers that compare meanings, such as `TasteSimilarity`; with
            `select`, a taste that predicts the opposite of the choices moves to the other list. "verified":
            one call explains each choice; one more call writes the persona from the explanations that predict
            other choices of the user (mean score above 0). "posterior": of these explanations, the one with
            the highest posterior is the persona, in its own words. With the last two, a user gets an error if
            no explanation predicts other choices.
        select: scores explanations, or tastes; not for "summary". An object with `explains(preferences,
            personas)`, such as `Likelihood`. None: a `Verifier` with `model`; for "tastes" nothing is scored.
        checks: for "verified": score each explanation on N other choices of the user.
        contrast: for "verified" and "posterior": subtract the mean score of an explanation on N choices of
            other users, so that what holds for everybody does not count. 0: subtract nothing.
        choice_temperature: for "posterior": tau in log p(k) = sum over choices of log sigma(e / tau) + const,
            where e are the scores of explanation k. It has the unit of the scores; a smaller one gives each
            choice more weight.
        update: personas inferred before, by the same method. `data` then holds new choices; up to
            `pairs_per_user` new ones of each user are used. A user without new choices keeps the persona, and
            a user without a persona is tried again. "posterior" keeps its explanations, and scores them on
            the new choices. None: begin anew.
        columns: the library's column names -> yours, if they differ.
        progress: whether to show a bar on standard error while choices are explained ("verified" and
            "posterior"; other methods have no bar); None: in a terminal or a notebook.
        options: of the LLM that a model string makes: see `LLM`.

    Returns:
        One row for each user, with the persona or the error. A user of `update` for whom this call failed has
        both: the earlier persona, and the error. If `select` is a `Likelihood` and texts were too long for
        it, `settings["cuts"]` counts them.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, before any call is made; or `select` refused
            all choices.
        DataError: no row of the data is a choice of a user, before any call is made.
        MissingExtraError: the model needs a package that is not installed.
        ModelError: every request would fail in the same way (key, model), or `select` failed for all choices.
        CacheError: the cache of replies cannot be used.
    """
    UnknownOptionError.check(
        options, OPTIONS.union(inspect.signature(infer_user_personas).parameters)
    )
    pairs_per_user = check_argument("pairs_per_user", pairs_per_user, Count | None)
    min_pairs = check_argument("min_pairs", min_pairs, Count)
    checks = check_argument("checks", checks, Count)
    contrast = check_argument("contrast", contrast, CountFromZero)
    choice_temperature = check_argument("choice_temperature", choice_temperature, PositiveNumber)
    _check(pairs_per_user, min_pairs, method, contrast, select, update)
    llm = make_llm(model, options)
    select = of_one_run(select, llm)
    before = llm.usage_here
    settings = {**llm.settings, "method": method, "pairs_per_user": pairs_per_user}
    users, skipped = users_in(data, user, columns, pairs_per_user, update)
    at_work = _at_work(users, max(min_pairs, _FEWEST[method]))
    if method not in _WITHOUT_SCORES:
        selector = Verifier(llm) if select is None else select
        cuts = getattr(selector, "cuts", Cuts())
        explain(at_work, llm, progress, candidates=method == "posterior")
        score_hypotheses(at_work, selector, checks if method == "verified" else None, contrast)
        if isinstance(selector, Likelihood) and selector.cuts != cuts:
            settings["cuts"] = selector.cuts.since(cuts)
    if method == "posterior":
        made = {one.name: _likeliest(one, choice_temperature) for one in at_work}
    elif method == "tastes":
        made = _listed(at_work, llm, select)
    else:
        made = _written(at_work, llm, verified=method == "verified")
    return UserPersonas(
        tuple(_row(one, made.get(one.name)) for one in users),
        skipped,
        _spent(before, llm.usage_here),
        settings,
    )


def _at_work(users: Sequence[UserAtWork], fewest: int) -> list[UserAtWork]:
    """Select the users who have enough choices, and a new choice or no persona.

    A user with fewer than `fewest` choices gets a `problem`, and is left out.
    """
    for one in users:
        if len(one.choices) < fewest:
            one.problem = (
                f"the user has {len(one.choices)} usable pairs, and {fewest} are needed."
                " Add choices of this user or leave the user out."
            )
    return [one for one in users if one.problem is None and (one.new or one.earlier is None)]


# The posterior


def _likeliest(one: UserAtWork, temperature: float) -> UserPersona | str:
    """Make the persona from the explanation of the highest posterior among those that predict other choices.

    Args:
        one: the user, with scored hypotheses.
        temperature: `choice_temperature` of `infer_user_personas`.

    Returns:
        The persona, or a text that says why there is none.
    """
    kept = predicting(one)
    if isinstance(kept, str):
        return kept
    explains = explains_of(one)
    candidates = [hypothesis.persona for hypothesis in one.hypotheses]
    posterior = PersonaPosterior(candidates, temperature=temperature).update(explains).probabilities
    best = max(kept, key=lambda place: posterior[place])
    persona = candidates[best]
    source = one.hypotheses[best].pair
    predicted = [one.choices[row].id or "" for row in np.flatnonzero(explains[:, best] > NEUTRAL)]
    evidence = [PairEvidence(pair=source, shows=persona.evidence)]
    evidence += [PairEvidence(pair=pair, shows=_PREDICTED) for pair in predicted if pair != source]
    return UserPersona(
        user=one.name,
        background=f"The user is {persona.trait}." if persona.trait else "",
        preferences=f"The user prefers {persona.preference}." if persona.preference else "",
        evidence=tuple(evidence),
        pairs=len(one.choices),
        score=float(posterior[best]),
        flags=persona.flags,
    )


# Writing personas: the prompt and the schema of a reply; the texts are files in `personainfer/personas/texts`

_NUMBER = {"pattern": "^[1-9][0-9]{0,1}$"}
_NOTES = {"minItems": 1, "maxItems": 4}  # only in the schema that guides decoding, like `at_most`


class ChoiceNote(BaseModel):
    """The schema of a note in a reply: what one choice of a user shows.

    Attributes:
        choice: the number of the choice in the prompt, from "1".
        shows: what it shows about the user.
    """

    choice: Annotated[
        str,
        BeforeValidator(lambda value: str(value).strip()),
        Field(json_schema_extra=_NUMBER),
    ]
    shows: Annotated[Filled, Field(json_schema_extra=at_most(100))]


class WrittenPersona(BaseModel):
    """The schema of a reply about a user. The model writes the evidence first."""

    evidence: Annotated[list[ChoiceNote], Field(fail_fast=True, json_schema_extra=dict(_NOTES))]
    background: Annotated[Filled, Field(json_schema_extra=at_most(300))]
    preferences: Annotated[Phrase, Field(json_schema_extra=at_most(300))]


def user_message(
    choices: Sequence[Preference], explanations: Sequence[Persona | None], earlier: str = ""
) -> Message:
    """Write the user turn of a prompt: a user's choices, their explanations, and an earlier persona.

    Args:
        choices: they are numbered "1", "2", ….
        explanations: one for each choice; None: the choice has none.
        earlier: the earlier persona; "": there is none.
    """
    parts = []
    for number, (choice, persona) in enumerate(zip(choices, explanations, strict=True), 1):
        pair = {"prompt": choice.prompt, "preferred": choice.chosen, "other": choice.rejected}
        parts.append(filled("user_choice.txt", {"id": str(number), **pair}))
        if persona is not None:
            said = f"{persona} ({persona.evidence})" if persona.evidence else str(persona)
            fields = {"id": str(number), "explanation": said}
            parts.append(filled("user_explanation.txt", fields))
    if earlier:
        parts.append(filled("user_earlier.txt", {"earlier": earlier}))
    return Message(role="user", content="\n".join(parts))


def _written(
    users: Sequence[UserAtWork], llm: LLM, *, verified: bool
) -> dict[str, UserPersona | str]:
    """Let the model write a persona for each user from the user's choices.

    Args:
        users: the users.
        llm: the model.
        verified: whether the prompt shows only the choices with an explanation that predicts others, and
            these explanations. Otherwise it shows all choices, or the new ones with the earlier persona.

    Returns:
        User -> the persona, or a text that says why there is none.

    Raises:
        ModelError, CacheError: as `infer_user_personas`.
    """
    made: dict[str, UserPersona | str] = {}
    asked: list[tuple[UserAtWork, list[Preference], float | None]] = []
    requests = []
    prefix = instructions("user.txt")
    for one in users:
        kept = predicting(one) if verified else {}
        if isinstance(kept, str):
            made[one.name] = kept
            continue
        explained = {one.hypotheses[n].pair: one.hypotheses[n].persona for n in kept}
        score = float(np.mean(list(kept.values()))) if kept else None
        refined = None if verified else one.earlier
        shown = list(one.choices if refined is None else one.new)
        if verified:
            shown = [pair for pair in shown if pair.id in explained]
        earlier = "" if refined is None else str(refined)
        turn = user_message(shown, [explained.get(pair.id or "") for pair in shown], earlier)
        requests.append(Request((turn,), WrittenPersona, prefix))
        asked.append((one, shown, score))
    for (one, shown, score), reply in zip(asked, llm.ask_many(requests), strict=True):
        if reply.error is None:
            made[one.name] = _persona(one, shown, reply.value, score, keep=not verified)
        else:
            made[one.name] = str(reply.error)
    return made


def _persona(
    one: UserAtWork,
    shown: Sequence[Preference],
    written: WrittenPersona,
    score: float | None,
    *,
    keep: bool,
) -> UserPersona:
    """Make the persona from a reply of the model.

    Args:
        one: the user.
        shown: the choices that the model saw, numbered from 1. Evidence for any other number is dropped.
        written: the reply.
        score: the `score` of the persona.
        keep: whether the evidence of the earlier persona comes first; else it is dropped.
    """
    by_number = {str(number): choice for number, choice in enumerate(shown, 1)}
    evidence = tuple(
        PairEvidence(pair=by_number[note.choice].id or "", shows=note.shows)
        for note in written.evidence
        if note.choice in by_number
    )
    if keep and one.earlier is not None:
        evidence = one.earlier.evidence + evidence
    return UserPersona(
        user=one.name,
        background=written.background,
        preferences=written.preferences,
        evidence=evidence,
        pairs=len(one.choices),
        score=score,
        flags=_flags(written.background, written.preferences, shown),
    )


def _flags(background: str, preferences: str, choices: Sequence[Preference]) -> tuple[str, ...]:
    """Find the flags of a persona that was made from these choices, such as words copied from them."""
    persona = Persona.model_construct(trait=background, preference=preferences)
    text = "\n".join(map(pair_text, choices))
    return tuple(flag for flag in flags_in_text([persona], text, frozenset())[0] if flag in _FLAGS)


# Listing tastes

_TASTES = {"minItems": 2, "maxItems": 3}
Taste = Annotated[Phrase, Field(json_schema_extra=at_most(100))]


class Tastes(BaseModel):
    """The schema of a reply that lists what a user likes and dislikes."""

    likes: Annotated[
        list[Taste], Field(min_length=1, fail_fast=True, json_schema_extra=dict(_TASTES))
    ]
    dislikes: Annotated[
        list[Taste], Field(min_length=1, fail_fast=True, json_schema_extra=dict(_TASTES))
    ]


def _listed(
    users: Sequence[UserAtWork], llm: LLM, select: Selector | None
) -> dict[str, UserPersona | str]:
    """Let the model list the tastes of each user.

    Args:
        users: the users.
        llm: the model.
        select: scores the tastes, which are then sorted by their scores; None: they stay as the model lists
            them, but a taste on both sides is only a like.

    Returns:
        User -> the persona, or a text that says why there is none.

    Raises:
        InvalidArgumentError, ModelError, CacheError: as `infer_user_personas`.
    """
    prefix = instructions("user_tastes.txt")
    requests = []
    for one in users:
        shown = one.choices if one.earlier is None else one.new
        requests.append(Request((tastes_message(shown, one.earlier),), Tastes, prefix))
    made: dict[str, UserPersona | str] = {}
    for one, reply in zip(users, llm.ask_many(requests), strict=True):
        if reply.error is not None:
            made[one.name] = str(reply.error)
            continue
        tastes: Tastes = reply.value
        likes = _distinct(tastes.likes)
        dislikes = [said for said in _distinct(tastes.dislikes) if said not in likes]
        if select is not None:
            sided = _sided([*likes, *dislikes], one.choices, select)
            if isinstance(sided, str):
                made[one.name] = sided
                continue
            likes, dislikes = sided
        made[one.name] = _tastes_persona(one, likes, dislikes)
    return made


def _distinct(tastes: Sequence[str]) -> list[str]:
    """Return each taste once, without a full stop. "," replaces ";", which separates tastes in a persona."""
    return list(
        dict.fromkeys(" ".join(one.replace(";", ",").split()).rstrip(".") for one in tastes)
    )


def tastes_message(choices: Sequence[Preference], earlier: UserPersona | None) -> Message:
    """Write the user turn of a prompt: a user's choices by prompt, and an earlier persona if there is one."""
    by_prompt: dict[Prompt, list[Preference]] = {}
    for choice in choices:
        by_prompt.setdefault(choice.prompt, []).append(choice)
    parts = []
    for prompt, mine in by_prompt.items():
        parts.append(filled("user_question.txt", {"prompt": prompt}))
        for choice in mine:
            fields = {"preferred": choice.chosen, "other": choice.rejected}
            parts.append(filled("user_yes_no.txt", fields))
    if earlier is not None:
        parts.append(filled("user_earlier.txt", {"earlier": str(earlier)}))
    return Message(role="user", content="".join(parts))


def _sided(
    tastes: Sequence[str], choices: Sequence[Preference], select: Selector
) -> tuple[list[str], list[str]] | str:
    """Sort tastes into likes and dislikes by their mean scores on the user's choices.

    Small models often list a taste on the wrong side.

    Returns:
        The likes (mean score above 0) and the dislikes (below 0), each by absolute score, highest first. A
        taste with a mean of 0 is dropped. Text: most scores are missing.
    """
    said = [Persona.parse(f"The user likes: {taste}") for taste in tastes for _ in choices]
    scores = explains_each(select, [*choices] * len(tastes), said).reshape(len(tastes), -1)
    known = np.isfinite(scores)
    if problem := unchecked(int(known.size - known.sum()), known.size):
        return problem
    sums = np.where(known, scores, 0.0).sum(axis=1)
    means = dict(zip(tastes, sums / np.maximum(known.sum(axis=1), 1), strict=True))
    surest = sorted(tastes, key=lambda taste: -abs(means[taste]))
    likes = [taste for taste in surest if means[taste] > NEUTRAL]
    return likes, [taste for taste in surest if means[taste] < NEUTRAL]


def _tastes_persona(
    one: UserAtWork, likes: Sequence[str], dislikes: Sequence[str]
) -> UserPersona | str:
    if not (likes or dislikes):
        return "none of the tastes predicts the user's choices. Give more choices of this user."
    background = f"The user likes: {'; '.join(likes)}." if likes else ""
    preferences = f"The user dislikes: {'; '.join(dislikes)}." if dislikes else ""
    return UserPersona(
        user=one.name,
        background=background,
        preferences=preferences,
        pairs=len(one.choices),
        flags=_flags(background, preferences, one.choices),
    )


# The result


def _row(one: UserAtWork, made: UserPersona | str | None) -> UserRow:
    if one.before is not None and one.earlier is not None:
        if made is None:  # no new choices
            return one.before
        if isinstance(made, str):  # the same call again continues from here
            return one.before.model_copy(update={"error": made})
    return UserRow(
        user=one.name,
        persona=made if isinstance(made, UserPersona) else None,
        error=made if isinstance(made, str) else one.problem,
        choices=one.choices,
        hypotheses=tuple(one.hypotheses),
    )


def _spent(before: Usage, after: Usage) -> Usage:
    """Subtract two readings of an LLM's usage. A number that is None in either of them is None."""
    counts: dict[str, Any] = {}
    for name, start in before:
        end = getattr(after, name)
        counts[name] = None if start is None or end is None else end - start
    return Usage(**counts)


def _check(
    pairs_per_user: int | None,
    min_pairs: int,
    method: str,
    contrast: int,
    select: Selector | None,
    update: UserPersonas | None,
) -> None:
    """Raise InvalidArgumentError for a bad argument before anything is read or sent."""
    InvalidArgumentError.check("method", method, _METHODS)
    if contrast and method in _WITHOUT_SCORES:
        raise InvalidArgumentError(f"contrast= has nothing to score with method={method!r}.")
    fewest = max(min_pairs, _FEWEST[method])
    if pairs_per_user is not None and pairs_per_user < fewest:
        raise InvalidArgumentError(
            f"pairs_per_user={pairs_per_user}, but {fewest} are needed.",
            hint=f"Give more, or a smaller min_pairs= ({method!r} needs {_FEWEST[method]}).",
        )
    if select is not None and not can_explain(select):
        raise InvalidArgumentError(
            f"select={select!r:.80} has no method explains(preferences, personas)."
        )
    if select is not None and method == "summary":
        raise InvalidArgumentError('select= has nothing to score with method="summary".')
    if update is not None and not isinstance(update, UserPersonas):
        raise InvalidArgumentError(f"update= is a {type(update).__name__}, not UserPersonas.")
    if update is not None and update.settings.get("method", method) != method:
        raise InvalidArgumentError(
            f"method={method!r}, but update= was made by {update.settings['method']!r}."
        )
