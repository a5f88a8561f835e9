"""Folders that are read-only, disks that are full, ledgers that are gone: a line that names the path and what to do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.errors import StageError
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict


def _unprivileged() -> list[str]:
    """What makes permissions hold for root, too."""
    if os.getuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("runs as root, for whom permissions do not hold, and there is no setpriv")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def cowest(*arguments: str | Path, before: list[str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*(before or []), sys.executable, "-m", "cowest", *map(str, arguments)], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, endpoint = tmp_path_factory.mktemp("runs"), PaidEndpoint()

    async def go() -> None:
        async with endpoint.serve() as url:
            await run(config_from_dict(paid_recipe(url)), folder / "one", Log())

    asyncio.run(go())
    (folder / "one" / "report.html").unlink()
    return folder / "one"


@pytest.fixture
def locked(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run that nobody may write to."""
    out = tmp_path / "locked"
    shutil.copytree(finished, out)
    folders = [out, *(p for p in out.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield out
    for folder in folders:
        folder.chmod(0o755)


# Read-only


def test_a_run_in_a_read_only_folder_can_be_read(finished: Path, locked: Path, tmp_path: Path) -> None:
    before = sorted(locked.rglob("*"))
    own = json.loads(cowest("ledger", finished, "--json")[1])
    code, out, err = cowest("ledger", locked, "--json", before=_unprivileged())
    assert (code, err) == (0, "") and json.loads(out) == own | {"path": str(locked / "ledger.sqlite")}
    code, out, err = cowest("ledger", locked, "--export", tmp_path / "calls.jsonl", before=_unprivileged())
    assert (code, err) == (0, "") and out.endswith(f"{own['answered']} entries\n")
    code, out, err = cowest("estimate", locked / "recipe.yaml", "--out", locked, "--json", before=_unprivileged())
    assert (code, err) == (0, "") and json.loads(out)["already"] == own["answered"]
    code, out, err = cowest("report", locked, before=_unprivileged())
    assert code == 1 and out == "" and f"cowest report {locked} --out FOLDER" in err and err.count("\n") == 1
    code, out, err = cowest("report", locked, "--out", tmp_path / "elsewhere", before=_unprivileged())
    assert (code, err) == (0, "") and str(tmp_path / "elsewhere" / "report.html") in out
    assert (tmp_path / "elsewhere" / "report.html").stat().st_size > 10_000
    assert sorted(locked.rglob("*")) == before


def test_a_killed_runs_log_is_read_where_nothing_may_be_written(tmp_path: Path, finished: Path) -> None:
    """Its newest entries are in the -wal file; without permission to write beside it SQLite would read it not at all."""
    out = tmp_path / "killed"
    out.mkdir()
    live = sqlite3.connect(finished / "ledger.sqlite")
    live.execute("PRAGMA wal_autocheckpoint = 0")
    live.execute("UPDATE spent SET calls = calls + 1000")
    live.commit()
    for end in ("", "-wal"):
        shutil.copy(finished / f"ledger.sqlite{end}", out / f"ledger.sqlite{end}")
    live.execute("UPDATE spent SET calls = calls - 1000")
    live.commit()
    live.close()
    for path in (*out.iterdir(), out):
        path.chmod(0o555 if path.is_dir() else 0o444)
    code, printed, err = cowest("ledger", out / "ledger.sqlite", "--json", before=_unprivileged())
    out.chmod(0o755)
    assert (code, err) == (0, "") and json.loads(printed)["paid_calls"] > 1000


def test_a_run_into_a_read_only_folder_is_told_in_a_line(locked: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(paid_recipe("http://127.0.0.1:9/v1", seed=99)))
    code, _, err = cowest("run", recipe, "--out", locked / "new", before=_unprivileged())
    assert code == 1 and err.splitlines()[-1].startswith(f"cowest: {locked / 'new'}: Permission denied; give a folder")


# Full disks


FULL = """
mount -t tmpfs -o size={size} tmpfs {disk} || exit 77
head -c {ballast} /dev/zero > {disk}/ballast
{python} -m cowest run {recipe} --out {out} > /dev/null 2> {said}
echo $? > {said}.code
rm {disk}/ballast
{python} -m cowest run {recipe} --out {out} > /dev/null 2>> {said}.again
echo $? >> {said}.code
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ledger", "records"])
async def test_a_full_disk_is_named_and_the_same_command_continues(tmp_path: Path, what: str) -> None:
    disk, said = tmp_path / "disk", tmp_path / "said"
    disk.mkdir()
    # The other of the two is on another disk.
    out, ledger = (disk / "run", tmp_path / "l.sqlite") if what == "records" else (tmp_path / "run", disk / "l.sqlite")
    recipe, endpoint = tmp_path / "recipe.yaml", PaidEndpoint()
    script = FULL.format(
        size="4m",
        ballast=4 * 2**20 - (60_000 if what == "records" else 200_000),
        disk=disk,
        python=sys.executable,
        recipe=recipe,
        out=out,
        said=said,
    )
    alone = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    async with endpoint.serve() as url:
        recipe.write_text(yaml.safe_dump(paid_recipe(url, ledger=str(ledger))))
        process = await asyncio.create_subprocess_exec(
            *alone, "sh", "-c", script, stderr=asyncio.subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, err = await process.communicate()
    if process.returncode == 77 or b"unshare" in err:
        pytest.skip(f"no disk can be mounted here: {err.decode()}")
    first, second = Path(f"{said}.code").read_text().split()
    last = said.read_text().splitlines()[-1]
    assert first == "1" and last.startswith(f"cowest: {disk}/") and "ree some space" in last, said.read_text()
    assert "Traceback" not in said.read_text()
    assert second == "0", Path(f"{said}.again").read_text()
    again = len(endpoint.answered) - len(set(endpoint.answered))
    assert again <= 6 if what == "ledger" else again == 0, "what was entered is not asked again"


def test_a_file_that_may_not_grow_is_named(tmp_path: Path, finished: Path) -> None:
    target = tmp_path / "calls.jsonl"
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        f"sys.argv = ['cowest', 'ledger', {str(finished)!r}, '--export', {str(target)!r}]; "
        "from cowest.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr
        == f"cowest: {target}: File too large; free some space there and run the same command: it continues "
        + ("where it was\n")
    )
    assert list(tmp_path.iterdir()) == [], "and no half of it is left"


# A ledger that is gone


def _being_made(path: Path) -> None:
    """A database without tables: what another process that makes a ledger begins with."""
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        assert path.stat().st_size


def _new_ledger(path: Path) -> None:
    from cowest.ledger.schema import connect

    path.unlink()
    connect(path).close()


LOST: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "new": _new_ledger,
    "being made": _being_made,
    "without its log": lambda path: path.write_bytes(b"SQLite format 3\0" + path.read_bytes()[16:20] + bytes(4076)),
}


@pytest.mark.parametrize("how", LOST)
async def test_nothing_is_paid_again_silently_when_the_ledger_is_lost(tmp_path: Path, how: str) -> None:
    endpoint, out = PaidEndpoint(), tmp_path / "run"
    more: dict[str, JsonValue] = {"evaluate": {"answer": {"max_tokens": 33}}}
    async with endpoint.serve() as url:
        await run(config_from_dict(paid_recipe(url)), out, Log())
        paid = len(endpoint.answered)
        LOST[how](out / "ledger.sqlite")
        await run(config_from_dict(paid_recipe(url)), out, Log())  # all is there: nothing would be asked
        assert len(endpoint.answered) == paid
        with pytest.raises(Exception, match=r"ledger\.sqlite") as stopped:
            await run(config_from_dict(paid_recipe(url, **more)), out, Log())
        assert len(endpoint.answered) == paid
        if how != "without its log":
            assert isinstance(stopped.value, StageError) and "records" in str(stopped.value)
            await run(config_from_dict(paid_recipe(url, cache="refresh", **more)), out, Log())
            assert len(endpoint.answered) > paid


async def test_a_run_that_was_never_paid_for_needs_no_ledger(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    async with endpoint.serve() as url:
        await run(config_from_dict(paid_recipe(url)), tmp_path / "run", Log())
    assert endpoint.answered
