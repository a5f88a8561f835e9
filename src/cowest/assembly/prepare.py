"""From a recipe to one context per task, with everything checked that can be checked before a model is loaded or a call is paid."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from cowest.assembly.build import build_task, frames_of, handed_over
from cowest.assembly.context import Context
from cowest.assembly.conversations import with_fitting_turns
from cowest.assembly.objects import NOTHING, Objects
from cowest.assembly.opened import OpenModels, check_prices, sources_of
from cowest.assembly.systems import check_systems
from cowest.assembly.turns import check_turn
from cowest.errors import ConfigError, DataError, MissingExtraError
from cowest.protocols import Reporter, Task
from cowest.recipe.config import RunConfig
from cowest.run.progress import NOWHERE
from cowest.run.store import RunDir
from cowest.scoring.scorer import MetricScorer
from cowest.systems.registry import STRONG, evaluated
from cowest.tasks.base import SPLITS, Measured, notes_of
from cowest.training.objectives import as_online
from cowest.types import Feedback, Score


def prepare(
    config: RunConfig, out: Path, reporter: Reporter, offline: bool = False, objects: Objects = NOTHING
) -> list[Context]:
    """One context per task. ``offline`` is for reading a finished run: neither models nor keys need to be there any more.

    Raises ConfigError, DataError and ModelNotFoundError.
    """
    if not offline:
        check_models(config, objects)
        for where, source in sources_of(config, objects):
            for note in source.notes():
                reporter.info(f"{where}: {note}")
    if config.draft.samples < 2:
        raise ConfigError("draft.samples: alignment compares drafts of one query, so it needs at least 2")
    if config.draft.redraw and not any(config.draft.ladder or (config.draft.sampling.temperature,)):
        raise ConfigError(
            "draft.redraw: at temperature 0 the same draft comes again; set draft.sampling.temperature or draft.ladder"
        )

    models, contexts = OpenModels(config, out, objects=objects, reporter=reporter), []
    for name, single in config.by_task().items():
        task = build_task(single, name) if objects.task is None else handed_over(objects.task, single)
        if objects.metric is not None:
            task = Measured(task, objects.metric)
        for note in notes_of(task):
            reporter.info(f"{name or task.name}: {note}")
        single = _with_queries(single, len(task.examples("train")))
        _check_held_out(single, len(task.examples("train")))
        _check_references(single, task)
        _check_splits(task.name, {s: len(task.examples(s)) for s in ("train", "validation", "test")})
        MetricScorer(task, single.feedback.metric or task.metrics[0])  # raises for a metric that cannot score one query
        context = Context(
            name=name,
            config=single,
            task=task,
            frames=frames_of(single, task, objects),
            run=RunDir(out / name if name else out),
            reporter=reporter,
            models=models,
            objects=objects,
            tracker=objects.tracker or NOWHERE,
        )
        if not offline:
            _ = context.format, context.signal, context.objective, context.metric_scorer()  # raise for an unknown name
            _check_expected(context)
            _check_formats(context)
            _check_online(context)
            check_compared(context)
            check_turn(context)
            check_systems(context, evaluated(single)[0], "evaluate.systems")
        contexts.append(with_fitting_turns(context))
    return contexts


def check_models(config: RunConfig, objects: Objects = NOTHING) -> None:
    """Look for models, keys and prices. Raises ConfigError or ModelNotFoundError."""
    sources = sources_of(config, objects)
    for where, source in sources:
        source.check(where)
    if config.feedback.mode == "batch" and sources.strong.batch_requests is None:
        raise ConfigError("feedback.mode: batch is for an endpoint (strong.kind: openai) with a batch API")
    if config.pairs.price_per_usd and sources.strong.price is None:
        raise ConfigError(
            f"pairs.price_per_usd: {sources.strong.name} has no price; give strong.price, or use pairs.price_per_word"
        )
    check_prices(config)


def _with_queries(config: RunConfig, train: int) -> RunConfig:
    """Where queries are held out and no number is given: a third of the training questions."""
    if not config.draft.held_out or config.draft.queries is not None:
        return config
    draft = config.draft.model_copy(update={"queries": max(1, train // 3)})
    return config.model_copy(update={"draft": draft})


def _check_held_out(config: RunConfig, train: int) -> None:
    if config.draft.held_out and not 0 < config.held_out < train:
        rounds = f"; rounds.queries: next takes {config.rounds.most} times as many" if config.rounds.most > 1 else ""
        raise ConfigError(
            f"draft.held_out: set draft.queries to how many of the {train} training questions SFT shall not see (fewer than all"
            f"{rounds if config.rounds.queries == 'next' else ''})"
        )


def _check_expected(context: Context) -> None:
    config, task, strong = context.config, context.task, context.strong
    if config.feedback.expect != "logprobs":
        return
    if config.feedback.judge is not None:
        raise ConfigError(
            "feedback.expect: logprobs scores classes by the metric; with feedback.judge set it to samples"
        )
    if task.labels or any(e.choices for e in task.examples("train")):
        return
    if not strong.reads_given:
        raise ConfigError(
            f"feedback.expect: logprobs: the answers of task {task.name} are open, so that the strong model has to tell how likely "
            f"the reference is, which only a local one in this process can (engine: process), and {strong.name} cannot: set it to "
            "samples"
        )
    if config.feedback.scorer is not None or context.objects.scorer is not None:
        raise ConfigError(
            "feedback.expect: logprobs takes the probability of the reference for the score of an open answer; with "
            "another scorer set it to samples"
        )


def _check_formats(context: Context) -> None:
    settings, train = context.config.draft, context.task.examples("train")
    if not settings.formats:
        return
    listed = ", ".join(settings.formats)
    if context.objects.format is not None or context.objects.frames is not None:
        raise ConfigError(
            "draft.formats: a format or frames that a script hands over are for all drafts; leave formats unset"
        )
    if settings.format not in settings.formats:
        raise ConfigError(
            f"draft.formats: {listed}: add draft.format, {settings.format}, which is evaluated, or change that to one of them"
        )
    if len(set(settings.formats)) < len(settings.formats) or len(settings.formats) > settings.samples:
        raise ConfigError(
            f"draft.formats: {listed}: name each once, and no more of them than draft.samples, {settings.samples}"
        )
    if len({frames.draft(train[0]) for _, frames in context.ways}) < len(settings.formats):
        raise ConfigError(
            f"draft.formats: {listed}: the model is asked in the same words for each (by the recipe's prompts.draft, or the "
            "lab's frames), so that nothing tells it which; leave them unset, or prompts.draft"
        )
    for format_, _ in context.ways if context.weak.trainable else ():
        if all(format_.completion(context.task.target(e), e) is None for e in train):
            raise ConfigError(
                f"draft.formats: no training row of {context.task.name} has what {format_.name} is learned from (a rationale)"
            )


def _check_online(context: Context) -> None:
    """Of an objective that draws drafts while it trains."""
    c = context.config
    if not context.weak.trainable or as_online(context.objective) is None:
        return
    name = f"align.objective: {c.align.objective}"
    if not c.draft.sampling.temperature:
        raise ConfigError(
            f"{name} compares drafts of one query, and at draft.sampling.temperature 0 they are all the same; raise it"
        )
    if c.feedback.mode == "batch":
        raise ConfigError(f"{name} waits for the strong model at every step; set feedback.mode: live")
    if c.rounds.most > 1:
        raise ConfigError(
            f"rounds.most: {c.rounds.most}: {name} draws new drafts at every step, in one round; set align.max_steps for more"
        )


def check_compared(context: Context) -> None:
    """Raise ConfigError for settings that comparisons of answers cannot serve."""
    settings, signal = context.config.feedback, context.signal
    if not settings.compare:
        return
    others = {"judge": settings.judge is not None, "expect": settings.expect != "off"}
    for name in (name for name, there in others.items() if there):
        raise ConfigError(
            f"feedback.{name}: scores each answer by itself, and feedback.compare compares two of them; take one of both"
        )
    together = {
        "feedback.adaptive": settings.adaptive != "off",
        "align.objective": as_online(context.objective) is not None,
    }
    for name in (name for name, there in together.items() if there):
        raise ConfigError(
            f"{name}: wants a score of each answer as it comes, and feedback.compare compares them when all are there"
        )
    unscored = Score(value=None, error="judges compare what the strong model answers")
    compared = Feedback(example_id="", draft_id="", refined=Score(value=1.0), solo=Score(value=0.5), weak=unscored)
    if not {"refine", "solo"} <= signal.asks or signal.value(compared) is None:
        raise ConfigError(
            f"pairs.signal: {signal.name} needs another score than feedback.compare gives, which compares the answers with a draft "
            "and alone; take collaboration"
        )


def _check_references(config: RunConfig, task: Task) -> None:
    """Who has no judges needs an answer to each question."""
    without = [e.id for split in SPLITS for e in task.examples(split) if not e.references]
    if without and not config.feedback.compare:
        raise DataError(
            f"task {task.name}: {len(without)} questions have no answer to score by (the first is {without[0]}): give their "
            "references, or have models compare answers: feedback.compare"
        )
    test = task.examples("test")[: config.evaluate.queries]
    if not all(e.references for e in test) and STRONG.name not in [spec.name for spec in evaluated(config)[0]]:
        raise ConfigError(
            f"evaluate.systems: test questions without references are judged by comparison with {STRONG.name}: name it, too"
        )


def _check_splits(task: str, sizes: Mapping[str, int]) -> None:
    empty = [split for split, size in sizes.items() if not size]
    if empty:
        raise DataError(
            f"task {task}: the {empty[0]} split is empty; the run needs train, validation and test questions"
        )


def check_installed(config: RunConfig) -> None:
    """Raise MissingExtraError when a run of this recipe would need a package that is not there; nothing is imported."""
    needed: dict[str, list[str]] = {}
    sources = sources_of(config)
    if sources.weak.trainable:
        needed["train"] = ["torch", "transformers", "peft", "trl", "datasets"]
    elif sources.strong.trainable:
        needed["local"] = ["torch", "transformers", "peft"]
    needed["plots"] = ["matplotlib"]
    missing = {extra: [name for name in names if not find_spec(name)] for extra, names in needed.items()}
    if any(missing.values()):
        names = dict.fromkeys(name for found in missing.values() for name in found)
        extras = [extra for extra, found in missing.items() if found]
        raise MissingExtraError(f"a run needs {', '.join(names)}: pip install 'cowest[{','.join(extras)}]'")
