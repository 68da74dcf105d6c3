"""The report: one page that holds the figures and every row, and runs nothing that the data brought."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import personainfer as pi
from personainfer.evaluation.human import write_rating_sheet
from personainfer.evaluation.summary import summarise
from personainfer.records import Candidate
from personainfer.simulation import persona_groups, write_report
from personainfer.simulation.plots import plot_accuracy, plot_salient_words, plot_scores
from personainfer.testing import FakeLLM, Reply
from personainfer.users.records import PairEvidence, UserPersona, UserPersonas, UserRow

from ..audit_world import World, read

ATTACK = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
TRAITS = ("pressed for time", "curious about how things work", "careful with money")


def persona(trait: str, *flags: str) -> pi.Persona:
    return pi.Persona(
        evidence=f"says so {ATTACK}", trait=trait, preference="frank advice", flags=flags
    )


def table(rows: int = 6, *, judged: bool = True, scored: bool = True) -> pi.PersonaTable:
    """Every third row failed; row 1 is flagged; rejected personas are the ones judged wrong."""
    made = []
    for n in range(rows):
        pair = pi.Preference(
            prompt=f"Question {n} {ATTACK}?",
            chosen=f"Short {n} {ATTACK}",
            rejected=f"Long {n}",
            id=f"r{n}",
        )
        if n % 3 == 2:
            made.append(pi.PersonaRow(n, pair, error=f"the reply was empty {ATTACK}"))
            continue
        chosen = persona(TRAITS[0], *(["ungrammatical"] if n == 1 else []))
        rejected = persona(TRAITS[1])
        made.append(
            pi.PersonaRow(
                n,
                pair,
                chosen=chosen,
                rejected=rejected,
                chosen_candidates=(Candidate(chosen, 0.1 * n), Candidate(rejected, -0.2)),
                rejected_candidates=(Candidate(rejected, 0.05),),
            )
            if scored
            else pi.PersonaRow(n, pair, chosen=chosen, rejected=rejected)
        )
    result = pi.PersonaTable(made, settings={"model": "fake", "candidates": 2, "protocol": "joint"})
    if not judged:
        return result
    return result.with_columns(
        {
            "chosen_verified_score": [None if row.error else 1.0 for row in made],
            "rejected_verified_score": [None if row.error else 0.5 for row in made],
        }
    )


def embedded(path: Path) -> list[dict[str, Any]]:
    """The rows that the page holds, as its script reads them."""
    page = path.read_text(encoding="utf-8")
    found = re.search(
        r'<script type="application/json" id="data"[^>]*>(.*?)</script>', page, re.DOTALL
    )
    assert found
    rows: list[dict[str, Any]] = json.loads(found[1])
    return rows


def test_every_row_is_in_the_page_with_its_texts_unchanged(tmp_path: Path) -> None:
    rows = embedded(write_report(table(), tmp_path / "report.html"))
    assert [row["name"] for row in rows] == [f"r{n}" for n in range(6)]
    assert rows[0]["prompt"] == f"Question 0 {ATTACK}?"
    assert rows[0]["cp"]["text"] == "The user is pressed for time and prefers frank advice."
    assert rows[0]["cp"]["verdicts"] == [["right", "judge: 1.00"], ["score", "score +0.000"]]
    assert rows[2]["cp"] is None
    assert rows[2]["error"] == f"the reply was empty {ATTACK}"


def test_kinds_of_rows_can_be_told_apart(tmp_path: Path) -> None:
    rows = embedded(write_report(table(), tmp_path / "report.html"))
    assert rows[0]["kinds"][0] == "split"  # one side right, the other in one order
    assert rows[1]["kinds"][:2] == ["flagged", "flag:ungrammatical"]
    assert rows[2]["kinds"] == ["error"]  # and in no group


def test_a_flag_that_is_called_like_a_filter_counts_as_a_flag(tmp_path: Path) -> None:
    flags = ("right", "error", "group-1")
    said = {"prompt": "p", "chosen": "c", "rejected": "r"}
    given = [
        {**said, "chosen_persona": {"trait": "calm", "preference": "lists", "flags": [flag]}}
        for flag in flags
    ]
    made = pi.PersonaTable.from_data(given, rejected_persona=None)
    page = write_report(made, tmp_path / "report.html")
    kinds = [row["kinds"] for row in embedded(page)]
    assert [one[:2] for one in kinds] == [["flagged", f"flag:{flag}"] for flag in flags]
    text = page.read_text(encoding="utf-8")
    assert "judged right" not in text
    assert "with an error (" not in text


def test_a_verdict_of_one_order_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    made = table(2, judged=False).with_columns(
        {"chosen_verified": [False, False], "chosen_verified_score": [0.5, 0.0]},
        settings={"verified_neither": 0.25},
    )
    path = write_report(made, tmp_path / "report.html")
    assert [row["cp"]["verdicts"][0][0] for row in embedded(path)] == ["split", "wrong"]
    assert "A guess is right in 38% of the orders" in path.read_text()


def test_a_side_that_nothing_explains_is_counted_apart_from_errors(tmp_path: Path) -> None:
    tried = (pi.records.Candidate(pi.Persona(trait="busy", preference="short answers"), -0.5),)
    pair = pi.Preference(prompt="p", chosen="c", rejected="r")
    made = pi.PersonaTable([pi.PersonaRow(0, pair, chosen_candidates=tried)])
    path = write_report(made, tmp_path / "report.html")
    [row] = embedded(path)
    assert row["kinds"] == ["unexplained"]
    assert row["error"] is None
    assert "the best of 1 scores -0.500" in str(row["others"])
    assert "<dt>unexplained</dt><dd>1</dd>" in path.read_text()
    assert "<dt>with an error</dt><dd>0</dd>" in path.read_text()


def test_what_judges_found_of_a_row_is_with_it(tmp_path: Path) -> None:
    """Why a judge gave no reply, which persona is better, ratings: all that was added to the table."""
    why = f"chosen: it refused {ATTACK}"
    made = table(2, scored=False).with_columns(
        {
            "verification_error": [why, None],
            "better_persona": ["tie", None],
            "chosen_plausible": [4, None],
            "chosen_verified_probability": [0.61, None],
        }
    )
    path = write_report(made, tmp_path / "report.html")
    rows = embedded(path)
    [[title, lines]] = rows[0]["others"]
    assert title == "Verdicts and other columns"
    assert lines == [
        f"verification error: {why}",
        "better persona: tie",
        "chosen plausible: 4",
        "chosen verified probability: 0.610",
    ]
    assert rows[1]["others"] == []
    assert path.read_text(encoding="utf-8").count("<script") == 2


def test_nothing_of_the_data_is_markup(tmp_path: Path) -> None:
    path = write_report(table(), tmp_path / "report.html", title=f"Mine {ATTACK}")
    page = path.read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("<script") == 2  # the data and the page's own
    assert "Mine &lt;/script&gt;" in page


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write_report(table(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)


def test_the_figures(tmp_path: Path) -> None:
    found = summarise(table())
    assert (found.rows, found.complete, found.errors, found.flagged) == (6, 4, 2, 1)
    assert found.flags == {"ungrammatical": 1}
    assert found.accuracy["chosen"].value == 1.0
    assert found.accuracy["rejected"].value == 0.5
    assert found.accuracy["overall"].value == 0.75
    assert found.scores["rejected"].tolist() == [0.05] * 4
    page = write_report(table(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0.75" in page
    assert "100% of 4 above 0" in page


def test_one_row_has_no_interval(tmp_path: Path) -> None:
    page = write_report(table(1), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0.75  (one row)" in page
    assert "[0.75, 0.75]" not in page


def test_a_plain_table_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    path = write_report(table(judged=False, scored=False), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert "predict the choices" not in page
    assert "How well do they explain" not in page
    assert len(embedded(path)) == 6


def test_an_empty_table_has_a_page(tmp_path: Path) -> None:
    assert embedded(write_report(pi.PersonaTable([]), tmp_path / "report.html")) == []


def test_a_conversation_begins_with_its_last_turn(tmp_path: Path) -> None:
    prompt = (
        pi.Message(role="user", content="Tea?"),
        pi.Message(role="assistant", content="Yes."),
        pi.Message(role="user", content="Which one?"),
    )
    pair = pi.Preference(prompt=prompt, chosen="Green.", rejected="Black.")
    made = pi.PersonaTable([pi.PersonaRow(0, pair, chosen=persona("calm"))])
    [row] = embedded(write_report(made, tmp_path / "report.html"))
    assert row["title"] == "[2 earlier turns] Which one?"
    assert row["prompt"] == "user: Tea?\n\nassistant: Yes.\n\nuser: Which one?"
    assert "0  [2 earlier turns] Which one?" in str(made)


def test_of_personas_of_the_data_no_calls_are_told(tmp_path: Path) -> None:
    data = [{"prompt": "Tea?", "chosen": "Yes.", "rejected": "No.", "chosen_persona": "Calm."}]
    made = pi.PersonaTable.from_data(data, rejected_persona=None)
    assert repr(made) == "PersonaTable(1 rows, 0 with an error; personas of the data)"
    page = write_report(made, tmp_path / "report.html").read_text("utf-8")
    assert "<dt>calls</dt>" not in page
    assert "<dt>flagged</dt>" not in page


def test_a_row_without_a_pair_shows_its_error(tmp_path: Path) -> None:
    bad = pi.PersonaTable([pi.PersonaRow(0, None, error="chosen is empty.")])
    (row,) = embedded(write_report(bad, tmp_path / "report.html"))
    assert (row["prompt"], row["error"]) == ("", "chosen is empty.")


@pytest.mark.parametrize(
    ("name", "said"), [("report.pdf", "an .html file"), ("nowhere/report.html", "no folder")]
)
def test_a_bad_path_is_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_report(table(), tmp_path / name)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PersonaTable"):
        write_report([1, 2], tmp_path / "report.html")  # type: ignore[arg-type]


@pytest.mark.heavy
def test_scores_that_are_nearly_the_same_are_drawn(tmp_path: Path) -> None:
    from matplotlib.patches import Rectangle

    rows = list(table(2))
    scored = [
        replace(row, chosen_candidates=(Candidate(persona("calm"), score),), rejected_candidates=())
        for row, score in zip(rows, (0.5, math.nextafter(0.5, 0)), strict=True)
    ]
    near = pi.PersonaTable(scored, settings={"candidates": 2})
    assert write_report(near, tmp_path / "report.html").is_file()
    bars = [bar for bar in plot_scores(near).patches if isinstance(bar, Rectangle)]
    assert sum(bar.get_height() for bar in bars) == 2


@pytest.mark.heavy
def test_plots_draw_what_was_measured() -> None:
    axes = plot_accuracy(table())
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "overall",
        "chosen",
        "rejected",
    ]
    assert plot_scores(table(), ax=axes) is axes
    many = table(90)
    words = {label.get_text() for label in plot_salient_words(many).get_yticklabels()}
    assert {"pressed", "curious"} <= words


def test_a_plot_of_what_was_not_measured_says_what_to_do() -> None:
    plain = table(judged=False, scored=False)
    with pytest.raises(ValueError, match="verify_personas"):
        plot_accuracy(plain)
    with pytest.raises(ValueError, match="holds no verdicts"):  # such as rows without a judged one
        plot_accuracy(plain.with_columns({"chosen_verified_score": [None] * len(plain)}))
    with pytest.raises(ValueError, match="candidates=8"):
        plot_scores(plain)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window (Debian: apt-get install chromium chromium-driver)."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.mark.heavy
def test_two_thousand_rows_in_a_browser(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(write_report(table(2_000), tmp_path / "report.html").as_uri())
    timing = "const t = performance.timing; return t.loadEventEnd - t.navigationStart"
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(timing) > 0)
    assert browser.execute_script(timing) < 3_000
    count = browser.find_element("id", "count")
    assert count.text == "2000 rows"

    def shows(text: str) -> None:
        WebDriverWait(browser, 10).until(lambda _: count.text == text)

    # By keyboard alone: "/" goes to the search, Tab to the filter, arrows choose.
    browser.find_element("tag name", "body").send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    browser.switch_to.active_element.send_keys("question 1234")
    shows("1 of 2000 rows")
    assert browser.find_element("css selector", "article mark").text.lower() == "question"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    shows("2000 rows")
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("id") == "show"
    browser.switch_to.active_element.send_keys("with an e")
    shows("666 of 2000 rows")
    browser.find_element("css selector", "article summary").send_keys(Keys.ENTER)

    def shown(_: object) -> list[str]:  # the page fills a row when the browser says that it is open
        return [pre.text for pre in browser.find_elements("css selector", "article pre")]

    assert f"Short 2 {ATTACK}" in WebDriverWait(browser, 10).until(shown)
    browser.find_element("id", "more").send_keys(Keys.ENTER)
    WebDriverWait(browser, 10).until(
        lambda _: len(browser.find_elements("css selector", "article")) == 80
    )

    assert browser.execute_script("return window.ran") is None
    assert browser.get_log("browser") == []


@pytest.mark.heavy
def test_texts_have_their_own_direction_and_are_whole_on_paper(
    browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    pair = pi.Preference(prompt="שלום (a)?", chosen="نعم.\n" * 90, rejected="No.")
    one = pi.PersonaTable([pi.PersonaRow(0, pair, chosen=persona(TRAITS[0]))])
    made = one.with_columns({"verification_error": ["chosen: it would not say"]})
    browser.get(write_report(made, tmp_path / "report.html").as_uri())
    count = browser.find_element("id", "count")
    assert count.text == "1 row"
    browser.execute_script("document.querySelector('article details').open = true")
    texts = "article h3, article pre"
    WebDriverWait(browser, 10).until(
        lambda _: len(browser.find_elements("css selector", texts)) == 5
    )
    found = [
        one.value_of_css_property("direction")
        for one in browser.find_elements("css selector", texts)
    ]
    assert found == ["rtl", "rtl", "rtl", "ltr", "ltr"]  # heading, prompt, responses, columns
    cut = "const pre = document.querySelectorAll('pre')[1]; return pre.scrollHeight > pre.clientHeight"
    assert browser.execute_script(cut)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.execute_script(cut)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen"})
    search = browser.find_element("id", "search")
    search.send_keys("would not say xyz")
    WebDriverWait(browser, 10).until(lambda _: count.text == "0 of 1 row")
    search.send_keys(Keys.BACKSPACE * 4)
    WebDriverWait(browser, 10).until(lambda _: count.text == "1 row")


def sized(browser: Any, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.mark.heavy
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, tmp_path: Path, width: int) -> None:
    sized(browser, width)
    browser.get(write_report(table(30), tmp_path / "report.html").as_uri() + "#responses=1")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for name, said in (("reset", "Reset"), ("csv", "CSV"), ("jsonl", "JSONL")):
        button = browser.find_element("id", name)
        assert button.text == said
        assert float(button.value_of_css_property("font-size").removesuffix("px")) >= 12


@pytest.mark.heavy
@pytest.mark.parametrize(("width", "media"), [(700, "print"), (1280, "screen")])
def test_no_column_of_numbers_is_cut_off(
    browser: Any, tmp_path: Path, width: int, media: str
) -> None:
    """Paper, which is about 700 pixels wide, does not scroll; on a screen nobody sees that a table would."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    world = World(3, users=20, choices=12)
    audit = pi.audit_personas(world.personas("knows"), world.choices, read, baselines=("longer",))
    sized(browser, width)
    for result in (compared(), audit):
        browser.get("about:blank")
        browser.get(write_report(result, tmp_path / "report.html", overwrite=True).as_uri())
        told = "const box = document.querySelector('.scroll'); return box.scrollWidth - box.clientWidth"
        assert browser.execute_script(told) <= 0


