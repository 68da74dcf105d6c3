"""Find the schemas that data may have, from the names of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from copy import copy
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Final

from ..exceptions import DataError, InvalidArgumentError
from . import usual_column_names as usual
from .schemas import Mapped, Schema

ROLES: Final = tuple(
    "prompt chosen rejected id user system response_1 response_2 label score_1 score_2 responses scores"
    " response score group tools".split()
)


def check_roles(roles: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError unless `columns=` maps roles (such as "prompt") to names of columns."""
    if not isinstance(roles, Mapping):
        raise InvalidArgumentError(
            f"columns={roles!r:.60} is not a mapping.",
            hint='Give a dict, our name -> yours, such as {"prompt": "question"}.',
            argument="columns",
        )
    for role, column in roles.items():
        if role not in ROLES:
            known = nearest(role, ROLES)
            raise InvalidArgumentError(
                f"columns= has no {role!r}: ours come first.", hint=known, argument="columns"
            )
        if not isinstance(column, str):
            raise InvalidArgumentError(
                f"columns[{role!r}] must be the name of a column.", argument="columns"
            )


def nearest(name: object, known: Sequence[str]) -> str:
    """Return a hint that names the known name most like `name`, if any is, and lists up to 20 of them all."""
    close = get_close_matches(str(name)[:80], known[:1000], n=1)
    start = f"Nearest is {close[0]!r:.80}, of" if close else "It is one of"
    return f"{start} {listed(known) or 'none'}."


def listed(names: Sequence[object]) -> str:
    """Write names as one line for an error: at most 20 of them, each cut to 80 characters; "" for none."""
    return ", ".join(f"{name!r:.80}" for name in names[:20]) + (", …" if len(names) > 20 else "")


class _Names:
    """The columns of the data (`found`), and those of them that already play a role (`taken`).

    A known name (of `usual_column_names`) stands for the column of exactly that name. If there is none, the
    known name stands for the only column that is spelled like it but for case, spaces, dashes and
    underscores.

    Args:
        found: the names of the columns.
        roles: role -> column, as the caller gave them in `columns=`. These columns are taken.
    """

    def __init__(self, found: Iterable[str], roles: Mapping[str, str]) -> None:
        self.found, self.roles = set(found), roles
        self.taken = set(roles.values())
        self._spelled: dict[str, list[str]] = {}
        for name in self.found:
            self._spelled.setdefault(usual.plain_name(name), []).append(name)

    def column(self, known: str) -> str | None:
        """Return the column that a known name stands for, taken or not.

        Returns:
            The column; None if there is none, or if several differ from the known name just in spelling.
        """
        alike = self._spelled.get(usual.plain_name(known))
        if alike is None:  # the usual case, for hundreds of known names
            return None
        return known if known in alike else alike[0] if len(alike) == 1 else None

    def columns(self, known: Iterable[str]) -> list[str]:
        """Return the columns that known names stand for and that are not taken, in the order of the names."""
        found = dict.fromkeys(column for name in known if (column := self.column(name)))
        return [column for column in found if column not in self.taken]

    def pick(self, role: str, known: Sequence[str]) -> dict[str, str]:
        """Find the column of a role: the one that the caller named, else the first free one of known names.

        Returns:
            {role: column}, or {} if there is none.
        """
        if role in self.roles:
            return {role: self.roles[role]}
        free = self.columns(known)
        return {role: free[0]} if free else {}

    def pick_set(self, roles: Sequence[str], known: Iterable[Sequence[str]]) -> dict[str, str]:
        """Find the columns of several roles: those of the first set of known names that are all free.

        A role for which the caller named a column always has this column.

        Args:
            roles: the roles.
            known: sets of known names, the likeliest first. Each set has one name for each role, in their
                order.

        Returns:
            role -> column for all roles, or {} if no set fits.
        """
        given = {role: self.roles[role] for role in roles if role in self.roles}
        if len(given) == len(roles):
            return given
        if isinstance(known, usual.NameSets) and roles[0] not in given:
            known = known.starting_with(self._spelled)
        for names in known:
            columns: dict[str, str] = {}
            for role, name in zip(roles, names, strict=True):
                column = given[role] if role in given else self.column(name)
                if column is None or (column in self.taken and role not in given):
                    break
                columns[role] = column
            if len(set(columns.values())) == len(roles):
                return columns
        return {}

    def label_columns(self) -> list[str]:
        """Return the columns that may hold labels: the one that the caller named, else all free usual ones.

        If the columns are those of a known data set, its label comes first.
        """
        if "label" in self.roles:
            return [self.roles["label"]]
        sets = [columns.split() for columns in usual.DATA_SETS.values()]
        own = (name for columns in sets if self.found.issuperset(columns) for name in columns)
        return self.columns([*(name for name in own if name in usual.LABELS), *usual.LABELS])

    def without(self, columns: Mapping[str, str]) -> _Names:
        """Return a copy in which also the columns of `columns` (role -> column) are taken."""
        rest = copy(self)
        rest.taken = self.taken | set(columns.values())
        return rest


