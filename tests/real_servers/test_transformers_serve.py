"""`transformers serve`, run for real with the lab's strong model, as the strong side of a run (docs/servers.md)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log
from tests.paid_endpoint import paid_recipe

from cowest.assembly.places import LAB_WEIGHTS
from cowest.assembly.sources import build_model
from cowest.pipeline import run
from cowest.recipe.config import LocalModelConfig, OpenAIModelConfig, config_from_dict
from cowest.types import Message, Sampling

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(find_spec(name) for name in ("fastapi", "uvicorn", "openai")),
        reason="transformers[serving] is not installed: the tests on `transformers serve` DO NOT RUN",
    ),
]
FACTS = "Velmo is safe up to 62 mg. Kasti lowers limits by 20 mg. "
ASK = Message(role="user", content="May a patient with Kasti take 45 mg of Velmo?\nDraft: " + FACTS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIModelConfig]:
    """The lab's strong model behind `transformers serve`; its name is its path, as that server has it."""
    model = tmp_path_factory.mktemp("served") / "strong"
    shutil.copytree(LAB_WEIGHTS / "strong", model)
    settings = json.loads((model / "generation_config.json").read_text())
    # Without this the server decodes greedily, whatever temperature a request asks for.
    (model / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(model)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health")
        yield OpenAIModelConfig(
            kind="openai",
            model=str(model),
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key_env=None,
            concurrency=4,
            timeout_s=60,
        )
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(240):
        assert process.poll() is None, "transformers serve ended before it answered"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError("transformers serve did not come up in two minutes")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stream", [False, True])
async def test_it_answers_as_the_same_model_does_here(served: OpenAIModelConfig, stream: bool) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=64)
    here = build_model(LocalModelConfig(kind="local", model="lab:strong", device="cpu"))
    there = build_model(served.model_copy(update={"stream": stream}))
    try:
        expected = await here.generate([ASK], sampling)
        got = await there.generate([ASK], sampling)
    finally:
        await here.aclose()
        await there.aclose()
    assert got.text.strip() == expected.text.strip()
    assert got.usage.input_tokens > 0 and got.usage.output_tokens > 0


@pytest.mark.timeout(240)
def test_a_run_with_it_on_both_sides(served: OpenAIModelConfig, tmp_path: Path) -> None:
    model: JsonValue = json.loads(served.model_dump_json())
    short: JsonValue = {"temperature": 0.0, "max_tokens": 48}
    warm: JsonValue = {"temperature": 1.0, "max_tokens": 24}
    recipe = paid_recipe(served.base_url, weak=model, strong=model, feedback={"sampling": short})
    recipe |= {"draft": {"samples": 2, "queries": 8, "sampling": warm}, "evaluate": {"draft": short, "answer": short}}
    done = asyncio.run(run(config_from_dict(recipe), tmp_path / "run", Log()))
    assert done.bill is not None and done.bill.answered >= 8 + 8 + 12 and done.bill.failed == 0
    assert done.bill.estimated_calls == 0, "it counts tokens"
    assert done.results[""].systems["collab"].metrics["accuracy"].n == 12
