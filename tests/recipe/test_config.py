from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD

from cowest.assembly.build import build_frames, build_task
from cowest.assembly.places import model_path
from cowest.assembly.prepare import prepare
from cowest.assembly.sources import build_model
from cowest.cli.starter import write_starter
from cowest.errors import ConfigError, CowestError, DataError, ModelNotFoundError
from cowest.recipe.config import (
    JsonlTaskConfig,
    LabTaskConfig,
    LocalModelConfig,
    OpenAIModelConfig,
    ScriptedModelConfig,
    config_from_dict,
    load_config,
    with_settings,
)
from cowest.run.progress import QuietReporter

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = """\
name: mine
seed: 7
task:
  kind: lab
  domain: medicine
weak: {kind: local, model: org/small}
strong:
  kind: scripted
  default: "Answer: yes"
sft:
  method: full
"""


def write(folder: Path, text: str = GOOD) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fails(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_recipe_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert (config.name, config.seed) == ("mine", 7)
    assert isinstance(config.task, LabTaskConfig) and config.task.domain == "medicine"
    assert isinstance(config.strong, ScriptedModelConfig)
    assert list(config.by_task()) == [""]


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "hint"),
    [
        ("seed: 7", "sede: 7", 2, "sede", "did you mean 'seed'?"),
        ("  method: full", "  metod: full", 11, "sft.metod", "did you mean 'method'?"),
        ("  domain: medicine", "  domain: medicine\n  entitys: 9", 6, "task.entitys", "did you mean 'entities'?"),
        ('  default: "Answer: yes"', '  defalt: "Answer: yes"', 9, "strong.defalt", "did you mean 'default'?"),
        ("  method: full", "  xyzzy: 1", 11, "sft.xyzzy", "known here: "),
        ("  method: full", "  method: fulll", 11, "sft.method", "(got 'fulll')"),
        ("  method: full", "  learning_rate: -1", 11, "sft.learning_rate", "greater than 0 (got -1)"),
        ("  domain: medicine", "  domain: cooking", 5, "task.domain", "(got 'cooking')"),
        ("name: mine", "name: ../mine", 1, "name", "(got '../mine')"),
        ("  kind: scripted", "  kind: telepathy", 7, "strong", "telepathy"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, key: str, hint: str
) -> None:
    assert old in GOOD
    message = fails(tmp_path, GOOD.replace(old, new))
    found = [m for m in message.splitlines() if m.startswith(f"{tmp_path / 'recipe.yaml'}:{line}: {key}: ")]
    assert found, message
    assert hint in found[0]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    assert (
        len(fails(tmp_path, GOOD.replace("seed: 7", "sede: 7").replace("method: full", "metod: x")).splitlines()) == 2
    )


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    text = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith("weak"))
    assert "weak: missing; add it" in fails(tmp_path, text)
    assert "strong.model: missing" in fails(tmp_path, GOOD.replace("kind: scripted", "kind: openai"))


