"""Judges that compare answers, in runs against endpoints on loopback: what is asked, what drafts are worth then, what is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from pydantic import JsonValue
from tests.batch_server import Provider
from tests.helpers import Log, save_tiny_model, tiny_recipe
from tests.judge_endpoint import JudgeEndpoint, by_taste, first, judge_model, shown
from tests.paid_endpoint import paid_recipe, records_of, reply

from cowest import api
from cowest.costs.estimate import Estimate, estimate
from cowest.errors import BudgetExceededError, ConfigError, DataError, StageError
from cowest.ledger.summary import summarise_ledger
from cowest.models.scripted import ScriptedChatModel
from cowest.pipeline import RunSummary, run
from cowest.recipe.config import config_from_dict
from cowest.run.store import RunDir
from cowest.scoring.compare import Compared
from cowest.stages.comparing import Judging
from cowest.types import Draft, Feedback, PreferencePair, Refinement

NOWHERE = "http://127.0.0.1:9/v1"
ONE: JsonValue = {"queries": 1, "systems": ["strong"]}


def recipe(url: str, judges: tuple[str, ...] = ("judge",), **changes: JsonValue) -> dict[str, JsonValue]:
    compare: list[JsonValue] = [judge_model(url, name) for name in judges]
    plain: dict[str, JsonValue] = {"feedback": {"compare": compare}, "evaluate": ONE}
    return paid_recipe(url, **(plain | changes))


async def made(
    endpoint: JudgeEndpoint,
    out: Path,
    log: Log | None = None,
    judges: tuple[str, ...] = ("judge",),
    **changes: JsonValue,
) -> RunSummary:
    async with endpoint.serve() as url:
        return await run(config_from_dict(recipe(url, judges, **changes)), out, log or Log())


def counts(out: Path, stage: str = "feedback") -> dict[str, int]:
    return dict(RunDir(out).manifest().stages[stage].counts)


def texts(out: Path) -> list[tuple[Feedback, str, str]]:
    """Each draft's feedback with the answer that it led to, and the one alone."""
    records = RunDir(out).file("feedback.jsonl", Feedback).load()
    refined = {r.draft_id: r.text for r in RunDir(out).file("refinements.jsonl", Refinement).load()}
    alone = {r.example_id: r.text for r in RunDir(out).file("solo.jsonl", Refinement).load()}
    return [(r, refined[r.draft_id] or "", alone[r.example_id] or "") for r in records]


def preferred(answer: str, alone: str) -> float:
    return {"A": 1.0, "B": 0.0, "tie": 0.5}[by_taste(answer, alone)]


async def test_a_draft_is_worth_how_its_answer_compares_with_the_one_alone(tmp_path: Path) -> None:
    endpoint, log = JudgeEndpoint(judge=by_taste), Log()
    await made(endpoint, tmp_path, log)
    found = texts(tmp_path)
    assert {r.refined.value for r, _, _ in found} == {0.0, 0.5, 1.0}
    for record, answer, alone in found:
        assert record.refined.value == preferred(answer, alone) and record.solo.value == 0.5
        assert record.weak.value is None and record.gain == preferred(answer, alone) - 0.5
    different = {(r.example_id, answer) for r, answer, alone in found if answer != alone}
    asked = endpoint.asked("judge")
    assert 0 < len(asked) == 2 * len(different), "equal answers are not compared, and equal pairs once"
    assert {frozenset(shown(body)) for body in asked} == {
        frozenset((answer, alone)) for _, answer, alone in found if answer != alone
    }
    pairs = RunDir(tmp_path).file("pairs.jsonl", PreferencePair).load()
    assert pairs and all(p.chosen_gain > p.rejected_gain for p in pairs)
    said = counts(tmp_path)
    assert said["judge_1_compared"] == len(different) and said["judge_1_inconsistent"] == 0
    assert said["judge_1_sided"] == 2 * (said["judge_1_better"] + said["judge_1_worse"]) == 2 * said["judge_1_first"]
    assert said["answers_equal"] == sum(answer == alone for _, answer, alone in found)
    assert any(f"judge judge: {len(different)} pairs compared" in line for line in log.lines)