def matches(found: Iterable[str], told: Mapped) -> list[Schema]:
    """List the schemas that the data may have, by the names of its columns alone; the likeliest comes first.

    Args:
        found: the names of the columns. What is not text is ignored.
        told: the caller's options about the data. Each schema has all columns that `columns=` names.

    Returns:
        The schemas; [] if there is none, or if `columns=` names a column that is not in `found` (id and user
        may come in later rows).

    Raises:
        DataError: more than two responses have a column each, and no columns hold chosen and rejected.
    """
    names = _Names([name for name in found if isinstance(name, str)], told.columns)
    may_come_later = {told.columns.get("id"), told.columns.get("user")}
    if not set(told.columns.values()) <= names.found | may_come_later:
        return []
    pairs, two = list(_pair_schemas(names)), list(_two_schemas(names))
    pair = " ".join(pairs[0].columns[role] for role in ("chosen", "rejected")) if pairs else ""
    is_tag = pair.lower() in usual.TAGS
    is_told = {"chosen", "rejected"} <= told.columns.keys()
    made = [*two, *pairs] if is_tag and not is_told else [*pairs, *two]
    if not pairs and not told.columns.keys() & {"response", "responses"}:
        _check_count_of_responses(names.found, told)
    made += _many_schemas(names)
    made = [each for schema in made for each in _with_and_without_more(schema)]
    return [
        replace(schema, told=told)
        for schema in made
        if told.columns.keys() <= schema.columns.keys()
    ]


def _with_and_without_more(schema: Schema) -> Iterator[Schema]:
    """Yield the schema; then, if it has the role "input" or "history", the schema without these roles."""
    yield schema
    more = {role for role in ("input", "history") if schema.columns.get(role) in schema.present}
    if more and schema.kind != "group":  # in a group, they distinguish prompts
        rest = {role: name for role, name in schema.columns.items() if role not in more}
        yield replace(schema, columns=rest)


def prompt_columns(found: Iterable[object]) -> list[str]:
    """Return the columns that have a usual name of prompts, or of what prompts are about.

    They come in the order of `found`.
    """
    known = {*usual.PROMPTS, *usual.HISTORIES, *usual.SUBJECTS}
    return [name for name in found if isinstance(name, str) and usual.plain_name(name) in known]


def _pair_schemas(names: _Names) -> Iterator[Schema]:
    pair = names.pick_set(("chosen", "rejected"), usual.PAIRS)
    if not pair:
        return
    rest = names.without(pair)
    scores = rest.pick_set(("score_chosen", "score_rejected"), usual.SCORED)
    prompt = rest.pick("prompt", usual.PROMPTS)
    beside = {
        **rest.pick("responses", usual.LISTS),
        **rest.pick_set(("response_1", "response_2"), usual.TWO),
        **rest.pick_set(("model_1", "model_2"), usual.MODELS),
        **rest.pick_set(("other_chosen", "other_rejected"), usual.PAIRS),
    }
    compared: dict[str, str] = {}
    if "response_1" in beside and (label := rest.pick("compared_label", usual.LABELS)):
        both = {"compared_1": beside["response_1"], "compared_2": beside["response_2"]}
        compared = {**both, **label}
    if prompt:
        made = _schema("explicit", "pair", rest, {**prompt, **pair, **scores})
        yield replace(made, beside=beside, columns={**made.columns, **compared})
    if not prompt or ("prompt" not in names.roles and prompt["prompt"] != "prompt"):
        made = _schema("implicit", "conversations", rest, {**pair, **scores})
        yield replace(made, beside=beside, columns={**made.columns, **compared})