def test_a_key_in_one_of_several_tasks_is_found(tmp_path: Path) -> None:
    text = GOOD.replace(
        "task:\n  kind: lab\n  domain: medicine", "tasks:\n  a: {kind: lab, domain: medicine, trian: 3}"
    )
    assert ":4: tasks.a.trian: unknown key; did you mean 'train'?" in fails(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("sft.learning_rate=2e-4", lambda c: c.sft.learning_rate, 2e-4),
        ("sft.learning_rate=2.5E-3", lambda c: c.sft.learning_rate, 2.5e-3),
        ("seed=12", lambda c: c.seed, 12),
        ("name=other", lambda c: c.name, "other"),
        ("sft.gradient_checkpointing=true", lambda c: c.sft.gradient_checkpointing, True),
        ("draft.queries=null", lambda c: c.draft.queries, None),
        ("draft.sampling.temperature=0.5", lambda c: c.draft.sampling.temperature, 0.5),
        ("evaluate.systems=[weak, collab]", lambda c: c.evaluate.systems, ("weak", "collab")),
        ("strong.default=a=b", lambda c: c.strong.default, "a=b"),
    ],
)
def test_overrides(tmp_path: Path, override: str, read, value: object) -> None:  # type: ignore[no-untyped-def]
    found = read(load_config(write(tmp_path), [override]))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("seed", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("name.x=1", "is a value, not a section"),
        ("sft.method=[a", "not valid YAML"),
        ("sft.lerning_rate=1", "did you mean 'learning_rate'?"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, hint: str) -> None:
    assert hint in fails(tmp_path, GOOD, override)


def test_one_way_to_name_tasks(tmp_path: Path) -> None:
    assert "either 'task'" in fails(tmp_path, GOOD + "tasks: {a: {kind: lab, domain: ethics}}\n")
    assert "either 'task'" in fails(tmp_path, GOOD.replace("task:\n  kind: lab\n  domain: medicine\n", ""))
    several = GOOD.replace("task:\n  kind: lab\n  domain: medicine", "tasks: {'../a': {kind: lab, domain: ethics}}")
    assert "becomes a folder" in fails(tmp_path, several)


def test_several_tasks_become_several_recipes(tmp_path: Path) -> None:
    text = GOOD.replace(
        "task:\n  kind: lab\n  domain: medicine",
        "tasks: {b: {kind: lab, domain: ethics}, a: {kind: lab, domain: medicine}}",
    )
    singles = load_config(write(tmp_path, text)).by_task()
    assert {name: single.task.domain for name, single in singles.items()} == {"b": "ethics", "a": "medicine"}  # type: ignore[union-attr]
    assert all(not single.tasks and single.seed == 7 for single in singles.values())


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b", "a: [", "a: b: c", "\t"])
def test_what_is_no_recipe(tmp_path: Path, text: str) -> None:
    assert str(tmp_path / "recipe.yaml") in fails(tmp_path, text)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "binary.yaml")


JSONL = {"kind": "jsonl", "train": "data/train.jsonl", "test": "data/test.jsonl"}


def jsonl_recipe(folder: Path) -> Path:
    return write(folder, yaml.safe_dump(yaml.safe_load(GOOD) | {"task": JSONL}))


def test_data_paths_start_at_the_recipe(tmp_path: Path) -> None:
    task = load_config(jsonl_recipe(tmp_path)).task
    assert isinstance(task, JsonlTaskConfig)
    assert task.train == tmp_path / "data/train.jsonl" and task.validation is None


def test_data_paths_of_a_relative_recipe_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # They are written to the run directory's recipe, which lies elsewhere.
    jsonl_recipe(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    task = load_config(Path(tmp_path.name) / "recipe.yaml").task
    assert isinstance(task, JsonlTaskConfig)
    assert task.train.is_absolute() and task.train == tmp_path / "data/train.jsonl"


def test_a_model_folder_beside_the_recipe_is_found(tmp_path: Path) -> None:
    (tmp_path / "org" / "small").mkdir(parents=True)
    assert load_config(write(tmp_path)).weak.model == str(tmp_path / "org" / "small")


def small(**changes: JsonValue) -> dict[str, JsonValue]:
    data: dict[str, JsonValue] = yaml.safe_load(GOOD)
    return data | {"task": WORLD | SIZES} | changes


def prepared(**changes: JsonValue) -> None:
    prepare(config_from_dict(small(**changes)), Path("unused"), QuietReporter())


def test_preparing_accepts_the_recipe_that_the_following_tests_break() -> None:
    prepared()


OPENAI: dict[str, JsonValue] = {"kind": "openai", "model": "m", "api_key_env": "COWEST_TEST_KEY"}


@pytest.mark.parametrize(
    ("changes", "error", "hint"),
    [
        ({"strong": OPENAI}, ConfigError, "COWEST_TEST_KEY is not set"),
        ({"prompts": {"refine": "{input} only"}}, ConfigError, "prompts.refine: the template has no {draft}"),
        ({"prompts": {"draft": "Hello"}}, ConfigError, "prompts.draft: the template has no {input}"),
        ({"prompts": {"solo": "Hello"}}, ConfigError, "prompts.solo: the template has no {input}"),
        ({"weak": {"kind": "local", "model": "./nowhere"}}, ModelNotFoundError, "./nowhere: no such folder"),
        ({"weak": {"kind": "local", "model": "lab:nothing"}}, ModelNotFoundError, "no such lab model"),
        ({"strong": {"kind": "local", "model": "/no/such/model"}}, ModelNotFoundError, "no such folder"),
        ({"draft": {"samples": 1}}, ConfigError, "draft.samples"),
        ({"task": WORLD | {"entities": 8, "train": 6000}}, ConfigError, "raise 'entities'"),
        ({"feedback": {"metric": "macro_f1"}}, ConfigError, "macro_f1"),
        ({"feedback": {"metric": "vibes"}}, ConfigError, "vibes"),
        ({"evaluate": {"systems": []}}, ConfigError, "evaluate.systems"),
    ],
)
def test_what_is_checked_before_anything_is_loaded_or_paid(
    changes: dict[str, JsonValue], error: type[CowestError], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COWEST_TEST_KEY", raising=False)
    with pytest.raises(error) as caught:
        prepared(**changes)
    assert hint in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_set_key_variable_is_enough_and_an_endpoint_may_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COWEST_TEST_KEY", "not-a-real-key")
    prepared(strong=OPENAI)
    prepared(strong=OPENAI | {"api_key_env": None})


def test_missing_data_is_told_with_its_path(tmp_path: Path) -> None:
    config = load_config(jsonl_recipe(tmp_path))
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "data" / "train.jsonl"))):
        prepare(config, tmp_path, QuietReporter())


