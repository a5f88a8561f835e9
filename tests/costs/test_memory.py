"""What ``cowest estimate`` says of this machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.paid_endpoint import paid_recipe

from cowest.assembly.places import LAB_WEIGHTS
from cowest.cli.output_estimate import print_estimate
from cowest.cli.starter import write_starter
from cowest.costs import memory
from cowest.costs.estimate import estimate
from cowest.recipe.config import config_from_dict, load_config
from cowest.training.memory import PROGRAM

GIB = 1 << 30


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    write_starter(tmp_path / "mine")
    return tmp_path / "mine" / "recipe.yaml"


def test_every_stage_that_works_here_has_its_line(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 64 * GIB)
    found = estimate(load_config(lab), tmp_path / "none")
    needs = {(need.stage, need.model): need for need in found.memory}
    assert {stage for stage, _ in needs} == {"sft", "sample", "align", "feedback"}
    assert all(need.fits and need.split is None for need in needs.values())
    weights = (LAB_WEIGHTS / "weak/model.safetensors").stat().st_size
    sft = needs["sft", "lab:weak"]
    assert sft.weights == pytest.approx(weights, rel=0.1)  # in float32, as they are stored
    assert sft.total == PROGRAM + sft.weights + sft.working and sft.tokens < 512


def test_what_is_not_free_is_said(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: PROGRAM + (12 << 20))
    found = estimate(load_config(lab, ["sft.batch_size=64"]), tmp_path / "none")
    print_estimate(found)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Memory: ")]
    assert len(lines) == len(found.memory)
    assert any("sft (lab:weak)" in line and "it will be done with" in line for line in lines)
    monkeypatch.setattr(memory, "free_memory", lambda: PROGRAM)
    print_estimate(estimate(load_config(lab), tmp_path / "none"))
    assert "NOT ENOUGH: the run will stop there" in capsys.readouterr().out


def test_what_runs_elsewhere_takes_no_memory_here(tmp_path: Path) -> None:
    served: dict[str, JsonValue] = {
        "kind": "openai",
        "model": "small",
        "base_url": "http://127.0.0.1:9/v1",
        "api_key_env": None,
    }
    config = config_from_dict(paid_recipe("http://127.0.0.1:9/v1", weak=served))
    assert estimate(config, tmp_path / "none").memory == []
