"""READ FIRST: the stages in order, and the loop that runs them.

    sft -> sample -> feedback -> pairs -> align -> evaluate -> report

(a weak model that is served elsewhere is not trained: sample -> feedback -> pairs -> evaluate -> report)

A stage runs when its outputs are missing, unfinished or stale; otherwise it is reused, and the reason is said either way. An
unfinished stage continues record by record. Several domains are run one after the other, each in its own folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import yaml
from pydantic import JsonValue

from cowest.assembly.build import api_key, build_frames, build_task, model_path, openai_models
from cowest.assembly.context import Context
from cowest.assembly.opened import OpenModels, check_prices, ledger_path
from cowest.errors import ConfigError, DataError, MissingExtraError, WiringError
from cowest.ledger.ledger import LedgerSummary, purpose
from cowest.protocols import Reporter
from cowest.recipe.config import LocalModelConfig, OpenAIModelConfig, RunConfig, load_config
from cowest.run.processes import Job, run_jobs
from cowest.run.progress import QuietReporter
from cowest.run.store import RunDir, StageEntry, fingerprint, write_atomic
from cowest.scoring.scorer import MetricScorer
from cowest.stages.base import Stage
from cowest.stages.evaluate import EVALUATE
from cowest.stages.feedback import FEEDBACK, PAIRS, SAMPLE
from cowest.stages.learn import ALIGN, SFT, Selection
from cowest.stages.reporting import read_results, write_report
from cowest.tasks.base import notes_of
from cowest.types import ModelRef, Results

STAGES: tuple[Stage, ...] = (SFT, SAMPLE, FEEDBACK, PAIRS, ALIGN, EVALUATE)
STAGES_OF_A_SERVED_WEAK_MODEL = (replace(SAMPLE, reads=()), FEEDBACK, PAIRS, replace(EVALUATE, reads=()))
"""Nothing is trained here; the pairs are for whoever has the weights."""


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages that a recipe asks for."""
    return STAGES if isinstance(config.weak, LocalModelConfig) else STAGES_OF_A_SERVED_WEAK_MODEL


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Where a run's outputs are, its results by task ('' is the only task of a recipe), and what it has paid for."""

    out: Path
    report: Path
    results: Mapping[str, Results]
    bill: LedgerSummary | None = None


def check_wiring(stages: Sequence[Stage] = STAGES) -> None:
    """Raise WiringError when a stage would read what no earlier stage writes."""
    written: dict[str, str] = {}
    for stage in stages:
        for name in stage.reads:
            if name not in written:
                raise WiringError(
                    f"stage {stage.name!r} reads {name!r}, which no earlier stage writes ({', '.join(written)})"
                )
        for name in stage.writes:
            if name in written:
                raise WiringError(f"stages {written[name]!r} and {stage.name!r} both write {name!r}")
            written[name] = stage.name


def prepare(config: RunConfig, out: Path, reporter: Reporter, offline: bool = False) -> list[Context]:
    """One context per task, with everything checked that can be checked before a model is loaded or a call is paid.

    ``offline`` is for reading a finished run: neither models nor keys need to be there any more.
    """
    check_wiring(stages_of(config))
    if not offline:
        config = _with_models(config)
    if config.draft.samples < 2:
        raise ConfigError("draft.samples: alignment compares drafts of one query, so it needs at least 2")

    models, contexts = OpenModels(config, out), []
    for name, single in config.by_task().items():
        task = build_task(single, name)
        for note in notes_of(task):
            reporter.info(f"{name or task.name}: {note}")
        _check_held_out(single, len(task.examples("train")))
        _check_splits(task.name, {s: len(task.examples(s)) for s in ("train", "validation", "test")})
        MetricScorer(task, single.feedback.metric or task.metrics[0])  # raises for a metric that cannot score one query
        contexts.append(
            Context(
                label=f"{name}: " if name else "",
                config=single,
                task=task,
                frames=build_frames(single, task),
                run=RunDir(out / name if name else out),
                reporter=reporter,
                models=models,
            )
        )
    return contexts


def _with_models(config: RunConfig) -> RunConfig:
    """The recipe with model names resolved to what is there; keys and prices are looked for."""
    update: dict[str, object] = {}
    if isinstance(config.weak, LocalModelConfig):
        update["weak"] = config.weak.model_copy(update={"model": model_path(config.weak.model)})
    if isinstance(config.strong, LocalModelConfig):
        update["strong"] = config.strong.model_copy(update={"model": model_path(config.strong.model)})
    for where, model in openai_models(config):
        api_key(model, config.folder, where)
    if config.feedback.mode == "batch" and not isinstance(config.strong, OpenAIModelConfig):
        raise ConfigError("feedback.mode: batch is for an endpoint (strong.kind: openai) with a batch API")
    check_prices(config)
    return config.model_copy(update=update)


