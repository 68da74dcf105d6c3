"""Make docs/report.png: the report of a table of personas, as a browser shows it, down to its first two rows.

    python benchmarks/report_picture.py demo/personas.parquet docs/report.png

`make demo` writes the table. It needs Chromium and its driver (Debian: apt-get install chromium
chromium-driver).
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import personainfer as pi

WIDTH = 1160
GROUPS_UNTIL = (
    "document.querySelectorAll('.groups .panel')[2].getBoundingClientRect().bottom + scrollY"
)
ROW = "document.querySelectorAll('article')[{}].getBoundingClientRect()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument(
        "--first", type=int, default=0, help="the first of the two rows in the picture"
    )
    asked = parser.parse_args()
    options = webdriver.ChromeOptions()
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(switch)
    browser = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            table = pi.PersonaTable.load(asked.table)
            page = pi.write_report(table, Path(folder) / "report.html", title="Who prefers what")
            size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.as_uri() + "#responses=1")
            top = shot(browser, 0, place(browser, GROUPS_UNTIL) + 14)
            start = place(browser, f"{ROW.format(asked.first)}.top + scrollY")
            end = place(browser, f"{ROW.format(asked.first + 1)}.bottom + scrollY")
            rows = shot(browser, start, end + 14)
    finally:
        browser.quit()
    whole = Image.new("RGB", (WIDTH, top.height + rows.height))
    whole.paste(top, (0, 0))
    whole.paste(rows, (0, top.height))
    whole.quantize(128).save(asked.picture, optimize=True)
    print(asked.picture, asked.picture.stat().st_size, "bytes")


def place(browser: webdriver.Chrome, expression: str) -> int:
    return int(browser.execute_script(f"return {expression}"))


def shot(browser: webdriver.Chrome, top: int, bottom: int) -> Image.Image:
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top, "scale": 1}
    asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    found = browser.execute_cdp_cmd("Page.captureScreenshot", asked)
    return Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")


if __name__ == "__main__":
    main()
