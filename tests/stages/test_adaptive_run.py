"""``feedback.adaptive``: a run asks for drafts until a query has its contrast, and is the same however it was stopped."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import QUERIES, SAMPLES, Log, Oracle, run_tiny, save_tiny_model, tiny_recipe

from cowest.costs.estimate import estimate
from cowest.errors import ConfigError
from cowest.models.endpoint import make_app, serve
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile
from cowest.types import Completion, Draft, Feedback, Message, PreferencePair, Refinement, Sampling

pytestmark = pytest.mark.slow
NOWHERE = "http://127.0.0.1:9/v1"
FILES = ("solo.jsonl", "refinements.jsonl", "feedback.jsonl", "pairs.jsonl")


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def whole(weak: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every draft refined: the others take its SFT and drafts over."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run_tiny(weak, out, Oracle(), Log(), **settings(adaptive="off"), pairs={"max_per_query": 1})
    return out


def beginning(whole: Path, out: Path) -> Path:
    """The same SFT and drafts, and nothing that the strong model has said."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "predictions")
    for file in [*out.glob("ledger*"), *(out / name for name in FILES)]:
        file.unlink()
    return out


def counts(out: Path, stage: str = "feedback") -> dict[str, int]:
    found: dict[str, int] = json.loads((out / "manifest.json").read_text())["stages"][stage]["counts"]
    return found


def settings(**more: JsonValue) -> dict[str, JsonValue]:
    return {"feedback": {"adaptive": "contrast", **more}, "align": "off", "evaluate": {"queries": 2}}


def calls_behind(out: Path) -> int:
    """Answers alone, and different texts refined."""
    texts = {d.id: (d.example_id, d.text) for d in JsonlFile(out / "drafts.jsonl", Draft).load()}
    refined = {texts[r.draft_id or ""] for r in JsonlFile(out / "refinements.jsonl", Refinement).load()}
    return len(refined) + len(JsonlFile(out / "solo.jsonl", Refinement).load())


def pairs_of(out: Path) -> dict[str, list[PreferencePair]]:
    found: dict[str, list[PreferencePair]] = {}
    for pair in JsonlFile(out / "pairs.jsonl", PreferencePair).load():
        found.setdefault(pair.example_id, []).append(pair)
    return found


def content(out: Path) -> list[str]:
    """The files but for how long answers took."""
    text = []
    for name in FILES:
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        text.append(json.dumps([{k: v for k, v in row.items() if k not in ("latency_s", "usage")} for row in rows]))
    return text


@pytest.mark.parametrize("rule", ["ordered", "paper"])
def test_every_query_that_has_a_pair_keeps_one(rule: str, weak: str, whole: Path, tmp_path: Path) -> None:
    pairs: JsonValue = {"rule": rule, "max_per_query": 1}
    some, log = beginning(whole, tmp_path / "some"), Log()
    whole = Path(shutil.copytree(whole, tmp_path / "whole"))
    run_tiny(weak, whole, Oracle(), Log(), **settings(adaptive="off"), pairs=pairs)
    run_tiny(weak, some, Oracle(), log, **settings(), pairs=pairs)
    full, found = pairs_of(whole), pairs_of(some)
    assert full and full.keys() == found.keys()
    refined = JsonlFile(some / "refinements.jsonl", Refinement).load()
    every = JsonlFile(whole / "refinements.jsonl", Refinement).load()
    assert 0 < len(refined) < len(every) == QUERIES * SAMPLES
    drafts = {d.id for d in JsonlFile(some / "drafts.jsonl", Draft).load()}
    records = JsonlFile(some / "feedback.jsonl", Feedback).load()
    assert {r.draft_id for r in records} == drafts
    told = counts(some)
    assert told["unscored"] == 0 and told["scored"] == len(refined)
    not_asked = [r for r in records if (r.refined.error or "").startswith("not asked: ")]
    assert len(not_asked) == len(drafts) - len(refined)
    saved = {name: n for name, n in told.items() if name.startswith("calls_saved")}
    assert saved["calls_saved_contrast"] > 0
    assert calls_behind(some) + sum(saved.values()) == calls_behind(whole)
    assert any("not made (" in line for line in log.lines)
    assert counts(some, "pairs").get("dropped_unscored", 0) == 0
    assert not any("warning" in line and "unscored" in line for line in log.lines)


def test_a_limit_holds_and_goes_to_likely_pairs_first(weak: str, whole: Path, tmp_path: Path) -> None:
    run_tiny(
        weak, beginning(whole, tmp_path / "run"), Oracle(), Log(), **settings(calls=20), pairs={"signal": "outcome"}
    )
    refined = JsonlFile(tmp_path / "run/refinements.jsonl", Refinement).load()
    assert 0 < len(refined) <= 20 and counts(tmp_path / "run")["calls_saved_the_limit"] > 0
    assert counts(tmp_path / "run")["solo"] == 0


