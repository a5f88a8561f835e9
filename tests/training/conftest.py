"""A tiny Llama with the lab's tokenizer, and data for it."""

from __future__ import annotations

import pytest
from tests.helpers import save_tiny_model

from cowest.training.sft import SftRow
from cowest.types import Message, ModelRef, PreferencePair

END = 4
"""The id of ``<end>``, which ends a turn and a text of the lab's tokenizer."""


class Ticker:
    """A reporter that counts, and that can pull the plug at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.starts: list[tuple[str, int | None, int]] = []
        self.told: list[str] = []
        self.ticks = 0
        self.finished = 0
        self._stop_at = stop_at

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        self.starts.append((label, total, done))

    def advance(self, n: int = 1) -> None:
        self.ticks += n
        if self.ticks == self._stop_at:
            raise KeyboardInterrupt

    def finish(self) -> None:
        self.finished += 1

    def info(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return ModelRef(base=save_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def rows() -> list[SftRow]:
    return [
        SftRow(
            prompt=(Message(role="user", content=f"May a patient take {i} mg of Velarin?" + " Please say." * (i % 3)),),
            completion=f"The limit is {i + 7} mg. Answer: {'yes' if i % 2 else 'no'}",
        )
        for i in range(22)
    ]


@pytest.fixture(scope="session")
def pairs() -> list[PreferencePair]:
    return [
        PreferencePair(
            example_id=str(i),
            prompt=(Message(role="user", content=f"May a patient take {i} mg of Velarin?"),),
            chosen=(Message(role="assistant", content=f"The limit is {i + 7} mg. Answer: yes"),),
            rejected=(Message(role="assistant", content="Answer: no" + ", it may not" * (i % 3)),),
            chosen_gain=1.0,
            rejected_gain=0.0,
        )
        for i in range(14)
    ]
