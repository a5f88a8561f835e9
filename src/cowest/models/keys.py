"""API keys: from the environment, or from a .env file that is only ever read."""

from __future__ import annotations

import os
from pathlib import Path

from dotenv import dotenv_values


def find_key(name: str, folder: Path = Path()) -> str | None:
    """The value of ``name`` in the environment, else in ``.env`` here, else in ``.env`` in ``folder``; None where it is in none.

    The environment is left as it is, so that no process started later inherits what only a file held.
    """
    found = os.environ.get(name)
    for place in dict.fromkeys((Path.cwd(), folder.absolute())):
        if found:
            break
        # No interpolation: a key may hold a dollar sign.
        found = dotenv_values(place / ".env", interpolate=False).get(name)
    return found or None
