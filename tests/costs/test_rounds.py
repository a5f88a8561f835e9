"""What further rounds will cost in a table: what points and variants share is counted once, and nothing else."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue
from tests.costs.test_local import TEST, recipe
from tests.helpers import QUERIES, SAMPLES

from cowest.costs.estimate import Estimate
from cowest.table.estimate import estimate_table

TWO: dict[str, JsonValue] = {"most": 2, "stop": "never"}


def asked(found: Estimate, stage: str, calls_for: str) -> float:
    return sum(s.calls.high for s in found.stages if (s.stage, s.calls_for) == (stage, calls_for))


def trained(found: Estimate) -> list[str]:
    return sorted(s.calls_for for s in found.stages if s.stage == "align" and s.training_tokens.high)


def test_a_point_of_more_rounds_shares_the_first_and_has_a_model_of_its_own(tmp_path: Path) -> None:
    table: JsonValue = {
        "rows": ["strong", "collab_aligned"],
        "baseline": "strong",
        "axis": "rounds",
        "grid": {"one": {}, "two": {"rounds.most": 2}},
    }
    found = estimate_table(recipe(table=table), tmp_path)
    assert asked(found, "sample", "drafts") == QUERIES * SAMPLES == asked(found, "sample", "drafts, round 2")
    assert trained(found) == ["up to 4 steps", "up to 4 steps, round 2"]
    assert asked(found, "rows", "strong") == TEST
    assert asked(found, "rows", "collab_aligned") == 2 * 2 * TEST, "drafted and refined anew: the models differ"


def test_variants_that_share_the_first_drafts_share_no_later_ones(tmp_path: Path) -> None:
    rows: JsonValue = {"rows": ["collab_aligned", "sft_positives"], "baseline": "collab_aligned"}
    found = estimate_table(recipe(table=rows, rounds=TWO), tmp_path)
    assert asked(found, "sample", "drafts") == QUERIES * SAMPLES
    assert asked(found, "sample", "drafts, round 2") == 2 * QUERIES * SAMPLES
    assert asked(found, "feedback", "refine drafts, round 2") == 2 * QUERIES * SAMPLES
    assert len(trained(found)) == 4
