"""The processes of a benchmark: started on a core of their own where there are two, ended by their id."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER_CORE, OTHER_CORE = 0, 1
"""The server under test has core 0; the load generator and the backend share core 1."""


@dataclass
class Running:
    """A process and its base URL."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20


def pin(core: int) -> list[str]:
    """The words before a command that keep it on a core; none where there is one core only, or no taskset."""
    return ["taskset", "-c", str(core)] if (os.cpu_count() or 1) > 1 and shutil.which("taskset") else []


@contextmanager
def started(
    words: Sequence[str], core: int, log: Path | None = None, env: dict[str, str] | None = None, url: str | None = None
) -> Iterator[Running]:
    """A process that prints its base URL in its first line, or listens at ``url``; SIGTERM at the end."""
    err = log.open("w") if log else subprocess.DEVNULL
    process = subprocess.Popen(
        [*pin(core), *words], cwd=ROOT, env=os.environ | (env or {}), text=True, stderr=err,
        stdout=subprocess.PIPE if url is None else err,
    )  # fmt: skip
    try:
        if url is None:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
        else:
            _wait_for(url, process)
        if not url:
            raise RuntimeError(f"{' '.join(words)} did not start: {log.read_text() if log else ''}")
        yield Running(process, url)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[str], most_s: float = 120.0) -> None:
    until = time.monotonic() + most_s
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"nothing answers at {url}")


def python(*words: str) -> list[str]:
    """This interpreter with a module."""
    return [sys.executable, "-m", *words]


def backend(delay_ms: float = 0.0, port: int = 0) -> list[str]:
    """The strong endpoint: always the same answer."""
    return python("benchmarks.slow_endpoint", "--delay-ms", str(delay_ms), "--port", str(port))


def scripted_server(strong_url: str) -> list[str]:
    """The server under test, with a scripted weak model."""
    return python("benchmarks.serving.scripted_server", "--strong", strong_url)


@contextmanager
def litellm(folder: Path, strong_url: str, port: int = 8190) -> Iterator[Running]:
    """LiteLLM's proxy from an environment of its own, made on first use: one worker, no database, no log of requests."""
    python_ = folder / "bin" / "python"
    if not python_.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python_, "-m", "pip", "install", "-q", "litellm[proxy]"], check=True)
    model = {"model": "openai/m", "api_base": strong_url, "api_key": "none"}
    config = folder / "bench.yaml"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": "bench", "litellm_params": model}]}))
    env = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    words = [str(folder / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--num_workers", "1", "--telemetry", "False"]
    with started(words, SERVER_CORE, folder / "bench.log", env, f"http://127.0.0.1:{port}/v1") as running:
        yield running
