"""All checks in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cowest
from cowest.doctor import machine
from cowest.doctor.findings import Diagnosis, Finding
from cowest.doctor.packages import packages
from cowest.recipe.config import RunConfig
from cowest.run import stopping


def diagnose(
    config: RunConfig | None = None,
    *,
    runs: Path = Path("runs"),
    torch: bool = False,
    call: bool = False,
    tell: Callable[[str], None] = print,
) -> Diagnosis:
    """Look at this machine and, with ``config``, at what that recipe needs of it and of its endpoints.

    ``torch`` loads torch and computes on each device. ``call`` pays for one short call to each endpoint, of which ``tell``
    is told before. Nothing raises for what is found broken.
    """
    found: list[Finding] = [*machine.machine(), *machine.disk(runs), *machine.devices()]
    if torch:
        from cowest.doctor.torch_devices import computed

        found += computed()
    found += [*packages(), *machine.settings()]
    if config is not None:
        from cowest.doctor.recipe import called, local, reached

        found += local(config)
        found += stopping.run(reached(config))
        if call:
            found += stopping.run(called(config, runs / config.name, tell))
    return Diagnosis(version=cowest.__version__, findings=tuple(found))
