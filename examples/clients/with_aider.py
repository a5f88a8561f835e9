"""aider, asked once in an empty folder."""

import os
import subprocess
import sys
import tempfile

from cells import KEY, MODEL, QUESTION, URL, try_all


def aider(*words):
    folder = tempfile.mkdtemp()
    quiet = ["--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings", "--analytics-disable"]
    quiet += ["--no-pretty", "--edit-format", "ask"]
    done = subprocess.run(
        [sys.executable, "-m", "aider", "--model", f"openai/{MODEL}", *quiet, *words, "--message", QUESTION],
        cwd=folder,
        env=os.environ | {"OPENAI_API_BASE": URL, "OPENAI_API_KEY": KEY, "HOME": folder},
        capture_output=True,
        text=True,
        timeout=280,
    )
    if done.returncode or "Tokens:" not in done.stdout:
        raise RuntimeError((done.stdout + done.stderr)[-600:])
    return done.stdout


try_all(chat=lambda: aider("--no-stream"), stream=lambda: aider("--stream"))
