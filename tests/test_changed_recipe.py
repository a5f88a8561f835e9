"""A run that is continued with another recipe and stopped: nothing that reads it puts old numbers under the new recipe's name."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model, tiny_recipe, world

from cowest.errors import ModelCallError, StageError
from cowest.pipeline import export_weak, report_again
from cowest.results import Results
from cowest.server.opening import open_served
from cowest.server.settings import Settings
from cowest.stages.choosing import Selection
from cowest.types import Completion, Message, Sampling

pytestmark = pytest.mark.slow
BASE = tiny_recipe("", "")


def section(name: str, **changes: JsonValue) -> dict[str, JsonValue]:
    """A section of the tiny recipe with other values."""
    found = BASE[name]
    assert isinstance(found, dict)
    return {name: {**found, **changes}}


class Stopping(Log):
    """Stops the run, as Ctrl-C does, as soon as a line or the start of a bar begins so."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._at = at

    def info(self, text: str) -> None:
        super().info(text)
        if text.startswith(self._at):
            raise KeyboardInterrupt

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        if f"{label} began".startswith(self._at):
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Finished:
    weak: str
    out: Path
    results: Results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    weak, out = save_tiny_model(tmp_path_factory.mktemp("weak")), tmp_path_factory.mktemp("runs") / "tiny"
    return Finished(weak, out, run_tiny(weak, out, Oracle()).results[""])


@pytest.mark.parametrize(
    (
        "changes",
        "at",
        "stale",
    ),  # stale: what serving and exporting the aligned model, and what exporting the SFT model says
    [
        (section("sft", learning_rate=2e-2), "sft: run again", ("stage sft", "stage sft")),
        (section("sft", learning_rate=2e-2), "sft began", ("stage align", None)),
        (section("sft", learning_rate=2e-2), "sample drafts began", ("stage align", None)),
        (section("draft", samples=2), "sample: run again", ("stage align", None)),
        (section("draft", samples=2), "strong answers began", ("stage align", None)),
        ({"feedback": {"sampling": {"temperature": 0.5}}}, "feedback: run again", ("stage align", None)),
        ({"pairs": {"rule": "paper"}}, "align: run again", ("stage align", None)),
        ({"pairs": {"rule": "paper"}}, "align began", (None, None)),
        ({"seed": 4}, "choose: step 0 began", (None, None)),
        (section("evaluate", systems=["weak", "strong"]), "evaluate: run again", (None, None)),
        (section("evaluate", queries=6), "evaluate weak began", (None, None)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_old_numbers_are_not_read_under_a_new_recipe(
    finished: Finished, tmp_path: Path, changes: dict[str, JsonValue], at: str, stale: tuple[str | None, str | None]
) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        run_tiny(finished.weak, out, Oracle(), Stopping(at), **changes)
    with pytest.raises(
        StageError, match=r"is not what recipe\.yaml says: .*`cowest run`|results\.json: not there"
    ) as told:
        asyncio.run(report_again(out))
    assert "\n" not in str(told.value)
    if stale[0] is not None:
        for read in (lambda: open_served(out, Settings()), lambda: export_weak(out, "aligned", tmp_path / "merged")):
            with pytest.raises(StageError, match=stale[0]):
                read()
    if stale[1] is not None:
        with pytest.raises(StageError, match=stale[1]):
            export_weak(out, "sft", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()

    again = run_tiny(finished.weak, out, Oracle()).results[""]  # back to the first recipe
    assert (again.systems, again.comparisons) == (finished.results.systems, finished.results.comparisons)
    asyncio.run(report_again(out))


def test_what_cannot_change_the_outcome_makes_nothing_again(finished: Finished, tmp_path: Path) -> None:
    out, log = Path(shutil.copytree(finished.out, tmp_path / "run")), Log()
    manifest = json.loads((out / "manifest.json").read_text())
    for entry in manifest["stages"].values():  # as a version would have left it that did not have these settings yet
        for name in ("sft.warmup_ratio", "align.beta", "draft.held_out", "feedback.metric", "evaluate.queries"):
            entry["made_with"].pop(name, None)
    (out / "manifest.json").write_text(json.dumps(manifest))
    how: Mapping[str, JsonValue] = {"device": "auto", "checkpoint_every": 7, "gradient_checkpointing": True}
    run_tiny(finished.weak, out, Oracle(), log, **section("sft", **how), **section("align", **how))
    assert all(why.startswith("reused") for why in log.verdicts.values()), log.verdicts


# Calls that fail in the choice of a checkpoint


class Failing:
    """The oracle, which fails where it is asked ``question`` (``times`` it is); counts how often that was."""

    name = "strong"

    def __init__(self, question: str, times: int = 99) -> None:
        self.oracle, self.asked, self._question, self._times = Oracle(), 0, question, times

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        if self._question in messages[-1].content:
            self.asked += 1
            if self.asked <= self._times:
                raise ModelCallError("overloaded", "try later")
        return await self.oracle.generate(messages, sampling)

    async def aclose(self) -> None: ...


def chosen(out: Path) -> Selection:
    return Selection.model_validate_json((out / "align/selection.json").read_bytes())


@pytest.mark.parametrize("times", [(99, 0), (1, 0), (99, 99, 0)])
def test_they_are_told_and_asked_again(finished: Finished, tmp_path: Path, times: Sequence[int]) -> None:
    """All checkpoints' calls for a question, or one of them; also where they fail a second time."""
    out, question = tmp_path / "run", world().examples("validation")[0].input
    weights, failed = dict[Path, int](), 0
    for number, failing in enumerate(times):
        strong, log = Failing(question, failing), Log()
        done = run_tiny(finished.weak, out, strong, log)  # type: ignore[arg-type]
        if number:
            assert log.verdicts["align"] == f"continued, to retry {failed} failed calls"
            assert strong.asked <= failed and {f: f.stat().st_mtime_ns for f in weights} == weights
            assert failing == 0 or strong.asked
        failed = json.loads((out / "manifest.json").read_text())["stages"]["align"]["failed"]
        assert failed == sum(c.n_failed for c in chosen(out).checkpoints)
        assert (failed > 0) == (failing > 0)
        told = next(line for line in log.lines if line.startswith("align: done in"))
        assert (f"failed {failed}" in told) == (failed > 0)
        weights = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert [(c.step, c.score, c.n_failed) for c in chosen(out).checkpoints] == [
        (c.step, c.score, c.n_failed) for c in chosen(finished.out).checkpoints
    ]
    assert done.results[""].systems == finished.results.systems
