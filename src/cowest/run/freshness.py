"""THE rule by which the outputs of a stage are used again, made again, or continued. Run, estimate, table and report ask here.

A stage is fresh when nothing that its outputs follow from has changed:

    made_with    its settings, prompts, questions and models, by name, as the manifest keeps them
    inputs       the identities of the files that it read of earlier stages
    outputs      its files, as they were when it was done (by count and hash)

What cannot change the outcome (``Section.how``: devices, addresses, intervals between checkpoints) is in none of them. A setting
that a newer version of cowest has added counts as having had its default value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from pydantic import JsonValue

from cowest.run.identity import fingerprint, hash_file, hash_records
from cowest.run.manifest import FileNote, OutputNote, StageEntry
from cowest.run.store import RunDir

UNKNOWN: JsonValue = {"unknown": True}
"""The value of what cannot be looked at just now (a model's folder that is elsewhere): it counts as unchanged."""


class Fresh(Protocol):
    """What the rule needs to know of a stage."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def writes(self) -> tuple[str, ...]: ...

    @property
    def keeps(self) -> Callable[[RunDir, str], Sequence[Path]]:
        """The files under a written name that matter, such as weights and not the log beside them."""
        ...


@dataclass(frozen=True, slots=True)
class Depends:
    """What a stage's outputs follow from, by name. ``defaults`` are the values of settings that a recipe leaves open."""

    values: Mapping[str, JsonValue]
    defaults: Mapping[str, JsonValue] = field(default_factory=dict)

    def only(self, *names: str) -> Depends:
        """The values of these names alone."""
        return Depends({name: self.values[name] for name in names if name in self.values}, self.defaults)

    def __or__(self, other: Depends) -> Depends:
        return Depends({**self.values, **other.values}, {**self.defaults, **other.defaults})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a stage, and why. ``damaged`` are files that have to go first."""

    todo: Literal["run", "again", "continue", "mend", "retry", "reuse"]
    why: str = ""
    damaged: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = {
            "run": "run",
            "again": f"run again, because {self.why}",
            "continue": "continued where it stopped",
            "mend": f"mended, because {self.why}",
            "retry": f"continued, to retry {self.why}",
            "reuse": f"reused{self.why}",
        }
        return said[self.todo]

    @property
    def fresh(self) -> bool:
        """Whether the outputs are used as they are."""
        return self.todo == "reuse"

    @property
    def kept(self) -> bool:
        """Whether what is there is used, as a whole or as a part."""
        return self.todo not in ("run", "again")

    @property
    def settled(self) -> bool:
        """Whether it was done and is whole; calls that failed may still be asked again."""
        return self.todo in ("reuse", "retry")


def judge(run: RunDir, stage: Fresh, depends: Depends, inputs: Mapping[str, str | None]) -> Verdict:
    """What is to be done with a stage of a run; ``inputs`` as :func:`inputs_of` gives them."""
    entry = run.manifest().stages.get(stage.name)
    if entry is None:
        return Verdict("run")
    changes = changed(entry, stage, depends, inputs)
    if changes:
        return Verdict("again", told(changes))
    if entry.status == "running":
        return Verdict("continue")
    damage = damaged(run, entry)
    if damage:
        return Verdict("mend", "; ".join(damage.values()), tuple(damage))
    if entry.failed:
        return Verdict("retry", f"{entry.failed} failed calls")
    return Verdict("reuse", f" ({entry.seconds:.0f} s saved)")


S = TypeVar("S", bound=Fresh)


def review(run: RunDir, stages: Sequence[S], depends: Callable[[S], Depends]) -> dict[str, Verdict]:
    """The verdicts on a run's stages, as the next run would find them, without changing anything.

    A stage that reads what is still to be made has none.
    """
    found, settled = dict[str, Verdict](), set[str]()
    for stage in stages:
        if not settled.issuperset(stage.reads):
            continue
        verdict = judge(run, stage, depends(stage), inputs_of(run, stage))
        found[stage.name] = verdict
        if verdict.settled:
            settled |= set(stage.writes)
    return found


def lineage(stages: Sequence[S], depends: Callable[[S], Depends]) -> dict[str, str]:
    """What each stage's outputs will follow from, as one word: runs in which it is equal will share them."""
    written, found = dict[str, str](), dict[str, str]()
    for stage in stages:
        reads: dict[str, JsonValue] = {name: written[name] for name in stage.reads}
        compared: dict[str, JsonValue] = {name: _compared(v) for name, v in depends(stage).values.items()}
        found[stage.name] = fingerprint(stage.name, stage.version, compared, reads)
        written |= dict.fromkeys(stage.writes, found[stage.name])
    return found


def inputs_of(run: RunDir, stage: Fresh) -> dict[str, str | None]:
    """The identities of what a stage reads, as the finished stages before it have left them; None where it is not there."""
    written = {
        name: note.identity
        for entry in run.manifest().stages.values()
        if entry.status == "done"
        for name, note in entry.outputs.items()
    }
    return {name: written.get(name) for name in stage.reads}


def changed(entry: StageEntry, stage: Fresh, depends: Depends, inputs: Mapping[str, str | None]) -> list[str]:
    """What differs from how a stage was made, each in words; nothing for one that is fresh."""
    if entry.fingerprint is not None and not entry.made_with:
        return ["it is of a version of cowest that did not keep what it was made with"]
    found = []
    for name in {**entry.made_with, **depends.values}:
        default = depends.defaults.get(name)
        before, now = entry.made_with.get(name, default), depends.values.get(name)
        if _compared(before) != _compared(now) and UNKNOWN not in (before, now):
            found.append(f"{name} changed {_shown(before, now)}")
    read = {**entry.inputs, **inputs}
    found += [f"{name} changed" for name in read if entry.inputs.get(name) != inputs.get(name)]
    if entry.version != stage.version:
        found.append("this version of cowest makes it in another way")
    return found


def _compared(value: JsonValue) -> JsonValue:
    return value["hash"] if isinstance(value, dict) and "hash" in value else value


def told(changes: Sequence[str], most: int = 3) -> str:
    """A few of the changes, and how many more there are."""
    more = len(changes) - most
    return ", ".join(changes[:most]) + (f" and {more} more" if more > 0 else "")


def _shown(before: JsonValue, now: JsonValue) -> str:
    return f"from {_short(before)} to {_short(now)}"


def _short(value: JsonValue) -> str:
    if isinstance(value, dict) and "hash" in value:  # a file, a prompt, a model: a name or a count, and what is in it
        return f"{value.get('shown', '')} ({str(value['hash'])[:8]})".strip()
    text = "unset" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def content(hash_: str, shown: JsonValue) -> JsonValue:
    """The value of what is known by its content; ``shown`` says to people which it is and does not count."""
    return {"hash": hash_, "shown": shown}


def damaged(run: RunDir, entry: StageEntry) -> dict[str, str]:
    """The outputs of a finished stage that are not as it left them: the file, and what is wrong with it in words."""
    found = {}
    for note in entry.outputs.values():
        for name, file in note.files.items():
            wrong = _damage(run.path / name, name, file)
            if wrong:
                found[name] = wrong
    return found


def _damage(path: Path, name: str, note: FileNote) -> str | None:
    if not path.is_file():
        return f"{name} is gone"
    if hash_file(path) == note.sha256:
        return None
    if note.lines is None:
        return f"{name} is not as it was left (it was edited, or is damaged)"
    lines = count_lines(path)
    if lines == note.lines:
        return f"{name} is not as it was left (a line was edited, or is damaged)"
    return f"{name} has {lines} lines of {note.lines}"


def count_lines(path: Path) -> int:
    """Complete lines of a file."""
    with path.open("rb") as handle:
        return sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 20), b""))


