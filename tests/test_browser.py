"""The report page in a real browser: it asks for nothing, has no errors, and works by pointer and by keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import deep
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from torch import Tensor, nn

import graphfuse
from graphfuse.fuse import FuseResult
from graphfuse.report import html
from graphfuse.report.couplings import couplings
from graphfuse.report.explorer import explorer
from graphfuse.report.pages import fuse_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no chromium and chromedriver here; on Debian: apt-get install chromium chromium-driver",
)


class Net(nn.Module):
    """A residual stream, heads of their own, and a hidden axis longer than a heat map is wide."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inp, self.qkv, self.out = nn.Linear(5, 12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down, self.head = nn.Linear(12, hidden), nn.Linear(hidden, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x + self.down(self.up(x).relu()))


EVALUATION = {
    "metrics": ["accuracy", "loss"], "inputs": 500,
    "parents": [{"accuracy": 0.915, "loss": 0.31}, {"accuracy": 0.905, "loss": 0.32}],
    "ensemble": {"accuracy": 0.922, "loss": 0.25}, "plain": {"accuracy": 0.41, "loss": 2.5},
    "fused": {"accuracy": 0.897, "loss": 0.35},
    "before": {"metric": "accuracy", "values": [0.915, 0.41, 0.905], "barrier": 0.5},
    "after": {"metric": "accuracy", "values": [0.915, 0.85, 0.905], "barrier": 0.06},
}  # fmt: skip


@pytest.fixture(scope="module")
def result() -> FuseResult:
    torch.manual_seed(0)
    return graphfuse.fuse([Net(70), Net(90)], data=[torch.randn(64, 6, 5)], config={"solver": "sinkhorn"})


