"""The batch mode against a provider that speaks the protocol: whole, resumable, and paid for once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import pytest
from tests.batch_server import Job, Provider

from cowest.errors import BudgetExceededError, ModelCallError
from cowest.ledger.ledger import BatchEntry, Ledger, Limits, process_identity
from cowest.ledger.prices import Price
from cowest.models.batch import BatchChatModel
from cowest.models.batch_wire import answer_bytes
from cowest.models.dialect import Dialect
from cowest.models.ledgered import LedgeredChatModel
from cowest.models.secrets import Secrets
from cowest.models.transport import MAX_BODY, Transport
from cowest.types import Completion, Message, Sampling, Usage

KEY = "not-a-real-key-4712"
PRICE = Price(input=1.0, output=2.0)
FREE = Limits()


def ask(number: int) -> list[Message]:
    return [Message(role="user", content=f"question {number}")]


@asynccontextmanager
async def opened(
    url: str,
    path: Path,
    limits: Limits = FREE,
    max_requests: int = 100,
    max_bytes: int = MAX_BODY,
    cache: Literal["read", "refresh", "off"] = "read",
    poll_s: float = 0.02,
) -> AsyncIterator[tuple[LedgeredChatModel, Ledger]]:
    ledger = Ledger(path / "ledger.sqlite", "run", limits)
    transport = Transport(url, {"Authorization": f"Bearer {KEY}"})
    inner = BatchChatModel(
        transport,
        ledger,
        model="m",
        dialect=Dialect(),
        price=PRICE,
        secrets=Secrets(KEY),
        max_requests=max_requests,
        max_bytes=max_bytes,
        poll_s=poll_s,
        gather_s=0.02,
    )
    model = LedgeredChatModel(inner, ledger, model="m", cache=cache, price=PRICE, drain_s=0.2)
    try:
        yield model, ledger
    finally:
        await model.aclose()
        ledger.close()


async def ask_all(model: LedgeredChatModel, n: int) -> list[Completion | BaseException]:
    return await asyncio.gather(*(model.generate(ask(i), Sampling()) for i in range(n)), return_exceptions=True)


def texts(found: list[Completion | BaseException]) -> list[str]:
    return [f.text if isinstance(f, Completion) else type(f).__name__ for f in found]


def expected(n: int) -> list[str]:
    return [f"answer to {json.dumps([{'role': 'user', 'content': f'question {i}'}])}" for i in range(n)]


async def test_calls_that_come_together_are_one_batch_and_its_answers_find_their_callers(tmp_path: Path) -> None:
    provider = Provider()
    async with provider.serve() as url, opened(url, tmp_path) as (model, ledger):
        found = await ask_all(model, 30)
        assert texts(found) == expected(30)
        assert len(provider.jobs) == 1
        bill = ledger.summary("run")
        assert bill.answered == 30 and bill.cost_usd == pytest.approx(30 * (10 * 1.0 + 4 * 2.0) / 1e6)
        assert texts(await ask_all(model, 30)) == expected(30) and len(provider.jobs) == 1
    assert all(KEY not in content for content in provider.files.values())


async def test_many_calls_are_several_batches(tmp_path: Path) -> None:
    provider = Provider()
    async with provider.serve() as url, opened(url, tmp_path, max_requests=8) as (model, _):
        assert texts(await ask_all(model, 20)) == expected(20)
    sizes = [len(provider.files[job.file].splitlines()) for job in provider.jobs.values()]
    assert sizes == [8, 8, 4]


async def test_trouble_while_looking_loses_nothing(tmp_path: Path) -> None:
    provider = Provider()
    provider.look_faults = [500, 429, 503, 404, 502]
    async with provider.serve() as url, opened(url, tmp_path) as (model, _):
        assert texts(await ask_all(model, 5)) == expected(5)
    assert max(provider.answered.values()) == 1


async def test_a_failed_line_is_a_failure_of_its_own(tmp_path: Path) -> None:
    provider = Provider()
    provider.fail_lines = lambda number: number == 2
    async with provider.serve() as url:
        async with opened(url, tmp_path) as (model, ledger):
            found = await ask_all(model, 5)
            assert isinstance(found[2], ModelCallError) and found[2].kind == "http_400"
            assert "context length" in str(found[2])
            assert ledger.summary("run").failures == {"http_400": 1} and ledger.summary("run").answered == 4
        provider.fail_lines = lambda number: False
        async with opened(url, tmp_path) as (model, _):
            assert texts(await ask_all(model, 5)) == expected(5)
    assert max(provider.answered.values()) == 1 and len(provider.jobs) == 2


async def test_an_expired_batch_keeps_what_is_done_and_the_next_run_asks_the_rest(tmp_path: Path) -> None:
    provider = Provider()
    provider.end, provider.share = "expired", 0.5
    async with provider.serve() as url:
        async with opened(url, tmp_path) as (model, _):
            found = await ask_all(model, 10)
            kinds = [f.kind if isinstance(f, ModelCallError) else "answer" for f in found]
            assert kinds == ["answer"] * 5 + ["batch_expired"] * 5
        provider.end, provider.share = "completed", 1.0
        async with opened(url, tmp_path) as (model, _):
            assert texts(await ask_all(model, 10)) == expected(10)
    assert max(provider.answered.values()) == 1 and sum(provider.answered.values()) == 10


async def test_a_batch_that_does_not_validate_says_why(tmp_path: Path) -> None:
    provider = Provider()
    provider.end = "failed"
    async with provider.serve() as url, opened(url, tmp_path) as (model, _):
        found = await ask_all(model, 3)
    assert all(isinstance(f, ModelCallError) and f.kind == "batch_failed" for f in found)
    assert "line 1: This line is not JSON." in str(found[0])


async def test_a_batch_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    provider = Provider()
    provider.refuse_to_create = True
    async with provider.serve() as url, opened(url, tmp_path) as (model, _):
        found = await ask_all(model, 3)
    assert all(isinstance(f, ModelCallError) and f.kind == "http_400" for f in found)
    assert "too many enqueued tokens" in str(found[0])


async def test_a_job_that_the_provider_forgot_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    provider = Provider()
    provider.looks_until_done = 10**6
    async with provider.serve() as url:
        async with opened(url, tmp_path) as (model, _):
            asking = asyncio.ensure_future(ask_all(model, 3))
            while not provider.jobs:
                await asyncio.sleep(0.01)
            provider.jobs.clear()
            found = await asking
            assert all(isinstance(f, ModelCallError) and f.kind == "batch_failed" for f in found)
        provider.looks_until_done = 1
        async with opened(url, tmp_path) as (model, _):
            assert texts(await ask_all(model, 3)) == expected(3)


async def test_a_budget_stops_before_the_batch_is_made(tmp_path: Path) -> None:
    provider = Provider()
    async with provider.serve() as url:
        async with opened(url, tmp_path, Limits(calls=3)) as (model, ledger):
            found = await ask_all(model, 5)
            assert all(isinstance(f, BudgetExceededError) for f in found) and not provider.jobs
            assert ledger.summary("run").under_way == 0, "what was held for a batch that was not made is given back"
        async with opened(url, tmp_path, Limits(calls=5)) as (model, ledger):
            assert texts(await ask_all(model, 5)) == expected(5)
            assert (
                ledger.summary("run").under_way == 0
                and ledger.summary("run").at_most_usd == ledger.summary("run").cost_usd
            )


CLIENT = """
import asyncio, sys
from pathlib import Path
from tests.models.test_batch import ask_all, opened
async def main():
    async with opened(sys.argv[1], Path(sys.argv[2])) as (model, _):
        await ask_all(model, 6)
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["uploaded", "created", "looked", "downloading"])
async def test_a_killed_process_is_continued_at_any_moment(tmp_path: Path, moment: str) -> None:
    provider = Provider()
    provider.hold = moment
    async with provider.serve() as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENT, url, str(tmp_path)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "src")])},
        )
        while await asyncio.wait_for(provider.said.get(), 30) != moment:
            pass
        process.send_signal(signal.SIGKILL)
        await process.wait()
        provider.hold = None
        provider.released.set()
        async with opened(url, tmp_path) as (model, ledger):
            assert texts(await ask_all(model, 6)) == expected(6)
            assert ledger.summary("run").answered == 6
    assert set(provider.answered.values()) == {1} and len(provider.answered) == 6