def make_room(run: RunDir, stage: Fresh, verdict: Verdict) -> None:
    """Take away what a stage may not go on with: everything that is stale, or what is damaged (kept beside as NAME.damaged).

    A file that only lost lines stays: its stage fills in what is missing. Damaged weights take their whole training with them.
    """
    if not verdict.kept:
        run.remove(stage.writes)
        return
    notes = {
        name: note
        for entry in (run.manifest().stages.get(stage.name),)
        if entry
        for name, note in entry.outputs.items()
    }
    for name in verdict.damaged:
        path = run.path / name
        owner = next(output for output, note in notes.items() if name in note.files)
        if path.is_file():
            lines = notes[owner].files[name].lines
            if lines is not None and count_lines(path) < lines and _readable(path):
                continue
            path.replace(path.with_name(f"{path.name}.damaged"))
        if path.parent not in (run.path, run.path / owner):
            run.remove([owner])


def _readable(path: Path) -> bool:
    try:
        hash_records(path)
    except ValueError:
        return False
    return True


def note_outputs(run: RunDir, stage: Fresh) -> dict[str, OutputNote]:
    """What a stage that is done has left."""
    return {name: _note(run, stage.keeps(run, name)) for name in stage.writes}


def _note(run: RunDir, files: Sequence[Path]) -> OutputNote:
    notes, identities = {}, list[JsonValue]()
    for file in sorted(files):
        name = file.relative_to(run.path).as_posix()
        records = file.suffix == ".jsonl"
        sha256 = hash_file(file)
        notes[name] = FileNote(sha256=sha256, lines=count_lines(file) if records else None)
        identities.append([name, hash_records(file) if records else sha256])
    return OutputNote(identity=fingerprint(*identities), files=notes)


def all_files(run: RunDir, name: str) -> Sequence[Path]:
    """The file of this name, or every file in the folder."""
    path = run.path / name
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
