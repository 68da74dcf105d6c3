"""Personas of users as frozen records, which can be saved to a file and loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

from pydantic import Field

from ..api_keys import as_stored
from ..data.files import bounded_lines, missing_file
from ..data.table_reader import check_settings
from ..exceptions import DataError, InvalidArgumentError, RowsFailedError, shown_when_made, visible
from ..local.atomic_files import as_path, check_file, check_replaced, place_errors, write_file
from ..local.line_marks import NO_MARK, has_mark, marked_lines
from ..preferences.cells import bounded_json
from ..records import Persona, Preference, Record, Usage

Method = Literal["summary", "tastes", "verified", "posterior"]


class PairEvidence(Record):
    """What one choice shows about the user. `pair` is the id of the preference."""

    pair: str
    shows: str


class UserPersona(Record):
    """One user, as several choices show them.

    Attributes:
        background: what the user is like, as sentences about "the user"; for "tastes", what the user
            likes.
        preferences: what the user likes in a response, likewise; for "tastes", what the user dislikes.
        evidence: the choices that support them.
        pairs: how many choices the persona rests on.
        score: for "verified" the mean score of the kept explanations on other choices. It is above 0
            because those were kept: it ranks users, and does not estimate how well the persona
            predicts. For "posterior" the probability of this persona among the candidates; None for
            the others.
        flags: those of `personainfer.personas.flags`.
    """

    user: str
    background: str
    preferences: str
    evidence: tuple[PairEvidence, ...] = ()
    pairs: int
    score: float | None = None
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (self.background, self.preferences)))


class Hypothesis(Record):
    """An explanation of one choice, and its scores on the user's other pairs, each as (id, score)."""

    pair: str
    persona: Persona
    scores: tuple[tuple[str, float], ...] = ()


class UserRow(Record):
    """One user with the persona, or with the error that says why there is none.

    After an update that failed, the earlier persona and the error. `choices` are the pairs that were
    used, each with an id; `hypotheses` are all explanations. An update continues from both.
    """

    user: str
    persona: UserPersona | None = None
    error: str | None = None
    choices: tuple[Preference, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True)