async def test_a_stopped_run_leaves_its_batch_and_the_next_one_collects_all_of_it(tmp_path: Path) -> None:
    provider = Provider()
    provider.looks_until_done = 10**6
    async with provider.serve() as url:
        async with opened(url, tmp_path) as (model, _):
            asking = asyncio.ensure_future(ask_all(model, 4))
            while not provider.jobs:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            asking.cancel()
        provider.looks_until_done = 1
        async with opened(url, tmp_path) as (model, ledger):
            assert texts(await ask_all(model, 1)) == expected(1)
            assert ledger.summary("run").answered == 4, "also those that nobody asks for any more"
    assert sum(provider.answered.values()) == 4


# What may go wrong on the way


async def test_a_fault_before_the_batch_is_made_is_tried_again(tmp_path: Path) -> None:
    provider = Provider()
    provider.upload_faults, provider.create_faults = [500, 429], [429]
    async with provider.serve() as url, opened(url, tmp_path) as (model, _):
        assert texts(await ask_all(model, 3)) == expected(3)
    assert len(provider.jobs) == 1


async def test_a_batch_whose_creation_was_not_confirmed_is_found_and_not_made_twice(tmp_path: Path) -> None:
    provider = Provider()
    provider.lost_creations, provider.page = 1, 2
    async with provider.serve() as url:
        for other in range(5):  # newer batches of others come first in the list, on other pages
            provider.jobs[f"other_{other}"] = Job(f"other_{other}", "file", {})
        async with opened(url, tmp_path) as (model, _):
            asking = asyncio.ensure_future(ask_all(model, 3))
            while await provider.said.get() != "created":
                pass
            for other in range(5, 10):
                provider.jobs[f"other_{other}"] = Job(f"other_{other}", "file", {})
            assert texts(await asking) == expected(3)
    assert sum(provider.answered.values()) == 3


