"""GGUF files: dequantised once into a folder like any other, and what is wrong with one is said before anything runs."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from tests.gguf_file import LAYERS, TOKENS, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from cowest.assembly.places import check_model, model_path, model_source
from cowest.assembly.sources.local import LocalSource
from cowest.errors import CowestError, DiskError, MissingExtraError, ModelNotFoundError
from cowest.models import gguf
from cowest.models.gguf import cache_folder, dequantised, is_gguf, read_gguf
from cowest.recipe.models import LocalModelConfig, beside
from cowest.run.identity import GGUF_MARK, hash_model

pytestmark = pytest.mark.slow
IDS = torch.tensor([[0, 40, 50, 60, 70, 80, 1]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COWEST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("COWEST_MODELS_DIR", raising=False)
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


def test_the_cache_is_the_model_that_the_file_was_made_of(tmp_path: Path, cache: Path) -> None:
    original = write_gguf(tmp_path / "tiny.gguf")
    said: list[str] = []
    folder = dequantised(tmp_path / "tiny.gguf", said.append)
    assert folder.parent == cache and folder.name.startswith("tiny-test-0.1m-")
    assert [line.split(" in ")[0].split(", once")[0] for line in said] == [
        "tiny.gguf: dequantising 0M weights",
        "tiny.gguf: dequantised",
    ]
    assert str(folder) in said[0]
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    assert torch.equal(logits(loaded), logits(original))  # to the bit: attention is unpermuted, nothing is rounded
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the Ping"}], add_generation_prompt=True, tokenize=False
    )
    assert asked == "<|im_start|>user\nthe Ping<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == asked and tokenizer.eos_token == "<|im_end|>" and ids.count(1) == 1
    assert not list(cache.glob(".*.partial"))


def test_quantised_weights_are_those_that_the_blocks_hold(tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "q8.gguf", quantised=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(dequantised(tmp_path / "q8.gguf"), dtype=torch.float32)
    ours, theirs = loaded.model.layers[1].mlp.up_proj.weight, original.model.layers[1].mlp.up_proj.weight
    step = theirs.abs().max() / 127  # of Q8_0, at most; and bfloat16 has 8 bits
    assert 0 < (ours - theirs).abs().max() <= step / 2 + theirs.abs().max() / 256


def test_it_is_made_once_and_known_by_its_content(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_path(str(file))
    assert "tiny.gguf: dequantised in" in capsys.readouterr().err
    renamed = file.rename(tmp_path / "other name.gguf")
    blob = Path(shutil.copy(renamed, tmp_path / "sha256-0a1b"))  # as Ollama keeps them
    assert model_path(str(renamed)) == model_path(str(blob)) == folder and capsys.readouterr().err == ""
    assert hash_model(str(renamed)) == hash_model(folder) != hash_model(str(renamed.parent))
    shutil.rmtree(folder)
    assert model_path(str(renamed)) == folder  # made again where it was cleaned away
    assert hash_model(folder) == hash_model(str(renamed))
    write_gguf(file, seed=1)
    assert model_path(str(file)) != folder and hash_model(str(file)) != hash_model(folder)


def test_a_file_is_found_beside_the_recipe_and_its_name_does_not_count(file: Path, tmp_path: Path) -> None:
    def identity(path: Path) -> object:
        config = LocalModelConfig(kind="local", model=path.name).resolved(path.parent)
        assert config.model == beside(path.parent, path.name) == str(path)
        value = LocalSource(config).identity("weak").values["weak.model"]
        assert isinstance(value, dict)
        return value["hash"]

    first = identity(file)
    assert first == identity(file.rename(tmp_path / "moved.gguf"))
    window = LocalSource(LocalModelConfig(kind="local", model=str(tmp_path / "moved.gguf"))).window(24)
    assert window is not None and window.tokens == 1000 and window.count("thin") == 3  # its own tokens


def test_a_kill_in_the_middle_leaves_no_half_cache(file: Path, cache: Path) -> None:
    def half(path: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    read_gguf(file)  # what it imports is there before the fork
    if not (child := os.fork()):
        gguf._convert = half
        try:
            dequantised(file, lambda line: None)
        finally:
            os._exit(0)  # never back into pytest
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    [left] = cache.glob(".*.partial")
    assert (left / "model.safetensors").stat().st_size == 10 and gguf.cached(file) is None
    folder = dequantised(file)
    assert not left.exists() and (folder / GGUF_MARK).is_file()
    AutoModelForCausalLM.from_pretrained(folder)


def test_two_at_once_make_it_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, both = [], threading.Barrier(2)
    whole, locked = gguf._convert, gguf._locked

    def counted(path: Path, target: Path) -> None:
        made.append(path)
        whole(path, target)

    def together(lock: Path) -> Any:
        both.wait(60)  # neither found it ready
        return locked(lock)

    monkeypatch.setattr(gguf, "_convert", counted)
    monkeypatch.setattr(gguf, "_locked", together)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(dequantised(file, lambda line: None))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 2 and found[0] == found[1] and len(made) == 1


def test_kinds_of_quantisation_that_only_one_reader_knows_are_read(tmp_path: Path) -> None:
    write_gguf(tmp_path / "q5.gguf", quantised=True, kind=GGMLQuantizationType.Q5_0)  # as in Gemma's Q4_K_M files
    assert read_gguf(tmp_path / "q5.gguf").parameters == 32 * (len(TOKENS) + 1) + LAYERS * (
        4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    )
    dequantised(tmp_path / "q5.gguf")


def page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 98362432\n")


def short(size: float) -> Any:
    def cut(path: Path) -> None:
        write_gguf(path)
        os.truncate(path, int(path.stat().st_size * size) if size < 1 else int(size))

    return cut


@pytest.mark.parametrize(
    ("make", "name", "hint"),
    [
        (page, "m.gguf", "no GGUF file .* but a page or a Git LFS pointer"),
        (pointer, "m.gguf", "no GGUF file .* but a page or a Git LFS pointer"),
        (Path.touch, "m.gguf", "no GGUF file"),
        (short(12), "m.gguf", r"cut off \(its header ends in the middle\); download it again"),
        (short(0.02), "m.gguf", r"cut off \(its header ends in the middle\); download it again"),
        (short(0.9), "m.gguf", r"cut off \(it has [\d,]+ bytes, and its header tells of [\d,]+\); download it again"),
        (
            write_gguf,
            "m-00002-of-00003.gguf",
            "part 2 of 3 .*llama-gguf-split --merge m-00002-of-00003.gguf WHOLE.gguf",
        ),
        (
            lambda path: write_gguf(path, architecture="rwkv7"),
            "m.gguf",
            "'rwkv7', which transformers does not .*gemma3, .*llama",
        ),
        (
            lambda path: write_gguf(path, template=None, eos=False),
            "m.gguf",
            "neither a chat template nor an end-of-sequence",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_before_anything_runs(
    make: Any, name: str, hint: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    source = LocalSource(LocalModelConfig(kind="local", model=str(tmp_path / name)))
    with pytest.raises(ModelNotFoundError, match=hint) as caught:
        source.check("weak")
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert not cache_folder().exists()


def test_without_the_package_the_command_to_install_it_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(MissingExtraError, match=r"a GGUF file needs gguf: pip install 'cowest\[local\]'"):
        check_model(str(file))


def test_a_full_disk_is_said_before_it_is_full(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(DiskError, match="COWEST_CACHE_DIR names another folder"):
        dequantised(file)
    assert not list(cache.glob("tiny*"))


def test_a_cache_that_cannot_be_made_is_an_error_of_one_line(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("COWEST_CACHE_DIR", str(tmp_path / "taken"))
    with pytest.raises(CowestError, match=r"taken.*COWEST_CACHE_DIR"):
        dequantised(file)


def test_a_base_model_gets_the_plain_template_and_that_is_said(tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", template=None)
    assert not read_gguf(tmp_path / "base.gguf").template
    said = ["base.gguf has no chat template; it gets a plain one (docs/training.md)"]
    assert check_model(str(tmp_path / "base.gguf")) == said
    folder = model_path(str(tmp_path / "base.gguf"))
    assert check_model(str(tmp_path / "base.gguf")) == said  # from the cache, too
    assert AutoTokenizer.from_pretrained(folder).chat_template is None


def test_the_cache_folder_follows_the_usual_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("COWEST_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cowest"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cowest"


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\x80\x02")
    assert not is_gguf(tmp_path / "weights.bin") and not is_gguf(tmp_path)
    with pytest.raises(ModelNotFoundError, match="this file is no model"):
        model_source(str(tmp_path / "weights.bin"))
    for name in ("missing.gguf", "models/missing.gguf"):
        with pytest.raises(ModelNotFoundError, match="no such file"):
            model_source(name)
