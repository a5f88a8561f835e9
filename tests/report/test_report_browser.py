"""The page in a real browser: Debian's headless Chromium through selenium, from a file, with no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.browser import needs_browser, started_chrome, wait_for

from cowest.report.data import AnswerView, QueryView, RunReport
from cowest.report.html import render

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = needs_browser
MakeReport = Callable[..., RunReport]


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for the module."""
    with started_chrome(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def show(chrome: Chrome, tmp_path: Path) -> Callable[..., None]:
    """Open a report at a width; fail the test on any console message."""

    def opener(report: RunReport, width: int = 1280, height: int = 900) -> None:
        path = tmp_path / "report.html"
        path.write_text(render(report), encoding="utf-8")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.get(path.as_uri())
        assert chrome.get_log("browser") == []
        assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0

    return opener


def cards(chrome: Chrome) -> list[WebElement]:
    return chrome.find_elements("css selector", "article.query")


def status(chrome: Chrome) -> str:
    return chrome.find_element("css selector", ".status").text


def choose(chrome: Chrome, value: str) -> None:
    radio = chrome.find_element("css selector", f"input[type=radio][value='{value}']")
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", radio)
    radio.click()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("tasks", [1, 3])
def test_no_horizontal_overflow(
    chrome: Chrome, show: Callable[..., None], make_report: MakeReport, width: int, tasks: int
) -> None:
    show(make_report(tasks, n=30), width)
    chrome.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    inner, scroll = chrome.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert inner == width and scroll <= inner


def test_filters_change_the_list(chrome: Chrome, show: Callable[..., None], make_report: MakeReport) -> None:
    report = make_report(n=120)
    show(report)
    queries = report.tasks[0].queries

    def expected(baseline: str, sign: int) -> int:
        pairs = [(q.answers["collab_aligned"].value, q.answers[baseline].value) for q in queries]
        return sum((a - b) * sign > 0 for a, b in pairs if a is not None and b is not None)

    assert len(cards(chrome)) == 20 and status(chrome) == "Showing 20 of 120 queries."
    choose(chrome, "hurt")
    hurt = expected("strong", -1)
    assert status(chrome) == f"Showing {min(20, hurt)} of {hurt} queries."
    assert {c.get_attribute("data-outcome") for c in cards(chrome)} == {"hurt"}
    choose(chrome, "weak")
    against_weak = expected("weak", -1)
    assert against_weak != hurt and f"of {against_weak} queries" in status(chrome)
    choose(chrome, "helped")
    helped = expected("weak", 1)
    assert chrome.find_element("css selector", "[data-count=helped]").text == str(helped)
    more = chrome.find_element("css selector", "button.more")
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", more)
    more.click()
    assert len(cards(chrome)) == min(40, helped)


def test_search_and_its_empty_result(chrome: Chrome, show: Callable[..., None], make_report: MakeReport) -> None:
    show(make_report(n=50))
    box = chrome.find_element("css selector", "input[type=search]")
    box.send_keys("MED-0007")
    wait_for(lambda: len(cards(chrome)) == 1, "one query found")
    assert "med-0007" in cards(chrome)[0].text
    box.send_keys(" nowhere")
    wait_for(lambda: status(chrome) == "No query matches.", "no match")
    assert chrome.find_element("css selector", "[data-count=all]").text == "0"


def test_keyboard_alone(chrome: Chrome, show: Callable[..., None], make_report: MakeReport) -> None:
    from selenium.webdriver.common.keys import Keys

    show(make_report(n=60))
    chrome.find_element("css selector", "body").send_keys(Keys.TAB)
    assert chrome.switch_to.active_element.text == "Skip to the results"
    for _ in range(60):
        focused = chrome.switch_to.active_element
        if (focused.get_attribute("name") or "").endswith("-outcome"):
            break
        focused.send_keys(Keys.TAB)
    else:
        pytest.fail("Tab never reaches the filter")
    chrome.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert chrome.switch_to.active_element.get_attribute("value") == "helped"
    assert {c.get_attribute("data-outcome") for c in cards(chrome)} == {"helped"}
    ring = "return getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
    assert chrome.execute_script(ring) == "solid"
    chrome.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    more = chrome.find_element("css selector", "button.more")
    more.send_keys(Keys.ENTER)
    assert len(cards(chrome)) == 40
    assert chrome.execute_script("return document.activeElement === document.querySelectorAll('article.query')[20]")


def test_hostile_text_does_not_run(chrome: Chrome, show: Callable[..., None], make_report: MakeReport) -> None:
    attacks = [
        "</script><script>window.pwned=1</script>",
        "<img src=x onerror='window.pwned=2'><svg onload='window.pwned=3'>",
        "\"'><iframe srcdoc='<script>parent.pwned=4</script>'>",
        "\x1b[31m \u202egnp.exe \u2028 \ud800",
        "x" * 100_000,
    ]
    queries = []
    for i, text in enumerate(attacks):
        answer = AnswerView(text=text, answer=text, value=1.0, draft=text, error=text)
        answers = {"weak": answer, "strong": answer.model_copy(update={"value": 0.0}), "collab": answer}
        queries.append(
            QueryView(example_id=f"{i}{text[:50]}", input=text, context=text, references=(text,), answers=answers)
        )
    base = make_report(n=10)
    task = base.tasks[0]
    named = task.results.model_copy(update={"task": attacks[0], "name": attacks[1]})
    task = task.model_copy(update={"queries": queries, "results": named})
    show(RunReport(title=attacks[1], subtitle=attacks[2], tasks=[task], notes=attacks[:4]), 390)
    chrome.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for button in chrome.find_elements("css selector", "button.all"):
        chrome.execute_script("arguments[0].click()", button)
    assert len(cards(chrome)) == len(attacks)
    assert chrome.execute_script("return window.pwned") is None
    assert not chrome.find_elements("css selector", "img, iframe, article svg, article script")
    assert attacks[0] in chrome.find_element("css selector", "article .question").text
    full = "return Math.max(...[...document.querySelectorAll('article .text')].map((n) => n.textContent.length))"
    assert chrome.execute_script(full) == 100_000
    assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    # Even markup that did get in would not run: the policy allows one script, by its hash.
    chrome.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=5\">')")
    wait_for(lambda: bool(chrome.get_log("browser")), "the policy's complaint")
    assert chrome.execute_script("return window.pwned") is None


