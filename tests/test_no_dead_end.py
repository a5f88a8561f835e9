"""A run without an aligned model goes on by the command: exit code 0, whole results, and the reason wherever they are shown."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import Oracle, cowest_main, save_tiny_model, tiny_recipe

from cowest.errors import ConfigError, ModelCallError
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.protocols import ChatModel
from cowest.server.opening import open_served
from cowest.server.settings import Settings
from cowest.types import Completion, Message, Sampling

pytestmark = pytest.mark.slow
FEEDBACK_TOKENS = 512  # tells that stage's requests from the evaluation's


class Strong:
    """The oracle, but for what ``refined`` makes of a training query with its draft."""

    name = "strong"

    def __init__(self, refined: Callable[[int, str], Completion | ModelCallError]) -> None:
        self._oracle, self._refined, self._n = Oracle(), refined, 0

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        if sampling.max_tokens == FEEDBACK_TOKENS and "\nDraft: " in messages[-1].content:
            self._n += 1
            made = self._refined(self._n, messages[-1].content)
            if isinstance(made, ModelCallError):
                raise made
            return made
        return await self._oracle.generate(messages, sampling)

    async def aclose(self) -> None: ...


@contextmanager
def answering(model: ChatModel) -> Iterator[str]:
    """An endpoint in a thread of its own, for a command in this process."""
    ready, loop, found = threading.Event(), asyncio.new_event_loop(), list[str]()

    async def until(stop: asyncio.Event) -> None:
        async with serve(make_app(model, model_name="strong")) as url:
            found.append(url)
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(until(stop)))
    thread.start()
    try:
        assert ready.wait(30)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def trained(weak: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with nothing but its SFT model and drafts, which all cases share."""
    out = tmp_path_factory.mktemp("trained") / "run"
    recipe = out.parent / "recipe.yaml"
    patch = pytest.MonkeyPatch()
    with patch.context() as monkeypatch, answering(Strong(always("Answer: ?"))) as url:
        recipe.write_text(yaml.safe_dump(tiny_recipe(weak, url)))
        assert cowest_main(monkeypatch, "run", str(recipe), "--out", str(out)) == 0
    return out


def always(text: str, cut: bool = False) -> Callable[[int, str], Completion]:
    return lambda n, asked: Completion(text=text, finish_reason="length" if cut else "stop")


def refused(n: int, asked: str) -> Completion:
    return Completion(text="", finish_reason="content_filter")


def failing(n: int, asked: str) -> Completion | ModelCallError:
    """One answer, so that the endpoint is not down, and then two kinds of failure in turn."""
    return Completion(text="Answer: ?") if n == 1 else ModelCallError(("overloaded", "too_long")[n % 2], "no")


CASES = {
    "cut off": (always("Let me", cut=True), r"drafts are unscored \(cut off \d+\)", "raise feedback.sampling.max_tokens"),
    "refused": (refused, r"drafts are unscored \(refused \d+\)", "the strong model refuses these questions"),
    "failed": (failing, r"drafts are unscored \(failed \d+\)", "`cowest run` asks them again"),
    "ties": (always("Answer: no such answer"), r"no two drafts were worth different amounts \(ties\)", "draft.samples"),
}  # fmt: skip


def check_told(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str) -> str:
    """The reason is in results.json, on the page and the terminal, again with ``report``; no file has an aligned row."""
    import re

    results = json.loads((out / "results.json").read_text())
    told: str = results["left_out"]["collab_aligned"]
    assert list(results["systems"]) == ["weak", "strong", "collab"] and re.search(why, told)
    assert not (out / "predictions" / "collab_aligned.jsonl").exists()
    printed = capsys.readouterr()
    assert f"warning: no row collab_aligned: {told}" in printed.out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "No row <code>collab_aligned</code>" in page
    assert cowest_main(monkeypatch, "report", str(out)) == 0
    assert f"warning: no row collab_aligned: {told}" in capsys.readouterr().out
    return told


