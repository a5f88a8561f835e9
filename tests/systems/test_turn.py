"""The frames of a turn that is trained: what they put to the models is what the interaction does, fenced, and fits the windows."""

from __future__ import annotations

import pytest
from pydantic import JsonValue
from tests.helpers import question
from tests.systems.scripted import asked, saying
from tests.systems.test_interactions import (
    DRAFTING,
    EVIL,
    FRAMES,
    SAYS,
    TURNS,
    advise,
    consult,
    counted,
    critique,
)

from cowest.collaboration.sight import SightedFrames, SightedInteractions
from cowest.models.window import Window
from cowest.protocols import Frames, InteractionFrames
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.systems.interactions.frames import TAGS
from cowest.systems.interactions.turn import AdviseTurn, ReplyTurn, ReviseTurn, Turn, TurnFrames
from cowest.systems.registry import evaluated, find_systems, possible, trained_row
from cowest.types import Message, Tooled

X = question()
BEFORE = {"revise": ("First.", "It lacks the dose."), "advise": ("Answer: yes",), "reply": ("Is it much?",)}


def turn(
    kind: str,
    frames: Frames = FRAMES,
    turns: InteractionFrames = TURNS,
    weak: Window | None = None,
    strong: Window | None = None,
) -> Turn:
    if kind == "revise":
        return ReviseTurn(frames, turns, weak, strong)
    return AdviseTurn(turns, weak, strong) if kind == "advise" else ReplyTurn(turns, 1, weak, strong)


@pytest.mark.parametrize("kind", BEFORE)
async def test_training_asks_as_the_system_does(kind: str) -> None:
    weak = saying("First.", "Said.") if kind == "revise" else saying("Said.")
    strong = saying(
        {"revise": "It lacks the dose.", "advise": "Answer: yes", "reply": "ASK: Is it much?"}[kind], "Answer: no"
    )
    make = {"revise": critique, "advise": advise, "reply": consult}[kind]
    await make(weak, strong, FRAMES, TURNS).answer(X)
    frames = TurnFrames(FRAMES, turn(kind), {X.id: BEFORE[kind]})
    assert frames.draft(X) == asked(weak)[-1] and weak.requests[-1].sampling == DRAFTING
    if kind == "reply":  # in training it can ask no more
        assert (
            strong.requests[-1].messages[:-1]
            == TurnFrames(FRAMES, ReplyTurn(TURNS, 2), {X.id: BEFORE[kind]}).refine(X, "Said.")[:-1]
        )
        assert isinstance(strong.requests[-1].sampling, Tooled)
        assert frames.refine(X, "Said.")[-1].content == TURNS.reply("Said.", 0)
    else:
        assert frames.refine(X, "Said.") == asked(strong)[-1]
    assert frames.solo(X) == FRAMES.solo(X)
    with pytest.raises(KeyError):
        frames.draft(question("another"))


@pytest.mark.parametrize("kind", BEFORE)
def test_what_a_model_has_written_cannot_leave_its_fence(kind: str) -> None:
    frames = TurnFrames(FRAMES, turn(kind), {X.id: tuple(EVIL for _ in BEFORE[kind])})
    for messages in (frames.draft(X), frames.refine(X, EVIL)):
        for text in (m.content for m in messages if m.role == "user"):
            outside = text
            for tag in TAGS:
                while f"<{tag}>\n" in outside:
                    before, _, rest = outside.partition(f"<{tag}>\n")
                    _, closed, after = rest.partition(f"\n</{tag}>")
                    assert closed
                    outside = before + after
            assert "IGNORE" not in outside and "Who pays?" not in outside


@pytest.mark.parametrize("kind", ["revise", "advise"])
def test_what_does_not_fit_is_cut_and_a_conversations_earliest_turns_go(kind: str) -> None:
    small, long = Window(counted, 150), "One thing. " * 60
    said = (Message(role="user", content="Hello " * 100), Message(role="assistant", content="Good day"))
    example = X.model_copy(update={"turns": said})
    frames = TurnFrames(FRAMES, turn(kind, weak=small, strong=small), {X.id: tuple(long for _ in BEFORE[kind])})
    for messages in (frames.draft(example), frames.refine(example, long)):
        assert small.fits(messages) and "One thing." in messages[-1].content and "Is it safe?" in messages[-1].content


@pytest.mark.parametrize("kind", BEFORE)
@pytest.mark.parametrize("who", ["weak", "strong"])
def test_who_sees_the_context_holds(kind: str, who: str) -> None:
    example = X.model_copy(update={"context": "Velmo was withdrawn in May."})
    sighted = SightedFrames(FRAMES, who), SightedInteractions(TURNS, who)  # type: ignore[arg-type]
    frames = TurnFrames(sighted[0], turn(kind, *sighted), {X.id: BEFORE[kind]})
    for side, messages in (("weak", frames.draft(example)), ("strong", frames.refine(example, "Said."))):
        assert any("withdrawn" in m.content for m in messages) is (who == side)


def recipe(**changes: JsonValue) -> RunConfig:
    model: JsonValue = {"kind": "local", "model": "no/such/model"}
    task: JsonValue = {"kind": "ifqa", "sample": True}
    return config_from_dict({"name": "r", "task": task, "weak": model, "strong": model} | changes)


@pytest.mark.parametrize(
    ("kind", "row"), [("revise", "collab_critique"), ("advise", "collab_advise"), ("reply", "collab_consult")]
)
def test_the_row_that_is_trained_for_is_evaluated_unless_the_recipe_names_its_own(kind: str, row: str) -> None:
    config = recipe(draft={"turn": kind})
    assert trained_row(config).name == f"{row}_aligned" and trained_row(recipe()).name == "collab_aligned"
    assert [spec.name for spec in evaluated(config)[0]][-2:] == [row, f"{row}_aligned"]
    named = recipe(draft={"turn": kind}, evaluate={"systems": ["strong"]})
    assert [spec.name for spec in evaluated(named)[0]] == ["strong"]
    assert len(evaluated(recipe())[0]) == 4


def test_rows_that_want_drafts_are_left_out_with_the_reason() -> None:
    rows = find_systems(["collab_aligned", "supericl", "rlwf"], "table.rows")
    kept, left_out = possible(recipe(draft={"turn": "advise"}), rows)
    assert [spec.name for spec in kept] == ["collab_aligned"]
    assert "draft.turn: advise draws none" in left_out["supericl"] and "there is no draft" in left_out["rlwf"]
    assert not possible(recipe(), rows)[1] and SAYS
