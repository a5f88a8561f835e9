"""Where a model's files are."""

from __future__ import annotations

from pathlib import Path

from cowest.errors import ModelNotFoundError

LAB_WEIGHTS = Path(__file__).parents[1] / "lab" / "weights"


def model_path(name: str) -> str:
    """A model's hub name or folder; ``lab:strong`` and ``lab:weak`` are the ones shipped with cowest.

    Raises ModelNotFoundError for a folder that is not there, or an unknown lab model.
    """
    if name.startswith("lab:"):
        folder = LAB_WEIGHTS / name.removeprefix("lab:")
        if not folder.is_dir():
            known = ", ".join(f"lab:{p.name}" for p in sorted(LAB_WEIGHTS.glob("*"))) or "none is installed"
            raise ModelNotFoundError(f"{name}: there is no such lab model; there are {known}")
        return str(folder)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    folder = Path(name).expanduser()
    if looks_like_path and not folder.is_dir():
        raise ModelNotFoundError(
            f"{name}: no such folder. Give a folder with config.json and safetensors weights, or a hub name like org/model."
        )
    return str(folder) if folder.is_dir() else name
