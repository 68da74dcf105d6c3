"""`tailoring_rows`: turn a table of personas into rows that train a model to tailor responses to a persona.

A row that shows the persona of the rejected side swaps the labels, since that persona prefers the rejected
response ("Whose Boat Does it Float?", arXiv 2501.11549, section 4). TRL's trainers read the rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args, overload

from ..arguments import WholeNumber, check_argument, in_python
from ..data.table import PersonaTable
from ..exceptions import DataError, InvalidArgumentError
from ..personas.flags import flag_filter
from ..personas.placement import PersonaPlace, check_place, check_template, place_persona
from ..personas.prompts import bare_text
from ..preferences.conversations import SAME_TEXT, pair_problem
from ..preferences.turns import TOOL_DEFINITIONS
from ..records import Persona, PersonaRow, Prompt, Side

PersonaSide = Literal["chosen", "rejected", "both", "none"]
Format = Literal["dpo", "sft", "kto", "few-shot", "reward", "grpo"]
FORMATS: tuple[Format, ...] = get_args(Format)
Row = dict[str, Any]


class Example(NamedTuple):
    """A pair with one persona.

    Attributes:
        prompt: the prompt, with the persona in it.
        preferred: the response that the persona prefers.
        other: the other response.
    """

    prompt: Prompt
    preferred: str
    other: str


@dataclass(frozen=True)
class TailoringRows(Sequence[Row]):
    """Training rows. `datasets.Dataset.from_list(rows)` makes a data set of them.

    Attributes:
        rows: dicts with the columns of the format (see `format=` of `tailoring_rows`).
        ids: a unique id for each row, such as "17:chosen": the pair's id, the side of the persona (unless the
            rows show none) and, for KTO, "preferred" or "other", the response that the row holds. If the ids
            of the table's pairs are missing or repeated, the pair's place in the input is used in their
            place; if places are repeated too, its place in the table.
        prompts: for each row a digest of the prompt without the persona. Prompts that differ only in white
            space, case or the encoding of accents have equal digests.
        left_out: reason -> how many examples were left out; an example is a pair with one persona. Empty for
            a part that `split` made.
        settings: the arguments of `tailoring_rows`, by name.
    """

    rows: Sequence[Row] = field(repr=False)
    ids: Sequence[str] = field(repr=False)
    prompts: Sequence[str] = field(repr=False)
    left_out: Mapping[str, int]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def split(self, shares: Mapping[str, float], *, seed: int = 0) -> dict[str, TailoringRows]:
        """Split the rows by prompt: all rows of a prompt are in the same part.

        A hash of the seed and of the prompt's text (ignoring white space, case and the encoding of accents)
        decides the part. So with equal shares and an equal seed, a prompt is in the same part for every
        table, format and order of rows: no table then tests on a prompt that another table trains on. The
        sizes are near the shares, not equal to them.

        Args:
            shares: name -> share of the prompts, such as {"train": 0.6, "dev": 0.15, "test": 0.25}.
            seed: another seed gives another division.

        Returns:
            Name -> the rows of that part, in the same order. Their `left_out` is empty.

        Raises:
            InvalidArgumentError: shares that are not positive or do not add up to 1, or a bad seed.
            DataError: a part would be empty.
        """
        shares = check_shares(shares)
        seed = check_argument("seed", seed, WholeNumber)
        places: dict[str, list[int]] = {name: [] for name in shares}
        part_of = {prompt: _part(prompt, shares, seed) for prompt in set(self.prompts)}
        for place, prompt in enumerate(self.prompts):
            places[part_of[prompt]].append(place)
        if empty := [name for name, found in places.items() if not found]:
            raise DataError(
                f"the split {empty[0]!r} would be empty: there are {len(part_of)} prompts.",
                hint="Give it a larger share, leave it out, or try another seed.",
            )
        return {name: self._only(found) for name, found in places.items()}

    def _only(self, places: Sequence[int]) -> TailoringRows:
        rows, ids, prompts = (
            [values[place] for place in places] for values in (self.rows, self.ids, self.prompts)
        )
        return TailoringRows(rows, ids, prompts, left_out={}, settings=self.settings)  # type: ignore[arg-type]


def tailoring_rows(
    table: PersonaTable,
    *,
    persona: PersonaSide = "chosen",
    format: Format = "dpo",
    persona_in: PersonaPlace = "system",
    template: str | None = None,
    drop_flagged: bool | Collection[str] = False,
) -> TailoringRows:
    """Make training rows that show a model a persona and the response which that persona prefers.

    Args:
        table: the result of `infer_personas`.
        persona: the side whose persona a row shows: "chosen"; "rejected" (this persona prefers the rejected
            response, which is the row's preferred one); "both" (two examples a pair); or "none" (rows without
            personas, to compare with).
        format: the columns of a row. "dpo": prompt, chosen, rejected. "sft": prompt, completion. "kto":
            prompt, completion, label; two rows an example. "reward": chosen, rejected, each with the prompt
            before the response. "grpo": prompt. "few-shot": messages (or text, if `persona_in` is "plain"),
            the prompt with the preferred response. If the prompt of a chat has tool definitions, all rows
            also have the column "tools": JSON text, or None.
        persona_in: where the persona stands: in the "system" message, at the end of the last "user" message,
            or in one "plain" text without chat messages, `Prompt: … Persona: … Response:`.
        template: your own wording for that place. It has the fields of the default wording, {persona} and
            {prompt}: see `personainfer.personas.placement.TEMPLATES`. None: the default wording.
        drop_flagged: leave out personas that have a flag: True: any flag; a list of flags: one of these. The
            personas of `PersonaTable.from_data` have no flags yet: they are checked for flags now.

    Returns:
        The rows in the order of the table. `left_out` counts what has no row: a pair that cannot be used
        ("no_pair"), has equal responses ("same_responses") or ends with a system message ("no_question"); a
        persona that is missing ("no_persona") or has an unwanted flag ("flagged").

    Raises:
        InvalidArgumentError: a bad argument.
    """
    settings = {
        "persona": persona,
        "format": format,
        "persona_in": persona_in,
        "template": template,
        "drop_flagged": in_python(drop_flagged),
    }
    _check(table, settings)
    unwanted = flag_filter(drop_flagged, looked_for="personas_from" not in table.settings)
    rows: list[Row] = []
    ids: list[str] = []
    prompts: list[str] = []
    left_out: Counter[str] = Counter()
    for name, row in zip(_names(table), table, strict=True):
        for side in _SIDES[persona]:
            reason = _left_out(row, side, unwanted)
            if reason is not None or row.preference is None:
                left_out[reason or "no_pair"] += 1
                continue
            pair = row.preference.swapped if side == "rejected" else row.preference
            shown: Persona | None = None if side is None else getattr(row, side)
            prompt = place_persona(pair.prompt, shown, persona_in, template)
            made = _training_rows(format, Example(prompt, pair.chosen, pair.rejected))
            if not isinstance(prompt, str) and (tools := _tools(pair.prompt)):
                made = [{**each, TOOL_DEFINITIONS: tools} for each in made]
            rows += made
            ids += _row_ids(name if side is None else f"{name}:{side}", len(made))
            prompts += [_digest(pair.prompt)] * len(made)
    if any(TOOL_DEFINITIONS in each for each in rows):
        # `Dataset.from_list` takes the columns of the first row alone.
        rows = [{**each, TOOL_DEFINITIONS: each.get(TOOL_DEFINITIONS)} for each in rows]
    return TailoringRows(rows, ids, prompts, dict(left_out), settings)


_ASKS = ("user", "assistant", "tool")  # roles of a message that a response can follow
_SIDES: dict[str, tuple[Side | None, ...]] = {
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "both": ("chosen", "rejected"),
    "none": (None,),
}


def _check(table: object, settings: Mapping[str, Any]) -> None:
    if not isinstance(table, PersonaTable):
        raise InvalidArgumentError(
            f"rows are made of a PersonaTable, not of {type(table).__name__}.",
            hint="Pass what infer_personas returned, or PersonaTable.load(path).",
        )
    InvalidArgumentError.check("persona", settings["persona"], _SIDES)
    InvalidArgumentError.check("format", settings["format"], FORMATS)
    check_place(settings["persona_in"])
    if settings["template"] is not None:
        check_template(settings["template"], settings["persona_in"])


def _left_out(
    row: PersonaRow, side: Side | None, unwanted: Callable[[PersonaRow, Side], bool]
) -> str | None:
    """Return the reason to make no example of this row and side; None: make one."""
    if row.preference is None:
        return "same_responses" if row.error == SAME_TEXT else "no_pair"
    prompt = row.preference.prompt
    if prompt and not isinstance(prompt, str) and prompt[-1].role not in _ASKS:
        return "no_question"
    if (problem := pair_problem(row.preference)) is not None:
        return "same_responses" if problem == SAME_TEXT else "no_pair"
    if side is None:
        return None
    if getattr(row, side) is None:
        return "no_persona"
    return "flagged" if unwanted(row, side) else None


def _training_rows(format: Format, example: Example) -> list[Row]:
    """Make the rows that TRL's trainers read: strings for a plain prompt, lists of messages for a chat."""
    prompt = _prompt(example.prompt)
    preferred = _response(example.prompt, example.preferred)
    other = _response(example.prompt, example.other)
    match format:
        case "dpo":
            return [{"prompt": prompt, "chosen": preferred, "rejected": other}]
        case "sft":
            return [{"prompt": prompt, "completion": preferred}]
        case "kto":
            return [
                {"prompt": prompt, "completion": preferred, "label": True},
                {"prompt": _prompt(example.prompt), "completion": other, "label": False},
            ]
        case "few-shot":
            name = "text" if isinstance(example.prompt, str) else "messages"
            return [{name: prompt + preferred}]
        case "reward":
            return [{"chosen": prompt + preferred, "rejected": _prompt(example.prompt) + other}]
        case "grpo":
            return [{"prompt": prompt}]


