"""Find a persona for a new prompt: the persona of the nearest training prompt.

"Whose Boat Does it Float?" (arXiv 2501.11549) calls these retrieved personas.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api_keys import hides_secrets
from ..arguments import (
    ApiBase,
    ApiKey,
    Count,
    Seconds,
    check_argument,
    id_text,
    in_python,
    read_items,
)
from ..data.table import PersonaTable
from ..exceptions import DataError, InvalidArgumentError, ModelError, shown_when_made
from ..personas.flags import flag_filter
from ..personas.placement import place_persona
from ..personas.prompts import bare_text, prompt_text
from ..preferences.cells import is_null
from ..preferences.conversations import read_prompt, text_problem
from ..records import Message, Persona, PersonaRow, Preference, Prompt, Side
from .bm25 import BM25
from .embeddings import Embedder, embed, endpoint_embedder, sentence_embedder

Scores = Callable[[Sequence[str]], Iterable[NDArray[Any]]]  # queries -> a score for each text

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class RetrievedPersona:
    """A persona that was found for a prompt.

    Attributes:
        persona: the persona, as it was given to `PersonaRetriever`.
        score: how near the persona's prompt is; higher is nearer. The cosine of the embeddings, from -1 to 1,
            or the BM25 score, above 0.
        index: the place of the persona's prompt in `prompts=` of `PersonaRetriever`, from 0.
    """

    persona: Persona | str
    score: float
    index: int


@hides_secrets
class PersonaRetriever:
    """Finds the persona of the nearest training prompt.

    A model embeds all training prompts when the retriever is made. With `api_base`, they are sent there.

    Args:
        prompts: the training prompts, as texts or conversations.
        personas: one a prompt: a `Persona`, its sentence, or None. A prompt that has no persona, or cannot be
            read, is left out; the attribute `left_out` maps the reason, "no_persona" or "no_prompt", to the
            number of such prompts.
        ids: an id (text or a number), or None, for each prompt. `retrieve` compares `exclude=` and the ids of
            its rows with them. None: no prompt has an id.
        model: "bm25", which needs no model; a sentence-transformers model, by its name on the hub or its
            folder; the name of a model at `api_base`; or a function from n texts to vectors, shape (n,
            dimensions).
        api_base: the address of an OpenAI-compatible endpoint with /embeddings; None: there is none.
        api_key: the key of that endpoint; None: that of OpenAI or Azure from the environment, if the address
            is theirs, else none.
        timeout: seconds for one request to it.
        max_attempts: how often a request is sent before its error is raised.

    Raises:
        InvalidArgumentError: a bad argument, before any call is made.
        DataError: no prompt has a persona.
        MissingExtraError: sentence-transformers is needed and not installed.
        ModelError: the model did not give one finite vector for each prompt.
    """

    def __init__(
        self,
        prompts: Iterable[object],
        personas: Iterable[Persona | str | None],
        *,
        ids: Iterable[str | int | None] | None = None,
        model: str | Path | Embedder = "bm25",
        api_base: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_attempts: int = 5,
    ) -> None:
        asked, people = _listed("prompts", prompts), _listed("personas", personas)
        if len(asked) != len(people):
            raise InvalidArgumentError(
                f"{len(asked)} prompts and {len(people)} personas: one persona a prompt is needed.",
                hint="None stands for a persona that is missing.",
            )
        given = [None] * len(asked) if ids is None else read_items("ids", ids)
        names = [None if is_null(one) else id_text(one) for one in given]
        if len(names) != len(asked):
            raise InvalidArgumentError(
                f"{len(names)} ids and {len(asked)} prompts: one id a prompt is needed."
            )
        found = [_read(prompt, who) for prompt, who in zip(asked, people, strict=True)]
        reasons = Counter(reason for _, reason in found if reason is not None)
        self.left_out: Mapping[str, int] = dict(reasons)
        self._places = [place for place, (_, reason) in enumerate(found) if reason is None]
        self._personas = [people[place] for place in self._places]
        if not self._places:
            raise DataError(
                "no prompt has a persona that could be retrieved.",
                hint=f"Left out: {self.left_out}." if self.left_out else "There are no prompts.",
            )
        embedder = _embedder(model, api_base, api_key, timeout, max_attempts)
        texts = [found[place][0] for place in self._places]
        self._names: dict[str, list[int]] = {}  # key of an id or a prompt -> places in `texts`
        for number, (place, text) in enumerate(zip(self._places, texts, strict=True)):
            for name in {_prompt_key(text), *([_id_key(names[place])] if names[place] else [])}:
                self._names.setdefault(name, []).append(number)
        self._scores = _scores(texts, embedder)
        self._needs_a_match = embedder is None  # a BM25 score of 0 means no common word
        self._model = model if isinstance(model, str | Path) else "a function"

    @classmethod
    @hides_secrets
    def from_table(
        cls,
        table: PersonaTable,
        side: Side = "chosen",
        *,
        drop_flagged: bool | Collection[str] = False,
        **options: Any,
    ) -> PersonaRetriever:
        """Make a retriever of the personas of one side of a table.

        `RetrievedPersona.index` is then the place of a row in the table. Rows without a pair are left out.

        Args:
            table: the result of `infer_personas`.
            side: the side whose personas can be found.
            drop_flagged: leave out personas that have a flag, as for `tailoring_rows`.
            options: `model`, `api_base`, `api_key`, `timeout`, `max_attempts` of `PersonaRetriever`.

        Raises:
            DataError, InvalidArgumentError, MissingExtraError, ModelError: as `PersonaRetriever`.
        """
        if not isinstance(table, PersonaTable):
            raise InvalidArgumentError(
                f"from_table takes a PersonaTable, not {type(table).__name__}.",
                hint="infer_personas returns one, and PersonaTable.load reads one.",
            )
        InvalidArgumentError.check("side", side, ("chosen", "rejected"))
        unwanted = flag_filter(drop_flagged, looked_for="personas_from" not in table.settings)
        kept = [None if unwanted(row, side) else getattr(row, side) for row in table]
        prompts = [row.preference.prompt if row.preference else None for row in table]
        ids = [row.preference.id if row.preference else None for row in table]
        return cls(prompts, kept, ids=ids, **options)

    def __len__(self) -> int:
        return len(self._places)

    @shown_when_made
    def __repr__(self) -> str:
        return f"PersonaRetriever({len(self):,} personas, model={str(self._model)!r})"

    def retrieve(
        self,
        prompts: Iterable[object],
        k: int = 1,
        *,
        exclude: bool | Collection[str] | None = None,
    ) -> list[list[RetrievedPersona]]:
        """Find, for each prompt, the personas of the k nearest training prompts.

        Args:
            prompts: texts, conversations, `Preference` records, rows of a table, or a table.
            k: the most personas for each prompt.
            exclude: the personas that are not returned. True: those of the same prompt (ignoring white space
                and case) or of the same id. False: none. None: like True for rows and `Preference` records,
                like False for texts and conversations. A list of ids and prompts: like None, and also the
                personas of these.

        Returns:
            For each prompt a list of at most k personas, the nearest first; of two that are equally near, the
            earlier training prompt comes first. BM25 finds only prompts that share a word with the query. A
            warning counts the prompts whose list is empty.

        Raises:
            InvalidArgumentError: a prompt that is neither text nor a conversation, such as that of a row
                without a pair; k below 1, or a bad `exclude`.
            ModelError: the model did not give one finite vector for each prompt, or vectors of other
                dimensions than before.
        """
        k = check_argument("k", k, Count)
        given = list(prompts) if isinstance(prompts, PersonaTable) else _listed("prompts", prompts)
        asked = [_Query.of(n, prompt) for n, prompt in enumerate(given)]
        everywhere: set[int] = set()
        exclude = in_python(exclude)
        if not isinstance(exclude, bool | None):
            everywhere = self._named(_excluded_names(exclude))
        found = []
        for query, scores in zip(asked, self._scores([one.text for one in asked]), strict=True):
            own = query.is_row if not isinstance(exclude, bool) else exclude
            left_out = everywhere | (self._named(query.names) if own else set())
            found.append(self._nearest(scores, k, left_out))
        if unmatched := sum(not one for one in found):
            warnings.warn(
                f"{unmatched:,} of {len(found):,} prompts have no persona: they share no word with a training"
                " prompt that is not excluded.",
                stacklevel=2,
            )
        return found

    def _named(self, names: Iterable[str]) -> set[int]:
        return {number for name in names for number in self._names.get(name, ())}

    def _nearest(
        self, scores: NDArray[Any], k: int, left_out: Collection[int]
    ) -> list[RetrievedPersona]:
        order = np.argsort(-scores, kind="stable")[: k + len(left_out)]
        found = [
            RetrievedPersona(self._personas[n] or "", float(scores[n]), self._places[n])
            for n in order
            if n not in left_out and (scores[n] > 0 or not self._needs_a_match)
        ]
        return found[:k]


@dataclass(frozen=True)
class _Query:
    """A prompt to find personas for.

    Attributes:
        text: the prompt as text.
        names: the keys of the prompt and of its id; training prompts with one of these keys count as the
            same.
        is_row: whether the prompt came from a row or a `Preference`. False: it was given as text or messages.
    """

    text: str
    names: tuple[str, ...]
    is_row: bool

    @classmethod
    def of(cls, place: int, given: object) -> _Query:
        pair = given.preference if isinstance(given, PersonaRow) else given
        if not isinstance(pair, Preference):
            text = _query(place, pair)
            return cls(text, (_prompt_key(text),), is_row=isinstance(given, PersonaRow))
        text = _query(place, pair.prompt)
        names = (_prompt_key(text), *([_id_key(pair.id)] if pair.id else []))
        return cls(text, names, is_row=True)


def _prompt_key(text: str) -> str:
    return f"prompt {bare_text(text)}"


def _id_key(id: object) -> str:
    return f"id {id}"


def _excluded_names(exclude: object) -> list[str]:
    """Return the keys of `exclude=`. A text may be an id or a prompt: it gets the key of each."""
    if isinstance(exclude, str | bytes) or not isinstance(exclude, Iterable):
        raise InvalidArgumentError(
            f"exclude={exclude!r:.80} is neither True, False, None nor ids or prompts.",
            hint="Pass a list: [it].",
        )
    given = read_items("exclude", exclude)
    texts = [
        id_text(one) if isinstance(in_python(one), str | int | float) else _query(n, one)
        for n, one in enumerate(given)
    ]
    return [name for text in texts for name in (_id_key(text), _prompt_key(text))]


def first_person_prompt(prompt: object, persona: Persona | str) -> Prompt:
    """Append the persona to the prompt as the user's own words: "I am … and prefer …" (arXiv 2501.11549).

    Use it for models that were not trained on personas.

    Args:
        prompt: text, or a conversation: the persona is appended to its last message if that is the user's,
            else the persona becomes a further user message.
        persona: a `Persona` or a sentence. A sentence that does not begin with "The user is" or "The user
            prefers" is not put into the first person. In the persona, a space is put into everything that a
            model could read as a mark of its chat template.

    Returns:
        Text for a text, messages for a conversation.

    Raises:
        DataError: the prompt is neither text nor a conversation.
    """
    asked = read_prompt(prompt)
    said = place_persona(asked, persona, "user", "{prompt}\n\n{persona}")
    return said[-1].content if isinstance(asked, str) and not isinstance(said, str) else said


def _embedder(
    model: str | Path | Embedder,
    api_base: str | None,
    api_key: str | None,
    timeout: float,
    max_attempts: int,
) -> Embedder | None:
    """Make the embedder that the arguments of `PersonaRetriever` name; None for BM25.

    Raises:
        InvalidArgumentError: an argument is bad, or there is no such model.
        MissingExtraError: sentence-transformers is needed and not installed.
    """
    if api_base is not None:
        if not isinstance(model, str) or model == "bm25":
            raise InvalidArgumentError(
                f"api_base={api_base!r}, but no model= that it serves.", hint="Name the model."
            )
        check_argument("api_base", api_base, ApiBase)
        check_argument("api_key", api_key, ApiKey | None)
        timeout = check_argument("timeout", timeout, Seconds)
        max_attempts = check_argument("max_attempts", max_attempts, Count)
        return endpoint_embedder(
            model, api_base, api_key, timeout=timeout, max_attempts=max_attempts
        )
    if isinstance(model, str | Path):
        return None if model == "bm25" else sentence_embedder(model)
    if callable(model):
        return model
    raise InvalidArgumentError(
        f"model={model!r:.80} is not known.",
        hint='It is "bm25", the name or folder of a model, or a function from texts to vectors.',
    )


def _scores(texts: Sequence[str], embedder: Embedder | None) -> Scores:
    """Return a function of queries that gives, for each query, a score of every text, shape (texts,).

    If there is an embedder, the texts are embedded now, and the queries at each call.

    Raises:
        ModelError: as `embed`.
    """
    if embedder is None:
        index = BM25(texts)
        return lambda queries: (index.scores(query) for query in queries)
    known = embed(embedder, texts)
    first: dict[
        bytes, int
    ] = {}  # a product rounds equal vectors differently: the first one's score counts
    places = [first.setdefault(vector.tobytes(), place) for place, vector in enumerate(known)]

    def cosines(queries: Sequence[str]) -> Iterator[NDArray[Any]]:
        vectors = embed(embedder, queries) if queries else known[:0]
        if vectors.shape[1] != known.shape[1]:
            raise ModelError(
                f"the embedding model returned {vectors.shape[1]} dimensions, and"
                f" {known.shape[1]} before: they cannot be compared."
            )
        for start in range(0, len(vectors), _QUERIES_AT_ONCE):
            yield from (vectors[start : start + _QUERIES_AT_ONCE] @ known.T)[:, places]

    return cosines


def _read(prompt: object, persona: object) -> tuple[str, str | None]:
    """Return the prompt as text, and None; or a text and the reason to leave the prompt out.

    Raises:
        InvalidArgumentError: the persona is of a wrong type.
    """
    if is_null(persona) or (isinstance(persona, str) and not persona.strip()):
        return "", "no_persona"
    if not isinstance(persona, Persona | str):
        raise InvalidArgumentError(f"a persona is of type {type(persona).__name__}.")
    try:
        text = _text(prompt)
    except DataError:
        return "", "no_prompt"
    return text, None if text.strip() else "no_prompt"


def _query(place: int, prompt: object) -> str:
    try:
        return _text(prompt)
    except DataError as error:
        raise InvalidArgumentError(f"prompts[{place}] cannot be used: {error.message}") from None


def _text(prompt: object) -> str:
    text = prompt_text(read_prompt(prompt))
    if (problem := text_problem("prompt", text)) is not None:
        raise DataError(problem)
    return text


def _listed(name: str, given: object) -> list[Any]:
    """Return an argument as a list.

    Raises:
        InvalidArgumentError: the argument is a single prompt or persona, or a frame, not a sequence of
            values.
    """
    single = isinstance(given, str | bytes | Persona | Mapping | set) or hasattr(given, "columns")
    single = single or not isinstance(given, Iterable)
    values: list[Any] = [] if single else list(given)  # type: ignore[call-overload]
    if single or any(isinstance(value, Message | Mapping) for value in values):
        raise InvalidArgumentError(
            f"{name}= is a single {'conversation' if values else type(given).__name__}.",
            hint="Pass a list: [it].",
        )
    return values
