"""The models of a run, opened on first use. Those that are paid for have the ledger before them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from cowest.assembly.known import check_ledger_is_there
from cowest.assembly.objects import NOTHING, Objects
from cowest.assembly.sources import Source, source_of
from cowest.engines.servers import Servers
from cowest.errors import ConfigError
from cowest.ledger.ledger import Ledger, LedgerSummary, Limits
from cowest.ledger.prices import FREE
from cowest.models.ledgered import LedgeredChatModel
from cowest.protocols import ChatModel, Reporter
from cowest.recipe.config import RunConfig
from cowest.recipe.kept import kept_recipe
from cowest.run.identity import fingerprint, hash_model
from cowest.run.progress import QuietReporter
from cowest.types import ModelRef

AT_RISK = 1.5
"""Calls that a kill can lose, as a multiple of the concurrency: those under way, and half as many answers that are not entered
yet, so that the endpoint is kept busy while the ledger writes. At 1.0 a call of 50 ms waits for its disk; 2.0 is no faster."""


def most_at_risk(concurrency: int) -> int:
    """How many calls may be under way, or answered and not yet entered."""
    return math.ceil(AT_RISK * concurrency)


def ledger_path(config: RunConfig, out: Path) -> Path:
    """Where a run's paid calls are entered."""
    return config.ledger or out / "ledger.sqlite"


def ledger_of(out: Path) -> tuple[Path, str | None]:
    """The ledger of a run directory and the run's name in it; ``out`` may be a ledger file, of all its runs.

    Raises ConfigError where there is neither, or a run that pays for nothing.
    """
    if out.is_file():
        return out, None
    if not (out / "recipe.yaml").exists() and (out / "ledger.sqlite").exists():
        return out / "ledger.sqlite", None  # a table that was stopped: its recipe is kept at the end
    config = kept_recipe(out)
    path = ledger_path(config, out)
    if not path.exists() and not any(source.paid for _, source in sources_of(config)):
        raise ConfigError(
            f"{out}: both models of this run are on this machine, so nothing was paid for and there is no ledger"
        )
    if not path.exists():
        raise ConfigError(f"{path}: not there yet; `cowest run` enters the first paid call in it")
    return path, config.name


@dataclass(frozen=True, slots=True)
class Sources:
    """The models of a recipe as they are before they are opened, by what they do; iterated with their sections' names."""

    weak: Source
    strong: Source
    judge: Source | None
    compare: tuple[Source, ...] = ()
    specialists: Mapping[str, Source] = field(default_factory=dict)
    reflects: Source | None = None

    def __iter__(self) -> Iterator[tuple[str, Source]]:
        """Those that there are."""
        yield "weak", self.weak
        yield "strong", self.strong
        if self.judge is not None:
            yield "feedback.judge", self.judge
        for n, source in enumerate(self.compare):
            yield f"feedback.compare.{n}", source
        for name, source in self.specialists.items():
            yield f"table.specialists.{name}", source
        if self.reflects is not None:
            yield "table.gepa.model", self.reflects


def sources_of(config: RunConfig, objects: Objects = NOTHING, servers: Servers | None = None) -> Sources:
    """The sources of a recipe's models; ``objects`` are what a script has handed over, ``servers`` those of the run."""
    judge, compare, reflects = config.feedback.judge, config.feedback.compare, config.comparison.gepa.model
    return Sources(
        source_of(config.weak, config.folder, objects.weak, servers, "weak"),
        source_of(config.strong, config.folder, objects.strong, servers, "strong"),
        None if judge is None else source_of(judge, config.folder, objects.judge, servers, "judge"),
        tuple(
            source_of(model, config.folder, given, servers, f"judge {n}")
            for n, (model, given) in enumerate(zip(compare, objects.compare or [None] * len(compare), strict=True), 1)
        ),
        {
            name: source_of(model, config.folder, None, servers, f"specialist {name}")
            for name, model in config.comparison.specialists.items()
        },
        None if reflects is None else source_of(reflects, config.folder, None, servers, "reflects"),
    )


