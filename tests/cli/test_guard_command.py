"""`cowest guard RUN` on runs whose recipes named no guard: what it prints, what it asks, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.guard_runs import CALIBRATION, ROWS, SAMPLES, SYSTEMS, TASK, TEST, by_model, guarded_recipe
from tests.helpers import cowest_main
from tests.paid_endpoint import PaidEndpoint, answering

from cowest.recipe.config import config_from_dict
from cowest.recipe.kept import keep_recipe


class Made:
    """A finished run, and the endpoint behind it."""

    def __init__(self, endpoint: PaidEndpoint, url: str, out: Path) -> None:
        self.endpoint, self.url, self.out = endpoint, url, out

    def copy(self, target: Path) -> Path:
        """The run elsewhere."""
        return Path(shutil.copytree(self.out, target / "run"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    out, endpoint = tmp_path_factory.mktemp("runs") / "paid", PaidEndpoint(logprobs=True)
    plain: JsonValue = {"systems": SYSTEMS}
    with pytest.MonkeyPatch.context() as patch, answering(endpoint) as url:
        recipe = out.parent / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(guarded_recipe(url, evaluate=plain)))
        assert cowest_main(patch, "run", str(recipe), "--out", str(out)) == 0
        yield Made(endpoint, url, out)


def test_a_finished_run_gets_a_guard(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = made.copy(tmp_path), by_model(made.endpoint)
    report = (out / "results.json").read_bytes()
    assert cowest_main(monkeypatch, "guard", str(out)) == 0
    said = capsys.readouterr()
    assert "guarded" in said.out and "cascade" in said.out and "evaluate: reused" in said.out + said.err
    asked = by_model(made.endpoint) - before
    # Rows that are one arm always ask what its own system has asked.
    assert CALIBRATION * (1 + SAMPLES) <= asked["weak"] <= (CALIBRATION + TEST) * (1 + SAMPLES)
    assert 2 * CALIBRATION <= asked["strong"] <= 2 * (CALIBRATION + TEST)
    assert (out / "results.json").read_bytes() == report

    paid = len(made.endpoint.answered)
    assert cowest_main(monkeypatch, "guard", str(out), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found.values()
    assert list(one["results"]["systems"]) == [*SYSTEMS, *ROWS]
    assert one["risk"] == 0.2 and isinstance(one["promised"], bool)
    assert len(made.endpoint.answered) == paid

    assert cowest_main(monkeypatch, "guard", str(out), "--risk", "0.9") == 0
    said = capsys.readouterr()
    assert "guard: run again, because guard.risk changed from 0.2 to 0.9" in said.out + said.err
    new = [json.loads(body)["model"] for body in made.endpoint.answered[paid:]]
    assert len(new) <= 2 * TEST and set(new) <= {"strong"}  # of its rows


def test_a_run_that_is_changed_is_told_of(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made.copy(tmp_path)
    kept = yaml.safe_load((out / "recipe.yaml").read_text())
    kept["strong"]["model"] = "stronger"
    (out / "recipe.yaml").write_text(yaml.safe_dump(kept))
    assert cowest_main(monkeypatch, "guard", str(out)) == 0
    said = capsys.readouterr()
    assert "feedback: run again, because strong.model changed from strong to stronger" in said.out + said.err


def test_a_weak_model_without_logprobs_is_told_before_the_strong_one_is_asked(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, before = made.copy(tmp_path), by_model(made.endpoint)
    monkeypatch.setattr(made.endpoint, "logprobs", False)
    assert cowest_main(monkeypatch, "guard", str(out)) == 1
    assert "gives no log-probabilities" in capsys.readouterr().err
    asked = by_model(made.endpoint) - before
    assert not asked["strong"] and 0 < asked["weak"] <= CALIBRATION
    assert cowest_main(monkeypatch, "guard", str(out), "--no-confidence") == 0
    assert max(Counter(made.endpoint.answered[sum(before.values()) :]).values()) == 1
    kept = yaml.safe_load((out / "recipe.yaml").read_text())
    assert kept["guard"]["confidence"] is False


def rows_of_one_class(folder: Path) -> JsonValue:
    for split, n in (("train", 80), ("validation", 4), ("test", 4)):
        lines = [
            {"id": f"{split}{i}", "input": f"{split} {i}?", "answer": "yes", "choices": ["yes", "no"]} for i in range(n)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return {"kind": "jsonl", "labels": ["yes", "no"], "calibration": 60, **files}


JUDGE: JsonValue = {"kind": "openai", "model": "judge", "api_key_env": None, "base_url": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no data", "8 questions are left to calibrate on"),
        ("one class", "calibration questions have the answer 'yes': nothing can be learned from one class"),
        ("judged", "this recipe has its answers judged"),
        ("no run", "is no run directory"),
    ],
)
def test_refusals_are_one_line_and_ask_nothing(
    case: str,
    said: str,
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes: dict[str, dict[str, JsonValue]] = {
        "no data": {"task": TASK | {"calibration": 0}},
        "one class": {"task": rows_of_one_class(tmp_path)},
        "judged": {"feedback": {"judge": JUDGE}},
    }
    out, paid = tmp_path / "run", len(made.endpoint.answered)
    if case != "no run":
        recipe = guarded_recipe(made.url, evaluate={"systems": SYSTEMS}) | changes.get(case, {})
        keep_recipe(config_from_dict(recipe), out)
    before = sorted(tmp_path.rglob("*"))
    assert cowest_main(monkeypatch, "guard", str(out)) == 2
    told = capsys.readouterr()
    assert said in told.err.replace("\n", " ") and "Traceback" not in told.err and not told.out
    assert len(made.endpoint.answered) == paid and sorted(tmp_path.rglob("*")) == before


def test_validate_says_it_too(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(guarded_recipe(made.url)))
    assert cowest_main(monkeypatch, "validate", str(recipe)) == 0
    assert cowest_main(monkeypatch, "validate", str(recipe), "--set", "task.calibration=0") == 2
    assert "set task.calibration" in capsys.readouterr().err


@pytest.mark.parametrize("row", ROWS)
def test_prompts_shows_all_that_a_row_may_ask(
    row: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cowest_main(monkeypatch, "prompts", "medicine", row, "--json") == 0
    asked = [(shown["model"], shown["sampling"]["logprobs"]) for shown in json.loads(capsys.readouterr().out)]
    assert asked[0] == ("weak (sft)", 0) and ("weak (aligned)", 0) in asked
    assert [model for model, _ in asked].count("strong") == 2
    assert asked.count(("weak (sft)", None)) == 4  # guard.samples
    assert cowest_main(monkeypatch, "prompts", "ifqa", row) == 0
    assert "weak (base)" in capsys.readouterr().out


def test_a_run_without_a_guard_is_served_as_before(made: Made) -> None:
    from cowest.server.opening import open_served
    from cowest.server.settings import Settings

    opened = open_served(made.out, Settings())
    assert {name.rpartition(".")[2] for name in opened.served} >= {"weak", "strong", "collab"}
    assert not any(row in name for name in opened.served for row in map(str, ROWS))
