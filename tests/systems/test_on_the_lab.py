"""Every system with the lab's real models on 20 questions: it runs, within the window, and counts what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cowest.assembly.places import model_path
from cowest.lab.frames import LabBaselineFrames, LabFrames
from cowest.lab.task import lab_task
from cowest.models.local import LocalChatModel
from cowest.models.tokens import token_counter
from cowest.models.window import Window
from cowest.protocols import System
from cowest.recipe.config import LabTaskConfig
from cowest.retrieval.bm25 import Bm25Retriever
from cowest.retrieval.documents import documents_of
from cowest.systems.best_of_k import BestOfK
from cowest.systems.flare import Flare
from cowest.systems.retrieval import Retrieval
from cowest.systems.self_rag import SelfRag
from cowest.systems.self_refine import SelfRefine
from cowest.systems.single import SingleCall, with_shots
from cowest.systems.supericl import SuperIcl
from cowest.systems.votes import SelfConsistency
from cowest.tasks.base import SimpleTask
from cowest.types import ModelRef, Prediction, Sampling

pytestmark = pytest.mark.slow
FRAMES, BASELINE = LabFrames(), LabBaselineFrames()
GREEDY, WARM = Sampling(max_tokens=96), Sampling(max_tokens=96, temperature=0.8)


@dataclass(frozen=True)
class Parts:
    task: SimpleTask
    weak: LocalChatModel
    strong: LocalChatModel
    search: Bm25Retriever
    window: Window


@pytest.fixture(scope="module")
def parts() -> Parts:
    config = LabTaskConfig.model_validate(
        {"kind": "lab", "domain": "medicine", "seed": 11, "train": 200, "validation": 4, "test": 20}
    )
    task = lab_task(config, 0)
    weak, strong = (
        LocalChatModel(ModelRef(base=model_path(f"lab:{role}")), device="cpu") for role in ("weak", "strong")
    )
    count, _ = token_counter(model_path("lab:strong"))
    return Parts(task, weak, strong, Bm25Retriever(documents_of(task)), Window(count, 512 - 96))


def few_shot(p: Parts, shots: int, name: str) -> System:
    train = p.task.examples("train")[:shots]
    ask = with_shots(BASELINE.zero_shot, [(BASELINE.zero_shot(e), p.task.target(e)) for e in train])
    return SingleCall(p.strong, ask, GREEDY, name, p.window)


BUILD: dict[str, Callable[[Parts], System]] = {
    "weak": lambda p: SingleCall(p.weak, FRAMES.draft, GREEDY, "weak"),
    "strong": lambda p: SingleCall(p.strong, BASELINE.chain_of_thought, GREEDY, "strong"),
    "few_shot": lambda p: few_shot(p, 2, "few_shot"),
    "many_shot": lambda p: few_shot(p, 40, "many_shot"),
    "self_consistency": lambda p: SelfConsistency(
        p.strong, BASELINE.chain_of_thought, p.task.extract, WARM, 3, 0, "self_consistency"
    ),
    "self_refine": lambda p: SelfRefine(
        p.strong, BASELINE.chain_of_thought, BASELINE.self_refine, GREEDY, "self_refine", p.window
    ),
    "bm25": lambda p: Retrieval(p.strong, p.search, BASELINE.chain_of_thought, GREEDY, 2, "bm25", p.window),
    "bm25_50": lambda p: Retrieval(p.strong, p.search, BASELINE.chain_of_thought, GREEDY, 50, "bm25_50", p.window),
    "flare": lambda p: Flare(
        p.strong, p.search, BASELINE.chain_of_thought, GREEDY, 2, 0.6, 2, "flare", p.window
    ),
    "self_rag": lambda p: SelfRag(
        p.strong, p.search, BASELINE.chain_of_thought, BASELINE, GREEDY, 2, "self_rag", p.window
    ),
    "supericl": lambda p: SuperIcl(
        p.weak, p.strong, FRAMES.draft, BASELINE.predicted, p.task.extract, GREEDY, GREEDY, "supericl", p.window
    ),
    "best_of_k": lambda p: BestOfK(
        p.weak, p.strong, FRAMES, BASELINE.choose, WARM, GREEDY, 3, 0, "best_of_k", p.window
    ),
}  # fmt: skip
CALLS = {  # the fewest and the most calls a query
    "self_consistency": (3, 3), "self_refine": (2, 2), "flare": (1, 3), "self_rag": (2, 7), "supericl": (2, 2),
    "best_of_k": (4, 5),
}  # fmt: skip
WITH_DRAFT = {"supericl", "best_of_k", "self_refine"}
CUT = {"many_shot", "bm25_50"}


@pytest.mark.parametrize("name", BUILD)
def test_it_answers(parts: Parts, name: str) -> None:
    system = BUILD[name](parts)
    queries = parts.task.examples("test")

    async def all_answers() -> list[Prediction]:
        return await asyncio.gather(*(system.answer(query) for query in queries))

    predictions = asyncio.run(all_answers())
    assert [(p.example_id, p.system) for p in predictions] == [(q.id, name) for q in queries]
    assert [p.error for p in predictions if p.text is None] == []
    least, most = CALLS.get(name, (1, 1))
    assert all(least <= p.usage.calls <= most for p in predictions)
    assert all(p.usage.input_tokens > 0 and p.usage.output_tokens > 0 and p.latency_s > 0 for p in predictions)
    assert all((p.draft is not None) == (name in WITH_DRAFT) for p in predictions)
    assert all(p.truncated_context for p in predictions) == (name in CUT)
    right = sum(parts.task.extract(p.text or "", q) in q.references for p, q in zip(predictions, queries, strict=True))
    calls = sum(p.usage.calls for p in predictions)
    print(
        f"{name}: {right} of {len(queries)} right, {calls} calls, {sum(p.truncated_context for p in predictions)} cut"
    )
