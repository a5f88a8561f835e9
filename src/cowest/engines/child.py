"""One server as a child process: how it is started, looked at and ended, and what its log says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cowest.errors import ConfigError

GUARD: Final = Path(__file__).with_name("guard.py")
ENDING_S: Final = 10.0
"""The guard gives a server 5 s to end in good order."""
_OURS: Final = frozenset({"OMP_NUM_THREADS", "OMP_WAIT_POLICY"})
"""Set for the torch of this process (and of `--jobs`): a server has all processors."""
_SECRET: Final = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)
_CONTROL: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")


def free_port() -> int:
    """A port of loopback that nobody has at this moment; who takes it first has it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what looks like a secret: a server's log may show what it was started with.

    HF_TOKEN stays: a gated hub model is fetched with it.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _OURS and (name == "HF_TOKEN" or not _SECRET.search(name))
    }
    return {**kept, "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1", **added}


class Child:
    """A running server; its stdout and stderr go to ``log``. It ends with this process, see ``guard.py``.

    Raises ConfigError on Windows, and OSError where the program cannot be started or the log not be written.
    """

    def __init__(self, command: Sequence[str], added: Mapping[str, str], log: Path) -> None:
        if not hasattr(os, "killpg"):
            raise ConfigError("a managed engine needs Linux or macOS; on Windows use WSL, or `kind: openai`")
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._began = log.stat().st_size if log.exists() else 0
        with log.open("ab", buffering=0) as out:
            out.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(added),
                start_new_session=True,  # a terminal's Ctrl-C is for cowest, which then ends its servers
            )

    @property
    def pid(self) -> int:
        """The guard's process, and the number of the server's process group."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """None while it runs; else its exit status, or 128 and the signal that ended it."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    async def ended_within(self, seconds: float) -> bool:
        """Whether it has ended, or does so within this time."""
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return self.code is not None

    async def end(self) -> None:
        """End it and all that it has started; killed where it does not end in time. May be called twice."""
        self._let_go()
        try:
            await self.ended_within(ENDING_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the whole group at once."""
        self._let_go()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def lines(self, most: int) -> list[str]:
        """The last lines that it has written, without colours and control characters, 200 characters of each."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._began, end - 65_536))
            text = file.read().decode("utf-8", "replace").splitlines()
            shown = [_CONTROL.sub("", line.rpartition("\r")[2]).strip() for line in text]
            return [line[:200] for line in shown if line and not line.startswith("--- ")][-most:]
        return []

    def _let_go(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # the guard's sign
