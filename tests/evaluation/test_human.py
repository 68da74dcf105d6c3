"""People as judges: sheets that tell nothing, ratings read back, agreement with known answers."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.evaluation import cohen_kappa, human, krippendorff_alpha
from personainfer.evaluation.human import RatingSheet, read_rating_sheet, write_rating_sheet
from personainfer.evaluation.statistics import Estimate
from personainfer.exceptions import DataError, InvalidArgumentError

from ..builders import BRIEF, CURIOUS, row, table

NAN = float("nan")
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": four observers, twelve units.
KRIPPENDORFF = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_krippendorffs_own_example(level: Any, alpha: float) -> None:
    found = krippendorff_alpha(KRIPPENDORFF, level=level)
    assert found.value == pytest.approx(alpha, abs=0.0006)
    assert found.n == 11  # the twelfth unit has one rating
    assert found.low < found.value < found.high


def test_cohens_kappa_of_a_known_table() -> None:
    one = [1] * 25 + [0] * 25
    other = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    found = cohen_kappa(one, other)  # p_o 0.7, p_e 0.5
    assert found.value == pytest.approx(0.4)
    assert found.n == 50
    assert 0.1 < found.low < 0.4 < found.high < 0.7


def test_agreement_at_its_ends() -> None:
    values = [1.0, 2.0, 3.0, 1.0, 2.0]
    assert cohen_kappa(values, values).value == 1.0
    assert krippendorff_alpha([values, values]).value == 1.0
    assert math.isnan(cohen_kappa([1.0, 1.0], [1.0, 1.0]).value)
    assert math.isnan(krippendorff_alpha([[1.0, 1.0], [1.0, 1.0]]).value)
    assert math.isnan(krippendorff_alpha([[1.0, 2.0, NAN]]).value)
    assert cohen_kappa([0.0, 1.0], [1.0, 0.0]).value == -1.0
    assert cohen_kappa([NAN, 1.0], [1.0, NAN]).n == 0
    drawn = np.random.default_rng(0).integers(0, 3, (2, 4000))
    assert abs(cohen_kappa(*drawn).value) < 0.05
    assert abs(krippendorff_alpha(drawn).value) < 0.05


@pytest.mark.heavy
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_agreement_does_not_depend_on_order_or_names(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs, dtype=float).T
    order = np.random.default_rng(1).permutation(len(pairs))
    renamed = np.array([3.0, 0.0, 7.0, 1.0])
    functions: list[Callable[[Any, Any], Estimate]] = [
        lambda a, b: cohen_kappa(a, b),
        lambda a, b: krippendorff_alpha([a, b]),
    ]
    for function in functions:
        found = function(one, other).value
        for again in (
            function(other, one),
            function(one[order], other[order]),
            function(renamed[one.astype(int)], renamed[other.astype(int)]),
        ):
            assert again.value == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: cohen_kappa([1.0], [1.0, 2.0]),
        lambda: krippendorff_alpha([1.0, 2.0]),
        lambda: krippendorff_alpha(KRIPPENDORFF, level="ratio"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_ratings_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        wrong()


# The sheet


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sheet_tells_nothing_of_the_sides(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(30), tmp_path / "sheet")
    rows = read(sheet.csv)
    key = json.loads(sheet.key.read_text())["items"]
    assert len(rows) == 60
    assert list(rows[0]) == ["item", "persona", "prompt", "response_1", "response_2", "choice"]
    assert {each["choice"] for each in rows} == {""}
    sides = [key[each["item"]]["side"] for each in rows]
    assert 8 < sum(one != two for one, two in pairwise(sides)) < 52  # mixed
    firsts = [key[each["item"]]["own"] for each in rows]
    assert 15 < firsts.count(1) < 45
    for each in rows:
        own = each[f"response_{key[each['item']]['own']}"]
        assert own == ("Short." if each["persona"] == str(BRIEF) else "Long.")
    page = sheet.html.read_text()
    assert str(BRIEF) in page
    for told in ('"side"', '"own"', "chosen", "rejected"):
        assert told not in page


def test_a_rating_sheet_marks_the_preferred_response(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(3), tmp_path / "sheet", question="rating", items=4, seed=2)
    rows = read(sheet.csv)
    assert len(rows) == 4
    assert list(rows[0])[5:] == ["plausible", "applicable", "harmful", "overfit"]
    assert all(
        each["response_1"] == ("Short." if each["persona"] == str(BRIEF) else "Long.")
        for each in rows
    )


def test_text_of_the_data_runs_nowhere(tmp_path: Path) -> None:
    pair = pi.Preference(prompt="=1+1", chosen="</script><script>alert(1)</script>", rejected="@x")
    sheet = write_rating_sheet(pi.PersonaTable([row(0, preference=pair)]), tmp_path / "sheet")
    assert "<script>alert" not in sheet.html.read_text()
    cells = {value for each in read(sheet.csv) for value in each.values()}
    assert {"'=1+1", "'@x"} <= cells


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"items": 7}, "6 personas"),
        ({"items": 0}, "items=0"),
        ({"items": True}, "items=True"),
        ({"question": "x"}, "question="),
        ({"sides": "x"}, "sides="),
        ({"seed": -1}, "seed=-1"),
        ({"seed": []}, "seed="),
    ],
)
def test_a_sheet_that_cannot_be_made_is_refused(options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        write_rating_sheet(table(3), tmp_path / "sheet", **options)
    assert [caught.value.argument] == list(options)
    assert not (tmp_path / "sheet").exists()


def test_a_key_is_not_replaced(tmp_path: Path) -> None:
    write_rating_sheet(table(3), tmp_path / "sheet")
    with pytest.raises(InvalidArgumentError, match="not empty"):
        write_rating_sheet(table(3), tmp_path / "sheet")


# Ratings


def filled(sheet: RatingSheet, name: str, answer: Any) -> Path:
    """A copy of the sheet with a rater's answers."""
    rows = read(sheet.csv)
    path = sheet.csv.with_name(f"{name}.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**each, **answer(each)} for each in rows)
    return path


def right(each: dict[str, str]) -> dict[str, str]:
    wanted = "Short." if each["persona"] == str(BRIEF) else "Long."
    return {"choice": "1" if each["response_1"] == wanted else "2"}


def wrong_for_rejected(each: dict[str, str]) -> dict[str, str]:
    said = right(each)["choice"]
    return {"choice": said if each["persona"] == str(BRIEF) else {"1": "2", "2": "1"}[said]}


def test_choices_are_counted_and_compared(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(10), tmp_path / "sheet")
    ratings = [filled(sheet, "ann", right), filled(sheet, "bob", wrong_for_rejected)]
    found = read_rating_sheet(sheet.key, ratings)
    accuracy = {side: estimate.value for side, estimate in found.means["accuracy"].items()}
    assert accuracy == {"chosen": 1.0, "rejected": 0.5, "both": 0.75}
    assert found.means["accuracy"]["both"].n == 20
    assert found.raters == ("ann", "bob")
    assert found.kappas["ann", "bob"].value == 0.0  # ann always picks the persona's own response
    assert found.judge is None
    assert "Krippendorff's alpha, choice" in str(found)
    alone = read_rating_sheet(sheet.key, ratings[:1])
    assert alone.means["accuracy"]["both"].value == 1.0
    assert math.isnan(alone.agreement["choice"].value)


def test_the_confidence_is_that_of_all_intervals(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(10), tmp_path / "sheet")

    def any_answer(each: dict[str, str]) -> dict[str, str]:
        return {"choice": "12"[int(each["item"].partition("-")[2]) % 3 == 0]}

    def other_answer(each: dict[str, str]) -> dict[str, str]:
        return {"choice": "12"[int(each["item"].partition("-")[2]) % 4 == 0]}

    ratings = [filled(sheet, "ann", any_answer), filled(sheet, "bob", other_answer)]
    narrow, wide = (read_rating_sheet(sheet.key, ratings, confidence=c) for c in (0.5, 0.95))
    for one, other in (
        (narrow.kappas["ann", "bob"], wide.kappas["ann", "bob"]),
        (narrow.agreement["choice"], wide.agreement["choice"]),
        (narrow.means["accuracy"]["both"], wide.means["accuracy"]["both"]),
    ):
        assert other.low < one.low < one.high < other.high


def test_one_file_of_ratings_must_stand_in_a_list(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(2), tmp_path / "sheet")
    for ratings in (sheet.csv, str(sheet.csv)):
        with pytest.raises(InvalidArgumentError, match="ratings= is a list of files"):
            read_rating_sheet(sheet.key, ratings)  # type: ignore[arg-type]


def test_ratings_are_read_from_paths_of_files_that_exist(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(2), tmp_path / "sheet")
    arguments: dict[str, Any] = {"key": sheet.key, "ratings": [sheet.csv], "table": None}
    wrong: list[tuple[str, Any]] = [
        ("ratings", 3),
        ("ratings", [3]),
        ("key", 3),
        ("key", sheet.key.with_name("other.json")),
        ("table", [3]),
    ]
    for name, value in wrong:
        with pytest.raises(InvalidArgumentError, match=r"ratings=|key=|table=|file not found"):
            read_rating_sheet(**{**arguments, name: value})


def test_neither_is_wrong_and_an_empty_cell_is_no_answer(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(10), tmp_path / "sheet", sides="chosen")

    def some(each: dict[str, str]) -> dict[str, str]:
        n = int(each["item"].partition("-")[2])
        return (
            {"choice": "neither"}
            if n <= 2
            else {"choice": "" if n <= 4 else "x"}
            if n <= 5
            else right(each)
        )

    found = read_rating_sheet(sheet.key, [filled(sheet, "ann", some)])
    assert found.means["accuracy"]["chosen"].value == pytest.approx(5 / 7)
    [problem] = found.problems
    assert re.fullmatch(r"ann\.csv, item [a-z]{6}-05: choice is 'x'\.", problem)


def test_people_and_a_judge_are_compared(tmp_path: Path) -> None:
    verdicts = [n < 8 for n in range(10)]
    judged = table(10).with_columns({"chosen_verified": verdicts, "rejected_verified": verdicts})
    sheet = write_rating_sheet(judged, tmp_path / "sheet")
    names = ("ann", "bob", "cem")
    ratings = [filled(sheet, name, right) for name in names[:2]]
    ratings.append(filled(sheet, names[2], wrong_for_rejected))
    found = read_rating_sheet(sheet.key, ratings, table=judged)
    assert found.judge is not None
    assert found.judge.value == pytest.approx(0.8)  # most people always say yes
    with pytest.raises(InvalidArgumentError, match="neither cut nor sorted"):
        read_rating_sheet(sheet.key, ratings, table=judged[:5])
    with pytest.raises(InvalidArgumentError, match=r"row \d of table= is not that of .*item"):
        read_rating_sheet(sheet.key, ratings, table=pi.PersonaTable(list(judged)[::-1]))


def test_ratings_are_averaged_by_side(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(10), tmp_path / "sheet", question="rating")

    def rate(shift: int) -> Any:
        def rated(each: dict[str, str]) -> dict[str, str]:
            value = 4 if each["persona"] == str(BRIEF) else 2
            values = {"plausible": value, "applicable": value - shift, "harmful": 1, "overfit": 3}
            return {name: str(number) for name, number in values.items()}

        return rated

    ratings = [filled(sheet, "ann", rate(0)), filled(sheet, "bob", rate(1))]
    found = read_rating_sheet(sheet.key, ratings)
    assert found.means["plausible"]["chosen"].value == 4.0
    assert found.means["plausible"]["rejected"].value == 2.0
    assert found.means["applicable"]["both"].value == 2.5
    assert found.agreement["plausible"].value == 1.0
    assert 0 < found.agreement["applicable"].value < 1
    assert math.isnan(found.agreement["harmful"].value)  # nobody ever said anything else
    assert found.kappas == {}


def test_what_the_page_saves_is_read_in_any_order(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(4), tmp_path / "sheet")
    lines = [f"{each['item']},{right(each)['choice']}" for each in read(sheet.csv)]
    random.Random(0).shuffle(lines)
    path = tmp_path / "ann.csv"
    path.write_text("\r\n".join(["item,choice", *lines]) + "\r\n", encoding="utf-8")
    assert read_rating_sheet(sheet.key, [path]).means["accuracy"]["both"].value == 1.0


def test_rows_of_commas_which_spreadsheets_add_are_no_ratings(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(4), tmp_path / "sheet")
    ann = filled(sheet, "ann", right)
    commas = "," * (len(read(ann)[0]) - 1)
    with ann.open("a", encoding="utf-8") as file:
        file.write(f"{commas}\r\n{commas}\r\n")
    assert read_rating_sheet(sheet.key, [ann]).means["accuracy"]["both"].value == 1.0


@pytest.mark.parametrize("empty", [None, NAN])
def test_an_empty_cell_of_a_frame_is_no_answer_either(tmp_path: Path, empty: float | None) -> None:
    sheet = write_rating_sheet(table(4), tmp_path / "sheet")
    rows = [{**each, "choice": 1.0} for each in read(sheet.csv)]
    rows[0]["choice"] = empty
    lines = [*rows, dict.fromkeys(rows[0], empty)]  # a row that a spreadsheet added
    path = tmp_path / "ann.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = read_rating_sheet(sheet.key, [path])
    assert found.problems == ()
    assert np.isnan(found.values["choice"][0]).sum() == 1


def test_ratings_of_another_sheet_are_refused(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(4), tmp_path / "sheet")
    ann = filled(sheet, "ann", right)
    first = read(sheet.csv)[0]["item"]
    for text, words in (
        ("item,choice\n99,1\n", "not an item"),
        (f"item,choice\n{first},1\n{first},2\n", "twice"),
    ):
        path = tmp_path / "other.csv"
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_rating_sheet(sheet.key, [path])
    with pytest.raises(DataError, match=r"not the key\.json"):
        read_rating_sheet(sheet.csv, [ann])
    for wrong in ([], [ann, ann], str(ann)):
        with pytest.raises(InvalidArgumentError, match="different names"):
            read_rating_sheet(sheet.key, wrong)


@pytest.mark.parametrize("other", [{"seed": 1}, {"sides": "rejected"}, {"items": 7}])
def test_ratings_of_another_sheet_of_the_same_table_are_refused(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    sheet = write_rating_sheet(table(4), tmp_path / "sheet")
    another = write_rating_sheet(table(4), tmp_path / "another", **other)
    with pytest.raises(DataError, match="not an item of this sheet"):
        read_rating_sheet(sheet.key, [filled(another, "ann", right)])


def test_a_key_that_an_earlier_version_wrote_is_read(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(4), tmp_path / "sheet")
    about = json.loads(sheet.key.read_text())
    numbered = {name: str(n) for n, name in enumerate(about["items"], 1)}
    items = {
        numbered[name]: {field: one[field] for field in ("place", "side", "own")}
        for name, one in about["items"].items()
    }
    sheet.key.write_text(json.dumps(about | {"items": items}))
    ann = tmp_path / "ann.csv"
    lines = [f"{numbered[each['item']]},{right(each)['choice']}" for each in read(sheet.csv)]
    ann.write_text("\n".join(["item,choice", *lines]))
    verdicts = {"chosen_verified": [True] * 4, "rejected_verified": [True] * 4}
    found = read_rating_sheet(sheet.key, [ann], table=table(4).with_columns(verdicts))
    assert found.means["accuracy"]["both"].value == 1.0
    assert found.judge is not None
    assert found.judge.value == 1.0


def test_names_of_raters_act_on_no_terminal(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(4), tmp_path / "sheet")
    found = read_rating_sheet(sheet.key, [filled(sheet, "ann\x1b[2J", right)])
    assert "ann\\x1b[2J" in str(found)
    assert "\x1b" not in str(found)


def test_a_sheet_is_made_of_what_has_personas(tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1, chosen=None),
        row(2, preference=None, error="x", chosen=None, rejected=None),
    ]
    sheet = write_rating_sheet(pi.PersonaTable(rows), tmp_path / "sheet")
    assert sorted(each["persona"] for each in read(sheet.csv)) == sorted(
        map(str, [BRIEF, CURIOUS, CURIOUS])
    )


def test_a_sheet_that_nobody_filled_in_is_told(tmp_path: Path) -> None:
    sheet = write_rating_sheet(table(10), tmp_path / "sheet", question="rating")
    whole = {"plausible": "4", "applicable": "4", "harmful": "1", "overfit": "3"}
    ratings = [filled(sheet, "ann", lambda each: whole), filled(sheet, "bob", lambda each: {})]
    found = read_rating_sheet(sheet.key, ratings)
    assert found.problems == ("bob.csv: it holds no rating.",)
    assert "left out: bob.csv: it holds no rating." in str(found)
    wrong = filled(sheet, "cy", lambda each: dict.fromkeys(whole, "A"))
    with pytest.raises(DataError, match=r"no rating can be read: cy.csv, item .*'a'.*from 1 to 5"):
        read_rating_sheet(sheet.key, [wrong])


@pytest.mark.parametrize("text", ["=1+1", " =1+1", "\uff1d1+1", "\t1", "\uff20x"])
def test_cells_that_a_spreadsheet_may_run_are_texts(tmp_path: Path, text: str) -> None:
    pair = pi.Preference(prompt=text, chosen="a", rejected="b")
    sheet = write_rating_sheet(pi.PersonaTable([row(0, preference=pair)]), tmp_path / "sheet")
    with sheet.csv.open(encoding="utf-8-sig", newline="") as file:
        assert all(one["prompt"] == f"'{text}" for one in csv.DictReader(file))


RUN = "=cmd|'/C calc'!A0"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        (f"a;{RUN};b", f"a;'{RUN};b"),
        (f"a list:\n{RUN};\nb", f"a list:\n'{RUN};\nb"),
        (f"\n\n{RUN}", f"'\n\n'{RUN}"),
        ("x\t=1+1\ty", "x\t'=1+1\ty"),
        ('a; "\uff1d1+1";@x', "a; \"'\uff1d1+1\";'@x"),
        ("a list:\n- one|x\n+two", "a list:\n'- one|x\n'+two"),
        (f"x\n- WEB{' ' * 40}(x)", f"x\n'- WEB{' ' * 40}(x)"),
        (f"x\n{'-' * 294}{' ' * 9}WEB(x)", f"x\n'{'-' * 294}{' ' * 9}WEB(x)"),
        ("a list:\n- 1+WEB (x)\n- a!b", "a list:\n'- 1+WEB (x)\n'- a!b"),
        ("a = b, -1; c\n\nd - e", "a = b, -1; c\n\nd - e"),
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_sheet_that_is_split_elsewhere_has_no_formula(
    tmp_path: Path, text: str, cell: str, separator: str
) -> None:
    """A spreadsheet splits by the semicolons of its locale, and so at line breaks within quotes."""
    pair = pi.Preference(prompt=text, chosen="a", rejected="b")
    sheet = write_rating_sheet(pi.PersonaTable([row(0, preference=pair)]), tmp_path / "sheet")
    with sheet.csv.open(encoding="utf-8-sig", newline="") as file:
        read = [*csv.reader(file, delimiter=separator)]
    cells = [each.strip().strip('"').strip() for one in read for each in one]
    assert not [each for each in cells if each[:1] in {*"=+-@\uff1d"}]
    if separator == ",":
        assert {one[2] for one in read[1:]} == {cell}


@pytest.mark.parametrize(
    "text", ["3/4", "1-2", "0.50", "(5)", "007", "1e5", "10:15 PM", "May 5", "5. März 2020"]
)
def test_a_text_that_a_spreadsheet_would_show_as_a_date_stays_a_text(
    text: str, tmp_path: Path
) -> None:
    """Raters of "3/4" and "2/3" saw two days of a year."""
    pair = pi.Preference(prompt="How much?", chosen=text, rejected="42")
    sheet = write_rating_sheet(pi.PersonaTable([row(0, preference=pair)]), tmp_path / "sheet")
    with sheet.csv.open(encoding="utf-8-sig", newline="") as file:
        shown = {each for one in csv.DictReader(file) for each in one.values()}
    assert {f"'{text}", "42", "How much?"} <= shown


def test_an_item_whose_name_begins_like_a_month_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of one sheet in 1,200 do. An apostrophe before them made another item."""
    monkeypatch.setattr(human, "_letters", lambda text: "decxyz")
    sheet = write_rating_sheet(pi.PersonaTable([row(0)]), tmp_path / "sheet")
    found = read_rating_sheet(sheet.key, [filled(sheet, "ann", lambda each: {"choice": "1"})])
    assert (found.raters, found.problems) == (("ann",), ())


def test_the_bullets_of_a_list_stay_as_they_are(tmp_path: Path) -> None:
    text = "a list:\n- one\n- two = 2\n\n+ three\n- **four** (bold)\n- [five](x)\n---\n- six"
    pair = pi.Preference(prompt=text, chosen="a", rejected="b")
    sheet = write_rating_sheet(pi.PersonaTable([row(0, preference=pair)]), tmp_path / "sheet")
    with sheet.csv.open(encoding="utf-8-sig", newline="") as file:
        assert {one["prompt"] for one in csv.DictReader(file)} == {text}


def test_a_sheet_of_very_many_line_breaks_is_written_at_once(tmp_path: Path) -> None:
    pair = pi.Preference(prompt="a" + "\n;" * 100_000, chosen="a", rejected="b")
    write_rating_sheet(pi.PersonaTable([row(0, preference=pair)]), tmp_path / "sheet")


def test_the_numbers_of_a_sheet_may_be_of_numpy(tmp_path: Path) -> None:
    given: dict[str, Any] = {"items": np.int64(2), "seed": np.int64(5)}
    same = write_rating_sheet(table(3), tmp_path / "other", items=2, seed=5)
    sheet = write_rating_sheet(table(3), tmp_path / "sheet", **given)
    assert sheet.csv.read_text() == same.csv.read_text()
