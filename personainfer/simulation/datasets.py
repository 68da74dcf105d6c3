"""Read published data sets about users, from the hub, a folder with the same files, or rows.

FamousPersona and PRISM become `Preference` records with `user`, and attributes of each user. PersonalLLM
becomes a `RewardMatrix`. The hub and folders need the package `datasets`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.file_formats import BrokenRow, open_rows
from ..exceptions import DataError, InvalidArgumentError, quoted
from ..local.paths import as_path
from ..preferences.cells import is_null, plain
from ..preferences.conversations import pair_problem, read_pair, text_problem
from ..preferences.labels import read_flag
from ..records import Message, Preference
from ..tailoring.published import load_split
from .reward_matrix import RewardMatrix

Rows = Iterable[Mapping[str, Any]]
Source = str | Path | Rows  # a name on the hub, a folder, or rows

_PRISM = (
    "conversation_id turn user_id utterance_id user_prompt model_response score if_chosen".split()
)
_QUESTIONS = {"personal": "personal", "common": "divergent", "divergent": "divergent"}


@dataclass(frozen=True)
class UserData:
    """The choices of users, and attributes of the users.

    Attributes:
        preferences: the choices, each with `user` and `id`.
        users: user -> attribute -> value, for the users of `preferences` of whom attributes are known.
        questions: id of a preference -> kind of its question, such as "personal".
        dropped: reason -> how many rows (also of `demographics`), turns of a conversation, responses, or
            cells of optional columns were left out.
    """

    preferences: tuple[Preference, ...]
    users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    questions: Mapping[str, str] = field(default_factory=dict, repr=False)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many preferences there are."""
        return len(self.preferences)

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """Attribute -> user -> value, for `groups=` of `evaluate_prefixes`.

        An attribute lists only the users who have it.
        """
        found: dict[str, dict[str, Any]] = {}
        for user, attributes in self.users.items():
            for name, value in attributes.items():
                found.setdefault(name, {})[user] = value
        return found

    def of(self, user: str) -> tuple[Preference, ...]:
        """Return the preferences of one user, in order; () if the user has none."""
        return tuple(choice for choice in self.preferences if choice.user == user)


def read_famous_persona(
    source: Source = "zilu-peter-tang/famous-persona",
    *,
    split: str = "train",
    demographics: str | Path | Rows | None = None,
) -> UserData:
    """Read FamousPersona: 50 people, 100 pairs each for training and for testing (arXiv 2505.13257).

    Args:
        source: the name on the hub, a folder with its files, or rows. Columns: `name`, `prompt`, `chosen` and
            `rejected` (texts or messages; named `yw` and `yl` in the authors' own files). Optional columns:
            `question_type`: "personal" or "common"; people disagree on common questions, which are called
            "divergent" in `questions` of the result. `axis`: why the person was selected, such as "diet". It
            becomes the user's attribute "axis" ("diet, religion" for a person with two), and
            `evaluate_prefixes(…, folds="axis", groups=people.groups)` leaves one axis out at a time (11 folds
            in the paper).
        split: "train" or "test". The ids of the preferences begin with it, as in "train:0". With rows, it has
            no other effect.
        demographics: the authors' `demographics.csv`, or its rows: `name`, and one column for each attribute,
            where "NA" is a missing value. Of rows with the same name, the first one counts. None: users have
            no attribute but "axis".

    Returns:
        The choices and the people. Rows that cannot be used are counted in `dropped`.

    Raises:
        InvalidArgumentError: `source` or `demographics` is a data frame, or the name of `demographics` cannot
            be a file.
        MissingExtraError: the package `datasets` is needed and not installed.
        DataError: the data or `demographics` cannot be loaded or read, a column is missing, or no row can be
            used.
    """
    preferences: list[Preference] = []
    names: list[str] = []
    questions: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    axes: dict[str, set[str]] = {}
    for number, row in enumerate(_rows(source, split=split)):
        if not isinstance(row, Mapping):
            dropped[f"a row is of type {type(row).__name__}"] += 1
            continue
        if not names:
            names = _found(row, ("name",), ("prompt",), ("chosen", "yw"), ("rejected", "yl"))
        try:
            found = _pair(row, names, f"{split}:{number}")
        except DataError as error:
            dropped[str(error)] += 1
            continue
        preferences.append(found)
        kind, axis = (_optional(row, name, dropped) for name in ("question_type", "axis"))
        if kind:
            questions[f"{split}:{number}"] = _QUESTIONS.get(kind, kind)
        if axis and found.user:
            axes.setdefault(found.user, set()).add(axis)
    _require(preferences, dropped)
    known = {} if demographics is None else _demographics(demographics, dropped)
    users = {
        user: {
            **({"axis": ", ".join(sorted(axes[user]))} if user in axes else {}),
            **known.get(
                user, known.get(user.strip(), {})
            ),  # blanks around cells of a file are no part of them
        }
        for user in dict.fromkeys(choice.user for choice in preferences if choice.user)
    }
    return UserData(tuple(preferences), users, questions, dict(dropped))


