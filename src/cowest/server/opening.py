"""The served models of a finished run, or of a recipe whose models need no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from cowest.assembly.build import build_frames, build_task
from cowest.assembly.context import Context
from cowest.assembly.documents import Documents
from cowest.assembly.opened import OpenModels, ledger_path, sources_of
from cowest.assembly.prepare import prepare
from cowest.assembly.systems import Retrievers, build_system, guard_of
from cowest.collaboration.routes import BOTH
from cowest.engines.servers import Servers
from cowest.errors import ConfigError
from cowest.models.address import secrets_of
from cowest.pipeline import require_guarded, require_optimised, require_trained
from cowest.protocols import ChatModel, Route, StreamingSystem
from cowest.recipe.config import LabTaskConfig, OpenAIModelConfig, RunConfig, load_config, with_settings
from cowest.recipe.kept import kept_recipe
from cowest.run.progress import LineReporter, QuietReporter
from cowest.run.store import RunDir
from cowest.server.breaker import Breaker
from cowest.server.chat_backend import ChatBackend
from cowest.server.drafter import Drafter, as_drafts
from cowest.server.gateway import About, Alone, Served
from cowest.server.guarding import Guarding
from cowest.server.room import answer_tokens, room_of
from cowest.server.row_model import HandedOver, RowModel, StreamedRow
from cowest.server.settings import Settings
from cowest.server.upstream import Backend, HttpBackend
from cowest.stages.evaluate import weak_ref
from cowest.stages.loop import selection
from cowest.systems.collaboration import Collaboration
from cowest.systems.guarded import Guarded
from cowest.systems.optimised import optimised_in
from cowest.systems.registry import COLLAB, STRONG, WEAK, evaluated, find_systems, possible, trained_row, variant_of
from cowest.systems.single import SingleCall
from cowest.systems.spec import SystemSpec, Which
from cowest.types import Example, ModelRef, Sampling

MADE_UP: Final = 4
"""Questions on the page where the task is a lab's: made up, and nobody's."""
ALWAYS: Final = (COLLAB, WEAK, STRONG)


@dataclass(slots=True)
class Opened:
    """Served models by id, and what is behind them. ``settings`` has the strong model's concurrency.

    ``run`` is the recipe's name and ``ledger`` the file where a run of it enters its calls; ``engines`` are servers of ours.
    """

    settings: Settings
    run: str
    ledger: Path
    served: dict[str, Served] = field(default_factory=dict)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    models: list[ChatModel | Backend] = field(default_factory=list)
    engines: Servers | None = None
    guarding: dict[str, Guarding] = field(default_factory=dict)

    async def aclose(self) -> None:
        """Close every model, and end the engines that were started for them."""
        for model in self.models:
            await model.aclose()
        if self.engines is not None:
            await self.engines.end_all()


def open_served(
    path: Path,
    settings: Settings,
    attempted: Callable[[str], None] = lambda outcome: None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tokens: int | None = None,
    route: Route = BOTH,
    examples: int | None = None,
) -> Opened:
    """Open a run directory or a recipe; ``only`` names the systems to serve (all, unless given).

    ``tokens`` limits answers whose length a client leaves open (unset: as :func:`answer_tokens` says); ``route`` decides for the
    collaborations who answers. ``examples`` test questions are offered on the page (unset: :data:`MADE_UP` of a lab task's).

    Raises ConfigError where the run is not finished or a key is missing, and ModelNotFoundError.
    """
    config = kept_recipe(path) if path.is_dir() else load_config(path, overrides)
    if path.is_dir():
        _check_current(config, path, find_systems(only, "--systems"))
    limit = answer_tokens(config, tokens, written_out=path.is_dir())
    offer = Offer(limit, tokens or config.evaluate.draft.max_tokens, _made(path), route, examples)
    if tokens is not None:
        config = with_settings(config, {"evaluate.answer.max_tokens": tokens})
    settings = replace(settings, concurrency=sources_of(config).strong.concurrency)
    opened = Opened(settings, config.name, ledger_path(config, path if path.is_dir() else Path("runs") / config.name))
    for side in ("weak", "strong"):
        opened.breakers[side] = Breaker(side, settings.breaker_failures, settings.breaker_cooldown_s)
    opener = _Opener(config, path if path.is_dir() else None, opened, attempted, offer)
    for name, single in config.by_task().items():
        opener.open(single, name, only)
    return opened


def _check_current(config: RunConfig, run: Path, named: Sequence[SystemSpec]) -> None:
    """Raise StageError where what would be served was made with something else than the run's recipe says.

    That is the weights, and for the systems that are ``named`` the guard and the prompts. Raises ConfigError where there is none.
    """
    for context in prepare(config, run, QuietReporter(), offline=True):
        require_trained(context)
        if any(spec.needs == "guard" for spec in named):
            guard_of(context)
            require_guarded(context)
        for spec in (spec for spec in named if spec.optimises):
            optimised_in(context.run.path, spec.name)
            require_optimised(context, spec)


@dataclass(frozen=True, slots=True)
class Offer:
    """What holds for every id: ``tokens`` of an open answer of the strong model (None: its own limit) and of the weak one alone."""

    tokens: int | None
    weak_tokens: int
    created: int
    route: Route
    examples: int | None

    def shown(self, context: Context) -> tuple[Example, ...]:
        """The test questions for the page. Those of a user's data are shown where the operator says so only."""
        made_up = isinstance(context.config.task, LabTaskConfig)
        most = self.examples if self.examples is not None else MADE_UP if made_up else 0
        if most == 0:
            return ()
        return tuple(islice((e for e in context.task.examples("test") if not e.turns), most))


def _made(path: Path) -> int:
    """Unix time at which a run was finished, or a recipe written: when the newest of its results was."""
    results = [path / "results.json", *path.glob("*/results.json")] if path.is_dir() else []
    written = [file.stat().st_mtime for file in (*results, path / "recipe.yaml") if file.exists()]
    return int(max(written, default=path.stat().st_mtime))


class _Opener:
    """Opens each model once, however many ids it is behind."""

    def __init__(
        self,
        config: RunConfig,
        run: Path | None,
        opened: Opened,
        attempted: Callable[[str], None],
        offer: Offer,
    ) -> None:
        self._config, self._run, self._opened, self._offer = config, run, opened, offer
        folder = run if run is not None else Path("runs") / config.name
        opened.engines = Servers(folder / "engines", LineReporter(), lasting=True)
        self._sources = sources_of(config, servers=opened.engines)
        self._weak: dict[ModelRef, ChatModel] = {}
        self._strong_chat: ChatModel | None = None
        self._strong = self._open_strong(attempted)
        opened.models.append(self._strong)

    def open(self, config: RunConfig, name: str, only: Sequence[str]) -> None:
        """Serve one task's systems."""
        context, retrievers = self._context(config, name), Retrievers()
        specs = find_systems(only, "--systems") if only else self._by_default(context)
        _, impossible = possible(config, specs)
        impossible |= {spec.name: why for spec in specs if (why := self._not_there(context, spec))}
        for system, why in impossible.items():
            raise ConfigError(f"--systems: {system} is not possible here: {why}")
        prefix = f"{config.name}.{name}" if name else config.name
        served = {f"{prefix}.{spec.name}": self._served(prefix, spec, context, name, retrievers) for spec in specs}
        if config.task is not None and config.task.documents is not None:
            found = Documents.of(config.task)
            found.looked_up(
                Example(id="", input="ready?", references=("",))
            )  # the index is made now, and not in a first request
            served = {id_: replace(one, lookup=found.looked_up) for id_, one in served.items()}
        if shown := self._offer.shown(context):
            served = {id_: replace(one, about=replace(one.about, examples=shown)) for id_, one in served.items()}
        trained = trained_row(config).name
        best = min(specs, key=lambda spec: _rank(spec, trained))  # the first of equals
        self._opened.served |= {prefix: replace(served[f"{prefix}.{best.name}"], id=prefix)} | served

    def _by_default(self, context: Context) -> Sequence[SystemSpec]:
        """What each recipe has, and what its run evaluated, as far as it can be streamed; the rest is served where it is named."""
        trained = trained_row(context.config)
        named = (spec for spec in evaluated(context.config)[0] if spec.live or spec.name == trained.name)
        specs = dict.fromkeys((*ALWAYS, *named))
        there = [spec for spec in specs if self._run is not None or spec.needs != "align"]
        return [spec for spec in there if self._not_there(context, spec) is None]

    def _not_there(self, context: Context, spec: SystemSpec) -> str | None:
        """Why a finished run has no such system; None where it has, or is not finished (which its weights' absence tells)."""
        if self._run is None or spec.needs != "align" or not context.path("align/selection.json").exists():
            return None
        return selection(context).skipped

    def _context(self, config: RunConfig, name: str) -> Context:
        task, run = build_task(config, name), self._run or Path("runs") / config.name
        return Context(
            name="",
            config=config,
            task=task,
            frames=build_frames(config, task),
            run=RunDir(run / name),
            reporter=QuietReporter(),
            models=OpenModels(config, run),  # not used: the server's own models are handed over
        )

    def _served(self, prefix: str, spec: SystemSpec, context: Context, name: str, retrievers: Retrievers) -> Served:
        """A system behind its id: streamed where it is no more than frames put to the models, else as a whole."""
        if spec.specialists:
            raise ConfigError(
                f"--systems: {spec.name} asks models beside the pair (table.specialists), which are not served"
            )
        variant, _ = variant_of(context.config, spec)
        if variant != "main":
            raise ConfigError(
                f"--systems: {spec.name} has a weak model of its own ({variant}), which `cowest table` trains and this run has not"
            )

        def weak(which: Which) -> ChatModel:
            model = self._weak_model(self._ref(context, which))
            return model if spec.live else as_drafts(model)

        id_, offer = f"{prefix}.{spec.name}", self._offer
        system = build_system(context, spec, self._strong_model, weak, lambda kind: retrievers.of(kind, context))
        if spec.live and isinstance(system, Collaboration):
            return self._collaboration(id_, prefix, spec, system, name)
        if spec.live and isinstance(system, SingleCall) and spec.uses == "weak":
            about = About(spec.name, offer.created, offer.weak_tokens)
            alone = self._alone(system.model, system.sampling)
            return Served(id_, context.frames, alone, "weak_alone", task=name, about=about)
        if spec.live and isinstance(system, SingleCall):
            about = About(spec.name, offer.created, offer.tokens)
            return Served(id_, context.frames, self._strong, task=name, about=about)
        guarding: Guarding | None = None
        if isinstance(system, Guarded):
            guarding = self._opened.guarding[id_] = Guarding(system.guard, id_)
            falls_back = self._opened.settings.strong_down == "weak"
            system = replace(system, falls_back=falls_back, seen=guarding.see)
        side: Literal["weak", "strong"] = "weak" if spec.uses == "weak" else "strong"
        row = StreamedRow(system) if isinstance(system, StreamingSystem) else RowModel(system)
        sampling = context.config.evaluate.draft if side == "weak" else context.config.evaluate.answer
        return Served(
            id_,
            HandedOver(),
            ChatBackend(row, sampling, self._opened.breakers[side]),
            "both" if spec.uses == "both" else "weak_alone" if side == "weak" else "strong_alone",
            strong_id=f"{prefix}.{STRONG.name}",
            task=name,
            strong=Alone(self._strong, context.frames) if spec.uses == "both" else None,
            about=About(spec.name, offer.created, sampling.max_tokens),
            weak_id=f"{prefix}.{WEAK.name}" if guarding is not None else "",
            beyond=row.take,
            promise=guarding.promise if guarding is not None else None,
        )

    def _collaboration(self, id_: str, prefix: str, spec: SystemSpec, system: Collaboration, name: str) -> Served:
        settings, offer, draft = self._opened.settings, self._offer, system.draft_sampling
        return Served(
            id_,
            system.frames,
            self._strong,
            drafter=Drafter(
                system.weak,
                draft,
                self._opened.breakers["weak"],
                deadline_s=settings.draft_deadline_s,
                max_chars=settings.max_draft_chars,
            ),
            weak_id=f"{prefix}.{WEAK.name}",
            strong_id=f"{prefix}.{STRONG.name}",
            task=name,
            weak=self._alone(system.weak, draft),
            route=offer.route,
            about=About(spec.name, offer.created, offer.tokens, draft.max_tokens),
        )

    def _alone(self, weak: ChatModel, draft: Sampling) -> Backend:
        """The weak model answering alone, whose answer may be longer than a draft."""
        sampling = draft.model_copy(update={"max_tokens": self._offer.weak_tokens})
        return ChatBackend(weak, sampling, self._opened.breakers["weak"])

    def _strong_model(self) -> ChatModel:
        """The strong model as the rows call it: beside the server's own connections, within the recipe's limits."""
        if self._strong_chat is None:
            self._strong_chat = self._sources.strong.open()
            self._opened.models.append(self._strong_chat)
        return self._strong_chat

    def _ref(self, context: Context, which: Which) -> ModelRef:
        """Which weak model a system has: the run's, or without a run the recipe's as it is."""
        if self._run is None:
            if which == "aligned":
                raise ConfigError("--systems: an aligned weak model is made by `cowest run`; serve its run directory")
            return context.weak.base()
        try:
            return weak_ref(context, which)
        except FileNotFoundError as error:
            raise ConfigError(
                f"{error.filename} is not there: the run is not finished. `cowest run` with its recipe continues it; "
                "--systems serves those systems only that are there."
            ) from None

    def _weak_model(self, ref: ModelRef) -> ChatModel:
        if ref not in self._weak:
            self._weak[ref] = self._sources.weak.open(ref)
            self._opened.models.append(self._weak[ref])
        return self._weak[ref]

    def _open_strong(self, attempted: Callable[[str], None]) -> Backend:
        strong, settings, breaker = self._config.strong, self._opened.settings, self._opened.breakers["strong"]
        answer, tokens = self._config.evaluate.answer, self._offer.tokens
        if not isinstance(strong, OpenAIModelConfig):
            return ChatBackend(
                self._strong_model(), answer, breaker, settings.max_output_tokens if tokens is None else None
            )
        return HttpBackend(
            strong,
            secrets_of(strong, self._config.folder),
            answer,
            breaker,
            backoff_s=settings.backoff_s,
            attempted=attempted,
            own_limit=tokens is None,
            room=room_of(self._sources.strong.window(0), tokens),
        )


def _rank(spec: SystemSpec, trained: str) -> int:
    """What the recipe's bare name stands for: the guard where it is served, else collaboration, and best an aligned one.

    ``trained``: the system for which the recipe trains, which is another than that where it says ``draft.turn``.
    """
    if spec.needs == "guard":
        return -2
    if spec.name == trained:
        return -1
    if not (spec.live and spec.uses == "both"):
        return 2
    return 0 if spec.needs == "align" else 1
