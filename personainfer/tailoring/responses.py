"""`tailor_responses`: have a model answer each prompt for a persona, with or without worked examples.

The personas come from one of the sources of "Whose Boat Does it Float?" (arXiv 2501.11549): gold (inferred
from the prompt's own pair), retrieved (of the nearest training prompt), system (one persona for all prompts)
or none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

from ..arguments import CountFromZero, check_argument, check_text, takes_options
from ..data.table import PersonaTable
from ..evaluation.paired_responses import as_listed, brings_ids, by_id
from ..exceptions import (
    DataError,
    InvalidArgumentError,
    MissingExtraError,
    ModelError,
    UnknownOptionError,
)
from ..llm.client import LLM, OPTIONS, LLMOptions, make_llm
from ..llm.requests import Request
from ..observability import with_progress_bar
from ..personas.placement import (
    PersonaPlace,
    check_place,
    check_template,
    disarm,
    place_persona,
    prompt_messages,
)
from ..personas.prompts import bare_text, prompt_text
from ..preferences.cells import is_null
from ..preferences.conversations import encoding_problem, read_prompt, text_problem
from ..records import Message, Persona, PersonaRow, Prompt, Side, Usage
from .retriever import PersonaRetriever

if TYPE_CHECKING:
    import pandas

Someone = Persona | str | None
Id = TypeVar("Id")
PersonaSource = Literal["gold", "retrieved", "system", "none"]

_SOURCES = ("gold", "retrieved", "system", "none")


@dataclass(frozen=True)
class TailoredResponses(Mapping[str, str | None]):
    """A mapping of the id of each prompt to the response, or to None, as `compare_responses` takes it.

    Attributes:
        prompts: id -> the prompt as it was given.
        responses: id -> the model's response; None: see `errors`.
        personas: id -> the persona for which the prompt was to be answered. None: with personas="none", the
            response was written without a persona; otherwise there was none, and the prompt has an error.
        errors: id -> why there is no response. An answered prompt has no entry.
        usage: the calls, tokens and cost (USD) of the run.
        settings: the model and the arguments that made the responses.
        ids_are_places: True if the prompts had no ids, or a table's ids repeat: an id is then the prompt's
            place, "0" to "n - 1".
    """

    prompts: Mapping[str, Any] = field(repr=False)
    responses: Mapping[str, str | None] = field(repr=False)
    personas: Mapping[str, Someone] = field(repr=False)
    errors: Mapping[str, str]
    usage: Usage
    settings: Mapping[str, Any]
    ids_are_places: bool = False

    def __getitem__(self, id: str) -> str | None:
        return self.responses[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.responses)

    def __len__(self) -> int:
        return len(self.responses)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a frame with a row for each prompt, indexed by id: prompt, persona, response, error.

        The prompt is given as text. What a row does not have is None: the prompt if it cannot be read, the
        persona, and the response or the error.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pd = MissingExtraError.require("pandas")
        readable, _ = read_prompts(self.prompts)
        texts = {id: prompt_text(prompt) for id, prompt in readable.items()}
        said = {id: None if who is None else str(who) for id, who in self.personas.items()}
        columns: dict[str, Mapping[str, Any]] = {
            "prompt": texts,
            "persona": said,
            "response": self.responses,
            "error": self.errors,
        }
        return pd.DataFrame(  # type: ignore[no-any-return]
            {name: [values.get(id) for id in self] for name, values in columns.items()},
            index=pd.Index(list(self), name="id"),
            dtype=object,
        )


@takes_options(LLMOptions)
def tailor_responses(
    prompts: object,
    model: str | LLM | None = None,
    *,
    personas: PersonaSource | Persona | str | Mapping[Any, Someone] | Sequence[Someone] = "gold",
    side: Side = "chosen",
    train: PersonaTable | None = None,
    shots: int = 0,
    system_persona: Persona | str | None = None,
    persona_in: PersonaPlace | None = None,
    template: str | None = None,
    progress: bool | None = None,
    **options: Unpack[LLMOptions],
) -> TailoredResponses:
    """Have a model answer each prompt for a persona. `compare_responses` takes the result.

    Args:
        prompts: a `PersonaTable`: its prompts are answered. Or texts or conversations, as for
            `compare_responses`: a sequence, a mapping of ids to prompts, or dicts with "id" and "prompt".
        model: as for `infer_personas`.
        personas: where the personas come from. "gold": from `prompts`, which must be a table. These are an
            upper bound, since a gold persona was inferred from the responses to its own prompt. "retrieved":
            from the nearest prompt in `train`, by BM25; a prompt that shares no word with `train` has an
            error. "system": `system_persona` for all prompts. "none": no personas. Or the personas
            themselves: one (or None) for each prompt, as a sequence or a mapping of ids; or one for all, as a
            `Persona` or a text of several words.
        side: the side, in `prompts` and in `train`, whose personas are used.
        train: a table of other prompts, for "retrieved" and for worked examples. Rows without a persona of
            `side`, and rows with a prompt that is also in `prompts`, are not used, so that no test pair
            answers itself. Not used otherwise.
        shots: how many worked examples stand before each prompt: the nearest prompts of `train` by BM25, each
            with its persona and the response that this persona prefers. The nearest comes last. There are
            fewer if fewer share a word with the prompt. With personas="none" the examples show no personas.
        system_persona: the persona for "system", such as `choose_system_persona(…).persona`.
        persona_in, template: where the persona stands, as for `tailoring_rows`. None: in the system message,
            or with worked examples at the end of the user's message.
        progress: show a bar on standard error; None: in a terminal or a notebook.
        options: configure the LLM that a model string makes: see `LLM`.

    Returns:
        For each prompt a response, or None and an error. An error of one prompt, such as a missing persona or
        a reply cut off at `max_tokens`, does not affect the others.

    Raises:
        InvalidArgumentError, UnknownOptionError: a bad argument, before any call is made.
        MissingExtraError: the model needs a package that is not installed.
        DataError: no prompt can be answered, or `train` has no row that can be used.
        ModelError: the model failed on every prompt, or would fail on all (a wrong key or model).
        CacheError: the cache of replies cannot be read or written.
    """
    UnknownOptionError.check(options, OPTIONS.union(inspect.signature(tailor_responses).parameters))
    shots = check_argument("shots", shots, CountFromZero)
    place = persona_in or ("user" if shots else "system")
    source = personas if isinstance(personas, str) else None
    _check(source, side, train, shots, system_persona, place, template)
    prompts = prompts if isinstance(prompts, PersonaTable) else as_listed(prompts)
    given, have_ids = _given_prompts(prompts)
    if not given:
        raise InvalidArgumentError("prompts= is empty: there is nothing to answer.")
    people = _given_personas(given, have_ids, prompts, personas, side, system_persona)
    asked, problems = read_prompts(given)
    count = max(shots, 1 if source == "retrieved" else 0)
    shown = _nearest(asked, train, side, count) if count and train is not None else {}
    if source == "retrieved":
        people = {id: getattr(shown[id][0], side) if shown.get(id) else None for id in given}
    if source != "none":
        for id in asked:
            if people[id] is None:
                problems[id] = "there is no persona for it."
    llm = make_llm(model, options)
    side_shown = None if source == "none" else side
    requests = {
        id: _messages(
            prompt, people[id], shown.get(id, [])[:shots], (side, side_shown), place, template
        )
        for id, prompt in asked.items()
        if id not in problems
    }
    responses, usage = _answered(llm, requests, problems, progress)
    named = source if source in _SOURCES else "given"
    settings = {"model": llm.model, "personas": named, "side": side, "shots": shots}
    return TailoredResponses(
        prompts=given,
        responses={id: responses.get(id) for id in given},
        personas=people,
        errors=problems,
        usage=usage,
        settings={**settings, "persona_in": place, "template": template},
        ids_are_places=not have_ids,
    )


# Prompts, personas and worked examples


def _given_prompts(prompts: object) -> tuple[dict[str, Any], bool]:
    """Return id -> prompt as it was given, and whether these ids are the caller's. If not, ids are places."""
    if not isinstance(prompts, PersonaTable):
        return by_id("prompts", "prompt", prompts), brings_ids(prompts)
    pairs = [row.preference for row in prompts]
    own = [pair and pair.id for pair in pairs]
    ids = [id or str(place) for place, id in enumerate(own)]
    have_ids = any(own) and len(set(ids)) == len(ids)
    if not have_ids:
        ids = [str(place) for place in range(len(ids))]
    return {id: pair and pair.prompt for id, pair in zip(ids, pairs, strict=True)}, have_ids