def read_personal_llm(
    source: Source = "namkoong-lab/PersonalLLM",
    *,
    split: str = "train",
    models: Sequence[str] | None = None,
) -> RewardMatrix:
    """Read PersonalLLM: prompts with 8 responses, each scored by 10 reward models (arXiv 2409.20296).

    Args:
        source: the name on the hub, a folder with its files, or rows. Columns: `prompt`, `response_1`,
            `response_1_<model>`, … `beaver_7b` is a cost model, and its z-scores are negated.
        split: "train" (9,402 prompts) or "test" (1,000); not used with rows.
        models: the reward models to read; None: all.

    Returns:
        The rewards, z-scored over this split; `RewardMatrix.like` of the training split puts another split on
        its scale. Rows that cannot be used are counted in `dropped`.

    Raises:
        InvalidArgumentError: `source` is a data frame, or `models` holds something else than different names.
        MissingExtraError: the package `datasets` is needed and not installed.
        DataError: the data cannot be loaded, a column is missing, no row can be used, or a model gives every
            response the same reward.
    """
    return RewardMatrix.from_columns(_rows(source, split=split), models=models)


def read_prism(
    source: str | Path | tuple[Rows, Rows] = "HannahRoseKirk/prism-alignment",
    *,
    against: Literal["lowest", "each"] = "lowest",
) -> UserData:
    """Read PRISM: 1,396 people who rated models' responses to their own prompts (arXiv 2404.16019).

    In each turn, the response with which the person continued is preferred to responses with a lower score.
    The prompt of a later turn is the conversation so far. A turn in which not exactly one response was
    chosen, or an empty one, is left out, and so are the later turns of its conversation. `if_chosen` is true
    or false, also as text ("False" of a CSV file); a missing value is false. Attributes come from the survey;
    nested ones get names such as `location_birth_region`.

    Args:
        source: the name on the hub, a folder with `utterances.jsonl` and `survey.jsonl`, or a tuple of the
            rows of both, in this order.
        against: "lowest": one pair a turn, with the response of the lowest score; "each": one pair for each
            response with a lower score.

    Returns:
        The choices, and the people who made them. What cannot be used is counted in `dropped`.

    Raises:
        InvalidArgumentError: `against` is not known, or rows are a data frame.
        MissingExtraError: the package `datasets` is needed and not installed.
        DataError: the data cannot be loaded, a column is missing, or no turn can be used.
    """
    InvalidArgumentError.check("against", against, ("lowest", "each"))
    if isinstance(source, str | Path):
        utterances, survey = _rows(source, "utterances"), _rows(source, "survey")
    elif isinstance(source, tuple | list) and len(source) == 2:
        utterances, survey = map(_no_frame, source)
    else:
        raise InvalidArgumentError(
            f"source={source!r:.80} is neither a name, nor a folder, nor two lists of rows.",
            hint="Give (utterances, survey).",
            argument="source",
        )
    preferences: list[Preference] = []
    questions: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for turns in _conversations(utterances, dropped):
        asked: tuple[Message, ...] | None = ()
        for answers in turns:
            try:
                found, asked = _turn(answers, asked, against, dropped)
            except DataError as error:
                dropped[error.message] += 1
                found, asked = [], None
            except (ValueError, TypeError, ArithmeticError, LookupError):
                dropped["a score or a text of the turn cannot be read"] += 1
                found, asked = [], None
            preferences += found
            if found and (kind := _optional(answers[0], "conversation_type", dropped)):
                questions.update({choice.id: kind for choice in found if choice.id})
    _require(preferences, dropped)
    answered = {choice.user for choice in preferences}
    users = {}
    for row in survey:
        if not isinstance(row, Mapping):
            dropped[f"a row of the survey is of type {type(row).__name__}"] += 1
        elif (user := str(row.get("user_id"))) in answered:
            users[user] = _flat(row)
    return UserData(tuple(preferences), users, questions, dict(dropped))


# Loading


