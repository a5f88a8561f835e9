"""The recipe: one frozen pydantic model, read from YAML, overridden from the command line by dotted keys.

Every field's description is its documentation: ``cowest validate RECIPE --schema`` prints them all as JSON Schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from cowest.errors import ConfigError
from cowest.types import Sampling

Format = Literal["direct", "knowledge", "chain_of_thought"]
SystemName = Literal["weak", "strong", "collab", "collab_aligned"]


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WorldConfig(Section):
    """The knobs of a synthetic world; the defaults are the lab study's."""

    seed: int | None = Field(default=None, description="Another seed invents another world. Unset: the recipe's seed.")
    entities: int = Field(default=80, ge=8, description="How many things the world has a fact about.")
    train: int = Field(default=1500, ge=1, description="Training questions.")
    validation: int = Field(default=150, ge=1, description="Validation questions.")
    test: int = Field(default=300, ge=1, description="Test questions.")
    complete: float | None = Field(
        default=None, ge=0, le=1, description="Share of complete rationales. Unset: as the three annotators write."
    )
    noise: float = Field(default=0.0, ge=0, le=1, description="Share of training answers replaced by a wrong one.")


class LabTaskConfig(WorldConfig):
    """A synthetic domain of the lab."""

    kind: Literal["lab"]
    domain: Literal["counterfactuals", "medicine", "ethics"]


class JsonlTaskConfig(Section):
    """Your own data: one JSON object a line with ``input`` and ``references`` (or ``answer``)."""

    kind: Literal["jsonl"]
    train: Path = Field(description="Training rows. Relative paths start at the recipe's folder.")
    validation: Path | None = Field(default=None, description="Unset: a tenth of the training rows.")
    test: Path = Field(description="Held-out rows; none may occur in training.")
    labels: tuple[str, ...] = Field(default=(), description="The classes; unset for open answers.")
    instruction: str | None = Field(default=None, description="What both models are told to do; there is a default.")
    metrics: tuple[str, ...] | None = Field(default=None, description="em, f1 (open) or accuracy, macro_f1 (classes).")


TaskConfig = Annotated[LabTaskConfig | JsonlTaskConfig, Field(discriminator="kind")]


class LocalModelConfig(Section):
    """A causal language model that runs here, through transformers (and PEFT for an adapter)."""

    kind: Literal["local"]
    model: str = Field(description="A hub name, a folder, or lab:strong / lab:weak (shipped with cowest).")
    adapter: str | None = Field(default=None, description="A PEFT adapter's folder or hub name.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: the checkpoint's own on an accelerator, float32 on a CPU."
    )
    batch_size: int = Field(default=64, ge=1, description="Most prompts generated together.")


class OpenAIModelConfig(Section):
    """Any OpenAI-compatible endpoint."""

    kind: Literal["openai"]
    model: str = Field(description="The name that the endpoint knows the model by.")
    base_url: str = Field(default="https://api.openai.com/v1", description="Up to and including /v1.")
    api_key_env: str | None = Field(
        default="OPENAI_API_KEY", description="The environment variable with the key; null for a server without keys."
    )
    concurrency: int = Field(default=16, ge=1, description="Most requests under way at once.")
    timeout_s: float = Field(default=120.0, gt=0, description="Seconds that one attempt may take.")
    max_attempts: int = Field(default=6, ge=1, description="Attempts for one request, the first included.")


class ScriptRuleConfig(Section):
    """One rule of a scripted model."""

    contains: str
    reply: str


class ScriptedModelConfig(Section):
    """A deterministic model for tests and for trying a recipe: the first rule that fits gives the reply."""

    kind: Literal["scripted"]
    rules: tuple[ScriptRuleConfig, ...] = ()
    default: str | None = Field(default=None, description="The reply when no rule fits; unset: an error.")


ModelConfig = Annotated[LocalModelConfig | OpenAIModelConfig | ScriptedModelConfig, Field(discriminator="kind")]


class LoraSettings(Section):
    """PEFT LoRA. Rank and targets are not in the paper; these are what the field uses."""

    r: int = Field(default=16, ge=1, description="Rank.")
    alpha: int = Field(default=32, ge=1, description="Scale.")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = Field(default="all-linear", description="Which layers get an adapter.")


