"""Read a row as a `Preference`, by the schema of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..exceptions import DataError, NoPreferenceError
from ..records import Preference, unchecked
from .cells import ABSENT, LEAVE_OUT, identifier, is_null, parse_cell, plain, wrong_type
from .conversations import (
    cut_at_turn,
    is_exchange,
    read_conversations,
    read_pair,
    transcript_prompt,
    without_prompt,
)
from .labels import Verdict, majority_verdict, one_hot_verdict, read_flag, tie_error
from .pairing import as_score, candidates_of, difference, is_ranked, pair_places, zip_lists
from .schemas import Schema, are_lists
from .turns import (
    TOOL_DEFINITIONS,
    Turn,
    Turns,
    check_text,
    read_history,
    read_responses,
    read_system,
    with_tools,
)

_MAY_BE_JSON = frozenset("[{ \t\r\n")  # a JSON text of turns begins with one of these


def read_one(schema: Schema, values: Sequence[object]) -> Preference:
    """Read the preference in a row. `conversations.pair_problem` tells whether its texts can be used.

    Of a list of scored responses, the first pair that `pairs=` makes is read.

    Args:
        schema: the schema of the data, of any kind but "group".
        values: the row's values, in the order of the schema's columns.

    Raises:
        NoPreferenceError: the row states no preference: it has a tie or a null, or an option of the caller,
            such as `min_gap`, excludes it.
        ContradictionError: the label shows that labels of earlier rows may have been misread.
        DataError: the row cannot be read, or chosen and rejected are lists of responses.
    """
    if schema.is_plain:  # a fast path: nearly all data is plain
        # The roles of a plain schema come first; the others are mostly absent.
        prompt, chosen, rejected, id, user, system, tools = values[:7]
        if (
            type(prompt) is type(chosen) is type(rejected) is str
            and (system is ABSENT or system is None)
            and (tools is ABSENT or tools is None)
            and (len(values) == 7 or all(map(is_null, values[7:])))
            and (prompt and chosen and rejected)
            and not chosen.startswith(prompt)
            and prompt[0] not in _MAY_BE_JSON
            and chosen[0] not in _MAY_BE_JSON
            and rejected[0] not in _MAY_BE_JSON
        ):
            name = None if id is ABSENT else _id(schema, id)
            who = None if user is ABSENT else identifier(user, schema.columns["user"])
            texts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            return unchecked(Preference, {**texts, "id": name, "user": who})
    row = _cells(schema, values)
    if schema.kind == "list":
        return _of_list(schema, row)[0]
    good, bad = _sides(schema, row)
    if schema.kind == "pair":
        _refuse_lists(schema.columns, row)
    _filter(schema, row, bad)
    names = (schema.columns.get(good, "responses"), schema.columns.get(bad, "responses"))
    return _preference(schema, row, names, row[good], row[bad])


def read_all(schema: Schema, values: Sequence[object]) -> list[Preference]:
    """Read all preferences that the rule `pairs=` makes of a row: of scored responses, or of two lists.

    Args:
        schema, values: as for `read_one`.

    Returns:
        One preference or more. If there are several, the id of number n is the row's id with "-n" appended.

    Raises:
        DataError: as for `read_one`; or the rule cannot be used, or makes more than `MOST_PAIRS` pairs.
    """
    row = _cells(schema, values)
    if schema.kind == "list":
        return _of_list(schema, row)
    if schema.kind == "pair" and schema.told.pairs and are_lists(row["chosen"], row["rejected"]):
        names = (schema.columns["chosen"], schema.columns["rejected"])
        cells = [plain(row["chosen"]), plain(row["rejected"])]
        lists: list[Any] = [[cell] if isinstance(cell, str) else cell for cell in cells]
        both = list(zip_lists(names, lists[0], lists[1], schema.told.pairs))
        return _numbered(schema, row, [(names, one, other) for one, other in both])
    return [read_one(schema, values)]


def read_group(schema: Schema, group: Sequence[Sequence[object]]) -> list[Preference]:
    """Read the preferences that `pairs=` makes among rows that each hold one scored response to one prompt.

    Args:
        schema: the schema of the data, of the kind "group".
        group: the values of each row, in the order of the schema's columns. Prompt, id and user are read from
            the first row.

    Returns:
        One preference or more. If there are several, the id of number n is the first row's id with "-n"
        appended.

    Raises:
        NoPreferenceError: no two scores differ, or not by `min_gap`.
        DataError: a cell cannot be read, or the rule makes more than `MOST_PAIRS` pairs.
    """
    rows = [_cells(schema, values) for values in group]
    # A bad user is a clearer error than a bad score, so it is found first.
    identifier(rows[0].get("user"), schema.columns.get("user", "user"))
    name = schema.columns["score"]
    sign = -1 if is_ranked(name) else 1
    found = (_score_or_flag(name, row["score"]) for row in rows)
    scores = [None if score is None else sign * score for score in found]
    try:
        places = pair_places(scores, schema.told.pairs or "best-worst", schema.told.min_gap or 0.0)
    except NoPreferenceError as error:
        if len(rows) > 1:
            raise
        column = schema.columns.get("group", schema.columns["prompt"])
        raise NoPreferenceError(
            error.message,
            hint="Only neighbouring rows of a prompt are paired. If its other responses are elsewhere,"
            f" sort the data by {column!r} first.",
        ) from None
    names = (schema.columns["response"],) * 2
    pairs = [(names, rows[i]["response"], rows[j]["response"]) for i, j in places]
    return _numbered(schema, rows[0], pairs)


def _score_or_flag(name: str, value: object) -> float | None:
    """Read a score, as `as_score` does; true becomes 1 and false 0, as KTO's unpaired rows have them."""
    value = plain(value)
    is_flag = isinstance(value, bool) or str(value).strip().lower() in ("true", "false")
    return float(bool(read_flag(name, value))) if is_flag else as_score(name, value)


