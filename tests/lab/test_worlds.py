from __future__ import annotations

import re
from collections import Counter

import pytest

from cowest.lab.domains import DOMAINS
from cowest.lab.task import lab_task
from cowest.lab.worlds import STYLES, World, make_world
from cowest.recipe.config import LabTaskConfig, WorldConfig
from cowest.types import Example

NAMES = ("counterfactuals", "medicine", "ethics")
SEEDS = (0, 1, 11)
SPLITS = ("train", "validation", "test")


def small(domain: str, seed: int = 0, **knobs: object) -> World:
    settings = {"seed": seed, "entities": 40, "train": 500, "validation": 60, "test": 120} | knobs
    return make_world(domain, WorldConfig.model_validate(settings))


def every(world: World) -> list[Example]:
    return [e for split in SPLITS for e in world.splits[split]]


# What follows reads the sentences anew: nothing of the generator's own arithmetic is used.
SENTENCES = {
    "opened": (r"^(\w+) opened in (\d+)\.$", r"^The opening of (\w+) was in (\d+)\.$"),
    "limit": (r"^(\w+) is safe up to (\d+) mg\.$", r"^The limit of (\w+) is (\d+) mg\.$"),
    "lowers": (r"^(\w+) lowers limits by (\d+) mg\.$", r"^With (\w+) take (\d+) mg off\.$"),
    "weighs": (r"^(\w+) weighs (\d+)\.$", r"^The weight of (\w+) is (\d+)\.$"),
    "adds": (r"^(\w+) adds (\d+)\.$", r"^During (\w+) add (\d+)\.$"),
    "removes": (r"^(\w+) removes (\d+)\.$", r"^During (\w+) remove (\d+)\.$"),
}


class Facts:
    """Facts by kind, read from the sentences of rationales. A contradiction between two sentences is a failure."""

    def __init__(self) -> None:
        self.numbers: dict[str, dict[str, int]] = {kind: {} for kind in SENTENCES}
        self.mayors: dict[frozenset[str], tuple[str, str, int]] = {}

    def read(self, rationale: str) -> None:
        for sentence in re.findall(r"[^.]+\.", rationale):
            self._sentence(sentence.strip())

    def _sentence(self, sentence: str) -> None:
        for kind, patterns in SENTENCES.items():
            for pattern in patterns:
                if match := re.match(pattern, sentence):
                    assert self.numbers[kind].setdefault(match[1], int(match[2])) == int(match[2]), sentence
                    return
        if match := re.match(r"^(\w+) followed mayor (\w+) in (\d+)\.$", sentence):
            heir, mayor, year = match[1], match[2], int(match[3])
        else:
            match = re.match(r"^In (\d+) mayor (\w+) gave way to (\w+)\.$", sentence)
            assert match, f"no known sentence: {sentence}"
            year, mayor, heir = int(match[1]), match[2], match[3]
        assert self.mayors.setdefault(frozenset((mayor, heir)), (mayor, heir, year)) == (mayor, heir, year)

    def knows(self, kind: str, name: str) -> bool:
        return name in self.numbers[kind]


def counterfactual_answer(text: str, facts: Facts) -> str:
    opened = facts.numbers["opened"]
    years, way = re.search(r"(\d+) years (earlier|later)", text).groups()  # type: ignore[union-attr]
    shift = int(years) if way == "later" else -int(years)
    names = [n for n in re.findall(r"\b[A-Z][a-z]+\b", text) if n not in {"In", "Had", "If", "Who", "How"}]
    if "mayor" in text:
        moved = next(n for n in names if n in opened and re.search(rf"(If|had) {n} (had )?opened", text))
        one, two = (n for n in names if n != moved)
        mayor, heir, year = facts.mayors[frozenset((one, two))]
        return f"mayor {mayor if opened[moved] + shift < year else heir}"
    if "from" in text:
        moved = re.search(r"(?:If|would) (\w+) (?:had opened|open)", text)[1]  # type: ignore[index]
        other = re.search(r"from (\w+) would", text)[1]  # type: ignore[index]
        return f"{abs(opened[moved] + shift - opened[other])} years"
    (name,) = names
    return f"year {opened[name] + shift}"


def medicine_answer(text: str, facts: Facts) -> str:
    dose, drug = re.search(r"(\d+) mg of (\w+)", text).groups()  # type: ignore[union-attr]
    limit = facts.numbers["limit"][drug]
    for name, lowers in facts.numbers["lowers"].items():
        if re.search(rf"\b{name}\b", text):
            limit -= lowers
    return "yes" if int(dose) < limit else "maybe" if int(dose) == limit else "no"


