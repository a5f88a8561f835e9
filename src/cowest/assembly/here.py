"""Whether the models of a recipe are on this machine, asked before its first stage: nothing is loaded and no network is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cowest.assembly.places import model_source
from cowest.errors import ModelNotFoundError
from cowest.models.hub import hub_switch
from cowest.models.models_dir import VARIABLE
from cowest.recipe.config import RunConfig
from cowest.recipe.models import LocalModelConfig
from cowest.systems.registry import evaluated
from cowest.systems.spec import SystemSpec

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def check_here(config: RunConfig, systems: Iterable[SystemSpec] | None = None) -> None:
    """Look for every model that runs here: weak, strong, judge and, where one of ``systems`` searches by it, the encoder.

    ``systems`` unset: those that the recipe evaluates. Where the hub can be reached, a model that is not here is fetched
    when it is wanted. Raises ModelNotFoundError for the first that is not here and cannot be fetched.
    """
    off = hub_switch()
    if off is None:
        return
    for where, name, files in _named(config, evaluated(config)[0] if systems is None else systems):
        place = model_source(name)
        if not Path(place).exists() and not any(_cached(place, file) for file in files):
            raise ModelNotFoundError(
                f"{where}: {name} is not on this machine, and the hub is switched off ({off}). Name a folder or a GGUF file in "
                f"its place, set {VARIABLE} to a folder that has it as one of these, or fetch it once without {off}"
            )


def _named(config: RunConfig, systems: Iterable[SystemSpec]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Section, name, and the files of which one must be there."""
    for where, model in (
        ("weak", config.weak),
        ("strong", config.strong),
        ("feedback.judge", config.feedback.judge),
        *((f"feedback.compare.{n}", model) for n, model in enumerate(config.feedback.compare)),
        ("table.gepa.model", config.comparison.gepa.model),
        *((f"table.specialists.{name}", model) for name, model in config.comparison.specialists.items()),
    ):
        if isinstance(model, LocalModelConfig):
            yield f"{where}.model", model.model, _WEIGHTS
            if model.adapter is not None and not Path(model.adapter).expanduser().exists():
                yield f"{where}.adapter", model.adapter, ("adapter_model.safetensors",)
    if any(spec.retrieves == "dense" for spec in systems):
        yield "table.embedder", config.comparison.embedder, _WEIGHTS


def _cached(name: str, file: str) -> bool:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:  # that nothing can be loaded is said by whoever loads
        return True
    try:
        return isinstance(try_to_load_from_cache(name, file), str)
    except HFValidationError:  # no name that the hub could have
        return False
