"""Prometheus metrics of one server (docs/serving.md lists them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cowest.server.breaker import Breaker
from cowest.server.gateway import Exchange
from cowest.server.guarding import Guarding

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
MOST_REASONS: Final = 50
"""Reasons of routes with a count of their own; the rest are counted together."""
M = TypeVar("M", Counter, Histogram)
_STATES: Final = {"closed": 0, "half_open": 1, "open": 2}


def _number(breaker: Breaker) -> float:
    return _STATES[breaker.state]


def _holds(guard: Guarding) -> float:
    return float(bool(guard.promise()["promise"]))


def _drifted(guard: Guarding) -> float:
    return float(guard.drifted)


class Metrics:
    """A registry of its own, so that several servers in one process (tests) do not share counts.

    Label values are the server's own words and model ids, never a client's: their number is bounded (so are a route's reasons).
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self._requests = Counter("cowest_requests", "Answered requests.", ("model", "status"), registry=r)
        self._seconds = Histogram(
            "cowest_request_seconds", "Whole requests, streams to their end.", ("model",), buckets=_SECONDS, registry=r
        )
        self._modes = Counter("cowest_answers", "Answers by who gave them.", ("model", "mode"), registry=r)
        self._degraded = Counter(
            "cowest_degraded", "Answers that one model had to give alone.", ("reason",), registry=r
        )
        self._routes = Counter("cowest_routes", "Who was to answer, and why.", ("who", "reason"), registry=r)
        self._parts = Histogram(
            "cowest_part_seconds", "draft, strong, or first_token of a stream.", ("part",), buckets=_SECONDS, registry=r
        )
        self._tokens = Counter("cowest_tokens", "Tokens as reported by the models.", ("side", "kind"), registry=r)
        self._attempts = Counter("cowest_strong_attempts", "Attempts at the strong model.", ("outcome",), registry=r)
        self._collected = Counter("cowest_collected", "Exchanges to be kept.", ("outcome",), registry=r)
        self._feedback = Counter("cowest_feedback", "Verdicts on exchanges.", ("verdict",), registry=r)
        self._reasons = set[str]()
        self._children: dict[tuple[object, ...], object] = {}
        self._rejected = Counter("cowest_rejected", "Requests turned away by the server.", ("reason",), registry=r)

    def _child(self, metric: M, *labels: str) -> M:
        """``metric.labels(*labels)``, looked up once: it takes a lock."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return cast(M, child)

    def inside(self, count: Callable[[], int]) -> None:
        """Show how many requests are inside."""
        Gauge("cowest_requests_inside", "Requests worked on or waiting.", registry=self._registry).set_function(count)

    def breakers(self, breakers: dict[str, Breaker]) -> None:
        """Show each breaker's state."""
        gauge = Gauge("cowest_breaker", "0 closed, 1 half open, 2 open.", ("side",), registry=self._registry)
        for side, breaker in breakers.items():
            gauge.labels(side).set_function(partial(_number, breaker))

    def guards(self, guards: Mapping[str, Guarding]) -> None:
        """Show of each guarded model whether its promise holds, and whether served queries have drifted."""
        if not guards:
            return
        promise = Gauge(
            "cowest_guard_promise", "1: certified, and no drift is seen.", ("model",), registry=self._registry
        )
        drift = Gauge("cowest_guard_drift", "1: served queries differ.", ("model",), registry=self._registry)
        for model, guard in guards.items():
            promise.labels(model).set_function(partial(_holds, guard))
            drift.labels(model).set_function(partial(_drifted, guard))

    def attempted(self, outcome: str) -> None:
        """Count an attempt at the strong model."""
        self._child(self._attempts, outcome).inc()

    def rejected(self, reason: str) -> None:
        """Count a request that was turned away."""
        self._child(self._rejected, reason).inc()

    def collected(self, outcome: str) -> None:
        """Count an exchange that was to be kept: stored, failed or too_long."""
        self._child(self._collected, outcome).inc()

    def judged(self, verdict: str) -> None:
        """Count what feedback said."""
        self._child(self._feedback, verdict).inc()

    def answered(self, model: str, status: int, exchange: Exchange, seconds: float) -> None:
        """Count a finished request; ``model`` is one of ours, or ``unknown``."""
        self._child(self._requests, model, str(status)).inc()
        self._child(self._seconds, model).observe(seconds)
        parts = (("draft", exchange.draft_s), ("strong", exchange.strong_s), ("first_token", exchange.first_s))
        for part, spent in parts:
            if spent is not None:
                self._child(self._parts, part).observe(spent)
        for side, usage in (("weak", exchange.weak_usage), ("strong", exchange.strong_usage)):
            if usage is not None and usage.calls:
                self._child(self._tokens, side, "prompt").inc(usage.input_tokens)
                self._child(self._tokens, side, "completion").inc(usage.output_tokens)
        if exchange.route is not None:
            self._child(self._routes, exchange.route.who, self._reason(exchange.route.reason)).inc()
        if status == 200:
            self._child(self._modes, model, exchange.mode or "both").inc()
        if exchange.degraded is not None:
            self._child(self._degraded, exchange.degraded).inc()

    def _reason(self, reason: str) -> str:
        """A route's reason as a label. A plug-in brings its own words, so their number is bounded here."""
        if len(self._reasons) < MOST_REASONS:
            self._reasons.add(reason)
        return reason if reason in self._reasons else "other"

    def render(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)
