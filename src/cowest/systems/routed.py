"""A route over three systems: each query goes to the weak model alone, the strong one alone, or both together."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.protocols import Route, System
from cowest.types import Example, Prediction, RouteFacts


@dataclass(frozen=True, slots=True)
class Routed:
    """Asks ``route`` who answers, then that system alone; the server's gateway asks the same interface.

    The prediction is the asked system's, under this one's name: its usage is that of the calls that were made, and ``draft``
    is there only where both answered. A route that fails makes a failed prediction (``route_failed``) and no call.
    """

    weak: System
    strong: System
    both: System
    route: Route
    name: str = "routed"

    async def answer(self, example: Example) -> Prediction:
        """Answer one query."""
        try:
            decision = await self.route.choose(example, RouteFacts(turns=len(example.turns)))
        except Exception as error:  # a plug-in's bug is one failed query in the results, as a model's failure is
            reason = f"route_failed: {self.route.name}: {type(error).__name__}: {error}"
            return Prediction(example_id=example.id, system=self.name, text=None, error=reason)
        asked = {"weak": self.weak, "strong": self.strong, "both": self.both}[decision.who]
        return (await asked.answer(example)).model_copy(update={"system": self.name})
