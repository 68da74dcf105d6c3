"""`tailoring_rows`: turn a table of personas into rows that train a model to tailor responses to a persona.

In a row with the rejected side's persona the labels are swapped, since that persona prefers the rejected
response ("Whose Boat Does it Float?", arXiv 2501.11549, section 4). The rows have the format of TRL's
trainers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, overload

from ..arguments import WholeNumber, check_argument
from ..data.table import PersonaTable
from ..exceptions import DataError, InvalidArgumentError
from ..personas.flags import flag_filter
from ..personas.placement import PersonaPlace, check_place, check_template, place_persona
from ..personas.prompts import bare_text
from ..preferences.conversations import SAME_TEXT, pair_problem
from ..preferences.turns import TOOL_DEFINITIONS
from ..records import Message, Persona, PersonaRow, Preference, Prompt, Side

PersonaSide = Literal["chosen", "rejected", "both", "none"]
Format = Literal["dpo", "sft", "kto", "few-shot", "reward", "grpo"]
Row = dict[str, Any]


class Example(NamedTuple):
    """What a row is made of: the prompt with a persona, its preferred response and the other one."""

    prompt: Prompt
    preferred: str
    other: str


@dataclass(frozen=True)
class TailoringRows(Sequence[Row]):
    """Rows to train on, as `datasets.Dataset.from_list(rows)` takes them.

    Attributes:
        rows: dicts in the shape of `settings["format"]`.
        ids: a unique id for each row: the pair's id, the side of its persona and, for KTO, which response it
            holds. If ids are missing or repeated, the pair's place in the input stands for its id; if these
            are repeated too, its place in the table.
        prompts: for each row a digest of the prompt without the persona; equal prompts have equal digests.
        left_out: reason -> how many examples; an example is a pair with one persona.
        settings: the arguments that made the rows.
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
        """The rows in parts, by prompt: no prompt is in two of them.

        A prompt's part depends only on the seed and its text (ignoring white space, case and the encoding of
        accents). It is the same in every table, format and order, so that no table tests on a prompt that
        another one trained on. The sizes are therefore near the shares, not equal to them.

        Args:
            shares: name -> share of the prompts, such as {"train": 0.6, "dev": 0.15, "test": 0.25}.
            seed: another seed gives another division.

        Raises:
            InvalidArgumentError: shares that are not positive or do not add up to 1, or a bad seed.
            DataError: a part would be empty.
        """
        check_shares(shares)
        check_argument("seed", seed, WholeNumber)
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
    """Training rows in which a model sees a persona and the response that its holder prefers.

    Args:
        table: of `infer_personas`.
        persona: whose persona the rows show: of the "chosen" side, the "rejected" one (its holder prefers
            the rejected response), of "both" (a row each), or "none" (the rows to compare with).
        format: "dpo": prompt, chosen, rejected; "sft": prompt, completion; "kto": prompt, completion,
            label, two rows a pair; "few-shot": the worked example alone, messages or text; "reward":
            chosen, rejected, with the prompt in both; "grpo": the prompt alone.
        persona_in: where the persona stands: in the "system" message, at the end of the last "user"
            message, or in one "plain" text without chat messages, `Prompt: … Persona: … Response:`.
        template: your own wording for that place, with the fields of the default, {persona} and {prompt}: see
            `personainfer.personas.placement.TEMPLATES`.
        drop_flagged: whether personas with a flag are left out: True for any flag, or the names of some.
            In personas that somebody else made (`PersonaTable.from_data`), flags are looked for now.

    Returns:
        The rows in the order of the table. These are left out, and counted by reason: pairs that cannot be
        used ("no_pair"), have equal responses ("same_responses") or end with a system message
        ("no_question"), and personas that are missing ("no_persona") or "flagged".

    Raises:
        InvalidArgumentError: a bad argument.
    """
    settings = {
        "persona": persona,
        "format": format,
        "persona_in": persona_in,
        "template": template,
        "drop_flagged": drop_flagged,
    }
    _check(table, settings)
    unwanted = flag_filter(drop_flagged, looked_for="personas_from" not in table.settings)
    sides: tuple[Side | None, ...] = _SIDES[persona]
    rows: list[Row] = []
    ids: list[str] = []
    prompts: list[str] = []
    left_out: Counter[str] = Counter()
    for name, row in zip(_names(table), table, strict=True):
        for side in sides:
            reason = _left_out(row, side, unwanted)
            if reason is not None or row.preference is None:
                left_out[reason or "no_pair"] += 1
                continue
            one = _example(
                row.preference, side, getattr(row, side or "", None), persona_in, template
            )
            made = _SHAPES[format](one)
            if not isinstance(one.prompt, str) and (tools := _tools(row.preference.prompt)):
                made = [{**each, TOOL_DEFINITIONS: tools} for each in made]
            rows += made
            ids += _row_ids(name if side is None else f"{name}:{side}", len(made))
            prompts += [_digest(row.preference.prompt)] * len(made)
    return TailoringRows(rows, ids, prompts, dict(left_out), settings)


