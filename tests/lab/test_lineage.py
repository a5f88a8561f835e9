"""Chained facts: the world, what the model that asks is trained on, and what it does with a weak model that knows everything."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean

import pytest
from pydantic import JsonValue
from tests.helpers import cowest_main, save_tiny_model, tiny_recipe

from cowest.assembly.places import model_path
from cowest.errors import ConfigError
from cowest.lab.corpus import samples
from cowest.lab.frames import LabInteractionFrames
from cowest.lab.lineage import aged, lineage_splits
from cowest.lab.sample import Sample
from cowest.lab.task import lab_task
from cowest.lab.worlds import make_world
from cowest.models.local import LocalChatModel
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe.config import LabTaskConfig, RunConfig, WorldConfig, config_from_dict
from cowest.run.progress import QuietReporter
from cowest.systems.interactions.consult import Consult
from cowest.table.plan import make_plan
from cowest.table.run import run_table
from cowest.types import Example, ModelRef, Prediction, Sampling

TURNS = LabInteractionFrames()
GREEDY = Sampling(max_tokens=96)
# What follows reads the sentences anew: nothing of the generator's own arithmetic is used.
TOLD = (
    ("taught", r"(?P<v>\w+) taught (?P<s>\w+)\."), ("taught", r"(?P<s>\w+) was taught by (?P<v>\w+)\."),
    ("lived", r"(?P<s>\w+) lived in (?P<v>\w+)\."), ("lived", r"The town of (?P<s>\w+) was (?P<v>\w+)\."),
    ("founded", r"(?P<s>\w+) was founded in (?P<v>\d+)\."), ("founded", r"The founding of (?P<s>\w+) was in (?P<v>\d+)\."),
)  # fmt: skip
ASKED = (
    ("taught", r"Who taught (\w+)\?"), ("taught", r"Who was the teacher of (\w+)\?"),
    ("lived", r"Where did (\w+) live\?"), ("lived", r"Which was the town of (\w+)\?"),
    ("founded", r"When was (\w+) founded\?"), ("founded", r"In which year was (\w+) founded\?"),
)  # fmt: skip
Facts = dict[tuple[str, str], str]


def told(text: str) -> Facts:
    """Every fact that a text states, by (kind, subject)."""
    return {(kind, m["s"]): m["v"] for kind, pattern in TOLD for m in re.finditer(pattern, text)}


def asks(text: str) -> tuple[str, str] | None:
    """What a look-up asks for, as (kind, subject)."""
    found = [(kind, m[1]) for kind, pattern in ASKED if (m := re.fullmatch(pattern, text))]
    return found[0] if found else None


def goal(question: str) -> tuple[list[str], str, int | None]:
    """The kinds of a question's links, where the chain starts, and the year in which the age is asked for."""
    if one := asks(question):
        return [one[0]], one[1], None
    match = re.fullmatch(r"How old was (the town of )?(\w+)('s teacher)? in (\d+)\?", question)
    assert match, question
    kinds = ["taught", "lived", "founded"] if match[3] else ["lived", "founded"] if match[1] else ["founded"]
    return kinds, match[2], int(match[4])


def followed(question: str, facts: Facts) -> tuple[str | None, tuple[str, str] | None]:
    """The answer by the facts, or else the first link that is lacking."""
    kinds, here, year = goal(question)
    for kind in kinds:
        if (kind, here) not in facts:
            return None, (kind, here)
        here = facts[kind, here]
    if year is not None:
        return f"{year - int(here)} years", None
    return (f"year {here}" if kinds[-1] == "founded" else here), None


def first(count: int) -> list[Sample]:
    return list(islice(samples("strong-asks", 0), count))


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def test_the_other_domains_and_shipped_models_are_as_they_were() -> None:
    was = {"strong": "4297a744b0350f0f", "weak": "9c09382a8aa0b5e7"}
    for role, expected in was.items():
        made = islice(samples(role, 0), 300)
        assert digest([(s.kind, [m.content for m in s.messages], s.reply, s.answer) for s in made]) == expected
    worlds = {"counterfactuals": "27482b165710773a", "medicine": "978e4afc579e2718", "ethics": "8882b93ee378e714"}
    for domain, expected in worlds.items():
        splits = make_world(domain, WorldConfig(seed=11, train=200, test=50)).splits.values()
        assert digest([(e.input, e.rationale, e.references) for split in splits for e in split]) == expected
    weights = {"strong": "f7a3b1c1c71e9f5f", "strong-small": "cc85a47498d19d65", "strong-tiny": "dc78f33abc5880e9",
               "weak": "796c81779c8d675a", "weak-small": "622b028070317610"}  # fmt: skip
    for name, expected in weights.items():
        folder = Path(model_path(f"lab:{name}"))
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16] == expected
        assert (folder / "tokenizer.json").read_bytes() == (
            Path(model_path("lab:strong-asks")) / "tokenizer.json"
        ).read_bytes()


