"""Compare the responses of two models by a judge: their quality, and how well they suit a persona.

As in "Whose Boat Does it Float?" (arXiv 2501.11549), the judge compares the two responses to each prompt in
both orders, without the persona (quality) and with it (personalization). A model wins a prompt only if both
orders agree.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Unpack
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from .. import event_loop
from ..arguments import takes_options
from ..exceptions import DataError, InvalidArgumentError, ModelError, UnknownOptionError, joined
from ..llm.client import LLM, OPTIONS, LLMOptions
from ..observability import progress_bar
from ..personas.prompts import (
    choice_messages,
    instructions,
    prompt_numbers,
    prompt_text,
    quality_messages,
)
from ..records import Message, Persona, Preference, Prompt, Usage
from .grouped import (
    delta_pq,
    length_controlled_rate,
    mean_by_group,
    rate_by_group,
    win_rate_by_group,
)
from .judge import Choice, Judge, Opinion, Verdict, most_common, require_a_reply
from .paired_responses import ResponsePair, pair_responses
from .results import (
    UNPARSABLE,
    ResponseComparison,
    ResponseLengths,
    RubricFindings,
    numbers_of,
    outcomes,
)
from .statistics import CONFIDENCE, check_confidence

Rubric = Literal["quality", "personalization"]
Answer = str | int | None
# (prompt, first response, second response, persona or None) -> 1, 2, or "neither"
JudgeFunction = Callable[[Prompt, str, str, Persona | str | None], Answer | Awaitable[Answer]]

_AT_ONCE = 16  # questions that an async function is asked at once
_NAMES = {"first": "test", "second": "base", "tie": "tie", None: None}
_TIE = Verdict((Opinion(), Opinion()))


class Case(NamedTuple):
    """Two responses to judge, and the persona that the judge sees.

    Attributes:
        pair: `chosen` is the test model's response, `rejected` the base model's.
        persona: None: the judge sees no persona, and compares the quality.
    """

    pair: Preference
    persona: Persona | str | None


@takes_options(LLMOptions)
def compare_responses(
    prompts: object,
    base: object,
    test: object,
    judge: str | LLM | JudgeFunction,
    *,
    personas: object = None,
    rubrics: Mapping[Rubric, str] | None = None,
    unparsable: Literal["drop", "tie", "loss"] = "drop",
    confidence: float = CONFIDENCE,
    progress: bool | None = None,
    **options: Unpack[LLMOptions],
) -> ResponseComparison:
    """Measure how often a judge prefers the test model's response, without and with a persona.

    The judge sees both orders of the responses. A prompt is won or lost only if both orders agree, else it is
    tied. Equal responses are a tie, and the judge is not asked.

    Args:
        prompts: texts or conversations. This and the next three arguments are each a sequence in the same
            order; a mapping (or pandas series) of ids; or a sequence of dicts with "id" and "prompt",
            "response" or "persona". The ids must be the same in all.
        base, test: the responses of two models. A row with a missing response (None) is not judged.
        judge: a model, as for `infer_personas`; an LLM; or a function (prompt, first, second, persona) -> 1,
            2 or "neither", whose persona is None for quality. The function may be `async`: up to 16 questions
            then run at once. Its errors reach you. The function is called once for each different question;
            its answers are kept in memory for later calls, as long as the function exists. The judge should
            be neither of the two models.
        personas: for each prompt a `Persona`, its sentence, or None (the row is not judged); or one for all
            prompts. None: only quality is judged.
        rubrics: "quality" or "personalization" -> criteria in your words, for a judge that is a model. None:
            the library's criteria.
        unparsable: what a row counts as if the judge replied in both orders, and one of the replies cannot be
            used: "drop": it is left out; "tie"; or "loss" of the test model. Such rows are counted in
            `failed`. A row is always left out if the judge did not reply in one of the orders.
        confidence: how often the intervals should cover the truth, between 0 and 1. They resample prompts:
            rows with the same prompt are one observation.
        progress: whether to show a bar on standard error; None: in a terminal or a notebook.
        options: configure the LLM that a model string makes: see `LLM`.

    Returns:
        Win rates by each rubric, ΔPQ, lengths, counts, and columns with a verdict for each row.

    Raises:
        DataError: no row can be judged.
        InvalidArgumentError, UnknownOptionError: ids that do not match, responses that are all the same, or
            another bad argument, before any call is made.
        MissingExtraError: the judge needs a package that is not installed.
        ModelError: the judge gave no usable reply to any question; or every question would fail in the same
            way (key, model).
        CacheError: the cache of replies cannot be used.
    """
    UnknownOptionError.check(
        options, OPTIONS.union(inspect.signature(compare_responses).parameters)
    )
    confidence = check_confidence(confidence)
    InvalidArgumentError.check("unparsable", unparsable, UNPARSABLE)
    pairs = pair_responses(prompts, base, test, personas)
    shown = personas is not None
    places = [place for place, one in enumerate(pairs) if _left_out(one, shown) is None]
    if not places:
        raise DataError(
            f"none of the {len(pairs):,} rows can be judged.",
            hint=f"The first: {str(_left_out(pairs[0], shown)).rstrip('.')}.",
        )
    asker = _asker(judge, options, rubrics)
    judged: tuple[Rubric, ...] = ("quality", "personalization") if shown else ("quality",)
    verdicts = {rubric: _judged(asker, rubric, pairs, places, progress) for rubric in judged}
    return _comparison(pairs, verdicts, asker, unparsable, confidence)


def _left_out(one: ResponsePair, personas_shown: bool) -> str | None:
    """Return the reason why a row is not judged; None: it is judged."""
    if one.pair is None:
        return one.problem
    return "no persona" if personas_shown and one.persona is None else None


def _case(one: ResponsePair, rubric: Rubric) -> Case:
    assert one.pair is not None  # left out otherwise
    return Case(one.pair, one.persona if rubric == "personalization" else None)


# Judges


class Asker(Protocol):
    """What judges cases: a model or a function.

    Attributes:
        name: the name of the model or the function.
    """

    name: str

    @property
    def usage(self) -> Usage:
        """The calls and tokens of the judge so far; 0 for a function."""

    def verdicts(
        self, rubric: Rubric, cases: Sequence[Case], progress: bool | None
    ) -> list[Verdict]:
        """Judge each case in both orders; return one verdict for each, in the same order."""


class _ModelAsker:
    """A model as a judge."""

    def __init__(
        self, judge: str | LLM, options: Mapping[str, Any], rubrics: Mapping[Rubric, str]
    ) -> None:
        self._judge = Judge(judge, options)
        self._rubrics = rubrics
        self.name = self._judge.llm.model

    @property
    def usage(self) -> Usage:
        return self._judge.usage

    def verdicts(
        self, rubric: Rubric, cases: Sequence[Case], progress: bool | None
    ) -> list[Verdict]:
        questions = (
            quality_messages(pair) if persona is None else choice_messages(persona, pair)
            for pair, persona in cases
        )
        prefix = _instructions(rubric, self._rubrics.get(rubric))
        return self._judge.verdicts(prefix, questions, len(cases), progress=progress)


def _instructions(rubric: Rubric, own: str | None) -> tuple[Message, ...]:
    """Write the system message of a judge: the task, the criteria, and the form of the reply.

    Args:
        rubric: what to judge by.
        own: the criteria of the caller; None: those of the library.
    """
    told = instructions(f"judge_{rubric}.txt")
    if own is None:
        return told
    sees, _, replies = told[0].content.split("\n\n")
    return (Message(role="system", content="\n\n".join([sees, own.strip(), replies])),)


Asked = tuple[Prompt, str, str, Persona | str | None]


class _FunctionAsker:
    """A function as a judge. Its exceptions reach the caller."""

    usage = Usage()  # calls of a function are not counted
    _remembered: ClassVar[WeakKeyDictionary[Any, dict[Hashable, Any]]] = WeakKeyDictionary()

    def __init__(self, judge: JudgeFunction) -> None:
        self._judge = judge
        self.name = str(getattr(judge, "__name__", type(judge).__name__))
        try:
            self._answers = self._remembered.setdefault(judge, {})
        except TypeError:  # the function cannot be a key
            self._answers = {}

    def verdicts(
        self, rubric: Rubric, cases: Sequence[Case], progress: bool | None
    ) -> list[Verdict]:
        orders: list[tuple[Asked, Asked]] = [
            (
                (pair.prompt, pair.chosen, pair.rejected, persona),
                (pair.prompt, pair.rejected, pair.chosen, persona),
            )
            for pair, persona in cases
        ]
        asked = dict.fromkeys(each for both in orders for each in both)
        new = [each for each in asked if each not in self._answers]
        with progress_bar(progress, total=len(new), unit="question") as bar:
            self._ask(new, bar.update)
        return [Verdict((self._opinion(one), self._opinion(two).swapped())) for one, two in orders]

    def _ask(self, questions: Iterable[Asked], done: Callable[[], object]) -> None:
        left = iter(questions)
        for question in left:
            answer = self._judge(*question)
            if inspect.isawaitable(answer):
                event_loop.run(self._ask_on(question, answer, left, done))
            else:
                self._answers[question] = answer
                done()

    async def _ask_on(
        self,
        question: Asked,
        answer: Awaitable[Answer],
        left: Iterator[Asked],
        done: Callable[[], object],
    ) -> None:
        """Wait for the first answer that has to be awaited, and ask all questions that are left.

        Each of the tasks asks its next question after it has an answer: if one fails, no coroutine is left
        that nobody awaits.
        """

        async def answered(said: Awaitable[Answer]) -> Answer:
            try:
                return await said
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # of a task of the function's own; the group would take this task for one that has ended
                raise ModelError(f"{self.name} was cancelled from within.") from error

        async def ask_in_turn() -> None:
            for one in left:
                said = self._judge(*one)
                self._answers[one] = await answered(said) if inspect.isawaitable(said) else said
                done()

        async def begin() -> None:
            self._answers[question] = await answered(answer)
            done()
            await ask_in_turn()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(begin())
                for _ in range(_AT_ONCE - 1):
                    group.create_task(ask_in_turn())
        except BaseExceptionGroup as errors:  # raise what the function raised
            raise errors.exceptions[0] from None

    def _opinion(self, question: Asked) -> Opinion:
        answer = self._answers[question]
        try:
            return Opinion(Choice.model_validate({"answer": answer}).pick)
        except ValidationError:
            return Opinion(problem=f"{self.name} returned {answer!r:.80}, not 1, 2 or 'neither'.")


def _asker(judge: Any, options: Mapping[str, Any], rubrics: Mapping[Rubric, str] | None) -> Asker:
    if rubrics is not None and not isinstance(rubrics, Mapping):
        raise InvalidArgumentError(
            f"rubrics={rubrics!r:.40} is not a mapping of rubrics to criteria.", argument="rubrics"
        )
    for name, text in (rubrics or {}).items():
        InvalidArgumentError.check("rubrics", name, ("quality", "personalization"))
        if not isinstance(text, str) or not text.strip():
            raise InvalidArgumentError(f"rubrics[{name!r}]={text!r:.40} is not text.")
    if not callable(judge):
        return _ModelAsker(judge, options, rubrics or {})
    if options or rubrics:
        given = [*sorted(options), *(["rubrics"] if rubrics else [])]
        raise InvalidArgumentError(f"{', '.join(given)}: a function as judge= takes no options.")
    return _FunctionAsker(judge)


def _judged(
    asker: Asker,
    rubric: Rubric,
    pairs: Sequence[ResponsePair],
    places: Sequence[int],
    progress: bool | None,
) -> list[Verdict | None]:
    """Judge the rows at `places`; return one verdict for each row of `pairs`, None for other rows.

    Equal responses get a tie without a question.

    Raises:
        ModelError: the judge was asked, and gave no usable reply at all.
    """
    cases = {place: _case(pairs[place], rubric) for place in places}
    asked = {n: case for n, case in cases.items() if case.pair.chosen != case.pair.rejected}
    given = asker.verdicts(rubric, list(asked.values()), progress)
    require_a_reply(asker.name, [order.problem for v in given for order in v.orders])
    verdicts: list[Verdict | None] = [None] * len(pairs)
    for place in places:
        verdicts[place] = _TIE
    for place, verdict in zip(asked, given, strict=True):
        verdicts[place] = verdict
    return verdicts


# The result


def _comparison(
    pairs: Sequence[ResponsePair],
    verdicts: Mapping[Rubric, Sequence[Verdict | None]],
    asker: Asker,
    unparsable: str,
    confidence: float,
) -> ResponseComparison:
    """Compute all numbers and columns of the result.

    Args:
        pairs: the rows.
        verdicts: rubric -> one verdict for each row; None: the row was not judged.
        asker: the judge, for its name and usage.
        unparsable, confidence: as for `compare_responses`.
    """
    prompts = prompt_numbers([one.pair.prompt if one.pair else None for one in pairs])
    base, test = _lengths(pairs, verdicts)
    won = {rubric: outcomes(given, unparsable) for rubric, given in verdicts.items()}
    rubrics = {
        rubric: RubricFindings(
            win_rate_by_group(won[rubric], prompts, confidence=confidence),
            length_controlled_rate(won[rubric], test - base, prompts, confidence=confidence),
            rate_by_group(numbers_of(given, "consistent"), prompts, confidence=confidence),
        )
        for rubric, given in verdicts.items()
    }
    both = "personalization" in verdicts
    problems = [v.problem for given in verdicts.values() for v in given if v is not None]
    reasons = Counter(_left_out(one, both) for one in pairs)
    left_out = {reason: count for reason, count in reasons.items() if reason is not None}
    return ResponseComparison(
        quality=rubrics["quality"],
        personalization=rubrics.get("personalization"),
        delta_pq=delta_pq(won["personalization"], won["quality"], prompts, confidence=confidence)
        if both
        else None,
        length=ResponseLengths(
            *(mean_by_group(v, prompts, confidence=confidence) for v in (base, test, test - base))
        ),
        columns=_columns(pairs, verdicts),
        verdicts={rubric: tuple(given) for rubric, given in verdicts.items()},
        policy=unparsable,
        same=sum(verdict is _TIE for verdict in verdicts["quality"]),
        judge=asker.name,
        skipped=sum(left_out.values()),
        left_out=left_out,
        failed=sum(problem is not None for problem in problems),
        problems=most_common(problems),
        notes=tuple(_notes(rubrics)),
        usage=asker.usage,
    )


def _lengths(
    pairs: Sequence[ResponsePair], verdicts: Mapping[Rubric, Sequence[Verdict | None]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count the characters of the responses, the base model's and the test model's, shape (rows,) each.

    NaN: the row was not judged, or for no rubric did the judge reply in both orders.
    """
    judged = [
        one.pair if any(v is not None and v.answered for v in of_row) else None
        for one, *of_row in zip(pairs, *verdicts.values(), strict=True)
    ]
    base = [np.nan if pair is None else len(pair.rejected) for pair in judged]
    test = [np.nan if pair is None else len(pair.chosen) for pair in judged]
    return np.array(base, dtype=np.float64), np.array(test, dtype=np.float64)