class UserPersonas(Sequence[UserRow]):
    """One row for each user, in the order in which users first occur in the data.

    `skipped` counts rows of the data that were not used, by reason: rows without a user, rows that cannot
    be read, and choices of a user beyond `pairs_per_user`. `usage` sums up the calls; `settings` are the
    options of the run.
    """

    rows: tuple[UserRow, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = Counter(row.user for row in self.rows)
        twice = next((user for user, count in counts.items() if count > 1), None)
        if twice is not None:
            raise InvalidArgumentError(
                f"rows= has the user {twice!r} twice.", hint="A user has one row.", argument="rows"
            )

    @overload
    def __getitem__(self, index: int) -> UserRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[UserRow, ...]: ...
    def __getitem__(self, index: int | slice) -> UserRow | tuple[UserRow, ...]:
        if isinstance(index, str):
            raise InvalidArgumentError(
                f"users[{index!r:.60}]: rows have numbers.", hint="By user: users.personas[…]."
            )
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[UserRow]:
        return iter(self.rows)

    @shown_when_made
    def __repr__(self) -> str:
        left = sum(self.skipped.values())
        told = f"; {left:,} rows left out" if left else ""
        return f"UserPersonas({len(self.personas):,} personas of {len(self):,} users{told})"

    def __str__(self) -> str:
        """How many personas there are, what was left out and why, and the first error."""
        lines = [repr(self)]
        lines += [f"{n:,} rows left out: {why.rstrip('.')}." for why, n in self.skipped.items()]
        for user, reason in list(self.errors.items())[:1]:
            count = f"{len(self.errors):,} of {len(self):,} users"
            lines.append(f"{count} have an error, such as {user!r}: {reason}")
        return "\n".join(map(visible, lines))

    @property
    def personas(self) -> dict[str, UserPersona]:
        """The personas by user; users without one are left out."""
        return {row.user: row.persona for row in self.rows if row.persona is not None}

    @property
    def errors(self) -> dict[str, str]:
        """The errors by user."""
        return {row.user: row.error for row in self.rows if row.error is not None}

    def raise_for_errors(self) -> None:
        """Raise RowsFailedError if there is an error."""
        if self.errors:
            user, reason = next(iter(self.errors.items()))
            raise RowsFailedError(
                f"{len(self.errors):,} of {len(self):,} users failed; user {user!r}: {reason}"
            )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a line of JSON for each user, with the settings of the run in each.

        Args:
            path: the file, .jsonl. Personas of users that are there are replaced.
            overwrite: replace a file that holds something else, too.

        Raises:
            InvalidArgumentError: the name says that the file is of another format, or the file holds
                something else.
        """
        path = as_path(path)
        if path.suffix not in _JSON_LINES:
            raise InvalidArgumentError(
                f"path={str(path)!r}: personas of users are saved as JSON lines.",
                hint="Name a file that ends in .jsonl.",
                argument="path",
            )
        check_file(path)
        if not overwrite:
            check_replaced(
                path,
                lambda there: has_mark(there, "users"),
                "a file of UserPersonas.save",
                otherwise=f"or pass overwrite=True ({NO_MARK})",
            )
        settings = {name: v for name, v in self.settings.items() if name != "cuts"}
        saved = (SavedRow(**vars(row), settings=settings) for row in self.rows)
        try:
            lines = [row.model_dump_json() + "\n" for row in saved]
        except (
            ValueError
        ) as error:  # of pydantic: half of a surrogate pair, or an object of your own
            raise DataError(
                f"these personas cannot be written as JSON: {error}.",
                hint="Their settings, users and errors have to be text or numbers.",
            ) from None
        with place_errors(path):
            write_file(path, marked_lines(lines, "users"))

    @classmethod
    def load(cls, path: str | Path) -> UserPersonas:
        """Read a file of `save`. The usage of the run is not in it.

        Raises:
            DataError: a line is not what `save` writes, a user has two lines, or two lines were made by
                different methods.
            MissingFileError: there is no such file.
        """
        path = as_path(path)
        if not path.exists():
            raise missing_file(path, _JSON_LINES)
        check_file(path)
        rows: dict[str, UserRow] = {}
        settings: dict[str, Any] | None = None
        with open(path, "rb") as file:
            for number, line in enumerate(bounded_lines(file), 1):
                row, made = _read_row(line, f"{path}, line {number}")
                if row.user in rows:
                    raise DataError(
                        f"{path}, line {number}: the user {row.user!r} has a line before.",
                        hint="Remove one of them: a user has one persona.",
                    )
                rows[row.user] = row
                settings = made if settings is None else settings
                if made.get("method") != settings.get("method"):
                    raise DataError(
                        f"{path}, line {number}: made by the method {made.get('method')!r}, and the lines"
                        f" before by {settings.get('method')!r}.",
                        hint="Keep personas of different methods in files of their own.",
                    )
        return cls(tuple(rows.values()), settings=settings or {})


_JSON_LINES = ("", ".jsonl", ".json", ".ndjson")  # the endings of a file of JSON lines


class SavedRow(UserRow):
    """A line of a saved file: the row, and how the run was set. Files of older versions lack it."""

    settings: dict[str, Any] = Field(default_factory=dict)


def _read_row(line: bytes | None, place: str) -> tuple[UserRow, dict[str, Any]]:
    """The row and the settings of a line."""
    try:
        saved = SavedRow.model_validate_json(bounded_json(line or b""))
        check_settings(saved.settings)
    except ValueError:
        raise DataError(
            f"{place}: this is not a row of UserPersonas.save.",
            hint="A persona as text is a line with user and persona alone.",
        ) from None
    fields = dict(saved)
    settings = as_stored(fields.pop("settings"))
    return UserRow.unchecked(fields), settings


class ChoicesUsed:
    """What is known of the choices that one user's persona was made from.

    Args:
        choices: with their texts.
        ids: of choices whose texts are not known, such as those that the evidence names.
    """

    def __init__(self, choices: Iterable[Preference] = (), ids: Iterable[str] = ()) -> None:
        self.ids = set(ids)  # of choices whose texts are not known
        self._texts = {_content(choice) for choice in choices}
        self._by_id = {choice.id: choice for choice in choices}
        self.ids -= {id for id in self._by_id if id is not None}

    def holds_texts(self, choice: Preference) -> bool:
        """Whether a choice with this prompt and these responses was used."""
        return _content(choice) in self._texts

    def holds(self, choice: Preference, given_id: bool) -> bool:
        """Whether the choice was used. An id counts if the data gave it, and nothing speaks against it."""
        if self.holds_texts(choice):
            return True
        if not given_id:
            return False
        same_id = self._by_id.get(choice.id)
        if same_id is None:
            return choice.id in self.ids
        # Where the data has no ids, places stand in for them: the texts must be related, too.
        (prompt, texts), (other_prompt, other_texts) = _content(choice), _content(same_id)
        return prompt == other_prompt or bool(texts & other_texts)


def _content(choice: Preference) -> tuple[str, frozenset[str]]:
    """The prompt and both responses, whichever was chosen, without differences of white space and case."""
    prompt = choice.prompt
    turns = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
    said, *responses = (
        " ".join(text.casefold().split()) for text in (turns, choice.chosen, choice.rejected)
    )
    return said, frozenset(responses)
