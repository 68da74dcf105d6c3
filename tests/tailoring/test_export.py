"""Exports: files that `datasets` and TRL read, a card that says how they came about, nothing lost."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import personainfer as pi
from personainfer.exceptions import DataError, InvalidArgumentError, visible
from personainfer.local.weights import find_weights
from personainfer.tailoring.dataset_card import _size_category
from personainfer.tailoring.export import EXPORT_FORMATS
from personainfer.testing import FakeLLM, Reply

from ..builders import BRIEF, CHAT, pairs, repeated, row, table

SHARES = {"train": 0.75, "test": 0.25}
PLACES = ("system", "user", "plain")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file as `datasets` gives them."""
    datasets = pytest.importorskip("datasets")
    return list(datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "hf")))


# Files


@pytest.mark.parametrize("format", EXPORT_FORMATS)
@pytest.mark.parametrize("place", ["system", "plain"])
def test_a_file_holds_the_rows(format: str, place: Any, tmp_path: Path) -> None:
    rows = pi.tailoring_rows(
        table(), persona="both", format=EXPORT_FORMATS[format].rows, persona_in=place
    )
    options: dict[str, Any] = {"format": format, "persona": "both", "persona_in": place}
    made = pi.export_personas(table(), tmp_path / "rows.parquet", **options)
    assert read(made.files["train"]) == list(rows)
    assert (made.rows, made.card) == ({"train": len(rows)}, None)
    pi.export_personas(table(), tmp_path / "rows.jsonl", **options)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == list(rows)
    stream = io.StringIO()
    assert pi.export_personas(table(), stream, **options).files == {}
    assert list(map(json.loads, stream.getvalue().splitlines())) == list(rows)


def test_what_may_go_to_a_terminal_acts_on_none() -> None:
    stream = io.StringIO()
    pair = pi.Preference(prompt="q \x9b2J", chosen="a \u202e", rejected="b \u2028")
    made = pi.PersonaTable([pi.PersonaRow(0, pair, chosen=BRIEF, rejected=BRIEF)])
    pi.export_personas(made, stream)
    assert not {"\x9b", "\u202e", "\u2028"} & set(stream.getvalue())
    assert json.loads(stream.getvalue())["chosen"][0]["content"] == "a \u202e"


def bare(value: Any) -> Any:
    """Without the nulls that Arrow adds, where a turn lacks the field of another; those of arguments stay."""
    if isinstance(value, dict):
        return {
            name: each if name == "arguments" else bare(each)
            for name, each in value.items()
            if each is not None
        }
    return list(map(bare, value)) if isinstance(value, list) else value


@pytest.mark.heavy
@pytest.mark.parametrize("format", EXPORT_FORMATS)
@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        (['{"n": 1}', "{}"], ['{"n": 1}', "{}"]),
        ([{"n": 1}, {"n": 2}], [{"n": 1}, {"n": 2}]),
        ([{"n": 1}, {"n": None}], [{"n": 1}, {"n": None}]),
        ([{"n": 1}, {"of": "tea"}], ['{"n": 1}', '{"of": "tea"}']),  # both would get both
        ([{"n": {"a": 1}}, {"n": {}}], ['{"n": {"a": 1}}', '{"n": {}}']),
        ([{"n": 1}, {"n": "x"}], ['{"n": 1}', '{"n": "x"}']),  # no one type for both
        ([{"n": 1}, {"n": 0.5}], ['{"n": 1}', '{"n": 0.5}']),  # 1 would become 1.0
        ([{"n": 2**70}, {}], [f'{{"n": {2**70}}}', "{}"]),  # no type of Arrow's holds it
        ([{}, {}], ["{}", "{}"]),  # Parquet has no structs without fields
    ],
)
def test_a_folder_holds_the_tools_and_their_calls(
    format: str, arguments: list[Any], stored: list[Any], tmp_path: Path
) -> None:
    """In Parquet as in JSON lines: an answer to no call would be trained on else."""
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]

    def asked(called: Any) -> dict[str, Any]:
        call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": called}}
        turns = [
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "12:00", "tool_call_id": "1", "name": "clock"},
        ]
        said = {"prompt": turns, "tools": tools, "chosen": "Noon.", "rejected": "Late."}
        return {**said, "chosen_persona": "The user prefers short answers."}

    plain = {**pairs(1)[0], "chosen_persona": "The user prefers tea."}
    given, kept = (
        pi.PersonaTable.from_data([*map(asked, each), plain], rejected_persona=None)
        for each in (arguments, stored)
    )
    pi.export_personas(given, tmp_path / "set", format=format)
    wanted = bare(list(pi.tailoring_rows(kept, format=EXPORT_FORMATS[format].rows)))
    assert "tool_calls" in str(wanted)
    assert bare(read(tmp_path / "set" / "data" / "train.parquet")) == wanted
    assert "tools" in (tmp_path / "set" / "README.md").read_text("utf-8")


