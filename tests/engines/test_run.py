"""Runs whose models are answered by servers that cowest starts: what is up when, adapters, deaths, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.engines.fakes import alive, all_end, events, fake_python, order, processes
from tests.helpers import Log, Oracle, save_tiny_model, tiny_recipe, world

from cowest.errors import StageError
from cowest.models.endpoint import make_app, serve
from cowest.pipeline import RunSummary, run
from cowest.recipe.config import config_from_dict

LORA: dict[str, JsonValue] = {
    "method": "lora", "max_steps": 4, "batch_size": 4, "max_length": 128, "device": "cpu", "learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def served(model: str, engine: Path) -> dict[str, JsonValue]:
    """A model behind the fake, which answers with the task's labels."""
    return {
        "kind": "local", "model": model, "batch_size": 16, "engine": "vllm", "engine_python": str(fake_python(engine)),
        "engine_options": {"kv_cache_gib": 0.1},
    }  # fmt: skip


class Watching(Log):
    """Notes which engines run when something begins, and when the feedback is there."""

    def __init__(self, **engines: Path) -> None:
        super().__init__()
        self._engines = engines
        self.up: list[tuple[str, set[str]]] = []

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        super().start(label, total, done)
        self._note(label)

    def info(self, text: str) -> None:
        super().info(text)
        if text.startswith("feedback: done in"):
            self._note("feedback done")

    def _note(self, label: str) -> None:
        self.up.append((label, {name for name, folder in self._engines.items() if alive(processes(folder))}))


def run_with(model: str, engine: Path, out: Path, log: Log, **changes: JsonValue) -> RunSummary:
    async def go() -> RunSummary:
        async with serve(make_app(Oracle(), model_name="strong")) as url:
            alignment = {**LORA, "checkpoints": 2, "selection_queries": 4}
            recipe = tiny_recipe(model, url, sft=LORA, align=alignment) | {"weak": served(model, engine)} | changes
            return await run(config_from_dict(recipe), out, log)

    return asyncio.run(go())


def test_adapters_are_loaded_as_they_are_trained_and_no_engine_is_up_meanwhile(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak, strong, out = tmp_path / "weak-engine", tmp_path / "strong-engine", tmp_path / "run"
    monkeypatch.setenv("FAKE_ENGINE_LABELS", json.dumps(list(world().labels)))
    log = Watching(weak=weak, strong=strong)
    done = run_with(model, weak, out, log, strong=served(model, strong))
    up = dict(log.up)
    trained = {
        label: found for label, found in up.items() if label.startswith(("SFT", "sft", "DPO", "align", "preference"))
    }
    assert len(trained) >= 2 and not any(trained.values()), log.up
    assert up["feedback done"] == {"strong"}  # the weak one has given way
    loaded = [Path(e["lora_path"]).relative_to(out).parts[0] for e in events(weak, "adapter")]
    assert loaded[0] == "sft" and "align" in loaded and not events(strong, "adapter")
    assert {e["model"] for e in events(strong, "asked")} == {"base"}
    assert "collab_aligned" in done.results[""].systems
    assert not alive(processes(weak) | processes(strong))
    assert (out / "engines/weak.log").exists() and (out / "engines/strong.log").exists()

    before, log = len(events(weak, "start")) + len(events(strong, "start")), Watching()
    run_with(model, weak, out, log, strong=served(model, strong))  # nothing is asked, so nothing is started
    assert len(events(weak, "start")) + len(events(strong, "start")) == before
    assert all(why.startswith("reused") for stage, why in log.verdicts.items() if stage in ("sft", "sample", "align"))


def test_an_engine_that_keeps_dying_stops_the_stage_and_the_run_goes_on_later(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, out = tmp_path / "engine", tmp_path / "run"
    monkeypatch.setenv("FAKE_ENGINE_LABELS", json.dumps(list(world().labels)))
    order(engine, die_at=4, die_always=True)
    with pytest.raises(StageError, match=r"weak: vllm died 4 times .*out of order"):
        run_with(model, engine, out, Log(), align={"objective": "off"})
    assert all_end(processes(engine), 1)
    kept = (out / "drafts.jsonl").read_text().count("\n")
    assert kept > 0
    order(engine)
    log = Log()
    run_with(model, engine, out, log, align={"objective": "off"})
    assert log.verdicts["sft"].startswith("reused") and log.verdicts["sample"] == "continued where it stopped"
    assert log.starts[0][2] == kept  # what had been answered is not asked again


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_ends_its_engines(number: signal.Signals, model: str, tmp_path: Path) -> None:
    engine, out, recipe = tmp_path / "engine", tmp_path / "run", tmp_path / "recipe.yaml"
    order(engine, hold=True)
    content = tiny_recipe(model, "http://127.0.0.1:9/v1", sft={**LORA, "max_steps": 1}, align={"objective": "off"})
    recipe.write_text(yaml.safe_dump(content | {"weak": served(model, engine)}))
    process = subprocess.Popen(
        [sys.executable, "-m", "cowest", "run", str(recipe), "--out", str(out)],
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    with process:
        until = time.monotonic() + 60
        while not events(engine, "asked") and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert events(engine, "asked"), process.stderr and process.stderr.read()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert all_end(processes(engine), 1)
