"""`PersonaTable`: the result of a run, one row for each input row, in the input's order.

As a frame, it has the user's own columns, unchanged, and three more: both personas and the error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..api_keys import as_stored
from ..arguments import Flag, WholeNumber, check_argument, is_place
from ..exceptions import (
    InvalidArgumentError,
    MissingExtraError,
    RowsFailedError,
    shown_when_made,
)
from ..local.paths import as_path, check_file, check_replaced, place_errors
from ..preferences.remarks import remarks
from ..records import PersonaRow, Usage
from .arrow_columns import (
    LISTS_OF_TEXT,
    NOT_OF_VALUES,
    TEXT,
    ColumnType,
    added_array,
    arrow_cells,
    conversion_errors,
    package_of,
    plain_values,
    type_of,
    with_arrays,
)
from .column_values import COLUMNS, TAKEN_NAMES, name_as_text
from .given_personas import read_personas
from .own_columns import (
    OwnColumns,
    WithAdded,
    arrow_names,
    own_columns,
    own_values,
    pandas_frame,
)
from .table_display import (
    DETAILS,
    LEAST_WIDTH,
    MOST_WIDTH,
    detail_columns,
    figures,
    html_page,
    terminal_width,
    text_lines,
    wrapped,
)
from .table_reader import StoredColumns, StoredRows, StoredTable, check_settings
from .table_rows import (
    MemoryRows,
    at_places,
    check_count,
    filtered,
    in_row_order,
    index_labels,
    ordered,
    sampled,
)
from .table_writer import is_table, write_table

if TYPE_CHECKING:
    import datasets
    import pandas
    import polars
    import pyarrow


class PersonaTable(Sequence[PersonaRow]):
    """A sequence of rows, each a pair with its personas, in the order of the input.

    `table[i]` is a row, and `table[i:j]` a table. The table of a file (see `load`) reads rows when they are
    used, and keeps only the row groups in memory that were read last; a damaged file raises DataError then.

    Args:
        rows: the rows.
        original: the user's frame, Arrow table or dataset, with a row for each of `rows`; None: each row
            carries its columns.
        usage: the calls, tokens and cost of the run; None: nothing was sent.
        settings: how the personas were made; None: unknown.
        added: columns beside the personas, by name, each with one value a row; None: there are none.
        kinds: the types of the added columns, by name; a type that is not given is found by the values.

    Attributes:
        usage: as the argument. Of a part of a table, it is that of the whole run.
        settings: as the argument, as a dict.
        added: the columns that `with_columns` added, such as the verdicts of a judge, by name.

    Raises:
        InvalidArgumentError: an added column has values of several types, or of one that no column can hold;
            or a file cannot hold the settings, or `load` would refuse them.
    """

    _is_part = False  # whether the usage is that of more rows

    def __init__(
        self,
        rows: Iterable[PersonaRow],
        *,
        original: Any = None,
        usage: Usage | None = None,
        settings: Mapping[str, Any] | None = None,
        added: Mapping[str, Sequence[Any]] | None = None,
        kinds: Mapping[str, ColumnType] | None = None,
    ) -> None:
        self._rows = rows if isinstance(rows, StoredRows | MemoryRows) else MemoryRows(rows)
        self._original = original
        self.usage = usage or Usage()
        check_settings({} if settings is None else settings)
        self.settings = dict(settings or {})
        self.added = dict(added or {})
        # Determined from the whole column: a slice of it may hold nothing but None.
        self._kinds = {
            name: (kinds or {}).get(name) or type_of(name, v) for name, v in self.added.items()
        }

    @classmethod
    def collect(
        cls,
        rows: Iterable[PersonaRow],
        *,
        original: Any,
        about: Callable[[], tuple[Usage, Mapping[str, Any]]],
        dropped: Collection[int] | None = None,
        output: Path | None = None,
    ) -> PersonaTable:
        """Make a table from a stream of rows, which is read to its end.

        Args:
            rows: the rows in the order of the input.
            original: the input's own frame or dataset; None: the rows have their columns.
            about: a function that returns the usage and the settings. It is called after the last row;
                twice if there is an `output`.
            dropped: the positions of input rows that are left out. It is filled while `rows` is read. None:
                no row is left out.
            output: a .parquet file to which the rows are written, in bounded memory; the table reads them
                from there. None: the rows are kept in memory.

        Raises:
            OSError: the disk is full, or the place of `output` cannot be written to.
        """
        if output is None:
            made: Sequence[PersonaRow] = MemoryRows(rows)
        else:
            columns = own_columns(original, gaps=dropped is not None)
            write_table(output, ((row.index, row) for row in rows), columns, about)
            file = StoredTable(output)
            made, original = file.rows, file.columns if original is None else original
        if dropped and not isinstance(
            original, OwnColumns
        ):  # a file has only the rows that were kept
            count = len(made) + len(dropped)
            original = at_places(original, [n for n in range(count) if n not in dropped])
        usage, settings = about()
        return cls(made, original=original, usage=usage, settings=settings)

    def __getstate__(self) -> dict[str, Any]:
        # Where the table is unpickled, the file may not be.
        return {**self.__dict__, "_rows": MemoryRows(self._rows)}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PersonaRow: ...
    @overload
    def __getitem__(self, index: slice) -> PersonaTable: ...
    def __getitem__(self, index: int | slice) -> PersonaRow | PersonaTable:
        if isinstance(index, slice):
            return self._cut(range(len(self))[index])
        if not is_place(index):
            raise InvalidArgumentError(
                f"table[{index!r:.60}]: give the place of a row, or a slice.",
                hint="A column is in table.to_pandas(); table.filter() picks rows.",
            )
        row: PersonaRow = self._rows[index]
        return row

    def __iter__(self) -> Iterator[PersonaRow]:
        return iter(self._rows)

    def head(self, n: int = 5) -> PersonaTable:
        """Return a table of the first n rows, or of all rows if there are fewer.

        Its `usage` and `settings` are those of the whole table.

        Raises:
            InvalidArgumentError: n is not a whole number from 0 up.
        """
        return self[: check_count("head", n)]

    def sample(self, n: int, *, seed: int = 0) -> PersonaTable:
        """Return a table of n rows drawn at random without replacement, in the order of this table.

        The same seed draws the same rows. `usage` and `settings` are those of the whole table.

        Raises:
            InvalidArgumentError: n is not a whole number from 0 up, or the table has fewer rows; or the seed
                is not a whole number.
        """
        return self._cut(sampled(len(self), n, seed))

    def filter(self, keep: Callable[[PersonaRow], object] | Iterable[bool | None]) -> PersonaTable:
        """Return a table of the rows that are kept. Its `usage` and `settings` are those of the whole table.

        Args:
            keep: a function of a row, such as `lambda row: not row.flags`; or one boolean a row, in a list,
                an array or a series. A pandas series is matched to the rows by its index. None counts as
                False, so that `table.filter(table.added["chosen_verified"])` works.

        Raises:
            InvalidArgumentError: values that are not booleans, or not one a row; or a pandas series whose
                index is not the table's.
        """
        keep = in_row_order("filter()", keep, self._original, len(self))
        return self._cut(filtered(self._rows, keep))

    def sort(
        self, key: str | Callable[[PersonaRow], Any], *, reverse: bool = False
    ) -> PersonaTable:
        """Return a table of all rows in the order of a key.

        Rows with equal keys keep their order. Rows whose key is None or NaN come last, also if `reverse`.

        Args:
            key: a function of a row, or the name of a column: of the data, of the personas, or one that was
                added, such as "chosen_verified_score".
            reverse: the largest key first.

        Raises:
            InvalidArgumentError: there is no such column, or its values cannot be compared.
        """
        if not isinstance(key, str) and not callable(key):
            raise InvalidArgumentError(
                f"key={key!r:.60} is neither the name of a column nor a function of a row.",
                argument="key",
            )
        values = self._column(key) if isinstance(key, str) else list(map(key, self._rows))
        return self._cut(ordered(values, check_argument("reverse", reverse, Flag)))

    def _cut(self, places: Sequence[int]) -> PersonaTable:
        """Return a table of the rows at some positions, in their order, with their columns."""
        part = self._like(
            self._rows.at(places),
            original=at_places(self._original, places),
            added={name: [v[place] for place in places] for name, v in self.added.items()},
        )
        part._is_part |= len(places) < len(self)
        return part

    def _like(self, rows: Iterable[PersonaRow], **changed: Any) -> PersonaTable:
        """Return a table of these rows; the arguments that are not in `changed` are as of this table."""
        same: dict[str, Any] = {
            "original": self._original,
            "usage": self.usage,
            "settings": self.settings,
            "added": self.added,
            "kinds": self._kinds,
        }
        table = PersonaTable(rows, **(same | changed))
        table._is_part = self._is_part
        return table

    def _column(self, name: str) -> Sequence[Any]:
        """Return the values of a column by its name: an added one, one of the personas, or one of the data.

        Raises:
            InvalidArgumentError: the table has no such column.
        """
        if name in self.added:
            return self.added[name]
        if name in COLUMNS:
            return self._rows.texts()[name]
        own = self._own_arrow()
        if name not in own.column_names:
            known = ", ".join(map(repr, [*own.column_names, *COLUMNS, *self.added]))
            raise InvalidArgumentError(
                f"the table has no column {name!r}.", hint=f"It has {known}."
            )
        return arrow_cells(own.column(name))

    @property
    def errors(self) -> list[PersonaRow]:
        """The rows that have an error."""
        return [self._rows[place] for place in self.failed_places()]

    def failed_places(self) -> list[int]:
        """Return the positions, in this table, of the rows that have an error.

        `row.index` is the position in the input, which differs in a part of a table.
        """
        return self._rows.failed()

    def with_rows(
        self, changed: Mapping[int, PersonaRow], *, usage: Usage, settings: Mapping[str, Any]
    ) -> PersonaTable:
        """Return a new table in which some rows are replaced.

        The changed rows get None in added columns, since those values describe the old rows.

        Args:
            changed: position in this table, from 0 -> the new row.
            usage, settings: those of the new table.
        """
        added = {
            name: [None if place in changed else value for place, value in enumerate(values)]
            for name, values in self.added.items()
        }
        rows = self._rows.with_rows(changed)
        return self._like(rows, usage=usage, settings=settings, added=added)

    def raise_for_errors(self) -> None:
        """Raise an error if a row failed. A side whose choice no candidate explains is not a failure.

        Raises:
            RowsFailedError: how many rows failed, and the error of the first of them.
        """
        failed = self.errors
        if failed:
            raise RowsFailedError(
                f"{len(failed)} of {len(self)} rows failed; the first is row"
                f" {failed[0].index}: {failed[0].error}",
                hint="See table.errors.",
            )

    def with_columns(
        self,
        columns: Mapping[str, Iterable[Any]],
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> PersonaTable:
        """Return a table with more columns beside the personas.

        The new columns are in every frame and in the saved file. This table itself does not change.

        Args:
            columns: name -> one value a row: text, numbers or booleans of one type, or None, in a list, an
                array or a series. A pandas series is matched to the rows by its index. A column that was
                added before is replaced.
            settings: how the columns were made. They are added to the table's settings. None: nothing is
                added.

        Raises:
            InvalidArgumentError: a wrong length or type; a name that is not text, that the table needs, or
                that a column of the input or a level of its pandas index has; or a pandas series whose index
                is not the table's; or settings that cannot be saved.
        """
        _check_columns(columns)
        check_settings({} if settings is None else settings)
        self.check_free(columns)
        new: dict[str, list[Any]] = {}
        for name, given in columns.items():
            ordered_values = in_row_order(f"the column {name}", given, self._original, len(self))
            try:
                values = new[name] = plain_values(ordered_values)
            except TypeError as error:
                raise InvalidArgumentError(
                    f"the values of the column {name} cannot be read: {error}",
                    hint="Give str, bool, int or float, one of them, or None.",
                ) from None
            if len(values) != len(self):
                raise InvalidArgumentError(
                    f"the column {name} has {len(values)} values, and the table {len(self)} rows."
                )
        return self._like(
            self._rows,
            settings={**self.settings, **(settings or {})},
            added={**self.added, **new},
            kinds={name: kind for name, kind in self._kinds.items() if name not in new},
        )

    def check_free(self, names: Iterable[str]) -> None:
        """Raise InvalidArgumentError if the input or the table has a column of one of these names.

        A level of a pandas index counts as a column. The names are compared as they are in a file.
        """
        if isinstance(self._original, StoredColumns):
            own = set(self._original.arrow_names)
        else:
            own = set(arrow_names(self._original, self._rows))
        for name in names:
            if name in own or name in TAKEN_NAMES:
                raise InvalidArgumentError(
                    f"the data has a column {name} already, or a pandas index of this name.",
                    hint="Rename it: it would be lost.",
                )

    def to_pandas(self, *, details: bool = False) -> pandas.DataFrame:
        """Return the input's columns and index, chosen_persona, rejected_persona, persona_error, and `added`.

        Columns of whole numbers, some of which are missing, are of the type "Int64".

        Args:
            details: also what the personas are made of: chosen_trait, chosen_preference, chosen_evidence,
                chosen_flags (a list of text), and the same of the rejected side; and persona_unexplained: a
                sentence for each side whose choice no candidate explains, which is not an error.

        Raises:
            MissingExtraError: pandas is not installed.
            InvalidArgumentError: with `details`, the data, or an added column, has such a name itself.
            DataError: a saved table is damaged, or pandas cannot hold the data's own columns.
        """
        pd = MissingExtraError.require("pandas")
        own = self._original
        if own is None:
            own = [own_values(row) for row in self._rows]
        elif package_of(own) == "datasets" or isinstance(own, StoredColumns):
            own = self._own_arrow()
        with conversion_errors("pandas"):
            frame = pandas_frame(own, len(self))
        new = {  # an array instead of a series would become text or not with its values
            name: pd.Series(array.to_pylist(), index=frame.index, dtype=kind.pandas)
            for name, (array, kind) in self._new_columns(details).items()
        }
        return frame.assign(**new)

    def to_polars(self, *, details: bool = False) -> polars.DataFrame:
        """Return a polars frame: the input's columns, both personas, the error, and `added`.

        Args:
            details: also the parts of the personas, as for `to_pandas`.

        Raises:
            MissingExtraError: polars is not installed.
            InvalidArgumentError: with `details`, the data, or an added column, has such a name itself.
            DataError: a saved table is damaged, or polars cannot hold the data's own columns.
        """
        pl = MissingExtraError.require("polars")
        if package_of(self._original) == "polars":
            new = [
                pl.Series(name, array) for name, (array, _) in self._new_columns(details).items()
            ]
            return self._original.with_columns(new)  # type: ignore[no-any-return]
        with conversion_errors("polars"):
            return pl.from_arrow(self.to_arrow(details=details))  # type: ignore[no-any-return]

    def to_arrow(self, *, details: bool = False) -> pyarrow.Table:
        """Return an Arrow table: the input's columns, both personas, the error, and `added`.

        The columns of personas and errors are strings, even if all values are null. A column of the input
        whose values have no common type is JSON text.

        Args:
            details: also the parts of the personas, as for `to_pandas`.

        Raises:
            InvalidArgumentError: with `details`, the data, or an added column, has such a name itself.
            DataError: a saved table is damaged.
        """
        own, new = self._own_arrow(), self._new_columns(details)
        return with_arrays(own, {name: array for name, (array, _) in new.items()})

    def to_hf(self, *, details: bool = False) -> datasets.Dataset:
        """Return a Hugging Face dataset: the input's columns, both personas, the error, and `added`.

        Columns of a dataset keep their features.

        Args:
            details: also the parts of the personas, as for `to_pandas`.

        Raises:
            MissingExtraError: datasets is not installed.
            InvalidArgumentError: with `details`, the data, or an added column, has such a name itself.
            DataError: a saved table is damaged, or datasets cannot hold the data's own columns.
        """
        hf = MissingExtraError.require("datasets")
        if package_of(self._original) != "datasets":
            table = self.to_arrow(details=details)
            with conversion_errors("datasets"):
                try:
                    return hf.Dataset(table)
                except NOT_OF_VALUES:
                    raise
                except Exception:  # features of a file that this version of datasets does not know
                    return hf.Dataset(table.replace_schema_metadata(None))
        result = self._original
        for name, (array, _) in self._new_columns(details).items():
            if name in result.column_names:
                result = result.remove_columns(name)
            result = result.add_column(name, array)
        return result

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the table to a Parquet file, whole or not at all.

        `load` restores the table, and any Parquet reader reads the file.

        Args:
            path: the .parquet file. Its folder is made if there is none. A table of personas at the path is
                replaced.
            overwrite: replace a file that is not a table of personas, too.

        Returns:
            The path.

        Raises:
            InvalidArgumentError: another ending, a file that holds something else, a place that cannot be
                written to, or a column of the data that is named personainfer, as the column of the records.
            DataError: this is a saved table, whose file is damaged.
            OSError: the disk is full.
        """
        overwrite = check_argument("overwrite", overwrite, Flag)
        path = as_path(path)
        if path.suffix != ".parquet":
            raise InvalidArgumentError(
                f"save({str(path)!r}): a table is saved as .parquet.",
                hint="For another format use to_pandas(), to_polars() or to_hf().",
            )
        check_file(path)
        if not overwrite:
            check_replaced(path, is_table, "a table of personas")
        rows = self._rows.own_columns() if isinstance(self._rows, MemoryRows) else ()
        own = own_columns(self._original, rows=rows)
        columns = WithAdded(own, self.added, self._kinds)
        with place_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(
                path,
                enumerate(self._rows),
                columns,
                lambda: (self.usage, self.settings),
                added=list(self.added),
                is_part=self._is_part,
            )
        return path

    @classmethod
    def from_data(
        cls,
        data: object,
        *,
        chosen_persona: str | None = "chosen_persona",
        rejected_persona: str | None = "rejected_persona",
        columns: Mapping[str, str] | None = None,
    ) -> PersonaTable:
        """Make a table of personas that somebody else made, with everything that inferred tables can do.

        The data is read at once, and no model is called. A row has an error if it has no persona, or one that
        cannot be read.

        Args:
            data: preference data of any kind that `infer_personas` reads, with the personas beside it.
            chosen_persona, rejected_persona: the columns with the personas of each side: sentences (see
                `Persona.parse`), or records with `trait`, `preference` and, if they are known, `evidence` and
                `flags`. None: this side has no personas.
            columns: our names -> your names of the other columns, as for `infer_personas`. If a run made the
                personas, read the sides as it did: give its `columns`, or as data `read_preferences` with its
                `labels`. The lines of the command infer tell these themselves.

        Raises:
            InvalidArgumentError: both names are None, a name is not a column, or the data has a column
                `chosen_persona` or `rejected_persona` that is not read, and that the table would replace; or
                the data is of no supported kind, or is a saved table whose run read the sides the other way
                round.
            DataError: the data is not recognised as preference data.
            MissingExtraError: `datasets` is not installed, and a data set of the hub is read.
        """
        names = {"chosen": chosen_persona, "rejected": rejected_persona}
        rows, original = read_personas(data, names, columns)
        sides = [side for side, name in names.items() if name is not None]
        settings = {"sides": sides, "personas_from": {side: names[side] for side in sides}}
        return cls(rows, original=original, settings=settings)

    @classmethod
    def load(cls, path: str | Path) -> PersonaTable:
        """Open a table that `save` or `infer_personas(output=…)` wrote. Rows are read when they are used.

        The added columns are read at once.

        Raises:
            DataError: the file is not a table of personas, or is damaged.
            InvalidArgumentError: there is no such file (`MissingFileError`), or it is a folder, a pipe or a
                device.
            OSError: the system cannot open or read the file.
        """
        file = StoredTable(as_path(path))
        table = cls(
            file.rows,
            original=file.columns,
            usage=file.usage,
            settings=as_stored(file.settings),
            added=file.added,
            kinds=file.added_kinds,
        )
        table._is_part = file.is_part
        return table

    @shown_when_made
    def __repr__(self) -> str:
        parts = [f"{len(self)} rows", f"{len(self.failed_places())} with an error"]
        flagged, unexplained = self._rows.flagged(), self.count_unexplained()
        if "personas_from" in self.settings:  # nobody was asked, and no flags were looked for
            made = "personas of the data"
            parts += [f"{flagged} flagged"] if flagged else []
        else:
            run = "of a run with " if self._is_part else ""
            made = f"{run}{self.usage.calls} calls, {self.usage.cached} from the cache"
            parts.append(f"{flagged} flagged")
        parts += [f"{unexplained} unexplained"] if unexplained else []
        return f"PersonaTable({', '.join(parts)}; {made})"

    def count_unexplained(self) -> int:
        """Count the rows with a side whose choice no candidate explains: see `PersonaRow.unexplained`."""
        return self._rows.unexplained()

    def __str__(self) -> str:
        return self.format(limit=10, width=terminal_width())

    def format(self, *, limit: int | None = None, width: int = 100) -> str:
        """Write the rows as text to read.

        Each row has its prompt, the beginning of both responses, and the persona that prefers each; a row
        without personas has its prompt and the error. Counts of the whole table, and remarks on how the data
        was read, come last.

        Args:
            limit: the most rows to show; None: all.
            width: the columns of a line at most; less than 24 counts as 24, and more than 10,000 as 10,000.

        Raises:
            InvalidArgumentError: `limit` is not a whole number from 0 up, or `width` no whole number.
        """
        first = self._rows if limit is None else self._rows[: check_count("format", limit)]
        width = check_argument("width", width, WholeNumber)
        width = min(max(width, LEAST_WIDTH), MOST_WIDTH)
        labels: Iterable[str | None] = index_labels(self._original, first) or repeat(None)
        named = zip(first, labels, strict=False)
        lines = [line for row, label in named for line in (*text_lines(row, width, label), "")]
        if len(first) < len(self):
            lines.append(f"… and {len(self) - len(first)} rows more")
        said = [repr(self), *remarks(self.settings.get("read") or {})]
        return "\n".join([*lines, *(line for text in said for line in wrapped(text, width))])

    def _repr_html_(self) -> str:
        first = self._rows[:10]
        labels = index_labels(self._original, first)
        hidden = len(self) - len(first)
        judged = figures(self.added, self.settings.get("verified_neither", 0.0))
        told = [*remarks(self.settings.get("read") or {}), *judged]
        return html_page(first, repr(self), told, hidden, labels)

    def _new_columns(self, details: bool) -> dict[str, tuple[pyarrow.Array[Any], ColumnType]]:
        """Return the columns that the table adds to the input's: name -> (values, type).

        Raises:
            InvalidArgumentError: with `details`, the data, or an added column, has the name of such a part.
        """
        columns: dict[str, Sequence[Any]] = {**self._rows.texts()}
        if details:
            self.check_free(DETAILS)
            if clash := sorted(self.added.keys() & set(DETAILS)):
                raise InvalidArgumentError(
                    f"the table has an added column {clash[0]}, which details=True would replace.",
                    hint="Add it by another name.",
                )
            columns |= detail_columns(self._rows)
        columns |= self.added
        kinds = {name: LISTS_OF_TEXT for name in DETAILS if name.endswith("_flags")} | self._kinds
        typed = ((name, values, kinds.get(name, TEXT)) for name, values in columns.items())
        return {name: (added_array(values, kind), kind) for name, values, kind in typed}

    def _own_arrow(self) -> pyarrow.Table:
        return own_columns(self._original).piece(range(len(self)), self._rows)


def _check_columns(columns: object) -> None:
    """Raise InvalidArgumentError unless `columns` maps names that are texts to values in an order."""
    if not isinstance(columns, Mapping):
        raise InvalidArgumentError(
            f"columns={columns!r:.60} is not a mapping of names to values.", argument="columns"
        )
    for name, values in columns.items():
        if not isinstance(name, str):
            raise InvalidArgumentError(
                f"columns= names a column {name!r:.60}, which is not text.", argument="columns"
            )
        if name != name_as_text(name):
            raise InvalidArgumentError(
                f"columns= names a column {name!r:.60}, which holds half of a surrogate pair.",
                argument="columns",
            )
        has_no_order = isinstance(values, str | bytes | Mapping | Set)
        if has_no_order or not isinstance(values, Iterable):
            raise InvalidArgumentError(
                f"columns[{name!r}]={values!r:.60} is not one value a row.",
                hint="Give a list, an array or a series.",
                argument="columns",
            )
