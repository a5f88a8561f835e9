"""The matrix of clients in docs/serving.md: each in an environment of its own, against a served run or recipe.

cowest serve runs/lab --port 8191 &
python examples/clients/run.py --base-url http://127.0.0.1:8191/v1 [--only openai --only llm] [--json matrix.json]

Environments go to a cache folder and are used again; PyPI and npm are asked where one is not there yet. Needs Python, and node and
npm for the JavaScript clients.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CELLS = (
    "chat", "stream", "schema", "tools", "logprobs",
    "responses", "responses_stream", "responses_schema", "responses_tools", "completions",
)  # fmt: skip


@dataclass(frozen=True)
class Client:
    """``packages``: what is installed; the version of the first is shown. ``script``: the file that tries the cells."""

    name: str
    script: str
    packages: tuple[str, ...]
    title: str = ""

    @property
    def npm(self) -> bool:
        return self.script.endswith(".mjs")


CLIENTS = (
    Client("openai", "with_openai.py", ("openai",), "openai (Python)"),
    Client("openai-npm", "with_openai.mjs", ("openai",), "openai (npm)"),
    Client(
        "vercel-ai",
        "with_vercel_ai.mjs",
        ("ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "zod"),
        "Vercel AI SDK (ai)",
    ),
    Client("langchain", "with_langchain.py", ("langchain-openai",), "LangChain"),
    Client("llamaindex", "with_llamaindex.py", ("llama-index-llms-openai-like",), "LlamaIndex"),
    Client("litellm", "with_litellm.py", ("litellm",), "LiteLLM"),
    Client("pydantic-ai", "with_pydantic_ai.py", ("pydantic-ai-slim[openai]",), "Pydantic AI"),
    Client("instructor", "with_instructor.py", ("instructor",), "Instructor"),
    Client("openai-agents", "with_openai_agents.py", ("openai-agents",), "OpenAI Agents SDK"),
    Client("llm", "with_llm.py", ("llm",), "llm"),
    Client("aider", "with_aider.py", ("aider-chat",), "aider"),
    Client("inspect", "with_inspect.py", ("inspect-ai", "openai"), "Inspect"),
    Client("lm-eval", "with_lm_eval.py", ("lm-eval[api]",), "lm-eval"),
)


@dataclass
class Found:
    """What became of a client: a state and its reason for each cell that its script tried."""

    version: str = ""
    cells: dict[str, tuple[str, str]] = field(default_factory=dict)
    problem: str = ""


def main() -> int:
    """Run the clients one after another; exit 1 where a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base-url", required=True, help="what `cowest serve` prints, such as http://127.0.0.1:8080/v1"
    )
    parser.add_argument("--model", help="a model id; unset: the server's first")
    parser.add_argument(
        "--only", action="append", choices=[c.name for c in CLIENTS], help="this client; may be repeated"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "cowest-clients", help="where environments are kept"
    )
    parser.add_argument(
        "--json", type=Path, help="write what was found here, too; what is there of other clients stays"
    )
    args = parser.parse_args()
    env = os.environ | {"COWEST_BASE_URL": args.base_url.rstrip("/")}
    env["COWEST_MODEL"] = args.model or first_model(env)
    found: dict[str, Found] = {}
    for client in CLIENTS:
        if args.only and client.name not in args.only:
            continue
        print(f"{client.name} ...", file=sys.stderr, flush=True)
        found[client.name] = tried(client, args.cache / client.name, env)
        for cell, (state, why) in found[client.name].cells.items():
            print(f"  {cell}: {state} {why}", file=sys.stderr, flush=True)
        if found[client.name].problem:
            print(f"  {found[client.name].problem}", file=sys.stderr, flush=True)
        if args.json:
            keep(args.json, found)
    print(matrix(found))
    return int(any(f.problem or any(state == "fails" for state, _ in f.cells.values()) for f in found.values()))


def first_model(env: dict[str, str]) -> str:
    """The first id that the server lists."""
    request = urllib.request.Request(f"{env['COWEST_BASE_URL']}/models")
    if env.get("COWEST_API_KEY"):
        request.add_header("Authorization", f"Bearer {env['COWEST_API_KEY']}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["data"][0]["id"])


def tried(client: Client, folder: Path, env: dict[str, str]) -> Found:
    """Install the client where it is not there yet, and run its script."""
    try:
        version = installed_npm(client, folder) if client.npm else installed_pip(client, folder)
    except (subprocess.CalledProcessError, OSError) as error:
        told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return Found(problem=f"cannot be installed: {told[-1] if told else error}")
    script = folder / client.script if client.npm else HERE / client.script
    program = "node" if client.npm else str(folder / "bin" / "python")
    try:
        done = subprocess.run([program, str(script)], env=env, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        return Found(version, problem="took longer than 15 minutes")
    result = Found(version)
    for line in done.stdout.splitlines():
        if line.startswith('{"cell"'):
            cell = json.loads(line)
            result.cells[cell["cell"]] = (cell["state"], cell["why"])
    if done.returncode or not result.cells:
        result.problem = f"exit {done.returncode}: {(done.stderr.strip().splitlines() or ['no output'])[-1][:300]}"
    return result


def installed_pip(client: Client, folder: Path) -> str:
    """The client's version, in a virtual environment of its own."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        quiet(sys.executable, "-m", "venv", str(folder))
        quiet(str(python), "-m", "pip", "install", "-q", *client.packages)
        (folder / "done").touch()
    name = client.packages[0].partition("[")[0]
    return quiet(str(python), "-c", f"from importlib.metadata import version; print(version({name!r}))").strip()


def installed_npm(client: Client, folder: Path) -> str:
    """The client's version, in a folder of its own that also holds the scripts: node looks for packages from there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "done").exists():
        quiet("npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", *client.packages)
        (folder / "done").touch()
    for script in (client.script, "cells.mjs"):
        shutil.copy(HERE / script, folder / script)
    package = json.loads((folder / "node_modules" / client.packages[0] / "package.json").read_text())
    return str(package["version"])


def quiet(*command: str) -> str:
    """The command's output. Raises CalledProcessError."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def keep(path: Path, found: dict[str, Found]) -> None:
    """Write what was found so far beside what the file has of other clients."""
    old = json.loads(path.read_text()) if path.exists() else {}
    new = {n: {"version": f.version, "problem": f.problem, "cells": f.cells} for n, f in found.items()}
    path.write_text(json.dumps(old | new, indent=1))


def matrix(found: dict[str, Found]) -> str:
    """The table of docs/serving.md. A blank cell: the client has no such thing, or its script does not try it."""
    marks = {"works": "works", "refused": "refused in words", "fails": "FAILS"}
    lines = [f"| {datetime.date.today()} | version | {' | '.join(cell.replace('_', ' ') for cell in CELLS)} |"]
    lines.append("|" + "---|" * (len(CELLS) + 2))
    for client in CLIENTS:
        if (one := found.get(client.name)) is not None:
            cells = [marks[one.cells[c][0]] if c in one.cells else "" for c in CELLS]
            lines.append(f"| {client.title} | {one.version or one.problem} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
