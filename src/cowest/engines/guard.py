"""Runs a command and ends it, with all that it has started, when the process that started this one is gone. A script of its own.

    python guard.py PARENT_PID COMMAND ...

Nothing is imported but the standard library: it is started before each server and must be there at once.

A parent that is killed (kill -9, out of memory) can end nobody itself. It holds the other end of this process's stdin: when it is
gone, whatever the reason, that end closes, on Linux and macOS alike. On Linux the kernel also sends a signal then
(PR_SET_PDEATHSIG): a copy of the pipe in a forked child of the parent would keep it open. The command runs in the process group
of which this is the leader, so that a server's own children go with it. Exits as the command did (128 + signal for a signal).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 5.0
"""So long a server may take to end in good order: to unlink its shared memory, for instance."""
LOOK_S = 0.2
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int) -> None:
    """Ask the kernel for a signal when the parent ends; only Linux can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def orphaned(parent: int) -> bool:
    """Whether the parent is gone: its end of the pipe is closed, or this process has another parent."""
    if os.getppid() != parent:
        return True
    readable, _, _ = select.select([0], [], [], LOOK_S)
    return bool(readable) and not os.read(0, 1024)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, and kill what of it does not; this process is in it and goes with it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
        time.sleep(LOOK_S)  # its children are ending, too
    os.killpg(0, signal.SIGKILL)


def main(parent: int, command: list[str]) -> int:
    """Run the command until it ends, or the parent does."""
    # A signal wakes the loop below, which looks who is still there. A thread of the parent that ends is no parent that ends.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    die_with_parent(signal.SIGTERM)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: die_with_parent(signal.SIGKILL), restore_signals=True
    )
    while process.poll() is None:
        if orphaned(parent):
            end(process)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.killpg(0, signal.SIGTERM)  # what a server that died has left
    code = process.returncode
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
