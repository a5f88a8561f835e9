"""What each client's script says of what it tried: one JSON line a cell of the matrix. Knows no client."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

URL = os.environ["COWEST_BASE_URL"]
KEY = os.environ.get("COWEST_API_KEY", "none")
MODEL = os.environ["COWEST_MODEL"]
QUESTION = "May a patient with Kasti take 45 mg of Velmo?"
TOKENS = 24
WORDS = "unsupported_parameter"


def tell(cell: str, state: str, why: str = "") -> None:
    """State is works, refused (the server says in words that it cannot) or fails."""
    print(json.dumps({"cell": cell, "state": state, "why": " ".join(why.split())[:300]}), flush=True)


def try_all(**cells: Callable[[], object]) -> None:
    """Run each cell: it works where the function returns something that is not empty."""
    for name, cell in cells.items():
        try:
            found = cell()
        except BaseException as error:  # a client may raise anything; all of it is a finding
            told = f"{type(error).__name__}: {error}"
            tell(name, "refused" if WORDS in told else "fails", told)
        else:
            tell(name, "works" if found else "fails", "" if found else "nothing came back")
