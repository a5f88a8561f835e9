"""All tasks of a table as one, and the paper's claims: from outcomes that are made up, and from a table that was run."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD, Log, save_tiny_model, tiny_recipe

from cowest.cli.output_table import print_table
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe.config import config_from_dict
from cowest.results import Comparison
from cowest.scoring.statistics import Outcome, holm
from cowest.scoring.stratified import TaskOutcomes, compare_over_tasks
from cowest.stages.loop import calls_of
from cowest.table.claims import TableClaim, judge_claims
from cowest.table.make import finished
from cowest.table.plan import Plan, make_plan
from cowest.table.plots import write_plots
from cowest.table.pooled import OVER_ALL, PooledTable, TaskAnswers, pooled_table
from cowest.table.results import TableResults
from cowest.table.run import run_table
from cowest.table.study import claims_over_tasks
from cowest.table.write import latex, markdown, write_table
from cowest.table.write_pooled import bound, pooled_cells, pooled_csv, pooled_markdown
from cowest.types import Message, Refinement, Sampling


def right(count: int, n: int = 100) -> TaskOutcomes:
    """The first ``count`` of ``n`` right, in two seeds."""
    rows = [Outcome(example_id=str(i), answer="yes" if i < count else "no", references=("yes",)) for i in range(n)]
    return TaskOutcomes("accuracy", ("yes", "no"), {"1": rows[::2], "2": rows[1::2]})


def answers(task: str, feedback: int | None = 10, calls: float = 2.0, **rows: int) -> TaskAnswers:
    found = {name: right(count) for name, count in rows.items()}
    return TaskAnswers(task, found, dict.fromkeys(found, calls), dict.fromkeys(found, feedback))


@pytest.fixture
def pooled() -> PooledTable:
    return pooled_table(
        "",
        [
            answers("towns", weak=30, strong=40, collab=60, cheap=59),
            answers("laws", feedback=20, calls=1.0, weak=50, collab=70, cheap=70, strong=60, flare=90),
        ],
        "collab",
        0,
    )


def results(pooled: PooledTable, claims: Sequence[TableClaim] = ()) -> TableResults:
    return TableResults(
        name="t",
        baseline="collab",
        seeds=[1, 2],
        axis=None,
        tables=[],
        pooled=[pooled],
        claims=list(claims),
        left_out={},
    )


def test_rows_that_every_task_has_are_averaged_and_the_others_are_named(pooled: PooledTable) -> None:
    assert list(pooled.rows) == ["weak", "strong", "collab", "cheap"] and pooled.missing == {"flare": ("towns",)}
    assert {name: row.mean.mean for name, row in pooled.rows.items()} == pytest.approx(
        {"weak": 0.4, "strong": 0.5, "collab": 0.65, "cheap": 0.645}
    )
    assert pooled.rows["collab"].against is None and pooled.rows["collab"].at_least is None
    compared = [row.against for row in pooled.rows.values() if row.against is not None]
    assert {c.a: c.diff for c in compared} == pytest.approx({"weak": -0.25, "strong": -0.15, "cheap": -0.005})
    corrected = [row.p_holm for row in pooled.rows.values() if row.against is not None]
    assert corrected == holm([c.p for c in compared]) and corrected[0] != compared[0].p
    assert pooled.metrics == {"towns": "accuracy", "laws": "accuracy"}
    assert {(row.calls_per_query, row.feedback_calls) for row in pooled.rows.values()} == {(1.5, 30)}


def test_the_bound_tells_a_cheap_row_that_is_not_worse_from_one_that_is(pooled: PooledTable) -> None:
    cheap, strong = pooled.rows["cheap"].at_least, pooled.rows["strong"].at_least
    assert cheap is not None and strong is not None and -0.02 < cheap < -0.005 and strong < -0.15
    assert pooled.rows["strong"].against is not None
    again = compare_over_tasks("strong", [right(40), right(60)], "collab", [right(60), right(70)], 0)
    assert again.at_least == strong and again.comparison == pooled.rows["strong"].against


@pytest.mark.parametrize(("value", "text"), [(-0.02, "-2.0"), (-0.02001, "-2.1"), (0.0, "+0.0"), (0.0349, "+3.4")])
def test_a_bound_is_rounded_down(value: float, text: str) -> None:
    assert bound(value) == text


def test_every_file_and_the_terminal_have_it(
    pooled: PooledTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results(pooled)
    text = markdown(found)
    assert "### Over all tasks\n\nThe mean of accuracy over towns, laws." in text
    assert "| row | mean | mean - collab | at least | p | n | failed | cut | calls a query | feedback |" in text
    (cheap,) = [c for c in pooled_cells(pooled) if c.name == "cheap"]
    assert cheap.difference.startswith("-0.5 [-1") and cheap.calls == "1.5" and cheap.feedback == "30"
    assert f"| `cheap` | {cheap.mean} | {cheap.difference} | {cheap.at_least} | 1 | 200 | 0 | 0 | 1.5 | 30 |" in text
    assert "Note: flare is not pooled: towns does not have it." in text and "to `collab`; p by a stratified" in text
    rows = {row["row"]: row for row in csv.DictReader(io.StringIO(pooled_csv(found)))}
    assert float(rows["weak"]["difference"]) == pytest.approx(-0.25)
    assert rows["weak"]["baseline"] == "collab" and rows["weak"]["n"] == "200"
    assert float(rows["cheap"]["difference_at_least"]) == pooled.rows["cheap"].at_least
    assert rows["collab"]["difference"] == rows["collab"]["p"] == "" and rows["collab"]["feedback_calls"] == "30"
    tex = latex(found)
    assert (
        "\\caption{Over all tasks. The mean of accuracy over towns, laws." in tex
        and f"& {cheap.at_least} & 1 & 1.5" in tex
    )
    written = write_table(found, tmp_path)
    assert TableResults.model_validate_json(written["results.json"].read_bytes()) == found
    assert written["pooled.csv"].read_text() == pooled_csv(found)
    assert write_plots(found, tmp_path) == [tmp_path / "plots" / "over-all-tasks.png"]
    print_table(found, [], None)
    printed = capsys.readouterr().out
    assert "Over all tasks" in printed and "65.0 [" in printed and "flare is not pooled: towns" in printed
    assert "at least" in printed and "non-inferiority" in printed


def test_different_metrics_are_said_and_feedback_is_left_out_where_there_is_none() -> None:
    em = TaskOutcomes("em", (), right(50).by_seed)
    towns = TaskAnswers("towns", {"weak": em, "collab": em}, {"weak": 1.0, "collab": 2.0}, {"weak": 0, "collab": None})
    table = pooled_table("x", [towns, answers("laws", feedback=0, weak=10, collab=10)], "collab", 0)
    text = "\n".join(pooled_markdown(results(table)))
    assert "### Over all tasks, x" in text and "The mean of em (towns), accuracy (laws)." in text
    assert "| calls a query |\n" in text and table.rows["collab"].feedback_calls is None
    assert not pooled_markdown(results(table).model_copy(update={"pooled": []}))


def judged(baseline: str = "collab", /, **counts: int) -> dict[str, tuple[str, str, str]]:
    rows: Mapping[str, TaskOutcomes] = {name: right(count) for name, count in counts.items()}

    def compared(a: str, b: str) -> Comparison:
        return compare_over_tasks(a, [rows[a]], b, [rows[b]], 0).comparison

    found = judge_claims("towns", "", rows, baseline, compared)
    assert [c.p_holm for c in found] == holm([c.comparison.p for c in found])
    return {c.claim: (c.comparison.a, c.comparison.b, c.verdict) for c in found}


def test_claims_are_shown_or_not_or_their_opposite_is() -> None:
    assert judged(weak=50, strong=90, collab=68, collab_aligned=70) == {
        "collaboration beats the strong model alone": ("collab_aligned", "strong", "opposite shown"),
        "collaboration beats the weak model alone": ("collab_aligned", "weak", "shown"),
        "alignment adds": ("collab_aligned", "collab", "not shown"),
    }


def test_claims_are_of_one_format_and_of_the_rows_that_there_are() -> None:
    direct = {"collab_direct": 60, "collab_direct_aligned": 70, "collab_cot": 50, "collab_cot_aligned": 90}
    assert {a for a, _, _ in judged(strong=40, **direct).values()} == {"collab_cot_aligned"}
    assert {a for a, _, _ in judged("collab_direct", strong=40, **direct).values()} == {"collab_direct_aligned"}
    assert judged(strong=40, collab=70) == {
        "collaboration beats the strong model alone": ("collab", "strong", "shown"),
    }, "before alignment, where nothing is aligned"
    assert not judged(weak=40, strong=50, flare=90) and not judged(collab=50)


def test_what_nobody_answered_shows_nothing() -> None:
    nobody = Comparison(a="a", b="b", metric="em", diff=None, ci_low=None, ci_high=None, p=None, test="", n=0)
    found = judge_claims("towns", "", {"strong", "collab"}, "collab", lambda a, b: nobody)
    assert [c.verdict for c in found] == ["not shown"]
    text = markdown(results(pooled_table("", [answers("t", collab=5)] * 2, "collab", 0), found))
    assert "| collaboration beats the strong model alone (a - b) | towns | not scored |  | not shown |" in text


def test_the_study_judges_all_domains_together() -> None:
    domains = [
        {"weak": right(40), "strong": right(50), "collab": right(70), "collab_aligned": right(90)},
        {"weak": right(70), "strong": right(30), "collab": right(80), "collab_aligned": right(90)},
    ]
    made = claims_over_tasks(domains)
    assert [(c.comparison.a, c.comparison.b, c.holds) for c in made] == [
        ("collab", "weak", True), ("collab_aligned", "weak", True), ("collab_aligned", "collab", True),
    ]  # fmt: skip
    assert [c.comparison.diff for c in made] == pytest.approx([0.2, 0.35, 0.15])
    level = [{**domain, "collab_aligned": domain["collab"]} for domain in domains]
    assert [c.holds for c in claims_over_tasks(level)] == [True, True, False]


def reply(messages: Sequence[Message], sampling: Sampling) -> str:
    asked = "".join(m.content for m in messages)
    return f"Answer: {('yes', 'no', 'maybe')[hashlib.sha256(asked.encode()).digest()[0] % 3]}"


@pytest.mark.slow
def test_a_table_of_two_tasks_is_pooled_and_made_again_from_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, strong, out = save_tiny_model(tmp_path / "weak"), ScriptedChatModel(reply), tmp_path / "table"

    async def go() -> None:
        async with serve(make_app(strong, model_name="strong")) as url:
            await run_table(plan(url), out, Log())

    def plan(url: str) -> Plan:
        recipe = tiny_recipe(weak, url)
        del recipe["task"]
        tasks: dict[str, JsonValue] = {"one": WORLD | SIZES, "two": WORLD | SIZES | {"seed": 6}}
        rows: JsonValue = ["weak", "strong", "collab", "collab_aligned"]
        return make_plan(config_from_dict(recipe | {"tasks": tasks, "table": {"rows": rows}}))

    asyncio.run(go())
    found = finished(plan("http://127.0.0.1:9/v1"), out, None).results
    again = json.loads((out / "results.json").read_text())
    assert again == json.loads(found.model_dump_json(by_alias=True))
    (pooled,) = found.pooled
    tables = {table.task: table for table in found.tables}
    for name, row in pooled.rows.items():
        own = [tables[task].rows[name] for task in pooled.metrics]
        means = [r.metrics[tables[t].metrics[0]].mean for r, t in zip(own, pooled.metrics, strict=True)]
        known = [mean for mean in means if mean is not None]
        assert row.mean.mean == (pytest.approx(sum(known) / 2) if len(known) == 2 else None)
        assert row.mean.n == sum(r.metrics[tables[t].metrics[0]].n for r, t in zip(own, pooled.metrics, strict=True))
    assert pooled.rows["strong"].mean.mean is not None
    asked = {name: row.feedback_calls for name, row in pooled.rows.items()}
    assert asked["weak"] == asked["strong"] == asked["collab"] == 0
    texts = [
        Refinement.model_validate_json(line)
        for name in ("solo.jsonl", "refinements.jsonl")
        for file in out.rglob(name)
        if file.parent.name == "main"
        for line in file.read_text().splitlines()
    ]
    assert 0 < (asked["collab_aligned"] or 0) <= calls_of(texts)
    assert asked["collab_aligned"] == sum(r.usage.calls > 0 for r in texts)
    assert [c.where for c in found.claims] == ["one"] * 3 + ["two"] * 3 + [OVER_ALL] * 3
    assert {c.comparison.n for c in found.claims if c.where == OVER_ALL} == {24}
    print_table(found, [], None)
    assert f"{OVER_ALL}: alignment adds (collab_aligned - collab): " in capsys.readouterr().out
