"""The guard's rows in a table: their stages, what is shared, what is paid, and what is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.guard_runs import CALIBRATION, TASK, TEST, guarded_recipe
from tests.helpers import Log, tiny_recipe
from tests.paid_endpoint import PaidEndpoint

from cowest.assembly.prepare import prepare
from cowest.assembly.stand_ins import stand_in_guard
from cowest.assembly.systems import Retrievers
from cowest.collaboration.guard.policy import Guard
from cowest.errors import CowestError
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.systems.registry import find_systems
from cowest.table.estimate import estimate_table
from cowest.table.plan import make_plan
from cowest.table.results import TableResults, pools, results_of
from cowest.table.run import open_plan, run_table, stages_for

pytest.importorskip("sklearn")
NOWHERE = "http://127.0.0.1:9/v1"
ROWS: list[JsonValue] = ["weak", "strong", "collab", "guarded", "cascade", "cascade@loose"]
TABLE: JsonValue = {"rows": ROWS, "variants": {"loose": {"guard.risk": 0.5}}, "baseline": "strong"}


def recipe(url: str, **changes: JsonValue) -> RunConfig:
    plain: JsonValue = {"systems": ["weak", "strong"]}
    return config_from_dict(guarded_recipe(url, evaluate=plain, table=TABLE, **changes))


async def table(endpoint: PaidEndpoint, out: Path, log: Log) -> TableResults:
    async with endpoint.serve() as url:
        plan = make_plan(recipe(url))
        await run_table(plan, out, log)
        return results_of(plan, pools(plan, open_plan(plan, out, Log(), offline=True)))


async def test_rows_share_one_calibration_and_cost_what_was_estimated(tmp_path: Path) -> None:
    before = await asyncio.to_thread(estimate_table, recipe(NOWHERE), tmp_path)
    calibration = {s.calls_for: s.calls for s in before.stages if s.stage == "calibrate"}
    assert (
        calibration["strong alone"].high == calibration["refine drafts"].high == CALIBRATION
    )  # once for both variants
    assert not any(s.stage in ("sample", "feedback") for s in before.stages)
    endpoint, log = PaidEndpoint(logprobs=True), Log()
    found = await table(endpoint, tmp_path, log)
    (one,) = found.tables
    assert list(one.rows) == ROWS and all(row.metrics["accuracy"].n == TEST for row in one.rows.values())
    assert max(Counter(endpoint.answered).values()) == 1
    assert before.calls.low <= len(endpoint.answered) <= before.calls.high
    assert sum(": calibrate: run" in line for line in log.lines) == 1
    assert any("calibrate: reused from main" in line for line in log.lines)
    folders = next(path for path in tmp_path.iterdir() if path.is_dir() and (path / "main").is_dir())
    risks = {
        name: Guard.model_validate_json((folders / name / "guard/guard.json").read_bytes()).risk
        for name in ("main", "loose")
    }
    assert risks == {"main": 0.2, "loose": 0.5}
    assert one.rows["guarded"].feedback_calls == 2 * CALIBRATION and one.rows["collab"].feedback_calls == 0

    paid, again = len(endpoint.answered), Log()
    assert (await table(endpoint, tmp_path, again)).tables == found.tables
    assert len(endpoint.answered) == paid
    after = await asyncio.to_thread(estimate_table, recipe(NOWHERE), tmp_path)
    assert after.calls.high == 0


def test_a_variant_of_cascade_is_a_cascade() -> None:
    (spec,) = find_systems(["cascade@loose"], "x", {"loose": {"guard.risk": 0.5}})
    assert (spec.name, spec.needs, spec.variant) == ("cascade@loose", "guard", "loose")
    made = stand_in_guard(recipe(NOWHERE), sure=1.0)
    one = made.model_copy(update={"cascade": made.guarded.model_copy(update={"calls": 0.5})})
    names = ("guarded", "cascade", "guarded@loose", "cascade@loose")
    assert [one.certificate(name).calls for name in names] == [0.0, 0.5, 0.0, 0.5]


TRAINED = ["sft", "sample", "feedback", "pairs", "align"]


@pytest.mark.parametrize(
    ("rows", "changes", "stages"),
    [
        (["guarded"], {}, [*TRAINED, "calibrate", "guard"]),
        (["weak", "cascade"], {"align": "off"}, ["sft", "calibrate", "guard"]),
        (["guarded"], {"align": {"objective": "grpo"}}, ["sft", "align", "calibrate", "guard"]),
        (["weak"], {}, ["sft"]),
        (["collab_aligned"], {}, TRAINED),
        (["strong"], {}, []),
        (["guarded"], {"weak": guarded_recipe(NOWHERE)["weak"]}, ["calibrate", "guard"]),
    ],
)
@pytest.mark.parametrize("named", [["weak"], ["weak", "guarded"]])  # whatever the recipe's own systems are
def test_the_guards_stages_are_after_the_last_alignment(
    rows: list[str], changes: dict[str, JsonValue], stages: list[str], named: list[JsonValue], tmp_path: Path
) -> None:
    evaluate: JsonValue = {"systems": named}
    config = config_from_dict(tiny_recipe("lab:weak", NOWHERE, task=TASK, evaluate=evaluate) | changes)
    (context,) = prepare(config, tmp_path, Log(), offline=True)
    specs = find_systems(rows, "x")
    found = stages_for(specs, Retrievers(), context)
    assert [stage.name for stage in found] == [*stages, *(f"row {name}" for name in rows)]
    written = {name for stage in found for name in stage.writes}
    assert {name for stage in found for name in stage.reads} <= written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": TASK | {"calibration": 0}}, "questions are left to calibrate on"),
        ({"feedback": {"judge": {"kind": "openai", "model": "judge", "api_key_env": None}}}, "its answers judged"),
    ],
)
def test_a_table_that_can_have_no_guard_is_refused(changes: dict[str, JsonValue], message: str, tmp_path: Path) -> None:
    with pytest.raises(CowestError, match=message):
        open_plan(make_plan(recipe(NOWHERE, **changes)), tmp_path, Log())