def _rows(source: Source, config: str | None = None, *, split: str = "train") -> Rows:
    if not isinstance(source, str | Path):
        return _no_frame(source)
    # A folder may lack the card that names its files.
    file = None if config is None else Path(source) / f"{config}.jsonl"
    found: Rows = load_split(source, config, split, file=file)
    return found


def _no_frame(rows: Any) -> Rows:
    """Return the rows. Raise InvalidArgumentError for what is no rows.

    A loop over a frame, or over a dict of columns, would give the names of columns.
    """
    if hasattr(type(rows), "columns"):  # polars warns if a lazy frame itself is asked for them
        raise InvalidArgumentError(
            f"a {type(rows).__name__} is not rows.",
            hint='Give frame.to_dict("records") of a pandas frame, frame.to_dicts() of a polars frame.',
        )
    can_be_rows = not isinstance(rows, Mapping | str | bytes)
    if can_be_rows and isinstance(rows, Iterable):
        with suppress(TypeError):  # of an array without dimensions
            iter(rows)
            return rows
    elif can_be_rows and isinstance(rows, Sized) and hasattr(rows, "__getitem__"):
        return [rows[place] for place in range(len(rows))]
    raise InvalidArgumentError(f"{quoted(rows, 80)} is not rows.", hint="Give a list of dicts.")


def _found(row: Mapping[str, Any], *wanted: tuple[str, ...]) -> list[str]:
    """Find, for each wanted column, which of its possible names `row` has.

    Raises:
        DataError: a column has none of its names.
    """
    names = [next((name for name in known if name in row), None) for known in wanted]
    for name, known in zip(names, wanted, strict=True):
        if name is None:
            raise DataError(
                f"there is no column {' or '.join(map(repr, known))}; the columns are"
                f" {', '.join(map(repr, row))}."
            )
    return [name for name in names if name is not None]


def _require(preferences: Sequence[Preference], dropped: Mapping[str, int]) -> None:
    if not preferences:
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in dropped.items())
        raise DataError(f"no row can be used: {reasons or 'there are none'}.")


# FamousPersona


def _pair(row: Mapping[str, Any], names: Sequence[str], id: str) -> Preference:
    """Read the preference of a row. Raise DataError, which says why, if the row cannot be used."""
    name, prompt, chosen, rejected = names
    user = row.get(name)
    if not isinstance(user, str) or not user:
        raise DataError(f"{name!r} is missing.")
    values = (row.get(prompt), row.get(chosen), row.get(rejected))
    found = read_pair((prompt, chosen, rejected), *values, id=id, user=user)
    if problem := pair_problem(found):
        raise DataError(problem)
    return found


def _optional(row: Mapping[str, Any], name: str, dropped: Counter[str]) -> str:
    """Read a text or a number as text; "" for none, and for another value, which `dropped` counts."""
    value = plain(row.get(name))
    if is_null(value):
        return ""
    with suppress(ValueError):  # an integer of more than 4,300 digits
        if isinstance(value, str | int | float):
            return str(value)
    kind = type(value).__name__
    dropped[f"the {name!r} of a row is no text that can be read ({kind}): it has none"] += 1
    return ""


def _demographics(source: str | Path | Rows, dropped: Counter[str]) -> dict[str, dict[str, Any]]:
    """Read the attributes of people: name -> attribute -> value. `dropped` counts rows that are left out."""
    rows = _file_rows(source) if isinstance(source, str | Path) else _no_frame(source)
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        if isinstance(row, BrokenRow):
            dropped[f"demographics: {row.error}"] += 1
            continue
        if not isinstance(row, Mapping) or not isinstance(name := row.get("name"), str):
            raise DataError(
                f"row {number} of demographics= has no text 'name'.", argument="demographics"
            )
        texts = "\n".join(text for text in (*row, *row.values()) if isinstance(text, str))
        if problem := text_problem("a row", texts):
            dropped[f"demographics: {problem}"] += 1
        elif None in row:  # where `csv.DictReader` puts what is beyond the header
            dropped["demographics: a row has more fields than the header"] += 1
        elif name in found:
            dropped["demographics: a name that was there before"] += 1
        else:
            found[name] = {
                key: value
                for key, value in row.items()
                if key != "name"
                and not is_null(value)
                and not (isinstance(value, str) and value in ("NA", ""))
            }
    return found


