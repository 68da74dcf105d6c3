"""Recognise the schema of data from the names of its columns and the values of its first rows.

If no schema fits, the error lists the columns and shows the `columns=` to pass.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Sized
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

from ..exceptions import DataError, InvalidArgumentError, NoPreferenceError
from ..records import Preference
from .cells import is_null, plain
from .column_names import (
    ROLES,
    has_known_label,
    listed,
    matches,
    nearest,
    prompt_columns,
    vague_prompt,
)
from .conversations import encoding_problem, pair_problem
from .labels import are_reversed, is_strength, label_key, may_be_labels, name_both_sides
from .named_responses import Head, without_names
from .pairing import by_rater, is_ranked
from .rows import read_all, read_group
from .schemas import Mapped, Schema
from .turns import is_history, texts_of
from .usual_column_names import RESPONSES, plain_name

LOOK_AHEAD: Final = 200  # schema and coding are recognised from so many first rows
FEW: Final = 20  # so many rows may all lack a preference by chance
_NO_CHOICE = ("other_label", "responses")  # with these roles, labels are names or places
_SEVERAL = ("list", "group")  # kinds of schemas with several responses to a prompt
_BY_NAME = ("label", "one-hot", "votes")  # kinds whose labels may name a response
_ENOUGH = 5  # what so many rows have in common is no chance
_MANY = 0.1  # so large a share of rows is no mistake in single rows
_NEARLY_ALL = 0.95
_MOST_TURNS = 100  # of a cell, that are looked for among all turns of the prompt
_WORDS_OF_A_QUESTION = 3  # the name of a category has fewer
_WORDS_OF_NO_NAME = 6  # a person's name has fewer


def recognise(found: Sequence[str], told: Mapped) -> list[Schema]:
    """List the schemas that the data may have by the names of its columns, the likeliest first.

    Args:
        found: the names of the columns.
        told: the caller's options about the data.

    Returns:
        One schema or more.

    Raises:
        InvalidArgumentError: `columns=` names a column that the data does not have.
        DataError: no schema has these columns, or more than two responses have a column each.
    """
    check_named(found, told)
    if schemas := matches(found, told):
        return schemas
    hint, example = _suggest(found)
    raise DataError(
        f"no preference data recognised in the columns {listed(found) or '(none)'}.",
        hint=hint,
        argument="columns",
        example=example,
    )


def check_named(found: Sequence[str], told: Mapped) -> None:
    """Raise InvalidArgumentError if `columns=` names a column that the data does not have."""
    for role, column in told.columns.items():
        if column not in found:
            raise InvalidArgumentError(
                f"columns[{role!r}] is {column!r}, which is not a column of the data.",
                hint=nearest(column, found),
                argument="columns",
            )


@cache
def example_rows() -> dict[str, dict[str, Any]]:
    """Return an example row (column -> value) of each schema and each known data set, by its name.

    All callers get the same dict: do not change it.
    """
    text = files(__package__).joinpath("texts/example_rows.json").read_text("utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def _suggest(found: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return a hint about the schema that shares most columns with `found`, and an example of `columns=`."""
    shared = {name: len(set(found) & row.keys()) for name, row in example_rows().items()}
    name = max(shared, key=lambda each: shared[each])
    nearest = example_rows()[name if shared[name] else "explicit"]
    ends = ("_1", "_2", "_a", "_b", "_A", "_B")
    has_two = any(name.endswith(end) for name in found for end in ends)
    roles = [
        "prompt",
        *(("response_1", "response_2", "label") if has_two else ("chosen", "rejected")),
    ]
    told = (
        f"Nearest is {name if shared[name] else 'explicit'}: {', '.join(nearest)}. "
        "The command `personainfer formats` shows a row of each kind. "
    )
    if not {plain_name(name) for name in found}.isdisjoint(RESPONSES):  # as in KTO's data
        told += (
            "If each row has one response, with a score or a mark of true or false, rows of one prompt can be"
            ' compared: columns={"prompt": "…", "response": "…", "score": "…"} and pairs="all". '
        )
    told += "Or say which is which:"
    return told, dict.fromkeys(roles, "…")


class Settled(NamedTuple):
    """A schema, and whether it can read at least one of the first rows."""

    schema: Schema
    is_readable: bool


