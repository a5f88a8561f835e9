"""Benchmarks of ``cowest serve``; every process runs here, on loopback, and every load is bounded.

python -m benchmarks.serving load [--litellm FOLDER]   added latency and requests/s at 1, 64 and 512 connections (needs wrk)
python -m benchmarks.serving memory                    200,000 requests: the server's memory on the way
python -m benchmarks.serving fuzz                      10,000 fuzzed requests: none may end in a 5xx
python -m benchmarks.serving faults                    each model killed and restarted under load
python -m benchmarks.serving lab RUN                   a finished lab run on the CPU, with batching on and off
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    loaded = commands.add_parser("load")
    loaded.add_argument("--connections", default="1,64,512")
    loaded.add_argument("--rounds", type=int, default=3)
    loaded.add_argument("--seconds", type=float, default=5.0)
    loaded.add_argument("--litellm", type=Path, help="a folder for an environment with LiteLLM's proxy")
    grown = commands.add_parser("memory")
    grown.add_argument("--requests", type=int, default=200_000)
    fuzzed = commands.add_parser("fuzz")
    fuzzed.add_argument("--requests", type=int, default=10_000)
    commands.add_parser("faults")
    served = commands.add_parser("lab")
    served.add_argument("run", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes started here end too
    if given.command == "load":
        from benchmarks.serving.load import load

        load(tuple(map(int, given.connections.split(","))), given.rounds, given.seconds, given.litellm)
        return 0
    if given.command == "memory":
        from benchmarks.serving.memory import memory

        return memory(given.requests)
    if given.command == "fuzz":
        from benchmarks.serving.fuzz import fuzz

        return fuzz(given.requests)
    if given.command == "faults":
        from benchmarks.serving.faults import faults

        return faults()
    from benchmarks.serving.lab import lab

    return lab(given.run)


if __name__ == "__main__":
    sys.exit(main())
