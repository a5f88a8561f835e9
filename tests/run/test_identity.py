"""Hashes and seeds are the same everywhere, and follow from contents."""

from __future__ import annotations

from pathlib import Path

from cowest.run.identity import derive_seed, fingerprint, hash_model


def test_fingerprints_are_stable() -> None:
    # Literal values: if one changes, every run on every disk counts as stale.
    assert fingerprint("sft", 1, {"b": [1, 2.5, None], "a": "ü"}) == "488438e364b03835"
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    different = [
        fingerprint(),
        fingerprint(None),
        fingerprint(1),
        fingerprint("1"),
        fingerprint([1]),
        fingerprint(1, 2),
    ]
    assert len(set(different)) == len(different)


def test_derived_seeds() -> None:
    assert derive_seed(3, "draft", "train-00001", 2) == 142292831
    seeds = [derive_seed("x", i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= s < 2**31 for s in seeds) and max(seeds) > 2**30


def test_a_model_is_known_by_what_is_in_its_folder(tmp_path: Path) -> None:
    assert hash_model("org/model") == "org/model"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "notes.txt").write_text(name)
    same = hash_model(str(tmp_path / "a"))
    assert same == hash_model(str(tmp_path / "b"))
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weights")
    assert same != hash_model(str(tmp_path / "b"))
