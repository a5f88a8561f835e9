"""Secrets that come back: struck out in whatever form they can be recognised, in one text or in pieces."""

from __future__ import annotations

import asyncio
import base64
import html
import json
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.scripted_endpoint import ASK, Step, endpoint, reply, step

from cowest.errors import ConfigError, ModelCallError
from cowest.models.openai import OpenAIChatModel
from cowest.models.secrets import Secrets
from cowest.types import Completion, Sampling

KEY = "sk-test-0123+4567/89abcdefSECRET=="
PLAIN = "correct horse battery"


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


FORMS = {
    "plain": KEY,
    "in a header": f"Bearer {KEY}",
    "quoted": quote(KEY, safe=""),
    "quoted, lower": quote(KEY, safe="").lower().replace(KEY[-8:-2].lower(), KEY[-8:-2]),
    "form": quote_plus(KEY),
    "html": html.escape(KEY),
    "json": json.dumps(KEY),
    "hex": KEY.encode().hex(),
    "HEX": KEY.encode().hex().upper(),
    "base64": base64_of(KEY),
    "base64 of a header": base64_of(f"Bearer {KEY}"),
    "base64 of a pair": base64_of(f"u:{KEY}:more"),
    "base64, URL-safe": base64.urlsafe_b64encode(f"k={KEY}".encode()).decode(),
    "first half": KEY[:17],
    "second half": KEY[17:],
    "a piece": KEY[6:14],
    "a piece, base64": base64_of(KEY)[8:24],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_is_struck_out_in_every_form(form: str) -> None:
    told = FORMS[form]
    struck = Secrets(KEY).strike(f"It said {told} to me.")
    assert struck.startswith("It said ") and struck.endswith(" to me.") and "***" in struck
    left = struck.removeprefix("It said ").removesuffix(" to me.")
    assert len(left) <= 16, "no more than what is around the key, and its last bits"


@pytest.mark.parametrize("text", ["", "Answer: yes", "a test of 0123", "sk-", "SECRET", "*** bold ***", "abcdef"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert Secrets(KEY).strike(text) == text
    assert Secrets().strike(text) == text and not Secrets()


def test_a_short_key_is_a_word_like_others_and_a_password_has_no_pieces() -> None:
    assert Secrets("none").strike("none of them, EMPTY") == "none of them, EMPTY" and not Secrets("EMPTY")
    secrets = Secrets()
    secrets.add(PLAIN)
    told = f"{PLAIN} {quote_plus(PLAIN)} {base64_of(PLAIN)[:20]} battery"
    assert secrets.strike(told) == "*** *** " + base64_of(PLAIN)[:20] + " battery"


@given(
    st.lists(st.sampled_from([KEY, base64_of(KEY), KEY[:20], "sk", "-", "=", "yes ", "S", " ", "é"]), max_size=6),
    st.sets(st.integers(1, 250)),
)
def test_a_text_in_pieces_is_struck_like_the_whole(parts: list[str], cuts: set[int]) -> None:
    text = " ".join(parts)
    edges = [0, *sorted(c for c in cuts if c < len(text)), len(text)]
    secrets = Secrets(KEY)
    flow = secrets.flow()
    told = "".join([*(flow.feed(text[a:b]) for a, b in pairwise(edges)), flow.finish()])
    assert told == secrets.strike(text)


def test_what_cannot_become_a_secret_is_held_back_for_a_moment_only() -> None:
    flow, text, told = Secrets(KEY).flow(), "Answer: yes, the sk-terms say so; see SECRETS.md.", ""
    for i, character in enumerate(text, start=1):
        told += flow.feed(character)
        assert text.startswith(told) and i - len(told) < 8
    assert told + flow.finish() == text


def test_every_text_of_a_json_value_is_struck() -> None:
    found = Secrets(KEY).strike_all({"a": [1, None, {"b": f"x{KEY}"}], KEY[:3]: True})
    assert found == {"a": [1, None, {"b": "x***"}], KEY[:3]: True}


def test_variables_are_secrets_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COWEST_A", "from-the-environment")
    (tmp_path / ".env").write_text("COWEST_B=from-a-file\n")
    secrets = Secrets(None, tmp_path)
    filled = secrets.fill_all({"x": "${COWEST_A}", "y": [{"z": "<${COWEST_B}>"}, 3], "w": "$${COWEST_A}"})
    assert filled == {"x": "from-the-environment", "y": [{"z": "<from-a-file>"}, 3], "w": "${COWEST_A}"}
    assert secrets.strike("from-a-file, from-the-environment") == "***, ***"
    assert "from-a-file" not in repr(secrets)
    with pytest.raises(ConfigError, match=r"extra.x.y: COWEST_C is not set"):
        Secrets(None, tmp_path).fill_all({"x": {"y": "${COWEST_C}"}})


async def ask(url: str, **settings: object) -> Completion:
    given: dict[str, object] = {"api_key": KEY, "max_attempts": 1, "backoff_s": 0.0, "timeout_s": 5.0} | settings
    model = OpenAIChatModel(base_url=url, model="big", **given)  # type: ignore[arg-type]
    try:
        return await model.generate(ASK, Sampling(logprobs=0))
    finally:
        await model.aclose()


def streamed(*pieces: str, tokens: bool = False) -> Step:
    def event(delta: dict[str, str], finish: str | None, token: str) -> str:
        logprobs = {"content": [{"token": token, "logprob": -1.0}]} if tokens and token else None
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return f"data: {json.dumps({'choices': [choice]})}\n\n"

    text = "".join(event({"content": p}, None, p) for p in pieces) + event({}, "stop", "")
    return step(text + "data: [DONE]\n\n", kind="text/event-stream")


@pytest.mark.parametrize("form", ["plain", "base64 of a header", "quoted", "first half"])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
async def test_a_key_in_the_pieces_of_a_stream_is_in_no_answer(form: str, size: int) -> None:
    text = f"I am {FORMS[form]}, yes"
    cut = [text[i : i + size] for i in range(0, len(text), size)]
    async with endpoint(streamed(*cut, tokens=True)) as server:
        got = await ask(server.url, stream=True)
    assert got.text.startswith("I am ") and got.text.endswith(", yes") and "***" in got.text
    assert FORMS[form] not in got.text and got.logprobs is None, "the tokens spell it, too"


async def test_logprobs_of_an_answer_without_the_key_are_kept() -> None:
    async with endpoint(streamed("Ye", "s", tokens=True)) as server:
        got = await ask(server.url, stream=True)
    assert got.text == "Yes" and got.logprobs is not None and [t.token for t in got.logprobs] == ["Ye", "s"]


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"a piece, base64"}))
async def test_a_key_in_an_error_is_in_no_message(form: str) -> None:
    async with endpoint(step({"error": {"message": f"cannot take {FORMS[form]}"}}, 400)) as server:
        with pytest.raises(ModelCallError) as caught:
            await ask(server.url)
    assert "cannot take" in str(caught.value) and FORMS[form] not in str(caught.value) and KEY not in str(caught.value)


