"""Who sees the context: what no request to the strong model may hold, over every system there is."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue
from tests.helpers import tiny_recipe

from cowest.assembly.context import Context
from cowest.assembly.opened import OpenModels
from cowest.assembly.prepare import prepare
from cowest.assembly.stand_ins import Asked, dry_run
from cowest.assembly.systems import Retrievers
from cowest.collaboration.sight import QUOTE, Quotations, carried, task_for
from cowest.recipe.config import config_from_dict
from cowest.run.progress import QuietReporter
from cowest.stages import depends
from cowest.systems.registry import SYSTEMS, variant_of
from cowest.systems.retrieval import with_passages
from cowest.systems.spec import SystemSpec
from cowest.types import Completion, Message, Sampling

pytest.importorskip("bm25s")
URL = "http://127.0.0.1:1/v1"
SYLLABLES = ("ka", "mo", "ri", "tu", "vel", "sha", "non", "bi", "der", "lo", "fen", "gu")


def words(rng: random.Random, n: int) -> str:
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(n))


def rows(split: str, n: int) -> list[dict[str, JsonValue]]:
    """Questions with contexts that share no piece; every other rationale quotes its context, as IfQA's do."""
    rng, found = random.Random(f"sight/{split}"), list[dict[str, JsonValue]]()
    for i in range(n):
        context = words(rng, 40)
        rationale = f"It is known that {context[30:120]}." if i % 2 else f"{words(rng, 8)}."
        answer = ("yes", "no")[i % 2 if split != "test" else 0]
        found.append({"id": f"{split}-{i}", "input": f"Is {words(rng, 3)} safe?", "context": context, "answer": answer,
                      "rationale": rationale, "choices": ["yes", "no"]})  # fmt: skip
    return found


def context_of(folder: Path, **task: JsonValue) -> Context:
    for split, n in (("train", 16), ("validation", 4), ("test", 4)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(split, n))
        (folder / f"{split}.jsonl").write_text(lines)
    files: dict[str, JsonValue] = {s: str(folder / f"{s}.jsonl") for s in ("train", "validation", "test")}
    judge: JsonValue = {"judge": {"kind": "scripted", "rules": [], "default": "{}"}}
    beside: JsonValue = {"specialists": {"toxicology": {"kind": "scripted", "rules": [], "default": "Answer: no"}}}
    recipe = tiny_recipe("no/such/weak/model", URL, task={"kind": "jsonl"} | files | task, feedback=judge, table=beside)
    return prepare(config_from_dict(recipe, folder), folder / "run", QuietReporter(), offline=True)[0]


def requests(context: Context, spec: SystemSpec) -> list[Asked]:
    """What the system asks for the first test query, whose draft quotes nothing; FLARE looks things up."""
    _, config = variant_of(context.config, spec)
    mine = replace(context, config=config)
    example = context.task.examples("test")[0]
    return asyncio.run(dry_run(mine, spec, example, Retrievers(), sure=0.1))[1]


def texts(asked: Iterable[Asked], *models: str) -> str:
    return "\n".join(m.content for a in asked if a.model.startswith(models) for m in a.messages)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Context]:
    every = ("both", "weak", "strong", "none")
    return {who: context_of(tmp_path_factory.mktemp(who), context_for=who) for who in every}


@pytest.fixture(scope="module")
def secret() -> Quotations:
    return Quotations(str(row["context"]) for split, n in (("train", 16), ("test", 4)) for row in rows(split, n))


@pytest.mark.parametrize("spec", SYSTEMS, ids=lambda s: s.name)
def test_no_request_to_the_strong_model_holds_any_of_the_context(
    spec: SystemSpec, contexts: dict[str, Context], secret: Quotations
) -> None:
    for who, weak_sees, strong_sees in (("both", True, True), ("weak", True, False), ("strong", False, True)):
        asked = requests(contexts[who], spec)
        to_weak, to_strong = texts(asked, "weak", "specialist"), texts(asked, "strong")
        assert to_weak or to_strong
        if to_strong:
            assert bool(secret.quoted(to_strong)) is strong_sees, who
        if to_weak:  # rationales of few-shot examples quote contexts, too
            assert bool(secret.quoted(to_weak)) is weak_sees, who


def test_for_nobody_is_the_same_as_without_contexts(contexts: dict[str, Context], secret: Quotations) -> None:
    """Rationales stay what they are: IfQA's are its passages, as published, and rows that show rationales show them."""
    for spec in SYSTEMS:
        asked = texts(requests(contexts["none"], spec), "weak", "strong")
        assert "Context:" not in asked or spec.retrieves
        assert str(rows("test", 1)[0]["context"])[:QUOTE] not in asked, spec.name


