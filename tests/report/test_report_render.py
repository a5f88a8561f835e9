"""The page as text: numbers, missing parts, escaping. What a browser makes of it is in test_report_browser.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from cowest.report.data import (
    AnswerView,
    CheckpointView,
    CurvePoint,
    GuardPoint,
    GuardRow,
    GuardView,
    JudgeView,
    JudgingView,
    QueryView,
    RunReport,
    TaskReport,
    TrainingCurve,
)
from cowest.report.html import render
from cowest.report.naming import described, order_systems, p_value, percent, points, target_of, visible
from cowest.report.plots import checkpoints_plot, curve_plots, gains_plot, systems_plot
from cowest.report.queries import outcome, query_list, script_json
from cowest.report.verdict import contrast, verdicts
from cowest.results import Comparison, MetricValue, Results, SystemResult
from cowest.scoring.powered import Agreement, agreement, powered_mean
from cowest.scoring.statistics import Outcome
from cowest.scoring.uptake import Case, right_by, uptake_of
from cowest.systems.registry import SYSTEMS
from cowest.types import Message, Usage

Make = Callable[..., TaskReport]
MakeReport = Callable[..., RunReport]


class Page(HTMLParser):
    """Collects tags, ids, links and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data.append(data)
        else:
            self.text += data

    @property
    def words(self) -> str:
        """The visible text with single spaces."""
        return " ".join(self.text.split())


def metric(mean: float | None, low: float | None = None, high: float | None = None, failed: int = 0) -> MetricValue:
    return MetricValue(mean=mean, ci_low=low, ci_high=high, n=100 - failed, n_failed=failed)


def results(means: dict[str, float | None], comparisons: list[Comparison] | None = None) -> Results:
    systems = {n: SystemResult(metrics={"em": metric(m)}, usage=Usage()) for n, m in means.items()}
    return Results(name="t", task="t", systems=systems, comparisons=comparisons or [], stages={})


def row(
    a: str, b: str, diff: float | None, low: float | None, high: float | None, p: float | None, n: int = 100
) -> Comparison:
    return Comparison(a=a, b=b, metric="em", diff=diff, ci_low=low, ci_high=high, p=p, test="paired bootstrap", n=n)


MEANS: dict[str, float | None] = {"weak": 0.68, "strong": 0.5, "collab": 0.75, "collab_aligned": 0.79}


def test_page_has_the_numbers_of_a_full_task(make_report: MakeReport) -> None:
    report = make_report()
    text = Page(render(report)).words
    for system in report.tasks[0].results.systems.values():
        for value in system.metrics.values():
            assert f"{percent(value.mean)}{percent(value.ci_low)} to {percent(value.ci_high)}" in text
    assert "beats the better single model (weak alone" in text
    assert "2,400" in text and "12 dropped: no answer found in the refinement" in text
    assert "weak is weak (SFT) alone" in text and "collab_aligned is collaboration, aligned weak" in text
    assert "This list needs JavaScript" in text
    assert "Overview" not in text


NASTY = "</p><script>alert(1)</script>"


def judge(name: str, agreed: Agreement | None) -> JudgeView:
    return JudgeView(
        model=name,
        compared=40,
        failed=2,
        better=20,
        worse=10,
        ties=10,
        inconsistent=8,
        first=60,
        sided=64,
        agreement=agreed,
    )