# A row's values

_PLAIN_TYPES = frozenset((str, int, float, bool, list, dict, type(None), type(ABSENT)))
_LISTS = frozenset(("responses", "scores", "history"))  # text in these roles can only be JSON
_OF_ROUNDS = ("prompt", "chosen", "rejected", "response_1", "response_2")


def _cells(schema: Schema, values: Sequence[object]) -> dict[str, Any]:
    """Return role -> plain value of a row, with JSON text parsed, and lists of responses or rounds split.

    Raises:
        DataError: a cell is not JSON, although its column holds JSON, or a list has not two responses.
    """
    if not _PLAIN_TYPES.issuperset(map(type, values)):
        values = [plain(value) for value in values]
    row = schema.row(values)
    for role in schema.json_roles.union(_LISTS & row.keys()):
        row[role] = parse_cell(schema.columns[role], row[role])
    if schema.kind == "label" and "responses" in row:
        row |= _two_of(schema.columns["responses"], row["responses"])
    if schema.is_rounds:
        row |= _rounds({role: row[role] for role in _OF_ROUNDS if role in row})
    return row


def _two_of(name: str, responses: object) -> dict[str, object]:
    """Read a list of exactly two responses as response_1 and response_2.

    Raises:
        DataError: the value is no list, or has another length.
    """
    found = candidates_of(name, responses)
    if len(found) != 2:
        raise DataError(f"{name!r} has {len(found)} responses, and a label is read for two.")
    return {"response_1": found[0].response, "response_2": found[1].response}


def _rounds(row: Mapping[str, Any]) -> dict[str, object]:
    """Read lists of rounds: a prompt and two responses a round.

    Args:
        row: the roles prompt, response_1 and response_2, each a list with one text a round (or JSON of it).

    Returns:
        The same roles. With one round: its three texts. With more: the last prompt, and both conversations as
        messages.

    Raises:
        NoPreferenceError: a round, or a text of one, is missing.
        DataError: a cell is text that is not JSON.
    """
    lists: dict[str, Any] = {role: parse_cell(role, value) for role, value in row.items()}
    if not all(each and isinstance(each, list | tuple) for each in lists.values()):
        raise NoPreferenceError("a round is missing.", hint=LEAVE_OUT)
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