def test_calls_get_no_arguments_that_nobody_gave(tmp_path: Path) -> None:
    def asked(arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        turns = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
        ]
        return {
            "prompt": turns,
            "chosen": "a",
            "rejected": "b",
            "chosen_persona": "The user is calm.",
        }

    given: list[dict[str, Any]] = [{"city": "Paris", "unit": None}, {"day": 3}, {"city": "Rome"}]
    made = pi.PersonaTable.from_data([asked(each) for each in given], rejected_persona=None)
    file = pi.export_personas(made, tmp_path / "rows.parquet").files["train"]
    turns = [row["prompt"][2] for row in pq.read_table(file).to_pylist()]
    calls = [turn["tool_calls"][0]["function"] for turn in turns]
    assert [json.loads(call["arguments"]) for call in calls] == given


def test_nothing_to_export_is_an_error_that_says_why(tmp_path: Path) -> None:
    none = pi.PersonaTable([row(0, chosen=None, error="the reply was empty")])
    with pytest.raises(DataError, match=r"no row is left to export \(no_persona: 1\)"):
        pi.export_personas(none, tmp_path / "set")
    with pytest.raises(DataError, match="the table is empty"):
        pi.export_personas(pi.PersonaTable([]), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_a_folder_loads_by_its_name_with_its_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = pi.export_personas(repeated(), tmp_path / "set", splits=SHARES)
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "hf"))
    assert {name: len(part) for name, part in loaded.items()} == made.rows
    parts = pi.tailoring_rows(repeated()).split(SHARES)
    assert list(loaded["test"]) == list(parts["test"])


def test_an_export_replaces_an_export_and_its_splits(tmp_path: Path) -> None:
    pi.export_personas(repeated(), tmp_path / "set", splits=SHARES)
    (tmp_path / "set" / "data" / "mine.parquet").write_text("mine")
    pi.export_personas(repeated(), tmp_path / "set", format="trl-sft")
    left = sorted(path.name for path in (tmp_path / "set").rglob("*") if path.is_file())
    assert left == ["README.md", "mine.parquet", "train.parquet"]
    assert read(tmp_path / "set" / "data" / "train.parquet")[0].keys() == {"prompt", "completion"}


