"""Routes: who answers a query. The default is the paper's: both, always."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cowest.types import Example, RouteDecision, RouteFacts


@dataclass(frozen=True, slots=True)
class Always:
    """Implements :class:`cowest.protocols.Route`: the same for every query."""

    who: Literal["weak", "strong", "both"]

    @property
    def name(self) -> str:
        """``weak``, ``strong`` or ``both``."""
        return self.who

    async def choose(self, query: Example, facts: RouteFacts) -> RouteDecision:
        """The one decision there is, for the reason ``always``."""
        return RouteDecision(who=self.who, reason="always")


BOTH = Always("both")
"""The weak model drafts and the strong one refines."""
ROUTES = {route.name: route for route in (BOTH, Always("strong"), Always("weak"))}
"""Those that come with cowest, by name; others come from plug-ins."""
