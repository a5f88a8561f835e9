"""What can be told here of other systems: the basic commands without POSIX, names of files, output in a code page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml
from tests.paid_endpoint import PaidEndpoint, answering, paid_recipe

ROOT = Path(__file__).parents[1]
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$', re.MULTILINE)
"""What Windows allows in no file's name."""
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def test_the_basic_commands_work_without_posix(tmp_path: Path) -> None:
    with answering(PaidEndpoint()) as url:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(paid_recipe(url)), encoding="utf-8")
        commands = [
            ["--help"],
            ["validate", "recipe.yaml"],
            ["estimate", "recipe.yaml"],
            ["doctor", "recipe.yaml"],
            ["run", "recipe.yaml"],
            ["ledger", "runs/paid"],
            ["report", "runs/paid"],
        ]
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "posix_hidden.py"), json.dumps(commands)],
            capture_output=True,
            text=True,
            env={**os.environ, "MPLBACKEND": "agg"},
            cwd=tmp_path,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["command"][0], one["code"]) for one in told] == [(c[0], 0) for c in commands], told
    assert "accuracy" in told[4]["out"] and (tmp_path / "runs" / "paid" / "report.html").exists()
    for file in (tmp_path / "runs").rglob("*"):
        assert not FORBIDDEN.search(file.name) and not RESERVED.fullmatch(file.name), file


def test_every_file_of_the_project_can_be_checked_out_on_windows() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=False).stdout
    names = [part for file in listed.split("\0") if file for part in file.split("/")]
    assert not [name for name in names if FORBIDDEN.search(name) or RESERVED.fullmatch(name)]
    folded = [file.lower() for file in listed.split("\0") if file]
    assert len(folded) == len(set(folded))  # two names that differ in case alone are one file there, and on macOS


def test_a_code_page_without_a_character_ends_no_command(tmp_path: Path) -> None:
    for command, code in ((["init", "中"], 0), (["doctor", "nowhere-中.yaml"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "cowest", *command],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "cp1252"},
            cwd=tmp_path,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
    assert (tmp_path / "中" / "recipe.yaml").exists()
