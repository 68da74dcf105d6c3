"""Ask a judge which of two texts is better, in both orders.

An order counts for a text only if the judge picks this text. An answer "neither", or a reply that cannot be
used, counts for neither text.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator

from ..arguments import Flag, check_argument
from ..event_loop import renew_in_forks
from ..exceptions import (
    BudgetExceededError,
    ModelError,
    ReplyError,
    RequestRejectedError,
    TransportError,
)
from ..llm.client import LLM, make_llm
from ..llm.rate_limits import Bounds
from ..llm.replies import BEGINS
from ..llm.requests import Reply, Request
from ..observability import progress_bar, with_progress_bar
from ..records import FloatArray, Logprobs, Message, Persona, Prompt, Side, Usage
from ..scoring.likelihood import Likelihood

Pick = Literal["first", "second"]
Question = tuple[Message, Message]  # the same two texts: in their order, and swapped

VERDICT_COLUMNS = ("verified", "verified_score", "verified_probability")  # after the side's name
_MOST_PROBES = 5  # an endpoint that is away fails at all of them
_ALTERNATIVES = 5  # alternative tokens to ask for: as many as most endpoints give


def _bare(answer: object) -> object:
    """Reduce answers such as "Response 1.", "response_1", "A" and 1 to "1"; other types stay as they are."""
    if isinstance(answer, bool) or not isinstance(answer, Integral | str):
        return answer  # numpy's whole numbers are Integral, too
    text = re.sub(r"^(?:response|persona)[\s_]*", "", str(answer).strip().lower())
    end = len(text)
    while end and (text[end - 1] == "." or text[end - 1].isspace()):
        end -= 1
    return _RESULTS.get(text[:end], text[:end])


# How judges that were trained to grade in text end: "[RESULT] A" (Prometheus-2), "[[A]]" (MT-Bench).
_RESULT = re.compile(
    r"\[RESULT\]\W*(?:response |assistant )?(A|B|1|2|tie|neither)\b|\[\[(A|B|C|1|2|tie)\]\]",
    re.IGNORECASE,
)
_RESULTS = {
    **dict.fromkeys(("a", "first"), "1"),
    **dict.fromkeys(("b", "second"), "2"),
    **dict.fromkeys(("both", "c", "equal", "none", "tie"), "neither"),
}


class Choice(BaseModel):
    """The schema of a judge's reply: which of two texts it picks."""

    answer: Annotated[Literal["1", "2", "neither"], BeforeValidator(_bare)]

    @classmethod
    def from_text(cls, text: str) -> Choice | None:
        """Find the choice in a reply that is not JSON, but has a result as trained judges write it.

        Returns:
            The choice. None: the reply has no result, or results that differ.
        """
        said = {(one or other).lower() for one, other in _RESULT.findall(text)}
        answers = {_RESULTS.get(result, result) for result in said}
        return cls(answer=answers.pop()) if len(answers) == 1 else None

    @property
    def pick(self) -> Pick | None:
        """The text that is picked; None: neither."""
        picks: dict[str, Pick] = {"1": "first", "2": "second"}
        return picks.get(self.answer)


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a judge says about two texts in one order.

    Attributes:
        pick: the text that the judge picks; None: neither, or the reply cannot be used.
        problem: why the reply cannot be used, or why there is none; None: it can be used.
        probability: P(first) / (P(first) + P(second)), from the log-probabilities of the answer's tokens;
            None: the endpoint gives none, or not those of the answer.
        answered: False if there was no reply at all, because the server is away, a budget is used up or the
            request is refused.
    """

    pick: Pick | None = None
    problem: str | None = None
    probability: float | None = None
    answered: bool = True

    def swapped(self) -> Opinion:
        """Return the same opinion with the two texts exchanged."""
        other: dict[Pick | None, Pick] = {"first": "second", "second": "first"}
        p = None if self.probability is None else 1.0 - self.probability
        return replace(self, pick=other.get(self.pick), probability=p)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The opinions on two texts in both orders. "first" means the same text in both opinions."""

    orders: tuple[Opinion, Opinion]

    @property
    def answered(self) -> bool:
        """Whether the judge replied in both orders, usably or not."""
        return all(opinion.answered for opinion in self.orders)

    @property
    def score(self) -> float:
        """The share of orders that pick the first text: 0, 0.5 or 1; NaN if not `answered`."""
        if not self.answered:
            return math.nan
        return sum(opinion.pick == "first" for opinion in self.orders) / 2

    @property
    def soft_score(self) -> float:
        """The mean probability of picking the first text over both orders, from 0 to 1.

        An order without a pick adds 0. If a pick has no probability, this is `score`. NaN if not `answered`.
        """
        if not self.answered:
            return math.nan
        picks = [opinion for opinion in self.orders if opinion.pick is not None]
        known = [opinion.probability for opinion in picks if opinion.probability is not None]
        return sum(known) / 2 if len(known) == len(picks) else self.score

    @property
    def has_probabilities(self) -> bool:
        """Whether at least one of the two opinions has a probability."""
        return any(opinion.probability is not None for opinion in self.orders)

    @property
    def consistent(self) -> bool | None:
        """Whether both orders pick the same text; None if an order picks none."""
        one, other = (opinion.pick for opinion in self.orders)
        return None if one is None or other is None else one == other

    @property
    def neither(self) -> float:
        """The share of usable replies that answer "neither"; NaN without a usable reply."""
        usable = [opinion for opinion in self.orders if opinion.problem is None]
        return sum(opinion.pick is None for opinion in usable) / len(usable) if usable else math.nan

    @property
    def winner(self) -> Literal["first", "second", "tie"] | None:
        """The text that both orders pick; "tie" if there is none; None if a reply is unusable or missing."""
        if self.problem is not None:
            return None
        return self.orders[0].pick or "tie" if self.consistent else "tie"

    @property
    def problem(self) -> str | None:
        """Why the first unusable or missing reply cannot be used; None: both can be used."""
        return next((opinion.problem for opinion in self.orders if opinion.problem), None)


