"""Records of users' personas, and how they are saved to a file and loaded."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, overload

from pydantic import Field, model_validator

from ..api_keys import as_stored
from ..arguments import Flag, check_argument, is_place, read_items
from ..data.file_formats import bounded_lines, missing_file
from ..data.table_display import result_text
from ..data.table_reader import check_settings
from ..exceptions import DataError, InvalidArgumentError, RowsFailedError, quoted, shown_when_made
from ..local.atomic_files import write_file
from ..local.line_marks import NO_MARK, has_mark, marked_lines
from ..local.paths import as_path, check_file, check_replaced, place_errors
from ..preferences.cells import bounded_json
from ..records import Many, Persona, Preference, Record, Usage, unchecked

Method = Literal["summary", "tastes", "verified", "posterior"]


class PairEvidence(Record):
    """What one choice shows about the user.

    Attributes:
        pair: the id of the choice.
        shows: what it shows, in the words of the model.
    """

    pair: str
    shows: str


class UserPersona(Record):
    """The persona of one user, inferred from several choices.

    Attributes:
        user: the user's id.
        background: sentences about what "the user" is like; with the method "tastes", what the user likes
            ("": nothing).
        preferences: sentences about what "the user" likes in a response; with "tastes", what the user
            dislikes ("": nothing).
        evidence: what single choices show.
        pairs: how many choices the persona was made from.
        score: with "verified", the mean score of the kept explanations on other choices. Only explanations
            with a mean above 0 were kept, so the score ranks users but overestimates how well the persona
            predicts. With "posterior", the probability of this persona among the explanations. Else None.
        flags: names of doubts about the persona: see `personainfer.personas.flags`.
    """

    user: str
    background: str
    preferences: str
    evidence: Many[PairEvidence] = ()
    pairs: int
    score: float | None = None
    flags: Many[str] = ()

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (self.background, self.preferences)))


class Hypothesis(Record):
    """An explanation of one choice, and how well it predicts other choices of the user.

    Attributes:
        pair: the id of the choice that is explained.
        persona: the explanation.
        scores: (id of another choice, score) of each; above 0 the explanation predicts the choice.
    """

    pair: str
    persona: Persona
    scores: Many[tuple[str, float]] = ()


class UserRow(Record):
    """One user with the persona, or with the error that says why there is none.

    After an update that failed, the row has both: the earlier persona, and the error.

    Attributes:
        user: the user's id.
        persona: the persona; None: there is none.
        error: what failed; None: nothing did.
        choices: the choices that were used, each with an id. An update adds to them.
        hypotheses: all explanations of these choices, with "verified" and "posterior". An update continues
            from them.

    Raises:
        ValueError: a hypothesis names a choice that is not there; or there are hypotheses, and a choice has
            no id, or that of another one.
    """

    user: str
    persona: UserPersona | None = None
    error: str | None = None
    choices: Many[Preference] = ()
    hypotheses: Many[Hypothesis] = ()

    @model_validator(mode="after")
    def _hypotheses_are_of_the_choices(self) -> Self:
        ids = {choice.id for choice in self.choices}
        if self.hypotheses and (None in ids or len(ids) < len(self.choices)):
            raise ValueError("each of the choices needs an id of its own")
        for one in self.hypotheses:
            if not ids.issuperset((one.pair, *(pair for pair, _ in one.scores))):
                raise ValueError("a hypothesis names a choice that is not among the choices")
        return self


@dataclass(frozen=True)
class UserPersonas(Sequence[UserRow]):
    """The personas of all users: a sequence with one row for each user.

    Attributes:
        rows: the rows, in the order in which users first occur in the data; those of `update` come first.
        skipped: reason -> how many rows of the data were not used: they have no user, cannot be read, repeat
            a choice, or are beyond `pairs_per_user`.
        usage: the calls, tokens and cost of the run.
        settings: the options of the run.

    Raises:
        InvalidArgumentError: a user has two rows.
    """

    rows: tuple[UserRow, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(isinstance(row, UserRow) for row in read_items("rows", self.rows)):
            raise InvalidArgumentError("rows= holds something else than UserRow records.")
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
        if not isinstance(index, slice) and not is_place(index):
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
        """Say how many personas there are, what was left out and why, and the first error."""
        lines = [repr(self)]
        lines += [f"{n:,} rows left out: {why.rstrip('.')}." for why, n in self.skipped.items()]
        for user, reason in list(self.errors.items())[:1]:
            count = f"{len(self.errors):,} of {len(self):,} users"
            lines.append(f"{count} have an error, such as {quoted(user)}: {reason}")
        return result_text(lines[:1], remarks=lines[1:])

    @property
    def personas(self) -> dict[str, UserPersona]:
        """User -> persona; users without a persona are left out."""
        return {row.user: row.persona for row in self.rows if row.persona is not None}

    @property
    def errors(self) -> dict[str, str]:
        """User -> error; users without an error are left out."""
        return {row.user: row.error for row in self.rows if row.error is not None}

    def raise_for_errors(self) -> None:
        """Raise RowsFailedError if a user has an error."""
        if self.errors:
            user, reason = next(iter(self.errors.items()))
            raise RowsFailedError(
                f"{len(self.errors):,} of {len(self):,} users failed; user {user!r}: {reason}"
            )

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a file with a line of JSON for each user. Each line has the settings of the run.

        `usage` and `skipped` are not written. The file appears whole or not at all.

        Args:
            path: the .jsonl file. A file that `save` wrote is replaced.
            overwrite: whether to replace any other file, too.

        Raises:
            InvalidArgumentError: the name has an ending of another format, the file exists and is not from
                `save`, or it cannot be written.
            DataError: a text is not Unicode, or a setting is not text or a number.
            OSError: the disk is full.
        """
        overwrite = check_argument("overwrite", overwrite, Flag)
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
        # Of pydantic: half of a surrogate pair, or the user's own object.
        except ValueError as error:
            raise DataError(
                f"these personas cannot be written as JSON: {error}.",
                hint="Their settings, users and errors have to be text or numbers.",
            ) from None
        with place_errors(path):
            write_file(path, marked_lines(lines, "users"))

    @classmethod
    def load(cls, path: str | Path) -> UserPersonas:
        """Read a file that `save` wrote. `usage` and `skipped` are not in the file, and stay empty.

        Raises:
            DataError: a line is not from `save`, a user has two lines, or lines are of different methods.
            MissingFileError: there is no such file.
            InvalidArgumentError: the path is a folder, or no name of a file.
            OSError: the file cannot be read.
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
    """A line of a saved file: a row and the settings of its run.

    Attributes:
        settings: the settings; {} in files of older versions.
    """

    settings: dict[str, Any] = Field(default_factory=dict)


def _read_row(line: bytes | None, place: str) -> tuple[UserRow, dict[str, Any]]:
    """Parse a line into a row and the settings of its run.

    Raises:
        DataError: it is no line of `UserPersonas.save`. The error names `place`.
    """
    try:
        saved = SavedRow.model_validate_json(bounded_json(line or b""))
        check_settings(saved.settings, is_read=True)
    except ValueError:
        raise DataError(
            f"{place}: this is not a row of UserPersonas.save.",
            hint='Personas from elsewhere are lines such as {"user": …, "persona": "…"}.',
        ) from None
    fields = dict(saved)
    settings = as_stored(fields.pop("settings"))
    return unchecked(UserRow, fields), settings


class ChoicesUsed:
    """The choices that one user's persona was made from, as far as they are known.

    Args:
        choices: choices whose texts are known.
        ids: ids of further choices, whose texts are not known, such as those that the persona's evidence
            names.
    """

    def __init__(self, choices: Iterable[Preference] = (), ids: Iterable[str] = ()) -> None:
        self._texts = {_content(choice) for choice in choices}
        self._by_id = {choice.id: choice for choice in choices}
        self.ids = set(ids) - self._by_id.keys()  # of choices whose texts are not known

    def holds_texts(self, choice: Preference) -> bool:
        """Whether a choice with this prompt and these responses was used."""
        return _content(choice) in self._texts

    def holds(self, choice: Preference, given_id: bool) -> bool:
        """Whether the choice was used, by its texts, or by its id.

        If the texts of the used choice with this id are known, they must also have the same prompt, or share
        a response.

        Args:
            choice: the choice.
            given_id: whether its id is in the data; an id that was made up says nothing.
        """
        if self.holds_texts(choice):
            return True
        if not given_id:
            return False
        same_id = self._by_id.get(choice.id)
        if same_id is None:
            return choice.id in self.ids
        # An id may be a place in the data, which another choice may have, too.
        (prompt, texts), (other_prompt, other_texts) = _content(choice), _content(same_id)
        return prompt == other_prompt or bool(texts & other_texts)


def _content(choice: Preference) -> tuple[str, frozenset[str]]:
    """Return the prompt, and the set of both responses, each by `one_spelling`."""
    prompt = choice.prompt
    turns = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
    said, *responses = map(one_spelling, (turns, choice.chosen, choice.rejected))
    return said, frozenset(responses)


def one_spelling(text: str) -> str:
    """Return a text in lower case, with single spaces, and with accents as parts of their letters."""
    return unicodedata.normalize("NFC", " ".join(text.casefold().split()))