@pytest.mark.parametrize("case", CASES)
def test_without_a_pair(
    weak: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    refine, why, advice = CASES[case]
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    recipe = tmp_path / "recipe.yaml"
    with answering(Strong(refine)) as url:
        # A field of its own in each request makes them requests that were not answered yet.
        changed = tiny_recipe(weak, url)
        assert isinstance(changed["strong"], dict)
        changed["strong"] |= {"extra": {"user": case}}
        recipe.write_text(yaml.safe_dump(changed))
        assert cowest_main(monkeypatch, "run", str(recipe), "--out", str(out)) == 0
    told = check_told(out, monkeypatch, capsys, why)
    assert advice in told and "no preference pair could be built" in told

    opened = open_served(out, Settings())
    assert [name for name in opened.served if name.endswith("aligned")] == []
    asyncio.run(opened.aclose())
    with pytest.raises(ConfigError, match="no preference pair could be built"):
        open_served(out, Settings(), only=["collab_aligned"])
    assert cowest_main(monkeypatch, "merge", str(out), "--out", str(tmp_path / "merged")) == 2
    said = capsys.readouterr().err
    assert "it has no aligned weak model: no preference pair" in said and "`--which sft`" in said
    assert not (tmp_path / "merged").exists()


def test_alignment_off_after_it_was_on(
    weak: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "recipe.yaml"
    with answering(Oracle()) as url:
        recipe.write_text(yaml.safe_dump(tiny_recipe(weak, url)))
        assert cowest_main(monkeypatch, "run", str(recipe), "--out", str(out)) == 0  # now with an aligned model
        recipe.write_text(yaml.safe_dump(tiny_recipe(weak, url, align="off")))
        capsys.readouterr()
        assert cowest_main(monkeypatch, "run", str(recipe), "--out", str(out)) == 0
    check_told(out, monkeypatch, capsys, "align.objective is off")
    assert "Choice of" not in (out / "report.html").read_text(encoding="utf-8")
    assert cowest_main(monkeypatch, "merge", str(out), "--out", str(tmp_path / "merged")) == 2
    assert "align.objective is off" in capsys.readouterr().err
    opened = open_served(out, Settings())
    assert [name for name in opened.served if name.endswith("aligned")] == []
    asyncio.run(opened.aclose())


def test_a_weak_model_that_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    with answering(Oracle()) as url, answering(ScriptedChatModel((), default="Answer: yes")) as drafts:
        changed = tiny_recipe("", url)
        changed["weak"] = {"kind": "openai", "model": "strong", "base_url": drafts, "api_key_env": None}
        recipe.write_text(yaml.safe_dump(changed))
        assert cowest_main(monkeypatch, "run", str(recipe), "--out", str(out)) == 0
    check_told(out, monkeypatch, capsys, "served elsewhere")
    for which in ("sft", "aligned"):
        arguments = ("merge", str(out), "--out", str(tmp_path / "merged"), "--which", which)
        assert cowest_main(monkeypatch, *arguments) == 2
        assert "its weak model is served elsewhere" in capsys.readouterr().err


def test_a_table_leaves_the_row_out_and_says_why(
    weak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "table"
    rows: JsonValue = {"rows": ["weak", "strong", "collab", "sft_positives", "collab_aligned"]}
    with answering(Strong(refused)) as url:
        recipe.write_text(yaml.safe_dump(tiny_recipe(weak, url, table=rows)))
        assert cowest_main(monkeypatch, "table", str(recipe), "--out", str(out)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    results = json.loads((out / "results.json").read_text())
    assert set(results["left_out"]) == {"collab_aligned", "sft_positives"}
    assert "refused" in results["left_out"]["collab_aligned"]
    assert list(results["tables"][0]["rows"]) == ["weak", "strong", "collab"]
    assert results["baseline"] == "collab"  # the last row that is there
    assert "left out: collab_aligned, since no preference pair could be built" in printed
    assert "Left out: `collab_aligned`, since no preference pair" in (out / "table.md").read_text()
