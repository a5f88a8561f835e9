"""`cowest table`, `cowest prompts` and `cowest estimate` of a table, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.helpers import cowest_main
from tests.table.test_statistics_and_files import row

from cowest.cli.output_table import print_table
from cowest.systems.registry import SYSTEMS
from cowest.table.plots import write_plots
from cowest.table.results import Table, TableResults

pytest.importorskip("bm25s")
FOLDER = Path(__file__).parents[2] / "recipes"


def test_list_names_every_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowest_main(monkeypatch, "table", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [r.name for r in SYSTEMS]


def test_prompts_prints_the_messages_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cowest_main(monkeypatch, "prompts", "ifqa", "collab_cot") == 0
    out = capsys.readouterr().out
    assert out.count("=== collab_cot, call") == 2 and "<draft>" in out and "--- user" in out
    assert cowest_main(monkeypatch, "prompts", "ifqa", "collab_cot", "--json") == 0
    weak, strong = json.loads(capsys.readouterr().out)
    assert weak["model"] == "weak (sft)" and strong["model"] == "strong"
    assert "<draft>" in strong["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("table",), "give a recipe"),
        (("table", "no.yaml"), "no.yaml: no such recipe"),
        (("table", str(FOLDER / "lab-table.yaml"), "--rows", "flair"), "did you mean 'flare'"),
        (("table", str(FOLDER / "lab-table.yaml"), "--only", "medicine-99"), "the table's units are counterfactuals-11"),
        (("table", str(FOLDER / "lab-table.yaml"), "--reuse", "nowhere"), "--reuse nowhere: no such folder"),
        (("prompts", "ifqa", "colab"), "did you mean 'collab'"),
        (("prompts", "ifqa", "bm25", "--example", "999"), "test queries, counted from 0"),
        (("prompts", "nothing"), "neither a task that ships with cowest nor a recipe"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cowest_main(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err


def test_estimate_prices_a_table_by_its_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(FOLDER / "paper" / "table-medicine.yaml")
    rows = "table.rows=[strong_cot, strong_self_consistency, strong_self_refine, flare, collab_cot, best_of_k]"
    assert cowest_main(monkeypatch, "estimate", recipe, "--json", "--set", "task.sample=true",
                  "--set", "table.baseline=strong_cot", "--set", rows) == 0  # fmt: skip
    found = {s["calls_for"]: s for s in json.loads(capsys.readouterr().out)["stages"]}
    n = found["strong"]["calls"]["expected"]
    assert found["strong_self_consistency"]["calls"]["expected"] == 5 * n
    assert found["strong_self_refine"]["calls"]["expected"] == n  # its first call is strong's
    flare = found["flare"]["calls"]
    assert flare["low"] == n < flare["expected"] < flare["high"] <= 4 * n  # none, and up to three look-ups
    assert found["collab_cot"]["calls"]["expected"] == n
    assert "refine drafts" not in found  # nothing here is aligned, so that no feedback is collected


def results(labels: tuple[str, ...]) -> TableResults:
    tables = [
        Table.model_validate(
            {
                "task": "towns",
                "label": label,
                "metrics": ("em",),
                "rows": {"weak": row(0.4), "flare": row(None), "collab_cot": row(0.5 + i / 10, "best")},
                "differences": [],
                "by_seed": {},
            }
        )
        for i, label in enumerate(labels)
    ]
    return TableResults(name="t", baseline="weak", seeds=[1], axis="amount", tables=tables, left_out={})


@pytest.mark.parametrize("labels", [("",), ("125", "250", "500")])
def test_plots_are_written_with_every_scored_row(labels: tuple[str, ...], tmp_path: Path) -> None:
    (png,) = write_plots(results(labels), tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "plots" / "towns.svg").read_text(encoding="utf-8")
    assert "collab_cot" in svg and "towns" in svg
    assert ("amount" in svg) == (len(labels) > 1)
    assert write_plots(results(labels), tmp_path) == [png]  # and again over the old ones


def test_the_terminal_shows_marks_intervals_and_what_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(results(("",)), [Path("table.md")], None)
    out = capsys.readouterr().out
    assert "* 50.0 [40.0, 60.0]" in out and "not scored" in out and "Written: table.md" in out
