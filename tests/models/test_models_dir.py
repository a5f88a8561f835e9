"""COWEST_MODELS_DIR: which file or folder stands in for a hub name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cowest.assembly.places import check_model, model_path, model_source, standing_in
from cowest.assembly.sources.local import LocalSource
from cowest.errors import ModelNotFoundError
from cowest.models import models_dir
from cowest.models.models_dir import stand_in
from cowest.recipe.models import LocalModelConfig


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With what ../shared/real/get_models.py makes; gemma's file is of a base model."""
    monkeypatch.setenv("COWEST_MODELS_DIR", str(tmp_path))
    monkeypatch.setattr(models_dir, "has_template", lambda path: "gemma" not in path.name)
    for name in ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-1.5b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    make(tmp_path / "minilm")
    return tmp_path


def make(folder: Path, template: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m.gguf"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m.gguf"),
        ("google/gemma-3-270m", "gemma3-270m.gguf"),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "qwen2.5-coder-1.5b.gguf"),
        ("sentence-transformers/all-MiniLM-L6-v2", "minilm"),
        ("smollm2-135m.gguf", "smollm2-135m.gguf"),
        ("google/gemma-3-270m-it", None),  # the file is of the base model: it has no chat template
        ("HuggingFaceTB/SmolLM2-360M-Instruct", None),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", None),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", None),
        ("Qwen/Qwen2.5-1.5B-Instruct", None),
        ("openai-community/gpt2", None),
    ],
)
def test_the_files_of_the_script_stand_in_for_their_models(folder: Path, name: str, found: str | None) -> None:
    assert stand_in(name) == (None if found is None else folder / found)
    assert model_source(name) == (name if found is None else str(folder / found))
    if found and name != found:
        assert standing_in(name) == [f"{name} from COWEST_MODELS_DIR: {found}"]


def test_folders_by_the_hubs_names_in_any_case_go_before_parts_of_a_name(folder: Path) -> None:
    whole = make(folder / "huggingfacetb" / "SMOLLM2-135M-INSTRUCT", "{{ messages }}")
    assert stand_in("HuggingFaceTB/SmolLM2-135M-Instruct") == whole
    assert model_path("HuggingFaceTB/SmolLM2-135M-Instruct") == str(whole)
    assert stand_in("other/SmolLM2-135M-Instruct") == folder / "smollm2-135m.gguf"  # another owner's is another model
    plain = make(folder / "Qwen3-0.6B", "{{ messages }}")
    assert check_model("Qwen/qwen3-0.6b") == ["Qwen/qwen3-0.6b from COWEST_MODELS_DIR: Qwen3-0.6B"]
    assert stand_in("Qwen/Qwen3-0.6B") == plain


def test_a_size_is_never_left_out(folder: Path) -> None:
    (folder / "qwen2.5.gguf").write_bytes(b"GGUF")
    assert stand_in("Qwen/Qwen2.5-7B-Instruct") is None


def test_two_that_would_do_are_both_named(folder: Path) -> None:
    for mark in ("Q4_K_M", "q8_0"):
        (folder / f"Qwen3-0.6B-{mark}.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"Qwen3-0.6B-Q4_K_M.gguf and Qwen3-0.6B-q8_0.gguf for it; name one"):
        model_source("Qwen/Qwen3-0.6B")
    assert model_source("Qwen3-0.6B-q8_0.gguf") == str(folder / "Qwen3-0.6B-q8_0.gguf")


def test_what_is_named_by_its_path_is_not_looked_for(folder: Path, tmp_path: Path) -> None:
    here = make(tmp_path / "mine" / "model", "{{ messages }}")
    assert model_source(str(here)) == str(here) and standing_in(str(here)) == []
    assert standing_in("lab:weak") == []
    with pytest.raises(ModelNotFoundError, match="no such folder"):
        model_source("./minilm")


def test_what_a_run_was_made_with_tells_of_the_stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = LocalSource(LocalModelConfig(kind="local", model="HuggingFaceTB/SmolLM2-135M-Instruct"))
    with_it = source.identity("weak").values["weak.model"]
    assert isinstance(with_it, dict) and with_it["shown"] == "smollm2-135m.gguf for SmolLM2-135M-Instruct"
    monkeypatch.delenv("COWEST_MODELS_DIR")
    without = source.identity("weak").values["weak.model"]
    assert isinstance(without, dict) and without["hash"] != with_it["hash"]


def test_a_variable_that_names_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COWEST_MODELS_DIR", "/no/such/place")
    with pytest.raises(ModelNotFoundError, match="COWEST_MODELS_DIR=/no/such/place: no such folder"):
        model_source("org/model")
    monkeypatch.setenv("COWEST_MODELS_DIR", "")
    assert model_source("org/model") == "org/model"
