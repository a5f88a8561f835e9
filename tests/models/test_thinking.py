"""Hidden thinking: every vendor's marks, split off wherever a text comes in, and never lost."""

from __future__ import annotations

import doctest
import pickle
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tests.helpers import question

from cowest.collaboration.draft import draft, drafts
from cowest.collaboration.feedback import feedback
from cowest.collaboration.prompts import DefaultFrames
from cowest.collaboration.refine import refine, solo
from cowest.errors import ModelCallError
from cowest.ledger.ledger import Ledger, call_of
from cowest.models import answer as answer_module
from cowest.models import thinking as thinking_module
from cowest.models.answer import HiddenAnswerError, finish_of, is_cut, visible
from cowest.models.replies import flat, parse_reply, thinking_of
from cowest.models.scripted import ScriptedChatModel, ScriptedRequest
from cowest.models.structured import ask_json
from cowest.models.thinking import is_thinking_mark, opens_thinking, split_thinking
from cowest.scoring.judge import Grade, JudgeScorer
from cowest.scoring.scorer import MetricScorer
from cowest.server.drafter import as_drafts
from cowest.systems.collaboration import Collaboration
from cowest.systems.single import SingleCall
from cowest.tasks.base import CLASS_METRICS, SimpleTask
from cowest.types import Completion, Draft, Message, Sampling, TokenLogprob, Usage

FRAMES = DefaultFrames("Answer yes or no.")
TASK = SimpleTask("t", CLASS_METRICS, ("yes", "no"), "Answer yes or no.", {})


@pytest.mark.parametrize(
    ("text", "shown", "hidden"),
    [
        ("<think>\nPerhaps no.\n</think>\n\nYes.", "Yes.", "Perhaps no."),
        ("<thinking>a</thinking> B", "B", "a"),
        ("<THINK>a</THINK>B", "B", "a"),
        ('<think duration="3">a</think>B', "B", "a"),
        ("<thought>a</thought>B", "B", "a"),
        ("<reasoning>a</reasoning>\n<answer>B</answer>", "<answer>B</answer>", "a"),
        ("<reflection>a</reflection>B", "B", "a"),
        ("<thinking>a<reflection>b</reflection>c</thinking>D", "D", "a<reflection>b</reflection>c"),
        ("<seed:think>a</seed:think>B", "B", "a"),
        ("<longcat_think>a</longcat_think>B", "B", "a"),
        ('He wrote "<think>x</think>" there.', 'He wrote "<think>x</think>" there.', None),
        ("<antThinking>a</antThinking>B", "B", "a"),
        ("<reason>a</reason>B", "B", "a"),
        ("<analysis>a</analysis>B", "B", "a"),
        ("<internal_monologue>a</internal_monologue>B", "B", "a"),
        ("<scratch_pad>a</scratch_pad>B", "B", "a"),
        ("<|thinking|>a<|/thinking|>B", "B", "a"),
        ("Here are my reasoning steps:\na\n[BEGIN FINAL RESPONSE]\nB\n[END FINAL RESPONSE]", "B", "a"),
        ("[THINK]a[/THINK]B", "B", "a"),
        ("\u25c1think\u25b7a\u25c1/think\u25b7B", "B", "a"),
        ("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>B<|end_of_solution|>", "B", "a"),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>B<|END_RESPONSE|>", "B", "a"),
        ("<think>a</think>\n<response>B</response>", "B", "a"),
        ("<|channel>thought\na<channel|>B", "B", "a"),
        ("Here is my thought process: a\nHere is my response: B", "B", "a"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>", "B", "a"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
            "<|start|>assistant<|channel|>final<|message|>C",
            "C",
            "a\n\nb",
        ),
        ("analysisWe see a.assistantfinalB", "B", "We see a."),
        # the template wrote the opening mark
        ("a\n</think>\n\nB", "B", "a"),
        ("a[/THINK]B", "B", "a"),
        ("Answer: no</think>", None, "Answer: no"),
        # never closed
        ("<think>\nAnswer: no", None, "Answer: no"),
        ("[THINK]a", None, "a"),
        ("<|channel|>analysis<|message|>a", None, "a"),
        ("<|channel|>analy", None, "analy"),
        ("Sure.\n<think>a", "Sure.", "a"),
        ("<think>a</think>", None, "a"),
        ("<think>\n\n</think>\n\n", None, None),
        # several, nested, doubled
        ("<think>a</think>One.<think>b</think>Two.", "One.\nTwo.", "a\n\nb"),
        ("<think>a <think> b</think> c</think> D", "D", "a <think> b\n\nc"),
        ("<think>a</think>\nB\n</think>", "B", "a"),
        ("<think></think>\nB", "B", None),
        # no thinking at all: the text as it is
        ("  B\n", "  B\n", None),
        ("It writes `<think>` first.", "It writes `<think>` first.", None),
        ("1 < 2 and [x]", "1 < 2 and [x]", None),
        ("I am thinking. The analysis is done.", "I am thinking. The analysis is done.", None),
        ("", None, None),
        (" \n", None, None),
    ],
)
def test_what_is_hidden(text: str, shown: str | None, hidden: str | None) -> None:
    parts = split_thinking(text)
    assert (parts.visible, parts.thinking) == (shown, hidden)


