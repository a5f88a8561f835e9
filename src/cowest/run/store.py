"""The run directory: append-only JSONL that survives kill -9, and the manifest of finished stages.

``ls runs/NAME`` is the pipeline's diagram. A record is on disk before it is used; a line torn by a kill is cut off on the next
start. Nothing in a run directory names another place, so that it can be copied, moved and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from cowest.errors import DataError, StageError
from cowest.run.manifest import Manifest, StageEntry

if sys.platform != "win32":
    import fcntl

R = TypeVar("R", bound=BaseModel)


def write_atomic(path: Path, text: str) -> None:
    """Write a whole file such that a reader, or a crash, sees the old one or the new one and nothing between."""
    write_lines(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """The same, piece by piece; returns how many pieces there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, written = path.with_name(path.name + ".part"), 0
    try:
        with named(path), partial.open("w", encoding="utf-8") as handle:
            for line in lines:
                handle.write(line)
                written += 1
            handle.flush()
            os.fsync(handle.fileno())
        _replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()  # on a full disk it would take the room that is needed to go on
        raise
    return written


def _replace(partial: Path, path: Path, wait_s: float = 2.0) -> None:
    """Put the new file in the old one's place. Windows refuses that while somebody reads the old one: a moment later it works."""
    until = time.monotonic() + wait_s
    while True:
        try:
            partial.replace(path)
            return
        except PermissionError:
            if os.name != "nt" or time.monotonic() > until:
                raise
            time.sleep(0.05)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give an OSError of a write inside, such as a full disk's, the name of the file, which the system leaves out.

    Libraries that are written in another language raise errors of their own for it, which become OSErrors.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except Exception as error:
        number = next((number for said, number in _SAID.items() if said in str(error)), None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None


_SAID = {
    **{f"(os error {n})": n for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)},
    "PytorchStreamWriter failed writing": errno.ENOSPC,
}
"""How safetensors and torch say that a disk is full, a quota used up, or a folder not to be written."""


class JsonlFile(Generic[R]):
    """A file of records of one type, one a line."""

    def __init__(self, path: Path, record: type[R]) -> None:
        self.path, self._record = path, record
        self._handle: IO[bytes] | None = None

    def load(self) -> list[R]:
        """All complete records; a torn last line is dropped. Raises DataError for a line that is not such a record."""
        if not self.path.exists():
            return []
        records = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                records.append(self._record.model_validate_json(line))
            except ValidationError as error:
                raise DataError(
                    f"{self.path}:{number}: not a {self._record.__name__} record ({error.error_count()} problems); "
                    "delete the line, or the file to make it again"
                ) from None
        return records

    def append(self, record: R) -> None:
        """Add one record; it is with the operating system when this returns, so a kill of the process keeps it."""
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self.path.open("ab")
            self._cut_torn_line()
        with named(self.path):
            self._handle.write(record.model_dump_json().encode() + b"\n")
            self._handle.flush()

    def _cut_torn_line(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(self.path, content.rfind(b"\n") + 1)

    def close(self) -> None:
        """Flush to disk and close."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with named(self.path), handle:
                handle.flush()
                os.fsync(handle.fileno())

    def replace(self, records: Iterable[R]) -> None:
        """Write the whole file anew, in the given order, atomically."""
        self.close()
        write_atomic(self.path, "".join(r.model_dump_json() + "\n" for r in records))


class RunDir:
    """The directory of one task's run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def _manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self) -> Manifest:
        """The manifest, or an empty one. Raises DataError when it is damaged."""
        if not self._manifest_path.exists():
            return Manifest()
        try:
            return Manifest.model_validate_json(self._manifest_path.read_bytes())
        except ValidationError as error:
            raise DataError(
                f"{self._manifest_path}: damaged ({error.error_count()} problems); use another --out"
            ) from None

    def record(self, stage: str, entry: StageEntry) -> None:
        """Put a stage's state into the manifest, atomically."""
        manifest = self.manifest()
        manifest.stages[stage], manifest.schema_version = entry, 2
        write_atomic(self._manifest_path, manifest.model_dump_json(indent=2) + "\n")

    @contextmanager
    def locked(self, wait_s: float = 30.0) -> Iterator[None]:
        """Hold the directory for this process alone; the lock goes with the process, also when it is killed.

        Waits up to ``wait_s`` seconds (a child of a killed command ends within seconds), then raises StageError.
        """
        if sys.platform == "win32":  # there is no such lock
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as handle:
            until = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise StageError(
                            f"{self.path}: another cowest process works in this run directory; wait for it, or use another --out"
                        ) from None
                    time.sleep(0.2)
            yield

    def file(self, name: str, record: type[R]) -> JsonlFile[R]:
        """The JSONL file ``name`` in this run."""
        return JsonlFile(self.path / name, record)

    def adopt(self, other: RunDir, stage: str, names: Sequence[str]) -> None:
        """Take over the outputs of a finished stage of another run directory. Weights are linked where the disk allows it."""
        self.remove(names)
        for name in names:
            source, target = other.path / name, self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link_weights)
            else:
                shutil.copy2(source, target)
        self.record(stage, other.manifest().stages[stage])

    def remove(self, names: Sequence[str]) -> None:
        """Delete outputs that are stale."""
        for name in names:
            target = self.path / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)


def _link_weights(source: str, target: str) -> None:
    """Weights are never written to again, and large; records are appended to, so that they must be copies."""
    if source.endswith(".safetensors"):
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another disk, or a file system without links
    shutil.copy2(source, target)
