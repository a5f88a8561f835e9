"""What a draft is worth, by each signal, and which pairs follow."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers import Oracle, question, run_tiny, save_tiny_model

from cowest.collaboration.preference import build_pairs
from cowest.collaboration.prompts import DefaultFrames
from cowest.collaboration.signals import SIGNALS
from cowest.run.store import JsonlFile
from cowest.types import Draft, Feedback, PreferencePair, Score


def feedback(refined: float | None, solo: float | None, weak: float | None, id: str = "q1#0") -> Feedback:
    def score(value: float | None) -> Score:
        return Score(value=value, error=None if value is not None else "not asked")

    return Feedback(example_id="q1", draft_id=id, refined=score(refined), solo=score(solo), weak=score(weak))


@pytest.mark.parametrize(
    ("name", "refined", "solo", "weak", "worth"),
    [
        ("collaboration", 1.0, 0.25, 0.0, 0.75),
        ("outcome", 1.0, 0.25, 0.0, 1.0),
        ("outcome", 0.5, None, None, 0.5),
        ("surplus", 1.0, 0.0, 1.0, 0.0),
        ("surplus", 1.0, 0.25, 0.5, 0.5),
        ("surplus", 0.0, 1.0, 0.0, -1.0),
        ("surplus", 1.0, None, 0.0, None),
        ("surplus", 1.0, 0.0, None, None),
        ("outcome", None, 1.0, 1.0, None),
        ("draft", 1.0, 0.0, 0.5, 0.5),
    ],
)
def test_what_a_draft_is_worth(
    name: str, refined: float | None, solo: float | None, weak: float | None, worth: float | None
) -> None:
    assert SIGNALS.find(name, "pairs.signal").value(feedback(refined, solo, weak)) == worth


def pairs_by(name: str, solo: float | None) -> list[tuple[str, str]]:
    worth = {"a": (1.0, 1.0), "b": (1.0, 0.0), "c": (0.0, 0.0)}  # refined, draft by itself
    drafts = [Draft(id=f"q1#{k}", example_id="q1", index=k, text=text) for k, text in enumerate(worth)]
    records = [feedback(r, solo, w, f"q1#{k}") for k, (r, w) in enumerate(worth.values())]
    signal = SIGNALS.find(name, "pairs.signal")
    made = build_pairs([question()], drafts, records, DefaultFrames("Answer."), signal=signal)
    return [(p.chosen[-1].content, p.rejected[-1].content) for p in made.pairs]


def test_the_outcome_makes_the_pairs_of_the_gain_without_the_strong_model_alone() -> None:
    assert pairs_by("outcome", None) == pairs_by("collaboration", 0.0) == [("a", "c"), ("b", "c")]
    assert SIGNALS.find("outcome", "pairs.signal").asks == {"refine"}


def test_the_surplus_prefers_the_draft_that_led_to_what_neither_had() -> None:
    assert pairs_by("surplus", 0.0) == [("b", "a"), ("b", "c")]


@pytest.mark.slow
def test_a_run_by_the_outcome_never_asks_the_strong_model_alone_for_its_pairs(tmp_path: Path) -> None:
    weak, made = save_tiny_model(tmp_path / "weak"), dict[str, list[tuple[str, str]]]()
    for name in ("collaboration", "outcome"):
        out = tmp_path / name
        done = run_tiny(weak, out, Oracle(), pairs={"signal": name})
        assert "collab_aligned" in done.results[""].systems
        rows = JsonlFile(out / "pairs.jsonl", PreferencePair).load()
        made[name] = [(p.chosen[-1].content, p.rejected[-1].content) for p in rows]
    assert made["outcome"] == made["collaboration"] and made["outcome"]
    assert (tmp_path / "collaboration/solo.jsonl").read_text() and not (tmp_path / "outcome/solo.jsonl").read_text()
