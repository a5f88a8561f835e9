"""Expected scores in a run against an endpoint on loopback: what is asked, what is kept, and what the drafts are then worth."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from math import log
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import JsonValue
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe, records_of

from cowest.costs.estimate import estimate
from cowest.errors import ConfigError, StageError
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.run.store import RunDir
from cowest.types import Feedback, Refinement

LABELS = ("yes", "no", "maybe")
BY_LOGPROBS: dict[str, JsonValue] = {"expect": "logprobs"}
BY_SAMPLES: dict[str, JsonValue] = {"expect": "samples", "samples": 3}


class SureEndpoint(PaidEndpoint):
    """Tells log-probabilities: what it says has 0.5 and a part of the rest that its text's hash says, the others what is left."""

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        answer = json.loads((await super()._answer(request)).body or b"")  # type: ignore[arg-type]
        if body.get("logprobs"):
            for choice in answer["choices"]:
                content = choice["message"]["content"]
                choice["logprobs"] = {"content": [self._token(t, content) for t in re.findall(r"\s*\S+", content)]}
        return web.json_response(answer)

    def _token(self, token: str, content: str) -> dict[str, JsonValue]:
        said = token.strip()
        others = [label for label in LABELS if label != said] if said in LABELS else []
        p = 0.5 + probability(content)
        top: list[JsonValue] = [{"token": token, "logprob": log(p)}]
        top += [{"token": f" {label}", "logprob": log((1 - p) / 2)} for label in others]
        return {"token": token, "logprob": log(p), "top_logprobs": top}


def probability(content: str) -> float:
    return hashlib.sha256(content.encode()).digest()[0] / 1024


async def made(endpoint: PaidEndpoint, out: Path, feedback: dict[str, JsonValue], log_: Log | None = None) -> Path:
    async with endpoint.serve() as url:
        config = paid_recipe(url, feedback=feedback, evaluate={"queries": 1, "systems": ["strong"]})
        await run(config_from_dict(config), out, log_ or Log())
    return out


def strong(endpoint: PaidEndpoint) -> list[dict[str, JsonValue]]:
    return [body for body in map(json.loads, endpoint.answered) if body["model"] == "strong"]


def feedback_of(out: Path) -> list[Feedback]:
    return RunDir(out).file("feedback.jsonl", Feedback).load()


async def test_by_log_probabilities_drafts_differ_that_one_answer_cannot_tell_apart(tmp_path: Path) -> None:
    log_, plain, sure = Log(), SureEndpoint(), SureEndpoint()
    off = await made(plain, tmp_path / "off", {})
    out = await made(sure, tmp_path / "logprobs", BY_LOGPROBS, log_)
    assert len(strong(sure)) == len(strong(plain))  # no further call
    found = feedback_of(out)
    refined = {r.draft_id: r for r in RunDir(out).file("refinements.jsonl", Refinement).load()}
    for record in found:
        text = refined[record.draft_id].text or ""
        p = 0.5 + probability(text)
        assert record.refined.expected == pytest.approx(p if record.refined.value else (1 - p) / 2)
        assert record.solo.expected is not None and record.weak.expected is None
    counts, before = (RunDir(o).manifest().stages["pairs"].counts for o in (out, off))
    assert counts["queries_with_pairs"] > before["queries_with_pairs"] and counts["pairs"] > before["pairs"]
    assert counts["outcomes_differ"] == counts["outcomes_agree"] > 0  # above or below 1/2 is right or wrong
    assert RunDir(out).manifest().stages["feedback"].counts["expected"] == 30 + len(refined)
    assert any("a query; the signal orders" in line for line in log_.lines)


async def test_without_log_probabilities_the_run_ends_after_one_strong_call(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    for _ in range(2):  # the answer is known then, and not even asked for again
        with pytest.raises(StageError, match=r"no log-probabilities .*feedback\.expect: samples"):
            await made(endpoint, tmp_path, BY_LOGPROBS)
        assert len(strong(endpoint)) == 1
    await made(endpoint, tmp_path, {})
    assert all(f.refined.expected is None for f in feedback_of(tmp_path))


async def test_by_samples_as_many_calls_are_made_as_estimated_and_the_mean_counts(tmp_path: Path) -> None:
    config = config_from_dict(paid_recipe("http://127.0.0.1:9/v1", feedback=BY_SAMPLES))
    lines = {s.calls_for: s.calls for s in (await asyncio.to_thread(estimate, config, tmp_path / "no")).stages}
    assert (lines["strong alone"].low, lines["strong alone"].high) == (4 * 30, 4 * 30)
    assert (lines["refine drafts"].expected, lines["refine drafts"].high) == (4 * 90, 4 * 90)
    endpoint = PaidEndpoint()
    out = await made(endpoint, tmp_path / "run", BY_SAMPLES)
    assert len(strong(endpoint)) == 4 * (30 + 90) + 1
    refined = {r.draft_id: r for r in RunDir(out).file("refinements.jsonl", Refinement).load()}
    for record in feedback_of(out):
        answer = refined[record.draft_id]
        right = [s.text is not None and s.text.endswith(_right(record, answer)) for s in answer.samples]
        if record.refined.value:  # the reference is then known from the answer
            assert record.refined.expected == pytest.approx(sum(right) / 3)
    assert len({record.refined.expected for record in feedback_of(out)}) > 2
    again = await asyncio.to_thread(estimate, config, out)
    assert {s.calls_for: s.calls.high for s in again.stages if s.stage == "feedback"} == {
        "strong alone": 0,
        "refine drafts": 0,
    }


def _right(record: Feedback, answer: Refinement) -> str:
    return f"Answer: {record.refined.answer}" if answer.text else "nothing"


async def test_samples_do_not_depend_on_timing(tmp_path: Path) -> None:
    slow = await made(PaidEndpoint(0.02), tmp_path / "slow", BY_SAMPLES)
    fast = await made(PaidEndpoint(0.0), tmp_path / "fast", BY_SAMPLES)
    assert records_of(slow) == records_of(fast)


async def test_open_answers_and_judges_have_no_classes(tmp_path: Path) -> None:
    judge = paid_recipe("http://127.0.0.1:9/v1")["strong"]
    with pytest.raises(ConfigError, match=r"with feedback\.judge set it to samples"):
        await made(PaidEndpoint(), tmp_path, {"judge": judge, **BY_LOGPROBS})
