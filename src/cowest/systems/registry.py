"""The registry of systems: every one by name, and what each needs to be there.

``cowest run`` evaluates some of them, ``cowest table`` puts them side by side, ``cowest prompts`` shows what they ask, ``cowest
serve`` answers with them. ``weak``, ``strong``, ``collab`` and ``collab_aligned`` are in the recipe's own draft format; one such
as ``collab_direct`` has a format of its own.

Which weak model a system has is a matter of its ``variant`` (a few settings of the recipe, with which SFT, drafts, feedback, pairs
and alignment are made) and of how far that has to be trained (``needs``). Systems of one variant share all of its stages, and
variants share every stage that their settings do not touch (:mod:`cowest.table.run`).

A package adds a system by an entry point in the group ``cowest.systems`` (:mod:`cowest.systems.spec`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from pydantic import JsonValue

from cowest.errors import ConfigError
from cowest.lab.frames import NO_LAB_TURNS
from cowest.protocols import Frames, System
from cowest.recipe.config import EvaluateConfig, Format, LabTaskConfig, LocalModelConfig, RunConfig, with_settings
from cowest.recipe.registry import Registry
from cowest.systems.best_of_k import BestOfK
from cowest.systems.calls import Ask
from cowest.systems.collaboration import Collaboration
from cowest.systems.flare import Flare
from cowest.systems.guarded import build_guarded
from cowest.systems.interactions.rows import INTERACTIONS
from cowest.systems.retrieval import Retrieval
from cowest.systems.self_rag import SelfRag
from cowest.systems.self_refine import SelfRefine
from cowest.systems.single import SingleCall, with_shots
from cowest.systems.spec import Index, Parts, SystemSpec, Which
from cowest.systems.supericl import SuperIcl
from cowest.systems.votes import SelfConsistency
from cowest.types import Example, Message

VARIANTS: Mapping[str, Mapping[str, JsonValue]] = {
    "main": {},
    "direct": {"draft.format": "direct"},
    "knowledge": {"draft.format": "knowledge"},
    "cot": {"draft.format": "chain_of_thought"},
    "rlwf": {"pairs.signal": "draft", "pairs.rule": "ordered"},
    "positives": {"align.objective": "positives"},
    "outcome": {"pairs.signal": "outcome", "pairs.rule": "ordered"},
    "better": {"pairs.signal": "better"},
    "weighted": {"align.weight": "margin"},
    "kto": {"align.objective": "kto"},
    "rejection": {"align.objective": "rejection"},
    "grpo": {"align.objective": "grpo", "rounds.most": 1},
}
"""The settings that a variant has in place of the recipe's."""


def _single(which: Which, format_: Format | None = None, shots: bool = False) -> Callable[[Parts], System]:
    """The weak model alone, asked for a draft in some format (None: the recipe's)."""

    def build(p: Parts) -> System:
        ask: Ask = p.own.draft if format_ is None else p.frames(format_).draft
        ask = p.with_examples(ask) if shots else ask
        return SingleCall(p.weak(which), ask, p.draft, p.name, window=p.weak_window)

    return build


def _strong(ask: Callable[[Parts], Ask]) -> Callable[[Parts], System]:
    return lambda p: SingleCall(p.strong, ask(p), p.answer, p.name, window=p.strong_window)


def _collaboration(which: Which, frames: Callable[[Parts], Frames] = lambda p: p.own) -> Callable[[Parts], System]:
    return lambda p: Collaboration(
        p.weak(which), p.strong, frames(p), p.draft, p.answer, p.name, p.weak_window, p.strong_window
    )


def _retrieval(kind: Index) -> Callable[[Parts], System]:
    return lambda p: Retrieval(
        p.strong, p.retriever(kind), p.own.solo, p.answer, p.settings.passages, p.name, window=p.strong_window
    )


def _weak_votes(p: Parts) -> System:
    n, labels = p.settings.samples, p.task.labels
    return SelfConsistency(
        p.weak("sft"), p.own.draft, p.task.extract, p.sampled, n, p.seed, p.name, labels, p.weak_window
    )


def _strong_votes(p: Parts) -> System:
    sampling = p.answer.model_copy(update={"temperature": p.settings.temperature})
    n, labels = p.settings.samples, p.task.labels
    return SelfConsistency(p.strong, p.own.solo, p.task.extract, sampling, n, p.seed, p.name, labels, p.strong_window)