def test_hub_names_stay_hub_names() -> None:
    assert model_path("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    assert model_path("gpt2") == "gpt2"


async def test_models_are_built_by_kind() -> None:
    model = build_model(OpenAIModelConfig(kind="openai", model="m", api_key_env=None))
    assert "m" in model.name
    await model.aclose()
    with pytest.raises(ModelNotFoundError):
        build_model(LocalModelConfig(kind="local", model="lab:nothing"))


def test_the_recipes_that_init_writes_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(RECIPES.rglob("*.yml"))  # tests/test_recipes.py finds them by their ending
    found = [RECIPES / f"{name}.yaml" for name in ("lab", "real-pair", "starter")]
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    write_starter(tmp_path / "mine")
    for path in found:
        beside = path if path.stem == "lab" else tmp_path / "mine" / path.name
        beside.write_bytes(path.read_bytes()) if beside != path else None
        for name, single in load_config(beside).by_task().items():
            task = build_task(single, name)
            build_frames(single, task)
            assert all(task.examples(split) for split in ("train", "validation", "test"))
            assert single.draft.samples >= 2


def test_signals_and_contrast_are_points_of_a_grid() -> None:
    config = config_from_dict(yaml.safe_load(GOOD))
    grid: dict[str, dict[str, JsonValue]] = {
        "outcome": {"pairs.signal": "outcome"},
        "better": {"pairs.signal": "better"},
        "short": {"pairs.price_per_word": 0.002},
        "expected": {"feedback.expect": "logprobs"},
        "sampled": {"feedback.expect": "samples", "feedback.samples": 2, "feedback.sample_temperature": 0.7},
        "ladder": {"draft.ladder": [0.3, 1.0], "draft.redraw": 2},
    }
    made = {label: with_settings(config, settings) for label, settings in grid.items()}
    assert made["ladder"].draft.ladder == (0.3, 1.0) and made["sampled"].feedback.samples == 2
    assert with_settings(made["expected"], {"feedback.expect": False}) == config  # YAML reads off as false