def _check_held_out(config: RunConfig, train: int) -> None:
    if config.draft.held_out and (config.draft.queries is None or config.draft.queries >= train):
        raise ConfigError(
            f"draft.held_out: set draft.queries to how many of the {train} training questions SFT shall not see (fewer than all)"
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
    if isinstance(config.weak, LocalModelConfig):
        needed["train"] = ["torch", "transformers", "peft", "trl", "datasets"]
    elif isinstance(config.strong, LocalModelConfig):
        needed["local"] = ["torch", "transformers", "peft"]
    needed["plots"] = ["matplotlib"]
    missing = {extra: [name for name in names if not find_spec(name)] for extra, names in needed.items()}
    if any(missing.values()):
        names = dict.fromkeys(name for found in missing.values() for name in found)
        extras = [extra for extra, found in missing.items() if found]
        raise MissingExtraError(f"a run needs {', '.join(names)}: pip install 'cowest[{','.join(extras)}]'")


def run_side_by_side(
    config: RunConfig, recipe: Path, overrides: Sequence[str], out: Path, jobs: int, reporter: Reporter
) -> None:
    """Run the stages of a recipe's domains in processes of their own, ``jobs`` at a time; :func:`run` then finds them done."""
    check_installed(config)
    prepare(config, out, reporter)
    sets = [word for override in overrides for word in ("--set", override)]
    runs = [
        Job(name, ("run", str(recipe), "--out", str(out), "--only", name, *sets), out / name / "run.log")
        for name in config.tasks
    ]
    run_jobs(runs, jobs, reporter, echo=True)


async def run_only(config: RunConfig, name: str, out: Path, reporter: Reporter) -> None:
    """Run the stages of one domain of a recipe, without summary and report."""
    if name not in config.tasks:
        raise ConfigError(f"--only {name!r}: the recipe's domains are {', '.join(config.tasks) or 'not named'}")
    single = config.model_copy(update={"tasks": {name: config.tasks[name]}})
    context = prepare(single, out, reporter)[0]
    try:
        with context.run.locked():
            await run_stages(context)
    finally:
        await context.models.aclose()


async def run(config: RunConfig, out: Path, reporter: Reporter) -> RunSummary:
    """Run or continue a recipe in ``out``.

    Raises ConfigError, DataError, ModelNotFoundError (before anything is paid) and StageError (a stage could not do its work).
    """
    check_installed(config)
    contexts = prepare(config, out, reporter)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "recipe.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    models = contexts[0].models
    try:
        for context in contexts:
            with context.run.locked():
                await run_stages(context)
        bill = models.bill()
    finally:
        await models.aclose()
    return replace(await finish(config, contexts, out), bill=bill)


async def run_stages(context: Context, stages: Sequence[Stage] | None = None, pool: Sequence[RunDir] = ()) -> None:
    """Run one task's stages in order, reusing what is fresh, or what another run directory of ``pool`` has made."""
    fingerprints: dict[str, str] = {}
    for stage in stages_of(context.config) if stages is None else stages:
        purpose.set(f"{context.label}{stage.name}")  # every paid call is entered with what it was for
        inputs = {name: fingerprints[name] for name in stage.reads}
        depends = fingerprint(stage.depends(context))
        mine = fingerprint(stage.name, stage.version, depends, dict(inputs))
        before = context.run.manifest().stages.get(stage.name)
        verdict = _verdict(context, stage, before, mine, inputs)
        if not verdict.startswith("reused"):
            donor = _donor(pool, stage, mine)
            if donor is not None:
                context.run.adopt(donor, stage.name, stage.writes)
                before, verdict = context.run.manifest().stages[stage.name], f"reused from {donor.path.name}"
        context.reporter.info(f"{context.label}{stage.name}: {verdict}")
        if before is not None and verdict.startswith("reused"):
            fingerprints |= dict.fromkeys(stage.writes, mine)
            continue
        continuing = before is not None and before.fingerprint == mine
        if not continuing:
            context.run.remove(stage.writes)
        earlier = before.seconds if before is not None and continuing else 0.0
        entry = await _execute(
            context, stage, StageEntry(fingerprint=mine, status="running", inputs=inputs, seconds=earlier)
        )
        # A retry can only mend failed records: outputs with another number of them are other outputs to the stages after.
        failed = _failed_calls(entry)
        fingerprints |= dict.fromkeys(stage.writes, fingerprint(mine, failed) if failed else mine)


async def _execute(context: Context, stage: Stage, entry: StageEntry) -> StageEntry:
    """Run a stage, with its state in the manifest before, after, and when it is stopped."""
    context.run.record(stage.name, entry)
    began = time.monotonic()
    try:
        counts = await stage.execute(context)
    except BaseException:
        spent = entry.seconds + time.monotonic() - began
        context.run.record(stage.name, entry.model_copy(update={"seconds": spent}))
        raise
    seconds = round(entry.seconds + time.monotonic() - began, 2)
    done = entry.model_copy(update={"status": "done", "counts": dict(counts), "seconds": seconds})
    context.run.record(stage.name, done)
    told = ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in sorted(counts.items()) if n)
    context.reporter.info(f"{context.label}{stage.name}: done in {seconds:.0f} s ({told})")
    return done


