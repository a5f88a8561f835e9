"""Embeddings by real (random) models: an encoder and a causal language model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import save_tiny_model
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from cowest.errors import ModelNotFoundError
from cowest.lab.tokenizer import build_tokenizer
from cowest.retrieval.dense import DenseRetriever
from cowest.retrieval.documents import Document
from cowest.retrieval.embedding import TransformerEmbedder

pytestmark = pytest.mark.slow
TEXTS = ["Velmo is safe up to 62 mg.", "Why?", "Kasti lowers limits by 7 mg, and more so at night.", "Why?"]


def save_encoder(folder: Path) -> str:
    tokenizer = build_tokenizer(texts=500)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["encoder", "causal"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp(request.param)
    return save_encoder(path) if request.param == "encoder" else save_tiny_model(path)


def plain(folder: str, text: str) -> np.ndarray:
    """The definition, on one text without padding."""
    model: Any = AutoModel.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state
    mean = states.mean(1)[0].numpy()
    unit: np.ndarray = mean / np.linalg.norm(mean)
    return unit


def test_a_vector_is_the_normalised_mean_whatever_shares_its_batch(folder: str) -> None:
    found = TransformerEmbedder(folder, device="cpu", batch_size=3).embed(TEXTS)
    assert found.shape == (4, 32) and found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found, [plain(folder, text) for text in TEXTS], atol=1e-5)


def test_a_text_longer_than_the_window_is_cut(folder: str) -> None:
    embedder = TransformerEmbedder(folder, device="cpu", max_tokens=40)
    long, longer = embedder.embed(["Velmo " * 200, "Velmo " * 400])
    assert np.allclose(long, longer, atol=1e-5)


def test_nothing_to_embed(folder: str) -> None:
    assert len(TransformerEmbedder(folder, device="cpu").embed([])) == 0


def test_a_text_without_a_token_is_near_to_nothing(folder: str) -> None:
    embedder = TransformerEmbedder(folder, device="cpu")
    assert embedder.embed([""]).shape == (1, 32)
    both = embedder.embed(["", "Why?"])
    assert np.allclose(both[0], 0) and np.allclose(both[1], plain(folder, "Why?"), atol=1e-5)


def test_a_text_finds_itself_from_several_threads(folder: str) -> None:
    documents = [Document(f"d{i}", f"Velmo {i} is safe up to {i * 7} mg.") for i in range(20)]
    retriever = DenseRetriever(documents, TransformerEmbedder(folder, device="cpu"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda d: retriever.search(d.text, 1)[0], documents))
    assert [p.id for p in found] == [d.id for d in documents]
    assert all(p.score == pytest.approx(1, abs=1e-4) for p in found)


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="cannot be loaded"):
        TransformerEmbedder(str(tmp_path))
