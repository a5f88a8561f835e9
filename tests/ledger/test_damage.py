"""Ledgers that are damaged, of another version, or no ledgers: one line that says what to do, and what can be saved is saved."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cowest.cli.main import main
from cowest.errors import DataError
from cowest.ledger.ledger import Call, Ledger, Limits, call_of
from cowest.ledger.prices import Price
from cowest.ledger.recover import recover
from cowest.ledger.summary import answered_requests, export_ledger, summarise_ledger
from cowest.types import Attempt, Completion, Message, Sampling, Usage

ANSWERS, FAILURES = 240, 5
PAGE = 4096
USED = Usage(calls=1, input_tokens=100, output_tokens=20)
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a ledger with answers over some hundred pages, one of them longer than a page."""
    path = tmp_path_factory.mktemp("whole") / "ledger.sqlite"

    async def go() -> None:
        ledger = Ledger(path, "run")
        for n in range(ANSWERS):
            await ledger.answered(_call(n), _answer(n))
        for n in range(FAILURES):
            lost = Attempt(at=0.0, latency_s=1.0, outcome="timeout", maybe_paid=True)
            await ledger.failed(_call(1000 + n), "timeout", "no full answer", [lost])
        ledger.close()

    asyncio.run(go())
    return path.read_bytes()


def _call(n: int) -> Call:
    return call_of("big", [Message(role="user", content=f"question {n}")], Sampling(), {}, Price(1.0, 10.0))


def _answer(n: int) -> Completion:
    done = Attempt(at=float(n), latency_s=0.5, outcome="ok", usage=USED)
    return Completion(text=f"answer {n} " + "x" * (9000 if n == 50 else 1500), usage=USED, attempts=(done,))


# How a file is damaged


def overwrite(first: int, pages: int, filling: bytes = b"\x00") -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        at = slice(first * PAGE, min(len(content), (first + pages) * PAGE))
        content[at] = filling * (at.stop - at.start)
        path.write_bytes(content)

    return damage


def noise(seed: int) -> Damage:
    def damage(path: Path) -> None:
        chance, content = random.Random(seed), bytearray(path.read_bytes())
        for _ in range(6):
            at = chance.randrange(2 * PAGE, len(content) - 600)
            content[at : at + 500] = chance.randbytes(500)
        path.write_bytes(content)

    return damage


def cut(share: float) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def header(path: Path) -> None:
    path.write_bytes(bytes(100) + path.read_bytes()[100:])


def text(path: Path) -> None:
    path.write_text("no database at all, but a text that is long enough to be one\n" * 500)


def sql(*statements: str) -> Damage:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as db:
            for statement in statements:
                db.execute(statement)
        db.close()

    return damage


