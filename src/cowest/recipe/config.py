"""The recipe: one frozen pydantic model, read from YAML, overridden from the command line by dotted keys.

Every field's description is its documentation: ``cowest validate RECIPE --schema`` prints them all as JSON Schema.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, JsonValue, PrivateAttr, ValidationError, field_validator, model_validator

from cowest.errors import ConfigError
from cowest.recipe.models import LocalModelConfig as LocalModelConfig
from cowest.recipe.models import ModelConfig as ModelConfig
from cowest.recipe.models import ObjectModelConfig as ObjectModelConfig
from cowest.recipe.models import OpenAIModelConfig as OpenAIModelConfig
from cowest.recipe.models import ScriptedModelConfig as ScriptedModelConfig
from cowest.recipe.models import Section as Section
from cowest.recipe.models import ServedOrLocalConfig
from cowest.recipe.problems import explain
from cowest.recipe.stages import DraftConfig as DraftConfig
from cowest.recipe.stages import EvaluateConfig as EvaluateConfig
from cowest.recipe.stages import FeedbackConfig as FeedbackConfig
from cowest.recipe.stages import Format as Format
from cowest.recipe.stages import GuardConfig as GuardConfig
from cowest.recipe.stages import PairsConfig as PairsConfig
from cowest.recipe.stages import PromptsConfig as PromptsConfig
from cowest.recipe.stages import RoundsConfig as RoundsConfig
from cowest.recipe.table import TableConfig
from cowest.recipe.tasks import BenchmarkTaskConfig as BenchmarkTaskConfig
from cowest.recipe.tasks import IfqaTaskConfig as IfqaTaskConfig
from cowest.recipe.tasks import JsonlTaskConfig as JsonlTaskConfig
from cowest.recipe.tasks import LabTaskConfig as LabTaskConfig
from cowest.recipe.tasks import ObjectTaskConfig as ObjectTaskConfig
from cowest.recipe.tasks import PluginTaskConfig as PluginTaskConfig
from cowest.recipe.tasks import ProsocialTaskConfig as ProsocialTaskConfig
from cowest.recipe.tasks import PubmedqaTaskConfig as PubmedqaTaskConfig
from cowest.recipe.tasks import TaskConfig as TaskConfig
from cowest.recipe.tasks import WorldConfig as WorldConfig
from cowest.recipe.training import AlignConfig as AlignConfig
from cowest.recipe.training import LoraSettings as LoraSettings
from cowest.recipe.training import SftConfig as SftConfig
from cowest.recipe.training import TrainingSettings as TrainingSettings


class RunConfig(Section):
    """A recipe: tasks, a weak and a strong model, and a section for each stage."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run: runs/NAME.")
    seed: int = Field(default=0, ge=0, description="Everything random follows from it.")
    task: TaskConfig | None = Field(default=None, description="The domain; or several, under tasks.")
    tasks: dict[str, TaskConfig] = Field(default_factory=dict, description="Several domains by name.")
    weak: ServedOrLocalConfig = Field(
        description="pi_w: small, open weights, trained here (local); or served elsewhere and not trained (openai)."
    )
    strong: ModelConfig = Field(description="pi_s: a black box.")
    prompts: PromptsConfig = PromptsConfig()
    sft: SftConfig = SftConfig()
    draft: DraftConfig = DraftConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    pairs: PairsConfig = PairsConfig()
    align: AlignConfig = AlignConfig()
    rounds: RoundsConfig = RoundsConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    guard: GuardConfig = GuardConfig()
    table: TableConfig | None = Field(
        default=None, description="What `cowest table` compares; unset: every row with the defaults."
    )
    ledger: Path | None = Field(
        default=None,
        description="The file with every paid call; unset: ledger.sqlite in the run directory. Runs may share one.",
    )
    cache: Literal["read", "refresh", "off"] = Field(
        default="read",
        description="read: an answer in the ledger is not paid for again. refresh: ask anew and replace it. off: ask anew; "
        "either way every call is entered.",
    )
    budget_usd: float | None = Field(default=None, gt=0, description="Hard stop: what the run may spend in all.")
    budget_calls: int | None = Field(default=None, gt=0, description="Hard stop: answered calls in all.")
    budget_tokens: int | None = Field(default=None, gt=0, description="Hard stop: prompt and answer tokens in all.")

    _folder: Path = PrivateAttr(default=Path())

    @field_validator("cache", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads off as false

    @field_validator("align", mode="before")
    @classmethod
    def _align_off(cls, value: object) -> object:
        return {"objective": "off"} if value is False or value == "off" else value

    @model_validator(mode="after")
    def _one_way_to_name_tasks(self) -> RunConfig:
        if (self.task is None) == (not self.tasks):
            raise ValueError("give either 'task' (one domain) or 'tasks' (several, by name)")
        for name in self.tasks:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"task name {name!r} becomes a folder: use letters, digits, '-' and '_'")
        return self

    @model_validator(mode="after")
    def _the_next_queries_are_counted(self) -> RunConfig:
        if self.rounds.queries == "next" and self.draft.queries is None:
            raise ValueError("rounds.queries: next wants draft.queries: how many a round drafts for")
        return self

    @model_validator(mode="after")
    def _the_last_round_is_known(self) -> RunConfig:
        if self.rounds.choose == "last" and (self.rounds.stop != "never" or self.rounds.strong_calls is not None):
            raise ValueError(
                "rounds.choose: last looks at validation in the last round alone, which has to be known: add `stop: never`, and "
                "leave rounds.strong_calls out"
            )
        return self

    @model_validator(mode="after")
    def _a_round_follows_an_alignment(self) -> RunConfig:
        why = (
            "the weak model is served elsewhere, and not trained"
            if not self.weak.trainable
            else "align is off"
            if self.align.objective == "off"
            else None
        )
        if self.rounds.most > 1 and why is not None:
            raise ValueError(
                f"rounds.most: {self.rounds.most} wants an alignment in each round, but {why}: leave it at 1"
            )
        return self

    @property
    def comparison(self) -> TableConfig:
        """The section ``table``, or its defaults."""
        return self.table or TableConfig()

    @property
    def held_out(self) -> int:
        """How many training queries, the last ones, are kept out of SFT: those of all rounds."""
        if not self.draft.held_out or self.draft.queries is None:
            return 0
        return self.draft.queries * (self.rounds.most if self.rounds.queries == "next" else 1)

    @property
    def folder(self) -> Path:
        """Where the recipe lies; a .env file may be beside it."""
        return self._folder

    def by_task(self) -> Mapping[str, RunConfig]:
        """One single-task recipe per domain; the name '' stands for the only task of a recipe."""
        if self.task is not None:
            return {"": self}
        return {name: self.model_copy(update={"task": task, "tasks": {}}) for name, task in self.tasks.items()}