def _label_pair(names: _Names) -> dict[str, str]:
    """Return the columns of chosen and rejected in the roles label and other_label; {} if there are none.

    In these roles, their cells are read as names of responses that other columns hold.
    """
    pair = names.pick_set(("chosen", "rejected"), usual.PAIRS)
    return {"label": pair["chosen"], "other_label": pair["rejected"]} if pair else {}


def _two_schemas(names: _Names) -> Iterator[Schema]:
    by_pair = _label_pair(names)
    two = names.without(by_pair).pick_set(("response_1", "response_2"), usual.TWO)
    if not two or further_responses(names.found, two, Mapped(names.roles)):
        return
    rest = names.without(two)
    prompt = rest.pick("prompt", usual.PROMPTS)
    if not prompt and "conversation" not in two["response_1"] and "response_1" not in names.roles:
        return
    columns = {**prompt, **two}
    rest = rest.without(prompt)
    models = rest.pick_set(("model_1", "model_2"), usual.MODELS)
    ends = (two["response_1"][-1:], two["response_2"][-1:])
    known = [tuple(f"{s}_{e}" for e in ends) for s in ("score", "rating", "reward")]
    votes_are_scores = two["response_1"] == "human_ref_A"  # SHP, whose labels come from them
    compared = (
        {} if votes_are_scores else rest.pick_set(("compared_score_1", "compared_score_2"), known)
    )
    labelled = [by_pair] if by_pair and "label" not in names.roles else []
    labelled += [{"label": name} for name in rest.without(by_pair).label_columns()]
    for label in labelled:
        others = rest.without({**by_pair, **label}).pick("compared_label", usual.LABELS)
        made = _schema("labelled", "label", rest, {**columns, **label, **models})
        yield replace(made, columns={**made.columns, **others, **compared})
    if hot := rest.pick_set(("label_1", "label_2", "label_3"), usual.ONE_HOT):
        yield _schema("one-hot winners", "one-hot", rest, {**columns, **hot})
    if votes := rest.pick_set(("label", "label_2"), [usual.VOTES]):
        yield _schema("annotations", "votes", rest, {**columns, **votes})
    if scores := rest.pick_set(("score_1", "score_2"), known):
        yield _schema("scored pair", "scores", rest, {**columns, **scores})


