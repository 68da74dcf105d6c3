"""`persona_reward`: a reward function for TRL's GRPOTrainer that trains a model to write personas."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..arguments import (
    Number,
    NumberFromZero,
    PositiveNumber,
    Text,
    check_argument,
    read_items,
)
from ..exceptions import DataError, InvalidArgumentError, ReplyError, quoted, shown_when_made
from ..llm.replies import plain_text, read_reply
from ..personas.flags import find_flags
from ..personas.prompts import OnePersona
from ..personas.selection import can_explain, check_budget, explains_each
from ..preferences.conversations import pair_problem, read_pair
from ..preferences.turns import as_turns, text_or_turns
from ..records import Persona, Preference, Selector

Form = Literal["margin", "log_probability"]

_ROLES = ("prompt", "chosen", "rejected")
_FORMS = ("margin", "log_probability")
_NAN = float("nan")


class PersonaCompletion(OnePersona):
    """The form of a persona that the policy writes as a JSON object. (It may write a sentence instead.)

    The fields are `trait`, `preference` and `evidence`, as in `OnePersona`, but `evidence` may be missing.
    """

    evidence: str = ""


def persona_reward(
    scorer: Selector,
    *,
    columns: Mapping[str, str] | None = None,
    choices: str | None = None,
    form: Form = "margin",
    temperature: float = 1.0,
    penalty: float = 1.0,
    no_persona: float = -1.0,
) -> PersonaReward:
    """Make a reward for a policy that writes personas: how well a persona explains the user's choices.

    A completion of the policy is a persona: a sentence, or a JSON object with `trait` and `preference`. A
    scorer, which is not being trained, says how well it explains that the user preferred `chosen`:
    `trl.GRPOTrainer(reward_funcs=pi.persona_reward(pi.Likelihood("local")), …)`.

    Args:
        scorer: any object whose `.explains(preferences, personas)` returns one number a row, above 0 if the
            persona helps to predict the choice: a `Likelihood` (nats a token), or a `Verifier`.
        columns: role -> column of the data set, for the roles "prompt", "chosen" and "rejected" of the choice
            to explain. A role that is missing has its usual column: "question", "chosen", "rejected". The
            prompt is in "question", since the column "prompt" of TRL holds what the policy is given.
        choices: in place of `columns`: the column with a list of choices of one user, each a dict of prompt,
            chosen and rejected. The reward is the mean over them. Use choices that the policy's prompt does
            not show, so that the persona has to generalise.
        form: "margin": the reward is `explains`. "log_probability": it is log sigma(explains / temperature) +
            log 2, the nats that the persona adds to the prediction of the choice; at most log 2.
        temperature: divides `explains` in "log_probability"; above 0, in the unit of `explains`.
        penalty: at least 0; subtracted once if the persona has a flag for any of the choices. For example, a
            persona that copies the chosen response would explain the choice perfectly, and describe nobody.
        no_persona: the reward of a completion that is empty, or that begins like a JSON object and cannot be
            read as a persona.

    Returns:
        A function (prompts, completions, **columns) -> one float a completion, which blocks while the scorer
        works. The float is NaN, which TRL leaves out, if no choice of the row can be read, or none has a
        score. A warning counts choices that cannot be read.

    Raises:
        InvalidArgumentError: a bad argument. The function that is returned raises it for a missing column,
            and InvalidArgumentError or ModelError if the scorer fails for all rows.
    """
    return PersonaReward(
        scorer,
        columns=columns,
        choices=choices,
        form=form,
        temperature=temperature,
        penalty=penalty,
        no_persona=no_persona,
    )


class PersonaReward:
    """The function that `persona_reward` returns. The object can be pickled if its scorer can be."""

    __name__ = "persona_reward"  # what TRL calls it in its logs

    def __init__(
        self,
        scorer: Selector,
        *,
        columns: Mapping[str, str] | None,
        choices: str | None,
        form: Form,
        temperature: float,
        penalty: float,
        no_persona: float,
    ) -> None:
        if not can_explain(scorer):
            raise InvalidArgumentError(
                f"scorer={scorer!r:.80} has no method explains.",
                hint="Pass a Likelihood or a Verifier.",
            )
        InvalidArgumentError.check("form", form, _FORMS)
        if columns is not None and not isinstance(columns, Mapping):
            raise InvalidArgumentError(f"columns={columns!r:.80} is not a mapping.")
        for role in columns or {}:
            InvalidArgumentError.check("columns", role, _ROLES)
        if columns is not None and choices is not None:
            raise InvalidArgumentError("give columns= or choices=, not both.")
        choices = check_argument("choices", choices, Text | None)
        temperature = check_argument("temperature", temperature, PositiveNumber)
        penalty = check_argument("penalty", penalty, NumberFromZero)  # less would reward flags
        no_persona = check_argument("no_persona", no_persona, Number)
        usual = {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}
        self._scorer, self._columns, self._choices = scorer, usual | dict(columns or {}), choices
        self._form, self._temperature = form, temperature
        self._penalty, self._no_persona = penalty, no_persona

    @shown_when_made
    def __repr__(self) -> str:
        return f"persona_reward({self._scorer!r})"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Compute the reward of each completion. TRL passes the data set's columns by name.

        Args:
            prompts: what the policy was given; not used.
            completions: n texts, or lists of messages of which the last holds the persona.
            columns: name -> n values: the columns that `persona_reward` names, and others.

        Returns:
            n rewards: see `persona_reward`.

        Raises:
            InvalidArgumentError: a column is missing or does not have n values, a completion is neither text
                nor messages, or the scorer did not return one number a row.
            InvalidArgumentError, ModelError: the scorer failed for all choices, or for three in succession
                for a reason other than their content.
            BudgetExceededError: no choice has a score, since the budget of the judge is spent.
        """
        completions = read_items("completions", completions)
        personas = [_read_persona(*one) for one in enumerate(completions)]
        choices = self._read_choices(len(completions), columns)
        asked = [
            (row, pair, persona)
            for row, (persona, pairs) in enumerate(zip(personas, choices, strict=True))
            if persona is not None
            for pair in pairs
        ]
        scores: list[list[float]] = [[] for _ in completions]
        found = self._explain([(pair, persona) for _, pair, persona in asked])
        for (row, *_), score in zip(asked, found, strict=True):
            scores[row].append(score)
        return [self._reward(*one) for one in zip(personas, choices, scores, strict=True)]

    def _explain(self, asked: Sequence[tuple[Preference, Persona]]) -> list[float]:
        if not asked:
            return []
        pairs, personas = zip(*asked, strict=True)
        scores = explains_each(self._scorer, pairs, personas, "scorer")
        if np.isnan(scores).all():
            check_budget(self._scorer)
        scores[~np.isfinite(scores)] = np.nan  # an infinite reward would destroy the policy
        if self._form == "log_probability":
            known = ~np.isnan(scores)
            scores[known] = math.log(2.0) - np.logaddexp(0.0, -scores[known] / self._temperature)
        return [float(score) for score in scores]

    def _reward(
        self, persona: Persona | None, pairs: Sequence[Preference], scores: Sequence[float]
    ) -> float:
        if not pairs:
            return _NAN
        if persona is None:
            return self._no_persona
        known = [score for score in scores if not math.isnan(score)]
        if not known:
            return _NAN
        flagged = any(find_flags(persona, pair) for pair in pairs)
        return sum(known) / len(known) - (self._penalty if flagged else 0.0)

    def _read_choices(self, count: int, columns: Mapping[str, Any]) -> list[list[Preference]]:
        """Read the choices of each of `count` rows. A choice that cannot be read is left out, with a warning.

        Raises:
            InvalidArgumentError: the data set lacks a column, or has another number of rows.
        """
        names = [self._choices] if self._choices is not None else list(self._columns.values())
        if missing := [name for name in names if name not in columns]:
            given = ", ".join(
                repr(name) for name, each in columns.items() if isinstance(each, list)
            )
            raise InvalidArgumentError(
                f"the data set has no column {missing[0]!r}; it has {given or 'none besides prompt'}.",
                hint="Name the columns of the choices: columns={'prompt': 'question', …}, or choices=.",
            )
        values = [read_items(name, columns[name]) for name in names]
        for name, each in zip(names, values, strict=True):
            if len(each) != count:
                raise InvalidArgumentError(
                    f"{count} completions, {len(each)} values of the column {name!r}."
                )
        if self._choices is None:
            rows = [
                [dict(zip(self._columns, each, strict=True))] for each in zip(*values, strict=True)
            ]
        else:
            # One dict, or anything that is no list, is a choice that cannot be read.
            [of_users] = values
            rows = [[] if row is None else _listed(row) for row in of_users]
        read = [[_read_choice(choice) for choice in row] for row in rows]
        problems = [each for row in read for each in row if isinstance(each, str)]
        if problems:
            warnings.warn(
                f"{len(problems)} choices cannot be read, and are left out; the first: {problems[0]}",
                stacklevel=3,
            )
        return [[each for each in row if isinstance(each, Preference)] for row in read]