async def test_where_there_are_references_the_judge_is_checked_by_them(tmp_path: Path) -> None:
    log, labels = Log(), ("yes", "no", "maybe")
    await made(JudgeEndpoint(judge=by_taste), tmp_path, log)
    judging = Judging.model_validate_json((tmp_path / "judging.json").read_bytes())
    from tests.helpers import SIZES, WORLD

    from cowest.lab.task import lab_task
    from cowest.recipe.config import LabTaskConfig

    right = {e.id: e.references[0] for e in lab_task(LabTaskConfig.model_validate(WORLD | SIZES), 0).examples("train")}
    agree = n = 0
    gains: dict[str, list[float]] = {}
    for record, answer, alone in texts(tmp_path):
        assert answer.removeprefix("Answer: ") in labels
        truth = float(answer == f"Answer: {right[record.example_id]}") - float(
            alone == f"Answer: {right[record.example_id]}"
        )
        gains.setdefault(record.example_id, []).append(truth)
        if answer != alone:
            n, agree = n + 1, agree + (truth == 2 * preferred(answer, alone) - 1)
    assert judging.agreement is not None and (judging.agreement.agree.n, judging.agreement.agree.of) == (agree, n)
    assert judging.judges[0].agreement == judging.agreement, "one judge"
    assert judging.gain is not None and (judging.gain.labelled, judging.gain.judged) == (len(gains), 0)
    assert judging.gain.mean == pytest.approx(fmean(map(fmean, gains.values())))
    assert counts(tmp_path)["references_agree"] == agree
    assert any(f"on {agree} of {n} pairs with references" in line and "Mean gain by" in line for line in log.lines)


async def test_several_judges_are_averaged(tmp_path: Path) -> None:
    endpoint = JudgeEndpoint(judge=by_taste, judge2=lambda a, b: "tie")
    await made(endpoint, tmp_path, judges=("judge", "judge2"))
    assert {r.refined.value for r, _, _ in texts(tmp_path)} == {0.25, 0.5, 0.75}
    assert len(endpoint.asked("judge")) == len(endpoint.asked("judge2"))
    assert counts(tmp_path)["judge_2_ties"] == counts(tmp_path)["judge_2_compared"] > 0


async def test_a_judge_that_prefers_what_comes_first_says_nothing_and_that_is_told(tmp_path: Path) -> None:
    log = Log()
    await made(JudgeEndpoint(judge=first), tmp_path, log)
    assert {r.refined.value for r, _, _ in texts(tmp_path)} == {0.5}
    said = counts(tmp_path)
    assert said["judge_1_inconsistent"] == said["judge_1_compared"] >= 15
    assert said["judge_1_first"] == said["judge_1_sided"] == 2 * said["judge_1_compared"]
    assert counts(tmp_path, "pairs")["pairs"] == 0
    told = RunDir(tmp_path).manifest().stages["feedback"].warnings
    assert any("judge judge prefers the answer that is shown first in more than 95%" in text for text in told)
    assert any("warning: judge judge prefers" in line for line in log.lines)


async def test_a_judge_that_never_says_what_can_be_read_ends_the_run_and_nothing_is_lost(tmp_path: Path) -> None:
    silent = JudgeEndpoint(judge=lambda a, b: "I cannot say")
    with pytest.raises(StageError, match=r"judge judge: the first 20 calls all failed; .*bad_json"):
        await made(silent, tmp_path)
    paid = len(silent.asked("strong"))
    again = JudgeEndpoint(judge=by_taste)
    with pytest.raises(StageError):  # the ledger has the same answers
        await made(again, tmp_path)
    await made(again, tmp_path, cache="refresh")
    assert paid and {r.refined.value for r, _, _ in texts(tmp_path)} == {0.0, 0.5, 1.0}


async def test_a_judge_that_is_silent_at_times_is_asked_again(tmp_path: Path) -> None:
    def shy(a: str, b: str) -> str:
        return "I cannot say" if "Answer: maybe" in (a, b) else by_taste(a, b)

    await made(JudgeEndpoint(judge=shy), tmp_path)
    lost = [r for r, _, _ in texts(tmp_path) if r.refined.value is None]
    assert lost and all((r.refined.error or "").startswith("judge: bad_json") for r in lost)
    entry = RunDir(tmp_path).manifest().stages["feedback"]
    assert entry.failed == entry.counts["judge_1_failed"] > 0
    assert any("gave no verdict on" in text for text in entry.warnings)
    assert counts(tmp_path, "pairs")["unscored_not_judged"] == len(lost)