class TrainingSettings(Section):
    """What SFT and alignment have in common."""

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
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 on GPUs that have it.")
    gradient_checkpointing: bool = False
    device: str = Field(default="auto", description="auto, cpu, cuda, mps.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between resumable checkpoints.")


class SftConfig(TrainingSettings):
    """Stage sft: tune pi_w on (x, y_hat) by negative log-likelihood of the completion (paper, step 1)."""


class DraftConfig(Section):
    """Stage sample: K drafts y ~ pi_w(.|x) for each training query (paper, step 2)."""

    format: Format = Field(
        default="chain_of_thought", description="What the weak model writes: the answer, what it knows, or both."
    )
    samples: int = Field(default=4, ge=1, description="K, drafts a query.")
    queries: int | None = Field(default=None, ge=1, description="Training queries used; unset: all.")
    held_out: bool = Field(
        default=False,
        description="Keep the drafted queries (the last 'queries' of training) out of SFT. A weak model that has learned their "
        "answers by heart drafts better on them than on any new query, and feedback on such drafts misleads.",
    )
    sampling: Sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=256)


class FeedbackConfig(Section):
    """Stage feedback: refine every draft, solo once a query, gain = score(refined) - score(solo) (steps 3 to 5)."""

    metric: str | None = Field(default=None, description="The metric behind the score; unset: the task's first.")
    sampling: Sampling = Sampling(temperature=0.0, max_tokens=512)


class PairsConfig(Section):
    """Stage pairs: gains -> (x, chosen, rejected) (step 6)."""

    rule: Literal["paper", "ordered"] = Field(
        default="ordered",
        description="paper: chosen has gain > 0, rejected gain <= 0. ordered: any two drafts whose gains differ by "
        "min_margin or more, which also teaches not to hurt where the strong model is right alone.",
    )
    min_margin: float = Field(default=0.05, gt=0, description="Least difference of gains (rule ordered).")
    max_per_query: int = Field(default=4, ge=1, description="Most pairs of one query, widest margin first.")


class AlignConfig(TrainingSettings):
    """Stage align: preference tuning of pi_w with the SFT model as reference (step 6); picks a checkpoint."""

    learning_rate: float = Field(default=1.41e-5, gt=0, description="The paper's.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs, where max_steps is unset.")
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull to the reference.")
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "apo_zero", "sigmoid_norm"] = Field(
        default="sigmoid", description="TRL's DPO loss_type."
    )
    nll_weight: float = Field(default=0.0, ge=0, description="Weight of an NLL term on the chosen draft (RPO).")
    checkpoints: int = Field(default=4, ge=1, description="Evenly spaced checkpoints to choose from.")
    selection_queries: int = Field(
        default=150, ge=1, description="Validation queries on which each checkpoint's collaboration is scored."
    )


class EvaluateConfig(Section):
    """Stage evaluate: the systems on held-out test queries."""

    systems: tuple[SystemName, ...] = Field(default=("weak", "strong", "collab", "collab_aligned"), min_length=1)
    queries: int | None = Field(default=None, ge=1, description="Test queries used; unset: all.")
    draft: Sampling = Field(default=Sampling(temperature=0.0, max_tokens=256), description="How a draft is decoded.")
    answer: Sampling = Field(default=Sampling(temperature=0.0, max_tokens=512), description="How the strong model is.")


class PromptsConfig(Section):
    """Your own frames. ``{input}``, ``{context}``, ``{instruction}`` and (in refine) ``{draft}`` are filled in."""

    draft: str | None = None
    solo: str | None = None
    refine: str | None = None


