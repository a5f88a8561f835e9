"""A model's secrets: from the environment or a .env file into what is sent, and out of whatever an endpoint sends back."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, quote_plus

from pydantic import JsonValue

from cowest.errors import ConfigError
from cowest.models.keys import find_key
from cowest.recipe.addresses import filled, looks_secret

STRUCK: Final = "***"
SHORTEST: Final = 6
"""Characters. A shorter one ("none", "EMPTY") is a word like others, and striking it out would change answers."""
ENCODED_FROM: Final = 8
"""Characters. A shorter secret is struck out as it stands only: its encodings would be found where it is not."""
PIECE: Final = 8
"""So many characters of a key in a row are struck out, whatever is around them."""


class Secrets:
    """The key and the values of ``${NAME}`` variables, for one model. ``folder`` may hold a .env file.

    Struck out is a secret as it stands and as URL, HTML, JSON, hexadecimal or base64 has it (also within a longer text that was
    encoded); of one that looks like a key, each piece of 8 characters or more, too.
    """

    def __init__(self, key: str | None = None, folder: Path = Path()) -> None:
        self.key, self._folder = key, folder
        self._whole: set[str] = set()
        self._pieces: set[str] = set()
        self._prefixes: set[str] = set()
        self._longest = 0  # of the prefixes
        if key:
            self.add(key)

    def __bool__(self) -> bool:
        return bool(self._whole)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def add(self, secret: str) -> None:
        """Strike out this one, too."""
        if len(secret) < SHORTEST:
            return
        forms = {secret} if len(secret) < ENCODED_FROM else set(_forms(secret))
        self._whole |= forms
        if len(secret) >= 2 * PIECE and looks_secret(secret) and "://" not in secret:
            self._pieces |= {form[i : i + PIECE] for form in forms for i in range(len(form) - PIECE + 1)}
        self._prefixes |= {form[:i] for form in (*forms, *self._pieces) for i in range(1, len(form))}
        self._longest = max(map(len, self._prefixes))

    def fill(self, value: JsonValue, where: str) -> JsonValue:
        """The value with each ``${NAME}`` filled in, which is a secret from then on. Raises ConfigError for one that is not set.

        ``where`` is the setting that it names.
        """
        if isinstance(value, str):
            return filled(value, lambda name: self._value(name, where))
        if isinstance(value, list):
            return [self.fill(part, where) for part in value]
        return self.fill_all(value, where) if isinstance(value, dict) else value

    def fill_all(self, values: Mapping[str, JsonValue], where: str = "extra") -> dict[str, JsonValue]:
        """The same for every value of a mapping."""
        return {key: self.fill(value, f"{where}.{key}") for key, value in values.items()}

    def _value(self, name: str, where: str) -> str:
        found = find_key(name, self._folder)
        if not found:
            raise ConfigError(
                f"{where}: {name} is not set, neither in the environment nor in a .env file (here or beside the recipe); run "
                f"`export {name}=...`"
            )
        self.add(found)
        for part in re.split(r"[/?&=@]+", found) if "://" in found else ():  # a URL, of which a part may be the secret
            if looks_secret(part):
                self.add(part)
        return found

    def strike(self, text: str) -> str:
        """The text with ``***`` in place of every secret."""
        done, at = "", 0
        for begin, end in self._found(text):
            done, at = done + text[at:begin] + STRUCK, end
        return done + text[at:]

    def strike_all(self, value: JsonValue) -> JsonValue:
        """The same for every text in a JSON value."""
        if isinstance(value, str):
            return self.strike(value)
        if isinstance(value, list):
            return [self.strike_all(part) for part in value]
        return {key: self.strike_all(part) for key, part in value.items()} if isinstance(value, dict) else value

    def flow(self) -> Flow:
        """For a text that comes piece by piece."""
        return Flow(self)

    def _found(self, text: str) -> list[tuple[int, int]]:
        """Where secrets stand: from, to; in order and apart."""
        spans = [(at, at + len(form)) for form in self._whole for at in _places(form, text)]
        if self._pieces:
            spans += [(i, i + PIECE) for i in range(len(text) - PIECE + 1) if text[i : i + PIECE] in self._pieces]
        apart: list[tuple[int, int]] = []
        for begin, end in sorted(spans):
            if apart and begin <= apart[-1][1]:
                apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
            else:
                apart.append((begin, end))
        return apart

    def _open(self, text: str) -> int:
        """From where on a text could be the beginning of a secret; its length where it could not."""
        for begin in range(max(0, len(text) - self._longest), len(text)):
            if text[begin:] in self._prefixes:
                return begin
        return len(text)


class Flow:
    """Strikes secrets out of a text that comes in pieces: what may yet become one is held back until that is known."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets, self._held = secrets, ""

    def feed(self, piece: str) -> str:
        """What is known to be no part of a secret."""
        text = self._held + piece
        cut = self._secrets._open(text)
        for begin, end in self._secrets._found(text):
            if begin < cut < end:
                cut = begin
        self._held = text[cut:]
        return self._secrets.strike(text[:cut])

    def finish(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return self._secrets.strike(held)


def _places(form: str, text: str) -> Iterator[int]:
    at = text.find(form)
    while at >= 0:
        yield at
        at = text.find(form, at + 1)


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may be echoed."""
    raw = secret.encode("utf-8", "surrogatepass")
    yield from (secret, html.escape(secret), json.dumps(secret)[1:-1], raw.hex(), raw.hex().upper())
    for encoded in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        yield encoded
        yield _lower_escapes(encoded)
    for offset in range(3):  # within a longer text it may begin at any of three places
        whole = base64.b64encode(bytes(offset) + raw).decode()
        inner = whole[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6]
        yield from (inner, inner.translate(_URL_SAFE))


_URL_SAFE: Final = str.maketrans("+/", "-_")


def _lower_escapes(encoded: str) -> str:
    head, *rest = encoded.split("%")
    return "%".join((head, *(part[:2].lower() + part[2:] for part in rest)))
