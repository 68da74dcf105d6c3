"""Rewards for models that learn to write personas, in the form of TRL's GRPO reward functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..arguments import Number, PositiveNumber, check_argument
from ..exceptions import DataError, InvalidArgumentError, ReplyError, shown_when_made
from ..llm.replies import plain_text, read_reply
from ..personas.flags import find_flags
from ..personas.prompts import OnePersona
from ..personas.selection import explains_each
from ..preferences.conversations import pair_problem, read_pair
from ..records import Persona, Preference, Selector

Form = Literal["margin", "log_probability"]

_ROLES = ("prompt", "chosen", "rejected")
_FORMS = ("margin", "log_probability")
_NAN = float("nan")


class PersonaCompletion(OnePersona):
    """What the model in training writes: a persona as a JSON object. Evidence may be left out."""

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
    """A reward for a model that writes personas: how much they help to predict the user's choices.

    The completion is a persona: a sentence, or a JSON object with `trait` and `preference`. Its reward is
    how well it explains that the user preferred `chosen`, by a scorer that is not being trained:
    `trl.GRPOTrainer(reward_funcs=pi.persona_reward(pi.Likelihood("local")), …)`.

    Args:
        scorer: any object whose `.explains(preferences, personas)` gives a number a row, above 0 where the
            persona helps: a `Likelihood` (nats a token), or a `Verifier`.
        columns: the columns of the data set with the choice to predict. By default "question", "chosen"
            and "rejected": {"prompt": "question"}, since TRL's own "prompt" is what the writer is asked.
        choices: instead, the column with a list of choices of one user, each a dict of prompt, chosen and
            rejected: choices that the writer did not see, for a persona that says more than they do. The
            reward is the mean over them.
        form: "margin": `explains` itself. "log_probability": log sigma(explains / temperature) + log 2,
            how many nats the persona adds to the prediction of the choice: it has a ceiling (log 2).
        temperature: of "log_probability", in the unit of `explains`.
        penalty: at least 0; it is subtracted if the persona has a flag. A persona that copies the responses,
            for one, would explain the choice perfectly and describe nobody.
        no_persona: the reward of a completion that is empty, or is an incomplete JSON object.

    Returns:
        A function (prompts, completions, **columns) -> one float a completion. It is NaN, which TRL leaves
        out, where a choice cannot be read or scored.

    Raises:
        InvalidArgumentError: a bad argument; from the function: a column that the data set lacks.
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
    """The function that `persona_reward` returns. It can be pickled if its scorer can."""

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
        if not callable(getattr(scorer, "explains", None)):
            raise InvalidArgumentError(
                f"scorer={scorer!r:.80} has no method explains.",
                hint="Pass a Likelihood or a Verifier.",
            )
        InvalidArgumentError.check("form", form, _FORMS)
        for role in columns or {}:
            InvalidArgumentError.check("columns", role, _ROLES)
        if columns is not None and choices is not None:
            raise InvalidArgumentError("give columns= or choices=, not both.")
        check_argument("temperature", temperature, PositiveNumber)
        check_argument("penalty", penalty, Number)
        if penalty < 0:
            raise InvalidArgumentError(f"penalty={penalty!r} would reward what breaks the rules.")
        check_argument("no_persona", no_persona, Number)
        self._scorer = scorer
        self._columns = (
            {role: role for role in _ROLES} | {"prompt": "question"} | dict(columns or {})
        )
        self._choices = choices
        self._form = form
        self._temperature = temperature
        self._penalty = penalty
        self._no_persona = no_persona

    @shown_when_made
    def __repr__(self) -> str:
        return f"persona_reward({self._scorer!r})"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """The reward of each completion, given the columns of the data set as TRL gives them."""
        personas = [_read_persona(completion) for completion in completions]
        chosen = self._read_choices(len(completions), columns)
        asked = [
            (row, pair)
            for row, (persona, pairs) in enumerate(zip(personas, chosen, strict=True))
            for pair in pairs
            if persona is not None
        ]
        scores: list[list[float]] = [[] for _ in completions]
        wanted = [(pair, personas[row]) for row, pair in asked]
        found = self._explain([(p, who) for p, who in wanted if who is not None])
        for (row, _), score in zip(asked, found, strict=True):
            scores[row].append(score)
        return [self._reward(*one) for one in zip(personas, chosen, scores, strict=True)]

    def _explain(self, asked: Sequence[tuple[Preference, Persona]]) -> list[float]:
        if not asked:
            return []
        pairs, personas = zip(*asked, strict=True)
        scores = explains_each(self._scorer, pairs, personas, "scorer")
        scores = np.where(
            np.isfinite(scores), scores, np.nan
        )  # an infinite reward would undo a policy
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
        """The choices to predict in each row; none where they cannot be read."""
        names = [self._choices] if self._choices is not None else list(self._columns.values())
        if missing := [name for name in names if name not in columns]:
            given = ", ".join(
                repr(name) for name, each in columns.items() if isinstance(each, list)
            )
            raise InvalidArgumentError(
                f"the data set has no column {missing[0]!r}; it has {given or 'none besides prompt'}.",
                hint="Name the columns of the choices: columns={'prompt': 'question', …}, or choices=.",
            )
        if self._choices is None:
            values = [columns[self._columns[role]] for role in _ROLES]
            rows = [[dict(zip(_ROLES, each, strict=True))] for each in zip(*values, strict=True)]
        else:
            rows = list(columns[self._choices])
        if len(rows) != count:
            raise InvalidArgumentError(f"{count} completions, {len(rows)} rows of choices.")
        read = [[_read_choice(choice) for choice in row or ()] for row in rows]
        problems = [each for row in read for each in row if isinstance(each, str)]
        if problems:
            warnings.warn(
                f"{len(problems)} choices cannot be read, and count for no reward; the first: {problems[0]}",
                stacklevel=3,
            )
        return [[each for each in row if isinstance(each, Preference)] for row in read]


def _read_choice(choice: Any) -> Preference | str:
    """The choice, or why it cannot be used."""
    try:
        if isinstance(choice, Preference):
            pair = choice
        else:
            pair = read_pair(_ROLES, *(choice[role] for role in _ROLES))
    except DataError as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{choice!r:.80} is not a choice with prompt, chosen and rejected."
    return pair_problem(pair) or pair


def _read_persona(completion: Any) -> Persona | None:
    """The persona that a model wrote: a text, or the last message of a chat."""
    if not isinstance(completion, str):
        completion = completion[-1]["content"] if completion else ""
    try:
        text = plain_text(str(completion or "")).strip()
        if text.startswith(("{", "```")):
            written: PersonaCompletion = read_reply(text, PersonaCompletion)
            return written.persona()
        return Persona.parse(text)
    except (ReplyError, InvalidArgumentError):
        return None
