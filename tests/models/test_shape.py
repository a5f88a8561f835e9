from __future__ import annotations

import json
from pathlib import Path

import pytest

from cowest.models.shape import model_shape, stored_in_16_bits

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 50, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "dtype": "bfloat16",
}  # fmt: skip


def folder(place: Path, config: object, tensors: dict[str, object] | None = None) -> str:
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        head = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
        (place / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    return str(place)


def test_weights_are_counted_in_the_heads_of_their_files(tmp_path: Path) -> None:
    name = folder(
        tmp_path / "m",
        CONFIG,
        {
            "a": {"dtype": "F32", "shape": [50, 8], "data_offsets": [0, 1]},
            "b": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 1]},
        },
    )
    shape = model_shape(name)
    assert shape is not None
    assert (shape.parameters, shape.stored_bytes, shape.head_size, shape.kv_heads) == (403, 4, 2, 2)
    assert stored_in_16_bits(name) is False  # the most of it is float32, whatever the configuration says


def test_without_weights_the_configuration_tells(tmp_path: Path) -> None:
    name = folder(tmp_path / "m", {"text_config": CONFIG})
    shape = model_shape(name)
    assert shape is not None and shape.stored_bytes == 2
    assert shape.parameters == 2 * (8 * 2 * (8 + 4) + 3 * 8 * 24) + 50 * 8


def test_a_hub_name_is_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder(tmp_path / "models--org--name/snapshots/abc", CONFIG)
    assert model_shape("org/name") is None
    (tmp_path / "models--org--name/refs").mkdir()
    (tmp_path / "models--org--name/refs/main").write_text("abc")
    assert stored_in_16_bits("org/name") is True
    assert stored_in_16_bits("org/other") is None


@pytest.mark.parametrize("config", [{}, [], {**CONFIG, "hidden_size": "wide"}])
def test_what_says_nothing_is_none(tmp_path: Path, config: object) -> None:
    assert model_shape(folder(tmp_path / "m", config)) is None