def read_prompts(given: Mapping[Id, Any]) -> tuple[dict[Id, Prompt], dict[Id, str]]:
    """Return id -> prompt for prompts that can be answered, and id -> problem for the others."""
    asked: dict[Id, Prompt] = {}
    problems: dict[Id, str] = {}
    for id, value in given.items():
        try:
            prompt = read_prompt(value)
        except DataError as error:
            problems[id] = error.message
        else:
            if problem := text_problem("prompt", prompt):
                problems[id] = problem
            elif prompt_text(prompt).strip():
                asked[id] = prompt
            else:
                problems[id] = "the prompt is empty."
    return asked, problems


def _given_personas(
    given: Mapping[str, Any],
    have_ids: bool,
    prompts: object,
    personas: object,
    side: Side,
    system_persona: Persona | str | None,
) -> dict[str, Someone]:
    """Map each id to its persona, or to None. For "retrieved" all are None: `tailor_responses` fills them in.

    Raises:
        InvalidArgumentError: the personas do not match the prompts, or one is of another type.
    """
    if isinstance(personas, str | Persona):
        if personas == "gold":
            if not isinstance(prompts, PersonaTable):
                raise InvalidArgumentError(
                    'personas="gold" are those of a table: pass it as prompts=.',
                    hint="Or give a persona for each prompt.",
                )
            return {id: getattr(row, side) for id, row in zip(given, prompts, strict=True)}
        everybody = {"none": None, "retrieved": None, "system": system_persona}
        return dict.fromkeys(given, everybody.get(str(personas), personas))
    found = by_id("personas", "persona", personas, given, have_ids=have_ids)
    if found.keys() != given.keys():
        stray = next(iter(found.keys() ^ given.keys()))
        raise InvalidArgumentError(
            f"personas= ({len(found)}) do not match the {len(given)} prompts: {stray!r} is in only one.",
            hint="Give a persona, or None, for each prompt.",
        )
    return {id: _someone(id, found[id]) for id in given}


