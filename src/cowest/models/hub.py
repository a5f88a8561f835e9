"""Whether the model hub may be asked."""

from __future__ import annotations

import os


def hub_switch() -> str | None:
    """The environment variable that switches the hub off; None where it is on."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):  # as huggingface_hub reads them
            return name
    return None
