"""The table of prices, what is old in it, and who is told."""

from __future__ import annotations

import json
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from cowest.assembly.opened import sources_of
from cowest.cli.main import main
from cowest.costs.prices import OLD_DAYS, check_prices
from cowest.errors import ConfigError
from cowest.ledger.prices import Price, end_of, listed, price_list, price_of
from cowest.recipe.config import load_config

OPENAI = "https://api.openai.com/v1"
RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
TODAY = price_list().date


def recipe(folder: Path, strong: str, more: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        "name: mine\ntask: {kind: pubmedqa, sample: true}\nweak: {kind: local, model: tiny}\n"
        f"strong: {{kind: openai, base_url: '{OPENAI}', {strong}}}\n{more}"
    )
    return path


def test_the_table_is_sound() -> None:
    for found in price_list().models.values():
        assert 0 < found.price.input <= found.price.output, found.model
        assert found.instead is None or price_of(found.instead) is not None, found.model
        assert found.instead is None or not price_list().models[found.instead].ended(found.ends or TODAY), found.model
    assert set(price_list().pages) == set(price_list().hosts) == {m.provider for m in price_list().models.values()}


def test_a_model_is_found_by_its_name_its_snapshot_or_behind_a_provider() -> None:
    assert price_of("openai/gpt-4.1-2025-04-14") == price_of("gpt-4.1") == Price(2.0, 8.0)
    assert listed("gpt-4.1-micro") is None and price_of("gpt-6") is None


def test_an_end_is_the_provider_s_own() -> None:
    ending = end_of("gpt-4.1-nano", OPENAI)
    assert ending is not None and ending.ends == date(2026, 10, 23)
    assert ending.end(date(2026, 10, 22)).startswith("OpenAI ends gpt-4.1-nano on 2026-10-23")
    assert ending.end(date(2026, 10, 23)).startswith("OpenAI ended gpt-4.1-nano on 2026-10-23")
    for elsewhere in ("https://res.openai.azure.com/openai", "http://127.0.0.1:8000/v1", "${HOST}/v1", ""):
        assert end_of("gpt-4.1-nano", elsewhere) is None
    assert end_of("gpt-6-luna", OPENAI) is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_that_ship_name_models_that_can_be_had(path: Path) -> None:
    found = check_prices([path], TODAY + timedelta(days=OLD_DAYS))
    assert not found.old and not found.soon


def test_what_is_old_is_told_apart_from_what_will_be(tmp_path: Path) -> None:
    grid = (
        "table: {rows: [weak, strong], grid: {new: {}, old: {strong.model: gpt-4.1-nano}, own: {strong.model: mine}}}\n"
    )
    path = recipe(tmp_path, "model: gpt-4.1", grid)
    found = check_prices([path, path], TODAY)
    assert [line.model for line in found.models] == ["gpt-4.1", "gpt-4.1-nano", "mine"]
    assert found.models[1].where == [f"{path}: table.grid.old: strong"]
    [old] = found.old
    assert "OpenAI ended gpt-4.1-nano on 2026-10-23" in old and "table.grid.old" in old
    assert "ends gpt-4.1 on 2027-01-14" in found.soon[0] and "the price of mine is unknown" in found.soon[1]
    assert "ended gpt-4.1 on" in "".join(check_prices([path], date(2027, 1, 14)).old)


def test_an_old_table_and_a_price_that_has_run_out_are_old(tmp_path: Path) -> None:
    assert not check_prices([], TODAY).old
    late = check_prices([], TODAY + timedelta(days=OLD_DAYS + 1)).old
    assert f"{OLD_DAYS + 1} days old" in late[0] and "gemini-3.8-flash until 2026-12-31 only" in late[1]
    own = recipe(tmp_path, "model: gemini-3.8-flash, price: {input: 1, output: 2}")
    assert not check_prices([own], date(2027, 1, 1)).old
    assert check_prices([recipe(tmp_path, "model: gemini-3.8-flash")], date(2027, 1, 1)).old


def test_a_run_is_told_before_it_pays(tmp_path: Path) -> None:
    (note,) = sources_of(load_config(recipe(tmp_path, "model: o4-mini"))).strong.notes()
    assert "OpenAI ended o4-mini on 2026-10-23" in note
    assert not sources_of(load_config(recipe(tmp_path, "model: gpt-6-sol"))).strong.notes()


def cowest(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["cowest", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowest(monkeypatch, "prices") == 0
    listing = capsys.readouterr().out
    assert f"known on {TODAY}" in listing and "gpt-6-luna" in listing and "2026-10-23 (ended)" in listing
    path = recipe(tmp_path, "model: gpt-4.1-nano")
    assert cowest(monkeypatch, "prices", "--check", path) == 1
    assert "OpenAI ended gpt-4.1-nano" in capsys.readouterr().out
    assert cowest(monkeypatch, "prices", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["ends"] == "2026-10-23"
    local = next(p for p in RECIPES if p.name == "lab.yaml")
    assert cowest(monkeypatch, "prices", "--check", local) == 0
    assert capsys.readouterr().out == "no model behind an endpoint is named\n"
    assert cowest(monkeypatch, "prices", tmp_path / "none.yaml") == 2
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        check_prices([tmp_path / "none.yaml"], TODAY)
