"""Match prompts, the responses of two models, and personas by id. Ids that do not match are an error."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ..exceptions import DataError, InvalidArgumentError
from ..personas.prompts import prompt_text
from ..preferences.cells import is_null, surrogate_problem
from ..preferences.conversations import read_pair
from ..records import Persona, Preference

_FORMS = "Give a sequence in the order of the prompts, a mapping of ids, or dicts with 'id' and {field!r}."


class ResponsePair(NamedTuple):
    """Two responses to one prompt: `pair.chosen` is the test model's and `pair.rejected` the base's.

    `problem` says why there is no pair.
    """

    id: str
    pair: Preference | None
    persona: Persona | str | None
    problem: str | None = None


def pair_responses(
    prompts: object, base: object, test: object, personas: object = None
) -> list[ResponsePair]:
    """Match prompts, responses and personas; one `ResponsePair` a prompt, in the order of the prompts.

    Each argument is a sequence (in the order of the prompts, whatever their ids), a mapping or a pandas
    series of ids, or a sequence of dicts with "id" and "prompt", "response" or "persona". A persona may
    be one for all.

    Raises:
        InvalidArgumentError: ids that repeat or do not match, responses that are all the same, or an
            argument of another kind.
    """
    asked = by_id("prompts", "prompt", prompts)
    if not asked:
        raise InvalidArgumentError("prompts= is empty: there is nothing to compare.")
    answers = {
        name: by_id(name, "response", v, asked) for name, v in (("base", base), ("test", test))
    }
    if personas is None or isinstance(personas, str | Persona):
        people = dict.fromkeys(asked, personas)
    else:
        people = by_id("personas", "persona", personas, asked)
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


def by_id(name: str, field: str, given: Any, asked: Collection[str] = ()) -> dict[str, Any]:
    """The values of an argument by their ids, in order; those without ids have those of `asked`.

    `field` names the value in a sequence of dicts, besides "id".
    """
    if isinstance(given, str | bytes | Persona) or hasattr(given, "columns"):
        raise InvalidArgumentError(
            f"{name}= is a single {type(given).__name__}.", hint=_FORMS.format(field=field)
        )
    if isinstance(given, Mapping) or callable(getattr(given, "items", None)):
        return _distinct(name, given.items())
    if not isinstance(given, Iterable):
        raise InvalidArgumentError(
            f"{name}={given!r:.80} cannot be read.", hint=_FORMS.format(field=field)
        )
    values = list(given)
    if values and all(isinstance(v, Mapping) and "id" in v and field in v for v in values):
        return _distinct(name, ((row["id"], row[field]) for row in values))
    return _distinct(
        name, zip(asked, values, strict=True) if len(values) == len(asked) else enumerate(values)
    )


def _distinct(name: str, items: Iterable[tuple[object, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
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