def _prompt(prompt: Prompt) -> Any:
    """Convert a prompt to text or to messages. Tool definitions are left out: they have a column."""
    if isinstance(prompt, str):
        return prompt
    return [
        {"role": message.role, "content": message.content}
        | {k: v for k, v in (message.extra or {}).items() if k not in _NO_EXTRAS}
        for message in prompt
    ]


# A turn says itself who speaks and what; definitions of tools have a column.
_NO_EXTRAS = {TOOL_DEFINITIONS, "role", "content"}


def _response(prompt: Prompt, response: str) -> Any:
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]


def _tools(prompt: Prompt) -> str | None:
    """Encode the tool definitions of a prompt as JSON text, which TRL reads; None if there are none.

    A column of dicts would not do: Arrow would give each definition the keys of all others.
    """
    if isinstance(prompt, str):
        return None
    extras = [message.extra or {} for message in prompt]
    found = next((each[TOOL_DEFINITIONS] for each in extras if TOOL_DEFINITIONS in each), None)
    return found and json.dumps(found, ensure_ascii=False)


# Names and splits


def _names(table: PersonaTable) -> list[str]:
    """Name each pair: by its id if every pair has one and no two are equal; else by its place in the input.

    If places repeat, as in a table of two inputs, pairs are named by their place in the table.
    """
    own = [row.preference.id for row in table if row.preference is not None]
    if None not in own and len(set(own)) == len(own):
        return [str(row.preference.id) if row.preference else "" for row in table]
    places = [row.index for row in table]
    return [str(n) for n in (places if len(set(places)) == len(places) else range(len(places)))]


