"""The served models of a finished run, or of a recipe whose models need no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cowest.assembly.build import build_frames, build_task
from cowest.assembly.context import Context
from cowest.assembly.opened import OpenModels, ledger_path
from cowest.assembly.places import model_path
from cowest.assembly.row_systems import Retrievers, build_system
from cowest.assembly.rows import Row, Which, find_rows, variant_of
from cowest.assembly.sources import LocalSource, api_key, build_model
from cowest.errors import ConfigError
from cowest.protocols import ChatModel, Frames, Task
from cowest.recipe.config import LocalModelConfig, OpenAIModelConfig, RunConfig, load_config
from cowest.recipe.kept import kept_recipe
from cowest.run.progress import QuietReporter
from cowest.run.store import RunDir
from cowest.run.weights import Weights, located
from cowest.server.breaker import Breaker
from cowest.server.chat_backend import ChatBackend
from cowest.server.drafter import Drafter
from cowest.server.gateway import Served
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
) -> Opened:
    """Open a run directory or a recipe; ``only`` names the systems to serve (all, unless given).

    Raises ConfigError where the run is not finished or a key is missing, and ModelNotFoundError.
    """
    config = kept_recipe(path) if path.is_dir() else load_config(path, overrides)
    settings = replace(settings, concurrency=_concurrency(config))
    opened = Opened(settings, config.name, ledger_path(config, path if path.is_dir() else Path("runs") / config.name))
    for side in ("weak", "strong"):
        opened.breakers[side] = Breaker(side, settings.breaker_failures, settings.breaker_cooldown_s)
    opener = _Opener(config, path if path.is_dir() else None, opened, attempted)
    for name, single in config.by_task().items():
        opener.open(single, name, only)
    return opened


def _concurrency(config: RunConfig) -> int:
    if isinstance(config.strong, OpenAIModelConfig):
        return config.strong.concurrency
    return config.strong.batch_size if isinstance(config.strong, LocalModelConfig) else 64


class _Opener:
    """Opens each model once, however many ids it is behind."""

    def __init__(self, config: RunConfig, run: Path | None, opened: Opened, attempted: Callable[[str], None]) -> None:
        self._config, self._run, self._opened = config, run, opened
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
        prefix = f"{config.name}/{name}" if name else config.name
        for system in systems:
            id_ = f"{prefix}/{system}"
            self._opened.served[id_] = self._served(id_, prefix, system, config, name, frames)
        for row in rows:
            id_ = f"{prefix}/{row.name}"
            self._opened.served[id_] = self._row(id_, row, config, task, name)
        systems += [row.name for row in rows]
        best = next((s for s in ("collab_aligned", "collab", *systems) if s in systems), systems[0])
        whole = replace(self._opened.served[f"{prefix}/{best}"], id=prefix)
        self._opened.served = {prefix: whole, **self._opened.served}

    def _served(self, id_: str, prefix: str, system: str, config: RunConfig, name: str, frames: Frames) -> Served:
        settings, breakers = self._opened.settings, self._opened.breakers
        if system == "strong":
            return Served(id_, frames, self._strong, task=name)
        weak = self._weak_model(self._ref(system, config, name))
        if system == "weak":
            alone = ChatBackend(weak, config.evaluate.draft, breakers["weak"])
            return Served(id_, frames, alone, "weak_alone", task=name)
        drafter = Drafter(
            weak,
            config.evaluate.draft,
            breakers["weak"],
            deadline_s=settings.draft_deadline_s,
            max_chars=settings.max_draft_chars,
        )
        return Served(
            id_,
            frames,
            self._strong,
            drafter=drafter,
            weak_id=f"{prefix}/weak",
            strong_id=f"{prefix}/strong",
            task=name,
        )

    def _row(self, id_: str, row: Row, config: RunConfig, task: Task, name: str) -> Served:
        """A row of ``cowest table``, made of this run's models."""
        variant, _ = variant_of(config, row)
        if variant != "main":
            raise ConfigError(
                f"--systems: {row.name} has a weak model of its own ({variant}), which `cowest table` trains and this run has not"
            )
        run = self._run or Path("runs") / config.name
        context = Context(
            label="",
            config=config,
            task=task,
            frames=build_frames(config, task),
            run=RunDir(run / name),
            reporter=QuietReporter(),
            models=OpenModels(config, run),  # not used: the server's own models are handed over
        )

        def weak(which: Which) -> ChatModel:
            if which == "base" and isinstance(config.weak, LocalModelConfig):
                return self._weak_model(ModelRef(base=model_path(config.weak.model), adapter=config.weak.adapter))
            return self._weak_model(self._ref("collab_aligned" if which == "aligned" else "collab", config, name))

        system = build_system(context, row, self._strong_model, weak, lambda kind: self._retrievers.of(kind, context))
        backend = ChatBackend(RowModel(system), config.evaluate.answer, self._opened.breakers["strong"])
        return Served(id_, HandedOver(), backend, task=name)

    def _strong_model(self) -> ChatModel:
        """The strong model as the rows call it: beside the server's own connections, within the recipe's limits."""
        if self._strong_chat is None:
            self._strong_chat = build_model(self._config.strong, self._config.folder)
            self._opened.models.append(self._strong_chat)
        return self._strong_chat

    def _ref(self, system: str, config: RunConfig, name: str) -> ModelRef:
        """Which weak model a system has."""
        weak = config.weak
        if not isinstance(weak, LocalModelConfig):
            return ModelRef(base=weak.model)
        if self._run is None:
            return ModelRef(base=model_path(weak.model), adapter=weak.adapter)
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
        return located(RunDir(self._run / name), weights, {weak.model: model_path(weak.model)})

    def _weak_model(self, ref: ModelRef) -> ChatModel:
        if ref not in self._weak:
            weak = self._config.weak
            model = (
                LocalSource(weak).open(ref)
                if isinstance(weak, LocalModelConfig)
                else build_model(weak, self._config.folder)
            )
            self._weak[ref] = model
            self._opened.models.append(model)
        return self._weak[ref]

    def _open_strong(self, attempted: Callable[[str], None]) -> Backend:
        strong, settings, breaker = self._config.strong, self._opened.settings, self._opened.breakers["strong"]
        answer = self._config.evaluate.answer
        if isinstance(strong, OpenAIModelConfig):
            key = api_key(strong, self._config.folder)
            return HttpBackend(strong, key, answer, breaker, backoff_s=settings.backoff_s, attempted=attempted)
        return ChatBackend(build_model(strong), answer, breaker)