async def test_a_batch_that_may_have_been_made_is_looked_up_before_its_requests_are_asked_again(tmp_path: Path) -> None:
    provider = Provider()
    provider.lost_creations, provider.create_faults = 1, []
    async with provider.serve() as url, opened(url, tmp_path) as (model, ledger):
        asking = asyncio.ensure_future(ask_all(model, 3))
        while await provider.said.get() != "created":
            pass
        provider.list_faults = [403]
        found = await asking
        assert all(isinstance(f, ModelCallError) and f.kind == "http_403" for f in found)
        assert ledger.summary("run").failures == {"http_403": 3}
        assert texts(await ask_all(model, 3)) == expected(3)
    assert sum(provider.answered.values()) == 3


async def test_a_page_in_place_of_the_output_loses_no_answer(tmp_path: Path) -> None:
    provider = Provider()
    provider.download_faults = ["<html>sign in</html>"] * 3
    async with provider.serve() as url, opened(url, tmp_path) as (model, _):
        assert texts(await ask_all(model, 3)) == expected(3)


@pytest.mark.parametrize("pages", [["<html>sign in</html>"] * 5, [""]])
async def test_an_output_that_stays_unreadable_is_collected_by_the_next_run(tmp_path: Path, pages: list[str]) -> None:
    provider = Provider()
    provider.download_faults = pages
    async with provider.serve() as url:
        async with opened(url, tmp_path) as (model, _):
            found = await ask_all(model, 3)
            assert all(isinstance(f, ModelCallError) and f.kind == "bad_response" for f in found)
        async with opened(url, tmp_path) as (model, _):
            assert texts(await ask_all(model, 3)) == expected(3)
    assert sum(provider.answered.values()) == 3


async def test_an_output_that_is_gone_may_have_been_paid_for(tmp_path: Path) -> None:
    provider = Provider()
    provider.forget_files = True
    async with provider.serve() as url, opened(url, tmp_path, Limits(calls=10)) as (model, ledger):
        found = await ask_all(model, 3)
        assert all(isinstance(f, ModelCallError) and f.kind == "batch_failed" for f in found)
        bill = ledger.summary("run")
        assert bill.maybe_paid == 3 and bill.under_way == 0


async def test_a_text_with_any_line_separator_is_read_whole(tmp_path: Path) -> None:
    odd = "one\u2028two\u2029three\x85four\x0bfive\nsix"
    provider = Provider(answer=lambda body: odd)
    async with provider.serve() as url, opened(url, tmp_path) as (model, _):
        said = await model.generate([Message(role="user", content=odd)], Sampling())
    assert said.text == odd


async def test_a_batch_is_no_larger_than_can_be_read_back(tmp_path: Path) -> None:
    provider = Provider()
    one = answer_bytes(Sampling())
    async with provider.serve() as url, opened(url, tmp_path, max_bytes=2 * one) as (model, _):
        assert texts(await ask_all(model, 5)) == expected(5)
    assert [len(provider.files[job.file].splitlines()) for job in provider.jobs.values()] == [2, 2, 1]


async def test_only_an_error_file(tmp_path: Path) -> None:
    provider = Provider()
    provider.fail_lines = lambda number: True
    async with provider.serve() as url, opened(url, tmp_path) as (model, ledger):
        found = await ask_all(model, 3)
        assert all(isinstance(f, ModelCallError) and f.kind == "http_400" for f in found)
        assert ledger.summary("run").at_most_usd == 0


async def test_a_refused_key_stops_without_endless_looking(tmp_path: Path) -> None:
    provider = Provider()
    provider.look_faults = [401]
    async with provider.serve() as url:
        async with opened(url, tmp_path) as (model, _):
            found = await ask_all(model, 2)
            assert all(isinstance(f, ModelCallError) and f.kind == "http_401" for f in found)
            assert "api_key_env" in str(found[0]) and KEY not in str(found[0])
        async with opened(url, tmp_path) as (model, _):
            assert texts(await ask_all(model, 2)) == expected(2)
    assert sum(provider.answered.values()) == 2


