"""``cowest doctor`` as a user meets it: a machine, a recipe, endpoints that answer, refuse or are not there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from tests.helpers import cowest_main, unused_url
from tests.paid_endpoint import PaidEndpoint, answering, paid_recipe

from cowest.doctor.packages import ENABLES, fits, wanted
from cowest.ledger.summary import summarise_ledger

ROOT = Path(__file__).parents[2]


class Listing(PaidEndpoint):
    """A paid endpoint that also lists its models, to whoever has the key."""

    def __init__(self, names: tuple[str, ...], key: str | None = None) -> None:
        super().__init__()
        self.names, self.key, self.asked = names, key, 0

    def routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self._models)

    async def _models(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.names]})


@contextmanager
def recipe_for(endpoint: PaidEndpoint, folder: Path, **changes: Any) -> Iterator[Path]:
    with answering(endpoint) as url:
        yield write(folder, url, **changes)


def write(folder: Path, url: str, **changes: Any) -> Path:
    recipe: dict[str, Any] = paid_recipe(url)
    for section in ("weak", "strong"):
        recipe[section] |= changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def diagnosed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit code, findings by name, stderr."""
    code = cowest_main(monkeypatch, "doctor", "--json", *map(str, arguments))
    out, err = capsys.readouterr()
    return code, {finding["name"]: finding for finding in json.loads(out)["findings"]}, err


