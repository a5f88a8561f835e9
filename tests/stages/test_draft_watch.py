"""A run looks at itself: each kind of useless refined answers is found early, and a healthy pair is left in peace."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from tests.helpers import Log

from cowest.assembly.context import Context
from cowest.errors import StageError
from cowest.stages.draft_watch import FIRST, DraftWatch, Limits, Mode, Seen, findings
from cowest.tasks.base import CLASS_METRICS, OPEN_METRICS, SimpleTask
from cowest.types import Example, Refinement

LABELS = ("yes", "no", "maybe")
LIMITS = Limits("feedback.sampling.max_tokens", 160)
GOLD = ("yes", "yes", "no", "maybe", "yes", "no")


def example(number: int, right: str) -> Example:
    return Example(id=f"q{number}", input=f"Question {number}?", references=(right,))


def rows(n: int, draft: str, alone: str, refined: str) -> list[Seen]:
    """``n`` queries; an answer is said, or ``right``, ``wrong``, ``draft``, ``alone``, ``none`` or ``cut``."""
    made = []
    for i in range(n):
        right = GOLD[i % len(GOLD)]
        words = {"right": right, "wrong": LABELS[(LABELS.index(right) + 1 + i % 2) % 3], "none": None, "cut": None}
        said = {"draft": words.get(draft, draft)}
        said["alone"] = words.get(alone, alone)
        final = said.get(refined, words.get(refined, refined))
        made.append(
            Seen(example(i, right), said["draft"], final, said["alone"], refined == "cut", alone == "cut", closed=True)
        )
    return made


def kinds(seen: list[Seen], labels: tuple[str, ...] = LABELS) -> list[str]:
    return [found.kind for found in findings(seen, labels, LIMITS)]


def test_no_to_all_drafts_as_a_real_model_did_is_found_at_the_first_look() -> None:
    seen = [*rows(FIRST - 1, "right", "right", "no"), *rows(1, "right", "right", "yes")]
    (found, *_) = findings(seen, LABELS, LIMITS)
    assert found.kind == "one class"
    assert 'says "no" 35 of 36 times (right 11 of 36 times, alone it says so 11 of 36 times' in found.text
    assert "prompts.refine" in found.advice
    assert 'For example q0: right "yes", draft "yes", alone "yes", with the draft "no"; q1: ' in str(found)


def test_one_class_is_none_where_it_is_right_or_what_the_model_says_anyway() -> None:
    skewed = [Seen(example(i, "no"), "no", "no", "no", False, False, True) for i in range(60)]
    assert kinds(skewed) == []
    assert "one class" not in kinds(rows(60, "right", "no", "no")), "alone it says so, too"
    assert "one class" in kinds(rows(36, "right", "cut", "no")), "alone it was cut off: the right answers tell"


def test_a_weak_model_that_has_learned_one_class_is_named_as_the_cause() -> None:
    (found,) = findings(rows(36, "no", "right", "draft"), LABELS, LIMITS)
    assert found.kind == "one class" and found.advice.startswith("So do the drafts")


def test_texts_without_an_answer() -> None:
    assert kinds([*rows(20, "right", "right", "none"), *rows(16, "right", "right", "right")]) == ["no answer"]
    few = [*rows(11, "right", "right", "none"), *rows(25, "right", "wrong", "right")]
    assert kinds(few) == ["no answer"], "fewer, but alone it never happens"
    assert kinds([*rows(6, "right", "none", "none"), *rows(30, "right", "wrong", "right")]) == []
    assert findings(rows(36, "right", "right", "none"), LABELS, Limits("x", 1, reads=False)) == []


def test_answers_that_were_cut_off_alone_or_with_the_draft() -> None:
    seen = [*rows(33, "right", "cut", "right"), *rows(3, "right", "right", "right")]
    (found,) = findings(seen, LABELS, LIMITS)
    assert found.kind == "unscored"
    assert "33 of 36 queries cannot be scored: cut off before an answer, with the draft 0, alone 33" in found.text
    assert "Raise feedback.sampling.max_tokens from 160 to 320" in found.advice
    assert kinds(rows(36, "right", "right", "cut")) == ["unscored"]
    assert kinds([*rows(4, "right", "cut", "right"), *rows(32, "right", "wrong", "right")]) == []


def test_drafts_that_are_ignored() -> None:
    seen = rows(60, "right", "wrong", "alone")
    (found,) = findings(seen, LABELS, LIMITS)
    assert found.kind == "ignored"
    assert "followed 0 of 60 times, and the answer stays as it is alone 60 of 60 times" in found.text
    assert kinds(rows(60, "right", "right", "alone")) == [], "where both say the same there is nothing to ignore"
    assert kinds([*rows(50, "right", "wrong", "alone"), *rows(10, "right", "wrong", "draft")]) == []


def test_drafts_that_are_always_copied() -> None:
    seen = [*rows(100, "wrong", "right", "draft"), *rows(100, "right", "wrong", "draft")]
    (found,) = findings(seen, LABELS, LIMITS)
    assert found.kind == "copied" and "taken 200 of 200 times, 100 wrong ones among them" in found.text
    assert "wrong" not in str(found.examples[0]) and found.examples[0].draft != found.examples[0].alone
    assert kinds([*rows(190, "wrong", "right", "draft"), *rows(10, "wrong", "right", "alone")]) == []


def watch(
    log: Log,
    mode: Mode,
    refined: Callable[[int], str],
    n: int,
    draft: str = "yes",
    among: bool = False,
    in_order: bool = True,
) -> DraftWatch:
    """``among``: the answers alone come among the others. ``in_order``: all are asked."""
    queries = [example(i, GOLD[i % len(GOLD)]) for i in range(n)]
    task = SimpleTask("t", CLASS_METRICS, LABELS, "say", {"train": tuple(queries)})
    alone = {e.id: Refinement(example_id=e.id, draft_id=None, text=f"Hm.\nAnswer: {e.references[0]}") for e in queries}
    context = cast(Context, SimpleNamespace(task=task, reporter=log, label="towns: "))
    return DraftWatch(
        context,
        "refine drafts",
        mode,
        "feedback.watch",
        LIMITS,
        {f"{e.id}#0": e for e in queries},
        lambda a: f"Answer: {draft}",
        None if among else alone,
        in_order,
    )


def refinement(number: int, answer: str, k: int = 0, error: str | None = None) -> Refinement:
    text = None if error else f"So be it.\nAnswer: {answer}"
    return Refinement(example_id=f"q{number}", draft_id=f"q{number}#{k}", text=text, error=error)


def alone_(number: int, error: str | None = None) -> Refinement:
    text = None if error else f"Hm.\nAnswer: {GOLD[number % len(GOLD)]}"
    return Refinement(example_id=f"q{number}", draft_id=None, text=text, error=error)


def test_with_lots_those_that_are_asked_are_looked_at_whatever_comes_before_them() -> None:
    def told(arrivals: range, first: bool) -> list[str]:
        """``first``: the answers are there before it is said that they are next, as when a run goes on."""
        log = Log()
        looking = watch(log, "warn", lambda i: "no", 200, in_order=False)
        lots = [range(100, 140), range(140, 180)]  # the first hundred queries are never asked
        for lot in lots if not first else ():
            looking.then(f"q{i}#0" for i in lot)
        for i in arrivals:
            looking.see(refinement(i, "no"))
        for lot in lots if first else ():
            looking.then(f"q{i}#0" for i in lot)
        return log.lines

    lines = told(range(100, 180), False)
    assert lines and f"{FIRST} queries looked at" in lines[0]
    assert "40 queries looked at" in told(range(100, 180), True)[0]
    assert told(range(100), False) == []


def test_a_query_is_looked_at_when_its_answer_alone_is_there_too_whichever_comes_first() -> None:
    log = Log()
    looking = watch(log, "warn", lambda i: "no", 100, among=True)
    for i in range(FIRST):
        looking.see(refinement(i, "no"))
    assert log.lines == []
    for i in range(1, FIRST):
        looking.see(alone_(i))
    looking.look()
    assert log.lines == [], "the first query is awaited"
    looking.see(alone_(0, error="timeout: late"))
    assert "36 of 36 times" in log.lines[0] and "alone it says so 12 of 35 times" in log.lines[0]
    early = Log()
    looking = watch(early, "warn", lambda i: "no", 100, among=True)
    for i in range(FIRST):
        looking.see(alone_(i))
    for i in range(FIRST):
        assert early.lines == []
        looking.see(refinement(i, "no"))
    assert "alone it says so 12 of 36 times" in early.lines[0]


def test_it_warns_once_at_the_first_look_and_counts_a_query_once() -> None:
    log = Log()
    looking = watch(log, "warn", lambda i: "no", 300)
    for i in range(FIRST - 1):
        for k in range(4):
            looking.see(refinement(i, "no", k))
    looking.see(refinement(FIRST - 1, "no", error="timeout: late"))
    assert log.lines == []
    for i in range(FIRST, 300):
        looking.see(refinement(i, "no"))
        assert len(log.lines) == 1
    assert log.lines[0].startswith("towns: refine drafts: warning: with a draft the strong model says")
    assert "(36 queries looked at)" in log.lines[0] and "Ctrl-C stops here" in log.lines[0]
    assert looking.warnings == (log.lines[0].removeprefix("towns: refine drafts: warning: ").split(". Ctrl-C")[0],)


def test_stop_names_the_setting_and_off_says_nothing() -> None:
    log = Log()
    looking = watch(log, "stop", lambda i: "no", 60)
    with pytest.raises(StageError, match=r"stopped by feedback.watch: stop.*--set feedback.watch=warn"):
        for i in range(60):
            looking.see(refinement(i, "no"))
    assert i == FIRST - 1
    silent = watch(log, "off", lambda i: "no", 60)
    for i in range(60):
        silent.see(refinement(i, "no"))
    silent.look()
    assert log.lines == [] and silent.warnings == ()


def test_answers_count_in_the_order_of_asking_not_of_coming() -> None:
    log = Log()
    looking = watch(log, "warn", lambda i: "no", 100)
    for i in range(99, 0, -1):  # what is short comes first, and is no sample of the whole
        looking.see(refinement(i, "no"))
        assert log.lines == []
    looking.see(refinement(0, "no"))
    assert "(100 queries looked at)" in log.lines[0]


def test_fewer_queries_are_looked_at_when_all_are_there() -> None:
    log = Log()
    looking = watch(log, "warn", lambda i: "no", 24)
    for i in range(24):
        looking.see(refinement(i, "no"))
    assert log.lines == []
    looking.look()
    assert len(log.lines) == 1


def test_a_models_text_cannot_play_with_the_terminal() -> None:
    text = "\x1b[2Jyes\n\u202eno" * 9
    seen = [Seen(example(i, "a"), "b", text, "c", False, False, False) for i in range(3)]
    assert "\x1b" not in str(seen[0]) and "\u202e" not in str(seen[0]) and "\n" not in str(seen[0])
    assert len(str(seen[0])) < 120


# (right alone, draft right, follows a draft that says otherwise, right in its own way, no answer): healthy pairs of all sorts.
HEALTHY = {
    "the lab's ethics": (0.2, 0.6, 0.935, 0.2, 0.0),
    "a sceptic": (0.6, 0.45, 0.3, 0.5, 0.02),
    "hardly moved": (0.6, 0.45, 0.2, 0.3, 0.05),
    "a weak real model": (0.45, 0.41, 0.5, 0.3, 0.15),
    "a strong one": (0.85, 0.6, 0.4, 0.5, 0.01),
}


def simulated(rng: np.random.Generator, n: int, pair: tuple[float, float, float, float, float]) -> list[Seen]:
    """A pair whose draft, own and refined answers are drawn by these rates; the right answers lean as PubMedQA's do."""
    right_alone, right_draft, follows, own_way, silent = pair
    made = []
    for i in range(n):
        right = str(rng.choice(LABELS, p=(0.55, 0.34, 0.11)))

        def say(rate: float, right: str = right) -> str:
            return right if rng.random() < rate else str(rng.choice([w for w in LABELS if w != right]))

        draft, alone = say(right_draft), say(right_alone)
        refined = draft if alone == draft or rng.random() < follows else right if rng.random() < own_way else alone
        text = None if rng.random() < silent else refined
        own = None if rng.random() < silent else alone
        made.append(Seen(example(i, right), draft, text, own, False, False, closed=True))
    return made


