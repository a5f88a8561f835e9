"""What a model is made of, as its files say it: sizes and how it is stored. Nothing of it is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cowest.types import Record

BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1}


class ModelShape(Record):
    """A decoder's sizes: counts of ``parameters`` and layers, widths, and the bytes of a weight as it is stored."""

    parameters: int
    stored_bytes: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int


def model_shape(name: str) -> ModelShape | None:
    """Of a folder, or of a hub name whose files are in the local cache; None where they are not here or do not say it."""
    folder = _folder(name)
    config = None if folder is None else _json(folder / "config.json")
    if folder is None or config is None:
        return None
    inner = config.get("text_config")
    sizes: Mapping[str, Any] = inner if isinstance(inner, Mapping) else config
    try:
        layers, hidden = int(sizes["num_hidden_layers"]), int(sizes["hidden_size"])
        vocabulary, heads = int(sizes["vocab_size"]), int(sizes["num_attention_heads"])
    except (KeyError, TypeError, ValueError):
        return None
    kv_heads = int(sizes.get("num_key_value_heads") or heads)
    head_size = int(sizes.get("head_dim") or hidden // heads)
    intermediate = int(sizes.get("intermediate_size") or 4 * hidden)
    stored, count = _weights(folder)
    if not count:
        attention = hidden * head_size * (2 * heads + 2 * kv_heads)
        count = layers * (attention + 3 * hidden * intermediate) + vocabulary * hidden
    kept = str(sizes.get("dtype") or sizes.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype"))
    return ModelShape(
        parameters=count,
        stored_bytes=stored or (2 if kept in ("bfloat16", "float16") else 4),
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=vocabulary,
    )


def stored_in_16_bits(name: str) -> bool | None:
    """Whether a model's weights take two bytes each or less; None where its files are not here."""
    shape = model_shape(name)
    return None if shape is None else shape.stored_bytes <= 2


def _folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    try:
        found = cache / "snapshots" / (cache / "refs/main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return found if found.is_dir() else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _weights(folder: Path) -> tuple[int, int]:
    """Bytes of most weights and their number, from the heads of the safetensors files; zeros where there are none."""
    sizes = dict[int, int]()
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except (OSError, ValueError):
            continue
        for key, tensor in head.items():
            if key != "__metadata__":
                count = 1
                for side in tensor["shape"]:
                    count *= side
                size = BYTES.get(tensor["dtype"], 4)
                sizes[size] = sizes.get(size, 0) + count
    return (max(sizes, key=lambda size: sizes[size]), sum(sizes.values())) if sizes else (0, 0)