async def test_a_login_and_secrets_in_url_and_fields_are_sent_and_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "COWEST_PW": "p@ss/w:rd#1",
        "COWEST_PATH": "path-token-1",
        "COWEST_Q": "query-token-1",
        "COWEST_X": "field-token-1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    echo: list[str] = []

    async def echoing(request: object) -> object:
        from aiohttp import web

        assert isinstance(request, web.Request)
        sent = await request.text()
        echo.append(f"{request.path_qs} {request.headers['Authorization']} {sent}")
        return web.json_response({"error": {"message": f"no: {echo[-1]}"}}, status=400)

    from aiohttp import web
    from aiohttp.test_utils import TestServer

    app = web.Application()
    app.router.add_post("/{path:.*}", echoing)  # type: ignore[arg-type]
    async with TestServer(app, host="127.0.0.1") as server:
        host = str(server.make_url("/")).removeprefix("http://").rstrip("/")
        url = f"http://me:${{COWEST_PW}}@{host}/${{COWEST_PATH}}/v1?api-version=1&code=${{COWEST_Q}}"
        with pytest.raises(ModelCallError) as caught:
            await ask(url, api_key=None, extra={"session": {"token": "${COWEST_X}"}})
    sent = echo[0]
    assert sent.startswith("/path-token-1/v1/chat/completions?api-version=1&code=query-token-1 Basic ")
    assert base64_of("me:p@ss/w:rd#1") in sent and '"token":"field-token-1"' in sent
    told = str(caught.value)
    assert (
        "${COWEST_PATH}/v1/chat/completions?api-version=1&code=${COWEST_Q}" in told
        and "me:" not in told.split("no:")[0]
    )
    assert (
        all(v not in told and base64_of(v) not in told for v in values.values())
        and base64_of("me:p@ss/w:rd#1") not in told
    )


def test_a_client_is_closed_without_secrets_in_its_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COWEST_PW", "a-password-of-mine")
    model = OpenAIChatModel(base_url="https://me:${COWEST_PW}@host/v1/", model="m", api_key=None)
    assert "a-password-of-mine" not in repr(model) and "host/v1" in repr(model)
    asyncio.run(model.aclose())


async def test_a_whole_answer_with_the_key_is_struck() -> None:
    async with endpoint(step(reply(f"Use {base64_of('Bearer ' + KEY)} now"))) as server:
        got = await ask(server.url)
    assert got.text.startswith("Use ") and got.text.endswith(" now") and "***" in got.text
