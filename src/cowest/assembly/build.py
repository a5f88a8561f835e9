"""From a recipe to live objects: the only module that knows every task and every kind of model."""

from __future__ import annotations

import json
from pathlib import Path

from cowest.collaboration.prompts import DefaultFrames, TemplateFrames
from cowest.errors import ConfigError, MissingExtraError, ModelNotFoundError
from cowest.lab.frames import LabBaselineFrames, LabFrames
from cowest.lab.task import lab_task
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price
from cowest.models.dialect import Quirks
from cowest.models.keys import find_key
from cowest.models.tokens import token_counter
from cowest.models.window import Window
from cowest.protocols import BaselineFrames, Budget, ChatModel, Frames, Task
from cowest.recipe.config import (
    IfqaTaskConfig,
    JsonlTaskConfig,
    LabTaskConfig,
    LocalModelConfig,
    ModelConfig,
    OpenAIModelConfig,
    PluginTaskConfig,
    ProsocialTaskConfig,
    PubmedqaTaskConfig,
    RunConfig,
)
from cowest.systems.prompts import DefaultBaselineFrames
from cowest.tasks.collected import with_collected
from cowest.tasks.ifqa import load_ifqa
from cowest.tasks.jsonl import load_jsonl_task
from cowest.tasks.plugins import load_plugin_task
from cowest.tasks.prosocial import load_prosocial
from cowest.tasks.pubmedqa import load_pubmedqa
from cowest.types import ModelRef

LAB_WEIGHTS = Path(__file__).parents[1] / "lab" / "weights"


def model_path(name: str) -> str:
    """A model's hub name or folder; ``lab:strong`` and ``lab:weak`` are the ones shipped with cowest.

    Raises ModelNotFoundError for a folder that is not there, or an unknown lab model.
    """
    if name.startswith("lab:"):
        folder = LAB_WEIGHTS / name.removeprefix("lab:")
        if not folder.is_dir():
            known = ", ".join(f"lab:{p.name}" for p in sorted(LAB_WEIGHTS.glob("*"))) or "none is installed"
            raise ModelNotFoundError(f"{name}: there is no such lab model; there are {known}")
        return str(folder)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    folder = Path(name).expanduser()
    if looks_like_path and not folder.is_dir():
        raise ModelNotFoundError(
            f"{name}: no such folder. Give a folder with config.json and safetensors weights, or a hub name like org/model."
        )
    return str(folder) if folder.is_dir() else name


def build_task(config: RunConfig, name: str = "") -> Task:
    """The task of a single-task recipe, with what was collected for it; ``name`` is its key in the recipe.

    Raises DataError or ConfigError for bad data.
    """
    task = _build_task(config, name)
    collected = None if config.task is None else config.task.collected
    return task if collected is None else with_collected(task, collected)


def _build_task(config: RunConfig, name: str) -> Task:
    task = config.task
    if isinstance(task, LabTaskConfig):
        return lab_task(task, config.seed)
    if isinstance(task, JsonlTaskConfig):
        return load_jsonl_task(
            name or config.name,
            task.train,
            task.validation,
            task.test,
            labels=task.labels,
            instruction=task.instruction,
            metrics=task.metrics,
            seed=config.seed,
        )
    if isinstance(task, IfqaTaskConfig):
        return load_ifqa(task)
    if isinstance(task, PubmedqaTaskConfig):
        return load_pubmedqa(task)
    if isinstance(task, ProsocialTaskConfig):
        return load_prosocial(task)
    if isinstance(task, PluginTaskConfig):
        return load_plugin_task(task, config.seed)
    raise ConfigError("this recipe has several tasks; pick one with RunConfig.by_task()")


def build_frames(config: RunConfig, task: Task) -> Frames:
    """The recipe's own prompts where it has them, then the lab's for a lab world, then the default frames.

    Raises ConfigError for a refine template that leaves the draft out, or any that leaves the question out.
    """
    prompts = config.prompts
    for key, template in prompts:
        needed = ["{input}", "{draft}"] if key == "refine" else ["{input}"]
        for mark in needed:
            if template is not None and mark not in template:
                raise ConfigError(f"prompts.{key}: the template has no {mark}; put it where that text belongs")
    if isinstance(config.task, LabTaskConfig) and prompts == type(prompts)():
        return LabFrames()
    fallback = DefaultFrames(task.instruction, config.draft.format)
    return TemplateFrames(fallback, task.instruction, prompts.draft, prompts.solo, prompts.refine)


def build_baseline_frames(config: RunConfig, task: Task) -> BaselineFrames:
    """The baselines' prompts: the lab's for a lab world, else the defaults with the task's instruction."""
    return LabBaselineFrames() if isinstance(config.task, LabTaskConfig) else DefaultBaselineFrames(task.instruction)