def test_what_judges_say_is_a_table_of_their_habits_and_agreement(make_task: Make) -> None:
    agreed = agreement([1, 1, -1, 0], [1, -1, -1, 0])
    gain = powered_mean([1.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.5], [0.5, 0.0])
    one = JudgingView(number=1, metric="f1", judges=(judge(NASTY, agreed),), equal=7, agreement=agreed, gain=gain)
    task = make_task()
    assert "What the judges say" not in render(RunReport(title="t", tasks=[task]))
    page = render(RunReport(title="t", tasks=[task.model_copy(update={"judging": [one]})]))
    words = Page(page).words
    assert NASTY not in page and words.count(NASTY) == 1, "a judge's name is text"
    assert "402201010 (8)94% of 6475% [30, 95] of 40.641" in words, (
        "pairs, none, better, worse, ties, first, agrees, kappa"
    )
    assert "7 drafts after which the answer is that without a draft were not compared." in words
    assert gain is not None and f"Mean gain by f1: {gain.mean:+.3f} [{gain.ci_low:+.3f}, {gain.ci_high:+.3f}]" in words
    assert "round" not in words.split("What the judges say")[1].split("Test queries")[0]
    two = one.model_copy(
        update={"number": 2, "judges": (judge("a", None), judge("b", agreed)), "gain": None, "equal": 0}
    )
    both = Page(render(RunReport(title="t", tasks=[task.model_copy(update={"judging": [one, two]})]))).words
    assert "a, round 2" in both and "all judges, round 2" in both and "Round 1: 7 drafts after" in both
    assert "Round 2: 0" not in both
    same = judge("c", None).model_copy(update={"first": 64, "compared": 32, "better": 0, "worse": 0})
    lazy = one.model_copy(update={"judges": (same,)})
    told = Page(render(RunReport(title="t", tasks=[task.model_copy(update={"judging": [lazy]})]))).words
    assert "c prefers the answer that is shown first in more than 95% of its verdicts" in told


def test_a_guard_is_a_promise_a_table_and_quality_against_calls(make_task: Make) -> None:
    value = metric(0.5, 0.4, 0.6)
    rows = (
        GuardRow(name="weak", score=value, calls=0.0, tokens=1234.4),
        GuardRow(
            name=NASTY, score=value, calls=0.25, tokens=10, cost_usd=0.0012, answered={"weak": 0.75, "both": 0.25}
        ),
    )
    points = (
        GuardPoint(score=0.61, calls=0.3, kept=True),
        GuardPoint(score=0.4, calls=0.8, kept=False),
        GuardPoint(score=0.5, calls=0.0, kept=False, name="weak"),
        GuardPoint(score=0.62, calls=0.25, kept=True, name="guarded"),
    )
    view = GuardView(promised=True, told=(f"promised: {NASTY}",), metric="em", rows=rows, points=points)
    task = make_task()
    assert "The guard" not in render(RunReport(title="t", tasks=[task]))
    page = render(RunReport(title="t", tasks=[task.model_copy(update={"guard": view})]))
    words = Page(page).words
    assert NASTY not in page and words.count(NASTY) == 2
    assert "weak50.0 [40.0, 60.0]0.001,234——" in words and "0.2510$0.00120weak 75%, both 25%" in words
    assert "On the certifying queries: weak 50.0% at 0.00 calls; guarded 62.0% at 0.25 calls." in words


def test_what_the_strong_model_does_with_a_draft_and_what_the_run_noticed(make_task: Make) -> None:
    cases = [
        Case(
            draft="yes",
            final=Outcome(example_id=str(i), answer="yes", references=(("yes", "no")[i % 2],)),
            solo=Outcome(example_id=str(i), answer="no", references=(("yes", "no")[i % 2],)),
            closed=True,
        )
        for i in range(10)
    ]
    task = make_task()
    plain = Page(render(RunReport(title="t", tasks=[task]))).words
    assert "What the strong model does with a draft" not in plain and "Warning" not in plain
    systems, stages = dict(task.results.systems), dict(task.results.stages)
    uptake = uptake_of(cases, right_by(("accuracy",), True), seed=0)
    for name in ("collab", NASTY):
        systems[name] = systems["collab"].model_copy(update={"uptake": uptake})
    stages["sft"] = stages["sft"].model_copy(update={"warnings": (f'it says "{NASTY}\x1b"',)})
    found = task.results.model_copy(update={"systems": systems, "stages": stages})
    page = render(RunReport(title="t", tasks=[task.model_copy(update={"results": found})]))
    words = Page(page).words
    assert NASTY not in page and words.count(NASTY) >= 3 and "\x1b" not in page
    assert f'Warning, sft: it says "{NASTY}␛"' in words
    assert "copied its answer is the draft's" in words.replace("copiedits", "copied its")
    assert "10010 of 1072 to 100" in words, "value, counts and Wilson's interval"
    assert "the draft's answer is the final one +100.0 points [+100.0, +100.0] more often than alone" in words