def _preference(
    schema: Schema, row: Mapping[str, Any], names: tuple[str, str], good: object, bad: object
) -> Preference:
    """Make the preference of two responses, `good` and `bad`, from the columns `names` of a row."""
    id = _id(schema, row.get("id"))
    user = identifier(row.get("user"), schema.columns.get("user", "user"))
    before = _before(schema, row)
    if "turn" in row:
        turn = as_score(schema.columns["turn"], row["turn"])
        good = cut_at_turn(names[0], good, turn)
        bad = cut_at_turn(names[1], bad, turn)
    good, bad = read_responses(names, good, bad)
    is_usual = "prompt" not in row or schema.has_exchanges
    may_be = type(good) is str and good.lstrip().startswith("Human:")
    are_whole = is_usual or (may_be and is_exchange(good) and is_exchange(bad))
    if are_whole and ("prompt" not in row or not _begin_with_prompt(row, good, bad)):
        pair = read_conversations(
            names, good, bad, before=before, id=id, user=user, counts=schema.counts
        )
        _check_prompt(schema, row, pair, is_sure=not is_usual)
        tools = row.get("tools")
        return pair if is_null(tools) else with_tools(pair, tools, schema.counts)
    prompt = row["prompt"]
    if type(prompt) is str:
        check_text(schema.columns["prompt"], prompt, is_response=False)
        may_repeat = prompt and (schema.repeats_prompt or _begin_with_prompt(row, good))
        if may_repeat and type(good) is str and type(bad) is str:
            good, bad = _without_repeats(schema, row, prompt, good, bad)
        if schema.has_transcripts or prompt.endswith("Assistant:"):
            prompt = transcript_prompt(prompt)
        prompt = _with_input(schema, row, prompt)
    named = (schema.columns["prompt"], *names)
    pair = read_pair(
        named, prompt, good, bad, before=before, id=id, user=user, counts=schema.counts
    )
    tools = row.get("tools")
    if is_null(tools) and isinstance(asked := plain(row["prompt"]), Mapping):
        tools = asked.get(TOOL_DEFINITIONS)
    return pair if is_null(tools) else with_tools(pair, tools, schema.counts)


def _without_repeats(
    schema: Schema, row: Mapping[str, Any], prompt: str, good: str, bad: str
) -> tuple[str, str]:
    """Remove the prompt from two responses that both repeat it, and then the row's "input" likewise."""
    is_usual = bool(schema.repeats_prompt)
    found = without_prompt(prompt, good, bad, schema.counts, is_usual=is_usual)
    more = row.get("input")
    if found != (good, bad) and isinstance(more, str) and more.strip():
        found = without_prompt(more, *found, Counter(), is_usual=True)
    return found


def _begin_with_prompt(row: Mapping[str, Any], *responses: object) -> bool:
    prompt = row["prompt"]
    return isinstance(prompt, str) and all(
        isinstance(text, str) and text.startswith(prompt) for text in responses
    )


def _check_prompt(
    schema: Schema, row: Mapping[str, Any], pair: Preference, *, is_sure: bool
) -> None:
    """Raise DataError if the prompt's column holds no turn of the conversations in chosen and rejected.

    If the column's name leaves a doubt that it holds prompts, a text in it is not checked.

    Args:
        schema: the schema of the data.
        row: role -> value.
        pair: the preference that was read from the conversations.
        is_sure: whether the column surely holds prompts, whatever its name.
    """
    column = schema.columns.get("prompt", "prompt")
    is_sure = is_sure or column == "prompt" or "prompt" in schema.told.columns
    if "prompt" not in row or (not is_sure and isinstance(row["prompt"], str | None)):
        return
    prompt = pair.prompt
    turns = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    if not isinstance(row["prompt"], str) or row["prompt"].strip() not in map(str.strip, turns):
        raise DataError(
            f"the responses are conversations, in which {column!r} is no turn.", hint=LEAVE_OUT
        )


def _id(schema: Schema, value: object) -> str | None:
    """Read the row's id; None for a null, and, counted as "ids_left_out", for a value that is no id.

    A row needs no id, so a bad one costs no row.
    """
    try:
        return identifier(value, "id")
    except DataError:
        schema.counts["ids_left_out"] += 1
        return None


def _with_input(schema: Schema, row: Mapping[str, Any], prompt: Any) -> Any:
    """Return the prompt with the row's "input", if there is one, on a new line, as in Alpaca's format."""
    more = row.get("input")
    if "input" not in row or is_null(more) or more == "":
        return prompt
    if not isinstance(more, str) or not isinstance(prompt, str):
        raise wrong_type(schema.columns["input"], more, "text")
    return f"{prompt}\n{more}"