def _self_refine(p: Parts) -> System:
    return SelfRefine(p.strong, p.own.solo, p.baseline.self_refine, p.answer, p.name, window=p.strong_window)


def _flare(p: Parts) -> System:
    s, found = p.settings, p.retriever("bm25")
    return Flare(
        p.strong,
        found,
        p.own.solo,
        p.answer,
        s.passages,
        s.flare_threshold,
        s.flare_rounds,
        p.name,
        window=p.strong_window,
    )


def _self_rag(p: Parts) -> System:
    found, passages = p.retriever("bm25"), p.settings.passages
    return SelfRag(p.strong, found, p.own.solo, p.baseline, p.answer, passages, p.name, window=p.strong_window)


def _supericl(p: Parts) -> System:
    """The examples show what the tuned model predicted on them, right or wrong: its drafts are there already."""
    drafted, shots = p.drafted(), list[tuple[Sequence[Message], str]]()
    for example in p.shots(among=drafted):
        label = p.task.extract(drafted[example.id], example)
        if label is not None:
            shots.append((p.baseline.predicted(example, label, None), p.task.target(example)))

    def ask(example: Example, label: str, confidence: float | None) -> Sequence[Message]:
        return with_shots(lambda e: p.baseline.predicted(e, label, confidence), shots)(example)

    weak, extract = p.weak("sft"), p.task.extract
    return SuperIcl(
        weak, p.strong, p.own.draft, ask, extract, p.draft, p.answer, p.name, p.strong_window, p.weak_window
    )


def _best_of_k(p: Parts) -> System:
    weak, k = p.weak("sft"), p.settings.samples
    return BestOfK(
        weak, p.strong, p.own, p.baseline.choose, p.sampled, p.answer, k, p.seed, p.name, p.strong_window, p.weak_window
    )


WEAK: Final = SystemSpec(
    "weak", "the tuned weak model alone", _single("sft"), "sft", uses="weak", live=True,
    label="weak (SFT) alone", spoken="the weak model alone", aliases=("weak_sft",),
)  # fmt: skip
WEAK_ALIGNED: Final = SystemSpec(
    "weak_aligned", "the aligned weak model alone", _single("aligned"), "align", uses="weak", live=True,
)  # fmt: skip
STRONG: Final = SystemSpec(
    "strong", "the strong model alone, asked to reason (the paper's strong row)", _strong(lambda p: p.own.solo), live=True,
    label="strong alone", spoken="the strong model alone", aliases=("strong_cot",),
)  # fmt: skip
STRONG_REASONS: Final = SystemSpec(
    "strong_reasons", "the strong model alone, asked to reason even where prompts.reasons is off",
    _strong(lambda p: p.baseline.chain_of_thought),
)  # fmt: skip
COLLAB: Final = SystemSpec(
    "collab", "collaboration, drafts in the recipe's format", _collaboration("sft"), "sft", uses="both", live=True,
    label="collaboration, SFT weak", spoken="collaboration with the SFT weak model",
)  # fmt: skip
COLLAB_ALIGNED: Final = SystemSpec(
    "collab_aligned", "the same after alignment: CoWest", _collaboration("aligned"), "align", uses="both", live=True,
    label="collaboration, aligned weak", spoken="collaboration with the aligned weak model",
)  # fmt: skip


def _in_format(format_: str, about: str, aligned: str = "the same after alignment") -> tuple[SystemSpec, SystemSpec]:
    """The collaboration with drafts in one format, which is also the variant's name, before and after alignment."""
    name = f"collab_{format_}"
    return (
        SystemSpec(name, about, _collaboration("sft"), "sft", format_, uses="both", live=True),
        SystemSpec(f"{name}_aligned", aligned, _collaboration("aligned"), "align", format_, uses="both", live=True),
    )


