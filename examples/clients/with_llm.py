"""Simon Willison's `llm` command, with a model that its own settings file names."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all

folder = tempfile.mkdtemp()
served = {
    "model_name": MODEL,
    "api_base": URL,
    "api_key_name": "cowest",
    "supports_schema": True,
    "supports_tools": True,
}
written = [{"model_id": "pair", **served}, {"model_id": "words", **served, "completion": True}]
Path(folder, "extra-openai-models.yaml").write_text(json.dumps(written))  # JSON is YAML
Path(folder, "keys.json").write_text(json.dumps({"cowest": KEY}))


def llm(*words):
    done = subprocess.run(
        [sys.executable, "-m", "llm", "prompt", *words],
        env=os.environ | {"LLM_USER_PATH": folder},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


rating = {"rating": {"type": "integer", "maximum": 9, "minimum": 0}}
schema = json.dumps({"type": "object", "properties": rating, "required": ["rating"], "additionalProperties": False})
short = ("-o", "max_tokens", str(TOKENS))
try_all(
    chat=lambda: llm("-m", "pair", "--no-stream", *short, QUESTION),
    stream=lambda: llm("-m", "pair", *short, QUESTION),
    schema=lambda: "rating" in json.loads(llm("-m", "pair", "--schema", schema, QUESTION)),
    completions=lambda: llm("-m", "words", *short, QUESTION),
)