def _row_ids(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}:preferred", f"{name}:other"]


def _digest(prompt: Prompt) -> str:
    turns = [("user", prompt)] if isinstance(prompt, str) else [(m.role, m.content) for m in prompt]
    bare = [(role, bare_text(text)) for role, text in turns]
    return hashlib.sha256(repr(bare).encode()).hexdigest()


def check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Return shares, as `check_argument`: names to numbers in (0, 1] that add up to 1.

    Raises:
        InvalidArgumentError: they are something else.
    """
    if not isinstance(shares, Mapping) or not shares:
        raise InvalidArgumentError(
            f"shares={shares!r} names no split.", hint='Give {"train": 0.8, "test": 0.2}.'
        )
    found = {name: in_python(share) for name, share in shares.items()}
    for name, share in found.items():
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise InvalidArgumentError(
                f"the share of {name!r} is {share!r}, not a number in (0, 1]."
            )
    if abs(sum(found.values()) - 1) > 1e-6:
        raise InvalidArgumentError(f"the shares add up to {sum(found.values()):g}, not to 1.")
    return found


def _part(prompt: str, shares: Mapping[str, float], seed: int) -> str:
    """Draw the part of a prompt: a number in [0, 1) from a hash falls into the interval of one share."""
    drawn = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
    left = int.from_bytes(drawn[:8]) / 2**64
    for name, share in shares.items():
        left -= share
        if left < 0:
            return name
    return name