class Judge:
    """A model that judges.

    Args:
        model: the name of a model, as for `infer_personas`, or an LLM.
        options: configure the LLM that a name makes.
        soft: whether to ask for log-probabilities. If the endpoint refuses the first such request, later ones
            do without.

    Attributes:
        llm: the model.
        usage: the calls, tokens and cost of this judge so far.
        answered: whether `require_a_reply` has seen a usable reply.
        is_spent: whether a question of the last call was not sent, since the budget is spent.

    Raises:
        InvalidArgumentError: options that cannot work, or options beside an LLM.
        MissingExtraError: the model needs a package that is not installed.
        AuthenticationError: the provider's key is not set.
    """

    def __init__(
        self, model: str | LLM | None, options: Mapping[str, Any], *, soft: bool = False
    ) -> None:
        soft = check_argument("soft", soft, Flag)
        self.llm = make_llm(model, options)
        self.usage = Usage()
        self._soft = soft
        self._wanted = soft
        self.answered = False  # whether `require_a_reply` has seen a usable reply
        self.is_spent = False
        self._asked = False  # whether the endpoint was asked for log-probabilities
        self._probes = 0  # questions that were sent to find that out
        self._counting = threading.Lock()
        renew_in_forks(self)

    def __getstate__(self) -> dict[str, Any]:
        # Not `_soft`, which the first reply changes.
        return {"model": self.llm, "soft": self._wanted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"], {}, soft=state["soft"])  # type: ignore[misc]

    def renew_in_fork(self) -> None:
        """Replace the lock, which another thread of the parent process may have held."""
        self._counting = threading.Lock()

    def verdicts(
        self,
        prefix: tuple[Message, ...],
        questions: Iterable[Question],
        total: int,
        *,
        progress: bool | None = False,
        within: Bounds | None = None,
        count: Callable[[Usage], object] | None = None,
    ) -> list[Verdict]:
        """Ask all questions in both orders; return one verdict for each question, in order.

        Args:
            prefix: the messages before each question, such as the judge's instructions.
            questions: two user turns each, with the two texts in one order and in the other.
            total: how many questions there are, for the progress bar.
            progress: whether to show a bar on standard error; None: in a terminal or a notebook.
            within: the budget and the limits of the calls, as for `LLM.run`.
            count: called with what the calls took, beside `usage`; None: nothing is called.

        Raises:
            ModelError: every request would fail in the same way (key, model). Other failures are the
                `problem` of an opinion.
            CacheError: the cache of replies cannot be used.
        """
        self.is_spent = False
        turns: Iterator[tuple[Message, ...]] = iter(questions)
        answered: list[Reply] = []  # to the first order of the question that comes next
        found: list[Verdict] = []
        while self._soft and not self._asked:
            first = next(turns, None)
            if first is None:
                return found
            while self._soft and not self._asked and len(answered) < len(first):
                answered += self._probe(prefix, first[len(answered)], within, count)
            if left := first[len(answered) :]:
                turns = chain([left], turns)
            else:
                found.append(_verdict(answered, self._soft))
                answered = []
        alternatives = _ALTERNATIVES if self._soft else 0
        asked = (
            [Request((turn,), Choice, prefix, logprobs=alternatives) for turn in question]
            for question in turns
        )
        for replies in self.replies(asked, total, progress=progress, within=within, count=count):
            found.append(_verdict([*answered, *replies], self._soft))
            answered = []
        return found

    def replies(
        self,
        groups: Iterable[Sequence[Request]],
        total: int,
        *,
        progress: bool | None = False,
        within: Bounds | None = None,
        count: Callable[[Usage], object] | None = None,
    ) -> Iterator[list[Reply]]:
        """Send groups of requests, and yield the replies to each group, in order.

        Args:
            groups: the requests of each group.
            total, progress, within, count: as for `verdicts`.

        Raises:
            ModelError, CacheError: as `verdicts`.
        """
        run = self.llm.run(((None, group) for group in groups), within=within)
        try:
            for _, replies in with_progress_bar(run, progress, total=total):
                self.is_spent |= isinstance(replies[-1].error, BudgetExceededError)
                yield replies
        finally:
            run.close()
            with self._counting:  # runs of several threads may end at once
                self.usage += run.tally.usage
            if count is not None:
                count(run.tally.usage)

    def require_a_reply(self, problems: Sequence[str | None]) -> None:
        """Check that the judge works. If one of its replies is usable, `answered` is True from now on.

        Args:
            problems: the problem of each reply; None: it is usable. Empty: nothing is checked.

        Raises:
            ModelError: every reply has a problem.
        """
        require_a_reply(self.llm.model, problems)
        self.answered = self.answered or bool(problems)

    def _probe(
        self,
        prefix: tuple[Message, ...],
        turn: Message,
        within: Bounds | None,
        count: Callable[[Usage], object] | None,
    ) -> list[Reply]:
        """Ask a question with log-probabilities, to see whether the endpoint gives them.

        Returns:
            A list of the reply, or an empty list if the endpoint refuses log-probabilities. If the question
            fails for another reason, that is its reply, and `_asked` stays False: the question may be the
            reason. After a few such failures, or one wait in vain for an answer, it is not.
        """
        request = Request((turn,), Choice, prefix, logprobs=_ALTERNATIVES)
        [[reply]] = self.replies([[request]], 1, within=within, count=count)
        error = reply.error
        if isinstance(error, RequestRejectedError) and "logprob" in str(error).lower():
            self._soft = False
            return []
        self._probes += not (error is not None and error.unsent)
        is_silent = isinstance(error, TransportError) and error.unanswered
        is_told = error is None or isinstance(error, ReplyError)
        self._asked = is_told or is_silent or self._probes >= _MOST_PROBES
        return [reply]


def require_a_reply(judge: str, problems: Sequence[str | None]) -> None:
    """Raise ModelError, with the first problem, if a judge was asked and every reply has a problem.

    Args:
        judge: the judge's name, for the error.
        problems: the problem of each reply; None: it is usable.
    """
    if problems and all(problem is not None for problem in problems):
        raise ModelError(
            f"the judge {judge!r} gave no usable reply to any of {len(problems):,}"
            f" questions; the first: {problems[0]}"
        )


def most_common(problems: Iterable[str | None]) -> dict[str, int]:
    """Count how often each problem occurs, the most frequent first; None is no problem.

    What a reply said is left out: it differs from reply to reply.
    """
    told = (each.partition(f" {BEGINS}")[0] for each in problems if each is not None)
    return dict(Counter(told).most_common())


def verdict_columns(
    placed: Mapping[Side, Sequence[Verdict | None]], before: Collection[str]
) -> dict[str, list[Any]]:
    """Turn the verdicts on each side's personas into columns of their table, `VERDICT_COLUMNS` for each side.

    Args:
        placed: side -> one verdict for each row; None: there is no persona.
        before: the names of the columns that the table has. A column of probabilities that are all missing is
            left out, except if the table has this column from an earlier judge, which is replaced.

    Returns:
        Name of a column, such as "chosen_verified" -> one value for each row; None: there is no persona, or
        the judge did not reply in one of the orders.
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


def _verdict(replies: Sequence[Reply], soft: bool) -> Verdict:
    """Return the verdict of the replies to a question in its order, and swapped."""
    one, other = replies
    return Verdict((_opinion(one, soft), _opinion(other, soft).swapped()))


def _opinion(reply: Reply, soft: bool) -> Opinion:
    if reply.error is not None:
        return Opinion(problem=str(reply.error), answered=isinstance(reply.error, ReplyError))
    probability = _probability(reply.logprobs, reply.value.answer) if soft else None
    return Opinion(reply.value.pick, probability=probability)


def _probability(logprobs: Logprobs | None, answer: str) -> float | None:
    """Return P("1") / (P("1") + P("2")) at the token of the answer; None if the token cannot be found.

    An answer that the reply takes back is another one.

    If one of the two answers is not among the listed tokens, its probability is taken as large as it can be:
    at most that of the least likely listed token, and at most what all listed tokens leave. This moves the
    result towards 0.5, never away from it.
    """
    text = "".join(token for token, _ in logprobs or ())
    found = re.search(rf'"answer"\s*:\s*"?(?={answer[0]})', text)
    if logprobs is None or found is None:
        return None
    start = 0
    for token, alternatives in logprobs:
        if start + len(token) > found.end():
            return _of_first(token[: found.end() - start], alternatives)
        start += len(token)
    return None


def _of_first(before: str, alternatives: Mapping[str, float]) -> float | None:
    """Compute `_probability` from the alternatives of the token that holds the answer.

    Args:
        before: what the token holds before the answer, such as a quotation mark.
        alternatives: token -> log-probability in nats.
    """
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


# A judge by log-probabilities

T = TypeVar("T")
_Text = tuple[Prompt, str | None, str]  # a prompt, a persona or None, and a response

_PART = 32  # texts scored between two steps of the progress bar


class LikelihoodJudge:
    """A judge function for `compare_responses` that compares log-probabilities per token.

    Without a persona it picks the response with the higher log p per token; with a persona, the response
    whose log p per token the persona raises more. Equal values are "neither". A response that is too long for
    the model has no score, and the answer is None. All scores are kept, so that no text is scored twice.

    Args:
        scorer: computes the log-probabilities.
        progress: whether `read` shows a bar on standard error; None: in a terminal or a notebook.
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
        """Score responses to each prompt, with its persona and without, before they are judged.

        All arguments must have the same length.

        Args:
            prompts: the prompts.
            personas: the persona of each prompt; None: there is none.
            responses: the responses to each prompt, one iterable for each model; None: there is none.

        Raises:
            ModelError: the model cannot be loaded or reached.
        """
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
    """Score items in parts of 32, with a progress bar; return all scores in order.

    Args:
        items: the items.
        progress: whether to show a bar on standard error; None: in a terminal or a notebook.
        unit: what an item is, for the bar.
        score: a function from up to 32 items to their scores, shape (items,).
    """
    scores: list[float] = []
    with progress_bar(progress, total=len(items), unit=unit) as bar:
        for start in range(0, len(items), _PART):
            part = items[start : start + _PART]
            scores.extend(score(part))
            bar.update(len(part))
    return scores
