"""The page at ``/``: one document that loads nothing, runs no script but its own, and talks to this server only."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Page:
    """The document, and the headers that it goes out with."""

    body: bytes
    headers: Mapping[str, str]


@cache
def playground(wants_key: bool, collects: bool) -> Page:
    """The page; ``wants_key`` shows the field for an API key, ``collects`` the buttons for feedback. It holds no secret."""
    folder = resources.files("cowest.server")
    names = ("playground.html", "playground.css", "playground_state.js", "playground.js")
    html, style, *scripts = ((folder / name).read_text("utf-8") for name in names)
    script = "\n".join(scripts)
    flags = {"{key}": wants_key, "{collect}": collects}
    for mark, flag in flags.items():
        html = html.replace(mark, "yes" if flag else "no")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Page(html.replace("{style}", style).replace("{script}", script).encode(), headers)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
