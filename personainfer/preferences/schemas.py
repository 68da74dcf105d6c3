"""Turn a row into a `Preference`, given the role of each column."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, NamedTuple

from ..exceptions import DataError, NoPreferenceError
from ..records import Preference
from .cells import (
    ABSENT,
    LEAVE_OUT,
    identifier,
    is_null,
    looks_like_turns,
    parse_cell,
    plain,
    wrong_type,
)
from .conversations import (
    cut_at_turn,
    is_transcript,
    preference_of,
    read_conversations,
    read_pair,
    transcript_prompt,
    without_prompt,
)
from .labels import LabelCoding, Verdict, find_coding, majority_verdict, one_hot_verdict, tie_error
from .pairing import as_score, candidates_of, is_ranked, pair_places, zip_lists
from .turns import TOOL_DEFINITIONS, Turn, Turns, read_history, with_tools


class Mapped(NamedTuple):
    """What the caller says about the data; see the arguments of `read_preferences`."""

    columns: Mapping[str, str] = {}
    labels: Mapping[str, Verdict] = {}
    pairs: str | None = None
    min_gap: float | None = None
    min_votes: int | None = None
    safe_rejected: bool = False


_TEXT_ROLES = frozenset("prompt chosen rejected response_1 response_2".split())
_LIST_ROLES = frozenset(("responses", "scores", "history"))


# Data sets whose numbers are explained by their cards, and whose columns no other data has.
_KNOWN_CODINGS = frozenset(("SHP", "PKU-SafeRLHF", "AlpacaFarm", "TL;DR comparisons"))

_PLACES = frozenset(("choice", "best", "chosen"))  # columns that hold a place in a list

_PLAIN = ("prompt", "chosen", "rejected", "id", "user", "system")


@dataclass(frozen=True)
class Schema:
    """Columns and the roles they play.

    Attributes:
        name: of the schema.
        columns: role -> column.
        kind: how the preferred response is found: "pair", "conversations", "label", "one-hot",
            "scores", "votes", "list" or "group".
        coding: of the labels, once the first rows were seen.
        json_roles: roles whose column holds JSON text.
        is_rounds: whether prompt and responses are lists of texts, one for each round.
        has_transcripts: whether prompts are "\\n\\nHuman: … \\n\\nAssistant:" texts.
        told: what the caller says of the data.
        present: the columns that the data has; others of `columns` may come in later rows.
        compared: the coding of a second label, which is compared with the choice that was read.
        beside: role -> column of other responses and models in the data, which the pair's columns may name.
        counts: what was done to rows, by name; it grows as rows are read.
    """

    name: str
    columns: Mapping[str, str]
    kind: str
    coding: LabelCoding | None = None
    json_roles: frozenset[str] = frozenset()
    is_rounds: bool = False
    has_transcripts: bool = False
    told: Mapped = field(default_factory=Mapped)
    beside: Mapping[str, str] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    compared: LabelCoding | None = None
    counts: Counter[str] = field(default_factory=Counter, compare=False)

    @property
    def is_single(self) -> bool:
        """Whether each row is one preference at most."""
        return self.kind != "group" and (self.told.pairs in (None, "best-worst"))

    def has_lists(self, rows: Sequence[Sequence[object]]) -> bool:
        """Whether chosen and rejected are lists of responses in one of the rows."""
        places = [n for n, role in enumerate(self.columns) if role in ("chosen", "rejected")]
        return self.kind == "pair" and any(_are_lists(*(row[n] for n in places)) for row in rows)

    @cached_property
    def _is_plain(self) -> bool:
        """Whether a row is only a prompt and two responses, with no option that needs more."""
        is_asked_more = self.told.min_votes is not None or self.told.safe_rejected
        return tuple(self.columns) == _PLAIN and not self.depends_on_values and not is_asked_more

    @property
    def depends_on_values(self) -> bool:
        """Whether the values of cells, not only the columns' names, decided how they are read."""
        return bool(self.json_roles) or self.is_rounds or self.has_transcripts

    def settled(self, rows: Sequence[Sequence[object]], *, is_batch: bool = False) -> Schema:
        """The schema completed from values: the coding of labels, and which cells hold JSON text.

        `is_batch`: these rows are not the first of all, so that others may have come before them.

        Raises:
            DataError: the coding of the labels is not certain.
        """
        cells = dict(zip(self.columns, zip(*rows, strict=True), strict=True)) if rows else {}
        known = {role: [v for v in values if not is_null(v)] for role, values in cells.items()}
        in_json = {
            role
            for role, values in known.items()
            if values and role in _TEXT_ROLES | _LIST_ROLES and _are_json(role, values)
        }
        prompts = [v for v in known.get("prompt", ()) if isinstance(v, str)]
        texts = [v for role in _TEXT_ROLES & known.keys() for v in known[role]]
        return replace(
            self,
            coding=self._find_coding(rows, is_batch=is_batch and self.name not in _KNOWN_CODINGS),
            compared=self._find_compared(rows),
            json_roles=frozenset(in_json),
            is_rounds=self.kind == "one-hot" and bool(texts) and all(map(_is_json_list, texts)),
            has_transcripts=bool(prompts) and all(map(is_transcript, prompts)),
        )

    def _find_coding(
        self, rows: Sequence[Sequence[object]], *, is_batch: bool
    ) -> LabelCoding | None:
        if self.kind != "label":
            return None
        named = (self.columns.get("response_1", ""), self.columns.get("response_2", ""))
        is_place = "responses" in self.columns and (
            self.columns["label"] in _PLACES or "other_label" in self.columns
        )
        if is_place and self.name in _KNOWN_CODINGS:
            named, is_place = ("response_0", "response_1"), False
        cells = [dict(zip(self.columns, row, strict=True)) for row in rows]
        roles = [role for role in ("label", "other_label") if role in self.columns]
        return find_coding(
            self.columns["label"],
            [self._label(row, role) for row in cells for role in roles],
            named,
            self.told.labels,
            is_batch=is_batch,
            is_place=is_place,
        )

    def _find_compared(self, rows: Sequence[Sequence[object]]) -> LabelCoding | None:
        """The coding of a second label. One that is not certain is compared with nothing."""
        name = self.columns.get("compared_label")
        if name is None:
            return None
        roles = [f"{'response' if self.kind == 'label' else 'compared'}_{n}" for n in (1, 2)]
        cells = [dict(zip(self.columns, row, strict=True)) for row in rows]
        try:
            return find_coding(
                name,
                [self._label(row, "compared_label") for row in cells],
                (self.columns[roles[0]], self.columns[roles[1]]),
            )
        except DataError:
            return None

    def read(self, values: Sequence[object]) -> Preference:
        """The preference in a row's values, given in the order of `columns`.

        Raises:
            NoPreferenceError: the row states none, as with a tie or a null.
            DataError: the row cannot be read.
        """
        if self._is_plain:  # nearly all data is, and reading it has to take no time
            prompt, chosen, rejected, id, user, system = values
            if (
                type(prompt) is type(chosen) is type(rejected) is str
                and (system is ABSENT or system is None)
                and not chosen.startswith(prompt)
            ):
                name = None if id is ABSENT else self._id(id)
                who = None if user is ABSENT else identifier(user, self.columns["user"])
                return preference_of(prompt, chosen, rejected, name, who)
        row = self._row(values)
        if self.kind == "list":
            return self._of_list(row)[0]
        good, bad = self._sides(row)
        if self.kind == "pair":
            _refuse_lists(self.columns, row)
        self._filter(row, bad)
        names = (self.columns.get(good, "responses"), self.columns.get(bad, "responses"))
        return self._preference(row, names, row[good], row[bad])

    def read_all(self, values: Sequence[object]) -> list[Preference]:
        """Every preference that the rule `pairs=` makes of a row; raises as `read` does."""
        row = self._row(values)
        if self.kind == "list":
            return self._of_list(row)
        if self.kind == "pair" and self.told.pairs and _are_lists(row["chosen"], row["rejected"]):
            names = (self.columns["chosen"], self.columns["rejected"])
            lists: list[Any] = [plain(row["chosen"]), plain(row["rejected"])]
            both = list(zip_lists(names, lists[0], lists[1], self.told.pairs))
            return self._numbered(row, [(names, one, other) for one, other in both])
        return [self.read(values)]

    def read_group(self, group: Sequence[Sequence[object]]) -> list[Preference]:
        """The preferences among the rows of one prompt; raises as `read` does."""
        rows = [self._row(values) for values in group]
        identifier(rows[0].get("user"), self.columns.get("user", "user"))  # before the scores
        name = self.columns["score"]
        sign = -1 if is_ranked(name) else 1
        found = (as_score(name, row["score"]) for row in rows)
        scores = [None if score is None else sign * score for score in found]
        try:
            places = pair_places(scores, self.told.pairs or "best-worst", self.told.min_gap or 0.0)
        except NoPreferenceError as error:
            if len(rows) > 1:
                raise
            column = self.columns.get("group", self.columns["prompt"])
            raise NoPreferenceError(
                error.message,
                hint="Only neighbouring rows of a prompt are paired. If its other responses are elsewhere,"
                f" sort the data by {column!r} first.",
            ) from None
        names = (self.columns["response"],) * 2
        pairs = [(names, rows[i]["response"], rows[j]["response"]) for i, j in places]
        return self._numbered(rows[0], pairs)

    def rater_key(self, values: Sequence[object]) -> tuple[object, object]:
        """What rows have in common that one person rated for one prompt: (prompt and group, user)."""
        row = dict(zip(self.columns, values, strict=True))
        asked = _key(row["prompt"]), _key(row.get("group"))
        return asked, _key(row.get("user"))

    def describe(self) -> dict[str, Any]:
        """How the rows were read, for a table's settings: the columns by role, and what was counted."""
        found = {role: name for role, name in self.columns.items() if name in self.present}
        said: dict[str, Any] = {"schema": self.name, "columns": found}
        if self.coding is not None:
            said["labels"] = self.coding.describe()
        for name in ("pairs", "min_gap", "min_votes", "safe_rejected"):
            if value := getattr(self.told, name):
                said[name] = value
        return said | self.counts

    # A row's values

    def _row(self, values: Sequence[object]) -> dict[str, Any]:
        row = dict(zip(self.columns, values, strict=True))
        for role in self.json_roles:
            row[role] = parse_cell(self.columns[role], row[role])
        if self.kind == "label" and "responses" in row:
            row |= _two_of(self.columns["responses"], row["responses"])
        if self.is_rounds:
            row |= _rounds({role: row[role] for role in ("prompt", "response_1", "response_2")})
        return row

    def _preference(
        self, row: Mapping[str, Any], names: tuple[str, str], good: object, bad: object
    ) -> Preference:
        id = self._id(row.get("id"))
        user = identifier(row.get("user"), self.columns.get("user", "user"))
        before = self._before(row)
        if "turn" in row and not is_null(row["turn"]):
            good = cut_at_turn(names[0], good, plain(row["turn"]))
            bad = cut_at_turn(names[1], bad, plain(row["turn"]))
        if "prompt" not in row:
            pair = read_conversations(
                names, good, bad, before=before, id=id, user=user, counts=self.counts
            )
            return with_tools(pair, row["tools"]) if "tools" in row else pair
        prompt = row["prompt"]
        if type(prompt) is str:
            if type(good) is str and type(bad) is str and prompt and good.startswith(prompt):
                good, bad = without_prompt(prompt, good, bad, self.counts)
            if self.has_transcripts:
                prompt = transcript_prompt(prompt)
            prompt = self._with_input(row, prompt)
        named = (self.columns["prompt"], *names)
        pair = read_pair(
            named, prompt, good, bad, before=before, id=id, user=user, counts=self.counts
        )
        tools = row.get("tools")
        if is_null(tools) and isinstance(asked := plain(row["prompt"]), Mapping):
            tools = asked.get(TOOL_DEFINITIONS)
        return pair if is_null(tools) else with_tools(pair, tools)

    def _id(self, value: object) -> str | None:
        """The row's id; a list or the like is left out, since nothing that is inferred depends on it."""
        try:
            return identifier(value, "id")
        except DataError:
            self.counts["ids_left_out"] += 1
            return None

    def _with_input(self, row: Mapping[str, Any], prompt: Any) -> Any:
        """The instruction with its input below it, as Alpaca's format has it."""
        more = row.get("input")
        if "input" not in row or is_null(more) or more == "":
            return prompt
        if not isinstance(more, str) or not isinstance(prompt, str):
            raise wrong_type(self.columns["input"], more, "text")
        return f"{prompt}\n{more}"

    def _before(self, row: Mapping[str, Any]) -> Turns:
        """The turns that other columns hold: a system message, a history."""
        before: Turns = ()
        system = row.get("system")
        if not is_null(system) and system != "":
            if not isinstance(system, str):
                raise wrong_type(self.columns["system"], system, "text")
            before = (Turn("system", system),) if system.strip() else ()
        if "history" in row:
            before += read_history(self.columns["history"], row["history"])
        return before

    # Which response is preferred

    def _sides(self, row: Mapping[str, Any]) -> tuple[str, str]:
        if self.kind in ("pair", "conversations"):
            self._compare_scores(row)
            if self.compared is not None:
                self._compare_label(row, _which(row))
            return "chosen", "rejected"
        verdict = self._verdict(row)
        if verdict == "tie":
            raise tie_error(self._label_name)
        if self.compared is not None:
            self._compare_label(row, verdict)
        if "compared_score_1" in row:
            self._compare_two_scores(row, verdict)
        both = ("response_1", "response_2")
        return both if verdict == "first" else (both[1], both[0])

    @property
    def _label_name(self) -> str:
        return next(
            self.columns[role] for role in ("label", "label_1", "score_1") if role in self.columns
        )

    def _verdict(self, row: Mapping[str, Any]) -> Verdict:
        if self.kind == "label":
            assert self.coding is not None
            verdict = self.coding.verdict(self._label(row, "label"))
            if "other_label" in row:
                self._check_other(verdict, row)
            return verdict
        if self.kind == "one-hot":
            return one_hot_verdict(self.columns, row)
        if self.kind == "votes":
            return majority_verdict(row["label"], row.get("label_2"))
        scores = [as_score(self.columns[role], row[role]) for role in ("score_1", "score_2")]
        if scores[0] is None or scores[1] is None:
            raise NoPreferenceError(f"{self._label_name!r} or its counterpart is missing (null).")
        gap = scores[0] - scores[1]
        self._check_gap(abs(gap))
        return "tie" if gap == 0 else "first" if gap > 0 else "second"

    def _check_other(self, verdict: Verdict, row: Mapping[str, Any]) -> None:
        """Raise if the column of the worse response does not name the other one."""
        assert self.coding is not None
        if self.coding.verdict(self._label(row, "other_label")) == verdict:
            better, worse = self.columns["label"], self.columns["other_label"]
            raise DataError(f"{better!r} and {worse!r} name the same response.", hint=LEAVE_OUT)

    def _label(self, row: Mapping[str, Any], role: str) -> object:
        """The label; where it is one of the responses or the name of its model, "first" or "second"."""
        label = plain(row[role])
        texts = tuple(row.get(f"response_{n}", row.get(f"compared_{n}")) for n in (1, 2))
        if isinstance(label, str) and label in texts and texts[0] != texts[1]:
            return "first" if label == texts[0] else "second"
        if "model_1" in row and isinstance(label, str):
            models = [row["model_1"], row["model_2"]]
            if models[0] != models[1] and label in models:
                return "first" if label == models[0] else "second"
        return label

    def _compare_scores(self, row: Mapping[str, Any]) -> None:
        """Count pairs whose own scores do not prefer the chosen response; `min_gap` refuses them."""
        if "score_chosen" not in row:
            return
        try:
            good, bad = (as_score(r, row[r]) for r in ("score_chosen", "score_rejected"))
        except DataError:
            return
        if good is None or bad is None:
            return
        self._check_gap(good - bad)
        self._count_scores(good - bad)

    def _count_scores(self, gap: float) -> None:
        self.counts["pairs_scored"] += 1
        if gap <= 0:
            self.counts["equal_scores" if gap == 0 else "chosen_scored_lower"] += 1

    def _compare_two_scores(self, row: Mapping[str, Any], verdict: Verdict) -> None:
        """Count pairs whose label prefers the response with the lower score."""
        try:
            one, two = (as_score(r, row[r]) for r in ("compared_score_1", "compared_score_2"))
        except DataError:
            return
        if one is not None and two is not None:
            self._count_scores(one - two if verdict == "first" else two - one)

    def _compare_label(self, row: Mapping[str, Any], verdict: Verdict | None) -> None:
        """Count rows whose second label prefers the other response."""
        assert self.compared is not None
        try:
            other = self.compared.verdict(self._label(row, "compared_label"))
        except DataError:
            return
        if {verdict, other} == {"first", "second"}:
            self.counts["contradicted_rows"] += 1

    def _check_gap(self, gap: float) -> None:
        if self.told.min_gap is not None and gap < self.told.min_gap:
            raise NoPreferenceError(
                f"the scores differ by {gap:g}, less than min_gap={self.told.min_gap:g}."
            )

    def _filter(self, row: Mapping[str, Any], bad: str) -> None:
        least = self.told.min_votes
        if least is not None:
            for role in ("votes_1", "votes_2"):
                votes = as_score(self.columns[role], row[role])
                if votes is None or votes < least:
                    raise NoPreferenceError(
                        f"{self.columns[role]!r} is {row[role]!r:.40}, under min_votes={least}."
                    )
        if self.told.safe_rejected:
            role = "safe_1" if bad == "response_1" else "safe_2"
            if not row[role]:
                raise NoPreferenceError("the rejected response is not safe (safe_rejected=True).")

    # Several responses

    def _of_list(self, row: Mapping[str, Any]) -> list[Preference]:
        name, score_name = self.columns["responses"], self.columns.get("scores", "scores")
        found = candidates_of(name, row["responses"], row.get("scores"), score_name)
        scores = [each.score for each in found]
        if found and not any(score is not None for score in scores):
            raise DataError(
                f"{name!r} holds responses without scores or ranks.",
                hint="Say which column has them: columns={'scores': 'the column'}. Their order alone does"
                " not say which one is better.",
            )
        places = pair_places(scores, self.told.pairs or "best-worst", self.told.min_gap or 0.0)
        return self._numbered(
            row, [((name, name), found[i].response, found[j].response) for i, j in places]
        )

    def _numbered(
        self, row: Mapping[str, Any], found: Sequence[tuple[tuple[str, str], object, object]]
    ) -> list[Preference]:
        """The preferences of one prompt; where there are several, each gets an id of its own."""
        made = [self._preference(row, names, good, bad) for names, good, bad in found]
        if len(made) < 2:
            return made
        return [
            pair.model_copy(update={"id": pair.id and f"{pair.id}-{number}"})
            for number, pair in enumerate(made, 1)
        ]


