"""A model that is not on this machine, and cannot be fetched, ends a run before its first stage."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD, cowest_main

from cowest.assembly.here import check_here
from cowest.assembly.places import LAB_WEIGHTS
from cowest.errors import ModelNotFoundError
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.systems.registry import find_systems

pytest.importorskip("huggingface_hub")
MISSING = "someone/no-such-model"
LAB: dict[str, JsonValue] = {"kind": "local", "model": "lab:weak"}
GONE: dict[str, JsonValue] = {"kind": "local", "model": MISSING}


def recipe(**changes: JsonValue) -> RunConfig:
    base: dict[str, JsonValue] = {"name": "here", "task": WORLD | SIZES, "weak": LAB, "strong": LAB}
    return config_from_dict(base | changes)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the check went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(cache: Path, *files: str) -> None:
    """What huggingface_hub leaves of a download."""
    model = cache / "models--someone--no-such-model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0123abcd")
    (model / "snapshots" / "0123abcd").mkdir(parents=True)
    for file in files:
        shutil.copy(LAB_WEIGHTS / "weak" / file, model / "snapshots" / "0123abcd")


@pytest.mark.usefixtures("no_network", "cache")
@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"weak": GONE}, "weak.model"),
        ({"strong": GONE}, "strong.model"),
        ({"feedback": {"judge": GONE}}, "feedback.judge.model"),
        ({"strong": LAB | {"adapter": MISSING}}, "strong.adapter"),
        ({"table": {"embedder": MISSING}, "evaluate": {"systems": ["strong", "dense"]}}, "table.embedder"),
    ],
)
def test_whoever_is_missing_is_named_with_what_to_do(changes: dict[str, JsonValue], where: str) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        check_here(recipe(**changes))
    said = str(raised.value)
    assert said.startswith(f"{where}: {MISSING} ")
    assert "HF_HUB_OFFLINE" in said and "COWEST_MODELS_DIR" in said and "folder" in said and "GGUF" in said


@pytest.mark.usefixtures("no_network", "cache")
def test_an_encoder_is_wanted_by_the_rows_that_search_by_it() -> None:
    config = recipe(table={"embedder": MISSING})
    check_here(config)
    check_here(config, find_systems(("bm25",), "table.rows"))
    with pytest.raises(ModelNotFoundError, match=r"table\.embedder"):
        check_here(config, find_systems(("dense",), "table.rows"))


@pytest.mark.usefixtures("no_network")
def test_the_hubs_cache_counts_once_the_weights_are_in_it(cache: Path) -> None:
    fill(cache, "config.json", "tokenizer.json")  # as `cowest estimate` could have left
    with pytest.raises(ModelNotFoundError):
        check_here(recipe(strong=GONE))
    shutil.rmtree(cache)
    fill(cache, "config.json", "model.safetensors")
    check_here(recipe(strong=GONE))


@pytest.mark.usefixtures("no_network", "cache")
def test_a_hub_that_can_be_reached_is_left_to_whoever_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    check_here(recipe(strong=GONE))
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="TRANSFORMERS_OFFLINE"):
        check_here(recipe(strong=GONE))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("command", ["run", "table"])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_nothing_is_trained_first(
    command: str, jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Path(__file__).parents[2] / "recipes" / ("lab.yaml" if command == "run" else "lab-table.yaml")
    out = tmp_path / "out"
    settings = ("--set", f"strong.model={MISSING}", "--set", "table={rows: [strong]}")
    assert cowest_main(monkeypatch, command, str(lab), "--out", str(out), "--jobs", jobs, *settings) == 2
    said = capsys.readouterr().err
    assert f"strong.model: {MISSING} is not on this machine" in said and "Traceback" not in said
    assert not list(out.rglob("sft")) and not list(out.rglob("manifest.json"))