def _before(schema: Schema, row: Mapping[str, Any]) -> Turns:
    """Return the turns that the columns of system message and history hold, in this order."""
    system = row.get("system")
    before: Turns = ()
    if not is_null(system):
        text = system if type(system) is str else read_system(schema.columns["system"], system)
        before = (Turn("system", text),) if text.strip() else ()
    if "history" in row:
        before += read_history(schema.columns["history"], row["history"])
    return before


# Which response is preferred


def _sides(schema: Schema, row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the role of the preferred response, then that of the other one.

    A second label and scores beside the choice are compared with it, and counted in `schema.counts`.

    Raises:
        NoPreferenceError: the row has a tie or no verdict, or its scores differ by less than `min_gap`.
        DataError: the label or a score cannot be read.
    """
    if schema.kind in ("pair", "conversations"):
        _compare_scores(schema, row)
        if schema.compared is not None:
            _compare_label(schema, row, _which(row))
        return "chosen", "rejected"
    verdict = _verdict(schema, row)
    if verdict == "tie":
        raise tie_error(_label_name(schema))
    if schema.compared is not None:
        _compare_label(schema, row, verdict)
    if "compared_score_1" in row:
        _compare_two_scores(schema, row, verdict)
    both = ("response_1", "response_2")
    return both if verdict == "first" else (both[1], both[0])


def _label_name(schema: Schema) -> str:
    return next(
        schema.columns[role] for role in ("label", "label_1", "score_1") if role in schema.columns
    )


def _verdict(schema: Schema, row: Mapping[str, Any]) -> Verdict:
    if schema.kind == "label":
        assert schema.coding is not None
        verdict = schema.coding.verdict(schema.label(row, "label"))
        if "other_label" in row:
            _check_other(schema, verdict, row)
        return verdict
    if schema.kind == "one-hot":
        return one_hot_verdict(schema.columns, row)
    if schema.kind == "votes":
        return majority_verdict(row["label"], row.get("label_2"))
    scores = [as_score(schema.columns[role], row[role]) for role in ("score_1", "score_2")]
    if scores[0] is None or scores[1] is None:
        raise NoPreferenceError(f"{_label_name(schema)!r} or its counterpart is missing (null).")
    gap = difference(scores[0], scores[1])
    if is_ranked(schema.columns["score_1"]):
        gap = -gap
    _check_gap(schema, abs(gap))
    return "tie" if gap == 0 else "first" if gap > 0 else "second"


def _check_other(schema: Schema, verdict: Verdict, row: Mapping[str, Any]) -> None:
    """Raise DataError if the columns for the better and the worse response name the same one."""
    assert schema.coding is not None
    if schema.coding.verdict(schema.label(row, "other_label")) == verdict:
        better, worse = schema.columns["label"], schema.columns["other_label"]
        raise DataError(f"{better!r} and {worse!r} name the same response.", hint=LEAVE_OUT)


def _compare_scores(schema: Schema, row: Mapping[str, Any]) -> None:
    """Count pairs with scores, and those whose scores do not prefer the chosen response.

    Raises:
        NoPreferenceError: the score of the chosen response is not at least `min_gap` above the other one's.
    """
    gap = _gap(row, "score_chosen", "score_rejected") if "score_chosen" in row else None
    if gap is not None:
        _check_gap(schema, gap)
        _count_scores(schema, gap)


def _gap(row: Mapping[str, Any], role: str, other: str) -> float | None:
    """Return the score of `role` minus that of `other`; None if one of them is null or no number."""
    try:
        one, two = as_score(role, row[role]), as_score(other, row[other])
    except DataError:
        return None
    return None if one is None or two is None else difference(one, two)


def _count_scores(schema: Schema, gap: float) -> None:
    schema.counts["pairs_scored"] += 1
    if gap <= 0:
        schema.counts["equal_scores" if gap == 0 else "chosen_scored_lower"] += 1


def _compare_two_scores(schema: Schema, row: Mapping[str, Any], verdict: Verdict) -> None:
    """Count pairs with scores, and those whose label does not prefer the response with the higher score."""
    gap = _gap(row, "compared_score_1", "compared_score_2")
    if gap is not None:
        _count_scores(schema, gap if verdict == "first" else -gap)


def _compare_label(schema: Schema, row: Mapping[str, Any], verdict: Verdict | None) -> None:
    """Count the row as contradicted if its second label prefers another response than `verdict` says."""
    assert schema.compared is not None
    try:
        other = schema.compared.verdict(schema.label(row, "compared_label"))
    except DataError:
        return
    if {verdict, other} == {"first", "second"}:
        schema.counts["contradicted_rows"] += 1


def _which(row: Mapping[str, Any]) -> Verdict | None:
    """Return which of compared_1 and compared_2 is the chosen response; None if they are other texts."""
    chosen, rejected = plain(row["chosen"]), plain(row["rejected"])
    both = plain(row["compared_1"]), plain(row["compared_2"])
    if both == (chosen, rejected):
        return "first"
    return "second" if both == (rejected, chosen) else None


def _check_gap(schema: Schema, gap: float) -> None:
    if schema.told.min_gap is not None and gap < schema.told.min_gap:
        said = f"the scores differ by {gap:g}, less than min_gap={schema.told.min_gap:g}."
        if gap < 0:
            said = f"the chosen response scores {-gap:g} lower, and min_gap= is given."
        raise NoPreferenceError(said)


def _filter(schema: Schema, row: Mapping[str, Any], bad: str) -> None:
    """Raise NoPreferenceError for a row that `min_votes` or `safe_rejected` excludes.

    `bad` is the role of the rejected response.
    """
    least = schema.told.min_votes
    if least is not None:
        for role in ("votes_1", "votes_2"):
            votes = as_score(schema.columns[role], row[role])
            if votes is None or votes < least:
                raise NoPreferenceError(
                    f"{schema.columns[role]!r} is {row[role]!r:.40}, under min_votes={least}."
                )
    if schema.told.safe_rejected:
        role = "safe_1" if bad == "response_1" else "safe_2"
        is_safe = read_flag(schema.columns[role], row[role])
        if is_safe is None:
            raise NoPreferenceError(f"{schema.columns[role]!r} does not say whether it is safe.")
        if not is_safe:
            raise NoPreferenceError("the rejected response is not safe (safe_rejected=True).")


# Several responses


def _refuse_lists(columns: Mapping[str, str], row: Mapping[str, Any]) -> None:
    is_text = type(row["chosen"]) is type(row["rejected"]) is str
    if not is_text and are_lists(row["chosen"], row["rejected"]):
        raise DataError(
            f"{columns['chosen']!r} and {columns['rejected']!r} are lists of responses.",
            hint='Say which make a pair: pairs="all" (each with each) or pairs="adjacent".',
        )


def _of_list(schema: Schema, row: Mapping[str, Any]) -> list[Preference]:
    name, score_name = schema.columns["responses"], schema.columns.get("scores", "scores")
    found = candidates_of(name, row["responses"], row.get("scores"), score_name)
    scores = [each.score for each in found]
    if found and not any(score is not None for score in scores):
        raise DataError(
            f"{name!r} holds responses without scores or ranks.",
            hint="Say which column has them: columns={'scores': 'the column'}. Their order alone does"
            " not say which one is better.",
        )
    places = pair_places(scores, schema.told.pairs or "best-worst", schema.told.min_gap or 0.0)
    return _numbered(
        schema, row, [((name, name), found[i].response, found[j].response) for i, j in places]
    )


def _numbered(
    schema: Schema, row: Mapping[str, Any], found: Sequence[tuple[tuple[str, str], object, object]]
) -> list[Preference]:
    """Make the preferences of one prompt; if there are several, the id of number n gets "-n" appended.

    Args:
        schema: the schema of the data.
        row: role -> value.
        found: of each pair, the columns of its two responses, the preferred response and the other one.
    """
    made = [_preference(schema, row, names, good, bad) for names, good, bad in found]
    if len(made) < 2:
        return made
    return [
        pair.model_copy(update={"id": pair.id and f"{pair.id}-{number}"})
        for number, pair in enumerate(made, 1)
    ]
