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
from personainfer.evaluation.report import write_report
from personainfer.evaluation.summary import summarise
from personainfer.records import Candidate
from personainfer.simulation.plots import plot_accuracy, plot_salient_words, plot_scores

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
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
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
    assert rows[0]["kinds"] == ["split"]  # one side right, the other in one order
    assert rows[1]["kinds"][:2] == ["flagged", "ungrammatical"]
    assert rows[2]["kinds"] == ["error"]


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


@pytest.mark.heavy
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, tmp_path: Path, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(write_report(table(30), tmp_path / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


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
