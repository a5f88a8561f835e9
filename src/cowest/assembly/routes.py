"""Routes by name: those that come with cowest, and those of other packages (entry points in the group ``cowest.routes``)."""

from __future__ import annotations

from cowest.collaboration.routes import ROUTES as OWN
from cowest.protocols import Route
from cowest.recipe.registry import Registry

ROUTES: Registry[Route] = Registry("route", "cowest.routes", OWN, ("name", "choose"))
