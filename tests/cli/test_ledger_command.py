"""``cowest ledger`` and ``cowest estimate`` as a user meets them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.cli.main import main
from cowest.cli.starter import write_starter
from cowest.ledger.ledger import Ledger, call_of, purpose
from cowest.ledger.prices import Price
from cowest.ledger.summary import summarise_ledger
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.types import Attempt, Completion, Message, Sampling, Usage

Cowest = Callable[..., tuple[int, str, str]]
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture
def cowest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cowest:
    """The command: its exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cowest", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Two runs that share a ledger (the second is seeded anew); the first one's folder, and how many calls it made."""
    folder = tmp_path_factory.mktemp("runs")
    ledger, endpoint = str(folder / "shared.sqlite"), PaidEndpoint()

    async def go() -> int:
        async with endpoint.serve() as url:
            await run(config_from_dict(paid_recipe(url, ledger=ledger)), folder / "one", Log())
            paid = len(endpoint.answered)
            again = paid_recipe(url, ledger=ledger, name="other", seed=9)
            await run(config_from_dict(again), folder / "two", Log())
            return paid

    return folder / "one", asyncio.run(go())


def entered(path: Path, *entries: Callable[[Ledger], Awaitable[object]]) -> None:
    """Make a ledger with these entries."""

    async def go() -> None:
        ledger = Ledger(path, "run")
        for entry in entries:
            await entry(ledger)
        ledger.close()

    asyncio.run(go())


def answer(text: str, price: Price | None = None, *before: Attempt) -> Callable[[Ledger], Awaitable[object]]:
    async def enter(ledger: Ledger) -> None:
        usage = Usage(calls=1, input_tokens=1000, output_tokens=100, reasoning_tokens=60)
        last = Attempt(at=2.0, latency_s=7.25, outcome="ok", usage=usage)
        purpose.set("medicine: feedback")
        call = call_of("big-model", [Message(role="user", content=text)], Sampling(), {}, price)
        await ledger.answered(call, Completion(text=f"{text}!", usage=usage, latency_s=7.25, attempts=(*before, last)))

    return enter


def failure(kind: str, *attempts: Attempt) -> Callable[[Ledger], Awaitable[object]]:
    async def enter(ledger: Ledger) -> None:
        call = call_of("big-model", [Message(role="user", content=kind)], Sampling(), {}, Price(1.0, 10.0))
        await ledger.failed(call, kind, f"it was a {kind}", attempts)

    return enter


def test_a_runs_bill_is_its_own_and_its_files_is_everyones(finished: tuple[Path, int], cowest: Cowest) -> None:
    out, paid = finished
    code, printed, _ = cowest("ledger", out, "--json")
    own = json.loads(printed)
    assert code == 0 and own["run"] == "paid"
    assert own["answered"] == own["paid_calls"] == paid
    assert own["input_tokens"] == 20 * paid and own["output_tokens"] == 5 * paid
    assert own["cost_usd"] == own["at_most_usd"] == pytest.approx(paid * (20 * 1.0 + 5 * 4.0) / 1e6)
    assert set(own["purposes"]) == {"sample", "feedback", "evaluate"}
    assert sum(line["calls"] for line in own["purposes"].values()) == paid
    everyone = json.loads(cowest("ledger", out.parent / "shared.sqlite", "--json")[1])
    assert everyone == json.loads(cowest("ledger", out, "--all", "--json")[1])
    other = json.loads(cowest("ledger", out.parent / "two", "--json")[1])
    assert everyone["answered"] == paid + other["answered"] and other["answered"] > 0
    assert own["hits"] >= 0 and own == summarise_ledger(out.parent / "shared.sqlite", "paid").model_dump(mode="json")


def test_the_tables(finished: tuple[Path, int], cowest: Cowest) -> None:
    out, paid = finished
    code, printed, err = cowest("ledger", out)
    assert code == 0 and err == ""
    assert f"{paid:,} answers" in printed and f"{20 * paid:,} prompt tokens" in printed
    for word in ("by model", "by purpose", "weak", "strong", "evaluate", "the slowest", "cost: $0.0"):
        assert word in printed


