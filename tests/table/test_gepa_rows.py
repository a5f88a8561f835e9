"""The rows of optimised prompts in a table: their stages, what is shared, and what their cost says."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.gepa_runs import BETTER, CALLS, ROWS, answering_by, gepa_recipe
from tests.helpers import Log, save_tiny_model, tiny_recipe
from tests.paid_endpoint import PaidEndpoint

from cowest.assembly.prepare import prepare
from cowest.assembly.systems import Retrievers
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.systems.optimised import optimised_in
from cowest.systems.registry import find_systems
from cowest.table.estimate import estimate_table
from cowest.table.plan import make_plan
from cowest.table.results import TableResults, pools, results_of
from cowest.table.run import open_plan, run_table, stages_for
from cowest.table.show import messages_of
from cowest.types import Message, Sampling

pytest.importorskip("gepa")
NOWHERE = "http://127.0.0.1:9/v1"
PLAIN: JsonValue = {"systems": ["weak", "strong"]}
PROMPTS: JsonValue = {
    "draft": "{input}",
    "solo": "{instruction}\n{input}",
    "refine": "{instruction}\n{input}\nDraft: {draft}",
}
TRAINED = ["sft", "sample", "feedback", "pairs", "align"]


async def table(config: RunConfig, out: Path, log: Log) -> TableResults:
    plan = make_plan(config)
    await run_table(plan, out, log)
    return results_of(plan, pools(plan, open_plan(plan, out, Log(), offline=True)))


async def test_rows_of_a_served_pair_share_what_they_ask_and_cost_what_was_estimated(tmp_path: Path) -> None:
    endpoint, log = PaidEndpoint(0, replies=answering_by(f"```\n{BETTER}\n```")), Log()
    rows: JsonValue = {"rows": ROWS, "gepa": {"calls": CALLS}, "baseline": "strong"}
    out = tmp_path / "table"
    before = await asyncio.to_thread(
        estimate_table, config_from_dict(gepa_recipe(NOWHERE, tmp_path, evaluate=PLAIN, table=rows)), out
    )
    async with endpoint.serve() as url:
        config = config_from_dict(gepa_recipe(url, tmp_path, evaluate=PLAIN, table=rows))
        (one,) = (await table(config, out, log)).tables
        assert before.calls.low <= len(endpoint.answered) <= before.calls.high
        assert max(Counter(endpoint.answered).values()) == 1
        assert not any("feedback" in line for line in log.lines)  # no row of these is aligned
        assert {name: row.metrics["accuracy"].mean for name, row in one.rows.items()} == {
            "strong": 0.5, "strong_gepa": 1.0, "collab": 0.5, "collab_gepa": 1.0,
        }  # fmt: skip
        main = next(out.glob("*/main"))
        asked = {name: optimised_in(main, name).calls for name in ("strong_gepa", "collab_gepa")}
        assert {name: row.feedback_calls for name, row in one.rows.items()} == {"strong": 0, "collab": 0} | asked
        (shown, *_) = await messages_of(str(out), "strong_gepa", 0, None, [])
        assert BETTER in shown.messages[-1].content
        paid = len(endpoint.answered)
        await table(config, out, Log())
        assert len(endpoint.answered) == paid


@pytest.mark.parametrize(
    ("rows", "changes", "stages"),
    [
        (["strong_gepa"], {}, ["gepa strong_gepa"]),
        (["collab_gepa"], {}, ["sft", "gepa collab_gepa"]),
        (["strong_gepa", "collab_aligned"], {}, [*TRAINED, "gepa strong_gepa"]),
        (["collab_gepa_aligned"], {}, [*TRAINED, "gepa collab_gepa_aligned"]),
        (["strong_gepa", "collab_gepa_aligned"], {"align": {"objective": "grpo"}},
         ["sft", "align", "gepa strong_gepa", "gepa collab_gepa_aligned"]),
        (["strong"], {}, []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", [["weak"], ["weak", "strong_gepa"]])  # whatever the recipe's own systems are
def test_a_prompts_stage_is_after_what_it_needs(
    rows: list[str], changes: dict[str, JsonValue], stages: list[str], named: list[JsonValue], tmp_path: Path
) -> None:
    evaluate: JsonValue = {"systems": named}
    config = config_from_dict(tiny_recipe("lab:weak", NOWHERE, prompts=PROMPTS, evaluate=evaluate) | changes)
    (context,) = prepare(config, tmp_path, Log(), offline=True)
    found = stages_for(find_systems(rows, "x"), Retrievers(), context)
    assert [stage.name for stage in found] == [*stages, *(f"row {name}" for name in rows)]
    written = {name for stage in found for name in stage.writes}
    assert {name for stage in found for name in stage.reads} <= written


def _reply(messages: Sequence[Message], sampling: Sampling) -> str:
    text = messages[-1].content
    if text.startswith("I gave an assistant"):
        return "Answer in one word."
    return f"Let me see.\nAnswer: {('yes', 'no', 'maybe')[hashlib.sha256(text.encode()).digest()[0] % 3]}"


@pytest.mark.slow
async def test_with_a_trained_weak_model_each_row_has_as_many_calls_as_the_feedback(tmp_path: Path) -> None:
    weak = save_tiny_model(tmp_path / "weak")
    rows: JsonValue = {"rows": ["strong_gepa", "collab_gepa", "collab_gepa_aligned", "collab_aligned"]}
    async with serve(make_app(ScriptedChatModel(_reply), model_name="strong")) as url:
        made = tiny_recipe(weak, url, prompts=PROMPTS, table=rows)
        assert isinstance(made["sft"], dict)
        config, log = config_from_dict(made | {"sft": made["sft"] | {"max_steps": 20}}), Log()
        (one,) = (await table(config, tmp_path / "table", log)).tables
    feedback = one.rows["collab_aligned"].feedback_calls
    assert feedback
    for name, more in (("strong_gepa", 0), ("collab_gepa", 0), ("collab_gepa_aligned", feedback)):
        calls = one.rows[name].feedback_calls
        assert calls is not None and more + feedback - 8 <= calls <= more + feedback, name
        assert any(line.startswith(f"seed-3 main: gepa {name}: ") for line in log.lines), log.lines
