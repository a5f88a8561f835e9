"""A model behind a server that cowest starts; the server is ``fake_engine.py``, a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.engines.fakes import alive, all_end, events, fake_python, order, processes, save_described_model
from tests.helpers import Log

from cowest.engines.child import Child
from cowest.engines.managed import managed
from cowest.errors import ConfigError, MissingExtraError, StageError
from cowest.recipe.models import EngineOptions
from cowest.types import Message, Sampling

ASKED = (Message(role="user", content="Is it safe?"),)
SMALL = EngineOptions(kv_cache_gib=0.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_described_model(tmp_path_factory.mktemp("model") / "tiny")


async def test_it_is_started_told_of_and_ended(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-not-for-the-log")
    monkeypatch.setattr("cowest.engines.servers.TELL_S", 0.2)
    engine, log = tmp_path / "engine", Log()
    order(engine, slow_s=0.8)
    async with managed(
        "vllm", model, python=fake_python(engine), options=SMALL, logs=tmp_path / "logs", reporter=log
    ) as opened:
        assert any("vllm: vllm is starting" in line and "INFO loading weights" in line for line in log.lines)
        assert "is ready after" in log.lines[-1]
        answers = [await opened.generate(ASKED, Sampling(temperature=1.0, seed=s, logprobs=0)) for s in (1, 2, 1)]
        assert answers[0].text == answers[2].text
        assert answers[0].logprobs and answers[0].logprobs[0].logprob == -0.5
        assert answers[0].usage.input_tokens == 3 and answers[0].usage.output_tokens == 6
        assert opened.name == "tiny"
        assert alive(processes(engine)) == processes(engine)
    assert all_end(processes(engine), 1)
    start, asked = events(engine, "start")[0], events(engine, "asked")[0]
    assert "SOME_API_KEY" not in start["variables"] and "OMP_NUM_THREADS" not in start["variables"]
    assert start["arguments"][start["arguments"].index("--max-model-len") + 1] == "8192"
    assert {"stop_token_ids", "chat_template"} <= set(asked["extra"])  # asked as it was trained
    assert "INFO loading weights" in (tmp_path / "logs/vllm.log").read_text()


async def test_a_server_that_dies_is_started_again(model: str, tmp_path: Path) -> None:
    engine, log = tmp_path / "engine", Log()
    order(engine, die_at=3)
    async with managed("vllm", model, python=fake_python(engine), options=SMALL, logs=tmp_path, reporter=log) as opened:
        texts = await asyncio.gather(*(opened.generate(ASKED, Sampling(temperature=1.0, seed=s)) for s in range(8)))
        assert len(texts) == 8
        os.killpg(os.getpgid(events(engine, "start")[-1]["pid"]), signal.SIGKILL)  # all of it, the guard too
        assert (await opened.generate(ASKED, Sampling())).text
    assert len(events(engine, "start")) == 3
    told = [line for line in log.lines if "is started again" in line]
    assert (
        "(1 of 3)" in told[0] and "RuntimeError: the engine core is out of order" in told[0] and "status 9" in told[0]
    )
    assert all_end(processes(engine), 1)


async def test_one_that_keeps_dying_is_given_up_with_its_last_lines(model: str, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    order(engine, die_at=1, die_always=True)
    async with managed("vllm", model, python=fake_python(engine), options=SMALL, logs=tmp_path) as opened:
        with pytest.raises(
            StageError, match=r"vllm died 4 times \(status 9\).*vllm\.log, ends: .*out of order"
        ) as told:
            await opened.generate(ASKED, Sampling())
        assert "\n" not in str(told.value) and len(events(engine, "start")) == 4
        with pytest.raises(StageError, match="died 4 times"):  # nobody waits for it again
            await opened.generate(ASKED, Sampling())
        assert len(events(engine, "start")) == 4
    assert all_end(processes(engine), 1)


async def test_a_port_that_somebody_else_took(model: str, tmp_path: Path) -> None:
    engine, python = tmp_path / "engine", fake_python(tmp_path / "engine")
    order(engine, port_taken=2)
    async with managed("vllm", model, python=python, options=SMALL, logs=tmp_path) as opened:
        assert (await opened.generate(ASKED, Sampling())).text
    ports = [e["arguments"][e["arguments"].index("--port") + 1] for e in events(engine, "start")]
    assert len(set(ports)) == 3
    order(engine, port_taken=99)
    with pytest.raises(StageError, match="found no free port in 3 attempts; see"):
        async with managed("vllm", model, python=python, options=SMALL, logs=tmp_path):
            pass


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["torch.OutOfMemoryError: CUDA out of memory."], "too little memory: set engine_options.kv_cache_gib"),
        (
            ["Traceback (most recent call last):", "ModuleNotFoundError: No module named 'triton'"],
            "-m pip install triton",
        ),
        (["ValueError: unsupported architecture", "RuntimeError: see root cause above"], "ValueError: unsupported"),
    ],
)
async def test_one_that_does_not_start_says_why_in_one_line(
    model: str, tmp_path: Path, lines: list[str], told: str
) -> None:
    engine = tmp_path / "engine"
    order(engine, fails=lines)
    with pytest.raises(StageError, match="vllm did not start") as error:
        async with managed("vllm", model, python=fake_python(engine), options=SMALL, logs=tmp_path):
            pass
    assert told in str(error.value) and "\n" not in str(error.value) and len(events(engine, "start")) == 1


async def test_one_that_is_silent_is_not_waited_for_for_ever(model: str, tmp_path: Path) -> None:
    engine, slow = tmp_path / "engine", EngineOptions(kv_cache_gib=0.1, start_timeout_s=0.5)
    order(engine, slow_s=60)
    with pytest.raises(StageError, match=r"did not answer within .* s \(engine_options\.start_timeout_s\)"):
        async with managed("vllm", model, python=fake_python(engine), options=slow, logs=tmp_path):
            pass
    assert all_end(processes(engine), 1)


async def test_what_is_missing_is_said_before_anything_starts(model: str, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    order(engine, package=False)
    with pytest.raises(
        MissingExtraError, match=r"model\.engine: vllm is not installed in .*/python: python3 -m venv ~/vllm && "
    ):
        async with managed("vllm", model, python=fake_python(engine)):
            pass
    with pytest.raises(ConfigError, match=r"model\.engine_python: /nowhere/python: there is no such program"):
        async with managed("vllm", model, python=Path("/nowhere/python")):
            pass
    with pytest.raises(ConfigError, match="engine: llamacpp serves GGUF files"):
        async with managed("llamacpp", model, python=fake_python(engine)):
            pass
    assert not events(engine)


async def test_memory_is_looked_at_before_it_is_taken(model: str, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    order(engine, version="1.0+cpu")
    with pytest.raises(
        StageError, match=r"needs about 4001\.5 GiB of memory .* GiB are free; .*set engine_options.kv_cache_gib lower"
    ):
        async with managed(
            "vllm", model, python=fake_python(engine), options=EngineOptions(kv_cache_gib=4000), logs=tmp_path
        ):
            pass
    assert not events(engine)


ALONE = """
import asyncio, os, sys
from pathlib import Path
from cowest.engines.child import Child
from cowest.engines.managed import managed
from cowest.recipe.models import EngineOptions