def test_failures_retries_and_what_may_be_on_the_bill(tmp_path: Path, cowest: Cowest) -> None:
    path, price = tmp_path / "ledger.sqlite", Price(1.0, 10.0)
    limited = Attempt(at=1.0, latency_s=0.1, outcome="http_429")
    lost = Attempt(at=1.0, latency_s=30.0, outcome="timeout", maybe_paid=True)
    refused = Attempt(at=1.0, latency_s=1.0, outcome="refusal", usage=Usage(calls=1, input_tokens=500, output_tokens=5))
    entered(path, answer("a", price, limited, limited), failure("timeout", lost), failure("refusal", refused))
    bill = json.loads(cowest("ledger", path, "--json")[1])
    assert bill["failures"] == {"timeout": 1, "refusal": 1} and bill["retries"] == {"http_429": 2}
    assert (bill["answered"], bill["paid_calls"], bill["maybe_paid"]) == (1, 2, 1)
    known = (1000 * 1.0 + 100 * 10.0 + 500 * 1.0 + 5 * 10.0) / 1e6
    at_most = known + ((len("timeout") + 16) * 1.0 + 512 * 10.0) / 1e6
    assert bill["cost_usd"] == pytest.approx(known) and bill["at_most_usd"] == pytest.approx(at_most)
    assert bill["slowest"][0]["latency_s"] == 7.25 and bill["slowest"][0]["attempts"] == 3
    printed = cowest("ledger", path)[1]
    assert f"${known:.4f} at list or recipe prices (at most ${at_most:.4f})" in printed
    for word in ("1 timeout", "1 refusal", "2 http_429", "60 of them reasoning", "1 requests that were sent", "7.25"):
        assert word in printed


def test_an_unknown_price_is_said(tmp_path: Path, cowest: Cowest) -> None:
    path = tmp_path / "ledger.sqlite"
    entered(path, answer("a"))
    printed = cowest("ledger", path)[1]
    assert "unknown, as no price is known for big-model" in printed and "$" not in printed
    assert json.loads(cowest("ledger", path, "--json")[1])["cost_usd"] is None


def test_a_table_that_was_stopped_has_a_bill(finished: tuple[Path, int], tmp_path: Path, cowest: Cowest) -> None:
    """Its folder holds the ledger, and the recipe only at the end."""
    code, _, err = cowest("ledger", tmp_path)
    assert code == 2 and "no run directory" in err
    (tmp_path / "ledger.sqlite").write_bytes((finished[0].parent / "shared.sqlite").read_bytes())
    code, printed, _ = cowest("ledger", tmp_path, "--json")
    assert code == 0 and json.loads(printed)["answered"] > 0


def test_export(tmp_path: Path, cowest: Cowest) -> None:
    path, target = tmp_path / "ledger.sqlite", tmp_path / "calls.jsonl"
    timeout = Attempt(at=1.0, latency_s=30.0, outcome="timeout", maybe_paid=True)
    entered(path, answer("first", Price(1.0, 10.0)), failure("timeout", timeout), answer("second é"))
    code, printed, _ = cowest("ledger", path, "--export", target)
    assert code == 0 and printed == f"{target}: 3 entries\n"
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row["entry"] for row in rows] == ["answer", "failure", "answer"]
    assert rows[0]["request"]["messages"] == [{"role": "user", "content": "first"}]
    assert rows[0]["text"] == "first!" and rows[0]["cost_usd"] == pytest.approx(0.002)
    assert rows[1]["kind"] == "timeout" and rows[1]["attempts"][0]["maybe_paid"] is True
    assert rows[2]["cost_usd"] is None and rows[2]["text"] == "second é!"
    assert cowest("ledger", path, "--export", "-")[1] == target.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("ledger")) == ["calls.jsonl"]