# Values


def _which(row: Mapping[str, Any]) -> Verdict | None:
    """Which of the two other responses of the row the chosen one is; None if it is neither."""
    chosen, rejected = plain(row["chosen"]), plain(row["rejected"])
    both = plain(row["compared_1"]), plain(row["compared_2"])
    if both == (chosen, rejected):
        return "first"
    return "second" if both == (rejected, chosen) else None


def _key(value: object) -> object:
    """A value that is equal for equal cells, and can be looked up."""
    value = plain(value)
    if is_null(value) or value == "":
        return None
    return value if isinstance(value, str | int | float) else repr(value)


def _are_json(role: str, values: Sequence[object]) -> bool:
    if role in _LIST_ROLES:
        return all(isinstance(v, str) and v.lstrip()[:1] in ("[", "") for v in values)
    return all(map(looks_like_turns, values))


def _is_json_list(value: object) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("[", "[null"))


def _are_lists(*values: object) -> bool:
    """Whether both are lists of texts: several responses, not the turns of one."""
    lists = [plain(value) for value in values]
    return all(
        isinstance(v, list | tuple) and v and isinstance(v[0], str) and not looks_like_turns(v[0])
        for v in lists
    )


def _refuse_lists(columns: Mapping[str, str], row: Mapping[str, Any]) -> None:
    if type(row["chosen"]) is not str and _are_lists(row["chosen"], row["rejected"]):
        raise DataError(
            f"{columns['chosen']!r} and {columns['rejected']!r} are lists of responses.",
            hint='Say which make a pair: pairs="all" (each with each) or pairs="adjacent".',
        )


