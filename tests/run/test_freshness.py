"""The rule of what is fresh, on a stage of nothing but settings and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue

from cowest.run.freshness import (
    UNKNOWN,
    Depends,
    all_files,
    content,
    inputs_of,
    judge,
    lineage,
    make_room,
    note_outputs,
    review,
)
from cowest.run.manifest import StageEntry
from cowest.run.store import RunDir


@dataclass(frozen=True)
class Toy:
    name: str
    writes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    version: int = 1
    keeps: Callable[[RunDir, str], Sequence[Path]] = all_files


ONE, TWO = Toy("one", ("one.jsonl",)), Toy("two", ("two.jsonl",), ("one.jsonl",))
SETTINGS: Mapping[str, JsonValue] = {"one.rate": 0.1, "the model": content("ab12", "tiny")}


def finish(run: RunDir, stage: Toy, settings: Mapping[str, JsonValue], text: str, failed: int = 0) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / stage.writes[0]).write_text(text)
    inputs = {name: identity for name, identity in inputs_of(run, stage).items() if identity is not None}
    entry = StageEntry(status="done", made_with=dict(settings), inputs=inputs, failed=failed, version=stage.version)
    run.record(stage.name, entry.model_copy(update={"outputs": note_outputs(run, stage)}))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    finish(made, ONE, SETTINGS, '{"a": 1, "latency_s": 0.5}\n{"a": 2, "latency_s": 0.7}\n')
    finish(made, TWO, {}, '{"b": 1}\n')
    return made


def verdict(run: RunDir, changes: Mapping[str, JsonValue], defaults: Mapping[str, JsonValue] | None = None) -> str:
    depends = Depends({**SETTINGS, **changes}, defaults or {})
    return str(judge(run, ONE, depends, inputs_of(run, ONE)))


@pytest.mark.parametrize(
    ("changes", "defaults", "expected"),
    [
        ({}, {}, "reused (0 s saved)"),
        ({"one.rate": 0.2}, {}, "run again, because one.rate changed from 0.1 to 0.2"),
        (
            {"the model": content("cd34", "tiny")},
            {},
            "run again, because the model changed from tiny (ab12) to tiny (cd34)",
        ),
        ({"the model": content("ab12", "elsewhere")}, {}, "reused (0 s saved)"),  # the name is for people
        ({"the model": UNKNOWN}, {}, "reused (0 s saved)"),
        ({"one.new": 7}, {"one.new": 7}, "reused (0 s saved)"),  # a setting that a newer version brings, at its default
        ({"one.new": 8}, {"one.new": 7}, "run again, because one.new changed from 7 to 8"),
        ({"one.new": 8}, {}, "run again, because one.new changed from unset to 8"),
        ({"one.rate": None, "x": None}, {}, "run again, because one.rate changed from 0.1 to unset"),
    ],
)
def test_it_names_what_changed(
    run: RunDir, changes: dict[str, JsonValue], defaults: dict[str, JsonValue], expected: str
) -> None:
    assert verdict(run, changes, defaults) == expected


def test_a_default_that_a_newer_version_changes_counts(run: RunDir) -> None:
    assert verdict(run, {"one.rate": 0.3}, {"one.rate": 0.3}).endswith("from 0.1 to 0.3")


def test_another_version_of_a_stage(run: RunDir) -> None:
    newer = Toy("one", ("one.jsonl",), version=2)
    assert "in another way" in str(judge(run, newer, Depends(SETTINGS), {}))


def test_outputs_that_come_out_the_same_make_nothing_else_stale(run: RunDir) -> None:
    finish(run, ONE, {**SETTINGS, "one.rate": 0.2}, '{"latency_s": 9, "a": 1}\n{"a": 2}\n')
    assert judge(run, TWO, Depends({}), inputs_of(run, TWO)).fresh
    finish(run, ONE, SETTINGS, '{"a": 1}\n{"a": 3}\n')
    assert str(judge(run, TWO, Depends({}), inputs_of(run, TWO))) == "run again, because one.jsonl changed"


def test_what_is_reviewed_ends_where_something_is_to_be_made(run: RunDir) -> None:
    fresh = review(run, [ONE, TWO], lambda stage: Depends(SETTINGS if stage is ONE else {}))
    assert {name: v.todo for name, v in fresh.items()} == {"one": "reuse", "two": "reuse"}
    stale = review(run, [ONE, TWO], lambda stage: Depends({}))
    assert {name: v.todo for name, v in stale.items()} == {"one": "again"}


def test_failed_calls_are_retried_and_what_follows_is_judged(run: RunDir) -> None:
    finish(run, ONE, SETTINGS, '{"a": 1}\n{"a": 2}\n', failed=3)
    found = review(run, [ONE, TWO], lambda stage: Depends(SETTINGS if stage is ONE else {}))
    assert str(found["one"]) == "continued, to retry 3 failed calls" and found["two"].fresh


def test_a_file_that_lost_lines_stays_and_an_edited_one_is_put_aside(run: RunDir) -> None:
    file = run.path / "one.jsonl"
    file.write_text('{"a": 1, "latency_s": 0.5}\n')
    short = judge(run, ONE, Depends(SETTINGS), {})
    assert short.why == "one.jsonl has 1 lines of 2"
    make_room(run, ONE, short)
    assert file.exists()
    file.write_text('{"a": 1, "latency_s": 0.5}\n{"a": 3, "latency_s": 0.7}\n')
    edited = judge(run, ONE, Depends(SETTINGS), {})
    make_room(run, ONE, edited)
    assert not file.exists() and (run.path / "one.jsonl.damaged").exists()


def test_runs_that_will_share_a_stage_have_the_same_lineage() -> None:
    def of(rate: float) -> dict[str, str]:
        return lineage([ONE, TWO], lambda stage: Depends({"one.rate": rate} if stage is ONE else {}))

    assert of(0.1) == of(0.1) and set(of(0.1).values()).isdisjoint(of(0.2).values())
