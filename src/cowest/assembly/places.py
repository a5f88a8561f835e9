"""Where a model's files are: the one place that turns the name in a recipe into what is loaded."""

from __future__ import annotations

from pathlib import Path

from cowest.errors import ModelNotFoundError
from cowest.models.gguf import cached, dequantised, has_template, is_gguf, read_gguf
from cowest.models.models_dir import VARIABLE, stand_in

LAB_WEIGHTS = Path(__file__).parents[1] / "lab" / "weights"


def model_path(name: str) -> str:
    """What transformers loads: a folder, or a hub name. A GGUF file is dequantised into the cache first, once.

    Raises as :func:`model_source`, and for a GGUF file that cannot be used.
    """
    place = model_source(name)
    return str(dequantised(Path(place))) if Path(place).is_file() else place


def model_source(name: str) -> str:
    """Where a model is: a folder, a GGUF file, or a hub name; nothing is loaded or made.

    ``lab:strong`` and ``lab:weak`` are the ones shipped with cowest; COWEST_MODELS_DIR may have a stand-in for a hub name. Raises
    ModelNotFoundError for a folder or file that is not there, or an unknown lab model.
    """
    if name.startswith("lab:"):
        folder = LAB_WEIGHTS / name.removeprefix("lab:")
        if not folder.is_dir():
            known = ", ".join(f"lab:{p.name}" for p in sorted(LAB_WEIGHTS.glob("*"))) or "none is installed"
            raise ModelNotFoundError(f"{name}: there is no such lab model; there are {known}")
        return str(folder)
    place = Path(name).expanduser()
    if place.is_dir() or is_gguf(place):
        return str(place)
    if place.is_file():
        raise ModelNotFoundError(
            f"{name}: this file is no model; give its folder, a GGUF file, or a hub name like org/model"
        )
    file = name.lower().endswith(".gguf")
    if not _is_path(name) and (found := stand_in(name)):
        return str(found)
    if _is_path(name) or file:
        what = "file" if file else "folder"
        raise ModelNotFoundError(
            f"{name}: no such {what}. Give a folder with config.json and safetensors weights, a GGUF file, or a hub name like "
            "org/model."
        )
    return name


def check_model(name: str) -> list[str]:
    """Look at a model without loading it; what there is to say of it. Raises as :func:`model_path`."""
    said, place = standing_in(name), Path(model_source(name))
    ready = cached(place) if place.is_file() else place  # what was dequantised was fit for it
    template = read_gguf(place).template if ready is None else not ready.is_dir() or has_template(ready)
    if not template:
        said.append(f"{place.name} has no chat template; it gets a plain one (docs/training.md)")
    return said


def standing_in(name: str) -> list[str]:
    """The line that tells of a stand-in for a name; none where there is no stand-in."""
    place = Path(model_source(name))
    if name.startswith("lab:") or not place.exists() or Path(name).expanduser().exists():
        return []
    return [f"{name} from {VARIABLE}: {place.name}"]


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