async def test_a_stopped_judge_goes_on_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    whole, endpoint = JudgeEndpoint(judge=by_taste), JudgeEndpoint(judge=by_taste)
    await made(whole, tmp_path / "whole")
    before = 90 + 30 + len(records_of(tmp_path / "whole")["refinements"])
    with pytest.raises(BudgetExceededError):
        await made(endpoint, tmp_path / "run", budget_calls=before + 8)
    assert 0 < len(endpoint.asked("judge")) <= 8 + 2
    await made(endpoint, tmp_path / "run")
    bodies = [json.dumps(body) for body in endpoint.asked("judge")]
    assert len(bodies) == len(set(bodies)) == len(whole.asked("judge"))
    assert records_of(tmp_path / "run") == records_of(tmp_path / "whole")


async def test_verdicts_do_not_depend_on_timing(tmp_path: Path) -> None:
    await made(JudgeEndpoint(0.02, judge=by_taste), tmp_path / "slow")
    await made(JudgeEndpoint(0.0, judge=by_taste), tmp_path / "fast")
    assert records_of(tmp_path / "slow") == records_of(tmp_path / "fast")
    files = [json.loads(line) for line in (tmp_path / "slow/compared-1.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (tmp_path / "fast/compared-1.jsonl").read_text().splitlines()]
    assert [f | {"usage": 0} for f in files] == [o | {"usage": 0} for o in others]


def lines(found: Estimate, model: str = "judge") -> list[tuple[int, float, float, float]]:
    return [(s.already, s.calls.low, s.calls.expected, s.calls.high) for s in found.stages if s.model == model]


async def test_the_estimate_counts_comparisons(tmp_path: Path) -> None:
    config = config_from_dict(recipe(NOWHERE))
    before = await asyncio.to_thread(estimate, config, tmp_path / "run")
    assert lines(before) == [(0, 0, 180, 360)]
    endpoint = JudgeEndpoint(judge=by_taste)
    with pytest.raises(BudgetExceededError):
        await made(endpoint, tmp_path / "run", budget_calls=218)
    ((already, low, expected, high),) = lines(await asyncio.to_thread(estimate, config, tmp_path / "run"))
    asked = len(endpoint.asked("judge"))
    assert 0 < already <= asked and low == expected
    await made(endpoint, tmp_path / "run")
    assert low <= len(endpoint.asked("judge")) - asked <= high
    ((already, _, _, left),) = lines(await asyncio.to_thread(estimate, config, tmp_path / "run"))
    assert (already, left) == (len(endpoint.asked("judge")), 0)


async def test_judges_are_never_batched_and_cost_the_full_price_in_estimate_and_bill(tmp_path: Path) -> None:
    def said(body: dict[str, JsonValue]) -> str:
        if body["model"] == "judge":
            return json.dumps({"explanation": "so", "better": by_taste(*shown(body))})
        return reply(body, 0).splitlines()[-1]

    provider = Provider(answer=said)
    async with provider.serve() as url:
        plain = recipe(url)
        feedback, strong = plain["feedback"], plain["strong"]
        assert isinstance(feedback, dict) and isinstance(strong, dict)
        feedback |= {"mode": "batch"}
        strong |= {"batch": {"poll_s": 0.02, "discount": 0.5}}
        config = config_from_dict(plain)
        before = await asyncio.to_thread(estimate, config, tmp_path)
        await run(config, tmp_path, Log())
    told = {s.calls_for: s for s in before.stages if s.stage == "feedback"}
    alone, compare = told["strong alone"], told["compare"]
    for stage, share in ((alone, 0.5), (compare, 1.0)):
        assert stage.cost_usd is not None and stage.seconds is not None
        full = (stage.input_tokens.expected * 1.0 + stage.output_tokens.expected * 4.0) / 1e6
        assert stage.cost_usd.expected == pytest.approx(share * full, rel=0.01) and full
        assert stage.batch == (share < 1) == (stage.seconds.high == 24 * 3600)
    assert provider.jobs and all('"judge"' not in provider.files[job.file] for job in provider.jobs.values())
    bill = summarise_ledger(tmp_path / "ledger.sqlite").by_purpose_and_model()
    for model, share in (("strong", 0.5), ("judge", 1.0)):
        line = bill["feedback", model]
        assert line.cost_usd == pytest.approx(share * line.calls * (10 * 1.0 + 4 * 4.0) / 1e6) and line.calls > 20
    assert (
        sum(r.usage.calls for r in RunDir(tmp_path).file("compared-1.jsonl", Compared).load())
        == bill["feedback", "judge"].calls
    )


async def test_another_judge_is_another_feedback_and_the_same_is_none(tmp_path: Path) -> None:
    endpoint, log = JudgeEndpoint(judge=by_taste, judge2=by_taste), Log()
    await made(endpoint, tmp_path)
    n = len(endpoint.answered)
    await made(endpoint, tmp_path, log)
    assert len(endpoint.answered) == n and log.verdicts["feedback"].startswith("reused")
    await made(endpoint, tmp_path, log, judges=("judge2",))
    assert len(endpoint.asked("judge2")) == len(endpoint.asked("judge")) == len(endpoint.answered) - n
    assert any("run again, because feedback.compare.0" in line for line in log.lines)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"feedback": {"judge": judge_model(NOWHERE)}}, r"feedback\.judge: .*take one of both"),
        ({"feedback": {"expect": "samples"}}, r"feedback\.expect: .*take one of both"),
        ({"pairs": {"signal": "outcome"}}, r"pairs\.signal: outcome needs another score"),
        ({"pairs": {"signal": "better"}}, r"pairs\.signal: better needs another score"),
        ({"pairs": {"signal": "draft"}}, r"pairs\.signal: draft needs another score"),
    ],
)
async def test_settings_that_do_not_go_together(tmp_path: Path, changes: dict[str, JsonValue], told: str) -> None:
    feedback = changes.get("feedback", {})
    assert isinstance(feedback, dict)
    compare: JsonValue = [judge_model(NOWHERE)]
    data = paid_recipe(NOWHERE, **(changes | {"feedback": feedback | {"compare": compare}}))
    with pytest.raises(ConfigError, match=told):
        await run(config_from_dict(data), tmp_path, Log())