@pytest.mark.parametrize("name", ["README.md", "data/train.parquet"])
def test_what_is_no_exports_is_not_replaced(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "set" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InvalidArgumentError, match=f"{mine.name} that is not an export's"):
        pi.export_personas(table(), tmp_path / "set")
    assert [path for path in (tmp_path / "set").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_a_strangers_folder_leads_to_no_other(tmp_path: Path) -> None:
    """Its card is an export's, and names a file of the user's; or its data is a link."""
    folder, own = tmp_path / "set", tmp_path / "own"
    pi.export_personas(repeated(), folder)
    mine = folder / "data" / "train.parquet"
    mine.write_bytes(b"mine")
    with pytest.raises(
        InvalidArgumentError, match=r"train\.parquet.*is not an export.*move it away"
    ):
        pi.export_personas(repeated(), folder)
    assert mine.read_bytes() == b"mine"
    (folder / "data").rename(own)
    (folder / "data").symlink_to(own)
    with pytest.raises(InvalidArgumentError, match="is a link"):
        pi.export_personas(repeated(), folder)
    assert (own / "train.parquet").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_file_of_the_users_own_is_not_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    own = pd.DataFrame({"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]})
    own.to_json(path, orient="records", lines=True) if path.suffix == ".jsonl" else own.to_parquet(
        path
    )
    before = path.read_bytes()
    with pytest.raises(InvalidArgumentError, match=r"is not an export.*overwrite=True"):
        pi.export_personas(table(), path)
    assert path.read_bytes() == before
    pi.export_personas(table(), path, overwrite=True)
    for format in EXPORT_FORMATS:  # each replaces the one before
        for place in ("system", "plain") if format != "trl-reward" else ("system",):
            pi.export_personas(table(), path, format=format, persona_in=place)


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("set", {"format": "trl-dop"}, "Did you mean 'trl-dpo'"),
        ("set", {"format": "x"}, "Known: trl-dpo, trl-sft"),
        ("set", {"format": ["trl-dpo"]}, "is not known"),
        ("set", {"persona": "each"}, "persona='each'"),
        ("set", {"title": 3}, "title=3 is not text"),
        ("set", {"splits": {1: 1.0}}, "1 cannot be the name"),
        ("set", {"splits": {"train": 0.5}}, "add up to 0.5"),
        ("set", {"splits": {"../up": 1.0}}, "'../up' cannot be the name"),
        ("set", {"splits": {"All": 1.0}}, "'All' cannot be the name"),
        ("rows.csv", {}, "neither a folder nor"),
        ("rows.jsonl", {"splits": SHARES}, "needs a folder"),
        ("no/rows.jsonl", {}, "there is no folder"),
    ],
)
def test_a_bad_argument_writes_nothing(
    path: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        pi.export_personas(table(), tmp_path / path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 3, io.BytesIO()], ids=["None", "a number", "binary"])
def test_what_is_no_place_to_write_to(path: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="neither a path nor an open text file"):
        pi.export_personas(table(), path)


def test_a_table_of_personas_is_not_replaced(tmp_path: Path) -> None:
    table().save(tmp_path / "table.parquet")
    before = (tmp_path / "table.parquet").read_bytes()
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="is a table of personas"):
            pi.export_personas(table(), tmp_path / "table.parquet")
        assert (tmp_path / "table.parquet").read_bytes() == before
        pi.export_personas(table(), tmp_path / "rows.parquet")  # which may be replaced


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data").write_text("a file")
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        pi.export_personas(table(), tmp_path / "set")


# The card


def test_the_card_says_how_the_personas_were_made_and_verified(
    llm: FakeLLM, tmp_path: Path
) -> None:
    made = pi.infer_personas(pairs(4), "some-model", api_base=llm.api_base)
    before = pi.export_personas(made, tmp_path / "before", title="Tea: a `set`")
    assert before.card is not None
    text = before.card.read_text(encoding="utf-8")
    version = made.settings["prompt_version"]
    for said in ("# Tea: a `set`", "`some-model`", f"`{version}`", "4, of which 0", "Not verified"):
        assert said in text
    assert llm.api_base not in text  # where a model was reached is nobody's business
    with FakeLLM(reply=lambda request: Reply({"answer": "1"})) as judge:
        found = pi.verify_personas(made, "judge-model", api_base=judge.api_base)
    found.table.save(tmp_path / "judged.parquet")
    judged = pi.PersonaTable.load(tmp_path / "judged.parquet")
    pi.export_personas(judged, tmp_path / "after")
    text = (tmp_path / "after" / "README.md").read_text(encoding="utf-8")
    assert "`judge-model` saw a persona and both responses" in text
    assert f"| overall | {found.overall.accuracy.value:.3f} |" in text
    assert "Not verified" not in text


def test_the_card_counts_what_was_left_out_and_what_is_long(tmp_path: Path) -> None:
    long = pi.Preference(prompt="word " * 900, chosen="A", rejected="B")
    rows = [row(0), row(1, preference=long), row(2, chosen=None, error="no reply")]
    made = pi.export_personas(pi.PersonaTable(rows), tmp_path / "set")
    assert (made.rows, made.left_out, made.long_prompts) == ({"train": 2}, {"no_persona": 1}, 1)
    assert made.to_dict()["files"] == {"train": str(tmp_path / "set/data/train.parquet")}
    text = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "no persona: 1" in text
    assert "About 1 rows have a prompt of 1,024 tokens or more" in text


