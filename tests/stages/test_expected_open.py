"""Open answers are worth how likely the reference is where the answer stands: what is read, what is kept, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from math import exp, log
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD, Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe, records_of

from cowest.assembly.objects import NOTHING, Objects
from cowest.costs.estimate import estimate
from cowest.errors import ConfigError, ModelCallError, StageError
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.run.store import RunDir
from cowest.types import Completion, Feedback, Given, Message, Refinement, Sampling, TokenLogprob, Usage

OPEN = WORLD | SIZES | {"domain": "counterfactuals"}
BY_LOGPROBS: dict[str, JsonValue] = {"expect": "logprobs"}


def chance(*parts: str) -> float:
    """In (0, 1), the same for the same texts."""
    return (hashlib.sha256("\n".join(parts).encode()).digest()[0] + 1) / 300


class Reader:
    """A strong model here: gives the same answer to all, and reads what it is given in two tokens, the second of which is sure."""

    def __init__(self, reads: bool = True, says: str = "I think.\nAnswer: year 1900", broken: str = "") -> None:
        self.name, self._reads, self._says, self._broken = "reader", reads, says, broken
        self.asked: list[Sampling] = []

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.asked.append(sampling)
        await asyncio.sleep(0.001 * chance(messages[-1].content))
        if not isinstance(sampling, Given):
            return Completion(text=self._says, usage=Usage(calls=1, input_tokens=9, output_tokens=4))
        if self._broken and self._broken in messages[-1].content:
            raise ModelCallError("too_long", "no room")
        p = chance(messages[-1].content, sampling.given)
        tokens = (TokenLogprob(token=sampling.given, logprob=log(p)), TokenLogprob(token="", logprob=0.0))
        usage = Usage(calls=1, input_tokens=12, output_tokens=2)
        return Completion(text=sampling.given, usage=usage, logprobs=tokens if self._reads else None)

    @property
    def readings(self) -> list[Given]:
        return [sampling for sampling in self.asked if isinstance(sampling, Given)]

    async def aclose(self) -> None: ...


def recipe(url: str, **changes: JsonValue) -> dict[str, JsonValue]:
    mine: dict[str, JsonValue] = {"kind": "object", "name": "reader"}
    rest: dict[str, JsonValue] = {"task": OPEN, "strong": mine, "evaluate": {"queries": 1, "systems": ["strong"]}}
    return paid_recipe(url, **(rest | {"feedback": BY_LOGPROBS} | changes))


async def made(reader: Reader | None, out: Path, **changes: JsonValue) -> Path:
    objects = NOTHING if reader is None else Objects(strong=reader)
    async with PaidEndpoint().serve() as url:
        await run(config_from_dict(recipe(url, **changes)), out, Log(), objects)
    return out


def answers(out: Path) -> list[Refinement]:
    return [r for name in ("solo", "refinements") for r in RunDir(out).file(f"{name}.jsonl", Refinement).load()]


async def test_drafts_that_leave_the_answer_as_it_is_are_told_apart(tmp_path: Path) -> None:
    reader, plain = Reader(), Reader()
    out = await made(reader, tmp_path / "logprobs")
    off = await made(plain, tmp_path / "off", feedback={})
    assert len(reader.asked) == 2 * len(plain.asked) - 1 and not plain.readings  # the last one is evaluate's
    assert all(r.before == "I think.\nAnswer: " and r.given != "year 1900" for r in reader.readings)
    refined = {r.draft_id: r for r in answers(out)}
    for record in RunDir(out).file("feedback.jsonl", Feedback).load():
        (one,) = refined[record.draft_id].likelihoods
        assert one.value is not None and record.refined.expected == one.value and 0 < one.value < 1
        assert record.refined.value == 0 and record.weak.expected is None and record.solo.expected is not None
    assert all(r.usage.calls == 2 for r in answers(out) if r.usage.calls)
    counts, before = (RunDir(o).manifest().stages["pairs"].counts for o in (out, off))
    assert before["pairs"] == 0 and counts["queries_with_pairs"] > 20
    told = RunDir(out).manifest().stages["feedback"].counts
    assert told["expected"] == 30 + 90 and told["expected_not_told"] == 0
    assert '"likelihoods"' not in (off / "refinements.jsonl").read_text()


async def test_the_best_reference_counts_per_token_and_readings_are_counted(tmp_path: Path) -> None:
    reader = Reader()
    task: dict[str, JsonValue] = {"kind": "jsonl"}
    for split, names in (("train", range(20)), ("validation", range(20, 22)), ("test", range(22, 24))):
        path = tmp_path / f"{split}.jsonl"
        rows = [{"id": str(i), "input": f"Who {i}?", "references": [f"Ann {i}", f"A. {i}", f"Ann {i} "]} for i in names]
        path.write_text("\n".join(map(json.dumps, rows)))
        task[split] = str(path)
    change: dict[str, JsonValue] = {"task": task, "draft": {"samples": 3, "queries": 20}}
    config = config_from_dict(recipe("http://127.0.0.1:9/v1", **change))
    lines = {s.calls_for: s.calls for s in (await asyncio.to_thread(estimate, config, tmp_path / "no")).stages}
    assert lines["read references"].high == 2 * (20 + 60)  # two different references
    out = await made(reader, tmp_path / "run", **change)
    assert len(reader.readings) == 2 * (20 + sum(r.usage.calls > 0 for r in answers(out) if r.draft_id))
    for record in RunDir(out).file("feedback.jsonl", Feedback).load():
        (found,) = [r for r in answers(out) if r.draft_id == record.draft_id]
        values = [one.value or 0 for one in found.likelihoods]
        assert len(values) == 2 and record.refined.expected == max(values)
    draft = RunDir(out).file("refinements.jsonl", Refinement).load()[0]
    asked = [exp(0.5 * log(chance(m, one.reference))) for one in draft.likelihoods for m in _prompts(out, draft)]
    assert [one.value for one in draft.likelihoods] == pytest.approx(asked)
    left = {s.calls_for: s for s in (await asyncio.to_thread(estimate, config, out)).stages}
    assert left["read references"].calls.high == 0 and left["read references"].already == 2 * (20 + 60)


def _prompts(out: Path, answer: Refinement) -> list[str]:
    drafts = [json.loads(line) for line in (out / "drafts.jsonl").read_text().splitlines()]
    return [f"Who {d['example_id']}?\nDraft: {d['text']}" for d in drafts if d["id"] == answer.draft_id]


async def test_an_answer_that_names_nothing_and_a_reading_that_fails_keep_the_plain_score(tmp_path: Path) -> None:
    silent = Reader(says="I would rather not say anything about it.\nNor about that.")
    out = await made(silent, tmp_path / "silent")
    assert not silent.readings and all(not r.likelihoods for r in answers(out))
    assert RunDir(out).manifest().stages["feedback"].counts["expected_not_told"] == 120
    broken = Reader(broken="Draft:")
    out = await made(broken, tmp_path / "broken")
    refined = [r for r in answers(out) if r.draft_id]
    assert all(r.likelihoods[0].error == "too_long: no room" for r in refined)
    records = RunDir(out).file("feedback.jsonl", Feedback).load()
    assert all(f.refined.expected is None and f.refined.worth == 0 and f.solo.expected is not None for f in records)


async def test_what_is_read_does_not_depend_on_timing_or_a_stop(tmp_path: Path) -> None:
    once = await made(Reader(), tmp_path / "once")
    again = tmp_path / "again"
    await made(Reader(), again)
    file = again / "refinements.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:40]))  # as a kill leaves it
    rest = Reader()
    await made(rest, again)
    assert 0 < len(rest.readings) <= 50 and records_of(again) == records_of(once)


async def test_models_that_cannot_are_refused_before_a_call_or_after_one_reading(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    async with endpoint.serve() as url:
        config = paid_recipe(url, task=OPEN, feedback=BY_LOGPROBS)
        with pytest.raises(
            ConfigError, match=r"answers of task counterfactuals are open.*strong cannot: set it to samples"
        ):
            await run(config_from_dict(config), tmp_path / "endpoint", Log())
    assert not endpoint.answered
    blind = Reader(reads=False)
    with pytest.raises(StageError, match=r"no log-probabilities of a text that it is given.*feedback\.expect: samples"):
        await made(blind, tmp_path / "blind")
    assert len(blind.readings) == 1
    with pytest.raises(ConfigError, match=r"feedback\.sampling\.given"):
        config_from_dict(recipe("http://127.0.0.1:9/v1", feedback={"sampling": {"given": "x"}}))
    judge = paid_recipe("http://127.0.0.1:9/v1")["strong"]
    with pytest.raises(ConfigError, match=r"with feedback\.judge set it to samples"):
        await made(Reader(), tmp_path / "judge", feedback={"judge": judge, **BY_LOGPROBS})