async def test_a_script_hands_judges_over_and_a_table_wants_references(tmp_path: Path) -> None:
    judge = ScriptedChatModel(lambda messages, sampling: '{"better": "tie"}', name="mine")
    endpoint = JudgeEndpoint()
    async with endpoint.serve() as url:
        await api.run(paid_recipe(url, evaluate=ONE), tmp_path / "run", compare=[judge])
        task = open_task(tmp_path, lambda i: True)
        with pytest.raises(ConfigError, match="a table needs references in the test split"):
            await api.table(recipe(url, task=task, table={"rows": ["strong", "collab"]}), tmp_path / "table")
    assert counts(tmp_path / "run")["judge_1_ties"] == len(judge.requests) / 2 > 0
    assert {r.refined.value for r, _, _ in texts(tmp_path / "run")} == {0.5}


# Open tasks


def open_task(folder: Path, answered: Callable[[int], bool]) -> dict[str, JsonValue]:
    """Questions of which some have an answer, and the test ones none."""
    task: dict[str, JsonValue] = {"kind": "jsonl"}
    for split, n in (("train", 24), ("validation", 6), ("test", 8)):
        rows = [{"input": f"Write about {split} {i}."} for i in range(n)]
        rows = [
            row | {"answer": f"{split} {i}"} if answered(i) and split == "train" else row for i, row in enumerate(rows)
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task[split] = str(path)
    return task


async def test_an_open_task_is_judged_from_the_first_draft_to_the_results(tmp_path: Path) -> None:
    endpoint = JudgeEndpoint(judge=by_taste)
    task = open_task(tmp_path, lambda i: i % 3 == 0)
    changes: dict[str, Any] = {
        "task": task,
        "draft": {"samples": 3},
        "evaluate": {"systems": ["strong", "collab"]},
    }
    found = await asyncio.to_thread(estimate, config_from_dict(recipe(NOWHERE, **changes)), tmp_path / "run")
    done = await made(endpoint, tmp_path / "run", **changes)
    results = done.results[""]
    assert {name: list(result.metrics) for name, result in results.systems.items()} == {
        "strong": ["preferred"],
        "collab": ["preferred"],
    }
    alone = results.systems["strong"].metrics["preferred"]
    assert (alone.mean, alone.n) == (0.5, 8)
    mine = {r["example_id"]: str(r["text"]) for r in rows(tmp_path / "run/predictions/collab.jsonl")}
    theirs = {r["example_id"]: str(r["text"]) for r in rows(tmp_path / "run/predictions/strong.jsonl")}
    expected = fmean(preferred(mine[i], theirs[i]) for i in mine)
    assert results.systems["collab"].metrics["preferred"].mean == pytest.approx(expected) and expected != 0.5
    assert {c.metric for c in results.comparisons} == {"preferred"}
    asked = len(endpoint.asked("judge"))
    assert sum(low for _, low, _, _ in lines(found)) <= asked <= sum(e for _, _, e, _ in lines(found))
    judging = Judging.model_validate_json((tmp_path / "run/judging.json").read_bytes())
    assert judging.gain is not None and (judging.gain.labelled, judging.gain.judged) == (8, 16)
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("Preferred to strong alone") >= 1
    (note,) = judging.judges
    cells = (note.compared, note.failed, note.better, note.worse)
    assert "<code>judge</code></th>" + "".join(f'<td class="num">{n}</td>' for n in cells) in page
    assert f"% of {note.sided}</td>" in page and f"{judging.equal} drafts after which" in page
    again = await asyncio.to_thread(estimate, config_from_dict(recipe(NOWHERE, **changes)), tmp_path / "run")
    assert again.calls.high == 0


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_whole_loop_runs_without_references(tmp_path: Path) -> None:
    weak, endpoint, log = save_tiny_model(tmp_path / "weak"), JudgeEndpoint(judge=by_taste), Log()
    task = open_task(tmp_path, lambda i: i < 8)

    def config(url: str) -> dict[str, Any]:
        plain: dict[str, Any] = tiny_recipe(weak, url)
        return plain | {
            "task": task,
            "strong": plain["strong"] | {"model": "strong"},
            "feedback": {"compare": [judge_model(url)]},
            "sft": plain["sft"] | {"max_steps": 4},
            "rounds": {"most": 2, "stop": "test"},
            "prompts": {"draft": "{input}", "solo": "{input}", "refine": "{input}\nDraft: {draft}"},
        }

    async with endpoint.serve() as url:
        done = await run(config_from_dict(config(url)), tmp_path / "run", log)
    out = RunDir(tmp_path / "run")
    assert out.manifest().stages["sft"].counts["rows"] == 8, "those that have an answer"
    chosen = json.loads((tmp_path / "run/align/selection.json").read_text())
    assert chosen["metric"] == "preferred"
    alone = {str(r["example_id"]): str(r["text"]) for r in rows(tmp_path / "run/align/validation/alone.jsonl")}
    for checkpoint in chosen["checkpoints"]:
        answers = rows(tmp_path / f"run/align/validation/step-{checkpoint['step']}.jsonl")
        values = [preferred(str(p["text"]), alone[str(p["example_id"])]) for p in answers]
        assert checkpoint["score"] == pytest.approx(fmean(values)) and checkpoint["n"] == 6
    systems = done.results[""].systems
    assert set(systems) >= {"weak", "strong", "collab"} and systems["weak"].metrics["preferred"].mean is not None
    assert len(out.file("drafts.jsonl", Draft).load()) == 36
    before = len(endpoint.answered)
    async with endpoint.serve() as url:
        await run(config_from_dict(config(url)), tmp_path / "run", Log())
    assert len(endpoint.answered) == before, "nothing is made twice"


async def test_without_judges_each_question_needs_an_answer(tmp_path: Path) -> None:
    task = open_task(tmp_path, lambda i: False)
    with pytest.raises(DataError, match=r"train\.jsonl:1: \"references\" is missing.*feedback\.compare"):
        await run(config_from_dict(paid_recipe(NOWHERE, task=task)), tmp_path / "run", Log())
    with pytest.raises(ConfigError, match=r"evaluate\.systems: .* name it, too"):
        await run(config_from_dict(recipe(NOWHERE, task=task, evaluate={"systems": ["collab"]})), tmp_path, Log())
    with pytest.raises(StageError, match=r"sft: no training row has what draft\.format chain_of_thought is learned"):
        data = tiny_recipe(save_tiny_model(tmp_path / "weak"), NOWHERE, task=task)
        await run(
            config_from_dict(data | {"feedback": {"compare": [judge_model(NOWHERE)]}}), tmp_path / "trained", Log()
        )