def _two_of(name: str, responses: object) -> dict[str, object]:
    """The two responses of a list, of which a label in another column prefers one."""
    found = candidates_of(name, responses)
    if len(found) != 2:
        raise DataError(f"{name!r} has {len(found)} responses, and a label is read for two.")
    return {"response_1": found[0].response, "response_2": found[1].response}


def _rounds(row: Mapping[str, Any]) -> dict[str, object]:
    """The rounds of a conversation, each a prompt and two responses, as texts or as turns."""
    lists = {role: json.loads(value) for role, value in row.items()}
    sizes = {len(each) for each in lists.values()}
    if len(sizes) > 1 or not all(isinstance(t, str) for each in lists.values() for t in each):
        raise NoPreferenceError("a round has no prompt or no response.", hint=LEAVE_OUT)
    if sizes == {1}:
        return {role: each[0] for role, each in lists.items()}
    asked = lists.pop("prompt")
    said: dict[str, object] = {
        role: [
            {"role": speaker, "content": text}
            for pair in zip(asked, each, strict=True)
            for speaker, text in zip(("user", "assistant"), pair, strict=True)
        ]
        for role, each in lists.items()
    }
    return {"prompt": asked[-1], **said}


@cache
def example_rows() -> dict[str, dict[str, Any]]:
    """An example row of each schema and of each named data set, by name."""
    text = files(__package__).joinpath("texts/example_rows.json").read_text("utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found
