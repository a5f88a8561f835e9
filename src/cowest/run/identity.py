"""What identifies things: hashes of values, files and weights, and the seeds that follow from names."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

GGUF_MARK = "cowest-gguf.json"
"""In a folder that was dequantised from a GGUF file: that file's SHA-256, which is what identifies the model."""

INCIDENTAL = ("latency_s", "usage", "attempts")
"""Fields of a record that tell how it came about: two runs that differ in nothing else have made the same."""


def fingerprint(*parts: JsonValue, length: int = 16) -> str:
    """A stable hash of JSON values, of ``length`` hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def derive_seed(*parts: str | int) -> int:
    """A 31-bit seed from names and numbers; the same parts always give the same seed."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content; read once as long as its size and time of change stay the same."""
    stat = path.stat()
    return _hash(os.fspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _hash(path: str, size: int, mtime_ns: int, inode: int) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    """Of gigabytes that every stage asks about: read again only where the file has been written since."""
    return hash_file(path)


def hash_model(name: str) -> str:
    """What identifies a model: for a folder the contents of its weights, configuration and tokenizer, else its name.

    For a GGUF file, and the folder that was dequantised from it, it is the file's content.
    """
    folder = Path(name)
    if folder.is_file():
        found = folder.stat()
        return fingerprint({"gguf": _hash_once(folder.resolve(), found.st_size, found.st_mtime_ns)})
    if not folder.is_dir():
        return name
    if (mark := folder / GGUF_MARK).is_file():
        return fingerprint({"gguf": json.loads(mark.read_text(encoding="utf-8"))["sha256"]})
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".json", ".safetensors", ".jinja"} and p.is_file())
    return fingerprint({file.relative_to(folder).as_posix(): hash_file(file) for file in files})


def hash_records(path: Path) -> str:
    """A hash of a JSONL file's records that leaves out what is incidental to them, such as how long a call took."""
    digest = hashlib.sha256()
    with path.open("rb") as lines:
        for line in lines:
            record = json.loads(line)
            for name in INCIDENTAL:
                record.pop(name, None)
            digest.update(json.dumps(record, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode())
    return digest.hexdigest()[:16]