class RunConfig(Section):
    """A recipe: tasks, a weak and a strong model, and a section for each stage."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run: runs/NAME.")
    seed: int = Field(default=0, ge=0, description="Everything random follows from it.")
    task: TaskConfig | None = Field(default=None, description="The domain; or several, under tasks.")
    tasks: dict[str, TaskConfig] = Field(default_factory=dict, description="Several domains by name.")
    weak: LocalModelConfig = Field(description="pi_w: small, open weights, trained here.")
    strong: ModelConfig = Field(description="pi_s: a black box.")
    prompts: PromptsConfig = PromptsConfig()
    sft: SftConfig = SftConfig()
    draft: DraftConfig = DraftConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    pairs: PairsConfig = PairsConfig()
    align: AlignConfig = AlignConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _one_way_to_name_tasks(self) -> RunConfig:
        if (self.task is None) == (not self.tasks):
            raise ValueError("give either 'task' (one domain) or 'tasks' (several, by name)")
        for name in self.tasks:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"task name {name!r} becomes a folder: use letters, digits, '-' and '_'")
        return self

    def by_task(self) -> Mapping[str, RunConfig]:
        """One single-task recipe per domain; the name '' stands for the only task of a recipe."""
        if self.task is not None:
            return {"": self}
        return {name: self.model_copy(update={"task": task, "tasks": {}}) for name, task in self.tasks.items()}


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply ``KEY=VALUE`` overrides, resolve its relative data paths.

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
    return _validated(data, path, node)


def config_from_dict(data: Mapping[str, JsonValue], folder: Path = Path()) -> RunConfig:
    """The same from Python data; relative data paths start at ``folder``."""
    return _validated(dict(data), folder / "(recipe)", None)


def _override(data: dict[str, JsonValue], override: str) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write it as KEY=VALUE, such as --set sft.learning_rate=2e-4")
    *parents, last = key.strip().split(".")
    here = data
    for part in parents:
        below = here.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
        here = below
    try:
        here[last] = _number_or_yaml(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from None


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
        problems = [_explain(e["loc"], e["msg"], e["type"], e.get("input"), path, node) for e in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None
    return _resolve_paths(config, path.parent)


def _resolve_paths(config: RunConfig, folder: Path) -> RunConfig:
    folder = folder.absolute()  # the recipe's copy in the run directory must lead to the same files

    def resolve(task: TaskConfig) -> TaskConfig:
        if not isinstance(task, JsonlTaskConfig):
            return task
        paths = {key: getattr(task, key) for key in ("train", "validation", "test")}
        return task.model_copy(update={k: (folder / p).resolve() for k, p in paths.items() if p is not None})

    def beside_recipe(name: str) -> str:
        return str((folder / name).resolve()) if (folder / name).is_dir() else name

    update: dict[str, object] = {
        "weak": config.weak.model_copy(update={"model": beside_recipe(config.weak.model)}),
        "tasks": {name: resolve(task) for name, task in config.tasks.items()},
    }
    if config.task is not None:
        update["task"] = resolve(config.task)
    if isinstance(config.strong, LocalModelConfig):
        update["strong"] = config.strong.model_copy(update={"model": beside_recipe(config.strong.model)})
    return config.model_copy(update=update)


def _explain(
    loc: tuple[int | str, ...], message: str, kind: str, value: object, path: Path, node: yaml.Node | None
) -> str:
    """One problem as ``file:line: key: what is wrong``; union tags that pydantic puts into ``loc`` are left out."""
    keys, line = _locate(loc, node)
    where = f"{path}:{line}" if line else str(path)
    dotted = ".".join(keys) or "(recipe)"
    if kind == "extra_forbidden":
        known = _known_keys(loc[:-1])
        close = difflib.get_close_matches(keys[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{where}: {dotted}: unknown key; {hint}"
    if kind == "missing":
        return f"{where}: {dotted}: missing; add it"
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{where}: {dotted}: {message.removeprefix('Value error, ')}{shown}"


_TAGS = ("lab", "jsonl", "local", "openai", "scripted")


def _locate(loc: tuple[int | str, ...], node: yaml.Node | None) -> tuple[list[str], int | None]:
    keys, line = [], None
    previous = ""
    for part in loc:
        if part in _TAGS and previous in ("strong", "task", *_task_names(loc)):
            previous = ""
            continue
        keys.append(str(part))
        previous = str(part)
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                node = None
                continue
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            node = None
    return keys, line


def _task_names(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    return (str(loc[1]),) if len(loc) > 1 and loc[0] == "tasks" else ()


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at ``loc``, by walking the model's fields (tags choose within a union)."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in loc:
        tagged = [m for m in models if part in _tag_of(m)]
        models = tagged or [m for model in models for m in _models_in(_field_type(model, str(part)))] or models
    return sorted({name for model in models for name in model.model_fields})


def _tag_of(model: type[BaseModel]) -> tuple[object, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _field_type(model: type[BaseModel], name: str) -> object:
    field = model.model_fields.get(name)
    return field.annotation if field else None


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models_in(arg)]
