"""From exchanges with feedback to examples and pairs: what becomes of which, and that the next run trains on it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import Oracle, run_tiny, save_tiny_model, tiny_recipe, world
from tests.server.loopback import Client
from typer.testing import CliRunner

from cowest.cli.main import app
from cowest.errors import ConfigError, DataError
from cowest.ledger.exchanges import Exchanged, ExchangeLog, Mode, Turn, Verdict
from cowest.models.endpoint import make_app, serve
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.collect import collect, examples, forget, preferences
from cowest.server.collector import open_collector
from cowest.server.metrics import Metrics
from cowest.server.opening import open_served
from cowest.server.runner import listening
from cowest.server.settings import Settings
from cowest.tasks.jsonl_rows import Problems, read_rows
from cowest.types import Message, PreferencePair


def exchange(
    id_: str, text: str = "May I?", draft: str | None = "maybe", *before: Turn, mode: Mode = "both", **fields: Any
) -> Exchanged:
    messages = (*before, Turn(role="user", text=text))
    prompt = (Message(role="user", content=f"Draft for: {text}"),)
    known: dict[str, Any] = {"at": 1.0, "task": "", "model": "tiny", "answers": ("no",)}
    known |= {"messages": messages, "turn": len(messages) - 1, "prompt": prompt, "draft": draft, "mode": mode}
    return Exchanged(**known | {"id": id_} | fields)


def says(helpful: bool | None = None, answer: str | None = None) -> Verdict:
    return Verdict(at=2.0, helpful=helpful, answer=answer)


def test_a_right_answer_becomes_a_row() -> None:
    judged = [(exchange("a", context="Kasti", choices=("yes", "no")), says(answer="no"))]
    left_out = Counter[str]()
    assert examples(judged, left_out) == [
        {
            "id": "collected-a",
            "input": "May I?",
            "references": ["no"],
            "context": "Kasti",
            "choices": ["yes", "no"],
            "metadata": {"exchanges": "a"},
        }
    ]
    assert left_out == {}


def test_earlier_turns_stay_turns_and_come_back_in_the_next_run(tmp_path: Path) -> None:
    before: tuple[Turn, ...] = (Turn(role="system", text="Be brief."), Turn(role="user", text="I have Kasti."))
    before += (Turn(role="assistant", text="I see."), Turn(role="tool", text="7"))
    after = (exchange("b", "And now?", "d"), says(answer="yes"))
    found = examples([(exchange("a", "And now?", "d", *before), says(answer="no")), after], Counter())
    assert [row.get("input") for row in found] == [None, "And now?"], "the same question after other turns is another"
    path, problems = tmp_path / "c.jsonl", Problems()
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    one, other = (row.example for row in read_rows(path, "collected", problems))
    assert not problems.lines and one.references == ("no",) and one.context is None
    assert [(t.role, t.content) for t in one.turns] == [
        ("system", "Be brief."), ("user", "I have Kasti."), ("assistant", "I see.")
    ]  # fmt: skip
    assert (one.input, other.input, other.turns) == ("And now?", "And now?", ())


def test_several_right_answers() -> None:
    judged = [
        (exchange("a", "Who?"), says(answer="Mira Ost")),
        (exchange("b", "Who?"), says(answer="M. Ost")),
        (exchange("c", "Who?"), says(answer="mira ost")),
        (exchange("d", "Yes?", choices=("yes", "no")), says(answer="yes")),
        (exchange("e", "Yes?", choices=("no", "yes")), says(answer="no")),
        (exchange("f", "Hm?", choices=("yes", "no")), says(answer="perhaps")),
        (exchange("g", turn=-1), says(answer="x")),
    ]
    left_out = Counter[str]()
    (row,) = examples(judged, left_out)
    assert row["references"] == ["mira ost", "M. Ost"]
    assert row["metadata"] == {"exchanges": "a b c"}
    assert left_out == {
        "answer_repeated": 1,
        "answers_contradict": 2,
        "answer_not_among_choices": 1,
        "answer_without_question": 1,
    }


def texts(pairs: Sequence[PreferencePair]) -> list[tuple[str, str]]:
    return [(p.chosen[0].content, p.rejected[0].content) for p in pairs]


def test_a_contrast_becomes_a_pair() -> None:
    judged = [
        (exchange("a", draft="good"), says(True)),
        (exchange("b", draft="bad"), says(False)),
        (exchange("c", "Another?", draft="good"), says(True)),
    ]
    left_out = Counter[str]()
    (pair,) = preferences(judged, left_out)
    assert pair == PreferencePair(
        example_id="collected-a",
        prompt=(Message(role="user", content="Draft for: May I?"),),
        chosen=(Message(role="assistant", content="good"),),
        rejected=(Message(role="assistant", content="bad"),),
        chosen_gain=1.0,
        rejected_gain=0.0,
    )
    assert pair.margin == 1.0 and left_out == {"verdict_without_contrast": 1}


def test_verdicts_that_make_no_pair_are_counted() -> None:
    judged = [
        (exchange("a", draft="x"), says(True)),
        (exchange("b", draft="x "), says(False)),
        (exchange("c", draft="y"), says(True)),
        (exchange("d", draft="y"), says(True)),
        (exchange("e", draft=None, mode="strong_alone"), says(False)),
        (exchange("f", draft="z", mode="weak_alone"), says(False)),
        (exchange("g", draft="y"), says(answer="no")),
    ]
    left_out = Counter[str]()
    assert preferences(judged, left_out) == []
    assert left_out == {
        "verdicts_contradict": 2,
        "verdict_repeated": 1,
        "verdict_without_collaboration": 2,
        "verdict_without_contrast": 1,
    }


def test_one_query_gives_four_pairs_at_most() -> None:
    judged = [(exchange(f"{i}", draft=f"draft {i}"), says(i % 2 == 0)) for i in range(6)]
    left_out = Counter[str]()
    assert texts(preferences(judged, left_out))[0] == ("draft 0", "draft 1")
    assert len(preferences(judged, Counter())) == 4 and left_out == {"pairs_over_maximum": 5}


def written(path: Path, *judged: tuple[Exchanged, Verdict | None], run: str = "tiny") -> Path:
    """A ledger file with these exchanges."""

    async def go() -> None:
        log = ExchangeLog(path, run)
        for entry, verdict in judged:
            await log.record(entry)
            if verdict is not None:
                await log.judge(entry.id, verdict)
        log.close()

    asyncio.run(go())
    return path


def recipe_in(folder: Path, **changes: JsonValue) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe("w", "http://127.0.0.1:9/v1", **changes)))
    return folder


def test_the_command_writes_both_files_and_counts(tmp_path: Path) -> None:
    run = recipe_in(tmp_path / "run")
    written(
        run / "ledger.sqlite",
        (exchange("a", draft="good"), says(True, "no")),
        (exchange("b", draft="bad"), says(False)),
        (exchange("c", "Unjudged?"), None),
    )
    got = CliRunner().invoke(app, ["collect", str(run), "--json"])
    assert got.exit_code == 0
    task = json.loads(got.stdout)["tasks"][""]
    assert task["examples_file"] == str(run / "collected.jsonl")
    assert {k: task[k] for k in ("exchanges", "with_feedback", "right_answers", "verdicts", "examples", "pairs")} == {
        "exchanges": 3, "with_feedback": 2, "right_answers": 1, "verdicts": 2, "examples": 1, "pairs": 1
    }  # fmt: skip
    problems = Problems()
    (row,) = read_rows(run / "collected.jsonl", "train", problems)
    assert row.example.references == ("no",) and row.example.rationale is None and not problems.lines
    assert texts(JsonlFile(run / "collected.pairs.jsonl", PreferencePair).load()) == [("good", "bad")]
    told = CliRunner().invoke(app, ["collect", str(run), "--out", str(tmp_path / "x.jsonl")]).stdout
    assert "3 exchanges, 2 with feedback (1 right answers, 2 verdicts)" in told
    assert f"--set task.collected={tmp_path / 'x.jsonl'}" in told and (tmp_path / "x.pairs.jsonl").exists()


def test_domains_have_files_of_their_own(tmp_path: Path) -> None:
    tasks: JsonValue = {name: {"kind": "lab", "domain": "medicine", "entities": 12, "train": 40} for name in ("m", "n")}
    run = recipe_in(tmp_path / "run", task=None, tasks=tasks)
    ledger = written(
        run / "ledger.sqlite",
        (exchange("a", task="m"), says(answer="no")),
        (exchange("b", task="n"), says(answer="yes")),
        (exchange("c", task="n"), None),
    )
    found = collect(run)
    assert found.ledger == str(ledger) and {n: t.exchanges for n, t in found.tasks.items()} == {"m": 1, "n": 2}
    assert (run / "m/collected.jsonl").read_text() != (run / "n/collected.jsonl").read_text()
    with pytest.raises(ConfigError, match="--task NAME"):
        collect(run, tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match="domains are m, n"):
        collect(run, only="o")
    assert list(collect(run, tmp_path / "x.jsonl", "n").tasks) == ["n"]


def test_where_nothing_was_collected_it_says_so(tmp_path: Path) -> None:
    run = recipe_in(tmp_path / "run")
    with pytest.raises(DataError, match="--collect"):
        collect(run)
    written(run / "ledger.sqlite", (exchange("a"), says(True)), run="another")
    with pytest.raises(DataError, match="nothing was collected for tiny"):
        collect(run)
    (run / "ledger.sqlite").write_bytes(b"no database at all, but long enough to be one")
    with pytest.raises(DataError, match="ledger"):
        collect(run)
    assert not (run / "collected.jsonl").exists()


def test_what_was_collected_can_be_deleted(tmp_path: Path) -> None:
    run = recipe_in(tmp_path / "run")
    old, new = exchange("a"), exchange("b", at=4e9)
    written(run / "ledger.sqlite", (old, says(True)), (new, says(True)), (exchange("c", at=4e9), None))
    assert forget(run, [], 30).exchanges == 1
    got = CliRunner().invoke(app, ["collect", str(run), "--delete", "b"])
    assert got.exit_code == 0 and got.stdout.startswith("1 exchanges deleted")
    assert collect(run).tasks[""].exchanges == 1
    assert forget(run, ["all"], None).exchanges == 1
    with pytest.raises(DataError, match="nothing was collected"):
        collect(run)


NEW = {f"May a patient take {i} mg of Newdrug?": ("yes", "no", "maybe")[i % 3] for i in range(3)}


@pytest.mark.slow
def test_feedback_on_a_served_pair_trains_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a recipe, ask over HTTP, send feedback, collect, train."""
    monkeypatch.chdir(tmp_path)
    weak, labels = save_tiny_model(tmp_path / "weak"), world().labels
    recipe = tmp_path / "recipe.yaml"

    async def ask_and_judge() -> None:
        async with serve(make_app(Oracle(more=NEW), model_name="strong")) as url:
            sampled: JsonValue = {"temperature": 1.0, "max_tokens": 12}
            found = tiny_recipe(
                weak, url, evaluate={"draft": sampled, "answer": {"temperature": 0.0, "max_tokens": 12}}
            )
            recipe.write_text(yaml.safe_dump(found))
            opened, metrics = open_served(recipe, Settings()), Metrics()
            with open_collector(opened.ledger, opened.run, metrics, None, True) as collector:
                server = Server(opened.served, opened.settings, Keys(), opened.breakers, metrics, collector=collector)
                async with listening(server, "127.0.0.1", 0) as base, aiohttp.ClientSession() as session:
                    await feedback(Client(session, base, server))
            await opened.aclose()

    async def feedback(client: Client) -> None:
        for question, right in NEW.items():
            for helpful in (True, False):
                got = (await client.ask(question, model="tiny", cowest={"choices": list(labels)})).json
                told = await client.judge({"id": got["id"], "helpful": helpful, "answer": right})
                assert told.status == 200

    asyncio.run(ask_and_judge())
    got = CliRunner().invoke(app, ["collect", str(recipe), "--json"])
    assert got.exit_code == 0, got.output
    collected = json.loads(got.stdout)["tasks"][""]
    assert collected["exchanges"] == 6 and collected["examples"] == 3 and collected["pairs"] == 3

    path = tmp_path / "runs/tiny/collected.jsonl"
    task: dict[str, JsonValue] = {**world_section(), "collected": str(path)}
    done = run_tiny(weak, tmp_path / "next", Oracle(more=NEW), task=task)
    stages = done.results[""].stages
    assert stages["sft"].counts["rows"] == 40 + 3
    assert stages["pairs"].counts["pairs_collected"] == 3
    pairs = JsonlFile(tmp_path / "next/pairs.jsonl", PreferencePair).load()
    assert pairs[-3:] == JsonlFile(path.with_suffix(".pairs.jsonl"), PreferencePair).load()
    assert stages["align"].counts["pairs"] == len(pairs) > 3
    drafted = {line.split('"example_id":"')[1].split('"')[0] for line in (tmp_path / "next/drafts.jsonl").open()}
    assert sum(name.startswith("collected-") for name in drafted) == 3
    assert "from the feedback of users" in done.report.read_text()


def world_section() -> dict[str, JsonValue]:
    task = tiny_recipe("w", "http://127.0.0.1:9/v1")["task"]
    assert isinstance(task, dict)
    return task


def test_a_recipe_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    from cowest.assembly.build import build_task

    recipe = tiny_recipe("w", "http://127.0.0.1:9/v1", task={**world_section(), "collected": "none.jsonl"})
    config = config_from_dict(recipe, tmp_path)
    assert config.task is not None and config.task.collected == tmp_path / "none.jsonl"
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        build_task(config)
