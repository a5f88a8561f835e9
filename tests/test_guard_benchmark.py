"""benchmarks/guard: what it counts as a broken promise, on a population whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.guard.__main__ import HEADER, line, pooled, tail
from benchmarks.guard.cells import NEEDED, WHEN, Cell, recipe
from benchmarks.guard.held_out import of_results, over_worlds
from benchmarks.guard.population import Draw, Row, better_of, described, draws, judged_on, rate
from tests.guard_rows import rows_of

from cowest.assembly.prepare import prepare
from cowest.collaboration.guard.learn import Numbers, expected_of, learn, outcome
from cowest.pipeline import stages_with_guard
from cowest.results import Comparison, MetricValue, Results, SystemResult
from cowest.run.progress import QuietReporter
from cowest.types import Usage

RISK = 0.02


def population(**world: float) -> Numbers:
    return Numbers.of(rows_of(500, 3, **world), ())


def draw(promised: bool, *passed: float, fallback: float = 0.5) -> Draw:
    first = Row(passed[0] if passed else fallback, 0.5)
    return Draw(promised=promised, routes=promised, guarded=first, cascade=first, passed=passed, unseen=0.0)


def test_a_policy_that_passed_and_is_worse_than_promised_breaks_the_promise_of_its_set() -> None:
    pool = population()
    better = max(float(pool.scores["weak"].mean()), float(pool.scores["strong"].mean()))
    sets = [
        draw(True, better, better - RISK),  # as bad as allowed
        draw(True, better + 0.1, better - RISK - 0.001),  # of two that passed one is worse: the row itself is not
        draw(True, better - RISK - 0.001),
        draw(False, fallback=better - RISK - 0.001),  # nothing was promised
        draw(False, fallback=better),
    ]
    found = described(pool, sets, RISK) | {"aligned": False}
    assert (found["sets"], found["promised"], found["routes"]) == (5, 3, 3)
    assert (found["violations"]["broken"], found["violations"]["n"]) == (2, 5)
    assert (found["row_violations"]["broken"], found["row_violations"]["n"]) == (1, 5)
    assert (found["fallback"]["broken"], found["fallback"]["n"]) == (1, 2)
    assert found["better"] == better and found["policies_passed"] == pytest.approx(1.0)
    over = pooled({"a": found, "b": found, "b after": found})  # the last is b itself: nothing was aligned
    assert (over["violations"]["broken"], over["violations"]["n"]) == (4, 10)
    assert "4/10" in tail(over, 0.05) and len(line("a", found)) >= len(HEADER) - len("without a promise")


@pytest.mark.parametrize("when", WHEN)
def test_a_cells_recipe_can_run_and_has_the_stages_that_it_needs(when: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    [context] = prepare(recipe(Cell("medicine", "strong-tiny", when), 100, 5), tmp_path, QuietReporter())
    assert len(context.task.examples("calibration")) == 100 and len(context.task.examples("train")) == 1000
    found = [stage.name for stage in stages_with_guard(context) if stage.name in NEEDED[when]]
    assert found == list(NEEDED[when])


def test_the_interval_of_a_rate_is_the_exact_one() -> None:
    none = rate(0, 200)
    assert none["ci"] == [0.0, pytest.approx(1 - 0.025 ** (1 / 200))]  # (1 - p)^200 = 2.5%
    assert rate(0, 0)["ci"] is None


def test_what_passed_is_judged_on_the_whole_pool_and_by_the_policys_own_steps() -> None:
    pool = population()
    drawn = np.arange(300)
    learned = learn(pool.part(drawn), 0, RISK, 0.05)
    seen = judged_on(pool, learned, drawn)
    rest = pool.part(np.arange(300, 500))
    assert learned.best is not None
    there = outcome(rest, learned.judged, learned.best.candidate, expected_of(rest, learned.judged)).scores
    assert seen.unseen == pytest.approx(float((there - rest.scores[better_of(pool)]).mean()))
    assert seen.promised and seen.routes and len(seen.passed) == len(learned.passed)
    assert seen.guarded.score in seen.passed and seen.cascade.calls <= seen.guarded.calls
    none = judged_on(pool, learn(pool.part(drawn[:60]), 0, RISK, 0.05), drawn[:60])
    assert not none.promised and none.passed == () and none.guarded == none.cascade
    alone = {float(pool.scores["weak"].mean()): 0.0, float(pool.scores["strong"].mean()): 1.0}
    assert alone[none.guarded.score] == none.guarded.calls


def test_sets_are_drawn_with_replacement_and_by_their_number() -> None:
    pool = population()
    one, other = (list(draws(pool, 3, 240, RISK, 0.05, seed=0)) for _ in range(2))
    assert one == other and len({d.guarded.score for d in one}) > 1
    assert list(draws(pool, 2, 240, RISK, 0.05, seed=0)) == one[:2]  # more sets begin with the same ones


def test_a_row_is_compared_with_the_single_model_that_is_better_on_the_test() -> None:
    value = MetricValue(mean=0.5, ci_low=0.4, ci_high=0.6, n=100, n_failed=0)
    means = {"weak": 0.4, "strong": 0.5, "guarded": 0.6, "cascade": 0.5}
    systems = {
        name: SystemResult(metrics={"em": value.model_copy(update={"mean": mean})}, usage=Usage())
        for name, mean in means.items()
    }

    def compared(a: str, b: str, diff: float) -> Comparison:
        low, high = diff - 0.03, diff + 0.05
        return Comparison(a=a, b=b, metric="em", diff=diff, ci_low=low, ci_high=high, p=0.1, test="paired", n=100)

    pairs = (compared("strong", "guarded", -0.1), compared("guarded", "weak", 0.2), compared("cascade", "strong", 0.0))
    found = of_results(Results(name="x", task="x", systems=systems, comparisons=pairs, stages={}))
    assert found["better"] == "strong"
    assert found["guarded above better"]["diff"] == pytest.approx(0.1)
    assert found["guarded above better"]["ci"] == pytest.approx([0.05, 0.13])
    over = over_worlds([found, found], "guarded")
    assert over["n"] == 200 and over["diff"] == pytest.approx(0.1)
    assert over["ci"][1] - over["ci"][0] == pytest.approx(0.08 / 2**0.5)
