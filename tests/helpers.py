"""A loop small enough for a test: a tiny weak model, a small world, and a strong model behind HTTP that counts its calls."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
from pydantic import JsonValue

from cowest.cli.main import main
from cowest.errors import ModelCallError
from cowest.lab.task import lab_task
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel, ScriptedRequest
from cowest.pipeline import RunSummary, run
from cowest.recipe.config import LabTaskConfig, config_from_dict
from cowest.tasks.base import SimpleTask
from cowest.types import Completion, Example, Message, Sampling

WORLD: dict[str, JsonValue] = {"kind": "lab", "domain": "medicine", "entities": 12, "seed": 5}
SIZES: dict[str, JsonValue] = {"train": 40, "validation": 8, "test": 12}
QUERIES, SAMPLES = 12, 3


def question(id: str = "q1", text: str = "Is it safe?", references: tuple[str, ...] = ("yes",)) -> Example:
    """A yes/no question."""
    return Example(id=id, input=text, references=references, choices=("yes", "no"))


def world() -> SimpleTask:
    """The task of ``tiny_recipe``."""
    return lab_task(LabTaskConfig.model_validate(WORLD | SIZES), seed=0)


def save_tiny_model(folder: Path) -> str:
    """Save a randomly initialised Llama of two layers with the lab's tokenizer; returns its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cowest.lab.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(texts=500)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_recipe(weak: str, base_url: str, **changes: JsonValue) -> dict[str, JsonValue]:
    """A recipe that runs in seconds; ``changes`` replace whole sections."""
    short: dict[str, JsonValue] = {"temperature": 0.0, "max_tokens": 12}
    training: dict[str, JsonValue] = {
        "method": "full",
        "max_steps": 4,
        "batch_size": 4,
        "max_length": 128,
        "device": "cpu",
    }
    recipe: dict[str, JsonValue] = {
        "name": "tiny",
        "seed": 3,
        "task": WORLD | SIZES,
        "weak": {"kind": "local", "model": weak, "device": "cpu", "batch_size": 16},
        "strong": {
            "kind": "openai",
            "model": "strong",
            "base_url": base_url,
            "api_key_env": None,
            "concurrency": 2,
            "timeout_s": 20,
            "max_attempts": 1,
        },
        "sft": training | {"learning_rate": 1e-2, "max_steps": 60},
        "draft": {
            "samples": SAMPLES,
            "queries": QUERIES,
            "sampling": {"temperature": 1.0, "top_p": 0.8, "max_tokens": 12},
        },
        "align": training | {"learning_rate": 1e-3, "checkpoints": 2, "selection_queries": 8},
        "evaluate": {"draft": short, "answer": short},
    }
    return recipe | changes


class Oracle:
    """The strong model of the tests: knows every answer, and is right or wrong by a hash of what it is asked.

    Counts what it answered. ``hold_after`` answers it falls silent (``silent`` is set) until ``release``. ``more`` are answers to
    questions beyond the task's.
    """

    name = "strong"

    def __init__(
        self, fail: Sequence[ModelCallError | None] = (), more: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        task = world()
        self._answers = {e.input: e.references[0] for split in SIZES for e in task.examples(split)} | dict(more)
        self._labels = task.labels
        self._model = ScriptedChatModel(self._reply, fail=fail)
        self._open = asyncio.Event()
        self.hold_after: int | None = None
        self.silent = asyncio.Event()

    @property
    def requests(self) -> list[ScriptedRequest]:
        """All that was answered (or failed as scripted)."""
        return self._model.requests

    def release(self) -> None:
        """Answer again; what was held is lost, as with a client that has gone."""
        self.hold_after = None
        self._open.set()

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One answer."""
        if self.hold_after is not None and len(self.requests) >= self.hold_after:
            self.silent.set()
            await self._open.wait()
            raise ModelCallError("gone", "the client has gone")
        return await self._model.generate(messages, sampling)

    async def aclose(self) -> None:
        """Nothing to release."""

    def _reply(self, messages: Sequence[Message], sampling: Sampling) -> str:
        asked = messages[-1].content
        right = self._answers[asked.partition("\nDraft: ")[0]]
        wrong = next(label for label in self._labels if label != right)
        return f"Let me see.\nAnswer: {right if hashlib.sha256(asked.encode()).digest()[0] % 2 else wrong}"


class Log:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.starts: list[tuple[str, int | None, int]] = []

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        self.starts.append((label, total, done))

    def advance(self, n: int = 1) -> None: ...

    def finish(self) -> None: ...

    def info(self, text: str) -> None:
        self.lines.append(text)

    @property
    def verdicts(self) -> dict[str, str]:
        """Why each stage was run or reused."""
        said = [line.split(": ", 1) for line in self.lines if ": " in line]
        told = ("done in ", " pairs from ")
        return {stage: why for stage, why in said if not any(words in why for words in told)}


def run_tiny(weak: str, out: Path, oracle: Oracle, log: Log | None = None, **changes: JsonValue) -> RunSummary:
    """Run the tiny recipe against ``oracle`` over HTTP."""

    async def go() -> RunSummary:
        async with serve(make_app(oracle, model_name="strong")) as url:
            return await run(config_from_dict(tiny_recipe(weak, url, **changes)), out, log or Log())

    return asyncio.run(go())


@contextmanager
def unused_url() -> Iterator[str]:
    """The base URL of a port where nobody listens."""
    import socket

    with socket.socket() as taken:  # bound and not listening: a connection is refused, and no one else gets the port
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def cowest_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["cowest", *arguments])
    try:
        main()
    except SystemExit as stop:
        assert stop.code is None or isinstance(stop.code, int)
        return stop.code or 0
    return 0
