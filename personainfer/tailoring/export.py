"""`export_personas`: write a table of personas as a data set to train on, with a dataset card.

The rows are those of `tailoring_rows`, in Parquet or JSONL, as `datasets.load_dataset` and TRL's command line
read them.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..data.table import PersonaTable
from ..data.table_writer import is_table
from ..exceptions import DataError, InvalidArgumentError, visible_in_json
from ..local.atomic_files import (
    as_path,
    check_file,
    check_replaced,
    place_errors,
    put_in_place,
    read_small_file,
    unfinished_folder,
    write_file,
)
from ..local.line_marks import NO_MARK, has_mark, marked_lines
from ..personas.placement import PersonaPlace
from ..preferences.turns import TOOL_DEFINITIONS
from .dataset_card import LONG, MARK, dataset_card
from .rows import PersonaSide, TailoringRows, check_shares, tailoring_rows

if TYPE_CHECKING:
    import pyarrow

_CARD = "README.md"
_FILES = (".jsonl", ".parquet")
_BYTES_A_TOKEN = 4
_UNLIMITED = ("grpo", "few-shot")
_DATA = re.compile(r"^    path: (data/\w+\.parquet)$", re.MULTILINE)  # a file that a card names
_SPLIT = re.compile(r"[A-Za-z_]\w*")  # what Hugging Face takes for the name of a split


class ExportFormat(NamedTuple):
    """A format by name: the rows of `tailoring_rows`, their columns, and who trains on them."""

    rows: Any  # a `tailoring.Format`
    columns: str
    trainers: str = ""


EXPORT_FORMATS: dict[str, ExportFormat] = {
    "trl-dpo": ExportFormat("dpo", "prompt, chosen, rejected", "DPOTrainer"),
    "trl-sft": ExportFormat("sft", "prompt, completion", "SFTTrainer"),
    "trl-kto": ExportFormat("kto", "prompt, completion, label", "KTOTrainer"),
    "trl-reward": ExportFormat("reward", "chosen, rejected", "RewardTrainer"),
    "trl-grpo": ExportFormat("grpo", "prompt", "GRPOTrainer, RLOOTrainer"),
    "few-shot": ExportFormat("few-shot", "messages, or text where the persona is in plain text"),
}

_EXPORT = b"personainfer_export"  # in the schema of a Parquet file: its format


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        files: by split; `card` is beside them in a folder, and None where one file was written.
        rows: by split.
        left_out: reason -> how many pairs with one persona (see `tailoring_rows`).
        long_prompts: rows whose prompt takes 1,024 tokens or more, at four bytes a token: the default
            `max_length` of TRL's trainers for DPO, SFT, KTO and rewards is at most that. 0 for
            formats without such a limit.
    """

    files: Mapping[str, Path]
    card: Path | None
    rows: Mapping[str, int]
    left_out: Mapping[str, int]
    long_prompts: int

    def __str__(self) -> str:
        lines = [
            f"{name}: {n:,} rows {self.files.get(name, '')}".rstrip()
            for name, n in self.rows.items()
        ]
        lines += [f"card: {self.card}"] if self.card else []
        lines += [f"left out: {count:,} {reason}" for reason, count in self.left_out.items()]
        if self.long_prompts:
            lines.append(
                f"{self.long_prompts:,} prompts of 1,024 tokens or more: raise TRL's max_length"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        card = None if self.card is None else str(self.card)
        paths = {name: str(path) for name, path in self.files.items()}
        return {**vars(self), "files": paths, "card": card}


def export_personas(
    table: PersonaTable,
    path: str | Path | IO[str],
    *,
    format: str = "trl-dpo",
    persona: PersonaSide = "chosen",
    persona_in: PersonaPlace = "system",
    template: str | None = None,
    drop_flagged: bool | Collection[str] = False,
    splits: Mapping[str, float] | None = None,
    seed: int = 0,
    title: str = "Preferences with personas",
    overwrite: bool = False,
) -> Export:
    """Write rows to train on, and a Hugging Face data set card beside them.

    Args:
        table: of `infer_personas`; the card has accuracies if it is the `.table` of `verify_personas`.
        path: a folder, which `datasets.load_dataset` and `trl … --dataset_name` read: it gets
            `data/<split>.parquet` and the card `README.md`; or one file, .jsonl or .parquet, or an open
            text file (JSONL), without a card.
        format: one of `EXPORT_FORMATS`: "trl-dpo", "trl-sft", "trl-kto", "trl-reward", "trl-grpo",
            "few-shot".
        persona, persona_in, template, drop_flagged: as for `tailoring_rows`.
        splits: name -> share of the prompts, for a folder: see `TailoringRows.split`. None: all "train".
        seed: of the splits.
        title: of the card.
        overwrite: replace a file that no export wrote, too. Exports have a mark, and are always replaced.

    Raises:
        InvalidArgumentError: a bad argument, a folder whose README.md is not an export's, or a file that
            is none: nothing is written then.
        DataError: there is no row, or none for one of the splits.
    """
    check_format(format)
    if not isinstance(title, str):
        raise InvalidArgumentError(f"title={title!r:.80} is not text.")
    target = _target(path, splits)
    if isinstance(target, Path) and target.suffix in _FILES and not overwrite:
        check_replaced(
            target, _is_export, "an export", otherwise=f"or pass overwrite=True ({NO_MARK})"
        )
    rows = tailoring_rows(
        table,
        persona=persona,
        format=EXPORT_FORMATS[format].rows,
        persona_in=persona_in,
        template=template,
        drop_flagged=drop_flagged,
    )
    if not rows:
        counts = ", ".join(f"{reason}: {count:,}" for reason, count in rows.left_out.items())
        raise DataError(f"no row is left to export ({counts or 'the table is empty'}).")
    if not isinstance(target, Path):
        target.writelines(map(visible_in_json, _json_lines(rows)))  # it may be a terminal
        return _export(rows, {"train": rows})
    if target.suffix in _FILES:
        with place_errors(target):
            _write(target, rows, rows)
        return replace(_export(rows, {"train": rows}), files={"train": target})
    parts = {"train": rows} if splits is None else rows.split(splits, seed=seed)
    made = _export(rows, parts, target)
    page = dataset_card(
        table,
        rows,
        parts,
        title=title,
        format=format,
        trainers=EXPORT_FORMATS[format].trainers,
        columns=_columns(rows),
        long_prompts=made.long_prompts,
    )
    with place_errors(target):
        _write_folder(target, made, rows, parts, page)
    return made


def check_format(name: object) -> None:
    """Raise InvalidArgumentError, with the nearest name, unless it is one of EXPORT_FORMATS."""
    if isinstance(name, str) and name in EXPORT_FORMATS:
        return
    near = get_close_matches(str(name), EXPORT_FORMATS, n=1)
    known = ", ".join(EXPORT_FORMATS)
    raise InvalidArgumentError(
        f"format={name!r} is not known.",
        hint=f"Did you mean {near[0]!r}? Known: {known}." if near else f"Known: {known}.",
    )


# Where it goes


def _target(path: str | Path | IO[str], splits: Mapping[str, float] | None) -> Path | IO[str]:
    """The folder, file or stream; what cannot be written to is found before anything is."""
    if splits is not None:
        check_shares(splits)
        if wrong := [name for name in splits if not _SPLIT.fullmatch(str(name))]:
            raise InvalidArgumentError(
                f"{wrong[0]!r} cannot be the name of a split.", hint="Use letters, digits and _."
            )
    if not isinstance(path, str | Path):
        _refuse_splits(splits)
        _check_text_stream(path)
        return path
    path = as_path(path)
    if path.suffix in _FILES:
        check_file(path)
        if not path.parent.is_dir():
            raise InvalidArgumentError(
                f"path={str(path)!r}: there is no folder {str(path.parent)!r}.",
                hint="Make it first.",
            )
        _refuse_splits(splits)
        _refuse_a_table(path)
        return path
    if (path.suffix and not path.is_dir()) or path.is_file():
        raise InvalidArgumentError(
            f"path={str(path)!r} is neither a folder nor a .jsonl or .parquet file.",
            hint="A folder with a dot in its name has to be there already.",
        )
    card, data = path / _CARD, path / "data"
    if data.is_symlink():
        raise InvalidArgumentError(
            f"{str(data)!r} is a link: the export would be written elsewhere.",
            hint="Name another folder.",
        )
    strangers = [] if card.exists() else [*data.glob("*.parquet")]
    if strangers or (card.exists() and MARK not in _text(card).splitlines()):
        raise InvalidArgumentError(
            f"path={str(path)!r} has a {(strangers or [card])[0].name} that is not an export's.",
            hint="It would be lost: name another folder.",
        )
    return path


def _text(card: Path) -> str:
    """The text of a card; that of a pipe, a folder or another file that is no card is empty."""
    with suppress(OSError):
        return read_small_file(card).decode(errors="replace")
    return ""


def _check_text_stream(stream: object) -> None:
    binary = isinstance(stream, io.RawIOBase | io.BufferedIOBase)
    if binary or not hasattr(stream, "writelines"):
        raise InvalidArgumentError(
            f"path={stream!r:.80} is neither a path nor an open text file.",
            hint='Open it as text: open(path, "w", encoding="utf-8").' if binary else "",
        )


def _refuse_a_table(path: Path) -> None:
    if is_table(path):
        raise InvalidArgumentError(
            f"path={str(path)!r} is a table of personas.",
            hint="It would be lost: name another file.",
            argument="path",
        )


def _is_export(path: Path) -> bool:
    """Whether a file has the mark of an export. Its form is that of all data for the same trainer."""
    if path.suffix == ".jsonl":
        return has_mark(path, "export")
    from pyarrow.parquet import read_schema

    try:
        return _EXPORT in (read_schema(path).metadata or {})
    except (ValueError, OSError):  # Arrow's errors are such, too
        return False


def _refuse_splits(splits: Mapping[str, float] | None) -> None:
    if splits is not None:
        raise InvalidArgumentError("splits= needs a folder to write to, a file each.")


def _write_folder(
    folder: Path, made: Export, rows: TailoringRows, parts: Mapping[str, TailoringRows], page: str
) -> None:
    """Write all files under hidden names first, so that a full disk leaves the old export as it is."""
    card = folder / _CARD
    before = {folder / name for name in _DATA.findall(_text(card))} if card.exists() else set()
    for file in before.union(made.files.values()):
        check_replaced(file, _is_export, "an export", otherwise="or move it away")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with unfinished_folder(card) as place:
        for name, part in parts.items():
            _write(place / f"{name}.parquet", part, rows)
        write_file(place / _CARD, page)
        for stale in before.difference(made.files.values()):
            stale.unlink(missing_ok=True)  # a split of the export that this one replaces
        put_in_place(place / _CARD, card)  # first: it says which files are this export's
        for name in parts:
            put_in_place(place / f"{name}.parquet", made.files[name])


def _write(path: Path, part: TailoringRows, rows: TailoringRows) -> None:
    """Write a part of the rows. All parts have the types in Parquet that all rows need."""
    if path.suffix == ".jsonl":
        write_file(path, marked_lines(_json_lines(part), "export"))
        return
    import pyarrow
    from pyarrow.parquet import write_table

    fields = {name: _field(values) for name, values in _further_fields(rows).items()}
    made = [{name: _stored(value, fields) for name, value in row.items()} for row in part]
    sink = pyarrow.BufferOutputStream()
    write_table(pyarrow.Table.from_pylist(made, schema=_schema(rows, fields)), sink)
    write_file(path, sink.getvalue().to_pybytes())


def _json_lines(rows: TailoringRows) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]


