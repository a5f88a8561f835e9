"""How many tokens a text has: by the model's own tokenizer where it is at hand, else by a stated approximation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from cowest.errors import ConfigError
from cowest.types import Message

APPROXIMATION: Final = "4 bytes of UTF-8 a token (English prompts: within about 15%; measured in docs/costs.md)"
MESSAGE_TOKENS: Final = 4
"""What a chat format adds to each message: role, begin and end."""


def approximate_tokens(text: str) -> int:
    """Bytes / 4, rounded up: the well-known four characters of English, and no fewer than there are in other scripts."""
    return -(-len(text.encode()) // 4)


def token_counter(tokenizer: str | None) -> tuple[Callable[[str], int], str]:
    """A function that counts, and how it does so in words. ``tokenizer`` is a folder with tokenizer.json, or a cached hub name.

    Nothing is downloaded: without it the count is approximate, and the words say why. Raises ConfigError for a path that leads
    nowhere, or a tokenizer.json that is none.
    """
    if tokenizer is None:
        return approximate_tokens, APPROXIMATION
    folder = Path(tokenizer).expanduser()
    if not folder.is_dir() and (tokenizer.startswith((".", "/", "~")) or tokenizer.count("/") > 1):
        raise ConfigError(f"tokenizer: {tokenizer}: no such folder; give one with tokenizer.json, or a hub name")
    try:
        import tokenizers  # noqa: F401 - whether it is there

        file = folder / "tokenizer.json" if folder.is_dir() else _cached(tokenizer)
    except ImportError as error:
        without = f"without {error.name}, which pip install 'cowest[local]' brings, {tokenizer} cannot be read"
        return approximate_tokens, f"{APPROXIMATION}; {without}"
    if file is None or not file.exists():
        where = "has no tokenizer.json" if folder.is_dir() else "is not in the hub's cache on this machine"
        return approximate_tokens, f"{APPROXIMATION}; {tokenizer} {where}"
    try:
        count = _counter(file, file.stat().st_mtime_ns)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"tokenizer: {file} cannot be read: {error}") from None
    return count, f"the tokenizer of {tokenizer}"


@lru_cache(maxsize=8)
def _counter(file: Path, mtime_ns: int) -> Callable[[str], int]:
    """By a tokenizer.json, which takes half a second to read; ``mtime_ns`` is of the file as it is now."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(file))
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def _cached(name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, "tokenizer.json", local_files_only=True)
    except (OSError, ValueError):  # not in the cache, or no name that the hub could have
        return None
    return None if found is None else Path(found)


def prompt_tokens(count: Callable[[str], int], messages: Sequence[Message]) -> int:
    """Tokens of a request's messages, what the chat format adds included."""
    return sum(count(m.content) + MESSAGE_TOKENS for m in messages)
