"""From a recipe to its task and its frames: the only module that knows every kind of task."""

from __future__ import annotations

from collections.abc import Mapping

from cowest.assembly.documents import with_contexts
from cowest.assembly.objects import Objects
from cowest.collaboration.formats import FORMATS
from cowest.collaboration.prompts import DefaultFrames, TemplateFrames
from cowest.collaboration.sight import SightedInteractions, sighted
from cowest.errors import ConfigError
from cowest.lab.frames import LabBaselineFrames, LabFrames, LabInteractionFrames
from cowest.lab.task import lab_task
from cowest.protocols import BaselineFrames, DraftFormat, Frames, InteractionFrames, Task
from cowest.recipe.config import (
    IfqaTaskConfig,
    JsonlTaskConfig,
    LabTaskConfig,
    ObjectTaskConfig,
    PluginTaskConfig,
    ProsocialTaskConfig,
    PubmedqaTaskConfig,
    RunConfig,
)
from cowest.systems.interactions.frames import ASK, DefaultInteractionFrames, TemplateInteractionFrames
from cowest.systems.prompts import DefaultBaselineFrames
from cowest.systems.registry import lab_frames
from cowest.tasks.base import reserving
from cowest.tasks.collected import with_collected
from cowest.tasks.ifqa import load_ifqa
from cowest.tasks.jsonl import load_jsonl_task
from cowest.tasks.plugins import load_plugin_task
from cowest.tasks.prosocial import load_prosocial
from cowest.tasks.pubmedqa import load_pubmedqa


def build_task(config: RunConfig, name: str = "") -> Task:
    """The task of a single-task recipe, with what was collected for it and the contexts that it asks for.

    ``name`` is its key in the recipe.

    Raises DataError or ConfigError for bad data.
    """
    task, section = _build_task(config, name), config.task
    if section is None:
        return task
    if section.collected is not None:
        task = with_collected(task, section.collected)
    return reserving(with_contexts(task, section), section.calibration, config.seed)


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
            answered=not config.feedback.compare,
        )
    if isinstance(task, IfqaTaskConfig):
        return load_ifqa(task)
    if isinstance(task, PubmedqaTaskConfig):
        return load_pubmedqa(task)
    if isinstance(task, ProsocialTaskConfig):
        return load_prosocial(task)
    if isinstance(task, PluginTaskConfig):
        return load_plugin_task(task, config.seed)
    if isinstance(task, ObjectTaskConfig):
        raise ConfigError(
            f"task: {task.name!r} was a Python object; hand it over again: cowest.api.run(recipe, task=...)"
        )
    raise ConfigError("this recipe has several tasks; pick one with RunConfig.by_task()")


def build_frames(
    config: RunConfig, task: Task, format_: DraftFormat | None = None, instruction: str | None = None
) -> Frames:
    """The recipe's own prompts where it has them, then the lab's for a lab world, then the default frames.

    They show the context to whom the task's ``context_for`` names; ``instruction`` stands in for the task's. Raises ConfigError as
    :func:`_build_frames`.
    """
    words = task.instruction if instruction is None else instruction
    return sighted(_build_frames(config, words, format_), "both" if config.task is None else config.task.sight)


def frames_of(config: RunConfig, task: Task, objects: Objects, instruction: str | None = None) -> Frames:
    """The frames that were handed over, or else the recipe's; either show the context to whom ``context_for`` names.

    ``instruction`` stands in for the task's; frames that were handed over have words of their own.
    """
    if objects.frames is None:
        return build_frames(config, task, objects.format, instruction)
    return sighted(objects.frames, "both" if config.task is None else config.task.sight)


def handed_over(task: Task, config: RunConfig) -> Task:
    """A task that a script made, with the contexts that the recipe asks for."""
    section = config.task
    return task if section is None else reserving(with_contexts(task, section), section.calibration, config.seed)


def _build_frames(config: RunConfig, instruction: str, format_: DraftFormat | None) -> Frames:
    """The frames for who sees all.

    Raises ConfigError for a refine template that leaves the draft out, or any that leaves the question out.
    """
    prompts = config.prompts
    for key, template in (("draft", prompts.draft), ("solo", prompts.solo), ("refine", prompts.refine)):
        needed = ["{input}", "{draft}"] if key == "refine" else ["{input}"]
        for mark in needed:
            if template is not None and mark not in template:
                raise ConfigError(f"prompts.{key}: the template has no {mark}; put it where that text belongs")
    if lab_frames(config):
        return LabFrames()
    draft_format = format_ or FORMATS.find(config.draft.format, "draft.format")
    fallback = DefaultFrames(instruction, draft_format, prompts.reasons)
    return TemplateFrames(fallback, instruction, prompts.draft, prompts.solo, prompts.refine)


def build_interaction_frames(config: RunConfig, task: Task, format_: DraftFormat | None = None) -> InteractionFrames:
    """The turns of the interactions: the recipe's own where it has them, else the defaults; shown the context as in build_frames.

    Raises ConfigError for a template that leaves a text out.
    """
    if lab_frames(config):
        return SightedInteractions(LabInteractionFrames(), "both" if config.task is None else config.task.sight)
    prompts = config.prompts
    templates = {name: text for name, text in prompts.interactions.model_dump().items() if text is not None}
    for name, template in templates.items():
        for mark in ("{input}", *_NEEDED[name]):
            if mark not in template:
                raise ConfigError(f"prompts.interactions.{name}: the template has no {mark}; put it where it belongs")
    draft_format = format_ or FORMATS.find(config.draft.format, "draft.format")
    fallback = DefaultInteractionFrames(task.instruction, draft_format, prompts.reasons)
    frames = TemplateInteractionFrames(fallback, templates)
    return SightedInteractions(frames, "both" if config.task is None else config.task.sight)


_NEEDED: Mapping[str, tuple[str, ...]] = {
    "critique": ("{draft}",),
    "revise": ("{draft}", "{critique}"),
    "advise": ("{attempt}",),
    "decide": ("{attempt}", "{advice}"),
    "consult": (ASK.mark,),
    "consulted": ("{question}",),
    "several": ("{drafts}",),
}
"""What a template has to hold, beside the question."""


def build_baseline_frames(config: RunConfig, task: Task) -> BaselineFrames:
    """The baselines' prompts: the lab's for a lab world, else the defaults with the task's instruction.

    They show the context that an example has; :func:`cowest.assembly.systems.build_system` takes away what is not to be seen.
    """
    if isinstance(config.task, LabTaskConfig):
        return LabBaselineFrames()
    return DefaultBaselineFrames(task.instruction, config.prompts.reasons)
