"""Shell completion, by a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASH = shutil.which("bash")
SCRIPT = """
source "$1"
COMP_WORDS=({words}); COMP_CWORD={last}
_cowest_completion cowest
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """What `cowest --show-completion bash` prints, and an environment in which `cowest` is the one under test."""
    folder = tmp_path_factory.mktemp("shell")
    command = folder / "cowest"
    command.write_text(f"#!{sys.executable}\nfrom cowest.cli.main import main\n\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    env |= {"_COWEST_COMPLETE": "source_bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run([str(command)], capture_output=True, text=True, env=env, timeout=60, check=True)
    (folder / "completion.sh").write_text(shown.stdout, encoding="utf-8")
    return folder / "completion.sh", {name: value for name, value in env.items() if name != "_COWEST_COMPLETE"}


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("cowest va", ["validate"]),
        ("cowest ledger re", ["recover"]),
        ("cowest doctor --c", ["--call"]),
        ("cowest lab serve-", ["serve-strong"]),
    ],
)
def test_bash_completes(shell: tuple[Path, dict[str, str]], words: str, found: list[str]) -> None:
    script, env = shell
    text = SCRIPT.format(words=words, last=len(words.split()) - 1)
    done = subprocess.run(
        [str(BASH), "-c", text, "bash", str(script)], capture_output=True, text=True, env=env, timeout=60, check=True
    )
    assert done.stdout.split() == found, done.stderr
