"""Ask a judge which of two texts is better, in both orders.

An order counts for a text only if the judge picks that text explicitly. An answer of "neither", or a reply
that cannot be used, counts for neither text.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator

from ..exceptions import ModelError, ReplyError, RequestRejectedError
from ..llm.client import LLM, make_llm
from ..llm.pricing import Budget
from ..llm.requests import Reply, Request
from ..observability import progress_bar, with_progress_bar
from ..records import FloatArray, Logprobs, Message, Persona, Prompt, Side, Usage
from ..scoring.likelihood import Likelihood

Pick = Literal["first", "second"]
Question = tuple[Message, Message]  # the same two texts: in their order, and swapped

VERDICT_COLUMNS = ("verified", "verified_score", "verified_probability")  # after the side's name
_ALTERNATIVES = 5  # tokens besides the generated one: as many as most endpoints give


def _bare(answer: object) -> object:
    """ "Response 1." and 1 as "1"."""
    if isinstance(answer, bool) or not isinstance(answer, Integral | str):
        return answer  # numpy's whole numbers are Integral, too
    text = re.sub(r"^(?:response|persona)\s*", "", str(answer).strip().lower())
    end = len(text)
    while end and (text[end - 1] == "." or text[end - 1].isspace()):
        end -= 1
    return text[:end]


# How judges that were trained to grade in text end: "[RESULT] A" (Prometheus-2), "[[A]]" (MT-Bench).
_RESULT = re.compile(
    r"\[RESULT\]\W*(?:response |assistant )?(A|B|1|2|tie|neither)\b|\[\[(A|B|C|1|2|tie)\]\]",
    re.IGNORECASE,
)
_RESULTS = {"a": "1", "b": "2", "c": "neither", "tie": "neither"}


class Choice(BaseModel):
    """The form of a judge's reply: which of two texts it picks."""

    answer: Annotated[Literal["1", "2", "neither"], BeforeValidator(_bare)]

    @classmethod
    def from_text(cls, text: str) -> Choice | None:
        """The choice in a reply that is not JSON but ends as trained judges do; None: there is none.

        Of several results that differ none is taken.
        """
        said = {(one or other).lower() for one, other in _RESULT.findall(text)}
        answers = {_RESULTS.get(result, result) for result in said}
        return cls(answer=answers.pop()) if len(answers) == 1 else None

    @property
    def pick(self) -> Pick | None:
        """The text that is picked; None where it is neither."""
        picks: dict[str, Pick] = {"1": "first", "2": "second"}
        return picks.get(self.answer)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says of two texts in one order.

    `pick` is None where it picks neither, and where its reply cannot be used: `problem` says why. Where it is
    not `answered`, there was no reply at all, as where the server is away or a budget is used up: that says
    nothing of the texts, nor of the judge. `probability` is that of picking the first text rather than the
    second, by the log-probabilities of the answer's tokens; None where the endpoint gives none.
    """

    pick: Pick | None = None
    problem: str | None = None
    probability: float | None = None
    answered: bool = True

    def swapped(self) -> Opinion:
        """The same opinion, of the texts in the other order."""
        other: dict[Pick | None, Pick] = {"first": "second", "second": "first"}
        p = None if self.probability is None else 1.0 - self.probability
        return replace(self, pick=other.get(self.pick), probability=p)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Both opinions on two texts: as they were shown in their order, and swapped."""

    orders: tuple[Opinion, Opinion]

    @property
    def answered(self) -> bool:
        """Whether the judge replied in both orders, with whatever."""
        return all(opinion.answered for opinion in self.orders)

    @property
    def score(self) -> float:
        """The share of orders in which the judge picked the first text: 0, 0.5 or 1; NaN: no reply."""
        if not self.answered:
            return math.nan
        return sum(opinion.pick == "first" for opinion in self.orders) / 2

    @property
    def soft_score(self) -> float:
        """The mean probability of picking the first text; `score` if a pick has no probability."""
        if not self.answered:
            return math.nan
        picks = [opinion for opinion in self.orders if opinion.pick is not None]
        known = [opinion.probability for opinion in picks if opinion.probability is not None]
        return sum(known) / 2 if len(known) == len(picks) else self.score

    @property
    def has_probabilities(self) -> bool:
        """Whether the endpoint gave log-probabilities in either order."""
        return any(opinion.probability is not None for opinion in self.orders)

    @property
    def consistent(self) -> bool | None:
        """Whether both orders pick the same text; None where one of them picks none."""
        one, other = (opinion.pick for opinion in self.orders)
        return None if one is None or other is None else one == other

    @property
    def neither(self) -> float:
        """The share of orders in which the judge answered that it is neither; NaN without a usable reply."""
        usable = [opinion for opinion in self.orders if opinion.problem is None]
        return sum(opinion.pick is None for opinion in usable) / len(usable) if usable else math.nan

    @property
    def winner(self) -> Literal["first", "second", "tie"] | None:
        """The text that both orders pick; a tie where they do not; None where a reply is unusable."""
        if self.problem is not None:
            return None
        return self.orders[0].pick or "tie" if self.consistent else "tie"

    @property
    def problem(self) -> str | None:
        """Why a reply could not be used."""
        return next((opinion.problem for opinion in self.orders if opinion.problem), None)


