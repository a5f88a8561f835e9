"""The recipe: one frozen pydantic model, read from YAML, overridden from the command line by dotted keys.

Every field's description is its documentation: ``cowest validate RECIPE --schema`` prints them all as JSON Schema.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, JsonValue, PrivateAttr, ValidationError, field_validator, model_validator

from cowest.errors import ConfigError
from cowest.recipe.models import LocalModelConfig as LocalModelConfig
from cowest.recipe.models import ModelConfig as ModelConfig
from cowest.recipe.models import ObjectModelConfig as ObjectModelConfig
from cowest.recipe.models import OpenAIModelConfig as OpenAIModelConfig
from cowest.recipe.models import ScriptedModelConfig as ScriptedModelConfig
from cowest.recipe.models import Section as Section
from cowest.recipe.models import ServedOrLocalConfig
from cowest.recipe.problems import explain
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
from cowest.types import Sampling

Format = str
"""The name of a draft format: direct, knowledge, chain_of_thought, or an installed package's."""
M = TypeVar("M", bound=Section)


class LoraSettings(Section):
    """PEFT LoRA. Rank and targets are not in the paper; these are what the field uses."""

    r: int = Field(default=16, ge=1, description="Rank.")
    alpha: int = Field(default=32, ge=1, description="Scale.")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = Field(default="all-linear", description="Which layers get an adapter.")


class TrainingSettings(Section):
    """What SFT and alignment have in common."""

    how: ClassVar[frozenset[str]] = frozenset({"device", "checkpoint_every", "gradient_checkpointing"})

    method: Literal["lora", "full"] = Field(default="lora", description="Train a LoRA adapter, or all weights.")
    lora: LoraSettings = LoraSettings()
    batch_size: int = Field(default=16, ge=1, description="Sequences a step and device.")
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak, after warm-up.")
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    epochs: float = Field(default=3.0, gt=0, description="Passes over the data, where max_steps is unset.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; overrides epochs.")
    max_length: int = Field(
        default=1024, ge=8, description="Tokens of prompt and completion; longer is cut and counted."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto: bfloat16 for a LoRA on a model stored in 16 bits, where the device multiplies in it (AMX, AVX512-BF16, "
        "CUDA 8.0); else float32.",
    )
    gradient_checkpointing: bool = False
    device: str = Field(default="auto", description="auto, cpu, cuda, mps.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between resumable checkpoints.")


class SftConfig(TrainingSettings):
    """Stage sft: tune pi_w on (x, y_hat) by negative log-likelihood of the completion (paper, step 1)."""


class DraftConfig(Section):
    """Stage sample: K drafts y ~ pi_w(.|x) for each training query (paper, step 2)."""

    format: Format = Field(
        default="chain_of_thought",
        description="What the weak model writes: direct (the answer), knowledge (what it knows), chain_of_thought (both), or an "
        "installed package's format.",
    )
    formats: tuple[Format, ...] = Field(
        default=(),
        description="Formats mixed in one query: draft k is asked for in the k-th, then from the first again, and SFT teaches each "
        "example in all of them. format is one of them, the one of pairs, evaluation and serving. Unset: format alone.",
    )
    samples: int = Field(default=4, ge=1, description="K, drafts a query.")
    queries: int | None = Field(default=None, ge=1, description="Training queries used; unset: all.")
    held_out: bool = Field(
        default=False,
        description="Keep the drafted queries (the last 'queries' of training) out of SFT. A weak model that has learned their "
        "answers by heart drafts better on them than on any new query, and feedback on such drafts misleads.",
    )
    sampling: Sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=256)
    ladder: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(),
        description="Temperatures in place of the one of sampling: draft k of a query takes the k-th, then from the first again.",
    )
    redraw: int = Field(
        default=0,
        ge=0,
        description="Draw a draft again, so many times at most, that says the same as an earlier one of its query but for case, "
        "punctuation and articles; each try takes the ladder's next temperature.",
    )


Watch = Annotated[Literal["warn", "stop", "off"], BeforeValidator(lambda value: "off" if value is False else value)]
Expected = Annotated[
    Literal["off", "logprobs", "samples"], BeforeValidator(lambda value: "off" if value is False else value)
]
Adaptive = Annotated[Literal["off", "contrast"], BeforeValidator(lambda value: "off" if value is False else value)]
_WATCH = (
    "Compare the answers made with a draft with those of the strong model alone, first at 36 queries, then whenever their number "
    "has doubled: one class nearly always, no answer, cut off, drafts ignored or always copied. warn: say so with the numbers and "
    "two examples. stop: end there, with what was paid for kept; the same command with warn goes on."
)