def settle(
    schemas: Sequence[Schema], head: Head, names: Sequence[object], *, is_batch: bool = False
) -> Settled:
    """Choose the first schema that can read at least one of the first rows, and complete it from the rows.

    Args:
        schemas: the candidates, the likeliest first.
        head: a function schema -> the first rows, as values in the order of the schema's columns.
        names: the names of all columns.
        is_batch: whether the rows are a part of the data, all of which may be bad.

    Returns:
        The completed schema. It could read no row (`is_readable` is False) if there are fewer than 20 rows,
        which all lack a preference, or if the rows are a batch: then it is the likeliest schema.

    Raises:
        InvalidArgumentError: an option of the caller does not apply to this data.
        DataError: no schema can read a row; the coding of the labels is not certain; a prompt has several
            responses, and the caller did not give `pairs=`; chosen and rejected only name responses; or the
            rows can be read in several ways.
    """
    schemas = _of_labels(without_names(schemas, head, names), head, is_batch)
    schemas = [_without_odd_history(schema, head) for schema in schemas]
    fallback: Settled | None = None
    problem: Exception | None = None
    told = schemas[0].told if schemas else None
    if told and told.pairs:  # `pairs=` says that a prompt has several responses
        schemas = sorted(schemas, key=lambda each: each.kind not in _SEVERAL)
    for schema in schemas:
        rows = head(schema)
        try:
            check_several(schema)
            check_options(schema, rows)
            settled = schema.settled(rows, is_batch=is_batch)
            error = _first_problem(settled, rows)
        except (DataError, InvalidArgumentError) as found:
            if is_batch:  # this schema may be right, and only this batch bad
                raise
            problem = problem or found
            continue
        if error is None:
            labels = [each.columns["label"] for each in schemas if each.kind == "label"]
            _check_other_readings(settled, rows, head, labels, is_batch=is_batch)
        settled.counts.clear()
        if error is None:
            unread = () if is_batch or len(rows) < 2 else _not_in_prompt(settled, head, names)
            others = _of_other_sources(settled, head)
            return Settled(replace(settled, not_in_prompt=unread, others=others), True)
        if is_batch or (isinstance(error, NoPreferenceError) and len(rows) < FEW):
            fallback = fallback or Settled(settled, False)
        elif problem is None:
            problem = _unreadable(settled, len(rows), error, names)
    if fallback is not None:
        return fallback
    raise problem or DataError("no preference data recognised.")


def _of_labels(schemas: list[Schema], head: Head, is_batch: bool) -> list[Schema]:
    """Leave out schemas whose label column has a label's name but holds no labels.

    Schemas whose labels tell the choice come before those whose labels are strengths of preferences. If any
    column holds labels, schemas that read the choice from scores are left out, too.

    Raises:
        DataError: the coding of a column is not certain, and no other column names sides in words. Another
            label, or scores, might rate something else than the choice.
    """
    labelled = [s for s in schemas if s.kind == "label" and s.columns.keys().isdisjoint(_NO_CHOICE)]
    has_scores = any(schema.kind == "scores" for schema in schemas)
    if not labelled or "label" in schemas[0].told.columns or len(labelled) + has_scores < 2:
        return schemas
    naming, certain, strengths = list[Schema](), list[Schema](), list[Schema]()
    doubts: list[DataError] = []
    for schema in labelled:
        rows = [schema.row(row) for row in head(schema)]
        try:
            found = schema.settled(head(schema), is_batch=is_batch)
        except DataError as error:
            is_doubt = len(labelled) == 1 or not is_strength(schema.columns["label"])
            if is_doubt and not certain and may_be_labels(row["label"] for row in rows):
                doubts.append(error)
            continue
        labels = [found.label(row, "label") for row in rows]
        if len(labelled) > 1 and is_strength(schema.columns["label"]):
            strengths.append(schema)  # another label tells the side, and this one how strong it is
        elif has_known_label(schema) or name_both_sides(labels):
            naming.append(schema)
            certain.append(schema)
        elif may_be_labels(labels):
            certain.append(schema)
    if doubts and not naming and schemas[0] in labelled:
        raise doubts[0]
    first = naming if doubts else []
    kept = [*first, *(each for each in certain if each not in first), *strengths]
    if not kept and not has_scores:
        return schemas
    rest = [s for s in schemas if s not in labelled and not (kept and s.kind == "scores")]
    place = schemas.index(labelled[0])
    return [*rest[:place], *kept, *rest[place:]]


