"""llama.cpp's server through xllamacpp, as ``llamacpp.py`` starts it. Runs in the engine's Python, without cowest.

python llamacpp_server.py SETTINGS    (JSON; the key is in COWEST_ENGINE_KEY)
"""

import json
import os
import signal
import sys
import threading


def main() -> None:
    """Serve until the process is told to end."""
    import xllamacpp

    said = json.loads(sys.argv[1])
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    params = xllamacpp.CommonParams()
    params.model.path = said["model"]
    params.model_alias = {said["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = said["port"]
    params.api_keys = [os.environ["COWEST_ENGINE_KEY"]]
    params.n_ctx, params.n_parallel = said["context"], said["slots"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = said["threads"]
    params.n_gpu_layers = said["gpu_layers"]
    params.cont_batching = params.use_jinja = True
    server = xllamacpp.Server(params)
    print("listening at", server.listening_address, flush=True)
    while not ended.wait(1.0):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
