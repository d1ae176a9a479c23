"""The report in a real browser: no error, readable on a phone and in the dark, and the figures of the JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_multirate.reporting import report
from tests.support.runs import recorded_pair


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
LEAST_CONTRAST = 4.5
"""Of text, as WCAG 2 asks for."""

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and "HF_MULTIRATE_TEST_BROWSER" not in os.environ,
    reason="chromium and chromedriver are not installed",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = recorded_pair(tmp_path_factory.mktemp("runs"))
    return report(folder / "multirate", folder / "baseline")


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    assert CHROMIUM, "HF_MULTIRATE_TEST_BROWSER is set, and there is no chromium"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path, *, dark: bool = False, screen: dict[str, Any] | None = None) -> Any:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    wide = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen or wide)
    browser.get(page.as_uri())
    return browser


def test_it_renders_without_an_error(browser: Any, page: Path) -> None:
    opened(browser, page)
    assert browser.get_log("browser") == []
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert len(sizes) == 7
    assert min(sizes) > 100
    assert "times as fast" in browser.find_element("id", "verdict").text


def test_an_error_would_be_seen(browser: Any, page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        page.read_text().replace("</body>", "<script>nothing.there()</script><img src='gone.png'></body>")
    )
    opened(browser, broken)
    assert len(browser.get_log("browser")) == 2


def test_figures_are_those_of_the_json(browser: Any, page: Path) -> None:
    opened(browser, page)
    figures = json.loads(page.with_name("report.json").read_text())
    rows = browser.find_elements("css selector", "#figures tr[data-key]")
    assert len(rows) >= 9
    for row in rows:
        key = row.get_attribute("data-key")
        shown = row.find_elements("css selector", "td.number")[0].text
        value = figures.get(key, figures["metrics"].get(key))
        assert shown == f"{value:.4g}", key


def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, page: Path) -> None:
    opened(browser, page, screen=PHONE)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
    pixels = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    )
    assert pixels >= 7


CONTRAST = """
const light = c => {
  const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = light(getComputedStyle(document.body).backgroundColor);
return Math.min(...[...document.querySelectorAll('h1, h2, p.verdict, td, th, figcaption, summary, svg text')].map(e => {
  const style = getComputedStyle(e);
  const ink = light(e.tagName == 'text' ? style.fill : style.color);
  return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
}));
"""  # noqa: E501


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(browser: Any, page: Path, dark: bool) -> None:
    opened(browser, page, dark=dark)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    assert browser.execute_script(CONTRAST) >= LEAST_CONTRAST
