"""The calls of a search for a prompt: each is on disk before the search goes on, and is made once."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cowest.assembly.context import Context
from cowest.assembly.systems import build_system, reworded
from cowest.collaboration.calls import CallFailed, Tally
from cowest.errors import StageError
from cowest.models.turns import told
from cowest.protocols import ChatModel, Scorer, System
from cowest.run.identity import derive_seed, fingerprint
from cowest.run.store import JsonlFile
from cowest.stages.base import ABOUT_THE_QUERY
from cowest.systems.spec import SystemSpec, Which
from cowest.training.prompt_search import NoCallsLeft, Rolled, StopSearch
from cowest.types import Completion, Example, Message, Prediction, Record, Sampling, Usage

_SKIPPED: Final = ABOUT_THE_QUERY | {"too_long"}
"""Failures that say something of the query or the prompt: the answer is worth 0, and the search goes on."""
T = TypeVar("T")


class Trial(Record):
    """A call of a search: an answer to ``example_id`` with the instruction ``prompt`` (its hash), or a reflection ('')."""

    key: str
    prompt: str
    example_id: str = ""
    text: str | None
    draft: str | None = None
    score: float | None = None
    truncated: bool = False
    usage: Usage = Usage()
    error: str | None = None


def trials_file(system: str) -> str:
    """Where the calls of a search are."""
    return f"gepa/{system}.jsonl"


def _no_weak(which: Which) -> ChatModel:
    raise AssertionError("no weak model is asked")


@dataclass(frozen=True, slots=True)
class Drafting:
    """The weak model, which drafts once for each query, whatever the strong model is told."""

    inner: ChatModel
    made: dict[str, asyncio.Future[Completion]]

    @property
    def name(self) -> str:
        return self.inner.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The draft; its usage is told once."""
        key = draft_key(messages, sampling)
        if key in self.made:
            return (await asyncio.shield(self.made[key])).model_copy(update={"usage": Usage()})
        self.made[key] = asyncio.ensure_future(self.inner.generate(messages, sampling))
        return await asyncio.shield(self.made[key])

    async def aclose(self) -> None:
        """The stage closes the model."""