@pytest.mark.heavy
def test_responses_stand_side_by_side(browser: Any, tmp_path: Path) -> None:
    browser.get(write_report(compared(), tmp_path / "report.html").as_uri() + "#responses=1")
    [first, *_] = browser.find_elements("css selector", "article")
    sides = [one.text for one in first.find_elements("css selector", ".side")]
    assert sides == [
        "Persona\nSomebody who likes milk.",
        "Response of the test model\nYes, with milk.",
        "Response of the base model\nYes.",
    ]


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, tmp_path: Path, scheme: str) -> None:
    import axe_core_python

    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    found = compared()
    users = UserPersonas((UserRow(user="bo", error="no choice"),))
    world = World(3, users=20, choices=12)
    audit = pi.audit_personas(world.personas("knows"), world.choices, read, baselines=("longer",))
    pages = [
        write_report(table(30), tmp_path / "table.html").as_uri(),
        (tmp_path / "table.html").as_uri() + "#responses=1&row=0",
        write_report(found, tmp_path / "responses.html").as_uri(),
        (tmp_path / "responses.html").as_uri() + "#responses=1",
        write_report(users, tmp_path / "users.html").as_uri(),
        write_report(audit, tmp_path / "audit.html").as_uri(),
        write_rating_sheet(table(3), tmp_path / "sheet", question="rating").html.as_uri(),
    ]
    script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for width in (390, 1280):
        sized(browser, width)
        for page in pages:
            browser.get("about:blank")
            browser.get(page)
            browser.execute_script(script)
            told = "const done = arguments[0]; axe.run().then((found) => done(found.violations));"
            assert browser.execute_async_script(told) == []
    assert browser.get_log("browser") == []


