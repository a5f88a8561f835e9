"""GRPO in a run: what the strong model is asked, that nothing is paid for twice, and what becomes of calls that fail."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model, tiny_recipe

from cowest.assembly.prepare import prepare
from cowest.costs.estimate import estimate
from cowest.errors import BudgetExceededError, ConfigError, ModelCallError, StageError
from cowest.models.endpoint import make_app, serve
from cowest.pipeline import run, stages_of
from cowest.recipe.config import config_from_dict
from cowest.stages.choosing import Selection
from cowest.types import Draft, Feedback, Refinement

pytestmark = pytest.mark.slow
STEPS, GROUP, QUERIES = 6, 3, 2


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


def online(**changes: JsonValue) -> dict[str, JsonValue]:
    """The tiny recipe's section ``align`` with GRPO."""
    section = tiny_recipe("unused", "http://127.0.0.1:9/v1")["align"]
    assert isinstance(section, dict)
    own: dict[str, JsonValue] = {"objective": "grpo", "max_steps": STEPS, "group": GROUP, "batch_size": QUERIES}
    return section | own | {"checkpoint_every": 2} | changes


def asked_with_draft(oracle: Oracle) -> list[str]:
    return [r.messages[-1].content for r in oracle.requests if "\nDraft: " in r.messages[-1].content]


