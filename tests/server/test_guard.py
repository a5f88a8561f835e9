"""A served guard: who answered and why is told, the promise is off where queries drift, and one model down is not the end."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import yaml
from pydantic import JsonValue
from tests.guard_rows import rows_of
from tests.helpers import SIZES, WORLD, Log, Oracle, save_tiny_model, tiny_recipe, unused_url
from tests.server.loopback import Client

from cowest import pipeline
from cowest.collaboration.guard.drift import EVERY, FIRST, Drift
from cowest.collaboration.guard.evidence import Evidence
from cowest.collaboration.guard.learn import Numbers, fitted
from cowest.collaboration.guard.policy import CALLS, Candidate, Certificate, Guard
from cowest.errors import ConfigError, DataError, StageError
from cowest.lab.task import lab_task
from cowest.models.endpoint import make_app, serve
from cowest.recipe.config import LabTaskConfig, config_from_dict
from cowest.run.store import JsonlFile
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.metrics import Metrics
from cowest.server.opening import open_served
from cowest.server.runner import listening
from cowest.server.settings import Settings
from cowest.types import Prediction


def guard_of(n: int = 300, promised: bool = True) -> Guard:
    rows = rows_of(n, 0)
    judged = fitted(Numbers.of(rows, ()))
    seen = Certificate(candidate=Candidate(), kept=promised, p=0.01, score=0.6, calls=0.5, cost=0.5, answered={})
    reference = Numbers.of(rows, ()).features["weak"]
    return Guard(
        risk=0.02, delta=0.05, judged=judged, guarded=seen, cascade=seen, tried=(seen,), alone={}, learned_from=100,
        certified_on=200, weak="sft", drafter="sft", samples=0, confidence=True,
        reference=tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in reference),
    )  # fmt: skip


def served_queries(n: int, seed: int, **world: float) -> list[Evidence]:
    return [row.evidence for row in rows_of(n, seed, **world) if row.evidence is not None]


def test_queries_of_the_same_kind_raise_no_alarm_however_long() -> None:
    alarms = 0
    for seed in range(20):
        drift = Drift(guard_of())
        for evidence in served_queries(600, 100 + seed):
            drift.see(evidence)
            alarms += bool(drift.drifted)
    assert alarms == 0  # at most 0.01 of all services ever raise one


def test_other_queries_raise_one_and_it_ends_with_them() -> None:
    drift = Drift(guard_of())
    longer = [e.model_copy(update={"question_words": 40}) for e in served_queries(FIRST, 7)]
    assert [drift.see(e) for e in longer][-1] and drift.drifted == ("question words",)
    changed = [drift.see(e) for e in served_queries(600, 8)]
    assert any(changed) and not [*drift.drifted]
    assert all(i % EVERY == EVERY - 1 for i, c in enumerate(changed) if c)


TASK: dict[str, JsonValue] = {**WORLD, **SIZES, "train": 120, "calibration": 60}


def oracle() -> Oracle:
    task = lab_task(LabTaskConfig.model_validate(TASK), seed=0)
    return Oracle(more={e.input: e.references[0] for split in SIZES for e in task.examples(split)})


@pytest.fixture(scope="module")
def guarded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run with a guard; whether it promises anything does not matter here."""
    out, weak = tmp_path_factory.mktemp("guarded") / "run", save_tiny_model(tmp_path_factory.mktemp("weak"))

    async def go() -> None:
        async with serve(make_app(oracle(), model_name="strong")) as url:
            await pipeline.run(config_from_dict(tiny_recipe(weak, url, task=TASK)), out, Log())
            await pipeline.guard(out, {"guard.samples": 2}, Log())

    asyncio.run(go())
    return out


@pytest.fixture
def run(guarded_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(guarded_run, tmp_path / "run"))


