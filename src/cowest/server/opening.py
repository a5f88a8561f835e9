"""The served models of a finished run, or of a recipe whose models need no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from cowest.assembly.build import build_frames, build_task
from cowest.assembly.context import Context
from cowest.assembly.opened import OpenModels, ledger_path, sources_of
from cowest.assembly.row_systems import Retrievers, build_system
from cowest.assembly.rows import Row, Which, find_rows, variant_of
from cowest.collaboration.routes import BOTH
from cowest.errors import ConfigError
from cowest.models.address import secrets_of
from cowest.protocols import ChatModel, Frames, Route, Task
from cowest.recipe.config import OpenAIModelConfig, RunConfig, load_config, with_settings
from cowest.recipe.kept import kept_recipe
from cowest.run.progress import QuietReporter
from cowest.run.store import RunDir
from cowest.run.weights import Weights, located
from cowest.server.breaker import Breaker
from cowest.server.chat_backend import ChatBackend
from cowest.server.drafter import Drafter, as_drafts
from cowest.server.gateway import About, Alone, Served
from cowest.server.room import answer_tokens, room_of
from cowest.server.row_model import HandedOver, RowModel
from cowest.server.settings import Settings
from cowest.server.upstream import Backend, HttpBackend
from cowest.stages.learn import Selection
from cowest.types import ModelRef

ALWAYS: Final = ("collab", "weak", "strong")


@dataclass(slots=True)
class Opened:
    """Served models by id, and what is behind them. ``settings`` has the strong model's concurrency.

    ``run`` is the recipe's name and ``ledger`` the file where a run of it enters its calls.
    """

    settings: Settings
    run: str
    ledger: Path
    served: dict[str, Served] = field(default_factory=dict)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    models: list[ChatModel | Backend] = field(default_factory=list)

    async def aclose(self) -> None:
        """Close every model."""
        for model in self.models:
            await model.aclose()


def open_served(
    path: Path,
    settings: Settings,
    attempted: Callable[[str], None] = lambda outcome: None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tokens: int | None = None,
    route: Route = BOTH,
) -> Opened:
    """Open a run directory or a recipe; ``only`` names the systems to serve (all, unless given).

    ``tokens`` limits answers whose length a client leaves open (unset: as :func:`answer_tokens` says); ``route`` decides for the
    collaborations who answers.

    Raises ConfigError where the run is not finished or a key is missing, and ModelNotFoundError.
    """
    config = kept_recipe(path) if path.is_dir() else load_config(path, overrides)
    limit = answer_tokens(config, tokens, written_out=path.is_dir())
    offer = Offer(limit, tokens or config.evaluate.draft.max_tokens, _made(path), route)
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


@dataclass(frozen=True, slots=True)
class Offer:
    """What holds for every id: ``tokens`` of an open answer of the strong model (None: its own limit) and of the weak one alone."""

    tokens: int | None
    weak_tokens: int
    created: int
    route: Route


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
        self._sources = sources_of(config)
        self._weak: dict[ModelRef, ChatModel] = {}
        self._strong_chat: ChatModel | None = None
        self._retrievers = Retrievers()
        self._strong = self._open_strong(attempted)
        opened.models.append(self._strong)

    def open(self, config: RunConfig, name: str, only: Sequence[str]) -> None:
        """Serve one task's systems."""
        task = build_task(config, name)
        frames = build_frames(config, task)
        known = dict.fromkeys((*ALWAYS, *config.systems))
        rows = find_rows([s for s in only if s not in known], "--systems") if set(only) - set(known) else ()
        systems: list[str] = [system for system in known if not only or system in only]
        if self._run is None:
            systems = [system for system in systems if system != "collab_aligned"]
        if not systems and not rows:
            raise ConfigError(f"--systems: this recipe has {', '.join(known)}")
        prefix = f"{config.name}.{name}" if name else config.name
        for system in systems:
            id_ = f"{prefix}.{system}"
            self._opened.served[id_] = self._served(id_, prefix, system, config, name, frames)
        for row in rows:
            id_ = f"{prefix}.{row.name}"
            self._opened.served[id_] = self._row(id_, prefix, row, config, task, name)
        systems += [row.name for row in rows]
        best = next((s for s in ("collab_aligned", "collab", *systems) if s in systems), systems[0])
        whole = replace(self._opened.served[f"{prefix}.{best}"], id=prefix)
        self._opened.served = {prefix: whole, **self._opened.served}

    def _served(self, id_: str, prefix: str, system: str, config: RunConfig, name: str, frames: Frames) -> Served:
        settings, breakers, offer = self._opened.settings, self._opened.breakers, self._offer
        if system == "strong":
            return Served(id_, frames, self._strong, task=name, about=About(system, offer.created, offer.tokens))
        weak, draft = self._weak_model(self._ref(system, config, name)), config.evaluate.draft
        alone = ChatBackend(weak, draft.model_copy(update={"max_tokens": offer.weak_tokens}), breakers["weak"])
        if system == "weak":
            about = About(system, offer.created, offer.weak_tokens)
            return Served(id_, frames, alone, "weak_alone", task=name, about=about)
        drafter = Drafter(
            weak, draft, breakers["weak"], deadline_s=settings.draft_deadline_s, max_chars=settings.max_draft_chars
        )
        return Served(
            id_,
            frames,
            self._strong,
            drafter=drafter,
            weak_id=f"{prefix}.weak",
            strong_id=f"{prefix}.strong",
            task=name,
            weak=alone,
            route=offer.route,
            about=About(system, offer.created, offer.tokens, draft.max_tokens),
        )

    def _row(self, id_: str, prefix: str, row: Row, config: RunConfig, task: Task, name: str) -> Served:
        """A row of ``cowest table``, made of this run's models."""
        variant, _ = variant_of(config, row)
        if variant != "main":
            raise ConfigError(
                f"--systems: {row.name} has a weak model of its own ({variant}), which `cowest table` trains and this run has not"
            )
        run, frames = self._run or Path("runs") / config.name, build_frames(config, task)
        context = Context(
            label="",
            config=config,
            task=task,
            frames=frames,
            run=RunDir(run / name),
            reporter=QuietReporter(),
            models=OpenModels(config, run),  # not used: the server's own models are handed over
        )

        def weak(which: Which) -> ChatModel:
            return as_drafts(self._weak_model(ref_of(which)))

        def ref_of(which: Which) -> ModelRef:
            if which == "base":
                return self._sources.weak.base()
            return self._ref("collab_aligned" if which == "aligned" else "collab", config, name)

        system = build_system(context, row, self._strong_model, weak, lambda kind: self._retrievers.of(kind, context))
        side: Literal["weak", "strong"] = "weak" if row.uses == "weak" else "strong"
        sampling = config.evaluate.draft if side == "weak" else config.evaluate.answer
        return Served(
            id_,
            HandedOver(),
            ChatBackend(RowModel(system), sampling, self._opened.breakers[side]),
            "both" if row.uses == "both" else "weak_alone" if side == "weak" else "strong_alone",
            strong_id=f"{prefix}.strong",
            task=name,
            strong=Alone(self._strong, frames) if row.uses == "both" else None,
            about=About(row.name, self._offer.created, sampling.max_tokens),
        )

    def _strong_model(self) -> ChatModel:
        """The strong model as the rows call it: beside the server's own connections, within the recipe's limits."""
        if self._strong_chat is None:
            self._strong_chat = self._sources.strong.open()
            self._opened.models.append(self._strong_chat)
        return self._strong_chat

    def _ref(self, system: str, config: RunConfig, name: str) -> ModelRef:
        """Which weak model a system has."""
        if self._run is None or not self._sources.weak.trainable:
            return self._sources.weak.base()
        needed = self._run / name / ("align/selection.json" if system == "collab_aligned" else "sft/model_ref.json")
        if not needed.exists():
            raise ConfigError(
                f"{needed} is not there: the run is not finished. `cowest run` with its recipe continues it; "
                "--systems serves those systems only that are there."
            )
        text = needed.read_bytes()
        weights = (
            Selection.model_validate_json(text).model
            if system == "collab_aligned"
            else Weights.model_validate_json(text)
        )
        return located(RunDir(self._run / name), weights, {config.weak.model: self._sources.weak.base().base})

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
                self._sources.strong.open(), answer, breaker, settings.max_output_tokens if tokens is None else None
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
