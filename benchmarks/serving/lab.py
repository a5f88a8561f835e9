"""A finished lab run on the CPU: requests/s and time to first token, with batching on and off, for one client and for many."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.serving.client import Answer, Connection, request
from benchmarks.serving.processes import SERVER_CORE, Running, python, started
from cowest.assembly.build import build_task
from cowest.recipe.kept import kept_recipe


@contextmanager
def served(run: Path, batch_size: int | None) -> Iterator[Running]:
    """The run's aligned collaboration; ``batch_size`` in place of the recipe's."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        for entry in run.resolve().iterdir():
            if entry.name != "recipe.yaml":
                (copy / entry.name).symlink_to(entry)
        for side in ("weak", "strong") if batch_size else ():
            recipe[side]["batch_size"] = batch_size
        (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        words = python("cowest", "serve", str(copy), "--port", "0", "--systems", "collab_aligned,strong")
        env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with started([*words, "--draft-deadline-s", "60"], SERVER_CORE, copy / "serve.log", env) as running:
            yield running


async def _ask_all(port: int, model: str, questions: list[str], clients: int) -> list[Answer]:
    found: list[Answer] = []
    rest = iter(questions)

    async def work() -> None:
        connection = Connection(port)
        for question in rest:
            answer = await connection.ask(request(question, True, model, cowest={"details": True}))
            if answer.kind != "both":
                raise RuntimeError(f"an answer was {answer.kind}")
            found.append(answer)
        connection.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return found


def lab(run: Path) -> int:
    """Print a table. The last column is how long a whole answer took."""
    config = kept_recipe(run)
    name, single = next(iter(config.by_task().items()))
    questions = [example.input for example in build_task(single, name).examples("test")]
    model = f"{config.name}/{name}" if name else config.name
    print(f"{len(questions)} test queries of {model}, streamed; server on one core, one thread")
    print(f"{'batching':<9}{'clients':>8}{'req/s':>8}{'first p50 ms':>14}{'first p99 ms':>14}{'whole p50 ms':>14}")
    for batching, size in (("on", None), ("off", 1)):
        with served(run, size) as server:
            asyncio.run(_ask_all(server.port, model, questions[:16], 16))  # first use of the kernels
            for clients in (1, 16, 64):
                asked = questions if clients > 1 else questions[:60]
                began = time.perf_counter()
                answers = asyncio.run(_ask_all(server.port, model, asked, clients))
                seconds = time.perf_counter() - began
                first = sorted(1000 * answer.first_s for answer in answers)
                whole = statistics.median(1000 * answer.total_s for answer in answers)
                cells = f"{len(asked) / seconds:>8.1f}{statistics.median(first):>14.0f}{first[int(0.99 * len(first))]:>14.0f}"
                print(f"{batching:<9}{clients:>8}{cells}{whole:>14.0f}", flush=True)
    return 0
