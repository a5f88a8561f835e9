"""GGUF files (llama.cpp's, Ollama's, LM Studio's): what one holds, and its weights as ordinary safetensors, made once.

transformers reads such a file slowly, and gives a model that it then refuses to save or train. So a file is dequantised once, into
a folder that everything here, and vLLM, loads like any other checkpoint. The folder is named by the file's content: to move
or rename the file changes nothing. Weights are bfloat16 there: half of float32's size, the type in which such models were
trained, and its rounding is far below that of the file's own 4 to 8 bits (docs/training.md has what was measured).

What a file lacks is found in its header, in well under a second, before anything runs.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

from cowest.errors import DiskError, MissingExtraError, ModelNotFoundError
from cowest.run.identity import GGUF_MARK, hash_file

MAGIC: Final = b"GGUF"
_SPLIT: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_NOT_CAUSAL: Final = frozenset({"general", "tokenizer", "t5", "umt5"})
"""Entries of transformers' table that are no architecture, or none that continues a text."""


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a file's header says. ``parameters`` is the number of weights; ``template``: whether it has a chat template."""

    path: Path
    architecture: str
    name: str
    parameters: int
    template: bool


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF by its first bytes, or says so by its name (and may be damaged)."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == MAGIC or path.suffix.lower() == ".gguf"


def read_gguf(path: Path) -> Gguf:
    """The header of a file that can be used; tensors are not read.

    Raises ModelNotFoundError, with what is wrong and what to do, for a file that is no GGUF, is cut off, is one part of several,
    has an architecture that transformers does not read, or nothing that could end a turn; MissingExtraError without the libraries.
    """
    _check_first_bytes(path)
    missing = [name for name in ("torch", "transformers", "gguf") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{path}: a GGUF file needs {', '.join(missing)}: pip install 'cowest[local]'")
    try:
        with path.open("rb") as file:
            found, shapes, ends = _header(path, file)
    except (struct.error, UnicodeDecodeError, OverflowError, MemoryError, OSError):
        raise _cut_off(path, "its header ends in the middle") from None
    size = path.stat().st_size
    if size < ends:
        raise _cut_off(path, f"it has {size:,} bytes, and its header tells of {ends:,}")
    architecture = str(found.get("general.architecture", "none"))
    _check_architecture(path, architecture)
    template = "tokenizer.chat_template" in found
    if not template and "tokenizer.ggml.eos_token_id" not in found:
        raise ModelNotFoundError(
            f"{path}: it has neither a chat template nor an end-of-sequence token, so the model could never end an answer; take "
            "another conversion of it"
        )
    name = str(found.get("general.name") or found.get("general.basename") or architecture)
    return Gguf(path, architecture, name, sum(map(prod, shapes)), template)


_WIDTHS: Final = {0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, int | str | None], list[tuple[int, ...]], int]:
    """The settings of a file (texts and 32-bit numbers; None for the others), its tensors' shapes, and where its last tensor ends.

    The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The libraries' readers take 12 s for a
    vocabulary of 150,000 words, or do not know some of the quantisations that they dequantise.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    file.seek(len(MAGIC))
    version, tensors, settings = _numbers(file, "<IQQ")
    if version not in (2, 3):
        raise ModelNotFoundError(
            f"{path}: this is version {version} of GGUF, and 2 and 3 can be read; take a newer conversion"
        )
    found: dict[str, int | str | None] = {}
    for _ in range(settings):
        name = _text(file)
        found[name] = _value(file, *_numbers(file, "<I"))
    shapes, ends = [], [0]
    for _ in range(tensors):
        _text(file)
        (dimensions,) = _numbers(file, "<I")
        shape = _numbers(file, f"<{min(dimensions, 16)}Q")
        kind, offset = _numbers(file, "<IQ")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            raise ModelNotFoundError(
                f"{path}: its tensors are of type {kind}, which the package gguf does not know; update it"
            ) from None
        shapes.append(shape)
        ends.append(offset + prod(shape) // block * size)
    align = found.get("general.alignment") or 32
    assert isinstance(align, int)
    return found, shapes, -(-file.tell() // align) * align + max(ends)


def _value(file: BinaryIO, kind: int) -> int | str | None:
    if kind == _STRING:
        return _text(file)
    if kind == _UINT32:
        return _numbers(file, "<I")[0]
    if kind != _ARRAY:
        file.seek(_width(kind), os.SEEK_CUR)
        return None
    inner, count = _numbers(file, "<IQ")
    if inner == _STRING:
        for _ in range(count):  # a vocabulary: each word has its length before it
            file.seek(_numbers(file, "<Q")[0], os.SEEK_CUR)
    else:
        file.seek(count * _width(inner), os.SEEK_CUR)
    return None


def _width(kind: int) -> int:
    if kind not in _WIDTHS:
        raise struct.error(f"a value of type {kind}")
    return _WIDTHS[kind]


def _text(file: BinaryIO) -> str:
    (length,) = _numbers(file, "<Q")
    return file.read(length).decode("utf-8")


def _numbers(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def has_template(model: Path) -> bool:
    """Whether a GGUF file, or a folder with a tokenizer, has a chat template. A file that cannot be read has none."""
    if model.is_file():
        ready = cached(model)  # quicker to look at
        try:
            return has_template(ready) if ready else read_gguf(model).template
        except (ModelNotFoundError, MissingExtraError):
            return False
    settings = model / "tokenizer_config.json"
    if any(model.glob("chat_template.*")):
        return True
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))


def dequantised(path: Path, tell: Callable[[str], None] | None = None) -> Path:
    """The folder with the file's weights as safetensors, its configuration and its tokenizer; made on first use.

    It is whole or not there: it is made beside its place, under a lock, and renamed at the end. ``tell`` gets the lines of
    progress; unset, they go to stderr. Raises as :func:`read_gguf`, and DiskError where there is no room.
    """
    if ready := cached(path):
        return ready
    digest, cache = hash_file(path), cache_folder() / "gguf"
    header = read_gguf(path)
    folder = cache / f"{_slug(header.name)}-{digest[:16]}"
    say = tell or _to_stderr
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{digest[:16]}.lock"):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(header, digest, folder, say)
    except OSError as error:
        raise DiskError(f"{cache}: {error.strerror or error}; COWEST_CACHE_DIR names another folder") from None
    return folder


def cached(path: Path) -> Path | None:
    """The folder with the file's weights, where it has been made."""
    return next((cache_folder() / "gguf").glob(f"*-{hash_file(path)[:16]}"), None)