@given(st.text(max_size=300))
def test_any_text_is_visible_or_nothing_and_splitting_twice_is_splitting_once(text: str) -> None:
    shown = split_thinking(text).visible
    assert shown is None or shown.strip()


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("[/INST][THINK]", "[THINK]"),
        ("### assistant:\n", ""),
        ("What does <think> mean?\n### assistant:\n", ""),
    ],
)
def test_a_template_that_opens_thinking(prompt: str, mark: str) -> None:
    assert opens_thinking(prompt) == mark


def test_special_tokens_that_a_decoder_has_to_keep() -> None:
    assert all(map(is_thinking_mark, ["[THINK]", "[/THINK]", "<think>", "</think>", "<|channel|>", "<|message|>"]))
    assert not any(map(is_thinking_mark, ["</s>", "<|im_end|>", "[INST]", "<pad>"]))


def test_the_docstrings_are_true() -> None:
    assert doctest.testmod(thinking_module).failed == doctest.testmod(answer_module).failed == 0


def done(text: str, finish: str = "stop", **more: object) -> Completion:
    return Completion(text=text, finish_reason=finish, usage=Usage(calls=1, output_tokens=5)).model_copy(update=more)


def test_an_answer_with_thinking_beside_it() -> None:
    seen = visible(done("<think>a</think>\n\nB", thinking="before"), "m")
    assert (seen.text, seen.thinking) == ("B", "before\n\na")
    untouched = done("  B\n")
    assert visible(untouched, "m") is untouched


def test_logprobs_are_those_of_the_visible_part() -> None:
    tokens = tuple(
        TokenLogprob(token=t, logprob=-0.1) for t in ("<think>", "x", "</think>", "\n\n", "Answer", ": ", "yes")
    )
    seen = visible(done("<think>x</think>\n\nAnswer: yes", logprobs=tokens), "m")
    assert seen.logprobs is not None and "".join(t.token for t in seen.logprobs) == "Answer: yes"
    lost = visible(done("<think>x</think>Answer: yes", logprobs=tokens[:2]), "m")
    assert lost.logprobs is None


@pytest.mark.parametrize(("finish", "kind"), [("length", "cut_off"), ("stop", "thinking_only")])
def test_nothing_but_thinking_is_a_failure_that_keeps_it(finish: str, kind: str) -> None:
    with pytest.raises(HiddenAnswerError) as caught:
        visible(done("<think>Answer: no", finish), "m")
    assert caught.value.kind == kind and caught.value.done.thinking == "Answer: no"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.kind, again.done, str(again)) == (kind, caught.value.done, str(caught.value))


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length"])
def test_every_word_for_a_cut(reason: str) -> None:
    assert is_cut(done("x", reason)) and finish_of(reason) == "length"


@pytest.mark.parametrize(
    ("message", "thinking"),
    [
        ({"content": "B", "reasoning_content": "a"}, "a"),
        ({"content": "B", "reasoning": "a"}, "a"),
        ({"content": "B", "reasoning": {"summary": "a"}}, None),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}, {"type": "text", "text": "B"}]}, "a"),
        ({"content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "B"}]}, "a"),
        ({"content": "B"}, None),
    ],
)  # fmt: skip
def test_what_a_servers_parser_has_split_off(message: dict[str, JsonValue], thinking: str | None) -> None:
    assert (thinking_of(flat(message)) or None) == thinking
    import json

    got = parse_reply(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())
    assert (got.text, got.thinking) == ("B", thinking)