class FeedbackConfig(Section):
    """Stage feedback: refine every draft, solo once a query, gain = score(refined) - score(solo) (steps 3 to 5)."""

    how: ClassVar[frozenset[str]] = frozenset({"mode", "watch"})

    metric: str | None = Field(default=None, description="The metric behind the score; unset: the task's first.")
    scorer: str | None = Field(
        default=None, description="What scores answers, in place of the metric: an installed package's scorer, by name."
    )
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=512)
    mode: Literal["live", "batch"] = Field(
        default="live", description="batch: through the provider's batch API, within a day and at a lower price."
    )
    judge: ModelConfig | None = Field(
        default=None,
        description="A model that scores answers against the reference, instead of the metric (the paper's E).",
    )
    compare: tuple[ModelConfig, ...] = Field(
        default=(),
        description="Models that judge without a reference: each compares the answer made with a draft with the strong model's "
        "alone, in both orders. A draft is then worth how often its answer is preferred, and questions need no answers.",
    )
    watch: Watch = Field(default="warn", description=_WATCH)
    expect: Expected = Field(
        default="off",
        description="What a draft is worth: off: the score of one answer. logprobs: the expected score over the classes, from the "
        "log-probabilities of the answer's tokens, at no further call (sampling.logprobs alternatives of each, unset: 5); where "
        "answers are open, the probability of the reference in the answer's place, a reading for each by a local strong model. "
        "samples: the mean score of further answers, for endpoints without log-probabilities, and for open answers there.",
    )
    samples: int = Field(
        default=4, ge=1, description="expect: samples. Further answers to each request, alone and with each draft."
    )
    sample_temperature: float = Field(default=1.0, gt=0, description="expect: samples. Their temperature.")
    adaptive: Adaptive = Field(
        default="off",
        description="contrast: a query's drafts are refined one after another, in lots over the queries, until it gives a pair, "
        "and no more; drafts that are alike are refined once. off: every draft of every query.",
    )
    alike: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="adaptive: contrast. Drafts with the same answer whose words overlap by this (F1) are alike; 1: same words.",
    )
    calls: int | None = Field(
        default=None,
        ge=1,
        description="adaptive: contrast. Most strong calls of a round, first where a pair is likely, as the answers so far tell.",
    )

    @model_validator(mode="after")
    def _lots_want_answers(self) -> FeedbackConfig:
        if self.adaptive == "off" and self.calls is not None:
            raise ValueError("feedback.calls is a limit of `adaptive: contrast`; add that, or leave calls out")
        if self.adaptive != "off" and self.mode == "batch":
            raise ValueError(
                "feedback.adaptive asks in lots, each after the answers to the one before, and a batch takes up to a day: use "
                "mode: live"
            )
        return self


class PairsConfig(Section):
    """Stage pairs: gains -> (x, chosen, rejected) (step 6)."""

    rule: Literal["paper", "ordered"] = Field(
        default="ordered",
        description="paper: chosen has gain > 0, rejected gain <= 0. ordered: any two drafts whose gains differ by "
        "min_margin or more, which also teaches not to hurt where the strong model is right alone.",
    )
    min_margin: float = Field(default=0.05, gt=0, description="Least difference of gains (rule ordered).")
    max_per_query: int = Field(default=4, ge=1, description="Most pairs of one query, widest margin first.")
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Most pairs in all, chosen at random; a smaller choice is a part of a larger one.",
    )
    signal: str = Field(
        default="collaboration",
        description="What makes a draft chosen; installed packages add signals. collaboration: its gain. outcome: the score of the "
        "refined answer, which needs no answers of the strong model alone. better: what the refined answer has more than the "
        "better of the strong model alone and the draft. draft: the score of the draft alone, as in RLWF, which never asks what "
        "the strong model makes of it; checkpoints are then chosen by the weak model's own score. docs/signals.md: which when.",
    )
    price_per_word: float = Field(
        default=0.0,
        ge=0,
        description="Taken off a draft's worth for each of its words, in units of the score: of two that help alike, the shorter "
        "one is chosen.",
    )
    price_per_usd: float = Field(
        default=0.0,
        ge=0,
        description="The same for each USD that the draft's tokens cost in the strong model's prompt, in units of the score; wants "
        "a price of that model.",
    )
    collected_weight: float = Field(
        default=1.0,
        gt=0,
        description="How much a pair of `cowest collect` (task.collected: what people preferred) counts in alignment, beside 1 for "
        "a pair of drafts.",
    )


