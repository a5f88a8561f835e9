"""``cowest serve``'s server with a scripted weak model in the process: what is left is the server's own work.

python -m benchmarks.serving.scripted_server --strong http://127.0.0.1:PORT/v1      prints its base URL; SIGTERM ends it
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from cowest.cli.main import relax_gc
from cowest.collaboration.prompts import DefaultFrames
from cowest.models.secrets import Secrets
from cowest.recipe.config import OpenAIModelConfig
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.breaker import Breaker
from cowest.server.chat_backend import ChatBackend
from cowest.server.drafter import Drafter
from cowest.server.gateway import Served
from cowest.server.metrics import Metrics
from cowest.server.runner import log_to_stderr, run_server
from cowest.server.settings import Settings
from cowest.server.upstream import HttpBackend
from cowest.types import Completion, Message, Sampling, Usage

DRAFT = Completion(
    text="Velmo is safe up to 62 mg. Kasti lowers limits by 20 mg. 62 - 20 = 42, and 45 is above it.\nAnswer: no",
    usage=Usage(calls=1, input_tokens=31, output_tokens=40),
)
CONCURRENCY = 1024


class ScriptedWeak:
    """Always the same draft, and nothing remembered: a served model must not grow."""

    name = "scripted"

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        return DRAFT

    async def aclose(self) -> None: ...


def make_server(strong_url: str, settings: Settings) -> tuple[Server, HttpBackend]:
    """``bench`` is the collaboration, ``bench.strong`` and ``bench.weak`` are the models alone."""
    breakers = {
        side: Breaker(side, settings.breaker_failures, settings.breaker_cooldown_s) for side in ("weak", "strong")
    }
    metrics, frames = Metrics(), DefaultFrames("Answer the question.")
    config = OpenAIModelConfig(kind="openai", model="m", base_url=strong_url, api_key_env=None, concurrency=CONCURRENCY)
    strong = HttpBackend(
        config,
        Secrets(),
        Sampling(max_tokens=256),
        breakers["strong"],
        attempted=metrics.attempted,
        backoff_s=settings.backoff_s,
    )
    drafter = Drafter(
        ScriptedWeak(), Sampling(max_tokens=64), breakers["weak"],
        deadline_s=settings.draft_deadline_s, max_chars=settings.max_draft_chars,
    )  # fmt: skip
    alone = ChatBackend(ScriptedWeak(), Sampling(max_tokens=64), breakers["weak"])
    served = {
        "bench": Served("bench", frames, strong, drafter=drafter, strong_id="bench.strong"),
        "bench.strong": Served("bench.strong", frames, strong),
        "bench.weak": Served("bench.weak", frames, alone, "weak_alone"),
    }
    return Server(served, settings, Keys(), breakers, metrics), strong


async def main(strong_url: str, port: int) -> None:
    relax_gc()  # as the command does
    log_to_stderr(as_json=False)  # a line for each request, as in service
    server, strong = make_server(strong_url, Settings(concurrency=CONCURRENCY))
    try:
        await run_server(server, "127.0.0.1", port, 5.0, lambda url: print(url, flush=True))
    finally:
        await strong.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strong", required=True)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(main(given.strong, given.port))