def at(run: Path, url: str) -> None:
    """The run's endpoint is on another port now."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["strong"]["base_url"] = url
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def forced(run: Path, arm: str) -> None:
    """A guard that always goes one way."""
    guard = json.loads((run / "guard/guard.json").read_text())
    guard["guarded"]["candidate"] = {"margin": 0.0, "price": 0.0}
    for state in guard["judged"]["states"].values():
        for name, predictor in state["arms"].items():
            predictor["bias"], predictor["weights"] = 9.0 if name == arm else -9.0, [0.0] * len(predictor["weights"])
    (run / "guard/guard.json").write_text(json.dumps(guard))


@asynccontextmanager
async def served(path: Path, only: Sequence[str] = ("guarded",), **settings: Any) -> AsyncIterator[Client]:
    metrics = Metrics()
    opened = open_served(path, Settings(**settings), only=only)
    metrics.guards(opened.guarding)
    server = Server(opened.served, opened.settings, Keys(), opened.breakers, metrics)
    try:
        async with listening(server, "127.0.0.1", 0) as url, aiohttp.ClientSession() as session:
            yield Client(session, url, server)
    finally:
        await opened.aclose()


DETAILS = {"details": True}


@pytest.mark.slow
async def test_it_answers_as_the_run_has_evaluated_it_and_says_who_did(run: Path) -> None:
    found = JsonlFile(run / "guard/rows/guarded.jsonl", Prediction).load()
    questions = lab_task(LabTaskConfig.model_validate(TASK), seed=0).examples("test")
    async with serve(make_app(oracle(), model_name="strong")) as url:
        at(run, url)
        async with served(run, ("guarded", "strong")) as client:
            listed = [card["id"] for card in (await client.get("/v1/models")).json["data"]]
            assert listed == ["tiny", "tiny.guarded", "tiny.strong"]
            for example, made in zip(questions, found, strict=True):
                got = await client.ask(example.input, model="tiny", cowest=DETAILS)
                assert got.status == 200 and got.text == made.text and made.route is not None
                told = got.json["cowest"]
                assert told["route"] == {"who": made.route.who, "reason": made.route.reason}
                assert told["draft"] == made.draft and made.route.reason in CALLS
                assert told["guard"]["risk"] == 0.02 and told["guard"]["drift"] is None
            metrics = (await client.get("/metrics")).raw.decode()
            assert 'cowest_guard_drift{model="tiny.guarded"} 0.0' in metrics
            assert f'reason="{found[0].route.reason}"' in metrics if found[0].route else False


@pytest.mark.slow
async def test_a_strong_model_that_is_down_leaves_the_weak_answer_or_an_error(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowest.server.opening.require_guarded", lambda context: None)
    forced(run, "both")
    with unused_url() as url:
        at(run, url)
        async with served(run) as client:
            got = await client.ask("Is it safe?", model="tiny", cowest=DETAILS)
            assert got.status == 200 and got.json["cowest"]["degraded"] == "strong_failed"
            assert got.json["cowest"]["route"] == {"who": "weak", "reason": "strong_failed"}
            assert got.json["cowest"]["mode"] == "weak_alone"
        async with served(run, strong_down="error") as client:
            got = await client.ask("Is it safe?", model="tiny", cowest=DETAILS)
            assert got.status in (502, 503)


@pytest.mark.slow
async def test_each_way_is_told_and_streamed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowest.server.opening.require_guarded", lambda context: None)
    question = lab_task(LabTaskConfig.model_validate(TASK), seed=0).examples("test")[0].input
    modes = {"weak": "weak_alone", "strong": "strong_alone", "both": "both"}
    for arm, mode in modes.items():
        forced(run, arm)
        async with serve(make_app(oracle(), model_name="strong")) as url:
            at(run, url)
            async with served(run) as client:
                got = await client.ask(question, model="tiny", cowest=DETAILS)
                assert got.json["cowest"]["mode"] == mode
                assert (got.json["cowest"]["draft"] is not None) == (arm == "both")
                streamed = await client.ask(question, model="tiny", stream=True, cowest=DETAILS)
                pieces = [choice["delta"].get("content") or "" for c in streamed.chunks for choice in c["choices"]]
                assert "".join(pieces) == got.text and streamed.chunks[-1]["cowest"]["mode"] == mode


@pytest.mark.slow
async def test_a_guard_that_is_not_there_or_not_the_runs_is_refused(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["guard"]["risk"] = 0.01
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(StageError, match=r"guard.*guard\.risk"):
        open_served(run, Settings(), only=["guarded"])
    recipe["guard"]["risk"] = 0.02
    recipe["strong"]["model"] = "another"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(StageError):
        open_served(run, Settings(), only=["guarded"])
    kept = (run / "guard/guard.json").read_text()
    (run / "guard/guard.json").write_text(kept[: len(kept) // 2])
    recipe["strong"]["model"] = "strong"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(DataError, match=r"guard\.json: damaged.*cowest guard"):
        open_served(run, Settings(), only=["guarded"])
    (run / "guard/guard.json").unlink()
    recipe["strong"]["model"] = "strong"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match="cowest guard"):
        open_served(run, Settings(), only=["guarded"])