@pytest.mark.parametrize(("format", "long"), [("trl-reward", 1), ("trl-grpo", 0), ("few-shot", 0)])
@pytest.mark.parametrize("place", PLACES)
def test_long_prompts_are_those_that_a_trainer_would_cut(
    format: str, long: int, place: Any, tmp_path: Path
) -> None:
    """A reward model's rows hold the prompt in front of both responses; some trainers cut nothing."""
    rows = [
        row(0),
        row(1, preference=pi.Preference(prompt="word " * 900, chosen="A", rejected="B")),
    ]
    made = pi.export_personas(
        pi.PersonaTable(rows), tmp_path / "set", format=format, persona_in=place
    )
    assert made.long_prompts == long
    text = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert ("1,024 tokens" in text) is bool(long)


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("trl-dpo", "was rejected, so the two are swapped. Written"),
        ("trl-sft", "was rejected, so it is the completion. Written"),
        ("trl-grpo", "was rejected. Written"),
    ],
)
def test_the_card_says_what_became_of_a_rejected_response(
    format: str, said: str, tmp_path: Path
) -> None:
    pi.export_personas(table(), tmp_path / "set", format=format, persona="rejected")
    assert said in (tmp_path / "set" / "README.md").read_text(encoding="utf-8")


class Pleased:
    """A selector that every persona pleases."""

    model = "critic"

    def explains(self, preferences: Any, personas: Any) -> Any:
        return [1.0] * len(personas)


def test_the_card_says_who_chose_and_who_else_was_asked(tmp_path: Path) -> None:
    with FakeLLM() as llm:
        made = pi.infer_personas(
            pairs(4), "writer", api_base=llm.api_base, candidates=2, select=Pleased()
        )
    with FakeLLM(reply=lambda request: Reply({"answer": "1"})) as judge:
        found = pi.verify_personas(made, "critic", api_base=judge.api_base)
        itself = pi.verify_personas(made, "writer", api_base=judge.api_base)
    assert made.settings["selected_by"] == {"kind": "Pleased", "model": "critic"}

    def card(of: pi.PersonaTable) -> str:
        path = pi.export_personas(of, tmp_path / "set", persona="none").card
        assert path is not None
        return path.read_text(encoding="utf-8")

    assert "chosen among the candidates by: `Pleased` with `critic`" in card(made)
    assert made.settings["api_base"] not in card(made)
    assert "The same model chose them" in card(found.table)
    assert "The judge wrote these personas itself" in card(itself.table)
    retries = [{"rows": 2, "mended": 1, "changed": {"model": "another"}}]
    mended = pi.PersonaTable([row(0)], settings={"model": "writer", "retries": retries})
    assert "other model: `another`, for 1 of the pairs" in card(mended)


def test_a_model_in_a_file_is_named_without_its_folder(tmp_path: Path) -> None:
    made = pi.PersonaTable([row(0)], settings={"model": "local:/home/me/small.gguf"})
    pi.export_personas(made, tmp_path / "set")
    text = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "`local:small.gguf`" in text
    assert "/home/me" not in text


