"""What the stage feedback asks for beside an answer, so that its expected score can be told, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.assembly.context import Context
from cowest.collaboration.expect import Expect, Proving, class_probabilities, readings
from cowest.protocols import ChatModel
from cowest.stages.asks import classes_of, readings_each
from cowest.types import Classes, Completion, Example, Given, Refinement, Request


def strong_model(context: Context) -> ChatModel:
    """The strong model; where log-probabilities are needed, its first answer has to have them before others are asked for."""
    settings = context.config.feedback
    strong = context.models.strong(settings.mode)
    return strong if settings.expect != "logprobs" else Proving(strong, context.models.strong())


def expect_of(context: Context, example: Example, requests: Sequence[Request]) -> Expect:
    """What belongs to the first of these requests: the probabilities of the classes, or of the references where answers are open.

    Or the samples, which are the other requests.
    """
    task, labels = context.task, classes_of(context, example)

    def classes(done: Completion, example: Example) -> Classes | None:
        return class_probabilities(done, labels, lambda text: task.extract(text, example)) if labels else None

    def open_(done: Completion, example: Example) -> Sequence[Given]:
        return readings(done, example, lambda text: task.extract(text, example))

    if context.config.feedback.expect == "logprobs":
        return Expect(readings=open_) if readings_each(context, example) else Expect(classes=classes)
    return Expect(samples=tuple(request.sampling for request in requests[1:]))


def expected_counts(context: Context, answers: Sequence[Refinement]) -> dict[str, int]:
    """Of the answers that came: how many have what an expected score takes, and how many samples failed."""
    if context.config.feedback.expect == "off":
        return {}
    came = [answer for answer in answers if answer.text is not None]
    expected = [a for a in came if _told(a)]
    return {
        "expected": len(expected),
        "expected_not_told": len(came) - len(expected),
        "samples_failed": sum(sample.error is not None for answer in came for sample in answer.samples),
    }


def _told(answer: Refinement) -> bool:
    read = any(one.value is not None for one in answer.likelihoods)
    return read or answer.classes is not None or any(s.text is not None for s in answer.samples)


def expected_warnings(context: Context, counts: dict[str, int]) -> tuple[str, ...]:
    """What is said where the plain score has to stand for an expected one."""
    missing, all_ = counts.get("expected_not_told", 0), counts.get("expected", 0) + counts.get("expected_not_told", 0)
    if not missing:
        return ()
    if context.config.feedback.expect == "samples":
        why = "their samples failed"
    else:
        why = (
            "their text names no answer, or none that could be found among its tokens; an answer line (`Answer: ...`) in the "
            "frames, or feedback.expect: samples, helps"
        )
    return (f"{missing} of {all_} strong answers have no expected score, and the plain one counts: {why}",)