def test_a_machine_is_looked_at_without_torch_and_its_keys_are_not_shown(tmp_path: Path) -> None:
    code = "import sys; from cowest.cli.main import app; app(['doctor'], standalone_mode=False); print('torch' in sys.modules)"
    env = {"OPENAI_API_KEY": "sk-not-to-be-shown-12345678", "PATH": "/usr/bin", "COWEST_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("False")
    for heading in ("machine", "disk", "devices", "packages", "settings"):
        assert f"\n{heading}\n" in done.stdout
    assert "sk-not" not in done.stdout + done.stderr
    assert "OPENAI_API_KEY       set" in done.stdout


def test_a_folder_that_is_not_there_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COWEST_MODELS_DIR", str(tmp_path / "gone"))
    code, found, _ = diagnosed(monkeypatch, capsys)
    assert code == 1
    assert found["COWEST_MODELS_DIR"]["state"] == "broken" and "no such folder" in found["COWEST_MODELS_DIR"]["said"]


def test_runs_that_cannot_be_written_are_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs").write_text("a file", encoding="utf-8")
    code, found, _ = diagnosed(monkeypatch, capsys)
    assert code == 1 and found["runs"]["state"] == "broken"


def test_an_endpoint_is_asked_for_its_models_and_paid_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = {str(paid_recipe("x")[section]["model"]) for section in ("weak", "strong")}  # type: ignore[index,call-overload]
    endpoint = Listing(tuple(names))
    with recipe_for(endpoint, tmp_path) as path:
        code, found, _ = diagnosed(monkeypatch, capsys, path)
    assert code == 0 and found["strong"]["state"] == "ok"
    assert endpoint.asked == len(names) and not endpoint.answered


def test_a_name_that_is_not_listed_is_a_warning_and_no_list_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with recipe_for(Listing(("other",)), tmp_path) as path:
        code, found, _ = diagnosed(monkeypatch, capsys, path)
    assert code == 0 and found["strong"]["state"] == "warning" and "none is called" in found["strong"]["said"]
    with recipe_for(PaidEndpoint(), tmp_path) as path:
        code, found, _ = diagnosed(monkeypatch, capsys, path)
    assert code == 0 and found["strong"]["state"] == "note"


@pytest.mark.parametrize("body", ["[" * 100_000, "null", '{"data": {"a": 1}}', '{"data": [null]}', "\xff", ""])
def test_a_list_that_is_none_is_a_note(
    body: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Odd(PaidEndpoint):
        def routes(self, app: web.Application) -> None:
            app.router.add_get("/v1/models", self._odd)

        async def _odd(self, _: web.Request) -> web.Response:
            return web.Response(body=body.encode("latin-1"))

    with recipe_for(Odd(), tmp_path) as path:
        code, found, _ = diagnosed(monkeypatch, capsys, path)
    assert code == 0 and found["strong"]["state"] == "note"


def test_a_server_that_is_down_or_wants_another_key_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with unused_url() as url:
        code, found, _ = diagnosed(monkeypatch, capsys, write(tmp_path, url))
    assert code == 1 and found["strong"]["state"] == "broken" and "strong.base_url" in found["strong"]["todo"]
    monkeypatch.setenv("A_KEY", "the-wrong-key-123456")
    with recipe_for(Listing(("x",), key="right"), tmp_path, api_key_env="A_KEY") as path:
        code, found, err = diagnosed(monkeypatch, capsys, path)
    assert code == 1 and "401" in found["strong"]["said"] and "A_KEY" in found["strong"]["todo"]
    assert "the-wrong-key" not in json.dumps(found) + err
    monkeypatch.delenv("A_KEY")
    code, found, _ = diagnosed(monkeypatch, capsys, write(tmp_path, "http://127.0.0.1:9/v1", api_key_env="A_KEY"))
    assert code == 1 and "A_KEY is not set" in found["strong"]["said"]


def test_a_call_is_paid_through_the_ledger_and_told_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    endpoint = PaidEndpoint()
    with recipe_for(endpoint, tmp_path) as path:
        code, found, err = diagnosed(monkeypatch, capsys, path, "--call")
        calls = len(endpoint.answered)
        assert code == 0 and calls > 0
        assert found["strong: call"]["state"] == "ok" and "USD" in found["strong: call"]["said"]
        assert "strong: asking" in err and "at most 0.000296 USD" in err  # (40 x 1 + 64 x 4) / 1e6
        bill = summarise_ledger(tmp_path / "runs" / "paid" / "ledger.sqlite", "paid")
        assert bill.answered == calls
        diagnosed(monkeypatch, capsys, path, "--call")
        assert len(endpoint.answered) == 2 * calls  # a ledger's answer would not show that the server lives


def test_a_budget_that_is_spent_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    endpoint = PaidEndpoint()
    with recipe_for(endpoint, tmp_path) as path:
        code, found, _ = diagnosed(monkeypatch, capsys, path, "--call", "--set", "budget_usd=0.0000001")
    assert code == 1 and not endpoint.answered
    assert found["strong: call"]["state"] == "broken" and "budget" in found["strong: call"]["said"]


def test_what_cannot_run_here_is_told_from_what_has_no_endpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "local.yaml"
    recipe = paid_recipe("x") | {"weak": {"kind": "local", "model": "org/not-here"}}
    path.write_text(yaml.safe_dump(recipe | {"strong": {"kind": "local", "model": "lab:strong"}}), encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("COWEST_MODELS_DIR", raising=False)
    code, found, _ = diagnosed(monkeypatch, capsys, path, "--call")
    assert code == 1 and found["call"]["state"] == "note"
    if found["packages"]["state"] == "ok":
        assert found["models"]["state"] == "broken" and "org/not-here" in found["models"]["said"]


def test_call_wants_a_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowest_main(monkeypatch, "doctor", "--call") == 2
    assert "name the recipe" in capsys.readouterr().err


def test_an_extra_that_is_missing_or_old_names_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "matplotlib":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name in ("bm25s", "numpy") else real(name)

    monkeypatch.setattr("cowest.doctor.packages.version", version)
    code, found, _ = diagnosed(monkeypatch, capsys)
    assert code == 1  # numpy is the core's
    assert found["core"]["state"] == "broken" and "numpy 0.1 is outside >=2.0" in found["core"]["said"]
    assert found["plots"]["state"] == "note" and found["plots"]["todo"] == "pip install 'cowest[plots]'"
    assert found["retrieval"]["state"] == "warning" and "bm25s 0.1 is outside" in found["retrieval"]["said"]


@pytest.mark.parametrize(
    ("version", "bounds", "right"),
    [
        ("2.13.0+cpu", ">=2.8", True),
        ("2.7.1", ">=2.8", False),
        ("2.10", ">=2.8", True),
        ("0.2", "<0.2,>=0.1.4", False),
        ("0.1.5", "<0.2,>=0.1.4", True),
        ("5.0", ">=5", True),
        ("1.4.2", "==1.4.*", True),
        ("1.5", "==1.4.*", False),
        ("1.0", "", True),
        ("unknown", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, bounds: str, right: bool) -> None:
    assert fits(version, bounds) is right


def test_metadata_is_read_as_packages_declare_it() -> None:
    one, two = wanted(["torch>=2.8; extra == 'local'", 'cowest[local]; extra == "train"', "a (>1"])[:2]
    assert (one.name, one.bounds, one.extra) == ("torch", ">=2.8", "local")
    assert (two.name, two.extras, two.extra) == ("cowest", ("local",), "train")


def test_every_extra_says_what_it_enables() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras) - {"all", "dev", "docs"} <= set(ENABLES)