def _of_other_sources(schema: Schema, head: Head) -> dict[str, Sequence[str]]:
    """Return role -> further columns, for data merged from several sources with different names.

    The result has a role if each of the first rows has a value in at most one of the role's columns. All may
    be of one source.
    """
    found: dict[str, Sequence[str]] = {}
    for role, further in schema.others.items():
        columns = {name: name for name in (schema.columns[role], *further)}
        rows = head(replace(schema, columns=columns, others={}))
        filled = [[not (is_null(cell) or cell == "") for cell in map(plain, row)] for row in rows]
        if all(sum(cells) <= 1 for cells in filled):
            found[role] = further
    return found


def _without_odd_history(schema: Schema, head: Head) -> Schema:
    """Return the schema without the role "history" if most cells of that column hold no turns.

    Such a column would separate the rows of a prompt in a schema of the kind "group". In others, a column of
    another name than "history" may hold something else, such as a number of turns: empty cells do not count.
    """
    name = schema.columns.get("history")
    is_group = schema.kind == "group"
    is_sure = name == "history" or "history" in schema.told.columns
    if name not in schema.present or (is_sure and not is_group):
        return schema
    cells = [value for (value,) in head(replace(schema, columns={"history": name}))]
    good = [cell for cell in map(plain, cells) if is_history(name, cell)]
    filled = sum(isinstance(cell, Sized) and len(cell) > 0 for cell in good)
    if len(cells) - len(good) <= (len(cells) / 2 if is_group else filled):
        return schema
    columns = {role: column for role, column in schema.columns.items() if role != "history"}
    return replace(schema, columns=columns)


def _not_in_prompt(schema: Schema, head: Head, names: Sequence[object]) -> tuple[str, ...]:
    """Return other columns that may hold a part of the prompt, by their names and by texts that differ."""
    others = [name for name in prompt_columns(names) if name not in schema.columns.values()]
    others += [name for name in vague_prompt(schema) if name not in others]
    if "prompt" not in schema.columns or schema.has_exchanges:
        return ()
    return tuple(_of_other_texts(schema, head, others))


def _of_other_texts(
    schema: Schema, head: Head, columns: Sequence[str], least_words: int = 1
) -> list[str]:
    """Return those of `columns` whose texts mostly differ between rows, and are in no prompt or response.

    Texts of fewer than `least_words` words do not count.
    """
    if not columns:
        return []
    roles = ("prompt", "chosen", "rejected", "response_1", "response_2")
    read = {role: schema.columns[role] for role in roles if role in schema.columns}
    rows = head(replace(schema, columns=read | {f"={name}": name for name in columns}))
    places = enumerate(columns, len(read))
    return [n for place, n in places if _adds_text(rows, place, len(read), least_words)]


def _adds_text(rows: Sequence[Sequence[object]], place: int, known: int, least_words: int) -> bool:
    """Whether the cells at `place` are mostly texts or turns that differ, and are in no prompt or response.

    Args:
        rows: the values of each row.
        place: the place of the cell in each row.
        known: how many cells at a row's start are the prompt and the responses.
        least_words: texts of fewer words do not count.
    """
    found = set()
    for row in rows:
        others = dict.fromkeys(text for cell in row[:known] for text in texts_of(cell))
        texts = [text for text in texts_of(row[place])[:_MOST_TURNS] if text not in others]
        texts = [text for text in texts if len(text.split()) >= least_words]
        new = [t for t in texts if not any(t in each or each in t for each in others)]
        if new:
            found.add("\n".join(new))
    return len(found) > len(rows) / 2


def check_several(schema: Schema) -> None:
    """Raise DataError if a prompt has several responses, and the caller did not give `pairs=`."""
    if schema.kind in _SEVERAL and schema.told.pairs is None:
        column = schema.columns["responses" if schema.kind == "list" else "response"]
        raise DataError(
            f"{column!r} holds several responses to a prompt.",
            hint='Say which make a pair: pairs="best-worst", pairs="all" or pairs="adjacent".',
        )