def alarms(pair: tuple[float, float, float, float, float], runs: int, seed: int, n: int = 300) -> dict[str, int]:
    """How many of so many runs of ``n`` queries say something at any of their looks, by kind."""
    rng, found = np.random.default_rng(seed), dict[str, int]()
    for _ in range(runs):
        seen = simulated(rng, n, pair)
        said = {kind for look in (36, 72, 144, 288, n) for kind in kinds(seen[:look])}
        for kind in said or {"nothing"}:
            found[kind] = found.get(kind, 0) + 1
    return found


@pytest.mark.parametrize("pair", HEALTHY.values(), ids=HEALTHY.keys())
def test_healthy_pairs_are_left_in_peace(pair: tuple[float, float, float, float, float]) -> None:
    assert alarms(pair, 40, seed=7) == {"nothing": 40}


def test_sick_ones_are_found_in_every_run() -> None:
    assert alarms((0.6, 0.45, 0.0, 0.0, 0.02), 15, seed=8)["ignored"] == 15
    assert alarms((0.4, 0.5, 1.0, 0.0, 0.0), 15, seed=8, n=600)["copied"] == 15
    assert alarms((0.6, 0.45, 0.5, 0.5, 0.6), 15, seed=8)["no answer"] == 15


def test_open_answers_have_no_classes() -> None:
    task = SimpleTask("t", OPEN_METRICS, (), "say", {"train": (example(0, "x"),)})
    seen = [Seen(example(i, f"a{i}"), f"a{i}", "paris", f"b{i}", False, False, False) for i in range(72)]
    assert kinds(seen, task.labels) == [], "a third answer to each is neither ignored nor copied"
