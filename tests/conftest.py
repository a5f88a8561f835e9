"""What every test shares: no hub, no telemetry, one thread per process, and the optional real data and real model."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

# Before any test module can import torch, transformers or datasets: each of them reads these only once, at import.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
    MPLBACKEND="Agg",
)
# Two torch threads beside another busy process were measured up to 45 times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: no time limit on an example, nor on making one up.
settings.register_profile("cowest", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cowest")

DATASETS = ("ifqa", "prosocial", "pubmedqa")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with samples of the paper's datasets, one folder each; COWEST_DATA_DIR names it.

    Unset, the test skips and warns. Set but wrong, it fails: someone wanted these tests to run.
    """
    named = os.environ.get("COWEST_DATA_DIR")
    if not named:
        message = "COWEST_DATA_DIR is not set: the tests on samples of the paper's datasets DO NOT RUN"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    folder = Path(named)
    if absent := [name for name in DATASETS if not (folder / name).is_dir()]:
        pytest.fail(f"COWEST_DATA_DIR={named} has no folder {', '.join(absent)}")
    return folder


SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def smollm() -> str:
    """The hub name of a really pretrained model, whose file is in COWEST_MODELS_DIR (smollm2-135m.gguf).

    Unset, the test skips and warns. Set but without it, it fails. ``model_path(smollm)`` is its folder.
    """
    from cowest.models.models_dir import VARIABLE, stand_in

    if not os.environ.get(VARIABLE):
        message = f"{VARIABLE} is not set: the tests on a really pretrained model DO NOT RUN"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    if stand_in(SMOLLM) is None:
        pytest.fail(f"{VARIABLE}={os.environ[VARIABLE]} has no file for {SMOLLM}, such as smollm2-135m.gguf")
    return SMOLLM
