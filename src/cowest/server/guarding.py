"""The guard of a served run: what is promised now, while served queries look like those that it was certified on."""

from __future__ import annotations

import logging

from cowest.collaboration.guard.drift import FIRST, Drift
from cowest.collaboration.guard.evidence import Evidence
from cowest.collaboration.guard.policy import Guard
from cowest.server.request import Body

logger = logging.getLogger("cowest.server")


class Guarding:
    """Watches the queries of one served guard for drift; the log says when that begins and ends."""

    def __init__(self, guard: Guard, name: str) -> None:
        self._guard, self._name, self._drift = guard, name, Drift(guard)
        if not guard.promised:
            logger.warning(
                "%s: the guard promises nothing (too few calibration queries): the better model answers", name
            )

    @property
    def drifted(self) -> bool:
        """Whether served queries no longer look like the calibration queries."""
        return bool(self._drift.drifted)

    @property
    def seen(self) -> int:
        """Queries so far."""
        return self._drift.seen

    def see(self, evidence: Evidence) -> None:
        """Take note of a query."""
        if not self._drift.see(evidence):
            return
        if self.drifted:
            logger.warning(
                "%s: the promise is off: served queries differ from the calibration queries in %s; run `cowest guard` on new ones",
                self._name,
                ", ".join(self._drift.drifted),
            )
        else:
            logger.info("%s: served queries look like the calibration queries again", self._name)

    def promise(self) -> Body:
        """What an answer's ``cowest.guard`` says: ``promise`` is true only where it was certified and no drift is seen.

        ``drift`` is null until enough queries were seen to tell.
        """
        guard, told = self._guard, self._drift.seen >= FIRST
        return {
            "promise": guard.promised and not self.drifted,
            "risk": guard.risk,
            "delta": guard.delta,
            "drift": list(self._drift.drifted) if told else None,
        }
