"""Rounds of which the last alone asks the validation queries (``rounds.choose: last``)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from pydantic import JsonValue
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model, tiny_recipe
from tests.stages.test_loop_ends import Flat, Turning

from cowest.assembly.prepare import prepare
from cowest.costs.workload import workload
from cowest.errors import ConfigError
from cowest.recipe.config import config_from_dict
from cowest.report.rounds import ending
from cowest.results import Results
from cowest.run.progress import QuietReporter
from cowest.stages.choosing import selection_of
from cowest.stages.learn import sft_model
from cowest.stages.loop import begun, taken

pytestmark = pytest.mark.slow
LAST: dict[str, JsonValue] = {"most": 3, "stop": "never", "choose": "last"}
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def three(weak: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("runs") / "three"
    return out, run_tiny(weak, out, Oracle(), Log(), rounds=LAST).results[""]


def validations(out: Path) -> list[str]:
    return sorted(str(p.relative_to(out)) for p in out.rglob("align/validation/*.jsonl"))


def test_only_the_last_round_asks_the_validation_queries(three: tuple[Path, Results], weak: str) -> None:
    out, results = three
    assert validations(out) == [f"round-3/align/validation/step-{n}.jsonl" for n in (0, 2, 4)]
    (context,) = prepare(config_from_dict(tiny_recipe(weak, NOWHERE, rounds=LAST)), out, QuietReporter(), offline=True)
    rounds = begun(context)
    first, second, third = (selection_of(context, round_) for round_ in rounds)
    assert (first.chosen, second.chosen) == (4, 4) and first.best.score is None
    assert rounds[1].policy.weights(context) == context.located(first.model)
    assert rounds[2].policy.weights(context) == context.located(second.model)
    assert third.checkpoints[0].step == 0 and context.located(third.checkpoints[0].model) == sft_model(context)
    assert taken(context).round_.number == 3
    assert [r.after for r in results.rounds[:2]] == [None, None] and results.rounds[2].before is not None
    assert results.rounds[2].taken
    told = ending(results.rounds)
    assert told.endswith("taken: the SFT model" if third.chosen == 0 else f"taken: step {third.chosen} of round 3")


def test_a_finished_one_is_used_again_and_goes_on(three: tuple[Path, Results], weak: str, tmp_path: Path) -> None:
    import shutil

    out, log, oracle = Path(shutil.copytree(three[0], tmp_path / "run")), Log(), Oracle()
    run_tiny(weak, out, oracle, log, rounds=LAST)
    assert not oracle.requests and log.verdicts["align (round 3)"].startswith("reused")
    run_tiny(weak, out, oracle, log, rounds={**LAST, "most": 4})
    assert log.verdicts["align (round 2)"].startswith("reused")
    assert log.verdicts["align (round 3)"].startswith("run again, because the checkpoint is chosen by")
    assert log.verdicts["align (round 4)"] == "run"


def test_the_estimate_counts_one_choice(weak: str, tmp_path: Path) -> None:
    def chosen(rounds: dict[str, JsonValue]) -> float:
        config = config_from_dict(tiny_recipe(weak, NOWHERE, rounds=rounds))
        (context,) = prepare(config, tmp_path / "none", QuietReporter(), offline=True)
        return sum(w.calls.high for w in workload(context, frozenset()) if w.calls_for.startswith("choose"))

    assert chosen(LAST) * 3 == chosen({"most": 3, "stop": "never"}) > 0


def test_a_round_without_pairs_does_not_end_it(weak: str, tmp_path: Path) -> None:
    oracle, out = Flat(), tmp_path / "run"
    results = run_tiny(weak, out, oracle, Turning(oracle), rounds=LAST, cache="off").results[""]
    assert [r.pairs > 0 for r in results.rounds] == [True, False, False] and len(results.rounds) == 3
    assert [r.taken for r in results.rounds] == [True, False, False]  # nothing was learnt after it
    assert "collab_aligned" in results.systems


@pytest.mark.parametrize("more", [{"stop": "no_gain"}, {"strong_calls": 100}])
def test_its_end_has_to_be_known(more: dict[str, JsonValue], weak: str) -> None:
    with pytest.raises(ConfigError, match=r"choose: last .* add `stop: never`"):
        config_from_dict(tiny_recipe(weak, NOWHERE, rounds=cast(JsonValue, LAST | more)))
