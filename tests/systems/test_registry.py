"""The registry of systems: one name each, old names read, and systems that other packages bring."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, cowest_main, question, tiny_recipe, world

from cowest.assembly.prepare import prepare
from cowest.errors import ConfigError
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.pipeline import run
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.systems.registry import SYSTEMS, TABLE, VARIANTS, current_name, evaluated, find_systems, variant_of
from cowest.table.plan import make_plan
from cowest.table.results import pools, results_of
from cowest.table.run import open_plan, run_table

URL = "http://127.0.0.1:1/v1"
SERVED: JsonValue = {"kind": "openai", "model": "w", "api_key_env": None, "base_url": URL, "max_attempts": 1}


def recipe_dict(systems: list[JsonValue]) -> dict[str, JsonValue]:
    short: JsonValue = {"max_tokens": 12}
    evaluate: JsonValue = {"systems": systems, "answer": short, "draft": short}
    return tiny_recipe("no/such/weak/model", URL) | {"evaluate": evaluate}


def recipe(systems: list[JsonValue], **changes: JsonValue) -> RunConfig:
    return config_from_dict(recipe_dict(systems) | changes)


def test_every_name_is_one_systems_and_old_ones_lead_to_it() -> None:
    names = [name for spec in SYSTEMS for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))
    assert len(TABLE) == 24 and set(TABLE) < set(SYSTEMS) and len(SYSTEMS) == 49
    assert {spec.variant for spec in SYSTEMS} == set(VARIANTS)
    assert [s.name for s in find_systems(["strong_cot", "weak_sft", "bm25"], "x")] == ["strong", "weak", "bm25"]
    assert (current_name("weak_sft"), current_name("weak"), current_name("mine")) == ("weak", "weak", "mine")


def test_an_unknown_system_is_named_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"table.rows: there is no system 'colab_cot'; did you mean 'collab_cot'\?"):
        find_systems(["colab_cot"], "table.rows")
    with pytest.raises(ConfigError, match=r"evaluate\.systems: there is no system ''; there are: weak, strong, collab"):
        find_systems([""], "evaluate.systems")


@pytest.mark.parametrize("names", [("bm25", "bm25"), ("weak", "weak_sft"), ("strong_cot", "strong")])
def test_one_that_is_named_twice(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"x: {current_name(names[0])} is named twice"):
        find_systems(names, "x")


def test_a_run_evaluates_any_system_of_its_own_weak_model() -> None:
    config = recipe(["weak_sft", "flare", "best_of_k", "weak_aligned", "collab_cot_aligned", "strong"])
    names = ["weak", "flare", "best_of_k", "weak_aligned", "collab_cot_aligned", "strong"]
    assert [spec.name for spec in evaluated(config)[0]] == names
    assert {variant_of(config, spec)[0] for spec in evaluated(config)[0]} == {"main"}


@pytest.mark.parametrize(
    ("systems", "changes", "message"),
    [
        (["weak", "stronk"], {}, "evaluate.systems: there is no system 'stronk'; did you mean 'strong'"),
        (["rlwf"], {}, "rlwf has a weak model of its own .pairs.signal: draft, pairs.rule: ordered.*table.rows"),
        (["collab_direct"], {}, "collab_direct has a weak model of its own .draft.format: direct"),
        (["collab_cot"], {"draft": {"format": "knowledge"}}, "collab_cot has a weak model of its own"),
        (["collab_aligned"], {"weak": SERVED}, "evaluate.systems: none is left: collab_aligned: it trains the weak model"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_evaluate_is_said_before_anything_is_made(
    systems: list[JsonValue], changes: dict[str, JsonValue], message: str, tmp_path: Path
) -> None:
    config = recipe(systems, **{"weak": SERVED, **changes})
    with pytest.raises(ConfigError, match=message):
        prepare(config, tmp_path, Log())


def test_a_recipe_with_a_variants_settings_has_its_rows() -> None:
    config = recipe(["rlwf", "weak_aligned"], pairs={"signal": "draft", "rule": "ordered"})
    assert [spec.name for spec in evaluated(config)[0]] == ["rlwf", "weak_aligned"]


def test_a_served_weak_model_is_never_aligned() -> None:
    config = recipe(["weak", "strong", "collab", "collab_aligned"], weak=SERVED)
    assert [spec.name for spec in evaluated(config)[0]] == ["weak", "strong", "collab"]
    assert "served elsewhere" in evaluated(config)[1]["collab_aligned"]


# Systems of other packages

TOY = '''
from cowest.systems.calls import predict
from cowest.systems.spec import SystemSpec


class Twice:
    """The strong model, asked the same twice; its second text is the answer."""

    def __init__(self, parts):
        self.name, self._parts = parts.name, parts

    async def answer(self, example):
        return await predict(example, self.name, self._steps)

    async def _steps(self, example, tally):
        p, messages = self._parts, self._parts.own.solo(example)
        await tally.ask(p.strong, messages, p.answer, "first")
        return await tally.ask(p.strong, messages, p.answer, "second")


TWICE = SystemSpec("twice", "the strong model, asked twice", Twice)
OTHER = SystemSpec("another", "calls itself otherwise", Twice)
BROKEN = 7
'''


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *points: str, package: str = "cowest_toy") -> None:
    """A package with these entry points, as pip leaves it."""
    (folder / f"{package}.py").write_text(TOY)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cowest.systems]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_package_brings_a_system_to_list_prompts_run_and_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "twice = cowest_toy:TWICE")
    assert cowest_main(monkeypatch, "table", "--list") == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=1) == ["twice", "the strong model, asked twice"]
    assert cowest_main(monkeypatch, "prompts", "ifqa", "twice", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["messages"] == second["messages"] and (first["model"], second["call"]) == ("strong", 2)

    async def go() -> None:
        model = ScriptedChatModel(lambda messages, sampling: "Answer: yes")
        async with serve(make_app(model, model_name="m")) as url:
            served: JsonValue = {"kind": "openai", "model": "m", "api_key_env": None, "base_url": url}
            rows: JsonValue = {"rows": ["twice", "strong"]}
            changes: dict[str, JsonValue] = {"weak": served, "strong": served, "table": rows}
            config = config_from_dict(recipe_dict(["strong", "twice"]) | changes)
            done = await run(config, tmp_path / "run", Log())
            assert done.results[""].systems["twice"].usage.calls == 2 * len(world().examples("test"))
            assert (tmp_path / "run" / "predictions" / "twice.jsonl").exists()
            assert "twice" in done.report.read_text(encoding="utf-8")
            plan = make_plan(config)
            await run_table(plan, tmp_path / "table", Log())
            made = results_of(plan, pools(plan, open_plan(plan, tmp_path / "table", Log(), offline=True)))
            assert list(made.tables[0].rows) == ["twice", "strong"]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("point", "name", "message"),
    [
        ("broken = cowest_toy:BROKEN", "broken", "x: cowest_toy:BROKEN is no system: it has no name, about, build"),
        ("gone = cowest_toy:GONE", "gone", "x: the system 'gone' .cowest_toy:GONE. failed: AttributeError"),
        ("absent = no_such_package:X", "absent", "'absent' .no_such_package:X. failed: ModuleNotFoundError"),
        ("third = cowest_toy:OTHER", "third", "the system 'third' calls itself 'another'"),
        ("twice = cowest_toy:TWICE", "twyce", "did you mean 'twice'"),
    ],
)  # fmt: skip
def test_a_plug_in_that_is_wrong_is_named(
    point: str, name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, point)
    with pytest.raises(ConfigError, match=message):
        find_systems([name], "x")


def test_a_name_that_is_claimed_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    install(monkeypatch, tmp_path / "a", "twice = cowest_toy:TWICE")
    points = ("twice = cowest_toy_two:TWICE", "bm25 = cowest_toy_two:TWICE")
    install(monkeypatch, tmp_path / "b", *points, package="cowest_toy_two")
    with pytest.raises(ConfigError, match=r"a system 'twice' \(cowest_toy:TWICE, cowest_toy_two:TWICE\)"):
        find_systems(["twice"], "x")
    assert find_systems(["bm25"], "x")[0] in SYSTEMS  # cowest's own cannot be taken away


def test_a_question_of_a_toy_is_answered_with_its_usage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cowest.assembly.systems import build_system

    install(monkeypatch, tmp_path, "twice = cowest_toy:TWICE")
    context = prepare(recipe(["strong"], weak=SERVED), tmp_path, Log())[0]
    model = ScriptedChatModel(lambda messages, sampling: "Answer: yes")
    (spec,) = find_systems(["twice"], "x")
    done = asyncio.run(build_system(context, spec, lambda: model, lambda which: model).answer(question()))
    assert (done.text, done.system, done.usage.calls) == ("Answer: yes", "twice", 2)
