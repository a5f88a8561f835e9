"""The recipes on docs/local-models.md are valid: each block, as the models of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.engines.fakes import fake_python, save_described_model
from tests.gguf_file import write_gguf

from cowest.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs/local-models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_its_recipes() -> None:
    assert len(BLOCKS) == 6
    for other in ("llamacpp", "vllm"):
        assert any(f"engine: {other}" in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_recipe_of_the_page_is_valid(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sections: dict[str, Any] = yaml.safe_load(block)
    python = fake_python(tmp_path / "engine")
    for section in sections.values():
        if section["kind"] == "local":  # what is not on this machine is stood in for; every setting is the page's
            section["engine_python"] = str(python)
            section["model"] = str(tmp_path / "model") if section["engine"] == "vllm" else str(tmp_path / "model.gguf")
    save_described_model(tmp_path / "model")
    write_gguf(tmp_path / "model.gguf")
    recipe = {
        "name": "page",
        "task": {"kind": "lab", "domain": "medicine"},
        "weak": {"kind": "local", "model": "lab:weak"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **sections}))
    monkeypatch.setattr("sys.argv", ["cowest", "validate", str(tmp_path / "recipe.yaml")])
    try:
        main()
    except SystemExit as end:
        assert not end.code, capsys.readouterr().err
