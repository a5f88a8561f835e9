"""From a registered system to the live one: the only place where evaluate, align, table, prompts and server build it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from pydantic import ValidationError

from cowest.assembly.build import build_baseline_frames, build_frames, build_interaction_frames, frames_of
from cowest.assembly.context import Context
from cowest.assembly.places import model_path, model_source, standing_in
from cowest.collaboration.guard.policy import Guard
from cowest.collaboration.sight import BlindBaselines, BlindSystem, Side, SightedFrames, sees, task_for
from cowest.errors import ConfigError, DataError, MissingExtraError
from cowest.protocols import ChatModel, Frames, Retriever, System
from cowest.recipe.config import Format, with_settings
from cowest.retrieval.bm25 import Bm25Retriever
from cowest.retrieval.dense import DenseRetriever
from cowest.retrieval.documents import documents_of
from cowest.systems.optimised import OtherWords, optimised_in
from cowest.systems.registry import no_lab_turns, variant_of
from cowest.systems.spec import Index, Parts, Specialist, SystemSpec, Which
from cowest.types import Draft

GUARD = "guard/guard.json"
"""Where a run keeps its guard."""


@dataclass(slots=True)
class Retrievers:
    """The indexes over a task's training texts, made once for all systems: of those that the strong model may see."""

    made: dict[str, Retriever] = field(default_factory=dict)

    def of(self, kind: Index, context: Context) -> Retriever:
        """Raises DataError where there is nothing to index."""
        if kind not in self.made:
            documents = documents_of(task_for("strong", context.task, context.sight))
            if kind == "bm25":
                self.made[kind] = Bm25Retriever(documents)
            else:
                from cowest.retrieval.embedding import TransformerEmbedder

                name = context.config.comparison.embedder
                for note in standing_in(name):
                    context.reporter.info(f"{context.label}comparison.embedder: {note}")
                embedder = TransformerEmbedder(model_path(name))
                self.made[kind] = DenseRetriever(documents, embedder)
        return self.made[kind]


def build_system(
    context: Context,
    spec: SystemSpec,
    strong: Callable[[], ChatModel],
    weak: Callable[[Which], ChatModel],
    retriever: Callable[[Index], Retriever] | None = None,
    drafted: Callable[[], Mapping[str, str]] | None = None,
    specialists: Callable[[], Mapping[str, ChatModel]] | None = None,
    name: str | None = None,
    guard: Callable[[], Guard] | None = None,
    optimised: Callable[[], Frames] | None = None,
) -> System:
    """The system from the parts of a context, which has the settings of its variant.

    ``retriever`` unset makes an index for this system alone; ``drafted``, ``guard`` and ``optimised`` stand in where there are none
    yet, and ``specialists`` for the models of ``table.specialists``, which the context's ``models`` open and close;
    ``name`` is another one than the system's, as for a checkpoint that is tried.
    """
    parts = parts_of(context, spec, strong, weak, retriever, drafted, specialists, name, guard, optimised)
    system = spec.build(parts)
    return BlindSystem(system) if _bare(context, spec) else system


def _bare(context: Context, spec: SystemSpec) -> bool:
    """Whether the strong model alone is asked, and never has the context, so that frames may show what is looked up."""
    return spec.uses == "strong" and not sees("strong", context.sight) and not spec.live


def guard_of(context: Context) -> Guard:
    """What a run's calibration has come to. Raises ConfigError where it has none, DataError where it cannot be read."""
    path = context.path(GUARD)
    if not path.is_file():
        raise ConfigError(f"{context.run.path} has no guard: `cowest guard {context.run.path}` makes one")
    try:
        return Guard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: damaged, or of another version of cowest ({error.error_count()} problems): `cowest guard {context.run.path}` "
            "makes it again"
        ) from None


def reworded(context: Context, instruction: str) -> Frames:
    """The context's frames, with another instruction to the strong model in place of the task's."""
    return OtherWords(context.frames, frames_of(context.config, context.task, context.objects, instruction))


def optimised_frames(context: Context, system: str) -> Frames:
    """The frames with the instruction that was found for a system. Raises ConfigError, DataError as :func:`optimised_in`."""
    return reworded(context, optimised_in(context.run.path, system).instruction)


