"""lm-eval: a task of two questions, generated over chat completions and over completions."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all

folder = Path(tempfile.mkdtemp())
(folder / "rows.jsonl").write_text("".join(json.dumps({"q": q, "a": "no"}) + "\n" for q in (QUESTION, "Is fire cold?")))
(folder / "two.yaml").write_text(f"""
task: two
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: {TOKENS}, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")


def evaluated(kind, path, *words):
    how = f"model={MODEL},base_url={URL}/{path},num_concurrent=2,tokenized_requests=False,tokenizer_backend=None"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", kind, "--model_args", how, "--tasks", "two", *words]
    command += ["--include_path", str(folder)]
    env = os.environ | {"OPENAI_API_KEY": KEY}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
    return "exact_match" in done.stdout


try_all(
    chat=lambda: evaluated("local-chat-completions", "chat/completions", "--apply_chat_template"),
    completions=lambda: evaluated("local-completions", "completions"),
)