@pytest.mark.parametrize("seed", [0, 1, 21])
def test_a_world_states_every_fact_and_never_a_chain(seed: int) -> None:
    splits = lineage_splits(WorldConfig(seed=seed))
    facts, single, written = Facts(), 0, Counter[int]()
    for example in splits["train"]:
        here = told(example.rationale or "")
        if asked := asks(example.input):
            assert list(here) == [asked] and followed(example.input, here)[0] == example.references[0]
            single += 1
        else:
            written[len(here)] += 1
            assert not here or list(here) == [(goal(example.input)[0][0], goal(example.input)[1])]
        assert all(facts.get(key, value) == value for key, value in here.items())
        facts |= here
    assert single == 900 and set(written) == {0, 1} and min(written.values()) > 200
    for split in ("train", "validation", "test"):
        assert all(followed(e.input, facts)[0] == e.references[0] for e in splits[split])
    asked_for = {s: {e.input for e in splits[s] if not asks(e.input)} for s in splits}
    assert not asked_for["train"] & asked_for["test"] and not asked_for["validation"] & asked_for["test"]
    assert [len(v) for v in asked_for.values()] == [600, 150, 300]
    assert Counter(len(goal(e.input)[0]) for e in splits["test"]).keys() == {2, 3}


def test_complete_rationales_where_the_recipe_wants_them() -> None:
    chains = [e for e in lineage_splits(WorldConfig(complete=1.0))["train"] if not asks(e.input)]
    assert all(followed(e.input, told(e.rationale or ""))[0] == e.references[0] for e in chains)


def test_a_world_is_a_function_of_its_settings_and_says_where_it_is_too_small() -> None:
    def task(**knobs: JsonValue) -> Sequence[Example]:
        return lab_task(LabTaskConfig.model_validate({"kind": "lab", "domain": "lineage", **knobs}), 1).examples(
            "train"
        )

    assert task(seed=2) == task(seed=2) != task()
    with pytest.raises(ConfigError, match=r"task lineage: a world this small .* raise 'entities'"):
        task(entities=8)
    with pytest.raises(
        ConfigError, match=r"task lineage: 40 training questions do not reach all 80 facts; raise 'train'"
    ):
        task(train=40)
    with pytest.raises(ValueError, match="chain"):
        aged((), 80)


def test_every_ask_is_the_next_link_and_every_answer_follows() -> None:
    seen = Counter[str]()
    for sample in first(2000):
        seen[sample.kind] += 1
        if sample.kind not in ("ask", "again", "answer", "guess"):
            continue
        query, _, left = sample.messages[0].content.rpartition("\nAsk: ")
        context, _, question = query.rpartition("\n")
        facts, allowed, missed = told(context), int(left), 0
        for ask, reply in zip(sample.messages[1::2], sample.messages[2::2], strict=True):
            wanted = asks(ask.content.removeprefix("ASK: "))
            assert wanted == followed(question, facts)[1]
            text, _, left = reply.content.rpartition("\nAsk: ")
            allowed -= 1
            assert int(left) == allowed
            assert wanted is not None
            bare = re.fullmatch(r"Answer: (?:year )?(\w+)", text)
            facts |= told(text) | ({wanted: bare[1]} if bare else {})
            missed = 0 if wanted in facts else missed + 1
        answer, lacking = followed(question, facts)
        if sample.kind in ("ask", "again"):
            assert (
                asks(sample.reply.removeprefix("ASK: ")) == lacking and allowed and missed == (sample.kind == "again")
            )
        elif sample.kind == "answer":
            assert sample.answer == answer and sample.reply.endswith(f"\nAnswer: {answer}")
        else:
            assert lacking and (allowed == 0 or missed == 2) and f"{lacking[1]} ?." in sample.reply
    assert min(seen[k] for k in ("ask", "answer", "guess", "complete", "partial", "alone", "context", "drill")) > 80
    assert seen["again"] > 10


def test_frames_are_what_it_was_trained_on() -> None:
    example = Example(id="x", input="Q?", context="C.", references=("?",))
    assert [m.content for m in TURNS.consult(example, 2)] == ["C.\nQ?\nAsk: 2"]
    assert TURNS.reply("Kasti taught Velmo.\nAnswer: Kasti", 1) == "Kasti taught Velmo.\nAnswer: Kasti\nAsk: 1"
    assert [m.content for m in TURNS.consulted(example, "Who taught Velmo?")] == ["C.\nWho taught Velmo?"]