def _schema(rows: TailoringRows, fields: Mapping[str, _Field]) -> pyarrow.Schema:
    """The types of the columns; `fields` are those that turns have besides their role and content."""
    import pyarrow

    text = pyarrow.string()
    kinds: dict[str, Any] = {"label": pyarrow.bool_(), TOOL_DEFINITIONS: text}
    for name in _columns(rows):
        there = {key for row in rows for turn in _turns_of(row.get(name)) for key in turn}
        turn: dict[str, Any] = {"role": text, "content": text}
        turn |= {key: field.kind for key, field in fields.items() if key in there}
        is_plain = rows.settings["persona_in"] == "plain"
        kind = text if is_plain else pyarrow.list_(pyarrow.struct(list(turn.items())))
        kinds.setdefault(name, kind)
    found = [(name, kinds[name]) for name in _columns(rows)]
    return pyarrow.schema(found, metadata={_EXPORT: rows.settings["format"]})


# Fields of turns such as tool calls, which may have any shape


class _Field(NamedTuple):
    """How a field of turns is stored: as what `form` makes of a value, in Arrow's type `kind`."""

    form: Callable[[Any], Any]
    kind: pyarrow.DataType


def _further_fields(rows: TailoringRows) -> dict[str, list[Any]]:
    """The values of the fields that turns have besides their role and content, by name."""
    found: dict[str, list[Any]] = {}
    for turn in (turn for row in rows for value in row.values() for turn in _turns_of(value)):
        for name in turn.keys() - {"role", "content"} if len(turn) > 2 else ():
            found.setdefault(name, []).append(turn[name])
    return found


