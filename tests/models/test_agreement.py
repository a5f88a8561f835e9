"""bfloat16 is taken by itself only where it says what float32 says, and that is decided once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from cowest.models import agreement, local, packed
from cowest.models.agreement import Agreement, _logprobs, _widened, narrow, narrowed, texts_of
from cowest.models.local import LocalChatModel
from cowest.types import Message, ModelRef, Sampling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A processor with bfloat16, a model that is large enough, and a cache of its own."""
    monkeypatch.setattr(local, "native_bfloat16", lambda device: True)
    monkeypatch.setattr(local, "FEWEST", 0)
    monkeypatch.setenv("COWEST_CACHE_DIR", str(tmp_path / "cache"))
    local._said.clear()


def spoilt(folder: str, into: Path) -> str:
    """The same distribution in float32: a large number is added to the whole head. bfloat16 loses the rest beside it."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    with torch.no_grad():
        rows = torch.randn_like(model.lm_head.weight)  # random weights as they come differ too little between words
        model.lm_head.weight.copy_(rows + 100.0)
    model.save_pretrained(into)
    AutoTokenizer.from_pretrained(folder).save_pretrained(into)
    return str(into)


def test_the_widened_pass_is_float32_and_leaves_the_weights_alone(folder: str) -> None:
    texts = [[5, 6, 7, 8], [9, 10]]
    half: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float()
    before = {name: value.clone() for name, value in half.state_dict().items()}
    with torch.inference_mode(), _widened(half):
        for text in texts:
            assert torch.equal(_logprobs(half, text), _logprobs(whole, text))
    assert all(torch.equal(value, before[name]) for name, value in half.state_dict().items())
    with torch.inference_mode():
        assert not torch.equal(_logprobs(half, texts[0]), _logprobs(whole, texts[0]))  # it could have told


def test_a_plain_model_agrees_and_one_that_needs_float32_does_not(folder: str, tmp_path: Path) -> None:
    texts = texts_of(AutoTokenizer.from_pretrained(folder))
    assert len(texts) == 4 and all(0 < len(text) <= 64 for text in texts)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    found = narrowed(plain, texts)
    assert found.enough and 0 < found.kl < 0.005 and found.places == sum(map(len, texts))
    assert plain.dtype == torch.bfloat16
    needs = narrowed(AutoModelForCausalLM.from_pretrained(spoilt(folder, tmp_path / "spoilt")), texts)
    assert not needs.enough and needs.kl > 0.02
    assert not Agreement(float("nan"), 1.0, 1).enough


@pytest.mark.usefixtures("native")
def test_auto_decides_once_says_so_once_and_keeps_to_it(
    folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cowest.models.local"):
        assert LocalChatModel(ModelRef(base=folder), device="cpu")._model.dtype == torch.bfloat16
        monkeypatch.setattr(local, "narrowed", lambda *_: pytest.fail("it was decided before"))
        assert LocalChatModel(ModelRef(base=folder), device="cpu")._model.dtype == torch.bfloat16
    [line] = caplog.messages
    assert "computed in bfloat16" in line and "mean KL 0.00" in line
    assert LocalChatModel(ModelRef(base=folder), device="cpu", dtype="float32")._model.dtype == torch.float32


@pytest.mark.usefixtures("native")
def test_auto_is_what_a_checkpoint_loaded_in_bfloat16_is(folder: str) -> None:
    """Weights and buffers: the frequencies of positions stay in float32, else far places would blur."""
    found = LocalChatModel(ModelRef(base=folder), device="cpu")._model
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    kept = dict(loaded.named_buffers())
    assert kept and any(value.dtype == torch.float32 for value in kept.values())
    for name, value in found.named_buffers():
        assert value.dtype == kept[name].dtype and torch.equal(value, kept[name])
    narrowed_ = AutoModelForCausalLM.from_pretrained(folder)
    narrow(narrowed_)
    assert all(torch.equal(value, narrowed_.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.usefixtures("native")
def test_auto_stays_in_float32_where_bfloat16_says_something_else(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = spoilt(folder, tmp_path / "spoilt")
    model = LocalChatModel(ModelRef(base=name), device="cpu")
    assert model._model.dtype == torch.float32 and "does not agree" in caplog.text
    weights = AutoModelForCausalLM.from_pretrained(name).state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model._model.state_dict().items())


def test_the_labs_models_and_other_processors_stay_in_float32(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "native_bfloat16", lambda device: True)
    monkeypatch.setattr(local, "narrowed", lambda *_: pytest.fail("too small to be looked at"))
    assert LocalChatModel(ModelRef(base=folder), device="cpu")._model.dtype == torch.float32
    monkeypatch.setattr(local, "native_bfloat16", lambda device: False)
    monkeypatch.setattr(local, "FEWEST", 0)
    assert LocalChatModel(ModelRef(base=folder), device="cpu")._model.dtype == torch.float32


def test_an_unwritable_cache_is_said_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COWEST_CACHE_DIR", str(tmp_path / "file"))
    agreement.decide(ModelRef(base="org/name"), Agreement(0.0, 1.0, 1))
    assert "cannot be written" in caplog.text and agreement.decided(ModelRef(base="org/name")) is None


async def test_packed_layers_compute_what_plain_ones_do(folder: str) -> None:
    if not packed._works():
        pytest.skip("this build of PyTorch has no packed linear layers")
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = LocalChatModel(ModelRef(base=folder), device="cpu", dtype="bfloat16")
    layers = [m for m in model._model.modules() if isinstance(m, packed.PackedLinear)]
    assert len(layers) == 2 * 7 + 1
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.inference_mode():
        own, found = plain(ids).logits.float(), model._model(ids).logits.float()
    assert float((own - found).abs().max()) <= 0.02 * float(own.std()) + 1e-3
    asked = [Message(role="user", content="Why?")]
    assert (await model.generate(asked, Sampling(max_tokens=8, temperature=1.0, seed=1))).text
    assert packed.pack(AutoModelForCausalLM.from_pretrained(folder)) == 0  # float32 stays as it is
