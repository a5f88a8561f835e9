"""Who answers: a route from outside, asked by the gateway over HTTP and by the offline system, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers import tiny_recipe, world
from tests.server.loopback import DRAFT, FRAMES, Held, Upstream, serving, strong
from tests.server.test_answerable import served

from cowest.assembly.routes import ROUTES
from cowest.collaboration.routes import BOTH, Always
from cowest.errors import ConfigError, ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe import registry
from cowest.server.auth import Keys
from cowest.server.metrics import MOST_REASONS
from cowest.server.settings import Settings
from cowest.systems.routed import Routed
from cowest.types import Example, Prediction, RouteDecision, RouteFacts, Usage

DETAILS: dict[str, Any] = {"cowest": {"details": True}}


class ByLength:
    """A toy route: short questions go to the weak model, long ones to the strong one, what lies between to both."""

    name = "by-length"

    def __init__(self) -> None:
        self.facts: list[RouteFacts] = []

    async def choose(self, query: Example, facts: RouteFacts) -> RouteDecision:
        self.facts.append(facts)
        words = len(query.input.split())
        if words < 3:
            return RouteDecision(who="weak", reason="short")
        return RouteDecision(who="strong", reason="long") if words > 6 else RouteDecision(who="both", reason="between")


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


@pytest.fixture
def weak() -> ScriptedChatModel:
    return ScriptedChatModel([], default=DRAFT)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("question", "who", "reason", "mode", "model", "text"),
    [
        ("May I?", "weak", "short", "weak_alone", "pair.weak", DRAFT),
        ("May I take it?", "both", "between", "both", "pair", "No, it is not."),
        ("May I take it twice or thrice?", "strong", "long", "strong_alone", "pair.strong", "No, it is not."),
    ],
)
async def test_the_gateway_asks_the_route(
    upstream: Upstream,
    weak: ScriptedChatModel,
    stream: bool,
    question: str,
    who: str,
    reason: str,
    mode: str,
    model: str,
    text: str,
) -> None:
    async with serving(upstream.url, weak, route=ByLength()) as client:
        got = await client.ask(question, stream=stream, **DETAILS)
        if stream:
            told, named = got.chunks[-1]["cowest"], got.chunks[0]["model"]
            said = "".join(c["choices"][0]["delta"].get("content") or "" for c in got.chunks if c["choices"])
        else:
            told, named, said = got.json["cowest"], got.json["model"], got.text
        assert (told["mode"], told["degraded"], named, said) == (mode, None, model, text)
        assert told["route"] == {"who": who, "reason": reason}
        assert (len(weak.requests), len(upstream.bodies)) == (int(who != "strong"), int(who != "weak"))
        assert await client.metric(f'cowest_routes_total{{reason="{reason}",who="{who}"}}') == 1
        card = (await client.get("/v1/models/pair")).json
        assert card["cowest"]["route"] == "by-length"


async def test_without_a_route_both_answer(upstream: Upstream) -> None:
    async with serving(upstream.url) as client:
        told = (await client.ask(**DETAILS)).json["cowest"]
        assert told["route"] == {"who": "both", "reason": "always"} and told["mode"] == "both"
        alone = (await client.ask(model="pair.strong", **DETAILS)).json["cowest"]
        assert alone["route"] is None


async def test_the_weak_model_s_own_answer_takes_what_the_client_asks_for(upstream: Upstream) -> None:
    weak = ScriptedChatModel([], default=DRAFT)
    async with serving(upstream.url, weak, route=Always("weak")) as client:
        got = await client.ask(max_tokens=7, temperature=0.5, seed=3, stop=" Answer")
        assert got.text == "Velmo is safe up to 62 mg." and got.json["usage"]["prompt_tokens"] > 0
        sampling = weak.requests[0].sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (7, 0.5, 3)
        assert weak.requests[0].messages == FRAMES.draft(Example(id="x", input="May I?", references=("",)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "degraded"),
    [
        ("empty", "draft_empty"),
        ("connection", "weak_down"),
        ("too_long", "weak_prompt_too_long"),
        ("http_422", "weak_rejected"),
    ],
)
async def test_where_the_chosen_weak_model_fails_the_strong_one_answers(
    upstream: Upstream, kind: str, degraded: str, stream: bool
) -> None:
    weak = ScriptedChatModel([], default=DRAFT, fail=[ModelCallError(kind, "no")])
    async with serving(upstream.url, weak, route=Always("weak")) as client:
        got = await client.ask(stream=stream, **DETAILS)
        told = got.chunks[-1]["cowest"] if stream else got.json["cowest"]
        assert got.status == 200 and (told["mode"], told["degraded"]) == ("strong_alone", degraded)
        assert told["route"] == {"who": "weak", "reason": "always"}
        solo = FRAMES.solo(Example(id="x", input="May I?", references=("",)))[0].content
        assert [body["messages"][-1]["content"] for body in upstream.bodies] == [solo]
        assert await client.metric(f'cowest_degraded_total{{reason="{degraded}"}}') == 1


@pytest.mark.parametrize(
    "fields", [{"tools": [{"type": "function"}]}, {"n": 2}, {"response_format": {"type": "json_object"}}]
)
async def test_what_the_weak_model_cannot_do_it_is_not_asked_to(upstream: Upstream, fields: dict[str, Any]) -> None:
    async with serving(upstream.url, route=Always("weak")) as client:
        told = (await client.ask(**fields, **DETAILS)).json["cowest"]
        assert told["route"] == {"who": "both", "reason": "weak_cannot"} and told["mode"] == "both"


class Breaks:
    """A route with a bug."""

    name = "breaks"

    def __init__(self, what: object) -> None:
        self.what = what

    async def choose(self, query: Example, facts: RouteFacts) -> Any:
        if self.what == "hangs":
            await asyncio.Event().wait()
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


@pytest.mark.parametrize("what", [RuntimeError("a private question"), None, "weak", "hangs"])
async def test_a_route_that_fails_costs_no_answer(
    upstream: Upstream, what: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(upstream.url, route=Breaks(what), settings=Settings(draft_deadline_s=0.2)) as client:
        told = (await client.ask(**DETAILS)).json["cowest"]
        assert told["route"] == {"who": "both", "reason": "route_failed"} and told["mode"] == "both"
    assert "the route failed" in caplog.text


async def test_the_route_knows_the_conversation_and_who_is_up(upstream: Upstream) -> None:
    route, weak = ByLength(), ScriptedChatModel([], default=DRAFT, fail=[ModelCallError("connection", "no")])
    async with serving(upstream.url, weak, Settings(breaker_failures=1, breaker_cooldown_s=100), route=route) as client:
        turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
        question = {"role": "user", "content": "May I take it?"}
        await client.ask(messages=[*turns, question], tools=[{"type": "function"}])
        await client.ask(messages=[question])
        assert route.facts == [RouteFacts(turns=2, plain=False), RouteFacts(weak_up=False)]
        await client.ask(messages=[{"role": "system", "content": "Hm."}])  # no question, so no choice
        assert len(route.facts) == 2


async def test_a_weak_answer_needs_no_strong_model(upstream: Upstream) -> None:
    settings = Settings(strong_down="error", breaker_failures=1, breaker_cooldown_s=100)
    async with serving(upstream.url, settings=settings, route=ByLength(), max_attempts=1) as client:
        upstream.plan = [500]
        assert (await client.ask("May I take it?")).status == 502
        assert [(await client.ask("May I take it?")).status, (await client.ask("May I?")).status] == [503, 200]


async def test_a_client_that_leaves_frees_the_chosen_model(upstream: Upstream) -> None:
    weak = Held()
    async with serving(upstream.url, weak, route=Always("weak")) as client:
        leaving = asyncio.create_task(client.ask())
        await weak.asked.wait()
        leaving.cancel()
        await asyncio.wait_for(weak.cancelled.wait(), 10)


async def test_the_number_of_reasons_in_the_metrics_is_bounded(upstream: Upstream) -> None:
    class Chatty:
        name = "chatty"
        asked = 0

        async def choose(self, query: Example, facts: RouteFacts) -> RouteDecision:
            self.asked += 1
            return RouteDecision(who="strong", reason=f"r{self.asked}")

    async with serving(upstream.url, route=Chatty()) as client:
        for _ in range(MOST_REASONS + 3):
            await client.ask()
        assert await client.metric('cowest_routes_total{reason="other",who="strong"}') == 3


async def test_a_collected_exchange_has_the_weak_model_s_prompt_only_where_it_was_asked(
    upstream: Upstream, tmp_path: Path
) -> None:
    from cowest.ledger.exchanges import read_exchanges

    file = tmp_path / "ledger.sqlite"
    async with serving(upstream.url, route=ByLength(), ledger=file, keys=Keys()) as client:
        for question in ("May I?", "May I take it?", "May I take it twice or thrice?"):
            assert (await client.ask(question)).status == 200
    kept = [entry for entry, _ in read_exchanges(file, "pair")]
    assert [(e.mode, bool(e.prompt), e.draft) for e in kept] == [
        ("weak_alone", False, None),
        ("both", True, DRAFT),
        ("strong_alone", False, None),
    ]


async def test_a_recipe_is_served_with_the_route_that_is_named(tmp_path: Path) -> None:
    async with strong() as small, strong() as big:
        recipe = tiny_recipe("unused", big.url)
        recipe["weak"] = {"kind": "openai", "model": "small", "base_url": small.url, "api_key_env": None}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        async with served(path, route=ROUTES.find("weak", "--route")) as client:
            told = (await client.ask(world().examples("test")[0].input, model="tiny", **DETAILS)).json["cowest"]
            assert told["mode"] == "weak_alone" and len(small.bodies) == 1 and not big.bodies


class Answers:
    """A system that says its name."""

    def __init__(self, name: str) -> None:
        self.name, self.asked = name, list[str]()

    async def answer(self, example: Example) -> Prediction:
        self.asked.append(example.id)
        return Prediction(example_id=example.id, system=self.name, text=self.name, usage=Usage(calls=1))


async def test_offline_the_same_route_picks_the_system() -> None:
    weak, big, both = Answers("weak"), Answers("strong"), Answers("collab")
    routed = Routed(weak, big, both, ByLength())
    questions = ["May I?", "May I take it?", "May I take it twice or thrice?"]
    found = [
        await routed.answer(Example(id=str(i), input=text, references=("no",))) for i, text in enumerate(questions)
    ]
    assert [p.text for p in found] == ["weak", "collab", "strong"]
    assert {p.system for p in found} == {"routed"} and [p.example_id for p in found] == ["0", "1", "2"]
    assert (weak.asked, both.asked, big.asked) == (["0"], ["1"], ["2"])
    assert sum(p.usage.calls for p in found) == 3


async def test_offline_a_route_that_fails_is_a_failed_query() -> None:
    weak, big, both = Answers("weak"), Answers("strong"), Answers("collab")
    routed = Routed(weak, big, both, Breaks(RuntimeError("a bug")))
    found = await routed.answer(Example(id="x", input="May I?", references=("no",)))
    assert found.text is None and found.error is not None and found.error.startswith("route_failed: breaks: ")
    assert not weak.asked + big.asked + both.asked


def test_a_route_comes_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("by-length", f"{__name__}:ByLength", "cowest.routes"),
        EntryPoint("no-route", "builtins:dict", "cowest.routes"),
        EntryPoint("broken", "nowhere:Route", "cowest.routes"),
        EntryPoint("twice", "a:A", "cowest.routes"),
        EntryPoint("twice", "b:B", "cowest.routes"),
    ]

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert ROUTES.find("both", "--route") is BOTH and ROUTES.find("by-length", "--route").name == "by-length"
    for name, told in (
        ("nothing", "there are: both, strong, weak, broken, by-length, no-route, twice"),
        ("no-route", "is no route: it has no name, choose"),
        ("broken", "nowhere"),
        ("twice", "a:A, b:B"),
    ):
        with pytest.raises(ConfigError, match=told):
            ROUTES.find(name, "--route")