def _someone(id: str, value: object) -> Someone:
    if is_null(value) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | Persona):
        raise InvalidArgumentError(
            f"the persona of {id!r} is of type {type(value).__name__}.",
            hint="Give a Persona, its sentence, or None.",
        )
    check_text(f"the persona of {id!r}", str(value), "personas")
    return value


def _nearest(
    asked: Mapping[str, Prompt], train: PersonaTable, side: Side, count: int
) -> dict[str, list[PersonaRow]]:
    """Find, for each prompt, up to `count` training rows with the nearest prompts (BM25), the nearest first.

    Raises:
        DataError: `train` has no row with a persona of `side` whose prompt differs from all of `asked`, and
            whose texts UTF-8 can hold.
    """
    known = {bare_text(prompt_text(prompt)) for prompt in asked.values()}

    def is_other(row: PersonaRow) -> bool:
        pair, persona = row.preference, getattr(row, side)
        return (
            pair is not None
            and persona is not None
            and bare_text(prompt_text(pair.prompt)) not in known
            and encoding_problem(pair) is None
        )

    rows = train.filter(is_other)
    if not len(rows):
        raise DataError(
            f"train= has no usable row with a {side} persona whose prompt is not answered here itself.",
            hint="Pass a table of other prompts.",
        )
    found = PersonaRetriever.from_table(rows, side).retrieve(asked.values(), count)
    return {
        id: [rows[one.index] for one in nearest] for id, nearest in zip(asked, found, strict=True)
    }