TABLE: tuple[SystemSpec, ...] = (
    SystemSpec("weak_zero_shot", "the weak model as it is, asked for the answer alone", _single("base", "direct"), uses="weak"),
    SystemSpec("weak_few_shot", "the same with in-context examples", _single("base", shots=True), uses="weak"),
    SystemSpec("weak_cot", "the weak model as it is, asked to reason", _single("base", "chain_of_thought"), uses="weak"),
    WEAK,
    SystemSpec("weak_self_consistency", "its sampled answers, by majority", _weak_votes, "sft", uses="weak"),
    SystemSpec("strong_zero_shot", "the strong model, asked for the answer alone", _strong(lambda p: p.baseline.zero_shot)),
    SystemSpec("strong_few_shot", "with in-context examples", _strong(lambda p: p.with_examples(p.own.solo))),
    STRONG,
    SystemSpec("strong_self_consistency", "its sampled answers, by majority", _strong_votes),
    SystemSpec("strong_self_refine", "it criticises and mends its own answer: two calls", _self_refine),
    SystemSpec("bm25", "the strong model with training texts found by BM25", _retrieval("bm25"), retrieves="bm25"),
    SystemSpec("dense", "the same, found by a dense encoder", _retrieval("dense"), retrieves="dense"),
    SystemSpec("flare", "FLARE: looks up what it is unsure of", _flare, retrieves="bm25"),
    SystemSpec("self_rag", "Self-RAG's judgements, prompted", _self_rag, retrieves="bm25"),
    SystemSpec("supericl", "SuperICL: the tuned weak model's label beside in-context examples", _supericl, "sample", uses="both"),
    SystemSpec("rlwf", "RLWF: the weak model tuned on scores of its drafts alone, answering alone",
               _single("aligned"), "align", "rlwf", uses="weak", live=True),
    SystemSpec("sft_positives", "collaboration with a weak model tuned on the chosen drafts only",
               _collaboration("aligned"), "align", "positives", uses="both", live=True),
    SystemSpec("best_of_k", "the strong model picks one of K drafts and refines it", _best_of_k, "sft", uses="both"),
    *_in_format("direct", "collaboration, drafts are bare answers"),
    *_in_format("knowledge", "collaboration, drafts are knowledge"),
    *_in_format("cot", "collaboration, drafts are chains of thought", "the same after alignment: CoWest"),
)  # fmt: skip
"""The rows of the paper's table, in its order."""


def _taught(variant: str, about: str) -> SystemSpec:
    """The collaboration with a weak model that is aligned in this variant."""
    return SystemSpec(f"collab_{variant}", about, _collaboration("aligned"), "align", variant, uses="both", live=True)


TAUGHT: tuple[SystemSpec, ...] = (
    _taught("outcome", "aligned on the score of the refined answer, in place of the gain"),
    _taught("better", "aligned on what the refined answer has more than the better of both alone"),
    _taught("weighted", "aligned on pairs that count by their margin"),
    _taught("kto", "aligned by KTO on single drafts, without pairs"),
    _taught("rejection", "tuned on the best draft of each query: rejection sampling"),
    _taught("grpo", "aligned by GRPO on drafts that it draws while it trains"),
)
"""Other signals and objectives than the paper's, for the tables that name them."""

GUARDED: Final = SystemSpec(
    "guarded", "weak alone, strong alone or both, by `cowest guard`: the best that it certifies", build_guarded, "guard",
    uses="both", label="guarded", spoken="the guarded collaboration",
)  # fmt: skip
CASCADE: Final = SystemSpec(
    "cascade", "the same, with the fewest strong calls that it certifies at that quality", build_guarded, "guard",
    uses="both", label="cascade", spoken="the cascade",
)  # fmt: skip

STRONG_GEPA: Final = SystemSpec(
    "strong_gepa", "the strong model alone, its prompt optimised by GEPA on training queries",
    _strong(lambda p: p.optimised().solo), optimises="solo",
)  # fmt: skip
COLLAB_GEPA: Final = SystemSpec(
    "collab_gepa", "collaboration with the tuned weak model, the refine prompt optimised by GEPA",
    _collaboration("sft", lambda p: p.optimised()), "sft", uses="both", optimises="refine",
)  # fmt: skip
COLLAB_GEPA_ALIGNED: Final = SystemSpec(
    "collab_gepa_aligned", "the same with the aligned weak model",
    _collaboration("aligned", lambda p: p.optimised()), "align", uses="both", optimises="refine",
)  # fmt: skip
OPTIMISED: tuple[SystemSpec, ...] = (STRONG_GEPA, COLLAB_GEPA, COLLAB_GEPA_ALIGNED)
"""Beside prompt optimisation (docs/prompt-optimisation.md)."""

