"""A loop that goes wrong, or is changed, on its way: a clear end or a stated continuation, and nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from tests.helpers import QUERIES, SAMPLES, Log, Oracle, run_tiny, save_tiny_model, tiny_recipe, world
from transformers import AutoModelForCausalLM

from cowest.assembly.prepare import prepare
from cowest.costs.estimate import estimate, paid_requests
from cowest.costs.workload import workload
from cowest.errors import BudgetExceededError
from cowest.ledger.summary import summarise_ledger
from cowest.pipeline import export_weak
from cowest.recipe.config import config_from_dict
from cowest.results import Results
from cowest.run.progress import QuietReporter
from cowest.run.store import JsonlFile
from cowest.stages.evaluate import weak_ref
from cowest.stages.loop import begun, ended, taken
from cowest.types import Draft, Message, Prediction, PreferencePair, Refinement, Sampling

pytestmark = pytest.mark.slow
TWO: dict[str, JsonValue] = {"most": 2, "stop": "never"}
NOWHERE = "http://127.0.0.1:9/v1"


class Flat(Oracle):
    """Always right once the second round asks, so that no draft is better than another.

    Wants ``cache: off``: equal requests of the first round are not asked again.
    """

    flat = False

    def _reply(self, messages: Sequence[Message], sampling: Sampling) -> str:
        right = self._answers[messages[-1].content.partition("\nDraft: ")[0]]
        return f"Answer: {right}" if self.flat else super()._reply(messages, sampling)


class Turning(Log):
    """Turns the oracle flat as the second round begins to ask it."""

    def __init__(self, oracle: Flat) -> None:
        super().__init__()
        self._oracle = oracle

    def info(self, text: str) -> None:
        self._oracle.flat |= text.startswith("feedback (round 2): run")
        super().info(text)


class Rising(Oracle):
    """Right about every validation query once the second round's checkpoints are scored."""

    risen = False

    def _reply(self, messages: Sequence[Message], sampling: Sampling) -> str:
        question_ = messages[-1].content.partition("\nDraft: ")[0]
        if self.risen and question_ in {e.input for e in world().examples("validation")}:
            return f"Answer: {self._answers[question_]}"
        return super()._reply(messages, sampling)


