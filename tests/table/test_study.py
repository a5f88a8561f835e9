from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cowest.errors import ConfigError, StageError
from cowest.recipe.config import load_config
from cowest.run.progress import QuietReporter
from cowest.scoring.statistics import Outcome, summarise
from cowest.table.study import (
    Claim,
    DomainStudy,
    SeedResult,
    Study,
    _claims,
    _units,
    parse_seeds,
    run_study,
    study_markdown,
)
from cowest.types import MetricValue

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


def claims(**right: int) -> list[Claim]:
    pooled = {name: outcomes(count) for name, count in right.items()}
    values = {name: summarise(("accuracy",), LABELS, rows, 0) for name, rows in pooled.items()}
    return _claims("accuracy", LABELS, pooled, values)


def test_claims_that_hold() -> None:
    found = claims(weak=40, strong=50, collab=70, collab_aligned=85)
    assert [(c.comparison.a, c.comparison.b) for c in found] == [
        ("collab", "strong"),
        ("collab_aligned", "strong"),
        ("collab_aligned", "collab"),
    ]
    assert all(c.holds for c in found)
    assert [c.comparison.diff for c in found] == pytest.approx([0.20, 0.35, 0.15])
    assert all(c.comparison.p is not None and c.comparison.p < 0.01 for c in found)


def test_the_better_model_alone_is_the_one_to_beat() -> None:
    assert claims(weak=60, strong=50, collab=70, collab_aligned=85)[0].comparison.b == "weak"
    assert claims(weak=50, strong=60, collab=70, collab_aligned=85)[0].comparison.b == "strong"


@pytest.mark.parametrize(
    ("right", "holds"),
    [
        ({"weak": 40, "strong": 50, "collab": 52, "collab_aligned": 85}, [False, True, True]),  # 2 points: noise
        ({"weak": 40, "strong": 50, "collab": 70, "collab_aligned": 70}, [True, True, False]),  # no difference
        ({"weak": 40, "strong": 80, "collab": 60, "collab_aligned": 40}, [False, False, False]),  # significantly worse
    ],
)
def test_claims_that_do_not_hold(right: dict[str, int], holds: list[bool]) -> None:
    assert [c.holds for c in claims(**right)] == holds


def test_a_claim_stands_on_the_least_favourable_test() -> None:
    # 7 discordant queries, all one way: exact McNemar gives 2 / 2**7 = 0.0156, the bootstrap less than 0.01.
    (first, *_) = claims(weak=40, strong=50, collab=57, collab_aligned=90)
    assert first.comparison.test == "mcnemar_exact" and first.comparison.p == pytest.approx(2 / 2**7)
    assert not first.holds


def test_without_a_common_query_nothing_is_claimed() -> None:
    pooled = {name: outcomes(50, failed=100) for name in ("weak", "strong", "collab", "collab_aligned")}
    values = {name: summarise(("accuracy",), LABELS, rows, 0) for name, rows in pooled.items()}
    assert not any(c.holds for c in _claims("accuracy", LABELS, pooled, values))


def a_study(**right: int) -> Study:
    value = MetricValue(mean=0.5, ci_low=0.4, ci_high=0.625, n=100, n_failed=0)
    pooled = {name: {"accuracy": value} for name in right}
    means: dict[str, float | None] = {name: n / 100 for name, n in right.items()}
    seeds = [SeedResult(seed=11, means=means | {"weak": None}, chosen_step=40, seconds=61.4)]
    domain = DomainStudy(domain="medicine", metric="accuracy", seeds=seeds, pooled=pooled, claims=claims(**right))
    return Study(seeds=[11], domains=[domain])


def test_markdown() -> None:
    study = a_study(weak=40, strong=50, collab=57, collab_aligned=90)
    assert not study.holds
    lines = study_markdown(study).splitlines()
    assert lines[0] == "### medicine (accuracy, %)"
    assert lines[2] == "| seed | weak | strong | collab | collab_aligned | chosen step | seconds |"
    assert lines[3].count("|") == lines[2].count("|")
    assert lines[4] == "| 11 | not scored | 50.0 | 57.0 | 90.0 | 40 | 61 |"
    assert lines[5] == "| pooled " + "| 50.0 [40.0, 62.5] " * 4 + "| | |"
    assert lines[7] == (
        "- collaboration beats the better model alone: **does not hold** "
        "(collab - strong: +7.0 points, p = 0.016, mcnemar_exact, n = 100)"
    )
    assert ": holds (collab_aligned - collab: +33.0 points" in lines[9]


def test_a_study_that_holds_survives_its_json() -> None:
    study = a_study(weak=40, strong=50, collab=70, collab_aligned=90)
    assert study.holds
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_a_unit_is_a_recipe_of_one_domain_and_seed(tmp_path: Path) -> None:
    units = _units([11, 12], ["ethics", "medicine"], tmp_path, ["sft.max_steps=7"])
    assert sorted({(u.domain, u.seed) for u in units}) == [(d, s) for d in ("ethics", "medicine") for s in (11, 12)]
    assert len({u.out for u in units}) == 4
    for unit in units:
        config = load_config(unit.recipe, ["sft.max_steps=7"])
        assert config.seed == unit.seed and config.sft.max_steps == 7
        assert config.task is not None and config.task.kind == "lab" and config.task.domain == unit.domain
        assert "tasks" not in yaml.safe_load(unit.recipe.read_text())


def test_wrong_arguments_start_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown domain 'cooking'"):
        run_study([1], ["cooking"], tmp_path, 1, [], QuietReporter())
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        run_study([1], ["ethics"], tmp_path, 1, ["sft.max_step=1"], QuietReporter())
    assert not (tmp_path / "ethics-1").exists()


@pytest.mark.slow
def test_a_run_that_fails_stops_the_study_and_names_its_log(tmp_path: Path) -> None:
    overrides = ["weak.model=lab:nothing"]
    with pytest.raises(StageError, match=r"ethics, seed 1 failed \(cowest: lab:nothing.*\); see .*run\.log"):
        run_study([1], ["ethics"], tmp_path, 1, overrides, QuietReporter())
    assert "no such lab model" in (tmp_path / "ethics-1" / "run.log").read_text()
    assert not (tmp_path / "study.json").exists()
