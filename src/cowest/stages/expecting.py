"""What the stage feedback asks for beside an answer, so that its expected score can be told, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.assembly.context import Context
from cowest.collaboration.expect import Expect, Proving, class_probabilities
from cowest.protocols import ChatModel
from cowest.types import Classes, Completion, Example, Refinement, Request


def strong_model(context: Context) -> ChatModel:
    """The strong model; where log-probabilities are needed, its first answer has to have them before others are asked for."""
    settings = context.config.feedback
    strong = context.models.strong(settings.mode)
    return strong if settings.expect != "logprobs" else Proving(strong, context.models.strong())


def expect_of(context: Context, requests: Sequence[Request]) -> Expect:
    """What belongs to the first of these requests: the probabilities of the classes, or the samples, which are the others."""

    def classes(done: Completion, example: Example) -> Classes | None:
        task = context.task
        labels = task.labels or example.choices
        return class_probabilities(done, labels, lambda text: task.extract(text, example)) if labels else None

    by_class = classes if context.config.feedback.expect == "logprobs" else None
    return Expect(by_class, tuple(request.sampling for request in requests[1:]))


def expected_counts(context: Context, answers: Sequence[Refinement]) -> dict[str, int]:
    """Of the answers that came: how many have what an expected score takes, and how many samples failed."""
    if context.config.feedback.expect == "off":
        return {}
    came = [answer for answer in answers if answer.text is not None]
    expected = [a for a in came if a.classes is not None or any(s.text is not None for s in a.samples)]
    return {
        "expected": len(expected),
        "expected_not_told": len(came) - len(expected),
        "samples_failed": sum(sample.error is not None for answer in came for sample in answer.samples),
    }


def expected_warnings(context: Context, counts: dict[str, int]) -> tuple[str, ...]:
    """What is said where the plain score has to stand for an expected one."""
    missing, all_ = counts.get("expected_not_told", 0), counts.get("expected", 0) + counts.get("expected_not_told", 0)
    if not missing:
        return ()
    if context.config.feedback.expect == "samples":
        why = "their samples failed"
    else:
        why = (
            "their text names no class, or none that could be found among its tokens; an answer line (`Answer: ...`) in the "
            "frames, or feedback.expect: samples, helps"
        )
    return (f"{missing} of {all_} strong answers have no expected score, and the plain one counts: {why}",)