class Watching(Log):
    """Lets the oracle rise as the second round aligns."""

    def __init__(self, oracle: Rising) -> None:
        super().__init__()
        self._oracle = oracle

    def info(self, text: str) -> None:
        self._oracle.risen |= text.startswith("align (round 2): run")
        super().info(text)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def one(weak: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one round."""
    out = tmp_path_factory.mktemp("runs") / "one"
    run_tiny(weak, out, Oracle())
    return out


def copied(run_: Path, target: Path) -> Path:
    return Path(shutil.copytree(run_, target / "run"))


def results(out: Path) -> Results:
    return Results.model_validate_json((out / "results.json").read_bytes())


def test_a_second_round_without_pairs_ends_the_loop_and_the_first_ones_model_stands(weak: str, tmp_path: Path) -> None:
    """``most`` is 2, too: why there was nothing to learn from is what is said."""
    oracle = Flat()
    run_tiny(weak, tmp_path / "run", oracle, Turning(oracle), rounds=TWO, cache="off")
    first, second = results(tmp_path / "run").rounds
    assert (first.taken, second.taken) == (True, False)
    assert first.pairs > 0 and second.pairs == 0 and second.after is None
    assert second.ended is not None and second.ended.startswith("round 2 had nothing to learn from: ")
    assert "collab_aligned" in results(tmp_path / "run").systems


def test_with_the_pairs_of_earlier_rounds_there_is_something_to_learn_from(weak: str, tmp_path: Path) -> None:
    oracle = Flat()
    run_tiny(weak, tmp_path / "run", oracle, Turning(oracle), rounds={**TWO, "pairs": "all"}, cache="off")
    first, second = results(tmp_path / "run").rounds
    assert second.pairs == first.pairs > 0 and second.after is not None


def test_a_hard_budget_that_ends_in_mid_round_loses_nothing(weak: str, one: Path, tmp_path: Path) -> None:
    whole, cut = Oracle(), Oracle()
    run_tiny(weak, copied(one, tmp_path / "whole"), whole, rounds=TWO)
    out = copied(one, tmp_path / "cut")
    before = len(paid_requests(out / "ledger.sqlite"))
    with pytest.raises(BudgetExceededError, match="refine drafts: "):
        run_tiny(weak, out, cut, rounds=TWO, budget_calls=before + 5)
    assert len(cut.requests) == 5 and (out / "round-2/drafts.jsonl").is_file()
    log = Log()
    run_tiny(weak, out, cut, log, rounds=TWO)
    assert log.verdicts["sample (round 2)"].startswith("reused")
    assert log.verdicts["feedback (round 2)"] == "continued where it stopped"
    assert len(cut.requests) == len(whole.requests), "what was paid for before the end is not asked again"
    other = tmp_path / "whole/run"
    for name in ("pairs.jsonl", "round-2/pairs.jsonl"):
        a, b = (JsonlFile(folder / name, PreferencePair).load() for folder in (out, other))
        assert a == b
    assert [r.after for r in results(out).rounds] == [r.after for r in results(other).rounds]


def test_a_recipe_that_changes_between_rounds_says_what_is_made_again(weak: str, one: Path, tmp_path: Path) -> None:
    out = copied(one, tmp_path)
    run_tiny(weak, out, Oracle(), rounds=TWO)
    log, align = Log(), tiny_recipe(weak, NOWHERE)["align"]
    assert isinstance(align, dict)
    run_tiny(weak, out, Oracle(), log, rounds=TWO, align=align | {"beta": 0.3})
    assert log.verdicts["feedback"].startswith("reused")
    for name in ("align", "align (round 2)"):
        assert log.verdicts[name].startswith("run again, because align.beta changed from 0.1 to 0.3")
    assert log.verdicts["sample (round 2)"].startswith("run again, because align changed")
    log = Log()
    run_tiny(weak, out, Oracle(), log, rounds={**TWO, "reference": "sft"}, align=align | {"beta": 0.3})
    again = {name for name, why in log.verdicts.items() if why.startswith("run again")}
    assert again <= {"align (round 2)", "evaluate"} and "align (round 2)" in again
    log = Log()
    run_tiny(weak, out, Oracle(), log, align=align | {"beta": 0.3})
    assert [r.number for r in results(out).rounds] == [] and log.verdicts["align"].startswith("reused")


def test_a_second_round_may_draft_for_other_queries(weak: str, tmp_path: Path) -> None:
    oracle = Oracle()
    run_tiny(weak, tmp_path / "run", oracle, rounds={**TWO, "queries": "next"})

    def asked(name: str) -> list[str]:
        return [d.example_id for d in JsonlFile(tmp_path / "run" / name, Draft).load()]

    assert not {*asked("drafts.jsonl")} & {*asked("round-2/drafts.jsonl")}
    assert len(asked("round-2/drafts.jsonl")) == QUERIES * SAMPLES
    alone = JsonlFile(tmp_path / "run/round-2/solo.jsonl", Refinement).load()
    assert {a.example_id for a in alone} == {*asked("round-2/drafts.jsonl")}
    assert sum(a.usage.calls for a in alone) == QUERIES, "the strong model has not answered these before"
    second = results(tmp_path / "run").rounds[1]
    assert QUERIES < second.strong_calls <= QUERIES * (1 + SAMPLES)


@pytest.mark.parametrize("queries", ["same", "next"])
def test_a_second_round_asks_as_much_as_was_estimated(weak: str, one: Path, tmp_path: Path, queries: str) -> None:
    """Between bounds before its drafts are there; exactly once they are."""
    out, oracle, rounds = copied(one, tmp_path), Oracle(), {**TWO, "queries": queries}
    recipe = config_from_dict(tiny_recipe(weak, NOWHERE, rounds=rounds))
    before = estimate(recipe, out)
    with pytest.raises(BudgetExceededError):  # at the first call: the drafts are there
        run_tiny(weak, out, oracle, rounds=rounds, budget_calls=len(paid_requests(out / "ledger.sqlite")) + 1)
    stopped = len(oracle.requests)
    [context] = prepare(recipe, out, QuietReporter())
    feedback = [w for w in workload(context, paid_requests(out / "ledger.sqlite")) if w.stage == "feedback"]
    left = sum(w.calls.low for w in feedback)
    assert left == sum(w.calls.high for w in feedback) > 0
    run_tiny(weak, out, oracle, rounds=rounds)
    paid = summarise_ledger(out / "ledger.sqlite").by_purpose_and_model()
    assert left + stopped == results(out).rounds[1].strong_calls
    assert left + stopped == paid[context.purpose("feedback (round 2)"), "strong"].calls
    assert before.calls.low <= len(oracle.requests) <= before.calls.high
    assert estimate(recipe, out).calls.high == 0


def test_a_round_that_has_begun_may_take_no_call_at_all(weak: str, one: Path, tmp_path: Path) -> None:
    """Where its drafts are those of the first: what was asked about them then is not asked again, unless the cache is off."""

    def fewest(**changes: JsonValue) -> dict[str, float]:
        recipe = config_from_dict(tiny_recipe(weak, NOWHERE, rounds=TWO, **changes))
        [context] = prepare(recipe, one, QuietReporter(), True)
        found = workload(context, paid_requests(one / "ledger.sqlite"))
        return {w.calls_for: w.calls.low for w in found if w.stage in ("feedback", "align") and w.model.paid}

    there = fewest()
    assert (there["refine drafts, round 2"], there["choose a checkpoint, round 2"]) == (0, 0)
    assert fewest(cache="off")["refine drafts, round 2"] == QUERIES


def test_an_answer_that_is_cut_off_is_wrong_in_the_test_as_it_is_in_the_scores(weak: str, tmp_path: Path) -> None:
    """The first has half of its answers cut off, the second answers those: a rise, and the test has to see it."""
    from tests.stages.test_loop import looped, with_scores

    context = looped(weak, tmp_path, most=2, stop="test")
    with_scores(context, 1, [0.0, 1.0])
    queries = context.task.examples("validation")[:8]
    for step in (0, 1):
        rows = [
            Prediction(
                example_id=e.id, system="s", text=f"Answer: {e.references[0]}" if step else "", truncated=not step
            )
            for e in queries
        ]
        context.run.file(f"align/validation/step-{step}.jsonl", Prediction).replace(rows)
    assert len(begun(context)) == 2 and taken(context).best.score == 1.0
    assert ended(context, begun(context)[:1]) is None


def test_the_round_that_was_taken_is_what_is_evaluated_and_exported(weak: str, tmp_path: Path) -> None:
    oracle, align = Rising(), tiny_recipe(weak, NOWHERE)["align"]
    assert isinstance(align, dict)
    out, fast = tmp_path / "run", align | {"learning_rate": 2e-2}
    run_tiny(weak, out, oracle, Watching(oracle), rounds=TWO, align=fast)
    first, second = results(out).rounds
    assert (first.taken, second.taken) == (False, True) and (second.after or 0) > (second.before or 0)
    [context] = prepare(
        config_from_dict(tiny_recipe(weak, NOWHERE, rounds=TWO, align=fast)), out, QuietReporter(), True
    )
    aligned, made = weak_ref(context, "aligned"), out / f"round-2/align/step-{second.step}/model"
    assert aligned.base == str(made)

    exported = export_weak(out, "aligned", tmp_path / "exported")
    of_it, of_first = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (exported.base, made))
    assert all(torch.equal(of_it[name], of_first[name]) for name in of_first)
    before = AutoModelForCausalLM.from_pretrained(out / "sft/model").state_dict()
    assert not all(torch.equal(of_it[name], before[name]) for name in before)
    page = (out / "report.html").read_text()
    assert f"taken: step {second.step} of round 2" in page