def test_several_tasks_get_an_overview_and_links_that_lead_somewhere(make_report: MakeReport) -> None:
    page = Page(render(make_report(3, n=12)))
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert {"#overview", "#task-1", "#task-2", "#task-3"} <= set(links)
    assert all(link and link[1:] in ids for link in links)
    assert len(ids) == len(set(ids)), "an id occurs twice"
    labels = " ".join(a.get("aria-label") or "" for _, a in page.tags)
    assert all(name in page.text and name in labels for name in ("medicine", "counterfactuals", "ethics"))


def test_page_loads_nothing_and_pins_its_script(make_report: MakeReport) -> None:
    html = render(make_report())
    page = Page(html)
    assert "default-src 'none'" in html and "script-src 'sha256-" in html
    assert not [t for t, a in page.tags if t in ("link", "img", "iframe", "object", "embed", "base") or "src" in a]
    assert not [a for _, a in page.tags if str(a.get("href") or a.get("xlink:href") or "#")[0] != "#"]
    assert not re.search(r"url\((?!#)|@import|@font-face", html)
    assert not [a for _, a in page.tags for key in a if key.startswith("on")]


def test_missing_parts_are_left_out() -> None:
    task = TaskReport(results=results(MEANS), main_metric="em")
    text = Page(render(RunReport(title="T", tasks=[task]))).words
    assert "no paired comparison is recorded" in text
    for heading in ("Training the weak model", "From drafts to preference pairs", "Test queries", "Compared on"):
        assert heading not in text
    nothing = TaskReport(results=results({}), main_metric="em")
    assert "No system was evaluated" in Page(render(RunReport(title="T", tasks=[nothing]))).words
    assert "<h1>T</h1>" in render(RunReport(title="T", tasks=[]))


def test_unscored_metric_and_failures_are_shown() -> None:
    base = results({"weak": None, "collab": 0.5})
    systems = base.systems | {"strong": SystemResult(metrics={"em": metric(0.4, 0.3, 0.5, failed=7)}, usage=Usage())}
    task = TaskReport(results=base.model_copy(update={"systems": systems}), main_metric="em")
    html = render(RunReport(title="T", tasks=[task]))
    page = Page(html)
    assert "not scored" in page.text and "weak not scored" in html
    assert re.search(r'class="num warn">7<', html)
    assert "nan" not in page.words.lower().split() and "None" not in page.words.split()


def test_every_registered_system_is_described_and_a_collaboration_in_any_format_is_judged() -> None:
    assert all(described(spec.name) for spec in SYSTEMS) and described("of another package") == ""
    assert target_of(["bm25", "weak", "collab_cot", "collab_cot_aligned", "strong"]) == "collab_cot_aligned"
    assert target_of(["collab_knowledge_aligned", "collab"]) == "collab_knowledge_aligned"
    assert target_of(["collab_direct", "collab"]) == "collab" and target_of(["bm25", "best_of_k"]) is None
    assert order_systems(["bm25", "collab", "weak"]) == ["weak", "collab", "bm25"]


def test_other_system_names_work() -> None:
    task = TaskReport(results=results({"rag": 0.5, "supericl": 0.6}), main_metric="em", queries=[_query({"rag": 1.0})])
    page = Page(render(RunReport(title="T", tasks=[task])))
    assert "No collaboration took part" in page.words
    assert "supericl" in page.text
    assert not [a for t, a in page.tags if t == "input" and a.get("type") == "radio"]


