"""Fuzzed requests: from the request's schema with right and wrong parts, any JSON, random bytes as a body and as HTTP.

A fixed seed, so that two runs send the same. Every answer must be below 500 and, from 400, in OpenAI's shape; the server must be
well afterwards, and have logged no failure of its own.
"""

from __future__ import annotations

import json
import socket
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.serving.processes import OTHER_CORE, SERVER_CORE, backend, scripted_server, started

TEXT = st.text(max_size=40)
NUMBER = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, 1e308, -0.0, 2**63]))
HALF = st.text(st.characters(categories=["Cs", "L"]), max_size=5)  # half characters, which JSON can write
LEAF = st.one_of(st.none(), st.booleans(), NUMBER, TEXT, HALF)
JSON = st.recursive(
    LEAF, lambda part: st.lists(part, max_size=4) | st.dictionaries(TEXT, part, max_size=4), max_leaves=12
)


RIGHT = 24  # of 25 parts: a request has many, and one that is wrong early is not looked at further


def wrong_sometimes(right: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.integers(0, RIGHT).flatmap(lambda drawn: JSON if drawn == RIGHT // 2 else right)


PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": wrong_sometimes(TEXT)}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": wrong_sometimes(st.fixed_dictionaries({"url": TEXT}))}),
)  # fmt: skip
CALL = st.fixed_dictionaries(
    {"id": TEXT, "type": st.just("function"), "function": wrong_sometimes(st.fixed_dictionaries({"name": TEXT, "arguments": TEXT}))}
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {
        "role": wrong_sometimes(st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])),
        "content": wrong_sometimes(st.one_of(TEXT, st.lists(PART, max_size=3), st.none())),
    },
    optional={"name": JSON, "tool_calls": wrong_sometimes(st.lists(CALL, max_size=2)), "tool_call_id": JSON, "refusal": JSON},
)  # fmt: skip
REQUEST = st.fixed_dictionaries(
    {
        "model": wrong_sometimes(st.sampled_from(["bench", "bench.strong", "bench.weak"])),
        "messages": wrong_sometimes(st.lists(wrong_sometimes(MESSAGE), min_size=1, max_size=5)),
    },
    optional={
        "stream": wrong_sometimes(st.booleans()),
        "stream_options": wrong_sometimes(st.fixed_dictionaries({"include_usage": st.booleans()})),
        "n": wrong_sometimes(st.integers(-2, 20)),
        "seed": wrong_sometimes(st.integers()),
        "stop": wrong_sometimes(st.one_of(TEXT, st.lists(TEXT, max_size=5))),
        "temperature": wrong_sometimes(st.floats(0, 2)),
        "top_p": wrong_sometimes(st.floats(0, 1)),
        "max_tokens": wrong_sometimes(st.integers(-1, 40_000)),
        "max_completion_tokens": wrong_sometimes(st.integers(0, 5000)),
        "tools": wrong_sometimes(st.lists(JSON, max_size=2)),
        "tool_choice": JSON,
        "response_format": wrong_sometimes(st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object"])})),
        "logprobs": JSON,
        "logit_bias": JSON,
        "user": JSON,
        "cowest": wrong_sometimes(st.fixed_dictionaries({}, optional={"details": JSON, "context": JSON, "choices": JSON})),
        "unknown": JSON,
    },
)  # fmt: skip
TOKEN = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
LINE = wrong_sometimes(TOKEN).map(str)
HEADERS = st.fixed_dictionaries(
    {"Host": wrong_sometimes(st.just("localhost")).map(str)},
    optional={
        "Content-Type": st.just("application/json"), "Content-Encoding": st.sampled_from(["gzip", "deflate", "br", "x"]),
        "Authorization": LINE, "Expect": LINE, "X-Cowest-Details": LINE, "Accept": LINE, "Origin": LINE, "Cookie": LINE,
        "Content-Length": st.sampled_from(["0", "1", "-1", "x", "99"]), "Transfer-Encoding": st.sampled_from(["chunked", "x"]),
    },
)  # fmt: skip
PATH = st.one_of(
    st.sampled_from(["/v1/chat/completions", "/v1/models", "/v1/feedback", "/healthz", "/readyz", "/metrics", "/"]),
    LINE.map(lambda text: "/v1/models/" + text),
    LINE.map(lambda text: "/" + text),
)
METHOD = st.one_of(st.sampled_from(["POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]), LINE)

BROKEN_WAIT_S = 0.1


@dataclass
class Found:
    """Statuses (0: closed without an answer, which only broken HTTP may get), and what must not be."""

    port: int
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def send(self, kind: str, raw: bytes, whole: bool) -> None:
        """Send bytes as they are; ``whole``: they are a request that must be answered."""
        answer = self._exchange(raw, 20.0 if whole else BROKEN_WAIT_S)
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.") else 0
        self.statuses.setdefault(kind, Counter())[status] += 1
        if status >= 500 or (whole and not status) or (status >= 400 and body and not _shaped(body)):
            self.bad.append(f"{kind} {status} {raw[:300]!r} -> {body[:200]!r}")

    def _exchange(self, raw: bytes, patience_s: float) -> bytes:
        """All that comes back until the server closes, or is silent for so long (it waits for the rest of a broken request)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience_s) as connection:
            answer = b""
            try:
                connection.sendall(raw)
                while piece := connection.recv(65536):
                    answer += piece
            except (ConnectionError, TimeoutError):
                pass
            return answer


def _shaped(body: bytes) -> bool:
    try:
        return bool(json.loads(body)["error"].keys() == {"message", "type", "param", "code"})
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def http(body: bytes, **headers: str) -> bytes:
    """A whole request."""
    named = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close"} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _any_http(method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    whole = {"Connection": "close", "Content-Length": str(len(body))} | headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in whole.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("utf-8", "surrogatepass") + body


def _repeat(count: int, strategy: st.SearchStrategy[bytes], send: Callable[[bytes], None]) -> None:
    @seed(11)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )  # fmt: skip
    @given(strategy)
    def each(raw: bytes) -> None:
        send(raw)

    each()


def fuzz(requests: int) -> int:
    """Send them, print what came, and return 1 where something must not be."""
    as_body = REQUEST.map(lambda body: json.dumps(body).encode())
    plan: list[tuple[str, float, st.SearchStrategy[bytes], bool]] = [
        ("schema", 0.5, as_body.map(http), True),
        ("any JSON", 0.1, JSON.map(lambda value: http(json.dumps(value).encode())), True),
        ("bytes as body", 0.15, st.binary(max_size=300).map(http), True),
        ("other HTTP", 0.15, st.builds(_any_http, METHOD, PATH, HEADERS, st.one_of(as_body, st.binary(max_size=50))), False),
        ("bytes as HTTP", 0.1, st.binary(min_size=1, max_size=300).map(lambda raw: raw + b"\r\n\r\n"), False),
    ]  # fmt: skip
    with TemporaryDirectory() as folder, started(backend(), OTHER_CORE) as strong:
        log = Path(folder) / "log"
        with started(scripted_server(strong.url), SERVER_CORE, log) as server:
            found = Found(server.port)
            for kind, share, strategy, whole in plan:
                _repeat(round(requests * share), strategy, lambda raw, k=kind, w=whole: found.send(k, raw, w))  # type: ignore[misc]
                print(
                    f"{kind:<14}{sum(found.statuses[kind].values()):>6}  {dict(sorted(found.statuses[kind].items()))}",
                    flush=True,
                )
            with urllib.request.urlopen(f"{server.url}/models", timeout=10) as answer:
                well = answer.status == 200
            with urllib.request.urlopen(server.url.removesuffix("/v1") + "/metrics", timeout=10) as answer:
                inside = [
                    line for line in answer.read().decode().splitlines() if line.startswith("cowest_requests_inside ")
                ]
        failures = [line for line in log.read_text().splitlines() if "the server failed" in line]
    total = sum(sum(statuses.values()) for statuses in found.statuses.values())
    print(
        f"requests {total}\nmust not be {len(found.bad)}\nfailures logged {len(failures)}\nwell afterwards {well}, {inside[0]}"
    )
    print("\n".join([*found.bad[:5], *failures[:5]]))
    return int(bool(found.bad or failures) or not well or inside[0].split()[1] != "0.0")