def counts(out: Path) -> dict[str, int]:
    found = json.loads((out / "manifest.json").read_text())["stages"]["align"]["counts"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def finished(weak: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Oracle, Log]:
    out, oracle, log = tmp_path_factory.mktemp("runs") / "grpo", Oracle(), Log()
    run_tiny(weak, out, oracle, log, align=online())
    return out, oracle, log


def test_a_run_has_no_stages_in_vain_and_each_different_draft_is_asked_about_once(
    finished: tuple[Path, Oracle, Log],
) -> None:
    out, oracle, log = finished
    assert [stage for stage in log.verdicts if stage in ("sft", "sample", "feedback", "pairs", "align", "evaluate")] == [
        "sft", "align", "evaluate",
    ]  # fmt: skip
    drafts = [Draft.model_validate_json(x) for x in (out / "align/drafts.jsonl").open()]
    refined = [Refinement.model_validate_json(x) for x in (out / "align/refinements.jsonl").open()]
    scores = [Feedback.model_validate_json(x) for x in (out / "align/feedback.jsonl").open()]
    assert [d.id for d in drafts] == [r.draft_id for r in refined] == [f.draft_id for f in scores]
    assert len({(d.example_id, d.text, d.truncated) for d in drafts}) == len(drafts)
    assert max(Counter(r.model_dump_json() for r in oracle.requests).values()) == 1
    found = counts(out)
    assert found["drafts_drawn"] == STEPS * GROUP * QUERIES >= found["drafts"] == len(drafts) > QUERIES * GROUP
    assert found["groups"] == STEPS * QUERIES and found["drafts_unscored"] == 0
    assert found["solo"] == len({d.example_id for d in drafts})
    chosen = Selection.model_validate_json((out / "align/selection.json").read_bytes())
    assert [c.step for c in chosen.checkpoints] == [0, 3, 6] and chosen.skipped is None
    assert "drafts drawn" in (out / "report.html").read_text()
    rows = [json.loads(line) for line in (out / "align/log.jsonl").open()]
    assert len(rows) == STEPS and {"reward", "kl", "groups_alike", "unscored"} <= rows[0].keys()


def test_a_stopped_training_goes_on_and_pays_for_nothing_twice(
    finished: tuple[Path, Oracle, Log], weak: str, tmp_path: Path
) -> None:
    whole, first = finished[0], finished[1]
    oracle, out = Oracle(), tmp_path / "run"
    oracle.hold_after = 15  # in the third step: a checkpoint of the second is there

    async def go() -> None:
        async with serve(make_app(oracle, model_name="strong")) as url:
            config = config_from_dict(tiny_recipe(weak, url, align=online()))
            running = asyncio.ensure_future(run(config, out, Log()))
            await oracle.silent.wait()
            running.cancel()
            oracle.release()
            with pytest.raises(asyncio.CancelledError):
                await running
            before = len(oracle.requests)
            assert before < len(first.requests)
            await run(config, out, Log())

    asyncio.run(go())
    asked = Counter((tuple(r.messages), r.sampling.model_dump_json()) for r in oracle.requests)
    assert max(asked.values()) == 1
    assert sorted(asked_with_draft(oracle)) == sorted(asked_with_draft(first))
    texts = [[Draft.model_validate_json(x).id for x in (run_ / "align/drafts.jsonl").open()] for run_ in (whole, out)]
    assert texts[0] == texts[1]


def test_a_call_that_fails_is_no_reward_of_zero(weak: str, tmp_path: Path) -> None:
    failures: Sequence[ModelCallError | None] = [None] * 4 + [ModelCallError("refusal", "I will not say")] * 3
    oracle = Oracle(fail=failures)
    run_tiny(weak, tmp_path, oracle, align=online(max_steps=2, checkpoints=1), pairs={"signal": "outcome"})
    scores = [Feedback.model_validate_json(x) for x in (tmp_path / "align/feedback.jsonl").open()]
    found = counts(tmp_path)
    assert sum(f.refined.value is None for f in scores) == found["refined_failed"] == found["unscored"] == 3
    assert 3 <= found["drafts_unscored"] < found["drafts_drawn"], (
        "equal drafts of a step share the call, and its failure"
    )
    assert not (tmp_path / "align/solo.jsonl").read_text(), "the signal has no need of them"


def test_an_endpoint_that_is_down_ends_it(weak: str, tmp_path: Path) -> None:
    oracle = Oracle(fail=[ModelCallError("http_500", "out of order")] * 500)
    with pytest.raises(StageError, match=r"reward drafts: the first .* calls all failed"):
        run_tiny(weak, tmp_path, oracle, align=online())


def test_a_budget_stops_it_with_what_was_paid_for_kept(weak: str, tmp_path: Path) -> None:
    oracle = Oracle()
    with pytest.raises(BudgetExceededError, match=r"reward drafts: \d+ drafts scored\. budget_calls"):
        run_tiny(weak, tmp_path, oracle, align=online(), budget_calls=12)
    assert len(oracle.requests) <= 12
    run_tiny(weak, tmp_path, oracle, align=online())
    assert max(Counter((tuple(r.messages), r.sampling.model_dump_json()) for r in oracle.requests).values()) == 1


def test_the_estimate_counts_its_calls(finished: tuple[Path, Oracle, Log], weak: str, tmp_path: Path) -> None:
    config = config_from_dict(tiny_recipe(weak, "http://127.0.0.1:9/v1", align=online()))
    rows = {row.calls_for: row for row in estimate(config, tmp_path).stages if row.stage == "align"}
    refine = rows["refine drafts in training"].calls
    assert (refine.low, refine.expected, refine.high) == (12, STEPS * GROUP * QUERIES, STEPS * GROUP * QUERIES)
    assert rows["strong alone"].calls.high == 12
    assert rows["drafts in training"].calls.expected == STEPS * GROUP * QUERIES


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"draft": {"sampling": {"temperature": 0.0}}}, "at draft.sampling.temperature 0 they are all the same"),
        ({"rounds": {"most": 2}}, "draws new drafts at every step, in one round"),
        ({"align": online(group=1)}, "align.group"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_paid(
    changes: dict[str, JsonValue], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        prepare(
            config_from_dict(tiny_recipe("org/model", "http://127.0.0.1:9/v1", align=online()) | changes),
            tmp_path,
            Log(),
        )


def test_what_the_rewards_follow_from_makes_it_stale() -> None:
    def stale(**changes: JsonValue) -> bool:
        one, other = (
            prepare(config_from_dict(tiny_recipe("org/model", "http://127.0.0.1:9/v1", **c)), Path("unused"), Log())[0]
            for c in ({"align": online()}, {"align": online()} | changes)
        )
        stage = next(s for s in stages_of(one.config) if s.name == "align")
        return stage.depends(one).values != stage.depends(other).values

    assert not stale()
    assert stale(pairs={"signal": "outcome"}) and stale(feedback={"metric": "accuracy"})
    assert stale(align=online(group=4)) and not stale(pairs={"max_per_query": 2})