class Judge:
    """A model that judges, with `usage` of all it was asked.

    `soft`: ask for log-probabilities; an endpoint that refuses such requests is asked without.
    """

    def __init__(
        self, model: str | LLM | None, options: Mapping[str, Any], *, soft: bool = False
    ) -> None:
        self.llm = make_llm(model, options)
        self.usage = Usage()
        self._soft = soft
        self._wanted = soft
        self.answered = False  # whether there was a usable reply so far
        self._asked = False  # whether this endpoint takes requests for log-probabilities

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.llm, "soft": self._wanted}  # the same before and after it was asked

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"], {}, soft=state["soft"])  # type: ignore[misc]

    def verdicts(
        self,
        prefix: tuple[Message, ...],
        questions: Iterable[Question],
        total: int,
        *,
        progress: bool | None = False,
        budget: Budget | None = None,
    ) -> list[Verdict]:
        """One verdict a question, in order. Each order of it is one request; `budget` is as for `LLM.run`.

        Raises:
            ModelError: only for what would fail every request (key, model, cache).
        """
        turns: Iterator[tuple[Message, ...]] = iter(questions)
        answered: list[Reply] = []  # to the first order of the first question
        if self._soft and not self._asked:
            first = next(turns, None)
            if first is None:
                return []
            answered = self._probe(prefix, first[0], budget)
            turns = chain([first[len(answered) :]], turns)
        alternatives = _ALTERNATIVES if self._soft else 0
        asked = (
            [Request((turn,), Choice, prefix, logprobs=alternatives) for turn in question]
            for question in turns
        )
        found = []
        for replies in self.replies(asked, total, progress=progress, budget=budget):
            one, other = [*answered, *replies]
            answered = []
            found.append(
                Verdict((_opinion(one, self._soft), _opinion(other, self._soft).swapped()))
            )
        return found

    def replies(
        self,
        groups: Iterable[Sequence[Request]],
        total: int,
        *,
        progress: bool | None = False,
        budget: Budget | None = None,
    ) -> Iterator[list[Reply]]:
        """The replies to each group of requests, in order."""
        run = self.llm.run(((None, group) for group in groups), budget=budget)
        try:
            for _, replies in with_progress_bar(run, progress, total=total):
                yield replies
        finally:
            run.close()
            self.usage += run.tally.usage

    def require_a_reply(self, problems: Sequence[str | None]) -> None:
        """Raise what the first reply failed with, if every one of them failed."""
        require_a_reply(self.llm.model, problems)
        self.answered = self.answered or bool(problems)

    def _probe(
        self, prefix: tuple[Message, ...], turn: Message, budget: Budget | None
    ) -> list[Reply]:
        """Ask with log-probabilities: the reply, or nothing if the endpoint refuses such requests."""
        request = Request((turn,), Choice, prefix, logprobs=_ALTERNATIVES)
        [[reply]] = self.replies([[request]], 1, budget=budget)
        refused = isinstance(reply.error, RequestRejectedError)
        self._asked, self._soft = True, not (refused and "logprob" in str(reply.error).lower())
        return [reply] if self._soft else []


def require_a_reply(judge: str, problems: Sequence[str | None]) -> None:
    """Raise ModelError with the first problem of a judge's replies, if every one of them has one."""
    if problems and all(problem is not None for problem in problems):
        raise ModelError(
            f"the judge {judge!r} gave no usable reply to any of {len(problems):,}"
            f" questions; the first: {problems[0]}"
        )


def most_common(problems: Iterable[str | None]) -> dict[str, int]:
    """How often each problem occurred, the most common first."""
    return dict(Counter(problem for problem in problems if problem is not None).most_common())


def verdict_columns(
    placed: Mapping[Side, Sequence[Verdict | None]], before: Collection[str]
) -> dict[str, list[Any]]:
    """The verdicts on the personas of each side, one a row, as columns of their table.

    The probability has a column of its own: a judge that always answers "1" is right in half of the orders,
    whatever it leans to. Without probabilities there is no such column, unless the table has one from an
    earlier judge, which is then replaced. `before` are the names of the columns that the table has.
    """
    columns: dict[str, list[Any]] = {}
    for side, given in placed.items():
        verdicts = [v if v is not None and v.answered else None for v in given]
        values: tuple[list[Any], ...] = (
            [None if v is None else v.score == 1 for v in verdicts],
            [None if v is None else v.score for v in verdicts],
            [v.soft_score if v and v.has_probabilities else None for v in verdicts],
        )
        columns |= {f"{side}_{name}": v for name, v in zip(VERDICT_COLUMNS, values, strict=True)}
        probability = f"{side}_{VERDICT_COLUMNS[-1]}"
        if probability not in before and all(v is None for v in columns[probability]):
            del columns[probability]
    return columns