def window_of(config: ModelConfig, answer_tokens: int) -> Window | None:
    """The room for a prompt: the model's window less that for its answer; None where the window is not known.

    A local folder's window is in its config.json, an endpoint's in the recipe (``window``). A hub name's is not known here: its
    model says so itself when a prompt is too long.
    """
    if isinstance(config, OpenAIModelConfig):
        tokens, tokenizer = config.window, config.tokenizer
    elif isinstance(config, LocalModelConfig):
        tokens, tokenizer = _positions(model_path(config.model)), model_path(config.model)
    else:
        return None
    if tokens is None:
        return None
    if tokens <= answer_tokens:
        raise ConfigError(f"{config.model}: max_tokens {answer_tokens} leaves no room in a window of {tokens} tokens")
    return Window(token_counter(tokenizer)[0], tokens - answer_tokens)


def _positions(folder: str) -> int | None:
    file = Path(folder) / "config.json"
    if not file.exists():
        return None
    described = json.loads(file.read_text(encoding="utf-8"))
    inner = described.get("text_config", described)
    found = inner.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def build_weak(config: LocalModelConfig, ref: ModelRef) -> ChatModel:
    """The weak model at some point of its training."""
    return _local(config, ref)


def openai_models(config: RunConfig) -> list[tuple[str, OpenAIModelConfig]]:
    """The recipe's models behind an endpoint, each with the name of its section."""
    sections = (("weak", config.weak), ("strong", config.strong), ("feedback.judge", config.feedback.judge))
    return [(where, model) for where, model in sections if isinstance(model, OpenAIModelConfig)]


def build_model(config: ModelConfig, folder: Path = Path(), budget: Budget | None = None) -> ChatModel:
    """A model of any kind; ``folder`` may hold a .env file with its key, ``budget`` is asked before each paid attempt.

    Raises ConfigError, ModelNotFoundError or MissingExtraError when it cannot be had.
    """
    if isinstance(config, LocalModelConfig):
        return _local(config, ModelRef(base=model_path(config.model), adapter=config.adapter))
    if isinstance(config, OpenAIModelConfig):
        return _openai(config, folder, budget)
    from cowest.models.scripted import ScriptedChatModel, ScriptRule

    return ScriptedChatModel(
        [ScriptRule(contains=r.contains, reply=r.reply) for r in config.rules], default=config.default
    )


def _openai(config: OpenAIModelConfig, folder: Path, budget: Budget | None) -> ChatModel:
    from cowest.models.openai import OpenAIChatModel

    return OpenAIChatModel(
        base_url=config.base_url,
        model=config.model,
        api_key=api_key(config, folder),
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
        timeout_s=config.timeout_s,
        connect_timeout_s=config.connect_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
        max_attempts=config.max_attempts,
        stream=config.stream,
        quirks=_quirks(config),
        samples_per_call=config.samples_per_call,
        extra=config.extra,
        ca_file=config.ca_file,
        budget=budget,
    )


def build_batch_model(config: OpenAIModelConfig, folder: Path, ledger: Ledger, price: Price | None) -> ChatModel:
    """A model behind an endpoint, through the provider's batch API."""
    from cowest.models.batch import BatchChatModel
    from cowest.models.dialect import dialect_of
    from cowest.models.transport import Timeouts, Transport
    from cowest.models.wire import check_base_url

    key = api_key(config, folder)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeouts = Timeouts(config.timeout_s, config.connect_timeout_s, config.stall_timeout_s)
    return BatchChatModel(
        Transport(check_base_url(config.base_url), headers, timeouts, config.ca_file),
        ledger,
        model=config.model,
        dialect=dialect_of(config.model, _quirks(config)),
        extra=config.extra,
        price=price,
        api_key=key,
        max_requests=config.batch.max_requests,
        poll_s=config.batch.poll_s,
    )


def _quirks(config: OpenAIModelConfig) -> Quirks:
    return Quirks(config.token_limit, config.temperature, config.seed, config.system_prompt, config.structured)


def api_key(config: OpenAIModelConfig, folder: Path = Path(), where: str = "strong") -> str | None:
    """The key from the environment or a .env file. Raises ConfigError, which says where it was looked for."""
    if config.api_key_env is None:
        return None
    key = find_key(config.api_key_env, folder)
    if not key:
        raise ConfigError(
            f"{where}.api_key_env: {config.api_key_env} is not set, neither in the environment nor in a .env file (here or "
            f"beside the recipe). Run `export {config.api_key_env}=...`, or set {where}.api_key_env: null for a server "
            "that wants no key."
        )
    return key


def _local(config: LocalModelConfig, ref: ModelRef) -> ChatModel:
    try:
        from cowest.models.local import LocalChatModel
    except ImportError as error:
        raise MissingExtraError(f"a local model needs {error.name}: pip install 'cowest[local]'") from None
    base = ref.model_copy(update={"base": model_path(ref.base)})
    return LocalChatModel(base, device=config.device, dtype=config.dtype, batch_size=config.batch_size)