def check_options(schema: Schema, rows: Sequence[Sequence[object]]) -> None:
    """Raise InvalidArgumentError for an option of the caller that does not apply to the data.

    Also raise it for a column of scores whose name may mean ranks, such as "rank_score".

    Args:
        schema: how the data is read.
        rows: the first rows, as values in the order of the schema's columns.
    """
    told, columns = schema.told, schema.columns
    for role in ("score", "scores", "score_1"):
        is_ranked(columns.get(role, ""))  # which raises if the name may mean ranks or scores
    if schema.kind in _BY_NAME and not told.labels:
        named = [columns.get(role, "") for role in ("response_1", "response_2")]
        if are_reversed(named[0], named[1]):
            raise InvalidArgumentError(
                f"columns= gives {named[0]!r} as the first response and {named[1]!r} as the second, and"
                " labels go by these names.",
                hint="Swap response_1 and response_2.",
                argument="columns",
            )
    scored = {"score_1", "score_chosen", "score"}
    has_scores = schema.kind == "list" or bool(scored & columns.keys())
    wrong = {
        "labels": told.labels and schema.kind != "label",
        "pairs": told.pairs and schema.kind not in _SEVERAL and not schema.has_lists(rows),
        "min_gap": told.min_gap is not None and not has_scores,
        "min_votes": told.min_votes is not None and "votes_1" not in columns,
        "safe_rejected": told.safe_rejected and "safe_1" not in columns,
    }
    needs = {
        "labels": "a column of labels",
        "pairs": "several responses to a prompt",
        "min_gap": "scores",
        "min_votes": "votes for each response (SHP's score_A and score_B)",
        "safe_rejected": "marks of safety (PKU-SafeRLHF's is_response_0_safe)",
    }
    for option, is_wrong in wrong.items():
        if is_wrong:
            raise InvalidArgumentError(
                f"{option}= needs {needs[option]}, and the data was read as {schema.name} "
                f"({', '.join(columns.values())}).",
                hint="Leave the option out, or name the columns with columns=.",
                argument=option,
            )


def _first_problem(schema: Schema, rows: Sequence[Sequence[object]]) -> Exception | None:
    """Return None if any row can be read; else the first error, if possible one that the caller can mend."""
    problems: list[Exception] = []
    groups: list[list[Sequence[object]]] = [[row] for row in rows]
    if schema.kind == "group":
        groups = [each for _, each in by_rater(rows, schema.rater_key)]
    for group in groups:
        try:
            is_group = schema.kind == "group"
            found = read_group(schema, group) if is_group else read_all(schema, group[0])
        except ValueError as error:
            problems.append(error)
            continue
        unusable = [problem for problem in map(pair_problem, found) if problem is not None]
        if len(unusable) < len(found):
            return None
        is_encoding = encoding_problem(found[0]) is not None
        problems.append((DataError if is_encoding else NoPreferenceError)(unusable[0]))
    mendable = (each for each in problems if not isinstance(each, NoPreferenceError))
    return next(mendable, problems[0] if problems else NoPreferenceError("there are no rows."))


def _check_other_readings(
    schema: Schema,
    rows: Sequence[Sequence[object]],
    head: Head,
    labels: Sequence[str],
    *,
    is_batch: bool,
) -> None:
    """Raise DataError if the rows can be read in another way, too: only the caller knows the right one.

    Args:
        schema: the schema that was chosen, and completed.
        rows: the first rows, as values in the order of its columns.
        head: a function schema -> the first rows.
        labels: the columns that hold labels by one of the candidate schemas.
        is_batch: whether the rows are a part of the data.
    """
    if not schema.has_exchanges and len(rows) >= _ENOUGH:
        _check_vague_prompt(schema, head)
    if is_batch:  # a batch is too small for these checks, and all batches must be read alike
        return
    if schema.kind == "label" and "label" not in schema.told.columns:
        _check_other_labels(schema, head, labels)
    if "prompt" not in schema.told.columns and _may_be_answered(schema, rows):
        _check_answered(schema, rows)