@pytest.mark.parametrize(
    "title",
    [
        "Personas \U0001f600",
        "no",
        'a "b" \\n: #&*[]{}<b>|%@',
        "\x1b\u202e\ufeff\ufffe\uffff\U000e0001\ud83d",
    ],
    ids=ascii,
)
def test_what_is_read_of_a_card_is_what_was_given(title: str, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    names = ["no", "Yes", "on", "null", "TRUE", "y", "_1", "aé", "train"]
    made = pi.export_personas(
        repeated(), tmp_path, splits=dict.fromkeys(names, 1 / len(names)), title=title
    )
    assert made.card is not None
    head, _, body = made.card.read_text("utf-8").removeprefix("---\n").partition("\n---\n")
    found = yaml.safe_load(head)
    assert found["pretty_name"] == visible(title)
    assert f"# {visible(title)}".replace("<", "&lt;") in body.splitlines()
    assert found["size_categories"] == ["n<1K"]
    listed = found["configs"][0]["data_files"]
    assert listed == [{"split": name, "path": f"data/{name}.parquet"} for name in names]
    pi.export_personas(repeated(), tmp_path)  # it knows the files of the card that it replaces
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["train.parquet"]


@pytest.mark.heavy
def test_the_card_is_one_that_the_hub_reads(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    title = 'A "set":\n- of {braces} & <tags>'
    pi.export_personas(repeated(), tmp_path, splits=SHARES, title=title)
    data = hub.DatasetCard.load(tmp_path / "README.md").data
    assert data.pretty_name == 'A "set": - of {braces} & <tags>'
    assert data.size_categories == ["n<1K"]
    assert data.task_categories == ["text-generation"]
    files = {each["split"]: each["path"] for each in data.configs[0]["data_files"]}
    assert files == {name: f"data/{name}.parquet" for name in SHARES}


# TRL's own functions


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    weights = find_weights("local:smollm2").path()
    return transformers.AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)


@pytest.mark.heavy
@pytest.mark.parametrize(("format", "place"), list(product(EXPORT_FORMATS, PLACES)))
def test_trl_takes_every_row(format: str, place: Any, tmp_path: Path, tokenizer: Any) -> None:
    """As its trainers do: paired or not, prompt found or given, template applied."""
    trl = pytest.importorskip("trl.data_utils")
    datasets = pytest.importorskip("datasets")
    talk = pi.Preference(prompt=CHAT, chosen="Well, thanks.", rejected="No.", id="talk")
    made = pi.PersonaTable([*table(), row(3, preference=talk)])
    pi.export_personas(
        made, tmp_path / "rows.parquet", format=format, persona="both", persona_in=place
    )
    rows = pi.tailoring_rows(
        made, format=EXPORT_FORMATS[format].rows, persona="both", persona_in=place
    )
    for data in (
        datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path)),
        datasets.Dataset.from_list(list(rows)),
    ):
        assert list(data) == list(rows)
        shaped = data.map(trl.maybe_extract_prompt)
        for before, each in zip(rows, shaped, strict=True):
            assert trl.is_conversational(each) is (place != "plain")
            assert trl.maybe_extract_prompt(before) == each
            ready = trl.maybe_apply_chat_template(dict(each), tokenizer)
            assert all(isinstance(text, str) for name, text in ready.items() if name != "label")
            _shows_who_speaks(ready, before)
        if format == "trl-dpo":
            assert len(trl.unpair_preference_dataset(data)) == 2 * len(data)


def _shows_who_speaks(ready: dict[str, Any], row: dict[str, Any]) -> None:
    """The persona reaches the model, in front of what is to be learnt."""
    whole = ready.get("prompt") or ready.get("text")
    assert whole is not None
    said = re.compile(r"(?:The user is|I am) ")
    assert len(said.findall(whole)) == 1
    for name in ("chosen", "rejected", "completion"):
        assert not said.search(ready.get(name, ""))


@pytest.mark.heavy
def test_the_implicit_prompt_that_trl_finds_is_the_prompt(
    tokenizer: Callable[..., Any],
) -> None:
    trl = pytest.importorskip("trl.data_utils")
    implicit = pi.tailoring_rows(table(), persona="both", format="reward")
    explicit = pi.tailoring_rows(table(), persona="both", format="dpo")
    assert [trl.extract_prompt(each) for each in implicit] == list(explicit)


def test_what_a_strangers_table_says_acts_on_no_card(llm: FakeLLM, tmp_path: Path) -> None:
    """Names in the settings of a table are another's words: as code, without control characters."""
    bad = "x`<img src=y>\x1b]0;title\x07\n---\nconfigs: []"
    made = pi.infer_personas(pairs(2), "fake", api_base=llm.api_base)
    persona = pi.Persona(trait="t", preference="p", flags=(bad,))
    made = made.with_rows(
        {0: replace(made[0], chosen=persona)}, usage=made.usage, settings=made.settings
    )
    settings = {**made.settings, "model": bad, "selected_by": {"kind": bad, "model": bad}}
    made.with_rows({}, usage=made.usage, settings=settings).save(tmp_path / "theirs.parquet")
    theirs = pi.PersonaTable.load(tmp_path / "theirs.parquet")
    pi.export_personas(theirs, tmp_path / "out", title=f"<b>{bad}")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.count("configs:\n") == text.count("\n---\n") == 1
    shown = [part for place, part in enumerate(text.split("`")) if place % 2 == 0]
    assert "<img" not in " ".join(shown).replace("<!--", "")


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (10**8 - 1, "10M<n<100M"),
        (10**8, "100M<n<1B"),
        (10**9, "1B<n<10B"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_a_size_has_the_name_that_the_hub_knows(rows: int, name: str) -> None:
    assert _size_category(rows) == name
