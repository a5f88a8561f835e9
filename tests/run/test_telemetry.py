"""No library reports a run to anybody, unless the user's environment asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers import save_tiny_model

VARIABLES = ("HF_HUB_DISABLE_TELEMETRY", "HF_UPDATE_DOWNLOAD_COUNTS", "DISABLE_SAFETENSORS_CONVERSION")
MUTED = (
    *VARIABLES,
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "DO_NOT_TRACK",
    "DISABLE_TELEMETRY",
    "CI",
)
WATCH = """
import json, socket, sys
tried = []
def refuse(*args, **more):
    tried.append(str(args[0] if isinstance(args[0], str) else args[1]))
    raise OSError("no network here")
socket.getaddrinfo = refuse
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
"""
TRAIN = """
import os
import cowest
from pathlib import Path
from cowest.models.local import LocalChatModel
from cowest.recipe.config import AlignConfig, SftConfig
from cowest.run.progress import QuietReporter
from cowest.training.preference import train_preference
from cowest.training.sft import SftRow, train_sft
from cowest.types import Message, ModelRef, PreferencePair
ask, out = (Message(role="user", content="Why?"),), Path(sys.argv[2])
rows = [SftRow(prompt=ask, completion="So.")]
one = {"method": "lora", "max_steps": 1, "device": "cpu", "checkpoint_every": 1}
done = train_sft(ModelRef(base=sys.argv[1]), rows, SftConfig.model_validate(one), out / "sft", 0, QuietReporter())
said = [(Message(role="assistant", content=text),) for text in ("So.", "No.")]
pair = PreferencePair(example_id="a", prompt=ask, chosen=said[0], rejected=said[1], chosen_gain=1, rejected_gain=0)
train_preference(done.model, [pair], AlignConfig.model_validate(one), out / "align", 0, QuietReporter())
LocalChatModel(done.model, device="cpu")
from huggingface_hub.utils import _telemetry
_telemetry._TELEMETRY_QUEUE.join()
print(json.dumps(tried))
"""


def python(code: str, *args: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in MUTED} | variables
    done = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_trainers_are_built_and_used_without_a_word_to_anybody(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    assert json.loads(python(WATCH + TRAIN, model, str(tmp_path / "a"))) == []
    # The watch sees what is sent where a user wants it sent.
    tried = json.loads(python(WATCH + TRAIN, model, str(tmp_path / "b"), HF_HUB_DISABLE_TELEMETRY="0"))
    assert tried and set(tried) == {"huggingface.co"}


STATE = f"import os, json; import cowest; print(json.dumps([os.environ.get(v) for v in {VARIABLES}]))"


def test_the_variables_are_set_for_the_process_and_those_it_starts() -> None:
    assert json.loads(python(STATE)) == ["1", "0", "1"]
    assert json.loads(python(STATE, HF_HUB_DISABLE_TELEMETRY="0", HF_UPDATE_DOWNLOAD_COUNTS="1")) == ["0", "1", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "off"), [({}, True), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, False)])
def test_a_program_that_has_imported_the_libraries_before_is_quiet_too(variables: dict[str, str], off: bool) -> None:
    code = (
        "import json, datasets.config, huggingface_hub.constants; import cowest; "
        "print(json.dumps([huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS]))"
    )
    assert json.loads(python(code, **variables)) == [off, False]