SYSTEMS: tuple[SystemSpec, ...] = (
    WEAK,
    STRONG,
    COLLAB,
    COLLAB_ALIGNED,
    WEAK_ALIGNED,
    STRONG_REASONS,
    *(s for s in TABLE if s not in (WEAK, STRONG)),
    *TAUGHT,
    *INTERACTIONS,
    GUARDED,
    CASCADE,
    *OPTIMISED,
)
"""All that ship with cowest, those of ``cowest run`` first."""

_ALIASES: Mapping[str, str] = {alias: spec.name for spec in SYSTEMS for alias in spec.aliases}
_REGISTRY: Registry[SystemSpec] = Registry(
    "system",
    "cowest.systems",
    {spec.name: spec for spec in SYSTEMS},
    ("name", "about", "build", "needs", "variant", "uses"),
)


def current_name(name: str) -> str:
    """Today's name of a system that an older file calls by another."""
    return _ALIASES.get(name, name)


def every_system() -> tuple[SystemSpec, ...]:
    """All that ship with cowest, then those of installed packages. Raises ConfigError for one that cannot be loaded."""
    return find_systems(_REGISTRY.names(), "entry points")


def find_systems(
    names: Iterable[str], where: str, variants: Mapping[str, Mapping[str, JsonValue]] = MappingProxyType({})
) -> tuple[SystemSpec, ...]:
    """The systems with these names, old ones among them; ``NAME@VARIANT`` is one with settings from ``variants``.

    Raises ConfigError for an unknown one, or one that is named twice.
    """
    found: dict[str, SystemSpec] = {}
    for name in map(current_name, names):
        base, at, variant = name.partition("@")
        spec = _REGISTRY.find(base, where)
        if spec.name != base:
            raise ConfigError(f"{where}: the system {base!r} calls itself {spec.name!r}; both names have to be one")
        if at:
            spec = _varied(spec, variant, variants, where)
        if name in found:
            raise ConfigError(f"{where}: {name} is named twice")
        found[name] = spec
    return tuple(found.values())


def _varied(spec: SystemSpec, variant: str, variants: Mapping[str, Mapping[str, JsonValue]], where: str) -> SystemSpec:
    name = f"{spec.name}@{variant}"
    if variant not in variants:
        there = ", ".join(variants) or "none"
        raise ConfigError(f"{where}: {name}: table.variants has no {variant!r}; there are: {there}")
    if spec.variant != "main":
        raise ConfigError(
            f"{where}: {name}: {spec.name} has settings of its own already: {dict(VARIANTS[spec.variant])}"
        )
    about = f"{spec.about}; {variant}"
    return replace(spec, name=name, about=about, variant=variant, label=about, spoken="", aliases=())


def variant_of(config: RunConfig, spec: SystemSpec) -> tuple[str, RunConfig]:
    """The variant of a single-task recipe in which a system's weak model is made; ``main`` where it changes nothing.

    Raises ConfigError for a variant that there is not.
    """
    there = {**VARIANTS, **config.comparison.variants}
    if spec.variant not in there:
        raise ConfigError(f"{spec.name}: there is no variant {spec.variant!r}; there are: {', '.join(there)}")
    settings = there[spec.variant]
    if not settings:
        return "main", config
    if "draft.format" in settings:
        settings = {**settings, "draft.formats": []}  # in that one alone
    changed = with_settings(config, settings)
    same = (
        changed.model_dump() == config.model_dump()
    )  # which fields were given, and which are defaults, does not matter
    return ("main", config) if same else (spec.variant, changed)


def _named(config: RunConfig) -> Sequence[str]:
    """The recipe's systems; where it names none of its own, with those for which the weak model is trained."""
    systems, turn = config.evaluate.systems, config.draft.turn
    if turn == "draft" or systems != EvaluateConfig().systems:
        return systems
    return (*systems, TURN_ROWS[turn], f"{TURN_ROWS[turn]}_aligned")


def possible(config: RunConfig, specs: Sequence[SystemSpec]) -> tuple[tuple[SystemSpec, ...], dict[str, str]]:
    """Those that a recipe can have, and why not the others."""
    left_out = {spec.name: why for spec in specs if (why := _impossible(config, spec))}
    return tuple(spec for spec in specs if spec.name not in left_out), left_out


