"""A fake vLLM for tests: see ``fake_engine.py``."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def fake_python(folder: Path) -> Path:
    """A program that can be called as the Python of an engine; ``folder`` is where it notes what happens."""
    folder.mkdir(parents=True, exist_ok=True)
    script, engine = folder / "python", Path(__file__).with_name("fake_engine.py")
    script.write_text(f'#!/bin/sh\nFAKE_ENGINE_DIR="{folder}" exec "{sys.executable}" "{engine}" "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def order(folder: Path, **orders: object) -> None:
    """What is to go wrong from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orders.json").write_text(json.dumps(orders))


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """What has happened, in order."""
    file = folder / "events.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [e for e in found if kind is None or e["event"] == kind]


def processes(folder: Path) -> set[int]:
    """Every process that the engine has had: servers, and what they started."""
    return {pid for e in events(folder, "start") for pid in (e["pid"], e["core"])}


def alive(pids: Iterable[int]) -> set[int]:
    """Those of them that run; one that is dead and not waited for does not."""
    return {pid for pid in pids if _runs(pid)}


def all_end(pids: Iterable[int], within_s: float) -> bool:
    """Whether all of them end in this time."""
    until = time.monotonic() + within_s
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pids)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return Path("/proc").exists() is False
    return state != "Z"


def save_described_model(folder: Path) -> str:
    """A model's folder without weights: all that is read of it by who does not load it."""
    from cowest.lab.tokenizer import build_tokenizer

    build_tokenizer(texts=50).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    return str(folder)