@pytest.fixture(scope="module")
def page(result: FuseResult, tmp_path_factory: pytest.TempPathFactory) -> str:
    graph = graphfuse.trace(result.model, (torch.randn(2, 6, 5),))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(fuse_page(graph, {**result.report, "evaluation": EVALUATION}, result.alignment), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def browser(started: Any) -> Iterator[Any]:
    """A browser of 1280 x 900 in light; what a page logged, or asked for beside itself, fails the test."""
    sized(started, 1280)
    coloured(started, "light")
    for log in ("browser", "performance"):
        started.get_log(log)
    yield started
    assert started.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in started.get_log("performance")]
    urls = {entry["params"]["request"]["url"] for entry in asked if entry["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith(("file:", "data:,")) for url in urls)
    assert len([url for url in urls if url.startswith("file:")]) <= 1, urls


def sized(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def coloured(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def one(browser: Any, selector: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, selector)


def every(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def opened(browser: Any, page: str) -> None:
    browser.get(page)
    drawn(browser)


def drawn(browser: Any, words: str = "") -> None:
    """Wait until the heat map that was chosen is there."""
    WebDriverWait(browser, 10).until(lambda b: words in (one(b, ".heat").get_attribute("data-shown") or " "))


def wait_for(browser: Any, what: str) -> None:
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(f"return {what}"))


def focused(browser: Any) -> Any:
    return browser.switch_to.active_element


# ------------------------------------------------------------------------- tests


def test_outcome_comes_first_and_nothing_is_missing(browser: Any, page: str) -> None:
    opened(browser, page)
    heads = [head.text for head in every(browser, "h2")]
    assert heads[0] == "Outcome" and heads[2:5] == ["Labelled graph", "Couplings", "Matching by layer"]
    assert {"Calibration by layer", "What is fixed, and why", "Time and memory"} <= set(heads)
    rows = {
        row.find_element(By.TAG_NAME, "th").text: row.text
        for row in every(browser, "#outcome .scroll:first-of-type tbody tr")
    }
    assert "0.922 0.250" in rows["ensemble of the models"] and "0.410 2.500" in rows["plain average"]
    assert "0.897 0.350" in rows["fused"] and "0.915 0.310" in rows["model 0"]
    assert "barrier 0.500" in one(browser, "#outcome .legend").text
    assert len(every(browser, "#outcome .chart .line")) == 2
    assert "process held" in one(browser, "#time-and-memory").text
    for table in every(browser, "table"):
        assert all(cell.get_attribute("scope") == "col" for cell in table.find_elements(By.CSS_SELECTOR, "thead th"))


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read_in_both_colours(browser: Any, page: str, width: int, scheme: str) -> None:
    sized(browser, width)
    coloured(browser, scheme)
    opened(browser, page)
    for details in every(browser, "summary"):
        details.click()
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("const e = document.documentElement; return e.scrollWidth - e.clientWidth") == 0
    seen = browser.execute_script(TEXTS)
    assert len(seen) > 100
    assert (contrast(seen[0][1], [0, 0, 0]) > 10) == (scheme == "light")
    faint = [(words, round(contrast(ink, paper), 1)) for ink, paper, words in seen if contrast(ink, paper) < 4.5]
    assert faint == []  # 4.5: what WCAG AA asks of text


TEXTS = """
const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
const seen = [];
for (const e of document.querySelectorAll("body *")) {
  const bare = ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (bare || e.closest("svg, script, style, [hidden], #tip")) continue;
  let behind = e;
  while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const paper = numbers(getComputedStyle(behind).backgroundColor).slice(0, 3);
  seen.push([numbers(getComputedStyle(e).color).slice(0, 3), paper, e.textContent.slice(0, 40)]);
}
return seen;
"""


def contrast(a: list[float], b: list[float]) -> float:
    """By WCAG 2.1."""

    def light(colour: list[float]) -> float:
        parts = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05

    first, second = light(a), light(b)
    return max(first, second) / min(first, second)


def test_an_axis_that_is_picked_lights_up_what_it_touches(browser: Any, page: str) -> None:
    opened(browser, page)
    row = next(row for row in every(browser, ".axis-list > li") if "hidden.0" in row.text)
    assert every(browser, ".graph .on") == []
    row.find_element(By.TAG_NAME, "button").click()
    cards = [card.get_attribute("data-find") for card in every(browser, ".card.on")]
    assert any("up.weight" in words for words in cards) and any("down.weight" in words for words in cards)
    assert not any("head.weight" in words for words in cards)
    assert "up.weight" in row.text and row.find_element(By.TAG_NAME, "button").get_attribute("aria-pressed") == "true"
    one(browser, ".graph .card[data-find*='up.weight']").click()  # steps on to the next axis of the card
    assert row.find_element(By.TAG_NAME, "button").get_attribute("aria-pressed") == "false"


def test_search_and_zoom(browser: Any, page: str) -> None:
    opened(browser, page)
    one(browser, ".explorer input").send_keys("DOWN.weight", Keys.ENTER)
    assert one(browser, ".matches").text == "1 of 1" and len(every(browser, ".card.found.here")) == 1
    before = one(browser, ".graph").get_dom_attribute("viewBox")
    one(browser, "[data-zoom=in]").click()
    assert one(browser, ".graph").get_dom_attribute("viewBox") != before


def test_all_of_it_by_keyboard(browser: Any, page: str) -> None:
    """Tab alone comes to every control, and shows where it is; Enter and Space pick an axis, Escape clears."""
    opened(browser, page)
    stops = []
    for _ in range(120):
        focused(browser).send_keys(Keys.TAB)
        here = focused(browser)
        if here.tag_name == "body":
            break
        assert browser.execute_script("return arguments[0].matches(':focus-visible')", here)
        assert browser.execute_script("return getComputedStyle(arguments[0]).outlineWidth", here) != "0px"
        stops.append(here)
    assert [stop.tag_name for stop in stops].count("select") >= 2
    for wanted in every(browser, "input, canvas, summary, .axis-list button, [data-zoom], .canvas"):
        assert wanted in stops
    for chart in every(browser, ".chart"):
        assert sum(mark in stops for mark in chart.find_elements(By.CSS_SELECTOR, ".mark")) == 1
    button = every(browser, ".axis-list button")[0]
    for key in (Keys.ENTER, Keys.SPACE):
        button.send_keys(key)
        assert every(browser, ".graph .card.on")
        button.send_keys(Keys.ESCAPE)
        assert not every(browser, ".graph .on")


def test_heat_maps_have_the_values_of_the_maps(browser: Any, page: str, result: FuseResult) -> None:
    opened(browser, page)
    known = {(m.axis.name, m.where): m for m in couplings(result.alignment, 1)}
    hidden = next(m for (name, _), m in known.items() if name == "hidden.0")
    assert hidden.sizes == (70, 90) and hidden.shares.shape == (64, 64)
    choose(browser, ".heat-axis", "hidden.0")
    choose(browser, ".heat-order", "in their own order")
    drawn(browser, "hidden.0 0 own")
    assert "70 × 90, drawn as 64 × 64" in one(browser, ".heat-about").text
    canvas = one(browser, ".heat canvas")
    canvas.send_keys(Keys.ARROW_DOWN, *[Keys.ARROW_DOWN] * 3, *[Keys.ARROW_RIGHT] * 2)
    words = one(browser, ".heat-read").text
    top = max(float(hidden.shares.max()), float(hidden.matched.max()))
    assert float(words.rpartition(" ")[2]) == pytest.approx(float(hidden.shares[3, 2]), abs=top / 510 + 6e-4)
    i, j = divmod(int(hidden.shares.argmax()), 64)
    pixel = browser.execute_script(
        "const c = arguments[0], s = c.width / 64; return [...c.getContext('2d').getImageData("
        "(arguments[2] + .5) * s, (arguments[1] + .5) * s, 1, 1).data].slice(0, 3)", canvas, i, j,
    )  # fmt: skip
    share = float(hidden.shares[i, j]) / top
    assert sum(pixel) < 480 if share > 0.2 else sum(pixel) > 240  # a large share is dark on light paper
    canvas.send_keys(Keys.ESCAPE)
    assert "arrow keys" in one(browser, ".heat-read").text


def test_heat_maps_of_a_family_can_be_stepped_through(browser: Any, page: str, result: FuseResult) -> None:
    opened(browser, page)
    family = [m for m in couplings(result.alignment, 1) if m.axis.name == "head_dim_vo.0"]
    assert len(family) == 3
    choose(browser, ".heat-axis", "head_dim_vo.0")
    names = [option.text for option in Select(one(browser, ".heat-member")).options]
    assert names == [m.label for m in family] and all("heads.0" in name for name in names)
    choose(browser, ".heat-member", names[2])
    choose(browser, ".heat-order", "in their own order")
    drawn(browser, "head_dim_vo.0 2 own")
    assert names[2] in one(browser, ".heat-about").text
    canvas = one(browser, ".heat canvas")
    shown = []
    for row in range(4):
        canvas.send_keys(Keys.ESCAPE, Keys.ARROW_DOWN, *[Keys.ARROW_DOWN] * row)
        shown.append(float(one(browser, ".heat-read").text.rpartition(" ")[2]))
    torch.testing.assert_close(torch.tensor(shown), family[2].shares[:, 0], rtol=0, atol=0.004)
    coloured(browser, "dark")  # is drawn again in the colours of the dark page
    wait_for(browser, "document.querySelector('.heat canvas').width > 0")


def choose(browser: Any, selector: str, text: str) -> None:
    Select(one(browser, selector)).select_by_visible_text(text)


def test_tabs_show_one_panel_at_a_time(browser: Any, tmp_path: Path) -> None:
    graph = deep(2)
    panels = {"One": explorer(graph, "one"), "Two": explorer(graph, "two")}
    path = tmp_path / "tabs.html"
    path.write_text(html.page("Tabs", [html.Section("Graphs", html.tabs(panels, "t"))]), encoding="utf-8")
    browser.get(path.as_uri())
    tabs, bodies = every(browser, "[role=tab]"), every(browser, "[role=tabpanel]")
    assert [body.is_displayed() for body in bodies] == [True, False]
    tabs[0].send_keys(Keys.ARROW_RIGHT)
    assert [body.is_displayed() for body in bodies] == [False, True] and focused(browser) == tabs[1]


def test_a_graph_of_two_thousand_nodes_can_be_used(browser: Any, tmp_path: Path) -> None:
    graph = deep(300)
    path = tmp_path / "deep.html"
    path.write_text(html.page("Deep", [html.Section("Graph", explorer(graph, "deep"))]), encoding="utf-8")
    browser.get(path.as_uri())
    assert len(every(browser, ".graph .card")) > 600
    one(browser, ".explorer input").send_keys("layer.299.up")
    assert one(browser, ".matches").text == "1 of 1"
    one(browser, ".explorer input").clear()
    every(browser, ".axis-list button")[0].click()
    assert browser.execute_script("return document.querySelectorAll('.graph .card.on').length") > 600
