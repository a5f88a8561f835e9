"""``cowest lab study``: a table over the lab recipe, and its claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.helpers import cowest_main

from cowest.errors import ConfigError, ModelNotFoundError
from cowest.run.progress import QuietReporter
from cowest.scoring.statistics import Outcome
from cowest.table.plan import make_plan
from cowest.table.results import TableResults
from cowest.table.study import Claim, Study, claims, parse_seeds, run_study, study_markdown, study_recipe

LABELS = ("yes", "no")


def test_seeds() -> None:
    assert parse_seeds("11,12,13") == [11, 12, 13]
    assert parse_seeds(" 7 ") == [7]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1;2", "1.5", "3,3", "-1", "1,"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


def outcomes(right: int, n: int = 100, failed: int = 0) -> list[Outcome]:
    """The first ``right`` of ``n`` queries right, the last ``failed`` not answered at all."""
    return [
        Outcome(example_id=str(i), answer="yes" if i < right else "no", references=("yes",), failed=i >= n - failed)
        for i in range(n)
    ]


def claimed(**right: int) -> list[Claim]:
    return claims("accuracy", LABELS, {name: outcomes(count) for name, count in right.items()})


def test_claims_that_hold() -> None:
    found = claimed(weak=40, strong=50, collab=70, collab_aligned=85)
    assert [(c.comparison.a, c.comparison.b) for c in found] == [
        ("collab", "strong"),
        ("collab_aligned", "strong"),
        ("collab_aligned", "collab"),
    ]
    assert all(c.holds for c in found)
    assert [c.comparison.diff for c in found] == pytest.approx([0.20, 0.35, 0.15])
    assert all(c.comparison.p is not None and c.comparison.p < 0.01 for c in found)


def test_the_better_model_alone_is_the_one_to_beat() -> None:
    assert claimed(weak=60, strong=50, collab=70, collab_aligned=85)[0].comparison.b == "weak"
    assert claimed(weak=50, strong=60, collab=70, collab_aligned=85)[0].comparison.b == "strong"


@pytest.mark.parametrize(
    ("right", "holds"),
    [
        ({"weak": 40, "strong": 50, "collab": 52, "collab_aligned": 85}, [False, True, True]),  # 2 points: noise
        ({"weak": 40, "strong": 50, "collab": 70, "collab_aligned": 70}, [True, True, False]),  # no difference
        ({"weak": 40, "strong": 80, "collab": 60, "collab_aligned": 40}, [False, False, False]),  # significantly worse
    ],
)
def test_claims_that_do_not_hold(right: dict[str, int], holds: list[bool]) -> None:
    assert [c.holds for c in claimed(**right)] == holds


def test_a_claim_stands_on_the_least_favourable_test() -> None:
    # 7 discordant queries, all one way: exact McNemar gives 2 / 2**7 = 0.0156, the bootstrap less than 0.01.
    (first, *_) = claimed(weak=40, strong=50, collab=57, collab_aligned=90)
    assert first.comparison.test == "mcnemar_exact" and first.comparison.p == pytest.approx(2 / 2**7)
    assert not first.holds


def test_without_a_common_query_nothing_is_claimed() -> None:
    nobody = {name: outcomes(50, failed=100) for name in ("weak", "strong", "collab", "collab_aligned")}
    made = claims("accuracy", LABELS, nobody)
    assert not any(c.holds for c in made)
    assert study_markdown(Study(seeds=[1], claims={"ethics": made})).count("**not tested**") == 3


def test_markdown_and_json() -> None:
    study = Study(seeds=[11], claims={"medicine": claimed(weak=40, strong=50, collab=57, collab_aligned=90)})
    assert not study.holds
    lines = study_markdown(study).splitlines()
    assert lines[1] == "### What is claimed: medicine"
    assert lines[3] == (
        "- collaboration beats the better model alone: **does not hold** "
        "(collab - strong: +7.0 points, p = 0.016, mcnemar_exact, n = 100)"
    )
    assert ": holds (collab_aligned - collab: +33.0 points" in lines[5]
    study = Study(seeds=[11], claims={"medicine": claimed(weak=40, strong=50, collab=70, collab_aligned=90)})
    assert study.holds and Study.model_validate_json(study.model_dump_json()) == study


def test_it_is_a_table_over_the_lab_recipe() -> None:
    plan = make_plan(study_recipe([11, 12], ["ethics", "medicine"], ["sft.max_steps=7"]))
    assert [row.name for row in plan.rows] == ["weak", "strong", "collab", "collab_aligned"]
    assert [(u.task, u.seed) for u in plan.units] == [(d, s) for d in ("ethics", "medicine") for s in (11, 12)]
    for unit in plan.units:
        (config,) = unit.points.values()
        assert config.seed == unit.seed and config.sft.max_steps == 7
        assert config.task is not None and config.task.kind == "lab" and config.task.domain == unit.task


def test_wrong_arguments_start_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown domain 'cooking'"):
        run_study([1], ["cooking"], tmp_path, 1, [], QuietReporter())
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        run_study([1], ["ethics"], tmp_path, 1, ["sft.max_step=1"], QuietReporter())
    with pytest.raises(ModelNotFoundError, match="no such lab model"):
        run_study([1, 2], ["ethics"], tmp_path, 2, ["weak.model=lab:nothing"], QuietReporter())
    assert not list(tmp_path.glob("ethics-*"))


@pytest.mark.slow
def test_the_command_makes_a_table_and_tests_its_claims(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = [
        "sft.max_steps=3", "align.max_steps=1", "align.checkpoints=1", "align.selection_queries=4", "draft.queries=8",
        "draft.samples=2", "tasks.ethics.train=40", "tasks.ethics.validation=4", "evaluate.queries=6",
        "pairs.min_margin=0.001", "feedback.metric=accuracy",
    ]  # fmt: skip
    sets = [word for setting in small for word in ("--set", setting)]
    out = tmp_path / "study"
    arguments = ("lab", "study", "--seeds", "11,12", "--domains", "ethics", "--out", str(out), "--jobs", "1", *sets)
    assert cowest_main(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "| `collab_aligned` |" in said and "### What is claimed: ethics" in said
    study = Study.model_validate_json((out / "study.json").read_bytes())
    results = TableResults.model_validate_json((out / "results.json").read_bytes())
    assert list(study.claims) == ["ethics"] and results.seeds == [11, 12]
    assert (
        {c.comparison.n for c in study.claims["ethics"]}
        == {12}
        == {row.queries for row in results.tables[0].rows.values()}
    )
    assert (out / "study.md").read_text(encoding="utf-8").rstrip() == said.rstrip()
    assert cowest_main(monkeypatch, *arguments, "--json") == 0  # again: nothing is made anew
    captured = capsys.readouterr()
    assert json.loads(captured.out) == study.model_dump(mode="json") and "sft: run" not in captured.err