@dataclass(slots=True)
class Asked:
    """The search's calls (:class:`cowest.training.prompt_search.Answers`), made on the event loop, asked for from its thread.

    ``most`` is how many there may be; ``kept`` are those that are there, by key. Calls count when the search asks for them, so that
    one that is made again decides as it did before.
    """

    context: Context
    spec: SystemSpec
    most: int
    weak: Callable[[Which], ChatModel] = _no_weak
    failure: Exception | None = None
    kept: dict[str, Trial] = field(init=False)
    _file: JsonlFile[Trial] = field(init=False)
    _used: dict[str, None] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _reflections: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _running: concurrent.futures.Future[Any] | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        self._file = self.context.run.file(trials_file(self.spec.name), Trial)
        self.kept = {trial.key: trial for trial in self._file.load()}

    @property
    def asked(self) -> int:
        """Different calls so far."""
        return len(self._used)

    def trials(self) -> list[Trial]:
        """Them, in the order in which they were asked for."""
        return [self.kept[key] for key in self._used if key in self.kept]

    def answer(self, instruction: str, examples: Sequence[Example]) -> Sequence[Rolled]:
        """See Answers; blocks, from the search's thread."""
        prompt = fingerprint(instruction, length=12)
        self._take([_key(prompt, example) for example in examples])
        return self._wait(self._answered(instruction, prompt, examples))

    def reflect(self, prompt: str) -> str:
        """See Answers; blocks, from the search's thread."""
        self._reflections += 1
        key = f"reflection {self._reflections} {fingerprint(prompt, length=12)}"
        self._take([key])
        return self._wait(self._reflected(key, prompt))

    def stop(self) -> None:
        """Let the thread end, with what it waits for."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()

    async def aclose(self) -> None:
        """Ask for nothing more; calls under way are the ledger's."""
        self.stop()
        await _ended(self._tasks)
        self._file.close()

    def _take(self, keys: Sequence[str]) -> None:
        new = dict.fromkeys(key for key in keys if key not in self._used)
        if len(self._used) + len(new) > self.most:
            raise NoCallsLeft
        self._used |= new
        if new:
            self._loop.call_soon_threadsafe(self.context.reporter.advance, len(new))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise StopSearch
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running = running
        try:
            return running.result()
        except concurrent.futures.CancelledError:
            raise StopSearch from None
        except Exception as error:  # the search would log it and go on: it is raised where the stage waits
            self.failure = error
            raise StopSearch from None

    async def _answered(self, instruction: str, prompt: str, examples: Sequence[Example]) -> Sequence[Rolled]:
        missing = {_key(prompt, e): e for e in examples if _key(prompt, e) not in self.kept}
        if missing:
            system = self._system(instruction)
            scorer = self.context.metric_scorer()
            self._tasks = {
                asyncio.ensure_future(self._roll(key, prompt, system, scorer, e)) for key, e in missing.items()
            }
            try:
                await asyncio.gather(*self._tasks)
            except BaseException:
                await _ended(self._tasks)
                raise
        return [self._rolled(e, self.kept[_key(prompt, e)]) for e in examples]

    def _system(self, instruction: str) -> System:
        frames = reworded(self.context, instruction)
        return build_system(
            self.context,
            self.spec,
            self.context.models.strong,
            self.weak,
            optimised=lambda: frames,
            name=self.spec.name,
        )

    async def _roll(self, key: str, prompt: str, system: System, scorer: Scorer, example: Example) -> None:
        made: Prediction = await system.answer(example)
        kind = (made.error or "").split(":")[0]
        if made.error is not None and kind not in _SKIPPED:
            raise StageError(f"gepa {self.spec.name}: a call failed; run again to continue: {made.error}", kind)
        score = await scorer.score(example, made.text) if made.text is not None else None
        value = 0.0 if score is None or score.value is None else score.value
        if not 0 <= value <= 1:
            raise StageError(
                f"gepa {self.spec.name}: {self.context.metric} gives {value:g}, and prompts are optimised by scores from 0 to 1"
            )
        self._keep(
            Trial(
                key=key,
                prompt=prompt,
                example_id=example.id,
                text=made.text,
                draft=made.draft,
                score=value,
                truncated=made.truncated,
                usage=made.usage,
                error=made.error,
            )
        )

    async def _reflected(self, key: str, prompt: str) -> str:
        if key not in self.kept:
            settings, tally, text, error = self.context.config.comparison.gepa, Tally(), None, None
            seed = derive_seed(self.context.config.seed, "gepa", self.spec.name, key)
            sampling = settings.sampling.model_copy(update={"seed": seed})
            model = self.context.models.reflects()
            try:
                text = (await tally.ask(model, [Message(role="user", content=prompt)], sampling)).text
            except CallFailed as failed:
                error = str(failed)
                if error.split(":")[0] not in {*_SKIPPED, "cut_off"}:
                    raise StageError(
                        f"gepa {self.spec.name}: a reflection failed; run again to continue: {error}"
                    ) from None
            self._keep(Trial(key=key, prompt=key, text=text, usage=tally.usage, error=error))
        return self.kept[key].text or ""

    def _keep(self, trial: Trial) -> None:
        self._file.append(trial)  # on disk before it counts
        self.kept[trial.key] = trial

    def _rolled(self, example: Example, trial: Trial) -> Rolled:
        return Rolled(
            trial.score or 0.0,
            _inputs(self.context.for_strong(example), trial.draft),
            trial.text if trial.text is not None else "(no answer)",
            _verdict(self.context, example, trial),
        )


def draft_key(messages: Sequence[Message], sampling: Sampling) -> str:
    """Equal for requests of the same draft."""
    return fingerprint([m.model_dump(mode="json") for m in messages], sampling.model_dump(mode="json"))


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _key(prompt: str, example: Example) -> str:
    return f"{prompt} {example.id}"


def _inputs(example: Example, draft: str | None) -> Mapping[str, str]:
    """What the strong model got beside its instruction."""
    parts = {
        "Conversation before the question": told(example.turns),
        "Context": example.context or "",
        "Draft of a colleague, right or wrong": draft or "",
        "Question": example.input,
        "Choices": "; ".join(example.choices),
    }
    return {name: text for name, text in parts.items() if text}


def _verdict(context: Context, example: Example, trial: Trial) -> str:
    """What is told of an answer."""
    right, score = " / ".join(example.references), trial.score or 0.0
    if score >= 1:
        return "Right."
    if trial.text is None:
        return f"There was no answer. The right one: {right}"
    read = context.task.extract(trial.text, example)
    if read is None:
        cut = f"It was cut off after {context.config.evaluate.answer.max_tokens} tokens. " if trial.truncated else ""
        return (
            f"{cut}No answer could be read out of it: it is not marked as the instructions say. The right one: {right}"
        )
    return f"Wrong (score {score:.2f} of 1): the answer was read as '{read}'. The right one: {right}"