def further_responses(
    found: Iterable[object], columns: Mapping[str, str], told: Mapped
) -> list[str]:
    """Return the columns that may hold a third response, such as "response_3", in alphabetical order.

    Their names differ from those of the first two responses in the one character in which these differ.

    Args:
        found: the names of the data's columns.
        columns: role -> column of a schema, which may have the roles response_1 and response_2.
        told: the caller's options about the data.

    Returns:
        The columns; [] if the caller named the columns of the two responses, or if the names of these two do
        not differ in exactly one character.
    """
    one, two = (columns.get(role, "") for role in ("response_1", "response_2"))
    places = [place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if {"response_1", "response_2"} <= told.columns.keys() or len(places) != 1:
        return []
    (place,) = places
    ends = "0123456789" if one[place].isdigit() else "cdefgh" if one[place] == "a" else "CDEFGH"
    alike = {one[:place] + end + one[place + 1 :] for end in ends} - {one, two}
    return sorted(name for name in found if isinstance(name, str) and name in alike)


def _check_count_of_responses(found: Iterable[str], told: Mapped) -> None:
    """Raise DataError if more than two responses have a column each."""
    names = _Names(found, told.columns)
    two = names.pick_set(("response_1", "response_2"), usual.TWO)
    if further := further_responses(names.found, two, told):
        listed = ", ".join(map(repr, sorted([*two.values(), *further])))
        raise DataError(
            f"{listed} hold more than two responses to a prompt.",
            hint="Put them into a list, responses, and their scores into another one, and say which make a"
            " pair with pairs=. Or say which two are meant:",
            argument="columns",
            example={"response_1": "…", "response_2": "…"},
        )


def _many_schemas(names: _Names) -> Iterator[Schema]:
    if responses := names.pick("responses", usual.LISTS):
        rest = names.without(responses)
        scores = rest.pick("scores", usual.LIST_SCORES)
        if prompt := rest.pick("prompt", usual.PROMPTS):
            if (by_pair := _label_pair(rest)) and "label" not in names.roles:
                columns = {**prompt, **responses, **by_pair}
                yield _schema("two in a list", "label", rest, columns)
            rest = rest.without(by_pair)
            if not scores and (label := rest.without(prompt).pick("label", usual.LABELS)):
                yield _schema("two in a list", "label", rest, {**prompt, **responses, **label})
            yield _schema("list of responses", "list", rest, {**prompt, **responses, **scores})
    if (response := names.pick("response", usual.RESPONSES)) and (
        score := names.pick("score", usual.SCORES)
    ):
        rest = names.without({**response, **score})
        if prompt := rest.pick("prompt", usual.PROMPTS):
            group = rest.pick("group", ("interaction_id",))
            columns = {**prompt, **response, **score, **group}
            yield _schema("one response a row", "group", rest, columns)


def _schema(name: str, kind: str, names: _Names, columns: Mapping[str, str]) -> Schema:
    """Make a schema, and add its optional columns: id, user, system message and others.

    The first rows may lack the columns of some optional roles (see `usual_column_names.LATER`). Such a role
    is entered all the same, with the role's own name as the column, until a row has a column for it.

    Args:
        name: the name of the schema. That of a known data set replaces it.
        kind: `Schema.kind`.
        names: the columns of the data.
        columns: role -> column, for the roles that decide the kind of the schema.
    """
    rest = names.without(columns)
    asked = usual.plain_name(columns.get("prompt", ""))
    later = ["id", "user", "system", "tools"]
    later += ["history"] if asked in usual.ASKED else []
    later += ["input"] if asked == "instruction" else []
    optional: dict[str, str] = {}
    for role in (*later, "history") if asked in usual.QUESTIONS else later:
        optional |= rest.pick(role, usual.LATER[role]) or ({role: role} if role in later else {})
    pair = (columns.get("response_1", ""), columns.get("response_2", ""))
    if "conversation" in pair[0]:
        optional |= rest.pick("turn", ("turn",))
    if pair[0] == "human_ref_A":
        optional |= rest.pick_set(("votes_1", "votes_2"), [("score_A", "score_B")])
    safe = [(f"is_{pair[0]}_safe", f"is_{pair[1]}_safe")]
    optional |= rest.pick_set(("safe_1", "safe_2"), safe)
    taken = set(columns.values())
    columns = {**columns, **{r: n for r, n in optional.items() if n not in taken}}
    here = {role: column for role, column in columns.items() if column in names.found}
    others = {
        role: further
        for role in usual.OF_ANY_NAME
        if (further := [n for n in rest.columns(usual.LATER[role]) if n != columns.get(role)])
    }
    present = frozenset(names.found)
    return Schema(_data_set(here) or name, columns, kind, others=others, present=present)


_CHOICE_ROLES: Final = (
    *("chosen", "rejected", "response_1", "response_2", "label", "label_1", "score_1"),
    *("responses", "response"),
)


def with_later_columns(schema: Schema, found: Mapping[Any, object]) -> Schema:
    """Return the schema with which to read a row that has columns that no row before it had.

    A new column plays an optional role (see `usual_column_names.LATER`) that has no column so far. A further
    column for the system message or the user is read in rows where the first one is empty.

    Args:
        schema: the schema of the rows before. It stays as it is.
        found: the row, column -> value.

    Returns:
        A new schema, or `schema` itself if none of the new columns has a known name.

    Raises:
        DataError: by its name, a new column is likelier to hold the prompt or the choice than the column that
            was read in the rows before.
    """
    new = {name for name in found if isinstance(name, str) and name not in schema.present}
    _check_prompt(schema, new)
    known = {name for name in new if usual.plain_name(name) in usual.NAMES_IN_LATER_ROWS}
    if not known:
        return schema
    _check_choice(schema, known)
    names = _Names(known, {})
    columns, others = dict(schema.columns), dict(schema.others)
    for role in usual.LATER.keys() & columns.keys():
        if columns[role] not in schema.present:
            columns |= names.pick(role, usual.LATER[role])
        elif role in usual.OF_ANY_NAME and found.get(columns[role]) in (None, ""):
            others[role] = [*others.get(role, ()), *names.columns(usual.LATER[role])]
    return replace(schema, columns=columns, others=others, present=schema.present | known)


def _check_choice(schema: Schema, new: Set[str]) -> None:
    """Raise DataError if the choice would be read from other columns, had the columns `new` come first."""
    if not any(usual.plain_name(name) in usual.CHOICE_NAMES for name in new):
        return
    read, likelier = (
        {role: each.columns.get(role) for each in found[:1] for role in _CHOICE_ROLES}
        for found in (
            matches(names, schema.told) for names in (schema.present, schema.present | new)
        )
    )
    if read != likelier:
        before = (schema.columns[role] for role in _CHOICE_ROLES if role in schema.columns)
        raise DataError(
            f"the row has {', '.join(map(repr, sorted(new))):.80}, and in the rows before it the choice was"
            f" in {', '.join(map(repr, before))}.",
            hint="Say with columns= which columns hold the choice, or pass a list.",
            argument="columns",
        )


def vague_prompt(schema: Schema) -> list[str]:
    """Return other columns that may hold the prompt, if its own column has a vague name such as "input".

    A column that is read as the user may be among them: "human" may be a person or what a person says.

    Returns:
        The columns in alphabetical order; [] if the prompt's name is not vague, or if the caller named it.
    """
    column = schema.columns.get("prompt", "prompt")
    if "prompt" in schema.told.columns or usual.plain_name(column) not in usual.VAGUE_PROMPTS:
        return []
    taken = {name for role, name in schema.columns.items() if role != "user"}
    return sorted(name for name in schema.present - taken if _last_word(name) in usual.ASKS)


def _last_word(name: str) -> str:
    words = usual.plain_name(name).split("_")
    return words[-2] if len(words) > 1 and words[-1] in ("text", "content") else words[-1]


def _check_prompt(schema: Schema, new: Iterable[object]) -> None:
    column = schema.columns.get("prompt")
    if "prompt" in schema.told.columns or column == "prompt":
        return
    plain = "" if column is None else usual.plain_name(column)
    likelier = usual.PROMPTS[: usual.PROMPTS.index(plain) if plain in usual.PROMPTS else 1]
    for name in new:
        if isinstance(name, str) and usual.plain_name(name) in likelier:
            raise DataError(
                f"the row has a column {name!r:.80}, and in the rows before it the prompt was"
                f" {'in the responses' if column is None else f'{column!r:.80}'}.",
                hint="Say which column it is:",
                argument="columns",
                example={"prompt": "…"},
            )


def widened(schema: Schema, found: Iterable[str]) -> list[Schema]:
    """List the schemas of the same kind for more columns, the likeliest first.

    The columns that `schema` reads keep their roles.

    Args:
        schema: a schema of some of the columns.
        found: the names of all columns of the first rows.

    Returns:
        One schema or more: `schema` itself if no other one fits.

    Raises:
        DataError: more than two responses have a column each.
    """
    held = {role: name for role, name in schema.columns.items() if name in schema.present}
    if further_responses(found, schema.columns, schema.told):
        _check_count_of_responses(found, schema.told)
    schemas = matches(found, schema.told._replace(columns=held))
    alike = [each for each in schemas if each.kind == schema.kind] or [schema]
    return [replace(each, told=schema.told) for each in alike]


def _data_set(columns: Mapping[str, str]) -> str | None:
    """Return the name of the known data set with these columns (role -> column); None if there is none."""
    used = set(columns.values())
    for name, known in usual.DATA_SETS.items():
        if {*known.split()} <= used and columns.get("prompt") in (None, *known.split()):
            return name
    return None


def has_known_label(schema: Schema) -> bool:
    """Whether the schema is that of a known data set, and reads the choice from this data set's label."""
    return schema.columns.get("label") in usual.DATA_SETS.get(schema.name, "").split()
