"""Match prompts, the responses of two models, and personas by their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..arguments import check_text
from ..exceptions import DataError, InvalidArgumentError
from ..personas.prompts import prompt_text
from ..preferences.cells import is_null, surrogate_problem
from ..preferences.conversations import read_pair
from ..records import Persona, Preference

_FORMS = "Give a sequence in the order of the prompts, a mapping of ids, or dicts with 'id' and {field!r}."


class ResponsePair(NamedTuple):
    """Two responses to one prompt, and a persona.

    Attributes:
        id: the id of the prompt; its place as text, from "0", if the data has no ids.
        pair: `chosen` is the test model's response, `rejected` the base model's; None: see `problem`.
        persona: None: there is none.
        problem: why there is no pair; None: there is one.
    """

    id: str
    pair: Preference | None
    persona: Persona | str | None
    problem: str | None = None


def pair_responses(
    prompts: object, base: object, test: object, personas: object = None
) -> list[ResponsePair]:
    """Match prompts, responses and personas. Return one `ResponsePair` for each prompt, in order.

    Each argument is a sequence in the order of the prompts; a mapping or a pandas series of ids; or a
    sequence of dicts with "id" and "prompt", "response" or "persona". A dict without the latter key has no
    such value. `personas` may also be a single persona for all prompts, or None.

    Raises:
        InvalidArgumentError: no prompts, ids that repeat or do not match, responses that are all the same, or
            an argument of another kind. A value that cannot be read is the `problem` of its pair.
    """
    prompts = as_listed(prompts)
    asked = by_id("prompts", "prompt", prompts)
    if not asked:
        raise InvalidArgumentError("prompts= is empty: there is nothing to compare.")
    have_ids = brings_ids(prompts)
    answers = {
        name: by_id(name, "response", v, asked, have_ids=have_ids)
        for name, v in (("base", base), ("test", test))
    }
    if personas is None or isinstance(personas, str | Persona):
        people = dict.fromkeys(asked, personas)
    else:
        people = by_id("personas", "persona", personas, asked, have_ids=have_ids)
    for name, given in (*answers.items(), ("personas", people)):
        _check_ids(name, asked, given)
    pairs = [
        _pair(id, prompt, answers["test"][id], answers["base"][id], _persona(id, people[id]))
        for id, prompt in asked.items()
    ]
    usable = [one.pair for one in pairs if one.pair is not None]
    if usable and all(pair.chosen == pair.rejected for pair in usable):
        raise InvalidArgumentError(
            "base= and test= hold the same responses: a model would be compared with itself.",
            hint="Pass the responses of two models.",
        )
    return pairs


def as_listed(given: Any) -> Any:
    """Turn a generator or a dataset into a list, so that it can be read twice; return the rest as it is."""
    whole = _has_items(given) or _is_single(given)
    return given if whole or not isinstance(given, Iterable) else list(given)


def brings_ids(given: object) -> bool:
    """Whether an argument has ids of its own: it is a mapping, a series, or a list of dicts with "id"."""
    return _has_items(given) or (isinstance(given, list) and any(map(_has_id, given)))


def _has_items(given: object) -> bool:
    """Whether this is a mapping or a series, with ids as keys."""
    return isinstance(given, Mapping) or callable(getattr(given, "items", None))


def _is_single(given: object) -> bool:
    """Whether this is one text or persona, a frame, or a set (no order), where values are needed."""
    return isinstance(given, str | bytes | Persona | set) or hasattr(given, "columns")


def _has_id(row: object) -> bool:
    return isinstance(row, Mapping) and "id" in row


def by_id(
    name: str, field: str, given: Any, asked: Collection[str] = (), *, have_ids: bool = True
) -> dict[str, Any]:
    """Read an argument as a dict: id -> value, in order. Ids are texts.

    Args:
        name: the name of the argument, for errors.
        field: the key of the value in a sequence of dicts.
        given: the argument.
        asked: the ids of the prompts, in order. If `given` has no ids and as many values, these are its ids;
            else its ids are places from "0".
        have_ids: False if the ids of the prompts are only their places. The ids of `given` must then not be
            the same places in another order.

    Raises:
        InvalidArgumentError: the argument cannot be read, or its ids repeat, are missing, or are places in
            another order.
    """
    if _is_single(given):
        raise InvalidArgumentError(
            f"{name}= is a single {type(given).__name__}.", hint=_FORMS.format(field=field)
        )
    if _has_items(given):
        found = _distinct(name, given.items())
    elif not isinstance(given, Iterable):
        raise InvalidArgumentError(
            f"{name}={given!r:.80} cannot be read.", hint=_FORMS.format(field=field)
        )
    else:
        values = list(given)
        if not any(map(_has_id, values)):
            places = enumerate(values)
            return _distinct(
                name, zip(asked, values, strict=True) if len(values) == len(asked) else places
            )
        found = _distinct(name, _values_by_id(name, field, values))
    are_places = not have_ids or getattr(given, "ids_are_places", False)
    if are_places and list(found) != list(asked) and set(found) == set(asked):
        without, other = ("prompts", name) if not have_ids else (name, "prompts")
        raise InvalidArgumentError(
            f"{other}= has ids in another order than 0 to {len(asked) - 1}, and {without}= has none.",
            hint=f"Give both with ids, or both in one order: {other}=list({other}).",
        )
    return found


def _values_by_id(name: str, field: str, rows: Sequence[Any]) -> Iterator[tuple[object, Any]]:
    """Yield the id and the value of each dict; None: the dict has no value.

    Raises:
        InvalidArgumentError: a dict has no id, or no dict has the key `field`.
    """
    for place, row in enumerate(rows):
        if not _has_id(row) or is_null(row["id"]):
            raise InvalidArgumentError(
                f"{name}[{place}] has no id, and others have one.", hint=_FORMS.format(field=field)
            )
    if not any(field in row for row in rows):
        raise InvalidArgumentError(
            f"{name}= has dicts with the keys {', '.join(map(repr, rows[0]))}: {field!r} is missing.",
            hint=_FORMS.format(field=field),
        )
    for row in rows:
        yield row["id"], row.get(field)


def _distinct(name: str, items: Iterable[tuple[object, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        check_text(f"{name}=: an id", str(key), name)
        if str(key) in found:
            raise InvalidArgumentError(
                f"{name}= has the id {str(key)!r} twice.", hint="An id names one prompt."
            )
        found[str(key)] = value
    return found


def _check_ids(name: str, asked: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    missing = [id for id in asked if id not in given]
    unknown = [id for id in given if id not in asked]
    if missing or unknown:
        said = [f"nothing for {len(missing)} of them, such as {missing[0]!r}"] if missing else []
        said += [f"{len(unknown)} ids that they lack, such as {unknown[0]!r}"] if unknown else []
        raise InvalidArgumentError(
            f"{name}= ({len(given)}) is not aligned with the {len(asked)} prompts: it has"
            f" {' and '.join(said)}.",
            hint="Give all of them with the same ids, or all in the same order. None stands for"
            " what is missing.",
        )


def _pair(
    id: str, prompt: object, test: object, base: object, persona: Persona | str | None
) -> ResponsePair:
    try:
        pair = read_pair(("prompt", "test", "base"), prompt, test, base, id=id)
        for text in (prompt_text(pair.prompt), pair.chosen, pair.rejected, str(persona)):
            text.encode()
    except DataError as error:
        return ResponsePair(id, None, persona, error.message)
    except UnicodeEncodeError:
        return ResponsePair(id, None, persona, surrogate_problem("the row"))
    return ResponsePair(id, pair, persona)


def _persona(id: str, given: object) -> Persona | str | None:
    if isinstance(given, Persona):
        return given
    if isinstance(given, str):
        return given if given.strip() else None
    if is_null(given):
        return None
    raise InvalidArgumentError(
        f"the persona of {id!r} is of type {type(given).__name__}.",
        hint="Give a Persona, its sentence, or None.",
    )
