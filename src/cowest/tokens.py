"""How many tokens a text has: by the model's own tokenizer where there is one, else by a stated approximation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cowest.errors import ConfigError, MissingExtraError

CHARS_PER_TOKEN: Final = 4.0
APPROXIMATION: Final = (
    "4 characters a token (1 for Chinese, Japanese and Korean); English prose is within about a fifth of that"
)
MESSAGE_TOKENS: Final = 4
"""What a chat format adds to each message: role, begin and end."""


def approximate_tokens(text: str) -> int:
    """The rule of thumb of the large providers' documentation, with a token a character for CJK scripts."""
    wide = sum("\u3040" <= c <= "\u30ff" or "\u3400" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7af" for c in text)
    return round(wide + (len(text) - wide) / CHARS_PER_TOKEN)


def token_counter(tokenizer: str | None) -> tuple[Callable[[str], int], str]:
    """A function that counts, and how it does so in words. ``tokenizer`` is a folder with tokenizer.json, or a cached hub name.

    Raises ConfigError where it is not there, MissingExtraError without the tokenizers library.
    """
    if tokenizer is None:
        return approximate_tokens, APPROXIMATION
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("a tokenizer needs the tokenizers library: pip install 'cowest[local]'") from None
    file = Path(tokenizer).expanduser() / "tokenizer.json"
    try:
        loaded = Tokenizer.from_file(str(file)) if file.exists() else Tokenizer.from_pretrained(tokenizer)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(
            f"tokenizer: {tokenizer!r} is neither a folder with tokenizer.json nor on the hub ({error})"
        ) from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids), f"the tokenizer of {tokenizer}"
