"""``manifest.json``: what has been done in a run directory, with what, and what came of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from cowest.types import Record


class FileNote(Record):
    """A file that a finished stage has left; ``lines`` is None for what is not JSONL."""

    sha256: str
    lines: int | None = None


class OutputNote(Record):
    """What a finished stage has left under one name: ``files`` by their path in the run, so that damage is noticed.

    ``identity`` is what the stages after depend on. It leaves out what is incidental to records (seconds, token counts), so that
    an output that is made again and comes out the same makes nothing else stale.
    """

    identity: str
    files: dict[str, FileNote]


class StageEntry(Record):
    """A stage in the manifest.

    ``made_with``: every setting, file, prompt and model that its outputs follow from, by name. ``inputs``: the identities of what
    it read of earlier stages. ``outputs``: what it left, once it is done. ``failed`` calls are asked again by the next run.
    ``warnings`` are what it noticed of its own records.
    ``fingerprint`` is from versions of cowest that kept no names.
    """

    status: Literal["running", "done"]
    version: int = 1
    made_with: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, OutputNote] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    failed: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    fingerprint: str | None = None


class Manifest(BaseModel):
    """What has been done in a run directory. Schema 1 had fingerprints in place of names."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1, 2] = 2
    stages: dict[str, StageEntry] = Field(default_factory=dict)
