"""The interactions as rows of one table: the starter's files, a weak model that is trained here, a strong one behind HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, cowest_main, save_tiny_model, tiny_recipe

from cowest.assembly.opened import OpenModels
from cowest.cli.starter import write_starter
from cowest.costs.estimate import Estimate
from cowest.errors import ConfigError
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.systems.interactions.rows import INTERACTIONS
from cowest.table.estimate import estimate_table
from cowest.table.plan import make_plan
from cowest.table.results import TableResults, pools, results_of
from cowest.table.run import open_plan, run_table
from cowest.types import Message, Prediction, Sampling

ROWS: list[JsonValue] = ["strong", "collab", "collab_aligned", *(spec.name for spec in INTERACTIONS)]
N = 8


def reply(messages: Sequence[Message], sampling: Sampling) -> str:
    """By a hash; where a colleague can be asked and none was, some ask."""
    asked = "".join(m.content for m in messages)
    digest = hashlib.sha256(asked.encode()).digest()
    if "ASK: ..." in asked and len(messages) == 1 and digest[1] % 2:
        return "ASK: what is it for?"
    return f"Let me see.\nAnswer: {('yes', 'no', 'maybe')[digest[0] % 3]}"


def recipe(weak: str, url: str, data: Path, **changes: JsonValue) -> RunConfig:
    files: dict[str, JsonValue] = {s: str(data / f"{s}.jsonl") for s in ("train", "validation", "test")}
    # The tiny model's window is small: its turns are short.
    turns: JsonValue = {
        "revise": "{input} {draft} {critique}",
        "advise": "{input} {attempt}",
        "consulted": "{input} {question}",
    }
    served: JsonValue = {"kind": "openai", "model": "strong", "base_url": url, "api_key_env": None}
    beside: JsonValue = {"law": {"kind": "scripted", "default": "Answer: no"}, "far away": served}
    table: dict[str, JsonValue] = {"rows": ROWS, "samples": 3, "specialists": beside}
    return config_from_dict(
        tiny_recipe(
            weak,
            url,
            task={"kind": "jsonl", "labels": ["yes", "no", "maybe"], **files},
            prompts={"draft": "{input}", "interactions": turns},
            table=table | changes,
        )
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The starter's files, cut short."""
    write_starter(tmp_path / "starter")
    folder = tmp_path / "starter" / "data"
    for split, rows in (("train", 40), ("validation", N), ("test", N)):
        file = folder / f"{split}.jsonl"
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:rows]), encoding="utf-8")
    return folder


def table(weak: str, data: Path, out: Path, model: ScriptedChatModel) -> tuple[TableResults, Estimate, Estimate]:
    """Made, and what was estimated before and after."""

    async def go() -> tuple[TableResults, Estimate, Estimate]:
        async with serve(make_app(model, model_name="strong")) as url:
            config = recipe(weak, url, data)
            before = await asyncio.to_thread(estimate_table, config, out)
            plan = make_plan(config)
            await run_table(plan, out, Log())
            after = await asyncio.to_thread(estimate_table, config, out)
            return results_of(plan, pools(plan, open_plan(plan, out, Log(), offline=True))), before, after

    return asyncio.run(go())


