"""Signals: what each says of one draft, in numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers import Oracle, run_tiny, save_tiny_model

from cowest.collaboration.feedback import NOT_ASKED, unscored_reasons
from cowest.collaboration.signals import SIGNALS, worth
from cowest.run.store import JsonlFile
from cowest.types import Draft, Feedback, PreferencePair, Score

UNASKED = Score(value=None, error=f"{NOT_ASKED}: the signal needs no such call")


def scores(refined: Score, solo: Score, weak: Score) -> Feedback:
    return Feedback(example_id="q", draft_id="q#0", refined=refined, solo=solo, weak=weak)


def plain(refined: float | None, solo: float | None, weak: float | None) -> Feedback:
    return scores(Score(value=refined), Score(value=solo), Score(value=weak))


@pytest.mark.parametrize(
    ("refined", "solo", "weak", "collaboration", "outcome", "better", "draft"),
    [
        (1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0),  # helps though it is wrong itself
        (1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0),  # right, and taken over
        (0.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0),  # right, and not heard
        (0.4, 0.7, 0.2, -0.3, 0.4, -0.3, 0.2),
        (0.4, None, 0.2, None, 0.4, None, 0.2),
        (0.4, 0.1, None, 0.3, 0.4, None, None),
        (None, 0.1, 0.2, None, None, None, 0.2),
    ],
)
def test_signals(
    refined: float | None,
    solo: float | None,
    weak: float | None,
    collaboration: float | None,
    outcome: float | None,
    better: float | None,
    draft: float | None,
) -> None:
    found = plain(refined, solo, weak)
    for name, expected in {
        "collaboration": collaboration,
        "outcome": outcome,
        "better": better,
        "draft": draft,
    }.items():
        value = SIGNALS.find(name, "pairs.signal").value(found)
        assert (value is None) if expected is None else value == pytest.approx(expected), name


def test_an_expected_score_stands_for_the_plain_one() -> None:
    found = scores(Score(value=1.0, expected=0.75), Score(value=0.0, expected=0.25), Score(value=0.0))
    assert found.gain == 0.5
    assert SIGNALS.find("outcome", "pairs.signal").value(found) == 0.75
    assert SIGNALS.find("better", "pairs.signal").value(found) == 0.5


def test_records_without_an_expected_score_are_written_as_they_were_before_there_was_any() -> None:
    assert Score(value=1.0).model_dump_json() == '{"value":1.0,"answer":null,"explanation":null,"error":null}'
    assert Score.model_validate_json(Score(value=1.0, expected=0.5).model_dump_json()).expected == 0.5


def test_a_word_has_its_price() -> None:
    found, gain = plain(1.0, 0.0, 0.0), SIGNALS.find("collaboration", "pairs.signal")
    draft = Draft(id="q#0", example_id="q", index=0, text="It is safe.")
    assert worth(gain, found, draft) == 1.0
    assert worth(gain, found, draft, 0.01) == pytest.approx(0.97)
    assert worth(gain, found, draft.model_copy(update={"text": "東京"}), 0.01) == pytest.approx(0.98)
    assert worth(gain, plain(None, 0.0, 0.0), draft, 0.01) is None


def test_what_was_not_asked_for_is_not_missing() -> None:
    assert unscored_reasons([scores(Score(value=1.0), UNASKED, Score(value=1.0))]) == {}
    assert unscored_reasons([scores(Score(value=None, error="refusal: no"), UNASKED, Score(value=1.0))]) == {
        "refused": 1
    }


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