def test_what_a_draft_quotes_is_all_that_leaves(contexts: dict[str, Context], secret: Quotations) -> None:
    """The draft itself is passed on as it is: the guide says so."""
    context, spec = contexts["weak"], next(s for s in SYSTEMS if s.name == "collab")
    quoting = context.task.examples("test")[1]
    asked = asyncio.run(dry_run(context, spec, quoting, Retrievers()))[1]
    strong = texts(asked, "strong")
    draft = context.task.target(quoting)
    assert secret.quoted(draft) and draft in strong
    assert secret.quoted(strong.replace(draft, "")) is None


def test_the_strong_model_may_see_what_it_looked_up_itself(contexts: dict[str, Context]) -> None:
    spec = next(s for s in SYSTEMS if s.name == "bm25")
    blind, seeing = (texts(requests(contexts[who], spec), "strong") for who in ("weak", "both"))
    assert blind.count("Context:") == seeing.count("Context:") == 1
    assert "safe?\nAnswer: " in blind  # training questions and answers stand in for texts that it may not see


class Judge:
    """Gives every answer the same grade, and keeps what it was asked."""

    name = "judge"

    def __init__(self) -> None:
        self.asked = ""

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.asked = messages[-1].content
        return Completion(text='{"coherence": 5, "consistency": 5, "explanation": ""}')

    async def aclose(self) -> None:
        """Nothing to release."""


@pytest.mark.parametrize(("who", "shown"), [("both", True), ("strong", True), ("weak", False)])
def test_a_judge_sees_what_the_strong_model_sees(
    who: str, shown: bool, contexts: dict[str, Context], secret: Quotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, judge = contexts[who], Judge()
    monkeypatch.setattr(OpenModels, "judge", lambda models: judge)
    score = asyncio.run(context.scorer().score(context.task.examples("test")[0], "Answer: yes"))
    assert score.value == 0.5 and bool(secret.quoted(judge.asked)) is shown


def test_a_rationale_goes_to_the_strong_model_unless_it_quotes(contexts: dict[str, Context]) -> None:
    context = contexts["weak"]
    seen = task_for("strong", context.task, "weak")
    train = seen.examples("train")
    assert [e.rationale is None for e in train] == [i % 2 == 1 for i in range(16)]
    assert all(e.context is None for e in train)
    assert seen.target(context.task.examples("train")[1]) == "Answer: no"
    assert task_for("weak", context.task, "weak") is context.task
    assert task_for("strong", context.task, "weak") is seen  # contexts are read once for all rows of a table


def test_only_what_a_change_of_sight_touches_is_made_again(contexts: dict[str, Context]) -> None:
    """From both to weak the drafts stay; runs older than the setting stay as they are."""
    both, weak, none = (contexts[who] for who in ("both", "weak", "none"))
    side = {who: depends.seen(contexts[who], "weak").values for who in contexts}
    assert side["both"] == side["weak"] == side["none"] != side["strong"]
    strong = depends.seen(weak, "strong")
    assert strong.values != strong.defaults and depends.seen(both, "strong").values == strong.defaults
    assert depends.seen(none, "strong").values == strong.defaults  # its questions have no context
    assert both.frames.draft(both.task.examples("train")[0]) == weak.frames.draft(weak.task.examples("train")[0])
    assert none.frames.solo(none.task.examples("train")[0]) == weak.frames.solo(weak.task.examples("train")[0])
    assert with_passages(none.task.examples("test")[0], ["found"]).context == "found"


def test_what_a_draft_carries_is_counted_in_sequences_of_words() -> None:
    context = " ".join(f"w{i}" for i in range(17))  # ten sequences of eight
    assert carried(context, "So: W3 w4\nw5 w6 w7 w8 w9 w10 w11 too") == 0.2
    assert carried(context, context) == 1.0 and carried(context, "w1 w2 w3") == carried("short", context) == 0.0


@given(st.text(alphabet="ab ", max_size=150), st.text(alphabet="ab ", max_size=150), st.integers(0, 100))
def test_a_quotation_is_found_wherever_it_stands(source: str, text: str, at: int) -> None:
    copied = text[:at] + source[20:80] + text[at:]
    plain, other = " ".join(copied.casefold().split()), " ".join(source.casefold().split())
    wanted = any(plain[i : i + QUOTE] in other for i in range(len(plain) - QUOTE + 1))
    found = Quotations([source, "x" * 50]).quoted(copied)
    assert (found is not None) is wanted
    assert found is None or (len(found) == QUOTE and found in plain and found in other)