class AlignConfig(TrainingSettings):
    """Stage align: preference tuning of pi_w with the SFT model as reference (step 6); picks a checkpoint."""

    objective: str = Field(
        default="preference",
        description="What alignment learns from; installed packages add objectives. preference: DPO on the pairs. positives: SFT "
        "on the chosen drafts alone, the control that shows what the comparison with the rejected ones adds. kto: single drafts "
        "with their worth, no pairs. rejection: SFT on the best draft of each query. grpo: RL on drafts drawn in training, each "
        "refined and scored at once, in place of the stages sample, feedback and pairs. off (also `align: off`): no alignment; "
        "feedback and pairs are still collected. docs/training.md: which when.",
    )
    learning_rate: float = Field(default=1.41e-5, gt=0, description="The paper's.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs, where max_steps is unset.")
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull to the reference.")
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "sigmoid_norm"] = Field(
        default="sigmoid", description="TRL's DPO loss_type."
    )
    nll_weight: float = Field(default=0.0, ge=0, description="Weight of an NLL term on the chosen draft (RPO).")
    weight: Literal["even", "margin"] = Field(
        default="even",
        description="What a pair counts (preference), or a draft (kto): all alike, or by its margin (over the rejected draft, or "
        "over its query's baseline), with a mean of 1.",
    )
    group: int = Field(
        default=4,
        ge=2,
        description="grpo: drafts of a query in a step, which are worth more or less than one another. A step asks the strong "
        "model up to batch_size x gradient_accumulation x group times.",
    )
    checkpoints: int = Field(default=4, ge=1, description="Evenly spaced checkpoints to choose from.")
    selection_queries: int = Field(
        default=150, ge=1, description="Validation queries on which each checkpoint's collaboration is scored."
    )

    @field_validator("objective", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads off as false

    @property
    def compares(self) -> bool:
        """Whether a row of alignment is two drafts, as far as is known; False for cowest's own objectives on single ones."""
        return self.objective not in ("positives", "kto", "rejection", "grpo")

    @property
    def sequences(self) -> int:
        """How many drafts a row of alignment is, as far as is known."""
        return self.group if self.objective == "grpo" else 2 if self.compares else 1


class RoundsConfig(Section):
    """The loop: sample, feedback, pairs and align again, with the weak model that the rounds before have left."""

    most: int = Field(default=1, ge=1, description="Rounds at most. 1 is the paper's: one, offline.")
    stop: Literal["no_gain", "test", "never"] = Field(
        default="no_gain",
        description="When the loop ends before. no_gain: after a round whose best checkpoint scores no higher on the validation "
        "queries than the best so far. test: after one that is not shown to be better (paired test, p < 0.05). never: only after "
        "a round without pairs.",
    )
    strong_calls: int | None = Field(
        default=None,
        ge=1,
        description="Most different strong calls of feedback, rounds together: no further round that could take more. The first is "
        "always made whole.",
    )
    queries: Literal["same", "next"] = Field(
        default="same",
        description="same: every round drafts for the same training queries. next: each for the next draft.queries of them, from "
        "the first again when all are used up; with draft.held_out those of all rounds are kept out of SFT.",
    )
    pairs: Literal["fresh", "all"] = Field(
        default="fresh", description="A round learns from its own pairs, or from those of earlier rounds, too."
    )
    choose: Literal["each", "last"] = Field(
        default="each",
        description="each: every round scores its checkpoints on validation queries, and the best model so far drafts in the next. "
        "last: only the last round does; each before it leaves its last checkpoint unasked, so that short rounds (new drafts every "
        "align.max_steps steps: semi-online) cost no validation calls. Wants `stop: never`.",
    )
    reference: Literal["previous", "sft"] = Field(
        default="previous",
        description="What a round's alignment starts from and is pulled to: the best model of the rounds before, or the SFT model "
        "(then with `pairs: all`, so that it learns again what earlier rounds have taught).",
    )


class EvaluateConfig(Section):
    """Stage evaluate: the systems on held-out test queries."""

    how: ClassVar[frozenset[str]] = frozenset({"watch"})

    systems: tuple[str, ...] = Field(
        default=("weak", "strong", "collab", "collab_aligned"),
        min_length=1,
        description="Any that `cowest table --list` names, but those with a weak model of their own.",
    )
    queries: int | None = Field(default=None, ge=1, description="Test queries used; unset: all.")
    draft: Sampling = Field(default=Sampling(temperature=0.0, max_tokens=256), description="How a draft is decoded.")
    answer: Sampling = Field(default=Sampling(temperature=0.0, max_tokens=512), description="How the strong model is.")
    watch: Watch = Field(default="warn", description=_WATCH)


class PromptsConfig(Section):
    """Your own frames. ``{input}``, ``{context}``, ``{instruction}`` and (in refine) ``{draft}`` are filled in."""

    draft: str | None = None
    solo: str | None = None
    refine: str | None = None
    reasons: bool = Field(
        default=True,
        description="Without templates: the strong model thinks in words before it answers, alone and with a draft alike. false: "
        "it answers at once, which small models do better (try both on training questions: python -m benchmarks.frames).",
    )


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
    if config.ledger is not None:
        update["ledger"] = (folder / config.ledger).resolve()
    resolved = config.model_copy(update=update)
    resolved._folder = folder
    return resolved
