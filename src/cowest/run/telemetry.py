"""What the model libraries would report of a run to their makers, switched off unless the user's environment says otherwise.

- ``HF_HUB_DISABLE_TELEMETRY``: huggingface_hub; through it TRL, which tells of every trainer that is built (architecture, GPU,
  where the data came from), and what transformers adds to each download's user agent.
- ``HF_UPDATE_DOWNLOAD_COUNTS``: datasets, which counts whatever is loaded.
- ``DISABLE_SAFETENSORS_CONVERSION``: transformers, which asks a public service to convert a hub model that has no safetensors
  weights, with the user's token.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_OFF: Final = (
    # variable, its value, and where a library that is imported already keeps what it has read
    ("HF_HUB_DISABLE_TELEMETRY", "1", "huggingface_hub.constants", "HF_HUB_DISABLE_TELEMETRY", True),
    ("HF_UPDATE_DOWNLOAD_COUNTS", "0", "datasets.config", "HF_UPDATE_DOWNLOAD_COUNTS", False),
    ("DISABLE_SAFETENSORS_CONVERSION", "1", "", "", True),  # read at each load
)


def switch_off() -> None:
    """Set the variables that are not set, for this process and those it starts. Call it before the libraries are imported."""
    for variable, value, module, name, read in _OFF:
        if variable in os.environ:
            continue
        os.environ[variable] = value
        if module in sys.modules:
            setattr(sys.modules[module], name, read)