async def test_the_ledger_keeps_what_was_hidden(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    ledger = Ledger(tmp_path / "ledger.sqlite", "run")
    call = call_of("m", [Message(role="user", content="q")], Sampling(), {}, None)
    await ledger.answered(call, done("Answer: yes", thinking="Hm."))
    known = ledger.get(call.key)
    ledger.close()
    assert known is not None
    seen = visible(known, "m")
    assert (seen.text, seen.thinking) == ("Answer: yes", "Hm.")


def model(*replies: str | tuple[str, str]) -> ScriptedChatModel:
    """Replies in turn; a pair has a finish reason."""
    left = list(replies)

    class Finishing(ScriptedChatModel):
        async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
            reply = left.pop(0)
            text, finish = (reply, "stop") if isinstance(reply, str) else reply
            self.requests.append(_request(messages, sampling))
            return done(text, finish)

    return Finishing(lambda messages, sampling: "")


def _request(messages: Sequence[Message], sampling: Sampling) -> ScriptedRequest:
    return ScriptedRequest(messages=tuple(messages), sampling=sampling)


async def test_a_draft_goes_on_without_its_thinking() -> None:
    weak, strong = model("<think>Answer: no?</think>Knowledge.\nAnswer: yes"), model("<think>no!</think>Answer: yes")
    made = await Collaboration(weak, strong, FRAMES).answer(question())
    assert (made.text, made.thinking, made.draft_thinking) == ("Answer: yes", "no!", "Answer: no?")
    assert made.draft == "Knowledge.\nAnswer: yes"
    sent = strong.requests[0].messages[-1].content
    assert "Knowledge." in sent and "think>" not in sent and "no?" not in sent


async def test_thinking_alone_is_no_draft_and_no_answer() -> None:
    ended = await draft(model("<think>Answer: no"), FRAMES, question(), 0, Sampling())
    assert ended.text is None and ended.thinking == "Answer: no" and not ended.truncated
    assert ended.error is not None and ended.error.startswith("thinking_only")
    cut = await draft(model(("<think>Answer: no", "length")), FRAMES, question(), 0, Sampling())
    assert (cut.text, cut.error, cut.truncated, cut.usage.calls) == (None, None, True, 1)
    alone = await solo(model(("<think>Answer: no", "length")), FRAMES, question(), Sampling())
    assert (alone.text, alone.error, alone.truncated, alone.thinking) == (None, None, True, "Answer: no")
    single = await SingleCall(model(("<think>Answer: no", "length")), FRAMES.solo, Sampling(), "strong").answer(
        question()
    )
    assert (single.text, single.error, single.truncated, single.usage.calls) == (None, None, True, 1)


async def test_several_drafts_of_one_request() -> None:
    class Many:
        name, many = "weak", True

        async def generate_many(self, messages: object, sampling: Sampling, n: int) -> list[Completion]:
            return [done("<think>a</think>B"), done("<think>a", "length"), done("C")]

    made = await drafts(Many(), FRAMES, question(), 3, Sampling())  # type: ignore[arg-type]
    assert [(d.text, d.thinking, d.truncated) for d in made] == [
        ("B", "a", False),
        (None, "a", True),
        ("C", None, False),
    ]


async def test_what_was_cut_off_is_unscored_in_the_feedback_and_says_at_what() -> None:
    scorer = MetricScorer(TASK, "accuracy")
    first = Draft(id="q1#0", example_id="q1", index=0, text="Answer: yes")
    refined = await refine(model(("Let me see", "length")), FRAMES, question(), first, Sampling())
    alone = await solo(model(("<think>no", "length")), FRAMES, question(), Sampling())
    made = await feedback(scorer, question(), first, refined, alone, draft_tokens=8, answer_tokens=16)
    assert made.refined.value is made.solo.value is made.gain is None
    assert made.refined.error == made.solo.error == "cut off at max_tokens 16 before an answer"
    assert made.weak.value == 1.0
    whole = await refine(model(("Answer: yes, since", "length")), FRAMES, question(), first, Sampling())
    assert (await feedback(scorer, question(), first, whole, whole)).refined.value == 1.0, "it had come to its answer"


async def test_thinking_is_never_a_judges_grade() -> None:
    guess = '<think>\n{"coherence": 2, "consistency": 0}\n</think>\n'
    score = await JudgeScorer(model(guess + '{"coherence": 8, "consistency": 10}')).score(question(), "Answer: yes")
    assert score.value == pytest.approx(0.9)
    asked = model(guess + "Good.", '{"coherence": 10, "consistency": 10}')
    grade, _ = await ask_json(asked, [Message(role="user", content="Grade.")], Grade, Sampling())
    assert grade.coherence == 10 and "think>" not in asked.requests[1].messages[1].content
    cut = await JudgeScorer(model((guess[:20], "length"))).score(question(), "Answer: yes")
    assert cut.value is None and cut.error is not None and cut.error.startswith("judge: cut_off")


async def test_a_judge_gives_a_cut_off_text_no_grade() -> None:
    judge = JudgeScorer(model(*['{"coherence": 5, "consistency": 0}'] * 3), extract=TASK.extract)
    first = Draft(id="q1#0", example_id="q1", index=0, text="Answer: yes")
    refined = await refine(model(("Let me see", "length")), FRAMES, question(), first, Sampling())
    made = await feedback(judge, question(), first, refined, refined)
    assert made.refined.value is None and made.weak.value == 0.25


def test_a_model_call_error_is_what_callers_catch() -> None:
    assert issubclass(HiddenAnswerError, ModelCallError)


async def test_a_served_draft_goes_on_without_its_thinking() -> None:
    weak = as_drafts(model("<think>no?</think>Knowledge.", ("<think>no?", "length"), "<think>no?"))
    assert (await weak.generate(FRAMES.draft(question()), Sampling())).text == "Knowledge."
    for _ in range(2):
        with pytest.raises(ModelCallError) as caught:
            await weak.generate(FRAMES.draft(question()), Sampling())
        assert caught.value.kind == "draft_empty", "so that the strong model answers alone"