_LAB_ASKS: Final = ("collab_consult", "collab_consult_aligned")


NO_LAB_INSTRUCTION: Final = (
    "a lab world's tiny models know no instruction, so that there is nothing to optimise; take another kind of task, or give "
    "prompts.draft, solo and refine with {instruction} for models that do"
)


def lab_frames(config: RunConfig) -> bool:
    """Whether a single-task recipe's models are asked as the lab's are: a lab world, and no frames of the recipe's own."""
    plain = config.prompts.model_copy(update={"interactions": type(config.prompts.interactions)()})
    return isinstance(config.task, LabTaskConfig) and plain == type(config.prompts)()


def no_lab_turns(config: RunConfig, spec: SystemSpec) -> str | None:
    """Why the models of a single-task lab recipe cannot follow an interaction; None where they can, as where others are asked.

    One interaction is known, by one shipped model; a model that is served may be that one too.
    """
    if not spec.interacts or not lab_frames(config):
        return None
    name = config.strong.model if isinstance(config.strong, LocalModelConfig) else ""
    asks = spec.name.partition("@")[0] in _LAB_ASKS and (not name.startswith("lab:") or name == "lab:strong-asks")
    return None if asks and isinstance(config.task, LabTaskConfig) and config.task.domain == "lineage" else NO_LAB_TURNS


TURN_ROWS: Final[Mapping[str, str]] = {
    "draft": "collab",
    "revise": "collab_critique",
    "advise": "collab_advise",
    "reply": "collab_consult",
}
"""The row that has the weak model's turn of ``draft.turn``; with ``_aligned`` after it, that of the model trained for it."""


def trained_row(config: RunConfig) -> SystemSpec:
    """The system for which a recipe trains its weak model, and by which checkpoints are chosen."""
    return find_systems([f"{TURN_ROWS[config.draft.turn]}_aligned"], "draft.turn")[0]


def _impossible(config: RunConfig, spec: SystemSpec) -> str | None:
    if any(no_lab_turns(single, spec) for single in config.by_task().values()):
        return NO_LAB_TURNS
    if spec.optimises and any(map(lab_frames, config.by_task().values())):
        return NO_LAB_INSTRUCTION
    if spec.specialists and not config.comparison.specialists:
        return "table.specialists names no weak model beside the recipe's"
    if (why := _not_for_a_turn(config, spec)) is not None:
        return why
    if spec.needs != "align":
        return None
    if not config.weak.trainable:
        return f"it trains the weak model, which is served elsewhere (weak.kind: {config.weak.kind})"
    if variant_of(config, spec)[1].align.objective == "off":
        return "align.objective is off: the weak model is not aligned"
    return None


def _not_for_a_turn(config: RunConfig, spec: SystemSpec) -> str | None:
    changed = variant_of(config, spec)[1] if spec.needs in ("sample", "align") else config
    if changed.draft.turn == "draft":
        return None
    if spec.needs == "sample":
        return f"it shows drafts of training queries, and draft.turn: {changed.draft.turn} draws none"
    if changed.pairs.signal == "draft" and spec.variant in VARIANTS and spec.variant != "main":
        return f"it trains by the draft's own score, and with draft.turn: {changed.draft.turn} there is no draft"
    return None


def evaluated(config: RunConfig) -> tuple[tuple[SystemSpec, ...], dict[str, str]]:
    """The systems that ``cowest run`` evaluates, and why it cannot have the others that the recipe names.

    Raises ConfigError where one is unknown, needs a weak model that this recipe does not make, or none is left.
    """
    named = find_systems(_named(config), "evaluate.systems")
    for spec in named:
        variant, _ = variant_of(config, spec)
        if variant != "main":
            settings = ", ".join(f"{key}: {value}" for key, value in VARIANTS[variant].items())
            raise ConfigError(
                f"evaluate.systems: {spec.name} has a weak model of its own ({settings}), which `cowest table` trains; put it "
                "into table.rows, or these settings into the recipe"
            )
    kept, left_out = possible(config, named)
    if not kept:
        raise ConfigError("evaluate.systems: none is left: " + "; ".join(f"{n}: {why}" for n, why in left_out.items()))
    return kept, left_out