def _donor(pool: Sequence[RunDir], stage: Stage, mine: str) -> RunDir | None:
    """A run directory in which this very stage is finished, without a failed call."""
    for run in pool:
        entry = run.manifest().stages.get(stage.name)
        if entry is not None and entry.fingerprint == mine and entry.status == "done" and not _failed_calls(entry):
            return run
    return None


def _failed_calls(entry: StageEntry) -> int:
    return sum(n for key, n in entry.counts.items() if key.endswith("failed"))


def _verdict(context: Context, stage: Stage, before: StageEntry | None, mine: str, inputs: Mapping[str, str]) -> str:
    """Why a stage is run, or that it is reused."""
    if before is None:
        return "run"
    if before.fingerprint != mine:
        changed = [name for name, value in inputs.items() if before.inputs.get(name) != value]
        because = f"{', '.join(changed)} changed" if changed else "its settings, data or model changed"
        return f"run again, because {because}"
    if before.status == "running":
        return "continued where it stopped"
    missing = [name for name in stage.writes if not context.path(name).exists()]
    if missing:
        return f"run again, because {', '.join(missing)} is missing"
    failed = _failed_calls(before)
    if failed:
        return f"continued, to retry {failed} failed calls"
    return f"reused ({before.seconds:.0f} s saved)"


async def finish(config: RunConfig, contexts: Sequence[Context], out: Path) -> RunSummary:
    """Write ``summary.json`` (several tasks) and the report."""
    results = {c.run.path.name if config.tasks else "": read_results(c.path("results.json")) for c in contexts}
    if config.tasks:
        write_atomic(out / "summary.json", json.dumps(summary_json(config.name, results), indent=2) + "\n")
    notes = ["These are tiny models on synthetic domains: they show the mechanism, not the paper's benchmarks."]
    report = await write_report(config, contexts, out, notes if any(c.task.name in _LAB for c in contexts) else [])
    return RunSummary(out=out, report=report, results=results)


_LAB = ("counterfactuals", "medicine", "ethics")


def summary_json(name: str, results: Mapping[str, Results]) -> dict[str, JsonValue]:
    """``summary.json``: each task's metrics by system; the whole of it is in TASK/results.json."""
    tasks: dict[str, JsonValue] = {
        task: {
            "results": f"{task}/results.json",
            "systems": {s: {m: v.mean for m, v in r.metrics.items()} for s, r in found.systems.items()},
        }
        for task, found in results.items()
    }
    return {"schema": 1, "name": name, "tasks": tasks}


async def report_again(out: Path) -> RunSummary:
    """Rebuild the report of a finished run from its files alone. Raises ConfigError where ``out`` is no run."""
    config = run_dir_config(out)
    return await finish(config, prepare(config, out, QuietReporter(), offline=True), out)


def export_weak(out: Path, which: str, target: Path) -> ModelRef:
    """Merge the SFT (``sft``) or chosen aligned (``aligned``) weak model of a task's run into one checkpoint."""
    from cowest.training.merge import merge

    file = {"sft": "sft/model_ref.json", "aligned": "align/selection.json"}.get(which)
    if file is None:
        raise ConfigError(f"--which {which!r}: say 'aligned' or 'sft'")
    if not (out / file).exists():
        raise ConfigError(f"{out / file} is not there: give the folder of one task's finished run")
    text = (out / file).read_bytes()
    ref = ModelRef.model_validate_json(text) if which == "sft" else Selection.model_validate_json(text).model
    return merge(ref, target)


def ledger_of(out: Path) -> tuple[Path, str | None]:
    """The ledger of a run directory and the run's name in it; ``out`` may be a ledger file, of all its runs.

    Raises ConfigError where there is neither, or a run that pays for nothing.
    """
    if out.is_file():
        return out, None
    config = run_dir_config(out)
    path = ledger_path(config, out)
    if not path.exists() and not openai_models(config):
        raise ConfigError(
            f"{out}: both models of this run are on this machine, so nothing was paid for and there is no ledger"
        )
    if not path.exists():
        raise ConfigError(f"{path}: not there yet; `cowest run` enters the first paid call in it")
    return path, config.name


def run_dir_config(out: Path) -> RunConfig:
    """The recipe that a run directory was made with. Raises ConfigError where there is none."""
    recipe = out / "recipe.yaml"
    if not recipe.exists():
        raise ConfigError(
            f"{out} is no run directory: it has no recipe.yaml. `cowest run RECIPE --out {out}` makes one."
        )
    return load_config(recipe)
