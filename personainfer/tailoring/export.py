"""`export_personas`: write a table of personas as a training data set, with a Hugging Face dataset card.

`tailoring_rows` makes the rows. `datasets.load_dataset` and TRL's command line read the files (Parquet or
JSONL).
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

from ..arguments import Flag, check_argument
from ..data.table import PersonaTable
from ..data.table_display import result_text
from ..data.table_writer import is_table
from ..exceptions import DataError, InvalidArgumentError, visible_in_json
from ..local.atomic_files import put_in_place, unfinished_folder, write_file
from ..local.line_marks import NO_MARK, has_mark, marked_lines
from ..local.paths import as_path, check_file, check_replaced, place_errors, read_small_file
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
# A data file, in a card's metadata.
_DATA = re.compile(r'^    path: "?(data/\w+\.parquet)"?$', re.MULTILINE)
# A name that Hugging Face accepts for a split: "all" means all splits together.
_SPLIT = re.compile(r"(?!all$)[a-z_]\w*", re.IGNORECASE)


class ExportFormat(NamedTuple):
    """A format of `export_personas`.

    Attributes:
        rows: the format of the rows, as `format=` of `tailoring_rows` names it.
        columns: the columns of a row, in words.
        trainers: the trainers of TRL that read the format; "": none.
    """

    rows: Any  # a `rows.Format`
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

_EXPORT = b"personainfer_export"  # the key that marks the schema of an export's Parquet file


@dataclass(frozen=True)
class Export:
    """What `export_personas` wrote.

    Attributes:
        files: name of a split -> the file written; a single file has the split "train". Empty if the rows
            went to an open text file.
        card: the path of the dataset card; None if no folder was written.
        rows: name of a split -> how many rows were written.
        left_out: reason -> how many examples were left out; an example is a pair with one persona (see
            `tailoring_rows`).
        long_prompts: how many rows have a prompt of 1,024 tokens or more, estimated at four bytes a token.
            TRL's trainers for DPO, SFT, KTO and rewards cut at 1,024 tokens or fewer by default
            (`max_length`). 0 for formats without such a limit.
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
        lines += [
            f"left out: {count:,} ({reason.replace('_', ' ')})"
            for reason, count in self.left_out.items()
        ]
        if self.long_prompts:
            lines.append(
                f"{self.long_prompts:,} prompts of 1,024 tokens or more: raise TRL's max_length"
            )
        return result_text(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dict that JSON can hold; paths become text."""
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
    """Write training rows, and a Hugging Face dataset card beside them.

    Args:
        table: the result of `infer_personas`. For a card with accuracies, pass the `.table` of what
            `verify_personas` returns.
        path: a folder, which is made if it is missing: `data/<split>.parquet` and the card `README.md` are
            written, which `datasets.load_dataset` and `trl … --dataset_name` read. An earlier export in the
            folder is replaced, and its files of other splits are deleted. Or one .jsonl or .parquet file in a
            folder that exists, or an open text file, which gets JSONL and stays open: no card is written.
        format: one of `EXPORT_FORMATS`: "trl-dpo", "trl-sft", "trl-kto", "trl-reward", "trl-grpo",
            "few-shot".
        persona, persona_in, template, drop_flagged: as for `tailoring_rows`.
        splits: for a folder: name -> share of the prompts (see `TailoringRows.split`). A name has letters,
            digits and _, and is not "all". None: one split, "train".
        seed: decides which prompts are in which split. Not used without `splits`.
        title: the heading of the card.
        overwrite: also replace a .jsonl or .parquet file that `export_personas` did not write, unless it is a
            table of personas. Files of `export_personas` hold a mark, and are always replaced. In a folder,
            files without the mark are never replaced.

    Returns:
        The files, the numbers of rows, and what was left out and why.

    Raises:
        InvalidArgumentError: a bad argument, or `path` holds files that `export_personas` did not write.
            Nothing is written then. Or `path` cannot be written to.
        DataError: there is no row to write, or none for one of the splits. Nothing is written.
        OSError: the disk is full.
    """
    check_format(format)
    overwrite = check_argument("overwrite", overwrite, Flag)
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
    """Raise InvalidArgumentError, which suggests the nearest name, unless EXPORT_FORMATS has this name."""
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
    """Return the folder, file or stream to write to. Nothing is written.

    Raises:
        InvalidArgumentError: `splits` or `path` cannot be used.
    """
    if splits is not None:
        check_shares(splits)
        if wrong := [name for name in splits if not _SPLIT.fullmatch(str(name))]:
            raise InvalidArgumentError(
                f"{wrong[0]!r} cannot be the name of a split.",
                hint='Use letters, digits and _. "all" means all splits together.',
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
        if is_table(path):
            raise InvalidArgumentError(
                f"path={str(path)!r} is a table of personas.",
                hint="It would be lost: name another file.",
                argument="path",
            )
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
    """Read a dataset card; "" if it cannot be read, such as a folder or a pipe."""
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


def _is_export(path: Path) -> bool:
    """Whether a file has the mark of an export. Its columns do not tell: other data has the same ones."""
    if path.suffix == ".jsonl":
        return has_mark(path, "export")
    from pyarrow.parquet import read_schema

    try:
        return _EXPORT in (read_schema(path).metadata or {})
    except (ValueError, OSError):  # Arrow's errors are subclasses of these
        return False


def _refuse_splits(splits: Mapping[str, float] | None) -> None:
    if splits is not None:
        raise InvalidArgumentError("splits= needs a folder to write to: each split is a file.")


def _write_folder(
    folder: Path, made: Export, rows: TailoringRows, parts: Mapping[str, TailoringRows], page: str
) -> None:
    """Write all files into a hidden folder, then move them, so that a full disk leaves the old export.

    Raises:
        InvalidArgumentError: a file of the folder that would be replaced is not an export's.
    """
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
        put_in_place(place / _CARD, card)  # first, since it names the files of this export
        for name in parts:
            put_in_place(place / f"{name}.parquet", made.files[name])


def _write(path: Path, part: TailoringRows, rows: TailoringRows) -> None:
    """Write one part to a file. The Parquet types come from all rows, so that all parts have the same."""
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
    """Return the Arrow types of the columns.

    Args:
        rows: all rows of the export.
        fields: name -> how it is stored, of the fields of messages other than `role` and `content`, such as
            `tool_calls`.
    """
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


# Further fields of turns: all but `role` and `content`, such as `tool_calls`. Their values have any shape.


class _Field(NamedTuple):
    """How a field of messages is stored, other than `role` and `content`.

    Attributes:
        form: converts each value.
        kind: the Arrow type of the converted values.
    """

    form: Callable[[Any], Any]
    kind: pyarrow.DataType


def _further_fields(rows: TailoringRows) -> dict[str, list[Any]]:
    """Collect the values of each field of messages other than `role` and `content`, by its name."""
    found: dict[str, list[Any]] = {}
    for turn in (turn for row in rows for value in row.values() for turn in _turns_of(value)):
        for name in turn.keys() - {"role", "content"}:
            found.setdefault(name, []).append(turn[name])
    return found


def _turns_of(cell: object) -> list[dict[str, Any]]:
    return cell if isinstance(cell, list) else []


def _field(values: Sequence[Any]) -> _Field:
    """Choose how to store the values of a field of messages: the first form that Arrow keeps unchanged.

    1. The values as they are. 2. The `arguments` of tool calls as JSON text, which is OpenAI's form: Arrow
    would give each call the arguments of all others, as nulls. 3. Each value as JSON text.
    """
    import pyarrow

    for form in (_unchanged, _with_text_arguments):
        made = [form(value) for value in values]
        # Whole numbers beyond 64 bits overflow.
        with suppress(pyarrow.ArrowException, OverflowError):
            array: Any = pyarrow.array(made)
            has_empty_struct = "struct<>" in str(array.type)  # which Parquet cannot store
            if not has_empty_struct and _canonical(array.to_pylist()) == _canonical(made):
                return _Field(form, array.type)
    return _Field(json.dumps, pyarrow.string())


def _unchanged(value: Any) -> Any:
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
    """Encode a value as JSON without fields that are null, which Arrow adds to structs.

    Within `arguments` they stay: a model would be trained on arguments that nobody gave.
    """

    def bare(each: Any) -> Any:
        if isinstance(each, dict):
            return {
                name: inner if name == "arguments" else bare(inner)
                for name, inner in each.items()
                if inner is not None
            }
        return list(map(bare, each)) if isinstance(each, list) else each

    return json.dumps(bare(value), sort_keys=True)


def _stored(value: Any, fields: Mapping[str, _Field]) -> Any:
    """Convert the fields of a cell's messages as `fields` says.

    A cell that is no list of messages is unchanged.
    """
    if not fields or not isinstance(value, list):
        return value
    return [
        {name: fields[name].form(each) if name in fields else each for name, each in turn.items()}
        for turn in value
    ]


def _columns(rows: TailoringRows) -> list[str]:
    """Return the names of the columns that any row has, in order."""
    return list(dict.fromkeys(name for row in rows for name in row))


# The report


def _export(
    rows: TailoringRows, parts: Mapping[str, TailoringRows], folder: Path | None = None
) -> Export:
    return Export(
        files={name: folder / "data" / f"{name}.parquet" for name in parts} if folder else {},
        card=folder and folder / _CARD,
        rows={name: len(part) for name, part in parts.items()},
        left_out=rows.left_out,
        long_prompts=sum(_bytes(prompt) >= LONG * _BYTES_A_TOKEN for prompt in _limited(rows)),
    )


def _limited(rows: TailoringRows) -> Iterator[Any]:
    """Yield the prompt of each row, for formats whose trainers have a `max_length`; else nothing."""
    format = rows.settings["format"]
    for row in rows if format not in _UNLIMITED else ():
        if format != "reward":
            yield row["prompt"]
        elif isinstance(row["chosen"], str):  # the prompt is the common start of both texts
            yield os.path.commonprefix([row["chosen"], row["rejected"]])  # noqa: RUF071
        else:
            yield row["chosen"][:-1]


def _bytes(prompt: str | Sequence[Mapping[str, str]]) -> int:
    texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    return sum(len(text.encode()) for text in texts)
