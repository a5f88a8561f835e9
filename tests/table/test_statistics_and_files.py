"""The table's numbers and files, from predictions that are made up: no model, no run."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from cowest.cli.output_table import print_table
from cowest.results import Comparison, MetricValue
from cowest.scoring.statistics import Outcome, holm
from cowest.scoring.uptake import Case, right_by, uptake_of
from cowest.systems.registry import TABLE
from cowest.table.results import Difference, RowResult, Table, TableResults
from cowest.table.words import p_value
from cowest.table.write import cells, csv_text, latex, markdown, uptake_csv, write_table
from cowest.types import Usage


def test_holm_corrects_as_in_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([None, 0.02, None, 0.03]) == [None, 0.04, None, 0.04]  # only what was tested counts
    assert holm([]) == []


def test_holm_agrees_with_an_independent_implementation() -> None:
    values = [0.001, 0.2, 0.012, 0.049, 0.3, 0.012]
    order = sorted(values)
    expected = [max(min(1.0, (len(values) - k) * order[k]) for k in range(order.index(v) + values[: i + 1].count(v)))
                for i, v in enumerate(values)]  # fmt: skip
    assert holm(values) == pytest.approx(expected)


def row(mean: float | None, mark: str = "", cost: float | None = 0.5, failed: int = 0) -> RowResult:
    spread = None if mean is None else 0.1
    return RowResult.model_validate(
        {
            "about": "a row",
            "metrics": {
                "em": MetricValue(
                    mean=mean,
                    ci_low=None if mean is None or spread is None else mean - spread,
                    ci_high=None if mean is None or spread is None else mean + spread,
                    n=100 - failed,
                    n_failed=failed,
                )
            },
            "marks": {"em": mark},
            "queries": 100,
            "usage": Usage(calls=100, input_tokens=1000, output_tokens=500, cost_usd=cost),
            "latency_s": 0.25,
            "truncated": 0,
            "truncated_context": 3,
        }
    )


@pytest.fixture
def results() -> TableResults:
    compared = Comparison(
        a="weak", b="collab_cot", metric="em", diff=-0.2, ci_low=-0.3, ci_high=-0.1, p=0.0001,
        test="mcnemar_exact", n=100,
    )  # fmt: skip
    table = Table.model_validate(
        {
            "task": "towns",
            "label": "",
            "metrics": ("em",),
            "rows": {
                "weak": row(0.4),
                "flare": row(None, cost=None, failed=100),
                "collab_cot": row(0.6, "best"),
                "best_of_k": row(0.58, "tied", cost=0.0),
            },
            "differences": [{"comparison": compared, "p_holm": 0.0003}],
            "by_seed": {
                "1": {"weak": 0.3, "collab_cot": 0.5},
                "2": {"weak": 0.5, "collab_cot": 0.7},
            },
        }
    )
    return TableResults(
        name="t", baseline="collab_cot", seeds=[1, 2], axis=None, tables=[table], left_out={"rlwf": "it trains"}
    )


def test_results_json_reads_back(results: TableResults) -> None:
    again = TableResults.model_validate_json(results.model_dump_json(by_alias=True))
    assert again == results and '"schema":1' in results.model_dump_json(by_alias=True)


def test_results_of_an_older_version_are_read_by_todays_names() -> None:
    archive = Path(__file__).parents[2] / "docs" / "lab-results" / "table.json"
    assert "weak_sft" in archive.read_text(encoding="utf-8") and "strong_cot" in archive.read_text(encoding="utf-8")
    old = TableResults.model_validate_json(archive.read_bytes())
    assert old.baseline == "collab_cot_aligned"
    for table in old.tables:
        assert list(table.rows) == [spec.name for spec in TABLE]
        assert {d.comparison.a for d in table.differences} == set(table.rows) - {old.baseline}
        assert all(set(seed) == set(table.rows) for seed in table.by_seed.values())
    assert "weak_sft" not in old.model_dump_json() and "strong_cot" not in old.model_dump_json()


def with_drafts(results: TableResults) -> TableResults:
    """The same, and what the strong model did with two drafts of ``best_of_k``; without it alone for ``collab_cot``."""

    def case(number: int, final: str, solo: str | None) -> Case:
        done = Outcome(example_id=str(number), answer=final, references=("yes",))
        alone = None if solo is None else done.model_copy(update={"answer": solo})
        return Case(draft="no", final=done, solo=alone, closed=True)

    table = results.tables[0]
    rows = dict(table.rows)
    for name, cases in (
        ("best_of_k", [case(1, "yes", "no"), case(2, "no", "yes")]),
        ("collab_cot", [case(1, "no", None)]),
    ):
        found = uptake_of(cases, right_by(("accuracy",), True), seed=0)
        rows[name] = rows[name].model_copy(update={"uptake": found})
    changed = table.model_copy(update={"rows": rows})
    return results.model_copy(update={"tables": [changed], "warnings": ["seed-1 main: feedback: no, always"]})


def test_every_file_says_what_the_strong_model_does_with_a_draft(
    results: TableResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "What the strong model does" not in markdown(results) and uptake_csv(results).count("\n") == 1
    drafted = with_drafts(results)
    text = markdown(drafted)
    assert "#### What the strong model does with a draft: towns" in text
    head = "copied | same alone | follows | adopts wrong | mends wrong | keeps right | helps | not by copying | spoils"
    assert f"| row | {head} | beyond alone |" in text
    half = "50% [9.5, 90.5] (1/2)"
    assert f"| `best_of_k` | {half} | {half} | 100% [20.7, 100.0] (1/1) | {half} | {half} |" in text
    assert "Note: strong is not among the systems" in text and "Warning: seed-1 main: feedback: no, always" in text
    written = write_table(drafted, tmp_path)
    assert TableResults.model_validate_json(written["results.json"].read_bytes()) == drafted
    lines = list(csv.DictReader(written["uptake.csv"].open(encoding="utf-8")))
    assert [line["share"] for line in lines if line["row"] == "collab_cot"] == ["copied", "adopts", "mends", "keeps"]
    (spoils,) = [line for line in lines if line["share"] == "spoils"]
    assert (spoils["n"], spoils["of"], spoils["value"]) == ("1", "1", "1.0") and float(spoils["ci_low"]) > 0.2
    print_table(drafted, [], None)
    printed = capsys.readouterr().out
    assert "not by copying" in printed and "1/2" in printed and "warning: seed-1 main: feedback: no, always" in printed


def test_markdown_marks_the_best_and_its_equals(results: TableResults) -> None:
    text = markdown(results)
    assert "| `collab_cot` | **60.0** [50.0, 70.0] |" in text
    assert "| `best_of_k` | _58.0_ [48.0, 68.0] |" in text
    assert "| `weak` | 40.0 [30.0, 50.0] | -20.0 | <0.001 | 0.00500 | 0.25 | 100 | 0 | 0 | 3 |" in text
    assert "`collab_cot` 50.0, 70.0 (em, seeds 1, 2)" in text
    assert "Left out: `rlwf`, since it trains." in text


def test_an_unknown_price_and_an_unscored_row_are_said(results: TableResults) -> None:
    (flare,) = [c for c in cells(results.tables[0]) if c.name == "flare"]
    assert flare.values[0][0] == "not scored" and flare.usd == "unknown" and flare.failed == "100"


def test_csv_has_a_line_for_each_row_and_metric(results: TableResults) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(results))))
    assert [r["row"] for r in rows] == ["weak", "flare", "collab_cot", "best_of_k"]
    assert rows[0]["difference"] == "-0.2" and rows[0]["p_holm"] == "0.0003" and rows[0]["usd_per_query"] == "0.005"
    assert rows[1]["mean"] == "" and rows[1]["usd_per_query"] == ""  # unknown is empty, not 0


def test_latex_escapes_and_marks(results: TableResults) -> None:
    text = latex(results)
    assert r"weak & 40.0 {\scriptsize [30.0, 50.0]} & $-20.0$ & $<$0.001 \\" in text
    assert r"\textbf{60.0}" in text and r"best\_of\_k & \underline{58.0}" in text and "\\begin{tabular}{lrrr}" in text


def cut_off(results: TableResults) -> TableResults:
    """The same with 40 answers of best_of_k cut off."""
    table = results.tables[0]
    value = table.rows["best_of_k"].metrics["em"].model_copy(update={"n": 60, "n_cut": 40, "mean_cut_wrong": 0.348})
    found = table.rows["best_of_k"].model_copy(update={"metrics": {"em": value}, "truncated": 41})
    against = Comparison(a="best_of_k", b="collab_cot", metric="em", diff=-0.02, ci_low=-0.1, ci_high=0.1, p=0.9,
                         test="mcnemar_exact", n=60, a_cut=40)  # fmt: skip
    differences = [*table.differences, Difference(comparison=against, p_holm=0.9)]
    changed = table.model_copy(update={"rows": {**table.rows, "best_of_k": found}, "differences": differences})
    return results.model_copy(update={"tables": [changed]})


def test_every_file_says_how_many_answers_were_cut_off(
    results: TableResults, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "best_of_k - collab_cot: cut off at max_tokens before an answer, and left out: best_of_k 40, collab_cot 0"
    found = cut_off(results)
    text = markdown(found)
    assert "| n | failed | cut | shortened |" in text and "| 60 | 0 | 40 | 3 |" in text and f"Note: {note}" in text
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert [r["cut"] for r in rows] == ["0", "0", "0", "40"] and rows[3]["mean_cut_wrong"] == "0.348"
    assert rows[3]["baseline_cut"] == "0" and rows[3]["truncated"] == "41" and None not in rows[3]
    tex = latex(found)
    assert "\\begin{tabular}{lrrrr}" in tex and "& $p$ & cut off" in tex and "& 40 \\\\" in tex
    assert "cut off" not in latex(results), "a column of zeros is left out"
    print_table(found, [], None)
    printed = capsys.readouterr().out
    assert note in printed and "cut" in printed and "short" in printed


@pytest.mark.parametrize(("p", "text"), [(0.0004, "<0.001"), (0.0123, "0.012"), (1.0, "1")])
def test_p_values_are_short(p: float, text: str) -> None:
    assert p_value(p) == text
