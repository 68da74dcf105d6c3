"""How long a browser takes to open a report, and how large the page is.

    python benchmarks/report_timing.py                    # 2,000 and 50,000 rows
    python benchmarks/report_timing.py --rows 100000

The rows are made up, as long as real ones: a prompt of 20 words, responses of 80 and 120, two personas.
The time is that of the browser's own clock, from the start of the navigation to the first rows on the
screen. It needs Chromium and its driver (Debian: apt-get install chromium chromium-driver).
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

import personainfer as pi

SIZES = (2_000, 50_000)
PROMPT, CHOSEN, REJECTED = 20, 80, 120  # words
WORDS = (
    "the a of to and in it that for with on as this plan answer garden short reason first week habit"
    " simple detail water train number story music letter bread price doctor mountain question begin"
    " enough careful warm quick honest example step morning evening list idea people friend time"
).split()
TRAITS = ("practical", "curious", "short of time", "fond of details", "careful", "relaxed")
PREFERENCES = (
    "plain steps",
    "stories with a point",
    "short answers",
    "reasons",
    "examples",
    "numbers",
)
LONGEST_WAIT_S = 120
OPENED = (
    "return document.querySelector('article') && performance.timing.loadEventEnd > 0"
    " ? performance.timing.loadEventEnd - performance.timing.navigationStart : 0"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=SIZES, help="one page for each")
    asked = parser.parse_args()
    print("| rows | page | written in | opened in | list |")
    print("| --- | --- | --- | --- | --- |")
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            table, path = made_table(rows), Path(folder) / "report.html"
            began = time.perf_counter()
            pi.write_report(table, path)
            written = time.perf_counter() - began
            opened, listed = open_page(path)
            size = path.stat().st_size / 1e6
        print(
            f"| {rows:,} | {size:.1f} MB | {written:.1f} s | {opened:.1f} s | {listed} |",
            flush=True,
        )


def made_table(rows: int) -> pi.PersonaTable:
    drawn = random.Random(0)

    def text(words: int) -> str:
        return " ".join(drawn.choices(WORDS, k=words)).capitalize() + "."

    def persona() -> pi.Persona:
        return pi.Persona(
            evidence=text(10), trait=drawn.choice(TRAITS), preference=drawn.choice(PREFERENCES)
        )

    return pi.PersonaTable(
        pi.PersonaRow(
            n,
            pi.Preference(prompt=text(PROMPT), chosen=text(CHOSEN), rejected=text(REJECTED)),
            chosen=persona(),
            rejected=persona(),
        )
        for n in range(rows)
    )


def open_page(path: Path) -> tuple[float, str]:
    """Seconds until the page is loaded and shows rows, and what it says of how many there are."""
    options = webdriver.ChromeOptions()
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        browser.get(path.as_uri())
        took = WebDriverWait(browser, LONGEST_WAIT_S).until(lambda b: b.execute_script(OPENED))
        return took / 1000, browser.find_element("id", "count").text
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
