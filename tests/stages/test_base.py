"""``fill``: one record an item, on disk before it counts, resumable, ordered, giving up early."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.helpers import Log, tiny_recipe, world

from cowest.assembly.context import Context
from cowest.assembly.opened import OpenModels
from cowest.errors import BudgetExceededError, StageError
from cowest.lab.frames import LabFrames
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile, RunDir
from cowest.stages.base import GIVE_UP_AFTER, IN_FLIGHT, Filling, failures, fill, filled
from cowest.types import Refinement


class Desk:
    """Makes a record of an item; fails for those in ``bad``; counts."""

    def __init__(self, folder: Path, bad: Sequence[str] = ()) -> None:
        self.log, self.bad, self.made, self.kind = Log(), set(bad), list[str](), "timeout"
        self.file = JsonlFile(folder / "solo.jsonl", Refinement)
        config = config_from_dict(tiny_recipe("org/model", "http://localhost/v1"))
        task, run = world(), RunDir(folder)
        self._context = Context("", config, task, LabFrames(), run, self.log, OpenModels(config, folder))

    async def make(self, item: str) -> Refinement:
        self.made.append(item)
        await asyncio.sleep(0.002 * (len(item) % 3))
        if item in self.bad:
            return Refinement(example_id=item, draft_id=None, text=None, error=f"{self.kind}: slow")
        return Refinement(example_id=item, draft_id=None, text=f"answer to {item}")

    async def fill(self, items: Sequence[str], at_once: int = IN_FLIGHT) -> list[Refinement]:
        return await fill("work", self._context, self.file, items, str, lambda r: r.example_id, self.make, at_once)

    def filling(
        self, label: str, items: Sequence[str], proven: Filling[str, Refinement] | None = None
    ) -> Filling[str, Refinement]:
        """A file of its own, whose items are ranked by their number."""
        file = JsonlFile(self.file.path.with_name(f"{label}.jsonl"), Refinement)
        known = (lambda: proven.answered) if proven is not None else (lambda: False)
        return Filling(
            label,
            self._context,
            file,
            items,
            str,
            lambda r: r.example_id,
            self.make,
            proven=known,
            rank=lambda i: int(i[1:]),
        )

    async def fill_two(self, at_once: int = 1) -> tuple[list[Refinement], list[Refinement]]:
        solos = self.filling("alone", [f"s{n}" for n in range(4)])
        drafts = self.filling("refined", [f"{k}{n}" for n in range(4) for k in "ab"], solos)
        await filled("both", self._context, [solos, drafts], at_once)
        return solos.records(), drafts.records()


ITEMS = ["ccc", "a", "bb", "dddd", "eeeee"]


async def test_records_come_back_in_the_items_order_and_lie_so_on_disk(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    made = await desk.fill(ITEMS)
    assert [r.example_id for r in made] == ITEMS
    assert desk.file.load() == made
    assert sorted(desk.made) == sorted(ITEMS)
    assert desk.log.starts == [("work", 5, 0)]


async def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.fill(ITEMS[1:3])
    desk.made.clear()
    made = await desk.fill(ITEMS)
    assert sorted(desk.made) == ["ccc", "dddd", "eeeee"]
    assert [r.example_id for r in made] == ITEMS
    assert desk.log.starts[-1] == ("work", 5, 2)


async def test_failed_records_are_kept_with_their_reason_and_made_again_next_time(tmp_path: Path) -> None:
    desk = Desk(tmp_path, bad=["bb"])
    made = await desk.fill(ITEMS)
    assert failures(made) == 1 and made[2].text is None
    desk.bad, desk.made = set(), []
    made = await desk.fill(ITEMS)
    assert desk.made == ["bb"] and failures(made) == 0
    assert len(desk.file.load()) == 5


async def test_it_gives_up_when_everything_fails(tmp_path: Path) -> None:
    items = [f"i{n}" for n in range(3 * GIVE_UP_AFTER)]
    desk = Desk(tmp_path, bad=items)
    with pytest.raises(
        StageError, match=f"work: the first {GIVE_UP_AFTER} calls all failed; the last one: timeout: slow"
    ):
        await desk.fill(items)
    assert all(r.text is None for r in desk.file.load())
    few = Desk(tmp_path / "few", bad=["x", "y"])
    with pytest.raises(StageError, match="the first 2 calls all failed"):
        await few.fill(["x", "y"])


async def test_it_gives_up_when_an_endpoint_goes_down_on_the_way(tmp_path: Path) -> None:
    bad = [f"bad{n}" for n in range(3 * GIVE_UP_AFTER)]
    desk = Desk(tmp_path, bad=bad)
    with pytest.raises(
        StageError, match=f"work: the last {GIVE_UP_AFTER} calls all failed; the last one: timeout: slow"
    ):
        await desk.fill(["fine", *bad], at_once=4)
    assert len(desk.made) <= 1 + GIVE_UP_AFTER + 4
    assert desk.file.load()[0].text == "answer to fine"


async def test_failures_that_come_from_the_queries_or_between_successes_do_not_stop_it(tmp_path: Path) -> None:
    bad = [f"bad{n}" for n in range(2 * GIVE_UP_AFTER)]
    desk = Desk(tmp_path, bad=bad)
    mixed = [item for n, name in enumerate(bad) for item in (name, f"fine{n}")]
    assert failures(await desk.fill(["fine", *mixed], at_once=1)) == len(bad)
    refusing = Desk(tmp_path / "refusing", bad=bad)
    refusing.kind = "content_filter"
    assert failures(await refusing.fill(["fine", *bad], at_once=1)) == len(bad)


async def test_queries_that_fail_again_do_not_stop_a_stage_whose_others_are_done(tmp_path: Path) -> None:
    bad = [f"bad{n}" for n in range(GIVE_UP_AFTER)]
    desk = Desk(tmp_path, bad=bad)
    desk.kind = "empty"
    assert failures(await desk.fill(["fine", *bad], at_once=1)) == len(bad)
    assert failures(await desk.fill(["fine", *bad], at_once=1)) == len(bad)  # only these are asked, and none succeeds
    desk.kind = "timeout"
    with pytest.raises(StageError, match="the last 20 calls all failed"):
        await desk.fill(["fine", *bad], at_once=1)


async def test_an_empty_budget_stops_it_and_says_how_far_it_came(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def dear(item: str) -> Refinement:
        if item == "dddd":
            raise BudgetExceededError("budget_calls: 3 is reached")
        return await Desk.make(desk, item)

    desk.make = dear  # type: ignore[method-assign]
    with pytest.raises(BudgetExceededError, match=r"^work: 3 of 5 done\. budget_calls: 3 is reached"):
        await desk.fill(ITEMS, at_once=1)
    assert len(desk.file.load()) == 3


async def test_a_stop_in_the_middle_keeps_what_was_made_and_leaves_no_task(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def interrupted(item: str) -> Refinement:
        if item == "dddd":
            await asyncio.sleep(0.03)
            raise KeyError("a bug")
        if item == "eeeee":
            await asyncio.sleep(60)
        return await Desk.make(desk, item)

    desk.make = interrupted  # type: ignore[method-assign]
    before = len(asyncio.all_tasks())
    with pytest.raises(KeyError):
        await desk.fill(ITEMS)
    assert len(asyncio.all_tasks()) == before
    assert sorted(r.example_id for r in desk.file.load()) == ["a", "bb", "ccc"]


async def test_nothing_to_do(tmp_path: Path) -> None:
    assert await Desk(tmp_path).fill([]) == []


async def test_two_files_are_filled_together_by_rank_and_go_on_together(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.file.path.with_name("alone.jsonl").write_text(
        Refinement(example_id="s1", draft_id=None, text="x").model_dump_json() + "\n"
    )
    solos, drafts = await desk.fill_two()
    assert desk.made == ["s0", "a0", "b0", "a1", "b1", "s2", "a2", "b2", "s3", "a3", "b3"]
    assert desk.log.starts == [("both", 12, 1)]
    assert [r.example_id for r in solos] == ["s0", "s1", "s2", "s3"]
    assert [r.example_id for r in drafts] == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]
    for name, made in (("alone", solos), ("refined", drafts)):
        assert JsonlFile(tmp_path / f"{name}.jsonl", Refinement).load() == made
    assert await desk.fill_two(at_once=9) == (solos, drafts) and len(desk.made) == 11


async def test_two_files_say_how_far_each_came_and_each_gives_up_for_itself(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def dear(item: str) -> Refinement:
        if item == "b1":
            raise BudgetExceededError("budget_calls: 5 is reached")
        return await Desk.make(desk, item)

    desk.make = dear  # type: ignore[method-assign]
    with pytest.raises(BudgetExceededError, match=r"^alone: 2 of 4 done, refined: 3 of 8 done\. budget_calls"):
        await desk.fill_two()
    failing = Desk(tmp_path / "failing", bad=[f"{k}{n}" for k in "ab" for n in range(4)])
    with pytest.raises(StageError, match=r"^refined: the first 8 calls all failed"):
        await failing.fill_two()  # though the others succeed in between
    refusing = Desk(tmp_path / "refusing", bad=sorted(failing.bad))
    refusing.kind = "refusal"
    solos, drafts = await refusing.fill_two()
    assert failures(solos) == 0 and failures(drafts) == 8, "the model has answered: it refuses these queries"