def _messages(
    prompt: Prompt,
    persona: Someone,
    shown: Sequence[PersonaRow],
    sides: tuple[Side, Side | None],
    place: PersonaPlace,
    template: str | None,
) -> tuple[Message, ...]:
    """Build the messages of a request: the worked examples, the nearest last, then the prompt.

    Args:
        prompt: what the model is to answer.
        persona: for whom; None: the prompt alone.
        shown: the rows of the worked examples, the nearest first.
        sides: the side whose response an example shows, and the side whose persona (None: no persona).
        place, template: where and how a persona stands in a prompt.

    Returns:
        A chat with the system message of `prompt` alone; or one user message if the place is "plain".
    """
    asked = place_persona(prompt_messages(prompt), persona, place, template)
    examples = []
    for row in reversed(shown):
        pair = row.preference
        assert pair is not None  # left out otherwise
        someone = sides[1] and getattr(row, sides[1])
        one = place_persona(prompt_messages(pair.prompt), someone, place, template)
        examples.append((one, disarm(pair.chosen if sides[0] == "chosen" else pair.rejected)))
    if isinstance(asked, str):
        texts = [f"{one}{response}" for one, response in examples]
        return (Message(role="user", content="\n\n".join([*texts, asked])),)
    system = asked[:1] if asked[0].role == "system" else ()
    turns = [
        turn
        for one, response in examples
        for turn in (*one, Message(role="assistant", content=response))
        if turn.role != "system"
    ]
    return (*system, *turns, *asked[len(system) :])


# Calls


def _answered(
    llm: LLM,
    requests: Mapping[str, tuple[Message, ...]],
    problems: dict[str, str],
    progress: bool | None,
) -> tuple[dict[str, str], Usage]:
    """Send the requests, and return id -> response, and the usage. Add id -> error to `problems`.

    Raises:
        DataError: there are no requests.
        ModelError: every request failed; the first failure.
    """
    if not requests:
        id, problem = next(iter(problems.items()))
        raise DataError("no prompt can be answered.", hint=f"The first, {id!r}: {problem}")
    responses: dict[str, str] = {}
    failed: list[ModelError] = []
    run = llm.run((id, [Request(messages)]) for id, messages in requests.items())
    try:
        for id, (reply,) in with_progress_bar(run, progress, total=len(requests)):
            if reply.error is None:
                responses[id] = str(reply.value)
            else:
                failed.append(reply.error)
                problems[id] = str(reply.error)
    finally:
        run.close()
    if not responses:
        raise failed[0]
    return responses, run.tally.usage


def _check(
    personas: str | None,
    side: object,
    train: object,
    shots: object,
    system_persona: object,
    place: PersonaPlace,
    template: str | None,
) -> None:
    InvalidArgumentError.check("side", side, ("chosen", "rejected"))
    if personas is not None and not any(map(str.isspace, personas)):
        InvalidArgumentError.check("personas", personas, _SOURCES)
    if train is not None and not isinstance(train, PersonaTable):
        raise InvalidArgumentError(f"train= is a PersonaTable, not {type(train).__name__}.")
    if train is None and (shots or personas == "retrieved"):
        wanted = f"shots={shots}" if shots else 'personas="retrieved"'
        raise InvalidArgumentError(f"{wanted} needs train=, a table of other prompts.")
    if (personas == "system") != (system_persona is not None):
        raise InvalidArgumentError(
            'personas="system" and system_persona= go together.',
            hint="choose_system_persona chooses one.",
        )
    if system_persona is not None and not isinstance(system_persona, str | Persona):
        raise InvalidArgumentError(f"system_persona={system_persona!r:.80} is not a persona.")
    check_text("system_persona=", str(system_persona), "system_persona")
    check_place(place)
    if template is not None:
        check_template(template, place)
    if shots and place == "system":
        raise InvalidArgumentError(
            'persona_in="system" has one place, but each worked example has a persona of its own.',
            hint='Use "user" or "plain" with shots=.',
        )
