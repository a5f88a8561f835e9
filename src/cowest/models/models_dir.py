"""COWEST_MODELS_DIR: a folder of model files that stand in for hub names, so that a recipe runs where no hub can be reached.

``org/Name`` is looked for as ``Name`` or ``org/Name`` (a folder with config.json) and as ``Name.gguf``, in any letter case. The
rule behind it: a file's name without its ending and without the mark of its quantisation (``-Q4_K_M``), and the hub's
name, are compared without punctuation; where none is equal, the file's name may be some neighbouring words of the hub's:
``smollm2-135m.gguf`` is ``HuggingFaceTB/SmolLM2-135M-Instruct``, ``minilm`` is ``sentence-transformers/all-MiniLM-L6-v2``. A size
(``135M``) is never left out, and what stands in for an instruct model has a chat template. Whoever uses a stand-in says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cowest.errors import ModelNotFoundError
from cowest.models.gguf import has_template

VARIABLE: Final = "COWEST_MODELS_DIR"
_QUANTISED: Final = re.compile(r"[-_.](i?q\d\w*|tq\d\w*|mxfp4\w*|bf16|f16|f32|fp16|fp32)$", re.IGNORECASE)
_SIZE: Final = re.compile(r"\d+(\.\d+)?[bm]", re.IGNORECASE)
_CHAT: Final = frozenset({"instruct", "it", "chat"})


def stand_in(name: str) -> Path | None:
    """The folder or GGUF file of COWEST_MODELS_DIR for a hub name, or for a file's name; None where there is none.

    Raises ModelNotFoundError where several would do, or the folder itself is not there.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return None
    folder = Path(place).expanduser().absolute()
    if not folder.is_dir():
        raise ModelNotFoundError(f"{VARIABLE}={place}: no such folder")
    if (direct := folder / name).is_file():
        return direct
    org, _, last = name.rpartition("/")
    candidates = [(path, called) for path, owner, called in _models(folder) if owner in ("", _plain(org))]
    equal = [path for path, called in candidates if _plain(called) == _plain(last)]
    found = equal or [
        path for path, called in candidates if _is_some_words_of(called, last) and _fits(path, called, last)
    ]
    if len(found) > 1:
        names = " and ".join(path.relative_to(folder).as_posix() for path in sorted(found))
        raise ModelNotFoundError(
            f"{name}: {VARIABLE} has {names} for it; name one of them in the recipe, or move the others"
        )
    return found[0] if found else None


def _models(folder: Path, owner: str = "") -> Iterator[tuple[Path, str, str]]:
    """Each model with its owner ('' directly in the folder) and what it is called."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() == ".gguf":
            yield path, owner, _QUANTISED.sub("", path.stem)
        elif (path / "config.json").is_file():
            yield path, owner, path.name
        elif path.is_dir() and not owner:
            yield from _models(path, _plain(path.name))


def _is_some_words_of(called: str, name: str) -> bool:
    return any(_plain("".join(words)) == _plain(called) for words, _ in _runs(name))


def _runs(name: str) -> Iterator[tuple[list[str], list[str]]]:
    """Each run of neighbouring words of a name, and the words that it leaves out."""
    words = re.split(r"[-_\s]+", name)
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            yield words[start:end], words[:start] + words[end:]


def _fits(path: Path, called: str, name: str) -> bool:
    left = next(rest for words, rest in _runs(name) if _plain("".join(words)) == _plain(called))
    if any(_SIZE.fullmatch(word) for word in left):
        return False
    return has_template(path) or not _CHAT & {word.lower() for word in left}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
