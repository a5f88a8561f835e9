"""The page at ``/``: what it is sent with, and how it behaves in a real browser against a served pair."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from tests.browser import needs_browser, started_chrome, wait_for
from tests.server.loopback import DRAFT, chunk, events, serving, strong
from tests.server.site import LOW_CONTRAST, Site, streamed

from cowest.ledger.exchanges import read_exchanges
from cowest.models.scripted import ScriptedChatModel
from cowest.server.auth import Keys
from cowest.server.settings import Settings
from cowest.types import Example

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement


async def test_the_page_allows_its_own_script_and_style_and_nothing_else() -> None:
    async with strong() as upstream, serving(upstream.url, keys=Keys(["k"])) as client:
        got = await client.get("/")
        assert got.status == 200 and got.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in got.headers["Content-Security-Policy"].split("; "))
        page = got.raw.decode()
        for tag in ("script", "style"):
            (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
            assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert got.headers["X-Content-Type-Options"] == "nosniff"
        assert 'data-key="yes" data-collect="no"' in page
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|(src|href)=\"(?!data:)", page)
        assert not re.search(r"sessionStorage|document\.cookie|indexedDB", page)


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with started_chrome(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def open_page(chrome: Chrome) -> Iterator[Callable[..., Site]]:
    """Serve a pair, and open its page at a width and in a colour scheme."""
    with ExitStack() as stack:

        def opener(
            width: int = 1280, scheme: str = "light", prepare: Callable[[Site], None] | None = None, **options: Any
        ) -> Site:
            site = stack.enter_context(Site().up(options))
            if prepare is not None:
                prepare(site)
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            chrome.get_log("browser")  # what an earlier page said
            chrome.get(site.url)
            assert chrome.get_log("browser") == []
            return site

        yield opener
        chrome.get("about:blank")  # so that no connection keeps the server from ending


def at(chrome: Chrome, selector: str) -> WebElement:
    return chrome.find_element("css selector", selector)


def text_of(chrome: Chrome, selector: str) -> str:
    found: str = at(chrome, selector).get_attribute("textContent") or ""
    return found


def ask(chrome: Chrome, text: str = "May I?") -> None:
    at(chrome, "#question").send_keys(text)
    at(chrome, "#ask").click()


def is_done(chrome: Chrome) -> bool:
    return at(chrome, "#status").text not in ("", "Asking …")


@pytest.mark.usefixtures("chrome")
class TestInABrowser:
    pytestmark = needs_browser

    def test_one_question_three_answers_with_time_and_tokens(
        self, chrome: Chrome, open_page: Callable[..., Site]
    ) -> None:
        gate = asyncio.Event()
        site = open_page()
        site.upstream.plan = [streamed("It ", "seems.", gate=gate), streamed("It ", "seems.", gate=gate)]
        ask(chrome, "May I <b>not</b>?")
        wait_for(lambda: text_of(chrome, "#strong .text") == text_of(chrome, "#both .text") == "It ", "the first words")
        assert text_of(chrome, "#weak .text") == DRAFT  # there before the strong model has answered
        assert at(chrome, "#both").get_attribute("aria-busy") == "true" and at(chrome, "#status").text == "Asking …"
        site.let_go(gate)
        wait_for(lambda: is_done(chrome), "the answers")
        assert at(chrome, "#status").text == "All answers are there."
        assert text_of(chrome, "#strong .text") == text_of(chrome, "#both .text") == "It seems."
        assert not chrome.find_elements("css selector", "[aria-busy]")
        for column in ("#weak", "#strong", "#both"):
            assert re.search(r"\d+\s(ms|s)", at(chrome, f"{column} [data-is=time]").text)
        words = len(DRAFT.split())
        assert at(chrome, "#strong [data-is=tokens]").text == "100 in, 7 out"
        assert at(chrome, "#weak [data-is=tokens]").text.endswith(f" in, {words} out")
        assert at(chrome, "#both [data-is=tokens]").text.endswith(f" in, {7 + words} out")
        asked = [json.dumps(body["messages"]) for body in site.upstream.bodies]
        assert sum("<draft>" in sent for sent in asked) == 1 and all("May I <b>not</b>?" in sent for sent in asked)
        assert not at(chrome, "#feedback").is_displayed() and not at(chrome, "#settings").is_displayed()
        assert chrome.get_log("browser") == []

    def test_context_and_choices_go_to_the_frames(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page()
        at(chrome, "summary").click()
        at(chrome, "#context").send_keys("Kasti lowers limits.")
        at(chrome, "#choices").send_keys("yes\n\n no ")
        ask(chrome)
        wait_for(lambda: is_done(chrome), "the answers")
        sent = [body["messages"][0]["content"] for body in site.upstream.bodies]
        assert len(sent) == 2 and all("Kasti lowers limits." in s and "Choices: yes; no" in s for s in sent)

    def test_hostile_text_is_shown_and_does_not_run(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        attack = "</script><img src=x onerror='window.pwned=1'><script>window.pwned=2</script>\u202e" + "x" * 5000 + "."
        site = open_page(390, weak=ScriptedChatModel([], default=attack))
        site.upstream.plan = [streamed("", attack), streamed("", attack)]
        ask(chrome, attack)
        wait_for(lambda: is_done(chrome), "the answers")
        for column in ("#weak", "#strong", "#both"):
            assert text_of(chrome, f"{column} .text") == attack
        assert chrome.execute_script("return window.pwned") is None
        assert not chrome.find_elements("css selector", "img, article script")
        assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        box = at(chrome, "#both .text")
        assert box.get_attribute("tabindex") == "0" and box.accessible_name == "Collaboration"  # it scrolls by keyboard
        assert chrome.get_log("browser") == []
        chrome.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=3\">')")
        wait_for(lambda: bool(chrome.get_log("browser")), "the policy's complaint")
        assert chrome.execute_script("return window.pwned") is None

    def test_what_fails_is_said_plainly(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page(settings=Settings(strong_down="error"), max_attempts=1)
        site.upstream.plan = [500, 500]
        ask(chrome)
        wait_for(lambda: is_done(chrome), "the failures")
        assert at(chrome, "#status").text == "Not all of it was answered; the columns say why."
        assert "HTTP 502, http_500" in at(chrome, "#strong .note").text
        assert at(chrome, "#both .note").text == "the model's endpoint answered HTTP 500"
        assert at(chrome, "#both .state").text == "failed" and text_of(chrome, "#weak .text") == DRAFT
        broken = events(chunk({"content": "It is"}), done=False)
        site.upstream.plan = [lambda request: _raw(broken), lambda request: _raw(broken)]
        at(chrome, "#ask").click()
        wait_for(lambda: at(chrome, "#both .state").text == "failed" and is_done(chrome), "the broken stream")
        assert "broke off" in at(chrome, "#strong .note").text and text_of(chrome, "#strong .text") == "It is"

    def test_a_model_that_stands_in_is_named(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page(weak=ScriptedChatModel([], default=" "))
        ask(chrome)
        wait_for(lambda: is_done(chrome), "the answers")
        assert at(chrome, "#weak .note").text == "The draft was empty: the strong model answered alone."
        assert at(chrome, "#both .note").text == "Without a draft."
        chrome.get(site.url)
        site.client.server.served["pair"] = replace(site.client.server.served["pair"], drafter=None)  # type: ignore[index]
        ask(chrome)
        wait_for(lambda: is_done(chrome), "the answers")
        assert "This name has no small model" in at(chrome, "#weak .note").text

    def test_the_draft_that_stands_in_is_named(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page(max_attempts=1)
        site.upstream.plan = [500, 500]
        ask(chrome)
        wait_for(lambda: is_done(chrome), "the answers")
        assert at(chrome, "#both .note").text == "The strong model failed (http_500): this is the draft."
        assert text_of(chrome, "#both .text") == DRAFT

    def test_a_server_that_is_gone_is_said(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        open_page()
        chrome.execute_cdp_cmd("Network.enable", {})
        offline = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        chrome.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": True})
        try:
            ask(chrome)
            wait_for(lambda: is_done(chrome), "the failures")
            assert "cannot be reached" in at(chrome, "#both .note").text
        finally:
            off = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1, "offline": False}
            chrome.execute_cdp_cmd("Network.emulateNetworkConditions", off)

    def test_the_key_is_asked_for_and_stays_in_memory(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page(keys=Keys(["s3cret"]))
        assert at(chrome, "#key").is_displayed() and at(chrome, "#key").get_attribute("type") == "password"
        at(chrome, "#key").send_keys("wrong")
        ask(chrome)
        wait_for(lambda: "invalid_api_key" in at(chrome, "#status").text, "the refusal")
        assert chrome.switch_to.active_element.get_attribute("id") == "key" and not site.upstream.bodies
        at(chrome, "#key").clear()
        at(chrome, "#key").send_keys("s3cret")
        at(chrome, "#ask").click()
        wait_for(lambda: at(chrome, "#status").text == "All answers are there.", "the answers")
        kept = "return [localStorage.length, sessionStorage.length, document.cookie.length]"
        assert chrome.execute_script(kept) == [0, 0, 0]
        chrome.refresh()
        assert at(chrome, "#key").get_attribute("value") == ""

    def test_one_of_several_models_can_be_picked(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        def more(site: Site) -> None:
            served = site.client.server.served
            assert isinstance(served, dict)
            assert isinstance(served, dict)
            for name in ("pair.collab", "lab.medicine", "lab.medicine.weak"):
                kind = "pair.weak" if name.endswith("weak") else "pair"
                served[name] = replace(served[kind], id=name)

        site = open_page(prepare=more)
        wait_for(lambda: at(chrome, "#model").is_displayed(), "the picker")
        options = [o.get_attribute("value") for o in chrome.find_elements("css selector", "#model option")]
        assert options == ["pair", "pair.collab", "lab.medicine"]
        at(chrome, "#model option[value='lab.medicine']").click()
        ask(chrome)
        wait_for(lambda: is_done(chrome), "the answers")
        assert at(chrome, "#strong .note").text == "The strong model alone is not served here (--systems)."
        assert len(site.upstream.bodies) == 1 and text_of(chrome, "#both .text") == "No, it is not."

    @pytest.mark.parametrize("width", [1280, 390])
    def test_nothing_overflows(
        self, chrome: Chrome, open_page: Callable[..., Site], width: int, tmp_path: Path
    ) -> None:
        site = open_page(width, ledger=tmp_path / "l.sqlite", weak=ScriptedChatModel([], default="W" * 400 + ". So"))
        site.upstream.plan = [streamed("", "S" * 900), streamed("", "line\n" * 200)]
        at(chrome, "summary").click()
        ask(chrome)
        wait_for(lambda: at(chrome, "#feedback").is_displayed(), "the answers")
        inner, scroll = chrome.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert inner == width and scroll <= inner
        tops = {at(chrome, name).rect["y"] for name in ("#weak", "#strong", "#both")}
        assert len(tops) == (1 if width == 1280 else 3)  # side by side, or one below the other
        seen = "[...document.querySelectorAll('button')].filter((b) => b.getClientRects().length)"
        small = f"return {seen}.filter((b) => b.getBoundingClientRect().height < 44).length"
        assert chrome.execute_script(small) == 0

    def test_by_keyboard_alone(self, chrome: Chrome, open_page: Callable[..., Site], tmp_path: Path) -> None:
        from selenium.webdriver.common.keys import Keys as K

        ledger = tmp_path / "l.sqlite"
        open_page(ledger=ledger)

        def focused() -> str:
            return chrome.switch_to.active_element.get_attribute("id") or chrome.switch_to.active_element.tag_name

        def tab() -> str:
            chrome.switch_to.active_element.send_keys(K.TAB)
            return focused()

        assert tab() == "question"
        ring = "return getComputedStyle(document.activeElement).outlineStyle"
        assert chrome.execute_script(ring) == "solid"
        chrome.switch_to.active_element.send_keys("May I?")
        assert [tab(), tab(), tab()] == ["summary", "summary", "ask"]
        chrome.switch_to.active_element.send_keys(K.ENTER)
        wait_for(lambda: is_done(chrome), "the answers")
        assert focused() == "ask"  # the focus stays where it was
        assert [tab(), tab(), tab(), tab()] == ["stop", "follow", "share", "helpful"]
        chrome.switch_to.active_element.send_keys(K.SPACE)
        wait_for(lambda: at(chrome, "#told").text.startswith("Kept."), "the verdict")
        assert focused() == "helpful" and at(chrome, "#helpful").get_attribute("aria-pressed") == "true"
        assert [tab(), tab()] == ["unhelpful", "answer"]
        chrome.switch_to.active_element.send_keys("never", K.ENTER)
        wait_for(lambda: any(v and v.answer == "never" for _, v in read_exchanges(ledger, "pair")), "the right answer")
        chrome.find_element("css selector", "#question").send_keys(" Really?", K.CONTROL, K.ENTER)
        wait_for(lambda: len(list(read_exchanges(ledger, "pair"))) == 4, "the answers to the next question")

    def test_names_and_announcements(self, chrome: Chrome, open_page: Callable[..., Site], tmp_path: Path) -> None:
        open_page(ledger=tmp_path / "l.sqlite", keys=Keys(["k"]))
        at(chrome, "summary").click()
        for selector in ("#key", "#question", "#context", "#choices", "#answer"):
            assert chrome.execute_script("return arguments[0].labels.length", at(chrome, selector)) == 1
        assert at(chrome, "#question").accessible_name == "Your question"
        assert at(chrome, "#weak").accessible_name == "Weak draft" and at(chrome, "#weak").aria_role == "article"
        assert [e.get_attribute("id") for e in chrome.find_elements("css selector", "[aria-live=polite]")] == [
            "status",
            "told",
        ]
        assert "keeps questions and answers" in at(chrome, "#hint").text
        assert chrome.execute_script("return document.documentElement.lang") == "en"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_has_contrast(
        self, chrome: Chrome, open_page: Callable[..., Site], scheme: str, tmp_path: Path
    ) -> None:
        gate = asyncio.Event()
        site = open_page(scheme=scheme, ledger=tmp_path / "l.sqlite", keys=Keys(["k"]))
        at(chrome, "#key").send_keys("k")
        site.upstream.plan = [streamed("It ", "is.", gate=gate), streamed("It ", "is.", gate=gate)]
        at(chrome, "summary").click()
        ask(chrome)
        wait_for(lambda: text_of(chrome, "#both .text") == "It ", "the first words")
        low = chrome.execute_script(LOW_CONTRAST)
        site.let_go(gate)
        wait_for(lambda: at(chrome, "#feedback").is_displayed(), "the answers")
        at(chrome, "#helpful").click()
        wait_for(lambda: at(chrome, "#told").text != "", "the verdict")
        for note, kind in (("#weak .note", "note"), ("#both .note", "note bad"), ("#status", "bad")):
            chrome.execute_script(
                "arguments[0].hidden = false; arguments[0].className = arguments[1]", at(chrome, note), kind
            )
            chrome.execute_script("arguments[0].textContent = 'A note.'", at(chrome, note))
        assert low == [] and chrome.execute_script(LOW_CONTRAST) == []
        paper = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(247, 245, 240)", "dark": "rgb(18, 20, 22)"}[scheme]

    def test_the_question_can_be_taken_back(
        self, chrome: Chrome, open_page: Callable[..., Site], tmp_path: Path
    ) -> None:
        gate = asyncio.Event()
        site = open_page(ledger=tmp_path / "l.sqlite")
        site.upstream.plan = [streamed("It ", "is.", gate=gate), streamed("It ", "is.", gate=gate)]
        ask(chrome)
        wait_for(lambda: text_of(chrome, "#both .text") == "It ", "the first words")
        at(chrome, "#stop").click()
        wait_for(lambda: at(chrome, "#status").text == "Stopped.", "the end")
        assert at(chrome, "#both .state").text == at(chrome, "#strong .state").text == "stopped"
        wait_for(site.upstream.left.is_set, "the strong model is let go")
        assert not at(chrome, "#feedback").is_displayed() and not list(read_exchanges(tmp_path / "l.sqlite", "pair"))

    def test_feedback_is_on_the_collaborations_answer(
        self, chrome: Chrome, open_page: Callable[..., Site], tmp_path: Path
    ) -> None:
        ledger = tmp_path / "l.sqlite"
        open_page(390, ledger=ledger)
        at(chrome, "summary").click()
        at(chrome, "#choices").send_keys("yes\nno")
        ask(chrome)
        wait_for(lambda: at(chrome, "#feedback").is_displayed(), "the answers")
        at(chrome, "#unhelpful").click()
        wait_for(lambda: at(chrome, "#told").text.startswith("Kept."), "the verdict")
        at(chrome, "#answer").send_keys("perhaps")
        at(chrome, "#send").click()
        wait_for(lambda: "one of the choices" in at(chrome, "#told").text, "the refusal")
        at(chrome, "#answer").clear()
        at(chrome, "#answer").send_keys("no")
        at(chrome, "#send").click()
        wait_for(lambda: at(chrome, "#told").text.startswith("Kept."), "the right answer")
        found = {entry.model: verdict for entry, verdict in read_exchanges(ledger, "pair")}
        assert found["pair.strong"] is None
        verdict = found["pair"]
        assert verdict is not None and verdict.helpful is False and verdict.answer == "no"

    def test_a_conversation_goes_on_with_system_prompt_and_sampling(
        self, chrome: Chrome, open_page: Callable[..., Site]
    ) -> None:
        site = open_page()
        site.upstream.plan = [streamed("It <i>", "seems.")] * 2
        at(chrome, "#how summary").click()
        at(chrome, "#system").send_keys("Be brief.")
        at(chrome, "#temperature").send_keys("0.5")
        at(chrome, "#seed").send_keys("7")
        ask(chrome, "May I?")
        wait_for(lambda: is_done(chrome), "the answers")
        at(chrome, "#follow").click()
        assert text_of(chrome, "#turns .asked") == "May I?" and text_of(chrome, "#turns .answered") == "It <i>seems."
        assert at(chrome, "#question").get_attribute("value") == "" and not at(chrome, "#follow").is_displayed()
        ask(chrome, "Why?")
        wait_for(lambda: len(site.upstream.bodies) == 4 and is_done(chrome), "the second answers")
        for body in site.upstream.bodies[2:]:
            assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
            assert body["messages"][1:3] == [
                {"role": "user", "content": "May I?"},
                {"role": "assistant", "content": "It <i>seems."},
            ]
            assert "Be brief." in body["messages"][0]["content"] and (body["temperature"], body["seed"]) == (0.5, 7)
        at(chrome, "#fresh").click()
        assert not at(chrome, "#conversation").is_displayed()
        assert chrome.get_log("browser") == []

    def test_a_number_that_cannot_be_is_shown_where_it_is(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page()
        chrome.execute_script("document.getElementById('temperature').value = '9'")
        ask(chrome)
        wait_for(lambda: at(chrome, "#temperature").is_displayed(), "the field that is wrong")
        assert not site.upstream.bodies

    def test_a_link_holds_what_was_asked_and_no_key(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page(keys=Keys(["secret-key"]))
        at(chrome, "#key").send_keys("secret-key")
        at(chrome, "#question").send_keys("Grüße <b>?")
        at(chrome, "#how summary").click()
        at(chrome, "#system").send_keys("Be brief.")
        at(chrome, "#share").click()
        wait_for(lambda: "#s=" in chrome.current_url, "the link")
        link = chrome.current_url.partition("#s=")[2]
        told = base64.urlsafe_b64decode(link + "=" * (-len(link) % 4)).decode()
        assert "secret-key" not in told and json.loads(told)["question"] == "Grüße <b>?"
        chrome.get("about:blank")
        chrome.get(f"{site.url}#s={link}")
        at(chrome, "#key").send_keys("secret-key\t")
        wait_for(lambda: at(chrome, "#question").get_attribute("value") == "Grüße <b>?", "the question")
        assert at(chrome, "#system").get_attribute("value") == "Be brief." and at(chrome, "#system").is_displayed()
        chrome.get("about:blank")
        chrome.get(f"{site.url}#s=%%%")
        at(chrome, "#key").send_keys("secret-key\t")
        wait_for(lambda: "damaged" in at(chrome, "#status").text, "what is wrong")

    def test_history_is_kept_where_it_is_wanted_only(self, chrome: Chrome, open_page: Callable[..., Site]) -> None:
        site = open_page()
        site.upstream.plan = [streamed("It ", "seems.")] * 8
        ask(chrome, "First?")
        wait_for(lambda: is_done(chrome), "the answers")
        stored = "return JSON.stringify(localStorage)"
        assert chrome.execute_script(stored) == "{}"
        at(chrome, "#remember").click()
        at(chrome, "#question").clear()
        ask(chrome, "<b>Second?")
        wait_for(lambda: len(chrome.find_elements("css selector", "#history li")) == 1, "the history")
        chrome.refresh()
        assert text_of(chrome, "#history button").endswith("<b>Second?") and at(chrome, "#remember").is_selected()
        at(chrome, "#history button").click()
        assert text_of(chrome, "#both .text") == "It seems." and at(chrome, "#follow").is_displayed()
        at(chrome, "#remember").click()
        assert chrome.execute_script(stored) == "{}" and not chrome.find_elements("css selector", "#history li")
        chrome.execute_script("localStorage.setItem('cowest.history', '[{\"state\": 3}, 4, null]')")  # whoever wrote it
        chrome.refresh()
        assert not chrome.find_elements("css selector", "#history li") and chrome.get_log("browser") == []
        chrome.execute_script("localStorage.clear()")

    @pytest.mark.parametrize("width", [1280, 390])
    def test_examples_fill_the_fields(self, chrome: Chrome, open_page: Callable[..., Site], width: int) -> None:
        def offer(site: Site) -> None:
            one = Example(id="1", input="May <b> I?", context="Kasti", references=("no",), choices=("yes", "no"))
            served = site.client.server.served
            assert isinstance(served, dict)
            for id_, each in list(served.items()):
                served[id_] = replace(each, about=replace(each.about, examples=(one,)))

        site = open_page(width, prepare=offer)
        wait_for(lambda: at(chrome, "#examples button").is_displayed(), "the examples")
        at(chrome, "#examples button").click()
        found = [at(chrome, f"#{id_}").get_attribute("value") for id_ in ("question", "context", "choices")]
        assert found == ["May <b> I?", "Kasti", "yes\nno"]
        cards = chrome.execute_script("return fetch('v1/models').then((got) => got.text())")
        assert "references" not in cards and site.upstream.bodies == []
        assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert chrome.execute_script(LOW_CONTRAST) == []


async def _raw(body: bytes) -> web.StreamResponse:
    return web.Response(body=body, headers={"Content-Type": "text/event-stream"})
