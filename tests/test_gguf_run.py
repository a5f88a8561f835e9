"""A run on a GGUF file: trained with LoRA, then the file and the run are moved, and all is reused, served from and merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.gguf_file import write_gguf
from tests.helpers import Log, Oracle, run_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from cowest.errors import ModelNotFoundError
from cowest.models.gguf import cached
from cowest.pipeline import export_weak
from cowest.run.identity import GGUF_MARK
from cowest.server.opening import open_served
from cowest.server.settings import Settings

pytestmark = pytest.mark.slow
SHARED: dict[str, JsonValue] = {
    "method": "lora",
    "batch_size": 4,
    "max_length": 768,
    "device": "cpu",
    "learning_rate": 1e-2,
}
TRAINING: dict[str, JsonValue] = {
    "sft": {**SHARED, "max_steps": 6},
    "align": {**SHARED, "max_steps": 2, "checkpoints": 1, "selection_queries": 4},
}


def test_a_run_on_a_file_goes_on_where_both_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COWEST_CACHE_DIR", str(tmp_path / "cache"))
    file, out, log = tmp_path / "weak.gguf", tmp_path / "run", Log()
    write_gguf(file)
    first = run_tiny(str(file), out, Oracle(), log, **TRAINING).results[""]
    assert set(log.verdicts.values()) >= {"run"}
    named = json.loads((out / "sft/model_ref.json").read_text())
    assert (named["base"], named["adapter"]) == (str(file), "sft/adapter")  # and not the cache's folder

    moved = file.rename(tmp_path / "elsewhere.gguf")
    run = out.rename(tmp_path / "renamed")
    shutil.rmtree(tmp_path / "cache")  # it can be made again
    again = Log()
    second = run_tiny(str(moved), run, Oracle(), again, **TRAINING).results[""]
    stages = {
        stage: why
        for stage, why in again.verdicts.items()
        if stage in ("sft", "sample", "feedback", "align", "evaluate")
    }
    kept = ("reused", "continued, to retry")  # a draft of so random a model may be empty, and is asked for again
    assert len(stages) == 5 and all(why.startswith(kept) for why in stages.values()), stages
    assert second.systems == first.systems

    merged = export_weak(run, "sft", tmp_path / "merged")
    assert cached(moved) is not None and not (tmp_path / "merged" / GGUF_MARK).exists()
    AutoModelForCausalLM.from_pretrained(merged.base, use_safetensors=True)
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(merged.base).chat_template
    assert open_served(run, Settings()).served

    write_gguf(moved, seed=1)  # other weights under the same name
    changed = Log()
    run_tiny(str(moved), run, Oracle(), changed, **TRAINING)
    assert changed.verdicts["sft"].startswith("run again, because weak.model changed from weak.gguf (")

    moved.write_bytes(moved.read_bytes()[:5000])
    untouched = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    with pytest.raises(ModelNotFoundError, match=r"elsewhere.gguf: this GGUF file is cut off"):
        run_tiny(str(moved), run, Oracle(), Log(), **TRAINING)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