# The cache's modes

CACHES: Final[tuple[Literal["read", "refresh"], ...]] = ("read", "refresh")


async def test_refresh_asks_anew(tmp_path: Path) -> None:
    provider = Provider()
    async with provider.serve() as url:
        for cache in CACHES:
            async with opened(url, tmp_path, cache=cache) as (model, _):
                assert texts(await ask_all(model, 3)) == expected(3)
    assert len(provider.jobs) == 2 and set(provider.answered.values()) == {2}


async def test_equal_calls_share_a_line(tmp_path: Path) -> None:
    provider = Provider()
    async with provider.serve() as url, opened(url, tmp_path, cache="off") as (model, _):
        found = await asyncio.gather(*(model.generate(ask(0), Sampling()) for _ in range(4)))
    assert [f.text for f in found] == expected(1) * 4 and sum(provider.answered.values()) == 1


async def test_refresh_asks_once_a_process(tmp_path: Path) -> None:
    provider = Provider()
    async with provider.serve() as url, opened(url, tmp_path, cache="refresh") as (model, _):
        for _ in range(2):
            assert texts(await ask_all(model, 3)) == expected(3)
    assert len(provider.jobs) == 1


async def test_samples_of_one_request_are_lines_of_their_own_and_found_again(tmp_path: Path) -> None:
    provider = Provider()
    sampling = Sampling(temperature=1.0, seed=5)
    async with provider.serve() as url:
        for _ in range(2):
            async with opened(url, tmp_path) as (model, ledger):
                assert len(await model.generate_many(ask(0), sampling, 3)) == 3
                assert ledger.summary("run").answered == 3
    [job] = provider.jobs.values()
    bodies = [json.loads(line)["body"] for line in provider.files[job.file].splitlines()]
    assert [body["seed"] for body in bodies] == [5, 6, 7]


async def test_a_text_that_is_no_unicode_keeps_no_batch_from_the_ledger(tmp_path: Path) -> None:
    provider = Provider()
    async with provider.serve() as url, opened(url, tmp_path) as (model, ledger):
        await model.generate([Message(role="user", content="half a pair: \ud800")], Sampling())
        assert ledger.summary("run").answered == 1


# Processes


@pytest.mark.parametrize("poll_s", [1.0, 0.02])
async def test_two_that_follow_one_job_enter_it_once(tmp_path: Path, poll_s: float) -> None:
    provider = Provider()
    provider.looks_until_done = 10**6
    async with (
        provider.serve() as url,
        opened(url, tmp_path) as (first, ledger),
        opened(url, tmp_path, poll_s=poll_s) as (second, _),
    ):
        asking = asyncio.ensure_future(ask_all(first, 3))
        while await provider.said.get() != "looked":
            pass
        also = asyncio.ensure_future(ask_all(second, 3))
        await asyncio.sleep(0.1)
        provider.looks_until_done = 1
        assert texts(await asking) == texts(await also) == expected(3)
        assert ledger.summary("run").answered == 3 and len(provider.jobs) == 1


@pytest.mark.parametrize("alive", [True, False])
async def test_a_job_that_is_being_made_is_left_to_its_maker_while_it_lives(tmp_path: Path, alive: bool) -> None:
    provider = Provider()
    maker = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    tag = f"{maker.pid}-{process_identity(maker.pid)}-1"
    if not alive:
        maker.kill()
        await maker.wait()
    try:
        async with provider.serve() as url, opened(url, tmp_path, Limits(calls=2)) as (model, ledger):
            held = await ledger.reserve([Usage(calls=1)], PRICE, batch=True)
            await ledger.save_batch(
                BatchEntry(
                    id=tag,
                    model="m",
                    file_id="f",
                    job=None,
                    status="creating",
                    keys=("k",),
                    held=tuple(held),
                    created=0,
                )
            )
            assert texts(await ask_all(model, 1)) == expected(1)
            assert {e.id: e.status for e in ledger.batches("m")}[tag] == ("creating" if alive else "lost")
            assert ledger.summary("run").under_way == alive and ledger.summary("run").maybe_paid == 0
    finally:
        if alive:
            maker.kill()
            await maker.wait()


async def test_a_stop_says_which_batch_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    provider = Provider()
    provider.looks_until_done = 10**6
    async with provider.serve() as url:
        async with opened(url, tmp_path) as (model, _):
            asking = asyncio.ensure_future(ask_all(model, 2))
            while await provider.said.get() != "looked":
                pass
        found = await asking
    assert all(isinstance(f, ModelCallError) and f.kind == "stopped" for f in found)
    assert "batch batch_0 continues at the provider; run the same command to collect it" in caplog.text
