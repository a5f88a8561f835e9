"""Alignment by another objective than the paper's: a run that learns from single drafts, and what it asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import JsonValue
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model, tiny_recipe

from cowest.costs.estimate import estimate
from cowest.errors import ConfigError
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile
from cowest.types import LabelledDraft, PreferencePair

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def plain(weak: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the paper's objective, whose SFT, drafts and feedback the others take over."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    run_tiny(weak, out, Oracle(), Log())
    return out


@pytest.fixture
def out(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "run"))


def aligned_by(weak: str, **settings: JsonValue) -> dict[str, JsonValue]:
    align = cast("dict[str, JsonValue]", tiny_recipe(weak, "http://unused/v1")["align"])
    return {"align": {**align, **settings}}


@pytest.mark.parametrize("objective", ["kto", "rejection"])
def test_a_run_learns_from_single_drafts(objective: str, weak: str, out: Path) -> None:
    log, oracle = Log(), Oracle()
    done = run_tiny(weak, out, oracle, log, **aligned_by(weak, objective=objective))
    labels = JsonlFile(out / "labels.jsonl", LabelledDraft).load()
    assert {one.label for one in labels} == {True, False}
    for one in labels:
        assert one.label == (one.worth > one.baseline)
    counts = json.loads((out / "manifest.json").read_text())["stages"]
    assert counts["align"]["counts"]["labelled"] == len(labels) == counts["pairs"]["counts"]["labelled"]
    assert "pairs" not in counts["align"]["counts"] and (out / "pairs.jsonl").is_file()
    assert "collab_aligned" in done.results[""].systems
    asked = len(oracle.requests)
    run_tiny(weak, out, oracle, log, **aligned_by(weak, objective=objective))
    assert len(oracle.requests) == asked and log.verdicts["pairs"].startswith("reused")
    assert log.verdicts["align"].startswith("reused")


def test_another_objective_pays_for_no_feedback_again(weak: str, out: Path) -> None:
    log = Log()
    assert not (out / "labels.jsonl").exists()
    run_tiny(weak, out, Oracle(), log, **aligned_by(weak, objective="kto"))
    assert log.verdicts["feedback"].startswith("reused") and (out / "labels.jsonl").is_file()
    assert log.verdicts["align"].startswith("run again, because align.objective")


def test_rounds_pool_labelled_drafts(weak: str, out: Path) -> None:
    rounds: dict[str, JsonValue] = {"most": 2, "stop": "never", "pairs": "all"}
    run_tiny(weak, out, Oracle(), Log(), **aligned_by(weak, objective="kto"), rounds=rounds)
    first = JsonlFile(out / "labels.jsonl", LabelledDraft).load()
    both = JsonlFile(out / "round-2/labels.jsonl", LabelledDraft).load()
    assert first and both[-len(first) :] == first and len(both) > len(first)


def test_margins_weigh_in_a_run(weak: str, plain: Path, tmp_path: Path) -> None:
    even, weighed = (Path(shutil.copytree(plain, tmp_path / name)) for name in ("even", "weighed"))
    for out, settings in ((even, {}), (weighed, {"weight": "margin"})):
        # By their length drafts are worth different amounts; right or wrong alone has one margin.
        run_tiny(weak, out, Oracle(), Log(), **aligned_by(weak, **settings), pairs={"price_per_word": 0.05})
    pairs = JsonlFile(even / "pairs.jsonl", PreferencePair).load()
    assert pairs == JsonlFile(weighed / "pairs.jsonl", PreferencePair).load()
    rows = [
        [json.loads(line) for line in (out / "align/log.jsonl").read_text().splitlines()] for out in (even, weighed)
    ]
    assert len({pair.margin for pair in pairs}) > 1
    assert rows[0][0]["loss"] == pytest.approx(rows[1][0]["loss"])
    assert rows[0][-1] != rows[1][-1]


@pytest.mark.parametrize("objective", ["preference", "kto", "rejection", "positives"])
def test_the_estimate_knows_what_each_trains_on(objective: str, weak: str, tmp_path: Path) -> None:
    found = estimate(
        config_from_dict(tiny_recipe(weak, "http://unused/v1", **aligned_by(weak, objective=objective))), tmp_path
    )
    training: Any = next(s for s in found.stages if s.stage == "align" and s.training_tokens.high > 0)
    tokens = training.training_tokens
    pairs = estimate(config_from_dict(tiny_recipe(weak, "http://unused/v1")), tmp_path).stages
    both = next(s for s in pairs if s.stage == "align" and s.training_tokens.high > 0).training_tokens
    assert tokens.high == pytest.approx(both.high / (1 if objective == "preference" else 2))


def test_a_wrong_weight_or_objective_is_said(weak: str) -> None:
    with pytest.raises(ConfigError, match=r"align\.weight"):
        config_from_dict(tiny_recipe(weak, "http://unused/v1", **aligned_by(weak, weight="heavy")))
