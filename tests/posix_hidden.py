"""Runs cowest commands where what only POSIX has is not there: ``python posix_hidden.py '[["validate", "x.yaml"], ...]'``.

The libraries are imported before the platform is renamed, as they are not what is tried. Prints a line of JSON for each command.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import ModuleSpec

POSIX_MODULES = frozenset({"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"})
POSIX_NAMES = (
    "fork",
    "killpg",
    "setsid",
    "getuid",
    "geteuid",
    "getpgid",
    "sched_getaffinity",
    "confstr",
    "sysconf",
    "link",
)
LIBRARIES = (
    "aiohttp", "dotenv", "jinja2", "json_repair", "matplotlib.pyplot", "numpy", "pydantic", "rich.console", "rich.live",
    "rich.progress", "rich.table", "scipy.stats", "sqlite3", "tenacity", "typer.main", "typer.rich_utils", "yaml", "yarl",
)  # fmt: skip


class Hidden:
    """An importer that refuses what only POSIX has."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name in POSIX_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def _no_handlers(*_: object) -> None:
    raise NotImplementedError


def _no_signal_0(pid: int, number: int) -> None:
    raise AssertionError("os.kill on Windows ends a process, or sends it a Ctrl-C")


def hide() -> None:
    """Take away what Windows has not."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in POSIX_MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hidden())
    _ = (
        concurrent.futures.ThreadPoolExecutor,
        multiprocessing.get_context,
        shutil.disk_usage,
        subprocess.Popen,
        platform.system(),
    )
    for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGQUIT"):
        if hasattr(signal, name):
            delattr(signal, name)
    for name in POSIX_NAMES:
        if hasattr(os, name):
            delattr(os, name)
    os.kill = _no_signal_0
    asyncio.SelectorEventLoop.add_signal_handler = _no_handlers  # type: ignore[method-assign, assignment]
    asyncio.SelectorEventLoop.remove_signal_handler = _no_handlers  # type: ignore[method-assign, assignment]
    sys.platform = "win32"


def main(commands: list[list[str]]) -> None:
    """Run each command, as the console script would."""
    hide()
    from cowest.cli.main import main as cowest_main
    from cowest.ledger import reservations

    setattr(reservations, "_windows_identity", lambda pid: "1")  # noqa: B010 - of a library that only Windows has
    for command in commands:
        sys.argv, code, out, err = ["cowest", *command], 0, io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                cowest_main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        print(json.dumps({"command": command, "code": code, "out": out.getvalue(), "err": err.getvalue()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
