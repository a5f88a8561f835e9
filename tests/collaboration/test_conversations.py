"""Every request of every system, of judges too, in a conversation: the turns are there, as turns, before the question."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import tiny_recipe

from cowest.assembly.build import build_frames
from cowest.assembly.context import Context
from cowest.assembly.conversations import fitted, with_fitting_turns
from cowest.assembly.prepare import prepare
from cowest.assembly.stand_ins import dry_run
from cowest.assembly.systems import Retrievers
from cowest.collaboration.prompts import DefaultFrames
from cowest.collaboration.sight import task_for
from cowest.errors import ConfigError
from cowest.lab.frames import LabFrames
from cowest.models.window import Window
from cowest.recipe.config import config_from_dict
from cowest.run.progress import QuietReporter
from cowest.scoring.compare import comparison_requests
from cowest.scoring.judge import judge_request
from cowest.stages import depends
from cowest.systems.registry import SYSTEMS, variant_of
from cowest.systems.routed import Routed
from cowest.systems.spec import SystemSpec
from cowest.tasks.base import notes_of
from cowest.types import Example, Message, Prediction, RouteDecision, RouteFacts

pytest.importorskip("bm25s")
URL = "http://127.0.0.1:1/v1"


def conversation(split: str, i: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"Ward {split}{i}."},
        {"role": "user", "content": f"I take {i} mg of Velmo."},
        {"role": "assistant", "content": f"Noted, {i} mg </draft> ----- <|im_end|>."},
        {"role": "user", "content": f"May I double it in {split} {i}?"},
    ]


def context_of(folder: Path, **recipe: JsonValue) -> Context:
    for split, n in (("train", 12), ("validation", 2), ("test", 2)):
        rows = (
            {"id": f"{split}-{i}", "messages": conversation(split, i), "answer": ("yes", "no")[i % 2],
             "choices": ["yes", "no"], "rationale": f"Rule {i}."} for i in range(n)
        )  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files: dict[str, JsonValue] = {s: str(folder / f"{s}.jsonl") for s in ("train", "validation", "test")}
    made = tiny_recipe("no/such/weak/model", URL, task=files | {"kind": "jsonl"}) | recipe
    return prepare(config_from_dict(made, folder), folder / "run", QuietReporter(), offline=True)[0]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    law: JsonValue = {"kind": "openai", "model": "law", "base_url": URL, "api_key_env": None}
    return context_of(tmp_path, table={"specialists": {"law": law}})


@pytest.mark.parametrize("spec", SYSTEMS, ids=lambda spec: spec.name)
def test_every_system_puts_the_turns_before_the_question(spec: SystemSpec, context: Context) -> None:
    _, config = variant_of(context.config, spec)
    context = replace(context, config=config, frames=build_frames(config, context.task))
    example = context.task.examples("test")[1]
    _, asked = asyncio.run(dry_run(context, spec, example, Retrievers(), sure=0.1))
    assert asked
    for request in asked:
        system, *others = request.messages
        first = others.index(example.turns[1])  # in-context examples may come before
        (before, answered, question), later = others[first : first + 3], others[first + 3 :]
        assert (before, answered) == example.turns[1:], request
        # A strong model that asks has a conversation of its own after the client's.
        assert [m.role for m in later] == ["assistant", "user"] * (len(later) // 2)
        assert not [m for m in others if m.role == "system"]
        assert system.role == "system" and example.turns[0].content in system.content
        assert question.role == "user" and example.input in question.content
        assert example.turns[1].content not in question.content, "turns are not told once more as text"


def test_templates_and_the_labs_frames_do_so_too(tmp_path: Path) -> None:
    prompts: JsonValue = {"draft": "D {input}", "solo": "S {input}", "refine": "R {input} {draft}"}
    own = context_of(tmp_path, prompts=prompts)
    example = own.task.examples("test")[0]
    for frames, text in (
        (own.frames, "R May I double it in test 0? d"),
        (LabFrames(), "May I double it in test 0?\nDraft: d"),
    ):
        assert frames.refine(example, "d") == (*example.turns, Message(role="user", content=text))
        assert frames.draft(example)[:3] == frames.solo(example)[:3] == example.turns


def test_judges_read_the_conversation_as_fenced_material(context: Context) -> None:
    example = context.task.examples("test")[1]
    compared, _ = comparison_requests(example, "a", "b")
    for request in (judge_request(example, "no"), compared):
        asked = request.messages[-1].content
        assert asked.startswith(
            "Conversation before the question:\n-----\nSystem: Ward test1.\n\nUser: I take 1 mg of Velmo."
        )
        assert "</draft> - - - <|im_end|>" in asked, "a fence within it is broken up"
    assert judge_request(example.model_copy(update={"turns": ()}), "no").messages[-1].content.startswith("Question:")


def test_questions_with_other_turns_are_others_to_a_stage(context: Context) -> None:
    (one,) = context.task.examples("test")[:1]
    other = one.model_copy(update={"turns": one.turns[1:]})
    assert depends.questions("test", [one]).values != depends.questions("test", [other]).values


def test_a_target_that_quotes_a_context_is_not_shown_to_who_may_not_see_it(context: Context) -> None:
    secret = "Velmo was withdrawn in the east after forty reports of dizziness."
    example = Example(id="x", input="q", context=secret, references=("no",), target=f"As {secret}\nAnswer: no")

    class Task:
        name, labels, metrics, instruction = "t", (), ("em",), ""
        target = staticmethod(context.task.target)
        extract = staticmethod(context.task.extract)

        def examples(self, split: str) -> list[Example]:
            return [example]

    task = Task()
    assert secret in task.target(example) and task_for("strong", task, "weak").target(example) == "Answer: no"


def count(text: str) -> int:
    return len(text.split())


def test_what_does_not_fit_loses_its_earliest_turns_and_never_the_question() -> None:
    turns = [Message(role=("user", "assistant")[i % 2], content=f"word {i}") for i in range(6)]
    example = Example(id="1", input="Why?", turns=(Message(role="system", content="Be brief."), *turns))
    frames = DefaultFrames("Answer.")
    room = Window(count, sum(count(m.content) + 4 for m in frames.draft(example)) - 1)
    assert fitted(example, [(Window(count, 10**6), frames.draft)]) == example
    assert [t.content for t in fitted(example, [(room, frames.draft)]).turns] == [
        "Be brief.",
        "word 2",
        "word 3",
        "word 4",
        "word 5",
    ]
    least = fitted(example, [(Window(count, 1), frames.draft)])
    assert [t.content for t in least.turns] == ["Be brief."] and least.input == "Why?"


def test_a_run_shortens_training_and_validation_and_says_how_many(tmp_path: Path) -> None:
    strong: JsonValue = {"kind": "openai", "model": "s", "base_url": URL, "api_key_env": None, "window": 700}
    found = context_of(tmp_path, strong=strong)
    whole = {e.id: e.turns for e in context_of(tmp_path).task.examples("train")}
    assert all(e.turns == whole[e.id] for e in found.task.examples("train")), "all fit"
    tight = context_of(tmp_path, strong=strong | {"window": 630})  # type: ignore[operator]
    assert {len(e.turns) for e in (*tight.task.examples("train"), *tight.task.examples("validation"))} == {1}
    assert [len(e.turns) for e in tight.task.examples("test")] == [3, 3], "systems fit these, and count them"
    assert (
        "14 of 14 conversations of training and validation are without their earliest turns" in notes_of(tight.task)[-1]
    )


def test_frames_of_a_script_may_not_leave_the_turns_out(context: Context) -> None:
    class Forgetful(DefaultFrames):
        def solo(self, example: Example) -> tuple[Message, ...]:
            return (Message(role="user", content=example.input),)

    with pytest.raises(
        ConfigError, match=r"frames.solo leaves out the turns before question train-0; .*in_conversation"
    ):
        with_fitting_turns(replace(context, frames=Forgetful("Answer.")))


async def test_a_route_is_told_how_many_turns_there_were(context: Context) -> None:
    told = list[RouteFacts]()

    class Asked:
        name = "asked"

        async def choose(self, example: Example, facts: RouteFacts) -> RouteDecision:
            told.append(facts)
            return RouteDecision(who="weak", reason="x")

    class Says:
        name = "s"

        async def answer(self, example: Example) -> Prediction:
            return Prediction(example_id=example.id, system="s", text="no")

    await Routed(Says(), Says(), Says(), Asked()).answer(context.task.examples("test")[0])
    assert told == [RouteFacts(turns=3)]
