from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from cowest.lab.corpus import samples
from cowest.lab.frames import LabFrames
from cowest.lab.names import invent_many, written_comparison, written_difference, written_sum
from cowest.lab.sample import Sample
from cowest.types import Example


def first(role: str, count: int, start: int = 0, seed: int = 0) -> list[Sample]:
    return list(islice(samples(role, seed, start), count))


@pytest.mark.parametrize(("a", "b"), [(a, b) for a in (10, 62, 99) for b in (0, 2, 7, 10, 17, 20, 30)])
def test_written_arithmetic_ends_right_and_every_step_holds(a: int, b: int) -> None:
    for written, result in ((written_sum(a, b), a + b), (written_difference(a, b) if a >= b else "", a - b)):
        if not written:
            continue
        here = a
        for step in written.split(", "):
            left, sign, amount, right = re.fullmatch(r"(\d+)([+-])(\d+)=(\d+)", step).groups()  # type: ignore[union-attr]
            assert int(left) == here
            here += int(amount) if sign == "+" else -int(amount)
            assert int(right) == here
        assert here == result


def test_written_arithmetic_literally() -> None:
    assert written_difference(62, 17) == "62-10=52, 52-7=45"
    assert written_sum(62, 17) == "62+10=72, 72+7=79"
    assert written_sum(5, 4) == "5+4=9" and written_sum(5, 20) == "5+20=25" and written_sum(5, 0) == "5+0=5"
    assert [written_comparison(*x) for x in ((30, 45), (45, 45), (50, 45))] == ["30<45", "45=45", "50>45"]


def test_names_are_distinct_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    names = invent_many(random.Random(0), 500)
    assert len(set(names)) == 500 and all(re.fullmatch(r"[A-Z][a-z]+", n) for n in names)
    monkeypatch.setattr("cowest.lab.names._ONSETS", "b")  # (4 + 8 stems) x 4 endings
    monkeypatch.setattr("cowest.lab.names._VOWELS", "ae")
    assert len(invent_many(random.Random(0), 48)) == 48
    with pytest.raises(ValueError, match="fewer entities"):
        invent_many(random.Random(0), 49)


@pytest.mark.parametrize("role", ["strong", "weak"])
def test_a_sample_is_a_function_of_its_index(role: str) -> None:
    assert first(role, 10, start=5) == first(role, 15)[5:]
    assert first(role, 10) != first(role, 10, seed=1)


def test_the_strong_model_is_trained_on_the_frames_it_will_be_asked_in() -> None:
    frames = LabFrames()
    with_draft = [s for s in first("strong", 200) if "/" in s.kind]
    assert len(with_draft) > 100
    for sample in with_draft:
        query, _, draft = sample.messages[0].content.partition("\nDraft: ")
        example = Example(id="x", input=query, references=("?",))
        assert sample.messages == frames.refine(example, draft)
    alone = Example(id="x", input="Q?", context="C.", references=("?",))
    assert frames.solo(alone)[0].content == frames.draft(alone)[0].content == "C.\nQ?"


def test_replies_end_in_the_answer() -> None:
    for role in ("strong", "weak"):
        for sample in first(role, 300):
            if sample.kind != "drill":
                assert sample.reply.endswith(f"Answer: {sample.answer}")


def test_every_kind_of_sample_occurs() -> None:
    kinds = Counter(s.kind for s in first("strong", 1000))
    expected = {"drill", "alone", "context"}
    expected |= {f"{d}/{k}" for d in ("counterfactuals", "medicine", "ethics") for k in ("complete", "partial")}
    assert set(kinds) == expected
    assert set(Counter(s.kind.split("/")[1] for s in first("weak", 300))) == {"complete", "partial", "answer_only"}


def test_with_all_facts_the_reply_reasons_whatever_the_draft_answers_and_with_too_few_it_trusts() -> None:
    overruled = trusted = 0
    for sample in first("strong", 1500):
        content = sample.messages[0].content
        said = content.rpartition("Answer: ")[2] if "Answer: " in content else None
        if said is None:
            continue
        if sample.kind.endswith("/complete"):
            overruled += said != sample.answer
        elif sample.kind.endswith("/partial"):
            assert said == sample.answer and "?" in sample.reply
            trusted += 1
    assert overruled > 50 and trusted > 100


def test_drills_are_right() -> None:
    for sample in (s for s in first("strong", 600) if s.kind == "drill"):
        ask = sample.messages[0].content
        a, sign, b = re.fullmatch(r"(\d+)([-+*?])(\d+)", ask).groups()  # type: ignore[union-attr]
        if sign == "?":
            assert sample.reply == ask.replace("?", "<" if int(a) < int(b) else ">" if int(a) > int(b) else "=")
        else:
            result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert sample.reply.endswith(f"={result}")