def _listed(row: Any) -> list[Any]:
    return [row] if isinstance(row, str | Mapping) or not isinstance(row, Iterable) else list(row)


def _read_choice(choice: Any) -> Preference | str:
    """Read a choice. If the choice cannot be used, return a text that says why."""
    pair = choice
    try:
        if not isinstance(choice, Preference):
            pair = read_pair(_ROLES, *(choice[role] for role in _ROLES))
    except DataError as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{choice!r:.80} is not a choice with prompt, chosen and rejected."
    return pair_problem(pair) or pair


def _read_persona(place: int, completion: Any) -> Persona | None:
    """Read the persona in a completion, which is text or a list of messages; None if it holds no persona.

    Raises InvalidArgumentError if it is something else; `place` names it.
    """
    if not isinstance(completion, str):
        try:
            said = completion[-1]["content"] if completion else ""
            last = {"role": "assistant", "content": said or ""}  # a text or parts
            completion = as_turns(text_or_turns("completions", last))[-1].content
        except (TypeError, LookupError, ValueError, DataError):
            raise InvalidArgumentError(
                f"completions[{place}]={quoted(completion, 80)} is neither text nor a list of messages."
            ) from None
    try:
        text = plain_text(completion).strip()
        if text.startswith(("{", "```")):
            written: PersonaCompletion = read_reply(text, PersonaCompletion)
            return written.persona()
        return Persona.parse(text)
    except (ReplyError, InvalidArgumentError):
        return None