@pytest.mark.slow
def test_a_whole_table_of_interactions(data: Path, tmp_path: Path) -> None:
    weak, out, model = save_tiny_model(tmp_path / "weak"), tmp_path / "table", ScriptedChatModel(reply)
    made, before, after = table(weak, data, out, model)
    (found,) = made.tables
    assert list(found.rows) == ROWS
    for name, row in found.rows.items():
        assert row.queries == N and row.metrics["accuracy"].n_failed == 0, name
    paid = len(model.requests)
    # After so short a training many drafts of the aligned model are the tuned one's: their requests are made once.
    assert before.calls.high / 2 < paid <= before.calls.high and after.calls.high == 0
    folder = next(out.rglob("rows"))

    def answers(name: str) -> list[Prediction]:
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [Prediction.model_validate_json(line) for line in lines]

    for name, calls in (("collab_critique", 4), ("collab_advise_aligned", 3), ("collab_drafts", 4)):
        assert {a.usage.calls for a in answers(name)} == {calls}, name
    assert {a.usage.calls for a in answers("collab_consult")} == {1, 3}
    assert all((a.draft is None) is (a.usage.calls == 1) for a in answers("collab_consult"))
    assert {a.usage.calls for a in answers("collab_specialists")} == {4}

    # A row that is made again is not paid for again, and one that was cut off goes on where it stopped.
    (folder / "collab_critique.jsonl").unlink()
    cut = folder / "collab_consult.jsonl"
    cut.write_text("".join(cut.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    again, _, _ = table(weak, data, out, model)
    assert len(model.requests) == paid
    assert again.tables[0].rows.keys() == found.rows.keys()
    for name in ("collab_critique", "collab_consult"):
        assert again.tables[0].rows[name].metrics == found.rows[name].metrics

    # Another number of questions is another row of that kind, and none of the others.
    async def more() -> list[str]:
        async with serve(make_app(model, model_name="strong")) as url:
            log = Log()
            await run_table(make_plan(recipe(weak, url, data, questions=1)), out, log)
            return [line for line in log.lines if "run again" in line]

    redone = asyncio.run(more())
    assert len(redone) == len(INTERACTIONS) and all("table.questions changed" in line for line in redone), redone


@pytest.mark.slow
async def test_a_specialist_may_be_a_model_on_this_machine_and_is_closed_with_the_others(
    data: Path, tmp_path: Path
) -> None:
    weak, out = save_tiny_model(tmp_path / "weak"), tmp_path / "out"
    config = recipe(weak, "http://127.0.0.1:9/v1", data, specialists={"own": {"kind": "local", "model": weak}})
    models = OpenModels(config, out, out / "answers.sqlite")
    own = models.specialists()["own"]
    assert models.specialists()["own"] is own
    asked = (Message(role="user", content="Is it safe?"),)
    said = [(await own.generate(asked, Sampling(max_tokens=8))).text for _ in range(2)]
    assert said[0] == said[1] and said[0].strip()
    await models.aclose()
    assert models.specialists()["own"] is not own
    await models.aclose()


def test_what_a_recipe_cannot_have_is_said_first(data: Path) -> None:
    def rows(*names: JsonValue, **changes: JsonValue) -> RunConfig:
        config = tiny_recipe("no/such/model", "http://127.0.0.1:1/v1", table={"rows": [*names]})
        return config_from_dict(config | changes)

    with pytest.raises(
        ConfigError, match=r"table\.rows: collab_advise is not possible here: a lab world's tiny models"
    ):
        make_plan(rows("collab_advise"))
    files: dict[str, JsonValue] = {s: str(data / f"{s}.jsonl") for s in ("train", "validation", "test")}
    with pytest.raises(
        ConfigError, match=r"table\.rows: collab_specialists is not possible here: table\.specialists names"
    ):
        make_plan(rows("collab_specialists", task={"kind": "jsonl", **files}))
    with pytest.raises(ConfigError, match=r"goes into the prompt"):
        recipe("w", "http://127.0.0.1:1/v1", data, specialists={"a\nb": {"kind": "scripted"}})


@pytest.mark.parametrize(
    ("name", "template", "mark"),
    [("revise", "{input} {draft}", "{critique}"), ("consult", "{input}", "ASK:"), ("several", "{drafts}", "{input}")],
)
def test_a_template_that_leaves_something_out_is_named(
    name: str,
    template: str,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "recipe.yaml"
    served: JsonValue = {"kind": "openai", "model": "any", "api_key_env": None}
    task: JsonValue = {"kind": "ifqa", "sample": True}
    interactions: JsonValue = {"interactions": {name: template}}
    file.write_text(json.dumps({"name": "r", "task": task, "weak": served, "strong": served, "prompts": interactions}))
    assert cowest_main(monkeypatch, "prompts", str(file), "collab_critique") == 2
    said = capsys.readouterr().err
    assert f"prompts.interactions.{name}: the template has no {mark}" in said


def test_prompts_show_every_turn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    models = {
        "collab_critique": ["weak (sft)", "strong", "weak (sft)", "strong"],
        "collab_advise_aligned": ["strong", "weak (aligned)", "strong"],
        "collab_consult": ["strong", "weak (sft)", "strong", "weak (sft)", "strong"],
        "collab_drafts": [*["weak (sft)"] * 5, "strong"],
    }
    for row, expected in models.items():
        assert cowest_main(monkeypatch, "prompts", "ifqa", row, "--json") == 0
        assert [one["model"] for one in json.loads(capsys.readouterr().out)] == expected
    assert cowest_main(monkeypatch, "prompts", "medicine", "collab_critique") == 2
    assert "lab world's tiny models" in capsys.readouterr().err