def _file_rows(source: str | Path) -> Iterator[object]:
    """Yield the rows of a file, dicts or `BrokenRow`; texts without the blanks around them.

    Raises:
        InvalidArgumentError: no file can have that name.
        DataError: the file cannot be read.
    """
    path = as_path(source, "demographics")
    try:
        for row in open_rows(path)[0]:
            if isinstance(row, Mapping):
                row = {
                    key: value.strip() if isinstance(value, str) else value
                    for key, value in row.items()
                }
            yield row
    except (DataError, InvalidArgumentError) as error:
        raise DataError(
            f"demographics={str(source)!r:.200} cannot be read: {error.message}",
            hint=error.hint or "It is a .csv file with the column name and one for each attribute.",
            argument="demographics",
        ) from None


# PRISM


def _conversations(
    utterances: Rows, dropped: Counter[str]
) -> Iterator[list[list[Mapping[str, Any]]]]:
    """Yield each conversation as a list of turns in order. A turn is the list of its rated responses.

    A row without a conversation or a turn is counted in `dropped`. Raise DataError if a column is missing.
    """
    rated: dict[str, dict[float, list[Mapping[str, Any]]]] = {}
    checked = False
    for row in utterances:
        if not isinstance(row, Mapping):
            dropped[f"a row is of type {type(row).__name__}"] += 1
            continue
        if not checked:
            _found(row, *((name,) for name in _PRISM))
            checked = True
        # A field that is left out, a null and the NaN of a frame are the same.
        given = {name: cell for name, cell in row.items() if not is_null(cell)}
        row = dict.fromkeys((*_PRISM, *row)) | given
        conversation, turn = plain(row["conversation_id"]), plain(row["turn"])
        # A turn is a float where its column has gaps.
        if not isinstance(turn, int | float) or isinstance(turn, bool):
            turn = None
        if turn is None or not isinstance(conversation, str | int):
            dropped["it names no conversation or no turn"] += 1
            continue
        rated.setdefault(str(conversation), {}).setdefault(turn, []).append(row)
    for turns in rated.values():
        yield [turns[turn] for turn in sorted(turns)]


def _turn(
    answers: Sequence[Mapping[str, Any]],
    before: tuple[Message, ...] | None,
    against: str,
    dropped: Counter[str],
) -> tuple[list[Preference], tuple[Message, ...] | None]:
    """Return the preferences of a turn, and the conversation after it (None: unknown).

    `before` is the conversation before the turn. None: it is unknown, because an earlier turn has no single
    chosen response, or an empty one. Responses that cannot be used are counted in `dropped`.

    Raises:
        DataError: an `if_chosen` is neither true nor false, or the responses do not belong together.
        ValueError, TypeError, ArithmeticError, LookupError: another cell cannot be read.
    """
    chosen = [row for row in answers if read_flag("if_chosen", row["if_chosen"])]
    if before is None or len(chosen) != 1 or not chosen[0]["user_prompt"]:
        dropped["no single response was chosen, here or earlier in the conversation"] += 1
        return [], None
    best = chosen[0]
    if any(row[name] != best[name] for row in answers for name in ("user_id", "user_prompt")):
        raise DataError("the responses of a turn are of several users, or to several prompts.")
    asked = (*before, Message(role="user", content=best["user_prompt"]))
    found = []
    for worst in _lower(answers, best, against, dropped):
        choice = Preference(
            prompt=asked if before else best["user_prompt"],
            chosen=best["model_response"] or "",
            rejected=worst["model_response"] or "",
            id=f"{best['utterance_id']}>{worst['utterance_id']}",
            user=best["user_id"],
        )
        if problem := pair_problem(choice):
            dropped[problem] += 1
        else:
            found.append(choice)
    answer = best["model_response"]
    after = (*asked, Message(role="assistant", content=answer)) if answer else None
    return found, after


def _lower(
    answers: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    against: str,
    dropped: Counter[str],
) -> list[Mapping[str, Any]]:
    """Select the responses to which the chosen one (`best`) is preferred.

    If `against` is "each", these are all with a lower score, and the others are counted in `dropped`. If it
    is "lowest", this is the one with the lowest score; `dropped` counts the turn if there is none.
    """
    others = [row for row in answers if row is not best]
    lower = [row for row in others if _score(row) < _score(best)]
    if against == "each":
        dropped["its score is not lower than that of the chosen response"] += len(others) - len(
            lower
        )
        return lower
    if not lower:
        dropped["no response has a lower score than the chosen one"] += 1
    return sorted(lower, key=_score)[:1]


def _score(row: Mapping[str, Any]) -> float:
    score = row["score"]
    return math.nan if score is None else float(score)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a row of the survey: attribute -> value, {"a": {"b": 1}} as "a_b"; without the user's id."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}_{key}": inner for key, inner in value.items()}
        elif name != "user_id":
            flat[name] = value
    return flat