@pytest.mark.parametrize(
    ("low", "high", "p", "diff", "tone", "say"),
    [
        (
            0.05,
            0.17,
            0.0004,
            0.11,
            "good",
            "beats the better single model (weak alone, 68.0%) by 11.0 points "
            "(95% CI 5.0 to 17.0, p < 0.001, n = 100).",
        ),
        (
            -0.02,
            0.05,
            0.31,
            0.015,
            "neutral",
            "does not clearly differ from the better single model (weak alone, 68.0%): "
            "it scores 1.5 points higher (95% CI −2.0 to 5.0, p = 0.31",
        ),
        (
            -0.17,
            -0.05,
            0.002,
            -0.11,
            "bad",
            "does worse than the better single model (weak alone, 68.0%) by 11.0 points (95% CI 5.0 to 17.0, p = 0.002",
        ),
        (0.001, 0.05, 0.2, 0.02, "neutral", "does not clearly differ"),
        (None, None, None, 0.02, "neutral", "but this was not tested"),
    ],
)
def test_verdict_says_what_the_comparison_says(
    low: float | None, high: float | None, p: float | None, diff: float, tone: str, say: str
) -> None:
    ours = row("collab_aligned", "weak", diff, low, high, p)
    found = verdicts(results(MEANS, [ours]), "em")[0]
    assert (found.tone, say in found.text.replace("\u00a0", " ")) == (tone, True), found.text
    mirrored = row("weak", "collab_aligned", -diff, None if high is None else -high, None if low is None else -low, p)
    assert verdicts(results(MEANS, [mirrored]), "em")[0] == found


def test_verdict_takes_the_cautious_p_and_the_better_single() -> None:
    rows = [row("collab_aligned", "weak", 0.1, 0.02, 0.18, 0.01), row("collab_aligned", "weak", 0.1, None, None, 0.2)]
    found = contrast(results(MEANS, rows), "collab_aligned", "weak", "em")
    assert found is not None and found.p == 0.2 and found.ci_low == 0.02 and not found.clear
    swapped = MEANS | {"strong": 0.7}
    assert "strong alone, 70.0%" in verdicts(results(swapped), "em")[0].text
    unknown = results(MEANS, [row("collab_aligned", "weak", None, None, None, None, 0)])
    assert "was not compared" in verdicts(unknown, "em")[0].text
    assert "neither model alone" in verdicts(results({"collab": 0.5, "weak": None}), "em")[0].text
    added = row("collab_aligned", "collab", 0.04, 0.01, 0.07, 0.01)
    assert verdicts(results(MEANS, [added]), "em")[1].text.startswith("Alignment adds 4.0 points")


def test_numbers() -> None:
    assert [percent(v) for v in (0.12345, None, float("nan"), 1.0)] == ["12.3", "—", "—", "100.0"]
    assert [points(v) for v in (0.02, -0.02, 0.0, -0.0001, None)] == ["+2.0", "−2.0", "0.0", "0.0", "—"]
    assert [p_value(p) for p in (0.0, 0.0004, 0.0321, 0.31, None)] == ["< 0.001", "< 0.001", "0.032", "0.31", "—"]


def _query(values: dict[str, float | None], **texts: str) -> QueryView:
    answers = {n: AnswerView(text=texts.get(n, "t"), answer="a", value=v) for n, v in values.items()}
    return QueryView(example_id="q", input=texts.get("input", "q"), references=("r",), answers=answers)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (1.0, 0.0, "helped"),
        (0.0, 1.0, "hurt"),
        (0.1 + 0.2, 0.3, "same"),
        (None, 1.0, "unscored"),
        (1.0, None, "unscored"),
    ],
)
def test_outcome(ours: float | None, theirs: float | None, expected: str) -> None:
    assert outcome(_query({"collab": ours, "strong": theirs}), "collab", "strong") == expected
    assert outcome(_query({"collab": 1.0}), "collab", "strong") == "unscored"