def parts_of(
    context: Context,
    spec: SystemSpec,
    strong: Callable[[], ChatModel],
    weak: Callable[[Which], ChatModel],
    retriever: Callable[[Index], Retriever] | None = None,
    drafted: Callable[[], Mapping[str, str]] | None = None,
    specialists: Callable[[], Mapping[str, ChatModel]] | None = None,
    name: str | None = None,
    guard: Callable[[], Guard] | None = None,
    optimised: Callable[[], Frames] | None = None,
) -> Parts:
    """What a system is made of; see :func:`build_system`.

    A context that the strong model may not see (``task.context_for``) is in nothing that the system gets to put to it. One that
    asks the strong model alone never has it, so that its frames may show what it looks up itself.
    """
    config, who, settings = context.config, context.sight, context.config.evaluate
    side: Side = "weak" if spec.uses == "weak" else "strong"
    task, bare = task_for(side, context.task, who), _bare(context, spec)
    baseline = build_baseline_frames(config, task)

    def shown(frames: Frames) -> Frames:
        return frames.inner if bare and isinstance(frames, SightedFrames) else frames

    def frames(format_: Format) -> Frames:
        return shown(build_frames(with_settings(config, {"draft.format": format_}), task))

    def found(kind: Index) -> Retriever:
        return Retrievers().of(kind, context)

    def drafts() -> Mapping[str, str]:
        rows = context.run.file("drafts.jsonl", Draft).load()
        return {d.example_id: d.text for d in rows if d.index == 0 and d.text is not None}

    def beside() -> Mapping[str, Specialist]:
        opened, sources = (specialists or context.models.specialists)(), context.models.sources.specialists
        return {n: Specialist(m, sources[n].window(settings.draft.max_tokens)) for n, m in opened.items()}

    return Parts(
        name=name or spec.name,
        task=task,
        frames=frames,
        own=shown(context.frames),
        baseline=baseline if sees("strong", who) or bare else BlindBaselines(baseline),
        interactions=lambda: build_interaction_frames(config, task, context.objects.format),
        open_strong=strong,
        weak=weak,
        retriever=retriever or found,
        drafted=drafted or drafts,
        specialists=beside,
        guard=guard or (lambda: guard_of(context)),
        optimised=optimised or (lambda: optimised_frames(context, spec.name)),
        draft=settings.draft,
        answer=settings.answer,
        sampled=config.draft.sampling,
        settings=config.comparison,
        seed=config.seed,
        weak_window=context.weak.window(settings.draft.max_tokens),
        strong_window=context.strong.window(settings.answer.max_tokens),
    )


def check_systems(context: Context, specs: Iterable[SystemSpec], where: str) -> None:
    """See to it, before anything is paid, that the task and this machine have what the systems need.

    Raises MissingExtraError, ConfigError (no rationale to learn knowledge from), DataError (nothing to search) or
    ModelNotFoundError (an encoder's missing folder).
    """
    for spec in specs:
        if spec.retrieves and find_spec("bm25s") is None:
            raise MissingExtraError(
                f"{where}: {spec.name} needs bm25s: pip install 'cowest[retrieval]', or leave it out"
            )
        if spec.retrieves:
            documents_of(task_for("strong", context.task, context.sight))
        if spec.retrieves == "dense":
            model_source(context.config.comparison.embedder)
        if spec.interacts:
            _check_interaction(context, spec, where)
        if spec.optimises:
            _check_optimised(context, spec, where)
        if spec.needs != "nothing" and context.weak.trainable:
            _check_rationales(context, spec, where)


def _check_interaction(context: Context, spec: SystemSpec, where: str) -> None:
    if why := no_lab_turns(context.config, spec):
        raise ConfigError(f"{where}: {spec.name}: {why}")
    try:
        build_interaction_frames(context.config, context.task, context.objects.format)
    except ConfigError as error:
        raise ConfigError(f"{where}: {spec.name}: {error}") from None


def _check_optimised(context: Context, spec: SystemSpec, where: str) -> None:
    if find_spec("gepa") is None:
        raise MissingExtraError(f"{where}: {spec.name} needs gepa: pip install 'cowest[gepa]', or leave it out")
    feedback = context.config.feedback
    if feedback.judge is not None or feedback.compare:
        raise ConfigError(
            f"{where}: {spec.name}: prompts are chosen by the task's metric, and this recipe has its answers judged "
            "(feedback.judge or feedback.compare); leave it out"
        )
    one, other = (reworded(context, words) for words in ("ONE", "OTHER"))
    example = context.task.examples("train")[0]
    alone = spec.optimises == "solo"
    if (one.solo(example) if alone else one.refine(example, "")) == (
        other.solo(example) if alone else other.refine(example, "")
    ):
        of = "the frames that a script hands over have" if context.objects.frames is not None else "the template has"
        raise ConfigError(
            f"{where}: {spec.name} optimises the instruction in prompts.{spec.optimises}, and {of} none: put {{instruction}} where "
            "it belongs, or leave the row out"
        )


def _check_rationales(context: Context, spec: SystemSpec, where: str) -> None:
    _, config = variant_of(context.config, spec)
    if config.draft.format == "knowledge" and not any(e.rationale for e in context.task.examples("train")):
        raise ConfigError(
            f"{where}: {spec.name} drafts knowledge, and no training row of {context.task.name} has a rationale to learn it "
            "from; leave it out"
        )