def test_there_is_no_ledger(tmp_path: Path, cowest: Cowest) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no database at all, but a text that is long enough to be one\n" * 50)
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "recipe.yaml").write_text(yaml.safe_dump(paid_recipe(NOWHERE)))
    (tmp_path / "local").mkdir()
    here: dict[str, JsonValue] = {"kind": "local", "model": "lab:strong"}
    local = paid_recipe(NOWHERE, weak=here, strong=here)
    (tmp_path / "local" / "recipe.yaml").write_text(yaml.safe_dump(local))
    target = tmp_path / "calls.jsonl"
    target.write_text("as it was")
    for name, hint in {
        "nothing": "is no run directory",
        "empty": "is no run directory",
        "before": "not there yet",
        "local": "nothing was paid for",
        "text": "ledger",
    }.items():
        for more in ((), ("--json",), ("--export", str(target))):
            code, printed, err = cowest("ledger", tmp_path / name, *more)
            assert code == 2 and printed == "" and hint in err, (name, err)
            assert err.startswith("cowest: ") and err.count("\n") == 1
    assert target.read_text() == "as it was" and not (tmp_path / "before" / "ledger.sqlite").exists()


def test_a_damaged_ledger_is_an_error_and_no_export(tmp_path: Path, cowest: Cowest) -> None:
    path, target = tmp_path / "ledger.sqlite", tmp_path / "calls.jsonl"
    entered(path, *(answer(f"{i} {'x' * 3000}") for i in range(20)))
    content = bytearray(path.read_bytes())
    content[3 * 4096 :] = b"\xff" * (len(content) - 3 * 4096)
    path.write_bytes(content)
    code, printed, err = cowest("ledger", path, "--export", target)
    assert code in (1, 2) and printed == "" and err.startswith("cowest: ") and str(path) in err
    assert not target.exists()


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    write_starter(tmp_path / "mine")
    return tmp_path / "mine" / "real-pair.yaml"


def test_estimate_prints_what_its_json_says(starter: Path, tmp_path: Path, cowest: Cowest) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, printed, err = cowest("estimate", starter, "--set", "draft.queries=100", "--set", "budget_calls=1000")
    assert code == 0 and err == ""
    found = json.loads(
        cowest("estimate", starter, "--set", "draft.queries=100", "--json", "--set", "budget_calls=1000")[1]
    )
    for stage in found["stages"]:
        assert stage["calls_for"].split()[0] in printed and stage["stage"] in printed
    low, expected, high = (found["cost_usd"][k] for k in ("low", "expected", "high"))
    assert 0 < low < expected < high and f"USD {expected:,.2f} [{low:,.2f}, {high:,.2f}]" in printed
    assert "budget_calls 1000: enough for the low estimate" in printed
    assert "list prices known on" in printed and "4 bytes" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_estimate_says_an_unknown_price_in_words(starter: Path, cowest: Cowest) -> None:
    code, printed, _ = cowest("estimate", starter, "--set", "strong.model=nobody-knows", "--set", "budget_usd=1")
    assert code == 0
    assert "no price known for nobody-knows: set strong.price" in printed
    assert "budget_usd 1: cannot be kept, as a price is not known" in printed
    assert "0.00" not in printed and "unknown" in printed


def test_estimate_of_models_that_run_here(starter: Path, cowest: Cowest) -> None:
    code, printed, _ = cowest("estimate", starter.with_name("recipe.yaml"))
    assert code == 0 and "runs here, costs nothing" in printed and "refine drafts" in printed and "Cost:" not in printed


def test_estimate_knows_what_a_run_has_paid(finished: tuple[Path, int], tmp_path: Path, cowest: Cowest) -> None:
    out, paid = finished
    code, printed, _ = cowest("estimate", out / "recipe.yaml", "--out", out)
    assert code == 0 and f"{paid:,} answers are there already" in printed
    found = json.loads(cowest("estimate", out / "recipe.yaml", "--out", out, "--json")[1])
    assert found["calls"] == {"low": 0, "expected": 0, "high": 0} and found["already"] == paid
    elsewhere = json.loads(cowest("estimate", out / "recipe.yaml", "--out", tmp_path, "--json")[1])
    known = {(s["stage"], s["calls_for"]): s["already"] for s in elsewhere["stages"]}
    assert known["feedback", "strong alone"] == 30  # the ledger is shared: prompts without a draft are found in it


def test_estimate_of_a_wrong_recipe(starter: Path, cowest: Cowest) -> None:
    code, printed, err = cowest("estimate", starter, "--set", "strong.tokenizer=./none")
    assert code == 2 and printed == "" and "no such folder" in err and err.count("\n") == 1