def test_without_javascript_all_but_the_list_works(
    chrome: Chrome, show: Callable[..., None], make_report: MakeReport
) -> None:
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(make_report(n=20))
        body = chrome.find_element("css selector", "main").text
        assert "This list needs JavaScript" in body and "Compared on the same queries" in body
        assert not chrome.find_element("css selector", "form.controls").is_displayed()
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_thousand_queries_stay_quick(chrome: Chrome, show: Callable[..., None], make_report: MakeReport) -> None:
    show(make_report(n=1000))
    assert "of 1,000 queries" in status(chrome)
    clock = "const t = performance.now(); arguments[0].click(); return performance.now() - t"
    radios = chrome.find_elements("css selector", "input[type=radio]")
    slowest = max(chrome.execute_script(clock, r) for r in radios)
    assert slowest < 500, f"a filter took {slowest:.0f} ms"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(
    chrome: Chrome, show: Callable[..., None], make_report: MakeReport, scheme: str
) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    show(make_report(n=30))
    script = """
      const rgb = (c) => { const d = document.createElement('i'); d.style.color = c; document.body.append(d);
        const v = getComputedStyle(d).color.match(/[\\d.]+/g).slice(0, 3).map(Number); d.remove(); return v; };
      const lum = (v) => v.map((x) => { x /= 255; return x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; })
        .reduce((s, x, i) => s + x * [.2126, .7152, .0722][i], 0);
      const ratio = (a, b) => { const [x, y] = [lum(rgb(`var(${a})`)), lum(rgb(`var(${b})`))].sort((p, q) => q - p);
        return (x + .05) / (y + .05); };
      const out = {};
      for (const back of ['--paper', '--card', '--calm-bg'])
        for (const front of ['--ink', '--soft', '--muted', '--accent']) out[front + back] = [ratio(front, back), 4.5];
      for (const [f, b] of [['--good', '--good-bg'], ['--bad', '--bad-bg'], ['--soft', '--good-bg'],
        ['--soft', '--bad-bg'], ['--good', '--card'], ['--bad', '--card'], ['--paper', '--accent']])
        out[f + b] = [ratio(f, b), 4.5];
      for (let i = 0; i < 8; i++) out['c' + i] = [ratio('--c' + i, '--card'), 3];
      return out;"""
    found = chrome.execute_script(script)
    low = {k: round(r, 2) for k, (r, least) in found.items() if r < least}
    assert not low
