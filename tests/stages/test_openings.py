"""The stage ``openings``, and the stages after it, with models that are scripted: who is asked what in a turn that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log
from tests.systems.scripted import DOWN
from tests.test_api import task

from cowest import api
from cowest.collaboration.prompts import DefaultFrames
from cowest.errors import ConfigError, ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.run.store import JsonlFile
from cowest.stages.in_turn import Opening
from cowest.systems.interactions.frames import ASK, DefaultInteractionFrames
from cowest.types import Draft, Message, PreferencePair, Refinement, Sampling, Tooled

SAYS = task().instruction
FRAMES, TURNS = DefaultFrames(SAYS), DefaultInteractionFrames(SAYS)
N = 12


def strong(fail: Sequence[ModelCallError | None] = ()) -> ScriptedChatModel:
    """Asks about every second question, where it can."""

    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        text = messages[-1].content
        if isinstance(sampling, Tooled) and sampling.may_call and any(f"{n} even" in text for n in (0, 2, 4, 6, 8, 10)):
            return "ASK: what is even?"
        if "Do not answer the question" in text:
            return "It lacks a reason."
        return "Answer: yes" if "two" in text else "Answer: no"

    return ScriptedChatModel(reply, name="big", fail=fail)


def weak() -> ScriptedChatModel:
    texts = iter(f"Part {n} by {('one', 'two')[n % 2]}." for n in range(10**6))
    return ScriptedChatModel(lambda messages, sampling: next(texts), name="small")


async def ran(
    turn: str, out: Path, big: ScriptedChatModel, small: ScriptedChatModel, log: Log, **more: JsonValue
) -> None:
    recipe: dict[str, JsonValue] = {
        "name": "turn",
        "draft": {"samples": 2, "turn": turn},
        "evaluate": {"systems": ["strong"], "queries": 2},
    }
    await api.run(recipe | more, out, task=task(), weak=small, strong=big, reporter=log)


def read(out: Path) -> tuple[list[Opening], list[Draft], list[Refinement], list[PreferencePair]]:
    return (
        JsonlFile(out / "openings.jsonl", Opening).load(),
        JsonlFile(out / "drafts.jsonl", Draft).load(),
        JsonlFile(out / "refinements.jsonl", Refinement).load(),
        JsonlFile(out / "pairs.jsonl", PreferencePair).load(),
    )


async def test_advice_is_drawn_refined_and_paired_behind_one_attempt(tmp_path: Path) -> None:
    big, small = strong(), weak()
    await ran("advise", tmp_path, big, small, Log())
    openings, drafts, refined, pairs = read(tmp_path)
    first = task().examples("train")[0]
    assert [o.texts for o in openings] == [("Answer: no",)] * N and len(drafts) == len(refined) == 2 * N
    assert [r.messages for r in small.requests] == [
        TURNS.advise(e, "Answer: no") for e in task().examples("train") for _ in range(2)
    ]
    asked = [r.messages for r in big.requests]
    assert asked.count(FRAMES.solo(first)) == 2  # a model without a ledger is asked for attempt and answer apart
    assert asked.count(TURNS.decide(first, "Answer: no", drafts[0].text or "")) == 1
    seeds = [r.sampling for r in big.requests if r.messages == FRAMES.solo(first)]
    assert seeds[0] == seeds[1]  # and one with a ledger once: it is one request
    # Where the right answer is yes, advice that says "two" is the better one, and the pair's prompt is the turn's.
    assert {p.example_id for p in pairs} == {e.id for e in task().examples("train")}
    best = next(p for p in pairs if p.example_id == first.id)
    assert best.prompt == TURNS.advise(first, "Answer: no")
    assert "two" in best.chosen[0].content and "one" in best.rejected[0].content


async def test_a_revision_follows_the_critique_of_one_greedy_draft(tmp_path: Path) -> None:
    big, small = strong(), weak()
    await ran("revise", tmp_path, big, small, Log())
    openings, drafts, _, pairs = read(tmp_path)
    first = task().examples("train")[0]
    firsts = JsonlFile(tmp_path / "first_drafts.jsonl", Draft).load()
    assert len(firsts) == N and {r.sampling.temperature for r in small.requests[:N]} == {0.0}
    assert [o.texts for o in openings] == [(d.text, "It lacks a reason.") for d in firsts]
    assert pairs[0].prompt == TURNS.revise(first, firsts[0].text or "", "It lacks a reason.")
    assert FRAMES.refine(first, drafts[0].text or "") in [r.messages for r in big.requests]


async def test_a_query_at_which_nothing_is_asked_has_no_turn(tmp_path: Path) -> None:
    big, small, log = strong(), weak(), Log()
    await ran("reply", tmp_path, big, small, log)
    openings, drafts, refined, pairs = read(tmp_path)
    assert [bool(o.texts) for o in openings] == [True, False] * (N // 2) and len(drafts) == len(refined) == N
    assert {d.example_id for d in drafts} == {f"train-{n}" for n in range(0, N, 2)} == {p.example_id for p in pairs}
    assert any("6 of 12 queries do not come to a reply (the strong model asks nothing at 6)" in x for x in log.lines)
    first = task().examples("train")[0]
    after = (
        *TURNS.consult(first, 2),
        Message(role="assistant", content="ASK: what is even?"),
        Message(role="user", content=TURNS.reply(drafts[0].text or "", 0)),
    )
    (asked,) = [r.sampling for r in big.requests if r.messages == after]
    assert isinstance(asked, Tooled) and asked.tool == ASK and not asked.may_call
    assert pairs[0].prompt == TURNS.consulted(first, "what is even?")
    # Only the queries that come to the turn are asked about alone.
    assert sum(r.messages == FRAMES.solo(e) for r in big.requests for e in task().examples("train")) == N // 2


async def test_what_failed_is_asked_again_and_the_rest_stays(tmp_path: Path) -> None:
    big, small = strong(fail=[DOWN, None, DOWN]), weak()
    await ran("advise", tmp_path, big, small, Log())
    openings, drafts, _, _ = read(tmp_path)
    assert sum(o.error is not None for o in openings) == 2 and len(drafts) == 2 * (N - 2)
    again, log = strong(), Log()
    await ran("advise", tmp_path, again, small, log)
    openings, drafts, _, _ = read(tmp_path)
    assert all(o.error is None for o in openings) and len(drafts) == 2 * N
    assert sum(r.messages in [FRAMES.solo(e) for e in task().examples("train")] for r in again.requests) <= 2 + N


async def test_another_turn_makes_the_round_again(tmp_path: Path) -> None:
    await ran("advise", tmp_path, strong(), weak(), Log())
    for turn, said in (("revise", "openings: run again"), ("draft", "sample: run again")):
        log = Log()
        await ran(turn, tmp_path, strong(), weak(), log)
        assert any(line.startswith(said) and "draft.turn changed" in line for line in log.lines), log.lines
        for stage in ("feedback", "pairs"):
            assert any(line.startswith(f"{stage}: run again") for line in log.lines), log.lines
    log = Log()
    await ran("draft", tmp_path, strong(), weak(), log)
    assert not [line for line in log.lines if "run" in line.split(": ")[1]], log.lines


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"draft": {"turn": "advise", "formats": ["direct", "chain_of_thought"]}},
            r"draft\.turn: advise: draft\.formats",
        ),
        ({"draft": {"turn": "reply"}, "pairs": {"signal": "draft"}}, r"draft\.turn: reply: pairs\.signal: draft"),
        ({"draft": {"turn": "advise"}, "evaluate": {"systems": ["guarded"]}}, r"guard: its third way to answer"),
        (
            {"draft": {"turn": "advise"}, "prompts": {"interactions": {"advise": "{input}"}}},
            r"the template has no \{attempt\}",
        ),
    ],
)
async def test_what_cannot_be_trained_is_said_before_anything_is_asked(
    changes: dict[str, JsonValue], said: str, tmp_path: Path
) -> None:
    big, small = strong(), weak()
    with pytest.raises(ConfigError, match=said):
        await ran("draft", tmp_path, big, small, Log(), **changes)
    assert not big.requests and not small.requests
