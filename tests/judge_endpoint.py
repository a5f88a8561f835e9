"""A served pair with judges beside it: the endpoint plays the models named judge..., too, each by a rule of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

from aiohttp import web
from pydantic import JsonValue
from tests.paid_endpoint import CONCURRENCY, PaidEndpoint

Rule = Callable[[str, str], str]
"""From the two answers as they are shown to what is better: A, B or tie."""


def taste(text: str) -> int:
    """What a text is worth to a judge that looks at it alone, from 0 to 7."""
    return hashlib.sha256(f"taste {text}".encode()).digest()[0] % 8


def by_taste(a: str, b: str) -> str:
    return "A" if taste(a) > taste(b) else "B" if taste(b) > taste(a) else "tie"


def first(a: str, b: str) -> str:
    return "A"


def shown(body: dict[str, JsonValue]) -> tuple[str, str]:
    """The two answers that a judge was shown, read as it should: by the fences."""
    messages = body["messages"]
    assert isinstance(messages, list) and isinstance(messages[1], dict)
    found = re.findall(r"Answer [AB]:\n-----\n(.*?)\n-----", str(messages[1]["content"]), re.DOTALL)
    assert len(found) == 2
    return found[0], found[1]


class JudgeEndpoint(PaidEndpoint):
    """The strong model says nothing but its answer, so that it often says the same with a draft as alone."""

    def __init__(self, delay_s: float = 0.0, **rules: Rule) -> None:
        super().__init__(delay_s)
        self.rules = rules

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        answer = json.loads((await super()._answer(request)).body or b"")  # type: ignore[arg-type]
        for choice in answer["choices"]:
            message = choice["message"]
            if body["model"] == "strong":
                message["content"] = message["content"].splitlines()[-1]
            elif body["model"] in self.rules:
                said = self.rules[body["model"]](*shown(body))
                message["content"] = said if " " in said else json.dumps({"explanation": "so", "better": said})
        return web.json_response(answer)

    def asked(self, model: str) -> list[dict[str, JsonValue]]:
        """The requests to a model that were answered."""
        return [body for body in map(json.loads, self.answered) if body["model"] == model]


def judge_model(url: str, name: str = "judge") -> dict[str, JsonValue]:
    """A judge as a recipe names it."""
    return {
        "kind": "openai",
        "model": name,
        "base_url": url,
        "api_key_env": None,
        "concurrency": CONCURRENCY,
        "timeout_s": 20,
        "price": {"input": 1.0, "output": 4.0},
    }