async def go():
    python, model, logs, how = sys.argv[1:]
    async with managed("vllm", model, python=Path(python), options=EngineOptions(kv_cache_gib=0.1), logs=Path(logs)):
        if how == "fork" and os.fork() == 0:  # it has our end of the guard's pipe, and outlives us
            os.read(os.open(logs + "/fifo", os.O_RDONLY), 1)
            os._exit(0)
        print("up", flush=True)
        await asyncio.sleep(60)

asyncio.run(go())
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_killed_parent_leaves_no_orphan(how: str, model: str, tmp_path: Path) -> None:
    if how == "fork" and sys.platform != "linux":
        pytest.skip("only Linux tells of a parent's end beside the pipe")
    engine, script = tmp_path / "engine", tmp_path / "alone.py"
    script.write_text(ALONE)
    os.mkfifo(tmp_path / "fifo")
    parent = subprocess.Popen(
        [sys.executable, str(script), str(fake_python(engine)), model, str(tmp_path), how],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert parent.stdout is not None
    with parent:
        assert parent.stdout.readline() == b"up\n"
        assert len(alive(processes(engine))) == 2
        parent.kill()
        parent.wait()
        assert all_end(processes(engine), 8)
        if how == "fork":
            os.close(os.open(tmp_path / "fifo", os.O_WRONLY))  # lets the fork go


def test_a_thread_that_ends_ends_no_server(tmp_path: Path) -> None:
    """The kernel takes the thread that started a process for its parent."""
    engine = tmp_path / "engine"

    async def go() -> None:
        with ThreadPoolExecutor(1) as pool:
            command = [str(fake_python(engine)), "-m", "x", "--served-model-name", "base", "--port", "0"]
            child = pool.submit(Child, command, {"VLLM_API_KEY": "k"}, tmp_path / "log").result()
        until = time.monotonic() + 5
        while not events(engine, "start") and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert child.code is None
        await child.end()

    asyncio.run(go())
    assert all_end(processes(engine), 1)
