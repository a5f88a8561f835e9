"""The interactions as rows: each with the tuned weak model, and with the aligned one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cowest.protocols import System
from cowest.systems.interactions.advise import Advise
from cowest.systems.interactions.consult import Consult
from cowest.systems.interactions.critique import Critique
from cowest.systems.interactions.several import Answering, SeveralDrafts, Specialists
from cowest.systems.spec import Parts, Specialist, SystemSpec, Which

Build = Callable[[Parts, Which], System]
OWN: Final = "the weak model"
"""What the recipe's own weak model is called among specialists."""


def _critique(p: Parts, which: Which) -> System:
    turns = p.interactions()
    return Critique(p.weak(which), p.strong, p.own, turns, p.draft, p.answer, p.name, p.weak_window, p.strong_window)


def _advise(p: Parts, which: Which) -> System:
    turns = p.interactions()
    return Advise(p.weak(which), p.strong, p.own, turns, p.draft, p.answer, p.name, p.weak_window, p.strong_window)


def _consult(p: Parts, which: Which) -> System:
    n, turns = p.settings.questions, p.interactions()
    return Consult(p.weak(which), p.strong, turns, p.draft, p.answer, n, p.name, p.weak_window, p.strong_window)


def _answering(p: Parts) -> Answering:
    return Answering(p.strong, p.own, p.interactions(), p.answer, p.strong_window)


def _drafts(p: Parts, which: Which) -> System:
    answering, n = _answering(p), p.settings.samples
    return SeveralDrafts(p.weak(which), answering, p.own, p.sampled, n, p.seed, p.name, p.weak_window)


def _specialists(p: Parts, which: Which) -> System:
    own = {OWN: Specialist(p.weak(which), p.weak_window)}
    return Specialists(own | dict(p.specialists()), _answering(p), p.own, p.draft, p.name)


def _rows(name: str, about: str, build: Build, specialists: bool = False) -> tuple[SystemSpec, SystemSpec]:
    return (
        SystemSpec(
            name, about, lambda p: build(p, "sft"), "sft", uses="both", interacts=True, specialists=specialists
        ),
        SystemSpec(
            f"{name}_aligned", f"the same with the aligned weak model{' among them' if specialists else ''}",
            lambda p: build(p, "aligned"), "align", uses="both", interacts=True, specialists=specialists,
        ),
    )  # fmt: skip


INTERACTIONS: Final[tuple[SystemSpec, ...]] = (
    *_rows("collab_critique", "the strong model says what the draft lacks, the weak one mends it", _critique),
    *_rows("collab_advise", "the strong model tries alone, the weak one advises on that, the strong one decides", _advise),
    *_rows("collab_consult", "the strong model asks the weak one as a tool, where it wants to", _consult),
    *_rows("collab_drafts", "one strong call with several sampled drafts", _drafts),
    *_rows("collab_specialists", "one strong call with the drafts of several weak models", _specialists, specialists=True),
)  # fmt: skip
"""For the tables and evaluations that name them; the paper has none of them."""
