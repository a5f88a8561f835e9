"""Acts as vLLM's server, for the tests of managed engines: a real HTTP server in a real child process. Runs without cowest.

It is called as a Python would be (``-c`` asks for the packages that are there, ``-m`` starts the server), through a script that
:func:`tests.engines.fakes.fake_python` writes. FAKE_ENGINE_DIR is a folder: it writes ``events.jsonl`` there (each start,
adapter and request, with its process), and reads from ``orders.json`` what is to go wrong::

    {"package": false}        the package is not installed
    {"version": "1.0+cpu"}    its version, which says whether it is the one for processors
    {"slow_s": 1.0}           seconds until it listens
    {"port_taken": 1}         so many starts find their port taken
    {"fails": ["line"]}       it writes these lines and ends before it listens
    {"die_at": 3}             the 3rd request of the first start ends it; with "die_always" that of each start
    {"hold": true}            requests are never answered
    {"no_adapters": "why"}    an adapter is refused
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAKE_ENGINE_DIR"])
LOADED: dict[str, str] = {}
NUMBERS = itertools.count(1)  # of requests; two threads never get the same


def orders() -> dict[str, Any]:
    file = FOLDER / "orders.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def note(event: str, **more: object) -> None:
    with (FOLDER / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, "pid": os.getpid(), "at": time.time(), **more}) + "\n")


def starts() -> int:
    file = FOLDER / "events.jsonl"
    return sum('"event": "start"' in line for line in file.read_text().splitlines()) if file.exists() else 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.allowed():
            names = [NAME, *LOADED]
            self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        if self.path == "/v1/load_lora_adapter":
            refused = orders().get("no_adapters")
            if refused or not (Path(body["lora_path"]) / "adapter_config.json").exists():
                self.answer(400, {"error": {"message": refused or "no such adapter"}})
                return
            LOADED[body["lora_name"]] = body["lora_path"]
            note("adapter", **body)
            self.answer(200, f"Success: LoRA adapter '{body['lora_name']}' added successfully.")
        elif self.path == "/v1/chat/completions":
            self.chat(body)
        else:
            self.answer(404, {"detail": "Not Found"})

    def chat(self, body: dict[str, Any]) -> None:
        said = orders()
        number = next(NUMBERS)
        note("asked", model=body["model"], seed=body.get("seed"), extra=sorted(body))
        while said.get("hold"):
            time.sleep(0.1)
        if number == said.get("die_at") and (FIRST or said.get("die_always")):
            print("RuntimeError: the engine core is out of order", flush=True)
            os._exit(9)
        if body["model"] not in (NAME, *LOADED):
            missing = f"The model `{body['model']}` does not exist."
            self.answer(404, {"error": {"message": missing, "type": "NotFoundError", "param": "model", "code": 404}})
            return
        asked = body["messages"][-1]["content"]
        seen = f"{LOADED.get(body['model'], 'base')} {asked} {body.get('seed')}".encode()
        label = LABELS[hashlib.sha256(seen).digest()[0] % len(LABELS)]
        text = f"I think so.\nAnswer: {label}"
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": 6, "total_tokens": len(asked.split()) + 6}
        self.answer(200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    def allowed(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self.answer(401, {"error": "Unauthorized"})
        return False

    def answer(self, status: int, payload: object) -> None:
        body = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(arguments: list[str]) -> None:
    said, port = orders(), int(arguments[arguments.index("--port") + 1])
    print("INFO loading weights", flush=True)
    # As vLLM does: its engine core is a process of its own, which outlives a server that is just killed.
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note("start", arguments=arguments, core=core.pid, variables=sorted(os.environ))
    if starts() <= said.get("port_taken", 0):
        core.kill()
        sys.exit(
            f"ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', {port}): address already in use"
        )
    for line in said.get("fails", []):
        print(line, flush=True)
    if said.get("fails"):
        core.kill()
        sys.exit(1)
    time.sleep(said.get("slow_s", 0.0))
    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "-c":  # which packages are there?
        print(json.dumps({sys.argv[3]: orders().get("version", "1.0")} if orders().get("package", True) else {}))
        sys.exit()
    NAME = sys.argv[sys.argv.index("--served-model-name") + 1]
    LABELS = json.loads(os.environ.get("FAKE_ENGINE_LABELS", '["yes", "no"]'))
    FIRST = starts() == 0
    serve(sys.argv)