def cache_folder() -> Path:
    """Where what can be made again is kept: COWEST_CACHE_DIR, else cowest in XDG_CACHE_HOME, else ~/.cache/cowest."""
    if named := os.environ.get("COWEST_CACHE_DIR"):
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "cowest"


def _make(header: Gguf, digest: str, folder: Path, say: Callable[[str], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
    needed = 2 * header.parameters
    if (free := shutil.disk_usage(folder.parent).free) < 1.05 * needed + 1e8:
        raise DiskError(
            f"{folder.parent}: {header.path.name} dequantised takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "COWEST_CACHE_DIR names another folder"
        )
    began = time.monotonic()
    say(f"{header.path.name}: dequantising {header.parameters / 1e6:,.0f}M weights, once, into {folder}")
    try:
        _convert(header.path, partial)
        mark = {"file": header.path.name, "sha256": digest, "architecture": header.architecture}
        (partial / GGUF_MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{header.path.name}: dequantised in {time.monotonic() - began:.0f} s")


def _convert(path: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    where = {"gguf_file": path.name, "trust_remote_code": False}
    try:
        with _reading():
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **where)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent), dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **where
            )
            # These are ordinary weights now; with the note of where they came from they would be neither saved nor trained.
            model.hf_quantizer = None
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.config.name_or_path = ""
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
    except (ValueError, NotImplementedError, KeyError, RuntimeError) as error:
        raise ModelNotFoundError(f"{path}: transformers cannot read this GGUF file: {_line(error)}") from None


def _check_first_bytes(path: Path) -> None:
    if split := _SPLIT.search(path.name):
        raise ModelNotFoundError(
            f"{path}: this is part {int(split[1])} of {int(split[2])} of a GGUF file; join them with llama.cpp's "
            f"`llama-gguf-split --merge {path.name} WHOLE.gguf` and name the whole"
        )
    try:
        with path.open("rb") as file:
            start = file.read(24)
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from None
    if start[:4] != MAGIC:
        hint = (
            ", but a page or a Git LFS pointer: download the file itself"
            if start[:8].lstrip()[:1] in (b"<", b"v")
            else ""
        )
        raise ModelNotFoundError(f"{path}: this is no GGUF file (it does not begin with the bytes GGUF){hint}")
    if len(start) < 24:
        raise _cut_off(path, "its header ends in the middle")


def _check_architecture(path: Path, architecture: str) -> None:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

    known = {*GGUF_CONFIG_MAPPING, *GGUF_CONFIG_ARCHS} - _NOT_CAUSAL
    # llama.cpp writes qwen2moe and gpt-oss where transformers has qwen2_moe and gpt_oss.
    if _plain(architecture) not in {_plain(name) for name in known}:
        raise ModelNotFoundError(
            f"{path}: its architecture is {architecture!r}, which transformers does not read from GGUF; it reads "
            f"{', '.join(sorted(known))}. Take the model's safetensors (a hub name or a folder)"
        )


def _plain(architecture: str) -> str:
    return re.sub(r"[^a-z0-9]", "", architecture.lower())


def _cut_off(path: Path, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"{path}: this GGUF file is cut off ({why}); download it again")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:40].rstrip("-.") or "model"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _reading() -> Iterator[None]:
    """One reading of the file for all that transformers asks of it, and none of its bars and advice on stderr: ours are the lines.

    The library parses the whole file three times (tokenizer, configuration, weights), a vocabulary of 150,000 words in 12 s each.
    """
    import gguf as library

    gguf: Any = library
    reader = gguf.GGUFReader
    gguf.GGUFReader = lru_cache(maxsize=1)(reader)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        gguf.GGUFReader = reader


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time makes a folder; the lock goes with its process, also when it is killed."""
    if sys.platform == "win32":  # there is no such lock
        yield
        return
    import fcntl

    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