_ASKS = ("user", "assistant", "tool")  # roles of a last message that a response can follow
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
    """Why there is no example of this row and side."""
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


def _example(
    pair: Preference,
    side: Side | None,
    persona: Persona | None,
    place: PersonaPlace,
    template: str | None,
) -> Example:
    seen = pair.swapped if side == "rejected" else pair
    asked = place_persona(pair.prompt, persona, place, template)
    return Example(asked, seen.chosen, seen.rejected)


# The shapes of TRL's trainers: strings for a plain prompt, message lists for a chat, never both.


def _asked(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [
        {"role": m.role, "content": m.content, **(m.extra or {})}
        for m in map(_without_tools, prompt)
    ]


def _without_tools(message: Message) -> Message:
    if TOOL_DEFINITIONS not in (message.extra or {}):
        return message
    extra = {k: v for k, v in (message.extra or {}).items() if k != TOOL_DEFINITIONS}
    return message.model_copy(update={"extra": extra or None})


def _tools(prompt: Prompt) -> str | None:
    """The tool definitions of a prompt as JSON text, which TRL reads; None if it has none.

    As a column of dicts, Arrow would give each definition the keys of all others.
    """
    if isinstance(prompt, str):
        return None
    extras = [message.extra or {} for message in prompt]
    found = next((each[TOOL_DEFINITIONS] for each in extras if TOOL_DEFINITIONS in each), None)
    return found and json.dumps(found, ensure_ascii=False)


def _said(prompt: Prompt, response: str) -> Any:
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]


def _whole(prompt: Prompt, response: str) -> Any:
    return _asked(prompt) + _said(prompt, response)


def _dpo(one: Example) -> list[Row]:
    chosen, rejected = (_said(one.prompt, text) for text in (one.preferred, one.other))
    return [{"prompt": _asked(one.prompt), "chosen": chosen, "rejected": rejected}]


def _sft(one: Example) -> list[Row]:
    return [{"prompt": _asked(one.prompt), "completion": _said(one.prompt, one.preferred)}]


def _kto(one: Example) -> list[Row]:
    judged = ((one.preferred, True), (one.other, False))
    return [
        {"prompt": _asked(one.prompt), "completion": _said(one.prompt, text), "label": label}
        for text, label in judged
    ]


def _few_shot(one: Example) -> list[Row]:
    name = "text" if isinstance(one.prompt, str) else "messages"
    return [{name: _whole(one.prompt, one.preferred)}]


def _reward(one: Example) -> list[Row]:
    chosen, rejected = (_whole(one.prompt, text) for text in (one.preferred, one.other))
    return [{"chosen": chosen, "rejected": rejected}]


def _grpo(one: Example) -> list[Row]:
    return [{"prompt": _asked(one.prompt)}]


_SHAPES: dict[str, Callable[[Example], list[Row]]] = {
    "dpo": _dpo,
    "sft": _sft,
    "kto": _kto,
    "few-shot": _few_shot,
    "reward": _reward,
    "grpo": _grpo,
}
FORMATS = tuple(_SHAPES)


# Names and splits


def _names(table: PersonaTable) -> list[str]:
    """The data's own ids if every pair has one and no two are equal; else places in the input.

    If places repeat, since two inputs were put together, they are places in the table.
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


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise InvalidArgumentError unless these are names of splits with shares that add up to 1."""
    if not isinstance(shares, Mapping) or not shares:
        raise InvalidArgumentError(
            f"shares={shares!r} names no split.", hint='Give {"train": 0.8, "test": 0.2}.'
        )
    for name, share in shares.items():
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise InvalidArgumentError(
                f"the share of {name!r} is {share!r}, not a number in (0, 1]."
            )
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise InvalidArgumentError(f"the shares add up to {sum(shares.values()):g}, not to 1.")


def _part(prompt: str, shares: Mapping[str, float], seed: int) -> str:
    drawn = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
    left = int.from_bytes(drawn[:8]) / 2**64
    for name, share in shares.items():
        left -= share
        if left < 0:
            return name
    return name