def listed(browser: Any) -> list[str]:
    return [one.text for one in browser.find_elements("css selector", "article .number")]


@pytest.mark.heavy
def test_filters_and_rows_have_addresses(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select, WebDriverWait

    page = write_report(table(12), tmp_path / "report.html").as_uri()
    browser.get(page)
    Select(browser.find_element("id", "show")).select_by_value("error")
    Select(browser.find_element("id", "order")).select_by_value("prompt")
    browser.execute_script("document.getElementById('beside').click()")
    assert listed(browser) == ["r11", "r2", "r5", "r8"]
    address = browser.current_url
    assert address == page + "#show=error&order=prompt&responses=1"
    browser.get("about:blank")
    browser.get(address)
    assert listed(browser) == ["r11", "r2", "r5", "r8"]
    assert browser.find_element("id", "beside").is_selected()
    browser.execute_script("document.querySelector('#row-5 a.link').click()")
    assert browser.current_url == page + "#row=5"
    WebDriverWait(browser, 10).until(lambda _: listed(browser) == ["r5"])
    assert f"Short 5 {ATTACK}" in [
        one.text for one in browser.find_elements("css selector", "article pre")
    ]
    browser.execute_script("document.getElementById('reset').click()")
    assert len(listed(browser)) == 12
    assert browser.current_url == page
    browser.get(page + "#show=nonsense&row=abc&order=x")
    assert len(listed(browser)) == 12
    assert browser.execute_script("return window.ran") is None


@pytest.mark.heavy
def test_the_listed_rows_can_be_downloaded(browser: Any, tmp_path: Path) -> None:
    import csv

    from selenium.webdriver.support.ui import WebDriverWait

    pair = pi.Preference(
        prompt=" \uff1dcmd()",
        chosen='He said "yes",\nand left',
        rejected="a;b\n\n \uff1dcmd;@x\n- a bullet\n- cmd|x",
        id="é",
    )
    rows = [pi.PersonaRow(0, pair, chosen=persona(TRAITS[0])), *list(table(3))[1:]]
    made = pi.PersonaTable(rows)
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    browser.get(write_report(made, tmp_path / "report.html").as_uri() + "#search=He+said")
    for name in ("jsonl", "csv"):
        browser.execute_script("arguments[0].click()", browser.find_element("id", name))
        WebDriverWait(browser, 10).until(lambda _, n=name: (tmp_path / f"rows.{n}").exists())
    [line] = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["chosen"] == pair.chosen
    assert json.loads(line)["prompt"] == " \uff1dcmd()"
    assert json.loads(line)["chosen_persona"] == str(rows[0].chosen)
    assert json.loads(line)["rejected_persona"] is None
    with open(tmp_path / "rows.csv", encoding="utf-8-sig", newline="") as file:
        [record] = csv.DictReader(file)
    assert (record["id"], record["chosen"]) == ("é", pair.chosen)
    assert record["prompt"] == "' \uff1dcmd()"  # text to a spreadsheet, no formula
    # Also to one that splits by semicolons; what calls nothing stays as it is.
    assert record["rejected"] == "a;b\n\n '\uff1dcmd;'@x\n- a bullet\n'- cmd|x"


@pytest.mark.heavy
def test_all_rows_are_printed(browser: Any, tmp_path: Path) -> None:
    browser.get(write_report(table(200), tmp_path / "report.html").as_uri())
    assert len(browser.find_elements("css selector", "article")) == 40
    assert browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(browser.find_elements("css selector", "article")) == 200


@pytest.mark.heavy
def test_a_group_leads_to_its_rows(browser: Any, tmp_path: Path) -> None:
    browser.get(write_report(table(12), tmp_path / "report.html").as_uri())
    button = browser.find_element("css selector", "[data-group]")
    browser.execute_script("arguments[0].click()", button)
    assert listed(browser) == [f"r{n}" for n in range(12) if n % 3 != 2]
    assert browser.current_url.endswith("#show=group-1")


def test_right_and_wrong_are_the_verdicts_whatever_their_probability(tmp_path: Path) -> None:
    """One order right for sure and the other nearly so has a high score, and is wrong all the same."""
    made = table(2, judged=False).with_columns(
        {
            "chosen_verified": [False, True],
            "chosen_verified_score": [0.7, 0.45],
        }
    )
    rows = embedded(write_report(made, tmp_path / "report.html"))
    assert [row["cp"]["verdicts"][0][0] for row in rows] == ["wrong", "right"]
    assert [kind for row in rows for kind in row["kinds"] if kind in ("right", "wrong")] == [
        "wrong",
        "right",
    ]


# Words, groups, models


def test_why_no_words_are_marked_is_said(tmp_path: Path) -> None:
    few = write_report(table(6), tmp_path / "few.html").read_text(encoding="utf-8")
    assert "Words that mark each side" in few
    assert "No word is in 10 personas or more" in few
    one_side = pi.PersonaTable(
        [replace(row, rejected=None, rejected_candidates=()) for row in table(6)]
    )
    page = write_report(one_side, tmp_path / "one.html").read_text(encoding="utf-8")
    assert "the table has none of the rejected one" in page
    many = write_report(table(90), tmp_path / "many.html").read_text(encoding="utf-8")
    assert ">pressed<" in many


def test_the_model_and_the_judge_are_named(tmp_path: Path) -> None:
    made = table(3)
    judged = pi.PersonaTable(
        list(made), settings={**made.settings, "verified_by": "judge-model"}, added=made.added
    )
    page = write_report(judged, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "personas by fake, the best of 2 candidates a side" in page
    assert "judged by judge-model" in page


def wanting(*wishes: str) -> pi.PersonaTable:
    pair = pi.Preference(prompt="Q?", chosen="A", rejected="B")
    return pi.PersonaTable(
        [
            pi.PersonaRow(n, pair, chosen=pi.Persona(trait=f"person {n}", preference=wish))
            for n, wish in enumerate(wishes)
        ]
    )


def test_groups_are_named_by_what_their_personas_share() -> None:
    made = wanting(
        *["step-by-step instructions for beginners"] * 4, *["jokes about cats"] * 3, "tea"
    )
    steps, jokes = persona_groups(made)
    assert jokes.label == "jokes about cats"
    assert steps.label == "instructions for beginners, step-by-step instructions"
    assert [place.row for place in jokes.members] == [4, 5, 6]
    assert (steps.chosen, steps.rejected, steps.share) == (4, 0, 0.5)
    assert len(steps.examples) == 3
    assert len({str(made[place.row].chosen) for place in steps.examples}) == 3


def test_what_is_not_wanted_names_no_group() -> None:
    made = wanting(*[f"plain words rather than charts {n}" for n in range(5)])
    assert [one.label for one in persona_groups(made)] == ["plain words"]


def test_a_label_keeps_a_phrase_whose_letters_are_within_another_one() -> None:
    wants = [f"smart jokes{', art' if n < 3 else ''}" for n in range(4)]
    others = [f"plain words {n}" for n in range(4)]
    made = wanting(*wants, *others)
    labels = [one.label for one in persona_groups(made)]
    assert any({"smart jokes", "art"} <= set(label.split(", ")) for label in labels), labels
    made = wanting(*["old books"] * 4, *["old books and a book"] * 4, *["plain words"] * 4)
    assert [one.label for one in persona_groups(made)] == ["old books", "plain words"]


def test_too_few_personas_have_no_groups(tmp_path: Path) -> None:
    assert persona_groups(wanting("tea", "tea")) == []
    assert persona_groups(pi.PersonaTable([])) == []
    page = write_report(wanting("tea", "coffee"), tmp_path / "report.html").read_text("utf-8")
    assert "No groups: too few personas want something similar." in page


@pytest.mark.heavy
def test_groups_by_meaning_are_clusters_of_vectors(tmp_path: Path) -> None:
    made = wanting(
        *[f"brief replies {n}" for n in range(5)], *[f"long stories {n}" for n in range(4)]
    )

    def embedder(texts: Any) -> list[list[float]]:
        return [
            [1.0, 0.01 * n] if "brief" in text else [0.01 * n, 1.0] for n, text in enumerate(texts)
        ]

    brief, long = persona_groups(made, embedder=embedder)
    assert [place.row for place in brief.members] == [0, 1, 2, 3, 4]
    assert [place.row for place in long.members] == [5, 6, 7, 8]
    assert ("brief" in brief.label, "stories" in long.label) == (True, True)
    page = write_report(made, tmp_path / "report.html", embedder=embedder).read_text("utf-8")
    assert "grouped by the meaning of what they want" in page


def test_a_page_that_would_be_too_large_says_how_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pi.Preference(prompt="Q?", chosen="yes " * 1000, rejected="no " * 1000)
    made = pi.PersonaTable([pi.PersonaRow(n, pair, chosen=persona(TRAITS[0])) for n in range(20)])
    whole = write_report(made, tmp_path / "whole.html")
    assert embedded(whole)[0]["chosen"] == pair.chosen
    for most, rows, said in (
        (100_000, 20, "The list holds all rows, with texts cut at 2,000 characters"),
        (15_000, 10, "The list holds the first 10 of 20 rows, with texts cut at 500 characters"),
    ):
        monkeypatch.setattr("personainfer.simulation.report._MOST_BYTES", most)
        path = write_report(made, tmp_path / "cut.html")
        assert len(embedded(path)) == rows
        assert said in path.read_text("utf-8")
        assert len(path.read_bytes()) < most + 60_000
        assert "<dt>rows</dt><dd>20</dd>" in path.read_text("utf-8")


@pytest.mark.parametrize("long", ["a" * 30_000, "<" * 10_000, "\x1b" * 10_000])
def test_no_text_of_a_row_makes_a_page_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    """Signs that are escaped count as they are written; a persona or an id is cut as a response is."""
    monkeypatch.setattr("personainfer.simulation.report._MOST_BYTES", 25_000)
    who = pi.Persona(trait=f"calm {long}", preference="lists", evidence=long)
    pair = pi.Preference(prompt="Q?", chosen="yes", rejected="no")
    first = [
        pi.PersonaRow(0, pair.model_copy(update={"chosen": long}), chosen=persona(TRAITS[0])),
        pi.PersonaRow(0, pair, chosen=who),
        pi.PersonaRow(0, pair.model_copy(update={"id": long}), chosen=persona(TRAITS[0])),
        pi.PersonaRow(0, None, error=long),
    ]
    for one in first:
        rows = [one, *(pi.PersonaRow(n, pair, chosen=persona(TRAITS[0])) for n in range(1, 20))]
        path = write_report(pi.PersonaTable(rows), tmp_path / "cut.html", words=[])
        assert len(embedded(path)) == 20
        page = path.read_text("utf-8")
        assert "The list holds all rows, with texts cut at" in page
        data = page.split('id="data"', 1)[1].split("</script>", 1)[0]
        assert len(data) < 25_000 + 500


def test_a_row_that_is_too_large_for_a_page_is_left_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("personainfer.simulation.report._MOST_BYTES", 20_000)
    pair = pi.Preference(prompt="Q?", chosen="yes", rejected="no")
    who = persona(TRAITS[0])
    many = who.model_copy(update={"flags": tuple(f"flag {n}" for n in range(1000))})
    rows = [pi.PersonaRow(n, pair, chosen=who if n else many) for n in range(20)]
    path = write_report(pi.PersonaTable(rows), tmp_path / "cut.html", words=[])
    assert [row["index"] for row in embedded(path)] == list(range(1, 20))
    page = path.read_text("utf-8")
    assert "The list holds 19 of 20 rows, with texts cut at 500 characters" in page
    assert "Rows that are too large for it: 1." in page


# Other results


def compared() -> Any:
    with FakeLLM(reply=lambda request: Reply({"answer": "1"})) as judge:
        return pi.compare_responses(
            ["Tea?", f"Coffee {ATTACK}?"],
            ["Yes.", "No."],
            ["Yes, with milk.", "Never."],
            personas=["Somebody who likes milk.", "Somebody else."],
            judge="judge-model",
            api_base=judge.api_base,
        )


def test_a_comparison_of_responses_is_a_page(tmp_path: Path) -> None:
    path = write_report(compared(), tmp_path / "report.html", title="Two models")
    rows, page = embedded(path), path.read_text("utf-8")
    assert [row["prompt"] for row in rows] == ["Tea?", f"Coffee {ATTACK}?"]
    assert rows[0]["cp"]["text"] == "Somebody who likes milk."
    assert (rows[0]["chosen"], rows[0]["rejected"]) == ("Yes, with milk.", "Yes.")
    assert 'data-chosen="Response of the test model"' in page
    assert "Response comparison</h2>" in page
    assert rows[0]["chips"] == [["split", "quality: tie"], ["split", "personalization: tie"]]
    assert "judged by judge-model" in page
    assert "Characters a response" in page
    assert "What people want</h2>" not in page


def test_what_a_judge_found_is_on_the_page_of_its_table(tmp_path: Path) -> None:
    with FakeLLM(reply=lambda request: Reply({"answer": "1"})) as judge:
        found = pi.verify_personas(
            table(3, judged=False), "judge-model", api_base=judge.api_base, soft=False
        )
    page = write_report(found, tmp_path / "report.html").read_text("utf-8")
    assert "Verification</h2>" in page
    assert "judged by judge-model" in page
    assert "What people want" in page
    assert len(embedded(tmp_path / "report.html")) == 3


def test_personas_of_users_are_a_page(tmp_path: Path) -> None:
    ana = UserPersona(
        user="ana",
        background=f"The user cooks {ATTACK}.",
        preferences="The user likes recipes.",
        evidence=(PairEvidence(pair="p1", shows="short over long"),),
        pairs=3,
        score=0.2,
        flags=("refusal",),
    )
    rows = (UserRow(user="ana", persona=ana), UserRow(user="bo", error="no choice"))
    path = write_report(UserPersonas(rows, settings={"model": "fake"}), tmp_path / "report.html")
    first, second = embedded(path)
    assert first["cp"]["text"] == str(ana)
    assert first["kinds"] == ["flagged", "flag:refusal"]
    assert first["others"] == [["What the choices show", ["p1: short over long"]]]
    assert (second["name"], second["error"]) == ("bo", "no choice")
    page = path.read_text("utf-8")
    for label, value in (("users", 2), ("with a persona", 1), ("with an error", 1)):
        assert f"<dt>{label}</dt><dd>{value}</dd>" in page
    assert "personas by fake" in path.read_text("utf-8")


def test_a_result_of_another_kind_may_have_a_page(tmp_path: Path) -> None:
    """A grid of numbers and remarks are enough; `page_rows.register` adds rows."""

    class Audit:
        settings = {"scorer": "scoring-model"}  # noqa: RUF012

        def grid(self) -> list[tuple[str, ...]]:
            return [("", "knows"), ("ana", "0.75 [0.6, 0.9]")]

        def remarks(self) -> list[str]:
            return ["Of another user: 0.5."]

    page = write_report(Audit(), tmp_path / "report.html").read_text("utf-8")
    for words in ("Audit</h2>", "0.75 [0.6, 0.9]", "Of another user: 0.5.", "by scoring-model"):
        assert words in page


@pytest.mark.heavy
def test_an_audit_is_a_page_with_its_verdict(tmp_path: Path) -> None:
    world = World(3, users=20, choices=12)
    found = pi.audit_personas(world.personas("knows"), world.choices, read, baselines=("longer",))
    path = write_report(found, tmp_path / "report.html", title="Audit")
    assert f"Verdict: {found.verdict}." in path.read_text("utf-8")
    rows = embedded(path)
    assert len(rows) == len(found.choices)
    assert {chip[1].split(" ")[0] for chip in rows[0]["chips"]} >= {"own", "none"}


def test_prefixes_are_a_page_with_each_choice(tmp_path: Path) -> None:
    choices = [
        {
            "user_id": f"u{n % 3}",
            "id": f"c{n}",
            "prompt": f"{n}?",
            "chosen": "Yes.",
            "rejected": "Or no.",
        }
        for n in range(6)
    ]

    def scorer(conversations: Any, responses: Any) -> list[float]:
        told = ["I am u" in turns[0].content for turns in conversations]
        return [-float(len(text)) * known for text, known in zip(responses, told, strict=True)]

    prefix = pi.persona_prefix("persona", personas={f"u{n}": f"I am u{n}." for n in range(3)})
    found = pi.evaluate_prefixes({"told": prefix}, choices, scorer)
    rows = embedded(write_report(found, tmp_path / "report.html"))
    assert sorted(row["name"] for row in rows) == [f"c{n}" for n in range(6)]
    assert ["split", "none +0.000"] in rows[0]["chips"]
    assert [chip[0] for chip in rows[0]["chips"] if chip[1].startswith("told")] == ["right"]
    assert ["score", "user u0"] in rows[0]["chips"]