INSIDE: dict[str, Damage] = {
    "page zeroed": overwrite(20, 1),
    "pages zeroed": overwrite(30, 12),
    "pages of ones": overwrite(40, 3, b"\xff"),
    "end of ones": overwrite(60, 10_000, b"\xff"),
    "root of the answers": overwrite(1, 1),
    "noise": noise(1),
    "other noise": noise(2),
    "cut in half": cut(0.5),
    "cut at the end": cut(0.93),
    "header zeroed": header,
    "first page zeroed": overwrite(0, 1),
    "no table of failures": sql("DROP TABLE failures"),
    "no totals": sql("DROP TABLE spent"),
    "another column": sql("ALTER TABLE answers RENAME COLUMN latency_s TO took"),
    "a row that is none": sql("UPDATE answers SET attempts = 'torn' WHERE id % 10 = 0"),
    "text that is none": sql("UPDATE answers SET text = CAST(x'ff00ff' AS TEXT) WHERE id = 7"),
}
OTHER: dict[str, tuple[Damage, str]] = {
    "a text": (text, "recover"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "newer": (sql("PRAGMA user_version = 99"), "version 99.*newer cowest"),
    "another database": (sql("PRAGMA application_id = 7"), "no ledger of cowest"),
}


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(whole)
    return path


def cowest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["cowest", *arguments])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", [*INSIDE, *OTHER])
def test_the_command_says_it_in_a_line(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (INSIDE | {n: damage for n, (damage, _) in OTHER.items()})[name](path)
    for more in ([], ["--json"], ["--export", str(path.with_name("calls.jsonl"))]):
        code, out, err = cowest(monkeypatch, capsys, "ledger", str(path), *more)
        if code == 0:  # what this reads is not damaged
            assert not err
            continue
        assert code == 2 and out == "" and err.startswith("cowest: ") and err.count("\n") == 1, (name, err)
        assert str(path) in err and (name in OTHER or f"cowest ledger recover {path}" in err)
    assert not path.with_name("calls.jsonl").exists() or code == 0


@pytest.mark.parametrize("name", [*INSIDE, *OTHER])
async def test_a_run_on_it_stops_with_an_error_of_ours(path: Path, name: str) -> None:
    """Whatever it touches: opening, the cache, entering, the bill. Nothing else than our errors, and the budget's totals."""
    (INSIDE | {n: damage for n, (damage, _) in OTHER.items()})[name](path)
    if name == "empty":
        return  # tests/assembly: a run looks whether it knows of calls
    hint = OTHER[name][1] if name in OTHER else "cowest ledger recover"
    seen = 0
    try:
        ledger = Ledger(path, "run", Limits(calls=10_000))
    except DataError as error:
        assert re.search(hint, str(error)) and str(path) in str(error)
        return
    for n in range(ANSWERS):
        try:
            found = ledger.get(_call(n).key)
            assert found is None or found.text.startswith(f"answer {n} ")
        except DataError as error:
            assert "cowest ledger recover" in str(error)
            seen += 1
    for n in range(ANSWERS, ANSWERS + 3):
        try:
            await ledger.budget(None).reserve(USED)
            await ledger.answered(_call(n), _answer(n))
        except DataError as error:
            assert str(path) in str(error)
            seen += 1
    try:
        ledger.summary("run")
        ledger.close()
    except DataError:
        seen += 1
    assert seen or name in ("no totals",), "the damage must show somewhere"


@pytest.mark.parametrize("name", INSIDE)
def test_what_can_be_read_is_saved_and_the_rest_is_counted(path: Path, name: str, whole: bytes) -> None:
    INSIDE[name](path)
    damaged, keys = path.read_bytes(), {_call(n).key: n for n in range(ANSWERS)}
    found = recover(path)
    kept = Path(found.kept)
    assert kept != path and kept.read_bytes() == damaged and kept.name.startswith("ledger.sqlite.damaged-")
    saved = answered_requests(path)
    assert saved <= keys.keys() and len(saved) == found.saved["answers"]
    ledger = Ledger(path, "run", Limits(calls=100_000))
    for key in saved:
        answer = ledger.get(key)
        assert answer is not None and answer.text == _answer(keys[key]).text
    ledger.close()
    least = {"cut in half": 0.35, "end of ones": 0.3}
    assert len(saved) >= least.get(name, 0.75) * ANSWERS, f"{len(saved)} of {ANSWERS}: {found}"
    bill = summarise_ledger(path)
    if name != "cut in half":
        assert bill.paid_calls + bill.maybe_paid >= len(saved)
    assert len(list(export_ledger(path))) == bill.answered + bill.failed


def test_recover_writes_elsewhere_and_says_what_it_did(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overwrite(20, 2)(path)
    before, new = path.read_bytes(), path.with_name("new.sqlite")
    code, out, err = cowest(monkeypatch, capsys, "ledger", "recover", str(path), "--out", str(new))
    assert code == 0 and err == "" and f"{new}: " in out and "answers" in out and f"{path}: the damaged file" in out
    assert path.read_bytes() == before and len(answered_requests(new)) > 0.9 * ANSWERS
    code, _, err = cowest(monkeypatch, capsys, "ledger", "recover", str(path), "--out", str(new))
    assert code == 2 and "is there already" in err
    assert sorted(p.name for p in path.parent.iterdir()) == ["ledger.sqlite", "new.sqlite"]


@pytest.mark.parametrize("name", OTHER)
def test_recover_leaves_alone_what_is_no_damaged_ledger(path: Path, name: str) -> None:
    OTHER[name][0](path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="left as it is"):
        recover(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["ledger.sqlite"]


def test_a_whole_ledger_is_saved_wholly(path: Path) -> None:
    before = summarise_ledger(path)
    found = recover(path)
    after = summarise_ledger(path)
    assert found.lost == {} and found.saved == {"answers": ANSWERS, "failures": FAILURES, "spent": 1}
    assert after == before


def test_the_newest_answers_are_in_the_log_beside_the_file(tmp_path: Path) -> None:
    """After a kill they are in the -wal file alone."""
    path = tmp_path / "ledger.sqlite"

    async def go() -> None:
        ledger = Ledger(path, "run")
        for n in range(20):
            await ledger.answered(_call(n), _answer(n))
        copy = tmp_path / "killed"
        copy.mkdir()
        for end in ("", "-wal"):
            (copy / f"ledger.sqlite{end}").write_bytes(path.with_name(f"ledger.sqlite{end}").read_bytes())
        ledger.close()

    asyncio.run(go())
    found = recover(tmp_path / "killed" / "ledger.sqlite")
    assert found.saved["answers"] == 20 and found.lost == {}