def load_config(path: Path, overrides: Sequence[str] = (), values: Mapping[str, JsonValue] | None = None) -> RunConfig:
    """Read a recipe, apply ``KEY=VALUE`` overrides (or ``values`` by dotted key), resolve its relative data paths.

    Raises ConfigError that names the file, line and key, with a suggestion for a misspelt one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe. `cowest init DIR` writes one to start from.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        data = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, such as 'name: my-run'")
    for override in overrides:
        _override(data, override)
    return _validated(with_values(data, values or {}), path, node)


def config_from_dict(data: Mapping[str, JsonValue], folder: Path = Path()) -> RunConfig:
    """The same from Python data; relative data paths start at ``folder``."""
    return _validated(dict(data), folder / "(recipe)", None)


def with_values(data: Mapping[str, JsonValue], values: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A recipe's data with other values for some dotted keys."""
    changed: dict[str, JsonValue] = copy.deepcopy(dict(data))
    for key, value in values.items():
        _put(changed, key, value, key)
    return changed


def with_settings(config: RunConfig, settings: Mapping[str, JsonValue]) -> RunConfig:
    """The recipe with other values for some dotted keys. Raises ConfigError as for a recipe that has them."""
    return config_from_dict(with_values(config.model_dump(mode="json"), settings), config.folder)


def _override(data: dict[str, JsonValue], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write it as KEY=VALUE, such as --set sft.learning_rate=2e-4")
    try:
        value = _number_or_yaml(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from None
    _put(data, key, value, f"--set {override!r}")


def _put(data: dict[str, JsonValue], key: str, value: JsonValue, where: str) -> None:
    *parents, last = key.strip().split(".")
    here = data
    for part in parents:
        if here.get(part) is None:
            here[part] = {}
        below = here[part]
        if not isinstance(below, dict):
            raise ConfigError(f"{where}: {part!r} is a value, not a section")
        here = below
    here[last] = value


def _number_or_yaml(raw: str) -> JsonValue:
    value: JsonValue = yaml.safe_load(raw)
    if isinstance(value, str):
        # YAML 1.1 takes 2e-4 for a string; nobody who types it means one.
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _validated(data: dict[str, JsonValue], path: Path, node: yaml.Node | None) -> RunConfig:
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        problems = [
            explain(RunConfig, e["loc"], e["msg"], e["type"], e.get("input"), path, node) for e in error.errors()
        ]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None
    return _resolve_paths(config, path.parent)


def _resolve_paths(config: RunConfig, folder: Path) -> RunConfig:
    folder = folder.absolute()  # the recipe's copy in the run directory must lead to the same files

    judge = config.feedback.judge
    models = {
        "judge": judge and judge.resolved(folder),
        "compare": tuple(model.resolved(folder) for model in config.feedback.compare),
    }
    update: dict[str, object] = {
        "weak": config.weak.resolved(folder),
        "strong": config.strong.resolved(folder),
        "feedback": config.feedback.model_copy(update=models),
        "tasks": {name: task.resolved(folder) for name, task in config.tasks.items()},
    }
    if config.task is not None:
        update["task"] = config.task.resolved(folder)
    if config.table is not None:
        update["table"] = config.table.resolved(folder)
    if config.ledger is not None:
        update["ledger"] = (folder / config.ledger).resolve()
    resolved = config.model_copy(update=update)
    resolved._folder = folder
    return resolved