class OpenModels:
    """One object a run: its domains share the strong model's connections and rate limits, the ledger and the budget.

    ``answers`` is a file that remembers what local models answered, as the ledger does for paid ones: for tables, whose rows
    share many requests. Engines that are servers (``vllm``, ``llamacpp``) are started by the first request, tell of it through
    ``reporter``, and have their logs in ``out/engines``.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        answers: Path | None = None,
        objects: Objects = NOTHING,
        reporter: Reporter | None = None,
    ) -> None:
        self._config, self._out, self._path, self._answers_path = config, out, ledger_path(config, out), answers
        self._servers = Servers(out / "engines", reporter or QuietReporter())
        self.sources = sources_of(config, objects, self._servers)
        self._ledger: Ledger | None = None
        self._answers: Ledger | None = None
        self._strong: dict[str, ChatModel] = {}
        self._judge: ChatModel | None = None
        self._compare: dict[int, ChatModel] = {}
        self._specialists: dict[str, ChatModel] = {}
        self._reflects: ChatModel | None = None
        self._served: ChatModel | None = None

    def weak(self, ref: ModelRef) -> ChatModel:
        """The weak model at some point of its training, or the served one; the caller closes it."""
        source = self.sources.weak
        if source.trainable:
            return self._open(source, "live", ref)
        if self._served is None:
            self._served = self._open(source, "live")  # may be closed, and opens again when it is asked
        return self._served

    def strong(self, mode: Literal["live", "batch"] = "live") -> ChatModel:
        """The strong model; with ``batch`` its calls go through the provider's batch API."""
        if mode not in self._strong:
            self._strong[mode] = self._open(self.sources.strong, mode)
        return self._strong[mode]

    def judge(self) -> ChatModel:
        """The model that scores answers. Raises ConfigError where the recipe names none."""
        if self.sources.judge is None:
            raise ConfigError("feedback.judge: this recipe names no judge")
        if self._judge is None:
            self._judge = self._open(self.sources.judge, self._config.feedback.mode)
        return self._judge

    def compare(self) -> list[ChatModel]:
        """The models that compare answers, in the recipe's order; none where it names none. Never in batches."""
        for n, source in enumerate(self.sources.compare):
            if n not in self._compare:
                self._compare[n] = self._open(source, "live")
        return [self._compare[n] for n in range(len(self.sources.compare))]

    def specialists(self) -> Mapping[str, ChatModel]:
        """The weak models beside the recipe's own, by name; they stay open until all are closed."""
        for name, source in self.sources.specialists.items():
            if name not in self._specialists:
                self._specialists[name] = self._open(source, "live")
        return dict(self._specialists)

    def reflects(self) -> ChatModel:
        """The model that proposes prompts: ``table.gepa.model``, or else the strong one."""
        if self.sources.reflects is None:
            return self.strong()
        if self._reflects is None:
            self._reflects = self._open(self.sources.reflects, "live")
        return self._reflects

    def new_step(self) -> None:
        """A stage, or a row, begins: engines that it does not ask give way to those that it does."""
        self._servers.new_step()

    async def end_engines(self) -> None:
        """End the servers that are up, before a training: it needs the memory. The next request starts them again."""
        await self._servers.end_all()

    def bill(self) -> LedgerSummary | None:
        """What this run has paid for in all; None when it opened no model that is paid for."""
        return None if self._ledger is None else self._ledger.summary(self._config.name)

    async def aclose(self) -> None:
        """Wait for the calls under way, which are paid for, and enter them; then close everything. May be called twice."""
        opened = [*self._strong.values(), *self._compare.values(), *self._specialists.values()]
        opened += [model for model in (self._judge, self._served, self._reflects) if model is not None]
        self._strong, self._compare, self._specialists = {}, {}, {}
        self._judge = self._served = self._reflects = None
        try:
            # All at once: none of them begins anything new while another waits for its last calls.
            for ended in await asyncio.gather(*(model.aclose() for model in opened), return_exceptions=True):
                if isinstance(ended, BaseException):
                    raise ended
        finally:
            await self._servers.end_all()
            ledgers = [ledger for ledger in (self._ledger, self._answers) if ledger is not None]
            self._ledger = self._answers = None
            for ledger in ledgers:
                ledger.close()

    def _open(self, source: Source, mode: Literal["live", "batch"], ref: ModelRef | None = None) -> ChatModel:
        if source.paid:
            return self._paid(source, mode)
        model = source.open(ref)
        if self._answers_path is None or not source.trainable:
            return model
        return self._remembered(model, source, ref or source.base())

    def _remembered(self, model: ChatModel, source: Source, ref: ModelRef) -> ChatModel:
        """A local model with ``answers`` before it, known by its weights: checkpoints of one name are different models."""
        assert self._answers_path is not None
        if self._answers is None:
            self._answers = Ledger(self._answers_path, self._config.name)
        adapter = None if ref.adapter is None else hash_model(ref.adapter)
        known = source.identity("model").values
        identity: list[JsonValue] = [hash_model(ref.base), adapter, known.get("model.dtype")]
        if known.get("model.engine", "process") != "process":
            identity += [value for name, value in sorted(known.items()) if name.startswith("model.engine")]
        return LedgeredChatModel(model, self._answers, model=f"{model.name}@{fingerprint(identity)}", price=FREE)

    def _paid(self, source: Source, mode: Literal["live", "batch"]) -> ChatModel:
        ledger, price = self._open_ledger(), source.price if mode == "live" else source.batch_price
        inner = source.open(budget=ledger.budget(price)) if mode == "live" else source.open_batch(ledger)
        return LedgeredChatModel(
            inner,
            ledger,
            model=source.name,
            cache=self._config.cache,
            price=price,
            extra=source.extra,
            at_risk=most_at_risk(source.concurrency) if mode == "live" else None,
        )

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            c = self._config
            if c.cache == "read":  # else it asks again, and says so
                check_ledger_is_there(self._out, self._path, self.sources.weak.paid, self.sources.strong.paid)
            limits = Limits(usd=c.budget_usd, calls=c.budget_calls, tokens=c.budget_tokens)
            self._ledger = Ledger(self._path, c.name, limits)
        return self._ledger


def check_prices(config: RunConfig) -> None:
    """Raise ConfigError for a budget in USD that could not be kept, as a model's price is unknown."""
    for where, source in sources_of(config):
        if config.budget_usd is not None and source.paid and source.price is None:
            raise ConfigError(
                f"budget_usd: no price is known for {source.name!r}, so a budget in USD cannot be kept; give "
                f"{where}.price: {{input: ..., output: ...}} (USD for a million tokens), or budget_calls or budget_tokens"
            )
