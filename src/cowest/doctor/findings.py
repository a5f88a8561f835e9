"""What ``cowest doctor`` finds: one record for each thing that it has looked at."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field

from cowest.types import Record

State = Literal["ok", "note", "warning", "broken"]


class Finding(Record):
    """``note``: good to know. ``warning``: works, and may not do what is expected. ``broken``: needed, and does not work.

    ``todo`` is what mends it.
    """

    section: str
    name: str
    state: State
    said: str
    todo: str | None = None


class Diagnosis(Record):
    """All that was found."""

    version: str
    findings: tuple[Finding, ...]

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's guide has it
    @property
    def healthy(self) -> bool:
        """Whether nothing that is needed is broken."""
        return all(finding.state != "broken" for finding in self.findings)
