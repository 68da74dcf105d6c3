"""Predict a user's choices from a prefix, by a language model, a judge, or embeddings.

A prefix is a text about the user before the prompt, see `prefixes`. A prediction is a margin: above 0 the
chosen response is predicted, below 0 the rejected one, 0 is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..arguments import PositiveNumber, check_argument, read_numbers
from ..evaluation.verification import Verifier
from ..exceptions import InvalidArgumentError
from ..llm.client import LLM, LLMOptions
from ..personas.selection import can_explain, explains_each
from ..records import FloatArray, Message, Persona, Preference, Prompt
from ..scoring.likelihood import Likelihood
from ..tailoring.embeddings import Embedder, embed
from .prefixes import Prefix

Flags = npt.NDArray[np.bool_]
Chat = tuple[Message, ...]
NOBODY = "Nothing is known about this person."  # a judge reads this where there is no prefix


class Case(NamedTuple):
    """A choice to predict with a prefix.

    Attributes:
        choice: the choice.
        prefix: the text of the prefix; "": there is none.
        messages: the conversation up to the response, with the prefix.
    """

    choice: Preference
    prefix: str
    messages: Chat

    @classmethod
    def of(cls, prefix: Prefix, choice: Preference, text: str) -> Case:
        """Make the case in which `text` stands where `prefix` puts its text."""
        return cls(choice, text, prefix.around(text, choice.prompt))


class Predictions(NamedTuple):
    """The predictions of several cases; all arrays have the shape (cases,).

    Attributes:
        margins: above 0 the chosen response is predicted, below 0 the rejected one, 0 is a tie. NaN: the case
            is longer than the model's context, the scorer gave no number, or a judge did not reply in one of
            the orders.
        turns_cut: whether the conversation lost its oldest turns.
        responses_cut: whether the end of a response was not scored.
        unusable: whether a judge's reply could not be used. This counts as a wrong prediction.
        neither: the share of a judge's answers that picked neither response, which counts as wrong; NaN
            without a judge, or without a usable reply.
    """

    margins: FloatArray
    turns_cut: Flags
    responses_cut: Flags
    unusable: Flags
    neither: FloatArray

    @classmethod
    def of(
        cls, margins: FloatArray, *, neither: FloatArray | None = None, **flags: Flags
    ) -> Predictions:
        """Make predictions from margins.

        Args:
            margins: the margins.
            neither: NaN if it is not given.
            flags: `turns_cut`, `responses_cut` and `unusable`; False if they are not given.
        """
        none = np.zeros(len(margins), dtype=bool)
        turns, responses, unusable = (
            flags.get(name, none) for name in ("turns_cut", "responses_cut", "unusable")
        )
        unasked = np.full(len(margins), np.nan) if neither is None else neither
        return cls(margins, turns, responses, unusable, unasked)

    def part(self, which: slice | npt.NDArray[np.int_]) -> Predictions:
        """Select the predictions of some cases, by their places."""
        return self._replace(**{name: values[which] for name, values in self._asdict().items()})

    def less(self, other: Predictions, where: Flags) -> Predictions:
        """Return predictions whose margins are lower by those of `other`, for the cases in `where`.

        There a flag is True if it is True in either of both. `neither` stays.
        """
        return Predictions(
            self.margins - np.where(where, other.margins, 0.0),
            self.turns_cut | (other.turns_cut & where),
            self.responses_cut | (other.responses_cut & where),
            self.unusable | (other.unusable & where),
            self.neither,
        )


@runtime_checkable
class Explaining(Protocol):
    """An object that says how well a text about a user explains a choice: a `Verifier`, or your own."""

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[str]
    ) -> Iterable[float]:
        """Return one number for each choice: above 0 if the text at the same place explains it."""


Predictor = Callable[[Sequence[Case]], Predictions]
Scoring = Callable[[Sequence[Chat], Sequence[str]], npt.ArrayLike]  # conversations, responses -> n
ChoiceScorer = Likelihood | Explaining | LLM | str | Scoring


def predictor_of(scorer: ChoiceScorer, options: LLMOptions | None = None) -> Predictor:
    """Make a function that predicts choices with a scorer: cases -> `Predictions`.

    Args:
        scorer: one of
            a `Likelihood`: the margin is the mean log-probability per token of the chosen response minus that
            of the rejected one, in nats (the metric of FamousPersona, arXiv 2505.13257);
            a model's name, an `LLM` or a `Verifier`: a judge reads the prefix and both responses, in both
            orders, and the margin is the mean probability of picking the chosen response, minus 0.5; it is
            -0.5 if a reply cannot be used, and NaN if the judge did not reply in one of the orders;
            another object with `explains(preferences, texts)`: the margin is the number that it returns;
            a callable (conversations, responses) -> numbers: the margin is its number for the chosen response
            minus its number for the rejected one.
        options: configure the LLM that a model's name makes.

    Returns:
        The function, which asks for equal cases once. It raises InvalidArgumentError if an object with
        `explains` or a callable gives no number for any case, and what the scorer raises, such as ModelError.

    Raises:
        InvalidArgumentError: the scorer is none of these, or has options and is not a name; or options that
            cannot work.
        MissingExtraError: the model of this name needs a package that is not installed.
        AuthenticationError: the key of the model of this name is not set.
    """
    predict = _predictor(scorer, options)

    def each_once(cases: Sequence[Case]) -> Predictions:
        shared = SharedCalls(predict, sees_ids(scorer))
        places = np.array([shared.add(case) for case in cases], dtype=int)
        return shared.predict().part(places)

    return each_once


def _predictor(scorer: ChoiceScorer, options: LLMOptions | None) -> Predictor:
    if options and not isinstance(scorer, str):
        raise InvalidArgumentError(
            f"{', '.join(f'{name}=' for name in options)} configures a model that is given by name.",
            argument=next(iter(options)),
        )
    if isinstance(scorer, Likelihood):
        return lambda cases: _by_likelihood(scorer, cases)
    if isinstance(scorer, str | LLM):
        judge = Verifier(scorer, **(options or {}))
        return lambda cases: _by_judge(judge, cases)
    if (
        isinstance(scorer, Explaining)
        and not isinstance(scorer, TasteSimilarity)
        and can_explain(scorer)
    ):
        return lambda cases: _by_judge(scorer, cases)
    if callable(scorer) and not isinstance(scorer, type):
        return lambda cases: _by_callable(scorer, cases)
    raise InvalidArgumentError(
        f"scorer={scorer!r:.80} cannot score.",
        hint="Give a Likelihood, a judge, or a callable (conversations, responses) -> numbers.",
    )


def _by_likelihood(model: Likelihood, cases: Sequence[Case]) -> Predictions:
    conversations, responses = _rows(cases)
    nobody = [None] * len(responses)  # the prefix is part of the conversation
    groups = [row // 2 for row in range(len(responses))]
    scored = model.score(conversations, nobody, responses, groups=groups) if cases else []
    means = np.array([one.mean for one in scored], dtype=np.float64)
    turns = np.array([one.turns_left_out > 0 for one in scored], dtype=bool)
    tokens = np.array([one.tokens_left_out > 0 for one in scored], dtype=bool)
    margins = means[::2] - means[1::2]
    known = ~np.isnan(margins)
    return Predictions.of(
        margins,
        turns_cut=(turns[::2] | turns[1::2]) & known,
        responses_cut=(tokens[::2] | tokens[1::2]) & known,
    )


def _by_callable(scoring: Scoring, cases: Sequence[Case]) -> Predictions:
    rows = list(zip(*_rows(cases), strict=True))
    place = {row: number for number, row in enumerate(dict.fromkeys(rows))}  # equal ones once
    conversations, responses = zip(*place, strict=True) if place else ((), ())
    given = scoring(list(conversations), list(responses)) if place else ()
    scores = _numbers(given, len(place))[np.array([place[row] for row in rows], dtype=int)]
    with np.errstate(invalid="ignore"):  # inf - inf
        return Predictions.of(_some(scores[::2] - scores[1::2]))


def _by_judge(judge: Explaining | Verifier, cases: Sequence[Case]) -> Predictions:
    shown = [case.prefix or NOBODY for case in cases]
    choices = [case.choice for case in cases]
    if not isinstance(judge, Verifier):
        return Predictions.of(_some(explains_each(judge, choices, shown, "scorer")))
    verdicts = judge.verdicts(choices, shown) if cases else []
    unusable = np.array([one.answered and one.problem is not None for one in verdicts], dtype=bool)
    margins = np.array([one.soft_score - 0.5 for one in verdicts], dtype=np.float64)
    return Predictions.of(
        np.where(unusable, -0.5, margins),
        neither=np.array([one.neither for one in verdicts], dtype=np.float64),
        unusable=unusable,
    )


def _rows(cases: Sequence[Case]) -> tuple[list[Chat], list[str]]:
    """Return two rows for each case, with the chosen response and then with the rejected one.

    Returns:
        The conversations and the responses, 2 n each.
    """
    conversations = [case.messages for case in cases for _ in range(2)]
    responses = [text for case in cases for text in (case.choice.chosen, case.choice.rejected)]
    return conversations, responses


def _numbers(given: Any, count: int) -> FloatArray:
    numbers = read_numbers("the result of scorer", given, infinite=True)
    if numbers.shape != (count,):
        raise InvalidArgumentError(
            f"scorer= gives numbers of shape {numbers.shape}, where {count} are needed."
        )
    return numbers


def _some(margins: FloatArray) -> FloatArray:
    """Return the margins. Raise InvalidArgumentError if there are margins, and all are NaN."""
    if len(margins) and np.isnan(margins).all():
        raise InvalidArgumentError(
            f"scorer= decides none of {len(margins):,} choices: its numbers are NaN, or the same"
            " infinite number for both responses."
        )
    return margins


def sees_ids(scorer: ChoiceScorer) -> bool:
    """Whether the scorer is an object of the caller's with `explains`, which may read more than texts.

    Such a scorer gets `Preference` records with ids, so equal texts of two users may score differently.
    """
    reads_texts = isinstance(scorer, str | LLM | Likelihood | Verifier | TasteSimilarity)
    return not reads_texts and isinstance(scorer, Explaining)


class SharedCalls:
    """Collects cases, and predicts each distinct one once, all in one call.

    Args:
        predict: the function that predicts.
        sees_ids: whether two cases with equal texts are distinct if their choices differ otherwise, as in the
            id: see the function `sees_ids`.
    """

    def __init__(self, predict: Predictor, sees_ids: bool) -> None:
        self._predict, self._sees_ids = predict, sees_ids
        self._places: dict[Hashable, int] = {}
        self._cases: list[Case] = []

    def add(self, case: Case) -> int:
        """Add a case, and return the place of its prediction in what `predict` will return."""
        texts = (case.choice.chosen, case.choice.rejected)
        key = (case.messages, texts, case.choice if self._sees_ids else None)
        if key not in self._places:
            self._places[key] = len(self._cases)
            self._cases.append(case)
        return self._places[key]

    def predict(self) -> Predictions:
        """Predict all distinct cases, in one call."""
        return self._predict(self._cases)


# By embeddings, without a language model

Prior = Callable[[Sequence[Prompt], Sequence[str]], npt.ArrayLike]  # prompts, responses -> n

_EXAMPLE = re.compile(r"<(preferred|other)_response>\n(.*?)\n</\1_response>", re.DOTALL)
_PERSONA = re.compile(r"<persona>\n(.*)\n</persona>", re.DOTALL)
_AGAINST = r"(?:dislike|oppose|reject|avoid|disagree|hate|is against|turns? down|does not)"
_DISLIKE = re.compile(rf"\b{_AGAINST}", re.I)
_SENTENCE = re.compile(rf"(?<=[.!?])\s+|(?:,|(?<!\s))\s+(?:and|but|while)\s+(?={_AGAINST})", re.I)
_LIST = re.compile(r"The user (dis)?likes: (.*)", re.I)
_SUBJECT = re.compile(r"^(the user|they|he|she)\b(\s+(dis)?likes)?\s*", re.I)


class Tastes(NamedTuple):
    """The likes and the dislikes of a user, each a text."""

    likes: tuple[str, ...]
    dislikes: tuple[str, ...]


class TasteSimilarity:
    """Score a response by embeddings: is it nearer to what the user likes, or to what the user dislikes?

    score = scale * (mean cosine to the likes - mean cosine to the dislikes) + prior. A user without likes, or
    without dislikes, has 0 for that mean. An instance can be the scorer of `audit_personas` and
    `evaluate_prefixes`. It is thousands of times as fast as a language model. Likes and dislikes come from
    the system messages of the conversation (so use `role="system"`):

    - a persona of the method "tastes" lists both;
    - in another text, a sentence with a word such as "dislikes", "avoids" or "rejects" is a dislike, and any
      other sentence is a like;
    - in few-shot examples, preferred responses are likes, and the others are dislikes.

    Args:
        embedder: n texts -> vectors of shape (n, dimensions), such as `SentenceTransformer(…).encode`. It
            gets each distinct text once; the vectors are kept in memory.
        prior: (prompts, responses) -> n numbers: how much people in general like each response, such as the
            rewards of a model fitted on other users. None: 0.
        scale: the weight of the similarity, above 0.

    Raises:
        InvalidArgumentError: `scale` is not a positive number.
    """

    def __init__(
        self, embedder: Embedder, *, prior: Prior | None = None, scale: float = 1.0
    ) -> None:
        scale = check_argument("scale", scale, PositiveNumber)
        self._embedder, self._prior, self._scale = embedder, prior, scale
        self._vectors: dict[str, FloatArray] = {}

    def __call__(
        self, conversations: Sequence[Sequence[Message]], responses: Sequence[str]
    ) -> FloatArray:
        """Score each response after the conversation at the same place, shape (rows,).

        Raises:
            ModelError: the embedder did not return one finite vector for each text.
            InvalidArgumentError: `prior` did not return one number for each response.
        """
        heads = [
            "\n".join(turn.content for turn in chat if turn.role == "system")
            for chat in conversations
        ]
        read = {head: tastes_in(head) for head in set(heads)}
        named = [text for one in read.values() for said in one for text in said]
        self._embed([*responses, *named])
        toward = {head: self._direction(one) for head, one in read.items()}
        pairs = zip(heads, responses, strict=True)
        found = np.array([toward[head] @ self._vectors[said] for head, said in pairs])
        if self._prior is None:
            return self._scale * found
        prompts = [_without_system(chat) for chat in conversations]
        return self._scale * found + _numbers(self._prior(prompts, responses), len(responses))

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[Persona | str]
    ) -> FloatArray:
        """Return the similarity of each chosen response minus that of the rejected one, shape (n,).

        The similarity is that to the likes and dislikes in the persona at the same place; `prior` and `scale`
        do not count. So an instance can be `select=` of `infer_user_personas`.

        Raises:
            ModelError: the embedder did not return one finite vector for each text.
        """
        texts = [text for pair in preferences for text in (pair.chosen, pair.rejected)]
        read = {said: tastes_in(said) for said in {str(one) for one in personas}}
        self._embed([*texts, *(text for one in read.values() for said in one for text in said)])
        toward = {said: self._direction(one) for said, one in read.items()}
        pairs = zip(preferences, personas, strict=True)
        return np.array(
            [
                toward[str(one)] @ (self._vectors[pair.chosen] - self._vectors[pair.rejected])
                for pair, one in pairs
            ]
        )

    def _direction(self, tastes: Tastes) -> FloatArray:
        """Return the mean vector of the likes minus that of the dislikes, shape (dimensions,).

        The mean of no texts is 0.
        """
        width = len(next(iter(self._vectors.values()), ()))
        one, other = (
            np.mean([self._vectors[text] for text in said], axis=0) if said else np.zeros(width)
            for said in tastes
        )
        return np.asarray(one - other, dtype=np.float64)

    def _embed(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        self._vectors |= dict(zip(new, embed(self._embedder, new), strict=True))


def tastes_in(text: str) -> Tastes:
    """Find the likes and dislikes in a persona or in few-shot examples: see `TasteSimilarity`."""
    likes, dislikes = list[str](), list[str]()
    examples = _EXAMPLE.findall(text)
    for kind, said in examples:
        (likes if kind == "preferred" else dislikes).append(said)
    described = _PERSONA.search(text)
    for line in [] if examples else (described.group(1) if described else text).split("\n"):
        if listed := _LIST.fullmatch(line.strip()):
            place = dislikes if listed.group(1) else likes
            place += [said for one in listed.group(2).split(";") if (said := one.strip(" ."))]
            continue
        for sentence in _SENTENCE.split(line):
            place = dislikes if _DISLIKE.search(sentence) else likes
            place += [said] if (said := _SUBJECT.sub("", sentence.strip()).strip(" .")) else []
    return Tastes(tuple(likes), tuple(dislikes))


def _without_system(chat: Sequence[Message]) -> Prompt:
    """Remove the system messages of a conversation; return the text if a single turn is left."""
    turns = tuple(turn for turn in chat if turn.role != "system")
    return turns[0].content if len(turns) == 1 else turns