def _turns_of(cell: object) -> list[dict[str, Any]]:
    return cell if isinstance(cell, list) else []


def _field(values: Sequence[Any]) -> _Field:
    """As the data has them, if Arrow has one type for all values; else with the arguments of calls as JSON
    text, as OpenAI writes them; else all of it as JSON text."""
    import pyarrow

    for form in (_as_it_is, _with_text_arguments):
        made = [form(value) for value in values]
        with suppress(pyarrow.ArrowException, OverflowError):  # of whole numbers beyond 64 bits
            array: Any = pyarrow.array(made)
            is_same = _canonical(array.to_pylist()) == _canonical(made)
            if is_same and "struct<>" not in str(
                array.type
            ):  # Parquet has no structs without fields
                return _Field(form, array.type)
    return _Field(json.dumps, pyarrow.string())


def _as_it_is(value: Any) -> Any:
    return value


def _with_text_arguments(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_text_arguments(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: json.dumps(each)
        if name == "arguments" and not isinstance(each, str)
        else _with_text_arguments(each)
        for name, each in value.items()
    }


def _canonical(value: Any) -> str:
    """JSON that is equal for equal values, whatever fields are null: Arrow gives each struct all fields."""

    def bare(each: Any) -> Any:
        if isinstance(each, dict):
            return {name: bare(inner) for name, inner in each.items() if inner is not None}
        return list(map(bare, each)) if isinstance(each, list) else each

    return json.dumps(bare(value), sort_keys=True)


def _stored(value: Any, fields: Mapping[str, _Field]) -> Any:
    """A cell with the fields of its turns as they are stored."""
    if not fields or not isinstance(value, list):
        return value
    return [
        {name: fields[name].form(each) if name in fields else each for name, each in turn.items()}
        for turn in value
    ]


def _columns(rows: TailoringRows) -> list[str]:
    found = _columns_of(rows.settings["format"], rows.settings["persona_in"])
    return found + [TOOL_DEFINITIONS] * any(TOOL_DEFINITIONS in row for row in rows)


def _columns_of(format: str, place: str) -> list[str]:
    if format == "few-shot":
        return ["text" if place == "plain" else "messages"]
    (found,) = (each.columns for each in EXPORT_FORMATS.values() if each.rows == format)
    return found.split(", ")


# What is said about it


def _export(
    rows: TailoringRows, parts: Mapping[str, TailoringRows], folder: Path | None = None
) -> Export:
    return Export(
        files={name: folder / "data" / f"{name}.parquet" for name in parts} if folder else {},
        card=folder and folder / _CARD,
        rows={name: len(part) for name, part in parts.items()},
        left_out=rows.left_out,
        long_prompts=sum(_size(prompt) >= LONG * _BYTES_A_TOKEN for prompt in _limited(rows)),
    )


def _limited(rows: TailoringRows) -> Iterator[Any]:
    """The prompts that a trainer's `max_length` applies to."""
    format = rows.settings["format"]
    for row in rows if format not in _UNLIMITED else ():
        if format != "reward":
            yield row["prompt"]
        elif isinstance(row["chosen"], str):
            yield os.path.commonprefix([row["chosen"], row["rejected"]])  # noqa: RUF071
        else:
            yield row["chosen"][:-1]


def _size(prompt: str | Sequence[Mapping[str, str]]) -> int:
    texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    return sum(len(text.encode()) for text in texts)