def _check_other_labels(schema: Schema, head: Head, labels: Sequence[str]) -> None:
    """Raise DataError if another of the columns `labels` often contradicts the labels that are read.

    Contradictions in up to a tenth of the rows, or in up to four rows, are accepted.
    """
    label = schema.columns["label"]
    is_named = name_both_sides([schema.label(schema.row(row), "label") for row in head(schema)])
    for name in () if has_known_label(schema) else dict.fromkeys(labels):
        if name in (label, schema.columns.get("other_label")):
            continue
        other = replace(schema, columns={**schema.columns, "compared_label": name})
        rows = head(other)
        other = replace(other, compared=other.compared_coding(rows), counts=Counter())
        labels_there = [label_key(other.row(row)["compared_label"]) for row in rows]
        has_sign = any(key.startswith("-") for key in labels_there)
        if is_strength(name) and (is_named or not has_sign):
            continue
        count = len(_read(other, rows)) if other.compared else 0
        contradicted = other.counts["contradicted_rows"]
        if contradicted >= _ENOUGH and contradicted > _MANY * count:
            raise DataError(
                f"{label!r} and {name!r} contradict each other in {contradicted:,} of the first"
                f" {len(rows):,} rows.",
                hint="Say which of them holds the choice:",
                argument="columns",
                example={"label": "…"},
            )


def _read(schema: Schema, rows: Sequence[Sequence[object]]) -> list[Preference]:
    found: list[Preference] = []
    for row in rows:
        with suppress(ValueError):
            found += read_all(schema, row)
    return found


def _check_answered(schema: Schema, rows: Sequence[Sequence[object]]) -> None:
    """Raise DataError if nearly all prompts (95 %, and at least five) end with an answer of the assistant."""
    found = _read(schema, rows)
    if sum(map(_is_answered, found)) < max(_ENOUGH, _NEARLY_ALL * len(found)):
        return
    column = schema.columns.get("prompt", "prompt")
    raise DataError(
        f"the prompts in {column!r} end with an answer, to which the responses do not belong.",
        hint="Leave this last turn out. Or, if it is a part of what is asked, say so:",
        argument="columns",
        example={"prompt": column},
    )


def _may_be_answered(schema: Schema, rows: Sequence[Sequence[object]]) -> bool:
    """Whether the prompts may have several turns, so that they may end with an answer."""
    if "prompt" not in schema.columns or schema.kind == "group":
        return False
    place = tuple(schema.columns).index("prompt")
    is_text = "prompt" not in schema.json_roles and not schema.has_transcripts
    return not is_text or any(not isinstance(row[place], str) for row in rows)


def _check_vague_prompt(schema: Schema, head: Head) -> None:
    """Raise DataError if the prompt's column has a vague name, and another column may hold the prompt."""
    may_be, user = vague_prompt(schema), schema.columns.get("user")
    others = [name for name in may_be if name != user]
    found = _of_other_texts(schema, head, others, least_words=_WORDS_OF_A_QUESTION)
    if user in may_be:  # people's names have a few words, too
        found += _of_other_texts(schema, head, [user], least_words=_WORDS_OF_NO_NAME)
    if found:
        raise DataError(
            f"the prompt may be in {schema.columns['prompt']!r} or in {found[0]!r}.",
            hint="Say which column it is:",
            argument="columns",
            example={"prompt": "…"},
        )


def _is_answered(pair: Preference) -> bool:
    """Whether the prompt ends with an assistant turn that is not the beginning of the chosen response."""
    if isinstance(pair.prompt, str) or pair.prompt[-1].role != "assistant":
        return False
    return not pair.chosen.startswith(pair.prompt[-1].content)


def _unreadable(schema: Schema, count: int, error: Exception, names: Sequence[object]) -> DataError:
    optional = {"id", "user", "system", "tools"}
    roles = [role for role in ROLES if role in schema.columns.keys() - optional]
    asked = roles if "prompt" in roles or schema.kind != "conversations" else ["prompt", *roles]
    taken = ", ".join(f"{role} from {schema.columns[role]!r}" for role in roles)
    return DataError(
        f"none of the first {count} rows can be read, with {taken}. The first: {error}",
        hint=f"The columns are {listed(names)}. If others are meant, name them:",
        argument="columns",
        example=dict.fromkeys(asked, "…"),
    )