def test_query_list_prefers_the_aligned_target_and_counts_add_up() -> None:
    queries = [_query({"weak": 0.0, "strong": s, "collab": 0.0, "collab_aligned": 1.0}) for s in (0.0, 1.0, None)]
    found = query_list(queries)
    assert (found.target, [b.name for b in found.baselines]) == ("collab_aligned", ["strong", "weak", "collab"])
    assert found.baselines[0].counts == {"helped": 1, "hurt": 0, "same": 1, "unscored": 1}
    assert query_list([_query({"weak": 1.0, "strong": 1.0, "collab": 1.0})]).target == "collab"
    assert query_list([]).total == 0


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- <script>",
    "\"' onmouseover='alert(1)",
    "\x1b[31mred\x1b[0m \x00 \u202egnp.exe\u2066 \u2028 \ud800",
    "{{ 7*7 }} {% raw %} $x_1$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, make_task: Make) -> None:
    query = _query({"weak": 1.0, "strong": 0.0, "collab": 1.0}, weak=text, input=text)
    query = query.model_copy(update={"turns": (Message(role="assistant", content=text),)})
    task = make_task(n=5).model_copy(update={"queries": [query]})
    named = task.results.model_copy(
        update={"name": text, "task": text, "systems": {text: task.results.systems["weak"]}}
    )
    plain = Page(render(RunReport(title="T", subtitle="S", tasks=[task])))
    html = render(
        RunReport(title=text, subtitle=text, tasks=[task.model_copy(update={"results": named})], notes=[text])
    )
    page = Page(html)
    assert html.encode("utf-8")
    assert [t for t, _ in page.tags].count("script") == [t for t, _ in plain.tags].count("script")
    assert not [a for _, a in page.tags for key in a if key.startswith("on")]
    assert visible(text) in page.text
    assert not re.search("[\x00\x1b\u202e\u2066\u2028]", html)
    payload = next(d for d in page.data if d.startswith('{"systems"'))
    shown = json.loads(payload)["queries"][0]
    assert shown["input"] == visible(text) and shown["turns"] == [["assistant", visible(text)]]
    assert not re.search("[<>&]", payload)


def test_script_json_refuses_what_a_browser_cannot_parse() -> None:
    assert script_json("</a>&\u2028é") == '"\\u003c/a\\u003e\\u0026\\u2028\\u00e9"'
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_values_that_are_no_numbers_do_not_break_the_page(make_task: Make) -> None:
    nan = float("nan")
    update = {
        "queries": [_query({"strong": nan, "collab": float("inf")})],
        "gains": [nan],
        "curves": [TrainingCurve(stage="align", points=[CurvePoint(step=1, values={"loss": nan})])],
        "checkpoints": [CheckpointView(step=1, score=nan)],
        "counts": [],
    }
    text = render(RunReport(title="T", tasks=[make_task(n=5).model_copy(update=update)]))
    assert "Training the weak model" not in text and "NaN" not in Page(text).text


def test_plots_carry_their_numbers_and_follow_the_page_colours(make_task: Make) -> None:
    task = make_task(n=30)
    curves = [p for c in task.curves for p in curve_plots(c, f"x{c.stage}")]
    titles = ["SFT loss", "DPO loss", "Log-probability of drafts", "Reward margin, chosen − rejected"]
    assert [p.title for p in curves] == titles
    chosen, gains = checkpoints_plot(task.checkpoints, "c"), gains_plot([1.0, 0.0, 0.0, -0.5], "g")
    assert chosen is not None and gains is not None
    assert chosen.caption == "Chosen: step 30, 91.0%." and "step 40: 88.0%" in chosen.svg
    assert "hurt 1 (25.0%), no change 2 (50.0%), helped 1 (25.0%)" in gains.caption
    for plot in [*curves, chosen, gains, systems_plot(task.results, "accuracy", "s")]:
        assert 'role="img"' in plot.svg and 'aria-label="' in plot.svg
        assert "#fe0" not in plot.svg and "<style" not in plot.svg and "@font-face" not in plot.svg
        assert "<text" in plot.svg and "var(--" in plot.svg
        assert plot.svg.count("url(#") == len(re.findall(r"url\(#(?:xsft|xalign|c|g|s)-", plot.svg))
    assert systems_plot(task.results, "accuracy", "s") == systems_plot(task.results, "accuracy", "s")


def test_checkpoints_without_scores() -> None:
    assert checkpoints_plot([], "c") is None and gains_plot([], "g") is None
    assert checkpoints_plot([CheckpointView(step=1, score=None)], "c") is None
    plot = checkpoints_plot([CheckpointView(step=2, score=None), CheckpointView(step=1, score=0.5)], "c")
    assert plot is not None and plot.caption == "No checkpoint is marked as chosen. Not scored: step 2."