class Asked:
    """The shipped model on an unseen world, beside a weak one that knows every fact of it."""

    def __init__(self) -> None:
        splits = lineage_splits(WorldConfig(seed=5))
        self.queries = splits["test"][:30]
        self.facts = {
            asks(e.input): f"{e.rationale}\nAnswer: {e.references[0]}" for e in splits["train"] if asks(e.input)
        }
        self.weak = ScriptedChatModel(lambda m, _: self.facts.get(asks(m[-1].content.rpartition("\n")[2]), "Answer: ?"))
        self.strong = LocalChatModel(ModelRef(base=model_path("lab:strong-asks")), device="cpu")

    def answers(self, queries: Sequence[Example], questions: int) -> list[Prediction]:
        system = Consult(self.weak, self.strong, TURNS, GREEDY, GREEDY, questions, "consult")

        async def every() -> list[Prediction]:
            return list(await asyncio.gather(*(system.answer(q) for q in queries)))

        return asyncio.run(every())


def share_right(queries: Sequence[Example], answers: Sequence[Prediction]) -> float:
    pairs = zip(queries, answers, strict=True)
    return sum((a.text or "").endswith(f"Answer: {q.references[0]}") for q, a in pairs) / len(queries)


def test_the_shipped_model_follows_a_chain_it_has_never_seen() -> None:
    lab = Asked()
    answers = lab.answers(lab.queries, 3)
    assert share_right(lab.queries, answers) >= 0.8
    as_needed = [a.usage.calls == 2 * len(goal(q.input)[0]) + 1 for q, a in zip(lab.queries, answers, strict=True)]
    assert sum(as_needed) / len(as_needed) >= 0.9
    assert share_right(lab.queries, lab.answers(lab.queries, 1)) < 0.2


def test_it_asks_for_less_where_the_context_says_it() -> None:
    lab, first, whole = Asked(), list[Example](), list[Example]()
    everything = told(" ".join(lab.facts.values()))
    for query in lab.queries:
        kinds, here, _ = goal(query.input)
        said = list[str]()
        for kind in kinds:
            said.append(lab.facts[kind, here].partition("\n")[0])
            here = everything[kind, here]
        first.append(query.model_copy(update={"context": said[0]}))
        whole.append(query.model_copy(update={"context": " ".join(said)}))
    answers = [lab.answers(queries, 3) for queries in (lab.queries, first, whole)]
    asked = [mean((a.usage.calls - 1) / 2 for a in made) for made in answers]
    assert (
        asked[0] - asked[1] > 0.6 and asked[1] - asked[2] > 0.4
    )  # of 2.7: 0.7 less with the first fact, 1.5 less with all
    assert share_right(whole, answers[-1]) >= 0.8


def lab_recipe(weak: str, **changes: JsonValue) -> RunConfig:
    world: JsonValue = {"kind": "lab", "domain": "lineage", "entities": 12, "train": 40, "validation": 8, "test": 12}
    strong: JsonValue = {"kind": "local", "model": "lab:strong-asks", "device": "cpu"}
    table: JsonValue = {
        "rows": ["collab", "collab_consult"],
        "seeds": [3],
        "questions": 3,
        "baseline": "collab_consult",
    }
    return config_from_dict(
        tiny_recipe(weak, "http://127.0.0.1:1/v1") | {"task": world, "strong": strong, "table": table} | changes
    )


def test_the_row_in_a_table(tmp_path: Path) -> None:
    asyncio.run(run_table(make_plan(lab_recipe(save_tiny_model(tmp_path / "weak"))), tmp_path / "out", QuietReporter()))
    file = next((tmp_path / "out").rglob("collab_consult.jsonl"))
    made = [Prediction.model_validate_json(line) for line in file.read_text().splitlines()]
    assert len(made) == 12 and all(p.text and p.error is None and 1 <= p.usage.calls <= 7 for p in made)
    assert any(p.usage.calls > 1 and p.draft for p in made)


def test_other_turns_worlds_and_models_are_refused() -> None:
    refused: list[dict[str, JsonValue]] = [
        {"table": {"rows": ["collab_critique"]}},
        {"strong": {"kind": "local", "model": "lab:strong"}},
        {"task": {"kind": "lab", "domain": "medicine"}},
    ]
    for changes in refused:
        with pytest.raises(ConfigError, match="is not possible here: a lab world's tiny models"):
            make_plan(lab_recipe("no/such/model", **changes))


def test_prompts_show_its_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parents[2] / "recipes" / "lab-consult.yaml"
    assert cowest_main(monkeypatch, "prompts", str(file), "collab_consult") == 0
    said = capsys.readouterr().out
    assert "Ask: 3" in said and "Ask: 2" in said
