"""Python, system, memory, disk, devices and settings of this machine; torch is read about, not imported."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cowest.doctor.findings import Finding
from cowest.models.gguf import cache_folder
from cowest.models.models_dir import VARIABLE as MODELS_DIR
from cowest.run.machine import GIB, free_memory
from cowest.run.processor import bfloat16_instructions
from cowest.tasks.benchmark import DATA_DIR

LOWEST: Final = (3, 11)
TESTED: Final = (3, 11)
"""The newest Python that the tests have run with."""
LITTLE_DISK: Final = 5 * GIB
"""A run with a real weak model keeps some checkpoints of a few hundred MB."""
LITTLE_MEMORY: Final = 2 * GIB

FOLDERS: Final = {
    MODELS_DIR: "model files that stand in for hub names",
    DATA_DIR: "the paper's datasets",
    "COWEST_CACHE_DIR": "weights made of GGUF files",
    "HF_HOME": "the hub's cache",
}
SWITCHES: Final = {
    "HF_HUB_OFFLINE": "1: nothing is fetched from the hub",
    "CUDA_VISIBLE_DEVICES": "the GPUs that torch may see",
    "OMP_NUM_THREADS": "threads of a model on the CPU",
}
SECRETS: Final = {
    "HF_TOKEN": "gated models of the hub",
    "OPENAI_API_KEY": "the key of an endpoint, where a recipe names no other",
    "HTTPS_PROXY": "the proxy to endpoints",  # may hold a login
}


def machine() -> Iterator[Finding]:
    """Python, system, memory and processor."""
    yield _python()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(
        section="machine",
        name="system",
        state="ok" if sys.platform != "win32" else "note",
        said=f"{platform.system()} {platform.release()}, {platform.machine()}, {cores} cores",
        todo="managed engines (vllm, llamacpp) need WSL; docs/platforms.md" if sys.platform == "win32" else None,
    )
    free = free_memory()
    little = free is not None and free < LITTLE_MEMORY
    yield Finding(
        section="machine",
        name="memory",
        state="note" if free is None else "warning" if little else "ok",
        said="this system does not tell what is free" if free is None else f"{free / GIB:.1f} GiB free",
        todo="a model with 135 million parameters takes about 2 GiB to train; close something" if little else None,
    )
    found = sorted(bfloat16_instructions())
    yield Finding(
        section="machine",
        name="bfloat16",
        state="ok" if found else "note",
        said=f"the processor has {', '.join(found)}" if found else "not native to the processor: float32 is used there",
    )


def _python() -> Finding:
    version, said = sys.version_info[:2], f"{platform.python_version()} ({sys.executable})"
    if version < LOWEST:
        return Finding(
            section="machine", name="Python", state="broken", said=said, todo="cowest needs Python 3.11 or newer"
        )
    if version > TESTED:
        said += f"; the tests have run with {TESTED[0]}.{TESTED[1]}"
    return Finding(section="machine", name="Python", state="ok" if version == TESTED else "note", said=said)


def disk(runs: Path) -> Iterator[Finding]:
    """Room and permission where runs and caches are written."""
    for name, folder in (("runs", runs), ("cache", cache_folder())):
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            why = "cannot be written" if place.is_dir() else "is a file"
            yield Finding(
                section="disk",
                name=name,
                state="broken",
                said=f"{place} {why}",
                todo="work in a folder that may be written, or give --out"
                if name == "runs"
                else "set COWEST_CACHE_DIR",
            )
            continue
        free = shutil.disk_usage(place).free
        yield Finding(
            section="disk",
            name=name,
            state="ok" if free >= LITTLE_DISK else "warning",
            said=f"{free / 1e9:.1f} GB free at {folder}",
            todo=None if free >= LITTLE_DISK else "checkpoints may not fit; `cowest prune` frees what no run needs",
        )


def devices() -> Iterator[Finding]:
    """What a model on this machine can compute with, as far as it can be told without loading torch."""
    cards, cuda = _nvidia(), torch_build()
    if cuda is None:
        yield Finding(
            section="devices",
            name="torch",
            state="note",
            said="not installed: models behind endpoints only",
            todo="pip install 'cowest[local]'",
        )
    for card in cards:
        unseen = cuda == ""
        yield Finding(
            section="devices",
            name="CUDA",
            state="warning" if unseen else "ok" if cuda else "note",
            said=f"{card}; torch is built for the CPU and does not see it" if unseen else card,
            todo="install torch's CUDA build (pip uninstall torch, then pip install torch without a CPU index)"
            if unseen
            else None,
        )
    if cuda is None:
        return
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Finding(section="devices", name="MPS", state="ok", said="the GPU of this Mac")
    built = "without CUDA" if cuda == "" else f"for CUDA {cuda}"
    none = "" if cards else "; no NVIDIA card was found"
    yield Finding(section="devices", name="CPU", state="ok", said=f"torch is built {built}{none}")


def _nvidia() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def torch_build() -> str | None:
    """The CUDA version that the torch here is built for, '' without one; None where there is no torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)", text, re.MULTILINE)
    return match[1] if match else ""


def settings() -> Iterator[Finding]:
    """Environment variables: folders and switches with their values, keys and what may hold one without."""
    for name, what in FOLDERS.items():
        value = os.environ.get(name)
        missing = bool(value) and name in (MODELS_DIR, DATA_DIR) and not Path(value or "").expanduser().is_dir()
        yield Finding(
            section="settings",
            name=name,
            state="broken" if missing else "ok" if value else "note",
            said=f"{value}: no such folder" if missing else value or f"not set ({what})",
            todo="name a folder that is there, or unset it" if missing else None,
        )
    for name, what in SWITCHES.items():
        value = os.environ.get(name)
        yield Finding(section="settings", name=name, state="ok" if value else "note", said=value or f"not set ({what})")
    for name, what in SECRETS.items():
        there = bool(os.environ.get(name))
        yield Finding(
            section="settings",
            name=name,
            state="ok" if there else "note",
            said=f"{'set' if there else 'not set'} ({what})",
        )