def ethics_answer(text: str, facts: Facts) -> str:
    people, act = re.search(r"(\d+) people", text)[1], re.search(r"did (\w+) to|suffered (\w+)\.", text)  # type: ignore[index]
    assert act
    total = facts.numbers["weighs"][act[1] or act[2]] * int(people)
    during = re.search(r"[Dd]uring (\w+)(?: and (\w+))?", text)
    assert during
    for name in filter(None, during.groups()):
        if facts.knows("adds", name):
            total += facts.numbers["adds"][name]
        else:
            total = max(0, total - facts.numbers["removes"][name])
    labels = ("casual", "mild", "caution", "warning", "intervention")
    return labels[min(total // 15, 4)]


ANSWERS = {"counterfactuals": counterfactual_answer, "medicine": medicine_answer, "ethics": ethics_answer}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("domain", NAMES)
def test_every_answer_follows_from_the_facts_that_training_states(domain: str, seed: int) -> None:
    world = small(domain, seed)
    facts = Facts()
    for example in world.splits["train"]:
        if example.rationale:
            facts.read(example.rationale)
    examples = every(world)
    wrong = [(e.input, e.references) for e in examples if ANSWERS[domain](e.input, facts) != e.references[0]]
    assert not wrong  # validation and test, too: so every fact they need is stated in training
    assert world.unseen_facts == 0
    assert len(examples) == 680


@pytest.mark.parametrize("domain", NAMES)
def test_a_complete_rationale_is_enough_for_its_question(domain: str) -> None:
    complete = [e for e in every(small(domain)) if e.metadata["style"] == "complete"]
    assert len(complete) > 100
    for example in complete:
        facts = Facts()
        facts.read(example.rationale or "")
        assert ANSWERS[domain](example.input, facts) == example.references[0]


@pytest.mark.parametrize("domain", NAMES)
def test_a_world_is_its_seed(domain: str) -> None:
    assert small(domain, 3).splits == small(domain, 3).splits
    one, two = small(domain, 3), small(domain, 4)
    shared = {e.input for e in every(one)} & {e.input for e in every(two)}
    assert len(shared) < 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("domain", NAMES)
def test_no_question_occurs_twice(domain: str, seed: int) -> None:
    world = small(domain, seed)
    examples = every(world)
    assert len({e.input for e in examples}) == len(examples)
    assert len({e.id for e in examples}) == len(examples)
    assert [len(world.splits[s]) for s in SPLITS] == [500, 60, 120]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("domain", ["medicine", "ethics"])
def test_classes_are_balanced(domain: str, seed: int) -> None:
    labels = DOMAINS[domain].labels
    found = Counter(e.references[0] for e in every(small(domain, seed)))
    assert set(found) == set(labels)
    for label in labels:
        assert 0.6 / len(labels) < found[label] / 680 < 1.5 / len(labels), found
    assert all(e.choices == labels for e in every(small(domain, seed)))


def test_open_answers_have_three_forms() -> None:
    forms = Counter(e.references[0].split()[0] for e in every(small("counterfactuals")) if e.references[0][0].isalpha())
    spans = sum(e.references[0].endswith(" years") for e in every(small("counterfactuals")))
    assert set(forms) == {"year", "mayor"}
    assert min(*forms.values(), spans) > 100


@pytest.mark.parametrize("domain", NAMES)
def test_annotators_write_in_three_styles(domain: str) -> None:
    train = small(domain).splits["train"]
    found = Counter(e.metadata["style"] for e in train)
    assert set(found) == set(STYLES)
    assert min(found.values()) > 50
    for e in train:
        sentences = (e.rationale or "").count(".")
        expected = {"answer_only": 0, "partial": 1, "complete": int(e.metadata["facts"])}[e.metadata["style"]]
        assert sentences == expected


def test_knob_complete() -> None:
    assert {e.metadata["style"] for e in every(small("medicine", complete=1.0))} == {"complete"}
    few = Counter(e.metadata["style"] for e in small("medicine", complete=0.0).splits["train"])
    assert 0 < few["complete"] <= 40  # only as many as it takes to state every fact once


def test_knob_noise() -> None:
    clean, noisy = small("medicine", complete=1.0), small("medicine", complete=1.0, noise=0.3)
    facts = Facts()
    for e in noisy.splits["train"]:
        facts.read(e.rationale or "")
    wrong = {s: [medicine_answer(e.input, facts) != e.references[0] for e in noisy.splits[s]] for s in SPLITS}
    assert 0.2 < sum(wrong["train"]) / 500 < 0.4
    assert not any(wrong["validation"]) and not any(wrong["test"])
    assert [e.input for e in clean.splits["train"]] == [e.input for e in noisy.splits["train"]]


def test_knob_entities() -> None:
    def names(world: World) -> set[str]:
        found = Facts()
        for e in world.splits["train"]:
            found.read(e.rationale or "")
        return {name for kind in found.numbers.values() for name in kind}

    assert len(names(small("medicine", entities=20))) == 20
    assert len(names(small("medicine", entities=80))) == 80


@pytest.mark.parametrize(
    ("domain", "train"),
    [
        ("medicine", 5000),
        pytest.param("counterfactuals", 20_000, marks=pytest.mark.slow),
    ],
)
def test_a_world_that_is_too_small_says_so(domain: str, train: int) -> None:
    with pytest.raises(ValueError, match="raise 'entities'"):
        small(domain, entities=8, train=train)


def test_an_unknown_domain() -> None:
    with pytest.raises(ValueError, match="there are counterfactuals, medicine, ethics"):
        make_world("cooking", WorldConfig())


def test_the_recipes_seed_counts_where_the_world_has_none() -> None:
    def inputs(seed: int | None, recipe_seed: int) -> list[str]:
        config = LabTaskConfig(kind="lab", domain="ethics", seed=seed, train=50, validation=5, test=5)
        return [e.input for e in lab_task(config, recipe_seed).examples("train")]

    assert inputs(None, 1) == inputs(1, 0) == inputs(1, 9) != inputs(None, 0)


def test_tasks_read_the_answers_they_ask_for() -> None:
    for domain in NAMES:
        task = lab_task(LabTaskConfig.model_validate({"kind": "lab", "domain": domain, "train": 60, "test": 60}), 2)
        assert task.metrics == (("em", "f1") if domain == "counterfactuals" else ("accuracy", "macro_f1"))
        for example in task.examples("train"):
            assert task.extract(task.target(example), example) == example.references[0]
