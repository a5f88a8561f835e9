"""What comes from outside: JSON of any shape, and text that may not be Unicode."""

from __future__ import annotations

from typing import Final

from cowest.models.secrets import Secrets

EXCERPT_CHARS: Final = 200


def field(value: object, key: str) -> object:
    """``value[key]`` where that exists."""
    return value.get(key) if isinstance(value, dict) else None


def valid_unicode(text: str) -> str:
    """JSON may smuggle in lone surrogates, which neither pydantic nor a UTF-8 file takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def excerpt(text: str, secrets: Secrets) -> str:
    """Untrusted text for an error message: without secrets, printable, on one line and short."""
    text = secrets.strike(text)  # before cutting, or half of one could remain
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= EXCERPT_CHARS else line[:EXCERPT_CHARS] + "..."