def _opinion(reply: Reply, soft: bool) -> Opinion:
    if reply.error is not None:
        return Opinion(problem=str(reply.error), answered=isinstance(reply.error, ReplyError))
    probability = _probability(reply.logprobs) if soft else None
    return Opinion(reply.value.pick, probability=probability)


def _probability(logprobs: Logprobs | None) -> float | None:
    """P("1") / (P("1") + P("2")) at the token of the answer; None where it cannot be found.

    An answer that is not among the listed alternatives counts with the least likely of them, or with
    what all of them leave, neither of which it can exceed: a judgement is then softer than it was, never
    firmer.
    """
    text = "".join(token for token, _ in logprobs or ())
    found = re.search(r'"answer"\s*:\s*"?(?=[12n])', text)
    if logprobs is None or found is None:
        return None
    start = 0
    for token, alternatives in logprobs:
        if start + len(token) > found.end():
            return _of_first(token[: found.end() - start], alternatives)
        start += len(token)
    return None


def _of_first(before: str, alternatives: Mapping[str, float]) -> float | None:
    """The probability of "1" among tokens that begin with `before` and go on with "1" or "2"."""
    weights: dict[str, float] = {}
    for token, logprob in alternatives.items():
        answer = token.removeprefix(before)[:1]
        if token.startswith(before) and answer in ("1", "2"):
            weights[answer] = weights.get(answer, 0.0) + math.exp(logprob)
    if not weights:
        return None
    listed = [math.exp(logprob) for logprob in alternatives.values()]
    least = min(*listed, max(0.0, 1.0 - sum(listed)), 1.0)
    first, second = (weights.get(answer, least) for answer in ("1", "2"))
    return first / (first + second) if first + second > 0 else None


# A judge that asks nobody

T = TypeVar("T")
_Text = tuple[Prompt, str | None, str]  # a prompt, for whom, and a response

_PART = 32  # texts that are scored before the bar moves


class LikelihoodJudge:
    """Prefers the response with the higher log p a token; with a persona, the one that it lifts more.

    `read` scores all texts beforehand, each once: a judge is asked about the same ones several times.
    Responses that are too long for the model have no score, and so no verdict (None).
    """

    __name__ = "likelihood"

    def __init__(self, scorer: Likelihood, progress: bool | None) -> None:
        self._scorer, self._progress = scorer, progress
        self._scores: dict[_Text, float] = {}

    def read(
        self,
        prompts: Iterable[Prompt],
        personas: Iterable[Persona | str | None],
        *responses: Iterable[str | None],
    ) -> None:
        """Score the responses to each prompt, with its persona and without."""
        rows = zip(prompts, personas, *responses, strict=True)
        texts: dict[_Text, None] = {
            (prompt, who, said): None
            for prompt, persona, *both in rows
            for who in (None, None if persona is None else str(persona))
            for said in both
            if said is not None
        }
        new = [text for text in texts if text not in self._scores]
        scores = in_parts(new, self._progress, "text", self._log_likelihood)
        self._scores.update(zip(new, scores, strict=True))

    def _log_likelihood(self, texts: Sequence[_Text]) -> FloatArray:
        prompts, personas, responses = zip(*texts, strict=True)
        return self._scorer.log_likelihood(prompts, personas, responses, per_token=True)

    def __call__(
        self, prompt: Prompt, first: str, second: str, persona: Persona | str | None
    ) -> int | str | None:
        self.read([prompt], [persona], [first], [second])
        one, two = (self._worth(prompt, said, persona) for said in (first, second))
        if math.isnan(one - two):
            return None
        return "neither" if one == two else 1 if one > two else 2

    def _worth(self, prompt: Prompt, said: str, persona: Persona | str | None) -> float:
        alone = self._scores[prompt, None, said]
        return alone if persona is None else self._scores[prompt, str(persona), said] - alone


def in_parts(
    items: Sequence[T], progress: bool | None, unit: str, score: Callable[[Sequence[T]], FloatArray]
) -> list[float]:
    """The scores of all items, a few at a time under a bar."""
    scores: list[float] = []
    with progress_bar(progress, total=len(items), unit=unit) as bar:
        for start in range(0, len(items), _PART):
            part = items[start : start + _PART]
            scores.extend(score(part))
            bar.update(len(part))
    return scores