class Slow(Oracle):
    """Answers after a random time."""

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        await asyncio.sleep(random.random() / 50)
        return await super().generate(messages, sampling)


def test_timing_changes_nothing(weak: str, whole: Path, tmp_path: Path) -> None:
    for name, oracle in (("a", Oracle()), ("b", Slow())):
        run_tiny(weak, beginning(whole, tmp_path / name), oracle, Log(), **settings(calls=40))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_run_that_is_cut_off_goes_on_to_the_same_files(weak: str, whole: Path, tmp_path: Path) -> None:
    through, cut = beginning(whole, tmp_path / "through"), beginning(whole, tmp_path / "cut")
    run_tiny(weak, through, Oracle(), Log(), **settings())
    asked = sum(counts(through)[name] for name in ("solo", "refined"))

    async def stopped() -> int:
        oracle = Oracle()
        oracle.hold_after = asked // 2
        async with serve(make_app(oracle, model_name="strong")) as url:
            going = asyncio.ensure_future(run(config_from_dict(tiny_recipe(weak, url, **settings())), cut, Log()))
            await asyncio.wait_for(oracle.silent.wait(), 60)
            going.cancel()
            with pytest.raises(asyncio.CancelledError):
                await going
            oracle.release()
            return len(oracle.requests)

    before = asyncio.run(stopped())
    oracle = Oracle()
    run_tiny(weak, cut, oracle, Log(), **settings())
    assert content(through) == content(cut)
    evaluated = 8  # what evaluate asks for, at most, beside
    assert before + len(oracle.requests) <= asked + evaluated


def test_a_changed_rule_asks_anew_for_what_it_needs(weak: str, whole: Path, tmp_path: Path) -> None:
    out, log = beginning(whole, tmp_path / "run"), Log()
    run_tiny(weak, out, Oracle(), Log(), **settings())
    run_tiny(weak, out, Oracle(), log, **settings(), pairs={"min_margin": 0.5})
    assert log.verdicts["feedback"].startswith("run again, because pairs.min_margin")
    full = Path(shutil.copytree(whole, tmp_path / "full"))
    run_tiny(weak, full, Oracle(), log, **settings(adaptive="off"), pairs={"min_margin": 0.5})
    assert log.verdicts["feedback"].startswith("reused")


def test_the_estimate_knows_less_is_asked(weak: str, whole: Path, tmp_path: Path) -> None:
    def refined(**more: JsonValue) -> tuple[float, float]:
        found = estimate(config_from_dict(tiny_recipe(weak, NOWHERE, **settings(**more))), tmp_path / "none")
        (one,) = [s for s in found.stages if s.calls_for == "refine drafts"]
        return one.calls.expected, one.calls.high

    assert refined(adaptive="off") == (QUERIES * SAMPLES, QUERIES * SAMPLES)
    expected, high = refined()
    assert QUERIES < expected < high == QUERIES * SAMPLES
    likely, most = refined(calls=10)  # answers alone are among them
    assert 0 < likely < 10 == most
    assert refined(calls=10, expect="samples")[1] == 10
    run_tiny(weak, beginning(whole, tmp_path / "run"), Oracle(), Log(), **settings())
    done = estimate(config_from_dict(tiny_recipe(weak, NOWHERE, **settings())), tmp_path / "run")
    assert all(s.calls.high == 0 for s in done.stages if s.calls_for == "refine drafts")


@pytest.mark.parametrize(
    ("feedback", "says"),
    [({"calls": 10}, "limit of `adaptive: contrast`"), ({"adaptive": "contrast", "alike": 0}, "alike")],
)
def test_settings_that_do_not_go_together(feedback: dict[str, JsonValue], says: str, weak: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_from_dict(tiny_recipe(weak, NOWHERE, feedback=feedback))


def test_the_limit_holds_in_each_round_where_other_queries_are_asked(weak: str, tmp_path: Path) -> None:
    rounds: JsonValue = {"most": 2, "stop": "never", "queries": "next"}
    feedback: JsonValue = {"adaptive": "contrast", "calls": 16}
    draft: JsonValue = {"queries": QUERIES // 2}
    run_tiny(weak, tmp_path, Oracle(), Log(), feedback=feedback, rounds=rounds, draft=draft, evaluate={"queries": 2})
    for stage in ("feedback", "feedback (round 2)"):
        told = counts(tmp_path, stage)
        asked = told["solo"] + told["refined"] - told["refined_by_shared_draft"]
        assert told["solo"] > 0 and asked <= 16, stage
        assert told["calls_saved_the_limit"] > 0
