"""The page in a real browser: clicks, drags, keys, links, contrast, and no request.

Needs Debian's chromium and chromium-driver; without them it is skipped, but fails in CI.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from browser_helpers import chromium, requests_of, until
from page_helpers import HOSTILE, page
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from jaxsteer import pages
from jaxsteer.pages import Band

READY = "return document.documentElement.dataset.ready === 'true'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    pages.write_page(path, page())
    return path.as_uri()


def visit(browser: Chrome, address: str) -> None:
    browser.get("about:blank")  # an address that differs in its fragment loads nothing
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    until(lambda: browser.execute_script(READY), "the page is ready")


def by_id(browser: Chrome, name: str) -> WebElement:
    return browser.find_element(By.ID, name)


def shown(browser: Chrome) -> dict[str, Any]:
    """What stands on the page: both titles and texts, the line that is chosen, the rings."""
    script = """
      const text = (id) => document.getElementById(id).textContent;
      const line = document.querySelector('.line[aria-selected=true] .name');
      return {a: text('title-a'), b: text('title-b'), textA: text('text-a'), textB: text('text-b'),
              line: line && line.textContent, count: text('count'), hash: location.hash,
              toldB: text('told-b'), lines: document.querySelectorAll('.line').length}
    """
    return browser.execute_script(script)


def tokens_in(passage: WebElement) -> list[WebElement]:
    return passage.find_elements(By.CSS_SELECTOR, "[data-i]")


def press(browser: Chrome, *keys: str) -> None:
    ActionChains(browser, duration=20).send_keys(*keys).perform()


def test_a_page_opens_without_errors_or_requests(browser: Chrome, file: str) -> None:
    visit(browser, file)
    assert requests_of(browser) <= {"file", "blob", "data"}
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    refused = browser.execute_async_script(
        "const done = arguments[0];"
        "fetch('https://example.org/').then(() => done('went'), (e) => done(String(e)))"
    )
    assert "TypeError" in refused  # the policy of the page
    assert requests_of(browser) <= {"file", "blob", "data"}
    found = shown(browser)
    assert found["a"] == "A unsteered"
    assert found["b"] == "B found, +0.25"  # the last coherent one
    assert found["count"] == "6 of 6 texts"
    assert "#" not in found["hash"]


def test_a_page_opens_on_a_steered_text_where_no_positive_coefficient_is_coherent(
    browser: Chrome, tmp_path: Path
) -> None:
    made = page()
    good, bad = Band(0.99, 0.98, 1.0, 6), Band(0.2, 0.1, 0.3, 6)
    cells = [dataclasses.replace(c, coherence=bad if c.coeff > 0 else good) for c in made.cells]
    pages.write_page(tmp_path / "page.html", dataclasses.replace(made, cells=cells))
    visit(browser, (tmp_path / "page.html").as_uri())
    assert (shown(browser)["a"], shown(browser)["b"]) == ("A unsteered", "B found, −0.5")


def test_a_narrow_page_is_as_wide_as_its_screen(browser: Chrome, file: str) -> None:
    size = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        visit(browser, file)
        browser.execute_script("document.querySelector('.cells').open = true")
        assert browser.execute_script("return document.documentElement.scrollWidth") == 420
        measured = browser.find_element(By.CSS_SELECTOR, ".claims .measured")
        assert measured.rect["x"] + measured.rect["width"] <= 420
        titles = "return document.querySelectorAll('.panel .mark-text.role-axis-title').length"
        assert browser.execute_script(titles) == 4  # two panels, each with both axes
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_hostile_texts_are_shown_as_they_are(browser: Chrome, file: str) -> None:
    visit(browser, file + "#direction=found&b=0.25&prompt=eval-0")
    assert browser.execute_script("return window.harmed") is None
    passage = by_id(browser, "text-b")
    assert passage.find_elements(By.CSS_SELECTOR, "img, svg, script") == []
    pieces = [span.get_attribute("textContent") for span in tokens_in(passage)]
    assert "".join(pieces) == HOSTILE
    keyword = passage.find_element(By.CSS_SELECTOR, ".keyword")
    assert keyword.text.strip() == "wait"
    assert passage.find_element(By.CSS_SELECTOR, ".chip.strong").text == "backtracking"


def test_a_click_on_a_point_opens_its_texts(browser: Chrome, file: str) -> None:
    visit(browser, file)
    points = browser.find_elements(By.CSS_SELECTOR, "#plot-0 .mark-symbol path")
    drawn = [browser.execute_script("return arguments[0].__data__.datum", p) for p in points]
    chosen = points[[(d.get("series"), d.get("name")) for d in drawn].index(("found", "+0.5"))]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chosen)
    ActionChains(browser, duration=20).move_to_element(chosen).perform()
    tip = until(lambda: by_id(browser, "tip").text, "the cell is told")
    assert tip.startswith("reasoning model: found, +0.5\nadded: +0.5 residual norms\n")
    assert "backtracking share: 0.130 [0.120, 0.140]" in tip
    ActionChains(browser, duration=20).move_to_element(chosen).click().perform()
    assert shown(browser)["b"] == "B found, +0.5"
    assert "b=0.5" in shown(browser)["hash"]


def test_the_slider_moves_the_ring_and_the_text(browser: Chrome, file: str) -> None:
    visit(browser, file)
    slider = by_id(browser, "coeff-b")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    ring = (
        "return [...document.querySelectorAll('#small .mark-symbol path')]"
        ".map((path) => path.__data__.datum).find((datum) => datum.side === 'B')?.is"
    )
    before = until(lambda: browser.execute_script(ring), "a ring around B")
    # Four stops: from the third, where B is, to the last.
    third, last = (round((share - 0.5) * (slider.size["width"] - 16)) for share in (2 / 3, 1))
    drag = ActionChains(browser, duration=20).move_to_element_with_offset(slider, third, 0)
    drag.click_and_hold().move_by_offset(last - third, 0).release().perform()
    assert shown(browser)["toldB"] == "+0.5"
    after = until(lambda: (now := browser.execute_script(ring)) != before and now, "the ring moved")
    assert after == before + 1
    assert slider.get_attribute("aria-valuetext") == "found, +0.5"


def test_keys_alone_go_everywhere(browser: Chrome, file: str) -> None:
    visit(browser, file)
    browser.find_element(By.TAG_NAME, "body").click()
    press(browser, "j", "j")
    assert shown(browser)["line"] == "eval-2"
    press(browser, "k")
    assert shown(browser)["line"] == "eval-1"
    press(browser, Keys.ARROW_RIGHT)
    assert shown(browser)["b"] == "B found, +0.5"
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert shown(browser)["b"] == "B found, −0.5"
    assert shown(browser)["textB"] == "Empty."
    ActionChains(browser, duration=20).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(
        Keys.SHIFT
    ).perform()
    assert shown(browser)["a"] == "A found, +0.25"
    by_id(browser, "find").send_keys("j")
    assert shown(browser)["count"] == "0 of 6 texts"  # a letter, not a key
    by_id(browser, "find").send_keys(Keys.BACKSPACE)
    # Everything that can be clicked is reached by Tab.
    browser.execute_script(
        "document.activeElement.blur(); window.reached = [];"
        "addEventListener('focusin', ({target}) => reached.push(target.id || target.textContent))"
    )
    press(browser, *[Keys.TAB] * 60)
    reached = set(browser.execute_script("return reached"))
    names = "panel series tint coeff-a coeff-b show sort find list python-a python-b text-a text-b"
    assert reached >= {*names.split(), "Figure", "Texts"}


def test_a_link_leads_to_the_same_view(browser: Chrome, file: str) -> None:
    visit(browser, file)
    Select(by_id(browser, "panel")).select_by_visible_text("base model")
    Select(by_id(browser, "series")).select_by_visible_text("random")
    Select(by_id(browser, "show")).select_by_value("right")
    press(browser, Keys.ESCAPE)
    browser.execute_script("document.activeElement.blur()")
    press(browser, "j", Keys.ARROW_LEFT)
    seen = shown(browser)
    assert seen["b"] == "B random, 0" or seen["b"].startswith("B ")
    assert seen["count"] == "3 of 6 texts"
    visit(browser, file + seen["hash"])
    assert shown(browser) == seen
    assert abs(by_id(browser, "texts").rect["y"] - browser.execute_script("return scrollY")) < 100
    browser.execute_script(
        "location.hash = 'model=reasoning+model&direction=found&b=-0.5&prompt=eval-3'"
    )
    until(lambda: shown(browser)["b"] == "B found, −0.5", "the link is followed")
    assert shown(browser)["line"] == "eval-3"


def test_filters_and_order(browser: Chrome, file: str) -> None:
    visit(browser, file + "#direction=found&b=-0.5&show=empty")
    assert (shown(browser)["count"], shown(browser)["line"]) == ("1 of 6 texts", "eval-1")
    visit(browser, file + "#direction=found&b=0.25&sort=effect")
    names = [e.text for e in browser.find_elements(By.CSS_SELECTOR, ".line .name")]
    assert sorted(names) == [f"eval-{i}" for i in range(6)]
    tagged = [bool(e.text) for e in browser.find_elements(By.CSS_SELECTOR, ".line .tags")]
    events = ["backtracks" in e.text for e in browser.find_elements(By.CSS_SELECTOR, ".line .tags")]
    assert all(tagged)  # right or wrong
    assert events == sorted(events, reverse=True)
    Select(by_id(browser, "claim")).select_by_value("C3")
    assert "model=base" in shown(browser)["hash"]


def test_figures_and_python_open(browser: Chrome, file: str) -> None:
    visit(browser, file)
    browser.find_element(By.CSS_SELECTOR, "[data-figure=fig]").click()
    dialog = by_id(browser, "dialog")
    assert dialog.is_displayed()
    links = dialog.find_elements(By.CSS_SELECTOR, "a[download]")
    assert [link.get_attribute("download") for link in links] == ["fig.svg", "fig.csv"]
    wide = "return document.querySelector('#dialog img').naturalWidth"
    assert until(lambda: browser.execute_script(wide), "the figure") == 200
    press(browser, Keys.ESCAPE)
    assert not dialog.is_displayed()
    browser.execute_script("arguments[0].click()", by_id(browser, "python-b"))
    lines = dialog.find_element(By.TAG_NAME, "pre").text
    assert (
        json.loads(lines.removeprefix("text, row = ").rpartition(",")[0])
        == "how many boxes are in room 0 ?"
    )
    press(browser, Keys.ESCAPE)


def test_a_token_tells_what_is_known_of_it(browser: Chrome, file: str) -> None:
    visit(browser, file + "#direction=found&b=0.25&prompt=eval-2")
    token = browser.find_element(By.CSS_SELECTOR, "#text-b [data-i='1']")
    ActionChains(browser, duration=20).move_to_element(token).perform()
    lines = until(lambda: by_id(browser, "tip").text, "the token is told").split("\n")
    assert lines[0] == '" then"'
    assert lines[1].startswith("projection ")
    assert lines[2].startswith("log-probability −")
    assert lines[3] == "steered: found, +0.25"
    assert token.get_attribute("class") in ("hi", "lo")
    differs = browser.find_element(By.CSS_SELECTOR, "#text-b .differs")
    assert int(differs.get_attribute("data-i") or 0) == 2  # "first then" are the same


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_and_names_pass_axe(browser: Chrome, file: str, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        visit(browser, file)
        rules = ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]
        found = Axe().run(browser, options={"runOnly": rules})
        broken = {r["id"]: [node["html"] for node in r["nodes"]] for r in found["violations"]}
        assert broken == {}
        passed = {rule["id"]: str(rule["nodes"]) for rule in found["passes"]}
        assert passed.keys() >= {"color-contrast", "label", "aria-required-children", "region"}
        assert "data-i" in passed["color-contrast"]  # tinted tokens
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_thousand_long_texts_are_no_burden(browser: Chrome, tmp_path: Path) -> None:
    large = page(prompts=72, words=1500)
    assert len(large.texts) >= 1000
    pages.write_page(tmp_path / "page.html", large)
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    visit(browser, (tmp_path / "page.html").as_uri())
    found = shown(browser)
    assert found["count"] == "72 of 72 texts"
    assert found["lines"] < 40  # of the list only what can be seen
    slowest = browser.execute_script(
        """
        const press = (key) => {
          const start = performance.now();
          document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
          document.body.offsetHeight;
          return performance.now() - start;
        };
        return Math.max(...['j', 'j', 'ArrowRight', 'k', 'ArrowLeft'].map(press));
        """
    )
    assert slowest < 1000  # milliseconds; some 30 on a machine that does nothing else
    assert shown(browser)["line"] == "eval-1"