def _columns(
    pairs: Sequence[ResponsePair], verdicts: Mapping[Rubric, Sequence[Verdict | None]]
) -> dict[str, list[Any]]:
    """Make the columns of `ResponseComparison.columns`."""
    read = [one.pair for one in pairs]
    columns: dict[str, list[Any]] = {
        "id": [one.id for one in pairs],
        "prompt": [None if pair is None else prompt_text(pair.prompt) for pair in read],
        "persona": [None if one.persona is None else str(one.persona) for one in pairs],
        "base_response": [None if pair is None else pair.rejected for pair in read],
        "test_response": [None if pair is None else pair.chosen for pair in read],
        "base_length": [None if pair is None else len(pair.rejected) for pair in read],
        "test_length": [None if pair is None else len(pair.chosen) for pair in read],
    }
    for rubric, given in verdicts.items():
        columns[rubric] = [None if v is None else _NAMES[v.winner] for v in given]
        columns[f"{rubric}_score"] = [_score(v) for v in given]
    columns["error"] = [
        _left_out(one, "personalization" in verdicts) or _problems(place, verdicts)
        for place, one in enumerate(pairs)
    ]
    return columns


def _score(verdict: Verdict | None) -> float | None:
    """Return the share of orders that the test model won: 0, 0.5 or 1.

    None: the row was not judged, its responses are equal, or a reply cannot be used.
    """
    usable = verdict is not None and verdict is not _TIE and verdict.problem is None
    return verdict.score if verdict is not None and usable else None


def _problems(place: int, verdicts: Mapping[Rubric, Sequence[Verdict | None]]) -> str | None:
    found = {rubric: given[place] for rubric, given in verdicts.items()}
    said = [f"{rubric}: {v.problem}" for rubric, v in found.items() if v and v.problem]
    return joined(said)


def _notes(rubrics: Mapping[Rubric, RubricFindings]) -> list[str]:
    """Return a note if the judge's two orders may agree by chance, so that its verdicts mean nothing."""
    doubtful = [
        f"{rubric} ({found.consistency})"
        for rubric, found in rubrics.items()
        if not found.consistency.low > 0.5
    ]
    if not doubtful:
        return []
    return [
        "Whether the judge's two orders agree more often than by chance (0.5) cannot be told for"
        f" {' and '.join(doubtful)}: draw no conclusion from its verdicts there."
    ]
