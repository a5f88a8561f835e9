"""Prompts optimised by the library gepa, over HTTP: what is found, what it costs, what stops it, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from pydantic import JsonValue
from tests.gepa_runs import (
    BETTER,
    CALLS,
    INSTRUCTION,
    ROWS,
    TEST,
    WORD,
    answering_by,
    gepa_recipe,
    gepa_run,
)
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint

from cowest.assembly import systems
from cowest.assembly.opened import most_at_risk
from cowest.assembly.prepare import prepare
from cowest.costs.estimate import estimate
from cowest.errors import BudgetExceededError, ConfigError, DataError, MissingExtraError, StageError
from cowest.recipe.config import config_from_dict
from cowest.server.opening import open_served
from cowest.server.settings import Settings
from cowest.table.show import messages_of

pytest.importorskip("gepa")
FENCED = f"Sure, here it is:\n```\n{BETTER}\n```"
ALONE: JsonValue = {"systems": ["strong", "strong_gepa"]}
NOWHERE = "http://127.0.0.1:9/v1"
FILES = ("gepa/strong_gepa.json", "gepa/strong_gepa.jsonl", "gepa/collab_gepa.json")


def finding(delay_s: float = 0.0) -> PaidEndpoint:
    return PaidEndpoint(delay_s, replies=answering_by(FENCED))


async def test_the_word_that_makes_it_right_is_found_and_costs_what_was_estimated(tmp_path: Path) -> None:
    out, endpoint, log = tmp_path / "run", finding(), Log()
    config = config_from_dict(gepa_recipe(NOWHERE, tmp_path))
    before = await asyncio.to_thread(estimate, config, out)
    summary, found = await gepa_run(endpoint, out, log)
    assert {name: (one.own, one.instruction, one.ended) for name, one in found.items()} == dict.fromkeys(
        ("strong_gepa", "collab_gepa"), (INSTRUCTION, BETTER, "all right")
    )
    means = {name: system.metrics["accuracy"].mean for name, system in summary.results[""].systems.items()}
    assert means["strong_gepa"] == means["collab_gepa"] == 1.0 and means["strong"] == means["collab"] == 0.5
    assert all(one.calls <= CALLS and 0 < one.reflections < one.calls and one.usage.cost_usd for one in found.values())
    assert max(Counter(endpoint.answered).values()) == 1  # the task's own instruction was asked by the feedback
    lines = {s.calls_for: s.calls for s in before.stages if s.stage == "gepa"}
    assert lines["strong_gepa answers"].high + lines["strong_gepa reflections"].high == CALLS
    assert before.calls.low <= len(endpoint.answered) <= before.calls.high
    assert any("-> 100.0 on" in line for line in log.lines)
    again = Log()
    await gepa_run(endpoint, out, again)
    assert "reused" in again.verdicts["gepa strong_gepa"] and max(Counter(endpoint.answered).values()) == 1
    after = await asyncio.to_thread(estimate, config, out)
    assert after.calls.high == 0
    (shown,) = await messages_of(str(out), "strong_gepa", 0, None, [])
    assert WORD in shown.messages[-1].content


async def test_no_question_of_validation_or_test_is_in_a_search(tmp_path: Path) -> None:
    out = tmp_path / "run"
    await gepa_run(finding(), out)
    asked = {json.loads(line)["example_id"] for line in (out / "gepa/collab_gepa.jsonl").read_text().splitlines()}
    config = config_from_dict(gepa_recipe(NOWHERE, tmp_path))
    task = prepare(config, out, Log(), offline=True)[0].task
    assert asked - {""} <= {e.id for e in task.examples("train")}


async def test_one_seed_makes_one_search(tmp_path: Path) -> None:
    searches = []
    for name in ("a", "b"):
        endpoint = finding()
        await gepa_run(endpoint, tmp_path / name / "run", evaluate=ALONE)
        rows = (tmp_path / name / "run/gepa/strong_gepa.jsonl").read_text().splitlines()
        searches.append(([json.loads(row)["key"] for row in rows], sorted(endpoint.answered)))
    assert searches[0] == searches[1]


@pytest.mark.parametrize(
    ("proposal", "refused"),
    [
        ("```\n\n```", True),
        ("```\n" + f"{WORD} " * 1000 + "\n```", True),
        (" <draft> {input} {draft} {instruction} </draft>", False),
    ],
)
async def test_a_reflecting_model_that_talks_rubbish_leaves_the_prompt(
    proposal: str, refused: bool, tmp_path: Path
) -> None:
    endpoint, log = PaidEndpoint(0, replies=answering_by(proposal)), Log()
    _, found = await gepa_run(endpoint, tmp_path / "run", log, evaluate=ALONE)
    one = found["strong_gepa"]
    assert one.instruction == INSTRUCTION and one.score == one.own_score and one.calls <= CALLS
    assert bool(one.refused) == refused
    assert any("the task's own instruction stays" in line for line in log.lines)
    with_it = [body for body in endpoint.answered if "{draft} {instruction}" in body and "I gave" not in body]
    assert all("(draft> {input}" in body for body in with_it) and bool(with_it) == ("{draft}" in proposal)


@pytest.mark.parametrize("calls", [16, 33])
async def test_the_calls_are_kept_to_the_last_one(calls: int, tmp_path: Path) -> None:
    endpoint, gepa = PaidEndpoint(0, replies=answering_by("nonsense")), dict[str, JsonValue](calls=calls)
    _, found = await gepa_run(endpoint, tmp_path / "run", evaluate=ALONE, table={"gepa": gepa})
    one = found["strong_gepa"]
    assert calls - 8 <= one.calls <= calls and one.ended == "calls" and one.instruction == INSTRUCTION


async def test_unset_the_calls_are_those_of_the_feedback(tmp_path: Path) -> None:
    endpoint, log = PaidEndpoint(0, replies=answering_by("nonsense")), Log()
    await gepa_run(endpoint, tmp_path / "run", log, evaluate=ALONE, table={})
    stages = json.loads((tmp_path / "run/manifest.json").read_text())["stages"]
    counts = stages["feedback"]["counts"]
    assert dict((label, total) for label, total, _ in log.starts)["gepa strong_gepa"] == (
        counts["solo"] + counts["refined"] - counts["refined_by_shared_draft"]
    )


async def test_an_empty_budget_ends_it_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    whole = finding()
    await gepa_run(whole, tmp_path / "whole/run")
    endpoint, out = finding(), tmp_path / "poor/run"
    said = ""
    for budget in (len(whole.answered) - 50, len(whole.answered) - 40):
        try:
            await gepa_run(endpoint, out, budget_calls=budget)
        except BudgetExceededError as error:
            said += str(error)
    await gepa_run(endpoint, out, budget_calls=len(whole.answered))
    assert "gepa collab_gepa: " in said
    assert sorted(endpoint.answered) == sorted(whole.answered)
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole/run" / name).read_bytes()


async def test_a_failed_call_stops_it_and_is_made_again(tmp_path: Path) -> None:
    class Falling(PaidEndpoint):
        down = False

        async def _answer(self, request: web.Request) -> web.Response:
            if self.down and WORD in await request.text():
                return web.json_response({"error": {"message": "no such key"}}, status=401)
            return await super()._answer(request)

    endpoint, out = Falling(0, replies=answering_by(FENCED)), tmp_path / "run"
    endpoint.down = True
    with pytest.raises(StageError, match="gepa strong_gepa: a call failed; run again to continue: http_401"):
        await gepa_run(endpoint, out, evaluate=ALONE)
    endpoint.down = False
    _, found = await gepa_run(endpoint, out, evaluate=ALONE)
    assert found["strong_gepa"].instruction == BETTER and max(Counter(endpoint.answered).values()) == 1


async def test_a_reflecting_model_that_refuses_is_told_of(tmp_path: Path) -> None:
    class Refusing(PaidEndpoint):
        async def _answer(self, request: web.Request) -> web.Response:
            if "I gave an assistant" not in await request.text():
                return await super()._answer(request)
            choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}
            usage = {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}
            return web.json_response({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    log, endpoint = Log(), Refusing(0, replies=answering_by(FENCED))
    summary, found = await gepa_run(endpoint, tmp_path / "run", log, evaluate=ALONE)
    assert found["strong_gepa"].instruction == INSTRUCTION
    (warning,) = summary.results[""].stages["gepa strong_gepa"].warnings
    assert "reflections failed; the last one: content_filter" in warning


async def test_a_model_of_its_own_reflects(tmp_path: Path) -> None:
    endpoint = finding()
    async with endpoint.serve() as url:
        strong = gepa_recipe(url, tmp_path)["strong"]
    assert isinstance(strong, dict)
    gepa: JsonValue = {"calls": CALLS, "model": strong | {"model": "thinker", "base_url": NOWHERE, "max_attempts": 1}}
    with pytest.raises(StageError, match="a reflection failed"):
        await gepa_run(endpoint, tmp_path / "run", evaluate=ALONE, table={"gepa": gepa})
    assert not any("I gave an assistant" in body for body in endpoint.answered)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": {"solo": "{input}"}}, ConfigError, r"strong_gepa optimises the instruction in prompts.solo, and the template"),
        ({"draft": {"queries": 7}}, DataError, "7 training questions with references are drafted for, .* takes 8 at least"),
        ({"table": {"gepa": {"calls": 15}}}, ConfigError, "greater than or equal to 16"),
        ({"evaluate": {"systems": ["strong_gepas"]}}, ConfigError, "did you mean 'strong_gepa'"),
    ],
)  # fmt: skip
async def test_what_cannot_be_optimised_is_said_before_anything_is_paid(
    changes: dict[str, JsonValue], error: type[Exception], message: str, tmp_path: Path
) -> None:
    endpoint = finding()
    with pytest.raises(error, match=message):
        await gepa_run(endpoint, tmp_path / "run", None, **({"evaluate": ALONE} | changes))
    assert not endpoint.answered


async def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"strong_gepa needs gepa: pip install 'cowest\[gepa\]'"):
        await gepa_run(finding(), tmp_path / "run", evaluate=ALONE)


async def test_a_prompt_that_was_edited_is_not_served_and_one_that_is_not_there_is_said(tmp_path: Path) -> None:
    out = tmp_path / "run"
    await gepa_run(finding(), out, evaluate=ALONE)
    with pytest.raises(ConfigError, match=r"has no prompt of collab_gepa: name it in evaluate\.systems or table\.rows"):
        open_served(out, Settings(), only=["collab_gepa"])
    open_served(out, Settings(), only=["strong_gepa"])
    path = out / "gepa/strong_gepa.json"
    path.write_text(path.read_text().replace(WORD, "squid"))
    with pytest.raises(StageError, match=r"stage gepa strong_gepa is not what recipe\.yaml says: .*edited"):
        open_served(out, Settings(), only=["strong_gepa"])


@pytest.mark.slow
async def test_no_kill_pays_twice(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed of this test's kills: {seed}")  # shown when it fails
    chance, whole, endpoint = random.Random(seed), finding(), finding(0.003)
    await gepa_run(whole, tmp_path / "whole/run")
    out, kills = tmp_path / "killed/run", 0
    searching = [n for n, body in enumerate(whole.answered) if WORD in body or "I gave an assistant" in body]
    async with endpoint.serve() as url:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(gepa_recipe(url, tmp_path / "killed")))
        for moment in [*sorted(chance.sample(searching[:-TEST], 1)), None]:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cowest", "run", str(recipe), "--out", str(out)),
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            ended = asyncio.ensure_future(process.communicate())
            if moment is not None:
                killer = asyncio.ensure_future(endpoint.after(moment))
                await asyncio.wait({killer, ended}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
                killer.cancel()
                if process.returncode is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
            _, said = await ended
            assert moment is not None or process.returncode == 0, said.decode()
    twice = len(endpoint.answered) - len(whole.answered)
    assert kills and twice <= kills * most_at_risk(4), f"{twice} answers were paid twice by {kills} kills"
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole/run" / name).read_bytes()


def test_a_lab_world_has_no_instruction() -> None:
    from tests.paid_endpoint import paid_recipe

    from cowest.systems.registry import evaluated, find_systems, possible

    config = config_from_dict(paid_recipe(NOWHERE, prompts={}))
    _, left_out = possible(config, find_systems(["strong", "strong_gepa"], "x"))
    assert "tiny models know no instruction" in left_out["strong_gepa"] and list(left_out) == ["strong_gepa"]
    templates: JsonValue = {"draft": "{input}", "solo": "{instruction}{input}", "refine": "{instruction}{input}{draft}"}
    config = config_from_dict(paid_recipe(NOWHERE, prompts=templates, evaluate={"systems": ROWS}))
    assert not evaluated(config)[1]
